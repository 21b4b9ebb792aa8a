"""Many messages at a time, in C and with pyzmq alone: the same results on real sockets."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from pact._fast import BACKEND
from pact._fast import reference_sockets as naive
from pact.cluster.zap import Zap
from pact.net import ports

SHARED = 256
STORM_S = 0.00005
"""Between two signals: less than a call of libzmq takes, more than a handler."""
STORM_ENDS_S = 3
"""On a machine where signals take all the time, fewer messages do."""
KINDS = [naive.Port, ports.Port] if BACKEND == "compiled" else [naive.Port]


class Pair:
    """A ROUTER and one DEALER on loopback, with CURVE."""

    def __init__(self, port: Any) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.zap = Zap(self.context, lambda *_: True, print)
        self.router, self.dealer = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        public, secret = zmq.curve_keypair()
        self.public, mine = zmq.curve_keypair()
        self.router.curve_server, self.router.curve_secretkey = True, secret
        self.router.set(zmq.ROUTER_MANDATORY, 1)
        self.dealer.curve_publickey, self.dealer.curve_secretkey, self.dealer.curve_serverkey = (
            self.public,
            mine,
            public,
        )
        self.router.zap_domain = b"tree"
        self.dealer.connect(f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}")
        assert self.zap.socket.poll(5_000) and not self.zap.drain()
        self.up, self.down = port(self.router, SHARED), port(self.dealer, SHARED)

    def close(self) -> None:
        self.router.close(0)
        self.dealer.close(0)
        self.zap.close()
        self.context.term()

    def taken(self, port: Any, call: Any, count: int) -> list[Any]:
        """``count`` messages, whenever they come."""
        out: list[Any] = []
        ends = time.monotonic() + 10
        while len(out) < count:
            assert time.monotonic() < ends, out
            messages, everything = call(5)
            size = sum(len((m[3] if isinstance(m, tuple) else m) or b"") for m in messages)
            assert len(messages) <= 5 and (everything or len(messages) == 5 or size >= naive.READ_BYTES)
            out += messages
            if everything and len(out) < count:
                port.socket.poll(50)
        return out


@pytest.fixture(params=KINDS, ids=[k.__module__.rpartition(".")[2] for k in KINDS], scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    yield pair
    pair.close()


def test_the_compiled_ports_are_taken() -> None:
    assert (ports.Port.__module__ == "pact._fast.sockets") == (BACKEND == "compiled")


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=3), min_size=1, max_size=12))
def test_what_is_sent_comes_as_it_was_and_several_frames_are_none(pair: Pair, frames: list[list[bytes]]) -> None:
    for parts in frames:
        if len(parts) == 1:
            assert pair.down.send(parts[0])
        else:
            pair.dealer.send_multipart(parts)
    came = pair.taken(pair.up, pair.up.receive_from, len(frames))
    for (rid, key, connection, frame), parts in zip(came, frames, strict=True):
        assert rid and key == pair.public.decode() and connection > 2
        if len(parts) > 1:
            assert frame is None
        else:
            assert type(frame) is (memoryview if len(parts[0]) >= SHARED else bytes) and bytes(frame) == parts[0]
            assert type(frame) is bytes or frame.readonly
    rid = came[0][0]
    for parts in frames:
        if len(parts) == 1:
            assert pair.up.send_to((rid, b"nobody", rid), parts[0]) == [b"nobody"]
        else:
            pair.router.send_multipart([rid, *parts])
    wanted = [f for parts in frames for f in (parts * 2 if len(parts) == 1 else [None])]
    back = pair.taken(pair.down, pair.down.receive, len(wanted))
    assert [f if f is None else bytes(f) for f in back] == wanted
    assert pair.up.receive_from(1) == ([], True) and pair.down.receive(1) == ([], True)


@settings(max_examples=20, deadline=None)
@given(frames=st.lists(st.binary(max_size=600), min_size=1, max_size=12))
def test_each_gets_his_own_frame_and_who_is_not_there_is_named(pair: Pair, frames: list[bytes]) -> None:
    assert pair.down.send(b"here")
    ((rid, *_),) = pair.taken(pair.up, pair.up.receive_from, 1)
    rids = [b"nobody" if i % 3 == 2 else rid for i in range(len(frames))]
    assert pair.up.send_each(tuple(rids), frames) == [r for r in rids if r == b"nobody"]
    wanted = [f for r, f in zip(rids, frames, strict=True) if r == rid]
    assert [bytes(f) for f in pair.taken(pair.down, pair.down.receive, len(wanted))] == wanted
    with pytest.raises(ValueError):
        pair.up.send_each((rid,), [])


def test_a_large_message_lives_as_long_as_somebody_looks_at_it(pair: Pair) -> None:
    for i in range(20):
        assert pair.down.send(bytes([i]) * 100_000)
    tails = [frame[99_000:] for *_, frame in pair.taken(pair.up, pair.up.receive_from, 20)]
    gc.collect()
    for _ in range(20):
        assert pair.down.send(b"z" * 100_000)
    pair.taken(pair.up, pair.up.receive_from, 20)
    assert [bytes(t) for t in tails] == [bytes([i]) * 1_000 for i in range(20)]


def test_readable_says_so_also_when_the_descriptor_has_said_it_already(pair: Pair) -> None:
    assert not pair.up.readable()
    assert pair.down.send(b"one") and pair.down.send(b"two")
    pair.router.poll(5_000)
    time.sleep(0.1)
    ((rid, _, _, frame),), everything = pair.up.receive_from(1)
    assert frame == b"one" and not everything and pair.up.readable()
    assert pair.up.send_to([rid], b"back") == [] and pair.up.readable()
    assert len(pair.taken(pair.up, pair.up.receive_from, 1)) == 1 and not pair.up.readable()
    assert pair.taken(pair.down, pair.down.receive, 1) == [b"back"]


@pytest.mark.parametrize("port", KINDS, ids=[k.__module__.rpartition(".")[2] for k in KINDS])
def test_who_does_not_read_is_said_and_nobody_waits(port: Any) -> None:
    context: zmq.Context[Any] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.set(zmq.ROUTER_MANDATORY, 1)
    router.sndhwm = dealer.sndhwm = dealer.rcvhwm = router.rcvhwm = 1
    router.sndbuf = router.rcvbuf = dealer.sndbuf = dealer.rcvbuf = 4_096
    try:
        up, down = port(router, SHARED), port(dealer, SHARED)
        assert not down.send(b"x"), "nowhere to send to"
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.poll(5_000, zmq.POLLOUT)
        assert down.send(b"hello")
        router.poll(5_000)
        ((rid, key, _, frame),), _ = up.receive_from(9)
        assert (key, frame) == ("", b"hello")
        for size in (10, 100_000):
            assert any(up.send_to([rid, b"nobody"], b"y" * size) == [rid, b"nobody"] for _ in range(1_000))
    finally:
        router.close(0)
        dealer.close(0)
        context.term()


def test_signals_in_between_change_nothing(pair: Pair) -> None:
    """libzmq says EINTR where a handler ran; that is neither an error nor a lost message, nor half of one."""
    assert pair.down.send(b"hello")
    ((rid, *_),) = pair.taken(pair.up, pair.up.receive_from, 1)
    # The handler is no Python function: at the start of one, the next signal is handled, and so on without end where
    # the machine is slow.
    before = signal.signal(signal.SIGALRM, {}.get)  # type: ignore[arg-type]
    ends = time.monotonic() + STORM_ENDS_S
    signal.setitimer(signal.ITIMER_REAL, STORM_S, STORM_S)
    try:
        for i in range(3_000):
            body = b"%d" % i
            assert pair.up.send_to([rid], body) == [] and pair.down.send(body)
            pair.up.readable()
            pair.down.readable()
            if i % 50 == 49:
                wanted = [b"%d" % n for n in range(i - 49, i + 1)]
                assert pair.taken(pair.down, pair.down.receive, 50) == wanted
                assert [m[3] for m in pair.taken(pair.up, pair.up.receive_from, 50)] == wanted
                if time.monotonic() > ends:
                    break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # one that is on its way ends nobody
        signal.signal(signal.SIGALRM, before)


@pytest.mark.invariant("T9")
def test_what_is_read_at_once_is_bounded_in_bytes(pair: Pair) -> None:
    for _ in range(10):
        assert pair.down.send(b"x" * 100_000)
    ends, most = time.monotonic() + 10, 0
    left = 10
    while left and time.monotonic() < ends:
        pair.router.poll(100)
        time.sleep(0.05)
        messages, _ = pair.up.receive_from(64)
        left -= len(messages)
        most = max(most, len(messages))
    assert left == 0 and most <= 3, "three of these are 256 KiB"


@pytest.mark.parametrize("port", KINDS, ids=[k.__module__.rpartition(".")[2] for k in KINDS])
def test_after_the_end_there_is_an_error(port: Any) -> None:
    context: zmq.Context[Any] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    at = port(router, SHARED)
    with pytest.raises(TypeError):
        at.send_to([None], b"x")
    with pytest.raises(TypeError):
        at.send_to([b"x"], None)
    router.close(0)
    for call in (
        lambda: at.receive_from(1),
        lambda: at.receive(1),
        lambda: at.send(b"x"),
        lambda: at.send_to([b"x"], b"x"),
        lambda: at.send_each([b"x"], [b"x"]),
        at.readable,
    ):
        with pytest.raises(zmq.ZMQError) as error:
            call()
        assert error.value.errno == zmq.ENOTSOCK
    context.term()


@pytest.mark.parametrize("port", KINDS, ids=[k.__module__.rpartition(".")[2] for k in KINDS])
def test_what_a_socket_cannot_do_is_an_error_and_not_an_empty_socket(port: Any) -> None:
    context: zmq.Context[Any] = zmq.Context()
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for call in (
        lambda: port(push, SHARED).receive(1),
        lambda: port(push, SHARED).receive_from(1),
        lambda: port(pull, SHARED).send(b"x"),
    ):
        with pytest.raises(zmq.ZMQError) as error:
            call()
        assert error.value.errno == zmq.ENOTSUP
    push.close(0)
    pull.close(0)
    context.term()
