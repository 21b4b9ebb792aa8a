"""The directories on the way to a plan's files: what of them is missing, and what stands in the way.

Asked before anything is touched. Missing ones are made; a link or a file in the place of one is refused, and so is a
directory in which nothing can be made or removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pact.core.plan import Step, below
from pact.model import decode_name, encode_name, split_id
from pact.resources.flags import OPEN, get_flags, said
from pact.resources.way import on_the_way


def obstacles(steps: Sequence[Step]) -> tuple[list[str], list[str]]:
    """What must stop the plan, and what a person should know of it (directories that it makes)."""
    files = [(s, split_id(s.id)[1]) for s in steps if s.id.startswith("file:")]
    mounts = [split_id(s.id)[1] for s in steps if s.id.startswith("mount:")]
    comes = {name: s for s, name in files if s.target is not None and s.target["type"] == "directory"}
    refusals, made = [], dict[str, None]()
    for step, name in files:
        if name == "/" or any(below(name, m) for m in mounts):
            continue  # what is there when its turn comes is not to be seen now
        missing, other, last = on_the_way(os.path.dirname(decode_name(name)))
        if other is not None and encode_name(other[0]) not in comes:
            what = f"{encode_name(other[0])} is {other[1]} now, not a directory"
            refusals.append(f"{step.id}: {what}: nothing is put behind it")
        elif step.target is not None:
            made.update(dict.fromkeys(m for m in map(encode_name, missing) if m not in comes))
            if other is not None and encode_name(other[0]) in comes:
                continue
        sealed = "" if other is not None or not _moves_names(step) else _sealed(last)
        if sealed and not _unsealed(comes.get(encode_name(last))):
            refusals.append(f"{step.id}: its directory {encode_name(last)} is {said(sealed)}")
    return refusals, [f"{path} is missing: it is made, root's, with mode 0755" for path in made]


def _moves_names(step: Step) -> bool:
    """It makes, removes or replaces, and does not only dress what is there."""
    a, t = step.actual, step.target
    return a is None or t is None or any(t.get(k, a.get(k)) != a.get(k) for k in ("type", "sha256", "target"))


def _sealed(directory: bytes) -> str:
    try:
        fd = os.open(directory, OPEN | os.O_DIRECTORY)
    except OSError:
        return ""
    try:
        return get_flags(fd)
    finally:
        os.close(fd)


def _unsealed(step: Step | None) -> bool:
    """The plan clears the directory's flags for as long as it works in it."""
    return step is not None and step.target is not None and "flags" in step.target
