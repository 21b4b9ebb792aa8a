"""In what order pieces of long answers are written: one at a time, administrators' first, nobody's who has left."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent import telling
from pact.agent.telling import FOLLOW_PAGE, Tellers
from pact.agent.worker import Result
from pact.core.node.events import Ticked
from pact.core.records import seal
from pact.journal.sqlite import SqliteJournal

pytestmark = pytest.mark.invariant("S7")


class Shell:
    """The loop and the thread, a step at a time."""

    def __init__(self) -> None:
        self.jobs: deque[Any] = deque()
        self.order: list[str] = []
        self.gone: set[str] = set()
        self.telling = SimpleNamespace(call=self.jobs.append)
        self.full: dict[str, Any] = {}
        self.control = SimpleNamespace(connected=lambda client: client.name not in self.gone, clients=self.full)
        self.tellers = Tellers(self)  # type: ignore[arg-type]

    def ask(self, name: str, pieces: int = 1, *, admin: bool = False) -> None:
        client: Any = SimpleNamespace(
            name=name, admin=admin, may_write=True, caller=SimpleNamespace(owner=SimpleNamespace(key=name[0]))
        )
        if name.endswith("!"):  # his answer before is not taken yet
            self.full[name] = client
            return

        def work() -> Result:
            self.order.append(name)

            def done(t_ns: int, wall_ns: int) -> Ticked:
                if pieces > 1:
                    self.ask(name, pieces - 1, admin=admin)
                return Ticked(t_ns, wall_ns)

            return Result(0, make=done)

        self.tellers.add(client, work)

    def turn(self) -> None:
        assert len(self.jobs) <= 1, "one at a time"
        result = self.jobs.popleft()()
        result.make(1, 1)

    def run(self) -> list[str]:
        while self.jobs:
            self.turn()
        return self.order


def test_an_administrator_waits_for_one_piece_whoever_else_asks() -> None:
    shell = Shell()
    for n in range(60):
        shell.ask(f"v{n}", 5)
    shell.turn()
    shell.ask("root", 3, admin=True)
    assert shell.run()[:5] == ["v0", "v1", "root", "root", "root"]
    assert len(shell.order) == 303


def test_the_others_have_their_turns() -> None:
    shell = Shell()
    shell.ask("a", 3)
    shell.ask("b", 2)
    shell.ask("c")
    assert shell.run() == ["a", "b", "c", "a", "b", "a"]


def test_nothing_is_written_for_who_has_left() -> None:
    shell = Shell()
    shell.ask("a", 3)
    shell.ask("b", 3)
    shell.ask("c")
    shell.gone = {"b"}
    assert shell.run() == ["a", "c", "a", "a"]


def test_who_does_not_take_his_answer_gets_no_other_before() -> None:
    shell = Shell()
    shell.ask("a!")
    shell.ask("a1", 2)
    shell.ask("b1", 2)
    assert shell.run() == ["b1", "b1"]
    shell.full.clear()
    shell.tellers.turn()
    assert shell.run() == ["b1", "b1", "a1", "a1"]


RECORDS = 2_000


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A journal whose first, whose middle and whose last record are of one type, and all others of another."""
    path, rows, prev = str(tmp_path / "journal.db"), [], ""
    journal = SqliteJournal(path)
    prev = journal.hash
    for seq in range(RECORDS):
        type_ = "denied" if seq in (0, RECORDS // 2, RECORDS - 1) else "drift_detected"
        rows.append(seal(seq, prev, "2026-01-01T00:00:00.000000Z", seq, "n1", type_, {}, {}))
        prev = rows[-1][0].hash
    journal.append(rows, {})
    journal.close()
    return path


def test_a_type_of_few_records_is_found_by_its_index_and_no_piece_reads_all_of_them(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records after an old one were parsed in one piece: a viewer held up everybody's long answers by that."""
    parsed, own = itertools.count(), telling.strict.own

    def counted(data: bytes) -> Any:
        next(parsed)
        return own(data)

    monkeypatch.setattr(telling, "strict", SimpleNamespace(own=counted))
    veil: Any = SimpleNamespace(record_line=lambda body, hash_, caller: str(own(body)["seq"]).encode())
    caller: Any = None
    steps = itertools.count()
    with_steps = SqliteJournal.__init__

    def opened(self: Any, *args: Any, **named: Any) -> None:
        with_steps(self, *args, **named)
        self._open.set_progress_handler(lambda: next(steps) < 0, 100)

    monkeypatch.setattr(SqliteJournal, "__init__", opened)
    for count in (None, 3, 2, 1):
        request: Any = SimpleNamespace(count=count, since="", type="denied")
        said = [line for line in telling._newest(path, caller, veil, request, [-1]) if line]
        wanted = [0, RECORDS // 2, RECORDS - 1][-count if count else 0 :]
        assert said == [b'{"record":%d}' % seq for seq in wanted]
    assert list(telling.log(path, caller, veil, 3, "", "denied"))[-1] == telling.END
    assert next(parsed) < FOLLOW_PAGE
    assert next(steps) * 100 < RECORDS, "of the database, too"
    everything = [line for line in telling._since(path, caller, veil, 7, [-1]) if line]
    assert everything == [b'{"record":%d}' % seq for seq in range(7, RECORDS)]


def test_who_looks_for_the_oldest_record_to_be_told_lets_others_go_between(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    newest = SqliteJournal.newest

    def counted(self: Any, *args: Any, **named: Any) -> Iterator[tuple[bytes, str]]:
        for row in newest(self, *args, **named):
            read.append(row)
            yield row

    monkeypatch.setattr(SqliteJournal, "newest", counted)
    monkeypatch.setattr(telling, "ANSWER_PIECE_S", 0.0)  # what a slow disk makes of it
    veil: Any = SimpleNamespace(record_line=lambda *_: b"{}")
    caller: Any = None
    request: Any = SimpleNamespace(count=None, since="", type="")
    pieces = telling._pieces(telling._newest(path, caller, veil, request, [-1]))
    said = []
    for turn in itertools.count(1):
        before = len(read)
        piece, whole = next(pieces)
        assert len(read) <= before + 1, "a piece ends when its time is over, also if it says nothing"
        said += piece
        if whole:
            break
        assert turn <= 3 * RECORDS
    assert len(b"".join(said).splitlines()) == RECORDS == len(read)


@pytest.mark.parametrize("type_", ["", "denied"])
@pytest.mark.parametrize(("far", "follow"), [(False, False), (True, False), (False, True)])
def test_a_search_that_finds_nothing_lets_others_go_between(
    path: str, type_: str, far: bool, follow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --since in the future, one statement looked at every record: all long answers waited until it ended."""
    monkeypatch.setattr("pact.journal.reading.SINCE_ROWS", RECORDS // 20)
    monkeypatch.setattr(telling, "ANSWER_PIECE_S", 0.0)
    veil: Any = SimpleNamespace(record_line=lambda *_: b"{}")
    caller: Any = None
    steps = itertools.count()
    with_steps = SqliteJournal.__init__

    def opened(self: Any, *args: Any, **named: Any) -> None:
        with_steps(self, *args, **named)
        self._open.set_progress_handler(lambda: next(steps) < 0, 10)

    monkeypatch.setattr(SqliteJournal, "__init__", opened)
    for since, found in (("2027-01-01T00:00:00", 0), ("2026-01-01T00:00:00", 3 if type_ else RECORDS)):
        request: Any = SimpleNamespace(count=None, since=since, type=type_)
        lines = (
            telling._newest(path, caller, veil, request, [-1])
            if follow
            else telling.log(path, caller, veil, None, since, type_)
        )
        said, whole, at = list[bytes](), False, next(steps)
        pieces = telling._far_pieces(lines) if far else telling._pieces(lines)
        while not whole:
            piece, whole = next(pieces)
            said += piece
            now = next(steps)
            assert (now - at) * 10 < RECORDS * 2, "one piece looks at few records"
            at = now
        assert b"".join(said).count(b'{"record":{}}') == found
