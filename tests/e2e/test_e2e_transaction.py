"""A transaction of a package manager on a real systemd: the package, its files and the services that its scripts move are
one change of one owner.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness import wait_until
from systemd_kit import TOOLS, Machine, NodeAgent

pytestmark = pytest.mark.needs(*TOOLS, "dpkg-deb")


def package(machine: Machine, version: str) -> str:
    """Its file is configuration of a service, which its script stops."""
    machine.sh(
        "rm -rf /tmp/site; mkdir -p /tmp/site/DEBIAN /tmp/site/etc/site;"
        f"echo {version} > /tmp/site/etc/site/site.conf;"
        f"printf 'Package: site\\nVersion: {version}\\nArchitecture: all\\nMaintainer: us <a@b.c>\\nDescription: x\\n'"
        " > /tmp/site/DEBIAN/control;"
        "printf '#!/bin/sh\\nsystemctl stop served.service\\n' > /tmp/site/DEBIAN/postinst; chmod 755 /tmp/site/DEBIAN/postinst;"
        f"dpkg-deb --build /tmp/site /tmp/site-{version}.deb"
    )
    return f"/tmp/site-{version}.deb"


@pytest.mark.invariant("O5")
def test_what_a_transaction_moves_is_one_change(node: NodeAgent, machine: Machine) -> None:
    machine.service("served", more="ExecStop=/bin/sleep 0.7\n")  # who asks is named while the job runs
    machine.systemctl("enable", "--now", "served")
    machine.sh(f"dpkg -i {package(machine, '1')}")
    machine.systemctl("start", "served")
    node.adopt("file:/etc/site/site.conf", "service:served", "package:site")
    machine.sh(f"dpkg -i {package(machine, '2')}")
    wanted = ["file:/etc/site/site.conf", "package:site", "service:served"]

    def whole() -> Any:
        changes = node.status()["changes"]
        return changes if sorted(r for c in changes for r in c["resources"]) == wanted else None

    changes = wait_until(whole, "all of it has drifted")
    assert [c["resources"] for c in changes] == [wanted], changes
    assert changes[0]["owner"]["run"] == "dpkg" and changes[0]["owner"]["user"] == "root"
    node.pact("commit", changes[0]["id"], "-m", "site 2")
    assert node.status()["state"] == "committed"
