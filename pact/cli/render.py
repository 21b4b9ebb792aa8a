"""What people see. Colours, widths and times only on a terminal; elsewhere plain lines that fold in ``clush -b``.

Names come from file systems and processes: nothing is printed before control characters are made visible.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.core.units import format_duration
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from rich.console import Console

STYLE: Final = {
    "committed": "bold green", "drifted": "bold yellow", "open": "yellow", "held": "cyan", "blocked": "bold red",
    "failed": "bold red", "emergency": "bold white on red", "rolling_back": "magenta", "ok": "green",
}  # fmt: skip
PID: Final = re.compile(r" \(pid \d+\)|(?<=\S)\[\d+\](?= of )")  # the second: as versions before this one wrote it
BAR_WIDTH: Final = 24
BAR_FROM_COLUMNS: Final = 100  # on a narrower terminal the resources need the room
RESOURCES_SHOWN: Final = 8
MINUTES_FROM_S: Final = 120


def clean(text: Any) -> str:
    """Text whose control and format characters cannot move a terminal."""
    out = []
    for char in str(text):
        category = unicodedata.category(char)
        bad = category in ("Cc", "Cf", "Zl", "Zp", "Cs")
        out.append(f"\\x{ord(char):02x}" if bad and ord(char) < 256 else f"\\u{ord(char):04x}" if bad else char)
    return "".join(out)


def say(text: str = "", *, flush: bool = False) -> None:
    """Lines for people. Whatever a node wrote moves no terminal, also where nobody thought of cleaning it."""
    print("\n".join(clean(line) for line in text.split("\n")), flush=flush)


class _Emitted:
    """Which standard output has a JSON document already. One program has one, tests have several."""

    to: Any = None


def emitted() -> bool:
    return _Emitted.to is sys.stdout


def emit(value: Any) -> None:
    """One JSON document."""
    _Emitted.to = sys.stdout
    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


emit_line = emit


def on_terminal() -> bool:
    return sys.stdout.isatty()


def local_time(text: str | None) -> str:
    """An RFC 3339 time as the clock on the wall shows it."""
    if not text:
        return "-"
    then = datetime.fromisoformat(text).astimezone()
    today = datetime.now().astimezone().date() == then.date()
    return f"{then:%H:%M:%S}" if today else f"{then:%Y-%m-%d %H:%M:%S}"


def until(text: str | None, before: str = " until ") -> str:
    """`` until 23:31:35`` on a terminal; nothing where equal answers must be equal."""
    return f"{before}{local_time(text)}" if text and on_terminal() else ""


def spoken(text: str) -> str:
    """A message for people: elsewhere than on a terminal without the process ids that it names."""
    return clean(text if on_terminal() else PID.sub("", text))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(int(seconds * NS_PER_S) // NS_PER_S * NS_PER_S)


# -- status ---------------------------------------------------------------------------------------------------------


def status_page(doc: Mapping[str, Any], *, times: bool = False) -> None:
    """``times``: somebody looks, although the page is one of many that are folded."""
    if on_terminal():
        _status_terminal(doc)
    else:
        for line in status_lines(doc, times=times):
            say(line)


def _lag(doc: Mapping[str, Any]) -> str:
    """What the root has not acknowledged yet; nothing on a node that has no root."""
    behind = doc["journal"]["seq"] - doc["journal"]["replicated"] if doc.get("cluster") else 0
    return f"{behind} record{'s' if behind > 1 else ''} not at the root" if behind > 0 else ""


def _left(change: Mapping[str, Any]) -> str:
    """In whole minutes while there are some: nodes whose windows began together say the same."""
    left_s = change["remaining_s"]
    if left_s is None:
        return ""
    return f", {_duration(left_s if left_s < MINUTES_FROM_S else left_s // 60 * 60)} left"


def _held(hold: Mapping[str, Any], node: str, fleet: str) -> str:
    """What a hold is on; the whole fleet's are named by the root."""
    return clean(hold["change"] or (fleet if str(hold["id"]).startswith("f") else node))


def status_lines(doc: Mapping[str, Any], *, times: bool = False) -> Iterable[str]:
    """Plain status: no times, no pids, no node name, so that equal nodes answer equally."""
    yield f"state: {clean(doc['state'])}" + (" (observe mode)" if doc["mode"] == "observe" else "")
    yield f"declared: {doc['declared']}, drifted: {doc['drifted']}, unreadable: {doc['unreadable']}"
    if doc.get("untracked"):
        yield f"untracked: {doc['untracked']}: {untracked_line(doc)}"
    if doc["drifted"]:
        parts = [f"{d} {m:.4g}" for d, m in doc["dimensions"].items() if m]
        yield f"magnitude: {doc['magnitude']:.4g} ({', '.join(parts)})"
    if doc["emergency"]:
        stale = ", stale" if doc["emergency"]["stale"] else ""
        yield f"emergency: {clean(doc['emergency']['reason'])} ({clean(doc['emergency']['by'])}{stale})"
    for hold in doc["holds"]:
        yield f"hold {hold['id']}: {_held(hold, 'node', 'fleet')}: {clean(hold['reason'])} ({clean(hold['owner'])})"
    for change in doc["changes"]:
        group = f" ({change['group']})" if change.get("group") else ""
        left = _left(change) if times else ""
        yield f"{change['id']}{group} {change['state']} {clean(change['owner']['user'])}{left}: {_resources(change)}"
        if change["reason"]:
            yield f"  {_why(change)}"
        for holder in change["consumers"]:
            yield f"  used by {clean(holder['user'] or holder['how'])}: {clean(holder['command'] or holder['path'])}"
    for name, health in doc["observers"].items():
        if health != "ok":
            yield f"observer {name}: {clean(health)}"
    if doc.get("unrecorded"):
        yield f"not recorded: {doc['unrecorded']['count']} drifted resources"
    if doc["journal"].get("error"):
        yield f"journal: {clean(doc['journal']['error'])}"
    if doc.get("cluster") and not doc["cluster"]["connected"]:
        waits = "; nothing is rolled back by itself for now" if doc["cluster"]["alone_until"] else ""
        yield f"cluster: cut off{waits}"
    if lag := _lag(doc):
        yield f"journal: {lag}"


def untracked_line(doc: Mapping[str, Any]) -> str:
    """What is untracked, by place where several lie in one, and who made it."""
    places = doc["untracked_places"]
    shown = [f"{p['place']} ({p['count']}) by {p['user']}" if p["count"] > 1 else f"{p['place']} by {p['user']}"
             for p in places[:RESOURCES_SHOWN]]  # fmt: skip
    more = [f"and {len(places) - RESOURCES_SHOWN} more places"] if len(places) > RESOURCES_SHOWN else []
    return ", ".join(map(clean, [*shown, *more]))


def _resources(change: Mapping[str, Any]) -> str:
    names = change["resources"]
    more = f" and {len(names) - RESOURCES_SHOWN} more" if len(names) > RESOURCES_SHOWN else ""
    return ", ".join(map(clean, names[:RESOURCES_SHOWN])) + more


def _status_terminal(doc: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    head = Text()
    head.append(f" {doc['state'].upper()} ", STYLE.get(doc["state"], "bold") + " reverse")
    head.append(f"  {clean(doc['node'])}", "bold")
    head.append(f"   {doc['declared']} declared, ", "dim")
    head.append(f"{doc['drifted']} drifted", "yellow" if doc["drifted"] else "dim")
    if doc.get("untracked"):
        head.append(f", {doc['untracked']} untracked", "cyan")
    head.append(f", {doc['unreadable']} unreadable", "red" if doc["unreadable"] else "dim")
    if doc["mode"] == "observe":
        head.append("   observe mode: nothing is rolled back", "cyan")
    console.print(head)
    _banners(console, doc)
    if doc["drifted"]:
        parts = "  ".join(f"{d} {m:.3g}" for d, m in doc["dimensions"].items() if m)
        console.print(Text(f" drift {doc['magnitude']:.3g}   {parts}   window {_duration(doc['window_s'])}", "dim"))
    if doc["changes"]:
        console.print(_changes_table(doc, Table, bars=console.width >= BAR_FROM_COLUMNS))
    for change in doc["changes"]:
        _explain(console, change)
    if doc.get("untracked"):
        console.print(Text(f" untracked: {untracked_line(doc)}", "cyan"))
    bad = {n: h for n, h in doc["observers"].items() if h != "ok"}
    for name, health in bad.items():
        console.print(Text(f" observer {name}: {clean(health)}", "yellow"))
    if doc["changes"] and doc["state"] in ("drifted", "blocked", "failed"):
        console.print(Text(" pact diff shows what;  pact commit -m WHY keeps it;  pact rollback undoes it", "dim"))


def _banners(console: Console, doc: Mapping[str, Any]) -> None:
    from rich.text import Text

    emergency = doc["emergency"]
    if emergency:
        until = "its end has passed" if emergency["stale"] else f"until {local_time(emergency['ends'])}"
        text = f" EMERGENCY by {clean(emergency['by'])}, {until}: {clean(emergency['reason'])}"
        console.print(Text(text, "bold red"))
    for hold in doc["holds"]:
        what = _held(hold, "the node", "the whole fleet")
        console.print(Text(
            f" HOLD {hold['id']} on {what} by {clean(hold['owner'])} until {local_time(hold['ends'])}: "
            f"{clean(hold['reason'])}", "cyan"))  # fmt: skip
    cluster = doc.get("cluster")
    if cluster and not cluster["connected"]:
        until = cluster["alone_until"]
        waits = f": nothing is rolled back by itself until {local_time(until)}" if until else ""
        console.print(Text(f" CUT OFF from the cluster{waits}", "yellow"))
    if lag := _lag(doc):
        console.print(Text(f" {lag}", "dim" if cluster and cluster["connected"] else "yellow"))
    if doc["journal"].get("error"):
        text = f" JOURNAL {clean(doc['journal']['error'])}: nothing can be committed or undone"
        console.print(Text(text, "bold red"))
    if doc.get("unrecorded"):
        console.print(Text(f" {doc['unrecorded']['count']} drifted resources are seen but not recorded", "red"))


def _changes_table(doc: Mapping[str, Any], table_class: Any, *, bars: bool) -> Any:
    from rich.text import Text

    table = table_class(box=None, padding=(0, 2, 0, 1), header_style="dim")
    for name in ("change", "state", "owner", "left", *([""] if bars else []), "resources"):
        table.add_column(name, no_wrap=name != "resources")
    for change in doc["changes"]:
        left, total = change["remaining_s"], doc["window_s"]
        style = "" if left is None else "green" if left > total / 2 else "yellow" if left > total / 6 else "bold red"
        bar = "" if left is None else "█" * max(1, min(BAR_WIDTH, round(BAR_WIDTH * left / total))) if left else ""
        name = change["id"] + (f" {change['group']}" if change.get("group") else "")
        table.add_row(
            name, Text(change["state"], STYLE.get(change["state"], "")), clean(change["owner"]["user"]),
            Text(_duration(left), style), *([Text(bar, style)] if bars else []),
            Text(_resources(change), overflow="fold"),
        )  # fmt: skip
    return table


def _why(change: Mapping[str, Any]) -> str:
    return "what it changed is in use by" if change["reason"] == "consumers" else spoken(change["reason"])


def _explain(console: Console, change: Mapping[str, Any]) -> None:
    from rich.text import Text

    if change["state"] in ("blocked", "failed"):
        console.print(Text(f" {change['id']} {change['state']}: {_why(change)}", "red"))
        if change["consumers"]:
            holders_table(change["consumers"])
        text = f"   then: pact rollback {change['id']}, or keep it: pact commit {change['id']} -m WHY"
        console.print(Text(text, "dim"))


def holders_table(holders: Iterable[Mapping[str, Any]]) -> None:
    """Who uses what."""
    rows = list(holders)
    if not on_terminal():
        for h in rows:
            job = f" job {clean(h['job'])}" if h.get("job") else ""
            what = clean(h.get("command") or h.get("path"))
            say(f"  {clean(h['resource'])} used by {clean(h.get('user') or '?')}{job} ({h['how']}): {what}")
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 3), header_style="dim")
    for name in ("pid", "user", "job", "how", "what", "command"):
        table.add_column(name)
    for h in rows[:20]:
        table.add_row(str(h["pid"] or "-"), clean(h.get("user") or "-"), clean(h.get("job") or "-"), h["how"],
                      clean(h.get("path", "")), clean(h.get("command", ""))[:80])  # fmt: skip
    _console().print(table)


# -- diff -----------------------------------------------------------------------------------------------------------


def diff_page(doc: Mapping[str, Any]) -> None:
    tty = on_terminal()
    for entry in doc["resources"]:
        for line, style in diff_lines(entry, times=tty):
            if tty:
                from rich.text import Text

                _console().print(Text(line, style))
            else:
                say(line)
    for entry in doc.get("untracked", ()):
        command = clean(entry["owner"]["command"])
        who = f"{clean(entry['owner']['user'])}{f': {command}' if command else ''}"
        say(f"{clean(entry['resource'])}  (untracked, {who})")
    for resource in doc.get("unrecorded", ()):
        say(f"{clean(resource)}  (drifted, but the journal cannot be written)")


def diff_lines(entry: Mapping[str, Any], *, times: bool) -> Iterable[tuple[str, str]]:
    who = clean(entry["owner"]["user"])
    when = f", {local_time(entry['seen'])}" if times else ""
    command = clean(entry["owner"]["command"])
    yield f"{clean(entry['id'])}  ({entry['change']}, {who}{when}{': ' + command if command else ''})", "bold"
    declared, actual = entry["declared"], entry["actual"]
    if declared is None or actual is None:
        present = "absent"
        yield f"  - declared: {present if declared is None else _attrs(declared)}", "red"
        yield f"  + actual:   {present if actual is None else _attrs(actual)}", "green"
    else:
        for key in sorted({*declared, *actual}):
            if key in declared and declared[key] != actual.get(key):
                yield f"  - {key}: {clean(_value(declared[key]))}", "red"
                if actual.get(key) is not None:  # a directory has no content, a link no mode
                    yield f"  + {key}: {clean(_value(actual[key]))}", "green"
    if entry.get("hidden"):
        yield "  (content is not world-readable; admins see it)", "dim"
    for line in (entry["diff"] or "").splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        yield "  " + clean(line.replace("\t", "    ")), style


def _attrs(attrs: Mapping[str, Any]) -> str:
    return clean(", ".join(f"{k} {_value(v)}" for k, v in attrs.items() if v not in ({}, [])))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    text = str(value)
    return text[:16] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


# -- journal --------------------------------------------------------------------------------------------------------


def event_line(record: Mapping[str, Any]) -> str:
    """One record in one line."""
    data, actor = record["data"], record["actor"]
    who = actor["user"] if actor["via"] in ("socket", "config", "cluster") and actor["user"] != "pact" else ""
    parts = [data.get("group") or "", data.get("change") or "", _what(record["type"], data), f"by {who}" if who else ""]
    text = "  ".join(clean(p) for p in parts if p)
    when = local_time(record["time"]) if on_terminal() else record["time"][:19] + "Z"
    return clean(f"{record['seq']:>6}  {when}  {record['type']:<18}{text}")


def _until(time: str) -> str:
    return "until " + (local_time(time) if on_terminal() else f"{time[:19]}Z")


def _what(type_: str, data: Mapping[str, Any]) -> str:
    if "omitted" in data:
        return f"({data['omitted']} bytes, too large to travel: see it on the node)"
    if type_ == "group_prepared":
        return f"votes {data['vote']} on {data['action']}" + (f": {data['why']}" if data["why"] else "")
    if type_ == "group_decided":
        return f"{data['decision']}: {data['why']}" if data["why"] else str(data["decision"])
    if type_ == "group_finished":
        return str(data["outcome"])
    if type_ == "group_forced":
        return "goes on with force"
    if type_ in ("drift_detected", "drift_cleared"):
        owner = data.get("owner", {}).get("user", "")
        return f"{data['resource']}  by {owner}" if owner else str(data["resource"])
    if type_ == "window_opened":
        return _until(data["deadline"]) if data.get("deadline") else ""
    if type_ == "window_extended" and data.get("ends"):  # of a group, by its root
        return _until(data["ends"])
    if type_ == "window_extended":
        return "by " + format_duration(data["by_ns"])
    if type_ == "committed":
        return f"{_few(data['resources'])}: {data['message']}"
    if type_ == "rolled_back":
        return _few(data["results"])
    if type_ == "rollback_blocked" and data["holders"]:
        holders = {h["user"] or h["how"] for h in data["holders"]}
        return f"{_few({h['resource'] for h in data['holders']})} used by {', '.join(sorted(holders))}"
    if type_ in ("declared", "adopted"):
        return f"{len(data['resources'])} resources"
    if type_ in ("untracked_seen", "untracked_gone"):
        return _few(data["resources"]) + (f"  by {data['owner']['user']}" if "owner" in data else "")
    if type_ == "tracked":
        forgotten = [f"{p} forgotten" for p in data["forgotten"]]
        return ", ".join([*(f"{p} {m}" for p, m in data["patterns"].items()), *forgotten])
    if type_ == "denied":
        return f"{data['request']}: {data['why']}"
    if type_ == "converged":
        return _few(data["results"])
    return str(data.get("reason") or data.get("why") or data.get("message") or "")


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def record_page(result: Mapping[str, Any]) -> None:
    record = result["record"]
    say(event_line(record))
    say(clean_json({k: record[k] for k in ("actor", "data", "prev", "hash")}))
    for resource, entry in result["contents"].items():
        if "content" in entry:
            say(f"--- replaced content of {clean(resource)}")
            for line in entry["content"].splitlines():
                say(clean(line.replace("\t", "    ")))


def clean_json(value: Any) -> str:
    return "\n".join(clean(line) for line in orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().split("\n"))
