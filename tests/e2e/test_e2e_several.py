"""What several people changed, trials, the end of an emergency, and what a rollback took back."""

from __future__ import annotations

import pytest
from harness import TOP, Agent, wait_until

ANN, BOB = 1234, 1235


@pytest.mark.invariant("C9")
def test_who_is_taken_over_is_named_and_nobody_settles_it_unknowingly(agent: Agent) -> None:
    path = agent.file("hosts", mode=0o666)
    agent.drift_by(ANN, path, "ann's line")
    agent.drift_by(BOB, path, "bob's line")
    wait_until(lambda: agent.change_of(f"file:{path}")["owner"]["uid"] == BOB, "bob has it")
    (change,) = agent.status()["changes"]
    assert [o["uid"] for o in change["also"]] == [ANN]
    (row,) = agent.json("diff")["resources"]
    assert [o["uid"] for o in row["also"]] == [ANN]
    for words in (["rollback", change["id"]], ["commit", change["id"], "-m", "x"], ["rollback", "--all"]):
        done = agent.pact(*words, check=4)
        assert str(ANN) in done.err and "--shared" in done.err, done
    assert agent.world.path(path).read_text() == "bob's line\n"
    agent.pact("rollback", change["id"], "--shared")
    record = agent.newest("rolled_back")
    assert [o["uid"] for o in record["data"]["also"][f"file:{path}"]] == [ANN]


@pytest.mark.invariant("E3")
@pytest.mark.parametrize("how", [["--rollback"], ["--commit", "-m", "night"]])
def test_the_end_of_an_emergency_settles_ones_own_and_what_came_in_it(agent: Agent, how: list[str]) -> None:
    before, during, mine = (agent.file(n, mode=0o666) for n in ("before", "during", "mine"))
    theirs = agent.drift_by(ANN, before, "theirs")
    agent.drift(mine)
    agent.pact("emergency", "start", "--reason", "night")
    agent.drift_by(BOB, during, "night work")
    preview = agent.json("emergency", "end", *how, "--dry-run")
    assert {r for c in preview["would"] for r in c["resources"]} == {f"file:{during}", f"file:{mine}"}
    assert agent.status()["emergency"]
    agent.pact("emergency", "end", *how)
    (left,) = agent.status()["changes"]
    assert (left["id"], left["resources"], left["state"]) == (theirs["id"], [f"file:{before}"], "open")
    assert agent.world.path(before).read_text() == "theirs\n"
    agent.pact("rollback", "--all")


@pytest.mark.invariant("E3")
def test_the_end_of_an_emergency_settles_everything_only_when_told_so(agent: Agent) -> None:
    path = agent.file("before", mode=0o666)
    agent.drift_by(ANN, path, "theirs")
    agent.pact("emergency", "start", "--reason", "night")
    agent.pact("emergency", "end", "--rollback", "--all")
    assert agent.status()["changes"] == [] and agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("T1")
def test_a_trial_is_seen_with_its_end(agent: Agent) -> None:
    path = agent.file("trial.conf")
    agent.drift(path, "trial\n")
    answer = agent.json("commit", "-m", "for a day", "--ttl", "1d")
    (trial,) = agent.status()["trials"]
    assert trial["resource"] == f"file:{path}" and trial["by"] == "root"
    assert trial["ends"][:16] == answer["committed"][0]["expires"][:16]


@pytest.mark.invariant("T1")
@pytest.mark.parametrize("how", ["keep", "end"])
def test_an_earlier_state_takes_no_trial_along_in_silence(agent: Agent, how: str) -> None:
    path, other = agent.file("trial.conf"), agent.file("other.conf")
    earlier = agent.status()["journal"]["seq"]
    agent.drift(path, "trial\n")
    agent.pact("commit", "-m", "for a day", "--ttl", "1d")
    agent.drift(other, "new\n")
    agent.pact("commit", "-m", "for good")
    for words in ([], ["--dry-run"]):
        done = agent.pact("rollback", "--to", str(earlier), *words, check=4)
        assert path in done.err and "--trials" in done.err, done
    agent.pact("rollback", "--to", str(earlier), "--trials", how)
    assert agent.world.path(other).read_text() == "declared\n"
    kept = how == "keep"
    assert agent.world.path(path).read_text() == ("trial\n" if kept else "declared\n")
    assert bool(agent.status()["trials"]) == kept


@pytest.mark.invariant("T1")
def test_whatever_ends_a_trial_says_so(agent: Agent) -> None:
    path, other = agent.file("one.conf"), agent.file("two.conf")
    for name in (path, other):
        agent.drift(name, "trial\n")
        agent.pact("commit", "-m", "for a day", "--ttl", "1d")
    agent.adopt(f"file:{TOP}/*.conf")
    assert len(agent.status()["trials"]) == 2, "what is as it was adopted is no news"
    agent.drift(path, "for good\n")
    assert f"trial of file:{path} has ended" in agent.pact("commit", "-m", "for good").out
    agent.drift(other, "for good\n")
    assert f"ended the trial of file:{other}" in agent.pact("adopt", f"file:{other}").out
    assert agent.status()["trials"] == []


@pytest.mark.invariant("R4")
def test_what_was_rolled_back_is_applied_again_as_a_new_change(agent: Agent) -> None:
    path, gone = agent.file("work.conf"), agent.file("gone.conf")
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.world.sh("echo 77 > /proc/sys/net/ipv4/ip_default_ttl")
    agent.world.path(gone).unlink()
    agent.drift(path, "a night's work\n")
    wait_until(lambda: agent.status()["drifted"] == 3, "all are seen")
    (change,) = agent.status()["changes"]
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "declared\n"
    assert len(agent.json("redo", change["id"], "--dry-run")["plan"]) == 3
    answer = agent.json("redo", change["id"])
    assert answer["change"] not in (None, change["id"]) and len(answer["applied"]) == 3
    assert agent.world.path(path).read_text() == "a night's work\n" and not agent.world.path(gone).exists()
    assert agent.world.sh("cat /proc/sys/net/ipv4/ip_default_ttl").out == "77\n"
    (new,) = agent.status()["changes"]
    assert new["id"] == answer["change"] and new["remaining_s"]
    agent.pact("rollback")
    assert "no rollback of c99" in agent.pact("redo", "c99", check=2).err
    agent.pact("redo", change["id"], uid=ANN, check=3)
    assert TOP in path
