"""Every command's help has examples, and each of them is understood."""

from __future__ import annotations

import argparse
import shlex

import pytest

from pact.cli.examples import EXAMPLES
from pact.cli.main import build, main


def commands() -> list[str]:
    (sub,) = [a for a in build()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(sub.choices)


def test_every_command_has_two_or_three_or_four() -> None:
    assert {name: len(EXAMPLES.get(name, ())) for name in commands() if not 2 <= len(EXAMPLES.get(name, ())) <= 4} == {}
    assert set(EXAMPLES) == set(commands())


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
