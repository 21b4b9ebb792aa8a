"""Text in lines of a terminal's width, counted in cells. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, chop_cells

INDENT: Final = "    "


def cut(text: str, width: int) -> str:
    """Text in at most ``width`` cells; a sign stands for the missing part."""
    if cell_len(text) <= width:
        return text
    out, used = [], 0
    for char in text:
        used += cell_len(char)
        if used > width - 1:
            break
        out.append(char)
    return "".join(out) + "…"


def cut_name(text: str, width: int) -> str:
    """The same as ``cut``, but the end of the name stays: it says most."""
    if cell_len(text) <= width:
        return text
    head = cut(text, max(2, width // 3))
    tail: list[str] = []
    room = width - cell_len(head)
    for char in reversed(text):
        room -= cell_len(char)
        if room < 0:
            break
        tail.append(char)
    return head + "".join(reversed(tail))


def wrapped(names: Sequence[str], width: int, most: int | None, before: str = INDENT) -> list[str]:
    """Names in lines that break between them; names that do not fit into ``most`` lines are counted."""
    lines: list[str] = []
    row, indent = before, " " * cell_len(before)
    for i, name in enumerate(names):
        shown = cut_name(name, width - cell_len(indent) - 1) + ("," if i + 1 < len(names) else "")
        begun = row not in (before, indent)
        fits = cell_len(row) + begun + cell_len(shown) <= width
        if begun and not fits:
            if most is not None and len(lines) + 1 >= most:
                more = f" and {len(names) - i} more"
                return [*lines, cut(row.rstrip(","), width - len(more)) + more]
            lines.append(row)
            row, begun = indent, False
        row += (" " if begun else "") + shown
    return [*lines, row]


def prose(text: str, width: int, indent: str = INDENT) -> list[str]:
    """A sentence in lines that break between words, if possible."""
    lines, row = [], indent
    for word in text.split():
        for piece in chop_cells(word, max(1, width - cell_len(indent))) or [""]:
            begun = row != indent
            if begun and cell_len(row) + 1 + cell_len(piece) > width:
                lines.append(row)
                row, begun = indent, False
            row += (" " if begun else "") + piece
    return [*lines, row] if row != indent else lines
