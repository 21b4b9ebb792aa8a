"""The wheel that pip builds of the checkout: the package whole and compiled, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout"),
    pytest.mark.timeout(240),
]


def committed(suffixes: tuple[str, ...]) -> set[str]:
    """Files of the package that git knows, by how their names end."""
    done = subprocess.run(["git", "ls-files", "-z", "pact"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name.endswith(suffixes)}


def built(top: Path) -> zipfile.ZipFile:
    """Of what git knows, offline, with the Cython and setuptools that are installed here. Nobody runs what is in it, so
    the compiler does not make it fast: that takes half a minute.
    """
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (top / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / "source" / name)
    compiler = top / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0 -w\n')
    compiler.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"CC": str(compiler)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ".",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--quiet",
            "--disable-pip-version-check",
            "--wheel-dir",
            str(top / "out"),
        ],
        cwd=top / "source",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named pip" in done.stderr:
        pytest.skip("pip is not installed")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (wheel,) = (top / "out").iterdir()
    return zipfile.ZipFile(wheel)


def test_the_wheel_holds_the_package_compiled_and_nothing_else(tmp_path: Path) -> None:
    with built(tmp_path) as wheel:
        names = set(wheel.namelist())
        (entry,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        scripts = wheel.read(entry).decode()
        about = wheel.read(entry.replace("entry_points.txt", "METADATA")).decode()
    package = {n for n in names if ".dist-info/" not in n}
    compiled = {n.removesuffix(".pyx") + sysconfig.get_config_var("EXT_SUFFIX") for n in committed((".pyx",))}
    assert len(compiled) >= 6
    others = committed((".css", ".js", ".svg")) | {"pact/session/pact-session"}  # the page; the program of sessions
    whole = compiled | committed((".py", ".pyi", "py.typed")) | others
    assert package == whole, "no sources in C, no tests, no bench"
    assert re.search(r"^pact = pact\.cli\.main:entry$", scripts, re.MULTILINE)
    assert "Requires-Python: >=3.11" in about and "License-Expression: Apache-2.0" in about
    dist = {n.rpartition(".dist-info/")[2] for n in names - package}
    assert dist == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
