"""What shells show in their prompt: a file for everybody, and one for each session that only its person may read.

One line, ``STATE MAGNITUDE CHANGES EPOCH``: the node's state in a word; the magnitude; the open changes (their names
in a session's file, only how many in the public one, ``-`` for none); and the earliest end as seconds since 1970
(``0``: no clock runs). Files are replaced when something has changed, never by a timer: the shell counts the seconds
down itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pact.core.node import change as life
from pact.core.node.windows import magnitude
from pact.host.notify import log
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.agent.sessionfiles import Known
    from pact.core.node.change import Change
    from pact.core.node.step import Node

NAMED_MAX: Final = 8
FAILED_MAX: Final = 8
PUBLIC_MODE: Final = 0o444
OWN_MODE: Final = 0o400


class Prompt:
    """The files, next to the control socket: ``state``, and ``prompt/ID``."""

    def __init__(self, directory: str) -> None:
        self._public = os.path.join(directory, "state")
        self._own = os.path.join(directory, "prompt")
        self._said: dict[str, str] = {}
        self._failed: set[str] = set()

    def update(self, node: Node, state: str, sessions: Iterable[Known], now_ns: int, wall_ns: int) -> None:
        """Write what has changed. Never raises."""
        changes = [c for c in node.state.changes.values() if c.members]
        head = f"{state} {magnitude(sum(node.state.sums().values())):.4g}"
        ends = _end(node, changes, now_ns, wall_ns)
        self._write(self._public, f"{head} {len(changes) or '-'} {ends}", PUBLIC_MODE, 0, 0)
        wanted = {self._public}
        for known in sessions:
            mine = [c for c in changes if c.owner.uid == known.owner.uid and not c.owner.key.startswith("unit:")]
            names = ",".join(c.id for c in mine[:NAMED_MAX]) + (",..." if len(mine) > NAMED_MAX else "")
            path = f"{self._own}/{known.id}"
            wanted.add(path)
            text = f"{head} {names or '-'} {_end(node, mine, now_ns, wall_ns)}"
            self._write(path, text, OWN_MODE, known.state["uid"], known.state["gid"])
        for path in self._said.keys() - wanted:
            self._remove(path)

    def _write(self, path: str, text: str, mode: int, uid: int, gid: int) -> None:
        if self._said.get(path) == text:
            return
        fresh = f"{path}.new"
        try:
            try:
                os.unlink(fresh)  # of a run that was killed
            except FileNotFoundError:
                pass
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, text.encode() + b"\n")
                if os.geteuid() == 0:
                    os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)
            os.replace(fresh, path)
            self._said[path] = text
        except OSError as exc:
            why = f"{path} could not be written: {os.strerror(exc.errno or 0)}: prompts show nothing new"
            if why not in self._failed and len(self._failed) < FAILED_MAX:
                self._failed.add(why)
                log(why, 4)

    def _remove(self, path: str) -> None:
        self._said.pop(path, None)
        try:
            os.unlink(path)
        except OSError:
            pass

    def close(self) -> None:
        """Nobody keeps them up to date any more: a prompt shows nothing rather than something old."""
        for path in list(self._said):
            self._remove(path)


def _end(node: Node, changes: list[Change], now_ns: int, wall_ns: int) -> int:
    """The earliest end as epoch seconds. All windows share one length: the one that opened first ends first."""
    open_ = [c for c in changes if c.state == life.OPEN and not c.intents and not c.group]
    if not open_:
        return 0
    end_ns = node.state.deadline_ns(min(open_, key=lambda c: c.opening_ns))
    return 0 if end_ns is None else (wall_ns + end_ns - now_ns) // NS_PER_S
