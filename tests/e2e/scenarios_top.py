"""``pact top`` of a fleet: a real terminal, a real root, real nodes behind an aggregator that carries sealed words."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenarios import CONF, Site, apply, build, group, has, main, ok, scenario, wait_until
from screens import Painted
from terminals import KNOWN, on_terminal

LATE_S = 10.0  # once a second on either side; other tests may fill the machine


@contextmanager
def top(site: Site, *words: str, rows: int = 40, **env: str) -> Iterator[Painted]:
    terminal = on_terminal(site.argv(["top", *words]), {**site.env, **KNOWN, **env}, 0, rows)
    try:
        yield Painted(terminal, rows)
    finally:
        terminal.close()


@scenario
def the_fleet_is_seen_and_settled_from_one_terminal(site: Site) -> None:
    names = build(site, 3, middle=["agg1"])
    site.write_client("ann", ["agg1"])
    with top(site, "--nodes", "*") as fleet:
        fleet.shows("default  3 nodes", "no window is open")
        site.nodes["n2"].path(CONF).write_text("mine\n")
        began = time.monotonic()
        text = fleet.shows("1 drifted", "Earliest ends", f"file:{CONF}", "drift_detected")
        took = time.monotonic() - began
        assert "n2" in text.partition("Earliest ends")[2], text

        # Down to the node, and back.
        fleet.click(fleet.row_of(f"file:{CONF}"))
        fleet.click(fleet.row_of(f"file:{CONF}"))
        fleet.shows("n2  DRIFTED", "Changes (1)", "c1", "Newest records", "window_opened")
        fleet.type("e")
        fleet.shows("Extend c1 of", "on n2", "+1 -1", "by how long?")
        fleet.type("1h\r")
        fleet.shows("type c1 and Enter")  # root's, whom no key names
        fleet.type("c1\r")
        fleet.shows("c1 has more time until", "Enter: go on")
        fleet.type("\r")
        fleet.shows("window_extended", "by 1h  by ann")
        fleet.type("r")
        fleet.shows("Roll back c1", "restore", "type c1 and Enter")
        fleet.type("c1\r")
        fleet.shows("rolled back c1", "Enter: go on")
        assert has(site, "n2") == "old\n"
        fleet.type("\r")
        fleet.shows("n2  COMMITTED", "nothing is open")
        fleet.type("\x1b")
        fleet.shows("3 committed", "rolled_back")

        # A group, with whoever is in its way.
        gid = apply(site, names)
        fleet.shows("Groups", gid, "3 of 3")
        holder = site.hold_open("n3", CONF)
        assert site.pact("rollback", gid).code == 10
        fleet.shows("sleep", "blocked")
        holder.kill()
        holder.wait()
        fleet.click(fleet.row_of(f"{gid} "))
        fleet.type("c")
        fleet.shows(f"Commit group {gid} of ann, on all its nodes", "why?")
        fleet.type("it is good\r")
        fleet.shows(f"type {gid} and Enter")
        fleet.type(f"{gid}\r")
        fleet.shows("committed", "Enter: go on", seconds=40)
        assert group(site, gid)["state"] == "committed" and all(has(site, n) == "new\n" for n in names)
        fleet.type("\r")
        fleet.shows("3 committed", "no window is open")

        ok(site, "emergency", "start", "--reason", "flood \x1b[2J", "--for", "1h", "--nodes", "n1")
        fleet.shows("1 emergency", "flood \\x1b[2J")
        ok(site, "emergency", "end", "--rollback", "--nodes", "n1")
        hold = ok(site, "hold", "place", "--all", "--reason", "storm", "--for", "10m")["hold"]
        fleet.shows("NOTHING ROLLS BACK ANYWHERE until", "storm")
        ok(site, "hold", "release", hold, "--all")
        fleet.hides("NOTHING ROLLS BACK")

        # Only some of them.
        fleet.type("/")
        fleet.shows("only these nodes:")
        fleet.type("n[2-3]\r")
        fleet.shows("2 of 3 nodes", "only n[2-3]")
        fleet.type("\x1b")
        fleet.shows("3 nodes")

        site.kill_agent("n1")
        fleet.shows("1 away")
        site.kill_aggregator("root")
        fleet.shows("NOT LIVE for", seconds=60)
        site.start_aggregator("root", 1)
        fleet.hides("NOT LIVE", seconds=60)
        fleet.shows("3 nodes", seconds=60)
        site.nodes["n3"].path(CONF).write_text("mine\n")
        fleet.shows("1 drifted", "n3", seconds=60)
        fleet.type("q")
        assert fleet.terminal.end() == 0
        assert "\x1b[2J" not in fleet.terminal.text
    print(f"seen after {took:.2f} s")
    assert took < LATE_S, took

    site.write_client("eve", ["agg1"])
    with top(site, "--nodes", "n[2-3],n9") as viewer:
        viewer.shows("2 nodes", "1 drifted", "not known: n9")
        viewer.click(viewer.row_of(f"file:{CONF}"))
        viewer.type("\r")
        viewer.shows("n3  DRIFTED", "c1")
        viewer.type("c")
        viewer.shows("a viewer may look, and not commit")
        viewer.type("q")
        assert viewer.terminal.end() == 0
    with top(site, "--nodes", "*", TERM="dumb") as lines:
        lines.shows("default  3 nodes", "n3: a window of", f"file:{CONF}")
        site.nodes["n3"].path(CONF).write_text("new\n")
        lines.shows("over: n3: a window of", "n3  drift_cleared")
        lines.type("\x03")
        assert lines.terminal.end() == 0 and "\x1b" not in lines.terminal.text
    wait_until(lambda: site.connected() == ["n2", "n3"], "nobody minds")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
