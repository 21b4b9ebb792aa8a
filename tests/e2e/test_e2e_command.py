"""Declared commands with a real agent: seen by their own turns, rolled back where they can be, and blocked elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

LEVEL = f"{TOP}/level"


def declaration(**more: Any) -> str:
    lines = {"observe": f'["cat", "{LEVEL}"]', "state": '"good"', "every": '"1s"', **more}
    return "[command.level]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def put(agent: Agent, text: str) -> None:
    agent.world.path(LEVEL).write_text(text + "\n")


def known(agent: Agent) -> None:
    wait_until(lambda: agent.status()["unreadable"] == 0, "it has run")


RESTORE = f"""["sh", "-c", "echo good > {LEVEL}"]"""


def test_its_drift_is_seen_shown_and_rolled_back_by_its_restore(agent: Agent) -> None:
    put(agent, "good")
    agent.declare(declaration(restore=RESTORE))
    known(agent)
    assert agent.status()["state"] == "committed"
    put(agent, "bad")
    change = agent.drifted("command:level")
    assert change["owner"]["user"] == "unattributed"
    (shown,) = agent.json("diff")["resources"]
    assert (shown["declared"]["value"], shown["actual"]["value"]) == ("good", "bad")
    assert "command:level" in agent.pact("rollback", "--all", "--dry-run").out
    agent.pact("rollback", "--all")
    assert agent.world.path(LEVEL).read_text() == "good\n"
    assert agent.status()["state"] == "committed"


def test_without_restore_it_ends_blocked_and_a_person_must_mend_it(another: Callable[..., Agent]) -> None:
    agent = another(window={"base": "1s", "floor": "0.2s"})
    put(agent, "good")
    agent.declare(declaration())
    known(agent)
    put(agent, "bad")
    change = wait_until(lambda: (c := agent.change_of("command:level")) and c["state"] == "blocked" and c, "blocked")
    assert "a person must mend it" in change["reason"]
    put(agent, "good")
    agent.settled("command:level")
    assert agent.status()["state"] == "committed"


def test_a_commit_takes_the_state_and_keeps_how_to_look(agent: Agent) -> None:
    put(agent, "good")
    agent.declare(declaration(restore=RESTORE, timeout='"3s"'))
    known(agent)
    put(agent, "better")
    agent.drifted("command:level")
    agent.pact("commit", "--all", "-m", "it is better")
    out = agent.pact("export").out
    assert 'state = "better"' in out and 'observe = ["cat"' in out and 'timeout = "3s"' in out and "restore" in out
    again = agent.base / "again.toml"
    again.write_text(out)
    agent.pact("declare", str(again))
    assert agent.status()["state"] == "committed"
    put(agent, "worse")
    agent.drifted("command:level")
    agent.restart()
    assert agent.drifted("command:level")
    agent.pact("adopt", "command:level", check=None)
    put(agent, "better")
    agent.settled("command:level")


def test_what_is_declared_first_is_looked_at_after_its_record_and_may_be_drift(agent: Agent) -> None:
    put(agent, "bad")
    done = agent.declare(declaration(restore=RESTORE), check=None)
    assert done.code in (0, 1), done
    agent.drifted("command:level")
    agent.pact("rollback", "--all")
    assert agent.world.path(LEVEL).read_text() == "good\n"


def test_a_viewer_declares_none_and_runs_none(agent: Agent) -> None:
    count = f"{TOP}/count"
    refused = agent.pact("declare", "-", uid=1234, input=declaration().encode(), check=None)
    assert refused.code not in (0, 1), refused
    agent.declare(declaration(observe=f'["sh", "-c", "echo >> {count}; echo good"]', every='"1h"'))
    known(agent)
    runs = len(agent.world.path(count).read_text())
    for _ in range(20):
        agent.pact("status", uid=1234, check=None)
        agent.pact("diff", uid=1234, check=None)
        agent.ask("status")
    assert len(agent.world.path(count).read_text()) == runs
    agent.world.path(count).unlink()


def test_who_uses_it_blocks_its_rollback_and_is_named(agent: Agent) -> None:
    put(agent, "good")
    user = agent.world.python("ready()\n")
    try:
        agent.declare(declaration(restore=RESTORE, consumers=f'["echo", "{user.pid}"]'))
        known(agent)
        put(agent, "bad")
        agent.drifted("command:level")
        done = agent.pact("rollback", "--all", check=10)
        assert "command:level used by" in done.err + done.out
        assert agent.change_of("command:level")["consumers"][0]["pid"] == user.pid
        assert agent.world.path(LEVEL).read_text() == "bad\n"
    finally:
        agent.world.end(user)
    agent.pact("rollback", "--all", "--force")
    assert agent.world.path(LEVEL).read_text() == "good\n"


@pytest.mark.invariant("F72")
def test_what_fails_or_hangs_is_unreadable_with_its_reason_and_holds_up_nothing(agent: Agent) -> None:
    agent.declare(
        '[command.broken]\nobserve = ["sh", "-c", "echo no such thing >&2; exit 4"]\nstate = ""\nevery = "1s"\n'
        '[command.hung]\nobserve = ["sleep", "600"]\nstate = ""\ntimeout = "1s"\n'
        '[command.loud]\nobserve = ["head", "-c", "1G", "/dev/zero"]\nstate = ""\n',
        check=None,
    )
    said = wait_until(
        lambda: (out := agent.pact("status", "-v").out).count("it ended with 4") and "did not end" in out and out,
        "said",
    )
    assert "no such thing" in said and "did not end within 1 s" in said and "more than 65536 bytes" in said
    began = time.monotonic()
    assert agent.ask("ping")["ok"] and time.monotonic() - began < 1
    assert agent.status()["changes"] == []


def test_a_command_ends_with_the_agent(agent: Agent) -> None:
    number = f"59{agent.process.pid if agent.process else 0}"
    agent.declare(f'[command.hung]\nobserve = ["sleep", "{number}"]\nstate = ""\ntimeout = "5m"\n', check=None)
    wait_until(lambda: agent.world.sh(f"pgrep -xf 'sleep {number}'", check=False).out, "it runs")
    agent.stop()
    wait_until(lambda: not agent.world.sh(f"pgrep -xf 'sleep {number}'", check=False).out, "it is gone")
    agent.start()


def test_secret_state_is_shown_to_admins_only(agent: Agent) -> None:
    put(agent, "hidden-1")
    agent.declare(declaration(state='"hidden-0"', secret="true"), check=None)
    agent.drifted("command:level")
    assert "hidden-1" in agent.pact("diff").out
    assert "hidden" not in agent.pact("diff", uid=1234, check=None).out
    assert "hidden" not in agent.pact("export", uid=1234, check=None).out
    assert "hidden" not in agent.log()
