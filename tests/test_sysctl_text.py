"""Names and values of sysctls in other words that mean the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.agent.followers import in_common
from pact.resources.support.sysctl_text import dotted, members, same, why_not_literal


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("net/ipv4/conf/eth0.100/arp_ignore", "net.ipv4.conf.eth0/100.arp_ignore"),
        ("net.ipv4.conf.eth0/100.arp_ignore", "net.ipv4.conf.eth0/100.arp_ignore"),
        ("vm/swappiness", "vm.swappiness"),
        ("vm", "vm"),
        ("net/ipv4/**", "net.ipv4.**"),
    ],
)
def test_the_first_separator_decides(name: str, written: str) -> None:
    assert dotted(name) == written
    assert dotted(written) == written


@pytest.mark.invariant("D5")
@pytest.mark.parametrize(
    ("declared", "actual", "alike"),
    [
        ("0x403", "1027", True),
        ("0X403", "1027", True),
        ("010", "8", True),
        ("010", "10", False),
        ("-1", "-1", True),
        ("5", "5\t4\t1\t7", True),
        ("5 4", "5\t4\t1\t7", True),
        ("4", "5\t4\t1\t7", False),
        ("5 4 1 7 1", "5 4 1 7", False),
        ("5", "5 text", False),
        ("core", "core", True),
        ("core", "|core", False),
        ("", "0", False),
        ("0", "", False),
        ("8080-8082,9148", "9148,8080,8081,8082", True),
        ("1,2,3", "1-3", True),
        ("1-3", "1-4", False),
        ("1,2", "12", False),
        ("0x10", "16 4", True),
        ("1e3", "1000", False),
        ("+5", "5", False),
        ("٣", "3", False),
        ("08", "8", False),
        ("bfq mq-deadline", "bfq", False),
    ],
)
def test_values_are_compared_as_the_kernel_reads_them(declared: str, actual: str, alike: bool) -> None:
    assert same(declared, actual) is alike


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_a_set_is_the_same_however_it_is_written(numbers: list[int]) -> None:
    one = ",".join(map(str, numbers))
    ranges = members(one)
    assert {n for low, high in ranges for n in range(low, high + 1)} == set(numbers)
    assert same(one, ",".join(f"{a}-{b}" if b > a else str(a) for a, b in ranges))


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_numbers_in_any_base(number: int) -> None:
    assert same(hex(number), str(number))
    assert same(str(number), str(number))
    assert not same(hex(number), str(number + 1))


@pytest.mark.parametrize("name", ["-net.x", "net.x ", " net.x", "net.*.x", "net.?.x", "net.[ab].x", "net.x\t"])
def test_what_sysctl_d_would_take_otherwise_is_refused(name: str) -> None:
    assert why_not_literal(name)


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net.ipv4.conf.eth0/100.x", "net.ipv4.conf.a-b.x"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert why_not_literal(name) == ""


def test_a_cause_is_looked_for_by_the_parts_that_names_share() -> None:
    assert in_common("sysctl:vm.dirty_bytes", "sysctl:vm.dirty_ratio") == 2
    assert in_common("sysctl:net.ipv4.ip_forward", "sysctl:net.ipv4.conf.all.forwarding") == 3
    assert in_common("sysctl:net.a", "sysctl:net.a") == 3
    assert in_common("sysfs:block/sda/queue/scheduler", "sysfs:block/sda/queue/nr_requests") == 4
