"""commit, rollback, extend, emergency, hold."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from pact.cli.client import Local, ask
from pact.cli.names import few
from pact.cli.outcome import finish, planned, show_applied, show_converged, show_notes
from pact.cli.render import clean, diff_lines, holders_table, on_terminal, say, spoken, until
from pact.core.units import parse_duration
from pact.errors import PactError, UsageError

LEFT_SHOWN: Final = 10


def commit(args: argparse.Namespace) -> int:
    if args.message is None:
        args.message = _message(args)
    answer = ask(
        args.socket,
        "commit",
        targets=args.targets,
        all=args.all,
        message=args.message,
        ttl_ns=args.ttl,
        force=args.force,
        shared=args.shared,
        **({"without_content": True} if args.without_content else {}),
    )
    if not args.json:
        for done in answer.result.get("committed", ()):
            _show_commit(done, _ids(args))
        for note in answer.result.get("notes", ()):
            say(f"note: {note}")
        _left(answer.result, _ids(args))
    return finish(args, answer)


def _message(args: argparse.Namespace) -> str:
    """What somebody writes in his editor. Raises UsageError where there is nobody."""
    from pact.cli import editor

    if args.json or not isinstance(args.socket, Local) or not editor.can_ask():
        raise UsageError("commit needs -m TEXT: why", 'for example: pact commit -m "more connections for the logins"')
    me = ask(args.socket, "status").result.get("you", {}).get("user")
    entries = ask(args.socket, "diff", targets=args.targets).result["resources"]
    if not args.all and not args.targets:
        entries = [e for e in entries if e["owner"]["user"] == me]
    about = [line for e in entries for line, _ in diff_lines(e, times=True)]
    return editor.message(about or ["none of the open changes is yours"])


def _ids(args: argparse.Namespace) -> bool:
    """Whether changes are called by the numbers that a node gave them; nodes that say the same then differ."""
    return bool(getattr(args, "ids", True))


def _show_commit(done: dict[str, Any], ids: bool = True) -> None:
    record = f" as record {done['seq']}" if on_terminal() else ""
    name = f" {'a part of ' if done.get('split') else ''}{done['change'] or 'what was untracked'}" if ids else ""
    trial = f", for a time{until(done['expires'], ': until ')}" if done.get("expires") else ""
    also = f", also changed by {', '.join(map(clean, done['also']))}" if done.get("also") else ""
    say(f"committed{name} ({_some(done['resources'])}){record}{trial}{also}")
    for resource in done.get("trials_ended", ()):
        say(f"  the earlier trial of {clean(resource)} has ended with it")


def rollback(args: argparse.Namespace) -> int:
    if args.trials is not None and args.to is None:
        raise UsageError("--trials goes with --to SEQ")
    answer = ask(
        args.socket,
        "rollback",
        targets=args.targets,
        all=args.all,
        dry_run=args.dry_run,
        force=args.force,
        shared=args.shared,
        to_seq=args.to,
        trials=args.trials,
    )
    if not args.json:
        for done in answer.result.get("rolled_back", ()):
            _show_rollback(done, _ids(args))
        if args.to is not None and (answer.ok or answer.result.get("blocked")):
            show_converged(answer.result, back=True)
        _left(answer.result, _ids(args))
    return finish(args, answer)


def _show_rollback(done: dict[str, Any], ids: bool = True) -> None:
    name = f" {done['change'] or 'what was untracked'}" if ids else ""
    if "plan" in done:
        subject = done["change"] if ids else ""
        say(f"{subject or 'what is untracked'}: would" if subject or not done["change"] else "would")
        for step in done["plan"]:
            say(f"  {planned(step)}")
        for why in done["refused"]:
            say(f"  refused: {spoken(why)}")
        show_notes(done)
    elif done.get("state") == "settled":
        say(f"rolled back{name}" + (f" ({_some(done['restored'])})" if done.get("restored") else ""))
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
            say(f"{done['change'] if _ids(args) else 'a change'} has more time{until(done['deadline'])}{stands}")
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
        show_applied(answer.result, ids=_ids(args))
    return finish(args, answer)


def hold(args: argparse.Namespace) -> int:
    if args.action == "place":
        answer = ask(args.socket, "hold_place", reason=args.reason, for_ns=args.for_ns, change=args.change)
        if not args.json and answer.ok:
            what = answer.result["change"] or "the node"
            name = f"{answer.result['hold']}: " if _ids(args) else ""
            say(f"{name}{what} is held{until(answer.result['ends'])}")
        return finish(args, answer)
    answer = ask(args.socket, "hold_release", name=args.name)
    if not args.json and answer.ok:
        say("released " + (", ".join(answer.result["released"]) if _ids(args) else "holds"))
    return finish(args, answer)


def _some(resources: list[str]) -> str:
    return few(map(clean, resources), 3)


def _left(result: dict[str, Any], ids: bool = True) -> None:
    left = result.get("left") or []
    if isinstance(left, list) and left:
        settled = {d["change"] for key in ("committed", "rolled_back") for d in result.get(key, ()) if "change" in d}
        more = f" and {len(left) - LEFT_SHOWN} more" if len(left) > LEFT_SHOWN else ""
        say(
            "still open: "
            + ", ".join(
                f"{'the rest of ' if c['change'] in settled else ''}{c['change']} ({clean(c['owner'])})"
                if ids
                else f"a change of {clean(c['owner'])}"
                for c in left[:LEFT_SHOWN]
            )
            + more
        )
