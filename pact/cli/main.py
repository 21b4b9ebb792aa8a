"""``pact``: arguments, and what becomes of errors. A person's mistake gives one or two lines, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from pact import __version__
from pact.cli.examples import epilog
from pact.core.units import parse_duration
from pact.errors import EXIT_DONE, EXIT_FAILED, OUT_OF, PactError, UsageError, explained
from pact.model import NS_PER_S

INTERRUPTED: Final = 130
NEAR: Final = 0.5  # how alike a word must be to be named as the one that was meant
INVALID: Final = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
#: argparse takes it for a flag, and says that something is missing.
NEGATIVE: Final = re.compile(r"-\d+(?:\.\d+)?(?:ms|s|m|h|d)")
DESCRIPTION: Final = """\
Changes to this node take effect at once and open a commit window: commit them in
time, or they are rolled back to declared state. Larger drift has less time."""


#: Commands that can be sent to other nodes.
FAR: Final = frozenset(
    {
        "nodes",
        "groups",
        "status",
        "diff",
        "commit",
        "rollback",
        "extend",
        "redo",
        "apply",
        "declare",
        "adopt",
        "consumers",
        "show",
        "hold",
        "emergency",
        "log",
        "watch",
        "check",
        "track",
    }
)

#: Commands whose output may be longer than a screen.
PAGED: Final = frozenset({"status", "diff", "log", "show", "groups", "nodes", "export", "consumers"})
#: Commands that wait for nobody.
UNTIMED: Final = frozenset({"agent", "aggregator", "keygen", "journal"})
SPENT_MAX_S: Final = 5.0  # a process that is older was not started for this command alone
CHECK_NS: Final = 2 * NS_PER_S
EACH: Final = "of many nodes each by itself, with its change numbers and command lines"
PATIENCE: Final = "how long to wait for an answer (default 10s, check 2s, --nodes 60s)"


class Parser(argparse.ArgumentParser):
    """Usage errors are two lines, what and where to look, and end with exit code 2."""

    def error(self, message: str) -> NoReturn:
        chosen = INVALID.search(message)
        near = difflib.get_close_matches(chosen[1], re.findall(r"[\w-]+", chosen[2]), 1, NEAR) if chosen else []
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no {chosen[1]!r} here" if chosen else message, f"{meant}see: {self.prog} --help")


def duration(text: str) -> int:
    try:
        ns = parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if ns == 0:  # it is no default either
        raise argparse.ArgumentTypeError(f"{text!r}: must be more than nothing")
    return ns


def whole(text: str) -> int:
    """A count, or a record's number."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def build() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="pact", description=DESCRIPTION, epilog=epilog(""), formatter_class=argparse.RawDescriptionHelpFormatter
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=epilog(name), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name not in UNTIMED:
            sub.add_argument("--timeout", type=duration, metavar="D", default=argparse.SUPPRESS, help=PATIENCE)
        if name in FAR:
            _far(sub)
        return sub

    sub = add("agent", "run the node agent in the foreground")
    sub.add_argument("--config", metavar="FILE", help="default: /etc/pact/agent.toml, if it exists")
    sub.add_argument("--wait", action="store_true", help="run none: wait until the one that was started answers")
    sub.add_argument(
        "--timeout",
        type=duration,
        metavar="D",
        default=argparse.SUPPRESS,
        help="with --wait: for how long (default 60s)",
    )

    sub = add("aggregator", "run one member of the cluster's tree in the foreground")
    sub.add_argument("--config", metavar="FILE", help="default: /etc/pact/aggregator.toml")

    sub = add("keygen", "make a key pair: NAME.key (public) and NAME.secret")
    sub.add_argument("name", metavar="NAME", help="the node, aggregator or person that it is for")
    sub.add_argument("--dir", metavar="DIR", default=".", help="where to (default: here)")

    sub = add("status", "state, drift, open changes and the time they have left")
    sub.add_argument("--login", action="store_true", help="one line if something of yours is open, else nothing")
    _verbose(sub, "all of it, however long; of many nodes each with its change numbers")

    sub = add("diff", "declared against actual for each drifted resource")
    sub.add_argument("targets", nargs="*", metavar="ID", help="resources or changes (default: all)")
    sub.add_argument("--exit-code", action="store_true", help="exit 11 if anything has drifted")
    _verbose(sub, EACH)

    sub = add("commit", "accept changes: what the machine has becomes declared")
    sub.add_argument(
        "--without-content",
        action="store_true",
        help="also what the full content store cannot keep: declared, but no rollback can restore it",
    )
    _targets(sub)
    sub.add_argument("-m", "--message", metavar="TEXT", help="why (on a terminal your editor asks for it)")
    sub.add_argument("--force", action="store_true", help="on this node alone, although its group is being settled")
    _missing(sub)
    sub.add_argument("--ttl", type=duration, metavar="D", help="let the commit end after D (15m to 10d)")

    sub = add("rollback", "restore declared state now")
    _targets(sub)
    sub.add_argument("--dry-run", action="store_true", help="show the plan and who is in its way; change nothing")
    sub.add_argument(
        "--force",
        action="store_true",
        help="although a hold was placed or a package manager works; of a group: without members that do not answer",
    )
    sub.add_argument("--to", type=whole, metavar="SEQ", help="restore the declared state of an earlier journal record")
    sub.add_argument("--trials", choices=["keep", "end"], help="with --to: what becomes of commits that have an end")
    _missing(sub, False)

    sub = add("extend", "move a deadline later; reopens what is blocked or failed")
    sub.usage = "pact extend [-h] [--timeout D] [--nodes NODESET] [--shared] [CHANGE...] D"
    _missing(sub, False)
    sub.add_argument("words", nargs="+", metavar="[CHANGE...] D", help="changes, then the duration (90, 15m, 4h, 2d)")
    _shared(sub)

    sub = add("redo", "apply again what was rolled back, as a new change with its own window")
    sub.add_argument("change", metavar="CHANGE", help="the change as it was called: c12")
    sub.add_argument("--dry-run", action="store_true", help="show what would change")
    sub.add_argument("-m", "--message", default="", metavar="TEXT", help="what for")

    sub = add("apply", "make the changes in FILE now, as one change with its own window")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--dry-run", action="store_true", help="show what would change")
    sub.add_argument("-m", "--message", default="", metavar="TEXT", help="what for")
    sub.add_argument("--require", choices=["all"], help="with --nodes: absence of a node blocks a rollback, too")
    _missing(sub)

    sub = add("declare", "make FILE the declared state and converge to it at once")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--prune", action="store_true", help="forget what FILE does not name (deletes nothing)")
    sub.add_argument("--take", action="store_true", help="include resources of open changes")
    sub.add_argument("--dry-run", action="store_true", help="show what would change")

    sub = add("show", "one journal record whole, with the content that a rollback replaced")
    sub.add_argument("seq", type=whole, metavar="SEQ")
    sub.add_argument("--restore", metavar="PATH", help="write the replaced content to PATH (must not exist)")
    sub.add_argument("--resource", metavar="ID", help="which one, where the record keeps several")

    sub = add("adopt", "make the live state of the matching resources declared")
    sub.add_argument("patterns", nargs="+", metavar="PATTERN")

    sub = add("track", "what becomes of what is new below a pattern; without arguments: what is tracked")
    sub.add_argument("pattern", nargs="?", metavar="PATTERN")
    sub.add_argument(
        "mode",
        nargs="?",
        metavar="report|enforce|ignore",
        help="report: show it; enforce: drift, with a window; ignore: neither",
    )

    add("export", "the declared state as TOML that declare accepts")

    sub = add("consumers", "who uses this resource now")
    sub.add_argument("id", metavar="ID")

    _emergency(add("emergency", "suspend auto-rollback on this node, or end that"))
    _hold(add("hold", "pause auto-rollback of one change or of the node"))

    sub = add("log", "journal records, newest first")
    sub.add_argument("-n", type=whole, metavar="N", help="how many (default: 20; with --since all)")
    sub.add_argument("--since", metavar="T", help="a duration back (2h) or an RFC 3339 time")
    sub.add_argument("--type", default="", metavar="T", help="only this type, for example rolled_back")
    sub.add_argument("--follow", "-f", action="store_true", help="go on with what comes")
    _verbose(sub, EACH)

    add("watch", "live events until interrupted")
    add("check", "for health checks: one line, exit 0 or 11")

    sub = add("nodes", "the nodes of the cluster, and how far their records have come")
    sub.add_argument("--forget", metavar="NODESET", help="these are out of service: nothing waits for them any more")
    sub = add("groups", "changes on many nodes, and where each member is")
    sub.add_argument("group", nargs="?", metavar="GROUP")
    sub.add_argument("--all", action="store_true", help="also those that are settled")

    _journal(add("journal", "verify, export or import a journal"))
    return parser


def _far(sub: argparse.ArgumentParser, *, again: bool = False) -> None:
    """``--nodes`` and what belongs to it. ``again``: they, and the timeout, may also stand after the action's word."""
    gone = argparse.SUPPRESS
    sub.add_argument(
        "--nodes", metavar="NODESET", default=gone if again else None, help="on these nodes: node[001-128], @group"
    )
    if again:
        sub.add_argument("--timeout", type=duration, metavar="D", default=gone, help=PATIENCE)
    for flag, how in (("--via", {"action": "append"}), ("--server-key", {}), ("--key", {})):
        sub.add_argument(flag, default=gone, help=gone, **how)  # type: ignore[arg-type]


def _verbose(sub: argparse.ArgumentParser, text: str) -> None:
    sub.add_argument("-v", "--verbose", action="store_true", help=text)


def _missing(sub: argparse.ArgumentParser, taken: bool = True) -> None:
    """Where it is not taken it is understood all the same, to say so."""
    what = "go on without so many, or without these, nodes"
    sub.add_argument("--allow-missing", metavar="N|NODESET", help=what if taken else argparse.SUPPRESS)


def _targets(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("targets", nargs="*", metavar="CHANGE|ID", help="default: your own changes")
    sub.add_argument("--all", action="store_true", help="every change that you may settle")
    _shared(sub)


def _shared(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--shared", action="store_true", help="also what others have changed too; they are told")


def _action(actions: Any, command: str, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = actions.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog(command, name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _emergency(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(dest="action", required=True, metavar="start|end", parser_class=Parser)
    start = _action(actions, "emergency", "start", "suspend every window")
    start.add_argument("--reason", required=True, metavar="TEXT")
    _far(start, again=True)
    start.add_argument("--for", dest="for_ns", type=duration, metavar="D", help="default 4h")
    end = _action(actions, "emergency", "end", "settle what is yours and what came since; the rest starts a new window")
    _far(end, again=True)
    how = end.add_mutually_exclusive_group(required=True)
    how.add_argument("--commit", action="store_const", dest="how", const="commit")
    how.add_argument("--rollback", action="store_const", dest="how", const="rollback")
    end.add_argument("-m", "--message", default="", metavar="TEXT")
    end.add_argument("--force", action="store_true", help="although another person started it")
    end.add_argument("--all", action="store_true", help="also other people's changes from before the emergency")
    _shared(end)
    end.add_argument("--dry-run", action="store_true", help="show what it would settle; change nothing")
    end.add_argument("--yes", action="store_true", help="do not ask on a terminal")


def _hold(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(dest="action", required=True, metavar="place|release", parser_class=Parser)
    place = _action(actions, "hold", "place", "stop the clock")
    place.add_argument("change", nargs="?", metavar="CHANGE", help="default: the whole node")
    _far(place, again=True)
    place.add_argument("--all", action="store_true", help="the whole fleet: nothing rolls back anywhere")
    place.add_argument("--reason", required=True, metavar="TEXT")
    place.add_argument("--for", dest="for_ns", type=duration, required=True, metavar="D")
    release = _action(actions, "hold", "release", "let it run again")
    _far(release, again=True)
    release.add_argument("--all", action="store_true", help="a hold of the whole fleet")
    release.add_argument("name", nargs="?", metavar="HOLD|CHANGE", help="default: your holds")


def _journal(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(
        dest="action", required=True, metavar="verify|export|import|accept-loss", parser_class=Parser
    )
    verify = _action(actions, "journal", "verify", "check the hash chain of a journal or an export")
    verify.add_argument("file", nargs="?", metavar="FILE", help="default: the configured agent's journal")
    verify.add_argument("--config", metavar="FILE")
    roots = "a root's log in place of an agent's journal; its aggregator.toml"
    verify.add_argument("--root", metavar="FILE", help=roots)
    unmarked = "take an export of an older version, which has no mark at its end"
    verify.add_argument(
        "--expect",
        action="append",
        metavar="SEQ:HASH",
        help="this record has this hash, as pact --json nodes says the root has it",
    )
    verify.add_argument("--without-mark", action="store_true", help=unmarked)
    export = _action(actions, "journal", "export", "write a journal as JSON lines")
    export.add_argument("file", nargs="?", metavar="FILE", help="default: stdout")
    export.add_argument("--config", metavar="FILE")
    export.add_argument("--root", metavar="FILE", help=roots)
    load = _action(actions, "journal", "import", "fill an empty state directory from an export")
    load.add_argument("file", metavar="FILE")
    load.add_argument("--config", metavar="FILE")
    load.add_argument("--root", metavar="FILE", help=roots)
    load.add_argument("--without-mark", action="store_true", help=unmarked)
    lost = _action(actions, "journal", "accept-loss", "go on with a journal whose newest records are gone, on record")
    lost.add_argument("-m", "--message", required=True, metavar="TEXT", help="why, for the record")
    lost.add_argument("--config", metavar="FILE")


def dispatch(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    name: str = args.command
    if name == "agent":
        from pact.cli import agent

        return agent.run(args)
    if name == "journal":
        if getattr(args, "root", None):
            from pact.cli import rootlog

            return rootlog.run(args)
        from pact.cli import journal

        return journal.run(args)
    if name in ("aggregator", "keygen"):
        from pact.cli import cluster

        return cluster.aggregator(args) if name == "aggregator" else cluster.keygen(args)
    if name in FAR:
        from pact.cli import fleet, groups

        if fleet.wanted(args):
            with paged(args, True):
                return fleet.run(args, None if name in ("nodes", "groups") else _handler(name))
        groups.refuse_here(args)
    from pact.agent.config import DEFAULT_SOCKET
    from pact.cli.client import Local

    patience_ns = args.timeout or (CHECK_NS if name == "check" else None)
    timeout_s = None if patience_ns is None else patience_ns / NS_PER_S
    args.socket = Local(args.socket or DEFAULT_SOCKET, timeout_s, _spent_s())
    with paged(args, False):
        return _handler(name)(args)


def _spent_s() -> float:
    """What this process has used of its time before it could ask: the interpreter starts, too."""
    try:
        with open("/proc/self/stat", "rb") as f:
            began = int(f.read(4096).rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    spent_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    return spent_s if 0 < spent_s < SPENT_MAX_S else 0.0


def paged(args: argparse.Namespace, far: bool) -> contextlib.AbstractContextManager[None]:
    """A pager for what may be long, ends by itself, and does not ask anything."""
    from pact.cli import pager

    name: str = args.command
    long = name in PAGED and not args.json and not getattr(args, "follow", False)
    return pager.paged(long and (far or name != "status" or args.verbose))


def _handler(name: str) -> Callable[[argparse.Namespace], int]:
    """What carries a command out."""
    module: Any
    if name in ("status", "diff", "check", "consumers"):
        from pact.cli import look as module
    elif name in ("log", "watch", "show"):
        from pact.cli import history as module
    elif name in ("commit", "rollback", "extend", "redo", "emergency", "hold"):
        from pact.cli import settle as module
    elif name == "track":
        from pact.cli import track as module
    else:
        from pact.cli import declare as module
    handler: Callable[[argparse.Namespace], int] = getattr(module, name)
    return handler


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError."""
    try:
        return build().parse_args(argv)
    except UsageError as exc:
        negative = next(filter(NEGATIVE.fullmatch, argv), None)
        why = f"{negative!r}: a duration is not negative" if negative else exc.message
        raise UsageError(why, exc.hint) from None


def _say_error(exc: PactError, as_json: bool, pids: bool) -> int:
    """In one or two lines; with ``--json`` also as the document that a program waits for, if it has none yet."""
    try:
        from pact.cli.render import clean, emit, emitted, spoken
    except (OSError, ImportError):  # no descriptor is left for reading it
        print(f"pact: {exc.message}" + (f"\n      {exc.hint}" if exc.hint else ""), file=sys.stderr)
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
    except UsageError as exc:
        return _say_error(exc, "--json" in argv, False)
    daemon = args.command in ("agent", "aggregator")
    try:
        code = dispatch(args)
        sys.stdout.flush()
        return code
    except PactError as exc:
        return _say_error(exc, args.json and not daemon, daemon or args.command == "journal")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as exc:  # the output's disk is full, or its terminal is gone
        if args.command in ("agent", "aggregator") and exc.errno in OUT_OF:
            return _say_error(explained(exc), False, True)
        if args.command == "agent":
            raise  # no person's mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"pact: {exc.filename or 'output'}: {os.strerror(exc.errno or 0)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_DONE if args.command == "watch" or getattr(args, "follow", False) else INTERRUPTED


def open_standard() -> None:
    """Who was started with a standard stream closed gets /dev/null for it, before a socket takes its number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


def entry() -> NoReturn:
    """The console script."""
    open_standard()
    sys.exit(main())


if __name__ == "__main__":
    entry()
