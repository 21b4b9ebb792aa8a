"""A file of declared state, in the form for a request."""

from __future__ import annotations

import base64
import os
import sys
from typing import Any

from pact.declared.toml import DeclaredSet, Ignore, parse_text, read_file
from pact.errors import DeclaredError


def fields(path: str, *, empty: bool = False) -> dict[str, Any]:
    """``path`` may be ``-``, standard input. ``empty``: it may declare nothing, but must not be blank."""
    found: DeclaredSet
    label = "(standard input)" if path == "-" else path
    if path == "-":
        found = parse_text(sys.stdin.buffer.read(), label, os.getcwd(), Ignore())
    else:
        found = read_file(path, Ignore())
    if not found.resources and not found.track and (found.blank or not empty):
        raise DeclaredError(label, 0, "declares nothing")
    return {
        "resources": {r: d.to_json() for r, d in found.resources.items()},
        "blobs": {digest: base64.b64encode(data).decode() for digest, data in found.blobs.items()},
        **({"track": found.track} if found.track else {}),  # older agents do not know this field
    }
