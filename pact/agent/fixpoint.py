"""Resources that move each other, as sysctls do: writing one changes others, so a plan of them is judged by its end
state alone.

The steps that are not as they should be are written again, those that the kernel refused at first too (``0`` is no
value of ``vm.dirty_bytes``, but what it becomes when ``vm.dirty_ratio`` is written). What the plan moved beside its own
resources is put back to what it was before. That is repeated a few times. If it does not settle, what others have
stays, and the step that cannot be reached says with what it contradicts itself. There is no table of names: there are
too many.
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
    """Writing others may move it: it is judged by the end state."""
    return bool(KINDS[split_id(resource)[0]].moved_by)


def conforms(step: Step, seen: Observation) -> bool:
    return not isinstance(seen, Unreadable) and KINDS[split_id(step.id)[0]].distance_n(step.target, seen) == 0


class Fixpoint:
    """What others move, of one plan and beside it. The plan's ``results`` are changed in place: ``""`` for what is
    reached.

    ``put_back``: bring what moved beside the plan back to what it was when this was made; else it is only reported.
    ``wanted``: what is declared of those beside that had drifted.
    """

    def __init__(self, beside: Iterable[str], put_back: bool, wanted: Mapping[str, Attrs | None] | None = None) -> None:
        self._wanted = wanted or {}
        self._before = {r: observe(r) for r in beside if is_moved(r)}
        self._put_back = put_back
        self._upset: dict[str, set[str]] = {}  # what was written last -> what was right before, and not after
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
        """Of those that are still wrong some contradict others, or what lies beside; what these have dragged along
        contradicts nothing, and is written once more when the others are found out."""
        for _ in range(2):
            wrong = [s for s in own if not self.reached(s) and not self._upset.get(s.id)]
            for step in wrong:
                results[step.id] = self._write(step, own)
                strayed = self._strayed() if self._put_back else []
                if strayed:
                    self._upset.setdefault(step.id, set()).update(s.id for s in strayed)
                    self._give_back(own)

    def _give_back(self, own: Sequence[Step]) -> None:
        """What others have is not given up for this plan; nor what giving it back resets beside."""
        for _ in range(ROUNDS_MAX):
            strayed = self._strayed()
            for step in strayed:
                self._write(step, [*own, *strayed])
            if not strayed:
                return

    def _agree(self, own: Sequence[Step]) -> bool:
        """The plan cannot be done beside what others have; but where all of that would be as declared with it, too (one
        switch that has drifted in two changes under two names), it is done."""
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
        """What is not as it was before the plan, beside it."""
        now = {r: observe(r) for r in self._before}
        return [Sighting(r, seen) for r, seen in now.items() if seen != self._before[r]]

    def _strayed(self) -> list[Step]:
        out = []
        for resource, before in self._before.items():
            if before is None or isinstance(before, Unreadable):
                continue  # it came with a module, or nobody knows what it was
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
        """Write one, and remember what that upset. Returns why it could not be written, or ``""``."""
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
        """Right after a successful write: what the kernel made of it."""
        kind, name = split_id(step.id)
        text = KINDS[kind].reads(name, step.target, observe(step.id))
        if text:
            self.reads[step.id] = text
        else:
            self.reads.pop(step.id, None)

    def _against(self, resource: str) -> list[str]:
        """What a write of this upsets, or whose write upsets this."""
        out = set(self._upset.get(resource, ()))
        out.update(r for r, upset in self._upset.items() if resource in upset)
        return sorted(out)

    def learned(self, results: Mapping[str, str]) -> dict[str, str]:
        """What to remember: of the steps that were reached."""
        return {r: text for r, text in self.reads.items() if results.get(r) == ""}


def written(kind: str, name: str, step: Step, blobs: Blobs) -> str:
    """Have a kind restore one step. Returns why it could not, ``""`` if it did."""
    try:
        KINDS[kind].restore(name, step, blobs)
    except PactError as exc:
        return exc.message
    except OSError as exc:
        return os.strerror(exc.errno or 0).lower()
    return ""


__all__ = ["Fixpoint", "conforms", "is_moved", "observe", "written"]
