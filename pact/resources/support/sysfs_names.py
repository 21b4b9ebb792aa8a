"""Names of sysfs values: paths below /sys, which of several names of one file is used, and which are tunables.

A device has many names: its place below ``devices``, and links to it from ``block``, ``class`` and ``bus``. The place
depends on the slot and on the machine, so the links of block devices and network links are the names that pact uses:
one file of declared state then fits many nodes. This is decided by the text of a name alone, never by the machine on
which it is read. Every other name works as it is written.

Nothing here opens a file of sysfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from pact.model import decode_name, encode_name
from pact.resources.base import require_short
from pact.resources.support.patterns import compile_pattern

ROOT: Final = b"/sys"
WILD: Final = re.compile(r"[*?\[]")
ENTRIES_MAX: Final = 500_000

#: Other file systems are mounted there, or things that are no settings. pact looks at nothing below them.
NEVER: Final = (
    "fs/cgroup",
    "fs/bpf",
    "fs/pstore",
    "fs/selinux",
    "fs/fuse/connections",
    "kernel/debug",
    "kernel/tracing",
    "kernel/security",
    "kernel/config",
    "firmware/efi/efivars",
)
#: Writing one of these is an act, and what is read is no state that could be declared: the machine would sleep, now or
#: at each rollback.
NO_SETTINGS: Final = frozenset(
    f"power/{leaf}" for leaf in ("state", "autosleep", "wakeup_count", "wake_lock", "wake_unlock")
)

#: What a pattern with a wildcard in its last component takes: settings that are read from memory and can be set again.
#: A driver of a device may do anything when one of its files is read, so nothing else is read unless it is named.
TUNABLES: Final = (
    "block/*/queue/*",
    "block/*/queue/iosched/*",
    "class/net/*/gro_flush_timeout",
    "class/net/*/napi_defer_hard_irqs",
    "class/net/*/threaded",
    "class/net/*/tx_queue_len",
    "class/net/*/queues/rx-*/rps_cpus",
    "class/net/*/queues/rx-*/rps_flow_cnt",
    "class/net/*/queues/tx-*/xps_cpus",
    "class/net/*/queues/tx-*/xps_rxqs",
    "class/net/*/queues/tx-*/tx_maxrate",
    "class/net/*/queues/tx-*/byte_queue_limits/limit_*",
    "devices/system/clocksource/clocksource*/current_clocksource",
    "devices/system/cpu/cpu*/online",
    "devices/system/cpu/cpu*/cpuidle/state*/disable",
    "devices/system/cpu/cpu*/power/energy_perf_bias",
    "devices/system/cpu/cpu*/power/pm_qos_resume_latency_us",
    "devices/system/cpu/cpufreq/boost",
    "devices/system/cpu/cpufreq/policy*/energy_performance_preference",
    "devices/system/cpu/cpufreq/policy*/scaling_governor",
    "devices/system/cpu/cpufreq/policy*/scaling_max_freq",
    "devices/system/cpu/cpufreq/policy*/scaling_min_freq",
    "devices/system/cpu/amd_pstate/*",
    "devices/system/cpu/intel_pstate/*",
    "devices/system/cpu/cpuidle/current_governor*",
    "devices/system/cpu/smt/control",
    "devices/system/machinecheck/machinecheck*/*",
    "devices/system/node/node*/hugepages/hugepages-*/nr_hugepages",
    "devices/virtual/powercap/*/*/constraint_*_power_limit_uw",
    "devices/virtual/powercap/*/*/constraint_*_time_window_us",
    "devices/virtual/powercap/*/*/enabled",
    "devices/virtual/workqueue/cpumask",
    "kernel/mm/hugepages/hugepages-*/nr_hugepages",
    "kernel/mm/hugepages/hugepages-*/nr_overcommit_hugepages",
    "kernel/mm/ksm/*",
    "kernel/mm/lru_gen/*",
    "kernel/mm/mempolicy/weighted_interleave/*",
    "kernel/mm/numa/*",
    "kernel/mm/swap/*",
    "kernel/mm/transparent_hugepage/*",
    "kernel/mm/transparent_hugepage/hugepages-*/*",
    "kernel/mm/transparent_hugepage/khugepaged/*",
    "kernel/rcu_expedited",
    "kernel/rcu_normal",
    "module/*/parameters/*",
)
_TUNABLE: Final = re.compile(
    b"|".join(compile_pattern(t.encode()).pattern for t in TUNABLES).replace(rb"\Z", b"") + rb"\Z", re.DOTALL
)

#: A file with such a name acts when it is written, latches, or has an effect when it is read: adopted only by its name.
ACTS: Final = re.compile(
    r"(?:.*/)?(?:uevent|bind|unbind|new_id|remove_id|driver_override|drivers_probe|drivers_autoprobe|remove|rescan|scan"
    r"|reset|reset_method|delete|eject|probe|fail|recover|reclaim|release|compact|shrink|validate|flush|trigger|start"
    r"|stop|force_remove|hot_remove|hot_add|soft_offline_page|hard_offline_page|stats_clear|clear|trigger_fs_error"
    r"|simulate_fail|do_rcu_barrier|add|unbind_clocksource|loading|data|rom|vpd|config|resource[0-9_wc]*|flash_update"
    r"|firmware_update|update_fw|store_\w+|export|unexport|pm_test|disk|state|mem_limit|idle|new_device|delete_device)\Z"
)
#: Settings of other kinds, or of a bus that decides by itself.
OTHERS: Final = re.compile(r"(?:.*/)?power/(?:control|autosuspend(?:_delay_ms)?|wakeup|async)\Z")

_OF_BLOCK: Final = re.compile(r"devices/(?:[^/]+/)+?block/(.+)\Z")
_OF_NET: Final = re.compile(r"devices/(?:[^/]+/)+?net/(.+)\Z")
_OF_CPU: Final = re.compile(r"devices/system/cpu/cpu([*?\[][^/]*)/cpufreq/")


def canonical(name: str) -> str:
    """The name in pact's form. Raises ValueError for one that is no path below /sys, or below ``NEVER``."""
    name = name.removeprefix("/sys/")
    raw = decode_name(name)
    parts = raw.split(b"/")
    if b"\0" in raw or len(parts) < 2 or any(p in (b"", b".", b"..") for p in parts):
        raise ValueError(f"{name!r} is no path of a value below /sys, as kernel/mm/ksm/run is")
    require_short(ROOT + b"/" + raw)
    for never in NEVER:
        if name == never or name.startswith(never + "/"):
            raise ValueError(f"nothing below /sys/{never} is a setting of sysfs")
    if name in NO_SETTINGS:
        raise ValueError(f"/sys/{name} is no setting: to write it is to act")
    return preferred(name)


def preferred(name: str) -> str:
    """Which of the names of one file is used, by the text alone: ``block/X`` and ``class/net/X`` rather than a place
    below ``devices``."""
    if found := _OF_BLOCK.match(name):
        return f"block/{found[1]}"
    if found := _OF_NET.match(name):
        return f"class/net/{found[1]}"
    return name


def pattern(text: str) -> str:
    """An adopt pattern in pact's form. ``cpu*/cpufreq`` are links to the policies, of which several CPUs may share one.
    Raises ValueError."""
    text = text.removeprefix("/sys/")
    if "\0" in text or any(p in ("", ".", "..") for p in text.split("/")):
        raise ValueError(f"{text!r} is no pattern of paths below /sys, as block/*/queue/scheduler is")
    return _OF_CPU.sub(lambda m: f"devices/system/cpu/cpufreq/policy{m[1]}/", preferred(text))


def path_of(name: str) -> bytes:
    """The path. Raises ValueError."""
    return ROOT + b"/" + decode_name(canonical(name))


def matches(pattern: str, name: str) -> bool:
    return compile_pattern(pattern.encode("utf-8", "surrogateescape")).match(decode_name(name)) is not None


def is_tunable(name: str) -> bool:
    """Whether it is a setting that the kernel keeps in memory: reading it is quick and changes nothing."""
    return _TUNABLE.match(decode_name(name)) is not None


def names_one(pattern: str) -> bool:
    """Whether the last component of a pattern is written out: who wrote it means files with exactly that name."""
    return WILD.search(pattern.rpartition("/")[2]) is None


def found(root: bytes, text: str) -> Iterator[str]:
    """Names that a pattern finds, with that name of each which pact uses, sorted, each once. Links are followed where a
    component names them, and never below ``**``."""
    wanted = [text] if names_one(text) else _meeting(text)
    names: set[str] = set()
    budget = [ENTRIES_MAX]
    for each in wanted:
        for path in _expanded(root, each.encode("utf-8", "surrogateescape").split(b"/"), budget):
            name = preferred(encode_name(path))
            if name in NO_SETTINGS or name in names:
                continue
            if matches(text, name) and not name.startswith(tuple(f"{n}/" for n in NEVER)):
                names.add(name)
    return iter(sorted(names))


def _meeting(text: str) -> Sequence[str]:
    """The patterns of tunables that may have names in common with this one, by their parts without a wildcard."""
    head = text[: found_.start()] if (found_ := WILD.search(text)) else text
    out = []
    for each in TUNABLES:
        own = each[: first.start()] if (first := WILD.search(each)) else each
        if head.startswith(own) or own.startswith(head):
            out.append(each)
    return out


def _expanded(root: bytes, parts: Sequence[bytes], budget: list[int], here: bytes = b"") -> Iterator[bytes]:
    """Paths of regular files below ``root``, relative to it."""
    if not parts:
        if here and os.path.isfile(root + b"/" + here):
            yield here
        return
    part, rest = parts[0], parts[1:]
    if part == b"**":
        yield from _expanded(root, rest, budget, here)
        for name, entry in _entries(root, here, budget):
            if entry.is_dir(follow_symlinks=False):
                yield from _expanded(root, parts, budget, name)
            elif not rest and not entry.is_symlink():
                yield name
        return
    if not re.search(rb"[*?\[]", part):
        below = here + b"/" + part if here else part
        if os.path.lexists(root + b"/" + below):
            yield from _expanded(root, rest, budget, below)
        return
    matcher = compile_pattern(part)
    for name, entry in _entries(root, here, budget):
        if matcher.match(entry.name) and (entry.is_dir() if rest else not entry.is_dir()):
            yield from _expanded(root, rest, budget, name)


def _entries(root: bytes, here: bytes, budget: list[int]) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    if here in _NEVER_BYTES:
        return
    try:
        with os.scandir(root + b"/" + here) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        budget[0] -= 1
        if budget[0] < 0:
            return
        yield (here + b"/" + entry.name if here else entry.name), entry


_NEVER_BYTES: Final = frozenset(n.encode() for n in NEVER)
