"""``agent.toml``: every key with its default, its check and its meaning. Unknown keys name the nearest valid one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.core.settings import DEFAULT_WEIGHTS, Settings, billionths
from pact.core.tree.parents import Parent
from pact.errors import ConfigError
from pact.host.fields import (
    a_bool,
    a_choice,
    a_count,
    a_duration,
    a_name,
    a_notice,
    a_number,
    a_rack,
    a_size,
    a_table,
    a_text,
    cpus,
    fill,
    near,
    texts,
)
from pact.model import DIMENSIONS
from pact.net.members import parents, require_roots, root_keys
from pact.observe.runs import THEN, WriterRule
from pact.values import DEFAULT_SOCKET

DEFAULT_PATH: Final = "/etc/pact/agent.toml"


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
    severity: dict[str, float] = field(default_factory=dict)  # where it differs from the kind's own
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
    shell_roles: list[str] = field(default_factory=lambda: ["admin"])
    shell_idle_ns: int = 3600 * 1_000_000_000
    shell_detached_ns: int = 300 * 1_000_000_000
    shell_sessions: int = 16
    shell_tasks: int = 4096
    shell_transcript: bool = True
    shell_root: list[str] = field(default_factory=list)
    hooks_dir: str = "/etc/pact/hooks.d"
    hooks_timeout_ns: int = 10_000_000_000
    parents: list[Parent] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    sealed: bool = False
    rack: str = ""
    alone_ns: int = 600_000_000_000
    secret: str = ""
    writers: list[WriterRule] = field(default_factory=list)
    scheduler: str = "none"
    drain: bool = False
    scheduler_node: str = ""  # the node's name there, if it is another one
    scheduler_bin: str = ""
    scheduler_jobs: str = "/etc/pact/scheduler/jobs"
    scheduler_control: str = "/etc/pact/scheduler/node"
    given: frozenset[str] = frozenset()  # fields that the command line has set

    def settings(self) -> Settings:
        """The settings that decisions read, in integers."""
        from pact.resources import dimensions, severities

        return Settings(
            base_ns=self.base_ns,
            sensitivity_n=billionths(self.sensitivity),
            floor_ns=self.floor_ns,
            emergency_ns=self.emergency_ns,
            enforce=self.enforce,
            on_busy_retry=self.on_busy_retry,
            retry_ns=self.retry_ns,
            max_resources=self.max_resources,
            alone_ns=self.alone_ns,
            weights_n={d: billionths(w) for d, w in self.weights.items()},
            severity_n={k: billionths(s) for k, s in {**severities(), **self.severity}.items()},
            dimensions=dimensions(),
        )


def _patterns(value: Any) -> list[str]:
    """Refuse patterns that can match nothing: their author would believe that a resource is ignored, and it would be
    rolled back."""
    from pact.declared.never import why_never

    for pattern in texts(value):
        why = why_never(pattern)
        if why:
            raise ValueError(f"has {pattern!r}, which can match nothing: {why}")
    return list(value)


def _severity(value: Any) -> dict[str, float]:
    """Severities of known kinds."""
    from pact.resources import severities

    whole = a_table(severities(), "kind")(value)
    return {kind: whole[kind] for kind in value}


def _roles(value: Any) -> list[str]:
    """Roles of people."""
    known = ("viewer", "ops", "admin")
    for role in texts(value):
        if role not in known:
            raise ValueError(f"must be a list of {', '.join(known)}")
    return list(value)


def _writers(value: Any) -> list[WriterRule]:
    """Rules for writers: globs, and what becomes of what they write."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError("is a list of tables: write [[writer]]")
    rules = [_writer(v, at) for at, v in enumerate(value, 1)]
    for at, rule in enumerate(rules):
        over = next((n for n, above in enumerate(rules[:at], 1) if above.then != rule.then and above.covers(rule)), 0)
        if over:
            raise ValueError(
                f"{at + 1} can never hold: {over} above it describes the same writers, and the first rule counts"
            )
    return rules


def _writer(value: Mapping[str, Any], at: int) -> WriterRule:
    who, known = ("unit", "command", "user", "cgroup"), ("unit", "command", "user", "cgroup", "then")
    for key, text in value.items():
        if key not in known:
            raise ValueError(f"{at} has the unknown key {key!r}: {near(key, dict.fromkeys(known))}")
        if not isinstance(text, str) or not text:
            raise ValueError(f"{at}: {key} must be a string")
    if not any(key in value for key in who):
        raise ValueError(f"{at} names nobody: it needs one of {', '.join(who)}")
    if value.get("then") not in THEN:
        raise ValueError(f"{at}: then must be one of {', '.join(THEN)}")
    return WriterRule(**value)


#: Keys that stand outside the sections.
TOP: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {"writer": ("writers", _writers)}

#: section -> key -> (field of Config, check)
KEYS: Final[Mapping[str, Mapping[str, tuple[str, Callable[[Any], Any]]]]] = {
    "node": {"name": ("name", a_name), "cluster": ("cluster", a_name)},
    "state": {
        "dir": ("state_dir", a_text),
        "file_limit": ("file_limit", a_size),
        "store_limit": ("store_limit", a_size),
        "keep": ("keep_ns", a_duration),
        "verify": ("verify", a_count(1, 1_000_000_000)),
    },
    "control": {"socket": ("socket", a_text)},
    "declared": {"files": ("declared", texts)},
    "mode": {"enforcement": ("enforce", lambda v: a_choice("enforce", "observe")(v) == "enforce")},
    "window": {
        "base": ("base_ns", a_duration),
        "sensitivity": ("sensitivity", a_number(0, 1e6)),
        "floor": ("floor_ns", a_notice),
        "emergency": ("emergency_ns", a_duration),
    },
    "drift": {
        "weights": ("weights", a_table({d: DEFAULT_WEIGHTS[d] for d in DIMENSIONS}, "dimension")),
        "severity": ("severity", _severity),
        "ignore": ("ignore", _patterns),
    },
    "observe": {
        "rescan": ("rescan_ns", a_duration),
        "full": ("full_ns", a_duration),
        "fanotify": ("fanotify", a_bool),
        "inotify": ("inotify", a_bool),
        "realtime": ("realtime", a_bool),
        "proc_connector": ("proc_connector", a_bool),
        "cpus": ("cpus", cpus),
    },
    "rollback": {
        "on_busy": ("on_busy_retry", lambda v: a_choice("fail", "retry")(v) == "retry"),
        "retry": ("retry_ns", a_duration),
        "max_resources": ("max_resources", a_count(1, 1_000_000)),
    },
    "access": {"admin_groups": ("admin_groups", texts), "ops_groups": ("ops_groups", texts)},
    "notify": {"terminals": ("terminals", a_bool)},
    "scheduler": {
        "kind": ("scheduler", a_choice("none", "slurm", "pbs", "hooks")),
        "drain": ("drain", a_bool),
        "node": ("scheduler_node", a_name),
        "bin": ("scheduler_bin", a_text),
        "jobs": ("scheduler_jobs", a_text),
        "control": ("scheduler_control", a_text),
    },
    "shell": {
        "roles": ("shell_roles", _roles),
        "idle": ("shell_idle_ns", a_duration),
        "detached": ("shell_detached_ns", a_duration),
        "sessions": ("shell_sessions", a_count(0, 4096)),
        "tasks": ("shell_tasks", a_count(16, 4_000_000)),
        "transcript": ("shell_transcript", a_bool),
        "root": ("shell_root", texts),
    },
    "hooks": {"dir": ("hooks_dir", a_text), "timeout": ("hooks_timeout_ns", a_duration)},
    "cluster": {
        "parents": ("parents", parents),
        "rack": ("rack", a_rack),
        "alone": ("alone_ns", a_notice),
        "roots": ("roots", root_keys),
        "sealed": ("sealed", a_bool),
    },
    "keys": {"secret": ("secret", a_text)},
}


def load(path: str | None) -> Config:
    """Read and check a configuration. Without a path the default file is read if it exists. Raises ConfigError."""
    if path is None:
        if not os.path.exists(DEFAULT_PATH):
            return Config()
        path = DEFAULT_PATH
    config = Config(path=path)
    fill(path, KEYS, config, top=TOP)
    if config.parents and not config.secret:
        raise ConfigError(f"{path}: [cluster] parents needs [keys] secret", "pact keygen makes a key")
    require_roots(path, config)
    return config
