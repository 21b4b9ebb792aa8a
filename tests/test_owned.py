"""Whose the files are that a daemon believes: real files, links, ACLs, sticky directories and other people's entries."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pact.agent.listening import listen
from pact.agent.statedir import take_state_dir
from pact.cluster import auth
from pact.cluster.config import AggregatorConfig, require_owned
from pact.declared.toml import Ignore, read_files
from pact.errors import ConfigError
from pact.host import fields, owned
from pact.net import keys
from pact.resources.support import file_toml

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
OTHER = 12345


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``TOP/a/b/c``: a file, and two directories above it that the tests change."""
    (tmp_path / "a/b").mkdir(parents=True, mode=0o755)
    (tmp_path / "a/b/c").write_text("x")
    return tmp_path


def refused(path: Path | str, **how: bool) -> owned.NotOurs:
    with pytest.raises(owned.NotOurs) as caught:
        owned.require(str(path), "thing", **how)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("part", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_no_part_of_the_way_may_be_written_by_others(place: Path, part: str, mode: int) -> None:
    owned.require(str(place / "a/b/c"), "thing")
    (place / part).chmod(0o755 | mode)
    said = refused(place / "a/b/c")
    assert said.message.startswith(f"thing: {place / part} may be written by "), said
    assert f"chmod go-w {place / part}" in said.hint


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("part", ["a", "a/b", "a/b/c"])
def test_every_part_of_the_way_belongs_to_root(place: Path, part: str) -> None:
    os.chown(place / part, OTHER, 0)
    said = refused(place / "a/b/c")
    assert f"{place / part} belongs to uid {OTHER}" in said.message
    assert f"chown root {place / part}" in said.hint


@pytest.mark.invariant("S9")
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl")
def test_an_acl_that_lets_others_write_counts(place: Path) -> None:
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:r", str(place / "a")], check=True)
    owned.require(str(place / "a/b/c"), "thing")
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:rwx", str(place / "a")], check=True)
    said = refused(place / "a/b/c")
    assert "by its ACL" in said.message and "setfacl -b" in said.hint


@pytest.mark.invariant("S9")
def test_a_sticky_directory_may_be_on_the_way_if_the_entry_is_roots(place: Path) -> None:
    (place / "a").chmod(0o1777)
    owned.require(str(place / "a/b/c"), "thing")
    os.chown(place / "a/b", OTHER, OTHER)
    assert f"{place}/a/b belongs to" in refused(place / "a/b/c").message
    assert "everybody" in refused(place / "a").message, "in it anybody may put what he likes"
    owned.require(str(place / "a"), "thing", sticky_ok=True)
    os.chown(place / "a", OTHER, OTHER)
    assert "belongs to" in refused(place / "a", sticky_ok=True).message, "its owner may take away anything"


@pytest.mark.invariant("S9")
def test_links_are_followed_and_both_ends_are_asked(place: Path) -> None:
    (place / "links").mkdir()
    (place / "links/abs").symlink_to(place / "a/b")
    (place / "links/rel").symlink_to("../a/../a/b")
    for link in ("abs", "rel"):
        owned.require(str(place / "links" / link / "c"), "thing")
    (place / "links").chmod(0o777)
    for link in ("abs", "rel"):
        assert f"{place}/links may be written" in refused(place / "links" / link / "c").message
    (place / "links").chmod(0o1777)
    owned.require(str(place / "links/abs/c"), "thing")
    os.lchown(place / "links/abs", OTHER, OTHER)
    assert f"links/abs belongs to uid {OTHER}" in refused(place / "links/abs/c").message
    (place / "a").chmod(0o775)
    assert f"{place}/a may be written" in refused(place / "links/rel/c").message
    (place / "round").symlink_to("round")
    assert "links" in refused(place / "round").message


@pytest.mark.invariant("S9")
def test_a_magic_link_and_what_is_not_there(place: Path) -> None:
    with open(place / "a/b/c") as f:
        os.unlink(place / "a/b/c")
        (place / "a/b/c (deleted)").write_text("another")
        assert "does not lead where" in refused(f"/proc/self/fd/{f.fileno()}").message
    owned.require(str(place / "a/none/further"), "thing", missing_ok=True)
    assert "no such file" in refused(place / "a/none/further").message
    (place / "a").chmod(0o777)
    refused(place / "a/none/further", missing_ok=True)


@pytest.mark.invariant("S9")
def test_the_account_that_a_daemon_runs_as_counts_beside_root(place: Path) -> None:
    place.chmod(0o755)
    for above in place.parents:
        if above.stat().st_mode & 0o005 != 0o005:
            above.chmod(0o755)  # pytest's own
    script = f"from pact.host import owned; owned.require({str(place / 'a/b/c')!r}, 'thing')"
    who = [
        "setpriv",
        f"--reuid={OTHER}",
        f"--regid={OTHER}",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        sys.executable,
        "-c",
        script,
    ]
    for owner, code in ((0, 0), (OTHER, 0), (OTHER + 1, 1)):
        os.chown(place / "a/b", owner, 0)
        done = subprocess.run(
            who,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == code, done.stderr
    assert f"belongs to uid {OTHER + 1}" in done.stderr


# -- who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_a_state_directory_that_others_can_turn_is_neither_made_nor_used(place: Path) -> None:
    (place / "a").chmod(0o777)
    for state in ("a/b", "a/new"):
        with pytest.raises(ConfigError, match=f"state directory: {place}/a may be written by everybody"):
            take_state_dir(str(place / state))
    assert not (place / "a/new").exists() and not (place / "a/b/lock").exists()
    (place / "a").chmod(0o755)
    (place / "a/b/journal.db").write_text("")
    (place / "a/b/journal.db").chmod(0o666)
    with pytest.raises(ConfigError, match=r"journal\.db may be written by everybody"):
        take_state_dir(str(place / "a/b"))
    old = os.umask(0)
    try:
        os.close(take_state_dir(str(place / "a/x/y")))
    finally:
        os.umask(old)
    assert [stat.S_IMODE((place / p).stat().st_mode) for p in ("a/x", "a/x/y")] == [0o700, 0o700]


@pytest.mark.invariant("S9")
def test_keys_that_others_can_turn_are_not_used(place: Path) -> None:
    secret = keys.keygen("n1", str(place / "a/b"))[1]
    authorized = place / "a/b/authorized.toml"
    authorized.write_text("")
    keys.load_own(secret)
    auth.read(str(authorized))
    (place / "a").chmod(0o775)
    with pytest.raises(ConfigError, match=f"{place}/a may be written by the group root"):
        keys.load_own(secret)
    with pytest.raises(ConfigError, match=f"{place}/a may be written by the group root"):
        auth.read(str(authorized))


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("url", ["sqlite://{}/a/b/c", "sqlite:///{}/a/b%2Fc", "etcd://h:1?ca={}/a/b/c", "etcd://h:1"])
def test_the_files_of_a_roots_log_are_asked_about(place: Path, url: str) -> None:
    settings = AggregatorConfig(
        journal=url.format(place), journal_key=str(place / "a/b/c") if "?" not in url and "etcd" in url else ""
    )
    require_owned(settings)
    for part in ("a", "a/b/c"):
        before = (place / part).stat().st_mode
        (place / part).chmod(before | 0o020)
        with pytest.raises(ConfigError, match=f"journal: {place / part} may be written"):
            require_owned(settings)
        (place / part).chmod(before)


@pytest.mark.invariant("S9")
def test_declared_files_and_the_contents_they_name_are_asked_about(place: Path) -> None:
    (place / "a/b/c").chmod(0o664)
    (place / "d.toml").write_text(f'[file."/etc/x"]\nsource = "{place}/a/b/c"\n')
    vet = lambda path: owned.require(path, "declared state")  # noqa: E731
    with pytest.raises(ConfigError, match="a/b/c may be written by the group"):
        read_files([str(place / "*.toml")], Ignore([]), vet)
    (place / "a/b/c").chmod(0o644)
    assert set(read_files([str(place / "*.toml")], Ignore([]), vet).resources) == {"file:/etc/x"}
    (place / "d.toml").chmod(0o666)
    with pytest.raises(ConfigError, match=r"d\.toml may be written by everybody"):
        read_files([str(place / "*.toml")], Ignore([]), vet)


# -- the control socket ---------------------------------------------------------------------------------------------

#: In a directory of one's own: whatever appears under the socket's name is at once a link to something of root's.
RACER = """
import os, sys
name, victim = sys.argv[1:]
os.chdir(os.path.dirname(name))
name = os.path.basename(name)
os.symlink(victim, "link")
print("ready", flush=True)
while True:
    try:
        os.rename(name, "taken")
    except FileNotFoundError:
        continue
    try:
        os.rename("link", name)
        os.symlink(victim, "link")
    except OSError:
        pass
"""


@pytest.fixture
def racer(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The socket's path in a directory of another user's, who turns it all the time, and the file he is after."""
    top = tmp_path / "theirs"
    top.mkdir()
    os.chown(top, OTHER, OTHER)
    victim = tmp_path / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    path = str(top / "s")
    process = subprocess.Popen(
        [
            "setpriv",
            f"--reuid={OTHER}",
            f"--regid={OTHER}",
            "--clear-groups",
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            sys.executable,
            "-c",
            RACER,
            path,
            str(victim),
        ],
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield path, victim
    assert process.poll() is None, "it gave up"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.invariant("S9")
def test_nobody_turns_the_chmod_of_the_socket_to_a_file_of_roots(racer: tuple[str, Path]) -> None:
    path, victim = racer
    for _ in range(300):
        with pytest.raises(ConfigError, match=f"belongs to uid {OTHER}"):
            listen(path)
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600
        assert not os.path.lexists(path), "nothing is made there"


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_socket_directory_that_others_may_write_is_refused_unless_it_is_sticky(place: Path, mode: int) -> None:
    (place / "a").chmod(mode)
    with pytest.raises(ConfigError, match="directory of the control socket"):
        listen(str(place / "a/s"))
    (place / "a").chmod(0o1777)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(place / "a/s"))  # left by somebody
        os.chown(place / "a/s", OTHER, OTHER)
    listen(str(place / "a/s")).close()
    found = (place / "a/s").lstat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o666)


def test_everybody_reaches_the_socket_whatever_the_umask(place: Path) -> None:
    old = os.umask(0o077)
    try:
        listen(str(place / "run/pact/s")).close()
    finally:
        os.umask(old)
    assert [stat.S_IMODE((place / p).stat().st_mode) for p in ("run", "run/pact", "run/pact/s")] == [
        0o755,
        0o755,
        0o666,
    ]


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("link", ["", "/dev/zero"])
def test_what_is_no_file_is_not_opened_where_a_daemon_reads_one(place: Path, link: str) -> None:
    """Whoever can put a FIFO there would have the daemon wait at it for ever, before it asks whose the place is."""
    path = place / "a/b/x.toml"
    path.symlink_to(link) if link else os.mkfifo(path)
    reads: list[Callable[[], object]] = [
        lambda: auth.read(str(path)),
        lambda: fields.fill(str(path), {}, None),
        lambda: keys.load(str(path)),
        lambda: file_toml.content({"source": str(path)}, ""),
    ]
    for read in reads:
        ends = list[BaseException]()

        def tried(read: Callable[[], object] = read, ends: list[BaseException] = ends) -> None:
            try:
                read()
            except BaseException as exc:
                ends.append(exc)

        thread = threading.Thread(target=tried, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "it waits"
        assert ends and isinstance(ends[0], ConfigError | ValueError), ends
