"""Who uses what: real processes, the operator's rules, jobs, and holders that cannot be named."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pact.agent import consumers
from pact.agent.consumers import HOLDERS_MAX, cgroup_of, find_holders, job_of
from pact.agent.scheduler_slurm import _in_cgroups
from pact.core.plan import Step
from pact.model import Attrs, encode_name
from pact.observe.jobs import of_root
from pact.resources import KINDS

pytestmark = pytest.mark.invariant("F5")


def step(path: Path, *rules: str) -> Step:
    name = encode_name(os.fsencode(path))
    seen = KINDS["file"].observe(name)
    assert isinstance(seen, dict)
    return Step(f"file:{name}", None, seen, (), rules)


@contextmanager
def running(*command: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(list(map(str, command)), **options)
    wanted = os.path.basename(str(command[0]))[:15]
    end = time.monotonic() + 5
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != wanted:
        assert time.monotonic() < end
        time.sleep(0.002)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_text("x")
    return path


def test_nobody_uses_a_file_that_nobody_uses(file: Path) -> None:
    assert find_holders([step(file)]) == []


def test_a_reader_is_named_with_user_command_and_cgroup(file: Path) -> None:
    with file.open() as f, running("sleep", 60, stdin=f) as process:
        (holder,) = [h for h in find_holders([step(file)]) if h.pid == process.pid]
    assert holder.how == "fd"
    assert holder.path == str(file)
    assert holder.command == "sleep 60"
    assert holder.uid == os.getuid()
    assert holder.resource == f"file:{file}"
    assert holder.cgroup


def test_hostile_commands_are_printable(file: Path) -> None:
    with (
        file.open() as f,
        running("sh", "-c", "read x", "\x1b[31m\nred\u202e", stdin=subprocess.PIPE, stdout=f) as process,
    ):
        (holder,) = [h for h in find_holders([step(file)]) if h.pid == process.pid]
        assert process.stdin
        process.stdin.close()
    assert holder.command.isprintable()


def test_all_resources_of_a_plan_are_looked_for_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / n for n in "abc"]
    for path in paths:
        path.write_text("x")
    with paths[0].open() as one, paths[2].open() as two, running("sleep", 60, stdin=one, stdout=two) as process:
        found = {h.resource for h in find_holders(map(step, paths)) if h.pid == process.pid}
    assert found == {f"file:{paths[0]}", f"file:{paths[2]}"}


def test_what_is_below_a_directory_uses_it(tmp_path: Path) -> None:
    top = tmp_path / "d"
    (top / "e").mkdir(parents=True)
    with running("sleep", 60, cwd=top / "e") as process:
        assert (process.pid, "cwd") in {(h.pid, h.how) for h in find_holders([step(top)])}


def test_exec_rules_name_programs_by_executable_or_by_their_own_name(tmp_path: Path, file: Path) -> None:
    program = tmp_path / "slurmstepd"
    shutil.copy("/bin/sleep", program)
    with running(program, 60) as process:
        for rules in (("exec:slurmstepd",), ("exec:other", "exec:slurmstepd")):
            (holder,) = find_holders([step(file, *rules)])
            assert (holder.pid, holder.how, holder.path) == (process.pid, "exec", "slurmstepd")
        assert find_holders([step(file, "exec:slurm")]) == []
    assert find_holders([step(file, "exec:slurmstepd")]) == []


def test_cgroup_rules_name_every_process_of_a_cgroup(file: Path) -> None:
    with running("sleep", 60) as process:
        pattern = cgroup_of(process.pid)
        assert process.pid in {h.pid for h in find_holders([step(file, f"cgroup:{pattern}")])}
        assert find_holders([step(file, "cgroup:/no/such/*")]) == []


def test_rules_replace_the_question_who_has_it_open_and_none_asks_nobody(file: Path) -> None:
    with file.open() as f, running("sleep", 60, stdin=f) as process:
        assert find_holders([step(file, "none")]) == []
        assert find_holders([step(file, "exec:nothing-like-it")]) == []
        assert process.pid in {h.pid for h in find_holders([step(file, "open", "exec:nothing-like-it")])}


@pytest.mark.parametrize(
    ("path", "job"),
    [
        ("/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0", "4711"),
        ("/slurm/uid_1000/job_42", "42"),
        ("/slurm_n001/uid_0/job_42/step_batch/task_0", "42"),
        ("/system.slice/n001_slurmstepd.scope/job_7/step_extern/user", "7"),
        ("/system.slice/slurmstepd.scope/system", ""),
        ("/system.slice/slurmstepd.scope/job_7/step_0/user/task_0/slurmstepd.scope/job_8", "7"),
        ("/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_4711", ""),
        ("/system.slice/other.service/job_4711", ""),
        ("/pbs_jobs.service/jobid/123.server", "123.server"),
        ("/lsf/cluster1/job.987.1.2/x", "987"),
        ("/lsf/cluster1/job.987", "987"),
        ("/sge/345.1", "345"),
        ("/user.slice/user-1000.slice", ""),
        ("/job_x", ""),
        ("", ""),
    ],
)
def test_jobs_are_read_from_cgroups(path: str, job: str) -> None:
    assert job_of(path) == job


@pytest.fixture
def cgroups() -> Iterator[Callable[[str], Path]]:
    """Makes a cgroup below one of this test's, in the hierarchy that is here."""
    tops = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup")
    top = next((Path(t) for t in tops if os.access(f"{t}/cgroup.procs", os.W_OK)), None)
    if top is None:
        pytest.skip("no cgroups can be made here")
    made: list[Path] = []

    def make(name: str) -> Path:
        path = top / f"pacttest{os.getpid()}"
        for part in (".", *name.split("/")):
            path /= part
            if not path.exists():
                path.mkdir()
                made.append(path)
        return path

    yield make
    for path in reversed(made):
        path.rmdir()


@pytest.mark.root
@pytest.mark.parametrize(
    "name", ["system.slice/slurmstepd.scope/job_4711/step_0/user/task_0", "slurm_n001/uid_65534/job_4711/step_0/task_0"]
)
def test_a_process_in_a_step_s_cgroup_is_named_with_its_job(
    name: str, cgroups: Callable[[str], Path], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm's plugins cgroup/v2 and cgroup/v1 name them; and as long as a process is there the job runs."""
    where = cgroups(name)
    job = where
    while not job.name.startswith("job_"):
        job = job.parent
    monkeypatch.setattr("pact.agent.scheduler_slurm.V2", f"{job.parent}/job_*")
    monkeypatch.setattr("pact.agent.scheduler_slurm.V1", f"{job.parent}/job_*")
    with file.open() as f, running("sleep", 60, stdin=f) as process:
        (where / "cgroup.procs").write_text(str(process.pid))
        (holder,) = find_holders([step(file)])
        assert (holder.pid, holder.job) == (process.pid, "4711")
        assert _in_cgroups() == {"4711"}
    wait_until(lambda: _in_cgroups() == set())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def below_a_step(file: Path, title: str, *who: str) -> Iterator[int]:
    """A process that holds the file, and whose parent has this title, as setproctitle would write it."""
    script = f"""exec -a '{title}' bash -c 'sleep 60 < "$0" & echo $!; wait' {file}"""
    with subprocess.Popen([*who, "bash", "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            yield pid
        finally:
            os.kill(pid, 9)
            parent.wait()


@pytest.mark.root
@pytest.mark.parametrize(
    ("title", "job"),
    [
        ("slurmstepd: [4711.batch]", "4711"),
        ("slurmstepd: [4711.0]", "4711"),
        ("slurmstepd: [4711+1.extern]", "4711"),
        ("slurmstepd: [x.0]", ""),
        ("slurmstepd", ""),
        ("my slurmstepd: [4711.0]", ""),
    ],
)
def test_without_cgroups_the_title_of_the_step_s_daemon_names_the_job(title: str, job: str, file: Path) -> None:
    with below_a_step(file, title) as pid:
        wait_until(lambda: {h.job for h in find_holders([step(file)]) if h.pid == pid} == {job})


@pytest.mark.root
@pytest.mark.invariant("S1")
def test_who_calls_himself_another_s_step_is_not_named_so(tmp_path: Path, file: Path) -> None:
    """Nor by his environment: who could say that would have another's job ended."""
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    who = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "SLURM_JOB_ID=4711")
    with below_a_step(file, "slurmstepd: [4711.0]", *who) as pid:
        wait_until(lambda: {h.job for h in find_holders([step(file)]) if h.pid == pid} == {""})
        assert not [p for p in of_root() if p.title.startswith("slurmstepd: [4711")]


def test_a_holder_that_cannot_be_named_counts_as_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says busy, and /proc shows nobody: as with a descriptor in flight between processes."""
    monkeypatch.setattr(consumers, "_scan", lambda wanted: ([], False))
    with file.open():
        (holder,) = find_holders([step(file)])
    assert (holder.pid, holder.how, holder.path) == (0, "unknown", "the kernel says it is in use")


def test_the_list_of_holders_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pact.model import Holder

    many = [Holder(f"file:{file}", 0, "fd", str(n)) for n in range(HOLDERS_MAX * 2)]
    monkeypatch.setattr(consumers, "_scan", lambda wanted: (many, False))
    with file.open():
        assert len(find_holders([step(file)])) == HOLDERS_MAX


def test_what_is_absent_or_only_a_value_has_no_users() -> None:
    attrs: Attrs = {"value": "1"}
    assert find_holders([Step("file:/nonexistent", {"type": "file"}, None)]) == []
    assert find_holders([Step("sysctl:vm.swappiness", attrs, {"value": "2"})]) == []


def test_a_holder_is_named_with_its_start_so_that_another_with_its_number_is_not_it() -> None:
    from pact.agent import views
    from pact.core.node.events import Caller
    from pact.model import Actor, Holder, Owner

    root = Caller(Actor("root", 0, "admin", "socket"), Owner("uid:0", "root", 0))
    mine = consumers.describe(Holder("file:/x", os.getpid(), "fd"))
    assert mine.start == consumers.started_at(os.getpid()) and Holder.from_json(mine.to_json()) == mine
    again, old = replace(mine, start=mine.start - 1), replace(mine, start=0)  # as versions before this one wrote it
    assert ["gone" in h for h in views.holders_for(root, [mine, again, old])] == [False, True, False]
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert consumers.started_at(ended.pid) is None, "it has ended, and waits for its parent"
    ended.wait()
