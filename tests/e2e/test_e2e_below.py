"""What lies below what pact itself replaces is not lost sight of."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable

import pytest
from harness import TOP, Agent, World, wait_until

NAMES = ("slurm.conf", "gres.conf", "plug.d/a.conf")


@pytest.fixture(autouse=True)
def clean(world: World) -> None:
    world.sh(f"umount {TOP}/etc/slurm 2>/dev/null; rm -rf {TOP}/etc {TOP}/data {TOP}/real {TOP}/link {TOP}/a")


def tree(agent: Agent) -> list[str]:
    """A declared directory with files; their names."""
    top = agent.world.path(f"{TOP}/etc/slurm")
    (top / "plug.d").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (top / name).write_text(f"{name}\n")
    (top / "gres.conf").chmod(0o600)
    agent.world.path(f"{TOP}/data").mkdir(exist_ok=True)
    agent.adopt(f"file:{TOP}/etc/slurm", f"file:{TOP}/etc/slurm/**")
    return [f"file:{TOP}/etc/slurm/{name}" for name in NAMES]


def linked(agent: Agent) -> str:
    """The directory is moved, with a link in its place; by one process, so that it is one change, whose name it is.
    The agent stands still meanwhile: what it saw gone between the two would stay so where it cannot read it any more.
    """
    place = agent.world.path(f"{TOP}/etc/slurm")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        place.rename(agent.world.path(f"{TOP}/data/slurm"))
        place.symlink_to(f"{TOP}/data/slurm")
    finally:
        agent.process.send_signal(signal.SIGCONT)
    change = str(agent.drifted(f"file:{TOP}/etc/slurm")["id"])
    wait_until(lambda: [c["id"] for c in agent.status()["changes"]] == [change], "only the link has drifted")
    return change


def require_whole(agent: Agent) -> None:
    top = agent.world.path(f"{TOP}/etc/slurm")
    assert top.is_dir() and not top.is_symlink()
    for name in NAMES:
        assert (top / name).read_text() == f"{name}\n"
    assert stat.S_IMODE((top / "gres.conf").stat().st_mode) == 0o600
    status = agent.status()
    assert (status["state"], status["changes"], status["drifted"]) == ("committed", [], 0), status


@pytest.mark.invariant("R10")
def test_files_seen_through_a_link_come_back_with_the_directory_that_replaces_it(agent: Agent) -> None:
    ids = tree(agent)
    linked(agent)
    planned = agent.json("rollback", "--all", "--dry-run")["rolled_back"][0]
    assert set(ids) < {s["id"] for s in planned["plan"]} and planned["refused"] == []
    done = agent.json("rollback", "--all")["rolled_back"][0]
    assert set(ids) < set(done["restored"])
    assert any("seen through" in note for note in done["notes"])
    require_whole(agent)
    assert agent.world.path(f"{TOP}/data/slurm/slurm.conf").read_text() == "slurm.conf\n"
    started = agent.newest("rollback_started")["data"]
    assert set(ids) < {s["id"] for s in started["plan"]} and started["notes"]
    agent.pact("check")


@pytest.mark.invariant("R10", "A4")
def test_a_window_s_end_brings_back_what_was_seen_through_a_link(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(window={"base": "1.5s", "floor": "0.2s"})
    agent.start()
    tree(agent)
    agent.world.sh(f"mv {TOP}/etc/slurm {TOP}/data/ && ln -s {TOP}/data/slurm {TOP}/etc/slurm")
    wait_until(lambda: agent.newest("rolled_back"), "the window ends")
    require_whole(agent)
    agent.close()


@pytest.mark.invariant("R10", "R4")
def test_what_was_edited_behind_the_link_is_restored_too_and_its_new_content_kept(agent: Agent) -> None:
    tree(agent)
    linked(agent)
    agent.world.path(f"{TOP}/data/slurm/slurm.conf").write_text("edited\n")
    agent.drifted(f"file:{TOP}/etc/slurm/slurm.conf")
    done = agent.json("rollback", "--all")["rolled_back"]
    assert all(d["state"] == "settled" for d in done), done
    require_whole(agent)
    assert agent.world.path(f"{TOP}/data/slurm/slurm.conf").read_text() == "edited\n"


@pytest.mark.invariant("R10")
def test_what_lies_behind_a_link_that_its_owner_can_turn_comes_back_unread(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/etc {TOP}/data && chown 1234 {TOP}/etc {TOP}/data")
    tree(agent)
    linked(agent)
    for name in ("plug.d", *NAMES):  # what looks as it did last time conforms, whatever way leads there
        os.utime(agent.world.path(f"{TOP}/data/slurm/{name}"))
    wait_until(lambda: agent.status()["unreadable"] == len(NAMES) + 1, "all that lies behind the link is unread")
    agent.pact("rollback", "--all")
    require_whole(agent)


@pytest.mark.invariant("R10")
def test_another_s_work_behind_the_link_stays_in_its_change_and_shows_at_once(agent: Agent) -> None:
    tree(agent)
    path = f"{TOP}/etc/slurm/slurm.conf"
    agent.world.path(path).chmod(0o666)
    agent.adopt(f"file:{path}")
    mine = linked(agent)
    theirs = agent.drift_by(1234, path)
    assert theirs["id"] != mine
    agent.pact("rollback", mine)
    (change,) = agent.status()["changes"]
    assert (change["id"], change["resources"], change["owner"]["uid"]) == (theirs["id"], [f"file:{path}"], 1234)
    assert agent.json("diff")["resources"][0]["actual"] is None
    agent.pact("rollback", theirs["id"])
    require_whole(agent)
    assert agent.world.path(f"{TOP}/data/slurm/slurm.conf").read_text() == "x\n"


@pytest.mark.invariant("R10")
def test_what_cannot_be_kept_stops_the_rollback_of_the_link_before_anything_is_touched(agent: Agent) -> None:
    tree(agent)
    big = agent.world.path(f"{TOP}/etc/slurm/big")
    with open(big, "wb") as f:
        f.truncate(9 << 20)
    agent.adopt(f"file:{TOP}/etc/slurm/big")
    linked(agent)
    done = agent.json("rollback", "--all", check=1)["rolled_back"][0]
    assert done["state"] == "blocked" and "big" in done["reason"], done
    assert agent.world.path(f"{TOP}/etc/slurm").is_symlink()
    assert agent.world.path(f"{TOP}/data/slurm/big").stat().st_size == 9 << 20


@pytest.mark.invariant("R10")
def test_files_behind_a_bind_mount_come_back_when_it_is_taken_off(agent: Agent) -> None:
    tree(agent)
    agent.world.sh(
        f"cp -a {TOP}/etc/slurm {TOP}/data/ && rm {TOP}/etc/slurm/slurm.conf"
        f" && mount --bind {TOP}/data/slurm {TOP}/etc/slurm"
    )
    agent.drifted(f"mount:{TOP}/etc/slurm")
    agent.pact("rollback", "--all")
    require_whole(agent)


@pytest.mark.invariant("R10", "L1")
def test_a_declared_directory_takes_the_place_of_a_link_with_all_that_is_declared_below(agent: Agent) -> None:
    tree(agent)
    linked(agent)
    agent.declare(agent.pact("export").out, "--take")
    require_whole(agent)


@pytest.mark.invariant("R10", "C7")
def test_what_an_applied_directory_hides_joins_the_apply_and_comes_back_with_it(agent: Agent) -> None:
    world = agent.world
    world.sh(f"mkdir {TOP}/real && echo one > {TOP}/real/one && echo two > {TOP}/real/two && ln -s real {TOP}/link")
    agent.declare(
        f'[file."{TOP}/link"]\nsymlink = "real"\n[file."{TOP}/link/one"]\ncontent = "one\\n"\n'
        f'[file."{TOP}/link/two"]\ncontent = "two\\n"\n'
    )
    answer = agent.pact(
        "--json",
        "apply",
        "-",
        "-m",
        "x",
        input=(f'[file."{TOP}/link"]\ntype = "directory"\n[file."{TOP}/link/one"]\ncontent = "one\\n"\n').encode(),
    ).json()
    assert world.path(f"{TOP}/link/one").read_text() == "one\n"
    (change,) = agent.status()["changes"]
    assert change["id"] == answer["change"]
    assert set(change["resources"]) == {f"file:{TOP}/link", f"file:{TOP}/link/two"}


@pytest.mark.invariant("R10", "C7")
def test_a_link_that_is_turned_takes_what_is_declared_behind_it_along_and_back(agent: Agent) -> None:
    world = agent.world
    world.sh(
        f"mkdir {TOP}/real {TOP}/data && echo one > {TOP}/real/one && echo other > {TOP}/data/one"
        f" && ln -s real {TOP}/link"
    )
    agent.declare(f'[file."{TOP}/link"]\nsymlink = "real"\n[file."{TOP}/link/one"]\ncontent = "one\\n"\n')
    text = f'[file."{TOP}/link"]\nsymlink = "data"\n'
    answer = agent.pact("--json", "apply", "-", "-m", "x", input=text.encode()).json()
    (change,) = agent.status()["changes"]
    assert (change["id"], set(change["resources"])) == (answer["change"], {f"file:{TOP}/link", f"file:{TOP}/link/one"})
    agent.pact("rollback", "--all")
    status = agent.status()
    assert (status["state"], status["changes"]) == ("committed", [])
    assert os.readlink(world.path(f"{TOP}/link")) == "real"
    assert world.path(f"{TOP}/data/one").read_text() == "other\n"


@pytest.mark.invariant("R10", "R6")
def test_a_kill_between_the_directory_and_what_belongs_below_it_loses_nothing(agent: Agent) -> None:
    ids = tree(agent)
    linked(agent)
    extra = 60
    for n in range(extra):
        agent.file(f"etc/slurm-extra/{n}")
    agent.world.sh(f"rm -r {TOP}/etc/slurm-extra")
    wait_until(lambda: agent.status()["drifted"] == extra + 1, "all is seen", 30)
    with agent.connect() as sock:
        sock.sendall(b'{"v":1,"op":"rollback","args":{"all":true}}\n')
        wait_until(
            lambda: (
                agent.world.path(f"{TOP}/etc/slurm").is_dir() and not agent.world.path(f"{TOP}/etc/slurm").is_symlink()
            ),
            "it has begun",
        )
        agent.stop(signal.SIGKILL)
    agent.start()
    wait_until(lambda: not agent.status()["changes"], "it is done", 30)
    require_whole(agent)
    assert set(ids) < {s["id"] for r in agent.records("rollback_started") for s in r["data"]["plan"]}


def test_what_others_do_beside_a_rollback_is_seen_at_once(agent: Agent) -> None:
    path = agent.file("a/b.conf")
    agent.adopt(f"file:{TOP}/a")
    agent.drift(path)
    os.utime(agent.world.path(f"{TOP}/a"))
    agent.world.path(f"{TOP}/a").chmod(0o700)
    agent.drifted(f"file:{TOP}/a")
    agent.pact("rollback", f"file:{path}")
    assert agent.change_of(f"file:{TOP}/a"), "what belongs to nobody's plan stays drift"


@pytest.mark.invariant("R10")
@pytest.mark.parametrize("how", ["ln -s real {0}/link", "mkdir {0}/link && mount --bind {0}/real {0}/link"])
def test_what_pact_writes_by_one_name_is_seen_by_the_other_without_a_rescan(
    make_agent: Callable[..., Agent], how: str
) -> None:
    agent = make_agent(observe={"rescan": "1h"})
    agent.start()
    agent.world.sh(f"mkdir {TOP}/real && echo one > {TOP}/real/one && " + how.format(TOP))
    agent.declare("".join(f'[file."{TOP}/{d}/one"]\ncontent = "one\\n"\n' for d in ("real", "link")))
    agent.world.path(f"{TOP}/real/one").write_text("drifted\n")
    wait_until(lambda: agent.status()["drifted"] == 2, "both have drifted")
    done = agent.json("rollback", f"file:{TOP}/real/one")["rolled_back"][0]
    assert done["state"] == "settled"
    wait_until(lambda: agent.status()["state"] == "committed", "the other is seen", 5)
    agent.close()
    agent.world.sh(f"umount {TOP}/link", check=False)


@pytest.mark.invariant("R10")
def test_a_directory_mounted_on_itself_is_uncovered_also_with_files_too_large_to_keep(agent: Agent) -> None:
    tree(agent)
    with open(agent.world.path(f"{TOP}/etc/slurm/big"), "wb") as f:
        f.truncate(5 << 20)
    agent.adopt(f"file:{TOP}/etc/slurm/big")
    agent.world.sh(f"mount --bind {TOP}/etc/slurm {TOP}/etc/slurm")
    agent.drifted(f"mount:{TOP}/etc/slurm")
    agent.pact("rollback", "--all")
    require_whole(agent)


@pytest.mark.invariant("R10")
def test_to_apply_a_link_again_removes_nothing_that_its_rollback_brought_back(agent: Agent) -> None:
    tree(agent)
    linked(agent)
    agent.pact("rollback", "--all")
    change = agent.newest("rolled_back")["data"]["change"]
    for words in (["--dry-run"], []):
        assert "not empty" in agent.pact("redo", change, *words, check=1).err
        require_whole(agent)
