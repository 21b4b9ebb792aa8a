"""Sections on a screen of a given size: which rows are seen, and where a click goes. Pure.

The section in focus gets most of the room; the others show their first rows, as far as there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pact.cli.top.text import Line, Section, Span, fit, head, lines_of, restyled, widths

SMALLEST: Final = 3  # lines of a section that is not in focus: title and two rows
HEADS_FROM: Final = 14  # on fewer lines columns have no heads
TALL: Final = 50  # from here on all sections have them


@dataclass(slots=True)
class Look:
    """Where a person is in a list of sections. ``selected``: the key of the selected row in each."""

    focus: str = ""
    selected: dict[str, str] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)  # the index of that row when it was last seen
    top: dict[str, int] = field(default_factory=dict)  # the first line that is seen


@dataclass(frozen=True, slots=True)
class Spot:
    """What a line of the screen belongs to."""

    section: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    lines: list[Line]
    spots: list[Spot | None]


def visible(sections: Sequence[Section]) -> list[Section]:
    return [s for s in sections if s.rows or s.nothing]


def focused(sections: Sequence[Section], look: Look) -> Section | None:
    """The section in focus; the first one that has rows if that is gone."""
    there = visible(sections)
    found = next((s for s in there if s.name == look.focus), None)
    return found or next((s for s in there if s.rows), there[0] if there else None)


def keys(section: Section) -> list[str]:
    return [row.key for row in section.rows if row.key]


def selected(section: Section, look: Look) -> str:
    """The key of the selected row; if it has gone, that of the row in its place."""
    there = keys(section)
    if not there:
        return ""
    key = look.selected.get(section.name, "")
    if key not in there:
        key = there[min(look.places.get(section.name, 0), len(there) - 1)]
        look.selected[section.name] = key
    look.places[section.name] = there.index(key)
    return key


def shares(sections: Sequence[Section], wants: Sequence[int], focus: int, height: int) -> list[int]:
    """How many lines each section gets."""
    out = [0] * len(sections)
    if not sections:
        return out
    if sum(wants) <= height:
        return list(wants)
    out[focus] = min(wants[focus], max(SMALLEST + 1, height // 2), height)
    room = height - out[focus]
    for i, want in enumerate(wants):
        least = min(want, SMALLEST)
        if i != focus and room >= least > 1:
            out[i] = least
            room -= least
    for i in (focus, *range(len(sections))):
        if out[i]:
            more = min(room, wants[i] - out[i])
            out[i] += more
            room -= more
    return out


def body(sections: Sequence[Section], look: Look, width: int, height: int, now_s: float) -> Body:
    """At most ``height`` lines of ``width`` cells."""
    there = visible(sections)
    focus = focused(sections, look)
    if focus is None or height <= 0:
        return Body([], [])
    at = there.index(focus)
    drawn = [_drawn(s, look, width, height, now_s, s is focus) for s in there]
    sizes = shares(there, [1 + len(d.lines) + 1 for d in drawn], at, height + 1)  # a blank line after each but the last
    out, spots = list[Line](), list[Spot | None]()
    for section, lines, size in zip(there, drawn, sizes, strict=True):
        if not size:
            continue
        room = size - 1 - (0 if size - 2 < len(lines.lines) else 1)
        title, rows, where = _part(section, lines, look, width, min(room, height), section is focus)
        out += [title, *rows]
        spots += [Spot(section.name), *where]
        if size - 2 >= len(lines.lines):
            out.append(fit([], width))
            spots.append(None)
    return Body(out[:height], spots[:height])


@dataclass(slots=True)
class _Drawn:
    lines: list[Line]
    spots: list[Spot | None]
    chosen: tuple[int, int]  # the lines of the selected row


def _drawn(section: Section, look: Look, width: int, height: int, now_s: float, focus: bool) -> _Drawn:
    sizes = widths(section, width, now_s)
    chosen = selected(section, look) if focus else ""
    drawn = _Drawn([], [], (-1, -1))
    heads = height >= (HEADS_FROM if focus else TALL)
    if section.rows and heads and any(c.head for c in section.columns):
        drawn.lines.append(fit(head(section, sizes), width))
        drawn.spots.append(Spot(section.name))
    if not section.rows:
        drawn.lines.append(fit([(section.nothing, "dim")], width))
        drawn.spots.append(Spot(section.name))
    for row in section.rows if focus else section.rows[:height]:
        rows = lines_of(row, section, sizes, width, now_s)
        if chosen and row.key == chosen:
            rows[0] = restyled(rows[0], "selected")
            drawn.chosen = (len(drawn.lines), len(drawn.lines) + len(rows))
        drawn.lines += rows
        drawn.spots += [Spot(section.name, row.key)] * len(rows)
    return drawn


def _part(
    section: Section, drawn: _Drawn, look: Look, width: int, room: int, focus: bool
) -> tuple[Line, list[Line], list[Spot | None]]:
    """A section's title, and those of its lines that are seen."""
    top = 0
    if focus:
        first, last = drawn.chosen
        top = look.top.get(section.name, 0)
        if first >= 0:
            top = max(min(top, first if first > 1 else 0), last - room)
        top = look.top[section.name] = max(0, min(top, len(drawn.lines) - room))
    seen = drawn.lines[top : top + room]
    notes = [section.note] if section.note else []
    if len(seen) < len(drawn.lines):
        keyed = [s.key for s in drawn.spots[top : top + room] if s is not None and s.key]
        every = keys(section)
        if keyed and every:
            first_, last_ = every.index(keyed[0]) + 1, every.index(keyed[-1]) + 1
            if last_ - first_ + 1 < len(every):
                notes.insert(0, f"{first_} to {last_} of {len(every)}")
        elif len(section.rows) > 1:
            notes.insert(0, f"{len(section.rows)} in all")
    title: list[Span] = [(section.title, "title" if focus else "heading")]
    if notes:
        title.append((f"  {', '.join(notes)}", "dim"))
    return fit(title, width), seen, drawn.spots[top : top + room]
