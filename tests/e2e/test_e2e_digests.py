"""A short secret cannot be guessed: not from its digest, not from its size, not from the hash of a record."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until

pytestmark = pytest.mark.invariant("S2")

OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}
VIEWER: dict[str, Any] = {"uid": 1236}
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [8]}
OTHERS = (VIEWER, OPS)
LOOKING = (["status", "-v"], ["diff"], ["log", "-n", "1000"], ["export"])
DATA = Path(__file__).parent / "data"
CONTENTS = [f"{n:04d}{end}".encode() for n in range(10_000) for end in ("", "\n")]
HEX = re.compile("[0-9a-f]{12,}")
DIGESTS = {hashlib.sha256(c).hexdigest(): c for c in CONTENTS}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail"], "ops_groups": ["games"]}}


def guessed(text: str) -> set[str]:
    """The contents of four digits whose digests, or the first part of whose digests, stand in a text."""
    words = {word[i : i + 12] for word in HEX.findall(text) for i in range(len(word) - 11)}
    return {content.decode().strip() for digest, content in DIGESTS.items() if digest[:12] in words}


def hash_of(record: dict[str, Any]) -> str:
    body = {k: v for k, v in record.items() if k != "hash"}
    raw = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.sha256(bytes.fromhex(record["prev"]) + raw).hexdigest()


def filled(value: Any, content: bytes) -> Any:
    """A record as somebody completes it who was not shown a content, and guesses it."""
    if isinstance(value, list):
        return [filled(v, content) for v in value]
    if not isinstance(value, dict):
        return value
    out = {k: filled(v, content) for k, v in value.items()}
    if "sha256" in out:
        out["sha256"] = hashlib.sha256(content).hexdigest()
        if "size" in out:
            out["size"] = len(content)
    return out


def pin(agent: Agent, name: str, digits: str, mode: int = 0o600) -> str:
    """A file that root alone may read, with four digits in it, adopted."""
    path = agent.world.path(f"{TOP}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{digits}\n")
    path.chmod(mode)
    agent.adopt(f"file:{TOP}/{name}")
    return f"{TOP}/{name}"


def said(agent: Agent, who: dict[str, Any], looking: Iterable[list[str]] = LOOKING) -> str:
    """Everything that these commands say to somebody, in both forms."""
    out = ""
    for words in looking:
        for more in ([], ["--json"]):
            done = agent.pact(*more, *words, check=None, **who)
            out += done.out + done.err
    return out


def digests(agent: Agent, path: str, **who: Any) -> list[Any]:
    """What is shown of the declared and the actual content of a file that has drifted."""
    (entry,) = [e for e in agent.json("diff", **who)["resources"] if e["id"] == f"file:{path}"]
    return [(entry[side]["sha256"], entry[side]["size"]) for side in ("declared", "actual")]


def test_no_answer_gives_a_pin_away_by_its_digest_or_size(agent: Agent) -> None:
    path = pin(agent, "pin", "1101")
    agent.drift(path, "1102\n")
    agent.pact("rollback", "--all")
    agent.drift(path, "1103\n")
    agent.pact("commit", "--all", "-m", "x")
    agent.drift(path, "1104\n")
    seqs = [["show", str(r["seq"])] for r in agent.records() if path in json.dumps(r)]
    for who in OTHERS:
        text = said(agent, who, [*LOOKING, *seqs])
        assert path in text and guessed(text).isdisjoint(("1101", "1102", "1103", "1104"))
        assert '"size":5' not in text.replace(" ", "")
    assert len(guessed(said(agent, ADMIN, [["diff"]]))) == 2, "admins may read it, and see the digest of any tool"
    shown = digests(agent, path, **VIEWER)
    assert [size for _, size in shown] == [None, None]
    assert shown[0][0] != shown[1][0] and all(d.startswith("keyed:") for d, _ in shown), "it is seen that it differs"
    agent.pact("rollback", "--all")


def test_an_operator_s_own_dry_run_and_commit_give_none_away(agent: Agent) -> None:
    path = pin(agent, "pin-ops", "1201")
    agent.world.sh(f"chown 1234 {path}")
    agent.pact("commit", "--all", "-m", "x", check=None)
    agent.drift_by(1234, path, "1202")
    text = said(agent, OPS, [["rollback", "--dry-run"], ["commit", "-m", "mine"]])
    assert path in text and guessed(text).isdisjoint(("1201", "1202"))


def test_the_hash_of_a_record_tells_nobody_whether_a_guess_is_right(agent: Agent) -> None:
    """Everybody is shown the hashes, which are over everything: who knows all but four digits could try them all."""
    path = pin(agent, "pin-hash", "1301")
    agent.drift(path, "1302\n")
    agent.pact("rollback", "--all")
    shown = [r for r in agent.pact("--json", "log", **VIEWER).lines() if path in json.dumps(r)]
    shown = [r for r in shown if filled(r, b"1301\n") != r]  # a window that was opened tells nothing of the content
    assert {"adopted", "drift_detected", "rollback_started"} <= {r["type"] for r in shown}
    for record in shown:
        for content in (b"1301\n", b"1302\n"):
            assert hash_of(filled(record, content)) != record["hash"], record["type"]
    assert all(hash_of(r) == r["hash"] for r in agent.records()), "who sees them whole can verify them"


def test_the_hash_of_a_record_does_not_tell_a_sysctl_s_value(agent: Agent) -> None:
    key = "aaaa0001-aaaa0001-aaaa0001-aaaa0001"
    agent.world.call(["tee", "/proc/sys/net/ipv4/tcp_fastopen_key"], input=key.encode())
    agent.adopt("sysctl:net.ipv4.tcp_fastopen_key")
    (record,) = agent.pact("--json", "log", "-n", "1", "--type", "adopted", **VIEWER).lines()
    assert key not in json.dumps(record)
    guess = json.loads(json.dumps(record).replace('"value": "(hidden)"', f'"value": "{key}"'))
    assert guess != record and hash_of(guess) != record["hash"]


def test_what_nobody_is_kept_from_is_shown_and_verified_as_ever(agent: Agent) -> None:
    path = agent.file("open.conf", "1501\n")
    agent.drift(path, "1502\n")
    assert guessed(said(agent, VIEWER, [["diff"], ["log", "-n", "1000"]])) >= {"1501", "1502"}
    assert [size for _, size in digests(agent, path, **VIEWER)] == [5, 5]
    agent.declare('[sysctl]\n"net.ipv4.ip_forward" = 0\n')
    records = agent.pact("--json", "log", **VIEWER).lines()
    open_to_all = [r for r in records if "net.ipv4.ip_forward" in json.dumps(r) and r["type"] == "declared"]
    assert open_to_all and all(hash_of(r) == r["hash"] for r in open_to_all)


def test_who_makes_a_file_with_the_guess_cannot_compare(agent: Agent) -> None:
    """Equal contents of two files have digests that are not equal; the same file's have equal ones."""
    path = pin(agent, "pin-mine", "4711")
    mine = pin(agent, "guess", "4712")
    agent.world.sh(f"chown 1236 {mine}")
    agent.pact("commit", "--all", "-m", "x", check=None)
    agent.drift(path, "4799\n")
    agent.drift_by(1236, mine, "4711")
    assert digests(agent, mine, **VIEWER)[1][0] != digests(agent, path, **VIEWER)[0][0]
    before = digests(agent, path, **VIEWER)
    agent.drift(path, "4798\n")
    wait_until(lambda: digests(agent, path, **VIEWER)[1] != before[1], "the new content is seen")
    agent.drift(path, "4799\n")
    wait_until(lambda: digests(agent, path, **VIEWER) == before, "and the old one again")


def test_a_pin_that_is_opened_to_all_by_mistake_stays_one_in_what_leaves(agent: Agent) -> None:
    path = pin(agent, "pin-open", "1701")
    agent.world.path(path).chmod(0o644)
    agent.drifted(f"file:{path}")
    agent.drift(path, "1702\n")
    wait_until(
        lambda: len([r for r in agent.records("drift_detected") if r["data"]["resource"] == f"file:{path}"]) > 1,
        "both are recorded",
    )
    agent.pact("rollback", "--all")
    for who in OTHERS:
        assert guessed(said(agent, who)).isdisjoint(("1701", "1702"))
    agent.world.path(path).chmod(0o644)
    agent.drifted(f"file:{path}")
    agent.pact("commit", "--all", "-m", "it is for everybody now")
    agent.drift(path, "1703\n")
    assert guessed(said(agent, VIEWER, [["diff"]])) >= {"1701", "1703"}


def test_a_file_in_a_closed_directory_gives_none_away(agent: Agent) -> None:
    """Not when it is open again either: what was recorded then says so."""
    path = pin(agent, "shut/pin", "5711", 0o644)
    agent.world.sh(f"chmod 700 {TOP}/shut")
    agent.drift(path, "5712\n")
    agent.pact("rollback", "--all")
    for who in OTHERS:
        assert guessed(said(agent, who)).isdisjoint(("5711", "5712"))
    agent.world.sh(f"chmod 755 {TOP}/shut")
    for who in OTHERS:
        assert "5712" not in guessed(said(agent, who))


def test_a_new_file_in_a_closed_directory_gives_none_away_when_it_is_taken_away(agent: Agent) -> None:
    agent.world.sh(f"mkdir -m 700 {TOP}/new")
    agent.pact("track", f"file:{TOP}/new/**", "report")
    path = agent.world.path(f"{TOP}/new/pin")
    path.write_text("6711\n")
    path.chmod(0o644)
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("rollback", f"file:{TOP}/new/pin")
    assert not path.exists()
    agent.world.sh(f"chmod 755 {TOP}/new")
    for who in OTHERS:
        assert "6711" not in guessed(said(agent, who))
    assert "6711" in guessed(said(agent, {}, [["log", "-n", "1000"]]))
    agent.pact("track", f"file:{TOP}/new/**", "ignore")


def test_an_export_for_others_can_be_declared_and_names_what_it_leaves_out(agent: Agent) -> None:
    path = pin(agent, "pin-export", "1901")
    text = agent.pact("export", **VIEWER).out
    assert f"# of file:{path} something is left out: its content is not world-readable" in text
    assert agent.declare(text, "--dry-run").code == 0
    assert "1901" in agent.pact("export").out


def test_hooks_are_given_no_pin_and_no_key(make_agent: Any) -> None:
    agent = make_agent()
    hooks, out = agent.base / "hooks.d", agent.base / "seen"
    hooks.mkdir()
    (hooks / "10-note").write_text(f"#!/bin/sh\ncat >> {out}\n")
    (hooks / "10-note").chmod(0o755)
    agent.start()
    path = pin(agent, "pin-hooks", "4711")
    agent.declare('[sysctl]\n"net.ipv4.tcp_fastopen_key" = "aaaa0001-aaaa0001-aaaa0001-aaaa0001"\n')
    agent.drift(path, "4712\n")
    agent.pact("rollback", "--all")
    wait_until(lambda: out.exists() and "rolled_back" in out.read_text(), "the hook was told")
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert guessed(out.read_text()) == set() and "aaaa0001" not in out.read_text()
    known = {r["seq"]: r["hash"] for r in agent.records()}
    assert all(known[r["seq"]] == r["hash"] for r in told)
    agent.close()


# -- the key ------------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_only_its_owner_reads_it(make_agent: Any) -> None:
    agent = make_agent(access={"ops_groups": ["games"]})
    agent.start()
    key = agent.state_dir / "digest.key"
    first = key.read_bytes()
    assert len(first) == 32 and key.stat().st_mode & 0o777 == 0o600
    path = pin(agent, "pin-key", "4711")
    agent.drift(path, "4712\n")
    shown = digests(agent, path, **VIEWER)
    agent.restart()
    assert key.read_bytes() == first and digests(agent, path, **VIEWER) == shown
    agent.stop()
    export = agent.pact("journal", "export", "--config", str(agent.config_path)).out
    assert not re.search(r"(?<![0-9a-f])4711(?![0-9a-f])", export), "times and hashes have such digits, too"
    assert first.hex() not in export and base64.b64encode(first).decode() not in export


@pytest.mark.invariant("F67")
@pytest.mark.parametrize("how", ["gone", "short", "open", "link"])
def test_a_lost_key_costs_nothing_but_the_digests_that_others_saw(make_agent: Any, how: str) -> None:
    agent = make_agent()
    agent.start()
    path = pin(agent, f"pin-lost-{how[0]}", "4711")
    agent.drift(path, "4712\n")
    shown = digests(agent, path, **VIEWER)
    agent.stop()
    key = agent.state_dir / "digest.key"
    if how == "short":
        key.write_bytes(b"x")
    elif how == "open":
        key.chmod(0o644)
    else:
        key.unlink()
        if how != "gone":
            key.symlink_to(agent.base / "agent.toml")
    agent.start()
    status = agent.status()
    assert (status["declared"], status["drifted"], status["unreadable"]) == (1, 1, 0)
    assert digests(agent, path, **VIEWER) != shown
    assert len(key.read_bytes()) == 32 and not key.is_symlink() and key.stat().st_mode & 0o777 == 0o600
    assert ("a new key was made" in agent.log()) == (how != "gone")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "4711\n"
    assert agent.pact("journal", "verify", str(agent.journal)).code == 0
    agent.close()


# -- a journal of the version before --------------------------------------------------------------------------------------


@pytest.fixture
def old(make_agent: Any, world: World) -> Iterator[Agent]:
    """An agent on a journal that the last version without keyed digests has written: ``/srv/old/pin`` (0600) is
    declared with 4711, was rolled back from 4712 to it, and has drifted to 4713."""
    agent = make_agent(window={"base": "87600h", "floor": "60s"})  # however old its drift is by now
    agent.state_dir.mkdir(mode=0o700)
    agent.pact("journal", "import", str(DATA / "journal-bare-digests.jsonl"), "--config", str(agent.config_path))
    world.sh(
        f"mkdir -p {TOP}/old; printf '4713\\n' > {TOP}/old/pin; chmod 600 {TOP}/old/pin; echo open > {TOP}/old/open"
    )
    agent.start()
    yield agent
    agent.close()
    shutil.rmtree(world.path(f"{TOP}/old"))


def test_an_older_journal_goes_on_as_it_was(old: Agent) -> None:
    path = f"{TOP}/old/pin"
    status = old.status()
    assert (status["declared"], status["drifted"], status["unreadable"]) == (2, 1, 0)
    assert old.change_of(f"file:{path}")["resources"] == [f"file:{path}"]
    for who in OTHERS:
        assert guessed(said(old, who)) == set(), "not from its old records either"
    old.pact("rollback", "--all")
    assert old.world.path(path).read_text() == "4711\n"
    seq = str(next(r["seq"] for r in old.records("rollback_started")))
    old.pact("show", seq, "--restore", f"{TOP}/old/kept")
    assert old.world.path(f"{TOP}/old/kept").read_text() == "4712\n", "what was kept before is still there"
    old.drift(path, "4714\n")
    old.pact("commit", "--all", "-m", "x")
    old.restart()
    assert old.status()["drifted"] == 0
    assert old.pact("journal", "verify", str(old.journal)).code == 0
    with sqlite3.connect(f"file:{old.journal}?mode=ro", uri=True) as db:
        (body,) = db.execute("SELECT body FROM record WHERE type = 'committed' ORDER BY seq DESC LIMIT 1").fetchone()
    assert "salt" in json.loads(body)["data"]


# -- parameters of modules --------------------------------------------------------------------------------------------------


def closed_parameter() -> tuple[str, str, str]:
    """A module of this kernel, a parameter of it that root alone may read, and its value."""
    for module in sorted(os.listdir("/sys/module")):
        place = Path(f"/sys/module/{module}/parameters")
        for parameter in sorted(os.listdir(place)) if place.is_dir() else ():
            mode = (place / parameter).stat().st_mode
            if mode & 0o400 and not mode & 0o004:
                value = (place / parameter).read_text().strip()
                if len(value) >= 3 and value.isdigit():
                    return module, parameter, value
    pytest.skip("no module of this kernel has a parameter with three digits that only root may read")


@pytest.mark.parametrize("how", ["adopted", "drifted"])
def test_a_module_s_parameter_that_root_alone_may_read_is_shown_to_admins_alone(
    make_agent: Any, base: Path, how: str
) -> None:
    module, parameter, value = closed_parameter()
    text, wanted = base / f"module-{how}.toml", "98765432"
    text.write_text(f'[module]\n{module} = {{parameters = {{{parameter} = "{wanted}"}}}}\n')
    agent = make_agent(
        declared={"files": [str(text)] if how == "drifted" else []},
        mode={"enforcement": "observe"},
        access={"admin_groups": ["mail"], "ops_groups": ["games"]},
    )
    agent.start()
    if how == "adopted":
        agent.adopt(f"module:{module}")
    else:
        agent.drifted(f"module:{module}")
    for who in OTHERS:
        said_to = said(agent, who)
        assert f'"{parameter}":"{value}"' not in said_to and f"{parameter}={value}" not in said_to
        assert wanted not in said_to and f'{parameter} = "{value}"' not in said_to
        assert parameter in said_to and "(hidden)" in said_to
    (record,) = agent.records("adopted" if how == "adopted" else "drift_detected")
    assert record["data"]["salt"]
    if how == "drifted":
        (entry,) = agent.json("diff", **ADMIN)["resources"]
        assert (entry["declared"]["parameters"][parameter], entry["actual"]["parameters"][parameter]) == (wanted, value)
        assert "(hidden)" in agent.pact("diff", **VIEWER).out
    assert (
        parameter in agent.pact("export").out and parameter not in agent.pact("export", **VIEWER).out.split("# of")[0]
    )
    agent.declare(agent.pact("export").out, "--dry-run", check=None)
    agent.close()
