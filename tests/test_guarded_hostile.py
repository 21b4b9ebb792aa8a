"""Code of another package that does not come back, keeps what it opens, or lies."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from lamp_kind import STEP, Lamp

from pact.agent import sources
from pact.agent.sources import Sources
from pact.errors import RestoreError
from pact.model import Attrs, Observation, Unreadable
from pact.resources import bounded, guarded
from pact.resources.base import Drained, Found, Keep, Source
from pact.resources.guarded import Guarded


class Stuck(Lamp):
    """Does not come back from ``breaks``: sleeping in the kernel, or in a loop of its own that catches everything."""

    def _try(self, what: str) -> None:
        if what == self.breaks:
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(600)

    def _spin(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are tenths of seconds here."""
    monkeypatch.setattr(bounded, "LOOP_S", 0.2)
    for name in ("LOOK_S", "WORK_S"):
        monkeypatch.setattr(guarded, name, 0.3)


def on_a_thread(call: Callable[[], Any]) -> Any:
    """As a worker calls it."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(30)
    assert found, "it did not come back"
    return found[0]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("on", [on_a_thread, lambda call: call()], ids=["worker", "loop"])
def test_code_that_does_not_come_back_costs_its_kind_and_no_more(on: Callable[[Callable[[], Any]], Any]) -> None:
    kind = Guarded(Stuck("observe"))
    seen = on(lambda: kind.observe("x"))
    assert isinstance(seen, Unreadable) and "did not come back in time from observe" in seen.why
    began = time.monotonic()
    for _ in range(100):
        assert isinstance(on(lambda: kind.observe("x")), Unreadable)
        assert kind.distance_n({"on": True}, {"on": False}) == 0
        assert on(lambda: kind.in_use("x", STEP)) is True
    assert time.monotonic() - began < 5, "it is not called again"
    assert "did not come back" in kind.health()
    with pytest.raises(RestoreError, match="did not come back"):
        on_a_thread_raises(lambda: kind.restore("x", STEP, lambda _: None))


def on_a_thread_raises(call: Callable[[], Any]) -> None:
    def made() -> Exception | None:
        try:
            call()
        except Exception as exc:
            return exc
        return None

    if (error := on_a_thread(lambda: (made(),))[0]) is not None:
        raise error


@pytest.mark.usefixtures("hasty")
def test_a_comparison_that_does_not_come_back_does_not_stop_the_loop() -> None:
    kind = Guarded(Stuck("distance_n"))
    assert kind.distance_n({"on": True}, {"on": False}) == 0
    assert isinstance(kind.observe("x"), Unreadable), "nothing is known of what cannot be compared"


@pytest.mark.usefixtures("hasty")
def test_a_loop_that_never_ends_is_ended_on_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Guarded(Stuck("none"))
    monkeypatch.setattr(Stuck, "observe", lambda self, name, keep=None: self._spin())
    before = {t.ident for t in threading.enumerate()}
    assert isinstance(on_a_thread(lambda: kind.observe("x")), Unreadable)
    end = time.monotonic() + 10
    while {t.ident for t in threading.enumerate() if t.name == "pact-bounded"} - before:
        assert time.monotonic() < end, "its thread runs on"
        time.sleep(0.02)


class Hoarder(Lamp):
    kept: ClassVar[list[Any]] = []
    what = "descriptors"

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        if self.what == "descriptors":
            self.kept += [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
        else:
            self.kept.append(os.urandom(4 << 20))
        return {"on": True}


@pytest.mark.parametrize("what", ["descriptors", "bytes of memory"])
def test_code_that_keeps_what_it_opens_is_given_up(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hoarder, "what", what)
    kind = Guarded(Hoarder())
    try:
        for _ in range(150):  # what other tests have freed is used first
            seen = kind.observe("x")
            if isinstance(seen, Unreadable):
                break
        assert isinstance(seen, Unreadable) and what in seen.why
        assert len(Hoarder.kept) < 200, "it is not called for ever"
    finally:
        for each in Hoarder.kept:
            if isinstance(each, int):
                os.close(each)
        Hoarder.kept.clear()


class Liar(Lamp):
    says: Any = None

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return self.says  # type: ignore[no-any-return]

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        return self.says if isinstance(self.says, int) else 0

    def discover(self, pattern: str) -> Found:
        return Found(self.says, {})


def lies(says: Any) -> Guarded:
    inner = Liar()
    inner.says = says
    return Guarded(inner)


@pytest.mark.parametrize("says", ["on", 7, {"x": 1.5}, {"x": "y" * 70_000}, {1: 2}, {"x": {1, 2}}, [], {"x": 1 << 80}])
def test_what_no_kind_may_say_is_unreadable(says: Any) -> None:
    assert isinstance(lies(says).observe("x"), Unreadable)


@pytest.mark.parametrize("far", [-1, 1_000_000_001, 1 << 70])
def test_a_distance_that_cannot_be_makes_the_kind_unreadable(far: int) -> None:
    kind = lies(far)
    assert kind.distance_n({}, {}) == 0 and isinstance(kind.observe("x"), Unreadable)
    assert "a distance of" in kind.health()


@pytest.mark.parametrize("names", [iter(["a", 7]), itertools.repeat("a"), iter(["a", None])])
def test_names_that_cannot_be_and_names_without_end_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match="lamp"):
        lies(names).discover("*")


class Noisy(Source):
    """Always readable, and gives nothing; or does not come back from ``drain``."""

    def __init__(self, hangs: bool = False) -> None:
        self.hangs = hangs
        self.fd = os.open("/dev/zero", os.O_RDONLY)
        self.pipe = os.pipe()
        os.write(self.pipe[1], b"x")

    def fileno(self) -> int:
        return self.pipe[0]

    def drain(self) -> Drained:
        if self.hangs:
            time.sleep(600)
        return Drained()

    def want(self, name: str) -> None: ...

    def unwant(self, name: str) -> None: ...

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        for fd in (self.fd, *self.pipe):
            os.close(fd)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("hangs", [True, False])
def test_a_source_that_never_lets_the_loop_sleep_is_given_up(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lamp = Lamp()
    monkeypatch.setattr(lamp, "source", lambda: Noisy(hangs), raising=False)
    monkeypatch.setitem(sources.KINDS, "lamp", Guarded(lamp))
    touched: list[str] = []
    found = Sources(lambda resource, owner: touched.append(resource), lambda kind: ["lamp:x"])
    found.want("lamp:x")
    for _ in range(sources.HOLLOW_MAX + 2):
        found.drain()
    assert "lamp" in found.health() and touched == ["lamp:x"], "it is polled from now on"
    found.close()


def test_an_interruption_that_comes_as_the_call_ends_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timer, came = signal.setitimer, list[float]()

    def late(which: int, seconds: float, interval: float = 0.0) -> tuple[float, float]:
        if seconds == 0 and not came:
            came.append(seconds)
            raise bounded.Hung  # as its handler does, before the timer is ended
        return set_timer(which, seconds, interval)

    before, other = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    monkeypatch.setattr(signal, "setitimer", late)
    try:
        with pytest.raises(bounded.Hung):
            bounded.within(60.0, lambda: None)
        assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.0 and signal.getsignal(signal.SIGALRM) == before
    finally:
        set_timer(signal.ITIMER_REAL, *other)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("breaks", ["restore_all", "preflight_all"])
def test_a_kind_that_does_several_at_once_is_bounded_too(breaks: str) -> None:
    class Row(Stuck):
        at_once = True

        def restore_all(self, steps: Any, blobs: Any) -> Any:
            self._try("restore_all")

        def preflight_all(self, steps: Any, keep: Any) -> Any:
            self._try("preflight_all")

    kind, steps = Guarded(Row(breaks)), [STEP]
    if breaks == "preflight_all":
        saved = on_a_thread(lambda: kind.preflight_all(steps, Keep(1)))
        assert "did not come back" in saved[STEP.id].refusal
    else:
        with pytest.raises(RestoreError, match="did not come back"):
            on_a_thread_raises(lambda: kind.restore_all(steps, lambda _: None))


@pytest.mark.parametrize("on", [on_a_thread, lambda call: call()], ids=["worker", "loop"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")])
@pytest.mark.parametrize("breaks", ["observe", "distance_n", "in_use", "restore", "roots"])
def test_what_ends_a_program_is_an_error_of_the_kind(
    on: Callable[[Callable[[], Any]], Any], error: BaseException, breaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent takes SIGINT in its own way, so that no KeyboardInterrupt is a person's there."""

    class Quits(Lamp):
        def _try(self, what: str) -> None:
            if what == self.breaks:
                raise error

    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        kind = Guarded(Quits(breaks))
        name = type(error).__name__
        assert isinstance(on(lambda: kind.observe("x")), Unreadable) == (breaks == "observe")
        assert on(lambda: kind.distance_n({"on": True}, {"on": False})) == (0 if breaks == "distance_n" else 5)
        assert (kind.health() != "ok") == (breaks == "distance_n") and (kind.health() == "ok" or name in kind.health())
        assert on(lambda: kind.in_use("x", STEP)) is (breaks == "in_use")
        assert on(lambda: kind.roots("x", STEP)) == []
        if breaks == "restore":
            with pytest.raises(RestoreError, match=f"it raised {name}"):
                on_a_thread_raises(lambda: kind.restore("x", STEP, lambda _: None))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_source_that_exits_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exits(Noisy):
        def drain(self) -> Drained:
            raise SystemExit(1)

    lamp = Lamp()
    monkeypatch.setattr(lamp, "source", Exits, raising=False)
    monkeypatch.setitem(sources.KINDS, "lamp", Guarded(lamp))
    found = Sources(lambda resource, owner: None, lambda kind: ["lamp:x"])
    found.want("lamp:x")
    found.drain()
    assert "SystemExit" in found.health()["lamp"]
    found.close()


class Copies(Lamp):
    """Forks, and comes back twice."""

    pids: ClassVar[list[int]] = []

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        pid = os.fork()
        if pid:
            self.pids.append(pid)
        return {"on": bool(pid)}


@pytest.mark.parametrize("on", [on_a_thread, lambda call: call()], ids=["worker", "loop"])
def test_a_copy_of_the_agent_that_a_kind_makes_ends_with_the_call(on: Callable[[Callable[[], Any]], Any]) -> None:
    own = os.getpid()
    try:
        seen = on(lambda: Guarded(Copies()).observe("x"))
    finally:
        if os.getpid() != own:  # the copy has come as far as this: on the code before it would run the tests, too
            os._exit(1)
    assert seen == {"on": True}
    pid, end = Copies.pids.pop(), time.monotonic() + 10
    while (gone := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(gone[1]) == bounded.COPY_ENDS


def test_a_standard_descriptor_that_a_kind_closes_is_there_again() -> None:
    """In a process of its own: the next file that is opened would be what the log is written to."""
    script = (
        "import os, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from lamp_kind import Lamp\n"
        "from pact.resources.guarded import Guarded\n"
        "class Closes(Lamp):\n"
        "    def observe(self, name, keep=None):\n"
        "        [os.close(fd) for fd in (0, 1, 2)]\n"
        "        return {}\n"
        "seen = Guarded(Closes()).observe('x')\n"
        "assert os.open('/dev/null', os.O_RDONLY) > 2\n"
        "print(seen.why, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout == "lamp: it closed the descriptor 0 of the agent\n", done


def test_a_copy_of_a_standard_descriptor_is_closed_once() -> None:
    """Where there is no place for the new copy the old one stays: its number would be another file's later, and that
    would be closed."""
    standard, own = bounded._Standard(), os.dup(0)
    standard.present()
    copy, limits = standard._copies[0][1], resource.getrlimit(resource.RLIMIT_NOFILE)
    reads, writes = os.pipe()
    try:
        os.dup2(reads, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (bounded.COPIES_FROM, limits[1]))
        with pytest.raises(OSError):
            standard.present()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert os.fstat(copy).st_ino == os.fstat(own).st_ino
        standard.present()
        with pytest.raises(OSError):
            os.fstat(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.dup2(own, 0)
        for fd in (own, reads, writes, *(kept for _, kept in standard._copies.values())):
            os.close(fd)
