"""Resources that move each other, such as sysctls: a write to one changes others, so a plan of them is judged only by
its end state.

Steps that are not in their target state are written again, including those that the kernel refused at first (``0`` is
not a valid value of ``vm.dirty_bytes``, but it is what that reads after a write to ``vm.dirty_ratio``). Resources
beside the plan that it moved are written back to their previous values. This is repeated a few times. If it does not
settle, resources beside the plan keep their values, and the unreachable step names the resources that contradict it.
There is no table of names: there would be too many.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pact.core.node.events import Sighting
from pact.core.plan import Step
from pact.errors import PactError
from pact.model import Attrs, Observation, Unreadable, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs

ROUNDS_MAX: Final = 3


def observe(resource: str) -> Observation:
    kind, name = split_id(resource)
    return KINDS[kind].observe(name)


def is_moved(resource: str) -> bool:
    """Whether writes to other resources may move it: then it is judged by the end state."""
    return bool(KINDS[split_id(resource)[0]].moved_by)


def conforms(step: Step, seen: Observation) -> bool:
    return not isinstance(seen, Unreadable) and KINDS[split_id(step.id)[0]].distance_n(step.target, seen) == 0


class Fixpoint:
    """The resources, in one plan and beside it, that others move. ``settle`` changes the plan's ``results`` in place:
    ``""`` for a step whose target is reached.

    ``put_back``: write resources that moved beside the plan back to their values when this was made; otherwise the
    moves are only reported. ``wanted``: the declared values of resources beside the plan that had drifted.
    """

    def __init__(self, beside: Iterable[str], put_back: bool, wanted: Mapping[str, Attrs | None] | None = None) -> None:
        self._wanted = wanted or {}
        self._before = {r: observe(r) for r in beside if is_moved(r)}
        self._put_back = put_back
        # Last written resource -> resources that were right before that write, and not after it.
        self._upset: dict[str, set[str]] = {}
        self.reads: dict[str, str] = {}

    def settle(self, steps: Sequence[Step], results: dict[str, str]) -> None:
        """``steps``: those that were carried out, or that the kernel refused."""
        own = [s for s in steps if is_moved(s.id)]
        for _ in range(ROUNDS_MAX if own or self._before else 0):
            wrong = [s for s in own if not self.reached(s)]
            strayed = self._strayed() if self._put_back else []
            if not wrong and not strayed:
                break
            for step in [*wrong, *strayed]:
                why = self._write(step, [*own, *strayed])
                if step in wrong:
                    results[step.id] = why
        if self._put_back and not self._agree(own):
            self._give_back(own)
        self._last(own, results)
        for step in own:
            if self.reached(step):
                results[step.id] = ""
            elif others := self._against(step.id):
                results[step.id] = f"it contradicts {', '.join(others)}: writing either moves the other"

    def _last(self, own: Sequence[Step], results: dict[str, str]) -> None:
        """Of the steps that are still wrong, some contradict others or resources beside the plan; the rest was only
        moved by those, and is written once more after they are known."""
        for _ in range(2):
            wrong = [s for s in own if not self.reached(s) and not self._upset.get(s.id)]
            for step in wrong:
                results[step.id] = self._write(step, own)
                strayed = self._strayed() if self._put_back else []
                if strayed:
                    self._upset.setdefault(step.id, set()).update(s.id for s in strayed)
                    self._give_back(own)

    def _give_back(self, own: Sequence[Step]) -> None:
        """Write back resources beside the plan, which it must not change, and those that such a write resets."""
        for _ in range(ROUNDS_MAX):
            strayed = self._strayed()
            for step in strayed:
                self._write(step, [*own, *strayed])
            if not strayed:
                return

    def _agree(self, own: Sequence[Step]) -> bool:
        """The plan contradicts resources beside it. It is still carried out if all of those would be as declared with
        it, too (one switch that has drifted in two changes under two names)."""
        if all(map(self.reached, own)) or not self._wanted:
            return not self._strayed()
        for step in own:
            if not self.reached(step):
                self._write(step, own)
        strayed = self._strayed()
        return all(
            s.id in self._wanted and conforms(replace(s, target=self._wanted[s.id]), observe(s.id)) for s in strayed
        ) and all(map(self.reached, own))

    def moved(self) -> list[Sighting]:
        """Resources beside the plan that are not as they were before it."""
        now = {r: observe(r) for r in self._before}
        return [Sighting(r, seen) for r, seen in now.items() if seen != self._before[r]]

    def _strayed(self) -> list[Step]:
        out = []
        for resource, before in self._before.items():
            if before is None or isinstance(before, Unreadable):
                continue  # it came with a module, or its earlier value is not known
            now = observe(resource)
            if now is not None and not isinstance(now, Unreadable) and now != before:
                out.append(Step(resource, before, now))
        return out

    def reached(self, step: Step) -> bool:
        seen = observe(step.id)
        if conforms(step, seen):
            return True
        text = seen.get("value") if isinstance(seen, dict) else None
        return text is not None and self.reads.get(step.id) == text

    def _write(self, step: Step, among: Iterable[Step]) -> str:
        """Write one step, and remember which resources it moved away from their targets. Returns the reason why it
        could not be written, or ``""``."""
        right = [s for s in {s.id: s for s in among}.values() if s.id != step.id and self.reached(s)]
        kind, name = split_id(step.id)
        why = written(kind, name, step, lambda _: None)
        if not why:
            self.read_back(step)
            upset = {s.id for s in right if not self.reached(s)}
            if upset:
                self._upset.setdefault(step.id, set()).update(upset)
        return why

    def read_back(self, step: Step) -> None:
        """Right after a successful write: remember how the kernel shows the value. What it shows may also be what
        somebody else has written in between, and that must never count as the value: so it is written once more, and
        has to be shown the same again.  # D5"""
        kind, name = split_id(step.id)
        text = self._shown(step)
        if text and not written(kind, name, step, lambda _: None) and self._shown(step) == text:
            self.reads[step.id] = text
        else:
            self.reads.pop(step.id, None)

    @staticmethod
    def _shown(step: Step) -> str:
        kind, name = split_id(step.id)
        return KINDS[kind].reads(name, step.target, observe(step.id))

    def _against(self, resource: str) -> list[str]:
        """The resources that a write of this one moves away, and those whose write moves this one away."""
        out = set(self._upset.get(resource, ()))
        out.update(r for r, upset in self._upset.items() if resource in upset)
        return sorted(out)

    def learned(self, results: Mapping[str, str]) -> dict[str, str]:
        """The kernel's readings to remember, of the steps whose targets were reached."""
        return {r: text for r, text in self.reads.items() if results.get(r) == ""}


def written(kind: str, name: str, step: Step, blobs: Blobs) -> str:
    """Let a kind restore one step. Returns the reason why it could not, or ``""``."""
    try:
        KINDS[kind].restore(name, step, blobs)
    except PactError as exc:
        return exc.message
    except OSError as exc:
        return os.strerror(exc.errno or 0).lower()
    return ""


__all__ = ["Fixpoint", "conforms", "is_moved", "observe", "written"]
