"""The specifications are tied to the code and the tests: ids, links, record types, and the verifier for strangers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pact.core.records import GENESIS, TYPES, seal
from pact.journal.moving import export
from pact.journal.sqlite import SqliteJournal

ROOT = Path(__file__).parent.parent
SPECS = ROOT / "specs"
IDS = re.findall(r"^\| ([A-Z]\d+) \|", (SPECS / "invariants.md").read_text(), re.MULTILINE)
FAILURES = re.findall(r"^\| (F\d+) \|", (SPECS / "failure-modes.md").read_text(), re.MULTILINE)
CODE = [p for pattern in ("*.py", "*.pyx", "*.pxd") for p in (ROOT / "pact").rglob(pattern)]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def is_marker(called: ast.expr) -> bool:
    """Whether it is ``pytest.mark.invariant``."""
    return (
        isinstance(called, ast.Attribute)
        and called.attr == "invariant"
        and isinstance(called.value, ast.Attribute)
        and called.value.attr == "mark"
    )


@cache
def carried() -> dict[str, set[str]]:
    """Invariant id -> the test files whose markers name it."""
    out: dict[str, set[str]] = {}
    for path in TESTS:
        text = path.read_text()
        if "mark.invariant" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and is_marker(node.func):
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{path}: ids are written out"
                    out.setdefault(argument.value, set()).add(path.name)
    return out


def cited() -> set[str]:
    """Ids that code cites after a ``#``."""
    notes = [n for p in CODE for n in re.findall(r"#([^\n]*)", p.read_text())]
    return {i for note in notes for i in re.findall(r"\b[A-Z]\d+\b", note)}


def test_ids_stand_once_each() -> None:
    assert len(IDS) == len(set(IDS)) > 30
    assert {"A3", "A4", "F5"} <= set(IDS)
    assert [f"F{n}" for n in range(1, len(FAILURES) + 1)] == FAILURES


def test_every_invariant_is_carried_by_a_test() -> None:
    assert sorted(set(IDS) - set(carried())) == []


def test_every_failure_mode_is_shown_by_a_test() -> None:
    assert sorted(set(FAILURES) - set(carried())) == []


def test_no_test_carries_an_id_that_is_not_specified() -> None:
    known = {*IDS, *FAILURES}
    assert {i: where for i, where in carried().items() if i not in known} == {}


def test_every_invariant_is_cited_where_the_code_enforces_it() -> None:
    assert sorted(set(IDS) - cited()) == []


def test_every_module_says_why_it_exists() -> None:
    bare = [p for p in (ROOT / "pact").rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text()))]
    assert bare == []


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("*.md")) + sorted(SPECS.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")),
    ids=lambda p: p.name,
)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = [
        link
        for link in links
        if "://" not in link
        and not link.startswith(("mailto:", "#"))
        and not (path.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []
    named = re.findall(r"`((?:specs|tests|docs|bench|pact)/[\w./-]+\.\w+)`", text)
    assert [n for n in named if not (ROOT / n).exists()] == []


def test_the_tests_that_stop_a_way_in_exist_and_each_way_says_whether_it_is_stopped() -> None:
    rows = re.findall(r"^\| (?!way in|---)(.*) \|$", (SPECS / "threats.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        _, _, stops, shown = row.split(" | ") if not row.endswith(" |") else (*row[:-2].split(" | "), "")
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
        assert named or "*not stopped" in stops or "*partly*" in stops, row
        assert [t for f, t in named if f"def {t}(" not in (ROOT / f).read_text()] == [], row


def described_types() -> set[str]:
    section = (SPECS / "formats.md").read_text().split("### Types and their data")[1].split("\n\n### ")[0]
    out: set[str] = set()
    for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE):
        first, *more = re.findall(r"`(\w+)`", row)
        out.add(first)
        for name in more:  # `emergency_started`, `_stale`: the rest of a name stands for the whole
            out.add(first.rpartition("_")[0] + name if name.startswith("_") else name)
    return out


def test_the_record_types_described_are_the_ones_written() -> None:
    assert described_types() == TYPES


# -- the verifier for strangers -------------------------------------------------------------------------------------


@pytest.fixture
def verifier(tmp_path: Path) -> Path:
    blocks = re.findall(r"```python\n(.*?)```", (SPECS / "formats.md").read_text(), re.DOTALL)
    (code,) = [b for b in blocks if "hashlib" in b]
    assert len(code.splitlines()) <= 20
    path = tmp_path / "verify.py"
    path.write_text(code)
    return path


def strange(seq: int) -> dict[str, Any]:
    text = 'é \u2028 \x7f \x01\b\f\n\r\t"\\ \U0001f600'
    return {"text": text, "Z": seq, "a": [None, True, {"é": -5, "e": 2**63 - 1}]}


def exported(tmp_path: Path, count: int = 12) -> Path:
    journal = SqliteJournal(str(tmp_path / "journal.db"))
    prev = GENESIS
    for seq in range(count):
        row = seal(seq, prev, "2026-01-01T00:00:00.000000Z", seq, "n\u00e9", "denied", {"user": "é"}, strange(seq))
        journal.append([row], {f"{seq:064x}": b"content"})
        prev = row[0].hash
    path = tmp_path / "export.jsonl"
    with path.open("wb") as out:
        export(journal, out)
    journal.close()
    return path


def run(verifier: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", str(verifier), str(path)], capture_output=True, text=True, check=False)


def tampered(lines: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The record that must be named, and an export that somebody changed."""
    yield 3, [*lines[:3], lines[3].replace(b'"Z":3', b'"Z":4'), *lines[4:]]
    yield 5, [*lines[:5], *lines[6:]]
    yield 2, [*lines[:2], lines[3], lines[2], *lines[4:]]
    yield 7, [*lines[:7], lines[7].replace(b'"seq":7', b'"extra":1,"seq":7'), *lines[8:]]
    yield 0, lines[1:]


@pytest.mark.invariant("J3")
def test_a_stranger_verifies_an_export_with_the_program_in_the_specification(verifier: Path, tmp_path: Path) -> None:
    path = exported(tmp_path)
    done = run(verifier, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 records, last hash ")


@pytest.mark.invariant("J3")
def test_the_strangers_program_names_the_first_record_that_was_changed(verifier: Path, tmp_path: Path) -> None:
    path = exported(tmp_path)
    for seq, lines in tampered(path.read_bytes().splitlines(keepends=True)):
        changed = tmp_path / "changed.jsonl"
        changed.write_bytes(b"".join(lines))
        done = run(verifier, changed)
        assert done.returncode == 1
        assert f"record {seq}: wrong" in done.stderr


def test_words_that_were_given_up_are_not_used() -> None:
    text = (ROOT / "docs" / "words.md").read_text()
    given_up = [
        w.strip(" `")
        for row in re.findall(r"^\| ([^|]+) \|", text.partition("## Given up")[2], re.MULTILINE)[2:]
        for w in row.split(",")
    ]
    assert len(given_up) >= 5
    said = re.compile(r"(?i:\b(?:" + "|".join(map(re.escape, given_up)) + r")\b)")
    places = [*(ROOT / "pact").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *SPECS.glob("*.md"), ROOT / "README.md"]
    found = [
        f"{p.relative_to(ROOT)}: {m[0]}"
        for p in places
        if p.name not in ("words.md", "ADR-014.md")
        for m in said.finditer(p.read_text())
    ]
    assert found == []
