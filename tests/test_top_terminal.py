"""The terminal of ``pact top``, where a person or a program has stopped it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

SCRIPT = """
import os
from types import SimpleNamespace
from pact.cli.top import draw
from pact.cli.top.desk import Desk
feed = SimpleNamespace(fd=os.eventfd(0, os.EFD_NONBLOCK), start=lambda: None, take=lambda: (),
                       look_at=lambda where: None, ask=lambda asks: None)
feed.ring = lambda: os.eventfd_write(feed.fd, 1)
raise SystemExit(draw.show(Desk(None, lambda text: None, "n1"), feed, colours=True, mouse=True))
"""


def heard(master: int, until: bytes = b"", seconds: float = 20.0) -> bytes:
    """What it paints, until there is this in it, or for so long."""
    out, end = b"", time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0 and not (until and until in out):
        if select.select([master], [], [], left_s)[0]:
            out += os.read(master, 1 << 16)
    return out


@pytest.mark.invariant("Y1")
def test_a_terminal_that_was_stopped_is_as_before_when_it_goes_on() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}
    )
    try:
        painted = heard(master, b"q quit")
        modes = {int(n) for found in re.findall(rb"\x1b\[\?([\d;]+)h", painted) for n in found.split(b";")} - {25}
        assert {1049, 2004} <= modes and len(modes) > 3, painted
        termios.tcflow(slave, termios.TCOOFF)  # as Ctrl-S does
        os.write(master, b"?")  # it wants to paint, and waits
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        left = heard(master, b"\x1b[?25h", 5)
        off = {int(n) for found in re.findall(rb"\x1b\[\?([\d;]+)l", left) for n in found.split(b";")}
        assert modes <= off and left.endswith(b"\x1b[?25h"), left
        assert termios.tcgetattr(slave)[:4] == before[:4]
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
