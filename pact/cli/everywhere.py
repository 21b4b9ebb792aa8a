"""One command on many nodes: asking, collecting what comes, and showing it. See ``commands.exec``."""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pact.cli.fleet import RULE, sense
from pact.cli.render import clean, emit
from pact.cli.roots import NONSENSE, connected, fold, say_failed
from pact.cli.session import brought
from pact.core.tree.lanes import BULK_CREDIT, BULK_WINDOW_MAX, WEIGHT_MIN, Lane, weight
from pact.errors import (
    BY_EXIT_CODE,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    PactError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
    gravest,
)
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cluster.client import Parts, RootClient
    from pact.core.tree.wire import Message
    from pact.net.ends import End

STDIN_MAX: Final = 1 << 20
STDIN_SAID_S: Final = 3.0  # a pipe that nobody closes is waited for, and that is said
READ: Final = 64 << 10
LIMIT_S: Final = 60.0
LIMIT_MAX_S: Final = 3000.0  # a question to many nodes stays open for an hour at most
MORE_S: Final = 10.0  # for answers to come after the nodes' own time limit
TOTAL_MAX: Final = 256 << 20  # of all output that is kept
LINE_MAX: Final = 64 << 10
ROOM: Final = 4 << 20  # of what all nodes together may send ahead
PUMP_MS: Final = 200
INTERRUPTED: Final = 130
WRITE: Final = 4 << 10  # what a pipe that is said to be ready takes at once
BEAT_S: Final = 2.0
LOST: Final = "lost contact before its command ended; it was ended there"
CANCELLED: Final = "cancelled"
ENDS: Final = "cancelled: what still runs is ended; where a node cannot be told at this moment, within seconds"
NO_ANSWER: Final = "no answer came; if its command began, it was ended there"


@dataclass(slots=True)
class Output:
    """What one node's command said."""

    node: str
    out: dict[bytes, bytearray] = field(default_factory=lambda: {b"O": bytearray(), b"E": bytearray()})
    end: End | None = None  # of its stream
    early: list[Message] = field(default_factory=list)
    consumed: int = 0
    window: int = BULK_CREDIT  # how much it may send ahead
    exit: int | None = None
    truncated: bool = False
    broken: bool = False  # a line was too long to be shown as one
    why: str = ""
    left: dict[str, Any] = field(default_factory=dict)  # what it has left behind: its name, and how many processes
    done: bool = False

    @property
    def code(self) -> int:
        """What it counts for. A command that was ended may say 0 of itself, and has not done what it should."""
        return EXIT_UNREACHABLE if self.exit is None or self.why else self.exit

    def finish(self, said: Mapping[str, Any]) -> None:
        code, name, why = said.get("exit"), said.get("signal"), said.get("why")
        self.done = True
        self.truncated = self.truncated or said.get("truncated") is True
        if type(code) is int:
            self.exit = code & 0xFF
        elif isinstance(name, str) and name:
            number = getattr(signal, f"SIG{name}", None)
            self.exit = 128 + int(number) if isinstance(number, signal.Signals) else EXIT_FAILED
        self.why = why if isinstance(why, str) else ""
        if self.exit is None and not self.why:
            self.why = NONSENSE
        left = said.get("left")
        if isinstance(left, dict) and type(left.get("processes")) is int and isinstance(left.get("id"), str):
            self.left = {"id": left["id"], "processes": left["processes"]}


class Everywhere:
    """All nodes of one command."""

    def __init__(self, client: RootClient, *, live: bool) -> None:
        from pact.cluster.streams import Secrets

        self.client, self.live = client, live
        self.secrets = Secrets()
        self.nodes: dict[str, Output] = {}
        self.failed: dict[str, list[str]] = {}  # why -> nodes
        self.codes: list[int] = []
        self._kept = 0
        self._lane = Lane()
        client.on_frames = self._came

    def ask(self, fields: dict[str, Any], nodes: str, limit_s: float) -> None:
        """Until every node has ended. Raises PactError."""
        from pact.cluster.client import Parts, Result

        for item in self.client.ask("exec", {**fields, "stream": self.secrets.public}, nodes, limit_s + MORE_S / 2):
            if isinstance(item, Parts):
                self._part(item)
            elif isinstance(item, Result):
                for names, why in item.failed.items():
                    self.failed.setdefault(why, []).append(names)
                if item.exit and not (item.exit == EXIT_UNREACHABLE and item.failed):
                    raise BY_EXIT_CODE.get(item.exit, PactError)(item.message or "it failed", item.hint)
                if item.failed:
                    self.codes.append(EXIT_UNREACHABLE)
        ends_s = time.monotonic() + limit_s + MORE_S
        while self.open() and time.monotonic() < ends_s:
            self.client.pump(PUMP_MS)

    def open(self) -> list[str]:
        """The nodes whose streams go on."""
        return [name for name, one in self.nodes.items() if one.end is not None and not one.done]

    def settle(self, nodes: str, why: str, silent: str) -> None:
        """It has ended here. Of each node something is said: ``why`` where it runs, ``silent`` where no answer came.

        ``nodes``: as they were asked, without groups: a group of idle nodes names others by now. It raises nothing:
        what has come is still to be shown.
        """
        from pact.cluster.nodesets import NodeSets

        for name in self.open():
            self.nodes[name].finish({"why": why})
        sets, failed = NodeSets(), set[str]()
        for each in (text for texts in self.failed.values() for text in texts):
            with contextlib.suppress(UsageError):
                failed.update(sets.expand(each))
        asked: list[str] = []
        with contextlib.suppress(UsageError):
            asked = sets.expand(nodes)
        for name in asked:
            if name not in failed:
                one = self.nodes.setdefault(name, Output(name))
                if not one.done:
                    one.finish({"why": silent})

    def _part(self, item: Parts) -> None:
        answer = sense(bytes(item.body))
        names = list(item.names)
        if answer is None or not answer.ok:
            self.codes.append(answer.exit if answer is not None else EXIT_FAILED)
            self.failed.setdefault(answer.message if answer is not None else NONSENSE, []).extend(names)
            return
        for name in names:
            one = self.nodes.setdefault(name, Output(name))
            if "stream" in answer.result:
                try:
                    secret = self.secrets.with_node(str(answer.result["stream"]), needed=self.client.seals)
                except PactError as exc:
                    one.finish({"why": exc.message})
                    continue
                from pact.net.ends import End

                one.end = End(secret, node=False)
                early, one.early = one.early, []
                for message in early:
                    self._frames(message)
                continue
            for kind, key in ((b"O", "stdout"), (b"E", "stderr")):
                self._keep(one, kind, _bytes(answer.result, key))
            one.finish(answer.result)
            self._flush(one)

    def _came(self, message: Message) -> None:
        self._frames(message)  # first: where the key counts no more, saying something fails, and this has come
        if size := self._lane.has_read(message.body):
            self.client.took(size)

    def _frames(self, message: Message) -> None:
        from pact.session import frames

        head = message.head
        one = self.nodes.setdefault(head["node"], Output(head["node"]))
        if one.done:
            return
        if one.end is None:  # its answer has not come yet
            if len(one.early) < 64:
                one.early.append(message._replace(body=bytes(message.body)))
            return
        if one.end.cut(head, message.body):
            one.finish({"why": head["why"] or LOST})
            return
        try:
            body = one.end.hear(head, message.body)
            for kind, payload in frames.Reader().feed(body):
                if kind in (b"O", b"E"):
                    self._keep(one, kind, payload)
                elif kind == b"X":
                    one.finish(frames.object_of(payload))
        except (RemoteProtocolError, frames.FrameError) as exc:
            one.finish({"why": str(exc)})
        self._heard(one, weight(head))

    def _heard(self, one: Output, size: int) -> None:
        """Let it send more, if it has not ended."""
        if one.done or one.end is None:
            self._flush(one)
            return
        one.consumed += size
        if one.consumed >= one.window // 2:
            wider = min(BULK_WINDOW_MAX, max(BULK_CREDIT, ROOM // len(self.nodes)))
            consumed, one.consumed = one.consumed, 0
            give = max(0, consumed + wider - one.window)  # the more nodes there are, the less each may send ahead
            give = give if give >= WEIGHT_MIN else 0  # less would cost more than it gives
            one.window += give - consumed
            if not give:
                return
            said, body = one.end.say(b"", give=give)
            self.client.stream(one.node, {"bulk": True, **said}, body)

    # -- what it says -------------------------------------------------------------------------------------------------

    def _keep(self, one: Output, kind: bytes, data: bytes) -> None:
        kept = one.out[kind]
        if self.live:
            kept += data
            at = kept.rfind(b"\n") + 1
            if not at and len(kept) > LINE_MAX:
                at, one.broken = len(kept), True
            if at:
                self._lines(one.node, kind, bytes(kept[:at]))
                del kept[:at]
            return
        room = max(0, TOTAL_MAX - self._kept)
        if len(data) > room:
            one.truncated, data = True, data[:room]
        kept += data
        self._kept += len(data)

    def _flush(self, one: Output) -> None:
        if self.live:
            for kind, kept in one.out.items():
                if kept:
                    self._lines(one.node, kind, bytes(kept) + b"\n")
                    kept.clear()

    def _lines(self, node: str, kind: bytes, data: bytes) -> None:
        to = sys.stdout if kind == b"O" else sys.stderr
        head = clean(node).encode() + b": "
        self._patiently(to, b"".join(head + line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")))

    def _patiently(self, to: Any, data: bytes) -> None:
        """Who reads this may take his time (a pager): meanwhile the tree must hear that this side lives, or it would
        end the commands."""
        data = _harmless(to, data)
        to.flush()
        for at in range(0, len(data), WRITE):
            while not _takes(to, BEAT_S):
                self.client.lives()
            to.buffer.write(data[at : at + WRITE])
            to.flush()


def run(args: argparse.Namespace, words: list[str]) -> int:
    """Carry it out. Returns the exit code. Raises PactError."""
    from pact.cluster.nodesets import resolved
    from pact.session.client import heeded

    limit_s = args.timeout / NS_PER_S if args.timeout else LIMIT_S
    if limit_s > LIMIT_MAX_S:
        raise UsageError("a command on many nodes may take 50 minutes", "start it there as a service: systemd-run")
    fields: dict[str, Any] = {
        "words": words,
        "limit_ms": max(1, int(limit_s * 1000)),
        "output_max": args.output_max,
        "env": brought(),
    }
    if args.live and not args.json:
        fields["live"] = True
    stdin = b"" if args.no_stdin else _stdin()
    if stdin:
        fields["stdin"] = base64.b64encode(stdin).decode()
    patient = argparse.Namespace(**{**vars(args), "timeout": int((limit_s + 2 * MORE_S) * NS_PER_S)})
    interrupted = False
    lost: PactError | None = None
    heeds = heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in heeds:
        signal.signal(number, _interrupt)
    nodes = resolved(args.nodes)  # once: who is asked, and of whom something is said, are the same nodes
    with connected(patient) as client:
        all_ = Everywhere(client, live=bool(fields.get("live")))
        try:
            all_.ask(fields, nodes, limit_s)
        except KeyboardInterrupt:
            interrupted = True
            for number in heeds:  # a second one must not lose what has come
                signal.signal(number, signal.SIG_IGN)
        except PactError as exc:
            lost = exc  # what has come until now is shown all the same
        client.cancel()
    if lost is not None and not (all_.nodes or all_.failed):
        raise lost
    for number in heeds if interrupted else ():  # what is shown now may be cut short
        signal.signal(number, _interrupt)
    if interrupted:
        all_.settle(nodes, CANCELLED, CANCELLED)
    elif isinstance(lost, UnreachableError):
        all_.settle(nodes, LOST, NO_ANSWER)
    for name in all_.open():  # they have not said their end in time
        all_.nodes[name].finish({"why": LOST})
    (_as_json if args.json else _as_text)(all_)
    if interrupted:
        print(f"pact: {ENDS}", file=sys.stderr)
        return INTERRUPTED
    if lost is not None:
        raise lost
    ran = [one for one in all_.nodes.values() if one.done]
    return gravest([*all_.codes, *(one.code for one in ran)])


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stdin() -> bytes:
    """Standard input, if it is no terminal: the nodes get all of it, so it must be there first. Raises UsageError."""
    try:
        if os.isatty(0):
            return b""
        data, said = bytearray(), False
        while len(data) <= STDIN_MAX:
            if not said and not select.select((0,), (), (), STDIN_SAID_S)[0]:
                print("pact: standard input goes to every node: waiting for its end (--no-stdin)", file=sys.stderr)
                said = True
            if not (piece := os.read(0, READ)):
                break
            data += piece
    except OSError as exc:
        if exc.errno == errno.EBADF:  # ``nohup`` opens one that cannot be read
            return b""
        why = os.strerror(exc.errno or 0)
        raise UsageError(f"standard input: {why}", "nothing was run; --no-stdin passes none on") from None
    if len(data) > STDIN_MAX:
        raise UsageError(f"standard input has more than {STDIN_MAX} bytes", "copy it to the nodes in another way")
    return bytes(data)


def _bytes(result: Mapping[str, Any], key: str) -> bytes:
    text, coded = result.get(key), result.get(f"{key}_base64")
    if isinstance(text, str):
        return text.encode()
    try:
        return base64.b64decode(coded, validate=True) if isinstance(coded, str) else b""
    except (binascii.Error, ValueError):
        return b""


# -- showing ----------------------------------------------------------------------------------------------------------


def _failures(all_: Everywhere) -> dict[str, str]:
    """Node set -> why, of what did not run to its end."""
    by_why: dict[str, list[str]] = {}
    for one in all_.nodes.values():
        if one.why:
            by_why.setdefault(one.why, []).append(one.node)
    found = {fold(names): why for why, names in by_why.items()}
    for why, names in all_.failed.items():
        found[names[0] if len(names) == 1 else fold(names)] = why
    return found


def _as_json(all_: Everywhere) -> None:
    nodes = {
        one.node: {
            "exit": one.exit,
            **_text("stdout", one.out[b"O"]),
            **_text("stderr", one.out[b"E"]),
            "truncated": one.truncated,
            **({"left": one.left} if one.left else {}),
        }
        for one in all_.nodes.values()
        if one.done
    }
    emit({"v": 1, "nodes": nodes, "failed": _failures(all_)})


def _text(key: str, data: bytearray) -> dict[str, str]:
    """As text; what is none also as its bytes."""
    try:
        return {key: data.decode()}
    except UnicodeDecodeError:
        return {key: data.decode("utf-8", "replace"), f"{key}_base64": base64.b64encode(data).decode()}


def _as_text(all_: Everywhere) -> None:
    ran = [one for one in all_.nodes.values() if one.done]
    if not all_.live:
        for kind, to in ((b"O", sys.stdout), (b"E", sys.stderr)):
            for data, names in _grouped((_whole_lines(one.out[kind]), one.node) for one in ran):
                if data:
                    count = f" ({len(names)})" if len(names) > 1 else ""
                    _write(to, f"{RULE}\n{clean(fold(names))}{count}\n{RULE}\n".encode())
                    _write(to, data)
    sys.stdout.flush()
    for code, names in _grouped((one.exit, one.node) for one in ran):
        if code:
            print(f"pact: {clean(fold(names))}: exit code {code}", file=sys.stderr)
    cut = [one.node for one in ran if one.truncated]
    if cut:
        print(f"pact: {clean(fold(cut))}: output was cut: see --output-max", file=sys.stderr)
    broken = [one.node for one in all_.nodes.values() if one.broken]
    if broken:
        print(f"pact: {clean(fold(broken))}: lines of more than {LINE_MAX} bytes were broken", file=sys.stderr)
    _say_left(ran)
    say_failed(_failures(all_))


def _say_left(ran: Iterable[Output]) -> None:
    """A command has ended, and processes that it started go on."""
    rows = [((one.left["processes"], one.left["id"]), one.node) for one in ran if one.left]
    for (count, _), names in _grouped(rows):
        processes = "1 process that it left behind runs" if count == 1 else f"{count} processes that it left behind run"
        print(f"pact: {clean(fold(names))}: {processes} on", file=sys.stderr)
    for name, names in _grouped((name, node) for (_, name), node in rows):
        where = clean(fold(names))
        print(f"      pact sessions --nodes {where} shows them, and --end {clean(name)} ends them", file=sys.stderr)


def _whole_lines(data: bytearray) -> bytes:
    """Outputs that differ in their last line's end alone look the same, and are shown once."""
    return bytes(data) if data.endswith(b"\n") or not data else bytes(data) + b"\n"


def _grouped(rows: Iterable[tuple[Any, str]]) -> list[tuple[Any, list[str]]]:
    """Equal values with their nodes, the most frequent first."""
    found: dict[Any, list[str]] = {}
    for value, node in rows:
        found.setdefault(value, []).append(node)
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[1]))


def _harmless(to: Any, data: bytes) -> bytes:
    """As it is; for a terminal without anything that it would obey."""
    if not to.isatty():
        return data
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text).encode()


def _takes(to: Any, wait_s: float) -> bool:
    """Whether it takes something within this time."""
    try:
        return bool(select.select((), (to.fileno(),), (), wait_s)[1])
    except (OSError, ValueError):  # no file: it never waits
        return True


def _write(to: Any, data: bytes) -> None:
    to.flush()
    to.buffer.write(_harmless(to, data))
    to.flush()
