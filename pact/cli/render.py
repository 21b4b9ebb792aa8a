"""Output for people. Colours, widths and times only on a terminal; elsewhere plain lines that fold in ``clush -b``.

Names come from file systems and processes: control characters are made visible before anything is printed.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from pact.cli.names import few
from pact.cli.service import service
from pact.cli.told import SESSIONS, session_told
from pact.core.units import format_duration
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    #: A line for people: plain, with a style, or a table.
    Line = str | tuple[str, str] | Table
    Lines = Iterable[Line]

#: Each colour has the meaning of its state.
STYLE: Final = {
    "committed": "bold green",
    "drifted": "bold yellow",
    "open": "yellow",
    "rolling_back": "yellow",
    "blocked": "bold red",
    "failed": "bold red",
    "emergency": "bold magenta",
    "held": "magenta",
    "unconfigured": "bold yellow",
}
PID: Final = re.compile(r" \(pid \d+\)|(?<=\S)\[\d+\](?= of )")  # the second form: as older versions wrote it
RESOURCES_SHOWN: Final = 8
RESOURCES_NAMED: Final = 3
LISTED_MAX: Final = 20
#: Causes of rollbacks that nobody requested.
AUTOMATIC: Final = {
    "expired": " (window ended)",
    "retry": " (its consumers have left)",
    "group": " (with its group)",
    "restart": " (to tell who reads it, after a kill)",
    "owed": " (to tell who reads it, as was still owed)",
}
MINUTES_FROM_S: Final = 120
SOON: Final = timedelta(hours=12)
STORE_FULL: Final = "the content store is nearly full; raise [state] store_limit, or lower keep"


#: Categories of characters that control a terminal, or hide the text beside them.
MOVING: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def clean(text: Any) -> str:
    """Text without control and format characters that could control a terminal."""
    whole = str(text)
    if whole.isprintable():  # nearly all is, and then none of its characters is moving
        return whole
    out = []
    for char in whole:
        bad = unicodedata.category(char) in MOVING
        out.append(f"\\x{ord(char):02x}" if bad and ord(char) < 256 else f"\\u{ord(char):04x}" if bad else char)
    return "".join(out)


def say(text: str = "", *, flush: bool = False) -> None:
    """Print lines for people. Text from a node cannot control the terminal, even where a caller forgot to clean it."""
    print("\n".join(clean(line) for line in text.split("\n")), flush=flush)


def paint(text: str, style: str = "") -> None:
    """Print a line; on a terminal in a colour, and wrapped to its width."""
    if not on_terminal():
        say(text)
        return
    from rich.text import Text

    from pact.cli.wrapping import prose

    console = _console()
    indent = " " * (len(text) - len(text.lstrip()))
    for i, row in enumerate(prose(clean(text.strip()), console.width - 2, indent) or [""]):
        console.print(Text(("  " if i else "") + row, style))


def still(document: bytes) -> bytes:
    """The same JSON, with characters that control a terminal written as numbers, which JSON allows."""
    if document.isascii() and b"\x7f" not in document:
        return document
    text = document.decode()
    moving = {
        ord(c): "".join(f"\\u{unit:04x}" for unit in _units(c)) for c in set(text) if unicodedata.category(c) in MOVING
    }
    return text.translate(moving).encode() if moving else document


def _units(char: str) -> tuple[int, ...]:
    raw = char.encode("utf-16-be")
    return tuple(int.from_bytes(raw[at : at + 2]) for at in range(0, len(raw), 2))


class _Emitted:
    """The standard output that has a JSON document already. A program has one, tests have several."""

    to: Any = None


def emitted() -> bool:
    return _Emitted.to is sys.stdout


def emit(value: Any) -> None:
    """One JSON document."""
    _Emitted.to = sys.stdout
    sys.stdout.flush()
    sys.stdout.buffer.write(still(orjson.dumps(value)) + b"\n")
    sys.stdout.buffer.flush()


emit_line = emit


def on_terminal() -> bool:
    return sys.stdout.isatty()


def local_time(text: str | None) -> str:
    """An RFC 3339 time as local time, with its date where the clock alone would not say which day: an end some minutes
    after midnight needs none."""
    if not text:
        return "-"
    then, now = datetime.fromisoformat(text).astimezone(), datetime.now().astimezone()
    clear = now.date() == then.date() or now < then < now + SOON
    return f"{then:%H:%M:%S}" if clear else f"{then:%Y-%m-%d %H:%M:%S}"


class View(NamedTuple):
    """For whom an answer is shown. ``terminal``: a person reads this one answer, with colours, times and process ids;
    otherwise equal answers must be equal text. ``ids``: with the numbers that each node counts by itself, which differ
    between nodes that are otherwise equal.
    """

    terminal: bool = False
    ids: bool = True

    @classmethod
    def here(cls, *, ids: bool = True) -> View:
        """For the reader of standard output."""
        return cls(on_terminal(), ids)

    def until(self, text: str | None, before: str = " until ") -> str:
        """`` until 23:31:35``, or nothing."""
        return f"{before}{local_time(text)}" if text and self.terminal else ""

    def spoken(self, text: str) -> str:
        """A message in the form for this reader."""
        return clean(text if self.terminal else PID.sub("", text))


def spoken(text: str) -> str:
    """A message for the reader of standard output."""
    return View.here().spoken(text)


def put(lines: Lines) -> None:
    """Print lines on standard output."""
    console = None
    for line in lines:
        if isinstance(line, str):
            say(line)
        elif isinstance(line, tuple) and not on_terminal():
            say(line[0])
        else:
            from rich.text import Text

            console = console or _console()
            console.print(Text(*line) if isinstance(line, tuple) else line)


def plain(lines: Lines) -> str:
    """The lines as text, in the form for output that is not a terminal."""
    texts = [line if isinstance(line, str) else line[0] for line in lines if isinstance(line, str | tuple)]
    return "\n".join(clean(row) for text in texts for row in text.split("\n")).rstrip("\n")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(int(seconds * NS_PER_S) // NS_PER_S * NS_PER_S)


# -- status ---------------------------------------------------------------------------------------------------------


def _lag(doc: Mapping[str, Any]) -> str:
    """How many records the root has not acknowledged yet; empty on a node without a root."""
    behind = doc["journal"]["seq"] - doc["journal"]["replicated"] if doc.get("cluster") else 0
    return f"{behind} record{'s' if behind > 1 else ''} not at the root" if behind > 0 else ""


def left_of(left_s: float) -> str:
    """In whole minutes, if it is at least two."""
    return _duration(left_s if left_s < MINUTES_FROM_S else left_s // 60 * 60)


def ends(text: str | None, left_s: float | None = None) -> str:
    """An absolute time to the minute, equal on nodes that began together; near its end to the second."""
    if not text:
        return ""
    then = datetime.fromisoformat(text).astimezone(UTC)
    return (
        f" until {then:%Y-%m-%dT%H:%M:%SZ}"
        if left_s is not None and left_s < MINUTES_FROM_S
        else (f" until {then:%Y-%m-%dT%H:%MZ}")
    )


def _held(hold: Mapping[str, Any], node: str, fleet: str) -> str:
    """What is held: a change, the node, or the whole fleet, which the root's hold ids show."""
    return clean(hold["change"] or (fleet if str(hold["id"]).startswith("f") else node))


def status_lines(doc: Mapping[str, Any], view: View, *, verbose: bool = False) -> Iterable[str]:
    """Plain status: absolute times, no pids, no node name, so that equal nodes give equal text."""
    yield f"state: {clean(doc['state'])}" + (" (observe mode)" if doc["mode"] == "observe" else "")
    untracked = f", untracked: {doc['untracked']}" if doc.get("untracked") else ""
    yield f"declared: {doc['declared']}, drifted: {doc['drifted']}, unreadable: {doc['unreadable']}{untracked}"
    if doc["drifted"]:
        parts = [f"{d} {m:.4g}" for d, m in doc["dimensions"].items() if m]
        yield f"magnitude: {doc['magnitude']:.4g} ({', '.join(parts)})"
    if doc["emergency"]:
        until = ", stale" if doc["emergency"]["stale"] else ends(doc["emergency"]["ends"])
        yield f"emergency: {clean(doc['emergency']['reason'])} ({clean(doc['emergency']['by'])}){until}"
    for change in doc["changes"]:
        yield from _change_lines(change, view, most=None if verbose else RESOURCES_SHOWN)
    most = None if verbose else LISTED_MAX
    yield from _listed(
        "trial", most, [f"{clean(t['resource'])}{ends(t['ends'])} ({clean(t['by'])})" for t in doc.get("trials", ())]
    )
    new, more = untracked_places(doc)
    yield from _listed("untracked", most, [f"{clean(name)} ({clean(user)})" for name, user in new], len(new) + more)
    yield from _listed(
        "unreadable",
        most,
        [f"{clean(r)}: {view.spoken(w)}" for r, w in sorted(doc.get("unreadable_resources", {}).items())],
        doc["unreadable"],
    )
    for hold in doc["holds"]:
        name = f" {hold['id']}" if view.ids or str(hold["id"]).startswith("f") else ""
        what = _held(hold, "node", "fleet") if view.ids or not hold["change"] else "a change"
        yield f"hold{name}: {what}: {clean(hold['reason'])} ({clean(hold['owner'])}){ends(hold['ends'])}"
    for name, health in doc["observers"].items():
        if health != "ok":
            yield f"observer {name}: {clean(health)}"
    yield from map(clean, doc.get("notes", ()))
    yield from map(view.spoken, service(doc, ids=view.ids))
    if doc.get("unrecorded"):
        yield f"not recorded: {doc['unrecorded']['count']} drifted resources"
    if doc["journal"].get("error"):
        yield f"journal: {clean(doc['journal']['error'])}"
    if verifying := _verifying(doc):
        yield f"journal: {verifying}"
    if nearly_full(doc):
        yield f"journal: {STORE_FULL}"
    if doc.get("cluster") and not doc["cluster"]["connected"]:
        waits = "; nothing is rolled back by itself for now" if doc["cluster"]["alone_until"] else ""
        yield f"cluster: cut off{waits}"
        if doc["cluster"].get("refused"):
            yield f"cluster: {view.spoken(doc['cluster']['refused'])}"
    if apart := (doc.get("cluster") or {}).get("apart"):
        yield f"cluster: {view.spoken(apart) if view.ids else 'the root has another journal of this node'}"
    if view.ids and (lag := _lag(doc)):
        yield f"journal: {lag}"


def nearly_full(doc: Mapping[str, Any]) -> bool:
    """Whether the content store has less than a twentieth of its room left: contents that need more will be refused."""
    return bool(doc["journal"].get("store"))


def _verifying(doc: Mapping[str, Any]) -> str:
    """The progress of the check of older records, while it is not done; equal on nodes that are checking."""
    left = doc["journal"].get("unverified", 0)
    stopped = doc["journal"].get("verifying")
    if not left or doc["journal"].get("error"):
        return ""
    return "older records are being verified" + (f": {clean(stopped)}" if stopped else "")


def who(owner: Mapping[str, Any]) -> str:
    """An owner for people: who, and with which tool."""
    user, tool = clean(owner["user"]), clean(owner.get("run", ""))
    return f"{user} with {tool}" if tool and tool != user else user


def untracked_places(doc: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Untracked things and their owners, grouped by place: pairs of name and user; and how many more there are than the
    document names."""
    places = doc.get("untracked_places", ())
    shown = [(f"{p['place']} ({p['count']})" if p["count"] > 1 else str(p["place"]), str(p["user"])) for p in places]
    return shown, max(0, doc.get("untracked", 0) - sum(p["count"] for p in places))


def _change_lines(change: Mapping[str, Any], view: View, *, most: int | None) -> Iterable[str]:
    group = change.get("group") or ""
    name = " ".join(filter(None, (change["id"] if view.ids else "", f"({group})" if group and view.ids else group)))
    until = ends(change["deadline"], change["remaining_s"]) if change["state"] in ("open", "held") else ""
    names = list(map(clean, change["resources"]))
    head = " ".join(filter(None, (name, change["state"], who(change["owner"]))))
    yield f"{head}{until}: {few(names, len(names) if most is None else most)}"
    if change.get("also"):
        yield f"  also changed by {', '.join(dict.fromkeys(clean(o['user']) for o in change['also']))}"
    if change["reason"]:
        yield f"  {why(change, view)}"
    for holder in change["consumers"]:
        user = clean(holder["user"] or holder["how"])
        yield f"  used by {user}{gone(holder)}: {clean(holder['command'] or holder['path'])}"


def _listed(what: str, most: int | None, texts: list[str], total: int | None = None) -> Iterable[str]:
    for text in texts[:most]:
        yield f"{what}: {text}"
    more = max(total or 0, len(texts)) - len(texts[:most])
    if more > 0 and texts:
        yield f"{what}: and {more} more"


def why(change: Mapping[str, Any], view: View) -> str:
    return "what it changed is in use by" if change["reason"] == "consumers" else view.spoken(change["reason"])


def gone(holder: Mapping[str, Any]) -> str:
    """Marks a process that held something when it was looked for, and has ended since."""
    return " (gone)" if holder.get("gone") else ""


def holders_table(holders: Iterable[Mapping[str, Any]], view: View, more: int = 0) -> Lines:
    """The consumers; ``more`` others are not named."""
    rows = list(holders)
    if not view.terminal:
        for h in rows:
            job = f" job {clean(h['job'])}" if h.get("job") else ""
            what = clean(h.get("command") or h.get("path"))
            yield f"  {clean(h['resource'])} used by {clean(h.get('user') or '?')}{job} ({h['how']}){gone(h)}: {what}"
        if more:
            yield f"  and {more} more"
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 3), header_style="dim")
    for name in ("pid", "user", "job", "how", "what", "command"):
        table.add_column(name)
    for h in rows[:LISTED_MAX]:
        table.add_row(
            str(h["pid"] or "-"),
            clean(h.get("user") or "-"),
            clean(h.get("job") or "-"),
            h["how"],
            clean(h.get("path", "")),
            clean(h.get("command", ""))[:80] + gone(h),
        )
    yield table
    if len(rows) + more > LISTED_MAX:
        yield f"   and {len(rows) + more - LISTED_MAX} more"


# -- diff -----------------------------------------------------------------------------------------------------------


def diff_page(doc: Mapping[str, Any], view: View) -> Lines:
    for entry in doc["resources"]:
        yield from diff_lines(entry, view)
    for entry in doc.get("untracked", ()):
        command = clean(entry["owner"]["command"])
        by = f"{who(entry['owner'])}{f': {command}' if command else ''}"
        yield f"{clean(entry['resource'])}  (untracked, {by})"
    for resource in doc.get("unrecorded", ()):
        yield f"{clean(resource)}  (drifted, but the journal cannot be written)"


def diff_lines(entry: Mapping[str, Any], view: View) -> Iterable[tuple[str, str]]:
    by = who(entry["owner"])
    when = f", {local_time(entry['seen'])}" if view.terminal else ""
    command = clean(entry["owner"]["command"]) if view.ids else ""
    change = f"{entry['change']}, " if view.ids else ""
    yield f"{clean(entry['id'])}  ({change}{by}{when}{': ' + command if command else ''})", "bold"
    if entry.get("also"):
        yield f"  also changed by {', '.join(dict.fromkeys(clean(o['user']) for o in entry['also']))}", "dim"
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
    if text.startswith("keyed:"):  # each node has its own key, and equal text must be equal on all nodes
        return "(hidden)"
    return text[:16] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


# -- journal --------------------------------------------------------------------------------------------------------


def event_line(record: Mapping[str, Any], view: View) -> str:
    """One record in one line."""
    data = record["data"]
    parts = [data.get("group") or "", data.get("change") or "", _what(record["type"], data, view), _who(record)]
    text = "  ".join(clean(p) for p in parts if p)
    when = local_time(record["time"]) if view.terminal else record["time"][:19] + "Z"
    return clean(f"{record['seq']:>6}  {when}  {record['type']:<18}{text}")


def event_text(record: Mapping[str, Any], view: View) -> str:
    """The event without its time and numbers: equal on nodes with equal events."""
    data = record["data"]
    what = _what(record["type"], {k: v for k, v in data.items() if k not in ("deadline", "ends")}, view)
    return "  ".join(clean(p) for p in (record["type"], data.get("group") or "", what, _who(record)) if p)


def _who(record: Mapping[str, Any]) -> str:
    actor = record["actor"]
    by = actor["user"] if actor["via"] in ("socket", "config", "cluster", "command") and actor["user"] != "pact" else ""
    return f"by {by}" if by else ""


def _until(time: str, view: View) -> str:
    return "until " + (local_time(time) if view.terminal else f"{time[:19]}Z")


def _what(type_: str, data: Mapping[str, Any], view: View) -> str:
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
    if type_ in ("declared", "adopted") and len(data["resources"]) <= RESOURCES_NAMED:
        return _few(data["resources"])
    if type_ in ("drift_detected", "drift_cleared"):
        owner = data.get("owner", {}).get("user", "")
        return f"{data['resource']}  by {owner}" if owner else str(data["resource"])
    if type_ == "window_opened":
        return _until(data["deadline"], view) if data.get("deadline") else ""
    if type_ == "window_extended" and data.get("ends"):  # of a group, by its root
        return _until(data["ends"], view)
    if type_ == "window_extended":
        return "by " + format_duration(data["by_ns"])
    if type_ == "committed":
        return f"{_few(data['resources'])}: {data['message']}"
    if type_ == "commit_expired":
        return f"{_few(data['resources'])}, committed for a time by {data['owner']['user']}"
    cause = AUTOMATIC.get(data.get("cause", ""), "") if type_.startswith("roll") else ""
    if type_ == "rolled_back":
        return _few(data["results"]) + cause
    if type_ == "rollback_started":
        return _few(s["id"] for s in data["plan"]) + cause
    if type_ == "rollback_blocked" and data["holders"]:
        holders = {h["user"] or h["how"] for h in data["holders"]}
        return f"{_few({h['resource'] for h in data['holders']})} used by {', '.join(sorted(holders))}{cause}"
    if cause:
        return f"{data.get('reason', '')}{cause}"
    if type_ in ("declared", "adopted"):
        return f"{len(data['resources'])} resources"
    if type_ in ("untracked_seen", "untracked_gone"):
        by = {owner["user"]: None for owner in data.get("owners") or [data["owner"]]} if "owner" in data else ()
        return _few(data["resources"]) + (f"  by {_few(by)}" if by else "")
    if type_ == "tracked":
        forgotten = [f"{p} forgotten" for p in data["forgotten"]]
        return ", ".join([*(f"{p} {m}" for p, m in data["patterns"].items()), *forgotten])
    if type_ == "loss_accepted":
        return f"records {data['first']} to {data['last']} are gone: {data['message']}"
    if type_ == "denied":
        told = data["request"] == "several" or not data.get("beyond")
        more = "" if told else f" (and {data['beyond']} more that stand in no record)"
        return f"{data['request']}: {data['why']}{more}"
    if type_ == "converged":
        return _few(data["results"])
    if type_ in SESSIONS:
        return session_told(data)
    return str(data.get("reason") or data.get("why") or data.get("message") or "")


def _few(names: Iterable[str]) -> str:
    return few(sorted(names), 3)


def record_page(result: Mapping[str, Any], view: View) -> Lines:
    record = result["record"]
    yield event_line(record, view)
    yield clean_json({k: record[k] for k in ("actor", "data", "prev", "hash")})
    for resource, entry in result["contents"].items():
        if "content" in entry:
            yield f"--- replaced content of {clean(resource)}"
            for line in entry["content"].splitlines():
                yield clean(line.replace("\t", "    "))
        elif "left_out" in entry:
            yield f"--- replaced content of {clean(resource)}: {clean(entry['left_out'])}"


def clean_json(value: Any) -> str:
    return "\n".join(clean(line) for line in orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().split("\n"))
