"""Streams at the root: no socket, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from test_streams import frames

from pact.core.root.envelope import Asker, Envelope
from pact.core.root.routes import Routes
from pact.core.tree import wire
from pact.core.tree.wire import message


class Said:
    """What a root would say."""

    def __init__(self) -> None:
        self.down_: list[tuple[str, dict[str, Any], bytes]] = []

    def down(self, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        wire.encode(kind, head, body)
        self.down_.append((kind, head, body))

    def refuse(self, what: str, who: str = "", detail: str = "") -> None:
        self.refused = what

    def take(self) -> list[tuple[str, dict[str, Any], bytes]]:
        out, self.down_ = self.down_, []
        return out


def routes(op: str = "shell_open") -> tuple[Routes, Said]:
    said: Any = Said()
    made = Routes(said)
    made.begin("1.1", Envelope("agg:1", 7, op, "n1", Asker("ann", "admin")), ["n1", "n2"])
    return made, said


def test_the_root_joins_both_sides_of_what_it_asked() -> None:
    made, said = routes()
    made.frames(message("frames", frames(b"out"), b"out"))
    ((_, head, body),) = said.take()
    assert (head["client"], head["id"], head["call"], body) == ("agg:1", 7, "", b"out")
    made.frames(message("frames", {**frames(b"in", id=7), "client": "agg:1"}, b"in"))
    ((_, head, body),) = said.take()
    assert (head["client"], head["call"], body) == ("", "1.1", b"in")


@pytest.mark.invariant("T13")
@pytest.mark.parametrize(
    "head",
    [
        frames(call="1.2"),
        frames(node="n3"),
        {**frames(id=8), "client": "agg:1"},
        {**frames(id=7), "client": "agg:2"},
        {**frames(id=7, node="n3"), "client": "agg:1"},
    ],
)
def test_there_is_no_stream_that_the_root_has_not_asked_for(head: dict[str, Any]) -> None:
    made, said = routes()
    made.frames(message("frames", head))
    ((_, answer, _),) = said.take()
    assert answer["end"] and (answer["call"], answer["client"]) == (head.get("call", ""), head.get("client", ""))


def test_output_does_not_pass_as_a_terminal() -> None:
    made, said = routes("exec")
    made.frames(message("frames", frames(b"x"), b"x"))
    assert [h["end"] for _, h, _ in said.take()] == [True, True] and said.refused


def test_a_client_that_goes_ends_the_streams_that_have_begun() -> None:
    made, said = routes()
    made.frames(message("frames", frames(b"x"), b"x"))
    said.take()
    made.cancelled("agg:1", 0)
    ((_, head, _),) = said.take()
    assert head["end"] and head["call"] == "1.1" and head["node"] == "n1"
    made.frames(message("frames", frames(b"x"), b"x"))
    assert said.take()[0][1]["end"]


@pytest.mark.invariant("S8")
def test_a_route_of_which_no_stream_can_come_is_forgotten_and_the_relays_hear_so() -> None:
    made, said = routes("exec")
    made.answered("1.1", ["n1"], b'{"ok":true,"result":{"stdout":"\\"stream\\":1"}}')
    made.answered("1.2", ["n1"], b'{"ok":true,"result":{"stream":""}}')
    made.settled("1.2")
    assert made._by_call and not said.take()
    made.settled("1.1")
    assert not made._by_call and not made._by_client
    assert said.take() == [("drop", {"call": "1.1", "client": "agg:1", "id": 7}, b"")]
    made.frames(message("frames", frames(b"x", bulk=True), b"x"))
    assert said.take()[0][1]["end"], "what comes all the same is ended"


@pytest.mark.parametrize("how", ["answer", "frames"])
def test_a_stream_goes_on_after_all_have_answered_and_the_others_are_forgotten(how: str) -> None:
    made, said = routes("exec")
    if how == "answer":
        made.answered("1.1", ["n1"], b'{"ok":true,"result":{"stream":""}}')
    else:  # it came before the answer, or the answer is lost
        made.frames(message("frames", frames(b"x", bulk=True), b"x"))
        said.take()
    made.settled("1.1")
    assert not said.take() and list(made._by_call["1.1"].nodes) == ["n1"]
    made.frames(message("frames", frames(b"y", bulk=True), b"y"))
    assert said.take()[0][2] == b"y"
    made.frames(message("frames", frames(end=True, bulk=True)))
    assert not made._by_call


@pytest.mark.invariant("S8")
def test_a_client_that_asks_twice_under_one_number_leaves_its_first_request() -> None:
    """Else the root would keep a list of nodes for each, for ever: a viewer's key would be enough to fill its memory."""
    made, said = routes("exec")
    made.frames(message("frames", frames(b"x", bulk=True), b"x"))
    said.take()
    for n in range(2, 100):
        made.begin(f"1.{n}", Envelope("agg:1", 7, "exec", "n1", Asker("ann", "viewer")), ["n1", "n2"])
    assert len(made._by_call) == 1
    ((_, head, _),) = said.take()
    assert head["end"] and (head["call"], head["node"]) == ("1.1", "n1"), "what runs there ends, too"
    made.cancelled("agg:1", 7)
    assert not made._by_call and not made._by_client


def test_a_node_that_goes_ends_its_stream_at_the_client() -> None:
    made, said = routes()
    made.gone(["n1"])
    assert said.take() == [], "it has none"
    made.frames(message("frames", frames(b"x"), b"x"))
    said.take()
    made.gone(["n1", "n2"])
    ends = [h for _, h, _ in said.take()]
    assert [h["end"] for h in ends] == [True, True] and {h["client"] for h in ends} == {"agg:1", ""}
