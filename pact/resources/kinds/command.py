"""Checks that a site declares as commands: ``observe`` prints the state, ``restore`` brings it about.

The state (the attribute ``value``) alone is compared; the other attributes say how to look, so that the journal knows
it. What a question gets is
what the command said at its last run: asking runs nothing (``command_watch``). A command is run only after its
declaration is on record, as root, with a clean environment and within limits (``command_run``). Without ``restore``
nothing can be done about a drift: a person must.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.core.units import format_duration, parse_duration
from pact.errors import RestoreError
from pact.model import NS_PER_S, Attrs, Declared, Holder, Observation
from pact.resources.base import (
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
from pact.resources.support.command_run import OUTPUT_MAX, Failed, Order, run, words_of
from pact.resources.support.command_watch import COMMANDS, Commands, Definition, News

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
KEYS: Final = frozenset({"observe", "state", "restore", "timeout", "every", "shell", "secret"})
ORDERS: Final = ("observe", "restore", "users")
TIMEOUT_NS: Final = 10 * NS_PER_S
TIMEOUT_MAX_NS: Final = 600 * NS_PER_S
EVERY_NS: Final = 300 * NS_PER_S
EVERY_MIN_NS: Final = NS_PER_S
EVERY_MAX_NS: Final = 86400 * NS_PER_S
#: What the command for consumers said counts for this long: who asks again and again does not run it each time. A
#: decision asks anew.  # S3
USERS_NS: Final = 10 * NS_PER_S
PIDS_MAX: Final = 1000
A_PERSON: Final = "a person must mend it"
NOT_ON_RECORD: Final = "it runs when its declaration is on record, and what it says then counts"


class Command(Kind):
    name = "command"
    dimension, severity = "kernel", 0.1
    volatile = False
    removable = False
    verbs = ("",)  # its ``restore``
    spelling = "letters, digits, '_', '-' and '.'"
    all_secret = True

    def __init__(self, commands: Commands = COMMANDS) -> None:
        self._commands = commands

    def canonical(self, name: str) -> str:
        if not NAME.match(name):
            raise ValueError(f"{name!r} is no name of a command: letters, digits, '_', '-' and '.', at most 64")
        return name

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self.canonical(name)
        if not isinstance(value, dict):
            raise ValueError('a command is a table: observe = ["uname", "-r"], state = "6.12.0"')
        refuse_unknown(value, KEYS)
        shell = _flag(value, "shell")
        state = value.get("state")
        if isinstance(state, bool) or not isinstance(state, int | str):
            raise ValueError("state, which observe is to print, is missing, or is no text and no number")
        state = str(state).strip()
        if len(state.encode()) >= OUTPUT_MAX:
            raise ValueError(f"state has {OUTPUT_MAX} bytes or more")
        if "observe" not in value:
            raise ValueError("observe is missing: the command that prints the state")
        attrs: Attrs = {"value": state, "observe": list(words_of(value["observe"], shell, "observe"))}
        if "restore" in value:
            attrs["restore"] = list(words_of(value["restore"], shell, "restore"))
        beside = dict(value)
        if _is_command(beside.get("consumers")):
            attrs["users"] = list(words_of(beside.pop("consumers"), shell, "consumers"))
        if shell:
            attrs["shell"] = True
        if _flag(value, "secret"):
            attrs["secret"] = True
        for key, lowest, highest in (("timeout", 1, TIMEOUT_MAX_NS), ("every", EVERY_MIN_NS, EVERY_MAX_NS)):
            if key in value:
                attrs[f"{key}_ns"] = _within(key, value[key], lowest, highest)
        return Entry(Declared(attrs, **common(beside)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        attrs = declared.attrs or {}
        shell = bool(attrs.get("shell"))
        out: dict[str, Any] = {"observe": _written(attrs["observe"], shell), "state": attrs["value"]}
        for key, named in (("restore", "restore"), ("users", "consumers")):
            if key in attrs:
                out[named] = _written(attrs[key], shell)
        for key in ("timeout", "every"):
            if f"{key}_ns" in attrs:
                out[key] = _duration(attrs[f"{key}_ns"])
        out |= {key: True for key in ("shell", "secret") if attrs.get(key)}
        beside = export_common(declared)
        return {**beside, **out} if "users" in attrs else {**out, **beside}

    # -- looking --------------------------------------------------------------------------------------------------

    def learn(self, name: str, attrs: Attrs | None) -> None:
        self._commands.learn(name, None if attrs is None else _definition(attrs))

    def not_yet(self, name: str, target: Attrs | None) -> str:
        known = self._commands.definition(name)
        if target is None:
            return ""
        return "" if known is not None and known.orders == _definition(target).orders else NOT_ON_RECORD

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        """``keep``: it is looked at for a decision, off the loop: it runs now."""
        return self._commands.last(name) if keep is None else self._commands.look(name)

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        return self._commands.look(name)

    def presence(self, name: str) -> Observation:
        return self._commands.last(name)

    def source(self) -> Source | None:
        return News(self._commands)

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        return 0 if declared["value"] == actual["value"] else WHOLE_N

    def secret(self, attrs: Attrs | None) -> bool:
        return bool(attrs and attrs.get("secret"))

    def meant_secret(self, attrs: Attrs | None) -> bool:
        return self.secret(attrs)

    def text(self, attrs: Attrs | None, blobs: Blobs) -> str | None:
        return None if attrs is None or "\n" not in attrs["value"] else str(attrs["value"]) + "\n"

    # -- acting ---------------------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        save = {"attrs": step.actual}
        if step.target is None or "restore" not in step.target:
            return Saved(f"{step.id}: {A_PERSON}", save)
        return Saved("", save)

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        order = None if step.target is None else _definition(step.target).orders.get("restore")
        if order is None:
            raise RestoreError(A_PERSON)
        try:
            run(order, may_stay=True)
        except Failed as exc:
            raise RestoreError(f"restore: {exc}") from None
        finally:
            self._commands.look(name)

    def tell(self, name: str, verb: str, declared: Attrs | None) -> None:
        """Run its ``restore``.  # R14"""
        if declared is None:
            raise RestoreError("it is not declared")
        self.restore(name, Step(f"command:{name}", declared, None), lambda _: None)

    def in_use(self, name: str, step: Step) -> bool | None:
        """Its command is asked, if it has one: for a decision, and so anew."""
        known = self._commands.definition(name)
        self._commands.users.pop(name, None)
        return None if known is not None and "users" in known.orders else False

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        """The processes that the command for consumers prints. If it cannot say, the resource counts as in use."""
        known = self._commands.definition(name)
        if known is None or "users" not in known.orders:
            return []
        now_ns, last = time.monotonic_ns(), self._commands.users.get(name)
        if last is not None and now_ns - last[0] < USERS_NS:
            return last[1]
        try:
            found = [Holder(resource, pid, "command", name) for pid in _pids(run(known.orders["users"]))]
            found = [h for h in found if os.path.exists(f"/proc/{h.pid}")]
        except Failed as exc:
            found = [Holder(resource, 0, "unknown", f"the command for consumers: {exc}")]
        self._commands.users[name] = time.monotonic_ns(), found
        return found

    # -- adopt ----------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        if not any(c in pattern for c in "*?["):
            self.canonical(pattern)
            return Found(iter([pattern]), {}, exact=True)
        names = [n for n in self._commands.names() if fnmatchcase(n, pattern.replace("**", "*"))]
        return Found(iter(()), {"is declared, and never found on a machine": len(names)} if names else {})

    def newcomers(self, pattern: str) -> set[str]:
        return set()


def _definition(attrs: Attrs) -> Definition:
    """How it looks and acts by these declared attributes."""
    shell, timeout_ns = bool(attrs.get("shell")), int(attrs.get("timeout_ns", TIMEOUT_NS))
    secret = bool(attrs.get("secret"))
    orders: dict[str, Order] = {
        key: Order(tuple(attrs[key]), shell, timeout_ns, secret) for key in ORDERS if key in attrs
    }
    how = {key: value for key, value in attrs.items() if key != "reads"}
    return Definition(how, orders, int(attrs.get("every_ns", EVERY_NS)))


def _is_command(value: Any) -> bool:
    """Whether ``consumers`` is a command, and not a list of rules."""
    if isinstance(value, str):
        return True
    rules = ("open", "none")
    return isinstance(value, list) and any(
        isinstance(item, str) and item not in rules and not item.startswith(("exec:", "cgroup:")) for item in value
    )


def _pids(text: str) -> list[int]:
    """Raises Failed for anything but pids, one a line."""
    lines = text.split()
    if len(lines) > PIDS_MAX or not all(
        line.isascii() and line.isdigit() and 0 < int(line) < 1 << 22 for line in lines
    ):
        raise Failed(f"it printed something else than at most {PIDS_MAX} pids, one a line")
    return [int(line) for line in lines]


def _flag(value: Mapping[str, Any], key: str) -> bool:
    given = value.get(key, False)
    if not isinstance(given, bool):
        raise ValueError(f"{key} is true or false")
    return given


def _within(key: str, text: Any, lowest: int, highest: int) -> int:
    ns = parse_duration(text)
    if not lowest <= ns <= highest:
        raise ValueError(f"{key} = {text!r}: at least {format_duration(lowest)}, at most {format_duration(highest)}")
    return ns


def _duration(ns: int) -> str:
    return f"{ns // NS_PER_S}s" if ns % NS_PER_S == 0 else f"{ns // 1_000_000}ms"


def _written(words: list[str], shell: bool) -> Any:
    return words[0] if shell else list(words)


KIND: Final = Command()
