"""What ``pact top`` costs: the agent of the node that it shows, the root of 10,000 nodes whose fleet it shows, and
itself.

One is a real ``pact top`` on a terminal; fifty are its feeds without their pictures, as fifty of them would fill this
machine with their starts. What is asked and told is the same.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "e2e"), str(HERE.parent / "tests")]

from _beside import Figure, figure, main  # noqa: E402
from _page_root import PEOPLE  # noqa: E402
from bench_page import cpu_s, rss_mib  # noqa: E402
from harness import Agent, World, environment  # noqa: E402
from terminals import KNOWN, Terminal, at_terminal, on_terminal  # noqa: E402

from pact.cli.client import Local  # noqa: E402
from pact.cli.top.feed import Asker, Feed  # noqa: E402

NODES = 10_000
RATE = 20
MANY = 50
SETTLED_S = 3.0


class Share:
    """How much of a core a process uses, for a while."""

    def __init__(self, pid: int) -> None:
        self.pid, self.began_s, self.used_s = pid, time.monotonic(), cpu_s(pid)

    def percent(self) -> float:
        return 100 * (cpu_s(self.pid) - self.used_s) / (time.monotonic() - self.began_s)


def client_of(terminal: Terminal) -> int:
    """The process itself, behind whatever has started it."""
    return terminal.process.pid


def watched(terminal: Terminal, seconds: float, *others: int) -> tuple[float, list[float]]:
    """The shares of the client, and of others, while its terminal is read."""
    shares = [Share(pid) for pid in (client_of(terminal), *others)]
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        terminal.read(0.2)
    mine, *rest = (share.percent() for share in shares)
    return mine, rest


@contextmanager
def feeds(make: Callable[[int], Feed], count: int) -> Iterator[list[Feed]]:
    """So many, each read as its display would."""
    made = [make(i) for i in range(count)]
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.2):
            for feed in made:
                for _ in feed.take():
                    pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for feed in made:
            feed.start()
            time.sleep(0.02)
        yield made
    finally:
        stop.set()
        reader.join()


# -- a node -----------------------------------------------------------------------------------------------------------


def started(command: list[str], env: dict[str, str], until: str) -> float:
    """Seconds until a program on a terminal shows this."""
    began_s = time.monotonic()
    terminal = on_terminal(command, {**env, **KNOWN})
    try:
        terminal.until(until, 60)
        return time.monotonic() - began_s
    finally:
        terminal.close()


def of_a_node(seconds: float, rounds: int) -> list[Figure]:
    out = []
    world, base = World(), Path(tempfile.mkdtemp(prefix="pact-bench-"))
    agent = Agent(world, base / "a", {})
    agent.cold = True  # what a site runs, not one that starts with modules in memory
    try:
        agent.start()
        path = agent.file("app.conf")
        pid = agent_pid(agent)
        pact = [*world.argv([sys.executable, "-m", "pact.cli.main", "--socket", agent.socket])]
        top_s, status_s = [], []
        for _ in range(rounds):
            top_s.append(started([*pact, "top"], environment(), "COMMITTED"))
            status_s.append(started([*pact, "status"], environment(), "(?i)committed"))
        first_s, beside_s = statistics.median(top_s), statistics.median(status_s)
        out.append(figure("a node: until it is seen", first_s, "s", "< 1.5", first_s < 1.5))
        out.append(figure("the same, beside pact status", first_s / beside_s, "times"))

        stop = threading.Event()
        writer = threading.Thread(target=busy, args=(world.path(path), stop))
        writer.start()
        try:
            shares: dict[int, list[float]] = {0: [], 1: [], MANY: []}
            client, memory = 0.0, 0.0
            for _ in range(2):  # in turns: other work on this machine meets all
                time.sleep(SETTLED_S)
                share = Share(pid)
                time.sleep(seconds)
                shares[0].append(share.percent())
                terminal = at_terminal(agent, "top", uid=0)
                terminal.until("app.conf")
                watched(terminal, SETTLED_S)
                client, (used,) = watched(terminal, seconds, pid)
                shares[1].append(used)
                memory = rss_mib(client_of(terminal))
                terminal.close()
            with feeds(lambda i: feed_of(agent), MANY):
                time.sleep(SETTLED_S)
                share = Share(pid)
                time.sleep(seconds)
                shares[MANY].append(share.percent())
        finally:
            stop.set()
            writer.join()
    finally:
        agent.close()
        world.close()
        shutil.rmtree(base, ignore_errors=True)
    none, one, many = (statistics.mean(shares[n]) for n in (0, 1, MANY))
    label = "a node whose file is written 4 times a second"
    out.append(figure(f"{label}: its agent, nobody looks", none, "% of a core"))
    out.append(figure("what one that looks costs it", one - none, "% of a core", "< 3", one - none < 3))
    out.append(figure(f"what each of {MANY} costs it", (many - none) / MANY, "% of a core"))
    out.append(figure("the display itself", client, "% of a core", "< 10", client < 10))
    out.append(figure("its memory", memory, "MiB", "< 64", memory < 64))
    return out


def agent_pid(agent: Agent) -> int:
    with agent.connect() as sock:
        import socket
        import struct

        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def feed_of(agent: Agent) -> Feed:
    feed = Feed(Asker(argparse.Namespace(), Local(agent.socket)), fleet=False)
    feed.look_at("")
    return feed


def busy(path: Path, stop: threading.Event) -> None:
    """Drift that comes and goes."""
    n = 0
    while not stop.wait(0.25):
        n += 1
        path.write_text("declared\n" if n % 2 else f"{n}\n")


# -- a root -----------------------------------------------------------------------------------------------------------


def of_a_root(seconds: float) -> list[Figure]:
    out = []
    with tempfile.TemporaryDirectory(prefix="pact-bench-") as work:
        command = [sys.executable, str(HERE / "_page_root.py"), work, str(NODES), str(RATE)]
        root = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert root.stdin is not None and root.stdout is not None
        try:
            _, pid, port = map(int, root.stdout.readline().split())
            time.sleep(8)  # it is elected, and hears of its nodes
            env = {**environment(), **KNOWN, "HOME": work}
            key = (Path(work) / "root.key").read_text().strip()
            via = ["--via", f"tcp://127.0.0.1:{port}", "--server-key", key]
            shares: dict[int, list[float]] = {0: [], 1: [], MANY: []}
            for _ in range(2):
                time.sleep(SETTLED_S)
                share = Share(pid)
                time.sleep(seconds)
                shares[0].append(share.percent())
                began_s = time.monotonic()
                words = [*via, "--key", f"{work}/p0.secret", "top", "--nodes", "*"]
                terminal = on_terminal([sys.executable, "-m", "pact.cli.main", *words], env, rows=50)
                try:
                    terminal.until(f"{NODES} nodes", 60)
                    first_s = time.monotonic() - began_s
                    watched(terminal, SETTLED_S)
                    before = len(terminal.raw)
                    client, (used,) = watched(terminal, seconds, pid)
                    painted = len(re.findall(rb"\x1b\[\?25l", terminal.raw[before:])) / seconds
                    shares[1].append(used)
                    memory = rss_mib(client_of(terminal))
                    terminal.process.send_signal(signal.SIGTERM)
                    terminal.end()
                finally:
                    terminal.close()

            def make(i: int) -> Feed:
                asked = argparse.Namespace(
                    via=[f"tcp://127.0.0.1:{port}"], server_key=key, key=f"{work}/{PEOPLE[i % len(PEOPLE)]}.secret"
                )
                return Feed(Asker(asked, None), fleet=True)

            with feeds(make, MANY):
                time.sleep(2 * SETTLED_S)
                share = Share(pid)
                time.sleep(seconds)
                shares[MANY].append(share.percent())
        finally:
            root.stdin.close()
            root.wait(20)
    none, one, many = (statistics.mean(shares[n]) for n in (0, 1, MANY))
    label = f"{NODES:,} nodes, {RATE} change each second"
    out.append(figure(f"{label}: until the fleet is seen", first_s, "s", "< 4", first_s < 4))
    out.append(figure("the root, nobody looks", none, "% of a core"))
    out.append(figure("what one that looks costs it", one - none, "% of a core", "< 5", one - none < 5))
    out.append(figure(f"what each of {MANY} costs it", (many - none) / MANY, "% of a core", "< 1", many - none < MANY))
    out.append(figure("the display itself", client, "% of a core", "< 25", client < 25))
    out.append(figure("how often it paints", painted, "a second", "< 2", painted < 2))
    out.append(figure("its memory", memory, "MiB", "< 128", memory < 128))
    return out


def run(quick: bool = False) -> list[Figure]:
    if os.geteuid() != 0:
        return of_a_root(6 if quick else 15)
    return [*of_a_node(5 if quick else 10, 3 if quick else 7), *of_a_root(6 if quick else 15)]


if __name__ == "__main__":
    main(run)
