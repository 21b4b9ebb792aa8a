"""Draining: what the reason says, whose drain is whose, and what a batch system's tools may answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.drains import AGAIN_NS, RETRY_NS, SETTLE_NS, Drains, reason
from pact.agent.scheduler import MARK, Outcome, SchedulerError, is_mine, names, ran, tool
from pact.agent.scheduler_slurm import Slurm
from pact.host.owned import NotOurs
from pact.model import NS_PER_S

pytestmark = pytest.mark.invariant("O8")
NODE = "n690"  # one that drains first of all (``drains.SPREAD_NS``)


def state(*changes: tuple[str, str], stale_by: str = "") -> Any:
    emergency = SimpleNamespace(stale=True, by=stale_by) if stale_by else None
    return SimpleNamespace(
        changes={cid: SimpleNamespace(id=cid, state=what) for cid, what in changes}, emergency=emergency, seq=0
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (state(), ""),
        (state(("c1", "open"), ("c2", "held"), ("c3", "rolling_back")), ""),
        (state(("c1", "blocked")), "pact: c1 blocked"),
        (state(("c1", "blocked"), ("c2", "failed"), ("c3", "blocked")), "pact: c2 failed; c1, c3 blocked"),
        (state(*((f"c{n}", "failed") for n in range(1, 9))), "pact: c1, c2, c3 and 5 more failed"),
        (state(stale_by="ann"), "pact: emergency by ann is stale"),
        (state(stale_by="a' state=down\n|x"), "pact: emergency by a__state_down__x is stale"),
    ],
)
def test_the_reason_says_what_needs_a_person(given: Any, said: str) -> None:
    assert reason(given) == said


class System:
    """A batch system in memory; ``fails`` is raised once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], bool]] = []
        self.outcome: Outcome | None = None
        self.fails: Exception | None = None

    def settle(self, wanted: str, mine: Any, *, was_set: bool) -> Outcome:
        self.asked.append((wanted, list(mine), was_set))
        if self.fails is not None:
            failed, self.fails = self.fails, None
            raise failed
        return self.outcome if self.outcome is not None else Outcome(wanted)


class Node:
    """The loop: turns when it has to."""

    def __init__(self, directory: Path, *, drain: bool = True) -> None:
        self.now_ns, self.works = 0, list[Any]()
        self.system: Any = System()
        config = SimpleNamespace(state_dir=str(directory), name=NODE, drain=drain)
        clock = SimpleNamespace(now_ns=lambda: self.now_ns)
        self.shell: Any = SimpleNamespace(config=config, clock=clock, node=SimpleNamespace(state=state()))
        self.drains = Drains(self.shell, self.system, self.works.append)

    def becomes(self, *changes: tuple[str, str]) -> None:
        seq = self.shell.node.state.seq
        self.shell.node.state = state(*changes)
        self.shell.node.state.seq = seq + 1

    def passes(self, ns: int) -> None:
        end_ns = self.now_ns + ns
        for _ in range(100):
            self.drains.turn(self.now_ns)
            while self.works:
                self.works.pop()()(self.now_ns, 0)
            due_ns = self.drains.next_ns()
            if due_ns is None or due_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, due_ns)
        self.now_ns = end_ns


def test_what_passes_at_once_drains_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.passes(SETTLE_NS)
    node.becomes(("c1", "blocked"))
    node.passes(SETTLE_NS // 2)
    node.becomes()
    node.passes(60 * NS_PER_S)
    assert {asked[0] for asked in node.system.asked} == {""}


def test_what_fails_is_tried_again_and_later_each_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.becomes(("c1", "blocked"))
    for _ in range(3):
        node.system.fails = SchedulerError("away")
        node.passes(SETTLE_NS if not node.system.asked else RETRY_NS * 2 ** (len(node.system.asked) - 1))
    assert len(node.system.asked) == 3 and node.drains.status()["error"] == "away"
    node.system.fails = OSError(24, "Too many open files")
    node.passes(600 * NS_PER_S)
    assert node.drains.stands == "pact: c1 blocked" and "error" not in node.drains.status()


def test_a_restart_knows_what_it_had_set_and_what_it_only_meant_to_set(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.becomes(("c1", "blocked"))
    node.system.fails = SchedulerError("killed in the middle")
    node.passes(SETTLE_NS)
    again = Node(tmp_path)
    again.becomes(("c1", "blocked"))
    again.passes(SETTLE_NS)
    assert again.system.asked == [("pact: c1 blocked", ["pact: c1 blocked"], False)]
    last = Node(tmp_path)
    last.becomes(("c1", "blocked"))
    last.passes(SETTLE_NS)
    assert last.system.asked == [("pact: c1 blocked", ["pact: c1 blocked"], True)]
    last.becomes()
    last.passes(SETTLE_NS)
    assert last.system.asked[-1] == ("", ["pact: c1 blocked"], False)
    assert (tmp_path / "drained").read_text() == '{"reasons":[],"done":true}'


def test_a_drain_of_before_ends_though_draining_was_switched_off(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.becomes(("c1", "blocked"))
    node.passes(SETTLE_NS)
    off = Node(tmp_path, drain=False)
    off.becomes(("c1", "blocked"))
    off.passes(SETTLE_NS)
    assert off.system.asked == [("", ["pact: c1 blocked"], False)]
    off.passes(AGAIN_NS * 3)
    assert len(off.system.asked) == 1


def test_what_somebody_else_has_drained_is_looked_at_again_and_then_forgotten(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.becomes(("c1", "blocked"))
    node.passes(SETTLE_NS)
    node.system.outcome = Outcome("", "somebody else has drained it: NHC")
    node.becomes(("c1", "blocked"), ("c2", "failed"))
    node.passes(SETTLE_NS + 2 * AGAIN_NS)
    assert len(node.system.asked) == 4 and node.drains.status()["not_drained"]
    node.becomes()
    node.passes(SETTLE_NS)
    asked = len(node.system.asked)
    node.passes(10 * AGAIN_NS)
    assert len(node.system.asked) == asked and "not_drained" not in node.drains.status()


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"reasons":5,"done":true}', '{"reasons":["x",3],"done":1}', "\0" * 99]
)
def test_a_note_that_is_damaged_is_no_note(text: str, tmp_path: Path) -> None:
    (tmp_path / "drained").write_text(text)
    node = Node(tmp_path)
    node.passes(SETTLE_NS)
    assert node.system.asked == [("", [], False)]


# -- Slurm's answers ------------------------------------------------------------------------------------------------

LINE = (
    "NodeName=n1 Arch=x86_64 OS=Linux 6.1 #1 SMP Boards=1 State={state} ThreadsPerCore=1 ExtSensorsTemp=n/s{reason} \n"
)


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """A ``scontrol`` that prints a file, and writes down what it is told."""
    script = f'#!/bin/sh\n[ "$1" = update ] && {{ echo "$@" >> {tmp_path}/told; exit 0; }}\ncat {tmp_path}/out\n'
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)

    def asked(state: str, text: str, wanted: str, *mine: str) -> tuple[Outcome, list[str]]:
        (tmp_path / "out").write_text(LINE.format(state=state, reason=text and f" Reason={text}"))
        outcome = Slurm("n1", str(tmp_path)).settle(wanted, mine, was_set=False)
        told = tmp_path / "told"
        lines = told.read_text().splitlines() if told.exists() else []
        told.unlink(missing_ok=True)
        return outcome, lines

    return asked


BLOCKED = "pact: c1 blocked"
SET = f"update nodename=n1 state=drain reason={BLOCKED}"
UNDRAIN = "update nodename=n1 state=undrain"
STAMP = " [root@2026-11-29T17:56:29]"


@pytest.mark.parametrize(
    ("is_now", "text", "wanted", "mine", "told"),
    [
        ("IDLE", "", BLOCKED, (), [SET]),
        ("MIXED+PLANNED", "", BLOCKED, (), [SET]),
        ("IDLE+DRAIN", BLOCKED + STAMP, BLOCKED, (BLOCKED,), []),
        ("IDLE+DRAIN", "pact: c9 failed" + STAMP, BLOCKED, (), [SET]),
        ("IDLE+DRAIN", "pact: c9 failed" + STAMP, BLOCKED, (BLOCKED,), []),
        ("ALLOCATED+DRAIN", BLOCKED + STAMP, "", (BLOCKED,), [UNDRAIN]),
        ("IDLE+DRAIN", BLOCKED + STAMP, "", (), [UNDRAIN]),
        ("IDLE+DRAIN", BLOCKED + STAMP + " Comment=x", "", (BLOCKED,), [UNDRAIN]),
        ("IDLE+DRAIN", "NHC: pact: c1 blocked" + STAMP, "", (BLOCKED,), []),
        ("IDLE+DRAIN", "disk" + STAMP, BLOCKED, (), []),
        ("IDLE+DRAIN", "", BLOCKED, (), []),
        ("IDLE+DRAIN", "", "", (BLOCKED,), []),
        ("DOWN", "Not responding" + STAMP, BLOCKED, (), []),
        ("DOWN*+DRAIN", BLOCKED + STAMP, "", (BLOCKED,), []),
        ("IDLE+DRAIN+REBOOT_REQUESTED", BLOCKED + STAMP, "", (BLOCKED,), []),
        ("IDLE+CLOUD+POWERED_DOWN", "", BLOCKED, (), []),
        ("IDLE", "pact: of long ago" + STAMP, "", (), []),
    ],
)
def test_only_pact_s_own_drains_are_set_changed_and_cleared(
    slurm: Any, is_now: str, text: str, wanted: str, mine: tuple[str, ...], told: list[str]
) -> None:
    outcome, lines = slurm(is_now, text, wanted, *mine)
    assert lines == told
    if "DOWN" in is_now or "REBOOT" in is_now:
        assert outcome.left and outcome.later


def test_a_node_that_slurm_does_not_know_is_named(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text(
        '#!/bin/sh\nprintf "\\033[1mslurm_load_node error: Invalid node name\\n" >&2; exit 1\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(SchedulerError, match="Invalid node name") as caught:
        Slurm("n1", str(tmp_path)).settle("", [], was_set=False)
    assert "\033" not in caught.value.message and "NodeName" in caught.value.hint


OF_JOB = "UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=1 Nice=0 Account=(null) QOS=(null) JobState={}"


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("name", "state", "ended"),
    [
        ("sim", "RUNNING", False),
        ("sim", "COMPLETED", True),
        ("x JobState=COMPLETED", "RUNNING", False),
        (f"x {OF_JOB.format('COMPLETED')}", "RUNNING", False),
        ("x\nJobId=12 JobName=y JobState=COMPLETED Reason=None\nz", "RUNNING", False),
        ("x\nJobId=12 JobName=y JobState=COMPLETED Reason=None\nJobId=99 JobName=z", "RUNNING", False),
        ("x JobState=COMPLETED\nJobId=99 JobName=z", "RUNNING", False),
        ("x JobState=COMPLETED\nJobId=99 ArrayJobId=12 ArrayTaskId=1 JobName=z", "RUNNING", False),
        ("x JobState=COMPLETED", "CANCELLED", True),
    ],
)
@pytest.mark.parametrize("of_array", [False, True])
@pytest.mark.parametrize("squeue", [False, True])
def test_a_job_s_name_does_not_say_whether_it_has_ended(
    tmp_path: Path, name: str, state: str, ended: bool, of_array: bool, squeue: bool
) -> None:
    own = "ArrayJobId=12 ArrayTaskId=2 " if of_array else ""
    said = f"JobId=12 {own}JobName={name} {OF_JOB.format(state)} Reason=None Dependency=(null)\n"
    if of_array:
        said += f"JobId=13 ArrayJobId=12 ArrayTaskId=1 JobName=sim {OF_JOB.format('RUNNING')} Reason=None\n"
    tools = {"scontrol": said, "squeue": f"13 RUNNING\n12 {state}\n"}
    for tool_, text in tools.items():
        (tmp_path / f"{tool_}.out").write_text(text)
        ends = "" if squeue or tool_ == "scontrol" else "; exit 1"
        (tmp_path / tool_).write_text(f"#!/bin/sh\ncat {tmp_path}/{tool_}.out{ends}\n")
        (tmp_path / tool_).chmod(0o755)
    sure = ended and (squeue or not of_array)  # without squeue it has ended when the whole array has
    assert Slurm("n1", str(tmp_path)).ended(["12"]) == ({"12"} if sure else set())


@pytest.mark.invariant("F84", "S9")
def test_a_tool_that_others_could_write_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(SchedulerError, match="scontrol-of-none is not in"):
        tool("scontrol-of-none", str(tmp_path))
    (tmp_path / "scontrol").write_text("#!/bin/sh\n")
    (tmp_path / "scontrol").chmod(0o777)
    with pytest.raises(NotOurs):
        tool("scontrol", str(tmp_path))
    with pytest.raises(SchedulerError, match="exec format error"):
        (tmp_path / "x").write_bytes(b"\0")
        (tmp_path / "x").chmod(0o755)
        ran([str(tmp_path / "x")])


def test_names_of_jobs_and_whose_a_reason_is() -> None:
    assert names(["", "# jobs", " 12 ", "13[7].server"], "x") == {"12", "13[7].server"}
    assert is_mine(f"{MARK} x", []) and is_mine(f"{MARK} x", [f"{MARK} x"])
    assert not is_mine(f"{MARK} x", [f"{MARK} y"]) and not is_mine("NHC: x", [])
