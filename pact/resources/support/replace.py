"""Restoring a file: atomically, through directory descriptors, with owner, mode, ACLs and labels.  # R5

No symbolic link is followed on the way (``openat2`` with ``RESOLVE_NO_SYMLINKS``), the new file is complete before it
gets its name, and the old file is exchanged, examined, and only then removed: a writer that came in between is noticed
and keeps its content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Container
from typing import Final, NoReturn, Protocol

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, decode_name, encode_name
from pact.resources.base import Blobs
from pact.resources.support import strewn, unsealed
from pact.resources.support.dress import FILE_FLAGS, WRITTEN, being_written, dress, empowers, ids, may_dress, take_over
from pact.resources.support.flags import flags_at, get_flags, said, set_flags_at
from pact.resources.support.loose import LOOSE, MADE
from pact.resources.support.reading import read_whole
from pact.resources.support.way import make_directory, missing, unmake

DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
LEFT: Final = "it was left as it is"
REPLACED: Final = f"it was replaced at the last moment; {LEFT}"
OPENED: Final = "it was opened by somebody at the last moment"
UNTOLD: Final = "the file system does not tell who has it mapped"
CHANGED: Final = f"it was changed again at the last moment; {LEFT}"
COPY_MAX: Final = 64 << 20
PIECE: Final = 64 << 10
OWN_TRIES: Final = 40
OWN_WAIT_S: Final = 0.005


class Before(Protocol):
    """Files that were written before their turn."""

    def take(self, dirfd: int, leaf: bytes, st: os.stat_result | None) -> bytes | None:
        """The name of the new file for this place, if it is still right; from now on it belongs to the caller."""

    def removes(self, dirfd: int, aside: bytes, leaf: bytes, st: os.stat_result, resource: str) -> bool:
        """Whether it takes over what was set aside, and removes it soon, if it is still as in ``st`` then."""

    def makes_room(self) -> bool:
        """Remove what only waits for its turn, because the disk is full. Returns whether there was anything."""

    def touched(self, dirfd: int, path: bytes) -> None:
        """Names in this directory have changed: they are durable when the plan is done."""


def restore_file(
    path: bytes, step: Step, blobs: Blobs, ahead: Before | None = None, closed: Container[bytes] = ()
) -> None:
    """Bring ``path`` from ``step.actual`` to ``step.target``, never partially. Raises RestoreError or OSError.

    With ``ahead`` its new content may be written already, and its directory becomes durable later. ``closed``:
    directories that nobody but root may enter, if they must be made.  # S2
    """
    if path == b"/":
        raise RestoreError("the root directory itself is not replaced")
    parent, leaf = os.path.split(path)
    made, on_record = list[bytes](), list[int]()
    try:
        dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        if step.target is None:
            return
        on_record.append(LOOSE.begin(MADE, paths=[encode_name(p) for p in missing(parent)]))
        try:
            dirfd, made = make_directory(parent, closed)
        except BaseException:
            LOOSE.end(on_record.pop())
            raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise RestoreError("a parent directory is a symbolic link; it is not followed") from None
        raise
    cleared = ""
    try:
        target = step.target
        if target is not None and "flags" in target and (cleared := flags_at(dirfd, leaf)):
            with contextlib.suppress(OSError):  # at worst it stays without them after a kill, and is drift
                on_record.append(unsealed.begin(path, cleared))
            set_flags_at(dirfd, leaf, "")
        if target is None:
            _remove(dirfd, leaf, step.actual)
        elif target["type"] == "directory":
            _directory(dirfd, leaf, target, step.actual)
        elif target["type"] == "symlink":
            _symlink(dirfd, leaf, target, step.actual)
        else:
            _regular(dirfd, leaf, target, step, blobs, ahead)
        if target is not None and target.get("flags"):
            _seal(dirfd, leaf, target["flags"])
        if ahead is None:
            os.fsync(dirfd)
        else:
            ahead.touched(dirfd, parent)
    except BaseException as exc:
        if cleared:
            with contextlib.suppress(OSError):
                set_flags_at(dirfd, leaf, cleared)
        if isinstance(exc, OSError) and exc.errno == errno.EBUSY:
            raise RestoreError("something is mounted on it; it cannot be replaced") from None
        if isinstance(exc, OSError) and exc.errno == errno.EPERM and (why := _sealed(dirfd, leaf)):
            raise PermissionError(errno.EPERM, why) from None
        unmake(made)
        raise
    finally:
        os.close(dirfd)
        for number in on_record:
            LOOSE.end(number)


def _seal(dirfd: int, leaf: bytes, letters: str) -> None:
    try:
        set_flags_at(dirfd, leaf, letters)
    except OSError as exc:
        why = os.strerror(exc.errno or 0).lower()
        raise RestoreError(f"its flags ({letters}) cannot be set here: {why}; the rest was restored") from None


def _sealed(dirfd: int, leaf: bytes) -> str:
    """Why even root may not: the file or its directory is immutable or append-only."""
    if letters := flags_at(dirfd, leaf):
        return f"it is {said(letters)}"
    letters = get_flags(dirfd)
    return f"its directory is {said(letters)}" if letters else ""


def lstat(dirfd: int, leaf: bytes) -> os.stat_result | None:
    try:
        return os.stat(leaf, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _temporary() -> bytes:
    return b".pact-" + secrets.token_hex(8).encode()


def _remove(dirfd: int, leaf: bytes, actual: Attrs | None) -> None:
    st = lstat(dirfd, leaf)
    if st is None:
        return
    if stat.S_ISDIR(st.st_mode):
        try:
            os.rmdir(leaf, dir_fd=dirfd)
        except OSError as exc:
            if exc.errno == errno.ENOTEMPTY:
                raise RestoreError("the directory is not empty") from None
            raise
        return
    aside = _temporary()
    _hold_off(dirfd, leaf, st)
    _rename(dirfd, leaf, aside, syscalls.RENAME_NOREPLACE)
    _discard(dirfd, aside, leaf, st, actual, exchanged=False)


def _hold_off(dirfd: int, leaf: bytes, st: os.stat_result) -> None:
    """Ask the kernel once more, right before the name moves, whether the regular file is open.  # F5"""
    if not stat.S_ISREG(st.st_mode):
        return
    fd = os.open(leaf, FILE_FLAGS, dir_fd=dirfd)
    try:
        if somebody_has_open(fd):
            raise RestoreError(OPENED)
    finally:
        os.close(fd)


def somebody_has_open(fd: int) -> bool | None:
    """Ask for a write lease: True if another process has the file open, None if leases cannot tell.  # F5

    The agent's other threads also open files, for a moment: they do not count, and this waits for them. A process that
    opens the file during the lease waits until the lease is given back, and the kernel tells the leaseholder with a
    signal: by default SIGIO, which ends a process, so a signal is chosen that every process ignores by default.
    """
    ask_again = 1
    for _ in range(OWN_TRIES):
        said = syscalls.ask_lease(fd)
        if not said:
            return False
        if said != errno.EAGAIN:
            return None  # no leases on this file system: the earlier scan of /proc must do
        if _open_here(fd):
            time.sleep(OWN_WAIT_S)
        elif ask_again:
            ask_again -= 1  # a thread of this process may have closed it between the two questions
        else:
            return True
    return True


def _open_here(fd: int) -> bool:
    """Whether another descriptor of this process is open on the same file."""
    st = os.fstat(fd)
    for name in os.listdir("/proc/self/fd"):
        try:
            other = os.fstat(int(name)) if int(name) != fd else None
        except OSError:
            continue
        if other is not None and (other.st_dev, other.st_ino) == (st.st_dev, st.st_ino):
            return True
    return False


def _rename(dirfd: int, old: bytes, new: bytes, flags: int) -> None:
    try:
        syscalls.renameat2(dirfd, old, dirfd, new, flags)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        if flags == syscalls.RENAME_NOREPLACE and lstat(dirfd, new) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
        os.rename(old, new, src_dir_fd=dirfd, dst_dir_fd=dirfd)


def _discard(
    dirfd: int,
    aside: bytes,
    leaf: bytes,
    expected: os.stat_result,
    actual: Attrs | None,
    *,
    exchanged: bool,
    resource: str = "",
    ahead: Before | None = None,
) -> None:
    """Remove the file that was set aside if it is the one that was examined and saved, and no process has it open;
    otherwise give it its name back. Nobody can open it under its new name, so this answer stays true.  # R4"""
    st = lstat(dirfd, aside)
    if st is None:
        return
    try:
        why = ""
        if (st.st_ino, st.st_mtime_ns, st.st_size) != (expected.st_ino, expected.st_mtime_ns, expected.st_size):
            why = CHANGED
        elif not _was_seen(dirfd, aside, st, actual):
            why = REPLACED
        elif stat.S_ISREG(st.st_mode):
            why = _held_or_other(dirfd, aside, actual)
        if why:
            _give_back(dirfd, aside, leaf, why, exchanged=exchanged)
        if ahead is None or not ahead.removes(dirfd, aside, leaf, st, resource):
            os.unlink(aside, dir_fd=dirfd)
    except OSError as exc:
        strewn.note(dirfd, exc.errno or 0)
        raise


def _held_or_other(dirfd: int, aside: bytes, actual: Attrs | None) -> str:
    """Why this regular file must stay; ``""`` if nobody has it open, and its content is the saved one."""
    fd = os.open(aside, FILE_FLAGS, dir_fd=dirfd)
    try:
        if somebody_has_open(fd):
            return OPENED
        return CHANGED if actual is not None and "sha256" in actual and _sha256(fd) != actual["sha256"] else ""
    finally:
        os.close(fd)


def _give_back(dirfd: int, aside: bytes, leaf: bytes, why: str, *, exchanged: bool) -> NoReturn:
    if exchanged and lstat(dirfd, leaf) is not None:
        _rename(dirfd, aside, leaf, syscalls.RENAME_EXCHANGE)
        raise RestoreError(why)
    try:
        _rename(dirfd, aside, leaf, syscalls.RENAME_NOREPLACE)
    except FileExistsError:  # a new file is there: both stay
        kept = leaf[:200] + b".kept" + aside
        _rename(dirfd, aside, kept, syscalls.RENAME_NOREPLACE)
        why = f"it was changed and replaced at the last moment; the one before is {kept.decode(errors='replace')}"
    raise RestoreError(why)


def exchange_back(dirfd: int, aside: bytes, leaf: bytes, put: tuple[int, int, int]) -> str:
    """What was set aside has changed since: it gets its name back, and the new file goes, if it is as it was ``put``
    there (``identified``). Returns what to say of it."""
    now = lstat(dirfd, leaf)
    try:
        _give_back(dirfd, aside, leaf, CHANGED, exchanged=now is not None and identified(now) == put)
    except RestoreError as exc:
        there = lstat(dirfd, aside)
        if there is not None and identified(there) == put:
            os.unlink(aside, dir_fd=dirfd)
        return exc.message


def identified(st: os.stat_result) -> tuple[int, int, int]:
    """What changes when somebody writes the file, or replaces it."""
    return st.st_ino, st.st_size, st.st_mtime_ns


def _was_seen(dirfd: int, leaf: bytes, st: os.stat_result, actual: Attrs | None) -> bool:
    """Whether it is the file decided about, as far as its type and a link's target tell. False if there was none
    then."""
    if actual is None or "type" not in actual:
        return False
    if stat.S_ISLNK(st.st_mode):
        return actual["type"] == "symlink" and decode_name(actual.get("target", "")) == os.readlink(leaf, dir_fd=dirfd)
    if not stat.S_ISREG(st.st_mode):
        return True
    # A file that nobody read may not be removed.
    return actual["type"] == "file" and ("sha256" in actual or not st.st_size)


def _sha256(fd: int) -> str:
    sha = hashlib.sha256()
    while piece := os.read(fd, PIECE):
        sha.update(piece)
    return sha.hexdigest()


def _directory(dirfd: int, leaf: bytes, target: Attrs, actual: Attrs | None) -> None:
    st = lstat(dirfd, leaf)
    if st is not None and stat.S_ISDIR(st.st_mode):
        _dress_directory(dirfd, leaf, target, st)
        return
    fresh = _temporary()
    os.mkdir(fresh, 0o700, dir_fd=dirfd)
    try:  # it gets its name when it is complete
        _dress_directory(dirfd, fresh, target, None)
        if st is not None:
            _remove(dirfd, leaf, actual)
    except BaseException:
        drop(dirfd, fresh)
        raise
    _put_in_place(dirfd, fresh, leaf, None, actual)


def _dress_directory(dirfd: int, leaf: bytes, target: Attrs, st: os.stat_result | None) -> None:
    """``st``: the status as found; ``None``: the directory was just made, and is changed only if it is that one."""
    fd = os.open(leaf, DIR_FLAGS | os.O_NOFOLLOW, dir_fd=dirfd)
    try:
        now = os.fstat(fd)
        same = st is not None and (now.st_dev, now.st_ino) == (st.st_dev, st.st_ino)
        fresh = st is None and now.st_uid == os.geteuid() and not os.listdir(fd)
        if not same and not fresh:
            raise RestoreError(REPLACED)
        if same and not may_dress(dirfd, fd, target):
            raise RestoreError(f"another user can turn a directory on the way, and it is not his: {LEFT}")
        dress(fd, target, st)
    finally:
        os.close(fd)


def drop(dirfd: int, fresh: bytes) -> None:
    """Remove what was made and did not get its name."""
    try:
        os.unlink(fresh, dir_fd=dirfd)
    except IsADirectoryError:
        os.rmdir(fresh, dir_fd=dirfd)
    except OSError as exc:
        strewn.note(dirfd, exc.errno or 0)
        raise


def _symlink(dirfd: int, leaf: bytes, target: Attrs, actual: Attrs | None) -> None:
    st = lstat(dirfd, leaf)
    text = decode_name(target["target"])
    if st is None or not stat.S_ISLNK(st.st_mode) or os.readlink(leaf, dir_fd=dirfd) != text:
        fresh = _temporary()
        os.symlink(text, fresh, dir_fd=dirfd)
        try:
            _own_link(dirfd, fresh, target, None if st is not None and stat.S_ISDIR(st.st_mode) else st)
            st = _make_way(dirfd, leaf, st)
        except BaseException:
            drop(dirfd, fresh)
            raise
        _put_in_place(dirfd, fresh, leaf, st, actual)
    else:
        _own_link(dirfd, leaf, target, st)


def _make_way(dirfd: int, leaf: bytes, st: os.stat_result | None) -> os.stat_result | None:
    """Right before the new file gets its name: an empty directory is removed, and a file must not be open. Returns the
    status of what remains."""
    if st is None:
        return None
    if stat.S_ISDIR(st.st_mode):
        _remove(dirfd, leaf, None)
        return None
    _hold_off(dirfd, leaf, st)
    return st


def _own_link(dirfd: int, leaf: bytes, target: Attrs, st: os.stat_result | None) -> None:
    uid, gid = ids(target, st)
    fd = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        # A lost link is harmless; the thing that has its name now may not be.
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            raise RestoreError(REPLACED)
        os.chown(f"/proc/self/fd/{fd}", uid, gid)
    finally:
        os.close(fd)


def keeps_content(target: Attrs, actual: Attrs | None, st: os.stat_result | None) -> bool:
    """Whether only owner, mode, attributes or flags differ."""
    return (
        st is not None
        and actual is not None
        and actual["type"] == "file"
        and stat.S_ISREG(st.st_mode)
        and ("sha256" not in target or actual["sha256"] == target["sha256"])
    )


def _regular(dirfd: int, leaf: bytes, target: Attrs, step: Step, blobs: Blobs, ahead: Before | None) -> None:
    st, same = lstat(dirfd, leaf), None
    if keeps_content(target, step.actual, st):
        assert st is not None
        fd = os.open(leaf, FILE_FLAGS, dir_fd=dirfd)
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino) != (st.st_dev, st.st_ino):  # never change a file that somebody else put there
                raise RestoreError(REPLACED)
            own = may_dress(dirfd, fd, target)
            if own:
                if syscalls.leases_tell(fd) or not empowers(now, target):
                    if why := take_over(fd, target, step.actual):
                        raise RestoreError(f"{why}; {LEFT}")
                    dress(fd, target, st)
                    return
                if being_written(fd):  # and who has it mapped is not told: it becomes a new one  # R13
                    raise RestoreError(f"{WRITTEN}; {LEFT}")
            same = _content_of(fd, now, step.actual)
        finally:
            os.close(fd)
        if same is None:
            why = UNTOLD if own else "another user can turn a directory on the way"
            raise RestoreError(f"{why}, and it is another or too large: {LEFT}")
    fresh = ahead.take(dirfd, leaf, st) if ahead is not None else None
    if fresh is None:
        content = same if same is not None else blobs(target["sha256"]) if "sha256" in target else b""
        if content is None:
            raise RestoreError("its content is not kept (too large, or forgotten since); put it back by hand")
        try:
            fresh = write_fresh(dirfd, leaf, target, st, content)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or ahead is None or not ahead.makes_room():
                raise
            fresh = write_fresh(dirfd, leaf, target, st, content)
    try:
        st = _make_way(dirfd, leaf, st)
    except BaseException:
        drop(dirfd, fresh)
        raise
    _put_in_place(dirfd, fresh, leaf, st, step.actual, step.id, None if "flags" in target else ahead)


def _content_of(fd: int, st: os.stat_result, actual: Attrs | None) -> bytes | None:
    """The content of an open file, if it is the observed one: another file's content must not be copied."""
    whole = read_whole(fd, st, COPY_MAX) if st.st_size <= COPY_MAX else ""
    if isinstance(whole, str) or actual is None or whole[1] != actual.get("sha256"):
        return None
    return whole[0]


def write_fresh(
    dirfd: int, leaf: bytes, target: Attrs, st: os.stat_result | None, content: bytes, *, durable: bool = True
) -> bytes:
    """Write the new file, complete but for its name; returns its temporary name."""
    fresh = _temporary()
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        dress(fd, target, st if st is not None and stat.S_ISREG(st.st_mode) else None, dirfd, leaf)
        if durable:
            os.fsync(fd)
    except BaseException:
        drop(dirfd, fresh)
        raise
    finally:
        os.close(fd)
    return fresh


def _put_in_place(
    dirfd: int,
    fresh: bytes,
    leaf: bytes,
    st: os.stat_result | None,
    actual: Attrs | None,
    resource: str = "",
    ahead: Before | None = None,
) -> None:
    """Give ``fresh`` its name; the old file is removed only if it is the one that was examined."""
    try:
        if st is None:
            _rename(dirfd, fresh, leaf, syscalls.RENAME_NOREPLACE)
            return
        _rename(dirfd, fresh, leaf, syscalls.RENAME_EXCHANGE)
    except FileExistsError:
        drop(dirfd, fresh)
        raise RestoreError("it appeared at the last moment; it was left as it is") from None
    except FileNotFoundError:
        drop(dirfd, fresh)
        raise RestoreError("it vanished at the last moment") from None
    except OSError:
        drop(dirfd, fresh)
        raise
    try:
        _discard(dirfd, fresh, leaf, st, actual, exchanged=True, resource=resource, ahead=ahead)
    except RestoreError:
        if lstat(dirfd, fresh) is not None:
            drop(dirfd, fresh)
        raise
