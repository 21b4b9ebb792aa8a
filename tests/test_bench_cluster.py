"""The cluster's bench at a size of seconds, so that it cannot rot. No figure is looked at."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_cluster", BENCH / "bench_cluster.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])


@pytest.mark.timeout(120)
def test_two_hundred_virtual_nodes_obey_and_roll_back(bench: ModuleType) -> None:
    figures = {f["name"]: f for f in bench.tree(200, 1, 1)}
    counted = next(f for name, f in figures.items() if name.startswith("messages at the root"))
    assert counted["ok"], counted  # O(fan-out), whatever the machine


@pytest.mark.timeout(120)
def test_nodes_that_share_a_process_with_their_aggregator_obey_and_roll_back(bench: ModuleType) -> None:
    figures = bench.leaves(200, 1, 1)
    asked, _, undone, own = figures
    assert "no sockets" in asked["name"] and undone["value"] > own["value"] / 4
    assert own["value"] >= 200 * 20e-6  # a vote and a decision of each: counts from before the work would say nothing
    assert bench.least(figures) == []  # without the flat loop there is nothing to say


def test_the_least_for_a_rollback_is_its_rounds_and_the_nodes_own_work(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 4)
    flat = bench.figure("the flat loop in C, 10,000 sockets, one round", 250.0, "ms")
    seconds, times = bench.least([flat, bench.figure(bench.OWN, 2.0, "s of one core")])
    assert seconds["value"] == pytest.approx(2 * 0.25 + 2.0 / 4) and times["value"] == pytest.approx(2)


@pytest.mark.timeout(60)
def test_events_pass_through_a_relay_and_the_root(bench: ModuleType) -> None:
    assert bench.one_relay(0.2)[0]["value"] > 0
    assert bench.the_root(700)[0]["value"] > 0
