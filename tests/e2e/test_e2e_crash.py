"""Ends of every kind: SIGTERM, SIGKILL at any moment, and what happened while nobody looked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import chain
import orjson
import pytest
from harness import TOP, Agent, wait_until

KILLS = 12


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"window": {"base": "0.6s", "floor": "0.2s"}}


@pytest.mark.invariant("F1")
def test_sigterm_ends_cleanly_and_is_recorded(agent: Agent) -> None:
    started = time.monotonic()
    assert agent.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 5
    assert not os.path.exists(agent.socket)
    agent.start()
    records = agent.records()
    assert [r["type"] for r in records if r["type"].startswith("agent_")][-2:] == ["agent_stopped", "agent_started"]
    assert records[-1]["data"].get("unclean") is not True
    agent.restart(signal.SIGKILL)
    assert agent.newest("agent_started")["data"]["unclean"] is True


def test_sigint_ends_cleanly_too(agent: Agent) -> None:
    assert agent.stop(signal.SIGINT) == 0
    agent.start()


def test_drift_while_the_agent_was_down_is_found_at_start_and_gets_its_window(agent: Agent) -> None:
    paths = [agent.file(f"down{i}.conf") for i in range(3)]
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.stop()
    agent.world.path(paths[0]).write_text("x")
    agent.world.path(paths[1]).unlink()
    agent.world.path(paths[2]).chmod(0o600)
    agent.world.sh("echo 70 > /proc/sys/net/ipv4/ip_default_ttl")
    agent.start()
    assert agent.status()["drifted"] == 4, "seen before the first answer"
    wait_until(lambda: agent.status()["drifted"] == 0, "rolled back")
    assert agent.world.path(paths[1]).read_text() == "declared\n"
    assert agent.world.sh("cat /proc/sys/net/ipv4/ip_default_ttl").out == "64\n"


def test_same_size_and_times_do_not_hide_a_change_made_while_the_agent_was_down(agent: Agent) -> None:
    path = agent.file("sly.conf", "aaaa\n")
    agent.stop()
    agent.world.sh(f"touch -r {path} {TOP}/ref; echo bbbb > {path}; touch -r {TOP}/ref {path}")
    agent.start()
    agent.drifted(f"file:{path}")


@pytest.mark.invariant("A4", "F1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_deadline_that_passed_while_down_expires_at_start(agent: Agent, number: int) -> None:
    path = agent.file(f"deadline{int(number)}.conf")
    change = agent.drift(path)
    agent.stop(number)
    time.sleep(0.8)
    assert agent.world.path(path).read_text() == "drifted\n"
    agent.start()
    agent.settled(f"file:{path}", 5)
    assert agent.world.path(path).read_text() == "declared\n"
    assert agent.newest("rolled_back")["data"]["change"] == change["id"]


def test_what_cleared_while_down_is_not_rolled_back(agent: Agent) -> None:
    path = agent.file("cleared.conf")
    agent.drift(path)
    agent.stop(signal.SIGKILL)
    agent.world.path(path).write_text("declared\n")
    seq = agent_seq(agent)
    agent.start()
    assert agent.status()["drifted"] == 0
    assert not [r for r in agent.records("rollback_started") if r["seq"] > seq]


def agent_seq(agent: Agent) -> int:
    import sqlite3

    db = sqlite3.connect(agent.journal)
    try:
        return int(db.execute("SELECT max(seq) FROM record").fetchone()[0])
    finally:
        db.close()


def test_open_changes_owners_and_extensions_survive_a_kill(agent: Agent) -> None:
    path = agent.file("survive.conf", mode=0o666)
    change = agent.drift_by(1234, path)
    # A program that has to be started first would come too late on a busy machine.
    assert agent.ask("extend", targets=[change["id"]], by_ns=3_600_000_000_000)["exit"] == 0
    before = agent.status()["changes"][0]
    agent.restart(signal.SIGKILL)
    (after,) = agent.status()["changes"]
    assert (after["id"], after["owner"]["uid"], after["state"]) == (change["id"], 1234, "open")
    assert after["remaining_s"] == pytest.approx(before["remaining_s"], abs=10)
    assert after["remaining_s"] < before["remaining_s"], "time goes on while the agent is down"


@pytest.mark.invariant("F1")
def test_a_rollback_cut_off_by_a_kill_is_resumed(make_agent: Callable[..., Agent]) -> None:
    """A mount helper of ours makes the restore wait; the agent is killed in the middle."""
    agent = make_agent(window={"base": "1h", "floor": "0.2s"})
    agent.start()
    point, go = f"{TOP}/resume", f"{TOP}/go"
    files = [agent.file(f"resume{i}.conf") for i in range(5)]
    agent.world.sh(f"mkdir -p {point} {TOP}/up {TOP}/wk; mount -t tmpfs -o size=1m tmpfs {point}")
    agent.adopt(f"mount:{point}")
    for path in files:
        agent.drift(path)
    agent.world.path(f"{TOP}/up/mount.tmpfs").write_text(
        f"#!/bin/sh\n[ -e {go} ] || sleep 60\nexec mount -i -t tmpfs -o size=1m tmpfs {point}\n"
    )
    agent.world.sh(
        f"chmod 755 {TOP}/up/mount.tmpfs; umount {point}; d=$(readlink -f /sbin);"
        f"mount -t overlay -o lowerdir=$d,upperdir={TOP}/up,workdir={TOP}/wk overlay $d"
    )
    try:
        agent.drifted(f"mount:{point}")
        roll = agent.world.popen(
            [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback"], stderr=subprocess.PIPE
        )
        wait_until(lambda: agent.status()["changes"][0]["state"] == "rolling_back", "it has begun")
        agent.stop(signal.SIGKILL)
        assert roll.wait(20) == 5 and b"agent" in roll.stderr.read()
        agent.world.end(roll)
        agent.world.sh(f"touch {go}")
        agent.start()
        wait_until(lambda: agent.status()["drifted"] == 0, "it was resumed")
        assert all(agent.world.path(p).read_text() == "declared\n" for p in files)
        assert len(agent.records("rollback_started")) == 1 and len(agent.records("rolled_back")) == 1
        assert agent.world.sh(f"mountpoint {point}").code == 0
    finally:
        agent.world.sh(f"touch {go}; umount $(readlink -f /sbin); umount {point}", check=False)
    agent.close()


def test_killed_at_random_moments_no_drift_is_lost_and_the_chain_holds(make_agent: Callable[..., Agent]) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)
    agent = make_agent(window={"base": "0.4s", "floor": "0.1s"})
    agent.start()
    paths = [agent.file(f"kill/k{i}.conf", f"declared {i}\n") for i in range(60)]
    for _ in range(KILLS):
        picked = rng.sample(range(len(paths)), 5)
        paths_now = [paths[i] for i in picked]
        for path in paths_now:
            agent.world.path(path).write_text(f"drift {rng.random()}\n")
        time.sleep(rng.random() * 0.6)
        agent.stop(signal.SIGKILL)
        agent.start()

    def quiet() -> bool:
        status = agent.status()
        states = {c["state"] for c in status["changes"]}
        return not states & {"open", "rolling_back"}

    wait_until(quiet, "every window has ended", 20)
    status = agent.status()
    open_now = {r for c in status["changes"] for r in c["resources"]}
    for at, path in enumerate(paths):
        if f"file:{path}" not in open_now:  # contended ones wait for a person, by design
            assert agent.world.path(path).read_text() == f"declared {at}\n", (seed, path)
        else:
            assert agent.world.path(path).read_text() != f"declared {at}\n", (seed, path)
    left = [n for n in os.listdir(agent.world.path(f"{TOP}/kill")) if n.startswith(".pact-")]
    assert left == [], seed
    records = agent.records()
    assert chain.verify(records) == len(records)
    assert len([r for r in records if r["type"] == "agent_started"]) == KILLS + 1
    agent.close()


@pytest.mark.invariant("R11", "F95")
def test_what_a_plan_had_to_leave_is_removed_after_a_restart_once_it_can_be(agent: Agent) -> None:
    path = agent.world.path(agent.file("strewn/known.conf")).parent
    agent.stop()
    stray = path / ".pact-0123456789abcdef"
    stray.write_text("declared\n")
    ends = [{"what": "strewn", "path": f"{TOP}/strewn", "inode": path.stat().st_ino}]
    (agent.state_dir / "loose").write_bytes(orjson.dumps({"boot": "an earlier one", "ends": ends}).ljust(16 << 10))
    agent.start()
    wait_until(lambda: not stray.exists(), "it is removed", 60)
    wait_until(lambda: b"strewn" not in (agent.state_dir / "loose").read_bytes(), "nothing is on record", 20)
    assert "no temporary file of a plan" in agent.log()
    assert (path / "known.conf").read_text() == "declared\n"
