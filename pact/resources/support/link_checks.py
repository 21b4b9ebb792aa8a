"""Before anything is touched: why a step on a link could not be done, as far as that can be known."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Final

from pact.model import Attrs, decode_name, encode_name
from pact.resources.support import link_look
from pact.resources.support.link_set import MADE
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_wire import Link, Malformed

PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
NO_IP: Final = "ip (of iproute2) is not installed: links can be watched, but not set"
HARDWARE: Final = (
    "there is no such link, and pact cannot make one: its hardware or its driver is gone, or it has another name"
)
#: Types that can be taken away: the kernel keeps nothing of them but what is declared.
SOFT: Final = frozenset(
    {*MADE, "veth", "dummy", "macvlan", "ipvlan", "macvtap", "ipvtap", "vxlan", "vrf", "ifb", "tun", "gre", "ipip"}
)

#: Types that take no members; ``""`` is hardware.
NO_MASTERS: Final = frozenset({"", "veth", "vlan", "dummy", "tun", "ifb"})
UNKNOWN: Final = "?"


def renamed(name: str) -> Link | None:
    """The link that had this name when it was last seen, and has another one now."""
    known = link_look.known(name)
    if known is None:
        return None
    try:
        with Talk() as talk:
            link = talk.link(index=known.index)
    except (OSError, Malformed):
        return None
    if link is None or link.name == decode_name(name) or link.hardware.hex() != known.hardware:
        return None
    return link


def alternative(name: str) -> str:
    """The name of the link that has this one as another name (``altname``); ``""`` if there is none."""
    try:
        with Talk() as talk:
            link = talk.called(decode_name(name))
    except (OSError, Malformed):
        return ""
    return encode_name(link.name) if link is not None and link.name != decode_name(name) else ""


def why_not(ip: str, name: str, target: Attrs | None, actual: Attrs | None) -> str:
    """``""``, or why the step must not begin."""
    if shutil.which(ip, path=PATH) is None:
        return NO_IP
    if target is None:
        kind = actual["type"] if actual is not None else ""
        return "" if kind in SOFT or not kind else f"a link of the type {kind} cannot be removed"
    if actual is None:
        return _why_not_made(name, target)
    for key, what in (("vlan", "its VLAN"), ("type", "its type"), ("bond", "the mode of a bond")):
        if key in target and target[key] != actual.get(key):
            return f"{what} is {_shown(actual.get(key))}, not {_shown(target[key])}: it has to be removed first"
    return _why_not_mtu(name, target, actual)


def why_not_under(target: Attrs, actual: Attrs | None, of_plan: Mapping[str, Attrs | None]) -> list[str]:
    """Why it cannot be a member, or a VLAN, of the links that it names. ``of_plan``: the links that the same plan
    brings, and (``None``) takes away."""
    out, master = [], target.get("master", "")
    if master and master != (actual or {}).get("master"):
        kind = _kind_of(master, of_plan)
        if kind is None:
            out.append(f"there is no link {master} whose member it could be")
        elif kind in NO_MASTERS:
            out.append(f"{master} is {'a ' + kind if kind else 'no bridge or bond'}: it takes no members")
    parent = target["vlan"]["parent"] if actual is None and "vlan" in target else ""
    if parent and _kind_of(parent, of_plan) is None:
        out.append(f"there is no link {parent} of which it could be a VLAN")
    return out


def _kind_of(name: str, of_plan: Mapping[str, Attrs | None]) -> str | None:
    """The type of a link when the plan is done; ``UNKNOWN``; None: it is not there."""
    target = of_plan.get(name)
    if name in of_plan:
        return None if target is None else UNKNOWN
    try:
        with Talk() as talk:
            link = talk.link(decode_name(name))
    except (OSError, Malformed):
        return UNKNOWN
    return None if link is None else link.kind


def note(name: str, actual: Attrs | None) -> str:
    """What a person should know beforehand; ``""`` if nothing."""
    link = renamed(name) if actual is None else None
    return f"it was renamed: it is {encode_name(link.name)} now, and gets its name back" if link is not None else ""


def _why_not_made(name: str, target: Attrs) -> str:
    if renamed(name) is not None:
        return ""
    made = "vlan" in target or "bond" in target or target.get("type") in ("bridge", "bond")
    if made and b"%" in decode_name(name):
        return "the kernel would take '%' in its name as a place for a number"
    if target.get("type") == "vlan" and "vlan" not in target:
        return "there is no such link, and its declaration does not say its VLAN's parent and id"
    if own := alternative(name):
        return f"it is another name of link:{own}"
    return "" if made else HARDWARE


def _why_not_mtu(name: str, target: Attrs, actual: Attrs) -> str:
    mtu = target["mtu"] if "mtu" in target else actual["mtu"]
    if mtu == actual["mtu"]:
        return ""
    try:
        with Talk() as talk:
            link = talk.link(decode_name(name))
    except (OSError, Malformed):
        return ""
    if link is None:
        return ""
    if mtu < link.mtu_min or (link.mtu_max and mtu > link.mtu_max):
        return f"its driver takes an mtu from {link.mtu_min} to {link.mtu_max}, not {mtu}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['id']} on {value['parent']}"
    return str(value) if value else "none"
