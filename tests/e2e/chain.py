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


def end(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The mark at the end of an export that holds these lines."""
    records, names = [x for x in lines if "seq" in x], [x["blob"] for x in lines if "blob" in x]
    digests = hashlib.sha256("".join(n + "\n" for n in names).encode()).hexdigest()
    return {"end": {"records": len(records), "hash": records[-1]["hash"], "blobs": len(names), "digests": digests}}


def follow(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A record like the last one, with ``changes``, that continues the chain."""
    body = {**{k: v for k, v in records[-1].items() if k != "hash"}, **changes}
    body["seq"], body["prev"] = records[-1]["seq"] + 1, records[-1]["hash"]
    raw = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return {**body, "hash": hashlib.sha256(bytes.fromhex(body["prev"]) + raw).hexdigest()}
