"""Kernel modules. Attributes: ``state`` (``loaded``) and ``parameters`` (only declared ones are compared); ``secret``
names the parameters that not everybody may read.

Absent is ``None``: not loaded. A module that is built into the kernel counts as loaded and cannot be unloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, Unreadable
from pact.resources.base import (
    HALF_N,
    WHOLE_N,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    common,
    errno_text,
    export_common,
    refuse_unknown,
    run_tool,
)
from pact.resources.support.sysctl_text import same

NAME: Final = re.compile(r"[A-Za-z0-9_]+\Z")
MODPROBE_TIMEOUT_S: Final = 60
PARAMETERS_MAX: Final = 256
BUILT_IN: Final = "it is built into the kernel"


class Module(Kind):
    """``sys`` and ``modprobe`` can be set for machines without loadable modules, where only the parsing can be
    tested."""

    name = "module"
    dimension, severity = "kernel", 0.1
    spelling = "letters, digits and '_'"
    one_line = True

    def __init__(self, sys: str = "/sys/module", modprobe: str = "modprobe") -> None:
        self.sys = sys
        self.modprobe = modprobe

    def canonical(self, name: str) -> str:
        name = name.replace("-", "_")
        if not NAME.match(name):
            raise ValueError(f"{name!r} is no module name")
        return name

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self.canonical(name)
        if isinstance(value, str):
            value = {"state": value}
        if not isinstance(value, dict):
            raise ValueError('a module is "loaded", "unloaded" or a table with state and parameters')
        refuse_unknown(value, frozenset({"state", "parameters"}))
        state = value.get("state", "loaded")
        if state not in ("loaded", "unloaded"):
            raise ValueError(f'state {state!r} is none of "loaded", "unloaded"')
        if state == "unloaded":
            if "parameters" in value:
                raise ValueError("an unloaded module has no parameters")
            return Entry(Declared(None, **common(value)))
        parameters = value.get("parameters", {})
        if not isinstance(parameters, dict) or not all(
            NAME.match(k) and isinstance(v, str | int) for k, v in parameters.items()
        ):
            raise ValueError("parameters is a table of strings")
        attrs: Attrs = {"state": "loaded"}
        if parameters:
            attrs["parameters"] = {k: str(int(v) if isinstance(v, bool) else v) for k, v in sorted(parameters.items())}
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        if declared.attrs is None:
            return {"state": "unloaded", **export_common(declared)}
        return {**{k: v for k, v in declared.attrs.items() if k != "secret"}, **export_common(declared)}

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        top = f"{self.sys}/{name}"
        try:
            if not os.path.isdir(top):
                return None
            state = _read(f"{top}/initstate")
            if state not in (None, "live"):
                return Unreadable(f"module: {state}")
            attrs: Attrs = {"state": "loaded"}
            parameters = self._parameters(top)
            if parameters:
                attrs["parameters"] = parameters
            if closed := self._closed(top, parameters):
                attrs["secret"] = closed
        except OSError as exc:
            return Unreadable(errno_text("module", exc))
        return attrs

    @staticmethod
    def _parameters(top: str) -> dict[str, str]:
        try:
            names = sorted(os.listdir(f"{top}/parameters"))[:PARAMETERS_MAX]
        except FileNotFoundError:
            return {}
        out = {}
        for name in names:
            try:
                value = _read(f"{top}/parameters/{name}")
            except OSError:
                continue  # write-only
            if value is not None:
                out[name] = value
        return out

    @staticmethod
    def _closed(top: str, parameters: Iterable[str]) -> list[str]:
        """Those of these parameters that an ordinary account cannot read, or that cannot be examined at all.  # S2"""
        out = []
        for name in sorted(parameters):
            try:
                if os.lstat(f"{top}/parameters/{name}").st_mode & 0o004:
                    continue
            except OSError:
                pass  # the module is not loaded, or nobody may read this parameter
            out.append(name)
        return out

    def secret(self, attrs: Attrs | None) -> bool:
        return bool(attrs and attrs.get("secret"))

    def marked(self, name: str, attrs: Attrs | None) -> Attrs | None:
        """Adds ``secret`` from the modes of the live files: a declaration cannot say it."""
        closed = self._closed(f"{self.sys}/{name}", attrs["parameters"]) if attrs and "parameters" in attrs else []
        return {**(attrs or {}), "secret": closed} if closed else attrs

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        have = actual.get("parameters", {})
        wanted = declared.get("parameters", {})
        return 0 if all(_same(have.get(k), v) for k, v in wanted.items()) else HALF_N

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        if step.target is None:
            if not os.path.exists(f"{self.sys}/{name}/initstate"):
                raise RestoreError(BUILT_IN)
            run_tool("modprobe", MODPROBE_TIMEOUT_S, [self.modprobe, "-r", "--", name])
            return
        wanted = step.target.get("parameters", {})
        if step.actual is None:
            settings = [f"{k}={v}" for k, v in wanted.items()]
            run_tool("modprobe", MODPROBE_TIMEOUT_S, [self.modprobe, "--", name, *settings])
            return
        for key, value in wanted.items():
            if not _same(step.actual.get("parameters", {}).get(key), value):
                try:
                    with open(f"{self.sys}/{name}/parameters/{key}", "w", encoding="utf-8") as f:
                        f.write(value)
                except OSError as exc:
                    raise RestoreError(f"parameter {key}: {os.strerror(exc.errno or 0).lower()}; reload it") from None

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Whether modprobe would find the module; nothing is loaded to find out."""
        save = {"attrs": step.actual}
        if step.target is not None and step.actual is None:
            try:
                run_tool("modprobe", MODPROBE_TIMEOUT_S, [self.modprobe, "--dry-run", "--", name])
            except RestoreError as exc:
                return Saved(f"{step.id}: {exc.message}", save)
        if step.target is None and step.actual is not None and not os.path.exists(f"{self.sys}/{name}/initstate"):
            return Saved(f"{step.id}: {BUILT_IN}", save)
        wanted, have = (a.get("parameters", {}) if a else {} for a in (step.target, step.actual))
        for key, value in wanted.items() if step.actual is not None else ():
            if not _same(have.get(key), value) and not os.access(f"{self.sys}/{name}/parameters/{key}", os.W_OK):
                return Saved(f"{step.id}: parameter {key} can only be set when it is loaded: reload it", save)
        return Saved("", save)

    def in_use(self, name: str, step: Step) -> bool | None:
        if step.target is not None or step.actual is None:
            return False
        return bool(self.holders(name, step, step.id))

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        if step.target is not None or step.actual is None:
            return []
        top = f"{self.sys}/{name}"
        try:
            users = sorted(os.listdir(f"{top}/holders"))
        except OSError:
            users = []
        out = [Holder(resource, 0, "module", user) for user in users]
        count = _read_or(f"{top}/refcnt", "0")
        if count.isdigit() and int(count) > len(users):
            out.append(Holder(resource, 0, "unknown", f"reference count {count}"))
        return out

    def discover(self, pattern: str) -> Found:
        if not any(c in pattern for c in "*?["):
            return Found(iter([self.canonical(pattern)]), {}, exact=True)
        return Found(self._names(pattern), {})

    def _names(self, pattern: str) -> Iterator[str]:
        try:
            names = sorted(os.listdir(self.sys))
        except OSError:
            return
        for name in names:
            loadable = os.path.exists(f"{self.sys}/{name}/initstate")
            if loadable and fnmatchcase(name, pattern.replace("**", "*")):
                yield name


def _same(actual: str | None, declared: str) -> bool:
    """Whether two values are equal: booleans are read as Y and N and written as 1 and 0; numbers may have any base,
    also in arrays.  # D5"""
    if actual is None:
        return False
    spelled = {"Y": "1", "N": "0", "y": "1", "n": "0"}
    have, want = actual.split(","), declared.split(",")
    return len(have) == len(want) and all(
        spelled.get(h, h) == spelled.get(w, w) or same(w, h) for h, w in zip(have, want, strict=True)
    )


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as f:
            return f.read(4096).strip()
    except FileNotFoundError:
        return None


def _read_or(path: str, default: str) -> str:
    try:
        return _read(path) or default
    except OSError:
        return default


KIND: Final = Module()
