"""A connection to systemd over D-Bus, as small as pact needs it, with a limit for each wait and each message.

Root talks to systemd's own socket, as systemctl does: no message bus stands between, so a bus that is killed blinds
nobody, and no signal crosses the bus for pact's sake. Where that socket is not there, it is the system bus, and so it
is where ``DBUS_SYSTEM_BUS_ADDRESS`` says which. The library ``jeepney`` writes and reads messages; it is imported when
the first one is needed. This module never starts anything: a bus that is not there is an error.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

PRIVATE: Final = "/run/systemd/private"
SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"
ADDRESS: Final = "DBUS_SYSTEM_BUS_ADDRESS"
SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER: Final = "/org/freedesktop/systemd1"
UNITS: Final = MANAGER + "/unit/"
IS_MANAGER: Final = SYSTEMD + ".Manager"
DBUS: Final = "org.freedesktop.DBus"
BUS: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
#: How long one answer may take: systemd answers nothing while it reads its unit files again.
ANSWER_S: Final = 20.0
GREETING_S: Final = 5.0
UNREAD_S: Final = 0.0002
GREETING_MAX: Final = 8192
#: The largest message that is read: a list of ten thousand units has three million bytes.
EARLY_MAX: Final = 10_000
MESSAGE_MAX: Final = 32 << 20
READ_BYTES: Final = 1 << 16
CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
ERROR_MAX: Final = 300


class BusError(Exception):
    """systemd cannot be reached, or does not answer as it should. The text is for people."""


class Refused(BusError):
    """systemd's own answer that it cannot do it: ``name`` is the D-Bus name of the error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True, slots=True)
class Call:
    """One method call. ``signature`` and ``body`` are D-Bus's; to systemd's manager unless it says another path."""

    member: str
    signature: str = ""
    body: tuple[Any, ...] = ()
    path: str = MANAGER
    interface: str = IS_MANAGER
    to: str = SYSTEMD


@dataclass(frozen=True, slots=True)
class Message:
    """A message that came in; the body is read only if somebody asks."""

    type: int
    path: str
    interface: str
    member: str
    reply_to: int
    error: str
    sender: str
    data: bytes

    def body(self) -> tuple[Any, ...]:
        """Raises BusError for a body that is not D-Bus's."""
        from jeepney import Message as Whole

        try:
            return tuple(Whole.from_buffer(self.data).body)
        except Exception as exc:
            raise BusError(f"systemd sent what is no D-Bus message: {type(exc).__name__}") from None


def address() -> str:
    """What the environment says of where the bus is."""
    return os.environ.get(ADDRESS, "")


def addresses() -> list[tuple[str, bool]]:
    """The sockets to try, in this order, and whether each is a message bus. Raises BusError for an address of another
    form."""
    given = address()
    if not given:
        return [(PRIVATE, False), (SYSTEM_BUS, True)]
    out = []
    for each in given.split(";"):
        form, _, rest = each.partition(":")
        fields = dict(part.partition("=")[::2] for part in rest.split(","))
        if form != "unix" or not fields.keys() & {"path", "abstract"}:
            raise BusError(f"{ADDRESS}: {each!r} is not unix:path=...")
        out.append((fields["path"] if "path" in fields else "\0" + fields["abstract"], True))
    return out


def present() -> bool:
    """Whether there is a socket of systemd or of a bus."""
    try:
        return any(path.startswith("\0") or os.path.exists(path) for path, _ in addresses())
    except BusError:
        return True  # to be told on use


def unit_path(unit: str) -> str:
    """The object path of a unit: letters and digits stand for themselves, everything else is escaped."""
    raw = unit.encode("utf-8", "surrogateescape")
    out = (
        chr(b) if chr(b).isascii() and chr(b).isalnum() and not (at == 0 and chr(b).isdigit()) else f"_{b:02x}"
        for at, b in enumerate(raw)
    )
    return UNITS + ("".join(out) or "_")


def unit_of_path(path: str) -> str:
    """The inverse of ``unit_path``; ``""`` for what is no unit's path."""
    if not path.startswith(UNITS):
        return ""
    raw, rest = bytearray(), path[len(UNITS) :].encode()
    at = 0
    while at < len(rest):
        if rest[at] == 0x5F:
            try:
                raw.append(int(rest[at + 1 : at + 3], 16))
            except ValueError:
                return ""
            at += 3
        else:
            raw.append(rest[at])
            at += 1
    return raw.decode("utf-8", "surrogateescape")


class Stream:
    """Cuts the bytes of a connection into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises BusError for what is no message, or one too large."""
        self._buffer += data
        out, at = [], 0
        while len(self._buffer) - at >= 16:
            size = self._size(at)
            if len(self._buffer) - at < size:
                break
            out.append(parsed(bytes(self._buffer[at : at + size])))
            at += size
        del self._buffer[:at]
        return out

    def _size(self, at: int) -> int:
        order = _order(self._buffer[at])
        body, _, fields = struct.unpack_from(order + "III", self._buffer, at + 4)
        size = 16 + int(fields) + -int(fields) % 8 + int(body)
        if size > MESSAGE_MAX:
            raise BusError(f"systemd sent a message of {size} bytes: at most {MESSAGE_MAX} are read")
        return size


def _order(mark: int) -> str:
    if mark not in b"lB":
        raise BusError("systemd sent what is no D-Bus message")
    return "<" if mark == ord("l") else ">"


def parsed(data: bytes) -> Message:
    """The header of one whole message. Every job that starts on the node sends some, and most concern nobody: only
    what decides that is read."""
    order = _order(data[0])
    (end,) = struct.unpack_from(order + "I", data, 12)
    texts, reply_to, at, end = {}, 0, 16, end + 16
    try:
        while at < end:
            at += -at % 8
            code, width = data[at], data[at + 1]
            signature = data[at + 2 : at + 2 + width]
            at += 3 + width
            if signature in (b"s", b"o"):
                at += -at % 4
                (size,) = struct.unpack_from(order + "I", data, at)
                texts[code] = data[at + 4 : at + 4 + size].decode("utf-8", "replace")
                at += 5 + size
            elif signature == b"g":
                at += 2 + data[at]
            elif signature == b"u":
                at += -at % 4
                if code == 5:
                    (reply_to,) = struct.unpack_from(order + "I", data, at)
                at += 4
            else:
                raise BusError("systemd sent a header that D-Bus does not have")
    except (IndexError, struct.error):
        raise BusError("systemd sent a header that is cut off") from None
    get = texts.get
    return Message(data[1], get(1, ""), get(2, ""), get(3, ""), reply_to, get(4, ""), get(7, ""), data)


def encoded(call: Call, serial: int) -> bytes:
    """The bytes of a call."""
    from jeepney import DBusAddress, new_method_call

    address = DBusAddress(call.path, call.to, call.interface)
    message = new_method_call(address, call.member, call.signature or None, call.body)
    return bytes(message.serialise(serial=serial))


class Bus:
    """A connection that waits for its answers. Used by one thread, for a short time: unread signals would pile up in
    systemd."""

    def __init__(self, connected: socket.socket, bus: bool) -> None:
        self.socket, self.bus = connected, bus
        self._stream, self._serial = Stream(), 0
        self.address = address()
        self._owner = ""  # on a bus: the connection that is systemd
        self._early: list[Message] = []  # signals that came before their turn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def alive(self) -> bool:
        """Whether the other end is still there."""
        try:
            self.socket.setblocking(False)  # whoever waits next says how long
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, call: Call) -> int:
        """Send without waiting. Returns the serial that its answer will name. Raises BusError."""
        self._serial += 1
        try:
            self.socket.sendall(encoded(call, self._serial))
        except OSError as exc:
            raise BusError(f"systemd hung up: {os.strerror(exc.errno or 0).lower()}") from None
        return self._serial

    def call(self, member: str, signature: str = "", *body: Any, limit_s: float = ANSWER_S) -> tuple[Any, ...]:
        """Call systemd's manager. Returns the body of the answer. Raises BusError, Refused."""
        return self.ask(Call(member, signature, body), limit_s=limit_s)

    def ask(self, call: Call, *, limit_s: float = ANSWER_S) -> tuple[Any, ...]:
        (answer,) = self.each([call], limit_s=limit_s)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def each(self, calls: Sequence[Call], *, limit_s: float = ANSWER_S) -> list[tuple[Any, ...] | Refused]:
        """Many calls at once, one after another on the wire. Raises BusError if not all were answered in time."""
        self.socket.settimeout(limit_s)
        wanted = {self.send(c): at for at, c in enumerate(calls)}
        out: list[tuple[Any, ...] | Refused | None] = [None] * len(calls)
        end = time.monotonic() + limit_s
        while wanted:
            for message in self._receive(end):
                if self.trusts(message):
                    self._early.append(message)
                    del self._early[:-EARLY_MAX]
                elif message.type in (REPLY, ERROR) and message.reply_to in wanted:
                    out[wanted.pop(message.reply_to)] = _answer(message)
        return [a for a in out if a is not None]

    def signals(self, until: float) -> list[Message]:
        """The signals that have come, at the latest at ``until`` (monotonic seconds); empty when that is past."""
        if self._early:
            return self.early()
        try:
            return [m for m in self._receive(until) if self.trusts(m)]
        except TimeoutError:
            return []

    def introduce(self, limit_s: float) -> None:
        """Become known to a bus, and learn who systemd is there. Raises BusError."""
        self.ask(Call("Hello", path=BUS, interface=DBUS, to=DBUS), limit_s=limit_s)
        (owner,) = self.ask(Call("GetNameOwner", "s", (SYSTEMD,), BUS, DBUS, DBUS), limit_s=limit_s)
        self._owner = str(owner)

    def trusts(self, message: Message) -> bool:
        """Whether a signal is systemd's: on a bus everybody may send some, and write in them what they like."""
        return message.type == SIGNAL and (not self.bus or message.sender in (self._owner, DBUS))

    def early(self) -> list[Message]:
        """The signals that came while an answer was awaited."""
        early, self._early = self._early, []
        return early

    def _receive(self, end: float) -> Iterable[Message]:
        left = end - time.monotonic()
        if left <= 0:
            raise _Late("systemd does not answer")
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(READ_BYTES)
        except TimeoutError:
            raise _Late("systemd does not answer") from None
        except OSError as exc:
            raise BusError(f"systemd hung up: {os.strerror(exc.errno or 0).lower()}") from None
        if not data:
            raise BusError("systemd hung up")
        return self._stream.feed(data)


class _Late(BusError, TimeoutError):
    pass


def _answer(message: Message) -> tuple[Any, ...] | Refused:
    if message.type == REPLY:
        return message.body()
    body = message.body()
    text = body[0] if body and isinstance(body[0], str) else message.error
    return Refused(message.error, "".join(c if c.isprintable() else " " for c in text)[:ERROR_MAX])


def connect(limit_s: float = GREETING_S) -> Bus:
    """A new connection. Raises BusError if there is none, or nobody answers in time."""
    why = "there is no systemd here"
    for path, bus in addresses():
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            link.settimeout(limit_s)
            link.connect(path)
            _greet(link, limit_s)
            made = Bus(link, bus)
            if bus:
                made.introduce(limit_s)
            return made
        except FileNotFoundError:
            link.close()
        except TimeoutError:
            link.close()
            why = "does not answer"
        except OSError as exc:
            link.close()
            why = os.strerror(exc.errno or 0).lower()
        except BusError as exc:
            link.close()
            why = str(exc)
        except BaseException:
            link.close()
            raise
    raise BusError(why if why.startswith(("there", "systemd")) else f"systemd: {why}")


def _greet(link: socket.socket, limit_s: float) -> None:
    """The conversation before the first message. Raises BusError."""
    end, said = time.monotonic() + limit_s, b""
    link.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
    while b"\r\n" not in said:
        link.settimeout(max(0.001, end - time.monotonic()))
        data = link.recv(GREETING_MAX - len(said))
        if not data:
            raise BusError("systemd hung up: only root may use it" if os.geteuid() else "systemd hung up")
        said += data
    if not said.startswith(b"OK "):
        raise BusError("systemd refuses this user")
    link.sendall(b"BEGIN\r\n")
    while _unread(link):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(UNREAD_S)


def _unread(link: socket.socket) -> int:
    """What the other end has not read yet. A message that systemd reads together with the end of the greeting waits in
    its buffer until the next one comes."""
    import array
    import fcntl
    import termios

    size = array.array("i", [0])
    fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, size)
    return size[0]
