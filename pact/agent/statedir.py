"""The state directory: its lock, what is never a resource, and what is remembered beside the journal.

Nothing here decides; what is lost here costs a look, never a record.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

import orjson

from pact.agent.config import Config
from pact.core.state import State
from pact.errors import PactError, UnreachableError
from pact.journal.sqlite import SqliteJournal
from pact.model import encode_name

SAVING: tuple[str, ...] = ("rollback_started", "declared", "applied")


def take_state_dir(path: str) -> int:
    """Create the state directory and take its lock; the descriptor holds it. Raises PactError and says who has it."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise UnreachableError(f"state directory {path}: {os.strerror(exc.errno or 0)}",
                               "run as root, or set [state] dir") from None  # fmt: skip
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise PactError(f"another agent (pid {holder}) uses {path}",
                        "stop it, or give this one its own [state] dir") from None  # fmt: skip
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def own_paths(config: Config) -> list[str]:
    """Patterns of pact's own configuration, keys and state, and of what is mounted over them: never resources."""
    places = [_name(p) for p in (config.state_dir, "/etc/pact", config.socket, config.path, config.secret) if p]
    return [f"{kind}:{place}{below}" for kind in ("file", "mount") for place in places for below in ("", "/**")]


def _name(path: str) -> str:
    return encode_name(os.path.abspath(path))


class MountPoints:
    """What was mounted when the last run of this boot ended: what came since may hide declared paths."""

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self, boot_id: str) -> list[str] | None:
        """Encoded mount points, ``None`` if nothing is known of this boot."""
        try:
            with open(self._path, "rb") as f:
                known = orjson.loads(f.read())
            return [str(p) for p in known["points"]] if known["boot"] == boot_id else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, *, boot_id: str, points: Iterable[str]) -> None:
        """Best effort: without it the next run takes what it finds mounted as given."""
        try:
            with open(self._path + ".new", "wb") as f:
                f.write(orjson.dumps({"boot": boot_id, "points": list(points)}))
            os.replace(self._path + ".new", self._path)
        except OSError:
            return


def wanted_contents(state: State, journal: SqliteJournal, since_ns: int) -> set[str]:
    """Digests that declared state, commits with an end, and what was replaced after ``since_ns`` (node time) need."""
    wanted = {d.attrs["sha256"] for r in state.declared_ids() if (d := state.declared(r)) and d.attrs
              and "sha256" in d.attrs}  # fmt: skip
    wanted |= {t.earlier["attrs"]["sha256"] for t in state.ttls.values()
               if t.earlier and (t.earlier["attrs"] or {}).get("sha256")}  # fmt: skip
    for type_ in SAVING:
        for body, _ in journal.newest(None, type_=type_):
            record = orjson.loads(body)
            if record["t_ns"] < since_ns:
                break  # node time never runs backwards: all the others are older
            saves = record["data"].get("saves", {})
            wanted |= {s["sha256"] for s in saves.values() if s.get("sha256")}
    return wanted
