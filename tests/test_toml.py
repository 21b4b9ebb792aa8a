"""Declared state as TOML: read with file and line, written so that it reads back the same, and never a traceback."""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pact.declared.toml import DeclaredSet, Ignore, export, parse_text, quote, read_file, read_files, toml_value
from pact.errors import EXIT_USAGE, DeclaredError
from pact.model import Declared, encode_name
from pact.resources import KINDS

NOTHING = Ignore()

#: The four kinds' part of the contract's example.
EXAMPLE = """\
[sysctl]
"vm.swappiness" = 10
"net.core.somaxconn" = {value = 4096, consumers = ["exec:slurmstepd"]}
[file."/etc/chrony.conf"]
source = "files/chrony.conf"
owner = "root"
group = "root"
mode = "0644"
requires = ["mount:/etc"]
[mount."/scratch"]
source = "tmpfs"
fstype = "tmpfs"
options = ["size=64m", "noatime"]
[module]
nvidia_uvm = {state = "loaded", parameters = {uvm_perf_prefetch_enable = "1"}}
"""


def read(text: str | bytes, base_dir: str = "/nonexistent", ignore: Ignore = NOTHING) -> DeclaredSet:
    return parse_text(text.encode() if isinstance(text, str) else text, "d.toml", base_dir, ignore)


def refused(text: str | bytes, ignore: Ignore = NOTHING) -> DeclaredError:
    with pytest.raises(DeclaredError) as caught:
        read(text, ignore=ignore)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in caught.value.message
    return caught.value


def test_the_example_of_the_contract_is_read(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/chrony.conf").write_text("pool example.org\n")
    (tmp_path / "d.toml").write_text(EXAMPLE)
    declared = read_file(str(tmp_path / "d.toml"), NOTHING)
    digest = hashlib.sha256(b"pool example.org\n").hexdigest()
    assert declared.blobs == {digest: b"pool example.org\n"}
    assert declared.resources == {
        "sysctl:vm.swappiness": Declared({"value": "10"}),
        "sysctl:net.core.somaxconn": Declared({"value": "4096"}, consumers=("exec:slurmstepd",)),
        "file:/etc/chrony.conf": Declared(
            {"type": "file", "sha256": digest, "size": 17, "owner": "root", "group": "root", "mode": "0644"},
            requires=("mount:/etc",),
        ),
        "mount:/scratch": Declared({"source": "tmpfs", "fstype": "tmpfs", "options": ["noatime", "size=64m"]}),
        "module:nvidia_uvm": Declared({"state": "loaded", "parameters": {"uvm_perf_prefetch_enable": "1"}}),
    }


def test_sysctls_may_be_written_with_dotted_bare_keys() -> None:
    assert read("""
        [sysctl]
        vm.swappiness = 10
        net.ipv4.tcp_rmem = [4096, 87380, 6291456]
        net.core.somaxconn = {value = 5, weight = 2}
        [sysctl.kernel]
        pid_max = 99999
    """).resources == {
        "sysctl:vm.swappiness": Declared({"value": "10"}),
        "sysctl:net.ipv4.tcp_rmem": Declared({"value": "4096 87380 6291456"}),
        "sysctl:net.core.somaxconn": Declared({"value": "5"}, weight_n=2_000_000_000),
        "sysctl:kernel.pid_max": Declared({"value": "99999"}),
    }


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("[sysctl]\n\n'vm.x' = 1.5\n", 3, "sysctl:vm.x: a sysctl's value is a number or a string"),
        ("[sysctl]\nvm.x = 1\n'vm.x' = 2\n", 2, "sysctl:vm.x is declared twice"),
        ("[sysctl]\n'vm.a' = 1\n'vm/a' = 2\n", 0, "sysctl:vm.a is declared twice"),
        ("[file]\n[file.'/a']\ncontent = 1\n", 2, "file:/a: content must be a string"),
        ("\n[file.'/a']\ncontents = ''\n", 2, "unknown key 'contents'; did you mean 'content'"),
        ("[file.'/a/../b']\ncontent = ''\n", 1, "is not a normal path: write '/b'"),
        ("[file.'etc']\ncontent = ''\n", 1, "'etc' is not an absolute path"),
        ("[file]\n'/a' = {source = 'absent'}\n", 2, "source 'absent': No such file or directory"),
        ("[mount.'/m']\nfstype = 'x'\n", 1, "source is missing"),
        ("[module]\n'a b' = {}\n", 2, "'a b' is no module name"),
        ("[module]\na-b = {}\na_b = {}\n", 3, "module:a_b is declared twice"),
        ("[sysctls]\nx = 1\n", 1, "unknown kind 'sysctls'"),
        ("[zzz]\n", 1, "unknown kind 'zzz'"),
        ("sysctl = 1\n", 0, "[sysctl] must be a table"),
        ("[[file]]\n", 0, "[file] must be a table"),
        ("[sysctl]\n'vm.x' = {value = 1, requires = ['x']}\n", 2, "requires: 'x' is no resource id"),
        ("[sysctl]\n'vm.x' = {value = 1, requires = ['zzz:x']}\n", 2, "kind 'zzz' is not known"),
        ("[sysctl]\nvm.x = 1\nvm.x = 2\n", 3, "overwrite"),
        ("[sysctl\n", 1, "Expected"),
        ("a = " + "9" * 5000, 0, "digits"),
        ("a = " + "[" * 5000, 0, "deep"),
        ("[sysctl]\n'vm.x' = 1\n\udcff".encode("utf-8", "surrogateescape"), 3, "not UTF-8"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(text: str | bytes, line: int, why: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"d.toml:{line}: " if line else "d.toml")
    assert why in error.message
    assert not line or error.line == line


@pytest.mark.parametrize(
    "entry",
    [
        '"net.core.somaxconn" = {valu = 3}',
        '"net.core.somaxconn" = {vaule = 3}',
        '"vm.swappiness" = {wieght = 2}',
        "vm.swappiness = {valu = 3}",
        "[sysctl.vm.swappiness]\nvaule = 3",
        '"vm.swappiness" = {whatever = 3}',
        '"net/core/somaxconn" = {whatever = 3}',
    ],
)
def test_a_misspelt_key_of_a_sysctl_is_no_new_sysctl(entry: str) -> None:
    with pytest.raises(DeclaredError, match="unknown key"):
        read("[sysctl]\n" + entry)


def test_a_mistyped_kind_names_the_nearest() -> None:
    assert refused("[sysctls]\n").hint == "did you mean [sysctl]?"
    assert refused("[zzz]\n").hint == f"known kinds: {', '.join(sorted(KINDS))}"


def test_an_ignored_resource_is_an_error_that_names_the_pattern() -> None:
    for text, pattern in (
        ("[file.'/tmp/x']\ncontent = ''\n", "file:/tmp/**"),
        ("[file.'/proc/1']\ncontent = ''\n", "file:/proc/**"),
        ("[sysctl]\n'kernel.random.uuid' = 1\n", "sysctl:kernel.random.*"),
    ):
        error = refused(text)
        assert f"is ignored by the pattern {pattern!r}" in error.message
        assert "ignore" in error.hint
    assert "'file:/etc/m*'" in refused("[file.'/etc/mtab']\ncontent=''\n", Ignore(["file:/etc/m*"])).message


def test_patterns_of_the_operator_ignore_what_they_say() -> None:
    ignore = Ignore(["file:/etc/mtab", "sysctl:net.*", "file:/srv/**", "mount:/mnt/?"])
    assert ignore.match("file:/etc/mtab") == "file:/etc/mtab"
    assert ignore.match("file:/etc/mtab2") is None
    assert ignore.match("sysctl:net.ipv4.x") == "sysctl:net.*"
    assert ignore.match("file:/srv/a/b") == "file:/srv/**"
    assert ignore.match("file:/srv") is None
    assert ignore.match("file:/srvx/a") is None
    assert ignore.match("mount:/mnt/a") == "mount:/mnt/?"
    assert ignore.match("mount:/mnt/ab") is None


class TestFiles:
    def test_files_are_read_together_and_must_agree(self, tmp_path: Path) -> None:
        (tmp_path / "10.toml").write_text("[sysctl]\n'vm.a' = 1\n")
        (tmp_path / "20.toml").write_text("[sysctl]\n'vm.a' = 1\n'vm.b' = 2\n")
        assert set(read_files([f"{tmp_path}/*.toml"], NOTHING).resources) == {"sysctl:vm.a", "sysctl:vm.b"}
        (tmp_path / "30.toml").write_text("[sysctl]\n'vm.a' = 3\n")
        with pytest.raises(DeclaredError, match=r"30\.toml: sysctl:vm\.a is declared otherwise in .*20\.toml"):
            read_files([f"{tmp_path}/*.toml"], NOTHING)

    def test_a_pattern_may_match_nothing_but_a_name_must_exist(self, tmp_path: Path) -> None:
        assert read_files([f"{tmp_path}/*.toml"], NOTHING).resources == {}
        with pytest.raises(DeclaredError, match=r"absent\.toml: no such file"):
            read_files([f"{tmp_path}/absent.toml"], NOTHING)

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DeclaredError, match="Is a directory"):
            read_file(str(tmp_path), NOTHING)
        with pytest.raises(DeclaredError, match="No such file"):
            read_file(str(tmp_path / "absent"), NOTHING)

    def test_sources_start_at_the_declaring_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/content").write_text("x")
        (tmp_path / "a/d.toml").write_text("[file.'/x']\nsource = 'content'\n")
        assert read_file(str(tmp_path / "a/d.toml"), NOTHING).blobs == {hashlib.sha256(b"x").hexdigest(): b"x"}


# -- round trip -----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORD = st.text("abcxyz_", min_size=1, max_size=5)
PATH = st.lists(
    st.binary(min_size=1, max_size=6).filter(lambda b: not {0, 47} & set(b) and b not in (b".", b"..")),
    min_size=1,
    max_size=3,
).map(lambda parts: encode_name(b"/srv/" + b"/".join(parts)))
COMMON = st.fixed_dictionaries(
    {},
    optional={
        "requires": st.lists(PATH.map("mount:{}".format), min_size=1, max_size=2),
        "consumers": st.lists(st.sampled_from(["open", "none", "exec:a b", 'cgroup:/x"*']), min_size=1, max_size=2),
        "weight": st.floats(0.001, 1000),
        "severity": st.integers(1, 1000),
    },
)
CONTENT = st.one_of(
    TEXT.map(lambda t: {"content": t}),
    st.binary(max_size=20).map(lambda b: {"content_base64": base64.b64encode(b).decode()}),
    st.just({"type": "file"}),
    st.just({"type": "directory"}),
    TEXT.filter(lambda t: t and "\0" not in t and "%" not in t).map(lambda t: {"symlink": t}),
    st.just({"sha256": "ab" * 32, "size": 7}),
)
DRESS = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.sampled_from(["root", 0, "0", "no body"]),
        "group": st.just("root"),
        "mode": st.sampled_from(["0644", "4755", "0"]),
        "xattrs": st.dictionaries(
            WORD.map("user.{}".format), st.binary(max_size=4).map(lambda b: base64.b64encode(b).decode()), max_size=2
        ),
    },
)
FILES = st.one_of(
    st.tuples(CONTENT, DRESS, COMMON).map(
        lambda t: {k: v for k, v in (t[0] | t[1] | t[2]).items() if k != "mode" or "symlink" not in t[0]}
    ),
    COMMON.map(lambda c: {"type": "absent"} | c),
)
MOUNTS = st.one_of(
    st.tuples(
        st.fixed_dictionaries(
            {
                "source": WORD,
                "fstype": WORD,
                "options": st.lists(TEXT.filter(lambda t: t and not {",", "\0"} & set(t)), max_size=3),
            }
        ),
        COMMON,
    ).map(lambda t: t[0] | t[1]),
    st.just({"type": "absent"}),
)
ONE_LINE = TEXT.filter(lambda t: "\n" not in t.strip() and "\0" not in t)
SYSCTLS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), ONE_LINE, st.tuples(ONE_LINE, COMMON).map(lambda t: {"value": t[0]} | t[1])
)
MODULES = st.one_of(
    st.tuples(st.fixed_dictionaries({"parameters": st.dictionaries(WORD, TEXT, max_size=2)}), COMMON).map(
        lambda t: t[0] | t[1]
    ),
    st.just("loaded"),
    st.just("unloaded"),
)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "file": st.dictionaries(PATH, FILES, max_size=3),
        "mount": st.dictionaries(PATH, MOUNTS, max_size=2),
        "sysctl": st.dictionaries(st.tuples(WORD, WORD).map(".".join), SYSCTLS, max_size=3),
        "module": st.dictionaries(WORD, MODULES, max_size=2),
    },
)


def written(table: dict[str, dict[str, Any]]) -> str:
    return "".join(
        f"[{kind}]\n" + "".join(f"{quote(n)} = {toml_value(v)}\n" for n, v in entries.items())
        for kind, entries in table.items()
    )


@given(TABLES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_exported_declares_the_same(table: dict[str, dict[str, Any]]) -> None:
    first = read(written(table))
    again = read("".join(export(first.resources.items(), first.blobs.get)))
    assert again.resources == first.resources
    assert again.blobs == first.blobs


@given(TABLES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_declared_value_survives_its_json(table: dict[str, dict[str, Any]]) -> None:
    for value in read(written(table)).resources.values():
        assert Declared.from_json(value.to_json()) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_quoted(text: str) -> None:
    import tomllib

    assert tomllib.loads(f"a = {quote(text)}") == {"a": text}


# -- fuzz -----------------------------------------------------------------------------------------------------------


def only_a_named_mistake(raw: bytes) -> None:
    try:
        read(raw)
    except DeclaredError as exc:
        assert exc.message.startswith("d.toml")


@given(st.binary(max_size=80))
def test_any_bytes_are_declared_state_or_a_named_mistake(raw: bytes) -> None:
    only_a_named_mistake(raw)


SEED_TEXT = EXAMPLE.replace('source = "files/chrony.conf"', 'content = "x"').encode() + (
    b"[file.'/a']\nsymlink = '%41'\nxattrs = {'user.a' = 'AAAA'}\n[sysctl.net]\nx.y = [1, 2]\n"
)
PIECES = [
    b"",
    b"{",
    b"}",
    b"[",
    b"]",
    b"'",
    b'"',
    b"\n",
    b"=",
    b"%",
    b"%zz",
    b"\\u0000",
    b"\0",
    b"\xff",
    b"1e9",
    b"-1",
    b"true",
    b"nan",
    b"1979-05-27",
    b"9" * 5000,
    b"0x" + b"f" * 400,
    b"[[",
    b".",
    b"[file]",
    b"/",
    b"x = {}",
]


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_damaged_declared_state_is_a_named_mistake(rng: random.Random, times: int) -> None:
    assert len(read(SEED_TEXT).resources) == 7
    raw = SEED_TEXT
    for _ in range(times):
        at = rng.randrange(len(raw) + 1)
        raw = raw[:at] + rng.choice(PIECES) + raw[at + rng.choice([0, 0, 1, 5]) :]
    only_a_named_mistake(raw)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), TEXT)
ANYTHING = st.recursive(
    SCALARS.filter(lambda v: v is not None),
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(TEXT, v, max_size=3)),
    max_leaves=6,
)
KEYS = st.one_of(
    TEXT,
    st.sampled_from(
        [
            "value",
            "source",
            "content",
            "symlink",
            "type",
            "mode",
            "xattrs",
            "options",
            "fstype",
            "state",
            "parameters",
            "requires",
            "consumers",
            "weight",
            "sha256",
        ]
    ),
)


@given(
    st.sampled_from(["file", "mount", "sysctl", "module"]),
    st.one_of(TEXT, PATH, WORD),
    st.one_of(ANYTHING, st.dictionaries(KEYS, ANYTHING, max_size=4)),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_value_under_any_name_is_declared_state_or_a_named_mistake(kind: str, name: str, value: Any) -> None:
    text = f"[{kind}]\n{quote(name)} = {toml_value(value)}\n"
    only_a_named_mistake(text.encode())


def test_what_an_older_version_let_in_is_left_out_of_an_export_and_named() -> None:
    declared = [
        ("file:/etc/p", Declared({"type": "fifo", "mode": "0644", "owner": "root", "group": "root"})),
        ("file:/etc/x", Declared(None)),
    ]
    text = "".join(export(declared, lambda _: None))
    assert "# file:/etc/p is left out:" in text
    assert list(read(text).resources) == ["file:/etc/x"]
