"""Each request stands once, in ``pact.core.ops``; whatever carries one out, asks one or documents one agrees with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.link import HERE_ONLY
from pact.agent.requests import ALL_FIELDS, FIELDS, Requests
from pact.cli.main import build
from pact.core import ops
from pact.core.node.step import _OPS
from pact.core.roles import BY_GROUP, RANK
from pact.core.root.log import RootState
from pact.core.root.questions import NODE_OPS, SETTLING
from pact.core.root.root import Root
from pact.core.tree.member import ONCE
from pact.errors import EXIT_DENIED
from pact.model import Declared
from pact.sim.cluster import CommaSets
from pact.sim.parts import person
from pact.sim.world import World

ROOT = Path(__file__).parent.parent
#: A value for each field that must be given.
GIVEN: dict[str, Any] = {
    "by_ns": 10**9,
    "resources": {},
    "patterns": ["sysctl:net.*"],
    "change": "c1",
    "fence": 1,
    "seq": 1,
    "group": "g1",
    "message": "m",
    "left_ns": 1,
    "action": "commit",
    "ballot": 1,
    "decision": "abort",
    "holds": [],
    "resource": "file:/x",
    "job": "71",
}
#: What the shell makes another request of before the core hears it.
BY_THE_SHELL = {"redo"}


def below(cls: type[ops.Op]) -> set[type[ops.Op]]:
    found = set(cls.__subclasses__())
    return found.union(*map(below, found))


def test_each_class_has_a_name_by_which_it_is_asked() -> None:
    named = {*ops.AT_NODE.values(), *ops.AT_ROOT.values()}
    others_are_made_of = {ops.Changing, ops.FromRoot, ops.AtRoot}
    assert below(ops.Op) - named == {*others_are_made_of, ops.GoBack}, "the shell makes that one of a rollback"


def changing() -> list[str]:
    return [name for name, op in ops.AT_NODE.items() if op.changes]


def test_each_is_carried_out_by_one_part() -> None:
    assert _OPS.keys() == set(changing()) - BY_THE_SHELL
    agent: Any = SimpleNamespace(clock=SimpleNamespace(now_ns=lambda: 0))
    assert Requests(agent)._reads.keys() == ops.AT_NODE.keys() - set(changing())
    root = Root("r1", RootState(), 1, CommaSets())
    assert root.questions.ops.keys() == ops.AT_ROOT.keys() - {"watch", "nodes"}


@pytest.mark.parametrize("name", changing())
def test_who_has_a_lesser_role_is_refused_and_who_has_it_is_not(name: str) -> None:
    role = ops.AT_NODE[name].role
    if name in BY_THE_SHELL or ops.AT_NODE[name].at == "member":
        assert role == "admin"  # the root's word, or the shell's own check
        return
    args = {key: GIVEN[key] for key in ops.needed(ops.AT_NODE[name])}
    if name == "track":
        args["patterns"] = {"sysctl:net.*": "report"}
    for asker in RANK.keys() - {"agent"}:
        world = World()
        world.machine = {"sysctl:net.a": {"value": "1"}}
        world.start({"sysctl:net.a": Declared({"value": "1"})})
        answer = world.ask(name, person("ann", asker), **args)
        assert answer is not None
        assert (answer.exit_code == EXIT_DENIED) == (RANK[asker] < RANK[role]), (asker, answer)
        if answer.exit_code == EXIT_DENIED:
            assert role in answer.message and answer.hint == BY_GROUP


def test_what_may_come_from_afar_and_what_is_done_once() -> None:
    people = {name for name, op in ops.AT_NODE.items() if op.at == "node"}
    assert people == FIELDS.keys()
    assert people - HERE_ONLY == NODE_OPS - {"state", "exec"}
    assert {name for name in ONCE if not ops.AT_NODE[name].changes} == ops.STREAMING, "to read twice is to read"
    by_the_root = ALL_FIELDS.keys() - FIELDS.keys() - {"state", "exec", "session_revoke"}
    assert {name for name in changing() if name not in ONCE} == by_the_root | {"apply"}
    assert set(ops.AT_ROOT) > SETTLING


ALL = list(dict.fromkeys([*ops.AT_NODE.values(), *ops.AT_ROOT.values()]))


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.__name__)
def test_the_command_that_asks_it_exists_and_is_documented(op: type[ops.Op]) -> None:
    if not op.command:
        assert op.at == "member", "people ask it"
        return
    (commands,) = [a.choices for a in build()._actions if a.dest == "command"]
    assert commands is not None and op.command in commands
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"pact {op.command}" in page.read_text() for page in pages), op.command
