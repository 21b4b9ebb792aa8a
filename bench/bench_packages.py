"""Packages: reading dpkg's database, adopting it, and a transaction of 200 packages from its end to the last record.

A real dpkg in a root of its own, filled with 5,000 packages that were never unpacked, and 200 that are.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

from _beside import Figure, figure, main, milliseconds  # noqa: E402
from bench_agent import Running  # noqa: E402
from packages_site import DebSite  # noqa: E402

from pact.resources.kinds.package import ROOT_VARIABLE  # noqa: E402
from pact.resources.support.package_dpkg import Dpkg  # noqa: E402

MANY = 5_000
MOVED = 200
IDLE_S = 20.0


def stanza(number: int) -> str:
    described = f"one line of many\n {'and more of it, as it is usual ' * 12}\n .\n {'to the end ' * 30}"
    return (
        f"Package: filler{number}\nStatus: install ok installed\nPriority: optional\nSection: misc\n"
        f"Installed-Size: 99\nMaintainer: a <a@b>\nArchitecture: all\nVersion: 1.{number}-1\n"
        f"Depends: libc6 (>= 2.14), zlib1g\nDescription: {described}\n\n"
    )


def filled(site: DebSite, many: int) -> None:
    status = site.root / "var/lib/dpkg/status"
    with open(status, "a", encoding="utf-8") as f:
        f.write("".join(map(stanza, range(many))))
    for number in range(many):
        (site.root / f"var/lib/dpkg/info/filler{number}.list").write_text("/.\n")


def transaction(agent: Running, site: DebSite, version: int) -> float:
    """Milliseconds from dpkg's end to the record of the last package."""
    paths = [site.repo / f"p{number}_{version}-1_all.deb" for number in range(MOVED)]
    with agent.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"v":1,"op":"watch","args":{}}\n')
        time.sleep(0.2)
        site.dpkg("--force-unsafe-io", "-i", *paths)
        begin, left = time.perf_counter(), {f"package:p{number}" for number in range(MOVED)}
        while left:
            record = json.loads(lines.readline())["record"]
            if record["type"] == "drift_detected":
                left.discard(record["data"]["resource"])
    return (time.perf_counter() - begin) * 1000


def run(quick: bool = False) -> list[Figure]:
    """All figures. Needs root and dpkg."""
    base = Path(tempfile.mkdtemp(prefix="pact-bench-deb-", dir="/var/tmp"))
    agent = Running(0)
    os.environ[ROOT_VARIABLE] = str(base / "root")
    try:
        site = DebSite(base)
        for number in range(MOVED):
            for version in (1, 2):
                site.make(f"p{number}", f"{version}-1")
        site.dpkg("--force-unsafe-io", "-i", *(site.repo / f"p{n}_1-1_all.deb" for n in range(MOVED)))
        filled(site, MANY)
        own, scratch = Dpkg(), Dpkg(str(site.root))
        read_ms = milliseconds(scratch.read)
        name = f"reading dpkg's database of {MANY + MOVED:,} packages"
        figures = [figure(name, read_ms, "ms", "< 250", read_ms < 250)]
        if own.signature() is not None:
            name = f"reading this machine's own ({len(own.read().versions)})"
            figures.append(figure(name, milliseconds(own.read), "ms"))
        agent.start()
        begin = time.perf_counter()
        adopted = agent.ask("adopt", patterns=["package:**"])["result"]["adopted"]
        adopt_ms = (time.perf_counter() - begin) * 1000
        figures.append(figure(f"adopt package:** ({adopted:,})", adopt_ms, "ms", "< 3000", adopt_ms < 3000))
        end_ms = transaction(agent, site, 2)
        name = f"a transaction of {MOVED} packages: from its end to its last record"
        figures.append(figure(name, end_ms, "ms", "< 2000", end_ms < 2000))
        changes = agent.ask("status")["result"]["changes"]
        figures.append(figure("its changes", len(changes), "", "1", len(changes) == 1))
        figures.append(figure(f"memory of an agent with {adopted:,} packages", agent.rss_mib(), "MiB RSS"))
        agent.ask("commit", all=True, message="bench")
        time.sleep(2)
        before, idle_s = agent.cpu_ns(), 5.0 if quick else IDLE_S
        time.sleep(idle_s)
        share = (agent.cpu_ns() - before) / (idle_s * 1e9) * 100
        figures.append(figure("idle with them: share of a core", share, "%", "< 0.2", share < 0.2))
    finally:
        agent.close()
        del os.environ[ROOT_VARIABLE]
        shutil.rmtree(base, ignore_errors=True)
    return figures


if __name__ == "__main__":
    main(run)
