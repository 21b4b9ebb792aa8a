"""One aggregator by itself: what passes through it, what its children cost, what becomes of it with time."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import zmq  # noqa: E402
from _beside import Figure, figure  # noqa: E402
from _cluster import Cluster, asked, rss_kib  # noqa: E402
from _senders import Sender, batched, chain  # noqa: E402

from pact.core.root.chunks import read_chunk  # noqa: E402
from pact.journal.stores import open_store  # noqa: E402


def one_relay(seconds: float) -> list[Figure]:
    """Events through one aggregator process: 16 children that only send, a parent that only acknowledges."""
    names = [f"s{i:02}" for i in range(16)]
    with Cluster(1, relay_processes=1, root="--sink", alone=True, extra=dict.fromkeys(names, "node")) as cluster:
        _, lines = chain("s00", 4096)
        batches = batched(lines)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        server = cluster.keys[cluster.aggregators[0]].public
        senders = [
            Sender(context, cluster.urls[0], server, n, cluster.keys[n], "i", batches, endless=True) for n in names
        ]
        drive(senders, lambda: all(s.welcome for s in senders), 10)
        drive(senders, lambda: False, 0.5)
        before, began = sum(s.acked for s in senders), time.monotonic()
        cpu = cpu_s(cluster.relays[0].pid)
        drive(senders, lambda: False, seconds)
        took = time.monotonic() - began
        rate = (sum(s.acked for s in senders) - before) / took
        busy = (cpu_s(cluster.relays[0].pid) - cpu) / took
        for sender in senders:
            sender.close()
        context.term()
    size = statistics.mean(map(len, lines))
    label = f"events through one aggregator ({size:.0f} bytes each, batches of {batches[0][0]})"
    return [
        figure(label, rate, "events/s", ">= 500k", rate >= 500_000),
        figure("of which the aggregator's process needs", busy, "cores"),
        figure(
            "for each core that it needs (senders and parent share this machine's with it)",
            rate / busy,
            "events/s",
            ">= 500k",
            rate / busy >= 500_000,
        ),
    ]


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(senders: list[Sender], done: object, seconds: float) -> bool:
    """Send as fast as the credit allows, until it is so or the time is over."""
    ends = time.monotonic() + seconds
    poller = zmq.Poller()
    for sender in senders:
        poller.register(sender.socket, zmq.POLLIN)
    while time.monotonic() < ends:
        if done():  # type: ignore[operator]
            return True
        sent = False
        for sender in senders:
            sender.turn()
            if sender.welcome:
                sent |= sender.send()
        if not sent:
            poller.poll(5)
    return bool(done())  # type: ignore[operator]


def flat_site(children: int, rounds: int, settle_s: float) -> list[Figure]:
    """All children under one aggregator: the memory of each, and a command to all of them."""
    with Cluster(children, fan_out=children, relay_processes=1) as cluster:
        cluster.quiet()
        time.sleep(settle_s)
        each = (rss_kib(cluster.relays[0].pid) - cluster.relay_kib) / children
        with cluster.client() as client:
            took = []
            for _ in range(rounds):
                time.sleep(0.1)
                seconds, result, folded = asked(client, "state", {})
                assert result.exit == 0 and sum(map(len, folded.values())) == children, result
                took.append(seconds * 1e3)
            each_after = (rss_kib(cluster.relays[0].pid) - cluster.relay_kib) / children
    return [
        figure(
            f"memory per child, {children:,} children of one aggregator",
            each,
            "KiB",
            "<= 40",
            each <= 40,
            after_commands=round(each_after, 1),
        ),
        figure(f"command to {children:,} children of one aggregator", statistics.median(took), "ms"),
    ]


def aged(children: int, commands: int) -> list[Figure]:
    """The same memory of children that have talked for long: libzmq goes through all of a connection's four blocks of
    256 messages before it uses one again, whatever is in them, and no option makes them smaller.
    """
    with Cluster(children, fan_out=children, relay_processes=1) as cluster, cluster.client() as client:
        cluster.quiet()
        for _ in range(commands):
            asked(client, "ping", {})
        each = (rss_kib(cluster.relays[0].pid) - cluster.relay_kib) / children
    return [figure(f"memory per child after {commands} messages each way, {children:,} children", each, "KiB")]


def rejoin(children: int) -> list[Figure]:
    """An aggregator is killed while its children write: how long until all work under others, and what the log says."""
    with Cluster(3 * children, fan_out=children, everywhere=True, alone=True, write_every_s=2.0) as cluster:
        time.sleep(3)
        lost = sum(c["lost"] for c in cluster.counts())
        cluster.relays[0].kill(9)
        began = time.monotonic()
        cluster.relays.pop(0)
        cluster.until(
            lambda: sum(c["lost"] for c in cluster.counts()) - lost >= children and cluster.all_connected(),
            "all children under others",
            60,
            0.02,
        )
        took = time.monotonic() - began
        for fleet in cluster.fleets:
            fleet.tell(b".")  # nobody writes any more
        time.sleep(3)
        cluster.quiet()
        moved = sum(c["lost"] for c in cluster.counts()) - lost
        records = sum(c["records"] for c in cluster.counts())
        cluster.root.close()
        missing, twice = in_the_log(f"sqlite://{cluster.base}/root.db", records)
    return [
        figure(f"{moved} children of a killed aggregator at work under others", took, "s", "< 10", took < 10),
        figure(
            f"of their and others' {records:,} records missing in the root's log", missing, "records", "0", missing == 0
        ),
        figure("recorded twice", twice, "records", "0", twice == 0),
    ]


def in_the_log(url: str, records: int) -> tuple[int, int]:
    """Records of nodes that are missing, and that are there twice."""
    store = open_store(url, "default", {})
    seen: dict[str, set[int]] = {}
    twice = 0
    for chunk in store.read(0):
        for batch in read_chunk(chunk).batches:
            if batch.node != "_root":
                numbers = range(batch.first, batch.first + len(batch.lines))
                known = seen.setdefault(batch.node, set())
                twice += len(known.intersection(numbers))
                known.update(numbers)
    store.close()
    holes = sum(max(n) + 1 - len(n) for n in seen.values())
    return max(holes, records - sum(map(len, seen.values()))), twice
