"""Bringing a link to a state, with iproute2: one command for each thing that differs.

Never through a shell. Names stand behind ``dev``, so that one that begins with ``-`` is no option. What the kernel
drops with a link that goes down or with an address comes back at the end: the IPv6 addresses and the routes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Final

from pact.errors import RestoreError
from pact.model import Attrs, Unreadable, decode_name
from pact.resources.base import run_tool
from pact.resources.support import link_look
from pact.resources.support.link_look import Held, Known
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_text import family_of
from pact.resources.support.link_wire import BOOT, INET, INET6, Malformed

IP_TIMEOUT_S: Final = 20
#: Kinds of links that need nothing but their declaration to exist.
MADE: Final = ("bridge", "bond", "vlan")
ROUNDS: Final = 2
DAD_S: Final = 4.0
PAUSE_S: Final = 0.2


class Setter:
    """One link, by its name; ``ip`` is the command of iproute2."""

    def __init__(self, ip: str, name: str) -> None:
        self._ip, self.name, self._raw = ip, name, decode_name(name)

    def run(self, *words: str | bytes) -> None:
        """Raises RestoreError with what ip says."""
        run_tool("ip", IP_TIMEOUT_S, [self._ip, *words])

    def seen(self) -> Attrs | None:
        """The link now. Raises RestoreError if it cannot be read."""
        seen = link_look.look(self.name)
        if isinstance(seen, Unreadable):
            raise RestoreError(seen.why)
        return seen

    def there(self) -> Attrs:
        """Raises RestoreError if it went away."""
        seen = self.seen()
        if seen is None:
            raise RestoreError("it went away meanwhile")
        return seen

    # -- existence --------------------------------------------------------------------------------------------------

    def make(self, target: Attrs) -> None:
        """Create one that its declaration describes. Raises RestoreError."""
        if "vlan" in target:
            parent, number = decode_name(target["vlan"]["parent"]), str(target["vlan"]["id"])
            self.run("link", "add", "link", parent, "name", self._raw, "type", "vlan", "id", number)
        elif target.get("type") == "bond" or "bond" in target:
            mode = ("mode", target["bond"]) if "bond" in target else ()
            self.run("link", "add", "name", self._raw, "type", "bond", *mode)
        elif target.get("type") in MADE:
            self.run("link", "add", "name", self._raw, "type", target["type"])
        else:
            raise RestoreError("there is no such link, and pact cannot make one of this type")

    def remove(self) -> None:
        self.run("link", "del", "dev", self._raw)

    def name_back(self, now: bytes) -> None:
        """Give a link that was renamed its name back; an older kernel refuses that while it is up."""
        try:
            self.run("link", "set", "dev", now, "name", self._raw)
        except RestoreError:
            self.run("link", "set", "dev", now, "down")
            self.run("link", "set", "dev", now, "name", self._raw)
            self.run("link", "set", "dev", self._raw, "up")

    def name_to(self, other: bytes) -> None:
        self.run("link", "set", "dev", self._raw, "name", other)

    # -- what it has ------------------------------------------------------------------------------------------------

    def bring(self, target: Attrs, known: Known | None) -> None:
        """All that ``target`` says, and what it does not say but the kernel drops on the way (``known``). Raises
        RestoreError.  # X3"""
        seen = self.there()
        was_down = seen["state"] == "down"
        wanted = target["master"] if "master" in target else seen["master"]
        if wanted != seen["master"]:
            if seen["master"]:
                self.run("link", "set", "dev", self._raw, "nomaster")
            if wanted:
                self._join(decode_name(wanted), up=not was_down)
                was_down = was_down or self.there()["state"] == "down"
        if target.get("mtu", seen["mtu"]) != seen["mtu"]:
            self.run("link", "set", "dev", self._raw, "mtu", str(target["mtu"]))
        state = target["state"] if "state" in target else seen["state"]
        if self.there()["state"] != state:
            self.run("link", "set", "dev", self._raw, state)
        if "addresses" in target:
            self._addresses(target["addresses"])
        elif was_down and state == "up" and known is not None:
            self._add_again(a for a in known.at(None).addresses if family_of(a) == INET6)
        if state == "up":
            if "routes" in target:
                self._routes(target["routes"])
            elif known is not None and (was_down or not set(target.get("addresses", ())) <= set(seen["addresses"])):
                self._routes_again(target, known)

    def _join(self, master: bytes, *, up: bool) -> None:
        """A bond takes no member that is up."""
        try:
            self.run("link", "set", "dev", self._raw, "master", master)
        except RestoreError:
            if not up:
                raise
            self.run("link", "set", "dev", self._raw, "down")
            try:
                self.run("link", "set", "dev", self._raw, "master", master)
            except RestoreError:
                self.run("link", "set", "dev", self._raw, "up")
                raise

    def _addresses(self, wanted: Sequence[str]) -> None:
        """Add first, so that the link is never without one; then take away. Taking the first address of a network away
        takes the others of it, too: so twice."""
        for _ in range(ROUNDS):
            have = self._present()
            for text in wanted:
                if text not in have:
                    self._give_way(text, have)
                    self._add(text)
            extra = [a for a in self.there()["addresses"] if a not in wanted]
            for text in extra:
                self._delete(text)
            if not extra:
                return

    def _give_way(self, text: str, have: Iterable[str]) -> None:
        """The kernel takes an IPv6 address once, whatever its length."""
        for other in have:
            if family_of(text) == INET6 and other.partition("/")[0] == text.partition("/")[0]:
                self._delete(other)

    def _present(self) -> set[str]:
        """Its addresses, with those that the kernel or a DHCP client set: one of them may be declared, too."""
        seen = self.there()
        return {*seen["addresses"], *seen.get("dynamic", ())}

    def _add(self, text: str) -> None:
        words = text.split()
        plain = family_of(text) == INET and len(words) == 1 and int(text.rpartition("/")[2]) < 31
        self.run("address", "add", *words, *(("brd", "+") if plain else ()), "dev", self._raw)

    def _delete(self, text: str) -> None:
        try:
            self.run("address", "del", *text.split(), "dev", self._raw)
        except RestoreError:
            if text in self._present():  # else it went with another
                raise

    def _add_again(self, addresses: Iterable[str]) -> None:
        have = self._present()
        for text in addresses:
            if text not in have:
                self._add(text)

    def _routes(self, wanted: Sequence[str]) -> None:
        have = self._held()
        for text in [t for t in have if t not in wanted]:
            self._route("del", text, have[text])
        for text in _direct_first(t for t in wanted if t not in have):
            self._route_again(text, BOOT)

    def _routes_again(self, target: Attrs, known: Known) -> None:
        """Those that went with the link or with an address that is back: best effort, nobody declared them."""
        routes = known.at(target.get("addresses")).routes
        have = self._held()
        made_by = dict(routes)
        for text in _direct_first(t for t, _ in routes if t not in have):
            with contextlib.suppress(RestoreError):
                self._route_again(text, made_by[text])

    def _route_again(self, text: str, protocol: int) -> None:
        """One of IPv6 may need an address that the kernel still looks for at other nodes (DAD)."""
        ends = time.monotonic() + (DAD_S if family_of(text) == INET6 and " src " in text else 0)
        while True:
            try:
                return self._route("add", text, protocol)
            except RestoreError:
                if time.monotonic() >= ends:
                    raise
            time.sleep(PAUSE_S)

    def _held(self) -> dict[str, int]:
        """The routes over it: text -> who made it."""
        try:
            with Talk() as talk:
                link = talk.link(self._raw)
                found: list[Held] = [(r.text, r.protocol) for r in talk.routes(link.index)] if link else []
        except (OSError, Malformed) as exc:
            raise RestoreError(link_look.why_unread(exc)) from None
        return dict(found)

    def _route(self, what: str, text: str, protocol: int) -> None:
        family = "-6" if family_of(text) == INET6 else "-4"
        words = [w for w in text.split() if w != "onlink"]
        onlink = ("onlink",) if text.endswith(" onlink") else ()
        self.run(family, "route", what, *words, "dev", self._raw, *onlink, "proto", str(protocol))


def _direct_first(routes: Iterable[str]) -> list[str]:
    """Routes without a gateway first: another's gateway may lie behind one of them."""
    return sorted(routes, key=lambda text: (" via " in text, text))
