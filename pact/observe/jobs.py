"""Which job of a batch system a process belongs to: batch systems write it into cgroups and environments. Reads nothing
but /proc.
"""

from __future__ import annotations

import re
from typing import Final

#: Batch systems write the job's number into the path of the cgroup.
CGROUPS: Final = (
    re.compile(r"/job_(\d+)(?:/|$)"),  # Slurm
    re.compile(r"/pbs_jobs\.service/jobid/([^/]+)"),  # PBS
    re.compile(r"/lsf/[^/]+/job\.(\d+)"),  # LSF
    re.compile(r"/sge[^/]*/(\d+)\.\d+"),  # Grid Engine
)
#: And into the environment of prologs, epilogs and jobs.
VARIABLES: Final = (b"SLURM_JOB_ID", b"SLURM_JOBID", b"PBS_JOBID", b"LSB_JOBID")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\[\]-]{0,127}")
ENVIRON_MAX: Final = 1 << 20


def job_of(cgroup: str) -> str:
    """The job whose cgroup this path is; ``""`` for none."""
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
