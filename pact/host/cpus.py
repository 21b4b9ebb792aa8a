"""Which CPUs a daemon may use: those that are left to the system if others are isolated for jobs."""

from __future__ import annotations


def housekeeping_cpus() -> tuple[int, ...]:
    """The CPUs that are left to the system if others are isolated for jobs; empty if none are isolated."""
    isolated = _cpu_list("/sys/devices/system/cpu/isolated") | _cpu_list("/sys/devices/system/cpu/nohz_full")
    left = _cpu_list("/sys/devices/system/cpu/online") - isolated
    return tuple(sorted(left)) if isolated else ()


def _cpu_list(path: str) -> set[int]:
    """``0-3,8`` as a set; empty if the file does not exist."""
    try:
        with open(path, encoding="ascii") as f:
            text = f.read().strip()
    except OSError:
        return set()
    out: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            out.update(range(int(first), int(last or first) + 1))
    return out
