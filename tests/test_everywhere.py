"""One command on many nodes, from the person's side, without a tree."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from pact.cli import everywhere
from pact.cluster.client import Parts
from pact.core.tree.wire import message
from pact.errors import UnreachableError, UsageError
from pact.net.ends import End
from pact.session import frames


class Cut:
    """A connection that is lost after some answers."""

    seals = False

    def __init__(self, *names: str) -> None:
        self.names = names

    def ask(self, *_: Any) -> Iterator[Any]:
        for name in self.names:
            said = {"ok": True, "exit": 0, "message": "", "hint": "", "result": {"exit": 0, "stdout": "good\n"}}
            yield Parts([name], orjson.dumps(said))
        raise UnreachableError("lost contact with tcp://agg1:7417")

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("as_json", [False, True])
def test_what_came_before_the_connection_was_lost_is_shown(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command ran there: who asked must not have to run it again to see what it said."""
    args = argparse.Namespace(timeout=None, output_max=1 << 20, live=False, json=as_json, no_stdin=True, nodes="n[1-3]")
    monkeypatch.setattr(everywhere.signal, "signal", lambda *_: None)
    for names in ((), ("n1", "n2")):

        @contextmanager
        def connected(_: Any, names: tuple[str, ...] = names) -> Iterator[Any]:
            yield Cut(*names)

        monkeypatch.setattr(everywhere, "connected", connected)
        with pytest.raises(UnreachableError, match="lost contact"):
            everywhere.run(args, ["true"])
        assert ("good" in capfd.readouterr().out) == bool(names)


@pytest.mark.parametrize("later", ["n[7-9]", ""])
def test_a_group_is_looked_up_once_and_what_has_come_is_shown(
    later: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A group of idle nodes names others once the command runs, or its lookup fails: that lost all that had come."""
    looked, asked = [], []

    def resolved(text: str) -> str:
        looked.append(text)
        if len(looked) > 1 and not later:
            raise UsageError("the batch system does not answer")
        return "n[1-3]" if len(looked) == 1 else later

    class Asked(Cut):
        def ask(self, op: str, fields: Any, nodes: str, *_: Any) -> Iterator[Any]:
            asked.append(nodes)
            yield from super().ask()

    @contextmanager
    def connected(_: Any) -> Iterator[Any]:
        yield Asked("n1")

    args = argparse.Namespace(timeout=None, output_max=1 << 20, live=False, json=True, no_stdin=True, nodes="@idle")
    monkeypatch.setattr(everywhere.signal, "signal", lambda *_: None)
    monkeypatch.setattr(everywhere, "connected", connected)
    monkeypatch.setattr("pact.cluster.nodesets.resolved", resolved)
    with pytest.raises(UnreachableError):
        everywhere.run(args, ["true"])
    said = orjson.loads(capfd.readouterr().out)
    assert said["nodes"]["n1"]["stdout"] == "good\n"
    assert said["failed"] == {"n[2-3]": everywhere.NO_ANSWER}
    assert asked == ["n[1-3]"] and looked == ["@idle"]


def test_whoever_reads_slowly_is_waited_for_and_the_tree_hears_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pact exec -L | less``: after six silent seconds the tree would end the commands."""
    monkeypatch.setattr(everywhere, "BEAT_S", 0.05)
    beats: list[float] = []
    client: Any = Cut()
    client.lives = lambda: beats.append(time.monotonic())
    out, shown = os.pipe()
    told: list[bytes] = []

    def reader() -> None:
        while len(beats) < 3:
            time.sleep(0.01)
        with os.fdopen(out, "rb") as f:
            told.append(f.read())

    thread = threading.Thread(target=reader)
    thread.start()
    with os.fdopen(shown, "w") as f:
        monkeypatch.setattr(sys, "stdout", f)
        everywhere.Everywhere(client, live=True)._lines("n1", b"O", b"\n".join([b"x" * 999] * 300))
    thread.join(30)
    assert told[0].splitlines() == [b"n1: " + b"x" * 999] * 300


def test_what_has_come_is_shown_where_nothing_can_be_said_any_more() -> None:
    """The key was removed: what was read is said to nobody, and was read all the same."""
    client: Any = Cut()

    def fails(*_: Any) -> None:
        raise UnreachableError("lost contact with tcp://agg1:7417")

    client.took = client.stream = fails
    all_ = everywhere.Everywhere(client, live=False)
    one = all_.nodes["n1"] = everywhere.Output("n1", end=End(b"", node=False))
    said, node = frames.frame(b"O", b"x" * frames.PAYLOAD_MAX), End(b"", node=True)
    came = 0
    with pytest.raises(UnreachableError):
        for _ in range(100):
            head, body = node.say(said, len(said))
            came += frames.PAYLOAD_MAX
            all_._came(message("frames", {"node": "n1", "bulk": True, **head}, body))
    assert len(one.out[b"O"]) == came
