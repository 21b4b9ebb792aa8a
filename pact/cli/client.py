"""Talking to the agent: one request, one answer; or lines until they end."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import orjson

from pact.errors import BY_EXIT_CODE, PactError, UnreachableError

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 600.0


class Connection:
    """One connection to the control socket. Raises UnreachableError with the next step."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._sock.connect(path)
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower() if exc.errno else str(exc)
            hint = "start it (systemctl start pact-agent), or name another with --socket"
            raise UnreachableError(f"no agent answers at {path}: {reason}", hint) from None
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        self._file = self._sock.makefile("rb", 1 << 16)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._sock.close()

    def send(self, op: str, args: dict[str, Any]) -> None:
        request = orjson.dumps({"v": 1, "op": op, "args": args})
        try:
            self._sock.sendall(request + b"\n")
        except OSError as exc:
            raise UnreachableError(f"the agent closed the connection: {exc}") from None

    def line(self) -> dict[str, Any]:
        try:
            raw = self._file.readline()
        except TimeoutError:
            raise UnreachableError("the agent did not answer in time", "see its log") from None
        except OSError as exc:
            raise UnreachableError(f"the connection to the agent broke: {exc}") from None
        if not raw:
            raise UnreachableError("the agent ended before it answered", "look at pact log when it is back")
        answer: dict[str, Any] = orjson.loads(raw)
        return answer

    def endless(self) -> None:
        """No time limit: events may be far apart."""
        self._sock.settimeout(None)


class Answer:
    """An answer: ``result`` is the document; a refusal was raised unless it has a result worth showing."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.ok: bool = raw["ok"]
        self.exit: int = raw["exit"]
        self.message: str = raw.get("message", "")
        self.hint: str = raw.get("hint", "")
        self.result: dict[str, Any] = raw.get("result", {})

    def error(self) -> PactError:
        kind = BY_EXIT_CODE.get(self.exit, PactError)
        return kind(self.message, self.hint)


class Transport(ABC):
    """Another way to an answer than the control socket; stands in place of its path."""

    @abstractmethod
    def ask(self, op: str, args: dict[str, Any]) -> Answer: ...

    @abstractmethod
    def stream(self, op: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]: ...


def ask(path: str | Transport, op: str, **args: Any) -> Answer:
    """One request. Raises the error that the agent answered with, unless it came with a result."""
    if isinstance(path, Transport):
        answer = path.ask(op, args)
    else:
        with Connection(path) as connection:
            connection.send(op, args)
            answer = Answer(connection.line())
    if not answer.ok and not answer.result:
        raise answer.error()
    return answer


def stream(path: str | Transport, op: str, *, endless: bool = False, **args: Any) -> Iterator[dict[str, Any]]:
    """Lines until the agent says that it was the last, or (``endless``) until interrupted."""
    if isinstance(path, Transport):
        yield from path.stream(op, args)
        return
    with Connection(path) as connection:
        if endless:
            connection.endless()
        connection.send(op, args)
        while True:
            line = connection.line()
            if line.get("end"):
                return
            if "ok" in line and not line["ok"]:
                raise Answer(line).error()
            yield line
