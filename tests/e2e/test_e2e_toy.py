"""A kind that comes with a package of its own: pact has never heard of it, and it is declared, adopted, seen by its own
source of events, rolled back and exported like any other; and its journal can be read when it is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import BOX, REPOSITORY, TOP, Agent, World, wait_until

PAINT = """
import os, socket, sys
with open(os.path.join(sys.argv[1], sys.argv[2]), "w") as f:
    f.write(sys.argv[3] + "\\n")
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(sys.argv[4].encode(), os.path.join(sys.argv[1], ".painted"))
ready()
"""


@pytest.fixture
def agent(toys: World, make_agent: Callable[..., Agent]) -> Iterator[Agent]:
    made = make_agent(observe={"rescan": "1h"})  # what is seen in time is seen by its source
    made.start()
    yield made
    made.close()


def paint(agent: Agent, name: str, colour: str, said: str = "") -> Any:
    """By a process that stays until it is seen."""
    painter = agent.world.python(PAINT, BOX, name, colour, said or name)
    try:
        return agent.drifted(f"toy:{name}")
    finally:
        agent.world.end(painter)


def test_it_is_adopted_seen_by_its_source_with_its_writer_and_rolled_back(agent: Agent) -> None:
    assert agent.adopt("toy:*")["adopted"] == 2
    change = paint(agent, "bear", "green")
    assert (change["resources"], change["owner"]["user"]) == (["toy:bear"], "root")
    (shown,) = agent.json("diff")["resources"]
    assert (shown["declared"], shown["actual"]) == ({"colour": "red"}, {"colour": "green"})
    status = agent.status()
    assert status["drifted"] == 1
    assert "toy:bear" in agent.pact("rollback", "--all", "--dry-run").out
    agent.pact("rollback", "--all")
    assert agent.world.path(f"{BOX}/bear").read_text() == "red\n"
    wait_until(lambda: agent.status()["state"] == "committed", "it is as declared")


def test_what_its_source_has_missed_concerns_its_own_resources_only(agent: Agent) -> None:
    agent.world.path(f"{TOP}/note").write_text("a")
    agent.adopt("toy:*", f"file:{TOP}/note")
    paint(agent, "duck", "green", said="!")
    assert agent.status()["drifted"] == 1
    assert not any(r["data"].get("observer") for r in agent.records("observer_blind"))
    agent.pact("rollback", "--all")
    agent.world.path(f"{TOP}/note").unlink()


def test_it_is_declared_in_toml_refused_where_it_is_wrong_and_exported(agent: Agent) -> None:
    good, bad = agent.base / "toys.toml", agent.base / "bad.toml"
    good.write_text('[toy]\nbear = "blue"\n[toy.duck]\ncolour = "red"\nconsumers = ["none"]\n')
    bad.write_text('[toy]\nbear = "plaid"\n')
    refused = agent.pact("declare", str(bad), check=2).err
    assert "bad.toml:2" in refused and "a toy is red, green, blue or absent" in refused
    agent.pact("declare", str(good))
    assert agent.world.path(f"{BOX}/bear").read_text() == "blue\n"
    out = agent.pact("export").out
    assert "[toy]" in out and 'bear = "blue"' in out
    again = agent.base / "again.toml"
    again.write_text(out)
    agent.pact("declare", str(again))
    assert agent.status()["state"] == "committed"


def test_its_ignored_names_never_drift_and_it_says_which_comes_first(agent: Agent) -> None:
    dusty, both = agent.base / "dusty.toml", agent.base / "both.toml"
    dusty.write_text('[toy]\ndusty = "blue"\n')
    assert "ignored by the pattern 'toy:dust*'" in agent.pact("declare", str(dusty), check=2).err
    agent.world.sh(f"echo red > {BOX}/dusty")
    assert agent.adopt("toy:*")["adopted"] == 2, "and not the third"
    both.write_text('[toy]\nbear = "blue"\nduck = "green"\n')
    plan = agent.json("apply", str(both), "--dry-run")["plan"]
    assert [s["id"] for s in plan] == ["toy:duck", "toy:bear"]


def test_its_severity_can_be_configured_and_a_wrong_name_is_refused(
    toys: World, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(drift={"severity": {"toy": 0.9}})
    agent.start()
    agent.adopt("toy:*")
    change = paint(agent, "bear", "green")
    assert change["magnitude"] == pytest.approx(0.9 * 2.0**0.5, rel=1e-5), (
        "its severity, by the weight of its dimension"
    )
    agent.close()
    wrong = make_agent(drift={"severity": {"toi": 0.9}})
    assert "toi" in wrong.refuses_to_start().err


def test_when_it_is_gone_its_journal_is_readable_and_nobody_ends(agent: Agent) -> None:
    note = agent.world.path(f"{TOP}/note")
    note.write_text("a")
    agent.adopt("toy:*", f"file:{TOP}/note")
    paint(agent, "bear", "green")
    agent.stop()
    agent.world.env = {"TOY_BOX": BOX}  # the package is not there any more
    agent.start()
    status = agent.status()
    assert status["unreadable"] == 2 and status["declared"] == 3
    assert agent.change_of("toy:bear"), "what has drifted stays somebody's"
    assert "the kind 'toy' is not installed" in agent.pact("status", "-v").out
    agent.drift(f"{TOP}/note", "b")
    agent.pact("rollback", f"file:{TOP}/note")
    assert note.read_text() == "a"
    assert "is not installed" in agent.pact("rollback", "--all", check=None).err
    assert "left out: its kind is not installed" in agent.pact("export").out
    assert agent.pact("journal", "verify", str(agent.journal)).code == 0
    assert "toy:bear" in agent.pact("log").out
    assert "toy" in agent.pact("adopt", "toy:*", check=2).err
    agent.stop()
    note.unlink()


def test_a_package_that_cannot_be_loaded_keeps_the_agent_from_starting_and_is_named(
    toys: World, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    tmp_path.chmod(0o755)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[pact.kinds]\nlamp = nowhere:KIND\n")
    toys.env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    said = make_agent().refuses_to_start(cold=True)
    assert said.code != 0 and "lamp" in said.err and "cannot be loaded" in said.err and "Traceback" not in said.err


@pytest.mark.invariant("S9")
def test_a_package_that_others_could_have_written_is_not_run(agent: Agent, package: Path) -> None:
    agent.stop()
    code = package / "pact_toy" / "__init__.py"
    code.chmod(0o666)
    try:
        said = agent.refuses_to_start(cold=True)
    finally:
        code.chmod(0o644)
    assert said.code != 0 and str(code) in said.err and "package of the kind 'toy'" in said.err, said
    agent.start()


def test_a_source_that_breaks_costs_its_own_kind_its_events_and_is_said(agent: Agent) -> None:
    note = agent.world.path(f"{TOP}/note")
    note.write_text("a")
    agent.adopt("toy:*", f"file:{TOP}/note")
    agent.world.sh(
        f'{sys.executable} -c "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); '
        f"s.sendto(bytes([255]), '{BOX}/.painted')\""
    )
    wait_until(lambda: "UnicodeDecodeError" in str(agent.status()["observers"]), "it is said")
    assert "the source of events of kind toy is given up" in agent.log()
    assert agent.ask("ping")["ok"]
    agent.drift(f"{TOP}/note", "b")
    agent.pact("rollback", "--all")
    note.unlink()
