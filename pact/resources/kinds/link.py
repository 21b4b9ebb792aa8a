"""Network links. Attributes: ``state`` (up or down: what an administrator set, not the carrier), ``mtu``,
``addresses``; only if they are named: ``routes``, ``master`` (a bridge or bond), ``vlan``, ``bond`` and ``type``.

Only declared attributes are compared. Addresses that the kernel, a router or a DHCP client gave are no part of it.
They are read from the kernel by netlink, which costs no process, and set with iproute2. After each step the agent must
still reach whom it reached before: else the link gets its former state back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from pact.core.plan import Step
from pact.model import Attrs, Declared, Holder, Observation
from pact.resources.base import (
    HALF_N,
    LINKS,
    WHOLE_N,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    Source,
    common,
    export_common,
    refuse_unknown,
)
from pact.resources.support.link_place import PLACE, STEPPED
from pact.resources.support.loose import TAKEN_BACK_BY

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Adopted and committed without being named.
USUAL: Final = ("state", "mtu", "addresses")
NAMED: Final = ("routes", "master", "vlan", "bond", "type")


class Link(Kind):
    """``ip`` can be set for tests."""

    name = "link"
    dimension, severity = "network", 0.4
    off_loop = True
    volatile = True
    follows = ("module",)
    stirred_by = ("link", "module", "sysctl")
    spelling = "the name of a link, at most 15 bytes"

    def __init__(self, ip: str = "ip") -> None:
        self.ip = ip

    def canonical(self, name: str) -> str:
        from pact.resources.support.link_text import canonical_name

        return canonical_name(name)

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        from pact.resources.support.link_text import ATTRS, parsed, raw_name

        raw_name(name)
        if not isinstance(value, dict):
            raise ValueError("a link is a table with state, mtu, addresses")
        refuse_unknown(value, ATTRS)
        return Entry(Declared(parsed({k: v for k, v in value.items() if k in ATTRS}), **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        if declared.attrs is None:
            return {"state": "absent", **export_common(declared)}
        shown = {k: v for k, v in declared.attrs.items() if k in (*USUAL, *NAMED)}
        return {**shown, **export_common(declared)}

    # -- looking ----------------------------------------------------------------------------------------------------

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        from pact.resources.support.link_look import look

        return look(name)

    def many(self) -> Callable[[str], Observation]:
        from pact.resources.support.link_look import look_at_all

        return look_at_all()

    def source(self) -> Source | None:
        from pact.resources.support.link_source import Notifications

        return Notifications()

    def heeds(self, what: str, name: str = "") -> bool:
        return what == LINKS

    def keep_in(self, directory: str, boot_id: str) -> Sequence[str]:
        PLACE[:] = [directory, boot_id]
        return ()

    def taken(self, seen: Attrs, declared: Attrs | None) -> Attrs:
        wanted = USUAL if declared is None else tuple(k for k in (*USUAL, *NAMED) if k in declared)
        return {k: seen[k] for k in wanted if k in seen}

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if "state" in declared and not _conforms("state", declared["state"], actual):
            return WHOLE_N
        return 0 if all(_conforms(k, declared[k], actual) for k in (*USUAL, *NAMED) if k in declared) else HALF_N

    # -- its place in a plan ----------------------------------------------------------------------------------------

    def after(self, step: Step) -> tuple[str, ...]:
        attrs = step.target or step.actual or {}
        above = [attrs.get("master", ""), attrs.get("vlan", {}).get("parent", "")]
        return tuple(f"{self.name}:{name}" for name in above if name)

    # -- before and after -------------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        from pact.resources.support.link_checks import note, why_not

        why, said = why_not(self.ip, name, step.target, step.actual), note(name, step.actual)
        return Saved(f"{step.id}: {why}" if why else "", {"attrs": step.actual}, f"{step.id}: {said}" if said else "")

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        from pact.resources.support.link_step import carry_out

        carry_out(self.ip, name, step)

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        """Whatever it has of both states: a step is many commands."""
        if seen is None or step.actual is None or step.target is None:
            return super().half_done(step, seen)
        return all(_between(step.target[k], step.actual.get(k), seen.get(k)) for k in step.target)

    # -- who uses it ------------------------------------------------------------------------------------------------

    def disturbs(self, step: Step) -> bool:
        from pact.resources.support.link_users import goes

        return bool(goes(step))

    def in_use(self, name: str, step: Step) -> bool | None:
        return None if self.disturbs(step) else False

    def roots(self, name: str, step: Step) -> list[bytes]:
        from pact.resources.support.link_users import devices, goes

        return devices(name) if goes(step).link else []

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        from pact.resources.support.link_users import users

        return users(name, step, resource)

    # -- adopt ------------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        from pact.resources.support.link_adopt import names

        if not any(c in pattern for c in "*?["):
            return Found(iter([self.canonical(pattern)]), {}, exact=True)
        passed: dict[str, int] = {}
        return Found(names(pattern, passed), passed)

    def means(self, pattern: str, name: str) -> bool:
        from pact.resources.support.link_adopt import why_passed_by_name

        return fnmatchcase(name, pattern.replace("**", "*")) and (pattern == name or not why_passed_by_name(name))

    def misnamed(self, name: str) -> str:
        from pact.resources.support.link_checks import alternative

        own = alternative(name)
        return f"is another name of {self.name}:{own}" if own else ""

    def remarks(self) -> Callable[[str, Attrs], str]:
        from pact.resources.support.link_adopt import remark

        return remark


def _conforms(key: str, wanted: Any, actual: Attrs) -> bool:
    if key == "addresses" and key in actual:
        have = set(actual["addresses"])
        return have <= set(wanted) and set(wanted) <= have | set(actual.get("dynamic", ()))
    if key not in actual:  # of what a person means to apply, only a part may be said; what is seen has a type
        return "type" not in actual
    return bool(actual[key] == wanted)


def _between(target: Any, actual: Any, seen: Any) -> bool:
    """Whether a step from ``actual`` to ``target`` passes through this."""
    if isinstance(target, list):
        return set(seen or ()) <= {*target, *(actual or ())}
    return seen in (target, actual)


def _take_back(end: Mapping[str, Any]) -> Iterator[str]:
    from pact.resources.support.link_step import take_back

    yield from take_back(end)


TAKEN_BACK_BY[STEPPED] = _take_back
KIND: Final = Link()
