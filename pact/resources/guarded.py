"""Protection around a kind from another package: an error in its code affects that kind, and never the agent.

A failing observation makes its resource unreadable, with the reason. A failing comparison says nothing about the state,
so from then on the whole kind is unreadable: nothing is rolled back because of code that does not work. The same holds
for code that does not come back in its time, that keeps what it opens, or whose answers no kind may give.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar, cast

from pact.core.plan import Step
from pact.core.records import canonical
from pact.errors import ConfigError, PactError, RestoreError
from pact.host.notify import log
from pact.model import DIMENSIONS, Attrs, Declared, Holder, Observation, Unreadable, split_id
from pact.observe.mountinfo import MountEntry
from pact.resources.base import (
    COMMON_KEYS,
    WHOLE_N,
    Among,
    Blobs,
    Drained,
    Entry,
    Found,
    Held,
    Keep,
    Kind,
    Saved,
    Source,
    common,
    export_common,
)
from pact.resources.bounded import LOOK_S, LOOP_S, WORK_S, Escaped, Hung, Left, within

T = TypeVar("T")
WHY_MAX: Final = 200
#: More than these no kind may say.
ATTRS_BYTES_MAX: Final = 64 << 10
NAMES_MAX: Final = 100_000
PATHS_MAX: Final = 16
HOLDERS_MAX: Final = 1000
NOTES_MAX: Final = 5


class Guarded(Kind):
    """The same kind, but it raises only what ``Kind`` allows."""

    def __init__(self, inner: Kind) -> None:
        """Raises ConfigError for a kind that lacks required attributes."""
        self._inner, self.name = inner, inner.name
        self._broken = ""  # why nothing of this kind can be read
        self._given_up = False  # none of its code is called any more
        self._left = Left()
        dimension, severity = getattr(inner, "dimension", None), inner.severity
        if dimension not in DIMENSIONS:
            raise ConfigError(
                f"the kind {self.name!r} is of the dimension {dimension!r}, which is none of {', '.join(DIMENSIONS)}"
            )
        if isinstance(severity, bool) or not isinstance(severity, int | float) or not 0 < severity <= 1000:
            raise ConfigError(f"the kind {self.name!r} has the severity {severity!r}: above 0 and at most 1000")
        self.dimension, self.severity = dimension, float(severity)
        self.volatile, self.removable = bool(inner.volatile), bool(inner.removable)
        self.off_loop = True  # a worker can wait for code that hangs
        self.is_path, self.bears, self.carried = bool(inner.is_path), bool(inner.bears), bool(inner.carried)
        self.comes_back = bool(inner.comes_back)
        self.always_read, self.reads_path = bool(inner.always_read), bool(inner.reads_path)
        self.walked = False  # walking is for files
        self.steady, self.asked_anyway = bool(inner.steady), bool(inner.asked_anyway)
        self.at_once, self.orders = bool(inner.at_once), bool(inner.orders)
        self.one_line, self.all_secret = bool(inner.one_line), bool(inner.all_secret)
        self.spelling, self.ignored = str(inner.spelling), self._texts("ignored")
        self.follows, self.moved_by = self._texts("follows"), self._texts("moved_by")
        self.verbs = self._texts("verbs")
        self.stirred_by = self._texts("stirred_by")
        if self.name in self.follows:
            raise ConfigError(f"the kind {self.name!r} follows itself")

    def _texts(self, what: str) -> tuple[str, ...]:
        given = getattr(self._inner, what)
        if not isinstance(given, tuple | list) or not all(isinstance(t, str) for t in given):
            raise ConfigError(f"the kind {self.name!r} has {what} = {given!r}: texts are wanted")
        return tuple(given)

    def _why(self, exc: Exception) -> str:
        what = "" if isinstance(exc, Escaped) else f"{type(exc).__name__}: "
        return f"{self.name}: {what}{exc}"[:WHY_MAX]

    def _give_up(self, why: str) -> None:
        self._broken = self._broken or f"{self.name}: {why}"[:WHY_MAX]
        if not self._given_up:
            self._given_up = True
            log(f"the code of kind {self.name} is not called any more until the agent starts again: {why}", 3)

    def _call(self, limit_s: float, method: Callable[..., T], *args: Any, **more: Any) -> T:
        """Raises what the kind's code raises, and RestoreError if it does not come back, or has been given up."""
        if getattr(method, "__func__", None) is getattr(Kind, getattr(method, "__name__", ""), method):
            return method(*args, **more)  # the kind says nothing of its own here
        if self._given_up:
            raise RestoreError(self._broken)
        try:
            return within(limit_s, method, *args, **more)
        except Hung:
            self._give_up(f"its code did not come back in time from {getattr(method, '__name__', 'a call')}")
            raise RestoreError(self._broken) from None

    def _long(self, limit_s: float, method: Callable[..., T], *args: Any) -> T:
        """The same for what is called often, or does much: what it leaves behind is counted."""
        try:
            return self._left.around(lambda: self._call(limit_s, method, *args))
        finally:
            if why := self._left.too_much():
                self._give_up(why)

    def health(self) -> str:
        return self._broken or "ok"

    def _or(self, otherwise: T, method: Callable[..., T], *args: Any, **more: Any) -> T:
        """The kind's answer; ``otherwise`` if its code fails."""
        try:
            return self._call(LOOK_S, method, *args, **more)
        except Exception as exc:
            if self._given_up:
                return otherwise
            log(f"the code of kind {self._why(exc)}", 4)
            return otherwise

    def _or_value_error(self, method: Callable[..., T], *args: Any) -> T:
        try:
            return self._call(LOOK_S, method, *args)
        except (ValueError, PactError):
            raise
        except Exception as exc:
            raise ValueError(self._why(exc)) from exc

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        """Refused too if its code leaves out what every entry may say."""
        entry: Any = self._or_value_error(self._inner.parse, name, value, base_dir)
        if not isinstance(entry, Entry) or not isinstance(entry.declared, Declared):
            raise ValueError(f"{self.name}: its code reads {type(entry).__name__}, and not an Entry")
        if isinstance(value, Mapping) and (lost := _lost(value, entry.declared)):
            raise ValueError(f"{lost} is left out by the code of kind {self.name}: it would not be kept")
        return entry

    def entries(self, table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        return self._or_value_error(lambda: [(str(name), value) for name, value in self._inner.entries(table)])

    def is_still(self, name: str, signature: bytes) -> bool:
        return False  # a signature of somebody else's stands for nothing

    def learn(self, name: str, attrs: Attrs | None) -> None:
        self._or(None, self._inner.learn, name, attrs)

    def not_yet(self, name: str, target: Attrs | None) -> str:
        return self._or("", lambda: str(self._inner.not_yet(name, target)))

    def keep_in(self, directory: str, boot_id: str) -> Sequence[str]:
        nothing: Sequence[str] = ()
        return self._or(nothing, lambda: [str(text) for text in self._inner.keep_in(directory, boot_id)])

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        out, more = self._or_value_error(self._inner.export, name, declared, blobs), export_common(declared)
        if more and not isinstance(out, Mapping):
            raise ValueError(f"{', '.join(more)} of {self.name}:{name} is left out by the code of its kind")
        return {**out, **more} if more else out

    def canonical(self, name: str) -> str:
        return self._or_value_error(self._inner.canonical, name)

    def pattern(self, text: str) -> str:
        return self._or_value_error(self._inner.pattern, text)

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return self._seen(self._inner.observe, name, keep)

    def lingers(self, name: str) -> bool:
        return self._or(True, lambda: bool(self._inner.lingers(name)))

    def many(self) -> Callable[[str], Observation]:
        look = self._or(None, self._inner.many)
        return self.observe if look is None else lambda name: self._seen(look, name)

    def _seen(self, look: Callable[..., Any], *args: Any) -> Observation:
        if self._broken:
            return Unreadable(self._broken)
        try:
            seen: Any = self._long(LOOK_S, look, *args)
        except Exception as exc:
            return Unreadable(self._broken or self._why(exc))
        if seen is None or isinstance(seen, Unreadable):
            return cast("Observation", seen)
        if isinstance(seen, dict):
            try:
                size = len(canonical(seen))
            except Exception as exc:
                return Unreadable(self._why(exc))
            if size > ATTRS_BYTES_MAX:
                return Unreadable(f"{self.name}: it says {size} bytes: at most {ATTRS_BYTES_MAX} can be declared")
            return seen
        return Unreadable(f"{self.name}: it says {type(seen).__name__}, and not what is there")

    def glance(self, name: str) -> Attrs | None:
        seen: Any = self._or(None, self._inner.glance, name)
        return seen if isinstance(seen, dict) else None

    def heeds(self, what: str, name: str = "") -> bool:
        return self._or(False, lambda: bool(self._inner.heeds(what, name)))

    def presence(self, name: str) -> Observation:
        broken: Observation = Unreadable(f"{self.name}: its code broke")
        return self._or(broken, self._inner.presence, name)

    def held(self, name: str) -> Held:
        return Held(self.presence(name), None, self.reachable(name))

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if not self._broken:
            try:
                found = int(self._call(LOOK_S, self._inner.distance_n, declared, actual))
                if not 0 <= found <= WHOLE_N:
                    raise ValueError(f"a distance of {found}: 0 to {WHOLE_N} can be")
                return found
            except Exception as exc:
                self._broken = self._broken or self._why(exc)
                log(f"nothing of kind {self.name} can be compared, and all of it is unreadable: {self._broken}", 3)
        return 0

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        try:
            self._long(WORK_S, self._inner.restore, name, step, blobs)
        except (OSError, RestoreError):
            raise
        except Exception as exc:
            raise RestoreError(self._why(exc)) from exc

    def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
        try:
            self._long(WORK_S, self._inner.restore_among, name, step, blobs, among)
        except (OSError, RestoreError):
            raise
        except Exception as exc:
            raise RestoreError(self._why(exc)) from exc

    def restore_all(self, steps: Sequence[Step], blobs: Blobs) -> Mapping[str, str]:
        try:
            said = self._long(WORK_S * max(1, len(steps)), self._inner.restore_all, steps, blobs)
            return {step.id: str(said[step.id]) for step in steps}
        except (OSError, RestoreError):
            raise
        except Exception as exc:
            raise RestoreError(self._why(exc)) from exc

    def brought(self, steps: Sequence[Step]) -> Callable[[str], bool]:
        silent = super().brought(steps)
        test = self._or(silent, self._inner.brought, steps)
        return lambda resource: self._or(False, lambda: bool(test(resource)))

    def alike(self, decided: Observation, seen: Observation) -> bool:
        return self._or(False, lambda: bool(self._inner.alike(decided, seen)))

    def settled(self, seen: Attrs | None) -> bool:
        return self._or(True, lambda: bool(self._inner.settled(seen)))

    def goes_ahead(self, step: Step) -> bool:
        return False  # writing ahead is for files

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        return self.observe(name)  # signatures of other packages are not trusted

    def carry(self, name: str, step: Step, keep: Keep) -> Saved:
        try:
            return _saved(self._call(WORK_S, self._inner.carry, name, step, keep))
        except Exception as exc:
            return Saved(refusal=f"{step.id}: {self._why(exc)}", save={"attrs": step.actual})

    def left_behind(self, name: str, step: Step) -> str:
        return self._or("", lambda: str(self._inner.left_behind(name, step)))

    def leaves_with(self, holder: Holder, names: Collection[str]) -> bool:
        return self._or(False, lambda: bool(self._inner.leaves_with(holder, names)))

    def is_unsure(self, name: str, said: Mapping[str, bool | None]) -> bool:
        return self._or(True, lambda: bool(self._inner.is_unsure(name, said)))

    def misnamed(self, name: str) -> str:
        return self._or("", lambda: str(self._inner.misnamed(name)))

    def remarks(self) -> Callable[[str, Attrs], str]:
        silent = super().remarks()
        remark = self._or(silent, self._inner.remarks)
        return lambda name, seen: self._or("", lambda: str(remark(name, seen)))

    def of_mount(self, entry: MountEntry) -> tuple[str, Attrs] | None:
        return None  # only pact's own kind reports mounts

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        try:
            return _saved(self._call(WORK_S, self._inner.preflight, name, step, keep))
        except Exception as exc:
            return Saved(refusal=self._why(exc), save={"attrs": step.actual})

    def preflight_all(self, steps: Sequence[Step], keep: Keep) -> Mapping[str, Saved]:
        try:
            said = self._call(WORK_S, self._inner.preflight_all, steps, keep)
            return {step.id: _saved(said[step.id]) for step in steps}
        except Exception as exc:
            return {step.id: Saved(refusal=self._why(exc), save={"attrs": step.actual}) for step in steps}

    def reads(self, name: str, target: Attrs | None, actual: Observation) -> str:
        return self._or("", lambda: str(self._inner.reads(name, target, actual) or ""))

    def rank(self, name: str) -> int:
        return self._or(0, lambda: int(self._inner.rank(name)))

    def after(self, step: Step) -> tuple[str, ...]:
        nothing: tuple[str, ...] = ()
        return self._or(nothing, lambda: tuple(str(r) for r in self._inner.after(step)))

    def taken(self, seen: Attrs, declared: Attrs | None) -> Attrs:
        taken: Any = self._or(seen, self._inner.taken, seen, declared)
        return taken if isinstance(taken, dict) and taken.items() <= seen.items() else seen

    def turns(self, step: Step) -> bool:
        return self._or(False, lambda: bool(self._inner.turns(step)))

    def shifts(self, step: Step) -> bool:
        return self._or(True, lambda: bool(self._inner.shifts(step)))  # what lies below is observed once more

    def moves(self, name: str, other: str) -> bool:
        return self._or(True, lambda: bool(self._inner.moves(name, other)))

    def directory(self, name: str) -> str:
        return self._or("", lambda: self._id(self._inner.directory(name)))

    def _id(self, resource: Any) -> str:
        """The id. Raises ValueError for a text that is neither an id nor empty."""
        if resource:
            split_id(resource)
        return str(resource or "")

    def has_content(self, attrs: Attrs) -> bool:
        return self._or(True, lambda: bool(self._inner.has_content(attrs)))

    def is_anothers(self, actual: Attrs, known: Sequence[Attrs]) -> bool:
        return self._or(
            True, lambda: bool(self._inner.is_anothers(actual, known))
        )  # if the kind cannot say, it must not overwrite it

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        return self._or(False, lambda: bool(self._inner.half_done(step, seen)))

    def place(self, name: str) -> str:
        return self._or(name, lambda: str(self._inner.place(name)))

    def all_in(self, place: str) -> str:
        return self._or(place, lambda: str(self._inner.all_in(place)))

    def disturbs(self, step: Step) -> bool:
        return self._or(True, self._inner.disturbs, step)

    def in_use(self, name: str, step: Step) -> bool | None:
        broken: bool | None = True  # if the kind cannot say, it must not take it away
        return self._or(broken, lambda: None if (said := self._inner.in_use(name, step)) is None else bool(said))

    def roots(self, name: str, step: Step) -> list[bytes]:
        return self._or([], self._inner.roots, name, step)

    def covers(self, name: str, step: Step) -> bool:
        return self._or(True, self._inner.covers, name, step)

    def reached(self, name: str) -> Callable[[int, bytes], bool] | None:
        return self._or(None, self._inner.reached, name)

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        return self._or(
            [Holder(resource, 0, self.name)],
            lambda: [_holder(h) for h in islice(self._inner.holders(name, step, resource), HOLDERS_MAX)],
        )

    def tell(self, name: str, verb: str, declared: Attrs | None) -> None:
        try:
            self._long(WORK_S, self._inner.tell, name, verb, declared)
        except (OSError, RestoreError):
            raise
        except Exception as exc:
            raise RestoreError(self._why(exc)) from exc

    def told(self, resource: str, name: str, verb: str) -> Step | None:
        return self._or(None, self._inner.told, resource, name, verb)

    def telling(self, told: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        ordered = self._or(told, lambda: [(str(name), str(verb)) for name, verb in self._inner.telling(told)])
        return ordered if sorted(ordered) == sorted(told) else told

    def discover(self, pattern: str) -> Found:
        found = self._or_value_error(self._inner.discover, pattern)
        names = self._listed(lambda: found.names)
        return Found(iter(names), {str(why): int(count) for why, count in found.passed.items()}, bool(found.exact))

    def _listed(self, names: Callable[[], Iterable[Any]]) -> list[str]:
        """The names that it gives, each as it writes them itself. Raises ValueError."""

        def listed() -> list[str]:
            given = list(islice(names(), NAMES_MAX + 1))
            if len(given) > NAMES_MAX:
                raise ValueError(f"it names more than {NAMES_MAX} resources")
            for name in given:
                if not isinstance(name, str) or self._inner.canonical(name) != name:
                    raise ValueError(f"{name!r} is not how it writes that name")
            return given

        try:
            return self._long(WORK_S, listed)
        except Exception as exc:
            raise ValueError(self._why(exc)) from exc

    def means(self, pattern: str, name: str) -> bool:
        return self._or(False, self._inner.means, pattern, name)

    def newcomers(self, pattern: str) -> set[str]:
        try:
            return set(self._listed(lambda: self._inner.newcomers(pattern)))
        except ValueError as exc:
            log(f"what is new of kind {self.name} is not known: {exc}", 4)
            return set()

    def reachable(self, name: str) -> bool:
        return self._or(False, self._inner.reachable, name)

    def watch(self, name: str) -> list[bytes]:
        return self._or([], lambda: [bytes(path) for path in self._inner.watch(name)][:PATHS_MAX])

    def of_path(self, path: bytes) -> str | None:
        return self._or(None, self._inner.of_path, path)

    def source(self) -> Source | None:
        source = self._call(LOOK_S, self._inner.source)  # ``Sources`` polls a kind whose source fails
        return None if source is None else _Bounded(source)

    def notes(self) -> Sequence[str]:
        nothing: Sequence[str] = ()
        return self._or(nothing, lambda: [str(text)[:WHY_MAX] for text in self._inner.notes()][:NOTES_MAX])

    def undeclarable(self, attrs: Attrs | None) -> str:
        return self._or("something of which its code cannot tell", lambda: str(self._inner.undeclarable(attrs)))

    def secret(self, attrs: Attrs | None) -> bool:
        return self._or(True, lambda: bool(self._inner.secret(attrs)))

    def meant_secret(self, attrs: Attrs | None) -> bool:
        return self._or(True, lambda: bool(self._inner.meant_secret(attrs)))

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        return self._or(attrs, self._inner.marked, name, attrs)

    def text(self, attrs: Attrs | None, blobs: Blobs) -> str | None:
        return self._or(None, self._inner.text, attrs, blobs)


class _Bounded(Source):
    """A source whose code is interrupted if it holds the loop up. ``Sources`` stops using one that fails."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner

    def _in_time(self, method: Callable[..., T], *args: Any) -> T:
        try:
            return within(LOOP_S, method, *args)
        except Hung:
            raise RestoreError("it did not come back in time") from None

    def fileno(self) -> int:
        return self._in_time(self._inner.fileno)

    def drain(self) -> Drained:
        seen = self._in_time(self._inner.drain)
        if len(seen.changed) > NAMES_MAX:
            return Drained(lost=f"it names more than {NAMES_MAX} at once")
        return seen

    def want(self, name: str) -> None:
        self._in_time(self._inner.want, name)

    def unwant(self, name: str) -> None:
        self._in_time(self._inner.unwant, name)

    def health(self) -> str:
        return self._in_time(self._inner.health)

    def close(self) -> None:
        self._in_time(self._inner.close)


def _lost(value: Mapping[str, Any], declared: Declared) -> str:
    """The first key of those that every entry may have which is not in what was read; ``""`` if none is missing."""
    for key in sorted(COMMON_KEYS & value.keys()):
        try:
            said = common({key: value[key]})
        except ValueError:
            continue  # a key of this name of the kind's own: its code has read it
        if any(getattr(declared, field) != what for field, what in said.items()):
            return key
    return ""


def _saved(said: Saved) -> Saved:
    """A copy in the types that a record accepts. Raises an error for other values."""
    save, inside = dict(said.save), {str(r): dict(s) for r, s in said.inside.items()}
    canonical([save, inside])
    return Saved(str(said.refusal), save, str(said.note), inside)


def _holder(said: Holder) -> Holder:
    """A copy in the types that a record accepts. Raises an error for other values."""
    numbers = {name: int(getattr(said, name)) for name in ("pid", "start")}
    texts = {name: str(getattr(said, name)) for name in ("how", "path", "user", "command", "cgroup", "job")}
    return Holder(str(said.resource), uid=None if said.uid is None else int(said.uid), **numbers, **texts)  # type: ignore[arg-type]
