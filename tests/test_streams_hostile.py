"""An aggregator that somebody has taken over, with a stream passing through it. See ``sealed_kit``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sealed_kit import SEALED, Between, between, same

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    with between(tmp_path_factory.mktemp("s")) as kit:
        kit.add("root", "admin")
        kit.write_keys()
        roots = f'roots = ["{kit.public["root1"]}"]\n'
        kit.start_agent("n1", ("agg1", kit.below), cluster=f'{roots}{SEALED}[shell]\nroot = ["root"]\n')
        kit.until(lambda: "n1" in kit.rogue.relay.tree.where, "the node is there")
        kit.wait_for_key_of("root")
        yield kit


@pytest.fixture(autouse=True)
def honest_again(kit: Between) -> Iterator[None]:
    yield
    kit.rogue.up = kit.rogue.down = same
    vars(kit.rogue.relay).pop("received", None)


def pact(kit: Between, *words: str, stdin: bytes = b"") -> Any:
    """What becomes of this command line, while the rogue turns."""
    place = kit.base / "home" / ".config" / "pact"
    place.mkdir(parents=True, exist_ok=True)
    (place / "client.toml").write_text(
        f"via = {json.dumps(kit.below)}\nserver_key = {json.dumps(kit.public['agg1'])}\nsealed = true\n"
        f"key = {json.dumps(kit.secret('root'))}\nroots = [{json.dumps(kit.public['root1'])}]\n"
    )
    done: list[Any] = []

    def run() -> None:
        done.append(
            subprocess.run(
                [sys.executable, "-m", "pact.cli.main", *words],
                env={**os.environ, "HOME": str(kit.base / "home")},
                cwd=Path(__file__).parent.parent,
                input=stdin,
                capture_output=True,
                timeout=40,
                check=False,
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        kit.turn()
    return done[0]


Alter = Callable[[Any], list[Any]]


def passing(kit: Between, alter: Alter) -> list[bytes]:
    """What each message of a stream that comes to the rogue is to it from now on. Returns what it has seen."""
    seen: list[bytes] = []
    relay = kit.rogue.relay
    received = type(relay).received

    def turned(rid: bytes, peer: Any, message: Any, t_ns: int) -> list[Any]:
        if message.kind != "frames":
            return received(relay, rid, peer, message, t_ns)
        seen.append(bytes(message.body))
        return [effect for one in alter(message) for effect in received(relay, rid, peer, one, t_ns)]

    vars(relay)["received"] = turned
    return seen


def honest(message: Any) -> list[Any]:
    return [message]


def one_bit_of(size: int) -> Alter:
    """Changes one bit of each message with so many bytes of data."""

    def alter(message: Any) -> list[Any]:
        if message.head["size"] != size:
            return [message]
        body = bytearray(message.body)
        body[5] ^= 1
        return [message._replace(body=bytes(body))]

    return alter


@pytest.mark.invariant("T15")
@pytest.mark.parametrize("words", [("shell", "n1"), ("exec", "-L", "--nodes", "n1")])
def test_it_reads_nothing_and_shows_nothing_that_the_node_did_not_say(kit: Between, words: tuple[str, ...]) -> None:
    seen = passing(kit, honest)
    said = pact(kit, *words, "--", "echo good; sleep 1")
    assert said.returncode == 0 and b"good" in said.stdout, said
    assert len(seen) > 1 and not any(b"good" in body for body in seen)
    passing(kit, one_bit_of(5))
    said = pact(kit, *words, "--", "echo good; sleep 1")
    assert said.returncode != 0 and said.stdout == b"" and b"not from the other end" in said.stderr, said


@pytest.mark.invariant("T15")
def test_it_types_nothing(kit: Between, tmp_path: Path) -> None:
    seen = passing(kit, one_bit_of(11))
    said = pact(kit, "shell", "n1", "--", f"cd {tmp_path}; sh", stdin=b"touch good\n")
    assert said.returncode != 0 and b"not from the other end" in said.stderr, said
    assert len(seen) > 1 and not any(b"touch" in body for body in seen)
    assert not list(tmp_path.iterdir())


@pytest.mark.invariant("T15")
@pytest.mark.parametrize("how", ["twice", "later", "never", "made up"])
def test_it_says_nothing_again_or_later_and_leaves_nothing_out(kit: Between, how: str, tmp_path: Path) -> None:
    """A line that a person types is read once, or the stream ends and both sides know it."""
    kept: list[Any] = []

    def alter(message: Any) -> list[Any]:
        if message.head["size"] == 11:
            kept.append(message)
            made_up = message._replace(body=os.urandom(len(message.body)))
            return {"twice": [message, message], "later": [], "never": [], "made up": [made_up, message]}[how]
        return [message, *kept] if how == "later" and message.head["id"] else [message]

    passing(kit, alter)
    say = f"cd {tmp_path}; while read -r line; do echo x >> count; done"
    said = pact(kit, "shell", "n1", "--", say, stdin=b"touch good\n")
    count = tmp_path / "count"
    lines = count.read_text().count("x") if count.exists() else 0
    assert said.returncode != 0 and lines <= (how == "twice"), said
    assert b"lost on the way" in said.stderr or b"not from the other end" in said.stderr, said


@pytest.mark.invariant("T15")
def test_it_puts_no_key_of_its_own_in_between(kit: Between) -> None:
    """The keys of a stream travel in the call and in its answer, which are sealed."""
    import zmq

    mine = zmq.curve_keypair()[0]

    def other_key(message: Any) -> Any:
        body = bytes(message.body)
        at = body.find(b'"stream":"')
        if at < 0 or message.kind not in ("call", "request", "answer", "part", "parts"):
            return message
        at += len(b'"stream":"')
        return message._replace(body=body[:at] + mine + body[at + 40 :])

    for way in ("up", "down"):
        setattr(kit.rogue, way, other_key)
        said = pact(kit, "--timeout", "5s", "shell", "n1", "--", "echo secret")
        assert said.returncode != 0 and b"secret" not in said.stdout, (way, said)
        setattr(kit.rogue, way, same)
