"""Sysctls, mounts, overflow, noise: what the kernel's queues do under a real load."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_observe_common import gather, in_namespaces, of_type, quiet, sh, touched

from pact.observe import Observers, open_observers
from pact.observe.base import Lost, Restored, Touched

pytestmark = [pytest.mark.root, pytest.mark.alone]  # the limits of the machine are lowered

SWAPPINESS = b"/proc/sys/vm/swappiness"


@contextmanager
def opened(**how: bool) -> Iterator[Observers]:
    obs = open_observers(**how)  # type: ignore[arg-type]
    try:
        yield obs
    finally:
        obs.close()


@contextmanager
def kernel_limit(path: str, value: int) -> Iterator[None]:
    before = Path(path).read_text()
    Path(path).write_text(str(value))
    try:
        yield
    finally:
        Path(path).write_text(before)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rewrite_swappiness() -> None:
    sh("sysctl -qw vm.swappiness=$(cat /proc/sys/vm/swappiness)")


def test_this_kernel_gives_everything() -> None:
    with opened() as obs:
        assert obs.health() == {"fanotify": "ok", "sysctl": "ok", "mountinfo": "ok", "attribution": "ok"}
        assert obs.names["files"] == obs.names["sysctl"] == "fanotify"


def test_a_sysctl_write_is_seen_with_its_writer() -> None:
    with opened() as obs:
        obs.watch(SWAPPINESS)
        rewrite_swappiness()
        writer = touched(obs, SWAPPINESS)[SWAPPINESS].writer
        assert writer is not None and writer.command.startswith("sysctl -qw vm.swappiness=")
        obs.unwatch(SWAPPINESS)
        rewrite_swappiness()
        assert obs.drain(10) == []


def test_a_sysctl_write_is_seen_by_inotify() -> None:
    with opened(fanotify=False) as obs:
        obs.watch(SWAPPINESS)
        rewrite_swappiness()
        assert touched(obs, SWAPPINESS)[SWAPPINESS].writer is None
        obs.unwatch(SWAPPINESS)
        obs.remark()


def test_other_writes_below_proc_are_dropped() -> None:
    with opened() as obs:
        obs.watch(SWAPPINESS)
        for _ in range(50):
            Path("/proc/self/oom_score_adj").write_text("0")
            Path("/proc/self/comm").write_text("pytest")
        rewrite_swappiness()
        assert set(touched(obs, SWAPPINESS)) == {SWAPPINESS}
        stats = obs.stats()
        assert stats["read"] > stats["kept"] and stats["kept"] <= 3, stats


@pytest.mark.parametrize("pid_namespace", ["", "-p -f --mount-proc"])
def test_inside_namespaces_sysctls_are_seen_and_the_missing_connector_is_noted(pid_namespace: str) -> None:
    out = in_namespaces(
        f"-n -m {pid_namespace}",
        """
        name = b"/proc/sys/net/core/somaxconn"
        obs = open_observers()
        obs.watch(name)
        sh("sysctl -qw net.core.somaxconn=1234")
        writer = touched(obs, name)[name].writer
        assert writer is None or writer.command.startswith("sysctl"), writer
        print(obs.health(), obs.notes)
        """,
    )
    assert "'sysctl': 'ok'" in out and "'attribution': 'ok'" in out
    assert "no proc connector (not in the initial" in out


@pytest.mark.parametrize(("enter", "seen"), [(["unshare", "-n"], False), ([], True)], ids=["another", "ours"])
def test_a_write_in_another_network_namespace_touches_nothing_of_ours(enter: list[str], seen: bool) -> None:
    name = "/proc/sys/net/ipv4/ip_default_ttl"
    with opened() as obs:
        obs.watch(name.encode())
        obs.watch(SWAPPINESS)
        stays = ["sh", "-c", f"read v < {name}; echo $v > {name}; echo; exec cat"]  # until its input is closed
        writer = subprocess.Popen([*enter, *stays], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with writer, ended(writer):
            assert writer.stdout is not None and writer.stdout.readline() == b"\n"  # it has written
            rewrite_swappiness()
            assert (name.encode() in touched(obs, SWAPPINESS)) is seen


def test_writes_through_another_instance_of_proc_are_seen(tmp_path: Path) -> None:
    out = in_namespaces(
        "-m --propagation private",
        f"""
        from pathlib import Path
        name = b"/proc/sys/vm/swappiness"
        obs = open_observers()
        obs.watch(name)
        sh("mount -t proc proc {tmp_path}")
        other = Path("{tmp_path}/sys/vm/swappiness")
        of_type(obs, __import__("pact.observe.base").observe.base.MountsChanged)
        sh(f"cat /proc/sys/vm/swappiness > {{other}}")
        print(touched(obs, name)[name].own)
        """,
    )
    assert out == "False\n"


def test_own_writes_are_known_and_never_hide_a_foreign_one(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "f")
    with opened() as obs:
        obs.watch(path)
        Path(os.fsdecode(path)).write_text("own")
        seen = touched(obs, path)[path]
        assert seen.own and seen.writer is None
        quiet(obs)
        sh(f"echo foreign > {os.fsdecode(path)}")
        Path(os.fsdecode(path)).write_text("own")
        time.sleep(0.05)
        seen = touched(obs, path)[path]
        assert not seen.own and seen.writer is not None and "echo foreign" in seen.writer.command


def test_mounting_is_seen_with_the_mounter_where_the_kernel_names_it(tmp_path: Path) -> None:
    out = in_namespaces(
        "-m --propagation private",
        f"""
        from pact.observe.base import MountsChanged
        obs = open_observers()
        sh("mount -t tmpfs none {tmp_path}")
        e = [e for e in of_type(obs, MountsChanged) if isinstance(e, MountsChanged)][0]
        print(obs.names["mounts"], e.writer and e.writer.command)
        """,
    )
    assert out in (
        f"mountinfo+fanotify mount -t tmpfs none {tmp_path}\n",
        "mountinfo+fanotify mount\n",  # it was a zombie already: that has a name, and no command line any more
        "mountinfo None\n",
    )


@pytest.mark.invariant("F10")
@pytest.mark.parametrize("mechanism", ["fanotify", "inotify"])
def test_an_overflow_is_told_and_what_comes_after_is_seen(tmp_path: Path, mechanism: str) -> None:
    top = os.fsencode(tmp_path)
    with (
        kernel_limit(f"/proc/sys/fs/{mechanism}/max_queued_events", 16),
        opened(fanotify=mechanism == "fanotify") as obs,
    ):
        paths = [top + b"/d/" + b"n" * 100 + b"%d" % i for i in range(4000)]
        obs.watch_many(paths)
        os.mkdir(top + b"/d")
        touched(obs, *paths[:10])
        # nobody drains: the buffer fills, the reader waits, the kernel's queue overflows
        for path in paths:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        events = of_type(obs, Lost)
        assert next(e for e in events if isinstance(e, Lost)) == Lost(mechanism, "event queue overflow")
        assert obs.health()[mechanism] == "event queue overflow"
        quiet(obs)
        obs.recovered(mechanism)
        assert Restored(mechanism) in of_type(obs, Restored)
        assert obs.health()[mechanism] == "ok"
        os.unlink(paths[7])
        assert paths[7] in touched(obs, paths[7])


def test_a_directory_replaced_during_an_overflow_is_watched_afterwards(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    with kernel_limit("/proc/sys/fs/fanotify/max_queued_events", 16), opened() as obs:
        paths = [top + b"/d/" + b"n" * 100 + b"%d" % i for i in range(3000)]
        os.mkdir(top + b"/d")
        obs.watch_many([*paths, top + b"/e/f"])
        for path in paths:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.mkdir(top + b"/e")
        of_type(obs, Lost)
        quiet(obs)
        os.close(os.open(top + b"/e/f", os.O_CREAT | os.O_WRONLY))
        assert top + b"/e/f" in touched(obs, top + b"/e/f")


NOISE = """
import os, sys
fds = [os.open(f"{sys.argv[1]}/noise{i}", os.O_CREAT | os.O_WRONLY) for i in range(2000)]
for _ in range(50):
    for fd in fds:
        os.pwrite(fd, b"x", 0)
"""


@pytest.mark.parametrize("mechanism", ["fanotify", "inotify"])
def test_a_lasting_change_is_seen_in_a_hundred_thousand_other_events(tmp_path: Path, mechanism: str) -> None:
    path = os.fsencode(tmp_path / "declared")
    with opened(fanotify=mechanism == "fanotify") as obs:
        obs.watch(path)
        noise = subprocess.Popen([sys.executable, "-c", NOISE, str(tmp_path)])
        time.sleep(0.3)
        Path(os.fsdecode(path)).write_text("lasting")
        assert noise.wait(30) == 0
        gather(obs, lambda es: any(isinstance(e, Lost) or (isinstance(e, Touched) and e.path == path) for e in es))
        assert obs.stats()["kept"] < 100


def test_an_idle_observer_wakes_nobody(tmp_path: Path) -> None:
    with opened() as obs:
        obs.watch(os.fsencode(tmp_path / "f"))
        quiet(obs)
        threads = {t.name for t in Path("/proc/self/task").iterdir()} - {str(threading.get_native_id())}

        def switches() -> int:
            return sum(
                int(line.split()[1])
                for t in threads
                for line in Path(f"/proc/self/task/{t}/status").read_text().splitlines()
                if line.startswith("voluntary")
            )

        before = switches()
        time.sleep(0.5)
        # exec events of other processes on this machine may wake the thread; a timer would show as many more
        assert switches() - before <= obs.stats()["exec"] + 20


def test_closing_ends_the_thread_at_once_also_when_nobody_drained(tmp_path: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    for full in (False, True):
        obs = open_observers()
        paths = [os.fsencode(tmp_path / f"{full}{i}{'n' * 100}") for i in range(2000 if full else 1)]
        obs.watch_many(paths)
        for path in paths:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        start = time.monotonic()
        obs.close()
        obs.close()
        assert time.monotonic() - start < 0.5
    assert len(os.listdir("/proc/self/fd")) == fds


def test_descriptors_running_out_is_told_not_passed_over(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "x=$(cat /proc/sys/vm/swappiness); read y; while sleep 0.05; do echo $x > /proc/sys/vm/swappiness; done"
    writer = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    with opened() as obs, ended(writer):
        obs.watch(SWAPPINESS)
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
        try:
            writer.communicate(b"\n", timeout=0.2)
        except subprocess.TimeoutExpired:
            pass
        try:
            for _ in range(200):
                try:
                    while True:
                        held.append(os.dup(0))
                except OSError:
                    pass
                if any(isinstance(e, Lost) for e in obs.drain(100)):
                    break
                time.sleep(0.02)
            else:
                pytest.fail("nothing was told")
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert obs.health()["sysctl"] == "Too many open files"
        time.sleep(0.1)
        quiet_after = obs.drain(1000)
        assert not any(isinstance(e, Restored) for e in quiet_after)
        obs.recovered("sysctl")
        assert obs.health()["sysctl"] == "ok"
        gather(obs, lambda es: Restored("sysctl") in es and any(isinstance(e, Touched) for e in es))
