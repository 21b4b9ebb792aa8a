"""Whoever has a key may say anything: a real root, on real sockets, stays at work and tells others the truth."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import nasty
import orjson
import pytest
from hostile_kit import NAMES, Hostile, Socket, wait_for

from pact.core.tree import checks, wire
from pact.core.tree.wire import Message
from pact.errors import LocalProtocolError
from pact.limits import FRAME_MAX, HEAD_MAX


@pytest.mark.invariant("T13")
@pytest.mark.parametrize(
    ("op", "nodes", "args"),
    [
        ("status", "n[1-" + "9" * 5000 + "]", {}),
        ("status", "n[" + "9" * 5000 + "]", {}),
        ("status", ",".join(f"n{i}x[1-99999]" for i in range(30_000)), {}),
        ("status", "n[1-3", {}),
        ("status", "@nothing:[", {}),
        ("groups", None, {"group": ["x"]}),
        ("groups", None, {"group": {"a": 1}}),
        ("watch", "n[1-" + "9" * 5000 + "]", {}),
        ("nodes", "\x00", {}),
    ],
)
def test_what_a_person_asks_never_ends_the_root(kit: Hostile, op: str, nodes: str | None, args: dict[str, Any]) -> None:
    view = kit.person("view")
    kit.request(view, op, nodes, **args)
    assert kit.result(view).head["exit"] != 0
    view.close(0)
    kit.still_at_work()


@pytest.mark.invariant("G8")
def test_a_hold_with_an_endless_reason_is_refused_and_poisons_nothing(kit: Hostile) -> None:
    op = kit.person("op")
    kit.request(op, "fleet_hold", reason="x" * 70_000, for_ns=10**12)
    assert kit.result(op).head["exit"] == 2
    kit.still_at_work()
    kit.node("n1").close(0)


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": True, "exit": 0, "result": {}},
        {"ok": True, "exit": 0, "result": {"changes": "x", "magnitude_n": 1, "window_ns": 10**9}},
        {"ok": True, "exit": 0, "result": {"changes": 1, "magnitude_n": 1, "window_ns": 1.5}},
        {"ok": True, "exit": 0, "result": {"changes": 1, "magnitude_n": 1, "window_ns": -5}},
        {"ok": False, "exit": -1, "result": {}, "message": "no"},
        {"ok": False, "exit": 1, "result": {}, "message": "y" * 200_000},
        [],
        "x",
        None,
    ],
)
def test_a_node_that_answers_nonsense_refuses_and_ends_nothing(kit: Hostile, answer: Any) -> None:
    node, adm = kit.node("n1"), kit.person("adm")
    time.sleep(0.3)
    kit.request(adm, "apply", "n1", resources={"sysctl:x": {}}, message="m")
    said = kit.answering(node, "n1", lambda op: orjson.dumps(answer), lambda: _result(kit, adm))
    assert said is not None, f"no result\n{kit.logs()}"
    assert said.head["exit"] != 0 and "n1" in said.head["failed"], said
    adm.close(0)
    kit.still_at_work()


def _result(kit: Hostile, sock: Socket) -> Message | None:
    message = kit.maybe(sock, 0.05)
    return message if message is not None and message.kind == "result" else None


@pytest.mark.invariant("T9")
def test_groups_of_nodes_are_looked_up_where_a_person_waits_and_never_in_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    called = tmp_path / "called"
    (tmp_path / "groups.conf").write_text(
        f"[Main]\ndefault: jobs\n[jobs]\nmap: touch {called}; sleep 0.1; echo n1\nall: touch {called}; echo n[1-2]\n"
    )
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path))
    kit = Hostile(tmp_path, NAMES)
    kit.start()
    try:
        view = kit.person("view")
        for nodes in ("@mine", "*", "n[1-2]&@mine", "n*"):
            kit.request(view, "ping", nodes)
            said = kit.result(view)
            assert said.head["exit"] == 2 and "group" in said.head["message"], said
        assert not called.exists()
        command = [
            sys.executable,
            "-m",
            "pact.cli.main",
            "--via",
            kit.url,
            "--server-key",
            kit.public["root1"],
            "--key",
            kit.secret("view"),
            "nodes",
            "--nodes",
            "@mine",
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, check=False)
        assert called.exists() and list(orjson.loads(done.stdout)["nodes"]) == ["n1"], done
    finally:
        kit.close()


@pytest.mark.invariant("T9")
def test_an_answer_that_just_fits_a_frame_ends_nobody(kit: Hostile) -> None:
    node, view = kit.node("n1"), kit.person("view")
    time.sleep(0.3)
    kit.request(view, "ping", "n1")
    call = next(m for _ in range(20) if (m := kit.maybe(node, 0.3)) is not None and m.kind == "call")
    head = {"call": call.head["call"], "final": True, "parts": [[["n1"], 0]]}
    size = FRAME_MAX - len(wire.encode("answer", head)) - 109
    body = b'{"ok":true,"exit":0,"x":"' + b"z" * (size - 27) + b'"}'
    frame = wire.encode("answer", {**head, "parts": [[["n1"], len(body)]]}, body)
    assert FRAME_MAX - 120 < len(frame) < FRAME_MAX - 64, "CURVE adds to it"
    node.send(frame)
    assert "n1" in kit.result(view).head["failed"]
    view.close(0)
    kit.still_at_work()


def test_a_request_that_just_fits_a_frame_ends_nobody(kit: Hostile) -> None:
    kit.node("n1")
    view = kit.person("view")
    head = {"id": 1, "op": "ping"}
    size = FRAME_MAX - len(wire.encode("request", head)) - 100  # CURVE adds to it
    view.send(wire.encode("request", head, b'{"x":"' + b"z" * (size - 8) + b'"}'))
    time.sleep(1)
    view.close(0)
    kit.still_at_work()


@pytest.mark.invariant("T10", "F53")
def test_silent_strangers_cost_nobody_their_place_and_do_not_close_the_door_for_long(kit: Hostile) -> None:
    node = kit.node("n1")
    pid = kit.processes["root1"].pid
    soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert soft == min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 17), "as many as it may have"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (450, 450))
    strangers = [stranger(kit) for _ in range(250)]
    wait_for(lambda: "descriptors are left" in kit.logs(), 5)
    before_s = used_s(pid)
    assert beats(kit, node, 2.0) >= 4, "who is in stays in"
    assert used_s(pid) - before_s < 1.0, "it does not spin"
    with pytest.raises(TimeoutError):
        stranger(kit, 0.5)
    wait_for(lambda: beats(kit, node, 0.4) and "let in again" in kit.logs(), 15)
    strangers += [stranger(kit) for _ in range(600)]  # faster than anybody can look
    assert beats(kit, node, 2.0) >= 4
    wait_for(lambda: beats(kit, node, 0.4) and kit.logs().count("let in again") == 2, 25)
    kit.still_at_work()
    for one in strangers:
        one.close()


def stranger(kit: Hostile, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(kit.url.rpartition(":")[2])), timeout_s)


def beats(kit: Hostile, node: Socket, seconds: float) -> int:
    """How many are answered."""
    ends, count = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        node.send(wire.encode("beat", {}))
        answer = kit.maybe(node, 1.0)
        while answer is not None and answer.kind == "welcome":  # to a greeting that was sent twice
            answer = kit.maybe(node, 1.0)
        assert answer is not None and answer.kind == "beat", answer
        count += 1
        time.sleep(0.3)
    return count


def used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_who_reads_a_log_from_afar_hears_that_older_records_are_left_out(kit: Hostile, form: list[str]) -> None:
    node = kit.node("n1")
    command = [
        sys.executable,
        "-m",
        "pact.cli.main",
        "--via",
        kit.url,
        "--server-key",
        kit.public["root1"],
        "--key",
        kit.secret("view"),
        "log",
        "--nodes",
        "n1",
        *form,
    ]
    answer = b'{"ok":true,"exit":0,"message":"","hint":"","result":{"truncated":true,"rows":[]}}'
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        code = kit.answering(node, "n1", lambda op: answer, process.poll)
        out, err = process.communicate()
    assert code == 0 and b"n1: older records are left out" in err, err
    assert not form or orjson.loads(out)["truncated"] == "n1"


def raw_request(head: bytes, body: bytes = b"{}") -> bytes:
    return b"P1\x07" + len(head).to_bytes(4, "little") + head + body


@pytest.mark.invariant("T13")
@pytest.mark.parametrize("at", ["root1", "agg1"])
def test_a_head_that_just_fits_or_says_more_ends_no_relay(kit: Hostile, at: str) -> None:
    """Whoever hands a request on adds to its head, and checks what it sends."""
    kit.start_below()
    view = kit.person("view", at)
    before, after = b'{"id":1,"op":"status","nodes":"', b'"}'
    view.send(raw_request(before + b"n" * (HEAD_MAX - len(before) - len(after)) + after))
    assert kit.result(view).head["exit"] == 2
    view.send(raw_request(b'{"id":2,"op":"nodes"}', b'"' + b"x" * checks.BODY_MAX + b'"'))
    assert kit.result(view).head["exit"] == 2
    view.send(raw_request(b'{"id":3,"op":"nodes","shoe_size":44}'))
    assert kit.result(view).head["exit"] == 0
    assert kit.processes["agg1"].poll() is None, kit.logs()
    kit.still_at_work()


GROWS = b'{"a":[' + b",".join([b"1E15"] * 1_500_000) + b"]"


@pytest.mark.invariant("T13")
def test_arguments_that_grow_when_they_are_written_again_end_nobody(kit: Hostile) -> None:
    node, other, adm = kit.node("n1"), kit.person("adm"), kit.person("adm")
    time.sleep(0.3)
    other.send(raw_request(b'{"id":1,"op":"ping","nodes":"n1"}', GROWS + b"}"))
    answer = b'{"ok":true,"exit":0,"result":{}}'
    said = kit.answering(node, "n1", lambda op: answer, lambda: _result(kit, other))
    assert said is not None and said.head["exit"] == 0, "unchanged bytes travel"
    adm.send(raw_request(b'{"id":1,"op":"apply","nodes":"n1"}', b'{"resources":{"sysctl:x":' + GROWS + b"}}}"))
    assert kit.result(adm).head["exit"] == 2
    kit.still_at_work()


@pytest.mark.parametrize("field", ["rack", "incarnation"])
def test_what_stands_in_every_chunk_is_short(field: str) -> None:
    """A rack of 64 KiB, once for each batch: the chunk would be larger than a store takes."""
    with pytest.raises(LocalProtocolError):
        wire.encode("hello", {"v": 1, "role": "node", "name": "n1", "session": 1, field: "x" * 60_000})


def test_names_that_do_not_fold_reach_the_operator_all_the_same(kit: Hostile) -> None:
    """Ten thousand names without numbers, none of them connected."""
    names = [f"host-{chr(97 + i // 676)}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(8_000)]
    view = kit.person("view")
    kit.request(view, "ping", ",".join(names))
    said = kit.result(view)
    assert said.head["exit"] == 5 and sum(k.count("host-") for k in said.head["failed"]) == len(names)
    view.close(0)
    kit.still_at_work()


def _always(body: bytes, op: str) -> bytes:
    return body


@pytest.mark.invariant("S5", "T13")
@pytest.mark.timeout(240)
def test_no_text_of_a_person_of_a_node_or_in_a_record_ends_the_root(kit: Hostile) -> None:
    node, view = kit.node("n1"), kit.person("view")
    time.sleep(0.3)
    texts = [t for t in nasty.REFUSED.values() if t and len(t) < 100_000]
    for id_, text in enumerate([w for t in texts for w in (t, nasty.in_object(t))], 1):
        view.send(wire.encode("request", {"id": id_, "op": "status", "nodes": "n1", "timeout_ms": 3000}, text))
        said = kit.result(view)
        assert said.head["exit"] == 2 and said.head["id"] == id_, (text[:40], said)
    for id_, text in enumerate(texts, 1000):
        kit.request(view, "status", "n1", id_=id_)
        body = b'{"ok":true,"exit":0,"message":"","hint":"","result":{"state":' + text + b"}}"
        said = kit.answering(node, "n1", partial(_always, body), lambda: _result(kit, view))
        assert said is not None and said.head["id"] == id_, (text[:40], kit.logs())
    for text in texts:
        if b"\n" not in text:
            line = b'{"v":1,"seq":0,"data":{"x":' + text + b"}}"
            node.send(wire.encode("events", {"batches": [["n1", "i" * 16, 0, 1, len(line)]]}, line))
    view.close(0)
    kit.still_at_work()
    assert kit.logs().count("a line that is no JSON") >= 1


@pytest.mark.invariant("S8")
def test_what_a_viewer_asks_of_every_node_is_small(kit: Hostile) -> None:
    heard: list[Message] = []
    node = kit.node("n1")
    for who, size, exit_ in (("view", 70_000, 2), ("op", 70_000, 2), ("adm", 70_000, 5)):
        sock = kit.person(who)
        kit.request(sock, "status", "n1", timeout_ms=500, resources=["x" * size])
        assert kit.result(sock).head["exit"] == exit_, who
        while (message := kit.maybe(node, 0.1)) is not None:
            heard += [message] if message.kind == "call" else []
        assert bool(heard) == (who == "adm")
        sock.close(0)
    kit.still_at_work()
