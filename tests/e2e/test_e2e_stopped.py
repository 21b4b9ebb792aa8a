"""An agent that does not answer ends no command late; one that is at work is waited for."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import HUNG_FUSE, TOP, Agent, Done, World, wait_until

START_S = 2.5  # what an interpreter takes to start on a busy machine, and to end
EVERYTHING = [
    "status",
    "diff",
    "log",
    "watch",
    "log --follow",
    "export",
    "show 0",
    "consumers file:/srv/f",
    "check",
    "commit --all -m m",
    "rollback --all",
    "extend 5m",
    "apply -",
    "declare -",
    "adopt file:/srv/**",
    "emergency start --reason r",
    "emergency end --commit -m m --yes",
    "hold place --reason r --for 1h",
    "hold release",
    "redo c1",
    "show 0 --restore /nonexistent",
]


@contextmanager
def stopped(agent: Agent) -> Iterator[int]:
    """``kill -STOP``, as long as this lasts. ``nsenter`` has become the agent itself."""
    assert agent.process is not None
    os.kill(agent.process.pid, signal.SIGSTOP)
    try:
        yield agent.process.pid
    finally:
        os.kill(agent.process.pid, signal.SIGCONT)


def timed(agent: Agent, *args: str, **kwargs: Any) -> tuple[float, Done]:
    began_s = time.monotonic()
    done = agent.pact(*args, **kwargs)
    return time.monotonic() - began_s, done


@pytest.mark.invariant("F58")
def test_check_answers_within_two_seconds_for_an_agent_that_is_stopped(agent: Agent) -> None:
    with stopped(agent):
        took_s, done = timed(agent, "check", check=5)
        assert 1.5 < took_s < 2 + START_S and done.out == ""
        assert re.search(r"is stopped and has not answered for \d", done.err) and "kill -CONT" in done.err
        assert f"its last sign of life was at {time.strftime('%Y-%m-%dT', time.gmtime())}" in done.err
        document = json.loads(agent.pact("--json", "check", "--timeout", "300ms", check=5).out)
        assert document["exit"] == 5 and "is stopped" in document["error"]
    agent.pact("check", check=None)


@pytest.mark.invariant("F58")
@pytest.mark.parametrize("command", EVERYTHING)
def test_every_command_ends_within_its_timeout_for_an_agent_that_is_stopped(agent: Agent, command: str) -> None:
    with stopped(agent):
        took_s, done = timed(agent, *command.split(), "--timeout", "0.5", check=5, input=b"[sysctl]\n'net.a.b' = 1\n")
    assert took_s < 0.5 + START_S, took_s
    assert "is stopped and has not answered" in done.err


def test_a_timeout_may_stand_before_the_command(agent: Agent) -> None:
    with stopped(agent):
        took_s, _ = timed(agent, "--timeout", "500ms", "status", check=5)
    assert took_s < 0.5 + START_S


def test_status_gives_a_stopped_agent_up_after_ten_seconds(agent: Agent) -> None:
    with stopped(agent):
        took_s, done = timed(agent, "status", check=5)
    assert 9 < took_s < 10 + START_S and "for 10s" in done.err


def test_a_request_that_a_stopped_agent_does_not_read_ends_too(agent: Agent) -> None:
    text = "".join(f'[file."{TOP}/big{n}"]\ncontent = "{n}{"x" * 60000}"\n' for n in range(20))
    with stopped(agent):
        took_s, _ = timed(agent, "declare", "-", "--timeout", "1", check=5, input=text.encode())
    assert took_s < 1 + START_S
    assert f"{TOP}/big" not in agent.pact("export").out, "what was not read whole was not done"


def test_what_was_given_up_before_it_was_begun_is_not_done(agent: Agent) -> None:
    path = agent.file("f")
    seq = agent.status()["journal"]["seq"]
    with stopped(agent):
        for command in ("adopt file:/srv/**", "emergency start --reason r", "hold place --reason r --for 1h"):
            assert "look before you repeat it" in agent.pact(*command.split(), "--timeout", "300ms", check=5).err
        agent.pact("declare", "-", "--timeout", "300ms", check=5, input=f'[file."{path}"]\ncontent = "new"\n'.encode())
    time.sleep(0.5)
    assert agent.status()["journal"]["seq"] == seq and agent.world.path(path).read_text() == "declared\n"
    assert agent.status()["holds"] == [] and agent.status()["emergency"] is None


def test_an_agent_that_goes_on_in_time_is_waited_for(agent: Agent) -> None:
    with stopped(agent):
        asking = agent.world.popen(
            [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "check"], stdout=-1, stderr=-1
        )
        time.sleep(0.8)
    assert asking.wait(10) in (0, 11)


def test_a_socket_whose_queue_is_full_is_given_up(tmp_path: Path, agent: Agent) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        others = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for other in others:
            other.setblocking(False)
            try:
                other.connect(str(tmp_path / "s"))
            except BlockingIOError:
                break
        began_s = time.monotonic()
        done = agent.world.call(
            [sys.executable, "-m", "pact.cli.main", "--socket", str(tmp_path / "s"), "check"], check=False
        )
        assert done.code == 5 and "has taken no connection" in done.err, done
        assert 1.5 < time.monotonic() - began_s < 2 + START_S
        for other in others:
            other.close()


@pytest.mark.invariant("F58")
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE")
def test_what_takes_long_is_waited_for_unless_somebody_says_how_long(agent: Agent) -> None:
    path = f"{TOP}/h"
    agent.world.sh(f"mkdir -p {path}")
    server = agent.world.python(HUNG_FUSE, path)
    command = [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "consumers", f"file:{path}/x"]
    try:
        asking = agent.world.popen(command, stdout=-1, stderr=-1)
        took_s, done = timed(agent, "consumers", f"file:{path}/x", "--timeout", "3", check=5)
        assert took_s < 3 + START_S
        assert "is at work on it and has not ended for 3s" in done.err and "pact status" in done.err
        with agent.connect() as plain:
            plain.sendall(
                json.dumps({"v": 1, "op": "consumers", "args": {"resource": f"file:{path}/x"}}).encode() + b"\n"
            )
            plain.settimeout(4)
            with pytest.raises(TimeoutError):
                plain.recv(100)  # who reads one line to a request gets one
        time.sleep(5)
        assert asking.poll() is None, "the agent is at work on it"
    finally:
        agent.world.end(server)
        agent.world.sh(f"umount -l {path}")
    wait_until(lambda: asking.poll() is not None, "the answer comes when the file system is gone")


def test_a_watch_that_has_begun_waits_without_end(agent: Agent) -> None:
    watching = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "watch", "--timeout", "1"],
        stdout=-1,
        stderr=-1,
    )
    time.sleep(3)
    assert watching.poll() is None
    path = agent.file("f")
    agent.drift(path)
    assert watching.stdout is not None and b"adopted" in watching.stdout.readline()
    agent.world.end(watching)


def test_an_aggregator_that_is_stopped_is_given_up(world: World, tmp_path: Path) -> None:
    """A stopped process's queue still takes connections, and nothing comes back."""
    world.call([sys.executable, "-m", "pact.cli.main", "keygen", "me", "--dir", str(tmp_path)])
    silent = world.python("import socket\ns=socket.create_server(('127.0.0.1', 7417))\nready()\n")
    try:
        world.sh("ip link set lo up")
        for command in ("status", "check", "watch"):
            began_s = time.monotonic()
            done = world.call(
                [
                    sys.executable,
                    "-m",
                    "pact.cli.main",
                    "--via",
                    "tcp://127.0.0.1:7417",
                    "--server-key",
                    str(tmp_path / "me.key"),
                    "--key",
                    str(tmp_path / "me.secret"),
                    command,
                    "--nodes",
                    "n1",
                    "--timeout",
                    "1",
                ],
                check=False,
            )
            assert done.code == 5, done
            assert time.monotonic() - began_s < 1 + START_S, command
    finally:
        world.end(silent)
