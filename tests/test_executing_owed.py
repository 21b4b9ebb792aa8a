"""A command that has ended while the journal could not be written is on record once that is possible again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.executing import Executing
from pact.core.node.payloads import Executed
from pact.model import AGENT_ACTOR, Owner
from pact.session.hosting import Hosted
from pact.session.places import started_at, state_path

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
    one.record("x1", DONE, AGENT_ACTOR)
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
    one.record("x1", DONE, AGENT_ACTOR)
    assert one._owed and list(tmp_path.iterdir())


@pytest.mark.parametrize("deaf", [False, True])
def test_what_the_last_agent_has_left_is_recorded_once_when_it_has_ended(tmp_path: Path, deaf: bool) -> None:
    """Its process writes its file once more when it ends. ``deaf``: it does not end when it is asked to."""
    said: list[Any] = []
    one = executing(tmp_path, "", said.append)
    one._left.unseen, file = True, tmp_path / "x1.json"
    with subprocess.Popen(["sleep", "300"]) as host:
        state = {
            "pid": host.pid,
            "start": started_at(host.pid),
            "uid": 0,
            "began": 1,
            "account": "root",
            "person": "root",
            "tty": "",
            "login": None,
            "audit": None,
            "command": ["make"],
        }
        file.write_text(json.dumps(state))
        one.turn()
        assert not said and file.exists() and one.busy and one.next_s() <= 0.1
        if deaf:
            one._left.ending["x1"] = one._left.look_s = 0.0
            one.turn()
            host.wait(10)
        else:
            host.kill()
            host.wait()
            file.write_text(json.dumps({**state, "end": {"exit": 3, "why": ""}}))
        one._left.look_s = 0.0
        one.turn()
    one._left.unseen = True
    one._left.look_s = 0.0
    one.turn()
    (event,) = said
    assert event.said.exit == (None if deaf else 3) and event.said.why and not file.exists() and not one.busy


@pytest.mark.parametrize(("whole", "told", "again"), [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_a_command_whose_end_was_told_writes_its_file_no_more(
    tmp_path: Path, whole: bool, told: bool, again: int
) -> None:
    """The agent has just removed it: the next agent would record a second end."""
    saved: list[Any] = []
    nothing: Any = SimpleNamespace(close=lambda: None)
    host: Any = SimpleNamespace(
        listener=nothing,
        why="",
        newcomers={},
        client=SimpleNamespace(sock=nothing) if told else None,
        made=SimpleNamespace(socket_path=f"{tmp_path}/x1.sock", cgroups=[]),
        cast=None,
        end={"exit": 0},
        state={},
        pam=None,
        whole=whole,
        _counts=dict,
        _save=lambda: saved.append(1),
    )
    Hosted.close(host)
    assert len(saved) == again
