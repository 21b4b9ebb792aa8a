"""A real Slurm in a world: munged, slurmctld and slurmd from the distribution's packages, with a directory, a network and a
host name of their own. Nothing of the machine's Slurm is used; all is ended by pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness import Done, World, wait_until

NODE = "n690"  # one that drains first of all (``drains.SPREAD_NS``)
ADDRESS = "10.66.0.1"
NEEDED = ("slurmctld", "slurmd", "scontrol", "munged")
CONF = """\
ClusterName=pact
SlurmctldHost={node}({address})
SlurmUser=slurm
SlurmctldPort=17001
SlurmdPort=17002
AuthInfo=socket={top}/munge/s
CredType=cred/munge
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/state/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/state/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
Prolog={top}/prolog
Epilog={top}/epilog
MessageTimeout=3
SlurmdTimeout=0
KillWait=1
MinJobAge=2
ReturnToService=0
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
NodeName={node} NodeAddr={address} CPUs=8 RealMemory=512 State=UNKNOWN
PartitionName=p Nodes={node} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def become(user: str) -> list[str]:
    """The beginning of a command line that runs as this account."""
    entry = pwd.getpwnam(user)
    if entry.pw_uid == 0:
        return []
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--"]


class Slurm:
    """One controller with one node, in the namespaces of ``world``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.top = Path(tempfile.mkdtemp(prefix="pact-slurm-", dir="/tmp"))
        self.top.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen[Any]] = {}
        for name, owner in (("munge", "munge"), ("state", "slurm"), ("spool", "root"), ("out", "nobody")):
            (self.top / name).mkdir()
            shutil.chown(self.top / name, owner)
        (self.top / "munge" / "key").write_bytes(os.urandom(1024))
        shutil.chown(self.top / "munge" / "key", "munge", "munge")
        (self.top / "munge" / "key").chmod(0o400)
        (self.top / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {NODE}\n")
        (self.top / "slurm.conf").write_text(CONF.format(top=self.top, node=NODE, address=ADDRESS))
        self.script("prolog", "exit 0")
        self.script("epilog", "exit 0")
        # Slurm resolves names only where an address that is not loopback's is configured.
        world.sh(
            f"ip link set lo up; ip link add pact0 type veth peer name pact1; ip addr add {ADDRESS}/24 dev pact0;"
            f" ip link set pact0 up; ip link set pact1 up; mount --bind {self.top}/hosts /etc/hosts"
        )
        world.env["SLURM_CONF"] = str(self.top / "slurm.conf")
        self._start_munge()
        self.start("slurmctld")
        self.start("slurmd")
        wait_until(lambda: "idle" in self.state(), f"the node is idle: {self.log()}", 30)

    # -- daemons --------------------------------------------------------------------------------------------------

    def _start_munge(self) -> None:
        where = self.top / "munge"
        files = [f"--{name}={where}/{file}" for name, file in FILES.items()]
        self.daemons["munged"] = self._popen("munge", ["munged", "--foreground", *files])
        wait_until((where / "s").exists, "munged listens")

    def start(self, name: str) -> None:
        who = "slurm" if name == "slurmctld" else "root"
        self.daemons[name] = self._popen(who, [name, "-D"])

    def _popen(self, user: str, command: list[str]) -> subprocess.Popen[Any]:
        who = become(user)
        named = ["unshare", "--uts", "sh", "-c", f'hostname {NODE}; exec "$@"', "sh", *who, *command]
        return self.world.popen(named, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.daemons.pop(name)
        process.send_signal(number)
        process.wait(20)
        self.world.end(process)

    def steps(self) -> list[str]:
        """The daemons of steps that run. (``scontrol listpids`` waits for ten seconds where the host has another name.)"""
        listed = self.call("ps", "-e", "-o", "args").out.splitlines()
        return [line for line in listed if line.startswith("slurmstepd: [")]

    def quiet(self) -> None:
        """No job is left: a step's daemon would outlive the node's."""
        for job in self.call("squeue", "-h", "-t", "PD,R,S,CF", "-o", "%A", check=False).out.split():
            self.cancel(job)
        wait_until(lambda: not self.steps(), "all steps have ended")

    def close(self) -> None:
        self.quiet()
        for name in list(self.daemons):
            self.stop(name, signal.SIGKILL if name == "slurmctld" else signal.SIGTERM)
        shutil.rmtree(self.top, ignore_errors=True)

    def shown(self) -> str:
        """For messages."""
        return self.call("squeue", "-t", "all", check=False).out + self.node() + "\n".join(self.steps())

    def log(self) -> str:
        files = [self.top / "state" / "slurmctld.log", self.top / "slurmd.log"]
        return "\n".join(f.read_text(errors="replace")[-3000:] for f in files if f.exists())

    # -- what an administrator and a user do -----------------------------------------------------------------------

    def script(self, name: str, text: str) -> None:
        """The site's prolog or epilog."""
        new = self.top / f"{name}.new"
        new.write_text(f"#!/bin/sh\n{text}\n")
        new.chmod(0o755)
        new.rename(self.top / name)

    def call(self, *command: str, check: bool = True, user: str = "root") -> Done:
        who = become(user)
        return self.world.call([*who, *command], check=check)

    def submit(self, script: str, *options: str, user: str = "root") -> str:
        """A batch job. Returns its number."""
        wrap = [
            "sbatch",
            "--parsable",
            "--no-requeue",
            "-D",
            "/",
            "-o",
            f"{self.top}/out/%j",
            *options,
            f"--wrap={script}",
        ]
        return self.call(*wrap, user=user).out.strip()

    def cancel(self, job: str) -> None:
        self.call("scancel", job, check=False)

    def finished(self, job: str) -> None:
        listed = ["squeue", "-h", "-t", "PD,R,S,CF,CG", "-o", "%A"]
        wait_until(lambda: job not in self.call(*listed, check=False).out.split(), f"job {job} is done", 20)

    def node(self) -> str:
        return self.call("scontrol", "-o", "show", "node", NODE).out

    def state(self) -> str:
        return self.call("sinfo", "-h", "-n", NODE, "-o", "%T %E", check=False).out.strip()

    def update(self, *words: str) -> None:
        self.call("scontrol", "update", f"nodename={NODE}", *words)


FILES = {"socket": "s", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
