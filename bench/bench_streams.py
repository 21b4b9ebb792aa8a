"""``pact shell`` and ``pact exec`` beside OpenSSH and clush: both ends on this machine, one aggregator between.

Root, aggregator, agent and sshd are real processes, everything is sealed, and both go through PAM. What is compared
runs in turns; a figure is a ratio of medians, or stands beside its goal. The virtual nodes of the last figure run no
command: what is measured there is the tree and the program that asks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import zmq
from _cluster import REPOSITORY, Cluster, asked, free_ports, rss_kib

from pact.cluster.client import RootClient
from pact.cluster.streams import Secrets
from pact.net import keys as keys_

Figure = dict[str, Any]
SHELL = "PS1='here> ' exec bash --norc --noprofile -i"
PYTHON = [sys.executable, "-m", "pact.cli.main"]
LAUNCHER = REPOSITORY / "packaging" / "pact-launcher"


class Desk:
    """A context manager: root, aggregator, agent ``n1`` and sshd, and the command lines of both."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="pact-bench-"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.home = self.base / "home"
        self.env = {**os.environ, "HOME": str(self.home), "NOTIFY_SOCKET": "", "TERM": "xterm", "PYTHONOPTIMIZE": "1"}
        # What is installed has its compiled code beside it.
        self.env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.base / "compiled")}

    def __enter__(self) -> Self:
        try:
            self._tree()
            self._ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)
        shutil.rmtree(self.base, ignore_errors=True)

    def _run(self, *words: str) -> None:
        with open(self.base / "log", "ab") as log:
            self.processes.append(subprocess.Popen(words, cwd=REPOSITORY, env=self.env, stdout=log, stderr=log))

    def _tree(self) -> None:
        public: dict[str, str] = {}
        for name in ("root1", "agg1", "n1", "root"):
            made, secret = zmq.curve_keypair()
            public[name] = made.decode()
            path = self.base / f"{name}.secret"
            path.touch(0o600)
            path.write_text(secret.decode() + "\n")
        roles = {"root1": "aggregator", "agg1": "aggregator", "n1": "node", "root": "admin"}
        keys = "".join(f'[[key]]\npublic = "{public[n]}"\nname = "{n}"\nrole = "{r}"\n' for n, r in roles.items())
        (self.base / "authorized.toml").write_text(keys)
        tree, events, replay, below = (f"tcp://127.0.0.1:{port}" for port in free_ports(4))

        def own(name: str) -> str:
            return f'[keys]\nsecret = "{self.base}/{name}.secret"\n'

        authorized = f'authorized = "{self.base}/authorized.toml"\n'
        (self.base / "root1.toml").write_text(
            f'[aggregator]\nname = "root1"\ntree = "{tree}"\nevents = "{events}"\nreplay = "{replay}"\nhttp = ""\n'
            f'[journal]\nurl = "sqlite://{self.base}/root.db"\n[cluster]\nsealed = true\n{own("root1")}{authorized}'
        )
        (self.base / "agg1.toml").write_text(
            f'[aggregator]\nname = "agg1"\ntree = "{below}"\nhttp = ""\n'
            f'parents = [{{url = "{tree}", key = "{public["root1"]}"}}]\n{own("agg1")}{authorized}'
        )
        (self.base / "run").mkdir()
        self._configure(below, public["agg1"], public["root1"])
        for name, kind in (("root1", "aggregator"), ("agg1", "aggregator"), ("n1", "agent")):
            self._run(*PYTHON, kind, "--config", f"{self.base}/{name}.toml")
        self._until_up()

    def _configure(self, below: str, key: str, root: str) -> None:
        """The agent's file, and the person's."""
        self.socket = f"{self.base}/run/sock"
        (self.base / "n1.toml").write_text(
            f'[node]\nname = "n1"\n[state]\ndir = "{self.base}/state"\n[control]\nsocket = "{self.socket}"\n'
            f'[declared]\nfiles = []\n[hooks]\ndir = "{self.base}/hooks"\n[shell]\nroot = ["root"]\n'
            f"transcript = false\nsessions = 1024\n"
            f'[cluster]\nparents = [{{url = "{below}", key = "{key}"}}]\nroots = ["{root}"]\n'
            f'sealed = true\n[keys]\nsecret = "{self.base}/n1.secret"\n'
        )
        self.server, self.root = (below, key), root
        (self.home / ".config" / "pact").mkdir(parents=True)
        (self.home / ".config" / "pact" / "client.toml").write_text(
            f"via = {json.dumps(below)}\nserver_key = {json.dumps(key)}\nsealed = true\n"
            f"key = {json.dumps(f'{self.base}/root.secret')}\nroots = [{json.dumps(root)}]\n"
        )

    def _until_up(self) -> None:
        ends = time.monotonic() + 40
        while self.output(self.pact("exec", "--nodes", "n1", "--", "echo up")).count(b"up") != 1:
            if time.monotonic() > ends:
                raise RuntimeError((self.base / "log").read_text()[-2000:])
            time.sleep(0.3)

    def _ssh(self) -> None:
        place, (port,) = self.base / "ssh", free_ports(1)
        place.mkdir(0o700)
        for name in ("host", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
        (place / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/id.pub\n"
            f"PermitRootLogin yes\nStrictModes no\nUsePAM yes\nPidFile none\nPrintMotd no\nMaxStartups 100\n"
            "SetEnv SHLVL=5\n"  # else bash takes it for a login, and reads files that have nothing to do with this
        )
        os.makedirs("/run/sshd", exist_ok=True)
        self._run("/usr/sbin/sshd", "-D", "-e", "-f", f"{place}/config")
        self.options = ["-F", "none", "-q", "-p", str(port), "-i", f"{place}/id"]
        self.options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        ends = time.monotonic() + 10
        while b"up" not in self.output(self.ssh("echo up")):
            if time.monotonic() > ends:
                raise RuntimeError((self.base / "log").read_text()[-2000:])
            time.sleep(0.2)

    def pact(self, *words: str) -> list[str]:
        """As the package starts it."""
        launcher = self.base / "pact"
        if not launcher.exists():
            places = [str(REPOSITORY), *(p for p in sys.path if p.endswith("site-packages"))]
            text = LAUNCHER.read_text().replace('insert(0, "/opt/pact")', f"__setitem__(slice(0), {places})")
            launcher.write_text(text)
        return [
            os.path.realpath(sys.executable),
            "-IS",
            "-X",
            f"pycache_prefix={self.base}/compiled",
            str(launcher),
            *words,
        ]

    def ssh(self, *words: str) -> list[str]:
        return ["ssh", *self.options, *words[:-1], "root@127.0.0.1", words[-1]]

    def output(self, words: list[str]) -> bytes:
        return subprocess.run(
            words, env=self.env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).stdout


class Typist:
    """A command on a pseudo-terminal."""

    def __init__(self, desk: Desk, words: list[str]) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        os.fchmod(slave, 0o600)  # nobody's messages to all terminals come here
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env=desk.env, cwd=REPOSITORY, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def until(self, what: bytes, seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while what not in self.seen:
            if not select.select([self.master], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise RuntimeError(f"{what!r} did not come: {self.seen[-500:]!r}")
            self.seen += os.read(self.master, 1 << 16)
        self.seen = self.seen.partition(what)[2]

    def echo_ms(self, count: int, every_s: float) -> list[float]:
        found = []
        for i in range(count):
            key = b"%c" % (97 + i % 26)
            began = time.perf_counter()
            os.write(self.master, key)
            self.until(key)
            found.append((time.perf_counter() - began) * 1e3)
            time.sleep(every_s)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def first_prompt_s(desk: Desk, words: list[str]) -> float:
    began = time.perf_counter()
    typist = Typist(desk, words)
    typist.until(b"here> ")
    took_s = time.perf_counter() - began
    os.write(typist.master, b"exit\r")
    typist.process.wait(20)
    os.close(typist.master)
    return took_s


@contextlib.contextmanager
def storm(desk: Desk) -> Iterator[None]:
    """Records as fast as the agent makes them: a hold is placed and released again and again."""
    stop = threading.Event()

    def run() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(desk.socket)
            answers = sock.makefile("rb")
            for op, args in itertools.cycle([("hold_place", {"reason": "x", "for_ns": 10**11}), ("hold_release", {})]):
                sock.sendall(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
                answers.readline()
                if stop.is_set():
                    return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def outputs(desk: Desk, count: int) -> Iterator[None]:
    """So many commands on the same node whose output never ends. Who reads it would sit at another machine."""
    words = ["nice", *desk.pact("exec", "--output-max", str(64 << 20), "--nodes", "n1", "--", "yes")]
    null = subprocess.DEVNULL
    asked_ = [subprocess.Popen(words, env=desk.env, cwd=REPOSITORY, stdin=null, stdout=null) for _ in range(count)]
    time.sleep(4.0)
    try:
        yield
    finally:
        for process in asked_:
            process.kill()
            process.wait()


def spread(found: list[float]) -> tuple[float, float]:
    """Median, and 99 of 100."""
    return statistics.median(found), sorted(found)[min(len(found) - 1, int(len(found) * 0.99))]


def shells(desk: Desk, quick: bool) -> list[Figure]:
    rounds = 3 if quick else 9
    pact, ssh = [], []
    for _ in range(rounds):
        pact.append(first_prompt_s(desk, desk.pact("shell", "n1", "--", SHELL)))
        ssh.append(first_prompt_s(desk, desk.ssh("-tt", SHELL)))
    mine_ms, theirs_ms = statistics.median(pact) * 1e3, statistics.median(ssh) * 1e3
    ratio = mine_ms / theirs_ms
    name = f"a shell's first prompt ({mine_ms:.0f} ms; ssh {theirs_ms:.0f} ms)"
    return [{"name": name, "value": ratio, "unit": "of ssh's time", "goal": "<= 0.5", "ok": ratio <= 0.5}]


def keys(desk: Desk, quick: bool) -> list[Figure]:
    count = 100 if quick else 500
    figures = []
    ways: list[tuple[str, Any]] = [
        ("alone", contextlib.nullcontext()),
        ("in a storm of events", storm(desk)),
        ("beside 8 outputs of exec", outputs(desk, 8)),
    ]
    for what, beside in ways:
        found: dict[str, list[float]] = {"pact": [], "ssh": []}
        typists = {
            "pact": Typist(desk, desk.pact("shell", "n1", "--", "stty sane; echo ready; exec cat > /dev/null")),
            "ssh": Typist(desk, desk.ssh("-tt", "stty sane; echo ready; exec cat > /dev/null")),
        }
        for typist in typists.values():
            typist.until(b"ready")
            time.sleep(0.3)
            typist.seen = b""
        try:
            with beside:
                for _ in range(5):
                    for name, typist in typists.items():
                        found[name] += typist.echo_ms(count // 5, 0.01)
        finally:
            for typist in typists.values():
                typist.close()
        (median, most), (ssh_median, ssh_most) = spread(found["pact"]), spread(found["ssh"])
        name = f"a key's echo {what}"
        figures += [
            {"name": f"{name} (ssh {ssh_median:.2f})", "value": median, "unit": "ms", "goal": "< 2", "ok": median < 2},
            {"name": f"99 of 100 (ssh {ssh_most:.2f})", "value": most, "unit": "ms", "goal": "< 10", "ok": most < 10},
        ]
    return figures


class Crowd(Desk):
    """A context manager: an agent with a shell, under one aggregator with a thousand nodes whose commands write for
    ever."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.cluster = Cluster(count, fan_out=count, alone=True, sealed=True, extra={"n1": "node", "root": "admin"})

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self.cluster.close()

    def _ssh(self) -> None: ...

    def _tree(self) -> None:
        cluster = self.cluster.__enter__()
        below, key, root = cluster.urls[0], cluster.keys[cluster.aggregators[0]].public, cluster.keys["root1"].public
        for name in ("n1", "root"):
            path = self.base / f"{name}.secret"
            path.touch(0o600)
            path.write_text(cluster.keys[name].secret + "\n")
        (self.base / "run").mkdir()
        for fleet in cluster.fleets:  # those nodes have machines of their own
            os.setpriority(os.PRIO_PROCESS, fleet.pid, 10)
        self._configure(below, key, root)
        self._run(*PYTHON, "agent", "--config", f"{self.base}/n1.toml")
        self._until_up()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        nodes = f"n[00001-{len(self.cluster.names):05}]"
        words = ["nice", *self.pact("exec", "-L", "--timeout", "5m", "--nodes", nodes, "--", "yes")]
        null = subprocess.DEVNULL
        with subprocess.Popen(words, env=self.env, cwd=REPOSITORY, stdin=null, stdout=subprocess.PIPE) as one:
            assert one.stdout is not None
            seen: set[bytes] = set()
            rest = b""
            while len(seen) < len(self.cluster.names):  # every one of them writes
                *lines, rest = (rest + os.read(one.stdout.fileno(), 1 << 16)).split(b"\n")
                seen.update(line.partition(b":")[0] for line in lines)
            self.passed, began = 0, time.monotonic()

            def read() -> None:
                while data := os.read(one.stdout.fileno(), 1 << 16):  # type: ignore[union-attr]
                    self.passed += len(data)

            reader = threading.Thread(target=read)
            reader.start()
            try:
                yield
            finally:
                self.rate = self.passed / (time.monotonic() - began) / 1e6
                one.terminate()
                one.wait(60)
                reader.join()


def crowded(quick: bool) -> list[Figure]:
    count = 200 if quick else 1000
    with Crowd(count) as crowd:
        typist = Typist(crowd, crowd.pact("shell", "n1", "--", "stty sane; echo ready; exec cat > /dev/null"))
        typist.until(b"ready")
        time.sleep(0.3)
        typist.seen = b""
        try:
            alone = spread(typist.echo_ms(100 if quick else 300, 0.01))
            with crowd.writing():
                median, most = spread(typist.echo_ms(100 if quick else 500, 0.01))
        finally:
            typist.close()
    name = f"a key's echo beside {count} outputs of exec ({crowd.rate:.1f} MB/s of them; alone {alone[0]:.2f})"
    return [
        {"name": name, "value": median, "unit": "ms", "goal": "< 2", "ok": median < 2},
        {"name": f"99 of 100 (alone {alone[1]:.2f})", "value": most, "unit": "ms", "goal": "< 10", "ok": most < 10},
    ]


def throughput(desk: Desk, quick: bool) -> list[Figure]:
    size, rounds = (64 << 20) if quick else (256 << 20), 2 if quick else 4
    path = desk.base / "large"
    with open(path, "wb") as f:
        f.write(os.urandom(1 << 20) * (size >> 20))
    found: dict[str, list[float]] = {"pact": [], "ssh": []}
    for _ in range(rounds):
        for name, words in (
            ("pact", desk.pact("shell", "n1", "--", f"cat {path}")),
            ("ssh", desk.ssh(f"cat {path}")),
        ):
            began = time.perf_counter()
            null = subprocess.DEVNULL
            subprocess.run(words, env=desk.env, cwd=REPOSITORY, stdin=null, stdout=null, check=True)
            found[name].append(size / (time.perf_counter() - began) / 1e6)
    mine, theirs = statistics.median(found["pact"]), statistics.median(found["ssh"])
    goal = max(100.0, theirs / 2)
    name = f"throughput of cat (ssh {theirs:.0f})"
    return [{"name": name, "value": mine, "unit": "MB/s", "goal": f">= {goal:.0f}", "ok": mine >= goal}]


def person_of(cluster: Cluster) -> dict[str, str]:
    """The environment of an administrator who asks the root of these nodes."""
    home = cluster.base / "home" / ".config" / "pact"
    home.mkdir(parents=True)
    secret = cluster.base / "admin.secret"
    secret.touch(0o600)
    secret.write_text(cluster.keys["admin"].secret + "\n")
    (home / "client.toml").write_text(
        f"via = {json.dumps(cluster.url)}\nserver_key = {json.dumps(cluster.keys['root1'].public)}\n"
        f"key = {json.dumps(str(secret))}\n"
    )
    return {**os.environ, "HOME": str(cluster.base / "home")}


def many(quick: bool) -> list[Figure]:
    count = 200 if quick else 1000
    with Cluster(count, sealed=True) as cluster:
        with cluster.client() as client:
            took = [asked(client, "exec", {"words": ["true"]}, f"n[00001-{count:05}]")[0] for _ in range(5)]
        env = person_of(cluster)
        whole = []
        for _ in range(3 if quick else 7):
            began = time.perf_counter()
            words = [*PYTHON, "exec", "--nodes", f"n[00001-{count:05}]", "--", "true"]
            subprocess.run(words, env=env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True)
            whole.append(time.perf_counter() - began)
    took_s, whole_s = statistics.median(took), statistics.median(whole)
    name = f"exec -- true on {count} virtual nodes ({took_s:.2f} s in the tree)"
    return [{"name": name, "value": whole_s, "unit": "s", "goal": "< 1", "ok": whole_s < 1.0}]


def idle(desk: Desk, quick: bool) -> list[Figure]:
    """Sessions with a terminal that nobody uses, opened through the tree: what they cost the agent and the aggregator.
    What each costs on the node is in ``bench_shell.py``."""
    opened = count = 32 if quick else 240
    pids = {"agent": desk.processes[2].pid, "aggregator": desk.processes[1].pid}
    before = {name: rss_kib(pid) for name, pid in pids.items()}
    key = keys_.load(f"{desk.base}/root.secret")
    with contextlib.ExitStack() as stack:
        for _ in range(count // 15 + 1):
            client = stack.enter_context(RootClient([desk.server], key, "root", roots=[desk.root], sealed=True))
            for _ in range(min(15, count)):
                wish = {"terminal": True, "words": ["exec sleep 600"], "stream": Secrets().public}
                _, said, _ = asked(client, "shell_open", wish, "n1")
                assert said.exit == 0, said
                count -= 1
        grown = {name: (rss_kib(pid) - before[name]) / opened for name, pid in pids.items()}
    return [
        {
            "name": f"an idle session at the {name}",
            "value": grown[name],
            "unit": "KiB",
            "goal": "< 64",
            "ok": grown[name] < 64,
        }
        for name in pids
    ]


def fan_out(desk: Desk, quick: bool) -> list[Figure]:
    """At equal counts: virtual nodes, and as many connections to one sshd."""
    clush = shutil.which("clush") or str(Path(sys.executable).parent / "clush")
    if not os.path.exists(clush):
        return []
    count = 16 if quick else 64
    options = " ".join(["-o", "HostName=127.0.0.1", *desk.options])
    found: dict[str, list[float]] = {"pact": [], "clush": []}
    null = subprocess.DEVNULL
    with Cluster(count, sealed=True) as cluster:
        env = person_of(cluster)
        ways = {
            "pact": ([*desk.pact(), "exec", "--nodes", f"n[00001-{count:05}]", "--", "true"], env),
            "clush": (
                [clush, "-b", "-f", str(count), "-l", "root", "-o", options, "-w", f"n[1-{count}]", "true"],
                desk.env,
            ),
        }
        for _ in range(3):
            for name, (words, env) in ways.items():
                began = time.perf_counter()
                subprocess.run(words, env=env, cwd=REPOSITORY, stdin=null, stdout=null, stderr=null, check=True)
                found[name].append(time.perf_counter() - began)
    mine, theirs = statistics.median(found["pact"]), statistics.median(found["clush"])
    name = f"exec -- true on {count} ({mine * 1e3:.0f} ms; clush {theirs * 1e3:.0f} ms)"
    times = theirs / mine
    return [{"name": name, "value": times, "unit": "times as fast", "goal": ">= 10", "ok": times >= 10}]


def run(quick: bool = False) -> list[Figure]:
    """Needs root, sshd and ssh."""
    if os.geteuid() or not shutil.which("ssh") or not os.path.exists("/usr/sbin/sshd"):
        raise RuntimeError("run it as root, with openssh-server and openssh-client installed")
    with Desk() as desk:
        figures = [
            *shells(desk, quick),
            *keys(desk, quick),
            *throughput(desk, quick),
            *fan_out(desk, quick),
            *idle(desk, quick),
        ]
    return [*figures, *crowded(quick), *many(quick)]


PARTS: dict[str, Any] = {"shells": shells, "keys": keys, "throughput": throughput, "fan_out": fan_out, "idle": idle}
CROWDS: dict[str, Any] = {"crowded": crowded, "many": many}

if __name__ == "__main__":
    quick_, named = "--quick" in sys.argv, [word for word in sys.argv[1:] if not word.startswith("-")]
    if not named:
        print(*run(quick_), sep="\n")
    for name in named:
        with Desk() if name in PARTS else contextlib.nullcontext() as one:
            print(*(PARTS[name](one, quick_) if one else CROWDS[name](quick_)), sep="\n", flush=True)
