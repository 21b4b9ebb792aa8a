"""A content store that is full: what needs room is refused before anything happens, and everything else goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from harness import TOP, Agent, wait_until


@pytest.fixture
def small(another: Callable[..., Agent]) -> Agent:
    """An agent whose store is empty, and has room for 64 KiB."""
    return another(state={"store_limit": "64KiB", "keep": "2s"})


def noise(size: int) -> bytes:
    return os.urandom(size)


def nearly_full(agent: Agent) -> str:
    """A declared file with content, and a store in which there is little left."""
    path = agent.file("kept.conf", b"declared\n")
    agent.file("large.conf", noise(48 << 10))
    return path


@pytest.mark.invariant("F63")
def test_a_commit_whose_content_has_no_room_is_refused_and_its_window_goes_on(small: Agent) -> None:
    agent = small
    path = nearly_full(agent)
    wanted = noise(32 << 10)
    agent.world.path(path).write_bytes(wanted)
    change = agent.drifted(f"file:{path}")
    seq = agent.status()["journal"]["seq"]
    done = agent.pact("commit", "-m", "too much", check=5)
    assert "content store is full" in done.err and f"file:{path}" in done.err and "store_limit" in done.err, done
    assert "nothing was committed" in done.err
    assert agent.status()["journal"]["seq"] == seq
    before, after = (datetime.fromisoformat(c["deadline"]) for c in (change, agent.change_of(f"file:{path}")))
    assert abs((after - before).total_seconds()) < 1
    assert "error" not in agent.status()["journal"], "the journal itself is as good as ever"
    agent.pact("rollback", check=None)


@pytest.mark.invariant("F63")
def test_what_needs_no_contents_goes_on_while_the_store_is_full(small: Agent) -> None:
    agent = small
    path, other = nearly_full(agent), agent.file("mode.conf", b"small\n")
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.world.path(path).write_bytes(noise(32 << 10))
    change = agent.drifted(f"file:{path}")
    text = f'[file."{TOP}/new.conf"]\ncontent = "{"x" * (40 << 10)}"\n'
    done = agent.declare(text, check=5)
    assert "content store" in done.out + done.err and "nothing was changed" in done.out + done.err, done
    assert not agent.world.path(f"{TOP}/new.conf").exists()
    assert agent.pact("apply", "-", input=text.encode(), check=5).err.count("content store")
    agent.pact("commit", "-m", "x", check=5)
    for words in (
        ["extend", change["id"], "5m"],
        ["hold", "place", "--reason", "r", "--for", "1h", change["id"]],
        ["hold", "release"],
        ["status"],
        ["diff"],
    ):
        agent.pact(*words)
    agent.declare('[sysctl]\n"net.ipv4.ip_default_ttl" = 70\n')
    assert agent.world.sh("cat /proc/sys/net/ipv4/ip_default_ttl").out == "70\n"
    agent.world.path(other).chmod(0o600)
    agent.drifted(f"file:{other}")
    agent.pact("commit", f"file:{other}", "-m", "its content is in the store already")
    declared = agent.pact("export").out
    assert 'mode = "0600"' in declared and "small" in declared
    assert "error" not in agent.status()["journal"]


@pytest.mark.invariant("F63")
def test_contents_that_nothing_needs_any_more_make_room_before_a_commit_is_refused(small: Agent) -> None:
    agent = small
    path = agent.file("turns.conf", b"declared\n")
    agent.world.path(path).write_bytes(noise(40 << 10))
    agent.drifted(f"file:{path}")
    agent.pact("rollback")  # what it replaced is kept for 2 s
    wanted = noise(40 << 10)

    def committed() -> bool:
        agent.world.path(path).write_bytes(wanted)
        agent.drifted(f"file:{path}")
        return agent.pact("commit", "-m", "as soon as there is room", check=None).code == 0

    wait_until(committed, "the old contents were forgotten", 20)
    agent.drift(path, "other\n")
    agent.pact("rollback")
    assert agent.world.path(path).read_bytes() == wanted, "what is committed can be restored"


@pytest.mark.invariant("F63")
def test_adopt_names_what_the_store_has_no_room_for(small: Agent) -> None:
    agent = small
    nearly_full(agent)
    for n in range(3):
        agent.world.path(f"{TOP}/more{n}.bin").write_bytes(noise(12 << 10))
    found = agent.adopt(f"file:{TOP}/more*.bin")
    assert found["adopted"] == 3 and len(found["not_restorable"]) >= 2
    assert any("the content store is full" in note for note in found["notes"]), found


@pytest.mark.invariant("F63", "R2")
def test_an_expired_change_that_cannot_be_saved_is_blocked_with_that_reason(another: Callable[..., Agent]) -> None:
    agent = another(state={"store_limit": "64KiB", "keep": "1h"}, window={"base": "1s"})
    path = nearly_full(agent)
    mine = noise(32 << 10)
    agent.world.path(path).write_bytes(mine)
    wait_until(lambda: (agent.change_of(f"file:{path}") or {}).get("state") == "blocked", "it is blocked")
    assert "the content store is full" in agent.change_of(f"file:{path}")["reason"]
    assert agent.world.path(path).read_bytes() == mine
    assert "error" not in agent.status()["journal"]


# -- a backlog ------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("F64", "F3")
def test_of_a_backlog_larger_than_the_room_that_came_back_as_much_is_recorded_as_fits(
    make_agent: Callable[..., Agent], world: Any
) -> None:
    agent, count = make_agent(), 1500
    state = f"{TOP}/state"
    world.sh(f"mkdir -p {state} {TOP}/many; mount -t tmpfs -o size=12m,mode=700 tmpfs {state}")
    agent.configure({"state": {"dir": state}})
    agent.start()
    every = f"for i in $(seq {count}); do echo $1 > {TOP}/many/$i; done"
    world.sh(f"set -- a; {every}")
    agent.adopt(f"file:{TOP}/many/*")
    world.sh(f"cat /dev/zero > {state}/filler", check=False)
    world.sh(f"set -- b; {every}")
    wait_until(lambda: agent.status().get("unrecorded", {}).get("count") == count, "all is seen", 30)
    world.sh(f"truncate -s -{600 << 10} {state}/filler")
    fits = wait_until(lambda: agent.status()["drifted"], "some of it is recorded", 30)
    assert 0 < fits < count
    wait_until(
        lambda: agent.status()["drifted"] + agent.status().get("unrecorded", {}).get("count", 0) == count,
        "the others are still known",
    )
    assert "full" in agent.status()["journal"]["error"] or agent.status()["drifted"] == count
    world.sh(f"rm {state}/filler")
    wait_until(lambda: agent.status()["drifted"] == count, "all of it is recorded", 30)
    assert "unrecorded" not in agent.status()
    agent.pact("rollback", "--all")
    agent.stop()
