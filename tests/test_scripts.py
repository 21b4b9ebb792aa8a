"""Scenarios: readable transcripts of what one node decides. ``PACT_REWRITE=1`` writes what comes out now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pact.sim.script import run_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
@pytest.mark.invariant("A3", "A4", "F5", "C2", "C3", "C5", "C6", "C7", "E1", "E2", "E3", "H1", "B1", "L1", "T1", "R3")
def test_the_transcript_is_what_the_node_does(path: Path) -> None:
    text = path.read_text()
    now = run_script(text)
    if os.environ.get("PACT_REWRITE"):
        path.write_text(now)
        return
    assert now == text


def test_there_are_transcripts() -> None:
    assert len(SCRIPTS) >= 8
