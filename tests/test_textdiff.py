"""A diff that patch(1) applies, and that nobody can make take long."""

from __future__ import annotations

import difflib
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.agent import textdiff
from pact.agent.textdiff import unified

pytestmark = pytest.mark.invariant("S7")
TEXT = st.lists(st.sampled_from(["a", "b", "c", "", "longer line", "d\r"]), max_size=40).map("\n".join)
PAIRS = st.tuples(TEXT, TEXT)


def plain(before: str, after: str) -> str:
    """As difflib writes it."""

    def lines(text: str) -> list[str]:
        return [line + "\n" for line in text.split("\n")[:-1]] + (
            [last] if (last := text.rsplit("\n", maxsplit=1)[-1]) else []
        )

    out = difflib.unified_diff(lines(before), lines(after), "declared n", "actual n")
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in out)


def applied(diff: str, before: str, directory: Path) -> str:
    path = directory / "f"
    path.write_bytes(before.encode())
    done = subprocess.run(
        ["patch", "--binary", "-s", "-p0", str(path)], input=diff.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, (diff, done)
    return path.read_bytes().decode() if path.exists() else ""


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
@pytest.mark.parametrize("match_s", [1.0, -1.0])
def test_patch_makes_one_of_the_other(tmp_path: Path, match_s: float) -> None:
    """Also where the comparison was given up."""
    rng = random.Random(7)
    for _ in range(150):
        before, after = ("\n".join(rng.choices(["a", "b", "c", "d", "", "x y"], k=rng.randrange(30))) for _ in range(2))
        diff = unified(before, after, "n", match_s)
        assert (diff == "") == (before == after)
        if diff:
            assert applied(diff, before, tmp_path) == after, (before, after, diff)


@given(PAIRS)
def test_no_more_lines_differ_than_in_difflib_s_own(pair: tuple[str, str]) -> None:
    """It takes off what is equal at the ends, and so finds other equal lines, not fewer than that."""
    before, after = pair
    ours = unified(before, after, "n")
    assert (ours == "") == (before == after) == (plain(before, after) == "")
    assert ours.startswith("--- declared n\n+++ actual n\n@@ -") or not ours


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("", "a\n"),
        ("a\n", ""),
        ("a", "a\n"),
        ("a\n", "a"),
        ("".join(f"{n}\n" for n in range(40)), "".join(f"{n}\n" for n in range(40) if n not in (5, 30))),
        ("".join(f"{n}\n" for n in range(40)), "".join(f"{n}\n" for n in range(40) if n not in (5, 12))),
        ("x\u2028y\n", "x\u2028z\n"),
    ],
)
def test_a_few_changes_are_written_as_everybody_writes_them(before: str, after: str) -> None:
    assert unified(before, after, "n") == plain(before, after)


def hard(lines: int, words: int) -> tuple[str, str]:
    rng = random.Random(3)
    return tuple("".join(f"{rng.randrange(words)}\n" for _ in range(lines)) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        hard(20_000, 120),
        hard(20_000, 400),
        hard(15_000, 5_000),
        ("".join(f"{n}\n" for n in range(9_000)), "".join(f"{n}\n" for n in range(8_999, -1, -1))),
        ("\n" * 60_000, "\n" * 30_000 + "x" + "\n" * 30_000),
    ],
)
def test_what_is_made_to_take_long_is_given_up(before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a search goes through a bounded number of pairs, and none begins after the end."""
    searches = []
    search = difflib.SequenceMatcher.find_longest_match

    def counted(self: difflib.SequenceMatcher[str], *args: int, **kwargs: int) -> difflib.Match:
        searches.append(time.monotonic())
        return search(self, *args, **kwargs)

    monkeypatch.setattr(difflib.SequenceMatcher, "find_longest_match", counted)
    begun = time.monotonic()
    diff = unified(before, after, "n")
    assert diff.startswith("--- declared n\n")
    assert not searches or searches[-1] <= begun + textdiff.TEXT_DIFF_S + 1.0
