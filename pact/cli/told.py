"""Records of sessions in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pact.core.units import format_duration
from pact.model import NS_PER_S

SESSIONS: Final = ("session_opened", "session_closed", "exec_begun", "executed")


def session_told(data: Mapping[str, Any]) -> str:
    """A session, or a command, that began or ended."""
    account = "" if data["account"] == data["owner"]["user"] else f" as {data['account']}"
    if "session" in data:
        who = f"{data['session']} of {data['owner']['user']}{account}"
    else:
        who = f"{data['owner']['user']}{account}: {data['command']}"
    if "from" in data:
        command = f": {data['command']}" if data.get("command") else ""
        where = f" on {data['terminal']}" if data["terminal"] else ""
        return f"{who} from {data['from']}{where}{command}"
    if "exit" not in data:
        return who
    how = (
        f"signal {data['signal']}" if data.get("signal") else f"exit {data['exit']}" if data["exit"] is not None else ""
    )
    long = format_duration(data["duration_ns"] // NS_PER_S * NS_PER_S) if data.get("duration_ns") is not None else ""
    left = f"left {data['left']} running" if data.get("left") and not data.get("why") else ""
    return "  ".join(filter(None, (who, how, f"after {long}" if long else "", data.get("why", ""), left)))
