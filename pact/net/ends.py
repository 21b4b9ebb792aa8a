"""The two ends of a stream through the tree (``pact.core.tree.streams``): what they say is encrypted, sealed and
numbered with keys that they alone have and that serve once. What carries it can delay and drop, which ends the stream;
it can neither read it, nor type or show anything, nor say anything twice.  # T15
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

from pact.core.tree.wire import Head, NewHead
from pact.errors import RemoteProtocolError

_NONCE: Final = struct.Struct("<4xQ")
_SAID: Final = struct.Struct("<QQ?")
TAG_BYTES: Final = 16
NOT_THEIRS: Final = "what came on the way is not from the other end"


class End:
    """One end. ``secret``: what both ends share, b"" where nothing is sealed. ``node``: this is the node's end."""

    def __init__(self, secret: bytes, *, node: bool) -> None:
        self._sealed = bool(secret)
        if secret:
            from nacl.bindings import (
                crypto_aead_chacha20poly1305_ietf_decrypt,
                crypto_aead_chacha20poly1305_ietf_encrypt,
            )

            self._encrypt = crypto_aead_chacha20poly1305_ietf_encrypt
            self._decrypt = crypto_aead_chacha20poly1305_ietf_decrypt
            keys = [blake2b(secret, digest_size=32, person=who).digest() for who in (b"node", b"person")]
            self._mine, self._theirs = keys if node else keys[::-1]
        self.said = self.heard = 0

    def say(self, body: bytes, size: int = 0, give: int = 0, *, end: bool = False) -> tuple[NewHead, bytes]:
        """The fields of the next message but for its address, and its body. ``size``: bytes of data in the body."""
        n, self.said = self.said, self.said + 1
        if self._sealed:
            body = self._encrypt(body, _SAID.pack(give, size, end), _NONCE.pack(n), self._mine)
        return {"n": n, "give": give, "size": size, "end": end}, body

    def hear(self, head: Head, body: bytes | memoryview) -> bytes:
        """What the other end has said. Raises RemoteProtocolError for what it has not said, or not now."""
        if head["n"] != self.heard:
            raise RemoteProtocolError("something was lost on the way")
        self.heard += 1
        if not self._sealed:
            return bytes(body)
        if len(body) < TAG_BYTES:
            raise RemoteProtocolError(NOT_THEIRS)
        from nacl.exceptions import CryptoError

        said = _SAID.pack(head["give"], head["size"], head["end"])
        try:
            opened: bytes = self._decrypt(bytes(body), said, _NONCE.pack(head["n"]), self._theirs)
        except (CryptoError, ValueError, TypeError):
            raise RemoteProtocolError(NOT_THEIRS) from None
        return opened

    def cut(self, head: Head, body: bytes | memoryview) -> bool:
        """Whether this is the end that a relay makes of a stream: it has no seal, and says only that it ends."""
        return head["end"] and (not len(body) if self._sealed else bool(head["why"]))
