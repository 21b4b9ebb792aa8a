"""Packages: names and versions, both databases, and what a package manager at work means."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pact.model import Attrs, Declared, Unreadable
from pact.resources.base import HALF_N, WHOLE_N
from pact.resources.kinds.package import Package
from pact.resources.support.package_database import NO_DATABASE, Database
from pact.resources.support.package_dpkg import STATUS_BYTES_MAX
from pact.resources.support.package_reading import ReadError, Reading, same_version
from pact.resources.support.package_rpm import parsed


def stanza(name: str, version: str = "1-1", status: str = "install ok installed", arch: str = "amd64") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nPriority: optional\nArchitecture: {arch}\nVersion: {version}\n"
        f"Conffiles:\n /etc/{name} 0123\nDescription: one line\n Version: not this one\n .\n\n"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with an empty dpkg database."""
    admin = tmp_path / "var/lib/dpkg"
    (admin / "updates").mkdir(parents=True)
    (admin / "info").mkdir()
    (admin / "status").write_text(stanza("dpkg") + stanza("tool", "2:1.0-1"))
    for leaf in ("lock", "lock-frontend"):
        (admin / leaf).touch()
    return tmp_path


def status(root: Path) -> Path:
    return root / "var/lib/dpkg/status"


# -- names, versions, TOML ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "actual", "same"),
    [
        ("1.0-1", "1.0-1", True),
        ("*", "1.0-1", True),
        ("570.86.15", "570.86.15-1.el9", True),
        ("570.86.15", "570.86.150-1.el9", False),
        ("570.86.15", "3:570.86.15-1.el9", True),
        ("570.86.15-1.el9", "3:570.86.15-1.el9", True),
        ("3:570.86.15", "570.86.15-1.el9", False),
        ("3:570.86.15", "3:570.86.15-1.el9", True),
        ("0:1.0-1", "1.0-1", True),
        ("1.0-1", "1.0-2", False),
        ("1.0-1", "1.0", False),
        ("1.0", "1.0", True),
        ("1.0-1", "1.0-1-1", False),
        ("2.0~rc1-1", "2.0-1", False),
    ],
)
def test_a_version_is_the_declared_one_as_those_who_use_rpm_and_dpkg_write_it(
    declared: str, actual: str, same: bool
) -> None:
    assert same_version(declared, actual) is same


def test_a_version_that_is_known_to_have_no_release_stands_for_itself_alone() -> None:
    assert not same_version("1.0", "1.0-1", native=True) and same_version("1.0", "1.0", native=True)


@pytest.mark.parametrize(
    "value", ["1.0-1", "installed", "absent", {"version": "3", "native": True}, {"version": "3-1", "also": ["2-1"]}]
)
def test_what_is_exported_is_read_back(value: object) -> None:
    kind = Package()
    declared = kind.parse("tool", value, "/").declared
    assert kind.export("tool", declared, lambda digest: None) == value
    assert kind.parse("tool", kind.export("tool", declared, lambda digest: None), "/").declared == declared


def test_common_fields_stand_beside_the_version() -> None:
    declared = Package().parse("tool", {"version": "absent", "consumers": ["none"]}, "/").declared
    assert declared == Declared(None, consumers=("none",))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("1.0 || reboot", "neither a version"),
        ("-1", "neither a version"),
        ("", "neither a version"),
        (3, "a package is a version"),
        ({"version": "1\n2"}, "neither a version"),
        ({"version": "1", "verson": "2"}, "unknown key 'verson'"),
        ({"version": "1", "native": "yes"}, "native is true or false"),
        ({"version": "1", "also": "2"}, "also is a list"),
        ({"version": "absent", "native": True}, "has neither"),
        ("9" * 300, "neither a version"),
    ],
)
def test_a_faulty_entry_says_what_is_wrong(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Package().parse("tool", value, "/")


@pytest.mark.parametrize("name", ["libc6:i386", "glibc.i686", "g++", "libstdc++6", "perl-Digest-SHA", "0ad", "_x"])
def test_a_name_is_as_the_package_manager_writes_it(name: str) -> None:
    assert Package().canonical(name) == name


@pytest.mark.parametrize("name", ["-rf", "a b", "a\n", "a/b", "a=1", "a;b", "x" * 300, "*", "ä", "a:b:c", "!a"])
def test_a_name_that_no_package_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no package name"):
        Package().canonical(name)


@pytest.mark.parametrize(
    ("declared", "actual", "distance_n"),
    [
        (None, None, 0),
        (None, {"version": "1-1"}, WHOLE_N),
        ({"version": "*"}, None, WHOLE_N),
        ({"version": "*"}, {"version": "1-1"}, 0),
        ({"version": "*"}, {"version": "1-1", "status": "half-configured"}, HALF_N),
        ({"version": "1-1"}, {"version": "2-1"}, HALF_N),
        ({"version": "1-1"}, {"version": "2-1", "also": ["1-1"]}, 0),
        ({"version": "2-1", "also": ["1-1"]}, {"version": "2-1"}, HALF_N),
        ({"version": "2-1", "also": ["1-1"]}, {"version": "2-1", "also": ["1-1"]}, 0),
        ({"version": "3", "native": True}, {"version": "3-1"}, HALF_N),
        ({"version": "3"}, {"version": "3", "native": True}, 0),
    ],
)
def test_distances(declared: Attrs | None, actual: Attrs | None, distance_n: int) -> None:
    assert Package().distance_n(declared, actual) == distance_n


# -- dpkg's database ------------------------------------------------------------------------------------------------------


def test_dpkgs_database_says_versions_states_and_foreign_architectures(root: Path) -> None:
    with open(status(root), "a") as f:
        f.write(stanza("libc6", arch="i386") + stanza("libc6") + stanza("data", "3", arch="all"))
        f.write(stanza("gone", status="deinstall ok config-files") + stanza("never", status="unknown ok not-installed"))
        f.write(stanza("half", status="install ok half-configured") + stanza("held", status="hold ok installed"))
        f.write(stanza("broken", status="install reinstreq half-installed"))
    kind = Package(str(root))
    assert kind.observe("tool") == {"version": "2:1.0-1"}
    assert kind.observe("libc6") == kind.observe("libc6:i386") == kind.observe("libc6:amd64") == {"version": "1-1"}
    assert kind.observe("data") == {"version": "3", "native": True}
    assert kind.observe("gone") is None and kind.observe("never") is None and kind.observe("nothing") is None
    assert kind.observe("half") == {"version": "1-1", "status": "half-configured"}
    assert kind.observe("broken") == {"version": "1-1", "status": "reinstall-required"}
    assert kind.observe("held") == {"version": "1-1"}
    found = kind.discover("**")
    assert list(found.names) == ["data", "dpkg", "held", "libc6", "libc6:i386", "tool"]
    assert found.passed == {
        "half-configured: the package manager has to finish first": 1,
        "reinstall-required: the package manager has to finish first": 1,
        "removed, with configuration files left": 1,
    }
    assert kind.misnamed("libc6:amd64") == "is called package:libc6 here" and not kind.misnamed("libc6:i386")
    assert "half-configured" in kind.undeclarable(kind.observe("half") or None)  # type: ignore[arg-type]


@pytest.mark.invariant("F75")
def test_what_a_killed_dpkg_has_left_in_its_journal_counts(root: Path) -> None:
    updates = root / "var/lib/dpkg/updates"
    (updates / "0000").write_text(stanza("tool", "3-1", status="install ok unpacked"))
    (updates / "0001").write_text(stanza("tool", "3-1", status="install ok half-configured"))
    (updates / "tmp.i").write_text("nothing")
    kind = Package(str(root))
    assert kind.observe("tool") == {"version": "3-1", "status": "half-configured"}
    judged = kind.plans.judge([], kind.database.now())  # type: ignore[arg-type]
    assert judged.whole == "dpkg was interrupted: run 'dpkg --configure -a' first"


@pytest.mark.invariant("F76")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (stanza("a")[:-30], "cut off"),
        (stanza("a") + "Package: b\nStatus: install ok\n\n", "entry 2 (b) is faulty"),
        (stanza("a") + stanza("a"), "has a twice"),
        (stanza("a", status="install ok shiny"), "a status that is not known"),
        (stanza("a\x1b[31m"), "no package name"),
        (stanza("a", version="1;2"), "no proper version"),
        (stanza("a", version=""), "no proper version"),
        (stanza("a") + "\0\n", "NUL"),
        ("Hello: world\n\n", "no package"),
        (stanza("a").replace("Version: 1-1\n", "Version: 1-1\nVersion: 2-1\n"), "faulty"),
    ],
)
def test_a_faulty_database_is_unreadable_and_says_where(root: Path, text: str, why: str) -> None:
    status(root).write_text(text)
    seen = Package(str(root)).observe("a")
    assert isinstance(seen, Unreadable) and why in seen.why and "\x1b" not in seen.why, seen


@pytest.mark.invariant("F76")
def test_a_database_beyond_all_measure_or_that_is_no_file_is_unreadable_at_once(root: Path) -> None:
    with open(status(root), "r+b") as f:
        f.truncate(100 << 20)
    before = time.monotonic()
    seen = Package(str(root)).observe("a")
    assert isinstance(seen, Unreadable) and f"at most {STATUS_BYTES_MAX}" in seen.why
    status(root).unlink()
    os.mkfifo(status(root))
    seen = Package(str(root)).observe("a")
    assert isinstance(seen, Unreadable) and "no regular file" in seen.why
    assert time.monotonic() - before < 10


def test_five_thousand_packages_are_read_once_for_all_who_ask(root: Path) -> None:
    status(root).write_text("".join(stanza(f"p{n}", f"1.{n}-1") for n in range(5000)))
    kind = Package(str(root))
    before = time.perf_counter()
    assert kind.off_loop and kind.observe("p0") == {"version": "1.0-1"}
    first = time.perf_counter() - before
    assert not kind.off_loop
    look = kind.many()
    before = time.perf_counter()
    assert all(look(f"p{n}") == {"version": f"1.{n}-1"} for n in range(2000))
    assert time.perf_counter() - before < first, "two thousand looks cost less than one reading"


def test_only_the_names_that_differ_are_told() -> None:
    one = Reading("dpkg", "amd64", {"a": "1", "b": "1", "c": "1"}, {"c": "unpacked"})
    other = Reading("dpkg", "amd64", {"a": "1", "b": "2", "c": "1", "d": "1"})
    assert other.differing(one) == one.differing(other) == {"b", "c", "d"}


# -- rpm's database -------------------------------------------------------------------------------------------------------


def row(
    name: str, epoch: str = "0", version: str = "1.0", release: str = "1", arch: str = "x86_64", at: int = 5
) -> str:
    return f"{name}\t{epoch}\t{version}\t{release}\t{arch}\t{at}\n"


def test_rpms_answer_says_versions_architectures_and_what_is_installed_side_by_side() -> None:
    reading = parsed(
        row("bash")
        + row("glibc")
        + row("glibc", arch="i686")
        + row("bind", epoch="32")
        + row("kernel", version="5.14", release="2", at=9)
        + row("kernel", version="5.14", release="1", at=3)
        + row("data", arch="noarch")
        + row("gpg-pubkey", arch="(none)"),
        "x86_64",
    )
    assert sorted(reading.versions) == ["bash", "bind", "data", "glibc", "glibc.i686", "kernel"]
    assert reading.attrs("bind") == {"version": "32:1.0-1"}
    assert reading.attrs("kernel") == {"version": "5.14-2", "also": ["5.14-1"]}
    assert reading.attrs("glibc.x86_64") == reading.attrs("glibc") == {"version": "1.0-1"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (row("bash")[:-1], "cut off"),
        ("bash\n", "line 1 is not as asked for"),
        (row("bash") + row("b\x1b"), "no package name"),
        (row("bash", version="1 2"), "no proper version"),
        (row("bash", epoch="x"), "not as asked for"),
        ("\n", "not as asked for"),
    ],
)
def test_a_faulty_answer_of_rpm_is_unreadable(text: str, why: str) -> None:
    with pytest.raises(ReadError, match=why):
        parsed(text, "x86_64")


@pytest.mark.invariant("F76")
def test_what_rpm_leaves_out_because_it_is_damaged_is_not_taken_for_absent(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_text("x")
    rpm, row = tmp_path / "rpm", "echo 'a\t0\t1\t1\tnoarch\t5'"
    rpm.write_text(f"#!/bin/sh\n{row}\necho 'warning: old key' >&2\n")
    rpm.chmod(0o755)
    kind = Package(str(tmp_path), {"rpm": str(rpm)})
    assert kind.observe("a") == {"version": "1-1"} and kind.observe("b") is None
    rpm.write_text(f"#!/bin/sh\n{row}\necho 'error: rpmdbNextIterator: skipping h# 2 tag[1]: BAD' >&2\n")
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_text("changed")
    why = Unreadable("package: error: rpmdbNextIterator: skipping h# 2 tag[1]: BAD")
    assert kind.observe("b") == kind.observe("a") == why


def test_an_empty_status_of_dpkg_is_unreadable_where_packages_are(root: Path) -> None:
    status(root).write_text("")
    assert Package(str(root)).observe("tool") is None, "a root that never had one"
    (root / "var/lib/dpkg/info/tool.list").write_text("/.\n")
    why = "package: status is empty, and lists of packages' files are there"
    assert Package(str(root)).observe("tool") == Unreadable(why)


def test_without_rpm_its_database_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_text("x")
    seen = Package(str(tmp_path), {"rpm": str(tmp_path / "none")}).observe("bash")
    assert seen == Unreadable("package: rpm: no such file or directory")


def test_of_two_databases_the_distributions_own_counts(root: Path) -> None:
    (root / "var/lib/rpm").mkdir(parents=True)
    (root / "var/lib/rpm/rpmdb.sqlite").write_text("x")
    (root / "etc").mkdir()
    for text, name in (
        ("ID=ubuntu\n", "dpkg"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "rpm"),
        ("ID=mint\nID_LIKE=debian\n", "dpkg"),
    ):
        (root / "etc/os-release").write_text(text)
        manager = Database(str(root)).manager()
        assert manager is not None and manager.name == name


def test_without_a_database_packages_are_unreadable_and_nothing_is_adopted(tmp_path: Path) -> None:
    kind = Package(str(tmp_path))
    assert kind.observe("bash") == Unreadable(NO_DATABASE)
    found = kind.discover("**")
    assert list(found.names) == [] and NO_DATABASE in next(iter(found.passed))
    with pytest.raises(ValueError, match="neither dpkg nor rpm"):
        kind.newcomers("**")
