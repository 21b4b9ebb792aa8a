"""What an aggregator that somebody has taken over makes of true words: it tells them late, again, or about something else.

See ``sealed_kit``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sealed_kit import NAMES, SEALED, Between, between
from test_groups import apply as apply_group
from test_groups import ask, cluster, group, machines
from test_groups_stopped import deaf

from pact.cluster.aggregator import Aggregator
from pact.cluster.client import Result
from pact.core.tree.outbox import Up
from pact.core.tree.uplink import Deliver
from pact.core.tree.wire import Message
from pact.errors import PactError
from pact.model import NS_PER_S

pytestmark = pytest.mark.invariant("T14")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Between]:
    with between(tmp_path) as kit:
        yield kit


@pytest.fixture
def place() -> Iterator[Path]:
    """What lies in /tmp is no concern of an agent."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.mark.invariant("G9")
def test_a_node_that_comes_back_acts_only_after_the_root_s_own_word_about_holds(kit: Between, place: Path) -> None:
    """Its parent's welcome is not that word. Nobody needs to be bad for this: the root's comes a moment later."""
    file = place / "x.conf"
    file.write_text("declared\n")
    sock = kit.agent("n1", base="2s")
    toml = place / "x.toml"
    toml.write_text(f'[file."{file}"]\ncontent = "declared\\n"\n')
    subprocess.run([sys.executable, "-m", "pact.cli.main", "--socket", sock, "declare", str(toml)], check=True)
    kit.log_of("n1", sock)
    kit.kill("n1", 15)
    file.write_text("drifted\n")
    assert kit.result("adm", "fleet_hold", {"reason": "stop", "for_ns": 10**13}).exit == 5  # n1 is away
    kept: list[Message] = []

    def keep(said: Message) -> Message | None:
        if said.kind != "fleet":
            return said
        kept.append(said)
        return None

    kit.rogue.down = keep
    sock = kit.agent("n1", base="2s")
    kit.until(lambda: kept, "the root has told its holds")
    kit.during(4.0)
    assert file.read_text() == "drifted\n" and kit.records(sock, "rollback_started") == []
    kit.rogue.tell("n1", "fleet", {k: kept[-1].head[k] for k in ("fence", "seq", "holds", "term", "seals")})
    kit.until(lambda: kit.holds(sock) == ["stop"], "it has heard")
    kit.during(3.0)
    assert file.read_text() == "drifted\n"
    kit.rogue.down = lambda said: said
    assert kit.result("adm", "fleet_release", {}).exit == 0
    kit.until(lambda: file.read_text() == "declared\n", "the window ends as it should", 15)


def test_a_hold_that_has_ended_is_not_placed_by_telling_it_again(kit: Between) -> None:
    sock = kit.agent("n1")
    assert kit.result("adm", "fleet_hold", {"reason": "short", "for_ns": 2 * NS_PER_S}).exit == 0
    told = [m for m in kit.rogue.seen if m.kind == "fleet" and m.head["holds"]][-1]
    again = {k: told.head[k] for k in ("fence", "seq", "holds", "term", "seals")}
    kit.rogue.down = lambda said: None if said.kind == "fleet" else said  # its end is never told
    kit.until(lambda: kit.holds(sock) == [], "it has ended")
    for _ in range(2):
        kit.rogue.tell("n1", "fleet", again)
        kit.during(0.3)
        assert kit.holds(sock) == []
    kit.kill("n1", 15)  # nor to the next start of the agent
    sock = kit.agent("n1")
    kit.rogue.tell("n1", "fleet", again)
    kit.during(0.3)
    assert kit.holds(sock) == []


@pytest.mark.invariant("T16")
def test_a_stop_that_was_held_back_stops_nobody(kit: Between) -> None:
    """An aggregator keeps it, and lets it go when it has been released long since."""
    sock = kit.agent("n1")
    kept: list[Message] = []

    def keep(said: Message) -> Message | None:
        if said.kind == "fleet" or (said.kind == "call" and said.head["op"] == "fleet_seen"):
            kept.append(said)
            return None
        return said

    kit.rogue.down = keep
    assert kit.result("adm", "fleet_hold", {"reason": "stop", "for_ns": 10**13}, timeout_s=1.0).exit == 5, "it is seen"
    stop = next(m.head for m in kept if m.kind == "fleet" and m.head["holds"])
    assert kit.result("adm", "fleet_release", {}, timeout_s=1.0).exit == 5
    kit.during(41)
    kit.rogue.tell("n1", "fleet", {k: stop[k] for k in ("fence", "seq", "holds", "term", "seals")})
    kit.until(lambda: "what the fleet is told was held back" in kit.logs(), "it is said")
    assert kit.holds(sock) == []
    kit.rogue.down = lambda said: said
    assert kit.result("adm", "fleet_hold", {"reason": "another", "for_ns": 10**13}).exit == 0
    assert kit.holds(sock) == ["another"]


@pytest.mark.parametrize(
    ("other", "garbage"),
    [
        ({}, b""),
        ({"seal": "A" * 20}, b""),
        ({"seal": "\xe9" * 20}, b""),
        ({"op": "challenge", "seal": "", "challenge": ""}, b""),
        ({}, b"{"),
    ],
    ids=["the same", "another seal", "a seal that is none", "another question", "what is not read"],
)
def test_who_has_his_request_told_twice_hears_what_has_come_of_it(
    kit: Between, other: dict[str, str], garbage: bytes
) -> None:
    """The second says what is refused, or asks for something else, under the number of the first."""
    sock = kit.agent("n1")

    def twice(up: Up) -> Up:
        if up.kind == "request" and up.head["op"] == "hold_place":
            kit.rogue.say(up.kind, up.head, up.body)
            return up._replace(head={**up.head, **other}, body=garbage or up.body)
        return up

    kit.rogue.up = twice
    said = kit.result("adm", "hold_place", {"reason": "once", "for_ns": 10**13}, "n1")
    assert said.exit == 0, said
    assert kit.holds(sock) == ["once"]


def test_what_is_said_of_the_second_does_not_overtake_the_answer(kit: Between) -> None:
    """It tells the request again when it has the answer, and passes that on a second later."""
    sock = kit.agent("n1")
    asked: list[Up] = []
    kept: list[tuple[float, Message]] = []
    turn = kit.rogue.turn

    def up(said: Up) -> Up:
        if said.kind == "request" and said.head["op"] == "hold_place":
            asked.append(said)
        return said

    def down(said: Message) -> Message | None:
        if said.kind == "result" and said.head["seal"] and asked and not kept:
            kept.append((time.monotonic() + 1, said))
            kit.rogue.say("request", asked[0].head, asked[0].body)
            return None
        return said

    def turned(*args: Any, **more: Any) -> Any:
        if kept and kept[-1][0] <= time.monotonic():
            Aggregator._from_uplink(kit.rogue, [Deliver(kept[-1][1])], time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            kept.append((float("inf"), kept[-1][1]))
        return turn(*args, **more)

    kit.rogue.up, kit.rogue.down, kit.rogue.turn = up, down, turned  # type: ignore[method-assign]
    said = kit.result("adm", "hold_place", {"reason": "once", "for_ns": 10**13}, "n1")
    assert len(kept) == 2 and said.exit == 0, said
    assert kit.holds(sock) == ["once"]


@pytest.mark.parametrize("op", ["hold_place", "fleet_hold", "rollback", "nodes"])
def test_an_answer_to_one_question_is_none_to_another(kit: Between, op: str) -> None:
    """It swallows what a person asks, and has the root answer a question for a challenge in its place."""
    kit.agent("n1")

    def other(up: Up) -> Up:
        if up.kind != "request" or up.head["op"] != op:
            return up
        return up._replace(head={**up.head, "op": "challenge", "seal": ""}, body=b"{}")

    kit.rogue.up = other
    args = {"reason": "r", "for_ns": 10**12} if "hold" in op else {}
    last = kit.asked("adm", op, args, None if op in ("fleet_hold", "nodes") else "n1")[-1]
    assert isinstance(last, PactError) or (isinstance(last, Result) and last.exit != 0), last


def test_two_answers_of_one_node_do_not_seal_each_other(kit: Between) -> None:
    """A node's seal and the same again are nothing: 'it came back', and what is invented for it fits."""
    kit.agent("n1")
    kit.agent("n2")
    kit.until(lambda: kit.rogue.relay.tree.where.keys() >= {"n1", "n2"} and kit.known().keys() >= {"n1", "n2"}, "both")
    kit.during(0.5)
    body = b'{"ok":true,"exit":0,"message":"","hint":"","result":{"state":"committed"}}'
    seen: list[str] = []
    child = kit.rogue.relay.tree.where["n1"]

    def lie(call: str) -> None:
        kit.rogue.say(
            "answer", {"call": call, "final": False, "parts": [[["n1"], len(body)]], "seals": ["B" * 20]}, body
        )

    def down(said: Message) -> Message | None:
        if said.kind != "call" or "n1" not in said.head["nodes"]:
            return said
        lie(said.head["call"])
        if said.head["call"] not in seen:
            seen.append(said.head["call"])
            kit.rogue.say("below", {"gone": ["n1"]})
            kit.during(0.008)
            kit.rogue.say(
                "below", {"add": ["n1"], "sessions": {"n1": child.session}, "proofs": {"n1": list(child.proof or ())}}
            )
        return None

    kit.rogue.down = down
    found = kit.answers("adm", "state", nodes="n1,n2", at="root1", timeout_s=3.0)
    assert "n1" not in found, found


@pytest.mark.parametrize("sealed", [True, False])
def test_a_key_that_reaches_the_root_last_lets_its_node_in(tmp_path: Path, sealed: bool) -> None:
    kit = Between(tmp_path, NAMES)
    mine, roots = kit.authorized, kit.base / "root_keys.toml"

    def known(*without: str) -> None:
        new = roots.with_suffix(".new")
        new.write_text(
            "".join(
                f'[[key]]\npublic = "{kit.public[n]}"\nname = "{n}"\nrole = "{role}"\n'
                for n, role in kit.roles.items()
                if n not in without
            )
        )
        new.replace(roots)

    known("n2")
    kit.authorized = roots
    kit.start(SEALED if sealed else "")
    kit.authorized = mine
    kit.start_rogue()
    try:
        kit.agent("n2", sealed=sealed)
        kit.during(1.0)
        assert not kit.known().get("n2", {}).get("connected")
        known()
        kit.until(lambda: kit.known().get("n2", {}).get("connected"), "it is let in", 20)
        known("n2")
        kit.until(
            lambda: kit.asked("adm", "hold_release", {}, "n2", sealed=sealed)[-1].exit != 4, "the root has read it", 20
        )
        known()
        kit.until(
            lambda: kit.asked("adm", "hold_release", {}, "n2", sealed=sealed)[-1].exit in (0, 4),
            "it is known again",
            20,
        )
    finally:
        kit.close()


@pytest.mark.invariant("G3")
def test_a_question_that_nobody_asked_undoes_no_vote() -> None:
    """A question carries no seal. With one in a node's name, an aggregator had the root take a yes back."""
    c = cluster()
    gid = apply_group(c)
    deaf(c, "n2", "group_vote", 1)
    n = c.request("group_rollback", {"group": gid})
    world = c.peers["n0"].world
    assert c.root is not None
    while world.node.state.groups[gid].phase != "prepared":
        c.advance(NS_PER_S // 1000)
    ballot = world.node.state.groups[gid].ballot
    c.advance(NS_PER_S // 2)
    for said in (0, 1, ballot - 1):
        c.up(c.root, "ask", {"node": "n0", "groups": [[gid, "prepared", said]]})
    while n not in c.results:
        member = world.node.state.groups.get(gid)
        assert member is None or member.phase == "prepared", "its yes binds it until the root has decided"
        c.advance(NS_PER_S // 1000)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"] == "rolled back"
    c.check()


@pytest.mark.invariant("T13")
def test_questions_that_nobody_asked_leave_room_for_commands() -> None:
    c = cluster()
    apply_group(c)
    assert c.root is not None
    names = [f"m{n}" for n in range(2_000)]
    c.up(c.root, "below", {"add": names, "gone": []})
    for name in names:
        groups = [[f"g{100 + i}", "prepared", 1] for i in range(16)]
        c.root.received(Message("ask", {"node": name, "groups": groups}, b""), c.t_ns, 0)
    assert len(c.root.questions.open) <= 256
    c.up(c.root, "below", {"add": [], "gone": names})
    c.advance(120 * NS_PER_S)
    assert c.root.groups.carrier.asking == 0
    assert ask(c, "group_rollback", group="g1")[0] == 0
