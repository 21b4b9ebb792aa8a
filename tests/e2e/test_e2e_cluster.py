"""Real aggregators and agents, each node in namespaces of its own, and links that are cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment
from warm import warm

SCRIPT = Path(__file__).with_name("scenarios.py")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(240),
]


def scenario(name: str, script: Path = SCRIPT) -> None:
    server = str(warm("cluster", environment()).fileno())
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, str(script), name, server],
        capture_output=True,
        text=True,
        env=environment(),
        pass_fds=[int(server)],
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=220,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]


@pytest.mark.invariant("T8", "K2", "F41")
def test_an_aggregator_is_killed_and_its_children_are_at_work_elsewhere() -> None:
    scenario("an_aggregator_is_killed_and_its_children_are_at_work_elsewhere")


@pytest.mark.invariant("T6", "T7")
def test_a_command_waits_for_nodes_whose_aggregator_dies_under_it() -> None:
    scenario("a_command_waits_for_nodes_whose_aggregator_dies_under_it")


@pytest.mark.invariant("K1", "F34")
def test_a_root_is_killed_and_started_again() -> None:
    scenario("a_root_is_killed_and_started_again")


def test_a_key_that_is_removed_ends_its_sessions() -> None:
    scenario("a_key_that_is_removed_ends_its_sessions")


@pytest.mark.invariant("S1", "S3")
def test_keys_mean_what_the_file_says() -> None:
    scenario("keys_mean_what_the_file_says")


@pytest.mark.invariant("G1", "G2")
def test_a_group_that_nobody_commits_expires_on_every_node() -> None:
    scenario("a_group_that_nobody_commits_expires_on_every_node")


@pytest.mark.invariant("F5", "G1", "F49")
def test_a_consumer_blocks_all_and_two_people_settle_one_group() -> None:
    scenario("a_consumer_blocks_all_and_two_people_settle_one_group")


def test_programs_read_groups_as_they_read_everything_else() -> None:
    scenario("programs_read_groups_as_they_read_everything_else", SCRIPT.with_name("scenarios_looking.py"))


@pytest.mark.invariant("G5", "F42")
def test_a_node_that_is_away_owes_and_one_that_restarts_remembers() -> None:
    scenario("a_node_that_is_away_owes_and_one_that_restarts_remembers")


@pytest.mark.invariant("G3")
def test_a_member_that_said_yes_waits_for_the_root() -> None:
    scenario("a_member_that_said_yes_waits_for_the_root")


@pytest.mark.invariant("G8")
def test_the_whole_fleet_is_stopped() -> None:
    scenario("the_whole_fleet_is_stopped")


@pytest.mark.invariant("G9", "F46")
def test_a_node_that_is_cut_off_waits_and_then_acts_alone() -> None:
    scenario("a_node_that_is_cut_off_waits_and_then_acts_alone")


@pytest.mark.invariant("K3", "F33", "F34")
@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd not installed: apt-get install etcd-server")
def test_two_roots_on_etcd_and_no_quorum() -> None:
    scenario("two_roots_on_etcd_and_no_quorum")


def test_mistakes_are_told_and_change_nothing() -> None:
    scenario("mistakes_are_told_and_change_nothing", SCRIPT.with_name("scenarios_looking.py"))


@pytest.mark.invariant("C7", "G1")
def test_what_cannot_be_applied_on_one_node_is_applied_on_none() -> None:
    scenario("what_cannot_be_applied_on_one_node_is_applied_on_none", SCRIPT.with_name("scenarios_looking.py"))


@pytest.mark.invariant("G6")
def test_who_looks_at_a_group_sees_its_members_as_they_are() -> None:
    scenario("who_looks_at_a_group_sees_its_members_as_they_are", SCRIPT.with_name("scenarios_looking.py"))


@pytest.mark.invariant("U1")
def test_the_page_and_the_metrics_say_where_something_is_untracked() -> None:
    scenario("the_page_and_the_metrics_say_where_something_is_untracked", SCRIPT.with_name("scenarios_looking.py"))


@pytest.mark.invariant("S2")
def test_nobody_beside_a_node_can_guess_a_pin() -> None:
    scenario("nobody_beside_a_node_can_guess_a_pin", SCRIPT.with_name("scenarios_secrets.py"))


@pytest.mark.invariant("G1", "C1")
def test_what_a_group_does_not_name_stays_declared() -> None:
    scenario("what_a_group_does_not_name_stays_declared", SCRIPT.with_name("scenarios_looking.py"))
