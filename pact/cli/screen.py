"""``pact status`` on a terminal: one screen whatever the size of the drift, and never wider than the terminal.

Pure, except for the size of the terminal: a document goes in, lines with styles come out. Items that do not fit are
counted, and ``-v`` shows them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len

from pact.cli.names import folded
from pact.cli.render import (
    STORE_FULL,
    STYLE,
    View,
    clean,
    gone,
    left_of,
    local_time,
    nearly_full,
    untracked_places,
    who,
    why,
)
from pact.cli.service import service
from pact.cli.wrapping import INDENT, cut, cut_name, prose, wrapped

BAR_WIDTH: Final = 16
DETAILS: Final = ((12, None, 12), (6, None, 6), (3, None, 4), (2, 12, 3), (1, 8, 2), (1, 5, 1), (1, 3, 1), (1, 1, 1))
HOLDERS_SHOWN: Final = 3
WIDTH_MIN: Final = 20
PERSON: Final = View(terminal=True)
Line = tuple[str, str]  # text and style


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is shown: lines of names for a change, changes, and entries of every other list. ``None``: all."""

    names: int | None = None
    changes: int | None = None
    entries: int | None = None


def screen(doc: Mapping[str, Any], *, verbose: bool) -> list[Line]:
    """For the terminal's present size."""
    size = shutil.get_terminal_size()
    return page(doc, max(WIDTH_MIN, size.columns), size.lines - 1, verbose=verbose)


def page(doc: Mapping[str, Any], width: int, height: int, *, verbose: bool) -> list[Line]:
    """The lines, at most ``height`` of them unless ``verbose``, none wider than ``width`` cells."""
    if verbose:
        return [(cut(text, width), style) for text, style in _lines(doc, width, Limits())]
    lines: list[Line] = []
    for details in DETAILS:
        lines = [(cut(text, width), style) for text, style in _lines(doc, width, Limits(*details))]
        if len(lines) <= height:
            return lines
    last = lines[-1:]
    return [*lines[: max(1, height - 2)], (cut("… pact status -v shows all", width), "dim"), *last][: max(height, 2)]


# -- the parts ------------------------------------------------------------------------------------------------------


def _lines(doc: Mapping[str, Any], width: int, limits: Limits) -> Iterable[Line]:
    yield from _headline(doc, width)
    yield from _troubles(doc, width)
    if doc["drifted"]:
        parts = ", ".join(f"{d} {m:.3g}" for d, m in doc["dimensions"].items() if m)
        window = f"; a window has {left_of(doc['window_s'])}" if doc["mode"] == "enforce" else ""
        line = f"drift {doc['magnitude']:.3g} ({parts})"
        yield line + (window if cell_len(line + window) <= width else ""), "dim"
    changes = doc["changes"]
    for change in changes[: limits.changes]:
        yield from _change(doc, change, width, limits)
    hidden = changes[limits.changes :] if limits.changes is not None else []
    if hidden:
        resources = sum(len(c["resources"]) for c in hidden)
        yield f"and {len(hidden)} more changes of {resources} resources: pact status -v", "yellow"
    yield from _list(
        doc.get("trials", ()),
        limits.entries,
        lambda t: _row("trial", f"until {local_time(t['ends'])}, by {clean(t['by'])}", clean(t["resource"]), width),
        "trials",
    )
    new, more = untracked_places(doc)
    yield from _list(
        new,
        limits.entries,
        lambda u: _row("untracked", f"by {clean(u[1])}", clean(u[0]), width),
        "untracked",
        total=len(new) + more,
    )
    unread = sorted(doc.get("unreadable_resources", {}).items())
    yield from _list(
        unread,
        limits.entries,
        lambda item: [
            f"unreadable {cut_name(clean(item[0]), max(10, width - 11))}",
            *prose(PERSON.spoken(item[1]), width),
        ],
        "unreadable",
        total=doc["unreadable"],
        style="red",
    )
    yield from _list(doc["holds"], limits.entries, lambda h: _hold(h, width), "holds", style="magenta")
    for name, health in doc["observers"].items():
        if health != "ok":
            for line in prose(f"observer {name}: {clean(health)}", width, ""):
                yield line, "yellow"
    for text in (*doc.get("notes", ()), *service(doc)):
        for line in prose(clean(text), width, ""):
            yield line, "yellow"
    for line in _phrases(_next_step(doc), width):
        yield line, "dim"


def _headline(doc: Mapping[str, Any], width: int) -> Iterable[Line]:
    style = STYLE.get(doc["state"], "bold")
    counts = [f"{doc['drifted']} changed"] if doc["drifted"] else []
    counts += [f"{doc[key]} {key}" for key in ("untracked", "unreadable") if doc.get(key)]
    facts = ", ".join(counts) or f"{doc['declared']} declared"
    mode = "observe: nothing is rolled back" if doc["mode"] == "observe" else "enforce"
    mode += f", up {_rough(doc['up_s'])}" if "up_s" in doc else ""
    head = f"● {clean(doc['node'])}  {doc['state'].upper()}"
    line = f"{head}  {facts}    {mode}"
    if cell_len(line) <= width:
        yield line, style
        return
    yield f"{head}  {facts}" if cell_len(f"{head}  {facts}") <= width else head, style
    if cell_len(f"{head}  {facts}") > width:
        yield f"  {facts}", style
    yield f"  {mode}", "dim"


def _rough(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _troubles(doc: Mapping[str, Any], width: int) -> Iterable[Line]:
    """Conditions of the whole node."""
    emergency = doc["emergency"]
    if emergency:
        until = "its end has passed" if emergency["stale"] else f"until {local_time(emergency['ends'])}"
        text = f"EMERGENCY by {clean(emergency['by'])}, {until}: {clean(emergency['reason'])}"
        yield from ((line, "bold magenta") for line in prose(text, width, ""))
    cluster = doc.get("cluster")
    if cluster and not cluster["connected"]:
        until = cluster["alone_until"]
        waits = f": nothing is rolled back by itself until {local_time(until)}" if until else ""
        yield from ((line, "yellow") for line in prose(f"CUT OFF from the cluster{waits}", width, ""))
        if cluster.get("refused"):
            yield from ((line, "bold red") for line in prose(clean(cluster["refused"]), width, ""))
    behind = doc["journal"]["seq"] - doc["journal"]["replicated"] if cluster else 0
    if behind > 0:
        yield f"{behind} record{'s' if behind > 1 else ''} not at the root", "yellow"
    if nearly_full(doc):
        yield from ((line, "yellow") for line in prose(STORE_FULL, width, ""))
    if doc["journal"].get("unverified") and not doc["journal"].get("error"):
        text = f"older records of the journal are being verified, {doc['journal']['unverified']} are left"
        yield from ((line, "dim") for line in prose(text, width, ""))
    if doc["journal"].get("error"):
        text = f"JOURNAL {clean(doc['journal']['error'])}: nothing can be committed or undone"
        yield from ((line, "bold red") for line in prose(text, width, ""))
    if doc.get("unrecorded"):
        yield f"{doc['unrecorded']['count']} drifted resources are seen but not recorded", "red"


def _change(doc: Mapping[str, Any], change: Mapping[str, Any], width: int, limits: Limits) -> Iterable[Line]:
    """The owner, the time left, the resources; then the reason for its state, and the consumers that block it."""
    style = STYLE.get(change["state"], "")
    words = [change["id"] + (f" {change['group']}" if change.get("group") else "")]
    words += [clean(change["state"]).replace("_", " ")] if change["state"] != "open" else []
    words.append(who(change["owner"]))
    left_s, total_s = change["remaining_s"], doc.get("window_s") or 0
    if left_s is not None:
        words += [f"{left_of(left_s)} left", f"until {local_time(change['deadline'])}"]
    line = "  ".join(words)
    if left_s is not None and cell_len(line) > width:  # the end is the last thing to be cut
        yield "  ".join(words[:-1]), style
        line = INDENT + words[-1]
    if left_s is not None and total_s and cell_len(line) + 2 + BAR_WIDTH <= width:
        full = max(0, min(BAR_WIDTH, round(BAR_WIDTH * left_s / total_s)))
        line += "  " + "█" * full + "░" * (BAR_WIDTH - full)
    yield line, style
    count = len(change["resources"])
    before = f"{INDENT}{count}: " if count > 1 else INDENT
    for row in wrapped(folded(map(clean, change["resources"])), width, limits.names, before):
        yield row, ""
    if change.get("also"):
        users = list(dict.fromkeys(clean(o["user"]) for o in change["also"]))
        yield from ((row, "") for row in wrapped(users, width, 1, f"{INDENT}also changed by "))
    if change["reason"]:
        yield from ((row, style) for row in prose(why(change, PERSON), width))
    yield from _list(
        change["consumers"],
        HOLDERS_SHOWN if limits.entries else None,
        lambda h: [_holder(h, width)],
        "holders",
        before=INDENT,
    )


def _holder(holder: Mapping[str, Any], width: int) -> str:
    pid = f"{holder['pid']} " if holder.get("pid") else ""
    who = f"{INDENT}{pid}{clean(holder['user'] or holder['how'])}{gone(holder)}: "
    return who + cut_name(clean(holder["command"] or holder["path"]), max(10, width - cell_len(who)))


def _hold(hold: Mapping[str, Any], width: int) -> list[str]:
    what = clean(hold["change"] or ("the whole fleet" if str(hold["id"]).startswith("f") else "the node"))
    return prose(
        f"hold {hold['id']} on {what} by {clean(hold['owner'])} until {local_time(hold['ends'])}: "
        f"{clean(hold['reason'])}",
        width,
        "",
    )


def _row(what: str, facts: str, name: str, width: int) -> list[str]:
    """One line, if the name fits."""
    if cell_len(what) + cell_len(name) + cell_len(facts) + 3 <= width:
        return [f"{what} {name}  {facts}"]
    return [f"{what} {cut_name(name, width - len(what) - 1)}", *prose(facts, width)]


def _list(
    items: Iterable[Any],
    most: int | None,
    rows: Callable[[Any], list[str]],
    what: str,
    *,
    total: int | None = None,
    style: str = "",
    before: str = "",
) -> Iterable[Line]:
    listed = list(items)
    for item in listed[:most]:
        yield from ((row, style) for row in rows(item))
    more = (len(listed) if total is None else max(total, len(listed))) - len(listed[:most])
    if more > 0:
        yield f"{before}and {more} more {what}", style or "dim"


def _next_step(doc: Mapping[str, Any]) -> list[str]:
    """What the caller can do now."""
    role = doc.get("you", {}).get("role", "admin")
    stuck = [c["id"] for c in doc["changes"] if c["state"] in ("blocked", "failed")]
    if doc["journal"].get("error") and not doc["journal"].get("trusted", True):
        return ["pact journal verify names the record; import an export, or a backup, into a new state directory"]
    if doc["journal"].get("error"):
        return ["free space or mend the disk: then everything goes on by itself"]
    if role == "viewer":
        return ["pact diff shows what", "to settle it needs the role ops"] if doc["changes"] else []
    if doc["emergency"]:
        return ["pact emergency end --commit -m WHY keeps what was done", "--rollback undoes it", "--dry-run shows it"]
    if stuck:
        name = stuck[0]
        return [
            "pact diff shows what",
            f"pact rollback {name} tries again",
            f"pact commit {name} -m WHY keeps it",
            f"pact extend {name} 1h reopens it",
        ]
    if doc["changes"]:
        more = [] if doc["mode"] == "observe" else ["pact extend 30m waits"]
        return ["pact diff shows what", "pact commit -m WHY keeps it", "pact rollback undoes it", *more]
    if doc.get("untracked"):
        return ["pact diff shows what is new", "pact adopt ID keeps it", "pact rollback ID removes it"]
    if doc["state"] == "unconfigured":
        return ["pact adopt 'file:/etc/**' declares what the machine has", "pact declare FILE declares a file"]
    return []


def _phrases(phrases: Sequence[str], width: int) -> Iterable[str]:
    """Lines that break between phrases, if possible."""
    row = ""
    for phrase in phrases:
        if row and cell_len(row) + 2 + cell_len(phrase) > width:
            yield from prose(row, width, "")
            row = ""
        row += ("; " if row else "") + phrase
    yield from prose(row, width, "")
