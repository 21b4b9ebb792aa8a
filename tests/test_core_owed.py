"""Who could not be told, or was not told yet, is not forgotten: whatever happens to the resource before the plan's answer
is taken in and afterwards, and wherever the agent is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_core_untold import ADMIN, FILE, NOTIFY, ONE, TWO, ZERO, declares, of_every_plan, started, told

from pact.core.node import fold
from pact.core.node.events import Act
from pact.core.node.state import State
from pact.core.plan import Step
from pact.model import Declared
from pact.sim.parts import person
from pact.sim.world import Crashed, World


class Twins(World):
    """Its acts wait until they are carried out."""

    acts: list[Act]

    def _submit(self, effect: Any) -> None:
        if isinstance(effect, Act):
            self._note_acting(effect)
            self.acts.append(effect)
        else:
            super()._submit(effect)


def writes_between(world: World, resource: str, cause: str, value: Any = ONE) -> None:
    """Somebody writes the resource after its readers were told, or could not be told, and before the plan looks again."""

    def write(world: World, ids: Sequence[str]) -> None:
        if resource in ids and (cause != "undo" or world.machine[resource] == ZERO):
            world.after_told = None
            world.machine[resource] = dict(value)
            world.touch(resource, person("ann").owner)

    world.after_told = write


@of_every_plan
@pytest.mark.parametrize("deaf", [True, False])
@pytest.mark.invariant("R14")
def test_a_write_before_the_answer_does_not_end_what_is_owed(
    plan: Callable[[World], None], resource: str, cause: str, deaf: bool
) -> None:
    world = started()
    world.deaf.add(resource)
    writes_between(world, resource, cause)
    plan(world)
    declared = world.node.state.declared(resource)
    assert declared is not None and world.machine[resource] == ONE and world.after_told is None
    (change,) = world.node.state.changes.values()
    assert (change.state, change.members[resource].owed) == (
        ("failed", list(NOTIFY)) if cause == "undo" else ("open", [])
    )
    world.check()
    if not deaf:
        world.deaf.clear()
    steps = told(world)
    world.write(resource, declared.attrs, person("ann").owner)
    assert steps == ([] if cause == "undo" else [(resource, True)]), "at once, or with the change that failed"
    owed = [(c.state, m.owed) for c in world.node.state.changes.values() for m in c.members.values()]
    assert owed == ([("failed", list(NOTIFY))] if deaf or cause == "undo" else []) and not world.node.state.telling
    world.deaf.clear()
    world.ask("rollback", ADMIN, all=True, shared=True)
    assert not world.node.state.changes and not world.stale and steps
    world.check()


@of_every_plan
@pytest.mark.parametrize("then", ["rolled back", "written", "committed"])
@pytest.mark.invariant("R14")
def test_what_was_moved_and_is_not_verified_is_owed(
    plan: Callable[[World], None], resource: str, cause: str, then: str
) -> None:
    world = started()
    world.fickle.add(resource)
    plan(world)
    assert world.machine[resource] == {"value": "something else"}
    declared = world.node.state.declared(resource)
    assert declared is not None and world.node.state.changes and world.stale == {resource}
    world.check()
    world.crash()
    world.start()
    world.fickle.clear()
    steps = told(world)
    if then == "written":
        world.write(resource, declared.attrs, None)
    elif then == "committed":
        world.ask("commit", ADMIN, all=True, shared=True, message="it is right so")
    world.ask("rollback", ADMIN, all=True, shared=True)
    assert [r for r, _ in steps] == [resource] and not world.stale
    assert not world.node.state.changes and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14")
@pytest.mark.parametrize("fickle", [True, False])
def test_a_rollback_whose_step_is_not_verified_owes_it(fickle: bool) -> None:
    world = started()
    world.write(FILE, dict(ONE), ADMIN.owner)
    if fickle:
        world.fickle.add(FILE)
    else:
        world.before_told = lambda w: w.unreadable.update({FILE: "EIO"}) or w.deaf.add(FILE)  # type: ignore[func-returns-value]
    reply = world.ask("rollback", ADMIN, all=True)
    (change,) = world.node.state.changes.values()
    assert reply is not None and reply.exit_code == 1 and change.members[FILE].owed == list(NOTIFY)
    assert change.members[FILE].actual == ({"value": "something else"} if fickle else ONE), "it is not known to be back"
    world.fickle.clear()
    world.deaf.clear()
    world.unreadable.clear()
    world.before_told = None
    steps = told(world)
    world.write(FILE, dict(ZERO), ADMIN.owner)
    assert [c.state for c in world.node.state.changes.values()] == ["failed"] and not steps
    world.ask("rollback", ADMIN, all=True)
    assert steps == [(FILE, True)] and not world.node.state.changes and not world.stale
    world.check()


@pytest.mark.invariant("R14", "R10")
@pytest.mark.parametrize("another", [False, True])
def test_a_failed_rollback_names_a_change_that_exists(another: bool) -> None:
    """What it took along cannot be told; ``another``: nor can a member be restored, so that its own change stays."""
    tree, inside, other = "file:/e", "file:/e/a", "file:/etc/y"
    directory, link = {"type": "directory"}, {"type": "symlink", "target": "/data"}
    world = started()
    world.machine |= {tree: dict(directory), inside: dict(ZERO), other: dict(ZERO)}
    values = {tree: directory, inside: ZERO, other: ZERO}
    world.ask("declare", ADMIN, resources={r: Declared(dict(v), notify=NOTIFY).to_json() for r, v in values.items()})
    world.write(tree, dict(link), ADMIN.owner)
    if another:
        world.write(other, dict(ONE), ADMIN.owner)
        world.stubborn.add(other)

    def gone(w: World, step: Step) -> None:
        if step.id == tree and w.machine[tree] == link:
            w.machine |= {tree: dict(directory), inside: None}

    world.before_act = gone
    world.deaf.add(inside)
    reply = world.ask("rollback", ADMIN, targets=["c1"])
    assert reply is not None and reply.exit_code == 1
    (done,) = reply.result["rolled_back"]
    (change,) = world.node.state.changes.values()
    assert done["change"] == change.id and change.state == "failed" and change.members[inside].owed == list(NOTIFY)
    assert done.get("was") == (None if another else "c1") and (change.id == "c1") == another
    assert f"pact rollback {change.id}" in reply.hint
    world.check()
    world.deaf.clear()
    world.stubborn.clear()
    again = world.ask("rollback", ADMIN, targets=[change.id])
    assert again is not None and again.exit_code == 0 and not world.node.state.changes and not world.stale
    world.check()


@pytest.mark.invariant("R14", "C6")
@pytest.mark.parametrize("ttl", [False, True])
def test_who_commits_another_value_does_not_end_what_is_owed(ttl: bool) -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    world.deaf.clear()
    world.write(FILE, dict(ONE), person("ann").owner)
    steps = told(world)
    more = {"ttl_ns": 3600 * 10**9} if ttl else {}
    reply = world.ask("commit", ADMIN, all=True, shared=True, message="mine", **more)
    assert reply is not None and reply.exit_code == 0
    assert steps == [(FILE, True)] and world.machine[FILE] == ONE
    assert not world.node.state.changes and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14")
@pytest.mark.parametrize("take", [True, False])
@pytest.mark.parametrize("now", [("service:b reload",), (), ("service:a reload", "service:b reload")])
def test_a_name_that_nobody_could_be_told_is_put_right_by_a_declaration(now: tuple[str, ...], take: bool) -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    world.deaf.clear()
    names: list[tuple[str, ...]] = []
    world.before_act = lambda _, step: names.append(step.notify)
    world.ask("declare", ADMIN, resources={FILE: Declared(dict(TWO), notify=now).to_json()}, take=take)
    world.see(FILE)
    if not take and now:
        (change,) = world.node.state.changes.values()
        assert change.members[FILE].owed == list(now)
        world.ask("rollback", ADMIN, all=True)
    assert names == ([now] if now else []) and not world.node.state.changes and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14")
def test_another_declaration_while_nobody_may_be_told_keeps_what_is_owed() -> None:
    """In an emergency, after a kill: only the weight is declared anew, or the resource is adopted as it is."""
    world = started()
    world.ask("emergency_start", ADMIN, reason="maintenance")

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    declares(world)
    world.start()
    steps = told(world)
    assert list(world.node.state.telling) == [FILE]
    world.ask("adopt", ADMIN, patterns=[FILE])
    assert list(world.node.state.telling) == [FILE]
    world.write(FILE, dict(ONE), person("ann").owner)
    world.ask("adopt", ADMIN, patterns=[FILE])
    assert not steps and list(world.node.state.telling) == [FILE]
    world.ask("emergency_end", ADMIN, how="commit", message="done", force=True, shared=True, all=True)
    assert steps == [(FILE, True)] and not world.node.state.telling and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14")
def test_a_declaration_tells_who_was_owed_it_before() -> None:
    """Under a hold nobody is told after a kill; a declaration of what is there tells them."""
    world = started()
    world.ask("hold_place", ADMIN, reason="maintenance", for_ns=3600 * 10**9)

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    declares(world)
    world.start()
    steps = told(world)
    declares(world)
    assert steps == [(FILE, True)] and not world.node.state.telling and not world.stale
    world.check()


@pytest.mark.invariant("R14", "R6")
@pytest.mark.parametrize("then", ["written back", "committed", "rolled back"])
def test_an_application_that_was_killed_before_it_told_owes_it(then: str) -> None:
    world = started()

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    world.ask("apply", ADMIN, resources={FILE: Declared(dict(TWO)).to_json()}, message="m")
    assert not world.running and world.machine[FILE] == TWO
    world.start()
    assert [c.state for c in world.node.state.changes.values()] == ["open"]
    steps = told(world)
    if then == "written back":
        world.write(FILE, dict(ZERO), None)
    else:
        world.ask(
            "commit" if then == "committed" else "rollback",
            ADMIN,
            all=True,
            shared=True,
            **({"message": "m"} if then == "committed" else {}),
        )
    assert [r for r, _ in steps] == [FILE] and not world.stale
    assert not world.node.state.changes and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14", "R6")
@pytest.mark.parametrize("then", ["written back", "committed", "rolled back", "declared", "forgotten"])
def test_whom_only_an_application_names_is_owed_it_after_a_kill(then: str) -> None:
    """The declaration names nobody."""
    world, other = started(), "file:/etc/y"
    world.machine[other] = dict(ZERO)
    world.ask("declare", ADMIN, resources={other: Declared(dict(ZERO)).to_json()})

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    wanted = Declared(dict(TWO), notify=("service:c reload",))
    world.ask("apply", ADMIN, resources={other: wanted.to_json()}, message="m")
    assert not world.running and world.machine[other] == TWO
    world.start()
    names: list[tuple[str, ...]] = []
    world.before_act = lambda _, step: names.append(step.notify)
    if then == "written back":
        world.write(other, dict(ZERO), None)
    elif then == "committed":
        world.ask("commit", ADMIN, all=True, shared=True, message="m")
    elif then == "rolled back":
        world.ask("rollback", ADMIN, all=True, shared=True)
    elif then == "declared":
        world.ask("declare", ADMIN, resources={other: Declared(dict(ONE), notify=NOTIFY).to_json()}, take=True)
    else:
        world.ask("declare", ADMIN, resources={FILE: Declared(dict(ZERO)).to_json()}, take=True, prune=True)
    expected = {"declared": [{*NOTIFY, *wanted.notify}], "forgotten": []}.get(then, [set(wanted.notify)])
    assert [set(n) for n in names] == expected and not world.node.state.telling and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14")
def test_an_application_that_told_owes_nothing() -> None:
    world = started()
    world.ask("apply", ADMIN, resources={FILE: Declared(dict(TWO)).to_json()}, message="m")
    steps = told(world)
    world.write(FILE, dict(ZERO), ADMIN.owner)
    assert not world.node.state.changes and not world.node.state.telling and not steps
    world.check()


@pytest.mark.invariant("R14", "F65")
def test_a_rollback_that_is_left_to_a_person_after_kills_keeps_what_is_owed() -> None:
    world = started()
    world.write(FILE, dict(ONE), ADMIN.owner)

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    world.ask("rollback", ADMIN, all=True)
    world.killed = {"c1": 3}
    world.start()
    (change,) = world.node.state.changes.values()
    assert change.state == "blocked" and change.members[FILE].owed == list(NOTIFY)
    steps = told(world)
    world.ask("rollback", ADMIN, all=True)
    assert steps == [(FILE, True)] and not world.node.state.changes
    world.check()


@of_every_plan
@pytest.mark.parametrize("deaf", [True, False])
@pytest.mark.parametrize("at", range(24))
@pytest.mark.invariant("R14", "R6", "J1")
def test_a_kill_at_any_effect_forgets_no_reader(
    plan: Callable[[World], None], resource: str, cause: str, deaf: bool, at: int
) -> None:
    world = started()
    if deaf:
        world.deaf.add(resource)
    writes_between(world, resource, cause)
    world.crash_after = at
    plan(world)
    world.crash_after = world.after_told = None
    if not world.running:
        world.start()
    declared = world.node.state.declared(resource)
    assert declared is not None
    world.write(resource, declared.attrs, None)
    world.deaf.clear()
    world.ask("rollback", ADMIN, all=True, shared=True)
    world.advance(3600 * 10**9)
    assert not world.stale and not world.node.state.telling and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14", "C7")
def test_an_application_that_was_taken_back_names_the_change_that_has_what_nobody_was_told_of() -> None:
    world, other = started(), "file:/etc/y"
    world.machine[other] = dict(ZERO)
    world.stubborn.add(other)
    world.deaf.add(FILE)
    values = {FILE: TWO, other: TWO}
    wanted = {r: Declared(dict(v)).to_json() for r, v in values.items()}
    reply = world.ask("apply", ADMIN, resources=wanted, message="m")
    (change,) = world.node.state.changes.values()
    assert reply is not None and reply.exit_code == 1
    assert reply.result["change"] == change.id and f"pact rollback {change.id}" in reply.hint
    world.deaf.clear()
    again = world.ask("rollback", ADMIN, targets=[change.id])
    assert again is not None and again.exit_code == 0 and not world.node.state.changes and not world.stale
    world.check()


@pytest.mark.invariant("R14", "R6")
@pytest.mark.parametrize("deaf", [True, False])
def test_a_plan_that_ends_does_not_end_what_another_is_about_to_move(deaf: bool) -> None:
    """Two declare one resource at once: the first has told its readers, and the agent is killed before the second has."""
    world, value = Twins(machine={FILE: dict(ZERO)}), dict(ONE)
    world.acts = []
    world.start({FILE: Declared(dict(ZERO), notify=NOTIFY)})
    if deaf:
        world.deaf.add(FILE)
    declares(world)
    first = world._work(world.acts.pop())
    world.ask("declare", ADMIN, resources={FILE: Declared(value, notify=NOTIFY).to_json()}, take=True)
    second = world.acts.pop()
    world.queue.append(first)
    world._drain()
    world.deaf.clear()
    assert world.node.state.telling or world.node.state.changes

    def killed(_: World) -> None:
        raise Crashed

    world.before_told = killed
    with pytest.raises(Crashed):
        world._work(second)
    world.crash()
    assert not world.running and world.machine[FILE] == value and world.stale
    world.before_told = None
    steps = told(world)
    world.start()
    while world.acts:
        world.queue.append(world._work(world.acts.pop()))
        world._drain()
    world.ask("rollback", ADMIN, all=True)
    while world.acts:
        world.queue.append(world._work(world.acts.pop()))
        world._drain()
    assert steps and not world.node.state.telling and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14", "J2")
def test_a_snapshot_of_an_older_version_says_of_what_somebody_must_be_told() -> None:
    """It has no names: all who read it."""
    world = started()
    data = {**world.node.state.to_json(), "telling": [FILE]}
    assert State.from_json(data).telling == {FILE: list(NOTIFY)}


@pytest.mark.invariant("R14", "H1")
def test_a_hold_of_one_change_keeps_nobody_else_from_being_told() -> None:
    world = started()
    world.machine["file:/etc/y"] = dict(ZERO)
    world.ask("declare", ADMIN, resources={"file:/etc/y": Declared(dict(ZERO)).to_json()})
    world.write("file:/etc/y", dict(ONE), ADMIN.owner)
    (change,) = world.node.state.changes
    world.ask("hold_place", ADMIN, reason="mine", for_ns=3600 * 10**9, change=change)

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    declares(world)
    steps = told(world)
    world.start()
    assert steps == [(FILE, True)] and list(world.node.state.changes) == [change]
    world.check()


@pytest.mark.invariant("R14")
def test_a_resource_that_leaves_its_change_takes_nothing_from_who_else_is_owed() -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    state = world.node.state
    state.telling[FILE] = ["service:c reload"]
    state.leave(FILE)
    assert state.telling == {FILE: [*NOTIFY, "service:c reload"]}


@pytest.mark.invariant("R14", "J2")
@pytest.mark.parametrize("older", [False, True])
def test_an_application_in_a_journal_of_an_older_version_owes_nobody(older: bool) -> None:
    """That version told, and wrote nothing of it: at the first start of this one nobody is told again."""
    world = started()
    world.ask("apply", ADMIN, resources={FILE: Declared(dict(TWO)).to_json()}, message="m")
    state = State()
    for record in world.journal:
        if record.type == "converged":
            break
        if older and record.type == "applied":
            assert record.data["tells"] is True
            data = {k: v for k, v in record.data.items() if k != "tells"}
            record = replace(record, data=data, payload=None)
        fold.apply(state, record)
    assert list(state.changes) == ["c1"] and state.telling == ({} if older else {FILE: list(NOTIFY)})
