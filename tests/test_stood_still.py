"""Whoever gave somebody up who stood still was told that there is no answer: what was asked is not done later.  # T16"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from streams_kit import Fleet, fleet

from pact.core.tree.uplink import STOOD_NS
from pact.model import NS_PER_S

pytestmark = [pytest.mark.root, pytest.mark.invariant("T16", "F94")]
STANDS_S = 3.0  # after the person was told, and longer than ``STOOD_NS`` altogether


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@contextmanager
def stands_still(kit: Fleet, who: str) -> Iterator[None]:
    """``kill -STOP``, as long as this lasts, and longer than ``STOOD_NS``."""
    process, began_s = kit.processes[who], time.monotonic()
    process.send_signal(signal.SIGSTOP)
    try:
        yield
        time.sleep(max(STANDS_S, STOOD_NS / NS_PER_S + 1 - (time.monotonic() - began_s)))
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(("who", "words"), [("n2", "shell"), ("n2", "exec"), ("agg1", "exec"), ("root1", "exec")])
def test_what_was_given_up_is_not_done_when_it_goes_on(kit: Fleet, tmp_path: Path, who: str, words: str) -> None:
    done = tmp_path / "done"
    asked = ["shell", "n2", "--"] if words == "shell" else ["exec", "--nodes", "n2", "--"]
    with stands_still(kit, who):
        with kit.pact(*asked, f"echo x >> {done}", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as gave_up:
            said = gave_up.communicate(timeout=60)[1]
        assert gave_up.returncode == 5, said

    def answers() -> bool:
        return kit.run_pact("exec", "--nodes", "n2", "--", f"echo later >> {done}").returncode == 0

    kit.until(answers, "the node answers again", 60)
    time.sleep(1)
    assert set(done.read_text().split()) == {"later"}
    assert not kit.sessions("n2")
