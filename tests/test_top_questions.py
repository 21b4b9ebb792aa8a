"""The questions of ``pact top``: to whom an answer belongs, and when what is asked about has become another thing."""

from __future__ import annotations

from typing import Any

import pytest
from test_top import DIFF, NOW_MS, NOW_S, afar, answers, change, here, open_, owner, picture, row, status, told, types

from pact.agent.views import change_json
from pact.cli.top import asking
from pact.cli.top.desk import View
from pact.cli.top.feed import NodeTold
from pact.model import Declared
from pact.sim.parts import person, with_settings
from pact.sim.world import World


@pytest.mark.invariant("Y3")
def test_an_answer_belongs_to_its_own_question_alone() -> None:
    """Each node may have a change c1, and a question may be asked again before the first one is answered."""
    desk = afar(told(set={n: row("drifted", open_(user="ann")) for n in ("n1", "n2")}))
    asked = {}
    for name in ("n1", "n2"):
        desk.heard(NodeTold(name, status(change(), node=name), [], []), NOW_S, NOW_MS)
        desk.views.append(View("node", where=name))
        asked[name] = types(desk, "c")
        if name == "n1":
            types(desk, "esc")
    answers(desk, asked["n1"], DIFF)
    assert desk.question is not None and desk.question.phase == asking.LOADING, "nothing was said of n2 yet"
    answers(desk, asked["n2"], DIFF)
    (first,) = types(desk, "mine", "enter")
    types(desk, "esc")
    again = types(desk, "c")
    answers(desk, [first], {})
    assert desk.question is not None and desk.question.phase == asking.LOADING
    assert "Commit c1 of ann on n2: done" in "\n".join(picture(desk))
    answers(desk, again, DIFF)
    assert desk.question.phase == asking.FIELD


@pytest.mark.invariant("Y3")
@pytest.mark.parametrize("name", ["g7", "--all", "-h", "file:/etc/passwd", "c1\n", "c0", "", "untracked"])
def test_a_change_that_is_called_as_something_else_is_not_settled(name: str) -> None:
    """Else a node that lies has an operator settle a group of the whole fleet with the ``y`` for his own change."""
    desk = here(change(name))
    picture(desk)
    for key in ("c", "e", "r", "enter"):
        assert types(desk, key) == [] and desk.question is None


@pytest.mark.invariant("Y3")
@pytest.mark.parametrize("more", [{"seen": "2027-01-15T08:01:00Z"}, {"also": [owner("eve", 1003)]}])
def test_a_change_with_other_contents_or_writers_is_another_one(more: dict[str, Any]) -> None:
    """The same file differs as much as before, and what is in it now was seen by nobody."""
    desk = here(change(seen="2027-01-15T08:00:00Z"))
    answers(desk, types(desk, "e"), DIFF)
    now = {"seen": "2027-01-15T08:00:00Z", **more}
    asked = desk.heard(NodeTold("", status(change(**now)), [], None), NOW_S, NOW_MS)
    assert [a.op for a in asked] == ["diff"]
    answers(desk, asked, DIFF)
    picture(desk)
    asked = types(desk, "enter")
    assert bool(asked) == ("also" not in more), "shared work takes its name"
    if "also" in more:
        assert "eve changed it, too" in "\n".join(picture(desk))
        (ask,) = types(desk, "c1", "enter")
        assert ask.fields["shared"] is True


@pytest.mark.invariant("Y3")
def test_a_node_says_when_the_contents_of_a_change_are_others() -> None:
    resource, ann = "file:/etc/x", person("ann")
    world = World(settings=with_settings(), machine={resource: {"value": "0"}})
    world.start({resource: Declared({"value": "0"})})
    said = []
    for value in ("1", "2"):
        world.advance(10**9)
        world.write(resource, {"value": value}, ann.owner)
        (found,) = world.node.state.changes.values()
        said.append(change_json(world.node, found, ann, world.t_ns, world.wall_ns))
    before, after = said
    assert before["magnitude"] == after["magnitude"] and before["opened"] == after["opened"]
    assert asking.change_facts(before) != asking.change_facts(after)
    assert asking.change_facts(after) == asking.change_facts(
        change_json(world.node, found, ann, world.t_ns + 10**9, world.wall_ns + 10**9 + 12_345)
    ), "neither time alone nor a clock that is slewed makes another change of it"
