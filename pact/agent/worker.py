"""Observing and acting, off the loop: a hanging file system stops a worker, never the agent.

One thread carries out jobs in order; its findings come back as events. It decides nothing: the core decided before what
to do, and that decision is durable.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pact.agent.acting import MOVED, act, needs
from pact.agent.fixpoint import Fixpoint
from pact.agent.notifications import tell
from pact.agent.probing import distance_n, observe, placed, probe
from pact.agent.turnable import Turnable
from pact.core.node import below
from pact.core.node.events import (
    Act,
    Acted,
    Discover,
    Discovered,
    Event,
    JobFailed,
    Look,
    Looked,
    Probe,
    Probed,
    Sighting,
)
from pact.core.node.untracked import undeclarable
from pact.declared.toml import Ignore
from pact.errors import JournalError, PactError, UsageError, explained
from pact.host import sharing
from pact.host.clock import Clock, boottime_ns
from pact.host.notify import log
from pact.journal.blobs import BlobReader
from pact.model import NS_PER_S, Declared, Observation, Unreadable, split_id
from pact.resources import KINDS, kind_of
from pact.resources.base import PIECE_BYTES, Keep
from pact.resources.rules import nature

CHUNK_RESOURCES: Final = 250
RESULTS_MAX: Final = 1
#: No job takes this long unless something hangs: a tool is killed after a minute.
STUCK_NS: Final = 90 * NS_PER_S
#: How many threads may hang before jobs wait for one of them.
HUNG_MAX: Final = 4
__all__ = ["MOVED", "Result", "Worker", "act", "distance_n", "needs", "observe", "probe"]


class Ended(Exception):
    """The agent stops: a job that has touched nothing is dropped."""


@dataclass(slots=True)
class Result:
    """The outcome of a job: ``found`` is what was found out; its times are 0 until the loop takes it. ``make`` is
    called then instead, where the loop has something to do first. ``error`` ends the job instead.

    With ``stored``, ``blobs`` are to be made durable at once: ``stored`` gets ``""`` afterwards, or the reason why not.
    """

    job: int
    found: Event | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    error: PactError | None = None
    stored: queue.SimpleQueue[str] | None = None
    make: Callable[[int, int], Event] | None = None

    def event(self, t_ns: int, wall_ns: int) -> Event:
        """What the core is told, with the loop's clocks."""
        if self.make is not None:
            return self.make(t_ns, wall_ns)
        if self.found is not None:
            return replace(self.found, t_ns=t_ns, wall_ns=wall_ns)
        assert self.error is not None
        return JobFailed(t_ns, wall_ns, self.job, self.error)


class Ledger(Protocol):
    """Remembers the running work across the death of the process."""

    def begin(self, what: str) -> None: ...

    def end(self, what: str) -> None: ...


class Worker:
    """A thread with a queue of jobs. ``wake`` is called after each result; ``room`` is the free room of the content
    store, in bytes. Another thread can relieve one whose job hangs: no two jobs act on the same change.
    """

    def __init__(
        self,
        name: str,
        file_limit: int,
        room: Callable[[], int],
        blobs: BlobReader,
        ignore: Ignore,
        wake: Callable[[], None],
        ledger: Ledger | None = None,
    ) -> None:
        self.name = name
        self.file_limit = file_limit
        self.room = room
        self.blobs = blobs
        self.ignore = ignore
        self._wake = wake
        self._ledger = ledger
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.results: queue.Queue[Result] = queue.Queue(RESULTS_MAX)
        self._closing = threading.Event()
        self._begun: dict[threading.Thread, tuple[int, int]] = {}  # by both clocks
        self._signed: dict[int, dict[str, bytes]] = {}  # of the last prepared job: signatures of its files
        self._thread: threading.Thread | None = None  # started with the first job: an unused thread costs memory

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, effect: Look | Probe | Act | Discover, about: str = "") -> None:
        """``about``: the change of the job, or another name for work that a new start would begin again."""
        works: dict[type, Callable[[Any], None]] = {
            Look: self._look,
            Probe: self._probe,
            Act: self._act,
            Discover: self._discover,
        }
        work = works[type(effect)]
        self._put(lambda: self._on_record(about, lambda: work(effect)))

    def _on_record(self, about: str, work: Callable[[], None]) -> None:
        if self._ledger is None or not about:
            work()
            return
        self._ledger.begin(about)
        work()
        self._ledger.end(about)

    def call(self, work: Callable[[], Result]) -> None:
        """Any other work that may take long."""
        self._put(lambda: self._guard(0, work))

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._start()
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Finish what has begun. Returns False if it did not end in time (a hanging mount): then it dies with the
        process."""
        self._closing.set()
        if self._thread is None:
            return True
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
        """Let another thread take over the jobs that wait behind one that hangs. The hung thread ends with its job, if
        it ever does; its findings then come back as usual. Returns True if there is a new thread.  # F13
        """
        begun = self._begun.get(self._thread) if self._thread is not None else None
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
        """The wall time at which the oldest running job began, if that is too long ago.  # O1"""
        begun = min(self._begun.copy().values(), default=None)
        return begun[1] if begun is not None and boottime - begun[0] > STUCK_NS else None

    def _post(self, result: Result) -> None:
        while True:
            try:
                self.results.put(result, timeout=0.2)
            except queue.Full:
                self._wake()
                if self._closing.is_set():
                    return  # nobody reads results any more; the journal knows what had begun
                continue
            self._wake()
            return

    def _guard(self, job: int, work: Callable[[], Result]) -> None:
        """A bug in a kind must end its job, not the worker."""
        try:
            result = work()
        except Ended:
            return
        except PactError as exc:
            result = Result(job, None, {}, exc)
        except Exception as exc:
            _unexpected(exc)
            result = Result(job, None, {}, explained(exc))
        self._post(result)

    def _keep(self, *, hold: bool = True, spill: bool = False) -> Keep:
        return Keep(
            self.file_limit,
            self.room(),
            hold=hold,
            stored=self.blobs.has,
            spill=self._store if spill else None,
            store=self.blobs.path,
        )

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _look(self, effect: Look) -> None:
        def work() -> Result:
            keep = self._keep(spill=True)
            sightings = [Sighting(r, observe(r, keep)) for r in effect.resources]
            secret = frozenset(s.resource for s in sightings if _is_closed(s))
            found = (effect.job, sightings, dict(keep.unkept), secret, frozenset(keep.full))
            return Result(effect.job, Looked(0, 0, *found), keep.blobs)

        self._guard(effect.job, work)

    def _probe(self, effect: Probe) -> None:
        def work() -> Result:
            # The record of an application declares the earlier state. An application that a kill interrupts is not
            # continued, so the earlier contents need to be in the store only by the time of that record.
            keep, signed = self._keep(hold=effect.applying and not effect.dry, spill=True), dict[str, bytes]()
            through = below.carried(nature, effect.steps, (s.id for s in effect.steps))
            steps = tuple(s for s in effect.steps if s.id not in through or self.ignore.match(s.id) is None)
            found = probe(
                steps,
                keep,
                consumers=effect.consumers,
                force=effect.force,
                applying=effect.applying,
                ask=not effect.dry,
                signed=signed,
            )
            if not effect.dry:
                self._signed = {effect.job: signed}
            return Result(effect.job, Probed(0, 0, effect.job, *found), keep.blobs)

        self._guard(effect.job, work)

    # -- contents on their way to the store -------------------------------------------------------------------------

    def _store(self, blobs: dict[str, bytes]) -> None:
        """Make these durable, and wait until they are. Raises JournalError if that fails."""
        stored: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._post(Result(0, None, blobs, stored=stored))
        while True:
            try:
                why = stored.get(timeout=0.2)
            except queue.Empty:
                if self._closing.is_set():
                    raise Ended from None
                continue
            if why:
                raise JournalError(why)
            return

    def _save(self, saves: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Keep the contents that the plan will overwrite, one by one: the record that names their use is durable, and
        nothing is touched yet. Returns the resources that are no longer as decided about. Raises JournalError.  # R4"""
        moved: set[str] = set()
        piece: dict[str, bytes] = {}
        size = 0
        stored = self.blobs.known({save["sha256"] for save in saves.values() if "sha256" in save})
        for resource, save in saves.items():
            digest = save.get("sha256")
            if digest is None or digest in stored:
                continue
            keep = Keep(self.file_limit)
            observe(resource, keep)
            if digest not in keep.blobs:
                moved.add(resource)  # no record has the present content: it must not be kept silently
                continue
            piece[digest] = keep.blobs[digest]
            stored.add(digest)
            size += len(piece[digest])
            if size >= PIECE_BYTES:
                self._store(piece)
                piece, size = {}, 0
        if piece:
            self._store(piece)
        return moved

    def _act(self, effect: Act) -> None:
        def work() -> Result:
            try:
                moved = self._save(effect.saves)
            except JournalError as exc:
                results = dict.fromkeys((s.id for s in effect.steps), f"nothing was touched: {exc.message}")
                sightings = [Sighting(s.id, observe(s.id)) for s in effect.steps]
                owed = {s.id: s.notify for s in effect.steps if s.notify and (s.owed or effect.resumed)}
                return Result(effect.job, Acted(0, 0, effect.job, results, sightings, untold=owed))
            return self._carry_out(effect, moved)

        try:
            result = work()
        except Ended:
            return  # nothing was touched; the journal knows what had begun
        except Exception as exc:  # the change must not stay frozen
            _unexpected(exc)
            why = explained(exc).message
            results = dict.fromkeys((s.id for s in effect.steps), why)
            maybe = {s.id: s.notify for s in effect.steps if s.notify}  # any of them may have been moved  # R14
            seen = self._looked_after(effect)
            result = Result(effect.job, Acted(0, 0, effect.job, results, seen, untold=maybe))
        self._post(result)

    def _looked_after(self, effect: Act) -> list[Sighting]:
        """What is there after an act that broke: nobody knows how far it came."""
        others = (r for r in effect.below if self.ignore.match(r) is None)
        return [_tried(r) for r in (*(s.id for s in effect.steps), *others)]

    def _carry_out(self, effect: Act, moved: Container[str]) -> Result:
        fixpoint = Fixpoint(effect.beside, effect.put_back, effect.wanted)
        seen: dict[str, Observation] = {}
        touched = {s.id for s in effect.steps} if effect.resumed else set[str]()
        with sharing.seldom():
            results = act(
                effect.steps,
                self.blobs,
                resumed=effect.resumed,
                fixpoint=fixpoint,
                moved=moved,
                seen_after=seen,
                signed=self._signed.pop(effect.job, {}),
                saves=effect.saves,
                touched=touched,
            )
        said = tell(effect.steps, results, touched, effect.tells)
        others = (r for r in effect.below if self.ignore.match(r) is None)
        sightings = placed(
            Sighting(r, seen[r] if r in seen and KINDS[split_id(r)[0]].steady else observe(r))
            for r in (*(s.id for s in effect.steps), *others)
        )
        beside, reads = fixpoint.moved(), fixpoint.learned(results)
        told = said.untold, said.told
        return Result(effect.job, Acted(0, 0, effect.job, results, sightings, beside, reads, *told))

    def _discover(self, effect: Discover) -> None:
        try:
            self._discover_all(effect)
        except Ended:
            return
        except PactError as exc:
            self._post(Result(effect.job, None, {}, exc))
        except ValueError as exc:
            self._post(Result(effect.job, None, {}, UsageError(str(exc))))
        except Exception as exc:
            _unexpected(exc)
            self._post(Result(effect.job, None, {}, explained(exc)))

    def _discover_all(self, effect: Discover) -> None:
        passed: dict[str, int] = {}
        notes: list[str] = []
        exact: set[str] = set()
        keep, found, full = self._keep(spill=True), dict[str, Any](), 0
        patterns, turnable = list[str](), Turnable()
        for pattern in effect.patterns:
            kind = kind_of(pattern)
            text = split_id(pattern)[1]
            listing = kind.discover(text)
            named, remark = listing.exact, kind.remarks()
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
                if seen is None:
                    continue
                if why := undeclarable(kind, seen):
                    if named:
                        notes.append(f"{resource} {why}")
                    continue
                if named:
                    exact.add(resource)
                    if why := kind.misnamed(name):
                        notes.append(f"{resource} {why}")
                        continue
                for path in kind.watch(name):
                    turnable.look(path)
                if note := remark(name, seen):
                    notes.append(f"{resource} {note}")
                restorable = resource not in keep.unkept
                found[resource] = Declared(kind.marked(name, seen), restorable=restorable).to_json()
                if len(found) >= CHUNK_RESOURCES:
                    self._post(_found(effect.job, found, exact, [], keep, last=False))
                    found, full, room = {}, full + len(keep.full), keep.room
                    keep = self._keep(spill=True)
                    keep.room = room
            for why, count in listing.passed.items():
                passed[why] = passed.get(why, 0) + count
        if full := full + len(keep.full):
            notes.append(f"{full} without content: the content store is full (raise [state] store_limit)")
        notes += turnable.notes()
        notes += [f"passed over {count}: {why}" for why, count in sorted(passed.items())]
        self._post(_found(effect.job, found, exact, notes, keep, last=True, patterns=patterns))


def _tried(resource: str) -> Sighting:
    """A look of which nothing is expected; what breaks is unreadable."""
    try:
        (sighting,) = placed([Sighting(resource, observe(resource))])
    except Exception as exc:
        return Sighting(resource, Unreadable(explained(exc).message))
    return sighting


def _unexpected(exc: Exception) -> None:
    """A refusal by the system is logged in one line; a bug is shown in full."""
    if isinstance(exc, OSError | PactError):
        log(f"a job ended with: {exc}", 4)
    else:
        traceback.print_exc()


def _is_closed(sighting: Sighting) -> bool:
    """Whether the place of the resource makes it secret."""
    kind, name = split_id(sighting.resource)
    seen = sighting.observation
    return isinstance(seen, dict) and KINDS[kind].marked(name, seen) != seen


def _found(
    job: int,
    found: dict[str, Any],
    exact: set[str],
    notes: list[str],
    keep: Keep,
    *,
    last: bool,
    patterns: Sequence[str] = (),
) -> Result:
    named = frozenset(exact)
    return Result(job, Discovered(0, 0, job, found, named, notes, last, patterns), keep.blobs)
