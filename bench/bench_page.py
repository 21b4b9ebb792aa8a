"""What the live page costs a root of 10,000 nodes while 20 nodes a second change: its processor, with 200 pages open
and with none; how late the pages are; and the memory of what it knows of the nodes.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, figure, main  # noqa: E402
from _page_root import Nodes  # noqa: E402

from pact.core.root.chunks import Batch, Chunk  # noqa: E402
from pact.core.root.sight import Sight  # noqa: E402

NODES = 10_000
PAGES = 200
RATE = 20
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """The processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Pages:
    """Open pages, of which all are read and one is understood."""

    def __init__(self, port: int, count: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.began_s = time.monotonic()
        self.socks = []
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET /events/live HTTP/1.1\r\n\r\n")
            sock.setblocking(False)
            self.socks.append(sock)
            self.selector.register(sock, selectors.EVENT_READ)
        self.bytes = self.messages = 0
        self.first = b""
        self.late_s: list[float] = []
        self.whole_s = 0.0

    def begin(self) -> None:
        """Read until each page has its snapshot."""
        texts = dict.fromkeys(self.socks, b"")
        while texts:
            for key, _ in self.selector.select(10):
                sock: Any = key.fileobj
                data = sock.recv(1 << 20)
                if sock in texts:
                    texts[sock] += data
                    if b"event: whole" in texts[sock] and texts[sock].endswith(b"\n\n"):
                        del texts[sock]
        self.whole_s = time.monotonic() - self.began_s

    def read(self, seconds: float) -> None:
        ends_s = time.monotonic() + seconds
        while (left_s := ends_s - time.monotonic()) > 0:
            for key, _ in self.selector.select(left_s):
                data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                assert data, "the root cut a page off"
                self.bytes += len(data)
                if key.fileobj is self.socks[0]:
                    self._understand(data)

    def _understand(self, data: bytes) -> None:
        now_s = time.time()
        *whole, self.first = (self.first + data).split(b"\n\n")
        for text in whole:
            kind, _, said = text.partition(b"\ndata: ")
            if kind.endswith(b"event: news"):
                self.messages += 1
                self.late_s += [now_s - row[1] / 1000 for row in json.loads(said).get("records", ())]

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def of_a_root(seconds: float) -> list[Figure]:
    out = []
    with tempfile.TemporaryDirectory(prefix="pact-bench-") as work:
        command = [sys.executable, str(HERE / "_page_root.py"), work, str(NODES), str(RATE)]
        root = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert root.stdin is not None and root.stdout is not None
        try:
            port, pid, _ = map(int, root.stdout.readline().split())
            time.sleep(8)  # it is elected, and hears of its nodes
            shares = []
            for count in (0, PAGES, 0, PAGES):  # in turns: other work on this machine meets both
                used_s = cpu_s(pid)
                pages = Pages(port, count)
                pages.begin()
                used_s = cpu_s(pid) - used_s
                pages.read(3)
                pages.bytes, pages.messages, pages.late_s = 0, 0, []
                before_s, began_s = cpu_s(pid), time.monotonic()
                pages.read(seconds)
                shares.append((count, 100 * (cpu_s(pid) - before_s) / (time.monotonic() - began_s)))
                memory = rss_mib(pid)
                if count:
                    whole_s, whole_cpu_s = pages.whole_s, used_s
                    per_s = pages.messages / seconds
                    late = sorted(pages.late_s)
                    sizes = pages.bytes / max(1, pages.messages) / count
                pages.close()
                time.sleep(1)
        finally:
            root.stdin.close()
            root.wait(20)
    without = [s for count, s in shares if not count]
    with_ = [s for count, s in shares if count]
    more = sum(with_) / len(with_) - sum(without) / len(without)
    label = f"{NODES:,} nodes, {RATE} change each second"
    out.append(figure(f"{label}: the root without a page", sum(without) / len(without), "% of a core"))
    out.append(figure(f"{label}: the root with {PAGES} pages", sum(with_) / len(with_), "% of a core"))
    out.append(figure(f"what {PAGES} pages cost it", more, "% of a core", "< 5", more < 5))
    out.append(figure(f"{PAGES} pages at once: until each has its snapshot", whole_s, "s"))
    out.append(figure("what that costs the root, once", whole_cpu_s, "s of a core"))
    out.append(figure("messages to each page", per_s, "a second"))
    out.append(figure("the size of each", sizes / 1024, "KiB"))
    out.append(
        figure("from a record to a page, half of them", late[len(late) // 2], "s", "< 1", late[len(late) // 2] < 1)
    )
    out.append(
        figure(
            "from a record to a page, the last of 100",
            late[len(late) * 99 // 100],
            "s",
            "< 1",
            late[len(late) * 99 // 100] < 1,
        )
    )
    out.append(figure("the root's memory with them", memory, "MiB"))
    return out


def chunk(first: int, rows: list[tuple[list[Any], bytes]]) -> Chunk:
    batches = [Batch(row[0], "r1", row[1], row[2], body.splitlines()) for row, body in rows]
    return Chunk(first, 2 * len(rows), 1, 1, "", {}, batches)


def of_the_fold() -> list[Figure]:
    """All nodes have a change open: what the root then knows, and what a record costs."""
    nodes = Nodes(NODES)
    rows = [nodes.records(name) for name in nodes.names]
    gc.collect()
    tracemalloc.start()
    sight = Sight()
    sight.take(chunk(0, rows))
    gc.collect()
    bytes_, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sight.nodes) == NODES and not sight.left_out
    began_s = time.process_time()
    Sight().take(chunk(0, rows))
    took_s = time.process_time() - began_s
    return [
        figure(
            f"what is known of {NODES:,} nodes with a change each", bytes_ / (1 << 20), "MiB", "< 32", bytes_ < 32 << 20
        ),
        figure("to fold one record in", took_s * 1e6 / 2 / NODES, "us"),
    ]


def run(quick: bool = False) -> list[Figure]:
    return [*of_the_fold(), *of_a_root(6 if quick else 20)]


if __name__ == "__main__":
    main(run)
