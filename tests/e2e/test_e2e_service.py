"""Services of a real systemd, watched by a real agent that is a unit of it.

The machine is booted once for this file. What a test does to it, the units of that test alone bear.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import pytest
from harness import wait_until
from systemd_kit import TOOLS, Machine, NodeAgent

pytestmark = pytest.mark.needs(*TOOLS)


def running(machine: Machine, name: str, run: str = "/bin/sleep 86400", more: str = "") -> str:
    """A service that is enabled and runs."""
    machine.service(name, run, more)
    machine.systemctl("enable", "--now", name)
    return f"service:{name}"


def actual(node: NodeAgent, resource: str) -> Any:
    return next(r["actual"] for r in node.json("diff")["resources"] if r["id"] == resource)


def committed(node: NodeAgent) -> None:
    wait_until(lambda: node.status()["state"] == "committed", "it is as declared")


# -- seen, and rolled back ----------------------------------------------------------------------------------------


def test_a_stopped_service_is_seen_by_its_signal_and_started_again(node: NodeAgent, machine: Machine) -> None:
    assert node.adopt(running(machine, "alpha"))["adopted"] == 1
    machine.systemctl("stop", "alpha")
    node.drifted("service:alpha")
    (shown,) = node.json("diff")["resources"]
    assert shown["declared"] == {"state": "running", "enabled": True, "masked": False}
    assert shown["actual"] == {"state": "stopped", "enabled": True, "masked": False}
    node.pact("rollback", "--all")
    assert machine.state("alpha") == "active"
    committed(node)


def test_what_is_declared_in_toml_is_brought_about_and_exported_and_read_again(
    node: NodeAgent, machine: Machine
) -> None:
    machine.service("beta")
    node.declare('[service.beta]\nstate = "running"\nenabled = true\n')
    assert machine.state("beta") == "active" and machine.show("beta", "UnitFileState") == "enabled"
    out = node.pact("export").out
    assert '[service.beta]\nenabled = true\nstate = "running"' in out
    assert node.declare(out).json()["unchanged"] == 1
    refused = node.declare('[service.beta]\nstate = "up"\n', check=2).err
    assert '"running", "stopped", "absent"' in refused


def test_enabling_disabling_and_masking_are_drift_and_taken_back(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "gamma"))
    machine.systemctl("disable", "gamma")
    node.drifted("service:gamma")
    assert actual(node, "service:gamma")["enabled"] is False
    node.pact("rollback", "--all")
    assert machine.show("gamma", "UnitFileState") == "enabled"
    # A unit whose file lies in /etc cannot be masked by hand; one of the distribution's can.
    machine.path("/etc/systemd/system/gamma.service").rename(machine.path("/usr/lib/systemd/system/gamma.service"))
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "gamma")
    machine.systemctl("mask", "--now", "gamma")
    wait_until(lambda: node.change_of("service:gamma"), "masked is drift")
    wait_until(
        lambda: actual(node, "service:gamma") == {"state": "stopped", "masked": True}, "it is stopped and masked"
    )
    node.pact("rollback", "--all")
    assert machine.state("gamma") == "active" and machine.show("gamma", "UnitFileState") == "enabled"
    committed(node)


def test_a_unit_that_is_no_service_has_its_full_name(node: NodeAgent, machine: Machine) -> None:
    machine.service("tick", "/bin/true")
    machine.unit("tick.timer", "[Timer]\nOnActiveSec=1d\n[Install]\nWantedBy=timers.target\n")
    machine.systemctl("enable", "--now", "tick.timer")
    node.adopt("service:tick.timer")
    assert '[service."tick.timer"]' in node.pact("export").out
    machine.systemctl("stop", "tick.timer")
    node.drifted("service:tick.timer")
    node.pact("rollback", "--all")
    assert machine.state("tick.timer") == "active"
    node.declare('[service.tick.timer]\nstate = "running"\n')  # bare, as TOML reads it: a table in a table


def test_accepting_a_stop_makes_it_declared(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "delta"))
    machine.systemctl("stop", "delta")
    node.drifted("service:delta")
    node.pact("commit", "--all", "-m", "not needed")
    machine.systemctl("start", "delta")
    node.drifted("service:delta")
    node.pact("rollback", "--all")
    assert machine.state("delta") == "inactive"


def test_a_service_that_fails_is_drift_from_running_and_not_from_stopped(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "falls"))
    machine.systemctl("kill", "--signal=KILL", "falls")
    node.drifted("service:falls")
    assert actual(node, "service:falls")["state"] == "failed"
    node.declare('[service.falls]\nstate = "stopped"\n', "--take")
    committed(node)


def test_a_plan_of_several_services_goes_in_systemds_order(node: NodeAgent, machine: Machine) -> None:
    stamp = "ExecStartPre=/bin/sh -c 'date +%%s%%N > /run/%p'\n"  # done before the unit counts as started
    machine.service("order-b", more=stamp, reload=False)
    machine.service("order-a", more="ExecStartPre=/bin/sleep 0.5\n" + stamp, reload=False)
    drop = machine.path("/etc/systemd/system/order-b.service.d")
    drop.mkdir(exist_ok=True)
    (drop / "after.conf").write_text("[Unit]\nAfter=order-a.service\n")
    machine.systemctl("daemon-reload")
    began = time.monotonic()
    node.declare('[service]\norder-b = "running"\norder-a = "running"\n')
    assert time.monotonic() - began < 8, "they are watched side by side"
    a, b = (int(machine.path(f"/run/order-{x}").read_text()) for x in "ab")
    assert a < b


# -- on its way ---------------------------------------------------------------------------------------------------


def test_what_is_on_its_way_is_no_drift_before_its_limit(node: NodeAgent, machine: Machine) -> None:
    slow = "Type=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=60\n"
    machine.service("slow", "/bin/sh -c 'while [ ! -e /run/slow-go ]; do sleep 0.05; done'", slow)
    machine.path("/run/slow-go").touch()
    node.declare('[service.slow]\nstate = "running"\n')
    machine.path("/run/slow-go").unlink()
    machine.systemctl("restart", "--no-block", "slow")
    wait_until(lambda: machine.state("slow") == "activating", "it begins")
    time.sleep(0.3)
    seen = node.records("drift_detected")
    assert "service:slow" not in [r["data"].get("resource") for r in seen]
    machine.path("/run/slow-go").touch()
    wait_until(lambda: machine.state("slow") == "active", "it has begun")
    assert node.status()["drifted"] == 0


@pytest.mark.invariant("F79")
def test_what_stays_on_its_way_beyond_its_limit_is_drift_without_another_event(
    node: NodeAgent, machine: Machine
) -> None:
    """``TimeoutStopSec`` of a second, and the limit is that and five more."""
    stuck = "TimeoutStopSec=1\nSendSIGKILL=no\nKillMode=process\n"
    node.adopt(running(machine, "sticks", "/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'", stuck))
    machine.systemctl("stop", "--no-block", "sticks")
    wait_until(lambda: node.change_of("service:sticks"), "it counts as settled", 30)
    machine.systemctl("kill", "--signal=KILL", "sticks", check=False)
    wait_until(lambda: machine.state("sticks") in ("failed", "inactive"), "it ends", 30)


def test_a_service_that_is_restarted_for_ever_is_drift(node: NodeAgent, machine: Machine) -> None:
    machine.service(
        "loops",
        "/bin/sh -c 'test -e /run/loops-ok && exec sleep 86400; exit 3'",
        "Restart=always\nRestartSec=100ms\n[Unit]\nStartLimitIntervalSec=0\n",
    )
    machine.path("/run/loops-ok").touch()
    machine.systemctl("start", "loops")
    node.adopt("service:loops")
    machine.path("/run/loops-ok").unlink()
    machine.systemctl("kill", "loops")
    node.drifted("service:loops")
    assert actual(node, "service:loops")["overdue"] is True
    machine.systemctl("stop", "loops")


def test_a_service_that_comes_back_by_itself_is_no_drift(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "phoenix", more="Restart=always\nRestartSec=50ms\n"))
    machine.systemctl("kill", "--signal=KILL", "phoenix")
    wait_until(lambda: machine.show("phoenix", "NRestarts") == "1", "it is restarted")
    time.sleep(0.5)
    assert node.status()["drifted"] == 0


# -- what cannot be restored --------------------------------------------------------------------------------------


def failed_with(node: NodeAgent, resource: str) -> str:
    """The reason in the newest record of a rollback that failed."""
    return json.dumps(node.newest("rollback_failed")["data"])


@pytest.mark.invariant("F80")
def test_a_unit_that_dies_after_two_seconds_is_failed(node: NodeAgent, machine: Machine) -> None:
    machine.service("dies", "/bin/sh -c 'test -e /run/dies-not || { sleep 2; exit 7; }; exec sleep 86400'")
    machine.path("/run/dies-not").touch()
    machine.systemctl("start", "dies")
    node.adopt("service:dies")
    machine.systemctl("stop", "dies")
    node.drifted("service:dies")
    machine.path("/run/dies-not").unlink()
    node.pact("rollback", "--all", check=1)
    said = failed_with(node, "service:dies")
    assert "does not stay up" in said and "exit code 7" in said
    assert node.status()["state"] == "failed"
    node.pact("commit", "--all", "-m", "broken")


def test_a_unit_that_dies_after_two_seconds_and_is_restarted_is_failed(node: NodeAgent, machine: Machine) -> None:
    machine.service(
        "bounces",
        "/bin/sh -c 'test -e /run/bounces-not || { sleep 2; exit 7; }; exec sleep 86400'",
        "Restart=always\nRestartSec=50ms\n",
    )
    machine.path("/run/bounces-not").touch()
    machine.systemctl("start", "bounces")
    node.adopt("service:bounces")
    machine.systemctl("stop", "bounces")
    node.drifted("service:bounces")
    machine.path("/run/bounces-not").unlink()
    node.pact("rollback", "--all", check=1)
    assert "does not stay up" in failed_with(node, "service:bounces")
    machine.systemctl("stop", "bounces")


def test_a_masked_unit_by_hand_and_a_unit_that_is_gone_say_so(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "leaves"))
    machine.systemctl("stop", "leaves")
    machine.path("/etc/systemd/system/leaves.service").unlink()
    machine.systemctl("daemon-reload")
    wait_until(lambda: node.change_of("service:leaves") and actual(node, "service:leaves") is None, "it is gone")
    blocked = node.pact("rollback", "--all", check=None)
    assert blocked.code in (1, 10) and "there is no such unit" in blocked.err + blocked.out
    refused = node.declare('[service.never-was]\nstate = "running"\n', check=None)
    assert refused.code != 0 and "there is no such unit" in refused.err + refused.out


def test_a_unit_and_its_file_that_went_together_come_back_in_one_plan(node: NodeAgent, machine: Machine) -> None:
    """The file brings the unit: that it is there again is nobody's new work."""
    resource = running(machine, "whole", more="ExecStop=/bin/sleep 1\n")  # who asks is named while the job runs
    path = machine.show("whole", "FragmentPath")
    node.adopt(f"file:{path}", resource)
    machine.systemctl("stop", "whole")
    # Of the same owner, so it is one change: who removes it stays for a while, too.
    machine.call([sys.executable, "-c", f"import os, time; os.unlink({path!r}); time.sleep(2)"])
    machine.systemctl("daemon-reload")
    wait_until(lambda: node.change_of(resource) and actual(node, resource) is None, "it is gone")
    assert node.change_of(resource)["resources"] == [f"file:{path}", resource]
    node.pact("rollback", "--all")
    assert machine.state("whole") == "active"
    committed(node)


@pytest.mark.invariant("F80")
def test_why_a_unit_did_not_come_up_is_told_as_it_was(node: NodeAgent, machine: Machine) -> None:
    """Of its conditions nothing fails, and of a program that just ends nothing either."""
    for name, more, why in (
        ("unmet", "[Unit]\nConditionPathExists=/nonexistent\n", "its conditions are not met"),
        ("once", "Type=oneshot\nExecStart=\nExecStart=/bin/true\n", "a oneshot without RemainAfterExit"),
        ("brief", "ExecStart=\nExecStart=/bin/true\n", "it ended by itself, without an error"),
    ):
        machine.service(name, more=more)
        said = node.declare(f'[service.{name}]\nstate = "running"\n', "--take", check=1)
        assert why in said.out + said.err, said


def test_what_cannot_be_masked_is_refused_before_anything_is_touched(node: NodeAgent, machine: Machine) -> None:
    machine.service("owned")
    said = node.declare("[service.owned]\nmasked = true\n", check=1)
    assert "nothing was declared" in said.out and "/etc/systemd/system/owned.service is there" in said.out, said
    own = machine.path("/etc/systemd/system/owned.service")
    own.rename(machine.path("/usr/lib/systemd/system/owned.service"))
    machine.systemctl("daemon-reload")
    node.declare("[service.owned]\nmasked = true\n")
    assert machine.show("owned", "LoadState") == "masked"


NEVER = """
import sys
from pact.resources.support import systemd, systemd_jobs
with systemd.connected() as bus:
    print(systemd_jobs.run_jobs(bus, {sys.argv[1]: sys.argv[2]}, limit_s=1.0))
    print(systemd.look(bus, sys.argv[1]).job)
"""


@pytest.mark.invariant("F79")
def test_a_unit_that_never_stops_or_starts_ends_with_the_limit(machine: Machine) -> None:
    """What the kind does with a limit of 75 s, with one of a second."""
    ignores = "TimeoutStopSec=infinity\nTimeoutStartSec=infinity\n"
    machine.service("stays", "/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'", ignores)
    machine.systemctl("start", "stays")
    said = machine.call([sys.executable, "-c", NEVER, "stays.service", "StopUnit"]).out
    assert "{'stays.service': 'it did not stop within 1 s'}\n0\n" in said, "and its job is dropped"
    machine.systemctl("kill", "--signal=KILL", "stays")
    machine.service("comes-never", "/bin/sleep 86400", "Type=notify\nTimeoutStartSec=infinity\n")
    said = machine.call([sys.executable, "-c", NEVER, "comes-never.service", "StartUnit"]).out
    assert "{'comes-never.service': 'it did not start within 1 s'}\n0\n" in said
    machine.systemctl("kill", "--signal=KILL", "comes-never")


def test_processes_that_outlive_a_stop_are_no_success(node: NodeAgent, machine: Machine) -> None:
    machine.service(
        "outlives", "/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'", "TimeoutStopSec=1\nSendSIGKILL=no\n"
    )
    node.declare('[service.outlives]\nstate = "stopped"\nconsumers = ["none"]\n')
    machine.systemctl("start", "outlives")
    node.drifted("service:outlives")
    node.pact("rollback", "--all", check=1)
    assert "processes are left" in failed_with(node, "service:outlives")
    for pid in machine.path("/sys/fs/cgroup/system.slice/outlives.service/cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)  # numbered as whoever reads them sees them


ASKED = """
from pact.resources.support import systemd, systemd_jobs, systemd_order
with systemd.connected() as bus:
    print(systemd_order.order(bus, ["asked-a.service", "asked-b.service"]))
    print([systemd_jobs.reload_unit(bus, f"asked-{x}.service") for x in "ab"])
    print(systemd_jobs.restart_unit(bus, "asked-a.service"), systemd_jobs.restart_unit(bus, "never-was.service"))
    systemd.daemon_reload(bus)
"""


def test_other_kinds_can_have_units_reloaded_and_restarted_in_order(machine: Machine) -> None:
    machine.service("asked-a", more="ExecReload=/bin/touch /run/asked-reloaded\n")
    machine.service("asked-b", more="[Unit]\nAfter=asked-a.service\n")
    machine.systemctl("start", "asked-a", "asked-b")
    before = machine.show("asked-a", "MainPID")
    ordered, reloaded, restarted = machine.call([sys.executable, "-c", ASKED]).out.splitlines()
    assert ordered == "{'asked-a.service': set(), 'asked-b.service': {'asked-a.service'}}"
    assert machine.path("/run/asked-reloaded").exists() and reloaded.startswith(
        "['', 'Job type reload is not applicable"
    )
    assert "not found" in restarted and machine.show("asked-a", "MainPID") != before


@pytest.mark.invariant("R6")
def test_an_agent_that_is_killed_while_a_service_starts_ends_the_rollback_later(
    node: NodeAgent, machine: Machine
) -> None:
    may_start = machine.path("/run/killed-may-start")
    may_start.touch()
    waits = f"ExecStartPre=/bin/sh -c 'until test -e /run/{may_start.name}; do sleep 0.1; done'\n"
    node.adopt(running(machine, "killed", more=waits))
    machine.systemctl("disable", "--now", "killed")
    may_start.unlink()
    node.drifted("service:killed")
    rollback = machine.popen([sys.executable, "-m", "pact.cli.main", "--socket", node.socket, "rollback", "--all"])
    wait_until(lambda: machine.state("killed") == "activating", "it begins")
    node.stop(signal.SIGKILL)
    machine.end(rollback)
    node.start()
    may_start.touch()
    wait_until(lambda: node.status()["state"] == "committed", f"it is as declared: {node.status()}", 30)
    assert machine.state("killed") == "active" and machine.show("killed", "UnitFileState") == "enabled"
