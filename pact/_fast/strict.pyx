"""Finds what a JSON text must not contain, in one pass over its bytes: too deep nesting, or a number beyond 64 bits.

It does not decide whether a text is JSON: a decoder does. The twin is in ``reference.py``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memcpy

__all__ = ["members_in", "members_of"]

cdef Py_ssize_t DEEP = -1
cdef Py_ssize_t WIDE = -2
cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGH = 0x8080808080808080
cdef uint64_t LOWEST = <uint64_t>1 << 63  # the largest magnitude of a negative number


cdef inline bint plain(const unsigned char *text) noexcept nogil:
    """Whether eight bytes contain neither a quotation mark nor a backslash: all are tested at once for a zero byte."""
    cdef uint64_t eight, quote, slash
    memcpy(&eight, text, 8)
    quote = eight ^ <uint64_t>0x2222222222222222
    slash = eight ^ <uint64_t>0x5C5C5C5C5C5C5C5C
    return not (((quote - ONES) & ~quote & HIGH) | ((slash - ONES) & ~slash & HIGH))


cdef Py_ssize_t scan(const unsigned char *text, Py_ssize_t size, Py_ssize_t deepest) noexcept nogil:
    """The number of colons outside strings."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t depth = 0
    cdef Py_ssize_t members = 0
    cdef unsigned char c
    cdef uint64_t number
    cdef bint negative, whole, wide
    while at < size:
        c = text[at]
        at += 1
        if c == c'"':
            while True:
                while at + 8 <= size and plain(text + at):
                    at += 8
                if at >= size or text[at] == c'"':
                    break
                at += 2 if text[at] == c"\\" else 1
            at += 1
        elif c == c"{" or c == c"[":
            depth += 1
            if depth > deepest:
                return DEEP
        elif c == c"}" or c == c"]":
            depth -= 1
        elif c == c":":
            members += 1
        elif c == c"-" or c"0" <= c <= c"9":
            negative = c == c"-"
            number = 0 if negative else c - c"0"
            whole = True
            wide = False
            while at < size:
                c = text[at]
                if c"0" <= c <= c"9":
                    if number > (UINT64_MAX - (c - c"0")) // 10:
                        wide = True
                    number = number * 10 + (c - c"0")
                elif c == c"." or c == c"e" or c == c"E" or c == c"+" or c == c"-":
                    whole = False
                else:
                    break
                at += 1
            if whole and (wide or (negative and number > LOWEST)):
                return WIDE
    return members


def members_in(text, int deepest):
    """The number of members of all objects in a JSON text, from its bytes. ValueError: it is nested deeper than
    ``deepest``, or has a whole number beyond 64 bits. For a text that is not JSON the number has no meaning."""
    cdef Py_buffer view
    cdef Py_ssize_t found
    PyObject_GetBuffer(text, &view, PyBUF_SIMPLE)
    if view.len < 4096:
        found = scan(<const unsigned char *>view.buf, view.len, deepest)
    else:
        with nogil:
            found = scan(<const unsigned char *>view.buf, view.len, deepest)
    PyBuffer_Release(&view)
    if found == DEEP:
        raise ValueError(f"nested deeper than {deepest} levels")
    if found == WIDE:
        raise ValueError("a number beyond 64 bits")
    return found


cdef Py_ssize_t count(object value):
    """The depth is known to be small, so this recursion ends."""
    cdef Py_ssize_t found = 0
    if type(value) is dict:
        found = len(<dict>value)
        for item in (<dict>value).values():
            if type(item) is dict or type(item) is list:
                found += count(item)
    elif type(value) is list:
        for item in <list>value:
            if type(item) is dict or type(item) is list:
                found += count(item)
    return found


def members_of(value):
    """The number of members of all objects in a decoded text. If it is smaller than in the text, a key occurred
    twice."""
    return count(value)


cdef bint float_in(object value) except -1:
    """As deep as a record is: JSON of at most 1,024 levels."""
    if isinstance(value, dict):
        for item in (<dict>value).values():
            if type(item) is not str and type(item) is not int and float_in(item):
                return True
        return False
    if isinstance(value, (list, tuple)):
        for item in value:
            if type(item) is not str and type(item) is not int and float_in(item):
                return True
        return False
    return isinstance(value, float)


def has_float(value):
    """Whether there is a float in this JSON value."""
    return float_in(value)
