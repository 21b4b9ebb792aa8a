"""``pact epilog``: a batch system's epilog tells that a job has ended. It never delays or fails an epilog."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from pact.cli.command import NodeCommand, Request
from pact.errors import EXIT_DONE, UnreachableError, UsageError
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cli.arguments import Parser
    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View

#: Where batch systems tell their epilogs which job it is.
VARIABLES: Final = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


class Epilog(NodeCommand):
    examples = ("pact epilog", "pact epilog --job 4711", 'pact epilog --job "$1"')
    far = False
    patience_ns = NS_PER_S

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("--job", metavar="ID", help=f"default: the one in {', '.join(VARIABLES)}")

    def request(self, args: argparse.Namespace) -> Request:
        job = args.job or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
        return Request("epilog", {"job": job})

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        """An agent that is away or slow fails no epilog: what was sent counts when it reads it, and it finds out by
        itself about a job whose end it was not told."""
        asked = self.request(args)
        if not asked.fields["job"]:
            raise UsageError("no job is named here", "pact epilog --job ID, or run it in the epilog of a job")
        try:
            answer = agent.tell(*asked).accepted()
        except UnreachableError as exc:
            print(f"pact: {exc.message}; it finds out by itself that the job has ended", file=sys.stderr)
            return EXIT_DONE
        if args.json:
            from pact.cli.render import emit

            emit(self.document(args, answer))
        return EXIT_DONE

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        """Nothing: batch systems log what an epilog prints."""
        return ()


COMMAND = Epilog()
