"""Texts that no entrance may fall over: each is refused, or is harmless; nothing and nobody ends."""

from __future__ import annotations


def nested(levels: int, inner: bytes = b"") -> bytes:
    return b"[" * levels + inner + b"]" * levels


def objects(levels: int, key: bytes = b"a") -> bytes:
    return b'{"' + key + b'":' + (b'{"a":' * (levels - 1)) + b"1" + b"}" * levels


#: No value of these is let through anywhere. Where a text has to be an object, they stand in one (``in_object``).
REFUSED: dict[str, bytes] = {
    "33 lists": nested(33),
    "255 lists": nested(255),
    "1024 lists": nested(1024),
    "2000 lists": nested(2000),
    "a million lists": b"[" * 1_000_000,
    "33 objects": objects(33),
    "300 objects": objects(300),
    "1500 objects": objects(1500),
    "lists and objects in turn": b'[{"a":' * 200 + b"1" + b"}]" * 200,
    "65 bits": b"18446744073709551616",
    "65 bits below": b"-9223372036854775809",
    "300 digits": b"9" * 300,
    "40,000 digits": b"-" + b"7" * 40_000,
    "infinite": b"1e999",
    "not a number": b"NaN",
    "infinity": b"-Infinity",
    "a key twice": b'{"a":1,"a":1}',
    "a key twice within": b'[{"b":{"a":[],"x":0,"a":2}}]',
    "a key twice, written otherwise": b'{"a":1,"\\u0061":2}',
    "no Unicode": b'"\xff\xfe"',
    "half a surrogate": b'"\\ud800"',
    "a surrogate in bytes": b'"\xed\xa0\x80"',
    "a byte order mark": b"\xef\xbb\xbf1",
    "cut off": b'{"a":',
    "nothing": b"",
    "two values": b"1 2",
    "a comma too many": b"[1,]",
    "a bare word": b"root",
    "a NUL": b"\0",
    "zero first": b"01",
    "single quotes": b"{'a':1}",
    "a comment": b"1 // one",
    "a control character": b'"a\nb"',
}
#: Let through, as what they are.
FINE: dict[str, bytes] = {
    "32 lists": nested(32),
    "31 objects": objects(31),
    "64 bits": b"18446744073709551615",
    "64 bits below": b"-9223372036854775808",
    "a long fraction": b"0." + b"1" * 500,
    "many digits, and a power": b"9" * 25 + b"e3",
    "escapes": b'"\\"[[[[{:\\\\"',
    "a key twice, in two objects": b'[{"a":1},{"a":1}]',
    "colons": b'{"a:b":"c:d"}',
    "plain": b'{"a":[1,2.5,null,true,"x"]}',
    "NUL, escaped": b'"\\u0000"',
    "empty": b"{}",
    "deep text": b'"' + b"[" * 500 + b'"',
}


def in_object(text: bytes, key: str = "v") -> bytes:
    return b'{"' + key.encode() + b'":' + text + b"}"
