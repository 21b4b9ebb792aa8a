"""Waiting for systemd's jobs, where systemd itself is busy: a socket whose other end answers late."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from pact.resources.support import systemd_bus, systemd_jobs
from pact.resources.support.systemd_bus import IS_MANAGER, MANAGER, Bus, Stream
from pact.resources.support.systemd_jobs import Job


def removed(number: int, path: str, unit: str, result: str) -> bytes:
    """The signal that a job has ended."""
    from jeepney import DBusAddress, new_signal

    signal = new_signal(DBusAddress(MANAGER, interface=IS_MANAGER), "JobRemoved", "uoss", (number, path, unit, result))
    return bytes(signal.serialise(serial=1))


@pytest.mark.parametrize("ends", [True, False])
def test_jobs_go_on_while_systemd_answers_nothing(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads its unit files again, for longer than anybody waits for an answer."""
    monkeypatch.setattr(systemd_bus, "ANSWER_S", 0.2)
    monkeypatch.setattr(systemd_jobs, "BEHIND_S", 0.05)
    ours, theirs = socket.socketpair()
    asked: list[Any] = []

    def busy() -> None:
        stream = Stream()
        while data := theirs.recv(1 << 16):
            asked.extend(stream.feed(data))
            if ends and len(asked) == 3:
                theirs.sendall(removed(7, "/job/7", "a.service", "done"))

    thread = threading.Thread(target=busy, daemon=True)
    thread.start()
    job, began_s = Job("a.service", "RestartUnit", "/job/7"), time.monotonic()
    with Bus(ours, bus=False) as bus:
        systemd_jobs._wait(bus, [job], began_s + 1.5)
    assert (job.result, job.why) == ("done" if ends else "", "") and len(asked) >= 3
    assert time.monotonic() - began_s < 2.5
    thread.join(5)
    theirs.close()
