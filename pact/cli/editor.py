"""A message that a person writes in an editor, with its subject as comments. An empty message aborts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Final

from pact.cli.render import clean, on_terminal
from pact.errors import PactError

ELSE: Final = "name the reason with -m TEXT"
FALLBACK: Final = "vi"
HEAD: Final = """
# Why? Lines that begin with # are left out, and an empty message aborts.
#
"""


def can_ask() -> bool:
    return on_terminal() and sys.stdin.isatty()


def message(about: Iterable[str]) -> str:
    """The message. Raises PactError if there is none."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or FALLBACK
    with tempfile.NamedTemporaryFile("w+", prefix="pact-commit-", encoding="utf-8", errors="replace") as f:
        f.write(HEAD + "".join(f"# {clean(line)}\n" for line in about))
        f.flush()
        done = subprocess.run(["sh", "-c", f'{editor} "$1"', "sh", f.name], check=False)
        if done.returncode != 0:
            raise PactError(f"{editor} ended with {done.returncode}; nothing was committed", ELSE)
        try:
            with open(f.name, encoding="utf-8", errors="replace") as again:  # the editor may have replaced the file
                lines = [line.strip() for line in again if not line.startswith("#")]
        except OSError as exc:
            raise PactError(f"the message is gone: {os.strerror(exc.errno or 0)}; nothing was committed") from None
    text = " ".join(filter(None, lines))
    if not text:
        raise PactError("the message is empty; nothing was committed", ELSE)
    return text
