"""FileTable on real files, in both backends."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pact._fast import reference

files = pytest.importorskip("pact._fast.files")

OLD_NS = 1_600_000_000 * 10**9
SETTLE_S = 0.03  # more than the 20 ms in which a signature proves nothing


@pytest.fixture(params=["compiled", "reference"])
def table(request: pytest.FixtureRequest) -> Any:
    return (files if request.param == "compiled" else reference).FileTable()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[bytes]:
    yield os.fsencode(tmp_path)


def write(path: bytes, content: bytes) -> bytes:
    with open(path, "wb") as file:
        file.write(content)
    return path


def settle() -> None:
    time.sleep(SETTLE_S)


def trusted(table: Any, full: bool = False) -> None:
    """Bring the table to a state where it reports nothing and trusts its signatures."""
    settle()
    table.scan(full=full)
    assert table.scan(full=full) == []


def test_the_first_scan_reports_everything_and_the_second_nothing(table: Any, tree: bytes) -> None:
    for key in (7, 3, 5):
        table.put(key, write(tree + b"/%d" % key, b"x" * key))
    assert table.scan() == [3, 5, 7]
    assert table.scan() == []
    assert table.scan(full=True) == []


def test_keys_are_reported_in_the_order_given(table: Any, tree: bytes) -> None:
    for key in range(5):
        table.put(key, tree + b"/%d" % key)
    assert table.scan([4, 0, 2]) == [4, 0, 2]
    assert table.scan(array("q", [3, 4, 1])) == [3, 1]
    assert table.scan(iter([1, 2])) == []
    with pytest.raises(KeyError):
        table.scan([0, 99])
    with pytest.raises(ValueError, match="key"):
        table.scan([-1])
    with pytest.raises(TypeError):
        table.scan(["a"])
    with pytest.raises(ValueError, match="int64"):
        table.scan(b"\0" * 8)


@pytest.mark.parametrize("full", [False, True])
def test_every_kind_of_change_is_reported_once(table: Any, tree: bytes, full: bool) -> None:
    names = [b"content", b"mode", b"replaced", b"deleted", b"appears", b"link", b"directory"]
    paths = {name: tree + b"/" + name for name in names}
    for name in names[:4]:
        write(paths[name], b"before")
    os.symlink(b"target", paths[b"link"])
    os.mkdir(paths[b"directory"])
    for key, name in enumerate(names):
        table.put(key, paths[name])
    trusted(table, full)
    write(paths[b"content"], b"after!")
    os.chmod(paths[b"mode"], 0o600)
    os.rename(write(tree + b"/new", b"before"), paths[b"replaced"])
    os.unlink(paths[b"deleted"])
    write(paths[b"appears"], b"")
    os.unlink(paths[b"link"])
    os.symlink(b"elsewhere", paths[b"link"])
    os.chmod(paths[b"directory"], 0o700)
    assert table.scan(full=full) == list(range(7))
    assert table.scan(full=full) == []
    settle()
    assert table.scan(full=full) == []


def test_a_rewrite_of_equal_size_with_its_mtime_put_back_is_seen(table: Any, tree: bytes) -> None:
    path = write(tree + b"/f", b"aaaa")
    table.put(1, path)
    trusted(table)
    before = os.stat(path)
    write(path, b"bbbb")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert table.scan() == [1]


def test_a_write_within_the_tick_of_the_scan_is_not_missed(table: Any, tree: bytes) -> None:
    """Where the kernel stamps coarsely, size and times are equal then; only reading again can tell."""
    path = tree + b"/f"
    table.put(1, path)
    missed = 0
    for turn in range(200):
        write(path, b"%08d" % turn)
        table.scan()
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, b"%08d" % (turn + 1_000), 0)
        os.close(fd)
        missed += table.scan() != [1]
    assert missed == 0


def test_a_file_that_was_just_written_is_reported_once_only(table: Any, tree: bytes) -> None:
    table.put(1, write(tree + b"/f", b"x"))
    assert table.scan() == [1]
    assert [table.scan() for _ in range(5)] == [[]] * 5
    settle()
    assert table.scan() == []


def test_a_fifo_never_blocks_and_is_never_opened(table: Any, tree: bytes) -> None:
    path = tree + b"/fifo"
    os.mkfifo(path)
    table.put(1, path)
    assert table.scan(full=True) == [1]
    assert table.scan(full=True) == []
    with pytest.raises(OSError) as caught:  # nobody has it open for reading
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO
    os.unlink(path)
    write(path, b"now a file")
    assert table.scan(full=True) == [1]
    os.unlink(path)
    os.mkfifo(path)
    assert table.scan(full=True) == [1]
    assert table.scan(full=True) == []


def test_sockets_devices_and_directories_are_judged_by_their_signature(table: Any, tree: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fsdecode(tree + b"/socket"))
        os.mkdir(tree + b"/d")
        for key, path in enumerate((tree + b"/socket", b"/dev/null", b"/dev/zero", tree + b"/d")):
            table.put(key, path)
        assert table.scan(full=True) == [0, 1, 2, 3]
        assert table.scan(full=True) == []


def test_a_link_is_never_followed(table: Any, tree: bytes) -> None:
    write(tree + b"/target", b"x")
    os.symlink(tree + b"/target", tree + b"/link")
    table.put(1, tree + b"/link")
    trusted(table, full=True)
    write(tree + b"/target", b"changed")
    assert table.scan(full=True) == []
    os.unlink(tree + b"/link")
    write(tree + b"/link", b"x")
    assert table.scan(full=True) == [1]
    os.unlink(tree + b"/link")
    os.symlink(tree + b"/target", tree + b"/link")
    assert table.scan(full=True) == [1]


def test_names_with_newlines_and_bytes_that_are_no_utf8(table: Any, tree: bytes) -> None:
    names = [b"a\nb", b"\xff\xfe", b" ", b"%", b"\x01"]
    for key, name in enumerate(names):
        table.put(key, write(tree + b"/" + name, b"x"))
    trusted(table)
    write(tree + b"/" + names[1], b"y")
    assert table.scan() == [1]
    other = type(table)()
    for key, name in enumerate(names):
        other.put(key, tree + b"/" + name)
    assert other.restore(table.dump()) == 5


def test_errors_are_states_like_others(table: Any, tree: bytes) -> None:
    table.put(1, tree + b"/none/f")
    table.put(2, write(tree + b"/plain", b"") + b"/f")
    assert table.scan() == [1, 2]
    assert table.scan() == []
    os.unlink(tree + b"/plain")  # ENOTDIR becomes ENOENT
    assert table.scan(full=True) == [2]


def test_large_files_are_judged_by_their_signature(tree: bytes) -> None:
    for backend in (files, reference):
        table = backend.FileTable(content_max=1_000)
        table.put(1, write(tree + b"/large", b"x" * 1_001))
        table.put(2, write(tree + b"/fits", b"x" * 1_000))
        os.utime(tree + b"/large", ns=(OLD_NS, OLD_NS))
        trusted(table, full=True)
        with open(tree + b"/large", "r+b") as file:
            file.write(b"y")
        assert table.scan(full=True) == [1]


def test_a_sparse_file_of_ten_gib_costs_nothing(table: Any, tree: bytes) -> None:
    path = write(tree + b"/huge", b"")
    os.truncate(path, 10 << 30)
    table.put(1, path)
    start = time.monotonic()
    assert table.scan(full=True) == [1]
    assert time.monotonic() - start < 1


def test_volatile_paths_are_read_every_time(table: Any) -> None:
    table.put(1, b"/proc/sys/vm/swappiness", volatile=True)
    table.put(2, b"/proc/sys/kernel/hostname", True)
    table.put(3, b"/proc/uptime", volatile=True)
    assert table.scan() == [1, 2, 3]
    time.sleep(0.02)
    assert table.scan() == [3]


def test_a_volatile_path_is_judged_by_content_alone(table: Any, tree: bytes) -> None:
    path = write(tree + b"/f", b"same")
    table.put(1, path, volatile=True)
    table.scan()
    os.rename(write(tree + b"/g", b"same"), path)
    os.chmod(path, 0o600)
    assert table.scan() == []
    write(path, b"else")
    assert table.scan() == [1]
    os.unlink(path)
    assert table.scan() == [1]
    assert table.scan() == []


@pytest.mark.root
def test_a_changed_sysctl_is_seen(table: Any) -> None:
    path = b"/proc/sys/kernel/panic_on_oops"
    with open(path, "rb") as file:
        before = file.read()
    table.put(1, path, volatile=True)
    table.scan()
    try:
        write(path, b"0" if before.strip() == b"1" else b"1")
        assert table.scan() == [1]
    finally:
        write(path, before)
    assert table.scan() == [1]
    assert table.scan() == []


def test_reading_leaves_atime_alone(table: Any, tree: bytes) -> None:
    path = write(tree + b"/f", b"x")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    table.put(1, path)
    table.scan(full=True)
    assert os.stat(path).st_atime_ns == OLD_NS


def test_put_again_forgets_the_baseline_and_remove_forgets_the_path(table: Any, tree: bytes) -> None:
    table.put(1, write(tree + b"/a", b"a"))
    table.put(2, write(tree + b"/b", b"b"))
    table.scan()
    table.put(1, tree + b"/a")
    assert table.scan() == [1]
    assert table.remove(1) and not table.remove(1)
    assert 1 not in table and 2 in table and len(table) == 1
    assert table.scan() == []
    assert -1 not in table and 1 << 80 not in table


def test_bad_arguments_are_refused(table: Any) -> None:
    for path in (b"", b"relative", b"/nul\0", b"/" + b"x" * 4_095):
        with pytest.raises(ValueError, match="path"):
            table.put(1, path)
    with pytest.raises(TypeError):
        table.put(1, "/text")
    for key in (-1, 1 << 26, 1 << 70):
        with pytest.raises(ValueError, match="key"):
            table.put(key, b"/x")
        with pytest.raises(ValueError, match="key"):
            table.remove(key)
    with pytest.raises(ValueError, match="64"):
        type(table)(b"short")
    with pytest.raises(TypeError):
        type(table)("text")
    with pytest.raises(ValueError, match="content_max"):
        type(table)(content_max=-1)
    assert len(table) == 0


def test_a_dump_carries_baselines_to_the_next_process(table: Any, tree: bytes) -> None:
    for key in range(4):
        table.put(key, write(tree + b"/%d" % key, b"x"))
    table.put(4, b"/proc/sys/vm/swappiness", volatile=True)
    trusted(table, full=True)
    blob = table.dump()
    write(tree + b"/2", b"y")
    other = type(table)()
    for key, name in ((10, b"/0"), (12, b"/2"), (13, b"/3"), (15, b"/new")):
        other.put(key, tree + name)
    other.put(14, b"/proc/sys/vm/swappiness", volatile=True)
    other.put(16, tree + b"/1", volatile=True)
    assert other.restore(blob) == 4
    assert other.scan(full=True) == [12, 15, 16]
    assert other.scan(full=True) == []


def test_a_restored_table_keeps_what_does_not_depend_on_the_secret(table: Any, tree: bytes) -> None:
    table.put(1, write(tree + b"/a", b"a"))
    trusted(table)
    other = type(table)()
    other.put(2, write(tree + b"/b", b"b"))
    other.put(3, tree + b"/none")
    trusted(other, full=True)
    assert other.restore(table.dump()) == 0
    assert other.scan(full=True) == []


def test_a_damaged_or_foreign_dump_changes_nothing(table: Any, tree: bytes) -> None:
    table.put(1, write(tree + b"/a", b"a"))
    trusted(table)
    blob = table.dump()
    draw = Random(1)
    broken = [b"", blob[:10], blob[:-1], blob + b"x", blob[:100] + blob[101:], b"x" + blob]
    for _ in range(50):
        at = draw.randrange(len(blob))
        broken.append(blob[:at] + bytes([blob[at] ^ 1 << draw.randrange(8)]) + blob[at + 1 :])
    foreign = (reference if isinstance(table, files.FileTable) else files).FileTable()
    broken.append(foreign.dump())
    for damaged in broken:
        with pytest.raises(ValueError, match="dump"):
            table.restore(damaged)
    with pytest.raises(TypeError):
        table.restore("text")
    assert table.scan(full=True) == []


def test_both_backends_report_the_same_through_a_random_life(tree: bytes) -> None:
    draw = Random(11)
    pair = files.FileTable(), reference.FileTable()
    paths = [tree + b"/%d" % i for i in range(30)]
    for table in pair:
        for key, path in enumerate(paths):
            table.put(key, path, key % 7 == 0)
    for _ in range(60):
        for path in draw.sample(paths, 5):
            what = draw.randrange(6)
            if what == 0 and os.path.lexists(path):
                os.unlink(path)
            elif what == 1 and not os.path.lexists(path):
                os.symlink(b"%d" % draw.randrange(3), path)
            elif what == 2 and os.path.isfile(path) and not os.path.islink(path):
                os.chmod(path, draw.choice((0o600, 0o644)))
            elif not os.path.islink(path):
                write(path, b"%d" % draw.randrange(3) * draw.choice((1, 63, 64, 65, 70_000)))
        full = draw.random() < 0.4
        settle()
        results = [table.scan(full=full) for table in pair]
        assert results[0] == results[1]


def test_a_fingerprint_depends_on_every_byte_and_on_the_length(tree: bytes) -> None:
    """Judged by content alone, as a volatile path is."""
    table = files.FileTable()
    path = tree + b"/f"
    table.put(1, path, volatile=True)
    for size in (0, 1, 15, 16, 63, 64, 65, 127, 128, 1_000, 65_535, 65_536, 65_537, 131_072, 200_001):
        content = bytearray(size)
        write(path, content)
        table.scan()
        assert table.scan() == []
        for at in {0, size // 2, size - 1} if size else ():
            content[at] ^= 0x80
            write(path, content)
            assert table.scan() == [1], (size, at)
        write(path, content + b"\0")
        assert table.scan() == [1], size


def test_scans_let_other_threads_run(tree: bytes) -> None:
    table = files.FileTable(content_max=1 << 30)
    table.put(1, write(tree + b"/f", bytes(64 << 20)))
    done: list[list[int]] = []
    thread = threading.Thread(target=lambda: done.append(table.scan(full=True)))
    thread.start()
    refused = False
    while thread.is_alive():
        try:
            table.remove(99)
        except RuntimeError:
            refused = True
    thread.join()
    assert done == [[1]] and refused


def test_descriptors_run_out_without_a_lie(table: Any, tree: bytes) -> None:
    import resource

    for key in range(3):
        table.put(key, write(tree + b"/%d" % key, b"x"))
    trusted(table, full=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        assert table.scan(full=True) == [0, 1, 2]
        assert table.scan(full=True) == [0, 1, 2]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert table.scan(full=True) == [0, 1, 2]
    assert table.scan(full=True) == []


MEMORY = """
from pact._fast import files

def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4

table = files.FileTable()
before = resident_kib()
for key in range(40_000):
    table.put(key, b"/nowhere/%08d" % key)
table.scan()
print((resident_kib() - before) * 1024 / 40_000)
"""


def test_memory_per_path_is_bounded() -> None:
    """In a process of its own: what others have freed there, or not, is nobody's business here."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
