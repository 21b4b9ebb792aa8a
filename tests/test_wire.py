"""The cluster's wire format: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.tree import checks, wire
from pact.errors import LocalProtocolError, RemoteProtocolError
from pact.limits import FRAME_MAX
from pact.sim.cluster import CommaSets

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
NUMBERS = st.integers(0, checks.NUMBER_MAX)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
CALLERS = st.fixed_dictionaries({"user": TEXTS, "role": TEXTS, "via": TEXTS})
BODIES = st.binary(max_size=200)


def sized(rows: list[list[Any]], bodies: list[bytes]) -> tuple[list[list[Any]], bytes]:
    return [[*row, len(body)] for row, body in zip(rows, bodies, strict=False)], b"".join(bodies[: len(rows)])


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, dict[str, Any], bytes]:
    kind = draw(st.sampled_from(["hello", "events", "answer", "call", "ack", "welcome", "request", "beat", "below"]))
    if kind in ("events", "answer"):
        bodies = draw(st.lists(BODIES, max_size=5))
        columns = [st.lists(NAMES, max_size=6)] if kind == "answer" else [NAMES, TEXTS, NUMBERS, NUMBERS]
        row = st.tuples(*columns).map(list)
        rows, body = sized(draw(st.lists(row, min_size=len(bodies), max_size=len(bodies))), bodies)
        if kind == "events":
            return kind, {"batches": rows}, body
        batch = st.tuples(NAMES, TEXTS, NUMBERS, NUMBERS).map(list)
        batches, lines = sized(draw(st.lists(batch, max_size=2)), [b"x", b"yy"])
        head = {"call": draw(TEXTS), "final": draw(st.booleans()), "parts": rows, "batches": batches}
        return kind, head, body + lines
    if kind == "hello":
        return (
            kind,
            {
                "v": 1,
                "role": "node",
                "name": draw(NAMES),
                "session": draw(NUMBERS),
                "groups": draw(st.lists(st.tuples(TEXTS, TEXTS, NUMBERS).map(list), max_size=3)),
            },
            b"",
        )
    if kind == "call":
        return (
            kind,
            {
                "call": draw(TEXTS),
                "op": draw(TEXTS),
                "nodes": draw(st.none() | st.lists(NAMES, max_size=9)),
                "caller": draw(CALLERS),
                "fence": draw(NUMBERS),
                "timeout_ms": draw(NUMBERS),
            },
            draw(BODIES),
        )
    if kind == "ack":
        cursor = st.tuples(NAMES, TEXTS, st.integers(-1, 1 << 62), st.booleans()).map(list)
        return kind, {"cursors": draw(st.lists(cursor, max_size=5))}, b""
    if kind == "welcome":
        return (
            kind,
            {
                "v": 1,
                "name": draw(NAMES),
                "path": draw(st.lists(NAMES, max_size=3)),
                "fence": draw(NUMBERS),
                "credit": draw(NUMBERS),
                "fleet": None,
            },
            b"",
        )
    if kind == "request":
        return kind, {"id": draw(NUMBERS), "op": draw(TEXTS), "nodes": draw(st.none() | TEXTS)}, draw(BODIES)
    return kind, {}, b""


@pytest.mark.invariant("T2")
@given(messages())
def test_what_goes_in_comes_out(made: tuple[str, dict[str, Any], bytes]) -> None:
    kind, head, body = made
    message = wire.decode(wire.encode(kind, head, body))
    assert (message.kind, message.body) == (kind, body)
    assert {f: message.head[f] for f in head} == head
    assert message.head.keys() == wire.KINDS[kind].fields.keys()  # what was left out has its default
    assert message == wire.message(kind, head, body)


SHORT = st.text(max_size=12)
PLAIN = st.from_regex(r"[\w.:-]{1,205}", fullmatch=True, alphabet=st.characters(codec="ascii"))
CALLED = SHORT | st.from_regex(r"[\w.-]{1,255}", fullmatch=True, alphabet=st.characters(codec="ascii"))
BATCHES = st.none() | st.tuples(
    CALLED,
    SHORT | st.just("0123456789abcdef"),
    st.integers(0, 1 << 64),
    st.integers(0, 1 << 21),
    st.binary(max_size=20),
)


@pytest.mark.invariant("T2")
@given(SHORT | PLAIN, CALLED, st.binary(max_size=40), BATCHES, st.binary(min_size=1, max_size=3), st.integers(0, 200))
def test_one_nodes_answer_is_written_and_read_as_any_other(
    call: str, name: str, body: bytes, batch: Any, noise: bytes, at: int
) -> None:
    """The short ways there and back, beside the long ones; with events, and without."""
    head: dict[str, Any] = {"call": call, "final": True, "parts": [[[name], len(body)]], "lost": []}
    rows, lines = ([], b"") if batch is None else ([[*batch[:4], len(batch[4])]], batch[4])
    if not 0 < len(name) <= checks.NAME_MAX:
        with pytest.raises(LocalProtocolError):
            wire.single_answer(call, name, body, rows, lines)
        return
    if rows:
        head["batches"] = rows
        if not (0 < len(batch[0]) <= checks.NAME_MAX and batch[2] <= checks.NUMBER_MAX):
            return  # an outbox has no such batch
    frame = wire.single_answer(call, name, body, rows, lines)
    assert frame == wire.encode("answer", head, body + lines)
    changed = frame[:at] + noise + frame[at + len(noise) :]
    for given_ in (frame, changed, memoryview(frame)):
        assert read(given_) == read_slowly(given_)
    message = wire.decode(frame)
    assert message == wire.message("answer", head, body + lines)
    assert list(wire.sections(message, "parts")) == [([[name], len(body)], body)]
    assert list(wire.sections(message, "batches")) == [(row, lines) for row in rows]


def read(frame: bytes | memoryview) -> Any:
    try:
        return wire.decode(frame)
    except RemoteProtocolError:
        return None


def read_slowly(frame: bytes | memoryview) -> Any:
    """As if no short way were known."""
    known = wire._SINGLE
    try:
        wire._SINGLE = re.compile(rb"(?!)")  # type: ignore[misc]
        return read(frame)
    finally:
        wire._SINGLE = known  # type: ignore[misc]


@given(messages(), st.data())
def test_a_frame_cut_anywhere_is_refused(made: tuple[str, dict[str, Any], bytes], data: st.DataObject) -> None:
    kind, head, body = made
    frame = wire.encode(kind, head, body)
    cut = data.draw(st.integers(0, len(frame) - 1))
    try:
        message = wire.decode(frame[:cut])
    except RemoteProtocolError:
        return
    assert not wire.KINDS[kind].sized  # only a body that is opaque can be cut unseen; ZeroMQ does not cut frames
    assert message.head == wire.decode(frame).head


@pytest.mark.invariant("T2")
@given(st.binary(max_size=100), st.sampled_from(sorted(k.code for k in wire.KINDS.values())), st.booleans())
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes, code: int, dressed: bool) -> None:
    frame = b"P1" + bytes([code]) + len(noise).to_bytes(4, "little") + noise if dressed else noise
    try:
        wire.decode(frame)
    except RemoteProtocolError:
        pass


@pytest.mark.invariant("T2")
@given(messages(), st.sampled_from([None, True, -2, 1.5, "x", [], {}, [[]], [["a"]], {"a": None}, 1 << 64]), st.data())
def test_a_field_of_a_wrong_type_is_refused_on_both_sides(made: Any, value: Any, data: st.DataObject) -> None:
    kind, head, body = made
    field = data.draw(st.sampled_from(sorted(wire.KINDS[kind].fields)))
    check = wire.KINDS[kind].fields[field][0]
    if check(value):
        return
    with pytest.raises(LocalProtocolError):
        wire.encode(kind, {**head, field: value}, body)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"", "0 bytes"),
        (b"P2\x02\x02\x00\x00\x00{}", "another version"),
        (b"P1\xff\x02\x00\x00\x00{}", "unknown kind 255"),
        (b"P1\x02\x09\x00\x00\x00{}", "a head of 9 bytes"),
        (b"P1\x02\x02\x00\x00\x00[]", "no object"),
        (b"P1\x02\x02\x00\x00\x00{}x", "a body where none belongs"),
        (b"P1\x05\x02\x00\x00\x00{}", "node is missing"),
        (b'P1\x03\x23\x00\x00\x00{"batches":[["n","i",0,1,9999999]]}x', "add up"),
    ],
)
def test_what_is_wrong_is_said(frame: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        wire.decode(frame)


def test_limits_have_effect() -> None:
    with pytest.raises(LocalProtocolError, match="too many for a frame"):
        wire.encode("request", {"id": 1, "op": "x"}, b"x" * FRAME_MAX)
    with pytest.raises(RemoteProtocolError, match="at most"):
        wire.decode(b"x" * (FRAME_MAX + 1))
    with pytest.raises(LocalProtocolError, match="node has the wrong"):
        wire.encode("ask", {"node": "n" * 254, "groups": []})
    with pytest.raises(LocalProtocolError, match="no field 'nodes'"):
        wire.encode("goodbye", {"nodes": 1})
    with pytest.raises(LocalProtocolError, match="no message"):
        wire.encode("shout", {})


def test_a_newer_peers_fields_are_passed_over() -> None:
    raw = b'{"node":"n1","groups":[],"shoe_size":44}'
    assert wire.decode(b"P1\x05" + len(raw).to_bytes(4, "little") + raw).head["node"] == "n1"


def test_sections_cut_the_body() -> None:
    head = {"batches": [["a", "i", 0, 1, 2], ["b", "i", 0, 1, 0], ["c", "i", 0, 2, 3]]}
    assert [b for _, b in wire.sections(wire.message("events", head, b"xxyyy"), "batches")] == [b"xx", b"", b"yyy"]


def test_a_root_of_a_new_log_can_welcome_before_its_first_record_is_durable() -> None:
    root = Root("root", RootState(), 7, CommaSets())
    head = {"v": 1, "name": "root", "path": [], "fence": 7, "credit": 1, "fleet": root.fleet()}
    assert wire.decode(wire.encode("welcome", head)).head["fleet"]["seq"] == 0
