"""What pact starts on a machine that systemd runs lives apart from the agent's own unit.

The machine is booted once for this file.
"""

from __future__ import annotations

import pytest
from harness import wait_until
from systemd_kit import TOOLS, Machine, NodeAgent

pytestmark = pytest.mark.needs(*TOOLS)


def write(machine: Machine, path: str, text: str) -> str:
    """A program of root's."""
    machine.path(path).parent.mkdir(parents=True, exist_ok=True)
    machine.path(path).write_text(f"#!/bin/sh\n{text}")
    machine.path(path).chmod(0o755)
    return path


def pid_of(machine: Machine, words: str) -> str:
    return str(machine.sh(f"pgrep -xf '{words}'", check=False).out.strip())


def apart(node: NodeAgent, machine: Machine, words: str) -> None:
    """It outlives the agent, with nothing of what the agent's unit takes away."""
    pid = pid_of(machine, words)
    assert pid, machine.sh("ps axf").out
    group = machine.sh(f"cat /proc/{pid}/cgroup").out
    assert "pact-command-" in group and node.unit not in group
    assert "NoNewPrivs:\t0" in machine.sh(f"grep NoNewPrivs /proc/{pid}/status").out
    assert machine.sh(f"cat /proc/{pid}/oom_score_adj").out == "0\n"
    node.stop()
    node.start()
    assert pid_of(machine, words) == pid
    machine.sh(f"kill -9 {pid}")


@pytest.fixture(scope="module", autouse=True)
def confined(machines_agent: NodeAgent) -> None:
    """The agent's unit has limits of its own, as the packaged one."""
    machines_agent.stop()
    machines_agent.properties = ["NoNewPrivileges=yes", "OOMScoreAdjust=-900"]
    machines_agent.start()


def test_a_daemon_that_a_command_has_started_outlives_the_agent(node: NodeAgent, machine: Machine) -> None:
    observe = write(machine, "/opt/tests/observe", "pgrep -xf 'sleep 7791' > /dev/null && echo up || echo down\n")
    begins = "setsid sleep 7791 > /dev/null 2>&1 &\nuntil pgrep -xf 'sleep 7791' > /dev/null; do sleep 0.02; done\n"
    restore = write(machine, "/opt/tests/restore", begins)
    node.declare(f'[command.daemon]\nobserve = ["{observe}"]\nstate = "up"\nrestore = ["{restore}"]\nevery = "1s"\n')
    node.drifted("command:daemon")
    node.pact("rollback", "--all")
    apart(node, machine, "sleep 7791")


def test_words_and_scripts_reach_the_program_as_they_are_written(node: NodeAgent, machine: Machine) -> None:
    """systemd would read variables in them."""
    said = "/run/said"
    script = f'a=7; echo \\"$a ${{a}} $$ %n %% $HOME\\" > {said}'
    node.declare(
        f'[command.said]\nshell = true\nobserve = "test -s {said} && echo said || echo no"\nstate = "said"\n'
        f'restore = "{script}"\n'
    )
    node.drifted("command:said")
    node.pact("rollback", "--all")
    first, second, shell, *rest = machine.sh(f"cat {said}").out.split()
    assert (first, second, rest) == ("7", "7", ["%n", "%%", "/"]) and shell.isdigit()


def test_a_restore_that_fails_or_takes_too_long_is_said_and_nothing_of_it_is_left(
    node: NodeAgent, machine: Machine
) -> None:
    fails = write(machine, "/opt/tests/fails", "echo it is broken >&2; exit 7\n")
    hangs = write(machine, "/opt/tests/hangs", "sleep 7792 & setsid sleep 7793 & sleep 7794\n")
    for name, program, why in (
        ("fails", fails, "ended with 7: it is broken"),
        ("hangs", hangs, "did not end within 2 s, and was killed"),
    ):
        machine.sh(f"echo bad > /run/{name}")
        node.declare(
            f'[command.{name}]\nobserve = ["cat", "/run/{name}"]\nstate = "good"\n'
            f'restore = ["{program}"]\ntimeout = "2s"\nevery = "1s"\n'
        )
        node.drifted(f"command:{name}")
        done = node.pact("rollback", f"command:{name}", check=1)
        assert why in done.out + done.err, done
        machine.sh(f"echo good > /run/{name}")
        node.settled(f"command:{name}")
    for number in (7792, 7793, 7794):
        assert not pid_of(machine, f"sleep {number}")
    listed = ("list-units", "--all", "--no-legend", "pact-command-*")  # systemd lets them go a moment later
    wait_until(lambda: not machine.systemctl(*listed).out.strip(), "no unit is left", 15)


def test_a_daemon_with_a_pid_file_outlives_the_agent(node: NodeAgent, machine: Machine) -> None:
    start = write(machine, "/opt/tests/start", "sleep 7795 & echo $! > /run/sleeps.pid\n")
    node.declare(
        f'[service.sleeps]\nbackend = "process"\nstate = "running"\nstart = ["{start}"]\npidfile = "/run/sleeps.pid"\n'
    )
    wait_until(lambda: pid_of(machine, "sleep 7795"), "it was started by the declaration")
    apart(node, machine, "sleep 7795")
