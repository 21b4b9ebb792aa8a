"""A real cluster, tormented: groups are applied and settled while roots, aggregators, agents and links fail.

Run as ``run.py`` runs it: in mount, network and process namespaces of its own. Every round applies one change to some
nodes, settles it, and breaks something meanwhile; then all is mended, and the group must have been settled on all of its
nodes or on none. At the end the root's log holds every record of every node once, in order, without a hole.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

from faults import require_apart, run
from model import FoundError
from netsite import Done, Site, SiteError, wait_until

PLACE, WORK = "/srv", "/mnt"
CONF = f"{PLACE}/app.conf"
NODES, MIDDLE = 3, ("agg1", "agg2")
AGENT = '[window]\nbase = "15m"\nfloor = "1s"\n[observe]\nrescan = "2s"'
BACK_S, FINAL_S, RECORDED_S = 60.0, 90.0, 60.0
FINAL = ("committed", "rolled back")
BROKEN = re.compile(r"Traceback|internal error|AssertionError")


class Cluster:
    """The site, and what must be in the file on each node."""

    def __init__(self, seed: int) -> None:
        self.seed, self.round_no = seed, 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.trace: list[str] = []
        rng = random.Random(f"{seed}/cluster")
        for point in (PLACE, WORK):
            assert run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", point), point
        work = Path(WORK) / "w"
        work.mkdir()
        self.site = Site(work, PLACE)
        self.on_etcd = shutil.which("etcd") is not None and rng.random() < 0.4
        self.sealed = rng.random() < 0.7
        self.roots = ("root1", "root2") if self.on_etcd else ("root1",)
        self.names = [f"n{i}" for i in range(1, NODES + 1)]
        self.have = dict.fromkeys(self.names, "old\n")
        self.stopped: list[subprocess.Popen[bytes]] = []
        self.cut: set[str] = set()

    def build(self) -> None:
        site = self.site
        site.make_keys(
            {
                **dict.fromkeys((*self.roots, *MIDDLE), "aggregator"),
                **dict.fromkeys(self.names, "node"),
                "ann": "admin",
                "sub": "subscriber",
            },
            sealed_for=self.roots if self.sealed else (),
        )
        if self.on_etcd:
            site.start_etcd()
        for name in (*self.roots, *MIDDLE):
            self.start_aggregator(name)
        site.write_client("ann", [*self.roots, *MIDDLE])
        for i, name in enumerate(self.names, 1):
            site.make_node(name, i)
            site.start_agent(name, MIDDLE, AGENT)
        wait_until(lambda: site.connected() == self.names, "all nodes are connected", BACK_S)
        done = site.pact("--json", "declare", self.change("old\n"), "--nodes", ",".join(self.names))
        if done.code:
            raise FoundError(f"the first declare: {done}")

    def start_aggregator(self, name: str) -> None:
        number = {"root1": 1, "root2": 2, "agg1": 10, "agg2": 11}[name]
        self.site.start_aggregator(name, number, self.roots if name in MIDDLE else ())

    def change(self, text: str) -> str:
        path = self.site.work / "change.toml"
        path.write_text(f'[file."{CONF}"]\ncontent = {json.dumps(text)}\nmode = "0644"\n')
        return str(path)

    def has(self, name: str) -> str:
        """What the node's kernel has in the file."""
        try:
            return self.site.nodes[name].path(CONF).read_text()
        except FileNotFoundError:
            return "(none)"

    # -- what goes wrong --------------------------------------------------------------------------------------------

    def harm(self, rng: random.Random) -> str:
        """Break something; ``mend`` takes it back."""
        site = self.site
        what = rng.choices(
            [
                "nothing",
                "kill root",
                "kill aggregator",
                "kill agent",
                "freeze root",
                "freeze aggregator",
                "freeze agent",
                "cut",
                "kill etcd member",
            ],
            [2, 4, 3, 4, 3, 3, 2, 4, 2],
        )[0]
        kind = what.rpartition(" ")[2]
        if kind in ("root", "aggregator"):
            living = [
                n
                for n in (self.roots if kind == "root" else MIDDLE)
                if n in site.aggregators and site.aggregators[n] not in self.stopped
            ]
            if not living:
                return "nothing is left to harm"
            name = rng.choice(living)
            if what.startswith("kill"):
                self.ended_by_itself(name, site.aggregators[name])
                site.kill_aggregator(name)
            else:
                self.freeze(site.aggregators[name])
        elif kind == "agent":
            name = rng.choice(self.names)
            agent = site.nodes[name].agent
            if agent is None or agent in self.stopped:
                return "nothing is left to harm"
            if what.startswith("kill"):
                self.ended_by_itself(name, agent)
                site.kill_agent(name)
            else:
                self.freeze(agent)
        elif kind == "cut":
            name = rng.choice(self.names)
            site.cut(name)
            self.cut.add(name)
        elif kind == "member":
            living = [i for i, p in enumerate(site.etcd) if p is not None]
            if len(living) < 3:
                return "no member to kill"
            name = f"m{(i := rng.choice(living))}"
            site.kill_member(i)
        else:
            return what
        self.counts[what] += 1
        return f"{what} {name}"

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        self.stopped.append(process)

    def mend(self) -> None:
        site = self.site
        for process in self.stopped:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        self.stopped.clear()
        for i, member in enumerate(site.etcd):
            if member is None:
                site.start_member(i)
        for name in (*self.roots, *MIDDLE):
            if name not in site.aggregators:
                self.start_aggregator(name)
        for name in self.names:
            if site.nodes[name].agent is None:
                site.start_agent(name, MIDDLE, AGENT)
        for name in self.cut:
            site.mend(name)
        self.cut.clear()

    def ended_by_itself(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if (code := process.poll()) is not None:
            raise FoundError(f"{name} ended by itself with {code}:\n{self.site.log(name)[-2500:]}")

    def glance(self) -> None:
        """Nothing has ended by itself, and no log tells of what nobody expected."""
        for name, process in self.site.aggregators.items():
            self.ended_by_itself(name, process)
        for name, node in self.site.nodes.items():
            if node.agent is not None:
                self.ended_by_itself(name, node.agent)
        for path in self.site.work.glob("*.log"):
            text = path.read_text(errors="replace")
            if "etcd" not in path.name and BROKEN.search(text):
                raise FoundError(f"{path.name}: {text[-3000:]}")

    # -- a round ----------------------------------------------------------------------------------------------------

    def round(self, number: int) -> None:
        """One group's life."""
        self.round_no = number
        rng = random.Random(f"{self.seed}/{number}")
        nodes = sorted(rng.sample(self.names, rng.randrange(1, NODES + 1)))
        text = f"round {number} of {self.seed}\n"
        early, settle = rng.random() < 0.3, rng.choice(["commit", "rollback"])
        harmed: list[str] = []
        before = self.group_ids()
        done, harm = self.disturbed(
            ["--json", "apply", self.change(text), "--nodes", ",".join(nodes), "-m", "m"], rng, early
        )
        harmed.append(harm)
        if early:
            self.back()
        gid = self.new_group(done, before)
        self.counts[f"apply {done.code}"] += 1
        if gid:
            words = ["--json", settle, gid, *(["-m", "m"] if settle == "commit" else [])]
            done, harm = self.disturbed(words, rng, rng.random() < 0.7)
            harmed.append(harm)
            self.counts[f"{settle} {done.code}"] += 1
        self.back()
        gid = gid or self.new_group(None, before)  # its answer was lost, and it was begun
        state = self.final(gid, settle) if gid else "not begun"
        self.trace.append(f"  {number:3} {gid or '-'} on {','.join(nodes)}: {settle}: {state} ({'; '.join(harmed)})")
        self.agreed(nodes, text, state, gid)
        self.glance()

    def disturbed(self, words: list[str], rng: random.Random, harm: bool) -> tuple[Done, str]:
        """A command, and while it is under way something breaks and is mended after a while."""
        process = subprocess.Popen(
            self.site.argv([*words, "--timeout", "20s"]),
            env=self.site.env,
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        said = "quiet"
        if harm:
            time.sleep(0.3 + rng.random() * 0.6)  # the command itself starts for that long
            said = self.harm(rng)
            if rng.random() < 0.3:
                said += f", {self.harm(rng)}"
            time.sleep(rng.random() * 3.0)
            self.mend()
        try:
            out, err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise FoundError(f"{' '.join(words)} does not end within 90 s ({said})") from None
        if "Traceback" in err or "internal error" in out + err:
            raise FoundError(f"{words}: {out}{err}")
        return Done(process.returncode, out, err), said

    def group_ids(self) -> set[str]:
        return {g["group"] for g in self.groups()}

    def groups(self) -> list[dict[str, Any]]:
        end = time.monotonic() + BACK_S
        while True:
            done = self.site.pact("--json", "groups", "--all")
            if done.code == 0:
                found: list[dict[str, Any]] = done.json()["groups"]
                return found
            if time.monotonic() > end:
                raise FoundError(f"no answer to groups within {BACK_S:g} s: {done}")
            time.sleep(0.3)

    def new_group(self, done: Done | None, before: set[str]) -> str:
        if done is not None and done.out.strip():
            return str(done.json().get("group") or "")
        if done is not None and done.code == 5 and self.stopped:
            return ""
        return max(self.group_ids() - before, key=lambda g: int(g[1:]), default="")

    def back(self) -> None:
        """Everything is mended and at work again."""
        self.mend()
        try:
            wait_until(lambda: self.site.connected() == self.names, "all nodes are connected", BACK_S)
        except SiteError:
            self.glance()
            raise FoundError(f"mended, and not connected within {BACK_S:g} s: {self.site.connected()}") from None

    def final(self, gid: str, settle: str) -> str:
        """Ask for its end until it has one."""
        end = time.monotonic() + FINAL_S
        group: dict[str, Any] = {}
        while time.monotonic() < end:
            group = next((g for g in self.groups() if g["group"] == gid), {})
            if not group:
                return "not begun"
            if group["state"] in FINAL or group["state"] not in ("open", "blocked"):
                if group["state"] in FINAL:
                    return str(group["state"])
                time.sleep(0.3)
                continue
            done = self.site.pact(
                "--json", settle, gid, *(["-m", "m"] if settle == "commit" else []), "--timeout", "20s"
            )
            if done.code and settle == "commit":  # some member could not apply it: then nobody keeps it
                settle = "rollback"
            time.sleep(0.2)
        raise FoundError(f"{gid} has no end within {FINAL_S:g} s: {group}")

    def agreed(self, nodes: list[str], text: str, state: str, gid: str) -> None:
        """All of its nodes have it, or none; nobody else has changed."""
        wanted = {**self.have, **(dict.fromkeys(nodes, text) if state == "committed" else {})}
        end = time.monotonic() + 10.0
        while (found := {n: self.has(n) for n in self.names}) != wanted:
            if time.monotonic() > end:
                raise FoundError(f"{gid} on {nodes} is {state}, and the nodes have {found}, not {wanted}")
            time.sleep(0.2)
        self.have = wanted

    # -- the end ----------------------------------------------------------------------------------------------------

    def demand(self) -> None:
        site = self.site
        self.back()
        for name in self.names:
            status = self.settled(name)
            if status["changes"] or status["state"] != "committed":
                raise FoundError(f"{name} at the end: {status['state']} {status['changes']}")
        rows = self.recorded()
        root = site.leader() if self.on_etcd else "root1"
        events = site.follow(root, "sub")
        last = int(site.pact("--json", "nodes").json()["gseq"])

        def lines() -> list[str]:
            return events.read_text(errors="replace").splitlines()

        try:
            wait_until(lambda: len(lines()) > last, "all is followed", 30)
        except SiteError:
            raise FoundError(f"{root} published {len(lines())} of {last + 1} events: {lines()[-3:]}") from None
        split = [line.split(" ", 3) for line in lines()]
        numbers = [int(s[0]) for s in split]
        if numbers != list(range(len(numbers))):
            raise FoundError(f"events are lost or doubled: {numbers[:20]} ... {len(numbers)}")
        for name in self.names:
            records = [json.loads(x) for x in site.local(name, "--json", "log", "-n", "1000000").out.splitlines()][::-1]
            mine = [s[1] for s in split if s[2] == name][: len(records)]
            types = [r["type"] for r in records]
            if mine != types[: len(mine)] or len(mine) < rows[name]["seq"] + 1:
                raise FoundError(f"the root's log of {name} is not its journal: {len(mine)} of {len(types)} records")
            done = site.pact("journal", "verify", "--config", str(site.work / f"{name}.toml"))
            if done.code:
                raise FoundError(f"journal verify of {name}: {done}")
        self.counts["events"] += len(numbers)
        self.glance()

    def settled(self, name: str) -> dict[str, Any]:
        end = time.monotonic() + 10.0
        while True:
            status: dict[str, Any] = self.site.local(name, "--json", "status").json()
            if not status["changes"] or time.monotonic() > end:
                return status
            time.sleep(0.2)

    def recorded(self) -> dict[str, Any]:
        """The root's log holds every record of every node."""
        end = time.monotonic() + RECORDED_S
        while True:
            done = self.site.pact("--json", "nodes")
            rows: dict[str, Any] = done.json()["nodes"] if done.code == 0 else {}
            local = {n: self.site.local_seq(n) for n in self.names}
            if rows and all(rows[n]["seq"] >= local[n] for n in self.names):
                return rows
            if time.monotonic() > end:
                raise FoundError(
                    f"not recorded at the root within {RECORDED_S:g} s: {local}; there: "
                    f"{ {n: r['seq'] for n, r in rows.items()} }"
                )
            time.sleep(0.3)

    def close(self) -> None:
        for process in self.stopped:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        self.site.close()


def torture(seed: int, rounds: int, until: float) -> int:
    """Run a seed. Prints findings and counts; 1 if something was found."""
    cluster = Cluster(seed)
    found, doing = "", "build"
    steps: Callable[[int], None] = cluster.round
    try:
        cluster.build()
        for number in range(1, rounds + 1):
            if until and time.monotonic() > until:
                break
            doing = f"round {number}"
            steps(number)
        doing = "the end"
        cluster.demand()
    except FoundError as exc:
        found = str(exc)
    except Exception:
        found = f"the driver or the cluster broke:\n{traceback.format_exc()}"
    finally:
        if found:
            kind = "etcd" if cluster.on_etcd else "SQLite"
            print(
                f"FINDING cluster seed {seed}, {doing}, on {kind}: {found}\n" + "\n".join(cluster.trace[-30:]),
                flush=True,
            )
            for log in sorted(cluster.site.work.glob("*.log")):
                if "etcd" not in log.name:
                    print(f"-- {log.name}\n{log.read_text(errors='replace')[-1200:]}", flush=True)
        cluster.close()
    print(
        "COUNTS " + ", ".join(f"{k}={v}" for k, v in sorted(cluster.counts.items())) + f", rounds={cluster.round_no}",
        flush=True,
    )
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=10, help="rounds")
    parser.add_argument("--until", type=float, default=0.0, help="a moment of the monotonic clock that ends it")
    args = parser.parse_args()
    require_apart()
    return torture(args.seed, args.steps, args.until)


if __name__ == "__main__":
    sys.exit(main())
