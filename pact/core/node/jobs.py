"""The jobs that the core gives to the shell, and what their answers are for. Ephemeral: a restart begins anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pact.core import ops
from pact.core.node.events import Caller
from pact.core.payload import Value
from pact.core.plan import Step
from pact.errors import EXIT_DONE
from pact.model import Attrs, Declared, Json, Owner

W = TypeVar("W")


@dataclass(slots=True)
class Job(Generic[W]):
    """One job. ``kind`` names the verb that it belongs to, ``work`` is what that verb must remember; ``group`` is set
    for a group's vote or application.
    """

    n: int
    kind: str
    caller: Caller
    work: W
    token: int | None = None
    change: str | None = None
    group: str = ""
    cause: str = ""
    ids: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    planned_at: int = -1  # number of the newest record when ``steps`` were computed from the state
    looks: int = 0  # how often the plan was observed again because a resource had joined it


@dataclass(slots=True)
class Committing:
    """``asked``: for each member, its change, its other writers and its attributes at the time of the request.
    ``untracked``: things to take in; ``named``: the request named them.
    """

    message: str
    ttl_ns: int | None = None
    force: bool = False
    untracked: Sequence[str] = ()
    named: bool = False
    without_content: bool = False
    end_emergency: bool = False
    asked: Mapping[str, tuple[str, list[Owner], Attrs | None]] = field(default_factory=dict)


@dataclass(slots=True)
class RollingBack:
    """``resumed``: it continues after a crash. ``untracked``: it removes untracked things."""

    force: bool = False
    dry: bool = False
    resumed: bool = False
    untracked: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Declaring:
    """``in_changes``: drifted resources that stay in their changes. ``kept`` and ``ended``: trials. ``result``: the
    part of the answer that is known before the machine converges.
    """

    request: ops.Declare
    declared: Mapping[str, Declared]
    forgotten: Sequence[str]
    in_changes: Sequence[str]
    kept: Sequence[str]
    ended: Sequence[str]
    result: Json = field(default_factory=dict)


@dataclass(slots=True)
class Applying:
    """``baseline``: the resources declared as they were before, so that a rollback has a state to return to."""

    declared: Mapping[str, Declared]
    message: str = ""
    dry_run: bool = False
    notes: Sequence[str] = ()
    baseline: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Undoing:
    """An application is taken back. ``left``: its failed resources with reasons. ``holders``: the earlier owner of each
    resource. ``theirs``: what another owner has changed since; it stays.
    """

    applied: str
    left: Mapping[str, str]
    holders: Mapping[str, Owner]
    theirs: Mapping[str, str]
    baseline: Mapping[str, Value]


@dataclass(slots=True)
class Adopting:
    """The answer so far: matching resources are found in parts."""

    patterns: Sequence[str]
    adopted: int = 0
    unchanged: int = 0
    in_changes: list[str] = field(default_factory=list)
    not_restorable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trials_ended: list[str] = field(default_factory=list)
    tracked: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Waiting:
    """A request whose reply waits for several rollbacks."""

    jobs: set[int] = field(default_factory=set)
    results: list[Json] = field(default_factory=list)
    exit_code: int = EXIT_DONE
    messages: list[str] = field(default_factory=list)
    hint: str = ""
