"""Sessions without an agent: a keeper of one's own, and hands that speak frames."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pact.session import frames

REPOSITORY = Path(__file__).parent.parent


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


class Peer:
    """A client of a session."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = frames.Reader()
        self.frames: list[tuple[bytes, bytes]] = []
        self.out = self.err = b""
        self.closed = False
        self.gives_credit = True

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self.sock.sendall(frames.frame(kind, payload))

    def read(self, wait_s: float = 0.1) -> bool:
        """Take what has come. Returns whether anything has."""
        if self.closed or not select.select([self.sock], [], [], wait_s)[0]:
            return False
        try:
            data = self.sock.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return False
        got = 0
        for kind, payload in self.reader.feed(data):
            if kind in (b"O", b"E"):
                got += len(payload)
                if kind == b"O":
                    self.out += payload
                else:
                    self.err += payload
            else:
                self.frames.append((kind, payload))
        if got and self.gives_credit:
            try:
                self.sock.sendall(frames.credit(got))
            except OSError:
                pass
        return True

    def until(self, text: bytes, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.out:
            assert time.monotonic() < end and not self.closed, (text, self.out[-500:], self.frames[-3:])
            self.read()

    def wait(self, kind: bytes, seconds: float = 15.0) -> Any:
        """The first frame of a type, as JSON or text."""
        end = time.monotonic() + seconds
        while True:
            for found, payload in self.frames:
                if found == kind:
                    return json.loads(payload) if kind in b"AX" else payload.decode()
            assert time.monotonic() < end, (kind, self.frames, self.out[-300:])
            if self.closed:
                raise AssertionError(f"closed without {kind!r}: {self.frames}")
            self.read()

    def end(self, seconds: float = 15.0) -> Any:
        """Read all of it, to the end: what ``X`` says."""
        end = time.monotonic() + seconds
        while not self.closed:
            assert time.monotonic() < end, (self.frames, self.out[-300:])
            self.read()
        return self.wait(b"X")

    def close(self) -> None:
        self.sock.close()


class Sessions:
    """A keeper and its sessions. ``twin``: those of the Python twin. ``around``: words that run the keeper's."""

    def __init__(self, twin: bool, around: Sequence[str] = ()) -> None:
        self.twin = twin
        self.place = Path(tempfile.mkdtemp(prefix="pact-s-"))
        self.path = f"{self.place}/keeper.sock"
        self.keeper = subprocess.Popen(
            [*around, sys.executable, "-m", "pact.session.keeper", self.path], cwd=REPOSITORY, stdin=subprocess.DEVNULL
        )
        self.peers: list[Peer] = []
        self.pids: list[int] = []
        self.conns: list[socket.socket] = []
        wait_until(self._listens, "the keeper listens")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(self.path)
            except OSError:
                return False
        return True

    def ask(self, name: str, **more: Any) -> tuple[socket.socket, dict[str, Any]]:
        """Prepare a session: its connection, and what it says."""
        wish: dict[str, Any] = {
            "id": name,
            "dir": str(self.place),
            "account": "root",
            "person": "root",
            "root": True,
            "who": "test",
            "where": "here",
            "command": [],
            "terminal": False,
            "term": "xterm",
            "rows": 24,
            "cols": 80,
            "env": {},
            "idle_s": 600,
            "detached_s": 60,
            "tasks": 500,
            "transcript": "",
            "transcript_max": 1 << 20,
            "twin": self.twin,
            **more,
        }
        conn = socket.socket(socket.AF_UNIX)
        self.conns.append(conn)
        conn.settimeout(20)
        conn.connect(self.path)
        conn.sendall(json.dumps(wish).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            piece = conn.recv(65536)
            if not piece:
                break
            line += piece
        return conn, json.loads(line) if line else {}

    def open(self, name: str, command: str, **more: Any) -> dict[str, Any]:
        """Start one. Returns its state."""
        conn, said = self.ask(name, command=[command], **more)
        assert "ready" in said, said
        conn.sendall(b"go\n")
        conn.close()
        state: dict[str, Any] = said["ready"]
        self.pids.append(state["pid"])
        return state

    def attach(self, name: str, **wish: Any) -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{self.place}/{name}.sock")
        sock.settimeout(10)
        sock.sendall(frames.said(b"A", {"by": "test", **wish}))
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def state(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.place / f"{name}.json").read_text()))

    def gone(self, state: dict[str, Any]) -> bool:
        try:
            with open(f"/proc/{state['pid']}/stat", "rb") as f:
                return f.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            return True

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for conn in self.conns:
            conn.close()
        for path in self.place.glob("*.json"):
            try:
                state = json.loads(path.read_text())
            except ValueError:
                continue
            for pid in (state.get("pid"), state.get("shell")):
                if pid and state.get("end") is None and os.path.exists(f"/proc/{pid}"):
                    os.kill(pid, signal.SIGKILL)
            for group in state.get("cgroups", ()):
                _remove(group)
        self.keeper.kill()
        self.keeper.wait(10)
        shutil.rmtree(self.place, ignore_errors=True)


def _remove(group: str) -> None:
    end = time.monotonic() + 5
    while os.path.isdir(group) and time.monotonic() < end:
        try:
            for pid in Path(f"{group}/cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.rmdir(group)
        except OSError:
            time.sleep(0.05)
