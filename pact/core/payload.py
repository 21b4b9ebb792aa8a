"""How a record's data is written and read: each record type has one class with typed fields, and this is their base.

``core/node/payloads.py`` has the classes of a node's journal, ``core/root/payloads.py`` those of the root's own
records. ``specs/formats.md`` describes both for readers outside pact; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from operator import itemgetter
from typing import Any, ClassVar, Final, Self, TypeVar, cast

from pact.model import Attrs, Json, JsonRead, Owner
from pact.values import NOTHING, dataclass

T = TypeVar("T")

#: The name of a change, a group or a hold: a letter and a number.
Id = str
#: A declared value as JSON: the result of ``Declared.to_json``.
Value = JsonRead
#: What was kept of a resource before a change, as JSON: ``attrs``, ``sha256`` of its content, ``secret``.
Saved = JsonRead

_ID: Final = re.compile(r"[a-z][0-9]{1,18}")
_CAPITAL: Final = re.compile(r"(?<=.)([A-Z])")


def always(default: T) -> T:
    """A field that is always written; records of versions that did not write it have the default."""
    return field(default=default, metadata={"always": True})


@dataclass(frozen=True, slots=True)
class Planned:
    """One step of a plan in a record. ``action`` is for people."""

    id: str
    action: str
    target: Attrs | None
    actual: Attrs | None

    def to_json(self) -> Json:
        return {"id": self.id, "action": self.action, "target": self.target, "actual": self.actual}

    @classmethod
    def from_json(cls, row: JsonRead) -> Planned:
        return cls(row["id"], row["action"], row["target"], row["actual"])


class Payload:
    """The contents of a record. The class has the name of its record type, in CamelCase.

    A field without a default is in every record. A field with a default is left out of a record if it has that value,
    unless it is ``always`` written. A field whose name is a Python keyword or builtin ends with an underscore here.
    """

    __slots__ = ()
    type: ClassVar[str]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.type = _CAPITAL.sub(r"_\1", cls.__name__).lower()

    def to_data(self) -> Json:
        """The record's data as JSON. Raises ValueError for data that ``from_data`` would refuse: data that cannot be
        read again are not written.
        """
        form = _form(type(self))
        data = {key: getattr(self, name) for name, key in form.names}
        for key, default, hollow in form.left_out:
            if (value := data[key]) == default or (hollow and not value):
                del data[key]
        for key, write in form.writes:
            if (value := data.get(key)) is not None:
                data[key] = write(value)
        for at, check in form.checks:
            if (key := form.names[at][1]) in data and not check(data[key]):
                raise ValueError(f"{key} of {self.type} has the wrong type")
        return data

    @classmethod
    def from_data(cls, data: JsonRead) -> Self:
        """Raises ValueError if a field is missing or has the wrong type. Unknown fields are ignored: they belong to a
        later version, or to every payload (``call``, ``salt``).
        """
        form = _form(cls)
        try:
            values = list(form.needed(data))
        except KeyError as exc:
            raise ValueError(f"{cls.type} without {exc.args[0]}") from None
        values += [data.get(key, default) for key, default in form.optional]
        for at, check in form.checks:
            if not check(values[at]):
                raise ValueError(f"{form.names[at][1]} of {cls.type} has the wrong type")
        for at, key, read in form.reads:
            if key in data and values[at] is not None:
                try:
                    values[at] = read(values[at])
                except (KeyError, TypeError, ValueError):
                    raise ValueError(f"{key} of {cls.type} has the wrong form") from None
        return cls(*values)


Check = Callable[[Any], bool]
Turn = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Codec:
    """How the values of one annotation are coded. ``check``: whether this JSON may be one; ``read`` and ``write``: from
    and to JSON, ``None`` if the value is its own JSON.
    """

    check: Check
    read: Turn | None = None
    write: Turn | None = None


def _is(*kinds: type) -> Check:
    return lambda value: type(value) in kinds


def _owner(value: Any) -> bool:
    return type(value) is dict and type(value.get("key")) is type(value.get("user")) is str


def _class(cls: Any, check: Check) -> _Codec:
    """The codec of a class that reads and writes itself."""
    return _Codec(check, cls.from_json, cls.to_json)


_SINGLE: Final[Mapping[str, _Codec]] = {
    "None": _Codec(lambda value: value is None),
    "str": _Codec(_is(str)),
    "int": _Codec(_is(int)),
    "bool": _Codec(_is(bool)),
    "Id": _Codec(lambda value: type(value) is str and _ID.fullmatch(value) is not None),
    "Attrs": _Codec(_is(dict)),
    "Value": _Codec(_is(dict)),
    "Saved": _Codec(_is(dict)),
    "Owner": _class(Owner, _owner),
}


def _codec(annotation: str, names: Mapping[str, Any]) -> _Codec:
    """The codec of ``X``, ``X | None``, ``Sequence[X]`` or ``Mapping[str, X]``. ``names``: of the annotation's
    module."""
    text = annotation.removesuffix(" | None")
    if text != annotation:
        one = _codec(text, names)
        return _Codec(lambda value: value is None or one.check(value), one.read and _unless_none(one.read), one.write)
    if text in _SINGLE:
        return _SINGLE[text]
    if text in names:
        return _class(names[text], _is(dict))
    outer, _, inner = text.removesuffix("]").partition("[")
    if outer == "Sequence":
        return _rows(_codec(inner, names))
    assert outer == "Mapping" and inner.startswith("str, "), annotation
    return _table(_codec(inner.removeprefix("str, "), names))


def _unless_none(turn: Turn) -> Turn:
    return lambda value: None if value is None else turn(value)


def _rows(one: _Codec) -> _Codec:
    check, read, write = one.check, one.read, one.write
    return _Codec(
        lambda value: type(value) in (list, tuple) and all(map(check, value)),
        None if read is None else lambda value: [read(v) for v in value],
        None if write is None else lambda value: [write(v) for v in value],
    )


def _table(one: _Codec) -> _Codec:
    check, read, write = one.check, one.read, one.write
    return _Codec(
        lambda value: type(value) is dict and all(map(check, value.values())),
        None if read is None else lambda value: {k: read(v) for k, v in value.items()},
        None if write is None else lambda value: {k: write(v) for k, v in value.items()},
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """The fields of a class, analysed once. ``checks`` and ``reads``: by the fields' positions; ``writes`` and
    ``left_out``: by key."""

    names: tuple[tuple[str, str], ...]  # names of its fields, in order, with their keys in JSON
    needed: Callable[[JsonRead], tuple[Any, ...]]
    optional: tuple[tuple[str, Any], ...]
    checks: tuple[tuple[int, Check], ...]
    reads: tuple[tuple[int, str, Turn], ...]
    writes: tuple[tuple[str, Turn], ...]
    left_out: tuple[tuple[str, Any, bool], ...]  # and whether any empty value equals the default


_FORMS: Final[dict[type[Payload], _Form]] = {}


def _form(cls: type[Payload]) -> _Form:
    """Made at first use, so that a command which reads no records pays nothing."""
    form = _FORMS.get(cls)
    if form is None:
        form = _FORMS[cls] = _made(cls)
    return form


def _made(cls: type[Payload]) -> _Form:
    own = fields(cast("Any", cls))
    keys = tuple(f.name.rstrip("_") for f in own)
    module = vars(sys.modules[cls.__module__])
    codecs = [_codec(cast("str", f.type), module) for f in own]
    needed = [key for f, key in zip(own, keys, strict=True) if f.default is MISSING]
    optional = tuple((key, f.default) for f, key in zip(own, keys, strict=True) if f.default is not MISSING)
    always_written = {key for f, key in zip(own, keys, strict=True) if f.metadata.get("always")}
    return _Form(
        tuple((f.name, key) for f, key in zip(own, keys, strict=True)),
        _getter(needed),
        optional,
        tuple((at, _or_default(c.check, own[at].default)) for at, c in enumerate(codecs)),
        tuple((at, keys[at], c.read) for at, c in enumerate(codecs) if c.read is not None),
        tuple((keys[at], c.write) for at, c in enumerate(codecs) if c.write is not None),
        tuple((k, default, default in ((), NOTHING)) for k, default in optional if k not in always_written),
    )


def _getter(keys: list[str]) -> Callable[[JsonRead], tuple[Any, ...]]:
    """``itemgetter`` of these keys that always returns a tuple, however many keys there are."""
    if len(keys) > 1:
        return cast("Callable[[JsonRead], tuple[Any, ...]]", itemgetter(*keys))
    return lambda data: tuple(data[key] for key in keys)


def _or_default(check: Check, default: Any) -> Check:
    """A missing field has its default, which need not be a JSON value (a tuple)."""
    if default is MISSING:
        return check
    return lambda value: value is default or check(value)
