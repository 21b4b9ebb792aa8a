"""How a group begins: the root asks every node whether it could apply, records the group, then lets the nodes
apply.  # G1"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pact.core.ops import BeginGroup, GroupApply, GroupCheck
from pact.core.root import payloads
from pact.core.root.answers import answer_of
from pact.core.root.envelope import Envelope
from pact.core.root.questions import ABSENT, LOST, Questions, encoded, refuse_absent, require_role, require_short
from pact.core.root.runs import APPLYING, Run, as_written, shown
from pact.errors import EXIT_FAILED, EXIT_UNREACHABLE, PactError, UsageError, gravest
from pact.model import NS_PER_S, Json, JsonRead, Owner

WINDOW_MAX_NS: Final = 3660 * 24 * 3600 * NS_PER_S
#: Group numbers above this are ignored when a node reports them.
NUMBER_MAX: Final = 1_000_000_000


class Beginner:
    """Begins groups, and lets members apply them. ``runs`` are the runs of ``Groups``."""

    def __init__(self, questions: Questions, runs: dict[str, Run]) -> None:
        self.root = questions.root
        self.questions = questions
        self.runs = runs
        self._numbers = 0  # the last number that was given, or that a node remembers from another log

    def taken(self, number: int) -> None:
        """A node remembers a group with this number: no other group gets it."""
        if number <= NUMBER_MAX:
            self._numbers = max(self._numbers, number)

    def apply(self, head: Envelope, args: BeginGroup) -> None:
        """Ask every node whether it could apply; then begin the group, durably; then let the nodes apply."""
        root = self.root
        require_role(head.caller, "admin", "apply")
        if head.nodes is None:
            raise UsageError("a group needs --nodes")
        if not args.resources:
            raise UsageError("the file names no resource")
        require_short(args.message)
        here, absent = self.questions.targets(head.nodes)
        allow = self.questions.allowance(args.allow_missing)
        refuse_absent(root, dict.fromkeys(absent, ABSENT), allow, "nothing was changed")
        self.questions.progress(head, 0, len(here))
        found: list[JsonRead] = []
        refused: dict[str, tuple[int, str]] = {}
        willing: list[str] = []
        watching: list[str] = []
        asked = set(here)

        def part(names: list[str], body: bytes) -> None:
            answer = answer_of(body)
            asked.difference_update(names)
            self.questions.progress(head, len(here) - len(asked), len(here))
            if answer.exit == 0 and _could(answer.result):
                found.append(answer.result)
                willing.extend(names)
                if answer.result.get("enforce") is False:
                    watching.extend(names)
            elif answer.exit == 0:
                refused.update(dict.fromkeys(names, (EXIT_FAILED, "an answer that makes no sense")))
            else:
                refused.update(dict.fromkeys(names, (answer.exit, answer.message)))

        def done(lost: dict[str, str]) -> None:
            why = {n: text for n, (_, text) in refused.items()}
            if refused or not willing:
                code = gravest([c for c, _ in refused.values()] or [EXIT_UNREACHABLE])
                self.questions.reply(head, code, "nothing was changed anywhere", failed={**why, **lost})
                return
            missing = {**dict.fromkeys(absent, ABSENT), **lost}
            try:
                refuse_absent(root, missing, allow, "nothing was changed")
            except PactError as exc:
                self.questions.reply(head, exc.exit_code, exc.message, exc.hint, failed=missing)
                return
            where = root.sets.fold(watching) if watching else ""
            note = f"in observe mode, so that nothing is rolled back there: {where}" if where else ""
            self._checked(head, args, willing, found, missing, note)

        check = GroupCheck(fence=root.fence, resources=args.resources, blobs=args.blobs)
        timeout_ns = self.questions.timeout_ns(head)
        # Nothing has begun yet: if the client no longer waits, nothing begins.
        self.questions.ask_members(here, check, head.caller, part, done, timeout_ns, head.key)

    def _checked(
        self,
        head: Envelope,
        args: BeginGroup,
        members: list[str],
        found: Sequence[JsonRead],
        missing: dict[str, str],
        note: str,
    ) -> None:
        root = self.root
        summary = {
            "count": len(members),
            "changes": max(f["changes"] for f in found),
            "magnitude": max(f["magnitude_n"] for f in found) / 1e9,
        }
        if args.dry_run:
            self.questions.reply(head, 0, note, result={**summary, "dry_run": True}, failed=missing)
            return
        if not summary["changes"]:
            self.questions.reply(head, 0, "the nodes are so already", result={**summary, "group": None}, failed=missing)
            return
        nodes = as_written(root, members)
        if not nodes:
            self.questions.reply(head, EXIT_FAILED, "nothing was changed: too many names", "split the group")
            return
        window_ns = min(f["window_ns"] for f in found)
        known = [n for f in found if type(n := f.get("newest")) is int and 0 <= n <= NUMBER_MAX]
        # A log that was begun anew must not reuse a number that nodes remember.
        self._numbers = max(self._numbers, root.state.group_n, *known) + 1
        gid = f"g{self._numbers}"
        caller = head.caller
        owner = Owner(f"cluster:{caller.user}", caller.user, command="pact apply")
        root.record(
            payloads.GroupBegun(
                group=gid,
                owner=owner,
                message=args.message,
                nodes=nodes,
                count=len(members),
                resources=sorted(args.resources),
                window_ns=window_ns,
                fence=root.fence,
                require_all=args.require_all,
            ),
            root.actor(caller),
            lambda: self._begun(gid, head, args, members, summary, missing, note),
        )

    def _begun(
        self,
        gid: str,
        head: Envelope,
        args: BeginGroup,
        members: list[str],
        summary: Json,
        missing: dict[str, str],
        note: str,
    ) -> None:
        root = self.root
        group = root.state.groups[gid]
        word = GroupApply(
            group=gid,
            fence=root.fence,
            resources=args.resources,
            blobs=args.blobs,
            message=group.message,
            left_ns=group.ends_ns - root.t_ns,
        )
        run = self.runs[gid] = Run(gid, members, APPLYING, encoded(word), head.caller)
        codes: list[int] = []

        def end() -> None:
            bad = {n: s for n, s in run.states.items() if s != "applied"}
            text = f"{gid} is applied on {len(members) - len(bad)} of {len(members)} nodes" if bad else ""
            self.questions.reply(
                head,
                gravest(codes),
                "; ".join(filter(None, [text, note])),
                result={**summary, **shown(root, run, group)},
                failed={**bad, **missing},
            )

        self.apply_to(run, members, end, codes, head)

    def apply_to(
        self,
        run: Run,
        names: Iterable[str],
        end: Callable[[], None] | None,
        codes: list[int] | None = None,
        head: Envelope | None = None,
    ) -> None:
        """Let these members make the changes. A member that moved to another parent meanwhile is asked again."""

        def part(answered: list[str], body: bytes) -> None:
            answer = answer_of(body)
            state = "applied" if answer.exit == 0 else f"failed: {answer.message}"
            run.states.update(dict.fromkeys(answered, state))
            if codes is not None:
                codes.append(answer.exit)
            if head is not None:
                self.questions.progress(head, len(run.states), len(run.members))

        def done(lost: dict[str, str]) -> None:
            moved = [n for n, why in lost.items() if why == LOST and n in self.root.nodes]
            run.states.update({n: f"missing: {why}" for n, why in lost.items()})
            if moved and run.step == APPLYING:
                if codes is not None and len(lost) > len(moved):
                    codes.append(EXIT_UNREACHABLE)
                self.apply_to(run, moved, end, codes, head)
                return
            if codes is not None and lost:
                codes.append(EXIT_UNREACHABLE)
            if run.step == APPLYING:
                run.take("applied")
            if end is not None:
                end()

        self.questions.ask_members(names, run.apply_args, run.caller, part, done)


def _could(found: JsonRead) -> bool:
    """Whether this answer has the form of one from a node that could apply. A wrong window would be every member's
    window."""
    return (
        all(type(found.get(k)) is int and found[k] >= 0 for k in ("changes", "magnitude_n", "window_ns"))
        and 0 < found["window_ns"] <= WINDOW_MAX_NS
        and found["magnitude_n"] < 1 << 62
    )
