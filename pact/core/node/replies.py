"""The reply to a request that several rollbacks answer together.  # R5"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pact.core.node.desk import Desk
from pact.core.node.jobs import Job
from pact.errors import EXIT_DONE, gravest
from pact.model import Holder, Json


def holder_text(holders: Sequence[Holder]) -> str:
    """One line for people that names the holders. Pids stand elsewhere, so that nodes with equal holders show equal
    lines."""
    named = list(
        dict.fromkeys(
            f"{h.command.split(' ')[0] if h.command else h.how} of {h.user or h.uid}{f', job {h.job}' if h.job else ''}"
            for h in holders
        )
    )
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f"blocked: {', '.join(sorted({h.resource for h in holders})[:5])} used by {', '.join(named[:5])}{more}"


def done(
    node: Desk, job: Job[Any], result: Json, exit_code: int = EXIT_DONE, message: str = "", hint: str = ""
) -> None:
    node.finish(job)
    waiting = node.waiting.get(job.token) if job.token is not None else None
    if waiting is None:
        return
    waiting.jobs.discard(job.n)
    waiting.results.append(result)
    if message:
        waiting.messages.append(message)
        waiting.hint = hint
    waiting.exit_code = gravest((waiting.exit_code, exit_code))


def _answer_if_complete(node: Desk, token: int) -> None:
    waiting = node.waiting.get(token)
    if waiting is None or waiting.jobs:
        return
    del node.waiting[token]
    result = {"rolled_back": waiting.results, "left": left(node)}
    node.reply(token, result, waiting.exit_code, "; ".join(waiting.messages), waiting.hint)


def answer_complete(node: Desk) -> None:
    """Reply to requests whose last rollback has ended. Called once for each step."""
    for token in list(node.waiting):
        _answer_if_complete(node, token)


def left(node: Desk) -> list[Json]:
    return [{"change": c.id, "owner": c.owner.user} for c in node.state.changes.values() if c.members]
