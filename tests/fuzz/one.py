"""Targets in this process. ``one.py TARGET FILE...`` runs inputs, ``one.py --kept TARGET...`` all that are kept, and
``one.py TARGET --fuzz CORPUS ARGUMENT...`` fuzzes with libFuzzer's arguments, which is what ``run.py`` does. Only the
last needs atheris, and so do the targets in C, whose sanitizers' runtime it brings.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fuzz.kit import Target

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


def instrumented(names: Iterable[str]) -> dict[str, Target]:
    """Targets whose modules tell libFuzzer what an input reaches. Putting that in takes some 15 s of a processor."""
    import atheris

    from fuzz import targets

    with atheris.instrument_imports(include=["pact", "tomllib", "ClusterShell"], enable_loader_override=False):
        return {name: targets.load(name) for name in names}


def fuzz(target: Target, arguments: Sequence[str]) -> None:
    """With libFuzzer's arguments, the corpus first. It ends this process."""
    import atheris

    from fuzz import kit

    corpus = Path(arguments[0])
    options, again = [f"-max_len={target.size_max}", *arguments], corpus.parent / f"{target.name}.again"
    if not any(word.startswith("-merge") for word in arguments):
        write_seeds(corpus, kit.start(target))
    if target.words:
        words = corpus.parent / f"{target.name}.dict"
        words.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in word) + '"\n' for word in target.words if word))
        options.insert(0, f"-dict={words}")
    # What libFuzzer starts where it needs another process of its own.
    command = shlex.join([sys.executable, str(HERE / "one.py"), target.name, "--fuzz"])
    again.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again.resolve()), *options], target)
    atheris.Fuzz()


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
    fuzz(instrumented([name])[name], rest[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
