"""``magnitudes`` beside a C loop that runs at memory bandwidth and numpy's best expression.

numpy's: ``w * d * d`` into a buffer kept from call to call, ``add.reduceat`` and ``sqrt`` with ``out=``.
"""

from __future__ import annotations

import ctypes
import sys
from array import array
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from _beside import Figure, compile_c, faster, in_turns, main, within  # noqa: E402

from pact._fast import magnitudes, window_ns  # noqa: E402


def run(quick: bool = False) -> list[Figure]:
    library = compile_c("norms", "-Ofast")
    resources, segments = 1_000_000, 10_000
    rng = np.random.default_rng(1)
    d, w = rng.random(resources), rng.random(resources)
    cuts = np.sort(rng.integers(1, resources, segments - 1))
    offsets = np.unique(np.concatenate(([0], cuts, [resources]))).astype(np.int64)
    n = len(offsets) - 1
    ours, c, theirs = (np.zeros(n) for _ in range(3))
    scratch = np.empty(resources)

    def in_c() -> None:
        library.magnitudes(
            ctypes.c_void_p(d.ctypes.data),
            ctypes.c_void_p(w.ctypes.data),
            ctypes.c_void_p(offsets.ctypes.data),
            ctypes.c_int64(n),
            ctypes.c_void_p(c.ctypes.data),
        )

    def in_numpy() -> None:
        np.multiply(w, d, out=scratch)
        np.multiply(scratch, d, out=scratch)
        np.add.reduceat(scratch, offsets[:-1], out=theirs)
        np.sqrt(theirs, out=theirs)

    def in_ours() -> None:
        magnitudes(d, w, offsets, ours)  # type: ignore[call-overload]  # arrays are buffers, say their types from 3.12 on

    took = in_turns(31 if quick else 301, {"ours": in_ours, "c": in_c, "numpy": in_numpy})
    assert np.allclose(ours, c, rtol=1e-12) and np.allclose(ours, theirs, rtol=1e-12)
    label = f"magnitudes, {resources:,} resources, {n:,} segments"
    windows = array("q", bytes(8 * n))

    def in_numpy_windows() -> None:
        (60e9 / (1.0 + theirs * 0.5)).astype(np.int64)

    def in_our_windows() -> None:
        window_ns(ours, 60 * 10**9, 0.5, windows)  # type: ignore[call-overload]

    window = in_turns(101, {"ours": in_our_windows, "numpy": in_numpy_windows})
    return [
        within(f"{label}: C loop at memory bandwidth", took["ours"], took["c"], 1.1),
        faster(f"{label}: numpy reduceat with out=", took["ours"], took["numpy"], 2.5),
        within(f"window_ns, {n:,} magnitudes: numpy", window["ours"], window["numpy"], 1.5),
    ]


if __name__ == "__main__":
    main(run)
