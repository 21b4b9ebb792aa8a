"""How a request that changes something ends on the screen: JSON as it is, or messages and the exit code."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from pact.cli.client import Answer
from pact.cli.render import clean, emit, holders_table, say, spoken, until

MOVED_MAX: Final = 10


def finish(args: argparse.Namespace, answer: Answer) -> int:
    """JSON as it is; else the message of what did not go well, and the exit code."""
    if args.json:
        emit({"v": 1, **answer.result, **({"message": answer.message} if answer.message else {})})
    elif answer.message:
        out = sys.stdout if answer.ok else sys.stderr
        print(f"pact: {spoken(answer.message)}" if not answer.ok else spoken(answer.message), file=out)
        if answer.hint and not answer.ok:
            print(f"      {clean(answer.hint)}", file=out)
    return answer.exit


def show_moved(result: dict[str, Any]) -> None:
    """What a plan's writes became in the kernel, and what they moved beside the plan."""
    for resource, text in result.get("reads", {}).items():
        say(f"{clean(resource)}: the kernel made {clean(text)} of it, and that is compared from now on")
    for resource in result.get("moved", ())[:MOVED_MAX]:
        say(f"{clean(resource)} moved with it")
    if len(result.get("moved", ())) > MOVED_MAX:
        say(f"and {len(result['moved']) - MOVED_MAX} more moved with it")


def show_applied(result: dict[str, Any], *, ids: bool = True) -> None:
    """What an application did or would do; ``ids``: which change of this node it is."""
    for step in result.get("plan", ()):
        say(f"  would {planned(changing(step))}")
    if result.get("applied"):
        window = f", to be committed{until(result['deadline'])}" if result.get("deadline") else ""
        say(f"applied {len(result['applied'])}{' as ' + result['change'] if ids and result['change'] else ''}{window}")
    show_moved(result)
    show_notes(result)
    if result.get("consumers"):
        holders_table(result["consumers"])


def show_notes(result: dict[str, Any]) -> None:
    """What else comes of it."""
    for note in result.get("notes", ()):
        say(f"  note: {spoken(note)}")


def changing(step: dict[str, Any]) -> dict[str, Any]:
    """What an apply or a declaration sets to something new is changed; a rollback restores it."""
    return {**step, "action": "change"} if step["action"] == "restore" else step


def planned(step: dict[str, Any]) -> str:
    """A step that is not taken yet. Nobody creates a sysctl: its module brings it, or setting it fails."""
    missing = step["action"] == "set"
    why = ": the kernel has no such sysctl now; this fails unless a module brings it" if missing else ""
    return f"{step['action']:8} {clean(step['id'])}{why}"


def show_converged(result: dict[str, Any], *, back: bool = False) -> None:
    """What a declaration did or would do; ``back``: to an earlier state."""
    if not result:
        return
    if result.get("blocked"):
        holders_table(result["consumers"])
        return
    verb = "would converge" if result.get("dry_run") else "converged"
    left = result.get("left", {})
    changed = [s if back else changing(s) for s in result.get("converge", ()) if s["id"] not in left]
    for step in changed:
        say(f"  {planned(step) if result.get('dry_run') else step['action'].ljust(8) + ' ' + clean(step['id'])}")
    said = "would declare" if result.get("dry_run") else "declared"
    same = f" ({result['unchanged']} were declared so already)" if result.get("unchanged") else ""
    say(f"{said} {result['resources']} resources{same}, {verb} {len(changed)}")
    show_moved(result)
    if result["forgotten"]:
        say(f"{'would forget' if result.get('dry_run') else 'forgot'} {len(result['forgotten'])}")
    if patterns := result.get("patterns_forgotten"):
        said = "would forget" if result.get("dry_run") else "forgot"
        say(f"{said} what is tracked: {', '.join(map(clean, patterns))}")
    trials = result.get("trials") or {}
    for resource in trials.get("kept", ()):
        say(f"kept as it is, committed for a time: {clean(resource)}")
    for resource in trials.get("ended", ()):
        say(f"{'would end' if result.get('dry_run') else 'ended'} the trial of {clean(resource)}")
    if result["in_changes"]:
        say(f"not converged, they belong to open changes (--take): {', '.join(map(clean, result['in_changes'][:5]))}")
    for why in result.get("refused", ()):
        say(f"would be refused: {spoken(why)}")
    show_notes(result)
    if result.get("dry_run") and result.get("consumers"):
        holders_table(result["consumers"])
