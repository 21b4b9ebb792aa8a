"""An entry of a file in TOML: the file's type, content, mode and attributes."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from pact.host import owned
from pact.model import Attrs, decode_name, encode_name
from pact.resources.base import from_base64
from pact.resources.support.dress import ACL_AGAIN, is_private, own_xattrs


def content(value: dict[str, Any], base_dir: str) -> tuple[Attrs | None, dict[str, bytes], bool]:
    given = [k for k in ("source", "content", "content_base64", "symlink", "sha256") if k in value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other")
    kind = value.get("type", "symlink" if given == ["symlink"] else "file" if given else None)
    if kind is None:
        raise ValueError('say what it is: content, source, symlink, or type = "directory" or "absent"')
    if kind not in ("file", "directory", "symlink", "absent"):
        raise ValueError(f'type {kind!r} is none of "file", "directory", "symlink", "absent"')
    if kind == "absent":
        extra = [k for k in value if k not in ("type", "consumers", "requires", "weight", "severity")]
        if extra:
            raise ValueError(f'type = "absent" takes no {extra[0]}')
        return None, {}, True
    if (kind == "symlink") != (given == ["symlink"]):
        raise ValueError('a symbolic link is declared by symlink = "target" alone')
    if kind == "directory" and given:
        raise ValueError(f"a directory has no {given[0]}")
    if kind == "symlink":
        if "mode" in value:
            raise ValueError("a symbolic link has no mode of its own: take mode out")
        if not isinstance(value["symlink"], str) or not value["symlink"]:
            raise ValueError("symlink must be the link's target")
        if b"\0" in decode_name(value["symlink"]):
            raise ValueError("symlink: no target has a NUL in it")
        return {"type": "symlink", "target": encode_name(decode_name(value["symlink"]))}, {}, True
    if not given:
        return {"type": kind}, {}, True
    if given == ["sha256"]:
        return _by_digest(value)
    body = _body(given[0], value[given[0]], base_dir)
    digest = hashlib.sha256(body).hexdigest()
    return {"type": "file", "sha256": digest, "size": len(body)}, {digest: body}, True


def _by_digest(value: dict[str, Any]) -> tuple[Attrs, dict[str, bytes], bool]:
    digest, size = value["sha256"], value.get("size", 0)
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("sha256 must be 64 lower-case hex digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("size must be a number of bytes")
    return {"type": "file", "sha256": digest, "size": size}, {}, False


def _body(key: str, value: Any, base_dir: str) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string")
    if key == "content":
        return value.encode()
    if key == "content_base64":
        return from_base64(key, value)
    path = os.path.join(base_dir, value)
    try:
        return owned.read_regular(path)
    except OSError as exc:
        raise ValueError(f"source {value!r}: {exc.strerror}") from None


def mode(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('mode must be octal digits in quotes, for example "0644"')
    try:
        number = int(value, 8)
    except ValueError:
        number = -1
    if not 0 <= number <= 0o7777 or not value.isdigit():
        raise ValueError(f'mode {value!r} is not octal; write for example "0644"')
    return f"{number:04o}"


def xattrs(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError('xattrs is a table of name = "base64"')
    for name, text in value.items():
        if b"\0" in decode_name(name) or encode_name(decode_name(name)) != name or "." not in name:
            raise ValueError(f"xattrs: {name!r} is no attribute's name; write for example user.note")
        from_base64(f"xattrs: {name}", text)
        raw = decode_name(name)
        if is_private(raw) and not raw.startswith(ACL_AGAIN):  # that stands in exports of before
            raise ValueError(f"xattrs: {name} belongs to the kernel or the file system, and cannot be declared")
    return own_xattrs({k: value[k] for k in sorted(value)})
