

# ---- for fuzzing: appended to a copy of strict.pyx ------------------------------------------------------------------

from libc.stdlib cimport free, malloc


def fuzz_members_in(bytes text, int deepest):
    """As ``members_in``, over a copy with nothing readable behind its end. ``DEEP`` and ``WIDE`` as numbers."""
    cdef char *buf = <char *>malloc(len(text) if len(text) else 1)
    cdef Py_ssize_t found, size = len(text)
    if buf == NULL:
        raise MemoryError
    memcpy(buf, <const char *>text, len(text))
    found = scan(<const unsigned char *>buf, size, deepest)
    free(buf)
    return found
