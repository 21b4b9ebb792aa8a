"""A command on nodes of which some do not know the person's account."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_kit import inherited
from streams_kit import Fleet, fleet

pytestmark = pytest.mark.root


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "s").mkdir()
    with fleet(tmp_path / "s") as kit:
        yield kit


def test_an_account_that_one_node_lacks_fails_there_alone(kit: Fleet, tmp_path: Path) -> None:
    """The account is looked for on each node: n4 has one that n1 and n2 have not."""
    for name, row in (("passwd", "x:54321:54321::/:/bin/sh"), ("shadow", "*:19000:0:99999:7:::")):
        (tmp_path / name).write_text(Path(f"/etc/{name}").read_text() + f"visitor:{row}\n")
        (tmp_path / name).chmod(0o600 if name == "shadow" else 0o644)
    kit.add("n4", "node")
    kit.roles["n4"] = "node"
    kit.admit("visitor", "admin")
    lines = f'roots = ["{kit.public["root1"]}"]\nsealed = true\n[shell]\ntranscript = false\n'
    place = kit.write_agent("n4", ("agg1", kit.below), ("agg2", kit.other), cluster=lines)
    words = [sys.executable, "-m", "pact.cli.main", "agent", "--config", str(place)]
    over = " && ".join(f"mount --bind {tmp_path}/{name} /etc/{name}" for name in ("passwd", "shadow"))
    apart = ["unshare", "-m", "sh", "-c", f'{over} && exec "$@"', "sh"]
    with subprocess.Popen(
        [*apart, *words], env={**inherited(), "NOTIFY_SOCKET": ""}, stderr=subprocess.DEVNULL
    ) as agent:
        try:
            kit.connected("n4")
            said = kit.run_pact("--json", "exec", "--nodes", "n[1-2,4]", "--", "id -un", who="visitor")
        finally:
            agent.terminate()
    doc = json.loads(said.stdout)
    assert doc["nodes"]["n4"]["stdout"] == "visitor\n" and doc["nodes"]["n4"]["exit"] == 0, said
    assert set(doc["failed"]) == {"n[1-2]"} and "no account visitor" in doc["failed"]["n[1-2]"], said
    assert said.returncode == 3
    assert kit.run_pact("exec", "--nodes", "n1", "--", "true", who="visitor").returncode == 3
    denied = [r for r in kit.records("n1", "denied") if r["actor"]["user"] == "visitor"]
    assert denied and "no account" in denied[-1]["data"]["why"]
