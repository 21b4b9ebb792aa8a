"""What the command line prints of answers: of nodes, and of the root itself."""

from __future__ import annotations

import contextlib
import io
import math
import re
import unicodedata
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import nasty
import orjson

from fuzz.kit import Feed, Target, piece
from fuzz.tree import heads, raw
from pact.cli import fleet, main, roots, running, screen
from pact.cli.command import NodeCommand
from pact.cli.commands import load
from pact.cli.roots import Answers
from pact.cluster.client import RootClient
from pact.core.tree import wire
from pact.errors import PactError

NODE_COMMANDS: Final = (
    ["status"],
    ["status", "-v"],
    ["diff"],
    ["diff", "-v"],
    ["log"],
    ["log", "-v"],
    ["check"],
    ["consumers", "file:/a"],
    ["show", "3"],
    ["commit", "-m", "x", "--all"],
    ["rollback", "--all"],
    ["rollback", "--all", "--dry-run"],
    ["extend", "10m"],
    ["redo", "c1"],
    ["adopt", "file:/a"],
    ["track"],
    ["hold", "place", "-r", "x"],
    ["hold", "release"],
    ["emergency", "start", "-r", "x"],
    ["emergency", "end"],
)
ROOT_COMMANDS: Final = (
    ["groups"],
    ["groups", "g1"],
    ["nodes"],
    ["nodes", "--forget", "n9"],
    ["commit", "g1", "-m", "x"],
    ["rollback", "g1"],
    ["extend", "g1", "10m"],
    ["hold", "place", "--all", "-r", "x"],
    ["hold", "release", "--all"],
    ["watch", "--nodes", "n1"],
)


class Out(io.TextIOWrapper):
    """Standard output, a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def _parsed(words: list[str], nodes: bool, as_json: bool) -> Any:
    try:
        return main._parsed([*(["--json"] if as_json else []), *words, *(["--nodes", "n[1-9]"] if nodes else [])])
    except PactError:
        return None


ARGS: Final = [(a, j) for w in NODE_COMMANDS for j in (False, True) if (a := _parsed(w, True, j)) is not None]
ROOT_ARGS: Final = [a for w in ROOT_COMMANDS for j in (False, True) if (a := _parsed(w, False, j)) is not None]
assert len(ARGS) > 30 and len(ROOT_ARGS) > 14, (len(ARGS), len(ROOT_ARGS))


def _nothing_moves(text: str) -> None:
    """Nothing that a node wrote moves a terminal; colours and the line of progress are pact's."""
    plain = re.sub(r"\x1b\[[0-9;]*m|\r\x1b\[2K", "", text)
    bad = {c for c in plain if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c != "\n"}
    assert not bad, (bad, text)


@contextlib.contextmanager
def _captured(terminal: bool) -> Iterator[tuple[Out, Out]]:
    out, err = Out(terminal), Out(terminal)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err
    printed = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    _nothing_moves(printed)
    _nothing_moves(err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def shown(data: bytes) -> None:
    """Answers of a few nodes to one command. One node's nonsense hides nothing of what the others say."""
    feed = Feed(data)
    args, as_json = feed.pick(ARGS)
    terminal = bool(feed.number() & 1) and not as_json
    command = load(args.command)
    assert isinstance(command, NodeCommand)
    command.request(args)
    answers = Answers()
    for name in ("n1", "n2", "n3"):
        if feed:
            answers.parts.setdefault(feed.piece(), []).append(name)
    with _captured(terminal) as (out, err):
        (fleet.as_json if as_json else fleet.as_text)(command, args, answers)
        fleet.left_out(command, answers)
        if as_json:
            document = orjson.loads(out.buffer.getvalue())  # type: ignore[attr-defined]
            said = set(document["nodes"]).union(*(_names(n) for n in document["failed"]))
        else:
            text = out.buffer.getvalue().decode() + err.buffer.getvalue().decode()  # type: ignore[attr-defined]
            assert not answers.parts or text.strip(), args
            said = {n for names in answers.parts.values() for n in names}
    assert said >= {n for names in answers.parts.values() for n in names}
    for body in answers.parts:
        answer = fleet.sense(body)
        if answer is not None and args.command == "status" and answer.exit == 0:
            with contextlib.suppress(
                KeyError, TypeError, ValueError, AttributeError, IndexError
            ):  # of its own agent it is right
                for text, _ in screen.page(answer.result, 80, 24, verbose=False):
                    _nothing_moves(text)


def _names(folded: str) -> set[str]:
    from pact.cluster.nodesets import NodeSets

    return set(NodeSets().expand(folded))


DOC: Final = {
    "v": 1,
    "node": "n1",
    "state": "drifted",
    "mode": "enforce",
    "magnitude": 0.07,
    "window_s": 788.5,
    "drifted": 1,
    "dimensions": {"kernel": 0.07},
    "declared": 12,
    "unreadable": 1,
    "untracked": 0,
    "emergency": None,
    "unreadable_resources": {"file:/x": "EIO"},
    "holds": [
        {
            "hold": "h1",
            "owner": "ann",
            "reason": "r",
            "ends": "2026-01-01T00:00:00Z",
            "remaining_s": 5.0,
            "change": None,
        }
    ],
    "observers": {"fanotify": "ok"},
    "journal": {"seq": 9, "replicated": 3},
    "changes": [
        {
            "id": "c7",
            "state": "open",
            "owner": {"user": "ann", "uid": 1, "session": "1", "command": "vi"},
            "group": None,
            "resources": ["sysctl:a", "file:/f"],
            "opened": "2026-01-01T10:11:12Z",
            "deadline": "2026-01-01T10:26:12Z",
            "remaining_s": 788.1,
            "consumers": [],
            "reason": "",
            "message": "",
        }
    ],
    "you": {"user": "ann", "uid": 1, "role": "ops"},
    "up_s": 5.0,
    "trials": [],
}
RECORD: Final = {
    "seq": 3,
    "time": "2026-01-01T10:11:12.000000Z",
    "type": "committed",
    "node": "n1",
    "prev": "0",
    "hash": "0",
    "actor": {"user": "ann", "uid": 1, "role": "ops", "via": "socket"},
    "data": {"resources": {"sysctl:a": {}}, "message": "m", "change": "c1"},
}
RESULTS: Final[tuple[Any, ...]] = (
    DOC,
    {
        "v": 1,
        "resources": [
            {
                "id": "sysctl:a",
                "change": "c1",
                "owner": "ann",
                "declared": {"value": "1"},
                "actual": {"value": "2"},
                "since": "2026-01-01T10:11:12Z",
                "lines": ["-1", "+2"],
            }
        ],
    },
    {"rows": [{"record": RECORD}], "truncated": True},
    {"line": "OK", "node": "n1", "state": "committed", "untracked": 0},
    {
        "v": 1,
        "resource": "file:/a",
        "consumers": [
            {
                "resource": "file:/a",
                "pid": 7,
                "how": "fd",
                "path": "/a",
                "uid": 0,
                "user": "root",
                "command": "vi",
                "cgroup": "/",
                "job": "",
            }
        ],
    },
    {"record": RECORD, "contents": {"file:/a": {"content": "x\n"}}},
    {"change": "c1", "results": {"sysctl:a": "restored"}},
    {"plan": [{"id": "sysctl:a", "action": "restore"}], "dry_run": True, "consumers": [], "notes": ["n"]},
    {"v": 1, "tracked": {"file:/e/**": "report"}, "untracked": {}},
)


def shown_seeds() -> Iterator[bytes]:
    answers = [orjson.dumps({"ok": True, "exit": 0, "message": "m", "hint": "h", "result": r}) for r in RESULTS]
    refused = b'{"ok":false,"exit":10,"message":"no\\u001b[2J","hint":"h","result":{"holders":[]}}'
    for n in range(len(ARGS)):
        for answer in answers:
            yield bytes((n, n >> 1)) + piece(answer) + piece(b"junk") + piece(refused)
    for text in (*nasty.REFUSED.values(), *nasty.FINE.values()):
        if len(text) < 400:
            for n in range(0, len(ARGS), 7):
                yield bytes((n, 1)) + piece(b'{"ok":true,"exit":0,"result":' + text + b"}") + piece(answers[0])


# -- the root's own answers -------------------------------------------------------------------------------------------------


class Wire:
    """A socket on which these frames come."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def poll(self, _: int) -> bool:
        return True

    def send(self, one: bytes, _: int) -> None:
        wire.decode(one)

    def recv(self) -> bytes:
        if not self.frames:
            return raw("sorry", b"{}")
        return self.frames.pop(0)


def client(data: bytes) -> None:
    """Frames that answer a command. It ends with its exit code, or an error for people, whatever they say."""
    feed = Feed(data)
    args = feed.pick(ROOT_ARGS)
    terminal = bool(feed.number() & 1)
    frames = []
    while feed:
        kind = feed.number()
        frames.append(raw(wire_kind(kind), feed.piece(), feed.piece()) if kind < 250 else feed.piece())
    one: Any = RootClient.__new__(RootClient)
    one._id, one._timeout_s, one._ends_s, one.url = 0, 0.0, math.inf, "tcp://a:1"
    one._roots, one._direct, one._must_seal, one._broken_s = [], True, False, math.inf
    one._sock, one._sent_s, one._heard_s, one._monitor = (
        Wire(frames),
        math.inf,
        math.inf,
        SimpleNamespace(poll=lambda _: 0),
    )
    there = contextlib.nullcontext(one)
    roots.connected = lambda _: there  # type: ignore[assignment]
    with _captured(terminal):
        try:
            code = running.run(load(args.command), args)
        except PactError as exc:
            main._say_error(exc, False, False)
            code = exc.exit_code
        except SystemExit:
            raise AssertionError("the command ends by itself") from None
    assert 0 <= code <= 255 or code > 0, code


def wire_kind(number: int) -> str:
    return CLIENT_KINDS[number % len(CLIENT_KINDS)]


CLIENT_KINDS: Final = ("result", "parts", "part", "progress", "event", "sorry", "beat", "welcome")
ANSWERS: Final[tuple[Any, ...]] = (
    {
        "groups": [
            {
                "group": "g1",
                "state": "open",
                "nodes": "n[1-4]",
                "owner": "ann",
                "remaining_s": 5,
                "resources": ["sysctl:a"],
                "message": "m",
                "members": {"applied": "n[1-4]"},
                "blocked": {"n1": {"why": "w"}},
                "deadline": "2026-01-01T00:00:00Z",
            }
        ],
        "holds": [],
    },
    {"nodes": {"n1": {"connected": True}, "n2": {"connected": False}}, "root": "r", "gseq": 5},
    {"forgotten": "n9"},
    {"hold": "f1", "ends": "2026-01-01T00:00:00Z", "nodes": 4},
    {"released": ["f1"], "nodes": 4, "held": []},
    {},
)


def client_seeds() -> Iterator[bytes]:
    one = ANSWERS[0]["groups"][0]
    for n in range(len(ROOT_ARGS)):
        for id_ in (1, 2):
            for answer in (*ANSWERS, one):
                yield (
                    bytes((n, n >> 1))
                    + b"\0"
                    + piece(b'{"id":%d,"exit":0,"message":"m","hint":"h"}' % id_)
                    + piece(orjson.dumps(answer))
                )
        for kind, head, body in heads():
            if kind in CLIENT_KINDS:
                yield bytes((n, 1, CLIENT_KINDS.index(kind))) + piece(head) + piece(body)
        empty = b"\0" + piece(b'{"id":1,"exit":0}') + piece(orjson.dumps(ANSWERS[1]))
        yield (
            bytes((n, 0))
            + empty
            + b"\4"
            + piece(b'{"id":2}')
            + piece(orjson.dumps(RECORD))
            + b"\4"
            + piece(b'{"id":2}')
            + piece(b"{}")
        )


WORDS: Final = [
    b'"result":{',
    b'"exit":0',
    b'"rows":[{"record":',
    b'"data":{',
    b'"resources":[',
    b'"time":"2026-01-01T00:00:00Z"',
    b'"type":"',
    b'"members":{',
    b'"blocked":{',
    b"\\u001b[2J",
    b"\\u202e",
    b"null",
    b"1e308",
    b"-1",
    *(f'"type":"{t}"'.encode() for t in ("rollback_blocked", "denied", "tracked", "group_prepared")),
]
TARGETS: Final = {
    t.name: t
    for t in (
        Target("shown", shown, shown_seeds, WORDS),
        Target("client", client, client_seeds, WORDS),
    )
}
