"""A small cluster on loopback for tests: keys, a root with a stand-in for its log, aggregators and agents as processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import orjson
import zmq
from warm import Started, warm

from pact.cluster.aggregator import Aggregator
from pact.cluster.config import AggregatorConfig
from pact.core.tree import wire
from pact.core.tree.wire import Message, message
from pact.net import keys


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def inherited() -> dict[str, str]:
    """This process's environment, without what pytest says there of the test that runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


class StandIn:
    """Accepts every event once, in order, and acknowledges; keeps what came."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.name = aggregator.config.name
        self.started = False
        self.fence = 1
        self.cursors: dict[tuple[str, str], int] = {}
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.doubled = 0
        self.below: dict[str, int] = {}
        self.got: list[Message] = []
        self.answers: dict[str, list[Message]] = {}
        self.down: list[Message] = []
        self.keep = True

    def received(self, m: Message, t_ns: int, wall_ns: int) -> list[Message]:
        head = m.head
        if m.kind == "events":
            return [message("ack", {"cursors": [self.take(row, data) for row, data in wire.sections(m, "batches")]})]
        if m.kind == "below":
            self.below.update(head["sessions"])
            for name in head["gone"]:
                self.below.pop(name, None)
        elif m.kind == "answer":
            self.answers.setdefault(head["call"], []).append(m)
        self.got.append(m)
        return []

    def take(self, row: list[Any], data: bytes) -> list[Any]:
        node, incarnation, first, count, _ = row
        last = self.cursors.get((node, incarnation), -1)
        if first > last + 1:
            return [node, incarnation, last, True]
        lines = data.splitlines()
        assert len(lines) == count
        new = lines[last + 1 - first :]
        if self.keep:
            self.lines += [(node, orjson.loads(line)) for line in new]
        self.cursors[node, incarnation] = max(last, first + count - 1)
        return [node, incarnation, self.cursors[node, incarnation], False]

    def welcome(self) -> Message:
        return message(
            "welcome", {"v": 1, "name": self.name, "path": [self.name], "fence": self.fence, "credit": 64 << 20}
        )

    def tick(self, t_ns: int, wall_ns: int) -> list[Message]:
        out, self.down = self.down, []
        if not self.started:
            self.started = True
            out = [self.welcome(), *out]
        return out

    def next_wake_ns(self) -> int | None:
        return None

    def pollables(self) -> Sequence[Any]:
        return ()

    def ready(self, pollable: Any, t_ns: int, wall_ns: int) -> Iterable[Message]:
        return ()

    def removed(self, removed: Sequence[str]) -> None: ...

    def revoked(self, users: Sequence[str], t_ns: int, wall_ns: int) -> Iterable[Message]:
        return ()

    def close(self) -> None: ...

    def call(self, call: str, op: str, nodes: list[str] | None = None, args: Any = None, **head: Any) -> None:
        caller = {"user": "ops1", "role": "ops", "via": "cluster"}
        self.down.append(
            message(
                "call",
                {
                    "call": call,
                    "op": op,
                    "nodes": nodes,
                    "caller": caller,
                    "fence": self.fence,
                    "timeout_ms": 5000,
                    **head,
                },
                orjson.dumps(args or {}),
            )
        )

    def names(self, call: str) -> set[str]:
        return {n for m in self.answers.get(call, []) for names, _ in m.head["parts"] for n in names}

    def bodies(self, call: str) -> dict[str, Any]:
        return {
            n: orjson.loads(body)
            for m in self.answers.get(call, [])
            for (names, _), body in wire.sections(m, "parts")
            for n in names
        }

    def final(self, call: str) -> bool:
        return any(m.head["final"] for m in self.answers.get(call, []))


class Kit:
    """Keys and processes below one directory. ``root`` is an aggregator that the test itself turns."""

    def __init__(self, base: Path, names: dict[str, str]) -> None:
        self.base = base
        self.roles: dict[str, str] = {}
        self.public: dict[str, str] = {}
        self.processes: dict[str, Started] = {}
        self.authorized = base / "authorized_keys.toml"
        for name, role in names.items():
            self.add(name, role)
        self.write_keys()
        self.aggregator: Aggregator | None = None
        self.context: zmq.Context[Any] = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []

    def add(self, name: str, role: str) -> None:
        _, _, self.public[name] = keys.keygen(name, str(self.base))
        self.roles[name] = role

    def write_keys(self, without: Iterable[str] = ()) -> None:
        gone = set(without)
        new = self.authorized.with_suffix(".new")
        new.write_text(
            "".join(
                f'[[key]]\npublic = "{self.public[n]}"\nname = "{n}"\nrole = "{r}"\n'
                for n, r in self.roles.items()
                if n not in gone
            )
        )
        new.replace(self.authorized)

    def secret(self, name: str) -> str:
        return str(self.base / f"{name}.secret")

    # -- the root -----------------------------------------------------------------------------------------------

    def start_root(self, name: str = "root1", **settings: Any) -> StandIn:
        (port,) = free_ports(1)
        self.url = f"tcp://127.0.0.1:{port}"
        self.root_name = name
        config = AggregatorConfig(
            path="aggregator.toml",
            name=name,
            tree=self.url,
            secret=self.secret(name),
            authorized=str(self.authorized),
            http="",
            **settings,
        )
        self.aggregator = Aggregator(config, cast("Any", StandIn))
        self.stand_in = cast("StandIn", self.aggregator.root)
        relay = self.aggregator.relay
        self.until(lambda: relay.rooted, "the root begins")  # until it has, children are told to come again later
        return self.stand_in

    def turn(self, seconds: float = 0.02) -> None:
        if self.aggregator is not None:
            self.aggregator.turn(min(seconds, self.aggregator._timeout_s()))
        else:
            time.sleep(seconds)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
        """Turn the root until it is so."""
        ends = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < ends, f"{what}: not within {seconds} s\n{self.logs()}"
            for process in self.processes.values():
                assert process.poll() is None, self.logs()
            self.turn()
        return value

    def during(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.turn()

    # -- children that the test plays ---------------------------------------------------------------------------

    def dealer(
        self, name: str, server: str = "", url: str = "", *, key: keys.Key | None = None, rid: bytes = b""
    ) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.sockets.append(sock)
        pair = key or keys.load(self.secret(name))
        sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
        sock.curve_serverkey = self.public[server or self.root_name].encode()
        sock.linger = 0
        if rid:
            sock.routing_id = rid
        sock.connect(url or self.url)
        return sock

    def hello(self, sock: zmq.Socket[bytes], name: str, role: str = "node", **more: Any) -> None:
        sock.send(wire.encode("hello", {"v": 1, "role": role, "name": name, "session": 1 << 20, **more}))

    def receive(self, sock: zmq.Socket[bytes], seconds: float = 5.0) -> Message:
        message = self.maybe(sock, seconds)
        assert message is not None, "nothing came"
        return message

    def maybe(self, sock: zmq.Socket[bytes], seconds: float = 0.3) -> Message | None:
        """The next message, whether the child lives apart, which every parent asks every two seconds."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            try:
                message = wire.decode(sock.recv(zmq.NOBLOCK))
                if message.kind != "beat" or not message.head["ask"]:
                    return message
            except zmq.Again:
                self.turn(0.01)
        return None

    def joined(self, name: str, role: str = "node", **more: Any) -> zmq.Socket[bytes]:
        """A child that was welcomed."""
        sock = self.dealer(name)
        self.hello(sock, name, role, **more)
        while (answer := self.receive(sock)).kind != "welcome":  # its connection was made anew meanwhile
            assert answer.kind == "sorry" and answer.head["again"], answer
            self.hello(sock, name, role, **more)
        return sock

    # -- processes ----------------------------------------------------------------------------------------------

    def parents(self, *which: tuple[str, str]) -> str:
        return "[" + ", ".join(f'{{url = "{url}", key = "{self.public[n]}"}}' for n, url in which) + "]"

    def start_aggregator(self, name: str, *parents: tuple[str, str], port: int = 0) -> str:
        """A process; returns its url."""
        url = f"tcp://127.0.0.1:{port or free_ports(1)[0]}"
        path = self.base / f"{name}.toml"
        path.write_text(
            f'[aggregator]\nname = "{name}"\nrack = "r1"\ntree = "{url}"\nparents = {self.parents(*parents)}\n'
            f'[keys]\nsecret = "{self.secret(name)}"\nauthorized = "{self.authorized}"\n'
        )
        self.run(name, "aggregator", "--config", str(path))
        return url

    def start_agent(self, name: str, *parents: tuple[str, str], cluster: str = "", base: str = "1h") -> str:
        """A process; returns its control socket. ``cluster``: more lines of that section."""
        path = self.write_agent(name, *parents, cluster=cluster, base=base)
        self.run(name, "agent", "--config", str(path))
        return f"{path.parent}/sock"

    def write_agent(self, name: str, *parents: tuple[str, str], cluster: str = "", base: str = "1h") -> Path:
        """The configuration of an agent; returns its path."""
        home = self.base / f"agent-{name}"
        home.mkdir(exist_ok=True)
        path = home / "agent.toml"
        path.write_text(
            f'[node]\nname = "{name}"\n[state]\ndir = "{home}/state"\n[control]\nsocket = "{home}/sock"\n'
            f'[declared]\nfiles = []\n[hooks]\ndir = "{home}/hooks"\n[notify]\nterminals = false\n[window]\nbase = "{base}"\n'
            f"[observe]\nrealtime = false\nproc_connector = false\n"
            f'[cluster]\nparents = {self.parents(*parents)}\n{cluster}[keys]\nsecret = "{self.secret(name)}"\n'
        )
        return path

    def run(self, name: str, *args: str) -> None:
        """An agent or an aggregator, forked from an interpreter that has read its modules already."""
        env = {**inherited(), "NOTIFY_SOCKET": ""}
        with open(self.base / f"{name}.log", "ab") as out:
            self.processes[name] = warm(f"{args[0]}s", env).start(args, env, 0, out.fileno())

    def kill(self, name: str, number: int = 9) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(20)

    def logs(self) -> str:
        return "\n".join(f"-- {p.name}\n{p.read_text()[-3000:]}" for p in self.base.glob("*.log"))

    def ask(self, path: str, op: str, **args: Any) -> Any:
        """A request to an agent's control socket, from when it listens, while the root turns."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            self.until(lambda: sock.connect_ex(path) == 0, f"{path} listens")  # first it is bound
            sock.sendall(orjson.dumps({"v": 1, "op": op, "args": args}) + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                try:
                    chunk = sock.recv(1 << 20)
                    assert chunk
                    data += chunk
                except BlockingIOError:
                    self.turn(0.01)
            return orjson.loads(data)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close(0)
        for name in list(self.processes):
            self.kill(name, 15)
        if self.aggregator is not None:
            self.aggregator.close()
        self.context.destroy(0)
