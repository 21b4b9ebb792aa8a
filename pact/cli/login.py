"""One line at login, if the caller has open changes, or the node has a state that the caller should know. Else
nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pact.cli.render import clean, local_time


def line(doc: Mapping[str, Any]) -> str:
    """From the document of ``pact --json status``; ``""`` if there is nothing to report."""
    me = _login_uid()
    mine = [c for c in doc["changes"] if c["owner"]["uid"] in me and c["state"] != "rolling_back"]
    parts = []
    if mine:
        ends = min((c["deadline"] for c in mine if c["deadline"]), default=None)
        what = f"{len(mine)} change{'s' if len(mine) > 1 else ''} of yours {'are' if len(mine) > 1 else 'is'} open"
        parts.append(f"{what} on {clean(doc['node'])}" + (f", until {local_time(ends)} at the soonest" if ends else ""))
    waiting = [c["id"] for c in mine if c["state"] in ("blocked", "failed")]
    if waiting:
        parts.append(f"{', '.join(waiting)} {'need' if len(waiting) > 1 else 'needs'} a decision")
    if doc["emergency"]:
        parts.append(f"emergency by {clean(doc['emergency']['by'])}: {clean(doc['emergency']['reason'])}")
    return f"pact: {'; '.join(parts)} (pact status)" if parts else ""


def _login_uid() -> set[int]:
    """The uids of the person: the process's, and the login's behind ``sudo``."""
    out = {os.getuid()}
    try:
        with open("/proc/self/loginuid", encoding="ascii") as f:
            login = int(f.read())
    except (OSError, ValueError):
        return out
    return out | ({login} if login != 0xFFFFFFFF else set())
