"""Records: the bytes that are hashed, and a chain in which no change of any byte goes unnoticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.records import GENESIS, TYPES, Record, canonical, parse, rfc3339, seal, unhashed, verify
from pact.errors import ChainError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)


def chain(*datas: dict[str, Any]) -> list[Record]:
    out: list[Record] = []
    for seq, data in enumerate(datas):
        prev = out[-1].hash if out else GENESIS
        out.append(seal(seq, prev, "2026-01-01T00:00:00.000000Z", seq, "n1", "denied", {"user": "u"}, data)[0])
    return out


@given(JSON)
@pytest.mark.invariant("J3")
def test_canonical_bytes_are_what_formats_md_says(value: Any) -> None:
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert canonical(value) == expected
    assert canonical(orjson.loads(canonical(value))) == expected


@given(st.lists(OBJECTS, max_size=4))
@pytest.mark.invariant("J3")
def test_a_chain_links_each_hash_to_the_bytes_and_the_hash_before(datas: list[dict[str, Any]]) -> None:
    prev = GENESIS
    for record in verify(chain(*datas)):
        body = canonical(unhashed(record))
        assert record.hash == hashlib.sha256(bytes.fromhex(prev) + body).hexdigest()
        assert parse(body, record.hash) == record == parse(canonical(record.to_json()))
        prev = record.hash


@pytest.mark.invariant("J3")
def test_no_float_is_hashed() -> None:
    for value in (1.0, [1.0], {"a": [{"b": 0.5}]}, {"a": (1.5,)}):
        with pytest.raises(AssertionError, match="float"):
            canonical(value)


RECORDS = chain({"a": 1, "b": "text"}, {"c": None}, {"d": [True]}, {"e": "é"})


def outcome(records: list[Record]) -> int | None:
    """The record that is named as wrong; ``None`` if all is well."""
    try:
        list(verify(records))
    except ChainError as exc:
        return exc.seq
    return None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seq", 7),
        ("prev", "1" * 64),
        ("hash", "2" * 64),
        ("time", "2026-01-01T00:00:00.000001Z"),
        ("t_ns", 99),
        ("t_ns", 1.0),
        ("node", "n2"),
        ("type", "declared"),
        ("actor", {"user": "v"}),
        ("data", {}),
        ("data", {"c": 0.5}),
        ("data", None),
        ("hash", ""),
        ("node", None),
    ],
)
@pytest.mark.invariant("J3")
def test_a_changed_field_is_found_in_its_record(name: str, value: Any) -> None:
    changed = [*RECORDS[:1], replace(RECORDS[1], **{name: value}), *RECORDS[2:]]
    assert outcome(changed) == 1


@pytest.mark.invariant("J3")
def test_gaps_repetitions_and_another_order_are_found() -> None:
    assert outcome(RECORDS) is None
    assert outcome(RECORDS[1:]) == 0
    assert outcome([RECORDS[0], *RECORDS[2:]]) == 1
    assert outcome([*RECORDS[:2], RECORDS[1], *RECORDS[2:]]) == 2
    assert outcome([RECORDS[0], RECORDS[2], RECORDS[1], RECORDS[3]]) == 1
    forged = seal(1, RECORDS[0].hash, RECORDS[1].time, 1, "n1", "denied", {"user": "u"}, {"c": "forged"})[0]
    assert outcome([RECORDS[0], forged, *RECORDS[2:]]) == 2


@given(st.integers(0, 10_000), st.integers(1, 255))
@pytest.mark.invariant("J3")
def test_a_change_of_any_byte_is_found(position: int, flip: int) -> None:
    lines = [bytearray(canonical(r.to_json())) for r in RECORDS]
    at = position % sum(map(len, lines))
    number = 0
    while at >= len(lines[number]):
        at -= len(lines[number])
        number += 1
    lines[number][at] ^= flip
    try:
        records = [parse(bytes(line)) for line in lines]
    except ValueError:
        return  # no record any more
    assert outcome(records) == number or canonical(records[number].to_json()) == canonical(RECORDS[number].to_json())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"v":1}',
        b'{"v":2,"seq":0}',
        b"\xff",
        b'"text"',
        b"{" * 3000,
        canonical({**RECORDS[0].to_json(), "extra": 1}),
    ],
)
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"record|line 1"):
        parse(raw)


def test_types_that_nobody_knows_are_not_written() -> None:
    assert "denied" in TYPES
    with pytest.raises(AssertionError):
        seal(0, GENESIS, "", 0, "n1", "surprise", {}, {})


def test_times_are_rfc_3339_in_utc_with_microseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"


def test_in_tests_what_is_said_to_be_frozen_is() -> None:
    record = seal(0, GENESIS, "", 0, "n", "declared", {}, {})[0]
    with pytest.raises(FrozenInstanceError):
        record.seq = 1  # type: ignore[misc]


@pytest.mark.invariant("J1")
def test_a_decision_about_thousands_is_several_bounded_records_and_one_transaction() -> None:
    from pact.core.records import PIECE_MAX
    from pact.model import Declared
    from pact.sim.parts import person
    from pact.sim.world import World

    world, root = World(), person("root", "admin", 0)
    names = [f"file:/f{i}" for i in range(2 * PIECE_MAX + 7)]
    for name in names:
        world.machine[name] = {"value": "0"}
    world.start({name: Declared({"value": "0"}) for name in names})
    for name in names:
        world.write(name, {"value": "1"}, root.owner)
    before, batches = len(world.journal), list[int]()
    perform = world._perform

    def counted(effects: list[object]) -> None:
        at = len(world.journal)
        perform(effects)  # type: ignore[arg-type]
        if len(world.journal) > at:
            batches.append(len(world.journal) - at)

    world._perform = counted  # type: ignore[method-assign,assignment]
    reply = world.ask("commit", root, targets=[], all=True, message="m")
    made = [r for r in world.journal[before:] if r.type == "committed"]
    assert [r.data["part"] for r in made] == [[1, 3], [2, 3], [3, 3]] and batches[0] == 3, "one transaction"
    assert max(len(r.data["resources"]) for r in made) == PIECE_MAX and not world.node.state.changes
    assert reply is not None and len(reply.result["committed"]) == 1, "one decision, one answer"
    assert reply.result["committed"][0]["resources"] == sorted(names)
    world.check()


def test_an_earlier_state_takes_a_decision_of_several_records_whole(tmp_path: Path) -> None:
    from pact.agent.replayed import state_at
    from pact.core.records import PIECE_MAX
    from pact.journal.sqlite import SqliteJournal
    from pact.model import Declared
    from pact.sim.parts import person
    from pact.sim.world import World

    world, root = World(), person("root", "admin", 0)
    names = [f"file:/f{i}" for i in range(2 * PIECE_MAX)]
    world.machine.update({name: {"value": "0"} for name in names})
    world.start({name: Declared({"value": "0"}) for name in names})
    for name in names:
        world.write(name, {"value": "1"}, root.owner)
    world.ask("commit", root, targets=[], all=True, message="m")
    first, last = [r for r in world.journal if r.type == "committed"]
    journal = SqliteJournal(str(tmp_path / "journal.db"))
    journal.append([(r, canonical(unhashed(r))) for r in world.journal], {})
    journal.close()
    for seq in (first.seq, last.seq):
        state = state_at(str(tmp_path / "journal.db"), seq)
        declared = [state.declared(name) for name in names]
        assert all(d is not None and d.attrs == {"value": "1"} for d in declared), seq
