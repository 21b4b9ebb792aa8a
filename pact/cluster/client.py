"""An operator's connection to the cluster: one request, answered by parts as the nodes answer, and a result.

Synchronous, one socket, one request at a time. The key identifies the operator.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple

import zmq

from pact import __version__
from pact.cluster.nodesets import resolved
from pact.cluster.personseals import PersonSeals
from pact.core import strict
from pact.core.tree import checks, wire
from pact.core.tree.wire import Message
from pact.errors import (
    EXIT_USAGE,
    DeniedError,
    PactError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from pact.limits import FRAME_MAX
from pact.net.keys import Key
from pact.net.monitors import next_event

WELCOME_S: Final = 6.0
BEAT_S: Final = 2.0
IDLE_S: Final = 2 * BEAT_S
SILENCE_S: Final = 8.0
BODY_MAX: Final = checks.BODY_MAX
WATCHED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
)
BROKEN_S: Final = 1.0  # how long to wait for the reason why the connection was closed
REFUSED_S: Final = 1.0
ROOTLESS_S: Final = 10.0  # how long to wait for a new root: until a lease has ended, and an election
HELLO_S: Final = 1.5
TAIL_S: Final = 0.3  # from the root's last answer to the operator's screen
AGAIN_S: Final = 2.0  # how long each server may take then
NOT_KNOWN: Final = "it must stand in authorized_keys.toml with the role viewer, ops or admin: an administrator adds it"
OTHER_KEY: Final = "name it with --key NAME.secret, or have one made: pact keygen NAME"
SEAL_HINT: Final = "client.toml asks for seals: the root is older, or whoever carries its words does not pass them on"
ENDLESS: Final = frozenset({"watch", "live"})  # requests without a result
LOOK_FIRST: Final = "what was asked may have been done: look before you repeat it"
NOBODY: Final = "nobody listens there"
NO_NAME: Final = "nobody listens there, or no host has this name"
NUMERIC: Final = re.compile(r"tcp://(?:[\d.]+|\[.*\]):\d+\Z")
HUNG_UP: Final = "whoever listens there hangs up: is --server-key its key?"
PAUSE_S: Final = (0.5, 2.0)  # between two tries, from the first to the last: others with the same key wait, too


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A person's Ctrl-C waits for the end of this: between the making of a socket, or its closing, and
    its context's knowing of that it would leave one behind, for which the context's end waits for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Rootless(UnreachableError):
    """An aggregator that has no way to a root now."""


class Parts(NamedTuple):
    """The equal answer of some nodes."""

    names: Sequence[str]
    body: bytes


class Progress(NamedTuple):
    """Progress of the root's work: votes, or members that are done. For other questions, ``Parts`` show the
    progress."""

    total: int
    done: int


class Event(NamedTuple):
    """A record of ``watch``."""

    line: bytes


class Result(NamedTuple):
    """The end. ``failed``: folded node sets, and the reasons."""

    exit: int
    message: str
    hint: str
    failed: dict[str, str]
    result: dict[str, Any]


Item = Parts | Progress | Event | Result
Server = tuple[str, str]  # its URL, and its expected key
Problems = dict[Server, UnreachableError | DeniedError]


class RootClient:
    """A context manager. Raises UnreachableError, DeniedError or UsageError, with a hint what to do next."""

    def __init__(
        self,
        servers: Sequence[Server],
        key: Key,
        key_name: str,
        waiting: Callable[[str], None] = lambda why: None,
        timeout_s: float = 0.0,
        roots: Sequence[str] = (),
        sealed: bool = False,
    ) -> None:
        """Connect to the first server that accepts; each is a URL and the expected key. If there is no root now, wait
        for one (``ROOTLESS_S``); ``waiting`` is called once then. ``timeout_s``: for everything, until the last answer;
        0: as long as it takes while the connection lives. ``roots``: the public keys of the roots, for which requests
        are sealed if an aggregator carries them; ``sealed``: never send one without a seal.
        """
        if not servers:
            raise UsageError("no root is known", "name it with --via, or in ~/.config/pact/client.toml")
        self._key, self._key_name = key, key_name
        self._roots, self._must_seal = roots, sealed
        self._context: zmq.Context[Any] = zmq.Context(1)
        self._session = 0
        self._id = 0
        self._timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s if timeout_s else math.inf
        self._sent_s = self._heard_s = 0.0
        self._broken_s = math.inf  # when the connection was closed
        #: Called with each message of a stream (``pact.cluster.streams``).
        self.on_frames: Callable[[Message], None] = lambda message: None
        try:
            problems = self._try_each(servers, WELCOME_S)
            rootless = [server for server, problem in problems.items() if isinstance(problem, _Rootless)]
            if rootless:
                waiting(problems[rootless[0]].message)
                problems = self._wait_for_a_root(rootless, [s for s in servers if s not in rootless])
            if problems:
                raise max(problems.values(), key=_telling)
        except BaseException:
            with undisturbed():
                self._context.destroy(0)
            raise

    def _wait_for_a_root(self, rootless: Sequence[Server], others: Sequence[Server]) -> Problems:
        """The same as ``_try_each``, for a while. Servers that had no root are asked each time; of the others, which
        may be back, one in turn: each of them costs time in which no other server is asked.
        """
        import random  # most never wait

        ends_s, pause_s, turn = time.monotonic() + ROOTLESS_S, PAUSE_S[0], itertools.cycle(others or [None])
        ends_s = min(ends_s, self._ends_s)
        problems: Problems = {}
        while (left_s := ends_s - time.monotonic()) > 0:
            time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(pause_s * 1.5, PAUSE_S[1])
            problems = self._try_each(rootless, AGAIN_S)
            rootless = [s for s in rootless if not isinstance(problems.get(s), DeniedError)]
            if not rootless:
                return problems
            other = next(turn) if problems else None
            if not problems or (other is not None and not self._try_each([other], AGAIN_S)):
                return {}
        return problems

    def _try_each(self, servers: Sequence[Server], patience_s: float) -> Problems:
        """Why each server did not accept; empty if one did."""
        problems: Problems = {}
        for i, (url, server_key) in enumerate(servers):
            try:
                left_s = max(0.0, self._ends_s - time.monotonic()) / (len(servers) - i)
                self._connect(url, server_key, i + 1 < len(servers), min(WELCOME_S, patience_s, left_s))
                return {}
            except (UnreachableError, DeniedError) as exc:  # its keys may be older than those of other servers
                problems[url, server_key] = exc
                self._close(0)
        return problems

    def __enter__(self) -> RootClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(PactError, zmq.ZMQError):
            self._send("goodbye", {})
        self._close(500)
        self._context.term()

    def _close(self, linger_ms: int) -> None:
        with undisturbed():
            self._sock.disable_monitor()
            self._monitor.close(0)
            self._sock.close(linger_ms)

    def _connect(self, url: str, server_key: str, others: bool, patience_s: float) -> None:
        self.url = url
        self._direct = server_key in self._roots  # this connection itself proves the root's identity
        self._session = secrets.randbits(63)
        with undisturbed():
            sock = self._sock = self._context.socket(zmq.DEALER)
        try:
            sock.curve_publickey, sock.curve_secretkey = self._key.public.encode(), self._key.secret.encode()
            sock.curve_serverkey = server_key.encode()
        except (zmq.ZMQError, ValueError, TypeError):
            sock.close(0)
            raise UsageError(
                f"the server's key for {url} is not a key of 40 characters in Z85",
                "it is what NAME.key holds: --server-key, or in client.toml",
            ) from None
        sock.linger, sock.maxmsgsize, sock.ipv6 = 0, FRAME_MAX, True
        sock.reconnect_ivl = 200
        with undisturbed():
            self._monitor = sock.get_monitor_socket(WATCHED)  # until the end: a key may be removed at any time
        try:
            sock.connect(url)
        except zmq.ZMQError as exc:
            self._close(0)
            raise UsageError(f"{url!r} is no address: {exc.strerror}", "for example tcp://agg1:7417") from None
        self._hello()
        self._welcome(url, others, patience_s)

    def _hello(self) -> None:
        self._send(
            "hello",
            {
                "v": wire.VERSION,
                "role": "client",
                "name": self._key_name,
                "session": self._session,
                "version": __version__,
                "wall_ns": time.time_ns(),
            },
        )

    def _welcome(self, url: str, others: bool, patience_s: float) -> None:
        poller, monitor, taken = zmq.Poller(), self._monitor, False
        poller.register(self._sock, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        began_s = time.monotonic()
        ends_s, why = began_s + patience_s, "nobody answers"
        while (left_s := ends_s - time.monotonic()) > 0:
            again_s = self._sent_s + HELLO_S - time.monotonic()
            ready = dict(poller.poll(int(max(0, min(left_s, again_s)) * 1000) + 1))
            # Of many connections with one key some are not answered.
            if not ready and time.monotonic() >= self._sent_s + HELLO_S:
                self._hello()
            if monitor in ready:
                event, _ = next_event(monitor)
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise DeniedError(f"{url} does not know the key of {self._key_name}", NOT_KNOWN)
                if event == zmq.EVENT_CONNECTED:
                    taken = True
                elif event == zmq.EVENT_DISCONNECTED:
                    pass  # that of before: this is a new one
                elif event == zmq.EVENT_CONNECT_RETRIED:  # refused; perhaps the server is just starting
                    why = HUNG_UP if taken else NOBODY if NUMERIC.match(url) else NO_NAME
                    ends_s = min(ends_s, began_s + (0 if others else REFUSED_S))
                else:
                    why = "the handshake fails: is --server-key this server's key?"
            if self._sock in ready:
                message = self._received()
                if message.kind == "welcome":
                    self._broken_s = math.inf
                    while monitor.poll(0):
                        next_event(monitor)
                    return
                if message.kind == "frames":
                    self.on_frames(message)
                    continue
                if message.kind == "sorry" and message.head["denied"]:
                    raise DeniedError(f"{url}: {message.head['why']}", OTHER_KEY)
                if message.kind == "sorry":
                    kind = _Rootless if message.head["rootless"] else UnreachableError
                    raise kind(
                        f"{url}: {message.head['why'] or 'it cannot take us'}", "name another with --via, or wait"
                    )
        raise UnreachableError(f"{url}: {why}", "is the aggregator running, and is the key its key?")

    def _send(self, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        """Raises DeniedError or UnreachableError if the connection is lost."""
        try:
            self._sock.send(wire.encode(kind, head, body), zmq.NOBLOCK)
        except zmq.Again:  # ZeroMQ gave it up: a refused connection is not tried again
            raise self._given_up() from None
        self._sent_s = time.monotonic()

    def _given_up(self) -> PactError:
        return self._refused() or UnreachableError(f"lost contact with {self.url}", LOOK_FIRST)

    def _refused(self) -> DeniedError | None:
        """Look at what became of the connection: whether its key counts no more, or it was closed."""
        while self._monitor.poll(0):
            event = next_event(self._monitor)[0]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return DeniedError(f"{self.url} does not know the key of {self._key_name} any more", LOOK_FIRST)
            if event == zmq.EVENT_DISCONNECTED:
                self._broken_s = min(self._broken_s, time.monotonic())
        return None

    def _require_contact(self, hint: str) -> None:
        """What was asked on a connection that has broken is lost, also if ZeroMQ makes a new one. Call it when nothing
        more waits to be read: what has come before it broke is output that a command has made. Raises DeniedError,
        UnreachableError."""
        if (refused := self._refused()) is not None:
            raise refused
        now_s = time.monotonic()
        if now_s - self._heard_s > SILENCE_S or now_s - self._broken_s > BROKEN_S:
            raise UnreachableError(f"lost contact with {self.url}", hint)

    def _received(self) -> Message:
        return self._message(self._sock.recv())

    def _message(self, frame: bytes) -> Message:
        self._heard_s = time.monotonic()
        try:
            return wire.decode(frame)
        except RemoteProtocolError as exc:
            raise UnreachableError(f"{self.url} speaks another protocol: {exc.message}") from None

    def ask(self, op: str, args: dict[str, Any], nodes: str | None, timeout_s: float = 0.0) -> Iterator[Item]:
        """Send one request. The last item is its ``Result``; ``ENDLESS`` ones have none. Groups of nodes are looked up
        here."""
        self._id += 1
        nodes = None if nodes is None else resolved(nodes)
        if isinstance(args.get("allow_missing"), str):
            args = {**args, "allow_missing": resolved(args["allow_missing"])}
        body = strict.text_of(args)
        if len(body) > BODY_MAX:
            raise UsageError(f"the request has {len(body)} bytes; at most {BODY_MAX} travel", "split the file")
        if time.monotonic() - self._sent_s > IDLE_S:  # it said nothing for so long that it may be forgotten there
            self._hello()
            self._welcome(self.url, False, min(WELCOME_S, self._ends_s - time.monotonic()))
        self._heard_s = time.monotonic()
        if timeout_s and self._timeout_s:  # the root's time limit: its answer must still come in time
            timeout_s = max(TAIL_S, self._ends_s - time.monotonic() - TAIL_S)
        if op in ENDLESS:
            self._ends_s = math.inf
        head = {"id": self._id, "op": op, "nodes": nodes, "timeout_ms": int(timeout_s * 1000)}
        if self._roots and not self._direct:
            yield from self._ask_sealed(head, body)
        else:
            self._send("request", head, body)
            yield from self._answers(None)

    def _ask_sealed(self, head: dict[str, Any], body: bytes) -> Iterator[Item]:
        """The same through an aggregator that need not be trusted."""
        seal = self._challenged()
        if seal is not None:
            self._id += 1
            head = seal.request({**head, "id": self._id}, body)
        else:
            head = {**head, "id": self._id}
        self._send("request", head, body)
        yield from self._answers(seal)

    def _challenged(self) -> PersonSeals | None:
        """Ask the leading root for a challenge. None for a root of the last version, if that is allowed."""
        asked = PersonSeals.ask(self._key, self._roots)
        self._id += 1
        self._send("request", asked.head(self._id), b"{}")
        for item in self._answers(asked):
            if isinstance(item, Result):
                if item.exit == 0:
                    return asked.challenged(item.result)
                if item.exit != EXIT_USAGE or self._must_seal:
                    raise UnreachableError(f"{self.url}: {item.message}", item.hint or SEAL_HINT)
        self._id += 1
        return None

    def _answers(self, seal: PersonSeals | None) -> Iterator[Item]:
        while True:
            if not self._sock.poll(int(max(0.0, min(BEAT_S / 2, self._ends_s - time.monotonic())) * 1000)):
                self._quiet()
                continue
            message = self._received()
            if seal is not None and message.kind in wire.TO_CLIENTS and message.head["id"] == self._id:
                try:
                    message = seal.checked(message)
                except RemoteProtocolError as exc:
                    raise UnreachableError(f"{self.url}: {exc.message}", LOOK_FIRST) from None
            if message.kind == "parts" and message.head["id"] == self._id:
                for (names, _), answer in wire.sections(message, "parts"):
                    yield Parts(names, answer)
            if message.kind == "frames":
                self.on_frames(message)
                continue
            make = _ITEMS.get(message.kind)
            if make is not None and message.head["id"] == self._id:
                item = make(message)
                yield item
                if isinstance(item, Result):
                    return
            elif message.kind == "sorry":
                raise UnreachableError(f"{self.url}: {message.head['why'] or 'the session has ended'}", LOOK_FIRST)
            self._quiet(heard=True)

    def _quiet(self, *, heard: bool = False) -> None:
        now_s = time.monotonic()
        if now_s >= self._ends_s:
            raise UnreachableError(f"{self.url} has not answered within {self._timeout_s:g}s", LOOK_FIRST)
        if not heard:
            self._require_contact(LOOK_FIRST)
        if now_s - self._sent_s > BEAT_S:
            self._send("beat", {})

    def cancel(self) -> None:
        """The answer of the request is no longer wanted, nor what comes on its streams."""
        with contextlib.suppress(PactError):
            self._send("cancel", {"id": self._id})

    def lives(self) -> None:
        """Say so, while nothing that comes is read for a while. Raises PactError if the connection is lost."""
        self._send("beat", {})
        self._heard_s = time.monotonic()  # what came meanwhile was not looked at

    # -- streams of the last request ------------------------------------------------------------------------------

    @property
    def seals(self) -> bool:
        """Whether somebody on the way could change what is said: then streams need a secret."""
        return self._must_seal or (bool(self._roots) and not self._direct)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._sock
        return sock

    def stream(self, node: str, head: dict[str, Any], body: bytes) -> None:
        """Say something on a stream. Raises PactError if the connection is lost."""
        self._send("frames", {"id": self._id, "node": node, **head}, body)

    def took(self, size: int) -> None:
        """So much of commands' output was read on this connection. Raises PactError if the connection is lost."""
        self._send("took", {"bytes": size})

    def waits(self) -> bool:
        """Whether a message waits to be heard."""
        return bool(self._sock.get(zmq.EVENTS) & zmq.POLLIN)

    def pump(self, wait_ms: int = 0, most: int = 1 << 30) -> bool:
        """Hear what has come on streams, ``most`` messages of it; returns whether there was anything. Raises PactError
        if the connection is lost."""
        heard = bool(wait_ms) and bool(self._sock.poll(wait_ms))
        while most > 0 and self.waits():
            most -= 1
            heard, message = True, self._message(self._sock.recv(zmq.NOBLOCK))
            if message.kind == "frames":
                self.on_frames(message)
            elif message.kind == "sorry":
                raise UnreachableError(f"{self.url}: {message.head['why'] or 'the connection has ended'}")
        if not heard:
            self._require_contact("")
        if time.monotonic() - self._sent_s > BEAT_S:
            self._send("beat", {})
        return heard


def _telling(problem: PactError) -> int:
    """How much a server's reason says: a server that answered knows more than one that did not."""
    return 2 if isinstance(problem, _Rootless) else int(isinstance(problem, DeniedError))


def _result(message: Message) -> Result:
    head = message.head
    try:
        said = strict.loads_object(message.body or b"{}", checks.BODY_MAX)
    except strict.NotStrictError as exc:
        raise UnreachableError(f"the answer makes no sense ({exc})", "see the aggregator's log") from None
    return Result(head["exit"], head["message"], head["hint"], dict(head["failed"]), said)


_ITEMS: Final[dict[str, Callable[[Message], Item]]] = {
    "part": lambda m: Parts(m.head["names"], m.body),
    "progress": lambda m: Progress(m.head["total"], m.head["done"]),
    "event": lambda m: Event(m.body),
    "result": _result,
}
