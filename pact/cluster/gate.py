"""Children that send much faster than they are read are cut off, and their keys have to wait for a while.  # T10"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from pact.core.tree.directory import Peer
from pact.host.notify import log
from pact.limits import FRAME_MAX
from pact.net.floods import Floods, PutOff, travelled

#: More than any child may have under way: the windows of an aggregator's streams, and a frame.
CHILD_BYTES_MAX: Final = (128 << 20) + 2 * FRAME_MAX


class Gate:
    """See the module."""

    def __init__(self) -> None:
        self._floods, self._put_off = Floods(CHILD_BYTES_MAX), PutOff()

    def waits(self, key: str) -> bool:
        """Whether a key may not connect for now."""
        return key in self._put_off

    def put_off(self, key: str) -> None:
        """Do not let a key connect for a while: it sends more than can be read. Any thread may call it."""
        self._put_off.add(key, time.monotonic())

    def read(
        self, messages: Collection[tuple[bytes, str, int, Any]], everything: bool, peers: Mapping[str, Peer]
    ) -> list[tuple[int, str]]:
        """What was read just now (routing id, key, descriptor, frame), and whether that was everything. Returns the
        descriptors and keys of connections to be cut off.
        """
        if everything:
            self._floods.caught_up()
            return []
        taken = dict[int, int]()
        for _, _, fd, frame in messages:
            if frame is not None:
                taken[fd] = taken.get(fd, 0) + travelled(len(frame))
        flooding = self._floods.behind({fd: key for _, key, fd, _ in messages}, time.monotonic(), taken)
        for key in flooding.values():
            self.put_off(key)
            name = peers[key].name if key in peers else "a child"
            log(f"{name} sends faster than it can be read: cut off for a minute", 4)
        return list(flooding.items())
