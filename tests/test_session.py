"""A session and its twin, without an agent: frames, credit, hostile clients, its end, and what it costs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from session_kit import Sessions, wait_until

from pact.session import cast, frames
from pact.session.prepare import NATIVE

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(params=["native", "twin"])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    assert os.path.exists(NATIVE), "the program was not built"
    made = Sessions(twin=request.param == "twin")
    yield made
    made.close()


def test_a_command_s_output_error_input_and_exit(sessions: Sessions) -> None:
    state = sessions.open("a", "cat; echo wrong >&2; exit 3")
    peer = sessions.attach("a")
    data = os.urandom(700_000)
    for at in range(0, len(data), 60_000):
        while peer.read(0):
            pass
        peer.send(b"I", data[at : at + 60_000])
        while len(peer.out) < at - 100_000:
            peer.read()
    peer.send(b"D")
    assert peer.end() == {"exit": 3}
    assert hashlib.sha256(peer.out).digest() == hashlib.sha256(data).digest()
    assert peer.err == b"wrong\n"
    credit = sum(int(p) for k, p in peer.frames if k == b"C")
    assert credit == len(data)
    wait_until(lambda: sessions.gone(state), "it is gone")
    end = sessions.state("a")["end"]
    assert (end["exit"], end["in"], end["out"]) == (3, len(data), len(data) + 6)


def test_a_signal_is_told_and_a_signal_is_given(sessions: Sessions) -> None:
    sessions.open("a", "trap 'echo got' USR1; echo up; while :; do sleep 0.05; done")
    peer = sessions.attach("a")
    peer.until(b"up")
    peer.send(b"S", b"USR1")
    peer.until(b"got")
    peer.send(b"S", b"KILL")
    assert peer.end() == {"signal": "KILL"}
    assert frames.ended(b'{"signal":"KILL"}') == (137, "")


@pytest.mark.parametrize(
    "bad",
    [
        b"Z\0\0\0\0",
        b"I\xff\xff\xff\xff",
        b"I\0\1\0\1" + b"x" * 65537,
        b"\0" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        frames.frame(b"C", b"-5"),
        frames.frame(b"C", b"9" * 30),
        frames.frame(b"W", b"[1]"),
        frames.frame(b"W", b"[[[["),
        frames.frame(b"W", b'{"a":1}'),
        frames.frame(b"W", b"[24,80.5]"),
        frames.frame(b"S", b"NOSUCH"),
        frames.frame(b"O", b"hello"),
        frames.frame(b"X", b"{}"),
    ],
)
def test_nonsense_ends_the_connection_and_not_the_session(sessions: Sessions, bad: bytes) -> None:
    sessions.open("a", "cat")
    peer = sessions.attach("a")
    peer.wait(b"A")
    try:
        peer.sock.sendall(bad)
    except OSError:
        pass
    end = peer.end()
    assert "nonsense" in end["why"], end
    again = sessions.attach("a")
    again.send(b"I", b"still here\n")
    again.until(b"still here")
    again.send(b"D")
    assert again.end() == {"exit": 0}


def test_random_frames_end_no_session(sessions: Sessions) -> None:
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    state = sessions.open("a", "cat", terminal=bool(seed % 2))
    for _ in range(150):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{sessions.place}/a.sock")
            sock.settimeout(5)
            sock.sendall(
                _random(draw, b"A")
                if draw.random() < 0.3
                else frames.said(b"A", {"by": "x", "from": draw.randrange(99)})
            )
            try:
                for _ in range(draw.randrange(12)):
                    sock.sendall(
                        _random(draw, draw.choice([b"I", b"W", b"C", b"D", b"S", b"E", b"N", b"X", b"A", b"?"]))
                    )
            except OSError:
                continue  # it was turned away
    assert not sessions.gone(state), f"seed {seed}"
    peer = sessions.attach("a")
    assert peer.wait(b"A")["id"] == "a", f"seed {seed}"


def _random(draw: random.Random, kind: bytes) -> bytes:
    """Something like a frame: a good one, one that is cut, one with another length, or bytes."""
    texts = [
        b"[24,80]",
        b"[1,2,3,4]",
        b"[-1,99999999999999]",
        b'{"by":"\\ud800\\u0000"}',
        b'{"a":null,"by":"x","rows":3,"cols":true}',
    ]
    payload = draw.choice([*texts, b"17", b"WINCH", b"CONT", draw.randbytes(draw.randrange(300))])
    if kind == b"D" or payload in (b"HUP", b"KILL"):
        kind = b"C"
    whole = bytearray(frames.HEAD.pack(kind, len(payload)) + payload)
    how = draw.random()
    if how < 0.2:
        del whole[draw.randrange(len(whole)) :]
    elif how < 0.4 and len(whole) > 6:
        whole[draw.randrange(1, 5)] = draw.randrange(256)
    elif how < 0.5:
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    if whole[:1] == b"D":  # a bit makes an E one: the end of the input, which ends the command
        whole[:1] = b"C"
    return bytes(whole)


@pytest.mark.parametrize("bad", [b"", b"[]", b"{", b'{"by":{}}', b'{"by":[1]}', b"x" * 1000, b'{"rows":1e9}' * 9])
def test_who_does_not_say_who_comes_is_not_attached(sessions: Sessions, bad: bytes) -> None:
    if bad.startswith(b'{"by":') and sessions.twin:
        return  # the twin reads any JSON
    sessions.open("a", "cat")
    good = sessions.attach("a")
    good.wait(b"A")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"{sessions.place}/a.sock")
        sock.sendall(frames.frame(b"A", bad))
        got = b""
        while piece := sock.recv(4096):
            got += piece
        assert b"nonsense" in got
    good.send(b"I", b"mine\n")
    good.until(b"mine")


def test_many_strangers_that_say_nothing_keep_nobody_out(sessions: Sessions) -> None:
    sessions.open("a", "cat")
    mute = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    for sock in mute:
        sock.connect(f"{sessions.place}/a.sock")
        time.sleep(0.01)
    peer = sessions.attach("a")
    peer.send(b"I", b"hello\n")
    peer.until(b"hello")
    for sock in mute:
        sock.close()


def test_more_input_than_it_may_send_ends_the_client(sessions: Sessions) -> None:
    sessions.open("a", "sleep 60")
    peer = sessions.attach("a")
    peer.wait(b"A")
    try:
        for _ in range(8):
            peer.send(b"I", b"x" * 65536)
    except OSError:
        pass
    assert "more input" in peer.end()["why"]


def test_a_second_client_takes_over(sessions: Sessions) -> None:
    sessions.open("a", "echo hello; cat")
    first = sessions.attach("a", by="ann on \x1b]0;evil\x07")
    first.until(b"hello")
    second = sessions.attach("a", by="bob")
    assert first.end()["why"] == "taken over by bob"
    second.send(b"I", b"mine\n")
    second.until(b"mine")


@pytest.mark.invariant("X7")
def test_who_never_reads_stops_the_writer_and_nobody_else(sessions: Sessions) -> None:
    state = sessions.open("a", "yes | tee /dev/null")
    sessions.open("b", "cat")
    deaf = sessions.attach("a")
    deaf.gives_credit = False
    wait_until(lambda: _ticks(state["pid"]) is not None, "it runs")
    time.sleep(0.7)
    before = _ticks(state["pid"])
    wrote = psutil.Process(state["pid"]).io_counters().write_bytes
    time.sleep(0.7)
    after = _ticks(state["pid"])
    assert after is not None and before is not None and after - before <= 2, "it waits, and does not spin"
    assert wrote >= 0
    other = sessions.attach("b")
    began = time.monotonic()
    other.send(b"I", b"quick\n")
    other.until(b"quick")
    assert time.monotonic() - began < 2
    while deaf.read(0.2):
        pass
    assert len(deaf.out) <= frames.CREDIT


def _ticks(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return int(fields[11]) + int(fields[12])
    except OSError:
        return None


def test_a_stopped_client_is_waited_for(sessions: Sessions) -> None:
    """``kill -STOP`` of a client is a client that does not read; when it goes on, nothing is lost."""
    sessions.open("a", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done")
    peer = sessions.attach("a")
    time.sleep(1.0)
    assert peer.end() == {"exit": 0}
    assert len(peer.out) == 3_000_006


def test_output_of_a_command_is_never_lost_to_a_cut(sessions: Sessions) -> None:
    sessions.open("a", "head -c 2000000 /dev/zero | tr '\\0' y; echo done")
    got = 0
    while True:
        peer = sessions.attach("a", **{"from": got})
        while len(peer.out) < 300_000 and not any(k == b"X" for k, _ in peer.frames):
            if not peer.read(5):
                break
        said = peer.wait(b"A")
        assert (said["at"], said["lost"]) == (got, 0)
        got += len(peer.out)
        if got == 2_000_005 or any(k == b"X" for k, _ in peer.frames):
            break
        peer.close()  # cut off, with more on its way
    assert got == 2_000_005


def test_a_terminal_goes_on_without_a_client_and_says_what_was_lost(sessions: Sessions) -> None:
    state = sessions.open("a", "head -c 1000000 /dev/zero | tr '\\0' z; echo; echo last; cat", terminal=True)
    wait_until(lambda: b"last" in _screen(sessions), "it did not wait", 20)
    peer = sessions.attach("a", **{"from": 10})
    said = peer.wait(b"A")
    assert said["lost"] > 300_000 and said["at"] > 300_000
    peer.until(b"last")
    assert len(peer.out) <= 2 * frames.CREDIT
    assert state["tty"].startswith("pts/")


def _screen(sessions: Sessions) -> bytes:
    """Attach for a moment, and look at the end."""
    peer = sessions.attach("a")
    peer.read(0.5)
    peer.read(0.2)
    out = peer.out
    peer.close()
    time.sleep(0.05)
    return out


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((31, 97), "31 97"),
        ((0, 0), "24 80"),
        ((50, 10_000), "50 4096"),
        ((-1, -5), "24 80"),
        ((10**9, 10**9), "4096 4096"),
    ],
)
def test_absurd_sizes_of_terminals(sessions: Sessions, size: tuple[int, int], shown: str) -> None:
    sessions.open("a", "while read _; do stty size; done", terminal=True)
    peer = sessions.attach("a", rows=size[0], cols=size[1])
    peer.send(b"I", b"\r")
    peer.until(shown.encode() + b"\r\n")
    peer.send(b"W", json.dumps([size[0], size[1], 70_000, -4]).encode())
    peer.send(b"I", b"\r")
    wait_until(lambda: peer.read() is not None and peer.out.count(shown.encode()) == 2, "again")


def test_random_bytes_make_a_cast_that_can_be_read(sessions: Sessions) -> None:
    path = f"{sessions.place}/r.cast"
    sessions.open(
        "r", "stty raw -echo; head -c 300000 /dev/urandom", terminal=True, transcript=path, transcript_max=8 << 20
    )
    peer = sessions.attach("r")
    assert peer.end(30)["exit"] == 0
    data = cast.whole(path, cast.header(24, 80, 1, "t", {}), 8 << 20)
    head, *events = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    assert head["version"] == 2 and len(events) > 1
    assert all(e[1] in "or" and isinstance(e[2], str) and e[0] >= 0 for e in events)
    times = [e[0] for e in events]
    assert times == sorted(times)
    told = "".join(e[2] for e in events)
    assert told.replace("\ufffd", "") == peer.out.decode("utf-8", "replace").replace("\ufffd", "")


def test_a_cast_keeps_whole_characters_and_the_newest_output(sessions: Sessions) -> None:
    path = f"{sessions.place}/c.cast"
    script = "for b in '\\343' '\\201' '\\202'; do printf $b; sleep 0.05; done; seq 1 60000; printf end"
    sessions.open("c", script, transcript=path, transcript_max=100_000)
    peer = sessions.attach("c")
    peer.end(30)
    sizes = [os.path.getsize(p) for p in (path, f"{path}.1")]
    assert all(s <= 50_000 + 65_536 * 2 for s in sizes)
    data = cast.whole(path, b'{"version": 2}\n', 100_000)
    assert len(data) <= 100_020
    events = [json.loads(line) for line in data.decode().split("\n")[1:-1]]
    assert events[-1][2].endswith("end")
    wait_until(lambda: sessions.state("c").get("cast"), "what was dropped is counted")
    assert "\ufffd" not in data.decode()


def test_who_types_and_sees_nothing_for_too_long_is_hung_up(sessions: Sessions) -> None:
    state = sessions.open("a", "trap '' HUP; sleep 100", terminal=True, idle_s=1)
    peer = sessions.attach("a")
    began = time.monotonic()
    end = peer.end(20)
    assert "nothing was typed" in end["why"] and end["signal"] == "KILL"
    assert 1 <= time.monotonic() - began < 15
    wait_until(lambda: sessions.gone(state), "it is gone")


def test_without_a_client_it_is_hung_up_and_the_file_says_why(sessions: Sessions) -> None:
    state = sessions.open("a", "trap 'exit 4' HUP; while :; do sleep 0.05; done", detached_s=0.5)
    end = wait_until(lambda: sessions.state("a").get("end"), "it has ended", 20)
    assert end["exit"] == 4 and end["why"] == "nobody was attached any more"
    wait_until(lambda: sessions.gone(state), "it is gone", 20)
    assert not os.path.exists(f"{sessions.place}/a.sock")


def test_it_can_be_ended_by_whoever_may_connect(sessions: Sessions) -> None:
    sessions.open("a", "cat", terminal=True)
    peer = sessions.attach("a")
    peer.wait(b"A")
    sessions.attach("a", end="the key of ann was removed")
    assert peer.end()["why"] == "the key of ann was removed"
    assert "the key of ann was removed" in peer.wait(b"N")


def test_an_end_that_nobody_sees_waits_for_the_client_to_come_back(sessions: Sessions) -> None:
    sessions.open("a", "read _; echo bye; exit 6")
    peer = sessions.attach("a")
    peer.send(b"I", b"\n")
    peer.close()
    wait_until(lambda: sessions.state("a").get("end"), "it has ended")
    again = sessions.attach("a", **{"from": 0})
    assert again.end() == {"exit": 6}
    assert again.out == b"bye\n"


def test_a_process_that_stays_behind_holds_nobody_up(sessions: Sessions) -> None:
    sessions.open("a", "(trap '' HUP; sleep 30) & echo started; exit 0", terminal=True)
    peer = sessions.attach("a")
    began = time.monotonic()
    assert peer.end()["exit"] == 0
    assert time.monotonic() - began < 8


def test_a_shell_that_closes_its_terminal_lives_on(sessions: Sessions) -> None:
    state = sessions.open("a", "exec </dev/null >/dev/null 2>&1; sleep 1.5; exit 8", terminal=True)
    peer = sessions.attach("a")
    assert peer.end()["exit"] == 8
    used = _ticks(state["pid"])
    assert used is None or used < 30


def test_nothing_stays_of_what_the_agent_does_not_want(sessions: Sessions) -> None:
    conn, said = sessions.ask("a", command=["touch", "/tmp/pact-must-not-be"], transcript=f"{sessions.place}/a.cast")
    assert "ready" in said
    conn.sendall(b"no\n")
    wait_until(lambda: sessions.gone(said["ready"]), "it is gone")
    assert sorted(p.name for p in sessions.place.iterdir()) == ["keeper.sock"]
    assert not os.path.exists("/tmp/pact-must-not-be")


@pytest.mark.invariant("X4")
def test_what_the_agent_may_have_recorded_says_that_it_never_began(sessions: Sessions) -> None:
    """The agent is killed between the record and its word."""
    conn, said = sessions.ask("a", command=["touch", "/tmp/pact-must-not-be"])
    conn.close()
    wait_until(lambda: sessions.gone(said["ready"]), "it is gone")
    end = sessions.state("a")["end"]
    assert (end["exit"], end["why"]) == (None, "it never began")
    assert not os.path.exists("/tmp/pact-must-not-be") and not os.path.exists(f"{sessions.place}/a.sock")


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"account": "no-such-person"}, "no account"),
        ({"account": "../etc/passwd"}, "no name"),
        ({"account": "root\n"}, "no name"),
        ({"root": False}, "may not open a session of root"),
    ],
)
def test_refusals_leave_nothing(sessions: Sessions, wish: dict[str, object], why: str) -> None:
    _, said = sessions.ask("a", **wish)
    assert why in said["refused"], said
    assert sorted(p.name for p in sessions.place.iterdir()) == ["keeper.sock"]


def test_a_link_in_the_directory_is_not_followed(sessions: Sessions) -> None:
    target = sessions.place / "victim"
    target.write_text("mine")
    for name in ("a.json", "a.json.new", "b.cast", "b.cast.1"):
        (sessions.place / name).symlink_to(target)
    sessions.open("a", "echo one")
    peer = sessions.attach("a")
    peer.end()
    (sessions.place / "c.sock").symlink_to(target)
    _, said = sessions.ask("c")
    assert "failed" in said
    sessions.open("b", "echo two", transcript=f"{sessions.place}/b.cast")
    sessions.attach("b").end()
    assert target.read_text() == "mine"


@pytest.mark.invariant("X5")
def test_other_accounts_cannot_reach_the_keeper_or_a_session(sessions: Sessions) -> None:
    sessions.place.chmod(0o755)  # even where the directory was opened
    sessions.open("a", "cat")
    code = (
        "import socket,sys,os\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for p in sys.argv[1:]:\n"
        " s=socket.socket(socket.AF_UNIX)\n"
        " try: s.connect(p)\n"
        " except PermissionError: continue\n"
        " sys.exit(1)\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, sessions.path, f"{sessions.place}/a.sock"], check=False).returncode
        == 0
    )


def test_a_fork_bomb_is_bounded(sessions: Sessions) -> None:
    state = sessions.open(
        "a", "for i in $(seq 60); do sleep 20 & done 2>/dev/null; echo done; jobs | wc -l; wait", tasks=30
    )
    if not any(os.path.exists(f"{g}/pids.max") for g in state["cgroups"]):
        pytest.skip("there is no pids controller")
    peer = sessions.attach("a")
    end = time.monotonic() + 20
    while time.monotonic() < end and b"done" not in peer.out and not peer.closed:
        peer.read()
    group = next(g for g in state["cgroups"] if os.path.exists(f"{g}/pids.max"))
    with open(f"{group}/pids.current", encoding="ascii") as f:
        assert int(f.read()) <= 30


def test_a_killed_host_takes_a_command_without_terminal_with_it(sessions: Sessions) -> None:
    state = sessions.open("a", "exec sleep 300")
    shell = wait_until(lambda: sessions.state("a")["shell"], "it runs")
    os.kill(state["pid"], signal.SIGKILL)
    wait_until(lambda: sessions.gone({"pid": shell}), "its command is gone")


def test_an_idle_session_costs_less_than_a_mebibyte_and_no_time() -> None:
    sessions = Sessions(twin=False)
    try:
        states = [sessions.open(f"n{n}", "cat", terminal=True) for n in range(6)]
        time.sleep(0.5)
        before = [_ticks(s["pid"]) for s in states]
        waited = [psutil.Process(s["pid"]).num_ctx_switches().voluntary for s in states]
        time.sleep(1.0)
        assert [_ticks(s["pid"]) for s in states] == before
        assert [psutil.Process(s["pid"]).num_ctx_switches().voluntary for s in states] == waited
        uss = [psutil.Process(s["pid"]).memory_full_info().uss for s in states]
        assert max(uss) < 1 << 20, uss
    finally:
        sessions.close()
