"""The question before anything is settled: what it is, whose it is, and what would become of it. Pure.

Nothing happens by one key. A person's own change takes a reason, a time or a ``y``; what is somebody else's, too, takes
its name, typed. If it changes while the question stands, the question is asked anew. What is sent in the end is what
``pact commit``, ``extend`` and ``rollback`` make of the same words.  # Y3
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.cli import outcome, stat
from pact.cli.client import Answer
from pact.cli.command import NodeCommand
from pact.cli.commands import load
from pact.cli.groups import show_group
from pact.cli.main import build
from pact.cli.top.node import PERSON, holders
from pact.cli.top.text import Span, shown
from pact.core.units import parse_duration
from pact.errors import PactError

if TYPE_CHECKING:
    from pact.cli.render import Lines

ROOT: Final = "@root"  # whom to ask: the root itself
HERE: Final = ""  # the agent of this machine
BY: Final = "15m"
PREVIEW_MAX: Final = 60
INPUT_MAX: Final = 1000
#: The name of a node's change. A node may say anything: ``g7`` would settle a group, ``--all`` whatever is open.
CHANGE: Final = re.compile(r"c[1-9][0-9]{0,17}")
_QUESTIONS: Final = count()

LOOK: Final = "look"
COMMIT: Final = "commit"
EXTEND: Final = "extend"
ROLLBACK: Final = "rollback"
WORDS: Final = {LOOK: "Look at", COMMIT: "Commit", EXTEND: "Extend", ROLLBACK: "Roll back"}

LOADING, FIELD, CONFIRM, DOING, OVER = "loading", "field", "confirm", "doing", "over"


class Ask(NamedTuple):
    """A request. ``tag`` comes back with its answer. ``where``: ``HERE``, ``ROOT`` or a node's name."""

    tag: tuple[str, ...]
    where: str
    op: str
    fields: dict[str, Any]


class Wish(NamedTuple):
    """A command line as a request, and how its answer is shown."""

    op: str
    fields: dict[str, Any]
    show: Callable[[Answer], Lines]


def wish(verb: str, words: list[str]) -> Wish:
    """What ``pact VERB WORDS`` asks of a node; with a group among the words: of the root. Raises UsageError."""
    args = build().parse_args([verb, *words])
    command = load(verb)
    assert isinstance(command, NodeCommand)
    asked = command.at_root(args)
    if asked is not None:
        show = asked.show
        return Wish(asked.op, asked.fields, lambda answer: show(answer.result, PERSON))
    op, fields = command.request(args)
    return Wish(op, fields, lambda answer: command.show(args, answer, PERSON))


@dataclass(slots=True)
class Input:
    """A line that a person types."""

    text: str = ""
    at: int = 0

    def key(self, key: str) -> bool:
        """Whether the key belongs to it."""
        if len(key) == 1 and key.isprintable():
            if len(self.text) < INPUT_MAX:
                self.text = self.text[: self.at] + key + self.text[self.at :]
                self.at += 1
        elif key == "backspace":
            self.text, self.at = self.text[: max(0, self.at - 1)] + self.text[self.at :], max(0, self.at - 1)
        elif key == "delete":
            self.text = self.text[: self.at] + self.text[self.at + 1 :]
        elif key in ("left", "right"):
            self.at = max(0, min(len(self.text), self.at + (1 if key == "right" else -1)))
        elif key in ("home", "ctrl a"):
            self.at = 0
        elif key in ("end", "ctrl e"):
            self.at = len(self.text)
        elif key == "ctrl u":
            self.text, self.at = self.text[self.at :], 0
        else:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be settled. ``facts``: what it was when the question was asked."""

    where: str
    node: str  # for people; "" for a group
    id: str
    owner: str
    mine: bool
    also: tuple[str, ...] = ()
    facts: tuple[Any, ...] = ()

    @property
    def shared(self) -> bool:
        return bool(self.also)


def change_target(where: str, node: str, change: Mapping[str, Any], user: str, uid: Any) -> Target:
    """Raises ValueError for a change with a name that no change has."""
    if CHANGE.fullmatch(str(change["id"])) is None:
        raise ValueError("no name of a change")
    owner = change["owner"]
    mine = owner["uid"] == uid if owner.get("uid") is not None and uid is not None else owner["user"] == user
    return Target(
        where,
        node,
        str(change["id"]),
        shown(owner["user"], 80),
        bool(mine),
        tuple(dict.fromkeys(shown(o["user"], 80) for o in change.get("also") or ())),
        change_facts(change),
    )


def change_facts(change: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a person has decided about: if it is another, the question stands anew."""
    return (
        change["state"],
        change["owner"]["user"],
        tuple(sorted(map(str, change["resources"]))),
        change.get("magnitude"),
        # A file with other contents differs as much as before. Not when it opened: that is computed anew for each
        # answer, and its last digits are never the same.
        change.get("seen"),
        tuple(sorted(str(o["user"]) for o in change.get("also") or ())),
    )


def group_target(group: Mapping[str, Any], user: str) -> Target:
    owner = shown(group.get("owner"), 80)
    return Target(ROOT, "", str(group["id"]), owner, owner == user, (), group_facts(group))


def group_facts(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return (group.get("state"), group.get("owner"), group.get("nodes"), group.get("decision"))


@dataclass(slots=True)
class Question:
    """``begin``, then ``key`` and ``answered``; each returns requests. ``phase`` is ``OVER`` when there is only
    something left to read."""

    verb: str
    target: Target
    phase: str = LOADING
    lines: list[Span] = field(default_factory=list)
    note: Span = ("", "")
    input: Input = field(default_factory=Input)
    message: str = ""
    by: str = BY
    top: int = 0  # the first line that is seen
    n: int = field(default_factory=lambda: next(_QUESTIONS))  # of all questions: each node may have a change c1
    round: int = 0  # which preview is awaited
    done: bool = False
    _wish: Wish | None = None

    @property
    def title(self) -> str:
        t = self.target
        if t.where == ROOT:
            return f"{WORDS[self.verb]} group {t.id} of {t.owner}, on all its nodes"
        return f"{WORDS[self.verb]} {t.id} of {t.owner} on {t.node}"

    @property
    def whose(self) -> Span:
        t = self.target
        also = f"; {', '.join(t.also)} changed it, too" if t.also else ""
        return (f"it is yours{also}", "") if t.mine else (f"it is {t.owner}'s, not yours{also}", "alarm")

    @property
    def prompt(self) -> str:
        if self.phase == FIELD:
            return "why? " if self.verb == COMMIT else f"by how long? [{BY}] "
        if self.phase == CONFIRM:
            what = {COMMIT: "commit it", EXTEND: "extend it", ROLLBACK: "roll it back"}[self.verb]
            return f"type {self.word} and Enter to {what}: "
        return ""

    @property
    def word(self) -> str:
        """What must be typed to go on."""
        return "y" if self.target.mine and not self.target.shared and self.target.where != ROOT else self.target.id

    # -- what it asks -------------------------------------------------------------------------------------------------

    def begin(self) -> list[Ask]:
        self.phase, self.lines, self.top = LOADING, [], 0
        self.round += 1
        if self.target.where == ROOT:
            return [self._ask("preview", "groups", {"group": self.target.id})]
        return [self._ask("preview", "diff", {"targets": [self.target.id]})]

    def _ask(self, what: str, op: str, fields: dict[str, Any]) -> Ask:
        return Ask((what, *self._tag), self.target.where, op, fields)

    @property
    def _tag(self) -> tuple[str, ...]:
        return self.verb, self.target.id, str(self.n), str(self.round)

    def _go(self) -> list[Ask]:
        words = {COMMIT: [f"--message={self.message}"], EXTEND: [self.by], ROLLBACK: []}[self.verb]
        try:
            self._wish = wish(self.verb, [*self._shared(), self.target.id, *words])
        except PactError as exc:
            self._over([(shown(exc.message, 2000), "bad")])
            return []
        self.phase = DOING
        return [self._ask("act", self._wish.op, self._wish.fields)]

    def _shared(self) -> list[str]:
        return ["--shared"] if self.target.shared else []

    # -- what comes ---------------------------------------------------------------------------------------------------

    def answered(self, tag: tuple[str, ...], reply: Answer | PactError) -> list[Ask]:
        if tag[1:] != self._tag:
            return []
        if isinstance(reply, PactError):
            self._over([(shown(reply.message, 2000), "bad"), (shown(reply.hint, 1000), "dim")])
            return []
        if tag[0] == "act":
            assert self._wish is not None
            lines = [(text, "") for text in _texts(self._wish.show(reply))] if reply.result else []
            for done in reply.result.get("rolled_back") or ():
                lines += [(f"  used by {text}", "bad") for text in holders(done.get("consumers") or [])]
            if reply.message:
                lines.append((shown(reply.message, 2000), "" if reply.ok else "bad"))
            if reply.hint and not reply.ok:
                lines.append((shown(reply.hint, 1000), "dim"))
            self.done = reply.ok
            self._over(lines or [("done", "")])
            return []
        if not reply.ok and not reply.result:
            self._over([(shown(reply.message, 2000), "bad"), (shown(reply.hint, 1000), "dim")])
            return []
        if tag[0] == "plan":
            self.lines += _plan(reply)
        else:
            self.lines = _what(self.target, reply.result)
            if self.verb == ROLLBACK and self.target.where != ROOT:
                plan = wish(ROLLBACK, [*self._shared(), "--dry-run", self.target.id])
                return [self._ask("plan", plan.op, plan.fields)]
        if self.verb == LOOK:
            self._over(self.lines or [("nothing differs now", "")])
        else:
            self.phase = CONFIRM if self.verb == ROLLBACK else FIELD
        return []

    def _over(self, lines: Iterable[Span]) -> None:
        self.phase, self.note = OVER, ("", "")
        self.lines = [line for line in lines if line[0]]

    def moved(self, now: Target | None) -> list[Ask]:
        """What it is now; ``None``: it has gone."""
        if self.phase not in (LOADING, FIELD, CONFIRM) or (now is not None and now.facts == self.target.facts):
            return []
        if now is None:
            self._over([(f"{self.target.id} is settled already, or is another change now; nothing was done", "warn")])
            return []
        self.target = now
        self.note = ("it has changed while you looked: this is what it is now", "alarm")
        self.input = Input()
        return self.begin()

    # -- keys ---------------------------------------------------------------------------------------------------------

    def key(self, key: str) -> list[Ask]:
        """Of a person; ``esc`` is not among them."""
        if self.phase not in (FIELD, CONFIRM):
            return []
        if key != "enter":
            if self.input.key(key):
                self.note = ("", "")
            return []
        text, self.input = self.input.text.strip(), Input()
        if self.phase == CONFIRM:
            if text == self.word:
                return self._go()
            self.note = (f"that was not {self.word}: nothing was done. Esc leaves", "warn")
            return []
        if self.verb == COMMIT:
            if not text:
                self.note = ("a commit needs a reason. Esc leaves", "warn")
                return []
            self.message = text
        else:
            try:
                parse_duration(text or BY)
                self.by = text or BY
            except ValueError as exc:
                self.note = (shown(exc), "warn")
                return []
        if self.target.mine and not self.target.shared and self.target.where != ROOT:
            return self._go()
        self.phase = CONFIRM
        return []


def _what(target: Target, result: Mapping[str, Any]) -> list[Span]:
    """What it is about: of a change what has changed, of a group where its members are."""
    if target.where == ROOT:
        groups = result.get("groups") or ()
        return [(shown(t, 1000), "") for g in groups for t in show_group(g, PERSON) if isinstance(t, str)][:PREVIEW_MAX]
    lines = stat.lines(result["resources"])
    if len(lines) > PREVIEW_MAX:
        lines = [*lines[: PREVIEW_MAX - 2], "  ...", lines[-1]]
    return [(shown(line, 1000), "") for line in lines]


def _plan(reply: Answer) -> list[Span]:
    """What a rollback would do, and who is in its way."""
    out: list[Span] = []
    for done in reply.result.get("rolled_back", ()):
        used = done.get("consumers") or []
        texts = outcome.rolled_back({**done, "consumers": ()}, PERSON)
        out += [(text, "") for text in _texts(texts)][:PREVIEW_MAX]
        out += [(f"  in its way: {text}", "bad") for text in holders(used)]
    if not reply.ok and reply.message:
        out.append((shown(reply.message, 1000), "bad"))
    return out


def _texts(lines: Lines) -> list[str]:
    """The lines that are text; holders, which are a table, are shown otherwise."""
    found = [line if isinstance(line, str) else line[0] for line in lines if isinstance(line, str | tuple)]
    return [shown(text, 1000) for text in found if text.strip()]
