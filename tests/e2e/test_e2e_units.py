"""A real agent, and a real root, with just the rights that the shipped units leave them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import free_ports
from etcd_cluster import MISSING, REASON, EtcdCluster
from harness import REPOSITORY, TOP, Agent, World, environment, wait_until

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
RUN = [sys.executable, str(REPOSITORY / "tests/under_unit.py")]
AGENT, AGGREGATOR = (str(REPOSITORY / f"packaging/pact-{name}.service") for name in ("agent", "aggregator"))
OTHER = 12345


@pytest.fixture(scope="module")
def running(make_agent: Callable[..., Agent]) -> Agent:
    agent = make_agent()
    hooks = agent.base / "hooks.d"
    hooks.mkdir(mode=0o755)
    (hooks / "h").write_text(f"#!/bin/sh\numask > {agent.base}/umask\ncat >> {agent.base}/hooked\n")
    (hooks / "h").chmod(0o755)
    agent.before = [*RUN, AGENT, "--"]
    agent.start()
    return agent


def status(agent: Agent) -> dict[str, str]:
    assert agent.process is not None
    lines = Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.mark.invariant("S10")
def test_it_runs_with_those_rights_only_and_sees_as_without(agent: Agent) -> None:
    now = status(agent)
    assert (now["NoNewPrivs"], now["Seccomp"], now["Umask"]) == ("1", "2", "0077")
    assert int(now["CapBnd"], 16) == int(now["CapEff"], 16)
    assert int(now["CapEff"], 16) & (1 << 25 | 1 << 22 | 1 << 27 | 1 << 13) == 0, (
        "no SYS_TIME, SYS_BOOT, MKNOD, NET_RAW"
    )
    agent.adopt("sysctl:net.core.somaxconn")
    observers = agent.status()["observers"]
    assert observers.get("fanotify") == "ok" and set(observers.values()) <= {"ok"}, observers
    assert agent.pact("check", uid=OTHER, check=0).code == 0, "everybody reaches the socket"


@pytest.mark.invariant("S10")
def test_files_get_back_owner_mode_attributes_and_capabilities(agent: Agent) -> None:
    path = agent.file("setuid.sh", "declared\n")
    hidden = agent.file("closed/secret", "declared\n")
    agent.world.sh(
        f"chown {OTHER}:{OTHER} {path}; chmod 6755 {path}; setfattr -n user.x -v 1 {path}; setfacl -m u:{OTHER + 1}:r {path}; "
        f"chown {OTHER}:{OTHER} {hidden} {TOP}/closed; chmod 600 {hidden}; chmod 700 {TOP}/closed"
    )
    agent.adopt(f"file:{path}", f"file:{hidden}")
    look = f"stat -c '%a %u %g' {path} {hidden}; getfattr -d --absolute-names {path}; getfacl -cp {path}; cat {path} {hidden}"
    before = agent.world.sh(look).out
    agent.world.sh(
        f"setfacl -b {path}; setfattr -x user.x {path}; echo drifted > {path}; chown 0:0 {path} {hidden}; "
        f"chmod 644 {path} {hidden}; echo drifted > {hidden}"
    )
    agent.drifted(f"file:{path}")
    agent.drifted(f"file:{hidden}")
    agent.pact("rollback", "--all")
    assert agent.world.sh(look).out == before
    agent.world.sh(f"rm -r {path} {TOP}/closed")
    agent.drifted(f"file:{path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("S10")
def test_sysctls_are_restored_and_a_window_ends_by_itself(agent: Agent) -> None:
    agent.adopt("sysctl:net.ipv4.ip_forward", "sysctl:net.core.somaxconn")
    before = agent.world.sh("sysctl -n net.core.somaxconn").out
    agent.world.sh("sysctl -w net.core.somaxconn=77 net.ipv4.ip_forward=1")
    agent.drifted("sysctl:net.core.somaxconn")
    agent.drifted("sysctl:net.ipv4.ip_forward")
    agent.pact("rollback", "--all")
    assert agent.world.sh("sysctl -n net.core.somaxconn net.ipv4.ip_forward").out == f"{before}0\n"


@pytest.mark.invariant("S10")
def test_mounts_are_made_remounted_and_taken_off_in_everybodys_namespace(agent: Agent, world: World) -> None:
    point, other = f"{TOP}/scratch", f"{TOP}/extra"
    world.sh(f"mkdir -p {point} {other}; mount -t tmpfs -o size=1m,mode=755 scratch {point}")
    agent.adopt(f"mount:{point}")
    agent.declare(f'[mount."{other}"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["rw", "size=64k"]\n')
    world.sh(f"findmnt -n {other}")
    world.sh(f"umount {point}; mount -o remount,ro {other}")
    agent.drifted(f"mount:{point}")
    agent.drifted(f"mount:{other}")
    agent.pact("rollback", "--all")
    shown = world.sh(f"findmnt -rno OPTIONS {point}; findmnt -rno OPTIONS {other}").out.splitlines()
    assert "size=1024k" in shown[0] and shown[1].startswith("rw"), "seen by another process of the host's namespace"
    world.sh(f"umount {other} {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("commit", "--all", "-m", "gone")
    world.sh(f"mount -t tmpfs scratch {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert world.sh(f"findmnt -n {point}", check=False).code == 1


@pytest.mark.invariant("S10")
def test_what_a_file_system_would_take_is_asked_in_a_namespace_of_its_own(agent: Agent, world: World) -> None:
    world.sh(f"mkdir -p {TOP}/asked")
    done = agent.declare(
        f'[mount."{TOP}/asked"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["nosuch=1"]\n', check=1
    )
    assert "tmpfs does not take the options nosuch=1" in done.err, done


@pytest.mark.invariant("S10")
def test_other_peoples_processes_are_named_and_a_locked_package_manager_is_waited_for(
    agent: Agent, world: World
) -> None:
    path = agent.file("held.conf", mode=0o666)
    agent.drift(path)
    script = f"import os\nos.setgroups([])\nos.setgid({OTHER})\nos.setuid({OTHER})\nheld = open({path!r}, 'a')\nready()"
    holder = world.python(script)
    agent.pact("rollback", check=10)
    (change,) = agent.status()["changes"]
    assert holder.pid in [c["pid"] for c in change["consumers"]], change
    world.end(holder)
    agent.pact("rollback")
    lock = "/var/lib/dpkg/lock-frontend"
    world.sh(
        f"mkdir -p /var/lib/dpkg; mount -t tmpfs tmpfs /var/lib/dpkg; touch {lock}; mount -t tmpfs -o mode=755 tmpfs /opt; "
        "echo declared > /opt/p.conf"
    )
    agent.adopt("file:/opt/p.conf")
    agent.drift("/opt/p.conf")
    manager = world.python(f"import fcntl\nf = open({lock!r}, 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\nready()")
    agent.pact("rollback", check=1)
    assert agent.status()["changes"][0]["reason"].startswith(f"a package manager holds {lock} (pid {manager.pid})")
    world.end(manager)
    agent.pact("rollback", "--all")
    assert world.path("/opt/p.conf").read_text() == "declared\n"
    agent.clear()
    world.sh("umount /var/lib/dpkg /opt")


@pytest.mark.invariant("S10")
def test_hooks_run_with_a_umask_of_their_own(agent: Agent) -> None:
    agent.adopt("sysctl:net.core.somaxconn")
    wait_until(lambda: '"adopted"' in (agent.base / "hooked").read_text(), "the hook has run")
    # A hook for the next record empties the file before it writes.
    assert wait_until((agent.base / "umask").read_text, "the hook has written") == "0022\n"


@pytest.mark.needs("mkfs.ext4", "chattr", "ip")
@pytest.mark.invariant("S10")
@pytest.mark.parametrize(
    ("what", "works"),
    [
        (
            "f=$(mktemp -p /srv) && truncate -s 4M $f && mkfs.ext4 -q $f && mkdir -p /srv/loop && mount -o loop $f /srv/loop && umount /srv/loop",
            True,
        ),
        (f"setpriv --reuid={OTHER} --regid={OTHER} --clear-groups --inh-caps=-all --bounding-set=-all id -u", True),
        ("python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 700))'", True),
        ("chattr +i /srv/f && chattr -i /srv/f", True),
        ("ip link add pact0 type dummy || ip link add pact0 type veth; ip link del pact0", True),
        ("unshare --mount true", True),
        ("nsenter --mount=/proc/self/ns/mnt true", True),
        ("unshare --uts true", False),
        ("unshare --user true", False),
        ("date -s 12:00", False),
        ("mknod /srv/device c 1 3", False),
        ("python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'", False),
    ],
)
def test_what_mount_helpers_and_hooks_may_do_and_what_not(world: World, what: str, works: bool) -> None:
    world.sh("touch /srv/f; ip link set lo up")
    world.sh(what if "date" not in what and "loop" not in what else "true", check=works)
    done = world.call([*RUN, AGENT, "--", "sh", "-c", what], check=False)
    assert (done.code == 0) == works, done


@pytest.mark.invariant("S10")
def test_modprobe_gets_as_far_as_the_kernel(world: World) -> None:
    script = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.syscall(313, -1, b'', 0); print(ctypes.get_errno())"
    )
    free = world.call([sys.executable, "-c", script]).out
    assert world.call([*RUN, AGENT, "--", sys.executable, "-c", script]).out == free, (
        "the kernel's answer, not the filter's"
    )


# -- the aggregator -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def account() -> int:
    """One that has nothing else; root's, without its capabilities, where others may not read this checkout."""
    can = subprocess.run(
        [*RUN, AGGREGATOR, "--uid", str(OTHER), "--", sys.executable, "-c", "import pact, zmq"],
        check=False,
        env=environment(),
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    return OTHER if can.returncode == 0 else 0


@pytest.fixture
def roots_place(base: Path, account: int) -> Iterator[Path]:
    """Configuration of root's, a key and a state directory of the aggregator's account."""
    place = base / "root"
    (place / "keys").mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "pact.cli.main", "keygen", "root1", "--dir", str(place / "keys")],
        check=True,
        env=environment(),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    (place / "state").mkdir(mode=0o700)
    (place / "authorized.toml").write_text("")
    for each in (place / "state", place / "keys/root1.secret"):
        os.chown(each, account, account)
    yield place
    shutil.rmtree(place)


@pytest.mark.invariant("S10")
@pytest.mark.parametrize("log_on", ["sqlite", "etcd"])
def test_a_root_runs_as_an_account_without_any_capability(roots_place: Path, account: int, log_on: str) -> None:
    """It is reached, keeps its log, and ends when it is told to."""
    if log_on == "sqlite":
        runs_as(roots_place, account, f"sqlite://{roots_place}/state/root.db", (roots_place / "state/root.db").exists)
        assert (roots_place / "state/root.db").stat().st_uid == account
        return
    if MISSING:
        pytest.skip(REASON)
    with EtcdCluster(roots_place / "etcd", 1) as etcd:
        runs_as(
            roots_place, account, etcd.url(), lambda: "/pact/" in etcd.ctl("get", "--prefix", "--keys-only", "/pact/")
        )


def runs_as(roots_place: Path, account: int, url: str, kept: Callable[[], bool]) -> None:
    tree, events, replay, http = free_ports(4)
    settings: dict[str, Any] = {"tree": tree, "events": events, "replay": replay}
    (roots_place / "root.toml").write_text(
        '[aggregator]\nname = "root1"\n'
        + "".join(f'{k} = "tcp://127.0.0.1:{v}"\n' for k, v in settings.items())
        + f'http = "127.0.0.1:{http}"\n[journal]\nurl = "{url}"\n'
        f'[keys]\nsecret = "{roots_place}/keys/root1.secret"\nauthorized = "{roots_place}/authorized.toml"\n'
    )
    with open(roots_place / "log", "wb") as log:
        process = subprocess.Popen(
            [
                *RUN,
                AGGREGATOR,
                "--uid",
                str(account),
                "--",
                sys.executable,
                "-m",
                "pact.cli.main",
                "aggregator",
                "--config",
                str(roots_place / "root.toml"),
            ],
            env=environment(),
            cwd="/",
            stdout=log,
            stderr=log,
        )

    def healthy() -> bool:
        assert process.poll() is None, (roots_place / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_until(healthy, "it answers", 30)
        now = Path(f"/proc/{process.pid}/status").read_text()
        assert f"Uid:\t{account}\t{account}" in now and "CapBnd:\t0000000000000000" in now
        wait_until(kept, "it keeps its log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (roots_place / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
