"""What becomes of what is new: patterns and their modes, kinds beside files, and where patterns are kept."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TOP, Agent, World, wait_until
from newcomers import ETC, EVIL, empty, etc, made_by, untracked


@pytest.fixture(autouse=True)
def an_empty_place(world: World, running: Agent) -> None:
    empty(world, running)


def test_an_enforced_pattern_gives_a_window_whose_end_removes_it(another: Callable[..., Agent]) -> None:
    agent = another(window={"base": "3s"})
    place = etc(agent)
    agent.pact("track", f"file:{ETC}/**", "enforce")
    who = made_by(agent, 1234, f"echo work > {ETC}/evil")
    change = agent.drifted(EVIL)
    agent.world.end(who)
    assert change["owner"]["uid"] == 1234 and change["deadline"] and agent.status()["untracked"] == 0
    (entry,) = agent.json("diff")["resources"]
    assert entry["declared"] is None and entry["actual"]["type"] == "file"
    wait_until(lambda: not (place / "evil").exists(), "its window ended")
    wait_until(lambda: agent.newest("rolled_back"), "it is recorded")
    status = agent.status()
    assert status["state"] == "committed" and status["declared"] == 2, "nothing of it is left declared"
    record = agent.newest("rollback_started")
    assert record["data"]["saves"][EVIL]["sha256"]
    agent.pact("redo", change["id"])
    assert (place / "evil").read_text() == "work\n"


def test_an_enforced_thing_may_be_committed_or_taken_away_by_who_made_it(agent: Agent) -> None:
    place = etc(agent)
    agent.pact("track", f"file:{ETC}/**", "enforce")
    (place / "evil").write_text("x\n")
    agent.drifted(EVIL)
    (place / "evil").unlink()
    wait_until(lambda: agent.status()["declared"] == 2 and not agent.status()["changes"], "it is gone, and forgotten")
    (place / "good").write_text("x\n")
    agent.drifted(f"file:{ETC}/good")
    agent.pact("commit", "--all", "-m", "good")
    assert agent.status()["declared"] == 3 and agent.status()["state"] == "committed"
    (place / "good").unlink()
    wait_until(lambda: agent.change_of(f"file:{ETC}/good"), "it is declared now")


def test_a_moved_mode_counts_for_what_is_there_already(agent: Agent) -> None:
    place = etc(agent)
    (place / "evil").write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("track", f"file:{ETC}/**", "enforce")
    agent.drifted(EVIL)
    assert agent.status()["untracked"] == 0
    agent.pact("track", f"file:{ETC}/**", "report")
    wait_until(lambda: agent.status()["untracked"] == 1 and not agent.status()["changes"], "reported again")
    agent.pact("track", f"file:{ETC}/**", "ignore")
    assert agent.status()["untracked"] == 0 and (place / "evil").exists()
    (place / "more").write_text("x\n")
    time.sleep(0.5)
    assert agent.status()["untracked"] == 0


def test_the_pattern_that_says_most_decides(agent: Agent) -> None:
    place = etc(agent)
    (place / "cron.d").mkdir()
    (place / "cups").mkdir()
    agent.adopt(f"file:{ETC}/**")
    agent.pact("track", f"file:{ETC}/cron.d/**", "enforce")
    agent.pact("track", f"file:{ETC}/cups/**", "ignore")
    for name in ("x", "cron.d/x", "cups/x"):
        (place / name).write_text("x\n")
    agent.drifted(f"file:{ETC}/cron.d/x")
    wait_until(lambda: set(untracked(agent)) == {f"file:{ETC}/x"}, "the others as their own patterns say")


def test_a_new_mount_is_told_and_removed_when_it_is_named(agent: Agent) -> None:
    agent.world.sh(f"mkdir {TOP}/a {TOP}/b; mount -t tmpfs a {TOP}/a")
    agent.adopt("mount:**")
    agent.world.sh(f"mount -t tmpfs b {TOP}/b")
    mount = f"mount:{TOP}/b"
    wait_until(lambda: mount in untracked(agent), "it is told", 2)
    agent.pact("rollback", mount)
    assert agent.world.sh(f"mountpoint -q {TOP}/b", check=False).code != 0
    assert agent.status()["untracked"] == 0
    agent.world.sh(f"mount -t tmpfs b {TOP}/b")
    wait_until(lambda: mount in untracked(agent), "it is told again", 2)
    agent.world.sh(f"umount {TOP}/b")
    wait_until(lambda: not untracked(agent), "it is gone", 2)


def test_an_enforced_mount_is_unmounted_unless_it_is_in_use(another: Callable[..., Agent]) -> None:
    agent = another(window={"base": "2s"})
    agent.world.sh(f"mkdir {TOP}/a {TOP}/b {TOP}/c; mount -t tmpfs a {TOP}/a")
    agent.adopt("mount:**")
    agent.pact("track", "mount:**", "enforce")
    agent.world.sh(f"mount -t tmpfs b {TOP}/b")
    assert agent.drifted(f"mount:{TOP}/b")["deadline"]
    wait_until(lambda: agent.world.sh(f"mountpoint -q {TOP}/b", check=False).code != 0, "its window ended")
    wait_until(lambda: not agent.status()["changes"], "it is settled")
    agent.world.sh(f"mount -t tmpfs c {TOP}/c")
    holder = agent.world.python("os.chdir(sys.argv[1]); ready()", f"{TOP}/c")
    wait_until(lambda: agent.status()["state"] == "blocked", "it is in use")
    assert agent.world.sh(f"mountpoint -q {TOP}/c", check=False).code == 0
    agent.world.end(holder)
    agent.pact("rollback", f"mount:{TOP}/c")
    assert agent.world.sh(f"mountpoint -q {TOP}/c", check=False).code != 0


def test_sysctls_that_come_with_a_link_are_told_and_go_with_it(agent: Agent) -> None:
    agent.adopt("sysctl:net.ipv4.conf.**")
    agent.world.sh("ip link add v0 type veth peer name v1")
    wait_until(lambda: any(".v0." in r for r in untracked(agent)), "they are told", 8)
    assert "cannot be removed" in agent.pact("track", "sysctl:net.ipv4.conf.**", "enforce", check=2).err
    agent.world.sh("ip link del v0")
    wait_until(lambda: agent.status()["untracked"] == 0, "they are gone", 8)


def test_what_is_tracked_is_exported_and_declared_and_pruned(agent: Agent) -> None:
    etc(agent)
    agent.pact("track", "mount:**", "ignore")
    text = agent.pact("export").out
    assert "[track]" in text and f'"file:{ETC}/**" = "report"' in text and '"mount:**" = "ignore"' in text
    agent.declare(text.replace('"mount:**" = "ignore"', '"module:**" = "enforce"'))
    assert agent.json("track")["tracked"] == {f"file:{ETC}/**": "report", "mount:**": "ignore", "module:**": "enforce"}
    agent.declare(text, "--prune")
    assert agent.json("track")["tracked"] == {f"file:{ETC}/**": "report", "mount:**": "ignore"}
    assert agent.pact("export").out == text
    assert "report" in agent.pact("track").out
    agent.restart()
    assert agent.pact("export").out == text


def test_track_says_what_cannot_be_and_needs_an_admin(agent: Agent) -> None:
    etc(agent)
    seq = agent.status()["journal"]["seq"]
    for words in (
        [f"file:{ETC}/x", "report"],
        ["nonsense", "report"],
        ["widget:**", "report"],
        ["file:x/**", "report"],
        [f"file:{ETC}/**", "sometimes"],
        [f"file:{ETC}/**"],
    ):
        agent.pact("track", *words, check=2)
    agent.declare('[track]\n"file:x/**" = "report"\n', check=2)
    agent.declare('[track]\n"file:/x/**" = "never"\n', check=2)
    assert agent.status()["journal"]["seq"] == seq
    agent.pact("track", f"file:{ETC}/**", "ignore", uid=1234, check=3)
    assert agent.newest("denied")["data"]["request"] == "track"


def test_names_need_no_tracking_and_an_exact_adopt_remembers_none(agent: Agent) -> None:
    agent.file("only.conf")
    assert agent.json("track")["tracked"] == {}
    agent.world.path(f"{TOP}/other.conf").write_text("")
    time.sleep(0.5)
    assert agent.status()["untracked"] == 0


def test_what_a_mount_shows_below_a_tracked_directory_is_new_and_goes_with_it(agent: Agent) -> None:
    place = etc(agent)
    (place / "d").mkdir()
    agent.adopt(f"file:{ETC}/**")
    agent.world.sh(f"mkdir {TOP}/other; touch {TOP}/other/x; mount --bind {TOP}/other {ETC}/d")
    wait_until(lambda: set(untracked(agent)) == {f"file:{ETC}/d/x"}, "it shows what is new")
    agent.world.sh(f"touch {ETC}/d/y")
    wait_until(lambda: agent.status()["untracked"] == 2, "and what is made in it", 1.5)
    agent.world.sh(f"umount {ETC}/d")
    wait_until(lambda: agent.status()["untracked"] == 0, "it shows it no more")


def test_patterns_of_one_component_see_no_deeper(agent: Agent) -> None:
    place = etc(agent)
    agent.declare("# nothing\n[track]\n'file:/srv/etc/*/x*' = 'report'\n", "--prune")
    agent.world.sh(f"mkdir -p {ETC}/a/b; touch {ETC}/x1 {ETC}/a/x1 {ETC}/a/y {ETC}/a/b/x1")
    wait_until(lambda: set(untracked(agent)) == {f"file:{ETC}/a/x1"}, "what the pattern means")
    assert place.exists()


def test_files_that_declare_at_the_first_start_may_track(another: Callable[..., Agent], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'[track]\n"file:{ETC}/**" = "enforce"\n')
    agent = another(declared={"files": [str(tmp_path / "a.toml")]})
    assert agent.json("track")["tracked"] == {f"file:{ETC}/**": "enforce"}


def test_an_earlier_state_is_restored_with_what_was_tracked_then(agent: Agent) -> None:
    place = etc(agent)
    seq = agent.status()["journal"]["seq"]
    agent.pact("track", f"file:{ETC}/**", "ignore")
    (place / "known").write_text("changed\n")
    agent.drifted(f"file:{ETC}/known")
    agent.pact("commit", "--all", "-m", "x")
    agent.pact("rollback", "--to", str(seq), f"file:{ETC}/known")
    assert agent.json("track")["tracked"] == {f"file:{ETC}/**": "ignore"}, "only the named is restored"
    agent.pact("rollback", "--to", str(seq))
    assert agent.json("track")["tracked"] == {f"file:{ETC}/**": "report"}


def test_a_thousand_enforced_at_once_are_drift_and_more_are_reported_until_there_is_room(agent: Agent) -> None:
    etc(agent)
    agent.pact("track", f"file:{ETC}/**", "enforce")
    agent.world.sh(f"cd {ETC} && seq -f f%g 1200 | xargs touch")
    wait_until(lambda: agent.status()["drifted"] == 1000 and agent.status()["untracked"] == 200, "up to the limit", 30)
    agent.pact("commit", "--all", "-m", "they are meant")
    wait_until(lambda: agent.status()["drifted"] + agent.status()["untracked"] == 0, "all are taken in", 30)
    assert agent.status()["declared"] == 1202


def test_a_new_mount_with_many_files_below_a_tracked_directory_can_be_taken_off(agent: Agent) -> None:
    place = etc(agent)
    (place / "d").mkdir()
    agent.adopt(f"file:{ETC}/**", "mount:**")
    agent.world.sh(f"mkdir {TOP}/m && mount -t tmpfs m {TOP}/m && cd {TOP}/m && seq -f f%g 2000 | xargs touch")
    agent.adopt(f"mount:{TOP}/m")
    agent.world.sh(f"mount --bind {TOP}/m {ETC}/d")
    mount = f"mount:{ETC}/d"
    wait_until(lambda: mount in untracked(agent) or agent.change_of(mount), "it is told")
    agent.pact("rollback", mount)
    assert agent.world.sh(f"mountpoint -q {ETC}/d", check=False).code != 0
    wait_until(lambda: agent.status()["untracked"] == 0, "what it showed is gone")


@pytest.mark.invariant("U1", "F10")
def test_what_is_made_while_events_are_lost_is_found_at_once(another: Callable[..., Agent]) -> None:
    agent = another(observe={"rescan": "1h"})
    place = etc(agent)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        agent.world.python(
            "for i in range(20000): os.close(os.open(f'{sys.argv[1]}/n{i}', os.O_CREAT)); "
            "os.unlink(f'{sys.argv[1]}/n{i}')\nready()",
            ETC,
        )
        (place / "evil").write_text("x\n")
    finally:
        agent.process.send_signal(signal.SIGCONT)
    wait_until(lambda: set(untracked(agent)) == {EVIL}, "it is found")
    wait_until(lambda: agent.newest("observer_blind"), "that events were lost is told")
    assert agent.status()["untracked"] == 1
