"""Sysctls that move each other, on the real kernel in a network namespace: one switch under two names."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORWARD, ALL = "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"
HEAD = f"""
from pact.agent.fixpoint import Fixpoint, observe
from pact.core.plan import Step
FORWARD, ALL, LO = "sysctl:{FORWARD}", "sysctl:{ALL}", "sysctl:net.ipv4.conf.lo.forwarding"
ON, OFF = dict(value="1"), dict(value="0")
def put(name, value):
    open("/proc/sys/" + name.removeprefix("sysctl:").replace(".", "/"), "w").write(value)
def now(*names):
    return [observe(n)["value"] for n in names]
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.invariant("C8")]


def run(code: str) -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", HEAD + textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_another_change_has_drifted_goes_with_the_switch_that_it_is_the_other_name_of() -> None:
    run("""
        put(FORWARD, "1")
        plan = Fixpoint([ALL], True, {ALL: OFF})
        put(FORWARD, "0")
        results = {FORWARD: ""}
        plan.settle([Step(FORWARD, OFF, ON)], results)
        assert results == {FORWARD: ""}, results
        assert now(FORWARD, ALL) == ["0", "0"]
        assert [s.resource for s in plan.moved()] == [ALL]
    """)


def test_what_is_declared_otherwise_stays_and_the_step_says_with_what_it_contradicts_itself() -> None:
    run("""
        put(FORWARD, "1")
        for wanted in ({}, {ALL: ON}):
            plan = Fixpoint([ALL], True, wanted)
            put(FORWARD, "0")
            results = {FORWARD: ""}
            plan.settle([Step(FORWARD, OFF, ON)], results)
            assert "contradicts " + ALL in results[FORWARD], results
            assert now(FORWARD, ALL) == ["1", "1"] and plan.moved() == []
    """)


def test_what_can_be_put_back_is_put_back_although_it_had_drifted() -> None:
    run("""
        put(FORWARD, "1")
        plan = Fixpoint([LO], True, {LO: OFF})
        put(FORWARD, "0")
        results = {FORWARD: ""}
        plan.settle([Step(FORWARD, OFF, ON)], results)
        assert results == {FORWARD: ""} and now(FORWARD, LO) == ["0", "1"] and plan.moved() == []
    """)


def test_what_the_contradicting_ones_drag_along_is_restored_all_the_same() -> None:
    """Both names of the switch are declared, with two values; what either resets can be as declared."""
    run("""
        REDIRECTS = "sysctl:net.ipv4.conf.all.accept_redirects"
        put(ALL, "0")
        put(REDIRECTS, "1")
        plan = Fixpoint([], True, {})
        put(ALL, "1")
        assert now(REDIRECTS) == ["0"], "the kernel resets it"
        steps = [Step(FORWARD, ON, OFF), Step(ALL, OFF, ON), Step(REDIRECTS, ON, OFF)]
        results = {s.id: "" for s in steps}
        plan.settle(steps, results)
        assert now(REDIRECTS) == ["1"] and results[REDIRECTS] == "", results
        assert sum("contradicts" in why for why in results.values()) == 1, results
    """)


def test_it_is_not_bought_with_what_others_have() -> None:
    """The switch is declared otherwise in another change, which keeps it: what it resets beside is restored, and no more."""
    run("""
        REDIRECTS = "sysctl:net.ipv4.conf.all.accept_redirects"
        put(FORWARD, "1")
        put(REDIRECTS, "1")
        plan = Fixpoint([ALL], True, {ALL: ON})
        put(FORWARD, "0")
        put(REDIRECTS, "0")
        steps = [Step(FORWARD, OFF, ON), Step(REDIRECTS, ON, OFF)]
        results = {s.id: "" for s in steps}
        plan.settle(steps, results)
        assert now(FORWARD, ALL, REDIRECTS) == ["1", "1", "1"], now(FORWARD, ALL, REDIRECTS)
        assert "contradicts" in results[FORWARD] and results[REDIRECTS] == "", results
    """)


def test_what_giving_back_resets_is_given_back_too() -> None:
    """It belongs to nobody's plan, and was as declared before."""
    run("""
        REDIRECTS = "sysctl:net.ipv4.conf.all.accept_redirects"
        put(FORWARD, "1")
        put(REDIRECTS, "1")
        plan = Fixpoint([FORWARD, REDIRECTS, LO], True, {})
        put(ALL, "0")
        results = {ALL: ""}
        plan.settle([Step(ALL, OFF, ON)], results)
        assert now(FORWARD, REDIRECTS, LO) == ["1", "1", "1"], now(FORWARD, REDIRECTS, LO)
        assert "contradicts" in results[ALL] and plan.moved() == [], (results, plan.moved())
    """)


@pytest.mark.invariant("R10")
def test_what_is_seen_through_a_link_comes_back_also_after_a_switch_was_written(tmp_path: Path) -> None:
    run(f"""
        import os
        from pact.agent.acting import act
        from pact.resources.base import Keep
        top, keep = "{tmp_path}", Keep(1 << 20)
        os.makedirs(top + "/data"), os.mkdir(top + "/d"), open(top + "/data/f", "w").write("x")
        directory = observe("file:" + top + "/d")
        os.rmdir(top + "/d"), os.symlink("data", top + "/d")
        from pact.resources import KINDS
        seen = KINDS["file"].observe(top + "/d/f", keep)
        put(FORWARD, "1")
        steps = (
            Step(FORWARD, OFF, ON),
            Step("file:" + top + "/d", directory, observe("file:" + top + "/d")),
            Step("file:" + top + "/d/f", seen, seen),
        )
        results = act(steps, keep.blobs.get)
        assert set(results.values()) == {{""}}, results
        assert open(top + "/d/f").read() == "x" and not os.path.islink(top + "/d") and now(FORWARD) == ["0"]
    """)


@pytest.mark.invariant("D5")
def test_what_somebody_writes_right_after_is_not_how_the_kernel_shows_the_value() -> None:
    """By the other name of the same switch, between the write and its reading."""
    run("""
        from pact.agent import fixpoint
        original, races = fixpoint.written, [True]
        def racing(*args):
            why = original(*args)
            if races:
                races.pop()
                put(ALL, "1")
            return why
        fixpoint.written = racing
        put(FORWARD, "1")
        plan = Fixpoint([], True)
        results = {FORWARD: ""}
        plan.settle([Step(FORWARD, OFF, ON)], results)
        assert plan.learned(results) == {} and results == {FORWARD: ""} and now(FORWARD) == ["0"], plan.reads
    """)


@pytest.mark.invariant("D5")
def test_how_the_kernel_shows_a_value_is_still_learned() -> None:
    run("""
        RANGES = "sysctl:net.ipv4.ip_local_reserved_ports"
        plan = Fixpoint([], True)
        results = {RANGES: ""}
        plan.settle([Step(RANGES, dict(value="30,10-12,11"), dict(value=""))], results)
        assert plan.learned(results) == {RANGES: "10-12,30"} or results == {RANGES: ""}, (plan.reads, results)
    """)
