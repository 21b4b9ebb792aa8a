"""The way up, for agents and aggregators: which parent to use, whether it is alive, when to return. No socket, no
clock.

One parent is *active* (it has sent ``welcome``); at most one other is *tried*. A parent that is silent for
``SILENCE_NS`` is lost, and the next one of the preference list is tried. A child under a parent other than the
preferred one tries the preferred one again after a while, and leaves the old parent only after the new one has welcomed
it.  # T3

Randomness comes in as an object (``uniform``), time as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from pact.core.phases import OPEN
from pact.core.tree import wire
from pact.core.tree.checks import BY_SESSION, BY_TIME, HOLDS_BY_TIME, SESSION_BITS
from pact.core.tree.outbox import Up
from pact.core.tree.parents import Parent, preference
from pact.core.tree.search import Random, Search
from pact.core.tree.wire import Head, Message
from pact.errors import LocalProtocolError
from pact.model import NS_PER_S
from pact.values import dataclass

BEAT_NS: Final = 2 * NS_PER_S  # how often the parent asks
# A child that was not asked for this long asks the parent, while there is time for an answer.
OWN_BEAT_NS: Final = 3 * BEAT_NS // 2
SILENCE_NS: Final = 6 * NS_PER_S
#: A process that did nothing for so long was given up by its parent, and whoever asked something was told so.
STOOD_NS: Final = SILENCE_NS + NS_PER_S
AT_WORK_NS: Final = 2 * BEAT_NS
AT_WORK: Final = frozenset({"call", "ack"})  # messages that show both sides that the other is alive
RETURN_NS: Final = (30 * NS_PER_S, 120 * NS_PER_S)
LOOP_NS: Final = 60 * NS_PER_S
ASK_NS: Final = 30 * NS_PER_S
ASK_ALL: Final = 10  # one of this many rounds asks about every group: a question may have been lost
ASKED_MAX: Final = 64
ASK_SOON_NS: Final = 10 * NS_PER_S  # how soon after a new root the member asks: a new root knows only what it hears
HELLO_GAP_NS: Final = NS_PER_S // 2
MISSED_MAX: Final = 5  # how often hellos for a missing table double their interval
KEEP_OPEN: Final = 2  # connections to parents that said sorry, kept to avoid another authentication


# -- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    parent: Parent


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection; messages that were just sent on it may still leave."""

    parent: str


class Send(NamedTuple):
    parent: str
    frame: bytes


class Deliver(NamedTuple):
    """A message of the active parent; ``welcome`` comes first, and again after each reconnection."""

    message: Message


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no active parent any more. Unacknowledged messages may be lost; they are sent again after a welcome."""

    why: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str


Effect = Connect | Disconnect | Send | Deliver | Lost | Note
#: The effects that ``Links`` performs. A tuple: a union would be built anew at each check.
OF_LINKS: Final = (Connect, Disconnect, Send)


@dataclass(slots=True)
class _Link:
    parent: Parent
    heard_ns: int
    hello_ns: int
    answered: bool = False
    asks: bool = False  # the parent asks whether this child is alive; parents of older versions do not
    with_answers: bool = False  # the parent takes events together with an answer; parents of older versions do not


class Uplink:
    """See the module. ``more`` gives the fields of ``hello`` that change, ``beat`` those of ``beat``, ``unfinished``
    the groups to ask about. ``prove`` seals a hello's head, so that the root knows it as this node's own word.
    ``judges``: the owner decides which tables of the fleet's holds count, and calls ``told``. ``stays``: something is
    under way that a return to another parent would end.
    """

    def __init__(
        self,
        name: str,
        role: str,
        parents: Sequence[Parent],
        rng: Random,
        *,
        session: int,
        version: str = "",
        rack: str = "",
        more: Callable[[], Head] = dict,
        unfinished: Callable[[], Sequence[Sequence[Any]]] = tuple,
        beat: Callable[[], Head] = dict,
        prove: Callable[[Head], str] | None = None,
        judges: bool = False,
        stays: Callable[[], bool] = lambda: False,
    ) -> None:
        assert parents, "an uplink without parents"
        self.name = name
        self.role = role
        self.order = preference(name, rack, parents)
        self._search = Search(self.order, rng)
        self.rack = rack
        self.version = version
        self.fleet: tuple[int, int] = (0, 0)  # fence and number of the newest fleet table that came
        self.fence = 0
        self._rng = rng
        knows = BY_SESSION | BY_TIME | HOLDS_BY_TIME if prove is not None else 0
        self._session = session >> SESSION_BITS << SESSION_BITS | knows
        self._count = 0
        self._more = more
        self._unfinished = unfinished
        self._beat_head = beat
        self._prove = prove
        self._judges = judges
        self._stays = stays
        self._missed = 0  # number of hellos sent because a table has not come yet
        self._links: dict[str, _Link] = {}
        self._active: _Link | None = None
        self._trying: _Link | None = None
        self._avoid_ns = SILENCE_NS if len(self.order) > 1 else 0
        self._loops: set[str] = set()
        self._return_ns = 0
        self._beat_ns = 0
        self._ask_ns = 0
        self._asked: list[list[Any]] | None = None  # what was unfinished at the last look
        self._asks = 0
        self._turned_ns = 0  # when there was last something to do
        self.since_ns = 0
        self._stopped = False

    # -- for the owner ------------------------------------------------------------------------------------------

    @property
    def parent(self) -> str:
        """The active parent's url, or ""."""
        return self._active.parent.url if self._active is not None else ""

    @property
    def connected(self) -> bool:
        return self._active is not None

    def send(self, kind: str, head: Head, body: bytes = b"") -> list[Effect]:
        """A message to the active parent; nothing if there is none. Raises LocalProtocolError."""
        if self._active is None:
            return []
        return [Send(self._active.parent.url, wire.encode(kind, head, body))]

    @property
    def with_answers(self) -> bool:
        """Whether the parent takes events together with an answer."""
        return self._active is not None and self._active.with_answers

    def answer(self, call: str, body: bytes, events: Up | None = None, seal: str = "") -> list[Effect]:
        """A node's own complete answer to a call; ``events``, if the parent takes them, go in the same frame."""
        if self._active is None:
            return []
        if events is None:
            frame = wire.single_answer(call, self.name, body, seal=seal)
        else:
            frame = wire.single_answer(
                call, self.name, body, events.head["batches"], events.body, seal, events.head.get("seals", ())
            )
        return [Send(self._active.parent.url, frame)]

    def stop(self) -> list[Effect]:
        """Say goodbye and close everything."""
        self._stopped = True
        out = self.send("goodbye", {})
        out += [Disconnect(url) for url in self._links]
        self._links.clear()
        self._active = self._trying = None
        return out

    def next_wake_ns(self) -> int | None:
        """When ``tick`` will have something to do."""
        if self._stopped:
            return None
        due = []
        if self._trying is not None:
            due.append(self._trying.hello_ns + self._search.patience_ns)
        if self._active is not None:
            due += [self._active.heard_ns + SILENCE_NS, self._beat_ns, self._ask_ns]
            if self._trying is None and self._return_ns:
                due.append(self._return_ns)
        elif self._trying is None:
            due.append(self._search.next_ns)
        return min(due)

    # -- time ---------------------------------------------------------------------------------------------------

    def tick(self, t_ns: int) -> list[Effect]:
        out = self._stood_still(t_ns)
        if self._stopped:
            return out
        active, trying = self._active, self._trying
        if active is not None and t_ns >= active.heard_ns + SILENCE_NS:
            out += self._lose(active, f"{active.parent.url} is silent", t_ns, self._avoid_ns)
        if trying is not None and trying is self._trying and t_ns >= trying.hello_ns + self._search.patience_ns:
            if trying is self._active:
                self._trying = None
            else:
                out += self._drop(trying)
                self._search.avoid(trying.parent.url, t_ns + self._avoid_ns)
                self._tried(t_ns)
                out += self._still_here(t_ns)
        if self._active is not None:
            if t_ns >= self._beat_ns:
                self._beat_ns = t_ns + OWN_BEAT_NS
                out += self.send("beat", self._beat_head())
            if t_ns >= self._ask_ns:
                out += self._ask(t_ns)
            if self._trying is None and self._return_ns and t_ns >= self._return_ns:
                out += self._go_back(t_ns)
        elif self._trying is None and t_ns >= self._search.next_ns and (parent := self._search.next(t_ns)) is not None:
            out += self._hello(parent, t_ns)
        return out

    def _ask(self, t_ns: int) -> list[Effect]:
        """After a welcome, under a new root, and now and then: ask about every group. Otherwise ask about groups with a
        vote or a decision that were unfinished half a minute ago too: a member that has not voted is free, and the root
        sends its decision again to members that owe it.
        """
        self._ask_ns = t_ns + ASK_NS
        self._asks = (self._asks + 1) % ASK_ALL
        before, self._asked = self._asked, [list(g) for g in self._unfinished()]
        groups = self._asked
        if before is not None and self._asks:
            groups = [g for g in groups if g in before and g[1] != OPEN]
        at = self._asks * ASKED_MAX % max(1, len(groups))  # other groups first each time: a root handles only this many
        groups = [*groups[at:], *groups[:at]][:ASKED_MAX]
        return self.send("ask", {"node": self.name, "groups": groups}) if groups else []

    # -- looking for a parent -----------------------------------------------------------------------------------

    def _tried(self, t_ns: int) -> None:
        """One parent did not welcome this child: try the next one soon, or, if another is active, plan a later
        return."""
        if self._active is not None:
            self._plan_return(t_ns)
        else:
            self._search.failed(t_ns)

    def _hello(self, parent: Parent, t_ns: int) -> list[Effect]:
        out: list[Effect] = []
        link = self._links.get(parent.url)
        if link is None:
            link = self._links[parent.url] = _Link(parent, t_ns, t_ns)
            out.append(Connect(parent))
        self._trying, link.hello_ns = link, t_ns
        self._count = (self._count + 1) % HOLDS_BY_TIME
        head = {
            "v": wire.VERSION,
            "role": self.role,
            "name": self.name,
            "session": self._session | self._count,
            "version": self.version,
            "rack": self.rack,
            **self._more(),
        }
        if self.role == "node":
            head["groups"] = list(self._unfinished())
        if self._prove is not None:
            head["proof"] = self._prove(head)
        try:
            out.append(Send(parent.url, wire.encode("hello", head)))
        # More names than fit a head: no parent can welcome this relay, and nothing ends.
        except LocalProtocolError as exc:  # T13
            out.append(Note(f"cannot say who is below: {exc.message}"))
        return out

    @property
    def settled(self) -> bool:
        """Whether there is a parent, and no hello is under way."""
        return self._active is not None and self._trying is None and not self._stopped

    def renew(self, t_ns: int) -> list[Effect]:
        """Say hello to the same parent again, under a new session.  # T14"""
        return self._hello(self._active.parent, t_ns) if self.settled and self._active is not None else []

    def _still_here(self, t_ns: int) -> list[Effect]:
        """Another parent got this node's proof in a hello, and did not welcome it. That proof must not stay the newest:
        with it, the other parent could claim that the node is there.  # T14
        """
        return [] if self._prove is None or self._active is None else self._hello(self._active.parent, t_ns)

    def _plan_return(self, t_ns: int) -> None:
        """Under a parent other than the preferred one: plan to try that one again, after a random time."""
        away = self._active is not None and self._active.parent.url != self.order[0].url
        self._return_ns = t_ns + int(self._rng.uniform(*RETURN_NS)) if away else 0

    def _go_back(self, t_ns: int) -> list[Effect]:
        """Try the best parent that is better than the active one."""
        assert self._active is not None
        if self._stays():
            self._plan_return(t_ns)
            return []
        if (parent := self._search.better(self._active.parent.url, t_ns)) is not None:
            return self._hello(parent, t_ns)
        self._plan_return(t_ns)
        return []

    # -- losing one ---------------------------------------------------------------------------------------------

    def _drop(self, link: _Link) -> list[Effect]:
        if self._trying is link:
            self._trying = None
        if self._links.pop(link.parent.url, None) is None:
            return []
        return [Disconnect(link.parent.url)]

    def _lose(self, link: _Link, why: str, t_ns: int, avoid_ns: int, keep: bool = False) -> list[Effect]:
        """The active parent is lost; look for another one after a random time."""
        out = [] if keep else self._drop(link)
        self._active = None
        self._return_ns = 0
        self._search.avoid(link.parent.url, t_ns + avoid_ns)
        self._search.lost(link.parent.url, t_ns)
        return [*out, Lost(why)]

    def _stood_still(self, t_ns: int) -> list[Effect]:
        """After a stop of this process (SIGSTOP, a paused machine) what waits in the connection is old: whoever asked
        for it was told that there is no answer, and may have done something else since. It is not read.  # T16"""
        stood_ns, self._turned_ns = t_ns - self._turned_ns, t_ns
        if self._active is None or stood_ns <= STOOD_NS:
            return []
        return self._lose(self._active, f"this process stood still for {stood_ns // NS_PER_S} s", t_ns, 0)

    # -- what comes ---------------------------------------------------------------------------------------------

    def received(self, parent: str, message: Message, t_ns: int) -> list[Effect]:
        """A message that came over the connection to ``parent`` (its url)."""
        if out := self._stood_still(t_ns):
            return out
        link = self._links.get(parent)
        if link is None or self._stopped:
            return []  # from a connection that was given up
        link.heard_ns = t_ns
        kind = message.kind
        if kind == "welcome":
            return self._welcome(link, message, t_ns)
        if kind == "sorry":
            return self._sorry(link, message, t_ns)
        if link is not self._active:
            return []
        if kind == "beat":
            return self._beat(link, message, t_ns)
        if kind == "fleet":
            self._heard(message.head)
        elif kind == "call":
            self._led(message.head["fence"], t_ns)
        if kind in AT_WORK and link.asks:  # that message proves that it is alive; ask only if the next one takes long
            self._beat_ns = t_ns + AT_WORK_NS
        return [Deliver(message)]

    def _led(self, fence: int, t_ns: int) -> None:
        """Note which root leads. A new root may have come while the parent stayed: then there is no new
        welcome.  # G2"""
        if fence > self.fence:
            self.fence = fence
            self._asked = None
            self._ask_ns = min(self._ask_ns, t_ns + int(self._rng.uniform(0, ASK_SOON_NS)))

    def _heard(self, fleet: Head | None) -> None:
        if fleet is not None and not self._judges:
            self.told(fleet)

    def told(self, fleet: Head) -> None:
        """This table of the fleet's holds counts."""
        self.fleet = max(self.fleet, (fleet["fence"], fleet["seq"]))
        self._missed = 0

    def _welcome(self, link: _Link, message: Message, t_ns: int) -> list[Effect]:
        if link is not self._trying and link is not self._active:
            return []  # too late: another parent was tried meanwhile
        if message.head["v"] != wire.VERSION or self.name in message.head["path"]:
            return self._refuse(link, message, t_ns)
        out: list[Effect] = []
        old = self._active
        if old is link and message.head["fresh"]:  # the connection broke, and only the parent has noticed
            out.append(Lost(f"{link.parent.url} had forgotten us"))
        if old is not None and old is not link:  # make before break
            out += [*self.send("goodbye", {}), *self._drop(old)]
        self._active, link.answered, link.with_answers = link, True, message.head["with_answers"]
        if self._trying is link:
            self._trying = None
        if old is not link:
            self.since_ns = t_ns
        for other in [x for x in self._links.values() if x is not link and x is not self._trying]:
            out += self._drop(other)
        self._search.found()
        self._beat_ns = t_ns + OWN_BEAT_NS
        self._heard(message.head["fleet"])
        self.fence = max(self.fence, message.head["fence"])
        self._plan_return(t_ns)
        self._asked, self._asks = None, 0
        return [*out, Deliver(message), *self._ask(t_ns)]

    def _refuse(self, link: _Link, message: Message, t_ns: int) -> list[Effect]:
        """A parent that is below this member, or that speaks another version: never use it, and log that once.  # T4"""
        out: list[Effect] = []
        url = link.parent.url
        if url not in self._loops:
            self._loops.add(url)
            path = " > ".join(message.head["path"])
            loop = self.name in message.head["path"]
            why = f"{self.name} is above it ({path})" if loop else "it speaks another version"
            out.append(Note(f"{url} cannot be a parent: {why}"))
        if link is self._active:
            return [*out, *self._lose(link, "the tree has a loop", t_ns, LOOP_NS)]
        out += self._drop(link)
        self._search.avoid(url, t_ns + LOOP_NS)
        self._tried(t_ns)
        return out

    def _sorry(self, link: _Link, message: Message, t_ns: int) -> list[Effect]:
        head = message.head
        if head["again"]:  # the parent has no session for this member (any more)
            if t_ns - link.hello_ns < HELLO_GAP_NS or link not in (self._active, self._trying):
                return []
            if link is self._trying:
                return self._hello(link.parent, t_ns)
            self._active = None
            out: list[Effect] = [Lost(f"{link.parent.url} has forgotten us")]
            if self._trying is not None:
                out += self._drop(self._trying)
            return [*out, *self._hello(link.parent, t_ns)]
        avoid_ns = head["retry_ms"] * 1_000_000
        if link is self._active:
            return self._lose(link, f"{link.parent.url}: {head['why']}", t_ns, avoid_ns, keep=True)
        if link is not self._trying:
            return []
        self._trying = None
        self._search.avoid(link.parent.url, t_ns + avoid_ns)
        refused = [x for x in self._links.values() if x is not self._active]
        out = [e for x in refused[KEEP_OPEN:] for e in self._drop(x)]
        self._tried(t_ns)
        return [*out, *self._still_here(t_ns)]

    def _beat(self, link: _Link, message: Message, t_ns: int) -> list[Effect]:
        head = message.head
        if self.name in head["path"]:
            return self._refuse(link, message, t_ns)
        self._led(head["fence"], t_ns)
        out: list[Effect] = [Deliver(message)]
        if head["ask"]:
            link.asks = True
            self._beat_ns = t_ns + OWN_BEAT_NS
            if self.role == "node":
                out.append(Send(link.parent.url, wire.LIVES))
            else:
                out += self.send("beat", {**self._beat_head(), "answer": True})
        missed = head["fleet_seq"] > self.fleet[1] and head["fence"] >= self.fleet[0]
        if missed and self._trying is None and t_ns - link.hello_ns >= BEAT_NS << self._missed:
            # A welcome, or the root after it, brings the fleet's holds.
            self._missed = min(self._missed + 1, MISSED_MAX)
            out += self._hello(link.parent, t_ns)
        return out
