"""A daemon does not start on what others could have written, and does not read it again later: it says which path."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Agent, Done, environment, toml, wait_until
from warm import warm

from pact.net.keys import keygen

OTHER = 12345
MakeAgent = Callable[..., Agent]


@pytest.fixture
def fresh(make_agent: MakeAgent) -> Iterator[Agent]:
    """An agent that has not run, with a declared file, a source and a hook of root's."""
    agent = make_agent()
    for name in ("hooks.d", "declared", "state", "sock"):
        (agent.base / name).mkdir(mode=0o755)
    (agent.base / "declared/d.toml").write_text('[file."/srv/d.conf"]\nsource = "content"\n')
    (agent.base / "declared/content").write_text("declared\n")
    (agent.base / "hooks.d/h").write_text(f"#!/bin/sh\ncat >> {agent.base}/hooked\n")
    (agent.base / "hooks.d/h").chmod(0o755)
    agent.socket = str(agent.base / "sock/s")
    agent.configure({"declared": {"files": [str(agent.base / "declared/*.toml")]}, "control": {"socket": agent.socket}})
    yield agent
    agent.close()


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    "name",
    ["", "agent.toml", "hooks.d", "hooks.d/h", "declared", "declared/d.toml", "declared/content", "state", "sock"],
)
@pytest.mark.parametrize("how", ["group", "owner"])
def test_an_agent_does_not_start_on_what_others_could_have_written(fresh: Agent, name: str, how: str) -> None:
    path = fresh.base / name
    if how == "group":
        path.chmod(path.stat().st_mode | 0o020)
    else:
        os.chown(path, OTHER, OTHER)
    done = fresh.refuses_to_start()
    assert done.code == 2, done
    assert f": {path} " in done.err and ("may be written by" if how == "group" else f"uid {OTHER}") in done.err, (
        done.err
    )
    assert f"chmod go-w {path}" in done.err if how == "group" else f"chown root {path}" in done.err
    assert not os.path.exists(fresh.socket) and not (fresh.base / "hooked").exists()
    if how == "group":
        path.chmod(path.stat().st_mode & ~0o020)
    else:
        os.chown(path, 0, 0)
    fresh.start()
    assert fresh.status()["declared"] == 1


@pytest.mark.invariant("S9")
def test_what_changes_later_is_asked_about_again(fresh: Agent) -> None:
    fresh.configure({"mode": {"enforcement": "observe"}})
    fresh.start()
    assert fresh.process is not None
    fresh.configure({"mode": {"enforcement": "enforce"}})
    fresh.config_path.chmod(0o666)
    fresh.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "was not read again" in fresh.log(), "the file is refused")
    assert f"{fresh.config_path} may be written by everybody" in fresh.log()
    assert fresh.status()["mode"] == "observe"
    fresh.config_path.chmod(0o644)
    fresh.process.send_signal(signal.SIGHUP)
    wait_until(lambda: fresh.status()["mode"] == "enforce", "it is read now")
    wait_until((fresh.base / "hooked").exists, "the hook runs")
    os.chown(fresh.base / "hooks.d", OTHER, OTHER)
    fresh.adopt("sysctl:net.core.somaxconn")
    wait_until(lambda: "is not run" in fresh.log(), "the hook is refused")
    assert f"{fresh.base}/hooks.d belongs to uid {OTHER}" in fresh.log()
    assert '"adopted"' not in (fresh.base / "hooked").read_text()


def aggregator(base: Path) -> Done:
    """Run it where it cannot start."""
    words = ["aggregator", "--config", str(base / "root.toml")]
    code, out, err = warm("aggregators", environment()).call(words, environment(), 0, b"", 30)
    return Done(code, out.decode(), err.decode())


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    "name", ["", "root.toml", "keys", "keys/root1.secret", "authorized.toml", "data", "data/root.db"]
)
def test_an_aggregator_does_not_start_on_what_others_could_have_written(tmp_path: Path, name: str) -> None:
    base = tmp_path / "agg"
    (base / "data").mkdir(parents=True)
    (base / "keys").mkdir(mode=0o700)
    keygen("root1", str(base / "keys"))
    (base / "authorized.toml").write_text("")
    (base / "data/root.db").write_bytes(b"")
    (base / "root.toml").write_text(
        f'[aggregator]\nname = "root1"\ntree = "tcp://127.0.0.1:1"\nhttp = ""\n[journal]\nurl = "sqlite://{base}/data/root.db"\n'
        f'[keys]\nsecret = "{base}/keys/root1.secret"\nauthorized = "{base}/authorized.toml"\n'
    )
    path = base / name
    os.chown(path, OTHER, OTHER)
    done = aggregator(base)
    assert done.code == 2 and f": {path} belongs to uid {OTHER}" in done.err, done
    os.chown(path, 0, 0)
    (base / "root.toml").write_text((base / "root.toml").read_text().replace("name", "nam"))
    assert "nam" in aggregator(base).err, "now it is only its configuration that is wrong"


@pytest.mark.invariant("S9")
def test_a_socket_in_the_state_directory_that_a_kill_left_is_in_nobody_s_way(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.socket = str(agent.state_dir / "s")
    agent.config["control"]["socket"] = agent.socket
    agent.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    agent.config_path.write_text(toml(agent.config))
    agent.start()
    agent.restart(signal.SIGKILL)
    assert agent.ask("ping")["ok"]
    agent.close()
