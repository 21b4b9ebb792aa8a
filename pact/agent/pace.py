"""What the pace of records depends on, beside time: whose hands a resource is in, and how long its record is.  # S3"""

from __future__ import annotations

from pact.model import Attrs


def is_others(attrs: Attrs | None) -> bool:
    """Whether somebody beside root may move it as it is now. What has no owner (a sysctl, a mount) root alone moves."""
    if attrs is None:
        return True  # who owns its directory may have removed it
    mode = attrs.get("mode", "")
    writable = isinstance(mode, str) and mode.isdigit() and bool(int(mode, 8) & 0o022)
    return "owner" in attrs and (attrs["owner"] not in ("root", "0") or writable)


def length(attrs: Attrs | None) -> int:
    """About how long the attributes are in a record."""
    values = [v for each in (attrs or {}).values() for v in (each.values() if isinstance(each, dict) else (each,))]
    return sum(len(v) for v in values if isinstance(v, str))
