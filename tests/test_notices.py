"""Who is told what of a record."""

from __future__ import annotations

from typing import cast

import pytest

from pact.agent.notices import said_of
from pact.core.node import payloads
from pact.core.node.step import Node
from pact.core.records import Record
from pact.model import AGENT_ACTOR, Owner


class Named:
    name = "n001"


def owner(uid: int) -> Owner:
    return Owner(f"uid:{uid}", str(uid), uid)


@pytest.mark.invariant("N1")
def test_who_had_changed_one_of_them_is_told_of_that_one() -> None:
    """The others may lie where he cannot look."""
    rolled_back = payloads.RolledBack(
        change="c1",
        owner=owner(0),
        cause="expired",
        also={"file:/etc/f": [owner(1234)]},
        results={"file:/root/secret": "restored", "file:/etc/f": "restored"},
    )
    actor = AGENT_ACTOR.to_json()
    record = Record(0, "", "", "", 0, "n", rolled_back.type, actor, rolled_back.to_data())
    said = dict(said_of(record, cast(Node, Named())))
    assert "(file:/etc/f, file:/root/secret)" in said[0]
    assert "(file:/etc/f)" in said[1234] and "secret" not in said[1234]
