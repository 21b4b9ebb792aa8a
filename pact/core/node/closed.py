"""Names of what a pattern finds in directories that are closed to others. Only administrators see them.  # S2

The state has them while such a thing is declared absent (``State.closed``). Each record that has one of them says so in
its field ``closed``, so that it can be hidden whenever the record is shown. What stands in the place of a name is not
decided here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

#: A name ends where no letter or digit goes on with it, and where it is not the directory of another name.
_STOP: Final = re.compile(r"[^\w/-]|$")
#: A text that is nothing but a path or the id of one: another path that ends like a hidden one is another one. A path
#: that begins behind such a sign as may stand between two (``/a,/b``) may be one for itself.
_PATH: Final = re.compile(r"(?:[a-z]+:)?(/(?:[\w.]|[@%+=,~-](?!/)|/(?!/))*)")
DIRECTORIES_MAX: Final = 16


class Names:
    """Resources whose names are hidden. There may be many thousands, and they come and go one by one."""

    def __init__(self, resources: Iterable[str] = ()) -> None:
        self._ids: set[str] = set()
        self._resources: dict[str, str] = {}  # name -> resource, also of what was taken out of late
        self.left: list[str] = []  # was taken out, and is hidden until ``forget``
        self._lengths: Counter[int] = Counter()
        self._above: Counter[str] = Counter()  # the first directory of each name: few texts have one of them
        self.add(resources)

    def __bool__(self) -> bool:
        return bool(self._resources)

    def __contains__(self, resource: str) -> bool:
        return resource in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def add(self, resources: Iterable[str]) -> None:
        for resource in resources:
            self._ids.add(resource)
            name = resource.partition(":")[2]
            if not name:  # a field of that name in what somebody else has written
                continue
            if name not in self._resources:
                self._lengths[len(name)] += 1
                self._above[_first_directory(name)] += 1
            self._resources[name] = resource

    def take_out(self, resource: str) -> None:
        """Its name is hidden until ``forget``: in what is said of how it has left, too."""
        if resource in self._ids:
            self._ids.remove(resource)
            self.left.append(resource)

    def forget(self) -> None:
        """Hide no longer what was taken out."""
        out, self.left = self.left, []
        for resource in out:
            name = resource.partition(":")[2]
            if resource not in self._ids and self._resources.get(name) == resource:
                del self._resources[name]
                _less(self._lengths, len(name))
                _less(self._above, _first_directory(name))

    def within(self, value: Any) -> set[str]:
        """Those that a record's or an answer's data have, alone or in the middle of a text."""
        return {self._resources[name] for text in _texts(value) for name in self._quoted(text)} if self else set()

    def replaced(self, value: Any, stand_in: Callable[[str], str]) -> Any:
        """The same data with another id in the place of each."""
        if isinstance(value, str):
            for name in self._quoted(value):
                value = _without(value, name, stand_in(self._resources[name]).partition(":")[2])
            return value
        if isinstance(value, dict):
            return {self.replaced(k, stand_in): self.replaced(v, stand_in) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(item, stand_in) for item in value]
        return value

    def _quoted(self, text: str) -> Collection[str]:
        """The names that a text quotes, the longest first. An answer may have ten thousand texts: each is asked for
        what could be a name, and only one that has too much of that is asked for each name."""
        above = self._above
        if "/" not in text or (len(above) <= DIRECTORIES_MAX and not any(a in text for a in above)):
            return ()
        whole = _PATH.fullmatch(text)
        begins = [whole.start(1)] if whole is not None else [m.start() for m in re.finditer("/", text)]
        ends = [m.start() for m in _STOP.finditer(text, begins[0])]
        if whole is None and len(begins) * len(ends) > len(self._resources):
            found = {n for n in self._resources if n in text and _without(text, n, "") != text}
        else:
            found = {text[a:b] for a in begins for b in ends if b - a in self._lengths} & self._resources.keys()
        return sorted(found, key=len, reverse=True)


def _first_directory(name: str) -> str:
    return name[: name.find("/", 1) + 1]


def _less(many: Counter[Any], one: Any) -> None:
    many[one] -= 1
    if not many[one]:
        del many[one]


def _without(text: str, name: str, other: str) -> str:
    """The text with another name in the place of this one, wherever this one is whole."""
    out, begin, at = list[str](), 0, text.find(name)
    while at >= 0:
        end = at + len(name)
        if _STOP.match(text, end) is None:
            end = at + 1  # another one may begin within it
        else:
            out += (text[begin:at], other)
            begin = end
        at = text.find(name, end)
    return "".join([*out, text[begin:]])


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
