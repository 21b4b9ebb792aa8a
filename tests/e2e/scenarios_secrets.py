"""Scenarios of what leaves nodes, beside those of ``scenarios.py``."""

from __future__ import annotations

import hashlib
import json
import os
import sys

from scenarios import CONF, Site, all_recorded, build, main, ok, scenario, wait_until, write

PIN = os.path.join(os.path.dirname(CONF), "pin")
CONTENTS = (b"4711\n", b"4712\n")


@scenario
def nobody_beside_a_node_can_guess_a_pin(site: Site) -> None:
    """Not from events, not from the root's log, not from answers to viewers; and a group carries it all the same."""
    names = build(site, 2)
    events = site.follow("root", "sub")
    wait_until(events.read_text, "it follows")
    text = write(site, "pin.toml", f'[file."{PIN}"]\ncontent = "4711\\n"\nmode = "0600"\n')
    for name in names:
        site.nodes[name].path(PIN).write_text("0000\n")
    gid = ok(site, "apply", text, "--nodes", "n[1-2]", "-m", "why")["group"]
    ok(site, "commit", gid, "-m", "good")
    for name in names:
        assert site.nodes[name].path(PIN).read_text() == "4711\n"
        site.nodes[name].path(PIN).write_text("4712\n")
    wait_until(
        lambda: site.pact("check", "--nodes", "n1").code == 11 == site.pact("check", "--nodes", "n2").code, "drift"
    )
    shown = site.pact("--json", "diff", "--nodes", "n[1-2]").out
    assert all(hashlib.sha256(c).hexdigest() in shown for c in CONTENTS), "an administrator may see it from afar"
    site.write_client("eve", ["root"])
    asked = [site.pact("--json", *words, "--nodes", "n[1-2]").out for words in (["diff"], ["log", "-n", "200"])]
    folded = site.pact("diff", "--nodes", "n[1-2]").out
    assert "n[1-2]" in folded and folded.count(PIN) == 1, f"equal answers are folded all the same: {folded}"
    site.write_client("ann", ["root"])
    ok(site, "rollback", "--all", "--nodes", "n[1-2]")
    wait_until(lambda: all_recorded(site, names), "every record has come")
    wait_until(lambda: events.read_text().count('"rolled_back"') >= 2, "all is followed", 15)
    log = b"".join(p.read_bytes() for p in site.work.glob("root.db*"))
    seen = [*asked, events.read_text(), log.decode(errors="replace")]
    assert all(PIN in text for text in seen), [PIN in text for text in seen]
    for content in CONTENTS:
        assert all(hashlib.sha256(content).hexdigest() not in text for text in seen)
    bodies = [json.loads(line[line.index("{") :]) for line in events.read_text().splitlines() if PIN in line]
    assert {"committed", "drift_detected", "rollback_started"} <= {b["type"] for b in bodies}
    assert {b["data"]["salt"] for b in bodies if "sha256" in json.dumps(b)} == {"(hidden)"}, (
        "nor by trying their hashes"
    )


if __name__ == "__main__":
    sys.exit(main())
