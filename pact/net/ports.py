"""Many small messages of a ROUTER or DEALER at a time: in C if that was built, else with pyzmq alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact import _fast

if TYPE_CHECKING:
    from pact._fast.sockets import Port
else:
    try:
        if _fast.BACKEND != "compiled":
            raise ImportError(_fast.BACKEND)
        from pact._fast.sockets import Port
    except ImportError:  # also if libzmq cannot be reached from C
        from pact._fast.reference_sockets import Port

__all__ = ["Port"]
