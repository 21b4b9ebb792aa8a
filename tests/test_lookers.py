"""What people who look at the fleet are told over the tree: as little as a page, and nothing while nobody looks."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from page_kit import Fleet as Nodes
from page_kit import owner
from test_questions import cluster
from test_rootpart import part_of
from test_sight import chunk, line

from pact import limits
from pact.cli.top import fleetrows
from pact.cli.top.fleet import Fleet
from pact.cluster import lookers as told
from pact.cluster.lookers import Lookers, pieces
from pact.cluster.nodesets import NodeSets
from pact.core.root.envelope import Asker
from pact.core.root.log import RootState
from pact.core.root.root import Root as Leading
from pact.core.root.sight import Sight
from pact.core.tree.wire import message

ANN, BOB = ("c1", 1), ("c2", 7)


class Root:
    """Its loop is the test."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.lookers = Lookers(nodes.watcher)
        nodes.watcher.changed = self.lookers.changed
        self.said: dict[tuple[str, int], list[Any]] = {}
        self.at_s: list[float] = []

    def look(self, *keys: tuple[str, int]) -> None:
        self.lookers.keep({key: Asker(f"key of {key[0]}", "viewer") for key in keys})
        self.lookers.give(self.nodes.facts())

    def turn(self, wait_s: float = 0.05) -> None:
        if select.select([self.lookers], [], [], wait_s)[0]:
            for key, body in self.lookers.take():
                self.said.setdefault(key, []).append(json.loads(body))
                self.at_s.append(time.monotonic())

    def until(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 15
        while not (found := condition()):
            assert time.monotonic() < end, self.said
            self.turn()
        return found

    def of(self, key: tuple[str, int], kind: str) -> list[Any]:
        return [m for m in self.said.get(key, []) if m["kind"] == kind]


@pytest.fixture
def root() -> Iterator[Root]:
    nodes = Nodes([f"n{i}" for i in range(1, 6)], rack=3)
    made = Root(nodes)
    yield made
    made.lookers.close()
    nodes.close()


@pytest.mark.invariant("V7")
def test_a_looker_is_told_the_whole_then_what_is_new_at_most_once_a_second(root: Root) -> None:
    root.nodes.drift("n3")
    root.turn(0.3)
    assert root.said == {} and root.lookers._live.rows == {}, "nobody looks, and nothing is made"
    root.look(ANN)
    root.until(lambda: root.of(ANN, "whole"))
    assert root.said[ANN][0] == {"kind": "you", "n": 0, "user": "key of c1", "role": "viewer"}
    fleet = Fleet()
    for i in range(40):
        root.nodes.drift("n4", f"file:/etc/{i}.conf", "bob")
        root.turn(0.05)
    root.look(ANN, BOB)
    began = len(root.at_s)
    root.until(lambda: root.of(BOB, "whole") and "n4" in str(root.of(ANN, "news")))
    for said in root.said[ANN]:
        assert fleet.take(said, time.time_ns() // 10**6), said
    assert fleet.nodes["n4"].state == "drifted" and fleet.role == "viewer" and len(fleet.nodes) == 5
    assert root.of(BOB, "whole")[0]["n"] == root.of(ANN, "news")[-1]["n"], "it goes on where the others are"
    assert len(root.of(ANN, "news")) <= 40 * 0.05 / told.EVERY_S + 4 and began
    root.look(BOB)
    n = len(root.said[ANN])
    root.nodes.drift("n5")
    root.until(lambda: "n5" in str(root.of(BOB, "news")))
    assert len(root.said[ANN]) == n, "it does not look any more"
    root.look()
    made = root.lookers.messages
    root.nodes.drift("n1")
    root.turn(0.3)
    assert root.lookers.messages == made


@pytest.mark.invariant("V7")
def test_news_before_the_first_facts_wake_nobody_too_early_and_nobody_never(root: Root) -> None:
    root.lookers.keep({ANN: Asker("ann", "admin")})
    root.lookers.changed()
    root.turn(0.3)
    root.lookers.give(root.nodes.facts())
    root.until(lambda: root.of(ANN, "whole"))


@pytest.mark.invariant("V7")
def test_a_fault_in_one_fact_is_no_end(root: Root) -> None:
    root.look(ANN)
    root.until(lambda: root.of(ANN, "whole"))
    root.lookers.give({**root.nodes.facts(), "refused": 7})
    time.sleep(1.2)
    root.look(ANN)
    root.until(lambda: len(root.of(ANN, "whole")) == 2)


@pytest.mark.invariant("V7")
def test_who_cannot_be_told_knows_that(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a picture that stands still would pass for one in which nothing happens."""
    root.look(ANN)
    root.until(lambda: root.of(ANN, "whole"))
    root.lookers.give({**root.nodes.facts(), "refused": 7})
    news = root.until(lambda: root.of(ANN, "news"))
    fleet = Fleet()
    assert all(fleet.take(said, 5) for said in root.said[ANN]) and len(fleet.nodes) == 5
    assert "cannot be told: TypeError" in "".join(text for text, _ in fleetrows.alerts(fleet)), news
    time.sleep(2.5)
    root.turn()
    assert len(root.of(ANN, "news")) == 1 and capsys.readouterr().err.count("cannot be told") == 1, "it is said once"
    root.look(ANN)
    root.until(lambda: len(root.of(ANN, "whole")) == 2)
    assert all(fleet.take(said, 5) for said in root.said[ANN]) and not fleetrows.alerts(fleet)


@pytest.mark.invariant("V7")
def test_the_first_look_after_a_while_shows_nothing_of_the_last_one(root: Root) -> None:
    leading = Leading("r", RootState(), 1, NodeSets())
    part = part_of(leading)
    part.config = SimpleNamespace(http="", name="r")  # type: ignore[assignment]
    told_of: list[Any] = []
    part.lookers = SimpleNamespace(  # type: ignore[assignment]
        give=lambda facts: told_of.append("facts"), keep=lambda lookers: told_of.append(sorted(lookers))
    )
    part._aggregator = SimpleNamespace(shown=dict)  # type: ignore[assignment]
    part._lookers_ns = 0
    second = 10**9
    list(part._look_at_states(leading, 1 * second))
    leading.lookers[ANN] = Asker("ann", "admin")
    part._tell_lookers(leading, 2 * second)
    assert told_of == ["facts", [ANN]], "what is told to somebody new is of now"
    part.states.heard(["n1"], "committed")
    list(part._look_at_states(leading, 20 * second))
    assert part.states.said == {"n1": "committed"}
    list(part._look_at_states(leading, 3600 * second))
    assert part.states.said == {}, "what it said an hour ago is no answer to this question"


def test_what_is_more_than_a_message_carries_comes_in_pieces() -> None:
    rows = {f"n{i}": ["r1", "drifted", "", [], 0] for i in range(2 * told.PIECE_ROWS + 1)}
    names = [f"p{i}" for i in range(9 * told.PIECE_ROWS)]
    fleet = Fleet()
    parts = list(pieces({"kind": "whole", "now": 5, "set": rows, "plain": {"r2": {"committed": names}}}, 3))
    assert len(parts) == 1 + 3 + 3
    for part in parts:
        assert len(json.dumps(part)) < 1 << 20 and fleet.take(part, 5)
    assert len(fleet.nodes) == len(rows) + len(names) and fleet.counts["committed"] == len(names)
    small = {"kind": "news", "set": {"n1": ["r1", "committed"]}}
    assert list(pieces(small, 4)) == [{**small, "n": 4}]


@pytest.mark.invariant("V7")
def test_the_root_keeps_lookers_until_they_cancel_and_not_too_many() -> None:
    c = cluster()
    assert c.root is not None

    def look(client: str, id_: int, user: str, role: str = "viewer") -> bool:
        caller = {"user": user, "role": role, "via": "cluster"}
        c.up(
            c.root,
            "request",
            {"id": id_, "op": "live", "nodes": None, "timeout_ms": 0, "client": client, "caller": caller},
            b"{}",
        )
        assert c.root is not None
        return (client, id_) in c.root.lookers

    assert look("a", 1, "ann") and look("a", 2, "ann") and list(c.root.lookers) == [("a", 2)], "one a connection"
    c.root._cancel(message("cancel", {"client": "a", "id": 2}))
    assert not c.root.lookers
    for n in range(limits.LOOKERS_MAX):
        assert look(f"c{n}", 10, f"u{n // limits.LOOKERS_EACH_MAX}")
    assert not look("x", 11, "another") and "256 places" in c.results[11][0]["message"]
    assert look("o", 14, "op", "ops") and look("b", 15, "boss", "admin"), "viewers keep nobody out who has to act"
    c.root._cancel(message("cancel", {"client": "c0", "id": 0}))
    assert not look("x", 12, "u1") and "you look at the fleet from 32 places" in c.results[12][0]["message"]
    assert look("x", 13, "another")


@pytest.mark.invariant("V7")
def test_a_root_without_a_page_tells_too(root: Root) -> None:
    leading = Leading("r", RootState(), 1, NodeSets())
    part = part_of(leading)
    part.config = SimpleNamespace(http="", name="r")  # type: ignore[assignment]
    part.watcher, part._lookers_ns = None, 0
    part.committer = SimpleNamespace(read=root.nodes.read)  # type: ignore[assignment]
    watched: list[Any] = []
    part._aggregator = SimpleNamespace(shown=lambda: {"name": "r"}, watch=watched.append)  # type: ignore[assignment]
    root.nodes.drift("n3")
    leading.state.gseq = root.nodes.gseq
    leading.lookers[ANN] = Asker("ann", "admin")
    part._tell_lookers(leading, 1)
    assert part.lookers is not None and watched == [part.lookers] and part.pollables() == (part, part.lookers)
    said: list[Any] = []
    end = time.monotonic() + 15
    while not any(m["kind"] == "whole" for m in said):
        assert time.monotonic() < end, said
        if select.select([part.lookers], [], [], 0.1)[0]:
            messages = list(part.ready(part.lookers, 1, 1))
            assert all(m.kind == "event" and (m.head["client"], m.head["id"]) == ANN for m in messages)
            said += [json.loads(m.body) for m in messages]
    assert said[0]["kind"] == "you" and said[1]["about"]["name"] == "r"
    assert [r[3] for m in said for r in m.get("records", ())][:1] == ["drift_detected"] or said[1]["records"] == []
    part.publisher = SimpleNamespace(depose=lambda: None)  # type: ignore[assignment]
    list(part._deposed("lost"))
    assert not part.lookers._told
    part.lookers.close()
    part.watcher.close()  # type: ignore[attr-defined]


def test_who_is_in_a_session_is_known_and_no_more(root: Root) -> None:
    seen = Sight()
    opened = {
        "session": "s1",
        "owner": owner("ann"),
        "account": "root",
        "key": "ann",
        "from": "10.1.2.3",
        "terminal": "pts/1",
        "command": "/bin/passwd secret",
        "uid": 1,
        "cgroup": "",
    }
    seen.take(chunk(0, "n1", line("session_opened", opened)))
    assert [s.user for s in seen.nodes["n1"].sessions.values()] == ["ann"] and seen.left_out == 0
    seen.take(chunk(1, "n1", *(line("session_opened", {**opened, "session": f"x{i}"}) for i in range(100))))
    assert len(seen.nodes["n1"].sessions) <= 32
    seen.take(chunk(101, "n1", line("session_closed", {"session": "s1"}), line("session_closed", {"session": 7})))
    assert "s1" not in seen.nodes["n1"].sessions and seen._sessions == len(seen.nodes["n1"].sessions) == 31
    seen._forget(["n1"])
    assert seen._sessions == 0
    root.nodes.record(("n2", "session_opened", opened))
    root.look(ANN)
    root.until(lambda: "s1" in str(root.of(ANN, "whole") + root.of(ANN, "news")))
    everything = str(root.said)
    assert "10.1.2.3" not in everything and "passwd" not in everything
