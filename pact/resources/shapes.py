"""Arguments and results of kinds: values without knowledge of their own."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pact.model import Declared, Observation, Writer

#: How many bytes of contents are in memory at once, besides one content on its way to the store.
PIECE_BYTES: Final = 2 << 20
STORE_FULL: Final = "the content store is full (raise [state] store_limit)"


@dataclass(slots=True)
class Keep:
    """Contents to be kept that an observation meets: at most ``limit`` bytes each and ``room`` bytes together.

    ``blobs`` maps SHA-256 (hex) to content, while it is in memory; ``known`` has the digests of all kept contents.
    ``unkept`` says why a resource's content is not kept; ``full`` names resources for whose content the store has no
    room. Contents that are already ``stored`` need no room. ``looked`` has by name the last observation, and whether it
    is secret: counting it needs no second read. ``spill`` takes contents away whenever there are ``PIECE_BYTES`` of
    them. Without ``hold`` contents are only counted, and do not stay in memory. ``owed``: bytes that were counted and
    are not in the ``store`` (the path of its file) yet.
    """

    limit: int
    room: int = 1 << 62
    hold: bool = True
    spill: Callable[[dict[str, bytes]], None] | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    unkept: dict[str, str] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    stored: Callable[[str], bool] = field(default=lambda digest: False)
    looked: dict[str, tuple[Observation, bool]] = field(default_factory=dict)
    held: int = 0
    owed: int = 0
    store: str = ""

    def take(self, resource: str, digest: str, size: int, content: bytes | None) -> None:
        """A ``content`` of ``size`` bytes was met; ``None`` if it was not read into memory."""
        if digest in self.known:
            return
        if size > self.limit or (self.hold and content is None):
            self.unkept[resource] = f"{size} bytes are more than the {self.limit} that are kept"
        elif (there := self.stored(digest)) is False and size > self.room:
            self.unkept[resource] = STORE_FULL
            self.full.add(resource)
        else:
            self.room -= 0 if there else size
            self.owed += 0 if there else size
            self.known.add(digest)
            if self.hold and content is not None:
                self.blobs[digest] = content
                self.held += size
        if self.spill is not None and self.held >= PIECE_BYTES:
            self.empty()

    def empty(self) -> None:
        """Give the contents in memory to ``spill``."""
        if self.spill is not None and self.blobs:
            blobs, self.blobs, self.held = self.blobs, {}, 0
            self.spill(blobs)
            self.owed = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a declared-state file after reading: its value, its contents, and the files from which they were
    read.
    """

    declared: Declared
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    sources: Sequence[str] = ()


@dataclass(slots=True)
class Found:
    """The result of ``discover``: names that can be adopted, and how many were skipped, by reason. ``exact``: the
    pattern is a name, even if it looks like a pattern, because a thing with exactly that name exists.
    """

    names: Iterator[str]
    passed: dict[str, int]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """``seen``: an observation without contents; ``inode``: device and inode of a file; ``open``: everybody could reach
    it by its name.
    """

    seen: Observation
    inode: tuple[int, int] | None
    open: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """What ``preflight`` found out about one step: why it must not run, what is kept of the present state, and what
    else a person should know beforehand. ``inside``: by id, what is kept of other resources that go with it.
    """

    refusal: str = ""
    save: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    inside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Among:
    """The plan's knowledge beside one step. ``ahead``: new contents that were written before their turn
    (``support.ahead.Ahead``). ``saves``: by id, what the plan's record names as kept, if given. ``closed``: directories
    that nobody but root may enter, if they must be made.
    """

    ahead: object = None
    saves: Mapping[str, Mapping[str, Any]] | None = None
    closed: Container[bytes] = frozenset()


Blobs = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class Drained:
    """What a source has seen: names, each with the process that did it (0: unknown; a ``Writer`` if the source looked
    at it itself, because it may have ended since). ``lost``: why it has missed some, so that every resource of the
    kind must be observed. ``ports``: the numbers are ports of routing sockets (netlink), which are mostly the pids of
    those who opened them, but need not be. ``news``: something of the kind came or went, declared or not: there may be
    something new below a tracked pattern; ``by``: the process that brought it, as above.
    """

    changed: Sequence[tuple[str, int | Writer]] = ()
    lost: str = ""
    ports: bool = False
    news: bool = False
    by: int | Writer = 0


class Source(Protocol):
    """A source of events for one kind, besides paths. Only the loop uses it, and never for long: waiting belongs behind
    ``fileno``. After an exception the kind is polled, and the exception is logged.
    """

    def fileno(self) -> int:
        """Readable when there is something to drain."""

    def drain(self) -> Drained:
        """Take what the source has seen, without blocking."""

    def want(self, name: str) -> None:
        """This resource is declared from now on. Calling it twice has the same effect as once."""

    def unwant(self, name: str) -> None:
        """This resource is no longer declared."""

    def health(self) -> str:
        """``ok``, or why it does not work."""

    def close(self) -> None: ...
