"""When the interpreter searches for objects in cycles that nobody uses any more.

A search through everything that a daemon holds takes 40 ms for ten thousand resources, and by itself it comes whenever
much was made: in the middle of an answer, with others waiting. So what is there after the start is set aside, only the
young objects are searched by themselves, and all others when nobody waits.
"""

from __future__ import annotations

import gc
from typing import Final

#: Searches of the young objects (each after some 7,000 more of them) until there is something to do when nobody waits,
#: and until it is done although somebody waits.
ENOUGH: Final = 20
TOO_MANY: Final = 1_000
NEVER: Final = 1 << 30
#: So many objects are searched through in some 5 ms; what is more than that is set aside.
SEARCHED_MAX: Final = 50_000


def set_aside() -> None:
    """After the start: what is there stays."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)


def search(quiet: bool) -> bool:
    """Search, if enough was made and it is ``quiet``. Whether it was done."""
    count = gc.get_count()[2]
    if count < ENOUGH or not (quiet or count > TOO_MANY):
        return False
    gc.collect()
    if len(gc.get_objects(generation=2)) > SEARCHED_MAX:
        gc.freeze()
    return True


def replaced() -> None:
    """Much of what was set aside is used no more: it is part of the next search."""
    gc.unfreeze()
