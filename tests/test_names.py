"""Users and groups: what is not known is never remembered, and what is known not for long."""

from __future__ import annotations

import pwd

from pact.resources.kinds.file import KIND
from pact.resources.support.accounts import FRESH_S, Known, group_name, same_group, same_user, user_id, user_name


def test_a_name_that_was_not_known_is_asked_for_again_and_one_that_was_after_a_minute() -> None:
    now, service, asked = [0.0], dict[str, int](), list[str]()

    def ask(name: str) -> int:
        asked.append(name)
        return service[name]

    known = Known(ask, lambda: now[0])
    assert known("alice") is None
    service["alice"] = 1001
    assert known("alice") == 1001
    service["alice"] = 1002
    now[0] = FRESH_S - 1
    assert known("alice") == 1001
    now[0] = FRESH_S
    assert known("alice") == 1002
    del service["alice"]
    now[0] = 2 * FRESH_S
    assert known("alice") is None
    assert asked == ["alice"] * 4


def test_a_number_and_its_name_are_the_same_user() -> None:
    assert (user_name(0), group_name(0), user_id("root"), user_name(54321)) == ("root", "root", 0, "54321")
    assert same_user("0", "root")
    assert same_user("root", "0")
    assert same_group("0", "root")
    assert same_user("54321", "54321")
    daemon = pwd.getpwnam("daemon")
    assert same_user(str(daemon.pw_uid), "daemon")
    assert not same_user("daemon", "root")
    assert not same_user("nobody-at-all", "54321")
    assert same_user("nobody-at-all", "nobody-at-all")


def test_a_declared_number_that_has_a_name_conforms() -> None:
    actual = {"type": "file", "mode": "0644", "owner": "root", "group": "root", "xattrs": {}, "sha256": "0", "size": 0}
    assert KIND.distance_n({"type": "file", "owner": "0", "group": "0"}, actual) == 0
    assert KIND.distance_n({"type": "file", "owner": "1"}, actual) > 0
    assert KIND.distance_n({"type": "file", "group": "nobody-at-all"}, actual) > 0
