"""A relay's events on their way up: few messages of many, one at once, and nothing forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pact.core.tree.backlog import GATHER_BYTES, GATHER_NS, Backlog
from pact.core.tree.outbox import Up
from pact.core.tree.relay import Relay
from pact.core.tree.wire import message
from pact.model import NS_PER_S

MS = NS_PER_S // 1000
T = 5 * NS_PER_S


def put(backlog: Backlog, node: str, first: int, size: int = 100) -> None:
    assert backlog.put([node, "i", first, 1, size], node, "i", first, 1, b"x" * size)


def rows(ups: list[Up]) -> list[tuple[object, object]]:
    return [(row[0], row[2]) for up in ups for row in up.head["batches"]]


def test_one_event_goes_at_once_and_those_after_it_together() -> None:
    backlog = Backlog(1 << 20, GATHER_NS)
    backlog.welcomed(1 << 20, T)
    assert backlog.due_ns() is None and backlog.flush(T) == []
    put(backlog, "n1", 0)
    assert backlog.due_ns() is not None and rows(backlog.flush(T)) == [("n1", 0)]
    for i in range(20):
        put(backlog, f"m{i}", 0)
        assert backlog.flush(T + (i + 1) * MS) == []
    due_ns = backlog.due_ns()
    assert due_ns == T + GATHER_NS
    (up,) = backlog.flush(due_ns)
    assert len(up.head["batches"]) == 20
    assert backlog.due_ns() is None


def test_much_does_not_wait() -> None:
    backlog = Backlog(16 << 20, GATHER_NS)
    backlog.welcomed(16 << 20, T)
    put(backlog, "n1", 0)
    backlog.flush(T)
    put(backlog, "n1", 1, GATHER_BYTES)
    assert backlog.due_ns() == 0 and rows(backlog.flush(T + MS)) == [("n1", 1)]


def test_what_is_gone_before_it_was_sent_wakes_nobody() -> None:
    backlog = Backlog(1 << 20, GATHER_NS)
    backlog.welcomed(1 << 20, T)
    put(backlog, "n1", 0)
    backlog.flush(T)
    put(backlog, "n2", 0)
    backlog.forget("n2")
    assert backlog.due_ns() is None
    put(backlog, "n3", 0)
    backlog.acknowledged("n3", "i", 0, False, T)  # it came another way
    assert backlog.due_ns() is None and backlog.flush(T + NS_PER_S) == []
    backlog.clear()


def test_a_relay_wakes_for_what_it_gathers() -> None:
    relay = Relay("agg", gather_ns=GATHER_NS)
    relay.from_parent(message("welcome", {"v": 1, "name": "r", "path": ["r"], "fence": 1, "credit": 1 << 20}), T)
    relay.tick(T)
    put(relay.backlog, "n1", 0)
    assert relay.next_wake_ns() <= T and len(list(relay.flush(T))) == 1
    put(relay.backlog, "n1", 1)
    assert list(relay.flush(T + MS)) == [] and relay.next_wake_ns() == T + GATHER_NS
    assert len(list(relay.flush(T + GATHER_NS))) == 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["put", "flush", "ack", "forget", "welcome", "lost"]),
            st.integers(1, 40_000),
            st.integers(0, 80),
        ),
        max_size=60,
    )
)
def test_whatever_happens_what_is_kept_is_sent_once_its_time_has_come(steps: list[tuple[int, str, int, int]]) -> None:
    backlog, t_ns, numbers = Backlog(1 << 20, GATHER_NS), T, [0] * 4
    kept: dict[str, list[int]] = {}
    sent: dict[str, set[int]] = {}
    backlog.welcomed(100_000, t_ns)

    def note(ups: list[Up]) -> None:
        for node, first in rows(ups):
            sent.setdefault(str(node), set()).add(int(str(first)))

    for n, what, size, ms in steps:
        t_ns += ms * MS
        name = f"n{n}"
        if what == "put":
            if backlog.put([name, "i", numbers[n], 1, size], name, "i", numbers[n], 1, b"x" * size):
                kept.setdefault(name, []).append(numbers[n])
                numbers[n] += 1
        elif what == "flush":
            note(backlog.flush(t_ns))
        elif what == "ack" and kept.get(name):
            backlog.acknowledged(name, "i", kept[name][0], False, t_ns)
            kept[name] = kept[name][1:]
        elif what == "forget":
            backlog.forget(name)
            kept.pop(name, None)
        elif what == "welcome":
            sent.clear()
            backlog.welcomed(100_000, t_ns)
        elif what == "lost":
            backlog.lost()
    sent.clear()
    backlog.welcomed(1 << 30, t_ns)
    while (due_ns := backlog.due_ns()) is not None:
        t_ns = max(t_ns, due_ns)
        note(backlog.flush(t_ns))
    assert sent == {name: set(numbers) for name, numbers in kept.items() if numbers}
    for name in list(kept):
        backlog.forget(name)
    assert backlog.bytes == 0
    backlog.clear()
