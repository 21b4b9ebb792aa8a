"""Plans of packages through the real apt, dnf and zypper, on databases and repositories made on the spot."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packages_site import DebSite, RpmSite, sh

from pact.core.plan import Step
from pact.model import Attrs, Unreadable
from pact.resources.base import Keep
from pact.resources.kinds.package import SIDE_BY_SIDE, Package
from pact.resources.support import package_apt, package_dnf, package_tool

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
APT = pytest.mark.needs("dpkg", "apt-get", "dpkg-scanpackages")
Made = tuple[Any, Package]


def steps(kind: Package, **targets: str | None) -> list[Step]:
    """By name, with ``_`` for ``-``: the wanted version."""
    out = []
    for name, version in targets.items():
        seen = kind.observe(name)
        assert not isinstance(seen, Unreadable), seen
        out.append(Step(f"package:{name}", None if version is None else {"version": version}, seen))
    return out


def refusals(kind: Package, plan: list[Step]) -> str:
    return "; ".join(s.refusal for s in kind.preflight_all(plan, Keep(1)).values() if s.refusal)


def carried(kind: Package, plan: list[Step]) -> Mapping[str, str]:
    return kind.restore_all(plan, lambda digest: None)


def versions(site: Any, *names: str) -> list[str]:
    return [site.version(name) for name in names]


@pytest.fixture
def deb(tmp_path: Path) -> Made:
    site = DebSite(tmp_path)
    return site, Package(str(site.root))


def fill(site: Any) -> None:
    """``lib`` 1 and 2, ``app`` that needs the same ``lib``, ``lone`` 1."""
    for version in ("1.0-1", "2.0-1"):
        site.make("lib", version)
        if isinstance(site, DebSite):
            site.make("app", version, Depends=f"lib (= {version})")
        else:
            site.make("app", version, spec=f"Requires: lib = {version}")
    site.make("lone", "1.0-1")
    site.index()


# -- every package manager --------------------------------------------------------------------------------------------------


def start_deb(base: Path) -> Made:
    site = DebSite(base)
    fill(site)
    site.install("app=2.0-1", "lib=2.0-1")
    return site, Package(str(site.root))


def start_rpm(base: Path, tools: Mapping[str, str]) -> Made:
    site = RpmSite(base)
    fill(site)
    site.install(*site.repo.rglob("*-2.0-1.noarch.rpm"))
    return site, Package(str(site.root), tools)


def start_dnf(base: Path) -> Made:
    return start_rpm(base, {})


def start_zypper(base: Path) -> Made:
    site, kind = start_rpm(base, {"dnf": "/proc/none"})
    site.zypper()
    return site, kind


EVERY = [
    pytest.param(start_deb, id="apt", marks=APT),
    pytest.param(start_dnf, id="dnf", marks=pytest.mark.needs("dnf", "rpmbuild", "createrepo_c")),
    pytest.param(start_zypper, id="zypper", marks=pytest.mark.needs("zypper", "rpmbuild", "createrepo_c")),
]


@pytest.mark.parametrize("start", EVERY)
def test_a_whole_plan_is_one_transaction(start: Callable[[Path], Made], tmp_path: Path) -> None:
    site, kind = start(tmp_path)
    plan = steps(kind, lib="1.0-1", app="1.0-1", lone="1.0-1")
    assert refusals(kind, plan) == ""
    assert versions(site, "lib", "app", "lone") == ["2.0-1", "2.0-1", ""], "a simulation touches nothing"
    assert set(carried(kind, plan).values()) == {""}
    assert versions(site, "lib", "app", "lone") == ["1.0-1", "1.0-1", "1.0-1"]
    back = steps(kind, lib="2.0-1", app="2.0", lone=None)
    assert refusals(kind, back) == "" and set(carried(kind, back).values()) == {""}
    assert versions(site, "lib", "app", "lone") == ["2.0-1", "2.0-1", ""]
    assert set(carried(kind, back).values()) == {""}, "twice is the same as once"


@pytest.mark.parametrize("start", EVERY)
def test_what_would_be_moved_beside_the_plan_is_for_a_person(start: Callable[[Path], Made], tmp_path: Path) -> None:
    site, kind = start(tmp_path)
    for plan in (steps(kind, lib="1.0-1"), steps(kind, lib=None)):
        assert "app" in refusals(kind, plan)
        (why,) = carried(kind, plan).values()
        assert "nothing was touched" in why
        assert versions(site, "lib", "app") == ["2.0-1", "2.0-1"]


@pytest.mark.invariant("F77")
@pytest.mark.parametrize("start", EVERY)
def test_a_version_that_no_repository_has_is_said_and_nothing_is_done(
    start: Callable[[Path], Made], tmp_path: Path
) -> None:
    site, kind = start(tmp_path)
    plan = steps(kind, lib="1.5-1", app="1.0-1")
    assert "package:lib: 1.5-1 cannot be had" in refusals(kind, plan)
    assert all("cannot be had" in why and "nothing was touched" in why for why in carried(kind, plan).values())
    assert versions(site, "lib", "app") == ["2.0-1", "2.0-1"]


@pytest.mark.invariant("F77")
@pytest.mark.parametrize("start", EVERY)
def test_what_vanished_from_the_repository_fails_with_nothing_half_done(
    start: Callable[[Path], Made], tmp_path: Path
) -> None:
    site, kind = start(tmp_path)
    plan = steps(kind, lib="1.0-1", app="1.0-1", lone="1.0-1")
    assert refusals(kind, plan) == ""
    next(p for p in site.repo.rglob("app*1.0-1*")).unlink()
    assert all(carried(kind, plan).values())
    assert versions(site, "lib", "app", "lone") == ["2.0-1", "2.0-1", ""]


@pytest.mark.parametrize("start", EVERY)
def test_adopting_says_which_versions_could_not_be_had_again(start: Callable[[Path], Made], tmp_path: Path) -> None:
    site, kind = start(tmp_path)
    keep = Keep(1)
    assert kind.observe("lib", keep) and keep.unkept == {}
    for path in list(site.repo.rglob("lib*2.0-1*")):
        path.unlink()
    site.index()
    if start is start_dnf:
        sh("dnf", "-q", "--installroot", site.root, "makecache", env={"HOME": "/root"})
    if start is start_zypper:
        site.zypper()
    kind = Package(str(site.root), {"dnf": "/proc/none"} if start is start_zypper else {})
    kind.observe("lib", keep)
    kind.observe("app", keep)
    assert keep.unkept == {"package:lib": "no repository that is known here has version 2.0-1"}


# -- dpkg and apt -------------------------------------------------------------------------------------------------------------


@APT
def test_changed_configuration_files_are_kept_without_a_question(deb: Made) -> None:
    site, kind = deb
    for version in ("1-1", "2-1"):
        site.make("tool", version, files={"etc/tool.conf": version}, conffiles=["/etc/tool.conf"])
    site.index()
    site.install("tool=2-1")
    (site.root / "etc/tool.conf").write_text("mine")
    assert set(carried(kind, steps(kind, tool="1-1")).values()) == {""}
    assert (site.root / "etc/tool.conf").read_text() == "mine"
    assert set(carried(kind, steps(kind, tool=None)).values()) == {""}
    assert (site.root / "etc/tool.conf").read_text() == "mine" and kind.observe("tool") is None
    assert kind.discover("**").passed == {"removed, with configuration files left": 1}


@APT
@pytest.mark.invariant("F75")
def test_a_script_that_fails_is_named_and_what_it_leaves_is_drift(deb: Made) -> None:
    site, kind = deb
    site.make("good", "1-1")
    site.make("bad", "1-1", scripts={"postinst": "echo no licence >&2; exit 3"})
    site.index()
    plan = steps(kind, good="1-1", bad="1-1")
    assert refusals(kind, plan) == ""
    said = carried(kind, plan)
    assert said["package:good"] == "" and "bad package post-installation script" in said["package:bad"]
    assert kind.observe("bad") == {"version": "1-1", "status": "half-configured"}
    assert kind.distance_n({"version": "1-1"}, kind.observe("bad")) > 0  # type: ignore[arg-type]


@APT
def test_a_script_that_hangs_is_ended_and_dpkg_ends_in_order(deb: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    site, kind = deb
    monkeypatch.setattr(package_apt, "TRANSACTION_S", 3.0)
    site.make("good", "1-1")
    site.make("bad", "1-1", scripts={"postinst": "sleep 500; true"})
    site.index()
    said = carried(kind, steps(kind, bad="1-1", good="1-1"))
    assert said["package:good"] == "" and "did not end in time" in said["package:bad"]
    assert kind.observe("bad") == {"version": "1-1", "status": "half-configured"}
    assert not any((site.root / "var/lib/dpkg/updates").iterdir()), "dpkg was not killed in the middle"


@APT
def test_a_package_that_is_only_unpacked_is_configured(deb: Made) -> None:
    site, kind = deb
    path = site.make("tool", "1-1")
    site.index()
    site.dpkg("--unpack", path)
    plan = steps(kind, tool="1-1")
    assert plan[0].actual == {"version": "1-1", "status": "unpacked"}
    assert not kind.disturbs(plan[0]) and refusals(kind, plan) == ""
    assert carried(kind, plan) == {"package:tool": ""}


@APT
@pytest.mark.invariant("F75")
def test_dpkg_killed_in_the_middle_is_seen_and_mended_where_apt_can(deb: Made) -> None:
    site, kind = deb
    site.make("tool", "1-1")
    bad = site.make("tool", "2-1", scripts={"preinst": "touch ${DPKG_ROOT}/tmp/begun; sleep 500; true"})
    site.index()
    site.install("tool=1-1")
    run = subprocess.Popen(site.dpkg_command("-i", bad), stdout=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 20
    while not (site.root / "tmp/begun").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    seen = kind.observe("tool")
    assert isinstance(seen, dict) and seen["status"] in ("half-installed", "reinstall-required"), seen
    plan = steps(kind, tool="1-1")
    assert kind.half_done(plan[0], seen)
    assert "run 'dpkg --configure -a' first" in refusals(kind, plan)
    site.dpkg("--configure", "-a", check=False)
    plan = steps(kind, tool="1-1")
    assert refusals(kind, plan) == "", "apt can do it now"
    assert carried(kind, plan) == {"package:tool": ""} and site.version("tool") == "1-1"


@APT
@pytest.mark.invariant("F77")
def test_a_repository_that_cannot_be_reached_fails_in_time_with_nothing_half_done(deb: Made) -> None:
    site, kind = deb
    site.make("tool", "1-1")
    site.index()
    (site.root / "etc/apt/sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/ ./\n")
    lists = site.root / "var/lib/apt/lists"
    for path in lists.glob("*Packages"):
        path.rename(lists / "127.0.0.1:9_._Packages")
    plan = steps(kind, tool="1-1")
    before = time.monotonic()
    said = carried(kind, plan)["package:tool"]
    assert "nothing was touched" in said and site.version("tool") == ""
    assert time.monotonic() - before < 60


@APT
def test_an_old_version_that_apt_has_kept_needs_no_repository(deb: Made) -> None:
    site, kind = deb
    old, new = site.make("tool", "1:1-1"), site.make("tool", "1:2-1")
    site.install(str(new))
    old.rename(site.root / "var/cache/apt/archives" / "tool_1%3a1-1_all.deb")
    plan = steps(kind, tool="1:1-1")
    assert refusals(kind, plan) == ""
    assert carried(kind, plan) == {"package:tool": ""} and site.version("tool") == "1:1-1"


@APT
def test_a_held_package_is_left_to_a_person(deb: Made) -> None:
    site, kind = deb
    for version in ("1-1", "2-1"):
        site.make("tool", version)
    site.index()
    site.install("tool=2-1")
    sh("apt-mark", "hold", "tool", env=site.env)
    assert "Held packages" in refusals(kind, steps(kind, tool="1-1"))


@APT
def test_the_kernel_that_runs_is_never_removed(deb: Made) -> None:
    site, kind = deb
    site.make("linux-image", "1-1", files={f"boot/vmlinuz-{os.uname().release}": "x"})
    site.index()
    site.install("linux-image")
    assert "it is the kernel that runs" in refusals(kind, [Step("package:linux-image", None, {"version": "1-1"})])


@APT
def test_scripts_that_print_without_end_fill_no_memory(deb: Made) -> None:
    site, kind = deb
    site.make("loud", "1-1", scripts={"postinst": "head -c 60000000 /dev/zero; exit 0"})
    site.index()
    assert carried(kind, steps(kind, loud="1-1")) == {"package:loud": ""}


# -- rpm and dnf --------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("rpm", "rpmbuild")
def test_rpms_database_is_read_and_its_files_are_known(tmp_path: Path) -> None:
    site = RpmSite(tmp_path)
    first = site.make("tool", "3:1.0-1", files={"usr/bin/tool": "#!/bin/sh"})
    second = site.make("kern", "1-1"), site.make("kern", "2-1")
    site.install(first)
    site.rpm("-i", second[0])
    kind = Package(str(site.root))
    assert kind.observe("tool") == {"version": "3:1.0-1"} and kind.observe("nothing") is None
    assert kind.database.current() is not None, "asking rpm has not made the reading old"
    site.rpm("-i", "--force", second[1])
    assert kind.observe("kern") == {"version": "2-1", "also": ["1-1"]}
    assert list(kind.discover("*").names) == ["kern", "tool"]
    step = Step("package:tool", None, {"version": "3:1.0-1"})
    assert kind.roots("tool", step) == [os.fsencode(site.root / "usr/bin/tool")]
    assert SIDE_BY_SIDE in refusals(kind, [Step("package:kern", {"version": "1-1"}, kind.observe("kern"))])  # type: ignore[arg-type]


@pytest.mark.needs("dnf", "rpmbuild", "createrepo_c")
def test_a_script_of_rpms_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = RpmSite(tmp_path)
    kind = Package(str(site.root))
    monkeypatch.setattr(package_dnf, "TRANSACTION_S", 4.0)
    (site.root / "bin").mkdir(exist_ok=True)
    site.make("bad", "1-1", body="%post -p <lua>\nposix.sleep(500)\n")
    site.index()
    monkeypatch.setattr(package_tool, "ENDING_S", 3.0)
    before = time.monotonic()
    said = carried(kind, steps(kind, bad="1-1"))
    assert time.monotonic() - before < 60 and all("in time" in why or why == "" for why in said.values()), said


def test_without_a_tool_to_carry_it_out_a_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    rpm = tmp_path / "rpm"
    rpm.write_text("#!/bin/sh\nprintf 'tool\\t0\\t1\\t1\\tnoarch\\t5\\n'\n")
    rpm.chmod(0o755)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_text("x")
    kind = Package(str(tmp_path), {"rpm": str(rpm), "dnf": "/proc/none", "zypper": "/proc/none"})
    attrs: Attrs = {"version": "1-1"}
    assert kind.observe("tool") == attrs
    assert "neither dnf nor zypper" in refusals(kind, [Step("package:tool", None, attrs)])
    assert "neither dnf nor zypper" in carried(kind, [Step("package:tool", None, attrs)])["package:tool"]
