"""What of a mount's options and source only admins see."""

from __future__ import annotations

import pytest

from pact.resources.support.passwords import HIDDEN, holds_secret, shown, shown_option, shown_source, unquoted

pytestmark = pytest.mark.invariant("S2")


@pytest.mark.parametrize(
    "option",
    [
        "password=x",
        "PASSWORD=x",
        "pass=1",
        "passwd=a=b",
        "password2=x",
        "passphrase=q",
        "pwd=x",
        "username=ann",
        "user=ann",
        "secret=AQ==",
        "token=t",
        "key=abc",
        "access_key=1",
        "credentials=ann:pw",
        "proxy_password=x",
        "source_token=x",
    ],
)
def test_an_option_that_holds_one_is_hidden(option: str) -> None:
    assert shown_option(option) == f"{option.partition('=')[0]}={HIDDEN}"


@pytest.mark.parametrize(
    "option",
    [
        "rw",
        "user",
        "user_id=0",
        "vers=3.1.1",
        "secretfile=/etc/c",
        "passwd_file=/etc/p",
        "keyfile=/k",
        "domain=X",
        "mode=0755",
        "addr=10.0.0.1",
        "passive=1",
        "keyring=/x",
        "password",
        "password=",
        "cred_uid=0",
        "lowerdir=/a:/b",
        "size=2m",
        "nosuid",
    ],
)
def test_others_stay(option: str) -> None:
    assert shown_option(option) == option


@pytest.mark.parametrize(
    ("source", "means"),
    [
        ("//ann:pw@host/share", f"//{HIDDEN}@host/share"),
        ("sftp://ann:p@ss@h/x", None),
        ("https://ann:pw@h:8080/x", None),
        ("https://h/x?sig=abc&a=1", f"https://h/x?sig={HIDDEN}&a=1"),
        ("https://h/x?a=1&token=t", f"https://h/x?a=1&token={HIDDEN}"),
        ("ann%pw@h", f"{HIDDEN}@h"),
    ],
)
def test_a_source_is_shown_without_who_and_password(source: str, means: str | None) -> None:
    got = shown_source(source)
    assert got == (means or got) and HIDDEN in got and "pw" not in got


@pytest.mark.parametrize(
    "source",
    [
        "//host/share",
        "host:/export",
        "user@host:/x",
        "/dev/sda1",
        "LABEL=x",
        "10.0.0.1@tcp:/lustre",
        "10.0.0.1@o2ib:10.0.0.2@o2ib:/fs1",
        "[fe80::1]:/x",
        "mgs1@tcp0:mgs2@tcp0:/scratch",
        "tmpfs",
        "https://h/x?a=1",
    ],
)
def test_hosts_exports_and_labels_stay(source: str) -> None:
    assert shown_source(source) == source


def test_of_attributes_only_these_two_change() -> None:
    attrs = {"fstype": "cifs", "source": "//a:b@h/s", "options": ["rw", "password=x"], "value": "password=x"}
    assert shown(attrs) == {**attrs, "source": f"//{HIDDEN}@h/s", "options": ["rw", f"password={HIDDEN}"]}
    assert (
        holds_secret(attrs)
        and not holds_secret({"options": ["rw"], "source": "tmpfs"})
        and not holds_secret({"mode": "0644"})
    )


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (
            "mount: /m: special device //ann:pa@host/x does not exist.",
            f"mount: /m: special device //{HIDDEN}@host/x does not exist.",
        ),
        ("its password pa is wrong: password=pa", f"its password pa is wrong: password={HIDDEN}"),
        ("bad option token=abcd", f"bad option token={HIDDEN}"),
        ("abcd is no token", f"{HIDDEN} is no token"),
        ("nothing of it: rw, /m", "nothing of it: rw, /m"),
    ],
)
def test_what_a_tool_says_is_told_without_what_it_was_called_with(text: str, means: str) -> None:
    mount = {"source": "//ann:pa@host/x", "fstype": "cifs", "options": ["rw", "password=pa", "token=abcd"]}
    assert unquoted(text, None, mount) == means
