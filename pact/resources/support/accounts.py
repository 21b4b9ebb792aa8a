"""Users and groups: names of numbers and numbers of names, as this machine's name services know them now.

A directory service may come up long after the agent: unknown names and numbers are never cached, and known ones are
looked up again after a minute.
"""

from __future__ import annotations

import grp
import pwd
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

FRESH_S: Final = 60.0
KNOWN_MAX: Final = 1024

Asked = TypeVar("Asked", int, str)
Found = TypeVar("Found", int, str)


class Known(Generic[Asked, Found]):
    """Answers of a name service; known ones are kept for ``FRESH_S``. Threads may share one: at worst they ask
    twice."""

    def __init__(self, ask: Callable[[Asked], Found], clock: Callable[[], float] = time.monotonic) -> None:
        """``ask`` raises KeyError (or OSError) for an unknown name or number."""
        self._ask: Callable[[Asked], Found] = ask
        self._clock = clock
        self._known: dict[Asked, tuple[float, Found]] = {}

    def __call__(self, asked: Asked) -> Found | None:
        now = self._clock()
        known = self._known.get(asked)
        if known is not None and now - known[0] < FRESH_S:
            return known[1]
        try:
            answer: Found = self._ask(asked)
        except (KeyError, OSError, ValueError, OverflowError):
            self._known.pop(asked, None)
            return None
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[asked] = now, answer
        return answer


_user_name: Final = Known[int, str](lambda uid: pwd.getpwuid(uid).pw_name)
_group_name: Final = Known[int, str](lambda gid: grp.getgrgid(gid).gr_name)
_user_id: Final = Known[str, int](lambda name: pwd.getpwnam(name).pw_uid)
_group_id: Final = Known[str, int](lambda name: grp.getgrnam(name).gr_gid)


def user_name(uid: int) -> str:
    """The name; the number if there is none."""
    return _user_name(uid) or str(uid)


def group_name(gid: int) -> str:
    return _group_name(gid) or str(gid)


def user_id(text: str) -> int | None:
    """The number that a declaration or an observation means; ``None`` for a name that is unknown now."""
    return int(text) if _is_number(text) else _user_id(text)


def group_id(text: str) -> int | None:
    return int(text) if _is_number(text) else _group_id(text)


def same_user(one: str, other: str) -> bool:
    """Whether both are the same user: by number if both have one, else by text."""
    return one == other or _same(user_id(one), user_id(other))


def same_group(one: str, other: str) -> bool:
    return one == other or _same(group_id(one), group_id(other))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _same(one: int | None, other: int | None) -> bool:
    return one is not None and one == other
