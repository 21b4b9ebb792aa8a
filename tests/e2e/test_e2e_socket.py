"""The control socket as another program uses it: ending one's own side early, leaving early, asking much at once."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import nasty
import pytest
from harness import Agent, wait_until

PIPELINED = 20
MANY = 100  # questions that one connection may have open are far fewer
LISTENING = 1


def request(op: str, **args: Any) -> bytes:
    return json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n"


def sent_and_ended(agent: Agent, *requests: bytes) -> list[Any]:
    """Ask, end the sending side at once, and return every answer up to the agent's own end."""
    with agent.connect() as sock, sock.makefile("rb") as f:
        sock.sendall(b"".join(requests))
        sock.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in f]


def clients(agent: Agent) -> int:
    """Connections to the agent that it has not closed: of this network namespace's sockets those with its path."""
    table = Path(f"/proc/{agent.world.holder.pid}/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {agent.socket}") for line in table)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("commit", {"message": "kept"}),
        ("rollback", {}),
        ("adopt", {"patterns": ["file:/etc/hostname"]}),
        ("consumers", {"resource": "file:/etc/hostname"}),
        ("rollback", {"to_seq": 0}),
        ("rollback", {"to_seq": 1 << 40}),
        ("consumers", {"resource": "file:/etc/hostname/no/such"}),
        ("status", {}),
        ("log", {"count": 3}),
    ],
)
def test_who_ends_the_sending_side_still_gets_the_answer(agent: Agent, op: str, args: Any) -> None:
    agent.drift(agent.file("half.conf"))
    answers = sent_and_ended(agent, request(op, **args))
    if op == "log":
        assert len(answers) == 4 and answers[-1] == {"end": True}
        return
    (answer,) = answers
    assert {"ok", "exit", "message", "hint", "result"} <= set(answer)
    assert answer["exit"] == (2 if args.get("to_seq", 0) > 1 << 30 else 0), answer


@pytest.mark.invariant("S1", "S8")
def test_viewers_who_hold_connections_keep_no_operator_out(make_agent: Any) -> None:
    agent = make_agent(access={"ops_groups": ["games"]})
    agent.start()
    code = (
        "held = []\nfor _ in range(40):\n s = socket.socket(socket.AF_UNIX)\n"
        f" s.connect({agent.socket!r})\n held.append(s)\nready()"
    )
    crowd = []
    for uid in (3001, 3002, 3003, 3004, 3005):
        drop = f"import socket\nos.setgroups([])\nos.setgid({uid})\nos.setuid({uid})\n"
        crowd.append(agent.world.python(drop + code))
    agent.pact("status", uid=1234, groups=[60])
    agent.pact("hold", "place", "--reason", "x", "--for", "1m", uid=1234, groups=[60])
    agent.pact("check", uid=3006, check=11)  # nothing is declared; who holds most gives one up
    for uid in range(3100, 3130):
        agent.pact("check", uid=uid, check=11)
    for process in crowd:
        agent.world.end(process)
    agent.pact("check", uid=3006, check=11)
    agent.close()


def test_every_request_before_the_end_is_answered(agent: Agent) -> None:
    change = agent.drift(agent.file("many.conf"))
    asked = [
        request("extend", targets=[change["id"]], by_ns=10**9),
        request("consumers", resource="file:/etc/hostname"),
    ]
    answers = sent_and_ended(agent, *asked * PIPELINED, request("commit", message="x"))
    assert [a["exit"] for a in answers] == [0] * (2 * PIPELINED + 1)
    wait_until(lambda: clients(agent) == LISTENING, "the connection is closed on both sides")


def test_a_watcher_that_ended_its_side_goes_on_watching_without_spinning(agent: Agent) -> None:
    path = agent.file("watched.conf")
    with agent.connect() as sock, sock.makefile("rb") as f:
        sock.sendall(request("watch"))
        sock.shutdown(socket.SHUT_WR)
        agent.ask("ping")
        used = cpu_ticks(agent)
        with pytest.raises(TimeoutError):
            sock.settimeout(0.5)
            sock.recv(1, socket.MSG_PEEK)
        assert cpu_ticks(agent) - used < 25, "half a second at most of a quarter: it does not turn in circles"
        sock.settimeout(15)
        agent.drift(path)
        assert json.loads(f.readline())["record"]["type"] == "drift_detected"
    wait_until(lambda: clients(agent) == LISTENING, "the agent noticed that nobody listens any more")


def cpu_ticks(agent: Agent) -> int:
    assert agent.process is not None
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_who_asks_and_leaves_costs_nothing_and_the_request_is_carried_out(agent: Agent) -> None:
    path = agent.file("left.conf")
    agent.drift(path)
    with agent.connect() as sock:
        sock.sendall(request("rollback"))
    agent.settled(f"file:{path}")
    assert agent.world.path(path).read_text() == "declared\n"
    wait_until(lambda: clients(agent) == LISTENING, "the connection is forgotten")


def test_an_unfinished_line_at_the_end_is_no_request(agent: Agent) -> None:
    assert sent_and_ended(agent, request("ping"), b'{"v":1,"op":"status"') == [
        {"ok": True, "exit": 0, "message": "", "hint": "", "result": {"node": "n001"}}
    ]


@pytest.mark.invariant("F22")
def test_one_who_asks_much_reads_nothing_and_then_reads_costs_nothing(agent: Agent) -> None:
    path = agent.file("much.conf", "".join(f"line {i}\n" for i in range(600)))
    agent.drift(path, "".join(f"other {i}\n" for i in range(600)))
    with agent.connect() as sock:
        sock.sendall(b'{"op":"log"}\n')
        sock.settimeout(1.0)
        try:
            for _ in range(400):
                sock.sendall(b'{"op":"diff"}\n' * 20)
        except (TimeoutError, OSError):
            pass
        sock.settimeout(2.0)
        try:
            while sock.recv(1 << 20):
                pass
        except (ConnectionError, TimeoutError):
            pass  # all that was asked is answered
    assert agent.ask("ping")["ok"]
    agent.pact("rollback", "--all")


def test_many_questions_about_consumers_are_answered_one_after_the_other(agent: Agent) -> None:
    path = agent.file("asked.conf")
    with agent.connect() as sock, sock.makefile("rb") as answers, agent.world.path(path).open("rb"):
        sock.sendall(b'{"op":"consumers","args":{"resource":"file:%b"}}\n' % path.encode() * MANY)
        codes = [json.loads(answers.readline())["exit"] for _ in range(MANY)]
    assert codes == [0] * MANY


@pytest.mark.invariant("F22")
def test_a_flood_of_requests_delays_nobody_else(agent: Agent) -> None:
    agent.file("flood.conf")
    flood = b"".join(b'{"v":1,"op":"diff","args":{}}\n' for _ in range(2000))
    socks = [agent.connect() for _ in range(8)]
    try:
        for sock in socks:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.send(flood)
        for _ in range(5):
            begin = time.monotonic()
            assert agent.ask("check")["ok"]
            assert time.monotonic() - begin < 2
    finally:
        for sock in socks:
            sock.close()


def test_answers_come_in_the_order_of_the_questions(agent: Agent) -> None:
    path = agent.file("order.conf")
    agent.drift(path)
    with agent.connect() as sock, sock.makefile("rb") as lines:
        ops: list[tuple[str, dict[str, object]]] = [
            ("commit", {"all": True, "message": "first"}),
            ("check", {}),
            ("status", {}),
        ]
        sock.sendall(b"".join(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n" for op, args in ops))
        first, second, third = (json.loads(lines.readline())["result"] for _ in range(3))
    assert "committed" in first and "line" in second and "journal" in third


@pytest.mark.invariant("S3", "F29")
@pytest.mark.alone  # how many are refused in three seconds says nothing where the machine is busy
def test_refusals_are_journaled_but_cannot_fill_the_journal(agent: Agent) -> None:
    seq = agent.status()["journal"]["seq"]
    script = (
        "import json,socket,sys,time\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.setblocking(False)\n"
        "line=json.dumps({'v':1,'op':'commit','args':{'all':True,'message':'x'}}).encode()+b'\\n'\n"
        "end=time.monotonic()+3\n"
        "while time.monotonic()<end:\n"
        "    for f in (lambda: s.send(line*20), lambda: s.recv(1<<16)):\n"
        "        try: f()\n"
        "        except BlockingIOError: time.sleep(.001)\n"
    )
    command = [sys.executable, "-c", script, agent.socket]
    agent.world.call(
        [
            "setpriv",
            "--reuid=4321",
            "--regid=4321",
            "--clear-groups",
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            "--",
            *command,
        ]
    )
    added = agent.status()["journal"]["seq"] - seq
    assert 10 < added < 100, added
    assert agent.ask("check")["ok"], "others are served"


@pytest.mark.invariant("S5")
def test_no_text_ends_the_agent_or_another_s_connection(agent: Agent) -> None:
    """Each is refused, and the agent goes on."""
    with agent.connect() as other, other.makefile("rb") as answers:
        for text in nasty.REFUSED.values():
            for line in (
                text,
                nasty.in_object(text),
                b'{"op":"ping","v":' + text + b"}",
                b'{"op":"ping","args":' + text + b"}",
                b'{"op":"status","args":{},"x":' + text + b"}",
            ):
                if not line or len(line) > 60_000 or b"\n" in line:
                    continue
                with agent.connect() as sock, sock.makefile("rb") as f:
                    sock.sendall(line + b"\n")
                    answer = json.loads(f.readline() or b"{}")
                    assert answer.get("exit", 2) == 2 and len(answer.get("message", "")) < 500, (text[:40], answer)
            other.sendall(request("ping"))
            assert json.loads(answers.readline())["ok"]
    agent.drift(agent.file("after.conf"))


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    "pattern", ["file:/x/[9-0]*", "file:/x/[]*", "file:/x/[[:a&&b]*", "sysctl:[9-0]*", "mount:/[z-a]*"]
)
def test_no_pattern_ends_the_agent(agent: Agent, pattern: str) -> None:
    """Of anybody: who may track is decided after the pattern was read."""
    code = (
        f"s = socket.socket(socket.AF_UNIX)\ns.connect({agent.socket!r})\n"
        f"s.sendall({request('track', patterns={pattern: 'report'})!r})\nsys.exit(not s.recv(1 << 16))"
    )
    agent.world.call(
        [
            "setpriv",
            "--reuid=4321",
            "--regid=4321",
            "--clear-groups",
            sys.executable,
            "-c",
            f"import socket, sys\n{code}",
        ]
    )
    for op, args in (("track", {"patterns": {pattern: "report"}}), ("adopt", {"patterns": [pattern]})):
        (answer,) = sent_and_ended(agent, request(op, **args))
        assert answer["exit"] in (0, 1, 2), answer
    agent.drift(agent.file("after.conf"))
