"""Scenarios of who looks, beside those of ``scenarios.py``."""

from __future__ import annotations

import sys

from scenarios import CONF, Site, apply, build, group, main, ok, scenario, wait_until


@scenario
def who_looks_at_a_group_sees_its_members_as_they_are(site: Site) -> None:
    names = build(site, 3)
    gid = apply(site, names)
    assert group(site, gid)["members"] == {"applied": "n[1-3]"}
    site.nodes["n1"].path(CONF).write_text("mine\n")
    assert site.local("n2", "commit", "c1", "-m", "here alone").code == 0

    def told() -> bool:
        states = {name: state for state, name in group(site, gid)["members"].items()}
        return (states.get("n1", "").startswith(f"diverged: file:{CONF} was changed again")
                and states.get("n2", "").startswith("left: "))

    wait_until(told, f"{group(site, gid)['members']}")
    assert group(site, gid)["members"]["applied"] == "n3"
    done = site.pact("groups", gid)
    assert "diverged" in done.out and "left: committed on this node" in done.out, done
    assert ok(site, "commit", gid, "-m", "all", code=4)


if __name__ == "__main__":
    sys.exit(main())
