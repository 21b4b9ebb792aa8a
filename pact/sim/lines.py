"""A virtual machine's journal, kept as the lines that a node sends up."""

from __future__ import annotations

from pact.core.node.events import AppendRecord, Effect
from pact.core.records import Record
from pact.sim.world import World


class Machine(World):
    """A world whose journal is kept as the lines that are sent up, and whose disk never fails: it cannot start
    again."""

    lines: list[bytes]
    fresh: list[Record]  # the last of them, for the sender

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is AppendRecord:
                record = effect.record
                self.lines.append(b'%b,"hash":"%b"}\n' % (effect.body[:-1], record.hash.encode()))
                self.fresh.append(record)
            else:
                self._carry_out(effect)
