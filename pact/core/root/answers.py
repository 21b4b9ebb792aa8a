"""The answers of nodes, and what people see of them: checked, cut to the size of a message, with an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from pact.core import strict
from pact.core.root.envelope import Envelope
from pact.core.tree.calls import PARTS_BYTES
from pact.core.tree.checks import BODY_MAX
from pact.core.tree.wire import Head
from pact.errors import EXIT_FAILED
from pact.model import Json, JsonRead
from pact.values import NOTHING, dataclass

#: The longest text in a result; people and nodes may send texts that are too long for a head.
SAID_MAX: Final = 4_000
HOLDERS_MAX: Final = 20
#: The fields that are kept of a consumer that a node names, and their longest text: a node may send anything.
HOLDER_FIELDS: Final = ("resource", "pid", "how", "path", "uid", "user", "command", "cgroup", "job")
FIELD_MAX: Final = 300
RESULT_MAX: Final = BODY_MAX
#: The parts that a result can do without. The longest that a person can request separately comes first.
CUT: Final[JsonRead] = {"blocked": {}, "resources": [], "members": {}, "nodes": ""}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a node. ``result`` may hold anything."""

    exit: int
    message: str = ""
    result: JsonRead = NOTHING


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node refused, and its ``holders`` in the form that ``Holder`` writes, whatever the node sent. ``absent``:
    the node has never had the resource or group of the question.
    """

    why: str
    holders: Sequence[Head] = ()
    absent: bool = False


def answer_of(body: bytes) -> Answer:
    """A node's answer; a malformed one counts as a refusal."""
    try:
        said = strict.loads_object(body, BODY_MAX)
    except strict.NotStrictError:
        said = {}
    code, result = said.get("exit"), said.get("result")
    if type(code) is not int or not 0 <= code <= 255:
        return Answer(EXIT_FAILED, "an answer that makes no sense")
    return Answer(code, clipped(_text(said.get("message"))), result if isinstance(result, dict) else NOTHING)


def _text(said: Any) -> str:
    return said if isinstance(said, str) else ""


def refusal_of(answer: Answer) -> Refusal:
    result = answer.result
    holders = result.get("holders")
    named = [_holder(h) for h in holders[:HOLDERS_MAX] if isinstance(h, dict)] if isinstance(holders, list) else []
    why = clipped(_text(result.get("why")) or answer.message or "no")
    return Refusal(why, named, result.get("absent") is True)


def _holder(said: Head) -> Json:
    """A consumer in the form that ``Holder`` writes: numbers and short texts, whatever the node sent."""
    out = {k: said[k] for k in HOLDER_FIELDS if k in said and isinstance(said[k], str | int | None)}
    return {k: v[:FIELD_MAX] if isinstance(v, str) else v for k, v in out.items()}


def fitting(result: JsonRead) -> tuple[bytes, str]:
    """A result as JSON, cut to the size of a message; and a text that says what was cut."""
    body = orjson.dumps(result)
    if len(body) <= RESULT_MAX:
        return body, ""
    groups = result.get("groups")
    if isinstance(groups, list):
        kept = _newest(groups, RESULT_MAX - (1 << 10))
        body = orjson.dumps({**result, "groups": kept, "truncated": True})
        return body, f"{len(groups) - len(kept)} older groups are left out: too many for one answer"
    return _without(result, RESULT_MAX), "some of it is left out: too much for one answer"


def _without(result: JsonRead, room: int) -> bytes:
    cut = {**result, "truncated": True}
    for key, nothing in CUT.items():
        if key in cut:
            cut[key] = {} if isinstance(cut[key], dict) else nothing
            body = orjson.dumps(cut)
            if len(body) <= room:
                return body
    return b'{"truncated":true}'


def _newest(groups: list[Json], room: int) -> list[Any]:
    kept: list[Any] = []
    for group in reversed(groups):
        body = orjson.dumps(group)
        if len(body) > room // 4:
            body = _without(group, room // 4)
        room -= len(body) + 1
        if room < 0:
            break
        kept.append(orjson.Fragment(body))
    return kept[::-1]


def clipped(text: str) -> str:
    return text if len(text) <= SAID_MAX else text[: SAID_MAX - 1] + "…"


class ToClient:
    """Answers of nodes on their way to a client: answers that came together are sent together."""

    def __init__(self, down: Callable[[str, Head, bytes], None], head: Envelope) -> None:
        self._down = down
        self._client = {"client": head.client, "id": head.id}
        self._rows: list[tuple[list[str], bytes]] = []
        self._size = 0

    def part(self, names: list[str], body: bytes) -> None:
        size = len(body) + sum(map(len, names)) + 8 * len(names)
        if self._size + size > PARTS_BYTES:
            self.flush()
        self._rows.append((names, body))
        self._size += size

    def flush(self) -> None:
        rows, self._rows, self._size = self._rows, [], 0
        if len(rows) == 1:
            self._down("part", {**self._client, "names": rows[0][0]}, rows[0][1])
        elif rows:
            parts = [[names, len(body)] for names, body in rows]
            self._down("parts", {**self._client, "parts": parts}, b"".join([body for _, body in rows]))
