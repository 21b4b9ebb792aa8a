"""Packages with a real agent, a real dpkg and a real apt, in a root of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Agent, World, wait_until
from packages_site import DebSite

pytestmark = pytest.mark.needs("dpkg", "apt-get", "dpkg-scanpackages")
SEEN_S = 10.0
#: A script that goes on when a test lets it.
SLOW = "touch $DPKG_ROOT/tmp/begun; while [ ! -e $DPKG_ROOT/tmp/go ]; do sleep 0.05; done"


@pytest.fixture(scope="module")
def site() -> Iterator[DebSite]:
    base = Path(tempfile.mkdtemp(prefix="pact-deb-", dir="/var/tmp"))  # files below /tmp are never resources
    base.chmod(0o755)
    site = DebSite(base)
    for version in ("1.0-1", "2.0-1"):
        site.make(
            "tool",
            version,
            files={"usr/bin/tool": "#!/bin/sh\n", "etc/tool.conf": version},
            conffiles=["/etc/tool.conf"],
        )
        site.make("user", version, Depends=f"tool (>= {version})")
    for version in ("3", "4"):
        site.make("plain", version)
    site.make("slow", "1-1", scripts={"postinst": SLOW})
    site.make("bad", "1-1", scripts={"postinst": "exit 3"})
    site.make("waits", "1-1", scripts={"postinst": SLOW})
    site.make("waits", "2-1")
    site.index()
    yield site
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def started(world: World, make_agent: Callable[..., Agent], site: DebSite) -> Iterator[Agent]:
    world.env = {"PACT_PACKAGE_ROOT": str(site.root)}
    site.install("tool=1.0-1", "user=1.0-1", "plain=3")
    made = make_agent(observe={"rescan": "1h"})  # what is seen in time is seen by its source
    made.start()
    yield made
    made.close()
    world.env = {}


@pytest.fixture
def agent(started: Agent, site: DebSite) -> Iterator[Agent]:
    assert started.adopt("package:**")["adopted"] == 3
    yield started
    (site.root / "tmp/go").touch()
    site.dpkg("--configure", "-a", check=False)
    site.dpkg("--purge", "slow", "bad", "waits", check=False)
    site.install("tool=1.0-1", "user=1.0-1", "plain=3")
    for leaf in ("go", "begun"):
        (site.root / "tmp" / leaf).unlink(missing_ok=True)
    started.clear()


@pytest.fixture
def slow(site: DebSite) -> Iterator[subprocess.Popen[str]]:
    """A dpkg that is at work until ``tmp/go`` is there, or until it is ended."""
    command = site.dpkg_command("-i", site.repo / "slow_1-1_all.deb", site.repo / "plain_4_all.deb")
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    wait_until((site.root / "tmp/begun").exists, "the script runs")
    yield run
    (site.root / "tmp/go").touch()
    run.wait(30)


def test_an_upgrade_is_one_change_of_its_writer_and_is_rolled_back_in_one_transaction(
    agent: Agent, site: DebSite
) -> None:
    before = time.monotonic()
    site.install("tool", "user")
    change = agent.drifted("package:tool")
    assert time.monotonic() - before < SEEN_S
    wait_until(lambda: agent.status()["drifted"] == 2, "both have drifted")
    assert agent.change_of("package:tool")["resources"] == ["package:tool", "package:user"]
    assert change["owner"]["user"] == "root" and "apt-get" in agent.change_of("package:tool")["owner"]["command"]
    shown = agent.pact("rollback", "--all", "--dry-run").out
    assert "package:tool" in shown and site.version("tool") == "2.0-1"
    agent.pact("rollback", "--all")
    assert (site.version("tool"), site.version("user")) == ("1.0-1", "1.0-1")
    wait_until(lambda: agent.status()["state"] == "committed", "it is as declared")


@pytest.mark.alone  # whose doing it was is found in time only where the machine is not busy
def test_what_a_transaction_brings_is_its_writers_too(agent: Agent, site: DebSite) -> None:
    """It is new below a tracked pattern, and nobody else's than what the same transaction has moved."""
    site.make("brought", "1-1", Depends="tool (= 2.0-1)")
    site.index()
    site.install("brought")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is told of")
    change = agent.drifted("package:tool")
    owner = agent.newest("untracked_seen")["data"]["owner"]
    assert (owner["user"], owner["run"].partition("#")[0]) == ("root", "apt-get") and change["owner"]["user"] == "root"
    assert "package:brought (root" in agent.pact("status").out
    site.dpkg("--purge", "brought")


def test_it_is_one_change_within_two_seconds_of_its_end(agent: Agent, site: DebSite) -> None:
    site.install("tool", "user", "plain")
    before = time.monotonic()
    wait_until(lambda: len(agent.status()["changes"]) == 1 and agent.status()["drifted"] == 3, "all three have drifted")
    assert time.monotonic() - before < SEEN_S
    agent.pact("commit", "--all", "-m", "the new ones")
    declared = agent.pact("export").out
    assert 'tool = "2.0-1"' in declared and 'plain = {native = true, version = "4"}' in declared.replace(
        'version = "4", native = true', 'native = true, version = "4"'
    )
    agent.declare(declared)
    assert agent.status()["state"] == "committed"


def test_what_a_package_manager_does_is_no_drift_until_it_has_ended(
    agent: Agent, site: DebSite, slow: subprocess.Popen[str]
) -> None:
    (site.root / "var/lib/dpkg/info/nothing.list").touch()  # an event that is none
    time.sleep(1.0)
    assert agent.status()["changes"] == [], "plain is unpacked, and dpkg is still at work"
    assert agent.status()["unreadable"] == 0
    (site.root / "tmp/go").touch()
    slow.wait(30)
    assert agent.drifted("package:plain")["resources"] == ["package:plain"]
    wait_until(lambda: agent.status()["untracked"] == 1, "the new one is told of")


def test_a_rollback_waits_for_a_package_manager_and_names_it(agent: Agent, site: DebSite) -> None:
    site.install("tool", "user")
    agent.drifted("package:user")
    command = site.dpkg_command("-i", site.repo / "slow_1-1_all.deb")
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until((site.root / "tmp/begun").exists, "the script runs")
        said = agent.pact("rollback", "--all", check=None)
        assert said.code == 1 and "a package manager holds" in said.err and "lock: dpkg" in said.err, said
        assert "dpkg" in agent.pact("rollback", "--all", "--dry-run", check=None).out
        assert agent.status()["state"] == "blocked" and site.version("tool") == "2.0-1"
    finally:
        (site.root / "tmp/go").touch()
        run.wait(30)
    agent.pact("rollback", "--all")
    assert site.version("tool") == "1.0-1"


def test_a_package_whose_script_failed_is_drift_that_cannot_be_committed(agent: Agent, site: DebSite) -> None:
    assert "passed over" not in agent.pact("adopt", "package:tool").out
    site.install("bad", check=False)
    note = agent.pact("adopt", "package:**").out
    assert "passed over 1: half-configured: the package manager has to finish first" in note
    agent.declare('[package]\nbad = "installed"\n', check=None)
    assert agent.drifted("package:bad")
    said = agent.pact("commit", "--all", "-m", "so be it", check=4)
    assert "half-configured" in said.err


def test_dpkg_that_is_killed_leaves_drift_and_a_rollback_says_what_has_to_be_done(
    agent: Agent, site: DebSite, slow: subprocess.Popen[str]
) -> None:
    os.killpg(slow.pid, signal.SIGKILL)
    slow.wait(30)
    agent.drifted("package:plain")
    said = agent.pact("rollback", "--all", check=None)
    assert said.code == 1 and "dpkg --configure -a" in said.err, said
    (site.root / "tmp/go").touch()
    site.dpkg("--configure", "-a", check=False)
    wait_until(lambda: "status" not in str(agent.json("diff")), "it is configured")
    agent.pact("rollback", "--all")
    assert site.version("plain") == "3"


def test_who_runs_a_program_of_a_package_is_its_consumer(agent: Agent, site: DebSite) -> None:
    site.install("tool", "user")
    agent.drifted("package:user")
    shutil.copy("/bin/sleep", site.root / "usr/bin/tool")
    job = subprocess.Popen([site.root / "usr/bin/tool", "600"])
    try:
        said = agent.pact("rollback", "--all", check=10)
        assert f"{site.root}/usr/bin/tool 600" in said.out, said
        assert site.version("tool") == "2.0-1"
        assert f"{site.root}/usr/bin/tool 600" in agent.pact("consumers", "package:tool").out
    finally:
        job.kill()
        job.wait()
    agent.pact("rollback", "--all")
    assert site.version("tool") == "1.0-1"


def test_a_plan_that_would_move_more_is_refused_and_shown(agent: Agent, site: DebSite) -> None:
    site.install("tool", "user")
    wait_until(lambda: agent.status()["drifted"] == 2, "both have drifted")
    dry = agent.pact("rollback", "package:tool", "--dry-run", check=1)
    assert "it would also remove user: a person decides" in dry.out + dry.err
    agent.pact("rollback", "package:tool", check=1)
    assert (site.version("tool"), site.version("user")) == ("2.0-1", "2.0-1")


def test_apply_installs_removes_and_undoes_what_failed(agent: Agent, site: DebSite) -> None:
    plan = agent.base / "plan.toml"
    plan.write_text('[package]\ntool = "2.0-1"\nuser = "absent"\nplain = "installed"\n')
    shown = agent.json("apply", str(plan), "--dry-run")
    assert {s["id"] for s in shown["plan"]} == {"package:tool", "package:user"}
    agent.pact("apply", str(plan))
    assert (site.version("tool"), site.version("user")) == ("2.0-1", "")
    agent.pact("rollback", "--all")
    assert (site.version("tool"), site.version("user")) == ("1.0-1", "1.0-1")
    plan.write_text('[package]\ntool = "1.5-1"\n')
    assert "1.5-1 cannot be had" in agent.pact("apply", str(plan), check=1).err
    plan.write_text('[package]\nbad = "1-1"\nplain = "4"\n')
    said = agent.pact("apply", str(plan), check=1)
    assert "post-installation script" in said.err, said


def test_a_commit_says_that_a_version_could_not_be_had_again(agent: Agent, site: DebSite) -> None:
    path = site.make("plain", "5")
    site.dpkg("-i", path)  # no repository knows it
    agent.drifted("package:plain")
    said = agent.pact("commit", "--all", "-m", "by hand").out
    assert "no repository that is known here has version 5" in said
    path.unlink()


def test_an_agent_that_was_down_finds_what_was_upgraded(agent: Agent, site: DebSite) -> None:
    agent.stop()
    site.install("tool", "user")
    agent.start()
    assert agent.drifted("package:tool")
    agent.pact("rollback", "--all")
    assert site.version("user") == "1.0-1"


def test_an_agent_that_is_killed_in_a_rollback_leaves_the_package_manager_to_end(agent: Agent, site: DebSite) -> None:
    (site.root / "tmp/go").touch()
    site.install("waits=1-1")
    agent.adopt("package:waits")
    site.install("waits=2-1")
    agent.drifted("package:waits")
    for leaf in ("go", "begun"):
        (site.root / "tmp" / leaf).unlink()
    asked = agent.world.popen([sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback", "--all"])
    wait_until((site.root / "tmp/begun").exists, "apt is at work")
    agent.stop(signal.SIGKILL)
    agent.world.end(asked)
    agent.start()
    assert agent.change_of("package:waits")["state"] in ("rolling_back", "failed", "blocked")
    (site.root / "tmp/go").touch()
    wait_until(lambda: site.version("waits") == "1-1", "apt has ended in order")
    agent.settled("package:waits")


def test_files_of_a_package_are_restored_with_it_and_after_it(agent: Agent, site: DebSite) -> None:
    kept, patched = site.root / "usr/share/tool/version", site.root / "usr/share/user/version"
    patched.write_text("patched here")
    before = patched.stat().st_mode
    agent.pact("adopt", f"file:{kept}", f"file:{patched}")
    site.install("tool", "user")
    wait_until(lambda: agent.status()["drifted"] == 4, "the packages and their files have drifted")
    agent.pact("rollback", "--all")
    assert (kept.read_text(), patched.read_text()) == ("1.0-1", "patched here")
    assert (site.version("tool"), patched.stat().st_mode) == ("1.0-1", before)
    wait_until(lambda: agent.status()["state"] == "committed", "all is as declared")
