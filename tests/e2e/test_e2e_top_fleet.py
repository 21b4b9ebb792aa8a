"""``pact top`` of a fleet, on a real cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_e2e_cluster import scenario

SCRIPT = Path(__file__).with_name("scenarios_top.py")
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(240)]


@pytest.mark.invariant("V7", "Y1", "Y2", "Y3", "Y4")
def test_the_fleet_is_seen_and_settled_from_one_terminal() -> None:
    scenario("the_fleet_is_seen_and_settled_from_one_terminal", SCRIPT)
