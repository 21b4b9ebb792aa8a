"""A real agent in mount and network namespaces of its own, and the hands of other processes beside it.

Nothing here imports pact: what the tests see is what a user and another program see. ``net.*`` sysctls and mounts are
private to a world; every other sysctl is the host's and is never touched.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import SPACES, Started, User, warm

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = "/srv"  # a file system of its own in each world
#: Which one, for tests that do not say it: ``PACT_FILES=xfs python -m pytest tests/e2e/test_e2e_expiry.py``.
FILES = os.environ.get("PACT_FILES", "tmpfs")
BOX = f"{TOP}/box"  # of the toys in ``tests/toykind``
COMMAND_S = 60.0
WAIT_S = 15.0
STEP_S = 0.02


def wait_until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """The first true value of ``condition``; fails at the deadline. What takes long to look at is looked at less often:
    it is to wait, not to keep a processor busy.
    """
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        assert now < end, f"not within {seconds:g} s: {what}"
        time.sleep(max(STEP_S, now - began))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PACT_", "PYTEST_"))}
    return {**env, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "120"}


def mounted(files: str) -> str:
    """The shell command that mounts a new file system at TOP: ``tmpfs``, ``ramfs``, an ``overlay`` of two directories in
    memory, or what a disk may have (``xfs``), on a loop device that goes with its last mount."""
    if files in ("tmpfs", "ramfs"):
        return f"mount -t {files} -o mode=755 {files} {TOP}"
    if files == "overlay":
        under = f"mount -t tmpfs -o mode=755 tmpfs {TOP} && cd {TOP} && mkdir lower upper work"
        layers = "lowerdir=lower,upperdir=upper,workdir=work"
        return f"{under} && mount -t overlay -o {layers} overlay {TOP} && cd /"
    image = f"$(mktemp {tempfile.gettempdir()}/pact-files.XXXXXX)"
    return (
        f"image={image} && truncate --size=1G $image && mkfs.{files} -q $image >&2 && mount -o loop $image {TOP} && "
        f"rm $image && chmod 755 {TOP} && rm -rf {TOP}/lost+found"
    )


class World:
    """A mount and a network namespace, held open by one sleeping process."""

    spaces: Sequence[str] = SPACES  # that commands enter
    #: An interpreter of its own for each process, as where a package's kind opens something when it is read.
    cold = False

    def __init__(self, files: str = FILES) -> None:
        self.holder = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--net",
                "--propagation",
                "private",
                "sh",
                "-c",
                f"{mounted(files)} && echo ready && exec sleep 86400",
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n", "the namespaces could not be made"
        self.started: list[subprocess.Popen[Any] | Started] = []
        self.env: dict[str, str] = {}  # beside the environment that all have

    @property
    def entered(self) -> int:
        """The process whose namespaces commands enter."""
        return self.holder.pid

    def path(self, name: str) -> Path:
        """A path of the world as it is reached from outside: what is written there is written by the test's process."""
        assert name.startswith("/")
        return Path(f"/proc/{self.holder.pid}/root{name}")

    def argv(self, command: Iterable[str]) -> list[str]:
        pid = self.holder.pid
        return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net", "--", *command]

    def popen(self, command: Iterable[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """A process inside. It is ended with the world."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(self.argv(command), env={**environment(), **self.env}, cwd="/", **kwargs)
        self.started.append(process)
        return process

    def sh(self, script: str, *, uid: int = 0, check: bool = True) -> Done:
        """A shell command by another process inside, as ``uid``."""
        command = ["sh", "-c", script]
        if uid:
            command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *command]
        return self.call(command, check=check)

    def call(
        self, command: Iterable[str], *, check: bool = True, input: bytes | None = None, timeout: float = COMMAND_S
    ) -> Done:
        done = subprocess.run(
            self.argv(command),
            env={**environment(), **self.env},
            cwd="/",
            capture_output=True,
            timeout=timeout,
            input=input if input is not None else b"",
            check=False,
        )
        out = Done(
            done.returncode,
            done.stdout.decode("utf-8", "surrogateescape"),
            done.stderr.decode("utf-8", "surrogateescape"),
        )
        assert not check or out.code == 0, out
        return out

    def command(
        self,
        words: Sequence[str],
        input: bytes,
        timeout: float = COMMAND_S,
        user: User | None = None,
        kind: str = "commands",
    ) -> Done:
        """A command of pact, by default as root, in a process of its own that starts warm. ``kind``: see ``warm``."""
        env = {**environment(), **self.env}
        code, out, err = warm(kind, env).call(words, env, self.entered, input, timeout, user, self.spaces)
        return Done(code, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape"))

    def python(self, script: str, *args: str) -> subprocess.Popen[Any]:
        """A Python process inside that says ``ready`` when its script has got to ``ready()``, and then waits."""
        head = "import sys,time,os\ndef ready():\n print('ready',flush=True)\n sys.stdin.read()\n"
        process = self.popen(
            [sys.executable, "-c", head + script, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n", script
        return process

    def agent(self, words: Sequence[str], log: int) -> Started:
        """``pact WORDS``, as root, until it is ended, in a process that starts warm. It is ended with the world."""
        env = {**environment(), **self.env}
        started = warm("agents", env).start(words, env, self.holder.pid, log)
        self.started.append(started)
        return started

    def end(self, process: subprocess.Popen[Any] | Started) -> None:
        """End one that was started here."""
        if process.poll() is None:
            process.kill()
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self.started:
            self.started.remove(process)

    def close(self) -> None:
        for process in list(self.started):
            self.end(process)
        self.holder.kill()
        self.holder.wait(10)
        assert self.holder.stdout is not None
        self.holder.stdout.close()


#: A FUSE server that answers the kernel's first request and nothing after: whoever looks at the mount hangs.
HUNG_FUSE = """
import ctypes, struct
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"hung", sys.argv[1].encode(), b"fuse.hung", 6, options) == 0, os.strerror(ctypes.get_errno())
request = os.read(fd, 65536)
unique, = struct.unpack("Q", request[8:16])
ahead, = struct.unpack("I", request[48:52])
out = struct.pack("IIII", 7, 26, ahead, 0) + struct.pack("HHI", 12, 10, 65536) + struct.pack("IHHI", 1, 1, 0, 0) + bytes(28)
os.write(fd, struct.pack("IiQ", 16 + len(out), 0, unique) + out)
ready()
"""


def toml(config: Mapping[str, Any]) -> str:
    """Sections, and lists of tables."""
    tables = [(f"[[{s}]]" if isinstance(t, list) else f"[{s}]", each) for s, t in config.items() for each in _each(t)]
    return "".join(f"{head}\n" + "".join(f"{k} = {_value(v)}\n" for k, v in t.items()) for head, t in tables)


def _each(table: Any) -> list[Mapping[str, Any]]:
    return table if isinstance(table, list) else [table]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


class Agent:
    """One agent: its directory, configuration, process, and ways to talk to it."""

    def __init__(self, world: World, base: Path, config: Mapping[str, Any] | None = None) -> None:
        self.world, self.base = world, base
        base.mkdir(parents=True, exist_ok=True)
        self.socket = str(base / "s")
        assert len(self.socket) < 100, self.socket
        self.state_dir = base / "state"
        self.journal = self.state_dir / "journal.db"
        self.config_path = base / "agent.toml"
        self.log_path = base / "agent.log"
        self.process: subprocess.Popen[Any] | Started | None = None
        self.before: list[str] = []  # a command that runs the agent
        self.cold = False  # an interpreter of its own, for tests of what a start costs or needs
        self.config: dict[str, Any] = {
            "node": {"name": "n001"},
            "state": {"dir": str(self.state_dir)},
            "control": {"socket": self.socket},
            "declared": {"files": []},
            "window": {"base": "1h", "floor": "0.2s", "sensitivity": 2.0},
            "observe": {"rescan": "2s"},
            "hooks": {"dir": str(base / "hooks.d")},
            "notify": {"terminals": False},  # root's terminals of this machine are in use by other tests
        }
        self.configure(config or {})

    def configure(self, config: Mapping[str, Any]) -> None:
        for section, table in config.items():
            if isinstance(table, list):
                self.config[section] = table
            else:
                self.config.setdefault(section, {}).update(table)
        self.config_path.write_text(toml(self.config))

    # -- its life -----------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        assert self.process is None, "it runs already"
        with open(self.log_path, "ab") as log:
            words = ["agent", "--config", str(self.config_path)]
            if self.before or self.cold or self.world.cold:
                command = [*self.before, sys.executable, "-m", "pact.cli.main", *words]
                self.process = self.world.popen(command, stdout=log, stderr=log)
            else:
                self.process = self.world.agent(words, log.fileno())
        if wait:
            wait_until(self._answers, f"the agent is ready\n{self.log()}", 30)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended with {self.process.poll()}:\n{self.log()}"
        try:
            return bool(self.ask("ping")["ok"])
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        code = process.wait(30)
        self.world.end(process)
        return code

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def refuses_to_start(self, *, cold: bool = False) -> Done:
        """Run it where it cannot: its exit code and what it says. ``cold``: in an interpreter of its own, where it is the
        reading of modules that fails.
        """
        words = ["agent", "--config", str(self.config_path)]
        if cold or self.world.cold:
            return self.world.call([sys.executable, "-m", "pact.cli.main", *words], check=False, timeout=30)
        return self.world.command(words, b"", timeout=30, kind="agents")

    def close(self) -> None:
        if self.process is not None:
            self.world.end(self.process)
            self.process = None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # -- the command line ---------------------------------------------------------------------------------------

    def pact(
        self,
        *args: str,
        uid: int = 0,
        gid: int | None = None,
        groups: Iterable[int] = (),
        check: int | None = 0,
        input: bytes | None = None,
    ) -> Done:
        """The command line, by default as root; ``check`` is the exit code that is expected (``None``: any)."""
        user = User(uid, gid or uid, tuple(groups)) if uid else None
        words = ["--socket", self.socket, *args]
        if self.world.cold:
            who = user.setpriv() if user else []
            command = [*who, sys.executable, "-m", "pact.cli.main", *words]
            done = self.world.call(command, check=False, input=input)
        else:
            done = self.world.command(words, input or b"", user=user)
        assert "Traceback" not in done.err, done.err
        assert check is None or done.code == check, (args, done)
        return done

    def json(self, *args: str, **kwargs: Any) -> Any:
        """One JSON document of a command."""
        return self.pact("--json", *args, **kwargs).json()

    # -- the socket ---------------------------------------------------------------------------------------------

    def ask(self, op: str, **args: Any) -> Any:
        """A request over the socket, as another program would make it."""
        with self.connect() as sock, sock.makefile("rwb") as f:
            f.write(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
            f.flush()
            line = f.readline()
            assert line, f"the agent hung up on {op}\n{self.log()}"
            return json.loads(line)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(COMMAND_S)
        try:
            sock.connect(self.socket)
        except OSError:
            sock.close()
            raise
        return sock

    def status(self) -> Any:
        return self.ask("status")["result"]

    def records(self, type_: str = "") -> list[Any]:
        """Journal records, oldest first."""
        with self.connect() as sock, sock.makefile("rwb") as f:
            f.write(json.dumps({"v": 1, "op": "log", "args": {"count": None, "type": type_}}).encode() + b"\n")
            f.flush()
            out = []
            while (line := json.loads(f.readline())) != {"end": True}:
                out.append(line["record"])
            return out[::-1]

    def newest(self, type_: str) -> Any:
        found = self.records(type_)
        return found[-1] if found else None

    def change_of(self, resource: str) -> Any:
        """The open change that has this resource, or None."""
        return next((c for c in self.status()["changes"] if resource in c["resources"]), None)

    # -- usual steps --------------------------------------------------------------------------------------------

    def declare(self, text: str, *args: str, check: int | None = 0) -> Done:
        return self.pact("--json", "declare", *args, "-", input=text.encode(), check=check)

    def file(self, name: str, content: str | bytes = "declared\n", mode: int = 0o644) -> str:
        """Write a file and adopt it. Returns its path in the world."""
        path = f"{TOP}/{name}"
        outside = self.world.path(path)
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes(content.encode() if isinstance(content, str) else content)
        outside.chmod(mode)
        self.adopt(f"file:{path}")
        return path

    def adopt(self, *patterns: str) -> Any:
        answer = self.ask("adopt", patterns=list(patterns))
        assert answer["exit"] == 0, answer
        return answer["result"]

    def drift(self, path: str, content: str = "drifted\n") -> Any:
        """Write to a declared file; the change that it opened."""
        self.world.path(path).write_text(content)
        return self.drifted(f"file:{path}")

    def drift_by(self, uid: int, path: str, content: str = "x") -> Any:
        """``uid`` writes to a declared file and stays until that is seen: without exec events (which only the initial
        network namespace gets) the kernel names nobody for a writer that is gone before it is looked at."""
        script = 'printf "%s\\n" "$1" > "$2" && echo written && exec cat'
        writer = self.world.popen(
            [
                "setpriv",
                f"--reuid={uid}",
                f"--regid={uid}",
                "--clear-groups",
                "--",
                "sh",
                "-c",
                script,
                "sh",
                content,
                path,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert writer.stdout is not None and writer.stdout.readline() == b"written\n", f"{uid} cannot write {path}"
            return self.drifted(f"file:{path}")
        finally:
            self.world.end(writer)

    def drifted(self, resource: str) -> Any:
        return wait_until(lambda: self.change_of(resource), f"{resource} has drifted\n{self.log()}")

    def settled(self, resource: str, seconds: float = WAIT_S) -> None:
        wait_until(lambda: not self.change_of(resource), f"{resource} is settled: {self.status()['changes']}", seconds)

    def clear(self) -> None:
        """Leave nothing open for the next test: forget holds, emergency and what is declared below the tmpfs."""
        status = self.status()
        if status["emergency"]:
            answer = self.ask("emergency_end", how="rollback", force=True)
            assert answer["exit"] in (0, 1, 10), answer
        for hold in status["holds"]:
            self.ask("hold_release", name=hold["id"])
        wait_until(lambda: all(c["state"] != "rolling_back" for c in self.status()["changes"]), "rollbacks have ended")
        answer = self.ask("declare", resources={}, prune=True)
        assert answer["exit"] == 0, answer
        left = self.status()
        assert (left["declared"], left["changes"]) == (0, []), left


def content64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
