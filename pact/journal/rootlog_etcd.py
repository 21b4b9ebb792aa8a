"""The root's log on etcd: for sites that want a second root, and a log that outlives a machine.

Keys below ``/pact/<cluster>/``: ``leader`` (with a lease), ``term`` (the newest fence), ``head`` (the next number),
``log/<first>``, ``part/<first>/<n>`` (of chunks too large for one value), ``snapshot`` (the parts of the newest one)
and ``snap/<gseq>-<fence>/<n>`` (those parts). A lease alone excludes nobody: a leader that slept does not know that its
lease has ended. So every write is one transaction that compares the leader's create revision, and the head if it
moves.  # Q1

A fence is one more than the last, and never behind the clock, as on SQLite: a log that is moved from one store to the
other, or an etcd that is restored from a backup, gives no fence that nodes would take for an old one.  # Q4

Other writers of these keys are trusted only within limits: a term far ahead of the clock, which every later root would
have to exceed and no node could count on, is ignored; a leader without a lease, which would lead for ever, is removed;
and malformed values cause a JournalError, never the end of the root.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import orjson

from pact.core import strict
from pact.errors import Fenced, JournalError
from pact.journal.etcd_client import EtcdClient
from pact.journal.rootlog import CHUNK_MAX, SNAPSHOT_MAX, TRIM_MAX, require_snapshot

VALUE_MAX: Final = 1_200_000  # of etcd's limit of 1.5 MiB for a request
PAGE_BYTES: Final = 4 << 20
PAGE_CHUNKS: Final = 512
TRIM_PAGE: Final = 100
SNAPSHOT_TRIES: Final = 3
CLOSE_S: Final = 1.0
#: How far a term may be ahead of the clock: the clock of the root that began it may have been wrong. No root begins a
#: term beyond that.
TERM_AHEAD_MAX_S: Final = 10 * 366 * 86_400
#: How much the clocks of two roots may differ; a root waits for a term that is only this far beyond.
TERM_SKEW_MAX_S: Final = 3600
#: A clock that shows a time before 2026 has lost its battery, and is not used to judge a term.
CLOCK_LEAST_S: Final = 1_767_225_600
SNAPSHOT_AT: Final = re.compile(r"snap/(\d{20})-\d{20}/")
TOLD_MAX: Final = 100
PARTS_MAX: Final = SNAPSHOT_MAX // VALUE_MAX + 1
KEEP_AGAIN_S: Final = 0.25  # after a failure: a new leader of etcd takes a second or two, and the lease runs meanwhile


def _now_s() -> float:
    """Seconds that also count while the machine sleeps, as etcd's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def next_fence(term: bytes | None, wall_s: int, seen: int = 0) -> tuple[int, str]:
    """The fence of a root that is elected now, and why ``term`` is not believed, if it is not. ``None``: of a new log.

    No root begins a term beyond the ceiling, so one beyond it was not begun by a root. The last real term is then
    unknown: the clock counts, plus the allowed difference of clocks, and the newest term that was ``seen``. Raises
    JournalError if the clock must catch up first.  # Q4
    """
    ceiling, why = max(wall_s, CLOCK_LEAST_S) + TERM_AHEAD_MAX_S, ""
    most = ceiling + TERM_SKEW_MAX_S
    last = 0 if term is None else number(term)
    if last is None or last > most:
        what = "is gone or makes no sense" if last is None else f"is {last}, too far ahead of the clock"
        why = f"the term in etcd {what}: no root left it so, and it is not believed; who may write to etcd?"
        last = wall_s + TERM_SKEW_MAX_S
    last = max(last, seen if seen <= most else 0)
    if last >= ceiling:
        raise JournalError(
            f"the term in etcd, {last}, is too far ahead of the clock: a root can lead when the clock "
            f"shows {last - TERM_AHEAD_MAX_S + 1} s",
            "who may write to etcd?",
        )
    return max(last + 1, wall_s), why


class Senseless(JournalError):
    """What stands in etcd was not written so by a root, whoever did it."""


def number(text: bytes) -> int | None:
    """A whole number from 0 on, in the form that a root writes."""
    return int(text) if re.fullmatch(rb"\d{1,20}", text) else None


def told(value: bytes) -> str:
    """A value for people: anybody may have written it."""
    return value[:TOLD_MAX].decode(errors="replace")


class EtcdLog:
    """See ``LogStore``. Connects at first use; every call ends within some seconds."""

    def __init__(
        self,
        hosts: list[str],
        cluster: str,
        *,
        ca: str = "",
        cert: str = "",
        key: str = "",
        user: str = "",
        password_file: str = "",
        lease_s: int = 6,
    ) -> None:
        self._etcd = EtcdClient(hosts, ca=ca, cert=cert, key=key, user=user, password_file=password_file)
        self._rpc = self._etcd.rpc
        self._prefix = f"/pact/{cluster}/"
        self._lease_s = lease_s
        self._fence = 0
        self._seen = 0  # the newest believed term
        self.doubted = ""  # why something in the election was not believed
        self._revision = 0  # the create revision of the leader key for this fence
        self._closed = False
        self._state = threading.Condition()
        self._lease = 0
        self._until_s = 0.0
        self._keeper: threading.Thread | None = None

    # -- keys and requests ------------------------------------------------------------------------------------------

    def _key(self, name: str) -> bytes:
        return (self._prefix + name).encode()

    def _log_key(self, first: int) -> bytes:
        return self._key(f"log/{max(0, first):020d}")

    def _range(self, start: bytes, end: bytes = b"", *, limit: int = 0, keys: bool = False) -> Any:
        return self._rpc.RangeRequest(key=start, range_end=end, limit=limit, keys_only=keys)

    def _get(self, start: bytes, end: bytes = b"", *, limit: int = 0, keys: bool = False) -> Any:
        return self._etcd.call("KV", "Range", self._range(start, end, limit=limit, keys=keys))

    def _put(self, key: bytes, value: bytes) -> Any:
        return self._rpc.RequestOp(request_put=self._rpc.PutRequest(key=key, value=value))

    def _delete(self, start: bytes, end: bytes) -> Any:
        return self._rpc.RequestOp(request_delete_range=self._rpc.DeleteRangeRequest(key=start, range_end=end))

    def _created(self, name: str, revision: int) -> Any:
        c = self._rpc.Compare
        return c(key=self._key(name), target=c.CREATE, result=c.EQUAL, create_revision=revision)

    def _head_is(self, first: int) -> Any:
        c = self._rpc.Compare
        return c(key=self._key("head"), target=c.VALUE, result=c.EQUAL, value=str(first).encode())

    def _txn(self, compare: list[Any], success: list[Any], failure: list[Any] | None = None) -> Any:
        request = self._rpc.TxnRequest(compare=compare, success=success, failure=failure or [])
        return self._etcd.call("KV", "Txn", request)

    # -- leadership -------------------------------------------------------------------------------------------------

    def campaign(self, name: str) -> int | None:
        if self.leading():
            return self._fence
        self._fence = 0
        # Writes with the old lease, which may still arrive, must not count as this term's: get a new fence.
        if self._lease:
            self._revoke(self._lease)
            self._lease = 0
        self.doubted = ""
        (leader,) = self._get(self._key("leader")).kvs or [None]
        if leader is not None and (leader.lease or not self._without_lease(leader)):
            return None
        (last,) = self._get(self._key("term")).kvs or [None]
        begun = last is not None or bool(self._get(self._key("head")).kvs)
        term = last.value if last is not None else b"" if begun else None
        fence, why = next_fence(term, int(time.time()), self._seen)
        self._seen, self.doubted = max(self._seen, fence - 1), why or self.doubted
        sent_s = _now_s()
        lease = self._etcd.call("Lease", "LeaseGrant", self._rpc.LeaseGrantRequest(TTL=self._lease_s))
        self._lease = lease.ID
        value = orjson.dumps({"name": name, "fence": fence})
        put = self._rpc.PutRequest(key=self._key("leader"), value=value, lease=lease.ID)
        unmoved = self._rpc.Compare(
            key=self._key("term"),
            target=self._rpc.Compare.MOD,
            result=self._rpc.Compare.EQUAL,
            mod_revision=0 if last is None else last.mod_revision,
        )
        answer = self._txn(
            [self._created("leader", 0), unmoved],
            [self._rpc.RequestOp(request_put=put), self._put(self._key("term"), str(fence).encode())],
            [self._rpc.RequestOp(request_range=self._range(self._key("leader")))],
        )
        if answer.succeeded:
            revision = answer.header.revision
        else:
            kvs = answer.responses[0].response_range.kvs
            if not kvs or kvs[0].lease != lease.ID:  # otherwise it had arrived before, and only its answer was lost
                return None
            revision = kvs[0].create_revision
        with self._state:
            self._until_s = sent_s + lease.TTL
            self._fence, self._revision = fence, int(revision)  # Q4
            self._seen = fence
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_alive, name="pact-lease", daemon=True)
                self._keeper.start()
            self._state.notify()
        return fence

    def _without_lease(self, leader: Any) -> bool:
        """Remove a leader that has no lease: every root has one, so nobody leads. Returns False if the leader changed
        meanwhile."""
        c = self._rpc.Compare
        same = c(key=self._key("leader"), target=c.MOD, result=c.EQUAL, mod_revision=leader.mod_revision)
        if not self._txn([same], [self._delete(self._key("leader"), b"")]).succeeded:
            return False
        self.doubted = "the leader in etcd had no lease: no root wrote it, and it was removed; who may write to etcd?"
        return True

    def _revoke(self, lease: int, total_s: float = 3.0) -> None:
        try:
            self._etcd.call("Lease", "LeaseRevoke", self._rpc.LeaseRevokeRequest(ID=lease), total_s=total_s)
        except JournalError as exc:
            if "lease not found" not in str(exc):
                raise

    def _keep_alive(self) -> None:
        """Runs in its own thread: an append that waits for a quorum must not cost the lease."""
        pause_s = self._lease_s / 3
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closed, pause_s)
                if self._closed:
                    return
                lease = self._lease if self._fence else 0
            pause_s = self._lease_s / 3
            if not lease:
                continue
            sent_s = _now_s()
            try:
                ttl = self._etcd.keep_alive(lease, total_s=self._lease_s / 3)
            except JournalError:
                pause_s = KEEP_AGAIN_S
                continue  # the lease that is certain runs out by itself
            with self._state:
                if self._lease == lease and _now_s() < self._until_s:
                    self._until_s = sent_s + ttl if ttl > 0 else 0.0

    def leading(self) -> bool:
        """False for ever once in doubt: a write of this term may still be on its way, so the next term needs a new
        fence."""
        with self._state:
            if _now_s() >= self._until_s:
                self._fence = 0
            return self._fence > 0

    def _fenced(self, why: str) -> Fenced:
        self._fence = 0
        return Fenced(why)

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(self, fence: int, compare: list[Any], success: list[Any], first: int = -1) -> Any | None:
        """Returns None if it is written, else etcd's answer with the present values. Raises Fenced."""
        if fence <= 0 or fence != self._fence:
            raise self._fenced(f"fence {fence} is not in force")
        look = [
            self._rpc.RequestOp(request_range=self._range(k))
            for k in (self._key("leader"), self._key("head"), *([self._log_key(first)] if first >= 0 else []))
        ]
        answer = self._txn([self._created("leader", self._revision), *compare], success, look)
        if answer.succeeded:
            return None
        (leader,) = answer.responses[0].response_range.kvs or [None]
        if leader is None or leader.create_revision != self._revision:  # Q1
            who = told(leader.value) if leader else "nobody"
            raise self._fenced(f"fence {fence} is not in force: {who} leads")
        return answer

    def append(self, fence: int, first: int, count: int, chunk: bytes) -> None:
        assert count > 0 and len(chunk) <= CHUNK_MAX, (count, len(chunk))
        about: dict[str, Any] = {"v": 1, "count": count, "bytes": len(chunk), "parts": 0}
        value = orjson.dumps(about) + b"\n" + chunk
        here = self._head_is(first)
        if len(chunk) > VALUE_MAX:  # nobody sees the parts before the value that names them  # Q3
            parts = [chunk[at : at + VALUE_MAX] for at in range(0, len(chunk), VALUE_MAX)]
            about |= {"parts": len(parts), "sha256": hashlib.sha256(chunk).hexdigest()}
            value = orjson.dumps(about) + b"\n"
        else:
            parts = []
        empty = self._created("head", 0)
        for compare in ([here], [empty]):  # an empty log begins at the first number that comes
            answer: Any = None
            for n, part in enumerate(parts):
                answer = self._write(fence, compare, [self._put(self._key(f"part/{first:020d}/{n:06d}"), part)], first)
                if answer is not None:
                    break
            else:
                moved = self._put(self._key("head"), str(first + count).encode())
                answer = self._write(fence, compare, [self._put(self._log_key(first), value), moved], first)
            if answer is None:
                return
            _, head, there = (r.response_range.kvs for r in answer.responses)
            if head:
                break
        if not there or there[0].value != value:  # Q2
            raise self._fenced(f"the log goes on at {told(head[0].value)}, not at {first}")

    def save_snapshot(self, fence: int, gseq: int, snapshot: bytes) -> None:
        require_snapshot(snapshot)
        try:
            found = self._manifest()
        except Senseless:
            found = None  # this root knows the state, and puts a sound one in its place
        if found is not None and found["gseq"] >= gseq and fence == self._fence:
            return
        where = f"snap/{gseq:020d}-{fence:020d}/"
        parts = [snapshot[at : at + VALUE_MAX] for at in range(0, len(snapshot), VALUE_MAX)]
        for n, part in enumerate(parts):
            self._write(fence, [], [self._put(self._key(f"{where}{n:06d}"), part)])
        manifest = orjson.dumps(
            {
                "v": 1,
                "gseq": gseq,
                "where": where,
                "parts": len(parts),
                "bytes": len(snapshot),
                "sha256": hashlib.sha256(snapshot).hexdigest(),
            }
        )
        self._write(fence, [], [self._put(self._key("snapshot"), manifest)])  # Q6
        self._write(
            fence,
            [],
            [
                self._delete(self._key("snap/"), self._key(where)),
                self._delete(self._key(where[:-1] + "0"), self._key("snap0")),
            ],
        )

    def trim(self, fence: int, before: int) -> None:
        found = self._manifest()
        limit = min(before, found["gseq"] + 1) if found is not None else 0  # Q6
        for _ in range(TRIM_MAX // TRIM_PAGE):
            firsts = self._firsts(TRIM_PAGE + 1)
            ends = [*firsts[1:], *([] if len(firsts) > TRIM_PAGE else [self._head()])]
            gone = [end for first, end in zip(firsts, ends, strict=False) if end <= limit]
            if not gone and fence == self._fence:
                return
            self._write(
                fence,
                [],
                [
                    self._delete(self._log_key(0), self._log_key(gone[-1])),
                    self._delete(self._key("part/"), self._key(f"part/{gone[-1]:020d}/")),
                ]
                if gone
                else [],
            )

    # -- reading ----------------------------------------------------------------------------------------------------

    def _sensible(self, value: int | None, what: str) -> int:
        if value is None:
            raise Senseless(f"etcd: {what} makes no sense", "who may write there? restore etcd from a backup")
        return value

    def _about(self, raw: bytes, what: str, **kinds: type) -> dict[str, Any]:
        """The description of a chunk or a snapshot, in the form that a root writes. Raises JournalError."""
        try:
            about = strict.loads_object(raw, strict.SMALL_MAX)
        except strict.NotStrictError:
            about = {}
        if "where" in kinds or about.get("parts") != 0:  # only a chunk can be whole without parts
            kinds["sha256"] = str
        sound = all(type(about.get(key)) is kind for key, kind in kinds.items())
        if not sound or not 0 <= about["parts"] <= PARTS_MAX or about.get("count", 1) < 1 or about.get("gseq", 0) < 0:
            self._sensible(None, what)
        return about

    def _head(self) -> int:
        kvs = self._get(self._key("head")).kvs
        return self._sensible(number(kvs[0].value), "head") if kvs else 0

    def _firsts(self, limit: int, start: int = 0) -> list[int]:
        """First numbers of chunks, ascending: for another order etcd would read the whole log."""
        kvs = self._get(self._log_key(start), self._key("log0"), limit=limit, keys=True).kvs
        return [self._first(kv.key) for kv in kvs]

    def _first(self, key: bytes) -> int:
        name = key.removeprefix(self._key("log/"))
        return self._sensible(number(name) if len(name) == 20 else None, f"the key {told(key)!r}")

    def oldest(self) -> int:
        firsts = self._firsts(1)
        return firsts[0] if firsts else self._head()

    def _at_or_before(self, gseq: int) -> int:
        """The largest first number up to ``gseq``, or the smallest one of all; -1 if there is none. Takes about ten
        short requests."""

        def following(number: int) -> int | None:
            firsts = self._firsts(1, number)
            return firsts[0] if firsts and firsts[0] <= gseq else None

        if following(gseq) is not None:
            return gseq
        low, high, step = following(max(0, gseq - 1)), gseq, 1
        while low is None and step < gseq:
            high, step = gseq - step, step * 2
            low = following(max(0, gseq - step))
        if low is None:
            firsts = self._firsts(1)
            return firsts[0] if firsts else -1
        while high - low > 1:
            middle = (low + high) // 2
            found = following(middle)
            low, high = (found, high) if found is not None else (low, middle)
        return low

    def read(self, gseq: int) -> Iterator[bytes]:
        for _, chunk in self._read(gseq):
            yield chunk

    def _read(self, gseq: int) -> Iterator[tuple[int, bytes]]:
        """Chunks, each with the number after its last event; no bytes for one that is damaged."""
        at = self._at_or_before(max(0, gseq))
        begun, limit = False, 4  # begun: the next chunk begins at ``at``
        while at >= 0:
            kvs = self._get(self._log_key(at), self._key("log0"), limit=limit).kvs
            for kv in kvs:
                first = self._first(kv.key)
                head, _, chunk = kv.value.partition(b"\n")
                if begun and first != at:
                    return  # trimmed meanwhile
                try:
                    about = self._about(head, f"the chunk at {first}", count=int, parts=int)
                except Senseless:  # how many events it had is not known
                    yield first + 1, b""
                    begun, at = False, first + 1
                    continue
                if first + about["count"] > gseq:
                    whole = chunk if not about["parts"] else self._joined(f"part/{first:020d}/", about)
                    if whole is None:
                        if self.oldest() > first:
                            return
                        whole = b""
                    yield first + about["count"], whole
                    begun = True
                at = first + about["count"]
            if not kvs:
                return
            size = sum(len(kv.value) for kv in kvs) // len(kvs)
            limit = max(1, min(PAGE_CHUNKS, PAGE_BYTES // max(1, size)))

    def _joined(self, where: str, about: dict[str, Any]) -> bytes | None:
        """The parts joined, or None if they no longer belong together."""
        out = []
        for n in range(about["parts"]):
            kvs = self._get(self._key(f"{where}{n:06d}")).kvs
            out.append(kvs[0].value if kvs else b"")
        whole = b"".join(out)
        return whole if hashlib.sha256(whole).hexdigest() == about["sha256"] else None

    def _manifest(self) -> dict[str, Any] | None:
        kvs = self._get(self._key("snapshot")).kvs
        if not kvs:
            return None
        about = self._about(kvs[0].value, "the snapshot", gseq=int, where=str, parts=int)
        where = SNAPSHOT_AT.fullmatch(about["where"])
        head = self._get(self._key("head")).kvs  # none: this log begins with the snapshot
        if where is None or int(where[1]) != about["gseq"] or (head and about["gseq"] >= self._head()):
            self._sensible(None, "the snapshot")  # what it does not cover would be taken for covered, and trimmed
        return about

    def load(self) -> tuple[bytes | None, Iterator[bytes]]:
        for _ in range(SNAPSHOT_TRIES):  # another leader may replace the snapshot while it is read
            about = self._manifest()
            if about is None:
                return None, self._to_the_head(0)
            snapshot = self._joined(about["where"], about)
            if snapshot is not None:
                return snapshot, self._to_the_head(about["gseq"] + 1)
        raise JournalError("etcd: the snapshot is damaged", "restore etcd from a backup")

    def _to_the_head(self, gseq: int) -> Iterator[bytes]:
        """The chunks from ``gseq`` on. While this root leads nobody else appends: a log that ends elsewhere than its
        head says has lost something, and no root could go on with it."""
        end = gseq
        for after, chunk in self._read(gseq):
            yield chunk
            end = max(end, after)
        head = self._get(self._key("head")).kvs
        if self._fence and head and self._head() != end:
            self._sensible(None, f"the head, {told(head[0].value)}, where the chunks end at {end},")

    def close(self) -> None:
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._fence, lease = 0, self._lease
            self._state.notify()
        if self._keeper is not None:
            self._keeper.join()
        if lease:
            try:
                self._revoke(lease, CLOSE_S)
            except JournalError:
                pass  # the lease ends by itself
        self._etcd.close()
