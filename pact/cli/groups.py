"""What the root itself decides: groups, the fleet's stop, which nodes there are."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from pact.cli.names import few
from pact.cli.render import clean, emit, ends, local_time, on_terminal, say, spoken, until
from pact.cli.roots import Asked, Recorder, ask, fold, making_sense, say_failed
from pact.core.units import format_duration, parse_duration
from pact.errors import UsageError
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cluster.client import Result

MANY: Final = {"apply": "many nodes (--nodes)"}
#: Flags that say nothing to a single node, and what each command wants beside them.
GROUP_ONLY: Final = {
    "require": MANY,
    "allow_missing": {**MANY, **dict.fromkeys(("commit", "rollback", "extend"), "a group that is committed (g7)")},
}


def refuse_here(args: argparse.Namespace) -> None:
    """Raises UsageError for what only many nodes can mean: who forgot ``--nodes`` must not change this machine."""
    for flag, needs in GROUP_ONLY.items():
        if getattr(args, flag, None) is not None:
            name = "--" + flag.replace("_", "-")
            raise UsageError(
                f"{args.command}: {name} is for {needs[args.command]}; nothing was changed",
                f"name them, or leave {name} out to mean this node alone",
            )


def _each_node(result: dict[str, Any]) -> dict[str, Any]:
    """As every command for many nodes: an object a node; the folded set stands beside it."""
    from pact.cluster.nodesets import NodeSets

    members = result.get("members", {})
    nodes = {n: {"state": state} for state, names in members.items() for n in NodeSets().expand(names)}
    return {**result, "nodes": nodes, "nodeset": result.get("nodes", "")}


def _heard(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "nodes": {}, "heard": result.get("nodes", 0)}


def _said(result: Result) -> dict[str, Any]:
    """What the root says of the request: ``error``, or ``note`` if it was done. ``message``, which came first, is a
    group's own where there is one.
    """
    return {"message": result.message, "error" if result.exit else "note": result.message} if result.message else {}


def with_root(
    args: argparse.Namespace,
    op: str,
    request: dict[str, Any],
    nodes: str | None,
    show: Callable[[dict[str, Any]], None],
    for_json: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> int:
    """Ask the root itself, and show what it says."""
    given = argparse.Namespace(**{**vars(args), "nodes": nodes})
    _, result = ask(given, op, request)
    with making_sense():
        if args.json:
            emit(
                {
                    "v": 1,
                    "nodes": {},
                    **_said(result),
                    **for_json(result.result),
                    "failed": result.failed,
                    **({"hint": result.hint} if result.hint and result.exit else {}),
                }
            )
            return result.exit
        if result.result:
            show(result.result)
    sys.stdout.flush()
    if result.message:
        print(f"pact: {spoken(result.message)}", file=sys.stderr)
        if result.hint:
            print(f"      {clean(result.hint)}", file=sys.stderr)
    say_failed({names: why for names, why in result.failed.items() if why not in result.message})
    return result.exit


def groups(args: argparse.Namespace) -> int:
    return with_root(
        args,
        "groups",
        {"group": args.group, "all": args.all},
        None,
        _show_groups if args.group else _show_table,
        lambda r: {**r, "groups": [_each_node(g) for g in r.get("groups", ())]},
    )


def nodes(args: argparse.Namespace) -> int:
    if args.forget is None:
        return with_root(args, "nodes", {}, args.nodes, _show_nodes)
    refuse_beside(args, "--forget names its nodes itself", "nodes")
    return with_root(args, "nodes_forget", {}, args.forget, lambda r: say(f"forgotten: {clean(r['forgotten'])}"))


def apply(args: argparse.Namespace) -> int:
    from pact.cli import declare

    if args.nodes is None:
        raise UsageError("a group needs --nodes NODESET")
    args.socket = Recorder()
    try:
        declare.apply(args)
    except Asked as asked:
        request = {**asked.args_, "allow_missing": _allow(args), "require_all": args.require == "all"}
        return with_root(args, "apply", request, args.nodes, _show_applied, _each_node)
    raise AssertionError("apply asks nothing")


def _allow(args: argparse.Namespace) -> int | str | None:
    text: str | None = args.allow_missing
    return int(text) if text is not None and text.isdigit() else text


def refuse_beside(args: argparse.Namespace, what: str, *flags: str) -> None:
    """Raises UsageError for what would be passed over in silence: a person who means one node must not settle all."""
    for flag in flags:
        if getattr(args, flag, None) not in (None, False):
            raise UsageError(f"{what}: --{flag.replace('_', '-')} does not go with it")


def settle(args: argparse.Namespace, group: str) -> int:
    refuse_beside(args, f"{group} is settled on all its nodes", "nodes", "all")
    if args.command != "rollback":
        refuse_beside(args, f"{args.command} of a group", "force")
    if args.command != "commit":
        refuse_beside(args, f"{args.command} of a group", "allow_missing")
    request: dict[str, Any] = {"group": group, "allow_missing": _allow(args)}
    if args.command == "extend":
        try:
            request["by_ns"] = parse_duration(args.words[-1])
        except ValueError as exc:
            raise UsageError(str(exc), "pact extend GROUP D, the duration last") from None
    elif args.command == "commit":
        if args.message is None:
            raise UsageError("commit of a group needs -m TEXT: why")
        request |= {"message": args.message, "ttl_ns": args.ttl}
    else:
        if args.dry_run or args.to is not None:
            raise UsageError("a group is rolled back whole: --dry-run and --to are for single nodes")
        request["force"] = args.force
    return with_root(args, f"group_{args.command}", request, None, _show_group, _each_node)


def fleet_hold(args: argparse.Namespace) -> int:
    refuse_beside(args, "--all is every node", "nodes")
    if args.action == "place":
        if args.change is not None:
            raise UsageError("--all stops everything: name no change beside it")
        request = {"reason": args.reason, "for_ns": args.for_ns}
        return with_root(
            args,
            "fleet_hold",
            request,
            None,
            lambda r: say(f"{r['hold']}: nothing rolls back anywhere{until(r['ends'])}; {r['nodes']} nodes know"),
            _heard,
        )
    return with_root(args, "fleet_release", {"hold": args.name}, None, _show_released, _heard)


# -- pages ----------------------------------------------------------------------------------------------------------


def _show_applied(result: dict[str, Any]) -> None:
    if result.get("dry_run"):
        say(f"would change up to {result['changes']} resources on {result['count']} nodes")
    elif result.get("group"):
        window = f", to be committed{until(result['deadline'])}" if result.get("deadline") else ""
        say(f"{result['group']}: applied on {clean(result['nodes'])}{window}")


def _show_group(result: dict[str, Any]) -> None:
    say(f"{clean(result['group'])} {clean(result['state'])}: {clean(result['nodes'])}")
    timed = result.get("remaining_s") and on_terminal()
    left = f", {format_duration(int(result['remaining_s']) * NS_PER_S)} left" if timed else ""
    say(
        f"  by {clean(result['owner'])}{left}: {', '.join(map(clean, result['resources'][:5]))}"
        + (f" and {len(result['resources']) - 5} more" if len(result["resources"]) > 5 else "")
    )
    if result.get("message"):
        say(f"  {clean(result['message'])}")
    for state, names in result["members"].items():
        say(f"  {clean(state)}: {clean(names)}")
    for line in _whys(result):
        say(f"  {line}")


def _whys(result: dict[str, Any]) -> list[str]:
    """Who says no, and why."""
    by_why: dict[str, list[str]] = {}
    for name, entry in result["blocked"].items():
        by_why.setdefault(spoken(entry["why"]), []).append(name)
    return [f"{fold(nodes)}: {why}" for why, nodes in by_why.items()]


def _show_released(result: dict[str, Any]) -> None:
    say(f"released {', '.join(map(clean, result['released']))}; {result['nodes']} nodes know")
    _show_holds("still held", result.get("held", ()))


def _show_holds(what: str, holds: Iterable[dict[str, Any]]) -> None:
    for hold in holds:
        say(f"{what}: {clean(hold['hold'])} by {clean(hold['owner'])}{until(hold['ends'])}: {clean(hold['reason'])}")


def _show_groups(result: dict[str, Any]) -> None:
    _show_holds("the whole fleet is held", result.get("holds", ()))
    if not result["groups"]:
        say("no group is open")
    for group in result["groups"]:
        _show_group(group)


def _show_table(result: dict[str, Any]) -> None:
    if not result["groups"]:
        _show_groups(result)
        return
    _show_holds("the whole fleet is held", result.get("holds", ()))
    _table(result["groups"])
    for group in result["groups"]:
        for line in _whys(group):
            say(f"{clean(group['group'])} on {line}")


def _table(listed: Iterable[dict[str, Any]]) -> None:
    """A line a group; ``pact groups g7`` shows one whole."""
    from rich.cells import cell_len

    from pact.cli.wrapping import cut

    rows = [("group", "state", "owner", "end", "members", "resources")]
    for g in listed:
        members = ", ".join(f"{state} {clean(names)}" for state, names in g["members"].items())
        until_ = ends(g.get("deadline"), g.get("remaining_s")).removeprefix(" until ")
        end = local_time(g["deadline"]) if on_terminal() and g.get("deadline") else until_
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
        say(cut(line, shutil.get_terminal_size().columns) if on_terminal() else line)


def _show_nodes(result: dict[str, Any]) -> None:
    states: dict[str, list[str]] = {}
    for name, row in result["nodes"].items():
        states.setdefault("connected" if row["connected"] else "away", []).append(name)
    say(f"root {clean(result['root'])}, {result['gseq'] + 1} events")
    for state, names in sorted(states.items(), reverse=True):
        say(f"{state} ({len(names)}): {fold(names)}")
