"""The arguments that several commands have in common: how they are read, and what is refused.

Imported at every start, so it imports little.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from pact.core.units import parse_duration
from pact.errors import UsageError

NEAR: Final = 0.5  # how similar a word must be to be suggested
INVALID: Final = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
GROUP: Final = re.compile(r"g[1-9]\d{0,15}")
#: Help of flags that several commands have.
EACH: Final = "of many nodes each by itself, with its change numbers and command lines"
PATIENCE: Final = "how long to wait for an answer (default 10s, check 2s, --nodes 60s)"


# All that argparse says is looked up in the catalogues of translations, and pact speaks English alone.
argparse._ = str  # type: ignore[attr-defined]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """One is made for each argument that is added. What argparse itself imports to learn the width took longer than all
    the rest of the parsing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=width() - 2)


def width() -> int:
    """The columns of the person's terminal, or 80."""
    text = os.environ.get("COLUMNS", "")
    try:
        return int(text) if text.isdecimal() and int(text) else os.get_terminal_size(1).columns or 80
    except (OSError, ValueError):
        return 80


class Parser(argparse.ArgumentParser):
    """Usage errors are two lines: the error and where to look. They end with exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **options})

    def error(self, message: str) -> NoReturn:
        import difflib  # only whoever mistypes waits for it

        chosen = INVALID.search(message)
        near = difflib.get_close_matches(chosen[1], re.findall(r"[\w-]+", chosen[2]), 1, NEAR) if chosen else []
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no {chosen[1]!r} here" if chosen else message, f"{meant}see: {self.prog} --help")


def examples(lines: Iterable[str]) -> str:
    """The last part of a help text."""
    listed = "".join(f"  {line}\n" for line in lines)
    return f"examples:\n{listed}" if listed else ""


# -- values -----------------------------------------------------------------------------------------------------------


def duration(text: str) -> int:
    """Nanoseconds."""
    try:
        ns = parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if ns == 0:  # nor does it stand for the default
        raise argparse.ArgumentTypeError(f"{text!r}: must be more than nothing")
    return ns


def whole(text: str) -> int:
    """A count, or a record's number."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


# -- flags ------------------------------------------------------------------------------------------------------------


def common(parser: Parser, *, timed: bool, far: bool) -> None:
    """Options that may stand before a command's word may also stand after it."""
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if timed:
        timeout(parser, PATIENCE)
    if far:
        nodes(parser)


def timeout(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--timeout", type=duration, metavar="D", default=argparse.SUPPRESS, help=text)


def nodes(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """``--nodes`` and related options. ``again``: they, and the timeout, may also stand after the action's word."""
    gone = argparse.SUPPRESS
    parser.add_argument(
        "--nodes", metavar="NODESET", default=gone if again else None, help="on these nodes: node[001-128], @group"
    )
    if again:
        timeout(parser, PATIENCE)
    for flag, how in (("--via", {"action": "append"}), ("--server-key", {}), ("--key", {})):
        parser.add_argument(flag, default=gone, help=gone, **how)  # type: ignore[arg-type]


def verbose(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help=text)


def allow_missing(parser: argparse.ArgumentParser, taken: bool = True) -> None:
    """A command that does not support it still parses it, to say so."""
    what = "go on without so many, or without these, nodes"
    parser.add_argument("--allow-missing", metavar="N|NODESET", help=what if taken else argparse.SUPPRESS)


def targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="CHANGE|ID", help="default: your own changes")
    parser.add_argument("--all", action="store_true", help="every change that you may settle")
    shared(parser)


def shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared", action="store_true", help="also what others have changed too; they are told")


def dry_run(parser: argparse.ArgumentParser, text: str = "show what would change") -> None:
    parser.add_argument("--dry-run", action="store_true", help=text)


def why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="what for")


# -- actions: the second word of some commands ------------------------------------------------------------------------


def actions(parser: Parser, metavar: str) -> Any:
    return parser.add_subparsers(dest="action", required=True, metavar=metavar, parser_class=Parser)


def action(of: Any, name: str, text: str, lines: Iterable[str]) -> Parser:
    """``lines``: the command's examples; those of this action are shown."""
    made: Parser = of.add_parser(name, help=text, description=text)
    made.epilog = examples(line for line in lines if line.startswith(made.prog))
    return made


# -- what is refused --------------------------------------------------------------------------------------------------


def refuse_beside(args: argparse.Namespace, what: str, *flags: str) -> None:
    """Raises UsageError for flags that would be ignored: a person who means one node must not settle all."""
    for flag in flags:
        if getattr(args, flag, None) not in (None, False):
            raise UsageError(f"{what}: --{flag.replace('_', '-')} does not go with it")


def refuse_alone(args: argparse.Namespace, flags: Iterable[tuple[str, str]]) -> None:
    """``flags`` are only for groups, each with its purpose. Raises UsageError: a person who forgot ``--nodes`` must not
    change this machine."""
    for flag, what in flags:
        if getattr(args, flag, None) is not None:
            name = "--" + flag.replace("_", "-")
            raise UsageError(
                f"{args.command}: {name} is for {what}; nothing was changed",
                f"name them, or leave {name} out to mean this node alone",
            )


# -- groups -----------------------------------------------------------------------------------------------------------


def group_among(names: Sequence[str]) -> str | None:
    """The group that is named. Raises UsageError if another name stands beside it."""
    found = [n for n in names if GROUP.fullmatch(n)]
    if found and len(names) > 1:
        raise UsageError("a group is settled by itself: name nothing beside it")
    return found[0] if found else None


def missing_allowed(args: argparse.Namespace) -> int | str | None:
    text: str | None = args.allow_missing
    return int(text) if text is not None and text.isdigit() else text


def require_command(words: Sequence[str]) -> None:
    """A variable that is not set must not pass for a command that succeeded. Raises UsageError."""
    if words and not any(word.strip() for word in words):
        raise UsageError("the command is empty")
