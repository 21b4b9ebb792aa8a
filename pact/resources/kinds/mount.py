"""Mounts. Attributes: ``source``, ``fstype``, ``options`` (sorted; only declared ones are compared).

Restoring uses mount(8), which knows every file system's helper; unmounting asks the kernel directly and never lazily.
An undeclared mount over a declared one is taken off first, if nothing uses it; mounts below stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pact._fast import syscalls
from pact.core.plan import Step, below
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, decode_name, encode_name
from pact.observe.mountinfo import AUTOFS, MountEntry, is_remote, read_mounts
from pact.resources.base import (
    HALF_N,
    MOUNTS,
    PATHS,
    WHOLE_N,
    Among,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    common,
    export_common,
    path_of,
    refuse_unknown,
    run_tool,
)
from pact.resources.kinds.mount_memory import MEMORY_TYPES, keep_contents, require_kept
from pact.resources.support.fstab import (
    BIND,
    FOREIGN_TYPES,
    OPPOSITE,
    conforms,
    in_order,
    in_userland,
    strict,
    to_write,
)
from pact.resources.support.loose import FROZEN, LOOSE, mounted
from pact.resources.support.mount_look import MountTable, attrs_of, but_for_writing, is_trigger, seen_of
from pact.resources.support.mount_options import MEMORY, meant, refused
from pact.resources.support.mount_origin import inside_of, is_bind, same_origin
from pact.resources.support.mount_point import TURNED, beside, has_helper, held, held_source, made, turnable
from pact.resources.support.mount_table import Stacks
from pact.resources.support.mount_users import KERNEL_TYPES, Copies, expire_says_busy, inside, kernel_holders
from pact.resources.support.patterns import WILD, compile_pattern
from pact.resources.support.way import hangs

MOUNT_TIMEOUT_S: Final = 60
ORIGIN: Final = ("source", "fstype", "root")
STACK_MAX: Final = 16
PASSED_PATHS: Final = ("/run", "/proc", "/sys", "/dev", "/var/lib/docker", "/var/lib/containers", "/var/lib/kubelet")

#: A bind mount has only these flags of its own; its other options belong to the file system.
OWN_FLAGS: Final = frozenset(
    {
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "noatime",
        "atime",
        "nodiratime",
        "diratime",
        "relatime",
        "strictatime",
        "nosymfollow",
    }
)
#: Mounted at first access, and perhaps not for long.
ON_DEMAND: Final = "x-systemd.automount"
LOOP_OPTIONS: Final = frozenset({"loop", "offset", "sizelimit"})
KEYS: Final = frozenset({"source", "fstype", "options", "type", "root"})


class Mount(Kind):
    name = "mount"
    dimension, severity = "mounts", 0.3
    spelling = PATHS
    is_path = bears = asked_anyway = True

    def canonical(self, name: str) -> str:
        return encode_name(path_of(name))

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        path_of(name)
        if not isinstance(value, dict):
            raise ValueError("a mount is a table: source, fstype, options")
        refuse_unknown(value, KEYS)
        if value.get("type") == "absent":
            return Entry(Declared(None, **common(value)))
        if "type" in value:
            raise ValueError('type may only be "absent" for a mount')
        for key in ("source", "fstype"):
            if not isinstance(value.get(key), str) or not value[key]:
                raise ValueError(f"{key} is missing or not a string")
        options = value.get("options", [])
        if isinstance(options, str):
            options = [o for o in options.split(",") if o]
        if not isinstance(options, list) or not all(isinstance(o, str) and o and "," not in o for o in options):
            raise ValueError("options must be a list of strings without commas")
        if b"\0" in decode_name(value["source"]) or "\0" in value["fstype"] + "".join(options):
            raise ValueError("nothing about a mount has a NUL in it")
        attrs = {
            "source": encode_name(decode_name(value["source"])),
            "fstype": value["fstype"],
            "options": in_order(options),
        }
        if "root" in value:
            if not isinstance(value["root"], str) or not value["root"].startswith("/"):
                raise ValueError("root must be the path within the file system that is mounted here")
            attrs["root"] = encode_name(decode_name(value["root"]))
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        if declared.attrs is None:
            return {"type": "absent", **export_common(declared)}
        keep = {k: declared.attrs[k] for k in ("source", "root", "fstype") if k in declared.attrs}
        options = declared.attrs["options"]
        if "backing" in declared.attrs:  # the loop device has another number next time
            keep["source"], options = declared.attrs["backing"], [*options, "loop"]
        if "trigger" in declared.attrs and ON_DEMAND not in options:
            options = [*options, ON_DEMAND]
        return {**keep, "options": to_write(options), **export_common(declared)}

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return MountTable().observe(name)

    def many(self) -> Callable[[str], Observation]:
        return MountTable().observe

    def heeds(self, what: str, name: str = "") -> bool:
        return what == MOUNTS

    def of_mount(self, entry: MountEntry) -> tuple[str, Attrs] | None:
        return encode_name(entry.mount_point), attrs_of(entry)

    def stack(self, name: str) -> list[MountEntry]:
        """The mounts at this point, the visible one last."""
        return Stacks(read_mounts()).at(decode_name(name))

    def top(self, name: str) -> MountEntry | None:
        stack = self.stack(name)
        return stack[-1] if stack else None

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None:
            return 0 if actual is None or is_trigger(actual) else WHOLE_N
        if actual is None:
            return WHOLE_N
        if is_trigger(declared):  # what an automounter mounts on itself is its own work
            return 0 if declared["source"] in (actual["source"], actual.get("trigger")) else WHOLE_N
        if is_trigger(actual) and (ON_DEMAND in declared["options"] or declared.get("trigger") == actual["source"]):
            return 0  # adopted while only the trigger was there, it is mounted on demand too
        if not same_origin(declared, actual):
            return WHOLE_N
        return 0 if _as_declared(declared, declared["options"], actual) else HALF_N

    def keep_in(self, directory: str, boot_id: str) -> Sequence[str]:
        """Keep what mounts have shown before, and which mounts lay below another one."""
        MEMORY.keep_in(os.path.join(directory, "mounts-seen"), boot_id)
        return ()

    # -- restoring ----------------------------------------------------------------------------------------------

    def turns(self, step: Step) -> bool:
        return step.actual is not None and step.target is None

    def shifts(self, step: Step) -> bool:
        return True

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        """Also before the unmounting of a mount that had been made read-only for it."""
        if seen is None or step.actual is None:
            return super().half_done(step, seen)
        return but_for_writing(seen) == but_for_writing(step.actual)

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        target = step.target
        if target is not None and not is_bind(target) and refused(target["fstype"], target["options"]):
            shown = ", ".join(target["options"])
            return Saved(f"{step.id}: {target['fstype']} does not take the options {shown}", {"attrs": step.actual})
        stack = self.stack(name)
        leaving = stack[-1:] if stack and _leaves(step.target, stack) else []
        files, lost = keep_contents(leaving[0], read_mounts(), keep) if leaving else ({}, "")
        return Saved(f"{step.id}: {lost}" if lost else "", {"attrs": step.actual}, inside=files)

    def disturbs(self, step: Step) -> bool:
        """A remount takes nothing away from consumers; the kernel itself refuses to make a mount read-only that is
        being written."""
        return step.target is None or step.actual is None or not same_origin(step.target, step.actual)

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        self.restore_kept(name, step, blobs, None)

    def restore_kept(self, name: str, step: Step, blobs: Blobs, saves: Mapping[str, Mapping[str, Any]] | None) -> None:
        """Only the top mount is the resource. Mounts on the declared one are taken off, mounts below stay. ``saves``:
        what the plan's record names as kept of a file system in memory."""
        target, mounted = step.target, False
        known = {m.mount_id for m in self._decided_about(name, step)}
        for _ in range(STACK_MAX):
            stack = self.stack(name)
            if not mounted and any(m.mount_id not in known for m in stack):
                raise RestoreError("another mount stands there now; it was left as it is")
            actual = seen_of(stack) if stack else None
            if self.distance_n(target, actual) == 0:
                return
            if mounted:  # a process may use it by now, and another attempt would give the same result
                assert target is not None
                if actual is not None and same_origin(target, actual):
                    MEMORY.took(stack[-1], target["options"], actual)
                    actual = seen_of(stack)
                    if self.distance_n(target, actual) == 0:
                        return
                raise RestoreError(f"it was mounted as declared, but that does not conform: {_unlike(target, actual)}")
            if target is not None and actual is not None and same_origin(target, actual):
                self._remount(name, target, actual)
                return
            if stack and _leaves(target, stack):
                self._unmount(name, blobs, saves)
            else:
                assert target is not None
                self._mount(name, target)
                mounted = True
        raise RestoreError("more mounts on top of each other than can be taken off")

    def _decided_about(self, name: str, step: Step) -> list[MountEntry]:
        """The present stack, if its top comes from the same source as the mount decided about.  # R12"""
        stack, decided = self.stack(name), step.actual
        now = attrs_of(stack[-1]) if stack else None
        if now is not None and decided is not None and any(now.get(k) != decided.get(k) for k in ORIGIN):
            raise RestoreError("another mount stands there now; it was left as it is")
        return stack

    def _unmount(self, name: str, blobs: Blobs, saves: Mapping[str, Mapping[str, Any]] | None) -> None:
        entry, path = self.top(name), decode_name(name)
        try:
            with beside(path, entry) as place:
                self._take_off(entry, place, blobs, saves)
        except OSError as exc:
            raise RestoreError(f"umount: {(exc.strerror or os.strerror(exc.errno or 0)).lower()}") from None

    @staticmethod
    def _take_off(
        entry: MountEntry | None, place: bytes, blobs: Blobs, saves: Mapping[str, Mapping[str, Any]] | None
    ) -> None:
        frozen = 0 if entry is None else _freeze(entry, place)
        try:
            if entry is not None:
                require_kept(entry, read_mounts(), blobs, saves)
            syscalls.umount2(place, syscalls.UMOUNT_NOFOLLOW)
        except (OSError, RestoreError):
            if frozen:
                syscalls.mount_read_only(place, False)
                LOOSE.end(frozen)  # not if that failed: the next start tries again
            raise
        if frozen:
            LOOSE.end(frozen)

    def _mount(self, name: str, target: Attrs) -> None:
        path = decode_name(name)
        if os.path.realpath(path) != path:
            raise RestoreError("the mount point lies behind a symbolic link; it is not followed")
        source, fstype, options = decode_name(target["source"]), target["fstype"], _kernel_options(target)
        if "backing" in target:
            source, options = decode_name(target["backing"]), [*options, "loop"]
        if "root" in target and not any(o.startswith("subvol") for o in options):
            source, fstype, options = inside_of(target), "none", ["bind", *(o for o in options if o in OWN_FLAGS)]
        bound = source if is_bind({**target, "options": options}) else b""
        command = [b"mount", b"-n", b"-t", fstype.encode()]
        if options:
            command += [b"-o", ",".join(options).encode()]
        with made(path, bound), held(path, fstype) as (place, fds), _origin(source, bound, options) as (what, more):
            if fds or more:
                command.append(b"--no-canonicalize")
            run_tool("mount", MOUNT_TIMEOUT_S, [*command, b"--", what, place], [*fds, *more])

    def _remount(self, name: str, target: Attrs, actual: Attrs) -> None:
        declared = [o for o in _kernel_options(target) if o not in BIND and o.partition("=")[0] not in LOOP_OPTIONS]
        gone = set[str]().union(*(OPPOSITE.get(o, set()) for o in declared))
        keys = {o.partition("=")[0] for o in declared if "=" in o}
        kept = [o for o in actual["options"] if o not in gone and o.partition("=")[0] not in keys and o not in declared]
        words = [*kept, *declared]
        if "root" in actual or is_bind(target) or self._is_shared(name, target, actual):
            # Other mounts use its file system, too: that is left as it is.
            words = ["bind", *(o for o in words if o in OWN_FLAGS)]
        options = ",".join(["remount", *words])
        # The command names all present options already. If mount(8) merged them, an old noatime would win over a new
        # relatime; a server's file system may need options that only fstab has.
        merged = [] if is_remote(actual["fstype"]) else [b"--options-mode", b"ignore"]
        with _standing(decode_name(name), actual["fstype"]) as (place, fds):
            plain = [b"--no-canonicalize"] if fds else []
            command = [b"mount", b"-n", *plain, *merged, b"-o", options.encode(), b"--", place]
            run_tool("mount", MOUNT_TIMEOUT_S, command, fds)

    def _is_shared(self, name: str, target: Attrs, actual: Attrs) -> bool:
        """Whether its file system is mounted elsewhere too, and only flags of this mount must be repaired."""
        entry = self.top(name)
        lacking = [o for o in target["options"] if not _as_declared(target, [o], actual)]
        return (
            entry is not None
            and all(o in OWN_FLAGS for o in lacking)
            and not ("rw" in lacking and b"ro" in entry.super_options)
            and bool(Copies(entry).found)
        )

    def restore_among(self, name: str, step: Step, blobs: Blobs, among: Among) -> None:
        self.restore_kept(name, step, blobs, among.saves)

    # -- consumers ----------------------------------------------------------------------------------------------

    def leaves_with(self, holder: Holder, names: Collection[str]) -> bool:
        """A mount inside this one that the same plan takes off does not block."""
        return holder.how == "mount" and holder.pid == 0 and holder.path in names

    def is_unsure(self, name: str, said: Mapping[str, bool | None]) -> bool:
        return not self._is_answered_for(name, said)

    def _is_answered_for(self, name: str, said: Mapping[str, bool | None]) -> bool:
        """The kernel answers for a mount with mounts inside only after those are gone (MNT_EXPIRE refuses it as busy).

        If all of them leave with the same plan, and the kernel calls each idle, the scan of /proc decides about the
        outer one although it could not read every process. That puts no data at risk: the plan unmounts from the inside
        out, and the plain umount2 of the outer one asks the kernel again. A consumer that nothing showed makes the
        change ``failed``, with the idle inner mounts gone.
        """
        entry = self.top(name)
        within = [encode_name(m.mount_point) for m in inside(entry)] if entry is not None else []
        for inner in within:
            answer = said.get(f"mount:{inner}", True)  # a mount that stays is a holder
            if answer is True or (answer is None and not self._is_answered_for(inner, said)):
                return False
        return bool(within)

    def in_use(self, name: str, step: Step) -> bool | None:
        """Ask the kernel with MNT_EXPIRE; not for network mounts, which may hang, nor with mounts inside. If the
        unmounting reaches copies of this mount, they are asked in turn.  # F5"""
        if step.actual is None:
            return False
        stack = self.stack(name)
        if not stack or _stays_idle(step.target, stack):
            return False
        entry = stack[-1]
        if is_remote(entry.fstype) or inside(entry):
            return None
        busy = expire_says_busy(entry.mount_point)
        return Copies(entry).busy() if busy is False else busy

    def roots(self, name: str, step: Step) -> list[bytes]:
        return [decode_name(name)] if step.actual is not None else []

    def covers(self, name: str, step: Step) -> bool:
        """Whether more than the visible mount leaves."""
        stack = self.stack(name)
        return len(stack) > 1 and _leaves(step.target, stack) and _leaves(step.target, stack[:-1])

    def reached(self, name: str) -> Callable[[int, bytes], bool] | None:
        entry = self.top(name)
        return None if entry is None else Copies(entry).concerns

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        stack = self.stack(name)
        if not stack or _stays_idle(step.target, stack):
            return []
        return kernel_holders(stack[-1], resource)

    # -- adopt --------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        passed: dict[str, int] = {}
        raw = pattern.encode("utf-8", "surrogateescape")
        if not WILD.search(raw) or any(m.mount_point == raw for m in read_mounts()):
            return Found(iter([self.canonical(pattern)]), passed, exact=True)
        return Found(self._names(raw, passed), passed)

    def pattern(self, text: str) -> str:
        if not text.startswith(("/", "*", "?", "[")):
            raise ValueError(f"{text!r} is not an absolute path pattern")
        return text

    def means(self, pattern: str, name: str) -> bool:
        if any(name == p or below(name, p) for p in PASSED_PATHS):
            return False
        return compile_pattern(pattern.encode("utf-8", "surrogateescape")).match(decode_name(name)) is not None

    def newcomers(self, pattern: str) -> set[str]:
        """Without the mounts of an automounter, on its own mount or below it: they are its work, not new things."""
        tops = [encode_name(m.mount_point) for m in read_mounts() if m.fstype == AUTOFS]
        return {n for n in super().newcomers(pattern) if not any(n == t or below(n, t) for t in tops)}

    def _names(self, raw: bytes, passed: dict[str, int]) -> Iterator[str]:
        matcher, mounts = compile_pattern(raw), read_mounts()
        stacks = Stacks(mounts)
        for point in dict.fromkeys(m.mount_point for m in mounts):
            stack = stacks.at(point) if matcher.match(point) else []
            if not stack:
                continue  # another mount hides it
            entry, text = stack[-1], encode_name(point)
            if entry.fstype in FOREIGN_TYPES or entry.fstype in KERNEL_TYPES:
                passed["the kernel's, a container's or an automounter's"] = (
                    passed.get("the kernel's, a container's or an automounter's", 0) + 1
                )
            elif any(text == p or below(text, p) for p in PASSED_PATHS):
                passed["volatile place"] = passed.get("volatile place", 0) + 1
            else:
                yield text


def _leaves(target: Attrs | None, stack: Sequence[MountEntry]) -> bool:
    """Whether bringing ``target`` back takes the visible mount off: always if the declared one lies below it. Otherwise
    not if it is an automounter, or stood below another mount before: the declared one is mounted over these."""
    actual = seen_of(stack)
    if target is None or same_origin(target, actual):
        return target is None and not is_trigger(actual)
    if any(same_origin(target, attrs_of(m)) for m in stack[:-1]):
        return True
    return not is_trigger(actual) and "base" not in actual


def _stays_idle(target: Attrs | None, stack: Sequence[MountEntry]) -> bool:
    """Whether the visible mount stays as it is, and the declared one is mounted over it."""
    return target is not None and not same_origin(target, seen_of(stack)) and not _leaves(target, stack)


def _as_declared(declared: Attrs, options: Sequence[str], actual: Attrs) -> bool:
    """Whether these declared options are in force."""
    if is_bind(declared):
        options = [o for o in options if o in OWN_FLAGS]
    return conforms(options, actual["options"], actual["fstype"], actual.get("was", ()), meant(options, actual))


def _kernel_options(target: Attrs) -> list[str]:
    """The options for mount(8); without ``bg``, because nobody would see a failure in the background."""
    return [
        o
        for o in strict(target["options"])
        if o != "bg" and (not in_userland(o) or o.partition("=")[0] in LOOP_OPTIONS)
    ]


@contextmanager
def _origin(source: bytes, bound: bytes, options: Sequence[str]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """The source of a bind mount, or the image under a loop device, in the form for mount(8)."""
    if (not bound and "loop" not in options) or not source.startswith(b"/") or hangs(source):
        yield source, ()
        return
    with held_source(source) as named:
        yield named


@contextmanager
def _standing(path: bytes, fstype: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """An existing mount, in the form for mount(8)."""
    if not turnable(path):
        yield path, ()
        return
    if has_helper(fstype):
        raise RestoreError(TURNED.format(fstype))
    try:
        with beside(path) as place:
            yield place, (int(place.split(b"/")[4]),)
    except OSError as exc:
        raise RestoreError(f"mount: {(exc.strerror or '').lower()}") from None


def _unlike(target: Attrs, actual: Attrs | None) -> str:
    """How the mount differs from its declaration, for people."""
    if actual is None:
        return "nothing is mounted"
    if not same_origin(target, actual):
        return f"{actual['source']} ({actual['fstype']}) is mounted, not {target['source']} ({target['fstype']})"
    missing = [o for o in target["options"] if not _as_declared(target, [o], actual)]
    return "the kernel does not show the options " + ", ".join(missing)


def _freeze(entry: MountEntry, place: bytes) -> int:
    """Make a file system in memory read-only, so that nothing is written between the last observation and its
    unmounting. Returns 0 if that is impossible or is already so: then the observation right before must do, and umount
    fails if it is open. Otherwise returns a number: the step is on record, and is taken back if a kill comes in
    between.  # R11"""
    if entry.fstype not in MEMORY_TYPES or b"ro" in entry.options:
        return 0
    try:
        number = LOOSE.begin(FROZEN, **mounted(entry))
    except OSError as exc:
        raise RestoreError(f"it cannot be put on record that it is made read-only: {exc.strerror}") from None
    try:
        syscalls.mount_read_only(place, True)
    except OSError:
        LOOSE.end(number)
        return 0
    return number


KIND: Final = Mount()
