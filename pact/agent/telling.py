"""Answers that may be long: read, masked for the caller, and written out by a separate thread.

The loop passes its data on once, and then piece after piece as the client reads. So a client that asks for much costs
the others nothing, and a client that does not read costs one piece.  # S7
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.agent.client import Client
from pact.agent.veil import Veil, is_secret, save_is_secret
from pact.agent.worker import Result
from pact.core import ops, strict
from pact.core.node.events import Caller, Event, Ticked
from pact.core.node.payloads import SessionClosed
from pact.core.tree.checks import BODY_MAX
from pact.declared.toml import Ignore, export, export_track
from pact.errors import DeniedError, PactError, UsageError
from pact.journal.sqlite import SqliteJournal
from pact.limits import ANSWER_PIECE, ANSWER_PIECE_S
from pact.model import Declared, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs
from pact.resources.support.passwords import holds_secret

if TYPE_CHECKING:
    from pact.agent.driver import Driver
    from pact.core.records import Record

KEPT_SHOWN: Final = 5
#: The most bytes of a record's contents that are shown with it; the others are requested one by one.
SHOWN_MAX: Final = 8 << 20
END: Final = b'{"end":true}'
FAR_MAX: Final = BODY_MAX
FOLLOW_MAX: Final = 10_000
FOLLOW_PAGE: Final = 50  # records
NOTHING: Final = b""  # said instead of a line by who has worked and has none yet: the piece may end here
Piece = tuple[list[bytes], bool]  # and whether it is the last


def tell(
    tellers: Tellers, client: Client, op: str, lines: Iterator[bytes], then: Callable[[], None] | None = None
) -> None:
    """Let the thread write these lines, and pass them on. An error that they raise becomes the answer. ``then``: called
    on the loop after the last one."""
    token = tellers.agent.next_token()
    client.tokens.add(token)
    pieces = _far_pieces(lines) if client.remote else _pieces(lines)
    _more(tellers, client, token, op, pieces, then)


def _more(
    tellers: Tellers, client: Client, token: int, op: str, pieces: Iterator[Piece], then: Callable[[], None] | None
) -> None:
    agent = tellers.agent

    def work() -> Result:
        piece, whole = next(pieces)

        def done(t_ns: int, wall_ns: int) -> Ticked:
            if token in client.tokens and agent.control.connected(client):
                if piece or whole:
                    client.take(piece)
                if whole:
                    client.tokens.discard(token)
                    if then is not None:
                        then()
                elif client.remote:
                    _more(tellers, client, token, op, pieces, then)
                else:
                    client.when_taken(lambda: _more(tellers, client, token, op, pieces, then))
                agent.control.flush(client)
            return Ticked(t_ns, wall_ns)

        return Result(0, make=done)

    def guarded() -> Result:
        try:
            return work()
        except DeniedError as exc:
            denied = exc

            def refused(t_ns: int, wall_ns: int) -> Any:
                agent.record_denied(op, denied, client.caller)
                return agent.failed_read(client, token, denied, t_ns, wall_ns)

            return Result(0, make=refused)

    tellers.add(client, agent.answering(client, token, guarded))


class Tellers:
    """Decides whose piece is written next: one at a time, administrators' first, the others in turn."""

    def __init__(self, agent: Driver) -> None:
        self.agent = agent
        self._first: deque[tuple[Client, Callable[[], Result]]] = deque()
        self._others: deque[tuple[Client, Callable[[], Result]]] = deque()
        self._at_work = False

    def add(self, client: Client, work: Callable[[], Result]) -> None:
        (self._first if client.admin else self._others).append((client, work))
        self._next()

    def turn(self) -> None:
        """A client may have read its last piece."""
        if self._first or self._others:
            self._next()

    def _next(self) -> None:
        while not self._at_work and (found := self._first.popleft() if self._first else self._whose()):
            client, work = found
            if self.agent.control.connected(client):
                self._begin(work)

    def _whose(self) -> tuple[Client, Callable[[], Result]] | None:
        """The first waiting answer of a client whose owner has no other unread answer: however many and however large
        answers an owner requests, one piece of them is in memory. A line of which more comes is read so far: it must
        not keep the others from their pieces, on which its own next piece may wait."""
        full = {c.caller.owner.key: c for c in self.agent.control.clients.values() if c.may_write and not c.admin}
        for at, (client, work) in enumerate(self._others):
            if full.get(client.caller.owner.key, client) is client:
                del self._others[at]
                return client, work
        return None

    def _begin(self, work: Callable[[], Result]) -> None:
        self._at_work = True

        def written() -> Result:
            result = work()

            def done(t_ns: int, wall_ns: int) -> Event:
                self._at_work = False
                event = result.event(t_ns, wall_ns)
                self._next()
                return event

            return Result(result.job, None, result.blobs, result.error, make=done)

        self.agent.telling.call(written)


def _pieces(lines: Iterator[bytes]) -> Iterator[Piece]:
    """The lines as they are sent, joined, in pieces; none in a piece in which there were none yet."""
    whole = False
    while not whole:
        out: list[bytes] = []
        size, ends_s, whole = 0, time.monotonic() + ANSWER_PIECE_S, True
        for line in lines:
            if line is not NOTHING:
                out += [line, b"\n"]
                size += len(line)
            if size >= ANSWER_PIECE or time.monotonic() >= ends_s:
                whole = False
                break
        line = NOTHING  # while a client does not read, only the piece that is on its way to it is in memory
        yield _joined(out), whole


def _joined(lines: list[bytes]) -> list[bytes]:
    """The lines as one, if there are any; they are taken out."""
    text = b"".join(lines)
    lines.clear()
    return [text] if text else []


def _far_pieces(lines: Iterator[bytes]) -> Iterator[Piece]:
    """A caller from the cluster gets one answer, as much as fits: what comes before it says nothing."""
    out: list[bytes] = []
    size, ends_s = 0, time.monotonic() + ANSWER_PIECE_S
    for line in lines:
        if line is not NOTHING:
            out.append(line)
            size += len(line)
        if size > FAR_MAX:
            break
        if time.monotonic() >= ends_s:
            yield [], False
            ends_s = time.monotonic() + ANSWER_PIECE_S
    yield out, True


# -- what is told: each of these runs in that thread alone ------------------------------------------------------------


def answered(result: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": result})


def log(path: str, caller: Caller, veil: Veil, count: int | None, since: str, type_: str) -> Iterator[bytes]:
    """Records, the newest first."""
    with closing(SqliteJournal(path, read_only=True)) as journal:
        for body, hash_ in journal.newest(count, since=since, type_=type_):
            yield b'{"record":' + veil.record_line(body, hash_, caller) + b"}" if body else NOTHING
    yield END


def following(tellers: Tellers, client: Client, request: ops.Log) -> None:
    """Tell the newest records, the oldest of them first; then the client watches. Records that come meanwhile are told
    in the same way: none is left out, and none is told twice."""
    agent, told = tellers.agent, [-1]

    def begun() -> None:
        if client.alive:
            client.send(b'{"begun":true}')

    lines = _newest(agent.journal.path, client.caller, agent.veil, request, told)
    tell(tellers, client, "log", lines, lambda: _watch(tellers, client, told, begun))


def caught_up(tellers: Tellers, client: Client) -> None:
    """A client who watches was told a long line, and nothing else meanwhile: tell what has come, then it watches on."""
    client.behind = False
    _watch(tellers, client, [client.told])


def _watch(tellers: Tellers, client: Client, told: list[int], begun: Callable[[], None] = lambda: None) -> None:
    """Tell the records after number ``told[0]``; as soon as there are no more, the client watches."""
    agent = tellers.agent
    if told[0] < agent.journal.seq:
        lines = _since(agent.journal.path, client.caller, agent.veil, told[0] + 1, told)
        tell(tellers, client, "log", lines, lambda: _watch(tellers, client, told, begun))
        return
    client.watching, client.told = True, told[0]
    begun()


def _newest(path: str, caller: Caller, veil: Veil, request: ops.Log, told: list[int]) -> Iterator[bytes]:
    with closing(SqliteJournal(path, read_only=True)) as journal:
        told[0] = journal.seq
        found = journal.newest(request.count, since=request.since, type_=request.type)
        oldest, count = NOTHING, 0
        for body, _ in found:
            oldest, count = body or oldest, count + bool(body)
            if count >= FOLLOW_MAX:
                break
            yield NOTHING
    if oldest:
        yield from _since(path, caller, veil, strict.own(oldest)["seq"], told, request.type)


def _since(path: str, caller: Caller, veil: Veil, first: int, told: list[int], type_: str = "") -> Iterator[bytes]:
    """Records from ``first`` on, of this type if it is not empty. ``told`` becomes the number of the last."""
    with closing(SqliteJournal(path, read_only=True)) as journal:
        told[0] = journal.seq
        while page := list(journal.bodies(first, FOLLOW_PAGE, type_)):
            for hash_, body in page:
                yield b'{"record":' + veil.record_line(body, hash_, caller) + b"}"
            first = strict.own(page[-1][1])["seq"] + 1


def show(path: str, caller: Caller, veil: Veil, blobs: Blobs, seq: int) -> Iterator[bytes]:
    """A record, and the contents that it keeps, as far as the caller may see them."""
    record, admin = _record(path, seq), caller.actor.role == "admin"
    contents = {}
    room = SHOWN_MAX
    for resource, save in record.data.get("saves", {}).items():
        digest = save.get("sha256")
        entry = dict(save)
        room -= save["attrs"].get("size", 0) if digest and save.get("attrs") else 0
        if digest and room < 0:
            entry["left_out"] = f"too much for one answer: pact show {seq} --resource {resource}"
        elif digest and (admin or not save_is_secret(resource, save)):
            data = blobs(digest)
            if data is not None:
                text = KINDS[split_id(resource)[0]].text(save["attrs"], {digest: data}.get)
                entry["content" if text is not None else "content_base64"] = (
                    text if text is not None else base64.b64encode(data).decode()
                )
        contents[resource] = entry
    answer = {"record": record.to_json(), "contents": contents}
    yield answered(answer if admin else veil.masked(answer, caller))


def _record(path: str, seq: int) -> Record:
    with closing(SqliteJournal(path, read_only=True)) as journal:
        record = journal.get(seq)
        if record is None:
            raise UsageError(f"there is no record {seq}", f"the newest is {journal.seq}")
        return record


def content(path: str, caller: Caller, veil: Veil, blobs: Blobs, seq: int, resource: str | None) -> Iterator[bytes]:
    """One content that a record keeps. Raises UsageError, DeniedError."""
    record, admin = _record(path, seq), caller.actor.role == "admin"
    if record.type == SessionClosed.type:
        yield answered(_transcript(record, admin, blobs))
        return
    saves = record.data.get("saves", {})
    unknown = () if admin else frozenset(record.data.get("closed", ()))  # names that only administrators see  # S2
    kept = {r: s for r, s in saves.items() if s.get("sha256") and r not in unknown}
    if resource is None:
        if len(kept) != 1:
            some = ", ".join(sorted(kept)[:KEPT_SHOWN])
            more = f" and {len(kept) - KEPT_SHOWN} more (pact show {seq})" if len(kept) > KEPT_SHOWN else ""
            hint = f"name one with --resource: {some}{more}" if kept else "pact log --type rollback_started"
            raise UsageError(f"record {seq} keeps the content of {len(kept)} files", hint)
        resource = next(iter(kept))
    if resource not in kept:
        raise UsageError(f"record {seq} keeps no content of {resource}")
    if not admin and save_is_secret(resource, kept[resource]):
        raise DeniedError(f"the content of {resource} is not world-readable: this needs the role admin")
    data = blobs(kept[resource]["sha256"])
    if data is None:
        raise PactError(f"the content of {resource} is not in the store")
    attrs = kept[resource]["attrs"]
    shown = attrs if admin else veil.attrs(resource, attrs)
    yield answered({"resource": resource, "attrs": shown, "data": base64.b64encode(data).decode()})


def _transcript(record: Record, admin: bool, blobs: Blobs) -> dict[str, Any]:
    """The output of a session. Raises UsageError, DeniedError."""
    if not admin:
        raise DeniedError("the transcript of a session needs the role admin")
    kept = record.data.get("transcript") or {}
    if not kept.get("sha256"):
        raise UsageError(f"record {record.seq} keeps no transcript", kept.get("left_out", ""))
    data = blobs(kept["sha256"])
    if data is None:
        raise PactError("the transcript is not in the store any more: older ones go first")
    return {"resource": f"session {record.data['session']}", "attrs": {}, "data": base64.b64encode(data).decode()}


def exported(
    declared: Mapping[str, bytes], tracked: Mapping[str, str], caller: Caller, veil: Veil, blobs: Blobs, ignore: Ignore
) -> Iterator[bytes]:
    """Declared state as TOML, one line of JSON for each piece of text. ``declared``: the values as they are stored."""
    admin, last = caller.actor.role == "admin", ""
    if not declared and not tracked:
        yield orjson.dumps({"text": "# nothing is declared\n"})
    for resource in sorted(declared):
        value = Declared.from_json(strict.own(declared[resource]))
        kind, pattern = split_id(resource)[0], ignore.match(resource)
        if kind not in KINDS:
            yield orjson.dumps({"text": f"# {resource} is left out: its kind is not installed here\n"})
            continue
        if pattern is not None:  # declare would refuse it
            yield orjson.dumps({"text": f"# {resource} is left out: ignored by the pattern {pattern!r}\n"})
            continue
        if KINDS[kind].all_secret and KINDS[kind].secret(value.attrs) and not admin:
            continue
        if not admin and value.attrs is not None and holds_secret(value.attrs):
            yield orjson.dumps({"text": f"# {resource} is left out: it holds a password or a user's name\n"})
            continue
        if not admin and value.attrs is not None and "target" in value.attrs and is_secret(resource, value.attrs):
            yield orjson.dumps({"text": f"# {resource} is left out: it lies in a closed directory\n"})
            continue
        if not admin and value.attrs is not None:
            attrs, left_out = veil.exported(resource, value.attrs)
            value = replace(value, attrs=attrs)
            if left_out:
                yield orjson.dumps({"text": f"# of {resource} something is left out: {left_out}\n"})
        for text in export([(resource, value)], blobs):
            if text.startswith(f"\n[{kind}]\n") and kind == last:
                continue
            yield orjson.dumps({"text": text})
        last = kind
    for text in export_track(tracked):
        yield orjson.dumps({"text": text})
    yield END
