"""From the port of a netlink socket to its process: certain, or nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pact._fast.reader import connector
from pact.model import Writer
from pact.observe import open_observers
from pact.observe.netlinkports import inode_of, is_zombie, user_of

OPENS = """
import os, socket, sys
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.bind((int(sys.argv[1]), 0))
print(s.getsockname()[0], flush=True)
sys.stdin.read()
"""


def nobody(pid: int) -> Writer | None:
    return None


@pytest.fixture
def opened() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def begin(made: list[subprocess.Popen[bytes]], port: int) -> tuple[int, int]:
    """A process with a routing socket; its pid and the socket's port."""
    process = subprocess.Popen([sys.executable, "-c", OPENS, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    made.append(process)
    assert process.stdout is not None
    return process.pid, int(process.stdout.readline())


@pytest.mark.invariant("X2")
def test_a_process_that_has_the_socket_is_its_user(opened: list[subprocess.Popen[bytes]]) -> None:
    pid, port = begin(opened, 0)
    assert port == pid
    writer = user_of(port, nobody)
    assert writer is not None and writer.pid == pid and writer.uid == os.getuid()


@pytest.mark.invariant("X2")
def test_a_port_that_was_chosen_names_nobody(opened: list[subprocess.Popen[bytes]]) -> None:
    """The number is this test's own pid, which has no such socket."""
    _, port = begin(opened, os.getpid())
    assert port == os.getpid()
    assert user_of(port, lambda pid: Writer(pid, 0)) is None


@pytest.mark.invariant("X2")
def test_a_process_that_is_gone_is_named_if_it_was_seen_when_it_began(opened: list[subprocess.Popen[bytes]]) -> None:
    pid, port = begin(opened, 0)
    opened[0].kill()
    opened[0].wait()
    assert user_of(port, nobody) is None
    assert user_of(port, lambda number: Writer(number, 7)) == Writer(pid, 7)


@pytest.mark.invariant("X2")
def test_a_process_that_has_ended_and_was_not_waited_for_is_named(opened: list[subprocess.Popen[bytes]]) -> None:
    pid, port = begin(opened, 0)
    opened[0].kill()
    while not is_zombie(pid):
        pass
    writer = user_of(port, nobody)
    assert writer is not None and writer.pid == pid


@pytest.mark.parametrize("port", [0, -5, -4097, 1 << 22, 4294963199, 1 << 40])
def test_numbers_that_are_no_pids_name_nobody(port: int) -> None:
    assert user_of(port, lambda pid: Writer(pid, 0)) is None


def test_a_process_that_lives_without_a_socket_names_nobody() -> None:
    assert user_of(os.getppid(), nobody) is None


@pytest.mark.parametrize("text", ["", "sk Eth\n", "x\n" * 10, "a 0 77 c d e f g h notanumber\n", "\0" * 5000])
def test_a_table_of_nonsense_has_no_socket(tmp_path: Path, text: str) -> None:
    table = tmp_path / "netlink"
    table.write_text(text)
    assert inode_of(77, str(table)) == 0
    assert inode_of(77, str(tmp_path / "none")) is None


@pytest.mark.root
@pytest.mark.invariant("X2")
def test_what_is_gone_is_remembered_from_its_beginning() -> None:
    try:
        os.close(connector())
    except OSError as exc:
        pytest.skip(f"no exec events here: {exc.strerror}")
    observers = open_observers(realtime=False)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
            sock.bind((0, 0))
            process = subprocess.Popen(["/bin/sh", "-c", "sleep 0.2; exit 0"])
            process.wait()
        writer = observers.remembered(process.pid)
        assert writer is not None and (writer.pid, writer.uid) == (process.pid, os.getuid())
        assert "sleep 0.2" in writer.command
        assert observers.remembered(process.pid + 1024) is None and observers.remembered(-1) is None
    finally:
        observers.close()
