"""systemd's notification protocol over a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pact.host.notify import Notifier, log


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_as_one_datagram(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"@pact-test-{os.getpid()}" if abstract else "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notifier = Notifier()
        notifier.send("READY=1", "STATUS=watching 5 resources")
        assert manager.recv(4096) == b"READY=1\nSTATUS=watching 5 resources"
        notifier.send("WATCHDOG=1")
        assert manager.recv(4096) == b"WATCHDOG=1"
    assert "NOTIFY_SOCKET" not in os.environ, "children must not speak for the agent"
    notifier.send("STOPPING=1")  # the manager went away: nothing depends on it


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().send("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "ns"),
    [
        ("30000000", None, 30_000_000_000),
        ("30000000", "self", 30_000_000_000),
        ("30000000", "1", 0),
        ("", None, 0),
        ("soon", None, 0),
        ("-5", None, 0),
    ],
)
def test_the_watchdog_is_ours_only_if_it_names_us(
    usec: str, pid: str | None, ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert Notifier().watchdog_ns == ns


def test_a_line_of_the_log_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    log("failed: \x1b[2Jevil\nname \u202e\udcff é")
    assert capsys.readouterr().err == "pact: failed: \\x1b[2Jevil\\nname \\u202e\\udcff é\n"
