"""The root's log on an etcd that is guarded: TLS with client certificates, users, tokens that expire."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etcd_cluster import MISSING, REASON, EtcdCluster
from rootlog_suite import chunk, fill, kept, lead, refuses_within, until

from pact.errors import JournalError
from pact.journal.rootlog import LogStore
from pact.journal.stores import open_store

pytestmark = pytest.mark.skipif(bool(MISSING), reason=REASON)
FAST = "3"  # seconds of lease


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """TLS with client certificates, users, and tokens that live for seconds."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    base = tmp_path_factory.mktemp("guarded")
    with EtcdCluster(base / "etcd", tls=base / "tls", extra=("--auth-token-ttl=2",)) as etcd:
        for command in (
            "user add root:rootpw",
            "user grant-role root root",
            "role add pact",
            "user add pact:secret",
            "role grant-permission pact --prefix=true readwrite /pact/c1/",
            "user grant-role pact pact",
            "auth enable",
        ):
            if command.startswith("user grant-role root"):
                etcd.ctl("role", "add", "root")
            etcd.ctl(*command.split())
        (base / "password").write_text("secret\n")
        yield etcd


def open_guarded(etcd: EtcdCluster, cluster: str = "c1", **options: str) -> LogStore:
    password = str(etcd.directory.parent / "password")
    return open_store(etcd.url(**{"user": "pact", "password_file": password, "lease": FAST, **options}), cluster)


@pytest.mark.invariant("Q5")
def test_over_tls_with_a_user_whose_tokens_expire(guarded: EtcdCluster) -> None:
    store = open_guarded(guarded)
    fence = lead(store)
    fill(store, fence, 1)
    time.sleep(4.5)  # the token is gone twice over, and the lease too if it had not been kept alive
    assert store.leading()
    fill(store, fence, 1, first=2)
    assert kept(store)[1] == [chunk(1, 1), chunk(2, 1)]
    member = guarded.followers()[0]
    guarded.kill(member)  # a member that starts again knows no tokens
    guarded.start(member)
    for first in range(3, 13):
        fill(store, fence, 1, first=first)
    store.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"user": "", "password_file": ""}, "user name is empty|permission denied|not|no user"),
        ({"password_file": "{base}/wrong"}, "authentication failed"),
        ({"password_file": "{base}/missing"}, "No such file"),
        ({"user": "nobody"}, "authentication failed"),
        ({"cert": "{tls}/stranger.pem", "key": "{tls}/stranger.key"}, "does not answer"),
        ({"cert": "", "key": ""}, "does not answer"),
        ({"ca": "{tls}/other.pem"}, "does not answer"),
        ({"ca": "{tls}/missing.pem"}, "No such file"),
    ],
)
def test_who_may_not_is_told_why_within_seconds(guarded: EtcdCluster, options: dict[str, str], why: str) -> None:
    base, tls = guarded.directory.parent, guarded.tls
    (base / "wrong").write_text("guess")
    store = open_guarded(guarded, **{k: v.format(base=base, tls=tls) for k, v in options.items()})
    assert re.search(why, str(refuses_within(6, lambda: store.campaign("a"))))
    store.close()


def test_a_user_has_only_the_clusters_it_was_given(guarded: EtcdCluster) -> None:
    store = open_guarded(guarded, "c2")
    error = refuses_within(6, lambda: store.campaign("a"))
    assert "permission denied" in str(error)
    assert "readwrite" in error.hint
    store.close()


def test_a_renewed_certificate_is_used_without_a_restart(guarded: EtcdCluster, tmp_path: Path) -> None:
    for name in ("client.pem", "client.key"):
        shutil.copy(f"{guarded.tls}/stranger{name[6:]}", tmp_path / name)
    store = open_guarded(guarded, cert=f"{tmp_path}/client.pem", key=f"{tmp_path}/client.key")
    refuses_within(6, store.oldest)
    for name in ("client.pem", "client.key"):
        shutil.copy(f"{guarded.tls}/{name}", tmp_path / name)
    assert until(lambda: not isinstance(attempt(store.oldest), JournalError), 10)
    store.close()


def attempt(act: Callable[[], object]) -> object:
    try:
        return act()
    except JournalError as exc:
        return exc
