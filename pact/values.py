"""``dataclass`` as in the standard library, for values that are made by the thousand: records, events, effects. And the
two constants that also a command needs which makes no such value.

The type checker enforces ``frozen=True`` on every assignment. At run time it is left out: a frozen class calls
``object.__setattr__`` for each field, and takes four times as long to make. The classes compare and hash like frozen
ones. Tests set ``FROZEN`` before they import anything else, so that assignments fail there too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final


class _Later(ModuleType):
    """A module that is imported when somebody asks it for something."""

    def __getattr__(self, name: str) -> Any:
        from importlib import import_module

        return getattr(import_module(self.__name__), name)


# ``dataclasses`` imports ``inspect``, and with it a parser of Python, for classes that have no docstring. That takes an
# eighth of all that a command computes until it has done what it is for. Who else imports it has the module itself.
if "inspect" in sys.modules or "dataclasses" in sys.modules:
    import dataclasses
else:
    sys.modules["inspect"] = _Later("inspect")
    try:
        import dataclasses
    finally:
        del sys.modules["inspect"]

__all__ = ["DEFAULT_SOCKET", "NOTHING", "NS_PER_S", "dataclass"]

NS_PER_S: Final = 1_000_000_000
#: Where an agent listens, unless it is told another place.
DEFAULT_SOCKET: Final = "/run/pact/agent.sock"

FROZEN = False

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool = False, **options: Any) -> Any:
        if FROZEN:
            return dataclasses.dataclass(frozen=frozen, **options)
        return dataclasses.dataclass(unsafe_hash=frozen, **options)


class _Nothing(dict[str, Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


#: An empty JSON object that may be the default of a field: it cannot be written to.
NOTHING: Final[Mapping[str, Any]] = _Nothing()
