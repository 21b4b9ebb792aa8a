"""Every command's help has examples, and each of them is understood."""

from __future__ import annotations

import argparse
import shlex

import pytest

from pact.cli.commands import COMMANDS, load
from pact.cli.main import build, main

EXAMPLES = {name: load(name).examples for name in COMMANDS}


def commands() -> list[str]:
    (sub,) = [a for a in build()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(sub.choices)


def test_every_command_has_some() -> None:
    assert {name: len(EXAMPLES[name]) for name in commands() if not 2 <= len(EXAMPLES[name]) <= 6} == {}


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_understood(line: str) -> None:
    program, *words = shlex.split(line.partition(" > ")[0])
    assert program == "pact"
    build().parse_args(words)


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_shows_the_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert all(f"  {line}\n" in out for line in EXAMPLES[command])


@pytest.mark.parametrize(
    "words",
    [
        w.split()
        for w in (
            "emergency start",
            "emergency end",
            "hold place",
            "hold release",
            "journal verify",
            "journal export",
            "journal import",
        )
    ],
)
def test_help_of_an_action_shows_its_own(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert len(shown) == 2 and all(line.startswith(f"  pact {' '.join(words)}") for line in shown)


def test_help_of_the_whole_shows_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "  pact COMMAND --help\n" in capsys.readouterr().out
