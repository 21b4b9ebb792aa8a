"""Who is told when a plan has moved something that they read (``notify``): each once, after the last step.  # R14

Restoring the file of a running daemon is half a rollback. Who cannot be told is named: the resource was restored, and
the plan is not done.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pact.core.plan import Step
from pact.errors import PactError, explained
from pact.host.notify import log
from pact.model import Attrs, split_id
from pact.resources import KINDS


@dataclass(frozen=True, slots=True)
class Told:
    """``untold``: by resource, who was not told of it. ``told``: resources whose readers know it."""

    untold: Mapping[str, Sequence[str]]
    told: Collection[str]


def tell(
    steps: Sequence[Step], results: dict[str, str], touched: Collection[str], tells: Mapping[str, Attrs | None]
) -> Told:
    """Tell those who are to be told of restored resources, in their kinds' order; ``results`` gets the reason where one
    could not be told. What was moved (``touched``) and is not verified is told to nobody yet: they are told when it is
    as it should be. ``tells``: by notification, the declared attributes of whom it names."""
    moved = [s for s in steps if s.notify and not results[s.id] and (s.owed or s.id in touched)]
    failed = {}
    for notification in _in_order(n for s in moved for n in s.notify):
        why = _told(notification, tells.get(notification))
        if why:
            failed[notification] = why
            log(f"a plan could not tell {notification}: {why}", 4)
    untold: dict[str, Sequence[str]] = {
        s.id: s.notify for s in steps if s.notify and results[s.id] and (s.owed or s.id in touched)
    }
    for step in moved:
        if left := [n for n in step.notify if n in failed]:
            untold[step.id] = left
            results[step.id] = f"restored, but {left[0]} failed: {failed[left[0]]}"
    return Told(untold, {s.id for s in moved} - untold.keys())


def told_steps(steps: Iterable[Step]) -> list[Step]:
    """The steps whose consumers lose something when those are told who read what these steps move."""
    out: dict[str, Step] = {}
    for by in steps:
        for notification in by.notify:
            resource, kind, name, verb = parts(notification)
            step = KINDS[kind].told(resource, name, verb)
            if step is not None:  # the rules of the resource that notifies count for it, too
                out.setdefault(notification, replace(step, consumers=by.consumers))
    return list(out.values())


def parts(notification: str) -> tuple[str, str, str, str]:
    """Resource, its kind and name, and the verb of a notification (``service:chronyd reload``)."""
    resource, _, verb = notification.partition(" ")
    return (resource, *split_id(resource), verb)


def _in_order(notifications: Iterable[str]) -> list[str]:
    """Each once, kind by kind, as each kind wants its own."""
    by_kind: dict[str, dict[tuple[str, str], str]] = {}
    for notification in notifications:
        _, kind, name, verb = parts(notification)
        by_kind.setdefault(kind, {})[name, verb] = notification
    return [told[each] for kind, told in by_kind.items() for each in KINDS[kind].telling(list(told))]


def _told(notification: str, declared: Attrs | None) -> str:
    """Returns ``""`` if it was told, else the reason why not."""
    _, kind, name, verb = parts(notification)
    try:
        KINDS[kind].tell(name, verb, declared)
    except OSError as exc:
        return (exc.strerror or os.strerror(exc.errno or 0)).lower()
    except PactError as exc:
        return exc.message
    except Exception as exc:  # an unexpected error: the others are told all the same
        return explained(exc).message
    return ""
