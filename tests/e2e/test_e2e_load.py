"""A full disk, a flood of events, and hooks that hang: nothing is lost, nobody is blocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chain
import pytest
from harness import TOP, Agent, wait_until

EVENTS = 100_000
FLOODED = 200


# -- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(on_small_disk: Callable[..., Agent]) -> Agent:
    return on_small_disk("1s")


@pytest.mark.invariant("F3")
def test_with_a_full_disk_the_agent_watches_says_so_and_does_nothing(small: Agent) -> None:
    state = small.config["state"]["dir"]
    before, during = small.file("before.conf"), small.file("during.conf")
    small.pact("hold", "place", "--reason", "until the disk is full", "--for", "1h")
    small.drift(before)
    small.world.sh(f"cat /dev/zero > {state}/filler", check=False)
    small.world.path(during).write_text("drifted\n" * 1000)

    def lost() -> bool:
        return "error" in small.status()["journal"]

    wait_until(lost, f"the agent notices: {small.log()}")
    status = small.json("status")
    assert "full" in status["journal"]["error"]
    assert status["unrecorded"]["count"] >= 1 and f"file:{during}" in status["unrecorded"]["resources"]
    assert "full" in small.pact("status").out and "full" in small.pact("check", check=11).out
    for words in (
        ["commit", "-m", "x"],
        ["rollback", "--force"],
        ["hold", "release"],
        ["adopt", f"file:{TOP}/*"],
        ["emergency", "start", "--reason", "x"],
    ):
        err = small.pact(*words, check=5).err
        assert "nothing was changed" in err, err
    done = small.pact("apply", "-", input=f'[file."{before}"]\ncontent = "x"\n'.encode(), check=5)
    assert "free space" in done.err
    assert small.world.path(before).read_text() == "drifted\n", "what cannot be recorded is not rolled back"
    assert small.process.poll() is None
    small.world.sh(f"rm {state}/filler")
    wait_until(lambda: not lost(), "it records again")
    small.drifted(f"file:{during}")
    assert "unrecorded" not in small.status()
    small.pact("hold", "release")
    wait_until(lambda: small.status()["drifted"] == 0, "windows run again")
    assert small.world.path(during).read_text() == "declared\n"
    records = small.records()
    assert chain.verify(records) == len(records)


@pytest.mark.invariant("F3")
def test_a_rollback_whose_end_cannot_be_recorded_is_taken_up_again(small: Agent) -> None:
    """Expiry meets a full disk: nothing is touched; with space again it is carried out."""
    state = small.config["state"]["dir"]
    path = small.file("late.conf")
    small.drift(path, "drifted\n")
    small.world.sh(f"cat /dev/zero > {state}/filler", check=False)
    wait_until(lambda: "error" in small.status()["journal"], "the agent notices")
    assert small.world.path(path).read_text() == "drifted\n"
    small.world.sh(f"rm {state}/filler")
    small.settled(f"file:{path}")
    assert small.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("J4", "F3")
def test_what_drifts_on_a_full_disk_has_drifted_though_it_is_not_recorded(small: Agent) -> None:
    state = small.config["state"]["dir"]
    path, other = small.file("seen.conf"), small.file("same.conf")
    small.pact("diff", "--exit-code")
    small.world.sh(f"cat /dev/zero > {state}/filler", check=False)
    small.world.path(path).write_text("drifted\n" * 1000)
    wait_until(lambda: "unrecorded" in small.status(), "it is seen")
    status = small.status()
    assert (status["state"], status["drifted"]) == ("drifted", 0)
    assert small.pact("--json", "check", check=11).json()["state"] == "drifted"
    assert f"file:{path}" in small.pact("diff", "--exit-code", check=11).out
    assert small.json("diff")["unrecorded"] == [f"file:{path}"]
    small.pact("diff", "--exit-code", f"file:{other}")
    small.world.sh(f"rm {state}/filler")
    small.settled(f"file:{path}")


@pytest.mark.invariant("J4", "F3")
def test_who_asked_for_what_was_begun_is_not_told_that_nothing_was_changed(small: Agent) -> None:
    """The disk fills between the record of a rollback's start and that of its result."""
    state, count = small.config["state"]["dir"], 300
    small.configure({"window": {"base": "1h"}})
    small.restart()
    every = f"for i in $(seq {count}); do echo $1 > {TOP}/many/$i; done"
    small.world.sh(f"mkdir -p {TOP}/many; set -- a; {every}")
    small.adopt(f"file:{TOP}/many/*")
    small.world.sh(f"set -- b; {every}")
    wait_until(lambda: small.status()["drifted"] == count, "all have drifted")
    asking = small.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", small.socket, "rollback", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: small.newest("rollback_started"), "it has begun")
    small.world.sh(f"cat /dev/zero > {state}/filler", check=False)
    err = asking.communicate(timeout=60)[1].decode()
    assert asking.returncode == 5, err
    assert "was begun, and its result could not be recorded" in err and "nothing was changed" not in err, err
    small.world.sh(f"rm {state}/filler")
    wait_until(lambda: small.newest("rolled_back"), "it is recorded when the journal is back")
    assert small.status()["state"] == "committed"


def test_an_agent_that_starts_on_a_full_disk_says_so(small: Agent) -> None:
    state = small.config["state"]["dir"]
    small.stop(9)
    small.world.sh(f"cat /dev/zero > {state}/filler", check=False)
    done = small.refuses_to_start()
    assert done.code == 5 and "full" in done.err and "free space" in done.err and "Traceback" not in done.err, done
    small.world.sh(f"rm {state}/filler")
    small.start()


# -- a flood --------------------------------------------------------------------------------------------------------

FLOOD = """
import os, sys
top, files, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = [f"{top}/f{i}" for i in range(files)]
fds = [os.open(n, os.O_WRONLY) for n in names]
for n in range(events):
    os.pwrite(fds[n % files], b"%08d\\n" % n, 0)
for n in range(files):
    if n % 4 == 1:
        os.unlink(names[n])
    elif n % 4 == 2:
        os.rename(names[n], names[n] + ".old"); open(names[n], "w").write("renamed %d\\n" % n)
    elif n % 4 == 3:
        os.pwrite(fds[n], b"00000000\\n", 0)
"""


def test_of_a_hundred_thousand_events_no_lasting_drift_is_missed(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.start()
    top = agent.world.path(f"{TOP}/flood")
    top.mkdir()
    for i in range(FLOODED):
        (top / f"f{i}").write_bytes(b"00000000\n")
    agent.adopt(f"file:{TOP}/flood/f*")
    seq = agent.status()["journal"]["seq"]
    process = agent.world.popen(["python3", "-c", FLOOD, f"{TOP}/flood", str(FLOODED), str(EVENTS)])
    assert process.wait(60) == 0
    expected = {i for i in range(FLOODED) if i % 4 != 3}

    def state() -> dict[str, object]:
        return {e["id"]: e["actual"] for e in agent.ask("diff")["result"]["resources"]}

    def settled() -> bool:
        now = state()
        if set(now) != {f"file:{TOP}/flood/f{i}" for i in expected}:
            return False
        return all((now[f"file:{TOP}/flood/f{i}"] is None) == (i % 4 == 1) for i in expected)

    wait_until(settled, "the last state of each is recorded", 30)
    last = {e["id"]: e["diff"] for e in agent.ask("diff")["result"]["resources"]}
    for i in expected:
        text = last[f"file:{TOP}/flood/f{i}"]
        wanted = f"+renamed {i}\n" if i % 4 == 2 else "-00000000\n" if i % 4 == 1 else f"+{EVENTS - FLOODED + i:08d}\n"
        assert wanted in text, (i, text)
    assert agent.status()["journal"]["seq"] - seq < EVENTS / 10
    agent.pact("commit", "-m", "whatever it was")
    agent.close()


@pytest.mark.invariant("F17")
def test_more_than_max_resources_are_not_rolled_back_without_a_person(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(window={"base": "0.5s", "floor": "0.1s"}, rollback={"max_resources": 5})
    agent.start()
    paths = [agent.file(f"many/m{i}") for i in range(8)]
    agent.world.sh("for f in " + " ".join(paths) + "; do echo x > $f; done")
    wait_until(lambda: agent.status()["state"] == "blocked", "a person must decide")
    assert "max_resources" in agent.status()["changes"][0]["reason"]
    assert all(agent.world.path(p).read_text() == "x\n" for p in paths)
    agent.pact("rollback")
    assert all(agent.world.path(p).read_text() == "declared\n" for p in paths)
    agent.close()


# -- hooks ----------------------------------------------------------------------------------------------------------


def hook(agent: Agent, name: str, script: str, mode: int = 0o755) -> Path:
    directory = agent.base / "hooks.d"
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(mode)
    return path


@pytest.fixture
def hooked(make_agent: Callable[..., Agent]) -> Iterator[Agent]:
    agent = make_agent(hooks={"timeout": "1s"})
    agent.start()
    yield agent
    agent.close()


def test_hooks_get_each_event_as_json_on_stdin_in_a_clean_environment(hooked: Agent) -> None:
    out = hooked.base / "seen"
    hook(hooked, "10-note", f"cat >> {out}; env | grep -v ^PWD > {out}.env; pwd >> {out}.env\n")
    path = hooked.file("hook.conf")
    hooked.drift(path)
    hooked.pact("rollback")

    def seen() -> list[str]:
        return [json.loads(line)["type"] for line in out.read_text().splitlines()] if out.exists() else []

    wait_until(lambda: "rolled_back" in seen(), "the hook saw it")
    assert {"adopted", "drift_detected", "window_opened", "rollback_started", "rolled_back"} <= set(seen())
    assert "PYTHONPATH" not in Path(f"{out}.env").read_text()


@pytest.mark.invariant("F23")
def test_a_hook_that_hangs_is_killed_with_its_children_and_blocks_nobody(hooked: Agent) -> None:
    pids = hooked.base / "pids"
    hook(hooked, "10-hang", f"echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; wait\n")
    path = hooked.file("hang.conf")
    for i in range(5):
        started = time.monotonic()
        hooked.drift(path, f"{i}\n")
        hooked.ask("commit", targets=[f"file:{path}"], message="x")
        assert time.monotonic() - started < 1
    wait_until(lambda: "was killed" in hooked.log(), "the agent says so")
    first = [int(p) for p in pids.read_text().split()[:2]]
    wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for p in first), "both are gone")
    hooked.stop()

    def left() -> list[str]:
        return [p for p in pids.read_text().split() if os.path.exists(f"/proc/{p}")]

    wait_until(lambda: not left(), "none outlives the agent")


def test_a_hook_that_others_could_write_is_not_run(hooked: Agent) -> None:
    out = hooked.base / "never"
    hook(hooked, "10-open", f"touch {out}\n", 0o777)
    hook(hooked, "20-plain", f"touch {out}\n", 0o644)
    good = hooked.base / "good"
    hook(hooked, "30-good", f"touch {good}\n")
    hooked.drift(hooked.file("trust.conf"))
    wait_until(good.exists, "the good one ran")
    assert not out.exists() and "others could have written it" in hooked.log()


def test_a_hook_that_fails_is_mentioned_and_nothing_else(hooked: Agent) -> None:
    hook(hooked, "10-fail", "exit 7\n")
    (hooked.base / "hooks.d" / "20-broken").write_text("no interpreter")
    (hooked.base / "hooks.d" / "20-broken").chmod(0o755)
    hooked.drift(hooked.file("fail.conf"))
    wait_until(lambda: "ended with 7" in hooked.log(), "the agent says so")
    assert hooked.ask("ping")["ok"]


# -- the service manager --------------------------------------------------------------------------------------------


def test_readiness_and_watchdog_are_told_to_the_service_manager(make_agent: Callable[..., Agent]) -> None:
    import socket
    import sys

    agent = make_agent()
    path = str(agent.base / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        process = agent.world.popen(
            [
                "env",
                f"NOTIFY_SOCKET={path}",
                "WATCHDOG_USEC=400000",
                sys.executable,
                "-m",
                "pact.cli.main",
                "agent",
                "--config",
                str(agent.config_path),
            ],
            stderr=subprocess.DEVNULL,
        )
        assert b"READY=1" in sock.recv(4096)
        assert b"WATCHDOG=1" in sock.recv(4096) + sock.recv(4096)
        process.terminate()
        said = b""
        while b"STOPPING=1" not in said:
            said = sock.recv(4096)
        assert process.wait(10) == 0
