"""Node sets as ClusterShell writes them: ``node[001-128/2]``, ``@group``. Bounded before the library expands them.

groups.conf defines groups, often with a command that asks a batch system: the command line waits for that, on its own
machine (``resolved``), and never the loop of a root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

from pact.errors import UsageError
from pact.limits import NODE_SET_MAX

NODES_MAX: Final = 100_000
TEXT_MAX: Final = NODE_SET_MAX
DIGITS_MAX: Final = 18
MANY: Final = 200
LOTS: Final = 4000  # folding names with two numbers takes a tenth of a second for this many, and seconds for 100,000
PARTS_MAX: Final = 2 * NODES_MAX  # of all parts together, before exclusions
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:@*,&!^\[\]/ -]*")
_OPTION: Final = re.compile(r"[@:]-|@[^,&!^]* ")
_GROUPS: Final = re.compile(r"[@*]")
_LIST: Final = re.compile(r"[A-Za-z0-9_.-]+(?:,[A-Za-z0-9_.-]+)*")
_FOLDS: Final = re.compile(r"[A-Za-z0-9_.-]*[0-9][A-Za-z0-9_.-]*")
_NUMBER: Final = re.compile(r"[0-9]+")
_LAST: Final = re.compile(r"(.*?)([0-9]+)([^0-9]*)")
_PARTS: Final = re.compile(r"(?:\[[^\]]*\]|[^,&!^\s\[])+")
_LONE: Final = re.compile(r"[/\[\]]")  # outside of brackets: a step, and an unmatched bracket
_OPERATORS: Final = re.compile(r"([,!&^])(?![^\[\]]*\])")
_NUMBERS: Final = re.compile(r"[0-9\]][^0-9\[\],]+[0-9\[]")  # a number, something else, a number; without ranges
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

    def expand(self, text: str) -> list[str]:
        """The names, in the set's order. Raises UsageError for a text that is no node set, or for too large a set."""
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
    first, *rest = map(str.strip, _OPERATORS.split(text))
    parts = rest[1::2]
    if parts and first and all(parts) and any(_NUMBERS.search(_RANGES.sub("[]", p)) for p in (first, *parts)):
        # ClusterShell takes quadratic time, or more, to join sets of names with several numbers: here it expands each
        # part, and the parts are joined as it does it, from left to right.
        parsed: Any = dict.fromkeys(_part(first))
        for operator, part in zip(rest[::2], parts, strict=True):
            _join(parsed, operator, _part(part))
        if not parsed:
            raise UsageError(f"the node set {text[:200]!r} is empty", "see clush and nodeset for how it is written")
    else:
        parsed = parse(text, groups=False)
    if len(parsed) > NODES_MAX:
        raise UsageError(f"a node set of {len(parsed)} nodes; at most {NODES_MAX}")
    return tuple(parsed)


def _part(text: str) -> Iterable[str]:
    names: Iterable[str] = (text,) if _LIST.fullmatch(text) else parse(text, groups=False)
    return names


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
    plain = [n for n in distinct if not _FOLDS.fullmatch(n)]
    folded = [n for n in distinct if _FOLDS.fullmatch(n)]
    most = 2 if len(folded) <= LOTS else 1
    if len(folded) > MANY and any(len(_NUMBER.findall(n)) > most for n in folded[:: len(folded) // MANY]):
        return ",".join([*_by_last_number(folded), *plain])
    return ",".join(filter(None, [str(NodeSet.fromlist(folded, resolver=RESOLVER_NOGROUP)) if folded else "", *plain]))


def _by_last_number(names: Iterable[str]) -> Iterator[str]:
    """Names with many numbers (``x1000c0s0b0n0``) take the library seconds: here only the last number is folded."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for name in names:
        before, number, after = _LAST.fullmatch(name).groups()  # type: ignore[union-attr]
        width = len(number) if number[0] == "0" and len(number) > 1 else 0
        found.setdefault((before, after, width), []).append(int(number))
    for (before, after, width), numbers in found.items():
        ranges: list[list[int]] = []
        for n in sorted(numbers):
            if ranges and ranges[-1][1] == n - 1:
                ranges[-1][1] = n
            else:
                ranges.append([n, n])
        texts = [f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in ranges]
        one = len(numbers) == 1
        yield f"{before}{texts[0]}{after}" if one else f"{before}[{','.join(texts)}]{after}"


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


def _refuse_huge(text: str) -> None:
    """Twelve characters can name a billion nodes: count the names before they are expanded."""
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
            if count > NODES_MAX:
                raise UsageError(f"{part[:200]!r} means more than {NODES_MAX} nodes")
        total += count
        if total > PARTS_MAX:
            raise UsageError(f"its parts mean more than {PARTS_MAX} nodes")
