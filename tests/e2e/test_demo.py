"""``make demo`` does what it promises: as root, and through user namespaces; and says so where neither is possible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 1000


def run(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    started = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert time.monotonic() - started < 60
    return done.returncode, done.stdout + done.stderr


def complete(code: int, out: str) -> None:
    assert code == 0, out
    assert "Every step was verified against the kernel" in out and "\x1b" not in out
    for step in ("Declared state", "seen at once", "window ends", "is refused", "Emergency", "chained by hashes"):
        assert step in out
    assert re.search(r"used by \S+ \(cwd\): sleep 1000", out) and out.count("   ✓ ") >= 18


def outside() -> list[str]:
    """This machine's mounts, but for those of tests that run beside this one, and a sysctl."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [*(m for m in mounts if "/tmp/" not in m), Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text()]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_demo_runs_as_root() -> None:
    before = outside()
    complete(*run([sys.executable, str(REPOSITORY / "demo/demo.py")], {}))
    assert before == outside()


@pytest.fixture
def readable() -> Iterator[list[str]]:
    """A copy of the tree, and an interpreter, that a user without rights can read: the words before ``demo.py``."""
    major_minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = next(
        (
            p
            for p in (sys.executable, f"/usr/bin/{major_minor}", f"/usr/local/bin/{major_minor}")
            if os.access(p, os.X_OK) and _open_to_all(Path(p).resolve())
        ),
        None,
    )
    if found is None:
        pytest.skip("no interpreter of this version is open to other users")
    import orjson

    packages = Path(orjson.__file__).parents[1]
    if not _open_to_all(packages):
        pytest.skip("the packages are not open to other users")
    copy = Path(tempfile.mkdtemp(prefix="pact-demo-tree-"))
    copy.chmod(0o755)
    for name in ("pact", "demo"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    yield ["env", f"PYTHONPATH={packages}", found, str(copy / "demo/demo.py")]
    shutil.rmtree(copy)


def _open_to_all(path: Path) -> bool:
    return all(p.stat().st_mode & 0o005 == 0o005 for p in (path, *path.parents))


def test_the_demo_runs_through_user_namespaces(readable: list[str]) -> None:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    probe = subprocess.run([*user, "unshare", "-Urmn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("user namespaces are not allowed here")
    complete(*run([*user, *readable], {}))


def test_the_demo_says_so_where_no_namespaces_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho unshare: Operation not permitted >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    code, out = run([sys.executable, str(REPOSITORY / "demo/demo.py")], {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert code == 1 and "user namespaces" in out and "Traceback" not in out


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd not installed: apt-get install etcd-server")
def test_the_clusters_demo_runs_with_fewer_nodes() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "demo/cluster.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PACT_DEMO_NODES": "9"},
        check=False,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )
    out = done.stdout + done.stderr
    assert done.returncode == 0, out
    assert "Every step was verified on the nodes" in out and "\x1b" not in out and out.count("   ✓ ") >= 11
    for step in ("used by sleep of", "kill -9 etcd member", "kill -9 aggregator", "owed: n03"):
        assert step in out
