"""Network links on a bad day: two people at once, a tool that is gone, a link that goes away, a kill in between."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import REPOSITORY, Agent, wait_until
from links import CONFIG, LINK, addresses, far_end, is_up, routes, shown, wired


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


def test_two_people_at_once_change_two_links_and_each_keeps_what_is_theirs(wire: Agent) -> None:
    """While one link is rolled back, another one is set down: that is drift of its own, and is not put back with it."""
    wire.world.sh("ip link add hsn1 type veth peer name far1; ip link set far1 up; ip link set hsn1 up")
    try:
        wire.adopt("link:hsn*")
        wire.world.sh("ip link set hsn0 mtu 1400")
        wire.drifted(LINK)
        other = wire.world.popen(["sh", "-c", "sleep 0.02; ip link set hsn1 down"])
        wire.pact("rollback", LINK)
        other.wait(10)
        change = wire.drifted("link:hsn1")
        assert change["resources"] == ["link:hsn1"] and not is_up(wire, "hsn1")
        assert shown(wire)["mtu"] == 1500
        wire.pact("rollback", "--all")
    finally:
        wire.world.sh("ip link del hsn1", check=False)


def test_a_link_that_goes_away_in_mid_rollback_is_failed_and_said(wire: Agent) -> None:
    wire.adopt(LINK)
    slow = "/srv/slow"
    wire.world.sh(f"mkdir -p {slow}; cp $(command -v ip) {slow}/real")
    wire.world.path(f"{slow}/ip").write_text(f'#!/bin/sh\n{slow}/real link del dev hsn0\nexec {slow}/real "$@"\n')
    wire.world.sh(f"chmod 755 {slow}/ip; ip link set hsn0 mtu 1400")
    wire.drifted(LINK)
    tool = wire.world.sh("readlink -f $(command -v ip)").out.strip()
    wire.world.sh(f"mount --bind {slow}/ip {tool}")
    try:
        wire.pact("rollback", "--all", check=1)
    finally:
        wire.world.sh(f"umount {tool}")
    assert 'Cannot find device \\"hsn0\\"' in json.dumps(wire.newest("rollback_failed")["data"])
    assert wire.change_of(LINK)["state"] == "failed"


@pytest.mark.invariant("F68")
def test_without_iproute2_drift_is_seen_and_the_rollback_says_what_is_missing(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.world.sh("ip link set hsn0 mtu 1400; touch /srv/nothing; chmod 644 /srv/nothing")
    wire.drifted(LINK)
    tool = wire.world.sh("readlink -f $(command -v ip)").out.strip()
    wire.world.sh(f"mount --bind /srv/nothing {tool}")
    try:
        said = wire.pact("rollback", "--all", check=None)
        assert said.code != 0 and "is not installed" in said.err + said.out, said
    finally:
        wire.world.sh(f"umount {tool}")
    wire.pact("rollback", "--all")
    assert shown(wire)["mtu"] == 1500


def test_a_kill_in_mid_rollback_is_finished_at_the_next_start(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.world.sh("ip link set hsn0 down; ip link set hsn0 mtu 1400; ip address del 10.1.0.1/16 dev hsn0")
    wire.drifted(LINK)
    wire.world.sh("mkdir -p /srv/stop; cp $(command -v ip) /srv/stop/real")
    wire.world.path("/srv/stop/ip").write_text(
        '#!/bin/sh\ncase $* in *up*) touch /srv/stop/now; sleep 3;; esac\nexec /srv/stop/real "$@"\n'
    )
    tool = wire.world.sh("chmod 755 /srv/stop/ip; readlink -f $(command -v ip)").out.strip()
    wire.world.sh(f"mount --bind /srv/stop/ip {tool}")
    try:
        asking = wire.world.popen(
            [sys.executable, "-m", "pact.cli.main", "--socket", wire.socket, "rollback", "--all"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: wire.world.path("/srv/stop/now").exists(), "it is in the middle")
        wire.stop(signal.SIGKILL)
        asking.wait(20)
    finally:
        wire.world.sh(f"umount {tool}; sleep 3")
    wire.start()
    wait_until(lambda: wire.status()["state"] == "committed", f"it is finished: {wire.log()}")
    assert is_up(wire) and shown(wire)["mtu"] == 1500 and addresses(wire) == {"10.1.0.1/16"}


def test_what_moves_with_a_link_in_one_plan_is_restored_once(wire: Agent) -> None:
    """A bridge follows the mtu of its members."""
    wire.world.sh("ip link add br0 type bridge; ip link set br0 up; ip link set hsn0 master br0")
    try:
        wire.declare(
            '[link.br0]\nstate = "up"\nmtu = 1500\ntype = "bridge"\n[link.hsn0]\nstate = "up"\nmaster = "br0"\nmtu = 1500\n'
        )
        wire.world.sh("ip link set br0 down; ip link set hsn0 mtu 1300; ip link set br0 mtu 1300")
        wire.drifted("link:br0")
        wire.drifted(LINK)
        wire.pact("rollback", "--all")
        assert shown(wire)["mtu"] == 1500 and shown(wire, "br0")["mtu"] == 1500 and is_up(wire, "br0")
    finally:
        wire.world.sh("ip link del br0", check=False)


def test_what_is_new_below_an_enforced_pattern_is_taken_away(wire: Agent) -> None:
    wire.adopt("link:hsn*")
    wire.pact("track", "link:hsn*", "enforce")
    wire.world.sh("ip link add hsn7 type veth peer name far7")
    wire.drifted("link:hsn7")
    wire.pact("rollback", "--all")
    assert wire.world.sh("ip link show dev hsn7", check=False).code == 1
    wire.pact("track", "link:hsn*", "ignore")


def test_a_new_link_below_a_tracked_pattern_is_seen_at_once(wire: Agent) -> None:
    """Not at the rescan, which comes after an hour here."""
    wire.adopt("link:hsn*")
    wire.pact("track", "link:hsn*", "report")
    wire.world.sh("ip link add hsn8 type veth peer name far8")
    try:
        wait_until(lambda: wire.status()["untracked"] == 1, "it is untracked")
    finally:
        wire.world.sh("ip link del hsn8")
    wait_until(lambda: wire.status()["untracked"] == 0, "it is gone")
    wire.pact("track", "link:hsn*", "ignore")


def test_a_change_that_names_a_part_is_applied_and_taken_back(wire: Agent) -> None:
    wire.adopt(LINK)
    wire.pact("apply", "-", "-m", "jumbo", input=b"[link.hsn0]\nmtu = 9000\n")
    assert shown(wire)["mtu"] == 9000
    wire.pact("rollback", "--all")
    assert shown(wire)["mtu"] == 1500 and addresses(wire) == {"10.1.0.1/16"}
    refused = wire.pact("apply", "-", input=b"[link.hsn0]\nmtu = 67\n", check=1)
    assert "its driver takes an mtu from 68 to 65535, not 67" in refused.err
    assert shown(wire)["mtu"] == 1500


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.invariant("S10")
def test_a_link_is_seen_and_set_with_the_rights_of_the_shipped_unit(
    wire: Agent, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(observe={"rescan": "1h"})
    unit = str(REPOSITORY / "packaging/pact-agent.service")
    agent.before = [sys.executable, str(REPOSITORY / "tests/under_unit.py"), unit, "--"]
    agent.start()
    try:
        agent.world.sh("ip route add default via 10.1.0.2")
        agent.adopt(LINK)
        agent.world.sh("ip link set hsn0 down")
        agent.drifted(LINK)
        agent.pact("rollback", "--all")
        assert is_up(agent) and "default via 10.1.0.2" in routes(agent)
    finally:
        agent.close()
