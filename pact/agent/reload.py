"""SIGHUP: the configuration is read again. Settings for decisions and roles change at once; settings of the agent's own
structure (places, sockets, observers, parents) need a restart, and each such key is named. A file that cannot be read,
or is wrong, changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from pact import __version__
from pact.agent.config import KEYS, TOP, Config, load
from pact.core.node.events import Reconfigured
from pact.errors import PactError
from pact.host import owned
from pact.host.notify import log

if TYPE_CHECKING:
    from pact.agent.driver import Driver

#: Fields of the configuration that decisions read.
DECIDING: Final = frozenset(
    {
        "enforce",
        "base_ns",
        "sensitivity",
        "floor_ns",
        "emergency_ns",
        "weights",
        "severity",
        "on_busy_retry",
        "retry_ns",
        "max_resources",
        "alone_ns",
    }
)
ROLES: Final = frozenset({"admin_groups", "ops_groups"})
HOOKS: Final = frozenset({"hooks_dir", "hooks_timeout_ns"})
SHELL: Final = frozenset(field for field, _ in KEYS["shell"].values())
AT_ONCE: Final = DECIDING | ROLES | HOOKS | SHELL | {"terminals", "writers"}
NAMES: Final = {
    **{field: f"[{section}] {key}" for section, keys in KEYS.items() for key, (field, _) in keys.items()},
    **{field: f"[[{key}]]" for key, (field, _) in TOP.items()},
}


def reread(agent: Driver) -> None:
    """Never raises: errors are logged."""
    if agent.journal_error:
        log("the configuration was not read again: the journal cannot be written; repeat it then", 4)
        return
    try:
        fresh = load(agent.config.path or None)
        if fresh.path:
            owned.require(fresh.path, "configuration")
    except PactError as exc:
        log(f"the configuration was not read again: {exc.message}" + (f" ({exc.hint})" if exc.hint else ""), 4)
        return
    changed = different(agent.config, fresh)
    later = [NAMES[f] for f in changed if f not in AT_ONCE]
    now = [f for f in changed if f in AT_ONCE]
    for field in now:
        setattr(agent.config, field, getattr(fresh, field))
    if ROLES & set(now):
        agent.control.name_groups(fresh.admin_groups, fresh.ops_groups)
    agent.notices.enabled = agent.config.terminals
    agent.watching.runs.use(agent.config.writers)
    agent.hooks.directory, agent.hooks.timeout_ns = agent.config.hooks_dir, agent.config.hooks_timeout_ns
    if DECIDING & set(now):
        agent.tell(Reconfigured(*agent.now(), agent.config.settings(), __version__))
        for resource in agent.node.state.member_of:  # computed again with the new weights
            agent.watching.touch(resource, None)
    log("the configuration was read again: " + (", ".join(NAMES[f] for f in now) or "nothing that runs has changed"))
    if later:
        log(f"restart the agent for {', '.join(later)}", 4)


def different(running: Config, fresh: Config) -> list[str]:
    """The fields in which the two differ, as far as the file decides them."""
    return [
        f.name
        for f in dataclasses.fields(Config)
        if f.name in NAMES and f.name not in running.given and getattr(running, f.name) != getattr(fresh, f.name)
    ]
