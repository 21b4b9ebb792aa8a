"""What commands of ``executing`` have left behind: each has ended by itself, and processes that it started go on
(``&``, ``nohup``, ``setsid``). Nobody waits for them; whoever ran the command, and administrators, list and end them.

They are found again by the command's cgroup; where a module of PAM has moved it elsewhere, by its audit session, which
no process can leave, if it got one of its own. On a node that has neither they are counted when the command ends, and
not found again. Of each command a file stays, until the first look that finds nothing of it.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pact.agent.client import Client
from pact.agent.commandfiles import place_beside
from pact.agent.commandrecords import CommandRecords
from pact.agent.sessionfiles import own_audit, owner_of_session, read_state, shown
from pact.core.node.events import Caller, CommandsTold
from pact.core.node.payloads import Executed
from pact.core.records import rfc3339
from pact.errors import DeniedError, PactError, UnreachableError, UsageError
from pact.model import Owner
from pact.observe.attribution import printable
from pact.session import cgroups
from pact.session.places import started_at, write_state

if TYPE_CHECKING:
    from pact.agent.driver import Driver

SUFFIX: Final = ".left"
KEPT_MAX: Final = 256  # commands whose processes can be found again: the oldest give way
PROGRAMS_MAX: Final = 16
PIDS_MAX: Final = 64
CALL: Final = re.compile(r"[0-9a-f]{1,16}\.[0-9]{1,16}")
GRACE_S: Final = 0.4  # between SIGTERM and SIGKILL
GIVE_UP_S: Final = 5.0
LOOK_S: Final = 0.05
AGAIN_S: Final = 1.0  # how old what is said may be, where a look reads many files
OWED_S: Final = 1.0  # how often it is looked whether the journal can be written again


def name_of(call: str, own: str) -> str:
    """The name under which a command's processes are listed and ended: the same on all nodes of one ``pact exec``.
    ``own``: of its files."""
    return f"x{call}" if CALL.fullmatch(call) else own


def keep(directory: str, name: str, state: Mapping[str, Any], begun: int | None) -> None:
    """Remember where processes of a command are. ``begun``: the number of its record."""
    by_cgroup = bool(_in_cgroups(state))
    _make_room(directory)
    try:
        write_state(f"{directory}/{name}{SUFFIX}", {**state, "by_cgroup": by_cgroup, "begun": begun})
    except OSError:
        pass  # a full disk: the record says how many there were


def _make_room(directory: str) -> None:
    names = _names(directory)
    if len(names) >= KEPT_MAX:
        names = list(_there(directory))
    for name in names[: max(0, len(names) - KEPT_MAX + 1)]:
        _forget(directory, name)


def _kept(directory: str) -> set[str]:
    try:
        return {n.removesuffix(SUFFIX) for n in os.listdir(directory) if n.endswith(SUFFIX)}
    except OSError:
        return set()


def _names(directory: str) -> list[str]:
    """The oldest first."""

    def when(name: str) -> float:
        try:
            return os.stat(f"{directory}/{name}{SUFFIX}").st_mtime
        except OSError:
            return 0.0

    return sorted(sorted(_kept(directory)), key=when)


def _in_cgroups(state: Mapping[str, Any]) -> set[int]:
    host = _host(state)  # before the others: it may just end
    made = (p for p in state.get("cgroups", ()) if isinstance(p, str) and cgroups.PREFIX in p)
    return set[int]().union(*map(cgroups.processes, made)) - host


def _host(state: Mapping[str, Any]) -> set[int]:
    """The process that had the command's pipes, while it is just ending."""
    return {state["pid"]} if started_at(state["pid"]) == state.get("start") != 0 else set()


def _in_audit_sessions(wanted: Iterable[int]) -> dict[int, set[int]]:
    """The processes of each audit session."""
    found: dict[int, set[int]] = {session: set() for session in wanted}
    for name in os.listdir("/proc") if found else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/sessionid", "rb") as f:
                    session = int(f.read())
                if session in found and (pid := cgroups.living(int(name))):
                    found[session].add(pid)
            except (OSError, ValueError):
                continue
    return found


def _there(directory: str, only: Collection[str] | None = None) -> dict[str, tuple[dict[str, Any], set[int]]]:
    """The commands of which processes live. The others are forgotten. ``only``: look at no others."""
    names = [name for name in _names(directory) if only is None or name in only]
    states = {name: read_state(f"{directory}/{name}{SUFFIX}") for name in names}
    by_audit = {a for s in states.values() if s and not s.get("by_cgroup") and (a := own_audit(s)) is not None}
    hosts = {name: _host(state) for name, state in states.items() if state is not None}
    of_session = _in_audit_sessions(by_audit)
    found = {}
    for name, state in states.items():
        pids = set[int]()
        if state is not None:
            audit = None if state.get("by_cgroup") else own_audit(state)
            in_session = set[int]() if audit is None else of_session[audit]
            pids = _in_cgroups(state) | (in_session - hosts[name])
        if state is None or not pids:
            _forget(directory, name)
        else:
            found[name] = state, pids
    return found


def _forget(directory: str, name: str) -> None:
    state = read_state(f"{directory}/{name}{SUFFIX}")
    made = [] if state is None else state.get("cgroups", [])
    cgroups.remove([p for p in made if isinstance(p, str) and cgroups.PREFIX in p])
    try:
        os.unlink(f"{directory}/{name}{SUFFIX}")
    except OSError:
        pass


def _programs(pids: Iterable[int]) -> list[str]:
    found = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/comm", "rb") as f:
                found.add(printable(f.read().rstrip(b"\n")))
        except OSError:
            continue
    return sorted(found)[:PROGRAMS_MAX]


def _signal(pids: Iterable[int], *numbers: int) -> None:
    for pid in pids:
        for number in numbers:
            try:
                os.kill(pid, number)
            except OSError:
                pass


def _nothing_to_forget(name: str) -> None:
    """Its file goes when nothing of it lives."""


@dataclass(slots=True, eq=False)
class Ending:
    """Somebody has what a command left behind ended, and waits for it."""

    name: str
    state: dict[str, Any]
    client: Client
    token: int
    count: int
    began_s: float
    pids: set[int]  # those that the last look found
    look_s: float  # when it is looked whether there are others


class LeftBehind:
    """``sessions``: the directory of sessions."""

    def __init__(self, agent: Driver, sessions: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._agent, self._now_s = agent, now_s
        self._directory = place_beside(sessions)
        self._ending: list[Ending] = []
        self._records = CommandRecords(agent, _nothing_to_forget, now_s)
        self._look_s = 0.0
        self._listed: list[tuple[dict[str, Any], dict[str, Any]]] = []  # of each command its state, and what is said
        self._listed_names: set[str] = set()
        self._listed_s = -AGAIN_S

    def listed(self, caller: Caller) -> list[dict[str, Any]]:
        """The commands that have left something behind, and that the caller may see."""
        names, now_s = _kept(self._directory), self._now_s()
        if names != self._listed_names or now_s >= self._listed_s + AGAIN_S:
            there = _there(self._directory)
            self._listed = [(state, _said(name, state, pids)) for name, (state, pids) in there.items()]
            self._listed_names, self._listed_s = set(there), now_s
        return [said for state, said in self._listed if _may(state, caller)]

    def end(self, client: Client, name: str) -> None:
        """Ask them to end, and kill what stays; the answer comes when none lives. Who asked is on record before: this
        agent may end before the processes do. Raises PactError."""
        self._agent.require_journal()
        found = _there(self._directory, (name,)).get(name)
        if found is None:
            said = printable(os.fsencode(name))[:64]
            raise UsageError(f"nothing of command {said} is left here", "pact sessions shows what is")
        state, pids = found
        if not _may(state, client.caller):
            raise DeniedError(f"to end what command {name} has left behind is for the person who ran it")
        token = self._agent.next_token()
        now_s = self._now_s()
        one = Ending(name, state, client, token, len(pids), now_s, pids, now_s + GRACE_S)
        begins = _executed(one, "ends what it had left behind")
        self._agent.step(CommandsTold(*self._agent.now(), [(begins, client.caller.actor)]))
        self._agent.require_journal()
        client.tokens.add(token)
        self._ending.append(one)
        _signal(pids, signal.SIGTERM, signal.SIGCONT)

    def turn(self) -> None:
        """Look how far it is."""
        now_s = self._now_s()
        self._records.turn(alone=True)
        if not self._ending or now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        looked = self._look(now_s)
        for one in list(self._ending):
            pids = one.pids
            if pids and now_s < one.began_s + GIVE_UP_S:
                if one in looked and now_s >= one.began_s + GRACE_S:  # a number seen a while ago may be another's
                    _signal(pids, signal.SIGKILL)
                continue
            self._ending.remove(one)
            done = "ended what it had left behind"
            if pids:
                stay = "1 process stays" if len(pids) == 1 else f"{len(pids)} processes stay"
                done = f"could not end all that it had left behind: {stay}"
            told = partial(self._answer, one, len(pids))
            self._records.end(f"{one.name} {one.token}", _executed(one, done), one.client.caller.actor, told)
            self._records.turn(alone=True)

    def _look(self, now_s: float) -> list[Ending]:
        """Look for all processes of what is ended; of those of which a known one lives, only now and then. Returns at
        which it looked."""
        due = [
            one
            for one in self._ending
            if now_s >= min(one.look_s, one.began_s + GIVE_UP_S) or not any(map(cgroups.living, one.pids))
        ]
        there = _there(self._directory, {one.name for one in due}) if due else {}
        for one in due:
            one.pids = there[one.name][1] if one.name in there else set()
            one.look_s = now_s + AGAIN_S
        return due

    def _answer(self, one: Ending, stay: int) -> None:
        agent, client = self._agent, one.client
        if one.token not in client.tokens:
            return
        client.tokens.discard(one.token)
        if agent.journal_error:
            agent.fail(client, UnreachableError(agent.journal_error))
        elif stay:
            what, do = ("1 process", "does") if stay == 1 else (f"{stay} processes", "do")
            agent.fail(client, PactError(f"{what} of command {one.name} {do} not end", "the kernel holds what stays"))
        else:
            processes = f"{one.count} process" + ("es" if one.count > 1 else "")
            agent.answer(client, {"session": one.name}, message=f"{processes} of command {one.name} ended")
        agent.control.flush(client)

    def next_s(self) -> float | None:
        """Seconds until ``turn`` has something to do; ``None``: it has nothing."""
        if self._ending:
            return max(0.0, self._look_s - self._now_s())
        return OWED_S if self._records.busy else None


def _said(name: str, state: Mapping[str, Any], pids: Iterable[int]) -> dict[str, Any]:
    """What is said of a command to those who may see it."""
    found = sorted(pids)
    return {
        "id": name,
        "user": state["person"],
        "account": state["account"],
        "uid": state["uid"],
        "command": shown(state["command"]),
        "since": rfc3339(state["began"]),
        "processes": len(found),
        "programs": _programs(found[:PIDS_MAX]),
        "pids": found[:PIDS_MAX],
    }


def _executed(one: Ending, done: str) -> Executed:
    """The record of what was done about it."""
    state = one.state
    about, begun = state.get("about", {}), state.get("begun")
    return Executed(
        command=shown(state["command"]),
        owner=owner_of_session(state, Owner("", str(about.get("user", state["person"])))),
        account=state["account"],
        exit=None,
        key=str(about.get("user", "")),
        why=f"{one.client.caller.actor.user} {done}",
        uid=state["uid"],
        begun=begun if type(begun) is int else None,
        left=one.count,
    )


def _may(state: Mapping[str, Any], caller: Caller) -> bool:
    mine = state["person"] == caller.owner.user and not caller.owner.key.startswith("unit:")
    return mine or caller.actor.role == "admin"
