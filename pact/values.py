"""``dataclass`` as in the standard library, for values that are made by the thousand: records, events, effects. And the
two constants that also a command needs which makes no such value.

The type checker enforces ``frozen=True`` on every assignment. At run time it is left out: a frozen class calls
``object.__setattr__`` for each field, and takes four times as long to make. The classes compare and hash like frozen
ones. Tests set ``FROZEN`` before they import anything else, so that assignments fail there too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

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
