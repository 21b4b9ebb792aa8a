"""Who told systemd to do a job: a command that names the unit, or one that moves it, and is there when systemd begins,
or was just now.

systemd does not say who asked. ``systemctl`` waits for its job, so it is there when the job is announced, and its
arguments say what it wants; if the job took a few milliseconds it is gone by then, but the kernel has reported that it
began. Only a process of root's counts, because only root's word is taken without asking, and only if it is the one: two
that would fit (of different people, if they are gone), or none (another program), leave the change unattributed.
Nothing is guessed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from pact.host import processes
from pact.model import Writer
from pact.observe.attribution import BEGUN, resolve
from pact.observe.runs import remember

PROGRAM: Final = "systemctl"
#: What moves a unit, or the links of its file (``systemctl(1)``).
VERBS: Final = frozenset(
    {
        *("start", "stop", "restart", "try-restart", "condrestart", "reload", "force-reload", "reload-or-restart"),
        *("try-reload-or-restart", "isolate", "kill", "enable", "disable", "reenable", "mask", "unmask", "preset"),
    }
)
#: Those of them that only stop what they name, and what is stopped with it.
STOPPING: Final = frozenset({"stop", "kill", "disable", "mask"})
AGE_S: Final = 2.0
PROCESSES_MAX: Final = 20_000
ARGUMENTS_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Command:
    """A process that has just told systemd something, and the units that it names; if it is gone, who it was."""

    pid: int
    names: tuple[str, ...]
    gone: Writer | None = None
    stops: bool = False

    def means(self, unit: str) -> bool:
        short = unit.removesuffix(".service")
        return any(w == short or fnmatchcase(unit, w) or fnmatchcase(short, w) for w in self.names)


def commands() -> list[Command]:
    """Those of root that are there now, and those that began just now and are gone."""
    there = [c for pid in _candidates() if (c := _command(pid)) is not None]
    return there + _gone({c.pid for c in there})


def caller(unit: str, among: Sequence[Command], movers: Callable[[bool], Iterable[str]] | None = None) -> Writer | None:
    """The process that has asked for what happens to this unit; ``None`` if that is not sure. ``movers``: the units
    that move it when they are stopped (True) or started; they count if no command names the unit itself."""
    fitting = [c for c in among if c.means(unit)]
    if not fitting and movers is not None:
        fitting = [c for c in among if any(map(c.means, movers(c.stops)))]
    there = [c for c in fitting if c.gone is None]
    if there:
        writer = resolve(there[0].pid) if len(there) == 1 else None
    else:
        gone = [c.gone for c in fitting if c.gone is not None]
        writer = gone[-1] if len({(w.loginuid, w.session, w.tty, w.unit) for w in gone}) == 1 else None
    if writer is not None:
        remember(writer)  # a package's script that called it is gone when the unit has moved
    return writer


def _gone(there: Container[int]) -> list[Command]:
    """Of a process that is gone nobody can see which program it was. So both its users must be root: ``sudo`` and the
    like have root's rights, but the arguments that anybody gave them."""
    out = []
    for writer, words, is_root in BEGUN.of(PROGRAM):
        said = _said(words)
        if is_root and said is not None and writer.pid not in there:
            out.append(Command(writer.pid, said[1:], writer, said[0] in STOPPING))
    return out


def _said(words: Sequence[str]) -> tuple[str, ...] | None:
    """The verb in a command's arguments, and the units; None if it moves none."""
    plain = [w for w in words if w and not w.startswith("-")]
    verb = next((at for at, w in enumerate(plain) if w in VERBS), None)
    return None if verb is None else tuple(plain[verb:])


def _candidates() -> list[int]:
    """The processes that run systemctl."""
    out = []
    for pid in [p for p in os.listdir("/proc") if p.isdigit()][:PROCESSES_MAX]:
        try:
            with open(f"/proc/{pid}/comm", "rb") as f:
                if f.read(32).rstrip(b"\n") == PROGRAM.encode():
                    out.append(int(pid))
        except OSError:
            continue
    return out


def _command(pid: int) -> Command | None:
    """What it says, if it is root's, runs systemctl, and has begun just now: an old one has asked for other things."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read(ARGUMENTS_MAX).decode("utf-8", "replace").split("\0")[1:]
        with open(f"/proc/{pid}/status") as f:
            uids = next((line.split()[1:] for line in f if line.startswith("Uid:")), [])
        began_s = int(processes.stat_of(pid)[processes.STARTED]) / os.sysconf("SC_CLK_TCK")
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except (OSError, IndexError, ValueError):
        return None
    said = _said(words)
    young = time.clock_gettime(time.CLOCK_BOOTTIME) - began_s < AGE_S
    if said is None or program != PROGRAM or not young or uids[1:2] != ["0"]:
        return None
    return Command(pid, said[1:], stops=said[0] in STOPPING)
