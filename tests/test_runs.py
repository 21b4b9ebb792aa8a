"""Which process of a writer's ancestors is the run, and which rules describe a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pact.model import Writer
from pact.observe import runs
from pact.observe.attribution import resolve
from pact.observe.jobs import job_in_environment, job_of
from pact.observe.runs import Runs, WriterRule, chain, program


@pytest.mark.parametrize(
    ("command", "name", "line"),
    [
        ("/usr/bin/python3 /usr/bin/dnf -y install x", "dnf", "dnf -y install x"),
        ("/usr/bin/python3 -I -u /usr/bin/salt-call state.apply", "salt-call", "salt-call state.apply"),
        ("/usr/bin/ruby /usr/bin/puppet agent --test", "puppet", "puppet agent --test"),
        ("puppet agent: applying configuration", "puppet", "puppet agent: applying configuration"),
        ("/bin/sh -c apt-get update", "apt-get", "apt-get update"),
        ("apt-get install -y sl", "apt-get", "apt-get install -y sl"),
        ("bash", "bash", "bash"),
        ("", "", ""),
        ("python3", "python3", "python3"),
    ],
)
def test_a_script_is_named_by_itself(command: str, name: str, line: str) -> None:
    assert program(command) == (name, line)


@pytest.mark.invariant("O5")
@pytest.mark.parametrize(
    ("rule", "writer", "fits"),
    [
        ({"command": "puppet"}, {"command": "puppet apply x"}, True),
        ({"command": "puppet"}, {"command": "puppetlike apply x"}, False),
        ({"command": "puppet*"}, {"command": "puppetlike apply x"}, True),
        ({"command": "puppet apply *"}, {"command": "/usr/bin/ruby /usr/bin/puppet apply x"}, True),
        ({"command": "puppet apply *"}, {"command": "puppet agent"}, False),
        ({"command": "/opt/site/*"}, {"command": "/opt/site/run x"}, True),
        ({"command": "puppet"}, {"command": "puppet apply x", "uid": 1234}, False),
        ({"command": "puppet", "user": "12*"}, {"command": "puppet apply x", "uid": 1234}, True),
        ({"cgroup": "*/cfs/*"}, {"cgroup": "/a/cfs/b"}, True),
        ({"cgroup": "*/cfs/*"}, {"cgroup": "/a/cfs/b", "uid": 1234}, False),
        ({"unit": "puppet.service"}, {"unit": "puppet.service", "uid": 1234}, True),
        ({"unit": "puppet.service", "command": "x"}, {"unit": "puppet.service"}, False),
        ({"user": "root"}, {}, True),
    ],
)
def test_a_rule_describes_a_process_by_all_that_it_gives(
    rule: dict[str, str], writer: dict[str, Any], fits: bool
) -> None:
    assert WriterRule(**rule).matches(Writer(**{"pid": 7, "uid": 0, **writer})) is fits


@pytest.mark.invariant("O5")
def test_a_daemon_s_forks_are_its_runs_and_a_service_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Writer(10, 0, command="/usr/bin/ruby /usr/bin/puppet agent", parent=1, start=1)
    fork = Writer(20, 0, command="puppet agent: applying configuration", parent=10, start=2)
    tool = Writer(30, 0, command="sed -i x", parent=20, start=3)
    monkeypatch.setattr(runs, "chain", lambda writer: iter([tool, fork, daemon]))
    assert Runs().owner(tool).run == "puppet#20.2"
    nightly = Writer(11, 0, command="/usr/bin/python3 /usr/bin/unattended-upgrade", parent=1, start=1)
    dpkg = Writer(21, 0, command="dpkg --configure -a", parent=11, start=2)
    monkeypatch.setattr(runs, "chain", lambda writer: iter([Writer(31, 0, parent=21, start=4), dpkg, nightly]))
    assert Runs().owner(Writer(31, 0, parent=21, start=4)).run == "unattended-upgrade#11.1"


def test_the_first_rule_that_fits_holds() -> None:
    writer = Writer(os.getpid(), 0, command="apt-get update")
    rules = [WriterRule(command="apt*", then="hold"), WriterRule(command="apt-get", then="commit")]
    assert Runs(rules).owner(writer).then == "hold"
    assert Runs(rules[::-1]).owner(writer).then == "commit"
    changed = Runs(rules)
    assert changed.owner(writer).then == "hold"
    changed.use(rules[1:])
    assert changed.owner(writer).then == "commit"


@pytest.mark.invariant("O5")
def test_the_end_of_a_run_is_told() -> None:
    script = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        ["puppet", "-c", script], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tool:
        assert tool.stdout is not None and tool.stdout.readline() == b"ready\n"
        seen = Runs([WriterRule(command="puppet", user="*", then="commit")])
        writer = resolve(tool.pid)
        assert writer is not None
        run = seen.owner(writer).run
        assert run == f"puppet#{tool.pid}.{writer.start}" and seen.drain() == []
        tool.communicate()
    import select

    assert select.select([seen.fileno()], [], [], 10)[0]
    assert seen.drain() == [run] and seen.drain() == []
    seen.close()


@pytest.mark.invariant("O5")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_a_caller_lets_a_set_uid_program_say_of_itself_counts_for_nothing(tmp_path: Path) -> None:
    """``exec -a puppet sudo sysctl``: sudo is root's process, and its name and environment are the caller's."""
    plain, lent = tmp_path / "plain", tmp_path / "lent"
    for path, mode in ((plain, 0o755), (lent, 0o4755)):
        shutil.copyfile("/bin/sleep", path)
        path.chmod(mode)
    rules = [WriterRule(command="puppet", then="commit"), WriterRule(user="root", then="job")]
    said = []
    for path in (plain, lent):
        with subprocess.Popen(["puppet", "60"], executable=path, env={"SLURM_JOB_ID": "7"}) as process:
            try:
                while not Path(f"/proc/{process.pid}/environ").read_bytes():
                    time.sleep(0.001)
                writer = resolve(process.pid)
                assert writer is not None and writer.command == "puppet 60"
                said += [Runs([rule]).owner(writer).then for rule in rules]
            finally:
                process.kill()
    assert said[:2] == ["commit", "job:7"] and "commit" not in said[2:] and said[3] != "job:7"


def test_the_way_to_init_ends_and_takes_no_other_process_for_a_parent() -> None:
    me = resolve(os.getpid())
    assert me is not None and me.parent == os.getppid() and me.start > 0
    way = list(chain(me))
    assert [w.pid for w in way][:2] == [os.getpid(), os.getppid()] and way[-1].parent <= 1
    later = Writer(os.getpid(), 0, parent=os.getppid(), start=1)
    assert list(chain(later)) == [later], "a parent that began later is another process"


def job_of_child(job: str) -> str:
    """What the environment of a new process says, when its program has begun."""
    with subprocess.Popen(["sleep", "60"], env={"SLURM_JOB_ID": job}) as sleeper:
        try:
            while not Path(f"/proc/{sleeper.pid}/environ").read_bytes():
                time.sleep(0.001)
            return job_in_environment(sleeper.pid)
        finally:
            sleeper.kill()


def test_a_job_is_found_in_cgroup_and_environment() -> None:
    assert job_of("/system.slice/slurmstepd.scope/job_71/step_0/user/task_0") == "71" and job_of("/x") == ""
    assert job_of_child("72") == "72" and job_of_child("7 2\n") == ""
    assert job_in_environment(1 << 22) == ""


@pytest.mark.invariant("O5")
@pytest.mark.parametrize(
    ("above", "below", "covers"),
    [
        ({"unit": "puppet.service"}, {"unit": "puppet.service"}, True),
        ({"unit": "*"}, {"unit": "puppet*"}, True),
        ({"unit": "puppet*"}, {"unit": "puppet.service"}, True),
        ({"unit": "puppet.service"}, {"unit": "puppet*"}, False),
        ({"unit": "puppet*"}, {"unit": "*.service"}, False),
        ({"unit": "puppet*"}, {"unit": "puppet.service", "user": "root"}, True),
        ({"unit": "puppet*", "user": "root"}, {"unit": "puppet.service"}, False),
        ({"command": "apt*"}, {"command": "apt-get"}, True),
        ({"command": "apt*"}, {"command": "apt-get install x"}, False),
        ({"command": "apt-get *"}, {"command": "apt-get install x"}, True),
        ({"command": "apt*"}, {"command": "apt-get", "user": "ann"}, False),
        ({"command": "apt*", "user": "*"}, {"command": "apt-get", "user": "ann"}, True),
        ({"command": "apt*", "user": "*"}, {"command": "apt-get"}, False),
        ({"user": "root"}, {"command": "apt"}, False),
        ({"cgroup": "*"}, {"cgroup": "/a/b"}, True),
    ],
)
def test_a_rule_that_describes_all_writers_of_another_covers_it(
    above: dict[str, str], below: dict[str, str], covers: bool
) -> None:
    assert WriterRule(**above).covers(WriterRule(**below)) is covers
