"""What hangs is mounted, and the loop looks before anything told it of the mount: it must not touch it.  # F13

``unshare`` gives each a mount namespace; the FUSE server answers one request and nothing after.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from test_observe_common import in_namespaces

from pact.observe.places import MountClock

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
E2E = Path(__file__).parent / "e2e"
PRELUDE = f"""
import signal, subprocess, sys
from contextlib import contextmanager
sys.path.insert(0, {str(E2E)!r})
from harness import HUNG_FUSE
from pact.agent.config import Config
from pact.agent.watching import Watching
from pact.model import Declared
from pact.sim.world import World

HEAD = "import sys,time,os\\ndef ready():\\n print('ready',flush=True)\\n sys.stdin.read()\\n"

@contextmanager
def hung(path):
    server = subprocess.Popen([sys.executable, "-c", HEAD + HUNG_FUSE, path], stdin=-1, stdout=-1)
    assert server.stdout.readline() == b"ready\\n"
    signal.alarm(10)  # whoever hangs there ends
    yield
    signal.alarm(0)
    server.kill()
    server.wait()
    subprocess.run(["umount", "-l", path], check=True)

"""


def inside(code: str) -> str:
    return in_namespaces("-m --propagation private", PRELUDE + code)


@pytest.fixture
def place() -> Iterator[Path]:
    """With files in directories, as they were before anything was mounted. Nothing is tracked below /tmp."""
    with TemporaryDirectory(dir="/var/tmp", prefix="moved-") as top:
        for name in ("d1", "d1/deep", "d2"):
            Path(top, name).mkdir()
            Path(top, name, "f").write_text("one\n")
        yield Path(top)


@pytest.mark.invariant("F13")
def test_a_declared_file_is_handed_on_when_something_that_hangs_was_just_mounted_above_it(place: Path) -> None:
    out = inside(f"""
top = {str(place)!r}
watching = Watching(Config(state_dir=top + "/d2"), 0)
watching.refresh_mounts()
names = [f"file:{{top}}/{{n}}" for n in ("d1/f", "d1/deep/f", "d2/f")]
watching.add(names)
slow = []
with hung(top + "/d1"):
    seen = watching.observe([(n, None) for n in names], lambda r, o: slow.append(r))
    assert [s.resource for s in seen] == names[2:] and slow == names[:2], (seen, slow)
    watching.rescan_all()
    watching.observers.remark()
    slow = []
    assert watching.observe([(n, None) for n in names[:2]], lambda r, o: slow.append(r)) == [] and slow == names[:2]
assert len(watching.observe([(n, None) for n in names], lambda r, o: None)) == 3, "all are the loop's again"
import os
os.symlink("d1", top + "/link")
linked = f"file:{{top}}/link/f"
watching.add([linked])
assert len(watching.observe([(linked, None)], lambda r, o: None)) == 1
with hung(top + "/d1"):
    watching.drain()
    watching.rescan_all()  # what only a link leads there is placed right before the look
    slow = []
    assert watching.observe([(linked, None)], lambda r, o: slow.append(r)) == [] and slow == [linked]
watching.close()
print("ok")
""")
    assert out == "ok\n"


@pytest.mark.invariant("F13")
@pytest.mark.parametrize("over", ["d1", "d1/deep", "."])
def test_a_tracked_directory_is_not_walked_when_something_that_hangs_was_just_mounted(place: Path, over: str) -> None:
    """Over it, below it, and above where its pattern begins."""
    out = inside(f"""
top = {str(place)!r}
os.makedirs("/run/pact-test", exist_ok=True)
watching = Watching(Config(state_dir="/run/pact-test"), 0)
watching.refresh_mounts()
world = World()
world.start({{"file:/etc/known": Declared({{"value": "known"}})}})
tracking = watching.tracking
tracking.follow({{f"file:{{top}}/d1/**": "report"}})
while tracking.has_due:
    tracking.take(world.node, 0, everything=True)
assert tracking.health() == "ok"
with hung(os.path.normpath(f"{{top}}/{over}")):
    tracking.touched(os.fsencode(f"{{top}}/d1/f"), None)
    tracking.touched(os.fsencode(f"{{top}}/d1/deep/f"), None)
    tracking.rescan(0, 1)
    while tracking.has_due:
        tracking.take(world.node, 0, everything=True)
    tracking.walk_again()
    while tracking.has_due:
        tracking.take(world.node, 10**10, everything=True)
    assert ("may hang" in tracking.health()) == ({over!r} != "d1/deep"), tracking.health()
tracking.mounts_moved(None)
while tracking.has_due:
    tracking.take(world.node, 10**10, everything=True)
assert tracking.health() == "ok" and os.fsencode(f"{{top}}/d1/deep") in tracking._directories
watching.close()
print("ok")
""")
    assert out == "ok\n"


def test_the_clock_counts_each_move_of_the_table_once() -> None:
    out = in_namespaces(
        "-m --propagation private",
        """
import subprocess
from pact.observe.places import MountClock
clock = MountClock()
first = clock.generation()
assert clock.generation() == first
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
second = clock.generation()
assert second != first and clock.generation() == second
print("ok")
""",
    )
    assert out == "ok\n"
    assert MountClock().generation() == 1
