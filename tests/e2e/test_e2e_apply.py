"""apply: everything that can be known is asked first, and what fails in spite of that is undone at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import TOP, Agent, wait_until

TTL = "net.ipv4.ip_default_ttl"
#: The kernel takes 1 to 255.
BAD = 999


def ttl(agent: Agent) -> str:
    return agent.world.sh(f"cat /proc/sys/{TTL.replace('.', '/')}").out.strip()


@contextmanager
def holding(agent: Agent, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a file open."""
    process = agent.world.python("f = open(sys.argv[1])\nready()\n", path)
    try:
        yield process
    finally:
        agent.world.end(process)


def apply(agent: Agent, text: str, *args: str, check: int) -> dict[str, object]:
    result: dict[str, object] = agent.pact("--json", "apply", *args, "-", input=text.encode(), check=check).json()
    return result


@pytest.mark.invariant("C7")
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_is_in_use_stops_all_of_it_before_anything_is_touched(agent: Agent, dry: tuple[str, ...]) -> None:
    path = agent.file("held.conf")
    text = f'[sysctl]\n"{TTL}" = 70\n[file."{path}"]\ncontent = "new\\n"\n'
    before = len(agent.records("applied"))
    with holding(agent, path) as process:
        answer = apply(agent, text, *dry, check=10)
        assert [c["pid"] for c in answer["consumers"]] == [process.pid]  # type: ignore[attr-defined]
        assert ttl(agent) == "64" and agent.world.path(path).read_text() == "declared\n"
        assert agent.status()["changes"] == [] and len(agent.records("applied")) == before
    apply(agent, text, check=0)
    assert ttl(agent) == "70"
    agent.pact("rollback")


@pytest.mark.invariant("C7")
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ('[sysctl]\n"net.ipv4.ip_defalt_ttl" = 1\n"net.ipv4.ip_default_ttl" = 70\n', "no such sysctl"),
        ('[sysctl]\n"kernel.ostype" = "Minix"\n"net.ipv4.ip_default_ttl" = 70\n', "lets nobody set it"),
        (
            '[sysctl]\n"net.ipv4.ip_default_ttl" = 70\n[file."/srv/x/y"]\ncontent = "1"\nowner = "nobody-here"\n',
            "nobody-here",
        ),
        (
            '[sysctl]\n"net.ipv4.ip_default_ttl" = 70\n[mount."/srv/m"]\nsource = "/srv/none"\nfstype = "none"\noptions = ["bind"]\n',
            "/srv/none",
        ),
        (
            '[sysctl]\n"net.ipv4.ip_default_ttl" = 70\n[mount."/srv/m"]\nsource = "x"\nfstype = "nonesuchfs"\n',
            "nonesuchfs",
        ),
        ('[sysctl]\n"net.ipv4.ip_default_ttl" = 70\n[module]\nno_such_module_here = "loaded"\n', "no_such_module_here"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_touched(
    agent: Agent, wrong: str, why: str, dry: tuple[str, ...]
) -> None:
    before = len(agent.records("applied"))
    answer = apply(agent, wrong, *dry, check=1)
    assert why in str(answer["message"]), answer
    assert ttl(agent) == "64"
    assert agent.status()["changes"] == [] and len(agent.records("applied")) == before


@pytest.mark.invariant("C7")
def test_a_step_that_fails_undoes_those_before_it(agent: Agent) -> None:
    """What the kernel thinks of a value is only known when it is written."""
    old, new = agent.file("a.conf"), f"{TOP}/made/new.conf"
    text = (
        f'[sysctl]\n"net.core.somaxconn" = 4000\n"{TTL}" = {BAD}\n[file."{old}"]\ncontent = "new\\n"\n'
        f'[file."{TOP}/made"]\ntype = "directory"\n[file."{new}"]\ncontent = "made\\n"\n'
    )
    before = agent.world.sh("cat /proc/sys/net/core/somaxconn").out
    declared = agent.status()["declared"]
    answer = apply(agent, text, check=1)
    assert "nothing was applied" in str(answer["message"]) and f"sysctl:{TTL}" in answer["left"], answer
    assert set(answer["undone"]) == {f"file:{old}", f"file:{TOP}/made", f"file:{new}", "sysctl:net.core.somaxconn"}
    assert agent.world.path(old).read_text() == "declared\n"
    assert not agent.world.path(f"{TOP}/made").exists()
    assert agent.world.sh("cat /proc/sys/net/core/somaxconn").out == before
    assert agent.status()["changes"] == []
    assert agent.status()["declared"] == declared, "what was not declared before is not declared now"


@pytest.mark.invariant("C7", "C9")
def test_an_undone_application_gives_back_what_another_had_drifted(agent: Agent) -> None:
    path = agent.file("shared.conf", mode=0o666)
    theirs = agent.drift_by(1234, path, "theirs")
    apply(agent, f'[file."{path}"]\ncontent = "new\\n"\n[sysctl]\n"{TTL}" = {BAD}\n', check=1)
    assert agent.world.path(path).read_text() == "theirs\n"
    (change,) = agent.status()["changes"]
    assert change["owner"]["uid"] == 1234 and change["resources"] == theirs["resources"]
    agent.pact("rollback", "--all", "--shared")


@pytest.mark.invariant("C7")
def test_what_cannot_be_undone_is_a_failed_change(agent: Agent) -> None:
    """Somebody opens the new file before the undoing gets to it."""
    path = agent.file("a.conf")
    agent.world.path(path).write_text("declared\n")
    script = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nfd = libc.inotify_init()\n"
        "libc.inotify_add_watch(fd, sys.argv[1].encode(), 0x80)\n"  # IN_MOVED_TO: the new one got its name
        "print('ready', flush=True)\nos.read(fd, 4096)\nf = open(sys.argv[2])\ntime.sleep(60)\n"
    )
    process = agent.world.popen(["python3", "-c", "import sys,time,os\n" + script, TOP, path], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    many = "".join(f'[file."{TOP}/many/{i}"]\ncontent = "{i}"\nrequires = ["file:{path}"]\n' for i in range(200))
    text = f'[file."{path}"]\ncontent = "new\\n"\n{many}[sysctl]\n"{TTL}" = {{value = {BAD}, requires = ["file:{TOP}/many/199"]}}\n'
    answer = apply(agent, text, check=1)
    agent.world.end(process)
    if f"file:{path}" in answer["undone"]:  # type: ignore[operator]
        pytest.fail("the reader came too late")
    assert "could not be undone" in str(answer["message"])
    assert agent.change_of(f"file:{path}")["state"] == "failed"
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("C7", "R6")
def test_an_agent_that_is_killed_while_it_undoes_leaves_a_window(agent: Agent) -> None:
    path = agent.file("a.conf")
    many = "".join(f'[file."{TOP}/many/{i}"]\ncontent = "{i}"\nrequires = ["file:{path}"]\n' for i in range(300))
    text = f'[file."{path}"]\ncontent = "new\\n"\n{many}[sysctl]\n"{TTL}" = {{value = {BAD}, requires = ["file:{TOP}/many/299"]}}\n'
    file = agent.base / "apply.toml"
    file.write_text(text)
    asking = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "apply", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: os.path.exists(agent.world.path(f"{TOP}/many/150")), "it has begun")
    agent.restart(signal.SIGKILL)
    agent.world.end(asking)
    status = agent.status()
    drifted = {r for c in status["changes"] for r in c["resources"]}
    there = {f"file:{TOP}/many/{n}" for n in os.listdir(agent.world.path(f"{TOP}/many")) if not n.startswith(".")}
    assert there <= drifted | {f"file:{TOP}/many"}, "all that it had done is known"
    agent.pact("rollback", "--all", "--shared", check=None)
    wait_until(lambda: agent.world.path(path).read_text() == "declared\n", "it is undone")


@pytest.mark.invariant("C7")
def test_what_takes_nothing_away_from_who_uses_it_is_applied(agent: Agent) -> None:
    """Other flags of a mount that is in use, and another mode of a file that is open."""
    agent.world.sh(f"mkdir -p {TOP}/m && mount -t tmpfs -o mode=755 tmpfs {TOP}/m && echo x > {TOP}/m/f")
    path = agent.file("open.conf")
    with holding(agent, path), holding(agent, f"{TOP}/m/f"):
        apply(
            agent,
            f'[mount."{TOP}/m"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["noatime"]\n'
            f'[file."{path}"]\ntype = "file"\nmode = "0600"\n',
            check=0,
        )
        assert "noatime" in agent.world.sh(f"findmnt -no OPTIONS {TOP}/m").out
        assert agent.world.path(path).stat().st_mode & 0o777 == 0o600
    agent.pact("rollback")
    agent.world.sh(f"umount {TOP}/m")


#: Writes to a file as soon as another one took its place.
AT_ONCE = """
before = os.stat(sys.argv[1]).st_ino
print("ready", flush=True)
while os.stat(sys.argv[1]).st_ino == before:
    pass
with open(sys.argv[1], "w") as f:
    f.write("a night's work\\n")
"""


@pytest.mark.invariant("R4")
def test_what_somebody_wrote_meanwhile_is_not_undone(agent: Agent) -> None:
    """It is nowhere else: it stays, in a failed change, whose rollback keeps it."""
    agent.world.sh(f"mkdir -p {TOP}/b; for i in $(seq 300); do echo old > {TOP}/b/f$i; done")
    agent.adopt(f"file:{TOP}/b/**")
    first = f"{TOP}/b/f1"
    text = (
        "".join(f'[file."{TOP}/b/f{i}"]\ncontent = "new\\n"\n' for i in range(1, 301)) + f'[sysctl]\n"{TTL}" = {BAD}\n'
    )
    process = agent.world.python(AT_ONCE, first)
    answer = apply(agent, text, check=1)
    agent.world.end(process)
    assert agent.world.path(first).read_text() == "a night's work\n"
    assert agent.world.path(f"{TOP}/b/f300").read_text() == "old\n"
    (change,) = agent.status()["changes"]
    assert (answer["change"], change["state"], change["resources"]) == (change["id"], "failed", [f"file:{first}"])
    agent.pact("rollback", "--all")
    assert agent.world.path(first).read_text() == "old\n"
    seq, kept = str(agent.newest("rollback_started")["seq"]), agent.base / "kept"
    agent.pact("show", seq, "--restore", str(kept))
    assert kept.read_text() == "a night's work\n"


@pytest.mark.invariant("R10")
def test_what_was_removed_from_below_a_link_that_is_taken_back_comes_back(agent: Agent) -> None:
    """Through the link there is a file of that name: by its look nothing was removed."""
    top, data = f"{TOP}/etc/slurm", f"{TOP}/data/slurm"
    agent.world.sh(f"mkdir -p {top} {data}; for i in 1 2; do echo $i > {top}/f$i; echo $i > {data}/f$i; done")
    agent.adopt(f"file:{top}", f"file:{top}/**")
    wanted: dict[str, object] = {f"file:{top}": {"attrs": {"type": "symlink", "target": data}}}
    wanted |= {f"file:{top}/f{i}": {"attrs": None} for i in (1, 2)}
    answer = agent.ask("apply", resources=wanted, message="")
    assert answer["exit"] == 1 and answer["message"].startswith("nothing was applied"), answer
    assert [agent.world.path(f"{top}/f{i}").read_text() for i in (1, 2)] == ["1\n", "2\n"]
    assert agent.status()["changes"] == []
