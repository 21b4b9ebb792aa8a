"""The nouns. Plain values without surprising behaviour: no I/O, no clock, no defaults that hide a failure.

A *resource id* is ``kind:name``. ``name`` is text; bytes of a path that are not UTF-8, control characters and ``%``
itself are percent-encoded, so that an id is one printable line, whatever the file system contains.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from pact.values import NS_PER_S as NS_PER_S  # noqa: PLC0414 - with the nouns it is found here
from pact.values import dataclass

DIMENSIONS: Final = ("kernel", "files", "mounts", "services", "network", "packages", "gpu")

#: Attributes of one resource as its kind defines them: JSON values, no floats. ``None`` in their place means absent.
Attrs = dict[str, Any]
#: A JSON object: the form of a value in a snapshot, in a record or for a person. ``JsonRead``: one that is only read.
Json = dict[str, Any]
JsonRead = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An observation that failed. It is neither drift nor absence. ``why`` reads like ``"sysctl: EIO"``."""

    why: str


#: The result of an observation: attributes, ``None`` for absent, or why it could not be read.
Observation = Attrs | None | Unreadable


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that wrote, as far as the kernel and /proc report it.

    ``loginuid`` and ``session`` come from the audit login (``None`` if there was no login); ``unit`` is the systemd
    unit of the cgroup, ``""`` if none; ``command`` is the command line joined with spaces, at most 256 characters.
    ``parent`` is the pid of its parent, and ``start`` when it began, in the kernel's ticks since boot (0: not known).
    """

    pid: int
    uid: int
    loginuid: int | None = None
    session: str | None = None
    tty: str = ""
    unit: str = ""
    cgroup: str = ""
    command: str = ""
    parent: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a change. ``key`` decides identity; the rest is for people.

    ``key`` is ``login:UID:SESSION``, ``uid:UID``, ``unit:NAME`` or ``unattributed``.

    ``run`` names one run of a tool (``apt-get#811.93021``: its pid and start), whose work is a change of its own.
    ``then`` is what the rule for such writers wants done with it: ``commit``, ``rollback``, ``hold``, ``job:ID``, or
    ``""`` for an ordinary window.  # O5
    """

    key: str
    user: str = ""
    uid: int | None = None
    session: str | None = None
    command: str = ""
    run: str = ""
    then: str = ""

    @property
    def whose(self) -> str:
        """Which change collects this owner's work: a run has its own, whoever started it."""
        return f"{self.key} {self.run}" if self.run else self.key

    @property
    def named(self) -> str:
        """For people: who it is, and with which tool."""
        tool = self.run.partition("#")[0]
        return f"{self.user} with {tool}" if tool and tool != self.user else self.user

    def with_command(self, command: str) -> Owner:
        """The same owner with another command. ``replace`` takes several times as long."""
        if command == self.command:
            return self
        return Owner(self.key, self.user, self.uid, self.session, command, self.run, self.then)

    def same_person(self, other: Owner) -> bool:
        """Whether both are the same owner, or the same person in another session. A service equals only itself."""
        if self.key == other.key:
            return True
        services = self.key.startswith("unit:") or other.key.startswith("unit:")
        return self.uid is not None and self.uid == other.uid and not services

    def to_json(self) -> Json:
        out: Json = {
            "key": self.key,
            "user": self.user,
            "uid": self.uid,
            "session": self.session,
            "command": self.command,
        }
        if self.run:
            out["run"] = self.run
        if self.then:
            out["then"] = self.then
        return out

    @classmethod
    def from_json(cls, data: JsonRead) -> Owner:
        own = data["key"], data["user"], data["uid"], data["session"], data["command"]
        return cls(*own, data.get("run", ""), data.get("then", ""))


UNATTRIBUTED: Final = Owner("unattributed", "unattributed")


@dataclass(frozen=True, slots=True)
class Holder:
    """A consumer: one process (or kernel object, ``pid`` 0) that uses a resource.

    ``how`` is one of fd, map, cwd, root, exe, cgroup, exec, socket, loop, mount, module, lease, unknown. ``path`` is
    what the process holds, for people. ``start`` is when the process began, in the kernel's ticks since boot: another
    process may have the same number later. 0: not known.
    """

    resource: str
    pid: int
    how: str
    path: str = ""
    uid: int | None = None
    user: str = ""
    command: str = ""
    cgroup: str = ""
    job: str = ""
    start: int = 0

    def to_json(self) -> Json:
        return {
            "resource": self.resource,
            "pid": self.pid,
            "how": self.how,
            "path": self.path,
            "uid": self.uid,
            "user": self.user,
            "command": self.command,
            "cgroup": self.cgroup,
            "job": self.job,
            **({"start": self.start} if self.start else {}),
        }

    @classmethod
    def from_json(cls, data: JsonRead) -> Holder:
        return cls(**{k: data[k] for k in cls.__slots__ if k in data})


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of a request, for the journal: ``role`` is viewer, ops, admin or agent; ``via`` socket, agent, timer
    or config.

    ``call`` names the cluster's call that this serves; records carry it in their data, so that an agent that was killed
    during the call knows later that it had begun.
    """

    user: str
    uid: int | None
    role: str
    via: str
    call: str = ""

    def to_json(self) -> Json:
        return {"user": self.user, "uid": self.uid, "role": self.role, "via": self.via}


AGENT_ACTOR: Final = Actor("pact", None, "agent", "agent")


@dataclass(frozen=True, slots=True)
class Declared:
    """One declared resource: its attributes and the metadata that the operator gave.

    ``requires`` are resource ids; ``consumers`` are rules (``open``, ``exec:NAME``, ``cgroup:GLOB``, ``none``).
    ``weight_n`` and ``severity_n`` are in billionths, ``None`` for the configured value. ``notify``: what is told when
    a plan has moved it (``service:chronyd reload``).  # R14
    """

    attrs: Attrs | None
    requires: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    weight_n: int | None = None
    severity_n: int | None = None
    restorable: bool = True
    notify: tuple[str, ...] = ()

    def to_json(self) -> Json:
        out: Json = {"attrs": self.attrs}
        if self.requires:
            out["requires"] = list(self.requires)
        if self.consumers:
            out["consumers"] = list(self.consumers)
        if self.weight_n is not None:
            out["weight_n"] = self.weight_n
        if self.severity_n is not None:
            out["severity_n"] = self.severity_n
        if not self.restorable:
            out["restorable"] = False
        if self.notify:
            out["notify"] = list(self.notify)
        return out

    @classmethod
    def from_json(cls, data: JsonRead) -> Declared:
        if len(data) == 1:  # most have nothing else
            return cls(data["attrs"])
        return cls(
            data["attrs"],
            tuple(data.get("requires", ())),
            tuple(data.get("consumers", ())),
            data.get("weight_n"),
            data.get("severity_n"),
            data.get("restorable", True),
            tuple(data.get("notify", ())),
        )


def encode_name(raw: bytes | str) -> str:
    """Percent-encode what does not fit into a line of text: ``%``, control characters, bytes that are not UTF-8."""
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    out: list[str] = []
    for ch in text:
        code = ord(ch)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"%{code - 0xDC00:02X}")
        elif ch == "%" or unicodedata.category(ch) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
            out.extend(f"%{b:02X}" for b in ch.encode("utf-8", "surrogatepass"))
        else:
            out.append(ch)
    return "".join(out)


def decode_name(name: str) -> bytes:
    """The bytes that were passed to ``encode_name``. Raises ValueError on a malformed escape."""
    if "%" not in name:
        return name.encode("utf-8", "surrogateescape")
    out = bytearray()
    head, *rest = name.split("%")
    out += head.encode("utf-8", "surrogateescape")
    for part in rest:
        digits = part[:2]
        if len(digits) != 2 or any(d not in "0123456789abcdefABCDEF" for d in digits):
            raise ValueError(f"bad percent-escape in {name!r}: use %25 for a literal %")
        out.append(int(digits, 16))
        out += part[2:].encode("utf-8", "surrogateescape")
    return bytes(out)


def split_id(rid: str) -> tuple[str, str]:
    """``kind, name`` of a resource id. Raises ValueError for a malformed id."""
    kind, sep, name = rid.partition(":")
    if not sep or not kind or not name:
        raise ValueError(f"{rid!r} is no resource id; write kind:name, for example sysctl:vm.swappiness")
    return kind, name


@dataclass(frozen=True, slots=True)
class DriftFact:
    """The contents of one observation of a drifted resource: used in events, never journaled as it is."""

    resource: str
    actual: Attrs | None
    deviation_n: int
    owner: Owner = field(default=UNATTRIBUTED)
