"""Observing touched resources: off the loop if it may take long, and also while nothing can be recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from pact.agent.batch import Batch
from pact.agent.config import Config
from pact.agent.driver import BACKLOG_PIECE, JOURNAL_RETRY_NS, Driver
from pact.agent.probing import placed
from pact.agent.tracking import discovered
from pact.agent.worker import Result, Worker, observe
from pact.core.node.events import (
    Appeared,
    Covered,
    Event,
    Observed,
    Scanned,
    Sighting,
    Ticked,
)
from pact.core.node.writers import together
from pact.core.records import rfc3339
from pact.errors import JournalError
from pact.host import clock
from pact.host.notify import log
from pact.model import Observation, Owner, split_id
from pact.resources import KINDS

DRAINS_MAX: Final = 64
#: How long a request waits for what is new below tracked patterns.
TRACKING_ASKED_NS: Final = 200_000_000
#: How long the first look after a boot may take, of a kind that may take long.
RESET_LOOK_S: Final = 30.0


class Sightings(Driver):
    """A driver that observes."""

    batch: Batch

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._slow_pending: dict[str, Owner | None] = {}
        self._slow_running: set[str] = set()
        self._overtaken: set[str] = set()
        self._of_kinds: dict[str, Worker] = {}  # the threads that look at kinds off the loop

    def catch_up(self) -> None:
        """Take in everything that has happened until now."""
        for _ in self.looking():
            pass

    def looking(self, hurries: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Take in everything that has happened until now, so that an answer is not older than its question: a piece at
        a time, and each resource once, however often it moves meanwhile. Unless it ``hurries``, resources in constant
        motion are observed at their own pace.  # F18, S3"""
        for _ in range(DRAINS_MAX):
            if not self.watching.drain():
                break
            yield
        if not self.journal_error and self.watching.covered:
            self._cover()
        everything = hurries()
        self.watching.ask(self.clock.now_ns(), everything=everything)
        while self.watching.asked:
            (self._observe_unrecorded if self.journal_error else self._observe)(self.clock.now_ns())
            yield
        if self.journal_error:
            return
        ends_ns, tracking = time.monotonic_ns() + TRACKING_ASKED_NS, self.watching.tracking
        self._track(self.clock.now_ns(), everything=everything)
        while everything and tracking.has_more and not self.journal_error and time.monotonic_ns() < ends_ns:
            yield
            self._track(self.clock.now_ns(), everything=True)
        if not self.journal_error:
            self.step(Ticked(*self.now()))

    def has_looked(self) -> bool:
        """Whether everything of which events were taken was looked at, and no event is left where it is for a while.
        Takes none, and looks at nothing."""
        watching = self.watching
        touched = watching.pending or watching.delayed or watching.covered or watching.tracking.has_more
        return not (touched or watching.quiet_until_ns) and watching.followers.next_ns() is None

    def _track(self, now_ns: int, *, everything: bool = False) -> None:
        """Take in new things below tracked patterns, and those that are gone.  # U1"""
        tracking = self.watching.tracking
        found, gone = tracking.take(self.node, now_ns, everything=everything)
        beyond = tracking.beyond()
        if found or gone or beyond is not None:
            self.step(Appeared(*self.now(), found, gone, beyond))
        for kind, owner in tracking.poll(now_ns):
            self._slow.call(partial(self._polled, kind, tracking.kinds.get(kind, []), owner))

    def _polled(self, kind: str, patterns: Sequence[str], owner: Owner | None) -> Result:
        names = discovered(kind, patterns)
        compared = self.watching.tracking.compared
        return Result(0, make=lambda t, w: Appeared(t, w, *compared(kind, names, self.node, owner)))

    def _cover(self) -> None:
        """Record mounts that hide declared paths. Each stays on the list until it is durable, or owed: with the first
        record the mount points are saved, and a later run never records a mount that it finds saved."""
        covered = self.watching.covered
        while covered:
            resource, (attrs, owner) = next(iter(covered.items()))
            if self.ignore.match(resource) is None:
                self.tell(Covered(*self.now(), {resource: attrs}, owner))
            covered.pop(resource, None)
        self._save_points()

    def _observe(self, now_ns: int) -> None:
        if self.watching.covered:
            self._cover()
        wanted = self.watching.take(now_ns)
        if wanted:
            sightings = self._look_at(wanted)
            if sightings:
                self.step(Observed(*self.now(), sightings))

    def _later(self, resource: str, owner: Owner | None) -> None:
        """Observe off the loop: the resource is large, or lies on a file system that may hang."""
        waiting = resource in self._slow_pending
        self._slow_pending[resource] = together(self._slow_pending.get(resource), owner)
        if waiting:
            return

        def work() -> Result:
            self._slow_running.add(resource)
            owner_then = self._slow_pending.pop(resource, None)
            (seen,) = placed([Sighting(resource, observe(resource), owner_then)])
            return Result(0, make=lambda t, w: self._slow_done(seen, t, w))

        self._looking(resource).call(work)

    def _looking(self, resource: str) -> Worker:
        """The thread for slow observations of a resource. Each kind that is always looked at off the loop has its own:
        a network file system hangs because a link is down, and then the link must still be seen."""
        kind = KINDS[resource.partition(":")[0]]
        if not kind.off_loop:
            return self._slow
        if kind.name not in self._of_kinds:
            worker = Worker(
                f"pact-{kind.name}", self.config.file_limit, self.room, self._blobs, self.ignore, self._wake
            )
            self._of_kinds[kind.name] = worker
            self._workers.append(worker)
        return self._of_kinds[kind.name]

    def _look_at_reset(self) -> list[Sighting]:
        """After a boot: those of kinds that are looked at off the loop and that a boot resets. They are waited for, one
        kind beside the other, because they are brought back before the agent is ready; one that does not answer in
        time is looked at later.  # B1"""
        by_kind: dict[str, list[str]] = {}
        for resource in self.node.state.declared_ids():
            kind = KINDS[resource.partition(":")[0]]
            if kind.off_loop and kind.volatile and self.ignore.match(resource) is None:
                by_kind.setdefault(kind.name, []).append(resource)
        seen: dict[str, Observation] = {}

        def look(kind: str, resources: list[str]) -> None:
            of = KINDS[kind].many()
            for resource in resources:
                seen[resource] = of(split_id(resource)[1])

        threads = [threading.Thread(target=look, args=item, daemon=True) for item in by_kind.items()]
        for thread in threads:
            thread.start()
        ends_s = time.monotonic() + RESET_LOOK_S
        for thread in threads:
            thread.join(max(0.0, ends_s - time.monotonic()))
        for resource in (there := dict(seen)):
            self.watching.pending.pop(resource, None)
        return [Sighting(resource, observation) for resource, observation in there.items()]

    def _slow_done(self, sighting: Sighting, t_ns: int, wall_ns: int) -> Event:
        """A slow observation counts only if no newer one came meanwhile."""
        self._slow_running.discard(sighting.resource)
        if sighting.resource in self._overtaken:
            self._overtaken.discard(sighting.resource)
            self.watching.touch(sighting.resource, sighting.owner)
            return Ticked(t_ns, wall_ns)
        return Observed(t_ns, wall_ns, [sighting])

    def _look_at(self, wanted: list[tuple[str, Owner | None]]) -> list[Sighting]:
        """Observe now the resources that can be observed now."""
        sightings = placed(self.watching.observe(wanted, self._later))
        if self._slow_running:
            self._overtaken.update(s.resource for s in sightings if s.resource in self._slow_running)
        return sightings

    def _observe_unrecorded(self, now_ns: int) -> None:
        """Without a journal, drift is observed and shown; it is recorded when the journal is back."""
        self._note_unrecorded(self._look_at(self.watching.take(now_ns, everything=True)))

    def _retry_journal(self, now_ns: int) -> None:
        if now_ns < self._retry_journal_ns:
            return
        self._retry_journal_ns = now_ns + JOURNAL_RETRY_NS
        try:
            self.journal.probe()
            if self._reload_owed:
                self._reload()
        except JournalError:
            return
        if self._reload_owed:
            return
        log("the journal can be written again")
        self.journal_error = ""
        if not self._pay():  # a hold of the fleet must be known before anything is due
            return
        owed = self.node.state.boot_owed is not None
        sightings = self._boot_backlog() if owed else self._record_backlog()
        if self.journal_error:
            return
        self.watching.tracking.rest(False)
        self.watching.tracking.walk_again()
        self.step(Scanned(*self.now(), sightings, False))  # this also resumes rollbacks that were interrupted
        self.watching.rescan_all()
        self._pay_denied()

    def _boot_backlog(self) -> list[Sighting]:
        """What a boot reset is not brought back yet: observe everything, as at the start.  # B3"""
        sightings = list(self.unrecorded.values())
        self.unrecorded.clear()
        for resource in self.node.state.declared_ids():
            self.watching.touch(resource, None)
        while self.watching.has_due:
            sightings += self._look_at(self.watching.take(self.clock.now_ns(), everything=True))
        return sightings

    def _record_backlog(self) -> list[Sighting]:
        """Record what was observed while nothing could be recorded, in pieces: pieces that fit the free room are
        recorded, and a piece that does not fit is tried in smaller parts. Returns the sightings for interrupted
        rollbacks.  # F64
        """
        waiting, self.unrecorded = self.unrecorded, {}
        frozen = self.node.frozen()
        mine = [s for s in waiting.values() if s.resource not in frozen]
        for at in range(0, len(mine), self._backlog_piece):
            self.step(Observed(*self.now(), mine[at : at + self._backlog_piece]))
            if self.journal_error:
                left = {s.resource: s for s in mine[at:]} | {r: s for r, s in waiting.items() if r in frozen}
                self.unrecorded = {**left, **self.unrecorded}
                self._backlog_piece = max(1, self._backlog_piece // 2)
                return []
        self._backlog_piece = BACKLOG_PIECE
        return [s for r, s in waiting.items() if r in frozen]

    def look_at_unreadable(self) -> None:
        """They may be readable again, and no signature would show it.  # F9"""
        for resource in self.node.unreadable:
            if resource in self.watching:
                self.watching.touch(resource, None)

    def _save_cache(self) -> None:
        """Not while there are observations that the journal lacks: their signatures would hide them for ever. What a
        running job brings to declared state is observed, but recorded only when the job has ended.  # J4, J5"""
        if not self.journal_error and not self.node.jobs:
            waiting = [*self._slow_pending, *self._slow_running, *self.unrecorded]
            self.watching.save_cache(waiting, self.node.unreadable, self.node.state.seq, self.node.state.hash)

    def _sight(self) -> dict[str, str]:
        """The health of the observers, and of the threads that make slow observations."""
        health = self.watching.health()
        for worker in self._workers:
            since_ns = worker.stuck_since(clock.boottime_ns())
            if since_ns is not None:
                since = rfc3339(since_ns)[:19]
                health[worker.name] = f"stuck since {since}Z: what it looks at does not answer, or takes very long"
        return health

    def health(self) -> dict[str, str]:
        health = self._sight()
        if self.hooks.dropped:
            health["hooks"] = f"{self.hooks.dropped} events dropped: hooks are too slow"
        return health
