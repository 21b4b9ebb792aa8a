"""The states of nodes as a root knows them, for the live page and for metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pact.cluster.nodesets import Folded
from pact.core.node.state import STATES

UNKNOWN: Final = "unknown"


class States:
    """The state that each node reported, and whether it has untracked things. Every connected node is in one state: a
    node that has not answered yet, or not in time, in ``unknown``.
    """

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._new: set[str] = set()
        self._asked: set[str] = set()
        self._folded: dict[str, Folded] = {}
        self._folded_for: frozenset[str] | None = None
        self._folded_new = Folded([])
        self._said: dict[str, str] | None = None

    @property
    def said(self) -> dict[str, str]:
        """What each node answered, as a copy that later answers do not change."""
        if self._said is None:
            self._said = dict(self._of)
        return self._said

    def unasked(self, connected: Iterable[str]) -> list[str]:
        return [n for n in connected if n not in self._of and n not in self._asked]

    def asked(self, names: Iterable[str]) -> None:
        self._asked.update(names)

    def heard(self, names: Iterable[str], state: str, untracked: bool = False) -> None:
        self._asked.difference_update(names)
        (self._new.update if untracked else self._new.difference_update)(names)
        self._of.update(dict.fromkeys(names, state if state in STATES else UNKNOWN))  # a node may send any word
        self._folded_for = self._said = None

    def of(self, connected: Iterable[str]) -> dict[str, Folded]:
        """The names by state; disconnected nodes are forgotten. Names are folded only if they are read."""
        names = frozenset(connected)
        if names != self._folded_for:
            self._of, self._said = {n: s for n, s in self._of.items() if n in names}, None
            self._asked &= names
            self._new &= names
            found: dict[str, list[str]] = {}
            for name in names:
                found.setdefault(self._of.get(name, UNKNOWN), []).append(name)
            self._folded = {state: Folded(of_state) for state, of_state in found.items()}
            self._folded_new = Folded(list(self._new))
            self._folded_for = names
        return self._folded

    def untracked(self, connected: Iterable[str]) -> Folded:
        """Nodes with an undeclared thing below a tracked pattern."""
        self.of(connected)
        return self._folded_new
