"""Long output on a terminal goes through a pager: ``$PAGER``, or ``less -FRX``. Piped output is never paged."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from pact.cli.render import on_terminal

LESS: Final = "less"
OPTIONS: Final = "FRX"  # quit on one screen, show colours, leave the text on the screen


class _Paper(io.StringIO):
    """Takes the place of the terminal while the text is collected."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def paged(wanted: bool) -> Iterator[None]:
    """Text that is printed inside is shown at the end. ``wanted``: the command ends by itself and its reader is a
    person."""
    if not wanted or not on_terminal():
        yield
        return
    terminal, paper = sys.stdout, _Paper()
    sys.stdout = paper
    try:
        yield
    finally:
        sys.stdout = terminal
        _show(paper.getvalue())


def _show(text: str) -> None:
    command = shlex.split(os.environ.get("PAGER", LESS)) or ["cat"]
    fits = text.count("\n") < shutil.get_terminal_size().lines
    if fits or command == ["cat"] or shutil.which(command[0]) is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pager handles it
    try:
        subprocess.run(
            command,
            input=text.encode(errors="replace"),
            check=False,
            env={"LESS": OPTIONS, "LESSCHARSET": "utf-8", **os.environ},
        )
    finally:
        signal.signal(signal.SIGINT, before)
