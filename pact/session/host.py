"""One session: it owns the terminal (or the pipes), runs the person's process, and carries frames to its client.

It is a process of root's with a cgroup of its own, which the keeper forks. It asks nobody and decides little: who may
open and attach was decided by the agent, the only one that can connect. Without a client output goes on into a
bounded buffer; a client that does not read stops the person's process, and nobody else. It outlives the agent: what a
restarted agent has to know stands in a small file beside its socket.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

from pact.session import account, cast, cgroups, frames, spawn
from pact.session.attached import Client
from pact.session.frames import CREDIT_STEP, FrameError, credit, frame, said
from pact.session.output import Output
from pact.session.places import write_state
from pact.session.prepare import Prepared

READ: Final = 64 << 10
TERMINAL_READ: Final = 4 << 10  # the kernel gives no more of a terminal at once
DEAF_S: Final = 0.1
DRAIN_S: Final = 0.3  # how long output is awaited after the process has ended, while another holds its terminal
LINGER_S: Final = 60.0  # how long an ended session waits for a client that was cut off
HANG_S: Final = 1.0  # between a hangup and the end of the terminal
WHOLE_GRACE_S: Final = 0.4
LEFT_S: Final = 0.2  # what ends within so long after its command was not left behind
LEFT_LOOK_S: Final = 0.02
REAP_S: Final = 1.0
GRACE_S: Final = 5.0  # between a hangup and a kill
WARN_S: Final = 60.0
SENDING: Final = 128 << 10
FOR_EVER: Final = float("inf")


class Session:
    """See the module. ``run`` returns when everything has ended."""

    def __init__(self, made: Prepared) -> None:
        request = made.request
        self.made, self.id, self.terminal, self.size = made, made.id, made.terminal, made.size
        self.whole = bool(request.get("whole"))  # a command: when it is ended, nothing of it stays
        self.grace_s = WHOLE_GRACE_S if self.whole else GRACE_S
        self.idle_s = float(request.get("idle_s") or 0) or FOR_EVER
        self.detached_s = float(request.get("detached_s") or 0) or FOR_EVER
        self.state: dict[str, Any] = dict(made.state)
        self.pam: account.Pam | None = None
        self.cast: cast.Cast | None = None
        self.client: Client | None = None
        self.newcomers: dict[int, Client] = {}
        self.streams: dict[int, tuple[bytes, Output]] = {}
        self.outputs: dict[bytes, Output] = {}
        for fd, kind in zip(made.outputs, (b"O", b"E"), strict=False):
            self.outputs[kind] = Output(lossy=made.terminal)
            self.streams[fd] = kind, self.outputs[kind]
        assert made.listener is not None
        self.listener = made.listener
        self.input = bytearray()
        self.input_fd = made.input_fd
        self.input_ends = False
        self.in_bytes = self.out_bytes = 0
        self.pid = self.pidfd = -1
        self.end: dict[str, Any] | None = None  # what ``X`` will say
        self.why = ""
        self.hung_up_s = FOR_EVER
        self.killed = self.warned = False
        now_s = time.monotonic()
        self.began_s = self.active_s = self.alone_s = now_s
        self.ended_s = FOR_EVER
        self.deaf_s = 0.0  # until then nobody has the terminal open
        self.settled = False  # what a command has left behind is ended, or counted

    def _save(self) -> None:
        try:
            write_state(self.made.state_path, self.state)
        except OSError:
            pass  # a full disk: the session goes on

    # -- while it runs -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        poll = select.poll()
        watched: dict[int, int] = {}
        while True:
            self._watch(poll, watched)
            wait_s = self._due_s()
            for fd, mask in poll.poll(None if wait_s == FOR_EVER else max(0, int(wait_s * 1000) + 1)):
                self._ready(fd, mask)
            self._push()
            if self.whole and self.end is None:
                spawn.reap_orphans(self.pid)
            if self._over():
                return

    def _wanted(self) -> dict[int, int]:
        """What to wait for now: nothing that nobody could take."""
        wanted = {self.listener.fileno(): select.POLLIN}
        if self.end is None and self.pidfd >= 0:
            wanted[self.pidfd] = select.POLLIN
        for fd, (_, output) in self.streams.items():
            if output.room(self.client is not None) >= TERMINAL_READ and time.monotonic() >= self.deaf_s:
                wanted[fd] = select.POLLIN
        if self.input_fd >= 0 and self.input:
            wanted[self.input_fd] = wanted.get(self.input_fd, 0) | select.POLLOUT
        if self.client is not None:
            wanted[self.client.fd] = select.POLLIN | (select.POLLOUT if self.client.out else 0)
        for fd in self.newcomers:
            wanted[fd] = select.POLLIN
        return wanted

    def _watch(self, poll: select.poll, watched: dict[int, int]) -> None:
        wanted = self._wanted()
        for fd in [fd for fd in watched if fd not in wanted]:
            del watched[fd]
            try:
                poll.unregister(fd)
            except KeyError:
                pass
        for fd, mask in wanted.items():
            if watched.get(fd) != mask:
                poll.register(fd, mask)
                watched[fd] = mask

    def _due_s(self) -> float:
        """Seconds until something is due without anybody doing anything."""
        now_s, due = time.monotonic(), [FOR_EVER]
        if self.end is None:
            if self.hung_up_s == FOR_EVER:
                idle_ends_s = self.active_s + self.idle_s
                due.append(idle_ends_s if self.warned else idle_ends_s - WARN_S)
                if self.client is None:
                    due.append(self.alone_s + self.detached_s)
            elif not self.killed:
                due.append(self.hung_up_s + (HANG_S if self.terminal and self.streams else self.grace_s))
            if self.deaf_s > now_s:
                due.append(self.deaf_s)
            if self.whole:
                due.append(now_s + REAP_S)
        else:
            due.append(self.ended_s + (DRAIN_S if self.streams else 0.0))
            if self.client is None or self._undelivered():
                due.append(max(self.ended_s, self.alone_s) + min(LINGER_S, self.detached_s))
            if not self.streams:
                due.remove(self.ended_s)
        left = min(due) - now_s
        return left if left == FOR_EVER else max(0.0, left)

    def _ready(self, fd: int, mask: int) -> None:
        if fd == self.listener.fileno():
            self._accept()
        elif fd == self.pidfd:
            self._reap()
        elif self.client is not None and fd == self.client.fd:
            self._from_client(self.client, mask)
        elif fd in self.newcomers:
            self._from_client(self.newcomers[fd], mask)
        else:
            if mask & select.POLLOUT and fd == self.input_fd:
                self._feed()
            if mask & (select.POLLIN | select.POLLHUP | select.POLLERR) and fd in self.streams:
                self._read(fd)
            elif fd == self.input_fd and mask & select.POLLERR:
                self._close_input()

    def _read(self, fd: int) -> None:
        """Take what the person's processes have written, as much as may be kept."""
        kind, output = self.streams[fd]
        room, got = output.room(self.client is not None), 0
        while got < min(room, READ):
            try:
                data = os.read(fd, min(READ, room - got))
            except BlockingIOError:
                break
            except OSError:  # of a terminal whose last process is gone
                data = b""
            if not data:
                self._closed(fd)
                break
            got += len(data)
            output.put(data)
            if self.cast is not None:
                self.cast.output(data, kind.decode())
            if len(data) < 256:  # somebody types: be quick
                break
        self.out_bytes += got
        output.trim()
        if got:
            self._active()

    def _closed(self, fd: int) -> None:
        if self.terminal and self.end is None:
            self.deaf_s = time.monotonic() + DEAF_S  # all have closed it, and the shell is just ending, or lives on
            return
        self._give_up(fd)

    def _give_up(self, fd: int) -> None:
        """Close this side of a stream."""
        self.streams.pop(fd, None)
        if fd == self.input_fd:
            self.input_fd = -1
            self.input.clear()
        os.close(fd)

    def _active(self) -> None:
        self.active_s, self.warned = time.monotonic(), False

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.end = {"exit": code} if code >= 0 else {"signal": signal.Signals(-code).name.removeprefix("SIG")}
        self.ended_s = time.monotonic()
        self.deaf_s = 0.0
        os.close(self.pidfd)
        self.pidfd = -1
        self.state["end"] = {**self.end, "why": self.why, **self._counts()}
        self._save()

    def _counts(self) -> dict[str, int]:
        return {
            "in": self.in_bytes,
            "out": self.out_bytes,
            "lost": sum(o.lost for o in self.outputs.values()),
            "ns": int((time.monotonic() - self.began_s) * 1e9),
        }

    # -- clients -----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self.newcomers) >= 4:
            oldest = next(iter(self.newcomers))
            self.newcomers.pop(oldest).sock.close()
        self.newcomers[sock.fileno()] = Client(sock)

    def _from_client(self, client: Client, mask: int) -> None:
        if mask & select.POLLOUT and not client.flush():
            self._drop(client)
            return
        if not mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = client.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        try:
            for kind, payload in client.reader.feed(data):
                self._hear(client, kind, payload)
        except FrameError as exc:
            client.send(said(b"X", {"why": f"this client sends nonsense: {exc}"}))
            client.flush()
            self._drop(client)

    def _hear(self, client: Client, kind: bytes, payload: bytes) -> None:
        if client is not self.client:
            if kind != b"A" or client.fd not in self.newcomers:
                raise FrameError("the first frame must be A")
            self._attach(client, frames.object_of(payload))
        elif kind == b"I":
            self._typed(client, payload)
        elif kind == b"C":
            client.may = min(client.may + frames.credit_of(payload), 1 << 40)
        elif kind == b"W":
            self._resize(frames.size_of(payload))
        elif kind == b"S":
            self._signal(payload.decode("ascii", "replace"))
        elif kind == b"D":
            self.input_ends = True
            if not self.input:
                self._end_input()
        else:
            raise FrameError(f"a client does not send {kind.decode()}")

    def _attach(self, client: Client, wish: Mapping[str, Any]) -> None:
        del self.newcomers[client.fd]
        client.by = str(wish.get("by", ""))[:200]
        if "end" in wish:
            client.sock.close()
            self.hang_up(str(wish["end"])[:200])
            return
        if self.client is not None:
            self.client.send(said(b"X", {"why": f"taken over by {client.by}"}))
            self._drop(self.client)
        self.client = client
        self.alone_s = FOR_EVER
        self._active()
        lost, at = 0, {}
        for kind, output in self.outputs.items():
            come = wish.get("from" if kind == b"O" else "from_err")
            at[kind], gone = output.attach(come if type(come) is int and come >= 0 else None)
            lost += gone
        answer = {"id": self.id, "who": self.state.get("who", ""), "since": self.state["began"], "lost": lost}
        answer |= {"at": at[b"O"], "terminal": self.terminal} | ({"at_err": at[b"E"]} if b"E" in at else {})
        client.send(said(b"A", answer))
        if self.terminal and {"rows", "cols"} <= wish.keys():
            again = type(wish["rows"]) is int and type(wish["cols"]) is int
            size = frames.clamped(wish["rows"], wish["cols"]) if again else self.size
            changed = size != self.size
            self._resize(size)
            if not changed and wish.get("redraw"):
                self._signal("WINCH")
        self.state["attached"] = client.by
        self._save()

    def _drop(self, client: Client) -> None:
        client.flush()
        client.sock.close()
        self.newcomers.pop(client.fd, None)
        if client is self.client:
            self.client = None
            self.alone_s = time.monotonic()
            self.input_ends = self.input_ends and not self.terminal
            self.state["attached"] = ""
            if self.end is None:
                self._save()

    def _push(self) -> None:
        """Give the client what it may be sent."""
        client = self.client
        if client is None or client.gone:
            return
        for kind, output in self.outputs.items():
            while output.waiting and client.may > 0 and len(client.out) < SENDING:
                data = output.next(min(frames.PAYLOAD_MAX, client.may))
                client.may -= len(data)
                client.send(frame(kind, data))
        if client.consumed >= CREDIT_STEP or (client.consumed and not self.input):
            client.send(credit(client.consumed))
            client.given += client.consumed
            client.consumed = 0
        if client.out and not client.flush():
            self._drop(client)

    # -- input -------------------------------------------------------------------------------------------------------

    def _typed(self, client: Client, data: bytes) -> None:
        client.given -= len(data)
        if client.given < 0:
            raise FrameError("more input than it may send")
        self.in_bytes += len(data)  # counted, and never kept  # X8
        self._active()
        if self.input_fd < 0 or self.input_ends:
            client.consumed += len(data)  # nobody reads it any more
            return
        self.input += data
        self._feed()

    def _feed(self) -> None:
        while self.input and self.input_fd >= 0:
            try:
                wrote = os.write(self.input_fd, memoryview(self.input)[:READ])
            except BlockingIOError:
                return
            except OSError:
                self._close_input()
                return
            del self.input[:wrote]
            if self.client is not None:
                self.client.consumed += wrote
        if self.input_ends and not self.input:
            self._end_input()

    def _end_input(self) -> None:
        if not self.terminal:
            self._close_input()
        elif self.input_fd >= 0:
            try:
                os.write(self.input_fd, b"\x04")
            except OSError:
                pass
            self.input_ends = False

    def _close_input(self) -> None:
        """Nobody reads the input any more, or it has ended."""
        if self.client is not None:
            self.client.consumed += len(self.input)
        self.input.clear()
        if self.input_fd >= 0 and not self.terminal:
            os.close(self.input_fd)
            self.input_fd = -1

    def _resize(self, size: frames.Size) -> None:
        if not self.terminal or self.input_fd < 0:
            return
        if size != self.size:
            self.size = size
            if self.cast is not None:
                self.cast.resized(size[0], size[1])
        try:
            spawn.set_size(self.input_fd, size)
        except OSError:
            pass

    def _signal(self, name: str) -> None:
        number = frames.SIGNALS.get(name)
        if number is None:
            raise FrameError(f"no signal {name[:16]!r}")
        if self.end is not None or self.pid <= 0:
            return
        group = self.pid
        if self.terminal and self.input_fd >= 0:
            try:
                group = os.tcgetpgrp(self.input_fd)
            except OSError:
                pass
        self._kill(group, number)

    def _kill(self, group: int, number: int) -> None:
        try:
            if group > 1:
                os.killpg(group, number)
        except OSError:
            pass

    # -- its end -----------------------------------------------------------------------------------------------------

    def hang_up(self, why: str) -> None:
        """Tell the person's processes that their terminal is gone; those that stay are killed after a moment."""
        if self.hung_up_s != FOR_EVER or self.end is not None:
            return
        self.why, self.hung_up_s = why, time.monotonic()
        if self.client is not None:
            self.client.send(frame(b"N", why.encode()[: frames.PAYLOAD_MAX]))
        group = self.pid
        if self.terminal and self.input_fd >= 0:
            try:
                group = os.tcgetpgrp(self.input_fd)
            except OSError:
                pass
        for each in {group, self.pid}:
            self._kill(each, signal.SIGTERM if self.whole else signal.SIGHUP)
            self._kill(each, signal.SIGCONT)

    def _undelivered(self) -> bool:
        return any(o.waiting for o in self.outputs.values()) or bool(self.client is not None and self.client.out)

    def _over(self) -> bool:
        """Do what is due. Returns whether the session has ended, and everything of it was delivered."""
        now_s = time.monotonic()
        if self.end is None:
            self._limits(now_s)
            return False
        if self.streams and now_s >= self.ended_s + DRAIN_S:
            for fd in list(self.streams):
                self._read(fd)
            if now_s >= self.active_s + DRAIN_S or now_s >= self.ended_s + GRACE_S:
                for fd in list(self.streams):
                    self._give_up(fd)
            else:
                self.ended_s = now_s
        waiting = self.client is None or self._undelivered()
        if self.streams or (waiting and now_s < max(self.ended_s, self._left_s()) + min(LINGER_S, self.detached_s)):
            return False
        self._settle()
        if self.client is not None:
            end = {"why": self.why, **self.end} if self.why else self.end
            self.client.send(said(b"X", end))
            if not self.client.has_read():
                self._drop(self.client)
                return False
        return True

    def _left_s(self) -> float:
        return self.alone_s if self.alone_s != FOR_EVER else self.ended_s

    def _limits(self, now_s: float) -> None:
        if self.client is None and now_s >= self.alone_s + self.detached_s:
            self.hang_up("nobody was attached any more")
        idle_ends_s = self.active_s + self.idle_s
        if now_s >= idle_ends_s:
            self.hang_up("nothing was typed and nothing was shown for too long")
        elif now_s >= idle_ends_s - WARN_S and not self.warned:
            self.warned = True
            if self.client is not None and self.idle_s > WARN_S:
                self.client.send(frame(b"N", b"this session is idle: it ends in a minute"))
        if now_s >= self.hung_up_s + HANG_S and self.terminal and self.streams:
            self._give_up(self.input_fd)  # now its programs read the end of their input
        if now_s >= self.hung_up_s + self.grace_s and not self.killed:
            self.killed = True
            self._kill(self.pid, signal.SIGKILL)
            self._kill_rest()

    def _settle(self) -> None:
        """Before anybody hears that a command has ended: nothing is left of one that was ended, and what another has
        left behind is counted."""
        if not self.whole or self.settled or self.end is None:
            return
        self.settled = True
        if self.why:
            self._kill_rest()
        until_s = time.monotonic() + (GRACE_S if self.why else LEFT_S)
        while (found := spawn.left_behind()) and time.monotonic() < until_s:
            if self.why:
                spawn.kill(found)
            time.sleep(LEFT_LOOK_S)
        if found:
            self.end["left"] = len(found)

    def _kill_rest(self) -> None:
        """Of a command nothing stays that it has started, wherever that has gone."""
        if self.whole:
            cgroups.end_all(self.made.cgroups, but=os.getpid())
            spawn.end_descendants()
