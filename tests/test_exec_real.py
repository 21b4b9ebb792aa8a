"""Commands on many nodes through a real root, real aggregators and real agents."""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streams_kit import NODES, Between, Fleet, alive, fleet, within

from pact.cluster.client import Result
from pact.core.tree.lanes import BULK_CREDIT

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@pytest.fixture
def marker(tmp_path: Path) -> str:
    """A word that no other process has on its command line."""
    return f"{int(time.time() * 1000) % 10**9 + 10**9}"


# -- commands ---------------------------------------------------------------------------------------------------------


def test_equal_outputs_are_folded_and_recorded(kit: Fleet) -> None:
    said = kit.run_pact("exec", "--nodes", "n[1-3]", "--", "echo same; echo wrong >&2; exit 3")
    assert said.returncode == 3
    assert "n[1-3] (3)" in said.stdout and said.stdout.count("same") == 1
    assert "n[1-3]: exit code 3" in said.stderr and said.stderr.count("wrong") == 1
    for node in NODES:
        row = kit.records(node, "executed")[0]
        assert row["data"]["command"] == "echo same; echo wrong >&2; exit 3" and row["data"]["exit"] == 3
        assert row["actor"]["user"] == "root" and row["data"]["out_bytes"] == 11 and row["data"]["duration_ns"] > 0


def test_input_goes_to_all_and_several_words_are_these_words(kit: Fleet) -> None:
    said = kit.run_pact("--json", "exec", "--nodes", "n[1-3]", "--", "tr", "a b", "c_", stdin=b"a b\n")
    doc = json.loads(said.stdout)
    assert {n: r["stdout"] for n, r in doc["nodes"].items()} == dict.fromkeys(NODES, "c__\n"), said
    assert doc["failed"] == {} and all(r["exit"] == 0 and r["truncated"] is False for r in doc["nodes"].values())
    said = kit.run_pact("exec", "--nodes", "n1", "--", "cat", stdin=b"x" * ((1 << 20) + 1))
    assert said.returncode == 2 and "more than" in said.stderr
    said = kit.run_pact("exec", "--nodes", "n1", "--", "wc -c", stdin=b"x" * (1 << 20))
    assert said.returncode == 0 and str(1 << 20) in said.stdout, said


def test_long_output_comes_whole_up_to_the_bound_and_is_said_to_be_cut_beyond(kit: Fleet) -> None:
    said = kit.run_pact("exec", "--nodes", "n[1-3]", "--", "seq 1 100000")
    assert said.returncode == 0 and said.stdout.count("\n") == 100003 and "n[1-3] (3)" in said.stdout
    said = kit.run_pact("--json", "exec", "--output-max", "100000", "--nodes", "n1", "--", "seq 1 100000; exit 2")
    doc = json.loads(said.stdout)["nodes"]["n1"]
    assert len(doc["stdout"]) == 100000 and doc["truncated"] is True and doc["exit"] == 2
    said = kit.run_pact("exec", "--output-max", "100000", "--nodes", "n1", "--", "head -c 3000000 /dev/urandom")
    assert said.returncode == 0 and "n1: output was cut" in said.stderr


def test_what_looks_the_same_is_shown_once(kit: Fleet, tmp_path: Path) -> None:
    """Whatever the last line ends with, as ``clush -b`` does it."""
    command = f"printf same; mkdir {tmp_path}/first 2>/dev/null || echo"
    said = kit.run_pact("exec", "--nodes", "n[1-3]", "--", command)
    assert said.stdout.count("same\n") == 1 and "n[1-3] (3)" in said.stdout, said


def test_bytes_that_are_no_text_reach_a_program_whole(kit: Fleet) -> None:
    doc = json.loads(kit.run_pact("--json", "exec", "--nodes", "n1", "--", r"printf 'a\377b'; printf c >&2").stdout)
    row = doc["nodes"]["n1"]
    assert base64.b64decode(row["stdout_base64"]) == b"a\xffb" and row["stdout"] == "a\ufffdb"
    assert row["stderr"] == "c" and "stderr_base64" not in row


def test_a_line_that_is_too_long_is_said_to_be_broken(kit: Fleet) -> None:
    command = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo y"
    said = kit.run_pact("exec", "-L", "--nodes", "n[1-2]", "--", command)
    lines = said.stdout.splitlines()
    assert sum(line.count("x") for line in lines) == 600000 and lines.count("n1: y") == 1 and len(lines) > 4
    assert "n[1-2]: lines of more than" in said.stderr
    assert "lines of more" not in kit.run_pact("exec", "-L", "--nodes", "n[1-2]", "--", "seq 1 50000").stderr


def test_input_that_does_not_end_is_said_to_be_waited_for(kit: Fleet) -> None:
    with kit.pact(
        "exec", "--nodes", "n1", "--", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"some")
        process.stdin.flush()
        assert b"waiting for its end (--no-stdin)" in process.stderr.readline()
        out, err = process.communicate(b"thing\n", 30)
    assert process.returncode == 0 and b"\nsomething\n" in out and err == b""


@pytest.mark.invariant("S8")
def test_one_connection_may_ask_as_often_as_it_likes(kit: Fleet) -> None:
    """It leaves none of its requests: what was answered whole is forgotten everywhere."""
    with kit.client() as client:
        for _ in range(20):
            (said,) = [x for x in client.ask("exec", {"words": ["true"]}, "n[1-3]", 30) if isinstance(x, Result)]
            assert (said.exit, said.message) == (0, "")


def test_live_lines_carry_their_node(kit: Fleet) -> None:
    said = kit.run_pact("exec", "-L", "--nodes", "n[1-2]", "--", "echo one; sleep 0.2; printf two; exit 1")
    assert said.returncode == 1
    assert sorted(said.stdout.splitlines()) == ["n1: one", "n1: two", "n2: one", "n2: two"]


def test_a_time_limit_ends_everything(kit: Fleet, marker: str) -> None:
    began = time.monotonic()
    said = kit.run_pact("exec", "--timeout", "1s", "--nodes", "n[1-3]", "--", f"setsid sleep {marker} & sleep {marker}")
    assert time.monotonic() - began < 15
    assert said.returncode == 5 and "did not end within 1s" in said.stderr, said
    said = kit.run_pact("exec", "--timeout", "1s", "--nodes", "n1", "--", f"trap 'exit 0' TERM; sleep {marker} & wait")
    assert said.returncode == 5 and "did not end within 1s" in said.stderr, said
    within(lambda: not alive(marker), "nothing is left running")


@pytest.mark.invariant("F90")
@pytest.mark.parametrize(
    ("how", "live"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGKILL, True)],
)
def test_who_asked_and_goes_ends_it_everywhere(kit: Fleet, marker: str, how: int, live: bool) -> None:
    command = f"trap '' TERM HUP; setsid -f sleep {marker}; (sleep {marker}; true) & sleep {marker}; true"
    words = ["exec", *(["-L"] if live else []), "--nodes", "n[1-3]", "--", command]
    process = kit.pact(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        within(lambda: len(alive(marker)) >= 9, "it runs on all", 30)
        began = time.monotonic()
        process.send_signal(how)
        # A client that says nothing any more is given up after six seconds.
        within(lambda: not alive(marker), "nothing is left running", 4 if how != signal.SIGKILL else 15)
        took = time.monotonic() - began
        _, err = process.communicate(timeout=10)
    if how != signal.SIGKILL:
        assert process.returncode == 130 and b"cancelled" in err
    print(f"ended after {took:.2f} s")


def test_an_aggregator_that_dies_ends_commands(kit: Fleet, marker: str) -> None:
    with kit.pact(
        "exec", "-L", "--nodes", "n[1-3]", "--", f"sleep {marker}; true", at="agg2", stdin=subprocess.DEVNULL
    ) as process:
        within(lambda: len(alive(marker)) >= 3, "it runs on all", 30)
        below = {n: kit.ask(f"{kit.base}/agent-{n}/sock", "status")["result"]["cluster"]["parent"] for n in NODES}
        here = [n for n, url in below.items() if url == kit.below]
        kit.kill("agg1")
        try:
            within(lambda: len(alive(marker)) <= 2 * (3 - len(here)), "those below it have ended", 20)
        finally:
            kit.start_aggregator("agg1", ("root1", kit.url), port=int(kit.below.rpartition(":")[2]))
            process.send_signal(signal.SIGINT)
            process.wait(20)
    within(lambda: not alive(marker), "nothing is left running", 10)


def test_an_agent_that_dies_ends_its_commands_and_the_next_one_records_them(kit: Fleet, marker: str) -> None:
    with kit.pact(
        "exec", "--nodes", "n1", "--", f"setsid -f sleep {marker}; sleep {marker}; true", stdin=subprocess.DEVNULL
    ) as process:
        within(lambda: len(alive(marker)) >= 2, "it runs", 30)
        kit.kill("n1")
        within(lambda: not alive(marker), "it has ended by itself", 20)
        kit.node_up("n1")
        process.wait(90)
        assert process.returncode == 5
    row = within(lambda: [r for r in kit.records("n1", "executed") if marker in r["data"]["command"]], "recorded")[0]
    assert row["data"]["why"] and row["data"]["exit"] is None


# -- bad input --------------------------------------------------------------------------------------------------------


def test_many_short_lines_of_many_nodes_come_all_and_in_order(kit: Fleet) -> None:
    said = kit.run_pact("exec", "-L", "--nodes", "n[1-3]", "--", "for i in $(seq 3000); do echo $i; done")
    assert said.returncode == 0, said
    lines = [line.split(": ") for line in said.stdout.splitlines()]
    for node in NODES:
        assert [text for name, text in lines if name == node] == [str(i) for i in range(1, 3001)]


def test_a_key_that_is_removed_ends_its_commands(kit: Fleet, marker: str) -> None:
    command = f"trap '' TERM HUP; setsid -f sleep {marker}; sleep {marker}; true"
    with kit.pact("exec", "--nodes", "n[1-3]", "--", command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
        within(lambda: len(alive(marker)) >= 6, "it runs on all", 30)
        kit.write_keys(without=["root"])
        try:
            within(lambda: not alive(marker), "nothing is left running", 20)
            _, err = one.communicate(timeout=30)
            assert one.returncode != 0 and b"key" in err, err
        finally:
            kit.write_keys()
            kit.knows("root")
    ended = [r for r in kit.records("n1", "executed") if marker in r["data"]["command"]]
    assert ended and ended[0]["data"]["why"], ended


@pytest.mark.invariant("F90")
@pytest.mark.parametrize("silent_s", [1.0, 8.0])
def test_a_node_that_hears_nothing_when_it_is_cancelled_ends_it_when_it_does(
    kit: Fleet, marker: str, silent_s: float
) -> None:
    """Its agent is stopped: for a moment, and for so long that it is given up."""
    with kit.pact(
        "exec", "--nodes", "n[1-3]", "--", f"sleep {marker}; true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as one:
        within(lambda: len(alive(marker)) >= 3, "it runs on all", 30)
        agent = kit.processes["n3"]
        agent.send_signal(signal.SIGSTOP)
        try:
            one.send_signal(signal.SIGINT)
            assert one.wait(10) == 130
            within(lambda: len(alive(marker)) <= 1, "the others have ended", 4)
            time.sleep(silent_s)
        finally:
            agent.send_signal(signal.SIGCONT)
        within(lambda: not alive(marker), "nothing is left running", 15)
    kit.connected("n3")


@pytest.mark.invariant("F90")
@pytest.mark.parametrize("live", [False, True])
def test_a_cancellation_that_is_lost_on_the_way_ends_it_all_the_same(kit: Fleet, marker: str, live: bool) -> None:
    """The connection breaks, somebody presses Ctrl-C, and the node is back at once."""
    name = f"b{int(live)}"
    kit.add(name, "node")
    kit.admit(f"see{int(live)}", "viewer")  # then the node's key is known, too
    between = Between(kit.below)
    try:
        kit.node_up(name, between.url)
        words = ["exec", *(["-L"] if live else []), "--nodes", name, "--", f"sleep {marker}; true"]
        with kit.pact(*words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
            within(lambda: alive(marker), "it runs", 30)
            between.cut()
            one.send_signal(signal.SIGINT)
            assert one.wait(10) == 130
            between.open = True
            within(lambda: not alive(marker), "nothing is left running", 15)
    finally:
        kit.kill(name, 15)
        between.close()


def test_a_client_that_never_takes_anything_stops_its_own_command_only(kit: Fleet, marker: str) -> None:
    with kit.client() as client:
        kit.opened(client, "exec", "n1", words=[f"yes {marker}"], live=True, limit_ms=60_000)
        came = [0]
        client.on_frames = lambda m: came.__setitem__(0, came[0] + m.head["size"])
        within(lambda: (client.pump(100), came[0])[1], "output comes", 30)
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            client.pump(100)
        assert came[0] <= BULK_CREDIT
        assert kit.run_pact("exec", "--nodes", "n1", "--", "seq 1 20000 | tail -1").stdout.endswith("20000\n")
        client.cancel()
        within(lambda: not alive(marker), "nothing is left running", 10)


def _host(kit: Fleet, node: str, marker: str) -> dict[str, object]:
    """What the process of a command has written of itself."""

    def found() -> dict[str, object] | None:
        for path in (kit.base / f"agent-{node}" / "exec").glob("*.json"):
            state: dict[str, object] = json.loads(path.read_text())
            if marker in str(state["command"]) and state["shell"]:
                return state
        return None

    return within(found, "its file", 30)  # type: ignore[no-any-return]


def test_a_command_whose_process_is_killed_leaves_nothing_running(kit: Fleet, marker: str) -> None:
    command = f"setsid -f sleep {marker}; sleep {marker}; true"
    with kit.pact("exec", "--nodes", "n1", "--", command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
        within(lambda: len(alive(marker)) >= 2, "it runs", 30)
        os.kill(int(str(_host(kit, "n1", marker)["pid"])), signal.SIGKILL)
        _, err = one.communicate(timeout=30)
        assert one.returncode != 0 and b"killed" in err, err
    within(lambda: not alive(marker), "nothing is left running", 10)
    (row,) = [r for r in kit.records("n1", "executed") if marker in r["data"]["command"]]
    assert row["data"]["why"] == "its process was killed"


def test_an_agent_that_starts_at_once_records_what_was_left_once_and_names_nothing_alike(
    kit: Fleet, marker: str
) -> None:
    """The command goes on for a moment after its agent: the next agent waits until it has ended."""
    command = f"trap '' TERM HUP; setsid -f sleep {marker}; sleep {marker}; true"
    with kit.pact("exec", "--nodes", "n2", "--", command, stdin=subprocess.DEVNULL) as one:
        within(lambda: len(alive(marker)) >= 2, "it runs", 30)
        for _ in range(2):
            kit.kill("n2")
            kit.node_up("n2")
            said = kit.run_pact("exec", "--timeout", "1s", "--nodes", "n2", "--", f"sleep 1{marker}")
            assert said.returncode != 0 and "did not end within 1s" in said.stderr, said
            within(lambda: not alive(f"1{marker}"), "its limit holds", 10)
        one.wait(90)
    within(lambda: not alive(marker), "nothing is left running", 10)
    place = kit.base / "agent-n2" / "exec"
    within(lambda: not list(place.glob("*.json")), "its files are gone", 20)
    rows = [r for r in kit.records("n2", "executed") if marker in r["data"]["command"]]
    assert sorted(r["data"]["command"].startswith("sleep") for r in rows) == [False, True, True], rows


def _up(kit: Fleet, node: str) -> bool:
    try:
        return kit.records(node, "agent_started") != []
    except OSError:
        return False


@pytest.mark.invariant("X9")
@pytest.mark.parametrize("there", [True, False])
def test_an_agent_that_has_left_the_cluster_ends_what_was_left_and_says_so(
    kit: Fleet, marker: str, there: bool
) -> None:
    """Whether the command's files are there still, or nothing but the record that it begins."""
    with kit.pact("exec", "--nodes", "n2", "--", f"sleep {marker}; true", stdin=subprocess.DEVNULL) as one:
        within(lambda: alive(marker), "it runs", 30)
        host = int(str(_host(kit, "n2", marker)["pid"]))
        if not there:
            os.kill(host, signal.SIGSTOP)
        kit.kill("n2")
        if not there:
            shutil.rmtree(kit.base / "agent-n2" / "exec")
            for pid in (host, *alive(marker)):
                os.kill(pid, signal.SIGKILL)
        kit.start_agent("n2")
        within(lambda: _up(kit, "n2"), "it is up", 30)
        within(lambda: not alive(marker), "nothing is left running", 30)
        (begun,) = [r for r in kit.records("n2", "exec_begun") if marker in r["data"]["command"]]

        def ended() -> list[Any]:
            return [r for r in kit.records("n2", "executed") if r["data"]["begun"] == begun["seq"]]

        within(lambda: len(ended()) == 1, "its end is on record", 20)
        kit.kill("n2")
        kit.node_up("n2")
        one.terminate()
        one.wait(30)
    within(lambda: _up(kit, "n2"), "it is up again", 30)
    assert len(ended()) == 1


def test_a_command_whose_process_is_stopped_ends_when_it_must(kit: Fleet, marker: str) -> None:
    with kit.pact("exec", "--timeout", "2s", "--nodes", "n1", "--", f"sleep {marker}; true", stdin=subprocess.DEVNULL):
        os.kill(int(str(_host(kit, "n1", marker)["pid"])), signal.SIGSTOP)
        within(lambda: not alive(marker), "nothing is left running", 40)
    within(lambda: [r for r in kit.records("n1", "executed") if marker in r["data"]["command"]], "recorded", 10)


def test_a_pager_that_stands_still_ends_no_command(kit: Fleet) -> None:
    with kit.pact(
        "exec", "-L", "--nodes", "n1", "--", "seq 1 60000", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as one:
        time.sleep(10)
        out, _ = one.communicate(timeout=60)
    assert one.returncode == 0 and out.splitlines()[-1] == b"n1: 60000" and out.count(b"\n") == 60000


@pytest.mark.invariant("X7")
def test_a_keeper_that_is_stopped_holds_the_agent_up_for_no_moment(kit: Fleet) -> None:
    """Not even with a command that is longer than its socket takes."""
    assert kit.run_pact("exec", "--nodes", "n1", "--", "true").returncode == 0
    found = list[int]()

    def alone() -> bool:  # what it starts has its name until it has become another program
        found[:] = alive(f"{kit.base}/agent-n1/sessions/keeper.sock")
        return len(found) == 1

    kit.until(alone, "the keeper is alone")
    (keeper,) = found
    os.kill(keeper, signal.SIGSTOP)
    try:
        words = ["exec", "--nodes", "n1", "--", ":", "\x01" * 40_000]
        with kit.pact(*words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            slowest, ends = 0.0, time.monotonic() + 4.0
            while time.monotonic() < ends:
                began = time.monotonic()
                kit.ask(f"{kit.base}/agent-n1/sock", "ping")
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.01)
            assert slowest < 1.0 and one.poll() is None
            os.kill(keeper, signal.SIGCONT)
            assert one.wait(60) == 0, "it begins when the keeper goes on"
    finally:
        os.kill(keeper, signal.SIGCONT)


# -- on record --------------------------------------------------------------------------------------------------------

LOOK = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[2]}?mode=ro", uri=True)
sql = "SELECT count(*) FROM record WHERE type = 'exec_begun' AND CAST(body AS TEXT) LIKE ?"
print(db.execute(sql, [f"%{sys.argv[1]}%"]).fetchone())
"""


@pytest.mark.invariant("X9")
def test_a_command_finds_its_own_beginning_on_record_and_its_end_names_it(
    kit: Fleet, marker: str, tmp_path: Path
) -> None:
    journal, look = kit.base / "agent-n1" / "state" / "journal.db", tmp_path / "look"
    look.write_text(LOOK)
    said = kit.run_pact("exec", "--nodes", "n1", "--", sys.executable, str(look), marker, str(journal))
    assert "(1,)" in said.stdout, said
    (begun,) = [r for r in kit.records("n1", "exec_begun") if marker in r["data"]["command"]]
    (ended,) = [r for r in kit.records("n1", "executed") if marker in r["data"]["command"]]
    assert ended["data"]["begun"] == begun["seq"] < ended["seq"] and begun["data"]["call"] == ended["data"]["call"]
    same = ("command", "owner", "account", "key", "uid")
    assert [begun["data"][k] for k in same] == [ended["data"][k] for k in same]
    shown = kit.run_pact("log", "--nodes", "n1", "--type", "exec_begun", "-n", "1").stdout
    assert "root: " in shown and marker in shown and "exit" not in shown, shown


@pytest.mark.invariant("X9")
def test_what_cannot_be_recorded_is_not_run(kit: Fleet, marker: str, tmp_path: Path) -> None:
    """The agent may write no file further: as on a full disk. Nobody notices before the command comes."""
    pid, made = kit.processes["n3"].pid, tmp_path / marker
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        said = kit.run_pact("exec", "--nodes", "n3", "--", f"touch {made}")
        assert said.returncode == 5 and "journal" in said.stderr, said
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert not made.exists()
    within(lambda: kit.run_pact("exec", "--nodes", "n3", "--", f"touch {made}").returncode == 0, "it works again", 30)
    assert made.exists()
    within(lambda: not list((kit.base / "agent-n3" / "exec").glob("*.json")), "its files are gone", 20)
    begun = [r["seq"] for r in kit.records("n3", "exec_begun") if marker in r["data"]["command"]]
    ended = [r["data"]["begun"] for r in kit.records("n3", "executed") if marker in r["data"]["command"]]
    assert begun == ended and len(begun) == 1


@pytest.mark.invariant("X9", "F91")
def test_a_command_that_takes_the_agent_and_its_own_files_down_has_an_end(kit: Fleet, marker: str) -> None:
    pid, place = kit.processes["n2"].pid, kit.base / "agent-n2" / "exec"
    command = f": {marker}; sleep 0.3; kill -STOP $PPID; rm -f {place}/*; kill -9 {pid} $PPID"
    with kit.pact("exec", "--nodes", "n2", "--", command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        kit.processes["n2"].wait(20)
        within(lambda: not list(place.glob("*")), "its files are gone")
        kit.node_up("n2")
        one.wait(90)
    row = within(lambda: [r for r in kit.records("n2", "executed") if marker in r["data"]["command"]], "recorded")[0]
    (begun,) = [r for r in kit.records("n2", "exec_begun") if marker in r["data"]["command"]]
    assert row["data"]["begun"] == begun["seq"] and row["data"]["exit"] is None
    assert row["data"]["why"] == "nobody knows how it ended"
