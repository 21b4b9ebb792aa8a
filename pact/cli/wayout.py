"""On the way out of a session: what it has changed and is still open, and the question what becomes of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from pact.cli import stat
from pact.cli.render import clean, left_of, local_time, say
from pact.cli.roots import making_sense
from pact.core.units import parse_duration
from pact.errors import PactError

if TYPE_CHECKING:
    from pact.cli.client import Answer


class Asks(Protocol):
    """Whoever answers requests to the session's node."""

    def ask(self, op: str, fields: dict[str, Any]) -> Answer: ...


QUESTION: Final = "commit / extend / roll back / leave? [leave] "
BY: Final = "15m"
SHOWN_MAX: Final = 12
#: A resource that was another one so often by the time of an answer is decided about as it is.
RESTLESS: Final = 2
WORDS: Final = {"commit": "commit", "extend": "extend", "rollback": "roll back", "roll back": "roll back", "leave": ""}


def mine(changes: list[Any], owner: str) -> list[Any]:
    """The changes of the session's owner (``login:UID:SESSION``) that somebody has to decide about."""
    kind, _, rest = owner.partition(":")
    uid, _, session = rest.partition(":")
    return [
        c
        for c in changes
        if str(c["owner"]["uid"]) == uid
        and (kind != "login" or c["owner"]["session"] == session)
        and c["state"] != "rolling_back"
    ]


def ask(agent: Asks, owner: str) -> None:
    """Ask until it is settled, or left. Raises PactError if the agent does not answer, or makes no sense."""
    with making_sense("the node"):
        _ask(agent, owner)


class _Open:
    """What is open of the session's owner, as it was shown."""

    def __init__(self, agent: Asks, owner: str) -> None:
        """Asks the node. Raises PactError."""
        self._agent, self._owner = agent, owner
        self._moved: dict[str, int] = {}  # resource -> how often it was another one by the time of an answer
        self.doc = agent.ask("status", {}).accepted().result
        self.changes = mine(self.doc["changes"], owner)
        self.ids = [c["id"] for c in self.changes]
        asked = {"targets": self.ids}
        self.entries = agent.ask("diff", asked).accepted().result["resources"] if self.ids else []

    def show(self) -> None:
        lines = stat.lines(self.entries)
        for line in [*lines[:-1][:SHOWN_MAX], *(["  ..."] if len(lines) > SHOWN_MAX + 1 else []), *lines[-1:]]:
            say(line)
        say(_left(self.changes))

    def _said(self) -> dict[str, Any]:
        """What a decision is about, by resource."""
        return {e["id"]: [e.get(key) for key in ("declared", "actual", "diff")] for e in self.entries}

    def moved(self) -> bool:
        """Whether it is something else by now: then that is shown, and nothing is to be done. What never rests would
        never be decided about: from the third time on the answer is about it as it is then. Raises PactError."""
        fresh = _Open(self._agent, self._owner)
        then, now = self._said(), fresh._said()
        others = then.keys() ^ now.keys()
        changed = [r for r in then.keys() & now.keys() if then[r] != now[r]]
        new = [r for r in changed if self._moved.get(r, 0) < RESTLESS]
        if fresh.ids == self.ids and not others and not new:
            return False
        for resource in changed:
            self._moved[resource] = self._moved.get(resource, 0) + 1
        self.doc, self.changes, self.ids, self.entries = fresh.doc, fresh.changes, fresh.ids, fresh.entries
        became = "is now" if self.ids else "nothing of this session is open"
        print(f"nothing was done: it has changed meanwhile, and {became}")
        if self.ids:
            self.show()
            self._say_restless()
        return True

    def _say_restless(self) -> None:
        restless = [r for r in self._said() if self._moved.get(r, 0) >= RESTLESS]
        if restless:
            more = f" and {len(restless) - 1} more" if len(restless) > 1 else ""
            say(f"{clean(restless[0])}{more}: changes again and again; the next answer is about it as it is then")


def _ask(agent: Asks, owner: str) -> None:
    found = _Open(agent, owner)
    if found.ids:
        print(f"you changed on {clean(found.doc['node'])}, and it is open:")
        found.show()
    while found.ids:
        word = _answer(QUESTION)
        chosen = WORDS.get(word) if word in WORDS else _begun(word)
        if chosen is None:
            print("commit, extend, roll back or leave: the first letter is enough")
            continue
        if not chosen:
            ids = found.ids
            print(f"{', '.join(map(clean, ids))} left to {'their windows' if len(ids) > 1 else 'its window'}")
            return
        try:
            if _done(agent, chosen, found):
                return
        except PactError as exc:
            print(f"pact: {clean(exc.message)}" + (f"\n      {clean(exc.hint)}" if exc.hint else ""))


def _begun(word: str) -> str | None:
    """What a first letter means; nothing, or the end of the input: leave."""
    found = [w for w in ("commit", "extend", "roll back") if word and w.startswith(word)]
    return found[0] if found else "" if not word or "leave".startswith(word) else None


def _answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _left(changes: list[Any]) -> str:
    ends = [c for c in changes if c["deadline"]]
    waiting = [f"{clean(c['id'])} is {clean(c['state'])}" for c in changes if c["state"] != "open"]
    if ends:
        first = min(ends, key=lambda c: str(c["deadline"]))
        waiting.insert(0, f"{left_of(first['remaining_s'])} left, until {local_time(first['deadline'])}")
    return "; ".join(waiting) or "no clock runs for it"


def _done(agent: Asks, chosen: str, found: _Open) -> bool:
    """Carry it out; False if the person has changed the mind, or somebody what it is about. Raises PactError."""
    from pact.cli import outcome
    from pact.cli.render import View, put

    view = View.here()
    if chosen == "commit":
        try:
            message = input("why? ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return False
        if not message:
            print("a commit needs a reason")
            return False
        if found.moved():
            return False
        answer = agent.ask("commit", {"targets": found.ids, "message": message}).accepted()
        for done in answer.result.get("committed", ()):
            put(outcome.committed(done, view))
    elif chosen == "extend":
        text = _answer(f"by how long? [{BY}] ") or BY
        try:
            by_ns = parse_duration(text)
        except ValueError as exc:
            print(exc)
            return False
        if found.moved():
            return False
        answer = agent.ask("extend", {"targets": found.ids, "by_ns": by_ns}).accepted()
        for done in answer.result.get("extended", ()):
            say(f"{clean(done['change'])} has more time{view.until(done['deadline'])}")
    else:
        if found.moved():
            return False
        answer = agent.ask("rollback", {"targets": found.ids}).accepted()
        for done in answer.result.get("rolled_back", ()):
            put(outcome.rolled_back(done, view))
    if not answer.ok:
        print(f"pact: {clean(answer.message)}", file=sys.stderr)
    return answer.ok
