"""Two machines with one key and one journal (an image that was cloned with both): the root takes the records of one, and
the other one says so.  # F56
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sealed_kit import SEALED, Between, between

pytestmark = pytest.mark.invariant("K2", "F56")
HOUR_NS = 3600 * 10**9


@pytest.fixture(params=["sealed", "as the last version"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Between]:
    with between(tmp_path, SEALED if request.param == "sealed" else "") as kit:
        kit.cluster = f'roots = ["{kit.public["root1"]}"]\n{SEALED}' if request.param == "sealed" else ""
        yield kit


def test_of_two_machines_with_one_journal_one_knows_that_the_root_has_not_its_records(kit: Between) -> None:
    parent = ("agg1", kit.below)

    def lives() -> str:
        return kit.start_agent("n1", parent, cluster=kit.cluster)

    def status(sock: str) -> dict[str, Any]:
        found: dict[str, Any] = kit.ask(sock, "status")["result"]
        return found

    def hold(sock: str, reason: str) -> None:
        assert kit.ask(sock, "hold_place", reason=reason, for_ns=HOUR_NS)["exit"] == 0

    sock = lives()
    kit.log_of("n1", sock)
    kit.kill("n1", 15)
    home, clone = kit.base / "agent-n1", kit.base / "agent-clone"
    shutil.copytree(home / "state", clone / "state")
    text = (home / "agent.toml").read_text().replace(str(home), str(clone))
    (clone / "agent.toml").write_text(text)
    first = lives()
    hold(first, "of the first")
    kit.log_of("n1", first)
    kit.run("clone", "agent", "--config", str(clone / "agent.toml"))
    second = f"{clone}/sock"
    for n in range(20):
        hold(second, f"of the second {n}")
    apart = kit.until(lambda: status(second)["cluster"].get("apart"), "it knows", 60)
    assert "a second machine has this node's key" in apart
    said = status(second)
    assert said["cluster"]["replicated"] < said["cluster"]["forked"], "nothing of its own counts as taken"
    assert len(kit.records(second, "hold_placed")) == 20, "and nothing of it is lost"
    assert "another journal of this node" in kit.ask(second, "check")["result"]["line"]
    assert "has another record" in (kit.base / "clone.log").read_text()
    hold(first, "again")
    kit.log_of("n1", first)
    assert not status(first)["cluster"].get("apart"), "the root takes the records of the first"
    kit.kill("clone", 15)
    kit.run("clone", "agent", "--config", str(clone / "agent.toml"))
    assert status(second)["cluster"]["apart"] == apart, "it is not forgotten"
