"""What comes over the control socket is a request or a named mistake, whatever the bytes."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.agent import requests
from pact.agent.driver import Driver
from pact.agent.requests import ALL_FIELDS, FIELDS, Requests, parse
from pact.core.node.step import _OPS
from pact.core.ops import AT_NODE, needed
from pact.errors import EXIT_USAGE, RequestError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
GOOD: dict[type, Any] = {list: ["file:/a"], int: 5, bool: True, str: "text", dict: {}, type(None): None}


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("op", FIELDS)
def test_every_request_is_understood_with_all_of_its_fields(op: str) -> None:
    args = {key: GOOD[types[0]] for key, types in FIELDS[op].items()}
    assert parse(dump({"v": 1, "op": op, "args": args})) == (op, args)


@pytest.mark.parametrize("op", FIELDS)
def test_a_request_may_leave_out_what_is_not_needed(op: str) -> None:
    args = {key: GOOD[FIELDS[op][key][0]] for key in needed(AT_NODE[op])}
    assert parse(dump({"op": op, "args": args})) == (op, args)
    for key in args:
        with pytest.raises(RequestError, match=f"{op}: {key} is missing"):
            parse(dump({"op": op, "args": {k: v for k, v in args.items() if k != key}}))


@pytest.mark.parametrize(("op", "key"), [(op, key) for op, keys in FIELDS.items() for key in keys])
def test_a_field_of_the_wrong_type_is_named(op: str, key: str) -> None:
    types = FIELDS[op][key]
    for type_, value in [*GOOD.items(), (float, 1.5)]:
        if type_ not in types:
            with pytest.raises(RequestError, match=f"{op}: {key} has the wrong type"):
                parse(dump({"op": op, "args": {key: value}}))
    if list in types:
        with pytest.raises(RequestError, match=f"{key} must be a list of strings"):
            parse(dump({"op": op, "args": {key: [1]}}))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a request is"),
        (b"null", "a request is"),
        (b'{"op":5}', "a request is"),
        (b'{"op":"ping","args":[]}', "a request is"),
        (b'{"op":"reboot"}', "unknown request 'reboot'"),
        (b'{"op":"ping","v":2}', "version 2 is not spoken"),
        (b'{"op":"ping","args":{"x":1}}', "ping: unknown field 'x'"),
        (b"GET / HTTP/1.1\r", "not JSON"),
        (b'{"op":"extend","args":{"by_ns":18446744073709551615}}', "by_ns is out of range"),
        (b'{"op":"show","args":{"seq":-9223372036854775808}}', "seq is out of range"),
    ],
)
def test_what_is_no_request_is_named(line: bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse(line)
    assert caught.value.exit_code == EXIT_USAGE


@given(
    st.one_of(
        st.binary(max_size=60),
        JSON.map(orjson.dumps),
        st.fixed_dictionaries(
            {"op": st.one_of(st.sampled_from(sorted(FIELDS)), TEXT)},
            optional={
                "v": JSON,
                "args": st.one_of(
                    JSON,
                    st.dictionaries(
                        st.sampled_from(sorted({k for keys in FIELDS.values() for k in keys})), JSON, max_size=3
                    ),
                ),
            },
        ).map(orjson.dumps),
    )
)
def test_any_bytes_are_a_request_or_a_request_error(line: bytes) -> None:
    try:
        op, args = parse(line)
    except RequestError as exc:
        assert exc.message
        return
    assert set(args) <= set(FIELDS[op])


def test_whatever_the_core_carries_out_the_agent_takes() -> None:
    assert _OPS.keys() <= ALL_FIELDS.keys()
    args = {"group": "g1", "fence": 3}
    assert parse(dump({"v": 1, "op": "group_state", "args": args}), ALL_FIELDS) == ("group_state", args)


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    "holds",
    [
        [{}],
        [5],
        [{"hold": "f1"}],
        [{"hold": "f1", "owner": 5, "reason": "", "ends": "", "left_ns": 1}],
        [{"hold": "f1", "owner": "o", "reason": "", "ends": "", "left_ns": -1}],
    ],
)
def test_holds_that_are_none_are_refused_before_the_core_sees_them(holds: Any) -> None:
    with pytest.raises(RequestError, match="no holds"):
        parse(dump({"op": "fleet_seen", "args": {"fence": 1, "seq": 1, "holds": holds}}), ALL_FIELDS)


@pytest.mark.invariant("S5")
def test_what_breaks_before_anything_is_decided_ends_one_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern that could not be compiled once ended the agent, whoever had sent it."""

    def broken(patterns: Any) -> Any:
        raise RuntimeError("nobody expected this")

    def nothing(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(requests, "checked_patterns", broken)
    said: list[Any] = []
    actor = SimpleNamespace(role="admin", uid=7)
    client: Any = SimpleNamespace(
        tokens=set(),
        remote=False,
        alive=False,
        watching=False,
        admin=True,
        send=said.append,
        caller=SimpleNamespace(actor=actor),
    )
    agent: Any = SimpleNamespace(
        require_journal=nothing,
        make_room=nothing,
        looking=lambda *_: iter(()),
        clock=SimpleNamespace(now_ns=lambda: 0),
        next_token=lambda: 1,
        fail=partial(Driver.fail, None),
    )
    Requests(agent).line(client, b'{"op":"track","args":{"patterns":{"file:/x/*":"report"}}}')
    assert [s["exit"] for s in said] == [1] and "internal error" in said[0]["message"]
    assert "nobody expected this" in capsys.readouterr().err
