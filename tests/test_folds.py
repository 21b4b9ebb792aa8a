"""Answers of many nodes on one page: nodes that say the same stand on one line."""

from __future__ import annotations

from typing import Any

import pytest
from test_render import ENTRY, drifted

from pact.cli import folds, groups
from pact.cli.render import View, put
from pact.cluster import page


def node(n: int, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """One of many equal nodes: it counts its changes and records by itself, and was written to by another process."""
    doc = drifted(
        node=f"n{n}", journal={"seq": 40 + n, "replicated": 40}, cluster={"connected": True, "alone_until": None}
    )
    doc["changes"] = [
        {
            **doc["changes"][0],
            "id": f"c{n}",
            "deadline": f"2026-01-01T10:26:{n:02}.123Z",
            "remaining_s": 700 + n,
            "owner": {"user": "ann", "command": f"sh -c {n}"},
        }
    ]
    return {**doc, **more}, [f"n{n}"]


MANY = View(ids=False)


def texts(lines: Any) -> list[str]:
    return [text for text, _ in lines]


def test_status_counts_by_state_and_has_a_line_for_each_set_that_says_the_same() -> None:
    quiet = {"state": "committed", "drifted": 0, "changes": [], "untracked": 0, "unreadable": 0}
    said = texts(folds.status([*(node(n) for n in range(1, 31)), *(node(n, **quiet) for n in range(31, 34))], 2, MANY))
    assert said[0] == "30 drifted, 3 committed, 2 without an answer" and len(said) == 3
    assert said[1].startswith("n[1-30] (30): drifted; declared: 1204, drifted: 3")
    assert (
        "open ann until 2026-01-01T10:26Z: file:/etc/NetworkManager/chrony.conf, sysctl:net.core.somaxconn" in said[1]
    )
    assert said[2].startswith("n[31-33] (3): committed; declared: 1204")


def test_diff_goes_by_resource_then_by_node_sets() -> None:
    other = {**ENTRY, "declared": {"mode": "0644"}, "actual": {"mode": "0666"}, "diff": None}
    documents = [
        ({"resources": [{**ENTRY, "change": f"c{n}", "owner": {"user": "ann", "command": str(n)}}]}, [f"n{n}"])
        for n in range(1, 9)
    ] + [({"resources": [other]}, ["n9"]), ({"resources": []}, ["n10"])]
    said = texts(folds.diff(documents, 0, MANY))
    assert said[0] == "file:/a" and said[1] == "  n[1-8] (8)  (ann)"
    assert said.count("file:/a") == 1 and any(line.startswith("  n9  (ann)") for line in said)
    assert "    + mode: 0666" in said and said[-1] == "n10: no drift"


def record(name: str, seq: int, second: int, message: str = "why") -> dict[str, Any]:
    return {
        "record": {
            "seq": seq,
            "time": f"2026-01-01T10:{second // 60:02}:{second % 60:02}.000000Z",
            "type": "committed",
            "node": name,
            "actor": {"user": "ann", "via": "socket"},
            "data": {"change": f"c{seq}", "resources": ["file:/a"], "message": message},
        }
    }


def test_log_folds_what_happened_within_a_minute_on_many_nodes() -> None:
    documents = [
        ({"rows": [record(f"n{n}", 100 * n, 30 + n), record(f"n{n}", 7 * n, 400)]}, [f"n{n}"]) for n in range(1, 31)
    ]
    documents += [({"rows": [record("n50", 1, 50, "else")]}, ["n50"]), ({"rows": []}, ["n51"])]
    assert texts(folds.log(documents, 0, MANY)) == [
        "2026-01-01T10:06Z  n[1-30] (30): committed  file:/a: why  by ann",
        "2026-01-01T10:00Z  n50: committed  file:/a: else  by ann",
        "2026-01-01T10:00Z  n[1-30] (30): committed  file:/a: why  by ann",
        "n51: no such records",
    ]


def test_what_one_node_has_done_twice_is_two_lines() -> None:
    documents = [({"rows": [record("n1", 1, 1), record("n1", 2, 2)]}, ["n1"])]
    assert len(texts(folds.log(documents, 0, MANY))) == 2


def test_groups_are_a_table_and_one_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def group(n: int) -> dict[str, Any]:
        return {
            "group": f"g{n}",
            "state": "open",
            "owner": "ann",
            "deadline": "2026-01-01T10:26:00Z",
            "remaining_s": 700,
            "members": {"applied": "n[1-3]", "left": "n4"},
            "nodes": "n[1-4]",
            "message": "why",
            "blocked": {},
            "resources": [f"file:/etc/x{i}" for i in range(20)],
        }

    put(groups.show_table({"groups": [group(7), group(12)]}, View()))
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.split() == ["group", "state", "owner", "end", "members", "resources"]
    assert one == "g7     open   ann    2026-01-01T10:26Z  applied n[1-3], left n4  file:/etc/x[0-19]"
    assert two.startswith("g12 ")
    put(groups.show_groups({"groups": [group(7)]}, View()))
    assert "g7 open: n[1-4]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "mood"),
    [
        ("open", "warn"),
        ("drifted", "warn"),
        ("committed", "good"),
        ("blocked", "bad"),
        ("failed", "bad"),
        ("emergency", "alarm"),
    ],
)
def test_on_the_page_colours_mean_what_the_state_means(state: str, mood: str) -> None:
    shown = page.page(
        {"root": True, "states": {state: ["n1", 1]}, "groups": [{"id": "g1", "state": state}], "states_age_s": 7.2}
    )
    assert shown.count(f'<b class="{mood}">{state}</b>') == 2
    assert "as they said within the last 7 s; asked every 15 s" in shown
    assert b"pact_nodes_age_seconds 7.2" in page.metrics({"root": True, "states_age_s": 7.2})
