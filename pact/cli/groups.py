"""Requests to the root itself: the common parts of groups, holds of the fleet and nodes, and how they are shown."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pact.cli.arguments import missing_allowed, refuse_beside
from pact.cli.command import RootRequest
from pact.cli.names import few
from pact.cli.render import View, clean, emit, ends, local_time, put, spoken
from pact.cli.roots import ask, fold, making_sense, say_failed
from pact.core.units import format_duration
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cli.render import Lines
    from pact.cluster.client import Result


def ask_root(args: argparse.Namespace, asked: RootRequest) -> int:
    """Ask the root, and show its answer. Returns the exit code."""
    _, result = ask(args, asked.op, asked.fields, asked.nodes)
    with making_sense():
        if args.json:
            emit(
                {
                    "v": 1,
                    "nodes": {},
                    **_said(result),
                    **asked.document(result.result),
                    "failed": result.failed,
                    **({"hint": result.hint} if result.hint and result.exit else {}),
                }
            )
            return result.exit
        if result.result:
            put(asked.show(result.result, View.here()))
    sys.stdout.flush()
    if result.message:
        print(f"pact: {spoken(result.message)}", file=sys.stderr)
        if result.hint:
            print(f"      {clean(result.hint)}", file=sys.stderr)
    say_failed({names: why for names, why in result.failed.items() if why not in result.message})
    return result.exit


def _said(result: Result) -> dict[str, Any]:
    """What the root says of the request: ``error``, or ``note`` if it was done. ``message``, which existed first, is
    the group's own message if there is a group.
    """
    return {"message": result.message, "error" if result.exit else "note": result.message} if result.message else {}


def settle(args: argparse.Namespace, group: str, **fields: Any) -> RootRequest:
    """A command with this name settles a whole group on all its nodes. Raises UsageError."""
    refuse_beside(args, f"{group} is settled on all its nodes", "nodes", "all")
    asked = {"group": group, "allow_missing": missing_allowed(args), **fields}
    return RootRequest(f"group_{args.command}", asked, None, show_group, each_node)


# -- as JSON ----------------------------------------------------------------------------------------------------------


def each_node(result: Mapping[str, Any]) -> dict[str, Any]:
    """The form of every command for many nodes: one object for each node, and the folded set beside it."""
    from pact.cluster.nodesets import NodeSets

    members = result.get("members", {})
    nodes = {n: {"state": state} for state, names in members.items() for n in NodeSets().expand(names)}
    return {**result, "nodes": nodes, "nodeset": result.get("nodes", "")}


def heard(result: Mapping[str, Any]) -> dict[str, Any]:
    """How many nodes know of it; none is named."""
    return {**result, "nodes": {}, "heard": result.get("nodes", 0)}


# -- for people -------------------------------------------------------------------------------------------------------


def show_group(result: Mapping[str, Any], view: View) -> Lines:
    yield f"{clean(result['group'])} {clean(result['state'])}: {clean(result['nodes'])}"
    timed = result.get("remaining_s") and view.terminal
    left = f", {format_duration(int(result['remaining_s']) * NS_PER_S)} left" if timed else ""
    more = f" and {len(result['resources']) - 5} more" if len(result["resources"]) > 5 else ""
    yield f"  by {clean(result['owner'])}{left}: {', '.join(map(clean, result['resources'][:5]))}{more}"
    if result.get("message"):
        yield f"  {clean(result['message'])}"
    for state, names in result["members"].items():
        yield f"  {clean(state)}: {clean(names)}"
    for line in _whys(result, view):
        yield f"  {line}"


def _whys(result: Mapping[str, Any], view: View) -> list[str]:
    """The nodes that say no, and why."""
    by_why: dict[str, list[str]] = {}
    for name, entry in result["blocked"].items():
        by_why.setdefault(view.spoken(entry["why"]), []).append(name)
    return [f"{fold(nodes)}: {why}" for why, nodes in by_why.items()]


def show_holds(what: str, holds: Iterable[Mapping[str, Any]], view: View) -> Lines:
    for hold in holds:
        until = view.until(hold["ends"])
        yield f"{what}: {clean(hold['hold'])} by {clean(hold['owner'])}{until}: {clean(hold['reason'])}"


def show_groups(result: Mapping[str, Any], view: View) -> Lines:
    """Each group in full."""
    yield from show_holds("the whole fleet is held", result.get("holds", ()), view)
    if not result["groups"]:
        yield "no group is open"
    for group in result["groups"]:
        yield from show_group(group, view)


def show_table(result: Mapping[str, Any], view: View) -> Lines:
    """One line for each group; ``pact groups g7`` shows one in full."""
    if not result["groups"]:
        yield from show_groups(result, view)
        return
    yield from show_holds("the whole fleet is held", result.get("holds", ()), view)
    yield from _table(result["groups"], view)
    for group in result["groups"]:
        for line in _whys(group, view):
            yield f"{clean(group['group'])} on {line}"


def _table(listed: Iterable[Mapping[str, Any]], view: View) -> Lines:
    from rich.cells import cell_len

    from pact.cli.wrapping import cut

    rows = [("group", "state", "owner", "end", "members", "resources")]
    for g in listed:
        members = ", ".join(f"{state} {clean(names)}" for state, names in g["members"].items())
        until = ends(g.get("deadline"), g.get("remaining_s")).removeprefix(" until ")
        end = local_time(g["deadline"]) if view.terminal and g.get("deadline") else until
        rows.append(
            (
                clean(g["group"]),
                clean(g["state"]),
                clean(g["owner"]),
                end or "-",
                members,
                few(map(clean, g["resources"]), 3),
            )
        )
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]) - 2)]
    for row in rows:
        cells = [text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=False)]
        line = "  ".join([*cells, *row[len(widths) :]])
        yield cut(line, shutil.get_terminal_size().columns) if view.terminal else line
