"""In the middle of a long decision clients are answered, as far as that needs neither a decision nor a look."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar

import orjson
import pytest

from pact.agent import beside, between
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.remote import Remote
from pact.core.node.events import Caller
from pact.core.node.ledger import PAUSE_EVERY
from pact.errors import JournalError
from pact.model import Actor, Owner

COUNT = 100
OPERATIONS = {
    "commit": {"all": True, "message": "so"},
    "rollback": {"all": True},
    "declare": {"resources": {}, "prune": True, "take": True},
}

#: What was found wrong in a pause, which goes on.
WRONG: list[BaseException] = []

pytestmark = [pytest.mark.root, pytest.mark.invariant("S7")]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Of an agent with files. Whenever the core may pause, it is time to: pauses are counted, not timed."""
    ticks = itertools.count(10**9, between.DECIDING_NS + 1)
    clock = SimpleNamespace(monotonic_ns=lambda: next(ticks), monotonic=between.time.monotonic)
    monkeypatch.setattr(between, "time", clock)
    with TemporaryDirectory(dir="/var/tmp", prefix="between-") as top:
        place = Path(top)
        for n in range(COUNT):
            (place / f"f{n}").write_text("one")
        entries = (f'[file."{place}/f{n}"]\ncontent = "one"\n' for n in range(COUNT))
        (place / "declared.toml").write_text("".join(entries))
        yield Config(
            name="n1", state_dir=str(place / "state"), socket=str(place / "s"), declared=[str(place / "declared.toml")]
        )


def drifted(config: Config) -> Agent:
    """An agent all of whose files have drifted."""
    agent, place = Agent(config), Path(config.socket).parent
    for n in range(COUNT):
        (place / f"f{n}").write_text("two")
        agent.watching.touch(f"file:{place}/f{n}", None)
    agent.catch_up()
    assert len(agent.node.state.member_of) == COUNT
    return agent


@pytest.fixture
def agent(config: Config) -> Iterator[Agent]:
    agent = drifted(config)
    WRONG.clear()
    yield agent
    while Asker.all:
        Asker.all.pop().close()
    agent.close()
    if WRONG:
        raise WRONG[0]


class Asker:
    """Somebody else at the control socket."""

    all: ClassVar[list[Asker]] = []

    def __init__(self, agent: Agent) -> None:
        self.all.append(self)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(agent.config.socket)
        self._sock.settimeout(0.0)
        self._came = b""

    def ask(self, op: str) -> None:
        self._sock.send(orjson.dumps({"v": 1, "op": op, "args": {}}) + b"\n")

    def send(self, raw: bytes) -> None:
        self._sock.send(raw)

    def answer(self) -> dict[str, Any] | None:
        try:
            self._came += self._sock.recv(1 << 20)
        except BlockingIOError:
            pass
        line, found, rest = self._came.partition(b"\n")
        if not found:
            return None
        self._came = rest
        said: dict[str, Any] = orjson.loads(line)
        return said

    def close(self) -> None:
        self._sock.close()


def carried_out(agent: Agent, op: str) -> dict[str, Any]:
    out: list[Any] = []
    caller = Caller(Actor("ann", 7, "admin", "cluster"), Owner("uid:7", "ann", 7))
    client = Remote(lambda raw: out.append(orjson.loads(raw)), caller)
    agent.between.begin()
    agent.requests.line(client, orjson.dumps({"v": 1, "op": op, "args": OPERATIONS[op]}))
    while not out:
        agent._turn(-1)
    answer: dict[str, Any] = out[0]
    return answer


def told(agent: Agent, asker: Asker, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that has come, or comes."""
    while not answers:
        agent._turn(-1)
        if (answer := asker.answer()) is not None:
            answers.append(answer)
    return answers[0]


def in_the_middle(agent: Agent, do: Callable[[bool, Callable[[], None]], None]) -> None:
    """Call ``do`` in each pause, with the pause's own work. What it finds wrong fails the test at its end."""
    serve = agent.between._serve

    def done(moved: bool) -> None:
        try:
            do(moved, lambda: serve(moved))
        except BaseException as exc:
            WRONG.append(exc)

    agent.between._serve = done  # type: ignore[method-assign]


@pytest.mark.parametrize("op", OPERATIONS)
def test_who_asks_meanwhile_is_answered_from_the_durable_state(agent: Agent, op: str) -> None:
    asker, seen = Asker(agent), {False: 0, True: 0}
    status = Asker(agent)
    drifted: list[int] = []

    def do(moved: bool, serve: Callable[[], None]) -> None:
        assert moved or agent.node.state.seq == agent.journal.seq, "what is not durable is not shown"
        asker.ask("ping")
        if not moved:
            status.ask("status")
        serve()
        serve()  # the first accepts them
        assert (answer := asker.answer()) is not None and answer["ok"]
        answer = status.answer()
        if not moved:
            assert answer is not None
            drifted.append(answer["result"]["drifted"])
        seen[moved] += 1

    in_the_middle(agent, do)
    assert carried_out(agent, op)["ok"]
    assert min(seen.values()) >= COUNT // PAUSE_EVERY // 2
    assert drifted[0] == COUNT


def test_what_is_not_durable_yet_is_not_shown(agent: Agent) -> None:
    status, answers = Asker(agent), []

    def do(moved: bool, serve: Callable[[], None]) -> None:
        if moved and not answers:
            status.ask("status")
            answers.append(None)
        serve()
        assert not moved or status.answer() is None

    in_the_middle(agent, do)
    assert carried_out(agent, "commit")["ok"] and answers
    while (answer := status.answer()) is None:
        agent._turn(-1)
    assert answer["result"]["drifted"] == 0


def test_what_could_not_be_made_durable_is_never_shown(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is lost in the middle: the state is read again, which takes long, too."""
    append, failed, turns = agent.journal.append, [], []

    def fails(rows: Any, blobs: Any) -> None:
        if rows and not failed:
            failed.append(rows)
            raise JournalError("the disk is full")
        append(rows, blobs)

    def do(moved: bool, serve: Callable[[], None]) -> None:
        assert moved or agent.node.state.seq == agent.journal.seq
        turns.append(bool(failed))
        serve()

    in_the_middle(agent, do)
    monkeypatch.setattr(agent.journal, "append", fails)
    answer = carried_out(agent, "commit")
    assert answer["exit"] == 5 and any(turns) and len(agent.node.state.member_of) == COUNT


@pytest.mark.parametrize("taken", [True, False], ids=["event taken", "event waits"])
def test_an_answer_is_not_older_than_its_question(agent: Agent, taken: bool) -> None:
    """What is touched in the middle needs a look, and so does who asks after it."""
    status, asked, answers = Asker(agent), list[int](), list[dict[str, Any]]()
    resource = min(agent.node.state.member_of)
    path = Path(resource.partition(":")[2])

    def do(moved: bool, serve: Callable[[], None]) -> None:
        if not asked:
            path.write_text("three")
            if taken:
                agent.watching.touch(resource, None)
            status.ask("status")
            asked.append(agent.node.state.seq)
        serve()
        if (answer := status.answer()) is not None:
            answers.append(answer)
            assert agent.node.state.seq > asked[0]

    in_the_middle(agent, do)
    carried_out(agent, "commit")
    assert told(agent, status, answers)["result"]["drifted"] >= 1 and asked


@pytest.mark.parametrize("first", [*OPERATIONS, "diff", "status", "watch"])
def test_the_answers_to_one_client_come_in_the_order_of_its_requests(agent: Agent, first: str) -> None:
    """Also if its first request is what is being decided, or needs a look that is."""
    asker = Asker(agent)
    place = Path(agent.config.socket).parent
    for n in range(COUNT):
        (place / f"f{n}").write_text("three")
        agent.watching.touch(f"file:{place}/f{n}", None)
    args = OPERATIONS.get(first, {})
    asker.send(orjson.dumps({"op": first, "args": args}) + b"\n" + orjson.dumps({"op": "ping"}) + b"\n")
    answers: list[dict[str, Any]] = []
    while len(answers) < (1 if first == "watch" else 2):
        agent._turn(-1)
        while (answer := asker.answer()) is not None:  # one turn may bring several
            answers += [] if "record" in answer else [answer]
    assert answers[-1]["result"] == {"node": "n1"}
    assert first == "watch" or answers[0]["result"] != {"node": "n1"}


def test_what_was_seen_and_is_not_decided_yet_is_not_passed_over(agent: Agent) -> None:
    """Files were looked at, and the last of them has drifted: until that is decided nobody is told that none has."""
    carried_out(agent, "commit")
    agent.catch_up()
    names = sorted(agent.node.state.declared_ids())
    for name in names:
        agent.watching.touch(name, None)
    Path(names[-1].partition(":")[2]).write_text("three")
    status, asked, answers = Asker(agent), list[int](), list[dict[str, Any]]()

    def do(moved: bool, serve: Callable[[], None]) -> None:
        if not asked:
            status.ask("status")
            asked.append(agent.node.state.seq)
        serve()
        if (answer := status.answer()) is not None:
            answers.append(answer)
            assert agent.node.state.seq > asked[0]

    in_the_middle(agent, do)
    agent.between.begin()
    agent.catch_up()
    assert asked and len(agent.node.state.member_of) == 1
    assert told(agent, status, answers)["result"]["drifted"] == 1


def test_whatever_clients_do_meanwhile_the_decision_is_made(agent: Agent) -> None:
    nasty = [Asker(agent) for _ in range(6)]

    def do(moved: bool, serve: Callable[[], None]) -> None:
        for at, each in enumerate(nasty):
            try:
                each.send(
                    [b"{", b"\n\xff\n", b'{"v":1,"op":"status"', b"\n" * 9, b'{"op":"commit"}\n', b'["ping"]\n'][at]
                )
            except OSError:
                nasty[at] = Asker(agent)
        nasty[0].close()
        nasty[0] = Asker(agent)
        serve()

    in_the_middle(agent, do)
    answer = carried_out(agent, "commit")
    assert answer["ok"] and not agent.node.state.member_of


def test_who_asks_all_the_time_does_not_keep_the_decision_from_being_made(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each pause some are answered, and not all of them."""
    many = [Asker(agent) for _ in range(20)]
    seconds = itertools.count(0.0, between.SERVING_S / 4)
    monkeypatch.setattr(between.time, "monotonic", lambda: next(seconds))
    agent.control.budget.spend = lambda uid, seconds: None  # type: ignore[method-assign]
    most = 0

    def do(moved: bool, serve: Callable[[], None]) -> None:
        nonlocal most
        for each in many:
            while each.answer() is not None:  # the loop's own turns answer all
                pass
            each.ask("ping")
        serve()
        most = max(most, sum(each.answer() is not None for each in many))

    in_the_middle(agent, do)
    assert carried_out(agent, "commit")["ok"]
    assert 0 < most <= 4


class Slow:
    """A journal that writes for as long as nobody else has a turn."""

    def __init__(self, error: Exception | None = None, least: int = beside.LARGE_BYTES) -> None:
        self.turned, self._error, self._least = threading.Event(), error, least
        self.threads: list[threading.Thread] = []

    def append(self, rows: Any, blobs: Any) -> None:
        self.threads.append(threading.current_thread())
        if sum(map(len, blobs.values())) + len(blobs) > self._least:
            assert self.turned.wait(60), "nobody had a turn"
        if self._error is not None:
            raise self._error


def test_while_much_is_made_durable_others_have_turns() -> None:
    journal: Any = Slow()
    beside.append(journal, (), {"d": bytes(beside.LARGE_BYTES)}, lambda moved: journal.turned.set() if moved else None)
    assert journal.threads != [threading.current_thread()]
    journal = Slow(least=1)
    small = {str(n): b"" for n in range(beside.LARGE_BYTES // beside.ROW_BYTES)}
    beside.append(journal, (), small, lambda moved: journal.turned.set() if moved else None)
    assert journal.threads != [threading.current_thread()], "many small ones are much"
    journal = Slow()
    beside.append(journal, (), {"d": b"small"}, lambda moved: None)
    assert journal.threads == [threading.current_thread()], "no thread is made for little"


def test_without_a_thread_it_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    journal: Any = Slow()
    journal.turned.set()
    beside.append(journal, (), {"d": bytes(beside.LARGE_BYTES)}, lambda moved: None)
    assert journal.threads == [threading.current_thread()]


@pytest.mark.parametrize("error", [JournalError("full"), OSError(5, "failed"), KeyboardInterrupt()])
def test_an_error_of_the_journal_is_raised(error: Exception) -> None:
    journal: Any = Slow(error)
    with pytest.raises(type(error)) as raised:
        beside.append(
            journal, (), {"d": bytes(beside.LARGE_BYTES)}, lambda moved: journal.turned.set() if moved else None
        )
    assert raised.value is error


def test_who_asks_while_much_is_looked_at_is_answered(agent: Agent) -> None:
    asker, answered = Asker(agent), 0

    def do(moved: bool, serve: Callable[[], None]) -> None:
        nonlocal answered
        asker.ask("ping")
        serve()
        serve()
        answered += asker.answer() is not None

    in_the_middle(agent, do)
    agent.between.begin()
    agent.watching.observe([(r, None) for r in agent.node.state.member_of], lambda resource, owner: None)
    assert answered == COUNT // PAUSE_EVERY


def test_a_start_that_takes_much_in_has_no_clients_yet(config: Config) -> None:
    """Windows of many resources are set again before there is a control socket."""
    drifted(config).close()
    again = Agent(config)
    again.close()
    assert len(again.node.state.member_of) == COUNT
