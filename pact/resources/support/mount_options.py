"""What the kernel makes of the options of a mount: it is asked where that harms nobody; elsewhere past answers are
remembered.

A file system in memory is mounted with the declared options in a mount namespace that ends at once, and what the kernel
shows there is what it shows anywhere. A device or a server is not touched for that: for these, pact remembers what a
mount has shown before, and what one showed that was mounted with exactly these options. Remembered facts become part of
the observation, and so of the journal: nothing is compared with a table that only this process has.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from pact._fast import syscalls
from pact.core import strict
from pact.model import Attrs, encode_name
from pact.observe.mountinfo import AUTOFS, MountEntry, parse_mountinfo
from pact.resources.support.fstab import BIND, FLAGS, HELPERS, UNSEEN, in_userland, normal_option

#: A mount of these types has an empty file system of its own, and its options affect nothing else.
SCRATCH_TYPES: Final = frozenset({"tmpfs", "ramfs", "proc", "devpts", "hugetlbfs"})
#: Options that take room from others, and options that the kernel shows but does not accept.
NOT_ASKED: Final = frozenset({"min_size", "seclabel"})
ANSWERS_MAX: Final = 1024
POINTS_MAX: Final = 4096
OPTIONS_MAX: Final = 64

_answers: dict[tuple[str, tuple[str, ...]], tuple[str, ...] | None] = {}


def kernel_makes(fstype: str, options: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """What the kernel shows for these options and for what they change, by key; ``None`` if it cannot be asked, or does
    not accept them."""
    if fstype not in SCRATCH_TYPES:
        return None
    wanted = tuple(o for o in options if _reaches(o))
    if not wanted:
        return {}
    plain, shown = _ask(fstype, ()), _ask(fstype, wanted)
    if plain is None or shown is None:
        return None
    keys = {o.partition("=")[0] for o in (*wanted, *set(plain).symmetric_difference(shown))}
    return {key: tuple(o for o in shown if o.partition("=")[0] == key) for key in keys}


def refused(fstype: str, options: Sequence[str]) -> bool:
    """Whether the kernel surely refuses these options; False if it accepts them, or cannot be asked."""
    if fstype not in SCRATCH_TYPES or _ask(fstype, ()) is None or kernel_makes(fstype, options) is not None:
        return False
    return (fstype, tuple(o for o in options if _reaches(o))) in _answers


def _reaches(option: str) -> bool:
    """Whether the option reaches the file system as its own."""
    key = option.partition("=")[0]
    words = (FLAGS, UNSEEN, BIND)
    return not (in_userland(option) or any(option in w for w in words) or key in HELPERS or key in NOT_ASKED)


def _ask(fstype: str, options: tuple[str, ...]) -> tuple[str, ...] | None:
    key = (fstype, options)
    if key not in _answers:
        try:
            answer = _scratch(fstype, options)
        except OSError:
            return None  # something is missing that may be there next time
        if len(_answers) >= ANSWERS_MAX:
            _answers.clear()
        _answers[key] = answer
    return _answers[key]


def _scratch(fstype: str, options: tuple[str, ...]) -> tuple[str, ...] | None:
    child, fd = syscalls.scratch_mount(fstype.encode(), ",".join(options).encode("utf-8", "surrogateescape"))
    try:
        with open(fd, "rb") as f:
            table = f.read()
    finally:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    mounts = parse_mountinfo(table)
    mine = [m for m in mounts if m.mount_point == b"/" and m.source == b"pact" and m.fstype == fstype]
    if not mine:
        return None
    device = (mine[-1].major, mine[-1].minor)
    if any((m.major, m.minor) == device for m in mounts if m is not mine[-1]):
        return None  # this kernel has one file system for all mounts: it shows what others have set
    return tuple(encode_name(o) for o in mine[-1].super_options if o not in (b"rw", b"ro"))


class Memory:
    """What mounts were seen to show, by mount point, source and type; kept in a file if there is one.

    ``was``: options that it has shown. ``took``: for an option with which it was mounted, what it showed then under the
    same key. ``base``: ids of mounts that stood under another one here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        self._path, self._boot = "", ""

    def keep_in(self, path: str, boot_id: str) -> None:
        """Use this file from now on; facts of this kernel are loaded, ids of mounts only of this boot."""
        with self._lock:
            self._path, self._boot = path, boot_id
            try:
                with open(path, "rb") as f:
                    found = strict.loads_object(f.read(), strict.SMALL_MAX)
                if found["kernel"] == os.uname().release:
                    gone = set() if found["boot"] == boot_id else {"base"}
                    self._known = {str(k): {w: v[w] for w in v.keys() - gone} for k, v in found["mounts"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return

    def add_to(self, attrs: Attrs, stack: Sequence[MountEntry]) -> Attrs:
        """The observation of a mount, completed with what is remembered of it; the observation itself is remembered
        too."""
        top = stack[-1]
        key = _key(top)
        with self._lock:
            known = self._known.get(key, {})
            shown = [] if top.fstype in SCRATCH_TYPES or top.fstype == AUTOFS else _own(attrs["options"])
            if not set(shown) <= set(known.get("was", ())):
                self._put(key, "was", sorted({*known.get("was", ()), *shown})[:OPTIONS_MAX])
            for lower in stack[:-1]:
                numbers = self._known.get(_key(lower), {}).get("base", [])
                if lower.fstype != AUTOFS and lower.mount_id not in numbers:
                    self._put(_key(lower), "base", [*numbers, lower.mount_id][-OPTIONS_MAX:])
            known = self._known.get(key, {})
        out = dict(attrs)
        gone = [o for o in known.get("was", ()) if o not in attrs["options"]]
        if gone:
            out["was"] = gone
        if known.get("took"):
            out["took"] = dict(known["took"])
        if top.mount_id in known.get("base", ()):
            out["base"] = True
        return out

    def took(self, top: MountEntry, options: Iterable[str], actual: Attrs) -> None:
        """It was just mounted with these options: what it shows for them is how the kernel reads them."""
        shown = _own(actual["options"])
        respelled = {}
        for option in options:
            key = option.partition("=")[0]
            same = [o for o in shown if o.partition("=")[0] == key]
            if _reaches(option) and same and normal_option(option) not in map(normal_option, same):
                respelled[option] = same
        if respelled:
            with self._lock:
                self._put(_key(top), "took", respelled)

    def _put(self, key: str, what: str, value: Any) -> None:
        if key not in self._known and len(self._known) >= POINTS_MAX:
            return
        self._known[key] = {**self._known.get(key, {}), what: value}
        if not self._path:
            return
        with contextlib.suppress(OSError):  # without the file the next run remembers less
            with open(self._path + ".new", "wb") as f:
                f.write(orjson.dumps({"boot": self._boot, "kernel": os.uname().release, "mounts": self._known}))
            os.replace(self._path + ".new", self._path)


def _key(entry: MountEntry) -> str:
    return " ".join((encode_name(entry.mount_point), encode_name(entry.source), entry.fstype))


def _own(options: Iterable[str]) -> list[str]:
    """The options of the file system, without those of every mount."""
    return [o for o in options if o not in FLAGS]


def meant(declared: Sequence[str], actual: Attrs) -> Mapping[str, Sequence[str]] | None:
    """What declared options look like while they are in force, by key, as far as that is known."""
    took: Mapping[str, Sequence[str]] = actual.get("took", {})
    known = {o.partition("=")[0]: took[o] for o in declared if o in took}
    asked = kernel_makes(actual["fstype"], declared)
    return {**known, **asked} if asked is not None else known or None


MEMORY: Final = Memory()
