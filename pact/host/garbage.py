"""When the interpreter searches for unused objects in cycles.

A search through all objects of a daemon takes 40 ms for ten thousand resources, and by default it comes whenever many
objects were made: in the middle of an answer, while others wait. So the objects that exist after the start are set
aside, only young objects are searched automatically, and all others while nobody waits.
"""

from __future__ import annotations

import gc
from typing import Final

#: How many searches of the young objects (one after each 7,000 or so) make a full search worthwhile while nobody waits,
#: and how many force it although somebody waits.
ENOUGH: Final = 20
TOO_MANY: Final = 1_000
NEVER: Final = 1 << 30
#: A search through this many objects takes about 5 ms; if there are more, they are set aside.
SEARCHED_MAX: Final = 50_000


def set_aside() -> None:
    """After the start: set all present objects aside."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)


def search(quiet: bool) -> bool:
    """Search, if enough objects were made and it is ``quiet``. Returns whether it was done."""
    count = gc.get_count()[2]
    if count < ENOUGH or not (quiet or count > TOO_MANY):
        return False
    gc.collect()
    if len(gc.get_objects(generation=2)) > SEARCHED_MAX:
        gc.freeze()
    return True


def replaced() -> None:
    """Many objects that were set aside are no longer used: the next search includes them."""
    gc.unfreeze()
