"""Carrying a command out: on this machine, on many nodes, or at the root."""

from __future__ import annotations

import argparse

from pact.cli.arguments import refuse_alone
from pact.cli.command import Command, NodeCommand, Program, RootCommand


def run(command: Command, args: argparse.Namespace) -> int:
    """Carry a command out. Returns the exit code. Raises PactError."""
    if isinstance(command, Program):
        return command.run(args)
    if isinstance(command, RootCommand):
        from pact.cli import groups, pager

        with pager.paged(not args.json):
            return groups.ask_root(args, command.at_root(args))
    assert isinstance(command, NodeCommand)
    return _node(command, args)


def _node(command: NodeCommand, args: argparse.Namespace) -> int:
    from pact.cli import pager

    asked = command.at_root(args) if command.far else None
    if asked is not None or (command.far and (args.nodes is not None or args.via)):
        with pager.paged(not args.json and command.long(args, far=True)):
            if asked is not None:
                from pact.cli import groups

                return groups.ask_root(args, asked)
            code = command.afar(args)
            if code is None:
                from pact.cli import fleet

                code = fleet.run(command, args)
            return code
    refuse_alone(args, command.group_only)
    from pact.cli.client import local

    agent = local(args.socket, args.timeout or command.patience_ns)
    with pager.paged(not args.json and command.long(args, far=False)):
        command.prepare(args, agent)
        return command.here(args, agent)
