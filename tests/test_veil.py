"""What is left out of records and answers, and what stands there in its place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pact.agent.veil import HIDDEN, HOOKS, KEYED, VIEWER, Veil
from pact.core.node.events import Caller
from pact.core.records import GENESIS, Record, digest, seal, unhashed
from pact.model import Actor, Attrs, Owner

pytestmark = pytest.mark.invariant("S2")

VEIL = Veil(b"k" * 32)
ADMIN = Caller(Actor("root", 0, "admin", "socket"), Owner("uid:0", "root", 0))
SHA = hashlib.sha256(b"4711").hexdigest()
OPEN = "file:/etc/pact-test-open"
PIN = "file:/etc/pact-test-pin"


def file(mode: str | None = "0644", **more: Any) -> Attrs:
    return {"type": "file", "sha256": SHA, "size": 4, "owner": "root", **({"mode": mode} if mode else {}), **more}


def masked(value: Any) -> Any:
    (seen,) = {json.dumps(VEIL.masked(value, who)) for who in (VIEWER, HOOKS)}
    return json.loads(seen)


def test_a_digest_is_keyed_by_the_node_and_by_the_name() -> None:
    digests = {v.digest(r, SHA) for v in (VEIL, Veil(b"o" * 32)) for r in (OPEN, PIN)}
    assert len(digests) == 4 and all(d.startswith(KEYED) and SHA not in d for d in digests)
    assert VEIL.digest(PIN, SHA) == Veil(b"k" * 32).digest(PIN, SHA)


def test_what_everybody_may_read_stays_as_it_is() -> None:
    data = {"resource": OPEN, "actual": file(), "owner": {"user": "ann", "command": "tee"}, "deviation_n": 5}
    assert masked(data) == data


@pytest.mark.parametrize(
    "data",
    [
        {"resource": PIN, "actual": file("0600")},
        {"resource": PIN, "actual": file("0640")},
        {"resource": PIN, "actual": file("0644"), "secret": True},
        {"resource": PIN, "actual": file("0644", secret=True)},
        {"resources": {PIN: {"attrs": file("0600")}}},
        {"resources": {PIN: {"attrs": file(None)}}},
        {"baseline": {PIN: {"attrs": file("0600")}}},
        {
            "plan": [{"id": PIN, "action": "restore", "target": file("0600"), "actual": file()}],
            "saves": {PIN: {"attrs": file(), "sha256": SHA, "secret": False}},
        },
        {"saves": {PIN: {"attrs": file(), "sha256": SHA}}},
        {"saves": {PIN: {"attrs": file(), "sha256": SHA, "secret": True}}},
        {"rolled_back": [{"plan": [{"id": PIN, "target": None, "actual": file("0600")}]}]},
        {"resources": {"file:/nonexistent/dir/f": {"attrs": file()}}},
        {"somewhere": {"deep": [{"sha256": SHA, "size": 4}]}},
    ],
)
def test_a_secret_in_one_place_is_one_in_all(data: Any) -> None:
    text = json.dumps(masked(data))
    assert SHA not in text and '"size": 4' not in text and KEYED in text
    assert VEIL.masked(data, VIEWER) != data


def test_the_same_resource_has_the_same_digest_everywhere() -> None:
    data = {"plan": [{"id": PIN, "target": file("0600"), "actual": file("0600")}], "saves": {PIN: {"sha256": SHA}}}
    shown = masked(data)
    assert {
        shown["plan"][0]["target"]["sha256"],
        shown["plan"][0]["actual"]["sha256"],
        shown["saves"][PIN]["sha256"],
    } == {VEIL.digest(PIN, SHA)}


def test_texts_do_not_quote_what_is_left_out_beside_them() -> None:
    link = {"type": "symlink", "target": "/x/hunter2"}
    plan = [{"id": "file:/etc/l", "target": None, "actual": link}]
    data = {"plan": plan, "notes": ["file:/etc/l: what lies in /x/hunter2 stays there"], "left": {"a": "no /x/hunter2"}}
    assert "hunter2" not in json.dumps(masked(data))
    assert VEIL.told("refused: /x/hunter2 is in the way", data) == f"refused: {HIDDEN} is in the way"
    mount = {"mount:/m": {"attrs": {"source": "//ann:hunter2@h/x", "options": ["password=secret7"], "fstype": "cifs"}}}
    said = json.dumps(masked({"resources": mount, "results": {"mount:/m": "bad: password=secret7, //ann:hunter2@h/x"}}))
    assert "hunter2" not in said and "secret7" not in said


@pytest.mark.parametrize("secret", [["key"], True])
def test_parameters_of_a_module_are_hidden_by_name_or_all(secret: Any) -> None:
    attrs = {"state": "loaded", "parameters": {"key": "1234", "size": "4"}, "secret": secret}
    shown = masked({"resource": "module:pact_test", "actual": attrs})["actual"]["parameters"]
    assert shown["key"] == HIDDEN and "1234" not in json.dumps(shown)


def test_what_an_older_version_let_in_ends_nobody() -> None:
    for mode in ("", "rw", None, 5, []):
        masked({"resource": PIN, "actual": {**file(), "mode": mode}})
    masked(
        {
            "resource": 5,
            "id": None,
            "resources": [],
            "saves": {"file:": {"sha256": 5, "size": "x"}},
            "xattrs": 1,
            "parameters": [],
            "options": {},
            "source": 3,
            "command": None,
            "closed": {},
        }
    )


# -- the hash of a record ---------------------------------------------------------------------------------------------------


def record(data: Any, key: bytes = b"k" * 32) -> tuple[Record, bytes]:
    return seal(3, GENESIS, "2026-01-01T00:00:00Z", 5, "n1", "drift_detected", {"user": "pact"}, data, key=key)


@pytest.mark.parametrize(
    "data",
    [
        {"resource": PIN, "actual": file("0600")},
        {"resource": OPEN, "actual": file()},
        {"actual": {"value": "1234", "secret": True}},
        {"actual": {"type": "symlink", "target": "/x"}},
        {"actual": {"parameters": {"a": "1"}}},
        {"actual": {"source": "//a:b@c/d", "options": []}},
        {"actual": {"xattrs": {"user.a": "MTIzNA=="}}},
        {"owner": {"command": "set-pin 1234"}},
        {"owner": {"command": 'a "b" c'}},
        {"owner": {"command": "/home/ann/x"}},
        {"closed": ["file:/x/y"]},
        {"holders": [{"pid": 1, "path": "/x"}]},
    ],
)
def test_a_record_of_which_something_is_left_out_has_a_salt_that_is_left_out_too(data: Any) -> None:
    made, body = record(data)
    assert len(made.data["salt"]) == 32 and made.data == {**data, "salt": made.data["salt"]}
    assert made.hash == digest(made.prev, body) and json.loads(body) == json.loads(json.dumps(unhashed(made)))
    line = json.loads(VEIL.record_line(body, made.hash, VIEWER))
    assert line["data"]["salt"] == HIDDEN and line["hash"] == made.hash
    assert json.loads(VEIL.record_line(body, made.hash, ADMIN))["data"] == made.data
    assert made == record(data)[0] and made.data["salt"] != record(data, b"o" * 32)[0].data["salt"]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"reason": "SIGTERM"},
        {"actual": {"value": "0"}},
        {"owner": {"command": ""}},
        {"owner": {"command": "tee"}},
        {"actual": {"type": "directory", "xattrs": {}}, "holders": [], "closed": []},
    ],
)
def test_a_record_that_everybody_sees_whole_can_be_verified_by_everybody(data: Any) -> None:
    made, body = record(data)
    assert made.data == data
    line = json.loads(VEIL.record_line(body, made.hash, VIEWER))
    claimed = line.pop("hash")
    raw = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(bytes.fromhex(line["prev"]) + raw).hexdigest() == claimed


def test_nothing_is_left_out_of_a_record_without_a_salt() -> None:
    """Whatever one record of real life looks like: what viewers do not see whole has a salt, so its hash tells nothing."""
    for line in (Path(__file__).parent / "e2e/data/journal-bare-digests.jsonl").read_text().splitlines():
        old = json.loads(line)
        if "seq" in old:
            made, body = record(old["data"])
            shown = json.loads(VEIL.record_line(body, made.hash, VIEWER))["data"]
            assert shown == made.data or "salt" in made.data, shown


def test_the_words_of_a_secret_command_are_hidden_and_those_of_another_are_not() -> None:
    words = ["/usr/sbin/check", "--token", "hunter2"]
    for secret in (True, False):
        attrs = {"value": "ok", "observe": words, "restore": words, "users": words, "secret": secret}
        shown = [
            VEIL.attrs("command:check", attrs),
            masked({"resource": "command:check", "actual": attrs}),
            masked({"resources": {"command:check": {"attrs": attrs}}}),
        ]
        assert all(("hunter2" in json.dumps(one)) != secret for one in shown), shown
