"""What a kind of resource is: how to read it from TOML, observe it, compare it, restore it, and who uses it.

Observation and comparison are apart from convergence. A reading that failed is ``Unreadable``, never absence.
"""

from __future__ import annotations

import base64
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, decode_name
from pact.observe.mountinfo import MountEntry
from pact.resources.shapes import PIECE_BYTES, Among, Blobs, Drained, Entry, Found, Held, Keep, Saved, Source

WHOLE_N: Final = 1_000_000_000  # distance 1 in billionths
HALF_N: Final = 500_000_000
#: What may move a kind as a whole (``heeds``): the mount table, network links.
MOUNTS: Final = "mounts"
LINKS: Final = "links"
#: The kernel takes no longer path, and no longer name in a directory.
PATH_BYTES_MAX: Final = 4095
NAME_BYTES_MAX: Final = 255
#: How names are written that are paths.
PATHS: Final = "an absolute path, without '//', '/./', '/../' and a slash at its end"
KILLED_S: Final = 5.0
SAID_MAX: Final = 64 << 10

#: Keys that every entry of declared state takes beside its kind's own.
COMMON_KEYS: Final = frozenset({"consumers", "requires", "weight", "severity"})


class Kind(ABC):
    """One kind. Instances hold no state; every method may be called from a worker thread."""

    name: str
    #: Which part of a node it belongs to, one of ``model.DIMENSIONS``, and how grave its drift is (1: as a whole).
    dimension: str
    severity: float = 0.1
    #: Looking at it may take more than a moment: it is done off the loop.
    off_loop: bool = False
    #: The status of its path does not tell whether its content has moved (as below /proc): it is always read.
    always_read: bool = False
    #: Looking at it reads all that its path holds: what is large, or may hang, is looked at off the loop.
    reads_path: bool = False
    #: What is new of it is found by walking directories. The others are asked to ``discover`` again.
    walked: bool = False
    #: A reboot resets it.
    volatile: bool = True
    #: Patterns of its names that never drift, whatever the configuration says.
    ignored: tuple[str, ...] = ()
    #: For people: how its names are written.
    spelling: str = "written otherwise"
    #: Its values of TOML stand in one line below ``[kind]``, also those that are tables.
    one_line: bool = False
    #: Of a secret one nothing may be shown: an export for who is no admin leaves it out.
    all_secret: bool = False
    #: What is new of it can be taken away again: a pattern can be enforced.
    removable: bool = True
    #: Its names are paths: it lies in what stands above it, whatever kind that is, and comes after it in a plan.
    is_path: bool = False
    #: What lies in it lies elsewhere while it is not there (as in a mount): nothing is put there before it is back.
    bears: bool = False
    #: What is seen of it through a link or a mount that gives way is brought back below it. It has ``carry``.
    carried: bool = False
    #: Kinds that may bring it (a module its sysctls): what comes of them comes first in a plan.
    follows: tuple[str, ...] = ()
    #: Kinds whose writing may move it, although nobody wrote it: a plan of it is judged by its end state.
    moved_by: tuple[str, ...] = ()
    #: Once it is restored and seen, nothing that comes later in a plan moves it: it is not looked at again.
    steady: bool = False
    #: ``holders`` is asked also where the kernel says that nobody uses it.
    asked_anyway: bool = False

    @abstractmethod
    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        """An entry of TOML. Raises ValueError with what is wrong; ``base_dir`` is where ``source`` starts."""

    def entries(self, table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        """The entries of its table in a TOML file: names, as they stand there, and values."""
        return table.items()

    @abstractmethod
    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        """What is there now. Never raises for what the machine does."""

    def many(self) -> Callable[[str], Observation]:
        """As ``observe``, of many names at one moment: what they have in common is read once."""
        return self.observe

    @abstractmethod
    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        """0 if ``actual`` conforms, else how far it is, in billionths, up to ``WHOLE_N``. Touches no declared path."""

    @abstractmethod
    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        """Bring it to ``step.target``. Doing it twice is the same as once. Raises RestoreError or OSError."""

    def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
        """As ``restore``, as one of a plan's steps, and with what the plan knows beside it."""
        self.restore(name, step, blobs)

    def goes_ahead(self, step: Step) -> bool:
        """Where many such steps follow each other, their new contents are written beside the old ones before
        (``support.ahead``), and each is looked at when its turn comes."""
        return False

    def reads(self, name: str, target: Attrs | None, actual: Observation) -> str:
        """Right after a successful write of ``target``: what the kernel made of it, as text, where that reads otherwise
        and counts as the same from now on (the attribute ``reads``); ``""`` where there is no such thing."""
        return ""

    @abstractmethod
    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        """The TOML value that ``parse`` reads back to ``declared``'s attributes."""

    def canonical(self, name: str) -> str:
        """The one way to write this name. Raises ValueError for a name that cannot be."""
        return name

    def keep_in(self, directory: str, boot_id: str) -> Sequence[str]:
        """What the kind remembers from one run of the agent to the next stands in a file of this directory from now on
        (others keep something there, too). What the agent's log should say of it; best effort, it raises nothing."""
        return ()

    # -- how it stands to others, pure ----------------------------------------------------------------------------

    def rank(self, name: str) -> int:
        """Of steps that may come at the same time, those with the lowest rank come first."""
        return 0

    def turns(self, step: Step) -> bool:
        """What is seen below it now is not there any more when the step is done: a link gives way to a directory, a
        mount is taken off."""
        return False

    def shifts(self, step: Step) -> bool:
        """What lies below it may look otherwise when the step is done."""
        return False

    def directory(self, name: str) -> str:
        """The id of the resource in which its name stands, and which has to be open for names to come and go; ``""``
        where there is none."""
        return ""

    def has_content(self, attrs: Attrs) -> bool:
        """Attributes of something with a content, whose digest is ``sha256`` where it is known."""
        return False

    def is_anothers(self, actual: Attrs, known: Sequence[Attrs]) -> bool:
        """What is there is none of these that pact knows, and nothing of it is kept: it is not overwritten. False where
        its attributes are all there is of it."""
        return False

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        """A kill came while the step was being done: ``seen`` is neither what was decided about nor the target, and
        nobody's new work. By default: it was taken away, and the other one did not come yet.  # R6"""
        return seen is None and step.actual is not None and step.target is not None

    def place(self, name: str) -> str:
        """For people: what a new one is told together with, if more is new there. By default what a path lies in."""
        return name.rpartition("/")[0]

    def all_in(self, place: str) -> str:
        """For people: how one writes everything that is new in a place."""
        return place.rstrip("/") + "/"

    # -- before and after -----------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Before anything is touched: could this step be done, as far as that can be known, and what must be kept of
        the present state?"""
        return Saved(save={"attrs": step.actual})

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        """As ``observe``, before anything is decided about it. ``signed`` gets by name a few bytes that tell, right
        before it is overwritten, whether it is still the same (``is_still``), where the kind has such a thing."""
        return self.observe(name)

    def is_still(self, name: str, signature: bytes) -> bool:
        """It is as it was when it was signed."""
        return False

    def carry(self, name: str, step: Step, keep: Keep) -> Saved:
        """Keep what is seen through a link or a mount that gives way, so that it can be brought back below what takes
        its place. A refusal counts only where it is not there by itself below that."""
        return Saved(save={"attrs": step.actual})

    def left_behind(self, name: str, step: Step) -> str:
        """For people: what stays elsewhere when the step is done; ``""`` where nothing does."""
        return ""

    def disturbs(self, step: Step) -> bool:
        """Doing it takes something away from who uses the resource: it is not only dressed or set otherwise."""
        return True

    def in_use(self, name: str, step: Step) -> bool | None:
        """Ask the kernel, in microseconds: True in use, False surely not, None it cannot say (then /proc is read)."""
        return None

    def roots(self, name: str, step: Step) -> list[bytes]:
        """Paths whose open handles are this resource's consumers."""
        return []

    def covers(self, name: str, step: Step) -> bool:
        """Something leaves with it that the kernel could not be asked about: /proc is read all the same."""
        return False

    def reached(self, name: str) -> Callable[[int, bytes], bool] | None:
        """Whether a handle below ``roots`` (a pid and its link's text) is one on this resource; ``None``: every one."""
        return None

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        """Consumers that no open handle shows (loop devices, reference counts)."""
        return []

    def leaves_with(self, holder: Holder, names: Collection[str]) -> bool:
        """This one of ``holders`` leaves with the same plan, which has these names of the kind: it holds nothing up."""
        return False

    def is_unsure(self, name: str, said: Mapping[str, bool | None]) -> bool:
        """It counts as in use where neither the kernel nor /proc, of which not all could be read, tells who uses it.
        ``said``: what the kernel said of each of the plan, by id, as ``in_use`` has it."""
        return False

    def discover(self, pattern: str) -> Found:
        """Names that match an adopt pattern (without the kind)."""
        return Found(iter(()), {})

    def pattern(self, text: str) -> str:
        """The one way to write an adopt pattern. Raises ValueError for what can be none."""
        return text

    def means(self, pattern: str, name: str) -> bool:
        """Whether ``discover`` would find this name by the pattern, and not pass over it, if it were there."""
        return fnmatchcase(name, pattern.replace("**", "*"))

    def misnamed(self, name: str) -> str:
        """Why this is not the name under which it is adopted, ``""`` where it is."""
        return ""

    def remarks(self) -> Callable[[str, Attrs], str]:
        """Made once, to be asked of many names and what was seen of each: what a person should know who adopts it,
        ``""`` for nothing."""
        return lambda name, seen: ""

    def newcomers(self, pattern: str) -> set[str]:
        """Names that are there now and that somebody brought, by a tracked pattern."""
        found = self.discover(pattern)
        return set() if found.exact else set(found.names)

    def glance(self, name: str) -> Attrs | None:
        """In short what is new there, for people: nothing of its content. ``None`` where that cannot be told."""
        seen = self.presence(name)
        return seen if isinstance(seen, dict) else None

    def presence(self, name: str) -> Observation:
        """Enough of an observation to ask who uses it, without reading contents."""
        return self.observe(name)

    def held(self, name: str) -> Held:
        """What ``presence`` says, of which inode, and whether anybody could get at it: of one moment.  # S2"""
        return Held(self.presence(name), None, self.reachable(name))

    def reachable(self, name: str) -> bool:
        """Anybody could get at it by its name (no directory on the way is closed)."""
        return True

    def watch(self, name: str) -> list[bytes]:
        """Paths whose events mean that this resource may have changed."""
        return []

    def source(self) -> Source | None:
        """Another source of events than paths; made once, when the first resource of the kind is declared."""
        return None

    def of_path(self, path: bytes) -> str | None:
        """The name whose ``watch`` gives this path, ``None`` if no name's does."""
        return None

    def heeds(self, what: str, name: str = "") -> bool:
        """What is told of the machine as a whole (``MOUNTS``, ``LINKS`` have moved) may have moved this one; without a
        name: any of the kind."""
        return False

    def of_mount(self, entry: MountEntry) -> tuple[str, Attrs] | None:
        """What was just mounted as a resource of this kind, by name and attributes; ``None`` if it is none."""
        return None

    def undeclarable(self, attrs: Attrs | None) -> str:
        """What this is (``a socket``) that can be seen, and not declared; ``""`` where it can."""
        return ""

    def secret(self, attrs: Attrs | None) -> bool:
        """Content that is not world-readable: shown to admins alone.  # S2"""
        return False

    def meant_secret(self, attrs: Attrs | None) -> bool:
        """These attributes say themselves that the content is not for everybody.  # S2"""
        return False

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """What a person declared, with what the machine itself knows about it (that it is a secret).  # S2"""
        return attrs

    def text(self, attrs: Attrs | None, blobs: Blobs) -> str | None:
        """Content for a unified diff, ``None`` where there is none or it is no text."""
        return None


def refuse_unknown(value: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises ValueError that names the first key which is not known, and the nearest one that is."""
    for key in value:
        if key not in known and key not in COMMON_KEYS:
            import difflib

            near = difflib.get_close_matches(key, sorted(known | COMMON_KEYS), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known | COMMON_KEYS))}"
            raise ValueError(f"unknown key {key!r}{hint}")


def common(value: Any) -> dict[str, Any]:
    """The fields of ``Declared`` that every entry takes, in the form of its JSON. Raises ValueError."""
    out: dict[str, Any] = {}
    if not isinstance(value, Mapping):
        return out
    for key in ("consumers", "requires"):
        if key in value:
            items = value[key]
            if not isinstance(items, list) or not all(isinstance(i, str) and i for i in items):
                raise ValueError(f"{key} must be a list of strings")
            out[key] = tuple(items)
    for rule in out.get("consumers", ()):
        if rule not in ("open", "none") and not rule.startswith(("exec:", "cgroup:")):
            raise ValueError(f"consumers: {rule!r} is none of open, none, exec:NAME, cgroup:GLOB")
    for key in ("weight", "severity"):
        if key in value:
            number = value[key]
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1000:
                raise ValueError(f"{key} must be a number above 0 and at most 1000")
            out[f"{key}_n"] = max(1, round(number * WHOLE_N))
    return out


def export_common(declared: Declared) -> dict[str, Any]:
    """The inverse of ``common``."""
    out: dict[str, Any] = {}
    if declared.consumers:
        out["consumers"] = list(declared.consumers)
    if declared.requires:
        out["requires"] = list(declared.requires)
    if declared.weight_n is not None:
        out["weight"] = declared.weight_n / WHOLE_N
    if declared.severity_n is not None:
        out["severity"] = declared.severity_n / WHOLE_N
    return out


def path_of(name: str) -> bytes:
    """The path that a file's or mount's name stands for. Raises ValueError if it is not absolute and normal."""
    path = decode_name(name)
    if not path.startswith(b"/") or b"\0" in path:
        raise ValueError(f"{name!r} is not an absolute path")
    normal = b"/" + os.path.normpath(path).lstrip(b"/")  # POSIX lets two leading slashes stand
    if normal != path:
        raise ValueError(f"{name!r} is not a normal path: write {normal.decode(errors='replace')!r}")
    require_short(path)
    return path


def require_short(path: bytes) -> None:
    """Raises ValueError for a path that no file can have."""
    if len(path) <= NAME_BYTES_MAX:
        return
    if len(path) > PATH_BYTES_MAX:
        raise ValueError(f"a path of {len(path)} bytes: at most {PATH_BYTES_MAX} can be")
    if max(map(len, path.split(b"/"))) > NAME_BYTES_MAX:
        raise ValueError(f"a name in it has more than {NAME_BYTES_MAX} bytes")


def run_tool(name: str, timeout_s: float, command: Sequence[str | bytes], fds: Sequence[int] = ()) -> None:
    """Run a system tool with a time limit, a clean environment and these descriptors. Raises RestoreError with what it
    said.

    Beyond the limit, what it started ends with it: a helper that outlives ``mount`` would mount later, when nobody
    expects it. A helper that stays (a FUSE daemon) may keep the descriptors: what was said is read from memory.
    """
    import signal
    import subprocess

    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    with open(os.memfd_create("stderr"), "w+b") as said:
        try:  # the umask of the unit is for what the agent keeps, not for what tools leave on the machine  # S10
            tool = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                pass_fds=fds,
                umask=0o022,
            )
        except OSError as exc:
            raise RestoreError(f"{name}: {os.strerror(exc.errno or 0).lower()}") from None
        try:
            tool.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel cannot be ended
                tool.wait(KILLED_S)
            raise RestoreError(f"{name} did not end within {timeout_s:g} s") from None
        if tool.returncode != 0:
            said.seek(0)
            lines = said.read(SAID_MAX).decode(errors="replace").strip().splitlines()
            raise RestoreError(lines[0] if lines else f"{name} ended with {tool.returncode}")


def from_base64(key: str, text: Any) -> bytes:
    """Raises ValueError that names the key."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is not base64") from None


def errno_text(what: str, exc: OSError) -> str:
    import errno

    return f"{what}: {errno.errorcode.get(exc.errno or 0, exc.errno)}"


__all__ = [
    "COMMON_KEYS",
    "HALF_N",
    "LINKS",
    "MOUNTS",
    "PATHS",
    "PIECE_BYTES",
    "WHOLE_N",
    "Among",
    "Blobs",
    "Drained",
    "Entry",
    "Found",
    "Held",
    "Keep",
    "Kind",
    "RestoreError",
    "Saved",
    "Source",
    "common",
    "errno_text",
    "export_common",
    "from_base64",
    "path_of",
    "refuse_unknown",
    "require_short",
    "run_tool",
]
