"""What a store of the root's log must do, and which one a URL means. ``specs/cluster.md`` says what a chunk is.

A store keeps bytes in order and decides who may add to them; it never looks inside a chunk. It is used from one thread,
except ``read`` and ``oldest``, which any thread may call. Every call ends within seconds: with no disk or no quorum it
raises.  # Q5
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, Protocol, runtime_checkable
from urllib.parse import parse_qsl, unquote

from pact.errors import ConfigError, JournalError
from pact.journal.head import head_path

#: A chunk larger than this is a bug of whoever built it; stores split what their backend cannot take whole.
CHUNK_MAX: Final = 64 << 20
SNAPSHOT_MAX: Final = 256 << 20
TRIM_MAX: Final = 1000
ETCD_PORT: Final = 2379
OPTIONS: Final = frozenset({"ca", "cert", "key", "user", "password_file", "lease"})
CLUSTER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
ENDPOINT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?\Z")


def require_snapshot(snapshot: bytes) -> None:
    """Raises JournalError for one that is too large to keep; the root goes on, on the chunks since the last one."""
    if len(snapshot) > SNAPSHOT_MAX:
        raise JournalError(f"the state is {len(snapshot)} bytes, more than the {SNAPSHOT_MAX} that a snapshot may have",
                           "settle groups; they are forgotten after a while, and the state shrinks")  # fmt: skip


@runtime_checkable
class LogStore(Protocol):
    """Raises JournalError where the disk or the quorum is missing, Fenced where somebody else leads."""

    def campaign(self, name: str) -> int | None:
        """The fence (> 0, larger than every earlier one) if this one leads now, else None; keeps a lease alive."""

    def leading(self) -> bool:
        """The lease is still ours as far as we know. True promises nothing: only ``append`` decides."""

    def load(self) -> tuple[bytes | None, Iterator[bytes]]:
        """The newest snapshot, and the chunks after it. Chunks are fetched as they are asked for."""

    def append(self, fence: int, first: int, count: int, chunk: bytes) -> None:
        """Durable on return. After a JournalError it may have happened or not; the same chunk twice is once.

        Raises Fenced if ``fence`` is not in force, if ``first`` is not the next number, or if another chunk is there.
        """

    def save_snapshot(self, fence: int, gseq: int, snapshot: bytes) -> None:
        """The state after event ``gseq``. It replaces the older one, whole or not at all."""

    def read(self, gseq: int) -> Iterator[bytes]:
        """Chunks from the one that holds ``gseq`` on (or the oldest there is). Ends early, with no hole, if trimmed."""

    def oldest(self) -> int:
        """First gseq still there; the next one if there is none."""

    def trim(self, fence: int, before: int) -> None:
        """Forget chunks wholly before ``before``, at most TRIM_MAX of them; never beyond the newest snapshot."""

    def close(self) -> None:
        """Give up leadership, if any, so that another can have it at once."""


def open_store(url: str, cluster: str = "default", options: Mapping[str, str] | None = None) -> LogStore:
    """``opener``, and the opening. Raises ConfigError, JournalError."""
    return opener(url, cluster, options)()


def opener(url: str, cluster: str = "default", options: Mapping[str, str] | None = None) -> Callable[[], LogStore]:
    """Opens the store for ``sqlite:///path`` or ``etcd://h1:2379,h2:2379``; options come from the URL's query or the
    table.

    They are etcd's: ``ca``, ``cert``, ``key``, ``user``, ``password_file``, ``lease`` (seconds, 2 to 60). Raises
    ConfigError for what can never be opened, before it is tried.
    """
    scheme, found, rest = url.partition("://")
    address, _, query = rest.partition("?")
    if not found or scheme not in ("sqlite", "etcd"):
        raise ConfigError(f"[journal] url {url!r} is neither sqlite:///path nor etcd://host:2379,...")
    if not CLUSTER.match(cluster):
        raise ConfigError(f"{cluster!r} is no name for a cluster", "letters, digits, '.', '_' and '-', at most 63")
    given = dict(options or {})
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            raise ConfigError(f"[journal] url: {name!r} is none of {', '.join(sorted(OPTIONS))}")
        given[name] = value
    if scheme == "sqlite":
        path = unquote(address)
        if not os.path.isabs(path):
            raise ConfigError(f"[journal] url {url!r} has no absolute path", "write sqlite:///var/lib/pact/root.db")
        path = "/" + path.lstrip("/")  # some write one slash more
        if given:
            raise ConfigError(f"[journal] {min(given)} means nothing to SQLite", "it is for etcd: leave it out")
        return partial(_sqlite, path, cluster)
    return _etcd(endpoints(address), cluster, given)


def own_files(url: str, options: Mapping[str, str]) -> list[str]:
    """The files that a store at this URL believes: its own, or keys, certificates and passwords; there or not."""
    scheme, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    if scheme == "sqlite":
        path = "/" + unquote(address).lstrip("/")
        return [path, f"{path}-wal", f"{path}-shm", head_path(path)]
    given = {**options, **dict(parse_qsl(query))}
    return [given[name] for name in ("ca", "cert", "key", "password_file") if given.get(name)]


def endpoints(address: str) -> list[str]:
    """``host:port`` of each member. Raises ConfigError."""
    out: list[str] = []
    for part in address.rstrip("/").split(","):
        match = ENDPOINT.match(part)
        port = int(match["port"] or ETCD_PORT) if match else 0
        if match is None or not 0 < port < 65536:
            raise ConfigError(f"[journal] url: {part!r} is no host:port", "write etcd://h1:2379,h2:2379,h3:2379")
        out.append(f"{match['host']}:{port}")
    return out


def _sqlite(path: str, cluster: str) -> LogStore:
    from pact.journal.rootlog_sqlite import SqliteLog

    return SqliteLog(path, cluster)


def _etcd(hosts: list[str], cluster: str, given: Mapping[str, str]) -> Callable[[], LogStore]:
    unknown = sorted(set(given) - OPTIONS)
    if unknown:
        raise ConfigError(f"[journal] {unknown[0]!r} is none of {', '.join(sorted(OPTIONS))}")
    if bool(given.get("cert")) != bool(given.get("key")):
        raise ConfigError("[journal] cert and key belong together")
    if bool(given.get("user")) != bool(given.get("password_file")):
        raise ConfigError("[journal] user and password_file belong together")
    if given.get("cert") and not given.get("ca"):
        raise ConfigError("[journal] cert without ca", "name the CA that signed etcd's certificates")
    lease = given.get("lease", "6")
    if not lease.isdigit() or not 2 <= int(lease) <= 60:
        raise ConfigError(f"[journal] lease {lease!r} is not between 2 and 60 (seconds)")

    def opened() -> LogStore:
        from pact.journal.rootlog_etcd import EtcdLog

        return EtcdLog(hosts, cluster, ca=given.get("ca", ""), cert=given.get("cert", ""), key=given.get("key", ""),
                       user=given.get("user", ""), password_file=given.get("password_file", ""),
                       lease_s=int(lease))  # fmt: skip

    return opened
