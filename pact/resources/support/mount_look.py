"""The observation of a mount: the attributes of the visible one of the mounts at a point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from pact.model import Attrs, Observation, Unreadable, decode_name, encode_name
from pact.observe.mountinfo import AUTOFS, MountEntry, read_mounts
from pact.resources.base import errno_text
from pact.resources.support.loops import backing_file
from pact.resources.support.mount_options import MEMORY
from pact.resources.support.mount_table import Stacks

#: Defaults that the kernel does not show, with the options that it shows instead: they are named, so that their loss is
#: seen.
UNSAID: Final = {"dev": "nodev", "exec": "noexec", "suid": "nosuid"}


def attrs_of(entry: MountEntry, lower: MountEntry | None = None) -> Attrs:
    """``lower`` is the mount below it at the same point."""
    named = {encode_name(o) for o in [*entry.options, *entry.super_options]} - {"rw"}
    options = named | _rw(entry) | {plain for plain, other in UNSAID.items() if other not in named}
    if not named & {"noatime", "relatime"}:
        options.add("strictatime")
    attrs: Attrs = {"source": encode_name(entry.source), "fstype": entry.fstype, "options": sorted(options)}
    if entry.root != b"/":
        attrs["root"] = encode_name(entry.root)
    if entry.source.startswith(b"/dev/loop") and (backing := backing_file(os.path.basename(attrs["source"]))):
        attrs["backing"] = encode_name(backing)
    if lower is not None and lower.fstype == AUTOFS:
        attrs["trigger"] = encode_name(lower.source)
    return attrs


def _rw(entry: MountEntry) -> set[str]:
    """A mount is read-write only if both the mount and its file system are."""
    return set() if b"ro" in entry.options or b"ro" in entry.super_options else {"rw"}


def seen_of(stack: Sequence[MountEntry]) -> Attrs:
    """The observation of the visible mount of a point."""
    return MEMORY.add_to(attrs_of(stack[-1], stack[-2] if len(stack) > 1 else None), stack)


def but_for_writing(attrs: Attrs) -> Attrs:
    """The attributes without ``ro`` and ``rw``."""
    return {**attrs, "options": [o for o in attrs["options"] if o not in ("ro", "rw")]}


def is_trigger(attrs: Attrs) -> bool:
    """Whether an automounter waits there. That alone is not a mount: nothing is mounted, and something will be on
    demand."""
    return bool(attrs["fstype"] == AUTOFS)


class MountTable:
    """The mount table, read once, to observe many mounts."""

    def __init__(self) -> None:
        self._why = ""
        self._stacks = Stacks(())
        try:
            self._stacks = Stacks(read_mounts())
        except OSError as exc:
            self._why = errno_text("mount", exc)
        except ValueError as exc:
            self._why = f"mount: {exc}"

    def observe(self, name: str) -> Observation:
        if self._why:
            return Unreadable(self._why)
        try:
            stack = self._stacks.at(decode_name(name))
        except ValueError as exc:
            return Unreadable(f"mount: {exc}")
        return seen_of(stack) if stack else None
