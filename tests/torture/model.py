"""The model of one node: what is declared, what may move it, and which moves of the machine an agent may make.

It is fed with what the driver sees (``sight``) and with what the agent answers, and says what contradicts itself. It asks
nobody and touches nothing.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sight import ABSENT, Look, Thing

#: Exit codes after which nothing that is declared may have changed: usage, denied, conflict, unreachable, blocked.
NOTHING = (2, 3, 4, 5, 10)
DECLARED = "declared, but not converged"  # whatever it says of the converging
FINAL = "nothing was"  # changed, applied, committed: the answer says so in words
EARLIER_STEPS = 5
OWN_NAMES = (".pact-", "kept.pact-", "kept.")


class FoundError(Exception):
    """A contradiction: what is wrong, in words."""


def declared_of(text: str) -> dict[str, Thing]:
    """An export as ``{resource: entry}``."""
    out: dict[str, Thing] = {}
    for kind, entries in tomllib.loads(text).items():
        if kind == "track":
            continue
        for name, entry in entries.items():
            out[f"{kind}:{name}"] = entry if isinstance(entry, dict) else {"value": entry}
    return out


def conforms(resource: str, declared: Thing, look: Look) -> bool:
    """Whether what is there is what is declared. Only what the declaration names is compared."""
    actual = look.get(resource, ABSENT)
    kind = resource.partition(":")[0]
    if kind == "sysctl":
        return actual is ABSENT or " ".join(str(declared["value"]).split()) == actual["value"]
    wanted = declared.get("type")
    if kind == "mount":
        if wanted == "absent":
            return actual is ABSENT
        return actual is not ABSENT and _mounted(declared, actual)
    if "symlink" in declared:
        return actual["type"] == "symlink" and actual["target"] == declared["symlink"]
    if wanted in ("absent", "directory"):
        return actual["type"] == wanted and _owned(declared, actual)
    if actual["type"] != "file" or not _owned(declared, actual):
        return False
    return "content" not in declared or declared["content"].encode() == actual["content"]


def _owned(declared: Thing, actual: Thing) -> bool:
    return all(k not in declared or declared[k] == actual.get(k) for k in ("mode", "owner", "group"))


def _mounted(declared: Thing, actual: Thing) -> bool:
    if declared.get("fstype", actual["fstype"]) != actual["fstype"]:
        return False
    if declared.get("source", actual["source"]) != actual["source"] and declared.get("fstype") == "tmpfs":
        return False
    return all(_has(o, actual["options"]) for o in declared.get("options", ()))


def _has(option: str, options: Collection[str]) -> bool:
    """What the kernel leaves out where it is usual is there as long as its contrary is not."""
    usual = {"dev": "nodev", "exec": "noexec", "suid": "nosuid", "rw": "ro"}
    return option in options or (option in usual and usual[option] not in options)


def is_forwarding(resource: str) -> bool:
    """The sysctls of this switch, for the machine, for all links and for each, move each other, and redirects with them."""
    return resource.endswith((".ip_forward", ".forwarding", ".accept_redirects"))


@dataclass
class Model:
    """What must hold from one step to the next."""

    declared: dict[str, Thing] = field(default_factory=dict)
    earlier: dict[str, list[tuple[int, Thing]]] = field(default_factory=dict)  # what was declared, up to which step
    step: int = 0
    may_move: set[str] = field(default_factory=set)  # patterns whose declaration a request may have changed since
    late: set[str] = field(default_factory=set)  # the same of requests that wait for what hangs
    passing: set[str] = field(default_factory=set)  # declared by an apply or an enforced pattern only for a while
    removable: set[str] = field(default_factory=set)  # undeclared things that a request has named
    enforced: set[str] = field(default_factory=set)  # patterns that are or were enforced
    owed: dict[str, str] = field(default_factory=dict)  # digests of what was overwritten: where that lay
    had: dict[str, list[Thing]] = field(default_factory=dict)  # what each has been
    redone: int | None = None  # the step of a redo that was not answered: it may bring back whatever has been there

    def answered(self, exit_code: int | None, message: str, patterns: Collection[str]) -> None:
        """A request that could move the declaration of ``patterns`` was answered (``None``: the answer was lost)."""
        if exit_code in NOTHING or (exit_code == 1 and FINAL in message and DECLARED not in message):
            return
        self.may_move.update(patterns)

    def note(self, look: Look) -> None:
        """Remember what has been there."""
        for r, thing in look.items():
            had = self.had.setdefault(r, [])
            if thing not in had:
                had.append(thing)

    def now_declared(self, declared: dict[str, Thing]) -> list[str]:
        """Compare with what was declared; returns what moved. Raises FoundError where no request could have moved it."""
        moved = [r for r in {*declared, *self.declared} if declared.get(r) != self.declared.get(r)]
        wrong = [r for r in moved if not self._may(r, declared)]
        if wrong:
            r = sorted(wrong)[0]
            raise FoundError(
                f"what is declared changed without a request that succeeded: {r} from "
                f"{self.declared.get(r)} to {declared.get(r)} ({len(wrong)} in all)"
            )
        for r in moved:
            if r in self.declared:
                self.bound(r, self.declared[r])
            if declared.get(r, {}).get("type") != "absent":
                self.passing.discard(r)
        self.declared = declared
        self.may_move.clear()
        return moved

    def _may(self, resource: str, declared: Mapping[str, Thing]) -> bool:
        if any(fnmatch.fnmatchcase(resource, p.replace("**", "*")) for p in self.may_move | self.late):
            return True
        if resource in self.passing and resource not in declared:
            return True
        absent = {"type": "absent"}
        if resource.startswith("mount:") and declared.get(resource, absent) == absent == self.declared.get(
            resource, absent
        ):
            return True  # R7: over what is declared nothing shall be mounted
        if resource in self.removable or any(
            fnmatch.fnmatchcase(resource, p.replace("**", "*")) for p in self.enforced
        ):
            return declared.get(resource, absent) == absent and self.declared.get(resource, absent) == absent
        return False

    def moved(self, before: Look, after: Look) -> list[str]:
        """What moved while only the agent was at work, and may not have: neither towards what is declared, nor named by a
        request. What was overwritten is owed from now on: it must be in the store."""
        return [r for r in {*before, *after} if before.get(r) != after.get(r) and not self._move(r, before, after)]

    def _move(self, resource: str, before: Look, after: Look) -> bool:
        kind, _, name = resource.partition(":")
        if os.path.basename(name).startswith(OWN_NAMES):
            return True
        values = self._wanted(resource)
        if any(conforms(resource, v, after) for v in values):
            return True
        if kind == "sysctl" and self._dragged(resource, before, after):
            return True
        if kind == "file" and after.get(resource, ABSENT)["type"] == "directory" and self._on_the_way(resource):
            return True
        if kind == "file" and (self._by_mount(name, before, after) or self._through_link(name, before, after)):
            return True
        if kind == "mount" and not values:  # something that was mounted over what is declared
            return resource not in after or resource in before
        if kind == "mount" and any(v.get("type") == "absent" for v in values) and resource in after:  # one of several
            return bool(after[resource]["depth"] < before.get(resource, {}).get("depth", 0))
        if (
            kind == "file"
            and resource not in after
            and any(fnmatch.fnmatchcase(resource, p.replace("**", "*")) for p in self.enforced)
        ):
            return True  # what is new there is drift from absent; its content is owed
        if self.redone is not None and after.get(resource, ABSENT) in [ABSENT, *self.had.get(resource, ())]:
            return True
        return resource in self.removable and resource not in after

    def _wanted(self, resource: str) -> list[Thing]:
        """What it may be brought to: what is declared, and what was or was applied lately."""
        values = [v for _, v in self.earlier.get(resource, ())]
        return [*values, self.declared[resource]] if resource in self.declared else values

    def _dragged(self, resource: str, before: Look, after: Look) -> bool:
        """The kernel moved this switch with another that was brought to what it may be brought to: where the declaration
        contradicts itself it cannot be as declared in all its places. That is drift, and must be told."""
        others = [r for r in {*self.declared, *self.earlier} if is_forwarding(r) and r != resource]
        return is_forwarding(resource) and any(
            before.get(r) != after.get(r) and any(conforms(r, v, after) for v in self._wanted(r)) for r in others
        )

    def _on_the_way(self, resource: str) -> bool:
        """Something declared lies below this directory: it is made where it is missing (R5)."""
        return any(r.startswith(f"{resource}/") and d.get("type") != "absent" for r, d in self.declared.items())

    def _through_link(self, name: str, before: Look, after: Look) -> bool:
        """A directory above was brought back to the link that it is declared to be: this is what the link leads to. Or a
        link was replaced by the directory: what it led to is seen here no more, and still where it was."""
        above = os.path.dirname(name)
        while above != "/":
            r = f"file:{above}"
            declared = self._wanted(r)
            was_link = before.get(r, ABSENT)["type"] == "symlink"
            if before.get(r) != after.get(r) and any(
                ("symlink" in d or was_link) and conforms(r, d, after) for d in declared
            ):
                return True
            above = os.path.dirname(above)
        return False

    def _by_mount(self, name: str, before: Look, after: Look) -> bool:
        """A mount at or above the path came or went."""
        points = [
            r.partition(":")[2] for r in {*before, *after} if r.startswith("mount:") and before.get(r) != after.get(r)
        ]
        return any(name == p or name.startswith(f"{p}/") for p in points)

    def owes(self, before: Look, after: Look) -> dict[str, bytes]:
        """Contents that were there and are nowhere any more, nor hidden below a mount that came: where they lay."""
        came = [
            r.removeprefix("mount:")
            for r, t in after.items()
            if r.startswith("mount:") and t["depth"] > before.get(r, {}).get("depth", 0)
        ]
        left = {t["content"] for t in after.values() if t.get("type") == "file"}
        return {
            r: t["content"]
            for r, t in before.items()
            if t.get("type") == "file"
            and after.get(r) != t
            and t["content"]
            and t["content"] not in left
            and not any(r.startswith(f"file:{point}/") for point in came)
        }

    def drifted(self, look: Look) -> list[str]:
        """Declared things that are not as declared."""
        return sorted(r for r, d in self.declared.items() if not conforms(r, d, look))

    def bound(self, resource: str, value: Thing) -> None:
        """For some steps this value may be what the agent restores, or what an apply made."""
        self.earlier.setdefault(resource, []).append((self.step, value))

    def begin(self, step: int, hangs: bool) -> None:
        """Another step: what was declared long ago binds nobody any more. A request that waits for what ``hangs`` may be
        carried out when that answers again: until then nothing is long ago."""
        self.step = step
        if hangs:
            self.earlier = {r: [(step, v) for _, v in kept] for r, kept in self.earlier.items()}
            self.redone = step if self.redone is not None else None
        if self.redone is not None and step - self.redone > EARLIER_STEPS:
            self.redone = None
        fresh = {r: [(n, v) for n, v in kept if step - n <= EARLIER_STEPS] for r, kept in self.earlier.items()}
        self.earlier = {r: kept for r, kept in fresh.items() if kept}


def unknown_drift(drifted: Collection[str], status: Mapping[str, Any]) -> list[str]:
    """What has drifted and the agent does not say: in no change, and not unreadable."""
    known = {r for c in status["changes"] for r in c["resources"]}
    known |= set(status["unreadable_resources"])
    return [r for r in drifted if r not in known]
