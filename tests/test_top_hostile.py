"""What comes may be of another version, or of somebody who means no good: ``pact top`` says so, and goes on."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from test_top import DIFF, NOW_MS, NOW_S, answers, change, open_, picture, row, status, told

from pact.cli.client import Answer
from pact.cli.commands.top import _test
from pact.cli.top import plain
from pact.cli.top.desk import Desk
from pact.cli.top.feed import FleetTold, NodeTold, Record, Reply
from pact.cli.top.fleet import Fleet

JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    float("inf"),
    "x",
    "\x1b[2J",
    [],
    {},
    [[]],
    {"id": 7},
    [None] * 9,
    "9" * 9000,
)
KEYS = ("enter", "esc", "c", "e", "r", "x", "y", "tab", "down", "end", "?", "/", "backspace")


def spoiled(value: Any, rng: random.Random) -> Any:
    """The same with one part of it replaced, or left out."""
    value = copy.deepcopy(value)
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        if isinstance(at, dict) and rng.random() < 0.3:
            del at[key]
        else:
            at[key] = rng.choice(JUNK)
        return value


SESSION = {
    "id": "s1",
    "user": "bob",
    "account": "root",
    "from": "10.0.0.7",
    "since": "2027-01-15T08:00:00Z",
    "terminal": "pts/3",
    "command": "",
    "attached": "bob",
    "ended": False,
}
HOLD = {"id": "h1", "change": "c1", "owner": "ann", "reason": "why", "ends": "2027-01-15T08:00:00Z"}
RECORD = {
    "seq": 4,
    "type": "hold_placed",
    "data": {"reason": "r"},
    "time": "2027-01-15T08:00:00Z",
    "actor": {"user": "ann", "via": "socket"},
}


@pytest.mark.invariant("Y2")
@pytest.mark.parametrize("seed", range(300))
def test_no_answer_of_a_node_ends_it(seed: int) -> None:
    rng = random.Random(seed)
    holder = {"user": "eve", "pid": 7, "command": "solver", "how": "open"}
    good = {"doc": status(change(consumers=[holder]), holds=[HOLD]), "sessions": [SESSION], "records": [RECORD]}
    desk = Desk(None, _test)
    bad = spoiled(good, rng)
    desk.heard(NodeTold("", bad.get("doc", 7), bad.get("sessions", 7), bad.get("records", 7)), NOW_S, NOW_MS)
    desk.heard(Record(spoiled(RECORD, rng)), NOW_S, NOW_MS)
    lines = plain.Lines(desk)
    lines.news(NOW_S)
    lines.news(NOW_S + 500)
    for _ in range(4):
        picture(desk)
        asked = desk.key(rng.choice(KEYS))
        if asked:
            raw = {"ok": True, "exit": 0, "message": "", "hint": "", "result": spoiled(DIFF, rng)}
            for ask in asked:
                desk.heard(Reply(ask.tag, Answer(raw)), NOW_S, NOW_MS)
    picture(desk, 60, 9)
    desk.question = None
    desk.heard(NodeTold("", status(change()), [SESSION], [RECORD]), NOW_S, NOW_MS)
    desk.helping = False
    assert any(line.startswith("c1 ") for line in picture(desk, 100, 40)), "and goes on with what makes sense"
    lines.news(NOW_S)


@pytest.mark.invariant("Y2")
@pytest.mark.parametrize("seed", range(300))
def test_no_message_of_a_root_ends_it(seed: int) -> None:
    rng = random.Random(seed)
    group = {
        "id": "g7",
        "state": "open",
        "owner": "ann",
        "nodes": "n[1-3]",
        "members": 3,
        "done": 3,
        "decision": "x",
        "why": "w",
        "blocked": [["n1", "w", [{"pid": 1, "user": "u", "command": "c"}]]],
        "in_way": 4,
    }
    good = told(
        set={
            "n1": row("drifted", open_(group="g7"), sessions=[["s1", "eve", 1]]),
            "n2": row("blocked", open_(state="blocked")),
        },
        plain={"r1": {"committed": ["n3"]}},
        groups=[group],
        holds=[{"hold": "f1", "owner": "ann", "reason": "r", "ends": "2027-01-15T08:00:00Z"}],
        records=[[3, NOW_MS, "n1", "drift_detected", "bob", "x"]],
    ).message
    desk = Desk(Fleet(), _test)
    desk.heard(FleetTold(spoiled(good, rng)), NOW_S, NOW_MS)
    lines = plain.Lines(desk)
    lines.news(NOW_S)
    for _ in range(5):
        picture(desk, 100, 40)
        asked = desk.key(rng.choice(KEYS))
        if len(asked) == 1:
            answers(desk, asked, spoiled({"groups": [{**group, "group": "g7", "resources": []}]}, rng))
    picture(desk)
    desk.heard(FleetTold({**good, "n": 9}), NOW_S, NOW_MS)
    desk.views, desk.question, desk.filtering, desk.helping = desk.views[:1], None, None, False
    desk.fleet.narrow("", None)  # type: ignore[union-attr]
    assert "NOT LIVE" not in "\n".join(picture(desk, 100, 40)) and "3 nodes" in picture(desk, 100, 40)[0]
    lines.news(NOW_S)


def test_what_was_not_understood_is_not_forgotten_with_the_next_news() -> None:
    desk = Desk(Fleet(), _test)
    desk.heard(told(set={"n1": row(), "n2": row()}), NOW_S, NOW_MS)
    desk.heard(
        told(1, "news", set={"n1": row("drifted", open_()), "n2": ["r1", "failed", "", [], 0, [], "new"]}),
        NOW_S,
        NOW_MS,
    )
    assert "NOT LIVE" in "\n".join(picture(desk))
    desk.heard(told(2, "news", set={"n1": row("blocked", open_(state="blocked"))}), NOW_S, NOW_MS)
    text = "\n".join(picture(desk))
    assert "NOT LIVE" in text and "1 blocked" in text, "n2 is shown as it was"
    desk.heard(told(3, set={"n1": row(), "n2": row("failed")}), NOW_S, NOW_MS)
    assert "NOT LIVE" not in "\n".join(picture(desk))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value and, as ``(way, key)``, to each key."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))
    if not isinstance(value, dict | list):
        yield at
    elif isinstance(value, dict):
        yield from ((*at, (key,)) for key in value)


MOVES = "\u202ex\x1b[2J\n\u200b\x85"


@pytest.mark.invariant("Y2")
def test_no_value_of_a_node_reaches_the_screen_as_it_is() -> None:
    """A number may be a text, and a key a value: whatever a node says is shown as text."""
    holder = {"user": "eve", "pid": 7, "command": "solver", "how": "open", "job": "4"}
    of = change(consumers=[holder], also=[{"user": "bob", "uid": 1}], reason="r", message="m", group="g1")
    good = status(
        of,
        holds=[HOLD],
        emergency={"stale": False, "by": "a", "reason": "r", "ends": HOLD["ends"]},
        unrecorded={"count": 3},
        cluster={"connected": False, "alone_until": HOLD["ends"], "refused": "x"},
        trials=[{"resource": "r", "ends": HOLD["ends"], "by": "b"}],
        unreadable_resources={"a": "b"},
        journal={"seq": 5, "replicated": 5, "error": "e"},
    )
    tried = 0
    for way in places({"doc": good, "session": SESSION}):
        said = copy.deepcopy({"doc": good, "session": SESSION})
        at: Any = said
        for key in way[:-1]:
            at = at[key]
        if isinstance(way[-1], tuple):
            at[MOVES] = at.pop(way[-1][0])
        else:
            at[way[-1]] = MOVES
        desk = Desk(None, _test)
        desk.heard(NodeTold("", said.get("doc", {}), [said.get("session", {})], []), NOW_S, NOW_MS)
        for key in ("tab", "c"):
            shown = "".join(text for line in desk.frame(150, 60, NOW_S, NOW_MS).lines for text, _ in line)
            assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in shown), way
            desk.key(key)
        tried += 1
    assert tried > 100


def test_the_display_s_library_is_imported_for_the_display_alone() -> None:
    script = (
        "import sys, pact.cli.top.plain, pact.cli.commands.top, pact.cli.commands.status\n"
        "assert not {'urwid', 'zmq', 'wcwidth', 'asyncio'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
