"""Commands on many nodes, as a person asks for them here: words, environment, input and terminal of that process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streams_kit import Fleet, fleet, within

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("s")) as kit:
        yield kit


@pytest.mark.parametrize("words", [("exec", "--nodes", "n1"), ("shell", "n1")])
def test_a_command_that_is_none_and_one_that_is_no_text_are_refused(kit: Fleet, words: tuple[str, ...]) -> None:
    """A variable that is not set must not pass for a command that succeeded."""
    for command, why in (("", "the command is empty"), (" \n", "the command is empty"), ("printf \udcff", "no UTF-8")):
        with kit.pact(*words, "--", command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            _, err = process.communicate(timeout=30)
        assert process.returncode == 2 and why in err.decode() and "Traceback" not in err.decode(), err


def test_an_environment_that_is_no_text_stays_here(kit: Fleet) -> None:
    env = {**kit.environment("root", "agg1"), "LC_TIME": "\udcff", "LC_NAME": "a\nb", "LC_PAPER": "C"}
    words = [sys.executable, "-m", "pact.cli.main", "exec", "--nodes", "n1", "--", "env | grep ^LC_"]
    said = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert said.returncode == 0 and said.stdout.splitlines()[3:] == [b"LC_PAPER=C"], said


def test_input_that_cannot_be_read_runs_nothing(kit: Fleet, tmp_path: Path) -> None:
    with open("/proc/self/mem", "rb") as unreadable:  # EIO, as from a failing disk
        process = kit.pact("exec", "--nodes", "n1", "--", f"tee {tmp_path}/f", stdin=unreadable, stderr=subprocess.PIPE)
        with process:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and b"standard input: Input/output error" in err, err
    assert not (tmp_path / "f").exists()


def test_a_command_under_nohup_goes_on_when_the_terminal_has_gone(kit: Fleet, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pact.cli.main", "exec", "--nodes", "n1", "--"]
    command = f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo done"
    process = subprocess.Popen(
        ["nohup", *words, command],
        env=kit.environment("root", "agg1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        within((tmp_path / "begun").exists, "it runs", 30)
        process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and b"done" in out, err
