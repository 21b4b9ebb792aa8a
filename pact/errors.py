"""The error tree. Every error an operator can cause carries the exit code that the command line ends with.

A bug is an ``assert``; nothing here is raised for one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DENIED = 3
EXIT_CONFLICT = 4
EXIT_UNREACHABLE = 5
EXIT_BLOCKED = 10
EXIT_DRIFT = 11
#: Of several exit codes the last one in this order is reported. An unknown code, from a later version, is the gravest.
GRAVITY = (EXIT_DONE, EXIT_DRIFT, EXIT_CONFLICT, EXIT_UNREACHABLE, EXIT_USAGE, EXIT_DENIED, EXIT_FAILED, EXIT_BLOCKED)


def gravest(codes: Iterable[int]) -> int:
    """The gravest of several exit codes; 0 if there are none."""
    return max(codes, key=lambda c: GRAVITY.index(c) if c in GRAVITY else len(GRAVITY), default=EXIT_DONE)


class PactError(Exception):
    """Base of all errors that a person can cause or meet. ``hint`` says what to do next, if that is known."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PactError):
    """The request itself is wrong: an unknown name, a value out of range."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A configuration file is wrong. ``message`` names the file, the key and the nearest valid key."""


class DeclaredError(UsageError):
    """A declared-state file is wrong; the message says where."""

    def __init__(self, path: str, line: int, why: str, hint: str = "") -> None:
        where = f"{path}:{line}" if line else path
        super().__init__(f"{where}: {why}", hint)
        self.path = path
        self.line = line
        self.why = why


class DeniedError(PactError):
    """The caller's role does not allow this."""

    exit_code = EXIT_DENIED


class ConflictError(PactError):
    """Too late, or the machine is no longer as last recorded."""

    exit_code = EXIT_CONFLICT


class UnreachableError(PactError):
    """The agent, an aggregator or the journal cannot be reached or written."""

    exit_code = EXIT_UNREACHABLE


class AbsentError(UnreachableError):
    """Required nodes cannot be reached. ``failed``: the nodes, with a reason for each."""

    def __init__(self, message: str, hint: str, failed: Mapping[str, str]) -> None:
        super().__init__(message, hint)
        self.failed = failed


class BlockedError(PactError):
    """Consumers hold what the operation would change."""

    exit_code = EXIT_BLOCKED


class JournalError(UnreachableError):
    """The journal cannot be written or read (full disk, I/O error, lock). ``uncertain``: only reading the journal again
    can show whether the records were written."""

    uncertain = False


class StoreFullError(JournalError):
    """The content store has no room for what a record needs. ``limit`` in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the content store's limit of {limit} bytes is reached",
            "nothing was changed; raise [state] store_limit, or lower keep, and restart",
        )
        self.limit = limit


class Fenced(ConflictError):
    """Another root leads, or the log is not in the state that this root believes: step down, load again, campaign
    again."""


class ChainError(PactError):
    """The journal's hash chain does not verify. ``seq`` is the first wrong record."""

    def __init__(self, seq: int, why: str, hint: str = "") -> None:
        hint = hint or "keep the file; compare it with an export or the cluster's copy"
        super().__init__(f"journal record {seq}: {why}", hint)
        self.seq = seq


class RestoreError(PactError):
    """One resource could not be restored; the record will contain the reason."""


class RequestError(UsageError):
    """The peer on the control socket sent something that is not a request."""


class ProtocolError(PactError):
    """Base of errors in the cluster's messages. Never shown to a person as it is; counted and logged."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that is not a message."""


class LocalProtocolError(ProtocolError):
    """This side was about to send something that is not a message: a bug, or a limit that the caller must respect."""


#: System errors that mean that a resource of the machine is used up.
OUT_OF: dict[int, str] = {
    errno.EMFILE: "no file descriptor left",
    errno.ENFILE: "no file descriptor left: the machine has none",
    errno.ENOMEM: "no memory left",
    errno.ENOSPC: "no space left on the disk",
}


def explained(exc: BaseException) -> PactError:
    """The error in a form for a person: for a refusal by the machine, the system's own words; otherwise it is a bug."""
    if isinstance(exc, PactError):
        return exc
    if isinstance(exc, OSError) and exc.errno in OUT_OF:
        return UnreachableError(
            f"the agent has {OUT_OF[exc.errno]}", "raise its limit, or end what uses them up; then repeat"
        )
    if isinstance(exc, MemoryError):
        return UnreachableError("the agent has no memory left", "raise its limit, then repeat")
    if isinstance(exc, OSError) and exc.strerror:
        where = f" ({exc.filename!r})" if exc.filename else ""
        return PactError(f"{exc.strerror.lower()}{where}")
    return PactError(f"internal error: {type(exc).__name__}: {exc}")


BY_EXIT_CODE: dict[int, type[PactError]] = {
    EXIT_FAILED: PactError,
    EXIT_USAGE: UsageError,
    EXIT_DENIED: DeniedError,
    EXIT_CONFLICT: ConflictError,
    EXIT_UNREACHABLE: UnreachableError,
    EXIT_BLOCKED: BlockedError,
}
