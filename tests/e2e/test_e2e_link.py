"""Network links of a real kernel, in a network namespace: veth pairs, a bridge, addresses and routes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, wait_until
from links import CONFIG, LINK, addresses, far_end, is_up, routes, shown, wired

FAR = "10.1.0.2"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return CONFIG


@pytest.fixture
def far(agent: Agent) -> Iterator[int]:
    with far_end(agent) as pid:
        yield pid


@pytest.fixture
def wire(agent: Agent, far: int) -> Iterator[Agent]:
    with wired(agent, far):
        yield agent


def test_a_link_is_adopted_seen_when_it_is_set_down_and_set_up_again(wire: Agent) -> None:
    assert wire.adopt(LINK)["adopted"] == 1
    wire.world.sh("ip link set hsn0 down")
    wire.drifted(LINK)
    (drift,) = wire.json("diff")["resources"]
    assert (drift["declared"]["state"], drift["actual"]["state"]) == ("up", "down")
    wire.pact("rollback", "--all")
    assert is_up(wire)
    wait_until(lambda: wire.status()["state"] == "committed", "it is as declared")


@pytest.mark.invariant("X3")
def test_what_the_kernel_drops_with_a_link_that_goes_down_comes_back_with_it(wire: Agent) -> None:
    wire.world.sh("ip -6 address add fd01::1/64 dev hsn0; ip route add 10.2.0.0/16 via 10.1.0.2 metric 50")
    wire.adopt(LINK)
    wire.world.sh("ip link set hsn0 down")
    wire.drifted(LINK)
    assert "10.2.0.0/16" not in routes(wire) and "fd01::1/64" not in addresses(wire)
    wire.pact("rollback", "--all")
    assert addresses(wire) == {"10.1.0.1/16", "fd01::1/64"}
    assert "10.2.0.0/16 via 10.1.0.2 dev hsn0 metric 50" in routes(wire)


TAKES = """
import socket, struct
index = socket.if_nametoindex("hsn0")
address = socket.inet_aton("10.1.0.1")
body = struct.pack("=BBBBI", 2, 16, 0, 0, index) + b"".join(struct.pack("=HH", 8, k) + address for k in (1, 2))
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.sendto(struct.pack("=IHHII", 16 + len(body), 21, 5, 1, 0) + body, (0, 0))
assert struct.unpack_from("=i", s.recv(4096), 16)[0] == 0
ready()
"""


@pytest.mark.invariant("X2")
def test_an_address_that_is_taken_away_is_the_drift_of_who_did_it(wire: Agent) -> None:
    """The kernel names the port of the socket that asked for it; the process is there and has that socket."""
    wire.adopt(LINK)
    wire.world.sh("ip route add default via 10.1.0.2")
    taker = wire.world.python(TAKES)
    try:
        owner = wire.drifted(LINK)["owner"]
    finally:
        wire.world.end(taker)
    assert owner["user"] == "root" and owner["command"].startswith(sys.executable)
    wire.pact("rollback", "--all")
    assert addresses(wire) == {"10.1.0.1/16"}
    assert "default via 10.1.0.2" in routes(wire)


ESTABLISHED = """
import socket
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print("ready", flush=True)
for line in sys.stdin:
    s.sendall(line.encode())
    got = s.recv(100)
    print(got.decode().strip(), flush=True)
"""
SERVER = """
import socket
l = socket.create_server(("10.1.0.2", 4022))
print("ready", flush=True)
c, _ = l.accept()
while (got := c.recv(100)):
    c.sendall(got)
"""


def test_a_link_set_down_under_a_session_comes_back_at_the_end_of_the_window(
    wire: Agent, far: int, another: Callable[..., Agent]
) -> None:
    """The session is a TCP connection through the link, which is established before and lives after."""
    own = another(window={"base": "2s", "floor": "0.5s"})
    inside = ["nsenter", f"--net=/proc/{far}/ns/net", "--", sys.executable, "-c", SERVER]
    server = subprocess.Popen(inside, stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    client = wire.world.popen(
        [sys.executable, "-c", "import sys\n" + ESTABLISHED, FAR, "4022"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout is not None and client.stdout.readline() == b"ready\n"
        own.adopt(LINK)

        def say(text: bytes) -> bytes:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(text)
            client.stdin.flush()
            return client.stdout.readline()

        assert say(b"before\n") == b"before\n"
        own.world.sh("ip link set hsn0 down")
        own.drifted(LINK)
        assert not is_up(own)
        own.settled(LINK)
        assert is_up(own)
        assert say(b"after\n") == b"after\n"
        (done,) = own.records("rolled_back")
        assert done["data"]["cause"] == "expired"
    finally:
        own.world.end(client)
        server.kill()
        server.wait(10)
        server.stdout.close()


@pytest.mark.invariant("B1")
def test_what_a_boot_resets_is_brought_back_before_the_agent_is_ready(wire: Agent) -> None:
    wire.declare(
        '[link.br0]\nstate = "up"\ntype = "bridge"\naddresses = ["10.7.0.1/24"]\nroutes = ["10.8.0.0/16 via 10.7.0.9"]\n'
        '[link.hsn0]\nstate = "up"\nmtu = 1400\n'
    )
    wire.stop(signal.SIGKILL)
    wire.world.sh("ip link del br0; ip link set hsn0 down; ip link set hsn0 mtu 1500")
    boot = wire.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    wire.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")
    try:
        wire.start()
        assert wire.newest("converged")["data"]["cause"] == "boot"
        assert is_up(wire) and shown(wire)["mtu"] == 1400 and addresses(wire, "br0") == {"10.7.0.1/24"}
        assert "10.8.0.0/16 via 10.7.0.9" in routes(wire)
        assert wire.status()["changes"] == []
    finally:
        wire.world.sh("umount /proc/sys/kernel/random/boot_id; ip link del br0", check=False)
        wire.restart()


# -- no lock-out ----------------------------------------------------------------------------------------------------

HEARS = """
import socket
l = socket.create_server(("10.1.0.2", 7417))
print("ready", flush=True)
while True:
    l.accept()[0].close()
"""


@pytest.fixture
def parent(far: int, wire: Agent) -> Iterator[str]:
    """What takes connections at the other end, as an aggregator does."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/proc/{far}/ns/net", "--", sys.executable, "-c", HEARS], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield "10.1.0.2:7417"
    process.kill()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def child(parent: str, make_agent: Callable[..., Agent], base: Path) -> Iterator[Agent]:
    """An agent with that parent in its configuration."""
    agent = make_agent(observe={"rescan": "1h"})
    agent.pact("keygen", "n001", "--dir", str(base))
    agent.configure({"keys": {"secret": str(base / "n001.secret")}})
    with open(agent.config_path, "a") as f:
        key = (base / "n001.key").read_text().strip()
        f.write(f'[cluster]\nparents = [{{url = "tcp://{parent}", key = "{key}"}}]\n')
    agent.start()
    yield agent
    agent.close()
    for name in ("n001.key", "n001.secret"):
        (base / name).unlink()


@pytest.mark.invariant("X1")
def test_a_step_after_which_the_parents_are_out_of_reach_is_taken_back(child: Agent) -> None:
    child.adopt(LINK)
    said = child.declare('[link.hsn0]\nstate = "up"\nmtu = 1500\naddresses = ["10.9.0.1/16"]\n', check=None)
    assert said.code == 1 and "did not reach its parents (10.1.0.2:7417)" in said.out, said
    assert "it has its former state again" in said.out
    assert addresses(child) == {"10.1.0.1/16"} and is_up(child)


@pytest.mark.invariant("X1")
def test_a_rollback_that_would_lock_out_is_failed_with_that_reason(child: Agent) -> None:
    child.world.sh("ip link set hsn0 down")
    child.adopt(LINK)
    child.world.sh("ip link set hsn0 up")
    change = child.drifted(LINK)["id"]
    child.pact("rollback", "--all", "--force", check=1)
    assert is_up(child)
    failed = child.newest("rollback_failed")
    assert failed["data"]["change"] == change and "did not reach its parents" in json.dumps(failed["data"])
    assert child.change_of(LINK)["state"] == "failed"


@pytest.mark.invariant("X1", "R6", "R11")
def test_a_kill_before_it_is_known_who_is_reached_locks_nobody_out(child: Agent) -> None:
    child.world.sh("ip link set hsn0 down")
    child.adopt(LINK)
    child.world.sh("ip link set hsn0 up")
    child.drifted(LINK)
    asking = child.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", child.socket, "rollback", "--all", "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: not is_up(child), "it is set down")
    child.stop(signal.SIGKILL)
    asking.wait(20)
    assert not is_up(child)
    child.start()
    assert "a step on the link hsn0 was cut off" in child.log()
    wait_until(lambda: child.change_of(LINK)["state"] == "failed", "it was tried again, and is failed")
    assert is_up(child) and addresses(child) == {"10.1.0.1/16"}


@pytest.mark.invariant("X1")
def test_what_was_out_of_reach_before_does_not_stop_a_step(child: Agent) -> None:
    child.adopt(LINK)
    child.world.sh("ip address del 10.1.0.1/16 dev hsn0")
    child.drifted(LINK)
    child.pact("rollback", "--all")
    assert addresses(child) == {"10.1.0.1/16"}


@pytest.mark.invariant("X1")
def test_without_parents_the_default_gateway_counts(wire: Agent) -> None:
    wire.world.sh("ip route add default via 10.1.0.2")
    wire.adopt(LINK)
    said = wire.declare('[link.hsn0]\nstate = "down"\n', check=None)
    assert said.code == 1 and "did not reach the default gateway (10.1.0.2)" in said.out, said
    assert is_up(wire) and "default via 10.1.0.2" in routes(wire)


# -- who uses it ----------------------------------------------------------------------------------------------------

HOLDS = """
import socket
s = socket.socket()
s.bind((sys.argv[1], 4100))
s.listen()
ready()
"""


def test_who_is_bound_to_an_address_that_would_go_blocks_the_rollback_and_is_named(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.world.sh("ip address add 10.3.0.1/16 dev hsn0")
    wire.drifted(LINK)
    holder = wire.world.python(HOLDS, "10.3.0.1")
    other = wire.world.python(HOLDS, "10.1.0.1")
    try:
        wire.pact("rollback", "--all", check=10)
        (named,) = wire.newest("rollback_blocked")["data"]["holders"]
        assert named["how"] == "socket" and "tcp 10.3.0.1 port 4100" in named["path"], named
        assert named["pid"] == holder.pid
        assert "10.3.0.1/16" in addresses(wire)
    finally:
        wire.world.end(holder)
        wire.world.end(other)
    wire.pact("rollback", "--all")
    assert addresses(wire) == {"10.1.0.1/16"}


def test_consumers_names_sockets_and_a_link_that_nobody_uses_has_none(wire: Agent) -> None:
    assert "nobody uses" in wire.pact("consumers", LINK).out
    holder = wire.world.python(HOLDS, "10.1.0.1")
    try:
        (named,) = wire.json("consumers", LINK)["consumers"]
        assert (named["pid"], named["how"]) == (holder.pid, "socket")
    finally:
        wire.world.end(holder)


# -- master, routes, what is made again -----------------------------------------------------------------------------


def test_routes_and_master_are_compared_only_where_they_are_named(wire: Agent) -> None:
    wire.declare('[link.hsn0]\nstate = "up"\nroutes = ["10.2.0.0/16 via 10.1.0.2"]\n')
    assert "10.2.0.0/16 via 10.1.0.2 dev hsn0" in routes(wire)
    wire.world.sh(
        "ip route del 10.2.0.0/16; ip route add 10.4.0.0/16 via 10.1.0.2; ip address add 10.5.0.1/24 dev hsn0"
    )
    wire.drifted(LINK)
    wire.pact("rollback", "--all")
    assert "10.2.0.0/16 via" in routes(wire) and "10.4.0.0/16" not in routes(wire)
    assert "10.5.0.1/24" in addresses(wire), "no addresses are declared"


def test_a_commit_declares_no_more_than_was_declared(wire: Agent) -> None:
    wire.declare("[link.hsn0]\nmtu = 1500\n")
    wire.world.sh("ip link set hsn0 mtu 1400; ip route add 10.2.0.0/16 via 10.1.0.2")
    wire.drifted(LINK)
    wire.pact("commit", "--all", "-m", "smaller")
    assert wire.pact("export").out.split() == ["[link.hsn0]", "mtu", "=", "1400"]


def test_a_bridge_that_was_deleted_is_made_again_before_its_members(wire: Agent) -> None:
    wire.world.sh("ip link add br0 type bridge; ip link set br0 up; ip link set hsn0 master br0")
    try:
        wire.declare(
            '[link.br0]\nstate = "up"\ntype = "bridge"\naddresses = ["10.7.0.1/24"]\n'
            '[link.hsn0]\nstate = "up"\nmaster = "br0"\n'
        )
        wire.world.sh("ip link del br0")
        wire.drifted("link:br0")
        wire.drifted(LINK)
        wire.pact("rollback", "--all")
        assert shown(wire)["master"] == "br0" and addresses(wire, "br0") == {"10.7.0.1/24"} and is_up(wire, "br0")
    finally:
        wire.world.sh("ip link del br0", check=False)


@pytest.mark.invariant("F69")
def test_a_link_whose_hardware_is_gone_is_refused_beforehand(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.world.sh("ip link del hsn0")
    wire.drifted(LINK)
    wire.pact("rollback", "--all", check=None)
    blocked = wire.newest("rollback_blocked")
    assert "pact cannot make one" in json.dumps(blocked["data"]), blocked


@pytest.mark.invariant("F69")
def test_a_renamed_link_gets_its_name_back(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.world.sh("ip link set hsn0 name other")
    wire.drifted(LINK)
    plan = wire.json("rollback", "--all", "--dry-run")
    assert "it was renamed: it is other now" in json.dumps(plan)
    wire.pact("rollback", "--all")
    assert is_up(wire) and addresses(wire) == {"10.1.0.1/16"}


# -- adopt ----------------------------------------------------------------------------------------------------------


def test_links_of_containers_are_passed_over_and_counted_with_the_reason(wire: Agent) -> None:
    mine = ("docker0", "br-0123456789ab", "virbr0", "cni0")
    wire.world.sh("; ".join(f"ip link add {n} type bridge" for n in mine))
    wire.world.sh("ip link add vethab12cd3 type veth peer name cali0123456789a")
    try:
        notes = wire.adopt("link:**")["notes"]
        assert "passed over 5: a container's" in notes and "passed over 1: a virtual machine's" in notes
        assert "passed over 1: the loopback" in notes
        declared = wire.pact("export").out
        assert "hsn0" in declared and not any(n in declared for n in (*mine, "vethab12cd3", "lo]"))
        assert wire.adopt("link:lo")["adopted"] == 1
    finally:
        wire.world.sh("; ".join(f"ip link del {n}" for n in (*mine, "vethab12cd3")))


def test_addresses_with_a_lifetime_are_no_part_and_that_is_said(wire: Agent) -> None:
    wire.world.sh("ip address add 10.6.0.1/24 dev hsn0 valid_lft 600 preferred_lft 600")
    answer = wire.adopt(LINK)
    assert any("10.6.0.1/24" in n and "no part of it" in n for n in answer["notes"]), answer
    assert "10.6.0.1" not in wire.pact("export").out
    wire.world.sh("ip address del 10.6.0.1/24 dev hsn0")
    wire.world.sh("ip link set hsn0 mtu 1400")
    wire.drifted(LINK)
    assert wire.json("diff")["resources"][0]["actual"]["addresses"] == ["10.1.0.1/16"]
