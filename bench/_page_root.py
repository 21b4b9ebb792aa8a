"""A real root in a process of its own: its loop, its log, its page; its nodes are messages that it gets from here.

``python _page_root.py DIRECTORY NODES RATE``: prints the page's port, its pid and the tree's port, then writes records
of ``RATE`` nodes a second until its input ends. ``DIRECTORY`` gets the keys of ``PEOPLE``, who may look.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pact.cluster.aggregator import Aggregator  # noqa: E402
from pact.cluster.config import AggregatorConfig  # noqa: E402
from pact.cluster.rootpart import RootPart, make_root  # noqa: E402
from pact.core.records import rfc3339, seal  # noqa: E402
from pact.core.tree.wire import message  # noqa: E402
from pact.net import keys  # noqa: E402

ACTOR = {"user": "pact", "uid": None, "role": "agent", "via": "agent"}
BOOT_NS = 10**15
PEOPLE = ("p0", "p1", "p2", "p3")


class Nodes:
    """Each drifts, and conforms again, in turn."""

    def __init__(self, count: int) -> None:
        self.names: list[str] = [f"n{i:05d}" for i in range(1, count + 1)]
        self.racks = {name: f"r{i // 50 + 1:03d}" for i, name in enumerate(self.names)}
        self.chains: dict[str, tuple[int, str, str]] = {}
        self.at = 0

    def records(self, name: str) -> tuple[list[Any], bytes]:
        seq, prev, incarnation = self.chains.get(name, (-1, "0" * 64, ""))
        wall_ns = time.time_ns()
        owner = {"key": "u:1001", "user": "ann", "uid": 1001, "session": "3", "command": "sysctl"}
        resource, change = "sysctl:vm.swappiness", f"c{seq // 4 + 2}"
        if seq % 4 == 3 or seq < 0:
            drift = {
                "resource": resource,
                "change": change,
                "owner": owner,
                "opened_ns": wall_ns - BOOT_NS,
                "actual": {"value": "10"},
                "deviation_n": 50_000_000,
                "weight_n": 2 * 10**9,
            }
            opened = {"change": change, "owner": owner, "reopened": False, "resources": [resource]}
            said: list[tuple[str, dict[str, Any]]] = [("drift_detected", drift), ("window_opened", opened)]
        else:
            said = [
                ("drift_cleared", {"resource": resource, "change": f"c{seq // 4 + 2}"}),
                ("observer_restored", {"observer": "x"}),
            ]
        lines, first = b"", seq + 1
        for type_, data in said:
            record, body = seal(seq + 1, prev, rfc3339(wall_ns), wall_ns - BOOT_NS, name, type_, ACTOR, data)
            seq, prev = record.seq, record.hash
            incarnation = incarnation or record.hash[:16]
            lines += body[:-1] + b',"hash":"' + record.hash.encode() + b'"}\n'
        self.chains[name] = (seq, prev, incarnation)
        return [name, incarnation, first, len(said), len(lines)], lines

    def next(self, count: int) -> list[tuple[list[Any], bytes]]:
        """The first 200 nodes change and change back; so a state lasts a few seconds."""
        out = []
        for _ in range(count):
            self.at = (self.at + 1) % min(200, len(self.names))
            out.append(self.records(self.names[self.at * (len(self.names) // min(200, len(self.names)))]))
        return out


def main() -> None:
    work, count, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in ("root", *PEOPLE):
        keys.keygen(name, str(work))
    known = {name: (work / f"{name}.key").read_text().strip() for name in PEOPLE}
    text = "".join(f'[[key]]\npublic = "{key}"\nname = "{name}"\nrole = "viewer"\n' for name, key in known.items())
    (work / "authorized.toml").write_text(text)
    settings = AggregatorConfig(
        path=str(work / "aggregator.toml"),
        name="root",
        tree="tcp://127.0.0.1:*",
        events="tcp://127.0.0.1:*",
        replay="tcp://127.0.0.1:*",
        http="127.0.0.1:0",
        journal=f"sqlite://{work}/root.db",
        secret=str(work / "root.secret"),
        authorized=str(work / "authorized.toml"),
    )
    aggregator = Aggregator(settings, make_root)
    part = cast("RootPart", aggregator.root)
    part._seals = aggregator.seals = aggregator.relay.tree.gate = None  # these nodes have no keys

    def asked(root: Any, names: list[str]) -> Any:  # nor an answer of their own: they all say the same
        part.states.asked(names)
        part.states.heard(names, "committed")
        return ()

    part._ask_states = asked  # type: ignore[method-assign]
    nodes = Nodes(count)
    assert aggregator.http is not None
    print(aggregator.http.port, os.getpid(), aggregator.port, flush=True)
    begun = False
    due = time.monotonic()
    while not select.select([0], [], [], 0)[0]:
        aggregator.turn(min(aggregator._timeout_s(), max(0.0, due - time.monotonic())))
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if part.root is None:
            continue
        if not begun:
            begun = True
            names = nodes.names
            head: dict[str, Any] = {"add": names, "gone": [], "racks": nodes.racks, "sessions": dict.fromkeys(names, 1)}
            aggregator._from_root(part.received(message("below", head), now_ns, time.time_ns()), now_ns)
            due = time.monotonic()
        if rate and time.monotonic() >= due:
            due += 0.1
            rows = nodes.next(max(1, rate // 10))
            head = {"batches": [row for row, _ in rows]}
            body = b"".join(lines for _, lines in rows)
            aggregator._from_root(part.received(message("events", head, body), now_ns, time.time_ns()), now_ns)
    aggregator.close()


if __name__ == "__main__":
    main()
