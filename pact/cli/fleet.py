"""Commands for many nodes: ``--nodes``. Each command has its own request and display; this file folds equal answers as
``clush -b`` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from pact.cli.arguments import refuse_alone
from pact.cli.client import Answer
from pact.cli.command import NodeCommand
from pact.cli.render import View, clean, emit, paint, plain, say, spoken
from pact.cli.roots import NONSENSE, Answers, ask, fold, say_failed
from pact.core import strict
from pact.errors import (
    BY_EXIT_CODE,
    EXIT_DONE,
    EXIT_DRIFT,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    PactError,
    gravest,
)

T = TypeVar("T")
RULE: Final = "-" * 15
WELL: Final = (EXIT_DONE, EXIT_DRIFT)


def run(command: NodeCommand, args: argparse.Namespace) -> int:
    """Ask the nodes, and show their answers. Returns the exit code."""
    refuse_alone(args, command.group_only)  # each node settles its own changes; members of groups are not asked
    command.refuse_afar(args)
    answers, result = ask(args, *command.request(args), args.nodes)
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
    (as_json if args.json else as_text)(command, args, answers)
    for what, names in left_out(command, answers).items():
        sys.stdout.flush()
        print(f"pact: {clean(fold(names))}: {what}", file=sys.stderr)
    return gravest(answers.codes)


# -- one answer -------------------------------------------------------------------------------------------------------


def sense(body: bytes) -> Answer | None:
    """A node's answer; None if it is malformed."""
    try:
        raw = strict.loads_object(body, strict.LINE_MAX)
    except strict.NotStrictError:
        return None
    if type(raw.get("ok")) is not bool or type(raw.get("exit")) is not int:
        return None
    texts = all(isinstance(raw.setdefault(k, ""), str) for k in ("message", "hint"))
    good = texts and isinstance(raw.setdefault("result", {}), dict) and 0 <= raw["exit"] <= 255
    return Answer(raw) if good else None


def _made(
    command: NodeCommand, args: argparse.Namespace, body: bytes, make: Callable[[Answer], T]
) -> tuple[T | None, int, str, str]:
    """The result of ``make`` for an answer, its exit code, the error, and what to do about it. A malformed answer of
    one node must not hide the others.
    """
    answer = sense(body)
    if answer is None:
        return None, EXIT_FAILED, NONSENSE, ""
    try:
        made = make(command.accept_afar(answer))
        code = command.exit_code(args, answer)
    except PactError as exc:
        return None, exc.exit_code, exc.message, exc.hint
    except Exception:  # it has the form of an answer, but wrong contents
        return None, EXIT_FAILED, NONSENSE, ""
    why = answer.message if code not in WELL else ""
    return made, code, why, answer.hint if why else ""


# -- all answers ------------------------------------------------------------------------------------------------------


def as_json(command: NodeCommand, args: argparse.Namespace, answers: Answers) -> None:
    nodes: dict[str, Any] = {}
    failed: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        made, code, why, hint = _made(command, args, body, lambda answer: command.document(args, answer))
        answers.codes.append(code)
        if code not in WELL:
            said = f"{why} ({hint})" if hint else why
            failed.setdefault(said or f"exit code {code}", []).extend(names)
        if made is not None:
            nodes.update(dict.fromkeys(names, made))
    cut = [name for names in left_out(command, answers).values() for name in names]
    emit(
        {
            "v": 1,
            "nodes": nodes,
            "failed": {**{fold(n): why for why, n in failed.items()}, **answers.failed},
            **({"truncated": fold(cut)} if cut else {}),
        }
    )


def as_text(command: NodeCommand, args: argparse.Namespace, answers: Answers) -> None:
    """Show equal texts once, under the nodes that gave them; or all on one page, if the command has one."""
    if not getattr(args, "verbose", False):
        rest = Answers(failed=answers.failed, codes=answers.codes)
        told: list[tuple[Answer, list[str]]] = []
        for body, names in answers.parts.items():
            answer = sense(body)
            if answer is not None and answer.exit in WELL:
                told.append((answer, names))
            else:
                rest.parts[body] = names
        try:
            documents = [(answer.result, names) for answer, names in told]
            # Build the whole page here, where it may fail.
            lines = command.page(documents, len(answers.failed), View.here(ids=False))
            codes = [command.exit_code(args, answer) for answer, _ in told]
        except Exception:  # an answer is malformed: showing each separately tells which
            lines = None
        if lines is not None:
            answers.codes.extend(codes)
            for line in lines:
                paint(*line)
            return _each_text(command, args, rest)
    return _each_text(command, args, answers)


def _each_text(command: NodeCommand, args: argparse.Namespace, answers: Answers) -> None:
    view = View(ids=bool(getattr(args, "verbose", False)))
    texts: dict[str, list[str]] = {}

    def shown(answer: Answer) -> str:
        text = plain(command.show(args, answer, view))
        return "\n".join(filter(None, [text, view.spoken(answer.message) if answer.ok else ""]))

    for body, names in answers.parts.items():
        made, code, why, hint = _made(command, args, body, shown)
        answers.codes.append(code)
        text = made or ""
        if code not in WELL and why:
            text = "\n".join(filter(None, [text, f"pact: {spoken(why)}", hint and f"      {clean(hint)}"]))
        texts.setdefault(text, []).extend(names)
    for text, names in sorted(texts.items(), key=lambda item: (-len(item[1]), item[1])):
        say(f"{RULE}\n{fold(names)}{f' ({len(names)})' if len(names) > 1 else ''}\n{RULE}")
        say(text or command.nothing)
    say_failed(answers.failed)


def left_out(command: NodeCommand, answers: Answers) -> dict[str, list[str]]:
    """The nodes that left something out of their answers, grouped by what it is."""
    found: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        answer = sense(body)
        if answer is not None and (what := command.left_out(answer)):
            found.setdefault(what, []).extend(names)
    return found
