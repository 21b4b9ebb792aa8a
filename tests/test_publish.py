"""The publisher and the replay port on real sockets with real keys, and the example subscribers, through restarts and losses."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
from cluster_kit import free_ports
from public_root import Chain, Keys, Root, build
from rootlog_suite import until

from pact.cluster import publish
from pact.cluster.publish import Endpoint, Publisher
from pact.cluster.zap import Zap
from pact.core.root.term import Publish

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture
def roots(tmp_path: Path, keys: Keys) -> Iterator[Callable[..., Root]]:
    made: list[Root] = []

    def make(**limits: Any) -> Root:
        made.append(Root(tmp_path, keys, **limits))
        return made[-1]

    yield make
    for root in made:
        root.stop()


@pytest.fixture
def root(roots: Callable[..., Root]) -> Root:
    return roots()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(0)


@pytest.fixture
def connect(context: zmq.Context[Any], keys: Keys) -> Iterator[Callable[..., zmq.Socket[Any]]]:
    made: list[zmq.Socket[Any]] = []

    def connect(kind: int, url: str, name: str = "sub", **options: int) -> zmq.Socket[Any]:
        sock = keys.secure(context.socket(kind), name)
        sock.linger, sock.rcvtimeo = 0, 10_000
        for option, value in options.items():
            setattr(sock, option, value)
        sock.connect(url)
        made.append(sock)
        return sock

    yield connect
    for sock in made:
        sock.close(0)


def subscribed(sock: zmq.Socket[Any], *topics: str) -> None:
    """Subscribe, and wait until the first heads have come: nothing is missed from then on."""
    for topic in (*topics, "pact.v1.heads."):
        sock.subscribe(topic)
    assert b".heads." in sock.recv_multipart()[0]


def next_event(sock: zmq.Socket[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    for _ in range(20):
        topic, header, body = sock.recv_multipart()
        if b".heads." not in topic:
            return orjson.loads(header), orjson.loads(body)
    raise AssertionError("only heads came")


def ask(sock: zmq.Socket[Any], *words: bytes) -> list[list[bytes]]:
    """Everything up to the control message."""
    sock.send_multipart(words)
    out = [sock.recv_multipart()]
    while len(out[-1]) == 3 and out[-1][0].startswith(b"pact."):
        out.append(sock.recv_multipart())
    return out


# -- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V1")
def test_subscribers_get_what_they_asked_for_in_three_frames(root: Root, connect: Any) -> None:
    everything, one = connect(zmq.SUB, root.events), connect(zmq.SUB, root.events, "view")
    subscribed(everything, "pact.v1.")
    subscribed(one, "pact.v1.committed.c1.r1.n1.")
    a, b = Chain("n1"), Chain("n10")
    root.commit(a.batch("committed", "drift_detected"), b.batch("committed"))
    root.commit(a.batch("committed"))
    assert [next_event(everything)[0]["gseq"] for _ in range(4)] == [0, 1, 2, 3]
    assert [(h["node"], h["gseq"], h["prev"]) for h, _ in (next_event(one), next_event(one))] == [
        ("n1", 0, -1),
        ("n1", 3, 2),
    ]


@pytest.mark.invariant("V1")
def test_heads_come_by_themselves_and_stop_with_the_leadership(root: Root, connect: Any) -> None:
    root.commit(Chain("n1").batch("committed", "drift_detected"))
    sock = connect(zmq.SUB, root.events)
    subscribed(sock)
    header, body = (orjson.loads(f) for f in sock.recv_multipart()[1:])
    assert body == {"gseq": 1, "types": {"committed": 0, "drift_detected": 1}}
    assert (header["node"], header["incarnation"]) == ("_root", "log1")
    root.publisher.depose()
    time.sleep(0.3)
    while sock.poll(0):
        sock.recv_multipart()
    assert not sock.poll(600)
    root.publisher.lead(-1, {})  # an empty log has no name yet; with one, later, it would look like another log
    assert not sock.poll(600)
    root.publisher.publish(Publish(build(root.state, [Chain("n2").batch("committed")])[2], {"committed": 2}, "log2"))
    header, body = (orjson.loads(f) for f in sock.recv_multipart()[1:])
    assert (header["incarnation"], body["gseq"]) == ("log2", 2)


@pytest.mark.invariant("V4", "F39")
def test_a_subscriber_that_never_reads_costs_nobody_anything(roots: Callable[..., Root], connect: Any) -> None:
    root = roots(send_max=400)
    deaf = connect(zmq.SUB, root.events, rcvhwm=1, rcvbuf=4096)
    deaf.subscribe("")
    sock = connect(zmq.SUB, root.events, rcvhwm=100_000)
    subscribed(sock, "pact.v1.")
    chain, data = Chain("n1"), {"x": "y" * 2000}
    got = []
    for _ in range(60):
        root.commit(chain.batch(*["committed"] * 100, data=data))
        got += [next_event(sock)[0]["gseq"] for _ in range(100)]
        assert got[-1] == len(got) - 1
    assert got == list(range(6000))
    assert root.publisher.stats()["waiting_bytes"] == 0
    few, end = 0, time.monotonic() + 1
    while time.monotonic() < end:
        few += deaf.poll(100) > 0 and b".heads." not in deaf.recv_multipart()[0]
    assert 0 < few < 4000  # what the queues held; the rest it can ask for


@pytest.mark.invariant("V4")
def test_what_the_publisher_cannot_keep_up_with_is_left_to_the_replay_port(context: zmq.Context[Any]) -> None:
    publisher = Publisher(context, Endpoint("tcp://127.0.0.1:*"), "c1")
    raw = bytes(20 << 20)
    assert [publisher.publish(Publish(raw, {}, "log1")) for _ in range(5)] == [True, True, True, False, False]
    assert publisher.stats()["left_out"] == 2
    for n in range(1000):
        publisher.lead(n, {})
    assert len(publisher._queue) == 4
    publisher.close()


def test_nothing_is_put_into_frames_while_nobody_listens(root: Root, connect: Any) -> None:
    chain = Chain("n1")
    root.commit(chain.batch("committed", "committed"))
    assert until(lambda: root.publisher.stats()["waiting_bytes"] == 0)  # else it hears them
    sock = connect(zmq.SUB, root.events)
    subscribed(sock, "pact.v1.")
    assert root.publisher.stats()["published"] == 0
    root.commit(chain.batch("committed"))
    header, _ = next_event(sock)
    assert (header["gseq"], header["prev"]) == (2, 1)
    sock.close(0)
    assert until(lambda: root.publisher.stats()["subscriptions"] == 0)


@pytest.mark.parametrize("who", ["n1", "nobody"])
def test_a_nodes_key_and_an_unknown_one_hear_nothing(root: Root, connect: Any, who: str) -> None:
    sock = connect(zmq.SUB, root.events, who)
    sock.subscribe("")
    port = connect(zmq.DEALER, root.replay, who)
    port.send_multipart([b"GET", b"*", b"0"])
    root.commit(Chain("n1").batch("committed"))
    assert not sock.poll(700)
    assert not port.poll(0)


def test_a_removed_key_loses_its_connection_and_the_others_come_back(
    tmp_path: Path, roots: Callable[..., Root], connect: Any, keys: Keys
) -> None:
    root = roots()
    view, sub = connect(zmq.SUB, root.events, "view"), connect(zmq.SUB, root.events)
    subscribed(view)
    subscribed(sub)
    whole = keys.authorized
    try:
        keys.authorized = type(whole)(p for p in whole.peers.values() if p.name != "view")
        root.zap._allowed = keys.authorized.may_connect
        root.publisher.rebind()
        time.sleep(0.3)
        while view.poll(0):
            view.recv_multipart()
        assert sub.poll(5000)
        assert not view.poll(1000)
    finally:
        keys.authorized = whole


def test_an_address_that_is_taken_is_tried_until_it_is_free(context: zmq.Context[Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        publisher = Publisher(context, Endpoint(f"tcp://127.0.0.1:{taken.getsockname()[1]}"), "c1")
        publisher.start()
        assert not publisher.bound.wait(0.3)
        assert "in use" in publisher.error
    assert publisher.bound.wait(10)
    publisher.close()


# -- replay ---------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V2")
def test_the_replay_port_gives_the_same_frames_again(root: Root, connect: Any) -> None:
    live, port = connect(zmq.SUB, root.events), connect(zmq.DEALER, root.replay)
    subscribed(live, "pact.v1.")
    a, b = Chain("n1"), Chain("n2")
    root.commit(a.batch("committed", "drift_detected"), b.batch("committed"))
    root.commit(b.batch("drift_detected"))
    heard: list[list[bytes]] = []
    while len(heard) < 4:
        frames = live.recv_multipart()
        heard += [frames] if b".heads." not in frames[0] else []
    assert ask(port, b"GET", b"*", b"0") == [*heard, [b"UPTO", b"3"]]
    assert ask(port, b"GET", b"committed", b"1") == [heard[2], [b"UPTO", b"3"]]
    assert ask(port, b"GET", b"*", b"4") == [[b"UPTO", b"3"]]
    assert ask(port, b'["GET","*",3]') == [heard[3], [b'["UPTO",3]']]
    assert ask(port, b"SNAPSHOT") == [[b"SNAPSHOT", b"3", b'{"nodes":{}}']]
    root.trim(3)
    assert ask(port, b"GET", b"*", b"0") == [[b"TRUNCATED", b"3"]]


def test_a_req_socket_is_understood_too(root: Root, connect: Any) -> None:
    req = connect(zmq.REQ, root.replay, "view")
    assert ask(req, b"GET", b"*", b"0") == [[b"UPTO", b"-1"]]
    assert ask(req, b"nonsense")[0][0] == b"ERROR"


@pytest.mark.invariant("V4", "F40")
def test_garbage_is_refused_counted_and_harms_nobody(root: Root, connect: Any) -> None:
    port, other = connect(zmq.DEALER, root.replay), connect(zmq.DEALER, root.replay, "view")
    for frames in ([b"\xff" * 900], [b"GET"], [b""], [b"GET", b"*", b"-5"], [b"["], [b"x"] * 50):
        answer = ask(port, *frames)
        assert any(b"ERROR" in frame for frame in answer[0])
        assert sum(map(len, answer[0])) < 150
    assert root.server.stats()["refused"]["garbage"] == 6
    port.send(bytes(10_000))  # larger than any request: the connection ends, and comes back
    assert ask(other, b"GET", b"*", b"0") == [[b"UPTO", b"-1"]]
    port.send_multipart([b"GET", b"*", b"0"])
    assert until(lambda: port.poll(100) or port.send_multipart([b"GET", b"*", b"0"]))


def test_a_log_that_cannot_be_read_now_is_an_error_and_then_read(root: Root, connect: Any) -> None:
    port = connect(zmq.DEALER, root.replay)
    root.commit(Chain("n1").batch("committed"))
    root.broken = True
    assert ask(port, b"GET", b"*", b"0")[0][0] == b"ERROR"
    root.broken = False
    assert ask(port, b"GET", b"*", b"0")[-1] == [b"UPTO", b"0"]
    root.server._head = lambda: None
    assert b"does not lead" in ask(port, b"GET", b"*", b"0")[0][1]


@pytest.mark.invariant("V4")
def test_a_requester_that_does_not_read_waits_for_itself(roots: Callable[..., Root], connect: Any) -> None:
    root = roots(replay_send_max=10, unread_max_s=1.0)
    chain, data = Chain("n1"), {"x": "y" * 20_000}
    for _ in range(40):
        root.commit(chain.batch(*["committed"] * 20, data=data))
    deaf = connect(zmq.DEALER, root.replay, "view", rcvhwm=1, rcvbuf=4096)
    for _ in range(50):
        deaf.send_multipart([b"GET", b"*", b"0"])
    time.sleep(0.2)
    port = connect(zmq.DEALER, root.replay)
    got, start = [], 0
    while start < 800:
        *events, (word, upto) = ask(port, b"GET", b"*", str(start).encode())
        assert word == b"UPTO"
        got += [orjson.loads(e[1])["gseq"] for e in events]
        start = int(upto) + 1
    assert got == list(range(800))
    stats = root.server.stats()
    assert until(lambda: root.server.stats()["gave_up"] == 1), stats
    assert stats["refused"]["too many requests"] > 0
    assert until(lambda: root.server.stats()["waiting"] == 0)


@pytest.mark.invariant("V2")
def test_a_slow_requester_gets_all_of_it(roots: Callable[..., Root], connect: Any) -> None:
    root = roots(replay_send_max=5)
    chain, data = Chain("n1"), {"x": "y" * 50_000}
    for _ in range(20):
        root.commit(chain.batch(*["committed"] * 10, data=data))
    port = connect(zmq.DEALER, root.replay, rcvhwm=2, rcvbuf=4096)
    got, start = [], 0
    while start < 200:
        port.send_multipart([b"GET", b"*", str(start).encode()])
        while len(frames := port.recv_multipart()) == 3:
            got.append(orjson.loads(frames[1])["gseq"])
            time.sleep(0.005)
        start = int(frames[1]) + 1
    assert got == list(range(200))


@pytest.mark.invariant("V4", "F40")
def test_one_key_holds_a_bounded_number_of_places(roots: Callable[..., Root], connect: Any) -> None:
    root = roots(replay_send_max=1)
    root.commit(*[Chain("n1").batch(*["committed"] * 400, data={"x": "y" * 9000})])
    deaf = [connect(zmq.DEALER, root.replay, "view", rcvhwm=1, rcvbuf=4096) for _ in range(24)]
    for sock in deaf:
        sock.send_multipart([b"GET", b"*", b"0"])
    assert until(lambda: root.server.stats()["refused"].get("too many requesters", 0) >= 8)
    port = connect(zmq.DEALER, root.replay)
    assert ask(port, b"GET", b"drift_detected", b"0") == [[b"UPTO", b"399"]]


# -- the examples ---------------------------------------------------------------------------------------------------


class Follower:
    """An example subscriber as a process, and the lines it has printed."""

    def __init__(self, command: list[str], keys: Keys, root: Root, *more: str) -> None:
        arguments = [root.events, root.replay, keys.server[0], keys.pairs["sub"][1], *(more or ("*", "0"))]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self.lines.append(line.rstrip("\n"))

    def numbers(self) -> list[int]:
        return [int(line.split()[0]) for line in self.lines if line[0].isdigit()]

    def others(self) -> list[str]:
        return [line for line in self.lines if not line[0].isdigit()]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    out = {"python": [sys.executable, "-I", "-W", "error", str(EXAMPLES / "subscriber.py")]}
    compiler = shutil.which("cc")
    if (
        compiler
        and subprocess.run(
            [compiler, "-E", "-xc", "-"], input="#include <zmq.h>", text=True, check=False, capture_output=True
        ).returncode
        == 0
    ):
        binary = tmp_path_factory.mktemp("c") / "subscriber"
        subprocess.run(
            [
                compiler,
                "-Wall",
                "-Wextra",
                "-Werror",
                "-O2",
                "-o",
                str(binary),
                str(EXAMPLES / "subscriber.c"),
                "-lzmq",
            ],
            check=True,
        )
        out["c"] = [str(binary)]
    return out


@pytest.fixture(params=["python", "c"])
def follow(request: pytest.FixtureRequest, commands: dict[str, list[str]], keys: Keys) -> Iterator[Any]:
    if request.param not in commands:
        pytest.skip("no C compiler with zmq.h: apt-get install gcc libzmq3-dev")
    made: list[Follower] = []

    def follow(root: Root, *more: str) -> Follower:
        made.append(Follower(commands[request.param], keys, root, *more))
        return made[-1]

    yield follow
    for follower in made:
        follower.close()


def test_the_examples_are_short_and_need_nothing_but_zeromq() -> None:
    for path in EXAMPLES.iterdir():
        assert len(path.read_text().splitlines()) < 60
    assert set(re.findall(r"^import (.*)$", (EXAMPLES / "subscriber.py").read_text(), re.M)) == {"json, sys, time, zmq"}


@pytest.mark.invariant("V1", "V2", "F34")
def test_a_follower_misses_nothing_through_restarts_and_losses(follow: Any, root: Root) -> None:
    chain = Chain("n1")
    last = root.commit(chain.batch(*["committed", "drift_detected"] * 5))
    follower = follow(root)
    assert until(lambda: len(follower.numbers()) == last + 1)
    for round_ in range(3):
        for n in range(6):
            last = root.commit(chain.batch("committed", "drift_detected"), publish=n % 3 != 1)  # lost on the way
        root.stop()
        root.start()
        if round_ == 1:
            root.stop()  # and nobody there for a while
            time.sleep(1)
            root.start()
        last = root.commit(chain.batch("committed"))
        assert until(lambda: len(follower.numbers()) == last + 1, 30), (last, follower.numbers())  # noqa: B023
    assert follower.numbers() == list(range(last + 1))
    assert follower.others() == []


@pytest.mark.invariant("V1", "V2")
def test_a_follower_of_one_type_misses_none_of_it(follow: Any, root: Root) -> None:
    chain = Chain("n1")
    root.commit(chain.batch("committed", "drift_detected", "committed"))
    follower = follow(root, "committed", "0")
    assert until(lambda: follower.numbers() == [0, 2])
    root.commit(chain.batch("drift_detected", "committed"), publish=False)
    root.commit(chain.batch("committed", "drift_detected"))  # its header tells that one is missing
    assert until(lambda: follower.numbers() == [0, 2, 4, 5])
    root.commit(chain.batch("committed"), publish=False)
    root.publisher.lead(root.state.gseq, root.state.last, "log1")  # and so do heads
    assert until(lambda: follower.numbers() == [0, 2, 4, 5, 7])


@pytest.mark.invariant("V2", "F39")
def test_a_follower_says_what_can_no_longer_be_had(follow: Any, root: Root) -> None:
    chain = Chain("n1")
    for _ in range(5):
        root.commit(chain.batch("committed", "committed"))
    root.trim(6)
    follower = follow(root, "*", "1")
    assert until(lambda: follower.numbers() == [6, 7, 8, 9])
    assert follower.others() == ["LOST 1..5"]
    root.commit(chain.batch("committed"))
    assert until(lambda: follower.numbers() == [6, 7, 8, 9, 10])


def test_a_follower_that_comes_late_begins_with_what_comes(follow: Any, root: Root) -> None:
    chain = Chain("n1")
    root.commit(chain.batch("committed", "committed"))
    follower = follow(root, "*")
    assert until(lambda: root.publisher.stats()["subscriptions"] >= 2)
    time.sleep(0.5)
    root.commit(chain.batch("committed"), publish=False)
    root.commit(chain.batch("committed"))
    assert until(lambda: follower.numbers() == [2, 3])


@pytest.mark.invariant("V2")
def test_a_follower_gets_a_long_history_in_pages(follow: Any, root: Root) -> None:
    chain = Chain("n1")
    for _ in range(10):
        last = root.commit(chain.batch(*["committed"] * 350))
    follower = follow(root)
    assert until(lambda: len(follower.numbers()) == last + 1)
    assert follower.numbers() == list(range(last + 1))


@pytest.mark.invariant("T10")
def test_nobody_reads_events_while_there_is_nobody_to_ask() -> None:
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    (port,) = free_ports(1)
    at = Endpoint(f"tcp://127.0.0.1:{port}", secret.decode(), "events")
    pub, sub = publish.bind(context, zmq.XPUB, at, {}), context.socket(zmq.SUB)
    sub.curve_publickey, sub.curve_secretkey = zmq.curve_keypair()
    sub.curve_serverkey, sub.linger = public, 0
    sub.subscribe(b"")
    try:
        sub.connect(at.address)
        assert not pub.poll(1_000), "no subscription came through"
        pub.send(b"secret")
        assert not sub.poll(300)
        asked = Zap(context, lambda *_: True, print)
        ends = time.monotonic() + 5
        while not pub.poll(20) and time.monotonic() < ends:
            asked.drain()
        assert pub.recv() == b"\x01", "with somebody to ask it comes in by itself"
        asked.close()
    finally:
        sub.close(0)
        pub.close(0)
        context.term()
