"""What a command is: its arguments, what it asks, and how it shows an answer. Each is one file of ``commands``;
``running`` carries it out.

Those files import at their top what arguments need, and the rest in the functions that need it: a help text must not
cost what showing an answer does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.cli.arguments import Parser
from pact.errors import EXIT_DONE

if TYPE_CHECKING:
    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View

COMMITTED_GROUP: Final = "a group that is committed (g7)"


#: Of many nodes: results, each with the nodes that gave it.
Documents = Sequence[tuple[Mapping[str, Any], list[str]]]


class Request(NamedTuple):
    """A request of ``pact.core.ops`` by its name, with its fields."""

    op: str
    fields: dict[str, Any]


class Command:
    """Base of all. ``examples``: lines that people type, for the help; a test parses each of them."""

    examples: tuple[str, ...] = ()
    timed = True  # takes --timeout
    far = False  # takes --nodes, and what says how a root is reached
    pids = False  # its errors keep the process ids that they name: they go to a log, or to who looks at this machine
    daemon = False  # it runs until it is ended, and its errors are for a log
    traceback = False  # an OSError is no person's mistake

    def arguments(self, parser: Parser) -> None:
        """Its own; those that all have are there."""

    def ended_by_hand(self, args: argparse.Namespace) -> bool:
        """It has no end of its own: to interrupt it is no failure."""
        return False


class Program(Command):
    """It asks nobody: what it does, it does itself."""

    timed = False

    def run(self, args: argparse.Namespace) -> int:
        """Carry it out. Returns the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RootRequest:
    """What the root is asked for itself, and how its answer is shown: to people, and in JSON."""

    op: str
    fields: dict[str, Any]
    nodes: str | None
    show: Callable[[Mapping[str, Any], View], Lines]
    document: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


class RootCommand(Command):
    """It asks the root itself, and its answer may be longer than a screen."""

    far = True

    def at_root(self, args: argparse.Namespace) -> RootRequest:
        """Raises UsageError."""
        raise NotImplementedError


class NodeCommand(Command):
    """It asks a node: the agent of this machine, or with ``--nodes`` many of them.

    ``group_only``: flags that say something to a group only, each with what it is for. ``nothing``: what it means on a
    page of many nodes where one has nothing to show. ``patience_ns``: where --timeout says nothing; None: the usual.
    """

    far = True
    group_only: tuple[tuple[str, str], ...] = ()
    nothing = "done"
    patience_ns: int | None = None

    def request(self, args: argparse.Namespace) -> Request:
        """What a node is asked. Raises UsageError."""
        raise NotImplementedError

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        """An answer for people."""
        raise NotImplementedError

    def document(self, args: argparse.Namespace, answer: Answer) -> Any:
        """An answer as JSON."""
        return {"v": 1, **answer.result, **({"message": answer.message} if answer.message else {})}

    def exit_code(self, args: argparse.Namespace, answer: Answer) -> int:
        return answer.exit

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        """It may be longer than a screen, and ends by itself."""
        return False

    # -- on this machine --------------------------------------------------------------------------------------------

    def prepare(self, args: argparse.Namespace, agent: Local) -> None:
        """What comes before its request: on a terminal, a person may be asked something first."""

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        """Ask the agent of this machine, and show what it answers. Returns the exit code."""
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
        """What the root itself is asked, if it is for the root. Raises UsageError."""
        return None

    def afar(self, args: argparse.Namespace) -> int | None:
        """Ask many nodes in a way of its own. Returns the exit code; None: they are asked as for every command."""
        return None

    def refuse_afar(self, args: argparse.Namespace) -> None:
        """Raises UsageError for what only the node itself can do."""

    def accept_afar(self, answer: Answer) -> Answer:
        """Raises the error that a node answered with, unless it came with a result worth showing."""
        return answer.accepted()

    def page(self, documents: Documents, silent: int, view: View) -> Sequence[tuple[str, str]] | None:
        """The answers of many nodes on one page, ``silent`` gave none; None: each by itself."""
        return None

    def left_out(self, answer: Answer) -> str:
        """What a node has left out of its answer, and what to do about it."""
        return ""


class LinesCommand(NodeCommand):
    """Its answer comes as lines, each with a record."""

    def wanted(self, args: argparse.Namespace, line: Mapping[str, Any]) -> bool:
        """It was asked for."""
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
