"""Commands of ``pact exec`` that were begun. The end of each is on record, too: who runs them writes it, or, where the
machine went down, the next start.  # X9
"""

from __future__ import annotations

from typing import Final

from pact.core.node.payloads import ExecBegun, Executed
from pact.model import Actor, Json, JsonRead
from pact.values import dataclass

DOWN: Final = "the node went down before its end was on record"
UNKNOWN: Final = "nobody knows how it ended"


@dataclass(frozen=True, slots=True)
class Command:
    """One whose end is not on record. ``actor``: who asked for it, with the call."""

    said: ExecBegun
    actor: Actor

    @classmethod
    def of(cls, said: ExecBegun, actor: JsonRead, call: str) -> Command:
        return cls(
            said, Actor(actor.get("user", ""), actor.get("uid"), actor.get("role", ""), actor.get("via", ""), call)
        )

    def to_json(self) -> Json:
        return {"said": self.said.to_data(), "actor": self.actor.to_json(), "call": self.actor.call}

    @classmethod
    def from_json(cls, data: JsonRead) -> Command:
        return cls.of(ExecBegun.from_data(data["said"]), data["actor"], data["call"])

    def ended(self, seq: int, why: str) -> Executed:
        """The record of its end, where nobody knows more than ``why``. ``seq``: of its ``exec_begun``."""
        said = self.said
        return Executed(
            command=said.command,
            owner=said.owner,
            account=said.account,
            exit=None,
            key=said.key,
            why=why,
            uid=said.uid,
            begun=seq,
        )
