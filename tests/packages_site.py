"""Packages built on the spot, a repository of files, and a root with a database of its own: real dpkg and rpm, apt and
dnf, far away from the machine's own packages. Nothing here imports pact.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
TOOL_S = 120.0


def sh(
    *command: str | Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=TOOL_S,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(env or {})},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
    return done


class DebSite:
    """``root``: a dpkg database with nothing in it, and an apt that knows ``repo`` alone."""

    manager = "dpkg"

    def __init__(self, base: Path) -> None:
        self.root, self.repo, self.build = base / "root", base / "repo", base / "build"
        for directory in ("updates", "info", "triggers", "parts", "alternatives"):
            (self.root / "var/lib/dpkg" / directory).mkdir(parents=True)
        for directory in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "var/log/apt",
            "tmp",
        ):
            (self.root / directory).mkdir(parents=True)
        for directory in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "etc/apt/trusted.gpg.d"):
            (self.root / directory).mkdir(parents=True)
        self.repo.mkdir()
        self.build.mkdir()
        for leaf in ("status", "available"):
            (self.root / "var/lib/dpkg" / leaf).touch()
        for leaf in ("lock", "lock-frontend"):
            (self.root / "var/lib/dpkg" / leaf).touch(0o640)
        (self.root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{self.repo} ./\n")
        (self.root / "etc/apt/apt.conf").write_text(
            f'Dir "{self.root}";\nDir::State::status "{self.root}/var/lib/dpkg/status";\n'
            f'APT::Architecture "{ARCH}";\nAPT::Sandbox::User "root";\nAcquire::Languages "none";\n'
            f'DPkg::Options {{ "--root={self.root}"; "--force-script-chrootless"; "--log=/dev/null"; }};\n'
        )
        self.env = {"APT_CONFIG": str(self.root / "etc/apt/apt.conf")}

    def make(
        self,
        name: str,
        version: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        scripts: Mapping[str, str] | None = None,
        conffiles: Sequence[str] = (),
        arch: str = "all",
        **fields: str,
    ) -> Path:
        """Build a package and put it into the repository. ``index`` makes it known."""
        top = self.build / f"{name}_{version}"
        shutil.rmtree(top, ignore_errors=True)
        (top / "DEBIAN").mkdir(parents=True)
        lines = {"Package": name, "Version": version, "Architecture": arch, "Maintainer": "a <a@b>", **fields}
        lines["Description"] = "made by a test"
        (top / "DEBIAN/control").write_text("".join(f"{k.replace('_', '-')}: {v}\n" for k, v in lines.items()))
        for path, content in {f"usr/share/{name}/version": version, **(files or {})}.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(content.encode() if isinstance(content, str) else content)
            if "bin/" in path:
                (top / path).chmod(0o755)
        for leaf, text in (scripts or {}).items():
            (top / "DEBIAN" / leaf).write_text(f"#!/bin/sh\n{text}\n")
            (top / "DEBIAN" / leaf).chmod(0o755)
        if conffiles:
            (top / "DEBIAN/conffiles").write_text("".join(f"{c}\n" for c in conffiles))
        out = self.repo / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        sh("dpkg-deb", "--root-owner-group", "-Znone", "--build", top, out)
        return out

    def index(self) -> None:
        done = subprocess.run(
            ["dpkg-scanpackages", "--multiversion", "."], cwd=self.repo, capture_output=True, text=True, check=True
        )
        (self.repo / "Packages").write_text(done.stdout)
        sh("apt-get", "-q", "update", env=self.env)

    def install(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return sh("apt-get", "-qy", "--allow-downgrades", "install", *words, env=self.env, check=check)

    def dpkg(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return sh(*self.dpkg_command(*words), check=check)

    def dpkg_command(self, *words: str | Path) -> list[str]:
        options = [f"--root={self.root}", "--force-script-chrootless", "--log=/dev/null"]
        return ["dpkg", *options, *map(str, words)]

    def version(self, name: str) -> str:
        """``""`` if it is not installed."""
        done = sh(
            "dpkg-query", f"--admindir={self.root}/var/lib/dpkg", "-Wf", "${Status} ${Version}", name, check=False
        )
        words = done.stdout.split()
        return words[3] if words[2:3] == ["installed"] else ""


class RpmSite:
    """``root``: an rpm database with nothing in it, and a dnf that knows ``repo`` alone."""

    manager = "rpm"
    env: Mapping[str, str] = {}

    def __init__(self, base: Path) -> None:
        self.root, self.repo, self.build = base / "root", base / "repo", base / "build"
        for directory in (
            "var/lib/rpm",
            "var/cache/dnf",
            "var/log",
            "var/lib/dnf",
            "etc/dnf/vars",
            "etc/yum.repos.d",
            "root",
        ):
            (self.root / directory).mkdir(parents=True)
        for directory in ("tmp", "usr", "var/tmp", "proc"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        (self.root / "root/.rpmdb").symlink_to("../var/lib/rpm")  # where Debian's rpm looks
        self.repo.mkdir()
        self.build.mkdir()
        (self.root / "etc/dnf/dnf.conf").write_text("[main]\ngpgcheck=0\nkeepcache=0\nmetadata_expire=0\n")
        (self.root / "etc/yum.repos.d/here.repo").write_text(
            f"[here]\nname=here\nbaseurl=file://{self.repo}\nenabled=1\ngpgcheck=0\nmetadata_expire=0\n"
        )
        self.rpm("--initdb")

    def rpm_command(self, *words: str | Path) -> list[str]:
        return ["rpm", "--root", str(self.root), "--dbpath", "/var/lib/rpm", *map(str, words)]

    def rpm(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return sh(*self.rpm_command(*words), check=check)

    def make(
        self,
        name: str,
        version: str,
        *,
        arch: str = "noarch",
        files: Mapping[str, str] | None = None,
        spec: str = "",
        body: str = "",
    ) -> Path:
        """Build a package ``[epoch:]version-release`` and put it into the repository. ``index`` makes it known."""
        epoch, _, rest = version.rpartition(":")
        plain, _, release = rest.partition("-")
        installs, listed = [], []
        for path, content in {f"usr/share/{name}/version": version, **(files or {})}.items():
            mode = "755" if "bin/" in path else "644"
            installs.append(
                f"mkdir -p %{{buildroot}}/$(dirname {path})\ncat > %{{buildroot}}/{path} <<'X'\n{content}\nX\n"
            )
            installs.append(f"chmod {mode} %{{buildroot}}/{path}\n")
            listed.append(f"{'%config(noreplace) ' if path.startswith('etc/') else ''}/{path}\n")
        text = (
            f"Name: {name}\nVersion: {plain}\nRelease: {release or 1}\nSummary: made by a test\nLicense: none\n"
            + (f"Epoch: {epoch}\n" if epoch else "")
            + ("BuildArch: noarch\n" if arch == "noarch" else "")
            + f"AutoReqProv: no\n{spec}\n%description\nx\n%install\n{''.join(installs)}\n{body}\n%files\n{''.join(listed)}"
        )
        written = self.build / f"{name}.spec"
        written.write_text(text)
        target = ["--target", arch] if arch != "noarch" else []
        defined = [
            "--define",
            f"_topdir {self.build}",
            "--define",
            f"_rpmdir {self.repo}",
            "--define",
            "_build_id_links none",
        ]
        sh("rpmbuild", "--quiet", *defined, "--define", "debug_package %{nil}", *target, "-bb", written)
        return next(self.repo.rglob(f"{name}-{plain}-{release or 1}.*.rpm"))

    def index(self) -> None:
        sh("createrepo_c", "--quiet", self.repo)

    def zypper(self) -> None:
        """Make the repository known to zypper too."""
        repos = self.root / "etc/zypp/repos.d"
        repos.mkdir(parents=True, exist_ok=True)
        (repos / "here.repo").write_text(
            f"[here]\nname=here\nbaseurl=dir://{self.repo}\nenabled=1\nautorefresh=1\ngpgcheck=0\ntype=rpm-md\n"
        )
        sh("zypper", "--root", self.root, "--non-interactive", "--no-gpg-checks", "refresh", "--force")

    def install(self, *paths: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.rpm("-U", "--oldpackage", *paths, check=check)

    def version(self, name: str) -> str:
        done = self.rpm("-q", "--qf", "%{VERSION}-%{RELEASE}", name, check=False)
        return done.stdout if done.returncode == 0 else ""
