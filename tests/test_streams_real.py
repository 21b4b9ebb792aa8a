"""Sessions on a node through a real root, real aggregators and real agents."""

from __future__ import annotations

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
from streams_kit import NODES, PROMPT, Fleet, OnTerminal, alive, fleet, in_bash, rss_kib, within

from pact.cluster.streams import Early
from pact.core.tree.lanes import CREDIT, TERMINAL_MIN, cost
from pact.core.tree.wire import Message
from pact.session import frames

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@pytest.fixture
def marker(tmp_path: Path) -> str:
    """A word that no other process has on its command line."""
    return f"{int(time.time() * 1000) % 10**9 + 10**9}"


@pytest.fixture
def at(kit: Fleet) -> Iterator[Callable[..., OnTerminal]]:
    made: list[OnTerminal] = []

    def start(*words: str, **more: Any) -> OnTerminal:
        made.append(OnTerminal(kit, *words, **more))
        return made[-1]

    yield start
    for one in made:
        one.close()


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_command_s_streams_and_exit_code_come_through_the_tree(kit: Fleet) -> None:
    said = kit.run_pact("shell", "n1", "--", "cat; echo wrong >&2; exit 7", stdin=b"hello\n")
    assert (said.returncode, said.stdout, said.stderr) == (7, "hello\n", "wrong\n")
    opened = kit.records("n1", "session_opened")[0]
    assert opened["actor"]["via"] == "cluster" and opened["data"]["key"] == "root"


def test_a_megabyte_passes_unchanged_both_ways(kit: Fleet) -> None:
    data = os.urandom(3 << 20)
    with kit.pact(
        "shell", "n1", "--", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        out, err = process.communicate(data, 60)
    assert (process.returncode, err) == (0, b"") and out == data


def test_a_terminal_has_its_size_signals_and_job_control(kit: Fleet, at: Callable[..., OnTerminal]) -> None:
    shell = in_bash(at, "n1")
    shell.type("stty size; echo $TERM; tty\r")
    said = shell.until(PROMPT)
    assert "24 80" in said and "xterm" in said and "/dev/pts/" in said
    shell.type("sleep 50\r")
    time.sleep(0.5)
    shell.type("\x03")
    shell.until(PROMPT)
    shell.type("exit 5\r")
    assert shell.end() == 5


def test_who_may_not_is_refused_and_that_is_recorded(kit: Fleet) -> None:
    said = kit.run_pact("shell", "n1", "--", "id", who="view")
    assert said.returncode == 3 and "needs the role admin" in said.stderr, said
    said = kit.run_pact("exec", "--nodes", "n1", "--", "id", who="view")
    assert said.returncode == 3 and "needs the role admin" in said.stderr, said
    denied = [r["data"]["request"] for r in kit.records("n1", "denied")]
    assert "shell_open" in denied and "exec" in denied


def test_an_unknown_node_and_a_node_that_is_away(kit: Fleet) -> None:
    said = kit.run_pact("shell", "n9", "--", "id")
    assert said.returncode == 5 and "not connected" in said.stderr
    said = kit.run_pact("exec", "--nodes", "n1,n9", "--", "echo here")
    assert said.returncode == 5 and "here" in said.stdout and "n9: not connected" in said.stderr


@pytest.mark.parametrize("words", [(), ("--attach", "s1")])
def test_what_is_for_one_node_reaches_no_other(kit: Fleet, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A name that is empty is not this machine's, and of several nodes none is asked."""
    command = () if words else ("--", f"touch {tmp_path}/ran")
    for name, why in (("", "is empty"), (" ", "is empty"), ("n[1-2]", "names 2"), ("n1,n3", "names 2")):
        said = kit.run_pact("shell", *words, name, *command)
        assert said.returncode == 2 and why in said.stderr, said
    assert not (tmp_path / "ran").exists()
    if command:
        assert kit.run_pact("shell", "n[1-1]", *command).returncode == 0 and (tmp_path / "ran").exists()


def test_a_client_that_dies_leaves_the_session_which_can_be_come_back_to(
    kit: Fleet, at: Callable[..., OnTerminal]
) -> None:
    shell = in_bash(at, "n2")
    shell.type("X=kept\r")
    shell.until(PROMPT)
    shell.process.kill()
    shell.process.wait()
    name = within(
        lambda: [
            s["id"]
            for s in json.loads(kit.run_pact("--json", "sessions", "--nodes", "n2").stdout)["nodes"]["n2"]["sessions"]
            if not s["attached"]
        ],
        "nobody is attached",
        20,
    )[-1]
    again = at("shell", "--attach", name, "n2", at="agg2")
    again.type("echo =$X=\r")
    again.until("=kept=")
    again.type("exit\r")
    assert again.end() == 0


@pytest.mark.invariant("F89")
def test_an_aggregator_that_dies_ends_the_stream_and_not_the_session(kit: Fleet, at: Callable[..., OnTerminal]) -> None:
    shell = in_bash(at, "n3")
    shell.type("X=kept\r")
    shell.until(PROMPT)
    kit.kill("agg1")
    try:
        shell.until("goes on: pact shell --attach", 20)
        assert shell.end() == 255
        for name in NODES:
            within(lambda name=name: _there(kit, name), f"{name} is under the other", 30)
        rows = json.loads(kit.run_pact("--json", "sessions", "--nodes", "n3", at="agg2").stdout)
        name = rows["nodes"]["n3"]["sessions"][-1]["id"]
        again = at("shell", "--attach", name, "n3", at="agg2")
        again.type("echo =$X=\r")
        again.until("=kept=")
        again.type("exit 3\r")
        assert again.end() == 3
    finally:
        port = int(kit.below.rpartition(":")[2])
        kit.start_aggregator("agg1", ("root1", kit.url), port=port)
        kit.knows("root")


def _there(kit: Fleet, name: str) -> bool:
    said = json.loads(kit.run_pact("--json", "nodes", at="agg2").stdout or "{}")
    return bool(said.get("nodes", {}).get(name, {}).get("connected"))


def test_an_agent_that_dies_ends_the_stream_and_not_the_session(kit: Fleet, at: Callable[..., OnTerminal]) -> None:
    shell = in_bash(at, "n2")
    shell.type("X=kept\r")
    shell.until(PROMPT)
    kit.kill("n2")
    try:
        shell.until("goes on: pact shell --attach", 25)
    finally:
        kit.node_up("n2")
    rows = json.loads(kit.run_pact("--json", "sessions", "--nodes", "n2").stdout)
    again = at("shell", "--attach", rows["nodes"]["n2"]["sessions"][-1]["id"], "n2")
    again.type("echo =$X=\r")
    again.until("=kept=")
    again.type("exit\r")
    assert again.end() == 0


def test_a_key_that_is_removed_ends_its_sessions(kit: Fleet, at: Callable[..., OnTerminal], marker: str) -> None:
    # A key whose name has no account gets no session: it is the key of root that is removed here.
    shell = in_bash(at, "n1")
    shell.type(f"sleep {marker} &\r")
    within(lambda: alive(marker), "it runs")
    kit.write_keys(without=["root"])
    try:
        assert shell.end(20) in (255, 128 + signal.SIGHUP), "cut off by the aggregator, or hung up by the node"
        said = shell.raw.decode()
        assert "key" in said, said
        within(lambda: not alive(marker), "what it ran has ended")
    finally:
        kit.write_keys()
        kit.knows("root")

    def told() -> bool:
        return any("key was removed" in r["data"].get("why", "") for r in kit.records("n1", "session_closed"))

    within(told, "it is recorded, when nobody can come back any more", 45)


def test_a_key_without_an_account_gets_no_session(kit: Fleet) -> None:
    kit.admit("nosuchperson", "admin")
    said = kit.run_pact("shell", "n1", "--", "id", who="nosuchperson")
    assert said.returncode == 3 and "no account nosuchperson" in said.stderr, said
    said = kit.run_pact("exec", "--nodes", "n[1-2]", "--", "id", who="nosuchperson")
    assert said.returncode == 3 and "n[1-2]" in said.stderr and "no account nosuchperson" in said.stderr, said


def test_a_reader_that_does_not_read_stops_its_command_and_nobody_else(kit: Fleet, marker: str) -> None:
    slow = kit.pact("shell", "n1", "--", "cat /dev/zero", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        time.sleep(2.0)
        pids = [kit.processes[n].pid for n in ("root1", "agg1", "n1")]
        before = [rss_kib(pid) for pid in pids]
        began = time.monotonic()
        assert kit.run_pact("shell", "n1", "--", "echo", "quick").stdout == "quick\n"
        assert time.monotonic() - began < 8
        time.sleep(2.0)
        grown = [rss_kib(pid) - kib for pid, kib in zip(pids, before, strict=True)]
        assert max(grown) < 8 << 10, grown
    finally:
        slow.kill()
        slow.wait()
        assert slow.stdout is not None
        slow.stdout.close()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_role_that_was_lowered_brings_nobody_back_into_a_session(kit: Fleet) -> None:
    """The session was opened on the node itself, with root's own rights there; the key's role is another matter."""
    here = ("--socket", f"{kit.base}/agent-n1/sock", "shell", "--", "sleep 60")
    with kit.pact(*here, stdin=subprocess.DEVNULL) as shell:
        found = within(lambda: [s for s in kit.sessions("n1") if s["command"] == "sleep 60"], "it is open")
        kit.roles["root"] = "ops"
        kit.write_keys()
        try:
            said = within(lambda: _refused(kit, "shell", "--attach", found[0]["id"], "n1"), "it is refused", 20)
            assert "needs the role admin" in said
        finally:
            kit.roles["root"] = "admin"
            kit.write_keys()
            within(lambda: kit.run_pact("shell", "n1", "--", "true").returncode == 0, "as before", 20)
            kit.end_sessions("n1", "sleep 60")
            shell.wait(20)


def _refused(kit: Fleet, *words: str) -> str:
    said = kit.run_pact(*words)
    return str(said.stderr) if said.returncode == 3 and "role" in said.stderr else ""


@pytest.mark.parametrize(("size", "shown"), [((0, 0), "24 80"), ((24, 10_000), "24 4096"), ((9999, 1), "4096 1")])
def test_a_terminal_of_an_absurd_size(
    kit: Fleet, at: Callable[..., OnTerminal], size: tuple[int, int], shown: str
) -> None:
    shell = at("shell", "n1", "--", "stty size; sleep 0.2", size=size)
    assert shown in shell.until("[0-9]+ [0-9]+\r")
    assert shell.end() == 0


def test_any_bytes_come_through_a_terminal_and_it_goes_on(kit: Fleet, at: Callable[..., OnTerminal]) -> None:
    shell = in_bash(at, "n1")
    shell.type("head -c 300000 /dev/urandom | tee /dev/tty | wc -c; echo =$((40+2))=\r")
    shell.until("300000\r\n=42=")
    shell.type("exit\r")
    assert shell.end() == 0


@pytest.mark.parametrize(
    "words",
    [
        ("shell", "n1\x1b]0;x\x07", "--", "id"),
        ("shell", "--attach", "\x1b[31m", "n1"),
        ("shell", "--account", "\x1b[31mroot", "n1", "--", "id"),
        ("exec", "--nodes", "\x1b[31m", "--", "id"),
    ],
)
def test_escape_sequences_in_names_stay_text(kit: Fleet, at: Callable[..., OnTerminal], words: tuple[str, ...]) -> None:
    shell = at(*words)
    assert shell.end() in (2, 3, 5), shell.raw
    assert b"\x1b" not in shell.raw and b"\x07" not in shell.raw, shell.raw


def test_an_account_whose_shell_lets_nobody_in(kit: Fleet) -> None:
    kit.admit("daemon", "admin")
    said = kit.run_pact("shell", "n1", "--", "id", who="daemon")
    assert said.returncode == 1 and "not available" in said.stdout + said.stderr, said
    said = kit.run_pact("exec", "--nodes", "n1", "--", "id", who="daemon")
    assert said.returncode == 1 and "not available" in said.stdout + said.stderr, said


def test_who_sends_more_than_anybody_reads_loses_the_stream_and_harms_nobody(kit: Fleet) -> None:
    before = [rss_kib(kit.processes[n].pid) for n in ("root1", "agg1", "n1")]
    with kit.client() as client:
        end = kit.opened(client, "shell_open", "n1", words=["sleep 20"], terminal=False)
        ended: list[str] = []
        client.on_frames = lambda m: ended.append(m.head["why"]) if m.head["end"] else None
        data = b"x" * (60 << 10)
        for _ in range(300):
            head, body = end.say(frames.frame(b"I", data), len(data))
            client.stream("n1", head, body)
            client.pump()
        ends = time.monotonic() + 10
        # The node's end of the session may come before the reason of whoever cut the stream.
        while not any(TOO_MUCH in why for why in ended) and time.monotonic() < ends:
            client.pump(100)
        assert any(TOO_MUCH in why for why in ended), ended
        client.cancel()
    assert kit.run_pact("shell", "n1", "--", "echo here").stdout == "here\n"
    grown = [rss_kib(kit.processes[n].pid) - kib for n, kib in zip(("root1", "agg1", "n1"), before, strict=True)]
    assert max(grown) < 16 << 10, grown
    kit.end_sessions("n1", "sleep 20")


TOO_MUCH = "more on a stream than anybody asked for"
SINGLE = "import os, time\nfor i in range(20000):\n os.write(1, b'y')\n time.sleep(0.0001)\n"


@pytest.mark.invariant("X7")
def test_single_bytes_for_who_looks_away_are_gathered_and_none_is_lost(kit: Fleet, tmp_path: Path) -> None:
    """A terminal's program that writes byte by byte: once a message each, more than a socket holds."""
    with kit.client() as client:
        early, written = Early(), tmp_path / "written"
        client.on_frames = early.put
        single = f"{SINGLE}open({str(written)!r}, 'w').close()\n"
        end = kit.opened(client, "shell_open", "n1", words=[sys.executable, "-c", single], terminal=True)
        came, owed, got, over = 0, 0, b"", False

        def hear(message: Message) -> None:
            nonlocal came, owed, got, over
            came, over = came + 1, message.head["end"]
            owed += cost(message.head, message.body, message.head["give"])
            body = end.hear(message.head, message.body)
            got += b"".join(data for kind, data in frames.Reader().feed(body) if kind == b"O")

        client.on_frames = hear
        early.take(hear)
        client.stream("n1", *end.say(b""))
        ends = time.monotonic() + 60
        while not written.exists():  # only beats
            assert time.monotonic() < ends
            time.sleep(0.5)
            client.lives()
        ends = time.monotonic() + 30
        while not over:
            assert time.monotonic() < ends, (came, len(got))
            client.pump(100)
            if owed:
                given, owed = owed, 0
                client.stream("n1", *end.say(b"", give=given))
        assert got.endswith(b"y" * 20_000), got[:500]
        assert came < 2 * CREDIT // TERMINAL_MIN, (came, len(got))
