"""What is new below adopted patterns is seen, told with its owner, taken in, or removed when it is named."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness import TOP, Agent, World, wait_until
from newcomers import ETC, EVIL, empty, etc, made_by, untracked

pytestmark = pytest.mark.alone  # whose doing it was is found in time only where the machine is not busy


@pytest.fixture(autouse=True)
def an_empty_place(world: World, running: Agent) -> None:
    empty(world, running)


def test_a_new_file_below_an_adopted_pattern_shows_in_status_with_its_owner(agent: Agent) -> None:
    etc(agent)
    assert agent.status()["untracked"] == 0
    who = made_by(agent, 1234, f"echo evil > {ETC}/evil")
    began = time.monotonic()
    wait_until(lambda: agent.newest("untracked_seen"), "it is recorded without anybody asking", 2)
    assert time.monotonic() - began < 1.0
    agent.world.end(who)
    status = agent.status()
    assert status["untracked"] == 1 and status["drifted"] == 0 and status["changes"] == []
    assert status["state"] == "committed" and status["magnitude"] == 0
    (found,) = status["untracked_resources"]
    assert found["resource"] == EVIL and found["owner"]["uid"] == 1234 and "evil" in found["owner"]["command"]
    assert found["actual"]["type"] == "file" and found["seen"]
    assert "untracked: 1" in agent.pact("status").out


def test_a_tree_made_at_once_is_seen_whole_and_told_by_directory(agent: Agent) -> None:
    etc(agent)
    who = made_by(
        agent,
        1234,
        f"mkdir -p {ETC}/a/b/c && touch {ETC}/a/1 {ETC}/a/b/2 {ETC}/a/b/c/3 && "
        f"i=0; while [ $i -lt 300 ]; do : > {ETC}/a/b/c/n$i; i=$((i+1)); done",
    )
    wait_until(lambda: agent.status()["untracked"] == 306, "all of it is counted")
    agent.world.end(who)
    status = agent.status()
    assert len(status["untracked_resources"]) == 200, "at most"
    owners = {u["owner"]["uid"] for u in status["untracked_resources"]}
    assert 1234 in owners and owners <= {1234, None}, "of mkdir, which is gone at once, the kernel may name nobody"
    lines = [x for x in agent.pact("status").out.splitlines() if x.startswith("untracked")]
    assert len(lines) < 10 and any(f"file:{ETC}/a/ (" in x for x in lines), lines
    assert sum(p["count"] for p in status["untracked_places"]) == 306
    assert len(agent.json("diff")["untracked"]) == 306
    agent.world.path(f"{ETC}/a/b/c/late").write_text("")
    wait_until(lambda: agent.status()["untracked"] == 307, "the new directories are watched too")


def test_a_pattern_that_begins_at_a_link_of_roots_is_followed(agent: Agent) -> None:
    etc(agent)
    agent.world.sh(f"mkdir -p {TOP}/real && ln -sfn real {TOP}/link")
    agent.pact("track", f"file:{TOP}/link/**", "report")
    agent.world.path(f"{TOP}/real/new").write_text("x")
    wait_until(lambda: set(untracked(agent)) == {f"file:{TOP}/link/new"}, "it is seen by the name that was tracked")


def test_what_is_made_while_the_agent_is_down_is_found_at_its_start_and_nobody_is_named(agent: Agent) -> None:
    place = etc(agent)
    agent.stop()
    (place / "evil").write_text("evil\n")
    (place / "d").mkdir()
    (place / "d" / "x").write_text("evil\n")
    agent.start()
    found = untracked(agent)
    assert set(found) == {EVIL, f"file:{ETC}/d", f"file:{ETC}/d/x"}
    assert {u["owner"]["user"] for u in found.values()} == {"unattributed"}


def test_a_restart_keeps_who_made_it_and_forgets_what_has_gone(agent: Agent) -> None:
    place = etc(agent)
    who = made_by(agent, 1234, f"echo > {ETC}/evil; echo > {ETC}/other")
    wait_until(lambda: agent.status()["untracked"] == 2, "both are seen")
    agent.world.end(who)
    agent.stop()
    (place / "other").unlink()
    agent.start()
    wait_until(lambda: agent.status()["untracked"] == 1, "one is gone")
    assert untracked(agent)[EVIL]["owner"]["uid"] == 1234
    assert agent.newest("untracked_gone")["data"]["resources"] == [f"file:{ETC}/other"]


def test_it_leaves_the_list_when_it_is_gone_and_a_removed_tree_leaves_whole(agent: Agent) -> None:
    place, seq = etc(agent), agent.status()["journal"]["seq"]
    agent.world.sh(f"mkdir -p {ETC}/a/b; touch {ETC}/a/b/x {ETC}/evil")
    wait_until(lambda: agent.status()["untracked"] == 4, "all are seen")
    (place / "evil").unlink()
    wait_until(lambda: agent.status()["untracked"] == 3, "it is gone")
    (place / "a").rename(agent.world.path(f"{TOP}/elsewhere"))
    wait_until(lambda: agent.status()["untracked"] == 0, "what was moved away is gone with all below it")
    wait_until(
        lambda: sum(r["data"]["count"] for r in agent.records("untracked_gone") if r["seq"] > seq) == 4,
        "it is recorded",
    )


def test_litter_and_what_is_ignored_are_no_news(another: Callable[..., Agent]) -> None:
    agent = another(drift={"ignore": [f"file:{ETC}/cache/**", f"file:{ETC}/*.log"]})
    place = etc(agent)
    for name in (".known.swp", "known~", "x.dpkg-new", "sedAbC123", "a.log", "host.key", "x.pem"):
        (place / name).write_text("")
    (place / "cache").mkdir()
    (place / "cache" / "x").write_text("")
    (place / "real").write_text("")
    wait_until(lambda: f"file:{ETC}/real" in untracked(agent), "what is no litter is seen")
    assert set(untracked(agent)) == {f"file:{ETC}/real", f"file:{ETC}/cache"}


def test_an_editor_that_saves_over_a_declared_file_leaves_nothing_untracked(agent: Agent) -> None:
    place, seq = etc(agent), agent.status()["journal"]["seq"]
    for _ in range(5):
        (place / "known.new").write_text("edited\n")
        (place / "known.new").rename(place / "known")
    wait_until(lambda: agent.status()["drifted"] == 1, "the declared file drifted")
    assert agent.status()["untracked"] == 0
    time.sleep(0.5)
    assert [r for r in agent.records("untracked_seen") if r["seq"] > seq] == []


def test_commit_takes_in_what_its_caller_made_or_names(agent: Agent) -> None:
    place = etc(agent)
    (place / "mine").write_text("mine\n")
    who = made_by(agent, 1234, f"echo theirs > {ETC}/theirs")
    wait_until(lambda: agent.status()["untracked"] == 2, "both are seen")
    agent.world.end(who)
    mine = untracked(agent)[f"file:{ETC}/mine"]
    if mine["owner"]["uid"] == 0:
        agent.pact("commit", "-m", "mine")
        assert set(untracked(agent)) == {f"file:{ETC}/theirs"}
    agent.pact("commit", "--all", "-m", "the rest")
    assert agent.status()["untracked"] == 0 and agent.status()["declared"] == 4
    (place / "theirs").write_text("changed\n")
    agent.drifted(f"file:{ETC}/theirs")
    agent.pact("rollback", f"file:{ETC}/theirs")
    assert (place / "theirs").read_text() == "theirs\n", "its content was kept"


def test_commit_by_name_says_what_it_took_and_refuses_others(agent: Agent) -> None:
    place = etc(agent)
    (place / "one").write_text("1\n")
    (place / "two").write_text("2\n")
    wait_until(lambda: agent.status()["untracked"] == 2, "both are seen")
    answer = agent.json("commit", f"file:{ETC}/one", "-m", "named")
    assert [c["resources"] for c in answer["committed"]] == [[f"file:{ETC}/one"]]
    assert set(untracked(agent)) == {f"file:{ETC}/two"}
    agent.pact("commit", f"file:{ETC}/two", "-m", "x", uid=1234, check=3)
    assert agent.newest("committed")["data"]["message"] == "named"


def test_adopt_takes_in(agent: Agent) -> None:
    place = etc(agent)
    (place / "evil").write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    assert agent.adopt(EVIL)["adopted"] == 1
    assert agent.status()["untracked"] == 0
    (place / "more").write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    assert agent.adopt(f"file:{ETC}/**")["adopted"] == 1
    assert agent.status()["untracked"] == 0


def test_rollback_by_name_removes_it_keeps_what_it_held_and_redo_brings_it_back(agent: Agent) -> None:
    place = etc(agent)
    who = made_by(agent, 1234, f"echo work > {ETC}/evil")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.world.end(who)
    plan = agent.json("rollback", EVIL, "--dry-run")["rolled_back"][0]["plan"]
    assert [(s["id"], s["action"]) for s in plan] == [(EVIL, "remove")] and (place / "evil").exists()
    assert "None" not in agent.pact("rollback", EVIL, "--dry-run").out
    done = agent.json("rollback", EVIL)["rolled_back"][0]
    assert not (place / "evil").exists() and done["restored"] == [EVIL]
    status = agent.status()
    assert status["untracked"] == 0 and status["changes"] == [] and status["declared"] == 2
    record = agent.newest("rollback_started")
    assert record["data"]["owner"]["uid"] == 1234
    assert agent.pact("show", str(record["seq"]), "--restore", str(agent.base / "back")).code == 0
    assert (agent.base / "back").read_text() == "work\n"
    agent.pact("redo", done["change"])
    assert (place / "evil").read_text() == "work\n" and agent.change_of(EVIL)


def test_rollback_of_a_directory_needs_what_lies_in_it_named_too(agent: Agent) -> None:
    place = etc(agent)
    agent.world.sh(f"mkdir {ETC}/d; echo 1 > {ETC}/d/x")
    wait_until(lambda: agent.status()["untracked"] == 2, "both are seen")
    assert "not empty" in agent.pact("rollback", f"file:{ETC}/d", check=1).err
    assert (place / "d" / "x").exists() and agent.status()["untracked"] == 2 and agent.status()["changes"] == []
    agent.pact("rollback", f"file:{ETC}/d", f"file:{ETC}/d/x")
    assert not (place / "d").exists() and agent.status()["untracked"] == 0
    agent.world.sh(f"mkdir {ETC}/d; echo 1 > {ETC}/d/x; echo 2 > {ETC}/d/y; echo 3 > {ETC}/z")
    wait_until(lambda: agent.status()["untracked"] == 4, "all are seen")
    agent.pact("rollback", f"file:{ETC}/d", f"file:{ETC}/d/**")
    assert not (place / "d").exists() and set(untracked(agent)) == {f"file:{ETC}/z"}
    agent.pact("rollback", f"file:{ETC}/none*", check=2)


def test_what_is_in_use_is_not_removed_and_stays_untracked(agent: Agent) -> None:
    place = etc(agent)
    agent.world.sh(f"echo 1 > {ETC}/evil")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    holder = agent.world.python("f = open(sys.argv[1]); ready()", f"{ETC}/evil")
    answer = agent.json("rollback", EVIL, check=10)
    assert "blocked" in answer["message"] and (place / "evil").exists()
    assert agent.status()["untracked"] == 1 and agent.status()["changes"] == []
    agent.world.end(holder)
    agent.pact("rollback", EVIL)
    assert not (place / "evil").exists()


def test_nothing_but_its_name_removes_it(another: Callable[..., Agent]) -> None:
    agent = another(window={"base": "1s"})
    place = etc(agent)
    (place / "evil").write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("rollback")
    agent.pact("rollback", "--all")
    time.sleep(1.5)
    assert (place / "evil").exists() and agent.status()["untracked"] == 1


def test_viewers_see_who_but_not_the_arguments_nor_names_in_closed_directories(agent: Agent) -> None:
    place = etc(agent)
    (place / "closed").mkdir(mode=0o700)
    agent.adopt(f"file:{ETC}/**")
    (place / "closed" / "secret-name").write_text("")
    who = made_by(agent, 1234, f"echo password > {ETC}/evil")
    wait_until(lambda: agent.status()["untracked"] == 2, "both are seen")
    agent.world.end(who)
    doc = agent.json("status", uid=4321)
    assert doc["untracked"] == 2 and [u["resource"] for u in doc["untracked_resources"]] == [EVIL]
    assert "password" not in str(doc) and doc["untracked_resources"][0]["owner"]["uid"] == 1234
    for words in (["diff"], ["log", "-n", "50"], ["status"]):
        out = agent.pact("--json", *words, uid=4321).out
        assert "secret-name" not in out and "password" not in out, words


def test_check_names_the_number_and_is_content(agent: Agent) -> None:
    place = etc(agent)
    (place / "evil").write_text("")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    assert "1 untracked" in agent.pact("check").out
    assert agent.pact("diff", "--exit-code").code == 0 and EVIL in agent.pact("diff", EVIL).out


@pytest.mark.invariant("U4")
def test_a_directory_turned_into_a_link_is_not_followed(agent: Agent) -> None:
    place = etc(agent)
    (place / "d").mkdir()
    agent.adopt(f"file:{ETC}/**")
    agent.world.sh(f"mkdir {TOP}/outside; rmdir {ETC}/d; ln -s {TOP}/outside {ETC}/d")
    wait_until(lambda: agent.change_of(f"file:{ETC}/d"), "the declared directory drifted")
    agent.world.path(f"{TOP}/outside/x").write_text("")
    time.sleep(0.5)
    assert agent.status()["untracked"] == 0


def test_a_commit_with_an_end_makes_it_untracked_again_when_it_is_forgotten(agent: Agent) -> None:
    place = etc(agent)
    (place / "evil").write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("commit", EVIL, "-m", "for now", "--ttl", "15m")
    assert agent.status()["untracked"] == 0 and agent.status()["trials"][0]["resource"] == EVIL
    text = agent.pact("export").out
    kept = text[: text.index(f'[file."{ETC}/evil"]')] + text[text.index(f'[file."{ETC}/known"]') :]
    agent.declare(kept, "--prune")
    wait_until(lambda: set(untracked(agent)) == {EVIL}, "it is declared no more, and there")


def test_without_fanotify_it_is_seen_at_once_and_without_both_at_the_next_rescan(another: Callable[..., Agent]) -> None:
    for observe, seconds in (({"fanotify": False}, 1.0), ({"fanotify": False, "inotify": False, "rescan": "1s"}, 4.0)):
        agent = another(observe=observe)
        place = agent.world.path(ETC)
        place.mkdir(exist_ok=True)
        (place / "known").write_text("")
        agent.adopt(f"file:{ETC}/**")
        agent.world.sh(f"mkdir {ETC}/d; touch {ETC}/d/x")
        wait_until(
            lambda agent=agent: sum(r["data"]["count"] for r in agent.records("untracked_seen")) >= 2,  # type: ignore[misc]
            "it is seen",
            seconds,
        )
        assert {u["owner"]["user"] for u in untracked(agent).values()} == {"unattributed"}
        agent.close()
        agent.world.sh(f"rm -rf {ETC}")


def test_a_place_that_is_not_there_yet_is_watched_from_its_beginning(agent: Agent) -> None:
    agent.pact("track", f"file:{TOP}/later/on/**", "report")
    agent.world.sh(f"mkdir -p {TOP}/later/on/d; touch {TOP}/later/on/d/x")
    wait_until(lambda: agent.status()["untracked"] == 2, "it is seen", 1.5)
    agent.world.sh(f"rm -rf {TOP}/later")
    wait_until(lambda: agent.status()["untracked"] == 0, "it is gone", 3)
    agent.world.sh(f"mkdir -p {TOP}/later/on; touch {TOP}/later/on/y")
    wait_until(lambda: set(untracked(agent)) == {f"file:{TOP}/later/on/y"}, "it is seen again", 1.5)


def test_a_directory_put_in_the_place_of_another_is_looked_through_again(agent: Agent) -> None:
    etc(agent)
    agent.world.sh(f"mkdir {ETC}/d {TOP}/fresh; touch {ETC}/d/old {TOP}/fresh/new")
    wait_until(lambda: agent.status()["untracked"] == 2, "it is seen")
    agent.world.sh(f"mv {ETC}/d {TOP}/away; mv {TOP}/fresh {ETC}/d")
    wait_until(lambda: set(untracked(agent)) == {f"file:{ETC}/d", f"file:{ETC}/d/new"}, "the other one's names")
    agent.world.sh(f"touch {ETC}/d/newer {TOP}/away/else")
    wait_until(lambda: f"file:{ETC}/d/newer" in untracked(agent), "the new one is watched", 1.5)
    assert agent.status()["untracked"] == 3


def test_odd_names_are_told_as_pact_writes_them(agent: Agent) -> None:
    place = etc(agent)
    for name in (b"new\nline", b"\xff\xfe", b"per%cent", b"*", b"[x]", "\u202eevil".encode()):
        with open(bytes(place) + b"/" + name, "w"):
            pass
    wait_until(lambda: agent.status()["untracked"] == 6, "all are seen")
    for resource in list(untracked(agent)):
        agent.pact("rollback", resource)
    assert agent.status()["untracked"] == 0 and [p.name for p in place.iterdir()] == ["known"]


def test_sockets_and_fifos_are_no_news(agent: Agent) -> None:
    place = etc(agent)
    agent.world.sh(f"mkfifo {ETC}/fifo; touch {ETC}/x")
    wait_until(lambda: set(untracked(agent)) == {f"file:{ETC}/x"}, "only the file")
    assert place.exists()


@pytest.mark.invariant("U3")
def test_who_may_settle_nothing_does_not_hasten_what_is_recorded(agent: Agent) -> None:
    etc(agent)
    before = len(agent.records("untracked_seen"))
    who = made_by(agent, 1236, f"i=0; while [ $i -lt 20 ]; do i=$((i+1)); : > {ETC}/n$i; sleep 0.1; done; exit 0 &")
    for _ in range(20):
        agent.pact("commit", "-m", "x", uid=1236, check=3)
        agent.pact("rollback", f"file:{ETC}/n1", uid=1236, check=3)
    agent.world.end(who)
    assert len(agent.records("untracked_seen")) - before < 10
