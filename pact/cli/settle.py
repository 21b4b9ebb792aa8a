"""commit, rollback, extend, emergency, hold."""

from __future__ import annotations

import argparse
from typing import Any

from pact.cli.client import ask
from pact.cli.outcome import finish, planned, show_converged, show_notes
from pact.cli.render import clean, holders_table, on_terminal, say, spoken, until
from pact.core.units import parse_duration
from pact.errors import UsageError


def commit(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "commit", targets=args.targets, all=args.all, message=args.message, ttl_ns=args.ttl,
                 force=args.force)  # fmt: skip
    if not args.json:
        for done in answer.result.get("committed", ()):
            record = f" as record {done['seq']}" if on_terminal() else ""
            say(f"committed {done['change']} ({_some(done['resources'])}){record}")
        for note in answer.result.get("notes", ()):
            say(f"note: {note}")
        _left(answer.result)
    return finish(args, answer)


def rollback(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "rollback", targets=args.targets, all=args.all, dry_run=args.dry_run, force=args.force,
                 to_seq=args.to)  # fmt: skip
    if not args.json:
        for done in answer.result.get("rolled_back", ()):
            _show_rollback(done)
        if args.to is not None and (answer.ok or answer.result.get("blocked")):
            show_converged(answer.result)
        _left(answer.result)
    return finish(args, answer)


def _show_rollback(done: dict[str, Any]) -> None:
    if "plan" in done:
        say(f"{done['change']}: would")
        for step in done["plan"]:
            say(f"  {planned(step)}")
        for why in done["refused"]:
            say(f"  refused: {spoken(why)}")
        show_notes(done)
    elif done.get("state") == "settled":
        say(f"rolled back {done['change']}" + (f" ({_some(done['restored'])})" if done.get("restored") else ""))
        show_notes(done)
    elif done.get("left"):
        for resource, why in done["left"].items():
            say(f"  not restored: {clean(resource)}: {spoken(why)}")
        show_notes(done)
    if done.get("consumers"):
        holders_table(done["consumers"])


def extend(args: argparse.Namespace) -> int:
    *changes, last = args.words
    try:
        by_ns = parse_duration(last)
    except ValueError as exc:
        raise UsageError(str(exc), "pact extend [CHANGE...] D, the duration last") from None
    answer = ask(args.socket, "extend", targets=changes, by_ns=by_ns)
    if not args.json:
        for done in answer.result["extended"]:
            stands = "" if done["deadline"] else " (its clock stands still now)"
            say(f"{done['change']} has more time{until(done['deadline'])}{stands}")
    return finish(args, answer)


def emergency(args: argparse.Namespace) -> int:
    if args.action == "start":
        answer = ask(args.socket, "emergency_start", reason=args.reason, for_ns=args.for_ns)
        if not args.json and answer.ok:
            say(f"emergency mode{until(answer.result['ends'])}: no window runs, nothing is rolled back")
        return finish(args, answer)
    answer = ask(args.socket, "emergency_end", how=args.how, message=args.message, force=args.force)
    if not args.json:
        if answer.ok:
            say("emergency mode has ended")
        for done in answer.result.get("committed", ()):
            say(f"committed {done['change']} ({_some(done['resources'])})")
        for done in answer.result.get("rolled_back", ()):
            _show_rollback(done)
        _left(answer.result)
    return finish(args, answer)


def hold(args: argparse.Namespace) -> int:
    if args.action == "place":
        answer = ask(args.socket, "hold_place", reason=args.reason, for_ns=args.for_ns, change=args.change)
        if not args.json and answer.ok:
            what = answer.result["change"] or "the node"
            say(f"{answer.result['hold']}: {what} is held{until(answer.result['ends'])}")
        return finish(args, answer)
    answer = ask(args.socket, "hold_release", name=args.name)
    if not args.json and answer.ok:
        say("released " + ", ".join(answer.result["released"]))
    return finish(args, answer)


def _some(resources: list[str]) -> str:
    shown = ", ".join(map(clean, resources[:3]))
    return shown + (f" and {len(resources) - 3} more" if len(resources) > 3 else "")


def _left(result: dict[str, Any]) -> None:
    left = result.get("left") or []
    if isinstance(left, list) and left:
        say("still open: " + ", ".join(f"{c['change']} ({clean(c['owner'])})" for c in left))
