"""status, diff, check, log, watch, show, consumers: what people and programs see."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
from datetime import datetime

import chain
import pytest
from harness import TOP, Agent, wait_until

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")
DIMENSIONS = {"kernel", "files", "mounts", "services", "network", "packages", "gpu"}
TYPES = {
    "agent_started",
    "agent_stopped",
    "declared",
    "adopted",
    "applied",
    "drift_detected",
    "drift_cleared",
    "window_opened",
    "window_extended",
    "committed",
    "commit_expired",
    "rollback_started",
    "rolled_back",
    "rollback_blocked",
    "rollback_failed",
    "emergency_started",
    "emergency_stale",
    "emergency_ended",
    "hold_placed",
    "hold_released",
    "observer_blind",
    "observer_restored",
    "denied",
}


def test_status_of_a_quiet_node_has_every_field_with_its_type(agent: Agent) -> None:
    status = agent.json("status")
    assert status["v"] == 1 and status["node"] == "n001" and status["mode"] == "enforce"
    assert status["state"] == "unconfigured" and status["magnitude"] == 0
    assert set(status["dimensions"]) == DIMENSIONS and not any(status["dimensions"].values())
    assert (status["declared"], status["drifted"], status["unreadable"]) == (0, 0, 0)
    assert status["observers"] and all(isinstance(v, str) for v in status["observers"].values())
    assert status["changes"] == [] and status["emergency"] is None and status["holds"] == []
    assert isinstance(status["journal"]["seq"], int) and status["journal"]["replicated"] == status["journal"]["seq"]


def test_a_node_for_which_nothing_is_declared_is_not_as_it_should_be(agent: Agent) -> None:
    done = agent.pact("check", check=11)
    assert done.out.startswith("unconfigured: 0 declared")
    agent.file("a.conf")
    assert agent.status()["state"] == "committed"
    agent.pact("check")


def test_status_of_drift_names_change_owner_resources_and_time_left(agent: Agent) -> None:
    path = agent.file("status.conf", mode=0o666)
    agent.drift_by(1234, path, "other")
    status = agent.json("status")
    assert status["state"] == "drifted" and status["declared"] == 1 and status["drifted"] == 1
    assert status["magnitude"] == status["dimensions"]["files"] or status["magnitude"] > 0
    (change,) = status["changes"]
    assert re.fullmatch(r"c\d+", change["id"]) and change["state"] == "open"
    assert change["resources"] == [f"file:{path}"] and change["consumers"] == []
    owner = change["owner"]
    assert {"user", "uid", "session", "command"} <= set(owner)
    assert isinstance(owner["uid"], int | None) and isinstance(owner["command"], str)
    assert RFC3339.match(change["opened"]) and RFC3339.match(change["deadline"])
    left = (datetime.fromisoformat(change["deadline"]) - datetime.fromisoformat(change["opened"])).total_seconds()
    window = 3600 / (1 + status["magnitude"] * 2.0)
    assert left == pytest.approx(window, rel=0.01)  # W = base / (1 + M * sensitivity)
    assert 0 < change["remaining_s"] <= left


def test_the_writer_of_a_file_is_the_owner_of_its_change(agent: Agent) -> None:
    path = agent.file("owned.conf", mode=0o666)
    assert agent.drift_by(1234, path, "other")["owner"]["uid"] == 1234


def test_diff_shows_declared_against_actual_as_a_unified_diff(agent: Agent) -> None:
    path = agent.file("diff.conf", "one\ntwo\nthree\n")
    agent.drift(path, "one\n2\nthree\n")
    document = agent.json("diff")
    assert document["v"] == 1
    (entry,) = document["resources"]
    assert {"id", "kind", "declared", "actual", "deviation", "change", "owner", "seen", "diff"} <= set(entry)
    assert entry["id"] == f"file:{path}" and entry["kind"] == "file"
    for side in ("declared", "actual"):
        assert {"sha256", "mode", "owner", "group", "type"} <= set(entry[side])
    assert entry["declared"]["sha256"] != entry["actual"]["sha256"]
    assert 0 < entry["deviation"] <= 1 and RFC3339.match(entry["seen"])
    assert "-two\n" in entry["diff"] and "+2\n" in entry["diff"] and "--- " in entry["diff"]
    assert agent.json("diff", f"file:{path}") == agent.json("diff", entry["change"]) == document


def test_diff_of_a_sysctl_and_of_an_absent_file(agent: Agent) -> None:
    path = agent.file("gone.conf")
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.world.path(path).unlink()
    agent.world.sh("echo 65 > /proc/sys/net/ipv4/ip_default_ttl")
    agent.drifted(f"file:{path}")
    agent.drifted("sysctl:net.ipv4.ip_default_ttl")
    entries = {e["kind"]: e for e in agent.json("diff")["resources"]}
    assert entries["file"]["actual"] is None and entries["file"]["declared"]["type"] == "file"
    assert entries["sysctl"]["declared"] == {"value": "64"} and entries["sysctl"]["actual"] == {"value": "65"}
    agent.world.sh("echo 64 > /proc/sys/net/ipv4/ip_default_ttl")


def test_diff_exit_code_and_check_answer_11_only_when_something_drifted(agent: Agent) -> None:
    path = agent.file("code.conf")
    agent.pact("diff", "--exit-code", check=0)
    assert len(agent.pact("check", check=0).out.splitlines()) == 1
    agent.drift(path)
    agent.pact("diff", "--exit-code", check=11)
    agent.pact("diff", check=0)
    line = agent.pact("check", check=11).out
    assert len(line.splitlines()) == 1 and "drifted" in line
    assert agent.json("check", check=11)["state"] == "drifted"


def test_human_output_off_a_terminal_has_no_colours_times_or_pids(agent: Agent) -> None:
    path = agent.file("plain.conf")
    holder = agent.world.python(f"f = open({path!r})\nready()")
    change = agent.drift(path)
    agent.pact("rollback", check=10)
    for out in (agent.pact("status").out, agent.pact("diff").out, agent.pact("check", check=11).out):
        assert "\x1b" not in out
        assert not re.search(r"\d\d:\d\d|\d{4}-\d\d-\d\d", out), out
        assert not re.search(rf"\b{holder.pid}\b", out), out
    assert change["id"] in agent.pact("status").out
    agent.world.end(holder)


def test_what_changes_something_says_the_same_on_equal_nodes(agent: Agent) -> None:
    """Answers of a thousand nodes are one answer in ``clush -b``."""
    path, wanted = agent.file("equal.conf"), agent.base / "equal.toml"
    wanted.write_text(f'[file."{path}"]\ncontent = "new\\n"\n')
    said = [agent.pact("apply", str(wanted))]
    holder = agent.world.python(f"f = open({path!r})\nready()")
    said += [
        agent.pact("extend", "5m"),
        agent.pact("rollback", check=10),
        agent.pact("status"),
        agent.pact("hold", "place", "--reason", "x", "--for", "1h"),
        agent.pact("hold", "release"),
        agent.pact("commit", "-m", "x"),
        agent.pact("emergency", "start", "--reason", "x", "--for", "1h"),
        agent.pact("emergency", "end", "--commit", "-m", "x"),
        agent.pact("declare", "-", input=f'[file."{path}"]\ncontent = "other\\n"\n'.encode(), check=10),
    ]
    agent.world.end(holder)
    for out in (done.out + done.err for done in said):
        assert not re.search(r"\d\d:\d\d|\d{4}-\d\d-\d\d|record \d", out), out
        assert not re.search(rf"\b{holder.pid}\b", out), out
    assert "used by " in said[2].err and "python" in said[2].err and "of root" in said[2].err


def test_log_is_newest_first_complete_and_verifies_with_a_stranger_s_program(agent: Agent) -> None:
    path = agent.file("log.conf", "unicode ü\n")
    agent.drift(path, "drift é\n")
    agent.pact("commit", "-m", "why: ünïcode €")
    records = agent.pact("--json", "log", "-n", "1000000").lines()
    assert chain.verify(records[::-1]) == records[0]["seq"] + 1
    assert records[0]["type"] == "committed"
    for record in records:
        assert set(record) >= {"v", "seq", "prev", "hash", "time", "node", "type", "actor", "data"}
        assert record["v"] == 1 and RFC3339.match(record["time"]) and record["node"] == "n001"
        assert set(record["actor"]) >= {"user", "uid", "role", "via"}
        assert not _floats(record), record
    assert {r["type"] for r in records} <= TYPES | {"change_split", "converged"}


def _floats(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_floats, value.values()))
    return any(map(_floats, value)) if isinstance(value, list) else isinstance(value, float)


def test_log_can_be_narrowed_by_number_type_and_time(agent: Agent) -> None:
    agent.drift(agent.file("narrow.conf"))
    assert len(agent.pact("--json", "log", "-n", "2").lines()) == 2
    assert {r["type"] for r in agent.pact("--json", "log", "--type", "drift_detected").lines()} == {"drift_detected"}
    since = agent.newest("drift_detected")["time"]
    found = agent.pact("--json", "log", "--since", since).lines()
    assert found and all(r["time"] >= since for r in found)
    assert agent.pact("--json", "log", "--since", "1h").lines()
    assert "neither a duration" in agent.pact("log", "--since", "yesterday-ish", check=2).err


@pytest.mark.parametrize("words", [["watch"], ["log", "--follow", "-n", "0"]])
def test_live_events_stream_until_interrupted(agent: Agent, words: list[str]) -> None:
    path = agent.file("live.conf")
    process = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "--json", *words], stdout=subprocess.PIPE
    )
    wait_until(lambda: _followers(agent), "the stream is open")
    for turn in range(10):  # the connection is there before it has said what it wants
        agent.drift(path, f"drifted {turn}\n")
        if select.select([process.stdout], [], [], 1)[0]:
            break
    seen = []
    while "drift_detected" not in seen:
        assert select.select([process.stdout], [], [], 10)[0], seen
        seen.append(json.loads(process.stdout.readline())["type"])
    process.send_signal(2)
    assert process.wait(10) == 0
    agent.world.end(process)


def _followers(agent: Agent) -> bool:
    """The agent has a connection that stays open."""
    with open(f"/proc/{agent.process.pid}/net/unix") as f:
        return sum(line.rstrip().endswith(" " + agent.socket) for line in f) > 1


def test_show_prints_one_record_whole(agent: Agent) -> None:
    path = agent.file("show.conf")
    agent.drift(path, "precious\n")
    agent.pact("rollback")
    record = agent.newest("rollback_started")
    document = agent.json("show", str(record["seq"]))
    assert document["record"] == record
    (kept,) = document["contents"].values()
    assert kept["content"] == "precious\n"
    assert "precious" in agent.pact("show", str(record["seq"])).out
    assert "there is no record" in agent.pact("show", "999999", check=2).err


def test_show_of_one_resource_shows_no_other_s_content(agent: Agent) -> None:
    paths = [agent.file(f"two{i}.conf") for i in (1, 2)]
    for path in paths:
        agent.drift(path, f"precious {path}\n")
    agent.pact("rollback")
    saves = [r for r in agent.records("rollback_started") if f"file:{paths[0]}" in r["data"]["saves"]][-1]
    seq, wanted = str(saves["seq"]), f"file:{paths[0]}"
    assert list(agent.json("show", seq, "--resource", wanted)["contents"]) == [wanted]
    out = agent.pact("show", seq, "--resource", wanted).out
    assert f"precious {paths[0]}" in out and f"precious {paths[1]}" not in out
    assert "keeps no content of file:/none" in agent.pact("show", seq, "--resource", "file:/none", check=2).err


def test_log_of_a_type_that_does_not_exist_names_the_nearest(agent: Agent) -> None:
    for words in (["log", "--type", "rolledback"], ["--json", "log", "--type", "rolledback"]):
        assert "'rolled_back'" in agent.pact(*words, check=2).err
    assert "no such records" in agent.pact("log", "--type", "xyzzy", check=2).err


def test_consumers_names_who_uses_a_resource_now(agent: Agent) -> None:
    path = agent.file("used.conf")
    assert agent.json("consumers", f"file:{path}")["consumers"] == []
    holder = agent.world.python(f"f = open({path!r})\nready()")
    (found,) = agent.json("consumers", f"file:{path}")["consumers"]
    assert found["pid"] == holder.pid and found["user"] == "root" and "python" in found["command"]
    assert {"pid", "user", "command", "cgroup", "job"} <= set(found)
    agent.world.end(holder)
    assert "nothing" in agent.pact("consumers", "nothing:/x", check=2).err


def test_a_name_with_control_characters_cannot_move_the_terminal(agent: Agent) -> None:
    path = agent.file("evil\x1b[31m\n.conf")
    agent.world.path(path).write_text("x")
    wait_until(lambda: agent.status()["drifted"] == 1, "it drifted")
    for out in (agent.pact("status").out, agent.pact("diff").out, agent.pact("log").out):
        assert "\x1b" not in out
    assert f"file:{TOP}/evil%1B[31m%0A.conf" in agent.pact("status").out


def test_a_diff_of_thousands_lets_others_in_between(agent: Agent) -> None:
    """Gathered a piece at a time: who asks after it is answered before it."""
    count = 4000
    agent.world.sh(f"mkdir -p {TOP}/many; for n in $(seq {count}); do echo a > {TOP}/many/$n; done")
    agent.adopt(f"file:{TOP}/many/*")
    agent.world.sh(f"for n in $(seq {count}); do echo b > {TOP}/many/$n; done")
    wait_until(lambda: agent.status()["drifted"] == count, "all have drifted", 60)
    first = []
    with agent.connect() as slow, slow.makefile("rwb") as f, agent.connect() as quick, quick.makefile("rwb") as g:
        f.write(b'{"v":1,"op":"diff","args":{}}\n')
        f.flush()
        slow.setblocking(False)
        for _ in range(5):
            g.write(b'{"v":1,"op":"ping"}\n')
            g.flush()
            assert json.loads(g.readline())["ok"]
            try:
                first.append(bool(slow.recv(1, socket.MSG_PEEK)))
            except BlockingIOError:
                first.append(False)
        assert first[0] is False, "the ping did not wait for the diff"
        slow.setblocking(True)
        result = json.loads(f.readline())["result"]
    assert [d["id"] for d in result["resources"]] == sorted(f"file:{TOP}/many/{n}" for n in range(1, count + 1))
    assert all("-a" in d["diff"] and "+b" in d["diff"] for d in result["resources"])
