"""Seals at the root: whose keys are authorised, and what is shared with them. See ``pact.core.seals``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from pact.agent.notify import log
from pact.cluster.auth import Authorized
from pact.cluster.shared import Shared
from pact.core.seals import Keys, RootSeals
from pact.errors import ConfigError

if TYPE_CHECKING:
    from pact.cluster.aggregator import Aggregator

PERSONS: Final = ("viewer", "ops", "admin")


class AuthorizedKeys(Keys):
    """Of the authorised keys as they are at this moment."""

    def __init__(self, aggregator: Aggregator) -> None:
        """Raises ConfigError where the library for seals is missing."""
        self._aggregator = aggregator
        self._shared = Shared(aggregator.key)
        self._of: tuple[Authorized | None, Mapping[str, list[str]]] = (None, {})

    def of(self, name: str) -> Iterable[str]:
        authorized = self._aggregator.authorized
        if self._of[0] is not authorized:
            by_name: dict[str, list[str]] = {}
            for peer in authorized.peers.values():
                if peer.role == "node":
                    by_name.setdefault(peer.name, []).append(peer.key)
            self._of = (authorized, by_name)
        return self._of[1].get(name, ())

    def person(self, public: str) -> tuple[str, str] | None:
        peer = self._aggregator.authorized.peer(public)
        return (peer.name, peer.role) if peer is not None and peer.role in PERSONS else None

    def shared(self, public: str) -> bytes:
        return self._shared.key(public)


def of_root(aggregator: Aggregator) -> RootSeals | None:
    """None where nobody can seal: the library is missing, and the configuration does not insist. Raises ConfigError."""
    config = aggregator.config
    try:
        return RootSeals(aggregator.key.public, AuthorizedKeys(aggregator), required=config.sealed)
    except ConfigError as exc:
        if config.sealed:
            raise
        log(f"nothing is sealed: {exc.message}", 4)
        return None
