"""One thread that owns the root's log, so that the root's loop never waits for a disk or for etcd.

It campaigns, loads, appends in order, saves snapshots and trims. It puts its messages into a queue and signals ``fd``.
It never skips a chunk: a failed write is repeated with the same bytes until it is durable or another root leads.  # Q5
Whatever stands in the store, it goes on: this root does not lead then, and says why.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pact.errors import Fenced, JournalError, PactError
from pact.journal.rootlog import LogStore

PENDING_CHUNKS_MAX: Final = 64
PENDING_BYTES_MAX: Final = 64 << 20
STANDBY_S: Final = 1.0
LEASE_LOOK_S: Final = 0.25
RETRY_S: Final = (0.1, 0.2, 0.5, 1.0)
LOAD_AGAIN_S: Final = 5.0
CLOSE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Elected:
    """This root leads: the newest snapshot and the chunks after it. Everything earlier is void. ``lost``: what the
    store knows to be missing at its end; ``doubted``: what the store did not believe at the election.
    """

    fence: int
    snapshot: bytes | None
    chunks: tuple[bytes, ...]
    lost: str = ""
    doubted: str = ""


@dataclass(frozen=True, slots=True)
class Deposed:
    """This root no longer leads, and waiting chunks are dropped; the next load shows whether they were written."""

    why: str


@dataclass(frozen=True, slots=True)
class Durable:
    """The chunk that begins at ``first`` is durable."""

    first: int
    count: int
    took_ns: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed and will be tried again. ``what``: open, campaign, load, append, snapshot or trim."""

    why: str
    what: str = "append"


@dataclass(frozen=True, slots=True)
class Works:
    """A call that had failed works again: open or campaign. For an append, ``Durable`` shows it."""

    what: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot is visible, or chunks are trimmed; ``oldest`` is the oldest event that is still stored."""

    gseq: int
    oldest: int


Posted = Elected | Deposed | Durable | Failed | Works | Saved


@dataclass(frozen=True, slots=True)
class _Append:
    fence: int
    first: int
    count: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class _Keep:
    """Save a snapshot, if there is one, then trim."""

    fence: int
    gseq: int
    snapshot: bytes | None
    before: int


class Committer:
    """The loop calls its methods, which return at once; ``read`` and ``oldest`` wait, and any thread may call them."""

    def __init__(self, open_: Callable[[], LogStore], name: str, *, standby_s: float = STANDBY_S) -> None:
        """``open_`` makes the store; the thread calls it, and again after a JournalError."""
        self._open = open_
        self._name = name
        self._standby_s = standby_s
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake = threading.Condition()
        self._appends: deque[_Append] = deque()
        self._keep: _Keep | None = None
        self._bytes = 0
        self._closing = self._again = False
        self._posted: deque[Posted] = deque()
        self._posted_lock = threading.Lock()
        self._store: LogStore | None = None
        self._thread = threading.Thread(target=self._run, name="pact-commit", daemon=True)

    # -- for the loop -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def append(self, fence: int, first: int, count: int, chunk: bytes) -> bool:
        """Write the chunk after everything given before. Returns False if too much is waiting: give it again after the
        next Durable."""
        with self._wake:
            if self._appends and (
                len(self._appends) >= PENDING_CHUNKS_MAX or self._bytes + len(chunk) > PENDING_BYTES_MAX
            ):
                return False
            self._appends.append(_Append(fence, first, count, chunk))
            self._bytes += len(chunk)
            self._wake.notify()
        return True

    def save_snapshot(self, fence: int, gseq: int, snapshot: bytes, trim_before: int = 0) -> None:
        """Save the state after ``gseq``, then delete chunks before ``trim_before``. A newer call replaces a waiting
        one."""
        with self._wake:
            self._keep = _Keep(fence, gseq, snapshot, trim_before)
            self._wake.notify()

    def load_again(self) -> None:
        """No root can lead with what was loaded: load it anew after a while. Somebody may have mended it."""
        with self._wake:
            self._again = True
            self._wake.notify()

    def trim(self, fence: int, before: int) -> None:
        with self._wake:
            if self._keep is None or self._keep.snapshot is None:
                self._keep = _Keep(fence, -1, None, before)
            else:
                keep = self._keep
                self._keep = _Keep(keep.fence, keep.gseq, keep.snapshot, max(before, keep.before))
            self._wake.notify()

    def poll(self) -> list[Posted]:
        """What has happened since the last call, in order. Clears ``fd``."""
        with self._posted_lock:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass
            out = list(self._posted)
            self._posted.clear()
        return out

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Give up leadership and end the thread. Waiting chunks are not written. ``fd`` is closed too."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            os.close(self.fd)

    # -- for any thread ---------------------------------------------------------------------------------------------

    def read(self, gseq: int) -> Iterator[bytes]:
        """Chunks from the one that holds ``gseq`` on. Raises JournalError. Waits for disk or etcd, not for commits."""
        return self._opened().read(gseq)

    def oldest(self) -> int:
        return self._opened().oldest()

    def _opened(self) -> LogStore:
        store = self._store
        if store is None:
            raise JournalError("the root's log is not open")
        return store

    # -- the thread -------------------------------------------------------------------------------------------------

    def _post(self, item: Posted) -> None:
        with self._posted_lock:
            if isinstance(item, Failed) and item in self._posted:
                return  # posted once until ``poll`` takes it
            self._posted.append(item)
            os.eventfd_write(self.fd, 1)

    def _sleep(self, seconds: float) -> bool:
        """Wait; returns False if the thread must end."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing, seconds)
            return not self._closing

    def _run(self) -> None:
        failed = False
        try:
            while not self._closing:
                try:
                    self._store = self._open()
                    if failed:
                        self._post(Works("open"))
                    break
                except PactError as exc:
                    failed = True
                    self._post(Failed(str(exc), "open"))
                    self._sleep(self._standby_s)
            if self._store is not None:
                self._campaign(self._store)
        except BaseException as exc:
            self._post(Deposed(f"the thread that writes the root's log has ended: {exc!r}"))
            raise
        finally:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    def _campaign(self, store: LogStore) -> None:
        failed = False
        while not self._closing:
            try:
                fence = store.campaign(self._name)
                if failed:  # a standby posts nothing else that would show it
                    self._post(Works("campaign"))
                failed = False
            except Exception as exc:
                self._post(Failed(_told(exc), "campaign"))
                fence, failed = None, True
            if fence is None:
                self._sleep(self._standby_s)
                continue
            try:
                why = self._lead(store, fence)
            except Exception as exc:  # the next term begins with what the store has
                why = _told(exc)
                self._sleep(self._standby_s)
            if why:
                self._drop()
                self._post(Deposed(why))

    def _drop(self) -> None:
        with self._wake:
            self._appends.clear()
            self._bytes, self._keep = 0, None

    def _lead(self, store: LogStore, fence: int) -> str:
        """Lead until that is over. Returns why, or "" if that was posted already."""
        if not self._load(store, fence):
            return ""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._appends or self._keep or self._again, LEASE_LOOK_S)
                if self._closing:
                    return "closing"
                again, self._again = self._again, False
                item = self._appends[0] if self._appends else None
                keep, self._keep = self._keep, None
            if again and not (self._sleep(LOAD_AGAIN_S) and self._load(store, fence)):
                return ""
            why = self._append(store, fence, item) if item is not None else ""
            if not why and keep is not None:
                why = self._save(store, fence, keep)
            if why:
                return why
            if not store.leading():
                return "the lease was lost"

    def _load(self, store: LogStore, fence: int) -> bool:
        while store.leading() and not self._closing:
            try:
                snapshot, chunks = store.load()
                elected = Elected(
                    fence, snapshot, tuple(chunks), getattr(store, "lost", ""), getattr(store, "doubted", "")
                )
            except Exception as exc:  # nothing that stands in a store ends this root
                self._post(Failed(_told(exc), "load"))
                self._sleep(RETRY_S[-1])
                continue
            self._drop()
            self._post(elected)
            return True
        return False

    def _append(self, store: LogStore, fence: int, item: _Append) -> str:
        began_ns, tries = time.monotonic_ns(), 0
        while item.fence == fence:
            try:
                store.append(fence, item.first, item.count, item.chunk)
                self._post(Durable(item.first, item.count, time.monotonic_ns() - began_ns))
                break
            except Fenced as exc:
                return str(exc)
            except JournalError as exc:
                self._post(Failed(str(exc)))
                if not self._sleep(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                    return "closing"
                tries += 1
                if not store.leading():
                    return f"the lease was lost: {exc}"
        with self._wake:
            self._appends.popleft()
            self._bytes -= len(item.chunk)
        return ""

    def _save(self, store: LogStore, fence: int, keep: _Keep) -> str:
        if keep.fence != fence:
            return ""
        what = "snapshot"
        try:
            if keep.snapshot is not None:
                store.save_snapshot(fence, keep.gseq, keep.snapshot)
            what = "trim"
            before = oldest = store.oldest()
            if keep.before > oldest:
                store.trim(fence, keep.before)
                oldest = store.oldest()
            self._post(Saved(keep.gseq, oldest))
            if before < oldest < keep.before:  # one bounded piece is deleted; appends come between the pieces
                with self._wake:
                    self._keep = self._keep or _Keep(fence, keep.gseq, None, keep.before)
        except Fenced as exc:
            return str(exc)
        except JournalError as exc:
            self._post(Failed(str(exc), what))  # the next one will do
        return ""


def _told(exc: Exception) -> str:
    """What went wrong; what nobody expected stands in the log as a whole."""
    if isinstance(exc, JournalError | Fenced):
        return str(exc)
    traceback.print_exc()
    return f"internal error: {type(exc).__name__}"
