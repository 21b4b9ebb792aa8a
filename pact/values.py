"""``dataclass`` as in the standard library, for the values that are made by the thousand: records, events, effects.

``frozen=True`` is what the type checker holds every assignment against. At run time it is left out: a frozen class
calls ``object.__setattr__`` for each field, and takes four times as long to make. They
compare and hash as frozen ones. Tests set ``FROZEN`` before they import anything else, and hold every assignment
against it as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

__all__ = ["NOTHING", "dataclass"]

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


#: An empty JSON object that may be the default of a field: nobody writes into it.
NOTHING: Final[Mapping[str, Any]] = _Nothing()
