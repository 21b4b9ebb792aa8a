"""Carrying a plan out: what somebody writes while its other steps run is not overwritten."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pact.agent import acting, notifications, probing, worker
from pact.agent.acting import act
from pact.agent.probing import probe
from pact.core.node.events import Act, Acted, Ticked
from pact.core.plan import Step
from pact.declared.toml import Ignore
from pact.host.clock import boottime_ns
from pact.journal.blobs import BlobReader
from pact.journal.sqlite import SqliteJournal
from pact.model import NS_PER_S, Holder, Unreadable, encode_name
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND


@pytest.mark.invariant("R2", "F7")
def test_a_file_written_while_an_earlier_step_runs_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, steps = Keep(1 << 20), []
    for name in ("a", "b"):
        path = tmp_path / name
        resource = f"file:{encode_name(bytes(path))}"
        path.write_text("declared")
        target = worker.observe(resource, keep)
        path.write_text("drifted")
        actual = worker.observe(resource)
        assert not isinstance(target, Unreadable)
        assert not isinstance(actual, Unreadable)
        steps.append(Step(resource, target, actual))
    restore = acting._restore

    def slow(step: Step, blobs: object, *more: object, **options: object) -> str:
        why = restore(step, keep.blobs.get)
        if step is steps[0]:
            (tmp_path / "b").write_text("new work")
        return why

    monkeypatch.setattr(acting, "_restore", slow)
    assert worker.act(tuple(steps), keep.blobs.get) == {steps[0].id: "", steps[1].id: worker.MOVED}
    assert (tmp_path / "a").read_text() == "declared"
    assert (tmp_path / "b").read_text() == "new work"


@pytest.mark.invariant("O1", "F13")
def test_a_job_that_does_not_end_shows_as_stuck(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = threading.Event()

    def hang() -> worker.Result:
        (tmp_path / "fifo").read_bytes()  # nobody writes
        return worker.Result(0, make=Ticked)

    one = worker.Worker("pact-test", 1, lambda: 1, {}.get, Ignore(), done.set)
    try:
        before = time.time_ns()
        one.call(hang)
        while one.waiting:
            time.sleep(0.01)
        now = boottime_ns()
        assert one.stuck_since(now) is None
        since = one.stuck_since(now + worker.STUCK_NS + NS_PER_S)
        assert since is not None
        assert before <= since <= time.time_ns()
    finally:
        with open(tmp_path / "fifo", "wb"):
            pass
    assert done.wait(10)
    assert one.close(10)
    assert one.stuck_since(boottime_ns() + 2 * worker.STUCK_NS) is None


@pytest.mark.invariant("F13")
def test_what_waits_behind_a_job_that_hangs_is_taken_over(tmp_path: Path) -> None:
    fifos = [tmp_path / f"fifo{n}" for n in range(worker.HUNG_MAX + 1)]
    done = list[str]()
    one = worker.Worker("pact-test", 1, lambda: 1, {}.get, Ignore(), lambda: None)
    late_ns = worker.STUCK_NS + NS_PER_S

    def job(name: str, fifo: Path | None) -> Callable[[], worker.Result]:
        def work() -> worker.Result:
            if fifo is not None:
                fifo.read_bytes()  # nobody writes
            done.append(name)
            return worker.Result(0, make=Ticked)

        return work

    def until(condition: Callable[[], object]) -> None:
        ends = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < ends, done
            if not one.results.empty():
                one.results.get()
            time.sleep(0.01)

    for fifo in fifos:
        os.mkfifo(fifo)
    try:
        for n, fifo in enumerate(fifos):
            one.call(job(f"hangs {n}", fifo))
            until(lambda: not one.waiting)
            assert not one.relieve(boottime_ns() + late_ns), "nothing waits for it"
            one.call(job(f"behind {n}", None))
            assert not one.relieve(boottime_ns()), "it has not taken long yet"
            assert one.relieve(boottime_ns() + late_ns) == (n < worker.HUNG_MAX), "not more and more threads"
            if n < worker.HUNG_MAX:
                until(lambda n=n: f"behind {n}" in done)  # type: ignore[misc]
        assert done == [f"behind {n}" for n in range(worker.HUNG_MAX)] and one.waiting == 1
        assert one.stuck_since(boottime_ns() + late_ns) is not None
    finally:
        for fifo in fifos:
            with open(fifo, "wb"):
                pass
    until(lambda: len(done) == 2 * len(fifos))
    until(lambda: one.stuck_since(boottime_ns() + late_ns) is None)
    one.call(job("after", None))
    until(lambda: "after" in done)
    assert one.close(10)
    until(lambda: not [t for t in threading.enumerate() if t.name == "pact-test"])


@pytest.mark.invariant("S2")
def test_what_lies_behind_a_symbolic_link_is_not_for_everybody(tmp_path: Path) -> None:
    (tmp_path / "closed" / "open").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "closed" / "open")
    assert not KIND.reachable(f"{tmp_path}/link/f")


@pytest.mark.invariant("R6")
def test_a_file_that_a_kill_left_half_dressed_is_finished_when_the_rollback_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    resource = f"file:{encode_name(bytes(path))}"
    path.write_text("same")
    path.chmod(0o644)
    target = worker.observe(resource)
    path.chmod(0o600)
    actual = worker.observe(resource)
    assert not isinstance(target, Unreadable)
    assert not isinstance(actual, Unreadable)
    path.chmod(0o604)  # neither what it was nor what it shall be
    step = Step(resource, target, actual)
    assert worker.act((step,), {}.get) == {resource: worker.MOVED}
    assert worker.act((step,), {}.get, resumed=True) == {resource: ""}
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_text("somebody's work")
    assert worker.act((step,), {}.get, resumed=True) == {resource: worker.MOVED}


def value(data: bytes) -> dict[str, object]:
    return {"type": "file", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


@pytest.mark.invariant("R4", "R6", "F28")
def test_what_a_kill_left_aside_goes_only_if_it_is_kept_elsewhere(tmp_path: Path) -> None:
    target, saved = b"what is declared", b"what was saved"
    store = {hashlib.sha256(c).hexdigest(): c for c in (target, saved)}
    left = {0: b"written at the last moment: the only copy", 1: saved, 2: target[:5], 3: b""}
    for n, data in left.items():
        (tmp_path / f".pact-{n:016x}").write_bytes(data)
    (tmp_path / f".pact-{4:016x}").symlink_to("declared-target")
    (tmp_path / f".pact-{5:016x}").symlink_to("somebody-s")
    (tmp_path / f".pact-{6:016x}").mkdir()
    (tmp_path / "conf").write_bytes(target)  # exchanged already
    step = Step(f"file:{tmp_path}/conf", value(target), {**value(saved), "target": "declared-target"})
    (why,) = worker.act((step,), store.get, resumed=True).values()
    kept = {f"kept.pact-{n:016x}" for n in (0, 5)}
    assert {p.name for p in tmp_path.iterdir()} == {"conf", *kept}
    assert (tmp_path / f"kept.pact-{0:016x}").read_bytes() == left[0]
    assert "was not saved before: it is kept as" in why
    assert all(name in why for name in kept)
    assert worker.act((step,), store.get, resumed=True) == {step.id: ""}


@pytest.mark.invariant("R6")
def test_a_kill_between_an_empty_directory_and_the_file_in_its_place_is_gone_on_with(tmp_path: Path) -> None:
    target = b"declared"
    store = {hashlib.sha256(target).hexdigest(): target}
    (tmp_path / "x").mkdir()
    actual = worker.observe(f"file:{tmp_path}/x")
    assert isinstance(actual, dict)
    step = Step(f"file:{tmp_path}/x", value(target), actual)
    (tmp_path / "x").rmdir()
    assert worker.act((step,), store.get) == {step.id: worker.MOVED}
    assert worker.act((step,), store.get, resumed=True) == {step.id: ""}
    assert (tmp_path / "x").read_bytes() == target


@pytest.mark.invariant("R4")
def test_what_is_there_before_an_application_is_stored_no_later_than_its_record(tmp_path: Path) -> None:
    """It is declared by that record, and an application that a kill cuts off is not gone on with."""
    from pact.core.node.events import Probe, Probed

    class Store(dict[str, bytes]):
        path = ""

        def has(self, digest: str) -> bool:
            return digest in self

        def __call__(self, digest: str) -> bytes | None:
            return self.get(digest)

    store, steps = Store(), []
    for n in range(5):
        path = tmp_path / f"f{n}"
        path.write_bytes(bytes([n]) * (1 << 20))
        steps.append(
            Step(f"file:{encode_name(bytes(path))}", {"type": "file", "mode": "0600", "sha256": "0" * 64}, None)
        )
    one = worker.Worker("pact-test", 4 << 20, lambda: 1 << 40, store, Ignore(), lambda: None)  # type: ignore[arg-type]
    one.submit(Probe(1, tuple(steps), consumers=False, applying=True))
    while True:
        result = one.results.get(timeout=10)
        store.update(result.blobs)
        if result.stored is not None:
            assert sum(map(len, result.blobs.values())) <= 3 << 20, "piece by piece"
            result.stored.put("")
            continue
        probed = result.event(0, 0)
        break
    assert isinstance(probed, Probed)
    wanted = {s["sha256"] for s in probed.saves.values()}
    assert len(wanted) == 5 and wanted <= set(store)
    one.close(10)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda p: p.write_text("new work"),
    "content of the same length": lambda p: p.write_text("drafted"),
    "content and the time it had": lambda p: (p.write_text("drafted"), os.utime(p, ns=(OLD, OLD))),
    "mode": lambda p: p.chmod(0o640),
    "owner": lambda p: os.chown(p, 1234, 1234),
    "an attribute": lambda p: os.setxattr(p, "user.note", b"x"),
    "another file": lambda p: (p.with_name("x").write_text("drafted"), p.with_name("x").rename(p)),
    "a link": lambda p: (p.unlink(), p.symlink_to("/etc/passwd")),
    "nothing there": lambda p: p.unlink(),
}
OLD = 1_700_000_000 * NS_PER_S


@pytest.mark.root
@pytest.mark.invariant("R2")
@pytest.mark.parametrize("what", [*CHANGES, ""])
def test_whatever_moves_between_the_look_and_the_step_is_noticed_by_its_status(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, keep = tmp_path / "a", Keep(1 << 20)
    path.write_text("declared")
    resource = f"file:{encode_name(bytes(path))}"
    target = worker.observe(resource, keep)
    path.write_text("drifted")
    os.utime(path, ns=(OLD, OLD))
    time.sleep(0.05)
    actual = worker.observe(resource)
    assert not isinstance(target, Unreadable) and not isinstance(actual, Unreadable)
    step, signed = Step(resource, target, actual), dict[str, bytes]()
    probe((step,), Keep(1 << 20, hold=False), consumers=False, force=False, signed=signed)
    assert signed.keys() == {resource}
    looks = list[str]()
    real = acting.observe
    monkeypatch.setattr(acting, "observe", lambda r: (looks.append(r), real(r))[1])
    if what:
        CHANGES[what](path)
    results = act((step,), keep.blobs.get, signed=signed)
    if what:
        assert results[resource] and not (path.is_file() and path.read_text() == "declared"), results
    else:
        assert results == {resource: ""} and path.read_text() == "declared"
        assert len(looks) == 1, "it is looked at when it has been brought back; before, its status has said enough"


def test_a_file_that_was_just_written_is_not_judged_by_its_status(tmp_path: Path) -> None:
    path = tmp_path / "a"
    resource = f"file:{encode_name(bytes(path))}"
    path.write_text("drifted")
    actual, signed = worker.observe(resource), dict[str, bytes]()
    assert not isinstance(actual, Unreadable)
    path.write_text("drafted")
    probe((Step(resource, None, actual),), Keep(1 << 20, hold=False), consumers=False, force=False, signed=signed)
    assert signed == {}


@pytest.mark.invariant("R14")
@pytest.mark.parametrize("owed", [True, False])
def test_what_is_told_later_has_its_users_asked_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owed: bool
) -> None:
    """The file is as declared, and only the restart is still owed: it takes the service from its users all the same."""
    asked: list[str] = []

    def holders(steps: Iterable[Step], *, ask: bool = True) -> list[Holder]:
        asked.extend(s.id for s in steps)
        return []

    monkeypatch.setattr(probing, "find_holders", holders)
    (tmp_path / "f").write_text("as declared")
    resource = f"file:{tmp_path}/f"
    seen = probing.observe(resource)
    assert isinstance(seen, dict)
    step = Step(resource, seen, seen, notify=("service:a restart", "service:b reload"), owed=owed)
    probing.probe((step,), Keep(1 << 20), consumers=True, force=False)
    assert asked == (["service:a"] if owed else [])


def drifted(path: Path) -> tuple[Keep, Step]:
    """A file that somebody has written, and the step back, of which somebody is told."""
    keep, resource = Keep(1 << 20), f"file:{encode_name(bytes(path))}"
    path.write_text("declared")
    target = worker.observe(resource, keep)
    path.write_text("drifted")
    actual = worker.observe(resource)
    assert not isinstance(target, Unreadable) and not isinstance(actual, Unreadable)
    return keep, Step(resource, target, actual, notify=("command:a",))


@pytest.mark.invariant("R14", "R5")
@pytest.mark.parametrize("how", ["half", "nothing", "undone", "somebody"])
def test_what_was_moved_and_is_not_verified_is_told_to_nobody_and_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = tmp_path / "a"
    keep, step = drifted(path)
    restore = KIND.restore_among

    def restored(name: str, step: Step, *more: Any) -> None:
        if how == "undone":
            restore(name, step, *more)
        if how != "nothing":
            path.write_text("half of it")
        if how != "undone":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(KIND), "restore_among", lambda _, *args: restored(*args))
    if how == "somebody":
        path.write_text("somebody's")
    touched = set[str]()
    results = act((step,), keep.blobs.get, touched=touched)
    said = notifications.tell((step,), results, touched, {})
    assert results[step.id] and not said.told
    assert said.untold == ({step.id: step.notify} if how in ("half", "undone") else {})
    assert (results[step.id] == worker.MOVED) == (how == "somebody")


@pytest.mark.invariant("R14")
def test_who_was_owed_it_before_is_owed_it_still_if_the_step_fails(tmp_path: Path) -> None:
    keep, step = drifted(tmp_path / "a")
    (tmp_path / "a").write_text("somebody's")
    step = replace(step, owed=True)
    results = act((step,), keep.blobs.get)
    assert notifications.tell((step,), results, (), {}).untold == {step.id: step.notify}


@pytest.mark.invariant("R5")
def test_after_an_act_that_broke_all_of_its_steps_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how far it came. A step that joined the plan would count as declared until the next rescan."""
    there, gone, broken = tmp_path / "there", tmp_path / "gone", tmp_path / "broken"
    there.write_text("x")
    steps = tuple(Step(f"file:{p}", value(b"y"), value(b"x")) for p in (there, gone, broken))
    real = worker.observe

    def breaks(*args: object, **options: object) -> dict[str, str]:
        raise LookupError("a bug")

    monkeypatch.setattr(worker, "act", breaks)
    monkeypatch.setattr(worker, "observe", lambda r: breaks() if r.endswith("broken") else real(r))
    store = BlobReader(str(tmp_path / "journal.db"))
    SqliteJournal(str(tmp_path / "journal.db")).close()
    made = worker.Worker("test", 1 << 20, lambda: 1 << 20, store, Ignore(), lambda: None)
    made.submit(Act(7, steps, {}, below=("file:/etc/passwd",)))
    result = made.results.get(timeout=30)
    made.close(10)
    event = result.event(1, 2)
    assert isinstance(event, Acted)
    seen: dict[str, Any] = {s.resource: s.observation for s in event.sightings}
    assert seen[steps[0].id]["sha256"] == value(b"x")["sha256"] and seen[steps[1].id] is None
    assert isinstance(seen[steps[2].id], Unreadable) and seen["file:/etc/passwd"]["type"] == "file"
    assert all("a bug" in why for why in event.results.values())
