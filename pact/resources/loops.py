"""Loop devices: what they stand on. A file system under one is in use, whoever has it open, and no process shows it."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Final

LOOP_GET_STATUS64: Final = 0x4C05
LOOP_STATUS_BYTES: Final = 232


def loop_files() -> Iterator[tuple[bytes, tuple[int, int] | None]]:
    """Files that loop devices stand on: their paths, as whoever set them up saw them (in another mount namespace the
    same path may be another file), and the devices they lie on, if that can be told.
    """
    try:
        names = [n for n in os.listdir("/sys/block") if n.startswith("loop")]
    except OSError:
        return
    for name in names:
        try:
            with open(f"/sys/block/{name}/loop/backing_file", "rb") as f:
                path = f.read().rstrip(b"\n")
            device = _device_below(name)
        except OSError:
            continue  # it stands on nothing (any more)
        yield path, device


def _device_below(name: str) -> tuple[int, int] | None:
    """``None`` if it cannot be told. Raises OSError (ENXIO) for a loop device without a file."""
    status = bytearray(LOOP_STATUS_BYTES)
    try:
        fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            raise
        return None
    finally:
        os.close(fd)
    device = int.from_bytes(status[:8], sys.byteorder)  # struct loop_info64 begins with lo_device
    return os.major(device), os.minor(device)
