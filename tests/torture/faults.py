"""What goes wrong, for real: disks that fill or fail, boots, processes that stand still, descriptors that run out.

Each fault is one that the kernel itself makes (a small file system, ``strace`` at the system calls, a time namespace), and
each can be taken back, as often as one likes.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import HUNG_FUSE

BOOT_ID = "/proc/sys/kernel/random/boot_id"
ATTACHED_S = 10.0


def require_apart() -> None:
    """A seed mounts and unmounts below /srv, writes sysctls, and kills: never where somebody lives."""
    if os.getpid() != 1:
        sys.exit("a seed runs in namespaces of its own: tests/torture/run.py makes them, and prints the whole command")


def run(*command: str) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


class Disk:
    """A small file system of its own at ``point``: in memory, or ext4 on a loop device."""

    def __init__(self, point: Path, kind: str, mib: int) -> None:
        self.point, self.kind, self.full = point, kind, False
        point.mkdir()
        image = point.with_name("disk.img")
        if kind == "ext4":
            with open(image, "wb") as f:
                f.truncate(mib << 20)
            if not (
                run("mkfs.ext4", "-q", "-m", "0", str(image)) and run("mount", "-o", "loop", str(image), str(point))
            ):
                self.kind = "tmpfs"
        if self.kind == "tmpfs":
            assert run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(point))

    def fill(self) -> None:
        """Until not one byte more can be written."""
        self.full = True
        with open(self.point / "fill", "ab", buffering=0) as f:
            for size in (1 << 20, 1 << 16, 1 << 12, 1):
                try:
                    while f.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self.full = False
        (self.point / "fill").unlink(missing_ok=True)

    def close(self) -> None:
        run("umount", "-l", str(self.point))


class Strace:
    """System calls of a process fail as long as this is attached."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def works() -> bool:
        return shutil.which("strace") is not None and run("strace", "-o", "/dev/null", "true")

    def attach(self, pid: int, calls: str, error: str, paths: Sequence[str], every: int = 1) -> None:
        """``calls`` that concern one of ``paths`` end with ``error``: all, or one in ``every``."""
        assert self.process is None
        when = f":when=1+{every}" if every > 1 else ""
        named = [word for path in paths for word in ("-P", path)]
        self.process = subprocess.Popen(
            [
                "strace",
                "-f",
                "-o",
                "/dev/null",
                "-e",
                f"trace={calls}",
                "-e",
                f"inject={calls}:error={error}{when}",
                *named,
                "-p",
                str(pid),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        self.process.stderr.readline()  # attached

    def detach(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ATTACHED_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stderr is not None
            process.stderr.close()


class Boots:
    """Boots of the machine, as the agent can tell them apart: the boot id, and the time since the boot where the kernel has
    time namespaces."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.count = directory, 0
        self.has_time = run("unshare", "--time", "--boottime", "10", "true")
        self.prefix: list[str] = []

    def reboot(self, up_s: int) -> None:
        """Another boot, ``up_s`` seconds ago."""
        self.count += 1
        file = self.directory / f"boot-{self.count}"
        file.write_text(f"{uuid.uuid4()}\n")
        assert run("mount", "--bind", str(file), BOOT_ID)
        if self.has_time:
            offset = up_s - int(time.clock_gettime(time.CLOCK_BOOTTIME))
            self.prefix = ["unshare", "--time", "--boottime", str(offset), "--"]


class Crowd:
    """No descriptor is left to a process: its limit is lowered, and clients that say nothing take the rest."""

    def __init__(self) -> None:
        self.pid = 0
        self.before = (0, 0)
        self.clients: list[socket.socket] = []

    def begin(self, pid: int, path: str, spare: int) -> None:
        self.pid, self.before = pid, resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, self.before[1]))
        for _ in range(spare + 3):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(1.0)
            self.clients.append(client)
            try:
                client.connect(path)
            except OSError:
                break

    def end(self) -> None:
        for client in self.clients:
            client.close()
        self.clients = []
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            try:
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, self.before)
            except ProcessLookupError:
                pass
        self.pid = 0


class Hung:
    """A FUSE file system that answers nobody, mounted at a path."""

    def __init__(self) -> None:
        self.path = ""
        self.server: subprocess.Popen[bytes] | None = None

    def begin(self, path: str) -> None:
        head = "import sys,time,os\ndef ready():\n print('ready',flush=True)\n sys.stdin.read()\n"
        self.server = subprocess.Popen(
            [sys.executable, "-c", head + HUNG_FUSE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.server.stdout is not None
        if self.server.stdout.readline() == b"ready\n":
            self.path = path
        else:
            self.end()

    def end(self) -> None:
        server, path, self.server, self.path = self.server, self.path, None, ""
        if server is not None:
            server.kill()
            server.wait()
            for stream in (server.stdin, server.stdout):
                if stream is not None:
                    stream.close()
        if path:
            run("umount", "-l", path)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _path_of(pid: int, call: list[str]) -> str:
    """The second argument of a call, where it is a path."""
    if len(call) < 3 or call[0] in ("7", "202", "running"):
        return ""
    try:
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(int(call[2], 16))
            text = memory.read(256).partition(b"\0")[0]
    except (OSError, ValueError, OverflowError):
        return ""
    return f" {text.decode()}" if text.isascii() and text.startswith(b"/") else ""


def threads(pid: int) -> str:
    """What each thread of a process waits for, in the kernel's words."""
    out = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        try:
            said = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
            out.append(" ".join(said)[:160] + _path_of(pid, said[2].split()))
        except OSError as exc:
            out.append(f"{task.name}: {exc}")
    return "\n".join(out)
