"""Kernel parameters below /proc/sys.

A name is dotted; a ``/`` in it stands for a dot within a component, as sysctl(8) writes it. Values are compared by
their meaning for the kernel (``sysctl_text``), and by its reading of a value that pact wrote (the attribute ``reads``).
Parameters that trigger an action or latch are adopted only by name.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Observation, Unreadable, decode_name, encode_name
from pact.resources.base import (
    COMMON_KEYS,
    LINKS,
    WHOLE_N,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    common,
    errno_text,
    export_common,
    refuse_unknown,
    require_short,
)
from pact.resources.support.sysctl_text import WILD, dotted, fold, same, why_not_literal

ROOT: Final = b"/proc/sys/"
VALUE_MAX: Final = 65536
SHOWN_MAX: Final = 80
NEAR: Final = 0.8  # how similar a key must be to one of an entry's keys to count as a misspelling
NO_SUCH: Final = "the kernel has no such sysctl; is its module loaded?"
CANNOT_GO: Final = "a sysctl cannot be removed; unload the module that brings it"

#: A write to one of these acts or cannot be undone, or it is a secret or an identity: adopted only by name.
TRIGGERS: Final = (
    "vm.drop_caches",
    "vm.compact_memory",
    "vm.stat_refresh",
    "kernel.modules_disabled",
    "kernel.kexec_load_disabled",
    "kernel.unprivileged_bpf_disabled",
    "net.ipv4.route.flush",
    "net.ipv6.route.flush",
    "kernel.sysrq-trigger",
    "kernel.yama.ptrace_scope",
    "kernel.hostname",
    "kernel.domainname",
    "net.ipv4.tcp_fastopen_key",
    "net.ipv6.conf.*.stable_secret",
    "kernel.usermodehelper.*",
    "kernel.ns_last_pid",
    "fs.binfmt_misc.*",
    "kernel.sched_domain.*",
    "dev.cdrom.*",
    "kernel.keys.*",
    "debug.*",
)

#: Secret even while the kernel does not have them (yet), so that no mode of a file can show it.
SECRETS: Final = ("net.ipv4.tcp_fastopen_key", "net.ipv6.conf.*.stable_secret")

#: The kernel changes these by itself: they are always ignored.
VOLATILE: Final = (
    "fs.dentry-state",
    "fs.inode-nr",
    "fs.inode-state",
    "fs.file-nr",
    "fs.aio-nr",
    "fs.quota.*",
    "kernel.random.*",
    "kernel.ns_last_pid",
    "kernel.pty.nr",
    "net.netfilter.nf_conntrack_count",
    "kernel.perf_event_max_sample_rate",
    "vm.stat_refresh",
    "kernel.tainted",
    "fs.epoll.max_user_watches.cur",
    "sunrpc.transports",
    "net.ipv4.conf.*.mc_forwarding",
)


#: A write to one of these changes others: they are restored first.
LEADING: Final = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.forwarding")


def path_of_name(name: str) -> bytes:
    """``net.ipv4.conf.eth0/1.mtu`` -> ``/proc/sys/net/ipv4/conf/eth0.1/mtu``. Raises ValueError."""
    raw = decode_name(name)
    path = raw.translate(bytes.maketrans(b"./", b"/."))
    if raw.startswith(b"/") or b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise ValueError(f"{name!r} is no sysctl name")
    require_short(ROOT + path)
    return ROOT + path


def name_of_path(path: bytes) -> str:
    """The inverse of ``path_of_name``."""
    return encode_name(path[len(ROOT) :].translate(bytes.maketrans(b"./", b"/.")))


class Sysctl(Kind):
    name = "sysctl"
    dimension, severity = "kernel", 0.05
    volatile = True
    removable = False
    follows = ("module", "link")
    moved_by = ("sysctl", "sysfs", "module", "link")
    ignored = VOLATILE
    spelling = "dotted: net.ipv4.ip_forward"
    always_read = one_line = all_secret = True

    def canonical(self, name: str) -> str:
        name = dotted(name)
        path_of_name(name)
        return name

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        why = why_not_literal(name)
        if why and not os.path.exists(path_of_name(name)):  # a network link may have such a name
            raise ValueError(why)
        path_of_name(name)
        fields: dict[str, Any] = {}
        if isinstance(value, dict):
            refuse_unknown(value, frozenset({"value"}))
            fields = common(value)
            if "value" not in value:
                raise ValueError("value is missing")
            value = value["value"]
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            value = " ".join(map(str, value))
        if not isinstance(value, int | str):
            raise ValueError("a sysctl's value is a number or a string")
        text = str(value)
        if "\n" in text.strip() or "\0" in text or len(text) > VALUE_MAX:
            raise ValueError("a sysctl's value is one line")
        return Entry(Declared({"value": fold(text)}, **fields))

    def entries(self, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Names may be written as dotted bare keys, which TOML reads as nested tables. A whole name in quotes, or a
        misspelled key of an entry, marks an entry.
        """
        stack = [("", table)]
        while stack:
            prefix, inner = stack.pop()
            for key, value in inner.items():
                name = f"{prefix}.{key}" if prefix else key
                if isinstance(value, dict) and not _looks_like_entry(key, value):
                    stack.append((name, value))
                else:
                    yield name, value

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        try:
            fd = os.open(path_of_name(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                raw, mode = os.read(fd, VALUE_MAX), os.fstat(fd).st_mode
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except OSError as exc:
            return Unreadable(errno_text("sysctl", exc))
        except ValueError as exc:
            return Unreadable(f"sysctl: {exc}")
        value: Attrs = {"value": fold(raw.replace(b"\0", b" ").decode("utf-8", "backslashreplace"))}
        if not mode & 0o004:
            value["secret"] = True
        return value

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if "reads" in declared and declared["reads"] == fold(actual["value"]):
            return 0
        return 0 if same(declared["value"], actual["value"]) else WHOLE_N

    def rank(self, name: str) -> int:
        """First the parameters that change others, then those of all interfaces."""
        return -2 if name in LEADING else -1 if ".all." in name or ".default." in name else 0

    def moves(self, name: str, other: str) -> bool:
        """Other sysctls; below /sys only what ``vm`` has there under another name."""
        return other.startswith("sysctl:") or name.startswith(("vm.", "kernel."))

    def place(self, name: str) -> str:
        return name.rpartition(".")[0]

    def all_in(self, place: str) -> str:
        return f"{place}.*"

    def reads(self, name: str, target: Attrs | None, actual: Observation) -> str:
        if target is None or not isinstance(actual, dict) or same(target["value"], actual["value"]):
            return ""
        return fold(actual["value"])

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        if step.target is None:
            raise RestoreError(CANNOT_GO)
        try:
            fd = os.open(path_of_name(name), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise RestoreError(NO_SUCH) from None
        try:
            os.write(fd, step.target["value"].encode() + b"\n")
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            shown = "this value" if step.target.get("secret") else repr(step.target["value"][:SHOWN_MAX])  # S2
            raise RestoreError(f"the kernel does not take {shown} now (invalid argument)") from None
        finally:
            os.close(fd)

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Whether the kernel has the parameter and lets it be set. Only a write can show whether it takes the value."""
        save = {"attrs": step.actual}
        if step.target is None:
            return Saved("", save) if step.actual is None else Saved(f"{step.id}: {CANNOT_GO}", save)
        if step.actual is None:
            return Saved(f"{step.id}: {NO_SUCH}", save)
        try:
            writable = os.lstat(path_of_name(name)).st_mode & 0o222
        except OSError as exc:
            return Saved(f"{step.id}: {errno_text('sysctl', exc)}", save)
        return Saved("" if writable else f"{step.id}: the kernel lets nobody set it", save)

    def secret(self, attrs: Attrs | None) -> bool:
        return bool(attrs and attrs.get("secret"))

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """Adds ``secret`` from the mode of the live file: a declaration cannot say it, and an unchecked value must not
        be shown."""
        if attrs is None:
            return None
        try:
            secret = not os.lstat(path_of_name(name)).st_mode & 0o004
        except FileNotFoundError:
            secret = any(fnmatchcase(name, s) for s in SECRETS)
        except OSError:
            secret = True  # it cannot even be examined
        return {**attrs, "secret": True} if secret else attrs

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        value = declared.attrs["value"] if declared.attrs else ""
        short = value.isascii() and value.isdigit() and len(value) < 19  # TOML integers have 64 bits
        exported: Any = int(value) if short and str(int(value)) == value else value
        beside = export_common(declared)
        return {"value": exported, **beside} if beside else exported

    def watch(self, name: str) -> list[bytes]:
        return [path_of_name(name)]

    def heeds(self, what: str, name: str = "") -> bool:
        """Parameters of the network come, go and change with network links."""
        return what == LINKS and (not name or name.startswith("net."))

    def of_path(self, path: bytes) -> str | None:
        return name_of_path(path) if path.startswith(ROOT) else None

    def discover(self, pattern: str) -> Found:
        passed: dict[str, int] = {}
        pattern = dotted(pattern)
        if not WILD.search(pattern) or os.path.exists(path_of_name(pattern)):
            return Found(iter([self.canonical(pattern)]), passed, exact=True)
        return Found(self._names(pattern, passed), passed)

    def pattern(self, text: str) -> str:
        return dotted(text)

    def means(self, pattern: str, name: str) -> bool:
        return super().means(pattern, name) and not any(fnmatchcase(name, t) for t in TRIGGERS)

    def _names(self, pattern: str, passed: dict[str, int]) -> Iterator[str]:
        for top, dirs, files in os.walk(ROOT.rstrip(b"/")):
            dirs.sort()
            for file in sorted(files):
                path = top + b"/" + file
                name = name_of_path(path)
                if not fnmatchcase(name, pattern.replace("**", "*")):
                    continue
                why = self._pass_over(path, name)
                if why:
                    passed[why] = passed.get(why, 0) + 1
                else:
                    yield name

    def _pass_over(self, path: bytes, name: str) -> str:
        if any(fnmatchcase(name, t) for t in TRIGGERS):
            return "acts, latches or is a secret"
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return "unreadable"
        if not mode & 0o222:
            return "read-only"
        if not mode & 0o004:
            return "not world-readable"
        return ""


def _looks_like_entry(key: str, value: Mapping[str, Any]) -> bool:
    if not value or "." in key or "/" in key:
        return True
    keys = ("value", *sorted(COMMON_KEYS))
    return any(difflib.get_close_matches(k, keys, 1, NEAR) for k, v in value.items() if not isinstance(v, dict))


KIND: Final = Sysctl()
