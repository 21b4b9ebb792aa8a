"""The directories on the way to a plan's files: which are missing, and what blocks the way.

Checked before anything is touched. Missing directories are made; a link or a file in the place of one is refused, and
so is a directory in which nothing can be made or removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from pact.core.node.below import moves_names
from pact.core.plan import Step, below
from pact.host.sharing import sharing
from pact.model import decode_name, encode_name, split_id
from pact.resources.base import errno_text
from pact.resources.support.flags import said
from pact.resources.support.way import Way, on_the_way


def obstacles(steps: Sequence[Step], opened: Iterable[Step] = ()) -> tuple[list[str], list[str]]:
    """What must stop the plan, and what a person should know of it (directories that it makes). ``opened``: steps that
    conform, including directories whose flags are cleared for the work in them."""
    files = {split_id(s.id)[1]: s for s in steps if s.id.startswith("file:")}
    mounts = [split_id(s.id)[1] for s in steps if s.id.startswith("mount:")]
    comes = {name for name, s in files.items() if s.target is not None and s.target["type"] == "directory"}
    refusals, made = [], dict[str, None]()
    unsealed = {split_id(s.id)[1] for s in (*steps, *opened) if s.target is not None and "flags" in s.target}
    ways: dict[bytes, Way] = {}
    for name, step in sharing(files.items()):
        if name == "/" or any(below(name, m) for m in mounts):
            continue  # what will be there at its turn cannot be seen now
        above = os.path.dirname(decode_name(name))
        try:
            way = ways.get(above) or ways.setdefault(above, on_the_way(above))
        except OSError as exc:
            refusals.append(f"{step.id}: {errno_text('its directory', exc)}")
            continue
        instead = None if way.other is None else encode_name(way.other[0])
        if way.other is not None and instead not in files:
            refusals.append(f"{step.id}: {instead} is {way.other[1]} now, not a directory: nothing is put behind it")
        elif step.target is not None and (instead is None or instead in comes):
            made.update(dict.fromkeys(m for m in map(encode_name, way.missing) if m not in comes))
        if way.other is None and way.flags and moves_names(step) and encode_name(way.last) not in unsealed:
            refusals.append(f"{step.id}: its directory {encode_name(way.last)} is {said(way.flags)}")
    closed = closed_directories(steps)
    modes = {path: "0700" if decode_name(path) in closed else "0755" for path in made}
    return refusals, [f"{path} is missing: it is made, root's, with mode {mode}" for path, mode in modes.items()]


def closed_directories(steps: Iterable[Step]) -> set[bytes]:
    """The directories in which all that is put back was closed to others, by one of them that nobody declared: if they
    must be made, they are closed again.  # S2"""
    secret, others = set[bytes](), set[bytes]()
    for step in sharing(steps):
        if not step.id.startswith("file:") or step.target is None:
            continue
        here, into = os.path.dirname(decode_name(split_id(step.id)[1])), secret if "secret" in step.target else others
        while here not in into and here != b"/":
            into.add(here)
            here = os.path.dirname(here)
    return secret - others
