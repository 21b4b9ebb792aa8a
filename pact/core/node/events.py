"""What comes into the core (past tense) and what leaves it (imperative).

Every event carries both clocks: ``t_ns`` is node time (``CLOCK_BOOTTIME`` plus the offset in force, so that it never
runs backwards across restarts), ``wall_ns`` is the wall clock, for people only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final, Generic, TypeVar

from pact.core.ops import Op
from pact.core.payload import Saved, Value
from pact.core.plan import Step
from pact.core.records import Record
from pact.core.settings import Settings
from pact.errors import PactError
from pact.model import Actor, Attrs, Holder, JsonRead, Observation, Owner
from pact.values import dataclass

R_co = TypeVar("R_co", bound=Op, covariant=True)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``actor.role`` is what the socket's peer may do, ``owner`` is the person behind it; under sudo
    they differ.
    """

    actor: Actor
    owner: Owner

    def owns(self, owner: Owner) -> bool:
        """The same login session, or another session of the same person."""
        if owner.key == self.owner.key:
            return True
        return owner.uid is not None and owner.uid == self.owner.uid and not owner.key.startswith("unit:")


#: The agent itself, when a timer runs out.
AGENT_CALLER: Final = Caller(Actor("pact", None, "agent", "timer"), Owner("agent", "pact"))


@dataclass(frozen=True, slots=True)
class Sighting:
    """One observation. ``owner`` is ``None`` where the kernel named no writer. ``moved_with``: nobody wrote it; a write
    to that other resource moved it.  # C8
    ``secret``: others could not get at it where it lay when it was looked at.  # S2
    """

    resource: str
    observation: Observation
    owner: Owner | None = None
    moved_with: str = ""
    secret: bool = False


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    t_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The agent began. ``declared`` is what an empty journal takes as declared state; it is acted on by nobody."""

    boot_id: str
    offset_ns: int
    settings: Settings
    version: str
    reboot: bool = False
    declared: Mapping[str, Value] = field(default_factory=dict)
    sources: Sequence[str] = ()
    clustered: bool = False
    track: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reconfigured(Event):
    """The configuration was read again while the agent runs."""

    settings: Settings
    version: str


@dataclass(frozen=True, slots=True)
class Scanned(Event):
    """The first complete observation after a start. ``killed`` says how many runs in a row have ended while a change's
    rollback (or what the boot has to bring back, ``boot``) was under way.
    """

    sightings: Sequence[Sighting]
    reboot: bool = False
    killed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed(Event):
    sightings: Sequence[Sighting]


@dataclass(frozen=True, slots=True)
class Covered(Event):
    """Something was mounted over declared paths at a point that nobody declared: ``{mount id: what is there}``."""

    mounts: Mapping[str, Attrs]
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class New:
    """Something below a tracked pattern that nobody has declared. ``actual`` says in short what it is, ``owner`` who
    made it, where the kernel named somebody.
    """

    resource: str
    actual: JsonRead
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Appeared(Event):
    """What is new below tracked patterns, and which of what was untracked is gone. ``beyond``: how many more there are
    than are kept one by one, by directory; ``None``: as before.
    """

    found: Sequence[New]
    gone: Sequence[str] = ()
    beyond: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Ticked(Event):
    """Time passed; nothing else."""


@dataclass(frozen=True, slots=True)
class Asked(Event, Generic[R_co]):
    """A request that may change something. ``token`` names it in the ``Reply``."""

    token: int
    request: R_co
    caller: Caller

    @property
    def op(self) -> str:
        return self.request.asked_as


@dataclass(frozen=True, slots=True)
class Denied(Event):
    """A request was refused before it reached the core; it is journaled all the same."""

    op: str
    why: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class Looked(Event):
    """The answer to ``Look``. ``secret``: what others cannot get at where it lies now; ``full``: whose content was not
    kept because the store has no room.
    """

    job: int
    sightings: Sequence[Sighting]
    unkept: Mapping[str, str] = field(default_factory=dict)
    secret: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """The answer to ``Probe``. ``saves`` says for each resource where what will be overwritten is kept, ``notes`` what
    else comes of it that a person should know beforehand.
    """

    job: int
    sightings: Sequence[Sighting]
    holders: Sequence[Holder]
    refusals: Sequence[str]
    saves: Mapping[str, Saved]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Acted(Event):
    """The answer to ``Act``: ``""`` for each resource restored and verified, else why not; then what was seen after,
    of the steps and of what lies below them.

    ``moved``: what the plan moved beside its own resources, and could not or should not put back. ``reads``: what the
    kernel made of a value that it took, where that reads otherwise.
    """

    job: int
    results: Mapping[str, str]
    sightings: Sequence[Sighting]
    moved: Sequence[Sighting] = ()
    reads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Discovered(Event):
    """Part of the answer to ``Discover``. ``exact`` are those that were named, not matched; ``patterns`` (in the last
    part) are the patterns that are no names.
    """

    job: int
    found: Mapping[str, Value]
    exact: frozenset[str]
    notes: Sequence[str]
    last: bool
    patterns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """A job could not be carried out at all."""

    job: int
    error: PactError


@dataclass(frozen=True, slots=True)
class ObserverChanged(Event):
    """An observer went blind (``why``) or sees again (``""``)."""

    observer: str
    why: str


@dataclass(frozen=True, slots=True)
class FleetTold(Event):
    """The root's holds for every node: ``[{hold, owner, reason, left_ns}, ...]``; ``seq`` grows with each change."""

    fence: int
    seq: int
    holds: Sequence[JsonRead]


@dataclass(frozen=True, slots=True)
class ContactChanged(Event):
    """The way to the root was found or lost. What the root has for every node was told before."""

    connected: bool


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    reason: str


# -- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    pass


@dataclass(frozen=True, slots=True)
class AppendRecord(Effect):
    """Make it durable before any effect that follows it.  # J1"""

    record: Record
    body: bytes


@dataclass(frozen=True, slots=True)
class Look(Effect):
    """Observe again, keeping contents."""

    job: int
    resources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe(Effect):
    """Observe the plan's resources, look for consumers of those that differ, and keep what would be overwritten.

    ``applying``: somebody makes a change; only what takes something away from its consumers asks for them. ``dry``:
    it is only a question, which changes nothing on the machine for a moment.
    """

    job: int
    steps: tuple[Step, ...]
    consumers: bool
    force: bool = False
    applying: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Act(Effect):
    """Carry out the steps in order and verify each; ``resumed``: a kill may have left one half done. What is
    ``below`` what they replace is looked at after.

    ``beside``: declared resources that the steps may move. ``put_back``: what moved so is brought back to what it was
    before; else it is only reported. ``wanted``: what is declared of those that have drifted in other changes.  # C8
    """

    job: int
    steps: tuple[Step, ...]
    saves: Mapping[str, Saved]
    resumed: bool = False
    below: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    put_back: bool = True
    wanted: Mapping[str, Attrs | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Discover(Effect):
    job: int
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply(Effect):
    token: int
    result: JsonRead
    exit_code: int = 0
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Recheck(Effect):
    """Observe these again soon: something may have moved while nobody could say so."""

    resources: tuple[str, ...]
