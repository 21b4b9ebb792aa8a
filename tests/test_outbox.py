"""What a node's records may wait for on their way up, and what never waits."""

from __future__ import annotations

import pytest

from pact.core.records import GENESIS, Record, seal
from pact.core.tree.outbox import BEGUN_NS, LATER_NS, RESEND_NS, Outbox, Read, Up, wait_ns
from pact.model import NS_PER_S

T = 100 * NS_PER_S


def record(type_: str, **data: object) -> Record:
    return seal(0, GENESIS, "", 0, "n", type_, {}, data)[0]


def sent(box: Outbox, work: list[Read], t_ns: int = T, size: int = 100) -> list[tuple[int, int]]:
    """First number and count of each batch that goes up."""
    out, todo = [], list(work)
    while todo:
        item = todo.pop(0)
        if isinstance(item, Up):
            out.append(tuple(item.head["batches"][0][2:4]))
        else:
            todo = list(box.rows(item.first, [b"x" * size] * item.limit, t_ns)) + todo
    return out


def connected(newest: int = 2) -> Outbox:
    box = Outbox("n", "i", newest=newest)
    assert sent(box, box.welcomed(1 << 20, T)) == [(0, newest + 1)]
    return box


@pytest.mark.invariant("T5")
def test_only_a_yes_that_the_root_has_heard_can_wait() -> None:
    yes, no = record("group_prepared", vote="yes"), record("group_prepared", vote="no", why="in use")
    assert wait_ns([yes]) == wait_ns([yes, yes]) == LATER_NS
    assert not wait_ns([no]) and not wait_ns([yes, no]) and not wait_ns([yes, record("group_decided")])


@pytest.mark.invariant("T5")
def test_a_command_that_has_just_begun_waits_a_moment_for_its_end() -> None:
    begun, ended = record("exec_begun"), record("executed")
    assert wait_ns([begun, begun]) == wait_ns([begun, record("group_prepared", vote="yes")]) == BEGUN_NS < LATER_NS
    assert not wait_ns([ended]) and not wait_ns([begun, ended])


@pytest.mark.invariant("T5")
def test_what_can_wait_goes_with_what_follows_it() -> None:
    box = connected()
    assert box.recorded(3, T, wait_ns=LATER_NS) == [] and box.waiting == 4
    assert box.tick(T + LATER_NS - 1) == []
    assert sent(box, box.recorded(6, T + NS_PER_S)) == [(3, 4)], "in one batch, in order"
    assert box.tick(T + LATER_NS) == []


@pytest.mark.invariant("T5")
def test_what_nothing_follows_goes_by_itself_after_a_while() -> None:
    box = connected()
    box.recorded(3, T, wait_ns=LATER_NS)
    assert box.next_wake_ns() == T + LATER_NS
    assert sent(box, box.acknowledged("i", 2, False, T + 1)) == [(3, 1)], "an acknowledgement takes it along"
    box = connected()
    box.recorded(3, T, wait_ns=LATER_NS)
    assert sent(box, box.tick(T + LATER_NS)) == [(3, 1)]
    assert box.next_wake_ns() != T + LATER_NS


@pytest.mark.invariant("T5")
def test_a_new_parent_gets_what_was_waiting_and_a_second_yes_waits_for_nothing() -> None:
    box = connected()
    box.recorded(3, T, wait_ns=LATER_NS)
    box.lost()
    assert box.next_wake_ns() is None
    assert box.recorded(4, T, wait_ns=LATER_NS) == [], "nobody to send it to"
    assert sent(box, box.welcomed(1 << 20, T)) == [(0, 5)]
    box.recorded(5, T, wait_ns=LATER_NS)
    assert sent(box, box.recorded(6, T, wait_ns=LATER_NS)) == [(5, 2)]


@pytest.mark.invariant("T5")
def test_waiting_beyond_the_credit_does_not_spin() -> None:
    box = Outbox("n", "i", newest=0)
    assert sent(box, box.welcomed(1, T), size=64 << 10) == [(0, 1)]  # one record takes all of the credit
    box.recorded(1, T, wait_ns=LATER_NS)
    assert box.tick(T + LATER_NS) == []
    wake_ns = box.next_wake_ns()
    assert wake_ns is not None and wake_ns > T + LATER_NS, "until it is acknowledged, or sent again"
    assert sent(box, box.acknowledged("i", 0, False, T + LATER_NS + 1)) == [(1, 1)]


@pytest.mark.invariant("T5", "F51")
def test_a_quiet_node_finds_out_that_a_new_root_has_lost_its_records() -> None:
    """Nothing is written on the node: without its question the root would never hear of what it has."""
    box = connected()
    assert box.acknowledged("i", 2, False, T) == [] and box.led(7) == [Read(2, 1)]
    assert sent(box, [Read(2, 1)]) == [(2, 1)]
    assert box.led(7) == [] and box.led(6) == [], "once for each root"
    assert sent(box, box.acknowledged("i", -1, True, T + 1)) == [(0, 3)], "the log is another one: all of it"
    assert box.acked == -1 and box.waiting == 3


@pytest.mark.invariant("T5")
def test_a_new_root_that_has_the_records_costs_one_of_them_and_a_node_that_sends_costs_nothing() -> None:
    box = connected()
    assert box.led(7) == [], "what is on its way shows it"
    box.acknowledged("i", 2, False, T)
    assert sent(box, box.led(8)) == [(2, 1)]
    assert box.acknowledged("i", 2, False, T + 1) == [] and (box.acked, box.waiting, box.following) == (2, 0, 3)
    assert sent(box, box.recorded(3, T + 2)) == [(3, 1)]
    empty = Outbox("n", "", newest=-1)
    empty.welcomed(1 << 20, T)
    assert empty.led(9) == []
    away = connected()
    away.acknowledged("i", 2, False, T)
    away.lost()
    assert away.led(7) == [] and away.welcomed(1 << 20, T) == []
    assert sent(away, away.led(7)) == [(2, 1)], "asked once there is a parent"


@pytest.mark.invariant("T5", "F51")
@pytest.mark.parametrize("how", ["another parent", "the resend timer"])
def test_a_question_that_is_lost_on_the_way_is_asked_again(how: str) -> None:
    box = connected()
    box.acknowledged("i", 2, False, T)
    assert sent(box, box.led(7)) == [(2, 1)]
    if how == "another parent":
        box.lost()
        work = box.welcomed(1 << 20, T)
    else:
        work = box.tick(T + RESEND_NS)
    assert sent(box, work) == [(2, 1)] and box.led(7) == []
    box.acknowledged("i", 2, False, T)
    box.lost()
    assert box.welcomed(1 << 20, T) == [], "it is answered"


@pytest.mark.invariant("T5")
def test_a_rewind_that_comes_late_has_what_it_takes_back_sent_again() -> None:
    """The same rewind again, after what it had asked for was acknowledged: the root believed that it has less."""
    box = connected()
    box.acknowledged("i", 0, False, T)
    assert sent(box, box.acknowledged("i", 0, True, T + 1)) == [(1, 2)]
    box.acknowledged("i", 2, False, T + 2)
    assert box.waiting == 0
    assert box.acknowledged("i", 0, True, T + 3) == [], "not at once: it may be the network's repetition"
    wake_ns = box.next_wake_ns()
    assert box.waiting == 2 and wake_ns is not None and wake_ns <= T + 3 + 2 * RESEND_NS
    assert sent(box, box.tick(wake_ns)) == [(1, 2)]


HERE: dict[int, str | None] = {4: "aa" * 32, 5: "bb" * 32, 6: None}


@pytest.mark.invariant("K2", "F56")
@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize(
    ("seq", "said", "acked", "forked"),
    [(5, "bb", 5, 0), (5, "cc", 3, 5), (6, "cc", 3, 0), (7, "cc", 7, 0), (5, "", 5, 0)],
    ids=["ours", "another", "it cannot be read now", "it is not kept any more", "a root of the last version"],
)
def test_another_record_under_its_number_is_no_acknowledgement(
    seq: int, said: str, acked: int, forked: int, rewind: bool
) -> None:
    """A second machine has a copy of this journal and its key, and its own record was the first to come."""
    box = Outbox("n", "i", newest=7, acked=3, hash_of=lambda seq: HERE.get(seq, ""))
    box.acknowledged("i", seq, rewind, T, said * 16)
    assert (box.acked, box.forked, box.differs) == (acked, forked, bool(forked))
    if forked:
        box.acknowledged("i", 7, False, T, "")
        assert box.acked == 3, "nothing counts from then on"


@pytest.mark.invariant("K2", "T14")
@pytest.mark.parametrize("claim", ["a number", "a hash"])
def test_what_the_root_has_not_sealed_puts_apart_until_it_is_seen_not_to_be_so(claim: str) -> None:
    box = Outbox("n", "i", newest=7, acked=3, hash_of=lambda seq: HERE.get(seq, ""))
    box.acknowledged("i", *((9, False, T) if claim == "a number" else (5, False, T, "cc" * 8)))
    assert box.forked and not box.proven
    box.acknowledged("i", 7, False, T, "")
    assert box.forked and box.acked == 3, "what says nothing about the records is no proof"
    box.acknowledged("i", 4, False, T, "aa" * 8, sealed=True)
    assert (box.forked, box.acked) == (0, 4)


@pytest.mark.invariant("K2", "T14")
def test_what_the_root_has_sealed_stays_until_it_has_the_very_records() -> None:
    here = {n: f"{n:02}" * 32 for n in range(20)}
    box = Outbox("n", "i", newest=7, acked=3, hash_of=lambda seq: here.get(seq, ""))
    box.acknowledged("i", 9, False, T, sealed=False)
    box.acknowledged("i", 11, False, T, sealed=True)
    box.acknowledged("i", 2**40, False, T, sealed=False)
    assert (box.forked, box.proven) == (11, True), "its word counts more than another's"
    box.recorded(15)
    for seq, hash_, sealed in ((5, here[5], True), (12, here[12], False), (12, "ff" * 32, True)):
        box.acknowledged("i", seq, False, T, hash_[:16], sealed=sealed)
        assert (box.forked, box.acked) == (max(11, box.forked), 3)
    box.acknowledged("i", 14, False, T, here[14][:16], sealed=True)
    assert (box.forked, box.acked) == (0, 14)
