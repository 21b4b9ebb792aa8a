"""What stands in a public record, in words of bounded length for people. Pure; nodes write records, so nothing is
believed.  # V6
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pact.model import JsonRead

NAME_MAX: Final = 253
TEXT_MAX: Final = 200


def number(value: object) -> int:
    """Raises ValueError for what is no number of 64 bits."""
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError("no number")
    return value


def plain(value: object, most: int = NAME_MAX) -> str:
    return value[:most] if type(value) is str else ""


def program(command: object) -> str:
    """The name of the program: no more of a command line is shown to viewers.  # S2"""
    return plain(command).split(" ", maxsplit=1)[0].rpartition("/")[2][:40]


def owner_of(owner: object) -> tuple[str, str]:
    """Who, and with which program."""
    if not isinstance(owner, dict):
        return plain(owner, 80), ""
    return plain(owner.get("user"), 80) or "unattributed", program(owner.get("command"))


def holder(found: object) -> str:
    """``python3 (pid 123, ann, job 7)``."""
    if not isinstance(found, dict):
        return ""
    about = [f"pid {found['pid']}"] if type(found.get("pid")) is int and found["pid"] else []
    about += [
        t for t in (plain(found.get("user"), 40), f"job {plain(found['job'], 40)}" if found.get("job") else "") if t
    ]
    name = program(found.get("command")) or plain(found.get("how"), 40)
    return f"{name} ({', '.join(about)})" if about else name


def wall_of(time: str) -> int:
    """Raises ValueError."""
    return int(datetime.fromisoformat(time).timestamp() * 1_000_000) * 1000


def said(type_: str, data: JsonRead) -> str:
    """The most telling words of a record's data, for any type: what, of whom, why. Things that nobody declared are only
    counted: what they are, ``pact status`` says."""
    if type_.startswith("untracked"):
        found = data.get("resources")
        count = len(found) if isinstance(found, dict | list) else 0
        return "1 thing" if count == 1 else f"{count} things"
    out = []
    for key in ("group", "change", "hold", "resource", "observer", "request"):
        if type(data.get(key)) is str and data[key]:
            out.append(plain(data[key], 120))
    if type_ in ("exec_begun", "executed"):
        out.append(program(data.get("command")))
    found = data.get("resources")
    if isinstance(found, dict | list) and found:
        names = [plain(r, 120) for r in list(found)[:2]]
        out.append(", ".join(names) + (f" and {len(found) - 2} more" if len(found) > 2 else ""))
    for key in ("decision", "outcome", "reason", "why", "message"):
        if type(data.get(key)) is str and data[key]:
            out.append(plain(data[key], TEXT_MAX))
    return " · ".join(filter(None, out))[: 2 * TEXT_MAX]
