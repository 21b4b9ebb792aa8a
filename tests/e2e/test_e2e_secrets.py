"""Sysctls that only root may read: their values are shown to admins and to nobody else, wherever they came from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import TOP, Agent

pytestmark = pytest.mark.invariant("S2")

NAME = "net.ipv4.tcp_fastopen_key"
KEYS = [f"{n:08x}-{n:08x}-{n:08x}-{n:08x}" for n in (0xAAAA0001, 0xAAAA0002, 0xAAAA0003)]
OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}
VIEWER: dict[str, Any] = {"uid": 1236}
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [8]}
LOOKING = (["status"], ["diff"], ["log"], ["export"])


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail"], "ops_groups": ["games"]}}


def set_key(agent: Agent, key: str) -> None:
    """Not by ``echo``: what stands in a command line is for operators to see."""
    agent.world.call(["tee", "/proc/sys/net/ipv4/tcp_fastopen_key"], input=key.encode())


def nowhere(agent: Agent) -> None:
    """No key in any answer to who is no admin."""
    shows = [["show", str(r["seq"])] for r in agent.records() if "aaaa000" in json.dumps(r)]
    assert shows, "the node's own journal has them"
    for who in (VIEWER, OPS):
        for words in (*LOOKING, *(["--json", *words] for words in (*LOOKING, *shows))):
            assert "aaaa000" not in agent.pact(*words, **who).out, (words, who)


@pytest.mark.parametrize("how", ["declare", "adopt", "apply"])
def test_a_secret_sysctl_s_value_is_shown_to_admins_alone(agent: Agent, how: str) -> None:
    set_key(agent, KEYS[0])
    text = f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n'
    if how == "declare":
        agent.declare(text)
    elif how == "adopt":
        agent.adopt(f"sysctl:{NAME}")
    else:
        set_key(agent, KEYS[1])
        agent.pact("apply", "-", input=text.encode())
    set_key(agent, KEYS[2])
    agent.drifted(f"sysctl:{NAME}")
    nowhere(agent)
    assert KEYS[2] in agent.pact("diff").out and KEYS[2] in agent.pact("diff", **ADMIN).out
    (entry,) = agent.json("diff", **VIEWER)["resources"]
    assert (entry["declared"]["value"], entry["actual"]["value"], entry["hidden"]) == ("(hidden)", "(hidden)", True)
    assert KEYS[0] in agent.pact("export", **ADMIN).out or how == "apply"
    agent.pact("rollback", "--all")
    nowhere(agent)


def test_what_an_operator_may_settle_is_not_shown_to_them(agent: Agent) -> None:
    """An unattributed or own change of a secret: dry run, rollback and commit say its name only."""
    agent.declare(f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n')
    key = f"{TOP}/key"
    agent.world.path(key).write_text(KEYS[1])
    agent.world.sh(f"setpriv --reuid=1234 --regid=1234 --clear-groups --inh-caps=+dac_override,+net_admin "
                   "--ambient-caps=+dac_override,+net_admin sh -c 'read -r line; "
                   f"echo $line > /proc/sys/net/ipv4/tcp_fastopen_key; sleep 1' < {key}")  # fmt: skip  # it stays a while
    change = agent.drifted(f"sysctl:{NAME}")
    assert change["owner"]["uid"] == 1234
    dry = agent.pact("--json", "rollback", "--dry-run", **OPS).out
    assert NAME in dry and "(hidden)" in dry and "aaaa000" not in dry
    assert "aaaa000" in agent.pact("--json", "rollback", "--dry-run", change["id"]).out
    assert "aaaa000" not in agent.pact("--json", "rollback", **OPS).out
    assert KEYS[0] in agent.world.sh("cat /proc/sys/net/ipv4/tcp_fastopen_key").out
    nowhere(agent)


@pytest.mark.parametrize("who", [VIEWER, OPS])
def test_a_watcher_who_is_no_admin_is_not_told_either(agent: Agent, who: dict[str, Any]) -> None:
    set_key(agent, KEYS[0])
    agent.adopt(f"sysctl:{NAME}")
    command = ["timeout", "3", "setpriv", f"--reuid={who['uid']}", f"--regid={who['uid']}",
               "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
               f"--groups={','.join(map(str, who['groups']))}" if "groups" in who else "--clear-groups", "--",
               "python3", "-c", "import socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
               "s.sendall(b'{\"op\":\"watch\"}\\n');print('ready',flush=True)\n"
               "for l in s.makefile():\n print(l,end='',flush=True)\n if 'drift_detected' in l: break", agent.socket]
    watcher = agent.world.popen(command, stdout=-1)
    assert watcher.stdout.readline() == b"ready\n"
    agent.ask("ping")
    set_key(agent, KEYS[1])
    agent.drifted(f"sysctl:{NAME}")
    said = watcher.stdout.read().decode()
    assert "drift_detected" in said and "(hidden)" in said and "aaaa000" not in said
    agent.pact("rollback", "--all")


def test_declared_files_of_the_first_start_are_flagged_too(make_agent: Any, base: Any) -> None:
    text = base / "first.toml"
    text.write_text(f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n"net.ipv6.conf.absent0.stable_secret" = "fe80::aaaa:0001"\n')
    agent = make_agent(declared={"files": [str(text)]}, access={"ops_groups": ["games"]}, mode={"enforcement": "observe"})
    agent.start()
    nowhere(agent)
    for words in (*LOOKING, ["show", "1"], ["show", "0"]):
        assert "fe80::aaaa" not in agent.pact("--json", *words, **VIEWER).out
    assert any("fe80::aaaa:0001" in json.dumps(r) for r in agent.records())
