"""What the root knows of an unfinished group besides its records, and how it shows the group.

All of it can be forgotten: a new root asks again, and gets the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from pact.core.phases import NOT_APPLIED
from pact.core.records import rfc3339
from pact.core.root.answers import Refusal
from pact.core.root.envelope import PACT, Asker, Envelope
from pact.core.root.log import ACTIVE, DECIDED, FINISHED, Group
from pact.core.root.questions import Allowed, Questions
from pact.core.root.term import Term
from pact.errors import UsageError
from pact.model import NS_PER_S, Json, JsonRead

NAMED_MAX: Final = 5
TOLD_NS: Final = 40 * NS_PER_S  # members report their groups every 30 s
BLOCKED_MAX: Final = 100  # nodes whose consumers are shown one by one; of the others only the number
WHY_MAX: Final = 200  # characters of one reason among many

#: What a member may also say about itself; it may not use the words that are reserved for the root.
SAYS: Final = ("diverged: ", "left: ", "committed", "rolled back", "forgotten")
MEMBER: Final = "member"
UNKNOWN: Final = "unknown"
APPLYING: Final = "applying"
OPEN: Final = "open"
VOTING: Final = "voting"
BLOCKED: Final = "blocked"
DECIDING: Final = "deciding"  # the decision is being written
EXTENDING: Final = "extending"  # an extension is being written
CARRYING: Final = "carrying out"
PAUSED: Final = "paused"
FINISHING: Final = "finishing"  # the record that all members are done is being written

#: In these steps nobody can settle the group.
BUSY: Final = (APPLYING, VOTING, DECIDING, EXTENDING, FINISHING)

#: (step, input) -> next step. A pair that is absent is refused by name, never ignored.
TABLE: Final[Mapping[tuple[str, str], str]] = {
    (APPLYING, "applied"): OPEN,
    (OPEN, "vote"): VOTING,
    (OPEN, "extend"): EXTENDING,
    (OPEN, "carry"): CARRYING,  # decided by an earlier root
    (BLOCKED, "vote"): VOTING,
    (BLOCKED, "extend"): EXTENDING,
    (VOTING, "free"): OPEN,
    (VOTING, "block"): BLOCKED,
    (VOTING, "decide"): DECIDING,
    (DECIDING, "carry"): CARRYING,
    (EXTENDING, "extended"): OPEN,
    (CARRYING, "again"): CARRYING,
    (CARRYING, "pause"): PAUSED,
    (CARRYING, "finish"): FINISHING,
    (PAUSED, "again"): CARRYING,
    (PAUSED, "finish"): FINISHING,
}


class StepError(AssertionError):
    """A (step, input) pair that the table does not know: a bug in the caller, which must ask first."""

    def __init__(self, group: str, step: str, what: str) -> None:
        super().__init__(f"group {group} is {step}: {what!r} is not possible")


@dataclass(slots=True)
class Ballot:
    """One vote: its number, the answers, the missing members and the allowed ones (``allow``), and whether force is
    used."""

    n: int = 0
    allow: Allowed = 0
    force: bool = False
    yes: set[str] = field(default_factory=set)
    no: dict[str, Refusal] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """What the root knows of an unfinished group besides its records. Only ``take`` writes ``step``."""

    id: str
    members: list[str]
    step: str = OPEN
    apply_args: bytes = b""
    caller: Asker = PACT
    states: dict[str, str] = field(default_factory=dict)
    ballot: Ballot = field(default_factory=Ballot)
    todo: set[str] = field(default_factory=set)
    flying: set[str] = field(default_factory=set)
    waves: int = 0
    done: set[str] = field(default_factory=set)
    failed: dict[str, Refusal] = field(default_factory=dict)
    retry_at_ns: int | None = None
    heads: list[Envelope] = field(default_factory=list)  # requests that wait for the group's end
    # Members that reported the end with an outcome other than the decision.
    odd: dict[str, str] = field(default_factory=dict)

    def take(self, what: str) -> None:
        """Make one transition. Raises StepError if the table has no such transition."""
        try:
            self.step = TABLE[self.step, what]
        except KeyError:
            raise StepError(self.id, self.step, what) from None

    def heard(self, names: Sequence[str], state: str) -> None:
        """Take in what members say about themselves. A known reason why an apply failed or did not reach a member is
        kept: it says more."""
        state = state[:WHY_MAX] if state in (MEMBER, NOT_APPLIED) or state.startswith(SAYS) else UNKNOWN
        for name in names:
            known = self.states.get(name, "")
            if state == MEMBER:
                self.states[name] = known if known == "applied" else MEMBER
            elif not (known.startswith("failed") and state.startswith("diverged")) and not (
                known.startswith(("failed", "missing")) and state == NOT_APPLIED
            ):
                self.states[name] = state

    def tell(self, questions: Questions, done: int, total: int) -> None:
        """Report progress to the requests that wait."""
        for head in self.heads:
            questions.progress(head, done, total)


def shown(root: Term, run: Run | None, group: Group, *, viewer: bool = False) -> Json:
    """One group for people and programs. Viewers see only the program's name of each command line.  # S2"""
    state, ends = standing(root, run, group)
    return {
        "group": group.id,
        "state": state,
        "owner": group.owner.user,
        "message": group.message,
        "nodes": group.nodes,
        "resources": group.resources,
        "begun": group.begun,
        "window_s": round(group.window_ns / 1e9, 3),
        "deadline": None if ends is None else rfc3339(root.wall_ns + ends - root.t_ns),
        "remaining_s": None if ends is None else round(max(0, ends - root.t_ns) / 1e9, 3),
        "decision": group.decision or None,
        "members": _ended(group) if run is None else _members(root, run, group),
        "blocked": {} if run is None else _blocked(_in_the_way(run), viewer),
    }


def _in_the_way(run: Run) -> dict[str, Refusal]:
    """The members that said no or failed; with ``--require all`` also those that are away."""
    ballot = run.ballot
    said = {**ballot.no, **run.failed}
    if run.step == BLOCKED and not ballot.no:
        said.update({n: Refusal(why) for n, why in ballot.missing.items()})
    return said


def standing(root: Term, run: Run | None, group: Group) -> tuple[str, int | None]:
    """The group's state, and the time when it ends by itself, if any. The cost does not depend on the number of
    members."""
    ends = None
    if group.state == ACTIVE and (run is None or run.step != BLOCKED) and not root.state.holds:
        ends = group.ends_ns
    state = group.state if run is None else run.step
    if root.state.holds and (state == OPEN or (run is not None and state == CARRYING and stopped(root, group))):
        state = "held"
    return group.outcome if group.state == FINISHED else state, ends


def progress(root: Term, run: Run | None) -> Json:
    """How far the members are, and who is in the way, for people who look once a second: whatever the number of
    members, this costs little. Viewers see only the program's name of a command line.  # S2
    """
    if run is None:
        return {"members": 0, "done": 0, "blocked": []}
    said = _in_the_way(run)
    if run.step in (VOTING, BLOCKED):
        done = len(run.ballot.yes)
    elif run.step in (APPLYING, OPEN, EXTENDING):
        done = list(run.states.values()).count("applied")  # a tenth of a millisecond for ten thousand members
    else:
        done = len(run.done)
    blocked = [
        [n, v.why[:WHY_MAX], [_named(h) for h in v.holders[:NAMED_MAX]]] for n, v in islice(said.items(), NAMED_MAX)
    ]
    return {
        "members": len(run.members),
        "done": done,
        "failed": len(run.failed),
        "blocked": blocked,
        "in_way": len(said),
    }


def _blocked(said: Mapping[str, Refusal], viewer: bool) -> dict[str, Json]:
    """``{node: {why, holders}}``. Beyond ``BLOCKED_MAX`` nodes: ``more``, the number of consumers that are not
    named."""
    out: dict[str, Json] = {}
    for name, v in said.items():
        if len(out) < BLOCKED_MAX:
            out[name] = {"why": v.why, "holders": [_named(h) if viewer else h for h in v.holders]}
        else:
            out[name] = {"why": v.why[:WHY_MAX], "holders": [], "more": len(v.holders)}
    return out


def _named(holder: JsonRead) -> Json:
    command = str(holder.get("command", "")).split(" ", maxsplit=1)[0].rpartition("/")[2]
    return {**holder, "command": command, "path": ""}


def _ended(group: Group) -> dict[str, str]:
    """The outcome on each member."""
    return dict(group.ended or {group.outcome: group.nodes}) if group.state == FINISHED else {}


def _members(root: Term, run: Run, group: Group) -> dict[str, str]:
    """``{state: node set}``."""
    out: dict[str, list[str]] = {}
    for name in run.members:
        if name in run.done:
            state = "done"
        elif name in run.failed or (name in run.ballot.no and run.step in (BLOCKED, OPEN)):
            state = "blocked" if (run.failed.get(name) or run.ballot.no[name]).holders else "failed"
        elif name not in root.nodes:
            state = "owed" if group.state == DECIDED else "away"
        else:
            state = _state_here(root, run, name) if group.state == ACTIVE else "under way"
        out.setdefault(state, []).append(name)
    return {state: root.sets.fold(names) for state, names in out.items()}


def _state_here(root: Term, run: Run, name: str) -> str:
    """The state of a connected member. After a change of root members report their groups; a member that reports none
    has none."""
    silent_ns = root.t_ns - root.nodes[name].since_ns
    return run.states.get(name, "member" if run.apply_args or silent_ns < TOLD_NS else NOT_APPLIED)[:WHY_MAX]


def stopped(root: Term, group: Group) -> bool:
    """Whether holds of the whole fleet stop this group: no rollback continues, decided or not, unless force is
    recorded.  # G8
    """
    return bool(root.state.holds) and group.decision == "rollback" and not group.terms.force


def held_by(root: Term) -> str:
    hold = next(iter(root.state.holds.values()))
    return f"the whole fleet is held by {hold.user}: {hold.reason}"


def reasons(root: Term, run: Run) -> str:
    """The first few members that said no, folded, with their reasons."""
    by_why: dict[str, list[str]] = {}
    for name, no in run.ballot.no.items():
        by_why.setdefault(no.why, []).append(name)
    if not by_why:
        for name, why in run.ballot.missing.items():
            by_why.setdefault(why, []).append(name)
    shown = [f"{root.sets.fold(names)}: {why}" for why, names in list(by_why.items())[:NAMED_MAX]]
    more = len(by_why) - len(shown)
    return "; ".join(shown) + (f"; and {more} other reasons" if more > 0 else "")


def as_written(root: Term, members: Sequence[str]) -> str:
    """The members as the log stores them; "" if the next root could not read them from it."""
    text = root.sets.fold(members)
    try:
        return text if set(root.sets.expand(text)) == set(members) else ""
    except UsageError:
        return ""


def caller_of(group: Group) -> Asker:
    """The person who decided the group, for the members' journals; or the root itself if the group's window ended."""
    if group.by.get("via") != "cluster":
        return PACT
    return Asker(group.by["user"], group.by["role"])


def number(gid: str) -> int:
    """The number of ``g7``; 0 for a text that is not the name of a group."""
    return int(gid[1:]) if gid[:1] == "g" and gid[1:].isascii() and gid[1:].isdigit() and len(gid) < 18 else 0
