"""Declared state as TOML: reading it with file and line, and writing it so that it reads back the same."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core import strict
from pact.core.node.tracked import ENFORCE, MODES
from pact.errors import DeclaredError, UsageError
from pact.model import Declared, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs

FILE_MAX: Final = 64 << 20
TRACK: Final = "track"

WILDCARD: Final = re.compile(r"[*?\[]")


@dataclass(slots=True)
class DeclaredSet:
    """The contents of one or more files: resource id -> value, and the contents of declared files."""

    resources: dict[str, Declared] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)  # files from which contents were read
    blobs: dict[str, bytes] = field(default_factory=dict)
    track: dict[str, str] = field(default_factory=dict)  # [track]: pattern -> report, enforce or ignore
    blank: bool = False  # the file does not even have a comment: hardly intended


class Ignore:
    """Patterns of resources that never drift: the built-in ones and the operator's."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = [*(f"{k.name}:{p}" for k in KINDS.values() for p in k.ignored), *patterns]
        self._compiled = [(p, _matcher(p)) for p in self.patterns]
        self._heads = tuple({p[: WILDCARD.search(p + "*").start()] for p in self.patterns})  # type: ignore[union-attr]

    def match(self, resource: str) -> str | None:
        """The pattern that ignores this resource, or ``None``."""
        if not resource.startswith(self._heads):  # true of nearly all resources, of which there are tens of thousands
            return None
        for pattern, matches in self._compiled:
            if matches(resource):
                return pattern
        return None


def _matcher(pattern: str) -> Callable[[str], bool]:
    if pattern.endswith("/**") and not any(c in pattern[:-3] for c in "*?["):
        prefix = pattern[:-2]
        return lambda resource: resource.startswith(prefix)
    if not any(c in pattern for c in "*?["):
        return lambda resource: resource == pattern
    plain = pattern.replace("**", "*")
    return lambda resource: fnmatchcase(resource, plain)


def read_files(patterns: Iterable[str], ignore: Ignore, vet: Callable[[str], None] = lambda _: None) -> DeclaredSet:
    """All files that the patterns name, in order; a resource that two of them declare differently is an error.

    ``vet`` is called with each of them, and with each file that gave a content; it raises if a file must not be
    trusted.
    """
    out, origin = DeclaredSet(), dict[str, str]()
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))
        if not paths and not glob.has_magic(pattern):
            raise DeclaredError(pattern, 0, "no such file")
        for path in paths:
            part = read_file(path, ignore)
            for each in (path, *part.sources):
                vet(each)
            for resource, value in part.resources.items():
                if out.resources.get(resource, value) != value:
                    raise DeclaredError(path, 0, f"{resource} is declared otherwise in {origin[resource]}")
                out.resources[resource], origin[resource] = value, path
            out.blobs.update(part.blobs)
            for pattern, mode in part.track.items():
                if out.track.setdefault(pattern, mode) != mode:
                    raise DeclaredError(path, 0, f"[track] {pattern} is said otherwise in another file")
    return out


def read_file(path: str, ignore: Ignore) -> DeclaredSet:
    """One file. Raises DeclaredError with its line."""
    try:
        with open(path, "rb") as f:
            raw = f.read(FILE_MAX + 1)
    except OSError as exc:
        raise DeclaredError(path, 0, os.strerror(exc.errno or 0)) from None
    if len(raw) > FILE_MAX:
        raise DeclaredError(path, 0, f"more than {FILE_MAX} bytes")
    return parse_text(raw, path, os.path.dirname(os.path.abspath(path)), ignore)


def parse_text(raw: bytes, path: str, base_dir: str, ignore: Ignore) -> DeclaredSet:
    """TOML bytes; ``path`` is for messages, ``base_dir`` is the directory for a relative ``source``. Raises
    DeclaredError."""
    try:
        text = raw.decode("utf-8")
        table = strict.toml(text)
    except UnicodeDecodeError as exc:
        raise DeclaredError(path, raw[: exc.start].count(b"\n") + 1, "not UTF-8") from None
    except strict.NotStrictError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise DeclaredError(path, int(line[1]) if line else 0, str(exc)) from None
    out = DeclaredSet(blank=not text.strip())
    for pattern, mode in _track_table(table.pop(TRACK, {}), text, path).items():
        try:
            out.track[checked_pattern(pattern, mode)] = mode
        except ValueError as exc:
            raise DeclaredError(path, line_of(text, TRACK, pattern), f"[track] {pattern}: {exc}") from None
    for kind_name, entries in table.items():
        _read_kind(kind_name, entries, text, path, base_dir, ignore, out)
    for resource, value in out.resources.items():
        for need in value.requires:
            try:
                kind_name, _ = split_id(need)
                if kind_name not in KINDS:
                    raise ValueError(f"{need!r}: kind {kind_name!r} is not known")
            except ValueError as exc:
                raise DeclaredError(path, line_of(text, *split_id(resource)), f"{resource}: requires: {exc}") from None
        for notification in value.notify:
            try:
                _check_notification(notification)
            except ValueError as exc:
                raise DeclaredError(path, line_of(text, *split_id(resource)), f"{resource}: notify: {exc}") from None
    return out


def _check_notification(notification: str) -> None:
    """Raises ValueError for a notification that nobody could be told."""
    resource, _, verb = notification.partition(" ")
    kind_name, name = split_id(resource)
    kind = KINDS.get(kind_name)
    if kind is None:
        raise ValueError(f"{notification!r}: kind {kind_name!r} is not known")
    if verb not in kind.verbs:
        known = ", ".join(f"{resource} {v}".rstrip() for v in kind.verbs)
        raise ValueError(
            f"{notification!r} cannot be asked" + (f"; it can be: {known}" if known else f" of a {kind_name}")
        )
    if kind.canonical(name) != name:
        raise ValueError(f"{notification!r}: write {kind_name}:{kind.canonical(name)}")


def _track_table(value: Any, text: str, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DeclaredError(path, line_of(text, TRACK, None), "[track] must be a table of patterns")
    return value


def checked_pattern(pattern: str, mode: Any) -> str:
    """A pattern to be tracked, in canonical form. Raises ValueError if it is malformed, or impossible in this mode."""
    if mode not in MODES:
        raise ValueError(f"{mode!r} is none of {', '.join(MODES)}")
    kind_name, name = split_id(pattern)
    kind = KINDS.get(kind_name)
    if kind is None:
        raise ValueError(f"kind {kind_name!r} is not known; known kinds: {', '.join(sorted(KINDS))}")
    if not WILDCARD.search(name):
        raise ValueError("this is a name, and nothing is below it: declare or adopt it")
    if mode == ENFORCE and not kind.removable:
        raise ValueError(f"what is new of kind {kind_name} cannot be removed again: report or ignore it")
    return f"{kind_name}:{kind.pattern(name)}"


def checked_patterns(given: Mapping[str, Any]) -> dict[str, str]:
    """Patterns and modes in canonical form. Raises UsageError."""
    out = {}
    for pattern, mode in given.items():
        try:
            out[checked_pattern(pattern, mode)] = mode
        except ValueError as exc:
            raise UsageError(f"{pattern}: {exc}") from None
    return out


def export_track(tracked: Mapping[str, str]) -> Iterable[str]:
    """Lines of TOML for the tracked patterns."""
    if tracked:
        yield f"\n[{TRACK}]\n"
    for pattern, mode in sorted(tracked.items()):
        yield f"{quote(pattern)} = {quote(mode)}\n"


def _read_kind(
    kind_name: str, entries: Any, text: str, path: str, base_dir: str, ignore: Ignore, out: DeclaredSet
) -> None:
    kind = KINDS.get(kind_name)
    if kind is None:
        line = line_of(text, kind_name, None)
        near = difflib.get_close_matches(kind_name, sorted(KINDS), 1, 0.5)
        hint = f"did you mean [{near[0]}]?" if near else f"known kinds: {', '.join(sorted(KINDS))}"
        raise DeclaredError(path, line, f"unknown kind {kind_name!r}", hint)
    if not isinstance(entries, dict):
        raise DeclaredError(path, line_of(text, kind_name, None), f"[{kind_name}] must be a table")
    try:
        values = list(kind.entries(entries))
    except ValueError as exc:
        raise DeclaredError(path, line_of(text, kind_name, None), f"[{kind_name}]: {exc}") from None
    for name, value in values:

        def wrong(why: str, hint: str = "", name: str = name) -> DeclaredError:  # the line is looked up only then
            return DeclaredError(path, line_of(text, kind_name, name), why, hint)

        try:
            resource = f"{kind_name}:{kind.canonical(name)}"
            entry = kind.parse(kind.canonical(name), value, base_dir)
        except ValueError as exc:
            raise wrong(f"{kind_name}:{name}: {exc}") from None
        pattern = ignore.match(resource)
        if pattern is not None:
            hint = "take it out of the file or the pattern out of [drift] ignore"
            raise wrong(f"{resource} is ignored by the pattern {pattern!r}", hint)
        if resource in out.resources:
            raise wrong(f"{resource} is declared twice")
        out.resources[resource] = entry.declared
        out.blobs.update(entry.blobs)
        out.sources.extend(entry.sources)


def line_of(text: str, kind: str, name: str | None) -> int:
    """The line on which an entry begins, as near as the text alone can tell; 0 if it is not found."""
    header = re.compile(rf"\s*\[\s*[\"']?{re.escape(kind)}[\"']?\s*[\].]")
    lines = text.split("\n")
    inside, first = False, 0
    escaped = None if name is None else re.escape(name)
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("["):
            inside = header.match(line) is not None
            first = first or (number if inside else 0)
            if inside and escaped and re.search(rf"[.\[]\s*[\"']?{escaped}[\"']?\s*\]", line):
                return number
        elif inside and escaped and re.match(rf"\s*[\"']?{escaped}[\"']?\s*[=.]", line):
            return number
    return first


# -- writing --------------------------------------------------------------------------------------------------------

BARE: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
ESCAPES: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def quote(text: str) -> str:
    """A TOML basic string."""
    out = [ESCAPES.get(c) or (c if c.isprintable() else _escaped(c)) for c in text]
    return '"' + "".join(out) + '"'


def _escaped(char: str) -> str:
    """Characters that control a terminal, or are invisible, are written as their numbers."""
    return f"\\u{ord(char):04X}" if ord(char) < 1 << 16 else f"\\U{ord(char):08X}"


def _key(text: str) -> str:
    return text if BARE.match(text) else quote(text)


def toml_value(value: Any) -> str:
    """A value on one line. Raises TypeError for a value that TOML cannot express."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    raise TypeError(type(value).__name__)


def export(resources: Iterable[tuple[str, Declared]], blobs: Blobs) -> Iterable[str]:
    """Lines of TOML that ``parse_text`` reads back to the same declared state, kinds and names in order. A value that
    it would refuse (an older version let a pipe be committed) is left out, and named: it would make the whole file
    unreadable."""
    ordered = sorted(resources)
    last = ""
    for resource, declared in ordered:
        kind_name, name = split_id(resource)
        if why := KINDS[kind_name].undeclarable(declared.attrs):
            yield f"# {resource} is left out: {why} cannot be declared\n"
            continue
        value = KINDS[kind_name].export(name, declared, blobs)
        flat = not isinstance(value, dict) or KINDS[kind_name].one_line
        if flat:
            if kind_name != last:
                yield f"\n[{kind_name}]\n"
            yield f"{_key(name)} = {toml_value(value)}\n"
        else:
            yield f"\n[{kind_name}.{_key(name)}]\n"
            for key, item in value.items():
                yield f"{_key(key)} = {toml_value(item)}\n"
        last = kind_name
