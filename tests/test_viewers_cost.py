"""Whatever a viewer asks, the loop is at it for a moment only: what is much is done in steps, or by another thread."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest

from pact.agent.config import Config
from pact.agent.control import Client
from pact.agent.loop import Agent
from pact.core.node.events import Caller
from pact.limits import REQUEST_MAX
from pact.model import Actor, Owner

FILES = 8
ANN = Owner("uid:1234", "ann", 1234)
VIEWER = Caller(Actor("ann", 1234, "viewer", "socket"), ANN)

pytestmark = [pytest.mark.root, pytest.mark.invariant("S8")]


@pytest.fixture
def place() -> Iterator[Path]:
    with TemporaryDirectory(dir="/var/tmp", prefix="cost-") as top:
        os.chmod(top, 0o755)
        yield Path(top)


@pytest.fixture
def agent(place: Path) -> Iterator[Agent]:
    """All that is declared has drifted."""
    for n in range(FILES):
        (place / f"f{n}").write_text("one")
    entries = (f'[file."{place}/f{n}"]\ncontent = "one"\n' for n in range(FILES))
    (place / "declared.toml").write_text("".join(entries))
    agent = Agent(
        Config(
            name="n1",
            state_dir=str(place / "state"),
            socket=str(place / "run/s"),
            declared=[str(place / "declared.toml")],
        )
    )
    try:
        for n in range(FILES):
            (place / f"f{n}").write_text("two")
            agent.watching.touch(f"file:{place}/f{n}", None)
        agent.catch_up()
        yield agent
    finally:
        agent.close()


def test_empty_lines_and_many_requests_at_once_cost_what_one_does() -> None:
    """One read of empty lines took thirty milliseconds; with all connections of an account each turn took a second."""

    def read(text: bytes) -> tuple[Client, float]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            theirs.sendall(text)
            client = Client(ours, VIEWER)
            began_s = time.thread_time()
            client.read()
            return client, time.thread_time() - began_s

    def least_s(text: bytes) -> float:
        return min(read(text)[1] for _ in range(9))

    usual_s = least_s(b'{"v":1,"op":"ping",' + b" " * (REQUEST_MAX - 100))
    for text in (b"\n" * REQUEST_MAX, b" \n" * (REQUEST_MAX // 2), b'{"v":1,"op":"ping"}\n' * (REQUEST_MAX // 20)):
        assert least_s(text) < 20 * usual_s
        assert len(read(text)[0].lines) <= 1


def test_the_records_that_are_followed_are_written_elsewhere_each_once(
    agent: Agent, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand records to somebody who read them as fast as they came kept the loop for two seconds and a half."""
    by: list[int] = []
    line = agent.veil.record_line

    def noted(body: bytes, hash_: str, caller: Caller) -> bytes:
        by.append(threading.get_ident())
        return line(body, hash_, caller)

    monkeypatch.setattr(agent.veil, "record_line", noted)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(agent.control.path)
        agent.control.accept()
        (client,) = agent.control.clients.values()
        reader.sendall(b'{"v":1,"op":"log","args":{"follow":true},"alive":true}\n')
        reader.setblocking(False)
        got = bytearray()
        before = agent.node.state.seq
        for turn in itertools.count():
            if turn in (3, 30):  # while they are told, and after
                (place / "f0").write_text(f"turn {turn}")
                agent.watching.touch(f"file:{place}/f0", None)
                agent.catch_up()
            agent._wake()  # a turn does not wait
            agent._turn(-1)
            try:
                got += reader.recv(1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
            if client.watching and turn > 60:
                break
            assert turn < 3_000
    said = [orjson.loads(row) for row in got.splitlines()]
    assert [s["record"]["seq"] for s in said if "record" in s] == list(range(agent.node.state.seq + 1))
    assert {"begun": True} in said and agent.node.state.seq >= before + 2
    assert threading.get_ident() not in by[: before + 1]
