"""Members of the tree in configuration files: parents, and the keys of roots."""

from __future__ import annotations

import re
from typing import Any, Final

from pact.core.tree.parents import Parent
from pact.core.tree.seals import ROOTS_MAX
from pact.errors import ConfigError
from pact.host.fields import near
from pact.net.keys import is_public

TCP_URL: Final = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.%a-z]+\]):\d{1,5}")
ENTRY: Final = ("url", "key", "rack")  # the keys of a parent


def parents(value: Any) -> list[Parent]:
    """``[{url, key, rack}, ...]``: the address of an aggregator, its public key, and its rack, if known."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError('must be a list of {url = "tcp://HOST:PORT", key = "..."}')
    out: list[Parent] = []
    for entry in value:
        unknown = [k for k in entry if k not in ENTRY]
        if unknown:
            known = near(unknown[0], dict.fromkeys(ENTRY))
            raise ValueError(f"has an entry with the unknown key {unknown[0]!r}; {known}")
        url, key, rack = entry.get("url"), entry.get("key"), entry.get("rack", "")
        if not isinstance(url, str) or not TCP_URL.fullmatch(url):
            raise ValueError(f'has an entry whose url is not "tcp://HOST:PORT" but {url!r}')
        if key is None:
            raise ValueError(f'has an entry for {url} without a key: add key = "..." (what NAME.key holds)')
        if not isinstance(key, str) or not is_public(key):
            raise ValueError(f"has an entry for {url} without a key of 40 characters in Z85 (what NAME.key holds)")
        if not isinstance(rack, str):
            raise ValueError(f"has an entry for {url} whose rack is no string")
        if any(p.url == url for p in out):
            raise ValueError(f"names {url} twice")
        out.append(Parent(url, key, rack))
    return out


def root_keys(value: Any) -> list[str]:
    """``["KEY", ...]``: the public keys of all roots that may lead."""
    if not isinstance(value, list) or len(value) > ROOTS_MAX or not all(isinstance(v, str) for v in value):
        raise ValueError(f"must be a list of at most {ROOTS_MAX} keys")
    for key in value:
        if not is_public(key):
            raise ValueError(f"has {key!r}, which must be a key of 40 characters in Z85 (what NAME.key holds)")
    return list(dict.fromkeys(value))


def require_roots(path: str, config: Any) -> None:
    """Raises ConfigError if seals are required without any root's key to seal for."""
    if config.sealed and not config.roots:
        raise ConfigError(f"{path}: sealed needs roots", 'the public keys of all roots: roots = ["..."]')
