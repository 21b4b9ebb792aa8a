"""Two machines with one key and one journal (an image that was cloned with both): the root takes the records of one, and
the other one says so.  # F56
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sealed_kit import SEALED, Between, between, same

from pact.core.tree.wire import Message

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


def _lies(kit: Between, hash_: str, beyond: int) -> None:
    """What the aggregator makes of acknowledgements: none is sealed, and each says what the root has not said."""

    def down(message: Message) -> Message:
        if message.kind != "ack":
            return message
        rows = [[name, of, seq + beyond, rewind] for name, of, seq, rewind in message.head["cursors"]]
        head = {**message.head, "cursors": rows, "seals": "", "hashes": [hash_] * len(rows) if hash_ else ()}
        return message._replace(head=head)

    kit.rogue.down = down


@pytest.mark.invariant("T14")
@pytest.mark.parametrize("roots", [True, False], ids=["a node that knows the root", "a node that does not"])
def test_whoever_carries_words_puts_no_node_apart_for_good(tmp_path: Path, roots: bool) -> None:
    """A cluster that is not sealed yet."""
    with between(tmp_path, "") as kit:
        kit.cluster = f'roots = ["{kit.public["root1"]}"]\n' if roots else ""
        sock = kit.start_agent("n1", ("agg1", kit.below), cluster=kit.cluster)

        def apart() -> str:
            return str(kit.ask(sock, "status")["result"]["cluster"].get("apart") or "")

        def hold(reason: str) -> None:
            assert kit.ask(sock, "hold_place", reason=reason, for_ns=HOUR_NS)["exit"] == 0

        kit.log_of("n1", sock)
        _lies(kit, "f" * 16, 0)
        hold("while it lies about a hash")
        if roots:
            kit.log_of("n1", sock)
            kit.during(2.0)
            assert not apart(), "a hash that the root has not sealed is no word of the root's"
        else:
            assert "without the root's seal" in kit.until(apart, "it believes that", 30)
        _lies(kit, "", 1000)
        hold("while it lies about a number")
        assert "without the root's seal" in kit.until(apart, "it is careful", 30)
        kit.kill("n1", 15)
        assert kit.start_agent("n1", ("agg1", kit.below), cluster=kit.cluster) == sock
        assert apart(), "it is not forgotten"
        kit.rogue.down = staticmethod(same)
        hold("while it tells the truth")
        kit.until(lambda: not apart(), "it hears that the root has its records", 60)
        kit.log_of("n1", sock)
        kit.until(lambda: kit.ask(sock, "status")["result"]["cluster"]["waiting"] == 0, "all is replicated", 30)
        assert "they are replicated again" in (kit.base / "n1.log").read_text()
