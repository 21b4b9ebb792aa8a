"""The kernels in the simplest form, without regard to speed: tests compare the compiled ones with them.

Same results, same exceptions (their messages may differ). Used if no extension is built, or if PACT_FAST=reference. No
numpy: buffers are memoryviews.
"""

from __future__ import annotations

import errno
import math
import operator
import os
import re
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeVar, overload

from pact._fast import mounts
from pact._fast.mounts import Holder, Root

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEY_LIMIT: Final = 1 << 26
INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1

_Out = TypeVar("_Out", bound="Buffer")


def _view(source: Buffer, kind: str, writable: bool = False) -> Any:
    """A memoryview of plain ``kind`` items."""
    view = memoryview(source)
    code = view.format[1:] if view.format[:1] in "@=<" else view.format
    if view.itemsize != 8 or code not in (("d",) if kind == "d" else ("q", "l")):
        raise ValueError(f"expected a buffer of {'float64' if kind == 'd' else 'int64'}")
    if view.ndim != 1 or not view.c_contiguous:
        raise ValueError("expected a contiguous buffer of one dimension")
    if writable and view.readonly:
        raise ValueError("expected a writable buffer")
    return view if view.format == kind or not view.nbytes else view.cast("B").cast(kind)  # type: ignore[call-overload]


def _key(value: SupportsIndex) -> int:
    key = operator.index(value)
    if not 0 <= key < KEY_LIMIT:
        raise ValueError(f"key {value!r} is not in 0..{KEY_LIMIT - 1}")
    return key


def _int64(value: SupportsIndex) -> int:
    number = operator.index(value)
    if not INT64_MIN <= number <= INT64_MAX:
        raise OverflowError(f"{value!r} does not fit in 64 bits")
    return number


class TimerWheel:
    """A dict of deadlines, sorted at every question."""

    def __init__(self, now_ns: int, tick_ns: SupportsIndex = 1_000_000) -> None:
        _int64(now_ns)
        if not 1 <= operator.index(tick_ns) <= 1_000_000_000:
            raise ValueError(f"tick_ns {tick_ns!r} is not in 1..1_000_000_000")
        self._deadlines: dict[int, int] = {}

    def schedule(self, key: SupportsIndex, deadline_ns: int) -> None:
        deadline = _int64(deadline_ns)
        self._deadlines[_key(key)] = deadline

    def schedule_many(self, keys: Buffer, deadlines: Buffer) -> None:
        numbers, times = _view(keys, "q").tolist(), _view(deadlines, "q").tolist()
        if len(numbers) != len(times):
            raise ValueError(f"{len(numbers)} keys but {len(times)} deadlines")
        checked = [_key(key) for key in numbers]
        self._deadlines.update(zip(checked, times, strict=True))

    def cancel(self, key: SupportsIndex) -> bool:
        return self._deadlines.pop(_key(key), None) is not None

    def cancel_many(self, keys: Buffer) -> int:
        checked = [_key(key) for key in _view(keys, "q").tolist()]
        return sum(self._deadlines.pop(key, None) is not None for key in checked)

    def advance(self, now_ns: int, limit: SupportsIndex | None = None) -> list[int]:
        now = _int64(now_ns)
        most = len(self._deadlines) if limit is None else operator.index(limit)
        if most < 0:
            raise ValueError(f"limit {limit!r} is negative")
        due = sorted((deadline, key) for key, deadline in self._deadlines.items() if deadline <= now)[:most]
        for _, key in due:
            del self._deadlines[key]
        return [key for _, key in due]

    def next_deadline(self) -> int | None:
        return min(self._deadlines.values(), default=None)

    def deadline(self, key: SupportsIndex) -> int | None:
        return self._deadlines.get(_key(key))

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, key: SupportsIndex) -> bool:
        return operator.index(key) in self._deadlines


# --- norms ---


def _square_sum(deviations: Sequence[float], weights: Sequence[float]) -> float:
    lanes = [0.0] * 8
    for i, (d, w) in enumerate(zip(deviations, weights, strict=True)):
        lanes[i % 8] += w * d * d
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


def _check(values: Sequence[float]) -> None:
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError("a deviation or weight is negative, NaN or infinite")


def _root(total: float) -> float:
    if not math.isfinite(total):
        raise ValueError("the sum of the squares overflows")
    return math.sqrt(total)


_JSON_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[-0-9][-+0-9.eE]*|[\[\]{}:]', re.DOTALL)


def members_in(text: Buffer, deepest: int) -> int:
    depth = members = 0
    for token in _JSON_TOKEN.findall(bytes(text)):
        if token in (b"{", b"["):
            depth += 1
            if depth > deepest:
                raise ValueError(f"nested deeper than {deepest} levels")
        elif token in (b"}", b"]"):
            depth -= 1
        elif token == b":":
            members += 1
        elif token[:1] != b'"' and not set(token[1:]) & set(b".eE+-"):
            digits = token.removeprefix(b"-")
            number = int(digits[-30:] or b"0") if len(digits.lstrip(b"0")) < 30 else INT64_MAX * 4
            if number > (-INT64_MIN if token[:1] == b"-" else 2 * INT64_MAX + 1):
                raise ValueError("a number beyond 64 bits")
    return members


def members_of(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(map(members_of, value.values()))
    return sum(map(members_of, value)) if type(value) is list else 0


def has_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_float, value.values()))
    return any(map(has_float, value)) if isinstance(value, list | tuple) else isinstance(value, float)


def magnitude(deviations: Buffer, weights: Buffer) -> float:
    d, w = _view(deviations, "d").tolist(), _view(weights, "d").tolist()
    if len(d) != len(w):
        raise ValueError(f"{len(d)} deviations but {len(w)} weights")
    _check(d)
    _check(w)
    return _root(_square_sum(d, w))


@overload
def magnitudes(deviations: Buffer, weights: Buffer, indptr: Buffer, out: None = None) -> array[float]: ...
@overload
def magnitudes(deviations: Buffer, weights: Buffer, indptr: Buffer, out: _Out) -> _Out: ...
def magnitudes(deviations: Buffer, weights: Buffer, indptr: Buffer, out: Any = None) -> Any:
    d, w, offsets = _view(deviations, "d").tolist(), _view(weights, "d").tolist(), _view(indptr, "q").tolist()
    if len(d) != len(w):
        raise ValueError(f"{len(d)} deviations but {len(w)} weights")
    if not offsets or offsets[0] != 0 or offsets[-1] != len(d) or sorted(offsets) != offsets:
        raise ValueError(f"indptr must rise from 0 to {len(d)} without a step down")
    if out is None:
        out = array("d", bytes(8 * (len(offsets) - 1)))
    target = _view(out, "d", writable=True)
    if len(target) != len(offsets) - 1:
        raise ValueError(f"out has {len(target)} items for {len(offsets) - 1} segments")
    _check(d)
    _check(w)
    for i, (begin, end) in enumerate(pairwise(offsets)):
        target[i] = _root(_square_sum(d[begin:end], w[begin:end]))
    return out


def _window(magnitude: float, base: int, sensitivity: float) -> int:
    magnitude = float(magnitude)
    if not (magnitude >= 0.0 and math.isfinite(magnitude)):
        raise ValueError(f"magnitude {magnitude} is negative, NaN or infinite")
    return min(int(float(base) / (1.0 + magnitude * sensitivity)), base)


@overload
def window_ns(magnitudes: float, base_ns: int, sensitivity: float, out: None = None) -> int: ...
@overload
def window_ns(magnitudes: Buffer, base_ns: int, sensitivity: float, out: None = None) -> array[int]: ...
@overload
def window_ns(magnitudes: Buffer, base_ns: int, sensitivity: float, out: _Out) -> _Out: ...
def window_ns(magnitudes: Any, base_ns: int, sensitivity: float, out: Any = None) -> Any:
    base, sensitivity = _int64(base_ns), sensitivity * 1.0
    if base <= 0:
        raise ValueError(f"base_ns {base} is not positive")
    if not (sensitivity >= 0.0 and math.isfinite(sensitivity)):
        raise ValueError(f"sensitivity {sensitivity} is negative, NaN or infinite")
    if isinstance(magnitudes, (float, int)):
        return _window(magnitudes, base, sensitivity)
    values = _view(magnitudes, "d").tolist()
    if out is None:
        out = array("q", bytes(8 * len(values)))
    target = _view(out, "q", writable=True)
    if len(target) != len(values):
        raise ValueError(f"out has {len(target)} items for {len(values)} magnitudes")
    for i, value in enumerate(values):
        target[i] = _window(value, base, sensitivity)
    return out


# --- files ---

_RACY_NS: Final = 20_000_000
_CLOCK_REALTIME_COARSE: Final = 5
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_MAGIC: Final = b"pact files 1 reference\n"
_OWN_TROUBLE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: A fingerprint, "too large", the errno of reading, or None: not read.
_Content = bytes | str | int | None


@dataclass(frozen=True, slots=True)
class _Sight:
    """``signature`` is (device, inode, mode, uid, gid, size, mtime, ctime), or the errno of lstat."""

    signature: tuple[int, ...] | int
    content: _Content = None
    racy: bool = False

    @property
    def has_content(self) -> bool:
        return not isinstance(self.signature, int) and (
            stat.S_ISREG(self.signature[2]) or stat.S_ISLNK(self.signature[2])
        )


@dataclass(slots=True)
class _Entry:
    path: bytes
    volatile: bool
    sight: _Sight | None = None


def _signature(st: os.stat_result) -> tuple[int, ...]:
    return (
        st.st_dev,
        st.st_ino,
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_size,
        st.st_mtime_ns,
        st.st_ctime_ns,
    )


class FileTable:
    """The table as a dict; a fingerprint is keyed BLAKE2b."""

    def __init__(self, secret: bytes | None = None, content_max: SupportsIndex = 4 << 20) -> None:
        secret = os.urandom(64) if secret is None else secret
        if not isinstance(secret, bytes):
            raise TypeError(f"secret must be bytes, not {type(secret).__name__}")
        if len(secret) != 64:
            raise ValueError(f"secret has {len(secret)} bytes, not 64")
        self._content_max = operator.index(content_max)
        if self._content_max < 0:
            raise ValueError(f"content_max {content_max} is negative")
        self._secret = secret
        self._entries: dict[int, _Entry] = {}

    def put(self, key: SupportsIndex, path: bytes, volatile: bool = False) -> None:
        number = _key(key)
        if not isinstance(path, bytes):
            raise TypeError(f"path must be bytes, not {type(path).__name__}")
        if not path.startswith(b"/") or b"\0" in path or len(path) >= 4096:
            raise ValueError(f"{path!r} is no absolute path of at most 4095 bytes")
        self._entries[number] = _Entry(path, bool(volatile))

    def remove(self, key: SupportsIndex) -> bool:
        return self._entries.pop(_key(key), None) is not None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: SupportsIndex) -> bool:
        return operator.index(key) in self._entries

    def scan(self, keys: Iterable[SupportsIndex] | Buffer | None = None, full: bool = False) -> list[int]:
        order = sorted(self._entries) if keys is None else list(self._known(keys))
        now = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        return [key for key in order if self._check(self._entries[key], bool(full), now)]

    def _known(self, keys: Iterable[SupportsIndex] | Buffer) -> Iterator[int]:
        """The keys, each checked when its turn comes: the first wrong one decides which error is raised."""
        try:
            memoryview(keys)  # type: ignore[arg-type]
        except TypeError:
            given: Iterator[int] = (_key(key) for key in keys)  # type: ignore[union-attr]
        else:
            given = iter(_view(keys, "q").tolist())  # type: ignore[arg-type]
        for key in given:
            if key not in self._entries:
                raise KeyError(key)
            yield key

    def _look(self, path: bytes, reading: bool) -> _Sight:
        try:
            sight = _Sight(_signature(os.lstat(path)))
        except OSError as error:
            return _Sight(error.errno or errno.EIO)
        if not reading or not sight.has_content:
            return sight
        assert not isinstance(sight.signature, int)
        if stat.S_ISLNK(sight.signature[2]):
            try:
                return replace(sight, content=self._print(os.readlink(path)))
            except OSError as error:
                return replace(sight, content=error.errno)
        try:
            fd = self._open(path)
        except OSError as error:
            return replace(sight, content=error.errno)
        try:
            sight = _Sight(_signature(os.fstat(fd)))
            return replace(sight, content=self._read(fd, sight)) if sight.has_content else sight
        finally:
            os.close(fd)

    def _open(self, path: bytes) -> int:
        held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(held).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            link = f"/proc/self/fd/{held}"
            try:
                return os.open(link, _OPEN_FLAGS & ~os.O_NOFOLLOW | os.O_NOATIME)
            except PermissionError as error:
                if error.errno != errno.EPERM:
                    raise
                return os.open(link, _OPEN_FLAGS & ~os.O_NOFOLLOW)
        finally:
            os.close(held)

    def _read(self, fd: int, sight: _Sight) -> _Content:
        assert not isinstance(sight.signature, int)
        if sight.signature[5] > self._content_max:
            return "too large"
        content = b""
        try:
            while part := os.read(fd, 1 << 16):
                content += part
                if len(content) > self._content_max:
                    return "too large"
        except OSError as error:
            return error.errno
        return self._print(content)

    def _print(self, content: bytes) -> bytes:
        return blake2b(content, digest_size=16, key=self._secret).digest()

    def _check(self, entry: _Entry, full: bool, now: int) -> bool:
        old = entry.sight
        new = self._look(entry.path, full or entry.volatile)
        if entry.volatile:
            changed = old is None or _status(new) != _status(old) or new.content != old.content
        else:
            new = replace(new, racy=self._proves_nothing(new, now))
            changed = old is None or new.signature != old.signature
            if new.content is None and new.has_content and (new.racy or (not changed and old is not None and old.racy)):
                new = self._look(entry.path, True)
                new = replace(new, racy=self._proves_nothing(new, now))
                changed = changed or old is None or new.signature != old.signature
            if not changed and old is not None:
                known = new.content is not None and old.content is not None
                changed = (known and new.content != old.content) or (old.racy and new.content == "too large")
                if new.content is None:
                    new = replace(new, content=old.content)
        entry.sight = new
        if new.content in _OWN_TROUBLE or new.signature == errno.ENOMEM:
            entry.sight = None
            changed = True
        return changed

    @staticmethod
    def _proves_nothing(sight: _Sight, now: int) -> bool:
        if not sight.has_content:
            return False
        assert not isinstance(sight.signature, int)
        mtime, ctime = sight.signature[6:]
        return ctime >= now - _RACY_NS or abs(mtime - now) <= _RACY_NS

    def dump(self) -> bytes:
        body = _MAGIC + repr(
            (
                self._secret,
                [
                    (e.path, e.volatile, e.sight.signature, e.sight.content, e.sight.racy)
                    for e in self._entries.values()
                    if e.sight
                ],
            )
        ).encode("ascii")
        return body + blake2b(body, digest_size=16).digest()

    def restore(self, blob: bytes) -> int:
        if not isinstance(blob, bytes):
            raise TypeError(f"blob must be bytes, not {type(blob).__name__}")
        if not blob.startswith(_MAGIC):
            raise ValueError("not a dump of this version of the table")
        body = blob[:-16]
        if len(blob) < len(_MAGIC) + 16 or blake2b(body, digest_size=16).digest() != blob[-16:]:
            raise ValueError("the dump is damaged")
        from ast import literal_eval

        secret, rows = literal_eval(body[len(_MAGIC) :].decode("ascii"))
        saved = {(path, volatile): _Sight(*sight) for path, volatile, *sight in rows}
        if secret != self._secret:
            self._secret = secret
            for entry in self._entries.values():
                if entry.sight and isinstance(entry.sight.content, bytes):
                    entry.sight = None if entry.sight.racy or entry.volatile else replace(entry.sight, content=None)
        taken = 0
        for entry in self._entries.values():
            if (entry.path, entry.volatile) in saved:
                entry.sight = saved[entry.path, entry.volatile]
                taken += 1
        return taken


def _status(sight: _Sight) -> int:
    return sight.signature if isinstance(sight.signature, int) else 0


# --- open handles ---


def open_handles(roots: Sequence[Root], *, proc: bytes = b"/proc") -> list[Holder]:
    return open_handles_ex(roots, proc=proc)[0]


def open_handles_ex(roots: Sequence[Root], *, proc: bytes = b"/proc") -> tuple[list[Holder], list[int]]:
    return _Scan(mounts.Targets(roots, proc)).run()


class _Scan:
    def __init__(self, targets: mounts.Targets) -> None:
        self.targets = targets
        self.proc = targets.proc
        self.found: set[Holder] = set()
        self.unreadable: set[int] = set()
        self.spaces: dict[tuple[bytes, bytes], mounts.Space] = {}

    def run(self) -> tuple[list[Holder], list[int]]:
        for name in os.listdir(self.proc):
            if name.isdigit():
                self.process(int(name), self.proc + b"/" + name)
        return sorted(self.found), sorted(self.unreadable)

    def process(self, pid: int, base: bytes) -> None:
        """One process, or one thread of a process whose first thread has ended."""
        try:
            if not self.one(pid, base) and os.stat(base + b"/task").st_nlink > 3:
                for tid in os.listdir(base + b"/task"):
                    if int(tid) != pid:
                        self.one(pid, base + b"/task/" + tid)
        except OSError as error:
            self.trouble(pid, error)

    def one(self, pid: int, base: bytes) -> bool:
        """False if it has no program: a kernel thread, or it has ended."""
        try:
            namespace = os.readlink(base + b"/ns/mnt")
            root = os.readlink(base + b"/root")
        except OSError as error:
            self.trouble(pid, error)
            return False
        space = self.space(pid, base, namespace, root)
        if space is None:
            return True
        self.link(pid, "root", root, space)
        self.read_link(pid, "cwd", base, space)
        program = self.read_link(pid, "exe", base, space)
        try:
            for fd in os.listdir(base + b"/fd"):
                self.descriptor(pid, base, fd, space)
            if program:
                with open(base + b"/maps", "rb") as file:
                    for line in file:
                        self.mapping(pid, line, space)
        except OSError as error:
            self.trouble(pid, error)
        return program

    def space(self, pid: int, base: bytes, namespace: bytes, root: bytes) -> mounts.Space | None:
        if namespace == self.targets.namespace:
            return self.targets.own
        if (namespace, root) not in self.spaces:
            try:
                text = self.targets.others.read(base)
            except OSError as error:
                self.trouble(pid, error)
                return None
            self.spaces[namespace, root] = self.targets.space(text, root)
        return self.spaces[namespace, root]

    def read_link(self, pid: int, how: str, base: bytes, space: mounts.Space) -> bool:
        try:
            self.link(pid, how, os.readlink(base + b"/" + how.encode()), space)
        except OSError as error:
            self.trouble(pid, error)
            return False
        return True

    def link(self, pid: int, how: str, text: bytes, space: mounts.Space, detail: int = -1) -> None:
        for pattern in space.patterns:
            if pattern.matches(text):
                self.found.add(Holder(pid, how, pattern.root, text, detail))

    def descriptor(self, pid: int, base: bytes, fd: bytes, space: mounts.Space) -> None:
        try:
            text = os.readlink(base + b"/fd/" + fd)
            self.link(pid, "fd", text, space, int(fd))
            if text.startswith(b"/") and (self.targets.hard_links or (self.targets.inodes and mounts.is_deleted(text))):
                with open(base + b"/fdinfo/" + fd, "rb") as file:
                    info = file.read()
                for root in self.targets.roots_of(info, space, base + b"/fd/" + fd, text):
                    self.found.add(Holder(pid, "fd", root, text, int(fd)))
        except OSError as error:
            self.trouble(pid, error)

    def mapping(self, pid: int, line: bytes, space: mounts.Space) -> None:
        _, _, _, dev, inode, *rest = line.rstrip(b"\n").split(None, 5)
        if not int(inode):
            return
        text = rest[0].replace(b"\\012", b"\n") if rest else b""
        device = mounts.device(*(int(part, 16) for part in dev.split(b":")))
        self.link(pid, "map", text, space)
        roots = self.targets.devices.get(device, []) + self.targets.inodes.get((device, int(inode)), [])
        for root in roots:
            self.found.add(Holder(pid, "map", root, text, -1))

    def trouble(self, pid: int, error: OSError) -> None:
        if error.errno in _OWN_TROUBLE:
            raise error
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            self.unreadable.add(pid)
