"""apply, declare, adopt, export: how declared state moves."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until

TTL = "net.ipv4.ip_default_ttl"


# -- apply ----------------------------------------------------------------------------------------------------------


def test_apply_makes_one_change_of_the_caller_s_with_its_window(agent: Agent) -> None:
    path = agent.file("a.conf")
    agent.adopt(f"sysctl:{TTL}")
    text = f'[file."{path}"]\ncontent = "applied\\n"\n[sysctl]\n"{TTL}" = 66\n'
    dry = agent.json("apply", "-", "--dry-run", input=text.encode())
    assert dry["dry_run"] and {s["id"] for s in dry["plan"]} == {f"file:{path}", f"sysctl:{TTL}"}
    assert agent.world.path(path).read_text() == "declared\n" and agent.status()["changes"] == []
    answer = agent.json("apply", "-", "-m", "trial", input=text.encode())
    assert sorted(answer["applied"]) == sorted([f"file:{path}", f"sysctl:{TTL}"]) and answer["deadline"]
    assert agent.world.path(path).read_text() == "applied\n"
    (change,) = agent.status()["changes"]
    assert change["id"] == answer["change"] and change["message"] == "trial" and change["owner"]["user"] == "root"
    agent.pact("rollback", change["id"])
    assert agent.world.path(path).read_text() == "declared\n"
    assert agent.world.sh(f"cat /proc/sys/{TTL.replace('.', '/')}").out == "64\n"


def test_apply_is_a_change_of_its_own_beside_the_caller_s_other_drift(agent: Agent) -> None:
    one, two = agent.file("one.conf"), agent.file("two.conf")
    other = agent.drift(one)
    answer = agent.json("apply", "-", input=f'[file."{two}"]\ncontent = "applied\\n"\n'.encode())
    assert answer["change"] != other["id"] and len(agent.status()["changes"]) == 2


def test_apply_to_an_undeclared_resource_gives_it_a_baseline(agent: Agent) -> None:
    agent.world.path(f"{TOP}/new.conf").write_text("before\n")
    text = f'[file."{TOP}/new.conf"]\ncontent = "applied\\n"\n[file."{TOP}/fresh.conf"]\ncontent = "fresh\\n"\n'
    answer = agent.json("apply", "-", input=text.encode())
    assert agent.status()["declared"] == 2
    assert agent.world.path(f"{TOP}/fresh.conf").read_text() == "fresh\n"
    agent.pact("rollback", answer["change"])
    assert agent.world.path(f"{TOP}/new.conf").read_text() == "before\n"
    assert not agent.world.path(f"{TOP}/fresh.conf").exists()


def test_apply_of_what_is_so_already_opens_nothing(agent: Agent) -> None:
    path = agent.file("same.conf")
    answer = agent.json("apply", "-", input=f'[file."{path}"]\ncontent = "declared\\n"\n'.encode())
    assert answer["change"] is None and agent.status()["changes"] == []


# -- declare --------------------------------------------------------------------------------------------------------


def test_declare_converges_at_once_and_opens_no_window(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.start()
    path = f"{TOP}/sub/d.conf"
    text = (
        f'[file."{TOP}/sub"]\ntype = "directory"\nmode = "0750"\n'
        f'[file."{path}"]\ncontent = "x\\n"\nmode = "0600"\nowner = "1234"\n'
        f'[file."{TOP}/l"]\nsymlink = "sub/d.conf"\n[sysctl]\n"{TTL}" = 67\n'
    )
    dry = agent.declare(text, "--dry-run").json()
    assert dry["dry_run"] and len(dry["converge"]) == 4 and agent.status()["declared"] == 0
    agent.declare(text)
    st = agent.world.path(path).stat()
    assert agent.world.path(path).read_text() == "x\n" and (st.st_mode & 0o7777, st.st_uid) == (0o600, 1234)
    assert os.readlink(agent.world.path(f"{TOP}/l")) == "sub/d.conf"
    assert agent.world.sh("cat /proc/sys/net/ipv4/ip_default_ttl").out == "67\n"
    status = agent.status()
    assert status["declared"] == 4 and status["changes"] == [] and status["state"] == "committed"
    assert agent.newest("drift_detected") is None, "what is being converged is nobody's drift"
    agent.declare(f'[sysctl]\n"{TTL}" = 64\n')


def test_declare_reads_source_relative_to_the_file_and_a_table_for_a_sysctl(agent: Agent) -> None:
    (agent.base / "decl").mkdir(exist_ok=True)
    (agent.base / "decl" / "content").write_bytes(b"from a source \xff\n")
    (agent.base / "decl" / "d.toml").write_text(
        f'[file."{TOP}/s.conf"]\nsource = "content"\n[sysctl]\n"{TTL}" = {{value = 64, consumers = ["exec:nothing"]}}\n'
    )
    agent.pact("declare", str(agent.base / "decl" / "d.toml"))
    assert agent.world.path(f"{TOP}/s.conf").read_bytes() == b"from a source \xff\n"


def test_prune_forgets_what_the_file_does_not_name_and_deletes_nothing(agent: Agent) -> None:
    one, two = agent.file("one.conf"), agent.file("two.conf")
    answer = agent.declare(f'[file."{one}"]\ncontent = "declared\\n"\n', "--prune").json()
    assert answer["forgotten"] == [f"file:{two}"] and agent.world.path(two).exists()
    agent.world.path(two).unlink()
    agent.drift(one)
    assert agent.status()["drifted"] == 1


def test_declare_leaves_resources_of_open_changes_unless_take_is_said(agent: Agent) -> None:
    path = agent.file("taken.conf")
    change = agent.drift(path)
    answer = agent.declare(f'[file."{path}"]\ncontent = "new\\n"\n').json()
    assert answer["in_changes"] == [f"file:{path}"] and agent.world.path(path).read_text() == "drifted\n"
    assert agent.status()["changes"][0]["id"] == change["id"]
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "new\n", "a rollback returns to what is declared now"
    agent.drift(path)
    agent.declare(f'[file."{path}"]\ncontent = "newer\\n"\n', "--take")
    assert agent.world.path(path).read_text() == "newer\n" and agent.status()["changes"] == []


def test_declaring_the_drifted_value_settles_the_drift(agent: Agent) -> None:
    path = agent.file("agree.conf")
    agent.drift(path, "agreed\n")
    agent.declare(f'[file."{path}"]\ncontent = "agreed\\n"\n')
    assert agent.status()["changes"] == []


def test_what_is_ignored_cannot_be_declared_by_name(agent: Agent) -> None:
    for name in ("/tmp/x", "/var/log/x", "/dev/null"):
        err = agent.declare(f'[file."{name}"]\ncontent = "x"\n', check=2).err
        assert "is ignored by the pattern" in err and name in err


# -- adopt and export -----------------------------------------------------------------------------------------------

HOSTILE = [
    b"plain",
    b"new\nline",
    b"not-utf8-\xff\xfe",
    b"per%cent%41",
    b"quo\"te'\\back",
    "ünï-😀".encode(),
    b"sp ace",
    b"\x1b[2Jescape",
    b"tab\t",
    b"[b]*?{x}",
    b"-dash",
    b"#hash=1",
]


def test_exporting_what_was_adopted_and_declaring_it_again_changes_nothing(agent: Agent) -> None:
    top = os.fsencode(agent.world.path(TOP)) + b"/hostile"
    os.mkdir(top)
    contents = [
        b"text\n",
        b"",
        b"\x00\x01\xff",
        b"no newline",
        b"\"\"\"\n\\ '''\n",
        b"cr\r\nlf\n",
        b"a\x7f\x85",
        b"\xef\xbb\xbfbom",
    ]
    for at, name in enumerate(HOSTILE):
        with open(top + b"/" + name, "wb") as f:
            f.write(contents[at % len(contents)])
    os.symlink(b"tar\nget-\xff", top + b"/link\n")
    os.mkdir(top + b"/dir\xff")
    os.setxattr(top + b"/plain", "user.x", b"\x00\xff")
    agent.world.sh(
        f"setfacl -m u:1234:r {TOP}/hostile/plain; chmod 600 {TOP}/hostile/tab*; mkdir {TOP}/mnt;"
        f"mount -t tmpfs -o size=1m,noexec tmpfs {TOP}/mnt"
    )
    answer = agent.adopt(f"file:{TOP}/hostile/**", f"mount:{TOP}/**", "sysctl:net.ipv4.conf.lo.*")
    assert answer["adopted"] >= len(HOSTILE) + 3 and answer["not_restorable"] == []
    text = agent.pact("export").out
    before = agent.status()
    done = agent.declare(text, "--prune").json()
    assert done["converge"] == [] and done["forgotten"] == [] and done["resources"] == before["declared"]
    assert agent.pact("export").out == text
    again = agent.adopt(f"file:{TOP}/hostile/**", f"mount:{TOP}/**", "sysctl:net.ipv4.conf.lo.*")
    assert again["adopted"] == 0, "declared again, nothing is different"
    for name in HOSTILE:
        with open(top + b"/" + name, "ab") as f:
            f.write(b"drift")
    wait_until(lambda: agent.status()["drifted"] == len(HOSTILE), "every hostile name drifted")
    agent.pact("rollback")
    for at, name in enumerate(HOSTILE):
        with open(top + b"/" + name, "rb") as f:
            assert f.read() == contents[at % len(contents)]
    assert agent.json("export")["toml"].lstrip("\n") == text
    agent.world.sh(f"umount {TOP}/mnt")


@pytest.mark.invariant("F19")
def test_a_file_above_the_limit_is_reported_as_not_restorable_at_adopt(agent: Agent) -> None:
    path = f"{TOP}/large.bin"
    agent.world.sh(f"head -c 5000000 /dev/zero > {path}")
    answer = agent.json("adopt", f"file:{path}")
    assert answer["not_restorable"] == [f"file:{path}"]
    assert "cannot be restored" in agent.pact("adopt", f"file:{path}").out or answer["adopted"] == 1
    agent.world.sh(f"printf x >> {path}")
    agent.drifted(f"file:{path}")
    agent.pact("rollback", check=1)
    assert agent.world.path(path).stat().st_size == 5000001, "nothing was half done"
    agent.pact("commit", "-m", "by digest")
    text = agent.pact("export").out
    assert "sha256" in text
    assert agent.declare(text).json()["converge"] == []


def test_adopt_passes_over_what_is_ignored_and_says_how_many(agent: Agent) -> None:
    agent.world.sh("echo x > /tmp/pact-e2e-ignored")
    answer = agent.ask("adopt", patterns=["file:/tmp/pact-e2e-ignored*"])
    assert answer["result"]["adopted"] == 0
    assert any("ignored" in note and "1" in note for note in answer["result"]["notes"])
    agent.world.sh("rm /tmp/pact-e2e-ignored")


def test_adopt_of_a_live_etc_and_all_net_sysctls_and_mounts_then_quiet(agent: Agent) -> None:
    answer = agent.adopt("file:/etc/**", "sysctl:net.**", "mount:**", "module:**")
    assert answer["adopted"] > 500
    assert agent.status()["drifted"] == 0
    for secret in ("/etc/shadow", "/etc/machine-id"):
        assert f'"{secret}"' not in agent.pact("export").out


@pytest.mark.invariant("R13")
def test_adopt_says_where_others_can_put_something_else_in_its_place(agent: Agent) -> None:
    agent.world.sh(
        f"mkdir -p {TOP}/anns/d {TOP}/roots; echo x | tee {TOP}/anns/d/f {TOP}/roots/f; chown 1234 {TOP}/anns"
    )
    try:
        (note,) = [n for n in agent.adopt(f"file:{TOP}/anns/**")["notes"] if "in the place" in n]
        assert f"{TOP}/anns/d" in note and "1234" in note, note
        assert not [n for n in agent.adopt(f"file:{TOP}/roots/**")["notes"] if "in the place" in n]
    finally:
        agent.world.sh(f"rm -rf {TOP}/anns {TOP}/roots")


def test_adopt_says_when_nothing_matches_or_the_pattern_is_wrong(agent: Agent) -> None:
    assert "nothing matches" in agent.pact("adopt", f"file:{TOP}/nothing*", check=1).err
    assert "widget" in agent.pact("adopt", "widget:x", check=2).err
    agent.pact("adopt", "nonsense", check=2)
    agent.pact("adopt", "file:relative/**", check=None)


def test_adopting_a_resource_of_an_open_change_needs_its_name(agent: Agent) -> None:
    path = agent.file("open.conf")
    agent.drift(path)
    assert agent.adopt(f"file:{TOP}/open*")["in_changes"] == [f"file:{path}"]
    assert len(agent.status()["changes"]) == 1
    agent.adopt(f"file:{path}")
    assert agent.status()["changes"] == []


# -- mistakes in a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[file."/srv/x"]\ncontent = "a"\nmoed = "0644"\n', 1, "mode"),
        ('\n[sysctl]\n"net.core.somaxconn" = 1979-05-27\n', 3, "net.core.somaxconn"),
        ('[fiel."/srv/x"]\ncontent = "a"\n', 1, "file"),
        ('[file."/srv/x"]\ncontent = "a"\nmode = 420\n', 1, "octal"),
        ('[file."/srv/x"]\ncontent = "a"\nsymlink = "b"\n', 1, "exclude"),
        ('[file."srv/x"]\ncontent = "a"\n', 1, "absolute"),
        ('[file."/srv/../etc/x"]\ncontent = "a"\n', 1, "normal"),
        ('[mount."/srv/x"]\nfstype = "tmpfs"\n', 1, "source"),
        ('[file."/srv/x"]\nsource = "no-such-file"\n', 1, "no-such-file"),
        ('[file."/srv/x"]\ncontent = "a"\nrequires = ["what:x"]\n', 1, "what"),
        ("[sysctl]\na = = 1\n", 2, "2"),
        ('[service.slurmd]\nstate = "up"\n', 1, "running"),
    ],
)
def test_a_mistake_is_named_with_file_and_line_and_changes_nothing(
    agent: Agent, text: str, line: int, says: str
) -> None:
    path = agent.base / "wrong.toml"
    path.write_text(text)
    for command in ("declare", "apply"):
        err = agent.pact(command, str(path), check=2).err
        assert f"{path}:{line}:" in err and says in err and len(err.splitlines()) <= 3, err
    assert agent.status()["declared"] == 0


def test_a_file_that_cannot_be_read_or_declares_nothing_is_refused(agent: Agent) -> None:
    assert "/nonexistent.toml" in agent.pact("declare", "/nonexistent.toml", check=2).err
    agent.declare("", check=2)
    agent.pact("declare", "-", input=b"\xff\xfe", check=2)


def test_the_agent_checks_what_another_program_sends(agent: Agent) -> None:
    value: dict[str, Any] = {"attrs": {"type": "file", "sha256": "0" * 64, "size": 1}}
    for resources in (
        {"file:/srv/x": 1},
        {"file:/srv/x": {}},
        {"x": value},
        {"file:relative": value},
        {"sysctl:../../etc/passwd": {"attrs": {"value": "1"}}},
        {"sysctl:net/ipv4": {"attrs": {"value": 1}}},
        {f"file:{TOP}/x": {"attrs": {"type": "fifo"}}},
        {"mount:/srv/x": {"attrs": {}}},
    ):
        for op in ("declare", "apply"):
            answer = agent.ask(op, resources=resources)
            assert answer["exit"] in (1, 2) and answer["message"], (op, resources, answer)
    blob = {"a" * 64: base64.b64encode(b"x").decode()}
    assert agent.ask("declare", resources={}, blobs=blob)["exit"] == 2
    assert agent.status()["declared"] == 0 and json.dumps(agent.status()["changes"]) == "[]"


def test_a_number_that_has_a_name_conforms_and_a_link_s_mode_is_refused(agent: Agent) -> None:
    agent.world.sh(f"echo x > {TOP}/owned; ln -s t {TOP}/link")
    agent.declare(
        f'[file."{TOP}/owned"]\ncontent = "x\\n"\nowner = 0\ngroup = "0"\n[file."{TOP}/link"]\nsymlink = "t"\n'
    )
    assert agent.status()["state"] == "committed"
    done = agent.pact("declare", "-", input=f'[file."{TOP}/link"]\nsymlink = "t"\nmode = "0777"\n'.encode(), check=2)
    assert ":1: " in done.err and "a symbolic link has no mode of its own" in done.err, done.err


def test_a_name_service_that_comes_late_leaves_no_drift(make_agent: Callable[..., Agent], world: World) -> None:
    world.sh(f"grep -v '^late:' /etc/passwd > {TOP}/passwd; mount --bind {TOP}/passwd /etc/passwd")
    try:
        world.sh(f"echo x > {TOP}/lates; chown 54321 {TOP}/lates")
        agent = make_agent()
        (agent.base / "first.toml").write_text(f'[file."{TOP}/lates"]\ncontent = "x\\n"\nowner = "late"\n')
        agent.configure(
            {
                "declared": {"files": [str(agent.base / "first.toml")]},
                "window": {"base": "3s", "floor": "0.1s", "sensitivity": 0.1},
            }
        )
        agent.start()
        agent.drifted(f"file:{TOP}/lates")  # as far as anybody knows now
        world.sh(f"echo 'late:x:54321:54321::/:/bin/sh' >> {TOP}/passwd")
        agent.settled(f"file:{TOP}/lates")
        assert agent.records("rollback_failed") == []
        assert world.sh(f"stat -c %u {TOP}/lates").out == "54321\n"
    finally:
        world.sh("umount /etc/passwd")


def test_an_option_that_takes_something_away_from_an_adopted_mount_is_drift_and_is_undone(agent: Agent) -> None:
    point = f"{TOP}/plain"
    agent.world.sh(f"mkdir {point}; mount -t tmpfs -o size=1m plain {point}")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -o remount,noexec,nosuid {point}")
    change = agent.drifted(f"mount:{point}")
    (entry,) = agent.json("diff")["resources"]
    assert {"exec", "suid"} <= set(entry["declared"]["options"]) and {"noexec", "nosuid"} <= set(
        entry["actual"]["options"]
    )
    agent.pact("rollback", change["id"])
    assert "noexec" not in agent.world.sh(f"grep ' {point} ' /proc/self/mounts").out
    agent.world.sh(f"mount -o remount,noexec {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("commit", "--all", "-m", "no programs here")
    agent.world.sh(f"mount -o remount,exec {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert "noexec" in agent.world.sh(f"grep ' {point} ' /proc/self/mounts").out
    agent.world.sh(f"umount {point}")


def test_what_is_exported_can_be_declared_whatever_is_ignored_since(make_agent: Any) -> None:
    agent = make_agent()
    agent.start()
    nothing = agent.pact("export").out
    assert agent.json("declare", "-", input=nothing.encode())["resources"] == 0
    agent.pact("declare", "--prune", "-", input=nothing.encode(), check=2)
    kept, ignored = agent.file("kept.conf"), agent.file("ignored.conf")
    agent.stop()
    agent.configure({"drift": {"ignore": [f"file:{ignored}"]}})
    agent.start()
    text = agent.pact("export").out
    assert f"# file:{ignored} is left out" in text
    answer = agent.json("declare", "-", input=text.encode())
    assert (answer["resources"], answer["unchanged"]) == (1, 1) and kept in text
    agent.close()


def test_adopt_calls_a_file_bind_mounted_and_not_a_directory_with_a_mount(agent: Agent) -> None:
    world, top = agent.world, f"{TOP}/bound"
    world.sh(
        f"mkdir -p {top}/dir && mount -t tmpfs -o size=1m tmpfs {top}/dir && "
        f"echo x > {top}/file && echo y > {top}/other && mount --bind {top}/other {top}/file"
    )
    try:
        notes = [n for n in agent.adopt(f"file:{top}/**")["notes"] if "bind-mounted" in n]
        assert [n.split()[0] for n in notes] == [f"file:{top}/file"], notes
    finally:
        world.sh(f"umount {top}/file {top}/dir && rm -r {top}")


def test_a_pipe_in_a_change_is_not_committed_and_spoils_no_export(agent: Agent) -> None:
    path, other = agent.file("pipe.conf"), agent.file("whole.conf")
    agent.world.sh(f"rm {path}; mkfifo {path}; echo new > {other}")
    wait_until(lambda: agent.status()["drifted"] == 2, "both have drifted")
    done = agent.pact("commit", "--all", "-m", "m", check=4)
    assert "is a fifo: it cannot be declared; nothing was committed" in done.err and "by name" in done.err
    agent.pact("commit", f"file:{other}", "-m", "m")
    assert "is a fifo" in agent.pact("adopt", f"file:{path}", check=None).out
    text = agent.pact("export").out
    assert agent.declare(text, "--dry-run", check=None).code in (0, 1), "it can be read again"
    assert f'[file."{other}"]' in text
    agent.world.sh(f"rm {path}")
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


def test_a_tree_that_was_removed_with_its_top_comes_back_as_it_was(agent: Agent) -> None:
    agent.world.sh(f"mkdir -p {TOP}/tree/sub; chmod 2750 {TOP}/tree; chown 7:8 {TOP}/tree; echo x > {TOP}/tree/sub/a")
    agent.adopt(f"file:{TOP}/tree/**")
    before = agent.world.sh(f"stat -c '%n %a %u %g' {TOP}/tree {TOP}/tree/sub {TOP}/tree/sub/a").out
    agent.world.sh(f"rm -rf {TOP}/tree")
    wait_until(lambda: agent.status()["drifted"] == 3, "all of it has drifted")
    agent.pact("rollback", "--all")
    assert agent.world.sh(f"stat -c '%n %a %u %g' {TOP}/tree {TOP}/tree/sub {TOP}/tree/sub/a").out == before
