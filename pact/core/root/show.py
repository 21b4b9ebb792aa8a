"""Requests to see groups: what the root knows, and for one group what its members say now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pact.core.ops import Groups, GroupState
from pact.core.root.answers import answer_of
from pact.core.root.envelope import Envelope
from pact.core.root.log import FINISHED
from pact.core.root.questions import Questions
from pact.core.root.runs import BLOCKED, OPEN, Run, number, shown
from pact.errors import UsageError
from pact.model import NS_PER_S

LOOK_NS: Final = 5 * NS_PER_S  # how long such a request waits for members at most


def look(questions: Questions, runs: Mapping[str, Run], head: Envelope, args: Groups) -> None:
    """Show one group, or the unfinished ones, or ``all``. Members of a group that waits for a person are asked, since
    their answers from the application may be old; a member that does not answer is shown as before.
    """
    root = questions.root
    groups = root.state.groups
    name = args.group or ""
    if name and name not in groups:
        raise UsageError(f"there is no group {name}", "pact groups lists them")
    viewer = head.caller.role == "viewer"

    def tell() -> None:
        in_order = sorted(groups.values(), key=lambda g: number(g.id))
        found = [
            shown(root, runs.get(g.id), g, viewer=viewer)
            for g in in_order
            if (name == g.id if name else args.all or g.state != FINISHED)
        ]
        questions.reply(head, 0, result={"v": 1, "groups": found, "holds": root.holds()})

    run = runs.get(name)
    if run is None or run.step not in (OPEN, BLOCKED):
        tell()
        return

    def part(names: list[str], body: bytes) -> None:
        answer = answer_of(body)
        if answer.exit == 0:
            run.heard(names, str(answer.result.get("state", "")))

    question = GroupState(group=run.id, fence=root.fence)
    here = [n for n in run.members if n in root.nodes]
    questions.ask_members(here, question, head.caller, part, lambda lost: tell(), LOOK_NS, head.key)
