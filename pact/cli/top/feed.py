"""Threads that ask the agent and the root; what they learn waits in order for whoever draws. Nothing is decided here.

``look_at`` says which node is looked at: it is asked again when something has happened there, at most once a second,
and otherwise from time to time, for what no record tells. Who has lost the agent or the root tries again until it is
back.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.cli.client import Answer, Local
from pact.cli.top.asking import HERE, ROOT, Ask
from pact.core import strict
from pact.errors import PactError, UnreachableError

if TYPE_CHECKING:
    from pact.cluster.client import Result, RootClient

EVERY_S: Final = 1.0
AGAIN_S: Final = 10.0  # a node of which nothing is heard
LOOK_S: Final = 4.0  # how long its answer may take before it is said that it is not live
RETRY_S: Final = 2.0
WAITING_MAX: Final = 1000
PAUSE_S: Final = 0.1
RECORDS: Final = 30  # that are asked for
MESSAGE_MAX: Final = 64 << 20
NONSENSE: Final = "what the root says makes no sense; is it of another version?"


class NodeTold(NamedTuple):
    """``sessions``: a list, or why there is none. ``records``: the newest first; ``None``: no others than before."""

    where: str
    doc: Mapping[str, Any]
    sessions: list[Any] | str
    records: list[Any] | None


class Record(NamedTuple):
    """Of this machine's agent."""

    record: Mapping[str, Any]


class FleetTold(NamedTuple):
    message: Mapping[str, Any]


class Lost(NamedTuple):
    """There is no connection to the agent (``HERE``), the root (``ROOT``), or a node."""

    where: str
    why: str


class Reply(NamedTuple):
    tag: tuple[str, ...]
    reply: Answer | PactError


Item = NodeTold | Record | FleetTold | Lost | Reply


class Asker:
    """How this machine's agent, the root and nodes are asked. Each call may wait, and raises PactError."""

    def __init__(self, args: argparse.Namespace, agent: Local | None) -> None:
        """``agent``: ``None`` if the fleet is looked at."""
        self.args, self.agent = args, agent

    def connected(self) -> Any:
        from pact.cli.roots import connected

        return connected(self.args, lambda why: None)

    def greet(self) -> None:
        """Whether there is anybody to ask: it is better said before a screen is painted. Raises PactError."""
        if self.agent is not None:
            self.agent.ask("ping", {}).accepted()
            return
        with self.connected():
            pass

    def ask(self, where: str, op: str, fields: dict[str, Any]) -> Answer:
        if where == HERE:
            assert self.agent is not None
            return self.agent.ask(op, fields)
        with self.connected() as client:
            return at_root(client, op, fields) if where == ROOT else on_node(client, where, op, fields)

    def node(self, where: str, records: bool) -> NodeTold:
        """``records``: they are wanted, too; those of far nodes always are."""
        if where == HERE:
            assert self.agent is not None
            agent = Local(self.agent.path, LOOK_S)
            doc = agent.ask("status", {}).accepted().result
            rows = list(agent.lines("log", {"count": RECORDS})) if records else None
            return NodeTold(where, doc, _sessions(agent.ask), _records(rows))
        with self.connected() as client:

            def ask(op: str, fields: dict[str, Any]) -> Answer:
                return on_node(client, where, op, fields, LOOK_S)

            doc = ask("status", {}).accepted().result
            rows = ask("log", {"count": RECORDS}).accepted().result.get("rows", [])
            return NodeTold(where, doc, _sessions(ask), _records(rows))

    def records(self) -> Iterator[Mapping[str, Any]]:
        """What this machine's agent writes, without end."""
        assert self.agent is not None
        for line in self.agent.lines("watch", {}):
            yield line["record"]

    def fleet(self) -> Iterator[Mapping[str, Any]]:
        """What the root tells of the fleet, without end. Ends if something is missing: then it is to be asked anew."""
        from pact.cluster.client import Event, Result
        from pact.errors import BY_EXIT_CODE

        n = -1
        with self.connected() as client:
            for item in client.ask("live", {}, None):
                if isinstance(item, Result):
                    raise BY_EXIT_CODE.get(item.exit, PactError)(item.message, item.hint)
                if not isinstance(item, Event):
                    continue
                try:
                    message = strict.loads_object(item.line, MESSAGE_MAX)
                    kind, found = message["kind"], message["n"]
                except (strict.NotStrictError, LookupError):
                    raise UnreachableError(NONSENSE) from None
                if kind not in ("you", "whole") and found != (n + 1 if kind == "news" else n):
                    return
                n = n if kind == "you" else found
                yield message


def _sessions(ask: Callable[[str, dict[str, Any]], Answer]) -> list[Any] | str:
    try:
        return list(ask("sessions", {}).accepted().result["sessions"])
    except PactError as exc:  # this node may have none, or be older
        return exc.message


def _records(rows: list[Any] | None) -> list[Any] | None:
    return None if rows is None else [row["record"] for row in rows]


def at_root(client: RootClient, op: str, fields: dict[str, Any]) -> Answer:
    result = _result(client, op, fields, None)[1]
    why = "; ".join(f"{names}: {text}" for names, text in result.failed.items() if text not in result.message)
    said = "; ".join(filter(None, (result.message, why)))
    return Answer(
        {"ok": result.exit == 0, "exit": result.exit, "message": said, "hint": result.hint, "result": result.result}
    )


def on_node(client: RootClient, node: str, op: str, fields: dict[str, Any], wait_s: float = 0.0) -> Answer:
    from pact.cli.fleet import sense
    from pact.cli.roots import NONSENSE as LITTLE

    bodies, result = _result(client, op, fields, node, wait_s)
    if not bodies:
        why = "; ".join(result.failed.values()) or result.message or "it has not answered"
        raise UnreachableError(why, result.hint)
    answer = sense(bodies[0])
    if answer is None:
        raise UnreachableError(f"{node}: {LITTLE}")
    return answer


def _result(
    client: RootClient, op: str, fields: dict[str, Any], nodes: str | None, wait_s: float = 0.0
) -> tuple[list[bytes], Result]:
    """``wait_s``: how long the root waits for nodes; 0: the default."""
    from pact.cluster.client import Parts, Result

    bodies = []
    for item in client.ask(op, fields, nodes, wait_s):
        if isinstance(item, Parts):
            bodies.append(item.body)
        elif isinstance(item, Result):
            return bodies, item
    raise UnreachableError("the root has not answered")


class Feed:
    """Its owner reads ``take`` when ``fd`` is readable, and calls ``look_at``, ``stir`` and ``ask`` at any time."""

    def __init__(self, asker: Asker, *, fleet: bool) -> None:
        """``fleet``: the fleet is looked at, and not this machine alone."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asker = asker
        self._out: deque[Item] = deque()
        self._wake = threading.Condition()
        self._asks: deque[Ask] = deque()
        self._where: str | None = None
        self._due_s = 0.0
        self._looked_s = -1e9
        self._threads = [self._fleet if fleet else self._watch, self._look, self._act]

    def start(self) -> None:
        for run in self._threads:
            threading.Thread(target=run, name=f"pact-top{run.__name__}", daemon=True).start()

    def ring(self) -> None:
        """Have the owner look. Also for signal handlers."""
        os.eventfd_write(self.fd, 1)

    def take(self) -> Iterator[Item]:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        while self._out:
            yield self._out.popleft()

    def look_at(self, where: str | None) -> None:
        """``None``: at no node."""
        with self._wake:
            if where != self._where:
                self._where, self._due_s, self._looked_s = where, 0.0, -1e9
                self._wake.notify_all()

    def stir(self) -> None:
        """Something has happened on the node that is looked at."""
        with self._wake:
            self._due_s = 0.0
            self._wake.notify_all()

    def ask(self, asks: list[Ask]) -> None:
        with self._wake:
            self._asks.extend(asks)
            self._wake.notify_all()

    # -- threads ----------------------------------------------------------------------------------------------------

    def _post(self, item: Item) -> None:
        while len(self._out) >= WAITING_MAX:  # the terminal takes nothing
            time.sleep(PAUSE_S)
        self._out.append(item)
        self.ring()

    def _watch(self) -> None:
        """The records of this machine's agent."""
        while True:
            try:
                for record in self._asker.records():
                    self._post(Record(record))
                    self.stir()
            except PactError as exc:
                self._post(Lost(HERE, exc.message))  # the other thread may wait for an agent that begins
            except Exception as exc:  # a fault in it must not leave a picture that stands still
                self._post(Lost(HERE, f"what the agent says makes no sense ({type(exc).__name__}): another version?"))
            time.sleep(RETRY_S)
            self._again()
            self.stir()

    def _again(self) -> None:
        """Records may have been missed."""
        with self._wake:
            self._looked_s = -1e9

    def _fleet(self) -> None:
        while True:
            why = "something was missing in what the root said"
            try:
                for message in self._asker.fleet():
                    self._post(FleetTold(message))
            except PactError as exc:
                why = f"{exc.message} ({exc.hint})" if exc.hint else exc.message
            except Exception as exc:  # a fault in it must not leave a picture that stands still
                why = f"{type(exc).__name__}: {exc}"
            self._post(Lost(ROOT, why))
            time.sleep(RETRY_S)

    def _look(self) -> None:
        """The document of the node that is looked at."""
        while True:
            with self._wake:
                while self._where is None or (wait_s := self._wait_s()) > 0:
                    self._wake.wait(None if self._where is None else wait_s)
                where, fresh = self._where, self._looked_s < 0
                self._looked_s = time.monotonic()
                self._due_s = self._looked_s + (EVERY_S if fresh else AGAIN_S)  # records before the first are not heard
            try:
                self._post(self._asker.node(where, fresh))
            except Exception as exc:
                if isinstance(exc, PactError):
                    why = f"{exc.message} ({exc.hint})" if exc.hint else exc.message
                else:
                    why = f"what it answers makes no sense ({type(exc).__name__})"
                self._post(Lost(where, why))
                with self._wake:
                    if self._where == where:
                        self._due_s = time.monotonic() + RETRY_S
                        self._looked_s = -1e9 if fresh else self._looked_s

    def _wait_s(self) -> float:
        return max(self._due_s, self._looked_s + EVERY_S) - time.monotonic()

    def _act(self) -> None:
        """What a person has asked for."""
        while True:
            with self._wake:
                while not self._asks:
                    self._wake.wait()
                ask = self._asks.popleft()
            reply: Answer | PactError
            try:
                reply = self._asker.ask(ask.where, ask.op, ask.fields)
            except PactError as exc:
                reply = exc
            except Exception as exc:
                reply = UnreachableError(f"the answer makes no sense ({type(exc).__name__}): look before you repeat it")
            self._post(Reply(ask.tag, reply))
            self.stir()
