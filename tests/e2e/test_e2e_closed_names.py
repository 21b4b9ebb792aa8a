"""Names of what a pattern finds in directories that are closed to others are for administrators alone, also where the
pattern is enforced."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chain
import pytest
from harness import TOP, Agent, World, wait_until
from newcomers import ETC, empty, etc, made_by

pytestmark = pytest.mark.invariant("S2")

NAME = "merger-with-acme"
PLACE = f"{ETC}/closed"
SECRET = f"file:{PLACE}/{NAME}"
OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}
VIEWER: dict[str, Any] = {"uid": 4321}
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [8]}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail"], "ops_groups": ["games"]}, "hooks": {}}


@pytest.fixture(autouse=True)
def an_empty_place(world: World, running: Agent) -> None:
    empty(world, running)


def enforced(agent: Agent) -> Path:
    """A closed directory below an enforced pattern."""
    place = etc(agent) / "closed"
    place.mkdir(mode=0o700)
    agent.adopt(f"file:{ETC}/**")
    agent.pact("track", f"file:{ETC}/**", "enforce")
    return place


def said(agent: Agent, who: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Everything that pact tells this person."""
    numbers = [str(r["seq"]) for r in agent.records() if NAME in json.dumps(r)]
    assert numbers, "the node's own journal has the name"
    for words in (
        ["status"],
        ["status", "-v"],
        ["diff"],
        ["log", "-n", "100"],
        ["export"],
        ["check"],
        *(["show", n] for n in numbers),
        *(["show", n, "--restore", f"{TOP}/none"] for n in numbers),
    ):
        for more in ([], ["--json"]):
            done = agent.pact(*more, *words, check=None, **who)
            yield words, done.out + done.err


def test_the_name_is_told_to_administrators_alone(agent: Agent) -> None:
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    change = agent.drifted(SECRET)
    for who in (VIEWER, OPS):
        assert [(words, text) for words, text in said(agent, who) if NAME in text] == []
    assert NAME in agent.pact("status", **ADMIN).out and NAME in agent.pact("diff", **ADMIN).out
    (shown,) = agent.json("status", **VIEWER)["changes"]
    (entry,) = agent.json("diff", **VIEWER)["resources"]
    (stand_in,) = shown["resources"]
    assert shown["id"] == change["id"] and entry["id"] == stand_in
    assert stand_in.startswith("file:(hidden) ")
    drift = [
        json.loads(line) for line in agent.pact("--json", "log", "--type", "drift_detected", **VIEWER).out.splitlines()
    ]
    assert drift[0]["data"]["resource"] == stand_in, "one name in all that is told, so that it can be followed"


def test_nor_is_it_in_what_a_rollback_and_a_commit_say(another: Callable[..., Agent], config: dict[str, Any]) -> None:
    agent = another(**config)
    place = enforced(agent)
    os.chown(place, 1234, 1234)
    agent.pact("commit", "--all", "-m", "it is an operator's", check=None)
    for how in ("rollback", "commit"):
        who = made_by(agent, 1234, f"echo x > {PLACE}/{NAME}")
        change = agent.drifted(SECRET)
        agent.world.end(who)
        dry = agent.pact("--json", "rollback", "--dry-run", change["id"], check=None, **OPS)
        assert NAME not in dry.out + dry.err
        more = ["-m", "fine"] if how == "commit" else []
        done = agent.pact("--json", how, change["id"], *more, check=None, **OPS)
        assert done.code == 0 and NAME not in done.out + done.err, how
        assert how == "commit" or not (place / NAME).exists()
        records = [line for line in agent.pact("--json", "log", "-n", "20", **VIEWER).out.splitlines() if NAME in line]
        assert records == [], how


def test_a_guess_is_not_confirmed(another: Callable[..., Agent]) -> None:
    agent = another()
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    agent.drifted(SECRET)
    for words in (["diff"], ["consumers"]):
        right, wrong = (agent.pact(*words, f"{SECRET}{more}", check=None, **VIEWER) for more in ("", "-not"))
        assert right.code == wrong.code != 0, words
        assert right.err.replace(NAME, "") == wrong.err.replace(f"{NAME}-not", ""), words
    assert "(hidden)" not in agent.pact("log", "--type", "denied", **VIEWER).out, "nor by what is recorded of it"
    agent.pact("track", f"file:{ETC}/**", "report")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is only reported")
    right, wrong = (agent.pact("diff", f"{SECRET}{more}", check=None, **VIEWER) for more in ("", "-not"))
    assert right.code == wrong.code != 0 and right.err.replace(NAME, "") == wrong.err.replace(f"{NAME}-not", "")


def test_what_is_removed_by_name_is_not_named_either(agent: Agent) -> None:
    place = etc(agent) / "closed"
    place.mkdir(mode=0o700)
    agent.adopt(f"file:{ETC}/**")
    (place / NAME).write_text("x\n")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("rollback", SECRET)
    assert not (place / NAME).exists()
    assert [(words, text) for words, text in said(agent, VIEWER) if NAME in text] == []


def test_who_follows_the_log_and_hooks_are_not_told_it(another: Callable[..., Agent], tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "all").write_text(f"#!/bin/sh\ncat >> {tmp_path}/heard\necho >> {tmp_path}/heard\n")
    (hooks / "all").chmod(0o755)
    agent = another(hooks={"dir": str(hooks)})
    place = enforced(agent)
    with agent.connect() as sock, sock.makefile("rwb") as f:
        f.write(b'{"op":"ping"}\n')
    (place / NAME).write_text("x\n")
    agent.drifted(SECRET)
    heard = tmp_path / "heard"
    wait_until(lambda: heard.exists() and '"drift_detected"' in heard.read_text(), "the hook has heard of it")
    assert NAME not in heard.read_text()


def test_a_text_that_quotes_it_is_hidden_too(agent: Agent) -> None:
    """The reason why a rollback is blocked names what is in use."""
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    holder = made_by(agent, 0, f"exec 3< {PLACE}/{NAME}")
    change = agent.drifted(SECRET)
    assert agent.pact("rollback", change["id"], check=None).code != 0
    assert NAME in agent.status()["changes"][0]["reason"] + json.dumps(agent.status()["changes"][0]["consumers"])
    assert [(words, text) for words, text in said(agent, VIEWER) if NAME in text] == []
    agent.world.end(holder)
    time.sleep(0.1)
    agent.pact("rollback", change["id"])


def test_the_mark_survives_a_restart(another: Callable[..., Agent]) -> None:
    agent = another()
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    agent.drifted(SECRET)
    agent.restart()
    assert [(words, text) for words, text in said(agent, VIEWER) if NAME in text] == []


def _older(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An export as the version before would have written it: no record says what is hidden."""
    records = list[dict[str, Any]]()
    for line in lines:
        if "seq" in line:
            data = {k: v for k, v in line["data"].items() if k not in ("closed", "salt")}
            before = records[-1:] or [{"seq": -1, "hash": "0" * 64}]
            body = {k: v for k, v in line.items() if k != "hash"}
            records.append(chain.follow(before, **{**body, "data": data}))
    return [*records, *(x for x in lines if "blob" in x)]


def test_a_journal_of_the_version_before_that_has_such_a_name_tells_it_no_more(
    another: Callable[..., Agent], config: dict[str, Any], tmp_path: Path
) -> None:
    agent = another(**config)
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    agent.drifted(SECRET)
    agent.stop()
    export = agent.pact("journal", "export", "--config", str(agent.config_path)).out
    lines = _older([json.loads(line) for line in export.splitlines()])
    text = tmp_path / "older.jsonl"
    text.write_text("".join(json.dumps(x) + "\n" for x in [*lines, chain.end(lines)]))
    shutil.rmtree(agent.state_dir)
    agent.state_dir.mkdir(mode=0o700)
    agent.pact("journal", "import", str(text), "--config", str(agent.config_path))
    agent.start()
    assert [r for r in agent.records("drift_detected") if r["data"]["resource"] == SECRET], "it is on record"
    for who in (VIEWER, OPS):
        assert [(words, told) for words, told in said(agent, who) if NAME in told] == []
    assert NAME in agent.pact("status", **ADMIN).out
    seq = agent.status()["journal"]["seq"]
    agent.restart()
    assert [(words, told) for words, told in said(agent, VIEWER) if NAME in told] == []
    assert agent.status()["journal"]["seq"] - seq < 4, "it is marked once"
    agent.pact("rollback", "--all")
    assert not (place / NAME).exists()
    assert agent.pact("journal", "verify", str(agent.journal)).code == 0


def test_an_operator_s_pattern_tells_no_name_by_being_refused(agent: Agent) -> None:
    place = etc(agent) / "closed"
    place.mkdir(mode=0o700)
    agent.adopt(f"file:{ETC}/**")
    who = made_by(agent, 0, f"echo x > {PLACE}/{NAME}; exec sleep 60 &")
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    for how in (["rollback"], ["commit", "-m", "mine"]):
        done = agent.pact(*how, f"file:{PLACE}/*", check=None, **OPS)
        assert done.code != 0 and NAME not in done.out + done.err, how
    agent.world.end(who)


def test_a_return_to_an_earlier_record_does_not_name_it(another: Callable[..., Agent]) -> None:
    """Nobody has declared it then either: it was only found."""
    agent = another()
    place = enforced(agent)
    (place / NAME).write_text("x\n")
    agent.drifted(SECRET)
    then = agent.records()[-1]["seq"]
    agent.pact("rollback", "--to", str(then))
    assert not (place / NAME).exists()
    assert [(words, text) for words, text in said(agent, VIEWER) if NAME in text] == []
    agent.restart()
    assert [(words, text) for words, text in said(agent, VIEWER) if NAME in text] == []
