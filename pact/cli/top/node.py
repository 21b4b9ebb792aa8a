"""One node on a screen: what its agent says (``status``, ``sessions``) and the records that come. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.cli.names import few
from pact.cli.render import View, event_line, left_of, local_time, untracked_places
from pact.cli.render import who as by_whom
from pact.cli.service import service
from pact.cli.top.text import Clock, Column, Row, Section, Span, shown

RECORDS_MAX: Final = 100
LISTED_MAX: Final = 200
HOLDERS_MAX: Final = 6
PERSON: Final = View(terminal=True)
STYLES: Final = {
    "committed": "good",
    "drifted": "warn",
    "open": "warn",
    "rolling_back": "warn",
    "blocked": "bad",
    "failed": "bad",
    "emergency": "alarm",
    "held": "alarm",
    "unconfigured": "warn",
    "away": "warn",
    "unknown": "warn",
}


@dataclass(slots=True)
class NodeState:
    """``told`` when an answer comes, ``record`` when a record does, ``lost`` when there is no connection."""

    name: str = ""
    doc: Mapping[str, Any] | None = None
    sessions: list[Mapping[str, Any]] = field(default_factory=list)
    sessions_why: str = ""
    at_s: float = 0.0  # when the document came
    records: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=RECORDS_MAX))
    trouble: str = ""  # why it is not live
    since_s: float = 0.0  # since when

    def told(
        self, doc: Mapping[str, Any], sessions: Any, records: list[Mapping[str, Any]] | None, now_s: float
    ) -> None:
        """``sessions``: a list, or why there is none. ``records``: the newest first; ``None``: none but those that came
        by themselves."""
        self.doc, self.at_s, self.trouble = doc, now_s, ""
        self.name = shown(doc.get("node", self.name), 253)
        self.sessions = list(sessions) if isinstance(sessions, list) else []
        self.sessions_why = "" if isinstance(sessions, list) else str(sessions)
        if records is not None:
            last = records[0]["seq"] if records else -1
            newer = [r for r in self.records if r["seq"] > last and records and r["seq"] <= last + RECORDS_MAX]
            self.records.clear()
            self.records.extend((*newer, *records))

    def record(self, record: Mapping[str, Any]) -> None:
        self.records.appendleft(record)

    def lost(self, why: str, now_s: float) -> None:
        if not self.trouble:
            self.since_s = now_s
        self.trouble = why

    # -- what questions need ----------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return str(self.doc.get("you", {}).get("role", "")) if self.doc is not None else ""

    @property
    def user(self) -> str:
        return str(self.doc.get("you", {}).get("user", "")) if self.doc is not None else ""

    @property
    def uid(self) -> Any:
        return self.doc.get("you", {}).get("uid") if self.doc is not None else None

    def change(self, name: str) -> Mapping[str, Any] | None:
        changes = self.doc["changes"] if self.doc is not None else ()
        return next((c for c in changes if c["id"] == name), None)


# -- the head ---------------------------------------------------------------------------------------------------------


def headline(state: NodeState) -> list[Span]:
    doc = state.doc
    if doc is None:
        return [(f"{state.name or 'this node'}", "title"), ("  nothing is known yet", "dim")]
    facts = [f"{doc['drifted']} of {doc['declared']} changed" if doc["drifted"] else f"{doc['declared']} declared"]
    facts += [f"{doc[key]} {key}" for key in ("untracked", "unreadable") if doc.get(key)]
    mode = "observe: nothing is rolled back" if doc["mode"] == "observe" else ""
    word = str(doc["state"])
    return [
        (f"{state.name} ", "title"),
        (f" {shown(word).upper()} ", STYLES.get(word, "title")),
        (f"  {', '.join(facts)}", ""),
        *([(f"  {mode}", "alarm")] if mode else []),
    ]


def alerts(state: NodeState) -> list[Span]:
    """What concerns the whole node, each a line."""
    doc = state.doc
    if doc is None:
        return []
    out: list[Span] = []
    if doc["drifted"]:
        parts = ", ".join(f"{d} {m:.3g}" for d, m in doc["dimensions"].items() if m)
        window = (
            f"; a window has {left_of(doc['window_s'])}" if doc["mode"] == "enforce" and doc.get("window_s") else ""
        )
        out.append((f"drift {doc['magnitude']:.3g} ({parts}){window}", "dim"))
    emergency = doc.get("emergency")
    if emergency:
        until = "its end has passed" if emergency["stale"] else f"until {local_time(emergency['ends'])}"
        out.append((f"EMERGENCY by {shown(emergency['by'])}, {until}: {shown(emergency['reason'])}", "alarm"))
    cluster = doc.get("cluster")
    if cluster and not cluster["connected"]:
        waits = cluster.get("alone_until")
        text = f": nothing is rolled back by itself until {local_time(waits)}" if waits else ""
        out.append((f"CUT OFF from the cluster{text}", "warn"))
        if cluster.get("refused"):
            out.append((shown(cluster["refused"]), "bad"))
    if doc["journal"].get("error"):
        out.append((f"JOURNAL {shown(doc['journal']['error'])}: nothing can be committed or undone", "bad"))
    if doc.get("unrecorded"):
        out.append((f"{doc['unrecorded']['count']} drifted resources are seen but not recorded", "bad"))
    out += [(f"observer {shown(n)}: {shown(h)}", "warn") for n, h in doc["observers"].items() if h != "ok"]
    out += [(shown(text), "warn") for text in (*doc.get("notes", ()), *service(doc))]
    return out


# -- the sections -----------------------------------------------------------------------------------------------------

CHANGES: Final = (
    Column("change", most=14),
    Column("left", most=10, right=True),
    Column("state", most=12),
    Column("owner", most=20),
    Column("what", flex=1),
)
SESSIONS: Final = (
    Column("session", most=8),
    Column("who", most=20),
    Column("from", flex=1, drop=1),
    Column("since", most=19, drop=3),
    Column("terminal", most=10, drop=4),
    Column("runs", flex=1, drop=2),
)
NAMED: Final = (Column("", most=14), Column("", flex=3), Column("", flex=2, drop=1))
RECORDS: Final = (Column("", flex=1),)


def sections(state: NodeState) -> list[Section]:
    doc = state.doc
    if doc is None:
        return []
    changes = doc["changes"]
    out = [
        Section(
            "changes",
            f"Changes ({len(changes)})" if changes else "Changes",
            CHANGES,
            tuple(change_row(doc, c, state.at_s) for c in changes[:LISTED_MAX]),
            f"the first {LISTED_MAX} of {len(changes)}" if len(changes) > LISTED_MAX else "",
            "nothing is open",
        ),
        Section("held", "Holds", NAMED, tuple(_holds(doc))),
        Section("new", "Untracked, unreadable, trials", NAMED, tuple(_others(doc))),
        Section(
            "sessions",
            f"Sessions ({len(state.sessions)})" if state.sessions else "Sessions",
            SESSIONS,
            tuple(_session(s) for s in state.sessions[:LISTED_MAX]),
            nothing=shown(state.sessions_why) or "nobody is in a session that you may see",
        ),
        Section("records", "Newest records", RECORDS, tuple(_record(r) for r in state.records)),
    ]
    return out


def change_row(doc: Mapping[str, Any], change: Mapping[str, Any], at_s: float) -> Row:
    word = str(change["state"])
    style = STYLES.get(word, "")
    rest = change["remaining_s"]
    name = " ".join(filter(None, (str(change["id"]), shown(change.get("group") or "", 20))))
    clock: Any = Clock(at_s + rest) if rest is not None else ("-", "dim")
    resources = [shown(r) for r in change["resources"]]
    more: list[Span] = []
    if change.get("message"):
        more.append((shown(change["message"]), "dim"))
    if change.get("also"):
        users = ", ".join(dict.fromkeys(shown(o["user"], 40) for o in change["also"]))
        more.append((f"also changed by {users}", ""))
    if change.get("reason"):
        why = "what it changed is in use by" if change["reason"] == "consumers" else shown(change["reason"])
        more.append((why, style))
    more += [(text, style) for text in holders(change["consumers"])]
    what = f"{len(resources)}: {few(resources, 3)}" if len(resources) > 1 else few(resources, 1)
    cells = ((name, "bold"), clock, (word.replace("_", " "), style), shown(by_whom(change["owner"])), what)
    return Row(cells, key=str(change["id"]), more=tuple(more))


def holders(found: list[Mapping[str, Any]]) -> list[str]:
    """Who uses something: a line for each."""
    out = []
    for h in found[:HOLDERS_MAX]:
        pid = f" (pid {h['pid']})" if h.get("pid") else ""
        job = f", job {shown(h['job'], 40)}" if h.get("job") else ""
        gone = ", gone since" if h.get("gone") else ""
        what = shown(h.get("command") or h.get("path") or h.get("how") or "")
        out.append(f"{shown(h.get('user') or '?', 40)}{job}: {what}{pid}{gone}")
    if len(found) > HOLDERS_MAX:
        out.append(f"and {len(found) - HOLDERS_MAX} more")
    return out


def _holds(doc: Mapping[str, Any]) -> Iterator[Row]:
    for h in doc["holds"]:
        what = h["change"] or ("the whole fleet" if str(h["id"]).startswith("f") else "the node")
        text = f"{shown(what)} by {shown(h['owner'])}: {shown(h['reason'])}"
        yield Row(((shown(h["id"], 20), "alarm"), text, f"until {local_time(h['ends'])}"))


def _others(doc: Mapping[str, Any]) -> Iterator[Row]:
    new, more = untracked_places(doc)
    for place, user in new[:LISTED_MAX]:
        yield Row((("untracked", "warn"), shown(place), f"by {shown(user)}"))
    if more:
        yield Row((("untracked", "warn"), f"and {more} more", ""))
    for resource, why in sorted(doc.get("unreadable_resources", {}).items()):
        yield Row((("unreadable", "bad"), shown(resource), shown(why)))
    for t in doc.get("trials", ())[:LISTED_MAX]:
        yield Row(("trial", shown(t["resource"]), f"until {local_time(t['ends'])}, by {shown(t['by'])}"))


def _session(s: Mapping[str, Any]) -> Row:
    account = "" if s["account"] == s["user"] else f" as {shown(s['account'], 40)}"
    runs = shown(s["command"]) if s["command"] else "a shell"
    there = "" if s["attached"] else " (has ended)" if s["ended"] else " (nobody attached)"
    return Row(
        (
            (shown(s["id"], 20), "bold"),
            f"{shown(s['user'], 40)}{account}",
            shown(s["from"]),
            local_time(s["since"]),
            shown(s["terminal"] or "none", 20),
            runs + there,
        )
    )


def _record(record: Mapping[str, Any]) -> Row:
    try:
        text = event_line(record, PERSON)
    except Exception:  # a record of another version
        text = f"{shown(record.get('type', '?'))}: a record that is not understood here"
    return Row((shown(text.strip(), 1000),))


# -- for --plain ------------------------------------------------------------------------------------------------------


def spoken(state: NodeState) -> dict[str, str]:
    """What there is to say, without clocks: a line is said again when it changes."""
    doc = state.doc
    if doc is None:
        return {}
    out = {"state": "".join(text for text, _ in headline(state))}
    for n, (text, _) in enumerate(alerts(state)[bool(doc["drifted"]) :]):
        out[f"alert {n}"] = text
    for c in doc["changes"]:
        until = f", until {local_time(c['deadline'])}" if c["deadline"] else ""
        reason = f": {shown(c['reason'])}" if c.get("reason") else ""
        used = f"; used by {'; '.join(holders(c['consumers']))}" if c["consumers"] else ""
        also = f"; also changed by {', '.join(shown(o['user'], 40) for o in c['also'])}" if c.get("also") else ""
        what = few([shown(r) for r in c["resources"]], 3)
        who, word = shown(by_whom(c["owner"])), str(c["state"]).replace("_", " ")
        out[f"change {c['id']}"] = f"{c['id']} of {who} is {word}{until}: {what}{reason}{used}{also}"
    for h in doc["holds"]:
        out[f"hold {h['id']}"] = f"hold {shown(h['id'], 20)} by {shown(h['owner'])}: {shown(h['reason'])}"
    for s in state.sessions:
        out[f"session {s['id']}"] = f"session {shown(s['id'], 20)} of {shown(s['user'], 40)} from {shown(s['from'])}"
    return out


def ends(state: NodeState) -> dict[str, float]:
    """When the windows end, for whoever counts down: change -> the time of the clock that ``told`` was given."""
    if state.doc is None:
        return {}
    changes = state.doc["changes"]
    return {str(c["id"]): state.at_s + c["remaining_s"] for c in changes if c["remaining_s"] is not None}
