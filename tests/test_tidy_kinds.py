"""A kind owns what it knows: nothing outside ``pact/resources`` names one.

Read from the source: a text that is the name of a kind or begins as an id of one (``"mount"``, ``"file:"``,
``f"sysctl:{name}"``), an import of a kind's own file or of what is named after one, and a constant named after one.
What is said in docstrings and in the middle of texts for people is free.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pact.resources import KINDS, kinds

ROOT = Path(__file__).parent.parent
NAMES = tuple(sorted(k for k in KINDS if type(KINDS[k]).__module__.startswith(kinds.__name__)))

#: Names of kinds that are everyday words of this program too: alone they say nothing, with a colon they are the kind.
WORDS = frozenset({"command", "gpu"})

#: What looks like a kind and is none, or has to be named: (file or folder, text) -> why.
EXCEPT: dict[tuple[str, str], str] = {
    ("pact/cli/journal.py", "file"): "a field of its JSON: the journal's file",
    ("pact/cli/commands", "file"): "an argument: a file that the command reads or writes",
    ("pact/cli/rootlog.py", "file"): "a field of its JSON: the log's file",
    ("pact/observe/observers.py", "sysctl"): "the name of an observer, as status shows it",
    ("pact/sim/shell.py", "mount:/over"): "something on the virtual machine",
    ("pact/sim/shell.py", "file"): "something on the virtual machine",
    ("pact/sim/world.py", "file"): "something on the virtual machine",
    ("pact/session/prepare.py", "service"): "a word of the session's program: which service of PAM",
    ("pact/journal/reading.py", "file:"): "how SQLite wants a path as a URI",
}


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Texts that stand alone: they are read by people."""
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def is_after_a_kind(part: str) -> bool:
    return part.lower().startswith(tuple(f"{n}_" for n in NAMES)) or part.lower() in NAMES


def named(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each place where this source names a kind."""
    tree = ast.parse(source)
    free = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in free:
            if node.value in set(NAMES) - WORDS or node.value.startswith(tuple(f"{n}:" for n in NAMES)):
                yield node.lineno, node.value
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for module in modules:
                inside = [*module.split("."), *(a.name for a in node.names)]
                if module.startswith("pact.resources.kinds") or (
                    module.startswith("pact.resources") and any(map(is_after_a_kind, inside))
                ):
                    yield node.lineno, f"import {module}"
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name.isupper() and name.lower() in set(NAMES) - WORDS:
                yield node.lineno, name


@cache
def found() -> dict[str, list[tuple[int, str]]]:
    out: dict[str, list[tuple[int, str]]] = {}
    for path in sorted((ROOT / "pact").rglob("*.py")):
        where = str(path.relative_to(ROOT))
        if not where.startswith("pact/resources/"):
            rows = sorted(named(path.read_text()))
            if rows:
                out[where] = rows
    return out


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ('x.startswith("mount:")', ["mount:"]),
        ('f"file:{path}"', ["file:"]),
        ('kind == "sysctl"', ["sysctl"]),
        ('{"command": 1}', []),
        ('x = "command:x"', ["command:x"]),
        ('"""module"""\n"a file: it is read"', []),
        ("from pact.resources.kinds.file import KIND", ["import pact.resources.kinds.file"]),
        ("from pact.resources.support.mount_users import inside", ["import pact.resources.support.mount_users"]),
        ("from pact.resources.support.way import hangs\nfrom pact.observe.mountinfo import is_remote", []),
        ("FILE.look(name)", ["FILE"]),
        ('open("files")', []),
    ],
)
def test_a_name_is_found(source: str, texts: list[str]) -> None:
    assert [text for _, text in named(source)] == texts


def test_no_kind_is_named_outside_its_room() -> None:
    assert {"command", "file", "gpu", "link", "mount", "sysctl"} < set(NAMES), "they are found"
    assert [
        f"{where}:{line}: {text}"
        for where, rows in found().items()
        for line, text in rows
        if (where, text) not in EXCEPT and (where.rpartition("/")[0], text) not in EXCEPT
    ] == []


def test_no_exception_is_left_over() -> None:
    there = {
        (w, text) for where, rows in found().items() for _, text in rows for w in (where, where.rpartition("/")[0])
    }
    assert sorted(set(EXCEPT) - there) == []
