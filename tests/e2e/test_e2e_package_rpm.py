"""Packages with a real agent, a real rpm and a real dnf, in a root of their own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Agent, World, wait_until
from packages_site import RpmSite

pytestmark = pytest.mark.needs("rpm", "rpmbuild", "dnf", "createrepo_c")


@pytest.fixture(scope="module")
def site() -> Iterator[RpmSite]:
    base = Path(tempfile.mkdtemp(prefix="pact-rpm-"))
    base.chmod(0o755)
    site = RpmSite(base)
    for version in ("1.0-1", "2.0-1"):
        site.make("tool", version, files={"usr/bin/tool": "#!/bin/sh", "etc/tool.conf": version})
        # A transaction of a moment may be over before anybody looks at who makes it.
        site.make("user", version, spec=f"Requires: tool = {version}", body="%post -p <lua>\nposix.sleep(1)\n")
    site.make("fresh", "3:1.0-1")
    site.index()
    yield site
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def agent(world: World, make_agent: Callable[..., Agent], site: RpmSite) -> Iterator[Agent]:
    world.env = {"PACT_PACKAGE_ROOT": str(site.root)}
    put(site, "1.0-1")
    made = make_agent(observe={"rescan": "1h"})
    made.start()
    assert made.adopt("package:**")["adopted"] == 2
    yield made
    made.close()
    site.rpm("-e", "fresh", check=False)
    world.env = {}


def put(site: RpmSite, version: str) -> None:
    site.install("--force", *site.repo.rglob(f"*[rl]-{version}.noarch.rpm"))


def test_an_upgrade_is_one_change_of_its_writer_and_is_rolled_back(agent: Agent, site: RpmSite) -> None:
    put(site, "2.0-1")
    before = time.monotonic()
    agent.drifted("package:tool")
    wait_until(lambda: agent.status()["drifted"] == 2, "both have drifted")
    change = agent.change_of("package:tool")
    assert change["resources"] == ["package:tool", "package:user"] and time.monotonic() - before < 10
    assert change["owner"]["user"] == "root" and change["owner"]["command"].startswith("rpm "), change["owner"]
    (site.root / "etc/tool.conf").write_text("mine")
    assert "package:user" in agent.pact("rollback", "--all", "--dry-run").out
    agent.pact("rollback", "--all")
    assert (site.version("tool"), site.version("user")) == ("1.0-1", "1.0-1")
    assert (site.root / "etc/tool.conf").read_text() == "mine"
    assert agent.status()["state"] == "committed"


def test_what_is_declared_without_a_release_conforms_and_what_is_new_is_told(agent: Agent, site: RpmSite) -> None:
    agent.declare('[package]\ntool = "1.0"\nuser = "installed"\nabsent = "absent"\n')
    assert agent.status()["state"] == "committed" and site.version("tool") == "1.0-1"
    site.rpm("-i", next(site.repo.rglob("fresh*.rpm")))
    wait_until(lambda: agent.status()["untracked"] == 1, "the new one is told of")
    agent.pact("rollback", "package:fresh")
    assert site.version("fresh") == ""


def test_the_agent_is_quiet_after_it_has_asked_rpm(agent: Agent, site: RpmSite) -> None:
    put(site, "2.0-1")
    agent.drifted("package:tool")
    time.sleep(1)
    assert agent.process is not None

    def asked() -> int:
        """Forks, as the kernel counts what has ended below the agent: its children's time."""
        with open(f"/proc/{agent.process.pid}/stat") as f:  # type: ignore[union-attr]
            fields = f.read().rpartition(")")[2].split()
        return int(fields[13]) + int(fields[14]) + int(fields[8])

    before = asked()
    time.sleep(2)
    assert asked() == before, "its own reading is no reason to read again"


def test_a_lock_of_rpms_is_waited_for(agent: Agent, site: RpmSite) -> None:
    put(site, "2.0-1")
    agent.drifted("package:user")
    script = (
        "import fcntl,sys\nf=open(sys.argv[1],'a')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint(1,flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen(
        ["python3", "-c", script, site.root / "var/lib/rpm/.rpm.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        said = agent.pact("rollback", "--all", check=1)
        assert "a package manager holds" in said.err and ".rpm.lock: python3" in said.err
    finally:
        holder.kill()
        holder.communicate()
    agent.pact("rollback", "--all")
    assert site.version("user") == "1.0-1"
