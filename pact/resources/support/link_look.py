"""What a link looks like now, as attributes; and what it had before the kernel dropped it.

Setting a link down takes its IPv6 addresses and all routes over it away, and nothing brings them back when it is set
up again. So the last state with the link up is remembered by name, in a file that outlives the agent but not the boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pact.core import strict
from pact.host.notify import log
from pact.model import Attrs, Observation, Unreadable, decode_name, encode_name
from pact.resources.support import link_wire as wire
from pact.resources.support.link_place import PLACE
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_wire import Address, Link, Malformed, Route

ADDRESSES_MAX: Final = 1024
ROUTES_MAX: Final = 1024
#: Links that are remembered; containers make new names without end.
REMEMBERED_MAX: Final = 256
PASTS_MAX: Final = 8
FILE_NAME: Final = "links"
FILE_MAX: Final = 1 << 20

T = TypeVar("T", Address, Route)

#: A route, as text, and who made it.
Held = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Past:
    """A link as it once was, up: its addresses, and the routes over it."""

    addresses: tuple[str, ...]
    routes: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """``pasts``: the last one for each set of addresses, the newest at the end."""

    index: int
    hardware: str
    pasts: tuple[Past, ...] = ()

    def at(self, addresses: Iterable[str] | None) -> Past:
        """The newest past with these addresses, else with some of them; ``None``: the newest of all."""
        wanted = None if addresses is None else set(addresses)
        newest = self.pasts[::-1]
        same = [p for p in newest if wanted is None or set(p.addresses) == wanted]
        fewer = [p for p in newest if wanted is None or set(p.addresses) <= wanted]
        return next(iter(same or fewer), Past((), ()))


_lock = threading.Lock()
_file_lock = threading.Lock()
_known: dict[str, Known] = {}
_unsaved: set[str] = set()
_path = ""
_stamp: list[Any] = []


def state_of(link: Link) -> str:
    return "up" if link.flags & wire.UP else "down"


def attrs_of(link: Link, addresses: Sequence[Address], routes: Sequence[Route], name_of: Callable[[int], str]) -> Attrs:
    """The attributes of one link; the address and route lists are its own."""
    attrs: Attrs = {
        "state": state_of(link),
        "mtu": link.mtu,
        "addresses": sorted(a.text for a in addresses if a.kept),
        "routes": sorted({r.text for r in routes}),
        "master": name_of(link.master) if link.master else "",
        "type": link.kind or "device",
    }
    passing = sorted(a.text for a in addresses if not a.kept and not a.passing)
    if passing:
        attrs["dynamic"] = passing
    if link.kind == "vlan":
        attrs["vlan"] = {"parent": name_of(link.parent) if not link.elsewhere else "", "id": link.vlan}
    if link.kind == "bond":
        attrs["bond"] = wire.MODES[link.mode] if link.mode < len(wire.MODES) else str(link.mode)
    return attrs


def why_too_many(addresses: Sequence[Address], routes: Sequence[Route]) -> str:
    if len(addresses) > ADDRESSES_MAX:
        return f"link: it has {len(addresses)} addresses, more than {ADDRESSES_MAX}"
    if len(routes) > ROUTES_MAX:
        return f"link: {len(routes)} static routes lead over it, more than {ROUTES_MAX}"
    return ""


def look(name: str) -> Observation:
    """One link. Never raises for what the machine does."""
    try:
        with Talk() as talk:
            link = talk.link(decode_name(name))
            if link is None:
                return None
            addresses, routes = talk.addresses(link.index), talk.routes(link.index)
            again = talk.link(index=link.index)
            if again is None or again.name != link.name:
                return None  # it went away while it was looked at
            if why := why_too_many(addresses, routes):
                return Unreadable(why)
            attrs = attrs_of(again, addresses, routes, lambda index: _name(talk, index))
    except (OSError, Malformed) as exc:
        return Unreadable(why_unread(exc))
    remember(name, again, attrs, routes)
    return attrs


def _name(talk: Talk, index: int) -> str:
    link = talk.link(index=index)
    return encode_name(link.name) if link is not None else f"if{index}"


def look_at_all() -> Callable[[str], Observation]:
    """The same for many names at one moment: the links, the addresses and the routes are each read once."""
    try:
        with Talk() as talk:
            links = {link.index: link for link in talk.links()}
            addresses, routes = _by_link(talk.addresses()), _by_link(talk.routes())
    except (OSError, Malformed) as exc:
        unread = Unreadable(why_unread(exc))
        return lambda name: unread
    by_name = {encode_name(link.name): link for link in links.values()}

    def name_of(index: int) -> str:
        return encode_name(links[index].name) if index in links else f"if{index}"

    def of(name: str) -> Observation:
        link = by_name.get(name)
        if link is None:
            return None
        its_own, over = addresses.get(link.index, []), routes.get(link.index, [])
        if why := why_too_many(its_own, over):
            return Unreadable(why)
        attrs = attrs_of(link, its_own, over, name_of)
        remember(name, link, attrs, over)
        return attrs

    return of


def _by_link(found: Iterable[T]) -> dict[int, list[T]]:
    out: dict[int, list[T]] = {}
    for each in found:
        out.setdefault(each.index, []).append(each)
    return out


def why_unread(exc: Exception) -> str:
    if isinstance(exc, Malformed):
        return f"link: the kernel's answer cannot be read: {exc}"
    if isinstance(exc, TimeoutError):
        return "link: the kernel does not answer: a driver may hold its lock"
    return f"link: {(getattr(exc, 'strerror', None) or str(exc) or type(exc).__name__).lower()}"


# -- what the kernel drops ------------------------------------------------------------------------------------------


def remember(name: str, link: Link, attrs: Attrs, routes: Sequence[Route]) -> None:
    """Keep this look. One of a link that is down only says where the link is."""
    held = tuple(sorted({(r.text, r.protocol) for r in routes}))
    now = Past(tuple(attrs["addresses"]), held)
    with _lock:
        _begin()
        before = _known.get(name)
        if before is None and len(_known) >= REMEMBERED_MAX:
            return
        same = before is not None and before.index == link.index
        pasts = before.pasts if before is not None and same else ()
        if attrs["state"] == "up" and now not in pasts[-1:]:
            pasts = (*(p for p in pasts if p.addresses != now.addresses), now)[-PASTS_MAX:]
        fresh = Known(link.index, link.hardware.hex(), pasts)
        changed = fresh != before or name in _unsaved
        if changed:
            _known[name] = fresh
            _unsaved.clear()
    if changed:
        _save()


def learn(name: str, route: Route, *, there: bool) -> None:
    """A notification says that a route came, or that somebody took it away: a look may come only when it is gone again
    with its link. It is kept with the next look: the loop writes no file."""
    with _lock:
        before = _known.get(name)
        if before is None or before.index != route.index or not before.pasts:
            return
        *older, last = before.pasts
        held = dict(last.routes)
        if there and len(held) < ROUTES_MAX:
            held[route.text] = route.protocol
        elif not there:
            held.pop(route.text, None)
        _known[name] = Known(before.index, before.hardware, (*older, Past(last.addresses, tuple(sorted(held.items())))))
        _unsaved.add(name)


def known(name: str) -> Known | None:
    with _lock:
        _begin()
        return _known.get(name)


def _begin() -> None:
    """Read, once, what the last run of this boot kept. Called with the lock held."""
    global _path, _stamp
    directory, boot_id = PLACE or ("", "")
    if directory and _path != os.path.join(directory, FILE_NAME):
        _path = os.path.join(directory, FILE_NAME)
        try:
            _stamp = [boot_id, os.stat("/proc/self/ns/net").st_ino]
            with open(_path, "rb") as f:
                said = strict.loads_object(f.read(FILE_MAX), FILE_MAX)  # S5
            if said["stamp"] == _stamp:
                _known.update({str(name): _read(row) for name, row in said["links"].items()})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            log(f"what links had before cannot be read ({type(exc).__name__}): routes lost before are not known", 4)


def _read(row: Any) -> Known:
    index, hardware, pasts = row
    return Known(int(index), str(hardware), tuple(_past(*past) for past in pasts))


def _past(addresses: Any, routes: Any) -> Past:
    return Past(tuple(str(a) for a in addresses), tuple((str(text), int(protocol)) for text, protocol in routes))


def _save() -> None:
    """Best effort: without the file, a new start knows less. What is known is not locked meanwhile: the loop learns,
    and must not wait for a disk."""
    if not _path:
        return
    with _file_lock, contextlib.suppress(OSError):
        with _lock:
            known = list(_known.items())
        rows = {name: [k.index, k.hardware, [[p.addresses, p.routes] for p in k.pasts]] for name, k in known}
        fresh = _path + ".new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as f:
            json.dump({"stamp": _stamp, "links": rows}, f)
        os.rename(fresh, _path)
