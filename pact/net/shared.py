"""The keys for seals: the X25519 secret that two CURVE keys share. Loaded only if something is sealed.

PyNaCl computes it (libsodium's ``crypto_box_beforenm``), 30 to 50 us for each pair. ``pact.core.tree.seals`` uses it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from zmq.utils import z85

from pact.errors import ConfigError
from pact.net.keys import Key

USE: Final = b"pact seals 1"


class Shared:
    """The keys that one key pair shares with others, each computed once."""

    def __init__(self, own: Key) -> None:
        """Raises ConfigError if the library is missing."""
        try:
            from nacl.bindings import crypto_box_beforenm
        except ImportError as exc:
            raise ConfigError(f"seals need PyNaCl: {exc}", "pip install PyNaCl, or the system's python3-nacl") from None
        self._compute = crypto_box_beforenm
        self._secret = z85.decode(own.secret)
        self._known: dict[str, bytes] = {}

    def key(self, public: str) -> bytes:
        """32 bytes; b"" for a public key (Z85) that cannot be used."""
        known = self._known.get(public)
        if known is None:
            known = self._known[public] = self._computed(public)
        return known

    def forget(self, publics: list[str]) -> None:
        for public in publics:
            self._known.pop(public, None)

    def _computed(self, public: str) -> bytes:
        from nacl.exceptions import CryptoError

        try:
            shared = self._compute(z85.decode(public), self._secret)
        except (CryptoError, ValueError):  # not a usable point of the curve
            return b""
        return blake2b(shared, digest_size=32, person=USE).digest()
