"""What people see: nothing in it can move a terminal, and equal nodes answer equally."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pact.cli import render
from pact.cli.names import folded
from pact.cli.render import MOVING, View, clean, diff_lines, event_line, say, status_lines


@given(st.text())
def test_no_control_or_format_character_is_printed(text: str) -> None:
    shown = clean(text)
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Zl", "Zp", "Cs"} == set()
    assert len(shown) >= len(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\r", "a\\x0ab\\x0d"),
        ("\u202egnp", "\\u202egnp"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        (5, "5"),
    ],
)
def test_control_characters_are_made_visible(text: Any, shown: str) -> None:
    assert clean(text) == shown


@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner, max_size=3)))
def test_a_json_document_moves_no_terminal_and_says_the_same(value: Any) -> None:
    shown = render.still(orjson.dumps(value))
    assert orjson.loads(shown) == value
    assert {unicodedata.category(c) for c in shown.decode()} & render.MOVING == set()


HOSTILE = "\x1b[31mred\nline"


def holder(pid: int = 4711) -> dict[str, Any]:
    return {
        "resource": "file:/a",
        "pid": pid,
        "how": "fd",
        "path": HOSTILE,
        "uid": 0,
        "user": HOSTILE,
        "command": HOSTILE,
        "cgroup": "/",
        "job": "42",
    }


def status(node: str = "n001", pid: int = 4711, day: int = 1, id_: str = "c7", **changes: Any) -> dict[str, Any]:
    change = {
        "id": id_,
        "state": "blocked",
        "owner": {"user": HOSTILE, "uid": 1, "session": "12", "command": HOSTILE},
        "resources": ["sysctl:vm.swappiness", *(f"file:/f{n}" for n in range(20))],
        "opened": f"2026-01-{day:02}T10:11:12Z",
        "deadline": f"2026-01-{day:02}T10:26:12Z",
        "remaining_s": 788.1 + day,
        "consumers": [holder(pid)],
        "reason": HOSTILE,
        "message": "",
    }
    return {
        "v": 1,
        "node": node,
        "state": "blocked",
        "mode": "observe",
        "magnitude": 0.0707,
        "window_s": 788.5 + day,
        "dimensions": {"kernel": 0.0707, "files": 0, "mounts": 0},
        "declared": 1204,
        "drifted": 1,
        "unreadable": 0,
        "observers": {"fanotify": HOSTILE, "mountinfo": "ok"},
        "scheduler": {"kind": "slurm", "drained": "pact: c7 blocked", "error": HOSTILE},
        "changes": [change],
        "emergency": {
            "reason": HOSTILE,
            "by": HOSTILE,
            "started": f"2026-01-{day:02}T10:00:00Z",
            "stale": True,
            "ends": f"2026-01-{day:02}T14:00:00Z",
        },
        "holds": [
            {"id": "h1", "change": None, "reason": HOSTILE, "owner": HOSTILE, "ends": f"2026-01-{day:02}T10:00:00Z"}
        ],
        "journal": {"seq": 41 + day, "replicated": 41, "error": HOSTILE},
        "unrecorded": {"count": 3},
        **changes,
    }


def test_plain_status_has_no_pids_node_names_or_numbers_so_that_equal_nodes_fold() -> None:
    one, two = (list(status_lines(doc, View(ids=False))) for doc in (status(), status("n002", 815, 1, "c99")))
    assert one == two
    text = "\n".join(one)
    assert not re.search(r"4711|n001|788|c7", text)
    assert "state: blocked (observe mode)" in text
    assert "blocked \\x1b[31mred\\x0aline: sysctl:vm.swappiness, file:/f[0-19]" in text
    assert "\ndrained\nbatch system: \\x1b[31mred" in text
    assert "(\\x1b[31mred\\x0aline), stale" in text and "c7 blocked" in "\n".join(status_lines(status(), View()))


def test_status_says_how_far_the_root_is_behind_and_of_a_node_alone_nothing() -> None:
    cluster = {"connected": True, "alone_until": None}
    behind, with_it = status(cluster=cluster), status(cluster=cluster, journal={"seq": 41, "replicated": 41})
    assert "journal: 1 record not at the root" in list(status_lines(behind, View()))
    assert not any("not at the root" in line for doc in (with_it, status()) for line in status_lines(doc, View()))


@pytest.mark.parametrize(
    ("left_s", "text"), [(788.1, " until 2026-01-01T10:26Z:"), (61.5, " until 2026-01-01T10:26:12Z:"), (None, "")]
)
def test_off_a_terminal_the_end_is_absolute_and_to_the_minute_so_that_it_folds(left_s: float | None, text: str) -> None:
    doc = status()
    doc["changes"][0] |= {"state": "open", "remaining_s": left_s, **({} if left_s else {"deadline": None})}
    (line,) = [x for x in status_lines(doc, View()) if x.startswith("c7 ")]
    assert text in line and ("until" in line) == bool(text) and " left" not in line


def test_what_is_not_there_any_more_is_no_value() -> None:
    entry = {**ENTRY, "declared": {"type": "file", "sha256": "a" * 64}, "actual": {"type": "directory"}, "diff": None}
    lines = [line for line, _ in diff_lines(entry, View())]
    assert "  + type: directory" in lines and not any("None" in line for line in lines)


def test_plain_status_is_safe_to_print() -> None:
    for line in status_lines(status(), View()):
        assert line.isprintable(), line


def test_a_quiet_node_says_little() -> None:
    quiet = status(
        state="committed",
        mode="enforce",
        drifted=0,
        changes=[],
        emergency=None,
        holds=[],
        unrecorded=None,
        observers={"fanotify": "ok"},
        scheduler={"kind": "slurm", "drained": None},
        journal={"seq": 1, "replicated": 1},
    )
    assert list(status_lines(quiet, View())) == ["state: committed", "declared: 1204, drifted: 0, unreadable: 0"]


def test_plain_lists_of_holders_name_no_pids(capsys: pytest.CaptureFixture[str]) -> None:
    render.put(render.holders_table([holder()], View()))
    printed = capsys.readouterr().out
    assert "used by" in printed
    assert "job 42" in printed
    assert "4711" not in printed
    assert printed.count("\n") == 1
    assert printed.rstrip("\n").isprintable()


ENTRY = {
    "id": "file:/a",
    "kind": "file",
    "change": "c1",
    "owner": {"user": "ann", "command": HOSTILE},
    "deviation": 0.1,
    "seen": "2026-01-01T10:11:12Z",
    "declared": {"mode": "0644", "sha256": "a" * 64},
    "actual": {"mode": "0600"},
    "diff": "--- declared\n+++ actual\n-old\n+\x1b[2Jnew\tx\n",
}


def test_a_diff_is_safe_to_print_and_folds_without_times() -> None:
    lines = [line for line, _ in diff_lines(ENTRY, View())]
    assert all(line.isprintable() for line in lines)
    assert not any("10:11" in line for line in lines)
    assert "  - mode: 0644" in lines
    assert "  + mode: 0600" in lines
    assert "  +\\x1b[2Jnew    x" in lines


def test_what_is_absent_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line, _ in diff_lines({**ENTRY, "declared": None, "diff": None}, View())]
    assert "  - declared: absent" in lines
    render.put(render.diff_page({"resources": [{**ENTRY, "actual": None}]}, View()))
    assert "  + actual:   absent" in capsys.readouterr().out


@given(st.text(max_size=10), st.text(max_size=10))
def test_a_record_is_one_safe_line(reason: str, user: str) -> None:
    record = {
        "seq": 5,
        "time": "2026-01-01T00:00:00.000000Z",
        "type": "rollback_blocked",
        "actor": {"user": user, "uid": 1, "role": "ops", "via": "socket"},
        "data": {"change": "c1", "reason": reason, "holders": []},
    }
    line = event_line(record, View())
    assert "\n" not in line
    assert {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Zl", "Zp", "Cs"} == set()


SHOW = """
import sys, orjson
from pact.cli.commands.status import page
from pact.cli.render import View, put
put(page(orjson.loads(sys.stdin.buffer.read()), View.here(){}))
"""


def test_no_character_that_is_printable_moves_a_terminal() -> None:
    """Text that is printable is shown as it is, unread."""
    printable = (char for char in map(chr, range(sys.maxunicode + 1)) if char.isprintable())
    assert {unicodedata.category(char) for char in printable}.isdisjoint(MOVING)


def drifted(**changes: Any) -> dict[str, Any]:
    change = {
        **status()["changes"][0],
        "state": "open",
        "owner": {"user": "ops1"},
        "consumers": [],
        "reason": "",
        "resources": ["file:/etc/NetworkManager/chrony.conf", "sysctl:net.core.somaxconn"],
    }
    return {
        **status(),
        "emergency": None,
        "holds": [],
        "observers": {},
        "state": "drifted",
        "unrecorded": None,
        "journal": {"seq": 1, "replicated": 1},
        "mode": "enforce",
        "up_s": 3 * 86400 + 5,
        "changes": [change],
        "untracked": 2,
        "unreadable": 1,
        "drifted": 3,
        **changes,
    }


@pytest.mark.parametrize(("columns", "bars"), [(40, False), (72, True), (80, True), (120, True)])
def test_a_status_page_fits_the_terminal_and_gives_up_the_bar_before_what_has_drifted(columns: int, bars: bool) -> None:
    lines = on_terminal_of(columns, SHOW.format(""), orjson.dumps(drifted()))
    (row,) = [line for line in lines if line.startswith("c7 ")]
    assert ("█" in row) == bars and "left" in row
    for name in ("chrony.conf", "sysctl:net.core.somaxconn"):
        assert any(name in line for line in lines), "no name is broken into pieces"
    assert max(cell_len(line) for line in lines) <= columns


def test_the_headline_says_state_counts_mode_and_age() -> None:
    head, *_ = on_terminal_of(100, SHOW.format(""), orjson.dumps(drifted()))
    assert head == "● n001  DRIFTED  3 changed, 2 untracked, 1 unreadable    enforce, up 3d"
    narrow = on_terminal_of(40, SHOW.format(""), orjson.dumps(drifted()))
    assert narrow[:3] == ["● n001  DRIFTED", "  3 changed, 2 untracked, 1 unreadable", "  enforce, up 3d"]


@pytest.mark.invariant("J7", "F63")
@pytest.mark.parametrize("columns", [40, 80])
def test_a_page_says_what_the_journal_is_at_and_what_it_lacks(columns: int) -> None:
    journal = {"seq": 9, "replicated": 9, "unverified": 600_000, "store": {"limit": 1 << 30, "room": 1000}}
    lines = on_terminal_of(columns, SHOW.format(""), orjson.dumps(drifted(journal=journal)))
    text = " ".join(line.strip() for line in lines)
    assert "older records of the journal are being verified, 600000 are left" in text
    assert "the content store is nearly full; raise [state] store_limit" in text
    assert max(cell_len(line) for line in lines) <= columns
    plain = list(status_lines(drifted(journal=journal), View()))
    assert "journal: older records are being verified" in plain, "no number that keeps equal nodes from folding"
    assert any(line.startswith("journal: the content store is nearly full") for line in plain)
    bad = {**journal, "error": "journal record 7: its content does not match its hash", "trusted": False}
    text = " ".join(
        line.strip() for line in on_terminal_of(columns, SHOW.format(""), orjson.dumps(drifted(journal=bad)))
    )
    assert "JOURNAL journal record 7" in text and "being verified" not in text
    assert "pact journal verify names the record" in text and "free space" not in text


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("name", ["plain", "日本語の設定", "a" * 200])
def test_a_page_is_one_screen_whatever_the_size_of_the_drift_and_no_wider(columns: int, name: str) -> None:
    def changes(resources: int) -> list[dict[str, Any]]:
        one = {
            **drifted()["changes"][0],
            "also": [{"user": name, "uid": 1, "command": "x"}],
            "owner": {"user": name},
            "consumers": [holder()] * 30,
            "reason": f"{name} " * 20,
            "resources": [f"file:/etc/{name}/{chr(97 + i % 26)}{'x' * i}" for i in range(resources)],
        }
        return [{**one, "id": f"c{n}", "state": "blocked" if n % 2 else "open"} for n in range(30)]

    doc = drifted(
        changes=changes(300),
        node=name,
        holds=status()["holds"] * 50,
        observers={name: f"{name} is blind"},
        trials=[{"resource": f"file:/{name}{n}", "by": name, "ends": "2026-01-01T10:00:00Z"} for n in range(50)],
        untracked_resources=[{"resource": f"file:/{name}{n}", "owner": {"user": name}} for n in range(50)],
        unreadable_resources={f"file:/{name}{n}": f"EIO {name}" for n in range(50)},
    )
    lines = on_terminal_of(columns, SHOW.format(""), orjson.dumps(doc))
    assert lines[-1] == "" and len(lines) <= 24 and max(map(cell_len, lines)) <= columns
    text = "\n".join(lines)
    assert "pact status -v" in text and "pact " in lines[-2] and ("DRIFTED" in text or name.startswith("a"))
    # Every line of it is shown then: that takes its time, so there are fewer.
    whole = on_terminal_of(columns, SHOW.format(", verbose=True"), orjson.dumps({**doc, "changes": changes(60)}))
    assert len(whole) > 1000 and max(map(cell_len, whole)) <= columns and any(x.startswith("c29") for x in whole)


def test_what_differs_in_a_number_is_folded() -> None:
    names = [f"file:/etc/plugin-{n}.conf" for n in range(1, 221)]
    assert folded(names) == ["file:/etc/plugin-[1-220].conf"]
    assert folded(["a08", "a09", "a10", "b", "a12"]) == ["a[08-09]", "a[10,12]", "b"]
    assert folded(["x1y5", "x2y5", "x3y5", "z"]) == ["x[1-3]y5", "z"]
    assert folded(["b", "a", "b"]) == ["b", "a"]


def test_a_holder_that_has_ended_since_is_said_to_be_gone() -> None:
    doc = status()
    doc["changes"][0]["consumers"][0]["gone"] = True
    assert any(line.startswith("  used by") and " (gone): " in line for line in status_lines(doc, View()))


def on_terminal_of(columns: int, script: str, text: bytes) -> list[str]:
    """What a program says on a terminal of this width, without the colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {
        "TERM": "xterm-256color"
    }
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    assert process.stdin
    process.stdin.write(text)
    process.stdin.close()
    out = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has gone
        while chunk := os.read(ours, 65536):
            out += chunk
    os.close(ours)
    assert process.wait(10) == 0, out
    return re.sub(r"\x1b\[[0-9;]*m", "", out.decode()).split("\r\n")


def test_the_holder_of_a_package_manager_s_lock_is_named_by_pid_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a package manager holds /var/lib/dpkg/lock (pid 77); used by python[28730] of root on n[1-2] of 3"
    monkeypatch.setattr(render, "on_terminal", lambda: False)
    assert render.spoken(text) == "a package manager holds /var/lib/dpkg/lock; used by python of root on n[1-2] of 3"
    monkeypatch.setattr(render, "on_terminal", lambda: True)
    assert render.spoken(text) == text


def test_what_a_node_writes_moves_no_terminal_whichever_field_it_stands_in(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b[2J\x1b]0;owned\x07\ng9 open: n[1-2]"
    say(f"  {bad}")
    for line in status_lines(status(state=bad), View()):
        say(line)
    record = {
        "seq": 1,
        "time": "2026-11-28T04:08:48Z" + bad,
        "type": bad,
        "data": {"group": bad},
        "actor": {"user": bad, "via": "socket"},
    }
    say(event_line(record, View()))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert sum(line.startswith("g9 open") for line in out.splitlines()) == 1, "only that of a text with lines"


@pytest.mark.parametrize("columns", [40, 80])
def test_a_line_for_many_nodes_is_broken_where_it_would_be_wider(columns: int) -> None:
    script = "import sys\nfrom pact.cli.render import paint\npaint(sys.stdin.buffer.read().decode(), 'bold yellow')"
    text = "n[1-128] (128): drifted; open ann: " + ", ".join(f"file:/etc/設定ファイル/{'あ' * n}x" for n in range(30))
    lines = on_terminal_of(columns, script, text.encode())
    assert max(map(cell_len, lines)) <= columns and len(lines) > 10
    assert "".join(line.strip() for line in lines).replace(" ", "") == text.replace(" ", "")
