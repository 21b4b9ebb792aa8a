"""Groups at the root: begin, vote, decide.

Two-phase commit with presumed abort: only a decision is written, and what follows from it waits until it is
durable.  # G1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.core.carrying import Carrier
from pact.core.fleet import Fleet
from pact.core.questions import ABSENT, allowed, answer_of, gravest, refusal_of, require_role
from pact.core.rootlog import ACTIVE, DECIDED, FINISHED, Group
from pact.core.runs import (
    APPLYING,
    BLOCKED,
    DECIDING,
    OPEN,
    PACT,
    VOTING,
    Head,
    Run,
    as_written,
    caller_of,
    held_by,
    number,
    reasons,
    shown,
)
from pact.errors import (
    EXIT_BLOCKED,
    EXIT_CONFLICT,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    ConflictError,
    DeniedError,
    PactError,
    UnreachableError,
    UsageError,
)
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.core.root import Root

EXTEND_MAX_NS: Final = 10 * 24 * 3600 * NS_PER_S
TTL_MIN_NS: Final = 900 * NS_PER_S
TTL_MAX_NS: Final = EXTEND_MAX_NS
WINDOW_MAX_NS: Final = 3660 * 24 * 3600 * NS_PER_S
MESSAGE_MAX: Final = 4_000
SETTLE_NS: Final = 15 * NS_PER_S
RELEASE_NS: Final = 2 * NS_PER_S
BALLOTS: Final = 1_000_000
ASKED_MAX: Final = 64


class Coordinator:
    """All groups of one root."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.runs: dict[str, Run] = {}
        self.carrier = Carrier(root, self.runs)
        self.fleet = Fleet(root)
        self.ops: Mapping[str, Callable[[Head, dict[str, Any]], None]] = {
            "apply": self._apply, "group_commit": self._commit, "group_rollback": self._rollback,
            "group_extend": self._extend, "groups": self._list, "fleet_hold": self.fleet.place,
            "fleet_release": self.fleet.release,
        }  # fmt: skip
        self._ballots = 0
        self._numbers = 0
        self._not_before_ns = 0
        self.released_ns = 0  # when the fleet was released; a node that has not heard of it would refuse

    # -- the term -----------------------------------------------------------------------------------------------

    def begin_term(self, reboot: bool) -> None:
        """Take up what earlier roots left. Nothing expires before the nodes had time to come back."""
        root = self.root
        wait_ns = root.limits.floor_ns if reboot else min(SETTLE_NS, root.limits.floor_ns)
        self._not_before_ns = root.t_ns + wait_ns
        for group in root.state.groups.values():
            if group.state != FINISHED:
                self.runs[group.id] = Run(group.id, root.sets.expand(group.nodes), caller=caller_of(group),
                                          force=bool(group.args.get("force")))  # fmt: skip

    def resume(self) -> None:
        """The term's first record is durable: carry out what was decided before."""
        for run in list(self.runs.values()):
            if self.root.state.groups[run.id].state == DECIDED:
                self.carrier.carry(run)
        self.fleet.tell()

    def came(self, names: Sequence[str]) -> None:
        """Nodes are back: what they owe comes before anything else.  # G5"""
        if not names:
            return
        fresh = set(names)
        for run in list(self.runs.values()):
            back = fresh.intersection(run.members)
            if not back:
                continue
            group = self.root.state.groups[run.id]
            if group.state == DECIDED:
                run.todo |= back - run.done
                self.carrier.waves(run)
            elif run.step in (OPEN, APPLYING, BLOCKED):
                self._undo_votes(run, back)
                lacking = [n for n in back if run.states.get(n, "").startswith("missing")]
                if lacking and run.apply_args and run.step == OPEN:
                    run.states.update(dict.fromkeys(lacking, "applying"))
                    self._apply_to(run, lacking, None)

    def _undo_votes(self, run: Run, names: Iterable[str]) -> None:
        """A vote that led to no decision binds nobody any more (presumed abort).  # G3"""
        args = {"group": run.id, "fence": self.root.fence, "ballot": self._ballot(), "decision": "abort",
                "action": "commit", "why": "the vote led to no decision"}  # fmt: skip
        self.carrier.tell(names, run.id, args, run.caller)

    def asked(self, node: str, groups: Sequence[Sequence[Any]]) -> None:
        """A member asks how its groups end. Only what is in the log is an answer.  # G3"""
        for gid, phase, ballot in groups[:ASKED_MAX]:
            group, run = self.root.state.groups.get(gid), self.runs.get(gid)
            if group is None and number(gid) > self.root.state.group_n and phase == "prepared":
                args = {"group": gid, "fence": self.root.fence, "ballot": ballot, "decision": "abort",
                        "action": "commit", "why": "the root's log has no such group"}  # fmt: skip
                self.carrier.tell([node], gid, args, PACT)
            elif group is None:
                self.root.refuse("a question about a group that the log has forgotten", node, gid)
            elif group.state == FINISHED:
                self.carrier.tell([node], gid, self.carrier.decision(group), caller_of(group))
            elif run is not None and group.state == DECIDED:
                if node in run.members and node not in run.flying:
                    run.done.discard(node)
                    run.todo.add(node)
                    self.carrier.waves(run)
            elif run is not None and phase == "prepared" and self._led_nowhere(run, ballot):
                self._undo_votes(run, [node])

    @staticmethod
    def _led_nowhere(run: Run, ballot: int) -> bool:
        """No decision can come of a vote with this ballot any more."""
        return run.step not in (VOTING, DECIDING) or ballot < run.ballot

    def tick(self) -> None:
        root = self.root
        self.fleet.tick()
        for run in list(self.runs.values()):
            group = root.state.groups[run.id]
            if run.retry_at_ns is not None and run.retry_at_ns <= root.t_ns:
                run.retry_at_ns = None
                if group.state == DECIDED:
                    self.carrier.again(run)
                elif root.state.holds:
                    run.retry_at_ns = root.t_ns + root.limits.retry_ns
                elif run.step == BLOCKED:
                    self._vote(run, "rollback", None, {}, automatic=True)
            due = self._due_ns(run, group)
            if due is not None and due <= root.t_ns:
                self._vote(run, "rollback", None, {}, automatic=True)

    def _due_ns(self, run: Run, group: Group) -> int | None:
        """When its window ends: only the root's timer ends a group.  # G2"""
        if group.state != ACTIVE or run.step != OPEN or self.root.state.holds:
            return None
        ends_ns = max(group.ends_ns, self.released_ns + RELEASE_NS if self.released_ns else 0)
        if all(n in self.root.nodes for n in run.members):
            return ends_ns
        return max(ends_ns, self._not_before_ns)

    def next_wake_ns(self) -> int | None:
        root = self.root
        fleet_ns = self.fleet.next_wake_ns()
        wakes = [] if fleet_ns is None else [fleet_ns]
        wakes += [w for run in self.runs.values() if (w := self._due_ns(run, root.state.groups[run.id])) is not None]
        wakes += [run.retry_at_ns for run in self.runs.values() if run.retry_at_ns is not None]
        return min(wakes, default=None)

    # -- begin --------------------------------------------------------------------------------------------------

    def _apply(self, head: Head, args: dict[str, Any]) -> None:
        """Ask every node whether it could; then begin, durably; then let them."""
        root = self.root
        require_role(head, "admin", "apply")
        if head["nodes"] is None:
            raise UsageError("a group needs --nodes")
        resources = args.get("resources")
        if not isinstance(resources, dict) or not resources:
            raise UsageError("the file names no resource")
        _require_short(str(args.get("message", "")))
        here, absent = root.questions.targets(head["nodes"])
        allow = root.questions.allowance(args)
        self._refuse_absent(dict.fromkeys(absent, ABSENT), allow, "nothing was changed")
        root.questions.progress(head, 0, len(here))
        found: list[dict[str, Any]] = []
        refused: dict[str, tuple[int, str]] = {}
        willing: list[str] = []

        def part(names: list[str], body: bytes) -> None:
            answer = answer_of(body)
            if answer["exit"] == 0 and _could(answer["result"]):
                found.append(answer["result"])
                willing.extend(names)
            elif answer["exit"] == 0:
                refused.update(dict.fromkeys(names, (EXIT_FAILED, "an answer that makes no sense")))
            else:
                refused.update(dict.fromkeys(names, (answer["exit"], answer["message"])))

        def done(lost: dict[str, str]) -> None:
            why = {n: text for n, (_, text) in refused.items()}
            if refused or not willing:
                code = gravest([c for c, _ in refused.values()] or [EXIT_UNREACHABLE])
                root.questions.reply(head, code, "nothing was changed anywhere", failed={**why, **lost})
                return
            missing = {**dict.fromkeys(absent, ABSENT), **lost}
            try:
                self._refuse_absent(missing, allow, "nothing was changed")
            except PactError as exc:
                root.questions.reply(head, exc.exit_code, exc.message, exc.hint, failed=missing)
                return
            self._checked(head, args, willing, found, missing)

        check = {"fence": root.fence, "resources": resources, "blobs": args.get("blobs", {})}
        timeout_ns = root.questions.timeout_ns(head)
        root.questions.ask_members(here, "group_check", check, head["caller"], part, done, timeout_ns)

    def _checked(self, head: Head, args: dict[str, Any], members: list[str], found: list[dict[str, Any]],
                 missing: dict[str, str]) -> None:  # fmt: skip
        root = self.root
        summary = {"count": len(members), "changes": max(f["changes"] for f in found),
                   "magnitude": max(f["magnitude_n"] for f in found) / 1e9}  # fmt: skip
        if args.get("dry_run"):
            root.questions.reply(head, 0, result={**summary, "dry_run": True}, failed=missing)
            return
        if not summary["changes"]:
            root.questions.reply(head, 0, "the nodes are so already", result={**summary, "group": None}, failed=missing)
            return
        nodes = as_written(root, members)
        if not nodes:
            root.questions.reply(head, EXIT_FAILED, "nothing was changed: too many names", "split the group")
            return
        window_ns = min(f["window_ns"] for f in found)
        self._numbers = max(self._numbers, root.state.group_n) + 1
        gid = f"g{self._numbers}"
        caller = head["caller"]
        owner = {"key": f"cluster:{caller['user']}", "user": caller["user"], "uid": None, "session": None,
                 "command": "pact apply"}  # fmt: skip
        root.record("group_begun", {
            "group": gid, "owner": owner, "message": str(args.get("message", "")), "nodes": nodes,
            "count": len(members), "resources": sorted(args["resources"]), "window_ns": window_ns, "fence": root.fence,
            "require_all": bool(args.get("require_all")),
        }, root.actor(caller), lambda: self._begun(gid, head, args, members, summary, missing))  # fmt: skip

    def _begun(self, gid: str, head: Head, args: dict[str, Any], members: list[str], summary: dict[str, Any],
               missing: dict[str, str]) -> None:  # fmt: skip
        root = self.root
        group = root.state.groups[gid]
        node_args = {"group": gid, "fence": root.fence, "resources": args["resources"], "blobs": args.get("blobs", {}),
                     "message": group.message, "left_ns": group.ends_ns - root.t_ns}  # fmt: skip
        run = self.runs[gid] = Run(gid, members, APPLYING, orjson.dumps(node_args), head["caller"])
        codes: list[int] = []

        def end() -> None:
            bad = {n: s for n, s in run.states.items() if s != "applied"}
            root.questions.reply(head, gravest(codes),
                             f"{gid} is applied on {len(members) - len(bad)} of {len(members)} nodes" if bad else "",
                             result={**summary, **self.shown(gid)}, failed={**bad, **missing})  # fmt: skip

        self._apply_to(run, members, end, codes)

    def _apply_to(self, run: Run, names: Iterable[str], end: Callable[[], None] | None,
                  codes: list[int] | None = None) -> None:  # fmt: skip
        def part(answered: list[str], body: bytes) -> None:
            answer = answer_of(body)
            state = "applied" if answer["exit"] == 0 else f"failed: {answer['message']}"
            run.states.update(dict.fromkeys(answered, state))
            if codes is not None:
                codes.append(answer["exit"])

        def done(lost: dict[str, str]) -> None:
            run.states.update({n: f"missing: {why}" for n, why in lost.items()})
            if codes is not None and lost:
                codes.append(EXIT_UNREACHABLE)
            if run.step == APPLYING:
                run.step = OPEN
            if end is not None:
                end()

        self.root.questions.ask_members(names, "group_apply", run.apply_args, run.caller, part, done)

    # -- vote ---------------------------------------------------------------------------------------------------

    def _commit(self, head: Head, args: dict[str, Any]) -> None:
        run = self._settleable(head, args, "commit")
        message, ttl_ns = str(args.get("message", "")).strip(), args.get("ttl_ns")
        if not message:
            raise UsageError("a commit needs a message", "pact commit -m 'why'")
        _require_short(message)
        if ttl_ns is not None and not (isinstance(ttl_ns, int) and TTL_MIN_NS <= ttl_ns <= TTL_MAX_NS):
            raise UsageError("--ttl must lie between 15m and 10d")
        if self._already(run, "commit", head):
            return
        away = {n: ABSENT for n in run.members if n not in self.root.nodes}
        self._refuse_absent(away, self.root.questions.allowance(args), f"{run.id} was not committed")
        self._vote(run, "commit", head, {**args, "message": message, "ttl_ns": ttl_ns})

    def _rollback(self, head: Head, args: dict[str, Any]) -> None:
        run = self._settleable(head, args, "rollback")
        run.force = bool(args.get("force"))
        if self.root.state.holds and not run.force:
            raise ConflictError(held_by(self.root), "use --force")
        if self._already(run, "rollback", head):
            return
        self._vote(run, "rollback", head, args)

    def _settleable(self, head: Head, args: Mapping[str, Any], what: str) -> Run:
        root, gid = self.root, str(args.get("group", ""))
        require_role(head, "ops", what)
        group = root.state.groups.get(gid)
        if group is None:
            if 0 < number(gid) <= root.state.group_n:
                raise ConflictError(f"{gid} was settled long ago", "see pact log")
            raise UsageError(f"there is no group {gid}", "pact groups lists them")
        if head["caller"]["role"] != "admin" and group.owner["user"] != head["caller"]["user"]:
            raise DeniedError(f"{what} {gid} of {group.owner['user']} needs the role admin")
        if group.state == FINISHED:
            raise ConflictError(f"{gid} is settled already: {group.outcome}", "see pact groups")
        run = self.runs[gid]
        if run.step in (APPLYING, VOTING, DECIDING):
            raise ConflictError(f"{gid} is {run.step} just now", "try again in a moment")
        return run

    def _already(self, run: Run, what: str, head: Head) -> bool:
        """The decision was made before: the same again goes on with what is owed, the other is too late."""
        group = self.root.state.groups[run.id]
        if group.state != DECIDED:
            return False
        if group.decision != what:
            raise ConflictError(f"too late: {run.id} is decided: {group.decision}", "see pact groups")
        run.head = head
        self.carrier.again(run)
        return True

    def _vote(self, run: Run, action: str, head: Head | None, args: Mapping[str, Any], *,
              automatic: bool = False) -> None:  # fmt: skip
        root = self.root
        group = root.state.groups[run.id]
        allow = root.questions.allowance(args)
        before, retry_at_ns = run.step, run.retry_at_ns
        run.step, run.ballot, run.head, run.force = VOTING, self._ballot(), head, bool(args.get("force"))
        run.yes, run.no, run.retry_at_ns, run.allow = set(), {}, None, allow
        run.missing = {n: ABSENT for n in run.members if n not in root.nodes}
        caller = PACT if head is None else head["caller"]
        if head is not None:
            root.questions.progress(head, 0, len(run.members) - len(run.missing))

        def part(names: list[str], body: bytes) -> None:
            answer = answer_of(body)
            result = answer["result"]
            if answer["exit"] == 0 and result.get("vote") == "yes":
                run.yes.update(names)
            else:
                for name in names:
                    run.no[name] = refusal_of(answer)

        def done(lost: dict[str, str]) -> None:
            run.missing.update(lost)
            absent_stops = not allowed(run.missing, run.allow) if action == "commit" else (
                group.require_all and bool(run.missing))  # fmt: skip
            if action == "rollback" and root.state.holds and not run.force:  # placed while they voted  # G8
                self._stop(run, action, caller, held_by(root))
                run.step = before
            elif run.no or absent_stops:
                self._stop(run, action, caller)
                if action == "commit" and before == BLOCKED:  # its window had ended: a person decides, as before
                    run.step, run.retry_at_ns = BLOCKED, retry_at_ns
            else:
                self._decide(run, action, args, caller)

        vote = {"group": run.id, "fence": root.fence, "action": action, "ballot": run.ballot, "automatic": automatic,
                "force": bool(args.get("force"))}  # fmt: skip
        here = [n for n in run.members if n not in run.missing]
        self.root.questions.ask_members(here, "group_vote", vote, caller, part, done)

    def _stop(self, run: Run, action: str, caller: Mapping[str, Any], held: str = "") -> None:
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
        args = {"group": run.id, "fence": root.fence, "ballot": run.ballot, "decision": "abort",
                "action": "commit" if held else action, "why": text}  # fmt: skip
        reachable = [n for n in run.members if n in root.nodes]

        def told(lost: dict[str, str]) -> None:
            head, run.head = run.head, None
            if head is None:
                return
            if any(n["holders"] for n in run.no.values()):
                code = EXIT_BLOCKED
            elif held:
                code = EXIT_CONFLICT
            else:
                code = (EXIT_CONFLICT if action == "commit" else EXIT_FAILED) if run.no else EXIT_UNREACHABLE
            failed = {**{n: v["why"] for n, v in run.no.items()}, **run.missing}
            root.questions.reply(head, code, text, "pact groups " + run.id, self.shown(run.id), failed)

        self.root.questions.ask_members(reachable, "group_decide", args, caller, ignore, told)

    # -- decide and carry out -----------------------------------------------------------------------------------

    def _decide(self, run: Run, action: str, args: Mapping[str, Any], caller: Mapping[str, Any]) -> None:
        root = self.root
        run.step = DECIDING
        root.record("group_decided", {
            "group": run.id, "decision": action, "ballot": run.ballot, "fence": root.fence,
            "why": "its window ended" if run.head is None else f"asked by {caller['user']}",
            "args": {"message": str(args.get("message", "")), "ttl_ns": args.get("ttl_ns"),
                     **({"force": True} if run.force else {})},
            "owed": root.sets.fold(run.missing) if run.missing else "",
        }, root.actor(None if run.head is None else caller), lambda: self.carrier.carry(run))  # fmt: skip

    # -- extend, list -------------------------------------------------------------------------------------------

    def _extend(self, head: Head, args: dict[str, Any]) -> None:
        root = self.root
        run = self._settleable(head, args, "extend")
        group = root.state.groups[run.id]
        by_ns = args.get("by_ns")
        if not isinstance(by_ns, int) or not 0 < by_ns <= EXTEND_MAX_NS:
            raise UsageError("extend by more than nothing and at most 10d")
        if group.state == DECIDED:
            raise ConflictError(f"too late: {run.id} is decided: {group.decision}", "see pact groups")
        reopened = run.step == BLOCKED

        def done() -> None:
            run.step, run.retry_at_ns = OPEN, None
            note = {"group": run.id, "fence": root.fence, "left_ns": max(0, group.ends_ns - root.t_ns)}
            here = [n for n in run.members if n in root.nodes]
            root.questions.ask_members(here, "group_extend", note, head["caller"], ignore, lambda lost: (
                root.questions.reply(head, 0, result=self.shown(run.id), failed=lost)))  # fmt: skip

        run.step = DECIDING  # no timer and no vote until it is durable
        root.record("window_extended", {"group": run.id, "by_ns": by_ns, "reopened": reopened, "fence": root.fence},
                    root.actor(head["caller"]), done)  # fmt: skip

    def shown(self, gid: str) -> dict[str, Any]:
        """One group for people and programs."""
        return shown(self.root, self.runs.get(gid), self.root.state.groups[gid])

    def _list(self, head: Head, args: dict[str, Any]) -> None:
        groups = self.root.state.groups
        name = str(args.get("group") or "")
        if name and name not in groups:
            raise UsageError(f"there is no group {name}", "pact groups lists them")
        viewer = head["caller"]["role"] == "viewer"
        found = [shown(self.root, self.runs.get(g.id), g, viewer=viewer) for g in groups.values()
                 if (name == g.id if name else args.get("all") or g.state != FINISHED)]  # fmt: skip
        self.root.questions.reply(head, 0, result={"v": 1, "groups": found})

    # -- help ---------------------------------------------------------------------------------------------------

    def _ballot(self) -> int:
        """Larger than every ballot of this and of earlier terms."""
        self._ballots += 1
        return self.root.fence * BALLOTS + self._ballots

    def _refuse_absent(self, absent: Mapping[str, str], allow: int | frozenset[str], what: str) -> None:
        if not allowed(absent, allow):
            raise UnreachableError(f"{what}: {self.root.sets.fold(absent)} cannot be reached",
                                   "bring them back, or go on without them: --allow-missing N or NODESET")  # fmt: skip


def ignore(names: list[str], body: bytes) -> None:
    pass


def _require_short(message: str) -> None:
    """It stands in the log, in every list of groups, and in every member's journal."""
    if len(message) > MESSAGE_MAX:
        raise UsageError(f"a message of {len(message)} characters; at most {MESSAGE_MAX}")


def _could(found: Mapping[str, Any]) -> bool:
    """Is this what a node says that could apply? A window that makes no sense would be every member's."""
    return (all(type(found.get(k)) is int and found[k] >= 0 for k in ("changes", "magnitude_n", "window_ns"))
            and 0 < found["window_ns"] <= WINDOW_MAX_NS and found["magnitude_n"] < 1 << 62)  # fmt: skip
