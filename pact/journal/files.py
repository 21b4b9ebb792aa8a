"""The file of a database, which somebody may remove or replace while it is open."""

from __future__ import annotations

import os

from pact.errors import JournalError


def file_of(path: str) -> tuple[int, int]:
    """Device and inode of the file that has this path now."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def require_file(path: str, opened: tuple[int, int]) -> None:
    """SQLite goes on writing into a file that was removed or replaced: everything in it would be lost with the process.
    Raises JournalError.
    """
    try:
        there = file_of(path) == opened
    except OSError:
        there = False
    if not there:
        raise JournalError(
            f"journal: {path} was removed or replaced under this process",
            "put it, or a backup, back there, then restart",
        )
