"""What a node does in the tree, on any platform: send records up, take calls, take the fleet's holds, keep contact. No
socket, no clock, no thread.

The owner of a member (an agent, or a simulation) carries messages and reads records. It passes incoming messages and
the time to the member, and performs the returned effects in their order. The safety simulation uses only ``Calls``,
because its network is harsher than any tree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

import orjson

from pact.core import ops
from pact.core.tree.kept import Kept
from pact.core.tree.nodeseals import NodeSeals, Word
from pact.core.tree.outbox import Outbox, Read, Up
from pact.core.tree.parents import Parent
from pact.core.tree.seals import HASH_CHARS, of_one
from pact.core.tree.search import Random
from pact.core.tree.uplink import Deliver, Lost, Note, Uplink
from pact.core.tree.uplink import Effect as UplinkEffect
from pact.core.tree.wire import Head, Message, NewHead, beside
from pact.errors import EXIT_CONFLICT, EXIT_FAILED, EXIT_UNREACHABLE
from pact.model import Actor, Owner

#: Calls that are not answered yet: of people who are no administrators, of each of them, and of administrators and the
#: root beside them, whom nobody keeps out.
RUNNING_MAX: Final = 64
RUNNING_EACH_MAX: Final = 32
FREE: Final = ("admin", "agent")
CACHED_MAX: Final = 256
CACHED_BYTES_MAX: Final = 2 << 20
BEGUN_MAX: Final = 10_000  # how many once-only calls are remembered as begun
ANSWER_MAX: Final = 4 << 20
ROLES: Final = ("viewer", "ops", "admin")
#: Operations that must not be done twice. What the root asks of a group's member may be asked again of a new start.
ONCE: Final = frozenset(name for name, op in ops.AT_NODE.items() if op.once)
#: Operations of which no call is carried out twice by one start of an agent.
ONCE_A_START: Final = frozenset(
    name for name, op in ops.AT_NODE.items() if op.once or op.changes or (op.at == "member" and name != "state")
)
#: A call: the fence of the root that asks, and its number there.
Key = tuple[int, str]


def name_of(key: Key) -> str:
    """A call's name in the journal; it differs between roots."""
    return f"{key[0]}/{key[1]}"


def refusal(code: int, why: str, hint: str) -> bytes:
    """An answer that refuses."""
    return orjson.dumps({"ok": False, "exit": code, "message": why, "hint": hint, "result": {}})


NOT_SEALED: Final = refusal(
    EXIT_UNREACHABLE,
    "this node takes only what a root has sealed for it",
    "the root, or an aggregator on the way, is older than the node",
)


def caller_of(said: Head, key: Key, uid: int | None) -> tuple[Actor, Owner]:
    """The operator whom the root has authenticated, as records name the operator. ``uid``: the operator's account on
    this machine; an operator with an account owns what the account owns.
    """
    user, role = said["user"], said["role"]
    if role == "agent":
        return Actor("pact", None, "agent", "cluster", name_of(key)), Owner("agent", "pact")
    role = role if role in ROLES else "viewer"
    if uid == 0 and role != "admin":
        uid = None
    owner = Owner(f"cluster:{user}", user) if uid is None else Owner(f"uid:{uid}", user, uid)
    return Actor(user, uid, role, "cluster", name_of(key)), owner


# -- calls ------------------------------------------------------------------------------------------------------------


class Fate(Enum):
    """What happens to a call that is not answered now."""

    BEGINS = "it is to be carried out"
    WAITS = "it was begun, and its answer comes"
    LATER = "whoever asks has used up his share: its time comes"


def who_asks(head: Head) -> str:
    """Who has asked for a call; "" if that is an administrator or the root."""
    return "" if head["caller"]["role"] in FREE else str(head["caller"]["user"])


class Calls:
    """Carries out each call once, however often it comes; its answer is kept, and given again.  # T12

    ``begun``: the names of calls that the journal has as begun. They may come again, but their answers are lost.
    """

    def __init__(
        self, begun: Iterable[str] = (), *, kept_max: int = CACHED_MAX, kept_bytes_max: int = CACHED_BYTES_MAX
    ) -> None:
        self.kept: Kept[Key] = Kept(kept_max, kept_bytes_max)  # of administrators and the root
        self.kept_of_others: Kept[Key] = Kept(kept_max, kept_bytes_max)
        self.running: dict[Key, str] = {}  # and whose, as in ``take``
        self.put_off: deque[Message] = deque()  # calls of people who have used up their share of time
        self._begun = dict.fromkeys(begun)
        self._begun_here: dict[str, None] = {}  # of what may be done again after a new start

    def take(
        self, key: Key, op: str, *, who: str = "", replaced: bool = False, spent: bool = False, late_s: int = 0
    ) -> bytes | Fate:
        """A call has come. ``who``: the caller, "" for administrators and the root. ``replaced``: its root is known to
        be replaced by another one. ``spent``: the caller has used up its share of time. ``late_s``: it was held back on
        the way for at least so long. Returns the answer if there is one already.
        """
        kept = self.kept.get(key) or self.kept_of_others.get(key)
        if kept is not None:
            return kept
        if key in self.running:
            return Fate.WAITS
        if replaced:
            return self.done(key, refusal(EXIT_CONFLICT, "this root has been replaced", "repeat the command"), who)
        begun = self._begun if op in ONCE else self._begun_here
        if op in ONCE_A_START and name_of(key) in begun:  # T14: whoever carries calls may tell one again
            why = "this was begun before, and its answer is lost; it is not done twice"
            return self.done(key, refusal(EXIT_UNREACHABLE, why, "pact log says what was done"), who)
        if late_s:  # T16: whoever asked was told that there is no answer, and may have done something else since
            why = f"it was held back for {late_s} s on the way to this node; nothing was done"
            return self.done(
                key, refusal(EXIT_UNREACHABLE, why, "an aggregator that it came through stands still"), who
            )
        under_way = [*self.running.values(), *(who_asks(m.head) for m in self.put_off)]
        alike = sum(bool(w) == bool(who) for w in under_way)
        if alike >= RUNNING_MAX or (who and under_way.count(who) >= RUNNING_EACH_MAX):
            many = RUNNING_MAX if alike >= RUNNING_MAX else f"{RUNNING_EACH_MAX} of your"
            return self.done(
                key, refusal(EXIT_UNREACHABLE, f"{many} commands are under way here", "repeat it later"), who
            )
        if spent:
            return Fate.LATER
        if op in ONCE_A_START:
            begun[name_of(key)] = None
            if len(begun) > BEGUN_MAX:
                del begun[next(iter(begun))]
        self.running[key] = who
        return Fate.BEGINS

    def done(self, key: Key, body: bytes, who: str = "") -> bytes:
        """Keep the answer of a call; ``who``: of one that was never begun, as in ``take``. Returns the answer to send:
        its size is limited."""
        who = self.running.pop(key, who)
        if len(body) > ANSWER_MAX:
            why, hint = f"the answer has {len(body)} bytes", "ask for less, or on the node itself"
            body = refusal(EXIT_FAILED, why, hint)
        (self.kept_of_others if who else self.kept).put(key, body, who)
        return body


# -- effects ----------------------------------------------------------------------------------------------------------


class Welcomed(NamedTuple):
    """A parent has welcomed this member. Records that were read for another parent, and not sent, are to be dropped."""

    parent: str


class Contact(NamedTuple):
    """The root's messages reach this member, or no longer do."""

    up: bool


class FleetSaid(NamedTuple):
    """The root's message about the fleet's holds."""

    fence: int
    seq: int
    holds: Sequence[Head]


class Called(NamedTuple):
    """A call has come: ``Member.call`` takes it, now or later."""

    message: Message


class Framed(NamedTuple):
    """Something came on a stream, or the parent has read what was sent on streams."""

    message: Message


class Dropped(NamedTuple):
    """Nobody waits for this call any more."""

    call: str


class CarryOut(NamedTuple):
    """Carry out the operation; then give the answer to ``Calls.done``, and the result of that to ``Member.answer``."""

    key: Key
    head: Head
    body: bytes


class Answered(NamedTuple):
    """The answer was kept: give it to ``Member.answer``."""

    key: Key
    body: bytes


Effect = UplinkEffect | Read | Welcomed | Contact | FleetSaid | Called | Framed | Dropped | CarryOut | Answered


# -- a node in the tree -----------------------------------------------------------------------------------------------


class Member:
    """See the module. ``wall_ns`` is the time of day, ``unfinished`` the groups to ask about. ``seals``: incoming
    messages need a root's seal, as far as ``seals`` requires it; outgoing ones are sealed.
    """

    def __init__(
        self,
        outbox: Outbox,
        parents: Sequence[Parent],
        rng: Random,
        *,
        session: int,
        version: str,
        rack: str,
        wall_ns: Callable[[], int],
        unfinished: Callable[[], Sequence[Sequence[Any]]],
        calls: Calls,
        seals: NodeSeals | None = None,
        stays: Callable[[], bool] = lambda: False,
    ) -> None:
        self.outbox, self.calls, self.seals = outbox, calls, seals
        self._wall_ns = wall_ns
        self.uplink = Uplink(
            outbox.node,
            "node",
            parents,
            rng,
            session=session,
            version=version,
            rack=rack,
            more=self._more,
            unfinished=unfinished,
            prove=self._prove if seals is not None else None,
            judges=True,
            stays=stays,
        )
        self.unsealed = 0  # messages that were ignored because they had no valid seal of a root
        self.late = 0  # tables of the fleet's holds that were held back too long
        # A parent has welcomed this member, and the root's word about holds has not come yet, or only one that is late.
        self._unheard = False
        # Call -> the key that its root shares with this node and how late it first came, and the root's term.
        self._sealer: dict[Key, tuple[Word, str]] = {}

    def _more(self) -> NewHead:
        return {"incarnation": self.outbox.incarnation, "seq": self.outbox.newest, "wall_ns": self._wall_ns()}

    def _prove(self, head: Head) -> str:
        assert self.seals is not None
        self.seals.spoke(head["session"])
        return self.seals.proof(head["session"], head["incarnation"], head["seq"], head["wall_ns"])

    # -- what comes -------------------------------------------------------------------------------------------------

    def received(self, parent: str, message: Message, t_ns: int) -> list[Effect]:
        self._at(t_ns)
        return self._heard(self.uplink.received(parent, message, t_ns), t_ns)

    def tick(self, t_ns: int) -> list[Effect]:
        """Time has passed."""
        self._at(t_ns)
        out = [*self._heard(self.uplink.tick(t_ns), t_ns), *self.outbox.tick(t_ns)]
        renew_ns = self._renew_ns()
        if renew_ns is not None and renew_ns <= t_ns:
            out += self._heard(self.uplink.renew(t_ns), t_ns)
        return out

    def _at(self, t_ns: int) -> None:
        if self.seals is not None:
            self.seals.t_ns = t_ns

    def _renew_ns(self) -> int | None:
        """When a new session is due, so that nobody can hold a sealed word back for long.  # T14"""
        return self.seals.renew_ns() if self.seals is not None and self.uplink.settled else None

    def next_wake_ns(self) -> int | None:
        """When ``tick`` will have something to do."""
        due = (self.uplink.next_wake_ns(), self.outbox.next_wake_ns(), self._renew_ns())
        return min((ns for ns in due if ns is not None), default=None)

    def _heard(self, effects: Sequence[UplinkEffect], t_ns: int) -> list[Effect]:
        out: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Deliver):
                out += self._delivered(effect.message, t_ns)
                continue
            out.append(effect)
            if isinstance(effect, Lost):
                self.outbox.lost()
                self.calls.put_off.clear()  # T16: nobody could take them back now; what is still waited for comes again
                self._unheard = False
                out.append(Contact(False))
        return out

    def _delivered(self, message: Message, t_ns: int) -> Sequence[Effect]:
        head, kind = message.head, message.kind
        if kind == "call":
            return (Called(message),)
        if kind in ("frames", "took"):
            return (Framed(message),)
        if kind == "drop":
            self.calls.put_off = deque(m for m in self.calls.put_off if m.head["call"] != head["call"])
            return (Dropped(head["call"]),)
        if kind == "ack":
            return self._acknowledged(head, t_ns)
        if kind == "fleet":
            return self._fleet(head)
        if kind != "welcome":
            return ()
        out: list[Effect] = [Welcomed(self.uplink.parent), *self.outbox.welcomed(head["credit"], t_ns)]
        self._unheard = True
        out += self._fleet(head["fleet"], welcome=True)
        if self._unheard and not (self.seals is not None and self.seals.required):
            out += self._in_contact()
        return out

    def _acknowledged(self, head: Head, t_ns: int) -> list[Effect]:
        out: list[Effect] = []
        rows, fence, term = head["cursors"], head["fence"], head["term"]
        for row, seal, said in zip(rows, beside(head["seals"], rows), beside(head["hashes"], rows), strict=True):
            node, incarnation, seq, rewind = row
            if node != self.outbox.node:
                continue
            fits = self.seals is not None and self.seals.acked(fence, term, row, seal)
            if self._counts(seal, fits, "an acknowledgement", out):
                # A seal may stand behind a hash also where nobody can check it, because no root's key is known here.
                # Where it can be checked, only what has one counts.
                hash_ = said[:HASH_CHARS]
                if self.seals is not None:
                    hash_ = self.seals.hashed(fence, term, row, said) if fits else ""
                out += self.outbox.acknowledged(incarnation, seq, rewind, t_ns, hash_, sealed=fits)
        return out

    def _counts(self, seal: str, fits: bool, what: str, out: list[Effect]) -> bool:
        """Whether the message counts: it has the root's seal, or has no seal and the cluster still allows
        that.  # T14"""
        seals = self.seals
        if seals is None or fits or (not seal and not seals.required):
            return True
        self.unsealed += 1
        if self.unsealed & (self.unsealed - 1) == 0:
            why = "with a seal that does not fit" if seal else "without a seal"
            out.append(Note(f"{what} {why} from {self.uplink.parent} does not count ({self.unsealed})"))
        return False

    def _fleet(self, fleet: Head | None, *, welcome: bool = False) -> list[Effect]:
        out: list[Effect] = []
        if fleet is None:
            return out
        said, term, holds = fleet.get("seals", {}), fleet.get("term", ""), fleet["holds"]
        seal = said.get(self.outbox.node, "") if isinstance(said, dict) and isinstance(term, str) else ""
        seal = seal if isinstance(seal, str) else ""
        word = self.seals.told(fleet, term, seal) if self.seals is not None else None
        fits = word is not None
        if word is not None and word.late_s:
            if not welcome:
                return self._late(word.late_s)
            fits = False  # what the parent kept from an earlier connection
        if welcome and not fits and self.seals is not None:
            if self.seals.required:
                return out  # the sealed message follows: a parent has none yet for a new node
            seal = ""  # a seal for an earlier start of this node
        if self._counts(seal, fits, "what the fleet is told", out):
            # Members on the way computed the time left; the root's own number makes the hold last longer, if it errs.
            if fits:
                holds = [{**h, "left_ns": h["whole_ns"]} for h in holds]
            self.uplink.told(fleet)
            out += self.outbox.led(fleet["fence"])
            out.append(FleetSaid(fleet["fence"], fleet["seq"], holds))
            if self._unheard:
                out += self._in_contact()
        return out

    def _late(self, late_s: int) -> list[Effect]:
        """A table of holds was held back: it would stop this node after the stop has ended, or let it go on in the next
        one. It does not count, and until one comes that does, this node knows as little as if it were cut off. The root
        tells its holds every ten seconds while there are any, and after each hello.  # G9, T16"""
        out: list[Effect] = []
        self.late += 1
        if self.late & (self.late - 1) == 0:
            out.append(Note(f"what the fleet is told was held back for {late_s} s and does not count ({self.late})"))
        if not self._unheard:
            self._unheard = True
            out.append(Contact(False))
        return out

    def _in_contact(self) -> list[Effect]:
        """Contact begins only after the root's own word about holds: until then the fleet may be stopped.  # G9"""
        self._unheard = False
        return [Contact(True)]

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, message: Message, t_ns: int, *, spent: bool = False) -> list[Effect]:
        """``spent``: the caller has used up its share of time; the call then waits in ``put_off``."""
        head = message.head
        key = (head["fence"], head["call"])
        late_s = 0
        if self.seals is not None:
            out: list[Effect] = []
            seal = of_one(head, self.outbox.node)
            word = self._sealed_by(self.seals, message, seal, t_ns) if seal else None
            fits, late_s = word is not None, 0 if word is None else word.late_s
            if not self._counts(seal, fits, f"a call {head['op']!r}", out):
                return out if seal else [*out, *self.uplink.answer(key[1], NOT_SEALED)]
            if not fits:
                self._sealer.pop(key, None)
        # A sealed call proves by itself that its root leads.
        replaced = head["fence"] < self.uplink.fence and key not in self._sealer
        who = who_asks(head)
        fate = self.calls.take(key, head["op"], who=who, replaced=replaced, spent=spent, late_s=late_s)
        if isinstance(fate, bytes):
            return [Answered(key, fate)]
        if fate is Fate.BEGINS:
            return [CarryOut(key, head, message.body)]
        if fate is Fate.LATER:
            self.calls.put_off.append(message)
        return []

    def _sealed_by(self, seals: NodeSeals, message: Message, seal: str, t_ns: int) -> Word | None:
        """What a root has sealed for this session of the node; the answer is then sealed for that root."""
        head = message.head
        word = seals.caller(head, seal, message.body, t_ns)
        if word is None:
            return None
        key = (head["fence"], head["call"])
        if (before := self._sealer.get(key)) is not None:  # it waited here: its caller had used up his share of time
            word = word._replace(late_s=before[0].late_s)
        self._sealer[key] = (word, head["term"])
        while len(self._sealer) > 2 * RUNNING_MAX + CACHED_MAX:
            del self._sealer[next(iter(self._sealer))]
        return word

    # -- what goes --------------------------------------------------------------------------------------------------

    def answer(self, key: Key, body: bytes, events: Up | None = None) -> Sequence[Effect]:
        """Send a call's answer; ``events`` were just recorded, and share its frame."""
        by, seal = self._sealer.get(key), ""
        if by is not None and self.seals is not None:
            seal = self.seals.answer(by[0].key, by[1], key[1], body)
        return self.uplink.answer(key[1], body, self._sealed(events) if events is not None else None, seal)

    def send(self, up: Up) -> Sequence[Effect]:
        up = self._sealed(up)
        return self.uplink.send(up.kind, up.head, up.body)

    def _sealed(self, up: Up) -> Up:
        return up if self.seals is None else self.seals.sealed(up)
