"""The journal on disk: verified, moved, tampered with, and one agent at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator

import chain
import pytest
from harness import TOP, Agent, Done, wait_until


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
def test_an_export_is_verified_by_a_stranger_and_imported_whole(
    stopped: Agent, make_agent: Callable[..., Agent]
) -> None:
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
    for wrong in (
        text.replace("möglich", "unmöglich"),
        text[:-30],
        text.split("\n", 1)[1],
        text + "garbage\n",
        text.replace('"data":"', '"data":"AAAA'),
    ):
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
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE record SET body = replace(body, 'möglich', 'unmöglich')",
        "UPDATE record SET body = CAST(replace(CAST(body AS TEXT), '\"root\"', '\"toor\"') AS BLOB) WHERE type = 'committed'",
        "DELETE FROM record WHERE seq = 3",
        "DELETE FROM record WHERE seq = 0",
        "UPDATE record SET hash = upper(hash) WHERE seq = 4",
        "UPDATE record SET body = 'garbage' WHERE seq = 4",
        "UPDATE record SET type = 'rolled_back' WHERE type = 'committed'",
    ],
)
@pytest.mark.parametrize("snapshot", [True, False])
def test_a_tampered_journal_is_detected_and_the_agent_refuses_to_start(
    stopped: Agent, sql: str, snapshot: bool
) -> None:
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


def test_an_agent_s_journal_that_is_not_there_is_unreachable_whatever_is_asked_of_it(
    make_agent: Callable[..., Agent],
) -> None:
    fresh = make_agent()
    for action in ("verify", "export"):
        said = command(fresh, "journal", action, check=5)
        assert f"{fresh.journal}: No such file" in said and "--config" in said


def test_a_snapshot_that_was_rewritten_is_found(stopped: Agent) -> None:
    """It spares a start the records before it: what it says must be what they say."""
    assert "chain unbroken" in command(stopped, "journal", "verify", check=0)
    db = sqlite3.connect(stopped.journal)
    ((raw,),) = db.execute("SELECT state FROM snapshot").fetchall()
    state = json.loads(raw)
    resource, declared = next(iter(state["declared"].items()))
    state["declared"][resource] = declared.replace("0644", "0666")
    assert state["declared"][resource] != declared
    forged = json.dumps(state).encode()
    db.execute("UPDATE snapshot SET state = ?, digest = ?", (forged, hashlib.sha256(forged).hexdigest()))
    db.commit()
    db.close()
    err = command(stopped, "journal", "verify", check=1)
    assert "snapshot" in err and "not what the records make" in err
    tamper(stopped, "DELETE FROM snapshot")
    assert "chain unbroken" in command(stopped, "journal", "verify", check=0)


def test_a_record_is_compared_with_what_somebody_else_knows(stopped: Agent) -> None:
    """A whole journal that was written anew has a whole chain; the root has the hashes of the real one."""
    db = sqlite3.connect(stopped.journal)
    seq, hash_ = db.execute("SELECT seq, hash FROM record ORDER BY seq DESC LIMIT 1").fetchone()
    db.close()
    command(stopped, "journal", "verify", "--expect", f"{seq}:{hash_}", check=0)
    assert f"record {seq}" in command(stopped, "journal", "verify", "--expect", f"{seq}:{'0' * 64}", check=1)
    assert "is missing" in command(stopped, "journal", "verify", "--expect", f"{seq + 1}:{hash_}", check=1)
    assert "SEQ:HASH" in command(stopped, "journal", "verify", "--expect", "7", check=2)


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
    bad = chain.follow(
        records, type="declared", actor=declared["actor"], data={"resources": values, "cause": "declare"}
    )
    whole = [x for x in [*lines, bad] if "end" not in x]
    out.write_text("".join(json.dumps(x) + "\n" for x in [*whole, chain.end(whole)]))
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


# -- a journal that has lost its end --------------------------------------------------------------------------------


def crashed(agent: Agent) -> int:
    """A running agent is killed after some commits; the number of the newest record that it has acknowledged."""
    path = agent.file("lost.conf")
    for i in range(6):
        agent.drift(path, f"kept {i}\n")
        agent.pact("commit", "-m", f"commit {i}")
    seq = int(agent.status()["journal"]["seq"])
    agent.stop(9)
    return seq


def damaged(agent: Agent) -> None:
    log = agent.state_dir / "journal.db-wal"
    with open(log, "r+b") as f:
        f.seek(32 + (os.stat(log).st_size - 32) // 4120 // 2 * 4120 + 200)
        f.write(b"garbage")


@pytest.mark.invariant("J6", "F60")
def test_a_damaged_log_keeps_the_agent_from_starting_until_somebody_accepts_the_loss(
    another: Callable[..., Agent],
) -> None:
    agent = another()
    newest = crashed(agent)
    damaged(agent)
    for _ in range(2):  # the first refusal loses nothing more
        done = agent.refuses_to_start()
        assert done.code == 1 and f"record {newest} was acknowledged" in done.err and "accept-loss" in done.err, done
    assert (agent.state_dir / "journal.db-wal.kept").exists()
    for action in ("verify", "export"):
        assert "is missing: the journal ends before it" in command(agent, "journal", action, check=1)
    assert "--message" in command(agent, "journal", "accept-loss", check=2)
    said = json.loads(command(agent, "--json", "journal", "accept-loss", "-m", "the disk had a bad day"))
    assert said["last"] == newest and 0 < said["first"] <= newest and said["seq"] == said["first"]
    assert "chain unbroken" in command(agent, "journal", "verify")
    assert [p.name for p in agent.state_dir.glob("*.kept*")] == [f"journal.db-wal.kept.{said['seq']}"]
    agent.start()
    (record,) = agent.records("loss_accepted")
    assert (record["seq"], record["actor"]["role"], record["data"]["message"]) == (
        said["seq"],
        "admin",
        "the disk had a bad day",
    )
    assert f"records {said['first']} to {newest} are gone: the disk had a bad day" in agent.pact("log").out
    assert chain.verify(agent.records())
    agent.restart()


def test_a_loss_is_accepted_only_where_there_is_one_and_no_agent_runs(
    stopped: Agent, make_agent: Callable[..., Agent]
) -> None:
    assert "nothing is missing" in command(stopped, "journal", "accept-loss", "-m", "x", check=2)
    stopped.start()
    assert "another agent" in command(stopped, "journal", "accept-loss", "-m", "x", check=1)
    assert "No such file" in command(make_agent(), "journal", "accept-loss", "-m", "x", check=5)


@pytest.mark.invariant("J6", "F60")
def test_a_head_that_is_damaged_is_made_anew_when_somebody_says_so(stopped: Agent) -> None:
    (stopped.state_dir / "journal.head").write_bytes(bytes(8192))
    done = stopped.refuses_to_start()
    assert done.code == 5 and "says nothing that can be believed" in done.err, done
    assert "what is missing is not known" in command(stopped, "journal", "accept-loss", "-m", "rotten sector")
    stopped.start()


@pytest.mark.invariant("J6", "F3", "F55")
def test_who_is_told_that_nothing_was_changed_does_not_find_it_done_later(another: Callable[..., Agent]) -> None:
    """The record was written, and its head was not."""
    agent = another()
    path = agent.file("no.conf")
    agent.drift(path, "wanted\n")
    seq = agent.status()["journal"]["seq"]
    head = agent.state_dir / "journal.head"
    head.rename(agent.state_dir / "away")
    done = agent.pact("commit", "-m", "never", check=5)
    assert "nothing was changed" in done.err and "journal's head" in done.err, done
    assert agent.status()["journal"]["seq"] == seq and agent.change_of(f"file:{path}")
    agent.stop(9)
    (agent.state_dir / "away").rename(head)
    agent.start()
    assert not agent.records("committed") and agent.change_of(f"file:{path}")
    head.rename(agent.state_dir / "away")
    agent.world.path(path).write_text("again\n")
    wait_until(lambda: "error" in agent.status()["journal"], "it is noticed")
    (agent.state_dir / "away").rename(head)
    wait_until(lambda: "error" not in agent.status()["journal"], "it goes on by itself")
    agent.pact("commit", "-m", "now")
    assert chain.verify(agent.records())


@pytest.mark.invariant("J6")
def test_a_start_after_a_kill_finds_the_head_behind_or_right(another: Callable[..., Agent]) -> None:
    agent = another()
    newest = crashed(agent)
    agent.start()
    assert agent.status()["journal"]["seq"] > newest


def test_a_directory_whose_journal_is_gone_is_not_empty(stopped: Agent) -> None:
    out = stopped.base / "export.jsonl"
    command(stopped, "journal", "export", str(out))
    stopped.journal.unlink()
    assert "of a journal that is not there any more" in command(stopped, "journal", "import", str(out), check=2)
    assert stopped.refuses_to_start().code == 1
    (stopped.state_dir / "journal.head").unlink()
    stopped.journal.unlink(missing_ok=True)
    command(stopped, "journal", "import", str(out))
    stopped.start()


@pytest.mark.invariant("J8", "F61")
def test_an_export_that_was_cut_off_is_neither_verified_nor_imported(
    stopped: Agent, make_agent: Callable[..., Agent]
) -> None:
    out = stopped.base / "export.jsonl"
    command(stopped, "journal", "export", str(out))
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-1]))
    fresh = make_agent()
    for args in (("verify", str(out)), ("import", str(out))):
        assert "has no mark at its end" in command(fresh, "journal", *args, check=1)
    command(fresh, "journal", "import", str(out), "--without-mark")
    assert "chain unbroken" in command(fresh, "journal", "verify", str(out), "--without-mark")
    config = f"--config {make_agent().config_path}"
    whole = f"PACT journal export --config {stopped.config_path} | gzip"
    done = pact(stopped, f"{whole} | head -c 900 | zcat 2>/dev/null | PACT journal import /dev/stdin {config}")
    assert done.code == 1 and done.err, done
    done = pact(stopped, f"{whole} | zcat | PACT journal import /dev/stdin {config}")
    assert done.code == 0 and "chain unbroken" in done.out, done


@pytest.mark.invariant("J7", "F4")
def test_an_old_record_that_is_wrong_is_found_behind_the_start_and_stops_all_acting(stopped: Agent) -> None:
    path = f"{TOP}/journal.conf"
    stopped.configure({"state": {"verify": 4}, "window": {"base": "2s"}})
    stopped.start()
    seq = stopped.status()["journal"]["seq"]
    stopped.stop()
    stopped.start()
    wait_until(lambda: not stopped.status()["journal"].get("unverified"), "all is verified")
    stopped.stop()
    tamper(
        stopped,
        "UPDATE record SET body = CAST(replace(CAST(body AS TEXT), '\"t_ns\":', '\"t_ns\":1') AS BLOB) WHERE seq = 1",
    )
    stopped.start()
    wait_until(lambda: stopped.status()["journal"].get("error"), "it is found")
    journal = stopped.status()["journal"]
    assert "journal record 1:" in journal["error"] and journal["trusted"] is False
    written = journal["seq"]
    stopped.world.path(path).write_text("nobody rolls this back\n")
    wait_until(lambda: stopped.status().get("unrecorded"), "it is seen")
    done = stopped.pact("commit", "-m", "x", check=5)
    assert "journal record 1:" in done.err and "import an export" in done.err, done
    stopped.pact("rollback", check=5)
    time.sleep(3)
    assert stopped.world.path(path).read_text() == "nobody rolls this back\n"
    assert stopped.status()["journal"]["seq"] == written > seq
    assert "journal record 1:" in stopped.pact("status").out
    stopped.stop()
    done = stopped.refuses_to_start()
    assert done.code == 1 and "journal record 1:" in done.err, "the next start knows at once"
