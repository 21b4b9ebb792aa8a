"""Kernel parameters: names as sysctl(8) writes them, values with white space folded, real ``net.*`` in a namespace."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Declared, Unreadable
from pact.resources.base import WHOLE_N
from pact.resources.kinds.sysctl import KIND, fold, name_of_path, path_of_name

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", b"vm/swappiness"),
        ("net.ipv4.conf.eth0/1.mtu", b"net/ipv4/conf/eth0.1/mtu"),
        ("net.ipv4.conf.a%0Ab.mtu", b"net/ipv4/conf/a\nb/mtu"),
    ],
)
def test_a_slash_in_a_name_stands_for_a_dot_within_a_component(name: str, path: bytes) -> None:
    assert path_of_name(name) == b"/proc/sys/" + path
    assert name_of_path(b"/proc/sys/" + path) == name
    assert KIND.canonical(name) == name
    assert KIND.of_path(path_of_name(name)) == name


def test_names_may_be_written_as_paths() -> None:
    assert KIND.canonical("vm/swappiness") == "vm.swappiness"


@pytest.mark.parametrize("name", ["", ".", "..", "../etc/passwd", "a..b", "/vm.x", ".vm", "a%00b", "%2E%2E.x", "a//b"])
def test_a_name_that_would_leave_proc_sys_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"sysctl name|percent-escape"):
        KIND.canonical(name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10, "10"),
        (-1, "-1"),
        (True, "1"),
        ("  a \t b ", "a b"),
        ([4096, 87380, 6291456], "4096 87380 6291456"),
        ({"value": 5}, "5"),
        ("", ""),
        ("4096\t87380\n", "4096 87380"),
    ],
)
def test_a_value_is_one_line_with_white_space_folded(value: Any, text: str) -> None:
    assert KIND.parse("vm.x", value, "/").declared.attrs == {"value": text}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (1.5, "number or a string"),
        (None, "number or a string"),
        ([1, "a"], "number or a string"),
        ([True], "number or a string"),
        ("a\nb", "one line"),
        ("a\0b", "one line"),
        ("x" * 70000, "one line"),
        ({}, "value is missing"),
        ({"valu": 1}, "did you mean 'value'"),
        ({"value": 1, "consumers": "x"}, "list of strings"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_wrong(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("vm.x", value, "/")


def test_a_number_too_long_to_write_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        KIND.parse("vm.x", 10**5000, "/")


@given(st.text(max_size=20), st.text(" \t", max_size=3))
def test_folding_makes_white_space_alike(text: str, space: str) -> None:
    assert fold(space + text.replace(" ", space + " ") + space) == fold(text)
    assert fold(fold(text)) == fold(text)
    assert KIND.distance_n({"value": text}, {"value": f"{space}{text}\n"}) == 0


@given(st.one_of(st.integers(), st.text("0123456789 -.x", max_size=8), st.sampled_from(["9" * 5000, "007", "٣", "²"])))
def test_what_is_exported_is_read_back_the_same(value: int | str) -> None:
    declared = KIND.parse("vm.x", value, "/").declared
    assert KIND.parse("vm.x", KIND.export("vm.x", declared, lambda _: None), "/").declared == declared


def test_any_difference_is_a_whole_one() -> None:
    assert KIND.distance_n({"value": "1"}, {"value": "2"}) == WHOLE_N
    assert KIND.distance_n({"value": "1"}, None) == KIND.distance_n(None, {"value": "1"}) == WHOLE_N
    assert KIND.distance_n({"value": "1 2"}, {"value": "1\t2", "secret": True}) == 0


@pytest.mark.invariant("D1")
def test_what_is_there_what_is_not_and_what_cannot_be_read() -> None:
    seen = KIND.observe("kernel.ostype")
    assert seen == {"value": "Linux"}
    assert KIND.observe("kernel.no_such_thing") is None
    assert KIND.observe("kernel.ostype.below") is None
    assert isinstance(KIND.observe("kernel"), Unreadable)
    assert isinstance(KIND.observe("..%zz"), Unreadable)
    if os.path.exists("/proc/sys/vm/compact_memory"):
        assert isinstance(KIND.observe("vm.compact_memory"), Unreadable)  # write-only


@pytest.mark.invariant("D1")
def test_long_values_are_read_whole() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as f:
        assert KIND.observe("kernel.cap_last_cap") == {"value": f.read().strip()}


def test_what_cannot_be_restored_is_said() -> None:
    with pytest.raises(RestoreError, match="cannot be removed"):
        KIND.restore("vm.x", Step("sysctl:vm.x", None, {"value": "1"}), lambda _: None)
    with pytest.raises(RestoreError, match="no such sysctl; is its module loaded"):
        KIND.restore("vm.no_such", Step("sysctl:vm.no_such", {"value": "1"}, None), lambda _: None)


def test_what_acts_latches_or_is_secret_is_not_adopted_by_a_pattern() -> None:
    found = KIND.discover("vm.**")
    names = set(found.names)
    assert "vm.swappiness" in names
    assert "vm.drop_caches" not in names
    assert found.passed["acts, latches or is a secret"] >= 1
    assert list(KIND.discover("vm.drop_caches").names) == ["vm.drop_caches"]
    assert names == {n for n in names if n.startswith("vm.")}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_sysctl_of_a_network_namespace_is_restored_and_an_interface_may_have_a_dot_in_its_name() -> None:
    code = """
        import subprocess
        from pact.core.plan import Step
        from pact.errors import RestoreError
        from pact.resources.kinds.sysctl import KIND
        name = "net.ipv4.ip_default_ttl"
        before = KIND.observe(name)
        open("/proc/sys/net/ipv4/ip_default_ttl", "w").write("77\\n")
        drifted = KIND.observe(name)
        assert drifted == {"value": "77"}, drifted
        for _ in range(2):
            KIND.restore(name, Step("sysctl:" + name, before, drifted), lambda _: None)
            assert KIND.observe(name) == before
        try:
            KIND.restore(name, Step("sysctl:" + name, {"value": "1000"}, before), lambda _: None)
        except RestoreError as exc:
            print(exc)
        name = "net.ipv4.ip_local_port_range"
        KIND.restore(name, Step("sysctl:" + name, {"value": "2000 3000"}, None), lambda _: None)
        assert KIND.distance_n({"value": "2000 3000"}, KIND.observe(name)) == 0
        subprocess.run(["ip", "link", "add", "a.b", "type", "veth", "peer", "name", "p"], check=True)
        names = [n for n in KIND.discover("net.ipv4.conf.a*").names if n.endswith(".rp_filter")]
        assert "net.ipv4.conf.a/b.rp_filter" in names, names
        assert KIND.observe("net.ipv4.conf.a/b.rp_filter") is not None
    """
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the kernel does not take '1000' now (invalid argument)\n"


def test_a_value_that_is_not_world_readable_is_secret() -> None:
    assert KIND.secret({"value": "1", "secret": True})
    assert not KIND.secret({"value": "1"})
    assert not KIND.secret(None)
    assert KIND.export("vm.x", Declared({"value": "5"}, requires=("module:m",)), lambda _: None) == {
        "value": 5,
        "requires": ["module:m"],
    }


@pytest.mark.invariant("S2")
def test_what_is_declared_is_marked_secret_by_the_live_file() -> None:
    assert KIND.marked("kernel.ostype", {"value": "x"}) == {"value": "x"}
    assert KIND.marked("net.ipv4.tcp_fastopen_key", {"value": "x"}) == {"value": "x", "secret": True}
    assert KIND.marked("net.ipv6.conf.none0.stable_secret", {"value": "x"}) == {"value": "x", "secret": True}
    assert KIND.marked("no.such", {"value": "x"}) == {"value": "x"}
    assert KIND.marked("kernel.ostype", None) is None
