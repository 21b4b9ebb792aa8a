"""The contents of the records about people on a node: their sessions, and what they have run on many nodes at once.

``payloads`` has them among all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from pact.core.payload import Payload, always
from pact.model import Attrs, Owner
from pact.values import dataclass


@dataclass(frozen=True, slots=True)
class SessionOpened(Payload):
    """``owner`` is who the changes of this session belong to. ``key``: how the person was known: ``socket``, or the
    name of a key. ``from_``: where the person sits. ``command``: nothing for a login shell."""

    session: str
    owner: Owner
    account: str
    key: str = always("")
    from_: str = always("")
    terminal: str = always("")
    command: str = ""
    uid: int | None = always(None)
    cgroup: str = always("")


@dataclass(frozen=True, slots=True)
class SessionClosed(Payload):
    """``exit``: of the shell or command, ``None`` if a signal ended it or nobody knows. ``why``: what ended it from
    outside. ``duration_ns``, ``in_bytes`` and ``out_bytes`` are ``None`` if its process was killed. ``commands``: what
    it started, each with its ``command`` and ``uid``; ``beyond``: how many more. ``transcript``: what is kept of its
    output: ``sha256``, ``size``, and what was ``dropped``."""

    session: str
    owner: Owner
    account: str
    exit: int | None
    signal: str = ""
    why: str = ""
    uid: int | None = always(None)
    duration_ns: int | None = always(None)
    in_bytes: int | None = always(None)
    out_bytes: int | None = always(None)
    commands: Sequence[Attrs] = ()
    beyond: int = 0
    transcript: Attrs | None = None


@dataclass(frozen=True, slots=True)
class ExecBegun(Payload):
    """A command that a person has run on many nodes at once is about to begin. Its call, as in all that was done for a
    call, stands beside this."""

    command: str
    owner: Owner
    account: str
    key: str = always("")
    uid: int | None = always(None)


@dataclass(frozen=True, slots=True)
class Executed(Payload):
    """A command that a person had run on many nodes at once has ended; the fields are those of ``SessionClosed``.
    ``truncated``: its output was longer than asked for. ``begun``: the number of its ``exec_begun``. ``left``: how many
    processes it has left behind."""

    command: str
    owner: Owner
    account: str
    exit: int | None
    key: str = always("")
    signal: str = ""
    why: str = ""
    uid: int | None = always(None)
    duration_ns: int | None = always(None)
    in_bytes: int | None = always(None)
    out_bytes: int | None = always(None)
    truncated: bool = False
    begun: int | None = None
    left: int = 0
