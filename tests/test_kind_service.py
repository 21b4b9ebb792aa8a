"""Services without a systemd: names, TOML, what counts as drift, D-Bus bytes, and daemons of this test's own.

What a real systemd does is shown in ``e2e/test_e2e_service.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.plan import Step
from pact.model import Attrs, Declared, Unreadable, encode_name
from pact.resources.base import HALF_N, WHOLE_N
from pact.resources.kinds.service import KIND, short_of, unit_of
from pact.resources.support import daemons, systemd, systemd_bus, systemd_users
from pact.resources.support.systemd_bus import unit_of_path, unit_path
from pact.resources.support.unit_files import proposals


def parse(value: Any, name: str = "x") -> Attrs | None:
    return KIND.parse(name, value, "/").declared.attrs


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "canonical", "unit"),
    [
        ("chronyd", "chronyd", "chronyd.service"),
        ("chronyd.service", "chronyd", "chronyd.service"),
        ("cron.timer", "cron.timer", "cron.timer"),
        ("my.app", "my.app", "my.app.service"),
        ("odd.timer.service", "odd.timer.service", "odd.timer.service"),
        ("getty@tty1", "getty@tty1", "getty@tty1.service"),
        ("sys-\\x2d.path", "sys-\\x2d.path", "sys-\\x2d.path"),
    ],
)
def test_a_service_is_written_without_its_suffix_and_any_other_unit_whole(
    given_: str, canonical: str, unit: str
) -> None:
    assert KIND.canonical(given_) == canonical
    assert KIND.canonical(canonical) == canonical
    assert unit_of(canonical) == unit and short_of(unit) == canonical


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (encode_name("a\nb"), "no unit name"),
        ("%41", "no unit name"),
        ("a b", "no unit name"),
        ("a/b", "no unit name"),
        ("..", ""),
        ("é", "no unit name"),
        ("x" * 300, "no unit name"),
        ("getty@", "template"),
        ("getty@.service", "template"),
        ("srv.mount", "mount:/path"),
        ("user.slice", "never declared"),
    ],
)
def test_a_name_that_no_unit_has_is_refused(name: str, why: str) -> None:
    if not why:
        assert unit_of(KIND.canonical(name)) == "...service"  # systemd takes it
        return
    with pytest.raises(ValueError, match=why):
        KIND.canonical(name)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x24F), min_size=1, max_size=40))
def test_a_units_path_is_what_systemd_makes_of_it_and_leads_back(name: str) -> None:
    path = unit_path(name)
    assert path.isascii() and unit_of_path(path) == name
    assert all(c.isalnum() or c == "_" for c in path.removeprefix(systemd_bus.UNITS))


def test_paths_of_others_are_no_units() -> None:
    assert unit_path("1-a.service") == systemd_bus.UNITS + "_31_2da_2eservice"
    for path in ("/org/freedesktop/systemd1", "/x", systemd_bus.UNITS + "_zz", systemd_bus.UNITS + "a_"):
        assert unit_of_path(path) in ("",)


# -- TOML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "attrs"),
    [
        ("running", {"state": "running"}),
        ({"state": "stopped", "masked": True}, {"state": "stopped", "masked": True}),
        ({"state": "running", "enabled": True}, {"state": "running", "enabled": True}),
        ({"enabled": False}, {"enabled": False}),
        ({"state": "absent"}, None),
        (
            {"state": "running", "backend": "process", "executable": "/usr/sbin/munged", "timeout": "1.5s"},
            {"state": "running", "backend": "process", "executable": "/usr/sbin/munged", "timeout_ns": 1_500_000_000},
        ),
    ],
)
def test_what_is_written_is_read_and_written_again(value: Any, attrs: Attrs | None) -> None:
    entry = KIND.parse("x", value, "/")
    assert entry.declared.attrs == attrs
    again = KIND.export("x", entry.declared, lambda _: None)
    assert KIND.parse("x", again, "/").declared == entry.declared


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("up", "none of"),
        (1, "a table"),
        ({}, "at least one"),
        ({"state": "running", "masked": True}, "neither running nor enabled"),
        ({"state": "absent", "enabled": True}, "neither enabled nor masked"),
        ({"enabled": "yes"}, "true or false"),
        ({"stat": "running"}, "did you mean 'state'"),
        ({"state": "running", "start": ["/bin/x"]}, "start"),
        ({"state": "running", "backend": "docker", "pidfile": "/x"}, 'not "process"'),
        ({"state": "running", "backend": "process"}, "whether it runs"),
        ({"state": "running", "backend": "process", "pidfile": "x"}, "absolute path"),
        ({"state": "running", "backend": "process", "status": "/bin/x y"}, "list of words"),
        ({"state": "running", "backend": "process", "status": ["x"]}, "absolute path"),
        ({"state": "running", "backend": "process", "status": ["/x"], "timeout": "1h"}, "at most 60"),
        ({"state": "running", "backend": "process", "status": ["/x"], "enabled": True}, "systemd's"),
        ({"backend": "process", "status": ["/x"]}, "state is"),
    ],
)
def test_a_mistake_is_named(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("x", value, "/")


def test_a_bare_name_with_a_dot_is_a_table_in_a_table() -> None:
    table = {"cron": {"timer": {"state": "running"}}, "slurmd": {"state": "running"}, "empty": {}}
    assert dict(KIND.entries(table)) == {
        "cron.timer": {"state": "running"},
        "slurmd": {"state": "running"},
        "empty": {},
    }


def test_what_was_accepted_when_it_had_failed_is_declared_stopped() -> None:
    seen = {"state": "failed", "masked": False, "enabled": "static", "reload": True}
    assert KIND.export("x", Declared(seen), lambda _: None) == {"state": "stopped", "masked": False}


# -- what is drift ------------------------------------------------------------------------------------------------

UP: Attrs = {"state": "running", "masked": False, "enabled": True}
DOWN: Attrs = {"state": "stopped", "masked": False, "enabled": True}


@pytest.mark.parametrize(
    ("declared", "actual", "distance"),
    [
        (UP, UP, 0),
        (UP, DOWN, WHOLE_N),
        (UP, None, WHOLE_N),
        (None, None, 0),
        (None, UP, WHOLE_N),
        (UP, {**UP, "state": "failed"}, WHOLE_N),
        (DOWN, {**UP, "state": "failed"}, 0),
        ({**UP, "state": "failed"}, DOWN, 0),
        (UP, {**UP, "enabled": False}, HALF_N),
        (UP, {**UP, "enabled": "enabled-runtime"}, HALF_N),
        ({"enabled": False}, {**UP, "enabled": "static"}, 0),
        ({**UP, "enabled": "static"}, {**UP, "enabled": "disabled"}, 0),
        ({"state": "running"}, {**UP, "enabled": False}, 0),
        ({"enabled": True}, DOWN, 0),
        ({"enabled": True}, {"state": "stopped", "masked": True}, WHOLE_N),
        ({"enabled": False}, {"state": "stopped", "masked": True}, 0),
        ({"masked": True}, DOWN, HALF_N),
        (UP, {**UP, "reload": True}, 0),
        *((d, {**UP, "state": s}, 0) for d in (UP, DOWN) for s in sorted(systemd.ON_ITS_WAY)),
        *((d, {**UP, "state": s, "overdue": True}, WHOLE_N) for d in (UP, DOWN) for s in sorted(systemd.ON_ITS_WAY)),
    ],
)
def test_only_what_has_settled_and_is_declared_is_compared(
    declared: Attrs | None, actual: Attrs | None, distance: int
) -> None:
    assert KIND.distance_n(declared, actual) == distance


def unit(**fields: Any) -> systemd.Unit:
    return systemd.Unit("x.service", **fields)


SECOND = 1_000_000


@pytest.mark.parametrize(
    ("seen", "now_s", "state"),
    [
        (unit(active="active"), 0, ("running", False, 0)),
        (unit(), 0, ("stopped", False, 0)),
        (unit(active="failed"), 0, ("failed", False, 0)),
        (
            unit(active="activating", changed_us=10 * SECOND, limit_us=5 * SECOND),
            12,
            ("activating", False, 15 * SECOND),
        ),
        (unit(active="activating", changed_us=10 * SECOND, limit_us=5 * SECOND), 15, ("activating", True, 0)),
        (unit(active="activating", changed_us=10 * SECOND), 99, ("activating", False, 100 * SECOND)),
        (unit(active="active", job=7, job_type="stop", limit_us=SECOND), 0, ("deactivating", False, SECOND)),
        (unit(active="inactive", job=7, job_type="start", limit_us=SECOND), 0, ("activating", False, SECOND)),
        (unit(active="active", job=7, job_type="nop"), 0, ("running", False, 0)),
        (unit(active="active", restarts=1, up_us=10 * SECOND), 12, ("activating", False, 15 * SECOND)),
        (unit(active="active", restarts=1, up_us=10 * SECOND), 15, ("running", False, 0)),
        (unit(active="active", restarts=9, up_us=10 * SECOND), 12, ("activating", True, 15 * SECOND)),
        (unit(active="activating", sub="auto-restart", restarts=9, limit_us=SECOND), 0, ("activating", True, 0)),
    ],
)
def test_what_is_on_its_way_has_until_its_limit(seen: systemd.Unit, now_s: int, state: tuple[str, bool, int]) -> None:
    assert systemd.state_of(seen, now_s * SECOND) == state


def test_a_job_that_waits_has_until_its_limit_since_it_was_first_seen() -> None:
    waits = unit(active="active", job=7, job_type="stop", limit_us=SECOND, changed_us=1)
    assert systemd.state_of(waits, 100 * SECOND, 99 * SECOND + 1) == ("deactivating", False, 100 * SECOND + 1)
    assert systemd.state_of(waits, 101 * SECOND, 99 * SECOND)[1]


def test_what_it_does_by_itself_is_no_new_work_of_anybody() -> None:
    assert KIND.alike({**DOWN, "state": "failed"}, {**DOWN, "state": "activating", "overdue": True})
    assert KIND.alike(UP, {**UP, "reload": True})
    assert not KIND.alike(DOWN, UP) and not KIND.alike(UP, {**UP, "enabled": False}) and not KIND.alike(UP, None)


def test_a_kill_between_two_of_its_steps_is_half_done() -> None:
    step = Step("service:x", UP, {"state": "stopped", "masked": True})
    assert KIND.half_done(step, DOWN)
    assert not KIND.half_done(step, {**DOWN, "enabled": "linked"})
    assert not KIND.half_done(step, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_daemon_of_a_container_is_not_the_hosts_though_its_program_has_the_same_name(tmp_path: Path) -> None:
    """It would count as running, and be told to end."""
    program = tmp_path / "daemon"
    shutil.copyfile("/bin/sleep", program)
    program.chmod(0o755)
    definition: Attrs = {"backend": "process", "executable": str(program)}
    inside = ["unshare", "--pid", "--fork", "--kill-child", str(program), "60"]
    with subprocess.Popen(inside) as container, subprocess.Popen([program, "60"]) as own:
        try:
            children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
            ours = [own.pid]
            while len(ours) < 2:
                ours = [own.pid, *map(int, children.read_text().split())]
            while any(daemons._program(pid) != str(program) for pid in ours):
                pass
            assert daemons.look(definition).pids == {own.pid}
        finally:
            container.kill()
            own.kill()


def test_only_a_stop_takes_something_away() -> None:
    assert KIND.disturbs(Step("service:x", DOWN, UP)) and KIND.disturbs(Step("service:x", None, UP))
    assert not KIND.disturbs(Step("service:x", UP, DOWN))
    assert not KIND.disturbs(Step("service:x", {**UP, "enabled": False}, UP))


# -- whose process ------------------------------------------------------------------------------------------------


def test_a_fork_runs_the_same_program_and_a_new_program_does_not() -> None:
    script = "import os,sys,time\nif not os.fork(): time.sleep(60)\nprint('ready',flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE)
    second = subprocess.Popen([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE)
    try:
        for each in (first, second):
            assert each.stdout is not None and each.stdout.readline() == b"ready\n"
        (fork,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
        own = systemd_users.own_of([first.pid, fork, second.pid], (first.pid, 0))
        assert own == {first.pid, fork}, "another run of the same program is not the daemon's own"
        os.kill(fork, signal.SIGKILL)
    finally:
        for each in (first, second):
            for child in map(int, Path(f"/proc/{each.pid}/task/{each.pid}/children").read_text().split()):
                os.kill(child, signal.SIGKILL)
            each.kill()
            each.wait(10)
            assert each.stdout is not None
            each.stdout.close()


# -- daemons without systemd --------------------------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("code", "state"), [(0, "running"), (1, "stopped"), (3, "stopped")])
def test_a_status_command_says_whether_it_runs(tmp_path: Path, code: int, state: str) -> None:
    seen = daemons.observe("x", {"status": ["/bin/sh", "-c", f"exit {code}"]})
    assert isinstance(seen, dict) and seen["state"] == state


@pytest.mark.invariant("F81")
def test_a_status_command_that_cannot_say_or_hangs_makes_it_unreadable(tmp_path: Path) -> None:
    for words, why, limit in (
        (["/bin/sh", "-c", "exit 4"], "ended with 4", 10),
        (["/bin/sleep", "60"], "did not end within 0.2 s", 0.2),
        (["/nonexistent/x"], "cannot be run", 10),
    ):
        seen = daemons.observe("x", {"status": words, "timeout_ns": int(limit * 1e9)})
        assert isinstance(seen, Unreadable) and why in seen.why, seen


def _looked(definition: dict[str, Any], into: list[object]) -> None:
    into.append(daemons.observe("x", definition))


@pytest.mark.invariant("S2")
def test_a_pid_file_that_is_none_is_not_opened(tmp_path: Path) -> None:
    """Who may write where it lies puts a FIFO there, at which the look waited for ever, or a link to a device."""
    pidfile = tmp_path / "pid"
    os.mkfifo(pidfile)
    for link in ("", "/dev/tty", "/dev/watchdog"):
        if link:
            pidfile.unlink()
            pidfile.symlink_to(link)
        for definition in ({"pidfile": str(pidfile)}, {"pidfile": str(pidfile), "executable": "/usr/bin/sleep"}):
            looked = list[object]()
            thread = threading.Thread(target=_looked, args=(definition, looked), daemon=True)
            thread.start()
            thread.join(10)
            assert looked, f"it waits at {link or 'a FIFO'}"
            assert isinstance(looked[0], Unreadable | dict), looked


@pytest.mark.root
@pytest.mark.invariant("F81")
def test_another_program_of_its_name_in_a_user_s_mount_namespace_is_not_the_daemon(tmp_path: Path) -> None:
    """A user binds a program of his own over it there, and would hide that the daemon has died, or not end."""
    daemon, other, pidfile = tmp_path / "munged", tmp_path / "other", tmp_path / "pid"
    for path in (daemon, other):
        shutil.copy("/usr/bin/sleep", path)
    binds = f"mount --bind {other} {daemon} && exec {daemon} 60"
    for wrap, runs in (
        (["unshare", "-Urm", "sh", "-c", binds], False),
        (["unshare", "-m", "sh", "-c", f"exec {daemon} 60"], True),
        ([str(daemon), "60"], True),
    ):
        process = subprocess.Popen(wrap)
        try:
            end = time.monotonic() + 10
            while os.path.realpath(f"/proc/{process.pid}/exe") != str(daemon) and time.monotonic() < end:
                time.sleep(0.01)
            pidfile.write_text(f"{process.pid}\n")
            for definition in ({"executable": str(daemon)}, {"executable": str(daemon), "pidfile": str(pidfile)}):
                assert daemons.look(definition).running == runs, (wrap, definition)
        finally:
            process.kill()
            process.wait(10)


@pytest.mark.invariant("F81")
def test_a_pid_file_that_is_left_over_or_lies_names_nobody(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    definition = {"pidfile": str(pidfile), "executable": "/usr/bin/sleep"}
    for text in ("", "x", "-1", "0", "1", "99999999", str(os.getpid()), "9" * 4000):
        pidfile.write_text(text)
        assert not daemons.look(definition).running, text
    sleeper = subprocess.Popen(["/usr/bin/sleep", "60"])
    try:
        pidfile.write_text(f"{sleeper.pid}\n")
        assert daemons.look({**definition, "executable": os.readlink(f"/proc/{sleeper.pid}/exe")}).running
        assert not daemons.look({**definition, "executable": "/usr/sbin/munged"}).running
        pidfile.chmod(0o666)
        with pytest.raises(daemons.CannotSay, match="name its executable, too"):
            daemons.look({"pidfile": str(pidfile)})
    finally:
        sleeper.kill()
        sleeper.wait(10)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("web.service", "web"),
        ("web.service.d/limits.conf", "web"),
        ("back-up.timer", "back-up.timer"),
        ("back-up.timer.d/when.conf", "back-up.timer"),
        ("web.socket", "web.socket"),
        ("worker@.service", "worker@any"),
        ("worker@.service.d/limits.conf", "worker@any"),
        ("poll@.timer", "poll@any.timer"),
        ("var-lib-x.mount", "var-lib-x"),
        ("odd\\x2dname.service", "odd\\x2dname"),
        ("web.service.d/notes.txt", ""),
        ("notes.conf", ""),
    ],
)
def test_unit_files_of_every_type_are_read_again(path: str, told: str, tmp_path: Path) -> None:
    """What is proposed can be declared as it is written there."""
    said = proposals([str(tmp_path)])(f"/etc/systemd/system/{path}")
    assert bool(said) == bool(told)
    if told:
        assert tomllib.loads(said) == {"notify": [f"service:{told} daemon-reload"]}
        assert KIND.canonical(told) == told and "daemon-reload" in KIND.verbs
