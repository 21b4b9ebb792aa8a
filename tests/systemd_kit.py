"""A real systemd of a test's own, and a real agent that watches it as on a node.

``boot()`` gives a running Debian in namespaces of its own (systemd-nspawn), with systemd as its process 1, D-Bus, and
nothing of this machine: half a second. What is written in it is gone when it ends. The repository, its virtual
environment and the interpreter lie in it at the same paths, read-only; the directory of ``shared`` lies in it at the
same path, writable, so that an agent's socket and journal can be reached from outside.

The file system is made once, by mmdebstrap (35 s, 220 MB), below ``/var/cache/pact-tests`` (or ``$PACT_TEST_CACHE``),
and never changed; another set of packages is another one beside it. A test that needs more in it says so:

    machine = systemd_kit.boot(shared, packages=("slurmd", "slurmctld", "munge"))

and adds nothing to ``PACKAGES``, which everybody's root has. ``Machine`` is a ``World``: what the harness does with a
world (``sh``, ``call``, ``command``, ``path``) it does with a machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import REPOSITORY, Agent, World, environment, wait_until
from warm import ALL_SPACES

SUITE = "bookworm"
#: What systemd needs, what tests call, and the libraries of the interpreter that is bound into the machine.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "iproute2", "procps", "util-linux"),
    *("libsqlite3-0", "libffi8", "libssl3", "zlib1g", "libbz2-1.0", "liblzma5", "libncursesw6", "libreadline8"),
)
CACHE = Path(os.environ.get("PACT_TEST_CACHE", "/var/cache/pact-tests"))
BUILD_S = 600
BOOT_S = 60
CGROUP = "pact-machine-"
#: A shell goes into as many control groups as its first word says, and becomes the rest.
ENTER = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1/cgroup.procs"; shift; n=$((n - 1)); done; exec "$@"'
TOOLS = ("mmdebstrap", "systemd-nspawn")  # of the packages mmdebstrap and systemd-container


def root_of(packages: Iterable[str] = ()) -> Path:
    """A root file system with these packages, made if it is not there. It is shared: nobody writes in it."""
    wanted = sorted({*PACKAGES, *packages, *(("python3",) if sys.base_prefix == "/usr" else ())})
    name = f"{SUITE}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / name
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            fresh = CACHE / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            made = subprocess.run(
                ["mmdebstrap", "--variant=minbase", f"--include={','.join(wanted)}", SUITE, str(fresh)],
                capture_output=True,
                text=True,
                timeout=BUILD_S,
                check=False,
            )
            assert made.returncode == 0, made.stderr[-2000:]
            fresh.chmod(0o755)  # mmdebstrap keeps the umask of its directory
            fresh.rename(root)
    return root


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def first_of(nspawn: int) -> int:
    """Its child that is process 1 of a pid namespace; 0 while there is none: another one prepares it first."""
    for pid in children(nspawn):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if len(numbers) > 1 and numbers[-1] == "1" and "systemd" in status.splitlines()[0]:
            return pid
    return 0


def cgroups_of_own(name: str) -> list[Path]:
    """New control groups below this process's own, in the hierarchies that systemd uses. Without them all machines
    would share one tree, and a unit of one machine would hold the processes of its namesake in another."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    except OSError:
        return []
    made = []
    for _, where, kind, options, *_ in mounts:
        hierarchy = {"cgroup2": "", "cgroup": "name=systemd"}.get(kind)
        if hierarchy is None or hierarchy not in own or (hierarchy and hierarchy not in options.split(",")):
            continue
        above = Path(where + own[hierarchy])
        for left in above.glob(f"{CGROUP}*"):  # of tests that were killed
            if not Path("/proc", left.name.removeprefix(CGROUP).split("-")[0]).exists():
                remove_cgroup(left)
        (above / name).mkdir()
        made.append(above / name)
    return made


def remove_cgroup(path: Path) -> None:
    """It and what is below it, as far as nothing runs in it."""
    for below, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(below)


class Machine(World):
    """A booted system. ``leader`` is its process 1 as this machine numbers it."""

    spaces = ALL_SPACES

    def __init__(self, shared: Path, packages: Sequence[str] = (), private_network: bool = True) -> None:
        self.started = []
        self.env: dict[str, str] = {}
        self._top = Path(tempfile.mkdtemp(prefix="pact-machine-"))
        self._layers(root_of(packages))
        bound = {str(REPOSITORY), sys.base_prefix, sys.prefix} - {"/usr"}
        read_only = sorted(b for b in bound if not any(b.startswith(other + "/") for other in bound))
        self._log = open(self._top / "console", "wb")  # noqa: SIM115 - as long as the machine
        self._cgroups = cgroups_of_own(f"{CGROUP}{os.getpid()}-{self._top.name[-8:]}")
        self.nspawn = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),  # tests that are killed leave no machine behind
                *("sh", "-ec", ENTER, "sh", str(len(self._cgroups)), *map(str, self._cgroups)),
                *("systemd-nspawn", "--quiet", "--boot", f"--directory={self._top}/root", "--register=no"),
                *(f"--machine=pact{os.getpid()}-{id(self) % 9973}", "--keep-unit", "--console=pipe"),
                *(
                    "--kill-signal=SIGRTMIN+3",
                    "--capability=all",
                    "--system-call-filter=fanotify_init fanotify_mark",
                    *(("--private-network",) if private_network else ()),
                ),
                *(f"--bind-ro={path}" for path in read_only),
                f"--bind={shared}",
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self.leader = wait_until(lambda: self._ended() or first_of(self.nspawn.pid), "the machine starts", BOOT_S)
            self.holder = self.nspawn
            wait_until(self._booted, "the machine has booted", BOOT_S)
        except BaseException as exc:
            exc.add_note(self.console())
            self.close()
            raise

    def _layers(self, root: Path) -> None:
        """The shared root below, and what this machine writes above it, in memory."""
        for name in ("root", "upper"):
            (self._top / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self._top / "upper")], check=True)
        for name in ("up", "work"):
            (self._top / "upper" / name).mkdir()
        layers = f"lowerdir={root},upperdir={self._top}/upper/up,workdir={self._top}/upper/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(self._top / "root")], check=True)

    def _ended(self) -> bool:
        assert self.nspawn.poll() is None, f"systemd-nspawn ended:\n{self.console()}"
        return False

    def _booted(self) -> bool:
        self._ended()
        if not os.path.exists(f"/proc/{self.leader}/root/run/systemd/private"):
            return False
        said = self.call(["systemctl", "is-system-running"], check=False).out.strip()
        return said in ("running", "degraded")

    def console(self) -> str:
        return (self._top / "console").read_text(errors="replace")[-3000:]

    def path(self, name: str) -> Path:
        assert name.startswith("/")
        return Path(f"/proc/{self.leader}/root{name}")

    def argv(self, command: Iterable[str]) -> list[str]:
        """In all namespaces of the machine: what runs there has a pid of its own there."""
        return ["nsenter", f"--target={self.leader}", *["-m", "-n", "-p", "-u", "-i", "-C"], "--", *command]

    @property
    def entered(self) -> int:
        return int(self.leader)

    # -- units ----------------------------------------------------------------------------------------------------

    def unit(self, name: str, text: str, *, reload: bool = True) -> None:
        """Write a unit file."""
        path = self.path(f"/etc/systemd/system/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if reload:
            self.systemctl("daemon-reload")

    def service(self, name: str, run: str = "/bin/sleep 86400", more: str = "", *, reload: bool = True) -> None:
        """Write a plain service that can be enabled."""
        self.unit(
            f"{name}.service",
            f"[Unit]\nDescription=for a test\n[Service]\nExecStart={run}\n{more}\n[Install]\nWantedBy=multi-user.target\n",
            reload=reload,
        )

    def systemctl(self, *words: str, check: bool = True) -> Any:
        return self.call(["systemctl", *words], check=check)

    def state(self, unit: str) -> str:
        """systemd's own word for it."""
        return str(self.systemctl("is-active", unit, check=False).out.strip())

    def show(self, unit: str, name: str) -> str:
        return str(self.systemctl("show", "--property", name, "--value", unit).out.strip())

    # -- its end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        for process in list(self.started):
            self.end(process)
        if self.nspawn.poll() is None:
            for pid in children(self.nspawn.pid):  # process 1: everything in its namespace ends with it
                os.kill(pid, signal.SIGKILL)
            try:
                self.nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait(10)
        self._log.close()
        for name in ("root", "upper"):
            subprocess.run(["umount", "--lazy", str(self._top / name)], check=False, capture_output=True)
        for cgroup in self._cgroups:
            remove_cgroup(cgroup)
        shutil.rmtree(self._top, ignore_errors=True)


def boot(shared: Path, packages: Sequence[str] = (), private_network: bool = True) -> Machine:
    return Machine(shared, packages, private_network)


class NodeAgent(Agent):
    """An agent that runs as a unit of the machine. Its base directory lies in the machine's ``shared``."""

    machine: Machine

    def __init__(self, machine: Machine, base: Path, config: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        super().__init__(machine, base, config)
        self.machine = machine
        self.unit = f"pact-{base.name}"
        self.properties: list[str] = []

    def start(self, *, wait: bool = True) -> None:
        env = {k: v for k, v in {**environment(), **self.world.env}.items() if k.startswith(("PYTHON", "LC_", "DBUS_"))}
        command = [
            *("systemd-run", "--quiet", "--collect", f"--unit={self.unit}"),
            *(f"--setenv={k}={v}" for k, v in env.items()),
            *(f"--property={p}" for p in self.properties),
            f"--property=StandardOutput=append:{self.log_path}",
            f"--property=StandardError=append:{self.log_path}",
            *(sys.executable, "-m", "pact.cli.main", "agent", "--config", str(self.config_path)),
        ]

        def begins() -> bool:
            """systemd keeps the transient unit of the agent before until it has looked once more."""
            done = self.machine.call(command, check=False)
            assert done.code == 0 or "already loaded" in done.err, done
            return bool(done.code == 0)

        wait_until(begins, "systemd takes the agent's unit", 30)
        if wait:
            wait_until(self._answers, f"the agent is ready\n{self.log()}", 30)

    def _answers(self) -> bool:
        assert self.machine.state(f"{self.unit}.service") in ("active", "activating"), f"the agent ended:\n{self.log()}"
        try:
            return bool(self.ask("ping")["ok"])
        except OSError:
            return False

    def pid(self) -> int:
        """Its pid in the machine."""
        return int(self.machine.show(f"{self.unit}.service", "MainPID"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        # A control process may be gone when its turn comes: then systemctl fails, and the agent has got the signal.
        self.machine.systemctl("kill", f"--signal={int(number)}", f"{self.unit}.service", check=False)
        wait_until(lambda: self.machine.state(f"{self.unit}.service") in ("inactive", "failed"), "the agent ends", 30)
        self.machine.systemctl("reset-failed", f"{self.unit}.service", check=False)
        return 0

    def close(self) -> None:
        if self.machine.nspawn.poll() is None and self.machine.state(f"{self.unit}.service") == "active":
            self.stop(signal.SIGKILL)


def shell(command: Sequence[str]) -> str:
    return shlex.join(command)


def settle(seconds: float) -> None:
    """Let time pass that a test is about."""
    time.sleep(seconds)
