"""Commands for many nodes: ``--nodes``. What each command asks and how it shows an answer is
the one-node command's own; here answers are folded as ``clush -b`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pact.cli import folds, groups
from pact.cli.client import Answer, Transport
from pact.cli.render import clean, emit, emit_line, event_line, paint, say, spoken
from pact.cli.roots import Answers, Asked, Recorder, ask, connected, fold, making_sense, say_failed
from pact.core import strict
from pact.errors import (
    BY_EXIT_CODE,
    EXIT_DONE,
    EXIT_DRIFT,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    PactError,
    UsageError,
    gravest,
)

if TYPE_CHECKING:
    from pact.cluster.client import RootClient

GROUP: Final = re.compile(r"g[1-9]\d{0,15}")
RULE: Final = "-" * 15
#: What it means where a node has nothing to show.
NOTHING: Final = {"diff": "no drift", "log": "no such records"}
NONSENSE: Final = "an answer that makes no sense"
#: Commands that only make sense on the node itself.
HERE_ONLY: Final = frozenset({"agent", "aggregator", "keygen", "journal", "export"})
Handler = Callable[[argparse.Namespace], int]


class _Given(Transport):
    """Shows an answer that is here already."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw

    def ask(self, op: str, args: dict[str, Any]) -> Answer:
        return Answer(self._raw)

    def stream(self, op: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        answer = Answer(self._raw)
        if not answer.ok:
            raise answer.error()
        return iter(answer.result.get("rows", ()))


def wanted(args: argparse.Namespace) -> bool:
    """This command goes to the cluster, not to the agent of this machine."""
    if args.command in HERE_ONLY:
        return False
    if args.command in ("nodes", "groups") or args.nodes is not None or args.via:
        return True
    if args.command == "hold" and getattr(args, "all", False):
        return True
    return _group_of(args) is not None


def _group_of(args: argparse.Namespace) -> str | None:
    """The group that commit, rollback or extend names."""
    if args.command not in ("commit", "rollback", "extend"):
        return None
    names: list[str] = args.words[:-1] if args.command == "extend" else args.targets
    found = [n for n in names if GROUP.fullmatch(n)]
    if found and len(names) > 1:
        raise UsageError("a group is settled by itself: name nothing beside it")
    return found[0] if found else None


def run(args: argparse.Namespace, handler: Handler | None) -> int:
    """Carry the command out in the cluster. Returns the exit code."""
    group = _group_of(args)
    if args.command in ("groups", "nodes"):
        return (groups.groups if args.command == "groups" else groups.nodes)(args)
    if args.command == "hold" and args.all:
        return groups.fleet_hold(args)
    if group is not None:
        return groups.settle(args, group)
    if args.command == "apply":
        return groups.apply(args)
    if args.command == "watch":
        return _watch(args)
    assert handler is not None
    return _nodes(args, handler)


# -- commands that nodes carry out ----------------------------------------------------------------------------------


def _nodes(args: argparse.Namespace, handler: Handler) -> int:
    groups.refuse_here(args)  # each node settles its own changes; what follows from a group's members is not asked
    asked = _what_is_asked(args, handler)
    answers, result = ask(args, asked.op, asked.args_)
    answers.failed.update(result.failed)
    if not answers.parts and not answers.failed:
        kind = BY_EXIT_CODE.get(result.exit, PactError)
        raise kind(result.message or "there are no nodes", result.hint)
    if result.exit not in (EXIT_DONE, EXIT_UNREACHABLE) or not answers.failed:
        answers.codes.append(result.exit)
    else:
        answers.codes.append(EXIT_UNREACHABLE)
    if result.message:
        print(f"pact: {spoken(result.message)}", file=sys.stderr)
    (_as_json if args.json else _as_text)(args, handler, answers)
    cut = _truncated(args, answers)
    if cut:
        sys.stdout.flush()
        print(f"pact: {clean(fold(cut))}: older records are left out; ask for fewer: -n, --since", file=sys.stderr)
    return gravest(answers.codes)


def _what_is_asked(args: argparse.Namespace, handler: Handler) -> Asked:
    args.socket = Recorder()
    if args.command == "log" and args.follow:
        raise UsageError("log --follow works on one node; the cluster's events are: pact watch --nodes ...")
    if args.command == "show" and args.restore is not None:
        raise UsageError("show --restore works on the node itself")
    try:
        handler(args)
    except Asked as asked:
        return asked
    raise AssertionError("the command asks nothing")


def _sense(body: bytes) -> dict[str, Any] | None:
    """A node's answer, if it is one."""
    try:
        raw = strict.loads_object(body, strict.LINE_MAX)
    except strict.NotStrictError:
        return None
    if type(raw.get("ok")) is not bool or type(raw.get("exit")) is not int:
        return None
    texts = all(isinstance(raw.setdefault(k, ""), str) for k in ("message", "hint"))
    return raw if texts and isinstance(raw.setdefault("result", {}), dict) and 0 <= raw["exit"] <= 255 else None


def _shown(args: argparse.Namespace, handler: Handler, body: bytes, as_json: bool) -> tuple[bytes, int, str, str]:
    """What the one-node command prints for an answer, its exit code, what went wrong, and what to do about it. One
    node's nonsense must not hide what the others say.
    """
    raw = _sense(body)
    if raw is None:
        return b"", EXIT_FAILED, NONSENSE, ""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace", write_through=True)
    err = io.StringIO()
    given = argparse.Namespace(**{**vars(args), "socket": _Given(raw), "json": as_json, "ids": _ids(args)})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = handler(given)
    except PactError as exc:
        return b"", exc.exit_code, exc.message, exc.hint
    except Exception:  # it has the form of an answer, and not what belongs into it
        return b"", EXIT_FAILED, NONSENSE, ""
    printed = out.buffer.getvalue()
    why = raw.get("message") or err.getvalue().strip() if code not in (EXIT_DONE, EXIT_DRIFT) else ""
    return printed, code, str(why), raw.get("hint", "") if why else ""


def _as_json(args: argparse.Namespace, handler: Handler, answers: Answers) -> None:
    nodes: dict[str, Any] = {}
    failed: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        printed, code, why, hint = _shown(args, handler, body, True)
        answers.codes.append(code)
        if code not in (EXIT_DONE, EXIT_DRIFT):
            said = f"{why} ({hint})" if hint else why
            failed.setdefault(said or f"exit code {code}", []).extend(names)
        if printed:
            lines = [strict.own(line) for line in printed.splitlines()]
            nodes.update(dict.fromkeys(names, lines if args.command == "log" else lines[0]))
        elif args.command == "log" and code == EXIT_DONE:
            nodes.update((name, []) for name in names)
    cut = _truncated(args, answers)
    emit(
        {
            "v": 1,
            "nodes": nodes,
            "failed": {**{fold(n): why for why, n in failed.items()}, **answers.failed},
            **({"truncated": fold(cut)} if cut else {}),
        }
    )


def _ids(args: argparse.Namespace) -> bool:
    """With what each node counts by itself. A command without ``-v`` shows what is equal as equal."""
    return bool(getattr(args, "verbose", False))


def _as_text(args: argparse.Namespace, handler: Handler, answers: Answers) -> None:
    """Equal texts once, under the nodes that gave them."""
    if args.command in folds.PAGES and not args.verbose:
        rest = Answers(failed=answers.failed, codes=answers.codes)
        documents: list[tuple[dict[str, Any], list[str]]] = []
        for body, names in answers.parts.items():
            raw = _sense(body)
            if raw is not None and raw["exit"] in (EXIT_DONE, EXIT_DRIFT):
                documents.append((raw["result"], names))
            else:
                rest.parts[body] = names
        try:
            lines = list(folds.PAGES[args.command](documents, len(answers.failed)))  # all of it: here it may fail
        except Exception:  # one of them makes no sense: each by itself says which
            return _each_text(args, handler, answers)
        if args.command == "diff" and args.exit_code and any(d.get("resources") for d, _ in documents):
            answers.codes.append(EXIT_DRIFT)
        for text, style in lines:
            paint(text, style)
        return _each_text(args, handler, rest)
    return _each_text(args, handler, answers)


def _each_text(args: argparse.Namespace, handler: Handler, answers: Answers) -> None:
    texts: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        printed, code, why, hint = _shown(args, handler, body, False)
        answers.codes.append(code)
        text = printed.decode().rstrip("\n")
        if code not in (EXIT_DONE, EXIT_DRIFT) and why:
            text = "\n".join(filter(None, [text, f"pact: {spoken(why)}", hint and f"      {clean(hint)}"]))
        texts.setdefault(text, []).extend(names)
    for text, names in sorted(texts.items(), key=lambda item: (-len(item[1]), item[1])):
        say(f"{RULE}\n{fold(names)}{f' ({len(names)})' if len(names) > 1 else ''}\n{RULE}")
        say(text or NOTHING.get(args.command, "done"))
    say_failed(answers.failed)


def _truncated(args: argparse.Namespace, answers: Answers) -> list[str]:
    """The nodes whose journals hold more than an answer takes."""
    if args.command != "log":
        return []
    said = [(names, _sense(body)) for body, names in answers.parts.items()]
    return [n for names, raw in said if raw is not None and raw.get("result", {}).get("truncated") for n in names]


def _watch(args: argparse.Namespace) -> int:
    from pact.cluster.client import Event, Result

    with connected(args) as client:
        _say_absent(client, args.nodes)
        for item in client.ask("watch", {}, args.nodes):
            if isinstance(item, Event):
                try:
                    record = strict.loads_object(item.line, strict.LINE_MAX)
                except strict.NotStrictError:
                    print(f"pact: {NONSENSE} was left out", file=sys.stderr)
                    continue
                if args.json:
                    emit_line(record)
                else:
                    try:
                        text = event_line(record)
                    except Exception:  # a record of another version, or of nobody's
                        text = f"{clean(record.get('type'))}: {NONSENSE}"
                    say(f"{clean(record.get('node'))}: {text}", flush=True)
            elif isinstance(item, Result):
                raise BY_EXIT_CODE.get(item.exit, PactError)(item.message, item.hint)
    return EXIT_DONE


def _say_absent(client: RootClient, nodes: str | None) -> None:
    """Who watches nodes that are not there would wait in silence."""
    from pact.cluster.client import Result

    for item in client.ask("nodes", {}, nodes) if nodes is not None else ():
        if isinstance(item, Result):
            if item.exit != EXIT_DONE:
                raise BY_EXIT_CODE.get(item.exit, PactError)(item.message, item.hint)
            with making_sense():
                absent = [name for name, row in item.result.get("nodes", {}).items() if not row["connected"]]
            if absent:
                say_failed({fold(absent): "not connected; watched for when they come"})
