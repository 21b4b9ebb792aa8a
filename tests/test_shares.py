"""What one node may write into the root's log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_root import Chain

from pact.cluster.nodesets import NodeSets
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.shares import Shares
from pact.core.root.term import Commit, Down, Limits, Note
from pact.core.tree.wire import message
from pact.limits import SHARE_BYTES, SHARE_EVENTS
from pact.model import NS_PER_S


def lines_of(chain: Chain, count: int) -> list[bytes]:
    return list(chain.batch(*["committed"] * count).lines)


class Log:
    """A root whose log is durable at once."""

    def __init__(self, share: int = 10) -> None:
        self.t_ns = NS_PER_S
        self.root = Root("r", RootState(), 1, NodeSets(), Limits(share_per_s=share))
        self.acks: dict[str, tuple[int, bool]] = {}
        self.notes: list[str] = []
        self.perform(self.root.start(self.t_ns, 1, "b", 0))

    def perform(self, effects: list[object]) -> None:
        for e in effects:
            if isinstance(e, Commit):
                self.perform(list(self.root.durable(e.first, e.count, self.t_ns, 2)))
            elif isinstance(e, Down) and e.kind == "ack":
                self.acks.update({node: (seq, rewind) for node, _, seq, rewind in e.head["cursors"]})
            elif isinstance(e, Note):
                self.notes.append(e.text)

    def send(self, chain: Chain, lines: list[bytes], first: int) -> tuple[int, bool]:
        """One batch; what the node hears of it."""
        body = b"".join(line + b"\n" for line in lines)
        row = [chain.node, chain.incarnation, first, len(lines), len(body)]
        self.perform(list(self.root.received(message("events", {"batches": [row]}, body), self.t_ns, 2)))
        self.t_ns += 2 * NS_PER_S // 1000
        return self.acks.pop(chain.node, (-2, False))


@pytest.mark.invariant("T9")
def test_a_node_that_floods_the_log_is_named_and_slowed_and_loses_nothing() -> None:
    log, loud, quiet = Log(), Chain("loud"), Chain("quiet")
    lines = lines_of(loud, SHARE_EVENTS + 2_000)
    at = 0
    while at < len(lines):
        seq, rewind = log.send(loud, lines[at : at + 250], at)
        if rewind or seq == -2:
            break
        at = seq + 1
    assert SHARE_EVENTS <= at < SHARE_EVENTS + 1_000
    assert any("events over its share" in text and "loud" in text for text in log.notes)
    assert log.root.counters.refused
    # Others are as before, and it goes on slowly, from where it was.
    assert log.send(quiet, lines_of(quiet, 5), 0) == (4, False)
    began_ns, from_ = log.t_ns, at
    while at < len(lines):
        log.t_ns += NS_PER_S
        seq, _ = log.send(loud, lines[at : at + 250], at)
        at = max(at, seq + 1)
    passed_s = (log.t_ns - began_ns) / NS_PER_S
    assert (len(lines) - from_) / 12 - 30 < passed_s < (len(lines) - from_) / 8
    assert log.root.state.cursors["loud"].seq == len(lines) - 1


def test_what_is_sent_again_costs_no_share_and_a_share_of_nothing_is_no_limit() -> None:
    log, chain = Log(), Chain("n")
    lines = lines_of(chain, 500)
    assert log.send(chain, lines[:250], 0) == (249, False)
    for _ in range(200):
        assert log.send(chain, lines[:250], 0) == (249, False)
    assert log.send(chain, lines[250:], 250) == (499, False)
    free = Log(0)
    other = Chain("m")
    many = lines_of(other, SHARE_EVENTS + 500)
    for at in range(0, len(many), 250):
        assert free.send(other, many[at : at + 250], at) == (at + 249, False)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(1, 40 << 20), st.integers(0, 100)), max_size=60))
def test_nobody_gets_more_than_his_share_and_one_batch(rows: list[tuple[int, int, int]]) -> None:
    shares, t_ns, events, volume = Shares(10), 0, 0, 0
    for count, size, wait_s in rows:
        t_ns += wait_s * NS_PER_S
        if shares.takes("n", count, size, t_ns):
            events, volume = events + count, volume + size
        assert events <= SHARE_EVENTS + 5_000 + 10 * t_ns / NS_PER_S
        assert volume <= SHARE_BYTES + (40 << 20) + 10 * (16 << 10) * t_ns / NS_PER_S


def test_who_has_been_quiet_is_not_remembered() -> None:
    shares = Shares(10)
    assert shares.takes("a", 100, 1, 0) and shares.takes("b", 10_000, 1, 0)
    shares.forget(["a", "b", "c"], 20 * NS_PER_S)
    assert list(shares._used) == ["b"]
