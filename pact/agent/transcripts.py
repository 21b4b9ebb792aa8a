"""The transcript of a session that has ended: from the files that it has written to a content of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from pact.session import cast

TITLE: Final = "session {id} of {person}"


def close(path: str, state: Mapping[str, Any], limit: int, room: int) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """What the record says of it, and the content. ``room``: bytes that are left in the store."""
    said = state.get("cast") or {}
    title = TITLE.format(id=state.get("id", ""), person=state["person"])
    head = cast.header(
        _int(state.get("rows"), 24), _int(state.get("cols"), 80), state["began"] // 1_000_000_000, title, {}
    )
    data = cast.whole(path, head, limit)
    if not data:
        return None, {}
    out: dict[str, Any] = {"size": len(data)}
    if said.get("dropped") or len(data) > limit:
        out["dropped"] = True
    if said.get("why"):
        out["ended"] = str(said["why"])
    if len(data) > room:
        return {**out, "left_out": "the content store is full"}, {}
    digest = hashlib.sha256(data).hexdigest()
    return {"sha256": digest, **out}, {digest: data}


def _int(value: Any, otherwise: int) -> int:
    return value if type(value) is int else otherwise
