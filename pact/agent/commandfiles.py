"""Where commands of ``executing`` keep their files, and which the last agent has left."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from pact.agent.sessionfiles import read_state, shown
from pact.core.node.payloads import Executed
from pact.errors import PactError
from pact.host import owned
from pact.model import Owner
from pact.session import frames
from pact.session.places import socket_path, state_path

PLACE: Final = "exec"
DIRECTORY: Final = "directory of commands"


def place_beside(sessions: str) -> str:
    """The directory of commands, beside that of sessions."""
    return os.path.join(os.path.dirname(sessions), PLACE)


def left_calls(sessions: str) -> set[str]:
    """The calls whose commands the last agent has left, beside this directory of sessions: they were begun, and are
    not begun again."""
    directory, found = place_beside(sessions), set[str]()
    try:
        owned.require(directory, DIRECTORY)
        names = [n for n in os.listdir(directory) if n.endswith(".json")]
    except (OSError, PactError):
        return found
    for name in names:
        about = (read_state(f"{directory}/{name}") or {}).get("about")
        if isinstance(about, dict) and isinstance(about.get("call"), str):
            found.add(about["call"])
    return found


def tell_end(directory: str, name: str, why: str) -> None:
    """Ask a command's process to end it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(socket_path(directory, name))
        sock.send(frames.said(b"A", {"end": why}))
    except OSError:
        pass  # it has ended
    finally:
        sock.close()


def forget_files(directory: str, name: str) -> None:
    for path in (state_path(directory, name), socket_path(directory, name)):
        try:
            os.unlink(path)
        except OSError:
            pass


def shown_output(name: str, data: bytes) -> dict[str, str]:
    """Text as text, so that it is short and equal where it is equal; everything else as base64."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def left_of(end: Mapping[str, Any]) -> int:
    """How many processes a command has left behind, by what its process says of its end."""
    count = end.get("left")
    return count if type(count) is int and count > 0 else 0


def executed_of(
    words: Any, owner: Owner, state: Mapping[str, Any], key: str, begun: int | None, result: Mapping[str, Any]
) -> Callable[[int | None, int | None, int | None, bool], Executed]:
    """Makes the record of a command that has ended: from how long it took, its bytes in and out, and whether they were
    cut. ``key``: of who asked. ``begun``: the number of the record that it began."""

    def made(ns: int | None, sent: int | None, out: int | None, truncated: bool) -> Executed:
        return Executed(
            command=shown(list(words)),
            owner=owner,
            account=state["account"],
            exit=result.get("exit"),
            key=key,
            signal=result.get("signal", ""),
            why=result.get("why", ""),
            uid=owner.uid,
            duration_ns=ns,
            in_bytes=sent,
            out_bytes=out,
            truncated=truncated,
            begun=begun,
            left=left_of(result),
        )

    return made
