"""Carries out a durable decision until every member has done it: in waves, with a circuit breaker.  # G5"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pact.core.ops import GroupDecide
from pact.core.root import payloads
from pact.core.root.answers import Refusal, answer_of, clipped, refusal_of
from pact.core.root.envelope import Asker, Envelope
from pact.core.root.log import Group
from pact.core.root.questions import LATE, Questions, allowed
from pact.core.root.runs import CARRYING, PAUSED, WHY_MAX, Run, caller_of, held_by, shown, stopped
from pact.errors import EXIT_BLOCKED, EXIT_CONFLICT, EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE

TELLING_MAX: Final = 16
STATES_MAX: Final = 20  # how many states of members the record of a finished group may have
OUTCOMES: Final = {"commit": "committed", "rollback": "rolled back"}


class Carrier:
    """Carries out decisions. ``runs`` are the runs of ``Groups``."""

    def __init__(self, questions: Questions, runs: dict[str, Run]) -> None:
        self.root = questions.root
        self.questions = questions
        self.runs = runs
        self.asking = 0  # nodes that asked and are being answered
        self._telling: dict[str, set[str]] = {}  # node -> groups whose decision it is being sent

    def decision(self, group: Group) -> GroupDecide:
        return GroupDecide(
            group=group.id,
            fence=self.root.fence,
            ballot=group.ballot,
            decision=group.decision,
            action=group.decision,
            why=group.why,
            message=group.terms.message,
            ttl_ns=group.terms.ttl_ns,
            force=group.terms.force,
        )

    def reply(self, node: str, word: GroupDecide, caller: Asker) -> None:
        """Answer a node that asked how its group ends."""
        if self.tell([node], word, caller, self._replied):
            self.asking += 1

    def _replied(self) -> None:
        self.asking -= 1

    def tell(
        self,
        names: Iterable[str],
        word: GroupDecide,
        caller: Asker,
        then: Callable[[], None] = lambda: None,
    ) -> bool:
        """Send each node at most one message at a time about each group: a node that asks without end costs no more
        than a node that asks once."""
        gid = word.group
        fresh = [n for n in names if gid not in (now := self._telling.setdefault(n, set())) and len(now) < TELLING_MAX]
        if not fresh:
            return False
        for name in fresh:
            self._telling[name].add(gid)

        def done(lost: dict[str, str]) -> None:
            for name in fresh:
                self._telling[name].discard(gid)
                if not self._telling[name]:
                    del self._telling[name]
            then()

        self.questions.ask_members(fresh, word, caller, lambda names, body: None, done)
        return True

    def carry(self, run: Run) -> None:
        """The decision is durable: send it to all members, in waves."""
        run.take("carry")
        run.todo, run.done, run.failed, run.waves = set(run.members), set(), {}, 0
        self.waves(run)

    def again(self, run: Run) -> None:
        """Try again what failed or was paused."""
        if run.step not in (CARRYING, PAUSED):  # all members are done, or this term has not begun to carry it out
            return
        run.take("again")
        run.todo |= run.failed.keys()
        run.failed.clear()
        self.waves(run)

    def released(self) -> None:
        """The fleet's holds are released: decided rollbacks go on."""
        for run in list(self.runs.values()):
            if run.step == CARRYING:
                self.waves(run)

    def waves(self, run: Run) -> None:
        root, limits = self.root, self.root.limits
        group = root.state.groups[run.id]
        if run.step not in (CARRYING, PAUSED):
            return
        self._pass_over(run)
        size = limits.wave if group.decision == "rollback" else len(run.members)
        while run.step == CARRYING and run.waves < limits.waves_at_once and not stopped(root, group):
            wave = sorted(n for n in run.todo if n in root.nodes)[:size]
            if not wave:
                break
            run.todo.difference_update(wave)
            run.flying.update(wave)
            run.waves += 1
            self._wave(run, group, wave)
        if not run.waves:
            self._rest(run, group)

    def _pass_over(self, run: Run) -> None:
        """Skip members that were taken out of service: they owe nothing any more; the outcome names them."""
        gone = [n for n in run.todo | run.failed.keys() if n in self.root.state.forgotten and n not in self.root.nodes]
        for name in gone:
            run.todo.discard(name)
            run.failed.pop(name, None)
            run.done.add(name)
            run.odd[name] = "out of service"

    def _wave(self, run: Run, group: Group, wave: list[str]) -> None:
        def part(names: list[str], body: bytes) -> None:
            answer = answer_of(body)
            run.flying.difference_update(names)
            if answer.exit == 0 and answer.result.get("done"):
                run.done.update(names)
                self._note_odd(run, group, names, answer.result.get("outcome"))
            else:
                run.failed.update(dict.fromkeys(names, refusal_of(answer)))
            run.tell(self.questions, len(run.done) + len(run.failed), len(run.members))

        def done(lost: dict[str, str]) -> None:
            run.waves -= 1
            run.flying.difference_update(wave)
            run.todo.update(lost)
            late = [n for n in lost if n in self.root.nodes]
            for name in late:  # connected, but silent: asked again later
                run.todo.discard(name)
                run.failed[name] = Refusal(LATE)
            self._break(run)
            self.waves(run)

        self.questions.ask_members(wave, self.decision(group), caller_of(group), part, done)

    @staticmethod
    def _note_odd(run: Run, group: Group, names: list[str], outcome: Any) -> None:
        """A member that has nothing (left) to settle has not carried out the decision: the outcome must not say that it
        has."""
        expected = OUTCOMES[group.decision]
        if isinstance(outcome, str) and outcome.removeprefix("left: ")[: len(expected)] != expected:
            for name in names:
                if not run.states.get(name, "").startswith(("missing", "failed")):  # reported when it was applied
                    run.odd[name] = clipped(outcome)

    def _break(self, run: Run) -> None:
        """Too many failures pause the carrying out; the decision stands.  # G10"""
        limits = self.root.limits
        answered = len(run.done) + len(run.failed)
        most = max(limits.breaker_least, int(answered * limits.breaker_share))
        rollback = self.root.state.groups[run.id].decision == "rollback"
        if rollback and run.step == CARRYING and len(run.failed) > most and run.todo:
            run.take("pause")
            self.root.note(
                f"{run.id}: paused: {len(run.failed)} of {answered} nodes failed: "
                f"{self.root.sets.fold(run.failed)}; the decision stands"
            )

    def _rest(self, run: Run, group: Group) -> None:
        """No question is open: the group is finished, or some member still owes."""
        root = self.root
        heads, run.heads = run.heads, []
        if len(run.done) == len(run.members):
            but = "; ".join(f"{n}: {why}" for n, why in self.questions.fold_failed(run.odd).items())
            outcome = OUTCOMES[group.decision] + (clipped(f", except on {but}") if but else "")
            root.record(
                payloads.GroupFinished(
                    group=run.id, outcome=outcome, fence=root.fence, members=self._ended(run, group)
                ),
                root.actor(),
                lambda: self._finished(run, heads),
            )
            run.take("finish")
            return
        if run.failed and run.step == CARRYING:
            run.retry_at_ns = root.t_ns + root.limits.retry_ns
        if not heads:
            return
        away = dict.fromkeys(run.todo, "away: it is told on its return")
        stop = held_by(root) if stopped(root, group) and any(n in root.nodes for n in run.todo) else ""
        away |= {n: stop for n in run.todo if stop and n in root.nodes}
        failed = {**{n: f.why for n, f in run.failed.items()}, **away}
        code = EXIT_DONE if allowed(away, run.ballot.allow) else EXIT_UNREACHABLE
        if run.failed:
            code = EXIT_BLOCKED if any(f.holders for f in run.failed.values()) else EXIT_FAILED
            stop = ""
        elif stop:
            code = EXIT_CONFLICT
        paused = f"{stop}; " if stop else "paused after too many failures; " if run.step == PAUSED else ""
        text = (
            f"{run.id} is decided: {group.decision}; {paused}{len(run.done)} of {len(run.members)} nodes have done it"
        )
        for head in heads:
            self.questions.reply(head, code, text, "", shown(root, run, group), failed)

    def _ended(self, run: Run, group: Group) -> dict[str, str]:
        """``{state: node set}`` if not all members have carried out the decision."""
        if not run.odd:
            return {}
        fold = self.root.sets.fold
        states: dict[str, list[str]] = {OUTCOMES[group.decision]: [n for n in run.members if n not in run.odd]}
        for name, why in run.odd.items():
            state = why[:WHY_MAX] if why[:WHY_MAX] in states or len(states) < STATES_MAX else "otherwise"
            states.setdefault(state, []).append(name)
        return {state: fold(names) for state, names in states.items() if names}

    def _finished(self, run: Run, heads: Sequence[Envelope]) -> None:
        self.runs.pop(run.id, None)
        group = self.root.state.groups[run.id]
        for head in heads:
            code, text = (EXIT_CONFLICT, f"{run.id} is {group.outcome}") if run.odd else (EXIT_DONE, "")
            hint = "look at these nodes: pact status --nodes ..." if run.odd else ""
            self.questions.reply(head, code, text, hint, shown(self.root, None, group), run.odd)
