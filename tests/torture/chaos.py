"""What happens to the agent and to the machine: each is ``(node, rng) -> what it did``, as deeds are.

Some faults last until another one, or the end, takes them back: a full disk, failing calls, missing descriptors, a file
system that hangs.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import deeds
from hands import LostError
from model import FoundError

if TYPE_CHECKING:
    from node import Node

TOP = "/srv"
BUSY_CPU = 0.9


def kill(node: Node, rng: random.Random) -> str:
    _end_and_start(node, rng, signal.SIGKILL)
    return "killed and started"


def _end_and_start(node: Node, rng: random.Random, how: signal.Signals) -> None:
    node.fresh()
    node.end(how)
    for _ in range(rng.randrange(3)):
        deeds.write(node, rng)
    node.up()
    node.fresh()


def kill_early(node: Node, rng: random.Random) -> str:
    """Killed again while it starts."""
    node.fresh()
    node.end(signal.SIGKILL)
    times = rng.randrange(1, 4)
    for _ in range(times):
        process = node.launch()
        time.sleep(rng.choice([0.05, 0.15, 0.25, 0.4]))
        code = process.poll()
        if code is not None and code < 0:
            raise FoundError(f"the agent ended with {code} while it started\n{node.agent.log()[-1500:]}")
        node.world.end(process)
        node.agent.process = None
    node.up()
    node.fresh()
    return f"{times} times"


def kill_in_request(node: Node, rng: random.Random) -> str:
    """A request is on its way when the agent is killed: it is done or not, and the answer says so if there was one."""
    targets, may = deeds.targets_of(node, rng)
    resources, blobs, entries = deeds.wanted(rng, node.step_no)
    op, args, moves = rng.choice(
        [
            ("commit", {"targets": targets, "message": "m", "shared": True}, may),
            ("commit", {"targets": targets, "message": "m", "shared": True}, may),
            ("rollback", {"targets": targets, "shared": True, "force": True}, []),
            ("rollback", {"targets": targets, "shared": True, "force": True}, []),
            ("declare", {"resources": resources, "blobs": blobs}, list(resources)),
            ("apply", {"resources": resources, "blobs": blobs, "message": "x"}, list(resources)),
            ("adopt", {"patterns": [f"file:{TOP}/etc/**"]}, [f"file:{TOP}/etc/**"]),
            ("hold_place", {"reason": "r", "for_ns": 10**9}, []),
            ("consumers", {"resource": f"mount:{TOP}/m"}, []),
        ]
    )
    node.fresh()
    if op == "apply":
        node.model.passing.update(r for r in resources if r not in node.model.declared)
        for r, entry in entries.items():
            node.model.bound(r, entry)
    if op == "rollback":
        node.model.removable.update(targets)
    wait_s = rng.choice([0.0, 0.001, 0.003, 0.01, 0.03, 0.1])
    sock = node.asker.send(0, op, args)
    time.sleep(wait_s)
    node.end(signal.SIGKILL)
    try:
        answer: dict[str, Any] = node.asker.answer(sock)
        code, message = answer["exit"], answer["message"]
    except LostError:
        code, message = None, ""
    node.model.answered(code, message, moves)
    node.up()
    node.fresh()
    return f"{op} {args.get('targets', list(args.get('resources', ())))} after {wait_s:g} s: {code} {message[:80]}"


def restart(node: Node, rng: random.Random) -> str:
    _end_and_start(node, rng, signal.SIGTERM)
    return "ended and started"


def stand_still(node: Node, rng: random.Random) -> str:
    """The agent stands still while others work."""
    node.stop()
    count = rng.randrange(1, 6)
    for _ in range(count):
        rng.choice([deeds.write, deeds.write, deeds.sysctl, deeds.mount])(node, rng)
    time.sleep(rng.choice([0.0, 0.3, 1.0, 5.0]))
    node.seen = node.look()
    node.go_on()
    return f"{count} deeds meanwhile"


def fill_disk(node: Node, rng: random.Random) -> str:
    if node.disk.full:
        node.disk.free()
        return "freed"
    node.fresh()
    node.disk.fill()
    node.lasts("full", rng)
    return f"full ({node.disk.kind})"


def fail_journal(node: Node, rng: random.Random) -> str:
    """Writes to the journal's files, or their syncing, end with EIO, until they do no longer."""
    return _fail(node, rng, ["fdatasync,fsync", "pwrite64", "fdatasync,fsync,pwrite64"])


def fail_journal_reads(node: Node, rng: random.Random) -> str:
    """The disk fails reads too."""
    return _fail(node, rng, ["pread64", "fdatasync,fsync,pwrite64,pread64"])


def _fail(node: Node, rng: random.Random, choices: list[str]) -> str:
    if not node.can_trace:
        return "no strace here"
    if node.failing:
        node.unfail()
        return "no longer"
    node.fresh()
    calls = rng.choice(choices)
    every = rng.choice([1, 1, 3])
    journal = str(node.agent.journal)
    node.failing = ["journal"]
    node.lasts("failing", rng)
    node.strace.attach(
        node.pid, calls, rng.choice(["EIO", "ENOSPC"]), [journal, f"{journal}-wal", f"{journal}-shm"], every
    )
    return f"{calls}, one in {every}"


def fail_reads(node: Node, rng: random.Random) -> str:
    """Declared files cannot be read."""
    if not node.can_trace:
        return "no strace here"
    if node.failing:
        node.unfail()
        return "no longer"
    node.fresh()
    paths = rng.sample(deeds.FILES, 3)
    node.failing = paths
    node.lasts("failing", rng)
    node.strace.attach(node.pid, "read,pread64,openat,openat2,statx,newfstatat", "EIO", paths, rng.choice([1, 2]))
    return ", ".join(paths)


def take_descriptors(node: Node, rng: random.Random) -> str:
    """Clients that say nothing take what descriptors there are: nobody else is let in, and the agent rests."""
    from faults import cpu_s

    if node.crowd.pid:
        node.crowd.end()
        return "given back"
    node.fresh()
    node.crowd.begin(node.pid, node.agent.socket, rng.randrange(1, 6))
    for _ in range(rng.randrange(4)):
        deeds.write(node, rng)
    time.sleep(0.5)
    began, used = time.monotonic(), cpu_s(node.pid)
    for seconds in (0.5, 1.0, 2.0):
        time.sleep(seconds)
        share = (cpu_s(node.pid) - used) / (time.monotonic() - began)
        if share < BUSY_CPU:
            break
    else:
        raise FoundError(f"without a descriptor left the agent uses {share:.0%} of a core")
    node.lasts("crowd", rng)
    return "taken"


def reboot(node: Node, rng: random.Random) -> str:
    """A power cut: sysctls and mounts have what the kernel gives them, and it is another boot."""
    node.fresh()
    node.end(signal.SIGKILL)
    node.hung.end()
    while node.holders:
        node.world.end(node.holders.pop())
    node.hands[0].do(f"while umount {TOP}/m; do :; done 2>/dev/null; while umount {TOP}/etc/d2; do :; done 2>/dev/null")
    for name in deeds.SYSCTLS:
        value = {"net.ipv4.ip_default_ttl": "64", "net.ipv4.ip_local_reserved_ports": ""}.get(name, "0")
        node.hands[0].do(f"echo '{value}' > /proc/sys/{name.replace('.', '/')}")
    for _ in range(rng.randrange(3)):
        deeds.write(node, rng)
    node.boots.reboot(rng.randrange(5, 100))
    node.seen = node.look()
    node.up()
    node.fresh()
    return f"boot {node.boots.count}"


def hang(node: Node, rng: random.Random) -> str:
    """A file system that does not answer is mounted over a directory, or goes."""
    path = rng.choice([f"{TOP}/etc/d2", f"{TOP}/hung"])
    if node.hung.path:
        node.hung.end()
        return "gone"
    node.hands[0].do(f"mkdir -p {path}")
    if any(r.startswith(f"mount:{path}") for r in node.look()):
        return "something is mounted there"
    node.hung.begin(path)
    node.lasts("hung", rng)
    return f"{path} hangs"


FAULTS: dict[str, tuple[int, Callable[[Node, random.Random], str]]] = {
    "kill": (20, kill),
    "kill while starting": (6, kill_early),
    "kill in a request": (25, kill_in_request),
    "restart": (8, restart),
    "stand still": (15, stand_still),
    "full disk": (20, fill_disk),
    "failing journal": (12, fail_journal),
    "failing journal reads": (5, fail_journal_reads),
    "failing reads": (8, fail_reads),
    "no descriptors": (6, take_descriptors),
    "reboot": (10, reboot),
    "hung mount": (8, hang),
}
