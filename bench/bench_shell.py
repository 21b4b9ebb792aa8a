"""Sessions of ``pact shell`` on the node, beside OpenSSH on the same machine: to the first prompt, a keystroke's echo,
the throughput of a command's output, and what idle sessions cost.

A real agent and a real ``sshd`` run in a mount and network namespace with accounts of its own, so both open a login
shell of the same person on loopback. The client's own start (Python's) is part of the time to the first prompt.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "e2e"), str(HERE.parent / "tests")]

import psutil  # noqa: E402
from _beside import Figure, figure, main  # noqa: E402
from harness import Agent, World, environment, wait_until  # noqa: E402
from terminals import ADMINS, ANN, Terminal, as_, at_terminal, people  # noqa: E402

PROMPT = "ann> "
PORT = 2222
MIB = 1 << 20


class Place:
    """The namespaces with an agent and an ``sshd``."""

    def __init__(self) -> None:
        self.world = World()
        self.base = Path(tempfile.mkdtemp(prefix="pact-bench-"))
        self.base.chmod(0o755)
        (self.base / "etc").mkdir()
        people(self.world, self.base / "etc")
        self.agent = Agent(self.world, self.base / "a", {"shell": {"sessions": 4096, "transcript": True}})
        self.agent.cold = True  # what a site runs, not one that starts with modules in memory
        (self.agent.base / "run").mkdir()
        self.agent.socket = str(self.agent.base / "run" / "s")
        self.agent.configure({"control": {"socket": self.agent.socket}})
        self.agent.start()
        self.sshd = self._sshd()

    def _sshd(self) -> subprocess.Popen[bytes] | None:
        if not os.path.exists("/usr/sbin/sshd"):
            return None
        place = self.base / "ssh"
        place.mkdir(mode=0o755)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
        os.chown(place / "user", ANN, ANN)
        home = self.world.path("/srv/home/ann")
        (home / ".ssh").mkdir()
        (home / ".ssh" / "authorized_keys").write_text((place / "user.pub").read_text())
        self.world.sh("chown -R 4101:4101 /srv/home/ann/.ssh; chmod 700 /srv/home/ann/.ssh; mkdir -p /run/sshd")
        self.world.sh("ip link set lo up")
        (place / "config").write_text(
            f"Port {PORT}\nListenAddress 127.0.0.1\nHostKey {place}/host\nUsePAM yes\nPidFile none\n"
            "StrictModes no\nPasswordAuthentication no\nPrintMotd no\nPrintLastLog no\n"
        )
        process = self.world.popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(place / "config")], stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "sshd listens")
        return process

    def _listens(self) -> bool:
        return self.world.sh(f"ss -ltn | grep -q :{PORT}", check=False).code == 0

    def ssh_command(self) -> list[str]:
        return [
            *as_(ANN, ADMINS),
            "ssh",
            *("-F", "none", "-tt", "-p", str(PORT), "-i", f"{self.base}/ssh/user", "-o", "StrictHostKeyChecking=no"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ControlMaster=no", "ann@127.0.0.1"),
        ]

    def ssh(self) -> Terminal:
        """A login by ssh, at a terminal."""
        import fcntl
        import pty
        import termios

        master, slave = pty.openpty()
        os.fchown(slave, ANN, 5)

        def own() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            self.world.argv(self.ssh_command()),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(), "TERM": "xterm"},
            cwd="/",
            preexec_fn=own,  # noqa: PLW1509 - nothing else runs here
        )
        os.close(slave)
        return Terminal(process, master)

    def pact(self) -> Terminal:
        return at_terminal(self.agent, "shell")

    def close(self) -> None:
        for session in self.agent.ask("sessions")["result"]["sessions"]:
            self.agent.ask("session_end", session=session["id"])
        self.agent.close()
        self.world.close()
        subprocess.run(["rm", "-rf", str(self.base)], check=False)


def to_prompt(start: Callable[[], Terminal], rounds: int) -> float:
    """Median milliseconds from the start of the client to the first prompt."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        terminal = start()
        end = began + 20
        while PROMPT.encode() not in terminal.raw and time.perf_counter() < end:
            terminal.read(0.002)
        times.append((time.perf_counter() - began) * 1000)
        terminal.type("exit\r")
        terminal.end()
        terminal.close()
    return statistics.median(times)


def echoes(start: Callable[[], Terminal], count: int) -> list[float]:
    """Milliseconds from a key to its echo, one after the other, sorted. The echo is the terminal's own (``cat``)."""
    terminal = start()
    terminal.until(PROMPT)
    terminal.type("stty -icanon; exec cat > /dev/null\r")
    time.sleep(0.5)
    terminal.quiet()
    out = []
    for number in range(count):
        key = bytes([97 + number % 26])
        began = time.perf_counter()
        os.write(terminal.master, key)
        while key not in (os.read(terminal.master, 64) if select.select([terminal.master], [], [], 5)[0] else key):
            pass
        out.append((time.perf_counter() - began) * 1000)
    terminal.close()
    return sorted(out)


def throughput(command: list[str], size: int) -> float:
    """MB/s of a command's output through a session without a terminal."""
    began = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(), cwd="/", check=True
    )
    assert len(done.stdout) == size, (len(done.stdout), size)
    return size / (time.perf_counter() - began) / 1e6


def prepared(place: Place, rounds: int) -> float:
    """Median milliseconds of the node's side: from the request to a session that runs and is recorded."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        answer = place.agent.ask("shell_open", words=["true"], terminal=True, account="")
        times.append((time.perf_counter() - began) * 1000)
        assert answer["ok"], answer
        time.sleep(0.05)
    return statistics.median(times)


def idle(place: Place, count: int) -> tuple[float, float, float]:
    """MiB of one idle session's own memory (the mean), of the largest, and what the agent grew by."""
    assert place.agent.process is not None
    agent = _agent(place)
    before = agent.memory_full_info().uss
    for _ in range(count):
        assert place.agent.ask("shell_open", words=["exec cat"], terminal=True)["ok"]
    wait_until(lambda: len(place.agent.ask("sessions")["result"]["sessions"]) >= count, "all are open", 60)
    time.sleep(2)
    states = (place.agent.base / "run" / "sessions").glob("*.json")
    import json

    own = [psutil.Process(json.loads(p.read_text())["pid"]).memory_full_info().uss / MIB for p in states]
    return statistics.mean(own), max(own), (agent.memory_full_info().uss - before) / MIB


def _agent(place: Place) -> psutil.Process:
    assert place.agent.process is not None
    found = psutil.Process(place.agent.process.pid)
    while "pact.cli.main" not in found.cmdline():
        found = found.children()[0]
    return found


def run(quick: bool) -> list[Figure]:
    rounds, keys, size, count = (5, 200, 100_000_000, 50) if quick else (15, 1000, 400_000_000, 500)
    out: list[Figure] = []
    place = Place()
    place.agent.configure({"shell": {"root": ["root"]}})
    place.agent.restart()
    try:
        here = to_prompt(place.pact, rounds)
        out.append(figure("pact shell to its first prompt, with the client's start", here, "ms"))
        keys_here = echoes(place.pact, keys)
        out.append(
            figure("a keystroke's echo, median", keys_here[len(keys_here) // 2], "ms", "< 2", keys_here[keys // 2] < 2)
        )
        nines = keys_here[int(keys * 0.99)]
        out.append(figure("a keystroke's echo, 99 of 100", nines, "ms", "< 10", nines < 10))
        pact = place.world.argv(
            [*as_(ANN, ADMINS), sys.executable, "-m", "pact.cli.main", "--socket", place.agent.socket]
        )
        cat = f"yes the quick brown fox jumps over the lazy dog | head -c {size}"
        rate = throughput([*pact, "shell", "--", cat], size)
        out.append(figure("throughput of a command's output", rate, "MB/s", ">= 100", rate >= 100))
        out.append(
            figure("a session on the node, from the request to the record and its shell", prepared(place, rounds), "ms")
        )
        if place.sshd is not None:
            there = to_prompt(place.ssh, rounds)
            out.append(figure("ssh to its first prompt", there, "ms"))
            out.append(
                figure("pact shell beside ssh, to the first prompt", here / there, "x", "<= 0.5", here / there <= 0.5)
            )
            keys_there = echoes(place.ssh, keys)
            out.append(figure("ssh: a keystroke's echo, median", keys_there[len(keys_there) // 2], "ms"))
            ssh = [w for w in place.ssh_command() if w != "-tt"]
            out.append(
                figure("ssh: throughput of a command's output", throughput([*place.world.argv(ssh), cat], size), "MB/s")
            )
        mean, most, grown = idle(place, count)
        out.append(figure(f"memory of one of {count} idle sessions, mean", mean, "MiB", "< 1", mean < 1))
        out.append(figure("and of the largest", most, "MiB", "< 1", most < 1))
        out.append(figure(f"what {count} sessions add to the agent", grown, "MiB"))
    finally:
        place.close()
    return out


if __name__ == "__main__":
    main(run)
