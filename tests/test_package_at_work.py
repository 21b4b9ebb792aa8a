"""A package manager at work: what is not read, who is named, and how its tools are run and ended."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_kind_package import root, stanza, status

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Unreadable
from pact.resources.kinds.package import Package
from pact.resources.support import apart, package_tool
from pact.resources.support.locks import holding
from pact.resources.support.package_dpkg import Dpkg
from pact.resources.support.package_files import is_running_kernel
from pact.resources.support.package_reading import Judged, Reading
from pact.resources.support.package_source import IDLE_MAX, LONG_NS, NS_PER_S, PAUSE_NS, PackageSource

__all__ = ["root"]  # the fixture

#: Locks a file as dpkg does, says so, and holds it until its input ends.
HOLD = "import fcntl, sys\nf = open(sys.argv[1], 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout):
            assert stream is not None
            stream.close()


def until(source: PackageSource, what: str) -> set[str]:
    """What the source tells next."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        drained = source.drain()
        if drained.news:
            return {name for name, _ in drained.changed} if not drained.lost else {drained.lost}
        time.sleep(0.01)
    raise AssertionError(what)


# -- a package manager at work ----------------------------------------------------------------------------------------------


@pytest.mark.invariant("F74")
def test_while_the_lock_is_held_the_state_before_counts(root: Path) -> None:
    kind = Package(str(root))
    assert kind.observe("tool") == {"version": "2:1.0-1"}
    with held(root / "var/lib/dpkg/lock") as holder:
        status(root).write_text(stanza("tool", "3-1", status="install ok unpacked"))
        assert kind.observe("tool") == {"version": "2:1.0-1"}
        late = Package(str(root)).observe("tool")  # it was not read before
        assert isinstance(late, Unreadable) and f"pid {holder.pid}" in late.why
        saved = kind.preflight("tool", Step("package:tool", {"version": "1-1"}, None), None)  # type: ignore[arg-type]
        assert "a package manager holds" in saved.refusal and f"pid {holder.pid}" in saved.refusal
    assert kind.observe("tool") == {"version": "3-1", "status": "unpacked"}


@pytest.mark.invariant("F74")
def test_the_source_tells_the_names_that_differ_when_the_lock_is_free(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = kind.source()
    assert isinstance(source, PackageSource)
    for name in ("tool", "other"):
        source.want(name)
    try:
        with held(root / "var/lib/dpkg/lock-frontend") as holder:
            status(root).write_text(stanza("dpkg") + stanza("tool", "3-1") + stanza("fresh"))
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                drained = source.drain()
                assert not drained.changed and not drained.news and not drained.lost
                time.sleep(0.05)
            assert not kind.off_loop, "and the loop reads nothing meanwhile"
            assert source.health() == "ok"
            source._since_ns -= LONG_NS  # an hour later
            assert f"pid {holder.pid}" in source.health() and "is seen when it ends" in source.health()
        assert until(source, "the package that differs") == {"tool"}
        assert source.health() == "ok" and kind.observe("fresh") == {"version": "1-1"}
    finally:
        source.close()


def test_the_source_names_who_held_the_lock(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = PackageSource(kind.database, own=-1)
    source.want("tool")
    try:
        with held(root / "var/lib/dpkg/lock-frontend") as holder:
            source.drain()
            status(root).write_text(stanza("tool", "3-1"))
            source.drain()
        end, changed = time.monotonic() + 15, list[object]()
        while not changed and time.monotonic() < end:
            changed = [by for _, by in source.drain().changed]
            time.sleep(0.01)
        assert [getattr(by, "pid", by) for by in changed] == [holder.pid]
        # What comes without a lock afterwards is not taken for his.
        status(root).write_text(stanza("tool", "4-1"))
        end, changed = time.monotonic() + 15, []
        while not changed and time.monotonic() < end:
            changed = [by for _, by in source.drain().changed]
            time.sleep(0.01)
        assert changed == [0]
    finally:
        source.close()


def test_what_the_agent_itself_has_started_is_no_writer(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = kind.source()
    assert isinstance(source, PackageSource)
    source.want("tool")
    try:
        with held(root / "var/lib/dpkg/lock-frontend"):
            source.drain()
            status(root).write_text(stanza("tool", "3-1"))
            source.drain()
        end, changed = time.monotonic() + 15, list[object]()
        while not changed and time.monotonic() < end:
            changed = [by for _, by in source.drain().changed]
            time.sleep(0.01)
        assert changed == [0]
    finally:
        source.close()


def test_a_lock_that_comes_and_goes_without_a_change_tells_nothing(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = kind.source()
    assert isinstance(source, PackageSource)
    source.want("tool")
    try:
        with held(root / "var/lib/dpkg/lock"):
            source.drain()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert not source.drain().news
            time.sleep(0.02)
        assert not kind.off_loop
    finally:
        source.close()


def test_a_database_that_becomes_unreadable_or_comes_back_is_told_as_a_whole(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = kind.source()
    assert isinstance(source, PackageSource)
    source.want("tool")
    try:
        status(root).write_text("broken")
        assert "could not be compared" in until(source, "it broke").pop()
        assert isinstance(kind.observe("tool"), Unreadable)
        (root / "fresh").write_text(stanza("tool"))
        (root / "fresh").rename(status(root))
        assert "could not be compared" in until(source, "it is back").pop()
        assert kind.observe("tool") == {"version": "1-1"}
    finally:
        source.close()


def test_a_lock_that_anybody_may_have_is_no_package_managers(root: Path) -> None:
    """Whoever may read rpm's lock file can lock it for reading, or with flock(2)."""
    lock = root / "var/lib/dpkg/lock"
    with open(lock, "rb") as f, open(lock, "rb") as g:
        fcntl.lockf(f, fcntl.LOCK_SH)
        fcntl.flock(g, fcntl.LOCK_EX)
        assert holding([str(lock)]) == []
    with held(lock) as holder:
        assert holding([str(lock)]) == [(str(lock), str(holder.pid))]
    assert holding([str(lock)]) == []


def test_who_opens_a_lock_file_all_the_time_costs_the_agent_little(root: Path) -> None:
    kind = Package(str(root))
    kind.observe("tool")
    source = PackageSource(kind.database)
    source.want("tool")
    drains = 0
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with open(root / "var/lib/dpkg/lock", "rb"):
                pass
            if select.select([source.fileno()], [], [], 0)[0]:
                drains += 1
                source.drain()
        assert 0 < drains < 4 * IDLE_MAX
        status(root).write_text(stanza("tool", "3-1"))
        time.sleep(PAUSE_NS / NS_PER_S)
        assert source.health() == "ok"
        assert until(source, "what has changed meanwhile") == {"tool"}
    finally:
        source.close()


# -- tools ----------------------------------------------------------------------------------------------------------------


def test_what_a_transaction_prints_without_end_is_dropped() -> None:
    ended = package_tool.run(
        "sh", ["sh", "-c", "head -c 50000000 /dev/zero; echo over >&2; exit 3"], 60, transaction=True
    )
    assert (ended.code, ended.late, ended.err) == (3, False, "over\n")


def test_a_question_that_is_never_answered_or_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.monotonic()
    assert package_tool.run("sleep", ["sleep", "600"], 0.3).late
    monkeypatch.setattr(package_tool, "OUT_MAX", 1 << 20)
    assert package_tool.run("sh", ["sh", "-c", "head -c 9000000 /dev/zero; sleep 600"], 60).late
    assert time.monotonic() - before < 30
    with pytest.raises(RestoreError, match="nowhere"):
        package_tool.run("nowhere", ["/proc/nowhere/x"], 1)


def test_the_reason_of_a_failure_is_one_line_without_control_characters() -> None:
    text = "reading\ndpkg: error processing package a (--configure):\n script\x1b returned 3\nE: Sub-process\n"
    assert (
        package_tool.Ended(1, "", text).why("apt")
        == "dpkg: error processing package a (--configure): script? returned 3"
    )
    assert package_tool.Ended(7, "", "").why("apt") == "apt ended with 7"
    assert len(package_tool.Ended(7, "", "x" * 9000).why("apt")) <= package_tool.LINE_MAX


@pytest.mark.invariant("S2")
def test_the_reason_of_a_failure_names_no_password_of_a_repository() -> None:
    """It stands in records, which leave the node; the file that names the repository may be root's alone."""
    text = "Cannot download https://ann:hunt%402@site.example:8/x/repodata.xml?token=abc&v=1 (user@host is fine)"
    why = package_tool.Ended(1, "", text).why("dnf")
    assert (
        why == "Cannot download https://(hidden)@site.example:8/x/repodata.xml?token=(hidden)&v=1 (user@host is fine)"
    )


def test_what_a_plan_would_move_beside_itself_is_listed() -> None:
    assert Judged.beyond([], []) == ""
    assert Judged.beyond(["b"], ["c", "a"]) == "it would also install or replace b and remove a, c: a person decides"
    assert "and 2 more" in Judged.beyond([f"p{n}" for n in range(10)], [])


def test_the_running_kernel_is_known_by_its_files() -> None:
    assert is_running_kernel([b"/boot/config-6.1", b"/boot/vmlinuz-6.1"], "6.1")
    assert is_running_kernel([b"/usr/lib/modules/6.1"], "6.1")
    assert not is_running_kernel([b"/boot/vmlinuz-6.10", b"/lib/modules/6.10"], "6.1")


def test_dpkgs_lists_name_the_files_of_a_package(root: Path) -> None:
    (root / "var/lib/dpkg/info/tool.list").write_text("/.\n/usr\n/usr/bin\n/usr/bin/tool\n/usr/share/doc/tool/x\n")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("x")
    (root / "usr/bin/tool").chmod(0o755)
    kind = Package(str(root))
    reading = kind.database.now()
    assert isinstance(reading, Reading)
    assert Dpkg(str(root)).files("tool", "amd64")[-2:] == [b"/usr/bin/tool", b"/usr/share/doc/tool/x"]
    assert kind.files.used("tool", reading) == [os.fsencode(root / "usr/bin/tool")]
    assert kind.files.used("nothing", reading) == []


def test_where_systemd_runs_the_machine_a_transaction_is_a_service_of_its_own() -> None:
    words = ["apt-get", "install", "x", "-o", "a=$HOME"]
    command = apart.command("pact-packages-1.service", words, {"APT_CONFIG": "/x"}, "packages")
    assert command[0] == "systemd-run" and command[-6:] == ["--", "apt-get", "install", "x", "-o", "a=$$HOME"]
    assert "--unit=pact-packages-1.service" in command and "--wait" in command
    assert "--setenv=APT_CONFIG=/x" in command
