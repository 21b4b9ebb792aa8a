"""Answers of many nodes on one page: equal statements stand once, with the set of their nodes.

Numbers that each node counts by itself (change numbers, sequence numbers, what its root has) and command lines are left
out: ``-v`` shows every node's own page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from pact.cli.command import Documents
from pact.cli.render import STYLE, View, clean, diff_lines, event_text, local_time, status_lines
from pact.cli.roots import fold

Lines = Iterable[tuple[str, str]]  # text and style
#: The gravest first.
ORDER: Final = ("emergency", "failed", "blocked", "drifted", "unconfigured", "committed")
UNRECORDED: Final = (("(drifted, but the journal cannot be written)", ""),)
TOGETHER: Final = timedelta(seconds=60)  # events on many nodes within this time count as simultaneous


def _set(names: Sequence[str]) -> str:
    return fold(names) + (f" ({len(names)})" if len(names) > 1 else "")


def status(documents: Documents, silent: int, view: View) -> Lines:
    """Counts by state, then one line for each set of nodes with equal statements."""
    counts: dict[str, int] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    for doc, names in documents:
        state = clean(doc["state"])
        counts[state] = counts.get(state, 0) + len(names)
        _, *lines = status_lines(doc, view)
        mode = " (observe mode)" if doc["mode"] == "observe" else ""
        text = "; ".join([state + mode, *(line.strip() for line in lines if not line.startswith("magnitude"))])
        texts.setdefault((state, text), []).extend(names)
    rank = {state: i for i, state in enumerate(ORDER)}
    parts = [f"{n} {state}" for state, n in sorted(counts.items(), key=lambda c: rank.get(c[0], 0))]
    yield ", ".join([*parts, *([f"{silent} without an answer"] if silent else [])]), "bold"
    for (state, text), names in sorted(texts.items(), key=lambda t: (rank.get(t[0][0], 0), -len(t[1]), t[1])):
        yield f"{_set(names)}: {text}", STYLE.get(state, "")


def diff(documents: Documents, silent: int, view: View) -> Lines:
    """By resource, then by node sets."""
    found: dict[str, dict[tuple[tuple[str, str], ...], list[str]]] = {}
    quiet: list[str] = []
    for doc, names in documents:
        for entry in doc["resources"]:
            lines = tuple(diff_lines(entry, View(ids=False)))
            found.setdefault(entry["id"], {}).setdefault(lines, []).extend(names)
        for resource in doc.get("unrecorded", ()):
            found.setdefault(resource, {}).setdefault(UNRECORDED, []).extend(names)
        for new in doc.get("untracked", ()):
            who = clean(new.get("owner", {}).get("user", ""))
            lines = ((f"({who})", "bold"), ("  untracked", ""))
            found.setdefault(new["resource"], {}).setdefault(lines, []).extend(names)
        if not any(doc.get(key) for key in ("resources", "unrecorded", "untracked")):
            quiet += names
    for resource, texts in sorted(found.items()):
        yield clean(resource), "bold"
        for lines, names in sorted(texts.items(), key=lambda item: (-len(item[1]), item[1])):
            (head, _), *rest = lines
            who = head.removeprefix(clean(resource)).strip()
            yield f"  {_set(names)}  {who}".rstrip(), "bold"
            yield from ((f"  {text}", style) for text, style in rest)
    if quiet:
        yield f"{_set(quiet)}: no drift", ""


def log(documents: Documents, silent: int, view: View) -> Lines:
    """Equal events within a minute on many nodes are one line; the newest first."""
    rows = sorted(
        ((row["record"], name) for doc, names in documents for row in doc["rows"] for name in names),
        key=lambda item: (item[0]["time"], item[1], item[0]["seq"]),
    )
    lines: list[tuple[datetime, str, list[str]]] = []
    newest: dict[str, int] = {}
    for record, name in rows:
        text, then = event_text(record, view), datetime.fromisoformat(record["time"])
        at = newest.get(text)
        if at is not None and then - lines[at][0] <= TOGETHER and name not in lines[at][2]:
            lines[at][2].append(name)
        else:
            newest[text] = len(lines)
            lines.append((then, text, [name]))
    for then, text, names in reversed(lines):
        when = local_time(then.isoformat()) if view.terminal else f"{then:%Y-%m-%dT%H:%MZ}"
        yield f"{when}  {_set(names)}: {text}", ""
    quiet = sorted(name for doc, names in documents if not doc["rows"] for name in names)
    if quiet:
        yield f"{_set(quiet)}: no such records", ""
