"""The kernels, in C if the extension is built, else in plain Python with the same results and the same exceptions.

``PACT_FAST`` decides: unset or empty uses the compiled kernels if they can be imported; ``compiled`` requires them;
``reference`` uses the naive twins. ``BACKEND`` tells which are used. Nothing here imports numpy.
"""

import os
from typing import TYPE_CHECKING, Literal

__all__ = [
    "BACKEND",
    "FileTable",
    "Holder",
    "TimerWheel",
    "has_float",
    "magnitude",
    "magnitudes",
    "members_in",
    "members_of",
    "open_handles",
    "open_handles_ex",
    "window_ns",
]

if TYPE_CHECKING:
    from pact._fast.files import FileTable
    from pact._fast.handles import open_handles, open_handles_ex
    from pact._fast.mounts import Holder
    from pact._fast.norms import magnitude, magnitudes, window_ns
    from pact._fast.strict import has_float, members_in, members_of
    from pact._fast.wheel import TimerWheel

    BACKEND: Literal["compiled", "reference"]
else:
    _wanted = os.environ.get("PACT_FAST", "")
    if _wanted not in ("", "compiled", "reference"):
        raise ImportError(f"PACT_FAST={_wanted!r}: write compiled or reference, or leave it unset")
    from pact._fast.mounts import Holder

    BACKEND = "reference"
    if _wanted != "reference":
        try:
            from pact._fast.files import FileTable
            from pact._fast.handles import open_handles, open_handles_ex
            from pact._fast.norms import magnitude, magnitudes, window_ns
            from pact._fast.strict import has_float, members_in, members_of
            from pact._fast.wheel import TimerWheel

            BACKEND = "compiled"
        except ImportError:
            if _wanted == "compiled":
                raise
    if BACKEND == "reference":
        from pact._fast.reference import (
            FileTable,
            TimerWheel,
            has_float,
            magnitude,
            magnitudes,
            members_in,
            members_of,
            open_handles,
            open_handles_ex,
            window_ns,
        )
