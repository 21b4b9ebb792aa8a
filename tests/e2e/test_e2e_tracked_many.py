"""Many new things below adopted patterns, and new ones all the time: they are counted, and little is written of them.

Whose doing it was is looked at in ``test_e2e_tracked.py``.
"""

from __future__ import annotations

import time

import pytest
from harness import TOP, Agent, World, wait_until
from newcomers import ETC, empty, etc, made_by

pytestmark = pytest.mark.timeout(400)
LONG_S = 120.0  # other tests run beside these


@pytest.fixture(autouse=True)
def an_empty_place(world: World, running: Agent) -> None:
    empty(world, running)


@pytest.mark.invariant("U3", "F59")
def test_five_thousand_new_files_are_counted_and_do_not_flood_the_journal(agent: Agent) -> None:
    etc(agent)
    before = agent.status()["journal"]["seq"]
    who = made_by(agent, 1234, f"cd {ETC} && seq -f f%g 5000 | xargs touch")
    wait_until(lambda: agent.status()["untracked"] >= 5000, "all are counted", LONG_S)
    assert agent.status()["untracked"] == 5000
    agent.world.end(who)
    assert agent.status()["journal"]["seq"] - before < 40
    agent.world.sh(f"cd {ETC} && rm -f f*")
    wait_until(lambda: agent.status()["untracked"] == 0, "all are gone", LONG_S)
    assert agent.status()["journal"]["seq"] - before < 60


@pytest.mark.invariant("U3", "F59")
def test_who_makes_and_removes_all_day_writes_little_into_the_journal(agent: Agent) -> None:
    etc(agent)
    before = agent.status()["journal"]["seq"]
    who = agent.world.popen(
        [
            "setpriv",
            "--reuid=1234",
            "--regid=1234",
            "--clear-groups",
            "--",
            "sh",
            "-c",
            f"while :; do : > {ETC}/churn; sleep 0.4; rm {ETC}/churn; sleep 0.4; done",
        ]
    )
    time.sleep(8)
    agent.world.end(who)
    assert agent.status()["journal"]["seq"] - before <= 12


@pytest.mark.invariant("U3")
def test_beyond_what_is_kept_of_one_owner_they_are_counted_by_directory(agent: Agent) -> None:
    etc(agent)
    agent.world.sh(f"mkdir {ETC}/d && cd {ETC}/d && seq -f f%g 10400 | xargs touch")
    wait_until(lambda: agent.status()["untracked"] == 10401, "all are counted", LONG_S)
    agent.world.sh(f"cd {ETC}/d && seq -f f%g 10000 | xargs rm")
    wait_until(lambda: agent.status()["untracked"] == 401, "those that are left", LONG_S)
    wait_until(lambda: agent.status()["untracked_beyond"] == {}, "there is room again", LONG_S)


#: Puts a link in the place of a directory and takes it away again, many times.
SWAPPING = """
import ctypes, random
libc, end = ctypes.CDLL(None), time.monotonic() + 4
print("ready", flush=True)
while time.monotonic() < end:
    for _ in range(50):
        libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)
    time.sleep(random.random() * 0.3)
"""


@pytest.mark.invariant("U4")
def test_a_directory_that_is_swapped_for_a_link_all_the_time_leads_nowhere(agent: Agent) -> None:
    place = etc(agent)
    agent.world.sh(
        f"mkdir -m 700 {TOP}/closed; mkdir {TOP}/closed/deep; : > {TOP}/closed/deep/hidden; "
        f"mkdir {ETC}/d; ln -s {TOP}/closed {ETC}/l"
    )
    process = agent.world.python(SWAPPING, f"{ETC}/d", f"{ETC}/l")
    process.wait(20)
    agent.world.end(process)
    assert place.is_dir()
    seen = {r for record in agent.records("untracked_seen") for r in record["data"]["resources"]}
    assert not [r for r in seen if "deep" in r], seen
