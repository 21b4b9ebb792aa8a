"""Every request that pact knows: one class for each, with the roles that may send it, its receivers, and its effects.

The annotations of a class are the request's arguments with their types; an argument without a default is required. The
keywords of the class statement give the other facts (see ``Op``), and every other table of requests is derived from the
classes. Arguments travel as JSON and are checked against the class; an instance is one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Final, dataclass_transform

from pact.core import strict
from pact.core.payload import Value
from pact.model import Attrs, Json, JsonRead, Owner
from pact.values import NOTHING, dataclass


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Op:
    """``role``: the lowest role that may send it; for things of another owner a higher role may be needed, see
    ``access``. ``changes``: it may change something, and becomes an event for the core. ``once``: a second execution
    would do something else, so that a call that comes again is not carried out again.  # T6

    ``at``: the receiver: a ``node`` (from people), a ``member`` (only from the root), or the ``root`` (from people).
    ``afar``: people may send it to many nodes at once, through the root. ``settles``: no number of open questions keeps
    it out at the root, because it stops the fleet, or settles a change whose window would otherwise end. ``streams``:
    over the tree, its answer may open a stream; ``bulk``: that is a command's output, and gives way to terminals.
    ``command``: the command that sends it; empty if no command sends it directly. ``asked_as``: its name in requests,
    from ``AT_NODE`` and ``AT_ROOT``.
    """

    role = "viewer"
    changes = once = settles = streams = bulk = False
    at, afar = "node", True
    command = asked_as = ""

    def __init_subclass__(cls, **facts: str | bool) -> None:
        super().__init_subclass__()
        for name, value in facts.items():
            assert hasattr(Op, name), name
            setattr(cls, name, value)
        dataclass(frozen=True, kw_only=True)(cls)


class Changing(Op, changes=True, once=True): ...


class FromRoot(Op, role="admin", changes=True, at="member", afar=False):
    """A request that the root may repeat at any time: members know what they have done."""


class AtRoot(Op, at="root", afar=False): ...


# -- reading ---------------------------------------------------------------------------------------------------------


class Ping(Op, command="agent"):
    """Checks that the agent is running."""


class Status(Op, command="status"): ...


class Check(Op, command="check"): ...


class State(Op, at="member"):
    """One word for the node's state, and whether something is untracked. The root asks all nodes for it, for its
    page."""


class Diff(Op, command="diff"):
    targets: Sequence[str] = ()


class Log(Op, command="log"):
    count: int | None = None
    since: str = ""
    type: str = ""
    follow: bool = False


class Watch(Op, afar=False, command="watch"):
    """Live events: on a node those of its own journal, at the root those of all requested nodes."""


class Show(Op, command="show"):
    seq: int


class Content(Op, afar=False, command="show"):
    seq: int
    resource: str | None = None


class Consumers(Op, command="consumers"):
    resource: str


class Export(Op, afar=False, command="export"): ...


class Sessions(Op, command="sessions"):
    """The open sessions, and what commands have left behind: to administrators all, to others their own."""


# -- sessions --------------------------------------------------------------------------------------------------------


class ShellOpen(Op, once=True, streams=True, command="shell"):
    """Begin a session. Which roles may is in ``[shell] roles``. ``words``: nothing for a login shell, one word for a
    line of the shell, several for exactly these words. ``env``: language and time zone. ``stream``: over the tree, the
    client's public key for the stream that the answer opens."""

    account: str = ""
    words: Sequence[str] = ()
    term: str = ""
    rows: int = 0
    cols: int = 0
    terminal: bool = True
    env: Mapping[str, str] = NOTHING
    stream: str = ""


class ShellAttach(Op, once=True, streams=True, command="shell"):
    """Take a session over. The answer comes with a descriptor, or over the tree with a stream, on which frames travel
    (``pact.session.frames``)."""

    session: str
    rows: int = 0
    cols: int = 0
    stream: str = ""


class Exec(Op, once=True, streams=True, bulk=True, at="member", command="exec"):
    """Run one command as the person's account, without a terminal. Over the tree only. Who may stands in ``[shell]
    roles``. ``words`` as in ``ShellOpen``; ``stdin``: base64. A short output comes in the answer, a longer one, or with
    ``live`` any, on a stream; of more than ``output_max`` bytes the rest is thrown away."""

    words: Sequence[str]
    stdin: str = ""
    live: bool = False
    output_max: int = 1 << 20
    limit_ms: int = 60_000
    env: Mapping[str, str] = NOTHING
    stream: str = ""


class SessionRevoke(Op, role="admin", at="member", afar=False):
    """From the root alone: a person's key was removed, and what it has opened ends."""

    user: str


class SessionEnd(Op, command="sessions"):
    """Hang a session up, or end what a command has left behind: one's own, or, as an administrator, anybody's.

    ``node``: whose session is meant. From afar a session is hung up only where this is the node's name: each node
    counts its sessions for itself, so that the same name is another person's on another node. A command has one name on
    all nodes."""

    session: str
    node: str = ""


class Tracked(Op, command="track"): ...


# -- settling --------------------------------------------------------------------------------------------------------


class Commit(Changing, role="ops", command="commit"):
    targets: Sequence[str] = ()
    all: bool = False
    message: str = ""
    ttl_ns: int | None = None
    force: bool = False
    shared: bool = False
    without_content: bool = False


class Rollback(Changing, role="ops", command="rollback"):
    targets: Sequence[str] = ()
    all: bool = False
    dry_run: bool = False
    force: bool = False
    shared: bool = False
    to_seq: int | None = None
    trials: str | None = None


class Redo(Changing, role="admin", command="redo"):
    change: str
    dry_run: bool = False
    message: str = ""


class Extend(Changing, role="ops", command="extend"):
    by_ns: int
    targets: Sequence[str] = ()
    shared: bool = False


# -- declared state --------------------------------------------------------------------------------------------------


class Declare(Changing, role="admin", command="declare"):
    resources: Mapping[str, Value]
    blobs: Mapping[str, str] = NOTHING
    prune: bool = False
    take: bool = False
    dry_run: bool = False
    track: Mapping[str, str] = NOTHING


class GoBack(Declare):
    """A ``rollback`` to an earlier record, after the agent has found the declared state of that time: ``cause`` and
    ``to_seq`` are for its record, ``trials`` says what happens to trials; ``enforced``, ``closed``: as in its record.
    """

    to_seq: int
    cause: str = "rollback"
    force: bool = False
    trials: str | None = None
    enforced: Mapping[str, Owner] = NOTHING
    closed: Sequence[str] = ()


class Apply(Changing, role="admin", once=False, afar=False, command="apply"):
    """Apply on one node. With ``--nodes`` the root begins a group instead."""

    resources: Mapping[str, Value]
    blobs: Mapping[str, str] = NOTHING
    dry_run: bool = False
    message: str = ""


class Adopt(Changing, role="admin", command="adopt"):
    patterns: Sequence[str]


class Track(Changing, role="admin", command="track"):
    patterns: Mapping[str, str]


# -- suspending ------------------------------------------------------------------------------------------------------


class EmergencyStart(Changing, role="ops", command="emergency"):
    reason: str = ""
    for_ns: int | None = None


class EmergencyEnd(Changing, role="ops", command="emergency"):
    how: str | None = None
    message: str = ""
    force: bool = False
    all: bool = False
    shared: bool = False
    dry_run: bool = False


class HoldPlace(Changing, role="ops", command="hold"):
    reason: str = ""
    for_ns: int | None = None
    change: str | None = None


class HoldRelease(Changing, role="ops", command="hold"):
    name: str | None = None


class Epilog(Changing, role="admin", afar=False, command="epilog"):
    """The batch system says that a job has ended on this node. Only root may say so: with the job ends the hold of what
    was set for it.  # O7"""

    job: str


# -- what the root asks of members -----------------------------------------------------------------------------------


class GroupCheck(FromRoot):
    fence: int
    resources: Mapping[str, Value]
    blobs: Mapping[str, str] = NOTHING


class GroupApply(FromRoot):
    fence: int
    group: str
    resources: Mapping[str, Value]
    message: str
    left_ns: int
    blobs: Mapping[str, str] = NOTHING


class GroupVote(FromRoot):
    fence: int
    group: str
    action: str
    ballot: int
    automatic: bool = False
    force: bool = False


class GroupState(FromRoot):
    fence: int
    group: str


class GroupDecide(FromRoot):
    fence: int
    group: str
    ballot: int
    decision: str
    action: str
    why: str = ""
    message: str = ""
    ttl_ns: int | None = None
    force: bool = False


class MemberExtend(FromRoot):
    fence: int
    group: str
    left_ns: int


class FleetSeen(FromRoot):
    """The fleet's holds, for nodes that must have them before the root reports that they are held."""

    fence: int
    seq: int
    holds: Sequence[Attrs]


# -- what people ask of the root -------------------------------------------------------------------------------------


class BeginGroup(AtRoot, role="admin", changes=True, command="apply"):
    """``allow_missing``: how many nodes may be absent, or which. ``require_all``: none may be absent at the commit."""

    resources: Mapping[str, Value] = NOTHING
    blobs: Mapping[str, str] = NOTHING
    message: str = ""
    dry_run: bool = False
    require_all: bool = False
    allow_missing: int | str | None = None


class GroupCommit(AtRoot, role="ops", changes=True, settles=True, command="commit"):
    group: str = ""
    message: str = ""
    ttl_ns: int | None = None
    allow_missing: int | str | None = None


class GroupRollback(AtRoot, role="ops", changes=True, settles=True, command="rollback"):
    group: str = ""
    force: bool = False
    allow_missing: int | str | None = None


class GroupExtend(AtRoot, role="ops", changes=True, settles=True, command="extend"):
    group: str = ""
    by_ns: int = 0
    allow_missing: int | str | None = None


class Groups(AtRoot, command="groups"):
    group: str | None = None
    all: bool = False


class FleetHold(AtRoot, role="ops", changes=True, settles=True, command="hold"):
    reason: str = ""
    for_ns: int | None = None


class FleetRelease(AtRoot, role="ops", changes=True, settles=True, command="hold"):
    hold: str | None = None


class Nodes(AtRoot, command="nodes"): ...


class Live(AtRoot, command="top"):
    """The state of the whole fleet, then what changes, at most once a second: the same that the web page is told. It
    has no end."""


class NodesForget(AtRoot, role="admin", changes=True, command="nodes"): ...


#: The requests that a node accepts, by their names.
AT_NODE: Final[Mapping[str, type[Op]]] = {
    "ping": Ping,
    "status": Status,
    "check": Check,
    "watch": Watch,
    "export": Export,
    "diff": Diff,
    "log": Log,
    "show": Show,
    "content": Content,
    "consumers": Consumers,
    "commit": Commit,
    "rollback": Rollback,
    "redo": Redo,
    "extend": Extend,
    "declare": Declare,
    "apply": Apply,
    "adopt": Adopt,
    "track": Track,
    "tracked": Tracked,
    "sessions": Sessions,
    "shell_open": ShellOpen,
    "shell_attach": ShellAttach,
    "session_end": SessionEnd,
    "session_revoke": SessionRevoke,
    "exec": Exec,
    "emergency_start": EmergencyStart,
    "emergency_end": EmergencyEnd,
    "hold_place": HoldPlace,
    "hold_release": HoldRelease,
    "epilog": Epilog,
    "state": State,
    "group_check": GroupCheck,
    "group_apply": GroupApply,
    "group_vote": GroupVote,
    "group_state": GroupState,
    "group_decide": GroupDecide,
    "group_extend": MemberExtend,
    "fleet_seen": FleetSeen,
}
#: The requests that the root itself accepts, besides those that it passes to nodes.
AT_ROOT: Final[Mapping[str, type[Op]]] = {
    "apply": BeginGroup,
    "group_commit": GroupCommit,
    "group_rollback": GroupRollback,
    "group_extend": GroupExtend,
    "groups": Groups,
    "fleet_hold": FleetHold,
    "fleet_release": FleetRelease,
    "nodes": Nodes,
    "nodes_forget": NodesForget,
    "live": Live,
    "watch": Watch,
}

#: Requests whose answers may open a stream.
STREAMING: Final = frozenset(name for name, op in AT_NODE.items() if op.streams)
BULK: Final = frozenset(name for name, op in AT_NODE.items() if op.bulk)

for _name, _op in [*AT_NODE.items(), *AT_ROOT.items()]:
    _op.asked_as = _name

#: The JSON types of each annotation. That each entry of a list is text is checked where the list is read.
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, NoneType),
    "int | None": (int, NoneType),
    "int | str | None": (int, str, NoneType),
    "Sequence[str]": (list,),
    "Sequence[Attrs]": (list,),
    "Mapping[str, str]": (dict,),
    "Mapping[str, Value]": (dict,),
}


def types_of(op: type[Op]) -> dict[str, tuple[type, ...]]:
    """The fields of a request's arguments, each with the types that its value may have."""
    return {name: _TYPES[text] for name, text in op.__annotations__.items()}


def texts(op: type[Op], field: str) -> bool:
    """Whether a field is a list of texts."""
    return bool(op.__annotations__[field] == "Sequence[str]")


def needed(op: type[Op]) -> tuple[str, ...]:
    """The required fields."""
    return tuple(name for name in op.__annotations__ if name not in op.__dict__)


#: Numbers in arguments must be smaller than this.
NUMBER_MAX: Final = 1 << 62


def wrong(op: type[Op], args: JsonRead) -> str:
    """What is wrong with a request's arguments, ``""`` if nothing is."""
    types = types_of(op)
    for key, value in args.items():
        if key not in types:
            return f"unknown field {strict.shown(key)}"
        if not isinstance(value, types[key]) or (isinstance(value, bool) and bool not in types[key]):
            return f"{key} has the wrong type"
        if isinstance(value, int) and abs(value) > NUMBER_MAX:
            return f"{key} is out of range"
        if isinstance(value, list) and texts(op, key) and not all(isinstance(v, str) for v in value):
            return f"{key} must be a list of strings"
    return next((f"{key} is missing" for key in needed(op) if key not in args), "")


def args_of(op: Op) -> Json:
    """The arguments as they travel: those that equal their default are left out."""
    kind = type(op)
    given = {name: getattr(op, name) for name in kind.__annotations__}
    return {name: value for name, value in given.items() if name not in kind.__dict__ or kind.__dict__[name] != value}


def made(op: str, args: JsonRead) -> Op:
    """A request to a node, from its name and its checked arguments."""
    return AT_NODE[op](**args)
