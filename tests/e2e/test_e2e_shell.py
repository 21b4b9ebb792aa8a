"""``pact shell`` on the node: a real terminal, as oneself, whatever happens to the client and the agent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, World, wait_until
from terminals import ADMINS, ANN, BOB, EVE, EXTRA, LOCKED, OLD, SHELLLESS, Terminal, at_terminal, people

pytestmark = pytest.mark.root
PROMPT = "ann> "


@pytest.fixture(scope="module", name="config")
def _config() -> dict[str, Any]:
    shell = {"root": ["ann"], "detached": "3s", "idle": "10m", "sessions": 12}
    return {"shell": shell, "notify": {"terminals": True}}


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
def at(agent: Agent) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*words: str, **who: Any) -> Terminal:
        made.append(at_terminal(agent, *words, **who))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()
    for session in sessions(agent):
        agent.ask("session_end", session=session["id"])
    wait_until(lambda: not sessions(agent), "all sessions have ended", 30)


def sessions(agent: Agent) -> list[Any]:
    return list(agent.ask("sessions")["result"]["sessions"])


def closed_of(agent: Agent, session: str) -> Any:
    """The record of this session's end."""

    def found() -> Any:
        return next((r for r in agent.records("session_closed") if r["data"]["session"] == session), None)

    return wait_until(found, f"the end of {session} is recorded")


def shell(at: Callable[..., Terminal], *words: str, **who: Any) -> Terminal:
    terminal = at("shell", *words, **who)
    terminal.until(PROMPT)
    return terminal


def run(terminal: Terminal, command: str, prompt: str = PROMPT) -> str:
    """The output of a command."""
    terminal.type(f"{command}; echo '='$?=\r")
    terminal.until(r"echo '='\$\?=.*?\n")
    out = terminal.until(r"=\d+=").rpartition("=")[0].rpartition("=")[0].replace("\r\n", "\n")
    terminal.until(prompt)
    return out


@pytest.mark.invariant("X4")
def test_a_shell_is_the_person_s_own_with_a_terminal_of_its_own(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    assert run(ann, "id -un; id -Gn").split() == ["ann", "ann", "pact-admin", "extra"]
    assert run(ann, "tty").startswith("/dev/pts/")
    assert run(ann, "shopt -q login_shell && echo yes").strip() == "yes"
    assert run(ann, "pwd").strip() == "/srv/home/ann"
    assert run(ann, "cat /proc/self/loginuid").strip() == str(ANN)
    assert run(ann, "echo $TERM $LANG $USER $PACT_SESSION").split()[:3] == ["xterm-256color", "C.UTF-8", "ann"]
    assert "PYTHONPATH" not in run(ann, "env")
    assert run(ann, "ls -l $(tty)").split()[2] == "ann"
    assert run(ann, "ps -o pid=,tpgid= -p $$").split()[0] != "0"
    opened = agent.newest("session_opened")
    ann.type("exit 7\r")
    assert ann.end() == 7
    closed = closed_of(agent, opened["data"]["session"])["data"]
    assert opened["actor"]["user"] == "ann" and opened["data"]["account"] == "ann"
    assert opened["data"]["terminal"].startswith("pts/") and opened["data"]["owner"]["key"].startswith(f"login:{ANN}:")
    assert closed["exit"] == 7 and closed["owner"] == opened["data"]["owner"] and closed["out_bytes"] > 100


@pytest.mark.invariant("X6")
def test_what_a_session_changes_is_the_person_s_with_the_session_as_its_owner(
    agent: Agent, at: Callable[..., Terminal]
) -> None:
    path = agent.file("mine.conf", mode=0o666)
    ann = shell(at)
    run(ann, f"echo changed > {path}")
    change = wait_until(lambda: agent.change_of(f"file:{path}"), "it is seen")
    opened = agent.newest("session_opened")["data"]
    assert change["owner"]["uid"] == ANN and change["owner"]["session"] == opened["owner"]["session"]
    name = run(ann, "cat $PACT_PROMPT").split()
    assert name[0] == "drifted" and name[2] == change["id"] and int(name[3]) > time.time()
    public = (agent.base / "run" / "state").read_text().split()
    assert public[0] == "drifted" and public[2] == "1" and public[3] == name[3]
    ann.type("exit\r")
    assert "mine.conf" in ann.until("roll back / leave")
    ann.type("\r")
    assert ann.end() == 0
    assert "left to its window" in ann.text


@pytest.mark.parametrize("how", ["c", "e", "r"])
def test_on_the_way_out_it_is_asked_what_becomes_of_it(agent: Agent, at: Callable[..., Terminal], how: str) -> None:
    path = agent.file("out.conf", mode=0o666)
    ann = shell(at)
    run(ann, f"echo changed >> {path}")
    ann.type("exit\r")
    shown = ann.until("leave\\? \\[leave\\]")
    assert "you changed on n001" in shown and "+1 -0" in shown and "left, until" in shown
    ann.type("what\r")
    ann.until("first letter")
    ann.type(how + "\r")
    if how == "c":
        ann.until("why\\? ")
        ann.type("it is better\r")
        assert ann.end() == 0
        assert agent.newest("committed")["data"]["message"] == "it is better"
    elif how == "e":
        ann.until("by how long")
        ann.type("20m\r")
        assert ann.end() == 0
        assert agent.newest("window_extended")["data"]["by_ns"] == 20 * 60 * 10**9
    else:
        assert ann.end() == 0
        assert agent.newest("rolled_back")["data"]["cause"] != "expired"
        assert agent.world.path(path).read_text() == "declared\n"


def test_signals_jobs_size_and_characters(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at, rows=31, columns=97)
    assert run(ann, "stty size").strip() == "31 97"
    ann.resize(50, 132)
    wait_until(lambda: run(ann, "stty size").strip() == "50 132", "the size follows")
    ann.type("sleep 100\r")
    time.sleep(0.5)
    ann.type("\x03")
    ann.until("\\^C")
    ann.until(PROMPT)
    assert run(ann, "echo $?").strip().startswith("130")
    ann.type("sleep 100\r")
    time.sleep(0.5)
    ann.type("\x1a")
    ann.until("Stopped")
    ann.until(PROMPT)
    assert "sleep 100" in run(ann, "jobs")
    assert run(ann, "kill %1; wait; echo grüße 漢字 €").strip().endswith("grüße 漢字 €")


def test_full_screen_programs(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    ann.type("vim -u NONE -N /srv/home/ann/new.txt\r")
    ann.until("new.txt")
    ann.type("ihello from vim\x1b:wq\r")
    ann.until(PROMPT)
    assert run(ann, "cat /srv/home/ann/new.txt").strip() == "hello from vim"
    ann.type("seq 1 500 | less\r")
    ann.until("\n22\r|\r\n22")
    ann.type("G")
    ann.until("500")
    ann.type("q")
    ann.until(PROMPT)
    ann.type("top\r")
    ann.until("load average")
    ann.type("q")
    ann.until(PROMPT)


def test_a_megabyte_is_pasted_without_loss(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    lines = "".join(f"{n:07d} {'x' * 55}\n" for n in range(1 << 14))
    ann.type("stty -echo; cat > /srv/home/ann/pasted; stty echo\r")
    time.sleep(0.5)
    ann.type(lines.replace("\n", "\r"))
    ann.type("\x04")
    ann.until(PROMPT, 60)
    found = run(ann, "sha256sum < /srv/home/ann/pasted").split()[0]
    assert found == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("command", "code", "out"),
    [
        (["echo", "a  b", "$HOME"], 0, "a  b $HOME\n"),
        (["echo $HOME | tr a-z A-Z; exit 3"], 3, "/SRV/HOME/ANN\n"),
        (["kill -9 $$"], 137, ""),
        (["test -t 0 || test -t 1 || echo none"], 0, "none\n"),
    ],
)
def test_a_command_without_a_terminal(agent: Agent, command: list[str], code: int, out: str) -> None:
    done = agent.pact("shell", "--", *command, uid=ANN, groups=[ADMINS], check=None)
    assert (done.code, done.out, done.err) == (code, out, "")


def test_a_command_without_a_terminal_is_safe_for_any_bytes(agent: Agent) -> None:
    data = os.urandom(3 << 20)
    done = agent.pact("shell", "--", "tee /dev/stderr | sha256sum", uid=ANN, groups=[ADMINS], check=0, input=data)
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()
    assert done.err.encode("utf-8", "surrogateescape") == data


def test_a_command_with_a_terminal(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = at("shell", "--", "tty; stty size; exit 5")
    assert ann.end() == 5
    assert "/dev/pts/" in ann.text and "24 80" in ann.text


@pytest.mark.invariant("X7", "F88")
def test_it_outlives_the_client_and_the_agent(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    run(ann, "x=remembered")
    name = sessions(agent)[0]["id"]
    ann.type("\r~.")
    assert ann.end() == 0
    assert f"session {name} goes on" in ann.text
    again = at("shell", "--attach", name)
    again.until(PROMPT)
    again.quiet()
    assert run(again, "echo $x").strip() == "remembered"
    agent.stop(signal.SIGKILL)
    assert run(again, "echo still $x").strip() == "still remembered"
    agent.start()
    assert [s["id"] for s in sessions(agent)] == [name]
    third = at("shell", "--attach")
    third.until(PROMPT)
    third.quiet()
    assert again.end() == 255
    assert "taken over by ann" in again.text
    assert run(third, "echo $x").strip() == "remembered"
    third.type("exit\r")
    assert third.end() == 0
    closed_of(agent, name)


@pytest.mark.invariant("X7", "F88")
def test_who_is_cut_off_for_long_loses_the_session(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    ann.type("bash -c \"trap 'echo hup > ~/hup; exit' HUP; echo trapped; while :; do sleep 0.1; done\"\r")
    ann.until("trapped\r\n")
    name, before = sessions(agent)[0]["id"], time.monotonic()
    ann.hang_up()
    wait_until(lambda: not sessions(agent), "it was hung up", 20)
    assert time.monotonic() - before > 2
    assert agent.world.path("/srv/home/ann/hup").read_text() == "hup\n"
    assert closed_of(agent, name)["data"]["why"] == "nobody was attached any more"


@pytest.mark.invariant("X4", "F85")
def test_a_killed_session_is_noticed_and_nothing_is_left_running(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    pid = run(ann, "trap '' HUP; echo $$").strip()
    name = sessions(agent)[0]["id"]
    state = json.loads((agent.base / "run" / "sessions" / f"{name}.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    closed = closed_of(agent, name)["data"]
    assert closed["why"] == "its process was killed" and closed["exit"] is None
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "its shell is gone")
    assert ann.end() == 255
    assert not (agent.base / "run" / "sessions" / f"{name}.json").exists()


@pytest.mark.invariant("X4")
def test_the_agent_that_comes_back_records_what_ended_meanwhile(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    name = sessions(agent)[0]["id"]
    agent.stop(signal.SIGKILL)
    ann.type("exit 9\r")
    ann.end()
    agent.start()
    closed = closed_of(agent, name)["data"]
    assert closed["exit"] == 9


# -- who may not


@pytest.mark.parametrize(
    ("uid", "groups", "why"),
    [
        (EVE, (), "needs the role admin"),
        (OLD, (ADMINS,), "expired"),
        (LOCKED, (ADMINS,), "locked"),
        (SHELLLESS, (ADMINS,), "no such file"),
        (4999, (ADMINS,), "4999"),
    ],
)
@pytest.mark.invariant("F86")
def test_who_may_not_is_refused_and_recorded(
    agent: Agent, at: Callable[..., Terminal], uid: int, groups: tuple[int, ...], why: str
) -> None:
    before = len(agent.records("denied"))
    terminal = at("shell", uid=uid, groups=groups)
    assert terminal.end() == 3, terminal.text
    assert why in terminal.text
    assert len(agent.records("denied")) == before + 1
    assert agent.newest("denied")["data"]["request"] == "shell_open"
    assert not sessions(agent)


@pytest.mark.invariant("X6")
def test_root_is_for_named_people(agent: Agent, at: Callable[..., Terminal]) -> None:
    bob = at("shell", "--account", "root", uid=BOB)
    assert bob.end() == 3 and "may not open a session of root" in bob.text
    other = at("shell", "--account", "eve", uid=BOB)
    assert other.end() == 3
    ann = at("shell", "--account", "root")
    ann.until("root> ")
    path = agent.file("by-root.conf")
    assert run(ann, "id -un", "root> ").strip() == "root"
    assert run(ann, "cat /proc/self/loginuid", "root> ").strip() == str(ANN)
    run(ann, f"echo x > {path}", "root> ")
    change = wait_until(lambda: agent.change_of(f"file:{path}"), "it is seen")
    assert change["owner"]["user"] == "ann"
    opened = agent.newest("session_opened")["data"]
    assert opened["account"] == "root" and opened["owner"]["user"] == "ann"


@pytest.mark.invariant("X5")
def test_nobody_else_comes_in(agent: Agent, at: Callable[..., Terminal]) -> None:
    shell(at)
    name = sessions(agent)[0]["id"]
    for uid, groups in ((BOB, (ADMINS,)), (EVE, ())):
        terminal = at("shell", "--attach", name, uid=uid, groups=groups)
        assert terminal.end() in (2, 3), terminal.text
        assert "opened it" in terminal.text or "terminal" in terminal.text
    answer = agent.ask("shell_attach", session=name)
    assert answer["exit"] == 3  # not even root: it would be another person
    assert agent.pact("sessions", uid=EVE).out == ""
    assert name in agent.pact("sessions", uid=BOB, groups=[ADMINS]).out
    directory = agent.base / "run" / "sessions"
    assert directory.stat().st_mode & 0o777 == 0o700
    prompt = agent.base / "run" / "prompt" / name
    assert prompt.stat().st_uid == ANN and prompt.stat().st_mode & 0o777 == 0o400


def test_an_admin_ends_a_session(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    name = sessions(agent)[0]["id"]
    assert EXTRA
    assert "hung up" in agent.pact("sessions", "--end", name, uid=BOB, groups=[ADMINS]).out
    ann.end()
    assert "ended by bob" in ann.text


def test_only_so_many_at_once(agent: Agent, at: Callable[..., Terminal]) -> None:
    agent.configure({"shell": {"sessions": 1}})
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "[shell] sessions" in agent.log(), "it was read again")
    shell(at)
    second = at("shell")
    assert second.end() == 4 and "1 sessions are open" in second.text
    agent.configure({"shell": {"sessions": 12}})
    agent.process.send_signal(signal.SIGHUP)


@pytest.mark.invariant("X7")
def test_nobody_takes_all_places(agent: Agent, at: Callable[..., Terminal]) -> None:
    agent.configure({"shell": {"sessions": 4}})
    assert agent.process is not None
    read = agent.log().count("[shell] sessions")
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: agent.log().count("[shell] sessions") > read, "it was read again")
    mine = [shell(at) for _ in range(3)]
    fourth = at("shell")
    assert fourth.end() == 4 and "3 sessions of ann are open" in fourth.text and "pact sessions --end" in fourth.text
    other = at("shell", uid=BOB, groups=[ADMINS])
    other.until("bob> ")
    again = at("shell", uid=BOB, groups=[ADMINS])
    assert again.end() == 4 and "4 sessions are open" in again.text
    for terminal in (*mine, other):
        terminal.type("exit\r")
        terminal.end()
    agent.configure({"shell": {"sessions": 12}})
    agent.process.send_signal(signal.SIGHUP)


@pytest.mark.invariant("X8")
def test_the_transcript_is_for_admins_and_has_no_input(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    run(ann, "echo visible-output")
    ann.type("read -s secret; echo got\r")
    time.sleep(0.3)
    ann.type("hunter2\r")
    ann.until("got\r\n")
    name = sessions(agent)[0]["id"]
    ann.type("exit\r")
    ann.end()
    seq, path = str(closed_of(agent, name)["seq"]), agent.base / "x.cast"
    assert agent.pact("show", seq, "--restore", str(path), uid=EVE, check=3)
    agent.pact("show", seq, "--restore", str(path))
    head, *events = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["version"] == 2 and (head["width"], head["height"]) == (80, 24)
    text = "".join(data for _, code, data in events if code == "o")
    assert "visible-output" in text and "hunter2" not in path.read_text()
    path.unlink()


@pytest.mark.needs("asciinema", "script")
def test_the_usual_player_plays_the_transcript(agent: Agent, at: Callable[..., Terminal]) -> None:
    ann = shell(at)
    run(ann, "printf '\\033[31mred\\033[0m grüße\\n'")
    ann.resize(30, 100)
    name = sessions(agent)[0]["id"]
    ann.type("exit\r")
    ann.end()
    closed, path = closed_of(agent, name), agent.base / "play.cast"
    agent.pact("show", str(closed["seq"]), "--restore", str(path))
    played = subprocess.run(  # it wants a terminal
        ["script", "-qec", f"asciinema play -s 100 {path}", "/dev/null"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
    )
    path.unlink()
    assert "\x1b[31mred\x1b[0m grüße".encode() in played.stdout


def test_lines_to_the_person_s_terminals_come_into_the_session_once(agent: Agent, at: Callable[..., Terminal]) -> None:
    path = agent.file("told.conf", mode=0o666)
    ann = shell(at)
    run(ann, f"echo changed > {path}")
    change = wait_until(lambda: agent.change_of(f"file:{path}"), "it is seen")
    agent.pact("hold", "place", change["id"], "--reason", "wait for the vendor", "--for", "1h")
    ann.until("root holds c\\d+ on n001, until .*: wait for the vendor", 15)
    ann.quiet()
    assert ann.text.count("wait for the vendor") == 1
    held = run(ann, "cat $PACT_PROMPT").split()
    assert held[2] == change["id"] and held[3] == "0", "no clock runs"
    agent.pact("hold", "release")
    time.sleep(10)  # one line in ten seconds
    agent.pact("extend", change["id"], "30m")
    ann.until("root gave c\\d+ on n001 more time", 15)
    assert int(run(ann, "cat $PACT_PROMPT").split()[3]) > time.time() + 1800


def test_an_account_that_goes_in_mid_session_keeps_its_session_and_gets_no_other(
    agent: Agent, at: Callable[..., Terminal]
) -> None:
    ann = shell(at)
    passwd = agent.base.parent / "etc" / "passwd"
    before = passwd.read_text()
    passwd.write_text("".join(line for line in before.splitlines(True) if not line.startswith("ann:")))
    try:
        assert "4101" in run(ann, "id -u")
        other = at("shell")
        assert other.end() == 3 and "no account" in other.text
    finally:
        passwd.write_text(before)
    ann.type("exit\r")
    assert ann.end() == 0


def test_a_keeper_that_is_killed_ends_no_session_and_another_is_started(
    agent: Agent, at: Callable[..., Terminal]
) -> None:
    ann = shell(at)
    name = sessions(agent)[0]["id"]
    state = json.loads((agent.base / "run" / "sessions" / f"{name}.json").read_text())
    keeper = int(Path(f"/proc/{state['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"keeper" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    os.kill(keeper, signal.SIGKILL)
    assert run(ann, "echo still here").strip() == "still here"
    second = shell(at)
    assert run(second, "echo me too").strip() == "me too"


def test_without_a_journal_nobody_gets_a_session_and_an_end_is_recorded_later(
    world: World, on_small_disk: Callable[[str], Agent]
) -> None:
    small = on_small_disk("1h")
    small.configure({"shell": {"root": ["root"], "transcript": False}})
    small.restart()
    command = world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", small.socket, "shell", "--", "read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: small.ask("sessions")["result"]["sessions"], "it is open")
    world.sh("head -c 8m /dev/zero > /srv/small-disk/filler", check=False)
    declared = small.ask("adopt", patterns=["sysctl:net.ipv4.ip_forward"])
    assert declared["exit"] == 5, declared
    refused = small.pact("shell", "--", "true", check=5)
    assert "journal" in refused.err
    assert command.stdin is not None
    command.stdin.write(b"\n")
    command.stdin.flush()
    assert command.wait(20) == 0
    time.sleep(1)
    world.sh("rm /srv/small-disk/filler")
    closed = wait_until(lambda: small.newest("session_closed"), "it is recorded at last", 20)
    assert closed["data"]["exit"] == 0
