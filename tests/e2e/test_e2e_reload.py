"""SIGHUP: the configuration is read again, or the log says what wants a restart."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from harness import Agent, wait_until


def hup(agent: Agent) -> str:
    """What the log says of it."""
    assert agent.process is not None
    before = len(agent.log())
    os.kill(agent.process.pid, signal.SIGHUP)
    wait_until(lambda: "configuration was" in agent.log()[before:], "it was read again, or not")
    agent.ask("ping")
    return agent.log()[before:]


def test_the_mode_and_the_window_change_at_once(agent: Agent) -> None:
    path = agent.file("f")
    agent.configure({"mode": {"enforcement": "observe"}})
    assert "[mode] enforcement" in hup(agent)
    assert agent.status()["mode"] == "observe"
    change = agent.drift(path)
    assert change["deadline"] is None
    agent.configure({"mode": {"enforcement": "enforce"}, "window": {"base": "1.5s"}})
    assert "[window] base" in hup(agent)
    assert agent.newest("agent_started")["data"] == {
        **agent.newest("agent_started")["data"],
        "reloaded": True,
        "unclean": False,
    }
    agent.settled(f"file:{path}", 10)  # existing drift opened at that moment, and its window has ended
    assert agent.world.path(path).read_text() == "declared\n"
    agent.configure({"window": {"base": "1h"}})
    hup(agent)
    agent.restart()
    assert agent.status()["mode"] == "enforce" and agent.status()["window_s"] == 3600


def test_groups_get_their_roles_at_once(agent: Agent) -> None:
    path = agent.file("f")
    agent.drift(path)
    who: dict[str, Any] = {"uid": 1237, "groups": [8]}
    agent.pact("rollback", "--all", **who, check=3)
    agent.configure({"access": {"admin_groups": ["mail"]}})
    hup(agent)
    agent.pact("rollback", "--all", **who)
    agent.configure({"access": {"admin_groups": []}})
    hup(agent)
    assert agent.json("status", **who)["you"]["role"] == "viewer"


def test_who_is_connected_loses_his_role_at_once_too(agent: Agent) -> None:
    path = agent.file("f")
    agent.drift(path)
    agent.configure({"access": {"admin_groups": ["mail"]}})
    hup(agent)
    request = json.dumps({"op": "rollback", "args": {"targets": [], "all": True}})
    script = (
        "import socket\nos.setgroups([8])\nos.setgid(1237)\nos.setuid(1237)\ns = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\nready()\ns.sendall(sys.argv[2].encode() + b'\\n')\n"
        "print(s.recv(65536).decode(), flush=True)\n"
    )
    who = agent.world.python(script, str(agent.socket), request)
    assert who.stdin is not None and who.stdout is not None
    agent.ask("ping")  # it has been accepted by now
    agent.configure({"access": {"admin_groups": []}})
    hup(agent)
    who.stdin.close()  # it goes on
    answer = who.stdout.readline()
    agent.world.end(who)
    assert json.loads(answer)["exit"] == 3, answer
    assert agent.world.path(path).read_text() != "declared\n"


def test_hooks_are_run_from_the_new_place(agent: Agent) -> None:
    hooks = agent.base / "other.d"
    hooks.mkdir(mode=0o755)
    (hooks / "note").write_text(f"#!/bin/sh\ncat >> {agent.base}/noted\n")
    (hooks / "note").chmod(0o755)
    agent.configure({"hooks": {"dir": str(hooks)}})
    assert "[hooks] dir" in hup(agent)
    agent.file("f")
    wait_until(
        lambda: (agent.base / "noted").exists() and "adopted" in (agent.base / "noted").read_text(), "it was run"
    )


def test_what_the_agent_is_built_on_wants_a_restart_and_is_named(agent: Agent) -> None:
    agent.configure({"state": {"keep": "9d"}, "observe": {"rescan": "9s"}, "cluster": {"rack": ""}})
    said = hup(agent)
    assert "restart the agent for [state] keep, [observe] rescan" in said and "nothing that runs has changed" in said
    agent.configure({"state": {"keep": "30d"}, "observe": {"rescan": "2s"}})


def test_a_file_that_says_nonsense_changes_nothing(agent: Agent) -> None:
    text = agent.config_path.read_text()
    agent.config_path.write_text(text + "[window\n")
    assert "was not read again" in hup(agent)
    agent.config_path.write_text(text.replace('base = "1h"', 'base = "soon"'))
    assert "soon" in hup(agent)
    assert agent.status()["window_s"] == 3600
    agent.config_path.write_text(text)


def test_notices_are_switched_off_at_once(agent: Agent) -> None:
    text = agent.config_path.read_text()
    agent.config_path.write_text(text.replace("[notify]\nterminals = false\n", "[notify]\nterminals = true\n"))
    said = hup(agent)
    assert "[notify] terminals" in said and "restart" not in said
    agent.config_path.write_text(text)
    hup(agent)
