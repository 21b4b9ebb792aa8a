"""Declared commands: what may be run, how long, how much it may say, and that asking runs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Unreadable
from pact.resources.base import WHOLE_N, Keep
from pact.resources.kinds.command import A_PERSON, KIND, NOT_ON_RECORD, Command
from pact.resources.support import command_run
from pact.resources.support.command_run import OUTPUT_MAX, Failed, Order, run
from pact.resources.support.command_watch import NOT_DECLARED, RUNNING_MAX, Commands

SECOND_NS = 1_000_000_000


def order(*words: str, shell: bool = False, seconds: float = 5.0) -> Order:
    return Order(words, shell, int(seconds * SECOND_NS))


def script(text: str, seconds: float = 5.0) -> Order:
    return order(text, shell=True, seconds=seconds)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


# -- TOML -----------------------------------------------------------------------------------------------------------

KERNEL = {"observe": ["uname", "-r"], "state": "6.12.0"}


@pytest.mark.parametrize(
    "value",
    [
        KERNEL,
        {**KERNEL, "restore": ["reboot"], "timeout": "90s", "every": "1h"},
        {**KERNEL, "timeout": "250ms", "secret": True, "weight": 2.5, "requires": ["sysctl:vm.swappiness"]},
        {**KERNEL, "consumers": ["fuser", "/dev/kfd"]},
        {**KERNEL, "consumers": ["exec:slurmstepd"]},
        {"observe": "cat /a | wc -l", "state": "3", "shell": True, "restore": "true", "consumers": "pgrep x || true"},
        {"observe": ["nproc"], "state": 64},
        {"observe": ["cat"], "state": ""},
    ],
)
def test_an_exported_command_is_read_back_to_the_same(value: dict[str, Any]) -> None:
    declared = KIND.parse("x", value, "/").declared
    again = KIND.parse("x", KIND.export("x", declared, lambda _: None), "/").declared
    assert again == declared
    assert isinstance(KIND.export("x", declared, lambda _: None)["observe"], type(value["observe"]))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("uname -r", "a command is a table"),
        ({"state": "x"}, "observe is missing"),
        ({"observe": ["uname"]}, "state, which observe is to print, is missing"),
        ({"observe": ["uname"], "state": 1.5}, "is no text and no number"),
        ({"observe": ["uname"], "state": True}, "is no text and no number"),
        ({"observe": "uname -r", "state": "x"}, "a text needs shell = true"),
        ({"observe": ["uname"], "state": "x", "shell": True}, "is a text, because of shell = true"),
        ({"observe": [], "state": "x"}, "observe is a list of words"),
        ({"observe": ["a", 1], "state": "x"}, "observe is a list of words"),
        ({"observe": ["a\0"], "state": "x"}, "observe is a list of words"),
        ({"observe": [" "], "state": "x"}, "names no program"),
        ({"observe": ["x" * 9000], "state": "x"}, "more than 8192 characters"),
        ({**KERNEL, "restore": "x"}, "restore is a list of words"),
        ({**KERNEL, "timeout": "0"}, "at least"),
        ({**KERNEL, "timeout": "11m"}, "at most 10m"),
        ({**KERNEL, "every": "0.5s"}, "at least 1s"),
        ({**KERNEL, "every": "soon"}, "is no duration"),
        ({**KERNEL, "shell": "yes"}, "shell is true or false"),
        ({**KERNEL, "obsrve": ["x"]}, "did you mean 'observe'"),
        ({**KERNEL, "state": "x" * OUTPUT_MAX}, "bytes or more"),
    ],
)
def test_what_is_no_command_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("x", value, "/")


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a\n", "x" * 65, "ä"])
def test_a_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a command"):
        KIND.canonical(name)


# -- running --------------------------------------------------------------------------------------------------------


def test_what_it_prints_is_trimmed() -> None:
    assert run(order("printf", "  a\\n b \\n\\n")) == "a\n b"


def test_the_environment_is_clean_and_there_is_no_input_and_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "x")
    said = run(script("env; cat; pwd; umask; readlink /proc/self/fd/0; ps -o tty= -p $$ 2>/dev/null || echo '?'"))
    lines = said.splitlines()
    variables = {line.partition("=")[0] for line in lines if "=" in line}
    assert variables <= {"PATH", "LC_ALL", "HOME", "PACT_COMMAND", "PWD", "_", "SHLVL", "OLDPWD"}, variables
    assert {"/", "0022", "/dev/null"} <= set(lines)


def test_no_descriptor_of_the_agent_is_given_to_it() -> None:
    fd = os.open("/etc/hostname", os.O_RDONLY)
    try:
        assert "/etc/hostname" not in run(script("ls -l /proc/self/fd"))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (order("false"), r"it ended with 1\Z"),
        (script("echo one >&2; echo two >&2; exit 3"), r"it ended with 3: one\Z"),
        (script("kill -9 $$"), "it ended by signal 9"),
        (order("no-such-program-here"), "there is no program 'no-such-program-here' here"),
        (order("/no/such/program"), "there is no program"),
        (order("bin/ls"), "is no absolute path"),
        (order("sleep", "60", seconds=0.2), "it did not end within 0.2 s, and was killed"),
        (script("echo x; sleep 60", seconds=0.2), "did not end within"),
        (order("head", "-c", "70000", "/dev/zero"), "it printed more than 65536 bytes"),
    ],
)
def test_what_does_not_end_well_says_why(what: Order, why: str) -> None:
    with pytest.raises(Failed, match=why):
        run(what)


@pytest.mark.invariant("F72")
def test_a_command_that_prints_a_gibibyte_costs_no_memory_and_is_told() -> None:
    with open("/proc/self/statm") as f:
        before = int(f.read().split()[1])
    began = time.monotonic()
    with pytest.raises(Failed, match="printed more than"):
        run(order("head", "-c", str(1 << 30), "/dev/zero"))
    with pytest.raises(Failed, match=r"printed more than|did not end|ended"):
        run(script("yes >&2; yes", seconds=2))
    with open("/proc/self/statm") as f:
        assert (int(f.read().split()[1]) - before) * os.sysconf("SC_PAGESIZE") < 8 << 20
    assert time.monotonic() - began < 30


def marked(text: str) -> list[int]:
    out = []
    for pid in (p for p in os.listdir("/proc") if p.isdigit()):
        try:
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                out.append(int(pid))
        except OSError:
            continue
    return out


@pytest.mark.invariant("F72")
@pytest.mark.parametrize(
    "text",
    [
        "forks() { sleep 3{number} & forks; }; i=0; while [ $i -lt 200 ]; do sleep 3{number} & i=$((i+1)); done; wait",
        "while :; do sleep 3{number} & sleep 0.01; done",
        "setsid sh -c 'while :; do setsid sleep 3{number} & sleep 0.02; done' & sleep 3{number}",
        "trap '' TERM INT HUP; while :; do sleep 3{number}; done",
    ],
)
def test_whatever_it_forks_is_gone_when_its_time_is_up(text: str) -> None:
    number = f"{os.getpid()}7"
    began = time.monotonic()
    with pytest.raises(Failed, match="did not end within"):
        run(script(text.replace("{number}", number), seconds=0.5))
    assert time.monotonic() - began < 20
    until(lambda: not marked(f"3{number}"))


def test_a_look_leaves_no_process_behind_and_a_restore_may_start_a_daemon() -> None:
    number = f"4{os.getpid()}"
    run(script(f"sleep {number} >/dev/null 2>&1 & echo done"))
    until(lambda: not marked(number))
    run(script(f"setsid sleep {number} & echo done"), may_stay=True)
    (pid,) = marked(number)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.invariant("F72")
@pytest.mark.parametrize("young", [True, False])
def test_what_has_left_the_session_of_a_look_that_ends_well_is_gone_too(
    young: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look would leave one more. Also where the numbers of processes have begun anew meanwhile."""
    if not young:
        monkeypatch.setattr(command_run, "_newest_pid", lambda: 1)
    number = f"5{os.getpid()}"
    away = f"setsid sh -c 'touch /tmp/{number}; exec sleep {number}' </dev/null >/dev/null 2>&1"
    try:
        assert run(script(f"({away} &); while [ ! -e /tmp/{number} ]; do sleep 0.02; done; echo done")) == "done"
    finally:
        os.unlink(f"/tmp/{number}")
    until(lambda: not marked(number))


def test_two_hundred_at_once_from_many_threads_leave_no_descriptor_and_no_zombie() -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: run(order("echo", str(n % 2))), range(200))) == {"0", "1"}
    assert len(os.listdir("/proc/self/fd")) == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    zombies = [p for p in children if Path(f"/proc/{p}/stat").read_text().split()[2] == "Z"]
    assert not zombies


@pytest.mark.root
@pytest.mark.invariant("S9")
def test_what_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    mine = tmp_path / "check"
    mine.write_text("#!/bin/sh\necho ok\n")
    mine.chmod(0o755)
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_mode & 0o022 and not above.stat().st_mode & 0o1000:
            pytest.skip(f"{above} is everybody's")
    assert run(order(str(mine))) == "ok"
    for spoil, back in (
        (lambda: mine.chmod(0o775), lambda: mine.chmod(0o755)),
        (lambda: os.chown(mine, 1234, 0), None),
    ):
        spoil()
        for what in (
            order(str(mine)),
            order("sh", str(mine)),
            order("sh", str(mine)[1:]),
            script(f"echo; {mine}; echo"),
        ):
            with pytest.raises(Failed, match=r"it is not run: .*check"):
                run(what)
        if back:
            back()


# -- looking --------------------------------------------------------------------------------------------------------


def attrs(observe: str, state: str = "x", **more: Any) -> Attrs:
    declared = KIND.parse("x", {"observe": observe, "state": state, "shell": True, **more}, "/").declared.attrs
    assert declared is not None
    return declared


@pytest.fixture
def kind() -> Iterator[Command]:
    commands = Commands()
    yield Command(commands)
    for name in commands.names():
        commands.learn(name, None)


def test_nothing_runs_before_it_is_declared_and_asking_runs_nothing(kind: Command, tmp_path: Path) -> None:
    count = tmp_path / "count"
    wanted = attrs(f"echo x >> {count}; wc -l < {count}", "1", every="1h")
    assert kind.observe("x") == Unreadable(NOT_DECLARED)
    assert kind.observe("x", Keep(0)) == Unreadable(NOT_DECLARED)
    assert kind.not_yet("x", wanted) == NOT_ON_RECORD and not count.exists()
    kind.learn("x", wanted)
    assert kind.not_yet("x", wanted) == "" and kind.not_yet("x", {**wanted, "value": "2"}) == ""
    assert kind.not_yet("x", {**wanted, "observe": ["id"]}) == NOT_ON_RECORD
    until(lambda: isinstance(kind.observe("x"), dict))
    for _ in range(100):
        assert kind.observe("x") == {**wanted, "value": "1"} == kind.presence("x")
    assert count.read_text() == "x\n"
    seen = kind.observe("x", Keep(0))
    assert isinstance(seen, dict) and seen["value"] == "2" == count.read_text().replace("x\n", "2", 1)[:1]
    kind.learn("x", None)
    assert kind.observe("x") == Unreadable(NOT_DECLARED)


def test_it_runs_again_after_every_and_its_source_says_what_is_new(kind: Command, tmp_path: Path) -> None:
    value = tmp_path / "value"
    value.write_text("1")
    source = kind.source()
    assert source is not None
    try:
        kind.learn("x", attrs(f"cat {value}", "1", every="1s"))
        assert until(lambda: [n for n, _ in source.drain().changed]) == ["x"]
        value.write_text("2")
        assert until(lambda: [n for n, _ in source.drain().changed]) == ["x"]
        assert kind.observe("x")["value"] == "2"  # type: ignore[index,call-overload]
    finally:
        source.close()


def test_a_new_declaration_with_a_shorter_turn_does_not_wait_for_the_turn_of_the_old_one(
    kind: Command, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    for every in ("1h", "1s"):
        kind.learn("x", attrs(f"echo >> {count}; echo x", every=every))
        until(lambda: isinstance(kind.observe("x"), dict))
        kind.learn("x", None)
    kind.learn("x", attrs(f"echo >> {count}; echo x", every="1h"))
    until(lambda: isinstance(kind.observe("x"), dict))
    kind.learn("x", attrs(f"echo >> {count}; echo x", every="1s"))
    until(lambda: count.read_text().count("\n") >= 6)


def test_a_look_that_began_earlier_never_hides_what_a_later_one_saw(kind: Command, tmp_path: Path) -> None:
    value, slow = tmp_path / "value", tmp_path / "slow"
    value.write_text("old")
    slow.touch()
    kind.learn("x", attrs(f"cat {value}; [ ! -e {slow} ] || sleep 1", every="1h"))
    until(lambda: marked(f"cat {value}"))
    value.write_text("new")
    slow.unlink()
    seen = kind.observe("x", Keep(0))
    assert isinstance(seen, dict) and seen["value"] == "new"
    time.sleep(1.5)
    assert kind.observe("x") == seen


def test_only_so_many_run_at_once_and_all_have_their_turn(kind: Command, tmp_path: Path) -> None:
    for n in range(3 * RUNNING_MAX):
        kind.learn(
            f"c{n}",
            attrs(
                f"echo >> {tmp_path}/{n}; ls {tmp_path}/*.run 2>/dev/null | wc -l >> {tmp_path}/most; "
                f"touch {tmp_path}/{n}.run; sleep 0.05; rm {tmp_path}/{n}.run; echo x"
            ),
        )
    until(lambda: all(isinstance(kind.observe(f"c{n}"), dict) for n in range(3 * RUNNING_MAX)))
    most = max(int(line) for line in (tmp_path / "most").read_text().split())
    assert most < RUNNING_MAX


def test_a_command_that_hangs_holds_up_no_other(kind: Command) -> None:
    kind.learn("slow", attrs("sleep 60", timeout="600s"))
    kind.learn("quick", attrs("echo x"))
    until(lambda: isinstance(kind.observe("quick"), dict))
    assert isinstance(kind.observe("slow"), Unreadable)
    for pid in marked("sleep\x0060"):
        if str(os.getpid()) in Path(f"/proc/{pid}/status").read_text():
            os.kill(pid, signal.SIGKILL)


def test_a_failed_look_is_unreadable_and_never_absence(kind: Command) -> None:
    kind.learn("x", attrs("echo broken >&2; exit 2"))
    seen = until(lambda: s if (s := kind.observe("x")) != Unreadable("command: it has not run yet") else None)
    assert seen == Unreadable("command: it ended with 2: broken")


def test_only_the_state_is_compared() -> None:
    one, other = attrs("echo x"), attrs("echo y", timeout="3s")
    assert KIND.distance_n(one, other) == 0
    assert KIND.distance_n(one, {**one, "value": "z"}) == WHOLE_N
    assert KIND.distance_n(one, None) == WHOLE_N and KIND.distance_n(None, None) == 0


# -- acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S2")
def test_what_a_secret_command_says_when_it_fails_is_told_to_nobody(kind: Command) -> None:
    """Why a resource cannot be read, or was not restored, is shown to every viewer."""
    failing = "echo token hunter2 is refused >&2; exit 3"
    for secret in (True, False):
        kind.learn("check", attrs(failing, secret=secret, restore=failing))
        seen = kind.observe("check", keep=lambda *_: "")
        assert isinstance(seen, Unreadable) and ("hunter2" in seen.why) != secret and "ended with 3" in seen.why
        with pytest.raises(RestoreError) as caught:
            kind.restore("check", Step("command:check", attrs(failing, secret=secret, restore=failing), None), dict)
        assert ("hunter2" in str(caught.value)) != secret


def test_without_restore_a_person_must_mend_it(kind: Command) -> None:
    step = Step("command:x", attrs("echo x"), attrs("echo x", "y"))
    assert kind.preflight("x", step, Keep(0)).refusal == f"command:x: {A_PERSON}"
    with pytest.raises(RestoreError, match=A_PERSON):
        kind.restore("x", step, lambda _: None)


def test_restore_is_run_and_it_is_looked_at_again(kind: Command, tmp_path: Path) -> None:
    value = tmp_path / "value"
    value.write_text("bad")
    wanted = attrs(f"cat {value}", "good", restore=f"echo good > {value}", every="1h")
    kind.learn("x", wanted)
    until(lambda: isinstance(kind.observe("x"), dict))
    step = Step("command:x", wanted, kind.observe("x"))  # type: ignore[arg-type]
    assert kind.preflight("x", step, Keep(0)).refusal == ""
    for _ in range(2):
        kind.restore("x", step, lambda _: None)
        assert kind.observe("x") == wanted
    with pytest.raises(RestoreError, match="restore: it ended with 4: no"):
        kind.restore("x", Step("command:x", {**wanted, "restore": ["echo no >&2; exit 4"]}, None), lambda _: None)


@pytest.mark.parametrize(
    ("users", "pids", "why"),
    [
        ("echo 1; echo $PPID; echo 4000000", 2, ""),
        ("true", 0, ""),
        ("echo nobody", 1, "something else than at most 1000 pids"),
        ("seq 1 1001", 1, "something else than at most 1000 pids"),
        ("echo -1", 1, "something else"),
        ("exit 3", 1, "it ended with 3"),
    ],
)
def test_who_uses_it_is_what_its_command_prints(kind: Command, users: str, pids: int, why: str) -> None:
    kind.learn("x", attrs("echo x", consumers=users))
    step = Step("command:x", None, {})
    assert kind.in_use("x", step) is None
    held = kind.holders("x", step, "command:x")
    assert len(held) == pids and (not why or (held[0].pid == 0 and why in held[0].path))


@pytest.mark.invariant("S3")
def test_who_asks_again_and_again_runs_it_once_and_a_decision_asks_anew(kind: Command, tmp_path: Path) -> None:
    count = tmp_path / "count"
    kind.learn("x", attrs("echo x", consumers=f"echo >> {count}; echo 1"))
    step = Step("command:x", None, {})
    for _ in range(50):
        kind.holders("x", step, "command:x")
    assert count.read_text() == "\n"
    kind.in_use("x", step)
    kind.holders("x", step, "command:x")
    assert count.read_text() == "\n\n"


def test_without_such_a_command_nothing_uses_it(kind: Command) -> None:
    kind.learn("x", attrs("echo x"))
    assert kind.in_use("x", Step("command:x", None, {})) is False


def test_the_agents_own_process_is_the_only_one_that_runs_commands() -> None:
    """Importing all kinds, as every command line does, starts no thread and runs nothing."""
    code = "import threading, pact.resources; assert threading.active_count() == 1; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ok\n"


def test_its_words_are_found_in_a_script() -> None:
    assert command_run.WORD.findall("cat /a/b|/c/d; x=$(/e/f 'g/h')") == ["/a/b", "/c/d", "/e/f", "g/h"]
