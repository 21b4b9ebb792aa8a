"""The state directory: its lock, the paths that are never resources, and notes beside the journal.

Nothing here decides; losing a note costs an observation, never a record.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterable
from typing import Final

import orjson

from pact.agent.config import Config
from pact.agent.hooks import require_trusted
from pact.core import strict
from pact.core.node.payloads import SessionClosed
from pact.core.node.state import State
from pact.errors import PactError, UnreachableError
from pact.host import owned
from pact.journal.sqlite import SqliteJournal
from pact.model import encode_name

LEDGER_BYTES: Final = 4096
LOCK_S: Final = 5.0
#: When the store is nearly full, transcripts keep this part of it at most.
TRANSCRIPTS_PART: Final = 4
SAVING: tuple[str, ...] = ("rollback_started", "declared", "applied")


def take_state_dir(path: str) -> int:
    """Create the state directory and take its lock; the descriptor holds it. Raises PactError that names the holder."""
    try:
        owned.make_directory(path, "state directory", 0o700)
        owned.require_within(path, "state directory")
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise UnreachableError(
            f"state directory {path}: {os.strerror(exc.errno or 0)}", "run as root, or set [state] dir"
        ) from None
    if holder := _lock(fd):
        os.close(fd)
        raise PactError(f"another agent (pid {holder}) uses {path}", "stop it, or give this one its own [state] dir")
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _lock(fd: int) -> str:
    """Take the lock. Returns the pid of who has it, or ``""``. A process that the last agent was just starting when it
    was killed has the lock, too, until it becomes another program: that is waited for."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return ""
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        lives = not holder.isdigit() or os.path.exists(f"/proc/{holder}")
        if lives or time.monotonic() >= end:
            return holder
        time.sleep(0.01)


def require_owned(config: Config) -> None:
    """Check that no other account could have written what the agent believes and runs, or can replace a directory on
    the way. Raises NotOurs.  # S9"""
    if config.path:
        owned.require(config.path, "configuration")
    if config.secret:
        owned.require(config.secret, "key")
    require_trusted(config.hooks_dir)
    where = os.path.dirname(config.socket) or "."
    owned.require(where, "directory of the control socket", missing_ok=True, sticky_ok=True)


def own_paths(config: Config) -> list[str]:
    """Patterns of pact's own configuration, keys and state, and of what is mounted over them: never resources."""
    from pact.resources import KINDS

    kinds = [k.name for k in KINDS.values() if k.is_path]
    places = [_name(p) for p in (config.state_dir, "/etc/pact", config.socket, config.path, config.secret) if p]
    return [f"{kind}:{place}{below}" for kind in kinds for place in places for below in ("", "/**")]


def _name(path: str) -> str:
    return encode_name(os.path.abspath(path))


class MountPoints:
    """The mount points when the last run of this boot ended: later mounts may hide declared paths."""

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self, boot_id: str) -> list[str] | None:
        """Encoded mount points; ``None`` if nothing is known of this boot."""
        try:
            with open(self._path, "rb") as f:
                known = strict.loads_object(f.read(), strict.SMALL_MAX)
            return [str(p) for p in known["points"]] if known["boot"] == boot_id else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, *, boot_id: str, points: Iterable[str]) -> None:
        """Best effort: without it the next run accepts the mounts that it finds."""
        try:
            with open(self._path + ".new", "wb") as f:
                f.write(orjson.dumps({"boot": boot_id, "points": list(points)}))
            os.replace(self._path + ".new", self._path)
        except OSError:
            return


class Underway:
    """The present work of the workers, on disk: so a start knows during which work the process before it died.  # F65

    One small file that never grows, written in place: a full disk does not stop it. ``deaths`` counts for each name how
    many runs in a row have ended during that work; a run that ends outside it resets the count.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, int] = {}
        self.deaths: dict[str, int] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            self._fd = -1  # best effort: without the file nothing is counted
            return
        try:
            said = strict.loads_object(os.pread(self._fd, LEDGER_BYTES, 0).rstrip(b"\0 \n") or b"{}", strict.SMALL_MAX)
            self.deaths = {str(what): int(n) + 1 for what, n in said.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # the file keeps its contents until work begins: a start that dies counts nothing

    def begin(self, what: str) -> None:
        """Make it durable: a crash of the whole machine counts too."""
        with self._lock:
            self._now[what] = self.deaths.get(what, 0)
            self._write(durable=True)

    def end(self, what: str) -> None:
        with self._lock:
            self._now.pop(what, None)
            self._write()

    def _write(self, *, durable: bool = False) -> None:
        if self._fd < 0:
            return
        raw = orjson.dumps(self._now)
        try:
            os.pwrite(self._fd, (raw if len(raw) <= LEDGER_BYTES else b"{}").ljust(LEDGER_BYTES), 0)
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            pass

    def close(self) -> None:
        """A clean end: it counts against no work."""
        with self._lock:
            self._now.clear()
            self._write()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def wanted_contents(state: State, journal: SqliteJournal, since_ns: int) -> set[str]:
    """Digests that declared state, trials, and contents replaced after ``since_ns`` (node time) need."""
    wanted = {
        d.attrs["sha256"] for r in state.declared_ids() if (d := state.declared(r)) and d.attrs and "sha256" in d.attrs
    }
    wanted |= {
        t.earlier["attrs"]["sha256"]
        for t in state.ttls.values()
        if t.earlier and (t.earlier["attrs"] or {}).get("sha256")
    }
    for type_ in SAVING:
        for body, _ in journal.newest(None, type_=type_):
            record = strict.own(body)
            if record["t_ns"] < since_ns:
                break  # node time never runs backwards: all others are older
            saves = record["data"].get("saves", {})
            wanted |= {s["sha256"] for s in saves.values() if s.get("sha256")}
    room = (journal.store_limit or 0) // TRANSCRIPTS_PART
    for body, _ in journal.newest(None, type_=SessionClosed.type):
        record = strict.own(body)
        kept = record["data"].get("transcript") or {}
        room -= kept.get("size", 0)
        if record["t_ns"] < since_ns or room < 0:
            break  # the oldest transcripts go first
        if kept.get("sha256"):
            wanted.add(kept["sha256"])
    return wanted
