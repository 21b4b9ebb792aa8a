"""Calls to etcd with a time limit: several members, deadlines, TLS, tokens. Every failure is a JournalError.

The messages and stubs are pyetcd's (etcd-sdk-python). Its client is not used: it waits five minutes before it tries a
member again, keeps a token for ever, and does not support several threads. A call is tried at each member in turn, so
callers must write transactions that may arrive twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pact.errors import ConfigError, JournalError
from pact.host import owned

CALL_S: Final = 1.5
TOTAL_S: Final = 4.0
ROUND_PAUSE_S: Final = 0.05
MESSAGE_MAX: Final = 64 << 20
SECRET_MAX: Final = 4096
CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    ("grpc.max_send_message_length", MESSAGE_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
STALE_TOKEN: Final = ("auth token", "auth store", "user name is empty")
HINTS: Final = {
    "PERMISSION_DENIED": "grant the user's role readwrite on the prefix /pact/",
    "RESOURCE_EXHAUSTED": "compact and defragment etcd, or raise its quota, then disarm the alarm (docs/etcd.md)",
    "INVALID_ARGUMENT": "check user, password_file and etcd's --max-request-bytes",
    "FAILED_PRECONDITION": "is authentication enabled in etcd?",
}


def library() -> tuple[Any, Any]:
    """``grpc`` and pyetcd's messages and stubs; 25 MiB, so only if etcd is configured."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the errors contain everything that it would log
    try:
        import grpc
        from pyetcd import etcdrpc
    except ImportError as exc:
        raise ConfigError(f"the journal is to be on etcd: {exc}", "pip install 'pact[etcd]'") from None
    return grpc, etcdrpc


class EtcdClient:
    """Any thread may call it."""

    def __init__(
        self, hosts: list[str], *, ca: str = "", cert: str = "", key: str = "", user: str = "", password_file: str = ""
    ) -> None:
        self._grpc, self.rpc = library()
        self._hosts = hosts
        self._files = {"ca": ca, "cert": cert, "key": key}
        self._user, self._password_file = user, password_file
        self._lock = threading.Lock()
        self._at = 0
        self._token = ""
        self._channels: dict[int, Any] = {}
        self._stamp: tuple[int, ...] = ()
        self._closed = False

    # -- channels and tokens ----------------------------------------------------------------------------------------

    def _read(self, what: str, path: str, most: int = 1 << 20) -> bytes:
        try:
            return owned.read_regular(path, most)
        except OSError as exc:
            raise JournalError(f"[journal] {what}: {exc}") from None

    def _channel(self, index: int) -> Any:
        with self._lock:
            if self._closed:
                raise JournalError("the connection to etcd is closed")
            if index not in self._channels:
                host = self._hosts[index]
                if self._files["ca"]:
                    self._stamp = self._stamps()
                    ca, cert, key = (self._read(n, p) if p else None for n, p in self._files.items())
                    creds = self._grpc.ssl_channel_credentials(ca, key, cert)
                    self._channels[index] = self._grpc.secure_channel(host, creds, options=CHANNEL_OPTIONS)
                else:
                    self._channels[index] = self._grpc.insecure_channel(host, options=CHANNEL_OPTIONS)
            return self._channels[index]

    def _stamps(self) -> tuple[int, ...]:
        try:
            return tuple(os.stat(path).st_mtime_ns for path in self._files.values() if path)
        except OSError:
            return ()

    def _next(self, index: int) -> None:
        """The member did not answer: use the next one. This is also the moment to notice that certificates were
        renewed."""
        with self._lock:
            if self._at == index:
                self._at = (index + 1) % len(self._hosts)
            if self._files["ca"] and self._stamps() != self._stamp:
                for channel in self._channels.values():
                    channel.close()
                self._channels.clear()

    def _metadata(self, channel: Any, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """``hasleader``: a member without a leader reports that at once."""
        lead = (("hasleader", "true"),)
        if not self._user:
            return lead
        token = self._token
        if not token:
            password = self._read("password_file", self._password_file, SECRET_MAX).decode().rstrip("\r\n")
            request = self.rpc.AuthenticateRequest(name=self._user, password=password)
            token = self.rpc.AuthStub(channel).Authenticate(request, timeout=timeout_s, metadata=lead).token
            self._token = token
        return (*lead, ("token", token))

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, service: str, method: str, request: Any, *, call_s: float = CALL_S, total_s: float = TOTAL_S) -> Any:
        """``KV``, ``Txn``: the answer. Raises JournalError after at most ``total_s`` seconds."""

        def once(channel: Any, timeout_s: float, metadata: Any) -> Any:
            stub = getattr(self.rpc, service + "Stub")(channel)
            return getattr(stub, method)(request, timeout=timeout_s, metadata=metadata)

        return self._try(once, call_s, total_s)

    def keep_alive(self, lease: int, *, total_s: float) -> int:
        """Seconds that the lease lives on, counted from the sending of the request; 0 if it is gone. Raises
        JournalError."""

        def once(channel: Any, timeout_s: float, metadata: Any) -> Any:
            requests = iter([self.rpc.LeaseKeepAliveRequest(ID=lease)])
            stream = self.rpc.LeaseStub(channel).LeaseKeepAlive(requests, timeout=timeout_s, metadata=metadata)
            try:
                return next(iter(stream))
            finally:
                stream.cancel()

        return int(self._try(once, min(CALL_S, total_s), total_s).TTL)

    def _try(self, once: Callable[[Any, float, Any], Any], call_s: float, total_s: float) -> Any:
        code = self._grpc.StatusCode
        elsewhere = (code.UNAVAILABLE, code.DEADLINE_EXCEEDED, code.INTERNAL, code.CANCELLED, code.ABORTED)
        end = time.monotonic() + total_s
        why, renewed = "no time was left", False
        for attempt in range(len(self._hosts) + 2):
            left = end - time.monotonic()
            if left <= ROUND_PAUSE_S:
                break
            index = self._at
            channel = self._channel(index)
            try:
                timeout_s = min(call_s, left)
                return once(channel, timeout_s, self._metadata(channel, timeout_s))
            except self._grpc.RpcError as exc:
                found, text = exc.code(), exc.details() or ""
                if not renewed and self._user and any(words in text for words in STALE_TOKEN):
                    self._token, renewed = "", True  # it expired, the member was restarted, or the users changed
                    continue
                why = f"{self._hosts[index]}: {text or found.name}"
                if found not in elsewhere:
                    raise JournalError(f"etcd: {why}", HINTS.get(found.name, "")) from None
                self._next(index)
            except (StopIteration, ValueError) as exc:  # a stream that ended; a channel that was closed during the call
                why = f"{self._hosts[index]}: {exc!r}"
                self._next(index)
            if attempt >= len(self._hosts):
                time.sleep(ROUND_PAUSE_S)
        raise JournalError(f"etcd does not answer: {why}", "is there a quorum? etcdctl endpoint status")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
