"""Loop devices and their files. A file under a mounted loop device is in use, and no process shows it."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

LOOP_GET_STATUS64: Final = 0x4C05
LOOP_STATUS_BYTES: Final = 232


@dataclass(frozen=True, slots=True)
class Loop:
    """``file`` is the path as the process saw it that set the device up (in another mount namespace the same path may
    be another file); the device and inode of the file are ``None`` if unknown."""

    name: str
    file: bytes
    device: tuple[int, int] | None
    inode: int | None


def loops() -> Iterator[Loop]:
    """Loop devices that have a file."""
    try:
        names = [n for n in os.listdir("/sys/block") if n.startswith("loop")]
    except OSError:
        return
    for name in names:
        path = backing_file(name)
        if path is None:
            continue  # it has no file (any more)
        try:
            device, inode = _lies_on(name)
        except OSError:
            continue
        yield Loop(name, path, device, inode)


def backing_file(name: str) -> bytes | None:
    """The file of a loop device; ``None`` for one without a file, and for other devices."""
    try:
        with open(f"/sys/block/{name}/loop/backing_file", "rb") as f:
            return f.read().rstrip(b"\n")
    except OSError:
        return None


def on_file(path: bytes, inode: tuple[int, int] | None = None) -> list[str]:
    """The loop devices (``/dev/loop3``) on this file, under whatever name. ``inode``: its device and inode; another
    file that has the path now does not count."""
    try:
        st = os.stat(path, follow_symlinks=False)
    except OSError:
        return []
    if inode is not None and inode != (st.st_dev, st.st_ino):
        return []
    here = (os.major(st.st_dev), os.minor(st.st_dev))
    out = []
    for loop in loops():
        same = loop.file == path if loop.device is None else (loop.device, loop.inode) == (here, st.st_ino)
        if same:
            out.append(f"/dev/{loop.name}")
    return out


def _lies_on(name: str) -> tuple[tuple[int, int] | None, int | None]:
    """Device and inode of the file; ``None`` if unknown. Raises OSError (ENXIO) for a loop device without a file."""
    status = bytearray(LOOP_STATUS_BYTES)
    try:
        fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None, None
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            raise
        return None, None
    finally:
        os.close(fd)
    # struct loop_info64 begins with lo_device and lo_inode
    device, inode = (int.from_bytes(status[at : at + 8], sys.byteorder) for at in (0, 8))
    return (os.major(device), os.minor(device)), inode
