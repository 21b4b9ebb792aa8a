"""Plans of packages through apt: simulated first, then one transaction.

apt decides what depends on what. What it would install or remove beside the plan is not done: a person decides.
Configuration files that somebody changed are kept, removed packages keep theirs, and no question is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from pact.errors import RestoreError
from pact.resources.support.package_dpkg import ADMIN, upgraded
from pact.resources.support.package_reading import ANY, Judged, Move, is_version, same_version
from pact.resources.support.package_service import transact
from pact.resources.support.package_tool import Ended, run

ASK_S: Final = 60.0
DOWNLOAD_S: Final = 600.0
TRANSACTION_S: Final = 1800.0
LOCK_S: Final = 10
#: How many names one question has: the kernel limits the length of a command.
NAMES_MAX: Final = 20_000
LINES_MAX: Final = 400_000
ARCHIVES: Final = "/var/cache/apt/archives"
#: States from which configuring helps; others need the package's files again.
CONFIGURABLE: Final = frozenset({"half-configured", "unpacked", "triggers-awaited", "triggers-pending"})
QUIET: Final = (
    "-q",
    "-y",
    "--allow-downgrades",
    "--no-install-recommends",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Use-Pty=0",
    "-o",
    f"DPkg::Lock::Timeout={LOCK_S}",
    "-o",
    "Acquire::Retries=1",
    "-o",
    "Acquire::http::Timeout=30",
    "-o",
    "Acquire::https::Timeout=30",
)


class Apt:
    """``root``: the database is there, and ``etc/apt/apt.conf`` below it tells apt so."""

    def __init__(self, root: str = "", apt_get: str = "apt-get", apt_cache: str = "apt-cache") -> None:
        self.root, self.apt_get, self.apt_cache = root, apt_get, apt_cache
        self.env = {"APT_CONFIG": f"{root}/etc/apt/apt.conf"} if root else {}

    def available(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The versions of these packages that can be had from repositories, newest first, as far as apt's lists tell.
        Raises RestoreError if apt cannot be asked."""
        asked = list(names)[:NAMES_MAX]
        out: dict[str, list[str]] = {name: [] for name in asked}
        if not asked:
            return out
        ended = run("apt-cache", [self.apt_cache, "-q", "madison", "--", *asked], ASK_S, env=self.env)
        if ended.late or (ended.code != 0 and not ended.out):
            raise RestoreError(ended.why("apt-cache"))
        for line in ended.out.splitlines()[:LINES_MAX]:
            parts = [part.strip() for part in line.split("|")]
            if len(parts) == 3 and is_version(parts[1]) and not parts[2].endswith("Sources"):
                for name in (parts[0], parts[0].partition(":")[0]):
                    if name in out and parts[1] not in out[name]:
                        out[name].append(parts[1])
        return out

    def judge(self, moves: Sequence[Move], native: str) -> Judged:
        """Simulate the plan. Touches nothing."""
        if os.path.isdir(f"{self.root}{ADMIN}/updates") and any(
            n.isdigit() for n in os.listdir(f"{self.root}{ADMIN}/updates")
        ):
            return Judged(whole="dpkg was interrupted: run 'dpkg --configure -a' first")
        try:
            words, missing = self._words(moves, native)
            if missing:
                return Judged(missing)
            ended = run("apt-get", [self.apt_get, "-s", *QUIET, "install", *words], ASK_S, env=self.env)
        except RestoreError as exc:
            return Judged(whole=exc.message)
        if ended.code != 0 or ended.late:
            return Judged(whole=f"apt would not do it: {ended.why('apt-get')}")
        return Judged(whole=self._beyond(ended, moves, native))

    @staticmethod
    def _beyond(ended: Ended, moves: Sequence[Move], native: str) -> str:
        coming, going = upgraded(ended.out.splitlines())
        planned = {m.name.removesuffix(f":{native}") for m in moves}
        return Judged.beyond(coming - planned, going - planned)

    def _words(self, moves: Sequence[Move], native: str) -> tuple[list[str], dict[str, str]]:
        """What apt-get is told to install or remove; and by name, what cannot be had. Raises RestoreError."""
        wanted = [m for m in moves if m.version is not None]
        there = self.available(m.name for m in wanted if m.version != m.have)
        words, missing = list[str](), dict[str, str]()
        again = False
        for move in moves:
            if move.version is None:
                words.append(f"{move.name}-")
            elif move.version in (ANY, move.have):
                again |= move.status not in CONFIGURABLE and move.status != ""
                words.append(move.name if move.version == ANY else f"{move.name}={move.version}")
            else:
                found = self._found(move, there.get(move.name, ()), native)
                if found:
                    words.append(found)
                else:
                    missing[move.name] = f"{move.version} cannot be had: no repository in apt's lists has it"
        return (["--reinstall"] if again else []) + ["--", *words], missing

    def _found(self, move: Move, versions: Iterable[str], native: str) -> str:
        """The version, or the archive of it that apt has kept; ``""`` for neither."""
        assert move.version is not None
        for version in versions:
            if same_version(move.version, version, native=move.native):
                return f"{move.name}={version}"
        name, _, arch = move.name.partition(":")
        for suffix in (arch,) if arch else (native, "all"):
            path = f"{self.root}{ARCHIVES}/{name}_{move.version.replace(':', '%3a')}_{suffix}.deb"
            if os.path.isfile(path):
                return path
        return ""

    def carry_out(self, moves: Sequence[Move], native: str) -> None:
        """Do it: downloaded whole first, then in one transaction. Raises RestoreError; nothing was touched if it says
        so."""
        judged = self.judge(moves, native)
        if judged.refused:
            raise RestoreError(f"{judged.text()}; nothing was touched")
        words, _ = self._words(moves, native)
        fetched = run("apt-get", [self.apt_get, *QUIET, "--download-only", "install", *words], DOWNLOAD_S, env=self.env)
        if fetched.code != 0 or fetched.late:
            raise RestoreError(f"it cannot be had: {fetched.why('apt-get')}; nothing was touched")
        command = [self.apt_get, *QUIET, "install", *words]
        done = transact("apt-get", command, TRANSACTION_S, self.root, env=self.env)
        if done.code != 0 or done.late:
            raise RestoreError(done.why("apt-get"))
