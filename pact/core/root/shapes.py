"""Checks of the parts of the root's log other than records, before they are folded: heads of chunks, and snapshots.
Pure.

The log may have been restored from an edited backup, or hold data that no root wrote. These checks refuse such data
with ValueError, once, so that the fold may trust every field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_ID: Final = re.compile(r"[a-z][0-9]{1,18}")


class _Is:
    """A check for exact types, which those below put together to one look at all values of a row or table."""

    __slots__ = ("kinds",)

    def __init__(self, *kinds: type) -> None:
        self.kinds = frozenset(kinds)

    def __call__(self, value: Any) -> bool:
        return type(value) in self.kinds


def _id(value: Any) -> bool:
    return type(value) is str and _ID.fullmatch(value) is not None


def _texts(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) <= {str}


def _each(check: Check) -> Callable[[Iterable[Any]], bool]:
    if isinstance(check, _Is):
        kinds = check.kinds
        return lambda values: kinds.issuperset(map(type, values))
    return lambda values: all(map(check, values))


def _table(check: Check) -> Check:
    each = _each(check)
    return lambda value: type(value) is dict and each(value.values())


def _row(*columns: Check) -> Check:
    """A list with these columns."""
    sizes = [at for at, column in enumerate(columns) if column is _size]
    kinds = tuple(int if column is _size else _only(column) for column in columns)

    def check(value: Any) -> bool:
        if type(value) is not list or tuple(map(type, value)) != kinds:
            return False
        return all(value[at] >= 0 for at in sizes)

    return check


def _only(check: Check) -> type:
    assert isinstance(check, _Is) and len(check.kinds) == 1, "each column has one type"
    return next(iter(check.kinds))


def _rows(check: Check) -> Check:
    each = _each(check)
    return lambda value: type(value) is list and each(value)


def _size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _fields(needed: Mapping[str, Check], more: Mapping[str, Check] | None = None, *, closed: bool = False) -> Check:
    """A table with these fields; ``more``: optional fields that must be right if present. ``closed``: no other
    fields."""
    must, may = tuple(needed.items()), tuple((more or {}).items())
    known = {**needed, **(more or {})}.keys()

    def check(value: Any) -> bool:
        if type(value) is not dict or not needed.keys() <= value.keys() or (closed and not value.keys() <= known):
            return False
        for name, right in must:
            if not right(value[name]):
                return False
        return all(right(value[name]) for name, right in may if name in value)

    return check


_text, _number, _flag, _object = _Is(str), _Is(int), _Is(bool), _Is(dict)
_cursor: Final = _row(_text, _number, _text)
_user: Final = _fields({"user": _text})
_maybe_number, _maybe_text = _Is(int, type(None)), _Is(str, type(None))
_owner: Final = _fields(
    {"key": _text, "user": _text, "uid": _maybe_number, "session": _maybe_text, "command": _text}, closed=True
)

CHUNK: Final = _fields(
    {
        "v": _number,
        "first": _size,
        "count": _size,
        "fence": _number,
        "wall_ns": _number,
        "prev": _text,
        "prevs": _table(_number),
        "batches": _rows(_row(_text, _text, _text, _size, _size, _size)),
    }
)
GROUP: Final = _fields(
    {
        "id": _id,
        "owner": _owner,
        "message": _text,
        "nodes": _text,
        "resources": _texts,
        "window_ns": _number,
        "begun_ns": _number,
        "begun": _text,
    },
    {
        "require_all": _flag,
        "state": _text,
        "extension_ns": _number,
        "shift_ns": _number,
        "decision": _text,
        "ballot": _number,
        "why": _text,
        "args": _object,
        "decided": _text,
        "outcome": _text,
        "ended": _table(_text),
        "by": _object,
    },
    closed=True,
)
SNAPSHOT: Final[Mapping[str, Check]] = {
    "gseq": _number,
    "chunk_hash": _text,
    "last": _table(_number),
    "cursors": _table(_cursor),
    "earlier": _table(_rows(_cursor)),
    "groups": _rows(GROUP),
    "group_n": _number,
    "forgotten": _table(_text),
    "holds": _table(
        _fields({"hold": _id, "owner": _user, "reason": _text, "ends": _text, "ends_ns": _number, "placed": _text})
    ),
    "hold_n": _number,
    "held_since_ns": _number,
    "fence": _number,
    "t_ns": _number,
    "wall_ns": _number,
    "boot_id": _text,
    "offset_ns": _number,
}


def require_snapshot(data: Any) -> None:
    """Check a snapshot without its version. Fields that an older root did not keep may be missing."""
    if type(data) is not dict:
        raise ValueError("the snapshot is no object")
    for name, value in data.items():
        if name not in SNAPSHOT:
            raise ValueError(f"unknown field {name!r}")
        if not SNAPSHOT[name](value):
            raise ValueError(f"{name} of the snapshot has the wrong type")
    if not data.keys() >= {"cursors", "groups"}:
        raise ValueError("the snapshot has no cursors, or no groups")
