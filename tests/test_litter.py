"""Temporary names of editors, package and configuration managers, and real ones that look a little like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.resources.kinds.file import KIND
from pact.resources.support.litter import is_litter

LITTER = (
    ".conf.swp", ".conf.swo", ".conf.swx", ".conf.swpx", ".conf.swn", ".swp", "conf.swp", "4913", "conf~", ".conf~",
    "conf.~1~", "conf.12345.2026-11-28@19:15:13~", ".#conf", ".#conf0123456789abcdef", "#conf#", "#.conf#",
    ".saves-123-host~", "DEADJOE", ".conf.kate-swp", "conf.kate-swp", ".goutputstream-AB12CD", "conf___jb_tmp___",
    ".~lock.conf.ods#", "sedAb3dEf", "sed1wXyZq", "conf.dpkg-new", "conf.dpkg-tmp", "conf.dpkg-old", "conf.dpkg-dist",
    "conf.dpkg-bak", "conf.dpkg-remove", "conf.ucf-new", "conf.ucf-old", "conf.ucf-dist", "conf.rpmnew", "conf.rpmsave",
    "conf.rpmorig", "conf.rpmsave.1", "conf;5f3a9b1c", "conf.pacnew", "conf.pacsave.2", "conf.apk-new",
    "._cfg0000_conf", "conf20261128-4711-1abcd3", ".conf20261128-4711-1abcd3.lock", ".chef-conf20261128-1-abcdef",
    ".chef-x", ".ansible_tmpabcdefgconf", "ansible-tmp-1700000000.1-2-3", "__salt.tmp.a1b2c3d4", "conf.cfnew",
    "conf.cfsaved", "conf.cfdisabled", "conf.cf-before-edit", "conf.augnew", "conf.augsave", "conf.augnew.XBcdEF",
    ".conf.Ab3dEf", ".conf.X9K2AB", "conf.aB3xYz", "tmp.Ab3dEfGhIj", "tmpab1cd2e_", "conf.tmp", "conf.tmp.4711",
    "sudoers.tmp", "passwd-", "passwd+", "shadow.lock", "group-", "passwd.4711", ".pwd.lock", "nshadow", "conf.filepart",
    ".nfs000000000012345600000001", ".fuse_hidden0000001200000001", ".pact-0123456789abcdef", "kept.pact-0123456789abcdef",
    ".git/index", ".git/objects/ab/cdef", ".git", "x/.svn/entries", ".~tmp~/conf", ".ansible/tmp/x",
)  # fmt: skip
REAL = (
    "conf", ".conf", "x.conf", ".bashrc", ".profile", ".gitignore", ".gitconfig", ".gitattributes", ".gitmodules",
    "flake.lock", "Cargo.lock", "poetry.lock", "foo.lock", "rules.save", "x.bak", "x.orig", "x.new", "x.old", "x.sav",
    "swap", "swapfile", "x.swap", ".answer", ".theme.svg", "4913.conf", "49130", "#readme", "readme#", "core", "a~b",
    "sed", "sedation", "sedentary", "sed.conf", "dpkg.cfg", "x.dpkg", "rpm.conf", "rpmnew.conf", "net;1", "x;y.conf",
    "tmpfiles.d", "tmp", "tmp.conf", "tmpfiles_x", "template", "x.tmpl", "x.template", "passwd", "shadow", "group.conf",
    "ifcfg-eth0.RHEL68", "x.config", ".x.config", ".x.backup", "x.Config", "repo.Rocky9", "x.README", "x.SAMPLE",
    "x.201501", ".x.201501", "x.20261128", "backup-20261128", "zone20261128-01", "x-20261128-1.conf", "ansible.cfg",
    ".ansible.cfg", "puppet.conf", "chef.rb", ".chefignore", "salt", "cfengine.conf", "x.cf", "main.cf", "augeas.conf",
    ".nfsrc", "nfs.conf", "fuse.conf", ".hidden/x.conf", "git/config", "a.git/config", "CVSROOT", "pact.conf", "x.part",
    "libfoo.so.1", "libfoo.so.1.2.3", "10-x.rules", "user@1000.service", "x.service.d/override.conf", "lost+found",
    "authorized_keys", "x.key.pub", "nslcd.conf", "pam.d/common-auth", "99-sysctl.conf", "host.allow", "X11/xorg.conf",
)  # fmt: skip


@pytest.mark.parametrize("name", LITTER)
def test_names_that_programs_give_while_they_work_are_litter(name: str) -> None:
    assert is_litter(f"/srv/etc/{name}".encode())


@pytest.mark.parametrize("name", REAL)
def test_names_that_people_give_are_not(name: str) -> None:
    assert not is_litter(f"/srv/etc/{name}".encode())


def test_a_pattern_passes_litter_over_and_counts_it_and_an_exact_name_takes_it(tmp_path: Path) -> None:
    for name in ("conf", ".#conf", "#conf#", ".conf.swx", "conf.rpmsave"):
        (tmp_path / name).write_text("x")
    found = KIND.discover(f"{tmp_path}/**")
    assert list(found.names) == [str(tmp_path), f"{tmp_path}/conf"]
    assert found.passed == {"a temporary name of an editor, package or configuration manager": 4}
    assert list(KIND.discover(f"{tmp_path}/.#conf").names) == [f"{tmp_path}/.#conf"]
