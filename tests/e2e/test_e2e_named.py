"""What is said names what it is about: who is automatic, what has expired, how many more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, wait_until


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"window": {"base": "1.5s", "floor": "0.2s"}}


def test_an_automatic_rollback_is_told_from_one_that_somebody_asked_for(agent: Agent) -> None:
    path = agent.file("f")
    change = agent.drift(path)["id"]
    agent.settled(f"file:{path}")
    line = agent.pact("log", "--type", "rolled_back", "-n", "1").out
    assert f"{change}  file:{path} (window ended)" in line and " by " not in line
    assert "(window ended)" in agent.pact("log", "--type", "rollback_started", "-n", "1").out
    assert f"rolled back {change} of " in agent.log() and "whose window has ended" in agent.log()
    agent.drift(path)
    agent.pact("rollback", "--all")
    line = agent.pact("log", "--type", "rolled_back", "-n", "1").out
    assert "by root" in line and "window ended" not in line


def test_extend_hints_at_nothing_that_it_does_not_have(agent: Agent) -> None:
    path = agent.file("f", mode=0o666)
    agent.drift_by(1234, path)
    done = agent.pact("extend", "5m", check=1)
    assert "name it: pact extend CHANGE" in done.err and "--all" not in done.err


def test_a_part_of_a_change_is_called_that(agent: Agent) -> None:
    a, b = agent.file("d/a"), agent.file("d/b")
    agent.drift(a)
    change = agent.drift(b)["id"]
    out = agent.pact("commit", f"file:{a}", "-m", "x").out
    assert f"committed a part of {change} (file:{a})" in out and f"still open: the rest of {change}" in out


def test_an_apply_changes_and_a_rollback_restores(agent: Agent) -> None:
    path = agent.file("f")
    text = f'[file."{path}"]\ncontent = "new\\n"\n'.encode()
    for command in ("apply", "declare"):
        out = agent.pact(command, "-", "--dry-run", input=text).out
        assert f"change   file:{path}" in out and "restore" not in out
    agent.drift(path)
    assert f"restore  file:{path}" in agent.pact("rollback", "--dry-run", "--all").out


def test_the_client_is_not_its_own_consumer(agent: Agent) -> None:
    point = f"{TOP}/m"
    agent.world.sh(f"mkdir -p {point} && mount -t tmpfs tmpfs {point}")
    agent.adopt(f"mount:{point}")
    done = agent.world.call(
        [
            "env",
            f"--chdir={point}",
            sys.executable,
            "-m",
            "pact.cli.main",
            "--socket",
            agent.socket,
            "consumers",
            f"mount:{point}",
        ]
    )
    assert "nobody uses" in done.out
    shell = agent.world.popen(["env", f"--chdir={point}", "sleep", "60"])
    wait_until(lambda: "sleep" in agent.pact("consumers", f"mount:{point}").out, "another is one")
    agent.world.end(shell)
    agent.world.sh(f"umount {point}", check=False)


def test_consumers_beyond_what_is_named_are_counted(agent: Agent) -> None:
    path = agent.file("f")
    holder = agent.world.python(
        "f=open(sys.argv[1])\nfor _ in range(230):\n if os.fork()==0:\n  time.sleep(60)\n  os._exit(0)\nready()", path
    )
    document = agent.json("consumers", f"file:{path}")
    assert len(document["consumers"]) == 200 and document["more"] == 31
    assert "and 31 more" in agent.pact("consumers", f"file:{path}").out
    agent.world.sh(f"pids=$(fuser {path} 2>/dev/null); kill $pids", check=False)
    agent.world.end(holder)


def test_a_record_that_keeps_many_contents_names_a_few(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/many && cd {TOP}/many && for n in $(seq 1 30); do echo a > f$n; done")
    agent.adopt(f"file:{TOP}/many/**")
    agent.world.sh(f"cd {TOP}/many && for f in *; do echo b > $f; done")
    agent.settled(f"file:{TOP}/many/f30")
    wait_until(lambda: any(len(r["data"]["plan"]) > 20 for r in agent.records("rollback_started")), "one of many")
    (record,) = [r for r in agent.records("rollback_started") if len(r["data"]["plan"]) > 20]
    err = agent.pact("show", str(record["seq"]), "--restore", f"{agent.base}/x", check=2).err
    assert "more (pact show" in err and err.count(f"file:{TOP}/many/") == 5


def test_a_commit_that_has_expired_names_what_it_was(agent: Agent) -> None:
    from pact.cli.render import View, event_line

    line = event_line(
        {
            "seq": 1,
            "time": "2026-01-01T00:00:00.000000Z",
            "type": "commit_expired",
            "actor": {"user": "pact", "via": "agent"},
            "data": {"resources": {"sysctl:vm.x": None}, "commit": 5, "owner": {"user": "ann"}},
        },
        View(),
    )
    assert "sysctl:vm.x, committed for a time by ann" in line


SECRET = "net.ipv6.conf.lo.stable_secret"  # EIO until somebody has written one


@pytest.mark.skipif(not Path("/proc/sys", *SECRET.split(".")).exists(), reason="this kernel has no IPv6")
def test_what_is_unreadable_is_named_until_it_is_declared_no_more(make_agent: Callable[..., Agent], base: Path) -> None:
    (base / "unread.toml").write_text(f'[sysctl]\n"{SECRET}" = "::1"\n')
    agent = make_agent(declared={"files": [str(base / "unread.toml")]})
    agent.start()
    assert agent.status()["unreadable"] == 1
    assert f"unreadable: sysctl:{SECRET}: " in agent.pact("status").out
    agent.ask("declare", resources={}, prune=True)
    assert agent.status()["unreadable"] == 0 and "unreadable: sysctl" not in agent.pact("status").out
