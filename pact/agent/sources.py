"""Sources of events that kinds bring themselves, besides the paths that the observers watch.

Events that a source has missed, or a failure of it, concern only its own kind: other kinds are not observed for it.
# O1
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from typing import Final

from pact.host.notify import log
from pact.model import Owner, Writer, split_id
from pact.observe.attribution import owner_of, resolve
from pact.observe.netlinkports import user_of
from pact.resources import KINDS
from pact.resources.base import Source
from pact.resources.guarded import Guarded

OK: Final = "ok"
HOLLOW_MAX: Final = 1000


class Sources:
    """Calls ``touch`` for each resource that may have changed, with its writer; ``of_kind`` names all resources of a
    kind, ``owner`` the owner of what a process writes, ``remembered`` the writer with a pid that is gone already, if
    the observers have seen it begin."""

    def __init__(
        self,
        touch: Callable[[str, Owner | None], None],
        of_kind: Callable[[str], Iterable[str]],
        owner: Callable[[Writer], Owner] = owner_of,
        remembered: Callable[[int], Writer | None] = lambda pid: None,
    ) -> None:
        self._touch, self._of_kind = touch, of_kind
        self._owner, self._remembered = owner, remembered
        self._sources: dict[str, Source] = {}
        self._broken: dict[str, str] = {}  # kind -> why it is polled
        self._hollow: dict[str, int] = {}  # how often in a row it was readable after it gave nothing
        self._none: set[str] = set()  # kinds that have no source
        self._epoll: select.epoll | None = None

    def wake_with(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        for kind, source in list(self._sources.items()):
            try:
                epoll.register(source.fileno(), select.EPOLLIN)
            except Exception as exc:
                self._give_up(kind, exc)

    def want(self, resource: str) -> None:
        kind, name = split_id(resource)
        if kind in self._none or kind in self._broken:
            return
        try:
            source = self._sources.get(kind) or self._open(kind)
            if source is not None:
                source.want(name)
        except Exception as exc:
            self._give_up(kind, exc)

    def _open(self, kind: str) -> Source | None:
        source = KINDS[kind].source()
        if source is None:
            self._none.add(kind)
            return None
        self._sources[kind] = source
        if self._epoll is not None:
            self._epoll.register(source.fileno(), select.EPOLLIN)
        return source

    def unwant(self, resource: str) -> None:
        kind, name = split_id(resource)
        if kind in self._sources:
            try:
                self._sources[kind].unwant(name)
            except Exception as exc:
                self._give_up(kind, exc)

    def drain(self) -> dict[str, Owner | None]:
        """Take the events of all sources. Returns the kinds of which something came or went, with whom that is known to
        be the work of."""
        moved: dict[str, Owner | None] = {}
        for kind, source in list(self._sources.items()):
            try:
                seen = source.drain()
                changed, lost = [(str(name), _process(by)) for name, by in seen.changed], bool(seen.lost)
                ports, bringer = bool(seen.ports), _process(seen.by)
                if seen.news or lost:
                    moved[kind] = self._owner_of(bringer, ports)
            except Exception as exc:
                self._give_up(kind, exc)
                continue
            if not changed and not lost and self._spins(kind, source):
                continue
            for name, by in changed:
                self._touch(f"{kind}:{name}", self._owner_of(by, ports))
            if lost:
                self._look_at_all(kind)
        return moved

    def _owner_of(self, by: int | Writer, ports: bool) -> Owner | None:
        writer = by if isinstance(by, Writer) else self._writer(by, ports) if by > 0 else None
        return self._owner(writer) if writer is not None else None

    def _writer(self, number: int, is_port: bool) -> Writer | None:
        return user_of(number, self._remembered) if is_port else resolve(number) or self._remembered(number)

    def _spins(self, kind: str, source: Source) -> bool:
        """Give up a source of another package that says again and again that there is something, and gives nothing: the
        loop would never sleep."""
        if not isinstance(KINDS[kind], Guarded):
            return False
        self._hollow[kind] = self._hollow.get(kind, 0) + 1 if self._is_readable(source) else 0
        if self._hollow[kind] > HOLLOW_MAX:
            self._give_up(kind, RuntimeError("it is readable, and gives nothing"))
            return True
        return False

    @staticmethod
    def _is_readable(source: Source) -> bool:
        try:
            return bool(select.select([source.fileno()], [], [], 0)[0])
        except Exception:
            return False  # the next drain tells

    def _look_at_all(self, kind: str) -> None:
        for resource in self._of_kind(kind):
            self._touch(resource, None)

    def _give_up(self, kind: str, error: Exception) -> None:
        """Stop using a source whose code, which is not pact's own, has failed: its kind is polled, and nothing else
        suffers."""
        self._broken[kind] = f"{type(error).__name__}: {error}; polled"[:200]
        log(f"the source of events of kind {kind} is given up: {self._broken[kind]}", 4)
        source = self._sources.pop(kind, None)
        if source is not None:
            self._close(source)
        self._look_at_all(kind)

    def _close(self, source: Source) -> None:
        try:
            if self._epoll is not None:
                self._epoll.unregister(source.fileno())
        except Exception:
            pass  # it was never registered, or its descriptor is closed already
        try:
            source.close()
        except Exception as exc:
            log(f"a source of events could not be closed: {exc}", 4)

    def health(self) -> dict[str, str]:
        """The sources that do not work, and the kinds of which nothing can be read."""
        out = {**self._broken, **{k.name: why for k in KINDS.values() if (why := k.health()) != OK}}
        for kind, source in list(self._sources.items()):
            try:
                why = str(source.health())
            except Exception as exc:
                self._give_up(kind, exc)
                why = self._broken[kind]
            if why != OK:
                out[kind] = why
        return out

    def close(self) -> None:
        for source in self._sources.values():
            self._close(source)
        self._sources.clear()


def _process(by: int | Writer) -> int | Writer:
    return by if isinstance(by, Writer) else int(by)
