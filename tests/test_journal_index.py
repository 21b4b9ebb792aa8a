"""SQLite's mapped index on a disk that is full: an error, never a signal. On a file system whose blocks are smaller than
a page, where SQLite leaves holes in it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_kit import rows_after, written_and_killed

from pact.errors import JournalError
from pact.journal.rootlog_sqlite import SqliteLog
from pact.journal.sqlite import SqliteJournal, load_state
from pact.journal.walindex import REGION_BYTES, WalIndex

BLOCK = 1024
IMAGE_BYTES = 48 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with blocks of 1 KiB."""
    image, point = tmp_path / "image", tmp_path / "small"
    point.mkdir()
    with open(image, "wb") as f:
        f.truncate(IMAGE_BYTES)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 not installed")
    made = subprocess.run(["mkfs.ext4", "-q", "-b", str(BLOCK), "-m", "0", "-O", "^has_journal", image], check=False)
    if made.returncode or subprocess.run(["mount", "-o", "loop", image, point], check=False).returncode:
        pytest.skip("no loop device here")
    yield point
    subprocess.run(["umount", point], check=True)


def fill(point: Path, left: int) -> Path:
    """Take all blocks but ``left``."""
    filler = point / "filler"
    with open(filler, "wb", buffering=0) as f:
        for size in (1 << 20, BLOCK):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError:
                pass
        os.ftruncate(f.fileno(), max(0, os.fstat(f.fileno()).st_blocks * 512 - left * BLOCK))
    return filler


def ends(script: str, path: Path) -> tuple[int, str]:
    """How a process of its own ends that carries the script out."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode, done.stdout + done.stderr


OPENING = {
    "journal": """
import os, sys
from pact.errors import PactError
from pact.journal.sqlite import SqliteJournal, load_state
try:
    print("records", load_state(SqliteJournal(sys.argv[1])).seq)
except PactError as exc:
    print("refused", exc.exit_code, exc.message)
os._exit(0)
""",
    "reader": """
import sys
from pact.errors import PactError
from pact.journal.sqlite import SqliteJournal
try:
    journal = SqliteJournal(sys.argv[1], read_only=True, guard=True)
    print("records", sum(1 for _ in journal.records()) - 1)
except PactError as exc:
    print("refused", exc.exit_code, exc.message)
""",
    "root": """
import os, sys
from pact.errors import PactError
from pact.journal.rootlog_sqlite import SqliteLog
try:
    log = SqliteLog(sys.argv[1], "default")
    print("records", len(list(log.read(0))) - 1)
except PactError as exc:
    print("refused", exc.exit_code, exc.message)
os._exit(0)
""",
}


def left_by_a_kill(path: Path, what: str) -> None:
    if what != "root":
        written_and_killed(str(path), [3000] * 300)
        return
    child = os.fork()
    if child == 0:
        try:
            log = SqliteLog(str(path), "default")
            fence = log.campaign("a") or 0
            for n in range(300):
                log.append(fence, n, 1, b"x" * 3000)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.invariant("F62")
@pytest.mark.parametrize("what", OPENING)
def test_a_start_on_a_disk_with_too_little_room_is_refused_and_not_killed(small: Path, what: str) -> None:
    path = small / ("root.db" if what == "root" else "journal.db")
    left_by_a_kill(path, what)
    log = Path(f"{path}-wal").read_bytes()
    said: set[str] = set()
    for left in (0, 1, 2, 6, 10, 12, 14, 20, 30, 33, 40, 100):
        Path(f"{path}-shm").unlink(missing_ok=True)
        Path(f"{path}-wal").write_bytes(log)
        filler = fill(small, left)
        code, out = ends(OPENING[what], path)
        filler.unlink()
        assert code == 0, f"{left} blocks left: {code}: {out}"
        assert out.startswith("records 299") or (
            out.startswith("refused 5") and ("No space" in out or "disk" in out)
        ), (left, out)
        said.add(out.split()[0])
    assert said == {"records", "refused"}


WRITING = """
import os, sys
sys.path.insert(0, sys.argv[1].rpartition(":")[2])
from journal_kit import rows_after
from pact.errors import PactError
from pact.journal.sqlite import SqliteJournal
try:
    journal = SqliteJournal(sys.argv[1].rpartition(":")[0])
    for _ in range(900):
        journal.append(rows_after(journal, 1, 3000), {})
    print("written", journal.seq)
except PactError as exc:
    print("refused", exc.message)
os._exit(0)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.invariant("F62", "F3")
def test_an_index_that_fills_on_a_full_disk_ends_nobody(small: Path) -> None:
    """The log is long already and is written over from its beginning: it takes no room, and the index would."""
    path = small / "journal.db"
    written_and_killed(str(path), [3000] * 1400)
    kept = {p: p.read_bytes() for p in (path, Path(f"{path}-wal"), small / "journal.head")}
    here = str(Path(__file__).parent)
    for left in (12, 16, 20, 24, 28, 32, 34, 48):
        Path(f"{path}-shm").unlink(missing_ok=True)
        for file, raw in kept.items():
            file.write_bytes(raw)
        filler = fill(small, left)
        code, out = ends(WRITING, Path(f"{path}:{here}"))
        filler.unlink()
        assert code == 0 and out.split()[0] in ("refused", "written"), f"{left} blocks left: {code}: {out}"
        journal = SqliteJournal(str(path))
        seq = load_state(journal).seq
        journal.close()
        assert seq >= 1399


@pytest.mark.invariant("F62")
def test_the_index_has_all_its_blocks_whoever_else_opens_it(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    for count in (3, 4):
        other = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM record').fetchone())"
        assert ends(other, Path(path)) == (0, f"{count}\n")
        index = os.stat(path + "-shm")
        assert index.st_size >= REGION_BYTES and index.st_blocks * 512 >= index.st_size
        journal.append(rows_after(journal, 1), {})
    journal.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.db", "journal.head"]


@pytest.mark.invariant("F62")
def test_what_a_killed_process_left_in_the_index_is_not_believed(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    written_and_killed(path, [500] * 50)
    index = Path(path + "-shm")
    index.write_bytes(os.urandom(len(index.read_bytes())))
    journal = SqliteJournal(path)
    assert load_state(journal).seq == 49
    journal.close()


@pytest.mark.invariant("F62")
def test_an_index_is_not_emptied_under_who_uses_it(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 20), {})
    before = Path(path + "-shm").read_bytes()
    guard = "import sys\nfrom pact.journal.walindex import WalIndex\nWalIndex(sys.argv[1]).reserve(1 << 20)\n"
    assert ends(guard, Path(path)) == (0, "")
    assert Path(path + "-shm").read_bytes()[: len(before)] == before
    journal.append(rows_after(journal, 20), {})
    twice = WalIndex(path)  # in this process, too: closing a second one would take SQLite's locks off
    assert twice._fd == -1
    twice.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM record").fetchone() == (40,)
    db.close()
    journal.close()


@pytest.mark.invariant("F62")
def test_an_index_that_somebody_keeps_locked_is_an_error_and_no_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("pact.journal.walindex.LOCK_WAIT_S", 0.1)
    path = str(tmp_path / "journal.db")
    with open(path + "-shm", "w+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 128)
        with pytest.raises(JournalError, match="journal's index"):
            SqliteJournal(path)
