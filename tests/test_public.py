"""What the world sees, without sockets: frames, topics, heads, requests and pages."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_root import TIME, Chain, build, last_of

from pact.core.root import public
from pact.core.root.log import RootState
from pact.errors import RequestError

NAMES = st.text(min_size=0, max_size=12)


def log(*sizes: int) -> list[bytes]:
    """Chunks with so many events, of two nodes and two types in turn."""
    state, a, b, chunks, n = RootState(), Chain("n1"), Chain("n2", "r2"), [], 0
    for size in sizes:
        batches = []
        for _ in range(size):
            batches.append((b if n % 3 == 2 else a).batch("drift_detected" if n % 2 else "committed"))
            n += 1
        chunks.append(build(state, batches)[2])
    return chunks


def shown(chunks: list[bytes]) -> list[public.Public]:
    return [event for raw in chunks for event in public.events(raw, "c1")]


# -- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("V1")
def test_numbers_have_no_gaps_and_each_event_names_the_one_of_its_type_before_it() -> None:
    events = shown(log(3, 1, 6, 5))
    headers = [orjson.loads(e.frames[1]) for e in events]
    assert [h["gseq"] for h in headers] == list(range(15))
    last: dict[str, int] = {}
    for header in headers:
        assert header["prev"] == last.get(header["type"], -1)
        last[header["type"]] = header["gseq"]


def test_an_event_is_topic_header_and_body() -> None:
    (event,) = public.events(build(RootState(), [Chain("n001").batch("committed", data={"x": 1})])[2], "c1")
    topic, header, body = event.frames
    assert topic == b"pact.v1.committed.c1.r1.n001."
    assert orjson.loads(header) == {
        "v": 1,
        "type": "committed",
        "cluster": "c1",
        "rack": "r1",
        "node": "n001",
        "seq": 0,
        "gseq": 0,
        "prev": -1,
        "incarnation": orjson.loads(body)["hash"][:16],
        "time": TIME,
    }
    record = orjson.loads(body)
    assert record["data"] == {"x": 1}
    assert record["actor"]["user"] == "ann"
    assert not {"t_ns", "prev", "v"} & record.keys()


@pytest.mark.invariant("V3")
@given(st.lists(st.tuples(NAMES, NAMES, NAMES, NAMES), min_size=2, max_size=2, unique=True))
def test_no_topic_is_the_beginning_of_another(names: list[tuple[str, str, str, str]]) -> None:
    one, two = (public.topic(*n) for n in names)
    assert not one.startswith(two)
    assert one.count(b".") == 6
    assert one.isascii()
    assert one.decode().isprintable()


@pytest.mark.invariant("V3")
def test_a_node_whose_name_begins_like_anothers_or_has_dots_is_not_mistaken() -> None:
    assert not public.topic("t", "c", "r", "node10").startswith(public.topic("t", "c", "r", "node1"))
    assert public.topic("t", "c", "r", "a.b%") == b"pact.v1.t.c.r.a%2Eb%25."
    assert public.topic("t", "c", "", "_root") == b"pact.v1.t.c.._root."


@pytest.mark.invariant("V1")
def test_heads_tell_of_the_end_whether_anybody_was_shown_the_events_or_not() -> None:
    chunks = log(4, 3)
    seen, skipped = public.Heads(), public.Heads()
    for event in shown(chunks):
        seen.saw(event)
    for raw in chunks:
        skipped.skip(last_of(raw))
    assert (seen.gseq, seen.types) == (skipped.gseq, skipped.types) == (6, {"committed": 6, "drift_detected": 5})
    topic, header, body = seen.frames("c1", 0)
    assert topic == b"pact.v1.heads.c1.._root."
    assert orjson.loads(body) == {"gseq": 6, "types": {"committed": 6, "drift_detected": 5}}
    assert orjson.loads(header)["gseq"] == 6
    assert orjson.loads(header)["type"] == "heads"


# -- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "means"),
    [
        ([b"GET", b"*", b"0"], public.Get("*", 0)),
        ([b"GET", b"committed", b"17"], public.Get("committed", 17)),
        ([b'["GET","*",17]'], public.Get("*", 17, True)),
        ([b'["GET", "committed", "5"]'], public.Get("committed", 5, True)),
        ([b"SNAPSHOT"], public.Snapshot()),
        ([b'["SNAPSHOT"]'], public.Snapshot(True)),
    ],
)
def test_a_request_is_frames_or_one_json_array(frames: list[bytes], means: object) -> None:
    assert public.request(frames) == means


@pytest.mark.invariant("V4")
@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"GET"],
        [b"GET", b"*"],
        [b"GET", b"*", b"-1"],
        [b"GET", b"*", b"1.5"],
        [b"GET", b"*", b"1e3"],
        [b"GET", b"*", b"9" * 19],
        [b"GET", b"*", b"1" * 500],
        [b"GET", b"A B", b"1"],
        [b"GET", b"", b"1"],
        [b"GET", b"../..", b"1"],
        [b"GET", b"*", b"1", b"2"],
        [b"get", b"*", b"1"],
        [b"\xff\xfe", b"*", b"1"],
        [b"GET", b"*", "\u0661".encode()],
        [b'["GET","*",true]'],
        [b'["GET","*",1.0]'],
        [b'["GET","*",-1]'],
        [b'["GET","*",99999999999999999999]'],
        [b'["GET","*",null]'],
        [b'["GET",1,1]'],
        [b"[" * 1000],
        [b'{"GET":1}'],
        [b"[]"],
        [b"SNAPSHOT", b"x"],
        [b"x" * 2000],
        [b"*"] * 2000,
    ],
)
def test_what_is_no_request_is_refused_in_a_few_words(frames: list[bytes]) -> None:
    with pytest.raises(RequestError) as caught:
        public.request(frames)
    assert len(caught.value.message) < 100


@pytest.mark.invariant("V4")
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_random_frames_are_a_request_or_refused(frames: list[bytes]) -> None:
    try:
        assert isinstance(public.request(frames), public.Get | public.Snapshot)
    except RequestError:
        pass


# -- pages ----------------------------------------------------------------------------------------------------------


def fetch(chunks: list[bytes], type_: str, start: int, head: int) -> tuple[list[int], list[list[bytes]]]:
    """What a requester gets who asks until it has everything: numbers, and the control messages."""
    got, control = [], []
    while not control or (control[-1][0] == b"UPTO" and start <= head):
        ask = public.request([b"GET", type_.encode(), str(start).encode()])
        assert isinstance(ask, public.Get)
        for at, frames in public.page(ask, iter(chunks), "c1", head):
            assert at >= start
            if len(frames) == 3:
                got.append(orjson.loads(frames[1])["gseq"])
                assert at == got[-1] + 1
            else:
                control.append(list(frames))
        before, start = start, int(control[-1][1]) + 1
        assert start > before or before > head or control[-1][0] == b"TRUNCATED"
    return got, control


@pytest.mark.invariant("V2")
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 40), st.sampled_from(["*", "committed"]))
def test_pages_give_every_event_once_and_end_at_the_head(sizes: list[int], start: int, type_: str) -> None:
    chunks = log(*sizes)
    head = sum(sizes) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "PAGE_EVENTS", 3)
        patch.setattr(public, "SCAN_BYTES", 3000)
        got, control = fetch(chunks, type_, start, head)
    assert got == [e.gseq for e in shown(chunks) if e.gseq >= start and type_ in ("*", e.type)]
    assert control[-1] == [b"UPTO", str(head).encode()]


@pytest.mark.invariant("V2")
def test_what_is_trimmed_is_said_to_be() -> None:
    chunks = log(4, 3, 2)
    assert fetch(chunks[1:], "*", 2, 8) == ([], [[b"TRUNCATED", b"4"]])
    assert fetch(chunks[1:], "*", 4, 8)[0] == [4, 5, 6, 7, 8]
    assert fetch([], "*", 3, 8) == ([], [[b"TRUNCATED", b"9"]])
    assert fetch([], "*", 9, 8) == ([], [[b"UPTO", b"8"]])
    assert fetch([], "*", 0, -1) == ([], [[b"UPTO", b"-1"]])


def test_control_messages_are_frames_or_json_as_was_asked() -> None:
    assert public.control(False, "UPTO", 7) == (b"UPTO", b"7")
    assert public.control(True, "UPTO", 7) == (b'["UPTO",7]',)
    assert public.control(False, "SNAPSHOT", 7, b'{"a":1}') == (b"SNAPSHOT", b"7", b'{"a":1}')
    assert public.control(True, "SNAPSHOT", 7, b'{"a":1}') == (b'["SNAPSHOT",7,{"a":1}]',)
