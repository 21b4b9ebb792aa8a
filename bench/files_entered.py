"""How many files a write enters, from the kernel's event on a node to the public event of its root.

``python bench/files_entered.py`` (as root). An agent and a root run as processes in which each call of a function of
pact is noted, once while nothing happens and once while a declared file is written. It prints the files that only the
write enters, in the order in which it enters them; those that the loops enter in each turn are told apart.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests"), str(HERE.parent / "tests" / "e2e")]

from hostile_kit import NAMES, Hostile  # noqa: E402

from pact.net import keys  # noqa: E402

TRACED, FILES = "--traced", "PACT_FILES_ENTERED"
PLACE = "/srv"  # nothing below /tmp is declared
LOOK_S, BEGIN_S = 1.5, 3.0


def traced(words: list[str]) -> None:
    """``pact WORDS``, which forgets at SIGUSR1 what was entered, and writes it to a file at SIGUSR2."""
    entered: dict[str, None] = {}
    top = str(HERE.parent) + "/"

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(top + "pact/"):
            entered[name.removeprefix(top)] = None

    signal.signal(signal.SIGUSR1, lambda *_: entered.clear())
    signal.signal(signal.SIGUSR2, lambda *_: Path(os.environ[FILES]).write_text("\n".join(entered)) and None)
    threading.setprofile(note)
    sys.setprofile(note)
    from pact.cli.main import entry

    sys.argv = ["pact", *words]
    entry()


class Looked(Hostile):
    """A root and an agent that note what they enter."""

    def run(self, name: str, *args: str) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            FILES: str(self.base / f"{name}.files"),
            "NOTIFY_SOCKET": "",
        }
        with open(self.base / f"{name}.log", "ab") as out:
            process: Any = subprocess.Popen([sys.executable, __file__, TRACED, *args], env=env, stdout=out, stderr=out)
        self.processes[name] = process

    def subscriber(self, name: str, url: str) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self.context.socket(zmq.SUB)
        self.sockets.append(sock)
        pair = keys.load(self.secret(name))
        sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
        sock.curve_serverkey = self.public[self.root_name].encode()
        sock.connect(url)
        return sock

    def entered(self, does: Callable[[], object], events: zmq.Socket[bytes]) -> tuple[Mapping[str, list[str]], int]:
        """The files of each process, and how many public events of the node there were."""
        for process in self.processes.values():
            process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
        does()
        ends, seen = time.monotonic() + LOOK_S, 0
        while time.monotonic() < ends:
            if events.poll(50):
                seen += b".n1." in events.recv_multipart()[0]
        for process in self.processes.values():
            process.send_signal(signal.SIGUSR2)
        time.sleep(0.5)
        return {name: (self.base / f"{name}.files").read_text().split() for name in self.processes}, seen


def main() -> int:
    base = Path(tempfile.mkdtemp(prefix="pact-files-", dir=PLACE))
    declared = base / "declared"
    declared.write_text("one\n")
    kit = Looked(base, NAMES)
    try:
        kit.start()
        socket = kit.start_agent("n1", ("root1", kit.url))
        asked = kit.ask(socket, "adopt", patterns=[f"file:{declared}"])
        assert asked["result"]["adopted"] == 1, asked
        url = next(x.split('"')[1] for x in (base / "root1.toml").read_text().splitlines() if x.startswith("events"))
        events = kit.subscriber("view", url)
        events.subscribe(b"")
        time.sleep(BEGIN_S)
        idle, _ = kit.entered(lambda: None, events)
        wrote, seen = kit.entered(lambda: declared.write_text("two\n"), events)
        assert seen, f"the write has no public event\n{kit.logs()}"
    finally:
        kit.close()
        shutil.rmtree(base)
    only = {name: [f for f in files if f not in idle[name]] for name, files in wrote.items()}
    for name in ("n1", "root1"):
        print(f"{name}: {len(only[name])} of {len(wrote[name])}; the others are entered while nothing happens, too")
        print("".join(f"  {f}\n" for f in only[name]), end="")
    print(f"{len({f for files in only.values() for f in files})} files")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [TRACED]:
        traced(sys.argv[2:])
    sys.exit(main())
