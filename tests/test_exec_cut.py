"""Commands on many nodes whose way to the person is cut: above the aggregators, or by the person."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from streams_kit import NODES, Fleet, alive, fleet, within

from pact.cli import everywhere
from pact.cluster.client import BROKEN_S, SILENCE_S

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@pytest.fixture
def marker() -> str:
    """A word that no other process has on its command line."""
    return f"{int(time.time() * 1000) % 10**9 + 10**9}"


@pytest.mark.parametrize("how", ["interrupted", "lost"])
def test_of_each_node_something_is_said_when_it_ends_here(kit: Fleet, marker: str, tmp_path: Path, how: str) -> None:
    """One has ended, one runs, and one has not even begun: its agent is stopped. Or contact is lost."""
    command = f"mkdir {tmp_path}/first 2>/dev/null && exit 3; sleep {marker}; true"
    stopped = kit.processes["n3" if how != "lost" else "root1"]
    listening = NODES[:2] if how != "lost" else NODES
    if how != "lost":
        stopped.send_signal(signal.SIGSTOP)
    with kit.pact(
        "--json", "exec", "--nodes", "n[1-3]", "--", command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as one:
        try:
            within(lambda: alive(marker) and has_ended(kit, listening, str(tmp_path)), "one runs, one has ended", 30)
            time.sleep(0.5)  # its answer is here
            stopped.send_signal(signal.SIGSTOP)
            if how != "lost":
                one.send_signal(signal.SIGINT)
            doc = json.loads(one.communicate(timeout=30)[0])
        finally:
            stopped.send_signal(signal.SIGCONT)
    assert one.returncode == (130 if how != "lost" else 5)
    (ended,) = [n for n in NODES if doc["nodes"][n]["exit"] == 3]
    why = "cancelled" if how != "lost" else "no answer came; if its command began, it was ended there"
    assert doc["failed"] == {",".join(doc["failed"]): why} and ended not in doc["failed"]
    assert {n: row["exit"] for n, row in doc["nodes"].items()} == {**dict.fromkeys(NODES), ended: 3}
    within(lambda: not alive(marker), "nothing is left running", 20)
    for node in NODES:
        kit.connected(node)


def test_a_second_interrupt_while_it_takes_its_leave_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes a millisecond, which no other process can meet."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    class Leaving:
        def cancel(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def connected(_: argparse.Namespace) -> Iterator[Leaving]:
        yield Leaving()

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(everywhere, "connected", connected)
    monkeypatch.setattr(everywhere.Everywhere, "ask", interrupted)
    args = argparse.Namespace(timeout=0, output_max=1 << 10, live=False, json=True, no_stdin=True, nodes="n[1-2]")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert everywhere.run(args, ["true"]) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert json.loads(capsys.readouterr().out)["failed"] == {"n[1-2]": "cancelled"}


def has_ended(kit: Fleet, nodes: Sequence[str], text: str) -> bool:
    return any(text in r["data"]["command"] for n in nodes for r in kit.records(n, "executed"))


@pytest.mark.parametrize("words", [("exec", "--nodes", "n[1-3]"), ("shell", "n1")])
def test_an_aggregator_that_dies_is_noticed_before_it_would_be_silent_for_long(
    kit: Fleet, marker: str, words: tuple[str, ...]
) -> None:
    """The connection is closed at once: what somebody typed until then was lost without a word."""
    with kit.pact(*words, "--", f"sleep {marker}; true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
        within(lambda: alive(marker), "it runs", 30)
        began_s = time.monotonic()
        kit.kill("agg1")
        try:
            _, err = one.communicate(timeout=30)
            took_s = time.monotonic() - began_s
        finally:
            kit.start_aggregator("agg1", ("root1", kit.url), port=int(kit.below.rpartition(":")[2]))
    assert one.returncode == (5 if words[0] == "exec" else 255) and b"lost contact with tcp://" in err, err
    assert took_s < SILENCE_S - BROKEN_S
    for node in NODES:
        kit.connected(node)
    for session in kit.sessions("n1"):
        assert kit.run_pact("sessions", "--nodes", "n1", "--end", session["id"]).returncode == 0
    within(lambda: not alive(marker), "nothing is left running", 20)


@pytest.mark.invariant("F90")
@pytest.mark.parametrize("live", [False, True])
def test_a_root_that_starts_again_ends_what_was_asked_through_the_last_one(kit: Fleet, marker: str, live: bool) -> None:
    """Before any node notices that it was cut off: the commands ran on until their limit, and nobody waited."""
    words = ["exec", *(["-L"] if live else []), "--timeout", "10m", "--nodes", "n[1-3]", "--", f"sleep {marker}; true"]
    with kit.pact(*words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
        within(lambda: len(alive(marker)) >= 3, "it runs on all", 30)
        kit.kill("root1")
        kit.run("root1", "aggregator", "--config", str(kit.base / "root1.toml"))
        within(lambda: not alive(marker), "nothing is left running", 30)
        assert one.wait(30) == 5
    for node in NODES:
        kit.connected(node)
        (row,) = [r["data"] for r in kit.records(node, "executed") if marker in r["data"]["command"]]
        assert row["exit"] is None and row["why"], row
