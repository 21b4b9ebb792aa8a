"""The demonstration: ADR-014 happening on this machine's kernel, in half a minute.

A real agent watches real files, ``net.*`` sysctls and mounts, in mount and network namespaces of its own, so that
nothing outside is touched. Every step is verified by asking the kernel, not pact. Needs root, or user namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from telling import DemoError, check, enter, paint, tell, title, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
BASE_S, FLOOR_S, SENSITIVITY = 6.0, 1.0, 2.0
SYSCTL = "net.ipv4.tcp_keepalive_time"


# -- the machine ----------------------------------------------------------------------------------------------------


def sysctl() -> str:
    return Path("/proc/sys/" + SYSCTL.replace(".", "/")).read_text().strip()


def mounts(point: str) -> list[str]:
    """The kernel's lines for a mount point, the visible mount last."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == point]


class Demo:
    """The steps, in order."""

    def __init__(self, place: str, work: Path) -> None:
        self.place, self.work = place, work
        self.etc = Path(place) / "etc"
        self.conf = self.etc / "chrony.conf"
        self.scratch = f"{place}/scratch"
        self.socket = str(work / "agent.sock")
        self.agent: subprocess.Popen[bytes] | None = None
        self.session: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    # -- hands ------------------------------------------------------------------------------------------------------

    def shell(self, command: str) -> None:
        """What somebody types into a shell on the node, with any tool at all."""
        print(paint("   $ ", "33") + command, flush=True)
        if self.session is None:
            self.session = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.others.append(self.session)
        assert self.session.stdin is not None and self.session.stdout is not None
        self.session.stdin.write(f"{command}; echo $?\n".encode())
        self.session.stdin.flush()
        if self.session.stdout.readline() != b"0\n":
            raise DemoError(f"{command} failed")

    def pact(self, *words: str, expect: int = 0) -> None:
        """A command of pact's, shown with its real output."""
        shown = " ".join(f"'{w}'" if " " in w else w for w in words)
        print(paint("   $ ", "33") + f"pact {shown}", flush=True)
        done = subprocess.run(
            self._argv(words), env=self.env, stdin=subprocess.DEVNULL, check=False, stderr=subprocess.STDOUT
        )
        if done.returncode != expect:
            raise DemoError(f"pact {shown} ended with {done.returncode} instead of {expect}")

    def status(self) -> Any:
        done = subprocess.run(
            self._argv(["--json", "status"]), env=self.env, capture_output=True, check=True, stdin=subprocess.DEVNULL
        )
        return json.loads(done.stdout)

    def _argv(self, words: Any) -> list[str]:
        return [sys.executable, "-m", "pact.cli.main", "--socket", self.socket, *words]

    def drifted(self, count: int = 1) -> Any:
        """Status as soon as so many resources have drifted."""

        def look() -> Any:
            status = self.status()
            return status if status["drifted"] == count else None

        return wait_until(look, f"pact sees {count} drifted")

    def start(self) -> None:
        self.etc.mkdir()
        declared = self.work / "declared.toml"
        declared.write_text(
            f'[sysctl]\n"{SYSCTL}" = {sysctl()}\n'
            f'[file."{self.conf}"]\ncontent = "pool time.example.org iburst\\n"\nmode = "0644"\n'
            f'[mount."{self.scratch}"]\nsource = "tmpfs"\nfstype = "tmpfs"\n'
            'options = ["size=8m", "noatime", "nodev"]\n'
        )
        config = self.work / "agent.toml"
        config.write_text(
            f'[node]\nname = "demo"\n[state]\ndir = "{self.work}/kept"\n[control]\nsocket = "{self.socket}"\n'
            f'[declared]\nfiles = []\n[hooks]\ndir = "{self.work}/hooks.d"\n'
            f"[window]\nbase = {BASE_S}\nfloor = {FLOOR_S}\nsensitivity = {SENSITIVITY}\n"
        )
        with open(self.work / "agent.log", "wb") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "pact.cli.main", "agent", "--config", str(config)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._ready, "the agent is ready")
        tell(declared.read_text().rstrip())
        self.pact("declare", str(declared))

    def _ready(self) -> bool:
        assert self.agent is not None
        if self.agent.poll() is not None:
            raise DemoError(f"the agent ended with {self.agent.returncode}:\n{(self.work / 'agent.log').read_text()}")
        return os.path.exists(self.socket)

    def stop(self) -> int:
        for process in self.others:
            process.kill()
            process.wait()
        if self.agent is None:
            return 0
        self.agent.send_signal(signal.SIGTERM)
        try:
            return self.agent.wait(15)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            return self.agent.wait()
        finally:
            if pid := self._pid_of(f"{self.place}/demo-daemon"):  # a service outlives the agent
                os.kill(pid, signal.SIGTERM)

    # -- the steps --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        title(1, "Declared state: what this node should be")
        self.start()
        check(self.conf.read_text().startswith("pool"), f"{self.conf} is there")
        check(len(mounts(self.scratch)) == 1 and "noatime" in mounts(self.scratch)[0], f"{self.scratch} is mounted")
        self.pact("status")
        self.seen_and_committed()
        self.expired()
        self.refused()
        self.emergency()
        self.other_dimensions()
        title(7, "The journal: every step, chained by hashes")
        self.pact("log", "-n", "8")
        self.pact("journal", "verify", f"{self.work}/kept/journal.db")

    def seen_and_committed(self) -> None:
        title(2, "Somebody changes the machine, with any tool: seen at once, and timed")
        before = int(sysctl())
        self.shell(f"echo {before // 2} > /proc/sys/{SYSCTL.replace('.', '/')}")
        status = self.drifted()
        self.pact("status")
        (change,) = status["changes"]
        window = BASE_S / (1 + status["magnitude"] * SENSITIVITY)
        who = change["owner"]["user"]
        who += ": the kernel names writers to root alone" if who == "unattributed" else ""
        check(change["resources"] == [f"sysctl:{SYSCTL}"], f"pact saw it, and who it was: {who}")
        check(
            0 < change["remaining_s"] <= window,
            f"its window: {BASE_S:g} s / (1 + {status['magnitude']:.3g} x "
            f"{SENSITIVITY:g}) = {window:.2f} s, of which {change['remaining_s']:.2f} s are left",
        )
        tell("   In time, its owner accepts it:")
        self.pact("commit", change["id"], "-m", "shorter keepalive for the gateway")
        time.sleep(max(0.0, change["remaining_s"]) + 0.3)
        check(sysctl() == str(before // 2), f"the window is over, and {SYSCTL} is still {before // 2}")
        check(self.status()["state"] == "committed", "nothing is open")

    def expired(self) -> None:
        title(3, "Nobody commits: the window ends, and declared state comes back")
        self.shell(f"echo 'pool other.example.org' > {self.conf}; chmod 600 {self.conf}; umount {self.scratch}")
        status = self.drifted(2)
        self.pact("status")
        check(status["window_s"] < BASE_S, f"two things drifted, so there is less time: {status['window_s']:.2f} s")
        check(not mounts(self.scratch) and "other" in self.conf.read_text(), "the kernel agrees: it is all changed")
        started = time.monotonic()
        wait_until(lambda: mounts(self.scratch) and self.status()["drifted"] == 0, "pact rolled it back")
        tell(f"   {time.monotonic() - started:.1f} s later:")
        check(
            self.conf.read_text() == "pool time.example.org iburst\n" and self.conf.stat().st_mode & 0o777 == 0o644,
            f"{self.conf} has its content and mode back",
        )
        (line,) = mounts(self.scratch)
        check(all(o in line for o in ("noatime", "nodev", "size=8192k")), f"{self.scratch} is mounted with its options")
        kept = subprocess.run(
            self._argv(["--json", "log", "-n", "2", "--type", "rollback_started"]),
            env=self.env,
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        records = [json.loads(line) for line in kept.stdout.splitlines()]  # two, where the kernel named no unmounter
        seq = next(r["seq"] for r in records if str(self.conf) in json.dumps(r["data"]))
        tell("   What it replaced is kept:")
        self.pact("show", str(seq), "--restore", f"{self.work}/kept.conf")
        check((self.work / "kept.conf").read_text() == "pool other.example.org\n", "nobody's work is lost")

    def refused(self) -> None:
        title(4, "Somebody is using it: the rollback is refused, and the user is named")
        self.shell(f"mount -t tmpfs -o size=50m bigger {self.scratch}")
        print(paint("   $ ", "33") + f"(cd {self.scratch} && exec sleep 1000) &   # a job works in it", flush=True)
        job = subprocess.Popen(["sleep", "1000"], cwd=self.scratch, stdin=subprocess.DEVNULL)
        self.others.append(job)
        name = self.drifted()["changes"][0]["id"]
        self.pact("rollback", name, expect=10)
        (change,) = self.status()["changes"]
        check(
            change["state"] == "blocked" and [h["pid"] for h in change["consumers"]] == [job.pid],
            f"blocked; the consumer is named: pid {job.pid}, {change['consumers'][0]['command']}",
        )
        check(len(mounts(self.scratch)) == 2, "the kernel agrees: nothing was touched")
        self.pact("status")
        tell("   The job ends; somebody decides:")
        job.terminate()
        job.wait()
        self.pact("rollback", name)
        check(len(mounts(self.scratch)) == 1, "what was mounted over it is gone")

    def emergency(self) -> None:
        title(5, "Emergency: windows stop until a person ends it")
        self.pact("emergency", "start", "--reason", "the file server is on fire", "--for", "1h")
        self.shell(f"rm {self.conf}; ln -s /dev/null {self.conf}")
        self.drifted()
        self.pact("status")
        time.sleep(BASE_S / 2)
        status = self.status()
        check(status["state"] == "emergency" and status["changes"][0]["deadline"] is None, "no window runs")
        check(self.conf.is_symlink(), "the kernel agrees: nothing was rolled back")
        self.pact("emergency", "end", "--rollback")
        check(
            not self.conf.is_symlink() and self.conf.read_text().startswith("pool time"), f"{self.conf} is itself again"
        )
        check(self.status()["state"] == "committed", "and the node is as declared")

    def other_dimensions(self) -> None:
        title(6, "Services, links and tunables are declared, seen and restored like files")
        if not (shutil.which("ip") and self._new_link()):
            tell("   left out: this machine lets us have no network link or /sys of our own")
            return
        queue, daemon = Path("/sys/class/net/pact0/tx_queue_len"), f"{self.place}/demo-daemon"
        shutil.copy("/bin/sleep", daemon)
        start = f'["/bin/sh", "-c", "{daemon} 1000 > /dev/null 2>&1 &"]'
        declared = self.work / "more.toml"
        declared.write_text(
            '[link.pact0]\nstate = "up"\naddresses = ["192.0.2.1/24"]\n'
            '[sysfs]\n"class/net/pact0/tx_queue_len" = 2000\n'
            f'[service.demo]\nstate = "running"\nbackend = "process"\nexecutable = "{daemon}"\nstart = {start}\n'
        )
        tell(declared.read_text().rstrip())
        self.pact("declare", str(declared))
        check(self._address() and queue.read_text() == "2000\n", "the link is up, with its address and its queue")
        pid = self._pid_of(daemon)
        self.shell(f"ip link set pact0 down; echo 500 > {queue}; kill {pid}")
        self.drifted(3)
        self.pact("status")
        started = time.monotonic()
        wait_until(lambda: self.status()["drifted"] == 0, "pact rolled it back", 30)
        tell(f"   {time.monotonic() - started:.1f} s later:")
        check(self._address() and queue.read_text() == "2000\n", "the link is up again; its queue is as declared")
        check(self._pid_of(daemon) not in (0, pid), "and the service runs again")

    def _new_link(self) -> bool:
        """A link in the demonstration's own network, and a /sys that shows it."""
        make = "ip link add pact0 type veth peer name pact1 && ip link set pact1 up && mount -t sysfs sysfs /sys"
        done = subprocess.run(["sh", "-c", make], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
        return whole and done.returncode == 0

    @staticmethod
    def _address() -> bool:
        done = subprocess.run(["ip", "addr", "show", "dev", "pact0", "up"], capture_output=True, text=True, check=False)
        return "192.0.2.1/24" in done.stdout

    @staticmethod
    def _pid_of(program: str) -> int:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/exe") == program:
                    return int(pid)
            except OSError:
                continue
        return 0


def inside(place: str) -> int:
    """The demonstration proper, in its namespaces."""
    started = time.monotonic()
    subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    work = Path(tempfile.mkdtemp(prefix="pact-demo-"))
    demo = Demo(place, work)
    print(paint("pact: changes at once, commit in time, or back to declared state (ADR-014)", "1"))
    tell(f"A real agent in namespaces of its own; files and mounts below {place}; windows of {BASE_S:g} s, not 15 min.")
    try:
        demo.run()
        check(demo.stop() == 0, "the agent ended cleanly")
        demo.agent = None
    except (DemoError, subprocess.CalledProcessError, OSError) as exc:
        print(paint(f"\ndemo: FAILED: {exc}", "1;31"), file=sys.stderr)
        log = work / "agent.log"
        if log.exists():
            print("the agent said:\n" + log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        demo.stop()
        shutil.rmtree(work, ignore_errors=True)
    print("\n" + paint(f"Every step was verified against the kernel, in {time.monotonic() - started:.0f} s.", "1;32"))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(sys.argv[2]))
    enter(__file__)
