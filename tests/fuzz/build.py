"""The C of ``_fast`` with sanitizers: a copy of it whose extensions clang has built to be fuzzed.

``build/fuzz/pact`` is the copy; ``tests/fuzz/native/NAME.pxi`` stands at the end of its ``NAME.pyx`` and gives bytes to
parsers that only the kernel reaches otherwise. The sources themselves know nothing of it. It is built again when one of
them has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
REPOSITORY: Final = HERE.parents[1]
TOP: Final = REPOSITORY / "build" / "fuzz"
MARK: Final = TOP / "built"
MODULES: Final = ("wheel", "norms", "handles", "files", "reader", "strict")
#: The first finding of either sanitizer ends the process. ``function`` is left out: Cython calls through casts.
FLAGS: Final = (
    "-O1",
    "-gline-tables-only",  # what a report names
    "-fno-omit-frame-pointer",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fsanitize=fuzzer-no-link,address,undefined",
    "-fno-sanitize=function",
    "-fno-sanitize-recover=undefined",
    "-Wno-unused-function",
    "-Wno-unused-command-line-argument",
    "-Wno-macro-redefined",
)
SETUP: Final = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(ext_modules=cythonize(
    [Extension(f"pact._fast.{n}", [f"pact/_fast/{n}.pyx"], extra_compile_args=FLAGS + EXTRA.get(n, [])) for n in MODULES],
    language_level=3, compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True}))
"""


class Missing(Exception):
    """Something that is needed is not installed."""


def runtime() -> str:
    """The sanitizers' runtime that atheris brings, with the fuzzer in it. Raises Missing."""
    spec = importlib.util.find_spec("atheris")  # not loaded: its hooks are for the process that fuzzes
    if spec is None or spec.origin is None:
        raise Missing("atheris is not installed: pip install '.[fuzz]'")
    found = Path(spec.origin).parents[1] / "asan_with_fuzzer.so"
    if not found.exists():
        raise Missing(f"this atheris has no {found.name}")
    return str(found)


def _digest() -> str:
    out = hashlib.sha256(" ".join([sys.version, *FLAGS, *MODULES]).encode())
    for path in [
        REPOSITORY / "pact" / "__init__.py",
        *sorted((REPOSITORY / "pact" / "_fast").glob("*.p*")),
        *sorted((HERE / "native").iterdir()),
        Path(__file__),
    ]:
        if path.is_file() and path.suffix != ".pyc":
            out.update(path.read_bytes())
    return out.hexdigest()


def build() -> Path:
    """The directory that holds the fuzzed package. Raises Missing where there is no clang."""
    runtime()
    clang = shutil.which("clang")
    if clang is None:
        raise Missing("clang is not installed")
    TOP.mkdir(parents=True, exist_ok=True)
    with open(TOP / "lock", "w", encoding="ascii") as lock:  # tests run at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(clang, _digest())
    return TOP


def _build(clang: str, digest: str) -> None:
    if MARK.exists() and MARK.read_text() == digest:
        return
    shutil.rmtree(TOP / "pact", ignore_errors=True)
    MARK.unlink(missing_ok=True)
    shutil.copytree(
        REPOSITORY / "pact" / "_fast",
        TOP / "pact" / "_fast",
        ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"),
    )
    shutil.copy(REPOSITORY / "pact" / "__init__.py", TOP / "pact")
    for part in (HERE / "native").glob("*.pxi"):
        with open(TOP / "pact" / "_fast" / f"{part.stem}.pyx", "a", encoding="utf-8") as source:
            source.write(part.read_text(encoding="utf-8"))
    shutil.copy(HERE / "native" / "close.h", TOP)
    script = (
        f"FLAGS, MODULES = {list(FLAGS)!r}, {MODULES!r}\nEXTRA = {{'reader': ['-include', 'close.h', '-I.']}}\n{SETUP}"
    )
    (TOP / "setup.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"],
        cwd=TOP,
        text=True,
        env={**os.environ, "CC": clang, "LDSHARED": f"{clang} -shared", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the sanitized extensions cannot be built:\n{done.stdout[-6000:]}")
    MARK.write_text(digest)


if __name__ == "__main__":
    print(build())
