"""Keys, authorised keys, and the configuration of aggregators and clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pact.cluster import auth, clientconfig, config, nodesets
from pact.core.tree.directory import Peer
from pact.errors import ConfigError, UsageError
from pact.host import descriptors
from pact.net import keys

PUBLIC = "0" * 40
OTHER = "1" * 40


def entry(public: str = PUBLIC, name: str = "n1", role: str = "node") -> str:
    return f'[[key]]\npublic = "{public}"\nname = "{name}"\nrole = "{role}"\n'


def test_a_key_pair_is_written_once_and_read_back(tmp_path: Path) -> None:
    public_path, secret_path, public = keys.keygen("n1", str(tmp_path))
    assert Path(public_path).read_text() == public + "\n" and auth.is_public(public)
    assert os.stat(secret_path).st_mode & 0o777 == 0o600
    pair = keys.load(secret_path)
    assert pair.public == public and pair.secret not in repr(pair)
    before = Path(secret_path).read_text()
    with pytest.raises(UsageError, match="exists already"):
        keys.keygen("n1", str(tmp_path))
    os.unlink(public_path)
    with pytest.raises(UsageError, match="exists already"):
        keys.keygen("n1", str(tmp_path))
    assert Path(secret_path).read_text() == before and not Path(public_path).exists()


@pytest.mark.invariant("T10")
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    _, path, _ = keys.keygen("n1", str(tmp_path))
    for mode in (0o640, 0o604, 0o660):
        os.chmod(path, mode)
        with pytest.raises(ConfigError, match="may be read by others"):
            keys.load(path)
    os.chmod(path, 0o600)
    Path(path).write_text("short")
    with pytest.raises(ConfigError, match="holds no secret key"):
        keys.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        keys.load(str(tmp_path / "none"))
    with pytest.raises(ConfigError):
        keys.load(str(tmp_path))


def test_keygen_on_the_command_line(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "pact.cli.main", "keygen"]
    cwd = Path(__file__).parent.parent
    done = subprocess.run(
        [*run, "n7", "--dir", str(tmp_path / "k")], check=False, capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "k" / "n7.key").read_text().strip() in done.stdout
    assert (tmp_path / "k" / "n7.secret").read_text().strip() not in done.stdout
    again = subprocess.run(
        [*run, "n7", "--dir", str(tmp_path / "k")], check=False, capture_output=True, text=True, cwd=cwd
    )
    assert again.returncode == 2 and "exists already" in again.stderr
    assert subprocess.run([*run, "../n7"], check=False, capture_output=True, cwd=cwd).returncode == 2


def test_authorised_keys_say_who_and_where() -> None:
    table = auth.parse(entry() + entry(OTHER, "olga", "ops"), "a.toml")
    assert table.peer(PUBLIC) == Peer("n1", "node", PUBLIC)
    assert table.may_connect(PUBLIC, auth.TREE) and not table.may_connect(PUBLIC, auth.EVENTS)
    assert table.may_connect(OTHER, auth.EVENTS) and not table.may_connect(OTHER, "elsewhere")
    assert not table.may_connect("2" * 40, auth.TREE)
    assert auth.parse("", "a.toml").peers == {}
    newer = auth.parse(entry(OTHER, "olga", "admin"), "a.toml")
    assert table.removed(newer) == [PUBLIC, OTHER]  # gone, and changed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (entry("short"), "a.toml:1: public is not a key"),
        (entry() + entry(OTHER, "a b"), "a.toml:5: the name 'a b'"),
        (entry() + entry(OTHER, "n2", "king"), "a.toml:5: unknown role 'king'"),
        (entry() + entry(), "a.toml:5: the key of n1 stands here again"),
        (entry() + entry(OTHER, "n1", "admin"), "a.toml:5: n1 is a node above"),
        (entry(name="_root"), "a.toml:1: the name '_root'"),
        (entry() + 'colour = "red"\n', "unknown field 'colour'"),
        ('[[key]]\nname = "n1"\nrole = "node"\n', "public is missing"),
        ("[[key]]\nname = \n", "a.toml:2"),
        ("[keys]\n", "unknown 'keys'"),
        ("key = 3\n", r"written \[\[key\]\]"),
        ("key = [3]\n", "a key is a table"),
    ],
)
def test_what_is_wrong_with_authorised_keys_is_said_with_its_line(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        auth.parse(text, "a.toml")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "aggregator.toml"
    path.write_text(text)
    return str(path)


GOOD = '[aggregator]\nname = "agg1"\n[keys]\nsecret = "/k"\n'


def test_the_contracts_example_is_read(tmp_path: Path) -> None:
    text = (
        '[aggregator]\nname = "agg1"\ncluster = "default"\nrack = "r1"\ntree = "tcp://127.0.0.1:7417"\n'
        'events = "tcp://127.0.0.1:7418"\nreplay = "tcp://127.0.0.1:7419"\nhttp = "127.0.0.1:7420"\nparents = []\n'
        '[journal]\nurl = "etcd://h1:2379,h2:2379,h3:2379"\n'
        '[keys]\nsecret = "/etc/pact/keys/agg1.secret"\nauthorized = "/etc/pact/authorized_keys.toml"\n'
    )
    settings = config.load(write(tmp_path, text))
    assert (settings.name, settings.rack, settings.parents) == ("agg1", "r1", [])
    defaults = config.load(write(tmp_path, GOOD))
    assert all("127.0.0.1" in u for u in (defaults.tree, defaults.events, defaults.replay, defaults.http))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[aggregator]\n", "name is missing"),
        ('[aggregator]\nname = "a"\n', "secret is missing"),
        (GOOD.replace("agg1", "_root"), "name must be"),
        (GOOD + 'secrte = "x"\n', "unknown key 'secrte'"),
        (GOOD.replace("[keys]", 'tree = "udp://x:1"\n[keys]'), 'must be "tcp://HOST:PORT"'),
        (GOOD.replace("[keys]", 'parents = [{url = "tcp://a:1", key = "x"}]\n[keys]'), "without a key"),
        (
            GOOD.replace("[keys]", f'parents = [{{url = "tcp://a:1", key = "{PUBLIC}", k = 1}}]\n[keys]'),
            "unknown key 'k'",
        ),
        (GOOD.replace("[keys]", "children = 9000\n[keys]"), "from 1 to 8000"),
        (GOOD + '[journal]\nurl = "mysql://x"\n', "sqlite:///PATH"),
        (GOOD.replace("[keys]", 'parents = [{url = "tcp://a:1"}]\n[keys]'), 'without a key: add key = "..."'),
        (
            GOOD.replace("[keys]", 'parents = [{url = "tcp://a:1", ky = "x"}]\n[keys]'),
            "unknown key 'ky'; did you mean 'key'",
        ),
    ],
)
def test_what_is_wrong_with_an_aggregators_file_is_said(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("journal", "says"),
    [
        ('lease = "5"', "lease means nothing to SQLite"),
        ('url = "sqlite:///x.db?lease=5"', "lease means nothing to SQLite"),
        ('url = "etcd://127.0.0.1:2379"\nlease = "99"', "not between 2 and 60"),
        ('url = "etcd://127.0.0.1:2379"\ncert = "/c"', "cert and key belong together"),
        ('url = "etcd://127.0.0.1:99999"', "is no host:port"),
        ('url = "etcd://127.0.0.1:2379?leas=5"', "'leas' is none of"),
    ],
)
def test_a_root_whose_log_can_never_be_opened_ends_at_once(tmp_path: Path, journal: str, says: str) -> None:
    """It would try again for ever, as it does while a disk is full or etcd is away."""
    keys.keygen("agg1", str(tmp_path))
    (tmp_path / "authorized_keys.toml").write_text("")
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [s.getsockname()[1] for s in held]
    for one in held:
        one.close()
    path = write(
        tmp_path,
        f'[aggregator]\nname = "agg1"\ntree = "tcp://127.0.0.1:{ports[0]}"\n'
        f'events = "tcp://127.0.0.1:{ports[1]}"\nreplay = "tcp://127.0.0.1:{ports[2]}"\nhttp = ""\n'
        f'[journal]\n{journal}\n[keys]\nsecret = "{tmp_path}/agg1.secret"\n'
        f'authorized = "{tmp_path}/authorized_keys.toml"\n',
    )
    done = subprocess.run(
        [sys.executable, "-m", "pact.cli.main", "aggregator", "--config", path],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.invariant("T4")
def test_an_aggregator_that_is_its_own_parent_is_refused(tmp_path: Path) -> None:
    parents = f'parents = [{{url = "tcp://a:1", key = "{PUBLIC}"}}]\n[keys]'
    settings = config.load(write(tmp_path, GOOD.replace("[keys]", parents)))
    config.refuse_own_key(settings, OTHER)
    with pytest.raises(ConfigError, match="own key"):
        config.refuse_own_key(settings, PUBLIC)


def test_client_defaults_come_from_the_first_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    second.write_text('via = "tcp://root:7417"\nserver_key = "' + PUBLIC + '"\nkey = "me.secret"\n')
    found = clientconfig.load_client((str(first), str(second)))
    assert (found.via, found.server_key, found.key) == ("tcp://root:7417", PUBLIC, str(tmp_path / "me.secret"))
    assert found.directory == str(tmp_path)
    first.write_text('[client]\nvia = "tcp://other:7417"\n')
    assert clientconfig.load_client((str(first), str(second))).via == "tcp://other:7417"
    first.write_text("via = 7\n")
    with pytest.raises(ConfigError, match="via must be"):
        clientconfig.load_client((str(first),))
    assert clientconfig.load_client(()).via == ""


def test_what_could_be_a_servers_key_is_one_and_never_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in ("here", "etc"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "root.key").write_text(OTHER + "\n")
        (tmp_path / directory / PUBLIC).write_text(OTHER + "\n")
    (tmp_path / "etc" / "root.key").write_text(PUBLIC + "\n")
    monkeypatch.chdir(tmp_path / "here")
    etc = str(tmp_path / "etc")
    assert keys.server_key(PUBLIC) == keys.server_key(PUBLIC, etc) == PUBLIC
    assert keys.server_key("./root.key") == keys.server_key(str(tmp_path / "here" / "root.key")) == OTHER
    assert keys.server_key("root.key", etc) == keys.server_key("../etc/root.key", etc) == PUBLIC
    with pytest.raises(UsageError, match="not a key of 40 characters") as caught:
        keys.server_key("root.key")
    assert "./NAME.key" in caught.value.hint
    os.mkfifo("pipe")
    Path("empty").write_text("x" * 41)
    for bad in ("./none", "./pipe", "./empty", etc, "./a\0b", "./ä"):
        with pytest.raises(UsageError, match=r"server's key|does not hold"):
            keys.server_key(bad)


def test_a_secret_key_that_is_given_for_its_file_is_not_printed() -> None:
    with pytest.raises(ConfigError, match="not the secret key itself") as caught:
        keys.load(OTHER)
    assert OTHER not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ('server-key = "x"\n', ":1: unknown key 'server-key'", "did you mean 'server_key'?"),
        ('key = "me"\nserver = []\n', ":2: unknown key 'server'", "did you mean 'servers'?"),
        ('[client]\nserver-key = "x"\n', ":2: unknown key 'server-key' in [client]", "did you mean 'server_key'?"),
        ("[clint]\n", ":1: unknown section [clint]", "did you mean 'client'?"),
        ('servers = [{url = "tcp://a:1"}]\n', ":1: servers has an entry for tcp://a:1 without a key", ""),
    ],
)
def test_what_is_wrong_with_a_clients_file_is_said_with_what_was_meant(
    tmp_path: Path, text: str, says: str, hint: str
) -> None:
    path = tmp_path / "client.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        clientconfig.load_client((str(path),))
    assert says in caught.value.message and caught.value.hint == hint


@pytest.mark.parametrize(
    "text",
    [
        "@x';id;'",
        "@$(id)",
        "@x`id`",
        "@x|id",
        "@x/y/e",
        "@-rf",
        "@s:-x",
        "@a b",
        "@a\nb",
        "n1;id",
        "n${IFS}",
        "n%s",
        "n\0",
        "٣",
        "@x:[-4]",
        "@[1,-4]",
        ":[-4]",
        "n[1-99771-99724171]",
        "n[1,,2]",
        "n[1-2-3]",
        "n[1-99999[1-2]",
        "n[1-2]]",
        "n[1-999999999999/99999999999]",
        "n99[0-99999]",
        "a[1-2]n9[0-99999]",
    ],
)
def test_a_node_set_cannot_carry_a_command(text: str) -> None:
    """ClusterShell hands the names of groups to a shell, and whoever may look may name one."""
    for expand in (nodesets.parse, nodesets.NodeSets().expand):
        with pytest.raises(UsageError):
            expand(text)


def test_names_are_never_taken_for_groups_when_they_are_folded() -> None:
    assert nodesets.fold(["@all", "n1", "n2", "[x", "n%s"]) == "n[1-2],@all,[x,n%s"


def test_a_node_set_is_counted_in_all() -> None:
    with pytest.raises(UsageError):
        nodesets.NodeSets().expand(",".join(f"n{i}x[1-99999]" for i in range(9_000)))
    with pytest.raises(UsageError):
        nodesets.NodeSets().expand("n[1-" + "9" * 5000 + "]")


def test_names_with_many_numbers_fold_quickly_and_mean_the_same() -> None:
    names = [f"x{1000 + i // 512}c{i // 64 % 8}s{i // 4 % 16:02}b{i // 2 % 2}n{i % 2}" for i in range(0, 9_000, 3)]
    began = time.monotonic()
    text = nodesets.fold(names)
    assert time.monotonic() - began < 1.0
    assert set(nodesets.NodeSets().expand(text)) == set(names)
    odd = [f"a{i}b0c{n}" for i in range(300) for n in (7, 8, 9, 10, 11)]
    assert nodesets.fold(odd) == "a[0-299]b0c[7-11]"
    assert set(nodesets.NodeSets().expand(nodesets.fold(odd))) == set(odd)
    odd = [f"a{i}b0c{n}" for i in range(300) for n in ("08", "09", "10", "9", "10x")]
    assert set(nodesets.NodeSets().expand(nodesets.fold(odd))) == set(odd)


@pytest.mark.parametrize(
    ("text", "count"), [("n3[0-5]", 6), ("n3[000-100]", 101), ("n3[08-12]", 5), ("n[8-12]5", 5), ("n3[1,10]", 2)]
)
def test_a_digit_beside_a_range_means_as_many_names_as_are_counted(text: str, count: int) -> None:
    assert len(nodesets.NodeSets().expand(text)) == count


@pytest.mark.parametrize("text", ["01-0n[0-5209],001-0n[0-52090]", "a1b[0-9999],a2b[5-9999],a3b[0-9998],a1b[0-9999]"])
def test_parts_with_several_numbers_are_joined_in_time(text: str) -> None:
    began_s = time.process_time()
    names = nodesets.NodeSets().expand(text)
    assert time.process_time() - began_s < 1.5 and len(names) == len(set(names)) in (57_301, 29_994)


def test_parts_that_are_joined_here_are_the_same_set() -> None:
    for text in ("r[1-3]n[1-4],r[2-5]n[3-9],x", "a1b2,a[1-2]b[1-3],c[01-12]", "r1n1,r1n1"):
        assert set(nodesets.NodeSets().expand(text)) == set(nodesets.parse(text))
    with pytest.raises(UsageError):
        nodesets.NodeSets().expand("r1n1,@all")


def test_many_names_with_two_numbers_are_folded_in_time() -> None:
    """A viewer asks for nodes that are not there, and the root names them."""
    names = nodesets.NodeSets().expand("n[1-300]x[1-300]")
    began_s = time.process_time()
    text = nodesets.fold(names)
    assert time.process_time() - began_s < 1.5 and text == "n[1-300]x[1-300]"
    assert set(nodesets.NodeSets().expand(text)) == set(names)
    assert nodesets.fold(names[:900]) == "n[1-3]x[1-300]"


def test_the_budget_of_a_rollback_is_configured(tmp_path: Path) -> None:
    text = GOOD + "[groups]\nwave = 7\nwaves = 3\nfailures_percent = 10\nfailures = 9\n"
    limits = config.load(write(tmp_path, text)).limits
    assert (limits.wave, limits.waves_at_once, limits.breaker_share, limits.breaker_least) == (7, 3, 0.1, 9)


def test_open_descriptors_are_counted_however_the_kernel_tells() -> None:
    before = descriptors.in_use()
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    try:
        assert descriptors.in_use() == before + 100
        assert abs(len(descriptors._used()) - descriptors.in_use()) <= 1  # the listing itself has one
    finally:
        for fd in held:
            os.close(fd)
