"""The node daemon: one loop. Poll with a bound, drain a bounded batch, step, make the records durable, then act.

The loop thread never touches what may hang; workers do. If the journal cannot be written nothing is committed, applied
or rolled back, the agent goes on watching, and says so.  # J4
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pact import __version__
from pact._fast import syscalls
from pact.agent import clock, garbage, owned, reload
from pact.agent.config import Config
from pact.agent.control import Client, Control
from pact.agent.diffing import Slices
from pact.agent.hooks import Hooks
from pact.agent.nodekey import node_key
from pact.agent.notices import Notices
from pact.agent.notify import Notifier, log
from pact.agent.probing import placed
from pact.agent.requests import Requests
from pact.agent.signatures import moved_since
from pact.agent.statedir import MountPoints, Underway, own_paths, require_owned, take_state_dir, wanted_contents
from pact.agent.tracking import discovered
from pact.agent.veil import HOOKS, Veil
from pact.agent.watching import Watching
from pact.agent.worker import Result, Worker, distance_n, observe
from pact.core.events import (
    Act,
    Acted,
    Appeared,
    AppendRecord,
    Asked,
    Caller,
    Covered,
    Denied,
    Discover,
    Discovered,
    Effect,
    Event,
    FleetTold,
    JobFailed,
    LinkChanged,
    Look,
    Looked,
    Observed,
    ObserverChanged,
    Probe,
    Probed,
    Recheck,
    Reconfigured,
    Reply,
    Scanned,
    Sighting,
    Started,
    Stopping,
    Ticked,
)
from pact.core.node import Node
from pact.core.records import Record, rfc3339
from pact.core.suspend import older
from pact.errors import EXIT_DENIED, DeniedError, JournalError, PactError, StoreFullError, UnreachableError
from pact.journal.blobs import BlobReader
from pact.journal.sqlite import FILE_NAME, SqliteJournal, load_state
from pact.journal.verifying import Verification
from pact.model import NS_PER_S, Attrs, Owner, split_id
from pact.resources import KINDS
from pact.resources.loose import LOOSE
from pact.resources.mount_options import MEMORY as MOUNT_MEMORY
from pact.resources.toml import Ignore, read_files

if TYPE_CHECKING:
    from pact.agent.link import Link

WAIT_MAX_NS: Final = 60 * NS_PER_S
JOURNAL_RETRY_NS: Final = 2 * NS_PER_S
SNAPSHOT_EVERY: Final = 10_000
CATCH_UP_MAX: Final = 64
PRUNE_AGAIN_NS: Final = 60 * NS_PER_S
BACKLOG_PIECE: Final = 64
BOOT_WAIT_NS: Final = 120 * NS_PER_S
#: So much longer a start may take after each sign of life: more than a hanging mount command may.
START_SIGN_USEC: Final = 90_000_000
EVENTS_MAX: Final = 64
#: Events that are heard later if they cannot be recorded now: nobody would say them again.
OWED: Final = (Covered, Denied, FleetTold, LinkChanged, Reconfigured)
OWED_MAX: Final = 1000
DENIED_MAX: Final = 20
POINTS_NS: Final = NS_PER_S
HEALTH_NS: Final = 5 * NS_PER_S
FREE_HINT: Final = "nothing was changed; free space or mend the disk, then repeat"
TRIM_RECORD_BYTES: Final = 16 << 10


class MachineRules:
    """The kinds' pure functions, for the core."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        return distance_n(resource, declared, actual)

    def volatile(self, resource: str) -> bool:
        return KINDS[resource.partition(":")[0]].volatile

    def meant_secret(self, resource: str, attrs: Attrs | None) -> bool:
        return KINDS[resource.partition(":")[0]].meant_secret(attrs)

    def matches(self, pattern: str, resource: str) -> bool:
        kind, name = split_id(resource)
        try:
            return pattern.startswith(kind + ":") and KINDS[kind].means(pattern[len(kind) + 1 :], name)
        except ValueError:
            return False  # another version let it in


class Agent:
    """See the module. ``run`` returns when a signal asks for it."""

    def __init__(self, config: Config) -> None:
        """Take the state directory, read the journal, begin to watch. Raises PactError and says why."""
        syscalls.one_arena()
        self.config = config
        self.journal_error = ""
        self.unrecorded: dict[str, Sighting] = {}
        require_owned(config)
        self._lock = take_state_dir(config.state_dir)
        path = os.path.join(config.state_dir, FILE_NAME)
        self.journal = SqliteJournal(path, store_limit=config.store_limit)
        state = load_state(self.journal, verify_max=config.verify)
        boot = clock.boot_id()
        self._mount_points = MountPoints(os.path.join(config.state_dir, "mounts"))
        MOUNT_MEMORY.keep_in(os.path.join(config.state_dir, "mounts-seen"), boot)
        for text in LOOSE.keep_in(os.path.join(config.state_dir, "loose"), boot):
            log(text, 4)
        self._underway = Underway(os.path.join(config.state_dir, "underway"))
        self._owed: list[Event] = []  # what the core is to hear when there is a journal again
        self._denied: list[Denied] = []
        self._denied_beyond: dict[int | None, int] = {}
        self._reload_owed = False  # not even read could what is durable be
        self._room_pruned = (-1, 0)
        self._backlog_piece = BACKLOG_PIECE
        offset_ns, self._reboot = clock.continue_from(
            state, boot, boottime=clock.boottime_ns(), wall_ns=clock.Clock.wall_ns(),
            synchronised=clock.clock_synchronised(),
        )  # fmt: skip
        self.clock = clock.Clock(offset_ns)
        self.ignore = Ignore([*config.ignore, *own_paths(config)])
        self._key = node_key(config.state_dir, lambda text: log(text, 4))
        self.veil = Veil(self._key)
        self.node = Node(config.name, MachineRules(), state, key=self._key)
        self._staged: dict[str, bytes] = {}
        self._staged_bytes = 0
        self._tokens: dict[int, Client] = {}
        self._begun: set[int] = set()  # requests for which something was set going
        self._new_records: list[tuple[Record, bytes]] = []
        self._last_snapshot = self.journal.seq
        self._retry_journal_ns = 0
        self._next_health_ns = 0
        self._next_sign_ns = 0
        self._next_points_ns = 0
        self._cycles = 0
        self._untrimmed = False
        self._stopping = ""
        self._reread = False
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._blobs = blobs = BlobReader(path)
        self._verifying = Verification(path, self.journal.unverified, self._wake)
        self.worker = Worker("pact-worker", config.file_limit, self._room, blobs, self.ignore, self._wake,
                             self._underway)  # fmt: skip
        self._slow = Worker("pact-slow", config.file_limit, self._room, blobs, self.ignore, self._wake)
        self.asking = Worker("pact-asking", config.file_limit, self._room, blobs, self.ignore, self._wake)
        self.telling = Worker("pact-telling", config.file_limit, self._room, blobs, self.ignore, self._wake)
        self._workers = (self.worker, self._slow, self.asking, self.telling)
        self.slices = Slices()
        self._slow_pending: dict[str, Owner | None] = {}
        self._slow_running: set[str] = set()
        self._overtaken: set[str] = set()
        self.watching = Watching(config, self.clock.now_ns(), self.ignore)
        self.notices = Notices(config.terminals)
        self.hooks = Hooks(config.hooks_dir, config.hooks_timeout_ns, log)
        self.notifier = Notifier()
        self.requests = Requests(self)
        self.control: Control
        self.link: Link | None = None
        self._begin(boot, offset_ns)

    # -- start and stop -----------------------------------------------------------------------------------------

    def _begin(self, boot: str, offset_ns: int) -> None:
        declared: dict[str, Any] = {}
        track: dict[str, str] = {}
        if self.node.state.seq < 0:
            found = read_files(self.config.declared, self.ignore, partial(owned.require, what="declared state"))
            declared = {r: replace(d, attrs=_marked(r, d.attrs)).to_json() for r, d in found.resources.items()}
            self.stage(found.blobs)
            track = found.track
        started = Started(
            *self.now(), boot, offset_ns, self.config.settings(), __version__, self._reboot, declared,
            tuple(self.config.declared), clustered=bool(self.config.parents), track=track,
        )  # fmt: skip
        self.step(started)
        if self.journal_error:
            raise JournalError(self.journal_error, "free space or mend the disk, then start the agent again")
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.watching.wake_with(self._epoll)
        self.watching.remember_points(self._mount_points.load(boot))
        self.watching.refresh_places()  # before anything is looked at: a path that may hang never comes to the loop
        self.watching.add(r for r in self.node.state.declared_ids() if self.ignore.match(r) is None)
        self.watching.refresh_mounts()
        self.watching.load_cache(lambda seq, hash_: moved_since(self.journal, seq, hash_))
        self.watching.rescan_all()
        sightings: list[Sighting] = []
        for resource in self.node.state.declared_ids() if self._reboot else ():
            if self.ignore.match(resource) is None and KINDS[resource.partition(":")[0]].volatile:
                self.watching.touch(resource, None)  # whatever a signature of the last boot says
        for resource in self.node.state.member_of:
            declared_value = self.node.state.declared(resource)
            if self.ignore.match(resource) is None:
                self.watching.touch(resource, None)
            elif declared_value is not None:  # ignored since it drifted: it is no drift any more
                sightings.append(Sighting(resource, declared_value.attrs))
        while self.watching.has_due:
            self._starting()
            sightings += self._look_at(self.watching.take(self.clock.now_ns(), everything=True))
        self.step(Scanned(*self.now(), sightings, self._reboot, dict(self._underway.deaths)))
        self._wait_for_boot_job()
        self.watching.tracking.follow(self.node.state.tracked)
        self._check_health()
        self.control = Control(self.config.socket, self._epoll, self.config.admin_groups, self.config.ops_groups)
        if self.config.parents:
            from pact.agent.link import Link

            self.link = Link(self)

    def _wait_for_boot_job(self) -> None:
        """What the reboot reset is brought back before the agent says that it is ready.  # B1"""
        ends_ns = self.clock.now_ns() + BOOT_WAIT_NS
        while any(j.kind == "boot" for j in self.node.jobs.values()) and self.clock.now_ns() < ends_ns:
            self._starting()
            select.select([self._wake_fd], [], [], 1.0)
            self._take_results()

    def _starting(self) -> None:
        """The service manager waits on: what it would kill now would begin again.  # B3"""
        now_ns = self.clock.now_ns()
        if now_ns >= self._next_sign_ns:
            self._next_sign_ns = now_ns + NS_PER_S
            self.notifier.send(f"EXTEND_TIMEOUT_USEC={START_SIGN_USEC}", "STATUS=bringing back what the boot reset")

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._epoll.register(read_fd, select.EPOLLIN)
        garbage.set_aside()
        syscalls.trim()
        self.notifier.send("READY=1", f"STATUS={self.node.state.declared_count} resources declared")
        log(f"ready on {self.config.socket}: {self.node.state.declared_count} resources declared")
        try:
            while not self._stopping:
                self._turn(read_fd)
        finally:
            signal.set_wakeup_fd(-1)
            os.close(read_fd)
            os.close(write_fd)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._reread = True
        else:
            self._stopping = signal.Signals(number).name

    def close(self) -> None:
        """End cleanly: what has begun is finished, the snapshot and the signatures are saved."""
        self.notifier.send("STOPPING=1")
        if self.link is not None:
            self.link.close()
            self.link = None
        self.control.close()
        self.hooks.close()
        ended = self.worker.close(30.0)
        ended &= self._slow.close(1.0)
        ended &= self.asking.close(1.0)
        ended &= self.telling.close(1.0)
        self._take_results()
        if not self.journal_error:
            self.step(Stopping(*self.now(), self._stopping or "closed"))
            self._snapshot()
            self._save_cache()
            self._save_points()
        self.watching.close()
        self._verifying.close()
        if ended:
            self._blobs.close()  # the last connection folds SQLite's log into the file
        self.journal.close()
        self._epoll.close()
        os.close(self._wake_fd)
        self._underway.close()
        os.close(self._lock)
        if not ended:
            os._exit(0)  # a worker hangs in the kernel; everything is saved

    # -- the loop -----------------------------------------------------------------------------------------------

    def now(self) -> tuple[int, int]:
        """Node time and wall time, for events."""
        return self.clock.now_ns(), self.clock.wall_ns()

    def _on_the_wall(self, t_ns: int) -> str:
        """A node time as people here read it."""
        now_ns, wall_ns = self.now()
        return time.strftime("%H:%M:%S", time.localtime((wall_ns + t_ns - now_ns) // NS_PER_S))

    def _room(self) -> int:
        return max(0, self.journal.room - self._staged_bytes)

    def watch_fd(self, fd: int) -> None:
        """Wake when this descriptor is readable; what it means is the link's business."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def unwatch_fd(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _timeout_s(self) -> float:
        now_ns = self.clock.now_ns()
        if self.slices.runs() or self.control.waiting() or (self.watching.has_due and not self.journal_error):
            return 0.0
        due = [now_ns + WAIT_MAX_NS, self.watching.next_ns()]
        new_ns = None if self.journal_error else self.watching.tracking.next_ns(now_ns)
        if new_ns is not None:
            due.append(new_ns)
        if self._untrimmed:
            due.append(self._next_health_ns)
        if self.watching.points_moved and not self.journal_error:
            due.append(self._next_points_ns)
        if (pause_s := self.control.pause_s()) is not None:
            due.append(now_ns + int(pause_s * NS_PER_S))
        if (deaf_s := self.control.deaf_s()) is not None:
            due.append(now_ns + int(deaf_s * NS_PER_S))
        if (sign_s := self.control.next_sign_s()) is not None:
            due.append(now_ns + int(sign_s * NS_PER_S))
        wake_ns = self.node.next_wake_ns()
        if self.journal_error:
            due.append(self._retry_journal_ns)
        elif wake_ns is not None:
            due.append(wake_ns)
        if self.link is not None:
            due.append(self.link.next_wake_ns())
        notice_ns = self.notices.next_ns()
        if notice_ns is not None:
            due.append(notice_ns)
        hook_ns = self.hooks.next_end_ns()
        if hook_ns is not None:
            due.append(hook_ns)
        if self.notifier.watchdog_ns:
            due.append(now_ns + self.notifier.watchdog_ns // 2)
        return max(0, min(due) - now_ns) / NS_PER_S + 0.0005

    def _turn(self, signal_fd: int) -> None:
        for fd, mask in self._epoll.poll(self._timeout_s(), EVENTS_MAX):
            if fd == self._wake_fd:
                self._take_results()
            elif fd == self.control.fd:
                self.control.accept()
            elif fd in self.control.clients:
                self.control.ready(fd, mask)
            elif fd in self.hooks.running:
                self._epoll.unregister(fd)
                self.hooks.reap(fd)
            elif fd == signal_fd:
                os.read(signal_fd, 64)
        if self._reread:
            self._reread = False
            reload.reread(self)
        if self._verifying.error is not None and self.journal.trusted:
            self.journal.distrust(self._verifying.error)
            self._journal_lost(self.journal.distrusted(), Ticked(*self.now()))
        self.control.serve(self.requests.line)
        self.requests.tellers.turn()
        self.slices.turn(self)
        self.control.listen_again()
        self.control.show_life()
        now_ns = self.clock.now_ns()
        self.watching.drain_in_time(now_ns)
        self.watching.rescan_due(now_ns)
        if self.journal_error:
            self._observe_unrecorded(now_ns)
            self._retry_journal(now_ns)
        else:
            self._observe(now_ns)
            self._track(now_ns)
            wake_ns = self.node.next_wake_ns()
            if wake_ns is not None and wake_ns <= now_ns:
                self.step(Ticked(*self.now()))
        if now_ns >= self._next_health_ns:
            self._check_health()
            garbage.search(quiet=not (self.node.jobs or self.slices.runs() or self.control.waiting()))
        if self.watching.cycles != self._cycles:
            self._cycles = self.watching.cycles
            for resource in self.node.unreadable:  # it may be readable again, and no signature says so  # F9
                if resource in self.watching:
                    self.watching.touch(resource, None)
        if self.watching.cycle_ended:
            self._save_cache()
        if self.watching.points_moved and now_ns >= self._next_points_ns:
            self._save_points()
        if self.link is not None:
            self.link.turn()
        self._publish()
        self.notices.flush(now_ns)
        self.hooks.kill_overdue(now_ns)
        for fd in self.hooks.start_due(now_ns):
            self._epoll.register(fd, select.EPOLLIN)
        if self.notifier.watchdog_ns:
            self.notifier.send("WATCHDOG=1")

    def catch_up(self, *, everything: bool = True) -> None:
        """See what has happened up to now, so that an answer is not older than its question. Not ``everything``: what
        is in constant motion is looked at at its own pace.  # F18, S3"""
        for _ in range(CATCH_UP_MAX):
            more = self.watching.drain()
            if self.journal_error:
                self._observe_unrecorded(self.clock.now_ns())
                return
            if self.watching.covered:
                self._cover()
            wanted = self.watching.take(self.clock.now_ns(), everything=everything)
            if wanted:
                self.step(Observed(*self.now(), self._look_at(wanted)))
            self._track(self.clock.now_ns(), everything=everything)
            if not more and not self.watching.has_due:
                break
        if not self.journal_error:
            self.step(Ticked(*self.now()))

    def _track(self, now_ns: int, *, everything: bool = False) -> None:
        """What is new below tracked patterns, or gone again.  # U1"""
        tracking = self.watching.tracking
        found, gone = tracking.take(self.node, now_ns, everything=everything)
        beyond = tracking.beyond()
        if found or gone or beyond is not None:
            self.step(Appeared(*self.now(), found, gone, beyond))
        for kind in tracking.poll(now_ns):
            self._slow.call(partial(self._polled, kind, tracking.kinds.get(kind, [])))

    def _polled(self, kind: str, patterns: Sequence[str]) -> Result:
        names = discovered(kind, patterns)
        compared = self.watching.tracking.compared
        return Result(0, lambda t, w: Appeared(t, w, *compared(kind, names, self.node)))

    def _cover(self) -> None:
        """Record mounts that hide declared paths."""
        covered, self.watching.covered = self.watching.covered, {}
        for resource, (attrs, owner) in covered.items():
            if self.ignore.match(resource) is None:
                self.tell(Covered(*self.now(), {resource: attrs}, owner))
        self._save_points()

    def _save_points(self) -> None:
        """What is mounted now, for the next run: soon, as this one may be killed, and whenever something is declared:
        a mount that was there before is not taken for one that came later and hides it."""
        if self.watching.covered or self._owed or self.journal_error:
            return  # a run that finds it known would never record it
        self._mount_points.save(boot_id=self.node.state.boot_id, points=self.watching.points())
        self.watching.points_moved = False
        self._next_points_ns = self.clock.now_ns() + POINTS_NS

    def _observe(self, now_ns: int) -> None:
        if self.watching.covered:
            self._cover()
        wanted = self.watching.take(now_ns)
        if wanted:
            sightings = self._look_at(wanted)
            if sightings:
                self.step(Observed(*self.now(), sightings))

    def _later(self, resource: str, owner: Owner | None) -> None:
        """Observe off the loop: it is large, or lies on a file system that may hang."""
        waiting = resource in self._slow_pending
        if owner is not None or not waiting:
            self._slow_pending[resource] = owner
        if waiting:
            return

        def work() -> Result:
            self._slow_running.add(resource)
            owner_then = self._slow_pending.pop(resource, None)
            (seen,) = placed([Sighting(resource, observe(resource), owner_then)])
            return Result(0, lambda t, w: self._slow_done(seen, t, w))

        self._slow.call(work)

    def _slow_done(self, sighting: Sighting, t_ns: int, wall_ns: int) -> Event:
        """What was seen slowly counts only if nothing newer was seen meanwhile."""
        self._slow_running.discard(sighting.resource)
        if sighting.resource in self._overtaken:
            self._overtaken.discard(sighting.resource)
            self.watching.touch(sighting.resource, sighting.owner)
            return Ticked(t_ns, wall_ns)
        return Observed(t_ns, wall_ns, [sighting])

    def _look_at(self, wanted: list[tuple[str, Owner | None]]) -> list[Sighting]:
        """Observe now what can be observed now."""
        sightings = placed(self.watching.observe(wanted, self._later))
        if self._slow_running:
            self._overtaken.update(s.resource for s in sightings if s.resource in self._slow_running)
        return sightings

    def _take_results(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass
        for worker in self._workers:
            while not worker.results.empty():
                self._take_result(worker.results.get_nowait())

    def _take_result(self, result: Result) -> None:
        now = self.now()
        if result.stored is not None:
            result.stored.put(self._keep(result.blobs))
            return
        try:
            self.stage(result.blobs)
        except StoreFullError as exc:  # others took the room meanwhile
            result = Result(result.job, None, {}, exc)
        event: Event
        if result.make is None:
            assert result.error is not None
            event = JobFailed(*now, result.job, result.error)
        else:
            event = result.make(*now)
        if isinstance(event, Acted):
            self.watching.drain()
            self.watching.end(event.job)
        if isinstance(event, Asked) and event.token not in self._tokens:
            return  # it was answered meanwhile: that nothing was changed is final
        if self.journal_error:
            if isinstance(event, Observed | Acted):
                self._note_unrecorded(event.sightings)
            if isinstance(event, Acted):
                self._note_unrecorded(event.moved)
            return
        self.watching.drain()
        self.step(event)
        if isinstance(event, Looked | Probed):  # seen by a worker, while the loop may have seen something newer
            for sighting in event.sightings:
                if sighting.resource in self.watching:
                    self.watching.touch(sighting.resource, None)

    # -- the step -----------------------------------------------------------------------------------------------

    def _keep(self, blobs: Mapping[str, bytes]) -> str:
        """Make contents durable that a job under way will need. ``""``, or why not."""
        if not self.journal_error:
            if sum(len(data) for digest, data in blobs.items() if not self.journal.has(digest)) > self._room():
                return StoreFullError(self.config.store_limit).message
            try:
                self.journal.append((), blobs)
            except JournalError as exc:
                self._journal_lost(exc, Ticked(*self.now()))
                return exc.message
        return self.journal_error

    def stage(self, blobs: Mapping[str, bytes]) -> None:
        """Contents to be stored with the next records. Raises StoreFullError, and has staged nothing: what needs room
        is refused before anything happens, and everything else goes on.  # F63
        """
        new = sum(len(data) for digest, data in blobs.items()
                  if digest not in self._staged and not self.journal.has(digest))  # fmt: skip
        if new > self._room():
            raise StoreFullError(self.config.store_limit)
        self._staged.update(blobs)
        self._staged_bytes += new

    def _unstage(self) -> dict[str, bytes]:
        blobs, self._staged, self._staged_bytes = self._staged, {}, 0
        return blobs

    def step(self, event: Event) -> None:
        """Decide, make durable, then perform, in this order. While nothing can be recorded nothing is decided: what is
        in memory may be ahead of what is durable.  # J1, J4"""
        if self.journal_error:
            self._unstage()
            self._remember(event)
            if isinstance(event, Asked) and (client := self._tokens.pop(event.token, None)) is not None:
                client.tokens.discard(event.token)
                self.requests.fail(client, UnreachableError(self.journal_error, self._journal_hint()))
                self.control.flush(client)
            return
        effects = self.node.step(event)
        rows = [(e.record, e.body) for e in effects if isinstance(e, AppendRecord)]
        if rows:
            try:
                self.journal.append(rows, self._unstage())
            except (JournalError, OSError) as exc:
                self._journal_lost(exc if isinstance(exc, JournalError) else JournalError(f"journal: {exc}"), event)
                return
            if isinstance(event, Discovered) and (job := self.node.jobs.get(event.job)) and job.token is not None:
                self._begun.add(job.token)  # a part of it is done, whatever comes
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
            client = self._tokens.pop(effect.token, None)
            self._begun.discard(effect.token)
            if client is not None and self.control.connected(client):
                client.tokens.discard(effect.token)
                if effect.exit_code == EXIT_DENIED and not client.admin:
                    self.control.note_denied(client.caller.actor.uid)
                result = effect.result if client.admin else self.veil.masked(effect.result, client.caller)  # S2
                said = effect.message if client.admin else self.veil.told(effect.message, effect.result)
                client.send({"ok": effect.exit_code == 0, "exit": effect.exit_code, "message": said,
                             "hint": effect.hint, "result": result})  # fmt: skip
                self.control.flush(client)
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
            for tokens in self.node.deciding.values():  # whom the root asked for, the group's job does not say
                self._begun.update(tokens)
            if job.token is not None:
                self._begun.add(job.token)

    def _recorded(self, records: Iterable[Record]) -> None:
        """Keep what is derived from the journal up to date."""
        for record in records:
            data = record.data
            if record.type in ("declared", "adopted", "applied", "committed", "commit_expired"):
                named = [*data.get("resources", ()), *data.get("baseline", ()), *data.get("forgotten", ())]
                here = [r for r in named if r in self.node.state]
                fresh = [r for r in here if r not in self.watching and self.ignore.match(r) is None]
                self.watching.add(fresh)
                if self.watching.points_moved and fresh:
                    self._save_points()
                for resource in here:  # what was read may be long ago, and no event comes any more  # C5
                    if resource in self.watching:
                        self.watching.touch(resource, None)
                for resource in named:
                    if resource not in self.node.state:
                        self.watching.drop(resource)
                        self.node.unreadable.pop(resource, None)
                        self.watching.tracking.look(resource)
            elif record.type in ("drift_cleared", "rolled_back", "rollback_failed"):
                named = [data["resource"]] if "resource" in data else data.get("results") or data.get("restored", ())
                for resource in named:
                    if resource not in self.node.state:  # it was new below an enforced pattern
                        self.watching.drop(resource)
                    else:
                        self.watching.look_anew(resource)
            elif record.type == "tracked":
                self.watching.tracking.follow(self.node.state.tracked)
            elif record.type == "drift_detected":
                self.watching.recorded([data["resource"]], self.clock.now_ns())
            self._log(record)
        if self.journal.seq - self._last_snapshot >= SNAPSHOT_EVERY:
            self._snapshot()

    def _log(self, record: Record) -> None:
        data = record.data
        if record.type == "rolled_back":
            why = {"expired": ", whose window has ended", "retry": ", whose consumers have left"}.get(data["cause"], "")
            few = ", ".join(sorted(data["results"])[:5])
            log(f"rolled back {data['change']} of {data['owner']['user']}{why}: {few}")
        elif record.type == "commit_expired":
            log(f"a commit of {data['owner']['user']} for a time has ended: {', '.join(sorted(data['resources'])[:5])}")
        elif record.type in ("rollback_blocked", "rollback_failed"):
            log(f"{record.type.replace('_', ' ')}: {data['change']}: {data['reason']}", 4)
        elif record.type in ("emergency_started", "emergency_stale", "emergency_ended", "observer_blind"):
            log(record.type.replace("_", " ") + ": " + str(data.get("reason") or data.get("why") or data.get("how")), 4)

    def make_room(self) -> None:
        """When the content store is nearly full: contents that rollbacks replaced long ago are forgotten."""
        room, now_ns = self.journal.room, self.clock.now_ns()
        if room > max(self.config.store_limit // 10, self.config.file_limit):
            return
        if room == self._room_pruned[0] and now_ns < self._room_pruned[1]:
            return  # nothing came since the last time, and little has become old
        if self.journal_error or self.node.jobs or self._staged:
            return  # what a job under way has stored, no record may name yet
        since_ns = now_ns - self.config.keep_ns  # B2: a stepped wall clock makes nothing old
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
            self.journal.save_snapshot(self.node.state.seq, self.node.state.to_json())
            self._last_snapshot = self.journal.seq
        except JournalError as exc:
            log(str(exc), 4)
        syscalls.trim()

    # -- a journal that cannot be written -----------------------------------------------------------------------

    def _journal_lost(self, error: JournalError, event: Event) -> None:
        """Nothing of this step has happened: return to what is durable, and go on watching.  # J4"""
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
            untouched = UnreachableError(f"{error.message}; whether what was asked for counts is not known before "
                                         "it can be read again", "mend the disk, then see pact status")  # fmt: skip
        begun = UnreachableError(f"{error.message}; what was asked for was begun, and its result could not be recorded",
                                 "free space or mend the disk, then see pact status")  # fmt: skip
        for token, client in self._tokens.items():
            if self.control.connected(client):
                client.tokens.discard(token)
                self.requests.fail(client, begun if token in self._begun else untouched)
                self.control.flush(client)
        self._tokens.clear()
        self._begun.clear()

    def _remember(self, event: Event) -> None:
        """What an event tells, until it can be recorded.  # J9"""
        if isinstance(event, Observed | Scanned | Acted | Probed | Looked):
            self._note_unrecorded(event.sightings)
        if isinstance(event, Acted):
            self._note_unrecorded(event.moved)
        if isinstance(event, Appeared):
            self.watching.tracking.walk_again()
        if isinstance(event, OWED):
            self._owe(event)

    def _reload(self) -> None:
        """Back to what is durable. A disk that fails reads too: the node goes on watching with what it has in memory,
        says so, and tries again.  # F3"""
        before = self.node
        try:
            state = load_state(self.journal, verify_max=self.config.verify)
        except PactError as exc:
            self._reload_owed = True
            log(f"{exc.message}: it cannot be read either; what is shown may be more than is recorded", 2)
            return
        self._reload_owed = False
        garbage.replaced()
        self.node = Node(self.config.name, MachineRules(), state, jobs_from=before.jobs_numbered, key=self._key)
        self.node.unreadable = before.unreadable
        self.node.refusals, self.node.killed = before.refusals, before.killed
        self.node.alone_since_ns, self.node.fleet_seq = before.alone_since_ns, before.fleet_seq

    def tell(self, event: Event) -> None:
        """The core hears it now, or when there is a journal again: it is durable, or it is owed.  # J9"""
        if self.journal_error:
            self._owe(event)
        else:
            self.step(event)

    def _owe(self, event: Event) -> None:
        """What is owed, in order; of what the newest alone counts, the newest. Refusals come last, and are few of one
        person: nobody keeps others' drift from being recorded with his."""
        if isinstance(event, FleetTold) and any(isinstance(e, FleetTold) and older(event, e) for e in self._owed):
            return  # a word of the root that was late
        if isinstance(event, FleetTold | LinkChanged | Reconfigured):
            self._owed = [e for e in self._owed if type(e) is not type(event)]
        if isinstance(event, Denied):
            uid = event.caller.actor.uid
            self.control.note_denied(uid)
            mine = [e for e in self._denied if e.caller.actor.uid == uid]
            self._denied_beyond[uid] = self._denied_beyond.get(uid, 0) + (len(mine) >= DENIED_MAX)
            if len(mine) < DENIED_MAX and len(self._denied) < OWED_MAX:
                self._denied.append(event)
        elif len(self._owed) < OWED_MAX:
            self._owed.append(event)
        else:
            log("more was mounted over declared paths than is remembered while nothing can be recorded", 4)

    def _pay(self) -> bool:
        """Tell the core what it has not heard. False if the journal was lost again."""
        self._owed.sort(key=lambda e: isinstance(e, Covered))  # a stop of the fleet is heard before anything else
        while self._owed and not self.journal_error:
            event = self._owed.pop(0)
            t_ns, wall_ns = self.now()
            self.step(replace(event, t_ns=t_ns, wall_ns=wall_ns))
        return not self.journal_error

    def _pay_denied(self) -> None:
        """The refusals that were not recorded, after everything else. Of one person's many the last says how many."""
        while self._denied and not self.journal_error:
            event = self._denied.pop(0)
            uid = event.caller.actor.uid
            beyond = 0 if any(e.caller.actor.uid == uid for e in self._denied) else self._denied_beyond.pop(uid, 0)
            why = f"{event.why}; and {beyond} more like it while nothing could be recorded" if beyond else event.why
            t_ns, wall_ns = self.now()
            self.step(replace(event, t_ns=t_ns, wall_ns=wall_ns, why=why))

    def _observe_unrecorded(self, now_ns: int) -> None:
        """Without a journal drift is seen and shown, and recorded when the journal is back."""
        self._note_unrecorded(self._look_at(self.watching.take(now_ns, everything=True)))

    def _note_unrecorded(self, sightings: Iterable[Sighting]) -> None:
        """Keep what the journal does not know: what differs, and what became of drift that it knows."""
        for sighting in sightings:
            declared = self.node.state.declared(sighting.resource)
            seen = sighting.observation
            known = self.node.state.change_of(sighting.resource)
            differs = declared is not None and (isinstance(seen, dict) or seen is None) and (
                distance_n(sighting.resource, declared.attrs, seen) != 0)  # fmt: skip
            if differs or known is not None:
                self.unrecorded[sighting.resource] = sighting
            else:
                self.unrecorded.pop(sighting.resource, None)

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
        if not self._pay():  # a stop of the fleet is heard before anything is due
            return
        owed = self.node.state.boot_owed is not None
        sightings = self._boot_backlog() if owed else self._record_backlog()
        if self.journal_error:
            return
        self.watching.tracking.rest(False)
        self.watching.tracking.walk_again()
        self.step(Scanned(*self.now(), sightings, False))  # also takes up rollbacks that were cut off
        self.watching.rescan_all()
        self._pay_denied()

    def _boot_backlog(self) -> list[Sighting]:
        """What a boot has reset is not brought back yet: everything is looked at, as at the start.  # B3"""
        sightings = list(self.unrecorded.values())
        self.unrecorded.clear()
        for resource in self.node.state.declared_ids():
            self.watching.touch(resource, None)
        while self.watching.has_due:
            sightings += self._look_at(self.watching.take(self.clock.now_ns(), everything=True))
        return sightings

    def _record_backlog(self) -> list[Sighting]:
        """What was seen while nothing could be recorded, in pieces: what there is room for is recorded, and a piece for
        which there is none is tried smaller. Returns what belongs to rollbacks that were cut off.  # F64
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

    def require_durable(self) -> None:
        """Raises UnreachableError while not even what is durable can be read: what is known may be ahead.  # F3"""
        if self._reload_owed:
            raise UnreachableError(f"{self.journal_error}, nor read: what is durable is not known", "mend the disk")

    def require_journal(self) -> None:
        """Raises UnreachableError while nothing can be recorded."""
        if self.journal_error:
            raise UnreachableError(self.journal_error, self._journal_hint())

    def _journal_hint(self) -> str:
        return FREE_HINT if self.journal.trusted else self.journal.distrusted().hint

    # -- for requests -------------------------------------------------------------------------------------------

    def expect(self, client: Client, token: int) -> None:
        self._tokens[token] = client
        client.tokens.add(token)

    def ask(self, client: Client, token: int, event: Asked) -> None:
        self.expect(client, token)
        self.step(event)

    def failed_read(self, client: Client, token: int, error: PactError, t_ns: int, wall_ns: int) -> Event:
        """Answer a request that a worker could not carry out, unless it was answered meanwhile."""
        self._tokens.pop(token, None)
        if token in client.tokens and self.control.connected(client):
            client.tokens.discard(token)
            self.requests.fail(client, error)
            self.control.flush(client)
        return Ticked(t_ns, wall_ns)

    def record_denied(self, op: str, error: DeniedError, caller: Caller) -> None:
        """A refusal that the core did not decide is journaled all the same.  # S3"""
        self.tell(Denied(*self.now(), op, error.message, caller))

    def journal_json(self) -> dict[str, Any]:
        seq = self.node.state.seq
        out: dict[str, Any] = {"seq": seq, "replicated": seq if self.link is None else self.link.replicated}
        if self._verifying.left:
            out["unverified"] = self._verifying.left
        if self._room() < self.config.store_limit // 20:
            out["store"] = {"limit": self.config.store_limit, "room": self._room()}
        if self._verifying.why:
            out["verifying"] = self._verifying.why
        if self.journal_error:
            out["error"] = self.journal_error
            out["trusted"] = self.journal.trusted
        if self._reload_owed:
            out["error"] += ", nor read: what is shown may be more than is recorded"
        return out

    def _save_cache(self) -> None:
        """Not while something was seen that the journal does not know: its signature would hide it for ever. What a job
        under way is bringing to declared state is seen, and recorded only when it has ended.  # J4, J5"""
        if not self.journal_error and not self.node.jobs:
            waiting = [*self._slow_pending, *self._slow_running, *self.unrecorded]
            self.watching.save_cache(waiting, self.node.unreadable, self.node.state.seq, self.node.state.hash)

    def _sight(self) -> dict[str, str]:
        """How the observers are, and the threads that look where it may take long."""
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

    def _check_health(self) -> None:
        """A blind observer is an event, never silence.  # O1"""
        if self.worker.relieve(clock.boottime_ns()):
            log("what a commit or a rollback looks at does not answer; the others go on without it", 4)
        self.make_room()
        self._next_health_ns = self.clock.now_ns() + HEALTH_NS
        if self._untrimmed and not self.node.jobs and not self.watching.has_due:
            self._untrimmed = False
            syscalls.trim()
            self._save_cache()  # so that the next start is quick even if this run is killed soon
        if self.journal_error:
            return
        health = self._sight()
        for name in {**health, **self.node.state.blind}:
            why = health.get(name, "ok")
            why = "" if why == "ok" else why
            if why != self.node.state.blind.get(name, ""):
                self.step(ObserverChanged(*self.now(), name, why))
        if self.watching.lost and not self.watching.has_due:
            for name in list(self.watching.lost):
                self.watching.observers.recovered(name)

    def _publish(self) -> None:
        """Durable records go to followers and hooks."""
        if not self._new_records:
            return
        rows: Sequence[tuple[Record, bytes]] = self._new_records
        self._new_records = []
        self.notices.take((r for r, _ in rows), self.node, self.clock.now_ns(), self._on_the_wall)
        followers = [c for c in self.control.clients.values() if c.watching]
        for client in followers:
            for record, body in rows:
                client.send(b'{"record":' + self.veil.record_line(body, record.hash, client.caller) + b"}")
            self.control.flush(client)
        self.hooks.events([self.veil.record_line(body, record.hash, HOOKS) for record, body in rows]
                          if self.hooks.paths() else [])  # fmt: skip


def _marked(resource: str, attrs: Attrs | None) -> Attrs | None:
    kind, name = split_id(resource)
    return KINDS[kind].marked(name, attrs)


def serve(config: Config, started: Callable[[Agent], None] | None = None) -> None:
    """Run an agent until a signal ends it. Raises PactError if it cannot start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what it asks for, reading the configuration, is being done
    agent = Agent(config)
    try:
        if started is not None:
            started(agent)
        agent.run()
    finally:
        agent.close()
