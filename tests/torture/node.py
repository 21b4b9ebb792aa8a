"""One real agent, tormented by several users and by the machine, against a model: seeded, until a number of steps is done.

Run as ``run.py`` runs it: in mount, network and process namespaces of its own, with which everything goes that it made.
What a step does comes from the seed and the step's number alone; what the kernel and the agent make of it does not.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

import chaos
import deeds
import demands
from faults import Boots, Crowd, Disk, Hung, Strace, require_apart, rss_mib, run, threads
from hands import ANSWER_S, Asker, Hands, LostError
from model import FoundError, Model, declared_of
from sight import ABSENT, Look, digest, file_at, look

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import Agent, World, environment

TOP, BASE = "/srv", "/mnt"
START_S = 40.0
HUNG_S = 2.0
LOOKS = ("status", "diff", "check", "tracked", "show", "export", "log")
RSS_MIB = 200.0
STATE_MIB = 48
FAULTS_SHARE = 0.12
LASTS_MAX = 20  # steps that a fault lasts
BROKEN = re.compile(r"Traceback|internal error|Segmentation|AssertionError")
CONFIG: dict[str, dict[str, Any]] = {
    "window": {"base": "4s", "floor": "0.3s"},
    "observe": {"rescan": "1s"},
    "rollback": {"on_busy": "retry", "retry": "1s"},
    "access": {"ops_groups": ["games"]},
    "notify": {"terminals": False},  # the machine's terminals are those of others
}


class Here(World):
    """The namespaces that this process is in itself."""

    cold = True  # each process reads ``sitecustomize`` for itself

    def __init__(self, base: Path) -> None:
        self.started: list[subprocess.Popen[Any]] = []
        self.env = environment()
        self.env["PYTHONPATH"] += f":{base}/telling"  # an agent that is silent is made to say where it stands
        (base / "telling").mkdir()
        (base / "telling" / "sitecustomize.py").write_text(
            "import faulthandler, os\nf = os.environ.get('TORTURE_STACKS')\n"
            "if f: faulthandler.dump_traceback_later(float(f), repeat=True)\n"
        )

    def path(self, name: str) -> Path:
        return Path(name)

    def popen(self, command: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(list(command), env=self.env, cwd="/", **kwargs)
        self.started.append(process)
        return process

    def argv(self, command: Any) -> list[str]:
        return list(command)

    def close(self) -> None:
        for process in list(self.started):
            self.end(process)


class Node:
    """The machine, the agent and the model of both."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.seed, self.step_no = seed, 0
        self.deeds = {k: v for k, v in deeds.DEEDS.items() if k not in without}
        self.faults = {k: v for k, v in chaos.FAULTS.items() if k not in without}
        self.counts: collections.Counter[str] = collections.Counter()
        self.trace: collections.deque[str] = collections.deque(maxlen=40)
        rng = random.Random(f"{seed}/machine")
        for point in (TOP, BASE):
            assert run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", point), point
        self.base = Path(BASE) / "t"
        self.base.mkdir()
        self.disk = Disk(self.base / "state", rng.choice(["tmpfs", "ext4"]), STATE_MIB)
        run("ip", "link", "set", "lo", "up")
        forget_login()
        self.world = Here(self.base)
        self.agent = Agent(self.world, self.base, CONFIG)
        self.asker = Asker(self.agent.socket)
        self.boots, self.strace, self.crowd, self.hung = Boots(self.base), Strace(), Crowd(), Hung()
        self.can_trace = Strace.works()
        self.failing: list[str] = []  # what strace makes fail now: "journal", or paths
        self.hands = {uid: Hands(uid) for uid in (0, 1234, 1235)}
        self.holders: list[subprocess.Popen[bytes]] = []
        self.model = Model()
        self.seen: Look = {}
        self.log_read = 0
        self.known: dict[int, str] = {}  # records that somebody has seen: number and hash
        self.history: dict[int, Any] = {}  # what was declared at some records
        self.stopped = False
        self.doing = "the beginning"
        self.lasting: dict[str, int] = {}

    # -- the machine ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        paths = " ".join(deeds.FILES)
        assert self.hands[0].do(
            f"mkdir -p {TOP}/etc/d1 {TOP}/etc/d2 {TOP}/m {TOP}/other; chmod 777 {TOP}/etc/d2;"
            f"for f in {paths}; do echo first $f > $f; chmod 666 $f; done;"
            f"echo kept > {TOP}/other/x; echo kept > {TOP}/other/y; ln -s x {TOP}/other/l;"
            f"mount -t tmpfs -o size=2m,noatime tmpfs {TOP}/m && echo precious > {TOP}/m/data"
        )
        self.start()
        answer = self.ask(
            0,
            "adopt",
            patterns=[f"file:{TOP}/etc/**", f"mount:{TOP}/m", "sysctl:net.ipv4.**", "sysctl:net.ipv6.conf.**"],
        )
        if answer["exit"]:
            raise FoundError(f"the first adopt: {answer}")
        self.model.may_move.add("*")
        self.fresh()
        self.names = [r.partition(":")[2] for r in self.model.declared if r.startswith("sysctl:")]
        self.seen = self.look()

    def look(self) -> Look:
        """Everything, and declared files that are reached only through a link as they are behind it."""
        found = look(TOP, self.names, {self.hung.path} if self.hung.path else ())
        for r in self.model.declared:
            path = r.removeprefix("file:")
            if r not in found and path != r and not (self.hung.path and path.startswith(self.hung.path)):
                found[r] = file_at(path)
        return {r: t for r, t in found.items() if t is not ABSENT}

    def lasts(self, fault: str, rng: random.Random) -> None:
        """This fault is taken back after some steps."""
        self.lasting[fault] = self.step_no + rng.randrange(2, LASTS_MAX)

    def take_back(self) -> None:
        for fault in [f for f, end in self.lasting.items() if self.step_no >= end]:
            del self.lasting[fault]
            {"full": self.disk.free, "failing": self.unfail, "crowd": self.crowd.end, "hung": self.unhang}[fault]()
            self.trace.append(f"      no longer: {fault}")

    def unhang(self) -> None:
        """What hangs is unmounted by the driver, not by the agent."""
        self.judge()
        self.hung.end()
        self.seen = self.look()

    @property
    def faulty(self) -> bool:
        """The agent may be unable to record, or to read what it needs."""
        return bool(self.disk.full or self.failing or self.crowd.pid)

    @property
    def pid(self) -> int:
        assert self.agent.process is not None
        return self.agent.process.pid

    # -- the agent's life -------------------------------------------------------------------------------------------

    def launch(self) -> subprocess.Popen[bytes]:
        with open(self.agent.log_path, "ab") as log:
            self.agent.process = self.world.popen(
                [
                    *self.boots.prefix,
                    sys.executable,
                    "-m",
                    "pact.cli.main",
                    "agent",
                    "--config",
                    str(self.agent.config_path),
                ],
                stdout=log,
                stderr=log,
            )
        assert self.agent.process is not None
        return self.agent.process

    def start(self) -> bool:
        """Whether it answers. It may refuse only while its disk is full; it never dies of a signal."""
        process = self.launch()
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            code = process.poll()
            if code is not None:
                self.world.end(process)
                self.agent.process = None
                if code < 0 or not self.disk.full:
                    raise FoundError(f"the agent does not start: it ended with {code}\n{self.agent.log()[-1500:]}")
                self.counts["start refused on a full disk"] += 1
                return False
            try:
                self.asker.ask(0, "ping", {})
                return True
            except LostError:
                time.sleep(0.02)
        raise FoundError(f"the agent does not answer {START_S:g} s after its start\n{self.agent.log()[-1500:]}")

    def end(self, number: int) -> None:
        """End the agent with a signal, whatever it is doing."""
        self.crowd.end()
        self.unfail()
        if self.stopped:
            self.go_on()
        process = self.agent.process
        if process is None:
            return
        self.alive()
        process.send_signal(number)
        try:
            code = process.wait(45)
        except subprocess.TimeoutExpired:
            raise FoundError(f"the agent does not end within 45 s of signal {number}") from None
        if code != (0 if number == signal.SIGTERM else -number) and not (self.disk.full and code in (1, 5)):
            raise FoundError(f"ended by signal {number}, the agent's exit code is {code}\n{self.agent.log()[-1500:]}")
        self.world.end(process)
        self.agent.process = None

    def up(self) -> None:
        """It runs and answers, whatever has to be mended for that."""
        if self.agent.process is None and not self.start():
            self.disk.free()
            self.start()

    def alive(self) -> None:
        process = self.agent.process
        if process is not None and (code := process.poll()) is not None:
            raise FoundError(f"the agent ended by itself with {code}\n{self.agent.log()[-2500:]}")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.stopped = False

    def unfail(self) -> None:
        self.strace.detach()
        self.failing = []

    # -- requests ---------------------------------------------------------------------------------------------------

    def ask(self, uid: int, op: str, **args: Any) -> dict[str, Any]:
        """An answer. A lost one is a finding where nothing explains it."""
        may_wait = bool(self.hung.path) and op not in LOOKS  # F13: what waits there is answered when that answers
        try:
            answer = self.asker.ask(uid, op, args, HUNG_S if may_wait else ANSWER_S)
        except LostError as exc:
            end = time.monotonic() + 2.0
            while "silence" not in str(exc) and time.monotonic() < end:
                self.alive()
                time.sleep(0.05)
            if self.crowd.pid or may_wait:
                raise
            raise FoundError(
                f"no answer to {op} {args}: {exc}\n{threads(self.pid)}\n{self.agent.log()[-3500:]}"
            ) from None
        if self.crowd.pid and "no file descriptor left" in answer["message"]:
            raise LostError("nobody is served")
        self.counts[f"asked: {op} {answer['exit']}"] += 1
        if "internal error" in answer["message"]:
            raise FoundError(f"{op} {args} of {uid} was answered with {answer['message']}\n{self.agent.log()[-2500:]}")
        return answer

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = self.ask(0, "status")["result"]
        return result

    def fresh(self) -> list[str]:
        """Read what is declared and compare it with what it was; nothing where it cannot be read now."""
        if self.faulty or self.stopped or self.agent.process is None:
            return []
        lines = self.asker.stream("export")
        if any(line.get("ok") is False for line in lines):
            return []  # what is durable cannot be read
        text = "".join(line.get("text", "") for line in lines)
        moved = self.model.now_declared(declared_of(text))
        if moved:
            self.trace.append(f"      declared anew: {', '.join(moved[:6])}")
        record = self.asker.stream("log", count=1)[0]["record"]
        if self.known.setdefault(record["seq"], record["hash"]) != record["hash"]:
            raise FoundError(f"record {record['seq']} is another one than before")
        if record["seq"] < max(self.known):
            raise FoundError(f"the newest record is {record['seq']}, and {max(self.known)} was seen before")
        self.history[record["seq"]] = dict(self.model.declared)
        return moved

    # -- what is judged ---------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """What moved since the last deed was moved by the agent: may it?"""
        after = self.look()
        if after != self.seen and self.model.moved(self.seen, after):
            self.fresh()
            for _ in range(6):  # some moves take several steps
                bad = self.model.moved(self.seen, after)
                if not bad:
                    break
                time.sleep(0.3)
                after = self.look()
                self.fresh()
            else:
                r = bad[0]
                raise FoundError(
                    f"the agent changed {r} from {self.seen.get(r)} to {after.get(r)}; declared is "
                    f"{self.model.declared.get(r)} ({len(bad)} such){self._said()}"
                )
        for r, content in self.model.owes(self.seen, after).items():
            self.model.owed[digest(content)] = f"{r} ({content[:40]!r})"
        self.seen = after

    def _said(self) -> str:
        """What the agent says of itself, for a finding."""
        if self.stopped or self.agent.process is None:
            return ""
        try:
            changes = self.asker.ask(0, "status", {}, ANSWER_S)["result"]["changes"]
        except (LostError, KeyError):
            changes = "it does not say"
        return f"\nchanges: {changes}\n{threads(self.pid)}\n{self.agent.log()[-1500:]}"

    def glance(self) -> None:
        """The process and its log."""
        self.alive()
        with open(self.agent.log_path, errors="replace") as f:
            f.seek(self.log_read)
            new = f.read()
        if BROKEN.search(new):
            raise FoundError(f"the agent's log: {new[-3500:]}")
        self.log_read += len(new.encode())
        if self.agent.process is not None and (mib := rss_mib(self.pid)) > RSS_MIB:
            raise FoundError(f"the agent has {mib:.0f} MiB")

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, number: int) -> None:
        """One deed or fault, and what follows from it."""
        self.step_no = number
        rng = random.Random(f"{self.seed}/{number}")
        self.model.begin(number, bool(self.hung.path))
        self.take_back()
        self.judge()
        table = self.faults if rng.random() < FAULTS_SHARE else self.deeds
        what = rng.choices(list(table), [weight for weight, _ in table.values()])[0]
        act = table[what][1]
        self.doing = what
        try:
            said = act(self, rng)
        except LostError:
            said = f"no answer: {'no descriptor is left' if self.crowd.pid else 'it waits for what hangs'}"
        self.counts[what] += 1
        self.trace.append(f"  {number:4} {what}: {said}")
        self.seen = self.look()
        self.model.note(self.seen)
        self.glance()

    def heal(self) -> None:
        """Take every fault back, and whoever is in the way."""
        self.crowd.end()
        self.unfail()
        self.disk.free()
        self.hung.end()
        if self.stopped:
            self.go_on()
        while self.holders:
            self.world.end(self.holders.pop())
        self.up()

    def close(self) -> None:
        self.strace.detach()
        self.crowd.end()
        self.hung.end()
        for process in self.holders:
            self.world.end(process)
        self.agent.close()
        self.world.close()
        for hands in self.hands.values():
            hands.close()
        self.disk.close()


def forget_login() -> None:
    """Owners are told apart by their uid here."""
    try:
        with open("/proc/self/loginuid", "w") as f:
            f.write("4294967295")
    except OSError:
        pass


def torture(seed: int, steps: int, until: float = 0.0, without: Collection[str] = ()) -> int:
    """Run a seed. Prints findings and counts; 1 if something was found. ``until``: a moment of the monotonic clock after
    which no more steps are begun."""
    node = Node(seed, without)
    found = ""
    try:
        node.prepare()
        for number in range(1, steps + 1):
            if until and time.monotonic() > until:
                break
            node.step(number)
        demands.demand(node)
    except FoundError as exc:
        found = str(exc)
    except Exception:
        found = f"the driver or the agent broke:\n{traceback.format_exc()}"
    finally:
        if found:
            print(
                f"FINDING seed {seed}, step {node.step_no} ({node.doing}), disk {node.disk.kind}: {found}\n"
                + "\n".join(node.trace),
                flush=True,
            )
            keep = os.environ.get("TORTURE_KEEP")
            if keep:
                run("rm", "-rf", f"{keep}/seed-{seed}")
                run("cp", "-a", str(node.base), f"{keep}/seed-{seed}")
        node.close()
    print(
        "COUNTS " + ", ".join(f"{k}={v}" for k, v in sorted(node.counts.items())) + f", steps={node.step_no}",
        flush=True,
    )
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--until", type=float, default=0.0, help="a moment of the monotonic clock that ends it")
    parser.add_argument("--without", action="append", default=[], help="a deed or fault that is left out")
    args = parser.parse_args()
    require_apart()
    return torture(args.seed, args.steps, args.until, args.without)


if __name__ == "__main__":
    sys.exit(main())
