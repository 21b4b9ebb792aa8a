"""The cluster: commands, rollbacks, events and rejoining at size, beside a flat loop in C on the same kind of sockets.

A second tree of the same size has no sockets between the nodes and their aggregators (``pact.sim.leaves``).

``PACT_BENCH_NODES`` says how many virtual nodes the tree has (10,000; 1,000 in a quick run), ``PACT_BENCH_FLAT`` how
many children one aggregator has (8,000; 500). Everything is on loopback and has CURVE. Each node has a socket and a key
of its own: on this machine it also pays for the nodes' ends of all connections, which elsewhere have ten thousand
machines of their own; the flat loop pays the same, which is why it stands beside ours.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import zmq  # noqa: E402
from _beside import C_DIR, Figure, figure, main  # noqa: E402
from _cluster import Cluster, asked  # noqa: E402
from _relays import aged, drive, flat_site, one_relay, rejoin  # noqa: E402
from _senders import TYPE, Sender, batched, chain  # noqa: E402

from pact.core.tree.seals import Keys, RootSeals, for_each, number_text, of_answer, of_hello, seal  # noqa: E402

ROUNDS = 15
SHARDS = 2
SETTLE_S = 38.0  # an aggregator gives freed memory back every 30 s, and sockets for authentication after 5
FLAT_S, FLAT_TRIES = 15.0, 3  # the flat loop has no sessions: what ZeroMQ loses on the way leaves it waiting
GROUP_KINDS = ("up answer", "up ask", "down call", "down drop", "down result", "down progress", "up request")
OWN = "of which the nodes' own decisions"
CHANGE = {"sysctl:vm.swappiness": {"attrs": {"value": "1"}}}


# -- the flat loop in C ---------------------------------------------------------------------------------------------


def flat_loop(nodes: int, rounds: int, curve: bool = True, size: int = 160) -> list[float]:
    """Milliseconds of each round, none where there is no libzmq to compile against; a run that is stuck is repeated."""
    for _ in range(FLAT_TRIES):
        try:
            return flat_run(nodes, rounds, curve, size)
        except (RuntimeError, ValueError):
            print("  the flat loop got stuck: once more", flush=True)
    raise RuntimeError("the flat loop does not run")


def flat_run(nodes: int, rounds: int, curve: bool, size: int) -> list[float]:
    config, compiler = shutil.which("pkg-config"), shutil.which("cc")
    found = config and subprocess.run(
        [config, "--cflags", "--libs", "libzmq"], capture_output=True, text=True, check=False
    )
    if not found or found.returncode or not compiler:
        return []
    with tempfile.TemporaryDirectory(prefix="pact-bench-") as top:
        program = f"{top}/flat"
        subprocess.run(
            [compiler, "-O3", "-march=native", "-o", program, str(C_DIR / "flat.c"), *found.stdout.split()], check=True
        )
        pipe = subprocess.PIPE
        threads = "2" if nodes > 512 else "1"  # as an aggregator has
        router: subprocess.Popen[Any] = subprocess.Popen(
            [program, "router", str(nodes), threads, str(int(curve)), str(size)], stdin=pipe, stdout=pipe, text=True
        )
        dealers: list[subprocess.Popen[Any]] = []
        watchdog = threading.Timer(FLAT_S + nodes / 50 + rounds, router.kill)  # the end of its output ends the reading
        watchdog.start()
        try:
            assert router.stdout is not None and router.stdin is not None
            port, key = router.stdout.readline().split()
            for i in range(SHARDS):
                share = nodes // SHARDS + (i < nodes % SHARDS)
                dealers.append(
                    subprocess.Popen([program, "dealers", str(share), port, key, str(size), "500"], stdin=pipe)
                )
            if router.stdout.readline() != "ready\n":
                raise RuntimeError("the flat loop did not get its children")
            router.stdin.write(f"{rounds}\n")
            router.stdin.flush()
            return [float(router.stdout.readline()) for _ in range(rounds)]
        finally:
            watchdog.cancel()
            for process in (router, *dealers):
                process.kill()
                process.communicate()


# -- 1 and 3: the tree ----------------------------------------------------------------------------------------------


def tree(nodes: int, rounds: int, rollbacks: int) -> list[Figure]:
    """Commands, rollbacks, and what one group costs at the root."""
    flat = flat_loop(nodes, rounds)
    out: list[Figure] = []
    with Cluster(nodes) as cluster:
        label = f"{nodes:,} nodes, {len(cluster.aggregators)} aggregators"
        print(f"  {label}: connected after {cluster.up_s:.0f} s", flush=True)
        cluster.quiet()
        times, median, frames = asked_and_undone(cluster, label, rounds, rollbacks, out)
    flat += flat_loop(nodes, rounds)  # before and after, as near to the same moment as can be
    if flat:
        floor = statistics.median(flat)
        out.append(figure(f"the flat loop in C, {nodes:,} sockets, one round", floor, "ms"))
        for name, ours, loops in (
            ("command, equal answers", times["state"], 1),
            ("command, each its own answer", times["check"], 1),
            ("rollback, beside two rounds (vote, decision)", median * 1e3, 2),
        ):
            out.append(
                figure(
                    f"{name}, over the flat loop in C",
                    ours / floor / loops,
                    "times its time",
                    "< 3",
                    ours / floor / loops < 3,
                )
            )
    else:
        out.append(figure("no libzmq to compile against: the flat loop is skipped", 0, ""))
    return [*out, messages(nodes, frames, nodes)]


def asked_and_undone(
    cluster: Cluster, label: str, rounds: int, rollbacks: int, out: list[Figure]
) -> tuple[dict[str, float], float, dict[str, int]]:
    """Milliseconds of a command by its kind, seconds of a rollback, and what the last group cost at the root."""
    nodes = len(cluster.names)
    times: dict[str, float] = {}
    with cluster.client() as client:
        for op, what in (("state", "equal answers"), ("check", "each its own answer")):
            asked(client, op, {})
            took = []
            for _ in range(rounds):
                time.sleep(0.1)
                seconds, result, folded = asked(client, op, {})
                assert result.exit == 0 and sum(map(len, folded.values())) == nodes, (result, len(folded))
                took.append(seconds * 1e3)
            times[op] = statistics.median(took)
            out.append(figure(f"command to {label}, {what}", times[op], "ms", "< 250", times[op] < 250, best=min(took)))
        undone, own, frames = list[float](), list[float](), dict[str, int]()
        for _ in range(rollbacks):
            seconds, own_s, frames = rollback(cluster, client, nodes)
            undone.append(seconds)
            own.append(own_s)
    median = statistics.median(undone)
    out.append(figure(f"complete rollback on {label}", median, "s", "< 2", median < 2))
    out.append(figure(OWN, statistics.median(own), "s of one core"))
    return times, median, frames


def leaves(nodes: int, rounds: int, rollbacks: int) -> list[Figure]:
    """The same tree without the sockets of its last hop: what an aggregator and its nodes say to each other are the
    same frames, handed over in memory. On two cores ten thousand sockets are more than half of what ``tree`` measures;
    this is what the tree, the wire code and the nodes themselves take.
    """
    out: list[Figure] = []
    with Cluster(nodes, in_memory=True) as cluster:
        cluster.quiet()
        label = f"{nodes:,} nodes, {len(cluster.aggregators)} aggregators, no sockets between the two"
        asked_and_undone(cluster, label, rounds, rollbacks, out)
    return out


def sealing(nodes: int, rounds: int) -> list[Figure]:
    """What seals cost: the same tree twice, at once, without the sockets of its last hop, asked in turn. Every node's
    own part of it (one check, one seal) is on this machine too.
    """
    out: list[Figure] = []
    with Cluster(nodes, in_memory=True) as plain, Cluster(nodes, in_memory=True, sealed=True) as sealed:
        plain.quiet()
        sealed.quiet()
        with plain.client() as a, sealed.client() as b:
            for op, what in (("state", "equal answers"), ("check", "each its own answer")):
                ratios = []
                for turn in range(rounds):
                    took = {}
                    for client in (a, b) if turn % 2 else (b, a):
                        time.sleep(0.1)
                        took[client], result, folded = asked(client, op, {})
                        assert result.exit == 0 and sum(map(len, folded.values())) == nodes, (result, len(folded))
                    ratios.append(took[b] / took[a])
                over = statistics.median(ratios)
                name = f"command to {nodes:,} nodes, {what}, sealed over unsealed"
                out.append(figure(name, over, "times its time", "< 1.05", over < 1.05))
    return [*out, *votes(nodes)]


class Ring(Keys):
    """A key for every name."""

    def __init__(self, names: list[str]) -> None:
        self._keys = {n: os.urandom(32) for n in names}

    def of(self, name: str) -> list[str]:
        return [name]

    def person(self, public: str) -> tuple[str, str] | None:
        return None

    def shared(self, public: str) -> bytes:
        return self._keys[public]


def votes(nodes: int) -> list[Figure]:
    """What the root computes for each vote: its share of the call's seals, and of the check of what came."""
    names = [f"n{i:05}" for i in range(nodes)]
    ring = Ring(names)
    root = RootSeals("root", ring, required=True)
    root.begin("t", 1)
    for name in names:
        proof = [for_each({root.id: ring.shared(name)}, of_hello(1, "i", 1, 1)), "i", 1, 1]
        assert root.admits(name, 1, proof, here=False)
    head = {
        "call": "1.1",
        "op": "group_vote",
        "caller": {"user": "u", "role": "ops", "via": "cluster"},
        "fence": 1,
        "term": "t",
    }
    each, body = [], b'{"ok":true,"exit":0,"result":{"vote":"yes"}}'
    for _ in range(5):
        began = time.perf_counter()
        root.calls(head, b"{}", names)
        what, xor = of_answer("t", "1.1", body), 0
        asked_s = time.perf_counter() - began
        for name in names:
            xor ^= int.from_bytes(seal(ring.shared(name), what), "big")
        began = time.perf_counter()
        assert root.answers(names, "1.1", body, number_text(xor))
        each.append((asked_s + time.perf_counter() - began) / nodes * 1e6)
    us = statistics.median(each)
    return [figure("seals at the root for each vote", us, "us", "< 2", us < 2)]


def least(found: list[Figure]) -> list[Figure]:
    """What a rollback would take on this machine if aggregators and root cost nothing: its messages in C, and
    the nodes' own decisions, which elsewhere are made on as many machines, spread over every core without a gap.
    """
    own_s = [f["value"] for f in found if f["name"] == OWN][-1]  # without sockets
    floor_ms = [f["value"] for f in found if f["name"].startswith("the flat loop in C")]
    if not floor_ms:
        return []
    rounds_s = 2 * floor_ms[0] / 1e3
    seconds = rounds_s + own_s / (os.cpu_count() or 1)
    name = "the least for a rollback here: two rounds in C, the nodes' own decisions, and nothing else"
    return [
        figure(name, seconds, "s"),
        figure("the same, over two rounds of the flat loop", seconds / rounds_s, "times its time"),
    ]


def rollback(cluster: Cluster, client: object, nodes: int) -> tuple[float, float, dict[str, int]]:
    """One group, applied and rolled back on all: seconds of the rollback, the processor's seconds that the nodes' cores
    took of it, and the root's messages for the whole group.

    Every record of the group's life must be acknowledged before and after, so that each round finds the same quiet.
    """
    before = cluster.frames()
    everybody = f"n[00001-{nodes:05}]"
    _, result, _ = asked(client, "apply", {"resources": CHANGE, "message": "bench"}, everybody, 120)  # type: ignore[arg-type]
    assert result.exit == 0, (result.message, str(result.failed)[:500])
    cluster.quiet()
    own = -sum(c["work_us"] for c in cluster.counts_now())
    seconds, result, _ = asked(client, "group_rollback", {"group": result.result["group"]}, None, 120)  # type: ignore[arg-type]
    assert result.exit == 0 and result.result["state"] == "rolled back", (result.message, str(result.failed)[:500])
    cluster.quiet()
    after = cluster.frames()
    own += sum(c["work_us"] for c in cluster.counts_now())
    return seconds, own / 1e6, {k: after[k] - before.get(k, 0) for k in after}


def messages(nodes: int, frames: dict[str, int], largest: int) -> Figure:
    """Begin, vote, decide, finish: without beats, and without events, which come in batches whatever their cause."""
    count = sum(frames.get(kind, 0) for kind in GROUP_KINDS)
    children = -(-nodes // 128)
    return figure(
        f"messages at the root for a group of {nodes:,} ({children} children)",
        count,
        "messages",
        "O(fan-out)",
        count <= 40 * (children + 1),
    )


def small_groups(sizes: tuple[int, ...]) -> list[Figure]:
    out = []
    for nodes in sizes:
        with Cluster(nodes) as cluster, cluster.client() as client:
            cluster.quiet()
            out.append(messages(nodes, rollback(cluster, client, nodes)[2], nodes))
    return out


# -- 2: one aggregator ----------------------------------------------------------------------------------------------


# -- 4: rejoining ---------------------------------------------------------------------------------------------------


# -- 5: the root ----------------------------------------------------------------------------------------------------


def the_root(records: int) -> list[Figure]:
    """Records that real children send, committed to SQLite, acknowledged and published."""
    names = [f"s{i:02}" for i in range(8)]
    extra = {**dict.fromkeys(names, "node"), "sub": "subscriber"}
    with Cluster(1, relay_processes=1, extra=extra) as cluster:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        server = cluster.keys["root1"].public

        def sender(name: str, count: int, most: int = 256) -> Sender:
            incarnation, lines = chain(name, count)
            return Sender(context, cluster.url, server, name, cluster.keys[name], incarnation, batched(lines, most))

        senders = [sender(n, records // 7) for n in names[1:]]
        total = records // 7 * 7
        began = time.monotonic()
        ok = drive(senders, lambda: all(s.acked + 1 == records // 7 for s in senders), 60)
        rate = sum(s.acked + 1 for s in senders) / (time.monotonic() - began)
        assert ok and sum(s.acked + 1 for s in senders) == total
        for s in senders:
            s.close()
        sub = context.socket(zmq.SUB)
        key = cluster.keys["sub"]
        sub.curve_publickey, sub.curve_secretkey = key.public.encode(), key.secret.encode()
        sub.curve_serverkey = server.encode()
        sub.linger = 0
        sub.subscribe(f"pact.v1.{TYPE}.".encode())
        sub.connect(f"tcp://127.0.0.1:{cluster.ports[1]}")
        one = sender(names[0], 400, 1)
        after_ack, after_send = latencies(one, sub)
        one.close()
        sub.close()
        context.term()
    p99 = sorted(after_ack)[int(len(after_ack) * 0.99)]
    return [
        figure("records a second to the root: sent, on SQLite, acknowledged", rate, "events/s"),
        figure("one record: sent, durable, published, median", statistics.median(after_send), "ms"),
        figure("from its acknowledgement (durable) to its publication, median", statistics.median(after_ack), "ms"),
        figure("the same, 99 of 100", p99, "ms"),
    ]


def latencies(one: Sender, sub: zmq.Socket[bytes]) -> tuple[list[float], list[float]]:
    """Records one by one: milliseconds from the acknowledgement to the publication, and from sending to it."""
    poller = zmq.Poller()
    poller.register(one.socket, zmq.POLLIN)
    poller.register(sub, zmq.POLLIN)
    while not one.welcome:
        poller.poll(100)
        one.turn()
    time.sleep(0.5)  # the subscription has arrived
    after_ack, after_send = [], []
    while one.send():
        sent = time.perf_counter()
        acked = published = 0.0
        while not (acked and published):
            if not poller.poll(2000):
                raise RuntimeError("a record was not acknowledged and published")
            if sub.poll(0):
                sub.recv_multipart()
                published = time.perf_counter()
            one.turn()
            if not one.left:
                acked = acked or time.perf_counter()
        after_ack.append(max(0.0, (published - acked) * 1e3))
        after_send.append((published - sent) * 1e3)
    return after_ack[20:], after_send[20:]


def run(quick: bool = False) -> list[Figure]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    nodes = int(os.environ.get("PACT_BENCH_NODES", "1000" if quick else "10000"))
    children = int(os.environ.get("PACT_BENCH_FLAT", "500" if quick else "8000"))
    rounds = max(3, ROUNDS if nodes >= 1000 else 3)
    trees = [*tree(nodes, rounds, 3), *leaves(nodes, rounds, 3)]
    return [
        *trees,
        *least(trees),
        *sealing(nodes, rounds),
        *small_groups(tuple(n for n in (100, 1000) if n < nodes)),
        *one_relay(1.0 if quick else 4.0),
        *flat_site(children, 5, 1.0 if quick else SETTLE_S),
        *aged(200, 50 if quick else 1_200),
        *rejoin(128 if nodes >= 1000 else 16),
        *the_root(7_000 if quick else 70_000),
    ]


if __name__ == "__main__":
    main(run)
