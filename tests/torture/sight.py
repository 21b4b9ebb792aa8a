"""What is on the machine, read without pact: files and mounts below a directory, and some sysctls.

A thing is a plain dict that can be compared: what a file is, holds and belongs to; how a mount is mounted; a value.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Collection, Iterable
from typing import Any

Thing = dict[str, Any]
Look = dict[str, Thing]
ABSENT: Thing = {"type": "absent"}


def file_at(path: str) -> Thing:
    """What stands at ``path`` itself; no link is followed."""
    try:
        st = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as exc:
        if exc.errno != errno.ELOOP:  # links on the way that lead to each other
            raise
        return ABSENT
    thing: Thing = {"mode": f"{stat.S_IMODE(st.st_mode):04o}", "owner": _user(st.st_uid), "group": _group(st.st_gid)}
    if stat.S_ISLNK(st.st_mode):
        try:
            target = os.readlink(path)
        except OSError:  # it was replaced between the two looks
            return file_at(path)
        return {"type": "symlink", "target": target, "owner": thing["owner"], "group": thing["group"]}
    if stat.S_ISDIR(st.st_mode):
        return {"type": "directory", **thing}
    if not stat.S_ISREG(st.st_mode):
        return {"type": "other", **thing}
    try:
        with open(path, "rb") as f:
            return {"type": "file", **thing, "content": f.read()}
    except FileNotFoundError:  # it went between the two looks
        return ABSENT


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def files_below(top: str, hung: Collection[str] = ()) -> Look:
    """All that lies below ``top``, by resource; what is below a path of ``hung`` is not looked at."""
    out: Look = {}
    todo = [top]
    while todo:
        directory = todo.pop()
        try:
            names = os.listdir(directory)
        except OSError:  # it went, or is no directory any more
            continue
        for name in names:
            path = f"{directory}/{name}"
            if path in hung:
                continue
            thing = file_at(path)
            if thing is not ABSENT:
                out[f"file:{path}"] = thing
            if thing["type"] == "directory":
                todo.append(path)
    return out


def mounts_below(top: str) -> Look:
    """The mount on top at each point below ``top``, with how many lie on each other there."""
    out: Look = {}
    with open("/proc/self/mountinfo") as f:
        for line in f:
            fields = line.split()
            point, tail = fields[4], fields[fields.index("-") + 1 :]
            if point.startswith(f"{top}/"):
                depth = out.get(f"mount:{point}", {}).get("depth", 0) + 1
                options = {*fields[5].split(","), *tail[2].split(",")}
                out[f"mount:{point}"] = {
                    "type": "mounted",
                    "fstype": tail[0],
                    "source": tail[1],
                    "root": fields[3],
                    "options": frozenset(options),
                    "depth": depth,
                }
    return out


def sysctls(names: Iterable[str]) -> Look:
    out: Look = {}
    for name in names:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}") as f:
                out[f"sysctl:{name}"] = {"value": " ".join(f.read().split())}
        except FileNotFoundError:
            continue
    return out


def look(top: str, names: Iterable[str], hung: Collection[str] = ()) -> Look:
    """Everything at once: what was moved meanwhile is looked at again. Some of the files may have lain below a mount that
    came or went, and one switch of the kernel's has several names, which one moment shows alike."""
    names = list(names)
    while True:
        mounts, values = mounts_below(top), sysctls(names)
        files = files_below(top, hung)
        if sysctls(names) == values and mounts_below(top) == mounts:
            return {**files, **mounts, **values}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
