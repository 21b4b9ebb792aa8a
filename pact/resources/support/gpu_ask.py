"""Asking NVML through ``gpu_nvml``, in a process that ends after each question.

All GPUs are read at one moment, and what was read serves further looks for a second: eight GPUs cost one question. A
question that does not end in time is killed, and a process that the kernel does not let go is left to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from pact.core import strict
from pact.model import NS_PER_S

PROGRAM: Final = os.path.join(os.path.dirname(__file__), "gpu_nvml.py")
TIMEOUT_S: Final = 60.0  # without persistence mode the first call wakes every card
KILLED_S: Final = 2.0
ANSWER_MAX: Final = 1 << 20
FRESH_NS: Final = NS_PER_S
USERS_NS: Final = 10 * NS_PER_S
#: Who waits for another one's question waits no longer than this.
TURN_S: Final = TIMEOUT_S + 2 * KILLED_S
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class NoAnswer(Exception):
    """NVML cannot be asked; the text is for people. ``missing``: this machine has no NVML at all."""

    def __init__(self, why: str, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


_turn = threading.Lock()
_seen: tuple[int, dict[str, Any]] = (0, {})
_users: dict[str, tuple[int, list[tuple[int, str]]]] = {}
#: An answer to a question that began before this moment is older than the last change, and is not kept.
_forgot_ns = 0


def gpus(names: tuple[str, ...] = (), *, fresh: bool = False) -> dict[str, Any]:
    """What NVML says of every GPU, by name, and of these names. Raises NoAnswer."""
    global _seen
    if not _turn.acquire(timeout=TURN_S):
        raise NoAnswer("NVML does not answer")
    try:
        at_ns, seen = _seen
        if not fresh and time.monotonic_ns() - at_ns < FRESH_NS and all(n in seen for n in names):
            return seen
        began_ns = time.monotonic_ns()
        said = ask("look", names=list(names)).get("gpus")
        if not isinstance(said, dict):
            raise NoAnswer("NVML gives no answer that can be read")
        if began_ns > _forgot_ns:
            _seen = began_ns, said
        return said
    finally:
        _turn.release()


def users(name: str) -> list[tuple[int, str]]:
    """Pids on the device, and how each uses it. Whoever asks again soon gets the same answer: a question of everybody's
    must not start a process each time. ``forget`` comes before a decision. Raises NoAnswer.  # S3"""
    if (last := _users.get(name)) is not None and time.monotonic_ns() - last[0] < USERS_NS:
        return last[1]
    began_ns = time.monotonic_ns()
    try:
        found = [(int(pid), str(how)) for pid, how in ask("users", name=name)["users"]]
    except (KeyError, TypeError, ValueError):
        raise NoAnswer("NVML gives no answer that can be read") from None
    if began_ns > _forgot_ns:
        _users[name] = time.monotonic_ns(), found
    return found


def forget() -> None:
    """What was seen does not count any more, nor what a question that is still under way will say."""
    global _seen, _forgot_ns
    _forgot_ns = time.monotonic_ns()
    _seen = (0, {})
    _users.clear()


def ask(op: str, timeout_s: float = TIMEOUT_S, **request: Any) -> dict[str, Any]:
    """One question. Raises NoAnswer."""
    env = ENVIRONMENT | {k: v for k in ("LD_LIBRARY_PATH",) if (v := os.environ.get(k))}
    command = [sys.executable, "-I", PROGRAM, orjson.dumps(sys.path).decode()]
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as exc:
        raise NoAnswer(f"NVML cannot be asked: {os.strerror(exc.errno or 0).lower()}") from None
    try:
        said, _ = process.communicate(orjson.dumps({"op": op, **request}), timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.communicate(timeout=KILLED_S)
        except subprocess.TimeoutExpired:  # it hangs in the driver: nobody can end it
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        raise NoAnswer(f"NVML does not answer within {timeout_s:g} s") from None
    if process.returncode != 0:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
        raise NoAnswer(f"NVML has ended its process with {how}")
    return _checked(said)


def _checked(said: bytes) -> dict[str, Any]:
    try:
        answer = strict.loads_object(said, ANSWER_MAX)
    except ValueError:
        raise NoAnswer("NVML gives no answer that can be read") from None
    if "no_nvml" in answer:
        raise NoAnswer(f"no NVML: {answer['no_nvml']}", missing=True)
    if "error" in answer:
        raise NoAnswer(f"NVML: {str(answer['error'])[:200]}")
    return answer


def attrs_of(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The attributes in NVML's answer; ``None`` if the GPU is gone or lost. Raises NoAnswer."""
    if "gone" in said:
        return None
    if "error" in said or not isinstance(said.get("attrs"), dict):
        raise NoAnswer(f"NVML: {str(said.get('error', 'no attributes'))[:200]}")
    return dict(said["attrs"])
