"""Scenarios of who looks, beside those of ``scenarios.py``."""

from __future__ import annotations

import os
import sys
import tomllib
import urllib.request

from scenarios import CHANGE, CONF, DECLARED, Site, apply, build, group, has, main, ok, scenario, wait_until, write


@scenario
def who_looks_at_a_group_sees_its_members_as_they_are(site: Site) -> None:
    names = build(site, 3)
    gid = apply(site, names)
    assert group(site, gid)["members"] == {"applied": "n[1-3]"}
    site.nodes["n1"].path(CONF).write_text("mine\n")
    assert site.local("n2", "commit", "c1", "-m", "here alone").code == 0

    def told() -> bool:
        states = {name: state for state, name in group(site, gid)["members"].items()}
        return (states.get("n1", "").startswith(f"diverged: file:{CONF} was changed again")
                and states.get("n2", "").startswith("left: "))

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


if __name__ == "__main__":
    sys.exit(main())
