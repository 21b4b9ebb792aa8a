"""Sysctls that move each other, on the real kernel: what one write moves is settled with it, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Agent, wait_until

FORWARD = "net.ipv4.ip_forward"
ALL = "net.ipv4.conf.all.forwarding"
ROOT = "/proc/sys/"
RESCAN_S = 0.5


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"observe": {"rescan": f"{RESCAN_S}s"}}


def get(agent: Agent, name: str) -> str:
    return agent.world.sh(f"cat {ROOT}{name.replace('.', '/')}").out.split("\n")[0]


def put(agent: Agent, name: str, value: object) -> None:
    agent.world.sh(f"echo '{value}' > {ROOT}{name.replace('.', '/')}")


@pytest.fixture
def links(agent: Agent) -> Iterator[Agent]:
    """Two ends of a cable, and everything about forwarding as it is by default."""
    agent.world.sh("ip link add hsn0 type veth peer name hsn1 && ip link set hsn0 up && ip link set hsn1 up")
    put(agent, FORWARD, 0)
    yield agent
    agent.ask("rollback", all=True, force=True, shared=True)
    agent.world.sh("ip link del hsn0", check=False)
    put(agent, FORWARD, 0)


@pytest.fixture
def vm(agent: Agent) -> Iterator[Agent]:
    """A few of the host's own, which are put back as they were."""
    names = ("vm.dirty_ratio", "vm.overcommit_ratio")
    before = {n: get(agent, n) for n in names}
    assert all(v != "0" for v in before.values()), before
    yield agent
    for name, value in before.items():
        put(agent, name, value)


def no_drift(agent: Agent) -> None:
    """Also after everything was looked at twice more."""
    for _ in range(2):
        time.sleep(RESCAN_S + 0.2)
        assert agent.status()["changes"] == [], agent.status()["changes"]


@pytest.mark.invariant("C8")
def test_a_commit_takes_the_alias_with_it(links: Agent) -> None:
    links.adopt("sysctl:net.ipv4.**")
    put(links, FORWARD, 1)
    change = links.drifted(f"sysctl:{FORWARD}")
    assert {f"sysctl:{ALL}", "sysctl:net.ipv4.conf.hsn1.forwarding"} <= set(change["resources"]), change
    assert len(links.status()["changes"]) == 1
    links.pact("commit", "--all", "-m", "a router")
    no_drift(links)
    assert (get(links, FORWARD), get(links, ALL)) == ("1", "1")


@pytest.mark.invariant("C8")
def test_naming_one_of_those_that_moved_together_settles_all_of_them(links: Agent) -> None:
    links.adopt("sysctl:net.ipv4.**")
    put(links, FORWARD, 1)
    links.drifted(f"sysctl:{ALL}")
    put(links, "net.ipv4.ip_default_ttl", 77)
    links.drifted("sysctl:net.ipv4.ip_default_ttl")
    answer = links.json("commit", f"sysctl:{ALL}", "-m", "by its other name")
    (committed,) = answer["committed"]
    assert f"sysctl:{FORWARD}" in committed["resources"]
    assert "sysctl:net.ipv4.ip_default_ttl" not in committed["resources"]
    links.pact("rollback")
    no_drift(links)
    assert (get(links, FORWARD), get(links, ALL), get(links, "net.ipv4.ip_default_ttl")) == ("1", "1", "64")


@pytest.mark.invariant("C8")
def test_an_applied_sysctl_is_committed_with_what_it_moved(links: Agent) -> None:
    links.adopt("sysctl:net.ipv4.**")
    links.pact("--json", "apply", "-m", "routing", "-", input=f'[sysctl]\n"{FORWARD}" = 1\n'.encode())
    (change,) = links.status()["changes"]
    assert f"sysctl:{ALL}" in change["resources"]
    links.pact("commit", "-m", "routing")
    no_drift(links)
    assert get(links, ALL) == "1"


@pytest.mark.invariant("C8")
def test_a_rollback_leaves_what_is_not_its_own_as_it_was(links: Agent) -> None:
    """Writing 0 clears forwarding of every link, also of the one where it is declared."""
    put(links, "net.ipv4.conf.hsn1.forwarding", 1)
    put(links, "net.ipv6.conf.hsn1.forwarding", 1)
    links.adopt("sysctl:net.ipv4.**", "sysctl:net.ipv6.**")
    for name in (FORWARD, "net.ipv6.conf.all.forwarding"):
        put(links, name, 1)
        links.drifted(f"sysctl:{name}")
    links.pact("rollback")
    assert get(links, FORWARD) == "0"
    assert get(links, "net.ipv4.conf.hsn1.forwarding") == "1"
    assert get(links, "net.ipv6.conf.hsn1.forwarding") == "1"
    no_drift(links)


@pytest.mark.invariant("C8")
def test_a_rollback_does_not_take_away_what_another_has_drifted(links: Agent) -> None:
    links.adopt("sysctl:net.ipv4.**")
    put(links, FORWARD, 1)
    links.drifted(f"sysctl:{FORWARD}")
    writer = links.world.python(f"open('{ROOT}net/ipv4/conf/hsn0/forwarding','w').write('0')\nready()\n")
    links.world.end(writer)
    put(links, "net.ipv4.conf.hsn0.rp_filter", 2)
    links.drifted("sysctl:net.ipv4.conf.hsn0.rp_filter")
    links.pact("rollback", f"sysctl:{FORWARD}")
    assert get(links, "net.ipv4.conf.hsn0.rp_filter") == "2"
    assert links.change_of("sysctl:net.ipv4.conf.hsn0.rp_filter")
    links.pact("rollback")


@pytest.mark.invariant("C8")
def test_a_write_to_an_undeclared_sysctl_is_seen_by_what_it_moves(links: Agent, another: Callable[..., Agent]) -> None:
    """By the event, as no rescan comes."""
    agent = another(observe={"rescan": "1h"})
    agent.adopt(f"sysctl:{ALL}", "sysctl:net.ipv4.conf.hsn0.forwarding")
    before = len(agent.records("drift_detected"))
    put(links, FORWARD, 1)
    change = wait_until(lambda: agent.change_of(f"sysctl:{ALL}"), "it is seen")
    assert set(change["resources"]) == {f"sysctl:{ALL}", "sysctl:net.ipv4.conf.hsn0.forwarding"}
    new = agent.records("drift_detected")[before:]
    assert {r["data"]["with"] for r in new} == {f"sysctl:{FORWARD}"}
    agent.pact("commit", f"sysctl:{ALL}", "-m", "both")
    assert agent.status()["changes"] == []


@pytest.mark.invariant("C8")
def test_two_writes_count_all_that_they_moved(links: Agent) -> None:
    """And a rollback of both takes everything back."""
    links.adopt("sysctl:net.**")
    put(links, FORWARD, 1)
    put(links, "net.ipv6.conf.all.forwarding", 1)
    wait_until(lambda: links.status()["drifted"] >= 10, f"status knows of all: {links.status()['drifted']}", 1.5)
    assert len(links.status()["changes"]) == 1
    links.pact("rollback")
    no_drift(links)


@pytest.mark.invariant("C8")
def test_what_a_link_moves_is_seen(links: Agent) -> None:
    links.adopt("sysctl:net.ipv6.conf.hsn0.**", "sysctl:net.ipv4.conf.hsn0.**")
    links.world.sh("ip link set hsn0 mtu 1400")
    wait_until(lambda: links.change_of("sysctl:net.ipv6.conf.hsn0.mtu"), "the link's mtu is seen", 1.5)
    links.world.sh("ip link set hsn0 mtu 1500")
    wait_until(lambda: not links.status()["changes"], "and that it is back", 1.5)
    put(links, "net.ipv4.conf.hsn0.rp_filter", 2)
    links.drifted("sysctl:net.ipv4.conf.hsn0.rp_filter")
    links.pact("commit", "-m", "kept")
    links.world.sh("ip link del hsn0; ip link add hsn0 type veth peer name hsn1")
    wait_until(lambda: links.change_of("sysctl:net.ipv4.conf.hsn0.rp_filter"), "the default came back", 1.5)


@pytest.mark.invariant("C8")
def test_a_value_that_follows_from_another_is_brought_back_with_it(vm: Agent) -> None:
    ratio = get(vm, "vm.overcommit_ratio")
    vm.adopt("sysctl:vm.overcommit_kbytes", "sysctl:vm.overcommit_ratio")
    put(vm, "vm.overcommit_kbytes", 5_000_000)
    change = vm.drifted("sysctl:vm.overcommit_kbytes")
    assert set(change["resources"]) == {"sysctl:vm.overcommit_kbytes", "sysctl:vm.overcommit_ratio"}
    vm.pact("rollback")
    assert (get(vm, "vm.overcommit_kbytes"), get(vm, "vm.overcommit_ratio")) == ("0", ratio)
    no_drift(vm)


@pytest.mark.invariant("C8")
def test_a_plan_is_judged_by_where_it_ends(vm: Agent) -> None:
    """0 is no value that the kernel takes for bytes; it is what they are when the ratio is set."""
    ratio = get(vm, "vm.dirty_ratio")
    vm.adopt("sysctl:vm.dirty_bytes", "sysctl:vm.dirty_ratio")
    put(vm, "vm.dirty_bytes", 100_000_000)
    vm.drifted("sysctl:vm.dirty_bytes")
    vm.pact("rollback")
    assert (get(vm, "vm.dirty_bytes"), get(vm, "vm.dirty_ratio")) == ("0", ratio)
    done = vm.declare('[sysctl]\n"vm.dirty_bytes" = 0\n"vm.dirty_ratio" = 11\n')
    assert done.code == 0 and get(vm, "vm.dirty_ratio") == "11"
    put(vm, "vm.dirty_bytes", 100_000_000)
    vm.drifted("sysctl:vm.dirty_bytes")
    done = vm.declare('[sysctl]\n"vm.dirty_bytes" = 0\n"vm.dirty_ratio" = 12\n', "--take")
    assert done.code == 0 and get(vm, "vm.dirty_ratio") == "12"
    no_drift(vm)


@pytest.mark.invariant("C8")
def test_a_pair_that_contradicts_itself_is_named(vm: Agent) -> None:
    done = vm.pact("declare", "-", input=b'[sysctl]\n"vm.dirty_bytes" = 100000000\n"vm.dirty_ratio" = 11\n', check=1)
    assert "contradicts sysctl:vm.dirty_" in done.err, done
    assert vm.ask("declare", resources={}, prune=True)["exit"] == 0


@pytest.mark.invariant("C8")
def test_what_is_declared_is_not_undone_for_a_rollback_that_contradicts_it(links: Agent) -> None:
    """Two names of one switch, declared apart: nobody's committed value goes."""
    links.declare(f'[sysctl]\n"{FORWARD}" = 1\n')
    links.declare(f'[sysctl]\n"{ALL}" = 1\n')
    done = links.declare(f'[sysctl]\n"{ALL}" = 0\n', check=1)
    assert "contradicts" in done.json()["message"], done
    assert get(links, FORWARD) == "1"
    links.declare(f'[sysctl]\n"{ALL}" = 1\n', "--take")


@pytest.mark.invariant("C8")
def test_one_switch_that_two_changes_have_under_two_names_can_be_turned_back(links: Agent) -> None:
    """Each of them alone contradicts the other; what is declared of both is the same."""
    links.adopt(f"sysctl:{FORWARD}", f"sysctl:{ALL}")
    put(links, FORWARD, 1)
    links.drifted(f"sysctl:{ALL}")
    answer = links.ask("apply", resources={f"sysctl:{ALL}": {"attrs": {"value": "1"}}}, message="the same again")
    assert answer["exit"] == 0, answer
    answer = links.ask("declare", resources={f"sysctl:{FORWARD}": {"attrs": {"value": "0"}}}, take=False)
    writer = links.world.python(f"open('{ROOT}net/ipv4/conf/all/forwarding','w').write('1')\nready()\n")
    links.world.end(writer)
    links.pact("rollback", "--all", "--shared", check=None)
    links.pact("rollback", "--all", "--shared", check=None)
    assert (get(links, FORWARD), get(links, ALL)) == ("0", "0")
    no_drift(links)


@pytest.mark.invariant("D5")
@pytest.mark.parametrize(
    ("name", "declared", "reads"),
    [
        ("net.ipv4.tcp_fastopen", '"0x403"', "1027"),
        ("net.ipv4.tcp_fastopen", '"02003"', "1027"),
        ("net.ipv4.ip_local_reserved_ports", '"8082,8080-8081,9148"', "8080-8082,9148"),
        ("net.ipv4.ip_local_port_range", '"0x8001 60999"', "32769\t60999"),
        ("net.ipv4.tcp_rmem", "4097", "4097\t"),
        ("net.ipv4.neigh.lo.retrans_time_ms", "1001", "100"),
    ],
)
def test_what_the_kernel_made_of_a_value_is_compared(agent: Agent, name: str, declared: str, reads: str) -> None:
    before = get(agent, name)
    agent.declare(f'[sysctl]\n"{name}" = {declared}\n')
    assert get(agent, name).startswith(reads), get(agent, name)
    no_drift(agent)
    put(agent, name, before)
    agent.drifted(f"sysctl:{name}")
    agent.pact("rollback", "--all")
    assert get(agent, name).startswith(reads)
    assert agent.status()["changes"] == []
    put(agent, name, before)


@pytest.mark.invariant("D5")
def test_what_the_kernel_rounds_is_said(agent: Agent) -> None:
    name = "net.ipv4.neigh.lo.retrans_time_ms"
    done = agent.pact("declare", "-", input=f'[sysctl]\n"{name}" = 1001\n'.encode())
    assert f"sysctl:{name}: the kernel made {get(agent, name)} of it" in done.out, done
    put(agent, name, 1000)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("net.ipv4.conf.*.rp_filter", "a pattern declares nothing"),
        ("-net.ipv4.ip_forward", "leave it out"),
        ("net.ipv4.ip_forward ", "white space"),
        ("net.ipv4.conf.[ab].rp_filter", "a pattern"),
        ("net/ipv4/conf/?/rp_filter", "a pattern"),
    ],
)
def test_what_only_sysctl_d_means_is_refused_with_its_line(agent: Agent, name: str, why: str) -> None:
    done = agent.pact("declare", "-", input=f'[sysctl]\n"{name}" = 1\n'.encode(), check=2)
    assert why in done.err and ":2:" in done.err, done.err
    assert agent.status()["declared"] == 0


def test_both_forms_of_a_name_mean_the_same_sysctl(agent: Agent) -> None:
    agent.world.sh("ip link add link lo name eth0.100 type macvlan || ip link add eth0.100 type veth peer name e1")
    try:
        resource = "sysctl:net.ipv4.conf.eth0/100.arp_ignore"
        agent.declare('[sysctl]\n"net/ipv4/conf/eth0.100/arp_ignore" = 2\n')
        assert [r["id"] for r in agent.json("diff")["resources"]] == []
        assert agent.world.sh(f"cat {ROOT}net/ipv4/conf/eth0.100/arp_ignore").out == "2\n"
        agent.world.sh(f"echo 1 > {ROOT}net/ipv4/conf/eth0.100/arp_ignore")
        agent.drifted(resource)
        agent.pact("rollback", "sysctl:net/ipv4/conf/eth0.100/arp_ignore")
        assert agent.world.sh(f"cat {ROOT}net/ipv4/conf/eth0.100/arp_ignore").out == "2\n"
        assert agent.adopt("sysctl:net/ipv4/conf/eth0.100/**")["adopted"] > 10
    finally:
        agent.world.sh("ip link del eth0.100")


def test_a_literal_name_wins_over_a_pattern(agent: Agent) -> None:
    agent.world.sh("ip link add 'a*b' type veth peer name e1 && ip link add axb type veth peer name e2")
    try:
        assert agent.adopt("sysctl:net.ipv4.conf.a*b.rp_filter")["adopted"] == 1
        agent.declare('[sysctl]\n"net.ipv4.conf.a*b.rp_filter" = 2\n')
        assert agent.world.sh(
            f"cat '{ROOT}net/ipv4/conf/a*b/rp_filter' {ROOT}net/ipv4/conf/axb/rp_filter"
        ).out.split() == ["2", "0"]
    finally:
        agent.world.sh("ip link del 'a*b'; ip link del axb")


@pytest.mark.invariant("C8")
def test_who_writes_in_a_network_of_his_own_answers_for_nothing_here(links: Agent) -> None:
    """Its sysctls have the same names, below the same /proc."""
    links.adopt("sysctl:net.ipv4.**")
    script = f"while :; do for v in 1 0; do echo $v > {ROOT}net/ipv4/conf/all/forwarding; done; done"
    other = links.world.popen(
        ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--", "unshare", "-Urn", "sh", "-c", script]
    )
    time.sleep(0.5)
    assert other.poll() is None, "it writes"
    assert links.status()["changes"] == []
    put(links, FORWARD, 1)
    wait_until(lambda: links.change_of(f"sysctl:{ALL}"), "what it moves is seen")
    links.world.end(other)
    # a scan may have been there before the event that names the writer, which comes after thousands of the other's
    wait_until(lambda: [c["owner"]["uid"] for c in links.status()["changes"]] == [0], "its writer is named")
    (change,) = links.status()["changes"]
    assert change["also"] == [], change
    links.pact("rollback", "--all")
