"""Network links on a real kernel, without an agent: each test in a process in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.root


def inside(script: str, *args: str, setup: str = "") -> Any:
    """Run Python in a new network namespace, after a shell script; what it prints is JSON."""
    command = f'set -e\n{setup}\nexec {sys.executable} -c "$SCRIPT" "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command, "sh", *args],
        env={**os.environ, "SCRIPT": script, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOOK = """
import json, sys
from pact.resources.kinds.link import KIND
each, all_ = KIND.observe, KIND.many()
assert all(each(n) == all_(n) for n in sys.argv[1:]), [(each(n), all_(n)) for n in sys.argv[1:]]
print(json.dumps({n: each(n) for n in sys.argv[1:]}))
"""


def test_links_are_read_as_iproute2_shows_them_one_by_one_or_all_at_once() -> None:
    setup = """
ip link add name a type veth peer name b; ip link add br0 type bridge; ip link set dev a master br0; ip link set dev a mtu 1400
ip link set br0 up; ip address add 10.1.0.1/24 dev br0; ip address add 10.1.0.2 peer 10.1.0.3/32 dev br0
ip -6 address add fd00::1/64 dev br0 nodad; ip address add 10.1.0.9/24 dev br0 valid_lft 100 preferred_lft 100
ip route add default via 10.1.0.7 metric 9; ip route add 10.9.0.0/16 dev br0 proto static table 99
ip route add 10.8.0.0/16 dev br0 proto bird; ip link property add dev a altname other
"""
    seen = inside(LOOK, "a", "br0", "lo", "other", "nope", setup=setup)
    assert seen["other"] is None and seen["nope"] is None
    assert seen["a"] == {
        "state": "down",
        "mtu": 1400,
        "addresses": [],
        "routes": [],
        "master": "br0",
        "type": "veth",
    }
    assert seen["br0"]["addresses"] == ["10.1.0.1/24", "10.1.0.2 peer 10.1.0.3/32", "fd00::1/64"]
    assert "10.1.0.9/24" in seen["br0"]["dynamic"]
    assert seen["br0"]["routes"] == ["10.9.0.0/16 table 99", "default via 10.1.0.7 metric 9"]
    assert seen["lo"]["type"] == "device"


RESTORE = """
import json, sys
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.resources.kinds.link import KIND
name, target = sys.argv[1], json.loads(sys.argv[2])
said = []
for _ in range(2):
    step = Step("link:" + name, target, KIND.observe(name))
    try:
        KIND.restore(name, step, lambda d: None)
        said.append("")
    except RestoreError as exc:
        said.append(exc.message)
    seen = KIND.observe(name)
print(json.dumps([said, seen, KIND.distance_n(target, seen)]))
"""


@pytest.mark.parametrize("name", ["a", "-x", "--help", "up", "%FF", "a'b;c", "$(id)"])
def test_a_link_of_any_name_is_restored_and_twice_is_once(name: str) -> None:
    target = {
        "state": "up",
        "mtu": 1300,
        "addresses": ["10.1.0.1/24", "10.1.0.2/24", "fd00::1/64", "10.2.0.1 peer 10.2.0.2/32"],
        "routes": ["10.9.0.0/16 via 10.1.0.7", "default via 10.9.0.1 metric 3", "fd01::/64 via fd00::9"],
    }
    setup = """
raw=$(printf '%s' "$1" | sed 's/%FF/\\xff/')
ip link add name "$raw" type veth peer name b; ip link set dev b up; ip address add 10.1.0.9/24 dev "$raw"
"""
    script = RESTORE.replace("name, target", "name, target", 1)
    target["routes"] = target["routes"][:1] + target["routes"][2:]
    said, seen, distance = inside(script, name, json.dumps(target), setup=setup)
    assert (said, distance) == (["", ""], 0), seen


def test_taking_the_first_address_of_a_network_away_leaves_the_declared_ones() -> None:
    setup = "ip link add name a type veth peer name b; ip link set dev a up; ip link set dev b up; ip addr add 10.1.0.9/24 dev a"
    target = {"addresses": ["10.1.0.1/24", "10.1.0.2/24"]}
    said, seen, distance = inside(RESTORE, "a", json.dumps(target), setup=setup)
    assert (said, distance) == (["", ""], 0), seen


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"state": "up"}, "pact cannot make one"),
        ({"type": "vlan"}, "parent and id"),
        ({"type": "bridge"}, ""),
    ],
)
def test_what_cannot_be_made_is_said_beforehand(target: Any, why: str) -> None:
    script = """
import json, sys
from pact.core.plan import Step
from pact.resources.kinds.link import KIND
print(json.dumps(KIND.preflight("gone", Step("link:gone", json.loads(sys.argv[1]), None), None).refusal))
"""
    said = inside(script, json.dumps(target))
    assert why in said and bool(said) == bool(why)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"mtu": 67}, "its driver takes an mtu from 68 to 65535, not 67"),
        ({"type": "bridge"}, "its type is veth, not bridge"),
        ({"vlan": {"parent": "b", "id": 3}}, "its VLAN is none, not 3 on b"),
        (None, ""),
        ({"mtu": 1400}, ""),
    ],
)
def test_what_cannot_be_set_is_said_beforehand(target: Any, why: str) -> None:
    script = """
import json, sys
from pact.core.plan import Step
from pact.resources.kinds.link import KIND
step = Step("link:a", json.loads(sys.argv[1]), KIND.observe("a"))
print(json.dumps(KIND.preflight("a", step, None).refusal))
"""
    said = inside(script, json.dumps(target), setup="ip link add name a type veth peer name b")
    assert why in said and bool(said) == bool(why)


@pytest.mark.parametrize(
    ("target", "plan", "why"),
    [
        ({"master": "none"}, {}, "there is no link none whose member it could be"),
        ({"master": "none"}, {"none": {"type": "bridge"}}, ""),
        ({"master": "br"}, {}, ""),
        ({"master": "br"}, {"br": None}, "there is no link br"),
        ({"master": "b"}, {}, "b is a veth: it takes no members"),
        ({"master": "lo"}, {}, "lo is no bridge or bond: it takes no members"),
        ({"master": ""}, {}, ""),
        ({"vlan": {"parent": "none", "id": 3}}, {}, "there is no link none of which it could be a VLAN"),
        ({"vlan": {"parent": "none", "id": 3}}, {"none": {"type": "bond"}}, ""),
        ({"vlan": {"parent": "a", "id": 3}}, {}, ""),
    ],
)
def test_a_link_above_it_must_be_there_or_come_with_the_plan(target: Any, plan: Any, why: str) -> None:
    script = """
import json, sys
from pact.core.plan import Step
from pact.resources.kinds.link import KIND
from pact.resources.support.possible import impossible
target, plan = map(json.loads, sys.argv[1:])
name = "new" if "vlan" in target else "a"
steps = [Step(f"link:{name}", target, KIND.observe(name)), *(Step(f"link:{n}", t, None) for n, t in plan.items())]
print(json.dumps(impossible(steps)))
"""
    setup = "ip link add name a type veth peer name b; ip link add name br type bridge"
    (said,) = inside(script, json.dumps(target), json.dumps(plan), setup=setup) or [""]
    assert why in said and bool(said) == bool(why)


def test_another_name_of_a_link_is_told() -> None:
    script = """
import json
from pact.core.plan import Step
from pact.resources.kinds.link import KIND
said = [KIND.misnamed(name) for name in ("a", "fabric0", "none")]
said.append(KIND.preflight("fabric0", Step("link:fabric0", {"state": "up"}, None), None).refusal)
print(json.dumps(said))
"""
    setup = "ip link add name a type veth peer name b; ip link property add dev a altname fabric0"
    own, other, none, refused = inside(script, setup=setup)
    assert (own, other, none) == ("", "is another name of link:a", "")
    assert refused == "link:fabric0: it is another name of link:a"


EVENTS = """
import json, os, select, subprocess, sys
from pact.resources.support.link_source import Notifications
n = Notifications()
n.want("a")
def seen():
    out = []
    while select.select([n], [], [], 0.3)[0]:
        got = n.drain()
        out += [[name, bool(pid)] for name, pid in got.changed] + ([got.lost] if got.lost else [])
    return out
said = []
for line in sys.argv[1:]:
    subprocess.run(line, shell=True, check=True)
    said.append(seen())
print(json.dumps(said))
"""


@pytest.mark.invariant("X2")
def test_notifications_name_the_wanted_links_and_the_sender_where_the_kernel_says_it() -> None:
    setup = (  # without IPv6, whose address of the link comes a second later
        "ip link add name a type veth peer name b; ip link add name c type veth peer name d;"
        "echo 1 > /proc/sys/net/ipv6/conf/a/disable_ipv6"
    )
    said = inside(
        EVENTS,
        "ip link set dev a up; ip link set dev b up",
        "ip address add 10.1.0.1/24 dev a",
        "ip link set dev c mtu 1400",
        "ip route add 10.2.0.0/16 via 10.1.0.2",
        "ip route add 10.3.0.0/16 via 10.1.0.2 proto bird",
        "ip link set dev a name e",
        "ip link set dev e name a; ip link del dev a",
        setup=setup,
    )
    assert ["a", False] in said[0]
    assert ["a", True] in said[1], "the kernel names who sets an IPv4 address"
    assert said[2] == [], "c is not wanted"
    assert ["a", True] in said[3], "and who sets a route"
    assert said[4] == [], "routes of daemons are dropped in the kernel"
    assert ["a", False] in said[5], "its old name is gone"
    assert ["a", False] in said[6]


@pytest.mark.invariant("X2")
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_route_that_takes_the_place_of_anothers_is_an_event_of_both(family: str) -> None:
    """The kernel tells of the new one alone."""
    setup = (
        "ip link add name a type veth peer name b; ip link add name c type veth peer name d;"
        "for i in a b c d lo; do ip link set dev $i up; done;"
        "ip address add 10.1.0.1/24 dev a; ip address add 10.3.0.1/24 dev c;"
        "ip address add fd01::1/64 dev a nodad; ip address add fd03::1/64 dev c nodad; sleep 2"
    )
    to, other, a, c = ("10.2.0.0/16", "10.5.0.0/16", "10.1.0.2", "10.3.0.2")
    if family == "-6":
        to, other, a, c = ("fd02::/64", "fd05::/64", "fd01::2", "fd03::2")
    script = EVENTS.replace("    said.append(seen())", "    said.append(seen())\n    KIND.observe('a')").replace(
        "n = Notifications()", "from pact.resources.kinds.link import KIND\nn = Notifications()"
    )
    said = inside(
        script,
        f"ip {family} route add {to} via {a}",
        f"ip {family} route replace {to} via {c}",
        f"ip {family} route add {other} via {c}",
        f"ip {family} route replace {other} via {c} src {c[:-1]}1",
        setup=setup,
    )
    assert ["a", True] in said[0]
    assert [name for name, _ in said[1]] == ["a"], "it has lost its route"
    assert said[2] == said[3] == [], "another link's routes are nothing of its"


@pytest.mark.invariant("F70")
def test_more_notifications_than_fit_mean_that_all_are_looked_at() -> None:
    script = """
import json, subprocess
from pact.resources.support import link_source
link_source.BUFFER_BYTES = 2048
n = link_source.Notifications()
n.want("a")
subprocess.run(["ip", "-batch", "-"], input=b"link set dev a mtu 1400\\nlink set dev a mtu 1300\\n" * 200, check=True)
lost = []
while True:
    got = n.drain()
    if got.lost:
        lost.append(got.lost)
    elif not got.changed:
        break
print(json.dumps(lost))
"""
    assert inside(script, setup="ip link add name a type veth peer name b")[0] == "the kernel had to drop notifications"


def test_what_a_process_sends_to_the_socket_is_not_believed() -> None:
    script = """
import json, os, socket, struct
from pact.resources.support import link_wire as wire
from pact.resources.support.link_source import Notifications
n = Notifications()
n.want("lo")
port = n._socket.getsockname()[0]
liar = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
body = wire.LINK_HEAD.pack(0, 1, 1, 0, 0) + wire.attribute(3, b"lo\\0")
liar.sendto(wire.HEADER.pack(16 + len(body), 16, 0, 0, 1) + body, (port, 0))
print(json.dumps(list(n.drain().changed)))
"""
    assert inside(script) == []


def test_a_tool_that_lies_is_not_believed(tmp_path: Path) -> None:
    """It ends with 0 and did nothing: what is there is looked at again by whoever carries the plan out."""
    tool = tmp_path / "ip"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    script = """
import json, sys
from pact.agent.acting import act
from pact.core.plan import Step
from pact.resources import KINDS
KINDS["link"].ip = sys.argv[1]
seen = KINDS["link"].observe("a")
print(json.dumps(act((Step("link:a", {"mtu": 1400}, seen),), lambda d: None)))
"""
    said = inside(script, str(tool), setup="ip link add name a type veth peer name b")
    assert said == {"link:a": "it was restored but does not stay so"}


def test_an_ipv6_address_with_another_length_gives_way() -> None:
    setup = "ip link add name a type veth peer name b; ip link set dev a up; ip address add fd00::1/64 dev a nodad"
    said, seen, distance = inside(RESTORE, "a", json.dumps({"addresses": ["fd00::1/48"]}), setup=setup)
    assert (said, distance) == (["", ""], 0), seen


def test_a_route_that_somebody_took_away_does_not_come_back_with_something_else() -> None:
    """Only what went with the link, or with an address that comes back, comes back with it."""
    script = """
import json, subprocess
from pact.core.plan import Step
from pact.resources.kinds.link import KIND
def ip(words): subprocess.run(["ip", *words.split()], check=True)
ip("route add 10.2.0.0/16 via 10.1.0.9")
KIND.observe("a")
ip("address add 10.5.0.1/24 dev a")
ip("route del 10.2.0.0/16")
target = {"state": "up", "addresses": ["10.1.0.1/24"]}
KIND.restore("a", Step("link:a", target, KIND.observe("a")), lambda d: None)
one = KIND.observe("a")
ip("route add 10.3.0.0/16 via 10.1.0.9")
KIND.observe("a")
ip("link set dev a down")
KIND.restore("a", Step("link:a", target, KIND.observe("a")), lambda d: None)
print(json.dumps([one["routes"], KIND.observe("a")["routes"]]))
"""
    setup = (
        "ip link add name a type veth peer name b; ip link set dev a up; ip link set dev b up;"
        "ip address add 10.1.0.1/24 dev a"
    )
    assert inside(script, setup=setup) == [[], ["10.3.0.0/16 via 10.1.0.9"]]


def test_what_links_had_outlives_the_agent_but_not_the_boot() -> None:
    script = """
import json, subprocess, sys, tempfile
from pact.resources.support import link_look
from pact.resources.kinds.link import KIND
top = tempfile.mkdtemp()
def begin(boot):
    link_look._known.clear()
    link_look._path = ""
    KIND.keep_in(top, boot)
begin("boot-1")
KIND.observe("a")
out = []
for boot, text in (("boot-1", None), ("boot-2", None), ("boot-2", "nonsense"), ("boot-2", "[" * 5000), ("boot-2", "{}")):
    begin("none")
    if text is not None:
        open(top + "/links", "w").write(text)
    link_look._path = ""
    KIND.keep_in(top, boot)
    known = link_look.known("a")
    out.append(None if known is None else [p.routes for p in known.pasts])
print(json.dumps(out))
"""
    setup = (
        "ip link add name a type veth peer name b; ip link set dev a up; ip link set dev b up;"
        "ip address add 10.1.0.1/24 dev a; ip route add 10.2.0.0/16 via 10.1.0.9"
    )
    assert inside(script, setup=setup) == [[[["10.2.0.0/16 via 10.1.0.9", 3]]], None, None, None, None]


def test_an_ipv6_route_from_an_address_that_is_looked_for_at_others_is_waited_for() -> None:
    target = {"state": "up", "addresses": ["fd00::1/64"], "routes": ["fd01::/64 via fd00::9 src fd00::1"]}
    setup = "ip link add name a type veth peer name b; ip link set dev b up"
    said, seen, distance = inside(RESTORE, "a", json.dumps(target), setup=setup)
    assert (said, distance) == (["", ""], 0), seen


def test_a_mount_served_over_a_link_and_a_socket_of_what_lies_on_it_are_users() -> None:
    """The mount is in the table that is read; who would mount it for real needs a server."""
    script = """
import json, socket
from pact.core.plan import Step
from pact.observe.mountinfo import parse_mountinfo
from pact.resources.kinds.link import KIND
from pact.resources.support import link_users
table = b"36 35 0:31 / /data rw - nfs4 10.1.0.9:/x rw,addr=10.1.0.9\\n37 35 0:32 / /far rw - nfs4 10.2.0.9:/x rw\\n"
link_users.read_mounts = lambda: parse_mountinfo(table)
s = socket.create_server(("10.1.0.1", 0))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br0")
u.bind(("0.0.0.0", 0))
import os
os.getpid = lambda: 1
seen = KIND.observe("a")
held = KIND.holders("a", Step("link:a", {"state": "down"}, seen), "link:a")
print(json.dumps([[h.how, h.path.split(" port")[0]] for h in held]))
"""
    setup = (
        "ip link add name a type veth peer name b; ip link add name br0 type bridge; ip link set dev a master br0;"
        "for n in a b br0 lo; do ip link set dev $n up; done; ip address add 10.1.0.1/24 dev br0"
    )
    held = inside(script, setup=setup)
    assert ["mount", "/data"] in held and ["mount", "/far"] not in held
    assert any(how == "socket" and path in ("tcp 10.1.0.1", "udp 0.0.0.0") for how, path in held)


def test_a_record_of_a_step_that_is_none_is_said_and_ends_nothing() -> None:
    script = """
import json, os, tempfile
from pact.resources import KINDS
from pact.resources.support.loose import LooseEnds
bad = [{}, {"name": "a"}, {"name": "x/y", "was": None, "parents": [], "gateways": []},
       {"name": "a", "was": 5, "parents": [[1, 2, 3]], "gateways": []}, {"name": "a", "was": {}, "parents": 7, "gateways": 7}]
said = []
for end in bad:
    path = tempfile.mktemp()
    open(path, "w").write(json.dumps({"boot": "b", "ends": [{"what": "stepped", **end}]}))
    said.append([line.split(":")[0] for line in LooseEnds().keep_in(path, "b")])
path = tempfile.mktemp()
open(path, "w").write(json.dumps({"boot": "other", "ends": [{"what": "stepped"}]}))
print(json.dumps([said, LooseEnds().keep_in(path, "b")]))
"""
    said, other_boot = inside(script)
    assert said == [["a step that was cut off could not be taken back"]] * 5 and other_boot == []


def test_parents_that_are_down_leave_the_gateway_and_this_node_is_nobodys_parent() -> None:
    script = """
import json, socket, subprocess
from pact.host import reach
from pact.resources.support import link_reach
out = []
server = socket.create_server(("127.0.0.1", 0))
for urls in ([], [f"tcp://127.0.0.1:{server.getsockname()[1]}"], ["tcp://10.1.0.7:7417"], ["tcp://no.such.name.invalid:7417"]):
    reach.must_reach(urls)
    found = link_reach.before()
    out.append([len(found.parents), [gateway for _, gateway in found.gateways]])
assert "PERMANENT" in subprocess.run(["ip", "neigh"], capture_output=True, text=True).stdout
print(json.dumps(out))
"""
    setup = (
        "ip link set lo up; ip link add name a type veth peer name b; ip link set dev a up; ip link set dev b up;"
        "ip address add 10.1.0.1/24 dev a; ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev a nud permanent;"
        "ip route add default via 10.1.0.9"
    )
    assert inside(script, setup=setup) == [[0, ["10.1.0.9"]]] * 4
