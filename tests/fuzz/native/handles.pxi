

# ---- for fuzzing: appended to a copy of handles.pyx, so that texts reach its parsers without a /proc of their own ----

cdef char *exact(bytes data) except NULL:
    # with nothing readable behind its end
    cdef char *out = <char *>malloc(len(data) if len(data) else 1)
    if out == NULL:
        raise MemoryError
    memcpy(out, <const char *>data, len(data))
    return out


cdef set taken(Walk walk):
    cdef Scan *s = walk.s
    cdef int64_t i
    found = {(HOW[s.hits[i].how], s.hits[i].root, PyBytes_FromStringAndSize(s.paths + s.hits[i].path, s.hits[i].length))
             for i in range(s.hits_count)}
    s.hits_count = s.paths_len = 0
    return found


def fuzz_maps(Walk walk, bytes lines):
    """Whole lines of ``/proc/PID/maps``: ``(how, root, text)`` of each hit."""
    cdef char *buf = exact(lines)
    cdef int64_t n = len(lines)
    while n > 0 and buf[n - 1] != c"\n":
        n -= 1
    buf = <char *>realloc(buf, n if n else 1)
    try:
        scan_lines(walk.s, walk.s.own, 1, buf, buf + n)
    finally:
        free(buf)
    return taken(walk)


def fuzz_link(Walk walk, bytes text):
    """The text of a link: the same."""
    cdef char *buf = exact(text)
    try:
        match(walk.s, walk.s.own, 1, FD, -1, buf, len(text))
    finally:
        free(buf)
    return taken(walk)


def fuzz_info(Walk walk, bytes text):
    """Whether the text of an fdinfo makes a file worth a look."""
    cdef Py_ssize_t n = min(len(text), <Py_ssize_t>INFO_SIZE)
    memcpy(walk.s.info, <const char *>text, n)
    return bool(inode_matters(walk.s, n))
