"""A command that has ended while the journal could not be written is on record once that is possible again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.executing import Executing
from pact.core.node.payloads import Executed
from pact.model import AGENT_ACTOR, Owner
from pact.session.places import state_path

FULL = "journal: the disk is full"
DONE = Executed(command="true", owner=Owner("uid:0", "root", 0), account="root", exit=0, key="root")


def executing(tmp_path: Path, error: str, step: Callable[[Any], None]) -> Any:
    (tmp_path / Path(state_path("", "x1")).name).write_text("{}")
    streams: Any = SimpleNamespace(
        agent=SimpleNamespace(journal_error=error, step=step, now=lambda: (0, 0)),
        kept=SimpleNamespace(directory=f"{tmp_path}/sessions"),
    )
    one = Executing(streams)
    one.directory = str(tmp_path)
    return one


@pytest.mark.invariant("J9")
def test_it_is_owed_and_its_files_stay_until_it_is_recorded(tmp_path: Path) -> None:
    said: list[Any] = []
    one = executing(tmp_path, FULL, said.append)
    one._record("x1", DONE, AGENT_ACTOR)
    one.turn()
    assert not said and one.busy and one.next_s() > 0 and list(tmp_path.iterdir())
    one._agent.journal_error = ""
    one.turn()
    one.turn()
    assert [event.said for event in said] == [DONE] and not one.busy and not list(tmp_path.iterdir())


@pytest.mark.invariant("J9")
def test_also_where_this_very_record_is_the_first_that_is_refused(tmp_path: Path) -> None:
    said: list[Any] = []

    def refuses(event: Any) -> None:
        if said:
            one._agent.journal_error = FULL
        said.append(event)

    one = executing(tmp_path, "", refuses)
    said.append(None)
    one._record("x1", DONE, AGENT_ACTOR)
    assert one._owed and list(tmp_path.iterdir())
