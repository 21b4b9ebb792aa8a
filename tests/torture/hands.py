"""Who works on the machine beside the agent: a shell for each user, that stays; holders of files; askers.

A shell that stays is named by the kernel as the writer of what it writes, as a person at a terminal is.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from typing import Any

ANSWER_S = 25.0
GROUPS: dict[int, list[int]] = {0: [], 1234: [60], 1235: []}  # admin, ops, viewer


class Hands:
    """One user's shell."""

    def __init__(self, uid: int) -> None:
        who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"] if uid else []
        self.process = subprocess.Popen(
            [*who, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
        )

    def do(self, script: str, seconds: float = 10.0) -> bool:
        """Run it in the shell itself; whether it succeeded. Raises TimeoutError when it hangs."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{script}\necho =$?\n".encode())
        self.process.stdin.flush()
        end = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(script)
            line += os.read(self.process.stdout.fileno(), 1)
            if line.endswith(b"\n") and not line.startswith(b"="):
                line = b""
        return line == b"=0\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class LostError(Exception):
    """No answer came: the agent went, or was silent."""


class Asker:
    """Requests over the control socket by several users: the kernel says who connects."""

    def __init__(self, path: str) -> None:
        self.path = path

    def connect(self, uid: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(ANSWER_S)
        os.setgroups(GROUPS[uid])
        os.setresgid(uid, uid, 0)
        os.setresuid(uid, uid, 0)
        try:
            sock.connect(self.path)
        except OSError as exc:
            sock.close()
            raise LostError(str(exc)) from None
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups([])
        return sock

    def send(self, uid: int, op: str, args: dict[str, Any]) -> socket.socket:
        """Ask and do not wait: the answer is read with ``answer``."""
        sock = self.connect(uid)
        try:
            sock.sendall(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
        except OSError as exc:
            sock.close()
            raise LostError(str(exc)) from None
        return sock

    def answer(self, sock: socket.socket) -> dict[str, Any]:
        """The answer. Raises LostError."""
        return self.lines(sock, once=True)[0]

    def lines(self, sock: socket.socket, *, once: bool = False) -> list[Any]:
        """The lines of an answer that comes in several, without the one that ends it."""
        out: list[Any] = []
        try:
            with sock, sock.makefile("rb") as f:
                while True:
                    line = f.readline()
                    if not line.endswith(b"\n"):
                        raise LostError("the agent hung up")
                    value = json.loads(line)
                    if value == {"end": True}:
                        return out
                    out.append(value)
                    if once or value.get("ok") is False:
                        return out
        except TimeoutError:
            raise LostError("silence") from None
        except OSError as exc:
            raise LostError(str(exc)) from None

    def ask(self, uid: int, op: str, args: dict[str, Any], seconds: float = ANSWER_S) -> dict[str, Any]:
        sock = self.send(uid, op, args)
        sock.settimeout(seconds)
        return self.answer(sock)

    def stream(self, op: str, **args: Any) -> list[Any]:
        return self.lines(self.send(0, op, args))
