"""A kind that is not installed: resources of it in the journal are unreadable, and stay as they are."""

from __future__ import annotations

from typing import Any

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Observation, Unreadable
from pact.resources.base import Blobs, Entry, Keep, Kind, Saved


class Unknown(Kind):
    """Nothing of it is read, compared, restored or shown."""

    volatile = False
    removable = False

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def why(self) -> str:
        return f"the kind {self.name!r} is not installed"

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        raise ValueError(self.why)

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return Unreadable(self.why)

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        return 0

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        return Saved(refusal=self.why)

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        raise RestoreError(self.why)

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        raise ValueError(self.why)

    def secret(self, attrs: Attrs | None) -> bool:
        return True  # nobody knows what it is
