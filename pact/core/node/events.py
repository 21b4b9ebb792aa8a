"""The core's inputs (events, past tense) and outputs (effects, imperative).

Every event carries both clocks: ``t_ns`` is node time (``CLOCK_BOOTTIME`` plus the offset in force, so that it never
runs backwards across restarts), ``wall_ns`` is the wall clock, for people only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Final, Generic, TypeVar

from pact.core.node.payloads import ExecBegun, Executed, SessionClosed, SessionOpened
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
    """The person or process that makes a request. ``actor.role`` is the role of the socket's peer, ``owner`` is the
    person behind it; under sudo they differ.
    """

    actor: Actor
    owner: Owner

    def owns(self, owner: Owner) -> bool:
        """Whether the owner is the same login session, or another session of the same person."""
        if owner.key == self.owner.key:
            return True
        return owner.uid is not None and owner.uid == self.owner.uid and not owner.key.startswith("unit:")


#: The agent itself, when a timer ends.
AGENT_CALLER: Final = Caller(Actor("pact", None, "agent", "timer"), Owner("agent", "pact"))


@dataclass(frozen=True, slots=True)
class Sighting:
    """One observation. ``owner`` is ``None`` if the kernel named no writer. ``moved_with``: nobody wrote this resource;
    a write to that other resource moved it.  # C8

    ``secret``: at its place at the time of the observation, other users could not read it.  # S2
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
    """The agent started. ``declared`` is the initial declared state for an empty journal; the agent does not converge
    to it."""

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
    """The running agent read its configuration again."""

    settings: Settings
    version: str


@dataclass(frozen=True, slots=True)
class Scanned(Event):
    """The first complete observation after a start. ``killed`` says how many runs in a row have ended during a rollback
    of each change (or during ``boot``, the work that a boot requires).
    """

    sightings: Sequence[Sighting]
    reboot: bool = False
    killed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed(Event):
    sightings: Sequence[Sighting]


@dataclass(frozen=True, slots=True)
class Covered(Event):
    """An undeclared mount hides declared paths: ``{mount id: attributes of the mount}``."""

    mounts: Mapping[str, Attrs]
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class New:
    """An undeclared thing below a tracked pattern. ``actual`` describes it in short, ``owner`` made it if the kernel
    named somebody.
    """

    resource: str
    actual: JsonRead
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Appeared(Event):
    """New things below tracked patterns, and untracked things that are gone. ``beyond``: by directory, how many more
    exist than are kept one by one; ``None``: as before.
    """

    found: Sequence[New]
    gone: Sequence[str] = ()
    beyond: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Ticked(Event):
    """Time passed; nothing else."""


@dataclass(frozen=True, slots=True)
class Asked(Event, Generic[R_co]):
    """A request that may change something. ``token`` identifies it in the ``Reply``."""

    token: int
    request: R_co
    caller: Caller

    @property
    def op(self) -> str:
        return self.request.asked_as


@dataclass(frozen=True, slots=True)
class Denied(Event):
    """A request was refused before it reached the core; the refusal is journaled too."""

    op: str
    why: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class SessionTold(Event):
    """A person's session has begun or ended; ``said`` is its record."""

    said: SessionOpened | SessionClosed
    actor: Actor


@dataclass(frozen=True, slots=True)
class CommandsTold(Event):
    """Commands of ``pact exec`` are about to begin, or have ended: their records, each with who asked."""

    said: Sequence[tuple[ExecBegun | Executed, Actor]]


@dataclass(frozen=True, slots=True)
class Looked(Event):
    """The answer to ``Look``. ``secret``: resources that other users cannot read at their present place. ``full``:
    resources whose content was not kept because the store has no room.
    """

    job: int
    sightings: Sequence[Sighting]
    unkept: Mapping[str, str] = field(default_factory=dict)
    secret: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """The answer to ``Probe``. ``saves`` says for each resource where the content to be overwritten is kept. ``notes``
    are other consequences that a person should know beforehand.
    """

    job: int
    sightings: Sequence[Sighting]
    holders: Sequence[Holder]
    refusals: Sequence[str]
    saves: Mapping[str, Saved]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Acted(Event):
    """The answer to ``Act``. ``results``: ``""`` for each resource that was restored and verified, else the reason why
    not. ``sightings``: observations afterwards of the steps and of what lies below them.

    ``moved``: resources beside its own that the plan moved and could not or should not put back. ``reads``: how the
    kernel shows a value that it accepted, if it shows it differently. ``untold``: resources that were moved, and who
    of their readers could not be told of it; ``results`` says why. ``told``: those whose readers know it.
    """

    job: int
    results: Mapping[str, str]
    sightings: Sequence[Sighting]
    moved: Sequence[Sighting] = ()
    reads: Mapping[str, str] = field(default_factory=dict)
    untold: Mapping[str, Sequence[str]] = field(default_factory=dict)
    told: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Discovered(Event):
    """Part of the answer to ``Discover``. ``exact`` are resources that were named, not matched; ``patterns`` (in the
    last part) are the patterns that are not names.
    """

    job: int
    found: Mapping[str, Value]
    exact: frozenset[str]
    notes: Sequence[str]
    last: bool
    patterns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """A job could not be carried out."""

    job: int
    error: PactError


@dataclass(frozen=True, slots=True)
class ObserverChanged(Event):
    """An observer went blind (``why`` is the reason) or sees again (``why`` is ``""``)."""

    observer: str
    why: str


@dataclass(frozen=True, slots=True)
class FleetTold(Event):
    """The root's holds for all nodes: ``[{hold, owner, reason, left_ns}, ...]``; ``seq`` grows with each change."""

    fence: int
    seq: int
    holds: Sequence[JsonRead]


@dataclass(frozen=True, slots=True)
class ContactChanged(Event):
    """The way to the root was found or lost. The root's holds for all nodes were delivered before."""

    connected: bool


@dataclass(frozen=True, slots=True)
class RunsEnded(Event):
    """The processes of these runs (``Owner.run``) have ended."""

    runs: Sequence[str]


@dataclass(frozen=True, slots=True)
class JobsEnded(Event):
    """These jobs of the batch system have ended on this node."""

    jobs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    reason: str


# -- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    pass


@dataclass(frozen=True, slots=True)
class AppendRecord(Effect):
    """Make the record durable before any effect that follows it.  # J1"""

    record: Record
    body: bytes


@dataclass(frozen=True, slots=True)
class Look(Effect):
    """Observe the resources again and keep their contents."""

    job: int
    resources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe(Effect):
    """Observe the plan's resources, look for consumers of those that differ, and keep the content that would be
    overwritten.

    ``applying``: an owner makes a change; consumers matter only if the change takes something away from them. ``dry``:
    this is only a question, and must not change the machine even for a moment.
    """

    job: int
    steps: tuple[Step, ...]
    consumers: bool
    force: bool = False
    applying: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Act(Effect):
    """Carry out the steps in order and verify each; ``resumed``: a kill may have left one half done. ``below``:
    resources below the replaced ones, which are observed afterwards.

    ``beside``: declared resources that the steps may move. ``put_back``: moved resources are brought back to their
    previous state; otherwise the move is only reported. ``wanted``: the declared state of those that have drifted in
    other changes.  # C8

    ``tells``: who is told afterwards by the steps that moved something, with the declared attributes of each.  # R14
    """

    job: int
    steps: tuple[Step, ...]
    saves: Mapping[str, Saved]
    resumed: bool = False
    below: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    put_back: bool = True
    wanted: Mapping[str, Attrs | None] = field(default_factory=dict)
    tells: Mapping[str, Attrs | None] = field(default_factory=dict)


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
    """Observe these resources again soon: they may have moved while no observer could report it."""

    resources: tuple[str, ...]
