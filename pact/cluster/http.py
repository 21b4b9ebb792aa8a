"""Read-only HTTP for browsers, Prometheus and load balancers: ``/``, ``/metrics``, ``/health``. One thread, few limits.

GET and HEAD without bodies, one request for each connection. It is a separate small server because the standard
library's limits neither a client's time nor the number of clients.  # V5
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.cluster import page
from pact.errors import PactError
from pact.limits import HTTP_CONNECTIONS_MAX, HTTP_REQUEST_MAX

DEADLINE_S: Final = 5.0
LINGER_S: Final = 1.0
CACHE_S: Final = 0.5
CLOSE_S: Final = 5.0
LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,1024}) HTTP/1\.[01]\r?\n")
END: Final = re.compile(rb"\r?\n\r?\n")
ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>\d{1,5})\Z")
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
PLAIN: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
GUARDS: Final = (
    f"Content-Security-Policy: {page.POLICY}\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "X-Frame-Options: DENY\r\nCross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\n"
    "Connection: close\r\n"
)


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    address: str
    ends_s: float
    asked: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    answered: bool = False


class Http:
    """``start``, then ``close``. The server's thread calls ``snapshot``, which returns the data that ``page``
    describes."""

    def __init__(self, address: str, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        """Binds at once. Raises PactError if the address is malformed or in use."""
        self._snapshot = snapshot
        self._cached: Mapping[str, Any] | None = None
        self._cached_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._closing = False
        self.requests = 0
        self.turned_away = 0
        match = ADDRESS.match(address)
        if match is None or int(match["port"]) > 65535:
            raise PactError(f"[aggregator] http: {address!r} is no host:port")
        host = match["six"] or match["host"] or "127.0.0.1"
        try:
            self._server = socket.create_server(
                (host, int(match["port"])),
                backlog=HTTP_CONNECTIONS_MAX,
                family=socket.AF_INET6 if match["six"] else socket.AF_INET,
            )
        except OSError as exc:
            self._selector.close()
            raise PactError(f"[aggregator] http {address}: {exc}", "is another aggregator running?") from None
        self._server.setblocking(False)
        # Connections that send nothing wait in the kernel.
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        self.port = int(self._server.getsockname()[1])
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="pact-http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            for client in list(self._clients.values()):
                self._end(client)
            self._selector.close()
            self._server.close()
            os.close(self._wake)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            ends = [c.ends_s for c in self._clients.values()]
            for key, _ in self._selector.select(max(0.0, min(ends) - time.monotonic()) if ends else None):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.data, _Client) and self._clients.get(key.fd) is key.data:
                    self._serve(key.data)
            now_s = time.monotonic()
            for client in [c for c in self._clients.values() if c.ends_s <= now_s]:
                self._end(client)

    def _accept(self) -> None:
        """Accept all waiting connections, and their requests: a client that asks at once is answered at once, however
        many others only hold connections. One of those is closed to make room.
        """
        for _ in range(HTTP_CONNECTIONS_MAX):
            try:
                sock, address = self._server.accept()
            except BlockingIOError:
                return
            except OSError:
                time.sleep(0.01)  # no descriptor is free: do not spin
                return
            if len(self._clients) >= HTTP_CONNECTIONS_MAX:
                self.turned_away += 1
                self._end(self._in_the_way())
            sock.setblocking(False)
            client = self._clients[sock.fileno()] = _Client(sock, str(address[0]), time.monotonic() + DEADLINE_S)
            self._selector.register(sock, selectors.EVENT_READ, client)
            self._serve(client)

    def _in_the_way(self) -> _Client:
        """Among the connections of the address that has most of them: the oldest without a request, or else the
        oldest."""
        by_address: dict[str, list[_Client]] = {}
        for client in self._clients.values():
            by_address.setdefault(client.address, []).append(client)
        many = max(by_address.values(), key=len)
        return next((c for c in many if c.answer is None), many[0])

    def _end(self, client: _Client) -> None:
        if self._clients.get(client.sock.fileno()) is not client:
            return
        self._selector.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _serve(self, client: _Client) -> None:
        try:
            if client.answered:  # read and drop what it still sends; closing before that would discard the answer
                if not client.sock.recv(HTTP_REQUEST_MAX):
                    self._end(client)
                return
            if client.answer is None:
                data = client.sock.recv(HTTP_REQUEST_MAX - len(client.asked))
                client.asked += data
                if not data or not self._understood(client):
                    if not data:
                        self._end(client)
                    return
                self._selector.modify(client.sock, selectors.EVENT_WRITE, client)
            assert client.answer is not None
            client.answer = client.answer[client.sock.send(client.answer) :]
            if not client.answer:
                client.sock.shutdown(socket.SHUT_WR)
                client.answered, client.ends_s = True, min(client.ends_s, time.monotonic() + LINGER_S)
                self._selector.modify(client.sock, selectors.EVENT_READ, client)
        except BlockingIOError:
            pass
        except OSError:
            self._end(client)

    def _understood(self, client: _Client) -> bool:
        """Whether the request is complete, or wrong; then its answer is ready."""
        asked = bytes(client.asked)
        if END.search(asked) is None and len(asked) < HTTP_REQUEST_MAX:
            return False
        self.requests += 1
        line = LINE.match(asked)
        head = False
        if END.search(asked) is None:
            status, kind, body = 431, PLAIN, b"at most 8 KiB\n"
        elif line is None:
            status, kind, body = 400, PLAIN, b"that is no HTTP request\n"
        elif line[1] not in (b"GET", b"HEAD"):
            status, kind, body = 405, PLAIN, b"GET and HEAD only: nothing can be changed here\n"
        else:
            head = line[1] == b"HEAD"
            status, kind, body = self._answer(line[2].partition(b"?")[0].decode("ascii"))
        allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
        answer = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{allow}{GUARDS}\r\n"
        ).encode()
        client.answer = memoryview(answer if head else answer + body)
        return True

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path not in ("/", "/metrics", "/health"):
            return 404, PLAIN, b"there are /, /metrics and /health\n"
        try:
            facts = self._facts()
            if path == "/metrics":
                return 200, METRICS, page.metrics(facts)
            if path == "/":
                return 200, HTML, page.page(facts).encode()
            if facts.get("healthy", True):
                return 200, PLAIN, b"ok\n"
            return 503, PLAIN, f"{facts.get('trouble') or 'not healthy'}\n".encode("utf-8", "replace")
        except Exception as exc:  # an error in one page must not end the server
            return (503 if path == "/health" else 500), PLAIN, f"{type(exc).__name__}\n".encode()

    def _facts(self) -> Mapping[str, Any]:
        """A snapshot, made at most twice a second, however many clients ask."""
        now_s = time.monotonic()
        if self._cached is None or now_s - self._cached_s > CACHE_S:
            self._cached, self._cached_s = self._snapshot(), now_s
        return self._cached
