"""The owner of each key and the sockets to which it may connect: ``authorized_keys.toml``. Pure; the sockets are in
``zap``.

A node's name comes from its key, never from a message.  # T13
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pact.core import strict
from pact.core.tree.directory import ROOT, Peer
from pact.errors import ConfigError
from pact.host import owned
from pact.net.keys import is_public

ROLES: Final = ("node", "aggregator", "subscriber", "viewer", "ops", "admin")
FIELDS: Final = ("public", "name", "role")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
KEYS_MAX: Final = 100_000

TREE: Final = "tree"
EVENTS: Final = "events"
REPLAY: Final = "replay"
#: Socket (its ZAP domain) -> the roles whose keys may connect to it.
SOCKETS: Final[Mapping[str, frozenset[str]]] = {
    TREE: frozenset({"node", "aggregator", "viewer", "ops", "admin"}),
    EVENTS: frozenset({"subscriber", "viewer", "ops", "admin", "aggregator"}),
    REPLAY: frozenset({"subscriber", "viewer", "ops", "admin", "aggregator"}),
}


class Authorized:
    """Public key (Z85) -> its owner."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self.peers: dict[str, Peer] = {p.key: p for p in peers}

    def peer(self, key: str) -> Peer | None:
        return self.peers.get(key)

    def may_connect(self, key: str, socket: str) -> bool:
        """Whether the key may connect: not an unknown key, nor one of another role, nor to an unknown socket."""
        peer = self.peers.get(key)
        return peer is not None and peer.role in SOCKETS.get(socket, ())

    def removed(self, newer: Authorized) -> list[str]:
        """Keys that are gone, or have another name or role."""
        return [key for key, peer in self.peers.items() if newer.peers.get(key) != peer]


def parse(text: str, path: str) -> Authorized:
    """The table in a file's text. Raises ConfigError with file and line."""
    try:
        table = strict.toml(text)
    except strict.NotStrictError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise ConfigError(f"{path}:{line[1] if line else 1}: {exc}") from None
    lines = [n for n, line in enumerate(text.split("\n"), 1) if re.match(r"\s*\[\[\s*[\"']?key[\"']?\s*\]\]", line)]
    entries = table.pop("key", [])
    if table:
        raise ConfigError(f"{path}: unknown {next(iter(table))!r}; an authorised key is a table [[key]]")
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise ConfigError(f"{path}: keys are written [[key]], at most {KEYS_MAX}")
    peers: dict[str, Peer] = {}
    roles: dict[str, str] = {}
    for i, entry in enumerate(entries):
        where = f"{path}:{lines[i] if i < len(lines) else 1}"
        peer = _entry(entry, where)
        if peer.key in peers:
            raise ConfigError(f"{where}: the key of {peers[peer.key].name} stands here again, as {peer.name}")
        if roles.setdefault(peer.name, peer.role) != peer.role:
            raise ConfigError(f"{where}: {peer.name} is a {roles[peer.name]} above and a {peer.role} here")
        peers[peer.key] = peer
    return Authorized(peers.values())


def _entry(entry: object, where: str) -> Peer:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: a key is a table with {', '.join(FIELDS)}")
    for field in entry:
        if field not in FIELDS:
            raise ConfigError(f"{where}: unknown field {field!r}", f"known: {', '.join(FIELDS)}")
    for field in FIELDS:
        if not isinstance(entry.get(field), str):
            raise ConfigError(f"{where}: {field} is missing, or no text")
    name, role, public = entry["name"], entry["role"], entry["public"]
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: the name {name!r} is not letters, digits, '.', '_' and '-'")
    if name == ROOT and role in ("node", "aggregator"):
        raise ConfigError(f"{where}: the name {ROOT!r} is kept for the root's own records", "give it another name")
    if role not in ROLES:
        raise ConfigError(f"{where}: unknown role {role!r}", f"known: {', '.join(ROLES)}")
    if not is_public(public):
        raise ConfigError(f"{where}: public is not a key of 40 characters in Z85", "it is what NAME.key holds")
    return Peer(name, role, public)


def read(path: str) -> Authorized:
    """The file. Raises ConfigError, also if other accounts could have written it."""
    try:
        text = owned.read_regular(path).decode()
        owned.require(path, "authorised keys")
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 ({exc.reason})") from None
    return parse(text, path)


def signature(path: str) -> tuple[int, int, int]:
    """What changes when the file of authorised keys does; its size is the second. Zeros if it cannot be looked at."""
    try:
        info = os.stat(path)
    except OSError:
        return 0, 0, 0
    return info.st_mtime_ns, info.st_size, info.st_ino
