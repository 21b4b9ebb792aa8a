"""How answers are shown, as far as several commands share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pact.cli.names import few
from pact.cli.render import View, clean, holders_table

if TYPE_CHECKING:
    from pact.cli.render import Lines

MOVED_MAX: Final = 10
LEFT_SHOWN: Final = 10


def some(resources: list[str]) -> str:
    return few(map(clean, resources), 3)


# -- plans ------------------------------------------------------------------------------------------------------------


def moved(result: Mapping[str, Any]) -> Lines:
    """How the kernel reads the values that a plan wrote, and which resources they moved beside the plan."""
    for resource, text in result.get("reads", {}).items():
        yield f"{clean(resource)}: the kernel made {clean(text)} of it, and that is compared from now on"
    for resource in result.get("moved", ())[:MOVED_MAX]:
        yield f"{clean(resource)} moved with it"
    if len(result.get("moved", ())) > MOVED_MAX:
        yield f"and {len(result['moved']) - MOVED_MAX} more moved with it"


def notes(result: Mapping[str, Any], view: View) -> Lines:
    """Other consequences."""
    for note in result.get("notes", ()):
        yield f"  note: {view.spoken(note)}"


def changing(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """A step in the words of an apply or a declaration, which change a resource; a rollback restores it."""
    return {**step, "action": "change"} if step["action"] == "restore" else step


def planned(step: Mapping[str, Any]) -> str:
    """A step that is not taken yet. A sysctl cannot be created: its module brings it, or setting it fails."""
    missing = step["action"] == "set"
    why = ": the kernel has no such sysctl now; this fails unless a module brings it" if missing else ""
    return f"{step['action']:8} {clean(step['id'])}{why}"


def applied(result: Mapping[str, Any], view: View) -> Lines:
    """What an application did or would do."""
    for step in result.get("plan", ()):
        yield f"  would {planned(changing(step))}"
    if result.get("applied"):
        window = f", to be committed{view.until(result['deadline'])}" if result.get("deadline") else ""
        name = " as " + result["change"] if view.ids and result["change"] else ""
        yield f"applied {len(result['applied'])}{name}{window}"
    yield from moved(result)
    yield from notes(result, view)
    if result.get("consumers"):
        yield from holders_table(result["consumers"], view)


def converged(result: Mapping[str, Any], view: View, *, back: bool = False) -> Lines:
    """What a declaration did or would do; ``back``: to an earlier state."""
    if not result:
        return
    if result.get("blocked"):
        yield from holders_table(result["consumers"], view)
        return
    verb = "would converge" if result.get("dry_run") else "converged"
    left = result.get("left", {})
    changed = [s if back else changing(s) for s in result.get("converge", ()) if s["id"] not in left]
    for step in changed:
        yield f"  {planned(step) if result.get('dry_run') else step['action'].ljust(8) + ' ' + clean(step['id'])}"
    said = "would declare" if result.get("dry_run") else "declared"
    same = f" ({result['unchanged']} were declared so already)" if result.get("unchanged") else ""
    yield f"{said} {result['resources']} resources{same}, {verb} {len(changed)}"
    yield from moved(result)
    said = "would forget" if result.get("dry_run") else "forgot"
    if result["forgotten"]:
        yield f"{said} {len(result['forgotten'])}"
    if patterns := result.get("patterns_forgotten"):
        yield f"{said} what is tracked: {', '.join(map(clean, patterns))}"
    trials = result.get("trials") or {}
    for resource in trials.get("kept", ()):
        yield f"kept as it is, committed for a time: {clean(resource)}"
    for resource in trials.get("ended", ()):
        yield f"{'would end' if result.get('dry_run') else 'ended'} the trial of {clean(resource)}"
    if result["in_changes"]:
        yield f"not converged, they belong to open changes (--take): {', '.join(map(clean, result['in_changes'][:5]))}"
    for why in result.get("refused", ()):
        yield f"would be refused: {view.spoken(why)}"
    yield from notes(result, view)
    if result.get("dry_run") and result.get("consumers"):
        yield from holders_table(result["consumers"], view)


# -- changes ----------------------------------------------------------------------------------------------------------


def committed(done: Mapping[str, Any], view: View) -> Lines:
    """A change that was committed."""
    record = f" as record {done['seq']}" if view.terminal else ""
    name = f" {'a part of ' if done.get('split') else ''}{done['change'] or 'what was untracked'}" if view.ids else ""
    trial = f", for a time{view.until(done['expires'], ': until ')}" if done.get("expires") else ""
    also = f", also changed by {', '.join(map(clean, done['also']))}" if done.get("also") else ""
    yield f"committed{name} ({some(done['resources'])}){record}{trial}{also}"
    for resource in done.get("trials_ended", ()):
        yield f"  the earlier trial of {clean(resource)} has ended with it"


def rolled_back(done: Mapping[str, Any], view: View) -> Lines:
    """A change that was rolled back, or would be."""
    name = f" {done['change'] or 'what was untracked'}" if view.ids else ""
    if "plan" in done:
        subject = done["change"] if view.ids else ""
        yield f"{subject or 'what is untracked'}: would" if subject or not done["change"] else "would"
        for step in done["plan"]:
            yield f"  {planned(step)}"
        for why in done["refused"]:
            yield f"  refused: {view.spoken(why)}"
        yield from notes(done, view)
    elif done.get("state") == "settled":
        yield f"rolled back{name}" + (f" ({some(done['restored'])})" if done.get("restored") else "")
        yield from notes(done, view)
    elif done.get("left"):
        for resource, why in done["left"].items():
            head = "" if why.startswith("restored, but ") else "not restored: "  # R14
            yield f"  {head}{clean(resource)}: {view.spoken(why)}"
        yield from notes(done, view)
    if done.get("consumers"):
        yield from holders_table(done["consumers"], view)


def still_open(result: Mapping[str, Any], view: View) -> Lines:
    """The changes that are still open."""
    left = result.get("left") or []
    if not isinstance(left, list) or not left:
        return
    settled = {d["change"] for key in ("committed", "rolled_back") for d in result.get(key, ()) if "change" in d}
    more = f" and {len(left) - LEFT_SHOWN} more" if len(left) > LEFT_SHOWN else ""
    named = [
        f"{'the rest of ' if c['change'] in settled else ''}{c['change']} ({clean(c['owner'])})"
        if view.ids
        else f"a change of {clean(c['owner'])}"
        for c in left[:LEFT_SHOWN]
    ]
    yield "still open: " + ", ".join(named) + more
