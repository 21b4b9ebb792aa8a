"""The replay port: events that a subscriber missed, read from the root's log in a thread that may wait for a disk or
etcd.

Requesters get one page at a time, in turn; a requester that does not read delays only itself, gets no more, and is cut
off after a while. What waits for it is bounded in bytes: libzmq would keep two thousand messages, however long each is.
Requests are checked as if they came from an enemy.  # V4
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import zmq

from pact.cluster.publish import DRAIN_MAX, Endpoint, Threaded, fd_of, user_of
from pact.cluster.subscriptions import TOO_MANY_OF_KEY, TOO_MANY_SILENT
from pact.cluster.unread import Unread
from pact.cluster.zap import end_connection
from pact.core.root import public
from pact.core.tree.directory import Peer as Keyed
from pact.errors import JournalError, RequestError
from pact.limits import PUBLIC_CONNECTIONS_EACH_MAX, REPLAY_REQUEST_MAX, REPLAY_UNREAD_EACH_MAX
from pact.net.floods import Floods, connection
from pact.net.places import Keys, Silent
from pact.net.unended import LOOK_S, Accepted, Unended

SEND_MAX: Final = 2000
PEERS_MAX: Final = 1024
PEERS_EACH_MAX: Final = 16
ASKED_MAX: Final = 4
FLOOD_BYTES_MAX: Final = 8 << 20  # of one connection that are not read yet
UNREAD_RETRY_S: Final = 0.02
UNREAD_MAX_S: Final = 30.0
NOT_READ: Final = "answers without end that are not read"
NOT_LEADING: Final = "this root does not lead; ask the one whose heads you see"

Asked = public.Get | public.Snapshot | public.Refused


@dataclass(slots=True)
class _Peer:
    """A connection that waits for answers, and since when it has not read any."""

    user: str
    which: tuple[int, int] | None = None  # connection
    envelope: tuple[bytes, ...] = ()
    asked: deque[Asked] = field(default_factory=deque)
    unsent: public.Frames = ()
    unread_since_s: float = 0.0
    retry_s: float = 0.0


class Replay(Threaded):
    """See the module. All functions that are passed to it are called in its thread."""

    kind = zmq.ROUTER

    def __init__(
        self,
        context: zmq.Context[Any],
        at: Endpoint,
        cluster: str,
        *,
        read: Callable[[int], Iterator[bytes]],
        head: Callable[[], int | None],
        snapshot: Callable[[], tuple[int, bytes] | None] = lambda: None,
        allowed: Callable[[str], bool] = lambda key: True,
        send_max: int = SEND_MAX,
        unread_max_s: float = UNREAD_MAX_S,
        put_off: Callable[[str], object] = lambda key: None,
    ) -> None:
        """``read``: chunks from a number on, may raise JournalError. ``head``: the newest number; None: this root does
        not lead. ``snapshot``: a number, and JSON. ``allowed`` is called at each request with the key that sent it.
        ``put_off``: do not let this key connect for a while.
        """
        super().__init__(context, at, "pact-replay")
        self.options = {
            zmq.SNDHWM: send_max,
            zmq.RCVHWM: 0,
            zmq.MAXMSGSIZE: REPLAY_REQUEST_MAX,
            zmq.ROUTER_MANDATORY: 1,
        }
        self._cluster = cluster
        self._read, self._head, self._snapshot, self._allowed = read, head, snapshot, allowed
        self._unread_max_s = unread_max_s
        self._put_off = put_off
        self._peers: dict[bytes, _Peer] = {}
        self._users: Counter[str] = Counter()
        self._floods = Floods(FLOOD_BYTES_MAX)
        self._accepted, self._unended = Accepted(context), Unended(FLOOD_BYTES_MAX, FLOOD_BYTES_MAX)
        self._silent, self._keys = Silent(), Keys(PUBLIC_CONNECTIONS_EACH_MAX)
        self._look_due_s = 0.0
        self._unread = Unread(lambda fd: self._cut(fd, NOT_READ), counted_from=0)
        self.sent = 0
        self.gave_up = 0
        self.refused: Counter[str] = Counter()

    def stats(self) -> dict[str, Any]:
        return {"sent": self.sent, "refused": dict(self.refused), "gave_up": self.gave_up, "waiting": len(self._peers)}

    def _made(self, sock: zmq.Socket[Any]) -> None:
        self._accepted.follow(sock)

    def close(self) -> None:
        super().close()
        if not self._thread.is_alive():
            self._accepted.close()

    def _look(self) -> None:
        """Cut off who sends what never ends."""
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_S
            self._take_accepted()
            for fd in self._unended.look():
                self._cut(fd, "a message without end")
            for fd in self._silent.look():
                self._cut(fd, TOO_MANY_SILENT)

    def _take_accepted(self) -> None:
        new = list(self._accepted.take())
        for each in (self._unended, self._silent, self._keys):
            each.accepted(new)

    def _cut(self, fd: int, why: str) -> None:
        self.refused[why] += 1
        end_connection(fd, int(self.address.rpartition(":")[2]))

    def _heard(self, read: Mapping[int, str]) -> None:
        """Messages of these connections were read, which these keys have made."""
        self._take_accepted()  # they were accepted before
        self._unended.heard(read)
        for fd, user in read.items():
            if fd not in self._keys and (which := connection(fd)) is not None:
                self._silent.heard(which)
                if not self._keys.heard(which, user):
                    self._cut(fd, TOO_MANY_OF_KEY)

    def _begun(self) -> None:
        self._unread = Unread(lambda fd: self._cut(fd, NOT_READ), counted_from=0)
        self._peers.clear()
        self._users.clear()

    def _work(self, sock: zmq.Socket[Any]) -> float:
        self._look()
        if self._drain(sock):
            return 0.0
        now_s = time.monotonic()
        wait_s = LOOK_S
        for key, peer in list(self._peers.items()):
            if peer.retry_s > now_s:
                wait_s = min(wait_s, peer.retry_s - now_s)
                continue
            del self._peers[key]
            self._users[peer.user] -= 1
            if self._serve(sock, key, peer, now_s):
                self._peers[key] = peer  # behind the others
                self._users[peer.user] += 1
                wait_s = min(wait_s, max(0.0, peer.retry_s - now_s))
        self._users += Counter()  # drop users without requests
        return wait_s

    # -- requests ---------------------------------------------------------------------------------------------------

    def _drain(self, sock: zmq.Socket[Any]) -> bool:
        read: dict[int, str] = {}
        for _ in range(DRAIN_MAX):
            try:
                key, *rest = sock.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._heard(read)
                self._unended.caught_up()
                self._floods.caught_up()
                return False
            self._took = True
            frames = [bytes(f.buffer) for f in rest]
            user, fd = user_of(rest[-1]) if rest else "", -1
            if rest:
                read[fd := fd_of(rest[-1])] = user
                if user:  # without CURVE what is sent is shorter on its way, and nobody has a share
                    self._unread.came(bytes(key.buffer), fd, Keyed(user, "subscriber", user))
            self._take(bytes(key.buffer), user, fd, frames)
        self._heard(read)
        for fd, user in self._floods.behind(read, time.monotonic()).items():
            self._put_off(user)
            self._cut(fd, "too many requests")
        return True

    def _take(self, key: bytes, user: str, fd: int, frames: list[bytes]) -> None:
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= PEERS_MAX or (user and self._users[user] >= PEERS_EACH_MAX):
                self.refused["too many requesters"] += 1
                return
            peer = self._peers[key] = _Peer(user)
            self._users[user] += 1
        if len(peer.asked) >= ASKED_MAX:
            self.refused["too many requests"] += 1
            return  # the client asks again when no answer comes
        peer.envelope, peer.which = (), connection(fd)
        if frames and not frames[0]:
            peer.envelope, frames = (b"",), frames[1:]
        peer.asked.append(self._understood(user, frames))

    def _understood(self, user: str, frames: list[bytes]) -> Asked:
        as_json = bool(frames) and frames[0][:1] == b"["
        if not self._allowed(user):
            self.refused["not allowed"] += 1
            return public.Refused("this key may not ask here", as_json)
        try:
            return public.request(frames)
        except RequestError as exc:
            self.refused["garbage"] += 1
            return public.Refused(exc.message, as_json)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _serve(self, sock: zmq.Socket[Any], key: bytes, peer: _Peer, now_s: float) -> bool:
        """Send one answer, as far as the client reads it. Returns False if nothing is left to do for this client."""
        if peer.unsent and not self._send(sock, key, peer, now_s):
            return bool(peer.unsent)
        if not peer.asked:
            return False
        ask = peer.asked.popleft()
        for at, frames in self._answers(ask):
            peer.unsent = frames
            if not self._send(sock, key, peer, now_s):
                if isinstance(ask, public.Get) and frames[0].startswith(public.PREFIX.encode()):
                    peer.asked.appendleft(public.Get(ask.type, at, ask.as_json))  # the rest is read again, later
                return bool(peer.unsent)
        return bool(peer.asked)

    def _send(self, sock: zmq.Socket[Any], key: bytes, peer: _Peer, now_s: float) -> bool:
        """Returns False if the client does not read (``unsent`` stays, for a later try), or is gone, or has not read
        for too long."""
        try:
            if self._unread.waits(key, REPLAY_UNREAD_EACH_MAX):
                raise zmq.Again
            sock.send_multipart([key, *peer.envelope, *peer.unsent], zmq.NOBLOCK)
        except zmq.Again:  # V4
            peer.unread_since_s = peer.unread_since_s or now_s
            peer.retry_s = now_s + UNREAD_RETRY_S
            if now_s - peer.unread_since_s >= self._unread_max_s:
                self.gave_up += 1
                peer.unsent = ()
                if peer.which is not None and connection(peer.which[0]) == peer.which:
                    self._cut(peer.which[0], NOT_READ)
            return False
        except zmq.ZMQError:
            peer.unsent = ()
            return False
        for frame in (*peer.envelope, *peer.unsent):
            self._unread.sent((key,), frame)
        peer.unsent, peer.unread_since_s = (), 0.0
        self.sent += 1
        return True

    def _answers(self, ask: Asked) -> Iterator[tuple[int, public.Frames]]:
        if isinstance(ask, public.Refused):
            yield 0, public.control(ask.as_json, "ERROR", ask.why)
            return
        try:
            head = self._head()
            if head is None:
                yield 0, public.control(ask.as_json, "ERROR", NOT_LEADING)
            elif isinstance(ask, public.Get):
                yield from public.page(ask, self._read(ask.start), self._cluster, head)  # V2
            else:
                found = self._snapshot()
                yield (
                    0,
                    (
                        public.control(ask.as_json, "ERROR", "there is no snapshot yet")
                        if found is None
                        else public.control(ask.as_json, "SNAPSHOT", *found)
                    ),
                )
        except (JournalError, ValueError) as exc:
            self.refused["unreadable"] += 1
            yield 0, public.control(ask.as_json, "ERROR", f"the log cannot be read now: {exc}")
