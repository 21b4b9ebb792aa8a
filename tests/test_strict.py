"""The one decoder: what it lets through, and every entrance with the same set of nasty texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nasty
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_root import Chain

from pact._fast import reference
from pact.agent.config import load as load_config
from pact.agent.requests import parse
from pact.agent.veil import Veil, without_data
from pact.cluster.auth import parse as parse_keys
from pact.core import strict
from pact.core.node.events import Caller
from pact.core.root import chunks, log, public
from pact.core.root.answers import answer_of, refusal_of
from pact.core.root.chunks import build_chunk
from pact.core.root.log import RootState, Writer
from pact.core.tree import wire
from pact.declared.toml import Ignore, parse_text
from pact.errors import ConfigError, DeclaredError, PactError, RemoteProtocolError, RequestError
from pact.journal.moving import read_export
from pact.journal.rootlog_moving import read_backup
from pact.model import Actor, Owner

compiled = pytest.importorskip("pact._fast.strict")
ROOT = Path(__file__).parents[1]
MOST = 8 << 20
every_text = pytest.mark.parametrize("text", nasty.REFUSED.values(), ids=nasty.REFUSED.keys())
pytestmark = pytest.mark.invariant("S5")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)
PIECES = st.lists(
    st.sampled_from(
        [
            b"[",
            b"]",
            b"{",
            b"}",
            b":",
            b",",
            b'"',
            b"\\",
            b"1",
            b"-",
            b"9" * 20,
            b"e",
            b".",
            b"a",
            b'"a"',
            b"18446744073709551615",
            b"-9223372036854775808",
            b"0",
        ]
    ),
    max_size=40,
)


# -- the decoder ----------------------------------------------------------------------------------------------------


@every_text
def test_what_is_refused_says_why_and_holds_nothing_of_the_text(text: bytes) -> None:
    with pytest.raises(strict.NotStrictError) as refused:
        strict.loads(text, MOST)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", nasty.FINE.values(), ids=nasty.FINE.keys())
def test_what_is_let_through_can_be_written_and_shown(text: bytes) -> None:
    value = strict.loads(text, MOST)
    assert orjson.loads(orjson.dumps(value)) == value
    assert repr(value) and strict.shown(value)
    assert strict.loads(memoryview(text), MOST) == value == strict.loads(text.decode(), MOST)


@given(JSON)
def test_every_json_value_of_some_levels_comes_through_unchanged(value: Any) -> None:
    assert strict.loads(orjson.dumps(value), MOST) == value


def test_a_text_has_a_size() -> None:
    assert strict.loads(b"[1]", 3) == [1]
    with pytest.raises(strict.NotStrictError, match="3 bytes; at most 2"):
        strict.loads(b"[1]", 2)
    with pytest.raises(strict.NotStrictError, match="no object"):
        strict.loads_object(b"[1]", 3)


@given(PIECES, st.integers(0, 5))
def test_the_compiled_scan_finds_what_its_twin_finds(pieces: list[bytes], deepest: int) -> None:
    text = b"".join(pieces)
    found = []
    for backend in (compiled, reference):
        try:
            found.append(str(backend.members_in(text, deepest)))
        except ValueError as exc:
            found.append(f"refused: {exc}")
    assert found[0] == found[1], text


@given(JSON)
def test_the_compiled_count_is_that_of_its_twin_and_of_the_text(value: Any) -> None:
    count = compiled.members_of(value)
    assert count == reference.members_of(value) == compiled.members_in(orjson.dumps(value), 100)
    assert compiled.has_float(value) is reference.has_float(value)


class Table(dict[str, Any]):
    """One of its own, as orjson writes it too."""


@pytest.mark.parametrize(
    "value",
    [1.5, [1, 2.0], (1.5,), {"a": {"b": [None, True, {"c": (0.0,)}]}}, Table(a=1.5), [Table(b=[Table(c=-0.0)])]],
    ids=str,
)
def test_a_float_is_found_wherever_it_is(value: Any) -> None:
    assert compiled.has_float(value) is reference.has_float(value) is True
    assert compiled.has_float([1, "1.5", None, True, {}]) is reference.has_float([1, "1.5", None, True, {}]) is False


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 33 + "]" * 33,
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{b=" * 40 + "1" + "}" * 40,
        "a = nan",
        ".".join("a" * 60) + " = 1",
        "a = inf",
        "a = 18446744073709551616",
        "a = " + "9" * 5000,
        "a = 1\na = 2",
        'a = "\\ud800"',
        "[" + ".".join("x" * 5000) + "]",
    ],
)
def test_toml_is_read_as_strictly(text: str, tmp_path: Path) -> None:
    with pytest.raises(strict.NotStrictError):
        strict.toml(text)
    with pytest.raises(DeclaredError):
        parse_text(text.encode(), "d.toml", "/", Ignore())
    with pytest.raises(ConfigError):
        parse_keys(text, "authorized_keys.toml")
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "agent.toml"))


#: They run in processes of their own, and read what the agent itself writes to them.
OTHER_PROGRAMS = ("gpu_nvml.py", "package_dnf_script.py")


def test_nothing_else_parses() -> None:
    """Neither JSON nor TOML: whoever adds an entrance finds this test."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "pact").rglob("*.py"))
        for number, line in enumerate(path.read_text().split("\n"), 1)
        if re.search(r"\b(orjson|json|tomllib)\.loads?\(", line)
        and path != ROOT / "pact/core/strict.py"
        and "sim" not in path.parts
        and path.name not in OTHER_PROGRAMS
    ]
    assert found == []


# -- the entrances --------------------------------------------------------------------------------------------------


def refused_by(entrance: Callable[[bytes], object], text: bytes, *errors: type[Exception]) -> None:
    """As the whole, and within an object. An entrance raises what its callers expect."""
    for whole in (text, nasty.in_object(text), nasty.in_object(text, "data"), nasty.in_object(text, "args")):
        with pytest.raises(errors):
            entrance(whole)


@every_text
def test_requests_on_the_control_socket(text: bytes) -> None:
    refused_by(parse, text, RequestError)
    for line in (
        b'{"op":"ping","v":%b}',
        b'{"op":%b}',
        b'{"op":"show","args":{"seq":%b}}',
        b'{"op":"ping","args":{"x":%b}}',
        b'{"op":"declare","args":{"resources":{"sysctl:a":%b}}}',
    ):
        with pytest.raises(RequestError):
            parse(line.replace(b"%b", text))


@every_text
def test_heads_of_frames(text: bytes) -> None:
    codes = {kind.code for kind in wire.KINDS.values()}
    for code in sorted(codes):

        def decoded(head: bytes, code: int = code) -> wire.Message:
            return wire.decode(wire._HEADER.pack(wire.MAGIC, code, len(head)) + head)

        refused_by(decoded, text, RemoteProtocolError)


@every_text
def test_answers_of_nodes(text: bytes) -> None:
    for body in (
        text,
        nasty.in_object(text),
        b'{"exit":0,"message":%b,"result":{}}'.replace(b"%b", text),
        b'{"exit":0,"message":"","result":{"why":%b,"holders":[%b]}}'.replace(b"%b", text),
    ):
        answer = answer_of(body)
        assert answer.exit == 1 and answer.message == "an answer that makes no sense"
        assert orjson.dumps(refusal_of(answer).holders)


@every_text
def test_records_on_their_way_to_the_root(text: bytes) -> None:
    batch = Chain("n1").batch("committed", data={"x": "%"})
    for line in (text, nasty.in_object(text), batch.lines[0].replace(b'"%"', text)):
        with pytest.raises(ValueError, match="a line that is no JSON"):
            Writer(RootState(), 1, "root").take(chunks.Batch("n1", "", batch.incarnation, 0, [line]))


@pytest.mark.parametrize("levels", [32, 200, 300, 1000])
def test_a_log_that_holds_a_record_that_nobody_can_write_is_published_past_it(levels: int) -> None:
    """An older root let it in."""
    chain = Chain("n1")
    plain, odd, after = (chain.batch("committed", data={"x": "%"}).lines[0] for _ in range(3))
    odd = odd.replace(b'"%"', nasty.nested(levels))
    chunk = build_chunk(
        0, 1, 0, log.RootState().chunk_hash, {"committed": -1}, [chunks.Batch("n1", "", "i", 0, [plain, odd, after])]
    )
    seen = list(public.events(chunk, "c1"))
    assert [e.gseq for e in seen] == [0, 1, 2] and [orjson.loads(e.frames[1])["seq"] for e in seen] == [0, 1, 2]
    body = orjson.loads(seen[1].frames[2])
    assert body["hash"] == orjson.loads(odd)["hash"] and body["seq"] == 1
    assert body["data"] == ({"omitted": len(odd)} if levels > 253 else {"x": orjson.loads(nasty.nested(levels))})
    assert orjson.loads(seen[2].frames[2])["data"] == {"x": "%"}


@every_text
def test_requests_for_replays(text: bytes) -> None:
    for frames in ([text], [b"[" + text + b"]"], [b'["GET",' + text + b",0]"], [b'["GET","*",' + text + b"]"]):
        with pytest.raises(RequestError):
            public.request(tuple(frames))


@every_text
def test_lines_of_an_export_and_of_a_backup(text: bytes) -> None:
    digest = hashlib.sha256(b"").hexdigest().encode()
    for line in (
        text,
        nasty.in_object(text),
        b'{"blob":"%b","data":%t}'.replace(b"%b", digest).replace(b"%t", text),
        b'{"end":%t}'.replace(b"%t", text),
        b'{"root":%t}'.replace(b"%t", text),
    ):
        if b"\n" in line:
            continue
        with pytest.raises(PactError):
            list(read_export(iter([line])))
        with pytest.raises(PactError):
            read_backup([line])


@pytest.mark.parametrize("levels", [33, 253, 254, 300, 900])
def test_a_journal_that_holds_such_a_record_is_shown_followed_and_sent_past_it(levels: int) -> None:
    body = orjson.dumps({"v": 1, "seq": 5, "actor": {"user": "ann"}, "data": {"x": "%"}}).replace(
        b'"%"', nasty.nested(levels)
    )
    viewer = Caller(Actor("eve", 1, "viewer", "socket"), Owner("uid:1", "eve", 1))
    line = Veil(b"key").record_line(body, "h" * 64, viewer)
    assert orjson.loads(line)["seq"] == 5 and orjson.loads(line)["hash"] == "h" * 64
    assert strict.readable(line) == (orjson.loads(line)["data"] == {"omitted": len(body)})
    assert strict.readable(without_data(body, "h" * 64))
