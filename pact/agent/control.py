"""The control socket: one JSON object on each line, in and out. Garbage gets an error and a closed connection.

The identity of the peer comes from the kernel (``SO_PEERCRED``, ``SO_PEERGROUPS``), never from the request.  # S1
"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import orjson

from pact.agent.client import Client
from pact.agent.listening import listen
from pact.agent.peers import gids_of, groups_of
from pact.core.node.events import Caller
from pact.errors import EXIT_UNREACHABLE, EXIT_USAGE, OUT_OF, PactError
from pact.host.budget import Budget
from pact.limits import (
    DENIED_EACH_MAX,
    SOCKET_CLIENTS_EACH_MAX,
    SOCKET_CLIENTS_MAX,
    SOCKET_SILENT_S,
    SOCKET_VIEWERS_MAX,
)
from pact.model import Actor
from pact.observe.attribution import owner_of, writer_of_peer

#: Descriptors that no client may use up: for the files that the agent observes and stores.
HEADROOM: Final = 24
DEAF_S: Final = 0.5
FULL: Final = (
    orjson.dumps(
        {
            "ok": False,
            "exit": EXIT_UNREACHABLE,
            "hint": "raise LimitNOFILE, or end what uses it up",
            "message": "the agent has no file descriptor left",
            "result": {},
        }
    )
    + b"\n"
)
SERVE_S: Final = 0.02
ACCEPT_MAX: Final = 32  # connections in a turn of the loop
PACE_S: Final = 0.5
GROUPS_FOR_S: Final = 60.0  # the numbers of the groups are looked up again after this time
FIRST_SIGN_S: Final = 0.2
SIGN_S: Final = 2.0  # how often a waiting client gets a sign that the agent works on its request


class Control:
    """Accepts, reads and writes. The agent interprets the requests."""

    def __init__(self, path: str, epoll: select.epoll, admin_groups: Sequence[str], ops_groups: Sequence[str]) -> None:
        """Raises PactError if the socket cannot be made."""
        self.path = path
        self.clients: dict[int, Client] = {}
        self.garbage = 0
        self._served: Client | None = None
        self._touch_s = 0.0
        # Uid -> refusals left, and the time for which that holds.
        self._allowance: dict[int | None, tuple[float, float]] = {}
        self.budget = Budget()
        self._epoll = epoll
        self._group_names = (tuple(admin_groups), tuple(ops_groups))
        self._groups_read_s = -GROUPS_FOR_S
        self._admin: set[int] = set()
        self._ops: set[int] = set()
        self._sock = listen(path)
        self._spare: list[int] = []
        self._set_aside()
        self._deaf_until_s = 0.0
        self.fd = self._sock.fileno()
        epoll.register(self.fd, select.EPOLLIN)

    def accept(self) -> None:
        """Take in some of those that wait: who connects again and again must not keep the loop here.  # S8"""
        for _ in range(ACCEPT_MAX):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno not in OUT_OF or not self._turn_away():
                    self._go_deaf()
                    return
                continue
            if not self._descriptors_left(sock):
                _say_full(sock)
                continue
            sock.setblocking(False)
            try:
                pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                role = self._role(uid, groups_of(sock))
            except OSError:
                sock.close()
                continue
            if self._no_room_for(uid, role):
                sock.close()
                continue
            owner = owner_of(writer_of_peer(pid, uid))
            client = Client(sock, Caller(Actor(owner.user, uid, role, "socket"), owner))
            self.clients[client.fd] = client
            client.events = select.EPOLLIN
            self._epoll.register(client.fd, select.EPOLLIN)

    @staticmethod
    def _descriptors_left(sock: socket.socket) -> bool:
        """Whether enough descriptors are left for the agent's own work: a new descriptor gets the lowest free
        number."""
        return sock.fileno() < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - HEADROOM

    def _turn_away(self) -> bool:
        """No descriptor is left: use the reserved one to tell a waiting client. Returns False if that failed too: epoll
        would report the waiting client again and again, at the cost of a processor."""
        if not self._spare:
            return False
        os.close(self._spare.pop())
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return False
        _say_full(sock)
        return self._set_aside()

    def _set_aside(self) -> bool:
        """Reserve a descriptor for telling clients that there is none."""
        try:
            self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _go_deaf(self) -> None:
        """Stop listening for a moment."""
        if not self._deaf_until_s:
            self._epoll.unregister(self.fd)
        self._deaf_until_s = time.monotonic() + DEAF_S

    def deaf_s(self) -> float | None:
        """In how many seconds listening is tried again; ``None``: the socket listens."""
        return max(0.0, self._deaf_until_s - time.monotonic()) if self._deaf_until_s else None

    def listen_again(self) -> None:
        if not self._deaf_until_s or time.monotonic() < self._deaf_until_s:
            return
        if not self._spare and not self._set_aside():
            self._deaf_until_s = time.monotonic() + DEAF_S
            return
        self._deaf_until_s = 0.0
        self._epoll.register(self.fd, select.EPOLLIN)

    def _no_room_for(self, uid: int, role: str) -> bool:
        if role == "admin":
            return False
        there = [c for c in self.clients.values() if not c.admin]
        if sum(c.caller.actor.uid == uid for c in there) >= SOCKET_CLIENTS_EACH_MAX:
            return True
        if len(self.clients) >= SOCKET_CLIENTS_MAX:
            return not self._give_up_one(there, uid)
        viewers = [c for c in there if c.caller.actor.role == "viewer"]
        return role == "viewer" and len(viewers) >= SOCKET_VIEWERS_MAX and not self._give_up_one(viewers, uid)

    def _give_up_one(self, among: Sequence[Client], uid: int) -> bool:
        """Close one connection of the account that has the most, for an account that has fewer; or one that has long
        been silent.  # S8"""
        held = Counter(c.caller.actor.uid for c in among)
        most = max(held.values(), default=0)
        greedy = [c for c in among if held[c.caller.actor.uid] == most > held[uid] + 1]
        silent = [c for c in among if c.silent and time.monotonic() - c.said_s > SOCKET_SILENT_S]
        chosen = min(greedy or silent, key=lambda c: (not c.silent, c.said_s), default=None)
        if chosen is not None:
            self.drop(chosen)
        return chosen is not None

    def _role(self, uid: int, gids: set[int]) -> str:
        if uid != 0 and time.monotonic() - self._groups_read_s >= GROUPS_FOR_S:
            self._groups_read_s = time.monotonic()
            self._admin, self._ops = map(gids_of, self._group_names)
        return "admin" if uid == 0 or gids & self._admin else "ops" if gids & self._ops else "viewer"

    def serve(self, on_line: Callable[[Client, bytes], None]) -> None:
        """Carry out requests: admins first, one request for each client in turn, for a bounded time.

        So a flood from one connection delays another client's request by at most one turn.
        """
        ends_s = time.monotonic() + SERVE_S
        more = True
        while more and time.monotonic() < ends_s:
            more = False
            for client in sorted(self.waiting(), key=lambda c: not c.admin):
                if self.connected(client) and client.ready_for_more and client.lines:
                    began_s = time.monotonic()
                    client.said_s = began_s - SIGN_S + FIRST_SIGN_S
                    self._served = client
                    self._carry_out(client, on_line)
                    self._served = None
                    self.flush(client)
                    if not client.admin:
                        self.budget.spend(client.caller.actor.uid, time.monotonic() - began_s)
                    more = True
                if time.monotonic() >= ends_s:
                    break

    def _carry_out(self, client: Client, on_line: Callable[[Client, bytes], None]) -> None:
        try:
            line = client.next_request()
        except PactError as exc:
            self.refuse(client, exc.message)
        else:
            on_line(client, line)

    def waiting(self) -> list[Client]:
        """Clients whose next request can be carried out now; not the one whose request is just being carried out."""
        clients = (c for c in self.clients.values() if c.lines and c is not self._served)
        return [c for c in clients if c.ready_for_more and not self._paused(c)]

    def note_denied(self, uid: int | None) -> None:
        """A refusal was journaled. An account with many refusals is served once a second.  # S3"""
        now_s = time.monotonic()
        left, since_s = self._allowance.get(uid, (float(DENIED_EACH_MAX), now_s))
        left = min(DENIED_EACH_MAX, left + now_s - since_s) - 1
        self._allowance[uid] = (left, now_s)
        if len(self._allowance) > SOCKET_CLIENTS_MAX:
            self._allowance = {u: (n, t) for u, (n, t) in self._allowance.items() if now_s - t < DENIED_EACH_MAX}

    def _paused(self, client: Client) -> bool:
        left, since_s = self._allowance.get(client.caller.actor.uid, (1.0, 0.0))
        return not client.admin and (
            left + time.monotonic() - since_s < 1 or self.budget.wait_s(client.caller.actor.uid) > 0
        )

    def pause_s(self) -> float | None:
        """In how many seconds to look again at requests that are held back, if there are any."""
        waits = [
            self.budget.wait_s(c.caller.actor.uid) or PACE_S
            for c in self.clients.values()
            if c.lines and self._paused(c)
        ]
        return min(waits, default=None)

    def ready(self, fd: int, mask: int) -> None:
        """One client is readable, writable or gone."""
        client = self.clients.get(fd)
        if client is None:
            return
        client.gone = bool(mask & select.EPOLLHUP)
        if mask & select.EPOLLIN:
            try:
                there = client.read()
            except PactError as exc:
                self.refuse(client, exc.message)
                there = True
            if not there or (client.half_closed and mask & select.EPOLLHUP):  # it does not read either
                self.drop(client)
                return
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            self.drop(client)
            return
        self.flush(client)

    def name_groups(self, admin_groups: Sequence[str], ops_groups: Sequence[str]) -> None:
        """From now on these groups give the roles, also to connected clients."""
        self._group_names = (tuple(admin_groups), tuple(ops_groups))
        self._groups_read_s = -GROUPS_FOR_S
        for client in self.clients.values():
            actor = client.caller.actor
            if actor.via == "socket" and actor.uid is not None:
                role = self._role(actor.uid, groups_of(client.sock))
                client.caller = replace(client.caller, actor=replace(actor, role=role))

    def show_life(self) -> None:
        """The socket's modification time shows when the loop last ran; waiting clients get a sign that their request is
        being worked on."""
        now_s = time.monotonic()
        if now_s >= self._touch_s:
            self._touch_s = now_s + 1.0
            try:
                os.utime(self.path, follow_symlinks=False)
            except OSError:
                pass  # the socket file was removed; connected clients are still served
        for client in [c for c in self.clients.values() if c.wants_a_sign and now_s >= c.said_s + SIGN_S]:
            client.send_sign()
            self.flush(client)

    def next_sign_s(self) -> float | None:
        """In how many seconds the next sign of life is due."""
        due = [c.said_s + SIGN_S for c in self.clients.values() if c.wants_a_sign]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def refuse(self, client: Client, why: str) -> None:
        """Answer garbage, and close."""
        self.garbage += 1
        client.send({"ok": False, "exit": EXIT_USAGE, "message": why, "hint": "", "result": {}})
        client.closing = True

    def connected(self, client: Client) -> bool:
        """Whether the client is still connected: its descriptor's number may belong to another client by now."""
        if client.remote:
            return client.open
        return self.clients.get(client.fd) is client

    def flush(self, client: Client) -> None:
        if client.remote or not self.connected(client):
            return
        if not client.write():
            self.drop(client)
            return
        reads = not client.half_closed and not client.lines  # a client with open requests is not read
        wanted = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if client.may_write else 0)
        if wanted != client.events:
            client.events = wanted
            self._epoll.modify(client.fd, wanted)

    def drop(self, client: Client) -> None:
        if self.connected(client):
            del self.clients[client.fd]
            self._epoll.unregister(client.fd)
            client.sock.close()

    def close(self) -> None:
        for client in list(self.clients.values()):
            client.write()
            self.drop(client)
        if not self._deaf_until_s:
            self._epoll.unregister(self.fd)
        self._sock.close()
        for fd in self._spare:
            os.close(fd)
        try:
            os.unlink(self.path)
        except OSError:
            pass


def _say_full(sock: socket.socket) -> None:
    """Tell a client that it cannot be served, and close."""
    with sock:
        sock.setblocking(False)
        try:
            sock.send(FULL)
        except OSError:
            pass  # the client does not read
