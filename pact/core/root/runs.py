"""What the root knows of an unfinished group beside its records, and how it shows it.

All of it can be forgotten: a new root asks again, and gets the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
TOLD_NS: Final = 40 * NS_PER_S  # members tell their groups every 30 s
BLOCKED_MAX: Final = 100  # nodes whose consumers are shown one by one; of the others the number
WHY_MAX: Final = 200  # characters of a reason of one among many

#: What else a member can be as it says itself; the words of the root's are not for it.
SAYS: Final = ("diverged: ", "left: ", "committed", "rolled back", "forgotten")
MEMBER: Final = "member"
UNKNOWN: Final = "unknown"
APPLYING: Final = "applying"
OPEN: Final = "open"
VOTING: Final = "voting"
BLOCKED: Final = "blocked"
DECIDING: Final = "deciding"  # the decision is being written
EXTENDING: Final = "extending"  # more time is being written
CARRYING: Final = "carrying out"
PAUSED: Final = "paused"
FINISHING: Final = "finishing"  # that all have done it is being written

#: Nobody settles it just now.
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
    """One vote: its number, who has said what, who is missed and may be (``allow``), and whether it is by force."""

    n: int = 0
    allow: Allowed = 0
    force: bool = False
    yes: set[str] = field(default_factory=set)
    no: dict[str, Refusal] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """What the root knows of an unfinished group beside its records. ``take`` alone writes ``step``."""

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
    heads: list[Envelope] = field(default_factory=list)  # whoever waits for how it ends
    odd: dict[str, str] = field(default_factory=dict)  # said that they were done, with another outcome

    def take(self, what: str) -> None:
        """Make one transition. Raises StepError where the table has none."""
        try:
            self.step = TABLE[self.step, what]
        except KeyError:
            raise StepError(self.id, self.step, what) from None

    def heard(self, names: Sequence[str], state: str) -> None:
        """What members say of themselves. Why an apply failed, or did not reach one, says more than what came of it."""
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
        """Whoever waits hears how far it is."""
        for head in self.heads:
            questions.progress(head, done, total)


def shown(root: Term, run: Run | None, group: Group, *, viewer: bool = False) -> Json:
    """One group for people and programs. Of command lines, viewers see the program's name.  # S2"""
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
    """Who said no or failed; with ``--require all`` it is enough that somebody is away."""
    ballot = run.ballot
    said = {**ballot.no, **run.failed}
    if run.step == BLOCKED and not ballot.no:
        said.update({n: Refusal(why) for n, why in ballot.missing.items()})
    return said


def standing(root: Term, run: Run | None, group: Group) -> tuple[str, int | None]:
    """How it stands, and when it ends by itself, if it does. Costs nothing, however many its members are."""
    ends = None
    if group.state == ACTIVE and (run is None or run.step != BLOCKED) and not root.state.holds:
        ends = group.ends_ns
    state = group.state if run is None else run.step
    if root.state.holds and (state == OPEN or (run is not None and state == CARRYING and stopped(root, group))):
        state = "held"
    return group.outcome if group.state == FINISHED else state, ends


def _blocked(said: Mapping[str, Refusal], viewer: bool) -> dict[str, Json]:
    """``{node: {why, holders}}``. Beyond ``BLOCKED_MAX`` nodes: ``more``, how many consumers are not named."""
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
    """How it ended on each member."""
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
    """Of a connected member. After a change of root members tell which groups they have; who does not has none."""
    silent_ns = root.t_ns - root.nodes[name].since_ns
    return run.states.get(name, "member" if run.apply_args or silent_ns < TOLD_NS else NOT_APPLIED)[:WHY_MAX]


def stopped(root: Term, group: Group) -> bool:
    """The whole fleet is held: nothing more is rolled back, decided or not, unless it is on record that somebody forces
    it.  # G8
    """
    return bool(root.state.holds) and group.decision == "rollback" and not group.terms.force


def held_by(root: Term) -> str:
    hold = next(iter(root.state.holds.values()))
    return f"the whole fleet is held by {hold.user}: {hold.reason}"


def reasons(root: Term, run: Run) -> str:
    """Who said no, and why, folded: the first few."""
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
    """The members as the log has them; "" if the next root could not read them from it."""
    text = root.sets.fold(members)
    try:
        return text if set(root.sets.expand(text)) == set(members) else ""
    except UsageError:
        return ""


def caller_of(group: Group) -> Asker:
    """Who decided it, for the members' journals: a person, or the root itself where its window ended."""
    if group.by.get("via") != "cluster":
        return PACT
    return Asker(group.by["user"], group.by["role"])


def number(gid: str) -> int:
    """Of ``g7``; 0 for what is no group's name."""
    return int(gid[1:]) if gid[:1] == "g" and gid[1:].isascii() and gid[1:].isdigit() and len(gid) < 18 else 0
