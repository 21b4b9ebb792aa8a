"""What the kernel writes, with names in it that users choose: mountinfo and the texts of /proc that Python reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from fuzz.kit import Feed, Target
from pact._fast import mounts
from pact._fast.mounts import Pattern, Space
from pact.agent.consumers import job_of
from pact.observe import attribution, mountinfo
from pact.resources.support import fstab, sysctl_text

#: A line as the kernel writes it: whatever users call their directories, the fields are these.
NAME: Final = rb"(?:[^ \t\n\\]|\\(?:040|011|012|134|043|054|075))*"
LINE: Final = re.compile(
    rb"[0-9]{1,9} [0-9]{1,9} [0-9]{1,4}:[0-9]{1,7} /"
    + NAME
    + rb" /"
    + NAME
    + rb" [a-z,=]+(?: (?!- )"
    + NAME
    + rb")* - (?!- )[a-z0-9._]+ "
    + NAME
    + rb" [ -~]*"
)


def mounted(data: bytes) -> None:
    """Both readers of mountinfo agree on what the kernel may write, and refuse the rest with ValueError alone."""
    try:
        entries = mountinfo.parse_mountinfo(data)
    except ValueError as exc:
        assert re.match(r"mountinfo line \d+: ", str(exc)), exc
        entries = None
    try:
        found = mounts.parse_mountinfo(data)
    except ValueError:
        found = None
    mountinfo.mount_table(data)
    if all(LINE.fullmatch(line) for line in data.split(b"\n")[:-1]) and data[-1:] in (b"", b"\n"):
        assert entries is not None and found is not None, data
        assert [(m.id, m.device, m.root, m.point, m.fstype.decode("utf-8", "backslashreplace")) for m in found] == [
            (e.mount_id, mounts.device(e.major, e.minor), e.root, e.mount_point, e.fstype) for e in entries
        ]
        assert set(mountinfo.mount_table(data)) == {e.mount_point for e in entries}
    space = Space(found or ())
    for mount in space.mounts:
        space.owner(mount.point)
        space.is_remote(mount.root)


def built(data: bytes) -> None:
    """The same, of lines that are made of fields."""
    feed = Feed(data)
    if not feed.number() & 1:
        return mounted(feed.rest())
    rows = []
    while feed and len(rows) < 40:
        names = [re.sub(rb"[ \t\n\\]", lambda m: b"\\%03o" % m[0][0], feed.take(feed.number() % 24)) for _ in range(3)]
        tags = b"".join(b" " + t for t in ((b"shared:1",), (), (b"master:2", b"propagate_from:3"))[feed.number() % 3])
        rows.append(
            b"%d %d %d:%d /%b /%b rw,relatime%b - %b %b rw\n"
            % (
                feed.number(2),
                feed.number(2),
                feed.number(),
                feed.number(2),
                names[0],
                names[1],
                tags,
                feed.pick((b"ext4", b"nfs4", b"fuse.x", b"tmpfs", b"autofs")),
                names[2] or b"none",
            )
        )
    return mounted(b"".join(rows))


def mount_seeds() -> Iterator[bytes]:
    with open("/proc/self/mountinfo", "rb") as f:
        real = f.read(3500).rpartition(b"\n")[0] + b"\n"
    rows = [
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
        b"22 1 0:21 / /a\\040b rw - tmpfs none rw\n",
        b"22 1 0:21 / /a\rb rw shared:1 - nfs4 h:/x rw,addr=::1\n",
        b"22 1 0:21 / /a\x0bb\x0c\x1c\x85 rw - fuse.sshfs u@h: rw\n",
        b"22 1 0:21 /a\\134b / rw - ext4  rw\n",
        b"1 1 0:1 / / rw - x  \n",
        b"1 1 0:1 / / rw\n",
        b"1 1 1 / / rw - a b c\n",
        b"\n",
        b"1 1 0:1 /\\9 / rw - a b c\n",
    ]
    for head in (b"\0", b"\1"):
        yield head + real
        yield from (head + r for r in rows)
        yield head + b"".join(rows[:5])


# -- other texts ----------------------------------------------------------------------------------------------------------

DEVICE: Final = mounts.device(8, 1)
INFO: Final = re.compile(
    rb"(?:pos:\t[0-9]+\nflags:\t[0-7]+\n)?(?:mnt_id:\t[0-9]{1,9}\n)?(?:ino:\t[0-9]{1,19}\n)?"
    rb"(?:(?!mnt_id|ino)[a-zA-Z_ -]+:[^\n]*\n)*"
)


def _targets() -> Any:
    out = mounts.Targets.__new__(mounts.Targets)
    out.own = Space([mounts.Mount(29, DEVICE, b"/", b"/", b"ext4"), mounts.Mount(30, 5, b"/", b"/r", b"nfs4")])
    out.inodes = {(DEVICE, 77): [0], (5, 77): [1]}
    out.devices, out.hard_links, out.places, out.proc = {DEVICE: [2]}, True, {}, b"/proc"
    out.own.patterns = [Pattern(b"/data", 0, False)]
    return out


OURS: Final = _targets()


def proc(data: bytes) -> None:
    """fdinfo, cgroups, terminals, sysctls: no text of the kernel's raises, and what is said of it is short and plain."""
    feed = Feed(data)
    what, text = feed.number() % 4, feed.rest()
    if what == 0:
        try:
            found = OURS.roots_of(text, OURS.own, b"/nonexistent", b"/data/a")
        except ValueError:
            assert not INFO.fullmatch(text), text
        except FileNotFoundError:
            assert b"ino:" not in text
        else:
            assert set(found) <= {0, 1}
    elif what == 1:
        writer = attribution.writer_from(7, (0, 0, 1000, 3, int.from_bytes(text[:3], "little"), text, text[3:], 1, 0))
        owner = attribution.owner_of(writer)
        assert (
            owner.user.isprintable() and writer.command.isprintable() and len(writer.command) <= attribution.COMMAND_MAX
        )
        assert attribution.unit_of(writer.cgroup) == writer.unit
        job_of(writer.cgroup)
    elif what == 2:
        first, _, second = text.decode("latin-1").partition("\0")
        assert sysctl_text.same(first, first)
        sysctl_text.same(first, second)
        assert sysctl_text.dotted(sysctl_text.dotted(sysctl_text.dotted(first))) == sysctl_text.dotted(first)
    else:
        options = text.decode("utf-8", "surrogateescape").split(",")
        for option in options:
            assert fstab.normal_option(fstab.normal_option(option)) == fstab.normal_option(option), option
        ordered = fstab.in_order(options)
        assert fstab.in_order(fstab.to_write(ordered)) == ordered, ordered
        fstab.conforms(options, options[::-1], "tmpfs")
        fstab.device_of(options[0])


def proc_seeds() -> Iterator[bytes]:
    for name in ("fdinfo/0", "cgroup", "cmdline", "status"):
        with open(f"/proc/self/{name}", "rb") as f:
            yield bytes([0 if name == "fdinfo/0" else 1]) + f.read(2000)
    yield b"\0pos:\t0\nflags:\t02\nmnt_id:\t29\nino:\t77\n"
    yield b"\0pos:\t0\nflags:\t02\nmnt_id:\t30\nino:\t77\ninotify wd:1 ino:4d sdev:800001 mask:2\n"
    yield b"\0pos:\t0\nflags:\t02\nmnt_id:\t29\n"
    for path in (b"/user.slice/user-1000.slice/session-3.scope", b"/system.slice/sshd.service", b"/../x", b"/"):
        yield b"\1\0\x88\0" + path
    yield b"\1\0\x88\0/system.slice/slurmstepd.scope/job_7/step_0"
    for pair in (
        b"1\x001",
        b"0x10\x0016",
        b"010\x008",
        b"1 2\x001 2 3",
        b"1-3,5\x005,1,2,3",
        b"a\tb\0a b",
        b"net.ipv4/a.b\0",
    ):
        yield b"\2" + pair
    yield b"\3rw,size=1m,mode=0755,user,noexec,nfsvers=4.2,rsize=1024,x-systemd.automount,bind,uid=0,subvol=/a/"
    yield b'\3UUID="a b",ro,rw,exec,users'


TARGETS: Final = {
    t.name: t
    for t in (
        Target("mountinfo", built, mount_seeds, [b" - ", b"\\040", b"shared:1", b"nfs4", b"\r", b" 0:21 / /"]),
        Target(
            "proc",
            proc,
            proc_seeds,
            [b"mnt_id:\t", b"ino:\t77\n", b".slice/", b".service", b"size=", b"mode=0", b"0x", b"user"],
        ),
    )
}
