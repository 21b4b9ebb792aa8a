"""What a kind of resource must provide: reading TOML, observing, comparing, restoring, and finding consumers.

Observation and comparison are apart from convergence. A failed reading is ``Unreadable``, never absence.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections import deque
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
#: Things whose changes may move a kind as a whole (``heeds``): the mount table, network links.
MOUNTS: Final = "mounts"
LINKS: Final = "links"
#: The kernel accepts no longer path, and no longer name in a directory.
PATH_BYTES_MAX: Final = 4095
NAME_BYTES_MAX: Final = 255
#: The spelling of names that are paths.
#: What an absolute path has only if it is not normal; and the root.
_ODD: Final = re.compile(rb"//|/\.{1,2}(?:/|\Z)|/\Z").search

PATHS: Final = "an absolute path, without '//', '/./', '/../' and a slash at its end"
KILLED_S: Final = 5.0
SAID_MAX: Final = 64 << 10
#: The last tools that this process has run, by pid.
_ran: Final = deque[int](maxlen=256)

#: Keys that every entry of declared state may have besides its kind's own.
COMMON_KEYS: Final = frozenset({"consumers", "requires", "notify", "weight", "severity"})


class Kind(ABC):
    """One kind. Instances hold no state; every method may be called from a worker thread."""

    name: str
    #: The part of a node to which it belongs, one of ``model.DIMENSIONS``, and the severity of its drift (1: the whole
    #: resource).
    dimension: str
    severity: float = 0.1
    #: An observation may take more than a moment: it is done off the loop.
    off_loop: bool = False
    #: The status of its path does not show whether its content has changed (as below /proc): it is always read.
    always_read: bool = False
    #: An observation reads the whole content of its path: a large file, or one that may hang, is observed off the loop.
    reads_path: bool = False
    #: New resources of this kind are found by walking directories. Other kinds are asked to ``discover`` again.
    walked: bool = False
    #: A reboot resets its resources.
    volatile: bool = True
    #: Patterns of names that never drift, whatever the configuration says.
    ignored: tuple[str, ...] = ()
    #: For people: the correct form of its names.
    spelling: str = "written otherwise"
    #: All its values in TOML stand on one line below ``[kind]``, even tables.
    one_line: bool = False
    #: Nothing of a secret resource may be shown: an export for a caller who is not an admin leaves it out.
    all_secret: bool = False
    #: New resources of this kind can be removed again: a pattern can be enforced.
    removable: bool = True
    #: Its names are paths: a resource lies in those above it, of whatever kind, and comes after them in a plan.
    is_path: bool = False
    #: While it is absent, things in it lie elsewhere (as with a mount): nothing is put there before it is back.
    bears: bool = False
    #: Resources of this kind that are seen through a link or a mount that gives way are brought back below it. The kind
    #: has ``carry``.
    carried: bool = False
    #: Its resources are gone with a device, and are there again with the kernel's defaults when the device comes back:
    #: then their declared values are brought back at once.
    comes_back: bool = False
    #: Kinds that may bring its resources (a module brings its sysctls): their steps come first in a plan.
    follows: tuple[str, ...] = ()
    #: Kinds whose writes may move it, although nobody wrote it: a plan of it is judged by its end state.
    moved_by: tuple[str, ...] = ()
    #: Kinds whose steps may move it when they come before its own in a plan (a link brings its VLANs up): what is there
    #: at its turn is then no owner's new work. Unlike with ``moved_by`` it is restored once, at its turn.
    stirred_by: tuple[str, ...] = ()
    #: After it is restored and observed, no later step of a plan moves it: it is not observed again.
    steady: bool = False
    #: What ``notify`` may ask of its resources (``reload``); ``""``: it is asked by its name alone.
    verbs: tuple[str, ...] = ()
    #: Its steps that stand together in a plan are one act: ``preflight_all`` and ``restore_all`` are asked about them.
    at_once: bool = False
    #: Within one act it orders even those that require each other.
    orders: bool = False
    #: ``holders`` is called even if the kernel says that nothing uses the resource.
    asked_anyway: bool = False

    @abstractmethod
    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        """An entry of TOML. Raises ValueError with the fault; ``base_dir`` is the directory for a relative
        ``source``."""

    def entries(self, table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        """The entries of its table in a TOML file: names, as written there, and values."""
        return table.items()

    @abstractmethod
    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        """The present state. Never raises for what the machine does."""

    def lingers(self, name: str) -> bool:
        """An observation of this resource may take more than a moment: it is done off the loop, although others of the
        kind are not, and nothing on the loop reads its path."""
        return False

    def many(self) -> Callable[[str], Observation]:
        """The same as ``observe``, for many names at one moment: common data is read once."""
        return self.observe

    @abstractmethod
    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        """0 if ``actual`` conforms, else the distance in billionths, up to ``WHOLE_N``. Touches no declared path."""

    @abstractmethod
    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        """Bring the resource to ``step.target``. Doing it twice has the same result as once. Raises RestoreError or
        OSError."""

    def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
        """The same as ``restore``, as one step of a plan, with the plan's knowledge."""
        self.restore(name, step, blobs)

    def restore_all(self, steps: Sequence[Step], blobs: Blobs) -> Mapping[str, str]:
        """The same for several steps of a kind that does them ``at_once``: by id, ``""`` or why it was not restored.
        Raises as ``restore`` if that is true of all."""
        raise NotImplementedError

    def brought(self, steps: Sequence[Step]) -> Callable[[str], bool]:
        """After ``restore_all`` of these steps: a test whether it may have written the resource with this id."""
        return lambda resource: False

    def alike(self, decided: Observation, seen: Observation) -> bool:
        """Whether a resource is still as it was when it was decided about. Otherwise somebody has changed it again, and
        it is left as it is."""
        return decided == seen

    def settled(self, seen: Attrs | None) -> bool:
        """False for what conforms only because it is on its way: a plan waits for it."""
        return True

    def goes_ahead(self, step: Step) -> bool:
        """Whether the new contents of a row of such steps are written ahead, beside the old ones (``support.ahead``);
        each resource is then observed when its turn comes."""
        return False

    def reads(self, name: str, target: Attrs | None, actual: Observation) -> str:
        """Right after a successful write of ``target``: the kernel's reading of the value as text, if it differs from
        the target and counts as equal from now on (the attribute ``reads``); else ``""``."""
        return ""

    @abstractmethod
    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        """The TOML value that ``parse`` reads back to ``declared``'s attributes."""

    def canonical(self, name: str) -> str:
        """The canonical form of this name. Raises ValueError for an impossible name."""
        return name

    def keep_in(self, directory: str, boot_id: str) -> Sequence[str]:
        """From now on the kind keeps what it remembers between runs of the agent in a file of this directory, which
        others use too. Returns lines for the agent's log; best effort, it raises nothing."""
        return ()

    def health(self) -> str:
        """``ok``, or why nothing of the kind can be read."""
        return "ok"

    def learn(self, name: str, attrs: Attrs | None) -> None:
        """These are the declared attributes of the resource from now on; ``None``: it is no longer declared. Called
        right after the record of it is durable, and for every declared resource when the agent starts."""
        return

    def not_yet(self, name: str, target: Attrs | None) -> str:
        """Why the resource cannot be looked at before this target is declared; ``""`` if it can."""
        return ""

    # -- how it stands to others, pure ----------------------------------------------------------------------------

    def rank(self, name: str) -> int:
        """Among steps that may come at the same time, those with the lowest rank come first."""
        return 0

    def turns(self, step: Step) -> bool:
        """Whether things that are seen below it now will no longer be there after the step: a link gives way to a
        directory, a mount is taken off."""
        return False

    def shifts(self, step: Step) -> bool:
        """Whether things below it may look different after the step."""
        return False

    def directory(self, name: str) -> str:
        """The id of the resource that contains its name, and that must be writable for names to come and go; ``""`` if
        there is none."""
        return ""

    def has_content(self, attrs: Attrs) -> bool:
        """Whether these attributes are of a thing with content, whose digest is ``sha256`` if it is known."""
        return False

    def after(self, step: Step) -> tuple[str, ...]:
        """The ids of resources that have to be there before it, besides those that it requires: the link above a VLAN.
        A plan takes them first, if it has them."""
        return ()

    def taken(self, seen: Attrs, declared: Attrs | None) -> Attrs:
        """What of an observation becomes declared when it is adopted or committed; ``declared`` is what was declared
        before (``None``: nothing, or absent). By default all of it."""
        return seen

    def is_anothers(self, actual: Attrs, known: Sequence[Attrs]) -> bool:
        """Whether the present state is none of these known ones, and its content is not kept: then it is not
        overwritten. False for a kind whose attributes are its whole state."""
        return False

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        """Whether a kill interrupted the step: ``seen`` is neither the state decided about nor the target, and not an
        owner's new work. By default: the old one was removed, and the new one not yet created.  # R6"""
        return seen is None and step.actual is not None and step.target is not None

    def place(self, name: str) -> str:
        """For people: the place under which a new resource is reported together with others. By default the path's
        directory."""
        return name.rpartition("/")[0]

    def all_in(self, place: str) -> str:
        """For people: how to write everything new in a place."""
        return place.rstrip("/") + "/"

    def moves(self, name: str, other: str) -> bool:
        """Whether a write to this resource may move that other one, given by its id, of a kind that is ``moved_by``
        this kind. Others are not compared after the write: the rescan finds what was wrongly left out."""
        return True

    # -- before and after -----------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Before anything is touched: whether this step could be done, as far as that can be known, and what of the
        present state must be kept."""
        return Saved(save={"attrs": step.actual})

    def preflight_all(self, steps: Sequence[Step], keep: Keep) -> Mapping[str, Saved]:
        """The same for all steps that a plan has of a kind that does them ``at_once``, by id."""
        return {step.id: self.preflight(step.id.partition(":")[2], step, keep) for step in steps}

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        """The same as ``observe``, before a decision about the resource. ``signed`` gets by name a few bytes that show,
        right before the overwriting, whether it is still the same (``is_still``), if the kind supports that."""
        return self.observe(name)

    def is_still(self, name: str, signature: bytes) -> bool:
        """Whether it is the same as when it was signed."""
        return False

    def carry(self, name: str, step: Step, keep: Keep) -> Saved:
        """Keep content that is seen through a link or a mount that gives way, so that it can be brought back below its
        replacement. A refusal counts only if the content is not there by itself below the replacement."""
        return Saved(save={"attrs": step.actual})

    def left_behind(self, name: str, step: Step) -> str:
        """For people: what stays elsewhere after the step; ``""`` if nothing does."""
        return ""

    def disturbs(self, step: Step) -> bool:
        """Whether the step takes something away from consumers: not so if it only changes owner, mode or options."""
        return True

    def in_use(self, name: str, step: Step) -> bool | None:
        """Ask the kernel, in microseconds: True in use, False surely not, None if it cannot say (then /proc is
        read)."""
        return None

    def roots(self, name: str, step: Step) -> list[bytes]:
        """Paths whose open handles are this resource's consumers."""
        return []

    def covers(self, name: str, step: Step) -> bool:
        """Whether something leaves with it about which the kernel could not be asked: then /proc is read anyway."""
        return False

    def reached(self, name: str) -> Callable[[int, bytes], bool] | None:
        """A test whether a handle below ``roots`` (a pid and its link's text) is one on this resource; ``None``: every
        one is."""
        return None

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        """Consumers without an open handle (loop devices, reference counts)."""
        return []

    def leaves_with(self, holder: Holder, names: Collection[str]) -> bool:
        """Whether this holder leaves with the same plan, which has these names of the kind: then it blocks nothing."""
        return False

    def is_unsure(self, name: str, said: Mapping[str, bool | None]) -> bool:
        """Whether the resource counts as in use if neither the kernel nor /proc, which could not be read completely,
        can tell. ``said``: the kernel's answers for the plan's resources, by id, as ``in_use`` gives them."""
        return False

    def tell(self, name: str, verb: str, declared: Attrs | None) -> None:
        """Something that this resource reads was restored: carry out one of ``verbs``, within a limit, and wait for the
        result. Raises RestoreError or OSError.  # R14"""
        raise RestoreError(f"a {self.name} cannot be told anything")

    def told(self, resource: str, name: str, verb: str) -> Step | None:
        """The step whose consumers lose something when the resource is told so (a restart is a stop); ``None``: nobody
        does."""
        return None

    def telling(self, told: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """These names and verbs in the order in which they are to be told."""
        return told

    def discover(self, pattern: str) -> Found:
        """Names that match an adopt pattern (both without the kind)."""
        return Found(iter(()), {})

    def pattern(self, text: str) -> str:
        """The canonical form of an adopt pattern. Raises ValueError for an impossible one."""
        return text

    def means(self, pattern: str, name: str) -> bool:
        """Whether ``discover`` would find this name by the pattern, and not skip it, if it existed."""
        return fnmatchcase(name, pattern.replace("**", "*"))

    def misnamed(self, name: str) -> str:
        """Why this is not the name under which the resource is adopted; ``""`` if it is."""
        return ""

    def remarks(self) -> Callable[[str, Attrs], str]:
        """A function that is made once and called for many names with their observations: it returns what a person who
        adopts the resource should know, ``""`` for nothing."""
        return lambda name, seen: ""

    def newcomers(self, pattern: str) -> set[str]:
        """Present names that somebody brought, by a tracked pattern."""
        found = self.discover(pattern)
        return set() if found.exact else set(found.names)

    def glance(self, name: str) -> Attrs | None:
        """A short description of a new resource, for people, without its content. ``None`` if there is none."""
        seen = self.presence(name)
        return seen if isinstance(seen, dict) else None

    def presence(self, name: str) -> Observation:
        """Enough of an observation to look for consumers, without reading contents."""
        return self.observe(name)

    def held(self, name: str) -> Held:
        """The observation of ``presence``, the inode, and whether everybody could reach it: all of one moment.  # S2"""
        return Held(self.presence(name), None, self.reachable(name))

    def reachable(self, name: str) -> bool:
        """Whether everybody could reach it by its name (no directory on the way is closed)."""
        return True

    def watch(self, name: str) -> list[bytes]:
        """Paths whose events show that this resource may have changed."""
        return []

    def source(self) -> Source | None:
        """A source of events besides paths; made once, when the first resource of the kind is declared."""
        return None

    def notes(self) -> Sequence[str]:
        """Lines for who asks for the node's status: what needs a person, and is no drift. Looks at nothing."""
        return ()

    def of_path(self, path: bytes) -> str | None:
        """The name whose ``watch`` gives this path; ``None`` if there is none."""
        return None

    def heeds(self, what: str, name: str = "") -> bool:
        """Whether a change of ``MOUNTS`` or ``LINKS`` may have moved this resource; without a name: any of the kind."""
        return False

    def of_mount(self, entry: MountEntry) -> tuple[str, Attrs] | None:
        """A new mount as a resource of this kind, by name and attributes; ``None`` if it is none."""
        return None

    def undeclarable(self, attrs: Attrs | None) -> str:
        """The nature of a thing (``a socket``) that can be observed but not declared; ``""`` if it can be declared."""
        return ""

    def secret(self, attrs: Attrs | None) -> bool:
        """Whether the content is not world-readable: then only admins may see it.  # S2"""
        return False

    def meant_secret(self, attrs: Attrs | None) -> bool:
        """Whether these attributes themselves make the content secret.  # S2"""
        return False

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """A person's declaration, with what the machine itself knows about it (that it is secret).  # S2"""
        return attrs

    def text(self, attrs: Attrs | None, blobs: Blobs) -> str | None:
        """Content for a unified diff; ``None`` if there is none or it is not text."""
        return None


def refuse_unknown(value: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises ValueError that names the first unknown key, and the nearest known one."""
    for key in value:
        if key not in known and key not in COMMON_KEYS:
            import difflib

            near = difflib.get_close_matches(key, sorted(known | COMMON_KEYS), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known | COMMON_KEYS))}"
            raise ValueError(f"unknown key {key!r}{hint}")


def common(value: Any) -> dict[str, Any]:
    """The fields of ``Declared`` that every entry may have, in their JSON form. Raises ValueError."""
    out: dict[str, Any] = {}
    if not isinstance(value, Mapping):
        return out
    for key in ("consumers", "requires", "notify"):
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
    if declared.notify:
        out["notify"] = list(declared.notify)
    if declared.weight_n is not None:
        out["weight"] = declared.weight_n / WHOLE_N
    if declared.severity_n is not None:
        out["severity"] = declared.severity_n / WHOLE_N
    return out


def path_of(name: str) -> bytes:
    """The path of a file's or mount's name. Raises ValueError if it is not absolute and normal."""
    path = decode_name(name)
    if not path.startswith(b"/") or b"\0" in path:
        raise ValueError(f"{name!r} is not an absolute path")
    if _ODD(path) is not None and path != b"/":
        normal = b"/" + os.path.normpath(path).lstrip(b"/")  # POSIX allows two leading slashes
        raise ValueError(f"{name!r} is not a normal path: write {normal.decode(errors='replace')!r}")
    require_short(path)
    return path


def require_short(path: bytes) -> None:
    """Raises ValueError for a path that is too long for any file."""
    if len(path) <= NAME_BYTES_MAX:
        return
    if len(path) > PATH_BYTES_MAX:
        raise ValueError(f"a path of {len(path)} bytes: at most {PATH_BYTES_MAX} can be")
    if max(map(len, path.split(b"/"))) > NAME_BYTES_MAX:
        raise ValueError(f"a name in it has more than {NAME_BYTES_MAX} bytes")


def run_tool(name: str, timeout_s: float, command: Sequence[str | bytes], fds: Sequence[int] = ()) -> None:
    """Run a system tool with a time limit, a clean environment and these descriptors. Raises RestoreError with its
    output.

    After the limit, the processes that it started end with it: a helper that outlives ``mount`` would mount later, when
    nobody expects it. A helper that stays (a FUSE daemon) may keep the descriptors: the output goes to a file in
    memory.
    """
    import fcntl
    import signal
    import subprocess

    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    with open(os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b") as said:
        said.truncate(SAID_MAX)  # a tool that says more gets an error for it: it must not fill the memory
        fcntl.fcntl(said, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        try:  # the unit's umask is for files that the agent keeps, not for what tools leave on the machine  # S10
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
        _ran.append(tool.pid)
        try:
            tool.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that hangs in the kernel cannot be ended
                tool.wait(KILLED_S)
            raise RestoreError(f"{name} did not end within {timeout_s:g} s") from None
        if tool.returncode != 0:
            said.seek(0)
            lines = said.read(SAID_MAX).rstrip(b"\0").decode(errors="replace").strip().splitlines()
            raise RestoreError(lines[0] if lines else f"{name} ended with {tool.returncode}")


def is_own_tool(pid: int) -> bool:
    """Whether ``run_tool`` has run the process with this pid lately: what it did is no other person's work."""
    return pid in _ran


def from_base64(key: str, text: Any) -> bytes:
    """The bytes. Raises ValueError that names the key."""
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
    "is_own_tool",
    "path_of",
    "refuse_unknown",
    "require_short",
    "run_tool",
]
