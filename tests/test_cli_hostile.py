"""One node that answers nonsense costs the operator nothing but that node's answer."""

from __future__ import annotations

import argparse
from typing import Any

import orjson
import pytest

from pact.cli import fleet, look, roots

GOOD = {"ok": True, "exit": 0, "message": "", "hint": "", "result": {"node": "n1"}}


@pytest.mark.parametrize("bad", [
    b"", b"no JSON", b"[]", b"null", b"{}", b'{"ok":true}', b'{"ok":true,"exit":0,"result":[]}',
    b'{"ok":true,"exit":0,"result":{"node":7}}', b'{"ok":true,"exit":"x","result":{}}',
    b'{"ok":false,"exit":-5,"message":[1],"hint":{},"result":null}', b'{"ok":true,"exit":0,"result":{"rows":7}}',
    b'{"ok":true,"exit":0,"result":{"line":"\\u001b[2J"}}',
])  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_that_makes_no_sense(bad: bytes, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    good = orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "",
                         "result": {"line": "committed: 3 declared", "node": "n1", "state": "committed"}})  # fmt: skip
    answers = roots.Answers({good: ["n1"], bad: ["n2"]})
    args = argparse.Namespace(command="check", json=as_json, socket=None, nodes="n[1-2]", verbose=False)
    (fleet._as_json if as_json else fleet._as_text)(args, look.check, answers)
    out = capsys.readouterr()
    assert "committed" in out.out and "\x1b" not in out.out + out.err
    if as_json:
        said: dict[str, Any] = orjson.loads(out.out)
        assert "n1" in said["nodes"]
    assert as_json or max(answers.codes) > 0 or b"line" in bad
