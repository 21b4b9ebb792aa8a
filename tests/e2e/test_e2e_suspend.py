"""Emergency mode, holds and observe mode: when nothing is rolled back by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from harness import Agent, World, wait_until

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")
GAMES = 60


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"window": {"base": "0.5s", "floor": "0.2s"}, "access": {"ops_groups": ["games"]}}


def outlived(agent: Agent, seconds: float = 0.9) -> None:
    """Wait until well after every window that could have run has ended."""
    seq = agent.status()["journal"]["seq"]
    import time

    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, "", seconds + 5)
    assert not [r for r in agent.records("rollback_started") if r["seq"] > seq]


# -- emergency ------------------------------------------------------------------------------------------------------


def test_emergency_suspends_windows_and_ends_with_a_commit(agent: Agent) -> None:
    path = agent.file("e.conf")
    answer = agent.json("emergency", "start", "--reason", "disk on fire")
    assert RFC3339.match(answer["ends"])
    change = agent.drift(path)
    assert change["deadline"] is None and change["remaining_s"] is None
    status = agent.json("status")
    assert status["state"] == "emergency"
    emergency = status["emergency"]
    assert set(emergency) == {"reason", "by", "started", "ends", "stale"}
    assert emergency["reason"] == "disk on fire" and emergency["by"] == "root" and emergency["stale"] is False
    assert "already in emergency" in agent.pact("emergency", "start", "--reason", "again", check=4).err
    outlived(agent)
    agent.pact("emergency", "end", "--commit", check=2)
    agent.pact("emergency", "end", "--commit", "-m", "repaired")
    assert agent.status()["emergency"] is None and agent.status()["changes"] == []
    assert agent.world.path(path).read_text() == "drifted\n"
    assert agent.newest("emergency_ended")["data"]["how"] == "commit"
    assert "not in emergency" in agent.pact("emergency", "end", "--rollback", check=4).err


def test_emergency_ends_with_a_rollback(agent: Agent) -> None:
    path = agent.file("r.conf")
    agent.pact("emergency", "start", "--reason", "try", "--for", "1h")
    agent.drift(path)
    agent.pact("emergency", "end", "--rollback")
    assert agent.world.path(path).read_text() == "declared\n" and agent.status()["state"] == "committed"


def test_an_emergency_whose_end_has_passed_is_stale_and_still_suspends(agent: Agent) -> None:
    path = agent.file("s.conf")
    agent.pact("emergency", "start", "--reason", "short", "--for", "0.3s")
    agent.drift(path)
    wait_until(lambda: agent.status()["emergency"]["stale"], "it is stale")
    assert agent.newest("emergency_stale")
    assert "stale" in agent.pact("status").out and "stale" in agent.pact("check", check=11).out
    outlived(agent)
    assert agent.world.path(path).read_text() == "drifted\n"
    agent.pact("emergency", "end", "--rollback")


def test_what_the_caller_may_not_settle_starts_a_new_window_when_the_emergency_ends(agent: Agent) -> None:
    path = agent.file("other.conf")
    agent.pact("emergency", "start", "--reason", "x", uid=1234, groups=[GAMES])
    agent.drift(path)  # root's
    agent.pact("emergency", "end", "--commit", "-m", "mine", uid=1234, groups=[GAMES])
    (change,) = agent.status()["changes"]
    assert change["state"] == "open" and change["remaining_s"] > 0
    agent.settled(f"file:{path}")
    assert agent.world.path(path).read_text() == "declared\n"


def test_another_person_s_emergency_is_ended_only_with_force(agent: Agent) -> None:
    agent.pact("emergency", "start", "--reason", "mine", uid=1234, groups=[GAMES])
    done = agent.pact("emergency", "end", "--rollback", uid=1235, groups=[GAMES], check=3)
    assert "--force" in done.err and agent.status()["emergency"]
    agent.pact("emergency", "end", "--rollback", "--force", uid=1235, groups=[GAMES])


def test_emergency_needs_a_reason(agent: Agent) -> None:
    agent.pact("emergency", "start", check=2)
    agent.pact("emergency", "start", "--reason", " ", check=2)
    agent.pact("emergency", "end", check=2)
    agent.pact("emergency", check=2)
    assert agent.status()["emergency"] is None


def test_emergency_survives_a_restart(agent: Agent) -> None:
    path = agent.file("again.conf")
    agent.pact("emergency", "start", "--reason", "long")
    agent.drift(path)
    agent.restart(9)
    assert agent.status()["emergency"]["reason"] == "long"
    outlived(agent)
    agent.pact("emergency", "end", "--rollback")


# -- holds ----------------------------------------------------------------------------------------------------------


def test_a_hold_stops_the_clock_of_one_change_until_it_is_released(agent: Agent) -> None:
    path = agent.file("h.conf")
    change = agent.drift(path)
    answer = agent.json("hold", "place", change["id"], "--reason", "wait for me", "--for", "1h")
    held = agent.status()["changes"][0]
    assert held["state"] == "held" and held["deadline"] is None
    (hold,) = agent.json("status")["holds"]
    assert {"id", "change", "owner", "reason", "ends"} <= set(hold) and hold["id"] == answer["hold"]
    outlived(agent)
    assert "is held by root: wait for me" in agent.pact("rollback", check=4).err
    agent.pact("hold", "release", hold["id"])
    released = agent.status()["changes"]
    assert not released or released[0]["remaining_s"] <= change["remaining_s"] + 0.1
    agent.settled(f"file:{path}")
    assert agent.newest("hold_released")["data"]["cause"] == "released"


def test_a_hold_of_the_node_holds_what_drifts_later_too(agent: Agent) -> None:
    path = agent.file("node.conf")
    agent.pact("hold", "place", "--reason", "maintenance", "--for", "1h")
    assert agent.drift(path)["state"] == "held"
    outlived(agent)
    agent.pact("hold", "release")
    agent.settled(f"file:{path}")


def test_a_manual_rollback_of_a_held_change_needs_force(agent: Agent) -> None:
    path = agent.file("force.conf")
    agent.pact("hold", "place", "--reason", "x", "--for", "1h")
    agent.drift(path)
    agent.pact("rollback", check=4)
    agent.pact("rollback", "--force")
    assert agent.world.path(path).read_text() == "declared\n"
    agent.pact("hold", "release")


def test_a_hold_ends_at_its_time(agent: Agent) -> None:
    path = agent.file("exp.conf")
    agent.pact("hold", "place", "--reason", "x", "--for", "0.5s")
    agent.drift(path)
    wait_until(lambda: not agent.status()["holds"], "it ended")
    assert agent.newest("hold_released")["data"]["cause"] == "expired"
    agent.settled(f"file:{path}")


def test_holds_that_make_no_sense_are_refused(agent: Agent) -> None:
    agent.pact("hold", "place", "--reason", "x", check=2)
    agent.pact("hold", "place", "--for", "1h", check=2)
    agent.pact("hold", "place", "--reason", "x", "--for", "31d", check=2)
    agent.pact("hold", "place", "c999", "--reason", "x", "--for", "1h", check=2)
    agent.pact("hold", "release", check=4)
    agent.pact("hold", "release", "h999", check=4)


def test_a_held_change_can_be_committed(agent: Agent) -> None:
    path = agent.file("hc.conf")
    change = agent.drift(path)
    agent.pact("hold", "place", change["id"], "--reason", "x", "--for", "1h")
    agent.pact("commit", "-m", "good after all")
    assert agent.status()["changes"] == []


# -- observe mode ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observer(world: World, make_agent: Callable[..., Agent]) -> Agent:
    agent = make_agent(mode={"enforcement": "observe"}, window={"base": "0.5s", "floor": "0.2s"})
    agent.start()
    return agent


def test_observe_mode_records_drift_and_rolls_nothing_back_until_enforced(observer: Agent) -> None:
    path = observer.file("observed.conf")
    change = observer.drift(path)
    status = observer.json("status")
    assert status["mode"] == "observe" and status["drifted"] == 1 and status["magnitude"] > 0
    assert change["deadline"] is None and observer.newest("window_opened") is None
    outlived(observer)
    assert "observe mode" in observer.pact("rollback", check=4).err
    observer.pact("rollback", "--dry-run")
    observer.configure({"mode": {"enforcement": "enforce"}})
    observer.restart()
    assert observer.status()["mode"] == "enforce"
    wait_until(lambda: observer.world.path(path).read_text() == "declared\n", "now it has a window, and it ends")


def test_declare_in_observe_mode_changes_nothing_on_the_machine(observer: Agent) -> None:
    observer.configure({"mode": {"enforcement": "observe"}})
    observer.restart()
    path = observer.file("still.conf")
    observer.declare(f'[file."{path}"]\ncontent = "other\\n"\n')
    assert observer.world.path(path).read_text() == "declared\n"
    observer.drifted(f"file:{path}")
