"""What the shell is asked to do for the core, and what becomes of its answer. Ephemeral; a restart begins anew."""

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
    """``kind`` says whose it is, ``work`` is what that verb has to remember of it; ``group`` is the group's vote or
    application.
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
    planned_at: int = -1  # the newest record when ``steps`` were made of the state
    looks: int = 0  # how often the plan was looked at again because something had joined it


@dataclass(slots=True)
class Committing:
    """``asked``: of each member, its change, who else had written it and what it was when the commit was asked for.
    ``untracked``: what is taken in; ``named``: it was asked for by name.
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
    """``resumed``: it goes on after a crash. ``untracked``: it removes what is untracked."""

    force: bool = False
    dry: bool = False
    resumed: bool = False
    untracked: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Declaring:
    """``in_changes``: what has drifted and stays in its change. ``kept`` and ``ended``: commits for a time. ``result``:
    of the answer, what is known before the machine is brought to it.
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
    """``baseline``: what is declared with it as it was, so that there is something to go back to."""

    declared: Mapping[str, Declared]
    message: str = ""
    dry_run: bool = False
    notes: Sequence[str] = ()
    baseline: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Undoing:
    """An application is taken back. ``left``: what of it failed, and why. ``holders``: whose each was before.
    ``theirs``: what somebody else has changed since, and stays.
    """

    applied: str
    left: Mapping[str, str]
    holders: Mapping[str, Owner]
    theirs: Mapping[str, str]
    baseline: Mapping[str, Value]


@dataclass(slots=True)
class Adopting:
    """The answer so far: what matches is found in parts."""

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
    """A request that several rollbacks answer together."""

    jobs: set[int] = field(default_factory=set)
    results: list[Json] = field(default_factory=list)
    exit_code: int = EXIT_DONE
    messages: list[str] = field(default_factory=list)
    hint: str = ""
