"""``pact sessions --nodes SET --end ID``: each node counts its sessions for itself, so ``s41`` is one of each node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.remote import Remote
from pact.agent.requests import Requests
from pact.cli.commands.sessions import Sessions
from pact.core import ops
from pact.core.node.events import Caller
from pact.errors import UsageError
from pact.model import Actor, Owner

ROOT = Caller(Actor("root", None, "admin", "cluster"), Owner("uid:0", "root", 0))


def asked(nodes: str | None, name: str) -> dict[str, Any]:
    return Sessions().request(SimpleNamespace(end=name, nodes=nodes)).fields  # type: ignore[arg-type]


@pytest.mark.parametrize("nodes", ["n[1-2]", "n1,n2", "n[1-3]!n3"])
def test_a_session_is_not_hung_up_on_many_nodes_and_what_a_command_left_is(nodes: str) -> None:
    with pytest.raises(UsageError, match=r"names 2 nodes.*another person's"):
        asked(nodes, "s41")
    assert asked(nodes, "x1f.37") == {"session": "x1f.37"}


def test_on_one_node_it_is_hung_up() -> None:
    assert asked("n[1]", "s41") == {"session": "s41", "node": "n1"}
    assert asked(None, "s41") == {"session": "s41"}


@pytest.mark.parametrize(
    ("remote", "session", "node", "reached"),
    [
        (True, "s41", "", False),
        (True, "s41", "n2", False),
        (True, "s41", "n1", True),
        (True, "x1f.37", "", True),
        (False, "s41", "", True),
    ],
)
def test_a_node_hangs_up_only_a_session_that_is_meant_there(
    remote: bool, session: str, node: str, reached: bool
) -> None:
    """Also where the question comes from a program that asks all nodes for the same."""
    ended: list[str] = []

    def end(client: Any, what: Any) -> None:
        ended.append(getattr(what, "session", what))

    kept = SimpleNamespace(end=end, left=SimpleNamespace(end=end))
    one: Any = SimpleNamespace(agent=SimpleNamespace(config=SimpleNamespace(name="n1")), _kept=lambda: kept)
    client: Any = Remote(print, ROOT) if remote else SimpleNamespace(remote=False, caller=ROOT)
    request = ops.made("session_end", {"session": session, **({"node": node} if node else {})})
    if reached:
        Requests._session_end(one, client, request)  # type: ignore[arg-type]
    else:
        with pytest.raises(UsageError, match="which node's session"):
            Requests._session_end(one, client, request)  # type: ignore[arg-type]
    assert ended == ([session] if reached else [])
