"""What people see on a terminal: a real agent, a real terminal of 80 or 40 columns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from harness import TOP, Agent, wait_until
from rich.cells import cell_len

COLOUR = re.compile(r"\x1b\[([0-9;]*)m")
YELLOW, RED, GREEN, MAGENTA = "33", "31", "32", "35"


def screen(
    agent: Agent,
    *args: str,
    columns: int = 80,
    rows: int = 24,
    code: int | None = 0,
    env: Mapping[str, str] | None = None,
    typed: bytes = b"",
) -> str:
    """What a command says on a terminal, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    more = {"TERM": "xterm-256color", "PAGER": "cat", **(env or {})}
    gone = [f"-u{name}" for name in ("COLUMNS", "LINES", "NO_COLOR", "VISUAL", "EDITOR") if name not in more]
    command = [
        "env",
        *gone,
        *(f"{k}={v}" for k, v in more.items()),
        sys.executable,
        "-m",
        "pact.cli.main",
        "--socket",
        agent.socket,
        *args,
    ]
    process = agent.world.popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    if typed:
        os.write(ours, typed)
    out = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has gone
        while chunk := os.read(ours, 65536):
            out += chunk
    os.close(ours)
    ended = process.wait(20)
    agent.world.end(process)
    assert code is None or ended == code, (ended, out)
    assert b"Traceback" not in out, out
    return out.decode()


def plain(text: str) -> list[str]:
    return COLOUR.sub("", text).replace("\r\n", "\n").rstrip("\n").split("\n")


def colour_of(text: str, word: str) -> str:
    (line,) = [x for x in text.split("\r\n") if word in x]
    return ";".join(COLOUR.findall(line))


def test_a_quiet_node_is_one_green_line(agent: Agent) -> None:
    agent.file("quiet/f")
    out = screen(agent, "status")
    (line,) = plain(out)
    assert re.fullmatch(r"● n001  COMMITTED  1 declared    enforce, up \d+[smh]", line), line
    assert GREEN in colour_of(out, "COMMITTED") and RED not in colour_of(out, "COMMITTED")


@pytest.mark.parametrize("columns", [80, 40])
def test_much_drift_is_one_screen_with_folded_names(agent: Agent, columns: int) -> None:
    agent.world.sh(
        f"mkdir -p {TOP}/etc && cd {TOP}/etc && for n in $(seq 1 220); do echo a > plugin-$n.conf; done; "
        "for n in 日本語の設定ファイル とても長い名前のファイルです; do echo a > $n.conf; done"
    )
    agent.adopt(f"file:{TOP}/etc/**")
    agent.world.sh(f"cd {TOP}/etc && for f in *; do echo b > $f; done")
    wait_until(lambda: agent.status()["drifted"] == 222, "all has drifted")
    out = screen(agent, "status", columns=columns)
    lines = plain(out)
    assert len(lines) <= 23 and max(map(cell_len, lines)) <= columns, lines
    text = "\n".join(lines)
    assert "222 changed" in text and "222: " in text and "pact commit" in text
    assert columns == 40 or f"file:{TOP}/etc/plugin-[1-220].conf" in text
    assert re.search(r"\d+m left +until \d\d:\d\d:\d\d", text), "the clock and the absolute end"
    (change,) = [x for x in lines if re.match(r"c\d+ ", x)]
    assert ("█" in change) == (columns == 80)
    assert YELLOW in colour_of(out, "DRIFTED") and RED not in colour_of(out, change.split()[0] + "  ")
    whole = plain(screen(agent, "status", "-v", columns=columns))
    assert max(map(cell_len, whole)) <= columns


def zone_in_which_it_is(hours: float) -> str:
    """A POSIX time zone in which the clock stands so many hours after the last midnight."""
    behind_s = int(time.time() - hours * 3600) % 86_400
    return f"<far>{behind_s // 3600:d}:{behind_s // 60 % 60:02d}:{behind_s % 60:02d}"


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(("extended", "date"), [("15m", ""), ("4h", ""), ("2d", r"\d{4}-\d\d-\d\d ")])
def test_an_end_after_midnight_is_told_whole(agent: Agent, columns: int, extended: str, date: str) -> None:
    path = agent.file("late/f")
    change = agent.drift(path)["id"]
    agent.pact("extend", change, extended)
    lines = plain(screen(agent, "status", columns=columns, env={"TZ": zone_in_which_it_is(23.95)}))
    assert max(map(cell_len, lines)) <= columns, lines
    text = "\n".join(lines)
    assert re.search(rf"left\s+until {date}(0[0-4]:\d\d|23:5\d):\d\d", text), lines
    assert columns == 40 or date or len([x for x in lines if "left" in x and "until" in x]) == 1


def test_a_blocked_change_says_who_is_in_the_way_and_what_can_be_done(agent: Agent) -> None:
    path = agent.file("busy")
    holder = agent.world.python("f = open(sys.argv[1])\nready()", path)
    change = agent.drift(path)["id"]
    agent.pact("rollback", "--all", check=10)
    out = screen(agent, "status")
    text = "\n".join(plain(out))
    assert f"{change}  blocked" in text and f"{holder.pid} root: " in text and f"pact rollback {change}" in text
    assert RED in colour_of(out, f"{change}  blocked")
    agent.world.end(holder)
    wait_until(lambda: "(gone)" in "\n".join(plain(screen(agent, "status"))), "who has ended is said to be gone")
    assert "(gone)" in agent.pact("status").out
    assert agent.json("status")["changes"][0]["consumers"][0]["gone"] is True


def test_emergency_holds_and_trials_are_shown_with_their_ends(agent: Agent) -> None:
    path = agent.file("f")
    agent.drift(path)
    agent.pact("commit", "-m", "x", "--ttl", "4h")
    agent.pact("hold", "place", "--reason", "vendor on site", "--for", "2h")
    agent.pact("emergency", "start", "--reason", "storage is down")
    out = screen(agent, "status")
    text = "\n".join(plain(out))
    assert re.search(rf"trial file:{path}  until \S*\s?\d\d:\d\d:\d\d, by root", text)
    assert re.search(r"hold h\d+ on the node by root until .*: vendor on site", text)
    assert "EMERGENCY by root, until" in text and "pact emergency end" in text
    assert MAGENTA in colour_of(out, "EMERGENCY by") and MAGENTA in colour_of(out, "hold h")
    off = agent.pact("status").out
    stamp = r"until \d{4}-\d\d-\d\dT\d\d:\d\dZ"
    for line in (
        rf"trial: file:{path} {stamp} \(root\)",
        rf"hold h\d+: node: vendor on site \(root\) {stamp}",
        rf"emergency: storage is down \(root\) {stamp}",
    ):
        assert re.search(line, off), off


def test_off_a_terminal_a_change_has_its_absolute_end(agent: Agent) -> None:
    path = agent.file("f")
    agent.drift(path)
    out = agent.pact("status").out
    assert re.search(rf"c\d+ open \S+ until \d{{4}}-\d\d-\d\dT\d\d:\d\dZ: file:{path}\n", out), out


def test_a_viewer_is_told_what_he_can_do(agent: Agent) -> None:
    path = agent.file("f")
    agent.drift(path)
    assert agent.json("status", uid=1236)["you"] == {"user": "1236", "uid": 1236, "role": "viewer"}


# -- commit without -m ----------------------------------------------------------------------------------------------


def editor(base: Path, script: str) -> dict[str, str]:
    path = base / f"editor-{time.monotonic_ns()}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"EDITOR": str(path)}


def test_commit_without_a_message_opens_the_editor_with_the_diff_as_comments(agent: Agent, base: Path) -> None:
    path = agent.file("f", "one\n")
    agent.drift(path, "two\n")
    env = editor(
        base, f'cp "$1" {base}/shown; {{ echo "because of  "; echo; echo "the load"; cat {base}/shown; }} > "$1"'
    )
    screen(agent, "commit", env=env)
    shown = (base / "shown").read_text()
    assert "# file:" + path in shown and "#   -one" in shown and "#   +two" in shown
    assert agent.newest("committed")["data"]["message"] == "because of the load"


def test_an_empty_message_or_an_editor_that_fails_commits_nothing(agent: Agent, base: Path) -> None:
    path = agent.file("f", "one\n")
    change = agent.drift(path, "two\n")["id"]
    assert "nothing was committed" in screen(agent, "commit", env=editor(base, "true"), code=1)
    assert "nothing was committed" in screen(agent, "commit", env=editor(base, "exit 3"), code=1)
    assert "-m TEXT" in agent.pact("commit", check=2).err
    assert agent.change_of(f"file:{path}")["id"] == change


# -- pager ----------------------------------------------------------------------------------------------------------


def test_long_output_goes_through_the_pager_on_a_terminal_only(agent: Agent, base: Path) -> None:
    path = agent.file("f", "".join(f"{n}\n" for n in range(100)))
    agent.drift(path, "all\n")
    pager = editor(base, f"cat > {base}/paged; echo PAGED")["EDITOR"]
    assert "PAGED" in screen(agent, "diff", env={"PAGER": pager})
    assert "-99" in (base / "paged").read_text()
    assert "PAGED" not in screen(agent, "check", env={"PAGER": pager}, code=11)
    assert "PAGED" not in screen(agent, "status", env={"PAGER": pager})
    assert "PAGED" not in agent.pact("diff").out
    document = screen(agent, "--json", "diff", env={"PAGER": pager})
    assert "PAGED" not in document and document.count("\n") == 1


def test_a_watch_on_a_terminal_is_not_paged_and_ends_with_an_interrupt(agent: Agent) -> None:
    ours, theirs = pty.openpty()
    watching = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "watch"], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    for n in range(60):  # until it has begun to watch
        agent.drift(agent.file(f"f{n}"))
        if select.select([ours], [], [], 1.0)[0]:
            break
    seen = os.read(ours, 4096)  # it may have begun between the two
    assert b"adopted" in seen or b"drift_detected" in seen
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0
    os.close(ours)
