"""A real service is told that what it reads was restored, and a command is run for it."""

from __future__ import annotations

import signal
import time
import uuid

import pytest
from harness import wait_until
from systemd_kit import TOOLS, Machine, NodeAgent

pytestmark = pytest.mark.needs(*TOOLS)

CONF = "/etc/tests.conf"
#: Counts its starts and its reloads.
DAEMON = "ExecStartPre=/bin/sh -c 'echo start >> /run/told'\nExecReload=/bin/sh -c '{reload}'\n"


def daemon(
    node: NodeAgent, machine: Machine, name: str, reload: str = "echo reload >> /run/told", more: str = ""
) -> None:
    machine.service(name, "/bin/sleep 86400", DAEMON.format(reload=reload) + more)
    machine.systemctl("start", name)
    machine.sh("rm -f /run/told")


def told(machine: Machine) -> list[str]:
    """Since the last time."""
    return machine.sh("cat /run/told 2>/dev/null; rm -f /run/told", check=False).out.split()


def declared(node: NodeAgent, machine: Machine, *notify: str, more: str = "") -> None:
    """A file that is read; then somebody changes it."""
    listed = ", ".join(f'"{n}"' for n in notify)
    node.declare(f'[file."{CONF}"]\ncontent = "declared\\n"\nnotify = [{listed}]\n{more}')
    told(machine)
    machine.sh(f"echo drifted > {CONF}")
    node.drifted(f"file:{CONF}")


@pytest.mark.invariant("R14")
def test_a_service_is_reloaded_after_its_file_was_restored(node: NodeAgent, machine: Machine) -> None:
    daemon(node, machine, "reads")
    declared(node, machine, "service:reads reload")
    node.pact("rollback", "--all")
    assert told(machine) == ["reload"] and machine.sh(f"cat {CONF}").out == "declared\n"
    declared(node, machine, "service:reads restart")
    node.pact("rollback", "--all")
    assert told(machine) == ["start"]


@pytest.mark.invariant("R14")
def test_a_service_that_does_not_run_is_not_started_by_it(node: NodeAgent, machine: Machine) -> None:
    daemon(node, machine, "idle")
    machine.systemctl("stop", "idle")
    for verb in ("reload", "restart", "reload-or-restart"):
        declared(node, machine, f"service:idle {verb}")
        node.pact("rollback", "--all")
        assert told(machine) == [] and machine.state("idle") == "inactive"


@pytest.mark.invariant("R14")
def test_a_reload_that_fails_leaves_the_change_failed(node: NodeAgent, machine: Machine) -> None:
    daemon(node, machine, "refuses", "exit 3")
    declared(node, machine, "service:refuses reload")
    out = node.pact("rollback", "--all", check=1).out
    assert "restored, but service:refuses reload failed" in out, out
    (change,) = node.status()["changes"]
    assert change["state"] == "failed" and machine.sh(f"cat {CONF}").out == "declared\n"
    node.pact("commit", "--all", "-m", "it was restarted by hand")


@pytest.mark.invariant("R14", "F5")
def test_who_uses_a_service_blocks_the_restart_that_a_plan_would_make(node: NodeAgent, machine: Machine) -> None:
    daemon(node, machine, "used")
    machine.service("used", "/bin/sh -c 'sleep 7781 & exec sleep 86400'")
    machine.systemctl("restart", "used")
    declared(node, machine, "service:used restart")
    blocked = node.pact("rollback", "--all", check=10)
    assert "service:used" in blocked.err and machine.sh(f"cat {CONF}").out == "drifted\n"
    node.declare(
        f'[file."{CONF}"]\ncontent = "declared\\n"\nnotify = ["service:used restart"]\nconsumers = ["none"]\n', "--take"
    )
    assert machine.sh(f"cat {CONF}").out == "declared\n"


@pytest.mark.invariant("R14")
def test_a_command_is_run_and_unit_files_are_read_again(node: NodeAgent, machine: Machine) -> None:
    daemon(node, machine, "around")
    run = '[command.built]\nobserve = ["true"]\nstate = ""\nrestore = ["/bin/sh", "-c", "echo built >> /run/told"]\n'
    declared(node, machine, "command:built", "service:around daemon-reload", "service:around reload", more=run)
    node.pact("rollback", f"file:{CONF}")
    assert told(machine) == ["built", "reload"]


def test_adopt_proposes_whom_to_notify(node: NodeAgent, machine: Machine) -> None:
    machine.sh(f"echo x > {CONF}")
    machine.service("argued", "/bin/sleep 86400", f"EnvironmentFile=-{CONF}\n")
    notes = node.json("adopt", f"file:{CONF}", "file:/etc/systemd/system/argued.service")["notes"]
    said = "\n".join(notes)
    assert f'file:{CONF} is read by a service: declare it with notify = ["service:argued restart"]' in said, notes
    assert 'notify = ["service:argued daemon-reload"]' in said, notes


@pytest.mark.invariant("R14", "B1")
@pytest.mark.parametrize("stop", ["", "ExecStop=/bin/sleep 2\n"])
def test_a_unit_that_waits_for_the_agent_is_told_without_being_waited_for(
    node: NodeAgent, machine: Machine, stop: str
) -> None:
    """Whoever waited for its job would wait until the limit: the job begins when the agent is ready. Stopping, the first
    half of it, waits for nobody."""
    daemon(node, machine, "later", more=stop)
    node.declare('[sysctl]\n"net.core.somaxconn" = {value = 4321, notify = ["service:later restart"]}\n')
    told(machine)
    node.stop(signal.SIGKILL)
    machine.sh("echo 99 > /proc/sys/net/core/somaxconn")
    boot_id = "/proc/sys/kernel/random/boot_id"  # the machine's own: below it, and after that on it, is another one
    machine.sh(f"umount {boot_id} || {{ echo {uuid.uuid4()} > /run/boot_id && mount --bind /run/boot_id {boot_id}; }}")
    node.properties = ["Type=notify", "Before=later.service", "TimeoutStartSec=120"]
    try:
        began = time.monotonic()
        node.start()
        took = time.monotonic() - began
    finally:
        node.properties = []
    assert machine.sh("cat /proc/sys/net/core/somaxconn").out == "4321\n"
    wait_until(lambda: machine.state("later") == "active" and told(machine) == ["start"], "it is restarted afterwards")
    converged = node.newest("converged")["data"]
    assert converged["cause"] == "boot" and not converged.get("failed"), converged
    assert took < 60, "a plan's jobs have 75 s"
