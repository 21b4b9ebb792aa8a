"""Checks of the parts of the root's log other than records, before they are folded: heads of chunks, and snapshots.
Pure.

The log may have been restored from an edited backup, or hold data that no root wrote. These checks refuse such data
with ValueError, once, so that the fold may trust every field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_ID: Final = re.compile(r"[a-z][0-9]{1,18}")


def _is(*kinds: type) -> Check:
    return lambda value: type(value) in kinds


def _id(value: Any) -> bool:
    return type(value) is str and _ID.fullmatch(value) is not None


def _texts(value: Any) -> bool:
    return type(value) is list and all(type(v) is str for v in value)


def _table(check: Check) -> Check:
    return lambda value: type(value) is dict and all(map(check, value.values()))


def _row(*columns: Check) -> Check:
    def check(value: Any) -> bool:
        return (
            type(value) is list
            and len(value) == len(columns)
            and all(c(v) for c, v in zip(columns, value, strict=True))
        )

    return check


def _rows(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


def _size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _fields(needed: Mapping[str, Check], more: Mapping[str, Check] | None = None, *, closed: bool = False) -> Check:
    """A table with these fields; ``more``: optional fields that must be right if present. ``closed``: no other
    fields."""
    known = {**needed, **(more or {})}

    def check(value: Any) -> bool:
        return (
            type(value) is dict
            and needed.keys() <= value.keys()
            and not (closed and value.keys() - known.keys())
            and all(c(value[k]) for k, c in known.items() if k in value)
        )

    return check


_text, _number, _flag, _object = _is(str), _is(int), _is(bool), _is(dict)
_cursor: Final = _row(_text, _number, _text)
_user: Final = _fields({"user": _text})
_maybe_number, _maybe_text = _is(int, type(None)), _is(str, type(None))
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
