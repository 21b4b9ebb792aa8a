"""Read-only HTTP for browsers, Prometheus and load balancers: ``/``, ``/metrics``, ``/health``, and what the live page
needs. One thread, few limits.

GET and HEAD without bodies, one request for each connection. It is a separate small server because the standard
library's limits neither a client's time nor the number of clients.  # V5

An open page is a connection that stays (``/events/live``): all of them get the same bytes, at most one message in
``EVERY_S``, and one that does not read is cut off; it connects again and begins with a snapshot.  # V6
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import orjson

from pact.cluster import hostnames, page
from pact.cluster.live import Live
from pact.errors import PactError
from pact.limits import HTTP_CONNECTIONS_MAX, HTTP_PAGES_EACH_MAX, HTTP_PAGES_MAX, HTTP_REQUEST_MAX, HTTP_UNREAD_MAX

#: Between two messages to the pages. It is less than a second: what happens just after a message is seen within a
#: second, too.
EVERY_S: Final = 0.75
BEAT_S: Final = 15.0
#: A page that takes nothing for this long although something waits for it is cut off.
STUCK_S: Final = 20.0
RETRY_MS: Final = 2000
DEADLINE_S: Final = 5.0
LINGER_S: Final = 1.0
CACHE_S: Final = 0.5
CLOSE_S: Final = 5.0
LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,1024}) HTTP/1\.[01]\r?\n")
END: Final = re.compile(rb"\r?\n\r?\n")
ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>\d{1,5})\Z")
NAME_MAX: Final = 253
ETAG: Final = re.compile(rb"\r?\n[Ii]f-[Nn]one-[Mm]atch: *([^\r\n]{1,200})")
REASONS: Final = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
NOT_OURS: Final = b"this server is not known by that name: list it in [aggregator] http_names, or use an address\n"
PLAIN: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
GUARDS: Final = (
    f"Content-Security-Policy: {page.POLICY}\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "X-Frame-Options: DENY\r\nCross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n"
)
JSON: Final = "application/json"
UNBUFFERED: Final = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"  # for proxies before it
STREAM: Final = "text/event-stream"
FULL: Final = f"{HTTP_PAGES_MAX} pages are open here, or {HTTP_PAGES_EACH_MAX} from your address: close some\n".encode()


class Static:
    """A file of the page, as it is shipped: read once."""

    def __init__(self, name: str, kind: str) -> None:
        self.body = (Path(__file__).parent / "static" / name).read_bytes()
        self.kind = kind
        self.tag = f'"{hashlib.sha256(self.body).hexdigest()[:24]}"'


STATIC: Final = {
    "/page.js": Static("page.js", "text/javascript; charset=utf-8"),
    "/page.css": Static("page.css", "text/css; charset=utf-8"),
    "/icon.svg": Static("icon.svg", "image/svg+xml"),
}
#: For machines, which are told by name where they are; nothing in them names a node.
OPEN: Final = ("/metrics", "/health")
PATHS: Final = b"there are /, /metrics, /health, /events/live and /node?name=NAME\n"


@dataclass(slots=True)
class _Answer:
    status: int
    kind: str
    body: bytes
    more: str = "Cache-Control: no-store\r\n"
    page: bool = False  # the connection stays open for events


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    address: str
    ends_s: float
    asked: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    answered: bool = False
    page: bool = False


class _Page:
    """A connection that gets events. ``waiting``: bytes that are shared with the other pages."""

    __slots__ = ("address", "moved_s", "size", "sock", "waiting", "writing")

    def __init__(self, sock: socket.socket, address: str, now_s: float) -> None:
        self.sock, self.address, self.moved_s = sock, address, now_s
        self.waiting: deque[memoryview] = deque()
        self.size = 0
        self.writing = False


class Http:
    """``start``, then ``close``. The server's thread calls ``snapshot``, which returns the data that ``page``
    describes."""

    def __init__(
        self,
        address: str,
        snapshot: Callable[[], Mapping[str, Any]],
        live: Live | None = None,
        names: Collection[str] = (),
    ) -> None:
        """Binds at once. ``names``: those of this server that it cannot know. Raises PactError if the address is
        malformed or in use."""
        self._snapshot = snapshot
        host = os.uname().nodename
        self._names = frozenset(name.lower() for name in (host, *names))
        self._domains = hostnames.own_domains(host)
        self.live = live or Live()
        self._pages: dict[int, _Page] = {}
        self._by_address: Counter[str] = Counter()
        self._news = False
        self._turned_s = self._beat_s = -1e9
        self.pages = 0  # how many are open; the loop reads it
        self.dropped = self.full = self.messages = 0
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
                backlog=HTTP_CONNECTIONS_MAX + HTTP_PAGES_MAX,  # after a restart all pages come at once
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

    def changed(self) -> None:
        """There may be news for the pages. Any thread may call it; without pages it costs nothing."""
        if self._pages and not self._news:
            self._news = True
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            for client in list(self._clients.values()):
                self._end(client)
            for page_ in list(self._pages.values()):
                self._end_page(page_)
            self._selector.close()
            self._server.close()
            os.close(self._wake)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            ends = [c.ends_s for c in self._clients.values()]
            if self._pages:
                ends += [self._turned_s + EVERY_S] if self._news else []
                ends.append(self._beat_s + BEAT_S)
            for key, mask in self._selector.select(max(0.0, min(ends) - time.monotonic()) if ends else None):
                if key.fileobj is self._server:
                    self._accept()
                elif key.fd == self._wake:
                    self._woken()
                elif isinstance(key.data, _Client) and self._clients.get(key.fd) is key.data:
                    self._serve(key.data)
                elif isinstance(key.data, _Page) and self._pages.get(key.fd) is key.data:
                    self._serve_page(key.data, mask)
            now_s = time.monotonic()
            if self._pages:
                self._tell(now_s)
            for client in [c for c in self._clients.values() if c.ends_s <= now_s]:
                self._end(client)

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

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
                if client.page:
                    self._open_page(client)
                    return
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
            found = _Answer(431, PLAIN, b"at most 8 KiB\n")
        elif line is None:
            found = _Answer(400, PLAIN, b"that is no HTTP request\n")
        elif line[1] not in (b"GET", b"HEAD"):
            found = _Answer(405, PLAIN, b"GET and HEAD only: nothing can be changed here\n")
            found.more += "Allow: GET, HEAD\r\n"
        else:
            head = line[1] == b"HEAD"
            path, _, query = line[2].decode("ascii").partition("?")
            tag = ETAG.search(asked)
            name = hostnames.called(asked)
            if name is None or path in OPEN or hostnames.is_ours(name, self._names, self._domains):
                found = self._answer(path, query, client.address, b"" if tag is None else tag[1])
            else:
                found = _Answer(421, PLAIN, NOT_OURS)
        client.page = found.page and not head
        length = "" if found.page else f"Content-Length: {len(found.body)}\r\n"
        answer = (
            f"HTTP/1.1 {found.status} {REASONS[found.status]}\r\nContent-Type: {found.kind}\r\n{length}"
            f"{found.more}{GUARDS}\r\n"
        ).encode()
        client.answer = memoryview(answer if head else answer + found.body)
        return True

    def _answer(self, path: str, query: str, address: str, tag: bytes) -> _Answer:
        if path in STATIC:
            static = STATIC[path]
            more = f"ETag: {static.tag}\r\nCache-Control: no-cache\r\n"
            if static.tag.encode() in tag:
                return _Answer(304, static.kind, b"", more)
            return _Answer(200, static.kind, static.body, more)
        if path not in ("/", "/metrics", "/health", "/events/live", "/node"):
            return _Answer(404, PLAIN, PATHS)
        try:
            if path == "/events/live":
                return self._stream(address)
            if path == "/node":
                return self._node(query)
            facts = self._facts()
            if path == "/metrics":
                return _Answer(200, METRICS, page.metrics({**facts, **self.counts()}))
            if path == "/":
                self._turn_without_pages(time.monotonic())
                return _Answer(200, HTML, page.page({**facts, **self.live.plain()}).encode())
            if facts.get("healthy", True):
                return _Answer(200, PLAIN, b"ok\n")
            return _Answer(503, PLAIN, f"{facts.get('trouble') or 'not healthy'}\n".encode("utf-8", "replace"))
        except Exception as exc:  # an error in one page must not end the server
            return _Answer(503 if path == "/health" else 500, PLAIN, f"{type(exc).__name__}\n".encode())

    def counts(self) -> dict[str, int]:
        return {"pages": len(self._pages), "pages_dropped": self.dropped, "pages_refused": self.full}

    def _node(self, query: str) -> _Answer:
        name = unquote(query.removeprefix("name=")) if query.startswith("name=") else ""
        self._turn_without_pages(time.monotonic())
        found = self.live.node(name) if 0 < len(name) <= NAME_MAX else None
        if found is None:
            return _Answer(404, PLAIN, b"no such node is known here\n")
        return _Answer(200, JSON, orjson.dumps(found))

    # -- pages that stay open -----------------------------------------------------------------------------------

    def _stream(self, address: str) -> _Answer:
        """``Last-Event-ID`` is ignored: who connects begins with a snapshot."""
        if len(self._pages) >= HTTP_PAGES_MAX or self._by_address[address] >= HTTP_PAGES_EACH_MAX:
            self.full += 1
            return _Answer(503, PLAIN, FULL, "Cache-Control: no-store\r\nRetry-After: 30\r\n")
        return _Answer(200, STREAM, f"retry: {RETRY_MS}\n\n".encode(), UNBUFFERED, page=True)

    def _open_page(self, client: _Client) -> None:
        now_s = time.monotonic()
        if self._pages:
            self._tell(now_s)
        else:
            self._turn_without_pages(now_s)
            self._beat_s, self._news = now_s, True
        fd = client.sock.fileno()
        del self._clients[fd]
        opened = self._pages[fd] = _Page(client.sock, client.address, now_s)
        self._by_address[opened.address] += 1
        self.pages = len(self._pages)
        # The kernel gives up on a peer that is gone without a word.
        opened.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_S * 1000))
        opened.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.modify(opened.sock, selectors.EVENT_READ, opened)
        try:
            whole = self.live.snapshot()
        except Exception:  # it connects again, and is told what can be told then
            self.live.forget()
            self._end_page(opened)
        else:
            self._push(opened, memoryview(whole), now_s)

    def _end_page(self, ended: _Page) -> None:
        fd = ended.sock.fileno()
        if self._pages.get(fd) is not ended:
            return
        self._selector.unregister(ended.sock)
        del self._pages[fd]
        self._by_address[ended.address] -= 1
        if not self._by_address[ended.address]:
            del self._by_address[ended.address]
        self.pages = len(self._pages)
        ended.sock.close()

    def _turn_without_pages(self, now_s: float) -> None:
        """However often somebody asks, or opens a page and closes it, nodes are gone through once in ``EVERY_S``."""
        if not self._pages and now_s - self._turned_s >= EVERY_S:
            self._turn(now_s)

    def _turn(self, now_s: float) -> bytes:
        self._turned_s, self._news = now_s, False
        try:
            return self.live.turn(self._facts(fresh=True))
        except Exception as exc:  # an error in one fact must not end the server; the next turn tries again
            self.live.forget()
            return f": {type(exc).__name__}\n\n".encode()

    def _tell(self, now_s: float) -> None:
        """Send the news to every page, at most once in ``EVERY_S``, and a sign of life from time to time."""
        message = b""
        if self._news and now_s - self._turned_s >= EVERY_S:
            message = self._turn(now_s)
        elif now_s - self._beat_s >= BEAT_S:
            message = self.live.beat()
        if message:
            self._beat_s = now_s
            self.messages += 1
            shared = memoryview(message)
            for each in list(self._pages.values()):
                self._push(each, shared, now_s)

    def _push(self, to: _Page, message: memoryview, now_s: float) -> None:
        """Give a page a message that it shares with the others."""
        if to.waiting and (to.size > HTTP_UNREAD_MAX or now_s - to.moved_s >= STUCK_S):
            self.dropped += 1
            self._end_page(to)
            return
        if not to.waiting:
            to.moved_s = now_s
        else:
            to.size += len(message)  # the first one, which may be a snapshot of any size, does not count
        to.waiting.append(message)
        if not to.writing:
            self._send(to)

    def _serve_page(self, ready: _Page, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            try:
                if not ready.sock.recv(HTTP_REQUEST_MAX):  # what it says is of no interest
                    self._end_page(ready)
                    return
            except BlockingIOError:
                pass
            except OSError:
                self._end_page(ready)
                return
        if mask & selectors.EVENT_WRITE:
            self._send(ready)

    def _send(self, to: _Page) -> None:
        try:
            while to.waiting:
                first = to.waiting[0]
                sent = to.sock.send(first)
                to.moved_s = time.monotonic()
                if sent < len(first):
                    to.waiting[0] = first[sent:]
                else:
                    to.waiting.popleft()
                    to.size = max(0, to.size - len(to.waiting[0])) if to.waiting else 0
        except BlockingIOError:
            pass
        except OSError:
            self._end_page(to)
            return
        if to.writing != bool(to.waiting):
            to.writing = bool(to.waiting)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if to.writing else 0)
            self._selector.modify(to.sock, events, to)

    def _facts(self, fresh: bool = False) -> Mapping[str, Any]:
        """A snapshot, made at most twice a second, however many clients ask."""
        now_s = time.monotonic()
        if fresh or self._cached is None or now_s - self._cached_s > CACHE_S:
            self._cached, self._cached_s = self._snapshot(), now_s
        return self._cached
