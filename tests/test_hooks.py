"""Hooks: real executables that read, fail, hang and fork, and files that must not be run."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pact.agent.hooks import QUEUE_MAX, RUNNING_MAX, Hooks

SECOND = 1_000_000_000


class Bench:
    """A hooks directory, and a loop that waits as the agent does."""

    def __init__(self, top: Path) -> None:
        self.directory = top / "hooks.d"
        self.directory.mkdir(mode=0o755)
        self.out = top / "out"
        self.said: list[str] = []
        self.hooks = Hooks(str(self.directory), SECOND // 5, self.said.append)

    def script(self, name: str, body: str, mode: int = 0o755) -> Path:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return path

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Until every hook has ended, or ``until``."""
        end = time.monotonic() + 10
        self.hooks.start_due(time.monotonic_ns())
        while self.hooks.running and not until():
            assert time.monotonic() < end
            for fd in select.select(list(self.hooks.running), [], [], 0.02)[0]:
                self.hooks.reap(fd)
            self.hooks.kill_overdue(time.monotonic_ns())
            self.hooks.start_due(time.monotonic_ns())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.hooks.close()
    assert made.hooks.running == {}


def test_every_hook_gets_every_event_on_its_input(bench: Bench) -> None:
    bench.script("10-a", f"read x; echo a $x >> {bench.out}")
    bench.script("20-b", f"read x; echo b $x >> {bench.out}")
    bench.hooks.events([b'{"n":1}', b'{"n":2}'])
    bench.run()
    assert sorted(bench.out.read_text().splitlines()) == ['a {"n":1}', 'a {"n":2}', 'b {"n":1}', 'b {"n":2}']
    assert bench.said == []


def test_a_hook_gets_a_clean_environment_and_no_descriptors(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    bench.script("h", f'{{ echo "${{SECRET:-none}}"; pwd; ls /proc/$$/fd | wc -l; }} > {bench.out}')
    bench.hooks.events([b"{}"])
    bench.run()
    secret, here, count = bench.out.read_text().split()
    assert (secret, here) == ("none", "/")
    assert int(count) <= 6


@pytest.mark.parametrize("mode", [0o757, 0o775, 0o777])
def test_a_hook_that_others_could_have_written_is_not_run_and_that_is_said(mode: int, bench: Bench) -> None:
    path = bench.script("h", f"echo ran > {bench.out}", mode)
    bench.hooks.events([b"{}"])
    bench.run()
    assert not bench.out.exists()
    assert any(str(path) in line and "others could have written it" in line for line in bench.said)


def test_a_directory_that_others_may_write_runs_nothing(bench: Bench) -> None:
    bench.script("h", f"echo ran > {bench.out}")
    bench.directory.chmod(0o777)
    bench.hooks.events([b"{}"])
    bench.run()
    assert not bench.out.exists()
    assert any("others could have written it" in line for line in bench.said)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_hook_of_another_user_is_not_run(bench: Bench) -> None:
    os.chown(bench.script("h", f"echo ran > {bench.out}"), 12345, 0)
    bench.hooks.events([b"{}"])
    bench.run()
    assert not bench.out.exists()


def test_what_is_not_executable_hidden_or_no_file_is_no_hook(bench: Bench) -> None:
    bench.script("plain", "x", 0o644)
    bench.script(".hidden", "x")
    (bench.directory / "dir").mkdir(mode=0o755)
    (bench.directory / "dangling").symlink_to("nowhere")
    good = bench.script("good", "x")
    assert bench.hooks.paths() == [str(good)]


@pytest.mark.invariant("F23")
def test_a_hook_that_hangs_is_killed_with_everything_it_started(bench: Bench) -> None:
    bench.script("h", f"sleep 1000 & echo $! > {bench.out}; wait")
    bench.hooks.events([b"{}"])
    before = time.monotonic()
    bench.run()
    assert time.monotonic() - before < 5
    child = int(bench.out.read_text())
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{child}") and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < end, "its child lives on"
        time.sleep(0.01)
    assert any("was killed after 0.2 s" in line for line in bench.said)


def test_a_hook_that_fails_is_said(bench: Bench) -> None:
    path = bench.script("h", "exit 3")
    (bench.directory / "i").write_bytes(b"\x7fELF nonsense")
    (bench.directory / "i").chmod(0o755)
    bench.hooks.events([b"{}"])
    bench.run()
    assert f"hook {path} ended with 3" in bench.said
    assert any("hook" in line and "/i" in line for line in bench.said)


@pytest.mark.invariant("F23")
def test_few_run_at_once_and_the_queue_is_bounded(bench: Bench) -> None:
    bench.script("h", "sleep 0.05")
    bench.hooks.events([b"{}"] * (QUEUE_MAX + 50))
    assert bench.hooks.dropped == 50
    bench.hooks.start_due(0)
    assert len(bench.hooks.running) == RUNNING_MAX
    assert bench.hooks.next_end_ns() == SECOND // 5


def test_an_event_larger_than_a_pipe_does_not_block_the_agent(bench: Bench) -> None:
    bench.script("h", f"wc -c > {bench.out}")
    before = time.monotonic()
    bench.hooks.events([b"x" * 2_000_000])
    bench.hooks.start_due(time.monotonic_ns())
    assert time.monotonic() - before < 2
    bench.run()
    assert int(bench.out.read_text()) == 2_000_001


def test_without_a_directory_there_are_no_hooks(tmp_path: Path) -> None:
    hooks = Hooks(str(tmp_path / "absent"), SECOND, lambda _: None)
    hooks.events([b"{}"])
    assert hooks.start_due(0) == []
