

# ---- for fuzzing: appended to a copy of reader.pyx, so that bytes reach its parsers without the kernel ---------------

cdef extern from *:
    """
    #undef close
    static int pact_floor = 1 << 30;
    /* The parsers close what a record names. Descriptors of the fuzzer itself stay open. */
    int pact_fuzz_close(int fd) { return fd > pact_floor ? (int)syscall(SYS_close, fd) : 0; }
    #define close pact_fuzz_close
    """
    int pact_floor


def fuzz_begin(bytes path):
    """A descriptor of ``path``, which events of the fuzzer name. All up to it stay open from now on."""
    global pact_floor
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    pact_floor = fd
    return fd


cdef char *exact(bytes data) except NULL:
    # with nothing readable behind its end, and aligned as the buffers of the reader are
    cdef char *out = <char *>malloc(len(data) if len(data) else 1)
    if out == NULL:
        raise MemoryError
    memcpy(out, <const char *>data, len(data))
    return out


def fuzz_feed(Reader reader, int kind, bytes data, int fd):
    """What a read of a source of ``kind`` gave. ``fd`` stands in for every descriptor of an event."""
    cdef char *buf = exact(data)
    cdef ssize_t n = len(data), at = 0
    cdef pact_fan_meta m
    if kind == K_FID or kind == K_MNTNS or kind == K_PROC:
        while at + <ssize_t>sizeof(m) <= n:
            memcpy(&m, buf + at, sizeof(m))
            if m.fd >= 0:
                m.fd = fd
                memcpy(buf + at, &m, sizeof(m))
            if m.len < sizeof(m) or <ssize_t>m.len > n - at:
                break
            at += m.len
    with nogil:
        if kind == K_INOTIFY:
            on_inotify(&reader.s, buf, n)
        elif kind == K_CONNECTOR:
            on_connector(&reader.s, buf, n)
        else:
            on_fanotify(&reader.s, kind, buf, n)
    free(buf)


def fuzz_stat(bytes text, bint with_command):
    """What a snapshot takes from the text of ``/proc/PID/stat``: command, terminal and start; ``None``: it is none."""
    cdef Snap s
    cdef char *buf = exact(text)
    cdef int r = -1
    memset(&s, 0, sizeof(Snap))
    s.cmd_len = 0 if with_command else 1
    if len(text):
        r = read_stat(buf, len(text), &s)
    free(buf)
    if r:
        return None
    return PyBytes_FromStringAndSize(s.cmd, s.cmd_len & 0x7FFF), s.tty, s.start_ticks


def fuzz_status(bytes text):
    """Real and effective user of ``/proc/PID/status``; ``None``: it names none."""
    cdef Snap s
    cdef char *buf = exact(text)
    cdef int r = read_status(buf, len(text), &s)
    free(buf)
    return None if r else (s.uid, s.euid)


def fuzz_cgroup(bytes text):
    cdef char out[CGROUP_MAX]
    cdef char *buf = exact(text)
    cdef int n = select_cgroup(buf, len(text), out, CGROUP_MAX)
    free(buf)
    return PyBytes_FromStringAndSize(out, n)


def fuzz_beyond(bytes data):
    """Reads one byte behind a buffer: whoever calls it learns whether the sanitizer works."""
    cdef char *buf = exact(data)
    cdef int out = buf[len(data)]
    free(buf)
    return out
