"""Values below /sys: huge pages, CPU governors, queues of block devices, parameters of modules.

A name is a path below /sys, without ``/sys``. Links of sysfs are followed, because only the kernel makes them, but no
way leads out of sysfs to another file system. What is chosen among choices in brackets is the value. Values are
compared by their meaning for the kernel (``sysfs_values``), and by its reading of a value that pact wrote (the
attribute ``reads``). A device that is not there is absent: nobody can bring it back by writing, so a plan says so and
touches nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, Final

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Observation, Unreadable, decode_name, encode_name
from pact.resources.base import (
    WHOLE_N,
    Blobs,
    Drained,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    Source,
    common,
    errno_text,
    export_common,
    refuse_unknown,
)
from pact.resources.support import sysfs_names as names
from pact.resources.support.sysctl_text import why_not_literal
from pact.resources.support.sysfs_values import LISTED, choices, equal, is_numbers, shown, value_of

#: The kernel gives a value one page. More is the content of a binary attribute.
VALUE_MAX: Final = 4096
SHOWN_MAX: Final = 80
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_BENEATH: Final = 0x08
RESOLVE: Final = RESOLVE_NO_XDEV | RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
WRITE: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
NO_SUCH: Final = "the kernel has no such value there"
CANNOT_GO: Final = "a value of sysfs cannot be removed"
ACTS: Final = "acts, latches, or has an effect when it is read"

#: How much of something there is: the kernel gives as much as it can.
AMOUNT: Final = re.compile(r"/nr_hugepages(?:_mempolicy)?\Z")

#: Links and block devices that belong to containers, or whose names another one has after the next start.
FLEETING: Final = (
    ("class/net/", ("veth", "docker", "cali", "cni", "flannel", "br-", "virbr", "vnet", "tap", "tun", "lxc", "kube")),
    ("block/", ("loop", "ram", "dm-", "nbd")),
)


class Sysfs(Kind):
    """``root`` can be set for tests of what this machine does not have."""

    name = "sysfs"
    dimension, severity = "kernel", 0.05
    volatile = comes_back = True
    removable = False
    follows = ("module",)
    moved_by = ("sysfs", "sysctl", "module")
    spelling = "a path below /sys, as kernel/mm/ksm/run"
    always_read = one_line = all_secret = True

    def __init__(self, root: bytes = names.ROOT) -> None:
        self.root = root

    def canonical(self, name: str) -> str:
        return names.canonical(name)

    def pattern(self, text: str) -> str:
        return names.pattern(text)

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        why = why_not_literal(name)
        if why and not os.path.exists(self._path(name)):  # a device may have such a name
            raise ValueError(why)
        fields: dict[str, Any] = {}
        if isinstance(value, dict):
            refuse_unknown(value, frozenset({"value"}))
            fields = common(value)
            if "value" not in value:
                raise ValueError("value is missing")
            value = value["value"]
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, int | str):
            raise ValueError("a value of sysfs is a number or a string")
        text = value_of(str(value))
        if "\n" in text or "\0" in text or len(text.encode()) >= VALUE_MAX:
            raise ValueError("a value of sysfs is one line")
        return Entry(Declared({"value": text}, **fields))

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        try:
            raw, mode = self._read(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # the device left while its directory is still there
                return None
            return Unreadable(_why(exc))
        except ValueError as exc:
            return Unreadable(f"sysfs: {exc}")
        if len(raw) > VALUE_MAX or b"\0" in raw:
            return Unreadable("sysfs: it is not text, or longer than a page")
        text = value_of(raw.decode("utf-8", "backslashreplace"))
        if "\n" in text:
            return Unreadable("sysfs: it has more than one line")
        value: Attrs = {"value": text}
        if not mode & 0o004:
            value["secret"] = True
        return value

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if "reads" in declared and declared["reads"] == actual["value"]:
            return 0
        return 0 if equal(declared["value"], actual["value"]) else WHOLE_N

    def lingers(self, name: str) -> bool:
        """The driver of a device may ask the device, which may not answer."""
        return not names.is_tunable(name)

    def rank(self, name: str) -> int:
        """What decides whether others are there, or sets them all, comes first."""
        leaf = name.rpartition("/")[2]
        early = name.endswith("smt/control") or leaf in ("online", "status", "scheduler", "scaling_governor")
        return -2 if early else -1 if name.startswith("kernel/mm/hugepages/") else 0

    def moves(self, name: str, other: str) -> bool:
        """What belongs to the same device or part of the kernel; CPUs and pools of huge pages move others of theirs."""
        kind, _, theirs = other.partition(":")
        if AMOUNT.search(name):
            return AMOUNT.search(theirs) is not None or theirs.startswith("vm.")
        return kind == self.name and family(name) == family(theirs)

    def reads(self, name: str, target: Attrs | None, actual: Observation) -> str:
        """Only of numbers: a word that reads as another word was not taken. An amount that the kernel could not reach
        is no rounding either.  # D5"""
        if target is None or not isinstance(actual, dict) or equal(target["value"], actual["value"]):
            return ""
        rounded = is_numbers(target["value"]) and is_numbers(actual["value"]) and not AMOUNT.search(name)
        return str(actual["value"]) if rounded else ""

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        if step.target is None:
            raise RestoreError(CANNOT_GO)
        text = step.target["value"]
        try:
            fd = self._open(name, WRITE)
        except (FileNotFoundError, NotADirectoryError):
            raise RestoreError(self._why_absent(name)) from None
        try:
            # A parameter that is a string keeps the end of a line.
            os.write(fd, text.encode() + (b"" if name.startswith("module/") and text else b"\n"))
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            what = "this value" if step.target.get("secret") else repr(text[:SHOWN_MAX])  # S2
            raise RestoreError(f"the kernel does not take {what} now (invalid argument)") from None
        finally:
            os.close(fd)

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Whether the kernel has the value, lets it be set, and has this choice."""
        save = {"attrs": step.actual}
        if step.target is None:
            return Saved("", save) if step.actual is None else Saved(f"{step.id}: {CANNOT_GO}", save)
        if step.actual is None:
            return Saved(f"{step.id}: {self._why_absent(name)}", save)
        try:
            raw, mode = self._read(name)
        except OSError as exc:
            return Saved(f"{step.id}: {_why(exc)}", save)
        if not mode & 0o222:
            return Saved(f"{step.id}: the kernel lets nobody set it", save)
        known = choices(raw.decode("utf-8", "backslashreplace")) or self._listed(name)
        wanted = step.target["value"]
        if known and not any(equal(wanted, word) for word in known):
            what = "this value" if step.target.get("secret") else repr(wanted[:SHOWN_MAX])  # S2
            return Saved(f"{step.id}: {what} is none of the kernel's choices here: {shown(known)}", save)
        return Saved("", save)

    def secret(self, attrs: Attrs | None) -> bool:
        return bool(attrs and attrs.get("secret"))

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """Adds ``secret`` from the mode of the live file: a declaration cannot say it."""
        if attrs is None:
            return None
        try:
            secret = not os.stat(self._path(name)).st_mode & 0o004
        except (FileNotFoundError, NotADirectoryError):
            secret = False
        except OSError:
            secret = True  # it cannot even be examined
        return {**attrs, "secret": True} if secret else attrs

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        value = declared.attrs["value"] if declared.attrs else ""
        short = value.isascii() and value.isdigit() and len(value) < 19  # TOML integers have 64 bits
        exported: Any = int(value) if short and str(int(value)) == value else value
        beside = export_common(declared)
        return {"value": exported, **beside} if beside else exported

    # -- adopt ----------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        passed: dict[str, int] = {}
        if not names.WILD.search(pattern) or os.path.lexists(self.root + b"/" + os.fsencode(pattern)):
            return Found(iter([self._first_name(names.canonical(pattern))]), passed, exact=True)
        return Found(self._names(names.pattern(pattern), passed), passed)

    def means(self, pattern: str, name: str) -> bool:
        known = names.names_one(pattern) or names.is_tunable(name)
        return known and names.matches(pattern, name) and not self._unwanted(name)

    def misnamed(self, name: str) -> str:
        real = self._first_name(name)
        return "" if real == name else f"is another name of {self.name}:{real}: adopt that"

    def _names(self, pattern: str, passed: dict[str, int]) -> Iterator[str]:
        for name in names.found(self.root, pattern):
            why = self._unwanted(name) or self._unfit(name)
            if why:
                passed[why] = passed.get(why, 0) + 1
            else:
                yield name

    def _unwanted(self, name: str) -> str:
        """Why a pattern does not take it, by its name and by whose it is."""
        if names.ACTS.match(name):
            return ACTS
        if names.OTHERS.match(name):
            return "is decided by the power management"
        for place, beginnings in FLEETING:
            if name.startswith(tuple(place + b for b in beginnings)):
                return "belongs to a container, or to a name that comes and goes"
        if name.startswith("module/") and os.path.exists(self._path("/".join(name.split("/")[:2]) + "/initstate")):
            return "is a parameter of a loaded module, which is adopted with it"
        return ""

    def _unfit(self, name: str) -> str:
        """Why a pattern does not take it, by its mode."""
        try:
            mode = os.stat(self._path(name)).st_mode
        except OSError:
            return "unreadable"
        if not mode & 0o222:
            return "read-only"
        if not mode & 0o444:
            return "write-only"
        return "" if mode & 0o004 else "not world-readable"

    def _first_name(self, name: str) -> str:
        """The name of this file that patterns find; the same name if it is not there."""
        top = os.path.realpath(self.root)
        real = os.path.realpath(self._path(name))
        if not real.startswith(top + b"/") or not os.path.exists(real):
            return name
        first = names.preferred(encode_name(real[len(top) + 1 :]))
        return first if os.path.exists(self._path(first)) else name

    # -- events ---------------------------------------------------------------------------------------------------

    def watch(self, name: str) -> list[bytes]:
        return [self._path(name)]

    def of_path(self, path: bytes) -> str | None:
        return encode_name(path[len(self.root) + 1 :]) if path.startswith(self.root + b"/") else None

    def source(self) -> Source | None:
        return Hotplug()

    # -- the file -------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> bytes:
        return self.root + b"/" + decode_name(name)

    def _open(self, name: str, flags: int) -> int:
        """A descriptor of the file, on a way that never leaves sysfs. Raises OSError; EXDEV if it would."""
        names.canonical(name)
        top = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.openat2(top, decode_name(name), flags, resolve=RESOLVE)
        finally:
            os.close(top)

    def _read(self, name: str) -> tuple[bytes, int]:
        """The content, one byte more than may be, and the mode. Raises OSError, and ValueError for no regular file."""
        fd = self._open(name, READ)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError("it is a directory, and no value")
            return os.read(fd, VALUE_MAX + 1), mode
        finally:
            os.close(fd)

    def _listed(self, name: str) -> list[str]:
        above, _, leaf = name.rpartition("/")
        try:
            raw, _ = self._read(f"{above}/{LISTED[leaf]}")
        except (KeyError, OSError, ValueError):
            return []
        return raw.decode("utf-8", "backslashreplace").split()

    def _why_absent(self, name: str) -> str:
        """Which part of the way is missing: a whole device, or a value that this kernel does not have."""
        above = decode_name(name)
        while b"/" in above and not os.path.isdir(self.root + b"/" + above):
            above, missing = os.path.dirname(above), above
        if above == os.path.dirname(decode_name(name)):
            return NO_SUCH
        return f"the device is not there (/sys/{encode_name(missing)}), and no write brings it back"


class Hotplug(Source):
    """Devices that come, go and change: every declared name with the device's name in it is looked at again."""

    def __init__(self) -> None:
        from pact.resources.support.uevents import Uevents

        self._uevents = Uevents()
        self._names: dict[str, set[str]] = {}

    def fileno(self) -> int:
        return self._uevents.fileno()

    def drain(self) -> Drained:
        devices, lost = self._uevents.drain()
        touched: dict[str, None] = {}
        for _, device in devices:
            parts = device.strip("/").split("/")
            # A CPU that comes brings its policy, which has no events of its own.
            wanted = [parts[-1]] if parts[-2:-1] != ["cpu"] else [parts[-1], "cpufreq"]
            for part in wanted:
                touched.update(dict.fromkeys(self._names.get(part, ())))
        return Drained([(name, 0) for name in touched], "events of devices were lost" if lost else "")

    def want(self, name: str) -> None:
        for part in name.split("/")[:-1]:
            self._names.setdefault(part, set()).add(name)

    def unwant(self, name: str) -> None:
        for part in name.split("/")[:-1]:
            self._names.get(part, set()).discard(name)

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        self._uevents.close()


def family(name: str) -> list[str]:
    """The parts of a name that those have in common which may move each other: ``block/sda``, ``kernel/mm/ksm``."""
    parts = name.split("/")
    return parts[:2] if parts[0] in ("block", "module") else parts[:3]


def _why(exc: OSError) -> str:
    if exc.errno == errno.EXDEV:
        return "sysfs: the way leads out of sysfs, to another file system"
    if exc.errno == errno.EACCES:
        return "sysfs: it can only be written"
    return errno_text("sysfs", exc)


KIND: Final = Sysfs()
