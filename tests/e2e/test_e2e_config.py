"""What the configuration changes in a running agent: weights, ignored resources, the store's limit, the observers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

MakeAgent = Callable[..., Agent]
HOUR_NS = 3_600_000_000_000


def started(make_agent: MakeAgent, **config: Any) -> Agent:
    agent = make_agent(**config)
    agent.start()
    return agent


@pytest.mark.invariant("A2")
@pytest.mark.invariant("A3")
def test_weights_and_severities_give_the_magnitude_and_the_window_exactly(make_agent: MakeAgent) -> None:
    agent = started(
        make_agent,
        drift={"weights": {"files": 4.0, "kernel": 8.0}, "severity": {"file": 0.25}},
        window={"base": "1h", "floor": "0s", "sensitivity": 2.0},
    )
    one, two = agent.file("one.conf"), agent.file("two.conf")
    agent.drift(one)
    opened = agent.newest("window_opened")["data"]
    assert agent.status()["magnitude"] == 0.5, "sqrt(4 * 0.25^2)"
    assert (opened["magnitude_n"], opened["window_ns"]) == (500_000_000, HOUR_NS // 2), "1 h / (1 + 0.5 * 2)"
    agent.world.sh(f"chmod 600 {two}")
    agent.drifted(f"file:{two}")
    whole = math.sqrt(4 * 0.25**2 + 4 * 0.125**2)
    status = agent.status()
    assert status["magnitude"] == round(whole, 6) == status["dimensions"]["files"]
    assert abs(status["window_s"] - 3600 / (1 + 2 * whole)) < 0.002
    agent.adopt("sysctl:net.core.somaxconn")
    agent.world.sh("echo 77 > /proc/sys/net/core/somaxconn")
    agent.drifted("sysctl:net.core.somaxconn")
    status = agent.status()
    assert status["dimensions"]["kernel"] == round(math.sqrt(8 * 0.05**2), 6), "the others keep their defaults"
    assert status["magnitude"] == round(math.sqrt(whole**2 + 8 * 0.05**2), 6)
    agent.declare(f'[file."{TOP}/three.conf"]\ncontent = "x"\nweight = 1\nseverity = 1\n')
    agent.drift(f"{TOP}/three.conf")
    assert agent.status()["magnitude"] == round(math.sqrt(whole**2 + 8 * 0.05**2 + 1), 6), "an entry's own count first"
    agent.close()


def test_what_is_ignored_is_not_declared_not_adopted_and_never_drifts(make_agent: MakeAgent) -> None:
    agent = started(make_agent)
    path, other = agent.file("ign/a.conf"), agent.file("b.conf")
    earlier = agent.file("ign/earlier.conf")
    agent.drift(earlier)
    agent.stop()
    agent.configure({"drift": {"ignore": [f"file:{TOP}/ign/**", "sysctl:net.core.*"]}})
    agent.start()
    assert agent.status()["changes"] == [], "what had drifted before it was ignored is no drift any more"
    agent.world.path(path).write_text("drifted\n")
    agent.drift(other)
    assert agent.change_of(f"file:{path}") is None, "also what was declared before it was ignored"
    agent.restart()
    assert agent.change_of(f"file:{path}") is None
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == agent.world.path(earlier).read_text() == "drifted\n"
    done = agent.declare('[sysctl]\n"net.core.somaxconn" = 1\n', check=2)
    assert "sysctl:net.core.*" in done.err
    notes = agent.ask("adopt", patterns=[f"file:{TOP}/**"])["result"]["notes"]
    assert any(f"ignored by file:{TOP}/ign/**" in n for n in notes)
    agent.close()


@pytest.mark.invariant("R4")
def test_a_full_store_is_said_at_adopt_and_stops_a_rollback_that_could_not_save(make_agent: MakeAgent) -> None:
    agent = started(make_agent, state={"store_limit": "64KiB"})
    kept, unkept = f"{TOP}/kept.bin", f"{TOP}/unkept.bin"
    agent.world.sh(f"head -c 40000 /dev/urandom > {kept}; head -c 40000 /dev/urandom > {unkept}")
    assert agent.json("adopt", f"file:{kept}")["not_restorable"] == []
    assert agent.json("adopt", f"file:{unkept}")["not_restorable"] == [f"file:{unkept}"]
    agent.world.sh(f"head -c 40000 /dev/urandom > {kept}")
    change = agent.drifted(f"file:{kept}")
    drifted = agent.world.path(kept).read_bytes()
    done = agent.pact("rollback", check=1)
    assert "store" in done.err
    (change,) = agent.status()["changes"]
    assert change["state"] == "blocked" and "store_limit" in change["reason"]
    assert agent.world.path(kept).read_bytes() == drifted, "the only copy of somebody's work stays"
    small = agent.file("small.conf")
    agent.drift(small)
    agent.pact("rollback", f"file:{small}")
    assert agent.world.path(small).read_text() == "declared\n", "what fits is still restored"
    seq = agent.status()["journal"]["seq"]
    time.sleep(2.5)  # more than one rescan and one try to write the journal
    assert agent.status()["journal"] == {"seq": seq, "replicated": seq}, "nothing goes back and forth"
    agent.pact("commit", change["id"], "-m", "by digest", check=5)
    agent.pact("commit", change["id"], "-m", "by digest", "--without-content")
    assert agent.status()["state"] == "committed"
    assert "cannot be written" not in agent.log()
    agent.close()


@pytest.mark.invariant("O1")
@pytest.mark.parametrize(
    ("observe", "files"),
    [
        ({"fanotify": False, "rescan": "1h"}, "inotify"),
        ({"fanotify": False, "inotify": False, "rescan": "0.4s"}, "poll"),
    ],
)
def test_without_fanotify_drift_is_seen_all_the_same_and_is_nobody_s(
    make_agent: MakeAgent, observe: dict[str, Any], files: str
) -> None:
    agent = started(make_agent, observe=observe)
    path = agent.file("seen.conf")
    agent.world.sh("echo 4096 > /proc/sys/net/core/somaxconn")
    agent.adopt("sysctl:net.core.somaxconn")
    agent.world.sh(f"echo drifted > {path}")
    seen = wait_until(lambda: agent.newest("drift_detected"), "the file's drift is recorded", 8)
    assert (seen["data"]["resource"], seen["data"]["owner"]["user"]) == (f"file:{path}", "unattributed")
    agent.world.sh("echo 4097 > /proc/sys/net/core/somaxconn")
    wait_until(
        lambda: agent.newest("drift_detected")["data"]["resource"] == "sysctl:net.core.somaxconn",
        "the sysctl's drift is recorded",
        8,
    )
    health = agent.status()["observers"]
    assert any(name == files or files in why for name, why in health.items()), health
    (change,) = agent.status()["changes"]
    assert len(change["resources"]) == 2 and change["owner"]["user"] == "unattributed"
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"
    agent.close()


@pytest.mark.invariant("E3")
def test_an_emergency_that_ends_with_a_rollback_ends_although_one_change_is_in_use(make_agent: MakeAgent) -> None:
    agent = started(make_agent)
    used, free = agent.file("used.conf"), agent.file("free.conf", mode=0o666)
    agent.pact("emergency", "start", "--reason", "disk replaced")
    agent.drift(used)
    agent.drift_by(1234, free, "drifted")
    assert len(agent.status()["changes"]) == 2
    holder = agent.world.python(f"f = open({used!r})\nready()")
    done = agent.pact("emergency", "end", "--rollback", check=10)
    assert "used by root" in done.out and agent.status()["changes"][0]["consumers"][0]["pid"] == holder.pid
    status = agent.status()
    assert status["emergency"] is None and status["state"] == "blocked"
    (change,) = status["changes"]
    assert (change["resources"], change["state"]) == ([f"file:{used}"], "blocked")
    assert agent.world.path(free).read_text() == "declared\n" and agent.world.path(used).read_text() == "drifted\n"
    assert agent.newest("emergency_ended")["data"]["how"] == "rollback"
    agent.world.end(holder)
    agent.pact("rollback")
    assert agent.status()["state"] == "committed"
    agent.close()


def test_a_store_full_of_what_is_declared_is_not_searched_again_and_again(make_agent: MakeAgent) -> None:
    agent = started(make_agent, state={"store_limit": "64KiB"}, observe={"rescan": "1s"})
    full = f"{TOP}/full.bin"
    agent.world.sh(f"head -c 63000 /dev/urandom > {full}")
    assert agent.json("adopt", f"file:{full}")["not_restorable"] == []
    time.sleep(12)  # two looks at the store's room
    assert agent.log().count("nearly full") == 1
    assert agent.world.path(full).stat().st_size == 63000
    agent.world.sh(f"rm {full}")
    agent.drifted(f"file:{full}")
    agent.pact("rollback", "--all")
    assert agent.world.path(full).stat().st_size == 63000, "declared contents are never forgotten"
    agent.close()
