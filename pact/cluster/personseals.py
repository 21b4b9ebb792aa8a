"""A person's side of the seals between person and root; the root's is ``pact.core.root.persons``.  # T14"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pact.core.root.persons import CHALLENGE, LOOK
from pact.core.tree import seals
from pact.core.tree.wire import Message
from pact.errors import RemoteProtocolError
from pact.net.keys import Key


class PersonSeals:
    """Seals for one root, under one challenge."""

    def __init__(self, public: str, keys: dict[str, bytes], challenge: str) -> None:
        self._public = public
        self._keys = keys  # key id of a root -> the key shared with it
        self._challenge = challenge
        self._asked = ""  # the seal of the request whose answer is awaited
        self._n = 0

    @classmethod
    def ask(cls, key: Key, roots: Sequence[str]) -> PersonSeals:
        """For the question which root leads, whose answer any root can seal. Raises ConfigError."""
        from pact.net.shared import Shared

        shared = Shared(key)
        keys = {seals.key_id(public): k for public in roots if (k := shared.key(public))}
        return cls(key.public, keys, secrets.token_hex(16))

    def head(self, id_: int) -> dict[str, Any]:
        self._n = 0
        return {"id": id_, "op": CHALLENGE, "person": self._public, "challenge": self._challenge}

    def challenged(self, result: dict[str, Any]) -> PersonSeals | None:
        """The seals with the challenge that the root has given."""
        root, challenge = result.get("root"), result.get("challenge")
        if not isinstance(root, str) or not isinstance(challenge, str) or root not in self._keys:
            return None
        return PersonSeals(self._public, {root: self._keys[root]}, challenge)

    def request(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        """The head with its seal."""
        self._n = 0
        head = {**head, "person": self._public, "challenge": self._challenge}
        (key,) = self._keys.values()
        self._asked = seals.text(seals.seal(key, seals.of_request(head, body)))
        return {**head, "seal": self._asked}

    def checked(self, message: Message) -> Message:
        """Check that the message is the root's, and that none before it is missing. A refusal without a seal comes from
        a member on the way, and says nothing about what was done. Raises RemoteProtocolError.
        """
        head = message.head
        if message.kind == "result" and head["exit"] and not head["seal"]:
            said = {**head, "hint": head["hint"] or LOOK, "failed": {}}
            return message._replace(head=said, body=b"")
        what = seals.of_reply(message.kind, self._asked, self._challenge, head, message.body)
        if not any(seals.fits(key, what, head["seal"]) for key in self._keys.values()):
            raise RemoteProtocolError("what came is not the root's: its seal does not fit")
        if head["n"] != self._n:
            raise RemoteProtocolError("a part of the answer was dropped on the way")
        self._n += 1
        return message
