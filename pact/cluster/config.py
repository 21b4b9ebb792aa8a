"""``aggregator.toml`` and ``client.toml``. The agent's ``[cluster]`` and ``[keys]`` are read with its own
configuration.

Ports listen on loopback unless the file says otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.cluster.clientconfig import url
from pact.core.root.term import Limits
from pact.core.tree.directory import ROOT
from pact.core.tree.parents import Parent
from pact.core.tree.relay import BUFFER_MAX, CHILDREN_MAX
from pact.errors import ConfigError
from pact.host import owned
from pact.host.fields import a_bool, a_choice, a_count, a_duration, a_name, a_number, a_rack, a_size, a_text, fill
from pact.journal.stores import OPTIONS, own_files
from pact.net.members import TCP_URL, parents

DEFAULT_PATH: Final = "/etc/pact/aggregator.toml"
CHILDREN_LIMIT: Final = 8_000
GROUPS: Final = Limits()
TREE_PORT: Final = 7417
DEFAULT_HTTP: Final = "127.0.0.1:7420"
HOST_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
JOURNAL_URL: Final = re.compile(r"sqlite:///.+|etcd://[^/\s]+(?:/.*)?")


@dataclass(slots=True)
class AggregatorConfig:
    """One member of the tree. Sizes are bytes."""

    path: str = ""
    name: str = ""
    cluster: str = "default"
    rack: str = ""
    tree: str = "tcp://127.0.0.1:7417"
    events: str = "tcp://127.0.0.1:7418"
    replay: str = "tcp://127.0.0.1:7419"
    http: str = DEFAULT_HTTP
    http_names: list[str] = field(default_factory=list)
    parents: list[Parent] = field(default_factory=list)
    children: int = CHILDREN_MAX
    buffer: int = BUFFER_MAX
    journal: str = "sqlite:///var/lib/pact/root.db"
    journal_ca: str = ""
    journal_cert: str = ""
    journal_key: str = ""
    journal_user: str = ""
    journal_password_file: str = ""
    journal_lease: str = ""
    keep_events: int = 1_000_000
    share: int = GROUPS.share_per_s
    wave: int = GROUPS.wave
    waves: int = GROUPS.waves_at_once
    breaker_percent: float = 5.0
    breaker_least: int = GROUPS.breaker_least
    answer_ns: int = GROUPS.answer_ns
    retry_ns: int = GROUPS.retry_ns
    floor_ns: int = GROUPS.floor_ns
    on_busy_retry: bool = False
    secret: str = ""
    authorized: str = "/etc/pact/authorized_keys.toml"
    sealed: bool = False

    @property
    def journal_options(self) -> dict[str, str]:
        """The store's options besides its URL."""
        return {name: value for name in sorted(OPTIONS) if (value := getattr(self, f"journal_{name}"))}

    @property
    def limits(self) -> Limits:
        """The settings for the root's decisions about groups."""
        return Limits(
            wave=self.wave,
            waves_at_once=self.waves,
            breaker_share=self.breaker_percent / 100,
            breaker_least=self.breaker_least,
            answer_ns=self.answer_ns,
            retry_ns=self.retry_ns,
            floor_ns=self.floor_ns,
            on_busy_retry=self.on_busy_retry,
            share_per_s=self.share,
        )


def _address(value: Any) -> str:
    if not isinstance(value, str) or (value and not TCP_URL.fullmatch("tcp://" + value)):
        raise ValueError('must be "HOST:PORT", or "" for none')
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and HOST_NAME.fullmatch(v) for v in value):
        raise ValueError('must be a list of host names, such as ["pact.example.org"]')
    return list(value)


def _journal(value: Any) -> str:
    if not isinstance(value, str) or not JOURNAL_URL.fullmatch(value):
        raise ValueError('must be "sqlite:///PATH" or "etcd://HOST:PORT,HOST:PORT,..."')
    return value


KEYS: Final[Mapping[str, Mapping[str, tuple[str, Callable[[Any], Any]]]]] = {
    "aggregator": {
        "name": ("name", a_name),
        "cluster": ("cluster", a_name),
        "rack": ("rack", a_rack),
        "tree": ("tree", url),
        "events": ("events", url),
        "replay": ("replay", url),
        "http": ("http", _address),
        "http_names": ("http_names", _names),
        "parents": ("parents", parents),
        "children": ("children", a_count(1, CHILDREN_LIMIT)),
        "buffer": ("buffer", a_size),
    },
    "journal": {
        "url": ("journal", _journal),
        "keep": ("keep_events", a_count(1, 1_000_000_000)),
        "share": ("share", a_count(0, 1_000_000)),
        **{name: (f"journal_{name}", a_text) for name in sorted(OPTIONS)},
    },
    "groups": {
        "wave": ("wave", a_count(1, 100_000)),
        "waves": ("waves", a_count(1, 100)),
        "failures_percent": ("breaker_percent", a_number(0, 100)),
        "failures": ("breaker_least", a_count(0, 100_000)),
        "answer": ("answer_ns", a_duration),
        "retry": ("retry_ns", a_duration),
        "floor": ("floor_ns", a_duration),
        "on_busy": ("on_busy_retry", lambda v: a_choice("fail", "retry")(v) == "retry"),
    },
    "cluster": {"sealed": ("sealed", a_bool)},
    "keys": {"secret": ("secret", a_text), "authorized": ("authorized", a_text)},
}


def load(path: str | None) -> AggregatorConfig:
    """Read and check ``aggregator.toml``. Raises ConfigError."""
    path = path or DEFAULT_PATH
    config = AggregatorConfig(path=path)
    fill(path, KEYS, config)
    if not config.name or not config.secret:
        what = "[aggregator] name" if not config.name else "[keys] secret"
        raise ConfigError(f"{path}: {what} is missing")
    if config.name == ROOT:
        raise ConfigError(f"{path}: the name {ROOT!r} is kept for the root's own records", "give it another name")
    return config


def require_owned(config: AggregatorConfig) -> None:
    """Check that no other account could have written what a member of the tree believes, or can replace a part of the
    way to it. Raises NotOurs."""
    if config.parents:
        return
    files = own_files(config.journal, config.journal_options)
    if config.journal.startswith("sqlite:"):
        owned.require(os.path.dirname(files[0]), "directory of the journal", missing_ok=True)
    for path in files:
        owned.require(path, "journal", missing_ok=True)  # the code that needs a missing file reports it


def refuse_own_key(config: AggregatorConfig, public: str) -> None:
    """Refuse an aggregator that is its own parent. Raises ConfigError.  # T4"""
    for parent in config.parents:
        if parent.key == public:
            raise ConfigError(
                f"{config.path}: the parent {parent.url} has this aggregator's own key",
                "an aggregator cannot be below itself",
            )
