"""Lines instead of a picture, for screen readers, for terminals that cannot be painted, and for pipes: what is so now,
then what changes, at most once a second. Nothing is painted over, and no clock ticks: ends are told as times.  # Y4
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Mapping
from typing import Final

from pact.cli.render import event_line, say
from pact.cli.top import fleetrows
from pact.cli.top import node as nodes
from pact.cli.top.asking import HERE
from pact.cli.top.desk import NONSENSE, Desk
from pact.cli.top.feed import Feed, Record
from pact.cli.top.fleet import ROOT, Said
from pact.cli.top.node import PERSON
from pact.cli.top.text import shown
from pact.errors import EXIT_FAILED

EVERY_S: Final = 1.0
SOON_S: Final = 120.0


class Lines:
    """``news``: what is to be said now, given what was said before."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.said: dict[str, str] = {}
        self.warned: set[str] = set()
        self.trouble = ""
        self.record = -1

    def news(self, now_s: float) -> list[str]:
        out = self._trouble()
        try:
            facts = self._facts()
        except NONSENSE as exc:
            facts = {"nonsense": f"what was said makes no sense here ({type(exc).__name__}): is it of another version?"}
        if facts or self.said:
            out += [text for key, text in facts.items() if self.said.get(key) != text]
            if self._known():
                out += [f"over: {text}" for key, text in self.said.items() if key not in facts]
                self.said = facts
        return [*out, *self._soon(now_s), *self._records()]

    def _known(self) -> bool:
        fleet = self.desk.fleet
        return fleet.known if fleet is not None else self.desk.nodes[HERE].doc is not None

    def _facts(self) -> dict[str, str]:
        fleet = self.desk.fleet
        return fleetrows.spoken(fleet) if fleet is not None else nodes.spoken(self.desk.nodes[HERE])

    def _trouble(self) -> list[str]:
        fleet = self.desk.fleet
        now = fleet.trouble if fleet is not None else self.desk.nodes[HERE].trouble
        before, self.trouble = self.trouble, now
        if now and not before:
            return [f"not live: {shown(now)}"]
        return ["live again"] if before and not now else []

    def _soon(self, now_s: float) -> list[str]:
        """Windows that end soon, each once; of this machine."""
        ends = self.ends()
        self.warned &= {name for name, end_s in ends.items() if end_s - now_s < SOON_S}
        due = [name for name, end_s in ends.items() if end_s - now_s < SOON_S and name not in self.warned]
        self.warned |= set(due)
        return [f"{name} ends in less than two minutes" for name in due]

    def ends(self) -> dict[str, float]:
        try:
            return nodes.ends(self.desk.nodes[HERE]) if self.desk.fleet is None else {}
        except NONSENSE:
            return {}

    def _records(self) -> list[str]:
        """Records of the fleet that are new."""
        fleet = self.desk.fleet
        if fleet is None or not fleet.known:
            return []
        new = [r for r in fleet.records if r.gseq > self.record]
        first, self.record = self.record < 0, max([self.record, *(r.gseq for r in new)])
        return [] if first else [said(r) for r in reversed(new)]


def said(r: Said) -> str:
    name = "root" if r.node == ROOT else shown(r.node, 253)
    return "  ".join(
        filter(None, (name, shown(r.type, 40), f"by {shown(r.user, 40)}" if r.user else "", shown(r.text)))
    )


def show(desk: Desk, feed: Feed) -> int:
    """Until it is interrupted, or nobody reads any more. Returns the exit code."""
    lines = Lines(desk)
    poll = select.poll()
    poll.register(feed.fd, select.POLLIN)
    poll.register(sys.stdout.fileno(), 0)  # whether its reader has gone
    feed.look_at(desk.where)
    feed.start()
    wait_s: float | None = None
    while True:
        if any(fd != feed.fd for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000)):
            return EXIT_FAILED
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        for item in feed.take():
            if isinstance(item, Record):
                say(event(item.record))
            desk.heard(item, now_s, now_ms)
        for text in lines.news(now_s):
            say(text)
        sys.stdout.flush()
        time.sleep(EVERY_S)
        wait_s = EVERY_S if lines.ends() else None


def event(record: Mapping[str, object]) -> str:
    try:
        return event_line(record, PERSON).strip()
    except Exception:  # a record of another version
        return f"{shown(record.get('type', '?'))}: a record that is not understood here"
