"""A node's way up: what it recorded, and its answers, over real sockets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from cluster_kit import Kit

from pact.agent.link import Link
from pact.agent.veil import Veil
from pact.core.records import GENESIS, Record, seal
from pact.core.root.twins import Twins
from pact.core.tree import wire
from pact.core.tree.member import CACHED_BYTES_MAX
from pact.core.tree.parents import Parent
from pact.host.clock import boottime_ns
from pact.journal.sqlite import SqliteJournal


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, {"root1": "aggregator", "n001": "node"})
    yield kit
    kit.close()


class Node:
    """A real link and a real journal; around them is only as much of an agent as they need."""

    def __init__(self, kit: Kit, records: int, place: str = "") -> None:
        base = kit.base / place
        base.mkdir(exist_ok=True)
        self.path = str(base / "journal.db")
        self.journal = SqliteJournal(self.path)
        self.seq, self.prev = 0, GENESIS
        self.record(records)
        parent = Parent(kit.url, kit.public["root1"])
        agent = SimpleNamespace(
            config=SimpleNamespace(
                secret=kit.secret("n001"), state_dir=str(base), name="n001", parents=(parent,), roots=[], rack=""
            ),
            journal=self.journal,
            journal_error="",
            clock=SimpleNamespace(now_ns=boottime_ns),
            now=lambda: (boottime_ns(), 1),
            node=SimpleNamespace(state=SimpleNamespace(groups={}, commands={})),
            watch_fd=lambda fd: None,
            unwatch_fd=lambda fd: None,
            tell=lambda event: None,
            veil=Veil(b"k" * 32),
        )
        self.requests = SimpleNamespace(line=lambda client, line: None, sessions=None)
        self.link = Link(agent, self.requests)  # type: ignore[arg-type]

    def record(self, count: int = 1) -> list[tuple[Record, bytes]]:
        rows = []
        for _ in range(count):
            rows.append(seal(self.seq, self.prev, "2026-01-01T00:00:00Z", 1, "n001", "committed", {"user": "a"}, {}))
            self.seq, self.prev = self.seq + 1, rows[-1][0].hash
        self.journal.append(rows, {})
        return rows

    def close(self) -> None:
        self.link.close()
        self.journal.close()


def test_records_that_could_not_be_read_for_a_moment_are_sent_all_the_same(kit: Kit) -> None:
    root = kit.start_root()
    node = Node(kit, 5)
    database = sqlite3.connect(node.path, isolation_level=None, timeout=10)
    database.execute("ALTER TABLE record RENAME TO away")

    def failed() -> bool:
        node.link.turn()
        return node.link._unread

    kit.until(failed, "it cannot read them")
    database.execute("ALTER TABLE away RENAME TO record")
    database.close()

    def sent() -> bool:
        node.link.turn()
        return len(root.lines) == 5

    kit.until(sent, "all records", 8)
    node.close()


@pytest.mark.invariant("T5")
def test_a_second_look_at_what_could_not_be_read_takes_nothing_elses_place(kit: Kit) -> None:
    root = kit.start_root()
    node = Node(kit, 5)
    link = node.link
    database = sqlite3.connect(node.path, isolation_level=None, timeout=10)
    database.execute("ALTER TABLE record RENAME TO away")

    def sent(count: int) -> bool:
        link.turn()
        return len(root.lines) == count

    kit.until(lambda: sent(0) and link._unread, "it cannot read them")
    database.execute("ALTER TABLE away RENAME TO record")
    database.close()
    link.recorded(node.record())
    kit.until(lambda: sent(6), "all records, before the second look is due", 1.5)
    kit.until(lambda: sent(6) and link.outbox.waiting == 0, "acknowledged")
    link.recorded(node.record())
    link._reread_ns = 1  # due in the very turn in which something new waits
    kit.until(lambda: sent(7), "the new record, too", 5)
    node.close()


@pytest.mark.invariant("T5")
def test_however_many_steps_a_turn_records_they_are_read_once_and_nothing_piles_up(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = kit.start_root()
    node = Node(kit, 1)
    link = node.link
    read: list[int] = []
    lines = link._lines
    monkeypatch.setattr(link, "_lines", lambda first, limit: (read.append(first), lines(first, limit))[1])

    def turned() -> bool:
        link.turn()
        return bool(root.lines)

    kit.until(turned, "under the root")
    for _ in range(40):
        for _ in range(20):
            link.recorded(node.record())
        assert len(link._todo) <= 2
        link.turn()
        kit.turn(0)
    assert len(link._todo) <= 1 and len(read) <= 2 * 41, len(read)

    def sent() -> bool:
        link.turn()
        return len(root.lines) == node.seq

    kit.until(sent, "all records", 5)
    assert [r["seq"] for _, r in root.lines] == list(range(801)) and not root.doubled
    assert len(set(read)) == len(read)
    node.close()


@pytest.mark.invariant("T5")
@pytest.mark.parametrize("takes", [True, False])
def test_what_a_call_recorded_comes_in_the_frame_of_its_answer_to_who_takes_it(kit: Kit, takes: bool) -> None:
    root = kit.start_root()
    assert kit.aggregator is not None
    relay, came = kit.aggregator.relay, []
    received, welcome = relay.received, relay._welcome
    relay.received = lambda rid, peer, m, t: (came.append(m), received(rid, peer, m, t))[1]  # type: ignore[method-assign]
    if not takes:  # one from before this

        def before(child: Any, t_ns: int, fresh: bool) -> Any:
            (effect,) = welcome(child, t_ns, fresh)
            head = {**wire.decode(effect.frame).head, "with_answers": False}
            return [effect._replace(frame=wire.encode("welcome", head))]

        relay._welcome = before  # type: ignore[method-assign]
    kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: root.lines, "the first record")
    came.clear()
    root.call(
        "1.1",
        "hold_place",
        ["n001"],
        {"reason": "a test", "for_ns": 3600 * 10**9},
        caller={"user": "olga", "role": "ops", "via": "cluster"},
    )
    kit.until(lambda: root.final("1.1") and root.lines[-1][1]["type"] == "hold_placed", "the answer and the record")
    (answer,) = [m for m in came if m.kind == "answer"]
    assert [row[2] for row in answer.head["batches"]] == ([root.lines[-1][1]["seq"]] if takes else [])
    assert [m.kind for m in came if m.kind == "events"] == ([] if takes else ["events"])
    assert root.bodies("1.1")["n001"]["ok"]


@pytest.mark.invariant("T12")
def test_what_is_done_once_is_not_done_again_when_its_answer_had_to_make_room(kit: Kit) -> None:
    kit.start_root()
    node, did = Node(kit, 1), list[str]()

    def line(remote: Any, raw: bytes) -> None:
        op = orjson.loads(raw)["op"]
        did.append(op)
        size = CACHED_BYTES_MAX if op == "log" else 1
        remote.send(orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": {"x": "y" * size}}))

    node.requests.line = line
    caller = {"user": "ann", "role": "admin", "via": "cluster"}

    def call(number: int, op: str, **args: Any) -> None:
        head = {"call": f"5.{number}", "op": op, "nodes": None, "caller": caller, "fence": 5, "timeout_ms": 60_000}
        node.link._call(wire.decode(wire.encode("call", head, orjson.dumps(args))))

    call(1, "extend", id="c7", by_ns=1)
    call(1, "extend", id="c7", by_ns=1)
    assert did == ["extend"], "its answer is known"
    call(2, "log", count=1)
    for _ in range(2):  # under another aggregator the root asks both again
        call(1, "extend", id="c7", by_ns=1)
    assert did == ["extend", "log"]
    assert b"not done twice" in (node.link.member.calls.kept.get((5, "5.1")) or b"")
    node.close()


@pytest.mark.invariant("F56")
def test_two_machines_with_one_key_take_each_others_place_and_are_found_out(kit: Kit) -> None:
    root = kit.start_root()
    nodes, twins, found = [Node(kit, 1, "a"), Node(kit, 1, "b")], Twins(), list[bool]()

    def turned() -> bool:
        for node in nodes:
            node.link.turn()
        for m in root.got:
            if m.kind == "below":
                found.extend(twins.came(n, session, boottime_ns()) for n, session in m.head["sessions"].items())
        root.got.clear()
        return any(found)

    kit.until(turned, "they are named", 30)
    for node in nodes:
        node.close()


@pytest.mark.invariant("S8")
def test_a_viewer_s_questions_keep_no_administrator_out_of_a_node(kit: Kit) -> None:
    """A real agent refused two thirds of his commands, while a viewer's waited there."""
    root = kit.start_root()
    kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: "n001" in root.below, "it is below")
    eve, adm = ({"user": r, "role": r, "via": "cluster"} for r in ("viewer", "admin"))
    targets = ["file:/" + "x" * 100 + str(n) for n in range(500)]
    mine = [f"2.{n}" for n in range(20)]
    for n, call in enumerate(mine):
        for k in range(125):
            root.call(f"1.{125 * n + k}", "diff", ["n001"], {"targets": targets}, caller=eve)
        kit.during(0.1)
        root.call(call, "status", ["n001"], caller=adm)
    kit.until(lambda: all(map(root.final, mine)), "he is answered", 60)
    assert {root.bodies(call)["n001"]["message"] for call in mine} == {""}
