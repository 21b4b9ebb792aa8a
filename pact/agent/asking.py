"""``pact consumers``: who uses a resource now. It opens nothing, and reveals nothing that the caller may not see.

A caller who is not an administrator may ask only about resources that the agent watches, at places that the caller
could reach: for others the answer would reveal which names exist in closed directories, and who has which file open.
# S2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pact.agent import views
from pact.agent.client import Client
from pact.agent.consumers import find_all_holders
from pact.agent.worker import Result
from pact.core.node import tracked
from pact.core.node.events import Ticked
from pact.core.plan import Step
from pact.errors import DeniedError, PactError, UsageError
from pact.limits import CONSUMERS_ASKED_MAX
from pact.model import Unreadable, split_id
from pact.resources import kind_of
from pact.resources.base import Held
from pact.resources.support.way import hangs

if TYPE_CHECKING:
    from pact.agent.driver import Driver

NOT_YOURS: Final = "is not looked after here, or lies in a closed directory: asking who uses it needs the role admin"


def consumers(agent: Driver, client: Client, asked: str) -> None:
    """Answers later, from the thread for such questions. Raises UsageError, DeniedError or PactError."""
    kind = kind_of(asked)
    try:
        name = kind.canonical(split_id(asked)[1])
    except ValueError as exc:
        raise UsageError(f"{asked}: {exc}") from None
    resource = f"{kind.name}:{name}"
    admin, node = client.admin, agent.node
    if not admin and any(map(hangs, kind.watch(name) or kind.roots(name, Step(resource, None, {})))):
        raise DeniedError(f"{resource} lies on a file system that may hang: looking at it needs the role admin")
    if not admin and resource not in node.state and tracked.known(node, resource) is None:
        raise DeniedError(f"{resource} {NOT_YOURS}")
    if agent.asking.waiting >= CONSUMERS_ASKED_MAX:
        raise PactError("too many such questions are waiting", "pact status says if one of them is stuck")
    declared = node.state.declared(resource)
    rules = declared.consumers if declared is not None else ()
    token = agent.next_token()
    client.tokens.add(token)

    def work() -> Result:
        held = Held(kind.presence(name), None, True) if admin else kind.held(name)
        error: PactError | None = None
        if not held.open:
            error = DeniedError(f"{resource} {NOT_YOURS}")
        elif isinstance(held.seen, Unreadable):
            error = PactError(f"{resource} cannot be read: {held.seen.why}")
        if error is not None:
            why = error
            return Result(0, make=lambda t, w: agent.failed_read(client, token, why, t, w))
        assert not isinstance(held.seen, Unreadable)
        steps = [Step(resource, None, held.seen, (), rules, held.inode)] if held.seen is not None else []
        holders, more = find_all_holders(steps, ask=False)
        found = views.holders_for(client.caller, holders)
        result = {"v": 1, "resource": resource, "consumers": found, **({"more": more} if more else {})}

        def done(t_ns: int, wall_ns: int) -> Ticked:
            client.tokens.discard(token)
            agent.answer(client, result)
            agent.control.flush(client)
            return Ticked(t_ns, wall_ns)

        return Result(0, make=done)

    agent.asking.call(agent.answering(client, token, work))
