"""Garbage from programs and mistakes of people: a clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TOP, Agent, wait_until


def raw(agent: Agent, data: bytes, *, half_close: bool = True) -> bytes:
    """Send bytes; everything that comes back until the agent closes or falls silent."""
    with agent.connect() as sock:
        sock.settimeout(5)
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        out = b""
        try:
            while chunk := sock.recv(65536):
                out += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return out


GARBAGE = [
    b"\n",
    b"hello\n",
    b"{}\n",
    b"[]\n",
    b'"status"\n',
    b"null\n",
    b'{"op":"status"',
    b'{"op":"nonsense","args":{}}\n',
    b'{"op":"status","args":[]}\n',
    b'{"op":1}\n',
    b'{"op":"status","v":2}\n',
    b'{"op":"status","args":{"x":1}}\n',
    b'{"op":"show"}\n',
    b'{"op":"show","args":{"seq":"1"}}\n',
    b'{"op":"show","args":{"seq":1e9}}\n',
    b'{"op":"show","args":{"seq":true}}\n',
    b'{"op":"show","args":{"seq":-1}}\n',
    b'{"op":"show","args":{"seq":99999999999999999999}}\n',
    b'{"op":"log","args":{"count":-1}}\n',
    b'{"op":"log","args":{"since":"\\u0000"}}\n',
    b'{"op":"commit","args":{"targets":[1],"message":"x"}}\n',
    b'{"op":"commit","args":{"targets":"c1"}}\n',
    b'{"op":"extend","args":{"by_ns":-5}}\n',
    b'{"op":"extend","args":{}}\n',
    b'{"op":"adopt","args":{"patterns":[""]}}\n',
    b'{"op":"adopt","args":{"patterns":["file:\\u0000"]}}\n',
    b'{"op":"adopt","args":{"patterns":["file:/x%zz"]}}\n',
    b'{"op":"consumers","args":{"resource":"file:/a\\u0000b"}}\n',
    b'{"op":"consumers","args":{"resource":"\\ud800"}}\n',
    b'{"op":"diff","args":{"targets":["\\u0000"]}}\n',
    b'{"op":"rollback","args":{"to_seq":-1}}\n',
    b'{"op":"hold_place","args":{"reason":"x","for_ns":-1}}\n',
    b'{"op":"emergency_start","args":{"reason":"x","for_ns":9999999999999999999}}\n',
    b'{"op":"emergency_start","args":{"reason":"\\n"}}\n',
    b'{"op":"emergency_end","args":{"how":"maybe"}}\n',
    b"[" * 100_000 + b"\n",
    b'{"op":' * 50_000 + b"\n",
    b'{"op":"declare","args":{"resources":' + b'{"a":' * 5000 + b"1",
    b"\x00\xff\xfe" * 1000 + b"\n",
    os.urandom(4096),
    os.urandom(4096) + b"\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"x" * (1 << 20),
    b"\xef\xbb\xbf{}\n",
    b'{"op":"declare","args":{"resources":{"file:/srv/x":{"attrs":{"type":"file","mode":[]}}}}}\n',
    b'{"op":"declare","args":{"resources":{"file:/srv/x":null}}}\n',
    b'{"op":"apply","args":{"resources":{"":{}}}}\n',
    b'{"op":"declare","args":{"resources":{"file:/srv/x":{"attrs":{"type":"file"},"requires":[1]}}}}\n',
    b'{"op":"declare","args":{"resources":{"file:/srv/x":{"attrs":{"type":"file"},"weight_n":"1"}}}}\n',
    b'{"op":"declare","args":{"resources":{"file:/srv/x":{"attrs":{"type":"file"},"weight_n":1.5}}}}\n',
    b'{"op":"declare","args":{"resources":{"mount:/srv/x":{"attrs":{"source":1,"fstype":"tmpfs","options":[]}}}}}\n',
    b'{"op":"declare","args":{"resources":{},"blobs":{"a":1}}}\n',
]


@pytest.mark.invariant("F21")
def test_garbage_on_the_socket_gets_an_error_and_moves_nothing(agent: Agent) -> None:
    seq = agent.status()["journal"]["seq"]
    pid = agent.process.pid
    for garbage in GARBAGE:
        for line in raw(agent, garbage).splitlines():
            answer = json.loads(line)
            assert answer.get("exit") != 0 or answer["result"].get("adopted") == 0, (garbage[:80], answer)
            assert not {"Traceback", "internal"} & set(answer.get("message", "").split()), (garbage[:80], answer)
        assert agent.status()["journal"]["seq"] == seq or garbage.startswith(b'{"op":"adopt'), garbage[:100]
    assert agent.process.pid == pid and agent.process.poll() is None and "Traceback" not in agent.log()


def test_many_silent_connections_do_not_lock_others_out(agent: Agent) -> None:
    silent = [agent.connect() for _ in range(100)]
    try:
        started = time.monotonic()
        assert agent.ask("check")["exit"] == 11 and time.monotonic() - started < 1
    finally:
        for sock in silent:
            sock.close()


def test_a_reader_that_does_not_read_is_dropped_and_holds_nobody_up(agent: Agent) -> None:
    path = agent.file("flood.conf")
    with agent.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b'{"op":"watch"}\n')
        for i in range(20):
            agent.drift(path, f"{i}\n")
            agent.ask("commit", targets=[f"file:{path}"], message="x")
        assert agent.status()["declared"] == 1


def test_a_request_and_its_answer_may_be_split_anywhere(agent: Agent) -> None:
    with agent.connect() as sock:
        for byte in b'{"op":"ping"}\n{"op":"ping"}\n':
            sock.sendall(bytes([byte]))
        answers = b""
        while answers.count(b"\n") < 2:
            answers += sock.recv(4096)
        assert [json.loads(a)["ok"] for a in answers.splitlines()] == [True, True]


# -- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["status", "extra"],
        ["commit", "--nonsense", "-m", "x"],
        ["show", "one"],
        ["extend"],
        ["commit", "-m", "x", "--ttl", "soon"],
        ["rollback", "--to", "x"],
        ["hold"],
        ["journal"],
        ["log", "-n", "x"],
        ["log", "-n", "-1"],
        ["log", "-n", "-1", "--nodes", "n1"],
        ["show", "-1"],
        ["rollback", "--to", "-1"],
        ["log", "-n", "²"],
    ],
)
def test_wrong_arguments_end_with_2_and_a_short_message(agent: Agent, words: list[str]) -> None:
    done = agent.pact(*words, check=2)
    assert done.out == "" and len(done.err.splitlines()) == 2 and done.err.startswith("pact: "), done
    assert "--help" in done.err.splitlines()[1], done


def test_a_misspelt_command_and_a_negative_duration_are_called_by_their_name(agent: Agent) -> None:
    assert "did you mean 'rollback'?" in agent.pact("rollbak", check=2).err
    assert "did you mean 'place'?" in agent.pact("hold", "plce", check=2).err
    for words in (
        ["hold", "place", "--reason", "x", "--for", "-1h"],
        ["commit", "-m", "x", "--ttl", "-90s"],
        ["extend", "-5m"],
        ["hold", "place", "--reason", "x", "--for=-1h"],
    ):
        assert "a duration is not negative" in agent.pact(*words, check=2).err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nonsense"], 2),
        (["commit"], 2),
        (["apply", "/nonexistent.toml"], 2),
        (["diff", "c99"], 2),
        (["log", "--type", "x"], 2),
        (["--socket", "/nonexistent/s", "status"], 5),
        (["show", "99999999"], 2),
        (["hold", "release", "h99"], 4),
        (["journal", "verify", "/nonexistent"], 2),
        (["nodes"], 5),
    ],
)
def test_an_error_is_a_document_too_where_programs_ask(agent: Agent, words: list[str], code: int) -> None:
    done = agent.pact("--json", *words, check=code)
    said = done.json()
    assert said["v"] == 1 and said["exit"] == code and said["error"] and done.err.startswith("pact: "), done
    assert said["hint"] == "" or said["hint"] in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["nodes"],
        ["groups"],
        ["status", "--nodes", "n1"],
        ["commit", "g7", "-m", "x"],
        ["hold", "place", "--all", "--reason", "x", "--for", "1h"],
    ],
)
def test_without_a_configured_root_many_nodes_cannot_be_reached(agent: Agent, words: list[str]) -> None:
    done = agent.pact(*words, check=5)
    assert "no root is configured" in done.err and "client.toml" in done.err


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("file:relative", "absolute path"),
        ("file:**", "absolute path"),
        ("srvice:**", "not known"),
    ],
)
def test_a_pattern_that_can_match_nothing_is_a_mistake(agent: Agent, pattern: str, says: str) -> None:
    assert says in agent.pact("adopt", pattern, check=2).err.splitlines()[0]


@pytest.mark.parametrize("flags", [["--require", "all"], ["--allow-missing", "1"], ["--allow-missing", "n7"]])
def test_what_only_many_nodes_can_mean_changes_nothing_here(agent: Agent, flags: list[str]) -> None:
    path = agent.file("alone.conf")
    wanted = agent.base / "alone.toml"
    wanted.write_text(f'[file."{path}"]\ncontent = "new\\n"\n')
    done = agent.pact("apply", str(wanted), *flags, check=2)
    assert flags[0] in done.err and "--nodes" in done.err
    assert agent.world.path(path).read_text() == "declared\n" and not agent.status()["changes"]


def test_allow_missing_is_for_groups(agent: Agent) -> None:
    path = agent.file("missing.conf")
    agent.drift(path)
    for words in (["commit", "-m", "x"], ["rollback"], ["extend", "5m"]):
        assert "--allow-missing is for a group" in agent.pact(*words, "--allow-missing", "1", check=2).err
    assert agent.change_of(f"file:{path}")["state"] == "open"


def test_without_an_agent_the_answer_is_5_and_what_to_do(agent: Agent) -> None:
    for words in (["status"], ["check"], ["commit", "-m", "x"], ["watch"], ["log"], ["export"]):
        done = agent.pact("--socket", "/nonexistent/sock", *words, check=5)
        assert "no agent answers at /nonexistent/sock" in done.err and "start it" in done.err and done.out == ""


def test_a_socket_that_nobody_serves_any_more_says_the_same(agent: Agent) -> None:
    path = str(agent.base / "dead.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    assert "refused" in agent.pact("--socket", path, "status", check=5).err


def test_a_closed_pipe_is_no_traceback(agent: Agent) -> None:
    pact = f"'{sys.executable}' -m pact.cli.main --socket {agent.socket}"
    done = agent.world.sh(f"{pact} log -n 1000 | true; {pact} status >/dev/full", check=False)
    assert done.code == 1 and "Traceback" not in done.err and "No space left" in done.err, done


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "<&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("status", 0),
        ("--json status", 0),
        ("--json log", 0),
        ("check", 11),
        ("export", 0),
        ("nonsense", 2),
        ("--help", 0),
        ("apply -", 2),
    ],
)
def test_a_closed_stream_is_one_that_nobody_reads(agent: Agent, words: str, code: int, closed: str) -> None:
    pact = f"'{sys.executable}' -m pact.cli.main --socket {agent.socket}"
    done = agent.world.sh(f"{pact} {words} {closed}", check=False)
    assert done.code == code and "Traceback" not in done.err, done


@pytest.mark.parametrize(
    "words",
    [
        ["log", "--since", "0001-01-01T00:00:00+23:00"],
        ["log", "--since", "9999-12-31T23:59:59-23:00"],
        ["emergency", "start", "--reason", "x", "--for", "0"],
        ["hold", "place", "--reason", "x", "--for", "0s"],
        ["commit", "-m", "x", "--ttl", "0.0m"],
        ["status", "--timeout", "0"],
    ],
)
def test_times_that_cannot_be_are_mistakes(agent: Agent, words: list[str]) -> None:
    done = agent.pact(*words, check=2)
    assert words[-1] in done.err and len(done.err.splitlines()) <= 2, done
    assert agent.status()["emergency"] is None and agent.status()["holds"] == []


def test_long_ago_is_before_every_record(agent: Agent) -> None:
    since = agent.pact("--json", "log", "--since", "0999-01-01T00:00:00Z").lines()
    assert since == agent.pact("--json", "log", "--since", "1970-01-01T00:00:00Z").lines() != []


def test_no_help_offers_what_is_not_taken(agent: Agent) -> None:
    for name, offered in (("apply", True), ("commit", True), ("rollback", False), ("extend", False)):
        assert ("--allow-missing" in agent.pact(name, "--help").out) == offered, name


def test_a_dry_run_does_not_say_that_a_sysctl_would_be_created(agent: Agent) -> None:
    text = b'[sysctl]\n"net.nonesuch" = 1\n'
    for command in ("apply", "declare"):
        said = agent.pact(command, "-", "--dry-run", input=text, check=1).out
        assert "create" not in said and "set      sysctl:net.nonesuch: the kernel has no such sysctl now" in said, said


def test_help_and_version_need_no_agent(agent: Agent) -> None:
    assert "commit" in agent.pact("--help").out
    assert agent.pact("--version").out.startswith("pact ")
    for name in ("status", "commit", "declare", "emergency", "journal"):
        assert "usage" in agent.pact(name, "--help").out


# -- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[window]\nbsae = "1m"\n', ["[window]", "bsae", "'base'"]),
        ("[windwo]\n", ["windwo", "'window'"]),
        ('[window]\nbase = "soon"\n', ["[window] base"]),
        ("[window]\nbase = 0\n", ["base", "more than nothing"]),
        ("[window]\nbase = true\n", ["base"]),
        ('[mode]\nenforcement = "maybe"\n', ["enforcement", "observe"]),
        ("[drift]\nweights = {kernle = 1.0}\n", ["kernle", "kernel"]),
        ("window = 1\n", ["window"]),
        ("[[[\n", ["line 1"]),
        ('[window]\nbase = "1m"\nbase = "2m"\n', ["line 3"]),
        ('[node]\nname = "a b"\n', ["name"]),
        ("[rollback]\nmax_resources = -1\n", ["max_resources"]),
        ('[drift]\nignore = "file:/x"\n', ["ignore"]),
    ],
)
def test_a_mistake_in_the_configuration_is_named_with_the_nearest_key(
    make_agent: Callable[..., Agent], text: str, says: list[str]
) -> None:
    agent = make_agent()
    agent.config_path.write_text(text)
    done = agent.refuses_to_start()
    assert done.code == 2 and str(agent.config_path) in done.err and "Traceback" not in done.err, done
    assert all(word in done.err for word in says) and len(done.err.splitlines()) <= 2, done.err


def test_a_configuration_mistake_names_its_line(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.config_path.write_text('# first\n[window]\nbase = "1m"\n\nsensitvity = 2.0\n')
    assert f"{agent.config_path}:5:" in agent.refuses_to_start().err


def test_a_configuration_that_cannot_be_read_or_used_is_refused(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.config_path.unlink()
    assert agent.refuses_to_start().code == 2
    agent.config_path.write_bytes(b"\xff\xfe")
    assert agent.refuses_to_start().code == 2
    agent.configure({"control": {"socket": "/" + "x" * 200}})
    done = agent.refuses_to_start()
    assert done.code == 1 and "longer than 107" in done.err
    agent.configure({"control": {"socket": "/proc/nowhere/s"}})
    assert agent.refuses_to_start().code == 1
    agent.configure({"control": {"socket": agent.socket}, "state": {"dir": "/proc/nowhere"}})
    done = agent.refuses_to_start()
    assert done.code == 5 and "/proc/nowhere" in done.err and "Traceback" not in done.err


def test_declared_files_with_a_mistake_stop_the_first_start_and_say_where(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    wrong = agent.base / "d.toml"
    wrong.write_text('[file."/srv/q"]\ncontent = "x"\nmode = "0999"\n')
    agent.configure({"declared": {"files": [str(wrong)]}})
    done = agent.refuses_to_start()
    assert done.code == 2 and f"{wrong}:1:" in done.err and "octal" in done.err
    wrong.write_text('[file."/srv/q"]\ncontent = "declared\\n"\n')
    agent.start()
    status = agent.status()
    assert status["declared"] == 1 and status["drifted"] == 1 and status["changes"][0]["remaining_s"] > 0, (
        "an empty journal takes the files without acting on them"
    )
    assert not agent.world.path("/srv/q").exists()
    agent.close()


# -- files that are hard to read ------------------------------------------------------------------------------------


@pytest.mark.invariant("F9")
def test_what_cannot_be_read_is_unreadable_never_drift(agent: Agent) -> None:
    """A directory on the way is exchanged, in one call, for a link that leads to itself."""
    agent.world.sh(f"mkdir {TOP}/loop; echo x > {TOP}/loop/f; ln -s loop {TOP}/other")
    agent.adopt(f"file:{TOP}/loop/f")
    one, two = os.fsencode(agent.world.path(f"{TOP}/loop")), os.fsencode(agent.world.path(f"{TOP}/other"))
    assert ctypes.CDLL(None).renameat2(-100, one, -100, two, 2) == 0
    wait_until(lambda: agent.status()["unreadable"] == 1, "it is unreadable")
    status = agent.status()
    assert status["drifted"] == 0 and status["state"] == "committed"
    assert list(status["unreadable_resources"]) == [f"file:{TOP}/loop/f"]
    agent.world.sh(f"rm {TOP}/loop; mv {TOP}/other {TOP}/loop")
    wait_until(lambda: agent.status()["unreadable"] == 0, "it can be read again")


@pytest.mark.parametrize("make", ["mkfifo {}", "mknod {} c 1 3", "mkdir {}"])
def test_a_file_replaced_by_something_else_is_drift_and_hangs_nobody(agent: Agent, make: str) -> None:
    path = agent.file("special.conf")
    agent.world.sh(f"rm {path}; " + make.format(path))
    agent.drifted(f"file:{path}")
    assert agent.json("diff")["resources"][0]["actual"]["type"] in ("fifo", "char", "directory")
    agent.pact("rollback", check=None)
    assert agent.status()["v"] == 1
    agent.world.sh(f"rm -rf {path}")


def test_a_sparse_file_of_ten_gibibytes_blocks_neither_the_agent_nor_others(agent: Agent) -> None:
    path, other = agent.file("huge.bin", "small\n"), agent.file("beside.conf")
    agent.world.sh(f"truncate -s 10G {path}")
    started = time.monotonic()
    agent.drift(other)
    assert agent.ask("check")["exit"] == 11 and time.monotonic() - started < 5
    agent.world.path(path).write_text("small\n")
    agent.pact("rollback", f"file:{other}")
    assert agent.world.path(other).read_text() == "declared\n"
    wait_until(lambda: not agent.change_of(f"file:{path}"), "it is as declared", 60)


def test_a_restored_file_is_not_written_through_a_link_on_the_way(agent: Agent) -> None:
    agent.world.sh(f"mkdir {TOP}/real; echo declared > {TOP}/real/f")
    agent.adopt(f"file:{TOP}/real/f")
    agent.world.sh(
        f"mkdir {TOP}/victim; echo victim > {TOP}/victim/f; mv {TOP}/real {TOP}/moved;ln -s victim {TOP}/real"
    )
    agent.drifted(f"file:{TOP}/real/f")
    assert "symbolic link" in agent.pact("rollback", "--all", check=1).err + json.dumps(agent.status()["changes"])
    assert agent.world.path(f"{TOP}/victim/f").read_text() == "victim\n"
    agent.world.sh(f"rm {TOP}/real; mv {TOP}/moved {TOP}/real")


def test_the_state_directory_is_private(agent: Agent) -> None:
    assert stat.S_IMODE(os.stat(agent.state_dir).st_mode) == 0o700
    for path in agent.state_dir.glob("journal*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_pact_s_own_files_are_never_resources(agent: Agent) -> None:
    for path in (agent.config_path, agent.journal, Path(agent.socket)):
        assert agent.ask("adopt", patterns=[f"file:{path}"])["result"].get("adopted", 0) == 0


@pytest.mark.parametrize(
    "name", ["net.ipv4.ip_forward.", "net.ipv4./.ip_forward", "net.ipv4.//.x", "net.ipv4./", "net..x"]
)
def test_a_sysctl_s_name_that_no_file_can_have_is_refused(agent: Agent, name: str) -> None:
    answer = agent.pact("declare", "-", input=f'[sysctl]\n"{name}" = 0\n'.encode(), check=2)
    assert "<stdin>:2" in answer.err or ":2:" in answer.err, answer.err
    asked = agent.ask("declare", resources={f"sysctl:{name}": {"attrs": {"value": "0"}}})
    assert asked["exit"] == 2 and "no sysctl name" in asked["message"], asked
    assert agent.status()["declared"] == 0


@pytest.mark.parametrize("path", ["/" + "/".join(["d" * 200] * 25), "/srv/" + "d" * 256])
@pytest.mark.parametrize("kind", ["file", "mount"])
def test_a_path_longer_than_the_kernel_takes_is_refused(agent: Agent, kind: str, path: str) -> None:
    value = {"file": 'content = "x"', "mount": 'source = "tmpfs"\nfstype = "tmpfs"'}[kind]
    answer = agent.pact("declare", "-", input=f'[{kind}."{path}"]\n{value}\n'.encode(), check=2)
    assert "bytes" in answer.err
    assert agent.ask("consumers", resource=f"{kind}:{path}")["exit"] == 2
    assert agent.status()["declared"] == 0
