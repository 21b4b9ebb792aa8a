"""The fleet in words: its head, its sections, and what is said of it in lines. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pact.cli.names import few, folded
from pact.cli.top.fleet import ROOT, Fleet, Told
from pact.cli.top.node import STYLES
from pact.cli.top.text import Clock, Column, Row, Section, Span, shown

ROWS: Final = 100  # in a section
NAMES_MAX: Final = 200  # names that are folded; beyond it their first ones stand for them
FEW: Final = 4  # folded sets in one cell
ALIKE_MS: Final = 30_000  # windows of one person for one thing that end within this time are one row
#: The gravest first.
ORDER: Final = (
    "emergency",
    "failed",
    "blocked",
    "drifted",
    "away",
    "unknown",
    "unconfigured",
    "committed",
    "connected",
)
WELL: Final = frozenset({"committed", "connected"})

Names = tuple[str, ...]


# -- the head ---------------------------------------------------------------------------------------------------------


def headline(fleet: Fleet) -> list[Span]:
    about = fleet.about
    if not fleet.known:
        return [("the fleet", "title"), ("  nothing is known yet", "dim")]
    total = sum(fleet.shown_counts().values())
    of = f" of {len(fleet.nodes)}" if fleet.filter is not None else ""
    out: list[Span] = [
        (f"{shown(about.get('cluster') or 'default', 40)} ", "title"),
        (f" {total}{of} node{'' if total == 1 and not of else 's'}", ""),
    ]
    counts = fleet.shown_counts()
    for state in sorted(counts, key=lambda s: ORDER.index(s) if s in ORDER else -1):
        out += [("  ", ""), (f"{counts[state]} {shown(state, 20)}", STYLES.get(state, ""))]
    return out


def alerts(fleet: Fleet) -> list[Span]:
    out: list[Span] = []
    for h in fleet.holds:
        ends = _clock_of(h.get("ends"))
        text = f"{shown(h.get('hold'), 20)} by {shown(h.get('owner'), 80)}: {shown(h.get('reason'))}"
        out.append((f"NOTHING ROLLS BACK ANYWHERE until {ends}: {text}", "alarm"))
    if fleet.about.get("trouble"):
        out.append((f"the root: {shown(fleet.about['trouble'])}", "bad"))
    if fleet.about.get("catching_up"):
        out.append(("the root reads older records: some changes are not shown yet", "warn"))
    if fleet.filter_text:
        out.append((f"only {shown(fleet.filter_text)}   (/ and Enter shows all again)", "warn"))
    if missing := fleet.missing:
        out.append((f"not known: {few_of(tuple(missing))}", "warn"))
    untracked = fleet.about.get("untracked")
    if isinstance(untracked, int) and untracked and fleet.wanted is None:
        out.append((f"something untracked on {untracked} node{'' if untracked == 1 else 's'}", "warn"))
    return out


# -- the sections -----------------------------------------------------------------------------------------------------

STATES: Final = (Column("", most=14), Column("", most=7, right=True), Column("", flex=1))
STOPPED: Final = (Column("node", flex=2), Column("state", most=8), Column("owner", most=16), Column("what", flex=3))
GROUPS: Final = (
    Column("group", most=8),
    Column("state", most=12),
    Column("left", most=9, right=True),
    Column("progress", most=26),
    Column("owner", most=16, drop=2),
    Column("message", flex=1, drop=1),
)
WINDOWS: Final = (
    Column("left", most=9, right=True),
    Column("node", flex=2),
    Column("owner", most=16),
    Column("what", flex=3),
)
HELD: Final = (Column("node", flex=1), Column("", flex=3))
WORK: Final = (Column("who", most=20), Column("where", flex=1))
NODES: Final = (
    Column("node", flex=1),
    Column("state", most=13),
    Column("left", most=9, right=True),
    Column("owner", most=16, drop=1),
    Column("what", flex=2, drop=2),
)
RECORDS: Final = (
    Column("time", most=8, drop=2),
    Column("node", most=20),
    Column("what", most=18),
    Column("who", most=14, drop=1),
    Column("", flex=1),
)


def sections(fleet: Fleet, now_s: float, now_ms: int) -> list[Section]:
    """``now_s`` and ``now_ms`` are one moment, on the clock of the screen and on the wall's."""
    if not fleet.known:
        return []
    windows, stopped, held = _gathered(fleet)
    shift_s = now_s - (now_ms + fleet.offset_ms) / 1000  # from the root's wall clock to the screen's
    sooner = heapq.nsmallest(ROWS, windows.items(), key=lambda w: (w[1][1], w[0]))
    rest = f"the first {ROWS} of {len(windows)}" if len(windows) > ROWS else ""
    return [
        Section("states", "Nodes", STATES, tuple(_states(fleet))),
        Section(
            "stopped",
            f"Blocked and failed ({len(stopped)})",
            STOPPED,
            tuple(
                Row(
                    (few_of(tuple(names)), (word, "bad"), shown(owner, 40), _what(count, first)),
                    key=_key("s", word, owner, first, why),
                    more=((shown(why), "bad"),) if why else (),
                )
                for (word, owner, first, why), (names, count) in list(stopped.items())[:ROWS]
            ),
            f"the first {ROWS} of {len(stopped)}" if len(stopped) > ROWS else "",
        ),
        Section("groups", "Groups", GROUPS, tuple(_group(g, shift_s) for g in fleet.groups[:ROWS])),
        Section(
            "windows",
            "Earliest ends",
            WINDOWS,
            tuple(
                Row(
                    (Clock(ends / 1000 + shift_s), few_of(tuple(names)), shown(owner, 40), _what(count, first)),
                    key=_key("w", owner, first, count, bucket),
                )
                for (owner, first, count, bucket), (names, ends) in sooner
            ),
            rest,
            "no window is open",
        ),
        Section(
            "held",
            "Emergencies and holds",
            HELD,
            tuple(
                Row((few_of(tuple(names)), (shown(text), "alarm")), key=_key("h", text))
                for text, names in list(held.items())[:ROWS]
            ),
        ),
        Section("work", "Who is working where", WORK, tuple(_workers(fleet))),
        Section("records", "Newest records", RECORDS, tuple(_records(fleet))),
    ]


Windows = dict[tuple[str, str, int, int], tuple[list[str], int]]
Stopped = dict[tuple[str, str, str, str], tuple[list[str], int]]


def _gathered(fleet: Fleet) -> tuple[Windows, Stopped, dict[str, list[str]]]:
    windows: Windows = {}
    stopped: Stopped = {}
    held: dict[str, list[str]] = {}
    for name, row in fleet.shown_busy():
        if row.held:
            held.setdefault(row.held, []).append(name)
        for _, word, owner, ends_ms, count, first, why, _group in row.changes:
            if word in ("blocked", "failed"):
                stopped.setdefault((word, owner, first, why), ([], count))[0].append(name)
            elif ends_ms is not None:
                key = (owner, first, count, ends_ms // ALIKE_MS)
                found = windows.get(key)
                if found is None:
                    windows[key] = ([name], ends_ms)
                else:
                    found[0].append(name)
                    if ends_ms < found[1]:
                        windows[key] = (found[0], ends_ms)
    return windows, stopped, held


def names_of(fleet: Fleet, section: str, key: str) -> list[str]:
    """The nodes of a row."""
    if section == "states":
        test = fleet.filter or (lambda name: True)
        return [n for n, t in fleet.nodes.items() if t.state == key and test(n)]
    if section == "records":
        return [key.partition("\n")[2]] if key.partition("\n")[2] in fleet.nodes else []
    if section == "groups":
        return [n for n, t in fleet.shown_busy() if any(c[7] == key for c in t.changes)]
    windows, stopped, held = _gathered(fleet)
    if section == "windows":
        return next((n for k, (n, _) in windows.items() if _key("w", *k) == key), [])
    if section == "stopped":
        return next((n for k, (n, _) in stopped.items() if _key("s", *k) == key), [])
    if section == "held":
        return next((n for k, n in held.items() if _key("h", k) == key), [])
    if section == "work":
        return [n for n, t in fleet.shown_busy() if any(u == key for u in _users(t))]
    return []


def nodes_section(fleet: Fleet, title: str, names: Collection[str], now_s: float, now_ms: int) -> Section:
    """Some nodes, each in a row; the gravest first."""
    shift_s = now_s - (now_ms + fleet.offset_ms) / 1000
    there = [(n, t) for n in names if (t := fleet.nodes.get(n)) is not None]
    first = heapq.nsmallest(
        5 * ROWS, there, key=lambda x: (ORDER.index(x[1].state) if x[1].state in ORDER else -1, natural(x[0]))
    )
    note = f"the first {5 * ROWS} of {len(there)}" if len(there) > 5 * ROWS else ""
    rows = tuple(_node_row(name, row, shift_s) for name, row in first)
    return Section("nodes", title, NODES, rows, note, "none of them is known now")


def _node_row(name: str, row: Told, shift_s: float) -> Row:
    ends = [c[3] for c in row.changes if c[3] is not None]
    owners = ", ".join(dict.fromkeys(shown(c[2], 40) for c in row.changes))
    what = _what(sum(c[4] for c in row.changes), row.changes[0][5]) if row.changes else ""
    clock: Clock | str = Clock(min(ends) / 1000 + shift_s) if ends else ""
    state = (shown(row.state, 20), STYLES.get(row.state, ""))
    return Row((shown(name, 253), state, clock, owners, shown(row.held) or what), key=name)


def natural(name: str) -> tuple[Any, ...]:
    """Names in the order of their numbers."""
    parts: list[Any] = []
    digits = ""
    for char in name + "\0":
        if char.isascii() and char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((1, int(digits[:18]), ""))
            digits = ""
        parts.append((0, 0, char))
    return tuple(parts)


def _key(*parts: object) -> str:
    return "\n".join(map(str, parts))


def few_of(names: Names) -> str:
    """A node set in few words, however many they are."""
    if len(names) == 1:
        return shown(names[0], 253)
    if len(names) > NAMES_MAX:
        return f"{few([shown(n, 253) for n in names[:3]], 3)} … ({len(names)})"
    sets = folded(sorted((shown(n, 253) for n in names), key=natural))
    more = f" and {len(sets) - FEW} more" if len(sets) > FEW else ""
    return ",".join(sets[:FEW]) + f"{more} ({len(names)})"


def _what(count: int, first: str) -> str:
    return f"{shown(first)} and {count - 1} more" if count > 1 else shown(first)


def _states(fleet: Fleet) -> Iterator[Row]:
    counts = fleet.shown_counts()
    named: dict[str, list[str]] = {s: [] for s, n in counts.items() if s not in WELL and n <= NAMES_MAX}
    if named:
        test = fleet.filter
        for name, row in fleet.nodes.items():
            if row.state in named and (test is None or test(name)):
                named[row.state].append(name)
    for state in sorted(counts, key=lambda s: ORDER.index(s) if s in ORDER else -1):
        found = tuple(named.get(state, ()))
        yield Row(
            ((shown(state, 20), STYLES.get(state, "")), str(counts[state]), few_of(found) if found else ""), key=state
        )


def _group(g: Mapping[str, Any], shift_s: float) -> Row:
    members, done = int(g.get("members") or 0), int(g.get("done") or 0)
    full = 10 * min(done, members) // members if members else 0
    progress = f"{'█' * full}{'░' * (10 - full)} {done} of {members}"
    word = str(g.get("state", ""))
    ends = g.get("ends_ms")
    more: list[Span] = []
    if g.get("decision"):
        more.append((f"{shown(g['decision'], 20)}: {shown(g.get('why') or 'decided')}", ""))
    for node, why, users in (g.get("blocked") or ())[:4]:
        by = ", ".join(
            f"{shown(h.get('command') or h.get('how'), 60)} (pid {h.get('pid')}, {shown(h.get('user') or '?', 40)})"
            for h in users
        )
        more.append((f"{shown(node, 253)}: {by or shown(why)}", "bad"))
    beyond = int(g.get("in_way") or 0) - min(4, len(g.get("blocked") or ()))
    if beyond > 0:
        more.append((f"and {beyond} more nodes", "bad"))
    return Row(
        (
            (shown(g.get("id"), 20), "bold"),
            (shown(word, 20), STYLES.get(word, "warn")),
            Clock(ends / 1000 + shift_s) if isinstance(ends, int) else ("-", "dim"),
            progress,
            shown(g.get("owner"), 40),
            shown(g.get("message")),
        ),
        key=str(g.get("id")),
        more=tuple(more),
    )


def _users(row: Told) -> set[str]:
    return {str(c[2]) for c in row.changes} | {str(s[1]) for s in row.sessions}


def _workers(fleet: Fleet) -> Iterator[Row]:
    for user, where in _work(fleet):
        yield Row(((shown(user, 40), "bold"), where), key=user)


def _work(fleet: Fleet) -> Iterator[tuple[str, str]]:
    """Who, and where: people in sessions first, then those with open changes."""
    inside: dict[str, list[str]] = {}
    changed: dict[str, list[str]] = {}
    for name, row in fleet.shown_busy():
        for user in {str(s[1]) for s in row.sessions}:
            inside.setdefault(user, []).append(name)
        for user in {str(c[2]) for c in row.changes}:
            changed.setdefault(user, []).append(name)
    for user in heapq.nsmallest(ROWS, {**inside, **changed}, key=lambda u: (u not in inside, u)):
        parts = [f"in a session on {few_of(tuple(inside[user]))}"] if user in inside else []
        parts += [f"changes on {few_of(tuple(changed[user]))}"] if user in changed else []
        yield user, ", ".join(parts)


def _records(fleet: Fleet) -> Iterator[Row]:
    test = fleet.filter
    for r in fleet.records:
        if test is not None and not test(r.node):
            continue
        name = "root" if r.node == ROOT else shown(r.node, 253)
        cells = (_time(r.ms), name, shown(r.type, 40), shown(r.user, 40), (shown(r.text), "dim"))
        yield Row(cells, key=f"{r.gseq}\n{r.node}")


def _time(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000):%H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a node's clock may say anything
        return "?"


def _clock_of(text: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return "?"


# -- for --plain ------------------------------------------------------------------------------------------------------


def spoken(fleet: Fleet) -> dict[str, str]:
    """What there is to say, without clocks."""
    if not fleet.known:
        return {}
    out = {"nodes": "".join(text for text, _ in headline(fleet))}
    for n, (text, _) in enumerate(alerts(fleet)):
        out[f"alert {n}"] = text
    windows, stopped, held = _gathered(fleet)
    for (word, owner, first, why), (names, count) in list(stopped.items())[:ROWS]:
        text = f"{few_of(tuple(names))}: a change of {shown(owner, 40)} is {word}: {_what(count, first)}"
        out[_key("s", word, owner, first, why)] = text + (f"; {shown(why)}" if why else "")
    for g in fleet.groups[:ROWS]:
        text = f"group {shown(g.get('id'), 20)} of {shown(g.get('owner'), 40)} is {shown(g.get('state'), 20)}"
        out[f"group {g.get('id')}"] = f"{text}, {g.get('done') or 0} of {g.get('members') or 0} members done"
    for text, names in list(held.items())[:ROWS]:
        out[_key("h", text)] = f"{few_of(tuple(names))}: {shown(text)}"
    for k, (names, ends) in heapq.nsmallest(ROWS, windows.items(), key=lambda w: (w[1][1], w[0])):
        text = f"{few_of(tuple(names))}: a window of {shown(k[0], 40)} until {_time(ends)}: {_what(k[2], k[1])}"
        out[_key("w", *k)] = text
    out |= {f"work {user}": f"{shown(user, 40)} is {where}" for user, where in _work(fleet) if "session" in where}
    return out
