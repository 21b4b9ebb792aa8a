"""What people see of many nodes, on a real cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_e2e_cluster import scenario

SCRIPT = Path(__file__).with_name("scenarios_screen.py")
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    "name",
    [
        "keys_of_the_wrong_kind_are_refused_and_the_right_kind_is_named",
        "a_node_whose_key_nobody_knows_says_so",
        "a_diverged_member_has_ways_back",
        "equal_nodes_stand_on_one_line",
        "an_aggregator_that_is_stopped_ends_no_command_late",
    ],
)
def test_of_many_nodes(name: str) -> None:
    scenario(name, SCRIPT)
