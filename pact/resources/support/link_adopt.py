"""Which links a pattern takes in, and what a person should know about one.

Links that container engines, virtual machines and tunnels make come and go with what they serve: nobody declares them.
One of them can still be adopted by its exact name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from pact.model import Attrs, decode_name, encode_name
from pact.resources.support.link_look import why_unread
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_wire import LOOPBACK, Link, Malformed

CONTAINER: Final = "a container's"
MACHINE: Final = "a virtual machine's"
#: Names of links that others make, and whose they are.
FOREIGN: Final = (
    (re.compile(r"lo\Z"), "the loopback"),
    (re.compile(r"(docker|podman|cni-podman|cni|nerdctl|lxcbr|lxdbr|incusbr)\d+\Z|br-[0-9a-f]{12}\Z"), CONTAINER),
    (re.compile(r"docker_gwbridge\Z|veth[0-9a-f]{7,8}\Z|veth[0-9A-Za-z]{6}\Z|v(e|b|z)-"), CONTAINER),
    (re.compile(r"(cali|lxc|eni|azv|nodelocaldns|weave|vethwe)[0-9A-Za-z._-]*\Z"), CONTAINER),
    (re.compile(r"(flannel|vxlan\.calico|wireguard\.cali|wg-v6\.cali|kube-|cilium_|ovn-|antrea-|cbr)"), CONTAINER),
    (re.compile(r"(virbr|vnet|macvtap|fwbr|fwln|fwpr|tap)\d+"), MACHINE),
    (re.compile(r"(tunl|gre|gretap|erspan|ip_vti|ip6_vti|sit|ip6tnl|ip6gre)0\Z"), "a tunnel module's own"),
)


def why_passed_by_name(name: str) -> str:
    """``""``, or whose link a name shows it to be."""
    return next((why for pattern, why in FOREIGN if pattern.match(name)), "")


def why_passed(link: Link) -> str:
    name = encode_name(link.name)
    if link.flags & LOOPBACK:
        return "the loopback"
    if why := why_passed_by_name(name):
        return why
    if link.kind == "veth" and link.elsewhere and name.startswith("veth"):
        return CONTAINER
    return MACHINE if link.kind == "tun" and name.startswith("tap") else ""


def names(pattern: str, passed: dict[str, int]) -> Iterator[str]:
    """Those that match; ``passed`` counts the others by the reason."""
    try:
        with Talk() as talk:
            links = talk.links()
    except (OSError, Malformed) as exc:
        passed[why_unread(exc)] = 1
        return
    for link in sorted(links, key=lambda each: each.name):
        name = encode_name(link.name)
        if not fnmatchcase(name, pattern.replace("**", "*")):
            continue
        if why := why_passed(link):
            passed[why] = passed.get(why, 0) + 1
        else:
            yield name


def remark(name: str, seen: Attrs) -> str:
    """What is not adopted with it, and who else sets it."""
    said = []
    given = [a for a in seen.get("dynamic", ()) if not a.startswith("fe80:")]
    if given:
        said.append(f"has addresses from DHCP or a router, which are no part of it: {', '.join(given)}")
    if manager := _manager(name):
        said.append(f"is managed by {manager}, which may set it again")
    return "; it ".join(said)


def _manager(name: str) -> str:
    """Who has said in /run that it manages this link."""
    try:
        with Talk() as talk:
            link = talk.link(decode_name(name))
    except (OSError, Malformed):
        return ""
    index = link.index if link is not None else 0
    try:
        with open(f"/run/systemd/netif/links/{index}", encoding="utf-8", errors="replace") as f:
            if "ADMIN_STATE=configured" in f.read(4096):
                return "systemd-networkd"
    except OSError:
        pass
    return "NetworkManager" if os.path.exists(f"/run/NetworkManager/devices/{index}") else ""
