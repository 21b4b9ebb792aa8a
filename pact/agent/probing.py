"""Before anything is touched: observe the resources, find their consumers, keep contents, and find obstacles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from pact.agent.consumers import find_holders
from pact.agent.notifications import told_steps
from pact.core.node import below
from pact.core.node.events import Sighting
from pact.core.plan import Step
from pact.host.sharing import sharing
from pact.model import Attrs, Holder, Observation, Unreadable, decode_name, encode_name, split_id
from pact.resources import KINDS
from pact.resources.base import Keep, Saved
from pact.resources.rules import nature
from pact.resources.support.locks import locks_on
from pact.resources.support.obstacles import obstacles
from pact.resources.support.passwords import unquoted
from pact.resources.support.possible import impossible
from pact.resources.support.room import Store

NAMED_MAX: Final = 5
SEAL_BYTES: Final = 16


def observe(resource: str, keep: Keep | None = None) -> Observation:
    kind, name = split_id(resource)
    return KINDS[kind].observe(name, keep)


def placed(sightings: Iterable[Sighting]) -> list[Sighting]:
    """The same sightings, right after they were made, completed with what only their places show: that a directory on
    the way is closed to others. Each directory is checked once, after all in it was read: a resource that came into a
    directory which was just closed counts as closed.  # S2"""
    reachable: dict[str, bool] = {}
    out = []
    for sighting in sightings:
        kind, name = split_id(sighting.resource)
        seen = sighting.observation
        if isinstance(seen, dict) and "sha256" in seen:
            above = name.rpartition("/")[0]
            if above not in reachable:
                reachable[above] = KINDS[kind].reachable(name)
            sighting = sighting if reachable[above] else replace(sighting, secret=True)
        out.append(sighting)
    return out


def distance_n(resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
    return KINDS[resource.partition(":")[0]].distance_n(declared, actual)


def probe(
    steps: tuple[Step, ...],
    keep: Keep,
    *,
    consumers: bool,
    force: bool,
    applying: bool = False,
    ask: bool = True,
    signed: dict[str, bytes] | None = None,
) -> tuple[list[Sighting], list[Holder], list[str], dict[str, Any], list[str]]:
    """Observe, find consumers of resources that differ, keep what would be overwritten. Touches nothing. ``signed``
    gets the signatures (``sealed``) of regular files.  # F5, R4"""
    sightings, differing, conforming = [], list[Step](), list[Step]()
    not_yet = {s.id: why for s in sharing(steps) if (why := _not_yet(s))}
    for step in steps:
        if step.id in not_yet:
            continue
        seen = _first_look(step.id, keep, signed)
        sightings.append(Sighting(step.id, seen))
        if not isinstance(seen, Unreadable) and distance_n(step.id, step.target, seen) != 0:
            differing.append(replace(step, actual=seen))
        elif isinstance(seen, dict):
            conforming.append(replace(step, actual=seen))
    through = below.carried(nature, differing, (s.id for s in conforming))
    carried = [s for s in conforming if s.id in through]
    leaving = {s.id for s in differing if s.target is None}
    coming = {split_id(s.id)[0] for s in differing if s.target is not None}
    refusals, saves, notes = list[str](), dict[str, Any](), list[str]()
    (refusals if applying else notes).extend(f"{r}: {why}" for r, why in not_yet.items())
    together = _asked_together(differing, keep)
    for step in sharing(differing):
        kind, name = split_id(step.id)
        saved = together.get(step.id) or KINDS[kind].preflight(name, step, keep)
        saves[step.id] = dict(saved.save)
        saves.update(saved.inside)
        notes += [saved.note] if saved.note else []
        if step.actual is None and not coming.isdisjoint(KINDS[kind].follows):
            continue  # another step of the plan may bring it
        if saved.refusal and not _emptied_by_plan(kind, name, saved.refusal, leaving):
            refusals.append(saved.refusal)
    gone = below.carried(nature, (s for s in differing if not nature(s.id).bears), through)
    for step in carried:
        kind, name = split_id(step.id)
        saved = KINDS[kind].carry(name, step, keep)
        saves[step.id] = dict(saved.save)
        if saved.refusal and step.id in gone:  # content below a mount or link may lie there all the same
            refusals.append(saved.refusal)
    if carried:
        notes.append(f"{_named([s.id for s in carried])}: seen through what is replaced; brought back below it")
    left = (KINDS[split_id(s.id)[0]].left_behind(split_id(s.id)[1], s) for s in sharing(differing))
    notes += [text for text in left if text]
    in_the_way, made = obstacles([*differing, *carried], conforming)
    moved = {s.id: s for s in (*differing, *carried)}
    in_order = [moved[s.id] for s in steps if s.id in moved]
    refusals, notes = [*refusals, *in_the_way, *impossible(in_order, _to_store(in_order, keep, applying))], notes + made
    refusals = [unquoted(r, *(a for s in differing for a in (s.target, s.actual))) for r in refusals]  # S2
    if differing and consumers and not force:
        refusals += locks_on(differing)
    asked = [s for s in sharing((*differing, *carried)) if not applying or KINDS[split_id(s.id)[0]].disturbs(s)]
    moving = {s.id for s in differing}
    telling = [s for s in steps if s.id in moving or s.owed]  # what was moved before is told now  # R14
    holders = find_holders([*asked, *told_steps(telling)], ask=ask) if consumers else []
    return sightings, holders, refusals, saves, notes


def _asked_together(steps: Sequence[Step], keep: Keep) -> dict[str, Saved]:
    """What those kinds say of their steps that carry them out as one act."""
    rows: dict[str, list[Step]] = {}
    for step in steps:
        kind = split_id(step.id)[0]
        if KINDS[kind].at_once:
            rows.setdefault(kind, []).append(step)
    return {rid: saved for kind, row in rows.items() for rid, saved in KINDS[kind].preflight_all(row, keep).items()}


def sealed(signature: bytes, seen: Attrs) -> bytes:
    """A file's signature together with what was seen then, in few bytes: there may be ten thousand."""
    seal = hashlib.blake2b(orjson.dumps(seen, option=orjson.OPT_SORT_KEYS), digest_size=SEAL_BYTES)
    return signature + seal.digest()


def is_still(step: Step, signed: Mapping[str, bytes]) -> bool:
    """Whether a file is as the step says, as surely as its status can tell: it was just read, and has not moved
    since."""
    known = signed.get(step.id)
    if known is None or step.actual is None:
        return False
    signature, (kind, name) = known[:-SEAL_BYTES], split_id(step.id)
    return sealed(signature, step.actual) == known and KINDS[kind].is_still(name, signature)


def _to_store(steps: Iterable[Step], keep: Keep, applying: bool) -> Store:
    """What the store takes before the first step: what they overwrite, and the new contents that it has not."""
    targets = (s.target for s in steps if applying and s.target is not None)
    new = {t["sha256"]: t.get("size", 0) for t in targets if "sha256" in t}
    return Store(keep.store, keep.owed + sum(size for digest, size in new.items() if not keep.stored(digest)))


def _not_yet(step: Step) -> str:
    kind, name = split_id(step.id)
    return KINDS[kind].not_yet(name, step.target)


def _first_look(resource: str, keep: Keep, signed: dict[str, bytes] | None = None) -> Observation:
    """The first observation, and a signature of the resource if its kind has one."""
    kind, name = split_id(resource)
    found: dict[str, bytes] = {}
    seen = KINDS[kind].first_look(name, keep, None if signed is None else found)
    if signed is not None and name in found and isinstance(seen, dict):
        signed[resource] = sealed(found[name], seen)
    return seen


def _named(resources: list[str]) -> str:
    more = f" and {len(resources) - NAMED_MAX} more" if len(resources) > NAMED_MAX else ""
    return ", ".join(resources[:NAMED_MAX]) + more


def _emptied_by_plan(kind: str, name: str, refusal: str, leaving: set[str]) -> bool:
    """Whether the same plan removes every entry of the directory, so that it will be empty in time."""
    if not refusal.endswith("not empty") or not KINDS[kind].is_path:
        return False
    path = decode_name(name)
    return all(f"{kind}:{encode_name(path + b'/' + entry)}" in leaving for entry in os.listdir(path))
