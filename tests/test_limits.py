"""Every limit has its name, its row in the documentation, and a test."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from test_relay import N1, Bench

from pact import limits
from pact.agent.client import Client
from pact.cluster.nodesets import NodeSets
from pact.core.node.events import Caller
from pact.core.records import GENESIS
from pact.core.root import payloads
from pact.core.root.envelope import Asker
from pact.core.root.log import Cursor, RootState
from pact.core.root.root import Root
from pact.core.root.term import Down
from pact.core.tree.clients import Clients
from pact.core.tree.directory import Child, Peer
from pact.core.tree.outbox import Up
from pact.core.tree.wire import message
from pact.errors import EXIT_USAGE, PactError
from pact.model import NS_PER_S, Actor, Owner

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([^|]+) \| [^|]+ \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.M)


def said(value: float) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if value >= 1 << shift and value % (1 << shift) == 0 and value != 4096:
            return f"{value >> shift} {unit}"
    return f"{value:,}"


def test_the_table_says_what_is_so_and_names_tests_that_exist() -> None:
    rows = ROW.findall((ROOT / "docs" / "security.md").read_text())
    names = [n for n in vars(limits) if n.isupper()]
    assert [name for name, *_ in rows] and sorted(name for name, *_ in rows) == sorted(names)
    for name, value, path, test in rows:
        assert value.strip() == said(getattr(limits, name)), name
        assert f"\ndef {test}(" in (ROOT / path).read_text(), f"{name}: {path}::{test}"


def test_a_limit_stands_in_one_place() -> None:
    """Nobody defines one of these names again, or another of the same purpose."""
    names = {n for n in vars(limits) if n.isupper()}
    for path in (ROOT / "pact").rglob("*.py"):
        if path.name != "limits.py":
            found = set(re.findall(r"^([A-Z_]+): Final", path.read_text(), re.M)) & names
            assert not found, (path, found)


OTHERS = limits.TREE_CLIENTS_MAX - limits.TREE_CLIENTS_ADMIN


def person(n: int, key: str, role: str = "viewer") -> Child:
    return Child(b"%d" % n, Peer("ann", role, key), "client", n, "", 0)


@pytest.mark.invariant("S8")
def test_people_below_an_aggregator_have_so_many_places() -> None:
    clients = Clients("agg")
    every = [person(n, f"key{n // limits.TREE_CLIENTS_EACH_MAX}") for n in range(OTHERS)]
    assert all(map(clients.enter, every))
    assert not clients.enter(person(10**6, "another"))
    admins = [person(10**6 + n, f"adm{n}", "admin") for n in range(limits.TREE_CLIENTS_ADMIN + 1)]
    assert [clients.enter(one) for one in admins].count(True) == limits.TREE_CLIENTS_ADMIN
    for one in admins[:-1]:
        clients.leave(one)
    clients.leave(every[0])
    assert not clients.enter(person(10**6, "key1")), "that key has its share"
    assert clients.enter(person(10**6, "key0"))
    asked = [
        clients.request(every[1], message("request", {"id": i, "op": "status"}, b"{}"), "")
        for i in range(limits.TREE_REQUESTS_MAX + 1)
    ]
    assert all(isinstance(x, Up) for x in asked[:-1]) and not isinstance(asked[-1], Up)


@pytest.mark.invariant("S8")
def test_people_below_another_aggregator_have_a_place_while_they_wait() -> None:
    """Each command is another client, and nobody says to those above that one has left: after 4,096 commands a root took
    no more, of anybody."""
    clients, caller = Clients("root"), {"user": "u", "role": "viewer", "via": "cluster"}
    agg, rogue = (Child(name.encode(), Peer(name, "aggregator", name), "aggregator", 1, "", 0) for name in ("a", "b"))

    def asks(child: Child, n: int) -> object:
        head = {"client": f"{child.name}:{n}", "id": 1, "op": "status", "nodes": None, "caller": caller}
        return clients.request(child, message("request", {**head, "timeout_ms": 1}, b"{}"), "")

    for n in range(2 * limits.TREE_CLIENTS_MAX):
        assert isinstance(asks(agg, n), Up)
        done = clients.down(message("result", {"client": f"a:{n}", "id": 1}))
        assert done is not None and done[0] is agg
    assert clients.enter(person(10**6, "direct"))
    held = [asks(rogue, n) for n in range(limits.TREE_CLIENTS_BEYOND_MAX + 1)]
    assert isinstance(held[-2], Up) and not isinstance(held[-1], Up), "it takes no more, whatever it says of them"
    assert isinstance(asks(agg, 10**6), Up) and clients.enter(person(10**6 + 1, "direct"))
    assert len(clients.cancel(rogue, {"client": "b:0", "id": 1})) == 1
    assert isinstance(asks(rogue, 10**6), Up)


@pytest.mark.invariant("S8")
def test_people_whose_requests_fail_at_once_keep_no_place() -> None:
    """While there is no way to the root, each command fails: after 2,000 an aggregator's people found no place when the
    root was there again."""
    clients, agg = Clients("root"), Child(b"a", Peer("a", "aggregator", "a"), "aggregator", 1, "", 0)
    head = {"id": 1, "op": "status", "nodes": None, "timeout_ms": 1}
    caller = {"user": "u", "role": "viewer", "via": "cluster"}
    wrong = {**head, "nodes": "n" * (limits.NODE_SET_MAX + 1)}

    def asks(n: int, head: dict[str, object], why: str = "") -> object:
        return clients.request(agg, message("request", {**head, "client": f"a:{n}", "caller": caller}, b"{}"), why)

    for n in range(limits.TREE_CLIENTS_BEYOND_MAX):
        assert not isinstance(asks(n, head, "there is no way to the root now"), Up)
        assert not isinstance(asks(-n - 1, wrong), Up)
    assert isinstance(asks(10**6, head), Up)


@pytest.mark.invariant("T9")
def test_a_record_that_is_too_long_is_not_carried() -> None:
    bench = Bench()
    bench.hello(N1)
    for size, carried in ((limits.RECORD_MAX, True), (limits.RECORD_MAX + 1, False)):
        row = ["n1", f"i{size}", 0, 1, size]
        bench.say(N1, "events", {"batches": [row]}, b"x" * size)
        assert bool(bench.relay.backlog.bytes) == carried
        bench.relay.backlog.clear()


@pytest.mark.invariant("T13")
def test_a_node_set_has_a_length() -> None:
    clients, ann = Clients("agg"), person(1, "k")
    assert clients.enter(ann)
    for size, taken in ((limits.NODE_SET_MAX, True), (limits.NODE_SET_MAX + 1, False)):
        asked = message("request", {"id": size, "op": "status", "nodes": "n" * size}, b"{}")
        assert isinstance(clients.request(ann, asked, ""), Up) == taken


@pytest.mark.invariant("S7", "T13")
@pytest.mark.parametrize("op", ["status", "watch", "nodes"])
def test_a_node_set_names_few_nodes_that_nobody_has_heard_of(op: str) -> None:
    """To look up a hundred thousand names, and to tell that they are not there, stopped the root's loop for seconds."""
    root = Root("r", RootState(), 1, NodeSets())
    for n in range(50):
        root.state.cursors[f"n{n}"] = Cursor("i", 1, GENESIS)

    def refused(nodes: str) -> bool:
        head = {"client": "c1", "id": 1, "op": op, "nodes": nodes, "timeout_ms": 1000, "challenge": "", "seal": ""}
        head["caller"] = {"user": "eve", "role": "viewer", "via": "cluster"}
        effects = root.received(message("request", head, b"{}"), 1, 1)
        return any(isinstance(e, Down) and e.kind == "result" and e.head["exit"] == EXIT_USAGE for e in effects)

    many = limits.UNKNOWN_NAMES_MAX
    assert not refused(f"n[0-49],x[1-{many}]")
    for nodes in (f"n[0-{50 + many}]", "x[0-99999]", f"n[0-20],x[1-{many + 50}]", "a[0-100]b[0-100]"):
        assert refused(nodes), nodes


@pytest.mark.invariant("S3")
def test_refusals_do_not_fill_the_root_s_log() -> None:
    root = Root("r", RootState(), 1, NodeSets())
    root.start(1, 1, "b", 0)
    written = list[Any]()

    def records() -> list[Any]:
        new = [said for said, _, _ in root._own if isinstance(said, payloads.Denied)]
        root._own.clear()
        written.extend(new)
        return new

    records()
    for name in (f"viewer{n}" for n in range(300)):
        caller = Asker(name, "viewer")
        for _ in range(2 * limits.ROOT_DENIED_PER_MINUTE):
            root.record_denied("apply", "needs the role admin", caller)
    assert len(records()) <= limits.REFUSALS_AT_ONCE + limits.ROOT_DENIED_RESERVED, "18,000 from many people"
    for second in range(1, 120):
        root.at(second * NS_PER_S, 1)
        root.record_denied("apply", "needs the role admin", Asker("viewer1", "viewer"))
        if second == 61:
            records()
            root.record_denied("apply", "needs the role admin", Asker("ann", "viewer"))
            assert len(records()) == 1, "who is refused once is on record"
    root.at(500 * NS_PER_S, 1)
    root.tell_refusals()
    assert len(records()) < 130
    counted = sum(said.beyond + (said.request != "several") for said in written)
    assert counted == 2 * 300 * limits.ROOT_DENIED_PER_MINUTE + 120, "all are counted"
    assert root.next_wake_ns() is None


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("before", [b"", b'{"v":1,"op":"ping"}\n'])
@pytest.mark.parametrize("end", [b"\n", b"", b'\n{"v":1'])
def test_a_request_at_the_socket_has_a_length_however_it_arrives(before: bytes, end: bytes) -> None:
    """One that came whole, with its end, could have four times as much as one that came in pieces."""
    ann = Caller(Actor("ann", 1234, "viewer", "socket"), Owner("uid:1234", "ann", 1234))
    for size, taken in ((limits.REQUEST_MAX, True), (limits.REQUEST_MAX + 1, False)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.sendall(before + b"x" * size + end)
            theirs.shutdown(socket.SHUT_WR)
            client, lines = Client(ours, ann), list[bytes]()
            try:
                while not client.half_closed:
                    client.read()
                    while client.lines:
                        lines.append(client.next_request())
                assert taken and sum(map(len, lines)) == len(before.strip()) + (size if end else 0)
            except PactError as exc:
                assert not taken and "too long" in exc.message
