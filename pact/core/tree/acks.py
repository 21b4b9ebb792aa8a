"""Acknowledgements on their last hop. While calls are open, a node's acknowledgements wait up to a second for more: the
votes and decisions of thousands of nodes do not share that second with as many acknowledgement messages. Only a node
whose credit runs out needs its acknowledgements, and gets them at once.
"""

from __future__ import annotations

from typing import Any, Final

from pact.model import NS_PER_S

HELD_NS: Final = NS_PER_S
HELD_BYTES: Final = 16 << 10  # a quarter of the smallest credit


class Acks:
    """The newest ``[node, incarnation, seq, rewind, ...]`` of each journal that its node has not been sent yet. The
    fields after these four are carried along: the seal, the hash of the record, and whose they are.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[list[Any], int]] = {}
        self._due_ns = 0

    def newest(self, cursor: list[Any]) -> list[Any]:
        """The acknowledgement to send now: this one, or a held one that has overtaken it."""
        node, incarnation, seq, rewind = cursor[:4]
        held, _ = self._held.pop((node, incarnation), (cursor, 0))
        return held if held[2] > seq and not rewind else cursor

    def hold(self, cursor: list[Any], size: int, t_ns: int) -> list[Any] | None:
        """Hold an acknowledgement. Returns one that must be sent now all the same, if any. ``size``: the bytes that it
        acknowledges."""
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
        """Acknowledgements that have waited long enough, and those that came since."""
        if not self._held or t_ns < self._due_ns:
            return []
        held, self._held = self._held, {}
        return [cursor for cursor, _ in held.values()]

    def next_wake_ns(self) -> int | None:
        return self._due_ns if self._held else None
