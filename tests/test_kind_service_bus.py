"""What comes from a bus: its bytes, its silence, and signals of systemd as a source of events.

What a real systemd does is shown in ``e2e/test_e2e_service.py``.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney import DBusAddress, HeaderFields, new_method_return, new_signal
from jeepney import new_method_call as call_of

from pact._fast.reader import connector
from pact.model import Unreadable, Writer
from pact.observe import open_observers
from pact.resources.kinds.service import KIND, short_of, unit_of
from pact.resources.support import systemd, systemd_bus
from pact.resources.support.systemd_bus import Stream, parsed
from pact.resources.support.systemd_callers import Command, caller, commands
from pact.resources.support.systemd_source import LATER, Later, Units

# -- D-Bus --------------------------------------------------------------------------------------------------------


def message(member: str = "JobRemoved", body: tuple[Any, ...] = (1, "/j", "x.service", "done")) -> bytes:
    signal_ = new_signal(
        DBusAddress("/org/freedesktop/systemd1", interface=systemd_bus.IS_MANAGER), member, "uoss", body
    )
    signal_.header.fields[HeaderFields.sender] = ":1.1"
    return bytes(signal_.serialise(serial=7))


def test_messages_are_cut_out_of_the_stream_wherever_it_breaks() -> None:
    data = message() + message("JobNew", (2, "/k", "y.service", "start"))
    for width in (1, 3, 16, 17, len(data)):
        stream, out = Stream(), list[systemd_bus.Message]()
        for at in range(0, len(data), width):
            out += stream.feed(data[at : at + width])
        assert [(m.type, m.member, m.path) for m in out] == [
            (4, "JobRemoved", "/org/freedesktop/systemd1"),
            (4, "JobNew", "/org/freedesktop/systemd1"),
        ]
        assert out[0].body() == (1, "/j", "x.service", "done")


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_is_an_error_and_nothing_else(noise: bytes, at: int) -> None:
    data = message()
    data = data[:at] + noise + data[at + len(noise) :]
    try:
        for got in Stream().feed(data):
            got.body()
    except systemd_bus.BusError:
        pass


def test_a_message_that_is_too_large_is_not_waited_for() -> None:
    head = struct.pack("<BBBBIII", ord("l"), 4, 0, 1, systemd_bus.MESSAGE_MAX, 1, 0)
    with pytest.raises(systemd_bus.BusError, match="at most"):
        Stream().feed(head)


class Peer:
    """The other end of a bus: it greets, and then does what the test says."""

    def __init__(self, tmp_path: Path, then: Any) -> None:
        self.path = str(tmp_path / "bus")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen()
        self._then = then
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            self._kept.append(link)
            threading.Thread(target=self._then, args=(link,), daemon=True).start()

    def close(self) -> None:
        self._server.close()
        for link in self._kept:
            link.close()


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Peer] = []

    def start(then: Any) -> Peer:
        made.append(Peer(tmp_path, then))
        monkeypatch.setenv(systemd_bus.ADDRESS, f"unix:path={made[-1].path}")
        return made[-1]

    yield start
    for each in made:
        each.close()


def greet(link: socket.socket) -> None:
    link.recv(200)
    link.sendall(b"OK 1234\r\n")
    assert link.recv(100).startswith(b"BEGIN")


def test_a_bus_that_says_nothing_hangs_nobody(peer: Any) -> None:
    peer(lambda link: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(systemd_bus.BusError, match="does not answer"):
        systemd_bus.connect(limit_s=0.3)
    assert time.monotonic() - began < 5


def test_a_bus_that_answers_nothing_hangs_nobody(peer: Any) -> None:
    def then(link: socket.socket) -> None:
        greet(link)
        time.sleep(60)

    peer(then)
    with pytest.raises(systemd_bus.BusError, match="does not answer"):
        systemd_bus.connect(limit_s=0.3)


@pytest.mark.parametrize("said", [b"REJECTED\r\n", b"x" * 9000, b"OK"])
def test_a_bus_that_greets_in_another_way_is_none(peer: Any, said: bytes) -> None:
    def then(link: socket.socket) -> None:
        link.recv(200)
        link.sendall(said)
        link.close()

    peer(then)
    with pytest.raises(systemd_bus.BusError):
        systemd_bus.connect(limit_s=2)
    seen = KIND.observe("x")
    assert isinstance(seen, Unreadable) and seen.why.startswith("service: ")


def test_a_bus_that_sends_garbage_makes_it_unreadable(peer: Any) -> None:
    def then(link: socket.socket) -> None:
        greet(link)
        link.sendall(b"\xff" * 4096)
        time.sleep(60)

    peer(then)
    seen = KIND.observe("x")
    assert isinstance(seen, Unreadable) and "no D-Bus message" in seen.why


def test_without_systemd_a_service_is_unreadable_and_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(systemd_bus.ADDRESS, "unix:path=/nonexistent/bus")
    seen = KIND.observe("x")
    assert isinstance(seen, Unreadable) and "there is no systemd here" in seen.why
    found = KIND.discover("**")
    assert list(found.names) == [] and found.passed == {"there is no systemd here": 1}
    monkeypatch.setenv(systemd_bus.ADDRESS, "tcp:host=x")
    seen = KIND.observe("x")
    assert isinstance(seen, Unreadable) and systemd_bus.ADDRESS in seen.why


def test_the_calls_that_are_made_are_those_that_jeepney_would_make() -> None:
    made = systemd_bus.encoded(systemd_bus.Call("GetUnit", "s", ("x.service",)), 5)
    address = DBusAddress(systemd_bus.MANAGER, systemd_bus.SYSTEMD, systemd_bus.IS_MANAGER)
    assert made == call_of(address, "GetUnit", "s", ("x.service",)).serialise(serial=5)
    answer = new_method_return(call_of(address, "GetUnit"), "o", ("/x",))
    answer.header.fields[HeaderFields.reply_serial] = 5
    got = parsed(bytes(answer.serialise(serial=9)))
    assert (got.type, got.reply_to, got.body()) == (systemd_bus.REPLY, 5, ("/x",))


# -- the source ---------------------------------------------------------------------------------------------------


def test_a_source_without_systemd_says_that_it_is_blind_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(systemd_bus.ADDRESS, "unix:path=/nonexistent/bus")
    source = Units(short_of, unit_of)
    try:
        assert source.health() == "ok"  # nothing is wanted
        source.want("x")
        end = time.monotonic() + 10
        while source.health() == "ok" and time.monotonic() < end:
            source.drain()
            time.sleep(0.01)
        assert source.health() == "blind: there is no systemd here"
    finally:
        source.close()


def test_a_name_is_given_again_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(systemd_bus.ADDRESS, "unix:path=/nonexistent/bus")
    source = Units(short_of, unit_of)
    try:
        source.want("x")
        LATER.at("x", time.monotonic() + 0.3)
        source.drain()
        poll = select.poll()
        poll.register(source.fileno(), select.POLLIN)
        end, seen = time.monotonic() + 10, list[Any]()
        while not seen and time.monotonic() < end:
            poll.poll(1000)
            seen += source.drain().changed
        assert seen == [("x", 0)]
        assert not LATER.next()
    finally:
        source.close()


def test_what_is_remembered_for_the_source_is_bounded_and_forgotten() -> None:
    later = Later()
    for number in range(10_010):
        later.at(str(number), 1.0 + number)
        later.needs_reload(str(number), True)
    assert len(later.due(1e9)) == 10_000 and len(later.stale()) == 10_000
    later.forget("1")
    later.needs_reload("2", False)
    assert "1" not in later.stale() and "2" not in later.stale()


# -- who asked ----------------------------------------------------------------------------------------------------


def test_only_one_command_that_names_the_unit_is_its_caller() -> None:
    mine = Command(os.getpid(), ("a", "b.service", "c*"))
    other = Command(os.getpid(), ("a.service",))
    for name in ("b.service", "cd.service", "a.service"):
        found = caller(name, [mine])
        assert found is not None and found.pid == os.getpid()
    assert caller("a.service", [mine, other]) is None
    assert caller("d.service", [mine]) is None and caller("a.service", []) is None


def test_a_command_that_moves_another_unit_moves_what_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """``b`` is part of ``a`` and ``c`` needs ``b``; ``d`` wants ``b``. ``a`` has the other name ``z``."""
    a, b, c, d, z = (f"{x}.service" for x in "abcdz")
    related = {
        a: ({z}, {z}),
        b: ({a}, {d}),
        c: ({b}, set()),
    }
    monkeypatch.setattr(systemd, "_related", {u: tuple(map(frozenset, sets)) for u, sets in related.items()})

    def found(unit: str, *among: Command) -> int:
        writer = caller(unit, among, lambda stops: systemd.movers(unit, stops=stops))
        return writer.pid if writer is not None else 0

    pid = os.getpid()
    stop, start = Command(pid, ("a",), stops=True), Command(pid, ("d",))
    assert [found(u, stop) for u in (a, b, c, d)] == [pid, pid, pid, 0]
    assert [found(u, start) for u in (a, b, c)] == [0, pid, pid]
    assert [found(u, Command(pid, ("d",), stops=True)) for u in (a, b, c)] == [0, 0, 0], "who wants it does not stop it"
    assert found(a, Command(pid, ("z",), stops=True)) == pid and found(c, Command(pid, ("z",), stops=True)) == pid
    assert found(b, stop, start) == 0 and found(b, stop, Command(pid, ("b",))) == pid, "who names it comes first"
    systemd.unit_files_read()
    assert found(b, stop) == 0


def test_of_those_that_are_gone_one_person_is_the_caller() -> None:
    def gone(pid: int, login: int | None, unit: str = "") -> Command:
        return Command(pid, ("a",), Writer(pid, 0, login, unit=unit))

    here = Command(os.getpid(), ("a",))
    for among, pid in (
        ([gone(1, 1000)], 1),
        ([gone(1, 1000), gone(2, 1000)], 2),  # stopped and started again
        ([gone(1, 1000), gone(2, 1001)], None),
        ([gone(1, None, "puppet.service"), gone(2, None)], None),
        ([gone(1, 1000), here], os.getpid()),  # who waits for its job is surer
        ([here, gone(1, 1000), here], None),
    ):
        found = caller("a.service", among)
        assert (found.pid if found is not None else None) == pid, among


@pytest.mark.root
@pytest.mark.invariant("X2")
def test_a_systemctl_that_is_gone_was_seen_when_it_began() -> None:
    try:
        os.close(connector())
    except OSError as exc:
        pytest.skip(f"no exec events here: {exc.strerror}")
    program = Path(tempfile.mkdtemp()) / "systemctl"
    shutil.copy("/bin/sh", program)
    program.parent.chmod(0o755)
    unit = f"of-test-{os.getpid()}"
    observers = open_observers(realtime=False)

    def run(*words: str, by: Sequence[str] = ()) -> int:
        process = subprocess.Popen([*by, program, "-c", "sleep 0.05; :", *words])  # it takes as long as the real one
        assert process.wait() == 0
        return process.pid

    def seen() -> list[int]:
        return [c.pid for c in commands() if c.means(f"{unit}.service")]

    try:
        pids = [run("stop", unit), run("--quiet", "--no-block", "restart", "other", f"{unit}.service")]
        run("status", unit)
        run("stop", f"{unit}-not")
        run("stop", unit, by=["setpriv", "--reuid=65534"])
        run("stop", unit, by=["setpriv", "--ruid=65534"])  # as a set-uid program of root's, with arguments of anybody's
        run("stop", "x" * 300, unit)  # what is cut off is not known
        deadline = time.monotonic() + 1.0
        while len(seen()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen() == pids
        found = caller(f"{unit}.service", commands())
        assert found is not None and found.pid == pids[-1] and "--no-block" in found.command
    finally:
        observers.close()
        shutil.rmtree(program.parent)
    assert seen() == []
