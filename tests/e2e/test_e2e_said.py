"""What a person is told before and after: flags, hard links, directories made; and what no pattern takes."""

from __future__ import annotations

import os

import pytest
from harness import TOP, Agent, World


@pytest.fixture(autouse=True)
def clean(world: World) -> None:
    world.sh(f"chattr -R -i -a {TOP} 2>/dev/null; rm -rf {TOP}/etc {TOP}/f {TOP}/g", check=False)


@pytest.mark.invariant("R5")
def test_a_file_comes_back_with_the_directories_that_nobody_declared(agent: Agent) -> None:
    path = agent.file("etc/app/conf.d/x.conf")
    agent.world.sh(f"rm -r {TOP}/etc/app")
    agent.drifted(f"file:{path}")
    planned = agent.pact("rollback", "--all", "--dry-run").out
    assert f"note: {TOP}/etc/app/conf.d is missing: it is made, root's, with mode 0755" in planned
    done = agent.json("rollback", "--all")["rolled_back"][0]
    assert done["state"] == "settled" and len(done["notes"]) == 2
    assert agent.newest("rollback_started")["data"]["notes"] == done["notes"]
    assert agent.world.path(path).read_text() == "declared\n"
    assert oct(agent.world.path(f"{TOP}/etc/app").stat().st_mode) == "0o40755"


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("instead", ["os.symlink('/tmp', app)", "open(app, 'w').close()"])
def test_what_stands_in_the_place_of_its_directory_is_named_before_anything_is_touched(
    agent: Agent, instead: str
) -> None:
    other, path = agent.file("etc/other.conf"), agent.file("etc/app/x.conf")
    # One process, which stays until both are seen: one change. Of a short-lived one nobody may know whose it was.
    writer = agent.world.python(
        f"import shutil\napp = {TOP!r} + '/etc/app'\nshutil.rmtree(app)\n{instead}\n"
        f"open({other!r}, 'w').write('drifted\\n')\nready()"
    )
    agent.drifted(f"file:{path}")
    agent.drifted(f"file:{other}")
    agent.world.end(writer)
    agent.pact("rollback", "--all", check=1)
    changes = agent.status()["changes"]
    assert any(f"{TOP}/etc/app is a" in c.get("reason", "") for c in changes), changes
    assert agent.world.path(other).read_text() == "drifted\n"
    agent.world.sh(f"rm {TOP}/etc/app")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == agent.world.path(other).read_text() == "declared\n"


def test_names_that_editors_and_managers_make_are_not_adopted(agent: Agent) -> None:
    names = (
        ".#conf",
        "#conf#",
        ".conf.swx",
        "conf~",
        "conf.rpmnew",
        "conf.dpkg-tmp",
        ".goutputstream-AB12CD",
        "sedAb3dEf",
    )
    agent.world.path(f"{TOP}/etc").mkdir()
    for name in ("conf", *names):
        agent.world.path(f"{TOP}/etc/{name}").write_text("x")
    said = agent.pact("adopt", f"file:{TOP}/etc/**").out
    assert agent.status()["declared"] == 2 and "a temporary name" in said
    for name in names:
        agent.world.path(f"{TOP}/etc/{name}").unlink()
    assert agent.json("status")["state"] == "committed"
    agent.world.path(f"{TOP}/etc/.#conf").write_text("x")
    agent.adopt(f"file:{TOP}/etc/.#conf")
    assert agent.status()["declared"] == 3


def test_hard_links_that_a_rollback_splits_are_told_before_and_after(agent: Agent) -> None:
    path = agent.file("f/a")
    os.link(agent.world.path(path), agent.world.path(f"{TOP}/f/b"))
    agent.drift(path)
    text = "has another name (a hard link): restoring gives it a content of its own"
    assert text in agent.pact("rollback", "--dry-run").out
    assert text in agent.pact("rollback").out
    assert text in agent.newest("rollback_started")["data"]["notes"][0]
    assert agent.world.path(f"{TOP}/f/b").read_text() == "drifted\n"


@pytest.mark.invariant("R3")
@pytest.mark.needs("chattr")
def test_an_immutable_file_is_called_that_and_blocks_where_nothing_is_said_of_flags(agent: Agent) -> None:
    path = agent.file("f/a")
    agent.drift(path)
    agent.world.sh(f"chattr +i {path}")
    said = agent.pact("rollback", check=1).err
    assert "immutable (chattr -i)" in said and "not permitted" not in said
    agent.world.sh(f"chattr -i {path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.needs("chattr")
def test_flags_are_adopted_exported_seen_as_drift_and_restored(agent: Agent) -> None:
    path = f"{TOP}/f/a"
    agent.world.sh(f"mkdir {TOP}/f; echo declared > {path}; chattr +i {path}")
    agent.adopt(f"file:{path}")
    assert 'flags = "i"' in agent.pact("export").out
    agent.world.sh(f"chattr -i {path}")
    change = agent.drifted(f"file:{path}")
    assert change["resources"] == [f"file:{path}"]
    agent.pact("rollback", "--all")
    assert "i" in agent.world.sh(f"lsattr {path}").out.split()[0]
    agent.world.sh(f"chattr -i {path}; echo drifted > {path}; chmod 600 {path}; chattr +i {path}")
    agent.drifted(f"file:{path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"
    assert "i" in agent.world.sh(f"lsattr {path}").out.split()[0]
    assert agent.json("status")["state"] == "committed"
    agent.world.sh(f"chattr -i {path}")


@pytest.mark.needs("chattr")
def test_a_sealed_directory_is_opened_for_what_was_edited_in_place_in_it(agent: Agent) -> None:
    path = agent.file("f/a")
    agent.world.sh(f"chattr +i {TOP}/f")
    agent.adopt(f"file:{TOP}/f")
    agent.drift(path)
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "declared\n"
    assert "i" in agent.world.sh(f"lsattr -d {TOP}/f").out.split()[0]
    assert agent.json("status")["state"] == "committed"
    agent.world.sh(f"chattr -i {TOP}/f; rm {path}; mkdir {TOP}/f/x; chattr +i {TOP}/f")
    agent.drifted(f"file:{path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"
    assert "i" in agent.world.sh(f"lsattr -d {TOP}/f").out.split()[0]


@pytest.mark.needs("chattr")
def test_a_declared_flag_is_applied_and_rolled_back(agent: Agent) -> None:
    path = agent.file("f/a")
    text = f'[file."{path}"]\ncontent = "applied\\n"\nflags = "a"\n'
    agent.pact("apply", "-", "-m", "x", input=text.encode())
    assert "a" in agent.world.sh(f"lsattr {path}").out.split()[0]
    agent.world.sh(f"chattr -a {path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"
    agent.declare(text)
    assert agent.world.path(path).read_text() == "applied\n"
    agent.world.sh(f"chattr -a {path}; chattr +i {path}")
    agent.drifted(f"file:{path}")
    agent.pact("rollback", "--all")
    assert agent.world.sh(f"lsattr {path}").out.split()[0].count("i") == 0
    agent.world.sh(f"chattr -a {path}")


@pytest.mark.invariant("S2")
def test_what_a_closed_directory_kept_secret_is_not_put_back_into_an_open_one(agent: Agent) -> None:
    """Nobody declared the directories: the files in them are for everybody but for the closed one on the way."""
    agent.world.sh(
        f"mkdir -p {TOP}/way/shut/below {TOP}/way/open; cd {TOP}/way; chmod 700 shut;"
        "for f in shut/a shut/below/b open/c; do echo $f > $f; done"
    )
    agent.adopt(f"file:{TOP}/way/shut/a", f"file:{TOP}/way/shut/below/b", f"file:{TOP}/way/open/c")
    agent.world.sh(f"rm -rf {TOP}/way")
    for name in ("shut/a", "shut/below/b", "open/c"):
        agent.drifted(f"file:{TOP}/way/{name}")
    planned = agent.pact("rollback", "--all", "--dry-run").out
    assert f"{TOP}/way/shut is missing: it is made, root's, with mode 0700" in planned
    assert f"{TOP}/way/open is missing: it is made, root's, with mode 0755" in planned
    agent.pact("rollback", "--all")
    assert agent.world.sh(f"cat {TOP}/way/open/c", uid=4321).out == "open/c\n"
    for name in ("shut/a", "shut/below/b"):
        assert agent.world.sh(f"cat {TOP}/way/{name}").out == f"{name}\n"
        assert agent.world.sh(f"cat {TOP}/way/{name}", uid=4321, check=False).code
