"""Node sets as ClusterShell writes them: ``node[001-128/2]``, ``@group``. Bounded before the library expands them.

groups.conf defines groups, often with a command that asks a batch system: the command line waits for that, on its own
machine (``resolved``), and never the loop of a root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, Final

from pact.errors import UsageError
from pact.limits import NODE_SET_MAX

NODES_MAX: Final = 100_000
TEXT_MAX: Final = NODE_SET_MAX
DIGITS_MAX: Final = 18
LIBRARY_MAX: Final = 2000  # characters of a set that is written in an unusual way
FEW: Final = 32  # so many names the library folds in little time, whatever they are
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:@*,&!^\[\]/ -]*")
_OPTION: Final = re.compile(r"[@:]-|@[^,&!^]* ")
_GROUPS: Final = re.compile(r"[@*]")
_LIST: Final = re.compile(r"[A-Za-z0-9_.-]+(?:,[A-Za-z0-9_.-]+)*")
_FOLDS: Final = re.compile(r"[A-Za-z0-9_.-]*[0-9][A-Za-z0-9_.-]*")
_NUMBER: Final = re.compile(r"[0-9]+")
_DIGITS: Final = "0123456789"
_LETTERS: Final = re.compile(r"[A-Za-z_.-]+")
_PARTS: Final = re.compile(r"(?:\[[^\]]*\]|[^,&!^\s\[])+")
_LONE: Final = re.compile(r"[/\[\]]")  # outside of brackets: a step, and an unmatched bracket
OPERATORS: Final = ",!&^"
_PIECES: Final = re.compile(r"[,!&^]|\[[^\]]*\]|[^\[\],!&^]+|[\[\]]")  # operators, ranges, and what is between them
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_RANGES: Final = re.compile(r"\[([^\[\]]*)\]")
_RANGE: Final = re.compile(r"([0-9]+)(?:-([0-9]+)(?:/([0-9]+))?)?")


def resolved(text: str) -> str:
    """The same set without ``@group`` and ``*``, as this machine's groups.conf defines them. Waits; raises
    UsageError."""
    return fold(parse(text)) if _GROUPS.search(text) else text


def one(text: str) -> str:
    """The only node of a set. What is meant for one node must not reach several. Waits; raises UsageError."""
    names = list(_expand(resolved(text)))
    if len(names) != 1:
        raise UsageError(f"{text[:200]!r} is not one node: it names {len(names)}", "pact exec --nodes asks many")
    return names[0]


class NodeSets:
    """``expand`` and ``fold`` for the root."""

    def expand(self, text: str, most: int = NODES_MAX) -> list[str]:
        """The names, in the set's order. Raises UsageError for a text that is no node set, or for one with more than
        ``most`` names, before it takes any time."""
        if most < NODES_MAX:
            _refuse_huge(text, most)
        return list(_expand(text))

    def fold(self, names: Iterable[str]) -> str:
        return fold(names)


class Folded:
    """Names that are folded when they are read, in the reading thread, and once."""

    __slots__ = ("_text", "names")

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._text: str | None = None

    def __str__(self) -> str:
        if self._text is None:
            self._text = fold(self.names)
        return self._text


@lru_cache(maxsize=64)
def _expand(text: str) -> tuple[str, ...]:
    if len(text) <= TEXT_MAX and _LIST.fullmatch(text):  # nothing to expand
        return tuple(dict.fromkeys(text.split(",")))
    _refuse_huge(text)
    parsed = _expanded(text)
    if parsed is None:
        if len(text) > LIBRARY_MAX:
            raise UsageError(
                f"{text[:60]!r}... is too long to be written so: at most {LIBRARY_MAX} characters",
                "without spaces, and with as many digits in all numbers of a range: node[001-128],login1",
            )
        parsed = dict.fromkeys(parse(text, groups=False))
    if not parsed:
        raise UsageError(f"the node set {text[:200]!r} is empty", "see clush and nodeset for how it is written")
    if len(parsed) > NODES_MAX:
        raise UsageError(f"a node set of {len(parsed)} nodes; at most {NODES_MAX}")
    return tuple(parsed)


def _expanded(text: str) -> dict[str, None] | None:
    """The names of a set that is written in the usual way, else None. ClusterShell takes quadratic time, or more, for
    many parts, and for names with several numbers; here it is linear. Parts are joined from left to right, as there."""
    names: dict[str, None] = {}
    operator, pieces = ",", list[str]()
    for piece in (*_PIECES.findall(text), ","):
        if piece not in OPERATORS:
            pieces.append(piece)
            continue
        part = _part("".join(pieces).strip())
        if part is None:
            return None
        _join(names, operator, part)
        operator, pieces = piece, []
    return names


def _part(part: str) -> list[str] | None:
    """The names of a part; None if only the library knows what it means."""
    if _NAME.fullmatch(part):
        return [part]
    if not part:  # an operator without an operand
        return None
    texts, inner = _RANGES.split(part)[::2], _RANGES.findall(part)
    numbers = [_numbers(one) for one in inner]
    # Digits beside a range are part of its numbers.
    beside = any(t[-1:].isdigit() for t in texts[:-1]) or any(t[:1].isdigit() for t in texts[1:])
    if beside or not all(texts[1:-1]) or not all(numbers) or not all(_NAME.fullmatch(t) for t in texts if t):
        return None
    ends = [*texts[1:], ""]
    pieces = [[texts[0]], *([n + end for n in of or ()] for of, end in zip(numbers, ends, strict=False))]
    return list(dict.fromkeys(map("".join, product(*pieces))))  # ranges may overlap: a name counts once


def _numbers(inner: str) -> list[str] | None:
    """The numbers between two brackets, or None as above."""
    out = list[str]()
    for one in inner.split(","):
        found = _RANGE.fullmatch(one)
        if found is None:
            return None
        first, last, step = found[1], found[2] or found[1], int(found[3] or 1)
        padded = any(len(n) > 1 and n[0] == "0" for n in (first, last))
        if not 0 < step <= NODES_MAX or int(first) > int(last) or (padded and len(first) != len(last)):
            return None
        out += [f"{n:0{len(first) if padded else 0}}" for n in range(int(first), int(last) + 1, step)]
    return out


def _join(names: dict[str, None], operator: str, others: Iterable[str]) -> None:
    """Join in place: the cost depends on ``others``, not on the size of the left set."""
    if operator == "&":
        right = set(others)
        for gone in [n for n in names if n not in right]:
            del names[gone]
        return
    for name in others:
        if operator == ",":
            names[name] = None
        elif operator == "!":
            names.pop(name, None)
        elif name in names:
            del names[name]
        else:
            names[name] = None


def parse(text: str, *, groups: bool = True) -> Any:
    """ClusterShell's NodeSet. Raises UsageError, also for an empty set, and for a group if ``groups`` is False."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    _refuse_huge(text)
    _refuse_unsafe(text)
    if not groups and _GROUPS.search(text):  # T9
        raise UsageError(f"{text[:200]!r}: the root knows no groups", "they are looked up where the command runs")
    try:
        parsed = NodeSet(text, resolver=None if groups else RESOLVER_NOGROUP)
    except Exception as exc:  # ClusterShell's own errors, Python's, and assertions: all of them are the text's fault
        raise UsageError(
            f"{text[:200]!r} is no node set: {str(exc)[:200]}", "for example node[001-128], or @group"
        ) from None
    if not parsed:
        raise UsageError(f"the node set {text[:200]!r} is empty", "see clush and nodeset for how groups are configured")
    return parsed


def fold(names: Iterable[str]) -> str:
    """``node[001-003]`` for the names."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    distinct = sorted(set(names))
    if len(distinct) == 1:
        return distinct[0]
    if len(distinct) > FEW:
        return ",".join(_folded(distinct))
    plain = [n for n in distinct if not _FOLDS.fullmatch(n)]
    folded = [n for n in distinct if _FOLDS.fullmatch(n)]
    return ",".join(filter(None, [str(NodeSet.fromlist(folded, resolver=RESOLVER_NOGROUP)) if folded else "", *plain]))


def _folded(names: Sequence[str]) -> list[str]:
    """Many names: the library takes quadratic time, or more, for names with several numbers. Here the last numbers are
    folded first, then those before them where all after them is the same, and so on: each in linear time."""
    out, rest = _folded_at_end(names)
    found = {n: (tuple(_NUMBER.split(n)), tuple(_NUMBER.findall(n))) for n in rest if _FOLDS.fullmatch(n)}
    out, by_count = [*(n for n in rest if n not in found), *out], dict[int, list[_Partly]]()
    for texts, numbers in found.values():
        by_count.setdefault(len(numbers), []).append((texts[:-1], numbers, texts[-1]))
    for count, rows in sorted(by_count.items()):
        for _ in range(count):
            rows = _fold_last(rows)
        out += [after for _, _, after in rows]
    return out


def _folded_at_end(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names with one number, at their end: nearly always all of them, and soon folded. Returns what became of them, and
    the rest."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(name.rstrip(_DIGITS), []).append(name)
    out, rest = [], list[str]()
    for stem, alike in by_stem.items():
        if (stem and not _LETTERS.fullmatch(stem)) or stem in alike:
            rest += alike
        else:
            out += [stem + text for text in _ranges([n[len(stem) :] for n in alike])]
    return out, rest


#: Texts, the numbers after them that are not folded yet, and all that comes after these.
_Partly = tuple[tuple[str, ...], tuple[str, ...], str]


def _fold_last(rows: Iterable[_Partly]) -> list[_Partly]:
    """Fold the last number of each row with those of all rows that are else the same."""
    alike: dict[_Partly, list[str]] = {}
    for texts, numbers, after in rows:
        alike.setdefault((texts, numbers[:-1], after), []).append(numbers[-1])
    return [
        (texts[:-1], before, texts[-1] + text + after)
        for (texts, before, after), numbers in alike.items()
        for text in (numbers if len(numbers) == 1 else _ranges(numbers))
    ]


def _ranges(numbers: Sequence[str]) -> Iterator[str]:
    """Different numbers as one text, or as one for each length of those that begin with a zero."""
    padded = {len(n) for n in numbers if n[0] == "0" and len(n) > 1}
    by_width: dict[int, list[int]] = {}
    for n in numbers:
        by_width.setdefault(len(n) if len(n) in padded else 0, []).append(int(n))
    for width, values in sorted(by_width.items()):
        values.sort()
        ranges = [[values[0], values[0]]]
        for value in values[1:]:
            if value == ranges[-1][1] + 1:
                ranges[-1][1] = value
            else:
                ranges.append([value, value])
        text = ",".join(f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in ranges)
        yield text if len(values) == 1 else f"[{text}]"


def _refuse_unsafe(text: str) -> None:
    """ClusterShell inserts the names of groups into the shell commands of groups.conf without quoting: a request must
    not be able to contain commands.  # T13
    """
    outside = _RANGES.sub("", text)
    if not _PLAIN.fullmatch(text) or _LONE.search(outside) or _OPTION.search(outside):
        raise UsageError(
            f"{text[:200]!r} is no node set: names are letters, digits, '.', '_', '-'",
            "for example node[001-128], or @group",
        )


def _refuse_huge(text: str, most: int = NODES_MAX) -> None:
    """Twelve characters can name a billion nodes: count the names before they are expanded. Of all parts together,
    before exclusions, they may be twice as many."""
    if len(text) > TEXT_MAX:
        raise UsageError(f"a node set of {len(text)} characters; at most {TEXT_MAX}")
    total = 0
    for part in _PARTS.findall(text):
        count = 1
        for ranges in _RANGES.finditer(part):
            width, after_digit = 0, part[: ranges.start()][-1:].isdigit()
            for one in ranges[1].split(","):
                found = _RANGE.fullmatch(one.strip())
                if found is None:  # ClusterShell might expand it to more names than are counted here
                    raise UsageError(f"{one[:60]!r} in {part[:60]!r} is no range", "for example node[001-128/2,200]")
                if found[2] and after_digit and len(found[1]) != len(found[2]):
                    # ClusterShell joins them: it reads n3[0-100] as 3,071 names, from n30 to n3100
                    raise UsageError(
                        f"a digit before a range from {found[1]} to {found[2]} in {part[:60]!r}",
                        "write the digit into the range, or both ends equally long: n3[000-100]",
                    )
                if found[2]:
                    if max(map(len, found.groups(""))) > DIGITS_MAX:
                        raise UsageError(f"a range with numbers of more than {DIGITS_MAX} digits")
                    width += max(1, (int(found[2]) - int(found[1])) // max(1, int(found[3] or 1)) + 1)
                else:
                    width += 1
            count *= width
            if count > most:
                raise UsageError(f"{part[:200]!r} means more than {most} nodes")
        total += count
        if total > 2 * most:
            raise UsageError(f"its parts mean more than {2 * most} nodes")
