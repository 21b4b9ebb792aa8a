"""Services on an image without systemd: declared with commands, a pid file or a program, and watched by pidfd."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"observe": {"rescan": "1h"}}


@pytest.fixture
def sleeper(world: World) -> Iterator[str]:
    """A program of its own, so that nobody else runs it."""
    world.sh(f"cp /bin/sleep {TOP}/sleeper")
    yield f"{TOP}/sleeper"
    for pid in pids(world, f"{TOP}/sleeper"):
        os.kill(pid, signal.SIGKILL)


def pids(world: World, program: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/exe") == program:
                found.append(int(name))
        except OSError:
            continue
    return found


def daemon(sleeper: str, **more: str) -> str:
    lines = {
        "state": '"running"',
        "backend": '"process"',
        "executable": f'"{sleeper}"',
        "start": f'["/bin/sh", "-c", "{sleeper} 86400 & "]',
        "timeout": '"5s"',
    } | more
    return "[service.d]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items() if v)


def actual(agent: Agent) -> Any:
    return next((r["actual"] for r in agent.json("diff")["resources"] if r["id"] == "service:d"), None)


def test_a_death_is_seen_at_once_and_it_is_started_again(agent: Agent, world: World, sleeper: str) -> None:
    world.sh(f"{sleeper} 86400 >/dev/null 2>&1 &")
    agent.declare(daemon(sleeper))
    wait_until(lambda: agent.status()["state"] == "committed", "it runs")
    (pid,) = pids(world, sleeper)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    agent.drifted("service:d")
    assert time.monotonic() - began < 2
    assert actual(agent)["state"] == "stopped" and actual(agent)["backend"] == "process"
    agent.pact("rollback", "--all")
    assert len(pids(world, sleeper)) == 1
    wait_until(lambda: agent.status()["state"] == "committed", "it is as declared")
    again = agent.pact("export").out
    assert 'backend = "process"' in again and 'timeout = "5s"' in again
    assert agent.declare(again).json()["unchanged"] == 1


def test_what_is_declared_is_brought_about_at_once_and_another_way_to_look_when_it_is_on_record(
    agent: Agent, world: World, sleeper: str
) -> None:
    agent.declare(daemon(sleeper))
    assert len(pids(world, sleeper)) == 1 and agent.status()["state"] == "committed"
    answer = agent.declare(daemon(sleeper, executable="", status='["/bin/false"]')).json()
    assert answer["notes"] == ["service:d: it is looked at when its declaration is on record"]
    agent.drifted("service:d")


def test_it_is_stopped_by_a_signal_within_its_limit_or_it_is_failed(agent: Agent, world: World, sleeper: str) -> None:
    stubborn = world.python(
        "import signal,subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"p = subprocess.Popen(['{sleeper}', '86400'], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))\n"
        "ready()"
    )
    said = agent.declare(daemon(sleeper, state='"stopped"', timeout='"1s"'), check=1).out
    assert "it did not stop within 1 s" in said and pids(world, sleeper)
    world.end(stubborn)


@pytest.mark.invariant("F80")
def test_a_daemon_that_does_not_stay_up_is_failed(agent: Agent, world: World, sleeper: str) -> None:
    assert (
        "does not stay up" in agent.declare(daemon(sleeper, start=f'["/bin/sh", "-c", "{sleeper} 1 & "]'), check=1).out
    )


def test_a_daemon_without_a_command_that_starts_it_needs_a_person(agent: Agent, sleeper: str) -> None:
    assert "a person must" in agent.declare(daemon(sleeper, start=""), check=1).out


def test_a_start_command_that_hangs_ends_with_its_limit(agent: Agent, sleeper: str) -> None:
    began = time.monotonic()
    said = agent.declare(daemon(sleeper, start='["/bin/sleep", "600"]', timeout='"0.5s"'), check=1).out
    assert "did not end within 0.5 s" in said and time.monotonic() - began < 8


def test_a_command_that_others_could_have_written_is_not_run(agent: Agent, world: World, sleeper: str) -> None:
    world.sh(f"printf '#!/bin/sh\\n' > {TOP}/evil; chmod 777 {TOP}/evil")
    assert "it is not run" in agent.declare(daemon(sleeper, start=f'["{TOP}/evil"]'), check=1).out


def test_clients_of_its_sockets_are_consumers(agent: Agent, world: World, base: Path) -> None:
    pidfile = f"{TOP}/server.pid"
    server = world.python(
        f"import socket\nopen('{pidfile}','w').write(str(os.getpid()))\n"
        f"u = socket.socket(socket.AF_UNIX); u.bind('{TOP}/server.sock'); u.listen()\n"
        "import threading\nkept=[]\n"
        "threading.Thread(target=lambda: [kept.append(u.accept()) for _ in range(9)], daemon=True).start()\nready()"
    )
    client = world.python(f"import socket\nu = socket.socket(socket.AF_UNIX); u.connect('{TOP}/server.sock')\nready()")
    text = f'[service.d]\nstate = "stopped"\nbackend = "process"\npidfile = "{pidfile}"\n'
    said = agent.declare(text, check=10)
    assert "server.sock" in said.out + said.err
    world.end(client)
    agent.declare(text)
    assert server.wait(10) == -signal.SIGTERM
    world.end(server)
