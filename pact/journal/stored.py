"""Checks the chain on the stored bytes, without parsing them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pact.core.records import digest
from pact.errors import ChainError

MISFILED: Final = "is filed under another type or time than its content says"


def check_stored(rows: Iterator[Any], seq: int, prev: str) -> tuple[int, str]:
    """Check the bytes of rows of ``(seq, type, time, hash, body)`` that begin with ``seq``. Returns the number and hash
    after the last one that follows. Raises ChainError at the first wrong one.
    """
    for found, type_, time, hash_, body in rows:
        if found != seq:
            break
        if not isinstance(body, bytes) or digest(prev, body) != hash_:
            raise ChainError(seq, "its content does not match its hash")
        if not body.endswith(f',"time":"{time}","type":"{type_}","v":1}}'.encode()):
            raise ChainError(seq, MISFILED)
        prev, seq = hash_, seq + 1
    return seq, prev
