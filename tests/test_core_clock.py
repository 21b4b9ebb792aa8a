"""Node time across restarts and reboots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.node.state import State
from pact.core.records import rfc3339
from pact.host.clock import Clock, boottime_ns, continue_from
from pact.model import NS_PER_S

S = NS_PER_S
WALL = 1_800_000_000 * S


def last(t_ns: int, offset_ns: int = 0, boot: str = "a") -> State:
    """A node whose last record is from ``t_ns`` at wall time ``WALL``."""
    state = State()
    state.seq, state.t_ns, state.offset_ns, state.boot_id, state.wall = 5, t_ns, offset_ns, boot, rfc3339(WALL)
    return state


@pytest.mark.invariant("B2", "F2")
class TestContinuing:
    def test_an_empty_journal_starts_at_the_boots_own_time(self) -> None:
        assert continue_from(State(), "a", boottime=50, wall_ns=WALL, synchronised=True) == (0, False)

    def test_within_a_boot_the_offset_stays_whatever_the_wall_clock_does(self) -> None:
        for wall_ns in (0, WALL - 10**6 * S, WALL + 10**6 * S):
            for synchronised in (True, False):
                assert continue_from(
                    last(100 * S, 7 * S), "a", boottime=150 * S, wall_ns=wall_ns, synchronised=synchronised
                ) == (7 * S, False)

    def test_after_a_reboot_the_time_down_is_charged_by_a_synchronised_clock(self) -> None:
        offset, reboot = continue_from(last(100 * S), "b", boottime=20 * S, wall_ns=WALL + 300 * S, synchronised=True)
        assert reboot
        assert 20 * S + offset == 400 * S

    def test_after_a_reboot_an_unsynchronised_clock_charges_nothing(self) -> None:
        offset, reboot = continue_from(last(100 * S), "b", boottime=20 * S, wall_ns=WALL + 300 * S, synchronised=False)
        assert reboot
        assert 20 * S + offset == 100 * S

    def test_after_a_reboot_a_clock_that_went_back_charges_nothing(self) -> None:
        offset, reboot = continue_from(last(100 * S), "b", boottime=20 * S, wall_ns=WALL - 300 * S, synchronised=True)
        assert reboot
        assert 20 * S + offset == 100 * S

    def test_a_journal_from_the_future_of_this_boot_never_runs_backwards(self) -> None:
        """A machine restored from a snapshot keeps its boot id."""
        offset, reboot = continue_from(last(100 * S), "a", boottime=20 * S, wall_ns=WALL, synchronised=True)
        assert not reboot
        assert 20 * S + offset == 100 * S


@given(
    st.integers(0, 10**18),
    st.integers(-(10**18), 10**18),
    st.sampled_from("ab"),
    st.integers(0, 10**18),
    st.integers(0, 4 * 10**18),
    st.booleans(),
)
@pytest.mark.invariant("B2")
def test_node_time_never_runs_backwards(
    t_ns: int, offset_ns: int, boot: str, boottime: int, wall_ns: int, synchronised: bool
) -> None:
    state = last(t_ns, offset_ns)
    offset, _ = continue_from(state, boot, boottime=boottime, wall_ns=wall_ns, synchronised=synchronised)
    assert boottime + offset >= t_ns


def test_the_clock_is_boot_time_and_its_offset() -> None:
    before = boottime_ns()
    assert before + 5 * S <= Clock(5 * S).now_ns() <= boottime_ns() + 5 * S
