"""The read-only HTTP of an aggregator: what it shows, what it escapes, what it refuses, and that nobody can hold it up."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rootlog_suite import until

from pact.cluster import http as server
from pact.cluster import page
from pact.cluster.hostnames import is_ours, own_domains
from pact.cluster.http import Http
from pact.errors import PactError

FACTS: dict[str, Any] = {
    "name": "agg1",
    "cluster": "default",
    "version": "0.1.0",
    "root": True,
    "leading": True,
    "fence": 7,
    "gseq": 1234,
    "oldest": 12,
    "events": 900,
    "commit_s": 0.0021,
    "children": 3,
    "connected": 130,
    "states": {"committed": ["n[001-120]", 120], "drifted": ["n[121-129]", 9], "blocked": ["n130", 1]},
    "untracked": ["n[007,121]", 2],
    "groups": [
        {"id": "g7", "state": "active", "nodes": "n[001-128]", "owner": "ann", "message": "less swap", "left_s": 754}
    ],
    "group_states": {"active": 1, "finished": 4},
    "buffered": 123456,
    "calls": 2,
    "refused": {"garbage": 3},
    "healthy": True,
    "trouble": "",
}
PAGES = {"pact_pages": 0, "pact_pages_dropped_total": 0, "pact_pages_refused_total": 0}
HOSTILE = "<script>alert(1)</script>\"'&\x00\n\u202e"


class Serving:
    def __init__(self) -> None:
        self.facts: Any = dict(FACTS)
        self.asked = 0
        self.http = Http("127.0.0.1:0", self.snapshot)
        self.http.start()

    def snapshot(self) -> Any:
        self.asked += 1
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http.port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.http.port), timeout=10) as sock:
            sock.sendall(data)
            out = b""
            while more := sock.recv(65536):
                out += more
            return out


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(server, "CACHE_S", -1.0)
    serving = Serving()
    yield serving
    serving.http.close()


# -- what it shows --------------------------------------------------------------------------------------------------


def values(text: str) -> dict[str, float]:
    return {
        s.name + "".join(f"[{v}]" for v in s.labels.values()): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_are_what_prometheus_reads(serving: Serving) -> None:
    status, headers, text = serving.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert values(text) == {
        "pact_children": 3,
        "pact_nodes_connected": 130,
        "pact_buffered_bytes": 123456,
        "pact_calls": 2,
        "pact_leader": 1,
        "pact_fence": 7,
        "pact_gseq": 1234,
        "pact_oldest_gseq": 12,
        "pact_commit_seconds": 0.0021,
        "pact_healthy": 1,
        "pact_events_committed_total": 900,
        "pact_nodes[committed]": 120,
        "pact_nodes[drifted]": 9,
        "pact_nodes[blocked]": 1,
        "pact_nodes_untracked": 2,
        "pact_groups[active]": 1,
        "pact_groups[finished]": 4,
        "pact_refused_total[garbage]": 3,
        **PAGES,
    }


def test_an_aggregator_that_is_no_root_leaves_out_what_it_does_not_know(serving: Serving) -> None:
    serving.facts = {"name": "agg2", "children": 128, "buffered": 0}
    assert values(serving.get("/metrics")[2]) == {"pact_children": 128, "pact_buffered_bytes": 0, **PAGES}
    shown = serving.get("/")[2]
    assert "aggregator" in shown
    assert "fence" not in shown
    serving.facts = {}
    assert serving.get("/")[0] == serving.get("/metrics")[0] == serving.get("/health")[0] == 200


def test_the_page_shows_states_and_groups_and_claims_nothing_else(serving: Serving) -> None:
    status, headers, shown = serving.get("/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    for words in ("agg1", "leading root", "n[001-120]", "n[121-129]", "g7", "less swap", "12m 34s", "120.6 KiB"):
        assert words in shown
    assert shown.index("blocked") < shown.index("drifted") < shown.index("committed")
    assert "behind" not in shown, "nobody counts how far the nodes are behind"
    assert "rolls back" not in shown
    serving.facts = {
        **FACTS,
        "holds": [{"hold": "f3", "owner": "bob", "reason": "storm", "ends": "2026-11-28T04:08:48.673507Z"}],
    }
    shown = serving.get("/")[2]
    assert shown.index("Nothing rolls back anywhere</b> until 2026-11-28 04:08:48 UTC: f3 by bob: storm") < shown.index(
        "<dl>"
    )
    assert values(serving.get("/metrics")[2])["pact_fleet_holds"] == 1


@pytest.mark.invariant("F31")
def test_health_is_for_load_balancers(serving: Serving) -> None:
    assert serving.get("/health")[::2] == (200, "ok\n")
    serving.facts = {**FACTS, "healthy": False, "trouble": "etcd does not answer"}
    assert serving.get("/health")[::2] == (503, "etcd does not answer\n")
    assert "etcd does not answer" in serving.get("/")[2]
    serving.facts = RuntimeError("bug")
    assert serving.get("/health")[0] == 503
    assert serving.get("/")[0] == 500
    serving.facts = FACTS
    assert serving.get("/")[0] == 200


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.invariant("V5")
def test_hostile_names_are_shown_and_do_nothing() -> None:
    facts = {
        **FACTS,
        "name": HOSTILE,
        "cluster": HOSTILE,
        "version": HOSTILE,
        "trouble": HOSTILE,
        "healthy": False,
        "states": {HOSTILE: [HOSTILE * 500, 1], "committed": [HOSTILE, HOSTILE]},
        "untracked": [HOSTILE, 1],
        "groups": [dict.fromkeys(("id", "state", "nodes", "owner", "message", "left_s"), HOSTILE)],
        "holds": [dict.fromkeys(("hold", "owner", "reason", "ends"), HOSTILE)],
        "refused": {HOSTILE: 1},
        "group_states": {HOSTILE: 2},
    }
    plain, hostile = Tags(), Tags()
    plain.feed(page.page({**FACTS, "healthy": False, "trouble": "x"}))
    hostile.feed(page.page(facts))
    assert set(hostile.tags) <= set(plain.tags)
    assert hostile.tags.count("script") == plain.tags.count("script") == 1
    assert {name for name, _ in hostile.attributes} <= {name for name, _ in plain.attributes}
    assert "\x00" not in page.page(facts)
    assert "\u202e" not in page.page(facts)
    assert len(page.page(facts)) < 40_000
    assert values(page.metrics(facts).decode())[f"pact_refused_total[{HOSTILE}]"] == 1


@pytest.mark.invariant("V5")
def test_the_page_needs_nothing_from_anywhere_and_allows_nothing(serving: Serving) -> None:
    _, headers, shown = serving.get("/")
    policy = headers["content-security-policy"]
    assert policy.startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    )
    assert "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert not re.search(r"\b(?:action|style|on\w+)=|url\(|@import|https?:", shown)
    assert sorted(re.findall(r"\b(?:src|href)=\"([^\"]*)\"", shown)) == ["/icon.svg", "/page.css", "/page.js"]
    for path in ("/page.css", "/page.js"):
        text = serving.get(path)[2]
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|innerHTML|outerHTML|insertAdjacent|\beval\b", text)


# -- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V5")
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_changed(serving: Serving, method: str) -> None:
    status, headers, _ = serving.get("/", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_a_body(serving: Serving) -> None:
    status, headers, body = serving.get("/", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["content-length"]) > 1000


@pytest.mark.invariant("V5")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\r\n\r\n", 400),
        (b"GET /a\x00b HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 9000, 431),
        (b"GET /health?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\nHost: x\n\n", 200),
    ],
)
def test_what_is_no_request_gets_a_short_answer(serving: Serving, data: bytes, status: int) -> None:
    answer = serving.raw(data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert len(answer) < 1000


@pytest.mark.invariant("V5")
def test_who_sends_slowly_or_never_reads_is_cut_off_and_holds_nobody_up(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DEADLINE_S", 0.5)
    slow = [socket.create_connection(("127.0.0.1", serving.http.port)) for _ in range(20)]
    for sock in slow:
        sock.sendall(b"GET / HT")
    began = time.monotonic()
    assert serving.get("/health")[0] == 200
    assert time.monotonic() - began < 0.4
    time.sleep(0.6)
    for sock in slow:
        sock.settimeout(5)
        assert sock.recv(10) == b""
        sock.close()
    assert until(lambda: not serving.http._clients)


@pytest.mark.invariant("V5")
def test_connections_are_bounded(serving: Serving) -> None:
    held = [socket.create_connection(("127.0.0.1", serving.http.port)) for _ in range(server.HTTP_CONNECTIONS_MAX + 10)]
    assert until(lambda: serving.http.turned_away == 10)
    for sock in held:
        sock.close()
    assert until(lambda: serving.http._clients == {})
    assert serving.get("/health")[0] == 200


@pytest.mark.invariant("V5")
@pytest.mark.parametrize(
    "said", [b"", b"GET /hea", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "half", "all, and reads nothing"]
)
def test_strangers_who_come_again_and_again_do_not_keep_health_from_answering(serving: Serving, said: bytes) -> None:
    serving.facts = {**FACTS, "groups": FACTS["groups"] * 500}
    over = threading.Event()

    def strangers() -> None:
        held: list[socket.socket] = []
        while not over.is_set():
            try:
                sock = socket.create_connection(("127.0.0.1", serving.http.port), timeout=1)
                sock.sendall(said)
                held.append(sock)
            except OSError:
                pass
            if len(held) > 2 * server.HTTP_CONNECTIONS_MAX:
                held.pop(0).close()
        for sock in held:
            sock.close()

    threads = [threading.Thread(target=strangers) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        for _ in range(8):
            assert serving.get("/health")[0] == 200, "within the ten seconds for which it is waited"
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.invariant("V5")
def test_however_many_ask_the_facts_are_collected_twice_a_second() -> None:
    serving = Serving()
    try:
        for _ in range(50):
            assert serving.get("/metrics")[0] == 200
        assert serving.asked <= 4
    finally:
        serving.http.close()


@pytest.mark.parametrize("address", ["", "x", "localhost", "1.2.3.4:99999", "a b:1", "[::1]", "http://x:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(PactError, match="http"):
        Http(address, dict)


def test_an_address_that_is_taken_is_an_error(serving: Serving) -> None:
    with pytest.raises(PactError, match="in use"):
        Http(f"127.0.0.1:{serving.http.port}", dict)


# -- a stranger's name with this server's address  # V5 -------------------------------------------------------------


def named(serving: Serving, path: str, *hosts: str) -> int:
    heads = "".join(f"Host: {host}\r\n" for host in hosts)
    return int(serving.raw(f"GET {path} HTTP/1.1\r\n{heads}\r\n".encode()).split()[1])


@pytest.mark.parametrize("path", ["/", "/node?name=n1", "/events/live", "/page.js"])
@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:7420", "a.org.", "127.0.0.1.nip.io", "", "a b", "[::1"]
)
def test_a_page_with_a_name_of_its_own_reads_nothing_here(serving: Serving, path: str, host: str) -> None:
    assert named(serving, path, host) == 421


def test_two_names_are_none(serving: Serving) -> None:
    assert named(serving, "/", "localhost", "evil.example.org") == 421


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:7420",
        "10.1.2.3",
        "[::1]:7420",
        "[fe80::1]",
        "localhost",
        "root1:7420",
        "a.localhost",
        os.uname().nodename,
    ],
)
def test_names_that_no_stranger_can_own_are_answered(serving: Serving, host: str) -> None:
    assert named(serving, "/page.css", host) == 200


def test_machines_ask_by_any_name_and_old_clients_by_none(serving: Serving) -> None:
    assert named(serving, "/metrics", "scrape.example.org") == named(serving, "/health", "scrape.example.org") == 200
    assert named(serving, "/") == 200


def test_a_site_lists_its_names(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("# search x.org\nnameserver 192.0.2.1\nsearch hpc.example.org. org\n")
    domains = own_domains("root1.cluster.example.net", str(resolver))
    assert domains == {"cluster.example.net", "hpc.example.org", "org"}
    assert own_domains("root1", str(tmp_path / "none")) == frozenset()
    assert all(
        is_ours(n, ["pact.example.com"], domains)
        for n in ("r2.cluster.example.net", "x.hpc.example.org", "pact.example.com")
    )
    assert not any(is_ours(n, [], domains) for n in ("evil.org", "xhpc.example.org", "example.net", "pact.example.com"))
    for host in ("hpc.co.uk", "hpc.com.au", "hpc.org"):  # everybody may own a name beside it
        beside = host.replace("hpc", "evil")
        assert not is_ours(beside, [host], own_domains(host, "/dev/null")) and is_ours(host, [host])
    assert is_ours("n2.psi.ch", [], own_domains("n1.psi.ch", "/dev/null"))
