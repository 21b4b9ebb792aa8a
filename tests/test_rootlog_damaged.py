"""A chunk of the root's log is damaged: a root leads past it where no decision can be lost, and ends nowhere."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import orjson
import pytest
from cluster_kit import free_ports
from hostile_kit import NAMES, Hostile
from public_root import Chain
from rootlog_suite import until

from pact.cluster.committer import Committer, Elected
from pact.cluster.nodesets import NodeSets
from pact.cluster.watcher import Watcher
from pact.core.root import chunks as chunks_
from pact.core.root import payloads, public
from pact.core.root.log import RootState, load
from pact.core.root.root import Root
from pact.core.root.salvage import load_past, told
from pact.core.root.term import Commit, Effect
from pact.core.tree.wire import message
from pact.errors import ChainError
from pact.journal.rootlog_sqlite import SqliteLog

pytestmark = pytest.mark.invariant("F37")

WORDS = 5  # chunks of nodes' records between two of the root's own


class Log:
    """The chunks of a root: of its own records (0, 6, 12), and of one record of ``n1`` each between them."""

    def __init__(self) -> None:
        self.root, self.chain, self.chunks = Root("r", RootState(), 1, NodeSets()), Chain("n1"), list[bytes]()
        self._perform(self.root.start(1, 1, "b", 0))
        for n in range(2):
            for _ in range(WORDS):
                self.says()
            self.root.record(payloads.NodeForgotten(nodes=[f"gone{n}"]), self.root.actor())
            self._perform(self.root.take_effects())
        self.says()

    def says(self) -> None:
        batch = self.chain.batch("committed")
        body = b"".join(line + b"\n" for line in batch.lines)
        row = [batch.node, batch.incarnation, batch.first, 1, len(body)]
        self._perform(self.root.received(message("events", {"batches": [row]}, body), 2, 2))

    def _perform(self, effects: Iterable[Effect]) -> None:
        for e in effects:
            if isinstance(e, Commit):
                self.chunks.append(e.chunk)
                self._perform(self.root.durable(e.first, e.count, 2, 2))

    def with_damage(self, *at: int, kind: str = "altered") -> list[bytes]:
        return [rotten(raw, kind) if n in at else raw for n, raw in enumerate(self.chunks)]


def rotten(raw: bytes, kind: str) -> bytes:
    if kind == "altered":  # in the hash of its record: it can be read as well as before
        return raw[:-9] + (b"0" if raw[-9:-8] != b"0" else b"1") + raw[-8:]
    return b"" if kind == "lost" else raw[: len(raw) // 2]


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.mark.parametrize("kind", ["altered", "lost", "cut"])
def test_a_root_leads_past_damage_in_records_of_nodes_alone(log: Log, kind: str) -> None:
    for at in range(1, len(log.chunks) - 1):
        own = at % (WORDS + 1) == 0
        damaged = log.with_damage(at, kind=kind)
        with pytest.raises((ChainError, ValueError)):
            load(None, damaged)
        if own:
            with pytest.raises((ChainError, ValueError)):
                load_past(None, damaged)
            continue
        state, holes = load_past(None, damaged)
        assert holes == [(at, at)] and f"{at} to {at} are lost" in told(holes)
        assert (state.gseq, state.chunk_hash) == (log.root.state.gseq, log.root.state.chunk_hash)
        assert state.forgotten == log.root.state.forgotten and state.chain == log.root.state.chain


def test_no_root_leads_where_a_decision_may_be_lost(log: Log) -> None:
    last = len(log.chunks) - 1
    for kind in ("altered", "lost", "cut"):
        for damage in ([0], [WORDS + 1], [2, WORDS + 1], [2 * (WORDS + 1)], range(last)):
            with pytest.raises((ChainError, ValueError)):
                load_past(None, log.with_damage(*damage, kind=kind))
    for kind in ("lost", "cut"):  # of the newest chunk only the form is known
        with pytest.raises((ChainError, ValueError)):
            load_past(None, log.with_damage(last, kind=kind))


@pytest.mark.parametrize("old,new", [(b"gone1", b"wone1"), (b'"node_forgotten","v"', b'"node_forgotte~","v"')])
def test_no_root_leads_with_a_word_of_its_own_that_nothing_vouches_for(old: bytes, new: bytes) -> None:
    """The chunk after it is damaged, too: nothing names the hash of this one."""
    at = 2 * (WORDS + 1)
    more = Log()
    more.says()
    raws = more.with_damage(at + 1)
    raws[at] = raws[at].replace(old, new)
    assert raws[at] != more.chunks[at] and load_past(None, more.with_damage(at + 1))[1] == [(at + 1, at + 1)]
    with pytest.raises((ChainError, ValueError)):
        load_past(None, raws)


def test_no_root_leads_past_its_own_word_whose_name_is_damaged() -> None:
    """The newest word of the root stands in a chunk that can be read, and that names another writer."""
    more, at = Log(), 2 * (WORDS + 1)
    for name in (b"n1___", b"^root"):
        raws = [raw.replace(b'"_root"', b'"%s"' % name, 1) if n == at else raw for n, raw in enumerate(more.chunks)]
        with pytest.raises((ChainError, ValueError)):
            load_past(None, raws)


def test_damage_after_the_root_s_newest_word_is_passed_only_if_it_can_be_read(log: Log) -> None:
    more = Log()
    more.says()
    at = 2 * (WORDS + 1) + 1
    assert load_past(None, more.with_damage(at))[1] == [(at, at)]
    with pytest.raises((ChainError, ValueError)):
        load_past(None, more.with_damage(at, kind="lost"))


def test_what_was_lost_is_taken_from_the_node_again(log: Log) -> None:
    """The node's records go on behind the hole; one that has said nothing since is asked for what is missing."""
    state, _ = load_past(None, log.with_damage(2, kind="lost"))
    root, chain = Root("r2", state, 2, NodeSets()), Chain("n1")
    batch = chain.batch(*["committed"] * (log.chain.seq + 2))
    body = b"".join(line + b"\n" for line in batch.lines)
    row = [batch.node, batch.incarnation, 0, len(batch.lines), len(body)]
    effects = list(root.start(3, 3, "b", 0))
    for _ in range(9):
        commits = [e for e in effects if isinstance(e, Commit)]
        if not commits:
            break
        effects = [x for e in commits for x in root.durable(e.first, e.count, 3, 3)]
    (commit,) = (e for e in root.received(message("events", {"batches": [row]}, body), 3, 3) if isinstance(e, Commit))
    root.durable(commit.first, commit.count, 3, 3)
    assert root.state.cursors["n1"].seq == batch.first + len(batch.lines) - 1


# -- what subscribers and people who look get ---------------------------------------------------------------------------


def asked(chunks: list[bytes], type_: str = "*") -> tuple[list[int], list[list[bytes]]]:
    """Numbers and last words, page after page, as a subscriber asks."""
    at, head, numbers, words = 0, len(chunks) - 1, list[int](), list[list[bytes]]()
    for _ in range(2 * len(chunks)):
        if at > head:
            return numbers, words
        for _, frames in public.page(public.Get(type_, at, False), chunks[max(0, at - 1) :], "c", head):
            if frames[0].startswith(b"pact."):
                numbers.append(orjson.loads(frames[1])["gseq"])
            else:
                words.append(list(frames))
        at = int(words[-1][1]) + (words[-1][0] == b"UPTO")
    raise AssertionError(words)


@pytest.mark.parametrize("type_", ["*", "committed"])
def test_the_replay_port_goes_on_past_what_is_damaged(log: Log, type_: str) -> None:
    whole, _ = asked(log.chunks, type_)
    for at, kind in itertools.product(range(len(log.chunks) - 1), ("lost", "cut")):
        numbers, words = asked(log.with_damage(at, kind=kind), type_)
        assert numbers == [n for n in whole if n != at]
        assert [b"TRUNCATED", str(at + 1).encode()] in words, "the hole is said"


def test_a_record_that_cannot_be_read_keeps_its_place(log: Log) -> None:
    raw = log.chunks[2]
    for nasty in (b"[" * 9, b'{"type":7', b"\xff{}"):
        there = raw.index(chunks_.read_chunk(raw).batches[0].lines[0])
        broken = raw[:there] + nasty + raw[there + len(nasty) :]
        (event,) = public.events(broken, "c")
        header, body = orjson.loads(event.frames[1]), orjson.loads(event.frames[2])
        assert (header["gseq"], header["seq"], header["node"], header["type"]) == (2, 1, "n1", public.UNREADABLE)
        assert body["data"]["omitted"] > 100
        numbers, _ = asked([*log.chunks[:2], broken, *log.chunks[3:]])
        assert numbers == list(range(len(log.chunks)))


def test_people_who_look_see_what_came_after_it(log: Log) -> None:
    watcher, seen = Watcher(lambda start: iter(log.with_damage(2, kind="lost")[start:])), threading.Event()
    watcher.changed = seen.set
    watcher.start()
    try:
        watcher.lead(len(log.chunks) - 1)
        assert until(lambda: watcher.sight.gseq == len(log.chunks) - 1)
    finally:
        watcher.close()


# -- the root -------------------------------------------------------------------------------------------------------


def test_a_log_that_somebody_mends_is_led_without_a_start(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pact.cluster.committer.LOAD_AGAIN_S", 0.05)
    store = SqliteLog(str(tmp_path / "root.db"), "c")
    fence = store.campaign("r")
    assert fence is not None
    for raw in log.with_damage(0, kind="cut"):
        about = chunks_.read_chunk(log.chunks[0]) if raw not in log.chunks else chunks_.read_chunk(raw)
        store.append(fence, about.first, about.count, raw)
    store.close()
    committer = Committer(lambda: SqliteLog(str(tmp_path / "root.db"), "c"), "r")
    committer.start()
    try:
        for n in range(3):
            elected = until(lambda: next((p for p in committer.poll() if isinstance(p, Elected)), None))
            assert elected is not None
            if n == 1:  # somebody mends it
                mended = SqliteLog(str(tmp_path / "root.db"), "c")
                assert mended._db is not None
                mended._db.execute("UPDATE chunk SET data = ? WHERE first = 0", (log.chunks[0],))
                mended.close()
            if n == 2:
                assert load_past(elected.snapshot, elected.chunks)[1] == []
                return
            with pytest.raises((ChainError, ValueError)):
                load_past(elected.snapshot, elected.chunks)
            committer.load_again()
    finally:
        committer.close()


def test_a_real_root_goes_on_with_a_damaged_log_says_so_and_leads_when_it_is_mended(tmp_path: Path) -> None:
    kit = Hostile(tmp_path, NAMES)

    def health() -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as exc:
            return 0, str(exc)
        finally:
            connection.close()

    def begins() -> None:
        kit.run("root1", "aggregator", "--config", str(path))

    try:
        kit.start()
        (port,) = free_ports(1)
        path = tmp_path / "root1.toml"
        path.write_text(path.read_text().replace('http = ""', f'http = "127.0.0.1:{port}"'))
        for _ in range(2):  # each term begins with a record of the root's own
            kit.node("n1")
            kit.kill("root1", 15)
            begins()
        kit.node("n1")
        kit.kill("root1", 15)
        with closing(sqlite3.connect(tmp_path / "root.db")) as db:
            (data,) = db.execute("SELECT data FROM chunk WHERE first = 1").fetchone()
            db.execute("UPDATE chunk SET data = ? WHERE first = 1", (data[: len(data) // 2],))
            db.commit()
            begins()
            assert until(lambda: "does not verify" in health()[1]), kit.logs()
            assert health()[0] == 503
            db.execute("UPDATE chunk SET data = ? WHERE first = 1", (data,))
            db.commit()
        assert until(lambda: health()[0] == 200), kit.logs()
        kit.node("n2")
    finally:
        kit.close()
