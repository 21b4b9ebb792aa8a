"""The parts of a command: its arguments, its request, and how it shows an answer. Each command is one file of
``commands``; ``running`` carries it out.

Those files import at their top only what arguments need, and the rest inside functions: a help text must not cost as
much as showing an answer.
"""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.cli.arguments import Parser
from pact.errors import EXIT_DONE

if TYPE_CHECKING:
    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View

COMMITTED_GROUP: Final = "a group that is committed (g7)"


#: Results of many nodes, each with the nodes that gave it.
Documents = Sequence[tuple[Mapping[str, Any], list[str]]]


class Request(NamedTuple):
    """A request of ``pact.core.ops`` by its name, with its fields."""

    op: str
    fields: dict[str, Any]


class Command:
    """Base of all commands. ``examples``: command lines for the help; a test parses each of them."""

    examples: tuple[str, ...] = ()
    timed = True  # takes --timeout
    far = False  # takes --nodes, and the options that say how to reach a root
    pids = False  # its errors keep process ids: their readers are logs, or people at this machine
    daemon = False  # it runs until it is ended, and its errors go to a log
    traceback = False  # an OSError is a bug, not a person's mistake

    def arguments(self, parser: Parser) -> None:
        """Add the command's own arguments; the common ones are there already."""

    def ended_by_hand(self, args: argparse.Namespace) -> bool:
        """Whether the command has no end of its own: then interrupting it is not a failure."""
        return False


class Program(Command, ABC):
    """A command that asks no agent and no root: it does its work itself."""

    timed = False

    @abstractmethod
    def run(self, args: argparse.Namespace) -> int:
        """Carry it out. Returns the exit code."""


class RootRequest(NamedTuple):
    """A request to the root itself, and how its answer is shown: to people, and as JSON."""

    op: str
    fields: dict[str, Any]
    nodes: str | None
    show: Callable[[Mapping[str, Any], View], Lines]
    document: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


class RootCommand(Command, ABC):
    """A command for the root itself; its answer may be longer than a screen."""

    far = True

    @abstractmethod
    def at_root(self, args: argparse.Namespace) -> RootRequest:
        """The request. Raises UsageError."""


class NodeCommand(Command, ABC):
    """A command for a node: the agent of this machine, or many nodes with ``--nodes``.

    ``group_only``: flags that are only for groups, each with its purpose. ``nothing``: what it means on a page of many
    nodes if one has nothing to show. ``patience_ns``: without --timeout; None: the default.
    """

    far = True
    group_only: tuple[tuple[str, str], ...] = ()
    nothing = "done"
    patience_ns: int | None = None

    @abstractmethod
    def request(self, args: argparse.Namespace) -> Request:
        """The request to a node. Raises UsageError."""

    @abstractmethod
    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        """An answer in the form for people."""

    def document(self, args: argparse.Namespace, answer: Answer) -> Any:
        """An answer in the form of JSON."""
        return {"v": 1, **answer.result, **({"message": answer.message} if answer.message else {})}

    def exit_code(self, args: argparse.Namespace, answer: Answer) -> int:
        return answer.exit

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        """Whether the answer may be longer than a screen, and ends by itself."""
        return False

    # -- on this machine --------------------------------------------------------------------------------------------

    def prepare(self, args: argparse.Namespace, agent: Local) -> None:
        """Called before the request: on a terminal, it may ask the person something first."""

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        """Ask the agent of this machine, and show its answer. Returns the exit code."""
        from pact.cli.render import View, clean, emit, put, spoken

        answer = agent.ask(*self.request(args)).accepted()
        if args.json:
            emit(self.document(args, answer))
        else:
            put(self.show(args, answer, View.here()))
            if answer.message and answer.ok:
                print(spoken(answer.message))
            elif answer.message:
                print(f"pact: {spoken(answer.message)}", file=sys.stderr)
                if answer.hint:
                    print(f"      {clean(answer.hint)}", file=sys.stderr)
        return self.exit_code(args, answer)

    # -- in the cluster ---------------------------------------------------------------------------------------------

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        """The request to the root itself, if the command is for the root. Raises UsageError."""
        return None

    def afar(self, args: argparse.Namespace) -> int | None:
        """Ask many nodes in a special way. Returns the exit code; None: they are asked in the common way."""
        return None

    def refuse_afar(self, args: argparse.Namespace) -> None:
        """Raises UsageError for options that only the node itself supports."""

    def accept_afar(self, answer: Answer) -> Answer:
        """Raises a node's error, unless it came with a result worth showing."""
        return answer.accepted()

    def page(self, documents: Documents, silent: int, view: View) -> Sequence[tuple[str, str]] | None:
        """The answers of many nodes on one page, while ``silent`` nodes gave none; None: each answer by itself."""
        return None

    def left_out(self, answer: Answer) -> str:
        """What a node has left out of its answer, and what to do about it."""
        return ""


class StreamCommand(NodeCommand, ABC):
    """A command whose answer comes line by line: ``here`` and ``afar`` write each line when it comes."""

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        """Nothing: no whole answer comes."""
        return ()


class LinesCommand(StreamCommand):
    """A command whose answer comes as lines, each with a record."""

    def wanted(self, args: argparse.Namespace, line: Mapping[str, Any]) -> bool:
        """Whether the person asked for this line."""
        return True

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        from pact.cli.render import View, emit_line, event_line, say

        view = View.here()
        for line in agent.lines(*self.request(args)):
            if not self.wanted(args, line):
                continue
            if args.json:
                emit_line(line["record"])
            else:
                say(event_line(line["record"], view), flush=True)
        return EXIT_DONE

    def exit_code(self, args: argparse.Namespace, answer: Answer) -> int:
        return EXIT_DONE
