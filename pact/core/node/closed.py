"""Names of what a pattern finds in directories that are closed to others. Only administrators see them.  # S2

The state has them while such a thing is declared absent (``State.closed``). Each record that has one of them says so in
its field ``closed``, so that it can be hidden whenever the record is shown. What stands in the place of a name is not
decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

#: A name ends where no letter or digit goes on with it, and where it is not the directory of another name.
_STOP: Final = re.compile(r"[^\w/-]|$")
_END: Final = r"(?![\w/-])"
DIRECTORIES_MAX: Final = 16


class Names:
    """Resources whose names are hidden."""

    def __init__(self, resources: Collection[str] = ()) -> None:
        self._resources = {r.partition(":")[2]: r for r in sorted(resources, key=len, reverse=True)}
        self._lengths = set(map(len, self._resources))
        self._above = re.compile("|".join(map(re.escape, _directories(self._resources))))

    def __bool__(self) -> bool:
        return bool(self._resources)

    def within(self, value: Any) -> set[str]:
        """Those that a record's or an answer's data have, alone or in the middle of a text."""
        return {self._resources[name] for text in _texts(value) for name in self._quoted(text)} if self else set()

    def replaced(self, value: Any, stand_in: Callable[[str], str]) -> Any:
        """The same data with another id in the place of each."""
        if isinstance(value, str):
            for name in self._quoted(value):
                other = stand_in(self._resources[name]).partition(":")[2]
                value = re.sub(re.escape(name) + _END, lambda _, other=other: other, value)  # type: ignore[misc]
            return value
        if isinstance(value, dict):
            return {self.replaced(k, stand_in): self.replaced(v, stand_in) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(item, stand_in) for item in value]
        return value

    def _quoted(self, text: str) -> Collection[str]:
        """The names that a text quotes, the longest first. An answer may have ten thousand texts: each is asked for
        what could be a name, and only one that has too much of that is asked for each name."""
        if self._above.search(text) is None:
            return ()
        begins = [m.start() for m in re.finditer("/", text)]
        ends = [m.start() for m in _STOP.finditer(text, begins[0])]
        if len(begins) * len(ends) > len(self._resources):
            return [n for n in self._resources if n in text and re.search(re.escape(n) + _END, text)]
        parts = {text[a:b] for a in begins for b in ends if b - a in self._lengths}
        return sorted(parts & self._resources.keys(), key=len, reverse=True)


def _directories(names: Collection[str]) -> Collection[str]:
    """A few directories that all names are in: most texts have none of them."""
    parts = [name.split("/")[:-1] for name in names]
    for depth in range(max(map(len, parts), default=0), 0, -1):
        found = {"/".join(row[:depth]) + "/" for row in parts}
        if len(found) <= DIRECTORIES_MAX:
            return found
    return ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
