"""Carrying a plan out, step by step: look once more, restore, verify.  # R5"""

from __future__ import annotations

import os
import posixpath
import traceback
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from itertools import islice, takewhile
from types import MappingProxyType
from typing import Any, Final

from pact.agent.fixpoint import Fixpoint
from pact.agent.probing import distance_n, is_still, observe
from pact.core.node import below
from pact.core.plan import Step
from pact.errors import PactError, explained
from pact.host.notify import log
from pact.model import Attrs, Observation, Unreadable, decode_name, encode_name, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs
from pact.resources.kinds.file import KIND as FILE
from pact.resources.kinds.mount import KIND as MOUNT
from pact.resources.rules import nature
from pact.resources.support.ahead import FILES_MAX, Ahead
from pact.resources.support.passwords import unquoted
from pact.resources.support.sweep import sweep

#: Fewer files in a row are not worth writing ahead.
ROW_MIN: Final = 8
MOVED: Final = "changed again after it was decided; it was left as it is"


def act(
    steps: tuple[Step, ...],
    blobs: Blobs,
    *,
    resumed: bool = False,
    fixpoint: Fixpoint | None = None,
    moved: Container[str] = (),
    seen_after: dict[str, Observation] | None = None,
    saves: Mapping[str, Mapping[str, Any]] | None = None,
    signed: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, str]:
    """Carry a plan out: ``""`` for each resource restored and verified, else why not. What has ``moved``, and so is in
    no store, is left as it is. ``seen_after`` gets what was seen of those that were verified. ``saves``: what is on
    record as kept; a file system in memory that holds anything else is not taken off. ``signed``: files whose status
    says whether they are still what was decided about (``probing.sealed``).  # R4, R5"""
    fixpoint = fixpoint or Fixpoint((), put_back=False)
    kept = sweep(steps, blobs)
    results: dict[str, str] = {}
    todo: list[Step] = []
    through = below.carried(nature, steps, (s.id for s in steps))
    for step in steps:
        if not resumed and _is_file(step) and step.id not in through and step.id not in moved:
            todo.append(step)  # it is looked at when its turn comes
            continue
        seen = observe(step.id)
        if isinstance(seen, Unreadable) and step.id in through:
            todo.append(step)
        elif isinstance(seen, Unreadable):
            results[step.id] = f"cannot be read: {seen.why}"
        elif distance_n(step.id, step.target, seen) == 0 and (step.id in through or _seals(step, steps)):
            todo.append(replace(step, actual=seen))  # it may be gone by its turn, or has to be opened for others
        elif distance_n(step.id, step.target, seen) == 0:
            results[step.id] = ""
        elif step.id in moved:
            results[step.id] = MOVED
        elif resumed and (_half_dressed(step, seen) or _half_replaced(step, seen)):
            todo.append(replace(step, actual=seen))
        elif seen != step.actual:
            results[step.id] = MOVED
        else:
            todo.append(step)
    sealed = {s.id: s for s in todo if _seals(s, todo)}
    lost = _say_kept(steps, results, kept)
    mounts = frozenset(s.id for s in steps if s.id.startswith("mount:"))
    done: list[Step] = []
    with Ahead() as ahead:
        moving = False  # what was written so far may move sysctls
        written = 0
        for at, step in enumerate(todo):
            if at >= written:
                written = at + _write_ahead(ahead, todo, at, blobs)
            failed = [need for need in needs(step, mounts) if results.get(need)]
            now = _as_moved(step) if moving else _as_left(step) if step.id in through else step
            if step.id in sealed:
                now = replace(now, target={**(now.target or {}), "flags": ""})
            results[step.id] = (
                f"needs {failed[0]}, which failed"
                if failed and _wrong(now)
                else _restore(
                    now, blobs, ahead, unread=_is_file(step) and step.id not in through, saves=saves, signed=signed
                )
            )
            moving |= step.id.startswith(("sysctl:", "module:"))
            if not results[step.id]:
                done.append(step)
                if step.id.startswith("sysctl:"):
                    fixpoint.read_back(step)
        for step in sealed.values():
            seen = observe(step.id)
            if not results[step.id] and not isinstance(seen, Unreadable):
                results[step.id] = _restore(replace(step, actual=seen), blobs)
        for step in _unsafe(ahead, done):
            results[step.id] = "it was restored, but the disk did not make it durable"
    tried = {s.id for s in todo}
    settled = done + [s for s in steps if s.id not in tried and not results[s.id]]
    refused = [
        s
        for s in todo
        if results[s.id] and results[s.id] != MOVED and not any(results.get(need) for need in needs(s, mounts))
    ]
    concerned = {s.id for s in (*settled, *refused)}
    fixpoint.settle([s for s in steps if s.id in concerned], results)
    for step in settled:
        follows = step.id.startswith("sysctl:")  # the kernel may have made something of it that counts as the same
        wrong = "" if follows and fixpoint.reached(step) else _wrong(step, seen_after)
        if wrong and not results[step.id]:
            results[step.id] = wrong
    return {**results, **{r: why for r, why in lost.items() if not results[r]}}


def _write_ahead(ahead: Ahead, todo: list[Step], at: int, blobs: Blobs) -> int:
    """Where many files in a row are to be replaced, write the new ones beside them first, and those of the row after
    while these are put in place. How many steps were looked at: nothing but files stands between them, so that none of
    them is about to be mounted over, or taken away."""
    count = ahead.turn()
    if not count:
        row = _row(todo, at)
        if len(row) < ROW_MIN:
            return max(1, len(row))
        ahead.begin(row, blobs)
        count = ahead.turn()
    coming = _row(todo, at + count)
    if len(coming) >= ROW_MIN:
        ahead.begin(coming, blobs)
    return count


def _row(todo: list[Step], at: int) -> list[Step]:
    return list(islice(takewhile(_is_file, islice(todo, at, None)), FILES_MAX))


def _is_file(step: Step) -> bool:
    return step.id.startswith("file:") and step.target is not None and step.target["type"] == "file"


def _unsafe(ahead: Ahead, done: Iterable[Step]) -> list[Step]:
    """Make the names durable. Which files are not sure to outlive a power cut."""
    ahead.finish()
    return [
        s
        for s in done
        if s.id.startswith("file:") and ahead.unsafe and os.path.dirname(decode_name(split_id(s.id)[1])) in ahead.unsafe
    ]


def _seals(step: Step, steps: Iterable[Step]) -> bool:
    """A directory in which nothing can be made once its flags are set: they are, when all below it is done."""
    if step.target is None or "flags" not in step.target or step.target["type"] != "directory":
        return False
    return any(s.id.startswith(step.id.rstrip("/") + "/") for s in steps)


def needs(step: Step, mounts: frozenset[str]) -> list[str]:
    """What must have been brought back before: what it requires, and the mounts of the plan that it lies in. Without
    them it would be written below them.  # R1"""
    kind, path = split_id(step.id)
    above: list[str] = []
    if kind in ("file", "mount") and step.target is not None:
        here = path if kind == "file" else posixpath.dirname(path)
        while True:
            if f"mount:{here}" in mounts and f"mount:{here}" != step.id:
                above.append(f"mount:{here}")
            if here == "/":
                break
            here = posixpath.dirname(here)
    return [*step.requires, *above]


def _say_kept(steps: Iterable[Step], results: Mapping[str, str], kept: Mapping[bytes, list[bytes]]) -> dict[str, str]:
    """Whose content it was that a kill left under a temporary name: of the last file that had been brought back there,
    for they are in order."""
    lost = {}
    for parent, names in kept.items():
        shown = ", ".join(encode_name(parent.rstrip(b"/") + b"/" + n) for n in names)
        log(f"a rollback was cut off; what is in no store stays as {shown}", 4)
        back = [
            s.id
            for s in steps
            if s.id.startswith("file:")
            and results.get(s.id) == ""
            and os.path.dirname(decode_name(split_id(s.id)[1])) == parent
        ]
        if back:
            lost[back[-1]] = f"it was restored, but what was there was not saved before: it is kept as {shown}"
    return lost


def _half_replaced(step: Step, seen: Attrs | None) -> bool:
    """A kill came between taking away what was there (a mount, an empty directory) and putting the other one.  # R6"""
    return seen is None and step.actual is not None and step.target is not None


def _half_dressed(step: Step, seen: Attrs | None) -> bool:
    """A kill came between owner, mode, attributes and flags of a file: its content is what it was or is to be. Or
    before the unmounting of what had been made read-only for it.  # R6"""
    if seen is None:
        return False
    if step.id.startswith("mount:"):
        return step.actual is not None and _written(seen) == _written(step.actual)
    if not step.id.startswith("file:"):
        return False
    ends = [end for end in (step.actual, step.target) if end is not None]
    return any(all(seen.get(k) == end.get(k) for k in ("type", "sha256", "target")) for end in ends)


def _written(attrs: Attrs) -> Attrs:
    """A mount but for whether it is written."""
    return {**attrs, "options": [o for o in attrs["options"] if o not in ("ro", "rw")]}


def _as_moved(step: Step) -> Step:
    """What earlier steps wrote may have moved a sysctl: nobody's new work is overwritten with it."""
    seen = observe(step.id) if step.id.startswith("sysctl:") else step.actual
    return step if isinstance(seen, Unreadable) else replace(step, actual=seen)


def _as_left(step: Step) -> Step:
    """What was seen through a link or a mount is gone from here with it: that is no new work of anybody's."""
    return replace(step, actual=None) if observe(step.id) is None else step


def _restore(
    step: Step,
    blobs: Blobs,
    ahead: Ahead | None = None,
    *,
    unread: bool = False,
    saves: Mapping[str, Mapping[str, Any]] | None = None,
    signed: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """``""`` if it was done, else why not. ``unread``: what cannot be read now is left as it is."""
    kind, name = split_id(step.id)
    seen = step.actual if unread and is_still(step, signed) else observe(step.id)
    if not isinstance(seen, Unreadable):
        if distance_n(step.id, step.target, seen) == 0:
            return ""  # an earlier step of the plan has brought it back already
        if seen != step.actual:
            return MOVED  # R2: written while earlier steps ran; what is there was not saved
    elif unread:
        return f"cannot be read: {seen.why}"
    try:
        if ahead is not None and kind == FILE.name:
            FILE.restore_among(name, step, blobs, ahead)
        elif saves is not None and kind == MOUNT.name:
            MOUNT.restore_kept(name, step, blobs, saves)
        else:
            KINDS[kind].restore(name, step, blobs)
    except OSError as exc:
        return (exc.strerror or os.strerror(exc.errno or 0)).lower()
    except PactError as exc:  # mount(8) quotes what it was called with  # S2
        return unquoted(exc.message, step.target, step.actual)
    except Exception as exc:  # nobody expected it: the other steps are none the worse for it
        traceback.print_exc()
        return explained(exc).message
    return ""


def _wrong(step: Step, seen_after: dict[str, Observation] | None = None) -> str:
    """Why the step is not verified, ``""`` if it is."""
    seen = observe(step.id)
    if seen_after is not None:
        seen_after[step.id] = seen
    if isinstance(seen, Unreadable):
        return f"restored, but cannot be read: {seen.why}"
    if distance_n(step.id, step.target, seen) == 0:
        return ""
    shown = "absent" if seen is None else "" if seen.get("secret") else seen.get("value", "")  # S2
    return "it was restored but does not stay so" + (f" (now {shown})" if shown else "")
