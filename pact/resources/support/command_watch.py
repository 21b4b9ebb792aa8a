"""When declared commands run, and what they said last.

Nobody's question runs a command: what is shown is what was seen at the last run. A command runs when it is declared,
each ``every`` after that, and before and after pact acts on it. At most ``RUNNING_MAX`` run at once, each in a thread
that lives as long as the command; one thread waits for the next turn, without waking meanwhile.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pact.model import Attrs, Holder, Observation, Unreadable
from pact.resources.base import Drained, Source
from pact.resources.support.command_run import Failed, Order, end_all, run

RUNNING_MAX: Final = 4
NOT_YET: Final = "command: it has not run yet"
NOT_DECLARED: Final = "command: it is not declared here, so it is not run"


@dataclass(frozen=True, slots=True)
class Definition:
    """How a command looks; ``attrs``: as it is declared. ``orders``: by name, ``observe`` and the optional ones."""

    attrs: Attrs
    orders: dict[str, Order]
    every_ns: int


class Commands:
    """The declared commands of this process, and the last observation of each."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._definitions: dict[str, Definition] = {}
        self._seen: dict[str, tuple[int, Observation]] = {}
        self.users: dict[str, tuple[int, list[Holder]]] = {}  # what the command for consumers said, and when
        self._due: list[tuple[int, str]] = []
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._thread: threading.Thread | None = None
        self._changed: dict[str, None] = {}
        self._wake: Callable[[], None] | None = None

    # -- what is declared -----------------------------------------------------------------------------------------

    def learn(self, name: str, definition: Definition | None) -> None:
        with self._lock:
            old = self._definitions.get(name)
            if definition is None:
                self._definitions.pop(name, None)
                self._seen.pop(name, None)
                self.users.pop(name, None)
                self._forget_turns(name)
                return
            self._definitions[name] = definition
            if old is not None and old.orders == definition.orders and old.every_ns == definition.every_ns:
                seen = self._seen.get(name)
                if seen is not None and isinstance(seen[1], dict):  # only the wanted state is another
                    self._seen[name] = seen[0], {**definition.attrs, "value": seen[1]["value"]}
                return
            self._seen.pop(name, None)
            self._forget_turns(name)
            self._push(time.monotonic_ns(), name)

    def definition(self, name: str) -> Definition | None:
        return self._definitions.get(name)

    def names(self) -> list[str]:
        return sorted(self._definitions)

    # -- what is seen ---------------------------------------------------------------------------------------------

    def last(self, name: str) -> Observation:
        seen = self._seen.get(name)
        if seen is not None:
            return seen[1]
        return Unreadable(NOT_YET if name in self._definitions else NOT_DECLARED)

    def look(self, name: str) -> Observation:
        """Run it now, in this thread."""
        definition = self._definitions.get(name)
        if definition is None:
            return Unreadable(NOT_DECLARED)
        began_ns = time.monotonic_ns()
        try:
            seen: Observation = {**definition.attrs, "value": run(definition.orders["observe"])}
        except Failed as exc:
            seen = Unreadable(f"command: {exc}")
        with self._lock:
            before = self._seen.get(name)
            # A look that began earlier and took longer shows an older state.
            if self._definitions.get(name) is definition and (before is None or before[0] <= began_ns):
                self._seen[name] = began_ns, seen
                if before is None or before[1] != seen:
                    self._changed[name] = None
                    if self._wake is not None:
                        self._wake()
        return seen

    # -- the turns ------------------------------------------------------------------------------------------------

    def _push(self, at_ns: int, name: str) -> None:
        """Under the lock."""
        heapq.heappush(self._due, (at_ns, name))
        if self._thread is None:
            self._thread = threading.Thread(target=self._turns, name="pact-commands", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def _forget_turns(self, name: str) -> None:
        """Under the lock: turns of an earlier declaration, which may be far off."""
        self._due = [turn for turn in self._due if turn[1] != name]
        heapq.heapify(self._due)

    def _turns(self) -> None:
        with self._lock:
            while True:
                now_ns = time.monotonic_ns()
                if not self._due or len(self._running) >= RUNNING_MAX:
                    self._lock.wait()
                elif (wait_ns := self._due[0][0] - now_ns) > 0:
                    self._lock.wait(wait_ns / 1e9)
                else:
                    self._begin(heapq.heappop(self._due)[1])

    def _begin(self, name: str) -> None:
        """Under the lock."""
        if name not in self._definitions:
            return
        if name in self._running:
            self._again.add(name)  # it was declared anew meanwhile
            return
        self._running.add(name)
        try:
            threading.Thread(target=self._once, args=(name,), name=f"pact-{name}"[:15], daemon=True).start()
        except RuntimeError:  # no thread can be had now
            self._ended(name)

    def _once(self, name: str) -> None:
        try:
            self.look(name)
        finally:
            with self._lock:
                self._ended(name)

    def _ended(self, name: str) -> None:
        """Under the lock. The next turn, unless one waits already."""
        self._running.discard(name)
        definition = self._definitions.get(name)
        again = name in self._again
        self._again.discard(name)
        if definition is not None and (again or not any(each == name for _, each in self._due)):
            self._push(time.monotonic_ns() + (0 if again else definition.every_ns), name)
        self._lock.notify_all()

    # -- news -----------------------------------------------------------------------------------------------------

    def wake_with(self, wake: Callable[[], None] | None) -> None:
        self._wake = wake

    def changed(self) -> list[str]:
        with self._lock:
            names, self._changed = list(self._changed), {}
        return names


COMMANDS: Final = Commands()


class News(Source):
    """Commands that said something else than the last time."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        commands.wake_with(self._say)
        self._say()  # what ran before

    def _say(self) -> None:
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> Drained:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return Drained()
        return Drained([(name, 0) for name in self._commands.changed()])

    def want(self, name: str) -> None: ...

    def unwant(self, name: str) -> None: ...

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        self._commands.wake_with(None)
        end_all()
        os.close(self._fd)
