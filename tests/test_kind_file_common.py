"""Looking at a file and putting it back: what the tests of the kind share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pact.core.plan import Step
from pact.model import Attrs, Unreadable, encode_name
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND


def name_of(path: Path | bytes) -> str:
    return encode_name(os.fsencode(path))


def seen(path: Path | bytes) -> Attrs:
    """What is there; the test ends here if it cannot be read."""
    attrs = KIND.observe(name_of(path))
    assert not isinstance(attrs, Unreadable)
    assert attrs is not None
    return attrs


def snapshot(path: Path) -> tuple[Attrs, dict[str, bytes]]:
    keep = Keep(1 << 20)
    attrs = KIND.observe(name_of(path), keep)
    assert isinstance(attrs, dict)
    return attrs, keep.blobs


def restore(path: Path | bytes, target: Attrs | None, blobs: dict[str, bytes], actual: Any = ...) -> None:
    """From what is there now (or what was there, given as ``actual``) to ``target``."""
    name = name_of(path)
    now = KIND.observe(name) if actual is ... else actual
    assert not isinstance(now, Unreadable)
    KIND.restore(name, Step(f"file:{name}", target, now), blobs.get)


def litter(directory: Path) -> list[str]:
    return [n for n in os.listdir(directory) if n.startswith(".pact-")]


def content(text: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    digest = hashlib.sha256(text).hexdigest()
    return {"type": "file", "sha256": digest, "size": len(text)}, {digest: text}
