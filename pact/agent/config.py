"""``agent.toml``: every key with its default, its check and its meaning. Unknown keys name the nearest valid one."""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from pact.cluster.keys import is_public
from pact.core import strict
from pact.core.seals import ROOTS_MAX
from pact.core.settings import DEFAULT_SEVERITY, DEFAULT_WEIGHTS, Settings, billionths
from pact.core.units import parse_duration
from pact.core.uplink import Parent
from pact.errors import ConfigError
from pact.model import DIMENSIONS

DEFAULT_PATH: Final = "/etc/pact/agent.toml"
TCP_URL: Final = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.%a-z]+\]):\d{1,5}")
ENTRY: Final = ("url", "key", "rack")  # of parents
DEFAULT_SOCKET: Final = "/run/pact/agent.sock"


@dataclass(slots=True)
class Config:
    """The agent's configuration. Durations are nanoseconds, sizes bytes."""

    path: str = ""
    name: str = field(default_factory=lambda: socket.gethostname().split(".")[0])
    cluster: str = "default"
    state_dir: str = "/var/lib/pact"
    file_limit: int = 4 << 20
    store_limit: int = 1 << 30
    verify: int = 200_000
    keep_ns: int = 30 * 86400 * 1_000_000_000
    socket: str = DEFAULT_SOCKET
    declared: list[str] = field(default_factory=lambda: ["/etc/pact/declared.d/*.toml"])
    enforce: bool = True
    base_ns: int = 900_000_000_000
    sensitivity: float = 2.0
    floor_ns: int = 60_000_000_000
    emergency_ns: int = 4 * 3600 * 1_000_000_000
    weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    severity: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_SEVERITY))
    ignore: list[str] = field(default_factory=list)
    rescan_ns: int = 300_000_000_000
    full_ns: int = 3600_000_000_000
    fanotify: bool = True
    inotify: bool = True
    realtime: bool = True
    proc_connector: bool = True
    cpus: list[int] = field(default_factory=list)
    on_busy_retry: bool = False
    retry_ns: int = 30_000_000_000
    max_resources: int = 500
    admin_groups: list[str] = field(default_factory=lambda: ["pact-admin"])
    ops_groups: list[str] = field(default_factory=lambda: ["pact-ops"])
    terminals: bool = True
    hooks_dir: str = "/etc/pact/hooks.d"
    hooks_timeout_ns: int = 10_000_000_000
    parents: list[Parent] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    sealed: bool = False
    rack: str = ""
    alone_ns: int = 600_000_000_000
    secret: str = ""
    given: frozenset[str] = frozenset()  # fields that the command line has set

    def settings(self) -> Settings:
        """What decisions read, in integers."""
        return Settings(
            base_ns=self.base_ns, sensitivity_n=billionths(self.sensitivity), floor_ns=self.floor_ns,
            emergency_ns=self.emergency_ns, enforce=self.enforce, on_busy_retry=self.on_busy_retry,
            retry_ns=self.retry_ns, max_resources=self.max_resources, alone_ns=self.alone_ns,
            weights_n={d: billionths(w) for d, w in self.weights.items()},
            severity_n={k: billionths(s) for k, s in self.severity.items()},
        )  # fmt: skip


def a_duration(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a duration such as \"15m\"")
    ns = parse_duration(value)
    if ns <= 0:
        raise ValueError("must be more than nothing")
    return ns


def _floor(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a duration such as \"60s\"")
    return parse_duration(value)


def a_text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a string")
    return value


def a_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", value):
        raise ValueError("must be letters, digits, '.', '_' and '-'")
    return value


def a_rack(value: Any) -> str:
    return "" if value == "" else a_name(value)


def a_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def a_number(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def a_count(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def a_size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMGT]i?B?)?", str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError("must be a size such as \"4MiB\"")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[(match[2] or "")[:1]]


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError("must be a list of strings")
    return list(value)


def _patterns(value: Any) -> list[str]:
    """Whoever writes a pattern that can match nothing believes that something is ignored which is rolled back."""
    from pact.resources.patterns import why_never

    for pattern in _texts(value):
        why = why_never(pattern)
        if why:
            raise ValueError(f"has {pattern!r}, which can match nothing: {why}")
    return list(value)


def _cpus(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value):
        raise ValueError("must be a list of CPU numbers")
    return list(value)


def a_choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("must be " + " or ".join(f'"{n}"' for n in names))
        return str(value)

    return check


def parents(value: Any) -> list[Parent]:
    """``[{url, key, rack}, ...]``: where to find an aggregator, its public key, and the rack it stands in, if known."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError('must be a list of {url = "tcp://HOST:PORT", key = "..."}')
    out: list[Parent] = []
    for entry in value:
        unknown = [k for k in entry if k not in ENTRY]
        if unknown:
            known = _near(unknown[0], dict.fromkeys(ENTRY))
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
    """Raises ConfigError: what is sealed is sealed for somebody."""
    if config.sealed and not config.roots:
        raise ConfigError(f"{path}: sealed needs roots", 'the public keys of all roots: roots = ["..."]')


def _table(defaults: Mapping[str, float], what: str) -> Callable[[Any], dict[str, float]]:
    def check(value: Any) -> dict[str, float]:
        if not isinstance(value, dict):
            raise ValueError(f"must be a table of {what} = number")
        for key, number in value.items():
            if key not in defaults:
                raise ValueError(f"unknown {what} {key!r}; known: {', '.join(defaults)}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1000:
                raise ValueError(f"{key} must be a number above 0 and at most 1000")
        return {**defaults, **{k: float(v) for k, v in value.items()}}

    return check


#: section -> key -> (field of Config, check)
KEYS: Final[Mapping[str, Mapping[str, tuple[str, Callable[[Any], Any]]]]] = {
    "node": {"name": ("name", a_name), "cluster": ("cluster", a_name)},
    "state": {"dir": ("state_dir", a_text), "file_limit": ("file_limit", a_size),
              "store_limit": ("store_limit", a_size), "keep": ("keep_ns", a_duration),
              "verify": ("verify", a_count(1, 1_000_000_000))},
    "control": {"socket": ("socket", a_text)},
    "declared": {"files": ("declared", _texts)},
    "mode": {"enforcement": ("enforce", lambda v: a_choice("enforce", "observe")(v) == "enforce")},
    "window": {
        "base": ("base_ns", a_duration), "sensitivity": ("sensitivity", a_number(0, 1e6)),
        "floor": ("floor_ns", _floor),
        "emergency": ("emergency_ns", a_duration),
    },
    "drift": {
        "weights": ("weights", _table({d: DEFAULT_WEIGHTS[d] for d in DIMENSIONS}, "dimension")),
        "severity": ("severity", _table(DEFAULT_SEVERITY, "kind")), "ignore": ("ignore", _patterns),
    },
    "observe": {
        "rescan": ("rescan_ns", a_duration), "full": ("full_ns", a_duration), "fanotify": ("fanotify", a_bool),
        "inotify": ("inotify", a_bool), "realtime": ("realtime", a_bool), "proc_connector": ("proc_connector", a_bool),
        "cpus": ("cpus", _cpus),
    },
    "rollback": {
        "on_busy": ("on_busy_retry", lambda v: a_choice("fail", "retry")(v) == "retry"),
        "retry": ("retry_ns", a_duration),
        "max_resources": ("max_resources", a_count(1, 1_000_000)),
    },
    "access": {"admin_groups": ("admin_groups", _texts), "ops_groups": ("ops_groups", _texts)},
    "notify": {"terminals": ("terminals", a_bool)},
    "hooks": {"dir": ("hooks_dir", a_text), "timeout": ("hooks_timeout_ns", a_duration)},
    "cluster": {"parents": ("parents", parents), "rack": ("rack", a_rack), "alone": ("alone_ns", _floor),
                "roots": ("roots", root_keys), "sealed": ("sealed", a_bool)},
    "keys": {"secret": ("secret", a_text)},
}  # fmt: skip


def load(path: str | None) -> Config:
    """Read and check a configuration. Without a path the default one is read if it exists. Raises ConfigError."""
    if path is None:
        if not os.path.exists(DEFAULT_PATH):
            return Config()
        path = DEFAULT_PATH
    config = Config(path=path)
    fill(path, KEYS, config)
    if config.parents and not config.secret:
        raise ConfigError(f"{path}: [cluster] parents needs [keys] secret", "pact keygen makes a key")
    require_roots(path, config)
    return config


Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]


def fill(path: str, keys: Mapping[str, Keys], config: Any, *, top: Keys = MappingProxyType({})) -> None:
    """Set the fields of ``config`` from a TOML file as the table says; ``top``: keys that may stand before any section.

    Raises ConfigError with file and line.
    """
    try:
        with open(path, "rb") as f:
            text = f.read().decode()
        table = strict.toml(text)
    except OSError as exc:
        raise ConfigError(f"{path}: {os.strerror(exc.errno or 0)}") from None
    except ValueError as exc:  # what the decoder does not let through, or no UTF-8
        line = re.search(r"at line (\d+)", str(exc))
        raise ConfigError(f"{path}:{line[1] if line else 1}: {exc}") from None
    for section, entries in table.items():
        where = f"{path}:{_line(text, section)}"
        if section in top:
            try:
                setattr(config, top[section][0], top[section][1](entries))
            except ValueError as exc:
                raise ConfigError(f"{where}: {section} {exc}") from None
            continue
        if section not in keys and top and not isinstance(entries, dict):
            raise ConfigError(f"{where}: unknown key {section!r}", _near(section, top))
        if section not in keys:
            raise ConfigError(f"{where}: unknown section [{section}]", _near(section, keys))
        if not isinstance(entries, dict):
            raise ConfigError(f"{where}: [{section}] must be a table")
        for key, value in entries.items():
            where = f"{path}:{_line(text, section, key)}"
            if key not in keys[section]:
                raise ConfigError(f"{where}: unknown key {key!r} in [{section}]", _near(key, keys[section]))
            attribute, check = keys[section][key]
            try:
                setattr(config, attribute, check(value))
            except ValueError as exc:
                raise ConfigError(f"{where}: [{section}] {key} {exc}") from None


def _line(text: str, section: str, key: str = "") -> int:
    """The line where a section or key stands, as near as text alone can say."""
    name = rf"[\"']?{re.escape(section)}[\"']?"
    header, first, inside = re.compile(rf"\s*\[?\s*{name}\s*[\]=.]"), 0, False
    wanted = re.compile(rf"\s*(?:{name}\s*\.\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.]")
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("[") or header.match(line):
            inside = header.match(line) is not None
            first = first or (number if inside else 0)
        if inside and key and wanted.match(line):
            return number
    return first or 1


def _near(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
