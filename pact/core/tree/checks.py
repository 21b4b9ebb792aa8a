"""What the head of a frame may contain: one predicate for each kind of value, and the limits of their sizes.  # T13"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pact.limits import FRAME_MAX, HEAD_MAX

SESSION_BITS: Final = 20  # the low bits of a session count the connections of one start
#: In a session: this agent takes what is sealed for the session, and not only for its start.
BY_SESSION: Final = 1 << (SESSION_BITS - 1)
#: And it can tell how old a person's word is, which is sealed with the time since the session's hello.
BY_TIME: Final = 1 << (SESSION_BITS - 2)
#: And how old the root's table of the fleet's holds is, which is sealed with that time, too.
HOLDS_BY_TIME: Final = 1 << (SESSION_BITS - 3)
NAME_MAX: Final = 253
TEXT_MAX: Final = 64 << 10
ITEMS_MAX: Final = 100_000  # entries of any list or table in a head
BATCH_BYTES_MAX: Final = 64 << 10
BATCH_RECORDS_MAX: Final = 256
# Of a request or an answer: a relay that passes it on adds to its head.
BODY_MAX: Final = FRAME_MAX - HEAD_MAX - (1 << 10)
RACK_MAX: Final = NAME_MAX
INCARNATION_MAX: Final = 64
SEAL_CHARS: Final = 20
SEALS_MAX: Final = 256  # characters of the seals of one message, for all roots that may lead
NUMBER_MAX: Final = (1 << 64) - 1
LIST: Final = (list, tuple)
TEXTS: Final = {str}
Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= TEXT_MAX


def is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= NAME_MAX


def is_rack(value: Any) -> bool:
    return type(value) is str and len(value) <= RACK_MAX


def is_incarnation(value: Any) -> bool:
    return type(value) is str and len(value) <= INCARNATION_MAX


def is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def is_seq(value: Any) -> bool:
    """Whether the value is the number of a record, or -1 for none."""
    return type(value) is int and -1 <= value < NUMBER_MAX


def is_flag(value: Any) -> bool:
    return type(value) is bool


def are_names(value: Any) -> bool:
    if type(value) not in LIST or len(value) > ITEMS_MAX:
        return False
    if len(value) <= 4:
        return all(map(is_name, value))
    return set(map(type, value)) == TEXTS and max(map(len, value)) <= NAME_MAX and min(map(len, value)) > 0


def are_names_or_all(value: Any) -> bool:
    return value is None or are_names(value)


def is_text_or_none(value: Any) -> bool:
    return value is None or (type(value) is str and len(value) <= HEAD_MAX)


def a_table(key: Check, value_check: Check) -> Check:
    def check(value: Any) -> bool:
        return (
            type(value) is dict
            and len(value) <= ITEMS_MAX
            and all(map(key, value))
            and all(map(value_check, value.values()))
        )

    return check


def rows(*columns: Check) -> Check:
    width = len(columns)

    def check(value: Any) -> bool:
        return (
            type(value) in LIST
            and len(value) <= ITEMS_MAX
            and all(
                type(row) in LIST and len(row) == width and all(c(v) for c, v in zip(columns, row, strict=True))
                for row in value
            )
        )

    return check


HOLD: Final = {"hold": is_text, "owner": is_text, "reason": is_text, "ends": is_text, "left_ns": is_number}


def are_fleet_holds(value: Any) -> bool:
    return (
        type(value) in LIST
        and len(value) <= ITEMS_MAX
        and all(type(h) is dict and all(k in h and c(h[k]) for k, c in HOLD.items()) for h in value)
    )


def are_holds(value: Any) -> bool:
    """Holds of the fleet, wherever they come from: also in a request inside a frame."""
    return are_fleet_holds(value)


def is_fleet(value: Any) -> bool:
    return value is None or (
        type(value) is dict
        and is_number(value.get("fence"))
        and is_number(value.get("seq"))
        and are_fleet_holds(value.get("holds"))
    )


def is_caller(value: Any) -> bool:
    return type(value) is dict and all(is_text(value.get(k)) for k in ("user", "role", "via"))


def rows_of_text(most: int) -> Check:
    """A row of short texts, or an empty row."""

    def check(value: Any) -> bool:
        return (
            type(value) in LIST
            and len(value) <= ITEMS_MAX
            and all(type(text) is str and len(text) <= most for text in value)
        )

    return check


def is_seal_row(value: Any) -> bool:
    """The seals of a list of names, concatenated."""
    return type(value) is str and len(value) <= ITEMS_MAX * SEAL_CHARS


def is_seal(value: Any) -> bool:
    return type(value) is str and len(value) <= SEALS_MAX


def is_proof(value: Any) -> bool:
    """``[seals, incarnation, seq, wall_ns]``: what a node's hello said, for the root."""
    return (
        type(value) in LIST
        and len(value) == 4
        and is_seal(value[0])
        and is_incarnation(value[1])
        and is_seq(value[2])
        and is_number(value[3])
    )


def are_batches(value: Any) -> bool:
    """``[[node, incarnation, first, count, bytes], ...]``. Written as a plain loop, because every record passes
    here."""
    if type(value) not in LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in LIST or len(row) != 5:
            return False
        node, incarnation, first, count, size = row
        if not (
            type(node) is str
            and 0 < len(node) <= NAME_MAX
            and type(incarnation) is str
            and len(incarnation) <= INCARNATION_MAX
            and type(first) is int
            and 0 <= first <= NUMBER_MAX
            and type(count) is int
            and 0 <= count <= NUMBER_MAX
            and type(size) is int
            and 0 <= size <= NUMBER_MAX
        ):
            return False
    return True


def are_cursors(value: Any) -> bool:
    """``[[node, incarnation, seq, rewind], ...]``. Written as a plain loop too."""
    if type(value) not in LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in LIST or len(row) != 4:
            return False
        node, incarnation, seq, rewind = row
        if not (
            type(node) is str
            and 0 < len(node) <= NAME_MAX
            and type(incarnation) is str
            and len(incarnation) <= INCARNATION_MAX
            and type(seq) is int
            and -1 <= seq < NUMBER_MAX
            and type(rewind) is bool
        ):
            return False
    return True


def are_parts(value: Any) -> bool:
    """``[[names, bytes], ...]``. Written as a plain loop, because every node's answer passes here."""
    if type(value) not in LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in LIST or len(row) != 2 or type(row[1]) is not int or row[1] < 0 or not are_names(row[0]):
            return False
    return True
