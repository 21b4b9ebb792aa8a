"""A parent in the tree, as configuration files name it."""

from __future__ import annotations

from typing import NamedTuple


class Parent(NamedTuple):
    """A parent's address, its public key (Z85), and the rack that it serves, if known."""

    url: str
    key: str
    rack: str = ""
