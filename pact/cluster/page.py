"""The web page and the metrics, made from a plain dictionary. Pure, and suspicious: names come from machines and
people.

The page is complete without script, and reloads itself then. With script, ``static/page.js`` puts the live view in its
place. Nothing comes from another host, and the policy allows none of it.  # V5

Keys, all of them optional: ``name``, ``cluster``, ``version``, ``root`` (whether it is one), ``leading``, ``fence``,
``gseq``, ``oldest``, ``events`` (committed since the start), ``commit_s`` (duration of the last one), ``children``,
``connected`` (nodes), ``states_age_s``, ``states`` ``{state: [names, count]}`` (whose text is folded), ``untracked``
``[names, count]`` (nodes with an undeclared thing below a tracked pattern), ``groups`` ``[{id, state, nodes, owner,
message, left_s}]``, ``group_states`` ``{state: count}``, ``buffered`` (bytes), ``calls``, ``refused`` ``{reason:
count}``, ``healthy``, ``trouble`` (why not healthy); ``windows``, ``stopped``, ``records`` as ``Live.plain`` returns
them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pact.core.units import format_duration
from pact.model import NS_PER_S

NAMES_MAX: Final = 2000
ROWS_MAX: Final = 100
REASONS_MAX: Final = 50
REFRESH_S: Final = 5
STATES_S: Final = 15  # how often a root asks all nodes for their state
#: In the order that is most useful for a person.
GRAVEST: Final = ("emergency", "failed", "blocked", "drifted", "away", "unknown", "unconfigured", "committed")

#: The meanings of the colours.
MOODS: Final = {
    "committed": "good",
    "emergency": "alarm",
    "held": "alarm",
    **dict.fromkeys(("drifted", "open", "active", "away", "unconfigured", "unknown", "carrying out"), "warn"),
}

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)


def text(value: object, most: int = NAMES_MAX) -> str:
    """The value as escaped text of bounded length.  # V5"""
    raw = str(value)
    raw = raw if len(raw) <= most else raw[:most] + " ..."
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in raw)
    return html.escape(printable, quote=True)


def number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _sized(count: int) -> str:
    """Bytes for people."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _table(heads: Sequence[str], rows: Iterable[str], nothing: str) -> str:
    """``#`` before a head: its column has numbers."""
    body = "".join(rows)
    if not body:
        return f'<p class="dim">{nothing}</p>'
    cells = (f'<th class="n">{h[1:]}</th>' if h.startswith("#") else f"<th>{h}</th>" for h in heads)
    return "<table><tr>" + "".join(cells) + f"</tr>{body}</table>"


def _mood(state: str) -> str:
    return MOODS.get(state, "bad")


def _states(states: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    total = max(1, sum(number(s[1]) for s in states.values()))
    order = {s: n for n, s in enumerate(GRAVEST)}
    for state in sorted(states, key=lambda s: (order.get(s, -1), s))[:ROWS_MAX]:
        names, count = states[state]
        yield (
            f'<tr><td class="state"><b class="{_mood(state)}">{text(state, 40)}</b></td>'
            f'<td class="n">{number(count)}</td>'
            f'<td class="state"><meter max="{total}" value="{number(count)}"></meter></td>'
            f'<td class="names">{text(names)}</td></tr>'
        )


def _groups(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for g in groups[:ROWS_MAX]:
        left = g.get("left_s")
        shown = format_duration(int(left) * NS_PER_S) if isinstance(left, int | float) else ""
        yield (
            f'<tr><td>{text(g.get("id", ""), 40)}</td><td class="state"><b class="{_mood(str(g.get("state")))}">'
            f'{text(g.get("state", ""), 40)}</b></td><td class="n">{text(shown)}</td>'
            f"<td>{text(g.get('owner', ''), 80)}</td><td>{text(g.get('message', ''), 200)}</td>"
            f'<td class="names">{text(g.get("nodes", ""))}</td></tr>'
        )


def _age(age_s: object) -> str:
    """How old the shown states may be: nodes are asked periodically."""
    if not isinstance(age_s, int | float):
        return ""
    return f'<p class="dim">as they said within the last {max(1, round(age_s))} s; asked every {STATES_S} s</p>'


def _untracked(found: object) -> str:
    names, count = found if isinstance(found, list) else ("", 0)
    if not number(count):
        return ""
    nodes = "1 node" if count == 1 else f"{count} nodes"
    return f'<p>Something <b class="warn">untracked</b> on {nodes}: {text(names)}</p>'


def _holds(holds: Iterable[Mapping[str, Any]]) -> str:
    """Holds of the whole fleet stand above everything else."""
    out = []
    for h in holds:
        ends = text(str(h.get("ends", ""))[:19].replace("T", " "), 40)
        who = f"{text(h.get('hold', ''), 40)} by {text(h.get('owner', ''), 80)}: {text(h.get('reason', ''), 200)}"
        out.append(f'<p><b class="alarm">Nothing rolls back anywhere</b> until {ends} UTC: {who}</p>')
    return "".join(out)


def _of_records(s: Mapping[str, Any]) -> str:
    """What a leading root knows of single nodes."""
    if not s.get("leading") or "records" not in s:
        return ""

    def cells(row: Sequence[Any], most: int = 200) -> str:
        return "<tr>" + "".join(f'<td class="wide">{text(cell, most)}</td>' for cell in row) + "</tr>"

    windows = [
        cells(
            [format_duration(max(0, int(left_s)) * NS_PER_S), name, who, f"{first} ({count})" if count > 1 else first]
        )
        for name, left_s, who, count, first in s["windows"]
    ]
    return (
        "<h2>Blocked and failed</h2>"
        + _table(["node", "state", "owner", "what", "by whom, or why"], map(cells, s["stopped"]), "Nothing.")
        + "<h2>Windows by time left</h2>"
        + _table(["left", "node", "owner", "what"], windows, "None is open.")
        + "<h2>Newest records</h2>"
        + _table(["node", "what", "who", ""], map(cells, s["records"]), "None yet.")
    )


def page(s: Mapping[str, Any]) -> str:
    """The whole page."""
    name, cluster = text(s.get("name", "?"), 253), text(s.get("cluster", ""), 80)
    groups = s.get("groups", [])
    if not s.get("root"):
        role = "aggregator"
    else:
        role = '<b class="good">leading root</b>' if s.get("leading") else '<b class="warn">root, standing by</b>'
    why = "" if s.get("healthy", True) else text(s.get("trouble") or "not healthy", 500)
    trouble = f'<p><b class="bad">{why}</b></p>' if why else ""
    facts = [
        ("nodes connected", number(s.get("connected"))),
        ("children", number(s.get("children"))),
        ("calls under way", number(s.get("calls"))),
        ("buffered", _sized(number(s.get("buffered")))),
        ("refused messages", sum(map(number, dict(s.get("refused", {})).values()))),
    ]
    if s.get("root"):
        facts[2:2] = [
            ("newest event", number(s.get("gseq"))),
            ("oldest event kept", number(s.get("oldest"))),
            ("fence", number(s.get("fence"))),
        ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: pact</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>'
        '<link rel="stylesheet" href="/page.css"><link rel="icon" href="/icon.svg">'
        '<script src="/page.js" defer></script></head><body><main id="plain">'
        f"<h1>{name}</h1>"
        f'<p class="dim">{role} of cluster {cluster}, pact {text(s.get("version", ""), 40)}</p>{trouble}'
        f"{_holds(s.get('holds', []))}<dl>"
        + "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
        + f"</dl><h2>Nodes by state</h2>{_age(s.get('states_age_s'))}"
        + _table(["state", "#nodes", "", "names"], _states(s.get("states", {})), "None is known.")
        + _untracked(s.get("untracked"))
        + "<h2>Open groups</h2>"
        + _table(["group", "state", "#left", "owner", "message", "nodes"], _groups(groups), "None.")
        + _of_records(s)
        + "</main></body></html>\n"
    )


def metrics(s: Mapping[str, Any]) -> bytes:
    """Prometheus' text format. Unknown values are left out."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def collect() -> Iterator[Any]:
        plain: list[tuple[str, str, str, Callable[..., Any]]] = [
            ("children", "children", "Children that are connected.", GaugeMetricFamily),
            ("nodes_connected", "connected", "Nodes below that are connected.", GaugeMetricFamily),
            ("buffered_bytes", "buffered", "Bytes of events on their way up.", GaugeMetricFamily),
            ("calls", "calls", "Calls under way.", GaugeMetricFamily),
            ("leader", "leading", "1 on the root that leads.", GaugeMetricFamily),
            ("fence", "fence", "The fence with which it leads.", GaugeMetricFamily),
            ("gseq", "gseq", "Global number of the newest event.", GaugeMetricFamily),
            ("oldest_gseq", "oldest", "Global number of the oldest event that is kept.", GaugeMetricFamily),
            ("commit_seconds", "commit_s", "How long the last commit took.", GaugeMetricFamily),
            ("nodes_age_seconds", "states_age_s", "How old the states of nodes may be.", GaugeMetricFamily),
            ("healthy", "healthy", "1 if /health says ok.", GaugeMetricFamily),
            ("pages", "pages", "Live pages that are open.", GaugeMetricFamily),
            ("pages_dropped", "pages_dropped", "Live pages cut off because they did not read.", CounterMetricFamily),
            ("pages_refused", "pages_refused", "Live pages refused because too many are open.", CounterMetricFamily),
            ("events_committed", "events", "Events committed since the start.", CounterMetricFamily),
        ]
        for name, key, about, family in plain:
            if isinstance(s.get(key), int | float):
                yield family(f"pact_{name}", about, value=float(s[key]))
        if "untracked" in s:
            about = "Nodes with something below a tracked pattern that nobody declared."
            yield GaugeMetricFamily("pact_nodes_untracked", about, value=float(number(s["untracked"][1])))
        if "holds" in s:
            yield GaugeMetricFamily("pact_fleet_holds", "Holds of the whole fleet.", value=float(len(s["holds"])))
        labelled: list[tuple[str, str, str, str, Callable[..., Any]]] = [
            ("nodes", "states", "state", "Nodes by state.", GaugeMetricFamily),
            ("groups", "group_states", "state", "Groups by state.", GaugeMetricFamily),
            ("refused", "refused", "reason", "Messages refused, by reason.", CounterMetricFamily),
        ]
        for name, key, label, about, family in labelled:
            if key in s:
                made = family(f"pact_{name}", about, labels=[label])
                for value, count in list(dict(s[key]).items())[:REASONS_MAX]:
                    made.add_metric([str(value)[:80]], float(number(count[1] if key == "states" else count)))
                yield made

    class Once:
        def collect(self) -> Iterator[Any]:
            return collect()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return generate_latest(registry)
