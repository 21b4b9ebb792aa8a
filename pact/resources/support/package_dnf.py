"""Plans of packages through dnf: its own Python resolves them, says what it would do, and does it in one transaction.

The files of rpm that a package's new version does not replace because somebody changed them stay, as rpm has it
(``.rpmnew``, ``.rpmsave``). Scripts cannot ask: rpm gives them no input.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pact.core import strict
from pact.errors import RestoreError
from pact.resources.support.package_dnf_script import SCRIPT
from pact.resources.support.package_reading import Judged, Move, is_version
from pact.resources.support.package_service import transact
from pact.resources.support.package_tool import Ended, run

CACHED_S: Final = 30.0
ASK_S: Final = 300.0
TRANSACTION_S: Final = 1800.0
SHEBANG_BYTES: Final = 256
#: Architectures that a package's name may end with, as rpm writes them.
ARCHES: Final = (
    "noarch",
    "x86_64",
    "i386",
    "i486",
    "i586",
    "i686",
    "aarch64",
    "armv7hl",
    "ppc64le",
    "riscv64",
    "s390x",
)


class Dnf:
    """``root``: the database is there, and ``etc/dnf/dnf.conf`` and ``etc/yum.repos.d`` below it are read."""

    def __init__(self, root: str = "", program: str = "dnf") -> None:
        self.root, self.program = root, program

    def _interpreter(self) -> list[str]:
        """The command of the Python that dnf runs with. Raises RestoreError."""
        path = shutil.which(self.program)
        if path is None:
            raise RestoreError("dnf is not here")
        try:
            with open(os.path.realpath(path), "rb") as f:
                first = f.read(SHEBANG_BYTES).split(b"\n", 1)[0].decode("utf-8", "replace")
        except OSError as exc:
            raise RestoreError(f"dnf: {os.strerror(exc.errno or 0).lower()}") from None
        words = first[2:].split() if first.startswith("#!") else []
        if not words or "python" not in os.path.basename(words[0]):
            raise RestoreError("this dnf has no Python of its own (dnf5?): pact cannot plan with it")
        return words

    def _run(self, native: str, timeout_s: float, *, act: bool = False, **more: Any) -> dict[str, Any]:
        """What the script says. Raises RestoreError."""
        import orjson

        asked = {"root": self.root, "native": native, "arches": ARCHES, "act": act, "cached": False, "ask": []}
        asked |= {"moves": [], "planned": [], **more}
        command = [*self._interpreter(), "-c", SCRIPT]
        given = orjson.dumps(asked)
        if act:
            return _said(transact("dnf", command, timeout_s, self.root, given=given))
        return _said(run("dnf", command, timeout_s, given=given))

    def available(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The versions of these packages in the repositories, newest first, as far as dnf's cache tells: nothing is
        downloaded to find out. Raises RestoreError if dnf cannot be asked."""
        asked = list(names)
        said = self._run(os.uname().machine, CACHED_S, cached=True, ask=asked)
        if said["error"]:
            raise RestoreError(said["error"])
        found = said["available"]
        return {n: [v for v in found.get(n, []) if is_version(v)] for n in asked}

    def judge(self, moves: Sequence[Move], native: str) -> Judged:
        """Resolve the plan. Touches nothing."""
        try:
            said = self._run(native, ASK_S, moves=_rows(moves))
        except RestoreError as exc:
            return Judged(whole=exc.message)
        if said["missing"]:
            return Judged(said["missing"])
        if said["error"]:
            return Judged(whole=f"dnf would not do it: {said['error']}")
        planned = {m.name for m in moves}
        return Judged(whole=Judged.beyond(set(said["coming"]) - planned, set(said["going"]) - planned))

    def carry_out(self, moves: Sequence[Move], native: str) -> None:
        """Do it: resolved again and downloaded whole first, then in one transaction. Raises RestoreError; nothing was
        touched if it says so."""
        said = self._run(native, TRANSACTION_S, act=True, moves=_rows(moves), planned=[m.name for m in moves])
        missing = "; ".join(f"{name} {why}" for name, why in sorted(said["missing"].items())[:5])
        if missing or said["error"]:
            untouched = "; nothing was touched" if said["stage"] in ("question", "download") else ""
            raise RestoreError((missing or said["error"]) + untouched)


def _rows(moves: Sequence[Move]) -> list[dict[str, str | None]]:
    return [{"name": m.name, "version": m.version} for m in moves]


def _said(ended: Ended) -> dict[str, Any]:
    """The script's document, of the form that the script says. Raises RestoreError."""
    try:
        said = strict.loads_object(ended.out, strict.SMALL_MAX)
    except ValueError:
        said = {}
    if ended.code != 0 or ended.late or not said:
        raise RestoreError(f"dnf: {ended.why('dnf')}")
    for key, kind in (("coming", list), ("going", list), ("missing", dict), ("available", dict), ("error", str)):
        if not isinstance(said.get(key), kind):
            raise RestoreError(f"dnf: its answer has no proper {key}")
    texts = [*said["coming"], *said["going"], *said["missing"], *said["missing"].values()]
    if not all(isinstance(text, str) for text in texts):
        raise RestoreError("dnf: its answer is not as asked for")
    return {**said, "stage": str(said.get("stage", ""))}
