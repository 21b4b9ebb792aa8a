"""Clocks. Node time is ``CLOCK_BOOTTIME`` plus an offset that is journaled, so that it never runs backwards."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final

from pact._fast import syscalls
from pact.core.node.state import State

BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    with open(BOOT_ID, encoding="ascii") as f:
        return f.read().strip()


class Clock:
    """Node time and wall time."""

    def __init__(self, offset_ns: int = 0) -> None:
        self.offset_ns = offset_ns

    def now_ns(self) -> int:
        return boottime_ns() + self.offset_ns

    @staticmethod
    def wall_ns() -> int:
        return time.time_ns()


def continue_from(state: State, boot: str, *, boottime: int, wall_ns: int, synchronised: bool) -> tuple[int, bool]:
    """The offset for this run, and whether the machine was rebooted since the journal's last record.  # B2

    Within a boot the offset stays. After a reboot the time down is counted by the wall clock only if that is
    synchronised and has not gone back.
    """
    if state.seq < 0:
        return 0, False
    if state.boot_id == boot and boottime + state.offset_ns >= state.t_ns:
        return state.offset_ns, False
    down_ns = 0
    if synchronised and state.wall:
        last_ns = int(datetime.fromisoformat(state.wall).timestamp() * 1_000_000_000)
        down_ns = max(0, wall_ns - last_ns)
    return state.t_ns + down_ns - boottime, state.boot_id != boot


def clock_synchronised() -> bool:
    return syscalls.clock_synchronised()
