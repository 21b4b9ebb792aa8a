"""Mounts inside mounts that leave together: who holds them, as the kernel and /proc say it, in a namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.invariant("F5"),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

#: Mounts o, o/i and o/i/k below argv[1]; argv[2] is run; then who uses the mounts of argv[3:], with one process unreadable.
SCRIPT = """
import json, os, subprocess, sys
from pact.core.plan import Step
from pact.resources import KINDS; from pact.agent import consumers
top, prepare, *names = sys.argv[1:]
os.chdir(top)
for name in ("o", "o/i", "o/i/k"):
    os.mkdir(name)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], check=True)
real = consumers.open_handles_ex
consumers.open_handles_ex = lambda roots: (real(roots)[0], [1])
exec(prepare)
steps = [Step(f"mount:{top}/{n}", None, KINDS["mount"].observe(f"{top}/{n}")) for n in names]
assert all(isinstance(s.actual, dict) for s in steps)
print(json.dumps([[h.resource[len(top) + 7:], h.how, h.pid, h.path] for h in consumers.find_holders(steps)]))
print(json.dumps([n for n in ("o", "o/i", "o/i/k") if os.path.ismount(n)]))
"""
HOLDING = "p = subprocess.Popen(['sleep', '99'], cwd={!r}); import atexit; atexit.register(p.kill)"


def holders(tmp_path: Path, *names: str, prepare: str = "") -> list[Any]:
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-c",
            SCRIPT,
            str(tmp_path),
            prepare,
            *names,
        ],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr.decode()
    found, mounted = map(json.loads, done.stdout.splitlines())
    gone = "'umount'" in prepare
    assert mounted == (["o", "o/i"] if gone else ["o", "o/i", "o/i/k"]), "asking unmounts nothing"
    return list(found)


def test_idle_mounts_that_leave_together_hold_nothing_up_although_a_process_cannot_be_read(tmp_path: Path) -> None:
    assert holders(tmp_path, "o/i/k", "o/i", "o") == []


def test_a_process_in_any_of_them_is_named(tmp_path: Path) -> None:
    found = holders(tmp_path, "o/i/k", "o/i", "o", prepare=HOLDING.format("o/i"))
    assert {(h[1], h[2] > 0) for h in found if h[0] == "o/i"} == {("cwd", True)}


def test_a_user_of_an_inner_one_whom_nobody_can_name_leaves_the_outer_ones_unknown_too(tmp_path: Path) -> None:
    """The kernel calls the innermost busy (this very process, which is never its own consumer, has it open)."""
    found = holders(tmp_path, "o/i/k", "o/i", "o", prepare="f = os.open('o/i/k', os.O_RDONLY)")
    assert {(h[0], h[1]) for h in found} == {("o/i/k", "unknown"), ("o/i", "unknown"), ("o", "unknown")}


def test_an_inner_mount_that_stays_holds_the_outer_ones(tmp_path: Path) -> None:
    found = holders(tmp_path, "o/i", "o")
    assert [h[:2] for h in found if h[1] == "mount"] == [["o/i", "mount"]]


def test_for_one_with_nothing_inside_the_kernel_answers_alone(tmp_path: Path) -> None:
    assert holders(tmp_path, "o/i", prepare="subprocess.run(['umount', 'o/i/k'], check=True)") == []


def test_where_the_kernel_cannot_be_asked_about_an_inner_one_an_unread_process_counts(tmp_path: Path) -> None:
    """As with a network file system, which is never probed."""
    prepare = "from pact.resources.kinds import mount; mount.expire_says_busy = lambda path: None"
    found = holders(tmp_path, "o/i/k", "o/i", "o", prepare=prepare)
    assert {(h[0], h[1]) for h in found} == {("o/i/k", "unknown"), ("o/i", "unknown"), ("o", "unknown")}


BOUND = """
import atexit
make = "umount o/i/k && mount -t tmpfs other o/i/k && exec {python} -c 'import socket, time; s = socket.socket(1); s.bind(\\"{name}\\"); print(flush=True); time.sleep(99)'"
words = [*{apart}, "sh", "-c", make]
p = subprocess.Popen(words, stdout=subprocess.PIPE)
atexit.register(p.kill)
assert p.stdout.readline() == b"\\n"
"""


def test_the_name_of_a_socket_proves_nothing(tmp_path: Path) -> None:
    """Any account can bind one of any name on a mount of its own; the kernel says on which file system it lies."""
    bound = {"python": sys.executable, "name": f"{tmp_path}/o/i/k/s"}
    apart = ["unshare", "--mount", "--propagation", "private"]
    assert holders(tmp_path, "o/i/k", prepare=BOUND.format(**bound, apart=apart)) == []


def test_a_socket_that_lies_there_is_named(tmp_path: Path) -> None:
    text = f"import socket; s = socket.socket(1); s.bind('{tmp_path}/o/i/k/s')"
    assert holders(tmp_path, "o/i/k", prepare=text) == [["o/i/k", "socket", 0, f"{tmp_path}/o/i/k/s"]]
