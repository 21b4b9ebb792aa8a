"""Seals at the root: the authorised keys, and the keys shared with their owners. See ``pact.core.tree.seals``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pact.cluster.auth import Authorized
from pact.core.tree.seals import Keys, RootSeals
from pact.errors import ConfigError
from pact.host.notify import log
from pact.net.keys import Key
from pact.net.shared import Shared

PERSONS: Final = ("viewer", "ops", "admin")


class AuthorizedKeys(Keys):
    """The keys that are authorised at this moment."""

    def __init__(self, own: Key, authorized: Callable[[], Authorized]) -> None:
        """Raises ConfigError if the library for seals is missing."""
        self._authorized = authorized
        self._shared = Shared(own)
        self._of: tuple[Authorized | None, Mapping[str, list[str]]] = (None, {})

    def of(self, name: str) -> Iterable[str]:
        authorized = self._authorized()
        if self._of[0] is not authorized:
            by_name: dict[str, list[str]] = {}
            for peer in authorized.peers.values():
                if peer.role == "node":
                    by_name.setdefault(peer.name, []).append(peer.key)
            self._of = (authorized, by_name)
        return self._of[1].get(name, ())

    def person(self, public: str) -> tuple[str, str] | None:
        peer = self._authorized().peer(public)
        return (peer.name, peer.role) if peer is not None and peer.role in PERSONS else None

    def shared(self, public: str) -> bytes:
        return self._shared.key(public)


def of_root(own: Key, authorized: Callable[[], Authorized], *, required: bool) -> RootSeals | None:
    """None if sealing is impossible: the library is missing, and the configuration does not require it. Raises
    ConfigError."""
    try:
        return RootSeals(own.public, AuthorizedKeys(own, authorized), required=required)
    except ConfigError as exc:
        if required:
            raise
        log(f"nothing is sealed: {exc.message}", 4)
        return None
