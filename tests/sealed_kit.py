"""An aggregator that somebody has taken over: it has a key, and all words pass through it.

The root and the agents are real processes; the aggregator between them runs in the test, which turns its words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from cluster_kit import free_ports
from hostile_kit import Hostile

from pact.cluster.aggregator import Aggregator
from pact.cluster.client import Parts, Result, RootClient
from pact.cluster.config import AggregatorConfig
from pact.core.tree import wire
from pact.core.tree.outbox import Up
from pact.core.tree.uplink import Deliver
from pact.core.tree.wire import Message
from pact.errors import PactError
from pact.net import keys

NAMES = {"root1": "aggregator", "agg1": "aggregator", "n1": "node", "n2": "node", "view": "viewer", "adm": "admin"}
SEALED = "sealed = true\n"
ADMIN = {"user": "root", "role": "admin", "via": "cluster"}


def same(x: Any) -> Any:
    return x


class Rogue(Aggregator):
    """Honest until the test says what becomes of what goes up (``up``) and down (``down``): another message, or None."""

    up: Callable[[Up], Up | None] = staticmethod(same)
    down: Callable[[Message], Message | None] = staticmethod(same)
    seen: list[Message]

    def _send_up(self, up: Up, now_ns: int) -> None:
        said = self.up(up)
        if said is not None:
            super()._send_up(said, now_ns)

    def _from_uplink(self, effects: Iterable[Any], now_ns: int) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self.seen.append(effect.message)
                said = self.down(effect.message)
                if said is None:
                    continue
                effect = Deliver(said)
            super()._from_uplink([effect], now_ns)

    def tell(self, name: str, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        """A word of its own to one that is below it."""
        self._send((self.relay.tree.named[name].rid,), wire.encode(kind, head, body), set())

    def say(self, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        """A word of its own to the root."""
        super()._send_up(Up(kind, head, body), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Between(Hostile):
    """A root, the rogue below it, and agents below that."""

    rogue: Rogue
    cluster = ""  # lines of that section of an agent's configuration, as a test needs them

    def start_rogue(self) -> None:
        self.below = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        path = self.base / "agg1.toml"
        path.write_text(
            f'[aggregator]\nname = "agg1"\ntree = "{self.below}"\nhttp = ""\nparents = {self.parents(("root1", self.url))}\n'
            f'[keys]\nsecret = "{self.secret("agg1")}"\nauthorized = "{self.authorized}"\n'
        )
        from pact.cluster import config

        settings: AggregatorConfig = config.load(str(path))
        self.rogue = Rogue(settings)
        self.rogue.seen = []
        self.aggregator = self.rogue
        self.until(lambda: self.rogue.relay.rooted, "the rogue is under the root")

    def agent(self, name: str, *, at: str = "agg1", roots: bool = True, sealed: bool = True, base: str = "1h") -> str:
        parent = ("agg1", self.below) if at == "agg1" else ("root1", self.url)
        lines = f'roots = ["{self.public["root1"]}"]\n' if roots else ""
        sock = self.start_agent(name, parent, cluster=lines + (SEALED if sealed else ""), base=base)
        self.until(lambda: self.ask(sock, "status")["result"]["cluster"]["connected"], f"{name} has a parent")
        return sock

    def wait_for_key_of(self, who: str) -> None:
        """The root has read the file in which this key is new."""
        ends = time.monotonic() + 30
        while not any(isinstance(item, Result) and item.exit == 0 for item in self.asked(who, "nodes")):
            assert time.monotonic() < ends, self.logs()

    def asked(
        self,
        who: str,
        op: str,
        args: Mapping[str, Any] | None = None,
        nodes: str | None = None,
        *,
        at: str = "agg1",
        roots: bool = True,
        sealed: bool = True,
        timeout_s: float = 8.0,
    ) -> list[Any]:
        """What a person's program is told, or the PactError that it shows; the rogue turns meanwhile."""
        out: list[Any] = []
        url = self.below if at == "agg1" else self.url

        def ask() -> None:
            try:
                with RootClient(
                    [(url, self.public[at])],
                    keys.load(self.secret(who)),
                    who,
                    timeout_s=timeout_s + 4,
                    roots=[self.public["root1"]] if roots else [],
                    sealed=sealed,
                ) as client:
                    out.extend(client.ask(op, dict(args or {}), nodes, timeout_s))
            except PactError as exc:
                out.append(exc)

        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            self.turn()
        thread.join()
        return out

    def result(self, *args: Any, **more: Any) -> Result:  # type: ignore[override]
        last = self.asked(*args, **more)[-1]
        assert isinstance(last, Result), last
        return last

    def answers(self, *args: Any, **more: Any) -> dict[str, Any]:
        """Each node's answer."""
        found = self.asked(*args, **more)
        return {n: orjson.loads(p.body) for p in found if isinstance(p, Parts) for n in p.names}

    def known(self) -> dict[str, Any]:
        """The nodes as the root has them, asked at the root itself."""
        rows: dict[str, Any] = self.result("adm", "nodes", at="root1").result["nodes"]
        return rows

    def newest(self, sock: str) -> int:
        cluster = self.ask(sock, "status")["result"]["cluster"]
        return int(cluster["replicated"] + cluster["waiting"])

    def log_of(self, name: str, sock: str) -> None:
        newest = self.newest(sock)
        self.until(lambda: self.known().get(name, {}).get("seq", -1) >= newest, "the root has its records")

    def holds(self, sock: str) -> list[str]:
        return [h["reason"] for h in self.ask(sock, "status")["result"]["holds"]]

    def records(self, sock: str, type_: str) -> list[dict[str, Any]]:
        import socket

        with socket.socket(socket.AF_UNIX) as s:
            s.connect(sock)
            s.sendall(orjson.dumps({"v": 1, "op": "log", "args": {"type": type_}}) + b"\n")
            rows = list[dict[str, Any]]()
            with s.makefile("rb") as lines:
                while "end" not in (said := orjson.loads(lines.readline())):
                    rows.append(said["record"])
        return rows


@contextmanager
def between(base: Path, cluster: str = SEALED) -> Iterator[Between]:
    """Root and rogue, at work. ``cluster``: more lines of that section of the root's file."""
    kit = Between(base, NAMES)
    try:
        kit.start(cluster)
        kit.start_rogue()
        yield kit
    finally:
        kit.close()
