"""Commands for many nodes: ``--nodes``, groups, the fleet's stop. What each command asks and how it shows an answer is
the one-node command's own; here answers are folded as ``clush -b`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.cli.client import Answer, Transport
from pact.cli.render import clean, emit, emit_line, event_line, local_time, say
from pact.core.questions import gravest
from pact.core.units import format_duration, parse_duration
from pact.errors import (
    BY_EXIT_CODE,
    EXIT_DONE,
    EXIT_DRIFT,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    PactError,
    UsageError,
)
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cluster.client import Result, RootClient

GROUP: Final = re.compile(r"g[1-9]\d{0,15}")
RULE: Final = "-" * 15
EVERY_S: Final = 0.1
NONSENSE: Final = "an answer that makes no sense"
#: Commands that only make sense on the node itself.
HERE_ONLY: Final = frozenset({"agent", "aggregator", "keygen", "journal", "export"})
Handler = Callable[[argparse.Namespace], int]


class _Asked(Exception):
    """The one-node command would ask this."""

    def __init__(self, op: str, args: dict[str, Any]) -> None:
        super().__init__(op)
        self.op, self.args_ = op, args


class _Recorder(Transport):
    """Finds out what a command asks."""

    def ask(self, op: str, args: dict[str, Any]) -> Answer:
        raise _Asked(op, args)

    def stream(self, op: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        raise _Asked(op, args)


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
    if args.command == "groups":
        return _with(args, "groups", {"group": args.group, "all": args.all}, None, _show_groups)
    if args.command == "nodes" and args.forget is not None:
        _refuse_beside(args, "--forget names its nodes itself", "nodes")
        return _with(args, "nodes_forget", {}, args.forget, lambda r: say(f"forgotten: {clean(r['forgotten'])}"))
    if args.command == "nodes":
        return _with(args, "nodes", {}, args.nodes, _show_nodes)
    if args.command == "hold" and args.all:
        return _fleet(args)
    if group is not None:
        return _settle_group(args, group)
    if args.command == "apply":
        return _apply(args)
    if args.command == "watch":
        return _watch(args)
    assert handler is not None
    return _nodes(args, handler)


# -- the connection -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(args: argparse.Namespace) -> Iterator[RootClient]:
    from pact.cluster import keys
    from pact.cluster.client import RootClient
    from pact.cluster.config import load_client

    config = load_client()
    via = args.via or ([config.via] if config.via else [])
    server_key = args.server_key or config.server_key
    path = args.key or config.key
    servers = [] if args.via else [(p.url, p.key) for p in config.servers]
    needed = [(path, "--key NAME.secret")]
    if not servers:
        needed = [("".join(via), "--via tcp://HOST:7417"), (server_key, "--server-key KEY"), *needed]
    for value, what in needed:
        if not value:
            raise UsageError(f"{what} is missing", "or write it in ~/.config/pact/client.toml or /etc/pact/client.toml")
    if os.path.isfile(server_key):
        with open(server_key, encoding="ascii", errors="replace") as f:
            server_key = f.read(4096).strip()
    servers = [*((url, server_key) for url in via), *servers]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path).removesuffix(".secret")) or "operator"
    with RootClient(servers, keys.load(path), name) as client:
        try:
            yield client
        except KeyboardInterrupt:
            client.cancel()
            raise


def _timeout_s(args: argparse.Namespace) -> float:
    return (args.timeout or 0) / NS_PER_S


# -- progress -------------------------------------------------------------------------------------------------------


class _Progress:
    """``312 of 4000`` on the terminal while answers come in; nothing where nobody looks."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._shown_s = 0.0
        self._on = sys.stderr.isatty()

    def update(self, *, total: int | None = None, more: int = 0) -> None:
        self.total = self.total if total is None else total
        self.done += more
        now_s = time.monotonic()
        if self._on and now_s - self._shown_s >= EVERY_S:
            self._shown_s = now_s
            width = 30
            full = width * self.done // max(1, self.total)
            bar = "█" * full + "░" * (width - full)
            print(f"\r\x1b[2K{bar} {self.done} of {self.total} nodes", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on and self._shown_s:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


# -- commands that nodes carry out ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Answers:
    """Everything that came: answers with the nodes that gave them, and who failed."""

    parts: dict[bytes, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)


def _nodes(args: argparse.Namespace, handler: Handler) -> int:
    asked = _what_is_asked(args, handler)
    answers, result = _ask(args, asked.op, asked.args_)
    answers.failed.update(result.failed)
    if not answers.parts and not answers.failed:
        kind = BY_EXIT_CODE.get(result.exit, PactError)
        raise kind(result.message or "there are no nodes", result.hint)
    if result.exit not in (EXIT_DONE, EXIT_UNREACHABLE) or not answers.failed:
        answers.codes.append(result.exit)
    else:
        answers.codes.append(EXIT_UNREACHABLE)
    if result.message:
        print(f"pact: {clean(result.message)}", file=sys.stderr)
    (_as_json if args.json else _as_text)(args, handler, answers)
    cut = _truncated(args, answers)
    if cut:
        sys.stdout.flush()
        print(f"pact: {clean(_fold(cut))}: older records are left out; ask for fewer: -n, --since", file=sys.stderr)
    return gravest(answers.codes)


def _what_is_asked(args: argparse.Namespace, handler: Handler) -> _Asked:
    args.socket = _Recorder()
    if args.command == "log" and args.follow:
        raise UsageError("log --follow works on one node; the cluster's events are: pact watch --nodes ...")
    if args.command == "show" and args.restore is not None:
        raise UsageError("show --restore works on the node itself")
    try:
        handler(args)
    except _Asked as asked:
        return asked
    raise AssertionError("the command asks nothing")


def _ask(args: argparse.Namespace, op: str, request: dict[str, Any]) -> tuple[_Answers, Result]:
    from pact.cluster.client import Parts, Progress, Result

    answers, progress = _Answers(), _Progress()
    try:
        with _connected(args) as client:
            for item in client.ask(op, request, args.nodes, _timeout_s(args)):
                if isinstance(item, Parts):
                    answers.parts.setdefault(item.body, []).extend(item.names)
                    progress.update(more=len(item.names))
                elif isinstance(item, Progress):
                    progress.update(total=item.total)
                elif isinstance(item, Result):
                    return answers, item
    finally:
        progress.end()
    raise AssertionError("a request without a result")


def _sense(body: bytes) -> dict[str, Any] | None:
    """A node's answer, if it is one."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(raw, dict) or type(raw.get("ok")) is not bool or type(raw.get("exit")) is not int:
        return None
    texts = all(isinstance(raw.get(k, ""), str) for k in ("message", "hint"))
    return raw if texts and isinstance(raw.get("result", {}), dict) and 0 <= raw["exit"] <= 255 else None


def _shown(args: argparse.Namespace, handler: Handler, body: bytes, as_json: bool) -> tuple[bytes, int, str]:
    """What the one-node command prints for an answer, its exit code, and what went wrong. One node's nonsense must not
    hide what the others say.
    """
    raw = _sense(body)
    if raw is None:
        return b"", EXIT_FAILED, NONSENSE
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace", write_through=True)
    err = io.StringIO()
    given = argparse.Namespace(**{**vars(args), "socket": _Given(raw), "json": as_json})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = handler(given)
    except PactError as exc:
        return b"", exc.exit_code, exc.message
    except Exception:  # it has the form of an answer, and not what belongs into it
        return b"", EXIT_FAILED, NONSENSE
    printed = out.buffer.getvalue()
    why = raw.get("message") or err.getvalue().strip() if code not in (EXIT_DONE, EXIT_DRIFT) else ""
    return printed, code, str(why)


def _as_json(args: argparse.Namespace, handler: Handler, answers: _Answers) -> None:
    nodes: dict[str, Any] = {}
    failed: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        printed, code, why = _shown(args, handler, body, True)
        answers.codes.append(code)
        if code not in (EXIT_DONE, EXIT_DRIFT):
            failed.setdefault(why or f"exit code {code}", []).extend(names)
        if printed:
            lines = [orjson.loads(line) for line in printed.splitlines()]
            nodes.update(dict.fromkeys(names, lines if args.command == "log" else lines[0]))
        elif args.command == "log" and code == EXIT_DONE:
            nodes.update((name, []) for name in names)
    cut = _truncated(args, answers)
    emit({"v": 1, "nodes": nodes, "failed": {**{_fold(n): why for why, n in failed.items()}, **answers.failed},
          **({"truncated": _fold(cut)} if cut else {})})  # fmt: skip


def _as_text(args: argparse.Namespace, handler: Handler, answers: _Answers) -> None:
    """Equal texts once, under the nodes that gave them."""
    texts: dict[str, list[str]] = {}
    for body, names in answers.parts.items():
        printed, code, why = _shown(args, handler, body, False)
        answers.codes.append(code)
        text = printed.decode().rstrip("\n")
        if code not in (EXIT_DONE, EXIT_DRIFT) and why:
            text = "\n".join(filter(None, [text, f"pact: {clean(why)}"]))
        texts.setdefault(text, []).extend(names)
    for text, names in sorted(texts.items(), key=lambda item: (-len(item[1]), item[1])):
        say(f"{RULE}\n{_fold(names)}{f' ({len(names)})' if len(names) > 1 else ''}\n{RULE}")
        say(text or "done")
    _say_failed(answers.failed)


def _truncated(args: argparse.Namespace, answers: _Answers) -> list[str]:
    """The nodes whose journals hold more than an answer takes."""
    if args.command != "log":
        return []
    said = [(names, _sense(body)) for body, names in answers.parts.items()]
    return [n for names, raw in said if raw is not None and raw.get("result", {}).get("truncated") for n in names]


def _say_failed(failed: dict[str, str]) -> None:
    sys.stdout.flush()
    for names, why in failed.items():
        print(f"pact: {clean(names)}: {clean(why)}", file=sys.stderr)


def _fold(names: Iterable[str]) -> str:
    from pact.cluster.nodesets import fold

    return fold(names)


def _watch(args: argparse.Namespace) -> int:
    from pact.cluster.client import Event, Result

    with _connected(args) as client:
        for item in client.ask("watch", {}, args.nodes):
            if isinstance(item, Event):
                record = orjson.loads(item.line)
                if args.json:
                    emit_line(record)
                else:
                    try:
                        text = event_line(record)
                    except Exception:  # a record of another version, or of nobody's
                        text = f"{clean(record['type'])}: {NONSENSE}"
                    say(f"{clean(record['node'])}: {text}", flush=True)
            elif isinstance(item, Result):
                raise PactError(item.message, item.hint)
    return EXIT_DONE


# -- what the root decides ------------------------------------------------------------------------------------------


def _each_node(result: dict[str, Any]) -> dict[str, Any]:
    """As every command for many nodes: an object a node; the folded set stands beside it."""
    from pact.cluster.nodesets import NodeSets

    members = result.get("members", {})
    nodes = {n: {"state": state} for state, names in members.items() for n in NodeSets().expand(names)}
    return {**result, "nodes": nodes, "nodeset": result.get("nodes", "")}


def _with(args: argparse.Namespace, op: str, request: dict[str, Any], nodes: str | None,
          show: Callable[[dict[str, Any]], None],
          for_json: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> int:  # fmt: skip
    """Ask the root itself, and show what it says."""
    given = argparse.Namespace(**{**vars(args), "nodes": nodes})
    _, result = _ask(given, op, request)
    if args.json:
        said = {"message": result.message} if result.message else {}
        emit({"v": 1, **for_json(result.result), "failed": result.failed, **said})
        return result.exit
    if result.result:
        show(result.result)
    sys.stdout.flush()
    if result.message:
        print(f"pact: {clean(result.message)}", file=sys.stderr)
        if result.hint:
            print(f"      {clean(result.hint)}", file=sys.stderr)
    _say_failed({names: why for names, why in result.failed.items() if why not in result.message})
    return result.exit


def _apply(args: argparse.Namespace) -> int:
    from pact.cli import declare

    if args.nodes is None:
        raise UsageError("a group needs --nodes NODESET")
    args.socket = _Recorder()
    try:
        declare.apply(args)
    except _Asked as asked:
        request = {**asked.args_, "allow_missing": _allow(args), "require_all": args.require == "all"}
        return _with(args, "apply", request, args.nodes, _show_applied, _each_node)
    raise AssertionError("apply asks nothing")


def _allow(args: argparse.Namespace) -> int | str | None:
    text: str | None = args.allow_missing
    return int(text) if text is not None and text.isdigit() else text


def _refuse_beside(args: argparse.Namespace, what: str, *flags: str) -> None:
    """Raises UsageError for what would be passed over in silence: a person who means one node must not settle all."""
    for flag in flags:
        if getattr(args, flag, None) not in (None, False):
            raise UsageError(f"{what}: --{flag.replace('_', '-')} does not go with it")


def _settle_group(args: argparse.Namespace, group: str) -> int:
    _refuse_beside(args, f"{group} is settled on all its nodes", "nodes", "all")
    if args.command != "rollback":
        _refuse_beside(args, f"{args.command} of a group", "force")
    if args.command != "commit":
        _refuse_beside(args, f"{args.command} of a group", "allow_missing")
    request: dict[str, Any] = {"group": group, "allow_missing": _allow(args)}
    if args.command == "extend":
        try:
            request["by_ns"] = parse_duration(args.words[-1])
        except ValueError as exc:
            raise UsageError(str(exc), "pact extend GROUP D, the duration last") from None
    elif args.command == "commit":
        request |= {"message": args.message, "ttl_ns": args.ttl}
    else:
        if args.dry_run or args.to is not None:
            raise UsageError("a group is rolled back whole: --dry-run and --to are for single nodes")
        request["force"] = args.force
    return _with(args, f"group_{args.command}", request, None, _show_group)


def _fleet(args: argparse.Namespace) -> int:
    _refuse_beside(args, "--all is every node", "nodes")
    if args.action == "place":
        if args.change is not None:
            raise UsageError("--all stops everything: name no change beside it")
        request = {"reason": args.reason, "for_ns": args.for_ns}
        return _with(args, "fleet_hold", request, None, lambda r: say(
            f"{r['hold']}: nothing rolls back anywhere until {local_time(r['ends'])}; {r['nodes']} nodes know"))
    return _with(args, "fleet_release", {"hold": args.name}, None,
                 lambda r: say(f"released {', '.join(r['released'])}; {r['nodes']} nodes know"))  # fmt: skip


# -- pages ----------------------------------------------------------------------------------------------------------


def _show_applied(result: dict[str, Any]) -> None:
    if result.get("dry_run"):
        say(f"would change up to {result['changes']} resources on {result['count']} nodes")
    elif result.get("group"):
        until = f", to be committed until {local_time(result['deadline'])}" if result.get("deadline") else ""
        say(f"{result['group']}: applied on {clean(result['nodes'])}{until}")


def _show_group(result: dict[str, Any]) -> None:
    say(f"{result['group']} {result['state']}: {clean(result['nodes'])}")
    left = f", {format_duration(int(result['remaining_s']) * NS_PER_S)} left" if result.get("remaining_s") else ""
    say(f"  by {clean(result['owner'])}{left}: {', '.join(map(clean, result['resources'][:5]))}"
        + (f" and {len(result['resources']) - 5} more" if len(result["resources"]) > 5 else ""))  # fmt: skip
    if result.get("message"):
        say(f"  {clean(result['message'])}")
    for state, names in result["members"].items():
        say(f"  {clean(state)}: {clean(names)}")
    by_why: dict[str, list[str]] = {}
    for name, entry in result["blocked"].items():
        by_why.setdefault(entry["why"], []).append(name)
    for why, nodes in by_why.items():
        say(f"  {_fold(nodes)}: {clean(why)}")


def _show_groups(result: dict[str, Any]) -> None:
    if not result["groups"]:
        say("no group is open")
    for group in result["groups"]:
        _show_group(group)


def _show_nodes(result: dict[str, Any]) -> None:
    states: dict[str, list[str]] = {}
    for name, row in result["nodes"].items():
        states.setdefault("connected" if row["connected"] else "away", []).append(name)
    say(f"root {clean(result['root'])}, {result['gseq'] + 1} events")
    for state, names in sorted(states.items(), reverse=True):
        say(f"{state} ({len(names)}): {_fold(names)}")


