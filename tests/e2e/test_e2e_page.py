"""The live page of a real root, in real Chromium."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_e2e_cluster import SCRIPT, scenario

PAGE = Path(SCRIPT).with_name("scenarios_page.py")

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("chromium"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(240),
]


@pytest.mark.invariant("V6")
def test_the_page_shows_what_happens_within_a_second() -> None:
    scenario("the_page_shows_what_happens_within_a_second", PAGE)
