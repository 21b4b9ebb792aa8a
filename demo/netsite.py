"""A small site on one machine: a bridge, a node in each network and mount namespace, aggregators, a real etcd.

Must run inside a mount and a network namespace of its own. Everything is started as a subprocess and ended by pid.
Imports nothing of pact's: it is used as its users use it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NET = "10.77"
WAIT_S = 30.0
STEP_S = 0.03


class SiteError(Exception):
    """Something did not start, or did not become so in time."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """The first true value of ``condition``. What takes long to look at, as a command does, is looked at less often."""
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > end:
            raise SiteError(f"not within {seconds:g} s: {what}")
        time.sleep(max(STEP_S, now - began))


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Node:
    """One node: ``holder`` keeps its namespaces open."""

    name: str
    number: int
    holder: subprocess.Popen[bytes]
    socket: str
    agent: subprocess.Popen[bytes] | None = None
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """A path of the node's, seen from outside."""
        return Path(f"/proc/{self.holder.pid}/root{name}")


class Site:
    """See the module. ``place`` is where every node has a tmpfs of its own."""

    def __init__(self, work: Path, place: str) -> None:
        self.work, self.place = work, place
        self.keys = work / "keys"
        self.keys.mkdir(mode=0o700)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("PACT_")} | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "120",
        }
        self.nodes: dict[str, Node] = {}
        self.aggregators: dict[str, subprocess.Popen[bytes]] = {}
        self.etcd: list[subprocess.Popen[bytes] | None] = []
        self.roles: list[tuple[str, str]] = []
        self.sealed_for: list[str] = []
        self.journal = f"sqlite://{work}/root.db"
        self.followers: list[subprocess.Popen[bytes]] = []
        self._addresses: dict[str, str] = {}
        self._etcd_ports: list[tuple[int, int]] = []
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "addr", "add", f"{NET}.0.1/16", "dev", "br0")
        run("ip", "link", "set", "br0", "up")

    # -- keys -------------------------------------------------------------------------------------------------------

    def make_keys(self, names: dict[str, str], sealed_for: Sequence[str] = ()) -> None:
        """``{name: role}``: keys for all, and the file of authorised keys. ``sealed_for`` names the roots where the
        site is to be sealed.
        """
        self.sealed_for = list(sealed_for)
        script = "import sys; from pact.net.keys import keygen\nfor n in sys.argv[2:]: keygen(n, sys.argv[1])"
        subprocess.run([sys.executable, "-c", script, str(self.keys), *names], env=self.env, check=True)
        self.roles = list(names.items())
        self.authorize(names)

    def authorize(self, names: Iterable[str]) -> None:
        """Only these keys are known from now on."""
        wanted = set(names)
        text = "".join(
            f'[[key]]\npublic = "{self.public(n)}"\nname = "{n}"\nrole = "{role}"\n'
            for n, role in self.roles
            if n in wanted
        )
        new = self.work / "authorized_keys.new"
        new.write_text(text)
        new.rename(self.work / "authorized_keys.toml")

    def public(self, name: str) -> str:
        return (self.keys / f"{name}.key").read_text().strip()

    # -- etcd -------------------------------------------------------------------------------------------------------

    def start_etcd(self, members: int = 3) -> None:
        held = [socket.socket() for _ in range(2 * members)]
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in held]
        for sock in held:
            sock.close()
        self._etcd_ports = list(zip(ports[:members], ports[members:], strict=True))
        self.etcd = [None] * members
        for i in range(members):
            self.start_member(i)
        wait_until(lambda: self.etcd_leader() is not None, "etcd has a leader")
        self.journal = "etcd://" + ",".join(f"127.0.0.1:{client}" for client, _ in self._etcd_ports) + "?lease=3"

    def start_member(self, i: int) -> None:
        client, peer = self._etcd_ports[i]
        initial = ",".join(f"m{n}=http://127.0.0.1:{p}" for n, (_, p) in enumerate(self._etcd_ports))
        with open(self.work / f"etcd{i}.log", "ab") as log:
            self.etcd[i] = subprocess.Popen(
                [
                    "etcd",
                    "--name",
                    f"m{i}",
                    "--data-dir",
                    str(self.work / f"etcd{i}"),
                    "--listen-client-urls",
                    f"http://127.0.0.1:{client}",
                    "--advertise-client-urls",
                    f"http://127.0.0.1:{client}",
                    "--listen-peer-urls",
                    f"http://127.0.0.1:{peer}",
                    "--initial-advertise-peer-urls",
                    f"http://127.0.0.1:{peer}",
                    "--initial-cluster",
                    initial,
                    "--logger",
                    "zap",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )

    def etcd_leader(self) -> int | None:
        for i, (client, _) in enumerate(self._etcd_ports):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{client}/metrics", timeout=2) as answer:
                    if b"\netcd_server_is_leader 1" in answer.read():
                        return i
            except OSError:
                continue
        return None

    def kill_member(self, i: int) -> None:
        process = self.etcd[i]
        assert process is not None
        process.kill()
        process.wait()
        self.etcd[i] = None

    # -- aggregators ------------------------------------------------------------------------------------------------

    def start_aggregator(self, name: str, number: int, parents: Sequence[str] = (), more: str = "") -> None:
        """A root where there are no parents. ``number`` is the last part of its address."""
        address = f"{NET}.0.{number}"
        if name not in self._addresses:
            if number != 1:
                run("ip", "addr", "add", f"{address}/16", "dev", "br0")
            self._addresses[name] = address
        sealed = "[cluster]\nsealed = true\n" if name in self.sealed_for else ""
        (self.work / f"{name}.toml").write_text(
            f'[aggregator]\nname = "{name}"\ntree = "tcp://{address}:7417"\nevents = "tcp://{address}:7418"\n'
            f'replay = "tcp://{address}:7419"\nhttp = "{address}:7420"\nparents = [{self._parents(parents)}]\n{more}\n'
            f'{sealed}[journal]\nurl = "{self.journal}"\n'
            f'[keys]\nsecret = "{self.keys}/{name}.secret"\nauthorized = "{self.work}/authorized_keys.toml"\n'
        )
        with open(self.work / f"{name}.log", "ab") as log:
            self.aggregators[name] = self._pact(["aggregator", "--config", str(self.work / f"{name}.toml")], log)
        process = self.aggregators[name]
        wait_until(lambda: "ready on" in self.log(name) or self._ended(process, name), f"{name} is ready")

    def _parents(self, names: Sequence[str]) -> str:
        return ", ".join(f'{{url = "tcp://{self._addresses[n]}:7417", key = "{self.public(n)}"}}' for n in names)

    def _sealed(self) -> str:
        """What the files of nodes and people say of seals."""
        keys = ", ".join(f'"{self.public(n)}"' for n in self.sealed_for)
        return f"roots = [{keys}]\nsealed = true\n" if keys else ""

    def _ended(self, process: subprocess.Popen[bytes], name: str) -> bool:
        if process.poll() is not None:
            raise SiteError(f"{name} ended with {process.returncode}:\n{self.log(name)[-3000:]}")
        return False

    def _pact(self, words: Sequence[str], log: Any, node: str = "") -> subprocess.Popen[bytes]:
        """An agent on its node, or an aggregator."""
        return subprocess.Popen(
            [*(self.into(node) if node else ()), sys.executable, "-m", "pact.cli.main", *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )

    def log(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text(errors="replace")

    def kill_aggregator(self, name: str) -> None:
        process = self.aggregators.pop(name)
        process.kill()
        process.wait()

    def leader(self) -> str:
        """The root that leads: the last that said so, and lives."""
        logs = {n: self.log(n) for n in self.aggregators}
        found = {n: text for n, text in logs.items() if text.rfind("leading with fence") > text.rfind("leading no")}
        fences = {int(text.rsplit("leading with fence ", 1)[1].split(",")[0]): n for n, text in found.items()}
        return fences[max(fences)] if fences else ""

    def follow(self, root: str, subscriber: str) -> Path:
        """The example subscriber, from the first event on, until the site is closed: where its lines stand."""
        address, out = self._addresses[root], self.work / f"{root}.events"
        words = [
            f"tcp://{address}:7418",
            f"tcp://{address}:7419",
            self.public(root),
            (self.keys / f"{subscriber}.secret").read_text().strip(),
            "*",
            "0",
        ]
        with open(out, "wb") as lines:
            self.followers.append(
                subprocess.Popen(
                    [sys.executable, str(REPOSITORY / "docs" / "examples" / "subscriber.py"), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                )
            )
        return out

    # -- nodes ------------------------------------------------------------------------------------------------------

    def make_node(self, name: str, number: int) -> Node:
        """Namespaces with an address on the bridge, and a tmpfs at ``place``."""
        address = f"{NET}.{1 + number // 250}.{1 + number % 250}"
        holder = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--net",
                "--propagation",
                "private",
                "sh",
                "-c",
                f"read go && mount -t tmpfs -o mode=755 tmpfs {self.place} && ip link set lo up && "
                f"ip addr add {address}/16 dev eth0 && ip link set eth0 up && echo ready && exec sleep 86400",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert holder.stdin is not None and holder.stdout is not None
        (self.work / name).mkdir()  # its sessions lie beside its socket
        node = Node(name, number, holder, f"{self.work}/{name}/s")
        wait_until(lambda: _separate(holder.pid), f"namespaces of {name}")
        run("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        run("ip", "link", "set", f"v{number}", "master", "br0", "up")
        holder.stdin.write(b"go\n")
        holder.stdin.flush()
        if holder.stdout.readline() != b"ready\n":
            raise SiteError(f"{name} could not be made")
        self.nodes[name] = node
        return node

    def start_agent(self, name: str, parents: Sequence[str], more: str = "", alone: str = "10m") -> None:
        node = self.nodes[name]
        (self.work / f"{name}.toml").write_text(
            f'[node]\nname = "{name}"\n[state]\ndir = "{self.work}/state-{name}"\n[control]\nsocket = "{node.socket}"\n'
            f'[declared]\nfiles = []\n[hooks]\ndir = "{self.work}/no-hooks"\n'
            f'[cluster]\nalone = "{alone}"\nparents = [{self._parents(parents)}]\n{self._sealed()}'
            f'[keys]\nsecret = "{self.keys}/{name}.secret"\n{more}\n'
        )
        with open(self.work / f"{name}.log", "ab") as log:
            node.agent = self._pact(["agent", "--config", str(self.work / f"{name}.toml")], log, name)

    def into(self, name: str) -> list[str]:
        pid = self.nodes[name].holder.pid
        return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net", "--"]

    def kill_agent(self, name: str) -> None:
        """SIGKILL, of the agent itself."""
        agent = self.nodes[name].agent
        assert agent is not None
        agent.kill()
        agent.wait()
        self.nodes[name].agent = None

    def sh(self, name: str, script: str, *, check: bool = True) -> Done:
        """What somebody does in a shell on a node."""
        done = subprocess.run(
            [*self.into(name), "sh", "-c", script],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            check=False,
            timeout=60,
        )
        if check and done.returncode:
            raise SiteError(f"{name}: {script}: {done.stderr}")
        return Done(done.returncode, done.stdout, done.stderr)

    def hold_open(self, name: str, path: str) -> subprocess.Popen[bytes]:
        """A process on a node that has a file open."""
        job = subprocess.Popen(
            [*self.into(name), "sh", "-c", f"exec 3<{path}; echo open; exec sleep 10000"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=self.env,
        )
        assert job.stdout is not None
        if job.stdout.readline() != b"open\n":
            raise SiteError(f"{name}: {path} cannot be opened")
        self.nodes[name].others.append(job)
        return job

    def cut(self, name: str) -> None:
        """Take the node's cable out."""
        run("ip", "link", "set", f"v{self.nodes[name].number}", "down")

    def mend(self, name: str) -> None:
        run("ip", "link", "set", f"v{self.nodes[name].number}", "up")

    # -- the operator -----------------------------------------------------------------------------------------------

    def write_client(self, person: str, servers: Sequence[str]) -> None:
        """``~/.config/pact/client.toml`` of the operator."""
        path = self.work / ".config/pact/client.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'key = "{self.keys}/{person}.secret"\nservers = [{self._parents(servers)}]\n{self._sealed()}')

    def argv(self, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "pact.cli.main", *words]

    def pact(self, *words: str, timeout: float = 120.0, input: str = "") -> Done:
        """A command of the operator's."""
        done = subprocess.run(
            self.argv(words),
            env=self.env,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=timeout,
            check=False,
            input=input,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def local(self, name: str, *words: str) -> Done:
        """A command on a node itself."""
        return self.pact("--socket", self.nodes[name].socket, *words)

    def local_seq(self, name: str) -> int:
        """The newest record of a node's own journal."""
        return int(self.local(name, "--json", "status").json()["journal"]["seq"])

    def connected(self) -> list[str]:
        done = self.pact("--json", "nodes")
        rows = done.json().get("nodes", {}) if done.out else {}
        return sorted(n for n, row in rows.items() if row["connected"])

    def close(self) -> None:
        """End everything that was started, by pid."""
        processes = [n.agent for n in self.nodes.values() if n.agent is not None] + list(self.aggregators.values())
        for process in processes:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 8
        rest = [*self.followers, *(p for p in self.etcd if p is not None)]
        rest += [p for n in self.nodes.values() for p in [*n.others, n.holder]]
        for process in [*processes, *rest]:
            if process in processes:
                try:
                    process.wait(max(0.1, end - time.monotonic()))
                    continue
                except subprocess.TimeoutExpired:
                    pass
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _separate(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return False


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SiteError(f"{' '.join(command)}: {done.stderr.strip()}")


def missing() -> list[str]:
    """Programs that a site needs and this machine lacks."""
    return [name for name in ("ip", "unshare", "nsenter", "etcd") if shutil.which(name) is None]
