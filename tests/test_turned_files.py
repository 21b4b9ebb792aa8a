"""Who owns a directory on the way gives what is root's to nobody: by a swap while pact looks, or right before it acts.

Where he wins the race is where these tests begin: what was seen is gone, and something else has its name.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pact._fast import FileTable, open_handles_ex, reference, syscalls
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.resources import KINDS
from pact.resources.kinds.file import leased
from pact.resources.support import dress
from pact.resources.support.replace import COPY_MAX, restore_file
from pact.resources.support.way import turners

RACE_S = float(os.environ.get("PACT_RACE_S", "3"))
ANN, BOB = 1234, 1235
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, as the kernel keeps it
FILE = KINDS["file"]
pytestmark = [
    pytest.mark.root,
    pytest.mark.invariant("R13"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of ann's, below root's."""
    with TemporaryDirectory(dir="/var/tmp", prefix="turned-") as top:
        os.chmod(top, 0o755)
        home = Path(top, "ann")
        home.mkdir()
        os.chown(home, ANN, ANN)
        yield home


def made(path: Path, text: str | None, uid: int, mode: int) -> Path:
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


def as_seen(path: Path, **target: Any) -> Step:
    """What is there is seen now; ``target``: what of it is declared otherwise."""
    actual = FILE.observe(str(path))
    assert isinstance(actual, dict)
    return Step(f"file:{path}", {**actual, **target}, actual)


def of(path: Path) -> tuple[int, str]:
    st = path.lstat()
    return st.st_uid, f"{stat.S_IMODE(st.st_mode):04o}"


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("owner", [0, BOB])
def test_what_has_the_name_now_is_not_given_away(home: Path, kind: str, owner: int) -> None:
    """Root's, or somebody else's, that lies in ann's directory."""
    path = made(home / "conf", "mine" if kind == "file" else None, 0 if kind == "directory" else ANN, 0o600)
    step = as_seen(path, owner=str(ANN), mode="0644" if kind == "file" else "0755")
    secret = made(
        home / "secret", "the password" if kind == "file" else None, owner, 0o600 if kind == "file" else 0o700
    )
    path.rename(home / "aside")
    secret.rename(path)
    before = of(path)
    with pytest.raises(RestoreError, match="left as it is"):
        restore_file(os.fsencode(path), step, {}.get)
    assert of(path) == before
    if kind == "file":
        assert path.read_text() == "the password"
    assert sorted(p.name for p in home.iterdir()) == ["aside", "conf"], "nothing else is left"


def test_a_link_that_is_none_any_more_is_not_given_away(home: Path) -> None:
    path = home / "l"
    path.symlink_to("/nowhere")
    step = as_seen(path, owner=str(ANN))
    path.unlink()
    made(path, "the password", 0, 0o600)
    with pytest.raises(RestoreError):
        restore_file(os.fsencode(path), step, {}.get)
    assert of(path) == (0, "0600") and path.read_text() == "the password"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_her_own_is_dressed_in_place(home: Path, kind: str) -> None:
    path = made(home / "conf", "mine" if kind == "file" else None, ANN, 0o600 if kind == "file" else 0o700)
    inode = path.stat().st_ino
    restore_file(os.fsencode(path), as_seen(path, mode="0755"), {}.get)
    assert of(path) == (ANN, "0755") and path.stat().st_ino == inode


@pytest.mark.parametrize("how", ["written", "open", "mapped"])
def test_nobody_s_own_content_becomes_root_s_or_set_uid(a_home: Path, how: str) -> None:
    """Ann's file has what is declared; between the look and the act she writes into it, or she has it open or mapped
    and would write later (a write clears the set-uid bit; one through a mapping does not)."""
    path = made(a_home / "tool", "as declared", ANN, 0o755)
    step = as_seen(path, owner="root", group="root", mode="4755")
    with open(path, "r+b") as hers:
        mapping = mmap.mmap(hers.fileno(), 0)
        if how != "mapped":
            mapping.close()
        if how != "open":
            hers.close()
        if how == "written":
            path.write_text("as she like")
        with pytest.raises(RestoreError, match="left as it is"):
            restore_file(os.fsencode(path), step, {}.get)
        assert of(path) == (ANN, "0755")
        if how == "mapped":
            mapping.close()
    if how != "written":
        restore_file(os.fsencode(path), step, {}.get)
        assert of(path) == (0, "4755") and path.read_text() == "as declared"


@pytest.mark.parametrize("a_home", ["ext4", "tmpfs"], indirect=True)  # in place; on an overlay it is a new file
def test_what_is_written_while_it_is_asked_about_is_not_made_set_uid_again(
    a_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write takes the set-uid bit away, and cannot while pact has done so."""
    path = made(a_home / "tool", "as declared", ANN, 0o4755)
    step = as_seen(path, owner="root", group="root")
    with ExitStack() as stack:
        asked, before = dress.being_written, [True]

        def being_written(fd: int) -> bool:
            if not before:  # her rights are taken away by now
                stack.enter_context(open(path, "r+b", buffering=0)).write(b"as he likes")
            before.clear()
            return asked(fd)

        monkeypatch.setattr(dress, "being_written", being_written)
        with pytest.raises(RestoreError, match="not set-uid or set-gid any more"):
            restore_file(os.fsencode(path), step, {}.get)
    assert of(path) == (ANN, "0755") and path.read_text() == "as he likes"


def test_what_is_open_for_writing_is_refused_before_anything_is_changed(
    a_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between would leave it root's, with a writer whom the next run does not ask about; and a change of the
    owner takes capabilities away."""
    path = made(a_home / "tool", "as declared", ANN, 0o4755)
    os.setxattr(path, "security.capability", NET_RAW)

    def killed(*_: object) -> None:
        pytest.fail("the owner or the rights were changed before anybody asked")

    monkeypatch.setattr(os, "fchown", killed)
    monkeypatch.setattr(os, "fchmod", killed)
    with open(path, "r+b"), pytest.raises(RestoreError, match="open for writing"):
        restore_file(os.fsencode(path), as_seen(path, owner="root", group="root"), {}.get)
    assert of(path) == (ANN, "4755") and os.getxattr(path, "security.capability") == NET_RAW


@pytest.mark.parametrize("a_home", ["overlay"], indirect=True)
def test_who_has_it_mapped_where_leases_do_not_tell_writes_into_the_old_one(a_home: Path) -> None:
    """The kernel grants a lease, since what she has mapped is the file below; what becomes root's is another file."""
    path = made(a_home / "tool", "as declared", ANN, 0o755)
    step = as_seen(path, owner="root", group="root", mode="4755")
    fd = os.open(path, os.O_RDWR)
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    hers = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert not syscalls.leases_tell(fd)
    os.close(fd)
    restore_file(os.fsencode(path), step, {}.get)
    ctypes.memmove(hers, b"as she like", 11)
    assert of(path) == (0, "4755") and path.read_text() == "as declared"
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.munmap(hers, 4096)
    assert [p.name for p in a_home.iterdir()] == ["tool"]


@pytest.mark.parametrize("a_home", ["overlay"], indirect=True)
def test_what_is_too_large_to_be_a_new_file_says_why(a_home: Path) -> None:
    path = made(a_home / "tool", "as declared", ANN, 0o755)
    os.truncate(path, COPY_MAX + 1)
    step = Step(f"file:{path}", {"type": "file", "owner": "root", "mode": "4755"}, {"type": "file", "sha256": "0"})
    with pytest.raises(RestoreError, match="does not tell who has it mapped, and it is another or too large"):
        restore_file(os.fsencode(path), step, {}.get)
    assert of(path) == (ANN, "0755")


@pytest.mark.parametrize("a_home", ["ext4", "tmpfs"], indirect=True)  # in place; on an overlay it is a new file
def test_what_cannot_be_read_again_stays_hers(a_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(a_home / "tool", "as declared", ANN, 0o755)
    step = as_seen(path, owner="root", group="root")

    def broken(fd: int, actual: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(dress, "_holds", broken)
    with pytest.raises(RestoreError, match="cannot be read again: input/output error; it was left as it is"):
        restore_file(os.fsencode(path), step, {}.get)
    assert of(path) == (ANN, "0755")


def test_her_log_is_dressed_although_she_writes_it(home: Path) -> None:
    path = made(home / "log", "line", ANN, 0o600)
    with open(path, "ab"):
        restore_file(os.fsencode(path), as_seen(path, mode="0644"), {}.get)
    assert of(path) == (ANN, "0644")


def test_what_is_root_s_in_her_directory_gets_a_new_file_with_its_content(home: Path) -> None:
    path = made(home / "conf", "known", 0, 0o600)
    inode = path.stat().st_ino
    restore_file(os.fsencode(path), as_seen(path, owner=str(ANN), mode="0644"), {}.get)
    assert of(path) == (ANN, "0644") and path.read_text() == "known" and path.stat().st_ino != inode


def test_a_link_gets_its_owner(home: Path) -> None:
    path = home / "l"
    path.symlink_to("/nowhere")
    restore_file(os.fsencode(path), as_seen(path, owner=str(ANN), group=str(BOB)), {}.get)
    st = path.lstat()
    assert (st.st_uid, st.st_gid, os.readlink(path)) == (ANN, BOB, "/nowhere")


@pytest.mark.parametrize(
    ("mode", "uid", "leaf_uid", "who"),
    [
        (0o755, 0, 0, set()),
        (0o755, ANN, 0, {ANN}),
        (0o775, 0, 0, set()),
        (0o777, 0, 0, {-1}),
        (0o1777, 0, 0, set()),
        (0o1777, 0, ANN, {ANN}),
        (0o1777, ANN, 0, {ANN}),
        (0o775, ANN, 0, {ANN, -1}),
    ],
)
def test_who_can_turn_a_name(home: Path, mode: int, uid: int, leaf_uid: int, who: set[int]) -> None:
    place = home.parent / "place"
    place.mkdir()
    os.chown(place, uid, uid)
    place.chmod(mode)
    for path, more in ((place, set()), (home / "below", {ANN})):
        if path != place:
            path.mkdir()
            os.chown(path, uid, uid)
            path.chmod(mode)
        fd = os.open(path, os.O_PATH)
        assert turners(fd, leaf_uid) == who | more
        os.close(fd)


@pytest.fixture(params=["ext4", "tmpfs", "overlay"])
def a_home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same, on a file system of this type."""
    with TemporaryDirectory(dir="/dev/shm" if request.param == "tmpfs" else "/var/tmp", prefix="turned-") as top:
        os.chmod(top, 0o755)
        place = Path(top, "place")
        place.mkdir()
        mounted = []
        try:
            if request.param == "overlay":
                for name in ("lower", "upper", "work"):
                    Path(top, name).mkdir()
                options = ",".join(f"{n}dir={top}/{n}" for n in ("lower", "upper", "work"))
                command = ["mount", "-t", "overlay", "-o", options, "overlay", str(place)]
            elif request.param == "ext4":
                if shutil.which("mkfs.ext4") is None:
                    pytest.skip("mkfs.ext4 not installed")
                image = Path(top, "image")
                image.touch()
                os.truncate(image, 16 << 20)
                subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
                command = ["mount", "-o", "loop", str(image), str(place)]
            else:
                command = ["mount", "-t", "tmpfs", "turned", str(place)]
            if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
                pytest.skip(f"no {request.param} can be mounted here")
            mounted.append(place)
            os.chmod(place, 0o755)
            home = place / "ann"
            home.mkdir()
            os.chown(home, ANN, ANN)
            yield home
        finally:
            for path in mounted:
                subprocess.run(["umount", str(path)], check=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_race_of_some_seconds_gives_nothing_away(a_home: Path, kind: str) -> None:
    """Another thread exchanges the two names all the time, as ann could. PACT_RACE_S: for how long."""
    home = a_home
    path, secret = home / "conf", made(home / "secret", "the password", 0, 0o600)
    if kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "directory":
        os.remove(secret)
        made(secret, None, 0, 0o700)
        made(path, None, 0, 0o700)
    else:
        made(path, "mine", ANN, 0o600)
    fd = os.open(home, os.O_RDONLY)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            syscalls.renameat2(fd, b"conf", fd, b"secret", syscalls.RENAME_EXCHANGE)

    inode, first = secret.stat().st_ino, FILE.observe(str(path))
    assert isinstance(first, dict)
    target = {**first, "owner": str(ANN), "group": str(ANN)} | ({} if kind == "link" else {"mode": "0755"})
    thread = threading.Thread(target=swap)
    thread.start()
    tries, ends = 0, time.monotonic() + RACE_S
    try:
        while time.monotonic() < ends:
            tries += 1
            seen = FILE.observe(str(path))
            if not isinstance(seen, dict) or any(seen.get(k) != first.get(k) for k in ("type", "sha256", "target")):
                continue  # it is drift of another kind, and is kept before it goes
            try:
                restore_file(os.fsencode(path), Step(f"file:{path}", target, seen), {}.get)
            except (RestoreError, OSError):
                pass
            for name in ("conf", "secret"):
                st = os.lstat(home / name) if os.path.lexists(home / name) else None
                if st is not None and st.st_ino == inode:
                    assert st.st_uid == 0, f"given away in try {tries}"
    finally:
        over.set()
        thread.join()
        os.close(fd)
    assert tries > 50


def test_in_a_sticky_directory_the_owner_says_not_who_put_a_file_there() -> None:
    """Whoever may write where a file lies moves it, whose ever it is."""
    with TemporaryDirectory(dir="/var/tmp", prefix="turned-") as top:
        os.chmod(top, 0o1777)
        path = made(Path(top, "x"), "mine", BOB, 0o600)
        step = as_seen(path, owner=str(BOB), mode="0644")
        path.unlink()
        made(path, "alice's secret", ANN, 0o600)
        with pytest.raises(RestoreError, match="left as it is"):
            restore_file(os.fsencode(path), step, {}.get)
        assert of(path) == (ANN, "0600") and path.read_text() == "alice's secret"


@pytest.mark.parametrize(("mode", "gid"), [(0o2775, 7777), (0o775, 0)])
def test_rights_are_taken_away_in_place_also_where_a_group_may_write(mode: int, gid: int) -> None:
    """That gives nobody anything, and a log that is written all the time cannot be copied."""
    with TemporaryDirectory(dir="/var/tmp", prefix="turned-") as top:
        os.chown(top, 0, gid)
        os.chmod(top, mode)
        for name, text in (("log", "line\n"), ("sub", None)):
            path = made(Path(top, name), text, 0, 0o666 if text else 0o777)
            inode = path.stat().st_ino
            restore_file(os.fsencode(path), as_seen(path, mode="0640" if text else "0750"), {}.get)
            assert of(path) == (0, "0640" if text else "0750") and path.stat().st_ino == inode


def test_what_nobody_has_read_is_not_removed(home: Path) -> None:
    """An application made it empty, and somebody has written into it since."""
    path = made(home / "log", "lines of a daemon", ANN, 0o640)
    step = Step(f"file:{path}", None, {"type": "file", "mode": "0640"})
    with pytest.raises(RestoreError):
        restore_file(os.fsencode(path), step, {}.get)
    assert path.read_text() == "lines of a daemon"
    path.write_text("")
    restore_file(os.fsencode(path), step, {}.get)
    assert not path.exists()


class Waiting(threading.Thread):
    """Opens a FIFO for writing: done as soon as somebody opens it to read."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.opened = path, threading.Event()
        self.start()
        time.sleep(0.1)

    def run(self) -> None:
        with open(self.path, "wb"):
            self.opened.set()

    def end(self) -> None:
        os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
        self.join(5)


@pytest.mark.invariant("S2")
def test_what_is_no_file_any_more_is_not_opened_to_ask_who_uses_it(home: Path) -> None:
    """A FIFO would wake whoever waits at it, a watchdog would act."""
    os.mkfifo(home / "conf")
    waiting = Waiting(home / "conf")
    assert leased(bytes(home / "conf")) is None
    seen = FILE.observe(str(home / "conf"))
    assert isinstance(seen, dict) and seen["type"] == "fifo"
    assert not waiting.opened.is_set()
    waiting.end()


@pytest.mark.invariant("S2")
def test_a_link_on_the_way_leads_to_nothing_that_acts_when_it_is_opened(home: Path) -> None:
    """She makes her directory a link to another, where a FIFO or a device has the declared file's name."""
    made(home / "etc", None, ANN, 0o755)
    path = made(home / "etc" / "conf", "mine", ANN, 0o644)
    aside = made(home / "aside", None, 0, 0o755)
    os.mkfifo(aside / "conf")
    for kind in (reference.FileTable, FileTable):
        table = kind()
        table.put(1, bytes(path))
        table.put(2, bytes(path), volatile=True)
        table.scan()
        (home / "etc").rename(home / "real")
        (home / "etc").symlink_to(aside)
        waiting = Waiting(aside / "conf")
        assert table.scan(full=True) == [1, 2]
        assert leased(bytes(path)) is None and FILE.in_use(str(path), as_it_was()) is None
        assert not waiting.opened.is_set(), kind
        waiting.end()
        (home / "etc").unlink()
        (home / "real").rename(home / "etc")


def as_it_was() -> Step:
    attrs = {"type": "file", "sha256": "0", "mode": "0644"}
    return Step("file:/x", attrs, attrs)


@pytest.mark.invariant("S2")
def test_who_uses_another_file_that_has_the_name_by_now_is_not_told(home: Path) -> None:
    """Of a viewer's question: the name is looked up once, and what it is then is what is asked about."""
    made(home / "etc", None, ANN, 0o755)
    made(home / "etc" / "conf", "mine", ANN, 0o644)
    secret = made(home / "secret", None, 0, 0o700)
    made(secret / "conf", "root's", 0, 0o600)
    name = str(home / "etc" / "conf")
    with open(secret / "conf"):  # by this process, which is passed over: so the scan is asked itself
        held = FILE.held(name)
        assert held.open and held.inode is not None
        (home / "etc").rename(home / "real")
        (home / "etc").symlink_to(secret)
        for scan in (open_handles_ex, reference.open_handles_ex):
            handles, _ = scan([(name.encode(), held.inode)])
            assert handles == []
            assert scan([name.encode()])[0], "without the inode it would be"
        assert FILE.held(name).inode is None and not FILE.held(name).open
        assert not FILE.held(str(secret / "conf")).open
