"""Whatever a viewer asks, the loop is at it for a moment only: what is much is done in steps, or by another thread."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from pact.agent import diffing, lookfirst, requests, views
from pact.agent.client import Client
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.remote import Remote
from pact.core.node.events import Caller
from pact.core.node.pace import Untracked
from pact.limits import REQUEST_MAX
from pact.model import Actor, Owner

FILES, NEW = 8, 2_000
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


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes half a turn: steps are counted, not timed."""
    for module, turn_ns in ((lookfirst, lookfirst.TURN_NS), (diffing, diffing.TURN_NS)):
        ticks = itertools.count(10**9, turn_ns // 2)
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic_ns=lambda ticks=ticks: next(ticks), monotonic=time.monotonic)
        )


def asked(agent: Agent, op: str, role: str = "viewer", **args: Any) -> list[Any]:
    """Asks, and returns where the answer will be."""
    out: list[Any] = []
    client = Remote(lambda raw: out.append(orjson.loads(raw)), Caller(Actor("ann", 1234, role, "cluster"), ANN))
    agent.requests.line(client, orjson.dumps({"v": 1, "op": op, "args": args}))
    return out


def counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[Any]:
    """The calls of a function from now on."""
    calls: list[Any] = []
    real = getattr(where, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, noted)
    return calls


def most_in_a_turn(agent: Agent, calls: list[Any], answer: list[Any]) -> int:
    """How many calls the request and each turn of the loop made, until the answer came."""
    most, before = len(calls), len(calls)
    for _ in range(100_000):
        if answer:
            return most
        agent.requests.first.turn()
        agent.requests.long_answers.turn(agent)
        agent._take_results()
        agent.control.serve(agent.requests.line)
        most, before = max(most, len(calls) - before), len(calls)
    raise AssertionError("no answer")


def with_new(agent: Agent, place: Path) -> list[str]:
    """Thousands of new things of ann's in a directory that is closed to others."""
    (place / "closed").mkdir(mode=0o700)
    names = [f"file:{place}/closed/n{n}" for n in range(NEW)]
    for name in names:
        agent.node.pace.put(name, Untracked(ANN, "2026-01-01T00:00:00Z", {"type": "file"}))
    return names


def test_a_change_that_is_named_thousands_of_times_is_gone_through_once(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten thousand members, ``diff`` of one change nine thousand times kept the loop for nine seconds, and over the
    tree every agent's."""
    (change,) = agent.node.state.changes.values()
    began: list[int] = []

    class Members(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            began.append(1)
            return super().__iter__()

    monkeypatch.setattr(change, "members", Members(change.members))
    assert len(views.diff_ids(agent.node, VIEWER, [change.id] * 9_000)) == FILES
    assert len(began) == 1


@pytest.mark.parametrize("op", ["diff", "status"])
def test_new_things_that_may_not_be_shown_are_passed_over_in_steps(
    agent: Agent, place: Path, slow: None, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    with_new(agent, place)
    looks = counted(monkeypatch, views, "_may_see")
    answer = asked(agent, op)
    assert most_in_a_turn(agent, looks, answer) <= 3 * diffing.LOOK_EVERY
    assert len(looks) >= NEW
    result = answer[0]["result"]
    assert result["untracked"] == ([] if op == "diff" else NEW) and not result.get("untracked_resources")


def test_new_things_are_asked_about_by_name_without_a_look_at_the_others(
    agent: Agent, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = with_new(agent, place)
    looks = counted(monkeypatch, views, "_may_see")
    answer = asked(agent, "diff", "admin", targets=names[:3])
    most_in_a_turn(agent, looks, answer)
    assert [u["id"] for u in answer[0]["result"]["untracked"]] == names[:3] and len(looks) == 3


def test_names_in_a_request_are_read_some_at_a_time(agent: Agent, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch, requests, "_written")
    answer = asked(agent, "diff", targets=[f"link:e{n}/x" for n in range(4_000)])
    assert most_in_a_turn(agent, read, answer) <= 3 * requests.NAMES_AT_ONCE
    assert len(read) == 4_000 and answer[0]["exit"] == 2


@pytest.mark.parametrize(("op", "key"), [("track", "patterns"), ("declare", "track")])
def test_patterns_of_who_may_track_nothing_are_not_compiled(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, op: str, key: str
) -> None:
    """A thousand of them took half a second, before the request was refused."""
    compiled = counted(monkeypatch, requests, "checked_patterns")
    args = {key: {"file:/etc/*": "report"}, **({"resources": {}} if op == "declare" else {})}
    for role in ("viewer", "ops"):
        answer = asked(agent, op, role, **args)
        assert answer[0]["exit"] == 3 and not compiled
    asked(agent, op, "admin", **args)
    assert compiled


@pytest.fixture
def long_looks(agent: Agent, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody keeps many files in motion."""
    monkeypatch.setattr(agent, "looking", lambda hurries: iter([None] * 10))


def test_who_asks_in_a_loop_does_not_keep_the_others_out_for_ever(agent: Agent, long_looks: None) -> None:
    asked(agent, "status", "ops")
    viewer = asked(agent, "status")
    assert not viewer
    for _ in range(300):
        asked(agent, "status", "ops")
        agent.requests.first.turn()
    assert viewer


def test_who_has_gone_does_not_wait_on(agent: Agent, long_looks: None) -> None:
    gone = [Remote(lambda raw: None, VIEWER) for _ in range(30)]
    for client in gone:
        agent.requests.line(client, b'{"v":1,"op":"status","alive":true}')
    admin = asked(agent, "status", "admin")
    for client in gone:
        client.open = False
    agent.requests.first.turn()
    assert len(agent.requests.first._waiting) == 1, "only who is still there"
    while not admin:
        agent.requests.first.turn()


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


def test_a_record_is_masked_once_for_all_connections_of_a_person_who_watches(
    agent: Agent, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers: dict[Client, int] = {}
    with contextlib.ExitStack() as stack:
        for uid in (1234, 1234, 1234, 1235):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            ours.setblocking(False)
            caller = Caller(Actor("ann", uid, "viewer", "socket"), Owner(f"uid:{uid}", "ann", uid))
            client = agent.control.clients[ours.fileno()] = Client(ours, caller)
            client.events, client.watching = select.EPOLLIN, True
            agent._epoll.register(ours.fileno(), select.EPOLLIN)
            watchers[client] = theirs.fileno()
        agent._publish()  # what is left of the start
        for fd in watchers.values():
            if select.select([fd], [], [], 0)[0]:
                os.read(fd, 1 << 20)
        masked = counted(monkeypatch, agent.veil, "record_line")
        seq = agent.node.state.seq
        (place / "f0").write_text("again")
        agent.watching.touch(f"file:{place}/f0", None)
        agent.catch_up()
        agent._publish()
        told = agent.node.state.seq - seq
        assert told and len(masked) == 2 * told
        for fd in watchers.values():
            assert os.read(fd, 1 << 20).count(b'{"record":') == told


@pytest.mark.parametrize("op", ["log", "diff"])
def test_an_administrator_s_answer_waits_for_one_comparison_of_a_viewer_s_diff(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    """A quarter of a second for each file that somebody may write; all of them came before anybody's log or diff."""
    monkeypatch.setattr(diffing, "ANSWER_PIECE_S", 0.0)  # each comparison takes long
    answered: list[bool] = []  # whether the administrator had his answer when an entry was written
    admin: list[Any] = []
    written, begun, go_on = views.Differing.written, threading.Event(), threading.Event()

    def noted(found: views.Differing, blobs: Any) -> bytes:
        answered.append(bool(admin))
        if len(answered) == 1:
            begun.set()
            go_on.wait(20)
        return written(found, blobs)

    monkeypatch.setattr(views.Differing, "written", noted)
    viewer = asked(agent, "diff")
    while not begun.is_set():
        agent.requests.long_answers.turn(agent)
    admin = asked(agent, op, "admin", **({"count": 1} if op == "log" else {}))
    for _ in range(3):
        agent.requests.long_answers.turn(agent)
    go_on.set()
    for _ in range(20_000):
        if viewer and admin:
            break
        agent.requests.long_answers.turn(agent)
        agent._take_results()
        time.sleep(0.001)
    assert len(viewer[0]["result"]["resources"]) == FILES
    assert answered[-1] and answered.count(True) >= FILES - 2
