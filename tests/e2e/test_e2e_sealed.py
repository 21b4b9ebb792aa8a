"""A directory that is immutable is opened for what lies in it, and does not stay open."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from harness import Agent, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None or shutil.which("chattr") is None, reason="strace or chattr is not installed"
)


@pytest.fixture
def sealed() -> Iterator[Path]:
    """An immutable directory with a file in it."""
    with TemporaryDirectory(dir="/var/tmp", prefix="sealed-") as top:
        place = Path(top, "d")
        place.mkdir()
        (place / "f").write_text("declared\n")
        if subprocess.run(["chattr", "+i", place], check=False, capture_output=True).returncode:
            pytest.skip("this file system has no flags")
        try:
            yield place
        finally:
            subprocess.run(["chattr", "-R", "-i", place], check=False)


def is_sealed(place: Path) -> bool:
    return "i" in subprocess.run(["lsattr", "-d", place], check=True, capture_output=True, text=True).stdout.split()[0]


def killed_while_it_is_open(agent: Agent) -> None:
    """The agent dies when the new file is about to get its name."""
    assert agent.process is not None
    trace = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "inject=renameat2:signal=SIGKILL", "-e", "trace=renameat2"]
    strace = subprocess.Popen([*trace, "-p", str(agent.process.pid)], stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{agent.process.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
    python = [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket]
    asking = agent.world.popen([*python, "rollback", "--all"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = agent.process
    wait_until(lambda: process.poll() is not None, "it is killed")
    strace.send_signal(signal.SIGINT)
    strace.wait(10)
    agent.world.end(asking)
    agent.close()


@pytest.mark.invariant("R11")
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_directory_that_was_opened_for_a_file_is_closed_again_after_a_kill(
    another: Callable[..., Agent], sealed: Path, goes_on: bool
) -> None:
    agent = another()
    agent.adopt(f"file:{sealed}", f"file:{sealed}/f")
    (sealed / "f").write_text("drifted\n")
    agent.drifted(f"file:{sealed}/f")
    killed_while_it_is_open(agent)
    assert not is_sealed(sealed) and len(list(sealed.iterdir())) == 2
    holder = None if goes_on else agent.world.python(f"f = open('{sealed}/f')\nready()")
    agent.start()
    if holder is not None:
        change = wait_until(
            lambda: (c := agent.change_of(f"file:{sealed}/f")) and c["state"] in ("failed", "blocked") and c,
            "what was cut off cannot be done",
        )
        assert change["resources"] == [f"file:{sealed}/f"]
        assert is_sealed(sealed) and not agent.change_of(f"file:{sealed}")
        agent.world.end(holder)
        agent.pact("rollback", "--all")
    agent.settled(f"file:{sealed}/f")
    assert is_sealed(sealed) and (sealed / "f").read_text() == "declared\n"
    assert [p.name for p in sealed.iterdir()] == ["f"], "nothing that was cut off is left in it"
