"""People at terminals: scratch accounts in a world's own mount namespace, and pact run on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from harness import Agent, World, environment

ANN, BOB, EVE, OLD, LOCKED, SHELLLESS = 4101, 4102, 4103, 4104, 4105, 4106
ADMINS, OPS, EXTRA = 4201, 4202, 4203
HOMES = "/srv/home"
NO_ENV: Mapping[str, str] = MappingProxyType({})
KNOWN = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

PASSWD = f"""\
root:x:0:0:root:{HOMES}/root:/bin/bash
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
ann:x:{ANN}:{ANN}:Ann:{HOMES}/ann:/bin/bash
bob:x:{BOB}:{BOB}:Bob:{HOMES}/bob:/bin/bash
eve:x:{EVE}:{EVE}:Eve:{HOMES}/eve:/bin/bash
old:x:{OLD}:{OLD}:Old:{HOMES}/ann:/bin/bash
locked:x:{LOCKED}:{LOCKED}:Locked:{HOMES}/ann:/bin/bash
shellless:x:{SHELLLESS}:{SHELLLESS}:Shell:{HOMES}/ann:/bin/no-such-shell
"""
SHADOW = """\
root:*:19000:0:99999:7:::
ann:!:19000:0:99999:7:::
bob:*:19000:0:99999:7:::
eve:*:19000:0:99999:7:::
old:*:19000:0:99999:7::10000:
locked:!$6$abc$def:19000:0:99999:7:::
shellless:*:19000:0:99999:7:::
"""
GROUP = f"""\
root:x:0:
tty:x:5:
nogroup:x:65534:
ann:x:{ANN}:
bob:x:{BOB}:
eve:x:{EVE}:
pact-admin:x:{ADMINS}:ann,bob,old,locked,shellless
pact-ops:x:{OPS}:
extra:x:{EXTRA}:ann
"""
PAM = """\
account required pam_unix.so
session required pam_loginuid.so
session optional pam_env.so
session required pam_limits.so
session required pam_unix.so
"""


def people(world: World, place: Path) -> None:
    """Accounts that exist in this world alone."""
    for name, text in (("passwd", PASSWD), ("shadow", SHADOW), ("group", GROUP)):
        (place / name).write_text(text)
        (place / name).chmod(0o600 if name == "shadow" else 0o644)
        world.sh(f"mount --bind {place / name} /etc/{name}")
    world.sh(f"cp -a /etc/pam.d {place}/pam.d")
    (place / "pam.d" / "pact").write_text(PAM)
    world.sh(f"mount --bind {place}/pam.d /etc/pam.d")
    for name, uid in (("root", 0), ("ann", ANN), ("bob", BOB), ("eve", EVE)):
        world.sh(f"mkdir -p {HOMES}/{name}; chown {uid}:{uid} {HOMES}/{name}; chmod 700 {HOMES}/{name}")
        text = f"PS1='{name}> '\nunset HISTFILE\nbind 'set enable-bracketed-paste off'\n"
        world.path(f"{HOMES}/{name}/.bash_profile").write_text(text)


def as_(uid: int, *groups: int) -> list[str]:
    """The beginning of a command line of this person's."""
    if uid == 0:
        return []
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        "--",
    ]


@dataclass
class Terminal:
    """pact on a pseudo-terminal."""

    process: subprocess.Popen[bytes]
    master: int
    raw: bytes = b""
    seen: int = 0
    ended: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8", "replace")

    def read(self, wait_s: float = 0.05) -> bytes:
        got = b""
        while select.select([self.master], [], [], wait_s)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            got += data
            wait_s = 0
        self.raw += got
        return got

    def until(self, pattern: str, seconds: float = 20.0) -> str:
        """What came since the last time, up to the pattern."""
        end = time.monotonic() + seconds
        while True:
            rest = self.raw[self.seen :]
            if found := re.search(pattern.encode(), rest):
                self.seen += found.end()
                return rest[: found.end()].decode("utf-8", "replace")
            assert time.monotonic() < end, f"{pattern!r} did not come: {rest[-2000:]!r} (exit {self.process.poll()})"
            self.read()

    def quiet(self) -> None:
        """Wait until nothing more comes, and take all that came."""
        while self.read(0.5):
            pass
        self.seen = len(self.raw)

    def type(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        while data:
            if select.select([], [self.master], [], 0.02)[1]:
                n = os.write(self.master, data[:4096])
                data = data[n:]
            self.read(0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def end(self, seconds: float = 20.0) -> int:
        """Wait for its end. Returns the exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.raw[-2000:]!r}"
            self.read()
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def hang_up(self) -> None:
        """The person's terminal window is closed."""
        os.close(self.master)
        self.master = -1
        self.process.wait(10)


def at_terminal(
    agent: Agent,
    *words: str,
    uid: int = ANN,
    groups: tuple[int, ...] = (ADMINS,),
    rows: int = 24,
    columns: int = 80,
    before: tuple[str, ...] = (),
    env: Mapping[str, str] = NO_ENV,
) -> Terminal:
    """``pact WORDS`` of a person on a new terminal. ``before``: a program that is given this command line."""
    command = [*as_(uid, *groups), *before, sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, *words]
    own = {**environment(), **agent.world.env, **KNOWN, **env}
    return on_terminal(agent.world.argv(command), own, uid, rows, columns)


def on_terminal(
    command: Sequence[str], env: Mapping[str, str], uid: int = 0, rows: int = 24, columns: int = 80
) -> Terminal:
    """A program on a new terminal, which is its controlling one."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    if uid:
        os.fchown(slave, uid, 5)

    def own() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=dict(env),
        cwd="/",
        preexec_fn=own,  # noqa: PLW1509 - nothing else runs here
    )
    os.close(slave)
    return Terminal(process, master)
