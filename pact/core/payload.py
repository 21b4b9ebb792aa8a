"""How a record's data is written and read: each record type has one class with typed fields, and this is their base.

``core/node/payloads.py`` has the classes of a node's journal, ``core/root/payloads.py`` those of the root's own
records. ``specs/formats.md`` describes both for readers outside pact; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from itertools import compress
from operator import attrgetter, getitem, itemgetter, ne
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
        values = form.values(self)
        data = dict(compress(zip(form.keys, values, strict=True), map(ne, values, form.left_out)))
        for key in form.hollow:
            if key in data and not data[key]:
                del data[key]
        for key, write in form.writes:
            if (value := data.get(key)) is not None:
                data[key] = write(value)
        shape = (*data, *map(type, data.values()))
        for at, default, check in form.deep if shape in form.known else form.checks:
            if (value := data.get(form.keys[at], default)) is not default and not check(value):
                raise ValueError(f"{form.keys[at]} of {self.type} has the wrong type")
        form.known.add(shape)
        return data

    @classmethod
    def from_data(cls, data: JsonRead) -> Self:
        """Raises ValueError if a field is missing or has the wrong type. Unknown fields are ignored: they belong to a
        later version, or to every payload (``call``, ``salt``).
        """
        form = _form(cls)
        try:
            values = [*form.needed(data), *map(data.get, form.optional, form.defaults)]
        except KeyError as exc:
            raise ValueError(f"{cls.type} without {exc.args[0]}") from None
        shape = tuple(map(type, values))
        for at, default, check in form.deep if shape in form.known else form.checks:
            if (value := values[at]) is not default and not check(value):
                raise ValueError(f"{form.keys[at]} of {cls.type} has the wrong type")
        form.known.add(shape)
        for at, key, read in form.reads:
            if key in data and values[at] is not None:
                try:
                    values[at] = read(values[at])
                except (KeyError, TypeError, ValueError):
                    raise ValueError(f"{key} of {cls.type} has the wrong form") from None
        return cls(*values)


Check = Callable[[Any], object]  # what it returns is true or false
Turn = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Codec:
    """How the values of one annotation are coded. ``kinds``: the types of its JSON; ``deep``: what must also be true of
    a value of these types; ``read`` and ``write``: from and to JSON, ``None`` if the value is its own JSON.
    """

    kinds: frozenset[type]
    deep: Check | None = None
    read: Turn | None = None
    write: Turn | None = None

    def check(self, value: Any) -> bool:
        """Whether this JSON may be one."""
        return type(value) in self.kinds and (self.deep is None or bool(self.deep(value)))


def _is(kind: type) -> _Codec:
    return _Codec(frozenset({kind}))


def _owner(value: Any) -> bool:
    return type(value.get("key")) is type(value.get("user")) is str


def _class(cls: Any, deep: Check | None = None) -> _Codec:
    """The codec of a class that reads and writes itself as an object."""
    return _Codec(frozenset({dict}), deep, cls.from_json, cls.to_json)


_SINGLE: Final[Mapping[str, _Codec]] = {
    "None": _is(type(None)),
    "str": _is(str),
    "int": _is(int),
    "bool": _is(bool),
    "Id": _Codec(frozenset({str}), _ID.fullmatch),
    "Attrs": _is(dict),
    "Value": _is(dict),
    "Saved": _is(dict),
    "Owner": _class(Owner, _owner),
}


def _codec(annotation: str, names: Mapping[str, Any]) -> _Codec:
    """The codec of ``X``, ``X | None``, ``Sequence[X]`` or ``Mapping[str, X]``. ``names``: of the annotation's
    module."""
    text = annotation.removesuffix(" | None")
    if text != annotation:
        one = _codec(text, names)
        deep, read = one.deep and _unless_none(one.deep, True), one.read and _unless_none(one.read, None)
        return _Codec(one.kinds | {type(None)}, deep, read, one.write)
    if text in _SINGLE:
        return _SINGLE[text]
    if text in names:
        return _class(names[text])
    outer, _, inner = text.removesuffix("]").partition("[")
    if outer == "Sequence":
        return _rows(_codec(inner, names))
    assert outer == "Mapping" and inner.startswith("str, "), annotation
    return _table(_codec(inner.removeprefix("str, "), names))


def _unless_none(turn: Turn, otherwise: Any) -> Turn:
    return lambda value: otherwise if value is None else turn(value)


def _rows(one: _Codec) -> _Codec:
    each, read, write = _each(one), one.read, one.write
    return _Codec(
        frozenset({list, tuple}),
        each,
        None if read is None else lambda value: [read(v) for v in value],
        None if write is None else lambda value: [write(v) for v in value],
    )


def _table(one: _Codec) -> _Codec:
    each, read, write = _each(one), one.read, one.write
    return _Codec(
        frozenset({dict}),
        lambda value: each(value.values()),
        None if read is None else lambda value: {k: read(v) for k, v in value.items()},
        None if write is None else lambda value: {k: write(v) for k, v in value.items()},
    )


def _each(one: _Codec) -> Check:
    """Whether all of these values may be one."""
    if one.deep is None:
        return lambda values: one.kinds.issuperset(map(type, values))
    return lambda values: all(map(one.check, values))


@dataclass(frozen=True, slots=True)
class _Form:
    """The fields of a class, analysed once. ``checks``, ``deep`` and ``reads``: by the fields' positions; ``writes``:
    by key."""

    keys: tuple[str, ...]  # in JSON, in the order of the fields
    values: Callable[[Any], tuple[Any, ...]]  # of an object's fields
    needed: Callable[[JsonRead], tuple[Any, ...]]
    optional: tuple[str, ...]
    defaults: tuple[Any, ...]  # of these
    checks: tuple[tuple[int, Any, Check], ...]  # with the default, which need not be a JSON value (a tuple)
    deep: tuple[tuple[int, Any, Check], ...]  # those that look at more than the value's own type
    reads: tuple[tuple[int, str, Turn], ...]
    writes: tuple[tuple[str, Turn], ...]
    left_out: tuple[Any, ...]  # of each field the value that is not written, MISSING if there is none
    hollow: tuple[str, ...]  # of which no empty value is written, whatever kind of empty it is
    #: The types of all fields' values that were found right before, and of those that were written, with their keys: a
    #: class has few of them, and only what is in the fields has to be checked again.
    known: set[tuple[Any, ...]] = field(default_factory=set)


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
    optional = tuple(key for f, key in zip(own, keys, strict=True) if f.default is not MISSING)
    left_out = tuple(MISSING if f.metadata.get("always") else f.default for f in own)
    return _Form(
        keys,
        _getter(attrgetter, [f.name for f in own], getattr),
        _getter(itemgetter, needed, getitem),
        optional,
        tuple(f.default for f in own if f.default is not MISSING),
        tuple((at, own[at].default, c.check) for at, c in enumerate(codecs)),
        tuple((at, own[at].default, c.deep) for at, c in enumerate(codecs) if c.deep is not None),
        tuple((at, keys[at], c.read) for at, c in enumerate(codecs) if c.read is not None),
        tuple((keys[at], c.write) for at, c in enumerate(codecs) if c.write is not None),
        left_out,
        tuple(key for key, default in zip(keys, left_out, strict=True) if default in ((), NOTHING)),
    )


def _getter(many: Any, names: list[str], one: Callable[[Any, str], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """``attrgetter`` or ``itemgetter`` of these names that always returns a tuple, however many names there are.
    ``one`` gets one of them."""
    if len(names) > 1:
        return cast("Callable[[Any], tuple[Any, ...]]", many(*names))
    return lambda of: tuple(one(of, name) for name in names)
