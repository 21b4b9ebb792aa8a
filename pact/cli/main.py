"""``pact``: finds the command, and reports errors. A person's mistake gives one or two lines, never a traceback."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from pact import __version__
from pact.cli.arguments import PATIENCE, Parser, common, duration, examples
from pact.cli.command import Command
from pact.cli.commands import COMMANDS, load
from pact.errors import EXIT_DONE, EXIT_FAILED, OUT_OF, PactError, UsageError, explained

INTERRUPTED: Final = 130
#: argparse takes such a text for a flag, and says that something is missing.
NEGATIVE: Final = re.compile(r"-\d+(?:\.\d+)?(?:ms|s|m|h|d)")
DESCRIPTION: Final = """\
Changes to this node take effect at once and open a commit window: commit them in
time, or they are rolled back to declared state. Larger drift has less time."""
#: First commands for a new administrator.
FIRST: Final = (
    "pact status",
    'pact commit -m "more connections on the login nodes"',
    "pact rollback --dry-run",
    "pact COMMAND --help",
)


class CommandParser(Parser):
    """The parser of one command. It builds its arguments when its command is used."""

    learnt = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.learn()
        return super().parse_known_args(args, namespace)

    def learn(self) -> None:
        if self.learnt:
            return
        self.learnt = True
        command = load(self.prog.rpartition(" ")[2])
        self.epilog = examples(command.examples)
        common(self, timed=command.timed, far=command.far)
        command.arguments(self)


def build() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="pact",
        description=DESCRIPTION,
        epilog=examples(FIRST),
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=os.environ.get("PACT_SOCKET") or None,
        help="the agent's control socket (default: $PACT_SOCKET or /run/pact/agent.sock)",
    )
    parser.add_argument("--via", metavar="URL", action="append", help="a root or an aggregator: tcp://HOST:7417")
    parser.add_argument("--server-key", metavar="KEY", help="its public key, or a file that holds it: ./NAME.key")
    parser.add_argument("--key", metavar="FILE", help="your secret key (NAME.secret)")
    parser.add_argument("--timeout", type=duration, metavar="D", help=PATIENCE)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout (one a line for streams)")
    parser.add_argument("--version", action="version", version=f"pact {__version__}")
    commands = (
        parser.add_subparsers(  # ``prog``: else argparse formats a usage, and imports what it takes, to find it out
            dest="command", metavar="COMMAND", required=True, parser_class=CommandParser, prog="pact"
        )
    )
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, description=text)
    return parser


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError."""
    try:
        return build().parse_args(argv)
    except UsageError as exc:
        negative = next(filter(NEGATIVE.fullmatch, argv), None)
        why = f"{negative!r}: a duration is not negative" if negative else exc.message
        raise UsageError(why, exc.hint) from None


def _say_error(exc: PactError, as_json: bool, pids: bool) -> int:
    """Report an error in one or two lines; with ``--json`` also as the document that a program expects, if none was
    written."""
    try:
        from pact.cli.render import clean, emit, emitted, spoken
    except (OSError, ImportError):  # no descriptor is left for importing it
        for text in filter(None, (f"pact: {exc.message}", f"      {exc.hint}" if exc.hint else "")):
            print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr)
        return exc.exit_code
    if as_json and not emitted():
        emit({"v": 1, "error": exc.message, "hint": exc.hint, "exit": exc.exit_code})
    print(f"pact: {(clean if pids else spoken)(exc.message)}", file=sys.stderr)
    if exc.hint:
        print(f"      {clean(exc.hint)}", file=sys.stderr)
    return exc.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parsed(argv)
        command = load(args.command)
    except UsageError as exc:
        return _say_error(exc, "--json" in argv, False)
    except OSError as exc:  # an input file cannot be read
        return _say_error(explained(exc), "--json" in argv, False)
    except KeyboardInterrupt:
        return INTERRUPTED
    return _run(command, args)


def _run(command: Command, args: argparse.Namespace) -> int:
    try:
        from pact.cli import running

        code = running.run(command, args)
        sys.stdout.flush()
        return code
    except PactError as exc:
        return _say_error(exc, args.json and not command.daemon, command.pids)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as exc:  # the output's disk is full, or its terminal is gone
        if command.daemon and exc.errno in OUT_OF:
            return _say_error(explained(exc), False, True)
        if command.traceback:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"pact: {exc.filename or 'output'}: {os.strerror(exc.errno or 0)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_DONE if command.ended_by_hand(args) else INTERRUPTED


def open_standard() -> None:
    """A process that was started with a closed standard stream gets /dev/null for it, before a socket takes its
    number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


def entry() -> NoReturn:
    """The console script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # ``packaging/pact-launcher``
        signal.signal(signal.SIGINT, signal.default_int_handler)
    open_standard()
    sys.exit(main())


if __name__ == "__main__":
    entry()
