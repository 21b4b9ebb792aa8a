"""Names that programs give to files while they work: editors, package managers, configuration managers, copies.

Such a file exists only for a moment, or is a copy that its program keeps beside the real file. Patterns never match it;
its exact name may still be adopted. Names that people use themselves (``flake.lock``, ``rules.save``, ``x.bak``,
``x.orig``, ``x.new``) are not in the list: it is better to watch one file too many than to miss a real one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

#: Adopted only by exact name, by reason: identities, keys that rotate, files that other programs write all day.
ROTATES: Final = "rotates, or identifies the node or its users"
_ROTATING: Final = (
    "/etc/shadow*",
    "/etc/gshadow*",
    "/etc/passwd*",
    "/etc/group*",
    "/etc/subuid*",
    "/etc/subgid*",
    "/etc/.pwd.lock",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/etc/adjtime",
    "/etc/mtab",
    "/etc/ld.so.cache",
    "/etc/krb5.keytab",
    "*.keytab",
    "/etc/munge/munge.key",
    "/etc/ssh/ssh_host_*",
    "*.pem",
    "*.key",
    "*.crt",
    "/etc/ssl/certs/*",
    "/etc/pki/*",
    "/etc/letsencrypt/*",
    "*/.ssh/*",
    "/run/*",
    "/var/run/*",
    "*.swp",
    "*~",
    "/etc/pact/*",
    "/var/lib/pact/*",
    "*/.pact-*",
)
PASSED_OVER: Final[Mapping[str, Sequence[str]]] = {
    ROTATES: _ROTATING,
    "a package manager's own state": (
        "/var/lib/dpkg/*",
        "/var/lib/apt/*",
        "/var/cache/apt/*",
        "/var/cache/debconf/*",
        "/var/lib/rpm/*",
        "/usr/lib/sysimage/rpm/*",
        "/var/lib/dnf/*",
        "/var/lib/yum/*",
        "/var/cache/dnf/*",
        "/var/cache/yum/*",
        "/var/lib/zypp/*",
        "/var/cache/zypp/*",
        "/var/lib/PackageKit/*",
    ),
    "a DHCP client's or network manager's own state": (
        "/var/lib/dhcp/*",
        "/var/lib/dhcpcd/*",
        "/var/lib/dhclient/*",
        "/var/lib/NetworkManager/*",
        "/var/lib/systemd/network/*",
        "/var/lib/wicked/*",
        "/var/lib/connman/*",
        "/etc/resolvconf/run/*",
        "/etc/*.dhclient-new.*",
        "/etc/*.dhcp-backup*",
    ),
    "kept by the service manager from boot to boot": (
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/timers/*",
        "/var/lib/systemd/catalog/*",
        "/var/lib/systemd/coredump/*",
        "/var/lib/systemd/linger/*",
    ),
}

#: Six letters and digits as mkstemp(3) and glib make them, at the end: not a word or a date.
_MADE_UP: Final = rb"(?=[A-Za-z0-9]*[A-Z0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{6}"
#: The same after a name that gives no hint: upper case, lower case, and a digit that is not the last character.
_SURELY_MADE_UP: Final = rb"(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*[a-z])(?=[A-Za-z0-9]*[0-9][A-Za-z0-9])[A-Za-z0-9]{6}"

#: (program, pattern of its names). Each pattern is for the whole last component of a path.
NAMES: Final[Sequence[tuple[str, bytes]]] = (
    ("vim, nano: swap files (.swp, .swo ... .swx)", rb"\.(?:.*\.)?sw(?:[a-z]|px)|.*\.swp"),
    ("vim: may it write here? (it adds 123 where one is there)", rb"4913|5036|5159|5282"),
    ("vi, emacs, nano, joe, mc, ansible: backups", rb".*~"),
    ("emacs, systemd, mcedit: locks and files being written", rb"\.#.*"),
    ("emacs, jed: auto-save", rb"#.+#"),
    ("emacs: list of auto-saved files", rb"\.saves-.*"),
    ("joe", rb"DEADJOE"),
    ("kate, kwrite", rb".*\.kate-swp"),
    ("gedit and everything on gio", rb"\.goutputstream-.*"),
    ("JetBrains' editors", rb".*___jb_(?:tmp|old|bak)___"),
    ("LibreOffice; Microsoft's", rb"\.~lock\..*#|~\$.+"),
    ("sed -i", rb"sed" + _MADE_UP),
    ("dpkg", rb".*\.dpkg-[a-z]+(?:\.[a-z]+)?"),
    ("ucf", rb".*\.ucf-[a-z]+"),
    ("apt", rb".*\.(?:apt-new|apt-old)"),
    ("rpm: kept and being unpacked", rb".*\.rpm(?:new|save|orig|moved)(?:\.\d+)?|.*;[0-9a-f]{8}"),
    ("pacman", rb".*\.pac(?:new|save|orig)(?:\.\d+)?"),
    ("apk", rb".*\.apk-new|\.apk\.[0-9a-f]+"),
    ("portage", rb"\._cfg\d{4}_.*"),
    ("puppet, chef and all of Ruby's Tempfile", rb".*(?:19|20)\d{6}-\d{1,7}-[0-9a-z]{5,7}(?:\.lock)?"),
    ("puppet", rb".*\.puppet-bak|\.puppettmp_.*|.*\.puppettmp.*"),
    ("chef", rb"\.chef-.*"),
    ("ansible", rb"\.ansible_tmp.*|ansible-tmp-.*|\.ansible_async.*"),
    ("salt", rb"__salt\.tmp\..*|\.__salt.*|.*\.salt-tmp.*"),
    ("cfengine", rb".*\.cf(?:new|saved|disabled|edited|-before-edit|-after-edit)(?:\..*)?"),
    ("augeas", rb".*\.aug(?:new|save)(?:\..*)?"),
    ("bcfg2, rudder", rb".*\.(?:bcfg2|rudder)-?tmp.*"),
    ("rsync and whoever writes beside: .name.XXXXXX", rb"\..+\." + _MADE_UP),
    ("glib, Qt, mktemp(1) beside the file: name.XXXXXX", rb".+\." + _SURELY_MADE_UP),
    ("mktemp(1)", rb"tmp\.(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{10}"),
    ("Python's tempfile", rb"tmp(?=[a-z0-9_]*[0-9])[a-z0-9_]{8}"),
    ("many: being written", rb".*\.tmp|.*\.tmp[.-](?:\d+|[A-Za-z0-9]{6})"),
    (
        "the shadow suite: locks, backups, being written",
        rb"(?:passwd|shadow|group|gshadow|subuid|subgid)(?:[-+]|\.lock|\.edit|\.\d+|\.org)|\.pwd\.lock|n(?:passwd|shadow)",
    ),
    ("WinSCP, curl, browsers: being copied", rb".*\.(?:filepart|crdownload)"),
    (
        "NFS, FUSE, AFS, SMB: removed while open",
        rb"\.nfs[0-9a-f]{8,}|\.fuse_hidden[0-9a-f]+|\.__afs[0-9A-F]+|\.smbdelete[0-9A-Fa-f]+",
    ),
    ("pact", rb"(?:kept)?\.pact-.*|.+\.kept\.pact-.*"),
)
#: Directories without configuration: history, and places for work.
DIRECTORIES: Final = frozenset(
    {
        b".git",
        b".hg",
        b".svn",
        b".bzr",
        b"CVS",
        b".~tmp~",
        b".rsync-partial",
        b".ansible",
        b".snapshot",
        b".snapshots",
    }
)

_NAME: Final = re.compile(b"|".join(b"(?:%b)" % pattern for _, pattern in NAMES), re.DOTALL)


def is_litter(path: bytes) -> bool:
    """Whether its name, or that of a directory in which it lies, is one that a program gives while it works."""
    above, name = os.path.split(path)
    return _NAME.fullmatch(name) is not None or name in DIRECTORIES or not DIRECTORIES.isdisjoint(above.split(b"/"))
