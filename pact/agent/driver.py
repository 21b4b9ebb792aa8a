"""Around the core: an event becomes a step, the step's records become durable, then its effects are carried out.

While the journal cannot be written, nothing is committed, applied or rolled back; events that the core must still get
are kept as owed, and the agent reports this.  # J1, J4
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from pact._fast import syscalls
from pact.agent import pace
from pact.agent.answering import Answering
from pact.agent.beside import append, beside
from pact.agent.cleaning import Cleaner
from pact.agent.client import Client
from pact.agent.config import Config
from pact.agent.hooks import Hooks
from pact.agent.nodekey import node_key
from pact.agent.notices import Notices
from pact.agent.owed import OWED, Owed
from pact.agent.probing import distance_n
from pact.agent.replicator import Replicator
from pact.agent.rules import MachineRules
from pact.agent.saying import say
from pact.agent.statedir import MountPoints, Underway, own_paths, require_owned, take_state_dir, wanted_contents
from pact.agent.veil import Veil
from pact.agent.watching import Watching
from pact.agent.worker import Worker
from pact.core.node import payloads
from pact.core.node.events import (
    Act,
    Acted,
    Appeared,
    AppendRecord,
    Asked,
    Caller,
    Denied,
    Discover,
    Discovered,
    Effect,
    Event,
    Look,
    Looked,
    New,
    Observed,
    Probe,
    Probed,
    Recheck,
    Reply,
    Scanned,
    Sighting,
    Ticked,
)
from pact.core.node.state import State
from pact.core.node.step import Node
from pact.core.ops import Op
from pact.core.records import Record
from pact.declared.toml import Ignore
from pact.errors import DeniedError, JournalError, PactError, StoreFullError, UnreachableError
from pact.host import clock, garbage, sharing
from pact.host.notify import Notifier, log
from pact.journal.blobs import BlobReader
from pact.journal.sqlite import FILE_NAME, SqliteJournal, load_state
from pact.journal.verifying import Verification
from pact.model import NS_PER_S, Unreadable
from pact.resources import KINDS
from pact.resources.rules import teach
from pact.resources.support.loose import LOOSE

JOURNAL_RETRY_NS: Final = 2 * NS_PER_S
SNAPSHOT_EVERY: Final = 10_000
PRUNE_AGAIN_NS: Final = 60 * NS_PER_S
BACKLOG_PIECE: Final = 64
POINTS_NS: Final = NS_PER_S
FREE_HINT: Final = "nothing was changed; free space or mend the disk, then repeat"
TRIM_RECORD_BYTES: Final = 16 << 10


class Driver(Answering):
    """One agent without its observers and its loop."""

    def __init__(self, config: Config) -> None:
        """Take the state directory, read the journal, begin to watch. Raises PactError with the reason."""
        super().__init__()
        syscalls.one_arena()
        sharing.often()
        self.config = config
        self.journal_error = ""
        self.unrecorded: dict[str, Sighting] = {}
        require_owned(config)
        self._lock = take_state_dir(config.state_dir)
        path = os.path.join(config.state_dir, FILE_NAME)
        self.journal = SqliteJournal(path, store_limit=config.store_limit)
        self.notifier = Notifier()
        self.journal.alive = lambda: self.notifier.starting("reading the journal")
        state = load_state(self.journal, verify_max=config.verify)
        self._boot = boot = clock.boot_id()
        self._mount_points = MountPoints(os.path.join(config.state_dir, "mounts"))
        kept = [text for kind in KINDS.values() for text in kind.keep_in(config.state_dir, boot)]
        for text in (*kept, *LOOSE.keep_in(os.path.join(config.state_dir, "loose"), boot)):
            log(text, 4)
        self._underway = Underway(os.path.join(config.state_dir, "underway"))
        self._owed = Owed(lambda uid: self.control.note_denied(uid))  # noqa: PLW0108 - there is no socket yet
        self._reload_owed = False  # the durable state could not even be read
        self._room_pruned = (-1, 0)
        self._backlog_piece = BACKLOG_PIECE
        clocks = {"boottime": clock.boottime_ns(), "wall_ns": clock.Clock.wall_ns()}
        offset_ns, self._reboot = clock.continue_from(state, boot, **clocks, synchronised=clock.clock_synchronised())
        self.clock = clock.Clock(offset_ns)
        self.ignore = Ignore([*config.ignore, *own_paths(config)])
        self._key = node_key(config.state_dir, lambda text: log(text, 4))
        self.veil = Veil(self._key)
        self.node = self._node_of(state)
        self._staged: dict[str, bytes] = {}
        self._staged_bytes = 0
        self._new_records: list[tuple[Record, bytes]] = []
        self._last_snapshot = self.journal.seq
        self._retry_journal_ns = 0
        self._next_points_ns = 0
        self._untrimmed = False
        self._cleaner = Cleaner(lambda: BlobReader(path))
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._blobs = blobs = BlobReader(path)
        self._verifying = Verification(path, self.journal.unverified, self._wake)
        self.worker = Worker(
            "pact-worker", config.file_limit, self.room, blobs, self.ignore, self._wake, self._underway
        )
        self._slow = Worker("pact-slow", config.file_limit, self.room, blobs, self.ignore, self._wake)
        self.asking = Worker("pact-asking", config.file_limit, self.room, blobs, self.ignore, self._wake)
        self.telling = Worker("pact-telling", config.file_limit, self.room, blobs, self.ignore, self._wake)
        self._workers = [self.worker, self._slow, self.asking, self.telling]
        self.watching = Watching(config, self.clock.now_ns(), self.ignore)
        self.watching.pace.whose = lambda resource: pace.whose(self.node.state, resource)
        self.notices = Notices(config.terminals)
        self.hooks = Hooks(config.hooks_dir, config.hooks_timeout_ns, log)
        self.link: Replicator | None = None

    def _node_of(self, state: State, jobs_from: int = 0) -> Node:
        return Node(self.config.name, MachineRules(), state, jobs_from=jobs_from, key=self._key, pause=self.pause)

    def pause(self, moved: bool) -> None:
        """The core makes a long decision: see ``Between``."""

    def now(self) -> tuple[int, int]:
        """Node time and wall time, for events."""
        return self.clock.now_ns(), self.clock.wall_ns()

    def room(self) -> int:
        """Bytes that may still be stored."""
        return max(0, self.journal.room - self._staged_bytes)

    def watch_fd(self, fd: int) -> None:
        """Wake when this descriptor is readable; the link handles it."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def watch_stream(self, fd: int, mask: int = 0) -> None:
        """Call the link's streams when this descriptor is ready. ``mask``: of a descriptor that is watched already."""
        if mask:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, select.EPOLLIN)

    def unwatch_fd(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _keep(self, blobs: Mapping[str, bytes]) -> str:
        """Make contents durable that a running job will need. Returns ``""``, or the reason why not."""
        if not self.journal_error:
            fresh = self.node.in_turns(blobs.items())
            if sum(len(data) for digest, data in fresh if not self.journal.has(digest)) > self.room():
                return StoreFullError(self.config.store_limit).message
            try:
                append(self.journal, (), blobs, self.pause)
            except JournalError as exc:
                self._journal_lost(exc, Ticked(*self.now()))
                return exc.message
        return self.journal_error

    def stage(self, blobs: Mapping[str, bytes]) -> None:
        """Stage contents to be stored with the next records. Raises StoreFullError, and then has staged nothing: an
        operation that needs room is refused before anything happens, and everything else goes on.  # F63
        """
        fresh = self.node.in_turns(digest for digest in blobs if digest not in self._staged)
        new = sum(len(blobs[digest]) for digest in fresh if not self.journal.has(digest))
        if new > self.room():
            raise StoreFullError(self.config.store_limit)
        self._staged.update(blobs)
        self._staged_bytes += new

    def _unstage(self) -> dict[str, bytes]:
        blobs, self._staged, self._staged_bytes = self._staged, {}, 0
        return blobs

    def step(self, event: Event) -> None:
        """Decide, make durable, then perform, in this order. While nothing can be recorded nothing is decided: the
        state in memory may be ahead of the durable one.  # J1, J4"""
        if self.journal_error:
            self._unstage()
            self._remember(event)
            if isinstance(event, Asked):
                self._fail_one(event.token, UnreachableError(self.journal_error, self._journal_hint()))
            return
        effects = self.node.step(event)
        rows = [(e.record, e.body) for e in effects if isinstance(e, AppendRecord)]
        if rows:
            try:
                append(self.journal, rows, self._unstage(), self.pause)
            except (JournalError, OSError) as exc:
                self._journal_lost(exc if isinstance(exc, JournalError) else JournalError(f"journal: {exc}"), event)
                return
            if isinstance(event, Discovered) and (job := self.node.jobs.get(event.job)) and job.token is not None:
                self._begun.add(job.token)  # a part of it is done, whatever happens next
            self._untrimmed |= any(len(body) > TRIM_RECORD_BYTES for _, body in rows)
            self._recorded([r for r, _ in rows])
            self._new_records += rows
            if self.link is not None:
                self.link.recorded(rows)
        for effect in effects:
            if not isinstance(effect, AppendRecord):
                self._perform(effect)
        if not self.node.jobs:
            self._unstage()

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Reply):
            self._reply(effect)
        elif isinstance(effect, Look | Probe | Act | Discover):
            self._note_begun(effect)
            job = self.node.jobs.get(effect.job)
            about = "" if job is None else job.kind if job.kind == "boot" else job.change or ""
            self.worker.submit(effect, about)
        elif isinstance(effect, Recheck):
            for resource in effect.resources:
                self.watching.touch(resource, None)
        else:
            raise AssertionError(effect)

    def _note_begun(self, effect: Look | Probe | Act | Discover) -> None:
        job = self.node.jobs.get(effect.job)
        if isinstance(effect, Act):
            self.watching.begin(effect.job, [*(s.id for s in effect.steps), *effect.below])
        if isinstance(effect, Act) and job is not None:
            # The group's job does not name the root's requests that wait for it.
            for tokens in self.node.deciding.values():
                self._begun.update(tokens)
            if job.token is not None:
                self._begun.add(job.token)

    def _recorded(self, records: Iterable[Record]) -> None:
        """Update the data that is derived from the journal."""
        for record in records:
            self.pause(True)
            said = payloads.of(record)
            if named := payloads.declared_by(said):
                teach(named, self.node.state.declared)
                here = [r for r in self.node.in_turns(named) if r in self.node.state]
                fresh = [r for r in self.node.in_turns(here) if r not in self.watching and self.ignore.match(r) is None]
                self.watching.add(self.node.in_turns(fresh))
                if self.watching.points_moved and fresh:
                    self._save_points()
                # The last observation may be old, and no more events come for it.  # C5
                for resource in self.node.in_turns(here):
                    if resource in self.watching:
                        self.watching.touch(resource, None)
                for resource in self.node.in_turns(named):
                    if resource not in self.node.state:
                        self.watching.drop(resource)
                        self.node.unreadable.pop(resource, None)
                        self.watching.tracking.look(resource)
            elif conforming := payloads.conforming(said):
                if isinstance(said, payloads.DriftCleared):
                    self.watching.pace.cleared(said.resource, self.clock.now_ns())
                for resource in self.node.in_turns(conforming):
                    if resource not in self.node.state:  # it was new below an enforced pattern
                        self.watching.drop(resource)
                    else:
                        self.watching.look_anew(resource)
            elif isinstance(said, payloads.Tracked):
                self.watching.tracking.follow(self.node.state.tracked)
            elif isinstance(said, payloads.DriftDetected):
                theirs = pace.is_others(said.actual, said.owner, pace.whose(self.node.state, said.resource))
                self.watching.recorded([said.resource], self.clock.now_ns(), pace.length(said.actual), theirs=theirs)
            say(record)
        if self.journal.seq - self._last_snapshot >= SNAPSHOT_EVERY:
            self._snapshot()

    def make_room(self) -> None:
        """If the content store is nearly full, forget contents that rollbacks replaced long ago."""
        room, now_ns = self.journal.room, self.clock.now_ns()
        if room > max(self.config.store_limit // 10, self.config.file_limit):
            return
        if room == self._room_pruned[0] and now_ns < self._room_pruned[1]:
            return  # nothing was stored since the last time, and little has become old
        if self.journal_error or self.node.jobs or self._staged:
            return  # contents that a running job has stored may not be in a record yet
        since_ns = now_ns - self.config.keep_ns  # B2: setting the wall clock makes no record old
        try:
            gone = self.journal.prune(wanted_contents(self.node.state, self.journal, since_ns))
        except JournalError as exc:
            log(str(exc), 4)
            return
        said = self._room_pruned[0] == room or room > self.config.store_limit // 10
        self._room_pruned = self.journal.room, now_ns + min(PRUNE_AGAIN_NS, self.config.keep_ns)
        if gone or not said:
            log(f"the content store is nearly full: {gone} contents that nothing declared needs were forgotten", 4)

    def _snapshot(self) -> None:
        try:
            state = self.node.state
            beside(lambda: self.journal.save_snapshot(state.seq, state.to_json()), self.pause)
            self._last_snapshot = self.journal.seq
        except JournalError as exc:
            log(str(exc), 4)
        syscalls.trim()

    def _save_points(self) -> None:
        """Save the present mount points for the next run: soon, since this run may be killed, and at every declaration.
        So an earlier mount is not taken for a later one that hides a declared path."""
        if self.watching.covered or self._owed or self.journal_error:
            return  # a later run that finds such a mount saved would never record it
        self._mount_points.save(boot_id=self.node.state.boot_id, points=self.watching.points())
        self.watching.points_moved = False
        self._next_points_ns = self.clock.now_ns() + POINTS_NS

    def _journal_lost(self, error: JournalError, event: Event) -> None:
        """Nothing of this step has happened: return to the durable state, and go on watching.  # J4"""
        until = " until it can be written" if self.journal.trusted else ""
        log(f"{error.message}; nothing is committed, applied or rolled back{until}", 2)
        self.journal_error = error.message
        self._retry_journal_ns = self.clock.now_ns() + JOURNAL_RETRY_NS
        self._unstage()
        self.watching.tracking.rest(True)
        self._reload()
        self._remember(event)
        untouched = UnreachableError(error.message, self._journal_hint())
        if error.uncertain:
            untouched = UnreachableError(
                f"{error.message}; whether what was asked for counts is not known before it can be read again",
                "mend the disk, then see pact status",
            )
        begun = UnreachableError(
            f"{error.message}; what was asked for was begun, and its result could not be recorded",
            "free space or mend the disk, then see pact status",
        )
        self._fail_all(untouched, begun)

    def _remember(self, event: Event) -> None:
        """Keep the contents of an event until it can be recorded.  # J9"""
        if isinstance(event, Observed | Scanned | Acted | Probed | Looked):
            self._note_unrecorded(event.sightings)
        if isinstance(event, Acted):
            self._note_unrecorded(event.moved)
        if isinstance(event, Appeared):
            self.watching.tracking.walk_again()
            self.watching.tracking.come_again(event.found, event.t_ns)
        if isinstance(event, OWED):
            self._owed.add(event)

    def _reload(self) -> None:
        """Return to the durable state. If the disk fails for reading too, the node goes on watching with its state in
        memory, reports this, and tries again.  # F3"""
        before = self.node
        waiting = before.pace.waiting  # whom they are the work of, nothing else tells
        self.watching.tracking.come_again((New(r, u.actual, u.owner) for r, u in waiting.items()), self.clock.now_ns())
        try:
            state = load_state(self.journal, verify_max=self.config.verify)
        except PactError as exc:
            self._reload_owed = True
            log(f"{exc.message}: it cannot be read either; what is shown may be more than is recorded", 2)
            return
        self._reload_owed = False
        garbage.replaced()
        self.node = self._node_of(state, before.jobs_numbered)
        self.node.unreadable = before.unreadable
        self.node.refusals, self.node.killed = before.refusals, before.killed
        self.node.alone_since_ns, self.node.ended_runs = before.alone_since_ns, before.ended_runs
        self.node.fleet_fence, self.node.fleet_seq = before.fleet_before

    def tell(self, event: Event) -> None:
        """Pass an event to the core, now or when the journal can be written again: the event is durable, or it is
        owed.  # J9"""
        (self._owed.add if self.journal_error else self.step)(event)

    def _pay(self) -> bool:
        """Pass the owed events to the core. Returns False if the journal was lost again."""
        while not self.journal_error and (event := self._owed.next()) is not None:
            self._hear(event)
        return not self.journal_error

    def _pay_denied(self) -> None:
        """Pass the refusals that were not recorded, after everything else."""
        while not self.journal_error and (event := self._owed.next_denied()) is not None:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        t_ns, wall_ns = self.now()
        self.step(replace(event, t_ns=t_ns, wall_ns=wall_ns))

    def _note_unrecorded(self, sightings: Iterable[Sighting]) -> None:
        """Keep observations that the journal lacks: new drift, and news of recorded drift. A resource that cannot be
        read counts as unreadable, as it would with a journal: no signature hides it, and it is observed again.  # F9"""
        for sighting in sightings:
            declared = self.node.state.declared(sighting.resource)
            seen = sighting.observation
            if isinstance(seen, Unreadable):
                if declared is not None:
                    self.node.unreadable[sighting.resource] = seen.why
                continue
            self.node.unreadable.pop(sighting.resource, None)
            known = self.node.state.change_of(sighting.resource)
            differs = declared is not None and distance_n(sighting.resource, declared.attrs, seen) != 0
            if known is not None:  # otherwise the journal may have it already
                differs = known.members[sighting.resource].actual != seen or self._reload_owed
            if differs:
                self.unrecorded[sighting.resource] = sighting
            else:
                self.unrecorded.pop(sighting.resource, None)

    def require_durable(self) -> None:
        """Raises UnreachableError while not even the durable state can be read: the state in memory may be ahead of
        it.  # F3"""
        if self._reload_owed:
            raise UnreachableError(f"{self.journal_error}, nor read: what is durable is not known", "mend the disk")

    def require_journal(self) -> None:
        """Raises UnreachableError while nothing can be recorded."""
        if self.journal_error:
            raise UnreachableError(self.journal_error, self._journal_hint())

    def _journal_hint(self) -> str:
        return FREE_HINT if self.journal.trusted else self.journal.distrusted().hint

    def ask(self, client: Client, token: int, event: Asked[Op]) -> None:
        self.expect(client, token)
        self.step(event)

    def record_denied(self, op: str, error: DeniedError, caller: Caller) -> None:
        """Journal a refusal that the core did not decide.  # S3"""
        self.tell(Denied(*self.now(), op, error.message, caller))

    def journal_json(self) -> dict[str, Any]:
        seq = self.node.state.seq
        out: dict[str, Any] = {"seq": seq, "replicated": seq if self.link is None else self.link.replicated}
        if self._verifying.left:
            out["unverified"] = self._verifying.left
        if self.room() < self.config.store_limit // 20:
            out["store"] = {"limit": self.config.store_limit, "room": self.room()}
        if self._verifying.why:
            out["verifying"] = self._verifying.why
        if self.journal_error:
            out["error"] = self.journal_error
            out["trusted"] = self.journal.trusted
        if self._reload_owed:
            out["error"] += ", nor read: what is shown may be more than is recorded"
        return out
