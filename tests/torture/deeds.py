"""What people do: they write, mount, hold and ask. Each deed is ``(node, rng) -> what it did``, in words for the trace.

A deed that asks tells the model beforehand what its success may move.
"""

from __future__ import annotations

import base64
import random
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hands import LostError
from model import FINAL, NOTHING, FoundError, conforms
from sight import digest

if TYPE_CHECKING:
    from node import Node

FLOOR_S = 0.3  # of the agent's windows
TOP = "/srv"
FILES = [f"{TOP}/etc/f{i}" for i in range(1, 5)] + [f"{TOP}/etc/d1/g{i}" for i in range(1, 4)]
NEW = [f"{TOP}/etc/new{i}" for i in range(3)] + [f"{TOP}/etc/d2/n{i}" for i in range(2)] + [f"{TOP}/etc/d3/e1"]
IN_MOUNT = [f"{TOP}/m/w{i}" for i in range(2)]
HOLDERS_MAX = 2
NS = 10**9
VALUES = {"ttl": ["64", "65", "70"], "ports": ["", "8080", "8080,8082"]}
SYSCTLS = [
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.lo.rp_filter",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_default_ttl",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.lo.forwarding",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.ip_local_reserved_ports",
]
MOUNTS = [
    f"mount -o remount,noatime,nosuid {TOP}/m",
    f"mount -o remount,relatime {TOP}/m",
    f"umount {TOP}/m",
    f"mount -t tmpfs -o size=2m,noatime tmpfs {TOP}/m",
    f"mount -t tmpfs x {TOP}/etc/d2",
    f"umount {TOP}/etc/d2",
    f"mv {TOP}/etc/d1 {TOP}/moved && ln -s {TOP}/moved {TOP}/etc/d1",
    f"test -L {TOP}/etc/d1 && rm {TOP}/etc/d1 && mv {TOP}/moved {TOP}/etc/d1",
    f"echo again > {TOP}/m/data",
    f"mount -o remount,size=3m {TOP}/m",
]


def value_of(name: str, rng: random.Random) -> str:
    for word, values in VALUES.items():
        if word in name:
            return rng.choice(values)
    return rng.choice(["0", "1"])


# -- the machine ----------------------------------------------------------------------------------------------------


def write(node: Node, rng: random.Random) -> str:
    """One write to a file, by somebody. Contents are told apart by the step."""
    uid = rng.choice([0, 0, 1234, 1235])
    path = rng.choice(FILES + NEW + IN_MOUNT)
    text = f"{rng.choice('abc')} {node.step_no}"
    by_root = [
        f"rm -rf {path}",
        f"chmod 64{rng.randrange(8)} {path}",
        f"mv {path} {path}.bak && ln -s {path}.bak {path}",
        f"mkdir {path}",
        f"ln -sf /nowhere {path}",
        f"echo {text} > {path}.tmp && mv {path}.tmp {path}",
        f"chown 1234 {path}",
        f"rm -rf {TOP}/etc/d1",
        f"mkdir -p {TOP}/etc/d1 {TOP}/etc/d3",
        f"head -c 30000 /dev/zero | tr '\\0' x > {path} && echo {text} >> {path}",
    ]
    script = f"echo {text} > {path}"
    choice = rng.choice(by_root)
    if uid == 0 and rng.random() < 0.5:
        script = choice
    if node.hung.path and path.startswith(node.hung.path):
        return "passed over what hangs"
    return f"{uid}: {script}: {node.hands[uid].do(script)}"


def burst(node: Node, rng: random.Random) -> str:
    """The same file, again and again, for a moment."""
    path, count = rng.choice(FILES), rng.randrange(5, 60)
    node.hands[0].do(f"i=0; while [ $i -lt {count} ]; do echo {node.step_no} $i > {path}; i=$((i+1)); done")
    return f"{count} writes to {path}"


def sysctl(node: Node, rng: random.Random) -> str:
    name = rng.choice(SYSCTLS)
    script = f"echo '{value_of(name, rng)}' > /proc/sys/{name.replace('.', '/')}"
    return f"{script}: {node.hands[0].do(script)}"


def mount(node: Node, rng: random.Random) -> str:
    script = rng.choice(MOUNTS)
    if node.hung.path and node.hung.path in script:
        return "passed over what hangs"
    return f"{script}: {node.hands[0].do(script)}"


def hold_open(node: Node, rng: random.Random) -> str:
    """A process opens a file, or stands in a directory, and stays; or one of them goes."""
    path = rng.choice([*FILES, f"{TOP}/m/data", f"{TOP}/etc/d1"])
    if len(node.holders) >= HOLDERS_MAX:
        node.world.end(node.holders.pop(0))
        return "a holder goes"
    script = f"cd {path} && exec sleep 1000" if path.endswith("d1") else f"exec 3<{path} && exec sleep 1000"
    node.holders.append(subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return f"{path} is held"


def pause(node: Node, rng: random.Random) -> str:
    seconds = rng.random() * 1.5
    time.sleep(seconds)
    return f"{seconds:.2f} s"


# -- requests -------------------------------------------------------------------------------------------------------


def who(rng: random.Random) -> int:
    return rng.choices([0, 1234, 1235], [7, 2, 1])[0]


def targets_of(node: Node, rng: random.Random) -> tuple[list[str], list[str]]:
    """Some targets for a settling request, and everything that such a request may move."""
    status = node.status()
    changes = [c["id"] for c in status["changes"]]
    members = [r for c in status["changes"] for r in c["resources"]]
    new = [u["resource"] for u in status["untracked_resources"]]
    look = node.look()
    movable = [*members, *new, *node.model.drifted(look), *(r for r in look if r not in node.model.declared)]
    x = rng.random()
    pool = changes if x < 0.35 else members + new
    if x < 0.25 or not pool:
        return [], movable
    return [pool[rng.randrange(len(pool))]], movable


def asked(node: Node, uid: int, op: str, may: list[str], **args: Any) -> tuple[dict[str, Any], list[str], str]:
    """Ask; compare what is declared before and after. Returns the answer, what moved and a line for the trace."""
    node.fresh()
    try:
        answer = node.ask(uid, op, **args)
    except LostError:
        node.model.late.update(may)  # it may still be carried out
        raise
    node.model.answered(answer["exit"], answer["message"], may)
    moved = node.fresh()
    said = {k: v for k, v in args.items() if k not in ("blobs", "message")}
    return answer, moved, f"{uid} {op} {said}: {answer['exit']} {answer['message'][:90]}"


def is_so(node: Node, moved: list[str], what: str) -> None:
    """What was just declared from the machine is what the machine has: nobody else is at work."""
    look = node.look()
    wrong = [
        r
        for r in moved
        if r in node.model.declared
        and not conforms(r, node.model.declared[r], look)
        and node.model.declared[r].get("type") != "absent"
    ]
    if wrong and not node.faulty:
        r = wrong[0]
        raise FoundError(f"{what} declared {r} as {node.model.declared[r]}, and it is {look.get(r)}")


def commit(node: Node, rng: random.Random) -> str:
    uid = who(rng)
    targets, may = targets_of(node, rng)
    more = {
        "shared": rng.random() < 0.7,
        "all": not targets and rng.random() < 0.3,
        "ttl_ns": rng.choice([None, None, 900 * NS]),
    }
    answer, moved, said = asked(node, uid, "commit", may, targets=targets, message="m", **more)
    if answer["exit"] == 0:
        is_so(node, moved, "the commit")
    return said


def rollback(node: Node, rng: random.Random) -> str:
    uid = who(rng)
    targets, _ = targets_of(node, rng)
    dry = rng.random() < 0.25
    if not dry:
        node.model.removable.update(targets)
    more = {"force": rng.random() < 0.4, "shared": rng.random() < 0.7, "all": not targets and rng.random() < 0.3}
    return asked(node, uid, "rollback", [], targets=targets, dry_run=dry, **more)[2]


def rollback_to(node: Node, rng: random.Random) -> str:
    """Back to what was declared at some record; then exactly that is declared."""
    seqs = sorted(node.history)
    seq = seqs[rng.randrange(len(seqs))]
    then, dry = node.history[seq], rng.random() < 0.2
    answer, _, said = asked(
        node, 0, "rollback", [*then, *node.model.declared], targets=[], to_seq=seq, dry_run=dry, trials="end"
    )
    if answer["exit"] == 0 and not dry and not node.faulty:
        absent = {"type": "absent"}
        now = node.model.declared
        wrong = [r for r in {*then, *now} if then.get(r, absent) != now.get(r, absent)]
        if wrong:
            r = wrong[0]
            raise FoundError(f"rolled back to record {seq}, and {r} is declared {now.get(r)}, not {then.get(r)}")
    return said


def extend(node: Node, rng: random.Random) -> str:
    targets, _ = targets_of(node, rng)
    return asked(node, who(rng), "extend", [], targets=targets, by_ns=NS, shared=rng.random() < 0.7)[2]


def wanted(rng: random.Random, step: int) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Resources to apply or declare, their contents, and what they would be in an export."""
    resources: dict[str, Any] = {}
    blobs: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for name in rng.sample(SYSCTLS, rng.randrange(3)):
        value = "999" if "ttl" in name and rng.random() < 0.3 else value_of(name, rng)
        resources[f"sysctl:{name}"], entries[f"sysctl:{name}"] = {"attrs": {"value": value}}, {"value": value}
    for path in rng.sample(FILES + NEW, rng.randrange(1, 3)):
        text, mode = f"asked {step} {path}\n", rng.choice(["0600", "0644", "0666"])
        data = text.encode()
        if rng.random() < 0.2:
            resources[f"file:{path}"], entries[f"file:{path}"] = {"attrs": None}, {"type": "absent"}
            continue
        blobs[digest(data)] = base64.b64encode(data).decode()
        resources[f"file:{path}"] = {"attrs": {"type": "file", "sha256": digest(data), "size": len(data), "mode": mode}}
        entries[f"file:{path}"] = {"content": text, "mode": mode}
    return resources, blobs, entries


def apply(node: Node, rng: random.Random) -> str:
    resources, blobs, entries = wanted(rng, node.step_no)
    dry = rng.random() < 0.2
    before = node.look()
    node.model.passing.update(r for r in resources if r not in node.model.declared)
    for r, entry in entries.items():  # what an apply did, and what it undoes, is no move towards what is declared
        node.model.bound(r, entry)
    began_s = time.monotonic()
    answer, _, said = asked(
        node, who(rng), "apply", list(resources), resources=resources, blobs=blobs, message="x", dry_run=dry
    )
    after = node.look()
    late = time.monotonic() - began_s > FLOOR_S  # its window may have ended before anybody looked
    if answer["exit"] == 0 and not dry and not node.faulty:
        wrong = [
            r
            for r, e in entries.items()
            if r.startswith("file:")
            and not conforms(r, e, after)
            and not (late and conforms(r, node.model.declared.get(r, {"type": "absent"}), after))
        ]
        if wrong:
            raise FoundError(f"apply was answered with 0, and {wrong[0]} is {after.get(wrong[0])}: {said}")
    elif answer["exit"] in NOTHING or FINAL in answer["message"]:
        wrong = [
            r
            for r, e in entries.items()
            if r.startswith("file:")
            and not conforms(r, e, before)
            and conforms(r, e, after)
            and e.get("type") != "absent"
        ]
        if wrong:
            raise FoundError(f"apply was answered with {answer['exit']}, and {wrong[0]} was applied: {said}")
    return said


def declare(node: Node, rng: random.Random) -> str:
    resources, blobs, entries = wanted(rng, node.step_no)
    dry = rng.random() < 0.2
    answer, _, said = asked(
        node,
        who(rng),
        "declare",
        list(resources),
        resources=resources,
        blobs=blobs,
        dry_run=dry,
        take=rng.random() < 0.5,
    )
    if answer["exit"] == 0 and not dry and not node.faulty:
        for r, entry in entries.items():
            now = node.model.declared.get(r, {"type": "absent"})
            if any(now.get(k) != v for k, v in entry.items() if r.startswith("file:")):
                raise FoundError(f"declare was answered with 0, and {r} is declared {now}, not {entry}")
    return said


def adopt(node: Node, rng: random.Random) -> str:
    pattern = rng.choice([f"file:{TOP}/etc/**", f"file:{rng.choice(FILES)}", "sysctl:net.ipv4.**", f"mount:{TOP}/m"])
    answer, moved, said = asked(node, who(rng), "adopt", [pattern], patterns=[pattern])
    if answer["exit"] == 0:
        is_so(node, moved, "adopt")
    return said


def redo(node: Node, rng: random.Random) -> str:
    node.model.passing.update(r for r in node.look() if r not in node.model.declared)
    dry_run = rng.random() < 0.2
    try:
        return asked(node, 0, "redo", ["*"], change=f"c{rng.randrange(1, 40)}", dry_run=dry_run)[2]
    except LostError:
        if not dry_run:
            node.model.redone = node.step_no
        raise


def track(node: Node, rng: random.Random) -> str:
    pattern, mode = f"file:{TOP}/etc/**", rng.choice(["report", "enforce", "ignore"])
    if mode == "enforce":
        node.model.enforced.add(pattern)
    return asked(node, 0, "track", [], patterns={pattern: mode})[2]


def hold(node: Node, rng: random.Random) -> str:
    place = rng.random() < 0.5
    uid = who(rng)
    if place:
        return asked(node, uid, "hold_place", [], reason="r", for_ns=2 * NS)[2]
    holds = node.status()["holds"]
    return asked(node, uid, "hold_release", [], **({"name": holds[0]["id"]} if holds else {}))[2]


def emergency(node: Node, rng: random.Random) -> str:
    uid, start, how = who(rng), rng.random() < 0.4, rng.choice(["commit", "rollback"])
    if start:
        return asked(node, uid, "emergency_start", [], reason="r", for_ns=3 * NS)[2]
    _, may = targets_of(node, rng)
    answer, moved, said = asked(
        node,
        uid,
        "emergency_end",
        may if how == "commit" else [],
        how=how,
        message="m",
        force=True,
        shared=True,
        all=rng.random() < 0.5,
    )
    if answer["exit"] == 0 and how == "commit":
        is_so(node, moved, "the emergency's end")
    return said


def question(node: Node, rng: random.Random) -> str:
    """A question of anybody's: whatever it is, nothing changes."""
    uid = rng.choice([0, 1234, 1235])
    op, args = rng.choice(
        [
            ("status", {}),
            ("diff", {"targets": []}),
            ("check", {}),
            ("tracked", {}),
            ("show", {"seq": rng.randrange(30)}),
            ("consumers", {"resource": f"mount:{TOP}/m"}),
            ("consumers", {"resource": f"file:{rng.choice(FILES)}"}),
            ("consumers", {"resource": f"mount:{TOP}/etc/d2"}),
            ("diff", {"targets": ["c1"]}),
        ]
    )
    return asked(node, uid, op, [], **args)[2]


def questions_at_once(node: Node, rng: random.Random) -> str:
    """Who uses the mount? Asked by several in the same moment."""
    socks = [
        node.asker.send(rng.choice([0, 1234, 1235]), "consumers", {"resource": f"mount:{TOP}/m"})
        for _ in range(rng.randrange(2, 6))
    ]
    socks.append(node.asker.send(0, "rollback", {"targets": [], "all": True, "dry_run": True, "shared": True}))
    said = [node.asker.answer(s) for s in socks]
    broken = [a for a in said if "internal error" in a["message"]]
    if broken:
        raise FoundError(f"answered with {broken[0]}")
    return " ".join(str(a["exit"]) for a in said)


def read_log(node: Node, rng: random.Random) -> str:
    return f"{len(node.asker.stream('log', count=rng.randrange(50), type=rng.choice(['', 'committed'])))} records"


#: How often each is done, in parts, and what does it.
DEEDS: dict[str, tuple[int, Callable[[Node, random.Random], str]]] = {
    "write": (300, write),
    "burst": (20, burst),
    "sysctl": (130, sysctl),
    "mount": (50, mount),
    "holder": (40, hold_open),
    "pause": (50, pause),
    "commit": (60, commit),
    "rollback": (60, rollback),
    "rollback to": (10, rollback_to),
    "extend": (15, extend),
    "apply": (50, apply),
    "declare": (40, declare),
    "adopt": (25, adopt),
    "redo": (10, redo),
    "track": (12, track),
    "hold": (20, hold),
    "emergency": (15, emergency),
    "question": (60, question),
    "questions at once": (15, questions_at_once),
    "log": (10, read_log),
}
