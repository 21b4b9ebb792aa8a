"""The node daemon: one loop. Poll with a bound, drain a bounded batch, step, make the records durable, then act.

The loop's thread never touches anything that may hang; workers do. While the journal cannot be written, nothing is
committed, applied or rolled back; the agent goes on watching, and reports this.  # J4
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from pact import __version__
from pact._fast import syscalls
from pact.agent import reload, telling, views
from pact.agent.batch import Batch
from pact.agent.between import EVENTS_MAX, Between
from pact.agent.config import Config
from pact.agent.control import Control
from pact.agent.leftcommands import LOOK_S, LeftAlone
from pact.agent.prompt import Prompt
from pact.agent.requests import Requests
from pact.agent.sessions import Sessions
from pact.agent.sightings import Sightings
from pact.agent.signatures import moved_since
from pact.agent.veil import HOOKS
from pact.agent.worker import Result, Worker
from pact.core.node.events import (
    Acted,
    Appeared,
    Asked,
    Looked,
    Observed,
    ObserverChanged,
    Probed,
    RunsEnded,
    Scanned,
    Sighting,
    Started,
    Stopping,
    Ticked,
)
from pact.core.records import Record
from pact.declared.toml import read_files
from pact.errors import JournalError, StoreFullError
from pact.host import clock, garbage, owned, reach
from pact.host.notify import log
from pact.model import NS_PER_S, Attrs, split_id
from pact.resources import KINDS
from pact.resources.rules import teach

WAIT_MAX_NS: Final = 60 * NS_PER_S
BOOT_LOOK_NS: Final = 20 * NS_PER_S
BOOT_WAIT_NS: Final = 120 * NS_PER_S
HEALTH_NS: Final = 5 * NS_PER_S


class Agent(Sightings):
    """See the module. ``run`` returns after a signal that ends the agent."""

    def __init__(self, config: Config) -> None:
        """Take the state directory, read the journal, begin to watch. Raises PactError with the reason."""
        self.between = Between(self)  # a start decides, too
        super().__init__(config)
        self._next_health_ns = 0
        self._cycles = 0
        self._ended_runs: list[str] = []
        self._left: LeftAlone | None = None
        self._stopping = ""
        self._reread = self._shown_error = False
        self.requests = Requests(self)
        self.watching.in_turns = self.between.in_turns
        self._begin()

    def _begin(self) -> None:
        reach.must_reach(p.url for p in self.config.parents)
        declared: dict[str, Any] = {}
        track: dict[str, str] = {}
        if self.node.state.seq < 0:
            found = read_files(self.config.declared, self.ignore, partial(owned.require, what="declared state"))
            declared = {r: replace(d, attrs=_marked(r, d.attrs)).to_json() for r, d in found.resources.items()}
            self.stage(found.blobs)
            track = found.track
        started = Started(
            *self.now(),
            self._boot,
            self.clock.offset_ns,
            self.config.settings(),
            __version__,
            self._reboot,
            declared,
            tuple(self.config.declared),
            clustered=bool(self.config.parents),
            track=track,
        )
        self.step(started)
        if self.journal_error:
            raise JournalError(self.journal_error, "free space or mend the disk, then start the agent again")
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.watching.wake_with(self._epoll)
        self.watching.remember_points(self._mount_points.load(self._boot))
        self.watching.refresh_places()  # before anything is observed: the loop never touches a path that may hang
        teach(self.node.state.declared_ids(), self.node.state.declared)
        self.watching.add(r for r in self.node.state.declared_ids() if self.ignore.match(r) is None)
        self.watching.refresh_mounts()
        self.watching.load_cache(lambda seq, hash_: moved_since(self.journal, seq, hash_))
        self.watching.rescan_all(self._starting)
        if hidden := self.watching.tracking.closed(self.node):  # before anything else is recorded of them
            self.step(Appeared(*self.now(), hidden))
        self.veil.hide(self.node.state.closed)
        sightings: list[Sighting] = []
        for resource in self.node.state.declared_ids() if self._reboot else ():
            if self.ignore.match(resource) is None and KINDS[resource.partition(":")[0]].volatile:
                self.watching.touch(resource, None)  # a signature of the last boot does not count
        for resource in self.node.state.member_of:
            declared_value = self.node.state.declared(resource)
            if self.ignore.match(resource) is None:
                self.watching.touch(resource, None)
            elif declared_value is not None:  # ignored since it drifted: it is no longer drift
                sightings.append(Sighting(resource, declared_value.attrs))
        if self._reboot:
            sightings += self._look_at_reset()
        while self.watching.has_due:
            self._starting()
            sightings += self._look_at(self.watching.take(self.clock.now_ns(), everything=True))
        sightings += self._slow_sightings() if self._reboot else ()
        self.step(Scanned(*self.now(), sightings, self._reboot, dict(self._underway.deaths)))
        self._wait_for_boot_job()
        self.watching.tracking.follow(self.node.state.tracked)
        self._check_health()
        self.control = Control(self.config.socket, self._epoll, self.config.admin_groups, self.config.ops_groups)
        self.batch = Batch(self, self._batch_worker)
        self.sessions = self.requests.sessions = Sessions(self, self._epoll)
        self.prompt = Prompt(os.path.dirname(os.path.abspath(self.config.socket)))
        self.sessions.changed = self._show_prompts
        self._show_prompts()
        if self.config.parents:
            from pact.agent.link import Link

            self.link = Link(self, self.requests)
        else:
            left = LeftAlone(self, self.sessions.directory)
            self._left = left if left.busy else None

    def _slow_sightings(self) -> list[Sighting]:
        """What is observed off the loop, for as long as a start may wait for it: what a reboot has reset is brought
        back with the rest. What comes later is ordinary drift.  # B1"""
        out, ends_ns = list[Sighting](), self.clock.now_ns() + BOOT_LOOK_NS
        while (self._slow_pending or self._slow_running) and self.clock.now_ns() < ends_ns:
            self._starting()
            select.select([self._wake_fd], [], [], 1.0)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            for worker in (self._slow, *self._of_kinds.values()):
                with contextlib.suppress(queue.Empty):
                    while True:  # one sign may stand for many
                        result = worker.results.get_nowait()
                        looked = result.error is None and result.stored is None
                        seen = result.event(*self.now()) if looked else None
                        out += seen.sightings if isinstance(seen, Observed) else ()
        return out

    def _batch_worker(self) -> Worker:
        """A thread for the tools of the batch system: they may wait for its controller."""
        worker = Worker("pact-batch", self.config.file_limit, self.room, self._blobs, self.ignore, self._wake)
        self._workers.append(worker)
        return worker

    def _wait_for_boot_job(self) -> None:
        """Bring back what the reboot reset before the agent reports that it is ready.  # B1"""
        ends_ns = self.clock.now_ns() + BOOT_WAIT_NS
        while any(j.kind == "boot" for j in self.node.jobs.values()) and self.clock.now_ns() < ends_ns:
            self._starting()
            select.select([self._wake_fd], [], [], 1.0)
            self._take_results()

    def _starting(self) -> None:
        """Tell the service manager to go on waiting."""
        self.notifier.starting("bringing back what the boot reset" if self._reboot else "looking at what is declared")

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._epoll.register(read_fd, select.EPOLLIN)
        garbage.set_aside()
        syscalls.trim()
        self.journal.alive = lambda: None
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
        """End cleanly: finish what has begun, save the snapshot and the signatures."""
        self.notifier.send("STOPPING=1")
        if self.link is not None:
            self.link.close()
            self.link = None
        self.sessions.close()
        self.prompt.close()
        self.between.end()
        self.control.close()
        self.hooks.close()
        self.batch.close()
        ended = self.worker.close(30.0)
        for worker in (self._slow, *self._of_kinds.values()):
            ended &= worker.close(1.0)
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
            self._blobs.close()  # closing the last connection folds SQLite's write-ahead log into the file
        self.journal.close()
        self._epoll.close()
        os.close(self._wake_fd)
        self._underway.close()
        os.close(self._lock)
        if not ended:
            os._exit(0)  # a worker hangs in the kernel; everything is saved

    def pause(self, moved: bool) -> None:
        self.between.pause(moved)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        return self._epoll.poll(timeout_s, EVENTS_MAX)

    def _on_the_wall(self, t_ns: int) -> str:
        """A node time as local time for people."""
        now_ns, wall_ns = self.now()
        return time.strftime("%H:%M:%S", time.localtime((wall_ns + t_ns - now_ns) // NS_PER_S))

    def _timeout_s(self) -> float:
        now_ns = self.clock.now_ns()
        if (
            self.between.served
            or self.requests.long_answers.runs()
            or self.requests.first.runs()
            or self.control.waiting()
            or (self.watching.has_due and not self.journal_error)
        ):
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
        if self._left is not None and not self.journal_error:
            due.append(now_ns + int(LOOK_S * NS_PER_S))
        if (launch_s := self.sessions.next_s()) is not None:
            due.append(now_ns + int(launch_s * NS_PER_S))
        batch_ns = self.batch.next_ns()
        if batch_ns is not None:
            due.append(batch_ns)
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
        ready = self.poll(self._timeout_s())
        self.between.begin()
        for fd, mask in ready:
            if self.between.served:  # these may be gone; they are polled again
                break
            if fd == self._wake_fd:
                self._take_results()
            elif fd == self.control.fd:
                self.control.accept()
            elif fd in self.control.clients:
                self.control.ready(fd, mask)
            elif fd in self.hooks.running:
                self._epoll.unregister(fd)
                self.hooks.reap(fd)
            elif self.link is not None and fd in self.link.streams.fds:
                self.link.streams.ready(fd, mask)
            elif fd in self.sessions.fds:
                self.sessions.ready(fd)
            elif fd == signal_fd:
                os.read(signal_fd, 64)
        if self._reread:
            self._reread = False
            reload.reread(self)
        if self._verifying.error is not None and self.journal.trusted:
            self.journal.distrust(self._verifying.error)
            self._journal_lost(self.journal.distrusted(), Ticked(*self.now()))
        self.sessions.turn()
        self.control.serve(self.requests.line)
        self.requests.tellers.turn()
        self.requests.long_answers.turn(self)
        self.requests.first.turn()
        self.control.listen_again()
        self.control.show_life()
        now_ns = self.clock.now_ns()
        self.watching.drain_in_time(now_ns)
        self.watching.rescan_due(now_ns)
        self._ended_runs += self.watching.runs.drain()
        if self.journal_error:
            self._observe_unrecorded(now_ns)
            self._retry_journal(now_ns)
        else:
            self._observe(now_ns)
            if self._ended_runs:
                ended, self._ended_runs = self._ended_runs, []
                self.step(RunsEnded(*self.now(), ended))
            self._track(now_ns)
            wake_ns = self.node.next_wake_ns()
            if wake_ns is not None and wake_ns <= now_ns:
                self.step(Ticked(*self.now()))
        if now_ns >= self._next_health_ns:
            self._check_health()
            garbage.search(quiet=not (self.node.jobs or self.requests.long_answers.runs() or self.control.waiting()))
        if self.watching.cycles != self._cycles:
            self._cycles = self.watching.cycles
            self.look_at_unreadable()
        if self.watching.cycle_ended:
            self._save_cache()
        if self.watching.points_moved and now_ns >= self._next_points_ns:
            self._save_points()
        self.batch.turn(now_ns)
        if self.link is not None:
            self.link.turn()
        if self._left is not None:
            self._left.turn()
            self._left = self._left if self._left.busy else None
        self._publish()
        self.notices.flush(now_ns)
        self.hooks.kill_overdue(now_ns)
        for fd in self.hooks.start_due(now_ns):
            self._epoll.register(fd, select.EPOLLIN)
        if self.notifier.watchdog_ns:
            self.notifier.send("WATCHDOG=1")

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
        except StoreFullError as exc:  # other contents took the room meanwhile
            result = Result(result.job, None, {}, exc)
        event = result.event(*now)
        if isinstance(event, Acted):
            self.watching.drain()
            self.watching.end(event.job)
        if isinstance(event, Asked) and event.token not in self._tokens:
            return  # it was answered meanwhile: the answer that nothing was changed is final
        if self.journal_error:
            if isinstance(event, Observed | Acted):
                self._note_unrecorded(event.sightings)
            if isinstance(event, Acted):
                self._note_unrecorded(event.moved)
            if isinstance(event, Appeared):
                self.watching.tracking.come_again(event.found, now[0])
            return
        self.watching.drain()
        self.step(event)
        if isinstance(event, Looked | Probed):  # a worker saw this, while the loop may have seen something newer
            for sighting in self.node.in_turns(event.sightings):
                if sighting.resource in self.watching:
                    self.watching.touch(sighting.resource, None)

    def _check_health(self) -> None:
        """A blind observer must cause an event, never silence.  # O1"""
        if self.worker.relieve(clock.boottime_ns()):
            log("what a commit or a rollback looks at does not answer; the others go on without it", 4)
        self.make_room()
        self._cleaner.look()
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

    def _show_prompts(self) -> None:
        self._shown_error = bool(self.journal_error)
        state = views.overall(self.node, self.unrecorded)
        self.prompt.update(self.node, state, self.sessions.known.values(), *self.now())

    def _publish(self) -> None:
        """Pass durable records to followers, prompts and hooks."""
        if bool(self.journal_error) != self._shown_error:
            self._show_prompts()
        # Of a client's answers one is told in pieces at a time.
        for client in [c for c in self.control.clients.values() if c.behind and not (c.tokens or c.amid_a_line)]:
            telling.caught_up(self.requests.tellers, client)
        if not self._new_records:
            return
        self._show_prompts()
        rows: Sequence[tuple[Record, bytes]] = self._new_records
        self._new_records = []
        self.notices.take((r for r, _ in rows), self.node, self.clock.now_ns(), self._on_the_wall)
        masked: dict[tuple[str, int | None], list[bytes]] = {}  # once for all connections that may see the same
        for client in [c for c in self.control.clients.values() if c.watching]:
            if client.amid_a_line:
                client.watching, client.behind = False, True
                client.told = max(client.told, rows[0][0].seq - 1)
                continue
            caller = client.caller
            lines = masked.setdefault((caller.actor.role, caller.owner.uid), [])
            if not lines:
                lines += [b'{"record":' + self.veil.record_line(body, r.hash, caller) + b"}" for r, body in rows]
            for (record, _), line in zip(rows, lines, strict=True):
                if record.seq > client.told:
                    client.send(line)
            self.control.flush(client)
        self.hooks.events(
            [self.veil.record_line(body, record.hash, HOOKS) for record, body in rows] if self.hooks.paths() else []
        )


def _marked(resource: str, attrs: Attrs | None) -> Attrs | None:
    kind, name = split_id(resource)
    return KINDS[kind].marked(name, attrs)


def serve(config: Config, started: Callable[[Agent], None] | None = None) -> None:
    """Run an agent until a signal ends it. Raises PactError if the agent cannot start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks to read the configuration, which happens now anyway
    agent = Agent(config)
    try:
        if started is not None:
            started(agent)
        agent.run()
    finally:
        agent.close()
