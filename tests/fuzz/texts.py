"""Texts from outside: JSON, TOML of every file, authorised keys, node sets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import nasty
import orjson

from fuzz.kit import Target, scratch
from pact import limits
from pact._fast import members_in, members_of, reference
from pact.agent.config import load as load_agent
from pact.cluster import auth, nodesets
from pact.cluster.clientconfig import load_client
from pact.cluster.config import load as load_aggregator
from pact.core import strict
from pact.declared.toml import Ignore, export, parse_text, quote, toml_value
from pact.errors import ConfigError, DeclaredError, UsageError

MOST: Final = 1 << 20
ROOT: Final = Path(__file__).resolve().parents[2]


def nasties(most: int = 3000) -> list[bytes]:
    return [t for t in (*nasty.REFUSED.values(), *nasty.FINE.values()) if len(t) <= most]


def json(data: bytes) -> None:
    try:
        value = strict.loads(data, MOST)
    except strict.NotStrictError as exc:
        assert len(str(exc)) < 200
        return
    assert reference.members_in(data, limits.LEVELS_MAX) == members_in(data, limits.LEVELS_MAX)
    assert members_of(value) == reference.members_of(value)
    written = orjson.dumps(value)
    assert strict.loads(written, 40 * MOST) == value and strict.readable(written)
    assert strict.loads(memoryview(data), MOST) == strict.loads(bytearray(data), MOST) == value
    assert len(strict.shown(value)) <= max(strict.SHOWN_MAX + 2, 400) * 10
    repr(value)


def toml(data: bytes) -> None:
    try:
        table = strict.toml(data.decode())
    except UnicodeDecodeError:
        return
    except strict.NotStrictError as exc:
        assert str(exc)
        return
    for value in table.values():
        if not _has_time(value):
            assert strict.toml(f"a = {toml_value(value)}")["a"] == value


def _has_time(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_time, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, str | int | float)


# -- files --------------------------------------------------------------------------------------------------------------

NOBLOB: Final[dict[str, bytes]] = {}


def declared(data: bytes) -> None:
    """What is read can be written, and is read back the same."""
    try:
        found = parse_text(data, "d.toml", "/nonexistent", Ignore())
    except DeclaredError as exc:
        assert exc.path == "d.toml" and exc.line >= 0
        return
    assert not found.sources
    text = "".join(export(found.resources.items(), found.blobs.get))
    again = parse_text(text.encode(), "e.toml", "/nonexistent", Ignore())
    assert again.resources == found.resources, text


FILE: Final = os.path.join(scratch(), "f")


def file_of(load: Callable[[], Any]) -> Callable[[bytes], None]:
    """A configuration: refused by its file's name, or an object of which every field has the type of its default."""

    def run(data: bytes) -> None:
        with open(FILE, "wb") as f:
            f.write(data)
        try:
            config = load()
        except ConfigError as exc:
            assert exc.message.startswith(FILE), exc.message
            return
        for f_ in fields(config):
            value, kind = getattr(config, f_.name), str(f_.type)
            if kind in ("str", "int", "bool", "float"):
                assert type(value).__name__ in (kind, "int" if kind == "float" else kind), (f_.name, value)
        if hasattr(config, "settings"):
            orjson.dumps(config.settings().to_json())

    return run


def keys(data: bytes) -> None:
    try:
        found = auth.parse(data.decode(), "k.toml")
    except UnicodeDecodeError:
        return
    except ConfigError as exc:
        assert exc.message.startswith("k.toml")
        return
    for key, peer in found.peers.items():
        assert peer.key == key and auth.NAME.fullmatch(peer.name) and peer.role in auth.ROLES
    text = "".join(
        f"[[key]]\nname = {quote(p.name)}\nrole = {quote(p.role)}\npublic = {quote(p.key)}\n"
        for p in found.peers.values()
    )
    assert auth.parse(text, "k.toml").peers == found.peers


def nodeset(data: bytes) -> None:
    """A set is bounded, and folded it is the same set. Nobody's text reaches a shell: ``@`` is refused."""
    try:
        text = data.decode()
        names = nodesets.NodeSets().expand(text)
    except UnicodeDecodeError:
        return
    except UsageError as exc:
        assert len(exc.message) < 1000
        return
    assert 0 < len(names) <= nodesets.NODES_MAX
    if len(names) < 2000 and not any(re.search(r"[0-9]{18}", n) for n in names):  # no range has longer numbers
        folded = nodesets.fold(names)
        if len(folded) > nodesets.LIBRARY_MAX:  # such as every second of some odd names: refused with a reason
            return
        assert set(nodesets.NodeSets().expand(folded)) == set(names), folded


# -- seeds --------------------------------------------------------------------------------------------------------------


def _fenced(*names: str) -> Iterator[bytes]:
    """The TOML that the documentation shows."""
    for name in names:
        parts = (ROOT / name).read_text().split("```")
        yield from (p[p.index("\n") + 1 :].encode() for p in parts[1::2] if p.startswith("toml"))


def _packaged(*names: str) -> Iterator[bytes]:
    for name in names:
        yield from (p.read_bytes() for p in sorted((ROOT / "packaging").rglob(name)))


def toml_seeds() -> Iterator[bytes]:
    yield from (b"a = " + t for t in nasties(1500))
    yield from _fenced("README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))))
    yield b"a = 1979-05-27T07:32:00Z\nb = 1979-05-27\nc = 07:32:00\nd = 0x7f\ne = 1e3\nf = '''\nx'''\n[[t]]\n[t.u]\nv = {w = [1]}\n"


def declared_seeds() -> Iterator[bytes]:
    yield from toml_seeds()
    yield (
        b'[sysctl]\nkernel.randomize_va_space = 2\n"vm.swappiness" = {value = 1, consumers = ["exec:a"], weight = 2.0}\n'
        b'[file."/etc/a"]\ncontent = "x\\n"\nmode = "0644"\nowner = "root"\n[file."/etc/l"]\nlink = "/etc/a"\n'
        b'[file."/etc/d"]\ntype = "directory"\n[module]\nzram = {loaded = true, parameters = {num_devices = 2}}\n'
        b'[mount."/mnt/x"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["size=1m", "ro"]\nrequires = ["module:zram"]\n'
        b'[track]\n"file:/etc/cron.d/**" = "enforce"\n"sysctl:net.*" = "report"\n'
    )
    for kind in (b"sysctl", b"file", b"module", b"mount", b"track", b"service"):
        yield from (b"[" + kind + b"]\n'/a.b' = " + t + b"\n" for t in nasties(200))


def config_seeds() -> Iterator[bytes]:
    yield from _packaged("*.toml")
    yield from _fenced("README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))))
    yield (
        b'[node]\nname = "n1"\n[window]\nbase = "15m"\nfloor = "1m"\nsensitivity = 2.0\n[drift]\nignore = ["file:/x/**"]\n'
        b'[drift.weights]\nkernel = 2\n[observe]\ncpus = [0, 1]\nrescan = "5s"\nfanotify = true\n[state]\ndir = "/s"\n'
        b'file_limit = "4M"\nkeep = "30d"\n[cluster]\nrack = "r1"\n[keys]\nsecret = "k"\n'
    )
    yield (
        b'[aggregator]\nname = "a1"\ntree = "tcp://0.0.0.0:7417"\nhttp = "127.0.0.1:7420"\nchildren = 9\nbuffer = "64M"\n'
        b'[[aggregator.parents]]\nurl = "tcp://b:7417"\nkey = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"\nrack = "r"\n'
        b'[journal]\nurl = "etcd://e:2379/p"\nkeep = 1000\n[groups]\nwave = 10\nanswer = "10s"\n[keys]\nsecret = "k"\n'
    )
    yield b'via = "tcp://a:7417"\nserver_key = "k"\nkey = "ann.secret"\nservers = [{url = "tcp://b:7417", key = "k"}]\n'
    yield b'[client]\nvia = "tcp://a:7417"\nkey = "ann.secret"\n'
    for head in (b"[node]\nname = ", b"[window]\nbase = ", b"[drift]\nignore = ", b"[aggregator]\nname = ", b"via = "):
        yield from (head + t + b"\n" for t in nasties(200))


def key_seeds() -> Iterator[bytes]:
    one = b'[[key]]\nname = "%b"\nrole = "%b"\npublic = "rq:rM>}U?@Lns47E1%%kR.o@n%%FcmmsL/@{H8]yf7"\n'
    for role in auth.ROLES:
        yield one % (b"n1", role.encode())
    yield one % (b"n1", b"node") + one % (b"n1", b"ops")
    yield from (b"[[key]]\nname = " + t for t in nasties(200))


def set_seeds() -> Iterable[bytes]:
    return [
        b"n1",
        b"n[1-3]",
        b"n[001-128/2]",
        b"n[1-3],m[4-5]!n2",
        b"n[1-9]&n[3-20]",
        b"n[1-3]^n[2-5]",
        b"@all",
        b"*",
        b"n[1-99999999999]",
        b"n[1-5]x[0-7]b",
        b"x1000c0s0b0n[0-1]",
        b"n[9-1]",
        b"n[1-3",
        b"n[1-2/0]",
        b"",
        b" ",
        b"n[1,3,5-7]-ib",
        b"a,b,c",
        b"n1,n1",
        b"[1-4]",
        b"n[-3]",
        b"n[1-3]y",
        b"n3[0-5]",
        b"n3[00-12]x[1-2]",
        b"n[8-12]5",
        b"n[0-1][0-1]",
        b"n[\xd9\xa1-\xd9\xa3]",
    ]


WORDS: Final = [
    b"[sysctl]\n",
    b"[file.",
    b"[mount.",
    b"[module]\n",
    b"[track]\n",
    b"requires",
    b"consumers",
    b"weight",
    b"content",
    b"source",
    b"options",
    b'"""',
    b"'''",
    b"1979-05-27T07:32:00Z",
    b"\\u0000",
    b"inf",
    b"\r\n",
]
SECTIONS: Final = [
    f"[{s}]\n".encode()
    for s in (
        "node",
        "state",
        "control",
        "declared",
        "mode",
        "window",
        "drift",
        "observe",
        "rollback",
        "access",
        "hooks",
        "cluster",
        "keys",
        "journal",
        "groups",
        "aggregator",
        "client",
        "drift.weights",
    )
]
TARGETS: Final = {
    t.name: t
    for t in (
        Target(
            "json", json, nasties, [b"\\u0000", b"\\ud800", b"18446744073709551615", b"1e308", b"null", b"true", b'":']
        ),
        Target("toml", toml, toml_seeds, WORDS),
        Target("declared", declared, declared_seeds, WORDS),
        Target("agent_toml", file_of(lambda: load_agent(FILE)), config_seeds, SECTIONS),
        Target("aggregator_toml", file_of(lambda: load_aggregator(FILE)), config_seeds, SECTIONS),
        Target(
            "client_toml",
            file_of(lambda: load_client((FILE,))),
            config_seeds,
            [b"servers", b"server_key", b"[client]\n"],
        ),
        Target("keys", keys, key_seeds, [b"[[key]]\n", b"public", b"role", *(r.encode() for r in auth.ROLES)]),
        Target("nodeset", nodeset, set_seeds, [b"[1-", b"/2]", b"!", b"&", b"^", b"@", b"],", b"0"], 1024),
    )
}
