"""Who reads what was restored is told of it, once, after the plan; who could not be told leaves the change failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import BOX, TOP, Agent, World, wait_until
from test_e2e_toy import PAINT

ONE, TWO = f"{TOP}/one.conf", f"{TOP}/two.conf"
DECLARED = f"""
[file."{ONE}"]
content = "declared\\n"
notify = ["toy:bear show", "toy:duck show"]
[file."{TWO}"]
content = "declared\\n"
notify = ["toy:bear show"]
"""


@pytest.fixture
def agent(toys: World, make_agent: Callable[..., Agent]) -> Iterator[Agent]:
    made = make_agent()
    made.start()
    made.declare(DECLARED)
    yield made
    made.close()


def told(agent: Agent) -> list[str]:
    """What the toys were told since the last time."""
    path = agent.world.path(f"{BOX}/.told")
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
    finally:
        path.unlink(missing_ok=True)


def lock(agent: Agent, name: str, locked: bool = True) -> None:
    path = agent.world.path(f"{BOX}/.{name}-locked")
    path.touch() if locked else path.unlink()


@pytest.mark.invariant("R14")
def test_each_is_told_once_in_its_kind_s_order_after_every_sort_of_plan(agent: Agent) -> None:
    assert told(agent) == ["duck show", "bear show"], "a declaration that moved both files"
    agent.declare(DECLARED)
    assert told(agent) == [], "nothing was moved"
    agent.drift(TWO)
    agent.drift(ONE)
    agent.pact("rollback", "--all")
    assert told(agent) == ["duck show", "bear show"]
    agent.drift(TWO)
    agent.pact("rollback", "--all")
    assert told(agent) == ["bear show"], "what only the other file tells is not told"
    other = agent.base / "apply.toml"
    other.write_text(f'[file."{TWO}"]\ncontent = "applied\\n"\n')
    agent.pact("apply", str(other))
    assert told(agent) == ["bear show"], "an application that does not say tells whom the declaration names"
    agent.pact("rollback", "--all", "--dry-run")
    assert told(agent) == []
    agent.pact("rollback", "--all")
    assert told(agent) == ["bear show"]
    assert 'notify = ["toy:bear show"]' in agent.pact("export").out


@pytest.mark.invariant("R14")
def test_who_cannot_be_told_leaves_the_change_failed_until_it_is(agent: Agent) -> None:
    told(agent)
    lock(agent, "duck")
    agent.drift(ONE)
    done = agent.pact("rollback", "--all", check=1)
    assert f"file:{ONE}: restored, but toy:duck show failed: it is locked in" in done.out
    assert "not restored" not in done.out
    assert told(agent) == ["bear show"], "the others are told all the same"
    assert agent.world.path(ONE).read_text() == "declared\n"
    for _ in range(2):
        (change,) = agent.status()["changes"]
        assert change["state"] == "failed" and "restored, but toy:duck show failed" in change["reason"]
        assert change["resources"] == [f"file:{ONE}"]
        agent.restart()
    agent.pact("rollback", "--all", check=1)
    lock(agent, "duck", False)
    told(agent)
    agent.pact("rollback", "--all")
    assert told(agent) == ["duck show"], "who was told already is not told again"
    assert agent.status()["state"] == "committed"


@pytest.mark.invariant("R14")
def test_who_cannot_be_told_of_a_declaration_is_told_with_a_rollback(agent: Agent) -> None:
    told(agent)
    lock(agent, "duck")
    other = DECLARED.replace('"declared\\n"', '"declared otherwise\\n"')
    done = agent.declare(other, check=1)
    assert f"file:{ONE}: restored, but toy:duck show failed: it is locked in" in done.out
    assert told(agent) == ["bear show"]
    (change,) = agent.status()["changes"]
    assert (change["state"], change["resources"]) == ("failed", [f"file:{ONE}"])
    agent.restart()
    assert agent.status()["changes"][0]["state"] == "failed"
    lock(agent, "duck", False)
    agent.pact("rollback", "--all")
    assert told(agent) == ["duck show"] and agent.status()["state"] == "committed"
    assert agent.world.path(ONE).read_text() == "declared otherwise\n"


@pytest.mark.invariant("R14", "R6")
def test_a_kill_between_a_declaration_and_telling_loses_no_notification(agent: Agent) -> None:
    """The toy's notification blocks on a pipe: the agent is killed there."""
    told(agent)
    agent.world.sh(f"rm -f {BOX}/.told; mkfifo {BOX}/.told")
    path = agent.base / "otherwise.toml"
    path.write_text(DECLARED.replace('"declared\\n"', '"declared otherwise\\n"'))
    asking = agent.world.popen([*agent_command(agent), "declare", str(path)])
    wait_until(lambda: agent.world.path(TWO).read_text() == "declared otherwise\n", "it is as declared")
    agent.stop(9)
    asking.wait(30)
    agent.world.sh(f"rm {BOX}/.told")
    agent.start()
    wait_until(lambda: agent.status()["state"] == "committed", "the rollback has ended")
    assert told(agent) == ["duck show", "bear show"]


@pytest.mark.invariant("R14")
def test_a_failed_notification_may_be_accepted_as_it_is(agent: Agent) -> None:
    lock(agent, "duck")
    agent.drift(ONE)
    agent.pact("rollback", "--all", check=1)
    agent.pact("commit", "--all", "-m", "the duck was reloaded by hand")
    assert agent.status()["state"] == "committed"
    assert 'notify = ["toy:bear show", "toy:duck show"]' in agent.pact("export").out


@pytest.mark.invariant("R14", "C7")
def test_an_application_whose_notification_fails_is_taken_back(agent: Agent) -> None:
    lock(agent, "duck")
    other = agent.base / "apply.toml"
    other.write_text(f'[file."{ONE}"]\ncontent = "applied\\n"\n')
    done = agent.pact("apply", str(other), check=1)
    assert "toy:duck show failed" in done.err + done.out
    assert agent.world.path(ONE).read_text() == "declared\n"


@pytest.mark.invariant("R14", "F5")
def test_who_uses_what_is_told_blocks_the_plan(agent: Agent) -> None:
    agent.declare(DECLARED.replace("bear show", "bear wash").replace("duck show", "duck wash"))
    told(agent)
    agent.drift(TWO)
    player = agent.world.python("f = open(sys.argv[1]); ready()", f"{BOX}/bear")
    done = agent.pact("rollback", "--all", check=10)
    assert "toy:bear used by" in done.err and agent.world.path(TWO).read_text() == "drifted\n"
    agent.world.end(player)
    agent.pact("rollback", "--all")
    assert told(agent) == ["bear wash"]


@pytest.mark.invariant("R14", "R6")
def test_a_kill_between_restoring_and_telling_loses_no_notification(agent: Agent, tmp_path: Path) -> None:
    """The toy's notification blocks on a pipe: the agent is killed there."""
    told(agent)
    agent.drift(TWO)
    agent.world.sh(f"rm -f {BOX}/.told; mkfifo {BOX}/.told")
    asking = agent.world.popen(
        [*agent_command(agent), "rollback", "--all"],
    )
    wait_until(lambda: agent.world.path(TWO).read_text() == "declared\n", "it is restored")
    agent.stop(9)
    asking.wait(30)
    agent.world.sh(f"rm {BOX}/.told")
    agent.start()
    wait_until(lambda: agent.status()["state"] == "committed", "the rollback has ended")
    assert told(agent) == ["bear show"]


@pytest.mark.invariant("R14")
def test_a_write_before_the_plan_has_answered_does_not_end_what_is_owed(agent: Agent) -> None:
    """The duck cannot be told; while the bear is told, somebody paints it, and later paints it as declared again."""
    told(agent)
    lock(agent, "duck")
    bear = agent.world.path(f"{BOX}/bear")
    bear.write_text("green\n")
    agent.world.sh(f"rm -f {BOX}/.told; mkfifo {BOX}/.told")
    other = agent.base / "bear.toml"
    other.write_text('[toy.bear]\ncolour = "red"\nnotify = ["toy:duck show", "toy:bear show"]\n')
    asking = agent.world.popen([*agent_command(agent), "declare", str(other)])
    wait_until(lambda: bear.read_text() == "red\n", "it is moved")
    bear.write_text("blue\n")
    assert agent.world.sh(f"cat {BOX}/.told").out == "bear show\n"
    assert asking.wait(30) == 1
    agent.world.sh(f"rm {BOX}/.told")
    wait_until(lambda: agent.change_of("toy:bear"), "it has drifted")
    painter = agent.world.python(PAINT, BOX, "bear", "red", "bear")
    failed = wait_until(lambda: [c for c in agent.status()["changes"] if c["state"] == "failed"], "it is not forgotten")
    agent.world.end(painter)
    assert "restored, but toy:duck show failed" in failed[0]["reason"]
    lock(agent, "duck", False)
    told(agent)
    agent.pact("rollback", failed[0]["id"])
    assert told(agent) == ["duck show"] and agent.status()["state"] == "committed"


@pytest.mark.invariant("R14")
def test_who_reads_what_was_moved_and_did_not_stay_so_is_told_when_it_does(agent: Agent) -> None:
    """The paint fades at once: the bear is not as declared, and not as it was. Then somebody paints it by hand."""
    bear, fades = agent.world.path(f"{BOX}/bear"), agent.world.path(f"{BOX}/.bear-fades")
    bear.write_text("green\n")
    told(agent)
    fades.touch()
    done = agent.declare('[toy.bear]\ncolour = "red"\nnotify = ["toy:duck show"]\n', check=1)
    assert "it was restored but does not stay so" in done.out + done.err and told(agent) == []
    fades.unlink()
    lock(agent, "duck")
    painter = agent.world.python(PAINT, BOX, "bear", "red", "bear")
    failed = wait_until(lambda: [c for c in agent.status()["changes"] if c["state"] == "failed"], "it is not forgotten")
    agent.world.end(painter)
    assert failed[0]["resources"] == ["toy:bear"]
    lock(agent, "duck", False)
    agent.restart()
    agent.pact("rollback", failed[0]["id"])
    assert told(agent) == ["duck show"] and agent.status()["state"] == "committed"


@pytest.mark.invariant("R14", "R10")
def test_a_rollback_that_leaves_only_what_it_took_along_names_a_change_that_is_there(agent: Agent) -> None:
    """A link stands in for the directory; its file is brought back with it, and its reader cannot be told."""
    directory, beside = f"{TOP}/dir", f"{TOP}/beside"
    agent.world.sh(f"mkdir -p {directory} {beside}; echo declared > {directory}/a; cp -p {directory}/a {beside}/a")
    agent.declare(
        f'[file."{directory}"]\ntype = "directory"\n'
        f'[file."{directory}/a"]\ncontent = "declared\\n"\nnotify = ["toy:duck show"]\n'
    )
    told(agent)
    agent.world.sh(f"rm -r {directory}; ln -s {beside} {directory}")
    was = wait_until(lambda: agent.change_of(f"file:{directory}"), "it has drifted")["id"]
    lock(agent, "duck")
    answer = agent.json("rollback", was, check=1)
    (done,) = answer["rolled_back"]
    assert (done["state"], done["was"], done["left"].keys()) == ("failed", was, {f"file:{directory}/a"})
    (left,) = agent.status()["changes"]
    assert done["change"] == left["id"] and f"that stays as {left['id']}" in str(answer)
    agent.pact("rollback", was, check=4)
    lock(agent, "duck", False)
    agent.pact("rollback", left["id"])
    assert told(agent) == ["duck show"] and agent.status()["state"] == "committed"


@pytest.mark.invariant("R14", "C6")
def test_who_commits_another_value_does_not_end_what_is_owed(agent: Agent) -> None:
    told(agent)
    lock(agent, "duck")
    agent.declare(DECLARED.replace('"declared\\n"', '"declared otherwise\\n"'), check=1)
    agent.drift(ONE)
    lock(agent, "duck", False)
    told(agent)
    agent.pact("commit", "--all", "-m", "mine")
    wait_until(lambda: agent.status()["state"] == "committed", "who is owed it was told")
    assert told(agent) == ["duck show"] and agent.world.path(ONE).read_text() == "drifted\n"


@pytest.mark.invariant("R14", "R6")
def test_a_kill_between_an_application_and_telling_loses_no_notification(agent: Agent) -> None:
    """It is killed while it tells; then somebody writes back what was there."""
    told(agent)
    agent.world.sh(f"rm -f {BOX}/.told; mkfifo {BOX}/.told")
    other = agent.base / "apply.toml"
    other.write_text(f'[file."{TWO}"]\ncontent = "applied\\n"\n')
    asking = agent.world.popen([*agent_command(agent), "apply", str(other)])
    path = agent.world.path(TWO)
    wait_until(lambda: path.read_text() == "applied\n", "it is applied")
    agent.stop(9)
    asking.wait(30)
    agent.world.sh(f"rm {BOX}/.told")
    agent.start()
    wait_until(lambda: agent.change_of(f"file:{TWO}"), "it has drifted")
    assert told(agent) == []
    path.write_text("declared\n")
    wait_until(lambda: agent.status()["state"] == "committed", "it is as declared, and they were told")
    wait_until(lambda: agent.world.path(f"{BOX}/.told").exists(), "they were told")
    assert told(agent) == ["bear show"]


@pytest.mark.invariant("R14", "E1")
def test_who_was_not_told_before_a_kill_in_an_emergency_is_told_after_it(agent: Agent) -> None:
    told(agent)
    agent.pact("emergency", "start", "--reason", "maintenance")
    agent.world.sh(f"rm -f {BOX}/.told; mkfifo {BOX}/.told")
    path = agent.base / "otherwise.toml"
    path.write_text(DECLARED.replace('"declared\\n"', '"declared otherwise\\n"'))
    asking = agent.world.popen([*agent_command(agent), "declare", str(path)])
    wait_until(lambda: agent.world.path(TWO).read_text() == "declared otherwise\n", "it is as declared")
    agent.stop(9)
    asking.wait(30)
    agent.world.sh(f"rm {BOX}/.told")
    agent.start()
    assert told(agent) == []
    assert f"who reads file:{ONE}, file:{TWO} is not told of it until the emergency ends" in agent.pact("status").out
    agent.pact("emergency", "end", "--rollback")
    wait_until(lambda: told(agent) == ["duck show", "bear show"], "they were told")
    wait_until(lambda: agent.status()["state"] == "committed", "and that is all")


def agent_command(agent: Agent) -> list[Any]:
    import sys

    return [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket]


@pytest.mark.parametrize(
    ("notification", "why"),
    [
        ("toy:bear tickle", "it can be: toy:bear wash, toy:bear show"),
        ("bear show", "kind"),
        ("lamp:x on", "kind 'lamp' is not known"),
        ("sysctl:vm.swappiness reload", "cannot be asked of a sysctl"),
        ("toy:a-b show", "a toy has a simple name"),
    ],
)
def test_a_notification_that_nobody_could_be_told_is_refused(agent: Agent, notification: str, why: str) -> None:
    done = agent.declare(f'[file."{ONE}"]\ncontent = "x"\nnotify = ["{notification}"]\n', check=2)
    assert "notify" in done.err and why in done.err, done
