"""``pact diff`` of much drift is sent a piece at a time: only a piece of it is in the agent's memory."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest

from pact.agent import client as clients
from pact.agent import control, diffing, telling, views
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.remote import Remote
from pact.core.node.events import Caller
from pact.core.tree.member import ANSWER_MAX
from pact.model import Actor, Owner

FILES = 90
PIECE = 8
DEADLINE_S = 30.0
ANN = Caller(Actor("ann", 7, "viewer", "cluster"), Owner("uid:7", "ann", 7))

OPEN: list[socket.socket] = []

pytestmark = [pytest.mark.root, pytest.mark.invariant("S7")]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setattr(diffing, "PIECE", PIECE)
    monkeypatch.setattr(diffing, "SORTED_AT_ONCE", 7)
    with TemporaryDirectory(dir="/var/tmp", prefix="pieces-") as top:
        files = [Path(top) / f"f{n}" for n in range(FILES)]
        declared = Path(top) / "declared.toml"
        declared.write_text("".join(f'[file."{f}"]\ncontent = "one\\n"\n' for f in files))
        for file in files:
            file.write_text("one\n")
        made = Agent(Config(name="n1", state_dir=f"{top}/state", socket=f"{top}/s", declared=[str(declared)]))
        for file in files:
            file.write_text("two\n")
            made.watching.touch(f"file:{file}", None)
        made.catch_up()
        monkeypatch.setattr(made, "_timeout_s", lambda: 0.005)
        yield made
        for sock in OPEN:
            sock.close()
        OPEN.clear()
        made.close()


class Reader:
    """A client of the real socket, which reads only what it is told to."""

    def __init__(self, agent: Agent, request: dict[str, Any]) -> None:
        self.agent = agent
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(agent.config.socket)
        self.sock.setblocking(False)
        OPEN.append(self.sock)
        self.raw = b""
        self.ask(request)

    def ask(self, request: dict[str, Any]) -> None:
        self.sock.sendall(orjson.dumps({"v": 1, **request}) + b"\n")

    def read(self) -> bool:
        """Take what is there. Returns False once the agent has hung up."""
        while select.select([self.sock], [], [], 0)[0]:
            chunk = self.sock.recv(1 << 16)
            if not chunk:
                return False
            self.raw += chunk
        return True

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.raw.split(b"\n")[:-1]]

    def until(self, count: int) -> list[Any]:
        """Read until there are so many lines."""
        end = time.monotonic() + DEADLINE_S
        while self.raw.count(b"\n") < count:
            assert time.monotonic() < end and self.read(), self.raw[-200:]
            turn(self.agent)
        return self.lines()


def turn(agent: Agent) -> None:
    agent._turn(-1)


def remote(agent: Agent) -> list[Any]:
    out: list[Any] = []
    agent.requests.line(Remote(out.append, ANN), b'{"v":1,"op":"diff","args":{}}')
    end = time.monotonic() + DEADLINE_S
    while not out:
        assert time.monotonic() < end
        turn(agent)
    return out


def whole(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same answer, in one piece."""
    with monkeypatch.context() as patch:
        patch.setattr(diffing, "PIECE", FILES + 1)
        return orjson.loads(remote(agent)[0])


def test_the_pieces_are_the_whole_answer_in_order(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(agent, monkeypatch)
    ids = [entry["id"] for entry in expected["result"]["resources"]]
    assert len(ids) == FILES and ids == sorted(ids)
    assert orjson.loads(remote(agent)[0]) == expected
    here = Reader(agent, {"op": "diff", "args": {}}).until(1)
    assert [e["id"] for e in here[0]["result"]["resources"]] == ids
    assert all(e["diff"].endswith("-one\n+two\n") for e in here[0]["result"]["resources"])
    assert here[0]["result"]["untracked_count"] == expected["result"]["untracked_count"]
    one = Reader(agent, {"op": "diff", "args": {"targets": [ids[3]]}}).until(1)
    assert [e["id"] for e in one[0]["result"]["resources"]] == [ids[3]]
    none = Reader(agent, {"op": "diff", "args": {"targets": ["c999"]}}).until(1)
    assert none[0]["exit"] == 2


def test_whoever_does_not_read_costs_a_few_pieces(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 20_000
    written, real = list[str](), views.Differing.written

    def noted(found: views.Differing, blobs: Any) -> bytes:
        written.append(found.entry["id"])
        return orjson.dumps({**orjson.loads(real(found, blobs)), "diff": long})

    monkeypatch.setattr(views.Differing, "written", noted)
    monkeypatch.setattr(clients, "OUTPUT_LOW", 4096)
    slow = Reader(agent, {"op": "diff", "args": {}})
    for _ in range(200):
        turn(agent)
    assert 0 < len(written) <= 6 * PIECE < FILES, "what fits the kernel's buffers, and a piece"
    assert len(Reader(agent, {"op": "ping", "args": {}}).until(1)) == 1
    (answer,) = slow.until(1)
    assert len(answer["result"]["resources"]) == FILES and len(written) == FILES


def test_events_wait_for_the_end_of_the_answer(agent: Agent) -> None:
    both = Reader(agent, {"op": "watch", "args": {}})
    while not any(client.watching for client in agent.control.clients.values()):
        turn(agent)
    both.ask({"op": "diff", "args": {}})
    file = Path(agent.config.socket).parent / "f0"
    while b'"resources":[' not in both.raw:
        turn(agent)
        both.read()
        file.write_text(f"more {time.monotonic_ns()}\n")
        agent.watching.touch(f"file:{file}", None)
        agent.catch_up()
    began = both.raw.index(b'"resources":[')
    end = time.monotonic() + DEADLINE_S
    while b"\n" not in both.raw[began:]:
        assert time.monotonic() < end and both.read()
        turn(agent)
    answers = [line for line in both.lines() if "resources" in line.get("result", {})]
    assert len(answers) == 1 and len(answers[0]["result"]["resources"]) == FILES
    while b"drift_detected" not in both.raw:
        assert time.monotonic() < end and both.read()
        turn(agent)


def test_a_sign_of_life_in_the_middle_means_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SIGN_S", 0.0)
    real = diffing.Answer.write

    def slowly(answer: diffing.Answer, *args: Any) -> None:
        if answer.begun:
            agent.control.show_life()
            (client,) = agent.control.clients.values()
            client.send_sign()
        real(answer, *args)

    monkeypatch.setattr(diffing.Answer, "write", slowly)
    reader = Reader(agent, {"op": "diff", "args": {}, "alive": True})
    while b"result" not in reader.raw or not reader.raw.endswith(b"\n"):
        turn(agent)
        assert reader.read()
    answer = [line for line in reader.lines() if not line.get("working")]
    assert len(answer) == 1 and len(answer[0]["result"]["resources"]) == FILES
    assert b"] " in reader.raw or b"} " in reader.raw


def test_who_is_no_administrator_any_more_gets_the_rest_as_he_is(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    roles, real = list[str](), views.differing

    def noted(node: Any, caller: Caller, veil: Any, resource: str) -> Any:
        roles.append(caller.actor.role)
        if len(roles) == PIECE:
            for client in agent.control.clients.values():
                client.caller = ANN
        return real(node, caller, veil, resource)

    monkeypatch.setattr(views, "differing", noted)
    Reader(agent, {"op": "diff", "args": {}}).until(1)
    assert roles == ["admin"] * PIECE + ["viewer"] * (FILES - PIECE)


def test_two_answers_of_one_person_both_end(agent: Agent) -> None:
    """A line of which more comes, and of which all that has come was read, keeps nobody from the next piece."""
    readers = [Reader(agent, {"op": "ping", "args": {}}) for _ in range(2)]
    for reader in readers:
        reader.until(1)
    for client in agent.control.clients.values():
        client.caller = ANN
    for reader in readers:
        reader.ask({"op": "diff", "args": {}})
    end = time.monotonic() + DEADLINE_S
    while any(reader.raw.count(b"\n") < 2 for reader in readers):
        assert time.monotonic() < end, [len(reader.raw) for reader in readers]
        turn(agent)
        for reader in readers:
            assert reader.read()
    assert [len(reader.lines()[1]["result"]["resources"]) for reader in readers] == [FILES] * 2


def test_an_answer_that_breaks_off_is_no_answer(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    count, real = 0, views.Differing.written

    def breaks(found: views.Differing, blobs: Any) -> bytes:
        nonlocal count
        count += 1
        if count > 3 * PIECE:
            raise RuntimeError("a bad day")
        return real(found, blobs)

    monkeypatch.setattr(views.Differing, "written", breaks)
    reader = Reader(agent, {"op": "diff", "args": {}})
    end = time.monotonic() + DEADLINE_S
    while reader.read():
        assert time.monotonic() < end
        turn(agent)
    assert reader.raw and b"\n" not in reader.raw
    count = 0
    (answer,) = remote(agent)
    assert not orjson.loads(answer)["ok"], "whoever asked from afar hears of it, and waits no longer"
    monkeypatch.undo()
    assert Reader(agent, {"op": "ping", "args": {}}).until(1)[0]["ok"]


def test_a_caller_of_the_cluster_is_refused_what_is_too_long_without_writing_all(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[str]()

    def noted(found: views.Differing, blobs: Any) -> bytes:
        written.append(found.entry["id"])
        return b'"' + b"x" * (ANSWER_MAX // 20) + b'"'

    monkeypatch.setattr(views.Differing, "written", noted)
    (body,) = remote(agent)
    assert len(body) > ANSWER_MAX, "the member refuses that"
    for _ in range(20):
        turn(agent)
    assert len(written) <= 20 + 3 * PIECE < FILES


def test_lines_wait_behind_one_that_goes_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        client = clients.Client(ours, ANN)
        client.send("first")
        client.send_part(b"[1,", last=False)
        client.send("event")
        assert client.write() and client.wants_write() and not client.may_write
        client.send_sign()
        client.send_part(b"", last=False)
        client.send_part(b"2,", last=False)
        client.send_part(b"3]", last=True)
        client.send("last")
        assert client.write() and not client.wants_write()
        assert theirs.recv(1 << 10) == b'"first"\n[1, 2,3]\n"event"\n"last"\n'


def forty_writes(agent: Agent) -> tuple[Path, int]:
    """Records of one drifted file: which one, and the number of the last."""
    (file, *_) = [Path(r.removeprefix("file:")) for r in agent.node.state.member_of]
    for round_ in range(40):
        file.write_text(f"{round_}\n")
        agent.watching.touch(f"file:{file}", None)
        agent.catch_up()
        turn(agent)
    return file, agent.journal.seq


def test_who_watches_is_told_after_a_long_answer_what_came_meanwhile(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events waited in memory behind the answer, and were too much for it: the client was hung up."""
    long = "x" * 20_000
    real = views.Differing.written
    monkeypatch.setattr(
        views.Differing,
        "written",
        lambda found, blobs: orjson.dumps({**orjson.loads(real(found, blobs)), "diff": long}),
    )
    monkeypatch.setattr(clients, "OUTPUT_LOW", 1 << 10)
    client = Reader(agent, {"op": "watch", "args": {}})
    client.ask({"op": "diff", "args": {}})
    end = time.monotonic() + DEADLINE_S
    while not any(clients.GOES_ON in c._output for c in agent.control.clients.values()):
        assert time.monotonic() < end
        turn(agent)
    monkeypatch.setattr(clients, "OUTPUT_MAX", 1 << 10)
    first = agent.journal.seq + 1
    file, last = forty_writes(agent)
    assert last - first >= 30
    monkeypatch.undo()
    monkeypatch.setattr(agent, "_timeout_s", lambda: 0.005)
    lines = client.until(1 + last - first + 1)
    (answer,) = [line for line in lines if "result" in line]
    assert len(answer["result"]["resources"]) == FILES, "the answer is whole"
    told = [line["record"]["seq"] for line in lines if "record" in line and line["record"]["seq"] >= first]
    assert told == list(range(first, last + 1)), "each once, in order"
    file.write_text("more\n")
    agent.watching.touch(f"file:{file}", None)
    agent.catch_up()
    assert client.until(len(lines) + 1)[-1]["record"]["seq"] == last + 1, "and it watches on"


def test_the_next_answer_is_whole_although_records_came_in_the_middle_of_the_last(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were told at the same time, in pieces too: each kept the other from being asked for its next piece."""
    for where, what in ((clients, "OUTPUT_LOW"), (telling, "ANSWER_PIECE")):
        monkeypatch.setattr(where, what, 1 << 10)
    client = Reader(agent, {"op": "watch", "args": {}})
    client.ask({"op": "diff", "args": {}})
    end = time.monotonic() + DEADLINE_S
    while not any(c.amid_a_line for c in agent.control.clients.values()):
        assert time.monotonic() < end
        turn(agent)
    client.ask({"op": "log", "args": {"count": 200}})
    first = agent.journal.seq + 1
    _, last = forty_writes(agent)
    while b'{"end":true}' not in client.raw or f'"seq":{last},'.encode() not in client.raw.split(b'{"end":true}')[1]:
        assert time.monotonic() < end and client.read()
        turn(agent)
    told = [x["record"]["seq"] for x in client.lines() if "record" in x]
    log = told[: told.index(0) + 1]
    assert log == list(range(log[0], -1, -1)), "the newest first"
    assert told[len(log) :] == list(range(first, last + 1)), "and what came meanwhile, each once"
