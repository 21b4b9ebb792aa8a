"""What a person sees and does: views one above the other, keys, the mouse, questions. Pure: time and facts come in,
requests go out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pact.cli.top import asking, fleetrows, layout
from pact.cli.top import node as nodes
from pact.cli.top.asking import COMMIT, EXTEND, HERE, LOOK, ROLLBACK, ROOT, Ask, Input, Question
from pact.cli.top.feed import FleetTold, Item, Lost, NodeTold, Record, Reply
from pact.cli.top.fleet import Fleet
from pact.cli.top.layout import Look, Spot
from pact.cli.top.node import NodeState
from pact.cli.top.text import Clock, Line, Section, Span, cells, fit, left, shown, wrap
from pact.errors import UsageError

VERBS: Final = {"c": COMMIT, "e": EXTEND, "r": ROLLBACK}
DOWN: Final = {"down": 1, "j": 1, "up": -1, "k": -1}
KEYS_NODE: Final = "q quit  Tab part  ↑↓ row  Enter diff  c commit  e extend  r roll back  ? help"
KEYS_FLEET: Final = "q quit  Tab part  ↑↓ row  Enter open  / filter  c e r settle a group  ? help"
KEYS_NAMES: Final = "q quit  Esc back  ↑↓ row  Enter open  ? help"
KEYS_ASK: Final = "Esc leave it as it is  ↑↓ read on"
KEYS_READ: Final = "Esc back  ↑↓ read on"
HELP: Final = (
    ("Tab, Shift-Tab", "the next part of the screen, or the one before"),
    ("↑ ↓, PgUp PgDn, Home End", "choose a row; the mouse does it, too"),
    ("Enter, or a second click", "open it: its nodes, a node, or what a change has changed"),
    ("Esc, Backspace", "back"),
    ("c  e  r", "commit, extend or roll back the change that is chosen (in the fleet: the group). You are asked first"),
    ("/", "show only some nodes: a node set, or a part of a name"),
    ("Ctrl-L", "paint anew"),
    ("q", "leave"),
)
#: What comes of facts of another version, or of somebody who means no good.
NONSENSE: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
HEAD_SHARE: Final = 3  # a third of the screen, at most, is for what concerns the whole


@dataclass(slots=True)
class View:
    """``kind``: "fleet", "names" (of a row: some nodes), or "node". ``where``: whom to ask, for a node."""

    kind: str
    where: str = HERE
    section: str = ""
    key: str = ""
    title: str = ""
    names: list[str] = field(default_factory=list)
    look: Look = field(default_factory=Look)


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture. ``cursor``: column and line. ``ticks``: it is another one with every second."""

    lines: list[Line]
    spots: list[Spot | None]
    cursor: tuple[int, int] | None
    ticks: bool


class Desk:
    """``heard`` for what comes, ``key`` and ``click`` for what a person does: each returns requests. ``frame`` is the
    picture."""

    def __init__(self, fleet: Fleet | None, expand: Callable[[str], Callable[[str], bool]], name: str = "") -> None:
        """``fleet``: ``None`` for this machine alone, which is called ``name`` as long as nothing is known.
        ``expand``: which nodes a text means; raises UsageError."""
        self.fleet = fleet
        self.nodes: dict[str, NodeState] = {}
        self.views = [View("fleet") if fleet is not None else View("node")]
        if fleet is None:
            self.nodes[HERE] = NodeState(name)
        self.question: Question | None = None
        self.behind: list[Question] = []  # they were left while their answer was awaited
        self.filtering: Input | None = None
        self.helping = self.over = False
        self.note: Span = ("", "")
        self.dirty = True
        self._expand = expand
        self._spots: list[Spot | None] = []
        self._page = 10

    @property
    def view(self) -> View:
        return self.views[-1]

    @property
    def where(self) -> str | None:
        """The node that is looked at."""
        return self.view.where if self.view.kind == "node" else None

    @property
    def known(self) -> bool:
        """Whether there is anything to be seen."""
        if self.view.kind == "node":
            return self.view.where in self.nodes and self.nodes[self.view.where].doc is not None
        return self.fleet is not None and self.fleet.known

    @property
    def typing(self) -> bool:
        """Whether keys are text."""
        q = self.question
        return self.filtering is not None or (q is not None and q.phase in (asking.FIELD, asking.CONFIRM))

    @property
    def unanswered(self) -> list[str]:
        """What was asked and is not answered yet."""
        here = [] if self.question is None else [self.question]
        return [q.title for q in (*self.behind, *here) if q.phase == asking.DOING]

    # -- what comes ---------------------------------------------------------------------------------------------------

    def heard(self, item: Item, now_s: float, now_ms: int) -> list[Ask]:
        self.dirty = True
        try:
            return self._heard(item, now_s, now_ms)
        except NONSENSE as exc:
            if isinstance(item, Reply):
                done = "; it may have been done: look before you repeat it" if item.tag[0] == "act" else ""
                self.question, self.note = None, (f"{_nonsense(exc)}{done}", "bad")
            else:
                where = ROOT if isinstance(item, FleetTold) else getattr(item, "where", HERE)
                self._lost(where, _nonsense(exc), now_s)
            return []

    def _heard(self, item: Item, now_s: float, now_ms: int) -> list[Ask]:
        if isinstance(item, FleetTold):
            assert self.fleet is not None
            self.fleet.take(item.message, now_ms)
        elif isinstance(item, NodeTold):
            self._node(item.where).told(item.doc, item.sessions, item.records, now_s)
        elif isinstance(item, Record):
            self._node(HERE).record(item.record)
        elif isinstance(item, Lost):
            self._lost(item.where, item.why, now_s)
        elif isinstance(item, Reply):
            return self._replied(item)
        return self._moved()

    def _node(self, where: str) -> NodeState:
        return self.nodes.setdefault(where, NodeState(shown(where, 253)))

    def _lost(self, where: str, why: str, now_s: float) -> None:
        if where == ROOT and self.fleet is not None:
            self.fleet.lost(why, now_s)
        else:
            self._node(where).lost(why, now_s)

    def _replied(self, item: Reply) -> list[Ask]:
        asks: list[Ask] = []
        if self.question is not None:
            asks += self.question.answered(item.tag, item.reply)
        for q in list(self.behind):
            q.answered(item.tag, item.reply)
            if q.phase == asking.OVER:
                self.behind.remove(q)
                self.note = (f"{q.title}: {'; '.join(text.strip() for text, _ in q.lines)}", "" if q.done else "bad")
        return asks

    def _moved(self) -> list[Ask]:
        """Whether what the question is about is another now."""
        q = self.question
        if q is None or q.verb == LOOK:
            return []
        if q.target.where == ROOT:
            assert self.fleet is not None
            group = self.fleet.group(q.target.id)
            return q.moved(None if group is None else asking.group_target(group, self.fleet.user))
        state = self.nodes[q.target.where]
        if state.trouble:
            return []
        change = state.change(q.target.id)
        if change is None:
            return q.moved(None)
        return q.moved(asking.change_target(q.target.where, state.name, change, state.user, state.uid))

    # -- what a person does -------------------------------------------------------------------------------------------

    def key(self, key: str) -> list[Ask]:
        self.dirty = True
        try:
            return self._key(key)
        except NONSENSE as exc:
            self.question, self.note = None, (_nonsense(exc), "bad")
            return []

    def _key(self, key: str) -> list[Ask]:
        if self.filtering is not None:
            self._filter_key(self.filtering, key)
            return []
        if self.question is not None:
            return self._question_key(self.question, key)
        self.note = ("", "")
        if self.helping:
            self.helping = False
            return []
        if key in ("?", "h", "f1"):
            self.helping = True
        elif key == "q":
            self.over = True
        elif key in ("tab", "shift tab", "right", "left"):
            self._turn(1 if key in ("tab", "right") else -1)
        elif key in ("esc", "backspace"):
            self._back()
        elif key == "/" and self.fleet is not None:
            self.filtering = Input(self.fleet.filter_text, len(self.fleet.filter_text))
        elif key in VERBS:
            return self._ask(VERBS[key])
        elif key == "enter":
            return self._open()
        else:
            self._move(key)
        return []

    def click(self, line: int, button: int) -> list[Ask]:
        """``line``: of the last frame, from 0. Buttons 4 and 5 are the wheel."""
        self.dirty = True
        if button in (4, 5):
            return self.key("up" if button == 4 else "down")
        if self.question is not None or self.filtering is not None or self.helping:
            return []
        self.note = ("", "")
        spot = self._spots[line] if 0 <= line < len(self._spots) else None
        if spot is None or button != 1:
            return []
        look = self.view.look
        again = spot.key and look.focus == spot.section and look.selected.get(spot.section) == spot.key
        look.focus = spot.section
        if spot.key:
            look.selected[spot.section] = spot.key
        return self.key("enter") if again else []

    def _sections(self, now_s: float = 0.0, now_ms: int = 0) -> list[Section]:
        view = self.view
        if view.kind == "node":
            return nodes.sections(self.nodes[view.where]) if view.where in self.nodes else []
        assert self.fleet is not None
        if view.kind == "fleet":
            return fleetrows.sections(self.fleet, now_s, now_ms)
        view.names = fleetrows.names_of(self.fleet, view.section, view.key) or view.names
        return [fleetrows.nodes_section(self.fleet, view.title, view.names, now_s, now_ms)]

    def _focused(self) -> Section | None:
        return layout.focused(self._sections(), self.view.look)

    def _turn(self, by: int) -> None:
        there = [s for s in layout.visible(self._sections()) if s.rows]
        focus = layout.focused(there, self.view.look)
        if focus is not None:
            self.view.look.focus = there[(there.index(focus) + by) % len(there)].name

    def _move(self, key: str) -> None:
        section = self._focused()
        every = layout.keys(section) if section is not None else []
        if section is None or not every:
            return
        at = every.index(layout.selected(section, self.view.look))
        to = {"home": 0, "end": len(every) - 1, "page up": at - self._page, "page down": at + self._page}.get(
            key, at + DOWN.get(key, 0)
        )
        self.view.look.focus = section.name
        self.view.look.selected[section.name] = every[max(0, min(to, len(every) - 1))]

    def _back(self) -> None:
        if len(self.views) > 1:
            self.views.pop()
        elif self.fleet is not None and self.fleet.filter_text:
            self.fleet.narrow("", None)

    def _open(self) -> list[Ask]:
        section = self._focused()
        key = layout.selected(section, self.view.look) if section is not None else ""
        if section is None or not key:
            return []
        if self.view.kind == "node":
            return self._ask(LOOK) if section.name == "changes" else []
        assert self.fleet is not None
        if self.view.kind == "names":
            self.views.append(View("node", where=key))
            return []
        names = fleetrows.names_of(self.fleet, section.name, key)
        if len(names) == 1:
            self.views.append(View("node", where=names[0]))
        elif names:
            row = next(r for r in section.rows if r.key == key)
            texts = [c if isinstance(c, str) else c[0] for c in row.cells if not isinstance(c, Clock)]
            title = f"{section.title}: {'  '.join(filter(None, texts))}"
            self.views.append(View("names", section=section.name, key=key, title=title, names=names))
        else:
            self.note = ("no node of it is known now", "warn")
        return []

    # -- questions ----------------------------------------------------------------------------------------------------

    def _ask(self, verb: str) -> list[Ask]:
        section = self._focused()
        key = layout.selected(section, self.view.look) if section is not None else ""
        target = role = None
        if self.view.kind == "node" and section is not None and section.name == "changes" and key:
            state = self.nodes[self.view.where]
            change = state.change(key)
            role = state.role
            if change is not None:
                target = asking.change_target(self.view.where, state.name, change, state.user, state.uid)
        elif self.view.kind == "fleet" and section is not None and section.name == "groups" and key:
            assert self.fleet is not None
            group = self.fleet.group(key)
            role = self.fleet.role
            if group is not None:
                target = asking.group_target(group, self.fleet.user)
        if target is None:
            what = "choose a change (Tab goes there)" if self.view.kind == "node" else "open a node, or choose a group"
            self.note = (f"nothing is chosen that could be settled: {what}", "warn")
            return []
        if role == "viewer" and verb != LOOK:
            self.note = (f"a viewer may look, and not {asking.WORDS[verb].lower()}: that takes ops or admin", "warn")
            return []
        self.question = Question(verb, target)
        return self.question.begin()

    def _question_key(self, q: Question, key: str) -> list[Ask]:
        if key == "esc" or (q.phase == asking.OVER and key in ("enter", "q", " ", "backspace")):
            if q.phase == asking.DOING:
                self.behind.append(q)
                self.note = (f"{q.title}: it goes on, and its answer will stand here", "warn")
            elif q.phase in (asking.FIELD, asking.CONFIRM, asking.LOADING) and q.verb != LOOK:
                self.note = (f"{q.target.id} is left as it is", "")
            self.question = None
            return []
        if key in ("up", "down", "page up", "page down"):
            by = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page}[key]
            q.top = max(0, q.top + by)
            return []
        return q.key(key)

    def _filter_key(self, field_: Input, key: str) -> None:
        assert self.fleet is not None
        self.note = ("", "")
        if key == "esc":
            self.filtering = None
        elif key == "enter":
            text = field_.text.strip()
            try:
                self.fleet.narrow(text, self._expand(text) if text else None)
            except UsageError as exc:
                self.note = (shown(exc.message), "warn")
                return
            self.filtering = None
        else:
            field_.key(key)

    # -- the picture --------------------------------------------------------------------------------------------------

    def frame(self, width: int, height: int, now_s: float, now_ms: int) -> Frame:
        """``height`` lines of ``width`` cells each."""
        if width <= 0 or height <= 0:
            return Frame([], [], None, False)
        self.dirty = False
        try:
            return self._frame(width, height, now_s, now_ms)
        except NONSENSE as exc:
            self._spots = [None] * height
            said = [*wrap(_nonsense(exc), width, ""), "", *wrap("Esc back  q quit", width, "")]
            lines = [fit([(text, "bad")], width) for text in said][:height]
            return Frame(lines + [fit([], width)] * (height - len(lines)), self._spots, None, False)

    def _frame(self, width: int, height: int, now_s: float, now_ms: int) -> Frame:
        sections = self._sections(now_s, now_ms)
        trouble = self._trouble()
        lines = self._head(width, height, now_s)
        foot = 1 if height > 2 else 0
        room = max(0, height - len(lines) - foot)
        cursor = None
        spots: list[Spot | None] = [None] * len(lines)
        if self.question is not None:
            body, cursor = self._asked(self.question, width, room)
        elif self.helping:
            body = [fit([(f"{keys}", "bold"), (f"  {what}", "")], width) for keys, what in HELP]
        else:
            found = layout.body(sections, self.view.look, width, room, now_s)
            body = found.lines
            spots += found.spots
        if cursor is not None:
            cursor = (cursor[0], cursor[1] + len(lines))
        lines += body[:room]
        self._page = max(1, room - 3)
        empty = fit([], width)
        lines += [empty] * (height - foot - len(lines))
        if foot:
            line, at = self._foot(width)
            lines.append(line)
            cursor = (at, height - 1) if at is not None else cursor
        self._spots = (spots + [None] * height)[:height]
        ticks = bool(trouble) or any(isinstance(c, Clock) for s in sections for r in s.rows for c in r.cells)
        if cursor is not None and not (0 <= cursor[0] < width and 0 <= cursor[1] < height):
            cursor = None
        return Frame(lines[:height], self._spots, cursor, ticks)

    def _trouble(self) -> tuple[str, float] | None:
        """Why what is seen is not live, and since when."""
        if self.fleet is not None and self.fleet.trouble:
            return self.fleet.trouble, self.fleet.since_s
        state = self.nodes.get(self.view.where) if self.view.kind == "node" else None
        return (state.trouble, state.since_s) if state is not None and state.trouble else None

    def _head(self, width: int, height: int, now_s: float) -> list[Line]:
        view = self.view
        if view.kind == "node":
            state = self._node(view.where)
            head, alerts = nodes.headline(state), nodes.alerts(state)
            if self.fleet is not None:
                head = [*head, ("  Esc: back", "dim")]
        else:
            assert self.fleet is not None
            head, alerts = fleetrows.headline(self.fleet), fleetrows.alerts(self.fleet)
        if trouble := self._trouble():
            why, since_s = trouble
            text = f"NOT LIVE for {left(now_s - since_s)}: {shown(why)}"
            alerts = [(text, "alarm"), *alerts]
        rows = [fit(head, width)]
        for text, style in alerts:
            rows += [fit([(piece, style)], width) for piece in wrap(text, width, "")]
        most = max(1, height // HEAD_SHARE)
        if len(rows) > most > 1:
            more = len(rows) - most + 1
            rows = [*rows[: most - 1], fit([(f"… and {more} more lines", "warn")], width)]
        rows = rows[:most]
        return [*rows, fit([], width)] if height > 10 else rows

    def _asked(self, q: Question, width: int, room: int) -> tuple[list[Line], tuple[int, int] | None]:
        head = [fit([(piece, "title")], width) for piece in wrap(q.title, width, "")]
        if q.verb != LOOK:
            text, style = q.whose
            head += [fit([(piece, style)], width) for piece in wrap(text, width, "")]
        tail: list[Line] = []
        cursor = None
        if q.note[0]:
            tail += [fit([(piece, q.note[1])], width) for piece in wrap(q.note[0], width, "")]
        if q.phase in (asking.LOADING, asking.DOING):
            tail.append(fit([("asking ..." if q.phase == asking.LOADING else "it is being done ...", "dim")], width))
        elif q.phase == asking.OVER:
            tail.append(fit([("Enter: go on", "dim")], width))
        else:
            line, at = _input(q.prompt, q.input, width)
            tail.append(line)
            cursor = at
        body = [fit([(piece, style)], width) for text, style in q.lines for piece in _kept(text, width)]
        middle = max(0, room - len(head) - len(tail))
        q.top = max(0, min(q.top, len(body) - middle))
        seen = body[q.top : q.top + middle]
        if len(body) > middle > 1:
            more = len(body) - q.top - middle
            said = f"… {more} more lines: ↓" if more > 0 else "… from above: ↑"
            seen[-1] = fit([(said, "dim")], width) if more > 0 else seen[-1]
        lines = [*head, *seen, *tail][-room:] if room else []
        return lines, None if cursor is None or not lines else (cursor, len(lines) - 1)

    def _foot(self, width: int) -> tuple[Line, int | None]:
        if self.filtering is not None and not self.note[0]:
            return _input("only these nodes: ", self.filtering, width)
        if self.note[0]:
            text, style = self.note
            return fit([(text, style)], width), None
        if self.question is not None:
            keys = KEYS_ASK if self.question.phase != asking.OVER else KEYS_READ
        elif self.helping:
            keys = "any key: go on"
        else:
            keys = {"node": KEYS_NODE, "fleet": KEYS_FLEET, "names": KEYS_NAMES}[self.view.kind]
        parts = keys.split("  ")
        while len(parts) > 1 and cells([("  ".join(parts), "")]) >= width:
            parts.pop(-2 if len(parts) > 2 else -1)
        return fit([("  ".join(parts), "dim")], width), None


def _nonsense(exc: Exception) -> str:
    return f"what was said makes no sense here ({type(exc).__name__}): is it of another version?"


def _input(prompt: str, field_: Input, width: int) -> tuple[Line, int]:
    """A line with what is typed, so that the place of the next character is seen; and that place."""
    before, after = field_.text[: field_.at], field_.text[field_.at :]
    room = max(1, width - cells([(prompt, "")]) - 1)
    while before and cells([(before, "")]) > room - 1:
        before = before[1:]
    at = cells([(prompt + before, "")])
    return fit([(prompt, "bold"), (shown(before + after, 2000), "")], width), min(at, width - 1)


def _kept(text: str, width: int) -> list[str]:
    """A line as it is, or wrapped, with its indent."""
    if cells([(text, "")]) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())][: width // 2]
    return wrap(text.strip(), width, indent) or [""]
