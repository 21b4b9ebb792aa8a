"""Looking and acting, off the loop: a hanging file system stops a worker, never the agent.

One thread carries out jobs in order; what it finds comes back as events. It decides nothing: what to do, and whether,
was decided in the core and made durable before.
"""

from __future__ import annotations

import os
import posixpath
import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pact.agent.clock import Clock, boottime_ns
from pact.agent.fixpoint import Fixpoint
from pact.agent.notify import log
from pact.agent.probing import distance_n, observe, probe
from pact.core import below
from pact.core.events import Act, Acted, Discover, Discovered, Event, Look, Looked, Probe, Probed, Sighting
from pact.core.plan import Step
from pact.errors import PactError, RestoreError, UsageError
from pact.model import NS_PER_S, Attrs, Declared, Unreadable, decode_name, encode_name, split_id
from pact.resources import KINDS, kind_of
from pact.resources.base import Blobs, Keep
from pact.resources.sweep import sweep
from pact.resources.toml import Ignore

CHUNK_RESOURCES: Final = 250
CHUNK_BYTES: Final = 4 << 20
RESULTS_MAX: Final = 1
#: No job takes as long as this unless something hangs: a tool is killed after a minute.
STUCK_NS: Final = 90 * NS_PER_S
#: So many threads may hang before jobs wait for one of them.
HUNG_MAX: Final = 4
__all__ = ["Result", "Worker", "act", "distance_n", "needs", "observe", "probe"]

MOVED: Final = "changed again after it was decided; it was left as it is"


@dataclass(slots=True)
class Result:
    """What comes back: ``make`` builds the event with the loop's clocks. ``error`` ends the job instead."""

    job: int
    make: Callable[[int, int], Event] | None
    blobs: dict[str, bytes] = field(default_factory=dict)
    error: PactError | None = None


class Worker:
    """A thread with a queue of jobs. ``wake`` is called after each result; ``room`` is what the content store still
    takes, in bytes. A thread whose job hangs can be relieved by another: no two jobs act on the same change.
    """

    def __init__(self, name: str, file_limit: int, room: Callable[[], int], blobs: Blobs, ignore: Ignore,
                 wake: Callable[[], None]) -> None:  # fmt: skip
        self.name = name
        self.file_limit = file_limit
        self.room = room
        self.blobs = blobs
        self.ignore = ignore
        self._wake = wake
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.results: queue.Queue[Result] = queue.Queue(RESULTS_MAX)
        self._closing = threading.Event()
        self._begun: dict[threading.Thread, tuple[int, int]] = {}  # by both clocks
        self._thread: threading.Thread
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, effect: Look | Probe | Act | Discover, extra: Mapping[str, bytes] | None = None) -> None:
        """``extra`` are contents not yet in the store (they came with the request)."""
        if isinstance(effect, Look):
            self._jobs.put(lambda: self._look(effect))
        elif isinstance(effect, Probe):
            self._jobs.put(lambda: self._probe(effect))
        elif isinstance(effect, Act):
            self._jobs.put(lambda: self._act(effect, extra or {}))
        else:
            self._jobs.put(lambda: self._discover(effect))

    def call(self, work: Callable[[], Result]) -> None:
        """Anything else that may take its time."""
        self._jobs.put(lambda: self._guard(0, work))

    def close(self, timeout_s: float) -> bool:
        """Finish what has begun. False if it did not end in time (a hanging mount): it dies with the process."""
        self._closing.set()
        for _ in range(HUNG_MAX + 1):
            self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._begun

    def _run(self) -> None:
        me = threading.current_thread()
        while (work := self._jobs.get()) is not None:
            self._begun[me] = boottime_ns(), Clock.wall_ns()
            work()
            del self._begun[me]
            if me is not self._thread:
                return

    def relieve(self, boottime: int) -> bool:
        """Another thread takes over what waits behind a job that hangs. The hung one ends with its job, if it ever
        does; what it found then comes back as ever. True if there is a new thread.  # F13
        """
        begun = self._begun.get(self._thread)
        hangs = begun is not None and boottime - begun[0] > STUCK_NS
        if not hangs or not self.waiting or len(self._begun) > HUNG_MAX:
            return False
        self._start()
        return True

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._jobs.qsize()

    def stuck_since(self, boottime: int) -> int | None:
        """The wall time at which the oldest job under way began, if that is too long ago.  # O1"""
        begun = min(self._begun.copy().values(), default=None)
        return begun[1] if begun is not None and boottime - begun[0] > STUCK_NS else None

    def _post(self, result: Result) -> None:
        while True:
            try:
                self.results.put(result, timeout=0.2)
            except queue.Full:
                self._wake()
                if self._closing.is_set():
                    return  # nobody reads any more; the journal knows what had begun
                continue
            self._wake()
            return

    def _guard(self, job: int, work: Callable[[], Result]) -> None:
        """A bug in a kind must end its job, not the worker."""
        try:
            result = work()
        except PactError as exc:
            result = Result(job, None, {}, exc)
        except Exception as exc:
            traceback.print_exc()
            result = Result(job, None, {}, PactError(f"internal error: {type(exc).__name__}: {exc}"))
        self._post(result)

    def _keep(self) -> Keep:
        return Keep(self.file_limit, self.room(), stored=lambda digest: self.blobs(digest) is not None)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _look(self, effect: Look) -> None:
        def work() -> Result:
            keep = self._keep()
            sightings = [Sighting(r, observe(r, keep)) for r in effect.resources]
            secret = frozenset(s.resource for s in sightings if _is_closed(s))
            found = (effect.job, sightings, dict(keep.unkept), secret, frozenset(keep.full))
            return Result(effect.job, lambda t, w: Looked(t, w, *found), keep.blobs)

        self._guard(effect.job, work)

    def _probe(self, effect: Probe) -> None:
        def work() -> Result:
            keep = self._keep()
            through = below.carried(effect.steps, (s.id for s in effect.steps))
            steps = tuple(s for s in effect.steps if s.id not in through or self.ignore.match(s.id) is None)
            found = probe(steps, keep, consumers=effect.consumers, force=effect.force, applying=effect.applying)
            return Result(effect.job, lambda t, w: Probed(t, w, effect.job, *found), keep.blobs)

        self._guard(effect.job, work)

    def _act(self, effect: Act, extra: Mapping[str, bytes]) -> None:
        def blobs(digest: str) -> bytes | None:
            return extra.get(digest) or self.blobs(digest)

        def work() -> Result:
            fixpoint = Fixpoint(effect.beside, effect.put_back, effect.wanted)
            results = act(effect.steps, blobs, resumed=effect.resumed, fixpoint=fixpoint)
            others = (r for r in effect.below if self.ignore.match(r) is None)
            sightings = [Sighting(r, observe(r)) for r in (*(s.id for s in effect.steps), *others)]
            moved, reads = fixpoint.moved(), fixpoint.learned(results)
            return Result(effect.job, lambda t, w: Acted(t, w, effect.job, results, sightings, moved, reads))

        try:
            result = work()
        except Exception as exc:  # the change must not stay frozen
            traceback.print_exc()
            why = f"internal error: {type(exc).__name__}: {exc}"
            results = dict.fromkeys((s.id for s in effect.steps), why)
            result = Result(effect.job, lambda t, w: Acted(t, w, effect.job, results, []))
        self._post(result)

    def _discover(self, effect: Discover) -> None:
        try:
            self._discover_all(effect)
        except PactError as exc:
            self._post(Result(effect.job, None, {}, exc))
        except ValueError as exc:
            self._post(Result(effect.job, None, {}, UsageError(str(exc))))
        except Exception as exc:
            traceback.print_exc()
            self._post(Result(effect.job, None, {}, PactError(f"internal error: {type(exc).__name__}: {exc}")))

    def _discover_all(self, effect: Discover) -> None:
        passed: dict[str, int] = {}
        notes: list[str] = []
        exact: set[str] = set()
        keep, found, full = self._keep(), dict[str, Any](), 0
        bound, patterns = _bound_paths(), list[str]()
        for pattern in effect.patterns:
            kind = kind_of(pattern)
            text = split_id(pattern)[1]
            listing = kind.discover(text)
            named = listing.exact
            if not named:
                patterns.append(f"{kind.name}:{kind.pattern(text)}")
            for name in listing.names:
                resource = f"{kind.name}:{name}"
                ignored = self.ignore.match(resource)
                if ignored is not None:
                    passed[f"ignored by {ignored}"] = passed.get(f"ignored by {ignored}", 0) + 1
                    continue
                seen = kind.observe(name, keep)
                if isinstance(seen, Unreadable):
                    passed["unreadable"] = passed.get("unreadable", 0) + 1
                    if named:
                        notes.append(f"{resource} cannot be read: {seen.why}")
                    continue
                if seen is None or seen.get("type") in ("fifo", "socket", "block", "char", "unknown"):
                    continue
                if named:
                    exact.add(resource)
                    if kind.name == "file" and _through_symlink(name):
                        notes.append(f"{resource} lies behind a symbolic link; adopt its real path")
                        continue
                if kind.name == "file" and seen.get("type") == "file" and decode_name(name) in bound:
                    notes.append(f"{resource} is bind-mounted: it is watched, but cannot be replaced by a rollback")
                restorable = resource not in keep.unkept
                found[resource] = Declared(kind.marked(name, seen), restorable=restorable).to_json()
                if len(found) >= CHUNK_RESOURCES or sum(map(len, keep.blobs.values())) >= CHUNK_BYTES:
                    self._post(_found(effect.job, found, exact, [], keep, last=False))
                    found, keep, full = {}, replace(self._keep(), room=keep.room), full + len(keep.full)
            for why, count in listing.passed.items():
                passed[why] = passed.get(why, 0) + count
        if full := full + len(keep.full):
            notes.append(f"{full} without content: the content store is full (raise [state] store_limit)")
        notes += [f"passed over {count}: {why}" for why, count in sorted(passed.items())]
        self._post(_found(effect.job, found, exact, notes, keep, last=True, patterns=patterns))


def _is_closed(sighting: Sighting) -> bool:
    """A secret by the place where it lies."""
    kind, name = split_id(sighting.resource)
    seen = sighting.observation
    return isinstance(seen, dict) and KINDS[kind].marked(name, seen) != seen


def _found(job: int, found: dict[str, Any], exact: set[str], notes: list[str], keep: Keep, *, last: bool,
           patterns: Sequence[str] = ()) -> Result:  # fmt: skip
    named = frozenset(exact)
    return Result(job, lambda t, w: Discovered(t, w, job, found, named, notes, last, patterns), keep.blobs)


def _bound_paths() -> set[bytes]:
    from pact.resources.mount_table import read_mounts

    return {m.mount_point for m in read_mounts()}


def _through_symlink(name: str) -> bool:
    parent = os.path.dirname(decode_name(name))
    return os.path.realpath(parent) != parent


def act(steps: tuple[Step, ...], blobs: Blobs, *, resumed: bool = False, fixpoint: Fixpoint | None = None
        ) -> dict[str, str]:  # fmt: skip
    """Carry a plan out: ``""`` for each resource restored and verified, else why not.  # R5"""
    fixpoint = fixpoint or Fixpoint((), put_back=False)
    kept = sweep(steps, blobs)
    results: dict[str, str] = {}
    todo: list[Step] = []
    through = below.carried(steps, (s.id for s in steps))
    for step in steps:
        seen = observe(step.id)
        if isinstance(seen, Unreadable) and step.id in through:
            todo.append(step)
        elif isinstance(seen, Unreadable):
            results[step.id] = f"cannot be read: {seen.why}"
        elif distance_n(step.id, step.target, seen) == 0 and (step.id in through or _seals(step, steps)):
            todo.append(replace(step, actual=seen))  # it may be gone by its turn, or has to be opened for others
        elif distance_n(step.id, step.target, seen) == 0:
            results[step.id] = ""
        elif resumed and (_half_dressed(step, seen) or _half_replaced(step, seen)):
            todo.append(replace(step, actual=seen))
        elif seen != step.actual:
            results[step.id] = MOVED
        else:
            todo.append(step)
    sealed = [s for s in todo if _seals(s, todo)]
    lost = _say_kept(steps, results, kept)
    mounts = frozenset(s.id for s in steps if s.id.startswith("mount:"))
    done: list[Step] = []
    moving = False  # what was written so far may move sysctls
    for step in todo:
        failed = [need for need in needs(step, mounts) if results.get(need)]
        now = _as_moved(step) if moving else _as_left(step) if step.id in through else step
        if step in sealed:
            now = replace(now, target={**(now.target or {}), "flags": ""})
        results[step.id] = f"needs {failed[0]}, which failed" if failed and _wrong(now) else _restore(now, blobs)
        moving |= step.id.startswith(("sysctl:", "module:"))
        if not results[step.id]:
            done.append(step)
            if step.id.startswith("sysctl:"):
                fixpoint.read_back(step)
    for step in sealed:
        seen = observe(step.id)
        if not results[step.id] and not isinstance(seen, Unreadable):
            results[step.id] = _restore(replace(step, actual=seen), blobs)
    settled = done + [s for s in steps if s not in todo and not results[s.id]]
    refused = [s for s in todo if results[s.id] and results[s.id] != MOVED and not any(
        results.get(need) for need in needs(s, mounts))]  # fmt: skip
    fixpoint.settle([s for s in steps if s in settled or s in refused], results)
    for step in settled:
        wrong = "" if fixpoint.reached(step) else _wrong(step)
        if wrong and not results[step.id]:
            results[step.id] = wrong
    return {**results, **{r: why for r, why in lost.items() if not results[r]}}


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
        back = [s.id for s in steps if s.id.startswith("file:") and results.get(s.id) == ""
                and os.path.dirname(decode_name(split_id(s.id)[1])) == parent]  # fmt: skip
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


def _restore(step: Step, blobs: Blobs) -> str:
    kind, name = split_id(step.id)
    seen = observe(step.id)
    if not isinstance(seen, Unreadable):
        if distance_n(step.id, step.target, seen) == 0:
            return ""  # an earlier step of the plan has brought it back already
        if seen != step.actual:
            return MOVED  # R2: written while earlier steps ran; what is there was not saved
    try:
        KINDS[kind].restore(name, step, blobs)
    except RestoreError as exc:
        return exc.message
    except OSError as exc:
        return (exc.strerror or os.strerror(exc.errno or 0)).lower()
    except PactError as exc:
        return exc.message
    return ""


def _wrong(step: Step) -> str:
    """Why the step is not verified, ``""`` if it is."""
    seen = observe(step.id)
    if isinstance(seen, Unreadable):
        return f"restored, but cannot be read: {seen.why}"
    if distance_n(step.id, step.target, seen) == 0:
        return ""
    shown = "absent" if seen is None else "" if seen.get("secret") else seen.get("value", "")  # S2
    return "it was restored but does not stay so" + (f" (now {shown})" if shown else "")
