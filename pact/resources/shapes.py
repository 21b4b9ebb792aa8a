"""What kinds take and give: values without any knowledge of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pact.model import Declared, Observation

#: So much of contents is in memory at once, and one content more, on its way to the store.
PIECE_BYTES: Final = 2 << 20
STORE_FULL: Final = "the content store is full (raise [state] store_limit)"


@dataclass(slots=True)
class Keep:
    """Contents met while observing that are to be kept: at most ``limit`` bytes each and ``room`` bytes together.

    ``blobs`` maps SHA-256 (hex) to content, as long as it is in memory; ``known`` has the digests of all that is kept.
    ``unkept`` says why a resource's content is not; ``full`` names those for which the store has no room. What is
    ``stored`` already takes none. ``looked`` has by name what was just seen, and whether that is a secret: it need not
    be read again for being reckoned with. ``spill`` takes contents away whenever there are ``PIECE_BYTES`` of them.
    Without ``hold`` contents are only reckoned with, and nothing of them stays in memory.
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

    def take(self, resource: str, digest: str, size: int, content: bytes | None) -> None:
        """``content`` of ``size`` bytes was met; ``None`` where it was not read into memory."""
        if digest in self.known:
            return
        if size > self.limit or (self.hold and content is None):
            self.unkept[resource] = f"{size} bytes are more than the {self.limit} that are kept"
        elif (there := self.stored(digest)) is False and size > self.room:
            self.unkept[resource] = STORE_FULL
            self.full.add(resource)
        else:
            self.room -= 0 if there else size
            self.known.add(digest)
            if self.hold and content is not None:
                self.blobs[digest] = content
                self.held += size
        if self.spill is not None and self.held >= PIECE_BYTES:
            self.empty()

    def empty(self) -> None:
        """Give what is in memory to ``spill``."""
        if self.spill is not None and self.blobs:
            blobs, self.blobs, self.held = self.blobs, {}, 0
            self.spill(blobs)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a declared-state file, read: its value, the contents that came with it, and the files that these
    were read from.
    """

    declared: Declared
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    sources: Sequence[str] = ()


@dataclass(slots=True)
class Found:
    """What ``discover`` met: names that can be adopted, and how many were passed over, by reason.

    ``exact``: the pattern is a name, also where it looks like a pattern: what exists under that very name is meant.
    """

    names: Iterator[str]
    passed: dict[str, int]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """``seen``: an observation without contents; ``inode``: device and inode of what was seen, if it is a file;
    ``open``: anybody could get at it by its name.
    """

    seen: Observation
    inode: tuple[int, int] | None
    open: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """What ``preflight`` found out about one step: why it must not run, what is kept of the present state, and what
    else a person should know beforehand. ``inside``: by id, what is kept of others that go with it.
    """

    refusal: str = ""
    save: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    inside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Among:
    """What a plan knows beside one step. ``ahead``: new contents that were written before their turn
    (``support.ahead.Ahead``). ``saves``: by id, what the plan's record names as kept, where that is given.
    """

    ahead: object = None
    saves: Mapping[str, Mapping[str, Any]] | None = None


Blobs = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class Drained:
    """What a source has seen: names, each with the process that did it (0: nobody knows). ``lost``: why it has missed
    some, and every resource of the kind has to be looked at.
    """

    changed: Sequence[tuple[str, int]] = ()
    lost: str = ""


class Source(Protocol):
    """Where events of one kind come from, beside paths. Used by the loop alone, and never for long: what waits belongs
    behind ``fileno``. An exception makes the kind be polled from then on, and is said.
    """

    def fileno(self) -> int:
        """Readable when there is something to drain."""

    def drain(self) -> Drained:
        """Take what was seen, without blocking."""

    def want(self, name: str) -> None:
        """This one is declared from now on. Twice is once."""

    def unwant(self, name: str) -> None:
        """It is declared no more."""

    def health(self) -> str:
        """``ok``, or why it does not see."""

    def close(self) -> None: ...
