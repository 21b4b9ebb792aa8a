"""A root's page without the tree: the real fold, watcher and HTTP server over a log in memory, and real Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from public_root import ACTOR

from pact.cluster.http import Http
from pact.cluster.live import Live
from pact.cluster.watcher import Watcher
from pact.core.records import rfc3339, seal
from pact.core.root.chunks import Batch, build_chunk, chunk_hash
from pact.core.settings import Settings

BINARY = "/usr/bin/chromium"
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NODE_BOOT_NS = 10**15  # node time is some days


def owner(user: str, command: str = "") -> dict[str, Any]:
    return {"key": f"user:{user}", "user": user, "uid": 1001, "session": "", "command": command}


class Fleet:
    """Nodes that write records, and the server that shows them. ``facts`` are as the root's loop shows them."""

    def __init__(
        self, names: Iterable[str] = (), rack: int = 50, address: str = "127.0.0.1:0", root: bool = True
    ) -> None:
        self.racks = {name: f"r{i // rack + 1}" for i, name in enumerate(names)}
        self.said: dict[str, str] = dict.fromkeys(self.racks, "committed")
        self.away: list[str] = []
        self.asked_ns = time.monotonic_ns()
        self.chunks: list[bytes] = []
        self.gseq, self.prev = -1, "0" * 64
        self.seqs: dict[str, tuple[int, str]] = {}
        self.more: dict[str, Any] = {}
        self.root = root
        self.closed = False
        self.opened: list[Any] = []  # what is closed at the end, too
        self.watcher = Watcher(self.read)
        self.live = Live(self.watcher if root else None)
        self.http = Http(address, self.facts, self.live)
        self.watcher.changed = self.http.changed
        self.watcher.start()
        self.watcher.lead(-1)
        self.http.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.port}/"

    def read(self, gseq: int) -> Iterator[bytes]:
        return iter(list(self.chunks))

    def facts(self) -> Mapping[str, Any]:
        own = {"name": "root1", "cluster": "default", "version": "0.2.0", "children": 3, "connected": len(self.racks)}
        if not self.root:
            return {**own, "root": False, "healthy": True, "fleet": {"racks": self.racks}, **self.more}
        found: dict[str, list[str]] = {}
        for name in self.racks:
            found.setdefault(self.said.get(name, "unknown"), []).append(name)
        return {
            **own,
            "root": True,
            "leading": True,
            "healthy": True,
            "trouble": "",
            "fence": 7,
            "gseq": self.gseq,
            "oldest": 0,
            "buffered": 12345,
            "calls": 1,
            "groups": [],
            "holds": [],
            "refused": {},
            "states": {s: [f"{len(n)} of them", len(n)] for s, n in found.items()},
            "fleet": {"racks": self.racks, "away": self.away, "said": self.said, "asked_ns": self.asked_ns},
            **self.more,
        }

    def record(self, *rows: tuple[str, str, Mapping[str, Any]]) -> None:
        """One durable chunk with (node, type, data)."""
        batches = []
        wall_ns = time.time_ns()
        for node, type_, data in rows:
            seq, prev = self.seqs.get(node, (-1, "0" * 64))
            made, body = seal(seq + 1, prev, rfc3339(wall_ns), wall_ns - NODE_BOOT_NS, node, type_, ACTOR, dict(data))
            self.seqs[node] = (made.seq, made.hash)
            line = body[:-1] + b',"hash":"' + made.hash.encode() + b'"}'
            batches.append(Batch(node, self.racks.get(node, ""), "i" * 16, made.seq, [line]))
        raw = build_chunk(self.gseq + 1, 7, wall_ns, self.prev, {}, batches)
        self.gseq += len(rows)
        self.prev = chunk_hash(raw)
        self.chunks.append(raw)
        self.watcher.give(raw)

    def drift(
        self, node: str, resource: str = "sysctl:vm.swappiness", user: str = "ann", change: str = "c1", n: int = 10**9
    ) -> None:
        t_ns = time.time_ns() - NODE_BOOT_NS
        said = {
            "resource": resource,
            "change": change,
            "owner": owner(user, "/usr/sbin/sysctl -w x=1"),
            "opened_ns": t_ns,
            "actual": {},
            "deviation_n": n,
            "weight_n": 10**9,
        }
        self.record(
            (node, "drift_detected", said),
            (node, "window_opened", {"change": change, "owner": owner(user), "reopened": False}),
        )

    def started(self, node: str, **settings: Any) -> tuple[str, str, Mapping[str, Any]]:
        return node, "agent_started", {"settings": {**Settings().to_json(), **settings}, "boot_id": "b", "offset_ns": 0}

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for each in self.opened:
            each.close()
        self.http.close()
        self.watcher.close()


def wall(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()


_open: list[Any] = []  # the browser that ``browsing`` holds open


@contextmanager
def browsing() -> Iterator[Any]:
    """A real browser, one for all that is done within: its contexts know nothing of each other."""
    from playwright.sync_api import sync_playwright

    if _open:
        yield _open[0]
        return
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BINARY, args=SWITCHES, headless=True)
        _open.append(browser)
        try:
            yield browser
        finally:
            _open.clear()
            browser.close()


@contextmanager
def chromium(width: int = 1280, height: int = 900, forgiving: bool = False, **context: Any) -> Iterator[Any]:
    """A context of a real browser. Unless it is ``forgiving``, it fails the test for what the page's policy forbade, and
    for requests to other hosts."""
    wrong: list[str] = []
    with browsing() as browser:
        made = browser.new_context(viewport={"width": width, "height": height}, **context)
        try:
            made.on("weberror", lambda e: wrong.append(f"error: {e.error}"))
            made.on("console", lambda m: "Content Security" in m.text and wrong.append(m.text))
            made.on("request", lambda r: _here(r.url) or wrong.append(f"asked for {r.url}"))
            yield made
        finally:
            made.close()
    assert forgiving or wrong == []


def _here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.startswith(("127.", "10."))
