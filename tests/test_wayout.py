"""The question on the way out, and ``pact diff --stat``."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pact.cli import stat, told, wayout
from pact.cli.client import Answer

EVIL = "file:/srv/\x1b]0;evil\x07\x1b[2J"
OWNER = "login:4101:57"


def change(name: str, uid: int = 4101, session: str | None = "57", state: str = "open") -> dict[str, Any]:
    return {
        "id": name,
        "state": state,
        "owner": {"user": "ann", "uid": uid, "session": session},
        "remaining_s": 600.0,
        "deadline": "2026-11-29T18:00:00Z",
    }


ENTRY = {
    "id": EVIL,
    "declared": {"mode": "0644", "sha256": "a", "size": 1},
    "actual": {"mode": "\x1b[31m0600", "sha256": "b", "size": 2},
    "diff": "--- a\n+++ b\n-x\n+y\n+z\n",
}


class Agent:
    """Answers as an agent would."""

    def __init__(self, changes: list[dict[str, Any]]) -> None:
        self.changes = changes
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refuses = False
        self.entry: Callable[[], dict[str, Any]] = lambda: ENTRY

    def ask(self, op: str, fields: dict[str, Any]) -> Answer:
        self.asked.append((op, fields))
        result: dict[str, Any] = {
            "status": {"node": "n\x1b[1m1", "changes": list(self.changes)},
            "diff": {"resources": [self.entry()] if op == "diff" else []},
            "commit": {"committed": []},
            "extend": {"extended": [{"change": "c7", "deadline": None}]},
            "rollback": {"rolled_back": []},
        }[op]
        if self.refuses and op not in ("status", "diff"):
            return Answer({"ok": False, "exit": 3, "message": "no \x1b[2J", "hint": "", "result": {}})
        return Answer({"ok": True, "exit": 0, "message": "", "hint": "", "result": result})


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    words: list[str] = []

    def answer(question: str = "") -> str:
        if not words:
            raise EOFError
        return words.pop(0)

    monkeypatch.setattr(builtins, "input", answer)
    yield words


def test_names_cannot_control_the_terminal(says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent([change("c7")])
    agent.refuses = True
    says += ["c", "why", "l"]
    wayout.ask(agent, OWNER)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    assert "+2 -1" in shown and "1 changed (1 file)" in shown and "left to its window" in shown


@pytest.mark.parametrize(
    ("words", "op"),
    [
        (["c", "it is good"], "commit"),
        (["commit", "", "commit", "it is good"], "commit"),
        (["e", ""], "extend"),
        (["e", "soon", "e", "5m"], "extend"),
        (["r"], "rollback"),
        (["roll back"], "rollback"),
        (["what", "r"], "rollback"),
        ([""], ""),
        (["leave"], ""),
        ([], ""),
    ],
)
def test_each_answer_is_carried_out(says: list[str], words: list[str], op: str) -> None:
    agent = Agent([change("c7"), change("c8", uid=1), change("c9", session="58"), change("c10", state="rolling_back")])
    says += words
    wayout.ask(agent, OWNER)
    done = [(o, f) for o, f in agent.asked if o not in ("status", "diff")]
    assert [o for o, _ in done] == ([op] if op else [])
    assert all(f["targets"] == ["c7"] for _, f in done)


@pytest.mark.parametrize("word", ["c", "e", "r"])
def test_what_has_changed_while_the_question_stood_is_shown_first(
    says: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is decided that was not seen: neither another value of it, nor another change, nor what is over."""
    agent = Agent([change("c7")])
    seen = iter([ENTRY, {**ENTRY, "id": "sysctl:vm.swappiness"}])
    agent.entry = lambda: next(seen, {**ENTRY, "id": "sysctl:vm.swappiness"})
    says += [word, "5m"] if word != "r" else [word]
    wayout.ask(agent, OWNER)
    shown = capsys.readouterr().out
    assert "changed meanwhile, and is now\n sysctl:vm.swappiness" in shown and "c7 left" in shown
    assert {op for op, _ in agent.asked} == {"status", "diff"}
    says += [word, "5m"] if word != "r" else [word]
    agent = Agent([change("c7")])

    def over() -> dict[str, Any]:
        agent.changes.clear()
        return ENTRY

    agent.entry = over
    wayout.ask(agent, OWNER)
    shown = capsys.readouterr().out
    assert shown.endswith("and nothing of this session is open\n") and {op for op, _ in agent.asked} == {
        "status",
        "diff",
    }


@pytest.mark.parametrize("word", ["c", "e", "r"])
def test_what_never_rests_can_be_decided_about_at_the_third_answer(
    says: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent([change("c7")])
    looks = iter(range(100))
    agent.entry = lambda: {**ENTRY, "diff": f"+{next(looks)}\n"}
    says += [word, "5m"] * 3 if word != "r" else [word] * 3
    wayout.ask(agent, OWNER)
    shown = capsys.readouterr().out
    assert shown.count("nothing was done") == 2 and shown.count("about it as it is then") == 1 and "\x1b" not in shown
    assert [op for op, _ in agent.asked if op not in ("status", "diff")] == [
        {"c": "commit", "e": "extend", "r": "rollback"}[word]
    ]


def test_what_comes_beside_it_is_shown_first_however_restless_it_is(
    says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent([change("c7")])
    looks = iter(range(100))

    def entry() -> dict[str, Any]:
        if (look := next(looks)) == 2:  # its status was asked before
            agent.changes.append(change("c8"))
        return {**ENTRY, "diff": f"+{look}\n"}

    agent.entry = entry
    says += ["r"] * 4
    wayout.ask(agent, OWNER)
    assert capsys.readouterr().out.count("nothing was done") == 3
    assert [f["targets"] for op, f in agent.asked if op == "rollback"] == [["c7", "c8"]]


def test_without_anything_open_nothing_is_asked(says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent([change("c8", uid=1)])
    wayout.ask(agent, OWNER)
    assert [o for o, _ in agent.asked] == ["status"] and capsys.readouterr().out == ""


def test_a_session_without_a_login_is_known_by_its_account() -> None:
    found = wayout.mine([change("c7", session=None), change("c8", uid=1)], "uid:4101")
    assert [c["id"] for c in found] == ["c7"]


def test_a_stat_says_what_is_new_gone_and_changed() -> None:
    entries: list[dict[str, Any]] = [
        {"id": "sysctl:vm.swappiness", "declared": {"value": "60"}, "actual": {"value": "10"}, "diff": None},
        {"id": "file:/a", "declared": None, "actual": {"type": "file"}, "diff": None},
        {"id": "file:/b", "declared": {"type": "file"}, "actual": None, "diff": None},
        {"id": "file:/c", "declared": {"sha256": "a"}, "actual": {"sha256": "b"}, "diff": None},
        {
            "id": "mount:/d",
            "declared": dict.fromkeys("abcdef", "1"),
            "actual": dict.fromkeys("abcdef", "x" * 99),
            "diff": "",
        },
    ]
    lines = stat.lines(entries)
    assert lines[0].split() == ["sysctl:vm.swappiness", "value", "60", "->", "10"]
    assert lines[1].endswith(" new") and lines[2].endswith(" gone") and lines[3].endswith(" content")
    assert "and 2 more" in lines[4] and "\u2026" in lines[4]
    assert lines[5] == " 5 changed (3 file, 1 mount, 1 sysctl)"
    assert stat.lines([]) == []


def test_a_stat_names_no_attribute_that_is_not_declared() -> None:
    actual = {"sha256": "b", "mode": "0644", "owner": "root", "group": "root", "xattrs": {}}
    entry = {"id": "file:/srv/app.conf", "declared": {"sha256": "a", "mode": "0644"}, "actual": actual}
    assert stat.lines([{**entry, "diff": "-x\n+y\n"}])[0] == " file:/srv/app.conf  +1 -1"
    entry["declared"] = {"mode": "0600"}
    assert stat.lines([entry])[0] == " file:/srv/app.conf  mode 0600 -> 0644"


def test_records_of_sessions_in_words() -> None:
    opened = {"session": "s4", "owner": {"user": "ann"}, "account": "root", "from": "here", "terminal": "pts/1"}
    assert told.session_told(opened) == "s4 of ann as root from here on pts/1"
    closed = {"session": "s4", "owner": {"user": "ann"}, "account": "ann", "exit": 3, "duration_ns": 61 * 10**9}
    assert told.session_told(closed) == "s4 of ann  exit 3  after 1m 1s"
    killed = {
        "session": "s4",
        "owner": {"user": "ann"},
        "account": "ann",
        "exit": None,
        "duration_ns": None,
        "why": "gone",
    }
    assert told.session_told(killed) == "s4 of ann  gone"
