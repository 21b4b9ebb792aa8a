"""All targets by name, and where each is written. Loading one loads nothing of the others' modules."""

from __future__ import annotations

import importlib
from typing import Final

from fuzz.kit import Target

#: Python's, which run on the package as it is.
PYTHON: Final = {
    **dict.fromkeys(
        ("json", "toml", "declared", "agent_toml", "aggregator_toml", "client_toml", "keys", "nodeset"), "texts"
    ),
    **dict.fromkeys(("socket", "request", "subscriptions", "http"), "entrances"),
    **dict.fromkeys(("import", "backup", "record", "replay"), "logs"),
    **dict.fromkeys(("frame", "relay", "root", "answer"), "tree"),
    "uplink": "uplinks",
    **dict.fromkeys(("shown", "client"), "shown"),
    **dict.fromkeys(("mountinfo", "proc"), "kernel"),
}
#: Those that need the package of ``build.py``.
NATIVE: Final = dict.fromkeys(
    ("c_json", "c_fanotify", "c_inotify", "c_connector", "c_proc", "c_maps", "c_link", "c_table", "c_norms", "c_wheel"),
    "native_targets",
)
ALL: Final = {**PYTHON, **NATIVE}
#: Not among them: what only tests run.
SELF: Final = {"canary": "canary"}


def load(name: str) -> Target:
    found: Target = importlib.import_module(f"fuzz.{({**ALL, **SELF})[name]}").TARGETS[name]
    return found
