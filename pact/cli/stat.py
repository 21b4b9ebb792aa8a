"""``pact diff --stat``: one line for each drifted resource, and a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pact.cli.render import clean

VALUE_MAX: Final = 24
PARTS_MAX: Final = 4
#: Attributes that say nothing which another line does not say better.
QUIET: Final = frozenset({"sha256", "size"})


def lines(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of the resources of a ``diff`` answer."""
    rows = [(clean(e["id"]), _changed(e)) for e in entries]
    if not rows:
        return []
    width = min(max(len(name) for name, _ in rows), 60)
    kinds = Counter(name.partition(":")[0] for name, _ in rows)
    of = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    return [*(f" {name:<{width}}  {what}" for name, what in rows), f" {len(rows)} changed ({of})"]


def _changed(entry: Mapping[str, Any]) -> str:
    declared, actual = entry["declared"], entry["actual"]
    if declared is None:
        return "new"
    if actual is None:
        return "gone"
    parts = []
    text = (entry.get("diff") or "").splitlines()
    plus = sum(line.startswith("+") and not line.startswith("+++") for line in text)
    minus = sum(line.startswith("-") and not line.startswith("---") for line in text)
    if plus or minus:
        parts.append(f"+{plus} -{minus}")
    elif "sha256" in declared and declared["sha256"] != actual.get("sha256"):
        parts.append("content")
    for key in sorted(declared.keys() - QUIET):  # what is not declared may be anything
        if declared.get(key) != actual.get(key):
            parts.append(f"{clean(key)} {_value(declared.get(key))} -> {_value(actual.get(key))}")
    more = f", and {len(parts) - PARTS_MAX} more" if len(parts) > PARTS_MAX else ""
    return ", ".join(parts[:PARTS_MAX]) + more


def _value(value: Any) -> str:
    text = clean("-" if value is None else value if isinstance(value, str) else str(value))
    return text if len(text) <= VALUE_MAX else text[: VALUE_MAX - 1] + "…"
