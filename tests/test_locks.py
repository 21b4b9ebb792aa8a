"""What a package manager at work stops, and what is none of its business."""

from __future__ import annotations

import pytest

from pact.core.plan import Step
from pact.resources.support.locks import owned


@pytest.mark.invariant("R3")
@pytest.mark.parametrize(
    "resource",
    [
        "file:/etc/chrony.conf",
        "file:/etc",
        "file:/usr/lib/x",
        "file:/lib/x",
        "file:/lib64/x",
        "file:/bin/sh",
        "file:/sbin/x",
        "file:/boot/x",
        "file:/opt/x/y",
        "file:/var/lib/x",
        "mount:/usr",
        "mount:/usr/share",
        "mount:/var",
        "mount:/",
        "module:nvidia",
        "service:slurmd",
        "package:nvidia-driver",
    ],
)
def test_what_packages_may_own_waits_for_them(resource: str) -> None:
    assert owned(Step(resource, None, None))


@pytest.mark.parametrize(
    "resource",
    [
        "sysctl:vm.swappiness",
        "link:hsn0",
        "file:/home/ann/x",
        "file:/scratch/x",
        "file:/srv/x",
        "file:/root/x",
        "file:/usr/local/etc/x",
        "file:/var/spool/slurm/x",
        "file:/var/tmp/x",
        "file:/var/log/x",
        "mount:/scratch",
        "mount:/home",
        "mount:/var/spool/x",
        "file:/etcetera/x",
        "file:/library",
        "file:/data/usr/x",
    ],
)
def test_what_they_never_touch_does_not(resource: str) -> None:
    assert not owned(Step(resource, None, None))
