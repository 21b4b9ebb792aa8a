"""Every input that fuzzing has kept, and every one that once found something, passes. ``make fuzz`` looks for more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import build, kit, targets

ONE = Path(__file__).with_name("fuzz") / "one.py"
MODULES = sorted(set(targets.PYTHON.values()))


def passes(*names: str) -> None:
    """In a process of their own: the targets put themselves in the place of parts of pact."""
    done = subprocess.run(
        [sys.executable, str(ONE), "--kept", *names],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(names)


@pytest.mark.parametrize("module", MODULES)
def test_kept_inputs_pass(module: str) -> None:
    passes(*(name for name, where in targets.PYTHON.items() if where == module))


@pytest.mark.timeout(240)
def test_kept_inputs_pass_in_c_under_sanitizers() -> None:
    try:
        build.build()
    except build.Missing as exc:
        pytest.skip(str(exc))
    passes(*targets.NATIVE)


def test_every_target_has_inputs_to_begin_with_and_none_is_left_over() -> None:
    files = [*kit.CORPUS.glob("*"), *kit.FOUND.glob("*")]
    assert {p.stem for p in files} <= set(targets.ALL)
    assert {p.stem for p in kit.CORPUS.glob("*")} == set(targets.ALL)
    assert sum(p.stat().st_size for p in files) < 500 << 10
    for path in files:
        inputs = list(kit.kept(path))
        assert inputs and all(type(data) is bytes for data in inputs), path


def test_corpora_are_text_that_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x" / "some.txt"
    inputs = [b"", b"# no comment", b"two\nlines\r\0\xff'\"", b"'"]
    kit.keep(path, inputs, "what it is")
    assert sorted(kit.kept(path)) == sorted(inputs)
    feed = kit.Feed(kit.piece(b"abc") + kit.piece(b"") + b"\1")
    assert (feed.piece(), feed.piece(), feed.pick("xyz"), feed.piece(), bool(feed)) == (b"abc", b"", "y", b"", False)


def test_an_input_that_takes_long_is_a_finding() -> None:
    def endless(data: bytes) -> None:
        sum(range(10_000_000))

    with pytest.raises(kit.TooSlow):
        kit.Target("x", endless, list, slow_s=0.01)(b"")
