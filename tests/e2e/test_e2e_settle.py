"""commit, rollback, extend: how a person settles changes."""

from __future__ import annotations

import os
import stat
import sys
import time

import pytest
from harness import TOP, Agent, wait_until


def test_nothing_to_settle_is_done_already(agent: Agent) -> None:
    for words in (["commit", "-m", "x"], ["rollback"], ["extend", "5m"]):
        assert f"nothing to {words[0].replace('rollback', 'roll back')}" in agent.pact(*words).out
    assert agent.json("extend", "5m")["extended"] == []


def test_commit_makes_the_actual_state_declared(agent: Agent) -> None:
    path = agent.file("a.conf")
    change = agent.drift(path, "kept\n")
    answer = agent.json("commit", "-m", "because")
    assert answer["committed"][0]["change"] == change["id"] and answer["left"] == []
    assert agent.world.path(path).read_text() == "kept\n"
    record = agent.newest("committed")
    assert record["data"]["message"] == "because" and record["actor"]["role"] == "admin"
    agent.world.path(path).write_text("again\n")
    agent.drifted(f"file:{path}")
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "kept\n"


def test_commit_by_default_settles_only_the_caller_s_own_changes(agent: Agent) -> None:
    mine, other = agent.file("mine.conf"), agent.file("other.conf", mode=0o666)
    theirs = agent.drift_by(1234, other)
    agent.drift(mine)
    answer = agent.json("commit", "-m", "mine")
    assert [r for c in answer["committed"] for r in c["resources"]] == [f"file:{mine}"]
    assert [c["change"] for c in answer["left"]] == [theirs["id"]]
    assert "yours" in agent.pact("commit", "-m", "x", check=1).err
    agent.pact("commit", theirs["id"], "-m", "named")
    assert agent.status()["changes"] == []


def test_commit_all_settles_everybody_s(agent: Agent) -> None:
    mine, other = agent.file("mine.conf"), agent.file("other.conf", mode=0o666)
    agent.drift_by(1234, other)
    agent.drift(mine)
    assert len(agent.json("commit", "--all", "-m", "all")["committed"]) == 2
    assert agent.json("status")["state"] == "committed"


def test_committing_one_resource_splits_the_change_and_the_rest_keeps_its_time(agent: Agent) -> None:
    one, two = agent.file("one.conf"), agent.file("two.conf")
    agent.drift(one)
    before = agent.drift(two)
    agent.pact("commit", f"file:{one}", "-m", "only this")
    (after,) = agent.status()["changes"]
    assert after["resources"] == [f"file:{two}"] and after["id"] == before["id"]
    assert agent.newest("committed")["data"]["split"] is True
    opened = {r["data"]["resource"]: r["data"]["opened_ns"] for r in agent.records("drift_detected")}
    assert opened[f"file:{two}"]


def test_a_ttl_out_of_range_is_refused_and_changes_nothing(agent: Agent) -> None:
    agent.drift(agent.file("ttl.conf"))
    for ttl in ("14m", "11d", "1"):
        assert "between 15m and 10d" in agent.pact("commit", "-m", "x", "--ttl", ttl, check=2).err
    assert len(agent.status()["changes"]) == 1
    agent.pact("commit", "-m", "x", "--ttl", "15m")
    data = agent.newest("committed")["data"]
    assert data["expires"] > agent.newest("committed")["time"]


def test_a_commit_without_a_message_is_refused(agent: Agent) -> None:
    agent.drift(agent.file("m.conf"))
    agent.pact("commit", check=2)
    agent.pact("commit", "-m", "  ", check=2)
    assert len(agent.status()["changes"]) == 1


def test_a_resource_that_requires_an_uncommitted_one_is_not_committed_alone(agent: Agent) -> None:
    one, two = agent.file("base.conf"), agent.file("top.conf")
    agent.declare(f'[file."{two}"]\ncontent = "declared\\n"\nrequires = ["file:{one}"]\n')
    agent.drift(one)
    agent.drift(two)
    assert f"requires file:{one}" in agent.pact("commit", f"file:{two}", "-m", "x", check=4).err
    agent.pact("commit", f"file:{two}", f"file:{one}", "-m", "both")


@pytest.mark.invariant("F25")
def test_commit_answers_4_when_the_machine_moved_on_unseen(agent: Agent) -> None:
    """A write through a mapping gives no event: commit looks again and finds it."""
    path = agent.file("mapped.conf", "0000\n")
    writer = agent.world.popen(
        [
            "python3",
            "-c",
            "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[0:1]=b'1'\n"
            "print('ready',flush=True)\nsys.stdin.readline()\nm[1:2]=b'2'\nprint('done',flush=True)\nsys.stdin.read()",
            path,
        ],
        stdin=-1,
        stdout=-1,
    )
    assert writer.stdout.readline() == b"ready\n"
    agent.world.path(path).chmod(0o600)
    agent.drifted(f"file:{path}")
    wait_until(lambda: agent.json("diff")["resources"][0]["actual"]["mode"] == "0600", "the mode was seen")
    writer.stdin.write(b"\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == b"done\n"
    answer = agent.pact("commit", "-m", "x", check=None)
    if answer.code == 4:  # the rescan may have been there first
        assert "changed again" in answer.err
        agent.pact("commit", "-m", "x")
    agent.world.end(writer)
    assert agent.world.path(path).read_text() == "1200\n"


@pytest.mark.invariant("F25")
def test_a_settled_change_answers_4_and_an_unknown_one_2(agent: Agent) -> None:
    change = agent.drift(agent.file("once.conf"))
    agent.pact("commit", change["id"], "-m", "x")
    assert "settled already" in agent.pact("commit", change["id"], "-m", "x", check=4).err
    assert "settled already" in agent.pact("rollback", change["id"], check=4).err
    agent.pact("commit", "c999", "-m", "x", check=2)
    agent.pact("commit", "file:/nowhere", "-m", "x", check=2)


@pytest.mark.invariant("F25")
def test_commit_after_the_rollback_has_begun_answers_4(agent: Agent) -> None:
    """mount(8) finds a helper of ours that waits, so that the restore takes long enough to ask for a commit."""
    point, go = f"{TOP}/slow", f"{TOP}/go"
    helper = f"#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec mount -i -t tmpfs -o size=1m slow {point}\n"
    agent.world.path("/srv/mount.tmpfs").write_text(helper)
    agent.world.sh(f"mkdir {point}; mount -t tmpfs -o size=1m slow {point}")
    agent.adopt(f"mount:{point}")
    agent.world.sh(
        f"chmod 755 {TOP}/mount.tmpfs; umount {point}; mkdir -p {TOP}/lower {TOP}/up {TOP}/work;"
        f"mv {TOP}/mount.tmpfs {TOP}/up; d=$(readlink -f /sbin);"
        f"mount -t overlay -o lowerdir=$d,upperdir={TOP}/up,workdir={TOP}/work overlay $d"
    )
    try:
        change = agent.drifted(f"mount:{point}")
        roll = agent.world.popen([sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback"])
        wait_until(lambda: agent.status()["changes"][0]["state"] == "rolling_back", "the rollback has begun")
        for words in (["commit", "-m", "x"], ["commit", change["id"], "-m", "x"], ["extend", "1m"], ["rollback"]):
            assert "too late" in agent.pact(*words, check=4).err
        agent.world.sh(f"touch {go}")
        assert roll.wait(20) == 0
        agent.settled(f"mount:{point}")
    finally:
        agent.world.sh(f"touch {go}; umount $(readlink -f /sbin); umount {point}")


def test_rollback_restores_declared_content_and_keeps_what_it_replaced(agent: Agent) -> None:
    path = agent.file("r.conf", "declared\n")
    agent.drift(path, "somebody's work\n")
    answer = agent.json("rollback")
    assert answer["rolled_back"][0]["restored"] == [f"file:{path}"]
    assert agent.world.path(path).read_text() == "declared\n"
    seq = str(agent.newest("rollback_started")["seq"])
    agent.pact("show", seq, "--restore", str(agent.base / "work"))
    assert (agent.base / "work").read_text() == "somebody's work\n"
    assert stat.S_IMODE(os.stat(agent.base / "work").st_mode) == 0o600
    assert "exists already" in agent.pact("show", seq, "--restore", str(agent.base / "work"), check=2).err
    (agent.base / "work").unlink()


def test_rollback_dry_run_shows_the_plan_and_who_is_in_the_way(agent: Agent) -> None:
    path = agent.file("dry.conf")
    agent.drift(path)
    holder = agent.world.python(f"f = open({path!r})\nready()")
    answer = agent.json("rollback", "--dry-run", check=10)
    (found,) = answer["rolled_back"]
    assert [s["id"] for s in found["plan"]] == [f"file:{path}"] and found["consumers"][0]["pid"] == holder.pid
    assert agent.world.path(path).read_text() == "drifted\n"
    assert agent.newest("rollback_blocked") is None or agent.change_of(f"file:{path}")["state"] == "open"
    agent.world.end(holder)


def test_rollback_of_one_resource_leaves_the_rest_of_the_change(agent: Agent) -> None:
    one, two = agent.file("one.conf"), agent.file("two.conf")
    agent.drift(one)
    agent.drift(two)
    agent.pact("rollback", f"file:{one}")
    assert agent.world.path(one).read_text() == "declared\n"
    assert agent.world.path(two).read_text() == "drifted\n"
    assert agent.change_of(f"file:{two}")["state"] == "open"


def test_rollback_to_an_earlier_record_brings_back_what_was_declared_then(agent: Agent) -> None:
    one, two = agent.file("one.conf", "first\n"), agent.file("two.conf", "first\n")
    then = agent.status()["journal"]["seq"]
    agent.drift(one, "second\n")
    agent.drift(two, "second\n")
    agent.pact("commit", "-m", "second")
    three = agent.file("three.conf")
    dry = agent.json("rollback", "--to", str(then), "--dry-run")
    assert dry["dry_run"] and agent.world.path(one).read_text() == "second\n"
    agent.pact("rollback", "--to", str(then), f"file:{one}")
    assert agent.world.path(one).read_text() == "first\n" and agent.world.path(two).read_text() == "second\n"
    agent.pact("rollback", "--to", str(then))
    assert agent.world.path(two).read_text() == "first\n"
    assert agent.status()["declared"] == 2, "what was not declared then is forgotten"
    assert agent.world.path(three).exists(), "but never deleted"
    assert "there is no record" in agent.pact("rollback", "--to", "999999", check=2).err
    agent.pact("rollback", "--to", str(then), "file:/nowhere", check=2)


def test_extend_moves_a_deadline_later(agent: Agent) -> None:
    change = agent.drift(agent.file("e.conf"))
    answer = agent.json("extend", "10m")
    assert answer["extended"][0]["change"] == change["id"]
    later = agent.status()["changes"][0]
    assert later["remaining_s"] == pytest.approx(change["remaining_s"] + 600, abs=5)
    agent.pact("extend", change["id"], "90")
    assert agent.status()["changes"][0]["remaining_s"] == pytest.approx(change["remaining_s"] + 690, abs=5)
    agent.pact("extend", "11d", check=2)
    agent.pact("extend", "soon", check=2)
    agent.pact("extend", "c999", "1m", check=2)


def test_extend_reopens_a_blocked_change(agent: Agent) -> None:
    path = agent.file("blocked.conf")
    agent.drift(path)
    holder = agent.world.python(f"f = open({path!r})\nready()")
    agent.pact("rollback", check=10)
    assert agent.status()["state"] == "blocked"
    agent.pact("extend", "1m")
    (change,) = agent.status()["changes"]
    assert change["state"] == "open" and change["consumers"] == [] and change["remaining_s"] > 60
    agent.world.end(holder)


def test_drift_that_clears_by_itself_settles_its_change(agent: Agent) -> None:
    path = agent.file("back.conf")
    agent.drift(path)
    agent.world.path(path).write_text("declared\n")
    agent.settled(f"file:{path}")
    assert agent.newest("drift_cleared")["data"]["resource"] == f"file:{path}"


@pytest.mark.invariant("F18")
def test_a_file_in_constant_motion_does_not_flood_the_journal(agent: Agent) -> None:
    path = agent.file("motion.conf")
    seq = agent.status()["journal"]["seq"]
    end = time.monotonic() + 2
    count = 0
    while time.monotonic() < end:
        agent.world.path(path).write_text(f"{count}\n")
        count += 1
        time.sleep(0.002)
    agent.drifted(f"file:{path}")
    wait_until(
        lambda: f"+{count - 1}\n" in (agent.json("diff")["resources"][0]["diff"] or ""), "the last state was seen"
    )
    assert agent.status()["journal"]["seq"] - seq < count / 4
