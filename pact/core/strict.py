"""The one decoder of JSON and TOML for everything that comes from outside: from people, peers, files and programs.

What it lets through is no deeper than ``LEVELS_MAX``, has no whole number beyond 64 bits, no key twice in one object,
no text that is no Unicode and no number that JSON cannot say: so whatever handles it later can also compare it, show it
and write it again. What this process wrote itself, and finds under its own hash or in its own database, is read by
``own``. Nothing else in pact parses JSON or TOML.
"""

from __future__ import annotations

import math
import tomllib
from typing import Any, Final

import orjson

from pact._fast import members_in, members_of
from pact.limits import LEVELS_MAX

SHOWN_MAX: Final = 80
#: A note that pact leaves to itself in a file of its own.
SMALL_MAX: Final = 4 << 20
#: A line of an export or a backup: a content of the largest size in base64 fits, and a chunk of the root's log.
LINE_MAX: Final = 1 << 30


class NotStrictError(ValueError):
    """It is not what this decoder lets through. The message says why, and holds nothing of the text."""


def loads(raw: bytes | bytearray | memoryview | str, most: int) -> Any:
    """The value of a JSON text of at most ``most`` bytes. Raises NotStrictError."""
    text = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if len(text) > most:
        raise NotStrictError(f"{len(text)} bytes; at most {most} are read")
    try:
        members = members_in(text, LEVELS_MAX)
        value = orjson.loads(text)
    except ValueError as exc:  # orjson's own says where, and nothing of what stands there
        raise NotStrictError(str(exc)) from None
    if members != members_of(value):
        raise NotStrictError("a key stands twice in one object")
    return value


def loads_object(raw: bytes | bytearray | memoryview | str, most: int) -> dict[str, Any]:
    """The same for what has to be an object."""
    value = loads(raw, most)
    if type(value) is not dict:
        raise NotStrictError("no object")
    return value


def readable(raw: bytes) -> bool:
    """Another decoder of this kind lets it through, as far as its depth and its numbers say."""
    try:
        members_in(raw, LEVELS_MAX)
    except ValueError:
        return False
    return True


def toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises NotStrictError; its message has the place where TOML's own has it."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise NotStrictError(f"nested deeper than {LEVELS_MAX} levels") from None
    except ValueError as exc:  # tomllib's own, or a number beyond all bounds
        raise NotStrictError(str(exc)) from None
    todo: list[tuple[Any, int]] = [(table, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, dict | list):
            if depth > LEVELS_MAX:
                raise NotStrictError(f"nested deeper than {LEVELS_MAX} levels")
            todo += [(v, depth + 1) for v in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise NotStrictError("a number beyond 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise NotStrictError("a number that is none, or without end")
    return table


def own(raw: bytes | memoryview | str) -> Any:
    """What this process or one before it wrote, and nobody else can. Raises ValueError for what is damaged."""
    return orjson.loads(raw)


def shown(value: object) -> str:
    """A value from outside in a message to people: short, and never more than its kind where it is no plain one."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 1] + "…")
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, "something else")
