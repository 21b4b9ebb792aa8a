"""What a person writes about a link: names, addresses and routes, in the one form in which the kernel's are shown."""

from __future__ import annotations

import re
import socket
from typing import Any, Final

from pact.model import Attrs, decode_name, encode_name
from pact.resources.support.link_wire import INET, INET6, MAIN, METRIC6, MODES, NAME_MAX

MTU_MAX: Final = 0x7FFFFFFF
#: With less the kernel gives up IPv6 on a link.
MTU6_MIN: Final = 1280
VLAN_MAX: Final = 4094
LIST_MAX: Final = 256
ATTRS: Final = frozenset({"state", "mtu", "addresses", "routes", "master", "vlan", "bond", "type"})
TYPES: Final = ("device", "bridge", "bond", "vlan", "veth")
STATES: Final = ("up", "down", "absent")
_NUMBER: Final = re.compile(r"\d{1,10}\Z")


def raw_name(name: str) -> bytes:
    """Raises ValueError for a name that no link can have."""
    raw = decode_name(name)
    if not 0 < len(raw) <= NAME_MAX:
        raise ValueError(f"{name!r} is no name of a link: 1 to {NAME_MAX} bytes")
    if raw in (b".", b"..") or re.search(rb"[/:\s\0]", raw):
        raise ValueError(f"{name!r} is no name of a link: no '/', no ':' and no space can be in it")
    return raw


def canonical_name(name: str) -> str:
    return encode_name(raw_name(name))


def _ip(text: str) -> tuple[int, str]:
    """The family, and the address as the kernel shows it. Raises ValueError."""
    family = INET6 if ":" in text else INET
    try:
        return family, socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IP address") from None


def _prefix(family: int, text: str, what: str) -> int:
    if not _NUMBER.match(text) or int(text) > (32 if family == INET else 128):
        raise ValueError(f"{what!r} has no length after the slash, like 10.1.0.1/16")
    return int(text)


def address(text: Any) -> str:
    """``10.1.0.1/16``, or ``10.1.0.1 peer 10.1.0.2/32``, in its one form. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("addresses is a list of texts like 10.1.0.1/16")
    words = text.split()
    if len(words) == 3 and words[1] == "peer":
        family, local = _ip(words[0])
        other, slash, length = words[2].partition("/")
        there, peer = _ip(other)
        if there != family or not slash:
            raise ValueError(f"{text!r} is no address with a peer, like 10.1.0.1 peer 10.1.0.2/32")
        return f"{local} peer {peer}/{_prefix(family, length, text)}"
    if len(words) != 1:
        raise ValueError(f"{text!r} is no address, like 10.1.0.1/16")
    host, _, length = text.partition("/")
    family, local = _ip(host)
    return f"{local}/{_prefix(family, length, text)}"


def network(text: str) -> tuple[int, str]:
    """The destination of a route: a network without bits below its length. Raises ValueError."""
    host, slash, length = text.partition("/")
    family, _ = _ip(host)
    bits = 32 if family == INET else 128
    size = _prefix(family, length, text) if slash else bits
    raw = int.from_bytes(socket.inet_pton(family, host), "big")
    if raw & ((1 << (bits - size)) - 1):
        raise ValueError(f"{text!r} has bits below its length")
    return family, f"{socket.inet_ntop(family, raw.to_bytes(bits // 8, 'big'))}/{size}"


def route(text: Any) -> str:
    """``default via 10.1.0.254 metric 100``, ``10.2.0.0/16 via 10.1.0.2``: words in one order. Raises ValueError."""
    if not isinstance(text, str) or not text.split():
        raise ValueError('routes is a list of texts like "default via 10.1.0.254"')
    words = text.split()
    onlink = "onlink" in words[1:]
    rest = [w for w in words[1:] if w != "onlink"]
    if len(rest) % 2:
        raise ValueError(f"{text!r}: after the network come via, src, metric, table and their values, and onlink")
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    if len(given) * 2 != len(rest) or not given.keys() <= {"via", "src", "metric", "table"}:
        raise ValueError(f"{text!r}: a route says via, src, metric, table (each once) and onlink, and nothing else")
    family, to = (0, "default") if words[0] == "default" else network(words[0])
    ips = {key: _ip(given[key]) for key in ("via", "src") if key in given}
    families = {f for f, _ in ips.values()} | ({family} if family else set())
    if len(families) != 1:
        raise ValueError(f"{text!r}: it says not clearly whether it is of IPv4 or of IPv6")
    (family,) = families
    out = to
    for key in ("via", "src"):
        out += f" {key} {ips[key][1]}" if key in ips else ""
    for key, usual in (("metric", METRIC6 if family == INET6 else 0), ("table", MAIN)):
        value = given.get(key, str(usual))
        if not _NUMBER.match(value) or int(value) > 0xFFFFFFFF:
            raise ValueError(f"{text!r}: {key} is a number")
        out += f" {key} {int(value)}" if int(value) != usual else ""
    return out + (" onlink" if onlink else "")


def family_of(text: str) -> int:
    return INET6 if ":" in text else INET


def _several(key: str, value: Any, each: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > LIST_MAX:
        raise ValueError(f"{key} is a list of at most {LIST_MAX} texts")
    return sorted({each(text) for text in value})


def parsed(value: dict[str, Any]) -> Attrs | None:
    """The attributes of a TOML table without the keys that every entry may have; ``None`` for absent. Raises
    ValueError."""
    state = value.get("state")
    if state is not None and state not in STATES:
        raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
    if state == "absent":
        if len(value) > 1:
            raise ValueError("an absent link has nothing else")
        return None
    attrs: Attrs = {} if state is None else {"state": state}
    if "mtu" in value:
        mtu = value["mtu"]
        if isinstance(mtu, bool) or not isinstance(mtu, int) or not 0 < mtu <= MTU_MAX:
            raise ValueError(f"mtu {mtu!r} is no number of bytes")
        attrs["mtu"] = mtu
    if "addresses" in value:
        attrs["addresses"] = _several("addresses", value["addresses"], address)
    if "routes" in value:
        if state == "down":
            raise ValueError("no routes lead over a link that is down")
        attrs["routes"] = _several("routes", value["routes"], route)
    if "master" in value:
        master = value["master"]
        if not isinstance(master, str):
            raise ValueError('master is the name of a bridge or bond, or "" for none')
        attrs["master"] = canonical_name(master) if master else ""
    if "type" in value:
        if value["type"] not in TYPES:
            raise ValueError(f"type {value['type']!r} is none of {', '.join(TYPES)}")
        attrs["type"] = value["type"]
    if "vlan" in value:
        attrs["vlan"] = _vlan(value["vlan"])
    if "bond" in value:
        if value["bond"] not in MODES:
            raise ValueError(f"bond is a mode: {', '.join(MODES)}")
        attrs["bond"] = value["bond"]
    if attrs.get("mtu", MTU6_MIN) < MTU6_MIN and any(family_of(a) == INET6 for a in attrs.get("addresses", ())):
        raise ValueError(f"mtu {attrs['mtu']} is too small for its addresses of IPv6: {MTU6_MIN} at least")
    if not attrs:
        raise ValueError(f"it says nothing; known: {', '.join(sorted(ATTRS))}")
    return attrs


def _vlan(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != {"parent", "id"}:
        raise ValueError('vlan is a table {parent = "eth0", id = 100}')
    parent, number = value["parent"], value["id"]
    if not isinstance(parent, str) or isinstance(number, bool) or not isinstance(number, int):
        raise ValueError('vlan is a table {parent = "eth0", id = 100}')
    if not 0 < number <= VLAN_MAX:
        raise ValueError(f"vlan id {number} is none of 1 to {VLAN_MAX}")
    return {"parent": canonical_name(parent), "id": number}
