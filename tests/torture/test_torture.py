"""Torture with the seed of the day, in CI for two minutes, elsewhere for 40 seconds: ``make torture`` runs it as long as
one likes.

Leave it out with ``-m "not torture"``. A failure prints the command that runs its seed again; ``PACT_TORTURE_SEED``
chooses another seed than that of the day.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import sight
from model import EARLIER_STEPS, Model

SCRIPT = Path(__file__).with_name("run.py")
CI = bool(os.environ.get("CI"))
MISSING = [name for name in ("unshare", "setpriv", "ip", "mount") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed"),
    pytest.mark.timeout(420),
]


def test_a_look_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One switch of the kernel's has two names: read while the agent moves it, they would contradict each other."""
    reads = iter([("1", "0"), ("0", "0"), ("0", "0"), ("0", "0")])

    def sysctls(names: Iterable[str]) -> sight.Look:
        return {f"sysctl:{n}": {"value": v} for n, v in zip(names, next(reads), strict=True)}

    monkeypatch.setattr(sight, "sysctls", sysctls)
    found = sight.look(str(tmp_path), iter(["ip_forward", "all.forwarding"]))
    assert found == {"sysctl:ip_forward": {"value": "0"}, "sysctl:all.forwarding": {"value": "0"}}


def test_what_waits_for_a_hung_mount_may_be_applied_late_and_no_later() -> None:
    model = Model()
    model.begin(1, hangs=True)
    model.bound("file:/f", {"content": "x"})
    for step in range(2, 20):
        model.begin(step, hangs=True)
    model.begin(20, hangs=False)
    looks = {"file:/f": {"type": "absent"}}, {"file:/f": {"type": "file", "content": b"x"}}
    assert model.moved(*looks) == []
    for step in range(21, 21 + EARLIER_STEPS):
        model.begin(step, hangs=False)
    assert model.moved(*looks) == ["file:/f"]


@pytest.mark.parametrize(
    ("kind", "seconds"), [("node", 100), ("cluster", 20)] if CI else [("node", 25), ("cluster", 15)]
)
def test_a_while_of_torture_finds_nothing(kind: str, seconds: int) -> None:
    seed = os.environ.get("PACT_TORTURE_SEED", "0")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--only", kind, "--seconds", str(seconds), "--seed", seed],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    print(done.stdout)  # the seed stands in it
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-3000:]


@pytest.mark.alone
@pytest.mark.timeout(60)
def test_nothing_is_left_when_it_is_stopped() -> None:
    """No process, no mount, no loop device, no directory."""

    def left() -> tuple[set[str], set[str]]:
        loops = {p.parent.name for p in Path("/sys/block").glob("loop*/loop")}
        return set(Path("/proc/self/mountinfo").read_text().splitlines()), loops

    before = left()
    running = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--only", "node", "--seed", "3"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None and running.stdout.readline().startswith("torture from seed 3")
    try:
        running.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        running.terminate()
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 0 and "stopped" in out, out
    assert left() == before
    children = [p for p in Path("/proc").glob("[0-9]*") if _asks(p, "tests/torture/node.py", "--seed 3 ")]
    assert children == []


def _asks(process: Path, *words: str) -> bool:
    try:
        line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return False
    return all(word in line for word in words)
