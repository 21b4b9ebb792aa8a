"""For all tests: what a slow machine needs of time is no failure, values that say so are frozen, and who runs beside whom.

Most tests wait, so several run at once (pytest-xdist): the tests of a file one after another, as they share its agent;
those of ``APART`` each by itself, as each has processes of its own. What takes longest begins first. What is marked
``alone`` looks at the whole machine, or changes it: that runs after the others, one by one (see the Makefile).
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

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
HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.path.name not in APART, HERE / "e2e" not in item.path.parents))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return nodeid if path.rpartition("/")[2] in APART else path

    config.option.loadscopereorder = False
    return ByFile(config, log)
