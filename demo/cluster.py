"""The cluster's demonstration: one change on two dozen nodes, settled everywhere or nowhere, whatever dies on the way.

Three aggregators, two of them roots on a real etcd of three members, and a real agent in each node's own namespaces,
on this machine. Every step is verified by asking the nodes' kernels, not pact.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from netsite import Site, SiteError, missing
from telling import DemoError, Typed, all_of_root, check, enter, good, paint, tell, title, wait_until

NODES = int(os.environ.get("PACT_DEMO_NODES", "24"))
SYSCTL = "net.ipv4.tcp_keepalive_time"
BUSY, AWAY, WORK = "n07", "n03", "n05"


class Demo:
    """The steps, in order."""

    def __init__(self, site: Site, place: str) -> None:
        self.site, self.place = site, place
        self.conf = f"{place}/app.conf"
        self.names = [f"n{i:02d}" for i in range(1, NODES + 1)]
        self.set = f"n[01-{NODES:02d}]"

    def pact(self, *words: str, expect: int = 0, again_s: float = 0.0) -> None:
        """A command of the operator's, shown with its real output; given so many seconds to succeed where a root may
        just be changing."""
        shown = " ".join(f"'{w}'" if " " in w else w for w in words)
        print(paint("   $ ", "33") + f"pact {shown}", flush=True)
        end_s = time.monotonic() + again_s
        done = self.site.pact(*words)
        while done.code != expect and time.monotonic() < end_s:
            time.sleep(0.2)
            done = self.site.pact(*words)
        print((done.out + done.err).rstrip(), flush=True)
        if done.code != expect:
            raise DemoError(f"pact {shown} ended with {done.code} instead of {expect}")

    def ask(self, *words: str) -> Any:
        return self.site.pact("--json", *words).json()

    def everywhere(self, text: str, but: str = "") -> bool:
        """The kernel of each node: what it has in the file."""
        return all(self.site.nodes[n].path(self.conf).read_text() == text for n in self.names if n != but)

    def keepalive(self, name: str) -> str:
        return self.site.sh(name, f"cat /proc/sys/{SYSCTL.replace('.', '/')}").out.strip()

    # -- the steps --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.begin()
        self.applied()
        self.blocked()
        self.etcd_leader_dies()
        self.root_dies()
        self.rolled_back()
        self.worked()
        self.proved()

    def begin(self) -> None:
        site = self.site
        title(1, f"A sealed site: three aggregators, etcd with three members, {NODES} nodes in namespaces of their own")
        people = {"ops": "admin", "root": "admin", "events": "subscriber"}
        site.make_keys(
            {
                **dict.fromkeys(("root1", "root2"), "aggregator"),
                "agg1": "aggregator",
                **dict.fromkeys(self.names, "node"),
                **people,
            },
            sealed_for=("root1", "root2"),
        )
        site.start_etcd()
        site.start_aggregator("root1", 1)
        site.start_aggregator("root2", 2)
        site.start_aggregator("agg1", 3, ["root1", "root2"])
        for i, name in enumerate(self.names, 1):
            site.make_node(name, i)
            more = '[window]\nbase = "10m"\nfloor = "5s"\n[shell]\nroot = ["root"]\ntranscript = false'
            site.start_agent(name, ["agg1", "root1", "root2"], more)
        site.write_client("ops", ["root1", "root2", "agg1"])
        wait_until(lambda: len(site.connected()) == NODES, "every node is connected", 60)
        self.pact("nodes")
        declared = site.work / "base.toml"
        declared.write_text(
            f'[file."{self.conf}"]\ncontent = "workers = 4\\n"\nmode = "0644"\n[sysctl]\n"{SYSCTL}" = 7200\n'
        )
        self.pact("declare", str(declared), "--nodes", self.set)
        check(self.everywhere("workers = 4\n"), f"{self.conf} is there on every node")
        self.pact("check", "--nodes", self.set)

    def applied(self) -> None:
        title(2, "One change on all of them, with one window")
        change = self.site.work / "change.toml"
        change.write_text(
            f'[file."{self.conf}"]\ncontent = "workers = 64\\n"\nmode = "0644"\n[sysctl]\n"{SYSCTL}" = 600\n'
        )
        tell(change.read_text().rstrip())
        started = time.monotonic()
        self.pact("apply", str(change), "--nodes", self.set, "-m", "more workers")
        good(f"in {time.monotonic() - started:.1f} s")
        check(self.everywhere("workers = 64\n"), "the nodes' kernels agree: it is so everywhere")
        check({self.keepalive(n) for n in self.names[:4]} == {"600"}, f"and {SYSCTL} too")
        self.pact("groups")

    def blocked(self) -> None:
        title(3, f"A job on {BUSY} uses the file: the rollback of all is refused, and the user is named")
        self.job = self.site.hold_open(BUSY, self.conf)
        self.pact("rollback", "g1", expect=10)
        check(self.everywhere("workers = 64\n"), "nothing was touched on any node")

    def etcd_leader_dies(self) -> None:
        title(4, "The leader of etcd is killed")
        leader = self.site.etcd_leader()
        assert leader is not None
        self.site.kill_member(leader)
        print(paint("   $ ", "33") + f"kill -9 etcd member m{leader}", flush=True)
        started = time.monotonic()
        wait_until(lambda: self.site.pact("extend", "g1", "5m").code == 0, "the root can decide again", 30)
        self.pact("groups", again_s=30)
        good(f"the root can write again after {time.monotonic() - started:.1f} s, by itself")

    def root_dies(self) -> None:
        title(5, f"The root is killed, and {AWAY} loses its cable")
        leader = self.site.leader()
        self.site.cut(AWAY)
        self.site.kill_aggregator(leader)
        print(paint("   $ ", "33") + f"kill -9 aggregator {leader}", flush=True)
        started = time.monotonic()
        wait_until(lambda: len(self.site.connected()) == NODES - 1, "the nodes are at work under another root", 40)
        good(f"{self.site.leader()} leads, and {NODES - 1} nodes are there, {time.monotonic() - started:.1f} s later")
        self.pact("nodes", again_s=30)
        self.pact("groups", again_s=30)

    def rolled_back(self) -> None:
        title(6, "The job ends; the group is rolled back")
        self.job.kill()
        self.job.wait()
        self.pact("rollback", "g1", expect=5)
        check(self.everywhere("workers = 4\n", but=AWAY), "it is undone wherever the cable is in")
        away = self.site.nodes[AWAY].path(self.conf)
        check(away.read_text() == "workers = 64\n", f"{AWAY} owes the decision")
        tell(f"   The cable of {AWAY} is put in again:")
        self.site.mend(AWAY)
        started = time.monotonic()
        wait_until(lambda: self.everywhere("workers = 4\n"), f"{AWAY} has done it", 30)
        took_s = time.monotonic() - started
        check(self.keepalive(AWAY) == "7200", f"{AWAY} was told on its return, after {took_s:.1f} s")
        wait_until(lambda: self.ask("groups", "g1")["groups"][0]["state"] == "rolled back", "g1 is finished")
        self.pact("groups", "--all")
        self.pact("check", "--nodes", self.set)

    def worked(self) -> None:
        title(7, f"A shell on {WORK}, through the tree")
        if not all_of_root():
            tell("   left out: sessions need root of the machine itself, and here it is root of a user namespace")
            return
        self.site.write_client("root", ["agg1", "root1", "root2"])
        prompt = f"{WORK}# "
        words = ["shell", WORK, "--", f"PS1='{prompt}' exec bash --norc --noprofile -i"]
        print(paint("   $ ", "33") + f"pact shell {WORK}", flush=True)
        terminal = Typed(self.site.argv(words), self.site.env)
        try:
            if not terminal.until(prompt):
                tell(f"   left out: {terminal.text.strip()}")
                return
            terminal.type(f"echo workers = 8 > {self.conf}\r")
            terminal.until(prompt)
            wait_until(lambda: self.status()["drifted"], "the node has seen it")
            terminal.type("exit\r")
            if not terminal.until("[leave]"):
                raise DemoError(f"nobody was asked: {terminal.text}")
            terminal.type("r\r")
            terminal.end()
        finally:
            terminal.close()
            self.site.write_client("ops", ["root1", "root2", "agg1"])
        for line in terminal.text.replace("\r", "").splitlines():
            print(f"   {line}", flush=True)
        check(self.site.nodes[WORK].path(self.conf).read_text() == "workers = 4\n", "asked on the way out, and undone")
        closed = self.site.local(WORK, "--json", "log", "--type", "session_closed").out
        check('"user":"root"' in closed.replace(" ", ""), "who was there, and for how long, is on record")

    def status(self) -> Any:
        return self.site.local(WORK, "--json", "status").json()

    def proved(self) -> None:
        title(8, "What happened is in one order, without a gap, for any subscriber")
        followed = self.site.follow(self.site.leader(), "events")
        print(paint("   $ ", "33") + "python docs/examples/subscriber.py tcp://... '*' 0", flush=True)

        def all_there() -> int:
            said = self.ask("nodes")
            newest: int = said["gseq"]
            there = all(self.site.local_seq(n) == said["nodes"][n]["seq"] for n in self.names)
            return newest if there and len(followed.read_bytes().splitlines()) > newest else 0

        newest = wait_until(all_there, "every record has reached the root, and the subscriber")
        events = [line.split(" ", 3) for line in followed.read_text().splitlines()]
        for line in events[-3:]:
            tell("   " + " ".join(line)[:100])
        check(
            [int(e[0]) for e in events[: newest + 1]] == list(range(newest + 1)),
            f"{newest + 1} events, though etcd's leader and the root died: numbered without a gap",
        )
        records: dict[str, list[int]] = {}
        for _, _, node, body in events:
            records.setdefault(node, []).append(json.loads(body)["seq"])
        check(
            records.keys() >= set(self.names) and all(r == list(range(len(r))) for r in records.values()),
            f"the records of {len(self.names)} nodes and of the root: none missing, none twice",
        )


def inside(place: str) -> int:
    """The demonstration proper, in its namespaces."""
    started = time.monotonic()
    subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)
    work = Path(tempfile.mkdtemp(prefix="pact-cluster-"))
    print(paint("pact: one change on many nodes, committed everywhere or undone everywhere", "1"))
    site = Site(work, place)
    try:
        Demo(site, place).run()
    except (DemoError, SiteError, subprocess.SubprocessError, OSError, ValueError) as exc:
        print(paint(f"\ndemo: FAILED: {exc}", "1;31"), file=sys.stderr)
        for log in sorted(work.glob("*.log")):
            lines = [line for line in log.read_text(errors="replace").splitlines() if "etcd" not in log.name][-8:]
            if lines:
                print(f"-- {log.name}\n" + "\n".join(lines), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        site.close()
        shutil.rmtree(work, ignore_errors=True)
    print("\n" + paint(f"Every step was verified on the nodes, in {time.monotonic() - started:.0f} s.", "1;32"))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(sys.argv[2]))
    if missing():
        print(
            f"demo: this machine lacks {', '.join(missing())}: apt-get install etcd-server iproute2 util-linux",
            file=sys.stderr,
        )
        sys.exit(1)
    enter(__file__)
