"""Which run of a package manager a process belongs to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pact.observe.managers import Manager, Process, manager_of, process


def test_the_topmost_package_manager_above_a_process_is_its_run() -> None:
    table = {
        2: Process("bash", 1, 20, 0),
        3: Process("unattended-upgr", 2, 30, 0),
        4: Process("apt-get", 3, 40, 0),
        5: Process("dpkg", 4, 50, 0),
        6: Process("tool.postinst", 5, 60, 0),
        7: Process("systemctl", 6, 70, 0),
        8: Process("vi", 2, 80, 0),
        9: Process("dpkg", 2, 90, 1000),
    }
    for pid in (3, 4, 5, 6, 7):
        found = manager_of(pid, table.get)
        assert found is not None and (found.pid, found.start) == (3, 30)
    assert manager_of(2, table.get) is None and manager_of(8, table.get) is None
    assert manager_of(9, table.get) is None, "nobody but root installs packages"
    assert manager_of(99, table.get) is None, "it is gone"


def test_ancestors_that_go_in_a_circle_or_have_ended_end_the_search() -> None:
    circle = {5: Process("sh", 6, 1, 0), 6: Process("sh", 5, 1, 0)}
    assert manager_of(5, circle.get) is None
    assert manager_of(7, {7: Process("sh", 8, 1, 0)}.get) is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_process_below_one_that_is_called_so_is_found(tmp_path: Path) -> None:
    shell = shutil.which("dash") or "/bin/sh"
    program = tmp_path / "apt-get"
    shutil.copy(os.path.realpath(shell), program)
    run = subprocess.Popen(
        [program, "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        own = process(run.pid)
        assert own is not None
        assert manager_of(child) == Manager(run.pid, own.start, "apt-get")
        os.kill(child, 9)
    finally:
        run.kill()
        run.wait()
        assert run.stdout is not None
        run.stdout.close()
    assert manager_of(os.getpid()) is None
