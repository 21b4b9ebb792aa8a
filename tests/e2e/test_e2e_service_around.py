"""Who uses a service, who has stopped it, what is adopted, and a systemd or a bus that goes away.

The machine is booted once for this file. What a test does to it, the units of that test alone bear.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from harness import wait_until
from systemd_kit import TOOLS, Machine, NodeAgent

pytestmark = pytest.mark.needs(*TOOLS)


def running(machine: Machine, name: str, run: str = "/bin/sleep 86400", more: str = "") -> str:
    """A service that is enabled and runs."""
    machine.service(name, run, more)
    machine.systemctl("enable", "--now", name)
    return f"service:{name}"


# -- consumers ----------------------------------------------------------------------------------------------------


def extra(node: NodeAgent, machine: Machine, name: str, run: str, more: str = "") -> None:
    """A service that is declared stopped, and runs: a rollback would stop it."""
    machine.service(name, run, more)
    node.declare(f'[service.{name}]\nstate = "stopped"\n')
    machine.systemctl("start", name)
    node.drifted(f"service:{name}")


def test_a_process_of_its_cgroup_that_is_not_its_own_blocks_the_stop_and_is_named(
    node: NodeAgent, machine: Machine
) -> None:
    extra(node, machine, "hosts", "/bin/sh -c 'sleep 7777 & exec sleep 86400'")
    held = node.json("consumers", "service:hosts")["consumers"]
    assert [(h["how"], h["command"]) for h in held] == [("cgroup", "sleep 7777")], held
    assert held[0]["cgroup"] == "/system.slice/hosts.service"
    blocked = node.pact("rollback", "--all", check=10)
    assert "sleep 7777" in blocked.err + blocked.out and machine.state("hosts") == "active"
    node.declare('[service.hosts]\nstate = "stopped"\nconsumers = ["none"]\n', "--take")
    assert machine.state("hosts") == "inactive"


def test_a_step_of_a_job_is_named_with_its_job(node: NodeAgent, machine: Machine) -> None:
    step = "mkdir -p $g/system.slice/jobs.service/slurmstepd.scope/job_4711/step_0 && echo 0 > $g/system.slice/jobs.service/slurmstepd.scope/job_4711/step_0/cgroup.procs"
    extra(
        node,
        machine,
        "jobs",
        f"/bin/sh -c 'g=/sys/fs/cgroup; (sh -c \"{step}; exec sleep 7778\") & exec sleep 86400'",
        "Delegate=yes\n",
    )
    held = wait_until(lambda: [h for h in node.json("consumers", "service:jobs")["consumers"] if h["job"]], "the step")
    assert held[0]["job"] == "4711"
    machine.systemctl("stop", "jobs")


def test_workers_of_a_daemon_are_its_own(node: NodeAgent, machine: Machine) -> None:
    machine.path("/srv").mkdir(exist_ok=True)
    script = "import os,time\nfor _ in range(3):\n  if not os.fork():\n    break\ntime.sleep(86400)\n"
    machine.path("/srv/forks.py").write_text(script)
    extra(node, machine, "forks", f"{sys.executable} -S /srv/forks.py")
    procs = machine.path("/sys/fs/cgroup/system.slice/forks.service/cgroup.procs")
    wait_until(lambda: len(procs.read_text().split()) == 4, "its workers are there")
    assert node.json("consumers", "service:forks")["consumers"] == []
    node.pact("rollback", "--all")
    assert machine.state("forks") == "inactive"


def test_clients_of_its_sockets_are_consumers(node: NodeAgent, machine: Machine) -> None:
    machine.path("/srv").mkdir(exist_ok=True)
    machine.path("/srv/serves.py").write_text(
        "import socket,os\n"
        "t=socket.create_server(('127.0.0.1',7979))\nu=socket.socket(socket.AF_UNIX); u.bind('/run/serves.sock'); u.listen()\n"
        "kept=[t.accept(),u.accept()]\nprint(kept,flush=True)\nwhile True: kept.append(t.accept())\n"
    )
    machine.sh("rm -f /run/serves.sock")
    extra(node, machine, "serves", f"{sys.executable} -S /srv/serves.py")
    wait_until(lambda: machine.path("/run/serves.sock").exists(), "it listens")
    client = machine.python(
        "import socket\nt=socket.create_connection(('127.0.0.1',7979))\nu=socket.socket(socket.AF_UNIX); u.connect('/run/serves.sock')\nready()\n"
    )
    time.sleep(0.2)
    held = node.json("consumers", "service:serves")["consumers"]
    assert {h["how"] for h in held} == {"socket"} and len(held) == 2, held
    assert {h["path"].rpartition(" ")[2] for h in held} == {"127.0.0.1:7979", "/run/serves.sock"}
    assert node.pact("rollback", "--all", check=10)
    machine.end(client)
    wait_until(lambda: not node.json("consumers", "service:serves")["consumers"], "the client is gone")
    node.pact("rollback", "--all")
    assert machine.state("serves") == "inactive"


# -- who did it, and what is said ---------------------------------------------------------------------------------


def test_the_command_that_stopped_it_is_its_owner_and_nobody_is_guessed(node: NodeAgent, machine: Machine) -> None:
    """Stopping takes a moment, so that the command is there when it is looked for on a slow machine."""
    slow = "ExecStop=/bin/sleep 0.8\n"
    node.adopt(running(machine, "owned-a", more=slow), running(machine, "owned-b", more=slow))
    machine.systemctl("stop", "owned-a")
    change = node.drifted("service:owned-a")
    assert change["owner"]["user"] == "root" and change["owner"]["command"] == "systemctl stop owned-a", change
    two = [machine.popen(["systemctl", "stop", "owned-b"]), machine.popen(["systemctl", "stop", "owned-b.service"])]
    for each in two:
        each.wait(20)
    assert node.drifted("service:owned-b")["owner"]["user"] in ("unattributed", "root")  # it may still be there
    node.pact("rollback", "--all")


def test_what_a_stop_takes_along_belongs_to_who_has_stopped_it(node: NodeAgent, machine: Machine) -> None:
    """One write, one change: what is stopped with it (by way of others, too), and what is called by another name."""
    slow = "ExecStop=/bin/sleep 0.8\n"
    ids = [
        running(machine, "drags", more=slow),
        running(machine, "partof", more=slow + "[Unit]\nPartOf=drags.service\n"),
        running(machine, "needs", more=slow + "[Unit]\nRequires=partof.service\nAfter=partof.service\n"),
        running(machine, "apart", more=slow),
    ]
    node.adopt(*ids)
    machine.systemctl("stop", "drags")
    change = node.drifted("service:needs")
    wait_until(lambda: node.status()["drifted"] == 3, "three are stopped")
    (change,) = node.status()["changes"]
    assert change["owner"]["command"] == "systemctl stop drags" and change["resources"] == sorted(ids[:3])
    node.pact("rollback", "--all")
    assert [machine.state(n) for n in ("drags", "partof", "needs")] == ["active"] * 3
    machine.path("/etc/systemd/system/also.service").symlink_to("apart.service")
    machine.systemctl("daemon-reload")
    wait_until(lambda: "also.service" in machine.show("apart", "Names"), "it has another name")
    node.ask("adopt", patterns=["service:apart"])  # whoever looks sees it
    machine.systemctl("stop", "also")
    assert node.drifted("service:apart")["owner"]["command"] == "systemctl stop also"


def test_status_says_that_a_reload_is_needed(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "edited"))
    with machine.path("/etc/systemd/system/edited.service").open("a") as f:
        f.write("# another line\n")
    node.ask("adopt", patterns=["service:edited"])  # whoever looks sees it
    assert "edited: the unit file has changed, a reload is needed" in node.pact("status").out
    assert node.status()["drifted"] == 0
    machine.systemctl("daemon-reload")
    wait_until(lambda: not node.status()["notes"], "it was read again")


def test_adopting_everything_takes_what_is_enabled_or_active_and_says_what_it_passes_over(
    node: NodeAgent, machine: Machine
) -> None:
    running(machine, "taken")
    machine.systemctl("enable", "--quiet", "systemd-networkd.service", check=False)
    machine.service("only-enabled")
    machine.systemctl("enable", "only-enabled")
    machine.service("neither")
    machine.unit("inst@.service", "[Service]\nExecStart=/bin/sleep 86400\n[Install]\nWantedBy=multi-user.target\n")
    machine.systemctl("start", "inst@one")
    machine.unit("stat@.service", "[Service]\nExecStart=/bin/sleep 86400\n")
    machine.systemctl("start", "stat@one")
    machine.call(["systemd-run", "--quiet", "--unit=passing", "sleep", "86400"])
    began = time.monotonic()
    answer = node.adopt("service:**")
    assert time.monotonic() - began < 10
    declared = node.pact("export").out
    for name in ("taken", "only-enabled", '"inst@one"'):
        assert f"{name} = " in declared or f"[service.{name}]" in declared, declared
    for name in ("neither", "passing", '"stat@one"', "systemd-journald", "-.mount", "getty@ "):
        assert f"[service.{name}]" not in declared, name
    notes = " ".join(answer["notes"])
    assert "static unit" in notes and "transient unit" in notes, answer["notes"]
    machine.systemctl("stop", "passing")


# -- the bus goes away --------------------------------------------------------------------------------------------


@pytest.mark.invariant("F78")
def test_systemd_that_begins_anew_is_blind_and_then_seen_again(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "lasting"))
    machine.systemctl("daemon-reexec")
    wait_until(lambda: "service" not in node.status()["observers"], "it is seen again")
    machine.systemctl("stop", "lasting")
    node.drifted("service:lasting")
    node.pact("rollback", "--all")


def kill_bus(machine: Machine) -> None:
    """Its socket's unit, too, which would start it again."""
    machine.systemctl("stop", "dbus.socket", "dbus.service")
    wait_until(lambda: machine.sh("pgrep dbus-daemon", check=False).code, "the bus is gone")


def noted(agent: NodeAgent, type_: str) -> list[str]:
    return [r["data"]["observer"] for r in agent.records(type_)]


@pytest.mark.invariant("F78")
def test_a_bus_that_is_killed_is_blind_and_then_restored(machine: Machine, base: Path) -> None:
    """Where there is only the bus: the agent is told so, as in a container that has nothing else."""
    agent = NodeAgent(machine, base / "bus", {"observe": {"rescan": "1h"}})
    machine.env["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/run/dbus/system_bus_socket"
    try:
        agent.start()
    finally:
        del machine.env["DBUS_SYSTEM_BUS_ADDRESS"]
    try:
        agent.adopt(running(machine, "by-bus"))
        kill_bus(machine)
        wait_until(lambda: "blind" in agent.status()["observers"].get("service", ""), "it says so")
        wait_until(lambda: "service" in noted(agent, "observer_blind"), "that is on record")
        machine.systemctl("stop", "by-bus")  # systemctl needs no bus
        machine.systemctl("start", "dbus.socket", "dbus.service")
        agent.drifted("service:by-bus")
        wait_until(lambda: "service" not in agent.status()["observers"], "it is seen again")
        wait_until(lambda: "service" in noted(agent, "observer_restored"), "that is on record")
        agent.pact("rollback", "--all")
        machine.systemctl("stop", "by-bus")
        agent.drifted("service:by-bus")
    finally:
        agent.close()


@pytest.mark.invariant("F78")
def test_a_bus_that_is_killed_blinds_nobody_who_talks_to_systemd(node: NodeAgent, machine: Machine) -> None:
    node.adopt(running(machine, "no-bus"))
    kill_bus(machine)
    try:
        machine.systemctl("stop", "no-bus")
        node.drifted("service:no-bus")
        node.pact("rollback", "--all")
        assert machine.state("no-bus") == "active"
    finally:
        machine.systemctl("start", "dbus.socket", "dbus.service")


def test_looking_at_units_that_systemd_has_not_loaded_causes_no_further_looks(
    node: NodeAgent, machine: Machine
) -> None:
    for name, other in (("idle-a", "idle-b"), ("idle-b", "idle-a")):
        machine.unit(f"{name}.service", f"[Unit]\nAfter={other}.service\n[Service]\nExecStart=/bin/true\n")
    node.declare('[service.idle-a]\nstate = "stopped"\n[service.idle-b]\nstate = "stopped"\n')

    def busy_ms() -> int:
        fields = machine.path(f"/proc/{node.pid()}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) * 10

    time.sleep(0.5)
    before = busy_ms()
    time.sleep(2)
    assert busy_ms() - before < 100


def test_a_name_that_systemd_cannot_have_is_refused(node: NodeAgent) -> None:
    for name, why in (
        ('"bad\\u0001name"', "no unit name"),
        ('"a/b"', "no unit name"),
        ('"getty@"', "is a template"),
        ('"srv-x.mount"', "declare it as mount:/path"),
    ):
        assert why in node.declare(f'[service.{name}]\nstate = "running"\n', check=2).err, name


def test_an_instance_of_a_template_is_a_service(node: NodeAgent, machine: Machine) -> None:
    machine.unit("many@.service", "[Service]\nExecStart=/bin/sleep 86400\n[Install]\nWantedBy=multi-user.target\n")
    node.declare('[service."many@one"]\nstate = "running"\nenabled = true\n')
    assert machine.state("many@one") == "active"
    machine.systemctl("disable", "--now", "many@one")
    node.drifted("service:many@one")
    node.pact("rollback", "--all")
    assert machine.show("many@one", "UnitFileState") == "enabled"
