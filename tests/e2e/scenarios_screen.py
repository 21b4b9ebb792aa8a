"""Scenarios of what people see of many nodes, beside those of ``scenarios.py``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

from scenarios import CONF, Site, apply, build, group, has, main, ok, scenario, wait_until


@scenario
def keys_of_the_wrong_kind_are_refused_and_the_right_kind_is_named(site: Site) -> None:
    build(site, 1, middle=["agg"])
    site.sh("n1", "true")
    for person, kind in (("n1", "node"), ("agg", "aggregator"), ("root", "aggregator"), ("sub", "")):
        for server in ("root", "agg"):
            site.write_client(person, [server])
            for words in (["nodes"], ["status", "--nodes", "n1"], ["commit", "--all", "-m", "x", "--nodes", "n1"]):
                done = site.pact(*words)
                assert done.code == 3 and "viewer, ops or admin" in done.err, (person, words, done)
                assert f"for a {kind}" in done.err if kind else "does not know the key" in done.err, done
    site.write_client("eve", ["root"])
    done = site.pact("commit", "--all", "-m", "x", "--nodes", "n1")
    assert done.code == 3 and "ops" in done.out + done.err, done
    site.write_client("ann", ["root"])
    assert site.pact("nodes").code == 0


@scenario
def a_node_whose_key_nobody_knows_says_so(site: Site) -> None:
    build(site, 1)
    script = "import sys; from pact.net.keys import keygen; keygen('n9', sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(site.keys)], env=site.env, check=True)
    site.make_node("n9", 9)
    site.start_agent("n9", ["root"])
    log = site.work / "n9.log"
    wait_until(lambda: "does not know the key of this node" in log.read_text(), "it says that it is refused", 20)
    assert site.public("n9") in log.read_text() and "role node" in log.read_text()
    status = site.local("n9", "--json", "status").json()["cluster"]
    assert status["connected"] is False and "does not know the key" in status["refused"]
    assert "does not know the key" in site.local("n9", "status").out
    site.roles.append(("n9", "node"))
    site.authorize(name for name, _ in site.roles)
    wait_until(lambda: "n9" in site.connected(), "it is let in when its key is known", 60)
    assert "refused" not in site.local("n9", "--json", "status").json()["cluster"]
    assert log.read_text().count("does not know the key") == 1, "said once"


@scenario
def a_diverged_member_has_ways_back(site: Site) -> None:
    names = build(site, 3)

    def states(gid: str) -> str:
        return str(group(site, gid)["members"])

    def diverged() -> str:
        gid = apply(site, names)
        site.nodes["n1"].path(CONF).write_text("mine\n")
        wait_until(lambda: "diverged" in states(gid), states(gid))
        assert ok(site, "commit", gid, "-m", "all", code=4)
        return gid

    gid = diverged()  # the group is right
    site.nodes["n1"].path(CONF).write_text("new\n")
    wait_until(lambda: "diverged" not in states(gid), states(gid))
    ok(site, "commit", gid, "-m", "all")
    ok(site, "declare", str(site.work / "declared.toml"), "--nodes", "n[1-3]")
    gid = diverged()  # the node is right
    ok(site, "commit", gid, "-m", "all", "--allow-missing", "n1", code=4)
    site.nodes["n1"].path(CONF).write_text("new\n")
    wait_until(lambda: "diverged" not in states(gid), states(gid))
    ok(site, "commit", gid, "-m", "all")
    site.nodes["n1"].path(CONF).write_text("mine\n")
    wait_until(lambda: site.local("n1", "check").code == 11, "drift")
    ok(site, "commit", f"file:{CONF}", "-m", "needed so", "--nodes", "n1")
    assert (has(site, "n1"), has(site, "n2")) == ("mine\n", "new\n")
    ok(site, "declare", str(site.work / "declared.toml"), "--take", "--nodes", "n[1-3]")
    gid = diverged()  # neither
    ok(site, "rollback", gid)
    wait_until(lambda: all(has(site, n) == "old\n" for n in names), "all is restored")


@scenario
def equal_nodes_stand_on_one_line(site: Site) -> None:
    build(site, 3)
    site.nodes["n1"].path(CONF).write_text("x\n")  # so that n1 counts another change
    wait_until(lambda: site.local("n1", "check").code == 11, "drift")
    site.local("n1", "commit", "--all", "-m", "here alone")
    for name in ("n1", "n2", "n3"):
        site.nodes[name].path(CONF).write_text("drifted\n")
        wait_until(lambda name=name: site.local(name, "check").code == 11, "drift")  # type: ignore[misc]
    ids = {n: site.local(n, "--json", "status").json()["changes"][0]["id"] for n in ("n1", "n2")}
    assert ids["n1"] != ids["n2"]
    out = site.pact("status", "--nodes", "n[1-3]").out.splitlines()
    assert out[0] == "3 drifted" and any(line.startswith("n[1-3] (3): drifted") for line in out), out
    assert re.search(r"until \d{4}-\d\d-\d\dT\d\d:\d\dZ", out[1]) and len(out) == 2, out
    whole = site.pact("status", "-v", "--nodes", "n[1-3]").out
    assert ids["n1"] in whole and ids["n2"] in whole
    diff = site.pact("diff", "--nodes", "n[1-3]")
    assert diff.out.startswith(f"file:{CONF}\n") and diff.out.count("+drifted") == 2 and "n[2-3] (2)" in diff.out, diff
    assert site.pact("diff", "--exit-code", "--nodes", "n[1-3]").code == 11
    assert "needs a decision" not in site.pact("check", "--nodes", "n[1-3]").out
    done = site.pact("rollback", "--all", "--nodes", "n[1-3]")
    assert "n[1-3] (3)" in done.out and done.out.count("rolled back") == 1, done
    log = site.pact("log", "--type", "rolled_back", "--nodes", "n[1-3]").out.splitlines()
    assert len(log) == 1 and "n[1-3] (3): rolled_back" in log[0] and "by ann" in log[0], log


@scenario
def an_aggregator_that_is_stopped_ends_no_command_late(site: Site) -> None:
    build(site, 2)
    process = site.aggregators["root"]
    site.nodes["n2"].agent.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    done = site.pact("status", "--nodes", "n[1-2]", "--timeout", "3")
    assert done.code == 5 and "n1" in done.out and "n2" in done.err and time.monotonic() - began_s < 8, done
    site.nodes["n2"].agent.send_signal(signal.SIGCONT)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for words in (
            ["status", "--nodes", "n1"],
            ["check", "--nodes", "n1"],
            ["nodes"],
            ["groups"],
            ["watch", "--nodes", "n1"],
            ["hold", "place", "--all", "--reason", "x", "--for", "1h"],
        ):
            began_s = time.monotonic()
            done = site.pact(*words, "--timeout", "1")
            assert done.code == 5 and time.monotonic() - began_s < 6, (words, done)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: site.pact("nodes").code == 0, "it goes on")


if __name__ == "__main__":
    sys.exit(main())
