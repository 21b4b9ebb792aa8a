"""Requests of the control socket: requests that only read are answered from memory, the others become events for the
core."""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pact.agent import asking, diffing, telling, views
from pact.agent.client import Client
from pact.agent.lookfirst import LookFirst
from pact.agent.remote import Remote
from pact.agent.replayed import as_declared, rolled_back_state
from pact.agent.worker import Result
from pact.core import ops, strict
from pact.core.node import tracked, untold
from pact.core.node.events import Asked
from pact.core.node.refusals import Bucket
from pact.core.records import rfc3339
from pact.core.tree.checks import are_holds
from pact.declared.toml import checked_patterns
from pact.errors import DeniedError, PactError, RequestError, UnreachableError, UsageError, explained
from pact.limits import REQUEST_ADMIN_MAX, VIEWERS_LOOKS_PER_S
from pact.model import NS_PER_S, Declared, split_id
from pact.resources import KINDS, kind_of

if TYPE_CHECKING:
    from pact.agent.sessions import Sessions
    from pact.agent.sightings import Sightings

#: Answered without looking at anything first.
AS_IT_IS: Final = frozenset(
    {
        "check",
        "ping",
        "state",
        "sessions",
        "shell_open",
        "shell_attach",
        "session_end",
        "session_revoke",
        "exec",
    }
)

NAMES_AT_ONCE: Final = 100
#: op -> the fields of its args, each with its types. Other operations and fields are refused.
FIELDS: Final = {name: ops.types_of(op) for name, op in ops.AT_NODE.items() if op.at == "node"}
#: Operations that only the root may send, through the tree.
ROOT_FIELDS: Final = {name: ops.types_of(op) for name, op in ops.AT_NODE.items() if op.at == "member"}
ALL_FIELDS: Final = {**FIELDS, **ROOT_FIELDS}


def parse(line: bytes, fields: Mapping[str, Mapping[str, tuple[type, ...]]] = FIELDS) -> tuple[str, dict[str, Any]]:
    """A request. Raises RequestError for a malformed one."""
    op, args, _ = parse_request(line, fields)
    return op, args


def parse_request(
    line: bytes, fields: Mapping[str, Mapping[str, tuple[type, ...]]]
) -> tuple[str, dict[str, Any], bool]:
    """The same as ``parse``, and whether the client wants signs that the agent works on it."""
    try:
        obj = strict.loads(line, REQUEST_ADMIN_MAX)
    except strict.NotStrictError as exc:
        raise RequestError(f"not JSON that is read here: {exc}") from None
    if not isinstance(obj, dict) or not isinstance(obj.get("op"), str) or not isinstance(obj.get("args", {}), dict):
        raise RequestError('a request is {"v":1,"op":NAME,"args":{...}}')
    op, args = obj["op"], obj.get("args", {})
    if obj.get("v", 1) != 1:
        raise RequestError(f"version {strict.shown(obj.get('v'))} is not spoken here; this agent speaks 1")
    if op not in fields:
        raise RequestError(f"unknown request {strict.shown(op)}")
    if wrong := ops.wrong(ops.AT_NODE[op], args):
        raise RequestError(f"{op}: {wrong}")
    if op == "fleet_seen" and not are_holds(args["holds"]):
        raise RequestError(f"{op}: these are no holds")
    return op, args, obj.get("alive") is True


class Requests:
    """Carries out requests for an agent."""

    def __init__(self, agent: Sightings) -> None:
        self.agent = agent
        self.sessions: Sessions | None = None  # until the loop has found them
        self.tellers = telling.Tellers(agent)
        self.long_answers = diffing.LongAnswers()
        self.first = LookFirst(agent)
        self._viewers_looks = Bucket(VIEWERS_LOOKS_PER_S, NS_PER_S // VIEWERS_LOOKS_PER_S)
        self._began_ns = agent.clock.now_ns()
        self._reads: Mapping[str, Callable[[Client, Any], None]] = {
            "ping": self._ping,
            "status": self._status,
            "check": self._check,
            "diff": self._diff,
            "log": self._log,
            "show": self._show,
            "content": self._content,
            "consumers": self._consumers,
            "export": self._export,
            "watch": self._watch,
            "state": self._state,
            "tracked": self._tracked,
            "sessions": self._sessions,
            "shell_open": self._shell_open,
            "shell_attach": self._shell_attach,
            "session_end": self._session_end,
            "session_revoke": self._session_revoke,
            "exec": self._exec,
        }

    def line(self, client: Client, line: bytes) -> None:
        """Handle one line from a client. Requests of viewers make the agent observe, and record, only at a limited rate
        for all viewers together.  # S3"""
        try:
            op, args, client.alive = parse_request(line, ALL_FIELDS if client.remote else FIELDS)
        except RequestError as exc:
            self.agent.control.refuse(client, exc.message)
            return
        if op in AS_IT_IS:
            self._carry_out(client, op, args)
            return
        if op not in self._reads and not self._may_begin(client, op, args):
            return
        self.first.add(
            client,
            lambda: self._carry_out(client, op, args),
            lambda: self._hurries(client),
            () if op == "content" else _all_written(args),
            self._gathered(client) if op == "status" else (),
        )

    def _gathered(self, client: Client) -> Iterator[None]:
        """What a status says of new things, a step at a time: there may be twenty thousand of them.  # S7"""
        client.gathered = views.New([], [])
        return views.gather_new(self.agent.node, client.caller, self.agent.veil, client.gathered)

    def read_now(self, client: Client, op: str, args: dict[str, Any]) -> None:
        """Answer a request that is answered from memory. Raises its errors, and records nothing, not even a refusal."""
        for _ in self._gathered(client) if op == "status" else ():
            pass
        self._reads[op](client, ops.made(op, args))

    def _hurries(self, client: Client) -> bool:
        """Whether also what is in constant motion is looked at now. A viewer's question makes no more records than the
        account of what others than root move has room for: who moves it may be who asks.  # S3"""
        now_ns = self.agent.clock.now_ns()
        if client.caller.actor.role != "viewer":
            return True
        return self.agent.watching.pace.has_room(now_ns) and self._viewers_looks.admit(now_ns)

    def _may_begin(self, client: Client, op: str, args: dict[str, Any]) -> bool:
        """Whether something can be recorded; else the client is told so, before anything is looked at."""
        try:
            if op == "epilog" and client.admin and not client.remote:  # what an epilog says, it says once
                self.agent.batch.epilog(args["job"], client.sock)
            self.agent.require_journal()
            self.agent.make_room()
        except PactError as exc:
            self.agent.fail(client, exc)
            return False
        return True

    def _carry_out(self, client: Client, op: str, args: dict[str, Any]) -> None:
        try:
            if op in self._reads:
                self._reads[op](client, ops.made(op, args))
                if client.watching and client.alive:
                    client.send(b'{"begun":true}')
            elif client.alive and client.gone:  # it waits for its answers, and has given this one up
                self.agent.control.drop(client)
            else:
                self._ask(client, op, args)
        except DeniedError as exc:
            self.agent.record_denied(op, exc, client.caller)
            self.agent.fail(client, exc)
        except PactError as exc:
            self.agent.fail(client, exc)
        except Exception as exc:
            if op not in self._reads and not isinstance(exc, OSError):  # the core makes no system calls
                raise  # the core's state is in doubt: end, and start again from the journal
            if not isinstance(exc, OSError):
                traceback.print_exc()
            self.agent.fail(client, explained(exc))

    # -- what may change something ------------------------------------------------------------------------------

    def _ask(self, client: Client, op: str, args: dict[str, Any]) -> None:
        agent = self.agent
        agent.require_journal()  # a failure may have come with the observation just made
        token = agent.next_token()
        try:
            args = self._prepared(client, op, args)
        except (PactError, OSError):
            raise
        except Exception as exc:  # nothing was decided, and no state is in doubt: only this request ends
            traceback.print_exc()
            raise explained(exc) from None
        request = ops.made(op, args)
        if isinstance(request, ops.Rollback):
            if request.trials is not None and request.to_seq is None:
                raise UsageError("trials are kept or ended when an earlier state is restored")
            if request.to_seq is not None:
                if not client.admin:
                    raise DeniedError("restoring an earlier state needs the role admin")
                self._rollback_to(client, token, request.to_seq, request)
                return
        elif isinstance(request, ops.Redo):
            if not client.admin:
                raise DeniedError("to apply again what was rolled back needs the role admin")
            self._redo(client, token, request)
            return
        agent.ask(client, token, Asked(*agent.now(), token, request, client.caller))

    def _prepared(self, client: Client, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """Patterns and values in the form for the core. Decides nothing; what the core will refuse, whatever it says,
        is not read: a thousand patterns took half a second.  # S8"""
        may = client.admin or op in ROOT_FIELDS
        for key in ("track",) if op == "declare" else ("patterns",) if op == "track" else ():
            args[key] = checked_patterns(args.get(key, {})) if may else {}
        if op in ("declare", "apply", "group_check", "group_apply"):
            if may:
                args = {**args, **self._checked(args)}
            args.pop("blobs", None)
        return args

    def _checked(self, args: dict[str, Any]) -> dict[str, Any]:
        """Declared values in the form in which a file gives them, and their contents."""
        blobs: dict[str, bytes] = {}
        for digest, text in args.get("blobs", {}).items():
            try:
                data = base64.b64decode(text, validate=True)
            except (ValueError, TypeError):
                raise RequestError(f"content {digest[:12]} is not base64") from None
            if hashlib.sha256(data).hexdigest() != digest:
                raise RequestError(f"content {digest[:12]} does not match its digest")
            if len(data) > self.agent.config.file_limit:
                raise UsageError(
                    f"content {digest[:12]} has {len(data)} bytes; [state] file_limit is {self.agent.config.file_limit}"
                )
            blobs[digest] = data

        def content(digest: str) -> bytes | None:
            return blobs[digest] if digest in blobs else self.agent.journal.blob(digest)

        checked = {r: self._check_value(r, v, content).to_json() for r, v in args["resources"].items()}
        self.agent.stage(blobs)
        return {"resources": checked}

    def _check_value(self, resource: str, value: Any, blobs: Callable[[str], bytes | None]) -> Declared:
        """The value in the form in which a file gives it; a value that a file could not express is refused."""
        kind = kind_of(resource)
        name = split_id(resource)[1]
        pattern = self.agent.ignore.match(resource)
        if pattern is not None:
            raise UsageError(
                f"{resource} is ignored by the pattern {pattern!r}",
                "take it out of the file or the pattern out of [drift] ignore",
            )
        try:
            declared = Declared.from_json(value)
            if kind.canonical(name) != name:
                raise ValueError(f"its name is written {kind.canonical(name)!r}")
            again = kind.parse(name, kind.export(name, declared, blobs), "/nonexistent").declared
            if replace(again, restorable=declared.restorable) != declared:
                raise ValueError("not a value of its kind")
            for need in again.requires:
                kind_of(need)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise RequestError(f"{resource}: {exc}") from None
        return replace(again, attrs=kind.marked(name, again.attrs))

    def _rollback_to(self, client: Client, token: int, to_seq: int, request: ops.Rollback) -> None:
        """Replay up to a record, off the loop, then declare the state of that time."""
        agent = self.agent

        def work() -> Result:
            back = as_declared(agent.journal.path, to_seq, request)
            return Result(0, Asked(0, 0, token, back, client.caller))

        agent.expect(client, token)
        agent.worker.call(agent.answering(client, token, work))

    def _redo(self, client: Client, token: int, request: ops.Redo) -> None:
        """Apply again what a rollback took back: the state of the machine when the newest rollback of the change
        began."""
        agent, change = self.agent, request.change

        def work() -> Result:
            resources = rolled_back_state(agent.journal.path, change)
            lacking = [
                r
                for r, attrs in resources.items()
                if attrs is not None and "sha256" in attrs and agent.worker.blobs(attrs["sha256"]) is None
            ]
            if lacking:
                raise PactError(f"the content of {lacking[0]} is not in the store any more; nothing was applied")
            again = ops.Apply(
                resources={r: Declared(attrs).to_json() for r, attrs in resources.items()},
                dry_run=request.dry_run,
                message=request.message or f"redo of {change}",
            )
            return Result(0, Asked(0, 0, token, again, client.caller))

        agent.expect(client, token)
        agent.worker.call(agent.answering(client, token, work))

    # -- reading ------------------------------------------------------------------------------------------------

    def _ping(self, client: Client, request: ops.Ping) -> None:
        self.agent.answer(client, {"node": self.agent.node.name})

    def _status(self, client: Client, request: ops.Status) -> None:
        agent = self.agent
        now_ns, wall_ns = agent.now()
        result = views.status(
            agent.node,
            client.caller,
            client.gathered,
            now_ns=now_ns,
            wall_ns=wall_ns,
            observers=agent.health(),
            journal=agent.journal_json(),
            unrecorded=agent.unrecorded,
        )
        if agent.link is not None:
            until_ns = agent.node.alone_until_ns
            alone = rfc3339(wall_ns + until_ns - now_ns) if until_ns > now_ns else None
            result["cluster"] = {**agent.link.status(), "alone_until": alone}
        actor = client.caller.actor
        result |= {
            "up_s": round((now_ns - self._began_ns) / NS_PER_S, 1),
            "scheduler": agent.batch.status(),
            "you": {"user": actor.user, "uid": actor.uid, "role": actor.role},
            "notes": [t for t in (untold.waits(agent.node), *(n for k in KINDS.values() for n in k.notes())) if t],
        }
        self.agent.answer(client, result)

    def _tracked(self, client: Client, request: ops.Tracked) -> None:
        node = self.agent.node
        self.agent.answer(client, {"v": 1, "tracked": dict(node.state.tracked), "untracked": tracked.count(node)})

    def _check(self, client: Client, request: ops.Check) -> None:
        agent = self.agent
        apart = agent.link is not None and bool(agent.link.apart)
        line, code = views.check_line(agent.node, agent.unrecorded, agent.journal_error, apart)
        client.send(
            {
                "ok": True,
                "exit": code,
                "message": "",
                "hint": "",
                "result": {
                    "line": line,
                    "node": agent.node.name,
                    "state": views.overall(agent.node, agent.unrecorded),
                    "untracked": tracked.count(agent.node),
                },
            }
        )

    def _state(self, client: Client, request: ops.State) -> None:
        """One word, and whether something is untracked. It is equal for all healthy nodes, so that their answers
        fold."""
        node = self.agent.node
        new = {"untracked": True} if tracked.count(node) else {}
        self.agent.answer(client, {"state": views.overall(node, self.agent.unrecorded), **new})

    def _diff(self, client: Client, request: ops.Diff) -> None:
        token = self.agent.next_token()
        steps = diffing.gather(self.tellers, self.long_answers, client, token, list(request.targets))
        client.tokens.add(token)
        self.long_answers.add(client, token, steps)

    def _log(self, client: Client, request: ops.Log) -> None:
        count = request.count
        if count is not None and count < 0:
            raise UsageError("-n takes a number from 0")
        if request.follow:
            telling.following(self.tellers, client, request)
        else:
            self._tell(
                client,
                "log",
                telling.log(
                    self.agent.journal.path,
                    client.caller,
                    self.agent.veil,
                    count,
                    request.since,
                    request.type,
                ),
            )

    def _watch(self, client: Client, request: ops.Watch) -> None:
        client.watching = True

    def _show(self, client: Client, request: ops.Show) -> None:
        agent = self.agent
        self._tell(
            client,
            "show",
            telling.show(agent.journal.path, client.caller, agent.veil, agent.telling.blobs, request.seq),
        )

    def _content(self, client: Client, request: ops.Content) -> None:
        agent, seq, resource = self.agent, request.seq, request.resource
        self._tell(
            client,
            "content",
            telling.content(agent.journal.path, client.caller, agent.veil, agent.telling.blobs, seq, resource),
        )

    def _consumers(self, client: Client, request: ops.Consumers) -> None:
        asking.consumers(self.agent, client, request.resource)

    def _export(self, client: Client, request: ops.Export) -> None:
        agent = self.agent
        agent.require_durable()
        state = agent.node.state
        declared = state.all_declared_raw()
        for resource in () if client.admin else state.closed:  # found by a pattern: nobody has declared it  # S2
            del declared[resource]
        self._tell(
            client,
            "export",
            telling.exported(
                declared,
                dict(state.tracked),
                client.caller,
                agent.veil,
                agent.telling.blobs,
                agent.ignore,
            ),
        )

    def _kept(self) -> Sessions:
        if self.sessions is None:
            raise UnreachableError("no sessions are kept here")
        return self.sessions

    def _sessions(self, client: Client, request: ops.Sessions) -> None:
        kept = self._kept()
        left = kept.left.listed(client.caller)
        self.agent.answer(client, {"v": 1, "sessions": kept.listed(client.caller), **({"left": left} if left else {})})

    def _shell_open(self, client: Client, request: ops.ShellOpen) -> None:
        if isinstance(client, Remote) and self.agent.link is not None:
            self._kept()
            self.agent.link.streams.open(client, request)
        else:
            self._kept().open(client, request)

    def _shell_attach(self, client: Client, request: ops.ShellAttach) -> None:
        if isinstance(client, Remote) and self.agent.link is not None:
            self._kept()
            self.agent.link.streams.attach(client, request)
        else:
            self._kept().attach(client, request)

    def _exec(self, client: Client, request: ops.Exec) -> None:
        if not isinstance(client, Remote) or self.agent.link is None:
            raise UsageError("exec works over the cluster")
        self._kept()
        self.agent.link.execute(client, request)

    def _session_revoke(self, client: Client, request: ops.SessionRevoke) -> None:
        if client.caller.actor.role != "agent" or self.agent.link is None:
            raise DeniedError("only the root may say that a key was removed")
        self.agent.link.revoke(request.user)
        self.agent.answer(client, {})

    def _session_end(self, client: Client, request: ops.SessionEnd) -> None:
        if request.session.startswith("x"):  # a command's
            self._kept().left.end(client, request.session)
        elif client.remote and request.node != self.agent.config.name:
            raise UsageError(
                "which node's session? each node counts its own, and the same name is another person's elsewhere",
                "pact sessions --nodes NODE --end ID, with one node",
            )
        else:
            self._kept().end(client, request)

    def _tell(self, client: Client, op: str, lines: Iterator[bytes]) -> None:
        telling.tell(self.tellers, client, op, lines)


def _all_written(args: dict[str, Any]) -> Iterator[None]:
    """Write the names in a request's arguments as pact does, some at a time: a request may have thousands."""
    if "resource" in args:
        args["resource"] = _written(args["resource"])
    if "targets" in args:
        names: dict[str, None] = {}
        for at, target in enumerate(dict.fromkeys(args["targets"]), 1):
            names[_written(target)] = None
            if at % NAMES_AT_ONCE == 0:
                yield
        args["targets"] = list(names)


def _written(target: str) -> str:
    """A resource's name as pact writes it, if the target has another form that its kind knows."""
    kind, sep, name = target.partition(":")
    if not sep or kind not in KINDS:
        return target
    try:
        return f"{kind}:{KINDS[kind].canonical(name)}"
    except ValueError:
        return target  # the lookup will report what is wrong with it
