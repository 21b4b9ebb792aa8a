"""For all tests: what a slow machine needs of time is no failure, values that say so are frozen, and who runs beside whom.

Most tests wait, so several run at once (pytest-xdist): the tests of a file one after another, as they share its agent;
those of ``APART`` each by itself, as each has processes of its own. What takes longest begins first. What is marked
``alone`` looks at the whole machine, or changes it: that runs after the others, one by one (see the Makefile).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from needed import TOOLS
from suite import SKIPPED

import pact.values

settings.register_profile("pact", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pact")
pact.values.FROZEN = True
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # started in the background: what is started here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

APART = (
    "test_torture.py",
    "test_fuzz.py",
    "test_e2e_cluster.py",
    "test_e2e_cluster_screen.py",
    "test_demo.py",
    "test_e2e_readme.py",
)
#: Files that take longest, with the seconds that they took among others on two cores. They begin first, those of half a
#: minute and more in this order: so the last ones to run are short, and no process waits long.
SECONDS = {
    "test_exec_real.py": 130,
    "test_e2e_service.py": 120,
    "test_e2e_service_around.py": 113,
    "test_package_plans.py": 98,
    "test_e2e_tools.py": 98,
    "test_e2e_slurm.py": 84,
    "test_prompts.py": 78,
    "test_rootlog_etcd.py": 76,
    "test_session.py": 72,
    "test_stood_still.py": 69,
    "test_journal_index.py": 67,
    "test_cluster_client.py": 62,
    "test_e2e_shell.py": 61,
    "test_streams_real.py": 60,
    "test_tidy.py": 60,
    "test_page_chromium.py": 55,
    "test_e2e_link_bad_day.py": 55,
    "test_kind_link_kernel.py": 53,
    "test_e2e_writers.py": 51,
    "test_e2e_stopped.py": 50,
    "test_cluster_tree.py": 49,
    "test_cluster_hostile.py": 46,
    "test_e2e_top.py": 45,
    "test_bench_cluster.py": 44,
    "test_e2e_link.py": 43,
    "test_render.py": 42,
    "test_subscriptions.py": 37,
    "test_e2e_package_rpm.py": 36,
    "test_e2e_tracked_many.py": 35,
    "test_e2e_bad_day.py": 35,
    "test_unended.py": 34,
    "test_e2e_package.py": 34,
    "test_e2e_top_fleet.py": 33,
    "test_cluster_sealed_twice.py": 33,
    "test_turned_files.py": 32,
    "test_unread.py": 32,
    "test_e2e_page.py": 31,
    "test_cluster_sealed.py": 30,
    "test_simulation.py": 30,
    "test_publish.py": 29,
    "test_tree_simulation.py": 28,
    "test_fuzz_corpora.py": 26,
    "test_wheel_file.py": 24,
    "test_kind_gpu.py": 23,
    "test_exec_cut.py": 23,
    "test_left_behind.py": 21,
    "test_sight.py": 20,
}
E2E_SECONDS = 10  # each of the other files below ``e2e``
HERE = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        for marker in item.iter_markers("needs"):
            if not set(marker.args) <= set(TOOLS):  # what is missing could not be said at the end
                raise pytest.UsageError(f"{item.nodeid} needs {marker.args}: tests/needed.py names no package of it")
            missing = [tool for tool in marker.args if shutil.which(tool) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"{', '.join(missing)} not installed"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What is missing is said once, with what installs it."""
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(f"skipped for want of {', '.join(missing)}: make deps installs what is missing")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On a machine that has installed everything nothing is left out."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = SKIPPED


def seconds(path: Path) -> int:
    return SECONDS.get(path.name, E2E_SECONDS if HERE / "e2e" in path.parents else 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.path.name not in APART, -seconds(item.path)))


def pytest_runtestloop(session: pytest.Session) -> None:
    """Thousands of collected tests live until the end: the collector of garbage need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return nodeid if path.rpartition("/")[2] in APART else path

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Any]:
    """A root of the test's own, as a process (``hostile_kit``). Files that need another kit have one of this name."""
    from hostile_kit import NAMES, Hostile

    kit = Hostile(tmp_path, NAMES)
    kit.start()
    try:
        yield kit
    finally:
        kit.close()
