"""One node that answers nonsense costs the operator nothing but that node's answer."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import test_top_hostile
import test_wayout

from pact.cli import fleet, groups, main, roots, running, there, wayout
from pact.cli.client import Answer
from pact.cli.commands import load
from pact.cli.render import MOVING
from pact.cli.there import There
from pact.cluster.client import Event, Parts, Result
from pact.errors import EXIT_DONE, EXIT_DRIFT, UnreachableError, UsageError
from pact.session.client import Client

GOOD = {"ok": True, "exit": 0, "message": "", "hint": "", "result": {"node": "n1"}}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"no JSON",
        b"[]",
        b"null",
        b"{}",
        b'{"ok":true}',
        b'{"ok":true,"exit":0,"result":[]}',
        b'{"ok":true,"exit":0,"result":{"node":7}}',
        b'{"ok":true,"exit":"x","result":{}}',
        b'{"ok":false,"exit":-5,"message":[1],"hint":{},"result":null}',
        b'{"ok":true,"exit":0,"result":{"rows":7}}',
        b'{"ok":true,"exit":0,"result":{"line":"\\u001b[2J"}}',
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_that_makes_no_sense(bad: bytes, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    good = orjson.dumps(
        {
            "ok": True,
            "exit": 0,
            "message": "",
            "hint": "",
            "result": {"line": "committed: 3 declared", "node": "n1", "state": "committed"},
        }
    )
    answers = roots.Answers({good: ["n1"], bad: ["n2"]})
    args = argparse.Namespace(command="check", json=as_json, socket=None, nodes="n[1-2]", verbose=False)
    (fleet.as_json if as_json else fleet.as_text)(load("check"), args, answers)
    out = capsys.readouterr()
    assert "committed" in out.out and "\x1b" not in out.out + out.err
    if as_json:
        said: dict[str, Any] = orjson.loads(out.out)
        assert "n1" in said["nodes"]
    assert as_json or max(answers.codes) > 0 or b"line" in bad


@pytest.mark.parametrize(
    "bad", [{}, {"state": 5, "mode": []}, {"resources": [{}]}, {"rows": [{"record": {"time": "x"}}]}, {"rows": 7}]
)
@pytest.mark.parametrize("command", ["status", "diff", "log"])
def test_a_page_of_many_nodes_is_shown_although_one_of_them_answers_nonsense(
    command: str, bad: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is written lazily: what is wrong in it must not come up when it is printed."""
    good = {"status": {"state": "committed"}, "diff": {"resources": []}, "log": {"rows": []}}[command]
    answers = roots.Answers(
        {orjson.dumps({"ok": True, "exit": 0, "result": {"v": 1, **r}}): [n] for n, r in (("n1", good), ("n2", bad))}
    )
    args = main._parsed([command, "--nodes", "n[1-2]"])
    fleet.as_text(load(command), args, answers)
    said = capsys.readouterr()
    both = said.out + said.err
    assert "n[1-2]" in both or ("n1" in said.out and "n2" in both), (
        "each has its place on the page, or among those that failed"
    )


def test_an_answer_without_a_result_is_one_with_an_empty_result(capsys: pytest.CaptureFixture[str]) -> None:
    answers = roots.Answers(
        {b'{"ok":true,"exit":0}': ["n1"], b'{"ok":true,"exit":0,"result":{"resources":[]}}': ["n2"]}
    )
    fleet.as_text(load("diff"), main._parsed(["diff", "--nodes", "n[1-2]"]), answers)
    assert "n2" in capsys.readouterr().out


class Root:
    """A root that says this."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def ask(self, op: str, args: dict[str, Any], nodes: str | None, timeout_s: float = 0.0) -> Iterator[Any]:
        yield from self.items


@pytest.mark.parametrize(
    "words",
    [
        ["nodes"],
        ["groups"],
        ["groups", "g1"],
        ["nodes", "--forget", "n9"],
        ["rollback", "g1"],
        ["hold", "release", "--all"],
    ],
)
@pytest.mark.parametrize(
    "result", [{"x": 1}, {"nodes": 5, "groups": 5, "members": 5}, {"groups": [{}], "nodes": {"n1": []}}]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_root_says_that_makes_no_sense_is_said_to_make_none(
    words: list[str], result: dict[str, Any], as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = main._parsed([*(["--json"] if as_json else []), *words])
    there = contextlib.nullcontext(Root(Result(0, "", "", {}, result)))
    monkeypatch.setattr(roots, "connected", lambda args: there)
    monkeypatch.setattr(groups, "emit", orjson.dumps)
    with contextlib.suppress(UnreachableError):
        assert running.run(load(args.command), args) == 0
    monkeypatch.setattr(groups, "emit", lambda value: value["nodes"]["missing"])
    if as_json:
        with pytest.raises(UnreachableError, match="makes no sense"):
            running.run(load(args.command), args)


def test_an_event_that_is_no_record_ends_no_watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = contextlib.nullcontext(Root(Event(b"{}"), Event(b'{"type":5,"node":"n1"}'), Event(b"no JSON")))
    monkeypatch.setattr(roots, "connected", lambda args: there)
    assert running.run(load("watch"), main._parsed(["watch", "--via", "tcp://a:1"])) == 0
    said = capsys.readouterr()
    assert said.out.count("makes no sense") == 2 and "left out" in said.err


@pytest.mark.parametrize("found", [{"resources": [], "unrecorded": ["file:/a"]}, {"resources": []}])
@pytest.mark.parametrize("words", [["-v"], ["--json"], []])
def test_drift_that_no_journal_took_is_drift_however_it_is_shown(
    found: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = roots.Answers({orjson.dumps({"ok": True, "exit": 0, "result": {"v": 1, **found}}): ["n1"]})
    args = main._parsed(["diff", "--exit-code", "--nodes", "n1", *words])
    (fleet.as_json if args.json else fleet.as_text)(load("diff"), args, answers)
    assert max(answers.codes) == (EXIT_DRIFT if "unrecorded" in found else EXIT_DONE)
    assert "file:/a" in capsys.readouterr().out or "unrecorded" not in found


class Node(Root):
    """A node, asked through the tree, that answers this to everything. Nothing of a stream ever comes."""

    seals = False

    def __init__(self, result: Any, ok: bool = True) -> None:
        body = orjson.dumps({"ok": ok, "exit": 0 if ok else 1, "message": "", "hint": "", "result": result})
        super().__init__(Parts(["n1"], body), Result(0, "", "", {}, {}))


def there_at(node: Any, monkeypatch: pytest.MonkeyPatch) -> There:
    monkeypatch.setattr(there, "connected", lambda args: contextlib.nullcontext(node))
    monkeypatch.setattr(there, "on_terminal", lambda: False)
    return There(argparse.Namespace(), "n1")


STREAM = {"session": "s1", "owner": "login:0:1", "account": "root", "stream": ""}


@pytest.mark.parametrize(
    "result",
    [
        {},
        {**STREAM, "session": 7},
        {**STREAM, "session": ""},
        {**STREAM, "session": ["s1"]},
        {**STREAM, "owner": None},
        {**STREAM, "owner": {"key": "x"}},
        {**STREAM, "stream": {}},
        {**STREAM, "stream": 5},
        {**STREAM, "stream": "no key"},
        {"session": {}, "owner": {}, "stream": {}},
    ],
)
@pytest.mark.parametrize("op", ["open", "attach"])
def test_a_node_that_opens_a_session_and_makes_no_sense_is_said_to_make_none(
    op: str, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = there_at(Node(result), monkeypatch)
    with pytest.raises(UnreachableError, match=r"n1: .*no sense|no key for the stream"):
        if op == "open":
            one.open(["true"], "")
        else:
            monkeypatch.setattr(There, "_open", lambda self, client: [there.Open("s1", "", "")])
            one.come_back("s1")


@pytest.mark.parametrize(
    "sessions",
    [
        None,
        7,
        "s1",
        {"id": "s1"},
        [7],
        [None],
        [[]],
        [{"id": 7}],
        [{"id": "s1", "attached": [], "terminal": ""}],
        [{"id": "s1", "attached": "", "terminal": 1}],
    ],
)
@pytest.mark.parametrize("name", ["", "s1"])
def test_sessions_of_a_node_that_make_no_sense(sessions: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = there_at(Node({"sessions": sessions}), monkeypatch)
    with pytest.raises(UnreachableError, match=r"n1: .*no sense"):
        one.come_back(name)


def test_a_session_s_name_moves_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"s{n}\x1b[2J", "attached": "", "terminal": ""} for n in range(2)]
    one = there_at(Node({"sessions": rows}), monkeypatch)
    with pytest.raises(UsageError) as found:
        one.come_back("")
    assert "\x1b" not in found.value.hint and "s0" in found.value.hint


def test_a_node_that_gives_no_answer_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match="has not answered"):
        there_at(Root(), monkeypatch).ask("status", {})


@pytest.mark.parametrize("seed", range(100))
def test_what_a_node_says_on_the_way_out_ends_nothing_and_moves_no_terminal(
    seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    replies = {
        "status": {"node": "n1", "changes": [test_wayout.change("c7"), test_wayout.change("c9", state="blocked")]},
        "diff": {"resources": [test_wayout.ENTRY]},
        "commit": {"committed": [{"change": "c7\x1b[2J", "resources": ["file:/a"], "record": 4}]},
        "extend": {"extended": [{"change": "c7\x1b[2J", "deadline": None}]},
        "rollback": {"rolled_back": [{"change": "c7\x1b[2J", "results": {"file:/a": "restored"}}]},
    }
    bad = test_top_hostile.spoiled(replies, rng)

    class Asked:
        def ask(self, op: str, fields: dict[str, Any]) -> Answer:
            said = bad.get(op, {})
            return Answer({"ok": True, "exit": 0, "result": said if isinstance(said, dict) else {}})

    words = iter([rng.choice(["commit", "extend", "roll back"]), "why", "5m"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(words, "leave"))
    with contextlib.suppress(UnreachableError):
        wayout.ask(Asked(), test_wayout.OWNER)
    assert "\x1b" not in capsys.readouterr().out


def test_lines_of_a_session_for_who_does_not_look_are_few() -> None:
    client = Client(NoWay(), terminal=False)
    for n in range(10_000):
        client._hear(b"N", b"line %d" % n)
    assert len(client._waiting) == 64


class NoWay:
    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool, /) -> None: ...

    def recv(self, most: int, /) -> bytes:
        return b""

    def send(self, data: bytearray, /) -> int:
        return len(data)


def test_an_aggregator_that_says_why_it_waits_moves_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregator carries; what it says by itself is shown to whoever has to wait for a root."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    roots._say_waiting("tcp://a:1: \x1b]0;\x07\x1b[2Jroot leads\u202e\r")
    said = capsys.readouterr().err
    assert said.endswith("; waiting for a root\n")
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(said)
    assert not any(unicodedata.category(c) in MOVING for c in said.rstrip("\n"))


def test_an_error_is_said_without_what_moves_a_terminal_also_where_nothing_can_be_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pact.cli.render", None)
    assert main._say_error(UnreachableError("n1: \x1b[2J", "name\x9b it"), False, False) == UnreachableError.exit_code
    said = capsys.readouterr().err
    assert "n1" in said and not {"\x1b", "\x9b"} & set(said)
