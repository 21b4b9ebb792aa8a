"""Who has a key keeps nobody out by having many connections: real libzmq clients at each port of a real root."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hostile_kit import Hostile, wait_for
from public_root import Chain, Keys, Root
from rootlog_suite import until
from test_subscriptions import numbers

from pact.cluster import gate, replay, subscriptions
from pact.limits import SILENT_CONNECTIONS_MAX, TREE_CONNECTIONS_EACH_MAX
from pact.net import keys, places
from pact.net.floods import connection
from pact.net.places import Keys as KeyPlaces
from pact.net.places import Silent

LEFT = 1300  # descriptors that the root has beside those in use: with 256 left it lets nobody in
EACH = 400  # connections to each of its ports


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Two for each connection of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6 * EACH + 1000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _says_nothing(kit: Hostile, kind: int, url: str) -> None:
    """A connection with a viewer's key that stays, and is not made anew where it is cut off."""
    sock = kit.context.socket(kind)
    kit.sockets.append(sock)
    pair = keys.load(kit.secret("view"))
    sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
    sock.curve_serverkey = kit.public["root1"].encode()
    sock.linger, sock.reconnect_ivl = 0, -1
    sock.connect(url)


@pytest.mark.invariant("T10")
def test_silent_connections_of_a_key_keep_no_node_out(kit: Hostile, many_descriptors: None) -> None:
    kit.context.set(zmq.MAX_SOCKETS, 3 * EACH + 100)
    kit.node("n1")
    config = (kit.base / "root1.toml").read_text()
    lines = [line.split('"') for line in config.splitlines() if line.startswith(("tree = ", "events = ", "replay = "))]
    pid = kit.processes["root1"].pid
    soft = len(list(Path(f"/proc/{pid}/fd").iterdir())) + LEFT
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, soft))
    for port, url, _ in lines:
        for _ in range(EACH):
            _says_nothing(kit, zmq.SUB if port.startswith("events") else zmq.DEALER, url)
    wait_for(lambda: "of one host that say nothing" in kit.logs(), 60)
    if "descriptors are left" in kit.logs():  # they came faster than it ended them
        wait_for(lambda: "let in again" in kit.logs(), 60)
    kit.node("n2")
    kit.still_at_work()


@pytest.mark.invariant("T10")
def test_connections_of_a_key_that_speak_have_a_bound(kit: Hostile) -> None:
    kit.node("n1")
    pid = kit.processes["root1"].pid

    def used() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    before, socks = used(), list[zmq.Socket[bytes]]()
    for n in range(TREE_CONNECTIONS_EACH_MAX + 40):
        socks.append(kit.dealer("view"))
        kit.hello(socks[-1], "view", "client", session=(n + 2) << 21)
    wait_for(lambda: "too many connections of the key" in kit.logs(), 20)
    for sock in socks[TREE_CONNECTIONS_EACH_MAX:]:
        sock.close(0)
    wait_for(lambda: used() <= before + TREE_CONNECTIONS_EACH_MAX + 8, 20)
    kit.node("n2")
    op = kit.person("op")
    kit.request(op, "nodes")
    assert kit.result(op).head["exit"] == 0


@pytest.mark.invariant("V4")
@pytest.mark.parametrize("port", ["events", "replay"])
def test_a_key_has_so_many_connections_at_a_public_port(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "PUBLIC_CONNECTIONS_EACH_MAX", 8)
    monkeypatch.setattr(replay, "PUBLIC_CONNECTIONS_EACH_MAX", 8)
    root, context, made = Root(tmp_path, Keys()), zmq.Context[Any](), list[zmq.Socket[Any]]()
    part: Any = root.publisher if port == "events" else root.server
    refused: Callable[[], int] = lambda: part.stats()["refused"].get(subscriptions.TOO_MANY_OF_KEY, 0)  # noqa: E731

    def begin(who: str) -> None:
        sock = root.keys.secure(context.socket(zmq.SUB if port == "events" else zmq.DEALER), who)
        made.append(sock)
        sock.linger, sock.rcvtimeo, sock.reconnect_ivl = 0, 30_000, 1000
        sock.connect(root.events if port == "events" else root.replay)
        sock.subscribe("pact.v1.") if port == "events" else sock.send_multipart([b"SNAPSHOT"])

    def answered(sock: zmq.Socket[Any]) -> bool:
        number = root.commit(Chain(f"n{root.state.gseq + 2}").batch("committed")) if port == "events" else -1
        return numbers(sock, number)[-1] == number if port == "events" else bool(sock.recv_multipart())

    try:
        for _ in range(8):
            begin("sub")
        if port == "events":
            assert until(lambda: root.publisher.stats()["subscriptions"] == 8)
        else:
            assert all(answered(sock) for sock in made)
        assert not refused()
        begin("sub")
        assert until(lambda: refused() > 0)
        begin("view")
        if port == "events":
            assert until(lambda: root.publisher.stats()["subscriptions"] >= 9)
        assert answered(made[-1]) and (port == "replay" or answered(made[0]))
        for _ in range(4):
            made.pop(0).close(0)
        assert until(lambda: (time.sleep(0.3), refused())[1] == refused(), 20), "the ninth has a place now"
    finally:
        for sock in made:
            sock.close(0)
        context.term()
        root.stop()


# -- the counting ---------------------------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Callable[[], tuple[int, int]]]:
    """New connections on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def make() -> tuple[int, int]:
            kept.append(socket.create_connection(server.getsockname()))
            kept.append(server.accept()[0])
            which = connection(kept[-1].fileno())
            assert which is not None
            return which

        yield make
        for sock in kept:
            try:
                sock.close()
            except OSError:
                pass  # a test has closed its descriptor


def test_the_silent_ones_beyond_the_bound_are_named_and_no_other(made: Callable[[], tuple[int, int]]) -> None:
    silent = Silent(2, young_s=0.0)
    first, late = made(), made()
    silent.heard(late)  # read before it is known to be accepted
    silent.accepted([first, late, made()])
    silent.heard(first)
    silent.accepted([made()])
    assert silent.look() == []
    third = made()
    silent.accepted([third])
    assert silent.look() == [third[0]] and silent.look() == []
    young = Silent(0, young_s=60.0)
    young.accepted([made()])
    assert young.look() == [], "it was just made"


def test_who_has_gone_counts_no_more(made: Callable[[], tuple[int, int]]) -> None:
    silent, keys = Silent(1, young_s=0.0), KeyPlaces(1)
    gone, there = made(), made()
    silent.accepted([gone, there])
    assert keys.heard(gone, "ann")
    gone_socket = socket.socket(fileno=gone[0])
    gone_socket.close()
    assert silent.look() == []
    assert keys.heard(there, "ann"), "the first has ended"
    assert not keys.heard(made(), "ann") and keys.heard(made(), "bob")


def test_a_descriptor_is_counted_for_whom_it_is_now(made: Callable[[], tuple[int, int]]) -> None:
    keys = KeyPlaces(1)
    which = made()
    assert keys.heard(which, "ann") and which[0] in keys
    keys.accepted([which])
    assert which[0] not in keys
    assert keys.heard(which, "bob") and keys.heard(made(), "ann")
    assert SILENT_CONNECTIONS_MAX > 64 and places.YOUNG_S > 1 and gate.TREE_CONNECTIONS_EACH_MAX >= 64


def test_who_speaks_during_a_look_is_heard(
    made: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads goes on meanwhile."""
    silent = Silent(1, 0.0)
    first, late = [made() for _ in range(3)], made()
    for which in first:
        silent.heard(which)

    def asked(fd: int) -> tuple[int, int] | None:
        silent.heard(late)
        return connection(fd)

    monkeypatch.setattr(places, "connection", asked)
    assert silent.look() == []
    silent.accepted([late, *first])
    assert silent.look() == []


def test_who_speaks_again_while_it_is_struck_off_ends_no_look(made: Callable[[], tuple[int, int]]) -> None:
    """It was read before it was known to be accepted, and is read once more at this moment, in the other thread."""
    silent = Silent(1, 0.0)
    which = made()

    class Spoke(set[tuple[int, int]]):
        def intersection(self, *others: Any) -> set[tuple[int, int]]:
            found = set(self).intersection(*others)
            silent.heard(which)
            return found

    silent.heard(which)
    silent.accepted([which])
    silent._spoke = Spoke(silent._spoke)
    assert silent.look() == []
