"""Walking for ``adopt``: what matches, what is passed over and why, and that no symbolic link is followed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.model import encode_name
from pact.resources.kinds.file import KIND
from pact.resources.support.discover import Trail, _why_passed_over, discover_files, passed_over
from pact.resources.support.patterns import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        (b"/etc/**", b"/etc/a/b", True),
        (b"/etc/**", b"/etc", False),
        (b"/etc/**", b"/etcetera/x", False),
        (b"/etc/*", b"/etc/a", True),
        (b"/etc/*", b"/etc/a/b", False),
        (b"/etc/*.conf", b"/etc/a.conf", True),
        (b"/etc/*.conf", b"/etc/aXconf", False),
        (b"/etc/?", b"/etc/a", True),
        (b"/etc/?", b"/etc/ab", False),
        (b"/etc/[ab]", b"/etc/b", True),
        (b"/etc/[!ab]", b"/etc/b", False),
        (b"/etc/[!ab]", b"/etc/c", True),
        (b"/etc/[", b"/etc/[", True),
        (b"/etc/a+b", b"/etc/a+b", True),
        (b"/etc/**/x", b"/etc/a/b/x", True),
        (b"/etc/[9-0]", b"/etc/5", False),
        (b"/etc/[!9-0]", b"/etc/5", True),
        (b"/etc/[]a]", b"/etc/]", True),
        (b"/e/[^a]", b"/e/^", True),
        (b"/etc/[]", b"/etc/[]", True),
        (b"/etc/[a-]", b"/etc/-", True),
        (b"/etc[!a]x", b"/etc/x", False),
        (b"/e/[a\\]", b"/e/\\", True),
        (b"/etc/[[:a]", b"/etc/:", True),
        (b"/etc/[a&&b]", b"/etc/&", True),
        (b"/etc/[+--]", b"/etc/,", True),
        (b"/etc/**", b"/etc/new\nline", True),
        (b"/**", b"/x", True),
        (b"/etc/*", b"/etc/\xff", True),
    ],
)
def test_patterns_match_by_components(pattern: bytes, path: bytes, matches: bool) -> None:
    assert bool(compile_pattern(pattern).match(path)) is matches


@given(
    st.lists(
        st.sampled_from([b"[", b"]", b"!", b"-", b"^", b"*", b"?", b"/", b"a", b"9", b"0", b"\\", b"&", b"~", b"|"])
    ).map(b"".join),
    st.binary(max_size=8),
)
def test_every_pattern_is_one(pattern: bytes, path: bytes) -> None:
    """Whoever may ask may send one: what cannot be compiled would end the agent. And none of them warns."""
    compile_pattern(pattern).match(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "a/b/deep.conf").write_text("x")
    (tmp_path / "a/link").symlink_to("file")
    (tmp_path / "a/b/up").symlink_to("..")
    (tmp_path / "a/self").symlink_to("self")
    os.mkfifo(tmp_path / "a/fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path / "a/socket"))
    return tmp_path


def found(pattern: str) -> tuple[list[str], dict[str, int]]:
    passed: dict[str, int] = {}
    return list(discover_files(pattern, passed)), passed


def test_everything_below_is_found_once_and_links_are_not_followed(tree: Path) -> None:
    names, passed = found(f"{tree}/a/**")
    assert sorted(n.removeprefix(f"{tree}/a").lstrip("/") for n in names) == [
        "",
        "b",
        "b/c",
        "b/deep.conf",
        "b/up",
        "file",
        "link",
        "self",
    ]
    assert passed == {"a socket, device or fifo": 2}


def test_what_stands_before_a_double_star_is_meant_too_where_it_is_a_directory(tree: Path) -> None:
    """``rm -rf X`` of a tree that was adopted as ``X/**`` is wholly rolled back."""

    def named(pattern: str) -> list[str]:
        return sorted(n.removeprefix(str(tree)) for n in found(f"{tree}{pattern}")[0])

    assert named("/a/b/**") == ["/a/b", "/a/b/c", "/a/b/deep.conf", "/a/b/up"]
    assert named("/*/b/**") == ["/a/b", "/a/b/c", "/a/b/deep.conf", "/a/b/up"]
    assert named("/a/*/**") == ["/a/b", "/a/b/c", "/a/b/deep.conf", "/a/b/up"], "no link, no file"
    assert named("/a/**/deep.conf") == ["/a/b/deep.conf"]
    assert named("/a/file/**") == []


def test_a_star_stays_in_its_directory(tree: Path) -> None:
    assert [n.removeprefix(str(tree)) for n in found(f"{tree}/a/*i*")[0]] == ["/a/file", "/a/link"]
    assert [n.removeprefix(str(tree)) for n in found(f"{tree}/*/b/*.conf")[0]] == ["/a/b/deep.conf"]
    assert found(f"{tree}/no-such/**") == ([], {"unreadable directory": 1})


def test_a_name_is_taken_as_it_is_even_if_passed_over(tree: Path) -> None:
    assert found("/etc/shadow")[0] == ["/etc/shadow"]
    assert found(f"{tree}/absent")[0] == [f"{tree}/absent"]


@pytest.mark.parametrize("name", ["x.key", "x.pem", "x.keytab", ".ssh/authorized", "x.swp", "x~", ".pact-01234567"])
def test_what_identifies_or_rotates_is_passed_over_and_counted(name: str, tree: Path) -> None:
    path = tree / "a/b" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("secret")
    names, passed = found(f"{tree}/a/b/**")
    assert encode_name(os.fsencode(path)) not in names
    assert passed["rotates, or identifies the node or its users"] >= 1


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/var/lib/dpkg/status", "a package manager's own state"),
        ("/var/lib/rpm/rpmdb.sqlite", "a package manager's own state"),
        ("/usr/lib/sysimage/rpm/Packages.db", "a package manager's own state"),
        ("/var/lib/dhcp/dhclient.eth0.leases", "a DHCP client's or network manager's own state"),
        ("/var/lib/NetworkManager/internal-x.lease", "a DHCP client's or network manager's own state"),
        ("/etc/resolv.conf.dhclient-new.123", "a DHCP client's or network manager's own state"),
        ("/var/lib/systemd/random-seed", "kept by the service manager from boot to boot"),
        ("/etc/resolv.conf", "rotates, or identifies the node or its users"),
    ],
)
def test_each_that_is_passed_over_has_its_reason(path: str, why: str) -> None:
    assert passed_over(path.encode()) and _why_passed_over(path.encode()) == why
    assert not passed_over(b"/var/lib/dpkg.conf") and not passed_over(b"/etc/dhcp/dhclient.conf")


def test_what_a_package_manager_owns_is_counted_with_that_reason() -> None:
    passed: dict[str, int] = {}
    names = list(discover_files("/var/lib/dpkg/*", passed)) + list(discover_files("/etc/resolv*", passed))
    assert "/var/lib/dpkg/status" not in names
    if os.path.isdir("/var/lib/dpkg"):
        assert passed["a package manager's own state"] > 3


@pytest.mark.invariant("S2")
def test_the_machines_identities_are_passed_over() -> None:
    names = set(KIND.discover("/etc/*").names)
    assert names & {"/etc/shadow", "/etc/passwd", "/etc/group", "/etc/machine-id", "/etc/resolv.conf"} == set()


def test_hostile_names_are_found_and_encoded(tmp_path: Path) -> None:
    for raw in (b"new\nline", b"\xff", b"100%", b"[x]"):
        with open(os.fsencode(tmp_path) + b"/" + raw, "w"):
            pass
    names, _ = found(f"{tmp_path}/**")
    assert sorted(n.rpartition("/")[2] for n in names if n != str(tmp_path)) == ["%FF", "100%25", "[x]", "new%0Aline"]


def test_a_pattern_that_is_no_absolute_path_is_refused() -> None:
    for pattern in ("etc/**", "**"):
        with pytest.raises(ValueError, match="absolute path"):
            found(pattern)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernels_own_file_systems_are_not_entered() -> None:
    names, passed = found("/proc/**")
    assert names == []
    assert sum(passed.values()) == 1


def test_what_exists_under_that_very_name_is_meant(tmp_path: Path) -> None:
    """``a[12].conf`` is a file's name where there is one, and a pattern elsewhere."""
    for name in ("a[12].conf", "a1.conf", "star*", "starry"):
        (tmp_path / name).write_text("x")
    for literal in ("a[12].conf", "star*"):
        found = KIND.discover(f"{tmp_path}/{literal}")
        assert found.exact
        assert list(found.names) == [f"{tmp_path}/{literal}"]
    found = KIND.discover(f"{tmp_path}/a[1].conf")
    assert not found.exact
    assert list(found.names) == [f"{tmp_path}/a1.conf"]


@pytest.mark.parametrize(
    ("pattern", "base", "leads", "not_leads"),
    [
        ("/etc/**", b"/etc", [b"/etc", b"/etc/a", b"/etc/a/b"], [b"/usr"]),
        ("/etc/*.conf", b"/etc", [b"/etc"], [b"/etc/a"]),
        (
            "/home/*/.ssh/*",
            b"/home",
            [b"/home", b"/home/ann", b"/home/ann/.ssh"],
            [b"/home/ann/x", b"/home/ann/.ssh/y"],
        ),
        ("/etc/a*/**/x", b"/etc", [b"/etc", b"/etc/ab", b"/etc/ab/c/d"], [b"/etc/b"]),
        ("/**", b"/", [b"/", b"/etc", b"/a/b/c"], []),
        ("/e[t]c/x*", b"/", [b"/", b"/etc"], [b"/usr"]),
    ],
)
def test_a_trail_leads_where_something_may_be_meant(
    pattern: str, base: bytes, leads: list[bytes], not_leads: list[bytes]
) -> None:
    trail = Trail(pattern)
    assert trail.base == base
    assert [d for d in leads if not trail.leads(d)] == [] and [d for d in not_leads if trail.leads(d)] == []


def test_a_trail_means_what_a_walk_would_find(tree: Path) -> None:
    for pattern in (f"{tree}/**", f"{tree}/*", f"{tree}/*/*", f"{tree}/**/a*"):
        names, trail = [n for n in found(pattern)[0] if n != str(tree)], Trail(pattern)  # below it lies what may come
        there = [os.path.join(top, n) for top, dirs, files in os.walk(tree) for n in [*dirs, *files]]
        meant = sorted(p for p in there if trail.means(os.fsencode(p)))
        kinds = [p for p in meant if os.path.islink(p) or os.path.isfile(p) or os.path.isdir(p)]
        assert kinds == sorted(names), pattern


def test_a_trail_means_nothing_that_is_passed_over() -> None:
    trail = Trail("/**")
    for path in (b"/etc/shadow-", b"/run/x", b"/etc/x.pem", b"/etc/.x.swp", b"/srv/.git/config", b"/etc/pact/x"):
        assert not trail.means(path), path
    with pytest.raises(ValueError, match="absolute"):
        Trail("etc/**")
