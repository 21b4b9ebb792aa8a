"""Scenarios of who looks, beside those of ``scenarios.py``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request

from scenarios import (
    CHANGE,
    CONF,
    DECLARED,
    Site,
    apply,
    back,
    build,
    group,
    has,
    main,
    ok,
    scenario,
    wait_until,
    write,
)


@scenario
def who_looks_at_a_group_sees_its_members_as_they_are(site: Site) -> None:
    names = build(site, 3)
    gid = apply(site, names)
    assert group(site, gid)["members"] == {"applied": "n[1-3]"}
    site.nodes["n1"].path(CONF).write_text("mine\n")
    assert site.local("n2", "commit", "c1", "-m", "here alone").code == 0

    def told() -> bool:
        states = {name: state for state, name in group(site, gid)["members"].items()}
        return states.get("n1", "").startswith(f"diverged: file:{CONF} was changed again") and states.get(
            "n2", ""
        ).startswith("left: ")

    wait_until(told, f"{group(site, gid)['members']}")
    assert group(site, gid)["members"]["applied"] == "n3"
    done = site.pact("groups", gid)
    assert "diverged" in done.out and "left: committed on this node" in done.out, done
    assert ok(site, "commit", gid, "-m", "all", code=4)


@scenario
def what_cannot_be_applied_on_one_node_is_applied_on_none(site: Site) -> None:
    """A file that is open on one node of four, for a while; and a sysctl that is written wrong."""
    names = build(site, 4)
    job = site.hold_open("n3", CONF)
    for more in (["--dry-run"], []):
        done = site.pact("--json", "apply", write(site, "change.toml", CHANGE), "--nodes", "n[1-4]", "-m", "m", *more)
        assert done.code == 10, done
        answer = done.json()
        assert list(answer["failed"]) == ["n3"] and "used by sleep of root" in answer["failed"]["n3"], answer
    assert [has(site, n) for n in names] == ["old\n"] * 4 and ok(site, "groups")["groups"] == []
    job.kill()
    job.wait()
    wrong = write(site, "wrong.toml", CHANGE + '[sysctl]\n"net.ipv4.ip_defalt_ttl" = 70\n')
    for more in (["--dry-run"], []):
        answer = ok(site, "apply", wrong, "--nodes", "n[1-4]", "-m", "m", *more, code=1)
        assert all("no such sysctl" in why for why in answer["failed"].values()), answer
    assert [has(site, n) for n in names] == ["old\n"] * 4
    assert all(site.local(n, "--json", "log", "--type", "applied").out == "" for n in names)
    gid = apply(site, names)
    ok(site, "rollback", gid)
    assert [has(site, n) for n in names] == ["old\n"] * 4


@scenario
def what_a_group_does_not_name_stays_declared(site: Site) -> None:
    names = build(site, 2)
    ok(site, "declare", write(site, "closed.toml", DECLARED.replace("0644", "0600")), "--nodes", ",".join(names))
    change = write(site, "change.toml", CHANGE.replace('mode = "0644"\n', ""))
    gid = ok(site, "apply", change, "--nodes", ",".join(names), "-m", "why")["group"]
    ok(site, "commit", gid, "-m", "no word of the mode")
    assert [has(site, n) for n in names] == ["new\n"] * 2
    exported = site.local("n1", "export").out
    assert "0600" in exported and "new" in exported, exported
    site.nodes["n1"].path(CONF).chmod(0o644)
    wait_until(lambda: site.local("n1", "check").code == 11, "its mode is still declared")


@scenario
def the_page_and_the_metrics_say_where_something_is_untracked(site: Site) -> None:
    build(site, 2)
    place = os.path.dirname(CONF)
    address = tomllib.loads((site.work / "root.toml").read_text())["aggregator"]["http"]

    def read(path: str) -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    # Nothing is said of it until the nodes have answered for the first time.
    wait_until(lambda: "pact_nodes_untracked 0.0" in read("/metrics"), "the nodes are asked every 15 s", 40)
    assert "untracked" not in read("/")
    assert site.local("n2", "track", f"file:{place}/**", "report").code == 0
    site.nodes["n2"].path(f"{place}/new.conf").write_text("new\n")
    wait_until(lambda: "pact_nodes_untracked 1.0" in read("/metrics"), "the nodes are asked every 15 s", 40)
    assert "on 1 node: n2" in read("/") and "new.conf" not in read("/")


@scenario
def programs_read_groups_as_they_read_everything_else(site: Site) -> None:
    build(site, 3)
    gid = apply(site, ["n1", "n2"])
    shown = group(site, gid)
    assert shown["nodeset"] == "n[1-2]" and shown["nodes"]["n2"] == {"state": "applied"}, shown
    answer = ok(site, "extend", gid, "5m")
    assert sorted(answer["nodes"]) == ["n1", "n2"] and answer["nodeset"] == "n[1-2]" and answer["message"] == "why"
    hold = ok(site, "hold", "place", "--all", "--reason", "x", "--for", "10m")
    assert (hold["nodes"], hold["heard"], hold["failed"]) == ({}, 3, {}), hold
    assert ok(site, "hold", "release", hold["hold"], "--all")["heard"] == 3
    settled = ok(site, "commit", gid, "-m", "good")
    assert settled["members"] == {"committed": "n[1-2]"} == group(site, gid)["members"], settled
    assert settled["nodes"]["n2"] == {"state": "committed"}
    refused = ok(site, "adopt", "lamp:**", "--nodes", "n[1-2]", code=2)["failed"]
    assert "is not known" in refused["n[1-2]"] and "known kinds: command, file" in refused["n[1-2]"], refused
    assert site.pact("diff", "--nodes", "n1").out.endswith("no drift\n")
    assert "\n      known kinds: command, file" in site.pact("adopt", "lamp:**", "--nodes", "n1").out
    site.cut("n3")
    wait_until(lambda: site.connected() == ["n1", "n2"], "one is away", 15)
    change = write(site, "change.toml", CHANGE.replace("new", "newer"))
    for words in (["apply", change, "--nodes", "n[1,3]"], ["apply", change, "--nodes", "n3"]):
        answer = ok(site, *words, code=5)
        assert (answer["nodes"], answer["failed"]) == ({}, {"n3": "not connected"}), answer
        assert "n3 cannot be reached" in answer["error"] and "--allow-missing" in answer["hint"], answer
    site.mend("n3")
    wait_until(lambda: back(site, "n3"), "it is back", 20)
    other = apply(site, ["n3"])
    job = site.hold_open("n3", CONF)
    answer = ok(site, "rollback", other, code=10)
    assert answer["message"] == "why" and "rollback blocked" in answer["error"], answer
    assert answer["nodes"] == {"n3": {"state": "blocked"}} and answer["blocked"]["n3"]["holders"], answer
    job.kill()
    job.wait()


@scenario
def mistakes_are_told_and_change_nothing(site: Site) -> None:
    build(site, 2, sealed=False)
    for words, code, text in (
        (["status", "--nodes", "n[1-"], 2, "no node set"),
        (["status", "--nodes", "n[1-999999999]"], 2, "more than"),
        (["commit", "g9", "-m", "x"], 2, "no group g9"),
        (["apply", "/nonexistent", "--nodes", "n1"], 2, "nonexistent"),
        (["rollback", "g1", "c3"], 2, "by itself"),
        (["check", "--nodes", "n7"], 5, "n7"),
        (["hold", "place", "--all", "--reason", "x", "--for", "99d"], 2, "30d"),
        (["extend", "g1", "soon"], 2, "soon"),
        (["show", "999", "--nodes", "n1"], 2, "no record 999"),
        (["log", "-f", "--nodes", "n1"], 2, "follow"),
        (["groups", "g4"], 2, "no group"),
        (["watch", "--nodes", "n[1-"], 2, "no node set"),
        (["--via", "tcp://127.0.0.1:1", "nodes"], 2, "server-key"),
        (["--via", "tcp://127.0.0.1:1", "--server-key", "x", "nodes"], 2, "40 characters"),
        (["--via", "nowhere", "--server-key", site.public("root"), "nodes"], 2, "no address"),
    ):
        done = site.pact(*words)
        assert done.code == code and text in done.out + done.err and "Traceback" not in done.err, (words, done)
    done = site.pact("--via", "tcp://127.0.0.1:1", "--server-key", site.public("root"), "nodes")
    assert done.code == 5 and "nobody" in done.err, done
    folded = site.pact("check", "--nodes", "n[1-2]")
    assert folded.code == 0 and "n[1-2] (2)" in folded.out and folded.out.count("committed") == 1, folded
    site.nodes["n1"].path(CONF).write_text("x\n")
    wait_until(lambda: site.pact("check", "--nodes", "n1").code == 11, "drift")
    assert site.pact("check", "--nodes", "n[1-2]").code == 11
    diff = ok(site, "diff", "--exit-code", "--nodes", "n[1-2]", code=11)["nodes"]
    assert diff["n1"]["resources"][0]["id"] == f"file:{CONF}" and diff["n2"]["resources"] == []
    watching = subprocess.Popen(
        site.argv(["--json", "watch", "--nodes", "n[2,7-8]"]),
        env=site.env,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stderr is not None and b"n[7-8]: not connected" in watching.stderr.readline()
    time.sleep(0.5)
    site.nodes["n2"].path(CONF).write_text("y\n")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["type"] == "drift_detected"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0
    watching.stdout.close()
    watching.stderr.close()
    log = ok(site, "log", "-n", "2", "--nodes", "n[1-2]")["nodes"]
    assert [len(v) for v in log.values()] == [2, 2]
    answer = ok(site, "rollback", "--all", "--nodes", "n[1-2]")
    assert sorted(answer["nodes"]) == ["n1", "n2"] and has(site, "n1") == "old\n"


if __name__ == "__main__":
    sys.exit(main())
