"""The share of the loop's time that a person has."""

from __future__ import annotations

import pytest

from pact.host import budget
from pact.host.budget import (
    KEPT_MAX,
    Budget,
)
from pact.limits import LOOP_SHARE


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


@pytest.mark.invariant("S8")
def test_who_uses_up_his_share_waits_and_nobody_else_does(clock: Clock) -> None:
    spent = Budget()
    for _ in range(10):
        assert spent.wait_s("ann") == 0.0
        spent.spend("ann", LOOP_SHARE / 10)
    assert spent.wait_s("ann") == pytest.approx(0.0) and spent.wait_s("bob") == 0.0
    spent.spend("ann", LOOP_SHARE)
    assert spent.wait_s("ann") == pytest.approx(1.0) and spent.wait_s("bob") == 0.0
    clock.now_s += 0.5
    assert spent.wait_s("ann") == pytest.approx(0.5)
    clock.now_s += 0.6
    assert spent.wait_s("ann") == 0.0


def test_over_a_long_time_nobody_gets_more_than_his_share(clock: Clock) -> None:
    spent, got = Budget(), 0.0
    for _ in range(20_000):
        if not spent.wait_s("ann"):
            spent.spend("ann", 0.019)
            got += 0.019
        clock.now_s += 0.001
    assert got <= 20 * LOOP_SHARE + LOOP_SHARE + 0.02


def test_who_has_been_quiet_is_not_remembered(clock: Clock) -> None:
    spent = Budget()
    for i in range(KEPT_MAX):
        spent.spend(i, 0.001)
    clock.now_s += 10
    spent.spend("one more", 0.001)
    assert list(spent._spent) == ["one more"]


def test_a_disk_that_hung_under_one_request_keeps_nobody_out_for_long(clock: Clock) -> None:
    """An ops command under which the disk stood still for ten seconds; then there is an emergency."""
    spent = Budget()
    spent.spend("ann", 10.0)
    assert spent.wait_s("ann") <= 5.0
