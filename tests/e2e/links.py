"""What the tests of network links share: a link whose other end is in another network namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import Agent

LINK = "link:hsn0"
#: What is seen in time is seen by notifications.
CONFIG: dict[str, Any] = {"observe": {"rescan": "1h"}}


@contextmanager
def far_end(agent: Agent) -> Iterator[int]:
    """A process in another network namespace; its pid."""
    process = agent.world.popen(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield process.pid
    agent.world.end(process)


@contextmanager
def wired(agent: Agent, far: int) -> Iterator[Agent]:
    """``hsn0``, whose other end is there with the address 10.1.0.2."""
    agent.world.sh(
        f"ip link set lo up; ip link add hsn0 type veth peer name far0 netns {far};"
        "ip link set hsn0 up; ip address add 10.1.0.1/16 dev hsn0"
    )
    there(far, "ip link set lo up; ip link set far0 up; ip address add 10.1.0.2/16 dev far0")
    yield agent
    agent.ask("rollback", all=True, force=True, shared=True)
    agent.world.sh("ip link del hsn0", check=False)


def there(far: int, script: str) -> None:
    """A shell command at the other end."""
    subprocess.run(["nsenter", f"--net=/proc/{far}/ns/net", "--", "sh", "-c", script], check=True)


def shown(agent: Agent, name: str = "hsn0") -> Any:
    return (
        agent.world.sh(f"ip -j address show dev {name}").out
        and json.loads(agent.world.sh(f"ip -j address show dev {name}").out)[0]
    )


def is_up(agent: Agent, name: str = "hsn0") -> bool:
    return "UP" in shown(agent, name)["flags"]


def addresses(agent: Agent, name: str = "hsn0") -> set[str]:
    return {f"{a['local']}/{a['prefixlen']}" for a in shown(agent, name)["addr_info"] if a["scope"] == "global"}


def routes(agent: Agent) -> str:
    return agent.world.sh("ip route; ip -6 route").out
