"""A command that was forked for a user is what a started one would be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from warm import User

HERE = Path(__file__).parent
STATUS = "/proc/self/status"
#: What says whose a process is and what it may.
TELLING = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")


def credentials(*command: str) -> dict[str, str]:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True, timeout=30)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    return {name: lines[name] for name in (*TELLING, "owner")}


@pytest.mark.parametrize("user", [User(1234, 1234), User(1236, 60, (60, 8)), User(1237, 1237, (8,))])
def test_a_forked_process_has_the_credentials_of_a_started_one(user: User) -> None:
    look = f"import os\nprint(open('{STATUS}').read() + f\"owner:{{os.stat('{STATUS}').st_uid}}\")"
    become = f"from warm import *\nbecome(User({user.uid}, {user.gid}, {user.groups}))\n"
    started = credentials(*user.setpriv(), sys.executable, "-c", look)
    assert credentials(sys.executable, "-c", become + look) == started
    assert started["owner"] == str(user.uid)
