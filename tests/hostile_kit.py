"""A real root as a process, and whoever has a key to it: who connects, asks and answers is played by the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import zmq
from cluster_kit import Kit, free_ports

from pact.core.tree import wire
from pact.core.tree.wire import Message

Socket = zmq.Socket[bytes]
NAMES = {
    "root1": "aggregator",
    "agg1": "aggregator",
    "n1": "node",
    "n2": "node",
    "view": "viewer",
    "op": "ops",
    "adm": "admin",
}


class Hostile(Kit):
    """A root as a process, with its log in SQLite."""

    _people = 1

    def start(self, cluster: str = "") -> None:
        """``cluster``: more lines of that section."""
        tree, events, replay = (f"tcp://127.0.0.1:{p}" for p in free_ports(3))
        self.url, self.root_name = tree, "root1"
        path = self.base / "root1.toml"
        path.write_text(
            f'[aggregator]\nname = "root1"\ntree = "{tree}"\nevents = "{events}"\nreplay = "{replay}"\nhttp = ""\n'
            f'[journal]\nurl = "sqlite://{self.base}/root.db"\n[cluster]\n{cluster}'
            f'[keys]\nsecret = "{self.secret("root1")}"\nauthorized = "{self.authorized}"\n'
        )
        self.run("root1", "aggregator", "--config", str(path))

    def person(self, name: str, at: str = "root1") -> Socket:
        """Connected and welcomed, however long the root takes to lead."""
        sock = self.dealer(name, at, self.below if at == "agg1" else "")
        self._people += 1
        self._welcomed(sock, name, "client", session=self._people << 20)
        return sock

    def start_below(self) -> None:
        """An aggregator under the root."""
        self.below = self.start_aggregator("agg1", ("root1", self.url))

    def node(self, name: str, **more: Any) -> Socket:
        sock = self.dealer(name)
        self._welcomed(sock, name, "node", **more)
        return sock

    def _welcomed(self, sock: Socket, name: str, role: str, **more: Any) -> None:
        ends = time.monotonic() + 15
        while time.monotonic() < ends:
            self.hello(sock, name, role, **more)
            message = self.maybe(sock, 1.0)
            if message is not None and message.kind == "welcome":
                return
            time.sleep(0.1)
        raise AssertionError(f"{name} is not welcomed\n{self.logs()}")

    def request(
        self, sock: Socket, op: str, nodes: str | None = None, timeout_ms: int = 3000, id_: int = 1, **args: Any
    ) -> None:
        sock.send(
            wire.encode("request", {"id": id_, "op": op, "nodes": nodes, "timeout_ms": timeout_ms}, orjson.dumps(args))
        )

    def result(self, sock: Socket, seconds: float = 8.0) -> Message:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            message = self.maybe(sock, 0.5)
            if message is not None and message.kind == "result":
                return message
        raise AssertionError(f"no result\n{self.logs()}")

    def still_at_work(self, exit_: int = 0) -> dict[str, Any]:
        """Another person asks; the root has not been started again meanwhile."""
        assert self.processes["root1"].poll() is None, f"the root has ended\n{self.logs()}"
        sock = self.person("view")
        self.request(sock, "nodes")
        said = self.result(sock)
        assert said.head["exit"] == exit_, said
        sock.close(0)
        body: dict[str, Any] = orjson.loads(said.body)
        return body

    def answering(
        self, sock: Socket, name: str, answer: Callable[[str], bytes], until: Callable[[], Any], seconds: float = 8.0
    ) -> Any:
        """Play a node that answers every call, until something has come."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            message = self.maybe(sock, 0.05)
            if message is not None and message.kind == "call":
                body = answer(message.head["op"])
                head = {"call": message.head["call"], "final": True, "parts": [[[name], len(body)]]}
                sock.send(wire.encode("answer", head, body))
            found = until()
            if found is not None:
                return found
        return None


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)
