"""open_handles against real processes: the compiled scan and its twin must name the same handles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pact._fast import mounts, reference
from pact._fast.mounts import Holder

pytestmark = pytest.mark.alone  # two scans of the machine's processes are compared
handles = pytest.importorskip("pact._fast.handles")

Spawn = Callable[..., int]


@pytest.fixture
def tree(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path.resolve())


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a Python child that runs ``code`` (arguments in ``a``) and then waits; returns its pid."""
    children: list[subprocess.Popen[bytes]] = []

    def start(code: str, *arguments: bytes, program: bytes | None = None, wrap: tuple[str, ...] = ()) -> int:
        lines = "import sys, os, mmap\na = [os.fsencode(x) for x in sys.argv[1:]]\n"
        lines += code + "\nprint(os.getpid(), flush=True)\nsys.stdin.read()"
        child = subprocess.Popen(
            [*wrap, program or sys.executable, "-I", "-c", lines, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        children.append(child)
        assert child.stdout
        return int(child.stdout.readline())

    yield start
    for child in children:
        child.communicate()


def holders(pids: int | tuple[int, ...], *roots: bytes, proc: bytes = b"/proc") -> list[Holder]:
    """What the compiled scan says of some processes, having made sure that the twin says it too."""
    wanted = (pids,) if isinstance(pids, int) else pids
    found = [h for h in handles.open_handles(list(roots), proc=proc) if h.pid in wanted]
    assert found == [h for h in reference.open_handles(list(roots), proc=proc) if h.pid in wanted]
    return found


def write(path: bytes, content: bytes = b"x" * 8192) -> bytes:
    with open(path, "wb") as file:
        file.write(content)
    return path


def how(found: list[Holder]) -> list[str]:
    return [h.how for h in found]


def test_an_open_descriptor_is_named_with_its_number(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/f")
    pid = spawn("os.dup2(os.open(a[0], os.O_RDONLY), 77)", path)
    found = holders(pid, path)
    assert Holder(pid, "fd", 0, path, 77) in found
    assert how(found) == ["fd", "fd"]


def test_a_mapping_that_outlives_its_descriptor_is_named(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/f")
    code = "f = os.open(a[0], os.O_RDWR); m = mmap.mmap(f, 4096); os.close(f); import gc; gc.collect()"
    pid = spawn(code + "\nfor n in range(3, 30):\n  try:\n    os.close(n)\n  except OSError: pass", path)
    assert holders(pid, path) == [Holder(pid, "map", 0, path, -1)]


def test_a_working_directory_is_named_for_the_directory_and_those_above(spawn: Spawn, tree: bytes) -> None:
    os.makedirs(tree + b"/a/b")
    pid = spawn("os.chdir(a[0])", tree + b"/a/b")
    for root in (tree + b"/a/b", tree + b"/a", tree + b"/a/"):
        assert holders(pid, root) == [Holder(pid, "cwd", 0, tree + b"/a/b", -1)]
    assert holders(pid, tree + b"/a/b/c", tree + b"/", tree + b"/a/bb")[0].root == 1


def test_a_name_that_only_begins_alike_is_another(spawn: Spawn, tree: bytes) -> None:
    os.makedirs(tree + b"/data-old")
    os.makedirs(tree + b"/data")
    pid = spawn("os.chdir(a[0])", tree + b"/data-old")
    assert holders(pid, tree + b"/data") == []


@pytest.mark.root
def test_a_changed_root_directory_is_named(spawn: Spawn, tree: bytes) -> None:
    pid = spawn("os.chroot(a[0])", tree)
    assert ("root", tree) in [(h.how, h.path) for h in holders(pid, tree)]


def test_a_running_program_is_named(spawn: Spawn, tree: bytes) -> None:
    program = tree + b"/prog"
    shutil.copy(os.path.realpath(shutil.which("sleep") or "/bin/sleep"), program)
    child = subprocess.Popen([program, "60"])
    try:
        assert set(how(holders(child.pid, program))) == {"exe", "map"}
    finally:
        child.kill()
        child.wait()


def test_every_root_of_a_plan_gets_its_own_holders(spawn: Spawn, tree: bytes) -> None:
    os.makedirs(tree + b"/d")
    path = write(tree + b"/d/f")
    pid = spawn("f = os.open(a[0], os.O_RDONLY)", path)
    roots = [tree + b"/none-%d" % i for i in range(300)]
    roots[17], roots[205], roots[299] = path, tree + b"/d", path
    assert [h.root for h in holders(pid, *roots)] == [17, 205, 299]


def test_a_file_that_was_replaced_has_no_users_in_those_of_the_old_one(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/f")
    pid = spawn("f = os.open(a[0], os.O_RDONLY)", path)
    os.rename(write(tree + b"/new"), path)
    assert holders(pid, path) == []
    assert how(holders(pid, tree)) == ["fd"]
    second = spawn("f = os.open(a[0], os.O_RDONLY)", path)
    assert [h.pid for h in holders((pid, second), path)] == [second]


def test_a_deleted_directory_is_held_by_who_stands_in_it(spawn: Spawn, tree: bytes) -> None:
    os.mkdir(tree + b"/d")
    pid = spawn("os.chdir(a[0])", tree + b"/d")
    os.rmdir(tree + b"/d")
    assert holders(pid, tree + b"/d") == [Holder(pid, "cwd", 0, tree + b"/d (deleted)", -1)]
    assert how(holders(pid, tree)) == ["cwd"]


def test_a_file_whose_name_says_deleted_is_itself(spawn: Spawn, tree: bytes) -> None:
    literal, plain = write(tree + b"/f (deleted)"), write(tree + b"/f")
    pid = spawn("f = os.open(a[0], os.O_RDONLY)", literal)
    assert how(holders(pid, literal)) == ["fd"]
    assert holders(pid, plain) == []


def test_hard_links_are_one_file(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/f")
    os.link(path, tree + b"/other")
    pid = spawn("f = os.open(a[0], os.O_RDWR); m = mmap.mmap(f, 4096)", tree + b"/other")
    assert sorted(set(how(holders(pid, path)))) == ["fd", "map"]
    assert {h.path for h in holders(pid, path)} == {tree + b"/other"}


def test_a_name_that_is_gone_still_means_the_inode(spawn: Spawn, tree: bytes) -> None:
    """Opened under a name that was unlinked after a hard link was made: one link is left, and it is the file."""
    old, path = write(tree + b"/old"), tree + b"/f"
    pid = spawn("f = os.open(a[0], os.O_RDONLY)", old)
    os.link(old, path)
    os.unlink(old)
    assert [(h.how, h.path) for h in holders(pid, path)] == [("fd", old + b" (deleted)")]


def test_a_root_may_be_given_through_a_symlink_in_its_directory(spawn: Spawn, tree: bytes) -> None:
    os.mkdir(tree + b"/real")
    path = write(tree + b"/real/f")
    os.symlink(b"real", tree + b"/alias")
    pid = spawn("f = os.open(a[0], os.O_RDONLY)", path)
    assert how(holders(pid, tree + b"/alias/f")) == ["fd"]
    assert how(holders(pid, tree + b"/alias/../alias/./f")) == ["fd"]


def test_names_with_newlines_and_bytes_that_are_no_utf8(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/a\n\xff \\012b")
    pid = spawn("f = os.open(a[0], os.O_RDWR); m = mmap.mmap(f, 4096)", path)
    found = holders(pid, path)
    assert sorted(set(how(found))) == ["fd", "map"]
    assert path in {h.path for h in found}
    assert sorted(set(how(holders(pid, tree)))) == ["fd", "map"]


def test_threads_that_outlive_the_first_one_still_hold(spawn: Spawn, tree: bytes) -> None:
    path = write(tree + b"/f")
    code = (
        "import threading, time, ctypes\n"
        "f = os.open(a[0], os.O_RDONLY)\n"
        "def rest():\n  time.sleep(0.1); print(os.getpid(), flush=True); os.read(0, 1); os._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is x86-64's")
    pid = spawn(code, path)
    assert how(holders(pid, path)) == ["fd"]


def test_a_process_that_may_not_be_read_is_counted() -> None:
    """In a child without privileges: the processes of others are unknown, and it says so."""
    child = os.fork()
    if child == 0:
        verdict = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            fast, slow = (backend.open_handles_ex([b"/usr"]) for backend in (handles, reference))
            own = [h.how for h in fast[0] if h.pid == os.getpid()]
            verdict = 0 if fast == slow and 1 in fast[1] and 1 not in {h.pid for h in fast[0]} and "map" in own else 2
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bad_roots_are_refused() -> None:
    for backend in (handles, reference):
        with pytest.raises(TypeError):
            backend.open_handles(["/text"])
        for bad in (b"", b"relative", b"/nul\0"):
            with pytest.raises(ValueError, match="absolute"):
                backend.open_handles([bad])
        with pytest.raises(OSError, match="nowhere"):
            backend.open_handles([b"/"], proc=b"/nowhere")
        assert backend.open_handles([]) == []


def test_no_descriptors_left_is_an_error_not_an_empty_answer() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for backend, left in ((handles, 1), (reference, 0)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, hard))
            with pytest.raises(OSError, match=r"[Tt]oo many open files"):
                backend.open_handles([b"/usr"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def mounted(tree: bytes) -> Iterator[bytes]:
    point = tree + b"/mnt"
    os.mkdir(point)
    subprocess.run(["mount", "-t", "tmpfs", "pact-test", point], check=True)
    yield point
    subprocess.run(["umount", "-l", point], check=True)


@pytest.mark.root
class TestMounts:
    def test_users_of_the_file_system_elsewhere_count(self, spawn: Spawn, mounted: bytes, tree: bytes) -> None:
        os.mkdir(mounted + b"/sub")
        write(mounted + b"/sub/f")
        os.mkdir(tree + b"/bind")
        subprocess.run(["mount", "--bind", mounted + b"/sub", tree + b"/bind"], check=True)
        try:
            pid = spawn("f = os.open(a[0], os.O_RDWR); m = mmap.mmap(f, 4096)", tree + b"/bind/f")
            found = holders(pid, mounted, mounted + b"/sub/f", mounted + b"/sub", tree + b"/bind")
            for root in range(4):
                assert {h.how for h in found if h.root == root} == {"fd", "map"}
            assert holders(pid, mounted + b"/f") == []
            other = spawn("f = os.open(a[0], os.O_RDONLY)", write(mounted + b"/outside"))
            assert holders(other, tree + b"/bind") == []
            assert how(holders(other, mounted)) == ["fd"]
        finally:
            subprocess.run(["umount", "-l", tree + b"/bind"], check=True)

    def test_a_file_bound_over_another_is_known_by_both_names(self, spawn: Spawn, mounted: bytes, tree: bytes) -> None:
        source, target = write(mounted + b"/source"), write(tree + b"/target")
        subprocess.run(["mount", "--bind", source, target], check=True)
        try:
            pid = spawn("f = os.open(a[0], os.O_RDONLY)", target)
            assert how(holders(pid, source)) == ["fd"]
            assert how(holders(pid, target)) == ["fd"]
        finally:
            subprocess.run(["umount", "-l", target], check=True)

    def test_a_mount_in_a_mount_counts_for_the_outer_one(self, spawn: Spawn, mounted: bytes) -> None:
        os.mkdir(mounted + b"/inner")
        subprocess.run(["mount", "-t", "tmpfs", "pact-inner", mounted + b"/inner"], check=True)
        try:
            pid = spawn("os.chdir(a[0])", mounted + b"/inner")
            assert [h.root for h in holders(pid, mounted, mounted + b"/inner")] == [0, 1]
        finally:
            subprocess.run(["umount", "-l", mounted + b"/inner"], check=True)

    def test_another_mount_namespace_holds_what_is_gone_here(self, spawn: Spawn, mounted: bytes, tree: bytes) -> None:
        """A private copy at another place, as a container has it."""
        path = write(mounted + b"/f")
        os.mkdir(tree + b"/there")
        wrap = (
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            'mount --move "$0" "$1" && shift && exec "$@"',
            os.fsdecode(mounted),
            os.fsdecode(tree + b"/there"),
        )
        pid = spawn("f = os.open(a[0], os.O_RDWR); m = mmap.mmap(f, 4096)", tree + b"/there/f", wrap=wrap)
        assert {h.how for h in holders(pid, mounted)} == {"fd", "map"}
        assert {h.how for h in holders(pid, path)} == {"fd", "map"}
        assert holders(pid, write(mounted + b"/g")) == []

    def test_a_namespace_that_only_has_its_own_files_there_holds_nothing(
        self, spawn: Spawn, mounted: bytes, tree: bytes
    ) -> None:
        os.mkdir(tree + b"/private")
        write(tree + b"/private/f")
        wrap = (
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            'umount -l "$0" && mount -t tmpfs other "$0" && : > "$0/f" && exec "$@"',
            os.fsdecode(mounted),
        )
        write(mounted + b"/f")
        pid = spawn("f = os.open(a[0], os.O_RDONLY)", mounted + b"/f", wrap=wrap)
        assert holders(pid, mounted, mounted + b"/f") == []

    def test_a_mount_point_whose_name_ends_a_line_elsewhere_hides_nobody(
        self, spawn: Spawn, mounted: bytes, tree: bytes
    ) -> None:
        """The kernel escapes a newline and no carriage return: who may mount in a namespace of his own writes both."""
        wrap = (
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            'mkdir "$0" && mount -t tmpfs odd "$0" && exec "$@"',
            os.fsdecode(tree + b"/a\rb\x0bc"),
        )
        pid = spawn("f = os.open(a[0], os.O_RDONLY)", write(mounted + b"/f"), wrap=wrap)
        assert {h.how for h in holders(pid, mounted)} == {"fd"}

    def test_a_user_s_namespace_with_too_many_mounts_costs_little_and_is_not_taken_for_idle(
        self, spawn: Spawn, mounted: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Any user makes a hundred thousand mounts in each of many namespaces, and gives each process a root of its
        own there: all of it was read and kept, for a question who uses a file."""
        monkeypatch.setattr(mounts, "EACH_MOUNTS_MAX", 100)
        path = write(mounted + b"/f")
        many = (
            "import ctypes\nlibc = ctypes.CDLL(None)\n"
            "for _ in range(int(a[1])): assert libc.mount(a[2], a[2], None, 4096, None) == 0\n"
            "f = os.open(a[0], os.O_RDONLY)"
        )
        as_user, as_root = ("unshare", "-Urm"), ("unshare", "-m")
        few = spawn(many, path, b"2", mounted, wrap=as_user)
        roots = spawn(many, path, b"200", mounted, wrap=as_root)
        users = spawn(many, path, b"200", mounted, wrap=as_user)
        for scan in (handles.open_handles_ex, reference.open_handles_ex):
            found, unread = scan([path])
            assert {h.pid for h in found if h.how == "fd"} == {few, roots}, scan
            assert users in unread and not {few, roots} & set(unread), scan
        monkeypatch.setattr(mounts, "OTHERS_MOUNTS_MAX", 5)
        for scan in (handles.open_handles_ex, reference.open_handles_ex):
            assert {few, users} <= set(scan([path])[1]), "of all together"

    def test_a_process_under_another_root_directory_in_another_namespace(
        self, spawn: Spawn, mounted: bytes, tree: bytes
    ) -> None:
        os.mkdir(mounted + b"/d")
        code = "os.unshare(0x20000) if hasattr(os, 'unshare') else __import__('ctypes').CDLL(None).unshare(0x20000)\n"
        pid = spawn(code + "os.chroot(a[0]); os.chdir('/d')", mounted)
        assert {"cwd", "root"} <= {h.how for h in holders(pid, mounted)}


def test_mountinfo_with_escapes_and_optional_fields() -> None:
    text = (
        b"22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
        b"30 22 0:25 /sub\\040dir /a\\040b\\011c\\134d\\012e rw - fuse.sshfs host:/x rw\n"
    )
    first, second = mounts.parse_mountinfo(text)
    assert first == mounts.Mount(22, mounts.device(8, 1), b"/", b"/", b"ext4")
    assert (second.root, second.point, second.remote) == (b"/sub dir", b"/a b\tc\\d\ne", True)
    assert mounts.parse_mountinfo(text, b"/jail")[1].point == b"/jail/a b\tc\\d\ne"


def test_the_mount_that_owns_a_path_is_the_last_of_the_deepest() -> None:
    space = mounts.Space(
        mounts.Mount(number, 1, b"/", point, b"x") for number, point in enumerate((b"/", b"/a/b", b"/a", b"/a/b"))
    )
    assert [space.owner(path).id for path in (b"/", b"/ab", b"/a", b"/a/c", b"/a/b/c", b"/a/bc")] == [0, 0, 2, 2, 3, 2]  # type: ignore[union-attr]


def test_remote_paths_are_never_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stat on a dead NFS hangs for ever; the text of mountinfo has to be enough."""
    proc = tmp_path / "proc"
    (proc / "self" / "ns").mkdir(parents=True)
    os.symlink("mnt:[1]", proc / "self" / "ns" / "mnt")
    (proc / "self" / "mountinfo").write_bytes(
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:25 / /net rw - nfs4 server:/x rw\n"
    )
    touched: list[Any] = []
    for name in ("lstat", "stat", "readlink"):
        real = getattr(os, name)

        def watch(path: Any, *rest: Any, _real: Any = real, **named: Any) -> Any:
            touched.append(path)
            return _real(path, *rest, **named)

        monkeypatch.setattr(os, name, watch)
    targets = mounts.Targets([b"/net", b"/net/home/user/file", b"/net/../net/x"], os.fsencode(proc))
    assert not [path for path in touched if os.fsencode(path).startswith(b"/net")]
    assert [pattern.text for pattern in targets.own.patterns] == [b"/net", b"/net/home/user/file", b"/net/x"]
