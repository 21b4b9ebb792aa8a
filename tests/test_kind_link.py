"""Network links without a kernel: what people write, what the kernel writes, comparing, and tools that fail."""

from __future__ import annotations

import random
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pact.core.plan import Step, ordered
from pact.errors import ConflictError, RestoreError
from pact.model import Declared, Unreadable
from pact.observe.mountinfo import parse_mountinfo
from pact.resources.base import HALF_N, WHOLE_N, run_tool
from pact.resources.kinds.link import KIND, Link
from pact.resources.rules import nature
from pact.resources.support import link_wire as wire
from pact.resources.support.link_adopt import why_passed_by_name
from pact.resources.support.link_look import Known, Past
from pact.resources.support.link_text import address, canonical_name, network, route
from pact.resources.support.link_users import devices, goes, servers, stopped
from pact.resources.support.link_wire import Malformed

UP: dict[str, Any] = {
    "state": "up",
    "mtu": 1500,
    "addresses": ["10.1.0.1/16"],
    "routes": [],
    "master": "",
    "type": "veth",
}


# -- what people write ----------------------------------------------------------------------------------------------


def parsed(value: Any, name: str = "hsn0") -> Any:
    return KIND.parse(name, value, "/").declared.attrs


def test_the_example_of_the_contract_is_read_and_written_back() -> None:
    value = {"state": "up", "mtu": 9000, "addresses": ["10.1.0.1/16"]}
    assert parsed(value) == value
    assert KIND.export("hsn0", Declared(parsed(value)), lambda _: None) == value


def test_everything_that_can_be_named_is_read_in_one_form() -> None:
    attrs = parsed(
        {
            "addresses": ["FD00:0::1/64", "10.0.0.1/8", "10.0.0.1/8", "10.0.0.2  peer 10.0.0.3/32"],
            "routes": ["default  metric 5 via 10.0.0.9", "fd01::/16 metric 1024", "10.2.0.0/16 table 254 via 10.0.0.9"],
            "master": "",
            "vlan": {"parent": "eth0", "id": 7},
            "bond": "802.3ad",
            "type": "vlan",
        }
    )
    assert attrs["addresses"] == ["10.0.0.1/8", "10.0.0.2 peer 10.0.0.3/32", "fd00::1/64"]
    assert attrs["routes"] == ["10.2.0.0/16 via 10.0.0.9", "default via 10.0.0.9 metric 5", "fd01::/16"]
    again = KIND.export("x", Declared(attrs), lambda _: None)
    assert parsed(again) == attrs
    assert parsed({"state": "absent"}) is None
    assert KIND.export("x", Declared(None), lambda _: None) == {"state": "absent"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("up", "a table"),
        ({}, "says nothing"),
        ({"state": "UP"}, "none of up, down, absent"),
        ({"state": "absent", "mtu": 5}, "nothing else"),
        ({"mtu": True}, "mtu True"),
        ({"mtu": 1e3}, "mtu 1000.0"),
        ({"mtu": 0}, "mtu 0"),
        ({"mtu": 1279, "addresses": ["10.0.0.1/8", "fd00::1/64"]}, "1280 at least"),
        ({"addresses": "10.0.0.1/8"}, "a list"),
        ({"addresses": ["10.0.0.1/33"]}, "length"),
        ({"addresses": ["10.0.0.1"]}, "length"),
        ({"addresses": ["10.0.0.1/8 dev x"]}, "no address"),
        ({"addresses": ["-6/8"]}, "no IP address"),
        ({"addresses": [1]}, "texts"),
        ({"addresses": ["10.0.0.1/1"] * 300}, "at most"),
        ({"addresses": ["10.0.0.1 peer fd00::1/8"]}, "with a peer"),
        ({"routes": ["default"]}, "not clearly"),
        ({"routes": ["default via"]}, "after the network"),
        ({"routes": ["10.0.0.1/8"]}, "below its length"),
        ({"routes": ["default via 10.0.0.1 dev eth9"]}, "nothing else"),
        ({"routes": ["default via 10.0.0.1 via 10.0.0.2"]}, "each once"),
        ({"routes": ["default via 10.0.0.1 metric -1"]}, "a number"),
        ({"routes": ["10.0.0.0/8 via fd00::1"]}, "not clearly"),
        ({"routes": ["default via 10.0.0.1"], "state": "down"}, "no routes"),
        ({"master": "a/b"}, "no name"),
        ({"vlan": {"parent": "eth0"}}, "a table"),
        ({"vlan": {"parent": "eth0", "id": 4095}}, "4095"),
        ({"bond": "fast"}, "a mode"),
        ({"type": "tun"}, "none of"),
        ({"stat": "up"}, "did you mean 'state'"),
    ],
)
def test_what_is_wrong_is_said(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parsed(value)


@pytest.mark.parametrize("name", ["", "x" * 16, ".", "..", "a/b", "a b", "a:b", "a%00b", "a%0Ab", "%C3%A9" * 8])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a link"):
        KIND.canonical(name)


@pytest.mark.parametrize("name", ["hsn0", "-x", "--help", "up", "x" * 15, "%FF%01", "eth0.100", "é", "%25d"])
def test_names_that_the_kernel_takes_are_names(name: str) -> None:
    assert canonical_name(KIND.canonical(name)) == KIND.canonical(name)


def test_texts_that_mean_the_same_have_one_form() -> None:
    assert address("::ffff:10.0.0.1/120") == "::ffff:10.0.0.1/120"
    assert network("10.1.2.3") == (wire.INET, "10.1.2.3/32")
    assert route("10.1.2.3 onlink via 10.0.0.1") == "10.1.2.3/32 via 10.0.0.1 onlink"
    with pytest.raises(ValueError, match="no IP address"):
        address("1\0/8")


# -- comparing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "actual", "distance"),
    [
        (None, None, 0),
        (None, UP, WHOLE_N),
        (UP, None, WHOLE_N),
        ({"state": "down"}, UP, WHOLE_N),
        ({"mtu": 9000}, UP, HALF_N),
        ({"mtu": 1500}, UP, 0),
        ({"addresses": []}, UP, HALF_N),
        ({"addresses": ["10.1.0.1/16", "10.1.0.2/16"]}, UP, HALF_N),
        ({"addresses": ["10.1.0.1/16", "fe80::1/64"]}, {**UP, "dynamic": ["fe80::1/64", "10.0.0.9/8"]}, 0),
        ({"routes": ["default via 10.1.0.9"]}, UP, HALF_N),
        ({"master": "br0"}, UP, HALF_N),
        ({"vlan": {"parent": "eth0", "id": 5}}, UP, HALF_N),
        ({"mtu": 1500, "addresses": [], "state": "up", "vlan": {}}, {"mtu": 1500}, 0),
        ({"mtu": 1500, "addresses": []}, {"mtu": 1400}, HALF_N),
        ({"state": "up"}, {**UP, "routes": ["default via 10.1.0.9"], "mtu": 1}, 0),
    ],
)
def test_only_what_is_declared_counts(declared: Any, actual: Any, distance: int) -> None:
    assert KIND.distance_n(declared, actual) == distance


def test_adopted_and_committed_is_what_was_declared_and_no_more() -> None:
    seen = {**UP, "dynamic": ["fe80::1/64"], "bond": "802.3ad"}
    assert KIND.taken(seen, None) == {"state": "up", "mtu": 1500, "addresses": ["10.1.0.1/16"]}
    assert KIND.taken(seen, {"routes": [], "bond": "x", "vlan": {}}) == {"routes": [], "bond": "802.3ad"}


def test_a_master_and_a_parent_come_first_and_go_last() -> None:
    member = Step("link:a", {"master": "br0"}, UP)
    vlan = Step("link:b", {"vlan": {"parent": "br0", "id": 1}}, None)
    bridge = Step("link:br0", {"type": "bridge"}, None)
    assert [s.id for s in ordered([member, vlan, bridge], nature)] == ["link:br0", "link:a", "link:b"]
    gone = [Step("link:br0", None, UP), Step("link:b", None, {**UP, "vlan": {"parent": "br0", "id": 1}})]
    assert [s.id for s in ordered(gone, nature)] == ["link:b", "link:br0"]
    circle = [Step("link:a", {"master": "b"}, UP), Step("link:b", {"master": "a"}, UP)]
    with pytest.raises(ConflictError, match="circle"):
        ordered(circle, nature)
    (sysctl, link) = (Step("sysctl:net.ipv4.conf.a.forwarding", {"value": "1"}, {"value": "0"}), member)
    assert ordered([sysctl, link], nature)[0] is link


def test_a_step_that_was_cut_off_is_between_its_two_states() -> None:
    step = Step("link:a", {"state": "up", "mtu": 9000, "addresses": ["10.0.0.1/8"]}, {**UP, "state": "down"})
    assert KIND.half_done(step, {**UP, "state": "down", "mtu": 9000, "addresses": ["10.1.0.1/16", "10.0.0.1/8"]})
    assert not KIND.half_done(step, {**UP, "mtu": 1234})
    assert not KIND.half_done(step, {**UP, "addresses": ["10.7.0.1/8"]})


# -- who uses it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "actual", "lost", "link"),
    [
        (None, UP, {"10.1.0.1"}, True),
        ({"state": "down"}, UP, {"10.1.0.1"}, True),
        ({"state": "up"}, {**UP, "state": "down"}, set(), False),
        ({"mtu": 9000}, UP, set(), False),
        ({"addresses": ["10.1.0.1/24"]}, UP, set(), False),
        ({"addresses": ["10.9.0.1/24"]}, UP, {"10.1.0.1"}, False),
        ({"master": "br0"}, UP, {"10.1.0.1"}, True),
        (UP, None, set(), False),
    ],
)
def test_a_step_takes_away_addresses_or_all_traffic(target: Any, actual: Any, lost: set[str], link: bool) -> None:
    what = goes(Step("link:a", target, actual))
    assert (set(what.addresses), what.link) == (lost, link)
    assert KIND.disturbs(Step("link:a", target, actual)) == bool(lost or link)


def test_who_uses_the_hardware_past_the_kernel_is_found_by_its_devices(tmp_path: Path) -> None:
    """A tree like that of a node with InfiniBand and Slingshot, which this machine has not."""
    for place in ("ib0/device/infiniband_verbs/uverbs0", "ib0/device/infiniband_mad/umad0", "hsn0/device/cxi/cxi0"):
        (tmp_path / place).mkdir(parents=True)
    assert devices("ib0", str(tmp_path)) == [b"/dev/infiniband/uverbs0", b"/dev/infiniband/umad0"]
    assert devices("hsn0", str(tmp_path)) == [b"/dev/cxi0"]
    assert devices("lo", str(tmp_path)) == []
    assert KIND.roots("lo", Step("link:lo", {"mtu": 1}, UP)) == []


def test_what_lies_on_a_link_stops_with_it() -> None:
    def link(index: int, name: str, master: int = 0, parent: int = 0, kind: str = "", up: bool = True) -> wire.Link:
        return wire.Link(index, name.encode(), int(up), 1500, master, parent, kind, 0, 0, b"", False, 0, 0)

    links = [
        link(1, "eth0", master=5),
        link(2, "eth1", master=5),
        link(3, "v", parent=5, kind="vlan"),
        link(4, "w", parent=1, kind="veth"),
        link(5, "bond0", kind="bond"),
        link(6, "eth2", master=7),
        link(7, "br0", kind="bridge"),
        link(8, "spare", master=7, up=False),
    ]
    assert stopped(links, b"eth0") == {1}, "the bond has another member"
    assert stopped(links, b"bond0") == {5, 3}
    assert stopped(links, b"eth2") == {6, 7}
    down = [replace(each, flags=0) if each.index == 2 else each for each in links]
    assert stopped(down, b"eth0") == {1, 5, 3}
    assert stopped(links, b"nope") == set()


def test_the_addresses_of_a_mount_are_those_that_are_written_there() -> None:
    def of(source: str, options: str) -> list[str]:
        (entry,) = parse_mountinfo(f"36 35 0:31 / /m rw shared:1 - nfs4 {source} {options}\n".encode())
        return servers(entry)

    assert of("store:/x", "rw,vers=4.2,clientaddr=10.1.0.1,addr=10.1.0.9") == ["10.1.0.1", "10.1.0.9"]
    assert of("[fd00::9]:/x", "rw") == ["fd00::9"]
    assert of("10.1.0.5@o2ib:10.1.0.6@o2ib:/lustre", "rw") == ["10.1.0.5", "10.1.0.6"]
    assert of("//999.1.1.1/share", "rw,addr=nonsense") == []


# -- adopt ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "lo",
        "docker0",
        "podman1",
        "cni0",
        "cni-podman0",
        "br-0123456789ab",
        "veth1a2b3c4",
        "vethab12cd34",
        "vethAbC12x",
        "virbr0",
        "vnet3",
        "ve-box",
        "vb-box",
        "cali1234567890a",
        "flannel.1",
        "tunl0",
        "sit0",
        "kube-ipvs0",
        "lxcbr0",
        "lxdbr0",
        "lxc1234",
        "cilium_host",
        "docker_gwbridge",
        "gre0",
    ],
)
def test_links_of_others_are_no_persons(name: str) -> None:
    assert why_passed_by_name(name) and not KIND.means("**", name) and KIND.means(name, name)


@pytest.mark.parametrize("name", ["eth0", "hsn0", "ib0", "bond0", "br0", "br-mgmt", "vlan7", "veth0", "eno1np0", "wg0"])
def test_links_of_people_are_adopted(name: str) -> None:
    assert not why_passed_by_name(name) and KIND.means("*", name)


# -- what the kernel writes -----------------------------------------------------------------------------------------


def link_body(name: bytes = b"hsn0", flags: int = 1, **more: bytes) -> bytes:
    numbers = {"info": wire.IFLA_LINKINFO, "mtu": wire.IFLA_MTU, "master": wire.IFLA_MASTER, "parent": wire.IFLA_LINK}
    body = wire.LINK_HEAD.pack(0, 1, 7, flags, 0) + wire.attribute(wire.IFLA_IFNAME, name + b"\0")
    return body + b"".join(wire.attribute(numbers[k], v) for k, v in more.items())


def info(kind: bytes, data: bytes) -> bytes:
    return wire.attribute(wire.INFO_KIND, kind + b"\0") + wire.attribute(wire.INFO_DATA | 0x8000, data)


def test_a_vlan_and_a_bond_are_read_from_their_messages() -> None:
    """This kernel may have neither: the bytes are those that one that has them writes."""
    vlan = wire.link_of(link_body(info=info(b"vlan", wire.attribute(1, b"\x64\0")), parent=b"\3\0\0\0"))
    assert (vlan.kind, vlan.vlan, vlan.parent) == ("vlan", 100, 3)
    bond = wire.link_of(link_body(info=info(b"bond", wire.attribute(1, b"\4"))))
    assert wire.MODES[bond.mode] == "802.3ad"


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\0" * 16,
        struct.pack("=IHHII", 15, 16, 0, 0, 0),
        struct.pack("=IHHII", 17, 16, 0, 0, 0),
        struct.pack("=IHHII", 0xFFFFFFFF, 16, 0, 0, 0),
    ],
)
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        list(wire.messages(data))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        link_body()[:-4],
        link_body(b""),
        link_body(b"x" * 16),
        link_body(mtu=b"\1\2"),
        link_body() + b"\3\0\1\0",
        link_body() + b"\xff\xff\1\0",
        link_body(info=info(b"vlan", wire.attribute(1, b"\1\2\3"))),
    ],
)
def test_a_malformed_link_is_malformed_and_nothing_else(body: bytes) -> None:
    with pytest.raises(Malformed):
        wire.link_of(body)


def test_random_bytes_never_break_a_parser() -> None:
    draw = random.Random(13)
    whole = link_body(info=info(b"vlan", wire.attribute(1, b"\x64\0")), mtu=b"\0\5\0\0")
    for _ in range(20_000):
        raw = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        data = bytes(raw[: draw.randrange(len(raw) + 1)])
        for read in (wire.link_of, wire.address_of, wire.route_of, wire.gateways_of, lambda d: list(wire.messages(d))):
            try:
                read(data)
            except Malformed:
                pass
        for kind in (wire.NEWLINK, wire.DELLINK, wire.NEWADDR, wire.NEWROUTE, 99):
            try:
                wire.index_and_name(wire.Message(kind, 0, 0, 0, data))
            except Malformed:
                pass


def test_every_way_of_a_default_route_is_a_gateway() -> None:
    """A leaf of a fabric has several, and IPv4 behind gateways of IPv6."""
    head = wire.ROUTE_HEAD.pack(wire.INET, 0, 0, 0, wire.MAIN, 12, 0, wire.UNICAST, 0)
    via = wire.attribute(wire.RTA_GATEWAY, bytes([10, 0, 0, 1]))
    via6 = wire.attribute(wire.RTA_VIA, struct.pack("=H", wire.INET6) + b"\xfe\x80" + bytes(13) + b"\1")
    ways = struct.pack("=HxxI", 8 + len(via), 3) + via + struct.pack("=HxxI", 8 + len(via6), 4) + via6
    assert wire.gateways_of(head + wire.attribute(wire.RTA_MULTIPATH, ways)) == [(3, "10.0.0.1"), (4, "fe80::1")]
    assert wire.gateways_of(head + wire.attribute(wire.RTA_OIF, b"\5\0\0\0")) == [(5, "")]
    assert wire.route_of(head + wire.attribute(wire.RTA_MULTIPATH, ways)) is None, "no single link has it"
    for bad in (ways[:-1], ways[:6], b"\0" * 8, b"\xff" * 8):
        with pytest.raises(Malformed):
            wire.gateways_of(head + wire.attribute(wire.RTA_MULTIPATH, bad))


# -- what was there before ------------------------------------------------------------------------------------------


def test_the_newest_past_with_the_same_addresses_says_which_routes_went() -> None:
    one, two = Past(("10.0.0.1/8",), (("default via 10.0.0.9", 3),)), Past(("10.0.0.1/8", "fd00::1/64"), ())
    bare = Past((), ())
    known = Known(7, "", (one, two, bare))
    assert known.at(["10.0.0.1/8"]) is one
    assert known.at(["fd00::1/64", "10.0.0.1/8"]) is two
    assert known.at(["10.0.0.1/8", "10.0.0.2/8"]) is bare
    assert known.at(None) is bare
    assert Known(7, "").at(None) == Past((), ())


# -- a tool that does not what it should ----------------------------------------------------------------------------


def tool(tmp_path: Path, body: str) -> str:
    path = tmp_path / "ip"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.invariant("F68")
def test_without_iproute2_links_are_watched_and_a_plan_is_refused_beforehand(tmp_path: Path) -> None:
    kind = Link(str(tmp_path / "no-ip"))
    seen = kind.observe("lo")
    assert isinstance(seen, dict) and seen["state"] in ("up", "down")
    saved = kind.preflight("lo", Step("link:lo", {"mtu": 1500}, seen), None)  # type: ignore[arg-type]
    assert saved.refusal == "link:lo: ip (of iproute2) is not installed: links can be watched, but not set"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 'RTNETLINK answers: Operation not supported' >&2; exit 2", "RTNETLINK answers: Operation not supported"),
        ("exit 7", "ip ended with 7"),
        ("head -c 300000000 /dev/zero; head -c 300000000 /dev/zero >&2; exit 1", "ip ended with 1"),
        ("printf '\\377\\000\\n' >&2; exit 1", "\ufffd"),
    ],
)
def test_a_tool_that_fails_or_floods_is_one_line(tmp_path: Path, body: str, why: str) -> None:
    with pytest.raises(RestoreError) as caught:
        run_tool("ip", 30, [tool(tmp_path, body)])
    assert why in caught.value.message and "\n" not in caught.value.message


def test_a_tool_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match=r"ip did not end within 0.3 s"):
        run_tool("ip", 0.3, [tool(tmp_path, "sleep 600 & sleep 600")])


def test_it_never_says_absent_where_it_could_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    from pact.resources.support import link_look

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(link_look, "Talk", refuse)
    assert KIND.observe("lo") == Unreadable("link: operation not permitted")
    assert KIND.many()("lo") == Unreadable("link: operation not permitted")
