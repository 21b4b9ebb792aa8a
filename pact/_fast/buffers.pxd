"""One way for every kernel to accept a caller's buffer, so that both backends refuse the same things the same way.

A buffer is one-dimensional, contiguous, of eight-byte items: int64 (``q``) or float64 (``d``), native byte order.
TypeError: no buffer at all. ValueError: a buffer of another shape, type or, where it is written to, a read-only one.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer


cdef inline int take_buffer(object source, Py_buffer *view, bint floats, bint writable) except -1:
    """Fill ``view``; the caller releases it with ``PyBuffer_Release``."""
    cdef const char *code = b"B"
    PyObject_GetBuffer(source, view, PyBUF_FORMAT | PyBUF_STRIDES)
    if view.format != NULL:
        code = view.format
    if code[0] == c"@" or code[0] == c"=" or code[0] == c"<":
        code += 1
    if floats:
        same = code[0] == c"d" and code[1] == 0
    else:
        same = (code[0] == c"q" or code[0] == c"l") and code[1] == 0
    if not same or view.itemsize != 8:
        PyBuffer_Release(view)
        raise ValueError(f"expected a buffer of {'float64' if floats else 'int64'}")
    if view.ndim != 1 or (view.shape[0] > 1 and view.strides[0] != 8):
        PyBuffer_Release(view)
        raise ValueError("expected a contiguous buffer of one dimension")
    if writable and view.readonly:
        PyBuffer_Release(view)
        raise ValueError("expected a writable buffer")
    return 0
