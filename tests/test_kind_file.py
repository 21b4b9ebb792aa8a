"""Files on a real file system: read, compared, and put back whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kind_file_common import content, name_of, restore, seen, snapshot

from pact.model import Unreadable
from pact.resources.base import HALF_N, WHOLE_N, Keep
from pact.resources.kinds.file import KIND

root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME = "/some/file"


# -- parsing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("text", "a file is a table"),
        ({}, "say what it is"),
        ({"mode": "0644"}, "say what it is"),
        ({"contents": "x"}, "unknown key 'contents'; did you mean 'content'"),
        ({"zzzzz": 1}, "unknown key 'zzzzz'; known: "),
        ({"content": 5}, "content must be a string"),
        ({"content": "a", "source": "b"}, "source and content exclude each other"),
        ({"content": "a", "symlink": "b"}, "exclude each other"),
        ({"symlink": "b", "mode": "0777"}, "a symbolic link has no mode of its own"),
        ({"source": "missing"}, "source 'missing': No such file or directory"),
        ({"source": "."}, "source '.': Is a directory"),
        ({"content_base64": "%"}, "content_base64 is not base64"),
        ({"type": "fifo"}, "type 'fifo' is none of"),
        ({"type": ["file"]}, "is none of"),
        ({"type": "symlink"}, "declared by symlink"),
        ({"type": "file", "symlink": "a"}, "declared by symlink"),
        ({"symlink": ""}, "symlink must be"),
        ({"symlink": 1}, "symlink must be"),
        ({"symlink": "a\0b"}, "no target has a NUL"),
        ({"type": "directory", "content": ""}, "a directory has no content"),
        ({"type": "absent", "mode": "0644"}, 'type = "absent" takes no mode'),
        ({"content": "", "mode": 644}, "octal digits in quotes"),
        ({"content": "", "mode": "0999"}, "is not octal"),
        ({"content": "", "mode": "77777"}, "is not octal"),
        ({"content": "", "mode": "-644"}, "is not octal"),
        ({"content": "", "mode": "0o644"}, "is not octal"),
        ({"content": "", "mode": ""}, "is not octal"),
        ({"content": "", "owner": True}, "owner must be a name or a number"),
        ({"content": "", "group": ""}, "group must be a name or a number"),
        ({"content": "", "xattrs": {"user.a": 1}}, "xattrs is a table"),
        ({"content": "", "xattrs": {"user.a": "!"}}, "xattrs: user.a is not base64"),
        ({"content": "", "xattrs": {"user.%zz": ""}}, "percent-escape"),
        ({"content": "", "xattrs": {"user.a\0": ""}}, "no attribute's name"),
        ({"sha256": "abc"}, "64 lower-case hex digits"),
        ({"sha256": "A" * 64}, "64 lower-case hex digits"),
        ({"sha256": "a" * 64, "size": -1}, "size must be"),
        ({"content": "", "requires": "mount:/a"}, "requires must be a list of strings"),
        ({"content": "", "consumers": ["somebody"]}, "is none of open, none, exec:NAME"),
        ({"content": "", "weight": 0}, "weight must be a number above 0"),
        ({"content": "", "severity": "high"}, "severity must be a number above 0"),
        ({"content": "", "weight": float("nan")}, "weight must be a number above 0"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_wrong(value: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse(NAME, value, str(tmp_path))


@pytest.mark.parametrize("name", ["", "etc/x", "/etc/../x", "/etc/", "//x", "/a//b", "/a/./b", "/a%00b", "/a%zz"])
def test_a_name_that_is_no_normal_absolute_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"path|percent"):
        KIND.canonical(name)


def test_what_is_declared_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from a file")
    for value, attrs in [
        ({"content": "é"}, content("é".encode())[0]),
        ({"content_base64": "AAH/"}, content(b"\0\1\xff")[0]),
        ({"source": "source"}, content(b"from a file")[0]),
        ({"symlink": "../a"}, {"type": "symlink", "target": "../a"}),
        ({"type": "directory", "mode": "755"}, {"type": "directory", "mode": "0755"}),
        ({"type": "file", "owner": 5}, {"type": "file", "owner": "5"}),
        ({"type": "absent"}, None),
    ]:
        assert KIND.parse(NAME, value, str(tmp_path)).declared.attrs == attrs


# -- observing ------------------------------------------------------------------------------------------------------


def test_every_type_of_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("nowhere\n")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path / "socket"))
    types = {p.name: seen(p)["type"] for p in tmp_path.iterdir()}
    assert types == {"file": "file", "dir": "directory", "link": "symlink", "fifo": "fifo", "socket": "socket"}
    assert seen(tmp_path / "file")["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert seen(tmp_path / "link")["target"] == "nowhere%0A"
    assert KIND.observe("/dev/null") == {**seen(Path("/dev/null")), "type": "char"}
    assert KIND.observe(name_of(tmp_path / "absent")) is None
    assert KIND.observe(name_of(tmp_path / "file" / "below")) is None


@pytest.mark.invariant("D1")
def test_what_cannot_be_read_is_unreadable_and_not_absent(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert KIND.observe(name_of(loop / "x")) == Unreadable("file: ELOOP")
    assert KIND.observe("/" + "x" * 300) == Unreadable("file: ENAMETOOLONG")
    assert isinstance(KIND.observe("/a%zz"), Unreadable)


@root
@needs_root
@pytest.mark.invariant("D1")
def test_a_file_that_another_user_may_not_read_is_unreadable(tmp_path: Path) -> None:
    secret = tmp_path / "d" / "secret"
    secret.parent.mkdir()
    secret.write_text("x")
    secret.chmod(0o600)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        seen_first = KIND.observe(name_of(secret))
        os._exit(0 if isinstance(seen_first, Unreadable) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("raw", [b"with space", b"new\nline", b"\xff\xfe", b"100%", "\u202egnp".encode(), b"\x1b[31m"])
def test_hostile_names_are_one_line_and_come_back(raw: bytes, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + raw
    attrs, blobs = content(b"first")
    restore(path, attrs, blobs, None)
    with open(path, "rb") as f:
        assert f.read() == b"first"
    assert KIND.canonical(name_of(path)) == name_of(path)
    assert name_of(path).isprintable()
    restore(path, None, {})
    assert KIND.observe(name_of(path)) is None


def test_content_is_kept_up_to_the_limit_and_what_is_larger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    for limit, kept in ((100, 1), (99, 0)):
        keep = Keep(limit)
        KIND.observe(name_of(path), keep)
        assert len(keep.blobs) == kept
        assert len(keep.unkept) == 1 - kept


def test_acls_and_extended_attributes_are_seen_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    try:
        os.setxattr(path, "user.note", b"\0binary\xff")
    except OSError:
        pytest.skip("this file system has no user attributes")
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:1234:r", path], check=True)
    attrs, blobs = snapshot(path)
    assert base64.b64decode(attrs["xattrs"]["user.note"]) == b"\0binary\xff"
    names = set(os.listxattr(path))
    path.unlink()
    path.write_text("another")
    os.setxattr(path, "user.other", b"x")
    restore(path, attrs, blobs)
    assert seen(path) == attrs
    assert set(os.listxattr(path)) == names
    os.removexattr(path, "user.note")
    assert KIND.distance_n(attrs, seen(path)) == HALF_N
    restore(path, attrs, blobs)
    assert seen(path) == attrs


# -- distance -------------------------------------------------------------------------------------------------------


def test_only_what_is_declared_is_compared(tmp_path: Path) -> None:
    file = {"type": "file", "sha256": "a", "size": 1, "mode": "0644", "owner": "root", "group": "root", "xattrs": {}}
    assert KIND.distance_n({"type": "file"}, file) == 0
    assert KIND.distance_n({"type": "file", "sha256": "a"}, file) == 0
    assert KIND.distance_n({"type": "file", "sha256": "b"}, file) == WHOLE_N
    assert KIND.distance_n({"type": "directory"}, file) == WHOLE_N
    assert KIND.distance_n({"type": "file", "mode": "0600"}, file) == HALF_N
    assert KIND.distance_n({"type": "file", "mode": "0644", "xattrs": {"user.a": ""}}, file) == HALF_N
    assert KIND.distance_n(None, file) == KIND.distance_n(file, None) == WHOLE_N
    assert KIND.distance_n(None, None) == 0


# -- export ---------------------------------------------------------------------------------------------------------


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))),
    st.sampled_from(["0644", "4755"]),
)
def test_what_is_exported_is_read_back_the_same(body: bytes, mode: str) -> None:
    attrs, blobs = content(body)
    declared = KIND.parse(NAME, {"content_base64": base64.b64encode(body).decode(), "mode": mode}, "/").declared
    assert declared.attrs == {**attrs, "mode": mode}
    again = KIND.parse(NAME, KIND.export(NAME, declared, blobs.get), "/")
    assert again.declared == declared
    assert dict(again.blobs) == blobs


def test_content_that_is_not_world_readable_is_secret() -> None:
    assert KIND.secret({"type": "file", "mode": "0640"})
    assert not KIND.secret({"type": "file", "mode": "0644"})
    assert not KIND.secret({"type": "directory", "mode": "0700"})
    assert not KIND.secret(None)


def test_binary_content_is_no_text() -> None:
    for body, text in ((b"a\tb\n", "a\tb\n"), (b"\xff", None), (b"\0", None), (b"\x1b[31m", None)):
        attrs, blobs = content(body)
        assert KIND.text(attrs, blobs.get) == text
