"""Runs of tools: a package manager or a configuration manager and all that it starts are one writer, with a change of
its own, and a site's rules say what becomes of that.  # O5

A run is the topmost process on the way from the writer to init that a rule describes. What the process says of itself
(its command line) counts only for root's processes, unless the rule names the user: any account may run a program of
any name. Of a set-uid program (``sudo``) it never counts: whoever called it has chosen that. This
module reads nothing but /proc.
"""

from __future__ import annotations

import os
import re
import select
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from pact._fast.reader import snapshot
from pact.model import Owner, Writer
from pact.observe.attribution import owner_of, writer_from
from pact.observe.jobs import job_in_environment, job_of, job_of_title

#: Each run of these is one change: files, packages and services that it moves are settled together.
PACKAGE_MANAGERS: Final = frozenset(
    {
        *("apt", "apt-get", "aptitude", "dpkg", "nala", "unattended-upgrade", "unattended-upgrades"),
        *("rpm", "dnf", "dnf-3", "dnf5", "dnf-automatic", "yum", "microdnf", "tdnf"),
        *("zypper", "transactional-update", "packagekitd"),
    }
)
#: And so is each run of these.
CONFIGURATION_MANAGERS: Final = frozenset(
    {
        *("puppet", "cf-agent", "salt-call", "salt-minion", "ansible-playbook", "ansible", "ansible-pull"),
        *("chef-client", "cinc-client", "tuned", "tuned-adm", "wwclient", "cfs-state-reporter"),
    }
)
#: A script is named by itself, not by the program that reads it.
INTERPRETER: Final = re.compile(r"(?:python|ruby|perl|sh|bash|dash|ksh|zsh|node|lua)[\d.]*\Z")
THEN: Final = ("commit", "window", "hold", "rollback", "job")
DEPTH_MAX: Final = 64
KNOWN_MAX: Final = 512
FOLLOWED_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class WriterRule:
    """Globs of which all that are given must match one process; ``then``: one of ``THEN``."""

    unit: str = ""
    command: str = ""
    user: str = ""
    cgroup: str = ""
    then: str = "window"

    def matches(self, writer: Writer) -> bool:
        claimed = self.command or self.cgroup
        if claimed and not self.user and writer.uid != 0:
            return False
        return (
            (not self.unit or fnmatchcase(writer.unit, self.unit))
            and (not self.user or fnmatchcase(owner_of(writer).user, self.user))
            and (not self.cgroup or fnmatchcase(writer.cgroup, self.cgroup))
            and (not self.command or _is_command(writer.command, self.command))
        )

    def covers(self, other: WriterRule) -> bool:
        """Whether this rule describes every writer that the other one describes, as far as their texts show."""
        for key in ("unit", "command", "user", "cgroup"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine and not (theirs and _covers(mine, theirs)):
                return False
        claimed = bool(self.command or self.cgroup) and not self.user  # of root's processes alone
        return not claimed or (not other.user and bool(other.command or other.cgroup))


def _covers(pattern: str, other: str) -> bool:
    """Whether a glob matches all that another one does; of a program's name and of a whole line only if it says so."""
    if pattern in (other, "*"):
        return True
    of_lines = [bool(re.search(r"[\s/]", text)) for text in (pattern, other)]
    return not re.search(r"[*?[]", other) and of_lines[0] == of_lines[1] and fnmatchcase(other, pattern)


def _is_command(command: str, pattern: str) -> bool:
    name, line = program(command)
    if not re.search(r"[\s/]", pattern):
        return fnmatchcase(name, pattern)
    return fnmatchcase(line, pattern) or fnmatchcase(command, pattern)


def program(command: str) -> tuple[str, str]:
    """The name of the program or script that a command line runs, and the line that begins with it."""
    words = command.split()
    at = 0
    if words and INTERPRETER.match(os.path.basename(words[0])):
        at = next((n for n, word in enumerate(words[1:], 1) if not word.startswith("-")), 0)
    name = os.path.basename(words[at].rstrip(":")) if words else ""
    return name, " ".join([name, *words[at + 1 :]])


@dataclass(frozen=True, slots=True)
class Run:
    """``token`` names it in records (``Owner.run``)."""

    token: str
    then: str
    pid: int
    start: int


#: The ways of writers that were looked at early, because their parents may be gone when it is asked whose they are.
_ways: OrderedDict[tuple[int, int], list[Writer]] = OrderedDict()


def remember(writer: Writer) -> None:
    """Find the ancestors of a writer now, for a later ``Runs.owner``."""
    _ways[writer.pid, writer.start] = list(chain(writer))
    while len(_ways) > KNOWN_MAX:
        _ways.popitem(last=False)


class Runs:
    """Says whose work a write is. ``drain`` names the runs that have ended, of those whose rule wants to know."""

    def __init__(self, rules: Sequence[WriterRule] = ()) -> None:
        self.rules = tuple(rules)
        self._known: OrderedDict[tuple[int, int], Run | None] = OrderedDict()
        self._epoll = select.epoll()
        self._followed: dict[str, int] = {}
        self._tokens: dict[int, str] = {}
        self._gone: list[str] = []

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        for fd in self._followed.values():
            os.close(fd)
        self._followed.clear()
        self._epoll.close()

    def use(self, rules: Sequence[WriterRule]) -> None:
        """From now on these rules hold."""
        self.rules = tuple(rules)
        self._known.clear()

    def owner(self, writer: Writer | None) -> Owner:
        """The owner of what this process writes, and the run that it is part of."""
        owner = owner_of(writer)
        run = None if writer is None else self._run(writer)
        return owner if run is None else replace(owner, run=run.token, then=run.then)

    def drain(self) -> list[str]:
        """Runs that have ended since."""
        ended, self._gone = self._gone, []
        for fd, _ in self._epoll.poll(0) if self._followed else ():
            token = self._tokens.pop(fd)
            del self._followed[token]
            os.close(fd)
            ended.append(token)
        return ended

    def _run(self, writer: Writer) -> Run | None:
        key = writer.pid, writer.start
        if key in self._known:
            return self._known[key]
        run = self._find(_ways.pop(key, []) or list(chain(writer)))
        if writer.start:
            self._known[key] = run
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        if run is not None and run.then in ("commit", "rollback"):
            self._follow(run)
        return run

    def _find(self, way: Sequence[Writer]) -> Run | None:
        for rule in self.rules:
            found = [w for w in way if rule.matches(w) and not (rule.command and _lent(w))]
            if found:
                return _by_rule(rule, _top(found), way)
        for names in (CONFIGURATION_MANAGERS, PACKAGE_MANAGERS):  # what the first start belongs to their own run
            found = [w for w in way if w.uid == 0 and program(w.command)[0] in names and not _lent(w)]
            if found:
                return _by_rule(WriterRule(), _top(found), way)
        return None

    def _follow(self, run: Run) -> None:
        """Learn of the end of the run's process."""
        if run.token in self._followed or len(self._followed) >= FOLLOWED_MAX:
            return
        try:
            fd = os.pidfd_open(run.pid)
        except OSError:
            self._gone.append(run.token)
            return
        still = snapshot(run.pid)
        if still is None or still[-1] != run.start:  # another process has the number by now
            os.close(fd)
            self._gone.append(run.token)
            return
        self._followed[run.token], self._tokens[fd] = fd, run.token
        self._epoll.register(fd, select.EPOLLIN)


def _top(found: Sequence[Writer]) -> Writer:
    """The topmost of these, from the writer upwards. A daemon that init started forks for each of its runs: then the
    run is the fork."""
    top = found[-1]
    if top.parent > 1:
        return top
    name = program(top.command)[0]
    return next(w for w in found if program(w.command)[0] == name)


def _by_rule(rule: WriterRule, top: Writer, way: Sequence[Writer]) -> Run:
    name = (top.unit if rule.unit else program(top.command)[0]).replace("#", "_")[:64] or "?"
    if rule.then != "job":
        return Run(f"{name}#{top.pid}.{top.start}", "" if rule.then == "window" else rule.then, top.pid, top.start)
    job = next(filter(None, map(_job, way)), "")
    return Run(f"{name}#{job or f'{top.pid}.{top.start}'}", f"job:{job}" if job else "", top.pid, top.start)


def _lent(writer: Writer) -> bool:
    """Whether it runs a set-uid program: its arguments and its environment are its caller's."""
    try:
        return bool(os.stat(f"/proc/{writer.pid}/exe").st_mode & stat.S_ISUID)
    except OSError:
        return False


def _job(writer: Writer) -> str:
    of_root = "" if writer.uid != 0 or _lent(writer) else job_of_title(writer.command) or job_in_environment(writer.pid)
    return job_of(writer.cgroup) or of_root


def chain(writer: Writer) -> Iterator[Writer]:
    """The process, its parent, and so on, without init; it ends where one is gone."""
    for _ in range(DEPTH_MAX):
        yield writer
        if writer.parent <= 1:
            return
        found = snapshot(writer.parent)
        if found is None:
            return
        above = writer_from(writer.parent, found)
        if writer.start and above.start > writer.start:  # the parent is gone, and its number is another's
            return
        writer = above
