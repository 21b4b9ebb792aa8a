"""Who asks whether a key may come in, and that nobody does without being asked about. Real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from cluster_kit import Kit

from pact.cluster import zap
from pact.core.tree import wire
from pact.model import NS_PER_S
from pact.net import keys

NAMES = {"root1": "aggregator", "n001": "node", "n002": "node"}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, NAMES)
    yield kit
    kit.close()


@pytest.mark.invariant("T10")
def test_authentication_goes_on_while_its_socket_is_renewed(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zap, "RENEW_AFTER", 2)
    monkeypatch.setattr(zap, "ANSWERED_NS", NS_PER_S)
    root = kit.start_root()
    assert kit.aggregator is not None
    seen = {id(kit.aggregator.zap.socket): kit.aggregator.zap.socket}
    n1 = kit.joined("n001")
    for i in range(12):
        n2 = kit.joined("n002", session=(i + 2) << 20)
        kit.during(0.4)
        for each in kit.aggregator.zap.sockets:
            seen[id(each)] = each
        assert len(kit.aggregator.zap.sockets) <= 2
        public, secret = zmq.curve_keypair()
        stranger = kit.dealer("n001", key=keys.Key(public.decode(), secret.decode()))
        kit.hello(stranger, "n001")
        assert kit.maybe(stranger, 0.3) is None
        n2.close(0)
        n1.send(wire.LIVES)
    assert len(seen) >= 3
    kit.during(2)
    assert sum(each.closed for each in seen.values()) >= len(seen) - 2, "the old ones do not stay"
    n1.send(wire.encode("events", {"batches": [["n001", "i", 0, 1, 3]]}, b"{}\n"))
    kit.until(lambda: len(root.lines) == 1, "who came with the first one is heard")


@pytest.mark.invariant("T10")
def test_nobody_comes_in_while_there_is_nobody_to_ask(kit: Kit) -> None:
    """libzmq lets everybody in where no handler is bound, unless it is told not to."""
    kit.start_root()
    assert kit.aggregator is not None
    kit.aggregator.zap.socket.unbind(zap.ENDPOINT)
    n1 = kit.dealer("n001")
    monitor = n1.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    kit.hello(n1, "n001")
    kit.during(1.5)
    assert not monitor.poll(0) and kit.maybe(n1, 0.2) is None
    kit.aggregator.zap.socket.bind(zap.ENDPOINT)
    kit.until(lambda: monitor.poll(0), "it comes in by itself", 5)
    n1.disable_monitor()
    monitor.close(0)
    kit.hello(n1, "n001")
    assert kit.receive(n1).kind == "welcome"


@pytest.mark.invariant("S3", "T10")
def test_strangers_with_ever_new_keys_do_not_fill_the_log(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zap, "STRANGERS_AT_ONCE", 20, raising=False)
    monkeypatch.setattr(zap, "STRANGERS_EVERY_S", 2.0, raising=False)
    kit.start_root()
    assert kit.aggregator is not None
    asks = kit.aggregator.zap

    def come(count: int) -> None:
        before = asks.refused
        for _ in range(count):
            public, secret = zmq.curve_keypair()
            kit.dealer("n001", key=keys.Key(public.decode(), secret.decode()))
        kit.until(lambda: asks.refused >= before + count, "all are refused")

    come(120)
    said = [line for line in capfd.readouterr().err.splitlines() if "refused the key" in line]
    assert 20 <= len(said) < 40
    kit.during(2.5)
    come(1)
    told = [line for line in capfd.readouterr().err.splitlines() if "refused the key" in line]
    assert told and "more that were not told" in told[0]
    kit.joined("n001")
