"""The journal on disk: verified, moved, tampered with, and one agent at a time."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator

import chain
import pytest
from harness import TOP, Agent, Done


@pytest.fixture(scope="module")
def history(make_agent: Callable[..., Agent]) -> Agent:
    """An agent with some history that has ended cleanly."""
    agent = make_agent()
    agent.start()
    path = agent.file("journal.conf", "declared ü\n")
    agent.drift(path, "kept\n")
    agent.pact("commit", "-m", "wär's möglich")
    agent.drift(path, "dropped\n")
    agent.pact("rollback")
    assert agent.stop() == 0
    assert os.listdir(agent.state_dir) and not list(agent.state_dir.glob("journal.db-*")), "folded into one file"
    return agent


@pytest.fixture
def stopped(history: Agent, make_agent: Callable[..., Agent]) -> Iterator[Agent]:
    """A copy of its state, for one test."""
    agent = make_agent()
    shutil.copytree(history.state_dir, agent.state_dir)
    history.world.path(f"{TOP}/journal.conf").write_text("kept\n")
    yield agent
    agent.close()


def command(agent: Agent, *args: str, check: int | None = 0) -> str:
    done = agent.pact(*args, "--config", str(agent.config_path), check=check)
    return done.out if check == 0 else done.err


def tamper(agent: Agent, sql: str) -> None:
    db = sqlite3.connect(agent.journal)
    db.execute(sql)
    db.commit()
    db.close()


def test_verify_accepts_an_unbroken_chain_running_or_not(stopped: Agent) -> None:
    assert "chain unbroken" in command(stopped, "journal", "verify")
    document = json.loads(command(stopped, "--json", "journal", "verify"))
    assert document["ok"] and document["records"] > 5 and len(document["hash"]) == 64
    stopped.start()
    assert "chain unbroken" in command(stopped, "journal", "verify")
    stopped.pact("journal", "verify", str(stopped.journal))


@pytest.mark.invariant("F4")
def test_an_export_is_verified_by_a_stranger_and_imported_whole(stopped: Agent, make_agent: Callable[..., Agent]) -> None:
    out = stopped.base / "export.jsonl"
    command(stopped, "journal", "export", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    records = [x for x in lines if "seq" in x]
    assert chain.verify(records) == len(records) and len(records) < len(lines)
    stopped.pact("journal", "verify", str(out))
    assert command(stopped, "journal", "export") == out.read_text()
    fresh = make_agent()
    command(fresh, "journal", "import", str(out))
    assert "not empty" in command(fresh, "journal", "import", str(out), check=2)
    refused = fresh.pact("--json", "journal", "import", str(out), "--config", str(fresh.config_path), check=2).json()
    assert refused["exit"] == 2 and "not empty" in refused["error"]
    again = fresh.base / "again.jsonl"
    said = json.loads(command(fresh, "--json", "journal", "export", str(again)))
    assert (said["v"], said["file"]) == (1, str(again)) and said["records"] > 0 and said["contents"] > 0
    fresh.start()
    path = f"{TOP}/journal.conf"
    assert fresh.status()["declared"] == 1
    assert fresh.records()[: len(records)] == records
    fresh.drift(path, "on the new machine\n")
    fresh.pact("rollback")
    assert fresh.world.path(path).read_text() == "kept\n", "contents came along"


def test_an_export_that_was_changed_is_not_imported(stopped: Agent, make_agent: Callable[..., Agent]) -> None:
    out = stopped.base / "export.jsonl"
    command(stopped, "journal", "export", str(out))
    text = out.read_text()
    for wrong in (text.replace("möglich", "unmöglich"), text[:-30], text.split("\n", 1)[1], text + "garbage\n",
                  text.replace('"data":"', '"data":"AAAA')):  # fmt: skip
        out.write_text(wrong)
        fresh = make_agent()
        command(fresh, "journal", "import", str(out), check=None)
        assert not fresh.journal.exists() or _records(fresh) == 0


def _records(agent: Agent) -> int:
    db = sqlite3.connect(agent.journal)
    try:
        (count,) = db.execute("SELECT count(*) FROM record").fetchone()
        return int(count)
    finally:
        db.close()


@pytest.mark.invariant("F4")
@pytest.mark.parametrize("sql", [
    "UPDATE record SET body = replace(body, 'möglich', 'unmöglich')",
    "UPDATE record SET body = CAST(replace(CAST(body AS TEXT), '\"root\"', '\"toor\"') AS BLOB) WHERE type = 'committed'",
    "DELETE FROM record WHERE seq = 3",
    "DELETE FROM record WHERE seq = 0",
    "UPDATE record SET hash = upper(hash) WHERE seq = 4",
    "UPDATE record SET body = 'garbage' WHERE seq = 4",
    "UPDATE record SET type = 'rolled_back' WHERE type = 'committed'",
])  # fmt: skip
@pytest.mark.parametrize("snapshot", [True, False])
def test_a_tampered_journal_is_detected_and_the_agent_refuses_to_start(stopped: Agent, sql: str, snapshot: bool) -> None:
    before = stopped.journal.read_bytes()
    tamper(stopped, sql)
    if not snapshot:
        tamper(stopped, "DELETE FROM snapshot")
    assert stopped.journal.read_bytes() != before
    err = command(stopped, "journal", "verify", check=1)
    assert "record" in err and "Traceback" not in err
    done = stopped.refuses_to_start()
    assert done.code == 1 and "record" in done.err and "Traceback" not in done.err, done
    assert "keep the file" in done.err


def test_a_file_that_is_no_journal_is_refused(stopped: Agent) -> None:
    stopped.journal.write_bytes(b"not a database at all" * 100)
    done = stopped.refuses_to_start()
    assert done.code == 5 and "journal" in done.err and "Traceback" not in done.err, done
    command(stopped, "journal", "verify", check=None)
    assert "Traceback" not in command(stopped, "journal", "verify", "/etc/passwd", check=1)
    assert "No such file" in command(stopped, "journal", "verify", "/nonexistent", check=2)


def pact(stopped: Agent, arguments: str) -> Done:
    """By a shell, with its pipes and closed streams."""
    program = f"'{sys.executable}' -m pact.cli.main --socket {stopped.socket}"
    done = stopped.world.call(["bash", "-c", arguments.replace("PACT", program)], check=False)
    assert "Traceback" not in done.err, done
    return done


def test_a_reader_that_has_enough_of_an_export_is_no_mistake(stopped: Agent) -> None:
    config = f"--config {stopped.config_path}"
    for _ in range(4):  # more than a pipe holds
        tamper(stopped, "INSERT INTO blob (digest, size, data) SELECT hex(randomblob(32)), 400000, randomblob(400000)")
    done = pact(stopped, f"PACT journal export {config} | head -n1 | wc -l; echo ${{PIPESTATUS[0]}}")
    assert done.out.split() == ["1", "1"] and done.err == "", done


def test_an_export_is_verified_out_of_a_pipe(stopped: Agent) -> None:
    config = f"--config {stopped.config_path}"
    done = pact(stopped, f"PACT journal export {config} | PACT journal verify /dev/stdin")
    assert done.code == 0 and "chain unbroken" in done.out, done
    done = pact(stopped, f"PACT journal export {config} | sed 2d | PACT journal verify /dev/stdin")
    assert done.code == 1 and "journal record 1" in done.err, done
    done = pact(stopped, f"cat {stopped.journal} | PACT journal verify /dev/stdin")
    assert done.code == 2 and "in a pipe" in done.err, done
    assert "chain unbroken" in pact(stopped, f"PACT journal verify /dev/stdin < {stopped.journal}").out


def test_what_holds_no_record_is_no_good_journal(stopped: Agent, make_agent: Callable[..., Agent]) -> None:
    assert "holds no record" in stopped.pact("journal", "verify", "/dev/null", check=1).err
    assert stopped.pact("--json", "journal", "verify", "/dev/null", check=1).json()["exit"] == 1
    tamper(stopped, "DELETE FROM record")
    assert "holds no record" in command(stopped, "journal", "verify", check=1)
    assert "holds no record" in command(make_agent(), "journal", "import", "/dev/null", check=1)


def test_an_agent_s_journal_that_is_not_there_is_unreachable_whatever_is_asked_of_it(make_agent: Callable[..., Agent]) -> None:
    fresh = make_agent()
    for action in ("verify", "export"):
        said = command(fresh, "journal", action, check=5)
        assert f"{fresh.journal}: No such file" in said and "--config" in said


def test_a_lost_snapshot_or_signature_cache_loses_nothing(stopped: Agent) -> None:
    stopped.world.path(f"{TOP}/journal.conf").write_text("while it was down\n")
    tamper(stopped, "UPDATE snapshot SET state = 'garbage'")
    (stopped.state_dir / "signatures").write_bytes(b"garbage")
    stopped.start()
    stopped.drifted(f"file:{TOP}/journal.conf")
    assert stopped.status()["declared"] == 1


@pytest.mark.invariant("F24")
def test_a_second_agent_on_the_same_state_directory_refuses_and_says_why(
    stopped: Agent, make_agent: Callable[..., Agent]
) -> None:
    stopped.start()
    second = make_agent()
    second.configure({"state": {"dir": str(stopped.state_dir)}})
    done = second.refuses_to_start()
    assert done.code == 1 and f"pid {stopped.process.pid}" in done.err and str(stopped.state_dir) in done.err
    assert stopped.status()["v"] == 1
    assert "another agent" in command(stopped, "journal", "import", "/dev/null", check=1)


@pytest.mark.invariant("D1", "F54")
def test_a_name_that_an_older_version_let_in_ends_nobody(stopped: Agent, make_agent: Callable[..., Agent]) -> None:
    out = stopped.base / "export.jsonl"
    command(stopped, "journal", "export", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    records = [x for x in lines if "seq" in x]
    long = "file:" + f"/{'d' * 200}" * 25
    declared = next(r for r in records if r["type"] == "adopted")
    values = {"sysctl:net.ipv4.ip_forward.": {"attrs": {"value": "0"}}, long: {"attrs": {"type": "file"}}}
    bad = chain.follow(records, type="declared", actor=declared["actor"], data={"resources": values, "cause": "declare"})
    out.write_text("".join(json.dumps(x) + "\n" for x in [*lines, bad]))
    fresh = make_agent()
    command(fresh, "journal", "import", str(out))
    fresh.start()
    status = fresh.status()
    assert set(status["unreadable_resources"]) == set(values) and status["declared"] == 3
    assert status["observers"]["names"].startswith("2 cannot be watched: file:/ddd")
    assert fresh.newest("observer_blind")["data"]["observer"] == "names"
    path = f"{TOP}/journal.conf"
    fresh.drift(path, "watched all the same\n")
    fresh.pact("rollback")
    fresh.declare(f'[file."{path}"]\ncontent = "kept\\n"\n', "--prune")
    assert fresh.status()["declared"] == 1 and fresh.status()["observers"].get("names", "ok") == "ok"
    fresh.restart()
    assert fresh.status()["state"] == "committed"
