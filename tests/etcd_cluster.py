"""A real etcd of several members on loopback, whose members can be killed, stopped and started again.

``with EtcdCluster(directory) as etcd:`` then ``etcd.url()``; ``kill(i)``, ``stop(i)``, ``go_on(i)``, ``start(i)``, ``leader()``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

WANTED = ("etcd", "etcdctl")
MISSING = [name for name in WANTED if shutil.which(name) is None]
REASON = f"{', '.join(MISSING)} not installed: apt-get install etcd-server etcd-client"


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for sock in held:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


def openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True)


def make_certificates(directory: Path) -> None:
    """``ca``, ``server`` and ``client`` as .pem and .key, and ``stranger`` of another CA."""
    directory.mkdir(parents=True, exist_ok=True)
    extensions = directory / "ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
    for ca, names in (("ca", ("server", "client")), ("other", ("stranger",))):
        at = directory / ca
        openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN=pact test {ca}",
            "-keyout",
            f"{at}.key",
            "-out",
            f"{at}.pem",
        )
        for name in names:
            own = directory / name
            openssl(
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                f"/CN=pact-{name}",
                "-keyout",
                f"{own}.key",
                "-out",
                f"{own}.csr",
            )
            openssl(
                "x509",
                "-req",
                "-in",
                f"{own}.csr",
                "-CA",
                f"{at}.pem",
                "-CAkey",
                f"{at}.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                str(extensions),
                "-out",
                f"{own}.pem",
            )


class EtcdCluster:
    """Started as subprocesses, ended by pid. ``tls``: a directory for certificates; clients must then show one."""

    def __init__(self, directory: Path, size: int = 3, *, tls: Path | None = None, extra: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.tls = tls
        ports = free_ports(3 * size)
        self.client_ports, self.peer_ports, self.metrics_ports = ports[:size], ports[size:-size], ports[-size:]
        self.size = size
        self._extra = extra
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        if tls is not None:
            make_certificates(tls)

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    def url(self, **options: str) -> str:
        """For ``open_store``."""
        if self.tls:
            options = {
                "ca": f"{self.tls}/ca.pem",
                "cert": f"{self.tls}/client.pem",
                "key": f"{self.tls}/client.key",
                **options,
            }
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.client_ports)
        return f"etcd://{hosts}" + ("?" + "&".join(f"{k}={v}" for k, v in options.items() if v) if options else "")

    def start(self, *members: int) -> None:
        """Those members, or all; returns when each takes part in a cluster with a leader."""
        for i in members or range(self.size):
            client = f"{self.scheme}://127.0.0.1:{self.client_ports[i]}"
            peers = [f"http://127.0.0.1:{port}" for port in self.peer_ports]
            tls = (
                []
                if self.tls is None
                else [
                    f"--cert-file={self.tls}/server.pem",
                    f"--key-file={self.tls}/server.key",
                    "--client-cert-auth",
                    f"--trusted-ca-file={self.tls}/ca.pem",
                ]
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / f"m{i}.log").open("ab") as log:
                self._processes[i] = subprocess.Popen(
                    [
                        "etcd",
                        f"--name=m{i}",
                        f"--data-dir={self.directory}/m{i}",
                        f"--listen-client-urls={client}",
                        f"--advertise-client-urls={client}",
                        f"--listen-peer-urls={peers[i]}",
                        f"--initial-advertise-peer-urls={peers[i]}",
                        "--initial-cluster-token=pact-test",
                        "--initial-cluster=" + ",".join(f"m{n}={peer}" for n, peer in enumerate(peers)),
                        f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_ports[i]}",
                        "--logger=zap",
                        "--log-level=warn",
                        *tls,
                        *self._extra,
                    ],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
        end = time.monotonic() + 30
        while not all(self._metric(i, "etcd_server_has_leader") for i in members or range(self.size)):
            dead = [i for i, p in self._processes.items() if p.poll() is not None]
            if dead or time.monotonic() > end:
                raise RuntimeError(
                    f"etcd does not start: {(self.directory / f'm{(dead or [0])[0]}.log').read_text()[-2000:]}"
                )
            time.sleep(0.05)

    def _metric(self, member: int, name: str) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.metrics_ports[member]}/metrics", timeout=1) as answer:
                return f"\n{name} 1" in answer.read().decode()
        except OSError:
            return False

    def leader(self) -> int:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for i in self._processes:
                if self._metric(i, "etcd_server_is_leader"):
                    return i
            time.sleep(0.05)
        raise RuntimeError("etcd has no leader")

    def followers(self) -> list[int]:
        leader = self.leader()
        return [i for i in self._processes if i != leader]

    def kill(self, *members: int) -> None:
        for i in members:
            process = self._processes.pop(i)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self, member: int) -> None:
        """It holds its connections and answers nothing."""
        os.kill(self._processes[member].pid, signal.SIGSTOP)

    def go_on(self, member: int) -> None:
        os.kill(self._processes[member].pid, signal.SIGCONT)

    def ctl(self, *args: str, user: str = "") -> str:
        """etcdctl, at all members; its output."""
        hosts = ",".join(f"{self.scheme}://127.0.0.1:{port}" for port in self.client_ports)
        tls = (
            []
            if self.tls is None
            else [f"--cacert={self.tls}/ca.pem", f"--cert={self.tls}/client.pem", f"--key={self.tls}/client.key"]
        )
        done = subprocess.run(
            ["etcdctl", f"--endpoints={hosts}", *tls, *([f"--user={user}"] if user else []), *args],
            text=True,
            env={**os.environ, "ETCDCTL_API": "3", "NO_PROXY": "*"},
            capture_output=True,
            check=True,
            timeout=20,
        )
        return done.stdout

    def close(self) -> None:
        self.kill(*self._processes)

    def __enter__(self) -> EtcdCluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
