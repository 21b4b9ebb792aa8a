"""What a job under way moves is looked at when it has ended, and nothing is forgotten meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.agent.config import Config
from pact.agent.watching import Watching
from pact.model import Owner

ANN = Owner("login:1:1", "ann")


@pytest.mark.invariant("R10")
def test_what_is_touched_during_a_job_is_due_after_it_with_its_writer(tmp_path: Path) -> None:
    a, b, c = (f"file:{tmp_path}/{n}" for n in "abc")
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    try:
        watching.add([a, b, c])
        watching.touch(a, ANN)
        watching.touch(c, ANN)
        watching.begin(1, [a, b])
        watching.touch(a, None)
        watching.touch(b, None)
        assert watching.take(0, everything=True) == [(c, ANN)]
        watching.drop(b)
        watching.end(1)
        assert watching.take(0, everything=True) == [(a, ANN)]
        watching.end(1)
        assert not watching.has_due
    finally:
        watching.close()
