"""The unit files: what they take away, what they must never take away, and the account of the aggregator."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from under_unit import allowed, options

PACKAGING = Path(__file__).parent.parent / "packaging"
AGENT, AGGREGATOR = (PACKAGING / f"pact-{name}.service" for name in ("agent", "aggregator"))

#: Options with which systemd gives a service a mount namespace (``exec_needs_mount_namespace``, also of later versions),
#: or another namespace whose sysctls and names are not the host's.
OWN_NAMESPACE = re.compile(
    r"(?:Private|Protect)\w+|DynamicUser|(?:Read(?:Write|Only)|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths"
    r"|(?:Read(?:Write|Only)|Inaccessible)Directories|TemporaryFileSystem|Root\w+|Mount(?:APIVFS|Images|Flags)|Extension\w+"
    r"|ProcSubset|(?:Load|Set|Import)Credential\w*|LogNamespace|NetworkNamespacePath|IPCNamespacePath|UserNamespacePath"
    r"|BindLogSockets|JoinsNamespaceOf"
)
#: What would break restoring or mounting: setuid files, the observers' thread, disks.
BREAKS = {"RestrictSUIDSGID", "RestrictRealtime", "ProtectHostname", "ProtectClock", "DeviceAllow", "DevicePolicy"}
NEEDED = {
    "fanotify_init",
    "fanotify_mark",
    "openat2",
    "mount",
    "umount2",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "finit_module",
    "delete_module",
    "fchown",
    "fchmod",
    "fsetxattr",
    "setfsuid",
    "chroot",
    "open_by_handle_at",
    "sched_setscheduler",
    "pidfd_open",
    "close_range",
    "renameat2",
    "copy_file_range",
}

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def namespaces(text: str) -> list[str]:
    """Options in force that would give the service a namespace of its own, wherever they stand in the file."""
    return [
        key
        for key, values in options(re.sub(r"^\[\w+\]", "[Service]", text, flags=re.MULTILINE)).items()
        if OWN_NAMESPACE.fullmatch(key) and {v.lower() for v in values} - {"no", "false", "off", "0"}
    ]


@pytest.mark.invariant("S10")
def test_nothing_gives_the_agent_mounts_of_its_own() -> None:
    assert namespaces(AGENT.read_text()) == []


@pytest.mark.invariant("S10")
@pytest.mark.parametrize(
    "line",
    [
        "ProtectHome=yes",
        "ProtectHome=read-only",
        "ProtectSystem=full",
        "PrivateTmp=yes",
        "PrivateTmp=disconnected",
        "PrivateMounts=yes",
        "PrivateDevices=true",
        "ReadWritePaths=/etc",
        "ReadOnlyPaths=-/usr",
        "InaccessiblePaths=/x",
        "NoExecPaths=/",
        "BindPaths=/a:/b",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=1",
        "ProtectKernelLogs=on",
        "ProtectControlGroups=strict",
        "ProtectProc=invisible",
        "ProcSubset=pid",
        "TemporaryFileSystem=/x",
        "DynamicUser=yes",
        "RootDirectory=/x",
        "MountFlags=slave",
        "LoadCredential=a:/b",
        "PrivateNetwork=yes",
        "PrivateIPC=yes",
        "LogNamespace=x",
        "ProtectHostname=yes",
        "ProtectClock=yes",
    ],
)
def test_an_option_that_would_is_found(line: str) -> None:
    key = line.partition("=")[0]
    assert namespaces(AGENT.read_text().replace("[Install]", f"{line}\n\n[Install]")) == [key]
    assert namespaces(AGENT.read_text().replace("[Unit]", f"[Unit]\n{line}")) == [key]


@pytest.mark.invariant("S10")
def test_the_agents_unit_takes_nothing_that_restoring_needs() -> None:
    unit = options(AGENT.read_text())
    assert BREAKS & set(unit) == set()
    assert {
        "CAP_CHOWN",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_SETFCAP",
        "CAP_LINUX_IMMUTABLE",
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_LEASE",
        "CAP_SYS_CHROOT",
        "CAP_SYS_MODULE",
        "CAP_NET_ADMIN",
        "CAP_SYS_NICE",
    } <= set(" ".join(unit["CapabilityBoundingSet"]).split())
    said = AGENT.read_text()
    for name in ("RestrictSUIDSGID", "RestrictRealtime", "ProtectClock"):
        assert re.search(rf"^# .*\b{name}\b", said, re.MULTILINE), "why it is left out"


@pytest.mark.invariant("S10")
@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR], ids=lambda p: p.stem)
def test_both_units_take_what_neither_needs(unit: Path) -> None:
    found = options(unit.read_text())
    said = {key: values[-1] if values else "" for key, values in found.items()}
    assert said["NoNewPrivileges"] == said["MemoryDenyWriteExecute"] == said["LockPersonality"] == "yes"
    assert (said["UMask"], said["LimitCORE"]) == ("0077", "0")
    assert "MemoryMax" in said and said["SystemCallFilter"] and said["SystemCallArchitectures"] == "native"
    caps = set(" ".join(found["CapabilityBoundingSet"]).split())
    assert not caps & {
        "CAP_SYS_TIME",
        "CAP_SYS_BOOT",
        "CAP_MKNOD",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_NET_RAW",
        "CAP_SYSLOG",
        "CAP_MAC_ADMIN",
        "CAP_MAC_OVERRIDE",
        "CAP_AUDIT_CONTROL",
    }


@pytest.mark.invariant("S10")
def test_the_aggregator_has_an_account_a_place_and_no_capability(tmp_path: Path) -> None:
    unit = options(AGGREGATOR.read_text())
    assert (unit["User"], unit["Group"], unit["CapabilityBoundingSet"]) == (["pact"], ["pact"], [])
    assert unit["StateDirectory"] != options(AGENT.read_text())["StateDirectory"], "systemd would give it away"
    url = re.search(r'^url = "sqlite://(.*)/root.db"', (PACKAGING / "aggregator.toml").read_text(), re.MULTILINE)
    assert url is not None and url[1] == f"/var/lib/{unit['StateDirectory'][0]}"
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("needs systemd-sysusers")
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(PACKAGING / "pact.sysusers")], check=True)
    (account,) = [
        line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("pact:")
    ]
    assert account[2] != "0" and account[5:] == [f"/var/lib/{unit['StateDirectory'][0]}", "/usr/sbin/nologin"]


@analyze
@pytest.mark.invariant("S10")
def test_the_filters_let_through_what_is_needed_and_nothing_that_is_not() -> None:
    agent, aggregator = (allowed(options(u.read_text())["SystemCallFilter"]) for u in (AGENT, AGGREGATOR))
    assert NEEDED - agent == set()
    never = {
        "settimeofday",
        "clock_settime",
        "adjtimex",
        "reboot",
        "kexec_load",
        "swapon",
        "iopl",
        "ioperm",
        "bpf",
        "ptrace",
        "perf_event_open",
        "process_vm_writev",
        "acct",
        "sethostname",
    }
    assert agent & never == aggregator & never == set()
    assert aggregator & {"mount", "chown", "setuid", "fanotify_init", "init_module", "chroot"} == set()
    assert {"prlimit64", "socket", "fdatasync", "epoll_wait"} <= aggregator


@analyze
@pytest.mark.invariant("S10")
@pytest.mark.parametrize(("unit", "most"), [(AGENT, 6.6), (AGGREGATOR, 1.5)], ids=["agent", "aggregator"])
def test_systemd_finds_little_exposed_and_nothing_misspelt(unit: Path, most: float, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(unit)], capture_output=True, text=True, check=False
    )
    level = re.search(r"Overall exposure level for [\w-]+\.service: ([\d.]+)", done.stdout)
    assert level is not None and float(level[1]) <= most, done.stdout + done.stderr
    runnable = tmp_path / unit.name
    runnable.write_text(unit.read_text().replace("/usr/bin/pact", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(runnable)], capture_output=True, text=True, check=False)
    assert unit.name not in done.stderr, done.stderr
