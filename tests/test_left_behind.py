"""What a command of ``pact exec`` leaves behind: it is said, it is on record, and it can be listed and ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_kit import Sessions
from streams_kit import NODES, Fleet, alive, fleet, within

from pact.agent import leftbehind
from pact.agent.sessionfiles import own_audit

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

#: Each starts one process, and returns at once.
WAYS = {
    "background": "sleep {} &",
    "nohup": "nohup sleep {} >/dev/null 2>&1 &",
    "setsid": "setsid -f sleep {}",
    "twice": "(setsid sh -c 'sleep {} & exit' >/dev/null 2>&1 </dev/null &)",
    "closed": "sleep {} <&- >&- 2>&- &",
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@pytest.fixture
def marker() -> Iterator[str]:
    """A word that no other process has on its command line."""
    word = f"{int(time.time() * 1000) % 10**9 + 10**9}"
    yield word
    for pid in alive(word):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions(twin=True)
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS)
def test_what_goes_on_is_said_listed_and_ended_on_all_nodes(kit: Fleet, marker: str, way: str) -> None:
    said = kit.run_pact("exec", "--nodes", "n[1-3]", "--", f"echo done; {WAYS[way].format(marker)}")
    assert said.returncode == 0 and said.stdout.endswith("done\n"), said
    assert "n[1-3]: 1 process that it left behind runs on" in said.stderr, said
    name = said.stderr.partition("--end ")[2].split()[0]
    assert f"pact sessions --nodes n[1-3] shows them, and --end {name} ends them" in said.stderr
    for node in NODES:
        row = kit.records(node, "executed")[0]["data"]
        assert marker in row["command"] and (row["exit"], row["left"], row.get("why")) == (0, 1, None)
    assert len(alive(marker)) == 3
    listed = json.loads(kit.run_pact("--json", "sessions", "--nodes", "n[1-3]").stdout)["nodes"]
    for node in NODES:
        (left,) = [one for one in listed[node]["left"] if one["id"] == name]
        assert (left["user"], left["processes"], left["programs"]) == ("root", 1, ["sleep"])
        assert set(left["pids"]) <= set(alive(marker)), left
    text = kit.run_pact("sessions", "--nodes", "n[1-3]").stdout
    assert f"{name}" in text and "left behind: 1 process (sleep)" in text
    done = kit.run_pact("sessions", "--nodes", "n[1-3]", "--end", name)
    assert done.returncode == 0 and f"1 process of command {name} ended" in done.stdout, done
    assert not alive(marker)
    for node in NODES:
        row = kit.records(node, "executed")[0]
        assert row["data"]["why"] == "root ended what it had left behind" and row["data"]["left"] == 1
        assert row["actor"]["user"] == "root" and row["data"]["exit"] is None
        assert kit.records(node, "executed")[1]["data"]["why"] == "root ends what it had left behind"
    again = kit.run_pact("sessions", "--nodes", "n1", "--end", name)
    assert again.returncode == 2 and "nothing of command" in again.stdout, again
    assert "left" not in json.loads(kit.run_pact("--json", "sessions", "--nodes", "n1").stdout)["nodes"]["n1"]


def test_the_exit_code_stays_and_a_program_reads_what_was_left(kit: Fleet, marker: str) -> None:
    command = f"sleep {marker} & sleep {marker} & exit 7"
    said = kit.run_pact("--json", "exec", "--nodes", "n1", "--", command)
    row = json.loads(said.stdout)["nodes"]["n1"]
    assert said.returncode == 7 and row["exit"] == 7 and row["left"]["processes"] == 2
    assert json.loads(said.stdout)["failed"] == {}
    assert kit.run_pact("sessions", "--nodes", "n1", "--end", row["left"]["id"]).returncode == 0
    assert not alive(marker)


def test_a_command_that_leaves_nothing_says_nothing_of_it(kit: Fleet) -> None:
    """Also where what it has started is just ending."""
    said = kit.run_pact("--json", "exec", "--nodes", "n1", "--", "sleep 0.05 & (sleep 0.02 &) ; exit 0")
    assert "left" not in json.loads(said.stdout)["nodes"]["n1"]
    assert "left" not in kit.records("n1", "executed")[0]["data"]


def test_what_does_not_heed_a_signal_is_killed(kit: Fleet, marker: str) -> None:
    command = f"(trap '' TERM HUP INT; while :; do sleep {marker}; done) >/dev/null 2>&1 & exit 0"
    said = kit.run_pact("--json", "exec", "--nodes", "n1", "--", command)
    left = json.loads(said.stdout)["nodes"]["n1"]["left"]
    assert left["processes"] == 2
    done = kit.run_pact("sessions", "--nodes", "n1", "--end", left["id"])
    assert done.returncode == 0, done
    within(lambda: not alive(marker), "all of it has ended", 5)


def test_they_are_found_after_a_restart_of_the_agent_and_their_command_is_not_ended_by_it(
    kit: Fleet, marker: str
) -> None:
    said = kit.run_pact("--json", "exec", "--nodes", "n3", "--", f"setsid -f sleep {marker}")
    name = json.loads(said.stdout)["nodes"]["n3"]["left"]["id"]
    kit.kill("n3")
    kit.node_up("n3")
    assert len(alive(marker)) == 1
    (left,) = json.loads(kit.run_pact("--json", "sessions", "--nodes", "n3").stdout)["nodes"]["n3"]["left"]
    assert left["id"] == name
    assert kit.run_pact("sessions", "--nodes", "n3", "--end", name).returncode == 0
    assert not alive(marker)


def test_a_viewer_neither_sees_nor_ends_another_persons(kit: Fleet, marker: str) -> None:
    said = kit.run_pact("--json", "exec", "--nodes", "n1", "--", f"setsid -f sleep {marker}")
    name = json.loads(said.stdout)["nodes"]["n1"]["left"]["id"]
    seen = json.loads(kit.run_pact("--json", "sessions", "--nodes", "n1", who="view").stdout)["nodes"]["n1"]
    assert "left" not in seen
    refused = kit.run_pact("sessions", "--nodes", "n1", "--end", name, who="view")
    assert refused.returncode == 3 and "who ran it" in refused.stdout and len(alive(marker)) == 1
    assert kit.run_pact("sessions", "--nodes", "n1", "--end", name).returncode == 0


# -- the command's process, and its cgroup ------------------------------------------------------------------------------


def test_a_command_is_ended_before_anybody_hears_so(sessions: Sessions) -> None:
    word = f"{int(time.time() * 1000) % 10**9 + 10**9}"
    sessions.open(
        "a", f"trap 'exit 0' TERM; setsid -f sleep {word}; echo started; while :; do sleep 0.02; done", whole=True
    )
    peer = sessions.attach("a")
    peer.until(b"started")
    assert len(alive(word)) == 1
    sessions.attach("a", end="enough")
    assert peer.wait(b"X") == {"exit": 0, "why": "enough"}
    assert not alive(word)


def test_they_are_found_by_their_audit_session_where_they_are_in_no_cgroup_of_their_own(sessions: Sessions) -> None:
    """A module of PAM moves sessions into a scope of the login manager."""
    state = sessions.open("a", "setsid -f sleep 300", whole=True)
    assert sessions.attach("a").end() == {"exit": 0, "left": 1}
    leftbehind.keep(str(sessions.place), "x1.1", {**sessions.state("a"), "cgroups": []}, 7)
    if own_audit(state) is None:  # this machine makes none: then nothing passes for it
        assert not leftbehind._there(str(sessions.place))
        return
    (found,) = leftbehind._there(str(sessions.place)).values()
    (pid,) = found[1]
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    os.kill(pid, signal.SIGKILL)
    within(lambda: not leftbehind._there(str(sessions.place)), "it is gone")
    assert not (sessions.place / "x1.1.left").exists()


def test_no_more_than_some_are_kept_and_the_oldest_give_way(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftbehind, "KEPT_MAX", 3)
    sessions.open("a", "setsid -f sleep 300", whole=True)
    assert sessions.attach("a").end() == {"exit": 0, "left": 1}
    state, place = sessions.state("a"), str(sessions.place)
    for n in range(5):
        leftbehind.keep(place, f"x1.{n}", state, n)
        os.utime(f"{place}/x1.{n}.left", (n, n))
    assert list(leftbehind._there(place)) == ["x1.2", "x1.3", "x1.4"]
    for pid in leftbehind._in_cgroups(state):
        os.kill(pid, signal.SIGKILL)
