"""What the live page is told: a snapshot, then differences, the same bytes for all, and nobody who does not read costs
the others anything."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_kit import Fleet, owner, wall
from rootlog_suite import until

from pact.cluster import http as server
from pact.cluster import watcher as watching
from pact.errors import JournalError

HOSTILE = "<img src=x onerror=alert(1)>\n\ndata: {}\r\u202e\x00"


class Page:
    """An open page, as a client that knows nothing but the format of server-sent events."""

    def __init__(self, fleet: Fleet, *headers: str, address: str = "") -> None:
        source = (address, 0) if address else None
        self.sock = socket.create_connection(("127.0.0.1", fleet.http.port), timeout=10, source_address=source)
        fleet.opened.append(self)
        lines = "".join(f"{h}\r\n" for h in headers)
        self.sock.sendall(f"GET /events/live HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        self.text = b""
        self.head = self._until(b"\r\n\r\n").decode()

    def _until(self, end: bytes) -> bytes:
        while end not in self.text:
            more = self.sock.recv(1 << 16)
            if not more:
                raise EOFError(self.text)
            self.text += more
        found, _, self.text = self.text.partition(end)
        return found

    def event(self, kind: str = "") -> tuple[str, Any]:
        """The next event, of this kind."""
        while True:
            fields = [line.partition(b": ") for line in self._until(b"\n\n").split(b"\n")]
            found = {name.decode(): value for name, _, value in fields}
            if "event" in found and (not kind or found["event"] == kind.encode()):
                return found["event"].decode(), json.loads(found["data"])

    def wait(self, condition: Callable[[Any], Any]) -> Any:
        """The first news that are so."""
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            said = self.event("news")[1]
            if condition(said):
                return said
        raise AssertionError(condition)

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet([f"n{i}" for i in range(1, 6)], rack=3)
    yield made
    made.close()


def get(fleet: Fleet, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", fleet.http.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V6")
def test_a_page_begins_with_a_snapshot_and_goes_on_with_what_is_new(fleet: Fleet) -> None:
    page = Page(fleet, "Last-Event-ID: 77")
    assert "200 OK" in page.head and "text/event-stream" in page.head and "no-store" in page.head
    kind, said = page.event()
    assert kind == "whole" and said["about"]["name"] == "root1"
    assert said["plain"] == {"r1": {"committed": ["n1", "n2", "n3"]}, "r2": {"committed": ["n4", "n5"]}}
    assert abs(said["now"] - time.time() * 1000) < 5000
    fleet.drift("n4", "file:/etc/app.conf", "bob")
    news = page.wait(lambda s: "n4" in s.get("set", {}))
    rack, state, held, changes, more = news["set"]["n4"]
    assert (rack, state, held, more, list(news["set"])) == ("r2", "drifted", "", 0, ["n4"])
    cid, cstate, who, ends_ms, count, first, why, group = changes[0]
    assert (cid, cstate, who, count, first, why, group) == ("c1", "open", "bob", 1, "file:/etc/app.conf", "", "")
    assert 100_000 < ends_ms - time.time() * 1000 < 900_000
    assert [r[3] for r in news["records"]] == ["drift_detected", "window_opened"]
    late = Page(fleet)
    assert late.event("whole")[1]["set"]["n4"][1] == "drifted"
    assert "groups" not in news and "about" in news and set(news["about"]) == {"gseq", "since"}, "only what is new"
    fleet.record(("n4", "drift_cleared", {"resource": "file:/etc/app.conf", "change": "c1"}))
    assert (
        page.wait(lambda s: "set" in s)["set"] == late.wait(lambda s: "set" in s)["set"] == {"n4": ["r2", "committed"]}
    )
    page.close()
    late.close()


@pytest.mark.invariant("V6")
def test_messages_are_rare_however_much_happens_and_never_late(fleet: Fleet) -> None:
    page = Page(fleet)
    page.event("whole")
    began, times, last = time.monotonic(), [], -1
    for i in range(300):
        fleet.drift("n1", f"file:/{i % 50}")
        time.sleep(0.01)
    while last < fleet.gseq:
        said = page.event("news")[1]
        times.append(time.monotonic())
        last = said["about"].get("gseq", last)
    assert len(times) <= (time.monotonic() - began) / server.EVERY_S + 2
    assert server.EVERY_S < 1
    page.close()


def test_states_come_from_records_and_from_answers_whichever_is_newer(fleet: Fleet) -> None:
    page = Page(fleet)
    page.event("whole")
    fleet.drift("n1")
    page.wait(lambda s: s.get("set", {}).get("n1", [0, ""])[1] == "drifted")
    fleet.said, fleet.asked_ns = {**fleet.said, "n1": "committed", "n2": "failed"}, fleet.asked_ns + 1
    fleet.http.changed()
    assert page.wait(lambda s: "set" in s)["set"] == {"n2": ["r1", "failed"]}, "the record of n1 is newer"
    fleet.said, fleet.asked_ns = dict(fleet.said), time.monotonic_ns()
    fleet.http.changed()
    assert page.wait(lambda s: "set" in s)["set"]["n1"][1] == "committed", "its answer is newer"
    fleet.away, fleet.racks = ["n3"], {n: r for n, r in fleet.racks.items() if n not in ("n3", "n5")}
    fleet.http.changed()
    said = page.wait(lambda s: "set" in s)
    assert said["set"] == {"n3": ["", "away"]} and said["gone"] == ["n5"]
    page.close()


def test_one_node_s_view_names_what_is_open(fleet: Fleet) -> None:
    assert get(fleet, "/node?name=n2")[0] == 200
    fleet.drift("n2", "file:/a b", "ann")
    holders = [{"resource": "file:/a b", "pid": 7, "how": "fd", "user": "eve", "command": "/bin/tail -f /secret"}]
    fleet.record(
        ("n2", "rollback_blocked", {"change": "c1", "reason": "in use", "holders": holders}),
        ("n2", "emergency_started", {"reason": "flood", "by": "bob", "key": "k", "ends_ns": 1, "ends": wall(60)}),
        (
            "n2",
            "hold_placed",
            {"hold": "h1", "change": None, "owner": owner("eve"), "reason": "x", "ends_ns": 1, "ends": wall(9)},
        ),
    )
    assert until(lambda: fleet.watcher.sight.gseq == fleet.gseq)
    status, headers, body = get(fleet, "/node?name=n2")
    assert status == 200 and headers["content-type"] == "application/json" and headers["cache-control"] == "no-store"
    said = json.loads(body)
    (change,) = said["changes"]
    assert change["resources"] == ["file:/a b"] and change["program"] == "sysctl" and change["state"] == "blocked"
    assert change["holders"] == ["tail (pid 7, eve)"] and b"secret" not in body
    assert said["emergency"]["by"] == "bob" and said["holds"][0]["owner"] == "eve" and len(said["records"]) == 5
    assert until(lambda: json.loads(get(fleet, "/node?name=n2")[2])["state"] == "emergency")
    for name in ("", "nobody", "x" * 300, "%00", "n2&name=n3", "%ff"):
        assert get(fleet, f"/node?name={name}")[0] == 404, name
    assert get(fleet, "/node")[0] == get(fleet, "/node?node=n2")[0] == 404


def test_an_aggregator_tells_what_it_has_and_a_root_that_stands_by_nothing() -> None:
    for root, more, states in (
        (False, {}, {"r1": {"connected": ["n1", "n2"]}}),
        (True, {"leading": False, "fleet": {}}, {}),
    ):
        fleet = Fleet(["n1", "n2"], root=root)
        fleet.more = more
        try:
            page = Page(fleet)
            said = page.event("whole")[1]
            assert said["plain"] == states and said["records"] == [] and said["about"]["root"] is root
            page.close()
        finally:
            fleet.close()


@pytest.mark.invariant("V5")
def test_hostile_names_end_no_field_and_no_event(fleet: Fleet) -> None:
    fleet.racks = {HOSTILE: HOSTILE}
    fleet.more = {
        "groups": [dict.fromkeys(("id", "state", "owner", "message", "nodes"), HOSTILE)],
        "trouble": HOSTILE,
        "holds": [dict.fromkeys(("hold", "owner", "reason", "ends"), HOSTILE)],
    }
    page = Page(fleet)
    kind, said = page.event()
    assert kind == "whole" and said["groups"][0]["id"] == HOSTILE and HOSTILE in said["plain"]
    fleet.drift(HOSTILE, HOSTILE, HOSTILE)
    kind, said = page.event()
    assert (kind, said["set"][HOSTILE][3][0][2]) == ("news", HOSTILE)
    page.close()


def test_files_are_served_with_a_tag_and_not_sent_twice(fleet: Fleet) -> None:
    for path in ("/page.js", "/page.css", "/icon.svg"):
        status, headers, body = get(fleet, path)
        assert status == 200 and len(body) > 100 and headers["cache-control"] == "no-cache"
        again = get(fleet, path, **{"If-None-Match": headers["etag"]})
        assert (again[0], again[2]) == (304, b"") and again[1]["etag"] == headers["etag"]
        assert get(fleet, path, **{"If-None-Match": '"other"'})[0] == 200
        assert "script-src 'self'" in headers["content-security-policy"]
    assert get(fleet, "/page.js", "HEAD")[2] == b""
    assert get(fleet, "/static/page.js")[0] == get(fleet, "/../page.js")[0] == 404


def test_head_of_the_stream_says_whether_there_is_room(fleet: Fleet) -> None:
    status, headers, body = get(fleet, "/events/live", "HEAD")
    assert (status, headers["content-type"], body) == (200, "text/event-stream", b"") and not fleet.http.pages
    assert get(fleet, "/events/live", "POST")[0] == 405


# -- who is a burden ---------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V6")
def test_too_many_pages_are_refused_in_a_clear_sentence(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HTTP_PAGES_MAX", 8)
    monkeypatch.setattr(server, "HTTP_PAGES_EACH_MAX", 6)
    pages = [Page(fleet) for _ in range(6)]
    refused = get(fleet, "/events/live")
    assert refused[0] == 503 and b"close some" in refused[2] and refused[1]["retry-after"] == "30"
    others = [Page(fleet, address="127.0.0.2") for _ in range(2)]
    assert get(fleet, "/events/live")[0] == 503
    assert all("200 OK" in p.head for p in (*pages, *others))
    assert get(fleet, "/health")[0] == get(fleet, "/")[0] == 200, "all else goes on"
    for page in pages:
        page.close()
    assert until(lambda: fleet.http.pages == 2)
    assert "200 OK" in Page(fleet).head
    text = get(fleet, "/metrics")[2].decode()
    assert "pact_pages 3.0" in text and "pact_pages_refused_total 2.0" in text


@pytest.mark.invariant("V6")
def test_a_page_that_does_not_read_is_cut_off_and_costs_the_others_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HTTP_UNREAD_MAX", 200_000)
    monkeypatch.setattr(server, "EVERY_S", 0.02)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", fleet.http.port))
    deaf.sendall(b"GET /events/live HTTP/1.1\r\n\r\n")
    good = Page(fleet)
    good.event("whole")
    assert until(lambda: fleet.http.pages == 2)
    n = 0
    while fleet.http.dropped == 0 and n < 4000:
        n += 1
        fleet.more = {"trouble": f"{n} " + "x" * 60_000}
        fleet.http.changed()
        good.wait(lambda s, n=n: s["about"].get("trouble", "").startswith(f"{n} "))
    assert fleet.http.dropped == 1 and fleet.http.pages == 1
    deaf.close()
    good.close()


@pytest.mark.invariant("V6")
def test_a_page_that_takes_nothing_is_cut_off_after_a_while(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STUCK_S", 0.5)
    monkeypatch.setattr(server, "BEAT_S", 0.1)
    fleet.more = {"trouble": "x" * (16 << 20)}
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", fleet.http.port))
    deaf.sendall(b"GET /events/live HTTP/1.1\r\n\r\n")
    assert until(lambda: fleet.http.pages == 1)
    assert until(lambda: fleet.http.dropped == 1)
    deaf.close()


def test_signs_of_life_come_while_nothing_happens(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BEAT_S", 0.1)
    page = Page(fleet)
    page.event("whole")
    assert abs(page.event("beat")[1]["now"] - time.time() * 1000) < 5000
    page.sock.sendall(b"what a page says is of no interest" * 100)
    page.event("beat")
    page.close()
    assert until(lambda: fleet.http.pages == 0)


def test_an_error_in_what_is_told_ends_neither_the_page_nor_the_server(fleet: Fleet) -> None:
    page = Page(fleet)
    page.event("whole")
    for wrong in ({"groups": 7}, {"trouble": "no text \ud800"}, {"fleet": {"racks": {"\ud800": "r"}, "said": {}}}):
        fleet.more = wrong
        fleet.http.changed()
        time.sleep(1)
        Page(fleet).close()
    fleet.more = {}
    fleet.drift("n1")
    assert page.wait(lambda s: "n1" in s.get("set", {}))["set"]["n1"][1] == "drifted"
    assert get(fleet, "/health")[0] == 200
    page.close()


@pytest.mark.invariant("V6")
def test_who_comes_and_goes_makes_the_root_go_through_its_nodes_no_more_often(fleet: Fleet) -> None:
    turned, turn = [0], fleet.live.turn

    def counted(facts: Any) -> bytes:
        turned[0] += 1
        return turn(facts)

    fleet.live.turn = counted  # type: ignore[method-assign]
    began = time.monotonic()
    for _ in range(30):
        page = Page(fleet)
        page.event("whole")
        page.close()
        assert get(fleet, "/node?name=n1")[0] == 200
    assert turned[0] <= (time.monotonic() - began) / server.EVERY_S + 1


# -- what was not given in time ---------------------------------------------------------------------------------------


@pytest.mark.invariant("V6")
def test_what_is_too_much_at_once_is_read_from_the_log(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WAITING_BYTES_MAX", 2000)
    with fleet.watcher.lock:
        for i in range(40):
            fleet.drift("n1", f"file:/{i}")
    assert until(lambda: fleet.watcher.sight.gseq == fleet.gseq)
    assert len(fleet.watcher.sight.nodes["n1"].changes["c1"].members) == 40


@pytest.mark.invariant("V6")
def test_a_new_term_reads_what_is_open_from_the_log(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RETRY_S", 0.01)
    fleet.drift("n1")
    assert until(lambda: fleet.watcher.sight.gseq == fleet.gseq)
    fleet.watcher.depose()
    assert until(lambda: not fleet.watcher.sight.nodes)
    failing, read = [2], fleet.read

    def fails(gseq: int) -> Iterator[bytes]:
        failing[0] -= 1
        if failing[0] >= 0:
            raise JournalError("no quorum")
        return read(gseq)

    fleet.watcher._read = fails
    fleet.watcher.lead(fleet.gseq)
    assert until(lambda: "n1" in fleet.watcher.sight.nodes)
    assert fleet.watcher.sight.nodes["n1"].state == "drifted"
    fleet.drift("n2")
    assert until(lambda: "n2" in fleet.watcher.sight.nodes)


def test_a_log_that_cannot_be_read_costs_what_is_in_it_and_no_more(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_S", 0.01)

    def fails(gseq: int) -> Iterator[bytes]:
        raise JournalError("no quorum")

    fleet.drift("n1")
    fleet.watcher._read = fails
    fleet.watcher.lead(fleet.gseq)
    fleet.drift("n2")
    assert until(lambda: "n2" in fleet.watcher.sight.nodes)
    assert "n1" not in fleet.watcher.sight.nodes and fleet.watcher.sight.first == 2
