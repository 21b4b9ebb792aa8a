"""The tree with real sockets and processes: aggregators, agents, a root whose log is a list."""

from __future__ import annotations

import os
import pwd
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
from cluster_kit import Kit

from pact.cluster import auth
from pact.core.tree import wire
from pact.errors import ConfigError
from pact.net import keys

NAMES = {
    "root1": "aggregator",
    "agg1": "aggregator",
    "agg2": "aggregator",
    "n001": "node",
    "n002": "node",
    "n003": "node",
    "n004": "node",
    "n005": "node",
    "n006": "node",
    "ops1": "ops",
    "boss": "admin",
    "eye": "viewer",
    "sub": "subscriber",
}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, NAMES)
    yield kit
    kit.close()


# -- who may come ---------------------------------------------------------------------------------------------------


@pytest.mark.invariant("T10")
def test_an_unknown_key_and_a_subscribers_do_not_get_in(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.start_root()
    public, secret = (k.decode() for k in zmq.curve_keypair())
    stranger = kit.dealer("", key=keys.Key(public, secret))
    kit.hello(stranger, "n001")
    sub = kit.dealer("sub")
    kit.hello(sub, "sub", "client")
    plain = kit.context.socket(zmq.DEALER)  # no CURVE at all
    kit.sockets.append(plain)
    plain.linger = 0
    plain.connect(kit.url)
    kit.hello(plain, "n001")
    assert kit.maybe(stranger, 1.0) is None and kit.maybe(sub, 0.1) is None and kit.maybe(plain, 0.1) is None
    assert kit.aggregator is not None and not kit.aggregator.relay.tree.children
    assert kit.aggregator.zap.refused >= 2
    said = capsys.readouterr().err
    assert said.count(f"refused the key {public}") <= 3  # at powers of two
    kit.joined("n001")  # and who is known comes in


@pytest.mark.invariant("T10")
def test_nothing_that_is_asked_ends_the_authentication(kit: Kit) -> None:
    kit.start_root()
    assert kit.aggregator is not None
    zap = kit.aggregator.context.socket(zmq.DEALER)
    zap.linger = 0
    zap.connect("inproc://zeromq.zap.01")
    for frames in (
        [b""],
        [b"", b"1.0"],
        [b"", b"1.0", b"1", b"\xff", b"\xff", b"", b"CURVE", b"short"],
        [b"", b"9", b"1", b"tree", b"a", b"", b"NULL"],
        [b"x"] * 40,
    ):
        zap.send_multipart(frames)
    kit.during(0.2)
    zap.close()
    kit.joined("n001")


@pytest.mark.invariant("T13")
def test_a_child_speaks_only_for_itself_over_real_sockets(kit: Kit) -> None:
    root = kit.start_root()
    n2 = kit.joined("n002")
    n1 = kit.dealer("n001")
    kit.hello(n1, "n002")
    assert kit.receive(n1).kind == "sorry"
    n1 = kit.joined("n001")
    n1.send(wire.encode("events", {"batches": [["n002", "i", 0, 1, 3]]}, b"{}\n"))
    n1.send(wire.encode("answer", {"call": "1.1", "final": True, "parts": [[["n002"], 2]]}, b"no"))
    kit.during(0.3)
    assert not root.lines and not root.answers
    n2.send(wire.encode("events", {"batches": [["n002", "i", 0, 1, 3]]}, b"{}\n"))
    assert kit.receive(n2).head["cursors"] == [["n002", "i", 0, False]]
    old = kit.dealer("n003")
    old.send(wire.encode("hello", {"v": 0, "role": "node", "name": "n003", "session": 1}))
    assert "version" in kit.receive(old).head["why"]


@pytest.mark.invariant("T13")
def test_a_routing_id_cannot_be_taken_by_another_key(kit: Kit) -> None:
    """What is meant for one child never reaches another, whatever routing id that one asks for."""
    root = kit.start_root()
    n1 = kit.dealer("n001", rid=b"mine")
    kit.hello(n1, "n001")
    assert kit.receive(n1).kind == "welcome"
    thief = kit.dealer("n002", rid=b"mine")
    kit.hello(thief, "n002")
    assert kit.maybe(thief, 1.0) is None
    root.call("1.1", "status", ["n001"])
    assert kit.receive(n1).kind == "call"
    assert kit.maybe(thief, 0.3) is None


@pytest.mark.invariant("T13")
def test_replayed_frames_noise_and_a_flood_change_nothing(kit: Kit) -> None:
    root = kit.start_root()
    n1 = kit.joined("n001")
    frame = wire.encode("events", {"batches": [["n001", "i", 0, 2, 6]]}, b"{}\n{}\n")
    for _ in range(50):
        n1.send(frame)
    n1.send(wire.encode("hello", {"v": 1, "role": "node", "name": "n001", "session": 5}))
    for noise in (b"", b"P1", b"x" * 1000, frame[:-1], b"P1\x03\xff\xff\xff\x7f{}", os.urandom(5000)):
        n1.send(noise)
    n1.send_multipart([b"two", b"frames"])
    for _ in range(20_000):
        n1.send(b"P1\x02\x02\x00\x00\x00{}")
    n2 = kit.joined("n002")
    began = time.monotonic()
    n2.send(wire.encode("beat", {}))
    assert kit.receive(n2).kind == "beat"
    assert time.monotonic() - began < 2
    kit.until(lambda: len(root.lines) == 2, "each record once")
    kit.during(1)
    assert len(root.lines) == 2 and kit.aggregator is not None and kit.aggregator.bad >= 6


@pytest.mark.invariant("T11", "F48")
def test_a_removed_key_has_no_session_and_no_connection(kit: Kit) -> None:
    root = kit.start_root()
    n1, n2 = kit.joined("n001"), kit.joined("n002")
    monitor = n1.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    kit.until(lambda: set(root.below) == {"n001", "n002"}, "both are below")
    kit.write_keys(without=["n001"])
    kit.until(lambda: set(root.below) == {"n002"}, "its session has ended", 3)
    kit.until(lambda: monitor.poll(0), "its connection has ended", 3)
    n1.disable_monitor()
    monitor.close(0)
    n1.send(wire.encode("events", {"batches": [["n001", "i", 0, 1, 3]]}, b"{}\n"))
    assert kit.maybe(n1, 1.0) is None and not root.lines
    n2.send(wire.encode("beat", {}))
    assert kit.receive(n2).kind == "beat"
    kit.authorized.write_text("[[key]\n")  # what cannot be read changes nothing
    kit.during(1.5)
    n2.send(wire.encode("beat", {}))
    assert kit.receive(n2).kind == "beat"
    kit.write_keys()
    kit.until(
        lambda: kit.aggregator is not None and len(kit.aggregator.authorized.peers) == len(NAMES), "read again", 3
    )
    kit.joined("n001", session=2 << 20)


# -- agents ---------------------------------------------------------------------------------------------------------


def test_an_agents_records_reach_the_root_and_it_answers_calls(kit: Kit) -> None:
    root = kit.start_root()
    agg = ("agg1", kit.start_aggregator("agg1", ("root1", kit.url)))
    sock = kit.start_agent("n001", agg)
    kit.until(lambda: root.lines, "the first record")
    assert root.lines[0][1]["type"] == "agent_started"
    kit.until(lambda: "n001" in root.below, "the node is below")
    root.call("1.1", "status", ["n001", "n009"])
    kit.until(lambda: root.final("1.1"), "an answer")
    answer = root.bodies("1.1")["n001"]
    assert answer["ok"] and answer["result"]["cluster"]["connected"]
    assert [n for m in root.answers["1.1"] for n in m.head["lost"]] == ["n009"]
    kit.until(lambda: kit.ask(sock, "status")["result"]["cluster"]["waiting"] == 0, "acknowledged")
    status = kit.ask(sock, "status")["result"]
    assert status["cluster"]["parent"] == agg[1]
    assert status["journal"]["replicated"] == status["journal"]["seq"] == len(root.lines) - 1


@pytest.mark.invariant("T12")
def test_a_call_is_done_once_as_the_operator_and_bounded(kit: Kit) -> None:
    root = kit.start_root()
    kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: "n001" in root.below, "the node is below")
    me = pwd.getpwuid(os.getuid()).pw_name

    def ask(call: str, op: str, role: str = "admin", user: str = me, **args: Any) -> Any:
        caller = {"user": user, "role": role, "via": "cluster"}
        root.call(call, op, ["n001"], args, caller=caller)
        kit.until(lambda: root.names(call), f"an answer to {op}")
        return root.bodies(call)["n001"]

    first = ask("1.1", "hold_place", reason="a test", for_ns=3600 * 10**9)
    assert first["ok"], first
    root.answers.clear()
    assert ask("1.1", "hold_place", reason="a test", for_ns=3600 * 10**9) == first
    holds = ask("1.2", "status")["result"]["holds"]
    assert len(holds) == 1 and holds[0]["owner"] == me
    rows = ask("1.3", "log", count=5)["result"]["rows"]
    (placed,) = [r["record"] for r in rows if r["record"]["type"] == "hold_placed"]
    assert placed["actor"] == {"user": me, "uid": os.getuid(), "role": "admin", "via": "cluster"}
    assert placed["data"]["owner"]["key"] == f"uid:{os.getuid()}"
    denied = ask("1.4", "adopt", role="viewer", user="stranger", patterns=["file:/etc/hostname"])
    assert denied["exit"] == 3
    assert ask("1.5", "hold_release", role="ops", name=holds[0]["id"], user="stranger")["exit"] == 3
    assert "stranger" in orjson.dumps(ask("1.6", "log", count=3)).decode()
    for i, (op, args) in enumerate({"watch": {}, "export": {}, "log": {"follow": True}}.items()):
        refused = ask(f"2.{i}", op, **args)
        assert refused["exit"] == 2 and "on the node itself only" in refused["message"]
    assert "at most" in ask("3.1", "log", count=100_000)["message"]
    assert ask("3.2", "sing")["exit"] == 2
    root.fence = 7
    assert ask("7.1", "ping")["ok"]
    root.fence = 6
    root.call("6.1", "ping", ["n001"])
    kit.during(0.5)
    assert "6.1" not in root.answers  # the relay knows a newer root


def test_an_answer_of_the_log_says_when_it_is_not_all(kit: Kit) -> None:
    root = kit.start_root()
    path = kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: "n001" in root.below, "the node is below")
    for _ in range(505):
        hold = kit.ask(path, "hold_place", reason="a test", for_ns=3600 * 10**9, change=None)["result"]["hold"]
        kit.ask(path, "hold_release", name=hold)

    def ask(call: str, **args: Any) -> Any:
        root.call(call, "log", ["n001"], args)
        kit.until(lambda: root.names(call), "an answer")
        return root.bodies(call)["n001"]["result"]

    cut = ask("1.1", since="")
    assert cut["truncated"] is True and len(cut["rows"]) == 1_000
    assert ask("1.2", count=1_000)["truncated"] is False and ask("1.3", count=3)["truncated"] is False


def test_a_restarted_agent_sends_only_what_is_new(kit: Kit) -> None:
    root = kit.start_root()
    sock = kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: root.lines, "the first record")
    kit.until(lambda: kit.ask(sock, "status")["result"]["cluster"]["waiting"] == 0, "acknowledged")
    kit.kill("n001", 15)
    before = len(root.lines)
    firsts: list[int] = []
    take = root.take
    root.take = lambda row, data: (firsts.append(row[2]), take(row, data))[1]  # type: ignore[method-assign]
    kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: len(root.lines) >= before + 2, "stopped and started")
    assert min(firsts) == before
    assert [r["seq"] for _, r in root.lines] == list(range(len(root.lines)))


@pytest.mark.invariant("T3", "T5", "F41")
def test_children_of_a_killed_aggregator_work_under_another_and_nothing_is_lost(kit: Kit) -> None:
    root = kit.start_root()
    up = ("root1", kit.url)
    aggs = [("agg1", kit.start_aggregator("agg1", up)), ("agg2", kit.start_aggregator("agg2", up))]
    socks = {n: kit.start_agent(n, *aggs) for n in ("n001", "n002", "n003", "n004")}
    kit.until(lambda: set(root.below) == set(socks), "everybody is below", 30)
    parents = {n: kit.ask(s, "status")["result"]["cluster"]["parent"] for n, s in socks.items()}
    victim = max(aggs, key=lambda a: sum(p == a[1] for p in parents.values()))
    moved = [n for n, p in parents.items() if p == victim[1]]
    assert moved
    kit.kill(victim[0])
    killed = time.monotonic()
    for i, sock in enumerate(socks.values()):
        kit.ask(sock, "hold_place", reason=f"hold {i}", for_ns=3600 * 10**9)
    kit.until(
        lambda: all(
            (c := kit.ask(socks[n], "status")["result"]["cluster"])["parent"] not in (None, victim[1])
            and c["waiting"] == 0
            for n in moved
        ),
        "at work under another",
        10,
    )
    assert time.monotonic() - killed < 10
    for name in socks:
        mine = [r for n, r in root.lines if n == name]
        assert [r["seq"] for r in mine] == list(range(len(mine)))
        assert sum(r["type"] == "hold_placed" for r in mine) == 1
    root.call("1.1", "ping")
    kit.until(lambda: root.final("1.1"), "an answer of everybody")
    assert root.names("1.1") == set(socks)


def test_an_agent_without_parents_does_not_load_the_library(kit: Kit) -> None:
    home = kit.base / "alone"
    home.mkdir()
    (home / "agent.toml").write_text(
        f'[node]\nname = "alone"\n[state]\ndir = "{home}/state"\n[control]\nsocket = "{home}/sock"\n'
        f"[declared]\nfiles = []\n[observe]\nrealtime = false\nproc_connector = false\n"
    )
    kit.run("alone", "agent", "--config", str(home / "agent.toml"))
    status = kit.ask(str(home / "sock"), "status")["result"]
    assert "cluster" not in status and status["journal"]["replicated"] == status["journal"]["seq"]
    assert "zmq" not in Path(f"/proc/{kit.processes['alone'].pid}/maps").read_text()


@pytest.mark.invariant("T11")
def test_a_file_of_keys_that_is_being_written_revokes_nobody(kit: Kit) -> None:
    kit.start_root()
    node = kit.joined("n001")
    text = kit.authorized.read_text()
    for part in ("", text[: text.index("[[key]]", 10)]):  # truncated and written anew, as editors and copies do
        kit.authorized.write_text(part)
        kit.during(0.4)
        kit.authorized.write_text(text)
        kit.during(1.5)
        node.send(wire.encode("beat", {}))
        assert kit.receive(node).kind == "beat", "its session has not ended"
    kit.authorized.write_text("")
    kit.during(2.0)
    node.send(wire.encode("beat", {}))
    assert kit.receive(node).kind == "beat", "an empty file is a mistake"


@pytest.mark.invariant("T11")
@pytest.mark.parametrize("left", ["# nobody\n", ""])
def test_the_last_key_can_be_removed_too(kit: Kit, left: str) -> None:
    root = kit.start_root()
    kit.joined("n001")
    kit.until(lambda: "n001" in root.below, "it is below")
    kit.authorized.write_text(left)
    assert kit.aggregator is not None
    kit.aggregator._keys.asked = not left  # as SIGHUP does: an empty file is not believed otherwise
    kit.until(lambda: not root.below, "its session has ended", 4)


@pytest.mark.invariant("T10", "T11")
def test_who_is_not_welcome_is_remembered_as_long_as_the_connection(kit: Kit) -> None:
    kit.start_root()
    assert kit.aggregator is not None
    for i in range(40):
        sock = kit.dealer("n001")
        kit.hello(sock, "n002", session=i << 20)
        kit.maybe(sock, 0.3)
        sock.close(0)
        kit.during(0.02)
    assert 0 < len(kit.aggregator._fds) <= 10
    sock = kit.dealer("n001")
    monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    kit.during(1.1)  # four hellos a second
    kit.hello(sock, "n002")
    assert kit.receive(sock).kind == "sorry"
    kit.write_keys(without=["n001"])
    kit.until(lambda: monitor.poll(0), "its connection has ended", 3)
    sock.disable_monitor()
    monitor.close(0)


def test_a_file_of_keys_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody"):
        auth.read(str(path))


@pytest.mark.invariant("T12")
def test_a_call_whose_answer_died_with_the_agent_is_not_done_twice(kit: Kit) -> None:
    root = kit.start_root()
    path = kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: "n001" in root.below, "the agent is there")
    hold = {"reason": "x", "for_ns": 3600 * 10**9}
    root.call("7", "hold_place", ["n001"], hold)
    kit.until(lambda: root.final("7"), "it is held")
    kit.kill("n001")
    kit.until(lambda: "n001" not in root.below, "the agent is gone")
    kit.start_agent("n001", ("root1", kit.url))
    kit.until(lambda: "n001" in root.below, "the agent is there again")
    root.answers.clear()
    root.call("7", "hold_place", ["n001"], hold)
    kit.until(lambda: root.final("7"), "it is answered")
    answer = root.bodies("7")["n001"]
    assert answer["exit"] == 5 and "not done twice" in answer["message"], answer
    assert len(kit.ask(path, "status")["result"]["holds"]) == 1
    root.call("8", "hold_place", ["n001"], hold)
    kit.until(lambda: root.final("8"), "another one is done")
    assert len(kit.ask(path, "status")["result"]["holds"]) == 2


@pytest.mark.invariant("K2", "F50")
def test_an_older_copy_of_a_journal_is_noticed_and_nothing_counts_as_replicated(kit: Kit, tmp_path: Path) -> None:
    root = kit.start_root()
    state = kit.base / "agent-n001" / "state"
    hold = {"reason": "x", "for_ns": 3600 * 10**9}

    def lives(holds: int) -> str:
        path = kit.start_agent("n001", ("root1", kit.url))
        kit.until(lambda: "n001" in root.below, "the agent is there")
        for _ in range(holds):
            assert kit.ask(path, "hold_place", **hold)["exit"] == 0
        return path

    def replicated(path: str) -> bool:
        journal = kit.ask(path, "status")["result"]["journal"]
        return bool(journal["replicated"] == journal["seq"])

    def ended() -> None:
        kit.kill("n001")
        kit.until(lambda: "n001" not in root.below, "the agent is gone")

    path = lives(1)
    kit.until(lambda: replicated(path), "all is at the root")
    ended()
    shutil.copytree(state, tmp_path / "copy")
    path = lives(9)
    kit.until(lambda: replicated(path), "all is at the root")
    ended()
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "copy", state)
    path = lives(2)
    cluster = kit.until(lambda: (s := kit.ask(path, "status")["result"]["cluster"])["forked"] and s, "it is noticed")
    assert cluster["replicated"] < cluster["forked"]
    for _ in range(12):  # also when its numbers have passed the root's
        assert kit.ask(path, "hold_place", **hold)["exit"] == 0
    ended()
    path = lives(0)
    kit.during(1.0)
    assert not replicated(path) and kit.ask(path, "status")["result"]["cluster"]["forked"]
    assert "older copy was put back" in kit.logs()
    ended()
    shutil.rmtree(state)  # on an empty one it is a new incarnation, and all of it goes up
    path = lives(3)
    kit.until(lambda: replicated(path), "all of the new one is at the root")
    assert not kit.ask(path, "status")["result"]["cluster"]["forked"]


@pytest.mark.invariant("T3", "T7")
def test_after_a_stall_the_root_hears_everybody_before_it_gives_anybody_up(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is late by the root's clock may be here already, unread."""
    monkeypatch.setattr("pact.cluster.aggregator.ROUTER_BATCH", 1)
    monkeypatch.setattr("pact.cluster.aggregator.ROUTER_READ", 1)
    root = kit.start_root()
    node = kit.joined("n001")
    order = list[str]()
    tick, received = root.tick, root.received
    monkeypatch.setattr(root, "tick", lambda t, w: (order.append("tick"), tick(t, w))[1])
    monkeypatch.setattr(root, "received", lambda m, t, w: (order.append(m.kind), received(m, t, w))[1])

    def stalled() -> list[str]:
        order.clear()
        for gid in ("g1", "g2", "g3"):
            node.send(wire.encode("ask", {"node": "n001", "groups": [[gid, "open", 0]]}))
        time.sleep(0.3)
        kit.until(lambda: order.count("ask") == 3, "all are heard")
        return order[: 1 + max(n for n, what in enumerate(order) if what == "ask")]

    assert stalled() == ["ask"] * 3
    monkeypatch.setattr("pact.cluster.aggregator.UNREAD_MAX_NS", -1)
    assert "tick" in stalled()[:2], "a flood stops no clock"
