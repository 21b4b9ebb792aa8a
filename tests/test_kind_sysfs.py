"""Values below /sys: names, choices in brackets, what is never taken, and a way that never leaves sysfs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Declared, Unreadable
from pact.resources.base import WHOLE_N
from pact.resources.kinds.sysfs import KIND, Hotplug, Sysfs
from pact.resources.support import sysfs_names as names
from pact.resources.support.sysfs_values import choices, equal, value_of
from pact.resources.support.uevents import Uevents, parsed

THP = "kernel/mm/transparent_hugepage/enabled"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree of the same form: a disk, its link, a CPU policy that two CPUs share."""
    disk = tmp_path / "devices/pci0000:00/0000:00:01.0/block/sda"
    for place, value in {
        disk / "queue/scheduler": "none [mq-deadline] kyber\n",
        disk / "queue/nr_requests": "128\n",
        disk / "uevent": "MAJOR=8\nMINOR=0\n",
        tmp_path / "devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
        tmp_path / "devices/system/cpu/cpufreq/policy0/scaling_available_governors": "performance powersave\n",
        tmp_path / "kernel/mm/ksm/run": "0\n",
        tmp_path / "module/loose/parameters/level": "3\n",
        tmp_path / "module/loaded/parameters/level": "3\n",
        tmp_path / "module/loaded/initstate": "live\n",
        tmp_path / "fs/cgroup/memory/limit": "1\n",
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(value)
    (disk / "queue/nr_zones").write_text("0\n")
    (disk / "queue/nr_zones").chmod(0o444)
    (tmp_path / "block").mkdir()
    (tmp_path / "block/sda").symlink_to("../devices/pci0000:00/0000:00:01.0/block/sda")
    (tmp_path / "class/block").mkdir(parents=True)
    (tmp_path / "class/block/sda").symlink_to("../../devices/pci0000:00/0000:00:01.0/block/sda")
    for cpu in ("cpu0", "cpu1"):
        (tmp_path / "devices/system/cpu" / cpu).mkdir()
        (tmp_path / "devices/system/cpu" / cpu / "cpufreq").symlink_to("../cpufreq/policy0")
    return tmp_path


@pytest.fixture
def kind(tree: Path) -> Sysfs:
    return Sysfs(os.fsencode(tree))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        (THP, THP),
        (f"/sys/{THP}", THP),
        ("devices/pci0000:00/0000:00:01.0/block/sda/queue/scheduler", "block/sda/queue/scheduler"),
        ("devices/virtual/net/br0/mtu", "class/net/br0/mtu"),
        ("bus/pci/devices/0000:01:00.0/numa_node", "bus/pci/devices/0000:01:00.0/numa_node"),
    ],
)
def test_of_the_names_of_a_device_the_one_that_other_machines_have_too_is_used(name: str, canonical: str) -> None:
    assert KIND.canonical(name) == canonical
    assert KIND.canonical(canonical) == canonical
    assert KIND.of_path(KIND.watch(canonical)[0]) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "/etc/passwd/",
        "../etc/passwd",
        "kernel/../../etc/passwd",
        "kernel//mm",
        "kernel/./mm",
        "a%00b/c",
        "/etc/passwd",
        "kernel/mm/",
        *(f"{never}/x" for never in names.NEVER),
        "fs/cgroup",
        "kernel/" + "x" * 300,
    ],
)
def test_a_name_that_is_no_value_of_sysfs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no path of a value|nothing below|percent-escape|more than 255"):
        KIND.canonical(name)


@pytest.mark.parametrize(
    ("text", "value", "known"),
    [
        ("always [madvise] never\n", "madvise", ["always", "madvise", "never"]),
        ("[none]\n", "none", ["none"]),
        ("powersave\n", "powersave", None),
        ("[a] [b] c", "[a] [b] c", None),
        ("a[0] [b]", "a[0] [b]", None),
        ("", "", None),
        ("[two words] x", "[two words] x", None),
    ],
)
def test_what_is_in_brackets_is_chosen(text: str, value: str, known: list[str] | None) -> None:
    assert (value_of(text), choices(text)) == (value, known)


@pytest.mark.invariant("D5")
@pytest.mark.parametrize(
    ("declared", "actual", "is_equal"),
    [
        ("0x10", "16", True),
        ("1", "Y", True),
        ("off", "0", True),
        ("3", "00000000,00000003", True),
        ("00000003", "3", True),
        ("0-3", "0,1,2,3", True),
        ("1,0", "Y,N", True),
        ("3", "00000000,00000004", False),
        ("1", "2", False),
        ("never", "always", False),
        ("1", "N", False),
        ("1,0", "Y,N,N", False),
        ("", "x", False),
    ],
)
def test_values_are_equal_if_they_mean_the_same_to_the_kernel(declared: str, actual: str, is_equal: bool) -> None:
    assert equal(declared, actual) is is_equal
    assert KIND.distance_n({"value": declared}, {"value": actual}) == (0 if is_equal else WHOLE_N)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (1.5, "number or a string"),
        ([1], "number or a string"),
        ("a\nb", "one line"),
        ("a\0b", "one line"),
        ("x" * 4096, "one line"),
        ({}, "value is missing"),
        ({"valeu": 1}, "did you mean 'value'"),
    ],
)
def test_a_value_that_sysfs_cannot_have_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("kernel/mm/ksm/run", value, "/")


def test_a_pattern_or_a_blank_in_a_declared_name_is_refused() -> None:
    for name in ("block/*/queue/scheduler", "kernel/mm/ksm/run "):
        with pytest.raises(ValueError, match=r"declares nothing|white space"):
            KIND.parse(name, 1, "/")


@pytest.mark.parametrize("value", [True, 0, 16, "never", "00", "always [madvise] never", {"value": 1, "weight": 2}])
def test_an_exported_value_is_read_back_to_the_same(value: Any) -> None:
    declared = KIND.parse(THP, value, "/").declared
    again = KIND.parse(THP, KIND.export(THP, declared, lambda _: None), "/").declared
    assert again == declared


def test_every_name_of_a_file_works_and_one_of_them_is_adopted(kind: Sysfs) -> None:
    for name in ("block/sda/queue/scheduler", "class/block/sda/queue/scheduler"):
        assert kind.observe(name) == {"value": "mq-deadline"}
        assert list(kind.discover(name).names) == ["block/sda/queue/scheduler"]
    assert kind.misnamed("class/block/sda/queue/scheduler").endswith("sysfs:block/sda/queue/scheduler: adopt that")
    assert kind.misnamed("block/sda/queue/scheduler") == ""
    assert kind.misnamed("block/sdb/queue/scheduler") == "", "what is not there has the name that it was given"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("block/*/queue/scheduler", ["block/sda/queue/scheduler"]),
        ("/sys/block/*/queue/scheduler", ["block/sda/queue/scheduler"]),
        (
            "devices/system/cpu/cpu*/cpufreq/scaling_governor",
            ["devices/system/cpu/cpufreq/policy0/scaling_governor"],
        ),
        ("devices/**/scheduler", []),
        ("kernel/**", ["kernel/mm/ksm/run"]),
        ("fs/**", []),
        (
            "**",
            [
                "block/sda/queue/nr_requests",
                "block/sda/queue/scheduler",
                "devices/system/cpu/cpufreq/policy0/scaling_governor",
                "kernel/mm/ksm/run",
                "module/loose/parameters/level",
            ],
        ),
    ],
)
def test_a_pattern_finds_each_tunable_once(kind: Sysfs, pattern: str, found: list[str]) -> None:
    assert list(kind.discover(pattern).names) == found
    assert all(kind.means(kind.pattern(pattern), name) for name in found)


def test_what_is_passed_over_is_counted_with_its_reason(kind: Sysfs) -> None:
    listing = kind.discover("**")
    assert list(listing.names)
    assert listing.passed == {
        "read-only": 1,
        "is a parameter of a loaded module, which is adopted with it": 1,
    }
    listing = kind.discover("block/*/uevent")
    assert not list(listing.names) and listing.passed == {"acts, latches, or has an effect when it is read": 1}


@pytest.mark.parametrize(
    "name",
    [
        "bus/pci/devices/0000:01:00.0/remove",
        "bus/pci/rescan",
        "bus/pci/drivers/nvme/unbind",
        "kernel/slab/x/shrink",
        "devices/pci0000:00/0000:00:01.0/reset",
        "devices/pci0000:00/0000:00:01.0/driver_override",
        "class/x/y/uevent",
    ],
)
def test_what_acts_is_no_tunable_and_no_pattern_takes_it(name: str) -> None:
    assert names.ACTS.match(name)
    assert not KIND.means("**", name) and not KIND.means(f"*/**/{name.rpartition('/')[2]}", name)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"a\0b", "not text"), (b"x" * 5000, "longer than a page"), (b"a\nb\n", "more than one line")],
)
def test_what_is_no_value_is_unreadable(kind: Sysfs, tree: Path, content: bytes, why: str) -> None:
    (tree / "kernel/mm/ksm/run").write_bytes(content)
    seen = kind.observe("kernel/mm/ksm/run")
    assert isinstance(seen, Unreadable) and why in seen.why


def test_a_directory_is_no_value(kind: Sysfs) -> None:
    seen = kind.observe("kernel/mm/ksm")
    assert isinstance(seen, Unreadable) and "a directory" in seen.why


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../../../../../../../etc/hostname"])
def test_no_link_leads_out_of_sysfs(kind: Sysfs, tree: Path, target: str) -> None:
    run = tree / "kernel/mm/ksm/run"
    run.unlink()
    run.symlink_to(target)
    seen = kind.observe("kernel/mm/ksm/run")
    assert isinstance(seen, Unreadable) and "leads out of sysfs" in seen.why
    with pytest.raises(OSError, match=r"[Cc]ross-device|Too many"):
        kind.restore(
            "kernel/mm/ksm/run", Step("sysfs:kernel/mm/ksm/run", {"value": "1"}, {"value": "0"}), lambda _: None
        )


def test_a_device_that_is_not_there_is_told_from_a_value_that_the_kernel_has_not(kind: Sysfs) -> None:
    from pact.resources.base import Keep

    gone = "block/sdb/queue/scheduler"
    assert kind.observe(gone) is None
    said = kind.preflight(gone, Step(f"sysfs:{gone}", {"value": "none"}, None), Keep(0)).refusal
    assert "the device is not there (/sys/block/sdb)" in said and "no write brings it back" in said
    with pytest.raises(RestoreError, match="the device is not there"):
        kind.restore(gone, Step(f"sysfs:{gone}", {"value": "none"}, None), lambda _: None)
    other = "block/sda/queue/nothing"
    assert "no such value there" in kind.preflight(other, Step(f"sysfs:{other}", {"value": "1"}, None), Keep(0)).refusal


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("block/sda/queue/scheduler", "cfq", "'cfq' is none of the kernel's choices here: none, mq-deadline, kyber"),
        ("block/sda/queue/scheduler", "kyber", ""),
        ("devices/system/cpu/cpufreq/policy0/scaling_governor", "ondemand", "none of the kernel's choices here: perf"),
        ("devices/system/cpu/cpufreq/policy0/scaling_governor", "performance", ""),
        ("block/sda/queue/nr_zones", "1", "lets nobody set it"),
        ("block/sda/queue/nr_requests", "99999", ""),
    ],
)
def test_what_is_no_choice_is_refused_before_anything_is_written(kind: Sysfs, name: str, value: str, why: str) -> None:
    from pact.resources.base import Keep

    step = Step(f"sysfs:{name}", {"value": value}, kind.observe(name))  # type: ignore[arg-type]
    said = kind.preflight(name, step, Keep(0)).refusal
    assert why in said and bool(said) == bool(why)


@pytest.mark.invariant("D5")
@pytest.mark.parametrize(
    ("name", "wanted", "shown", "reads"),
    [
        ("block/sda/queue/read_ahead_kb", "129", "128", "128"),
        ("block/sda/queue/read_ahead_kb", "128", "128", ""),
        ("devices/system/cpu/cpufreq/policy0/scaling_max_freq", "3000001", "3000000", "3000000"),
        ("class/net/eth0/queues/rx-0/rps_cpus", "ff", "f", "f"),
        ("devices/system/cpu/smt/control", "off", "notsupported", ""),
        ("kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "16", "12", ""),
        ("devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "16", "12", ""),
    ],
)
def test_a_rounded_number_counts_and_an_amount_or_a_word_that_was_not_reached_does_not(
    name: str, wanted: str, shown: str, reads: str
) -> None:
    assert KIND.reads(name, {"value": wanted}, {"value": shown}) == reads


@pytest.mark.parametrize(
    ("name", "other", "moved"),
    [
        ("block/sda/queue/scheduler", "sysfs:block/sda/queue/iosched/fifo_batch", True),
        ("block/sda/queue/scheduler", "sysfs:block/sdb/queue/nr_requests", False),
        ("devices/system/cpu/smt/control", "sysfs:devices/system/cpu/cpu3/online", True),
        ("kernel/mm/ksm/run", "sysfs:kernel/mm/ksm/merge_across_nodes", True),
        ("kernel/mm/ksm/run", "sysctl:vm.swappiness", False),
        (
            "devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
            "sysfs:kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            True,
        ),
        ("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "sysctl:vm.nr_hugepages", True),
        ("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "sysctl:net.ipv4.ip_forward", False),
    ],
)
def test_a_write_moves_only_what_belongs_to_the_same_thing(name: str, other: str, moved: bool) -> None:
    assert KIND.moves(name, other) is moved


def test_only_known_tunables_are_read_on_the_loop() -> None:
    assert not KIND.lingers(THP) and not KIND.lingers("block/sda/queue/scheduler")
    assert KIND.lingers("class/hwmon/hwmon0/pwm1") and KIND.lingers("bus/pci/devices/0000:01:00.0/numa_node")


def test_messages_of_the_kernel_are_parsed_strictly() -> None:
    assert parsed(b"add@/devices/virtual/block/loop7\0ACTION=add\0") == ("add", "/devices/virtual/block/loop7")
    for junk in (b"", b"libudev\0\xfe\xed", b"add@", b"a d@/x", b"add", b"@/x", b"add@x"):
        assert parsed(junk) is None


def test_a_device_touches_the_names_that_it_is_part_of() -> None:
    source = Hotplug()
    try:
        for name in ("block/loop0/queue/nr_requests", "devices/system/cpu/cpufreq/policy3/scaling_governor", THP):
            source.want(name)

        class Said:
            def drain(self) -> tuple[list[tuple[str, str]], bool]:
                return [("add", "/devices/virtual/block/loop0"), ("online", "/devices/system/cpu/cpu3")], False

        real, source._uevents = source._uevents, Said()  # type: ignore[assignment]
        assert {n for n, pid in source.drain().changed} == {
            "block/loop0/queue/nr_requests",
            "devices/system/cpu/cpufreq/policy3/scaling_governor",
        }
        source.unwant("block/loop0/queue/nr_requests")
        assert len(source.drain().changed) == 1
        source._uevents = real
    finally:
        source.close()


@pytest.mark.root
def test_the_kernel_tells_of_a_device_and_no_other_process_can() -> None:
    heard = Uevents()
    try:
        Path("/sys/class/net/lo/uevent").write_text("change\n")
        events, lost = heard.drain()
        assert ("change", "/devices/virtual/net/lo") in events and not lost
    finally:
        heard.close()


@pytest.mark.skipif(not os.path.exists(f"/sys/{THP}"), reason="this kernel has no huge pages")
def test_this_machine_is_read_and_everything_that_is_adopted_can_be_declared_again() -> None:
    listing = KIND.discover("**")
    found = list(listing.names)
    assert THP in found and len(found) == len(set(found))
    seen = {name: KIND.observe(name) for name in found}
    assert not [s.why for s in seen.values() if isinstance(s, Unreadable)]
    for name, value in seen.items():
        if isinstance(value, dict):
            text = KIND.export(name, Declared(value), lambda _: None)
            again = KIND.parse(KIND.canonical(name), text, "/").declared.attrs
            assert KIND.distance_n(again, value) == 0, name
            assert KIND.misnamed(name) == "", name


@pytest.mark.root
def test_nothing_is_looked_at_in_another_file_system_below_sys(tmp_path: Path) -> None:
    """A mount over a directory of sysfs hides it; what is in the mount is no value of sysfs."""
    script = (
        "import sys; from pact.resources.kinds.sysfs import KIND; "
        "print(KIND.observe('kernel/mm/ksm/run')); print(KIND.observe('kernel/mm/numa/demotion_enabled') is not None)"
    )
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs t /sys/kernel/mm/ksm; echo 1 > /sys/kernel/mm/ksm/run; exec "$@"',
            "sh",
            os.sys.executable,
            "-c",
            script,
        ],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    assert "leads out of sysfs" in done.stdout, done


def test_a_value_can_be_read_while_other_files_of_the_machine_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    renames = "import os\nwhile True:\n    os.rename('a', 'b')\n    os.rename('b', 'a')\n"
    with subprocess.Popen([sys.executable, "-c", renames], cwd=tmp_path) as renaming:
        try:
            while not (tmp_path / "b").exists():
                time.sleep(0.01)
            told = {repr(KIND.observe("class/net/lo/mtu")) for _ in range(20_000)}
        finally:
            renaming.kill()
    assert len(told) == 1 and "value" in told.pop()
