"""Durations as people write them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.units import DURATION_MAX_NS, format_duration, parse_duration
from pact.model import NS_PER_S, decode_name, encode_name, split_id


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        ("90s", 90),
        ("15m", 900),
        ("4h", 14400),
        ("2d", 172800),
        ("0.5", 0.5),
        (0.25, 0.25),
        ("250ms", 0.25),
        (" 1 m ", 60),
        ("0", 0),
        ("1.5h", 5400),
    ],
)
def test_durations_mean_what_they_say(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == int(seconds * NS_PER_S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "m",
        "-1",
        "1 5m",
        "1w",
        "1M",
        "1.m",
        ".5",
        "1e3",
        "1m30s",
        "nan",
        "inf",
        True,
        False,
        "4000d",
        "9" * 5000,
        "1\n2",
        "0x10",
        "1s;",
        -5,
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)  # type: ignore[arg-type]


def test_a_number_too_long_to_print_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        parse_duration(10**5000)


@given(st.integers(0, DURATION_MAX_NS // NS_PER_S))
def test_what_is_shown_is_the_duration_to_two_units(seconds: int) -> None:
    parts = format_duration(seconds * NS_PER_S).split()
    total = sum(parse_duration(p) for p in parts) // NS_PER_S
    assert len(parts) <= 2
    assert total <= seconds
    assert seconds - total < max(60, total // 24 + 60)


def test_short_and_negative_durations_are_shown() -> None:
    assert format_duration(800_000_000) == "0.8s"
    assert format_duration(-90 * NS_PER_S) == "-1m 30s"
    assert format_duration(0) == "0s"


@given(st.one_of(st.binary(max_size=30), st.text(max_size=20).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_names_carry_any_bytes_on_one_printable_line(raw: bytes) -> None:
    name = encode_name(raw)
    assert decode_name(name) == raw
    assert encode_name(decode_name(name)) == name
    assert {unicodedata.category(c) for c in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    name.encode()


@pytest.mark.parametrize("name", ["%", "%4", "%zz", "a%", "%%", "%-1", "% 1"])
def test_malformed_escapes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="percent-escape"):
        decode_name(name)


@pytest.mark.parametrize("rid", ["", ":", "file", "file:", ":name"])
def test_what_is_no_resource_id_is_refused(rid: str) -> None:
    with pytest.raises(ValueError, match="resource id"):
        split_id(rid)
