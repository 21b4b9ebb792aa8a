"""What of a mount's options and source only admins see."""

from __future__ import annotations

import pytest

from pact.agent.veil import VIEWER, Veil
from pact.observe.mountinfo import MountEntry
from pact.resources.support.mount_options import Memory
from pact.resources.support.passwords import (
    HIDDEN,
    holds_secret,
    option_secrets,
    shown,
    shown_option,
    shown_source,
    source_secrets,
    unquoted,
)

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
        "proxy_user=ann:pw",
        "proxy_username=ann",
        "ssh_command=sshpass -p pw ssh",
        "ProxyCommand=nc --proxy-auth ann:pw h",
        "header=Authorization: Bearer x",
        "cookie=a=b",
        "pw=x",
        "psk=x",
        "pin=1234",
        "auth=ann:pw",
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
        "context=user_u:object_r:x",
        "xlator-option=v.ping=1",
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
        ("//ann:x@pw@host/share", f"//{HIDDEN}@host/share"),
        ("//ann:x/pw@host/share", f"//{HIDDEN}@host/share"),
        ("//ann:x pw@host/share", f"//{HIDDEN}@host/share"),
        ("//ann:x\npw@host/share", f"//{HIDDEN}@host/share"),
        ("curlftpfs#ftp://ann:12/pw@h/x", f"curlftpfs#ftp://{HIDDEN}@h/x"),
        ("sshfs#ann:pw@h:/x", f"{HIDDEN}@h:/x"),
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


@pytest.mark.parametrize(
    ("option", "means"),
    [
        ("xlator-option=v-client.password=abcd", f"xlator-option=v-client.password={HIDDEN}"),
        ("xlator-option=*.password=abcd", f"xlator-option=*.password={HIDDEN}"),
        ("opts=secret=abcd", f"opts=secret={HIDDEN}"),
        ("fsname=//ann:abcd@h/x", f"fsname=//{HIDDEN}@h/x"),
        ("url=https://h/x?token=abcd", f"url=https://h/x?token={HIDDEN}"),
    ],
)
def test_what_one_option_hands_on_is_hidden_too(option: str, means: str) -> None:
    assert shown_option(option) == means
    assert "abcd" not in unquoted(f"bad option: {option}; abcd", {"options": [option]})


def ceph(*options: bytes) -> MountEntry:
    return MountEntry(5, 1, 0, 5, b"/", b"/m", (b"rw",), (), "ceph", b"mon:/", options)


def test_options_that_are_remembered_of_a_mount_are_hidden_like_its_own() -> None:
    """The kernel shows a key as ``<hidden>``: pact remembered what it had been told under that name."""
    memory, entry = Memory(), ceph(b"rw", b"secret=<hidden>")
    before = memory.add_to({"fstype": "ceph", "options": ["rw", "username=annie"]}, [entry])
    memory.took(entry, ["secret=AQBpw=="], {"fstype": "ceph", "options": ["rw", "secret=<hidden>"]})
    seen = memory.add_to({"fstype": "ceph", "options": ["rw", "secret=<hidden>"]}, [entry])
    assert seen["took"] == {"secret=AQBpw==": ["secret=<hidden>"]} and seen["was"] == ["username=annie"], before
    veil = Veil(b"k" * 32)
    record = {"resource": "mount:/m", "actual": seen, "reason": "AQBpw== is wrong for annie"}
    for told in (shown(seen), veil.attrs("mount:/m", seen), veil.masked(record, VIEWER)):
        assert "AQB" not in str(told) and "annie" not in str(told) and "secret=" in str(told)
    assert "AQB" not in unquoted("bad secret AQBpw==", seen)


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


def test_options_within_options_without_end_are_hidden_whole() -> None:
    """Who mounts chooses them; a rollback of the mount must not fail for them."""
    deep = "a=" * 3000 + "word"
    assert shown_option(deep).endswith(HIDDEN) and "word" not in shown_option(deep)
    assert option_secrets(deep)[0].endswith("word")


def test_a_long_source_without_anybody_in_it_is_not_searched() -> None:
    for source in (":" * 200_000, "//" + ":" * 200_000, "x://" * 50_000):
        assert shown_source(source) == source and source_secrets(source) == []
