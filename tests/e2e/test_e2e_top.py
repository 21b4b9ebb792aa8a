"""``pact top`` on a node: a real terminal, a real agent, and what a person sees and does there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, World, environment, wait_until
from screens import Painted, modes
from terminals import ADMINS, ANN, BOB, EVE, OPS, Terminal, as_, at_terminal, people

pytestmark = pytest.mark.root
LEFT = re.compile(r"c\d+ +(\d+)m (\d+)s")
COLOUR = re.compile(rb"\x1b\[[\d;]*\b(3[0-7]|4[0-7]|9[0-7]|38;|48;)[\d;]*m")


@pytest.fixture(scope="module", name="config")
def _config() -> dict[str, Any]:
    return {"shell": {"root": [], "detached": "3s", "idle": "10m", "sessions": 4}, "window": {"base": "15m"}}


@pytest.fixture(scope="module")
def running(make_agent: Callable[..., Agent], config: dict[str, Any], world: World, base: Path) -> Agent:
    place = base / "etc"
    place.mkdir()
    people(world, place)
    agent = make_agent(**config)
    (agent.base / "run").mkdir()
    agent.socket = str(agent.base / "run" / "s")
    agent.configure({"control": {"socket": agent.socket}})
    agent.start()
    return agent


@pytest.fixture
def at(agent: Agent) -> Iterator[Callable[..., Painted]]:
    made: list[Terminal] = []

    def start(*words: str, rows: int = 24, columns: int = 80, **who: Any) -> Painted:
        made.append(at_terminal(agent, *words, rows=rows, columns=columns, **who))
        return Painted(made[-1], rows or 24, columns or 80)

    yield start
    for terminal in made:
        terminal.close()
    for session in agent.ask("sessions")["result"]["sessions"]:
        agent.ask("session_end", session=session["id"])


def ended(screen: Painted) -> int:
    code = screen.terminal.end()
    assert screen.terminal.raw.endswith(b"\x1b[?25h"), screen.terminal.raw[-200:]
    assert screen.terminal.raw.count(b"\x1b[?1049h") == screen.terminal.raw.count(b"\x1b[?1049l")
    return code


@pytest.mark.invariant("Y1")
def test_it_shows_what_is_open_and_counts_down_and_gives_the_terminal_back(
    agent: Agent, at: Callable[..., Painted]
) -> None:
    path = agent.file("app.conf", mode=0o666)
    top = at("top", uid=ANN)
    before = modes(top.terminal)
    top.shows("n001", "COMMITTED", "1 declared", "nothing is open", "adopted")
    agent.drift_by(BOB, path)
    text = top.shows("DRIFTED", "c1", "bob", f"file:{path}", "drift_detected", seconds=10)
    first = LEFT.search(text)
    assert first is not None, text
    wait_until(lambda: (found := LEFT.search(top.text)) and found[0] != first[0], "the clock runs", 5)
    assert len(text.splitlines()) == 24 and max(map(len, text.splitlines())) <= 80

    shell = at("shell", uid=ANN)
    shell.shows("ann>")
    top.shows("Sessions (1)", "a shell")
    shell.type("exit\r")
    top.shows("nobody is in a session")

    holder = agent.world.popen(["sh", "-c", f"exec sleep 600 < {path}"])
    top.type("r")
    top.shows("Roll back c1 of bob on n001", "it is bob's, not yours", "in its way", "sleep", "type c1 and Enter")
    top.type("y\r")
    top.shows("that was not c1: nothing was done")
    top.type("c1\r")
    top.shows("used by", "Enter: go on")
    top.type("\r")
    top.shows("blocked", "sleep")
    agent.world.end(holder)
    top.type("q")
    assert ended(top) == 0 and modes(top.terminal) == before


@pytest.mark.invariant("Y3")
def test_changes_are_settled_after_a_question_as_the_commands_do_it(agent: Agent, at: Callable[..., Painted]) -> None:
    paths = [agent.file(f"{name}.conf", mode=0o666) for name in ("mine", "more", "other")]
    for path in paths[:2]:
        agent.drift_by(ANN, path)
    theirs = agent.drift_by(BOB, paths[2])["id"]
    mine = agent.change_of(f"file:{paths[0]}")["id"]
    top = at("top", uid=ANN)
    top.shows(mine, theirs)

    top.type("\r")
    top.shows(f"Look at {mine} of ann on n001", "+1 -1", "2 changed", "Enter: go on")
    top.type("\r")
    top.type("c")
    top.shows(f"Commit {mine} of ann", "it is yours", "why?")
    top.type("\r")
    top.shows("a commit needs a reason")
    top.type("\x1b")
    top.shows("left as it is")
    assert agent.change_of(f"file:{paths[0]}") is not None

    top.type("e")
    top.shows("by how long? [15m]")
    top.type("never\r")
    top.shows("Extend", "never")
    top.type("20m\r")
    top.shows("has more time until")
    assert agent.newest("window_extended")["data"]["by_ns"] == 20 * 60 * 10**9
    top.type("\r")

    top.type("c")
    top.shows("why?")
    top.type("-m is no flag here\r")
    top.shows("committed", "Enter: go on")
    record = agent.newest("committed")
    assert record["data"]["message"] == "-m is no flag here" and record["actor"]["user"] == "ann"
    top.type("\r")
    top.shows("Changes (1)")

    # While the question stands, it changes: it is asked anew.
    top.type("e")
    top.shows(f"Extend {theirs} of bob", "it is bob's, not yours")
    agent.drift_by(BOB, paths[0], "again")
    top.rests("it has changed while you looked", "by how long?")
    top.type("5m\r")
    top.shows(f"type {theirs} and Enter to extend it")
    top.type("y\r")
    top.shows(f"that was not {theirs}")
    top.type(f"{theirs}\r")
    top.shows("has more time until")
    top.type("\r")
    top.type("r")
    top.shows("restore", paths[2])
    agent.ask("rollback", targets=[theirs], force=True)
    top.shows("is settled already", "nothing was done", seconds=10)
    top.type("\r")
    top.type("c")
    top.shows("nothing is chosen")
    top.type("\x03")
    assert ended(top) == 0


def test_who_may_not_is_told_so(agent: Agent, at: Callable[..., Painted]) -> None:
    path = agent.file("app.conf", mode=0o666)
    change = agent.drift_by(ANN, path)["id"]
    viewer = at("top", uid=EVE, groups=())
    viewer.shows(change)
    viewer.type("r")
    viewer.shows("a viewer may look, and not roll back")
    viewer.type("q")
    assert ended(viewer) == 0
    ops = at("top", uid=EVE, groups=(OPS,))
    ops.shows(change)
    ops.type("c")
    ops.shows("why?")
    ops.type("mine now\r")
    ops.shows(f"type {change} and Enter")
    ops.type(f"{change}\r")
    ops.shows("admin", "Enter: go on")
    assert agent.change_of(f"file:{path}") is not None
    ops.terminal.process.send_signal(signal.SIGTERM)
    assert ended(ops) == 143


@pytest.mark.invariant("Y2")
def test_names_cannot_move_the_cursor_or_the_columns(agent: Agent, at: Callable[..., Painted]) -> None:
    hostile = "a\x1b[2J\x1b]0;x\x07\x9b5A\u202egpj.\u2066\u4e2d\u6587" + "e\u0301\u0302\u0303\u0304" * 5 + "\U000f0000"
    path = agent.world.path(f"/srv/{hostile}")
    path.write_text("declared")
    agent.adopt("file:/srv/a*")
    path.write_text("drifted")
    (change,) = wait_until(lambda: agent.status()["changes"], "it has drifted")
    named = ["bash", "-c", 'exec -a "$2" sleep 600 < "$1"', "bash", f"/srv/{hostile}", hostile]
    holder = agent.world.popen(named)
    wait_until(lambda: b"2J" in Path(f"/proc/{holder.pid}/cmdline").read_bytes()[:20], "it has its name")
    assert agent.ask("rollback", targets=[change["id"]])["exit"] == 10
    agent.ask("hold_place", reason=hostile, for_ns=600 * 10**9)
    top = at("top", uid=ANN)
    text = top.shows("\\x1b[2J", "\u4e2d")
    raw = top.terminal.raw.decode()
    for bad in ("\x1b[2J", "\x1b]0;", "\x9b", "\u202e", "\u2066", "\x07", "\U000f0000", "\u0303"):
        assert bad not in raw, repr(bad)
    agent.world.end(holder)
    assert "nobody is in a session" in text and "q quit" in text.splitlines()[-1]
    top.resize(24, 30)
    top.shows("\\x1b")
    top.type("q")
    assert ended(top) == 0


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {}])
def test_it_needs_no_colours(agent: Agent, at: Callable[..., Painted], env: dict[str, str]) -> None:
    agent.drift(agent.file("app.conf"))
    top = at("top", *([] if env else ["--no-color"]), env=env)
    top.shows("DRIFTED")
    top.type("?")
    top.shows("Shift-Tab")
    top.type("?q")
    assert ended(top) == 0
    assert not COLOUR.search(top.terminal.raw)


def test_any_size_and_the_mouse(agent: Agent, at: Callable[..., Painted]) -> None:
    names = [agent.file(f"{n}.conf", mode=0o666) for n in range(3)]
    for uid, path in zip((ANN, BOB, EVE), names, strict=True):
        agent.drift_by(uid, path)
    first, second = (agent.change_of(f"file:{path}")["id"] for path in names[:2])
    top = at("top", uid=ANN, rows=0, columns=0)
    top.shows("DRIFTED", second)
    top.click(top.row_of(second))
    top.type("r")
    top.shows(f"Roll back {second} of bob")
    top.type("\x1b")
    top.shows("left as it is", first)
    row = top.row_of(first)
    top.click(row)
    top.click(row)
    top.shows(f"Look at {first} of ann", "Enter: go on")
    top.type("\r")
    for rows, columns in ((5, 20), (1, 1), (2, 2), (60, 200), (100, 10_000), (24, 80)):
        top.resize(rows, columns)
        wait_until(lambda: top.look()[0][:1] in ("n", "…"), f"{rows} {columns}", 10)
    top.shows("q quit", second)
    # What is pasted is text, and no command.
    top.type("\x1b[200~cer\rq\x1b[201~")
    top.type("\x0c")
    top.shows("q quit")
    assert "why?" not in top.text
    top.type("q")
    assert ended(top) == 0


def test_an_agent_goes_away_and_comes_back(agent: Agent, at: Callable[..., Painted]) -> None:
    path = agent.file("app.conf")
    top = at("top", uid=0)
    top.shows("1 declared")
    agent.stop()
    top.shows("NOT LIVE for", "no agent answers")
    agent.start()
    top.hides("NOT LIVE")
    agent.drift(path)
    top.shows("DRIFTED", path)
    top.type("q")
    assert ended(top) == 0
    agent.stop()
    nobody = at("top", uid=0)
    assert nobody.terminal.end() == 5 and "no agent answers" in nobody.terminal.text
    assert "\x1b[?1049h" not in nobody.terminal.text
    agent.start()


def test_the_shell_gets_the_terminal_when_it_is_suspended(agent: Agent, at: Callable[..., Painted]) -> None:
    agent.drift(agent.file("app.conf"))
    script = 'set -m; "$@"; while stty -a; read -r go; do fg; done; echo "ended $?"'
    top = at("top", uid=0, before=("bash", "--norc", "-c", script, "bash"))
    top.shows("DRIFTED")
    shell = top.terminal.process.pid
    (pid,) = map(int, Path(f"/proc/{shell}/task/{shell}/children").read_text().split())
    top.type("\x1a")
    text = top.shows("-brkint", "Stopped", " icanon", " echo ")  # to its last line
    assert " echo " in text and " icanon" in text and "-icanon" not in text, text
    top.type("\r")
    top.shows("DRIFTED", "q quit")
    os.kill(pid, signal.SIGSTOP)  # unprepared: the picture stays, and the shell has the terminal
    top.shows("-brkint")
    top.type("\r")
    top.hides("-brkint")
    top.shows("DRIFTED", "q quit")
    top.type("?")
    top.shows("Shift-Tab")
    top.type("?q")
    top.shows("-brkint")
    top.type("\x04")
    assert top.terminal.end() == 0 and "ended 0" in top.terminal.text
    assert top.terminal.raw.count(b"\x1b[?1049h") == top.terminal.raw.count(b"\x1b[?1049l")


UNHEARD = ("bash", "-c", 'trap "" HUP; exec "$@"', "bash")


@pytest.mark.invariant("Y1")
@pytest.mark.parametrize(
    ("before", "term"), [((), "xterm-256color"), (UNHEARD, "xterm-256color"), (UNHEARD, "dumb")], ids=str
)
def test_nothing_is_left_running_when_the_terminal_goes(
    agent: Agent, at: Callable[..., Painted], before: tuple[str, ...], term: str
) -> None:
    agent.file("app.conf")
    top = at("top", uid=ANN, before=before, env={"TERM": term})
    top.shows("1 declared")
    top.terminal.hang_up()
    assert top.terminal.process.returncode not in (None, 0)


@pytest.mark.invariant("Y3")
@pytest.mark.parametrize("leaving", ["\x1bq", "\x03"])
def test_who_leaves_before_the_answer_is_told_so(agent: Agent, at: Callable[..., Painted], leaving: str) -> None:
    path = agent.file("app.conf", mode=0o666)
    id_ = agent.drift_by(ANN, path)["id"]
    top = at("top", uid=ANN)
    top.shows(id_)
    top.type("c")
    top.shows("why?")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        top.type("for good\r")
        top.shows("it is being done")
        for key in leaving:
            top.type(key)
            time.sleep(0.5)
        assert top.terminal.end() == 0
        left = top.terminal.text.rpartition("\x1b[?1049l")[2]
        assert f"Commit {id_} of ann on n001: it was asked, and not answered yet; pact log" in left
    finally:
        agent.process.send_signal(signal.SIGCONT)


@pytest.mark.invariant("Y1")
def test_it_ends_though_its_terminal_takes_nothing(agent: Agent, at: Callable[..., Painted]) -> None:
    agent.drift(agent.file("app.conf"))
    top = at("top", uid=ANN)
    before = modes(top.terminal)
    top.shows("DRIFTED")
    top.type("\x13")
    time.sleep(2)  # a clock ticks, so it paints
    top.terminal.process.send_signal(signal.SIGTERM)
    assert top.terminal.process.wait(20) == 143
    assert modes(top.terminal) == before


@pytest.mark.invariant("Y4")
def test_lines_instead_of_a_picture(agent: Agent, at: Callable[..., Painted]) -> None:
    path = agent.file("app.conf", mode=0o666)
    dumb = at("top", uid=ANN, env={"TERM": "dumb"}, columns=200)
    dumb.shows("n001  COMMITTED   1 declared")
    command = [*as_(ANN, ADMINS), sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "top"]
    piped = subprocess.Popen(
        agent.world.argv(command),
        env={**environment(), **agent.world.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert piped.stdout is not None
    lines = iter(piped.stdout.readline, b"")
    try:
        said = [next(lines)]
        assert said == [b"n001  COMMITTED   1 declared\n"]
        change = agent.drift_by(BOB, path)["id"]
        dumb.shows(f"{change} of bob is open, until ", "drift_detected")
        said += until(lines, f"{change} of bob is open, until ")
        agent.ask("rollback", targets=[change], force=True)
        dumb.shows(f"over: {change} of bob")
        said += until(lines, f"over: {change} of bob")
        dumb.type("\x03")
        assert dumb.terminal.end() == 0
        piped.send_signal(signal.SIGINT)
        out, err = piped.communicate(timeout=20)
    finally:
        piped.kill()
        piped.wait()
    assert piped.returncode == 0 and err == b""
    for told in (dumb.terminal.raw, b"".join(said) + out):
        assert b"\x1b" not in told and f"over: {change} of bob".encode() in told
        assert len(re.findall(rf"^{change} of bob is open".encode(), told, re.MULTILINE)) == 1, "no clock ticks"
    done = agent.pact("--json", "top", check=2)
    assert "for people" in done.err


def test_it_costs_nothing_while_nothing_happens(agent: Agent, at: Callable[..., Painted]) -> None:
    agent.file("app.conf")
    top = at("top", uid=ANN)
    top.shows("1 declared", "q quit")
    time.sleep(2.2)
    top.look()
    before, ticks = len(top.terminal.raw), cpu(top.terminal.process.pid)
    time.sleep(2)
    top.look()
    assert len(top.terminal.raw) == before, "nothing is painted"
    assert cpu(top.terminal.process.pid) - ticks <= 0.1 * os.sysconf("SC_CLK_TCK")
    top.type("q")
    assert ended(top) == 0


def until(lines: Iterator[bytes], text: str) -> list[bytes]:
    said = []
    for line in lines:
        said.append(line)
        if text.encode() in line:
            return said
    raise AssertionError((text, said))


def cpu(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
