"""Groups at the root: begin, vote, decide.

Two-phase commit with presumed abort: only a decision is written, and its consequences wait until it is durable.  # G1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from pact.core.ops import GroupCommit, GroupDecide, GroupExtend, GroupRollback, MemberExtend, NodesForget
from pact.core.root import payloads
from pact.core.root.answers import answer_of
from pact.core.root.begin import Beginner
from pact.core.root.envelope import PACT, Envelope
from pact.core.root.holds import Holds
from pact.core.root.log import ACTIVE, DECIDED, FINISHED, Group
from pact.core.root.payloads import Terms
from pact.core.root.questions import Questions, refuse_absent, require_role, require_short
from pact.core.root.runs import (
    APPLYING,
    BLOCKED,
    BUSY,
    DECIDING,
    EXTENDING,
    FINISHING,
    OPEN,
    VOTING,
    Run,
    caller_of,
    held_by,
    number,
)
from pact.core.root.show import look
from pact.core.root.votes import BALLOTS, Votes
from pact.errors import (
    EXIT_UNREACHABLE,
    ConflictError,
    DeniedError,
    UsageError,
    gravest,
)
from pact.model import NS_PER_S

EXTEND_MAX_NS: Final = 10 * 24 * 3600 * NS_PER_S
TTL_MIN_NS: Final = 900 * NS_PER_S
TTL_MAX_NS: Final = EXTEND_MAX_NS
SETTLE_NS: Final = 15 * NS_PER_S
RELEASE_NS: Final = 2 * NS_PER_S
ASKED_MAX: Final = 64
# Questions of nodes that are being answered at once: the limit leaves room for people's commands.
ASKING_MAX: Final = 256
FORGET_MAX: Final = 10_000


class Groups(Votes):
    """All groups of one root."""

    def __init__(self, questions: Questions) -> None:
        super().__init__(questions)
        self.beginner = Beginner(questions, self.runs)
        self.holds = Holds(questions, self._released)
        self.ops: Mapping[str, Callable[[Envelope, Any], None]] = {
            "apply": self.beginner.apply,
            "group_commit": self._commit,
            "group_rollback": self._rollback,
            "group_extend": self._extend,
            "groups": partial(look, questions, self.runs),
            "fleet_hold": self.holds.place,
            "fleet_release": self.holds.release,
            "nodes_forget": self._forget,
        }
        self._asked_about: dict[str, frozenset[str]] = {}  # cache: group -> its members
        self._not_before_ns = 0
        self.released_ns = 0  # when the fleet's holds were released; a node that has not heard of that would refuse

    def _released(self) -> None:
        """The fleet's holds are released."""
        self.released_ns = self.root.t_ns
        self.carrier.released()

    # -- the term -----------------------------------------------------------------------------------------------

    def begin_term(self, reboot: bool) -> None:
        """Take over the unfinished groups of earlier roots. No window ends before the nodes had time to come back."""
        root = self.root
        wait_ns = root.limits.floor_ns if reboot else min(SETTLE_NS, root.limits.floor_ns)
        self._not_before_ns = root.t_ns + wait_ns
        for group in root.state.groups.values():
            if group.state != FINISHED:
                self.runs[group.id] = Run(group.id, root.sets.expand(group.nodes), caller=caller_of(group))

    def resume(self) -> None:
        """The term's first record is durable: carry out earlier decisions."""
        for run in list(self.runs.values()):
            if self.root.state.groups[run.id].state == DECIDED:
                self.carrier.carry(run)
        self.holds.tell()

    def came(self, names: Sequence[str]) -> None:
        """Nodes are back: what they owe comes first.  # G5"""
        if not names:
            return
        fresh = set(names)
        for run in list(self.runs.values()):
            back = [n for n in run.members if n in fresh]
            if not back:
                continue
            group = self.root.state.groups[run.id]
            if group.state == DECIDED:
                run.todo.update(n for n in back if n not in run.done)
                self.carrier.waves(run)
            elif run.step in (OPEN, APPLYING, BLOCKED):
                self._undo_votes(run, back)
                lacking = [n for n in back if run.states.get(n, "").startswith("missing")]
                if lacking and run.apply_args and run.step == OPEN:
                    run.states.update(dict.fromkeys(lacking, "applying"))
                    self.beginner.apply_to(run, lacking, None)

    def _undo_votes(self, run: Run, names: Iterable[str]) -> None:
        """A vote without a decision binds nobody any more (presumed abort).  # G3"""
        self.carrier.tell(names, self._undone(run.id, self.number()), run.caller)

    def _undone(self, gid: str, ballot: int) -> GroupDecide:
        """The message that ends the votes with this ballot or an earlier one."""
        why = "the vote led to no decision"
        return GroupDecide(group=gid, fence=self.root.fence, ballot=ballot, decision="abort", action="commit", why=why)

    def asked(self, node: str, groups: Sequence[Sequence[Any]]) -> None:
        """A member asks how its groups end. The answer comes from the log only.  # G3"""
        for gid, phase, ballot in groups[:ASKED_MAX]:
            if self.carrier.asking >= ASKING_MAX:
                return  # the member asks again
            group, run = self.root.state.groups.get(gid), self.runs.get(gid)
            if number(gid) > self.root.state.group_n if group is None else node not in self._members(group):
                # A member hears of a group only after its beginning is durable. So another log began this group, and
                # this log does not know how it ended; it may have given the number again, to a group of other nodes.
                self.root.refuse("a group that another log began", node, gid)
                self.beginner.taken(number(gid))
                self._unknown(node, gid, ballot)
            elif group is None:
                self.root.refuse("a question about a group that the log has forgotten", node, gid)
                self._unknown(node, gid, ballot)
            elif group.state == FINISHED:
                self.carrier.reply(node, self.carrier.decision(group), caller_of(group))
            elif run is not None and group.state == DECIDED:
                if node in run.members and node not in run.flying and node not in run.todo:
                    run.done.discard(node)
                    run.todo.add(node)
                    self.carrier.waves(run)
            elif run is not None:
                run.states.setdefault(node, "member")
                if phase == "prepared" and self._led_nowhere(run, ballot):
                    # A question has no seal: a forged one must not undo a vote under way, or a later one.  # T14
                    newest = self.root.fence * BALLOTS + self._ballots
                    self.carrier.reply(node, self._undone(gid, min(ballot, newest)), run.caller)

    def _unknown(self, node: str, gid: str, ballot: int) -> None:
        """This log does not know how the group ended: the member's part becomes its own change, for a person to
        settle."""
        why = "the root's log has no such group"
        word = GroupDecide(
            group=gid, fence=self.root.fence, ballot=ballot, decision="unknown", action="rollback", why=why
        )
        self.carrier.reply(node, word, PACT)

    def _members(self, group: Group) -> frozenset[str]:
        """The members of a group about which nodes ask; many nodes ask at once."""
        known = self._asked_about.get(group.id)
        if known is None:
            if len(self._asked_about) >= ASKED_MAX:
                self._asked_about.clear()
            known = self._asked_about[group.id] = frozenset(self.root.sets.expand(group.nodes))
        return known

    @staticmethod
    def _led_nowhere(run: Run, ballot: int) -> bool:
        """Whether a vote with this ballot can no longer lead to a decision."""
        return run.step not in (VOTING, DECIDING, EXTENDING) or ballot < run.ballot.n

    def tick(self) -> None:
        root = self.root
        self.holds.tick()
        for run in list(self.runs.values()):
            group = root.state.groups[run.id]
            if run.retry_at_ns is not None and run.retry_at_ns <= root.t_ns:
                run.retry_at_ns = None
                if group.state == DECIDED:
                    self.carrier.again(run)
                elif root.state.holds:
                    run.retry_at_ns = root.t_ns + root.limits.retry_ns
                elif run.step == BLOCKED:
                    self.vote(run, "rollback", None, automatic=True)
            due = self._due_ns(run, group)
            if due is not None and due <= root.t_ns:
                self.vote(run, "rollback", None, automatic=True)

    def _due_ns(self, run: Run, group: Group) -> int | None:
        """When the group's window ends: only the root's timer ends a group.  # G2"""
        if group.state != ACTIVE or run.step != OPEN or self.root.state.holds:
            return None
        ends_ns = max(group.ends_ns, self.released_ns + RELEASE_NS if self.released_ns else 0)
        if ends_ns >= self._not_before_ns or all(n in self.root.nodes for n in run.members):
            return ends_ns
        return self._not_before_ns

    def next_wake_ns(self) -> int | None:
        root = self.root
        fleet_ns = self.holds.next_wake_ns()
        wakes = [] if fleet_ns is None else [fleet_ns]
        wakes += [w for run in self.runs.values() if (w := self._due_ns(run, root.state.groups[run.id])) is not None]
        wakes += [run.retry_at_ns for run in self.runs.values() if run.retry_at_ns is not None]
        return min(wakes, default=None)

    # -- vote ---------------------------------------------------------------------------------------------------

    def _commit(self, head: Envelope, args: GroupCommit) -> None:
        run = self._settleable(head, args.group, "commit")
        message, ttl_ns = args.message.strip(), args.ttl_ns
        if not message:
            raise UsageError("a commit needs a message", "pact commit -m 'why'")
        require_short(message)
        if ttl_ns is not None and not TTL_MIN_NS <= ttl_ns <= TTL_MAX_NS:
            raise UsageError("--ttl must lie between 15m and 10d")
        if self._already(run, "commit", head):
            return
        allow = self.questions.allowance(args.allow_missing)
        refuse_absent(self.root, self.away(run), allow, f"{run.id} was not committed")
        self.vote(run, "commit", head, Terms(message, ttl_ns), allow)

    def _rollback(self, head: Envelope, args: GroupRollback) -> None:
        run = self._settleable(head, args.group, "rollback")
        group, force = self.root.state.groups[run.id], args.force
        forced = group.state == DECIDED and group.terms.force
        if self.root.state.holds and not (force or forced):
            raise ConflictError(held_by(self.root), "use --force")
        if group.state == DECIDED and force and not forced:
            self._force(run, head)
            return
        if self._already(run, "rollback", head):
            return
        self.vote(run, "rollback", head, Terms(force=force), self.questions.allowance(args.allow_missing))

    def _settleable(self, head: Envelope, gid: str, what: str) -> Run:
        root, caller = self.root, head.caller
        require_role(caller, "ops", what)
        group = root.state.groups.get(gid)
        if group is None:
            if 0 < number(gid) <= root.state.group_n:
                raise ConflictError(f"{gid} was settled long ago", "see pact log")
            raise UsageError(f"there is no group {gid}", "pact groups lists them")
        if caller.role != "admin" and group.owner.user != caller.user:
            raise DeniedError(f"{what} {gid} of {group.owner.user} needs the role admin")
        if group.state == FINISHED:
            raise ConflictError(f"{gid} is settled already: {group.outcome}", "see pact groups")
        run = self.runs[gid]
        if run.step in BUSY:
            raise ConflictError(f"{gid} is {run.step} just now", "try again in a moment")
        return run

    def _force(self, run: Run, head: Envelope) -> None:
        """The decision stands. From now on only impossible steps stop it; force makes it an act of this person."""
        root = self.root
        if root.state.groups[run.id].decision != "rollback":
            raise ConflictError(f"too late: {run.id} is decided: commit", "see pact groups")

        def done() -> None:
            if run.step == FINISHING:  # the last member has just done it
                self.questions.reply(head, 0, result=self.shown(run.id))
            else:
                self._already(run, "rollback", head)

        root.record(
            payloads.GroupForced(group=run.id, fence=root.fence, why=f"asked by {head.caller.user}"),
            root.actor(head.caller),
            done,
        )

    def _already(self, run: Run, what: str, head: Envelope) -> bool:
        """The group was decided before: the same request continues with what is owed, the opposite one is too late."""
        group = self.root.state.groups[run.id]
        if group.state != DECIDED:
            return False
        if group.decision != what:
            raise ConflictError(f"too late: {run.id} is decided: {group.decision}", "see pact groups")
        run.heads.append(head)
        self.carrier.again(run)
        return True

    # -- nodes that are gone for good ---------------------------------------------------------------------------

    def _forget(self, head: Envelope, args: NodesForget) -> None:
        """Take these nodes out of service: nothing waits for them any more. A node that comes back counts as before."""
        root = self.root
        require_role(head.caller, "admin", "nodes --forget")
        if head.nodes is None:
            raise UsageError("say which nodes are to be forgotten")
        here, absent = self.questions.targets(head.nodes)
        if here:
            raise ConflictError(f"{root.sets.fold(here)} is connected", "take its key out of authorized_keys.toml")
        known = [n for n in absent if n in root.state.cursors or any(n in r.members for r in self.runs.values())]
        if len(known) < len(absent) or len(known) > FORGET_MAX:
            raise UsageError(f"no such node: {root.sets.fold(set(absent).difference(known))}", "pact nodes lists them")

        def done() -> None:
            for run in list(self.runs.values()):
                if root.state.groups[run.id].state == DECIDED:
                    self.carrier.waves(run)
            self.questions.reply(head, 0, result={"v": 1, "forgotten": root.sets.fold(known)})

        root.record(payloads.NodeForgotten(nodes=sorted(known), fence=root.fence), root.actor(head.caller), done)

    # -- extend -------------------------------------------------------------------------------------------

    def _extend(self, head: Envelope, args: GroupExtend) -> None:
        root = self.root
        run = self._settleable(head, args.group, "extend")
        group = root.state.groups[run.id]
        by_ns = args.by_ns
        if not 0 < by_ns <= EXTEND_MAX_NS:
            raise UsageError("extend by more than nothing and at most 10d")
        if group.state == DECIDED:
            raise ConflictError(f"too late: {run.id} is decided: {group.decision}", "see pact groups")
        if group.ends_ns + by_ns > root.t_ns + group.window_ns + EXTEND_MAX_NS:
            raise UsageError(f"{run.id} would be extended by more than 10d in all", "commit it, for a time: --ttl D")
        reopened = run.step == BLOCKED

        refused: dict[str, tuple[int, str]] = {}

        def part(names: list[str], body: bytes) -> None:
            answer = answer_of(body)
            if answer.exit:
                refused.update(dict.fromkeys(names, (answer.exit, answer.message)))

        def told(lost: dict[str, str]) -> None:
            codes = [code for code, _ in refused.values()] + [EXIT_UNREACHABLE] * bool(lost)
            failed = {**{n: why for n, (_, why) in refused.items()}, **lost}
            self.questions.reply(head, gravest(codes), result=self.shown(run.id), failed=failed)

        def done() -> None:
            run.take("extended")
            run.retry_at_ns = None
            run.ballot = replace(run.ballot, no={}, missing={})
            word = MemberExtend(group=run.id, fence=root.fence, left_ns=max(0, group.ends_ns - root.t_ns))
            here = [n for n in run.members if n in root.nodes]
            self.questions.ask_members(here, word, head.caller, part, told)

        run.take("extend")  # no timer and no vote until the extension is durable
        root.record(
            payloads.WindowExtended(group=run.id, by_ns=by_ns, reopened=reopened, fence=root.fence),
            root.actor(head.caller),
            done,
        )
