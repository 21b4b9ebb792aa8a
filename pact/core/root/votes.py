"""Members vote, the root counts the votes, and the decision is written before it is carried out.  # G1, G3"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pact.core.ops import GroupDecide, GroupVote
from pact.core.root import payloads
from pact.core.root.answers import Refusal, answer_of, refusal_of
from pact.core.root.carry import Carrier
from pact.core.root.envelope import PACT, Asker, Envelope
from pact.core.root.payloads import PLAIN, Terms
from pact.core.root.questions import ABSENT, Allowed, Questions, allowed
from pact.core.root.runs import BLOCKED, Ballot, Run, held_by, reasons, shown
from pact.errors import EXIT_BLOCKED, EXIT_CONFLICT, EXIT_FAILED, EXIT_UNREACHABLE
from pact.model import Json

BALLOTS: Final = 1_000_000
VOTE_TRIES: Final = 2


class Votes:
    """The votes of all groups of one root. ``runs`` are the unfinished groups."""

    def __init__(self, questions: Questions) -> None:
        self.root = questions.root
        self.questions = questions
        self.runs: dict[str, Run] = {}
        self.carrier = Carrier(questions, self.runs)
        self._ballots = 0

    def vote(
        self,
        run: Run,
        action: str,
        head: Envelope | None,
        terms: Terms = PLAIN,
        allow: Allowed = 0,
        *,
        automatic: bool = False,
    ) -> None:
        root = self.root
        before = run.step, run.retry_at_ns
        run.take("vote")
        run.ballot = Ballot(self.number(), allow, terms.force, missing=self.away(run))
        run.heads, run.retry_at_ns = [] if head is None else [head], None
        caller = PACT if head is None else head.caller
        run.tell(self.questions, 0, len(run.members) - len(run.ballot.missing))
        vote = GroupVote(
            group=run.id,
            fence=root.fence,
            action=action,
            ballot=run.ballot.n,
            automatic=automatic,
            force=terms.force,
        )
        here = [n for n in run.members if n in root.nodes]
        self.ask_votes(run, here, vote, caller, lambda: self.counted(run, action, terms, caller, before), VOTE_TRIES)

    def ask_votes(
        self, run: Run, names: Iterable[str], vote: GroupVote, caller: Asker, then: Callable[[], None], tries: int
    ) -> None:
        """Ask for votes. A connected member that did not answer (it is slow, or moved to another parent) is asked once
        more, and then blocks a rollback: it may be the one with a consumer. Only a disconnected member owes.  # F5
        """
        root, ballot = self.root, run.ballot

        def part(answered: list[str], body: bytes) -> None:
            answer = answer_of(body)
            if answer.exit == 0 and answer.result.get("vote") == "yes":
                ballot.yes.update(answered)
            else:
                ballot.no.update(dict.fromkeys(answered, refusal_of(answer)))
            run.tell(self.questions, len(ballot.yes) + len(ballot.no), len(run.members) - len(ballot.missing))

        def done(lost: dict[str, str]) -> None:
            silent = {n: why for n, why in lost.items() if n in root.nodes}
            ballot.missing.update({n: why for n, why in lost.items() if n not in silent})
            if silent and tries > 1 and not ballot.no:
                self.ask_votes(run, silent, vote, caller, then, tries - 1)
                return
            if vote.action == "rollback" and not ballot.force:
                ballot.no.update({n: Refusal(why) for n, why in silent.items()})
            else:
                ballot.missing.update(silent)
            then()

        self.questions.ask_members(names, vote, caller, part, done)

    def counted(self, run: Run, action: str, terms: Terms, caller: Asker, before: tuple[str, int | None]) -> None:
        """All votes are in."""
        root, ballot = self.root, run.ballot
        group = root.state.groups[run.id]
        never = {n: v.why for n, v in ballot.no.items() if v.absent}
        if never and allowed({**ballot.missing, **never}, ballot.allow):  # it never had the group: it counts as missing
            ballot.no = {n: v for n, v in ballot.no.items() if n not in never}
            ballot.missing.update(never)
        absent_stops = (
            not allowed(ballot.missing, ballot.allow)
            if action == "commit"
            else (group.require_all and bool(ballot.missing))
        )
        was_blocked = before[0] == BLOCKED
        if action == "rollback" and root.state.holds and not ballot.force:  # a hold was placed during the vote  # G8
            run.take("block" if was_blocked else "free")
            self.stop(run, action, caller, held_by(root))
        elif not ballot.no and not absent_stops:
            self.decide(run, action, terms, caller)
        elif action == "rollback":
            run.take("block")
            if root.limits.on_busy_retry and any(n.holders for n in ballot.no.values()):
                run.retry_at_ns = root.t_ns + root.limits.retry_ns
            self.stop(run, action, caller)
        else:
            run.take("block" if was_blocked else "free")
            if was_blocked:  # its window had ended before: a person decides, as before
                run.retry_at_ns = before[1]
            self.stop(run, action, caller)

    def stop(self, run: Run, action: str, caller: Asker, held: str = "") -> None:
        """A member said no, or is needed and away. Nothing is written; the members that said yes are free
        again.  # F5, G3"""
        root, ballot = self.root, run.ballot
        why = held or reasons(root, run)
        if held:
            text = f"{run.id}: not rolled back: {why}"
        elif action == "rollback":
            text = f"{run.id}: rollback blocked: {why}"
            root.note(text)
        else:
            text = f"{run.id}: not committed: {why}"
        abort = GroupDecide(
            group=run.id,
            fence=root.fence,
            ballot=ballot.n,
            decision="abort",
            action="commit" if held else action,
            why=text,
        )
        reachable = [n for n in run.members if n in root.nodes]

        heads, run.heads = run.heads, []

        def told(lost: dict[str, str]) -> None:
            if any(n.holders for n in ballot.no.values()):
                code = EXIT_BLOCKED
            elif held:
                code = EXIT_CONFLICT
            else:
                code = (EXIT_CONFLICT if action == "commit" else EXIT_FAILED) if ballot.no else EXIT_UNREACHABLE
            failed = {**{n: v.why for n, v in ballot.no.items()}, **ballot.missing}
            for head in heads:
                self.questions.reply(head, code, text, "pact groups " + run.id, self.shown(run.id), failed)

        self.questions.ask_members(reachable, abort, caller, ignore, told)

    def decide(self, run: Run, action: str, terms: Terms, caller: Asker) -> None:
        root, ballot = self.root, run.ballot
        run.take("decide")
        root.record(
            payloads.GroupDecided(
                group=run.id,
                decision=action,
                ballot=ballot.n,
                fence=root.fence,
                why=f"asked by {caller.user}" if run.heads else "its window ended",
                args=terms,
                owed=root.sets.fold(ballot.missing) if ballot.missing else "",
            ),
            root.actor(caller if run.heads else None),
            lambda: self.carrier.carry(run),
        )

    def away(self, run: Run) -> dict[str, str]:
        """Members that are missing, without those that were taken out of service."""
        return {n: ABSENT for n in run.members if n not in self.root.nodes and n not in self.root.state.forgotten}

    def shown(self, gid: str) -> Json:
        """One group for people and programs."""
        return shown(self.root, self.runs.get(gid), self.root.state.groups[gid])

    def number(self) -> int:
        """A number larger than every ballot of this and of earlier terms."""
        self._ballots += 1
        return self.root.fence * BALLOTS + self._ballots


def ignore(names: list[str], body: bytes) -> None:
    pass
