"""Who owns a directory on the way to a mount turns it while root mounts, or unmounts: nothing happens elsewhere.

The turn is made at the worst moment, by a hook into the very step; and by a process that races for some seconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from harness import TOP, Agent, World

TURN = """
import ctypes, subprocess
sys.path.insert(0, sys.argv[1])
from pact.core.plan import Step
from pact.resources.kinds import mount
libc, real = ctypes.CDLL(None), {}
home, name = sys.argv[2].encode(), sys.argv[2] + sys.argv[3]
def turn():
    assert libc.renameat2(-100, home + sys.argv[4].encode(), -100, home + b"/lnk", 2) == 0
def hooked(where):
    real[where] = getattr(mount, where)
    def call(*args, **more):
        if where == "run_tool":
            turn()
        out = real[where](*args, **more)
        if where != "run_tool":
            turn()
        return out
    setattr(mount, where, call)
seen = mount.KIND.observe(name)
hooked(sys.argv[5])
target = eval(sys.argv[6])
try:
    mount.KIND.restore(name, Step("mount:" + name, target, seen), lambda digest: b"")
    print("done", flush=True)
except Exception as exc:
    print("refused", exc, flush=True)
"""


def turned(world: World, home: str, name: str, swapped: str, where: str, target: str) -> str:
    from harness import REPOSITORY

    script = "import sys\n" + TURN
    done = world.call([sys.executable, "-c", script, str(REPOSITORY), home, name, swapped, where, target])
    return done.out


@pytest.mark.invariant("R12")
def test_what_is_turned_in_before_mount_is_not_mounted_on(world: World) -> None:
    home = f"{TOP}/turn1"
    world.sh(f"mkdir -p {home}/mnt {TOP}/victim1; ln -s {TOP}/victim1 {home}/lnk; chown 1234:1234 {home}")
    target = "{'source': 'data', 'fstype': 'tmpfs', 'options': ['rw', 'size=1024k']}"
    turned(world, home, "/mnt", "/mnt", "run_tool", target)
    mounts = world.sh("cat /proc/self/mountinfo").out
    assert "/victim1" not in mounts and " data " not in mounts, "neither there, nor where its directory went"


@pytest.mark.invariant("R12")
def test_what_is_turned_in_before_umount_is_not_unmounted(world: World) -> None:
    home, victim = f"{TOP}/turn2", f"{TOP}/victim2"
    world.sh(
        f"mkdir -p {home}/sub/mnt {victim}/mnt; ln -s {victim} {home}/lnk; chown 1234:1234 {home};"
        f"mount -t tmpfs precious {victim}/mnt; echo work > {victim}/mnt/f; mount -t tmpfs foreign {home}/sub/mnt"
    )
    turned(world, home, "/sub/mnt", "/sub", "require_kept", "None")
    assert world.sh(f"cat {victim}/mnt/f").out == "work\n", "another's mount stays"
    world.sh(f"umount {victim}/mnt; umount {home}/sub/mnt || umount {home}/lnk/mnt", check=False)


@pytest.mark.invariant("R12")
@pytest.mark.parametrize("name", ["lnk-is-dir", "lnk-is-link"])
def test_another_mount_that_is_turned_in_is_not_unmounted(world: World, name: str) -> None:
    """Both are mounts below the same user's directories; what stands there now is not what was looked at."""
    home = f"{TOP}/turn3{name}"
    world.sh(
        f"mkdir -p {home}/sub/mnt {home}/lnk/mnt; chown -R 1234:1234 {home};"
        f"mount -t tmpfs other {home}/lnk/mnt; echo work > {home}/lnk/mnt/f; mount -t tmpfs foreign {home}/sub/mnt"
    )
    said = turned(world, home, "/sub/mnt", "/sub", "require_kept" if name == "lnk-is-dir" else "decode_name", "None")
    assert "other" in world.sh("cat /proc/self/mountinfo").out, said
    world.sh(f"umount {home}/sub/mnt; umount {home}/lnk/mnt", check=False)


@pytest.mark.invariant("R12")
def test_a_bind_of_what_a_user_can_turn_shows_no_other_place(world: World) -> None:
    home, victim = f"{TOP}/turn4", f"{TOP}/victim4"
    world.sh(
        f"mkdir -p {home}/src {victim} {TOP}/here4; echo secret > {victim}/f; chmod 700 {victim};"
        f"ln -s {victim} {home}/lnk; chown 1234:1234 {home}"
    )
    target = f"{{'source': '{home}/src', 'fstype': 'none', 'options': ['bind']}}"
    script = TURN.replace(
        "name = sys.argv[2].encode(), sys.argv[2] + sys.argv[3]", "name = sys.argv[2].encode(), sys.argv[3]"
    )
    from harness import REPOSITORY

    world.call(
        [
            sys.executable,
            "-c",
            "import sys\n" + script,
            str(REPOSITORY),
            home,
            f"{TOP}/here4",
            "/src",
            "run_tool",
            target,
        ]
    )
    assert not world.path(f"{TOP}/here4/f").exists(), "what only root can read is not bound where others read"
    world.sh(f"umount {TOP}/here4", check=False)


RACE = """
import ctypes, os, time
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
end = time.time() + 8
print("ready", flush=True)
while time.time() < end:
    libc.renameat2(-100, b"mnt", -100, b"lnk", 2)
    time.sleep(0.0007)
"""


@pytest.mark.invariant("R12")
def test_a_race_for_a_declared_mount_below_a_user_s_directory_is_lost(another: Callable[..., Agent]) -> None:
    agent = another()
    home, victim = f"{TOP}/race", f"{TOP}/victim5"
    agent.world.sh(
        f"mkdir -p {home}/mnt {victim}; chown 1234:1234 {home}; mount -t tmpfs -o size=1m data {home}/mnt;"
        f"ln -s {victim} {home}/lnk"
    )
    agent.adopt(f"mount:{home}/mnt")
    agent.world.sh(f"umount {home}/mnt")
    agent.drifted(f"mount:{home}/mnt")
    racer = agent.world.popen(
        [
            "setpriv",
            "--reuid=1234",
            "--regid=1234",
            "--clear-groups",
            "--",
            sys.executable,
            "-c",
            "import sys\n" + RACE,
            home,
        ],
        stdout=subprocess.PIPE,
    )
    assert racer.stdout.readline() == b"ready\n"
    ends = time.monotonic() + 7
    while time.monotonic() < ends:
        agent.pact("rollback", "--all", check=None)
        assert victim not in agent.world.sh("cat /proc/self/mountinfo").out
        agent.world.sh(f"umount {home}/mnt || umount {home}/lnk", check=False)
        time.sleep(0.05)
    agent.world.end(racer)
