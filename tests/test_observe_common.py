"""Waiting for events without sleeping: what the observer tests share."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from pact.observe import Observers
from pact.observe.base import Event, Touched

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 5.0


def gather(obs: Observers, enough: Callable[[list[Event]], bool], seconds: float = DEADLINE_S) -> list[Event]:
    """Events until there are enough of them; fails at the deadline."""
    out: list[Event] = []
    end = time.monotonic() + seconds
    while not enough(out):
        left = end - time.monotonic()
        assert left > 0, f"nothing more came than {out}"
        select.select([obs.fileno()], [], [], left)
        out.extend(obs.drain(64))
    return out


def touched(obs: Observers, *paths: bytes) -> dict[bytes, Touched]:
    """The touches until each of ``paths`` was among them."""
    events = gather(obs, lambda es: set(paths) <= {e.path for e in es if isinstance(e, Touched)})
    return {e.path: e for e in events if isinstance(e, Touched)}


def of_type(obs: Observers, kind: type, seconds: float = DEADLINE_S) -> list[Event]:
    return gather(obs, lambda es: any(isinstance(e, kind) for e in es), seconds)


def settled(obs: Observers, sentinel: bytes) -> set[bytes]:
    """What was touched before the sentinel (a declared path) was written: nothing else is on its way."""
    with open(sentinel, "ab") as f:
        f.write(b"x")
    seen = touched(obs, sentinel)
    obs.drain(1000)
    return set(seen) - {sentinel}


def quiet(obs: Observers) -> None:
    """Take what is there already."""
    while select.select([obs.fileno()], [], [], 0.05)[0]:
        obs.drain(1000)


def sh(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True)


def in_namespaces(flags: str, code: str) -> str:
    """Run Python in new namespaces (``unshare`` flags), with this module's names; its output."""
    script = "from test_observe_common import *\nfrom pact.observe import open_observers\n" + textwrap.dedent(code)
    done = subprocess.run(
        ["unshare", *flags.split(), sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
