"""The hash chain verified by a stranger: written from the specification of formats, without pact."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def verify(records: Iterable[dict[str, Any]]) -> int:
    """How many records (oldest first) there are. Raises AssertionError at the first that does not fit."""
    prev, count = "0" * 64, 0
    for record in records:
        assert record["seq"] == count and record["prev"] == prev, record["seq"]
        body = {k: v for k, v in record.items() if k != "hash"}
        raw = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        prev = hashlib.sha256(bytes.fromhex(prev) + raw).hexdigest()
        assert record["hash"] == prev, record["seq"]
        count += 1
    return count


def follow(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A record like the last one, with ``changes``, that continues the chain."""
    body = {**{k: v for k, v in records[-1].items() if k != "hash"}, **changes}
    body["seq"], body["prev"] = records[-1]["seq"] + 1, records[-1]["hash"]
    raw = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return {**body, "hash": hashlib.sha256(bytes.fromhex(body["prev"]) + raw).hexdigest()}
