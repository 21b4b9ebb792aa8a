"""A real root, real aggregators and real agents with sessions, for tests of streams through the tree."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import psutil
from cluster_kit import inherited
from hostile_kit import Hostile
from warm import INPUT_MAX, warm

from pact.cluster.client import Parts, RootClient
from pact.cluster.streams import Secrets
from pact.net import keys
from pact.net.ends import End

NAMES = {"root1": "aggregator", "agg1": "aggregator", "agg2": "aggregator", "root": "admin", "view": "viewer"}
NODES = ("n1", "n2", "n3")
SHELL = '[shell]\nroot = ["root"]\ndetached = "{}"\ntranscript = false\n'


class Fleet(Hostile):
    """``run``: pact of the person whose key is named."""

    def up(self) -> None:
        self.start("sealed = true\n")
        self.start_below()
        self.other = self.start_aggregator("agg2", ("root1", self.url))
        for name in NODES:
            self.node_up(name)

    def node_up(self, name: str, way: str = "") -> None:
        """``way``: the only way to its aggregator; else it has two."""
        parents = [("agg1", way)] if way else [("agg1", self.below), ("agg2", self.other)]
        lines = f'roots = ["{self.public["root1"]}"]\nsealed = true\n{SHELL.format("6s" if name == "n1" else "25s")}'
        self.start_agent(name, *parents, cluster=lines)
        self.connected(name)

    def admit(self, name: str, role: str) -> None:
        """A new key, or another role for one."""
        if name not in self.roles:
            self.add(name, role)
        self.roles[name] = role
        self.write_keys()
        self.knows(name)

    def knows(self, name: str) -> None:
        """Everybody has read the file of keys again."""
        for at in ("root1", "agg1", "agg2"):
            self.until(lambda at=at: self.run_pact("nodes", who=name, at=at).returncode == 0, f"{name} is known", 30)

    def connected(self, name: str) -> None:
        def there() -> bool:
            said = json.loads(self.run_pact("--json", "nodes").stdout or "{}")
            return bool(said.get("nodes", {}).get(name, {}).get("connected"))

        self.until(there, f"{name} is there", 30)

    def environment(self, who: str, at: str) -> dict[str, str]:
        home = self.base / f"home-{who}-{at}"
        place = home / ".config" / "pact"
        if not place.exists():
            place.mkdir(parents=True)
        url = {"agg1": self.below, "agg2": self.other, "root1": self.url}[at]
        text = [f"via = {json.dumps(url)}", f"server_key = {json.dumps(self.public[at])}"]
        text += [f"key = {json.dumps(self.secret(who))}", f"roots = [{json.dumps(self.public['root1'])}]"]
        (place / "client.toml").write_text("\n".join([*text, "sealed = true", ""]))
        return {**inherited(), "HOME": str(home), "TERM": "xterm"}

    def pact(self, *words: str, who: str = "root", at: str = "agg1", **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "pact.cli.main", *words],
            env=self.environment(who, at),
            cwd=Path(__file__).parent.parent,
            **more,
        )

    def run_pact(self, *words: str, who: str = "root", at: str = "agg1", stdin: bytes = b"") -> Any:
        if len(stdin) <= INPUT_MAX:
            code, out, err = warm("commands", inherited()).call(words, self.environment(who, at), 0, stdin, 60)
            return subprocess.CompletedProcess(words, code, out.decode("utf-8", "replace"), err.decode())
        with self.pact(
            *words, who=who, at=at, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            out, err = process.communicate(stdin, 60)
            return subprocess.CompletedProcess(words, process.returncode, out.decode("utf-8", "replace"), err.decode())

    def sessions(self, node: str, at: str = "agg1") -> list[dict[str, Any]]:
        said = json.loads(self.run_pact("--json", "sessions", "--nodes", node, at=at).stdout or "{}")
        found: list[dict[str, Any]] = said.get("nodes", {}).get(node, {}).get("sessions", [])
        return found

    def end_sessions(self, node: str, command: str) -> None:
        for session in self.sessions(node):
            if session["command"] == command:
                self.ask(f"{self.base}/agent-{node}/sock", "session_end", session=session["id"])

    def client(self, who: str = "root") -> RootClient:
        """A client that may do what none of ours does."""
        return RootClient(
            [(self.below, self.public["agg1"])],
            keys.load(self.secret(who)),
            who,
            roots=[self.public["root1"]],
            sealed=True,
        )

    def opened(self, client: RootClient, op: str, node: str, **args: Any) -> End:
        """The person's end of a new stream."""
        secrets = Secrets()
        for item in client.ask(op, {**args, "stream": secrets.public}, node, 30):
            if isinstance(item, Parts):
                said = orjson.loads(item.body)
                assert said["ok"], said
        return End(secrets.with_node(said["result"]["stream"], needed=True), node=False)

    def records(self, node: str, type_: str) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{self.base}/agent-{node}/sock")
            sock.sendall(orjson.dumps({"v": 1, "op": "log", "args": {"type": type_}}) + b"\n")
            rows = []
            for line in sock.makefile("rb"):
                row = orjson.loads(line)
                if row.get("end") or "ok" in row:
                    break
                rows.append(row["record"])
        return rows


@contextmanager
def fleet(base: Path) -> Iterator[Fleet]:
    kit = Fleet(base, {**NAMES, **dict.fromkeys(NODES, "node")})
    try:
        kit.up()
        yield kit
    finally:
        kit.close()
        end_what_outlives(base)


def end_what_outlives(base: Path) -> None:
    """Sessions outlive their agent, and with each agent's the process that keeps them."""
    for keeper in psutil.process_iter():
        with suppress(psutil.Error):
            if any(word.startswith(f"{base}/") for word in keeper.cmdline()):
                for process in [*keeper.children(recursive=True), keeper]:
                    process.kill()


def alive(marker: str) -> list[int]:
    """The processes with this word among their arguments."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(name))
    return found


def within(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return value


class OnTerminal:
    """pact on a pseudo-terminal."""

    def __init__(self, kit: Fleet, *words: str, size: tuple[int, int] = (24, 80), **more: Any) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(self.master, size)
        self.process = kit.pact(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, **more)
        os.close(slave)
        self.raw = b""

    def until(self, pattern: str, seconds: float = 20.0) -> str:
        ends = time.monotonic() + seconds
        while not (found := re.search(pattern.encode(), self.raw)):
            assert time.monotonic() < ends, f"{pattern!r} did not come: {self.raw[-2000:]!r}"
            self.read()
        said, self.raw = self.raw[: found.end()], self.raw[found.end() :]
        return said.decode("utf-8", "replace")

    def read(self) -> None:
        if select.select([self.master], [], [], 0.05)[0]:
            try:
                self.raw += os.read(self.master, 1 << 16)
            except OSError:
                time.sleep(0.01)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self, seconds: float = 20.0) -> int:
        ends = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < ends, f"it does not end: {self.raw[-2000:]!r}"
            self.read()
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


PROMPT = "[\r\n]here> "


def in_bash(at: Callable[..., OnTerminal], node: str, **more: Any) -> OnTerminal:
    """A shell that reads none of this machine's files."""
    shell = at("shell", node, "--", "PS1='here> ' exec bash --norc --noprofile -i", **more)
    shell.type("bind 'set enable-bracketed-paste off'\r")
    shell.until(PROMPT)
    return shell


def rss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


class Between:
    """A way to an aggregator that can be cut: what was on its way is lost, and who was there must come again."""

    def __init__(self, url: str) -> None:
        self._to = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.open = True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                here.close()
                continue
            there = socket.create_connection(self._to)
            self._pairs.append((here, there))
            for a, b in ((here, there), (there, here)):
                threading.Thread(target=_pass, args=(a, b), daemon=True).start()

    def cut(self) -> None:
        self.open = False
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def _pass(a: socket.socket, b: socket.socket) -> None:
    with suppress(OSError):
        while data := a.recv(1 << 16):
            b.sendall(data)
    with suppress(OSError):
        b.shutdown(socket.SHUT_WR)
