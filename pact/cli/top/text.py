"""Lines of styled text that have an exact width in cells, and tables of them. Pure.

Names come from machines and people: what could move the cursor, turn the direction of writing or pile up over other
lines is shown as text, or not at all.  # Y2
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

from pact.cli.render import clean
from pact.cli.wrapping import cut, prose

SHOWN_MAX: Final = 400  # characters of one value
MARKS_MAX: Final = 2  # accents over one character
GAP: Final = "  "
FLEX_MIN: Final = 8
WHOLE_MIN: Final = 14  # a flexible column that has less gives way to nothing
ROWS_MEASURED: Final = 200
SELECTORS: Final = frozenset(map(chr, range(0xFE00, 0xFE10)))

Span = tuple[str, str]  # text and style
Line = tuple[Span, ...]


def shown(value: object, most: int = SHOWN_MAX) -> str:
    """Text from outside, as it may stand on a line."""
    raw = str(value)
    raw = raw if len(raw) <= most else raw[: most - 1] + "…"
    if raw.isascii() and raw.isprintable():
        return raw
    out: list[str] = []
    marks = 0
    for char in clean(raw):
        kind = unicodedata.category(char)
        if char in SELECTORS:
            continue
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind in ("Co", "Cn") or (marks and not out):
            out.append("\N{REPLACEMENT CHARACTER}")
        elif marks <= MARKS_MAX:
            out.append(char)
    return "".join(out)


def safe(text: str) -> str:
    """The same for a text that is on its way to the screen: a forgotten ``shown`` must not matter."""
    return text if text.isascii() and text.isprintable() else shown(text, len(text))


def cells(line: Iterable[Span]) -> int:
    return sum(cell_len(text) for text, _ in line)


def fit(line: Iterable[Span], width: int, style: str = "") -> Line:
    """Exactly ``width`` cells: cut with a sign, or filled with spaces of ``style``."""
    out: list[Span] = []
    left = width
    spans = [(safe(text), kind) for text, kind in line if text]
    for at, (text, kind) in enumerate(spans):
        size = cell_len(text)
        rest = any(t for t, _ in spans[at + 1 :])
        if size > left or (size == left and rest):
            text = cut(text + ("…" if size <= left else ""), left) if left else ""
            out.append((text, kind))
            left -= cell_len(text)
            break
        out.append((text, kind))
        left -= size
    if left > 0:
        out.append((" " * left, style))
    return tuple(out)


def restyled(line: Line, style: str) -> Line:
    """The whole line in one style."""
    return (("".join(text for text, _ in line), style),)


def plain(line: Iterable[Span]) -> str:
    return "".join(text for text, _ in line).rstrip()


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    return prose(text, max(width, len(indent) + 4), indent)


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clock:
    """A cell whose text depends on the time: how long until ``ends_s`` (of the clock that ``lines`` is given)."""

    ends_s: float
    style: str = ""


Cell = str | Span | Clock


@dataclass(frozen=True, slots=True)
class Column:
    """``flex``: its share of what is left; 0: as wide as its longest text, at most ``most``. ``drop``: on a narrow
    terminal columns with a higher number go first; 0: never."""

    head: str
    flex: int = 0
    most: int = 24
    drop: int = 0
    right: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """``key`` identifies it while others come and go; rows without one cannot be selected. ``more``: texts below it."""

    cells: tuple[Cell, ...]
    key: str = ""
    more: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """``note`` stands beside the title. A section without rows shows ``nothing``; with neither it is left out."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    nothing: str = ""


def left(seconds: float) -> str:
    """Time left, for people: seconds in the last ten minutes."""
    s = max(0, int(seconds))
    if s >= 86400:
        return f"{s // 86400}d {s % 86400 // 3600:02d}h"
    if s >= 3600:
        return f"{s // 3600}h {s % 3600 // 60:02d}m"
    return f"{s // 60}m {s % 60:02d}s" if s >= 60 else f"{s}s"


def cell(value: Cell, now_s: float) -> Span:
    if isinstance(value, Clock):
        rest = value.ends_s - now_s
        return left(rest), value.style or ("soon" if rest < 120 else "")
    text, style = (value, "") if isinstance(value, str) else value
    return safe(text), style


def widths(section: Section, width: int, now_s: float) -> list[int]:
    """How wide each column is; 0: it is left out."""
    columns = section.columns
    longest = [cell_len(c.head) if c.head else 1 for c in columns]
    for row in section.rows[:ROWS_MEASURED]:
        for i, value in enumerate(row.cells[: len(columns)]):
            longest[i] = max(longest[i], cell_len(cell(value, now_s)[0]))
    wanted = [n if c.flex else min(n, c.most) for n, c in zip(longest, columns, strict=True)]
    live = list(range(len(columns)))

    def least() -> int:
        each = [min(wanted[i], WHOLE_MIN) if columns[i].flex else wanted[i] for i in live]
        return sum(each) + len(GAP) * (len(live) - 1)

    while least() > width and any(columns[i].drop for i in live):
        live.remove(max(live, key=lambda i: (columns[i].drop, i)))
    out = [0] * len(columns)
    room = width - len(GAP) * (len(live) - 1)
    for i in live:
        if not columns[i].flex:
            out[i] = max(1, min(wanted[i], room))
            room -= out[i]
    flexible = sorted((i for i in live if columns[i].flex), key=lambda i: wanted[i] / columns[i].flex)
    for at, i in enumerate(flexible):
        share = sum(columns[j].flex for j in flexible[at:])
        out[i] = max(1, min(wanted[i], room * columns[i].flex // share if share else room))
        room -= out[i]
    if flexible and room > 0:
        out[flexible[-1]] += room
    return out


def head(section: Section, sizes: Sequence[int]) -> Line:
    parts = [(c.head, n, c.right) for c, n in zip(section.columns, sizes, strict=True) if n]
    return ((GAP.join(_placed(text, n, right) for text, n, right in parts), "dim"),)


def lines_of(row: Row, section: Section, sizes: Sequence[int], width: int, now_s: float) -> list[Line]:
    """The lines of one row: its cells, then its further texts."""
    first: list[Span] = []
    for value, column, size in zip(row.cells, section.columns, sizes, strict=False):
        if not size:
            continue
        text, style = cell(value, now_s)
        first.append((_placed(cut(text, size), size, column.right), style))
        first.append((GAP, ""))
    out = [fit(first[:-1], width)]
    for text, style in row.more:
        out += [fit([(piece, style)], width) for piece in wrap(text, width, "    ")]
    return out


def _placed(text: str, size: int, right: bool) -> str:
    text = cut(text, size)
    fill = " " * (size - cell_len(text))
    return fill + text if right else text + fill
