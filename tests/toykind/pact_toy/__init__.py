"""Toys: ``toy:bear`` has a colour, which stands in ``$TOY_BOX/bear``. Who paints one says so on a socket beside them.

What a kind in a package of its own needs, and a little of what it may say: pact has never heard of toys.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Observation, Unreadable
from pact.resources.base import WHOLE_N, Blobs, Drained, Entry, Found, Keep, Kind, Source, common, export_common

COLOURS = ("red", "green", "blue")
#: A message that loses others: the painter was too quick.
MISSED = b"!"


def box() -> str:
    return os.environ["TOY_BOX"]


class Painted(Source):
    """Datagrams with the name of what was painted; the kernel says by which process."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        path = os.path.join(box(), ".painted")
        if os.path.exists(path):
            os.unlink(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(path)
        os.chmod(path, 0o666)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> Drained:
        changed, lost = list[tuple[str, int]](), ""
        while True:
            try:
                text, ancillary, _, _ = self._socket.recvmsg(256, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return Drained(changed, lost)
            pid = next((struct.unpack("3i", d)[0] for _, t, d in ancillary if t == socket.SCM_CREDENTIALS), 0)
            name = text.decode()
            if text == MISSED:
                lost = "painters were too quick"
            elif name in self._names:
                changed.append((name, pid))

    def want(self, name: str) -> None:
        self._names.add(name)

    def unwant(self, name: str) -> None:
        self._names.discard(name)

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        self._socket.close()


class Toy(Kind):
    name = "toy"
    dimension, severity = "gpu", 0.2
    volatile = False
    spelling = "a simple name"
    ignored = ("dust*",)
    verbs = ("wash", "show")

    def rank(self, name: str) -> int:
        """The duck is painted first."""
        return -1 if name == "duck" else 0

    def canonical(self, name: str) -> str:
        if not name.isidentifier():
            raise ValueError("a toy has a simple name")
        return name

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        colour = value.get("colour") if isinstance(value, Mapping) else value
        if colour not in (*COLOURS, "absent"):
            raise ValueError(f"a toy is {', '.join(COLOURS)} or absent")
        return Entry(Declared(None if colour == "absent" else {"colour": colour}, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        colour, beside = "absent" if declared.attrs is None else declared.attrs["colour"], export_common(declared)
        return {"colour": colour, **beside} if beside else colour

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        try:
            with open(os.path.join(box(), name)) as f:
                return {"colour": f.read().strip()}
        except FileNotFoundError:
            return None
        except OSError as exc:
            return Unreadable(f"toy: {exc.strerror}")

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        return 0 if declared == actual else WHOLE_N

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        path = os.path.join(box(), name)
        if step.target is None:
            os.unlink(path)
            return
        if step.target["colour"] not in COLOURS:
            raise RestoreError("there is no such paint")
        with open(path + ".wet", "w") as f:
            f.write(step.target["colour"] + "\n")
        os.rename(path + ".wet", path)
        if os.path.exists(os.path.join(box(), f".{name}-fades")):  # the paint does not last
            with open(path, "w") as f:
                f.write("blue\n")

    def tell(self, name: str, verb: str, declared: Attrs | None) -> None:
        """Said in the box; a toy that is locked in hears nothing."""
        if os.path.exists(os.path.join(box(), f".{name}-locked")):
            raise RestoreError("it is locked in")
        with open(os.path.join(box(), ".told"), "a") as f:
            f.write(f"{name} {verb}\n")

    def told(self, resource: str, name: str, verb: str) -> Step | None:
        """Who washes it takes it away from whoever plays with it."""
        return Step(resource, None, {"colour": "any"}) if verb == "wash" else None

    def telling(self, told: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        return sorted(told, key=lambda each: (self.rank(each[0]), each))

    def roots(self, name: str, step: Step) -> list[bytes]:
        return [os.path.join(box(), name).encode()] if step.target is None else []

    def discover(self, pattern: str) -> Found:
        names = [n for n in sorted(os.listdir(box())) if n.isidentifier() and self.means(pattern, n)]
        return Found(iter(names), {})

    def source(self) -> Source:
        return Painted()


KIND = Toy()
