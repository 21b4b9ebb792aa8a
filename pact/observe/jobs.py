"""Which job of a batch system a process belongs to: batch systems write it into cgroups, environments, and the titles
of the daemons that watch over a step. Reads nothing but /proc.

What a process says of itself counts only for root's: any account may run a program of any name, and who could say that
he is another's job could have that job blamed, or ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pact._fast.reader import snapshot
from pact.core.node.writers import JOB_NAME as NAME

#: Batch systems write the job's number into the path of the cgroup.
CGROUPS: Final = (
    # Slurm's plugins cgroup/v2 (with the node's name before it where one machine has several) and cgroup/v1.
    re.compile(r"(?:slurmstepd\.scope|/slurm[^/]*/uid_\d+)/job_(\d+)(?:/|$)"),
    re.compile(r"/pbs_jobs\.service/jobid/([^/]+)"),  # PBS
    re.compile(r"/lsf/[^/]+/job\.(\d+)"),  # LSF
    re.compile(r"/sge[^/]*/(\d+)\.\d+"),  # Grid Engine
)
#: Below here users make cgroups of any name.
USERS: Final = "/user.slice/"
#: And into the environment of prologs, epilogs and jobs.
VARIABLES: Final = (b"SLURM_JOB_ID", b"SLURM_JOBID", b"PBS_JOBID", b"LSB_JOBID")
#: Slurm's daemon of one step writes this over its command line: ``slurmstepd: [4711.batch]``.
STEP_TITLE: Final = re.compile(r"slurmstepd: \[(\d+)[.+][^\]]*\]")
ENVIRON_MAX: Final = 1 << 20
TITLE_MAX: Final = 256
DEPTH_MAX: Final = 64
PROCESSES_MAX: Final = 1 << 20


def job_of(cgroup: str) -> str:
    """The job whose cgroup this path is; ``""`` for none."""
    if cgroup.startswith(USERS):
        return ""
    for pattern in CGROUPS:
        match = pattern.search(cgroup)
        if match:
            return match[1]
    return ""


def job_in_environment(pid: int) -> str:
    """The job that a process was started with; ``""`` for none, or if it is gone. The process itself says it: it counts
    only for root's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            entries = f.read(ENVIRON_MAX).split(b"\0")
    except OSError:
        return ""
    found = dict(entry.partition(b"=")[::2] for entry in entries)
    for name in VARIABLES:
        text = found.get(name, b"").decode(errors="replace")
        if NAME.fullmatch(text):
            return text
    return ""


def job_of_title(command: str) -> str:
    """The job in the title of a step's daemon; ``""`` for none. It counts only for root's."""
    match = STEP_TITLE.match(command)
    return match[1] if match else ""


def job_above(pid: int) -> str:
    """The job of the step's daemon that this process descends from; ``""`` for none. For nodes where the batch system
    uses no cgroups.  # F5"""
    for _ in range(DEPTH_MAX):
        found = snapshot(pid) if pid > 1 else None
        if found is None:
            return ""
        uid, euid, command = found[0], found[1], found[5]
        if uid == euid == 0 and (job := job_of_title(command.partition(b"\0")[0].decode(errors="replace"))):
            return job
        pid = found[7]
    return ""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of root's: ``title`` is the beginning of its command line."""

    pid: int
    parent: int
    name: str
    title: str


def of_root() -> Iterator[Process]:
    """The processes whose real and effective user is root, without threads of the kernel."""
    for entry in os.listdir("/proc")[:PROCESSES_MAX]:
        if not entry.isdigit():
            continue
        try:
            if os.stat(f"/proc/{entry}").st_uid != 0:  # cheap; root's for others' processes that may not be looked into
                continue
            with open(f"/proc/{entry}/status", "rb") as f:
                status = f.read(1024)
            if not re.search(rb"^Uid:\t0\t0\t0\t", status, re.MULTILINE):
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as f:
                title = f.read(TITLE_MAX)
        except OSError:
            continue
        parent = re.search(rb"^PPid:\t(\d+)", status, re.MULTILINE)
        name = status.partition(b"\n")[0].removeprefix(b"Name:\t")
        if title and parent:
            first = title.partition(b"\0")[0]
            yield Process(int(entry), int(parent[1]), name.decode(errors="replace"), first.decode(errors="replace"))
