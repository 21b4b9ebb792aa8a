"""What the version before wrote is read now, and means the same: journals of nodes, and the root's log.

``data/written-by-0.1.json.gz`` was written by 0.1.0, before modules moved: the journals of random lives (one node, and
the members of a cluster) and the cluster's log, each with the state that 0.1.0 made of it.
"""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from pact.core import records
from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import GENESIS, canonical
from pact.core.root import log

WRITTEN: Any = orjson.loads(gzip.decompress((Path(__file__).parent / "data" / "written-by-0.1.json.gz").read_bytes()))
JOURNALS = [WRITTEN["node"], *WRITTEN["members"]]


@pytest.mark.invariant("J1", "J2")
@pytest.mark.parametrize("n", range(len(JOURNALS)))
def test_a_journal_is_the_same_chain_and_the_same_state(n: int) -> None:
    state, prev = State(), GENESIS
    for row in JOURNALS[n]["records"]:
        body = canonical({k: v for k, v in row.items() if k != "hash"})
        record = records.parse(orjson.dumps(row))
        assert (record.prev, records.digest(prev, body)) == (prev, record.hash)
        fold.apply(state, record)
        prev = record.hash
    assert state.to_json() == JOURNALS[n]["state"]
    state.check()
    assert State.from_json(JOURNALS[n]["state"]).to_json() == JOURNALS[n]["state"], "and so is its snapshot"


def test_they_hold_nearly_every_kind_of_record() -> None:
    assert len({row["type"] for journal in JOURNALS for row in journal["records"]}) >= 29


@pytest.mark.invariant("K1")
def test_the_root_s_log_is_the_same_state() -> None:
    chunks = [base64.b64decode(text) for text in WRITTEN["root"]["chunks"]]
    state = log.load(None, chunks)
    written = base64.b64decode(WRITTEN["root"]["state"])
    assert orjson.loads(state.to_bytes()) == orjson.loads(written)
    assert orjson.loads(log.load(written, ()).to_bytes()) == orjson.loads(written)
