"""Jobs of the batch system, in the agent's loop: which have ended, and when that is told.

``pact epilog`` may be the first line of an epilog that takes back afterwards what a prolog has set. So the end of a job
is told when the epilog's process has ended, nothing of the job is left on the node, and a moment has passed. An epilog
that was never heard of is noticed at the next rescan: no job holds for ever. Where the batch system cannot say what
runs, no job has ended.  # O7
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import orjson

from pact.agent import drains
from pact.agent.config import Config
from pact.agent.scheduler import Scheduler
from pact.agent.worker import Result, Worker
from pact.core import strict
from pact.core.node import batch, writers
from pact.core.node.events import Event, JobsEnded, Ticked
from pact.errors import explained
from pact.host.notify import log
from pact.model import NS_PER_S
from pact.observe.attribution import resolve
from pact.observe.jobs import job_in_environment, job_of_title
from pact.observe.runs import chain

#: After the epilog's process has ended: another one of the same job may follow it.
SETTLE_NS: Final = NS_PER_S
LOOK_NS: Final = 2 * NS_PER_S
#: An epilog that takes longer has had its chance.
EPILOG_MAX_NS: Final = 600 * NS_PER_S
#: How long to wait before the controller is asked again about a job that it says is running: longer each time.
ASK_NS: Final = 5 * NS_PER_S
ASK_MAX_NS: Final = 3600 * NS_PER_S
ENDING_MAX: Final = 4096
#: Of so many epilogs at a time the process is followed; others are believed after a moment.
FOLLOWED_MAX: Final = 256
NEVER_NS: Final = 1 << 62
#: Ends of jobs that come so close together are told together.
TOGETHER_NS: Final = NS_PER_S // 10


@dataclass(slots=True)
class Ending:
    """A job of whose end an epilog has told. ``pidfd``: the epilog's process, while it runs; -1: it is gone, or not
    known. ``due_ns``: when to look again."""

    began_ns: int
    pidfd: int
    due_ns: int
    looking: bool = False


class Rescans(Protocol):
    """``cycles``: how many rescans have been completed."""

    @property
    def cycles(self) -> int: ...


class Shell(drains.Shell, Protocol):
    """What is needed of the agent."""

    @property
    def watching(self) -> Rescans: ...

    def now(self) -> tuple[int, int]: ...

    def tell(self, event: Event) -> None: ...

    def watch_fd(self, fd: int) -> None: ...

    def unwatch_fd(self, fd: int) -> None: ...


class Batch:
    """``turn`` is called in every turn of the loop. Without a batch system in the configuration epilogs count all the
    same."""

    def __init__(self, agent: Shell, worker: Callable[[], Worker]) -> None:
        """``worker`` makes a thread, when the first work for it comes."""
        self.agent = agent
        self._make_worker = worker
        self._worker: Worker | None = None
        self.scheduler = scheduler_of(agent.config)
        self._path = os.path.join(agent.config.state_dir, "epilogs")
        self._ending: dict[str, Ending] = {}
        self._soonest_ns = NEVER_NS  # nothing of these is due before
        self._epilogs: dict[int, str] = {}  # pidfd of an epilog's process -> its job
        self._epoll: select.epoll | None = None
        self._looking = False
        self._ask: dict[str, tuple[int, int]] = {}  # job -> when to ask about it again, and the pause after that
        self._said = ""
        self._cycles = -1
        self._seq, self._state = -1, agent.node.state
        self._held: frozenset[str] = frozenset()
        self.drains = drains.Drains(agent, self.scheduler, self.call)
        now_ns = agent.clock.now_ns()
        for job in self._remembered():
            self._ending[job] = Ending(now_ns, -1, now_ns + SETTLE_NS)
            self._soonest_ns = now_ns + SETTLE_NS

    def call(self, work: Callable[[], Callable[[int, int], Event]]) -> None:
        """Work that may take long; what it returns is called by the loop, and gives an event."""
        if self._worker is None:
            self._worker = self._make_worker()
        self._worker.call(lambda: Result(0, make=work()))

    def held(self) -> frozenset[str]:
        """The jobs as long as which something is held."""
        state = self.agent.node.state
        if state.seq != self._seq or state is not self._state:  # a journal that failed gives another state
            self._seq, self._state = state.seq, state
            self._held = frozenset(writers.job_of(h.owner) for _, h in batch.holds_of_jobs(state))
        return self._held

    # -- an epilog ----------------------------------------------------------------------------------------------

    def epilog(self, job: str, sock: socket.socket) -> None:
        """A process at the other end of this socket says that the job has ended."""
        if not writers.JOB_NAME.fullmatch(job) or len(self._ending) >= ENDING_MAX:
            return
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        now_ns = self.agent.clock.now_ns()
        before = self._ending.pop(job, None)
        if before is not None:
            self._let_go(before)
        pidfd = _epilog_of(pid, job) if len(self._epilogs) < FOLLOWED_MAX else -1
        if pidfd >= 0:
            self._follow(pidfd, job)
        began_ns = now_ns if before is None else before.began_ns
        ending = Ending(began_ns, pidfd, now_ns + SETTLE_NS if pidfd < 0 else began_ns + EPILOG_MAX_NS)
        self._ending[job] = ending
        self._soonest_ns = min(self._soonest_ns, ending.due_ns)
        if job in self.held():
            self._remember()

    def next_ns(self) -> int | None:
        """When ``turn`` has something to do."""
        drain_ns = self.drains.next_ns()
        due_ns = min(self._soonest_ns, NEVER_NS if drain_ns is None else drain_ns)
        return None if due_ns == NEVER_NS else due_ns

    def turn(self, now_ns: int) -> None:
        if self._epilogs and self._epoll is not None:
            for fd, _ in self._epoll.poll(0):
                ending = self._ending[self._epilogs[fd]]
                self._let_go(ending)
                ending.due_ns = now_ns + SETTLE_NS
                self._soonest_ns = min(self._soonest_ns, ending.due_ns)
        if now_ns >= self._soonest_ns:
            self._turn_ending(now_ns)
        if self.agent.watching.cycles != self._cycles:
            self._cycles = self.agent.watching.cycles
            self._look_for_lost(now_ns)
        self.drains.turn(now_ns)

    def _turn_ending(self, now_ns: int) -> None:
        due = [j for j, e in self._ending.items() if not e.looking and e.due_ns <= now_ns]
        for job in due:
            self._let_go(self._ending[job])  # of an epilog that takes too long
        waited_for = [] if self.scheduler is None else [j for j in due if j in self.held()]
        for job in waited_for:
            self._ending[job].looking = True
        if waited_for:
            self.call(partial(self._look_after, waited_for))
        self._end([j for j in due if j not in waited_for])
        soonest_ns = min((e.due_ns for e in self._ending.values() if not e.looking), default=NEVER_NS)
        self._soonest_ns = max(soonest_ns, now_ns + TOGETHER_NS)

    def _look_after(self, jobs: list[str]) -> Callable[[int, int], Event]:
        """Whether anything of these jobs is still on the node: another file of its epilog, or the job itself, if
        somebody has told its end too early. Not on the loop."""
        assert self.scheduler is not None
        try:
            there = self.scheduler.running().jobs
        except Exception as exc:
            log(f"what runs on the node is not known: {explained(exc).message}", 4)
            there = frozenset()  # it has been said that they have ended, and nothing contradicts
        return lambda t, w: self._looked_after(jobs, there, t, w)

    def _looked_after(self, jobs: list[str], there: frozenset[str], t_ns: int, wall_ns: int) -> Event:
        done = []
        for job in jobs:
            ending = self._ending.get(job)
            if ending is None or ending.pidfd >= 0:  # another epilog of it has come meanwhile
                continue
            ending.looking = False
            if job not in there:
                done.append(job)
            elif t_ns - ending.began_ns >= EPILOG_MAX_NS:
                log(f"job {job} goes on, though its epilog has been run: what was set for it stays held", 4)
                del self._ending[job]
                self._remember()
            else:
                ending.due_ns = t_ns + LOOK_NS
                self._soonest_ns = min(self._soonest_ns, ending.due_ns)
        self._end(done)
        return Ticked(t_ns, wall_ns)

    def _end(self, jobs: list[str]) -> None:
        for job in jobs:
            del self._ending[job]
        if jobs:
            held = not self.held().isdisjoint(jobs)
            self._tell(frozenset(jobs))  # it also wakes what waits for consumers, once more
            if held:
                self._remember()

    def _tell(self, jobs: frozenset[str]) -> None:
        self.agent.tell(JobsEnded(*self.agent.now(), sorted(jobs)))

    def _follow(self, pidfd: int, job: str) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self.agent.watch_fd(self._epoll.fileno())
        self._epoll.register(pidfd, select.EPOLLIN)
        self._epilogs[pidfd] = job

    def _let_go(self, ending: Ending) -> None:
        if ending.pidfd >= 0 and self._epoll is not None:
            self._epoll.unregister(ending.pidfd)
            del self._epilogs[ending.pidfd]
            os.close(ending.pidfd)
        ending.pidfd = -1

    # -- epilogs that nobody heard of ---------------------------------------------------------------------------

    def _look_for_lost(self, now_ns: int) -> None:
        """Ask which of the jobs that something is held for are gone."""
        held = self.held() - self._ending.keys()
        self._ask = {job: ask for job, ask in self._ask.items() if job in held}
        wanted = [job for job in held if self._ask.get(job, (0, 0))[0] <= now_ns]
        if wanted and not self._looking and self.scheduler is not None:
            self._looking = True
            self.call(partial(self._ask_about, wanted))

    def _ask_about(self, jobs: list[str]) -> Callable[[int, int], Event]:
        """Not on the loop."""
        assert self.scheduler is not None
        why, asked, ended = "", list[str](), frozenset[str]()
        try:
            seen = self.scheduler.running()
            why = seen.why
            asked = [] if why else [job for job in jobs if job not in seen.jobs]
            ended = self.scheduler.ended(asked) if asked else ended
        except Exception as exc:
            why = explained(exc).message
        return lambda t, w: self._asked_about(asked, ended, why, t, w)

    def _asked_about(self, asked: list[str], ended: frozenset[str], why: str, t_ns: int, wall_ns: int) -> Event:
        self._looking = False
        if why and why != self._said:
            log(f"which jobs have ended is not known: {why}", 4)
        self._said = why
        for job in asked:
            pause_ns = self._ask.get(job, (0, ASK_NS))[1]
            self._ask[job] = t_ns + pause_ns, min(2 * pause_ns, ASK_MAX_NS)
        still = ended & self.held()
        if still:
            log(f"nothing is left of job {', '.join(sorted(still)[:5])}, and no epilog has told its end")
            self._tell(still)
        return Ticked(t_ns, wall_ns)

    # -- across restarts ----------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Best effort: without it a batch system is asked after the next start, if there is one."""
        waiting = [job for job in self._ending if job in self.held()]
        try:
            with open(self._path + ".new", "wb") as f:
                f.write(orjson.dumps({"boot": self.agent.node.state.boot_id, "jobs": waiting}))
            os.replace(self._path + ".new", self._path)
        except OSError:
            return

    def _remembered(self) -> list[str]:
        try:
            with open(self._path, "rb") as f:
                known: Any = strict.loads_object(f.read(), strict.SMALL_MAX)
            jobs = known["jobs"] if known["boot"] == self.agent.node.state.boot_id else []
            return [j for j in jobs if isinstance(j, str) and writers.JOB_NAME.fullmatch(j)][:ENDING_MAX]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def status(self) -> dict[str, Any]:
        """For ``pact --json status``."""
        return {
            "kind": self.agent.config.scheduler,
            "jobs_held_for": sorted(self.held()),
            "asked_about": sorted(self.held() & self._ask.keys()),
            **self.drains.status(),
        }

    def close(self) -> None:
        for ending in self._ending.values():
            self._let_go(ending)
        if self._epoll is not None:
            self.agent.unwatch_fd(self._epoll.fileno())
            self._epoll.close()


def scheduler_of(config: Config) -> Scheduler | None:
    """The batch system of the configuration; ``None`` without one."""
    if config.scheduler == "slurm":
        from pact.agent.scheduler_slurm import Slurm

        return Slurm(config.scheduler_node or config.name, config.scheduler_bin)
    if config.scheduler == "pbs":
        from pact.agent.scheduler_pbs import Pbs

        return Pbs(config.scheduler_node or config.name, config.scheduler_bin)
    if config.scheduler == "hooks":
        from pact.agent.scheduler_hooks import Scripts

        return Scripts(config.scheduler_jobs, config.scheduler_control)
    return None


def _epilog_of(pid: int, job: str) -> int:
    """A pidfd of the epilog that runs this process: root's topmost process above it that was started for the job; -1:
    there is none."""
    writer = resolve(pid)
    way = [] if writer is None else [w for w in chain(writer) if w.uid == 0]
    found = [w for w in way[1:] if not job_of_title(w.command) and job_in_environment(w.pid) == job]
    if not found:
        return -1
    try:
        fd = os.pidfd_open(found[-1].pid)
    except OSError:
        return -1
    again = resolve(found[-1].pid, fd)
    if again is None or again.start != found[-1].start:
        os.close(fd)
        return -1
    return fd
