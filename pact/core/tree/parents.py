"""A parent in the tree, as configuration files name it, and whom a child prefers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Parent(NamedTuple):
    """A parent's address, its public key (Z85), and the rack that it serves, if known."""

    url: str
    key: str
    rack: str = ""


def preference(name: str, rack: str, parents: Sequence[Parent]) -> list[Parent]:
    """Rendezvous hashing, with parents of the same rack first: every child has its own order, and when a parent is
    gone, only its own children move.
    """

    def rank(parent: Parent) -> tuple[bool, bytes]:
        other = not (rack and parent.rack == rack)
        return other, hashlib.sha256(f"{name}\0{parent.url}".encode()).digest()

    return sorted(parents, key=rank)
