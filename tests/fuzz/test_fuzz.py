"""A minute of fuzzing, of all targets together: ``make fuzz`` runs it for as long as one likes.

Leave it out with ``-m "not fuzz"``. A finding prints the command that runs its input again.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import build, one, targets

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install '.[fuzz]'"
)
RUN = Path(__file__).with_name("run.py")
SECONDS = 60


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.fuzz
@pytest.mark.timeout(600)
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    done = fuzz("--seconds", str(SECONDS), "--corpus", str(tmp_path / "corpus"), "--found", str(tmp_path / "found"))
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-3000:]
    assert "0 findings" in done.stdout.splitlines()[-1]


@pytest.mark.timeout(300)
def test_what_is_found_is_saved_with_the_command_that_finds_it_again(tmp_path: Path) -> None:
    done = fuzz(
        "--seconds",
        "100",
        "--target",
        "canary",
        "--corpus",
        str(tmp_path / "corpus"),
        "--found",
        str(tmp_path / "found"),
    )
    assert done.returncode == 1 and "FINDING canary" in done.stdout, done.stdout + done.stderr
    (saved,) = (tmp_path / "found" / "canary").iterdir()
    assert saved.read_bytes().startswith(b"!") and saved.read_bytes()[1:].strip() == b"7"
    again = re.findall(r"run it again: PYTHONPATH=\. (.*)", done.stdout)[0]
    assert str(saved) in again
    once_more = subprocess.run(
        shlex.split(again),
        cwd=RUN.parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert once_more.returncode != 0 and "the fault that is there on purpose" in once_more.stderr


def natively(code: str) -> subprocess.CompletedProcess[str]:
    try:
        env = one.sanitized()
    except build.Missing as exc:
        pytest.skip(str(exc))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=env[one.NATIVE],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.timeout(240)
def test_the_sanitizers_see_a_byte_that_is_read_behind_a_buffer() -> None:
    done = natively("from pact._fast import reader; reader.fuzz_beyond(b'abc')")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "fuzz_beyond" in done.stderr, done.stderr
    fine = natively("from pact._fast import reader; assert reader.fuzz_cgroup(b'0::/a\\n') == b'/a'")
    assert fine.returncode == 0, fine.stderr


def test_every_target_is_listed() -> None:
    assert [line.split()[0] for line in fuzz("--list").stdout.splitlines()] == list(targets.ALL)
