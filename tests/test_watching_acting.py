"""What a job under way moves is looked at when it has ended, and nothing is forgotten meanwhile."""

from __future__ import annotations

import select
import time
from pathlib import Path

import pytest

from pact.agent.config import Config
from pact.agent.watching import ACTING_PAUSE_NS, Watching
from pact.model import Owner

ANN = Owner("login:1:1", "ann")
RUN = Owner("unit:puppet.service", "puppet.service", run="puppet#7.1", then="commit")


@pytest.mark.invariant("R10")
def test_what_is_touched_during_a_job_is_due_after_it_with_its_writer(tmp_path: Path) -> None:
    a, b, c = (f"file:{tmp_path}/{n}" for n in "abc")
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    try:
        watching.add([a, b, c])
        watching.touch(a, ANN)
        watching.touch(c, ANN)
        watching.begin(1, [a, b])
        watching.touch(a, None)
        watching.touch(b, None)
        assert watching.take(0, everything=True) == [(c, ANN)]
        watching.drop(b)
        watching.end(1)
        assert watching.take(0, everything=True) == [(a, ANN)]
        watching.end(1)
        assert not watching.has_due
    finally:
        watching.close()


@pytest.mark.invariant("O5")
@pytest.mark.parametrize("busy", [False, True])
def test_a_rule_does_not_accept_what_somebody_else_wrote_before_the_same_look(tmp_path: Path, busy: bool) -> None:
    a, b, c = (f"file:{tmp_path}/{n}" for n in "abc")
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    try:
        watching.add([a, b, c])
        if busy:
            watching.begin(1, [a, b, c])
        for owner in (ANN, RUN, None, RUN):
            watching.touch(a, owner)
        for owner in (None, RUN, None):
            watching.touch(b, owner)
        for owner in (RUN, ANN):
            watching.touch(c, owner)
        watching.end(1)
        due = dict(watching.take(0, everything=True))
        assert due[a] is not None and (due[a].key, due[a].run, due[a].then) == (RUN.key, "", "")
        assert due[b] == RUN and due[c] == ANN
    finally:
        watching.close()


def test_what_was_just_recorded_is_looked_at_by_the_next_rescan_whatever_its_signature(tmp_path: Path) -> None:
    """Its directory may have been away for the moment in which it was seen, and no event says that it is back."""
    for name in "ab":
        (tmp_path / name).write_text("x")
    a, b = (f"file:{tmp_path}/{n}" for n in "ab")
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    try:
        watching.add([a, b])
        time.sleep(0.05)  # a signature that is as young as its file proves nothing
        watching.rescan_all()
        watching.observe(watching.take(0, everything=True), lambda *_: None)
        watching.rescan_all()
        assert watching.take(0, everything=True) == []
        watching.recorded([a], 0)
        watching.rescan_all()
        assert watching.take(0, everything=True) == [(a, None)]
    finally:
        watching.close()


def test_a_job_s_own_events_wake_the_loop_now_and_then_and_all_are_seen_when_it_ends(tmp_path: Path) -> None:
    mine, other = (tmp_path / n for n in ("mine", "other"))
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    epoll = select.epoll()
    try:
        watching.wake_with(epoll)
        watching.add([f"file:{mine}", f"file:{other}"])
        watching.begin(1, [f"file:{mine}"])

        def event(path: Path) -> None:
            before = watching.observers.stats()["kept"]
            path.write_text("x")
            end = time.monotonic() + 5
            while watching.observers.stats()["kept"] == before and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.05)  # what else belongs to this write

        event(mine)
        assert epoll.poll(5)
        watching.drain_in_time(1)
        event(other)
        assert not epoll.poll(0.05), "the loop is left alone"
        assert watching.next_ns() == 1 + ACTING_PAUSE_NS
        watching.drain_in_time(2)
        assert not watching.has_due
        watching.drain_in_time(1 + ACTING_PAUSE_NS)
        assert dict(watching.take(10**12, everything=True)) == {f"file:{other}": None}
        event(other)
        watching.drain_in_time(1 + 2 * ACTING_PAUSE_NS)
        event(mine)
        watching.end(1)
        assert epoll.poll(5), "it wakes at once again"
        watching.drain_in_time(2 + 2 * ACTING_PAUSE_NS)
        assert {r for r, _ in watching.take(10**12, everything=True)} == {f"file:{mine}", f"file:{other}"}
        assert watching.next_ns() > 1 + 3 * ACTING_PAUSE_NS
    finally:
        watching.close()
        epoll.close()
