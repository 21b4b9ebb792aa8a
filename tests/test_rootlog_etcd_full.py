"""The root's log on an etcd whose space is used up: what is said, and that what docs/etcd.md says mends it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from etcd_cluster import MISSING, REASON, EtcdCluster
from rootlog_suite import chunk, fill, kept, lead, refuses_within

from pact.errors import JournalError
from pact.journal.stores import open_store

pytestmark = pytest.mark.skipif(bool(MISSING), reason=REASON)


@pytest.mark.invariant("F38")
def test_an_etcd_that_is_full_says_so_and_what_to_do(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd", 1, extra=(f"--quota-backend-bytes={8 << 20}",)) as etcd:
        store = open_store(etcd.url())
        fence = lead(store)
        first = 1
        with pytest.raises(JournalError, match="space") as caught:
            while first < 60:
                store.append(fence, first, 1, chunk(first, 1, 1 << 20))
                first += 1
        assert "docs/etcd.md" in caught.value.hint
        assert 3 <= first < 40
        # the refused one may have got in, its answer lost: whoever is refused repeats the same bytes
        assert len(list(store.read(1))) in (first - 1, first)
        store.close()


@pytest.mark.invariant("F38")
def test_an_etcd_that_was_full_goes_on_when_what_the_document_says_was_done(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd", 1, extra=(f"--quota-backend-bytes={8 << 20}",)) as etcd:
        store = open_store(etcd.url())
        fence = lead(store)
        fill(store, fence, *[1] * 60)
        saved = 0
        with pytest.raises(JournalError, match="space"):
            for saved in range(1, 61):  # each replaces the one before, of which etcd keeps the revision
                store.save_snapshot(fence, saved, chunk(saved, 1, 1 << 20))
        assert saved > 3
        refused = refuses_within(10, lambda: store.append(fence, 61, 1, chunk(61, 1, 1 << 20)))
        assert "space" in str(refused)
        rev = orjson.loads(etcd.ctl("endpoint", "status", "-w", "json"))[0]["Status"]["header"]["revision"]
        etcd.ctl("compact", str(rev))
        etcd.ctl("defrag")
        etcd.ctl("alarm", "disarm")
        again = fence if store.leading() else lead(store)
        store.append(again, 61, 1, chunk(61, 1, 1 << 20))
        snapshot, chunks = kept(store)
        assert snapshot in (chunk(saved, 1, 1 << 20), chunk(saved - 1, 1, 1 << 20))
        assert chunks[-1] == chunk(61, 1, 1 << 20)
        store.close()
