"""A command of a virtual node that writes for ever, as far as its reader lets it: what a real agent says on its stream
(``pact.agent.executing``), without a process behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import zmq

from pact.core.tree.lanes import BULK_CREDIT, PIECE_MAX, WEIGHT_MIN, Lane
from pact.core.tree.wire import Head, Message
from pact.net.ends import End
from pact.net.keys import Key
from pact.net.shared import Shared
from pact.session import frames

LINE: Final = b"y\n"


class Output:
    """``public``: this side's key for the stream, which goes in the answer. ``send`` is called with each message."""

    def __init__(self, node: str, call: str, theirs: str, send: Callable[[Head, bytes], None]) -> None:
        self.public, secret = (key.decode() for key in zmq.curve_keypair())
        self._end = End(Shared(Key(self.public, secret)).key(theirs), node=True)
        self._head: Head = {"call": call, "node": node, "bulk": True}
        self._send, self._lane = send, Lane()
        self._room = BULK_CREDIT

    def begin(self) -> None:
        self._say(b"", 0)
        self._room -= WEIGHT_MIN
        self._go_on()

    def heard(self, message: Message) -> bool:
        """Returns False once it has ended."""
        if message.kind == "took":
            self._lane.took(message.head["bytes"])
        elif message.head["end"]:
            return False
        else:
            self._end.hear(message.head, message.body)
            self._room += message.head["give"]
        self._go_on()
        return True

    def _go_on(self) -> None:
        while self._room >= WEIGHT_MIN:
            data = LINE * (min(self._room, PIECE_MAX) // len(LINE))
            self._room -= len(data)
            self._say(frames.frame(b"O", data), len(data))
        while (said := self._lane.next()) is not None:
            self._send(*said)

    def _say(self, body: bytes, size: int) -> None:
        head, sealed = self._end.say(body, size)
        self._lane.put({**self._head, **head}, sealed)
