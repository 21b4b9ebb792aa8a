"""Style as tests: what can be checked by reading the source, without running it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from needed import TOOLS

ROOT = Path(__file__).parent.parent
LINES_MAX = 525  # about five hundred: the formatter has a say in it

#: Longer than a file should be, and why it is not two.
LONG = {
    "pact/cli/render.py": "one function for each answer that people see, and the words they share",
    "pact/resources/base.py": "what a kind must and may say, in one place; most of it is what the words mean",
    "pact/_fast/reader.pyx": "one reader thread: its queue, cache and parsers share C state",
    "pact/_fast/wheel.pyx": "one data structure; its fields are private to it",
    "pact/_fast/handles.pyx": "one scan of /proc; splitting it would put a call into the inner loop",
    "pact/_fast/files.pyx": "one table of files and its scan",
    "pact/_fast/syscalls.pyx": "calls of the kernel that nothing else has; a second module would cost every agent memory",
    "pact/_fast/reference.py": "the naive twins of all kernels, side by side",
    "pact/core/tree/relay.py": "one handler for each message of either side; its tables are files of their own",
}
SKIPS_MAX = 20  # places that the formatter leaves alone: tables that are read by column
SOURCES = [
    p
    for top in ("pact", "tests", "bench")
    for suffix in ("*.py", "*.pyx", "*.pxd", "*.pyi")
    for p in sorted((ROOT / top).rglob(suffix))
]
TEXTS = [
    *SOURCES,
    *(
        p
        for top in ("specs", "docs", "packaging", "tests/scripts")
        for p in (ROOT / top).rglob("*")
        if p.is_file() and p.suffix in (".md", ".txt", ".toml", ".service", ".sh", ".spec")
    ),
    *ROOT.glob("*.md"),
    *ROOT.glob("*.toml"),
    *ROOT.glob("Makefile"),
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_long_without_a_reason() -> None:
    long = {relative(p) for p in SOURCES if p.read_text().count("\n") > LINES_MAX}
    assert sorted(long - set(LONG)) == []
    assert [p for p in LONG if not (ROOT / p).exists()] == []


#: Each Debian has them, and no other system.
ALWAYS_THERE = {"apt", "dpkg", "bsdutils"}


def test_what_some_tests_need_is_said_where_it_is_missing_and_installed_by_make_deps() -> None:
    looked_for: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        looked_for.update(re.findall(r'which\("([\w.+-]+)"\)', path.read_text()))
    assert looked_for - {"dash", "sleep"} <= set(TOOLS)
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (installed,) = re.findall(r"^DEBIAN := (.*)$", makefile, re.MULTILINE)
    assert set(TOOLS.values()) - ALWAYS_THERE <= set(installed.split())


def test_few_places_are_left_out_by_the_formatter() -> None:
    assert sum(p.read_text().count("# fmt: " + "skip") for p in SOURCES) < SKIPS_MAX


def forbidden() -> set[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c["type"] == "forbidden"]
    return set(contract["forbidden_modules"])


@cache
def import_statements(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Those at its top, in functions, and for types alone."""
    return tuple(n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom))


def imports(path: Path) -> set[str]:
    out: set[str] = set()
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            out.update(a.name for a in node.names)
        elif node.module:
            out.add(node.module)
    return out


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / "pact/core").rglob("*.py")),
        ROOT / "pact/model.py",
        ROOT / "pact/errors.py",
        ROOT / "pact/values.py",
        ROOT / "pact/limits.py",
    ],
    ids=relative,
)
def test_the_core_imports_no_clock_socket_thread_random_source_or_logger(path: Path) -> None:
    assert {"time", "socket", "threading", "random", "logging", "os"} <= forbidden()
    assert {m.partition(".")[0] for m in imports(path)} & forbidden() == set()
    assert not [
        m
        for m in imports(path)
        if m.startswith("pact.") and not re.match(r"pact\.(core|model|values|errors|limits|_fast)\b", m)
    ]


def modules_imported(path: Path, known: set[str]) -> set[str]:
    """The files of pact that this one imports."""
    out: set[str] = set()
    for node in import_statements(path):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            out.add(name)
    return out & known


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected parts."""

    def reached(start: str) -> set[str]:
        seen, todo = set[str](), [start]
        while todo:
            for name in edges.get(todo.pop(), set()) - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reached(name) for name in edges}
    found = [
        {other for other in reach[name] if name in reach.get(other, set())} for name in edges if name in reach[name]
    ]
    return [c for i, c in enumerate(found) if c not in found[:i]]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [{"b", "c"}, {"d"}]


def test_no_file_and_no_folder_imports_itself_in_a_circle() -> None:
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (ROOT / "pact").rglob("*.py")
    }
    edges = {name: modules_imported(path, set(files)) - {name} for name, path in files.items()}
    assert circles(edges) == []
    folders: dict[str, set[str]] = {}
    for name, others in edges.items():
        if files[name].name == "__init__.py":
            continue  # the face of a folder hands names on
        here = name.rpartition(".")[0]
        inside = {o.rpartition(".")[0] for o in others if files[o].name != "__init__.py"}
        folders.setdefault(here, set()).update(inside - {here})
    assert circles(folders) == []


@pytest.mark.parametrize("path", sorted((ROOT / "pact").rglob("*.py")), ids=relative)
def test_the_agent_imports_no_numpy_and_nothing_from_tests(path: Path) -> None:
    assert {m.partition(".")[0] for m in imports(path)} & {"numpy", "tests", "pytest", "hypothesis"} == set()


def test_no_checkouts_path_and_no_loose_end_is_named() -> None:
    ours = re.compile(re.escape(f"{ROOT}/") + r"|\b(?:TO[D]O|FI[X]ME|XX[X])\b")
    found = [
        f"{relative(p)}:{n}: {line}"
        for p in TEXTS
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if ours.search(line)
    ]
    assert found == []


def test_nothing_works_with_a_naive_twin_where_a_kernel_was_built() -> None:
    """Who wants a kernel asks for the module that chooses: a twin's results are the same, so that no other test sees
    it."""
    naive = re.compile(r"^\s*(?:from|import) pact\._fast\.(?:reference\w*)", re.M)
    using = [relative(p) for p in (ROOT / "pact").rglob("*.py") if naive.search(p.read_text())]
    assert sorted(using) == ["pact/_fast/__init__.py", "pact/net/ports.py"]


def test_lines_end_tidily() -> None:
    bad = [
        f"{relative(p)}:{n}"
        for p in TEXTS
        for n, line in enumerate(p.read_text().split("\n"), 1)
        if line != line.rstrip() or ("\t" in line and p.name != "Makefile")
    ]
    assert bad == []


def tool(*command: str) -> None:
    binary = Path(sys.executable).parent / command[0]
    if not binary.exists():
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(binary), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_has_nothing_to_say() -> None:
    tool("ruff", "check", "--quiet", "pact", "tests", "bench", "setup.py")


def test_types_are_strict() -> None:
    tool("mypy")


def test_imports_run_one_way() -> None:
    tool("lint-imports", "--no-cache")


def test_one_version_stands_in_all_files_that_name_it() -> None:
    text = {name: (ROOT / name).read_text() for name in ("CHANGELOG.md", "pact/__init__.py", "packaging/pact.spec")}
    newest = re.search(r"^## (\S+)$", text["CHANGELOG.md"], re.M)
    assert newest is not None
    version = newest[1]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert f'__version__ = "{version}"' in text["pact/__init__.py"]
    assert re.search(rf"^Version:\s+{re.escape(version)}$", text["packaging/pact.spec"], re.M)


def test_values_without_a_type_are_few_in_the_core() -> None:
    """What is JSON by nature has a name that says which (``Attrs``, ``Value``, ``Json``, a frame's ``Head``)."""
    untyped = re.compile(r"\b(?:dict|Mapping)\[str, Any\]")
    assert sum(len(untyped.findall(path.read_text())) for path in (ROOT / "pact" / "core").rglob("*.py")) < 60
