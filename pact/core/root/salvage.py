"""The state of a log in which a chunk is damaged: which damage a root may lead past, and what is lost by it.  # F37

What a decision of a group or a hold of the fleet depends on stands in the root's own records, which have one chain. If
that chain goes on behind the damage, none of them is lost: only records of nodes are, which are passed over, and sent
again by nodes that still have them. If it does not, a root could decide a second time, and differently: it does not
lead.  # G1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pact.core.records import parse, verify
from pact.core.root.chunks import Chunk, chunk_hash, read_chunk
from pact.core.root.log import ROOT, RootState, load
from pact.errors import ChainError

TOLD_MAX: Final = 10
OWN: Final = b'"node":"%s"' % ROOT.encode()  # in each record of the root's own
#: First and last number of events that are lost.
Hole = tuple[int, int]


def load_past(snapshot: bytes | None, raws: Sequence[bytes]) -> tuple[RootState, list[Hole]]:
    """The state, and the holes in the log. Raises ChainError or ValueError if there is damage past which no root may
    lead."""
    try:
        return load(snapshot, raws), []
    except (ChainError, ValueError) as exc:
        found = _past(snapshot, raws)
        if found is None:
            raise exc
        return found


def told(holes: Sequence[Hole]) -> str:
    """What people are told of it; "" if nothing is lost."""
    lost = ", ".join(f"{first} to {last}" for first, last in holes[:TOLD_MAX])
    more = f" and {len(holes) - TOLD_MAX} more pieces" if len(holes) > TOLD_MAX else ""
    return f"the root's log is damaged: the events {lost}{more} are lost" if holes else ""


def _past(snapshot: bytes | None, raws: Sequence[bytes]) -> tuple[RootState, list[Hole]] | None:
    """Raises ValueError or ChainError, or returns None, as ``load_past`` does."""
    state = RootState() if snapshot is None else RootState.from_bytes(snapshot)
    sound, doubted = _sorted(raws)
    if not sound or sound[-1][0] is not raws[-1]:
        return None  # the newest chunk: nothing shows what was in it
    holes, doubt = list[Hole](), False
    for raw, chunk in sound:
        if chunk.first + chunk.count - 1 <= state.gseq:
            continue  # the snapshot covers it
        if chunk.first > state.gseq + 1:
            holes.append((state.gseq + 1, chunk.first - 1))
            doubt |= not _of_nodes(holes[-1], doubted)
            state.pass_over(chunk)
        own = [line for b in chunk.batches if b.node == ROOT for line in b.lines]
        # Nothing names the hash of a chunk before a damaged one, so its own words must show that they are whole. If
        # they do not follow those that are known, a decision may be lost.
        for _ in verify(map(parse, own), seq=state.chain.seq + 1, prev=state.chain.hash):
            doubt = False
        if not _is_whose_it_says(chunk):
            return None
        state.apply(raw, chunk)
    return None if doubt else (state, holes)


def _sorted(raws: Sequence[bytes]) -> tuple[list[tuple[bytes, Chunk]], list[Chunk]]:
    """The sound chunks, and the readable ones that are not as the chunk after them says. Each sound chunk names the
    hash of the one before it, so the newest one is where that begins."""
    sound, doubted = list[tuple[bytes, Chunk]](), list[Chunk]()
    named = ""  # the hash that the next chunk names; "" if that chunk is damaged
    for raw in reversed(raws):
        try:
            chunk = read_chunk(raw)
        except ValueError:
            named = ""
            continue
        if named in ("", chunk_hash(raw)):
            sound.append((raw, chunk))
            named = chunk.prev
        else:
            doubted.append(chunk)
            named = ""
    return sound[::-1], doubted[::-1]


def _of_nodes(hole: Hole, doubted: Sequence[Chunk]) -> bool:
    """Whether chunks that are damaged, and can be read, fill the hole, and have no record of the root's."""
    at = hole[0]
    for chunk in doubted:
        if chunk.first == at and all(b.node != ROOT for b in chunk.batches) and _is_whose_it_says(chunk):
            at += chunk.count
    return at == hole[1] + 1


def _is_whose_it_says(chunk: Chunk) -> bool:
    """Whether no record of the root's stands under another name: the name may be damaged. The records have it, too."""
    return not any(OWN in line for b in chunk.batches if b.node != ROOT for line in b.lines)
