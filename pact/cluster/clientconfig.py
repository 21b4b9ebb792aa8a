"""``client.toml``: where an operator's commands ask. It imports little: each command begins with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.core.tree.parents import Parent
from pact.host.fields import a_bool, a_text, fill
from pact.net.members import TCP_URL, parents, require_roots, root_keys

CLIENT_PATHS: Final = ("~/.config/pact/client.toml", "/etc/pact/client.toml")


@dataclass(slots=True)
class ClientConfig:
    """The servers for an operator's commands, and the key."""

    via: str = ""
    server_key: str = ""
    key: str = ""
    servers: list[Parent] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    sealed: bool = False
    directory: str = ""  # of the file that was read


def url(value: Any) -> str:
    if not isinstance(value, str) or not (TCP_URL.fullmatch(value) or re.fullmatch(r"tcp://\*:\d{1,5}", value)):
        raise ValueError('must be "tcp://HOST:PORT"')
    return value


CLIENT_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "via": ("via", url),
    "server_key": ("server_key", a_text),
    "key": ("key", a_text),
    "servers": ("servers", parents),
    "roots": ("roots", root_keys),
    "sealed": ("sealed", a_bool),
}


def load_client(paths: tuple[str, ...] = CLIENT_PATHS) -> ClientConfig:
    """The first of the files that exists: ``via``, ``server_key`` and ``key``, at the top or under ``[client]``.
    ``servers = [{url, key}, ...]`` are more servers, tried in turn.

    Raises ConfigError. A relative ``key`` is looked up in the file's directory, and so is the file of a ``server_key``
    that is not a key itself (``keys.server_key``).
    """
    config = ClientConfig()
    for path in map(os.path.expanduser, paths):
        if not os.path.exists(path):
            continue
        fill(path, {"client": CLIENT_FIELDS}, config, top=CLIENT_FIELDS)
        config.directory = os.path.dirname(os.path.abspath(path))
        if config.key:
            config.key = os.path.join(config.directory, os.path.expanduser(config.key))
        require_roots(path, config)
        break
    return config
