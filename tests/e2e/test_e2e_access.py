"""Who may do what, what is recorded of those who may not, and what never leaks."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from harness import TOP, Agent

GAMES, MAIL = 60, 8
OPS: dict[str, Any] = {"uid": 1234, "groups": [GAMES]}
OTHER_OPS: dict[str, Any] = {"uid": 1235, "groups": [GAMES]}
VIEWER: dict[str, Any] = {"uid": 1236}
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [MAIL]}
SECRET = "the password is hunter2\n"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail", "no-such-group"], "ops_groups": ["games"]}}


def denials(agent: Agent) -> list[Any]:
    return agent.records("denied")


@pytest.mark.parametrize(
    "words",
    [
        ["commit", "-m", "x"],
        ["commit", "--all", "-m", "x"],
        ["rollback"],
        ["rollback", "--dry-run"],
        ["extend", "1m"],
        ["emergency", "start", "--reason", "x"],
        ["emergency", "end", "--rollback"],
        ["hold", "place", "--reason", "x", "--for", "1m"],
        ["hold", "release"],
        ["adopt", "file:/srv/*"],
        ["rollback", "--to", "0"],
    ],
)
def test_a_viewer_changes_nothing_and_each_attempt_is_recorded(agent: Agent, words: list[str]) -> None:
    path = agent.file("v.conf")
    agent.drift(path)
    before = len(denials(agent))
    err = agent.pact(*words, check=3, **VIEWER).err
    assert "needs the role" in err and len(err.splitlines()) <= 2
    (record,) = denials(agent)[before:]
    assert record["actor"]["uid"] == 1236 and record["actor"]["role"] == "viewer" and record["data"]["request"]
    assert agent.world.path(path).read_text() == "drifted\n" and len(agent.status()["changes"]) == 1


@pytest.mark.parametrize("role", ["ops", "viewer"])
@pytest.mark.parametrize("command", ["apply", "declare"])
def test_only_an_admin_applies_and_declares(agent: Agent, command: str, role: str) -> None:
    before = len(denials(agent))
    text = f'[file."{TOP}/x.conf"]\ncontent = "x"\n'
    agent.pact(command, "-", input=text.encode(), check=3, **(OPS if role == "ops" else VIEWER))
    assert len(denials(agent)) == before + 1 and not agent.world.path(f"{TOP}/x.conf").exists()
    agent.pact(command, "-", input=text.encode(), **ADMIN)
    assert agent.world.path(f"{TOP}/x.conf").read_text() == "x"
    agent.pact("rollback", "--all")
    agent.world.sh(f"rm -f {TOP}/x.conf")


def test_everyone_may_look(agent: Agent) -> None:
    path = agent.file("look.conf")
    agent.drift(path)
    for words in (["status"], ["diff"], ["log"], ["export"], ["consumers", f"file:{path}"], ["show", "0"]):
        agent.pact(*words, **VIEWER)
        agent.pact("--json", *words, **VIEWER)
    agent.pact("check", check=11, **VIEWER)


def test_ops_settle_their_own_and_unattributed_changes_but_not_another_s(agent: Agent) -> None:
    mine, theirs = agent.file("mine.conf", mode=0o666), agent.file("theirs.conf", mode=0o666)
    agent.drift_by(1234, mine)
    other = agent.drift_by(1235, theirs)
    before = len(denials(agent))
    for words in (
        ["commit", other["id"], "-m", "x"],
        ["rollback", other["id"]],
        ["extend", other["id"], "1m"],
        ["hold", "place", other["id"], "--reason", "x", "--for", "1m"],
    ):
        assert "needs the role admin" in agent.pact(*words, check=3, **OPS).err
    assert len(denials(agent)) == before + 4
    agent.pact("commit", "-m", "mine", **OPS)
    agent.pact("rollback", **OTHER_OPS)
    assert agent.world.path(theirs).read_text() == "declared\n" and agent.world.path(mine).read_text() == "x\n"


@pytest.mark.invariant("S1")
def test_writing_another_s_login_gives_nobody_another_s_changes(agent: Agent) -> None:
    theirs = agent.file("theirs.conf", mode=0o666)
    change = agent.drift_by(1235, theirs)
    forge = 'echo 1235 > /proc/self/loginuid && exec "$@"'
    command = [
        "setpriv",
        "--reuid=1234",
        "--regid=1234",
        f"--groups={GAMES}",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--",
        "sh",
        "-c",
        forge,
        "sh",
        sys.executable,
        "-m",
        "pact.cli.main",
        "--socket",
        agent.socket,
        "commit",
        change["id"],
        "-m",
        "x",
    ]
    done = agent.world.call(command, check=False)
    assert (done.code, "needs the role admin" in done.err) == (3, True), done
    actor = denials(agent)[-1]["actor"]
    assert (actor["uid"], actor["user"]) == (1234, "1234")


def test_commit_all_of_an_operator_leaves_what_belongs_to_others(agent: Agent) -> None:
    mine, theirs = agent.file("mine.conf", mode=0o666), agent.file("theirs.conf", mode=0o666)
    agent.drift_by(1234, mine)
    agent.drift_by(1235, theirs)
    answer = agent.json("commit", "--all", "-m", "x", **OPS)
    assert len(answer["committed"]) == 1 and len(answer["left"]) == 1


def test_an_admin_of_a_group_settles_everybody_s(agent: Agent) -> None:
    theirs = agent.file("theirs.conf", mode=0o666)
    agent.pact("commit", agent.drift_by(1235, theirs)["id"], "-m", "x", **ADMIN)
    record = agent.newest("committed")
    assert record["actor"]["uid"] == 1237 and record["actor"]["role"] == "admin"


def test_ops_release_only_their_own_holds(agent: Agent) -> None:
    agent.pact("hold", "place", "--reason", "x", "--for", "1h", **OPS)
    hold = agent.status()["holds"][0]["id"]
    agent.pact("hold", "release", hold, check=3, **OTHER_OPS)
    agent.pact("hold", "release", check=3, **OTHER_OPS)
    agent.pact("hold", "release", hold, **OPS)


def test_content_that_is_not_world_readable_is_shown_only_to_admins(agent: Agent) -> None:
    path = agent.file("secret.conf", SECRET, mode=0o600)
    agent.world.path(path).write_text("now " + SECRET)
    agent.drifted(f"file:{path}")
    for who in (VIEWER, OPS):
        for words in (
            ["diff"],
            ["--json", "diff"],
            ["export"],
            ["--json", "export"],
            ["log"],
            ["--json", "log"],
            ["status"],
            ["--json", "status"],
        ):
            assert "hunter2" not in agent.pact(*words, **who).out, words
    assert "hunter2" in agent.pact("diff").out and "hunter2" in agent.pact("export").out
    assert "hunter2" in agent.pact("diff", **ADMIN).out
    agent.pact("rollback")
    seq = str(agent.newest("rollback_started")["seq"])
    before = len(denials(agent))
    for words in (["show", seq], ["--json", "show", seq]):
        assert "hunter2" not in agent.pact(*words, **VIEWER).out
    agent.pact("show", seq, "--restore", "/tmp/pact-e2e-leak", check=3, **VIEWER)
    assert len(denials(agent)) == before + 1
    assert "hunter2" in agent.pact("show", seq).out


def test_content_made_secret_by_the_drift_or_before_it_is_hidden_too(agent: Agent) -> None:
    path = agent.file("was.conf", SECRET, mode=0o600)
    agent.world.path(path).chmod(0o644)
    agent.drifted(f"file:{path}")
    assert "hunter2" not in agent.pact("diff", **VIEWER).out
    other = agent.file("is.conf", "public\n", mode=0o644)
    agent.world.path(other).chmod(0o600)  # not by a shell: its command line would stand in the journal
    agent.drift(other, SECRET)
    assert "hunter2" not in agent.pact("diff", **VIEWER).out


def test_a_secret_file_never_stands_in_the_journal_s_records(agent: Agent) -> None:
    path = agent.file("never.conf", SECRET, mode=0o600)
    agent.drift(path, "now " + SECRET)
    agent.pact("commit", "-m", "x")
    assert "hunter2" not in str(agent.records())


def test_viewers_see_the_program_s_name_of_other_people_s_commands(agent: Agent) -> None:
    path = agent.file("cmd.conf", mode=0o666)
    # It stays until it was seen: of a writer that is gone nothing is known, and everything would be true.
    writer = agent.world.python(f"open({path!r}, 'w').write('x')\nready()", "--token=hunter2")
    agent.drifted(f"file:{path}")
    agent.world.end(writer)
    for words in (["--json", "status"], ["status"], ["--json", "log", "--type", "drift_detected"], ["log"]):
        assert "token" not in agent.pact(*words, **VIEWER).out
    holder = agent.world.python(f"f = open({path!r})\nready()", "--token=hunter2")
    agent.pact("rollback", check=10)
    for words in (["--json", "status"], ["status"], ["--json", "consumers", f"file:{path}"], ["--json", "log"]):
        assert "token" not in agent.pact(*words, **VIEWER).out, words
    assert "token" in agent.pact("--json", "consumers", f"file:{path}").out
    agent.world.end(holder)


def test_a_viewer_s_log_still_says_what_happened(agent: Agent) -> None:
    agent.drift(agent.file("say.conf"))
    records = agent.pact("--json", "log", "--type", "drift_detected", **VIEWER).lines()
    assert records[0]["data"]["resource"] == f"file:{TOP}/say.conf" and len(records[0]["hash"]) == 64


def test_a_role_is_found_among_hundreds_of_groups(agent: Agent) -> None:
    agent.pact("hold", "release", check=4, uid=1234, groups=[*range(100_000, 100_600), GAMES])


@pytest.mark.invariant("S3")
def test_who_writes_and_asks_in_turn_does_not_fill_the_journal(agent: Agent) -> None:
    """A viewer's question looks first, but of all viewers only so often at what is in constant motion."""
    path = agent.file("mine.conf")
    agent.world.sh(f"chown 1236 {path}")
    agent.pact("commit", "--all", "-m", "m", check=None)
    before, began = len(agent.records()), time.monotonic()
    script = (
        f"import socket, json, time\ns = socket.socket(socket.AF_UNIX)\ns.connect({agent.socket!r})\nf = s.makefile('rb')\n"
        f"end = time.monotonic() + 3\nn = 0\nwhile time.monotonic() < end:\n n += 1\n open({path!r}, 'w').write(str(n))\n"
        ' s.sendall(b\'{"op":"status"}\\n\')\n assert f.readline()\nprint(n)'
    )
    done = agent.world.call(["setpriv", "--reuid=1236", "--regid=1236", "--clear-groups", sys.executable, "-c", script])
    assert int(done.out) > 100
    assert len(agent.records()) - before < 12 * (time.monotonic() - began) + 20
