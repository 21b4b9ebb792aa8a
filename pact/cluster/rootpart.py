"""The part that makes an aggregator the root: the log, the root's decisions, and the public side.

The decisions are in ``pact.core.root.root``; this is their shell: the committer's thread writes, the threads of the
publisher and the replay port talk to subscribers, and nothing here waits for any of them.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson

from pact.cluster import auth, page
from pact.cluster.aggregator import Aggregator
from pact.cluster.committer import Committer, Deposed, Durable, Elected, Failed, Posted, Saved, Works
from pact.cluster.lookers import EVERY_S, Lookers
from pact.cluster.nodesets import Folded, NodeSets
from pact.cluster.publish import Endpoint, Publisher
from pact.cluster.replay import Replay
from pact.cluster.states import UNKNOWN, States
from pact.cluster.turns import Turns
from pact.cluster.watcher import Watcher
from pact.core.root import log as rootlog
from pact.core.root import public
from pact.core.root.answers import answer_of
from pact.core.root.envelope import Asker
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.runs import progress, standing
from pact.core.root.salvage import load_past, told
from pact.core.root.term import Commit, Down, Effect, Publish
from pact.core.tree import wire
from pact.core.tree.wire import Message
from pact.errors import ChainError, PactError
from pact.host import garbage
from pact.host.clock import boot_id, boottime_ns, clock_synchronised
from pact.host.notify import log
from pact.journal.stores import opener
from pact.model import NS_PER_S

SNAPSHOT_EVERY: Final = 2_000  # chunks
SNAPSHOT_BYTES: Final = 64 << 20  # of chunks
CREDIT: Final = 64 << 20
SNAPSHOT_S: Final = 0.5  # a public snapshot serves all requests for this long: the loop waits while one is made
STATES_NS: Final = page.STATES_S * NS_PER_S
FRESH_NS: Final = 2 * NS_PER_S  # nodes that have come since are asked this soon


class RootPart:
    """See the module. The relay handles its messages like a parent's."""

    _asked_ns = 0  # when all nodes were asked for their states, by the monotonic clock
    _racks: Mapping[str, str] = MappingProxyType({})

    lookers: Lookers | None = None  # from the first looker on

    def __init__(self, aggregator: Aggregator) -> None:
        config = aggregator.config
        self.config = config
        self._aggregator = aggregator
        self._seals = aggregator.seals
        self.root: Root | None = None
        self.turns = Turns()
        self.offset_ns = 0
        self.commit_ns = 0
        self.oldest = 0
        self.trouble = ""
        self.damage, self._damaged_to = "", -1  # what was found at the election, and the last number that it concerns
        self._chunks = self._chunk_bytes = 0
        self._sets = NodeSets()
        self._last_failed = ""
        self.committer = Committer(opener(config.journal, config.cluster, config.journal_options), config.name)
        secret = aggregator.key.secret
        self.publisher = Publisher(
            aggregator.context,
            Endpoint(config.events, secret, auth.EVENTS),
            config.cluster,
            note=lambda text: log(text, 4),
            put_off=aggregator.gate.put_off,
        )
        self.replay = Replay(
            aggregator.context,
            Endpoint(config.replay, secret, auth.REPLAY),
            config.cluster,
            read=self.committer.read,
            head=self._head,
            snapshot=self._public_snapshot,
            allowed=lambda key: aggregator.authorized.may_connect(key, auth.REPLAY),
            put_off=aggregator.gate.put_off,
        )
        self.watcher = Watcher(self.committer.read) if config.http else None
        self._lookers_ns = 0
        self._applying = threading.Lock()
        self._snapshot: tuple[float, RootState, int, bytes] | None = None
        self.states = States()
        self._away = Folded([])
        self._states_at_ns = self._fresh_at_ns = 0
        try:
            self.publisher.start()
            self.replay.start()
            self.committer.start()
            if self.watcher is not None:
                self.watcher.start()
        except BaseException:
            self.close()
            raise

    # -- the seam -----------------------------------------------------------------------------------------------

    def pollables(self) -> Sequence[Any]:
        return (self,) if self.lookers is None else (self, self.lookers)

    def fileno(self) -> int:
        """The committer's descriptor."""
        return self.committer.fd

    def received(self, message: Message, t_ns: int, wall_ns: int) -> Iterable[Message]:
        if self.root is not None and self.turns.take(message):
            yield from self._handled(self.root, message, t_ns, wall_ns)

    def _handled(self, root: Root, message: Message, t_ns: int, wall_ns: int) -> Iterator[Message]:
        with self.turns.spending(message):
            effects = root.received(message, t_ns + self.offset_ns, wall_ns)
        yield from self._perform(effects)

    def tick(self, t_ns: int, wall_ns: int) -> Iterable[Message]:
        if not self.committer.alive:  # this root could never lead again: a new process is better
            raise PactError("the thread that writes the root's log has ended", "see the lines before this one")
        root = self.root
        if root is not None:
            for message in self.turns.due():
                yield from self._handled(root, message, t_ns, wall_ns)
            root.at(t_ns + self.offset_ns, wall_ns)
            wake_ns = root.next_wake_ns()
            if wake_ns is not None and wake_ns <= root.t_ns:
                yield from self._perform(root.tick(root.t_ns, wall_ns))
            if self.config.http or root.lookers:
                yield from self._look_at_states(root, t_ns)
            if root.lookers or self.lookers is not None:
                self._tell_lookers(root, t_ns)

    def next_wake_ns(self) -> int | None:
        if self.root is None:
            return None
        wake_ns, wait_s = self.root.next_wake_ns(), self.turns.wait_s()
        due = [] if wake_ns is None else [wake_ns - self.offset_ns]
        due += [] if wait_s is None else [boottime_ns() + int(wait_s * NS_PER_S)]
        return min(due, default=None)

    def ready(self, pollable: Any, t_ns: int, wall_ns: int) -> Iterable[Message]:
        if pollable is self.lookers:
            yield from self._to_lookers(self.lookers)
            return
        for posted in self.committer.poll():
            yield from self._posted(posted, t_ns, wall_ns)

    def removed(self, keys: Sequence[str]) -> None:
        """End the subscribers' connections: all connect anew, and those with removed keys cannot."""
        self.publisher.rebind()
        self.replay.rebind()

    def revoked(self, users: Sequence[str], t_ns: int, wall_ns: int) -> Iterable[Message]:
        """The sessions of these people end."""
        if self.root is not None:
            yield from self._perform(self.root.revoked(users, t_ns + self.offset_ns, wall_ns))

    def close(self) -> None:
        if self.lookers is not None:
            self.lookers.close()
        if self.watcher is not None:
            self.watcher.close()
        self.committer.close()
        self.publisher.close()
        self.replay.close()

    # -- the term -----------------------------------------------------------------------------------------------

    def _posted(self, posted: Posted, t_ns: int, wall_ns: int) -> Iterator[Message]:
        if isinstance(posted, Elected):
            yield from self._elected(posted, t_ns, wall_ns)
        elif isinstance(posted, Deposed):
            yield from self._deposed(posted.why)
        elif isinstance(posted, Failed):
            self.trouble = posted.why
            if posted.why != self._last_failed:
                self._last_failed = posted.why
                log(f"the root's log: {posted.what}: {posted.why}", 3)
        elif isinstance(posted, Works):
            self._works_again()
        elif isinstance(posted, Saved):
            self.oldest = posted.oldest
            if posted.gseq >= self._damaged_to:
                self.damage = ""  # no later root needs what is damaged
        elif self.root is not None:
            assert isinstance(posted, Durable)
            self._works_again()
            self.commit_ns = posted.took_ns
            yield from self._perform(self._applied(self.root, posted, t_ns + self.offset_ns, wall_ns))
            self._keep()

    def _works_again(self) -> None:
        if self._last_failed:
            log("the root's log can be used again")
        self.trouble = self._last_failed = ""

    def _applied(self, root: Root, posted: Durable, t_ns: int, wall_ns: int) -> list[Effect]:
        """The only place where the log's state moves on; a reader in another thread waits for its end."""
        with self._applying:
            return root.durable(posted.first, posted.count, t_ns, wall_ns)

    def _elected(self, posted: Elected, t_ns: int, wall_ns: int) -> Iterator[Message]:
        try:
            state, holes = load_past(posted.snapshot, posted.chunks)
        except (ChainError, ValueError) as exc:
            self._cannot_lead(f"the root's log does not verify: {exc}; keep it, and restore it from a backup")
            return
        self._works_again()
        self.damage, self._damaged_to = told(holes), holes[-1][1] if holes else -1
        if self.damage:
            log(f"{self.damage}; nodes send again what they still have", 2)
        if posted.doubted:
            log(posted.doubted, 2)
        if posted.lost:
            log(posted.lost, 2)
        boot = boot_id()
        self.offset_ns = continue_from(state, boot, t_ns, wall_ns, clock_synchronised())
        if self._seals is not None:
            self._seals.begin(secrets.token_hex(8), posted.fence)
        root = self.root = Root(
            self.config.name, state, posted.fence, self._sets, self.config.limits, self._seals, secrets.token_bytes(32)
        )
        self.states, root.spending = States(), self.turns.charged
        self._chunks = self._chunk_bytes = 0
        log(f"leading with fence {posted.fence}, from event {state.gseq}")
        yield wire.message(
            "welcome",
            {
                "v": wire.VERSION,
                "name": self.config.name,
                "path": [],
                "fence": posted.fence,
                "credit": CREDIT,
                "fleet": root.fleet(),
            },
        )
        self.publisher.lead(state.gseq, dict(state.last), state.chain.incarnation)
        if self.watcher is not None:
            self.watcher.lead(state.gseq)
        yield from self._perform(root.start(t_ns + self.offset_ns, wall_ns, boot, self.offset_ns))

    def _cannot_lead(self, why: str) -> None:
        """Nothing in the log ends this process, which also carries what is below it. It goes on looking.  # F37"""
        self.trouble = why
        if why != self._last_failed:
            self._last_failed = why
            log(why, 2)
        self.committer.load_again()

    def _deposed(self, why: str) -> Iterator[Message]:
        if self.root is None:
            return
        self.root = None
        self.turns = Turns()
        garbage.replaced()
        self.publisher.depose()
        if self.watcher is not None:
            self.watcher.depose()
        if self.lookers is not None:
            self.lookers.keep({})
        log(f"leading no more: {why}", 4)
        yield wire.message("sorry", {"why": f"{self.config.name} leads no more", "again": False, "retry_ms": 0})

    def _perform(self, effects: Iterable[Effect]) -> Iterator[Message]:
        for effect in effects:
            if isinstance(effect, Down):
                yield wire.message(effect.kind, effect.head, effect.body)
            elif isinstance(effect, Commit):
                root = self.root
                assert root is not None
                taken = self.committer.append(root.fence, effect.first, effect.count, effect.chunk)
                assert taken, "the root gives one chunk at a time"
                self._chunks += 1
                self._chunk_bytes += len(effect.chunk)
            elif isinstance(effect, Publish):
                self._publish(effect)
            else:
                log(effect.text, 4)

    def _publish(self, effect: Publish) -> None:
        root = self.root
        assert root is not None
        if self.watcher is not None:
            self.watcher.give(effect.chunk)
        if not self.publisher.publish(effect):
            self.publisher.lead(root.state.gseq, dict(root.state.last), root.state.chain.incarnation)

    def _keep(self) -> None:
        """From time to time: save a snapshot, so that the next start is quick, and delete old events."""
        root = self.root
        if root is None or (self._chunks < SNAPSHOT_EVERY and self._chunk_bytes < SNAPSHOT_BYTES):
            return
        self._chunks = self._chunk_bytes = 0
        before = max(0, root.state.gseq - self.config.keep_events)
        self.committer.save_snapshot(root.fence, root.state.gseq, root.state.to_bytes(), before)

    # -- for people who look ------------------------------------------------------------------------------------

    def _look_at_states(self, root: Root, t_ns: int) -> Iterator[Message]:
        """Ask all nodes from time to time; in between, those that have come since."""
        if t_ns < self._fresh_at_ns:
            return
        self._fresh_at_ns = t_ns + FRESH_NS
        if t_ns >= self._states_at_ns:
            if t_ns >= self._states_at_ns + STATES_NS:  # nobody has looked: those answers say nothing of now
                self.states = States()
            self._states_at_ns, self._asked_ns = t_ns + STATES_NS, time.monotonic_ns()
            yield from self._ask_states(root, list(root.nodes))
        else:
            yield from self._ask_states(root, self.states.unasked(root.nodes))

    def _ask_states(self, root: Root, names: list[str]) -> Iterator[Message]:
        """Ask these nodes for their states: a handful of answers, whatever the number of nodes."""
        if not names:
            return
        states = self.states

        def part(names: list[str], body: bytes) -> None:
            result = answer_of(body).result
            states.heard(names, str(result.get("state", UNKNOWN)), result.get("untracked") is True)

        def done(lost: dict[str, str]) -> None:
            states.heard(lost, UNKNOWN)

        states.asked(names)
        caller = Asker("pact", "viewer")
        root.questions.ask(names, "state", b"{}", caller, STATES_NS, part, done)
        yield from self._perform(root.take_effects())

    def _tell_lookers(self, root: Root, t_ns: int) -> None:
        """Hand what the loop knows to the thread that tells people, at most once a second."""
        lookers = self.lookers
        if lookers is None:
            if self.watcher is None:  # no web page needs one
                self.watcher = Watcher(self.committer.read)
                self.watcher.start()
                self.watcher.lead(root.state.gseq)
            lookers = self.lookers = Lookers(self.watcher)
            self.watcher.changed = _both(self.watcher.changed, lookers.changed)
            self._aggregator.watch(lookers)
        if root.lookers and t_ns >= self._lookers_ns:
            self._lookers_ns = t_ns + int(EVERY_S * NS_PER_S)
            lookers.give({**self._aggregator.shown(), **self.shown()})  # first: what was given last may be of last week
        lookers.keep(root.lookers)

    def _to_lookers(self, lookers: Lookers) -> Iterator[Message]:
        root = self.root
        for (client, id_), body in lookers.take():
            if root is not None:
                root.down("event", {"client": client, "id": id_}, body)
        if root is not None:
            yield from self._perform(root.take_effects())

    def shown(self) -> dict[str, Any]:
        """The root's part of the data for ``page``. It runs in the loop's thread, so it folds nothing."""
        root = self.root
        if root is None:
            return {"root": True, "leading": False, "healthy": not self.trouble, "trouble": self.trouble}
        state = root.state
        groups = [self._shown_group(root, g) for g in state.groups.values() if g.state != rootlog.FINISHED]
        away = root.questions.targets(None)[1]
        if away != self._away.names:
            self._away = Folded(away)
        new = self.states.untracked(root.nodes)
        by_state = {**self.states.of(root.nodes), **({"away": self._away} if away else {})}
        return {
            "root": True,
            "leading": True,
            "fence": root.fence,
            "gseq": state.gseq,
            "oldest": self.oldest,
            "events": root.counters.events,
            "commit_s": self.commit_ns / 1e9,
            "connected": len(root.nodes),
            "states_age_s": max(0, root.t_ns - self._states_at_ns + STATES_NS) / 1e9,
            "states": {s: [folded, len(folded.names)] for s, folded in by_state.items()},
            "untracked": [new, len(new.names)],
            "group_states": Counter(g["state"] for g in groups),
            "calls": len(root.questions.open),
            "groups": groups[: page.ROWS_MAX],
            "holds": root.holds(),
            "refused": dict(root.counters.refused),
            "healthy": not self.trouble and not self.damage,
            "trouble": self.trouble or self.damage,
            "fleet": self._fleet(root, away),
        }

    def _fleet(self, root: Root, away: list[str]) -> dict[str, Any]:
        """What the live page needs of every node. Its thread reads it, so nothing in it changes later."""
        racks = {name: known.rack for name, known in root.nodes.items()}
        if racks != self._racks:
            self._racks = racks
        return {"racks": self._racks, "away": away, "said": self.states.said, "asked_ns": self._asked_ns}

    @staticmethod
    def _shown_group(root: Root, group: rootlog.Group) -> dict[str, Any]:
        state, ends_ns = standing(root, root.groups.runs.get(group.id), group)
        left_s = None if ends_ns is None else max(0, ends_ns - root.t_ns) / 1e9
        # In whole seconds: clocks are read one after the other, and the end must not seem to move.
        ends_s = None if ends_ns is None else round((root.wall_ns + ends_ns - root.t_ns) / 1e9)
        return {
            "id": group.id,
            "state": state,
            "nodes": group.nodes,
            "owner": group.owner.user,
            "message": group.message,
            "left_s": left_s,
            "ends_ms": None if ends_s is None else ends_s * 1000,
            "begun": group.begun,
            "decision": group.decision,
            "why": group.why,
            **progress(root, root.groups.runs.get(group.id)),
        }

    # -- for the other threads ----------------------------------------------------------------------------------

    def _head(self) -> int | None:
        root = self.root
        return None if root is None else root.state.gseq

    def _public_snapshot(self) -> tuple[int, bytes] | None:
        """For subscribers that came too late for the events: up to where every node is, and the present groups and
        holds."""
        root = self.root
        if root is None:
            return None
        now_s, kept = time.monotonic(), self._snapshot
        if kept is None or kept[1] is not root.state or now_s - kept[0] >= SNAPSHOT_S:
            with self._applying:  # its content and its number belong to one moment  # V2
                gseq, found = root.state.gseq, public.snapshot(root.state)
            kept = self._snapshot = (now_s, root.state, gseq, orjson.dumps(found))
        return kept[2], kept[3]


def continue_from(state: RootState, boot: str, boottime: int, wall_ns: int, synchronised: bool) -> int:
    """The offset that makes node time from this machine's clock: it never runs backwards, whichever root
    leads.  # B2"""
    if state.gseq < 0 or not state.boot_id:
        return 0
    if state.boot_id == boot and boottime + state.offset_ns >= state.t_ns:
        return state.offset_ns
    down_ns = max(0, wall_ns - state.wall_ns) if synchronised else 0
    return state.t_ns + down_ns - boottime


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def each() -> None:
        first()
        second()

    return each


def make_root(aggregator: Aggregator) -> RootPart:
    return RootPart(aggregator)
