"""Run a command as a unit file says: its umask, limits, capabilities, system calls, namespaces and socket families.

``python under_unit.py UNIT [--uid UID] -- COMMAND...``. It does by libseccomp and prctl what systemd does for these
options (mounts and memory limits are left out), so that the real agent can be shown to work under the unit that is
shipped, where systemd is not process 1. The sets of system calls are systemd's own (``systemd-analyze``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EQUAL, MASKED = 4, 7
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
NAMESPACES = {
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
CAPS = re.findall(
    r"\w+",
    (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
        "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
        "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ),
)
SECTION = "[Service]"


def options(text: str) -> dict[str, list[str]]:
    """What ``[Service]`` says: option -> its values, in order; an empty one forgets those before it."""
    out: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("["):
            inside = line.strip() == SECTION
        if not inside or line.startswith(("#", ";", "[")) or "=" not in line:
            continue
        key, _, value = line.partition("=")
        values = out.setdefault(key.strip(), [])
        if value.strip():
            values.append(value.strip())
        else:
            values.clear()
    return out


def members(names: Iterable[str]) -> set[str]:
    """System calls, sets of them expanded."""
    out: set[str] = set()
    todo, known = list(names), set[str]()
    while todo:
        name = todo.pop()
        if not name.startswith("@"):
            out.add(name)
        elif name not in known:
            known.add(name)
            said = subprocess.run(
                ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
            )
            todo += [line.strip() for line in said.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return out


def allowed(values: Iterable[str]) -> set[str]:
    """What a unit's ``SystemCallFilter`` lets through; the first is a list of what is allowed."""
    out: set[str] = set()
    for value in values:
        names = members(value.removeprefix("~").split())
        out = out - names if value.startswith("~") else out | names
    return out


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """One of libseccomp's; filters add up."""

    def __init__(self, default: int) -> None:
        self.lib = ctypes.CDLL("libseccomp.so.2")
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.lib.seccomp_init(ctypes.c_uint32(default)))

    def rule(self, action: int, name: str, *compare: tuple[int, int, int, int]) -> None:
        number = self.lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # another architecture's
        array = (_Compare * max(1, len(compare)))(*(_Compare(*c) for c in compare))
        code = self.lib.seccomp_rule_add_array(self.context, ctypes.c_uint32(action), number, len(compare), array)
        assert code == 0, (name, os.strerror(-code))

    def load(self) -> None:
        code = self.lib.seccomp_load(self.context)
        assert code == 0, os.strerror(-code)


def apply(unit: dict[str, list[str]], uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    yes = {key for key, values in unit.items() if values == ["yes"]}
    calls = Filter(ERRNO | errno.EPERM)  # systemd-analyze is asked before anything is taken away
    for name in sorted(allowed(unit["SystemCallFilter"])):
        calls.rule(ALLOW, name)
    calls.rule(ALLOW, "execve")
    more = Filter(ALLOW)
    for flag in {f for name, f in NAMESPACES.items() if name not in unit["RestrictNamespaces"][-1].split()}:
        for name, arg in (("unshare", 0), ("clone", 0), ("setns", 1)):
            more.rule(ERRNO | errno.EPERM, name, (arg, MASKED, flag, flag))
    more.rule(ERRNO | errno.EPERM, "setns", (1, EQUAL, 0, 0))  # whichever it is
    more.rule(ERRNO | errno.ENOSYS, "clone3")  # its flags cannot be looked at
    families = {getattr(socket, f).value for v in unit["RestrictAddressFamilies"] for f in v.split()}
    for family in set(range(64)) - families:
        more.rule(ERRNO | errno.EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    if "LockPersonality" in yes:
        for other in (0x0008, 0x0040000, 0x0020000):
            more.rule(ERRNO | errno.EPERM, "personality", (0, EQUAL, other, 0))
    keep = {cap for value in unit["CapabilityBoundingSet"] for cap in value.split()}
    assert keep <= {f"CAP_{c}" for c in CAPS}, keep
    os.umask(int(unit["UMask"][-1], 8))
    resource.setrlimit(resource.RLIMIT_CORE, (int(unit["LimitCORE"][-1]),) * 2)
    for number, cap in enumerate(CAPS):
        if f"CAP_{cap}" not in keep:
            assert libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0, cap
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    assert "NoNewPrivileges" in yes and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if "MemoryDenyWriteExecute" in yes:
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # since Linux 6.3
    more.load()
    calls.load()


def main() -> None:
    at = sys.argv.index("--")
    head, command = sys.argv[1:at], sys.argv[at + 1 :]
    apply(options(Path(head[0]).read_text()), int(head[2]) if len(head) > 2 else 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
