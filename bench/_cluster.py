"""A cluster on loopback for the benches: keys, a real root, real aggregators, virtual nodes; all of them processes.

Root and aggregators are the real ones, several to a process where there are many (``pact/sim/relays.py`` says why); the
nodes are those of ``pact/sim/fleet.py``. Every link has CURVE. The nodes' processes run without assertions: those are
the nodes' own machines, which stand beside what is measured here only because there are no ten thousand of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from pact.cluster.client import Parts, Result, RootClient
from pact.net.keys import Key

REPOSITORY = Path(__file__).resolve().parent.parent
FAN_OUT = 128
RESOURCES = {"sysctl:vm.swappiness": {"value": "60"}, "file:/etc/motd": {"sha256": "0", "mode": "0644"}}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


class Process:
    """A child that ends when its stdin does; ``said`` is the newest line of its stdout."""

    def __init__(self, log: Path, *command: str) -> None:
        self.said = ""
        self.told = 0
        self._log = log
        with open(log, "ab") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "NOTIFY_SOCKET": ""},
            )
        assert self._popen.stdout is not None
        os.set_blocking(self._popen.stdout.fileno(), False)
        self._rest = b""
        self.pid = self._popen.pid

    def read(self) -> str:
        """The newest complete line. Raises RuntimeError if it has ended."""
        if self._popen.poll() is not None:
            raise RuntimeError(f"{self._log.name}: {self._log.read_text()[-2000:]}")
        assert self._popen.stdout is not None
        data = self._popen.stdout.read()
        if data:
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                self.said = lines[-1].decode()
        return self.said

    def counts(self) -> dict[str, int]:
        text = self.read()
        found: dict[str, int] = json.loads(text) if text.startswith("{") else {}
        return found

    def tell(self, what: bytes = b"") -> None:
        """A line on its stdin."""
        assert self._popen.stdin is not None
        self.told += 1
        self._popen.stdin.write(what + b"\n")
        self._popen.stdin.flush()

    def kill(self, number: int = 15) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(number)
            self._popen.wait()

    def close(self) -> None:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()


class Cluster:
    """A context manager. ``nodes`` virtual nodes in ``shards`` processes below as many aggregators as the fan-out asks
    for, in ``relay_processes`` processes; ``alone``: each is a ``pact aggregator`` of its own. ``everywhere``:
    a node may go under every aggregator, and prefers that of its own rack; else it knows that one only. ``in_memory``:
    nodes share a process with their aggregator, and what they say to each other passes no socket. ``sealed``: nodes and
    root seal what they say to each other.
    """

    def __init__(
        self,
        nodes: int,
        *,
        fan_out: int = FAN_OUT,
        shards: int = 2,
        relay_processes: int = 2,
        everywhere: bool = False,
        alone: bool = False,
        root: str = "--root",
        write_every_s: float = 0.0,
        extra: dict[str, str] | None = None,
        in_memory: bool = False,
        sealed: bool = False,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="pact-bench-"))
        self.names = [f"n{i:05}" for i in range(1, nodes + 1)]
        self.keys: dict[str, Key] = {}
        self.extra = extra or {}
        self.root: Process
        self.relays: list[Process] = []
        self.fleets: list[Process] = []
        self.ports: list[int] = []
        self._shards, self._relay_processes, self._fan_out = min(shards, nodes), relay_processes, fan_out
        self._everywhere, self._alone, self._root, self._write_every_s = everywhere, alone, root, write_every_s
        self._in_memory, self._sealed = in_memory, sealed
        self.aggregators = [f"agg{i:03}" for i in range(1, max(1, -(-nodes // fan_out)) + 1)]
        self.relay_kib = 0  # of the first relay process, before anybody connects
        self.up_s = 0.0

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for process in [*self.fleets, *self.relays]:
            process.close()
        if hasattr(self, "root"):
            self.root.close()
        shutil.rmtree(self.base, ignore_errors=True)

    # -- making it ----------------------------------------------------------------------------------------------

    def _key(self, name: str) -> None:
        public, secret = zmq.curve_keypair()
        self.keys[name] = Key(public.decode(), secret.decode())

    def _secret(self, name: str) -> str:
        path = self.base / f"{name}.secret"
        path.touch(0o600)
        path.write_text(self.keys[name].secret + "\n")
        return str(path)

    def _authorized(self, name: str, roles: dict[str, str]) -> str:
        path = self.base / f"{name}.authorized.toml"
        path.write_text(
            "".join(
                f'[[key]]\npublic = "{self.keys[n].public}"\nname = "{n}"\nrole = "{r}"\n' for n, r in roles.items()
            )
        )
        return str(path)

    def _start(self) -> None:
        for name in ("root1", "admin", *self.aggregators, *self.names, *self.extra):
            self._key(name)
        self.ports = free_ports(3 + len(self.aggregators))
        self.url = f"tcp://127.0.0.1:{self.ports[0]}"
        roles = {"admin": "admin", **self.extra, **dict.fromkeys(self.aggregators, "aggregator")}
        if self._sealed:
            roles.update(dict.fromkeys(self.names, "node"))
        root = self.base / "root1.toml"
        root.write_text(
            f'[aggregator]\nname = "root1"\ntree = "{self.url}"\nevents = "tcp://127.0.0.1:{self.ports[1]}"\n'
            f'replay = "tcp://127.0.0.1:{self.ports[2]}"\nhttp = ""\nchildren = 1024\n'
            f'[journal]\nurl = "sqlite://{self.base}/root.db"\n[cluster]\nsealed = {str(self._sealed).lower()}\n'
            f'[keys]\nsecret = "{self._secret("root1")}"\nauthorized = "{self._authorized("root1", roles)}"\n'
        )
        self.root = Process(self.base / "root1.log", "-m", "pact.sim.relays", self._root, str(root))
        self.urls = [f"tcp://127.0.0.1:{port}" for port in self.ports[3:]]
        configs = self._aggregators()
        if self._in_memory:
            self._leaves(configs)
            return
        if self._alone:
            for name, path in zip(self.aggregators, configs, strict=True):
                log = self.base / f"{name}.log"
                self.relays.append(Process(log, "-m", "pact.cli.main", "aggregator", "--config", path))
        else:
            size = -(-len(configs) // self._relay_processes)
            for at in range(0, len(configs), size):
                log = self.base / f"relays{at}.log"
                self.relays.append(Process(log, "-m", "pact.sim.relays", *configs[at : at + size]))
        self.until(self._all_rooted, "the aggregators", 60)
        self.relay_kib = rss_kib(self.relays[0].pid)
        began = time.monotonic()
        self._nodes()
        self.until(self.all_connected, "all nodes", 60 + len(self.names) / 50)
        self.up_s = time.monotonic() - began

    def _all_rooted(self) -> bool:
        """Every aggregator has a way to the root: nobody has to look for another."""
        for process in self.relays:
            process.read()
        return sum(p.read_text().count("under tcp") for p in self.base.glob("*.log")) == len(self.aggregators)

    def all_connected(self) -> bool:
        return sum(c.get("connected", 0) for c in self.counts()) == len(self.names)

    def _aggregators(self) -> list[str]:
        below: list[list[str]] = [[] for _ in self.aggregators]
        for number, name in enumerate(self.names):
            for i in self._parents_of(number):
                below[i].append(name)
        out = []
        parents = f'[{{url = "{self.url}", key = "{self.keys["root1"].public}"}}]'
        for i, name in enumerate(self.aggregators):
            path = self.base / f"{name}.toml"
            authorized = self._authorized(name, {**dict.fromkeys(below[i], "node"), **self.extra})
            path.write_text(
                f'[aggregator]\nname = "{name}"\nrack = "r{i}"\ntree = "{self.urls[i]}"\nparents = {parents}\n'
                f'http = ""\nchildren = {max(256, len(below[i]) + len(self.extra))}\n'
                f'[keys]\nsecret = "{self._secret(name)}"\nauthorized = "{authorized}"\n'
            )
            out.append(str(path))
        return out

    def _leaves(self, configs: list[str]) -> None:
        """Aggregators and the nodes below them, in processes of as many aggregators as there are."""
        began = time.monotonic()
        for i in range(self._shards):
            mine = range(i, len(configs), self._shards)
            rows = [
                (n, f"r{k}", self.keys[n].public, self.keys[n].secret, [k // self._shards])
                for k in mine
                for n in self.names[k * self._fan_out : (k + 1) * self._fan_out]
            ]
            parents = [(self.urls[k], self.keys[self.aggregators[k]].public, f"r{k}") for k in mine]
            path = self.base / f"leaves{i}.json"
            path.write_text(
                json.dumps(
                    {
                        "nodes": rows,
                        "parents": parents,
                        "declared": {r: {"attrs": a} for r, a in RESOURCES.items()},
                        "roots": self._roots,
                        "leaves": [(self.urls[k], configs[k]) for k in mine],
                    }
                )
            )
            self.fleets.append(Process(self.base / f"leaves{i}.log", "-O", "-m", "pact.sim.leaves", str(path)))
        self.until(self.all_connected, "all nodes", 60 + len(self.names) / 50)
        self.up_s = time.monotonic() - began

    @property
    def _roots(self) -> list[str]:
        return [self.keys["root1"].public] if self._sealed else []

    def _parents_of(self, number: int) -> list[int]:
        return list(range(len(self.aggregators))) if self._everywhere else [number // self._fan_out]

    def _nodes(self) -> None:
        parents = [
            (url, self.keys[name].public, f"r{i}")
            for i, (url, name) in enumerate(zip(self.urls, self.aggregators, strict=True))
        ]
        rows = [
            (n, f"r{i // self._fan_out}", self.keys[n].public, self.keys[n].secret, self._parents_of(i))
            for i, n in enumerate(self.names)
        ]
        declared = {r: {"attrs": a} for r, a in RESOURCES.items()}
        for i in range(self._shards):
            path = self.base / f"fleet{i}.json"
            path.write_text(
                json.dumps(
                    {
                        "nodes": rows[i :: self._shards],
                        "parents": parents,
                        "declared": declared,
                        "roots": self._roots,
                        "write_every_s": self._write_every_s,
                    }
                )
            )
            self.fleets.append(Process(self.base / f"fleet{i}.log", "-O", "-m", "pact.sim.fleet", str(path)))

    # -- using it -----------------------------------------------------------------------------------------------

    def counts(self) -> list[dict[str, int]]:
        """The newest that was told, which may be a moment old."""
        return [p.counts() for p in self.fleets]

    def counts_now(self) -> list[dict[str, int]]:
        """What is so after this was called: with older counts, quiet looks like it was before the work began."""
        for fleet in self.fleets:
            fleet.tell()
        self.until(lambda: all(p.counts().get("told", 0) >= p.told for p in self.fleets), "counts", 30, 0.002)
        return self.counts()

    def until(self, condition: Callable[[], bool], what: str, seconds: float, every_s: float = 0.05) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > ends:
                raise RuntimeError(f"{what}: not within {seconds:.0f} s: {self.counts()} {self.logs()}")
            time.sleep(every_s)

    def quiet(self, seconds: float = 60.0) -> None:
        """Until every record of every node is durable at the root and acknowledged."""
        self.until(lambda: all(c.get("acked", 0) >= c.get("records", 1) for c in self.counts_now()), "quiet", seconds)

    def frames(self) -> dict[str, int]:
        """What has passed between the root and its children, by direction and kind."""
        before = self.root.read()
        self.root.tell()

        def moved() -> bool:
            if self.root.read() == before:
                time.sleep(0.2)
            return True

        self.until(moved, "the root's counts", 5)
        return self.root.counts()

    def logs(self) -> str:
        return "\n".join(f"-- {p.name}\n{p.read_text()[-300:]}" for p in sorted(self.base.glob("*.log")))

    def client(self) -> RootClient:
        return RootClient([(self.url, self.keys["root1"].public)], self.keys["admin"], "admin")


def asked(
    client: RootClient, op: str, args: dict[str, Any], nodes: str | None = None, timeout_s: float = 60.0
) -> tuple[float, Result, dict[bytes, list[str]]]:
    """Seconds until the result is there, the result, and the answers folded."""
    began = time.perf_counter()
    folded: dict[bytes, list[str]] = {}
    for item in client.ask(op, args, nodes, timeout_s):
        if isinstance(item, Parts):
            folded.setdefault(item.body, []).extend(item.names)
        elif isinstance(item, Result):
            return time.perf_counter() - began, item, folded
    raise AssertionError("an answer without a result")
