"""Scenarios of a real cluster: aggregators and agents as processes, links that can be cut. Run inside namespaces by
``test_e2e_cluster.py``; each ends with exit code 0, or an assertion.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

from netsite import Done, Site, wait_until
from warm import Started, Warm

PLACE = "/srv"
CONF = f"{PLACE}/app.conf"
QUICK = '[window]\nbase = "4s"\nfloor = "1s"'
SLOW = '[window]\nbase = "15m"\nfloor = "1s"'
DECLARED = f'[file."{CONF}"]\ncontent = "old\\n"\nmode = "0644"\n'
CHANGE = f'[file."{CONF}"]\ncontent = "new\\n"\nmode = "0644"\n'


class WarmSite(Site):
    """Its agents, aggregators and commands are forked by ``warm``, from an interpreter that has read their modules
    already: it is outside the site's namespaces, and other scenarios use it too.
    """

    def __init__(self, work: Path, place: str, warm: Warm) -> None:
        super().__init__(work, place)
        self.warm = warm

    def _pact(self, words: Sequence[str], log: Any, node: str = "") -> Started:
        pid = self.nodes[node].holder.pid if node else os.getpid()
        return self.warm.start(words, self.env, pid, log.fileno())

    def pact(self, *words: str, timeout: float = 120.0, input: str = "") -> Done:
        code, out, err = self.warm.call(words, self.env, os.getpid(), input.encode(), timeout)
        return Done(code, out.decode(), err.decode())


Scenario = Callable[[Site], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def build(
    site: Site,
    nodes: int = 3,
    roots: Sequence[str] = ("root",),
    middle: Sequence[str] = (),
    agent: str = SLOW,
    alone: str = "10m",
    more: str = "",
    sealed: bool = True,
) -> list[str]:
    """A connected cluster whose nodes all have the declared file. Returns the nodes' names."""
    names = [f"n{i}" for i in range(1, nodes + 1)]
    site.make_keys(
        {
            **dict.fromkeys((*roots, *middle), "aggregator"),
            **dict.fromkeys(names, "node"),
            "ann": "admin",
            "bob": "ops",
            "eve": "viewer",
            "sub": "subscriber",
        },
        sealed_for=roots if sealed else (),
    )
    for i, name in enumerate(roots, 1):
        site.start_aggregator(name, i, (), more)
    for i, name in enumerate(middle, 10):
        site.start_aggregator(name, i, roots)
    site.write_client("ann", [*roots, *middle])
    for i, name in enumerate(names, 1):
        site.make_node(name, i)
        site.start_agent(name, middle or roots, agent, alone)
    wait_until(lambda: site.connected() == names, "all nodes are connected")
    ok(site, "declare", write(site, "declared.toml", DECLARED), "--nodes", ",".join(names))
    return names


def write(site: Site, name: str, text: str) -> str:
    path = site.work / name
    path.write_text(text)
    return str(path)


def back(site: Site, name: str) -> bool:
    """A node and the root agree that it is connected: the root may hear the last of a connection that was given up."""
    return name in site.connected() and bool(site.local(name, "--json", "status").json()["cluster"]["connected"])


def ok(site: Site, *words: str, code: int = 0) -> Any:
    done = site.pact("--json", *words)
    assert done.code == code, (words, done)
    return json.loads(done.out) if done.out.strip() else {}


def apply(site: Site, names: Sequence[str], *more: str, code: int = 0) -> str:
    answer = ok(
        site, "apply", write(site, "change.toml", CHANGE), "--nodes", ",".join(names), "-m", "why", *more, code=code
    )
    return str(answer["group"])


READ: dict[str, tuple[tuple[int, int, int], str]] = {}


def has(site: Site, name: str) -> str:
    """What the node's kernel has in the file. It is read when it has changed: who has it open stops a rollback."""
    path = site.nodes[name].path(CONF)
    st = path.stat()
    if (now := (st.st_ino, st.st_mtime_ns, st.st_size)) != READ.get(name, ((0, 0, 0), ""))[0]:
        READ[name] = now, path.read_text()
    return READ[name][1]


def all_recorded(site: Site, names: Sequence[str]) -> bool:
    """The root's log holds every record of these nodes."""
    rows = ok(site, "nodes")["nodes"]
    return all(rows[n]["seq"] == site.local_seq(n) for n in names)


def group(site: Site, gid: str) -> Any:
    return ok(site, "groups", gid)["groups"][0]


# -- the tree -------------------------------------------------------------------------------------------------------


@scenario
def an_aggregator_is_killed_and_its_children_are_at_work_elsewhere(site: Site) -> None:
    names = build(site, 4, middle=["agg1", "agg2"])
    stop = threading.Event()

    def busy() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            for name in names:
                site.nodes[name].path(CONF).write_text(f"{value}\n")
            time.sleep(0.05)

    writer = threading.Thread(target=busy)
    writer.start()
    try:
        time.sleep(1.0)
        victim = next(a for a in ("agg1", "agg2") if any(_parent(site, n) == a for n in names))
        moved = [n for n in names if _parent(site, n) == victim]
        site.kill_aggregator(victim)
        began = time.monotonic()
        other = "agg2" if victim == "agg1" else "agg1"
        wait_until(lambda: all(_parent(site, n) == other for n in moved), "they have moved", 25)
        took = time.monotonic() - began
        assert took < 20.0, took  # usually three; other tests may fill the machine
        time.sleep(0.5)
    finally:
        stop.set()
        writer.join()
    wait_until(lambda: all_recorded(site, names), "every record has come")
    print(f"moved {len(moved)} in {took:.1f} s")
    site.start_aggregator(victim, 10 if victim == "agg1" else 11, ["root"])
    answer = ok(site, "status", "--nodes", ",".join(names))
    assert sorted(answer["nodes"]) == names and answer["failed"] == {}


@scenario
def a_command_waits_for_nodes_whose_aggregator_dies_under_it(site: Site) -> None:
    names = build(site, 4, middle=["agg1", "agg2"], sealed=False)
    victim = next(a for a in ("agg1", "agg2") if any(_parent(site, n) == a for n in names))
    moved = [n for n in names if _parent(site, n) == victim]
    site.aggregators[victim].send_signal(signal.SIGSTOP)  # what is sent there now is never read
    killer = threading.Timer(1.5, site.kill_aggregator, [victim])  # the root hears of this before its children are back
    killer.start()
    began = time.monotonic()
    gid = apply(site, names)
    took = time.monotonic() - began
    killer.join()
    assert took > 1.5, took
    assert [has(site, n) for n in names] == ["new\n"] * 4
    for name in moved:
        records = site.local(name, "--json", "log", "--type", "applied").out.splitlines()
        assert _parent(site, name) not in ("", victim) and len(records) == 1, records
    ok(site, "commit", gid, "-m", "good")
    wait_until(lambda: all_recorded(site, names), "every record has come")
    print(f"{len(moved)} of {len(names)} moved; the command took {took:.1f} s")


def _parent(site: Site, name: str) -> str:
    cluster = site.local(name, "--json", "status").json()["cluster"]
    url = cluster["parent"] if cluster["connected"] else None
    return {f"tcp://{address}:7417": a for a, address in site._addresses.items()}.get(url or "", "")


@scenario
def a_root_is_killed_and_started_again(site: Site) -> None:
    names = build(site, 3, middle=["agg1"])
    events = site.follow("root", "sub")
    wait_until(events.read_text, "it follows")
    gid = apply(site, names)
    before = ok(site, "nodes")["gseq"]
    site.kill_aggregator("root")
    site.nodes["n1"].path(PLACE + "/meanwhile").write_text("x")
    assert site.pact("nodes").code == 5
    site.start_aggregator("root", 1)
    wait_until(lambda: site.connected() == names, "they are back")
    assert ok(site, "nodes")["gseq"] > before
    assert group(site, gid)["state"] == "open"
    assert ok(site, "commit", gid, "-m", "good")["state"] == "committed"
    assert all(has(site, n) == "new\n" for n in names)
    assert all(site.local(n, "--json", "status").json()["state"] == "committed" for n in names)
    wait_until(lambda: all_recorded(site, names), "every record has come")
    wait_until(lambda: len(events.read_text().splitlines()) > ok(site, "nodes")["gseq"], "all is followed", 15)
    numbers = [line.split()[0] for line in events.read_text().splitlines()]
    assert numbers == [str(n) for n in range(len(numbers))], "it is the same log, and each event comes once"
    site.kill_aggregator("root")
    for file in site.work.glob("root.db*"):
        file.unlink()
    site.start_aggregator("root", 1)
    wait_until(lambda: site.connected() == names and all_recorded(site, names), "quiet nodes send all to a new log", 30)


@scenario
def a_key_that_is_removed_ends_its_sessions(site: Site) -> None:
    names = build(site, 3)
    site.authorize([n for n, _ in site.roles if n not in ("n2", "bob")])
    wait_until(lambda: site.connected() == ["n1", "n3"], "n2 is gone", 8)
    site.write_client("bob", ["root"])
    done = site.pact("nodes")
    assert done.code == 3 and "bob" in done.err, done
    site.write_client("ann", ["root"])
    assert site.pact("check", "--nodes", "n2").code == 5
    site.authorize([n for n, _ in site.roles])
    wait_until(lambda: site.connected() == names, "n2 is back", 20)


@scenario
def keys_mean_what_the_file_says(site: Site) -> None:
    build(site, 2, sealed=False)
    site.write_client("n1", ["root"])  # a node's key is no operator's
    assert site.pact("nodes").code in (3, 5)
    site.write_client("eve", ["root"])
    assert ok(site, "status", "--nodes", "n1")["nodes"]["n1"]["state"] == "committed"
    done = site.pact("adopt", "file:/etc/hostname", "--nodes", "n1")
    assert done.code == 3 and "eve is viewer" in done.out + done.err, done
    denied = site.local("n1", "--json", "log", "--type", "denied").out.splitlines()
    actor = json.loads(denied[0])["actor"]
    assert actor == {"user": "eve", "uid": None, "role": "viewer", "via": "cluster"}, actor
    assert site.pact("apply", write(site, "c.toml", CHANGE), "--nodes", "n1").code == 3
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pact.net.keys import keygen; keygen('stranger', sys.argv[1])",
            str(site.keys),
        ],
        env=site.env,
        check=True,
    )
    site.write_client("stranger", ["root"])
    done = site.pact("nodes")
    assert done.code == 3 and "does not know the key" in done.err, done
    # a node with another node's name
    site.kill_agent("n2")
    toml = site.work / "n2.toml"
    toml.write_text(toml.read_text().replace('name = "n2"', 'name = "n1"'))
    with open(site.work / "n2.log", "ab") as log:
        site.nodes["n2"].agent = site._pact(["agent", "--config", str(toml)], log, "n2")
    site.write_client("ann", ["root"])
    wait_until(lambda: site.connected() == ["n1"], "n2 is gone, and nobody is there in its place")
    time.sleep(2)
    assert site.connected() == ["n1"]
    assert ok(site, "check", "--nodes", "n1")["nodes"]["n1"]["node"] == "n1"


# -- groups ---------------------------------------------------------------------------------------------------------


@scenario
def a_group_that_nobody_commits_expires_on_every_node(site: Site) -> None:
    names = build(site, 3, agent=QUICK)
    gid = apply(site, names)
    assert all(has(site, n) == "new\n" for n in names)
    shown = group(site, gid)
    assert 2.0 < shown["window_s"] < 4.0
    wait_until(lambda: all(has(site, n) == "old\n" for n in names), "it is undone")
    wait_until(lambda: group(site, gid)["state"] == "rolled back", "it is finished")
    types = [json.loads(x)["type"] for x in site.local("n1", "--json", "log", "-n", "30").out.splitlines()][::-1]
    of_group = [t for t in types if t.startswith("group") or t in ("applied", "rollback_started", "rolled_back")]
    assert of_group == [
        "group_begun",
        "applied",
        "group_prepared",
        "group_decided",
        "rollback_started",
        "rolled_back",
        "group_finished",
    ], of_group


@scenario
def a_consumer_blocks_all_and_two_people_settle_one_group(site: Site) -> None:
    names = build(site, 3)
    gid = apply(site, names)
    job = site.hold_open("n2", CONF)
    done = site.pact("rollback", gid)
    assert done.code == 10 and "n2" in done.out and "sleep of root" in done.out + done.err, done
    assert str(job.pid) not in done.out + done.err and str(job.pid) not in site.pact("groups", gid).out
    assert group(site, gid)["blocked"]["n2"]["holders"][0]["pid"] == job.pid
    assert all(has(site, n) == "new\n" for n in names)
    job.kill()
    job.wait()
    both = [
        subprocess.Popen(site.argv(words), env=site.env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for words in (["commit", gid, "-m", "yes"], ["rollback", gid])
    ]
    codes = [p.wait(60) for p in both]
    for process in both:
        process.communicate()
    assert sorted(codes) == [0, 4], codes
    wanted = "new\n" if codes[0] == 0 else "old\n"
    assert all(has(site, n) == wanted for n in names)
    assert group(site, gid)["state"] == ("committed" if codes[0] == 0 else "rolled back")


@scenario
def a_node_that_is_away_owes_and_one_that_restarts_remembers(site: Site) -> None:
    names = build(site, 3)
    gid = apply(site, names)
    site.cut("n1")
    site.kill_agent("n2")
    wait_until(lambda: site.connected() == ["n3"], "two are away", 15)
    answer = ok(site, "commit", gid, "-m", "m", code=5)
    assert "n[1-2]" in answer["message"]
    answer = ok(site, "commit", gid, "-m", "m", "--allow-missing", "n[1-2]")
    assert answer["members"] == {"done": "n3", "owed": "n[1-2]"}
    site.mend("n1")
    site.start_agent("n2", ["root"], SLOW)
    wait_until(lambda: group(site, gid)["state"] == "committed", "all have done it", 20)
    states = [site.local(n, "--json", "status").json() for n in names]
    assert [s["state"] for s in states] == ["committed"] * 3 and all(has(site, n) == "new\n" for n in names)


@scenario
def a_member_that_said_yes_waits_for_the_root(site: Site) -> None:
    """The root is stopped right after the votes: the members are undecided, and say so, until it goes on."""
    names = build(site, 2, sealed=False)
    gid = apply(site, names)
    root = site.aggregators["root"]
    asking = subprocess.Popen(
        site.argv(["rollback", gid]), env=site.env, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def undecided() -> bool:
        changes = site.local("n1", "--json", "status").json()["changes"]
        return bool(changes) and "undecided" in changes[0]["reason"]

    for _ in range(40):  # stop it at some moment of the vote; try again where that moment was missed
        root.send_signal(signal.SIGSTOP)
        if undecided() or not site.local("n1", "--json", "status").json()["changes"]:
            break
        root.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    if undecided():
        done = site.local("n1", "rollback", "c1")
        assert done.code == 4 and "undecided" in done.err, done
    root.send_signal(signal.SIGCONT)
    asking.wait(60)
    wait_until(lambda: all(has(site, n) == "old\n" for n in names), "it is undone")
    assert group(site, gid)["state"] == "rolled back"


@scenario
def the_whole_fleet_is_stopped(site: Site) -> None:
    names = build(site, 3, agent=QUICK, alone="3s")
    site.kill_agent("n3")
    site.nodes["n3"].path(CONF).write_text("by hand\n")
    site.cut("n2")
    wait_until(lambda: site.connected() == ["n1"], "two are away", 15)
    site.nodes["n1"].path(CONF).write_text("by hand\n")
    answer = ok(site, "hold", "place", "--all", "--reason", "outage", "--for", "10m", code=5)
    assert answer["hold"] == "f1" and list(answer["failed"]) == ["n[2-3]"], answer
    site.start_agent("n3", ["root"], QUICK)
    site.mend("n2")
    wait_until(lambda: site.connected() == names and back(site, "n2"), "all are back", 20)
    site.nodes["n2"].path(CONF).write_text("by hand\n")
    time.sleep(6)  # longer than any window
    assert [has(site, n) for n in names] == ["by hand\n"] * 3, [has(site, n) for n in names]
    holds = ok(site, "status", "--nodes", "n[1-3]")["nodes"]
    assert all(s["holds"][0]["id"] == "f1" and s["changes"][0]["state"] == "held" for s in holds.values()), holds
    assert "hold f1: fleet: outage (ann)" in site.pact("status", "--nodes", "n1").out
    assert site.local("n1", "hold", "release", "f1").code == 4
    assert site.pact("groups").out == "the whole fleet is held: f1 by ann: outage\nno group is open\n"
    ok(site, "hold", "place", "--all", "--reason", "more", "--for", "10m")
    assert (
        site.pact("hold", "release", "f2", "--all").out == "released f2; 3 nodes know\nstill held: f1 by ann: outage\n"
    )
    site.kill_aggregator("root")
    site.start_aggregator("root", 1)
    wait_until(lambda: site.connected() == names, "all are back")
    ok(site, "hold", "release", "f1", "--all")
    wait_until(lambda: all(has(site, n) == "old\n" for n in names), "windows run again", 15)


@scenario
def a_node_that_is_cut_off_waits_and_then_acts_alone(site: Site) -> None:
    names = build(site, 2, agent=QUICK, alone="15s")
    assert names == ["n1", "n2"]
    site.cut("n1")
    wait_until(lambda: site.connected() == ["n2"], "n1 is away", 15)
    for name in names:
        site.nodes[name].path(CONF).write_text("by hand\n")
    wait_until(lambda: has(site, "n2") == "old\n", "n2 rolls back in its window", 8)
    assert has(site, "n1") == "by hand\n"
    assert site.local("n1", "--json", "status").json()["cluster"]["connected"] is False
    wait_until(lambda: has(site, "n1") == "old\n", "n1 acts alone in the end", 25)


# -- etcd -----------------------------------------------------------------------------------------------------------


@scenario
def two_roots_on_etcd_and_no_quorum(site: Site) -> None:
    site.start_etcd()
    names = build(site, 2, roots=["root1", "root2"])
    gid = apply(site, names)
    first = site.leader()
    site.kill_aggregator(first)
    wait_until(lambda: site.connected() == names, "the other one leads", 30)
    assert site.leader() != first and group(site, gid)["state"] == "open"
    leader = site.etcd_leader()
    assert leader is not None
    others = [i for i in range(3) if i != leader]
    site.kill_member(leader)
    site.kill_member(others[0])
    began = time.monotonic()
    done = site.pact("commit", gid, "-m", "m", "--timeout", "10s", timeout=60)
    assert done.code == 5, done
    assert time.monotonic() - began < 40
    assert all(site.local(n, "--json", "status").json()["state"] in ("drifted", "blocked") for n in names)
    assert all(has(site, n) == "new\n" for n in names)
    site.start_member(leader)
    wait_until(lambda: site.connected() == names, "there is a quorum again", 40)
    wait_until(lambda: site.pact("commit", gid, "-m", "m").code in (0, 4), "it can be decided", 40)
    wait_until(lambda: group(site, gid)["state"] == "committed", "it is committed")
    assert all(site.local(n, "--json", "status").json()["state"] == "committed" for n in names)
    wait_until(lambda: all_recorded(site, names), "every record has come")


# -- what people type -----------------------------------------------------------------------------------------------


def main() -> int:
    """Run one scenario, with a ``Warm`` of the process that started this; what the processes said where it fails."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)
    work = Path(tempfile.mkdtemp(prefix="pact-cluster-e2e-"))
    site = WarmSite(work, PLACE, Warm(socket.socket(fileno=int(sys.argv[2]))))
    try:
        SCENARIOS[sys.argv[1]](site)
        return 0
    except BaseException:
        for log in sorted(work.glob("*.log")):
            if "etcd" not in log.name:
                print(f"-- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        site.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
