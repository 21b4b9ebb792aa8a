"""A kind of somebody else's whose code breaks costs its own resources, and nothing of pact's."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lamp_kind import STEP, Lamp

from pact.agent.sources import Sources
from pact.core.plan import Nature, Step, ordered
from pact.errors import ConfigError, RestoreError
from pact.model import Declared, Holder, Observation, Unreadable
from pact.resources import _require_owned
from pact.resources.base import MOUNTS, Among, Blobs, Drained, Entry, Keep, Kind, Saved, Source, common
from pact.resources.guarded import Guarded
from pact.resources.rules import nature


def test_one_that_works_says_what_it_said() -> None:
    kind = Guarded(Lamp())
    assert (kind.name, kind.dimension, kind.severity, kind.volatile) == ("lamp", "gpu", 0.5, False)
    assert kind.observe("x") == {"on": True}
    assert kind.distance_n({"on": True}, {"on": False}) == 5
    assert list(kind.discover("*").names) == ["x"]
    assert (kind.holders("x", STEP, "lamp:x"), kind.in_use("x", STEP)) == ([], False)


def test_a_look_that_breaks_is_one_that_could_not_be_read() -> None:
    kind = Guarded(Lamp("observe"))
    seen = kind.observe("x")
    assert isinstance(seen, Unreadable) and "LookupError" in seen.why
    assert kind.distance_n({"on": True}, {"on": False}) == 5, "the rest of it works"


def test_where_nothing_can_be_compared_nothing_is_taken_for_drift_or_for_declared() -> None:
    kind = Guarded(Lamp("distance_n"))
    assert isinstance(kind.observe("x"), dict)
    assert kind.distance_n({"on": True}, {"on": False}) == 0
    seen = kind.observe("x")
    assert isinstance(seen, Unreadable) and "LookupError" in seen.why


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("breaks", ["holders", "in_use"])
def test_who_cannot_say_who_uses_it_says_that_somebody_does(breaks: str) -> None:
    kind = Guarded(Lamp(breaks))
    assert kind.holders("x", STEP, "lamp:x") if breaks == "holders" else kind.in_use("x", STEP)


def test_what_is_asked_for_by_a_person_is_answered_with_the_reason() -> None:
    for breaks, ask in {
        "parse": lambda k: k.parse("x", 1, "/"),
        "canonical": lambda k: k.canonical("x"),
        "export": lambda k: k.export("x", Declared(None), lambda _: None),
        "discover": lambda k: k.discover("*"),
        "names": lambda k: list(k.discover("*").names),
    }.items():
        with pytest.raises(ValueError, match="lamp: LookupError"):
            ask(Guarded(Lamp(breaks)))
    with pytest.raises(RestoreError, match="lamp: LookupError"):
        Guarded(Lamp("restore")).restore("x", STEP, lambda _: None)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"dimension": "lights"}, "'lights', which is none of"),
        ({"dimension": None}, "None, which is none of"),
        ({"severity": 0}, "severity 0"),
        ({"severity": float("nan")}, "severity nan"),
        ({"severity": "high"}, "severity 'high'"),
        ({"severity": True}, "severity True"),
        ({"follows": "module"}, "follows = 'module': texts"),
        ({"follows": ("lamp",)}, "follows itself"),
        ({"moved_by": (1,)}, "moved_by"),
        ({"ignored": None}, "ignored = None"),
    ],
)
def test_one_that_does_not_say_what_every_kind_has_to_say_is_refused(said: Mapping[str, Any], wrong: str) -> None:
    lamp = Lamp()
    for name, value in said.items():
        setattr(lamp, name, value)
    with pytest.raises(ConfigError, match=wrong):
        Guarded(lamp)


class Broken(Lamp):
    """Nothing works of what a kind may say beside what it must."""

    def __getattribute__(self, name: str) -> Any:
        return (lambda *_: {}["no such lamp"]) if name in MAY_SAY else super().__getattribute__(name)


class Babbling(Lamp):
    """It says what nobody can use."""

    def __getattribute__(self, name: str) -> Any:
        return (lambda *_: ["nonsense"]) if name in MAY_SAY else super().__getattribute__(name)


#: Calls of what a kind may say, and the answer where its code breaks.
MAY_SAY: Mapping[str, tuple[Callable[[Kind], Any], Any]] = {
    "rank": (lambda k: k.rank("x"), 0),
    "turns": (lambda k: k.turns(STEP), False),
    "shifts": (lambda k: k.shifts(STEP), True),
    "directory": (lambda k: k.directory("x"), ""),
    "has_content": (lambda k: k.has_content({}), True),
    "is_anothers": (lambda k: k.is_anothers({}, []), True),
    "half_done": (lambda k: k.half_done(STEP, None), False),
    "place": (lambda k: k.place("a/x"), "a/x"),
    "all_in": (lambda k: k.all_in("a"), "a"),
    "left_behind": (lambda k: k.left_behind("x", STEP), ""),
    "leaves_with": (lambda k: k.leaves_with(Holder("lamp:x", 0, "lamp"), ()), False),
    "is_unsure": (lambda k: k.is_unsure("x", {}), True),
    "misnamed": (lambda k: k.misnamed("x"), ""),
    "remarks": (lambda k: k.remarks()("x", {}), ""),
    "heeds": (lambda k: k.heeds(MOUNTS), False),
    "glance": (lambda k: k.glance("x"), None),
    "keep_in": (lambda k: list(k.keep_in("/", "boot")), []),
    "many": (lambda k: k.many()("x"), {"on": True}),
    "undeclarable": (lambda k: k.undeclarable({}), "something of which its code cannot tell"),
}


@pytest.mark.parametrize("what", MAY_SAY)
def test_what_a_kind_may_say_and_cannot_is_the_harmless_answer(what: str) -> None:
    call, harmless = MAY_SAY[what]
    assert call(Guarded(Broken())) == harmless
    call(Guarded(Babbling()))  # whatever it is, nothing is raised, and its type is right
    for method in ("turns", "shifts", "has_content", "is_anothers", "half_done", "is_unsure"):
        if method == what:
            assert call(Guarded(Babbling())) is True
    assert Guarded(Babbling()).directory("x") == "", "no id"


def test_a_plan_goes_on_where_a_step_of_it_breaks_in_what_it_may_say() -> None:
    class Lost(Lamp):
        def carry(self, name: str, step: Step, keep: Keep) -> Saved:
            raise LookupError("no such lamp")

        def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
            raise LookupError("no such lamp")

    kind = Guarded(Lost())
    assert "lamp: LookupError" in kind.carry("x", STEP, Keep(0)).refusal
    with pytest.raises(RestoreError, match="lamp: LookupError"):
        kind.restore_among("x", STEP, lambda _: None, Among())


def test_what_is_pacts_own_is_not_asked_of_a_foreign_kind() -> None:
    class Bold(Lamp):
        walked = True

        def goes_ahead(self, step: Step) -> bool:
            return True

        def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
            raise LookupError("no such lamp")

    kind = Guarded(Bold())
    assert not kind.walked and not kind.goes_ahead(STEP)
    assert kind.first_look("x", Keep(0), {}) == {"on": True} and not kind.is_still("x", b"")


def test_how_it_stands_in_a_plan_is_what_it_says() -> None:
    class Shelf(Lamp):
        name = "shelf"
        is_path = bears = True
        follows = ("module",)

        def rank(self, name: str) -> int:
            return -1 if name == "/z" else 0

    kinds: dict[str, Kind] = {"shelf": Guarded(Shelf())}

    def of(resource: str) -> Nature:
        return kinds.get(resource.partition(":")[0]) or nature(resource)

    here = {"on": True}
    ids = ["shelf:/y", "file:/y", "module:m", "shelf:/z", "file:/z/f"]
    order = [s.id for s in ordered((Step(r, here, None) for r in ids), of)]
    assert order == ["module:m", "shelf:/z", "file:/z/f", "shelf:/y", "file:/y"]


class Told(Source):
    """What it drains is what it was given."""

    def __init__(self, drained: Any) -> None:
        self.drained = drained
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self.read

    def drain(self) -> Drained:
        return self.drained  # type: ignore[no-any-return]

    def want(self, name: str) -> None:
        pass

    def unwant(self, name: str) -> None:
        pass

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Regular(Told):
    """A descriptor that epoll refuses: a regular file is always readable."""

    def __init__(self, path: Path) -> None:
        super().__init__(Drained([], ""))
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), self.read)


@pytest.fixture
def lit(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """The sources that the kind of lamps gives, of which the last is next."""
    given = list[Source]()
    lamp = Lamp()
    lamp.source = given.pop  # type: ignore[method-assign]
    monkeypatch.setattr("pact.agent.sources.KINDS", {"lamp": Guarded(lamp)})
    return given


def _sources(touched: list[str]) -> Sources:
    made = Sources(lambda resource, _: touched.append(resource), lambda kind: [f"{kind}:every"])
    made.want("lamp:x")
    return made


@pytest.mark.parametrize(
    "drained",
    [None, Drained(None, ""), Drained([("x",)], ""), Drained([("x", "who")], ""), Drained(5, "")],  # type: ignore
)
def test_a_source_that_says_nonsense_is_given_up_and_its_kind_looked_at(lit: list[Source], drained: Any) -> None:
    touched = list[str]()
    lit.append(Told(drained))
    made = _sources(touched)
    with select.epoll() as epoll:
        made.wake_with(epoll)
        made.drain()
        assert touched == ["lamp:every"]
        assert "lamp" in str(made.health())
        made.drain()
    made.close()


def test_one_whose_descriptor_cannot_be_waited_for_is_given_up(lit: list[Source], tmp_path: Path) -> None:
    touched = list[str]()
    lit.append(Regular(tmp_path / "x"))
    made = _sources(touched)
    with select.epoll() as epoll:
        made.wake_with(epoll)
    assert touched == ["lamp:every"] and "PermissionError" in str(made.health())
    made.close()


def test_a_negative_process_is_nobody(lit: list[Source]) -> None:
    touched = list[str]()
    lit.append(Told(Drained([("x", -1)], "")))
    made = _sources(touched)
    made.drain()
    assert touched == ["lamp:x"] and not made.health()
    made.close()


@pytest.mark.invariant("S9")
@pytest.mark.root
@pytest.mark.parametrize("whose", ["module", "directory", "deep"])
def test_all_of_a_package_is_owned_by_who_may_be_trusted(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = _package(tmp_path, monkeypatch)
    _require_owned("lamp", "lamps.kind")
    at = {"module": top / "kind.py", "directory": top, "deep": top / "data" / "table.py"}[whose]
    at.chmod(0o777)
    with pytest.raises(ConfigError, match=str(at)):
        _require_owned("lamp", "lamps.kind")
    at.chmod(0o755)
    os.chown(at, 1234, -1)
    with pytest.raises(ConfigError, match=str(at)):
        _require_owned("lamp", "lamps.kind")


@pytest.mark.invariant("S9")
def test_a_package_that_anybody_may_add_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_package(tmp_path, monkeypatch) / "__init__.py").unlink()
    with pytest.raises(ConfigError, match=r"no __init__\.py"):
        _require_owned("lamp", "lamps.kind")


def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for each in [tmp_path, *tmp_path.parents][:3]:
        each.chmod(each.stat().st_mode & ~0o022 | 0o055)
    top = tmp_path / "lamps"
    (top / "data").mkdir(parents=True)
    for each in ("__init__.py", "kind.py", "data/table.py"):
        (top / each).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return top


@pytest.mark.invariant("R3", "S2")
def test_what_no_record_takes_is_no_answer() -> None:
    """A record that holds it could not be written, or not be read again by any start."""

    class Odd(Lamp):
        def observe(self, name: str, keep: Any = None) -> Any:
            return {"on": 0.5}

        def meant_secret(self, attrs: Any) -> Any:
            return "a token"

        def reads(self, name: str, target: Any, actual: Any) -> Any:
            return 5

        def preflight(self, name: str, step: Step, keep: Any) -> Saved:
            return Saved(save={"attrs": {"on": 0.5}})

        def carry(self, name: str, step: Step, keep: Any) -> Saved:
            return Saved(note=5, inside={"lamp:y": {"attrs": None}})  # type: ignore[arg-type]

        def holders(self, name: str, step: Step, resource: str) -> Any:
            return [Holder(resource, 7, 5)]  # type: ignore[arg-type]

    kind, keep = Guarded(Odd()), Keep(1 << 20)
    assert isinstance(kind.observe("x"), Unreadable)
    assert kind.meant_secret({}) is True and kind.reads("x", None, None) == "5"
    assert "lamp" in kind.preflight("x", STEP, keep).refusal
    assert kind.carry("x", STEP, keep) == Saved(note="5", inside={"lamp:y": {"attrs": None}})
    assert kind.holders("x", STEP, "lamp:x") == [Holder("lamp:x", 7, "5")]


class Keeps(Lamp):
    """Reads what every entry may say, or leaves it out."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps = keeps

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        return Entry(Declared({"on": True}, **(common(value) if self.keeps else {})))


SAYS: list[dict[str, Any]] = [
    {"notify": ["service:chronyd reload"]},
    {"requires": ["mount:/etc"]},
    {"consumers": ["none"]},
    {"weight": 2},
    {"severity": 0.5},
]


@pytest.mark.parametrize("says", SAYS, ids=lambda says: next(iter(says)))
def test_an_entry_of_which_its_code_leaves_something_out_is_refused(says: dict[str, Any]) -> None:
    (key,) = says
    with pytest.raises(ValueError, match=f"{key} is left out by the code of kind lamp"):
        Guarded(Keeps(False)).parse("x", says, "/")
    kind = Guarded(Keeps(True))
    declared = kind.parse("x", says, "/").declared
    with pytest.raises(ValueError, match=f"{key} of lamp:x is left out"):
        kind.export("x", declared, lambda _: None)


@pytest.mark.parametrize("says", SAYS, ids=lambda says: next(iter(says)))
def test_what_every_entry_may_say_is_exported_though_its_code_forgets_it(
    says: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Guarded(inner := Keeps(True))
    monkeypatch.setattr(inner, "export", lambda name, declared, blobs: {"on": True})
    declared = kind.parse("x", says, "/").declared
    out = kind.export("x", declared, lambda _: None)
    assert out == {"on": True, **says} and kind.parse("x", out, "/").declared == declared


@pytest.mark.parametrize("read", [None, 7, Entry(None)])  # type: ignore[arg-type]
def test_what_is_read_must_be_an_entry(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Guarded(inner := Lamp())
    monkeypatch.setattr(inner, "parse", lambda name, value, base_dir: read)
    with pytest.raises(ValueError, match="not an Entry"):
        kind.parse("x", True, "/")
