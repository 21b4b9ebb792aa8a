"""Drift magnitudes and windows over many resources at once, at the speed of memory.

A sum of floats depends on its order, and a window that depended on the backend or on a processor's vector width would
make replay differ between machines. So the order is fixed: element ``i`` of a segment is added to partial sum ``i %
8``, and the eight are added as ``((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))``. The reference twin does the same,
and multiplications and additions are never fused: equal input gives equal bits everywhere.

Bad values are refused, never repaired. Finding them needs no separate pass: NaN and infinities survive into the sum,
and sign bits are collected beside it.
"""

from array import array

from cpython.buffer cimport PyBuffer_Release
from cpython.long cimport PyLong_AsLongLong
from cpython.number cimport PyNumber_Index
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t

from pact._fast.buffers cimport take_buffer


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    enum { PACT_GOOD, PACT_BAD_OFFSETS, PACT_BAD_SUM };

    static const uint64_t pact_keep[16] = {-1ull, -1ull, -1ull, -1ull, -1ull, -1ull, -1ull, -1ull};
    typedef double pact_pair __attribute__((vector_size(16)));
    typedef uint64_t pact_bits __attribute__((vector_size(16)));

    /* Add eight products to the sums; four pairs, which is what every processor has registers for. */
    static inline __attribute__((always_inline)) void
    pact_stripe(pact_pair sum[4], pact_bits seen[4], const double *d, const double *w, const uint64_t *keep)
    {
        for (int k = 0; k < 4; k++) {
            pact_bits dv, wv, mask;
            memcpy(&dv, d + 2 * k, sizeof dv);
            memcpy(&wv, w + 2 * k, sizeof wv);
            if (keep) {
                memcpy(&mask, keep + 2 * k, sizeof mask);
                dv &= mask;
                wv &= mask;
            }
            sum[k] += (pact_pair)wv * (pact_pair)dv * (pact_pair)dv;
            seen[k] |= dv | wv;
        }
    }

    /* out[s] = sqrt(sum(w * d * d)) of each segment; every bit set in any value is collected in *signs. The end of a
     * segment is read as a whole stripe, if that stays inside the buffers, and what does not belong is masked. */
    static int pact_segments(const double *d, const double *w, int64_t count, const int64_t *offsets,
                             int64_t segments, double *out, uint64_t *signs)
    {
        pact_bits seen[4] = {{0}};
        uint64_t bits[8];
        int64_t begin = offsets[0];
        int finite = 1;
        if (begin != 0)
            return PACT_BAD_OFFSETS;
        for (int64_t s = 0; s < segments; s++) {
            int64_t i = begin, end = offsets[s + 1];
            pact_pair sum[4] = {{0}};
            double part[8], total;
            if (end < begin || end > count)
                return PACT_BAD_OFFSETS;
            for (; i + 8 <= end; i += 8) {
                __builtin_prefetch(d + i + 256);
                __builtin_prefetch(w + i + 256);
                pact_stripe(sum, seen, d + i, w + i, NULL);
            }
            if (i < end && count - i >= 8) {
                pact_stripe(sum, seen, d + i, w + i, pact_keep + 8 - (end - i));
            } else if (i < end) {
                double last[16] = {0};
                memcpy(last, d + i, (size_t)(end - i) * sizeof(double));
                memcpy(last + 8, w + i, (size_t)(end - i) * sizeof(double));
                pact_stripe(sum, seen, last, last + 8, NULL);
            }
            memcpy(part, sum, sizeof part);
            total = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
            finite &= total <= 1.7976931348623157e308;
            out[s] = __builtin_sqrt(total);
            begin = end;
        }
        if (begin != count)
            return PACT_BAD_OFFSETS;
        memcpy(bits, seen, sizeof bits);
        *signs = bits[0] | bits[1] | bits[2] | bits[3] | bits[4] | bits[5] | bits[6] | bits[7];
        return finite ? PACT_GOOD : PACT_BAD_SUM;
    }
    """
    int GOOD "PACT_GOOD"
    int BAD_OFFSETS "PACT_BAD_OFFSETS"
    int BAD_SUM "PACT_BAD_SUM"
    int segments "pact_segments"(
        const double *, const double *, int64_t, const int64_t *, int64_t, double *, uint64_t *
    ) noexcept nogil


cdef bint any_negative(const double *values, int64_t count) noexcept nogil:
    """Whether a collected sign bit belongs to more than -0.0."""
    cdef int64_t i
    for i in range(count):
        if values[i] < 0.0:
            return True
    return False


cdef int check_values(const double *d, const double *w, int64_t count, uint64_t signs, bint finite) except -1:
    if not finite:
        raise ValueError("a deviation or weight is NaN or infinite, or their sum is")
    if signs >> 63 and (any_negative(d, count) or any_negative(w, count)):
        raise ValueError("a deviation or weight is negative")
    return 0


def magnitude(deviations, weights):
    """``sqrt(sum(w * d * d))`` of two float64 buffers of one length; 0.0 for empty ones.

    ValueError: lengths differ, a value is negative, NaN or infinite, or the sum overflows.
    """
    cdef Py_buffer d, w
    cdef uint64_t signs = 0
    cdef int64_t[2] offsets
    cdef double result = 0.0
    cdef int verdict
    take_buffer(deviations, &d, True, False)
    try:
        take_buffer(weights, &w, True, False)
        try:
            if d.shape[0] != w.shape[0]:
                raise ValueError(f"{d.shape[0]} deviations but {w.shape[0]} weights")
            offsets[0] = 0
            offsets[1] = d.shape[0]
            with nogil:
                verdict = segments(
                    <const double *>d.buf, <const double *>w.buf, d.shape[0], offsets, 1, &result, &signs
                )
            check_values(<const double *>d.buf, <const double *>w.buf, d.shape[0], signs, verdict == GOOD)
            return result
        finally:
            PyBuffer_Release(&w)
    finally:
        PyBuffer_Release(&d)


def magnitudes(deviations, weights, indptr, out=None):
    """The magnitude of each segment ``indptr[i]:indptr[i + 1]``.

    ``deviations`` and ``weights``: float64 buffers of one length n. ``indptr``: int64 offsets, from 0 to n, never
    decreasing. ``out``: a writable float64 buffer with one item for each segment, filled and returned; without it an
    ``array('d')`` is made. ValueError as for ``magnitude``, and for bad offsets; ``out`` is then unspecified.
    """
    cdef Py_buffer d, w, p, o
    cdef uint64_t signs = 0
    cdef int verdict
    cdef int64_t n
    take_buffer(deviations, &d, True, False)
    try:
        take_buffer(weights, &w, True, False)
        try:
            take_buffer(indptr, &p, False, False)
            try:
                n = p.shape[0] - 1
                if d.shape[0] != w.shape[0]:
                    raise ValueError(f"{d.shape[0]} deviations but {w.shape[0]} weights")
                if n < 0:
                    raise ValueError("indptr is empty: it holds one offset more than there are segments")
                if out is None:
                    out = array("d", bytes(8 * n))
                take_buffer(out, &o, True, True)
                try:
                    if o.shape[0] != n:
                        raise ValueError(f"out has {o.shape[0]} items for {n} segments")
                    with nogil:
                        verdict = segments(
                            <const double *>d.buf, <const double *>w.buf, d.shape[0], <const int64_t *>p.buf, n,
                            <double *>o.buf, &signs,
                        )
                finally:
                    PyBuffer_Release(&o)
                if verdict == BAD_OFFSETS:
                    raise ValueError(f"indptr must rise from 0 to {d.shape[0]} without a step down")
                check_values(<const double *>d.buf, <const double *>w.buf, d.shape[0], signs, verdict == GOOD)
                return out
            finally:
                PyBuffer_Release(&p)
        finally:
            PyBuffer_Release(&w)
    finally:
        PyBuffer_Release(&d)


cdef inline int64_t one_window(double magnitude, int64_t base, double sensitivity) noexcept nogil:
    """The window; -1 for a malformed magnitude."""
    cdef double window
    if not (magnitude >= 0.0 and isfinite(magnitude)):
        return -1
    window = <double>base / (1.0 + magnitude * sensitivity)
    if window >= 9223372036854775808.0:  # 2^63: a base near it is rounded up to it
        return base
    return min(<int64_t>window, base)


cdef int windows(const double *m, int64_t n, int64_t base, double sensitivity, int64_t *out) noexcept nogil:
    cdef int64_t i
    cdef bint good = True
    for i in range(n):
        out[i] = one_window(m[i], base, sensitivity)
        good = good and out[i] >= 0
    return GOOD if good else BAD_SUM


def window_ns(magnitudes, base_ns, double sensitivity, out=None):
    """``int(base_ns / (1 + magnitude * sensitivity))`` in float64, never more than ``base_ns`` (invariant A3).

    ``magnitudes``: one number, which gives an int, or a float64 buffer, which fills and returns ``out`` (a writable
    int64 buffer of its length; without it an ``array('q')`` is made). ValueError: a magnitude or ``sensitivity`` is
    negative, NaN or infinite; ``base_ns`` is not positive; lengths differ. OverflowError: ``base_ns`` outside int64.
    """
    cdef Py_buffer m, o
    cdef int verdict
    cdef int64_t window
    cdef int64_t base = PyLong_AsLongLong(PyNumber_Index(base_ns))
    if base <= 0:
        raise ValueError(f"base_ns {base_ns} is not positive")
    if not (sensitivity >= 0.0 and isfinite(sensitivity)):
        raise ValueError(f"sensitivity {sensitivity} is negative, NaN or infinite")
    if isinstance(magnitudes, (float, int)):
        window = one_window(magnitudes, base, sensitivity)
        if window < 0:
            raise ValueError(f"magnitude {magnitudes} is negative, NaN or infinite")
        return window
    take_buffer(magnitudes, &m, True, False)
    try:
        if out is None:
            out = array("q", bytes(8 * m.shape[0]))
        take_buffer(out, &o, False, True)
        try:
            if o.shape[0] != m.shape[0]:
                raise ValueError(f"out has {o.shape[0]} items for {m.shape[0]} magnitudes")
            with nogil:
                verdict = windows(<const double *>m.buf, m.shape[0], base, sensitivity, <int64_t *>o.buf)
        finally:
            PyBuffer_Release(&o)
    finally:
        PyBuffer_Release(&m)
    if verdict != GOOD:
        raise ValueError("a magnitude is negative, NaN or infinite")
    return out
