"""Acknowledgements on their last hop. While calls are under way those for a node wait up to a second for more: votes
and decisions of thousands of nodes do not share their second with as many messages that say "I have it". Only a node
whose credit runs out waits for them, and is told at once.
"""

from __future__ import annotations

from typing import Any, Final

from pact.model import NS_PER_S

HELD_NS: Final = NS_PER_S
HELD_BYTES: Final = 16 << 10  # a quarter of the least credit


class Acks:
    """The newest ``[node, incarnation, seq, rewind, ...]`` of each journal whose node has not been told yet. What
    follows those four is carried along: the seal, and whose it is.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[list[Any], int]] = {}
        self._due_ns = 0

    def newest(self, cursor: list[Any]) -> list[Any]:
        """What is to be said now: this, or what was held and has overtaken it."""
        node, incarnation, seq, rewind = cursor[:4]
        held, _ = self._held.pop((node, incarnation), (cursor, 0))
        return held if held[2] > seq and not rewind else cursor

    def hold(self, cursor: list[Any], size: int, t_ns: int) -> list[Any] | None:
        """What has to be said now all the same, if anything. ``size``: bytes that are acknowledged by it."""
        key = (cursor[0], cursor[1])
        begins = not self._held
        size += self._held.get(key, (cursor, 0))[1]
        cursor = self.newest(cursor)
        if cursor[3] or size >= HELD_BYTES:
            return cursor
        if begins:
            self._due_ns = t_ns + HELD_NS
        self._held[key] = cursor, size
        return None

    def due(self, t_ns: int) -> list[list[Any]]:
        """Those that have waited long enough, and what came since."""
        if not self._held or t_ns < self._due_ns:
            return []
        held, self._held = self._held, {}
        return [cursor for cursor, _ in held.values()]

    def next_wake_ns(self) -> int | None:
        return self._due_ns if self._held else None
