"""What runs the suite: a test that fails twice fails it, one that fails once is named, nothing else passes for success."""

from __future__ import annotations

from pathlib import Path

import pytest
import suite

ONCE = """
from pathlib import Path
def test_{n}():
    mark = Path(__file__).with_suffix(".{n}")
    been = mark.exists()
    mark.touch()
    assert been
"""
CONFTEST = """
import os
def pytest_sessionfinish(session):
    if os.environ.get("STRICT") and len(session.items) > 1:
        session.exitstatus = int(os.environ["STRICT"])
"""


def tried(tmp_path: Path, text: str, *more: str) -> int:
    test = tmp_path / "test_it.py"
    test.write_text(text)
    common = ("-q", "-c", "/dev/null", f"--rootdir={tmp_path}")
    return suite.tried([(*common, str(test), *more), (*common, str(test), "-k", "last")], tmp_path / "kept")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of tests are told from where pytest has been started."""
    monkeypatch.chdir(tmp_path)


def test_what_passes_passes(tmp_path: Path) -> None:
    assert tried(tmp_path, "def test_1(): pass\ndef test_last(): pass\n") == 0


def test_who_fails_once_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = ONCE.format(n=1) + ONCE.format(n=2) + "def test_last(): pass\n"
    assert tried(tmp_path, text, "-k", "not last", "--numprocesses=2") == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert "passed at the second try" in last and "test_it.py::test_1 test_it.py::test_2" in last
    assert tried(tmp_path, text) == 0, "what failed long ago is not asked"
    assert "second try" not in capfd.readouterr().out


def test_who_fails_twice_fails(tmp_path: Path) -> None:
    assert tried(tmp_path, "def test_1(): assert False\ndef test_last(): pass\n") == suite.FAILED


def test_the_second_part_has_a_second_try_too(tmp_path: Path) -> None:
    once = "def test_1(): pass\n" + ONCE.format(n="last")
    assert tried(tmp_path, once, "-k", "not last") == 0


def test_who_fails_and_is_left_out_then_has_not_passed(tmp_path: Path) -> None:
    text = ONCE.format(n=1).replace("    assert been", "    if been: pytest.skip('gone')\n    assert False")
    text = "import pytest\n" + text + "def test_last(): pass\n"
    assert tried(tmp_path, text, "-k", "not last") == suite.FAILED


def test_too_many_are_no_accident(tmp_path: Path) -> None:
    text = "".join(ONCE.format(n=n) for n in range(suite.SECOND_TRIES + 1)) + "def test_last(): pass\n"
    assert tried(tmp_path, text) == suite.FAILED


def test_a_run_that_fails_without_a_failing_test_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    text = "def test_1(): pass\ndef test_last(): pass\n"
    assert tried(tmp_path, text) == 0
    monkeypatch.setenv("STRICT", str(suite.FAILED))
    assert tried(tmp_path, text) == suite.FAILED


def test_what_must_not_be_skipped_fails_it_beside_a_test_that_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    monkeypatch.setenv("STRICT", str(suite.SKIPPED))
    assert tried(tmp_path, ONCE.format(n=7) + "def test_last(): pass\n") == suite.SKIPPED


@pytest.mark.parametrize("text", ["import nothing_of_that_name\n", "def test_1(:\n"])
def test_what_is_not_read_fails(tmp_path: Path, text: str) -> None:
    assert tried(tmp_path, text) != 0
