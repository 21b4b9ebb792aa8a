"""The one decoder of JSON and TOML for everything that comes from outside: from people, peers, files and programs.

It accepts only what is no deeper than ``LEVELS_MAX``, has no integer beyond 64 bits, no key twice in one object, no
text that is not Unicode and no number that JSON cannot express: so later code can also compare it, show it and write it
again. Data that this process wrote itself, and that lies under its own hash or in its own database, is read by ``own``.
Nothing else in pact parses JSON or TOML.
"""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from pact._fast import members_in, members_of
from pact.errors import UsageError
from pact.limits import LEVELS_MAX

SHOWN_MAX: Final = 80
#: The largest note that pact writes for itself in a file of its own.
SMALL_MAX: Final = 4 << 20
#: The longest line of an export or a backup: the largest content in base64 fits, and so does a chunk of the root's log.
LINE_MAX: Final = 1 << 30


class NotStrictError(ValueError):
    """The decoder does not accept this text. The message says why, and contains nothing of the text."""


def loads(raw: bytes | bytearray | memoryview | str, most: int) -> Any:
    """The value of a JSON text of at most ``most`` bytes. Raises NotStrictError."""
    text = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if len(text) > most:
        raise NotStrictError(f"{len(text)} bytes; at most {most} are read")
    try:
        members = members_in(text, LEVELS_MAX)
        value = orjson.loads(text)
    except ValueError as exc:  # orjson's message has the position, and nothing of the text
        raise NotStrictError(str(exc)) from None
    if members != members_of(value):
        raise NotStrictError("a key stands twice in one object")
    return value


def loads_object(raw: bytes | bytearray | memoryview | str, most: int) -> dict[str, Any]:
    """The same for a text that must be an object."""
    value = loads(raw, most)
    if type(value) is not dict:
        raise NotStrictError("no object")
    return value


def readable(raw: bytes) -> bool:
    """Whether another decoder of this kind would accept the text, as far as its depth and its numbers matter."""
    try:
        members_in(raw, LEVELS_MAX)
    except ValueError:
        return False
    return True


def toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises NotStrictError; its message has the position if TOML's own message has it."""
    import tomllib  # only who reads a file needs it

    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise NotStrictError(f"nested deeper than {LEVELS_MAX} levels") from None
    except ValueError as exc:  # from tomllib, or a number beyond all limits
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


def text_of(value: object) -> bytes:
    """The JSON of what a person said on the command line or typed. Raises UsageError for what is no Unicode."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise UsageError("a word is no UTF-8", "write its bytes otherwise: printf '\\377'") from None


def own(raw: bytes | memoryview | str) -> Any:
    """The value of a text that only pact itself can have written. Raises ValueError if it is damaged."""
    return orjson.loads(raw)


def shown(value: object) -> str:
    """A value from outside in a message to people: short; of a value that is not plain, only its type."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 1] + "…")
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, "something else")
