"""Targets in this process. ``one.py TARGET FILE...`` runs inputs, ``one.py --kept TARGET...`` all that are kept, and
``one.py TARGET --fuzz CORPUS ARGUMENT...`` fuzzes with libFuzzer's arguments, which is what ``run.py`` does. Only the
last needs atheris, and so do the targets in C, whose sanitizers' runtime it brings.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ASAN: Final = "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16"
UBSAN: Final = "print_stacktrace=1"
NATIVE: Final = "PACT_FUZZ_NATIVE"


def sanitized() -> dict[str, str]:
    """The environment in which the package of ``build.py`` can be loaded. Raises build.Missing."""
    from fuzz import build

    return {
        **os.environ,
        NATIVE: str(build.build()),
        "LD_PRELOAD": build.runtime(),
        "ASAN_OPTIONS": ASAN,
        "UBSAN_OPTIONS": UBSAN,
    }


def write_seeds(corpus: Path, inputs: list[bytes]) -> None:
    """Each into a file by its digest, as libFuzzer names them."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        path = corpus / hashlib.sha1(data).hexdigest()
        if not path.exists():
            path.write_bytes(data)


def main() -> int:
    sys.path[0:1] = [str(HERE.parent), str(HERE.parents[1])]
    from fuzz import kit, targets

    kept = sys.argv[1] == "--kept"
    names = sys.argv[2:] if kept else sys.argv[1:2]
    if any(name in targets.NATIVE for name in names):
        if NATIVE not in os.environ:  # the runtime must be there before Python is
            os.execve(sys.executable, [sys.executable, *sys.argv], sanitized())
        sys.path.insert(0, os.environ[NATIVE])
    if kept:
        for name in names:
            target = targets.load(name)
            inputs = kit.start(target)
            for data in inputs:
                try:
                    target(data)
                except BaseException:
                    print(f"{name}: {data!r}", flush=True)
                    raise
            print(f"{name}: {len(inputs)} inputs", flush=True)
        return 0
    (name,), rest = names, sys.argv[2:]
    if rest[:1] != ["--fuzz"]:
        target = targets.load(name)
        for path in rest:
            print(f"{name}: {path}", flush=True)
            target(Path(path).read_bytes())
        return 0
    import atheris

    with atheris.instrument_imports(include=["pact", "tomllib", "ClusterShell"], enable_loader_override=False):
        target = targets.load(name)
    corpus = Path(next(word for word in rest[1:] if not word.startswith("-")))
    arguments, again = [f"-max_len={target.size_max}", *rest[1:]], corpus.parent / f"{name}.again"
    if not any(word.startswith("-merge") for word in rest):
        write_seeds(corpus, kit.start(target))
    if target.words:
        words = corpus.parent / f"{name}.dict"
        words.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in word) + '"\n' for word in target.words if word))
        arguments.insert(0, f"-dict={words}")
    # What libFuzzer starts where it needs another process of its own.
    again.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, sys.argv[0], name, "--fuzz"])} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again.resolve()), *arguments], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
