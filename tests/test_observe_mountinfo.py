"""The mount table: hostile names come out as they are, broken text is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.observe import mountinfo
from pact.observe.mountinfo import is_remote, mount_table, parse_mountinfo, read_mounts, unescape

PLAIN = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n"


def test_every_field_of_a_line_is_read() -> None:
    (m,) = parse_mountinfo(PLAIN)
    assert (m.mount_id, m.parent_id, m.major, m.minor) == (36, 35, 98, 0)
    assert (m.root, m.mount_point, m.source, m.fstype) == (b"/mnt1", b"/mnt2", b"/dev/root", "ext3")
    assert m.options == (b"rw", b"noatime")
    assert m.optional == (b"master:1", b"propagate_from:2")
    assert m.super_options == (b"rw", b"errors=continue")


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        (rb"/a\040b", b"/a b"),
        (rb"/a\012b", b"/a\nb"),
        (rb"/a\011b", b"/a\tb"),
        (rb"/a\134b", rb"/a\b"),
        (rb"/\134040", rb"/\040"),
        (b"/\xff\xfe", b"/\xff\xfe"),
        (rb"/a\043b", b"/a#b"),
        (b"/-", b"/-"),
        (b"/\r", b"/\r"),
        (rb"/\9", rb"/\9"),
    ],
)
def test_hostile_mount_points_are_decoded(escaped: bytes, name: bytes) -> None:
    line = b"1 2 0:3 / " + escaped + b" rw - tmpfs " + escaped + b" rw"
    (m,) = parse_mountinfo(line)
    assert m.mount_point == name
    assert m.source == name
    assert list(mount_table(line)) == [name]


def test_an_empty_source_and_no_optional_fields_are_accepted() -> None:
    (m,) = parse_mountinfo(b"1 2 0:3 / /x rw - tmpfs  rw,size=64k\n")
    assert m.source == b""
    assert m.super_options == (b"rw", b"size=64k")
    assert m.optional == ()


def test_a_comma_inside_an_option_stays_inside() -> None:
    (m,) = parse_mountinfo(rb"1 2 0:3 / /x rw - overlay overlay rw,lowerdir=/a\054b:/c,index=off")
    assert m.super_options == (b"rw", b"lowerdir=/a,b:/c", b"index=off")


def test_only_lines_that_changed_are_read_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any user may change the table again and again, with a file system of his own."""
    read: list[bytes] = []
    entry = mountinfo._entry

    def counted(line: bytes) -> mountinfo.MountEntry:
        read.append(line)
        return entry(line)

    monkeypatch.setattr(mountinfo, "_entry", counted)
    table = tmp_path / "self"
    monkeypatch.setattr(mountinfo, "TABLE", f"{tmp_path}/{{pid}}")
    lines = [b"%d 1 0:%d / /m%d rw - tmpfs t rw\n" % (n, n, n) for n in range(1, 300)]
    table.write_bytes(b"".join(lines))
    assert len(read_mounts()) == 299 == len(read)
    table.write_bytes(b"".join(lines[:100] + lines[101:] + [b"900 1 0:9 / /new ro - fuse f rw\n"]))
    names = [m.mount_point for m in read_mounts()]
    assert names == [b"/m%d" % n for n in range(1, 300) if n != 101] + [b"/new"]
    assert read[299:] == [b"900 1 0:9 / /new ro - fuse f rw"]
    table.write_bytes(lines[0].replace(b" rw - ", b" ro - "))
    assert [m.options for m in read_mounts()] == [(b"ro",)]
    table.write_bytes(lines[0] + lines[100])
    assert [m.mount_point for m in read_mounts()] == [b"/m1", b"/m101"] and len(read) == 303, "only the last is kept"


def test_the_running_kernels_table_is_read_whole() -> None:
    text = Path("/proc/self/mountinfo").read_bytes()
    entries = parse_mountinfo(text)
    assert len(entries) == text.count(b"\n")
    assert set(mount_table(text)) == {e.mount_point for e in entries}


def test_stacked_mounts_keep_their_order() -> None:
    table = mount_table(b"1 2 0:3 / /x rw - tmpfs a rw\n9 1 0:4 / /x rw - nfs4 b rw\n")
    assert [fstype for _, _, fstype in table[b"/x"]] == [b"tmpfs", b"nfs4"]


@pytest.mark.parametrize(
    "broken",
    [
        b"x",
        b"1 2 0:3 / /x rw",
        b"1 2 0:3 / /x rw -",
        b"a 2 0:3 / /x rw - t s o",
        b"1 2 03 / /x rw - t s o",
        b"1 2 0:+3 / /x rw - t s o",
        b"-1 2 0:3 / /x rw - t s o",
    ],
)
def test_broken_lines_are_refused_by_number(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"^mountinfo line 2: "):
        parse_mountinfo(PLAIN + broken)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(text: bytes) -> None:
    mount_table(text)
    try:
        parse_mountinfo(text)
    except ValueError as e:
        assert str(e).startswith("mountinfo line ")


@given(st.lists(st.sampled_from([b"1", b"0:3", b"/", b"-", b"rw,a", b"", b"\\040", b"\\", b"tmpfs"])).map(b" ".join))
def test_no_line_of_likely_fields_raises_anything_else(line: bytes) -> None:
    test_no_bytes_raise_anything_else.hypothesis.inner_test(line)  # type: ignore[attr-defined]


@given(st.binary())
def test_unescaping_what_the_kernel_escapes_gives_the_name_back(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes((c,)) for c in name)
    assert unescape(escaped) == name


@pytest.mark.parametrize(("fstype", "remote"), [(b"nfs4", True), (b"fuse.sshfs", True), (b"ext4", False)])
def test_network_file_systems_are_known(fstype: bytes, remote: bool) -> None:
    assert is_remote(fstype) is remote
