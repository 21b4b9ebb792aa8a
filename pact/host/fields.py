"""Fields of configuration files in TOML: checks, and how a file sets them. Every error names file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pact.core import strict
from pact.core.units import parse_duration
from pact.errors import ConfigError
from pact.host import owned

#: Key -> (field, check). A check returns the value to set, or raises ValueError.
Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]


def a_duration(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a duration such as "15m"')
    ns = parse_duration(value)
    if ns <= 0:
        raise ValueError("must be more than nothing")
    return ns


def a_notice(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a duration such as "60s"')
    return parse_duration(value)


def a_text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a string")
    return value


def a_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", value):
        raise ValueError("must be letters, digits, '.', '_' and '-'")
    return value


def a_rack(value: Any) -> str:
    return "" if value == "" else a_name(value)


def a_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def a_number(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def a_count(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def a_size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMGT]i?B?)?", str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError('must be a size such as "4MiB"')
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[(match[2] or "")[:1]]


def texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError("must be a list of strings")
    return list(value)


def cpus(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value):
        raise ValueError("must be a list of CPU numbers")
    return list(value)


def a_choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("must be " + " or ".join(f'"{n}"' for n in names))
        return str(value)

    return check


def a_table(defaults: Mapping[str, float], what: str) -> Callable[[Any], dict[str, float]]:
    def check(value: Any) -> dict[str, float]:
        if not isinstance(value, dict):
            raise ValueError(f"must be a table of {what} = number")
        for key, number in value.items():
            if key not in defaults:
                raise ValueError(f"unknown {what} {key!r}; known: {', '.join(defaults)}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1000:
                raise ValueError(f"{key} must be a number above 0 and at most 1000")
        return {**defaults, **{k: float(v) for k, v in value.items()}}

    return check


def fill(path: str, keys: Mapping[str, Keys], config: Any, *, top: Keys = MappingProxyType({})) -> None:
    """Set the fields of ``config`` from a TOML file as the table defines; ``top``: keys that may stand before any
    section. Raises ConfigError with file and line.
    """
    try:
        text = owned.read_regular(path).decode()
        table = strict.toml(text)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    except ValueError as exc:  # the decoder refuses it, or it is not UTF-8
        line = re.search(r"at line (\d+)", str(exc))
        raise ConfigError(f"{path}:{line[1] if line else 1}: {exc}") from None
    for section, entries in table.items():
        where = f"{path}:{_line(text, section)}"
        if section in top:
            try:
                setattr(config, top[section][0], top[section][1](entries))
            except ValueError as exc:
                raise ConfigError(f"{where}: {section} {exc}") from None
            continue
        if section not in keys and top and not _is_section(entries):
            hint = (
                near(section, top)
                if _close(section, top)
                else f"it stands in no section; known there: {', '.join(top)}"
            )
            raise ConfigError(f"{where}: unknown key {section!r}", hint)
        if section not in keys:
            raise ConfigError(f"{where}: unknown section [{section}]", near(section, {**keys, **top}))
        if not isinstance(entries, dict):
            raise ConfigError(f"{where}: [{section}] must be a table")
        for key, value in entries.items():
            where = f"{path}:{_line(text, section, key)}"
            if key not in keys[section]:
                raise ConfigError(f"{where}: unknown key {key!r} in [{section}]", near(key, keys[section]))
            attribute, check = keys[section][key]
            try:
                setattr(config, attribute, check(value))
            except ValueError as exc:
                raise ConfigError(f"{where}: [{section}] {key} {exc}") from None


def _is_section(entries: Any) -> bool:
    """Whether it is written with brackets: a table, or a list of tables."""
    return isinstance(entries, dict) or (
        isinstance(entries, list) and bool(entries) and all(isinstance(e, dict) for e in entries)
    )


def _line(text: str, section: str, key: str = "") -> int:
    """The line of a section or key, as near as the text alone can tell."""
    name = rf"[\"']?{re.escape(section)}[\"']?"
    header, first, inside = re.compile(rf"\s*\[?\s*{name}\s*[\]=.]"), 0, False
    wanted = re.compile(rf"\s*(?:{name}\s*\.\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.]")
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("[") or header.match(line):
            inside = header.match(line) is not None
            first = first or (number if inside else 0)
        if inside and key and wanted.match(line):
            return number
    return first or 1


def _close(key: str, known: Mapping[str, Any]) -> list[str]:
    import difflib  # only whoever mistypes waits for it

    return difflib.get_close_matches(key, known, 1, 0.4)


def near(key: str, known: Mapping[str, Any]) -> str:
    """The known name that was probably meant, or all of them."""
    close = _close(key, known)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
