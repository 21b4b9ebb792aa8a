"""What records say: each type's class writes and reads it, and ``specs/formats.md`` says the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from test_older_data import JOURNALS

from pact.core import records
from pact.core.node import payloads as node
from pact.core.payload import Payload
from pact.core.root import payloads as root
from pact.core.settings import Settings
from pact.model import Owner
from pact.values import NOTHING

FORMATS = (Path(__file__).parent.parent / "specs" / "formats.md").read_text()
ANN = Owner("uid:7", "ann", 7, None, "vi")

EVERY = [*node.CLASSES.values(), *root.CLASSES.values()]

#: A value, as JSON, of each annotation that fields have.
VALUES: dict[str, Any] = {
    "str": "text",
    "Id": "g7",
    "int": 3,
    "bool": True,
    "None": None,
    "Attrs": {"value": "1"},
    "Value": {"attrs": None},
    "Saved": {"attrs": {}, "sha256": "00"},
    "Owner": ANN.to_json(),
    "Holder": {"resource": "file:/a", "pid": 3, "how": "fd", "path": "", "uid": None, "user": "", "command": "",
               "cgroup": "", "job": ""},
    "Planned": {"id": "file:/a", "action": "restore", "target": None, "actual": {"type": "file"}},
    "Settings": Settings().to_json(),
    "Person": {"user": "ann"},
    "Terms": {"message": "why", "ttl_ns": None, "force": True},
}  # fmt: skip


def _ids(cls: type[Payload]) -> str:
    return f"{cls.__module__.split('.')[2]}-{cls.type}"


def _value(annotation: str) -> Any:
    text = annotation.removesuffix(" | None")
    if text.startswith("Sequence["):
        return [_value(text[9:-1])]
    if text.startswith("Mapping["):
        return {"a": _value(text.removeprefix("Mapping[str, ")[:-1])}
    return VALUES[text]


def _whole(cls: type[Payload]) -> dict[str, Any]:
    """Data with every field of a class."""
    return {f.name.rstrip("_"): _value(str(f.type)) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", EVERY, ids=_ids)
def test_what_is_read_is_written_again(cls: type[Payload]) -> None:
    data = _whole(cls)
    said = cls.from_data({**data, "call": "1.2", "salt": "00", "of a later version": 1})
    assert said.to_data() == data
    assert cls.from_data(said.to_data()) == said


@pytest.mark.parametrize("cls", EVERY, ids=_ids)
def test_a_field_that_is_missing_or_is_something_else_is_refused_by_name(cls: type[Payload]) -> None:
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key, data = field.name.rstrip("_"), _whole(cls)
        table = [] if str(field.type) in ("Attrs | None", "Terms") else [{"a": 1.5}]
        for wrong in (1.5, [1.5], *table, "" if "str" not in str(field.type) else 0):
            with pytest.raises(ValueError, match=f"^{key} of {cls.type} "):
                cls.from_data({**data, key: wrong})
        del data[key]
        if field.default is dataclasses.MISSING:
            with pytest.raises(ValueError, match=f"^{cls.type} without {key}$"):
                cls.from_data(data)
        else:
            written = cls.from_data(data).to_data()
            assert (key in written) == bool(field.metadata.get("always")), "left out where it says nothing"


def test_a_plain_default_is_never_written_to() -> None:
    assert NOTHING == {} and node.RolledBack("c1", ANN).reads is NOTHING


def test_what_makes_no_sense_inside_a_field_is_refused() -> None:
    data = _whole(node.DriftDetected)
    for owner in ({}, {"key": "uid:1"}, {"key": 1, "user": "a"}, {"key": "uid:1", "user": "a"}):
        with pytest.raises(ValueError, match="owner of drift_detected"):
            node.DriftDetected.from_data({**data, "owner": owner})
    for gid in ("g", "7", "g-1", "../x", "g" + "1" * 19):
        with pytest.raises(ValueError, match="group of group_forced"):
            root.GroupForced.from_data({**_whole(root.GroupForced), "group": gid})


def test_every_record_type_has_a_class_and_every_class_a_type() -> None:
    assert node.CLASSES.keys() | root.CLASSES.keys() == records.TYPES


def _rows(table: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M))


@pytest.mark.parametrize(
    ("classes", "starts"), [(node.CLASSES, "### Types and their data"), (root.CLASSES, "The root's own records are in")]
)
def test_the_formats_say_the_same(classes: dict[str, type[Payload]], starts: str) -> None:
    """Each type has a row, and each field stands in it."""
    after = FORMATS[FORMATS.index(starts) :]
    table = after[after.index("| type | data |") :]
    rows = _rows(table[: table.index("\n\n")])
    assert rows.keys() == classes.keys()
    for type_, cls in classes.items():
        fields = {f.name.rstrip("_") for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        assert fields <= set(re.findall(r"`([a-z_]+)`", rows[type_])), type_


def test_journals_of_an_older_version_say_the_same() -> None:
    """What their records said is what the classes read; a field that was not written has its value."""
    for journal in JOURNALS:
        for row in journal["records"]:
            cls = node.CLASSES[row["type"]]
            data = {k: v for k, v in row["data"].items() if k not in ("call", "salt")}
            written = cls.from_data(row["data"]).to_data()
            assert {k: v for k, v in written.items() if k in data} == data, row["type"]


def test_what_cannot_be_read_again_is_not_written() -> None:
    """A record is decided and folded at once; one that no start could read would end every start."""
    for said in (
        node.RollbackStarted("c1", "manual", ANN, [], notes=[5]),  # type: ignore[list-item]
        node.DriftDetected("file:/a", "c1", ANN, 1, None, 1, 1, secret="a token"),  # type: ignore[arg-type]
        node.RolledBack("c1", ANN, results={"file:/a": None}),  # type: ignore[dict-item]
    ):
        with pytest.raises(ValueError, match="has the wrong type"):
            said.to_data()


def test_what_was_right_once_lets_nothing_wrong_pass() -> None:
    """The types that the fields had are remembered; what is equal to a default, or is inside a field, is not told by
    them."""
    right = node.RolledBack("c1", ANN, results={"file:/a": "restored"})
    wrong = node.RolledBack("c1", ANN, results={"file:/a": 5})  # type: ignore[dict-item]
    empty = node.DriftDetected("file:/a", "c1", ANN, 1, None, 1, 1, secret=0)  # type: ignore[arg-type]
    full = node.DriftDetected("file:/a", "c1", ANN, 1, None, 1, 1, secret=1)  # type: ignore[arg-type]
    assert right.to_data() == right.to_data() and "secret" not in empty.to_data()
    for said in (wrong, full):
        with pytest.raises(ValueError, match="has the wrong type"):
            said.to_data()
    row = root.GroupForced.from_data(_whole(root.GroupForced)).to_data()
    for gid in ("", "g", "7"):
        with pytest.raises(ValueError, match="group of group_forced"):
            root.GroupForced.from_data({**row, "group": gid})


def test_what_is_empty_is_left_out_whatever_kind_of_empty_it_is() -> None:
    said = node.DriftDetected("file:/a", "c1", ANN, 1, None, 1, 1, also=[])
    assert "also" not in said.to_data()
    assert "notes" not in node.Applied("c1", ANN, "m", {}, {}, notes=[]).to_data()
    assert "forgotten" not in node.Declared({}, "declare").to_data(), "and what may be empty is written"
    assert node.Declared({}, "declare", forgotten=[]).to_data()["forgotten"] == []


def test_a_decision_that_an_older_root_wrote_unchecked_is_read() -> None:
    data = {**_whole(root.GroupDecided), "args": {"message": 5, "ttl_ns": "soon", "force": "yes"}}
    assert root.GroupDecided.from_data(data).args == root.Terms("", None, force=False)
