"""A kind of somebody else's, for tests of what protects the agent from such code."""

from __future__ import annotations

from typing import Any

from pact.core.plan import Step
from pact.model import Attrs, Declared, Observation
from pact.resources.base import Blobs, Entry, Found, Keep, Kind

STEP = Step("lamp:x", {"on": True}, {"on": False})


class Lamp(Kind):
    """Whatever ``breaks`` names raises what nobody expects."""

    name, dimension, severity, volatile = "lamp", "gpu", 0.5, False

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks

    def _try(self, what: str) -> None:
        if what == self.breaks:
            raise LookupError("no such lamp")

    def canonical(self, name: str) -> str:
        self._try("canonical")
        return name

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self._try("parse")
        return Entry(Declared({"on": bool(value)}))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        self._try("export")
        return True

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        self._try("observe")
        return {"on": True}

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        self._try("distance_n")
        return 0 if declared == actual else 5

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        self._try("restore")

    def discover(self, pattern: str) -> Found:
        self._try("discover")

        def names() -> Any:
            yield "x"
            self._try("names")

        return Found(names(), {})

    def roots(self, name: str, step: Step) -> list[bytes]:
        self._try("roots")
        return []

    def holders(self, name: str, step: Step, resource: str) -> Any:
        self._try("holders")
        return []

    def in_use(self, name: str, step: Step) -> bool | None:
        self._try("in_use")
        return False
