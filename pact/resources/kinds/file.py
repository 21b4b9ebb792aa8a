"""Files: regular files, directories, symbolic links, and paths that must be absent.

Attributes: ``type`` (file, directory, symlink, fifo, socket, block, char), ``mode`` (octal text), ``owner`` and
``group`` (names, numbers where there is no name), ``sha256`` and ``size`` of a regular file, ``target`` of a link,
``xattrs`` (name -> base64; ACLs and the SELinux label are among them), ``flags`` (``i`` immutable, ``a`` append-only;
left out where neither is set). A declaration may name only some of them; only those are compared. Absent is ``None``.
"""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from pact.core.plan import Step
from pact.model import Attrs, Declared, Holder, Observation, Unreadable, decode_name, encode_name
from pact.observe.mountinfo import read_mounts
from pact.resources.base import (
    HALF_N,
    PATHS,
    WHOLE_N,
    Among,
    Blobs,
    Entry,
    Found,
    Held,
    Keep,
    Kind,
    Saved,
    common,
    errno_text,
    export_common,
    path_of,
    refuse_unknown,
)
from pact.resources.support.accounts import same_group, same_user
from pact.resources.support.ahead import Ahead
from pact.resources.support.dress import own_xattrs
from pact.resources.support.file_look import glance, look_at, metadata, signed_as
from pact.resources.support.file_toml import content, mode, xattrs
from pact.resources.support.flags import parse_flags, stuck
from pact.resources.support.loops import on_file
from pact.resources.support.replace import restore_file, somebody_has_open
from pact.resources.support.unit_files import proposals
from pact.resources.support.way import TurnableLink, closed, enterable, hangs, open_parent, open_regular

KEYS: Final = frozenset(
    {
        "source",
        "content",
        "content_base64",
        "symlink",
        "type",
        "owner",
        "group",
        "mode",
        "xattrs",
        "sha256",
        "size",
        "flags",
    }
)
#: The types that can be declared.
DECLARABLE: Final = frozenset({"file", "directory", "symlink"})
#: Whoever owns a file may take a lease on it, and then who opens it has to wait, or is refused.
LEASED: Final = "file: somebody holds a lease on it, and lets nobody read it (F_SETLEASE)"
#: The attributes that make it a different file.
CONTENT: Final = ("type", "sha256", "target")


class File(Kind):
    name = "file"
    dimension, severity = "files", 0.1
    volatile = False
    ignored = ("/tmp/**", "/var/log/**", "/proc/**", "/sys/**", "/dev/**", "/run/user/**")
    spelling = PATHS
    is_path = carried = steady = reads_path = walked = True

    def canonical(self, name: str) -> str:
        return encode_name(path_of(name))

    # -- TOML ---------------------------------------------------------------------------------------------------

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        path_of(name)
        if not isinstance(value, dict):
            raise ValueError("a file is a table: content, source, symlink or type, and owner, group, mode")
        refuse_unknown(value, KEYS)
        attrs, blobs, restorable = content(value, base_dir)
        if attrs is None:
            return Entry(Declared(None, **common(value)))
        for key in ("owner", "group"):
            if key in value:
                if not isinstance(value[key], str | int) or isinstance(value[key], bool) or value[key] == "":
                    raise ValueError(f"{key} must be a name or a number")
                attrs[key] = str(value[key])
        if "mode" in value:
            attrs["mode"] = mode(value["mode"])
        if "xattrs" in value:
            attrs["xattrs"] = xattrs(value["xattrs"])
        if "flags" in value:
            if attrs["type"] == "symlink":
                raise ValueError("a symbolic link has no flags: take flags out")
            attrs["flags"] = parse_flags(value["flags"])
        sources = [os.path.join(base_dir, value["source"])] if "source" in value else []
        return Entry(Declared(attrs, restorable=restorable, **common(value)), blobs, sources)

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        attrs = declared.attrs
        if attrs is None:
            return {"type": "absent", **export_common(declared)}
        out: dict[str, Any] = {}
        if attrs["type"] == "symlink":
            out["symlink"] = attrs["target"]
        elif attrs["type"] != "file":
            out["type"] = attrs["type"]
        elif "sha256" in attrs:
            content = blobs(attrs["sha256"]) if declared.restorable else None
            if content is None:
                out.update(sha256=attrs["sha256"], size=attrs["size"])
            else:
                text = self._as_text(content)
                key, body = (
                    ("content", text) if text is not None else ("content_base64", base64.b64encode(content).decode())
                )
                out[key] = body
        else:
            out["type"] = "file"
        dress = (
            ("owner", "group", "xattrs")
            if attrs["type"] == "symlink"
            else ("owner", "group", "mode", "xattrs", "flags")
        )
        out.update({k: attrs[k] for k in dress if k in attrs})
        return {**out, **export_common(declared)}

    # -- observation --------------------------------------------------------------------------------------------

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return self.look(name, keep)[0]

    def look(
        self, name: str, keep: Keep | None = None, *, private: bool = False, signed: dict[str, bytes] | None = None
    ) -> tuple[Observation, bool]:
        """The present state. With ``private`` also whether its content, as it was read, is secret: because of its own
        mode, or of a directory on the way, checked on the directory from which it was read.  # S2

        ``signed`` gets the signature of a regular file, if the signature is reliable.
        """
        try:
            dirfd, leaf, straight = open_parent(decode_name(name))
        except (FileNotFoundError, NotADirectoryError):
            return None, True
        except TurnableLink:
            return Unreadable("file: it lies behind a symbolic link that others can turn"), True
        except OSError as exc:
            return Unreadable(errno_text("file", exc)), True
        except ValueError as exc:
            return Unreadable(f"file: {exc}"), True
        try:
            seen = look_at(name, dirfd, leaf, keep, signed)
            if not private or isinstance(seen, Unreadable):
                return seen, True
            return seen, self.secret(seen) or not straight or closed(dirfd)
        except (FileNotFoundError, NotADirectoryError):
            return None, True
        except OSError as exc:
            leased = exc.errno == errno.EAGAIN  # it is opened without waiting
            return Unreadable(LEASED if leased else errno_text("file", exc)), True
        finally:
            os.close(dirfd)

    def is_still(self, name: str, signature: bytes) -> bool:
        """Whether a regular file is the same as when it was signed; writes through a mapping may be missed."""
        try:
            dirfd, leaf, _ = open_parent(decode_name(name))
        except (OSError, ValueError):
            return False
        try:
            return signed_as(os.stat(leaf, dir_fd=dirfd, follow_symlinks=False)) == signature
        except OSError:
            return False
        finally:
            os.close(dirfd)

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        for key in CONTENT:
            if key in declared and declared[key] != actual.get(key):
                return WHOLE_N
        for key in ("mode", "xattrs"):  # an older version let the mode of a link in
            if key in declared and declared[key] != actual.get(key) and (key, declared["type"]) != ("mode", "symlink"):
                if key == "xattrs" and own_xattrs(declared[key]) == actual.get(key):
                    continue
                return HALF_N
        if "flags" in declared and declared["flags"] != actual.get("flags", ""):
            return HALF_N
        if "owner" in declared and not same_user(declared["owner"], actual.get("owner", "")):
            return HALF_N
        if "group" in declared and not same_group(declared["group"], actual.get("group", "")):
            return HALF_N
        return 0

    # -- how it stands to others ----------------------------------------------------------------------------------

    def turns(self, step: Step) -> bool:
        a, t = step.actual, step.target
        return a is not None and a.get("type") == "symlink" and t is not None and t.get("type") == "directory"

    def shifts(self, step: Step) -> bool:
        return _led(step.actual) != _led(step.target)

    def directory(self, name: str) -> str:
        return "" if name == "/" else f"file:{os.path.dirname(name)}"

    def has_content(self, attrs: Attrs) -> bool:
        return bool(attrs.get("type") == "file")

    def is_anothers(self, actual: Attrs, known: Sequence[Attrs]) -> bool:
        return not any(_is_same(actual, k) for k in known)

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        """Also between the changes of owner, mode, attributes and flags: then its content is the old one or the new
        one."""
        if seen is None:
            return super().half_done(step, seen)
        return any(_is_same(seen, end) for end in (step.actual, step.target) if end is not None)

    # -- restoring ----------------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Keep the content that will be overwritten, up to the limit; a person must move a larger one away."""
        actual, target = step.actual, step.target
        save: dict[str, Any] = {"attrs": actual}
        if why := stuck(actual, target):
            return Saved(f"{step.id}: {why}", save)
        if actual is not None and actual["type"] == "directory" and (target is None or target["type"] != "directory"):
            try:
                if os.listdir(decode_name(name)):
                    return Saved(f"{step.id}: the directory is not empty", save)
            except OSError as exc:
                return Saved(f"{step.id}: {errno_text('directory', exc)}", save)
        if actual is not None and actual["type"] == "file" and self._content_goes(step):
            again, save["secret"] = self._reckoned(name, keep)
            if again != actual:
                return Saved(f"{step.id} changes while it is read", save)
            if actual["sha256"] not in keep.known:
                why = keep.unkept.get(step.id, f"{actual['size']} bytes are too many to keep a copy of")
                return Saved(f"{step.id}: {why}; move it aside", save)
            save["sha256"] = actual["sha256"]
        if actual is not None and actual["type"] in ("socket", "block", "char", "fifo"):
            return Saved(f"{step.id} is a {actual['type']} now: pact does not replace those", save)
        return Saved("", save, self._other_names(name, step))

    def _reckoned(self, name: str, keep: Keep) -> tuple[Observation, bool]:
        """The present state, as ``look`` returns it; its content is counted as kept, if it may be."""
        looked = None if keep.hold else keep.looked.pop(name, None)
        if looked is None:
            return self.look(name, keep, private=True)
        seen = looked[0]
        if isinstance(seen, dict) and "sha256" in seen:
            keep.take(f"file:{name}", seen["sha256"], seen["size"], None)
        return looked

    def _other_names(self, name: str, step: Step) -> str:
        """Reports other names of a replaced file: they keep its present content."""
        if step.target is None or step.actual is None or step.actual["type"] != "file" or not self._content_goes(step):
            return ""
        try:
            dirfd, leaf, _ = open_parent(decode_name(name))
            try:
                others = os.stat(leaf, dir_fd=dirfd, follow_symlinks=False).st_nlink - 1
            finally:
                os.close(dirfd)
        except OSError:
            return ""
        if others < 1:
            return ""
        many = f"{others} other names (hard links)" if others > 1 else "another name (a hard link)"
        return f"{step.id} has {many}: restoring gives it a content of its own"

    @staticmethod
    def _content_goes(step: Step) -> bool:
        target, actual = step.target, step.actual
        assert actual is not None
        return target is None or target["type"] != "file" or target.get("sha256", actual["sha256"]) != actual["sha256"]

    def disturbs(self, step: Step) -> bool:
        same = step.actual is not None and step.target is not None and step.actual["type"] == step.target["type"]
        return not same or (step.actual is not None and step.actual["type"] == "file" and self._content_goes(step))

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        restore_file(path_of(name), step, blobs)

    def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
        restore_file(path_of(name), step, blobs, among.ahead if isinstance(among.ahead, Ahead) else None, among.closed)

    def goes_ahead(self, step: Step) -> bool:
        return step.target is not None and bool(step.target["type"] == "file")

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        """Also finds out whether it is secret, while it is being read."""
        if keep.hold:
            return self.observe(name)
        # Times from another machine's clock are less reliable.
        signs = signed is not None and not hangs(decode_name(name))
        keep.looked[name] = seen, _ = self.look(name, private=True, signed=signed if signs else None)
        return seen

    def carry(self, name: str, step: Step, keep: Keep) -> Saved:
        seen, secret = self.look(name, keep, private=True)
        if seen != step.actual or not isinstance(seen, dict):
            return Saved(f"{step.id} changes while it is read", {"attrs": step.actual})
        save: dict[str, Any] = {"attrs": seen, "secret": secret}
        if seen["type"] == "file":
            if seen["sha256"] not in keep.known:
                why = keep.unkept.get(step.id, f"{seen['size']} bytes are too many to keep a copy of")
                what = f"{step.id} is seen through what is replaced, and cannot be brought back: {why}; move it back"
                return Saved(what, save)
            save["sha256"] = seen["sha256"]
        return Saved("", save)

    def left_behind(self, name: str, step: Step) -> str:
        """The target of a replaced link stays; it is not named for a link in a closed directory.  # S2"""
        if step.actual is None or not self.turns(step):
            return ""
        led = str(step.actual["target"]) if self.reachable(name) else "what it led to"
        return f"{step.id}: what lies in {led} stays there"

    def in_use(self, name: str, step: Step) -> bool | None:
        """The kernel grants a write lease only if no process has the file open."""
        if step.actual is None:
            return False
        if step.actual["type"] == "symlink":
            return False
        if step.actual["type"] != "file":
            return False if step.target is not None and step.target["type"] == step.actual["type"] else None
        return leased(decode_name(name))

    def roots(self, name: str, step: Step) -> list[bytes]:
        if step.actual is None or step.actual["type"] not in ("file", "directory"):
            return []
        return [decode_name(name)]

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        """Loop devices on this file: no process has it open."""
        if step.actual is None or step.actual["type"] != "file":
            return []
        return [Holder(resource, 0, "loop", device) for device in on_file(decode_name(name), step.inode)]

    def watch(self, name: str) -> list[bytes]:
        return [decode_name(name)]

    def glance(self, name: str) -> Attrs | None:
        return glance(decode_name(name))

    def presence(self, name: str) -> Observation:
        """Its metadata. A link that other accounts can replace is not followed."""
        try:
            dirfd, leaf, _ = open_parent(decode_name(name))
            try:
                return metadata(os.stat(leaf, dir_fd=dirfd, follow_symlinks=False))
            finally:
                os.close(dirfd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as exc:
            return Unreadable(f"file: {exc}")

    def held(self, name: str) -> Held:
        """Follows no link that other accounts can replace; all of it comes from one descriptor of its directory."""
        try:
            dirfd, leaf, straight = open_parent(decode_name(name))
        except (FileNotFoundError, NotADirectoryError):
            return Held(None, None, self.reachable(name))
        except (OSError, ValueError) as exc:
            return Held(Unreadable(f"file: {exc}"), None, False)
        try:
            open_to_all = straight and not closed(dirfd)
            st = os.stat(leaf, dir_fd=dirfd, follow_symlinks=False)
            return Held(metadata(st), (st.st_dev, st.st_ino), open_to_all)
        except FileNotFoundError:
            return Held(None, None, open_to_all)
        except OSError as exc:
            return Held(Unreadable(errno_text("file", exc)), None, False)
        finally:
            os.close(dirfd)

    def reachable(self, name: str) -> bool:
        return enterable(decode_name(name)) is True

    def of_path(self, path: bytes) -> str | None:
        return encode_name(path)

    def undeclarable(self, attrs: Attrs | None) -> str:
        what = "file" if attrs is None else attrs.get("type", "file")
        return "" if what in DECLARABLE else f"a {what}"

    # -- for people ---------------------------------------------------------------------------------------------

    def secret(self, attrs: Attrs | None) -> bool:
        if attrs is None or attrs.get("type") != "file":
            return False
        return bool(attrs.get("secret")) or not int(attrs.get("mode", "0"), 8) & 0o004

    def meant_secret(self, attrs: Attrs | None) -> bool:
        return self.secret(attrs) and attrs is not None and ("mode" in attrs or bool(attrs.get("secret")))

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """Adds ``secret`` if a directory on the way is closed now (a mount there may be gone when the value is shown),
        or if no mode is declared and the present file is not world-readable."""
        if attrs is None or "sha256" not in attrs:
            return attrs
        open_to_all = enterable(decode_name(name)) is not False
        if open_to_all and "mode" not in attrs:
            there = self.presence(name)
            open_to_all = not isinstance(there, dict) or not self.secret(there)
        return attrs if open_to_all else {**attrs, "secret": True}

    def text(self, attrs: Attrs | None, blobs: Blobs) -> str | None:
        if attrs is None or attrs.get("type") != "file" or "sha256" not in attrs:
            return None
        content = blobs(attrs["sha256"])
        return None if content is None else self._as_text(content)

    @staticmethod
    def _as_text(content: bytes) -> str | None:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return None if any((ord(c) < 32 and c not in "\n\t\r\f") or ord(c) == 127 for c in text) else text

    # -- adopt --------------------------------------------------------------------------------------------------

    def misnamed(self, name: str) -> str:
        parent = os.path.dirname(decode_name(name))
        return "" if os.path.realpath(parent) == parent else "lies behind a symbolic link; adopt its real path"

    def remarks(self) -> Callable[[str, Attrs], str]:
        bound = {m.mount_point for m in read_mounts()}
        why = "is bind-mounted: it is watched, but cannot be replaced by a rollback"
        propose = proposals()

        def remark(name: str, seen: Attrs) -> str:
            if seen.get("type") != "file":
                return ""
            if decode_name(name) in bound:
                return why
            notify = propose(name)
            return f"is read by a service: declare it with {notify}" if notify else ""

        return remark

    def pattern(self, text: str) -> str:
        from pact.resources.support.discover import trail

        trail(text)
        return text

    def means(self, pattern: str, name: str) -> bool:
        from pact.resources.support.discover import trail

        return trail(pattern).means(decode_name(name))

    def discover(self, pattern: str) -> Found:
        from pact.resources.support.discover import discover_files, is_literal

        passed: dict[str, int] = {}
        return Found(discover_files(pattern, passed), passed, exact=is_literal(pattern))


def _is_same(one: Attrs, other: Attrs) -> bool:
    return all(one.get(k) == other.get(k) for k in CONTENT)


def _led(attrs: Attrs | None) -> str | None:
    """The target of a link. A directory that comes or goes is empty: nothing is seen below it that was not seen
    before."""
    return attrs.get("target", "") if attrs is not None and attrs.get("type") == "symlink" else None


def leased(path: bytes) -> bool | None:
    """True if a process has the regular file open, False if surely none has, None if leases cannot tell."""
    try:
        dirfd, leaf, _ = open_parent(path)
    except (OSError, ValueError):
        return None
    try:
        fd = open_regular(dirfd, leaf)
    except OSError:
        return None
    finally:
        os.close(dirfd)
    try:
        return somebody_has_open(fd)
    finally:
        os.close(fd)


KIND: Final = File()
