"""Whose session it is: accounts, the shadow file, the environment, and how the agent finds a keeper."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from pact.agent import keeping
from pact.errors import UnreachableError
from pact.session import account, frames, spawn
from pact.session.client import Escapes
from pact.session.output import CONTEXT, KEPT_MAX, Output

ANN = pwd.struct_passwd(("ann", "x", 4101, 4101, "Ann", "/home/ann", "/bin/bash"))


def test_the_environment_is_clean() -> None:
    brought = {
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Europe/Zurich",
        "LC_ALL": "$(id)",
        "LC_X": "../../evil",
        "LD_PRELOAD": "/tmp/evil.so",
        "PATH": "/tmp",
        "BASH_ENV": "/tmp/evil",
        "PYTHONPATH": "/tmp",
        "LC_PAPER": 7,
        "TZ2": "x",
    }
    env = account.environment(ANN, "/bin/bash", "xterm-256color", brought)
    assert env == {
        "HOME": "/home/ann",
        "SHELL": "/bin/bash",
        "USER": "ann",
        "LOGNAME": "ann",
        "PATH": account.PATH,
        "TERM": "xterm-256color",
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Europe/Zurich",
    }
    assert account.environment(ANN, "/bin/sh", "x\x1b[2J", {})["TERM"] == "dumb"
    assert "TERM" not in account.environment(ANN, "/bin/sh", "", {})


@pytest.mark.parametrize("name", ["", "../x", " a", "ann\n", "\x1b]0;x\x07", "a" * 257, "-ann", "no-such-person-here"])
def test_what_is_no_account_is_refused(name: str) -> None:
    with pytest.raises(account.Refused):
        account.looked_up(name)


def test_names_of_other_directories_are_names() -> None:
    for name in ("AD\\ann", "AD\\ann smith", "ann@ad.example.org", "José", "n" * 32, "node$", "1001"):
        assert account.is_name(name), name
    for name in ("", "a/b", "a:b", "a,b", "-a", "a\tb", "a\0", "\udcff", "a\u202eb", "ann "):
        assert not account.is_name(name), name


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("ann:!$6$x$y:19000:0:99999:7:::", "locked"),
        ("ann:!!$6$x$y:19000:0:99999:7:::", "locked"),
        ("ann:$6$x$y:19000:0:99999:7::1:", "expired"),
        ("ann:$6$x$y:19000:0:99999:7::0:", "expired"),
        ("ann:!:19000:0:99999:7:::", ""),
        ("ann:!!:19000:0:99999:7:::", ""),
        ("ann:*:19000:0:99999:7:::", ""),
        ("ann:!*:19000:0:99999:7:::", ""),
        (f"ann:$6$x$y:19000:0:99999:7::{int(time.time()) // 86400 + 2}:", ""),
        ("anna:!$6$x$y:19000:0:99999:7:::", ""),
        ("ann", ""),
    ],
)
def test_a_locked_account_is_one_whose_password_somebody_locked(row: str, why: str, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.write_text(f"root:*:1:::::\n{row}\n")
    if not why:
        account.require_unlocked("ann", str(shadow))
        return
    with pytest.raises(account.Refused, match=why):
        account.require_unlocked("ann", str(shadow))


@pytest.mark.parametrize("shell", ["/bin/no-such", "bash", "/etc", "/etc/passwd", "/proc/self/mem"])
def test_a_shell_must_be_a_program(shell: str) -> None:
    with pytest.raises(account.Refused, match="shell"):
        account.shell_of(pwd.struct_passwd((*ANN[:6], shell)))


def test_one_word_is_a_line_for_the_shell_and_several_are_exactly_these() -> None:
    assert spawn.line(ANN, "/bin/bash", []) == ["-bash"]
    assert spawn.line(ANN, "/bin/bash", ["ls | wc"]) == ["bash", "-c", "ls | wc"]
    assert spawn.line(ANN, "/bin/bash", ["--", "ls"]) == ["bash", "-c", " -- ls"]  # no options of the shell
    assert spawn.line(ANN, "/bin/bash", ["-i"]) == ["bash", "-c", " -i"]
    assert spawn.line(ANN, "/bin/bash", ["ls", "a b", "$x"]) == ["bash", "-c", "ls 'a b' '$x'"]


@pytest.mark.invariant("F87")
def test_a_confined_agent_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "confined", lambda: True)
    with pytest.raises(UnreachableError) as caught:
        keeping.Keeper(str(tmp_path)).connect()
    assert "pact-sessions.socket" in caught.value.hint and list(tmp_path.iterdir()) == []


def test_frames_come_out_as_they_went_in_however_they_are_cut() -> None:
    whole = frames.frame(b"I", b"x" * 60_000) + frames.said(b"X", {"exit": 1}) + frames.frame(b"D")
    for step in (1, 3, 4, 5, 6, 1000, 70_000):
        reader, got = frames.Reader(), []
        for at in range(0, len(whole), step):
            got += list(reader.feed(whole[at : at + step]))
        assert [k for k, _ in got] == [b"I", b"X", b"D"] and len(got[0][1]) == 60_000


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (b'{"exit":3}', 3),
        (b'{"exit":256}', 0),
        (b'{"signal":"TERM"}', 143),
        (b'{"signal":"EVIL"}', 255),
        (b'{"why":"x"}', 255),
    ],
)
def test_what_an_end_means_to_a_shell(end: bytes, code: int) -> None:
    assert frames.ended(end)[0] == code


def test_a_tilde_leaves_only_at_the_beginning_of_a_line() -> None:
    def typed(*pieces: bytes) -> tuple[bytes, bool]:
        escapes = Escapes()
        return b"".join(map(escapes.pass_on, pieces)), escapes.leave

    assert typed(b"~.") == (b"", True)
    assert typed(b"ls\r", b"~", b".", b"x") == (b"ls\rx", True)
    assert typed(b"a~.b\r") == (b"a~.b\r", False)
    assert typed(b"~~\r") == (b"~\r", False)
    assert typed(b"~x") == (b"~x", False)


def test_output_is_numbered_and_bounded() -> None:
    out = Output(lossy=True)
    for _ in range(40):
        out.put(b"x" * 50_000)
        out.trim()
    assert out.end == 2_000_000 and out.end - out.start <= 2 * KEPT_MAX
    at, lost = out.attach(None)
    assert at == out.start and lost == out.start
    while out.next(65_536):
        pass
    assert out.attach(None) == (out.end - CONTEXT, 0)
    assert out.attach(out.end - 10) == (out.end - 10, 0)
    assert out.attach(5)[1] == out.start - 5
    assert out.attach(10**9)[0] <= out.end
    safe = Output(lossy=False)
    safe.put(b"y" * KEPT_MAX)
    assert safe.room(False) == 0 and safe.room(True) == 0


def test_nothing_of_a_module_of_pam_is_asked_without_pam(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise OSError("no libpam")

    monkeypatch.setattr(account, "_libraries", [])
    monkeypatch.setattr(account.ctypes, "CDLL", missing)
    assert account.libraries() is None and not account.has_pam()


def test_the_service_is_the_first_that_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SERVICE_DIRS", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert account.service() == "other"
    for name in ("login", "sshd", "pact"):
        os.makedirs(tmp_path / "b", exist_ok=True)
        (tmp_path / "b" / name).touch()
        assert account.service() == name
