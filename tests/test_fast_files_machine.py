"""FileTable against its naive twin: random lives of real files, the same calls, the same results and exceptions."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pact._fast import reference

files = pytest.importorskip("pact._fast.files")

LONG_AGO_NS = 1_600_000_000 * 10**9
SETTLE_S = 0.03  # more than the 20 ms in which a signature proves nothing
CONTENT_MAX = 4096
SECRET = bytes(range(64))

names = st.sampled_from([b"a", b"b", b"c", b"dir/d", b"dir", b"\xff\n", b"none/e"])
contents = st.builds(
    lambda unit, count: unit * count,
    st.sampled_from([b"x", b"y", b"\0"]),
    st.sampled_from([0, 1, 63, 64, 65, CONTENT_MAX, CONTENT_MAX + 1]),
)
keys = st.integers(0, 5)
odd_keys = st.one_of(keys, st.sampled_from([-1, 2**63 - 1, 2**63, "0", 1.0, None, True]))
odd_paths = st.sampled_from([b"relative", b"", b"/nul\0", b"/" + b"x" * 4094, b"/" + b"x" * 4095, "/text", None, 7])
asked = st.one_of(
    st.none(),
    st.lists(odd_keys, max_size=4),
    st.lists(keys, max_size=6),
    st.lists(keys, max_size=6).map(lambda ks: array("q", ks)),
    st.sampled_from([array("i", [0]), b"1234567", 5, "01"]),
)


def outcome(act: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "gave", act()
    except Exception as exc:
        return type(exc).__name__, exc.args if isinstance(exc, KeyError) else None


class Twins(RuleBasedStateMachine):
    """One directory, two tables that are asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.top = os.fsencode(tempfile.mkdtemp(prefix="pact-twins-"))
        os.mkdir(self.top + b"/dir")
        self.pair = tuple(m.FileTable(SECRET, CONTENT_MAX) for m in (files, reference))

    def teardown(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)

    def both(self, ask: Callable[[Any], Any]) -> tuple[str, Any]:
        compiled, naive = (outcome(lambda t=t: ask(t)) for t in self.pair)  # type: ignore[misc]
        assert compiled == naive
        return compiled

    # -- what is asked of the tables --------------------------------------------------------------------------------

    @rule(key=keys, name=names, volatile=st.booleans())
    def put(self, key: int, name: bytes, volatile: bool) -> None:
        self.both(lambda t: t.put(key, self.top + b"/" + name, volatile))

    @rule(key=odd_keys, path=odd_paths)
    def put_oddly(self, key: Any, path: Any) -> None:
        self.both(lambda t: t.put(key, path))

    @rule(key=odd_keys)
    def forget(self, key: Any) -> None:
        self.both(lambda t: t.remove(key))

    @rule(key=odd_keys)
    def has(self, key: Any) -> None:
        self.both(lambda t: key in t)

    @rule(full=st.booleans(), settle=st.booleans())
    def scan_all(self, full: bool, settle: bool) -> None:
        if settle:
            time.sleep(SETTLE_S)
        self.both(lambda t: t.scan(full=full))

    @rule(which=asked, full=st.booleans())
    def scan_some(self, which: Any, full: bool) -> None:
        self.both(lambda t: t.scan(which, full))

    @rule()
    def a_settled_table_that_was_scanned_reports_nothing(self) -> None:
        time.sleep(SETTLE_S)
        self.both(lambda t: t.scan())
        assert self.both(lambda t: t.scan()) == ("gave", [])

    @rule(damage=st.one_of(st.none(), st.integers(0, 1 << 16)))
    def dump_and_restore(self, damage: int | None) -> None:
        def again(table: Any) -> Any:
            blob = table.dump()
            if damage is not None:
                at = damage % len(blob)
                blob = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
            return table.restore(blob)

        self.both(again)

    # -- what happens to the files ----------------------------------------------------------------------------------

    def path(self, name: bytes) -> bytes:
        return self.top + b"/" + name

    def trying(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:
            pass  # a directory is in the way, or nothing is there: nothing has happened then

    def plain(self, name: bytes) -> bool:
        return os.path.isfile(self.path(name)) and not os.path.islink(self.path(name))

    @rule(name=names, content=contents)
    def create_or_rewrite(self, name: bytes, content: bytes) -> None:
        def write() -> None:
            fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            with open(fd, "wb") as f:
                f.write(content)

        self.trying(write)

    @rule(name=names, unit=st.sampled_from([b"x", b"z"]))
    def rewrite_with_size_and_time_put_back(self, name: bytes, unit: bytes) -> None:
        if self.plain(name):
            stat = os.stat(self.path(name))
            with open(self.path(name), "r+b") as f:
                f.write(unit * min(stat.st_size, CONTENT_MAX))
            os.utime(self.path(name), ns=(stat.st_atime_ns, stat.st_mtime_ns))

    @rule(name=names, key=keys)
    def rewrite_within_the_tick_of_a_scan(self, name: bytes, key: int) -> None:
        if self.plain(name):
            self.both(lambda t: t.put(key, self.path(name)))
            with open(self.path(name), "r+b", buffering=0) as f:
                f.truncate(64)
                for unit in (b"1", b"2", b"3"):
                    os.pwrite(f.fileno(), unit * 64, 0)
                    assert self.both(lambda t: t.scan([key])) == ("gave", [key])

    @rule(name=names)
    def make_old(self, name: bytes) -> None:
        self.trying(lambda: os.utime(self.path(name), ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False))

    @rule(name=names, content=contents)
    def replace_by_rename(self, name: bytes, content: bytes) -> None:
        with open(self.path(b"new"), "wb") as f:
            f.write(content)
        self.trying(lambda: os.rename(self.path(b"new"), self.path(name)))

    @rule(name=names)
    def remove(self, name: bytes) -> None:
        self.trying(lambda: os.unlink(self.path(name)))

    @rule(name=names, mode=st.sampled_from([0o600, 0o644, 0o4755, 0]))
    def chmod(self, name: bytes, mode: int) -> None:
        if self.plain(name):
            os.chmod(self.path(name), mode)

    @rule(name=names, leads=st.sampled_from([b"a", b"nowhere", b"."]))
    def link(self, name: bytes, leads: bytes) -> None:
        self.trying(lambda: os.symlink(leads, self.path(name)))

    @rule(name=names, other=names)
    def name_twice(self, name: bytes, other: bytes) -> None:
        self.trying(lambda: os.link(self.path(name), self.path(other), follow_symlinks=False))

    @rule(name=names)
    def make_a_fifo(self, name: bytes) -> None:
        self.trying(lambda: os.mkfifo(self.path(name)))

    @precondition(lambda self: not os.path.isdir(self.top + b"/none"))
    @rule()
    def make_the_missing_directory(self) -> None:
        os.mkdir(self.top + b"/none")

    @rule()
    def move_a_directory_away(self) -> None:
        self.trying(lambda: os.rename(self.path(b"dir"), self.path(b"none")))

    @invariant()
    def are_equally_long(self) -> None:
        assert len(self.pair[0]) == len(self.pair[1])


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
