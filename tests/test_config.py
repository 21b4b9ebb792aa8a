"""agent.toml: every key's bad value is named with file, section and key; unknown keys name the nearest valid one."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pact.agent.config import KEYS, Config, load
from pact.declared.toml import toml_value
from pact.errors import EXIT_USAGE, ConfigError
from pact.model import NS_PER_S
from pact.observe.runs import THEN

#: The example of the contract, one key a line.
EXAMPLE = """
[node]
name = "n001"
cluster = "default"
[state]
dir = "/var/lib/pact"
[control]
socket = "/run/pact/agent.sock"
[declared]
files = ["/etc/pact/declared.d/*.toml"]
[mode]
enforcement = "enforce"
[window]
base = "15m"
sensitivity = 2.0
floor = "60s"
emergency = "4h"
[drift]
weights = {kernel = 2.0, gpu = 2.0}
severity = {sysctl = 0.05}
ignore = ["file:/etc/mtab", "sysctl:kernel.random.*"]
[observe]
rescan = "5m"
[rollback]
on_busy = "fail"
retry = "30s"
max_resources = 500
[access]
admin_groups = ["pact-admin"]
ops_groups = ["pact-ops"]
[hooks]
dir = "/etc/pact/hooks.d"
"""


def read(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(str(path))


def refused(tmp_path: Path, text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "agent.toml") in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in caught.value.message
    return caught.value


def test_the_example_of_the_contract_is_the_default(tmp_path: Path) -> None:
    config, default = read(tmp_path, EXAMPLE), Config()
    for field in dataclasses.fields(Config):
        if field.name not in ("path", "name", "ignore", "severity"):
            assert getattr(config, field.name) == getattr(default, field.name), field.name
    assert config.severity == {"sysctl": 0.05}, "which is what the kind says"
    assert config.name == "n001"
    assert config.ignore == ["file:/etc/mtab", "sysctl:kernel.random.*"]
    assert config.settings() == default.settings()


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert dataclasses.replace(read(tmp_path, ""), path="") == Config()


def test_examples_that_are_shipped_are_valid(tmp_path: Path) -> None:
    for path in (Path(__file__).parent.parent / "packaging").rglob("agent.toml"):
        load(str(path))


def test_windows_may_be_fractions_of_a_second(tmp_path: Path) -> None:
    config = read(tmp_path, '[window]\nbase = "1.5s"\nfloor = 0.25\nemergency = 2\n')
    assert (config.base_ns, config.floor_ns, config.emergency_ns) == (1_500_000_000, 250_000_000, 2 * NS_PER_S)
    assert read(tmp_path, "[window]\nfloor = 0\n").floor_ns == 0


BAD = {
    "node.name": [5, "", "a b", "-x", "a/b", "x" * 300],
    "node.cluster": ["", True],
    "state.dir": [1, ""],
    "state.file_limit": ["much", -1, True, "4X", 1.5],
    "state.store_limit": ["", []],
    "state.verify": [0, "all", 1.5],
    "state.keep": ["0", "for ever", True],
    "control.socket": [1, ""],
    "declared.files": ["/one", [1], [""]],
    "mode.enforcement": ["on", True, 1],
    "window.base": ["0", "soon", True, -1, [], 0],
    "window.sensitivity": ["2", -1, True, 1e9],
    "window.floor": ["x", True, {}],
    "window.emergency": ["", 0],
    "drift.weights": [2.0, {"kernels": 1.0}, {"kernel": 0}, {"kernel": True}, {"kernel": "2"}],
    "drift.severity": [[], {"sysctls": 1.0}, {"sysctl": -1}, {"sysctl": 2000}],
    "drift.ignore": ["x", [0]],
    "observe.rescan": ["0s", "often"],
    "observe.full": [False],
    "observe.fanotify": [1, "yes"],
    "observe.inotify": ["no"],
    "observe.realtime": [0],
    "observe.proc_connector": ["on"],
    "observe.cpus": [0, [-1], [True], ["0"]],
    "rollback.on_busy": ["wait", True],
    "rollback.retry": [0],
    "rollback.max_resources": [0, "500", 1.5, True, 10**9],
    "access.admin_groups": ["wheel", [1]],
    "access.ops_groups": [{}],
    "hooks.dir": [[], ""],
    "hooks.timeout": ["-1s"],
    "notify.terminals": ["yes", 1],
    "shell.roles": ["admin", ["root"], [1]],
    "shell.idle": [0, "soon"],
    "shell.detached": ["0s", True],
    "shell.sessions": [-1, "16", True, 5000],
    "shell.tasks": [1, "many"],
    "shell.transcript": ["yes", 1],
    "shell.root": ["ann", [1], [""]],
    "cluster.parents": ["tcp://a:1", {}, 5],
    "cluster.sealed": ["yes", 1],
    "cluster.roots": ["k", {}, [1], ["not a key"], ["k" * 41]],
    "cluster.rack": [1, "a b"],
    "cluster.alone": ["x", True, {}],
    "keys.secret": [1, ""],
    "scheduler.kind": ["SLURM", "", True],
    "scheduler.drain": ["yes", 1],
    "scheduler.node": ["", "a b", "x=y", 5],
    "scheduler.bin": ["", 1],
    "scheduler.jobs": ["", []],
    "scheduler.control": ["", 0],
}


def test_every_key_has_bad_values_here() -> None:
    assert set(BAD) == {f"{section}.{key}" for section, keys in KEYS.items() for key in keys}


@pytest.mark.parametrize(("where", "value"), [(w, v) for w, values in BAD.items() for v in values])
def test_a_bad_value_is_named_with_file_line_section_and_key(where: str, value: object, tmp_path: Path) -> None:
    section, key = where.split(".")
    error = refused(tmp_path, f"# a comment\n[{section}]\n{key} = {toml_value(value)}\n")
    assert f"agent.toml:3: [{section}] {key} " in error.message
    assert "must" in error.message or "unknown" in error.message or "duration" in error.message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[windows]\n", "unknown section [windows]", "did you mean 'window'?"),
        ("[zzz]\n", "unknown section [zzz]", "known: node, state"),
        ("[window]\nbases = 1\n", "unknown key 'bases' in [window]", "did you mean 'base'?"),
        ("[rollback]\nmax_resource = 1\n", "unknown key 'max_resource' in [rollback]", "did you mean 'max_resources'?"),
        ("[node]\nqqq = 1\n", "unknown key 'qqq' in [node]", "known: name, cluster"),
        ("base = 1\n", "unknown key 'base'", "it stands in no section; known there: writer"),
        ("[[writers]]\n", "unknown section [writers]", "did you mean 'writer'?"),
        ("node = 1\n", "[node] must be a table", ""),
        ("[[node]]\n", "[node] must be a table", ""),
    ],
)
def test_what_is_unknown_names_the_nearest_valid(text: str, message: str, hint: str, tmp_path: Path) -> None:
    error = refused(tmp_path, text)
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("/etc/*", "begin with a kind"),
        ("etc/mtab", "begin with a kind"),
        ("srvice:**", "kind 'srvice' is not known"),
        ("file:etc/mtab", "absolute path"),
        ("mount:scratch/*", "absolute path"),
        ("file:/etc/", "write '/etc'"),
        ("file:/a/*/../b", "absolute path"),
        ("file:/etc/**/", "at its end"),
        ("file:/x%zz", "percent-escape"),
        ("file:/x%41", "written '/xA'"),
        ("sysctl:vm/swappiness", "written 'vm.swappiness'"),
        ("sysctl:net.", "no sysctl"),
        ("sysctl:net/ipv4/*", "dotted"),
        ("module:nvidia-*", "'_'"),
        ("file:", "absolute path"),
    ],
)
def test_a_pattern_that_can_ignore_nothing_is_refused(pattern: str, why: str, tmp_path: Path) -> None:
    error = refused(tmp_path, f'[drift]\nignore = ["file:/etc/mtab", "{pattern}"]\n')
    assert f"[drift] ignore has '{pattern}', which can match nothing: " in error.message and why in error.message


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**",
        "f*",
        "file*",
        "[fm]*:/x",
        "*:/tmp/**",
        "file:**",
        "file:*/x",
        "file:[/]x",
        "file:/a[",
        "file:/",
        "file:/*",
        "file:/etc/.*",
        "file:/x%25",
        "file:/x%2*",
        "file:/x%2[05]",
        "service:**",
        "sysctl:*",
        "sysctl:net.*",
        "sysctl:net.ipv4.conf.*/1.mtu",
        "module:*",
    ],
)
def test_a_pattern_that_may_match_something_is_taken(pattern: str, tmp_path: Path) -> None:
    assert read(tmp_path, f'[drift]\nignore = ["{pattern}"]\n').ignore == [pattern]


@pytest.mark.parametrize(
    "text",
    [
        b"[node\n",
        b"\xff",
        b"a = [" * 5000,
        b"[node]\nname = 'a\n",
        b"[window]\nbase = " + b"9" * 5000,
        b"\0",
    ],
)
def test_what_is_no_toml_is_named_with_its_file(text: bytes, tmp_path: Path) -> None:
    refused(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{path}: {why}"):
            load(str(path))


SECTIONS = st.sampled_from([*KEYS, "other"])
NAMES = st.sampled_from(sorted({k for keys in KEYS.values() for k in keys} | {"other"}))
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8).map(lambda t: t.encode("utf-8", "replace").decode()),
    ),
    lambda v: st.lists(v, max_size=3),
    max_leaves=4,
)


@given(st.lists(st.tuples(SECTIONS, NAMES, VALUES), max_size=4, unique_by=lambda t: t[0]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_table_is_a_configuration_or_a_named_mistake(tmp_path: Path, drawn: list[tuple[str, str, object]]) -> None:
    text = "".join(f"[{s}]\n{k} = {toml_value(v)}\n" for s, k, v in drawn)
    tomllib.loads(text)
    try:
        read(tmp_path, text).settings()
    except ConfigError as exc:
        assert "agent.toml" in exc.message


def test_no_rack_may_be_written_out(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[cluster]\nrack = ""\n')
    assert load(str(path)).rack == ""


def test_the_rules_for_writers_on_their_page_are_accepted(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "writers.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "agent.toml"
    path.write_text(text)
    rules = load(str(path)).writers
    assert len(rules) == text.count("[[writer]]") and {r.then for r in rules} == set(THEN)
