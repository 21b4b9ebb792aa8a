"""Plans of packages through zypper: simulated with ``--dry-run``, then one call, which downloads everything first.

zypper gives each package to rpm by itself, but it resolves and orders the plan as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from pact.errors import RestoreError
from pact.resources.support.package_reading import ANY, Judged, Move, is_version, same_version
from pact.resources.support.package_service import transact
from pact.resources.support.package_tool import Ended, run

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

ASK_S: Final = 120.0
TRANSACTION_S: Final = 1800.0
DOCUMENT_MAX: Final = 32 << 20
#: It was done; and something should be restarted, or the machine (102, 103).
DONE: Final = frozenset({0, 102, 103})
COMING: Final = frozenset(
    {"to-install", "to-upgrade", "to-downgrade", "to-reinstall", "to-upgrade-change-arch", "to-downgrade-change-arch"}
)
GOING: Final = "to-remove"
SYSTEM: Final = "(System Packages)"
OPTIONS: Final = ("--non-interactive", "--xmlout")
INSTALL: Final = ("install", "--oldpackage", "--no-recommends", "--auto-agree-with-licenses")


class Zypper:
    """``root``: the database is there, and ``etc/zypp`` below it is read."""

    def __init__(self, root: str = "", program: str = "zypper") -> None:
        self.root, self.program = root, program

    def _command(self, *words: str) -> list[str]:
        return [self.program, *(["--root", self.root] if self.root else ()), *OPTIONS, *words]

    def available(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The versions of these packages in the repositories, as far as zypper's cache tells. Raises RestoreError if
        zypper cannot be asked."""
        out: dict[str, list[str]] = {name: [] for name in names}
        if not out:
            return out
        words = ["search", "--details", "--match-exact", "--type", "package", "--", *sorted(out)]
        ended = run("zypper", self._command("--no-refresh", *words), ASK_S)
        for solvable in _document(ended).iter("solvable"):
            name, arch, version = (solvable.get(key, "") for key in ("name", "arch", "edition"))
            if solvable.get("repository") == SYSTEM or not is_version(version):
                continue
            for known in (name, f"{name}.{arch}"):
                if known in out and version not in out[known]:
                    out[known].append(version)
        return out

    def judge(self, moves: Sequence[Move], native: str) -> Judged:
        """Simulate the plan. Touches nothing."""
        try:
            missing = self._missing(moves)
            if missing:
                return Judged(missing)
            ended = run("zypper", self._command("--no-refresh", *INSTALL, "--dry-run", "--", *_words(moves)), ASK_S)
            document = _document(ended)
        except RestoreError as exc:
            return Judged(whole=exc.message)
        if ended.code not in DONE or ended.late:
            return Judged(whole=f"zypper would not do it: {_why(ended, document)}")
        coming, going = set(_named(document, COMING, native)), set(_named(document, {GOING}, native))
        planned = {m.name for m in moves}
        return Judged(whole=Judged.beyond(coming - planned, going - planned))

    def _missing(self, moves: Sequence[Move]) -> dict[str, str]:
        wanted = [m for m in moves if m.version not in (None, ANY, m.have)]
        there = self.available(m.name for m in wanted)
        out = dict[str, str]()
        for move in wanted:
            assert move.version is not None
            if not any(same_version(move.version, version) for version in there[move.name]):
                out[move.name] = f"{move.version} cannot be had: no enabled repository has it"
        return out

    def carry_out(self, moves: Sequence[Move], native: str) -> None:
        """Do it. Raises RestoreError; nothing was touched if it says so."""
        judged = self.judge(moves, native)
        if judged.refused:
            raise RestoreError(f"{judged.text()}; nothing was touched")
        command = self._command(*INSTALL, "--download", "in-advance", "--", *_words(moves))
        done = transact("zypper", command, TRANSACTION_S, self.root)
        if done.code not in DONE or done.late:
            raise RestoreError(_why(done, _document(done)))


def _words(moves: Sequence[Move]) -> list[str]:
    """What zypper is told: ``!name`` removes."""
    words = []
    for move in moves:
        version = move.version
        words.append(f"!{move.name}" if version is None else move.name if version == ANY else f"{move.name}={version}")
    return words


def _document(ended: Ended) -> Element:
    """What zypper printed. Raises RestoreError if that is no proper document."""
    from xml.etree import ElementTree

    if ended.late:
        raise RestoreError(ended.why("zypper"))
    if len(ended.out) > DOCUMENT_MAX or "<!" in ended.out:
        raise RestoreError("zypper: its answer is not as asked for")
    try:
        return ElementTree.fromstring(ended.out)
    except ElementTree.ParseError:
        raise RestoreError(f"zypper: {ended.why('zypper')}") from None


def _named(document: Element, groups: Iterable[str], native: str) -> Iterator[str]:
    for group in groups:
        for top in document.iter(group):
            for solvable in top.iter("solvable"):
                name, arch = solvable.get("name", ""), solvable.get("arch", "")
                if solvable.get("type") == "package" and name:
                    yield name if arch in (native, "noarch") else f"{name}.{arch}"


def _why(ended: Ended, document: Element) -> str:
    said = [m.text or "" for m in document.iter("message") if m.get("type") == "error"]
    problems = [m.text or m.get("description") or "" for m in document.iter("description")] if not said else []
    text = " ".join(" ".join([*said, *problems][:2]).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:300] or f"zypper ended with {ended.code}"
