"""The live page of a real root, with real nodes behind an aggregator, in real Chromium inside the same namespaces."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from scenarios import CONF, Site, apply, build, main, ok, scenario, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from netsite import SiteError
from page_kit import chromium

LATE_S = 1.0
LATEST_S = 5.0  # other tests may fill the machine


@contextmanager
def page(site: Site, name: str) -> Iterator[Any]:
    with chromium() as browser:
        opened = browser.new_page()
        opened.goto(f"http://{site._addresses[name]}:7420/")
        opened.wait_for_selector("#live.good")
        yield opened


def cells(opened: Any, state: str) -> list[str]:
    found: list[str] = opened.eval_on_selector_all(f"#map i.{state}", "all => all.map(c => c.dataset.cell)")
    return found


def shows(opened: Any, state: str, names: list[str]) -> float:
    """Wait until the map shows exactly these nodes in this state. Returns the time then."""
    try:
        wait_until(lambda: sorted(cells(opened, state)) == names, f"{names} {state}", 20)
    except SiteError as exc:
        found = opened.eval_on_selector_all("#map i", "all => all.map(c => `${c.dataset.cell}: ${c.className}`)")
        raise SiteError(f"{exc}; it is {opened.inner_text('#live')}: {found}") from None
    return time.time()


def recorded_s(opened: Any, name: str, type_: str) -> float:
    """When the node wrote its newest record of this type."""
    rows = opened.evaluate("name => fetch(`/node?name=${name}`).then(a => a.json())", name)["records"]
    return max(float(ms) for _, ms, _, found, *_ in rows if found == type_) / 1000


def ends_s(opened: Any, name: str) -> float:
    """When the root says that the window of the node's one change ends: it computes that from records alone."""
    (change,) = opened.evaluate("name => fetch(`/node?name=${name}`).then(a => a.json())", name)["changes"]
    return float(change["ends_ms"]) / 1000


def ends_there_s(site: Site, name: str) -> float:
    (change,) = site.local(name, "--json", "status").json()["changes"]
    return datetime.fromisoformat(change["deadline"]).timestamp()


@scenario
def the_page_shows_what_happens_within_a_second(site: Site) -> None:
    names = build(site, 3, middle=["agg1"])
    with page(site, "root") as opened:
        wait_until(lambda: cells(opened, "committed") == names, "all conform", 30)
        took = []
        for _ in range(3):
            site.nodes["n2"].path(CONF).write_text("mine\n")
            seen_s = shows(opened, "drifted", ["n2"])
            took.append(seen_s - recorded_s(opened, "n2", "drift_detected"))
            wait_until(lambda: "n2" in opened.inner_text("#windows"), "its window")
            assert abs(ends_s(opened, "n2") - ends_there_s(site, "n2")) < 0.2
            site.nodes["n2"].path(CONF).write_text("old\n")
            seen_s = shows(opened, "drifted", [])
            took.append(seen_s - recorded_s(opened, "n2", "drift_cleared"))
        print("after the event:", [round(s, 3) for s in took])
        assert sorted(took)[2] < LATE_S and max(took) < LATEST_S, took

        gid = apply(site, names)
        wait_until(lambda: gid in opened.inner_text("#groups-section"), "the group")
        wait_until(lambda: "3 of 3" in opened.inner_text("#groups"), opened.inner_text("#groups"))
        holder = site.hold_open("n3", CONF)
        assert site.pact("rollback", gid).code == 10
        wait_until(lambda: "sleep (pid" in opened.inner_text("#groups"), opened.inner_text("#groups"))
        holder.kill()
        holder.wait()
        ok(site, "rollback", gid)
        shows(opened, "committed", names)

        ok(site, "emergency", "start", "--reason", "flood <b>", "--for", "1h", "--nodes", "n1")
        shows(opened, "emergency", ["n1"])
        assert "flood <b>" in opened.inner_text("#held")
        ok(site, "emergency", "end", "--rollback", "--nodes", "n1")
        shows(opened, "emergency", [])
        hold = ok(site, "hold", "place", "--all", "--reason", "storm", "--for", "10m")["hold"]
        wait_until(lambda: "Nothing rolls back anywhere" in opened.inner_text("#alerts"), "the stop")
        ok(site, "hold", "release", hold, "--all")

        site.kill_agent("n1")
        shows(opened, "away", ["n1"])
        site.nodes["n2"].path(CONF).write_text("mine\n")
        shows(opened, "drifted", ["n2"])

    # The root begins anew: what is open it reads from its log, and the page comes back to it by itself.
    with page(site, "root") as opened:
        site.kill_aggregator("root")
        wait_until(lambda: "not live" in opened.inner_text("#live"), "it says that it is not live")
        site.start_aggregator("root", 1)
        wait_until(lambda: opened.inner_text("#live").removeprefix("\u25cf").strip() == "live", "live again", 30)
        shows(opened, "drifted", ["n2"])
        wait_until(lambda: "n2" in opened.inner_text("#windows"), "its window")
        opened.click("#windows button")
        wait_until(lambda: CONF in opened.inner_text("#node"), opened.inner_text("#node"))

    with page(site, "agg1") as opened:
        shows(opened, "connected", ["n2", "n3"])
        assert "does not read them" in opened.inner_text("#alerts")
        assert not opened.is_visible("#windows-section")


if __name__ == "__main__":
    sys.exit(main())
