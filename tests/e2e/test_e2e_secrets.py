"""What is not for everybody is shown to admins and to nobody else, wherever it came from and wherever it is now."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

pytestmark = pytest.mark.invariant("S2")

NAME = "net.ipv4.tcp_fastopen_key"
KEYS = [f"{n:08x}-{n:08x}-{n:08x}-{n:08x}" for n in (0xAAAA0001, 0xAAAA0002, 0xAAAA0003)]
OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}
VIEWER: dict[str, Any] = {"uid": 1236}
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [8]}
LOOKING = (["status"], ["diff"], ["log"], ["export"])


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail"], "ops_groups": ["games"]}}


def set_key(agent: Agent, key: str) -> None:
    """Not by ``echo``: what stands in a command line is for operators to see."""
    agent.world.call(["tee", "/proc/sys/net/ipv4/tcp_fastopen_key"], input=key.encode())


def test_the_content_of_a_file_without_a_declared_mode_is_not_for_everybody(agent: Agent) -> None:
    """pact keeps the mode that the file has, which may be 0600."""
    path = agent.world.path(f"{TOP}/pw")
    path.write_text("PASSWORD=hunter1\n")
    path.chmod(0o600)
    agent.declare(f'[file."{TOP}/pw"]\ncontent = "PASSWORD=hunter2\\n"\n')
    path.write_text("PASSWORD=hunter3\n")
    agent.change_of(f"file:{TOP}/pw")
    for words in (*LOOKING, *(["--json", *words] for words in LOOKING)):
        assert "hunter" not in agent.pact(*words, **VIEWER).out, words
    assert "hunter2" in agent.pact("export", **ADMIN).out
    agent.pact("rollback", "--all")


def nowhere(agent: Agent) -> None:
    """No key in any answer to who is no admin."""
    shows = [["show", str(r["seq"])] for r in agent.records() if "aaaa000" in json.dumps(r)]
    assert shows, "the node's own journal has them"
    for who in (VIEWER, OPS):
        for words in (*LOOKING, *(["--json", *words] for words in (*LOOKING, *shows))):
            assert "aaaa000" not in agent.pact(*words, **who).out, (words, who)


@pytest.mark.parametrize("how", ["declare", "adopt", "apply"])
def test_a_secret_sysctl_s_value_is_shown_to_admins_alone(agent: Agent, how: str) -> None:
    set_key(agent, KEYS[0])
    text = f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n'
    if how == "declare":
        agent.declare(text)
    elif how == "adopt":
        agent.adopt(f"sysctl:{NAME}")
    else:
        set_key(agent, KEYS[1])
        agent.pact("apply", "-", input=text.encode())
    set_key(agent, KEYS[2])
    agent.drifted(f"sysctl:{NAME}")
    nowhere(agent)
    assert KEYS[2] in agent.pact("diff").out and KEYS[2] in agent.pact("diff", **ADMIN).out
    (entry,) = agent.json("diff", **VIEWER)["resources"]
    assert (entry["declared"]["value"], entry["actual"]["value"], entry["hidden"]) == ("(hidden)", "(hidden)", True)
    assert KEYS[0] in agent.pact("export", **ADMIN).out or how == "apply"
    agent.pact("rollback", "--all")
    nowhere(agent)


@pytest.mark.parametrize("how", ["declare", "apply"])
def test_what_the_kernel_made_of_a_secret_is_one_too(agent: Agent, how: str) -> None:
    set_key(agent, KEYS[1])
    agent.pact(how, "-", input=f'[sysctl]\n"{NAME}" = "AAAA0001-AAAA0001-AAAA0001-AAAA0001"\n'.encode())
    agent.ask("status")
    nowhere(agent)
    assert all("aaaa0001" not in json.dumps(r["data"].get("reads", {})) for r in agent.records())
    agent.pact("rollback", "--all")
    nowhere(agent)


def test_what_an_operator_may_settle_is_not_shown_to_them(agent: Agent) -> None:
    """An unattributed or own change of a secret: dry run, rollback and commit say its name only."""
    agent.declare(f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n')
    key = f"{TOP}/key"
    agent.world.path(key).write_text(KEYS[1])
    agent.world.sh(
        f"setpriv --reuid=1234 --regid=1234 --clear-groups --inh-caps=+dac_override,+net_admin "
        "--ambient-caps=+dac_override,+net_admin sh -c 'read -r line; "
        f"echo $line > /proc/sys/net/ipv4/tcp_fastopen_key; sleep 1' < {key}"
    )  # it stays a while
    change = agent.drifted(f"sysctl:{NAME}")
    assert change["owner"]["uid"] == 1234
    dry = agent.pact("--json", "rollback", "--dry-run", **OPS).out
    assert NAME in dry and "(hidden)" in dry and "aaaa000" not in dry
    assert "aaaa000" in agent.pact("--json", "rollback", "--dry-run", change["id"]).out
    assert "aaaa000" not in agent.pact("--json", "rollback", **OPS).out
    assert KEYS[0] in agent.world.sh("cat /proc/sys/net/ipv4/tcp_fastopen_key").out
    nowhere(agent)


@pytest.mark.parametrize("who", [VIEWER, OPS])
def test_a_watcher_who_is_no_admin_is_not_told_either(agent: Agent, who: dict[str, Any]) -> None:
    set_key(agent, KEYS[0])
    agent.adopt(f"sysctl:{NAME}")
    command = [
        "timeout",
        "3",
        "setpriv",
        f"--reuid={who['uid']}",
        f"--regid={who['uid']}",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        f"--groups={','.join(map(str, who['groups']))}" if "groups" in who else "--clear-groups",
        "--",
        "python3",
        "-c",
        "import socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
        "s.sendall(b'{\"op\":\"watch\"}\\n');print('ready',flush=True)\n"
        "for l in s.makefile():\n print(l,end='',flush=True)\n if 'drift_detected' in l: break",
        agent.socket,
    ]
    watcher = agent.world.popen(command, stdout=-1)
    assert watcher.stdout.readline() == b"ready\n"
    agent.ask("ping")
    set_key(agent, KEYS[1])
    agent.drifted(f"sysctl:{NAME}")
    said = watcher.stdout.read().decode()
    assert "drift_detected" in said and "(hidden)" in said and "aaaa000" not in said
    agent.pact("rollback", "--all")


def test_declared_files_of_the_first_start_are_flagged_too(make_agent: Any, base: Any) -> None:
    text = base / "first.toml"
    text.write_text(f'[sysctl]\n"{NAME}" = "{KEYS[0]}"\n"net.ipv6.conf.absent0.stable_secret" = "fe80::aaaa:0001"\n')
    agent = make_agent(
        declared={"files": [str(text)]}, access={"ops_groups": ["games"]}, mode={"enforcement": "observe"}
    )
    agent.start()
    nowhere(agent)
    for words in (*LOOKING, ["show", "1"], ["show", "0"]):
        assert "fe80::aaaa" not in agent.pact("--json", *words, **VIEWER).out
    assert any("fe80::aaaa:0001" in json.dumps(r) for r in agent.records())


def viewers_are_not_shown(agent: Agent, resource: str, secret: str) -> None:
    """By no way to a record's kept content; admins are."""
    seq = str(agent.newest("rollback_started")["seq"])
    for who in (VIEWER, OPS):
        assert secret not in agent.pact("--json", "show", seq, **who).out
        assert (
            "world-readable"
            in agent.pact("show", seq, "--restore", f"{TOP}/leak", "--resource", resource, check=3, **who).err
        )
    assert agent.json("show", seq)["contents"][resource]["content"].startswith(secret)


def test_what_lay_in_a_closed_file_system_in_memory_stays_closed_when_that_is_gone(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/m")
    agent.declare(f'[mount."{TOP}/m"]\ntype = "absent"\n')
    agent.world.sh(f"mount -t tmpfs -o mode=700 tmpfs {TOP}/m; echo INSIDE > {TOP}/m/notes; chmod 644 {TOP}/m/notes")
    agent.drifted(f"mount:{TOP}/m")
    agent.pact("rollback", "--all")
    viewers_are_not_shown(agent, f"file:{TOP}/m/notes", "INSIDE")


@pytest.mark.invariant("F30")
def test_what_lay_in_an_open_one_is_shown(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/o")
    agent.declare(f'[mount."{TOP}/o"]\ntype = "absent"\n')
    agent.world.sh(f"mount -t tmpfs -o mode=755 tmpfs {TOP}/o; echo OPEN > {TOP}/o/notes; chmod 644 {TOP}/o/notes")
    agent.drifted(f"mount:{TOP}/o")
    agent.pact("rollback", "--all")
    seq = str(agent.newest("rollback_started")["seq"])
    assert agent.json("show", seq, **VIEWER)["contents"][f"file:{TOP}/o/notes"]["content"] == "OPEN\n"


def test_a_directory_that_was_closed_when_the_content_was_kept_hides_it_later_too(agent: Agent) -> None:
    path = agent.file("shut/conf", "one\n")
    agent.world.sh(f"chmod 700 {TOP}/shut")
    agent.drift(path, "WORK\n")
    agent.pact("rollback", "--all")
    agent.world.sh(f"chmod 755 {TOP}/shut")
    viewers_are_not_shown(agent, f"file:{path}", "WORK")


def test_declared_content_of_a_closed_mount_is_hidden_when_that_is_gone(agent: Agent) -> None:
    agent.world.sh(
        f"mkdir -p {TOP}/d; mount -t tmpfs -o mode=700 tmpfs {TOP}/d; echo DEEP > {TOP}/d/f; chmod 644 {TOP}/d/f"
    )
    agent.adopt(f"file:{TOP}/d/f")
    agent.world.sh(f"umount {TOP}/d")
    agent.drifted(f"file:{TOP}/d/f")
    assert "DEEP" not in agent.pact("export", **VIEWER).out + agent.pact("diff", **VIEWER).out
    assert "DEEP" in agent.pact("export").out


def test_committed_content_of_a_closed_mount_is_hidden_when_that_is_gone(agent: Agent) -> None:
    agent.world.sh(
        f"mkdir -p {TOP}/e; mount -t tmpfs -o mode=700 tmpfs {TOP}/e; echo one > {TOP}/e/f; chmod 644 {TOP}/e/f"
    )
    agent.adopt(f"file:{TOP}/e/f")
    agent.drift(f"{TOP}/e/f", "DEEPER\n")
    agent.pact("commit", "--all", "-m", "x")
    agent.world.sh(f"umount {TOP}/e")
    agent.drifted(f"file:{TOP}/e/f")
    assert "DEEPER" not in agent.pact("export", **VIEWER).out + agent.pact("diff", **VIEWER).out
    assert "DEEPER" in agent.pact("export").out


def test_a_directory_that_its_owner_turns_into_a_link_shows_nothing_of_where_it_leads(agent: Agent) -> None:
    agent.world.sh(
        f"mkdir -p {TOP}/root/in; chmod 700 {TOP}/root; echo ROOTS > {TOP}/root/in/conf; chmod 644 {TOP}/root/in/conf"
    )
    path = agent.file("home/dir/conf", "mine\n")
    agent.world.sh(f"chown -R 4321:4321 {TOP}/home")
    agent.world.sh(f"cd {TOP}/home && mv dir old && ln -s {TOP}/root/in dir", uid=4321)
    why = "file: it lies behind a symbolic link that others can turn"
    wait_until(lambda: agent.status()["unreadable_resources"].get(f"file:{path}") == why, "it is unreadable")
    change = agent.change_of(f"file:{path}")  # from the moment in which it was away
    if change is not None:
        agent.pact("rollback", change["id"], check=None)
    agent.pact("commit", "--all", "-m", "x", check=None)
    agent.world.sh(f"cd {TOP}/home && rm dir && mv old dir", uid=4321)
    wait_until(lambda: not agent.status()["unreadable"], "it is read again")
    for record in agent.records():
        if "saves" in record["data"]:
            assert "ROOTS" not in agent.pact("--json", "show", str(record["seq"])).out
    assert "ROOTS" not in agent.pact("export").out


def test_links_that_only_root_can_turn_are_followed_as_ever(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/real; echo one > {TOP}/real/conf; ln -s real {TOP}/alias")
    agent.declare(f'[file."{TOP}/alias/conf"]\ncontent = "one\\n"\n')
    assert agent.status()["drifted"] == agent.status()["unreadable"] == 0
    agent.world.path(f"{TOP}/real/conf").write_text("two\n")
    agent.drifted(f"file:{TOP}/alias/conf")


def test_user_attributes_of_what_others_may_not_read_are_hidden(agent: Agent) -> None:
    path = agent.file("noted", "x\n", mode=0o600)
    agent.world.sh(
        f"setfattr -n user.note -v PLAIN {path} 2>/dev/null || python3 -c \"import os; os.setxattr('{path}', 'user.note', b'PLAIN')\""
    )
    agent.drifted(f"file:{path}")
    coded = base64.b64encode(b"PLAIN").decode()
    assert coded in agent.pact("--json", "diff").out
    agent.pact("commit", "--all", "-m", "x")
    agent.world.sh(f"chmod 640 {path}")
    agent.drifted(f"file:{path}")
    for who in (VIEWER, OPS):
        for words in (["diff"], ["log"], ["export"]):
            assert coded not in agent.pact("--json", *words, **who).out, words
    assert coded in agent.pact("export").out


@pytest.mark.invariant("S2")
def test_a_password_in_a_mount_s_source_is_shown_to_admins_alone(agent: Agent) -> None:
    """As declared, as drifted, as untracked, in records and in the export."""
    word, point = "hunter2", f"{TOP}/share"
    agent.world.sh(f"mkdir -p {point} {TOP}/other; mount -t tmpfs //ann:{word}@host/x {point}")
    try:
        agent.pact("adopt", f"mount:{point}")
        agent.pact("adopt", f"mount:{TOP}/**", check=None)
        agent.world.sh(f"mount -t tmpfs //ann:{word}@host/y {TOP}/other")
        agent.world.sh(f"mount -o remount,nosuid {point}")
        agent.drifted(f"mount:{point}")
        for words in (["status", "-v"], ["diff"], ["export"], ["log"], ["status"], ["show", "3"]):
            for more in ([], ["--json"]):
                said = agent.pact(*more, *words, uid=1236, check=None)
                assert word not in said.out + said.err, (words, said)
        assert "is left out" in agent.pact("export", uid=1236).out
        assert word in agent.pact("export").out and word in agent.pact("--json", "diff").out
    finally:
        agent.world.sh(f"umount {point} {TOP}/other", check=False)


def test_an_export_moves_no_terminal(agent: Agent) -> None:
    path = agent.file("moves", "\u009b31mred \u202ereversed\u2066 \u2028 end\n")
    table = agent.pact("export").out
    assert all(c.isprintable() or c == "\n" for c in table)
    assert f'[file."{path}"]' in table and "\\u009B" in table and "\\u202E" in table


@pytest.mark.invariant("S2")
def test_where_a_link_in_a_closed_directory_leads_is_shown_to_admins_alone(agent: Agent) -> None:
    word = "hunter2"
    agent.world.sh(f"mkdir -p {TOP}/closed/d; ln -s /x/{word}1 {TOP}/closed/d/l; chmod 700 {TOP}/closed")
    agent.pact("adopt", f"file:{TOP}/closed/**")
    agent.world.sh(f"ln -sfn /x/{word}2 {TOP}/closed/d/l")
    agent.drifted(f"file:{TOP}/closed/d/l")
    for words in (["status", "-v"], ["diff"], ["export"], ["log"]):
        for more in ([], ["--json"]):
            said = agent.pact(*more, *words, uid=1236, check=None)
            assert word not in said.out + said.err, (words, said)
    assert f"{word}1" in agent.pact("export").out and f"{word}2" in agent.pact("--json", "diff").out
    agent.pact("rollback", "--all")
    assert word not in agent.pact("log", uid=1236).out


def test_who_uses_what_is_told_of_what_is_looked_after_and_open_to_all(agent: Agent) -> None:
    """Else the answer would say which names there are in closed directories, and who has which file open."""
    world = agent.world
    closed, shown = world.path(f"{TOP}/kept"), world.path(f"{TOP}/shown.conf")
    closed.mkdir()
    for path in (closed / "there", closed / "declared", shown, world.path(f"{TOP}/other.conf")):
        path.write_text("x\n")
    closed.chmod(0o700)
    agent.declare(f'[file."{TOP}/kept/declared"]\ncontent = "x\\n"\n[file."{TOP}/shown.conf"]\ncontent = "x\\n"\n')
    holder = world.popen(
        [
            "sh",
            "-c",
            f"exec 3<{TOP}/kept/there 4<{TOP}/kept/declared 5<{TOP}/shown.conf "
            f"6<{TOP}/other.conf; echo; exec sleep 600",
        ],
        stdout=-1,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"\n"
    try:
        for who in (VIEWER, OPS):
            said = {
                agent.pact("consumers", f"file:{TOP}/{name}", check=3, **who).err.replace(name, "NAME")
                for name in ("kept/there", "kept/not-there", "kept/declared", "other.conf", "nowhere/at-all")
            }
            assert len(said) == 1, said
            assert "sleep" in agent.pact("consumers", f"file:{TOP}/shown.conf", **who).out
        for name in ("kept/there", "kept/declared", "other.conf"):
            assert "sleep" in agent.pact("consumers", f"file:{TOP}/{name}", **ADMIN).out
    finally:
        world.end(holder)
    agent.pact("rollback", "--all", check=None)


@pytest.mark.invariant("S2")
def test_what_is_said_of_a_mount_that_cannot_be_made_names_no_password(agent: Agent) -> None:
    """Neither what pact finds out itself, nor what mount(8) says."""
    word, point = "hunter2", f"{TOP}/refused"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs //ann:{word}@host/x {point}")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"umount {point}; mount -t ramfs //ann:{word}@host/z {point}")
    agent.drifted(f"mount:{point}")
    text = f'[mount."{TOP}/never"]\nsource = "//ann:{word}@host/y"\nfstype = "ext4"\noptions = ["rw"]\n'
    refused = agent.declare(text, check=1)
    assert "no such file" in refused.err and word not in refused.out + refused.err
    agent.pact("rollback", "--all", check=None)
    for words in (["status"], ["diff"], ["log"]):
        assert word not in agent.pact("--json", *words, uid=1236).out
    agent.world.sh(f"umount {point}", check=False)
