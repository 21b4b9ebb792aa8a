"""Every check of ``docs/commands.md`` is run where the machine has what it asks about."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pact.resources.kinds.command import KIND
from pact.resources.support.command_run import Failed, Order, run

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
CHECKS: dict[str, dict[str, Any]] = {}
for block in BLOCKS[1:]:  # the first one explains the keys
    for checks in tomllib.loads(block).values():
        assert not set(checks) & set(CHECKS)
        CHECKS.update(checks)
#: How a check says that the machine has nothing of what it asks about.
LACKING = re.compile(
    r"No such file or directory|there is no program|not been booted with systemd|not found|No such device"
)
#: These run on every Linux machine.
EVERYWHERE = {"kernel-release", "kernel-command-line", "memory-size", "processors", "kernel-taint", "slow-pci-links"}


def test_there_are_a_dozen_and_the_first_block_has_every_key() -> None:
    assert len(CHECKS) >= 12 and set(CHECKS) >= EVERYWHERE
    (keys,) = tomllib.loads(BLOCKS[0].replace("shell = true", "").replace("NAME", "x"))["command"].values()
    assert set(keys) == {"observe", "state", "restore", "consumers", "timeout", "every", "secret"}
    KIND.parse("x", keys, "/")


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_check_can_be_declared_and_says_something_where_the_machine_has_it(name: str) -> None:
    declared = KIND.parse(KIND.canonical(name), CHECKS[name], "/").declared
    again = KIND.parse(name, KIND.export(name, declared, lambda _: None), "/").declared
    assert declared == again and declared.attrs is not None
    order = Order(tuple(declared.attrs["observe"]), bool(declared.attrs.get("shell")), 10_000_000_000)
    try:
        said = run(order)
    except Failed as exc:
        assert name not in EVERYWHERE, exc
        assert LACKING.search(str(exc)), "it fails for another reason than that this machine lacks what it asks about"
        return
    assert said or not declared.attrs["value"] or name not in EVERYWHERE
    assert len(said) < 4096
