"""commit, rollback, extend, emergency, hold."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pact.cli.client import ask
from pact.cli.outcome import finish, planned, show_applied, show_converged, show_notes
from pact.cli.render import clean, holders_table, on_terminal, say, spoken, until
from pact.core.units import parse_duration
from pact.errors import PactError, UsageError


def commit(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "commit", targets=args.targets, all=args.all, message=args.message, ttl_ns=args.ttl,
                 force=args.force, shared=args.shared)  # fmt: skip
    if not args.json:
        for done in answer.result.get("committed", ()):
            _show_commit(done)
        for note in answer.result.get("notes", ()):
            say(f"note: {note}")
        _left(answer.result)
    return finish(args, answer)


def _show_commit(done: dict[str, Any]) -> None:
    record = f" as record {done['seq']}" if on_terminal() else ""
    part = "of " if done.get("split") else ""
    trial = f", for a time{until(done['expires'], ': until ')}" if done.get("expires") else ""
    also = f", also changed by {', '.join(map(clean, done['also']))}" if done.get("also") else ""
    say(f"committed {part}{done['change'] or 'what was untracked'} ({_some(done['resources'])}){record}{trial}{also}")


def rollback(args: argparse.Namespace) -> int:
    if args.trials is not None and args.to is None:
        raise UsageError("--trials goes with --to SEQ")
    answer = ask(args.socket, "rollback", targets=args.targets, all=args.all, dry_run=args.dry_run, force=args.force,
                 shared=args.shared, to_seq=args.to, trials=args.trials)  # fmt: skip
    if not args.json:
        for done in answer.result.get("rolled_back", ()):
            _show_rollback(done)
        if args.to is not None and (answer.ok or answer.result.get("blocked")):
            show_converged(answer.result)
        _left(answer.result)
    return finish(args, answer)


def _show_rollback(done: dict[str, Any]) -> None:
    if "plan" in done:
        say(f"{done['change'] or 'what is untracked'}: would")
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
    answer = ask(args.socket, "extend", targets=changes, by_ns=by_ns, shared=args.shared)
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
    request = {"how": args.how, "message": args.message, "force": args.force, "all": args.all, "shared": args.shared}
    if args.dry_run or _asks_first(args):
        answer = ask(args.socket, "emergency_end", **request, dry_run=True)
        if not args.json and answer.ok:
            _show_preview(answer.result)
        if args.dry_run or not answer.ok:
            return finish(args, answer)
        if not _confirmed("End the emergency so?"):
            raise PactError("the emergency goes on; nothing was changed")
    answer = ask(args.socket, "emergency_end", **request)
    if not args.json:
        if answer.ok:
            say("emergency mode has ended")
        for done in answer.result.get("committed", ()):
            _show_commit(done)
        for done in answer.result.get("rolled_back", ()):
            _show_rollback(done)
        _left(answer.result)
    return finish(args, answer)


def _asks_first(args: argparse.Namespace) -> bool:
    """On a terminal, on this node, a person sees first what he settles."""
    alone = getattr(args, "nodes", None) is None and not getattr(args, "via", None)
    return alone and not args.json and not args.yes and on_terminal() and sys.stdin.isatty()


def _show_preview(result: dict[str, Any]) -> None:
    verb = "would commit" if result["how"] == "commit" else "would roll back"
    for item in result["would"]:
        say(f"{verb} {item['change']} of {clean(item['owner'])} ({_some(item['resources'])})")
    if not result["would"]:
        say(f"{verb} nothing")
    for item in result["left"]:
        say(f"left alone, with a new window: {item['change']} of {clean(item['owner'])} (--all takes it in)")


def _confirmed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def redo(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "redo", change=args.change, dry_run=args.dry_run, message=args.message)
    if not args.json:
        show_applied(answer.result)
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
        settled = {d["change"] for key in ("committed", "rolled_back") for d in result.get(key, ()) if "change" in d}
        say("still open: " + ", ".join(
            f"{'the rest of ' if c['change'] in settled else ''}{c['change']} ({clean(c['owner'])})" for c in left))
