"""Scenarios as readable transcripts: a command, ``----``, and its output.

``run_script`` executes the commands of a file against a ``World`` and returns the file with the real output, so that a
test can compare and a person can read. Commands::

    settings base=900s floor=60s          before ``start``
    start RESOURCE=VALUE ...              declared state; the machine has it too
    write WHO RESOURCE=VALUE ...          WHO is a name, or ``nobody`` for a writer that the kernel did not name
    see RESOURCE=VALUE                    the machine changed without an event; a rescan finds it
    WHO[/ROLE] OP key=value ...           a request (commit, rollback, extend, emergency_start, ...)
    use RESOURCE WHO | free RESOURCE      a consumer comes, goes
    stubborn RESOURCE                     restoring it fails
    advance 60s | kill | restart | reboot 10m | check | status
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pact.core.ops import AT_NODE, types_of
from pact.core.records import Record
from pact.core.settings import billionths
from pact.core.units import format_duration, parse_duration
from pact.model import NS_PER_S, Attrs, Declared, Holder, Owner
from pact.sim.parts import person
from pact.sim.world import EPOCH_NS, World

SEPARATOR = "----"


def run_script(text: str) -> str:
    """The transcript with its present outputs."""
    runner = Runner()
    out = []
    for comment, commands in _blocks(text):
        out += comment
        if commands:
            results: list[str] = []
            for command in commands:
                results += runner.run(command)
            out += [*commands, SEPARATOR, *(results or ["ok"]), ""]
    return "\n".join(out).rstrip("\n") + "\n"


def _blocks(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Comment lines and blank lines before, and the commands of, each block."""
    comment: list[str] = []
    commands: list[str] = []
    in_output = False
    for line in text.splitlines():
        if in_output:
            if line.strip():
                continue
            in_output = False
            yield comment, commands
            comment, commands = [], []
        elif line == SEPARATOR:
            in_output = True
        elif line.startswith("#") or not line.strip():
            comment.append(line)
        else:
            commands.append(line)
    yield comment, commands


class Runner:
    """Executes commands one after the other on one world."""

    def __init__(self) -> None:
        self.world = World()

    def run(self, command: str) -> list[str]:
        word, *rest = shlex.split(command)
        before = len(self.world.journal)
        handler = getattr(self, f"_do_{word}", None)
        said: list[str] = handler(rest) if handler is not None else self._ask(word, rest)
        return [self._line(r) for r in self.world.journal[before:]] + (said or [])

    # -- commands -----------------------------------------------------------------------------------------------

    def _do_settings(self, words: list[str]) -> None:
        for word in words:
            key, _, value = word.partition("=")
            changes: dict[str, Any]
            if key in ("base", "floor", "retry", "emergency"):
                changes = {f"{key}_ns": parse_duration(value)}
            elif key == "sensitivity":
                changes = {"sensitivity_n": billionths(float(value))}
            elif key == "max_resources":
                changes = {key: int(value)}
            else:
                changes = {key: value == "yes"}
            self.world.settings = replace(self.world.settings, **changes)

    def _do_start(self, words: list[str]) -> None:
        declared = {}
        for word in words:
            resource, value, requires = _parse(word)
            declared[resource] = Declared(value, requires=requires)
            self.world.machine[resource] = value
        self.world.start(declared)

    def _do_write(self, words: list[str]) -> None:
        who, *items = words
        owner = None if who == "nobody" else Owner(f"unit:{who}", who) if "." in who else person(who).owner
        for item in items:
            resource, value, _ = _parse(item)
            self.world.write(resource, value, owner)

    def _do_see(self, words: list[str]) -> None:
        for item in words:
            resource, value, _ = _parse(item)
            self.world.write(resource, value, None)

    def _do_silently(self, words: list[str]) -> None:
        for item in words:
            resource, value, _ = _parse(item)
            self.world.machine[resource] = value

    def _do_use(self, words: list[str]) -> None:
        resource, who = words
        self.world.holders[resource] = [Holder(resource, 42, "fd", resource, 1000, who, f"{who}-program")]

    def _do_free(self, words: list[str]) -> None:
        for resource in words:
            self.world.holders.pop(resource, None)

    def _do_stubborn(self, words: list[str]) -> None:
        self.world.stubborn.update(words)

    def _do_willing(self, words: list[str]) -> None:
        self.world.stubborn.difference_update(words)

    def _do_unreadable(self, words: list[str]) -> None:
        self.world.unreadable[words[0]] = " ".join(words[1:]) or "EIO"
        self.world.see(words[0])

    def _do_readable(self, words: list[str]) -> None:
        self.world.unreadable.pop(words[0])
        self.world.see(words[0])

    def _do_advance(self, words: list[str]) -> None:
        self.world.advance(parse_duration(words[0]))

    def _do_kill(self, words: list[str]) -> None:
        """``kill``, or ``kill N``: after N more effects."""
        if words:
            self.world.crash_after = int(words[0])
        else:
            self.world.crash()

    def _do_restart(self, words: list[str]) -> None:
        self.world.start()

    def _do_reboot(self, words: list[str]) -> None:
        self.world.reboot(parse_duration(words[0]))

    def _do_check(self, words: list[str]) -> list[str]:
        self.world.check()
        return ["replay agrees"]

    def _do_disk(self, words: list[str]) -> None:
        self.world.disk_full = words[0] == "full"

    def _do_status(self, words: list[str]) -> list[str]:
        state = self.world.node.state
        out = [f"{state.overall()} at {self._t(self.world.t_ns)}, magnitude {state.magnitude():.4f}"]
        for change in state.changes.values():
            deadline = state.deadline_ns(change)
            until = "no clock" if deadline is None else f"until {self._t(deadline)}"
            members = " ".join(f"{r}={_show(m.actual)}" for r, m in change.members.items())
            out.append(f"{change.id} {change.state} {change.owner.user} {until}: {members}")
        machine = " ".join(f"{r}={_show(v)}" for r, v in self.world.machine.items())
        return [*out, f"machine: {machine}"]

    def _ask(self, who: str, words: list[str]) -> list[str]:
        name, _, role = who.partition("/")
        op, *items = words
        args: dict[str, Any] = {}
        targets = []
        for item in items:
            key, sep, value = item.partition("=")
            if not sep:
                targets.append(item)
            elif key in ("by", "for", "ttl"):
                args[f"{key}_ns"] = parse_duration(value)
            elif key in ("all", "force", "dry_run", "take", "prune"):
                args[key] = value == "yes"
            elif ":" in key:
                resource, attrs, requires = _parse(item)
                args.setdefault("resources", {})[resource] = Declared(attrs, requires=requires).to_json()
            else:
                args[key] = value
        if op == "adopt":
            args["patterns"] = targets
        elif targets or "targets" in types_of(AT_NODE[op]):
            args["targets"] = targets
        reply = self.world.ask(op, person(name, role or "ops"), **args)
        if reply is None:
            return ["(no answer)"]
        text = f"-> {reply.exit_code}" + (f" {reply.message}" if reply.message else "")
        return [text]

    # -- output -------------------------------------------------------------------------------------------------

    def _t(self, t_ns: int) -> str:
        return f"{t_ns / NS_PER_S:.3f}".rstrip("0").rstrip(".") + "s"

    def _wall(self, text: str) -> str:
        from datetime import datetime

        return self._t(round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000 - EPOCH_NS)

    def _line(self, record: Record) -> str:
        data = record.data
        parts = [self._t(record.t_ns), record.type]
        for key in ("change", "into", "hold", "resource"):
            if data.get(key):
                parts.append(str(data[key]))
        if "actual" in data:
            parts.append(f"= {_show(data['actual'])}")
        for key in ("resources", "results", "restored", "left", "plan"):
            value = data.get(key)
            if isinstance(value, list) and value and isinstance(value[0], dict):
                parts.append("[" + " ".join(v["id"] for v in value) + "]")
            elif value:
                parts.append("[" + " ".join(value) + "]")
        if data.get("deadline"):
            parts.append("until " + self._wall(data["deadline"]))
        if "by_ns" in data:
            parts.append("by " + format_duration(data["by_ns"]))
        if data.get("reason"):
            parts.append(f"({data['reason']})")
        if data.get("holders"):
            parts.append("held by " + ", ".join(h["user"] for h in data["holders"]))
        if record.type == "drift_detected":
            parts.append("by " + data["owner"]["user"])
        if record.actor["via"] == "socket":
            parts.append("asked by " + record.actor["user"])
        return " ".join(parts)


def _parse(item: str) -> tuple[str, Attrs | None, tuple[str, ...]]:
    """``kind:name=value[<needed,needed]``; ``-`` is absent."""
    body, _, requires = item.partition("<")
    resource, _, value = body.rpartition("=")
    attrs = None if value == "-" else {"value": value}
    return resource, attrs, tuple(r for r in requires.split(",") if r)


def _show(attrs: Attrs | None) -> str:
    return "-" if attrs is None else str(attrs.get("value"))
