"""What ``pact top`` shows of fixed facts, and what keys do: pure, without a terminal."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from pact.cli.client import Answer
from pact.cli.commands.top import _test, _wanted
from pact.cli.top import asking, fleetrows, plain
from pact.cli.top.asking import Ask, Input, wish
from pact.cli.top.desk import Desk
from pact.cli.top.feed import FleetTold, Lost, NodeTold, Record, Reply
from pact.cli.top.fleet import Fleet
from pact.cli.top.text import fit, shown
from pact.errors import DeniedError, PactError, UsageError

NOW_MS = 1_800_000_000_000
NOW_S = 1000.0


def owner(user: str = "ann", uid: int = 1001) -> dict[str, Any]:
    return {"key": f"user:{user}", "user": user, "uid": uid, "session": "", "command": "", "run": ""}


def change(name: str = "c1", user: str = "ann", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "state": "open",
        "owner": owner(user, {"ann": 1001, "bob": 1002}.get(user, 1)),
        "also": [],
        "group": None,
        "resources": [f"file:/etc/{name}.conf"],
        "magnitude": 0.1,
        "opened": "2027-01-15T08:00:00Z",
        "deadline": "2027-01-15T08:15:00Z",
        "remaining_s": 600.0,
        "reason": "",
        "consumers": [],
        "message": "",
        **more,
    }


def status(*changes: dict[str, Any], role: str = "admin", **more: Any) -> dict[str, Any]:
    return {
        "node": "n001",
        "state": "drifted" if changes else "committed",
        "mode": "enforce",
        "declared": 12,
        "drifted": len(changes),
        "unreadable": 0,
        "untracked": 0,
        "magnitude": 0.1,
        "window_s": 600.0,
        "dimensions": {"files": 0.1},
        "changes": list(changes),
        "emergency": None,
        "holds": [],
        "observers": {"files": "ok"},
        "journal": {"seq": 5, "replicated": 5},
        "you": {"user": "ann", "uid": 1001, "role": role},
        **more,
    }


def here(*changes: dict[str, Any], **more: Any) -> Desk:
    desk = Desk(None, _test, "n001")
    desk.heard(NodeTold("", status(*changes, **more), [], []), NOW_S, NOW_MS)
    return desk


def row(state: str = "committed", *changes: list[Any], held: str = "", sessions: list[Any] | None = None) -> list[Any]:
    return ["r1", state, held, list(changes), 0, *([sessions] if sessions else [])]


def told(n: int = 0, kind: str = "whole", **more: Any) -> FleetTold:
    return FleetTold({"kind": kind, "n": n, "now": NOW_MS, "about": {"cluster": "blue"}, **more})


def afar(*messages: FleetTold, wanted: frozenset[str] | None = None, role: str = "admin") -> Desk:
    desk = Desk(Fleet(wanted), _test)
    desk.heard(FleetTold({"kind": "you", "n": 0, "user": "ann", "role": role}), NOW_S, NOW_MS)
    for message in messages:
        desk.heard(message, NOW_S, NOW_MS)
    return desk


def open_(name: str = "c1", user: str = "bob", ends_s: float = 600, **more: Any) -> list[Any]:
    what = {"state": "open", "count": 1, "first": "file:/etc/app.conf", "why": "", "group": "", **more}
    ends_ms = None if what["state"] == "blocked" else NOW_MS + int(ends_s * 1000)
    return [name, what["state"], user, ends_ms, what["count"], what["first"], what["why"], what["group"]]


def picture(desk: Desk, width: int = 80, height: int = 24, later_s: float = 0.0) -> list[str]:
    frame = desk.frame(width, height, NOW_S + later_s, NOW_MS + int(later_s * 1000))
    assert len(frame.lines) == len(frame.spots) == height
    for line in frame.lines:
        assert sum(cell_len(text) for text, _ in line) == width, line
    return ["".join(text for text, _ in line).rstrip() for line in frame.lines]


def types(desk: Desk, *keys: str) -> list[Ask]:
    out: list[Ask] = []
    for key in keys:
        out += desk.key(key) if len(key) == 1 or key in NAMED else [a for c in key for a in desk.key(c)]
    return out


NAMED = {"enter", "esc", "tab", "shift tab", "down", "up", "page down", "end", "home", "backspace"}


def answers(desk: Desk, asked: list[Ask], result: dict[str, Any], **more: Any) -> list[Ask]:
    (ask,) = asked
    raw = {"ok": True, "exit": 0, "message": "", "hint": "", "result": result, **more}
    return desk.heard(Reply(ask.tag, Answer(raw)), NOW_S, NOW_MS)


DIFF = {"resources": [{"id": "file:/etc/c1.conf", "declared": {"mode": "0644"}, "actual": None, "diff": None}]}


# -- one node ---------------------------------------------------------------------------------------------------------


def test_a_node_on_80_by_24() -> None:
    blocked = change(
        "c2",
        "bob",
        state="blocked",
        remaining_s=None,
        deadline=None,
        reason="consumers",
        consumers=[{"user": "eve", "job": "41", "pid": 77, "command": "/usr/bin/solver -x", "how": "open"}],
    )
    session = {"id": "s1", "user": "bob", "account": "root", "from": "10.0.0.7", "since": "2027-01-15T08:00:00Z",
               "terminal": "pts/3", "command": "", "attached": "bob", "ended": False}  # fmt: skip
    desk = here(change(), blocked)
    desk.heard(NodeTold("", status(change(), blocked), [session], None), NOW_S, NOW_MS)
    text = "\n".join(picture(desk))
    assert re.search(r"^n001  DRIFTED   2 of 12 changed$", text, re.MULTILINE)
    assert re.search(r"^c1 +10m 00s  open +ann +file:/etc/c1.conf$", text, re.MULTILINE)
    assert re.search(r"^c2 +-  blocked +bob +file:/etc/c2.conf$", text, re.MULTILINE)
    assert "    eve, job 41: /usr/bin/solver -x (pid 77)" in text
    assert re.search(r"^s1 +bob as root +10.0.0.7 .* a shell$", text, re.MULTILINE)
    assert re.search(r"^c1 +9m 01s ", "\n".join(picture(desk, later_s=59)), re.MULTILINE)
    assert re.search(r"^c1 +0s ", "\n".join(picture(desk, later_s=700)), re.MULTILINE)


@pytest.mark.invariant("Y2")
@settings(max_examples=200)
@given(
    st.text(min_size=1, max_size=60),
    st.integers(1, 130),
    st.integers(1, 50),
    st.sampled_from(["", "c", "r", "?", "e"]),
)
def test_any_text_on_any_size_stays_in_its_cells(text: str, width: int, height: int, key: str) -> None:
    one = change(user=text, message=text, reason=text, resources=[text, text + "x"], group=text)
    one["consumers"] = [{"user": text, "pid": 1, "command": text, "how": text}]
    hold = {"id": "h1", "change": text, "owner": text, "reason": text, "ends": "2027-01-15T08:00:00Z"}
    more: dict[str, Any] = {"holds": [hold], "node": text, "notes": [text], "observers": {text: text}}
    records = [{"type": text, "data": {}, "seq": 1}]
    desk = Desk(None, _test, text)
    desk.heard(NodeTold("", status(one, **more), text, records), NOW_S, NOW_MS)
    asked = desk.key(key) if key else []
    picture(desk, width, height)
    if asked:
        answers(desk, asked, {"resources": [{**DIFF["resources"][0], "id": text}]})
        types(desk, *text[:20])
        picture(desk, width, height)
    fleet = afar(
        told(
            set={text: row("drifted", open_(user=text, first=text), held=text, sessions=[["s1", text, 1]])},
            plain={text: {text: [text + str(i) for i in range(9)]}},
            groups=[{"id": text, "state": text, "owner": text, "message": text, "members": 3, "done": 1, "why": text,
                     "decision": text, "blocked": [[text, text, []]]}],
            holds=[{"hold": text, "owner": text, "reason": text, "ends": text}],
            records=[[1, NOW_MS, text, text, text, text]],
        )
    )  # fmt: skip
    assert not fleet.fleet or not fleet.fleet.trouble
    if key in ("?", ""):
        types(fleet, *([key] if key else []))
    picture(fleet, width, height)
    assert plain.Lines(fleet).news(NOW_S) and plain.Lines(desk).news(NOW_S)


@pytest.mark.invariant("Y2")
def test_what_controls_a_terminal_is_shown_as_text() -> None:
    assert shown("\x1b[2J\x9b\x07\u202e") == "\\x1b[2J\\x9b\\x07\\u202e"
    assert shown("e\u0301\u0301\u0301\u0301") == "e\u0301\u0301" and shown("\u0301x")[0] == "\N{REPLACEMENT CHARACTER}"
    assert sum(cell_len(t) for t, _ in fit([("\u4e2d\u6587\u4e2d", "")], 4)) == 4
    assert len(shown("x" * 10_000)) == 400


def test_keys_go_through_parts_and_rows_and_the_choice_stays_with_its_row() -> None:
    changes = [change(f"c{i}") for i in range(1, 40)]
    desk = here(*changes)
    picture(desk)
    types(desk, "down", "down", "page down", "up")
    chosen = desk.view.look.selected["changes"]
    assert chosen not in ("c1", "c2", "c3")
    desk.heard(NodeTold("", status(*changes[1:]), [], None), NOW_S, NOW_MS)
    assert chosen in "\n".join(picture(desk)) and desk.view.look.selected["changes"] == chosen
    types(desk, "end")
    text = picture(desk)
    assert any("of 38" in line for line in text) and any(line.startswith("c39") for line in text)
    desk.heard(NodeTold("", status(change("c7")), [], None), NOW_S, NOW_MS)
    picture(desk)
    assert desk.view.look.selected["changes"] == "c7"
    types(desk, "tab", "tab", "shift tab", "home", "?")
    assert "Shift-Tab" in "\n".join(picture(desk))
    types(desk, "x", "q")
    assert desk.over


def test_records_come_once_in_their_order() -> None:
    def record(seq: int) -> dict[str, Any]:
        return {"seq": seq, "type": "hold_placed", "data": {"reason": f"r{seq}"}, "time": "2027-01-15T08:00:00Z",
                "actor": {"user": "ann", "via": "socket"}}  # fmt: skip

    desk = Desk(None, _test)
    desk.heard(Record(record(4)), NOW_S, NOW_MS)
    desk.heard(NodeTold("", status(), [], [record(3), record(2)]), NOW_S, NOW_MS)
    desk.heard(Record(record(5)), NOW_S, NOW_MS)
    desk.heard(NodeTold("", status(), [], [record(4), record(3)]), NOW_S, NOW_MS)
    assert [r["seq"] for r in desk.nodes[""].records] == [5, 4, 3]
    desk.heard(NodeTold("", status(), [], [record(0)]), NOW_S, NOW_MS)
    assert "r0" in "\n".join(picture(desk))


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("Y3")
def test_one_s_own_change_takes_a_reason_and_no_more() -> None:
    desk = here(change())
    asked = types(desk, "c")
    assert [(a.op, a.fields, a.where) for a in asked] == [("diff", {"targets": ["c1"]}, "")]
    assert types(desk, "x", "enter") == [], "nothing is typed before it is shown what it is about"
    answers(desk, asked, DIFF)
    assert "it is yours" in "\n".join(picture(desk)) and types(desk, "enter") == []
    (ask,) = types(desk, "it is good", "enter")
    assert ask.op == "commit" and ask.fields == {
        "targets": ["c1"],
        "all": False,
        "message": "it is good",
        "ttl_ns": None,
        "force": False,
        "shared": False,
    }
    assert types(desk, "y", "enter") == [], "it is sent once"
    committed = {"change": "c1", "resources": ["file:/etc/c1.conf"], "seq": 9, "split": False, "also": []}
    answers(desk, [ask], {"committed": [committed], "left": []})
    assert "committed c1 (file:/etc/c1.conf) as record 9" in "\n".join(picture(desk))
    types(desk, "enter")
    assert desk.question is None


@pytest.mark.invariant("Y3")
@pytest.mark.parametrize("more", [{"user": "bob"}, {"also": [owner("bob", 1002)]}])
def test_what_is_another_s_or_shared_takes_its_name(more: dict[str, Any]) -> None:
    desk = here(change(**more))
    answers(desk, types(desk, "e"), DIFF)
    assert types(desk, "30m", "enter") == []
    assert types(desk, "y", "enter") == [] and "that was not c1" in "\n".join(picture(desk))
    (ask,) = types(desk, "c1", "enter")
    assert ask.op == "extend"
    assert ask.fields == {"targets": ["c1"], "by_ns": 30 * 60 * 10**9, "shared": "also" in more}


@pytest.mark.invariant("Y3")
def test_a_rollback_shows_its_plan_and_who_is_in_the_way() -> None:
    desk = here(change())
    asked = answers(desk, types(desk, "r"), DIFF)
    assert [(a.op, a.fields["dry_run"]) for a in asked] == [("rollback", True)]
    used = [{"user": "eve", "pid": 7, "command": "solver", "how": "open"}]
    plan = {
        "change": "c1",
        "plan": [{"action": "restore", "id": "file:/etc/c1.conf"}],
        "refused": [],
        "consumers": used,
    }
    answers(desk, asked, {"rolled_back": [plan]})
    text = "\n".join(picture(desk))
    assert "restore  file:/etc/c1.conf" in text and "in its way: eve: solver (pid 7)" in text
    assert types(desk, "enter") == [] and types(desk, "n", "enter") == []
    (ask,) = types(desk, "y", "enter")
    assert (ask.op, ask.fields["dry_run"], ask.fields["force"]) == ("rollback", False, False)
    desk.heard(Reply(ask.tag, DeniedError("it is held", "ask eve")), NOW_S, NOW_MS)
    text = "\n".join(picture(desk))
    assert "it is held" in text and "ask eve" in text


@pytest.mark.invariant("Y3")
def test_a_change_that_moves_while_the_question_stands_is_asked_about_anew() -> None:
    desk = here(change())
    answers(desk, types(desk, "c"), DIFF)
    types(desk, "goo")
    asked = desk.heard(NodeTold("", status(change(resources=["file:/a", "file:/b"])), [], None), NOW_S, NOW_MS)
    assert [a.op for a in asked] == ["diff"]
    answers(desk, asked, DIFF)
    assert "it has changed while you looked" in "\n".join(picture(desk)) and desk.question is not None
    assert desk.question.input.text == ""
    desk.heard(Lost("", "gone", ), NOW_S, NOW_MS)  # fmt: skip
    assert desk.question.phase == asking.FIELD, "what is not known has not changed"
    assert desk.heard(NodeTold("", status(), [], None), NOW_S, NOW_MS) == []
    assert "nothing was done" in "\n".join(picture(desk)) and types(desk, "d", "enter") == []


@pytest.mark.invariant("Y3")
def test_an_answer_that_comes_after_its_question_was_left_is_still_told() -> None:
    desk = here(change(), change("c2"))
    answers(desk, types(desk, "c"), DIFF)
    (late,) = types(desk, "x", "enter")
    types(desk, "esc")
    other = types(desk, "down", "e")
    assert desk.question is not None and desk.question.target.id == "c2"
    desk.heard(Reply(late.tag, PactError("the disk is full")), NOW_S, NOW_MS)
    assert desk.question.phase == asking.LOADING, "it is no answer to this one"
    assert "Commit c1 of ann on n001: the disk is full" in "\n".join(picture(desk))
    answers(desk, other, DIFF)
    assert "by how long" in "\n".join(picture(desk, 200))


def test_a_viewer_looks_and_does_nothing() -> None:
    desk = here(change(), role="viewer")
    for key in "cer":
        assert types(desk, key) == [] and desk.question is None
        assert "a viewer may look" in picture(desk)[-1]
    assert [a.op for a in types(desk, "enter")] == ["diff"]


def test_wishes_are_those_of_the_commands() -> None:
    assert wish("commit", ["g7", "--message=-x --all"]).fields == {
        "group": "g7",
        "allow_missing": None,
        "message": "-x --all",
        "ttl_ns": None,
    }
    assert wish("extend", ["g7", "1h"])[:2] == (
        "group_extend",
        {"group": "g7", "allow_missing": None, "by_ns": 3600 * 10**9},
    )
    with pytest.raises(UsageError):
        wish("extend", ["c1", "soon"])


def test_a_line_is_typed_and_mended() -> None:
    line = Input()
    for key in ("a", "c", "left", "b", "home", "delete", "end", "d", "backspace", "\u4e2d", "f5"):
        line.key(key)
    assert (line.text, line.at) == ("bc\u4e2d", 3)
    line.key("ctrl u")
    assert line.text == ""
    for _ in range(3000):
        line.key("x")
    assert len(line.text) == asking.INPUT_MAX


# -- the fleet --------------------------------------------------------------------------------------------------------


def test_a_fleet_on_80_by_24() -> None:
    desk = afar(
        told(
            plain={"r1": {"committed": [f"n{i}" for i in range(1, 98)], "unknown": ["x1"]}},
            set={
                "n98": row("drifted", open_(ends_s=59), sessions=[["s1", "eve", 1]]),
                "n99": row("drifted", open_(ends_s=50)),
                "n100": row("blocked", open_(state="blocked", why="solver (eve)")),
                "n101": row("emergency", held="emergency by ann: flood"),
            },
            groups=[{"id": "g7", "state": "open", "owner": "ann", "message": "new kernel", "members": 40, "done": 10,
                     "ends_ms": NOW_MS + 90_000, "nodes": "n[1-40]", "blocked": [], "in_way": 0}],
            records=[[5, NOW_MS, "n98", "drift_detected", "bob", "file:/etc/app.conf"]],
        )
    )  # fmt: skip
    text = "\n".join(picture(desk, 80, 50))
    assert text.splitlines()[0].startswith(
        "blue  102 nodes  1 emergency  1 blocked  2 drifted  1 unknown  97 committed"
    )
    for line in (
        r"drifted +2  n\[98-99\] \(2\)",
        r"n100  blocked  bob +file:/etc/app.conf",
        r"    solver \(eve\)",
        r"g7 +open +1m 30s  ██░░░░░░░░ 10 of 40 +ann +new kernel",
        r"50s  n\[98-99\] \(2\) +bob +file:/etc/app.conf",
        r"n101 +emergency by ann: flood",
        r"eve +in a session on n98",
        r"\d\d:\d\d:\d\d  n98 +drift_detected +bob +file:/etc/app.conf",
    ):
        assert re.search(line, text), (line, text)
    assert len(picture(desk)) == 24
    desk.heard(told(1, "news", set={"n98": row(), "n99": row()}), NOW_S, NOW_MS)
    assert "2 drifted" not in picture(desk)[0]


def test_what_does_not_follow_is_not_taken() -> None:
    fleet = Fleet()
    assert fleet.take(told(4, plain={"r": {"committed": ["a"]}}).message, NOW_MS)
    assert fleet.take(told(4, "more", plain={"r": {"committed": ["b"]}}).message, NOW_MS)
    assert not fleet.take(told(6, "news", gone=["a"]).message, NOW_MS)
    assert fleet.take(told(5, "news", gone=["a"]).message, NOW_MS) and sorted(fleet.nodes) == ["b"]
    desk = afar(told())
    for nonsense in ({"set": {"n1": 7}}, {"set": {"n1": ["r", "s", "", [[1]]]}}, {"plain": 7}, {"records": [[1]]}):
        desk.heard(told(**nonsense), NOW_S, NOW_MS)
        assert "NOT LIVE" in "\n".join(picture(desk, 120))
    desk.heard(told(), NOW_S, NOW_MS)
    assert "NOT LIVE" not in "\n".join(picture(desk, 120))


def test_down_to_a_node_and_back_and_only_some_nodes() -> None:
    desk = afar(told(set={f"n{i}": row("drifted", open_()) for i in range(3)}), wanted=frozenset({"n0", "n1", "n7"}))
    text = "\n".join(picture(desk, 100, 40))
    assert "blue  2 nodes" in text and "not known: n7" in text and desk.where is None
    types(desk, "tab", "enter")
    assert desk.view.kind == "names" and "n1" in "\n".join(picture(desk))
    types(desk, "down", "enter")
    assert desk.where == "n1" and "nothing is known yet" in picture(desk)[0]
    desk.heard(NodeTold("n1", status(change(), node="n1"), "no sessions here", []), NOW_S, NOW_MS)
    assert "c1" in "\n".join(picture(desk))
    (ask,) = types(desk, "e")
    assert (ask.where, ask.op) == ("n1", "diff")
    desk.heard(Lost("n1", "it has not answered"), NOW_S, NOW_MS)
    types(desk, "esc")
    assert "NOT LIVE for 0s: it has not answered" in "\n".join(picture(desk))
    types(desk, "esc", "esc")
    assert desk.view.kind == "fleet"
    types(desk, "/", "n[0-", "enter")
    assert desk.filtering is not None and "n[0-" in picture(desk)[-1]
    types(desk, "0]", "enter")
    assert picture(desk)[0].startswith("blue  1 of 2 nodes")
    types(desk, "/", *["backspace"] * 9, "1", "enter")
    assert "only 1" in "\n".join(picture(desk))
    types(desk, "esc")
    assert picture(desk)[0].startswith("blue  2 nodes")


@pytest.mark.invariant("Y3")
def test_a_group_takes_its_name_whosever_it_is() -> None:
    group = {"id": "g7", "state": "open", "owner": "ann", "nodes": "n[1-3]", "members": 3, "done": 3, "decision": ""}
    desk = afar(told(set={"n1": row("drifted", open_(group="g7"))}, groups=[group]))
    picture(desk)
    desk.view.look.focus = "groups"
    asked = types(desk, "r")
    assert [(a.where, a.op, a.fields) for a in asked] == [(asking.ROOT, "groups", {"group": "g7"})]
    shown_ = {**group, "group": "g7", "resources": ["file:/a"], "members": {"open": "n[1-3]"}, "blocked": {}}
    answers(desk, asked, {"groups": [shown_]})
    assert "open: n[1-3]" in "\n".join(picture(desk))
    assert types(desk, "y", "enter") == []
    (ask,) = types(desk, "g7", "enter")
    assert (ask.where, ask.op, ask.fields["force"]) == (asking.ROOT, "group_rollback", False)
    desk.heard(told(1, "news", groups=[]), NOW_S, NOW_MS)
    assert desk.question is not None and desk.question.phase == asking.DOING
    answers(desk, [ask], {**shown_, "state": "rolled_back"}, message="all are back")
    assert "all are back" in "\n".join(picture(desk))
    types(desk, "enter", "esc")
    assert fleetrows.names_of(desk.fleet, "groups", "g7") == ["n1"]  # type: ignore[arg-type]


def test_ten_thousand_nodes_are_quick() -> None:
    names = [f"n{i:05d}" for i in range(10_000)]
    rows = {n: row("drifted", open_(ends_s=600 + i % 900, user=f"u{i % 50}")) for i, n in enumerate(names[:3000])}
    began = time.process_time()
    desk = afar(told(plain={"r1": {"committed": names[3000:]}}, set=rows))
    first = picture(desk)
    assert first[0].startswith("blue  10000 nodes  3000 drifted  7000 committed")
    assert time.process_time() - began < 5.0
    began = time.process_time()
    for n in range(10):
        desk.heard(told(n + 1, "news", set={names[n]: row()}), NOW_S, NOW_MS)
        picture(desk)
    assert (time.process_time() - began) / 10 < 0.5


# -- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("Y4")
def test_lines_say_what_becomes_so_and_what_is_over_once() -> None:
    desk = here(change())
    lines = plain.Lines(desk)
    first = lines.news(NOW_S)
    assert any(re.fullmatch(r"c1 of ann is open, until [\d: -]+: file:/etc/c1.conf", line) for line in first)
    assert lines.news(NOW_S + 5) == []
    assert lines.news(NOW_S + 490) == ["c1 ends in less than two minutes"] and lines.news(NOW_S + 500) == []
    desk.heard(Lost("", "no agent answers"), NOW_S, NOW_MS)
    assert lines.news(NOW_S + 501) == ["not live: no agent answers"]
    desk.heard(NodeTold("", status(), [], None), NOW_S, NOW_MS)
    said = lines.news(NOW_S + 502)
    assert said[0] == "live again" and sum(line.startswith("over: c1 of ann") for line in said) == 1
    fleet = afar(told(set={"n1": row("drifted", open_())}, records=[[3, NOW_MS, "n1", "drift_detected", "bob", "x"]]))
    lines = plain.Lines(fleet)
    assert any(line.startswith("n1: a window of bob until") for line in lines.news(NOW_S))
    fleet.heard(told(1, "news", records=[[4, NOW_MS, "n1", "committed", "bob", "y"]], set={"n1": row()}), NOW_S, NOW_MS)
    said = lines.news(NOW_S)
    assert said[-1] == "n1  committed  by bob  y" and any(line.startswith("over: n1: a window") for line in said)


def test_a_filter_is_a_node_set_or_a_part_of_a_name() -> None:
    assert _test("n1")("an12") and not _test("n[1-3]")("n12") and _test("n[1-3]")("n3") and _test("*")("x")
    assert _wanted("*") is None and _wanted("n[1-2]") == {"n1", "n2"}
    with pytest.raises(UsageError):
        _wanted("n[2")
