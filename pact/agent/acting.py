"""Carrying a plan out, step by step: observe once more, restore, verify.  # R5"""

from __future__ import annotations

import os
import posixpath
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, takewhile
from types import MappingProxyType
from typing import Any, Final

from pact.agent.fixpoint import Fixpoint, is_moved
from pact.agent.probing import distance_n, is_still, observe
from pact.core.node import below
from pact.core.plan import Step
from pact.errors import PactError, explained
from pact.host.notify import log
from pact.host.sharing import sharing
from pact.model import Observation, Unreadable, decode_name, encode_name, split_id
from pact.resources import KINDS, Kind
from pact.resources.base import Among, Blobs
from pact.resources.rules import nature
from pact.resources.support import unsealed
from pact.resources.support.ahead import FILES_MAX, Ahead
from pact.resources.support.loose import LOOSE
from pact.resources.support.obstacles import closed_directories
from pact.resources.support.passwords import unquoted
from pact.resources.support.sweep import sweep

#: A row of fewer files is not worth writing ahead.
ROW_MIN: Final = 8
ALONE: Final = Among()
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
    touched: set[str] | None = None,
) -> dict[str, str]:
    """Carry a plan out. Returns ``""`` for each resource that was restored and verified, else the reason why not.
    Resources that have ``moved``, and so have no saved content, are left as they are. ``seen_after`` gets the
    observations of verified resources. ``saves``: the contents on record as kept; a file system in memory that holds
    other content is not unmounted. ``signed``: files whose status shows whether they are still as decided about
    (``probing.sealed``). ``touched`` gets the resources that a step has moved, verified or not.  # R4, R5, R14"""
    fixpoint = fixpoint or Fixpoint((), put_back=False)
    kept = sweep(steps, blobs)
    results: dict[str, str] = {}
    todo: list[Step] = []
    through = below.carried(nature, steps, (s.id for s in steps))
    for step in sharing(steps):
        if not resumed and _goes_ahead(step) and step.id not in through and step.id not in moved:
            todo.append(step)  # observed when its turn comes
            continue
        seen = observe(step.id)
        if isinstance(seen, Unreadable) and step.id in through:
            todo.append(step)
        elif isinstance(seen, Unreadable):
            results[step.id] = f"cannot be read: {seen.why}"
        elif distance_n(step.id, step.target, seen) == 0 and (step.id in through or _seals(step, steps)):
            todo.append(replace(step, actual=seen))  # it may be gone by its turn, or must be opened for other steps
        elif distance_n(step.id, step.target, seen) == 0 and _kind(step).settled(seen):
            results[step.id] = ""
        elif step.id in moved:
            results[step.id] = MOVED
        elif resumed and _kind(step).half_done(step, seen):
            todo.append(replace(step, actual=seen))
        elif not _kind(step).alike(step.actual, seen):
            results[step.id] = MOVED
        else:
            todo.append(step)
    sealed = {s.id: s for s in sharing(todo) if _seals(s, todo)}
    lost = _say_kept(steps, results, kept)
    bearing = {split_id(s.id)[1]: s.id for s in sharing(steps) if _kind(s).bears}
    done: list[Step] = []
    open_ends: list[int] = []
    closed = closed_directories(steps)
    with Ahead() as ahead, _closed_again(open_ends):
        written_kinds: set[str] = set()  # kinds whose writes may move later resources
        written = 0
        brought: list[Callable[[str], bool]] = []
        begun: set[str] = set()
        for at, step in enumerate(todo):
            if step.id in results:
                continue  # it was restored together with one before it
            if at >= written:
                written = at + _write_ahead(ahead, todo, at, blobs)
            if _kind(step).bears:  # a directory that is held open below a mount keeps it from going
                ahead.finish()
                results.update(ahead.late)
            elif step.requires or not _goes_ahead(step):
                results.update(ahead.settle())
            failed = [need for need in needs(step, bearing) if results.get(need)]
            stirring = (*_kind(step).moved_by, *_kind(step).stirred_by)
            stirred = not written_kinds.isdisjoint(stirring) or any(test(step.id) for test in brought)
            now = _as_moved(step) if stirred else _as_left(step) if step.id in through else step
            if step.id in sealed:
                now = replace(now, target={**(now.target or {}), "flags": ""})
                open_ends += _opened(step)
            if failed and _wrong(now):
                came = {step.id: f"needs {failed[0]}, which failed"}
            elif _kind(step).at_once and not failed:
                row = [_as_brought(s, written_kinds) for s in _at_once(todo, at, bearing, results)]
                came = _restore_row(row, blobs, begun)
                brought.append(_kind(step).brought(row))
            else:
                unread = _goes_ahead(step) and step.id not in through
                came = {
                    step.id: _restore(
                        now, blobs, Among(ahead, saves, closed), unread=unread, signed=signed, begun=begun
                    )
                }
            results.update(came)
            if step.id in sealed and not results[step.id]:  # only now what a kill left in it can be removed
                lost |= _say_kept(steps, results, sweep([s for s in steps if _is_in(s, step)], blobs))
            written_kinds.add(split_id(step.id)[0])
            done += [s for s in todo[at:] if s.id in came and not came[s.id]] if len(came) > 1 else _if_done(step, came)
            if not results[step.id] and is_moved(step.id):
                fixpoint.read_back(step)
        ahead.finish()  # before directories are sealed: what nobody took could not be removed from them any more
        results.update(ahead.late)
        for step in sealed.values():
            seen = observe(step.id)
            if not results[step.id] and not isinstance(seen, Unreadable):
                results[step.id] = _restore(replace(step, actual=seen), blobs)
        for number in open_ends:
            LOOSE.end(number)
        unsafe = _unsafe(ahead, done)
        results.update(ahead.late)
        done = [s for s in done if s.id not in ahead.late]
        for step in unsafe:
            results[step.id] = "it was restored, but the disk did not make it durable"
    if touched is not None:
        touched.update(s.id for s in done)
        touched.update(s.id for s in todo if s.id in begun and s.id not in touched and _is_moved(s))
    tried = {s.id for s in todo}
    settled = done + [s for s in steps if s.id not in tried and not results[s.id]]
    refused = [
        s
        for s in sharing(todo)
        if results[s.id] and results[s.id] != MOVED and not any(results.get(need) for need in needs(s, bearing))
    ]
    concerned = {s.id for s in (*settled, *refused)}
    fixpoint.settle([s for s in steps if s.id in concerned], results)
    for step in settled:
        # The kernel may have changed the value into one that counts as equal.
        wrong = "" if is_moved(step.id) and fixpoint.reached(step) else _wrong(step, seen_after)
        if wrong and not results[step.id]:
            results[step.id] = wrong
    return {**results, **{r: why for r, why in lost.items() if not results[r]}}


def _is_moved(step: Step) -> bool:
    """Whether a step that failed has left something else behind than was there."""
    seen = observe(step.id)
    return isinstance(seen, Unreadable) or not _kind(step).alike(step.actual, seen)


def _as_it_is(step: Step) -> tuple[str, Step | None]:
    """The step with its present state; or, without one, the result that it has already."""
    seen = observe(step.id)
    if isinstance(seen, Unreadable):
        return f"cannot be read: {seen.why}", None
    if distance_n(step.id, step.target, seen) == 0 and _kind(step).settled(seen):
        return "", None
    return ("", replace(step, actual=seen)) if _kind(step).alike(step.actual, seen) else (MOVED, None)


def _write_ahead(ahead: Ahead, todo: list[Step], at: int, blobs: Blobs) -> int:
    """If many files in a row are to be replaced, write their new contents beside them first, and those of the next rows
    while these become durable and are renamed into place. Returns how many steps were taken in: only files stand
    between them, so that no step in between mounts over one of them, or takes one away."""
    _begin_rows(ahead, todo, at, blobs)
    count = ahead.turn()
    if not count:
        return max(1, len(_row(todo, at)))
    _begin_rows(ahead, todo, at + count, blobs)
    return count


def _begin_rows(ahead: Ahead, todo: list[Step], at: int, blobs: Blobs) -> None:
    while ahead.takes_more() and len(row := _row(todo, at + ahead.begun)) >= ROW_MIN:
        ahead.begin(row, blobs)


def _row(todo: list[Step], at: int) -> list[Step]:
    return list(takewhile(_goes_ahead, todo[at : at + FILES_MAX]))  # a slice: ``islice`` walks to where it begins


def _at_once(todo: Sequence[Step], at: int, bearing: Mapping[str, str], results: Mapping[str, str]) -> list[Step]:
    """The steps from here on that their kind carries out as one act, without those that need what has failed, or what
    comes between them."""
    kind, row, ids = _kind(todo[at]), list[Step](), set[str]()
    for step in takewhile(lambda s: _kind(s) is kind, islice(todo, at, None)):
        lower = needs(step, bearing)
        if not kind.orders and not ids.isdisjoint(lower):
            break
        if not any(results.get(need) for need in lower):
            row.append(step)
            ids.add(step.id)
    return row


def _restore_row(row: Sequence[Step], blobs: Blobs, begun: set[str]) -> dict[str, str]:
    """Returns by id ``""`` for what was restored, else the reason why not. What has moved is left as it is; ``begun``
    gets the rest.  # R2"""
    out, left = dict[str, str](), list[Step]()
    for step in row:
        out[step.id], now = _as_it_is(step)
        left += [] if now is None else [now]
    if left:
        begun.update(s.id for s in left)
        said = _explained(lambda: _kind(left[0]).restore_all(left, blobs), left)
        out |= {s.id: said.get(s.id, "nothing was said of it") for s in left}
    return out


def _if_done(step: Step, came: Mapping[str, str]) -> list[Step]:
    return [] if came[step.id] else [step]


def _explained(act: Callable[[], Mapping[str, str]], steps: Iterable[Step]) -> Mapping[str, str]:
    """What the act says; the reason of its failure, for each step."""
    try:
        return act()
    except OSError as exc:
        why = (exc.strerror or os.strerror(exc.errno or 0)).lower()
    except PactError as exc:
        why = exc.message
    except Exception as exc:  # an unexpected error: the other steps go on
        traceback.print_exc()
        why = explained(exc).message
    return dict.fromkeys((s.id for s in steps), why)


def _kind(step: Step) -> Kind:
    return KINDS[step.id.partition(":")[0]]


def _goes_ahead(step: Step) -> bool:
    return _kind(step).goes_ahead(step)


def _directory(step: Step) -> bytes | None:
    """The path of the directory that contains its name."""
    kind, name = split_id(step.id)
    directory = KINDS[kind].directory(name)
    return decode_name(split_id(directory)[1]) if directory else None


def _unsafe(ahead: Ahead, done: Iterable[Step]) -> list[Step]:
    """Make the names durable. Returns the steps whose files may not survive a power cut."""
    ahead.finish()
    return [s for s in done if ahead.unsafe and _directory(s) in ahead.unsafe]


def _seals(step: Step, steps: Iterable[Step]) -> bool:
    """Whether the step's directory refuses new entries once its flags are set: they are set after all steps below
    it."""
    if step.target is None or "flags" not in step.target or step.target["type"] != "directory":
        return False
    return any(s.id.startswith(step.id.rstrip("/") + "/") for s in steps)


def needs(step: Step, bearing: Mapping[str, str]) -> list[str]:
    """The resources that must be restored before: those that it requires, and those of the plan that contain it and
    without which it would lie elsewhere (``bearing``: by path).  # R1"""
    kind, above = _kind(step), list[str]()
    if bearing and kind.is_path and step.target is not None:
        path = split_id(step.id)[1]
        here = posixpath.dirname(path) if kind.bears else path
        while True:
            if here in bearing and bearing[here] != step.id:
                above.append(bearing[here])
            if here == "/":
                break
            here = posixpath.dirname(here)
    return [*step.requires, *above]


def _is_in(step: Step, directory: Step) -> bool:
    return _directory(step) == decode_name(split_id(directory.id)[1])


def _opened(step: Step) -> list[int]:
    """A directory is about to be opened for the steps below it: puts its flags on record. If that is not possible it is
    opened all the same: at worst it stays so after a kill, and is drift."""
    path = decode_name(split_id(step.id)[1])
    letters = unsealed.flags_of(path)
    try:
        return [unsealed.begin(path, letters)] if letters else []
    except OSError:
        return []


@contextmanager
def _closed_again(numbers: Iterable[int]) -> Iterator[None]:
    """If the plan breaks off, its open directories get their flags again."""
    try:
        yield
    except BaseException:
        for text in LOOSE.take_back(numbers):
            log(text, 4)
        raise


def _say_kept(steps: Iterable[Step], results: Mapping[str, str], kept: Mapping[bytes, list[bytes]]) -> dict[str, str]:
    """Reports a content that a kill left under a temporary name. It belongs to the last file that had been restored in
    that directory, because files are restored in order."""
    lost = {}
    for parent, names in kept.items():
        shown = ", ".join(encode_name(parent.rstrip(b"/") + b"/" + n) for n in names)
        log(f"a rollback was cut off; what is in no store stays as {shown}", 4)
        back = [s.id for s in steps if results.get(s.id) == "" and _directory(s) == parent]
        if back:
            lost[back[-1]] = f"it was restored, but what was there was not saved before: it is kept as {shown}"
    return lost


def _as_moved(step: Step) -> Step:
    """The step with what is there now: writes of earlier steps may have moved it, and no new work of an owner is
    overwritten with it."""
    seen = observe(step.id)
    return step if isinstance(seen, Unreadable) else replace(step, actual=seen)


def _as_brought(step: Step, written_kinds: set[str]) -> Step:
    """What was not there, and is there now, was brought by a step before it (a unit by its file)."""
    brought = step.actual is None and not written_kinds.isdisjoint(_kind(step).follows)
    return _as_moved(step) if brought else step


def _as_left(step: Step) -> Step:
    """Resources that were seen through a link or a mount are gone together with it: that is no new work of an owner."""
    return replace(step, actual=None) if observe(step.id) is None else step


def _restore(
    step: Step,
    blobs: Blobs,
    among: Among = ALONE,
    *,
    unread: bool = False,
    signed: Mapping[str, bytes] = MappingProxyType({}),
    begun: set[str] | None = None,
) -> str:
    """Returns ``""`` if it was restored, else the reason why not. ``unread``: a resource that cannot be read now is
    left as it is. ``begun`` gets its id if it is written."""
    kind, name = split_id(step.id)
    seen = step.actual if unread and is_still(step, signed) else observe(step.id)
    if not isinstance(seen, Unreadable):
        if distance_n(step.id, step.target, seen) == 0:
            return ""  # an earlier step of the plan has restored it already
        if not KINDS[kind].alike(step.actual, seen):
            return MOVED  # R2: written while earlier steps ran; the present content was not saved
    elif unread:
        return f"cannot be read: {seen.why}"
    if begun is not None:
        begun.add(step.id)
    try:
        KINDS[kind].restore_among(name, step, blobs, among)
    except OSError as exc:
        return (exc.strerror or os.strerror(exc.errno or 0)).lower()
    except PactError as exc:  # mount(8) quotes its arguments  # S2
        return unquoted(exc.message, step.target, step.actual)
    except Exception as exc:  # an unexpected error: the other steps go on
        traceback.print_exc()
        return explained(exc).message
    return ""


def _wrong(step: Step, seen_after: dict[str, Observation] | None = None) -> str:
    """Why the step is not verified; ``""`` if it is."""
    seen = observe(step.id)
    if seen_after is not None:
        seen_after[step.id] = seen
    if isinstance(seen, Unreadable):
        return f"restored, but cannot be read: {seen.why}"
    if distance_n(step.id, step.target, seen) == 0:
        return ""
    shown = "absent" if seen is None else "" if seen.get("secret") else seen.get("value", "")  # S2
    return "it was restored but does not stay so" + (f" (now {shown})" if shown else "")
