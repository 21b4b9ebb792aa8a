"""Members vote, their votes are counted, and what they decide is written before it is carried out.  # G1, G3"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pact.core.root import payloads
from pact.core.root.answers import answer_of, refusal_of
from pact.core.root.carry import Carrier
from pact.core.root.questions import ABSENT, Questions, allowed
from pact.core.root.runs import BLOCKED, DECIDING, OPEN, PACT, VOTING, Head, Run, held_by, reasons, shown
from pact.errors import EXIT_BLOCKED, EXIT_CONFLICT, EXIT_FAILED, EXIT_UNREACHABLE

BALLOTS: Final = 1_000_000
VOTE_TRIES: Final = 2


class Votes:
    """Of all groups of one root. ``runs`` are those that are not finished."""

    def __init__(self, questions: Questions) -> None:
        self.root = questions.root
        self.questions = questions
        self.runs: dict[str, Run] = {}
        self.carrier = Carrier(questions, self.runs)
        self._ballots = 0

    def vote(
        self, run: Run, action: str, head: Head | None, args: Mapping[str, Any], *, automatic: bool = False
    ) -> None:
        root = self.root
        allow = self.questions.allowance(args)
        before = run.step, run.retry_at_ns
        run.step, run.ballot, run.force = VOTING, self.ballot(), bool(args.get("force"))
        run.heads = [] if head is None else [head]
        run.yes, run.no, run.retry_at_ns, run.allow = set(), {}, None, allow
        run.missing = self.away(run)
        caller = PACT if head is None else head["caller"]
        run.tell(self.questions, 0, len(run.members) - len(run.missing))

        vote = {
            "group": run.id,
            "fence": root.fence,
            "action": action,
            "ballot": run.ballot,
            "automatic": automatic,
            "force": bool(args.get("force")),
        }
        here = [n for n in run.members if n in root.nodes]
        self.ask_votes(run, here, vote, caller, lambda: self.counted(run, action, args, caller, before), VOTE_TRIES)

    def ask_votes(
        self,
        run: Run,
        names: Iterable[str],
        vote: Mapping[str, Any],
        caller: Mapping[str, Any],
        then: Callable[[], None],
        tries: int,
    ) -> None:
        """Who is connected and did not answer (it is slow, or moved to another parent) is asked once more, and then
        stands in a rollback's way: it may be the one with a consumer. Only who is away owes.  # F5
        """
        root = self.root

        def part(answered: list[str], body: bytes) -> None:
            answer = answer_of(body)
            if answer["exit"] == 0 and answer["result"].get("vote") == "yes":
                run.yes.update(answered)
            else:
                for name in answered:
                    run.no[name] = refusal_of(answer)
            run.tell(self.questions, len(run.yes) + len(run.no), len(run.members) - len(run.missing))

        def done(lost: dict[str, str]) -> None:
            silent = {n: why for n, why in lost.items() if n in root.nodes}
            run.missing.update({n: why for n, why in lost.items() if n not in silent})
            if silent and tries > 1 and not run.no:
                self.ask_votes(run, silent, vote, caller, then, tries - 1)
                return
            if vote["action"] == "rollback" and not run.force:
                run.no.update({n: {"why": why, "holders": []} for n, why in silent.items()})
            else:
                run.missing.update(silent)
            then()

        self.questions.ask_members(names, "group_vote", vote, caller, part, done)

    def counted(
        self, run: Run, action: str, args: Mapping[str, Any], caller: Mapping[str, Any], before: tuple[str, int | None]
    ) -> None:
        """Every vote is in."""
        root = self.root
        group = root.state.groups[run.id]
        never = {n: v["why"] for n, v in run.no.items() if v.get("absent")}
        if never and allowed({**run.missing, **never}, run.allow):  # it was never there: as good as missing
            run.no = {n: v for n, v in run.no.items() if n not in never}
            run.missing.update(never)
        absent_stops = (
            not allowed(run.missing, run.allow) if action == "commit" else (group.require_all and bool(run.missing))
        )
        if action == "rollback" and root.state.holds and not run.force:  # placed while they voted  # G8
            self.stop(run, action, caller, held_by(root))
            run.step = before[0]
        elif run.no or absent_stops:
            self.stop(run, action, caller)
            if action == "commit" and before[0] == BLOCKED:  # its window had ended: a person decides, as before
                run.step, run.retry_at_ns = before
        else:
            self.decide(run, action, args, caller)

    def stop(self, run: Run, action: str, caller: Mapping[str, Any], held: str = "") -> None:
        """Somebody said no, or is needed and away. Nothing is written; who said yes is free again.  # F5, G3"""
        root = self.root
        why = held or reasons(root, run)
        if held:
            text = f"{run.id}: not rolled back: {why}"
        elif action == "rollback":
            run.step = BLOCKED
            text = f"{run.id}: rollback blocked: {why}"
            if root.limits.on_busy_retry and any(n["holders"] for n in run.no.values()):
                run.retry_at_ns = root.t_ns + root.limits.retry_ns
            root.note(text)
        else:
            run.step = OPEN
            text = f"{run.id}: not committed: {why}"
        args = {
            "group": run.id,
            "fence": root.fence,
            "ballot": run.ballot,
            "decision": "abort",
            "action": "commit" if held else action,
            "why": text,
        }
        reachable = [n for n in run.members if n in root.nodes]

        heads, run.heads = run.heads, []

        def told(lost: dict[str, str]) -> None:
            if any(n["holders"] for n in run.no.values()):
                code = EXIT_BLOCKED
            elif held:
                code = EXIT_CONFLICT
            else:
                code = (EXIT_CONFLICT if action == "commit" else EXIT_FAILED) if run.no else EXIT_UNREACHABLE
            failed = {**{n: v["why"] for n, v in run.no.items()}, **run.missing}
            for head in heads:
                self.questions.reply(head, code, text, "pact groups " + run.id, self.shown(run.id), failed)

        self.questions.ask_members(reachable, "group_decide", args, caller, ignore, told)

    def decide(self, run: Run, action: str, args: Mapping[str, Any], caller: Mapping[str, Any]) -> None:
        root = self.root
        run.step = DECIDING
        root.record(
            payloads.GroupDecided(
                group=run.id,
                decision=action,
                ballot=run.ballot,
                fence=root.fence,
                why=f"asked by {caller['user']}" if run.heads else "its window ended",
                args=payloads.Terms(str(args.get("message", "")), args.get("ttl_ns"), run.force),
                owed=root.sets.fold(run.missing) if run.missing else "",
            ),
            root.actor(caller if run.heads else None),
            lambda: self.carrier.carry(run),
        )

    def away(self, run: Run) -> dict[str, str]:
        """Members that are missed: not those that were taken out of service."""
        return {n: ABSENT for n in run.members if n not in self.root.nodes and n not in self.root.state.forgotten}

    def shown(self, gid: str) -> dict[str, Any]:
        """One group for people and programs."""
        return shown(self.root, self.runs.get(gid), self.root.state.groups[gid])

    def ballot(self) -> int:
        """Larger than every ballot of this and of earlier terms."""
        self._ballots += 1
        return self.root.fence * BALLOTS + self._ballots


def ignore(names: list[str], body: bytes) -> None:
    pass
