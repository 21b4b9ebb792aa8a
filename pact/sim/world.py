"""One virtual node. The core is the real one; the machine is a dictionary, the journal a list, the clock a number.

What is simulated can fail as the real thing does: the process dies between any two effects, the disk refuses a
transaction, a resource refuses to be restored, somebody holds it, somebody changes it between decision and action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pact.core.events import (
    Act,
    Acted,
    Appeared,
    AppendRecord,
    Asked,
    Caller,
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
    Started,
    Ticked,
)
from pact.core.node import Node
from pact.core.plan import Step
from pact.core.records import Record
from pact.core.settings import Settings
from pact.core.state import State
from pact.model import NS_PER_S, Actor, Attrs, Declared, Holder, Owner, Unreadable

EPOCH_NS = 1_800_000_000 * NS_PER_S
DRAIN_MAX = 10_000


class SimRules:
    """Everything that differs differs wholly; only files survive a reboot."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        return 0 if declared == actual else 1_000_000_000

    def volatile(self, resource: str) -> bool:
        return not resource.startswith("file:")

    def matches(self, pattern: str, resource: str) -> bool:
        return resource.startswith(pattern.rstrip("*"))


class Crashed(Exception):
    """The process died here."""


class DiskFull(Exception):
    """The transaction was refused."""


def person(name: str, role: str = "ops", uid: int | None = None) -> Caller:
    """A caller with a login session of its own."""
    number = sum(map(ord, name)) if uid is None else uid
    owner = Owner(f"login:{number}:{number % 7}", name, number, str(number % 7), f"{name}-command")
    return Caller(Actor(name, number, role, "socket"), owner)


@dataclass
class World:
    """A machine with one agent."""

    settings: Settings = field(default_factory=Settings)
    machine: dict[str, Attrs | None] = field(default_factory=dict)
    boot_values: dict[str, Attrs | None] = field(default_factory=dict)
    holders: dict[str, list[Holder]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    t_ns: int = 0
    wall_ns: int = EPOCH_NS
    boot: int = 1
    journal: list[Record] = field(default_factory=list)
    replies: dict[int, Reply] = field(default_factory=dict)
    disk_full: bool = False
    crash_after: int | None = None
    before_act: Callable[[World, Step], None] | None = None
    offset_ns: int = 0
    name: str = "sim"
    clustered: bool = False

    def __post_init__(self) -> None:
        self.queue: deque[Callable[[], Event]] = deque()
        self.token = 0
        self.node: Node
        self.running = False

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, declared: dict[str, Declared] | None = None, *, reboot: bool = False) -> None:
        """Start the agent on what the journal holds."""
        state = State()
        for record in self.journal:
            state.apply(record)
        self.node = Node(self.name, SimRules(), state)
        self.queue.clear()
        self.running = True
        given = {r: d.to_json() for r, d in (declared or {}).items()}
        self.feed(lambda: Started(self.t_ns, self.wall_ns, f"boot{self.boot}", self.offset_ns, self.settings, "sim",
                                  reboot, given, clustered=self.clustered))  # fmt: skip
        seen = [Sighting(r, self.observe(r)) for r in self.node.state.declared_ids()]
        self.feed(lambda: Scanned(self.t_ns, self.wall_ns, seen, reboot))

    def crash(self) -> None:
        """SIGKILL: what is not in the journal is forgotten."""
        self.running = False
        self.queue.clear()

    def reboot(self, down_ns: int = 0) -> None:
        """Power cycle: volatile resources get their boot values, and the clock goes on by what was down."""
        self.crash()
        self.boot += 1
        self.t_ns += down_ns
        self.wall_ns += down_ns
        self.holders.clear()
        for resource in self.machine:
            if not resource.startswith("file:"):
                self.machine[resource] = self.boot_values.get(resource)
        self.start(reboot=True)

    # -- what people and processes do ---------------------------------------------------------------------------

    def write(self, resource: str, value: Attrs | None, owner: Owner | None, moved_with: str = "") -> None:
        """Somebody changes the machine, or what he wrote moves something else, and the observers see it."""
        self.machine[resource] = value
        self.see(resource, owner, moved_with)

    def see(self, resource: str, owner: Owner | None = None, moved_with: str = "") -> None:
        seen = self.observe(resource)
        self.feed(lambda: Observed(self.t_ns, self.wall_ns, [Sighting(resource, seen, owner, moved_with)]))

    def create(self, resource: str, value: Attrs | None, owner: Owner | None) -> None:
        """Somebody makes, or takes away, what nobody has declared."""
        self.machine[resource] = value
        found = [] if value is None else [New(resource, {"type": "file"}, owner)]
        gone = [resource] if value is None else []
        self.feed(lambda: Appeared(self.t_ns, self.wall_ns, found, gone))
        if resource in self.node.state:
            self.see(resource, owner)

    def ask(self, op: str, caller: Caller, **args: Any) -> Reply | None:
        """A request; ``None`` if it was cut off by a crash."""
        self.token += 1
        token = self.token
        self.feed(lambda: Asked(self.t_ns, self.wall_ns, token, op, args, caller))
        return self.replies.pop(token, None)

    def advance(self, ns: int) -> None:
        """Let time pass, waking the agent when it asked to be woken."""
        end = self.t_ns + ns
        while self.running:
            wake = self.node.next_wake_ns()
            if wake is None or wake > end:
                break
            self._to(max(wake, self.t_ns))
            before = (len(self.journal), self.node.next_wake_ns())
            self.feed(lambda: Ticked(self.t_ns, self.wall_ns))
            if self.running and (len(self.journal), self.node.next_wake_ns()) == before:
                pause = 60 * NS_PER_S if self.disk_full else NS_PER_S // 100
                self._to(min(end, self.t_ns + pause))  # an early wake: nothing was due yet
                if self.t_ns == end:
                    break
        self._to(end)
        if self.running:
            self.feed(lambda: Ticked(self.t_ns, self.wall_ns))

    def _to(self, t_ns: int) -> None:
        self.wall_ns += t_ns - self.t_ns
        self.t_ns = t_ns

    # -- the shell ----------------------------------------------------------------------------------------------

    def feed(self, make: Callable[[], Event]) -> None:
        """Step the core with an event and carry out everything that follows from it."""
        self.queue.append(make)
        for _ in range(DRAIN_MAX):
            if not self.queue or not self.running:
                return
            try:
                self._perform(self.node.step(self.queue.popleft()()))
            except Crashed:
                self.crash()
            except DiskFull:
                self._reload()
        raise AssertionError("the effects do not end")

    def _reload(self) -> None:
        state = State()
        for record in self.journal:
            state.apply(record)
        self.node = Node(self.name, SimRules(), state)
        self.queue.clear()

    def _perform(self, effects: list[Effect]) -> None:
        records = [e.record for e in effects if isinstance(e, AppendRecord)]
        if records and self.disk_full:
            raise DiskFull
        self._maybe_crash()
        self.journal += records
        for effect in effects:
            self._maybe_crash()
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Reply):
            self.replies[effect.token] = effect
        elif isinstance(effect, Look):
            self._look(effect)
        elif isinstance(effect, Probe):
            self._probe(effect)
        elif isinstance(effect, Act):
            self._act(effect)
        elif isinstance(effect, Recheck):
            for resource in effect.resources:
                self._later_see(resource)
        elif isinstance(effect, Discover):
            self._discover(effect)

    def _maybe_crash(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                self.crash_after = None
                raise Crashed

    def observe(self, resource: str) -> Attrs | Unreadable | None:
        if resource in self.unreadable:
            return Unreadable(self.unreadable[resource])
        return self.machine.get(resource)

    def _later_see(self, resource: str) -> None:
        self.queue.append(lambda: Observed(
            self.t_ns, self.wall_ns, [Sighting(resource, self.observe(resource), None)]))  # fmt: skip

    def _look(self, effect: Look) -> None:
        seen = [Sighting(r, self.observe(r)) for r in effect.resources]
        self.queue.append(lambda: Looked(self.t_ns, self.wall_ns, effect.job, seen))

    def _probe(self, effect: Probe) -> None:
        seen = [Sighting(s.id, self.observe(s.id)) for s in effect.steps]
        differing = [s.resource for s, step in zip(seen, effect.steps, strict=True) if s.observation != step.target]
        holders = [h for r in differing for h in self.holders.get(r, ())] if effect.consumers else []
        saves = {r: {"attrs": self.machine.get(r)} for r in differing}
        refused = [] if effect.force else list(self.refusals)
        self.queue.append(lambda: Probed(self.t_ns, self.wall_ns, effect.job, seen, holders, refused, saves))

    def _act(self, effect: Act) -> None:
        results: dict[str, str] = {}
        for step in effect.steps:
            if self.before_act is not None:
                self.before_act(self, step)
            self._maybe_crash()
            results[step.id] = self._restore(step)
        seen = [Sighting(r, self.observe(r)) for r in (*(s.id for s in effect.steps), *effect.below)]
        self.queue.append(lambda: Acted(self.t_ns, self.wall_ns, effect.job, results, seen))

    def _restore(self, step: Step) -> str:
        actual = self.observe(step.id)
        if isinstance(actual, Unreadable):
            return f"cannot be read: {actual.why}"
        if actual == step.target:
            return ""
        if actual != step.actual:
            return "changed again"
        if step.id in self.stubborn:
            return "permission denied"
        self.machine[step.id] = step.target
        return ""

    def _discover(self, effect: Discover) -> None:
        found = {r: Declared(v).to_json() for r, v in self.machine.items() if v is not None and any(
            r == p or (p.endswith("*") and r.startswith(p.rstrip("*"))) for p in effect.patterns)}  # fmt: skip
        exact = frozenset(r for r in found if r in effect.patterns)
        patterns = [p for p in effect.patterns if p.endswith("*")]
        self.queue.append(lambda: Discovered(self.t_ns, self.wall_ns, effect.job, found, exact, (), True, patterns))

    # -- checks -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at rest: replay gives the state, and the parts agree."""
        self.node.state.check()
        state = State()
        for record in self.journal:
            state.apply(record)
        assert state.to_json() == self.node.state.to_json()




def with_settings(**changes: Any) -> Settings:
    return replace(Settings(), **changes)
