"""An operator's connection, where there is no root just now."""

from __future__ import annotations

import contextlib
import gc
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from cluster_kit import Kit, free_ports

from pact.cli import main
from pact.cluster.client import Parts, Result, RootClient
from pact.core.tree import wire
from pact.core.tree.wire import Message, message
from pact.errors import DeniedError, UnreachableError
from pact.limits import TREE_CLIENTS_EACH_MAX
from pact.net import keys


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, {"root1": "aggregator", "agg1": "aggregator", "olga": "ops"})
    yield kit
    kit.close()


def connected(kit: Kit, *servers: tuple[str, str], said: list[str]) -> RootClient:
    return RootClient([(url, kit.public[n]) for n, url in servers], keys.load(kit.secret("olga")), "olga", said.append)


def started(kit: Kit, root: str) -> str:
    """The url of an aggregator that listens."""
    url = kit.start_aggregator("agg1", ("root1", root))
    while "ready" not in kit.logs():
        assert kit.processes["agg1"].poll() is None, kit.logs()
        time.sleep(0.05)
    return url


def test_who_asks_while_there_is_no_root_waits_for_one(kit: Kit) -> None:
    kit.start_root()  # which says nothing as long as it is not turned
    agg = ("agg1", started(kit, kit.url))
    nobody = ("root1", f"tcp://127.0.0.1:{free_ports(1)[0]}")
    said: list[str] = []
    under: list[str] = []

    def ask() -> None:
        with connected(kit, nobody, agg, said=said) as client:
            under.append(client.url)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(3)
    assert thread.is_alive() and len(said) == 1 and "no way to the root" in said[0], said
    kit.until(lambda: under, "connected")
    assert under == [agg[1]] and len(said) == 1
    thread.join(20)


def test_who_waits_for_a_root_in_vain_is_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pact.cluster.client.ROOTLESS_S", 1.5)
    agg = ("agg1", started(kit, f"tcp://127.0.0.1:{free_ports(1)[0]}"))
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="no way to the root"):
        connected(kit, ("root1", f"tcp://127.0.0.1:{free_ports(1)[0]}"), agg, said=said)
    assert len(said) == 1 and 1.5 < time.monotonic() - began < 10


def test_servers_that_say_nothing_do_not_use_up_the_time_of_the_others(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that was switched off stands before the one that is about to lead."""
    monkeypatch.setattr("pact.cluster.client.WELCOME_S", 2.0)
    monkeypatch.setattr("pact.cluster.client.AGAIN_S", 0.5)
    monkeypatch.setattr("pact.cluster.client.ROOTLESS_S", 4.0)
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    said: list[str] = []
    under: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        off = ("root1", f"tcp://127.0.0.1:{silent.getsockname()[1]}")

        def ask() -> None:
            with connected(kit, off, off, agg, said=said) as client:
                under.append(client.url)

        thread = threading.Thread(target=ask)
        thread.start()
        while not said and thread.is_alive():
            time.sleep(0.05)
        kit.until(lambda: under, "connected", 8)
        thread.join(20)
    assert under == [agg[1]]


def test_forty_commands_that_wait_with_one_key_hear_of_the_root_and_nothing_else(kit: Kit) -> None:
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    problems: list[str] = []
    under: list[str] = []

    def ask() -> None:
        try:
            with connected(kit, agg, said=[]) as client:
                under.append(client.url)
        except UnreachableError as exc:
            problems.append(exc.message)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    kit.until(lambda: len(under) + len(problems) == len(threads), "everybody has an answer", 30)
    for thread in threads:
        thread.join(20)
    assert not problems, problems


def test_who_waited_for_a_root_that_came_is_told_why_it_is_not_taken(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pact.cluster.client.ROOTLESS_S", 6.0)
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    done, problems, under = threading.Event(), [], []

    def ask() -> None:
        try:
            with connected(kit, agg, said=[]) as client:
                under.append(client.url)
                while not done.is_set():  # as a long command does
                    time.sleep(0.5)
                    client._send("beat", {})
        except UnreachableError as exc:
            problems.append(exc.message)

    threads = [threading.Thread(target=ask) for _ in range(TREE_CLIENTS_EACH_MAX + 2)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    kit.until(lambda: len(problems) == 2, "two too many", 30)
    done.set()
    for thread in threads:
        thread.join(20)
    assert len(under) == TREE_CLIENTS_EACH_MAX and all("too many connections" in p for p in problems), problems


def test_whose_key_is_removed_while_it_waits_is_told_so_and_nothing_stays_open(kit: Kit) -> None:
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    said: list[str] = []
    with pytest.raises(DeniedError, match="does not know the key"):
        RootClient(
            [(agg[1], kit.public["agg1"])],
            keys.load(kit.secret("olga")),
            "olga",
            lambda why: (said.append(why), kit.write_keys(without=["olga"]))[0],
        )
    assert said
    gc.collect()  # a socket that was left open would be said to be


def test_one_server_that_does_not_know_the_key_does_not_stand_before_another_that_does(
    kit: Kit, tmp_path: Path
) -> None:
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    (tmp_path / "old").mkdir()
    old = Kit(tmp_path / "old", {"root2": "aggregator"})  # its file of keys has not been brought up to date
    try:
        old.start_root("root2")
        kit.public["root2"] = old.public["root2"]
        under: list[str] = []
        problems: list[Exception] = []

        def ask(*servers: tuple[str, str]) -> None:
            try:
                with connected(kit, *servers, said=[]) as client:
                    under.append(client.url)
            except DeniedError as exc:
                problems.append(exc)

        stale, nobody = ("root2", old.url), ("root1", f"tcp://127.0.0.1:{free_ports(1)[0]}")
        for servers in [(stale, agg), (stale, nobody)]:
            thread = threading.Thread(target=ask, args=servers)
            thread.start()
            while thread.is_alive():
                kit.turn(0.02)
                old.turn(0.02)
        assert under == [agg[1]] and "does not know the key" in str(problems[0]) and len(problems) == 1
    finally:
        old.close()


def test_too_many_connections_with_one_key_are_no_missing_root(kit: Kit) -> None:
    kit.start_root()
    agg = ("agg1", started(kit, kit.url))
    kit.during(1.0)
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        took: list[RootClient] = []

        def ask() -> None:
            with pytest.raises(UnreachableError, match="too many connections"):
                for _ in range(64):
                    took.append(stack.enter_context(connected(kit, agg, said=said)))

        thread = threading.Thread(target=ask)
        thread.start()
        kit.until(lambda: not thread.is_alive(), "refused")
        assert took and not said


def test_who_is_not_there_at_all_is_not_waited_for(kit: Kit) -> None:
    said: list[str] = []
    with pytest.raises(UnreachableError, match="nobody listens there"):
        connected(kit, ("root1", f"tcp://127.0.0.1:{free_ports(1)[0]}"), said=said)
    assert not said


def test_whose_key_is_removed_while_a_command_runs_is_denied(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.start_root()
    url = started(kit, kit.url)
    kit.during(1.0)
    codes: list[int] = []

    def run() -> None:
        codes.append(
            main.main(["--via", url, "--server-key", kit.public["agg1"], "--key", kit.secret("olga"), "watch"])
        )

    thread = threading.Thread(target=run)
    thread.start()
    kit.until(lambda: any(m.kind == "request" for m in kit.stand_in.got), "it watches")
    kit.write_keys(without=["olga"])
    kit.until(lambda: not thread.is_alive(), "it ended")
    assert codes == [3]
    assert "does not know the key of olga any more" in capsys.readouterr().err


def test_a_file_in_the_working_directory_does_not_replace_the_key_that_was_pinned(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.start_root()
    url, pinned = started(kit, kit.url), kit.public["agg1"]
    home = tmp_path / "home"
    (home / ".config" / "pact").mkdir(parents=True)
    for at in (home, home / ".config" / "pact"):
        planted = at / pinned.lstrip("/")
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_text(kit.public["root1"])
    (home / ".config" / "pact" / "root.key").write_text(pinned)
    (home / "root.key").write_text(kit.public["root1"])
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    command, asked = ["--via", url, "--key", kit.secret("olga"), "--timeout", "4", "nodes"], 0
    for option, told in ([], pinned), (["--server-key", pinned], ""), ([], "root.key"):
        (home / ".config" / "pact" / "client.toml").write_text(f"server_key = '{told}'" if told else "")
        thread = threading.Thread(target=main.main, args=([*option, *command],))
        thread.start()
        kit.until(lambda: not thread.is_alive() or sum(m.kind == "request" for m in kit.stand_in.got) > asked, "asked")  # noqa: B023
        now = sum(m.kind == "request" for m in kit.stand_in.got)
        assert now == asked + 1
        thread.join(10)
        asked = now


def test_a_wrong_key_of_the_server_is_not_a_server_that_is_not_there(kit: Kit) -> None:
    kit.start_root()
    url = started(kit, kit.url)
    for servers in [("root1", url)], [("root1", url), ("root1", url)]:
        with pytest.raises(UnreachableError, match="is --server-key its key") as caught:
            connected(kit, *servers, said=[])
        assert "nobody listens" not in caught.value.message


def test_a_name_that_no_host_has_is_said_to_be_perhaps_that(kit: Kit) -> None:
    with pytest.raises(UnreachableError, match="or no host has this name"):
        connected(kit, ("root1", f"tcp://nowhere.invalid:{free_ports(1)[0]}"), said=[])


INTERRUPTED = """
import signal, sys
from pact.cluster.client import RootClient
from pact.errors import PactError
from pact.net import keys

def at_line(frame, event, arg):  # as if somebody had pressed Ctrl-C here
    global left
    left -= 1
    if left == 0:
        signal.raise_signal(signal.SIGINT)
    return at_line

key, place, server, public = keys.load(sys.argv[1]), 0, sys.argv[2], sys.argv[3]
while True:
    place += 1
    left = place
    signal.alarm(10)
    try:
        sys.settrace(at_line)
        RootClient([(server, public)], key, "olga", timeout_s=0.01)
    except KeyboardInterrupt:
        pass
    except PactError:  # it was over before
        sys.settrace(None)
        break
    sys.settrace(None)
print(place)
"""


def test_who_interrupts_it_is_never_left_waiting(kit: Kit) -> None:
    """Also not while a socket is being made: the end of its context would wait for it for ever."""
    url = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    words = [sys.executable, "-c", INTERRUPTED, kit.secret("olga"), url, kit.public["root1"]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and int(done.stdout) > 100, done


@pytest.mark.parametrize("asks", [False, True])
def test_what_has_come_before_the_connection_broke_is_read_to_its_end(asks: bool) -> None:
    """One second after that it was lost, though it waited to be read: who reads slowly never saw it."""
    client = RootClient.__new__(RootClient)
    client.url, client._id, client._timeout_s, client._ends_s = "tcp://agg1:7417", 1, 0.0, math.inf
    client._sent_s = client._heard_s = time.monotonic()
    client._broken_s = 0.0  # long ago
    client._monitor = SimpleNamespace(poll=lambda _: 0)  # type: ignore[assignment]
    got: list[bytes] = []
    client.on_frames = lambda m: got.append(bytes(m.body))
    with zmq.Context(1) as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        theirs.bind("inproc://it")
        ours.connect("inproc://it")
        client._sock = ours
        for n in range(5):
            theirs.send(wire.encode("frames", {"client": "x", "id": 1, "node": "n1", "n": n}, b"%d" % n))
            part = {"client": "x", "id": 1, "parts": [[["n1"], 1]]}
            if asks:
                theirs.send(wire.encode("parts", part, b"%d" % n))
        with pytest.raises(UnreachableError, match="lost contact"):
            if asks:
                for item in client._answers(None):
                    assert isinstance(item, Parts)
                    got.append(item.body)
            while True:
                client.pump(0, 1)
    assert got == [b"%d" % n for n in range(5) for _ in range(1 + asks)]


def test_who_was_silent_for_long_is_answered_all_the_same(kit: Kit) -> None:
    """A client that says nothing between two requests is forgotten after six seconds."""
    root = kit.start_root()
    heard = root.received

    def answered(m: Message, t_ns: int, wall_ns: int) -> list[Message]:
        if m.kind != "request":
            return heard(m, t_ns, wall_ns)
        return [message("result", {"client": m.head["client"], "id": m.head["id"]}, b"{}")]

    root.received = answered  # type: ignore[method-assign]
    told: list[int] = []

    def ask() -> None:
        with connected(kit, ("root1", kit.url), said=[]) as client:
            for pause_s in (0.0, 7.0):
                time.sleep(pause_s)
                told.extend(i.exit for i in client.ask("holds", {}, None) if isinstance(i, Result))

    thread = threading.Thread(target=ask)
    thread.start()
    kit.until(lambda: not thread.is_alive(), "both are answered", 30)
    assert told == [0, 0]
