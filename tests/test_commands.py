"""Each command is one file: it is listed, it is found, it asks what ``pact.core.ops`` knows, and costs no other's start."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pact.cli import commands
from pact.cli.command import NodeCommand, RootCommand, RootRequest
from pact.cli.commands import COMMANDS, load
from pact.cli.main import build, main
from pact.core import ops

ROOT = Path(__file__).parent.parent
FILES = {p.stem for p in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
LINES = [(name, line) for name in COMMANDS for line in load(name).examples]


def test_the_table_and_the_files_name_the_same_commands() -> None:
    assert set(COMMANDS) == FILES
    for name in COMMANDS:
        assert type(load(name)).__name__.lower() == name, "a command's class has its name"
        assert type(load(name)).__module__ == f"pact.cli.commands.{name}"


def test_help_lists_each_with_its_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert [words for words in shown if words and words[0] in COMMANDS] == [list(item) for item in COMMANDS.items()]
    for name, text in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert text in capsys.readouterr().out.splitlines()


def asked_at_root(command: Any, args: Any) -> RootRequest | None:
    found = command.at_root(args)
    assert found is None or isinstance(found, RootRequest)
    return found


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_what_a_command_asks_is_a_request_with_its_fields(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pact.cli.declared.fields", lambda path, empty=False: {"resources": {}, "blobs": {}})
    command = load(name)
    args = build().parse_args(shlex.split(line.partition(" > ")[0])[1:])
    if not isinstance(command, NodeCommand | RootCommand):
        return
    root = asked_at_root(command, args)
    if root is not None:
        assert ops.AT_ROOT[root.op].command == name
    if isinstance(command, RootCommand) or (root is not None and name != "apply"):
        return
    if args.command == "commit" and args.message is None:
        args.message = "from the editor"
    op, fields = command.request(args)
    known = ops.types_of(ops.AT_NODE[op])
    assert ops.AT_NODE[op].command == name
    assert set(ops.needed(ops.AT_NODE[op])) <= fields.keys() <= known.keys()
    assert {key: value for key, value in fields.items() if not isinstance(value, known[key])} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_takes_nodes_is_what_many_nodes_or_the_root_can_be_asked(name: str) -> None:
    command = load(name)
    if not isinstance(command, NodeCommand):
        return
    mine = [op for op in ops.AT_NODE.values() if op.command == name]
    assert mine
    assert command.far == (any(op.afar for op in mine) or any(op.command == name for op in ops.AT_ROOT.values()))


PRINT = (
    "import sys\nfrom pact.cli.main import main\ntry: main({!r})\nexcept SystemExit: pass\nprint(*sorted(sys.modules))"
)


@pytest.mark.parametrize(
    ("words", "found"), [(["--help"], set()), (["--version"], set()), (["status", "--help"], {"status"})]
)
def test_a_start_imports_one_command_and_nothing_that_only_answers_need(words: list[str], found: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PRINT.format(words)], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert {m.rpartition(".")[2] for m in modules if m.startswith("pact.cli.commands.")} == found
    assert modules & {"orjson", "rich", "zmq", "socket", "pact.cli.render", "pact.cli.client", "pact.core.ops"} == set()


def test_a_session_s_client_imports_little() -> None:
    """More than half of the time to the first prompt is imports."""
    code = (
        f"import sys\nsys.path[:0] = {[str(ROOT), *sys.path]}\nfrom pact.cli import client, main, session\n"
        "from pact.session import client\nmain._parsed(['shell'])\nprint(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "pact.session.client" in modules
    assert modules & {"pact.model", "pact.core.ops", "shutil", "locale", "rich", "zmq", "subprocess"} == set()


def test_a_parser_of_python_is_imported_when_somebody_asks_for_it() -> None:
    """``dataclasses`` wants ``inspect`` for a class without a docstring. Everybody else has the module itself."""
    code = (
        f"import sys\nsys.path[:0] = {[str(ROOT), *sys.path]}\n"
        "from pact.cli import main\nfrom pact.cli import fleet, there\nfrom pact.cluster import client\nassert 'inspect' not in sys.modules\n"
        "from pact.values import dataclass\n"
        "@dataclass(frozen=True)\nclass Point:\n    x: int\n"
        "assert Point.__doc__ == 'Point(x: int)', Point.__doc__\n"
        "import inspect\nassert inspect.__file__ and inspect.isclass(Point) and sys.modules['inspect'] is inspect\n"
        "import dataclasses\nassert dataclasses.inspect.isclass(Point) and not hasattr(dataclasses.inspect, 'nothing')"
    )
    subprocess.run([sys.executable, "-ISc", code], check=True)
    again = code.replace("assert 'inspect' not in sys.modules\n", "").replace(
        "import sys\n", "import sys, inspect\n", 1
    )
    subprocess.run([sys.executable, "-ISc", again], check=True)


def test_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, widest in (("60", 60), ("100", 100), ("0", 80), ("many", 80), ("", 80)):
        monkeypatch.setenv("COLUMNS", columns)
        shown = max(map(len, build().format_usage().splitlines()))
        assert widest - 30 < shown < widest, (columns, shown)


@pytest.mark.parametrize("words", [["check"], ["epilog", "--job", "7"]])
def test_what_health_checks_and_epilogs_run_imports_nothing_of_the_agent(words: list[str]) -> None:
    """Its configuration alone cost as much as everything else."""
    words = ["--socket", "/nonexistent/socket", *words]
    done = subprocess.run([sys.executable, "-c", PRINT.format(words)], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert {m for m in modules if m.startswith(("pact.agent", "pact.observe", "pact.net", "zmq"))} == set()


def _launcher(tmp_path: Path, end: str) -> list[str]:
    """The package's launcher with another last line, from where this Python has what pact needs."""
    places = [str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))]
    text = (ROOT / "packaging" / "pact-launcher").read_text()
    assert text.startswith("#!/usr/bin/python3.11 -IS\n") and text.endswith("\nentry()\n")
    text = text.replace('insert(0, "/opt/pact")', f"__setitem__(slice(0), {places})").replace(
        "\nentry()\n", f"\n{end}\n"
    )
    (tmp_path / "pact").write_text(text)
    return [os.path.realpath(sys.executable), "-IS", str(tmp_path / "pact")]


def _launched(tmp_path: Path, end: str, *words: str) -> str:
    command = [*_launcher(tmp_path, end), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_ctrl_c_while_a_command_is_imported_shows_nothing(tmp_path: Path) -> None:
    slow = tmp_path / "argparse.py"  # stands for any module: it is imported for as long as anybody likes
    slow.write_text("import time\nprint('imported', flush=True)\ntime.sleep(60)\n")
    command = _launcher(tmp_path, "entry()")
    launcher = Path(command[-1])
    launcher.write_text(launcher.read_text().replace("slice(0), [", f"slice(0), [{str(tmp_path)!r}, "))
    command = ["env", "--default-signal=INT", *command]  # whoever started the tests may ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "imported\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "" and process.returncode == -signal.SIGINT


def test_a_command_takes_ctrl_c_itself_once_it_is_imported(tmp_path: Path) -> None:
    end = "import atexit\natexit.register(lambda: print(signal.getsignal(2) is signal.default_int_handler))\nentry()"
    command = ["env", "--default-signal=INT", *_launcher(tmp_path, end), "status", "--help"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("True\n")


def test_the_package_starts_a_command_without_what_else_is_installed_for_python(tmp_path: Path) -> None:
    assert _launched(tmp_path, "entry()", "--version").startswith("pact ")
    look = "import atexit\natexit.register(lambda: print('site' in sys.modules))\nentry()"
    assert _launched(tmp_path, look, "status", "--help").endswith("False\n")


def test_kinds_of_other_packages_are_looked_for_where_python_has_them(tmp_path: Path) -> None:
    assert _launched(tmp_path, "import pact.resources\nprint('site' in sys.modules)") == "True\n"
