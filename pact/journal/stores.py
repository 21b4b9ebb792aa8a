"""Which store of the root's log a URL names, and how to open it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final
from urllib.parse import parse_qsl, unquote

from pact.errors import ConfigError
from pact.journal.head import head_path
from pact.journal.rootlog import LogStore

ETCD_PORT: Final = 2379
OPTIONS: Final = frozenset({"ca", "cert", "key", "user", "password_file", "lease"})
CLUSTER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
ENDPOINT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?\Z")


def open_store(url: str, cluster: str = "default", options: Mapping[str, str] | None = None) -> LogStore:
    """Open the store. Raises ConfigError, JournalError."""
    return opener(url, cluster, options)()


def opener(url: str, cluster: str = "default", options: Mapping[str, str] | None = None) -> Callable[[], LogStore]:
    """A function that opens the store of ``sqlite:///path`` or ``etcd://h1:2379,h2:2379``; options come from the URL's
    query or the table.

    The options are for etcd: ``ca``, ``cert``, ``key``, ``user``, ``password_file``, ``lease`` (seconds, 2 to 60).
    Raises ConfigError for a URL that can never be opened, before it is tried.
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
        path = "/" + path.lstrip("/")  # some people write one slash more
        if given:
            raise ConfigError(f"[journal] {min(given)} means nothing to SQLite", "it is for etcd: leave it out")
        return partial(_sqlite, path, cluster)
    return _etcd(endpoints(address), cluster, given)


def own_files(url: str, options: Mapping[str, str]) -> list[str]:
    """The files that a store at this URL trusts: its own, or keys, certificates and passwords; whether they exist or
    not."""
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

        return EtcdLog(
            hosts,
            cluster,
            ca=given.get("ca", ""),
            cert=given.get("cert", ""),
            key=given.get("key", ""),
            user=given.get("user", ""),
            password_file=given.get("password_file", ""),
            lease_s=int(lease),
        )

    return opened
