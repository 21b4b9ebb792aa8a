"""Rows of specs/failure-modes.md that no other test shows whole: what fails, what the agent does, how it recovers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

OVERFLOW = 20_000  # more than the kernel's queue has places for
OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}

OVERFLOWING = """
import os, sys
for i in range(int(sys.argv[2])):
    os.close(os.open(f"{sys.argv[1]}/noise{i}", os.O_CREAT | os.O_WRONLY))
"""


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"ops_groups": ["games"]}, "observe": {"rescan": "1h"}}


@contextmanager
def standing_still(agent: Agent) -> Iterator[None]:
    """The agent is stopped as long as this lasts: what happens meanwhile it is told of late."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(agent) == "T", "it stands still")
        yield
    finally:
        agent.process.send_signal(signal.SIGCONT)


def state_of(agent: Agent) -> str:
    assert agent.process is not None
    with open(f"/proc/{agent.process.pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]


@pytest.mark.invariant("F6", "F20")
def test_a_step_that_fails_leaves_the_others_restored_and_is_done_when_its_cause_is_mended(agent: Agent) -> None:
    """A file that something is bind-mounted on cannot be replaced; adopting it says so beforehand."""
    bound, free = f"{TOP}/bound.conf", agent.file("free.conf")
    agent.world.sh(f"echo declared > {TOP}/below.conf; touch {bound}; mount --bind {TOP}/below.conf {bound}")
    try:
        assert any("is bind-mounted" in note and bound in note for note in agent.adopt(f"file:{bound}")["notes"])
        agent.drift(bound)
        (change,) = {agent.drift(p)["id"] for p in (bound, free)}
        done = agent.pact("rollback", change, check=1)
        assert bound in done.err, done
        failed = agent.newest("rollback_failed")["data"]
        assert failed["restored"] == [f"file:{free}"]
        assert "something is mounted on it" in failed["left"][f"file:{bound}"]
        assert agent.world.path(free).read_text() == "declared\n"
        assert agent.world.path(bound).read_text() == "drifted\n"
        status = agent.status()
        assert (status["state"], status["changes"][0]["resources"]) == ("failed", [f"file:{bound}"])
    finally:
        agent.world.sh(f"umount {bound}")
    agent.world.path(bound).write_text("drifted\n")
    agent.pact("rollback", change, check=None)
    agent.settled(f"file:{bound}")
    assert agent.world.path(bound).read_text() == "declared\n"


@pytest.mark.invariant("F10")
def test_what_an_overflow_hid_is_found_and_the_observer_sees_again(agent: Agent) -> None:
    """No rescan comes within this test: what was lost is found because of the overflow."""
    kept = [agent.file(f"lost/{i}.conf") for i in range(20)]
    seq = agent.status()["journal"]["seq"]
    with standing_still(agent):
        agent.world.call(["python3", "-c", OVERFLOWING, f"{TOP}/lost", str(OVERFLOW)])
        for path in kept:
            agent.world.path(path).write_text("while nobody could see\n")
    wait_until(lambda: agent.status()["drifted"] == len(kept), "everything was looked at again")
    wait_until(lambda: agent.newest("observer_restored"), "it sees again")
    blind, restored = [r["data"] for r in agent.records() if r["seq"] > seq and r["type"].startswith("observer_")]
    assert "overflow" in blind["why"] and restored["observer"] == blind["observer"]
    assert agent.status()["observers"][blind["observer"]] == "ok"
    agent.pact("rollback", "--all")
    agent.drift(kept[0], "seen at once\n")


MAPPED = """
import mmap
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
m[0:1] = b"1"
ready()
"""


@pytest.mark.invariant("F11")
def test_a_write_that_gives_no_event_is_found_by_the_rescan(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(observe={"rescan": "1s"})
    agent.start()
    path = agent.file("mapped.conf", "0000\n")
    writer = agent.world.python(MAPPED, path)
    try:
        change = wait_until(lambda: agent.change_of(f"file:{path}"), "the rescan finds it", 4)
        assert change["owner"]["user"] == "unattributed"
    finally:
        agent.world.end(writer)
    agent.close()


@pytest.mark.invariant("F12")
def test_drift_of_a_writer_that_is_gone_is_nobody_s_and_ops_may_settle_it(agent: Agent) -> None:
    path = agent.file("gone.conf", mode=0o666)
    with standing_still(agent):
        agent.world.sh(f"echo gone > {path}", uid=1235)  # and its process is reaped before anybody can look
    change = agent.drifted(f"file:{path}")
    assert change["owner"]["user"] == "unattributed"
    agent.pact("rollback", change["id"], **OPS)
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("F21")
def test_who_sends_far_too_much_is_told_so_and_hung_up_on_and_nobody_else_notices(agent: Agent) -> None:
    with agent.connect() as bystander, bystander.makefile("rwb") as f, agent.connect() as sock:
        sock.settimeout(10)
        try:
            while True:
                sock.sendall(b"x" * (1 << 20))
        except (BrokenPipeError, ConnectionResetError):
            pass
        out = b""
        try:
            while chunk := sock.recv(65536):
                out += chunk
        except ConnectionResetError:
            pass
        answer = json.loads(out)
        assert (answer["ok"], answer["exit"]) == (False, 2) and "too long" in answer["message"]
        f.write(b'{"v":1,"op":"ping"}\n')
        f.flush()
        assert json.loads(f.readline())["ok"]


def asks(op: str, **args: Any) -> bytes:
    return json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n"


@pytest.mark.invariant("F22")
def test_the_next_request_of_who_does_not_read_waits_until_the_last_answer_was_read(agent: Agent) -> None:
    path = agent.file("long.conf", "".join(f"line {i}\n" for i in range(5000)))
    agent.drift(path, "".join(f"other {i}\n" for i in range(5000)))
    with agent.connect() as sock, sock.makefile("rb") as answers:
        sock.sendall(asks("diff") * 30 + asks("hold_place", reason="after all that", for_ns=60 * 10**9))
        time.sleep(1.5)
        assert agent.status()["holds"] == [], "others are served, and this one waits for itself"
        assert all(json.loads(answers.readline())["ok"] for _ in range(31))
    assert len(agent.status()["holds"]) == 1


ASKING = """
import socket
os.setgroups([60])
os.setgid(1234)
os.setuid(1234)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"op":"ping"}\\n')
s.recv(4096)
print("ready", flush=True)
sys.stdin.readline()
s.sendall(sys.argv[2].encode())
print("asked", flush=True)
print(s.recv(1 << 16).decode(), end="", flush=True)
sys.stdin.read()
"""


@pytest.mark.invariant("F22")
def test_an_admin_s_request_is_carried_out_before_those_that_came_first(agent: Agent) -> None:
    """Both are there when the agent looks: it stood still."""
    change = agent.drift_by(1234, agent.file("turns.conf", mode=0o666))
    ops = agent.world.python(ASKING, agent.socket, asks("extend", targets=[change["id"]], by_ns=10**9).decode())
    with agent.connect() as admin:
        admin.sendall(asks("ping"))
        assert admin.recv(4096)
        with standing_still(agent):
            ops.stdin.write(b"go\n")
            ops.stdin.flush()
            assert ops.stdout.readline() == b"asked\n"
            admin.sendall(asks("extend", targets=[change["id"]], by_ns=2 * 10**9))
        assert json.loads(admin.recv(65536))["ok"] and json.loads(ops.stdout.readline())["ok"]
    assert [r["actor"]["uid"] for r in agent.records("window_extended")[-2:]] == [0, 1234]
    agent.world.end(ops)


@pytest.mark.invariant("F18")
def test_a_file_in_constant_motion_gets_a_record_after_pauses_that_double(agent: Agent) -> None:
    """Nothing is asked meanwhile: every request looks first."""
    path = agent.file("moving.conf")
    seq, began, count = agent.status()["journal"]["seq"], time.monotonic(), 0
    while time.monotonic() - began < 6:  # recorded after 0, 0.5, 1.5 and 3.5 seconds
        agent.world.path(path).write_text(f"{count}\n")
        count += 1
        time.sleep(0.005)
    seen = [r for r in agent.records("drift_detected") if r["seq"] > seq]
    assert 3 <= len(seen) <= 6, [r["time"] for r in seen]
    wait_until(lambda: f"+{count - 1}\n" in (agent.json("diff")["resources"][0]["diff"] or ""), "its last state")


@pytest.mark.invariant("F30")
def test_more_in_memory_than_can_be_kept_blocks_and_what_is_kept_can_be_had_back(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent(state={"store_limit": "64KiB"})
    agent.start()
    point = f"{TOP}/memory"
    agent.world.sh(f"mkdir -p {point}")
    agent.declare(f'[mount."{point}"]\ntype = "absent"\n')
    agent.world.sh(
        f"mount -t tmpfs tmpfs {point}; head -c 100000 /dev/urandom > {point}/large; echo work > {point}/small"
    )
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", check=1)
    (change,) = agent.status()["changes"]
    assert change["state"] == "blocked" and agent.newest("rollback_blocked")
    assert sorted(os.listdir(agent.world.path(point))) == ["large", "small"]
    agent.world.sh(f"mv {point}/large {TOP}/moved-away")
    agent.pact("rollback")
    assert f" {point} " not in agent.world.sh("cat /proc/self/mountinfo").out
    seq = str(agent.newest("rollback_started")["seq"])
    agent.pact("show", seq, "--restore", f"{TOP}/again", "--resource", f"file:{point}/small")
    assert agent.world.path(f"{TOP}/again").read_text() == "work\n"
    agent.close()
