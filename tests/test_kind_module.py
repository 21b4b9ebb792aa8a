"""Kernel modules.

Kernels without loadable modules (CONFIG_MODULES off) are common in virtual machines, so that loading cannot be shown
here: a directory tree stands in for /sys/module, and a script that records its arguments for modprobe. What they are
given is what the real ones would be given. Built-in modules are read from the real /sys/module.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Unreadable
from pact.resources.base import HALF_N, WHOLE_N
from pact.resources.kinds.module import KIND, MODPROBE_TIMEOUT_S, Module


class Machine:
    """A tree like /sys/module and a modprobe that changes it."""

    def __init__(self, top: Path) -> None:
        self.sys = top / "module"
        self.sys.mkdir()
        self.said = top / "said"
        self.modprobe = top / "modprobe"
        self.script(f'printf "%s\\n" "$*" >> {self.said}')
        self.kind = Module(str(self.sys), str(self.modprobe))

    def script(self, body: str) -> None:
        self.modprobe.write_text(f"#!/bin/sh\n{body}\n")
        self.modprobe.chmod(self.modprobe.stat().st_mode | stat.S_IXUSR)

    def load(
        self, name: str, *, state: str | None = "live", refcnt: int = 0, users: tuple[str, ...] = (), **parameters: str
    ) -> None:
        top = self.sys / name
        (top / "holders").mkdir(parents=True)
        (top / "refcnt").write_text(f"{refcnt}\n")
        if state is not None:
            (top / "initstate").write_text(f"{state}\n")
        for user in users:
            (top / "holders" / user).mkdir()
        for key, value in parameters.items():
            (top / "parameters").mkdir(exist_ok=True)
            (top / "parameters" / key).write_text(f"{value}\n")

    def restore(self, name: str, target: Attrs | None) -> None:
        seen = self.kind.observe(name)
        assert not isinstance(seen, Unreadable)
        self.kind.restore(name, Step(f"module:{name}", target, seen), lambda _: None)

    def holders(self, name: str) -> list[tuple[str, str]]:
        seen = self.kind.observe(name)
        assert isinstance(seen, dict)
        return [(h.how, h.path) for h in self.kind.holders(name, Step(f"module:{name}", None, seen), f"module:{name}")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


LOADED: Attrs = {"state": "loaded"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (5, "a module is"),
        ("gone", "is none of"),
        ({"state": "up"}, "is none of"),
        ({"stat": "loaded"}, "mean 'state'"),
        ({"state": "unloaded", "parameters": {}}, "has no parameters"),
        ({"parameters": ["a"]}, "table of strings"),
        ({"parameters": {"a": 1.5}}, "table of strings"),
        ({"parameters": {"a b": "1"}}, "table of strings"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_wrong(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("m", value, "/")


def test_names_are_written_with_underscores_and_cannot_be_options() -> None:
    assert KIND.canonical("snd-hda-intel") == "snd_hda_intel"
    for name in ("", "a b", "../x", "a/b", "a.ko", "é"):
        with pytest.raises(ValueError, match="no module name"):
            KIND.canonical(name)


def test_entries_are_read_and_exported_the_same() -> None:
    for value, attrs in [
        ("loaded", LOADED),
        ({}, LOADED),
        ("unloaded", None),
        ({"parameters": {"b": True, "a": 5}}, {"state": "loaded", "parameters": {"a": "5", "b": "1"}}),
    ]:
        declared = KIND.parse("m", value, "/").declared
        assert declared.attrs == attrs
        assert KIND.parse("m", KIND.export("m", declared, lambda _: None), "/").declared == declared


def test_what_is_loaded_is_seen_with_its_parameters(machine: Machine) -> None:
    machine.load("m", debug="Y", depth="64")
    assert machine.kind.observe("m") == {"state": "loaded", "parameters": {"debug": "Y", "depth": "64"}}
    assert machine.kind.observe("other") is None


@pytest.mark.invariant("D1")
def test_a_module_on_its_way_in_or_out_is_neither_loaded_nor_absent(machine: Machine) -> None:
    machine.load("m", state="going")
    assert machine.kind.observe("m") == Unreadable("module: going")


def test_only_declared_parameters_are_compared_and_booleans_by_meaning() -> None:
    have = {"state": "loaded", "parameters": {"debug": "Y", "depth": "64"}}
    assert KIND.distance_n(LOADED, have) == 0
    assert KIND.distance_n({**LOADED, "parameters": {"debug": "1"}}, have) == 0
    assert KIND.distance_n({**LOADED, "parameters": {"debug": "0"}}, have) == HALF_N
    assert KIND.distance_n({**LOADED, "parameters": {"gone": "1"}}, have) == HALF_N
    assert KIND.distance_n(LOADED, None) == KIND.distance_n(None, have) == WHOLE_N


def test_a_missing_module_is_loaded_with_its_parameters(machine: Machine) -> None:
    machine.restore("m", {**LOADED, "parameters": {"a": "1", "b": "x"}})
    assert machine.said.read_text() == "-- m a=1 b=x\n"


def test_a_module_that_must_be_absent_is_unloaded(machine: Machine) -> None:
    machine.load("m")
    machine.restore("m", None)
    assert machine.said.read_text() == "-r -- m\n"


def test_parameters_are_written_in_place(machine: Machine) -> None:
    machine.load("m", debug="N", depth="64")
    machine.restore("m", {**LOADED, "parameters": {"debug": "1", "depth": "64"}})
    assert (machine.sys / "m/parameters/debug").read_text() == "1"
    assert not machine.said.exists()


def test_a_parameter_that_cannot_be_written_is_named(machine: Machine) -> None:
    machine.load("m")
    with pytest.raises(RestoreError, match="parameter depth: no such file or directory; reload it"):
        machine.restore("m", {**LOADED, "parameters": {"depth": "1"}})


def test_what_is_built_in_cannot_be_unloaded(machine: Machine) -> None:
    machine.load("m", state=None)
    with pytest.raises(RestoreError, match="built into the kernel"):
        machine.restore("m", None)


def test_what_modprobe_says_is_the_reason(machine: Machine) -> None:
    machine.script("echo 'modprobe: FATAL: Module m not found.' >&2; exit 1")
    with pytest.raises(RestoreError, match="FATAL: Module m not found"):
        machine.restore("m", LOADED)
    machine.script("exit 3")
    with pytest.raises(RestoreError, match="ended with 3"):
        machine.restore("m", LOADED)
    machine.modprobe.unlink()
    with pytest.raises(RestoreError, match="no such file"):
        machine.restore("m", LOADED)


@pytest.mark.invariant("F14")
def test_a_modprobe_that_hangs_is_killed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MODPROBE_TIMEOUT_S == 60
    monkeypatch.setattr("pact.resources.kinds.module.MODPROBE_TIMEOUT_S", 0.2)
    machine.script("exec sleep 60")
    with pytest.raises(RestoreError, match=r"did not end within 0.2 s"):
        machine.restore("m", LOADED)


@pytest.mark.invariant("F5")
def test_users_of_a_module_and_references_nobody_can_name_are_its_consumers(machine: Machine) -> None:
    machine.load("idle")
    machine.load("base", refcnt=1, users=("upper",))
    machine.load("held", refcnt=3, users=("upper",))
    assert machine.holders("idle") == []
    assert machine.holders("base") == [("module", "upper")]
    assert machine.holders("held") == [("module", "upper"), ("unknown", "reference count 3")]
    for name, used in (("idle", False), ("base", True), ("held", True)):
        seen = machine.kind.observe(name)
        assert isinstance(seen, dict)
        assert machine.kind.in_use(name, Step(f"module:{name}", None, seen)) is used
        assert machine.kind.in_use(name, Step(f"module:{name}", LOADED, seen)) is False  # it stays


def test_only_loadable_modules_are_adopted(machine: Machine) -> None:
    machine.load("aa")
    machine.load("ab", state=None)
    machine.load("b")
    assert list(machine.kind.discover("a**").names) == ["aa"]
    assert list(machine.kind.discover("**").names) == ["aa", "b"]
    assert list(machine.kind.discover("x-y").names) == ["x_y"]


def test_the_real_tree_can_be_read() -> None:
    names = os.listdir("/sys/module") if os.path.isdir("/sys/module") else []
    for name in names[:50]:
        assert not isinstance(KIND.observe(name), Unreadable)


@pytest.mark.invariant("D5")
@pytest.mark.parametrize(
    ("declared", "actual", "alike"),
    [
        ("1", "Y", True),
        ("0", "N", True),
        ("Y", "N", False),
        ("0x10", "16", True),
        ("1,2", "1,2", True),
        ("2,1", "1,2", False),
        ("0x1,0x2", "1,2", True),
        ("1", "1,2", False),
        ("name", "name", True),
        ("name", "names", False),
        ("1", None, False),
    ],
)
def test_parameters_are_compared_by_what_they_mean(declared: str, actual: str | None, alike: bool) -> None:
    have = {} if actual is None else {"parameters": {"p": actual}}
    distance_n = Module().distance_n({"state": "loaded", "parameters": {"p": declared}}, {"state": "loaded", **have})
    assert (distance_n == 0) is alike


@pytest.mark.invariant("S2")
def test_parameters_that_not_everybody_may_read_are_named(machine: Machine) -> None:
    machine.load("quota", key="1234", size="4", other="x")
    (machine.sys / "quota/parameters/key").chmod(0o400)
    (machine.sys / "quota/parameters/other").chmod(0o640)
    seen = machine.kind.observe("quota")
    assert isinstance(seen, dict) and seen["secret"] == ["key", "other"] and machine.kind.secret(seen)
    declared: Attrs = {"state": "loaded", "parameters": {"key": "5", "size": "4"}}
    assert machine.kind.marked("quota", declared) == {**declared, "secret": ["key"]}
    assert machine.kind.marked("quota", seen) == seen
    assert machine.kind.distance_n({**declared, "secret": ["key"]}, seen) == HALF_N
    text = machine.kind.export("quota", Declared({**declared, "secret": ["key"]}), lambda digest: None)
    assert text == declared, "an export can be declared"


@pytest.mark.invariant("S2")
def test_parameters_of_what_is_not_loaded_are_secrets(machine: Machine) -> None:
    """No kernel says yet who may read them."""
    declared: Attrs = {"state": "loaded", "parameters": {"key": "5"}}
    assert machine.kind.marked("absent", declared) == {**declared, "secret": ["key"]}
    assert machine.kind.marked("absent", {"state": "loaded"}) == {"state": "loaded"}
    assert machine.kind.marked("absent", None) is None
