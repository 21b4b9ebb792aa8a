"""A target with a fault on purpose: a test shows that it is found, saved, and found again by the command that is printed."""

from __future__ import annotations

from typing import Final

from fuzz.kit import Target


def canary(data: bytes) -> None:
    from pact.core import strict  # as every target does, so that something is measured

    value = None
    try:
        value = strict.loads(data[1:], 100)
    except strict.NotStrictError:
        pass
    assert not (data[:1] == b"!" and value == 7), "the fault that is there on purpose"


TARGETS: Final = {"canary": Target("canary", canary, lambda: [b"!6", b"x"], [b"!", b"7"], 4)}
