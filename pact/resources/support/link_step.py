"""One step of a plan on a link, and the way back if it locked this node out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import PactError, RestoreError
from pact.model import Attrs
from pact.resources.support import link_look
from pact.resources.support.link_checks import renamed
from pact.resources.support.link_look import Known
from pact.resources.support.link_place import STEPPED
from pact.resources.support.link_reach import SETTLE_S, TAKEN_S, Before, before, why_lost
from pact.resources.support.link_set import Setter
from pact.resources.support.link_text import canonical_name
from pact.resources.support.link_users import goes
from pact.resources.support.loose import LOOSE

IP: Final = "ip"


def carry_out(ip: str, name: str, step: Step) -> None:
    """Bring the link to ``step.target``. If whom this node reached before is lost with it, the link gets its former
    state back: also if a kill comes in between, at the next start. Raises RestoreError or OSError."""
    setter = Setter(ip, name)
    reached = before()  # X1
    was, known = setter.seen(), link_look.known(name)
    failed: PactError | OSError | None = None
    moved_from = b""
    with _on_record(name, was, reached):
        try:
            moved_from = _to(setter, step.target, was, known)
        except (PactError, OSError) as exc:  # a part of it is done, and that may lock out, too
            failed = exc
        lost = why_lost(reached, TAKEN_S if goes(step).link else SETTLE_S)  # X1
        said = _back(setter, was, known, moved_from) if lost else ""
    if lost:
        raise RestoreError(f"{lost}; {said}")
    if failed is not None:
        raise failed


@contextmanager
def _on_record(name: str, was: Attrs | None, reached: Before) -> Iterator[None]:
    """Meanwhile a kill would leave a node that nobody reaches. Raises RestoreError if that cannot be recorded."""
    if not reached:
        yield
        return
    whom = {"parents": reached.parents, "gateways": reached.gateways}
    try:
        number = LOOSE.begin(STEPPED, name=name, was=was, **whom)
    except OSError as exc:
        raise RestoreError(f"its former state cannot be put on record: {exc.strerror}") from None
    try:
        yield
    finally:
        LOOSE.end(number)


def take_back(end: Mapping[str, Any]) -> Iterator[str]:
    """What the last run had on record: if nobody is reached, the link gets its former state back. Gives lines for the
    log. Raises ValueError, KeyError or TypeError for a record that is none."""
    parents = tuple((int(family), tuple(address), str(name)) for family, address, name in end["parents"])
    gateways = tuple((int(index), str(gateway)) for index, gateway in end["gateways"])
    name, was = canonical_name(end["name"]), end["was"]
    lost = why_lost(Before(parents, gateways), TAKEN_S)  # X1
    if lost:
        yield f"a step on the link {name} was cut off: {lost}; {_back(Setter(IP, name), was, None, b'')}"


def _to(setter: Setter, target: Attrs | None, was: Attrs | None, known: Known | None) -> bytes:
    """Returns the name that the link had meanwhile, if it got its own one back."""
    if target is None:
        if was is not None:
            setter.remove()
        return b""
    if was is None:
        link = renamed(setter.name)
        if link is not None:
            setter.name_back(link.name)
        else:
            setter.make(target)
        setter.bring(target, known)
        return link.name if link is not None else b""
    setter.bring(target, known)
    return b""


def _back(setter: Setter, was: Attrs | None, known: Known | None, moved_from: bytes) -> str:
    """The way back; says how it went."""
    try:
        if was is not None:
            if setter.seen() is None:
                setter.make(was)
            setter.bring(was, known)
        elif moved_from:
            setter.name_to(moved_from)
        elif setter.seen() is not None:
            setter.remove()
    except (PactError, OSError) as exc:
        why = exc.message if isinstance(exc, PactError) else exc.strerror
        return f"its former state could not be brought back: {why}"
    return "it has its former state again"
