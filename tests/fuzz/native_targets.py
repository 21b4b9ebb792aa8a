"""Targets in C: the kernels' code under address and undefined-behaviour sanitizers, beside their naive twins.

Runs only in a process that ``one.py`` has prepared: ``pact`` here is the package of ``build.py``.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any, Final

import nasty

from fuzz.kit import SLOW_S, Feed, Target, outcome, scratch
from pact._fast import files, handles, mounts, norms, reader, reference, strict, wheel

KINDS: Final = (reader.KIND_FID, reader.KIND_MNTNS, reader.KIND_PROC)
KEY: Final = bytes(range(8)) + struct.pack("<Ii", 8, 1) + b"handle-1"
WD: Final = struct.pack("<i", 1)
NAMES: Final = (b"a", b"nodes.conf", b"")
ALL_TEXT: Final = b"/"  # somebody wants every name
OTHER: Final = KEY[:-1] + b"2"


def _reader() -> Any:
    out = reader.Reader(realtime=False)
    for name in NAMES:
        out.want(reader.KIND_FID, KEY, name)
        out.want(reader.KIND_INOTIFY, WD, name or b".")
    for kind, key in ((reader.KIND_FID, OTHER), (reader.KIND_INOTIFY, struct.pack("<i", 2))):
        out.want(kind, key, ALL_TEXT)
    out.want(reader.KIND_PROC, b"", b"kernel/hostname")
    return out


SYSCTL: Final = reader.fuzz_begin(b"/proc/sys/kernel/hostname")
READER: Final = _reader()


def _fed(kind: int, data: bytes) -> list[tuple[int, int, int, bytes, bytes]]:
    """The records that came of it, each of which somebody wanted."""
    reader.fuzz_feed(READER, kind, data, SYSCTL)
    out = []
    while got := READER.take(1 << 16):
        out += [(k, mask, pid, key, name) for k, mask, pid, _, key, name, _ in got]
    for k, mask, _, key, name in out:
        if k == reader.KIND_LOST:
            assert mask == kind and (key, name) == (b"", b"")
            continue
        assert k == kind, (k, kind)
        if k == reader.KIND_FID:
            assert (key == KEY and name in NAMES) or (key == OTHER and name not in (b"", b".")), (key, name)
        elif k == reader.KIND_INOTIFY:
            assert (key == WD and name in (*NAMES, b".")) or key == struct.pack("<i", 2), (key, name)
        else:
            assert (key, name) == (b"", b"kernel/hostname" if k == reader.KIND_PROC else b""), (key, name)
    return out


# -- the kernel's events ------------------------------------------------------------------------------------------------


def fanotify(data: bytes) -> None:
    feed = Feed(data)
    kind = feed.pick(KINDS)
    _fed(kind, feed.rest()[:8192])


def event(mask: int, *infos: bytes, fd: int = -1, pid: int = 1, mask_only: bool = False) -> bytes:
    body = b"".join(infos)
    return struct.pack("<IBBHQii", 24 + len(body), 3, 0, 24, mask, fd, pid) + body


def info(type_: int, body: bytes) -> bytes:
    size = -(-(4 + len(body)) // 4) * 4
    return struct.pack("<BBH", type_, 0, size) + body.ljust(size - 4, b"\0")


def fanotify_seeds() -> Iterator[bytes]:
    fid = [
        event(0x2, info(2, key + name + b"\0"), fd=-1) for key in (KEY, OTHER) for name in (b"a", b"nodes.conf", b".")
    ]
    some = [
        *fid,
        event(0x40000100, info(2, OTHER + b"new.conf\0"), info(4, struct.pack("<i", -1))),
        event(0x4000),
        event(0x400, info(1, KEY)),
        event(0x100, info(2, KEY + b"a\0"), info(1, OTHER), info(4, struct.pack("<i", -2))),
    ]
    yield from (b"\0" + e for e in some)
    yield b"\0" + b"".join(some)
    yield b"\1" + event(0x1000000, info(7, bytes(8)), info(4, struct.pack("<i", -1)))
    yield b"\2" + event(0x2, fd=5) + event(0x2, info(4, struct.pack("<i", -1)), fd=5) + event(0x4000)


def inotify(data: bytes) -> None:
    _fed(reader.KIND_INOTIFY, data[:8192])


def inotify_event(wd: int, mask: int, name: bytes = b"") -> bytes:
    size = -(-(len(name) + 1) // 16) * 16 if name else 0
    return struct.pack("<iIII", wd, mask, 0, size) + name.ljust(size, b"\0")


def inotify_seeds() -> Iterator[bytes]:
    some = [
        inotify_event(1, 2, b"a"),
        inotify_event(1, 0x100, b"nodes.conf"),
        inotify_event(1, 0x400),
        inotify_event(1, 4),
        inotify_event(2, 0x100, b"x" * 40),
        inotify_event(-1, 0x4000),
        inotify_event(1, 0x8000),
    ]
    yield from some
    yield b"".join(some)


def connector(data: bytes) -> None:
    before = READER.stats()["exec"]
    assert _fed(reader.KIND_CONNECTOR, data[:512]) == []
    counted = READER.stats()["exec"] - before
    assert counted == (len(data[:512]) >= 60 and data[36:40] == b"\2\0\0\0")


def connector_seeds() -> Iterator[bytes]:
    for what, pid in ((2, 1), (2, os.getpid()), (2, -1), (2, 0), (1, 1), (0, 0), (0x80000000, 1)):
        body = struct.pack("<IIQii", what, 0, 1, pid, pid)
        yield (
            struct.pack("<IHHII", 16 + 20 + len(body), 3, 0, 0, 0)
            + struct.pack("<IIIIHH", 1, 1, 0, 0, len(body), 0)
            + body
        )


# -- texts of /proc -----------------------------------------------------------------------------------------------------


def _numbers(text: bytes) -> Iterator[int]:
    yield from (int(n[-40:]) % (1 << 64) if len(n) <= 40 else _wrapped(n) for n in re.findall(rb"[0-9]+", text))
    while True:
        yield 0


def _wrapped(digits: bytes) -> int:
    out = 0
    for d in digits:
        out = (out * 10 + d - 48) % (1 << 64)
    return out


def _stat(text: bytes) -> tuple[bytes, int, int] | None:
    first, last = text.find(b"("), text.rfind(b")")
    if first < 0 or last <= first:
        return None
    found = _numbers(re.sub(rb"\A[ A-Z\[\\\]^_`a-z]*", b"", text[last + 1 :]))
    values = [next(found) for _ in range(3 + 1 + 14 + 1)]
    tty = values[3] & 0xFFFFFFFF
    return text[first + 1 : last][:256], tty - (1 << 32) if tty >> 31 else tty, values[-1]


def _status(text: bytes) -> tuple[int, int] | None:
    at = text.find(b"\nUid:")
    if at < 0:
        return None
    found = _numbers(text[at:])
    return next(found) & 0xFFFFFFFF, next(found) & 0xFFFFFFFF


def _cgroup(text: bytes) -> bytes:
    best = b""
    for line in text.split(b"\n"):
        own = line.startswith(b"0::")
        path = line[3:] if own else line.partition(b":name=systemd:")[2] if b":name=systemd:" in line else None
        if path is not None and (not best or (len(path) > 1 and (len(best) == 1 or own))):
            best = path[:512]
    return best


def proc(data: bytes) -> None:
    feed = Feed(data)
    what, text = feed.number() % 4, feed.rest()
    if what < 2:
        found, twin = reader.fuzz_stat(text, not what), _stat(text)
        assert found == (twin if twin is None or not what else (b"\0", *twin[1:])), (found, twin)
    elif what == 2:
        assert reader.fuzz_status(text) == _status(text)
    else:
        assert reader.fuzz_cgroup(text) == _cgroup(text)


def proc_seeds() -> Iterator[bytes]:
    for name in ("stat", "status", "cgroup"):
        with open(f"/proc/self/{name}", "rb") as f:
            text = f.read()
        yield from ((b"\0" + text, b"\1" + text) if name == "stat" else (bytes([2 + (name == "cgroup")]) + text,))
    yield b"\0" + b"7 (a) b) S 1 7 7 34816 7 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 9"
    yield b"\0" + b"7 )( S 1 7"
    yield b"\2" + b"Name:\ta\nUid:\t0\t1000\t0\t0\n"
    yield b"\3" + b"12:cpu:/x\n1:name=systemd:/user.slice/user-1000.slice\n0::/\n"


# -- handles --------------------------------------------------------------------------------------------------------------

DEVICE: Final = mounts.device(8, 1)
PATTERNS: Final = [
    mounts.Pattern(t, i, e)
    for i, (t, e) in enumerate(
        (
            (b"/", True),
            (b"/data", False),
            (b"/data/a", True),
            (b"/home/x/y", False),
            (b"/data/a b", False),
            (b"/x (deleted)", True),
        )
    )
]
ROOTED: Final = [*PATTERNS, mounts.Pattern(b"/", 9, False)]


def _walk(patterns: list[mounts.Pattern]) -> tuple[Any, Any]:
    space = mounts.Space(())
    space.patterns = sorted(patterns)
    targets: Any = SimpleNamespace(
        namespace=b"mnt:[1]",
        own=space,
        hard_links=False,
        proc=b"/proc",
        inodes={(DEVICE, 77): [3], (DEVICE, 1 << 40): [4]},
        devices={mounts.device(0, 42): [5]},
    )
    return handles.Walk(targets, 0, 1), reference._Scan(targets)


WALKS: Final = (_walk(PATTERNS), _walk(ROOTED))
LINE: Final = re.compile(
    rb"[0-9a-f]{1,16}-[0-9a-f]{1,16} [rwxps-]{4} [0-9a-f]{1,16} [0-9a-f]{2,8}:[0-9a-f]{2,8} [0-9]{1,18}"
    rb"(?: +/[^\n]*| +\[[^\n]*| *)"
)


def maps(data: bytes) -> None:
    feed = Feed(data)
    walk, twin = feed.pick(WALKS)
    text = feed.rest()
    found = handles.fuzz_maps(walk, text)
    lines = text.split(b"\n")[:-1]
    if all(map(LINE.fullmatch, lines)):
        twin.found.clear()
        for line in lines:
            twin.mapping(1, line + b"\n", twin.targets.own)
        assert found == {(h.how, h.root, h.path) for h in twin.found}, (found, twin.found)


def maps_seeds() -> Iterator[bytes]:
    with open("/proc/self/maps", "rb") as f:
        real = f.read()[:3000]
    rows = [
        b"7f0-7f1 r-xp 00000000 08:01 77                         /data/a\n",
        b"7f0-7f1 r--s 00001000 00:2a 5 /data/x\n",
        b"7f0-7f1 rw-p 00000000 00:00 0                          [heap]\n",
        b"7f0-7f1 rw-p 00000000 00:00 0 \n",
        b"7f0-7f1 r-xp 0 08:01 1099511627776 /data/a\\012b (deleted)\n",
    ]
    for which in (b"\0", b"\1"):
        yield which + real
        yield from (which + row for row in rows)
        yield which + b"".join(rows)
    yield b"\0\n"


def link(data: bytes) -> None:
    feed = Feed(data)
    walk, twin = feed.pick(WALKS)
    what, text = feed.number() % 4, feed.rest()[:4096]
    if what:
        twin.found.clear()
        twin.link(1, "fd", text, twin.targets.own)
        assert handles.fuzz_link(walk, text) == {(h.how, h.root, h.path) for h in twin.found}
        return
    says = handles.fuzz_info(walk, text)
    line = next((ln for ln in text.split(b"\n") if ln.startswith(b"ino:")), None)
    if line is not None and re.fullmatch(rb"ino:[ \t]*[0-9]{1,18}", line) and text.endswith(b"\n"):
        assert says == (int(line[4:]) in (77, 1 << 40))


def link_seeds() -> Iterator[bytes]:
    for text in (
        b"/",
        b"/data",
        b"/data/a",
        b"/data/a/b",
        b"/data/a (deleted)",
        b"/data (deleted)",
        b"/x (deleted)",
        b"/datax",
        b"socket:[1]",
        b"/home/x/y/z",
        b"/home/x",
        b"/data/a b/c",
        b"/data//a",
        b"",
        b"/x (deleted) (deleted)",
    ):
        yield from (bytes((which, 1)) + text for which in (0, 1))
    yield b"\0\0pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t77\n"
    yield b"\0\0pos:\t0\nino:\t78\n"
    yield b"\0\0ino:"


# -- tables, numbers, timers ----------------------------------------------------------------------------------------------

BASE: Final = scratch()
PATHS: Final = tuple(os.fsencode(os.path.join(BASE, n)) for n in ("file", "link", "missing"))
with open(PATHS[0], "wb") as _file:
    _file.write(b"content")
os.symlink("file", PATHS[1])
SECRET: Final = bytes(64)


def table(data: bytes) -> None:
    """A dump that somebody else could have written, with or without the right digest."""
    feed = Feed(data)
    how = feed.number()
    rows = []
    while how & 1 and feed:
        path = feed.pick((*PATHS, b"", b"/x"))
        rows.append(
            len(path).to_bytes(4, "little")
            + bytes([feed.number() & 1])
            + path
            + feed.take(96).ljust(_SIGHT, b"\0")[:_SIGHT]
        )
    body = files.MAGIC + (SECRET if how & 2 else b"s" * 64) + (b"".join(rows) if how & 1 else feed.rest())
    blob = body + blake2b(body, digest_size=16).digest()
    seen = files.FileTable(SECRET)
    for key, path in enumerate(PATHS):
        seen.put(key, path, bool(key & 1))
    taken = outcome(lambda: seen.restore(blob if not how & 4 else data), ValueError)
    assert taken is ValueError or 0 <= taken <= len(PATHS)
    assert set(seen.scan(full=bool(how & 8))) <= set(range(len(PATHS)))
    again = files.FileTable(SECRET)
    for key, path in enumerate(PATHS):
        again.put(key, path, bool(key & 1))
    assert again.restore(seen.dump()) == len(PATHS)


_SIGHT: Final = int(files.MAGIC.split()[-1])


def table_seeds() -> Iterator[bytes]:
    for how in range(16):
        yield bytes([how]) + bytes([0]) + bytes(_SIGHT) + bytes([1, 1]) + b"\xff" * _SIGHT
    one = files.FileTable(SECRET)
    for key, path in enumerate(PATHS):
        one.put(key, path, False)
    one.scan(full=True)
    yield b"\6" + one.dump()


ERRORS: Final = (ValueError, TypeError, OverflowError)


def numbers(data: bytes) -> None:
    """Both backends give the same bits, or the same error."""
    feed = Feed(data)
    cut = array("q", [feed.number(2) - 1 for _ in range(feed.number() % 6)])
    base, sensitivity = struct.unpack("<qd", feed.take(16).ljust(16, b"\0"))
    rest = feed.rest()
    half = len(rest) // 16 * 8
    deviations, weights = array("d", rest[:half]), array("d", rest[half : 2 * half])
    for call in (
        lambda m: m.magnitude(deviations, weights),
        lambda m: m.magnitudes(deviations, weights, cut).tobytes(),
        lambda m: m.window_ns(deviations, base, sensitivity).tobytes(),
        lambda m: [m.window_ns(d, base, sensitivity) for d in deviations],
    ):
        first, second = (outcome(partial(call, m), *ERRORS) for m in (norms, reference))
        assert first == second, (first, second)


def number_seeds() -> Iterator[bytes]:
    for values in ([1.0, 2.0], [0.0], [], [1e308, 1e308], [float("nan"), 1.0], [-1.0, 1.0], [5e-324] * 20):
        packed = array("d", values + [1.0] * len(values)).tobytes()
        for cut in (b"\2\1\0" + (len(values) + 1).to_bytes(2, "little"), b"\0", b"\3\1\0\3\0\2\0"):
            for base, sensitivity in ((900 * 10**9, 2.0), (1, 0.0), (0, 1.0), ((1 << 63) - 1, float("inf"))):
                yield cut + struct.pack("<qd", base, sensitivity) + packed


def timers(data: bytes) -> None:
    """The same steps on the wheel and on its twin."""
    feed = Feed(data)
    tick = feed.pick((1, 1000, 1_000_000, 1_000_000_000))
    now = feed.number(8) - (1 << 63)
    both = (wheel.TimerWheel(now, tick), reference.TimerWheel(now, tick))
    while feed:
        what, key = feed.number() % 8, feed.number(2)
        if what < 3:
            at = max(-(1 << 63), min((1 << 63) - 1, now + (feed.number(8) >> feed.number() % 64) * (1 if what else -1)))
            first, second = (outcome(partial(w.schedule, key, at), *ERRORS) for w in both)
        elif what == 3:
            first, second = (w.cancel(key) for w in both)
        elif what < 6:
            now = min((1 << 63) - 1, now + (feed.number(8) >> feed.number() % 64))
            limit = None if what == 4 else key % 5
            first, second = (outcome(partial(w.advance, now, limit), *ERRORS) for w in both)
        elif what == 6:
            keys = array("q", [feed.number(2) for _ in range(key % 6)])
            times = array("q", [now + feed.number(4) if now < 1 << 62 else now for _ in range(key % 7 or len(keys))])
            first, second = (outcome(partial(w.schedule_many, keys, times), *ERRORS) for w in both)
        else:
            first, second = ((w.deadline(key), len(w), key in w) for w in both)
            when, exact = (w.next_deadline() for w in both)
            assert (when is None) == (exact is None) and (when is None or when <= exact), (when, exact)  # never later
        assert first == second, (what, first, second)


def timer_seeds() -> Iterator[bytes]:
    zero = (1 << 63).to_bytes(8, "little")
    for tick in range(4):
        yield (
            bytes([tick])
            + zero
            + bytes((1, 1, 0))
            + (10**9).to_bytes(8, "little")
            + b"\0"
            + bytes((4, 0, 0))
            + (10**10).to_bytes(8, "little")
            + b"\0"
            + bytes((7, 1, 0))
        )
        yield bytes([tick]) + b"\xff" * 8 + b"".join(bytes((w, 3, 0)) + b"\xff" * 9 for w in range(8))


# -- JSON -----------------------------------------------------------------------------------------------------------------


def json(data: bytes) -> None:
    found = strict.fuzz_members_in(data, 8)
    try:
        twin = reference.members_in(data, 8)
    except ValueError as exc:
        twin = -1 if "nested" in str(exc) else -2
    assert found == twin, (found, twin)
    assert outcome(lambda: strict.members_in(data, 8), ValueError) == (ValueError if found < 0 else found)


def json_seeds() -> Iterable[bytes]:
    return [t for t in (*nasty.REFUSED.values(), *nasty.FINE.values()) if len(t) < 3000]


TARGETS: Final = {
    t.name: t
    for t in (
        Target("c_json", json, json_seeds, [b"18446744073709551615", b"-9223372036854775808", b'\\"', b"\\\\"], 512),
        Target("c_fanotify", fanotify, fanotify_seeds, [KEY, OTHER, b"\x18\0", b"\x02\0\x28\0", b"\x04\0\x08\0"], 8193),
        Target("c_inotify", inotify, inotify_seeds, [b"\1\0\0\0", b"nodes.conf\0"], 8192),
        Target("c_connector", connector, connector_seeds, [], 512),
        Target("c_proc", proc, proc_seeds, [b"\nUid:", b":name=systemd:", b"0::", b") S "]),
        Target("c_maps", maps, maps_seeds, [b" 08:01 77 ", b" 00:2a ", b"\\012", b" (deleted)", b"/data/a", b" r-xp "]),
        Target("c_link", link, link_seeds, [p.text for p in PATTERNS] + [b" (deleted)", b"ino:\t"], 4098),
        Target("c_table", table, table_seeds, [files.MAGIC]),
        Target("c_norms", numbers, number_seeds, []),
        Target("c_wheel", timers, timer_seeds, [b"\xff" * 8], slow_s=5 * SLOW_S),
    )
}
