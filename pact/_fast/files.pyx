"""Checks thousands of declared paths in one call, without the GIL: which of them differ from the last check?

The table answers "look again", never "this is drift": it keeps the last observation of each path (its *baseline*) and
reports the paths that differ. Other code decides by SHA-256 whether content is as declared.

A *signature* is the result of lstat: device, inode, mode, owner, size, mtime, ctime. A signature that was taken within
20 ms of its own mtime or ctime proves nothing, because a later write may have left the same times; such a path is read,
now and at the next scan, and judged by content. Sysctls have no useful signature: ``volatile`` paths are always read.

A *fingerprint* is 128 bits of a keyed multiply-and-fold hash. It is not a cryptographic digest: it shows that content
changed between two checks of this process (or of one that took over its table), under a secret that nobody else knows.
It never leaves the table and its dump.

A path that was not a regular file at the last check is never opened before a new lstat. Files are opened without
following links (through a link on the way, only a regular file), without blocking, without acquiring a controlling
terminal and, where the kernel allows, without changing atime. At most ``content_max`` bytes are read; a larger file is
judged by its signature alone.
"""

import os

from cpython.buffer cimport PyBuffer_Release, PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.number cimport PyNumber_Index
from libc.errno cimport EINTR, EMFILE, ENFILE, ENOMEM, EPERM, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from pact._fast.buffers cimport take_buffer


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    #ifndef SYS_openat2
    #define SYS_openat2 437
    #endif

    #ifndef O_NOATIME
    #define O_NOATIME 01000000
    #endif
    #define PACT_OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)

    static inline uint64_t pact_fold(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    static inline uint64_t pact_word(const unsigned char *p) { uint64_t x; memcpy(&x, p, 8); return x; }

    /* Absorb whole stripes of 64 bytes: four lanes of 16 bytes, each folded with its key and what the lane was. */
    static void pact_absorb(uint64_t lanes[4], const uint64_t key[8], const unsigned char *p, int64_t size)
    {
        uint64_t a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
        for (; size >= 64; p += 64, size -= 64) {
            a ^= pact_fold(pact_word(p) ^ key[0], pact_word(p + 8) ^ a);
            b ^= pact_fold(pact_word(p + 16) ^ key[1], pact_word(p + 24) ^ b);
            c ^= pact_fold(pact_word(p + 32) ^ key[2], pact_word(p + 40) ^ c);
            d ^= pact_fold(pact_word(p + 48) ^ key[3], pact_word(p + 56) ^ d);
        }
        lanes[0] = a; lanes[1] = b; lanes[2] = c; lanes[3] = d;
    }

    /* Absorb the last size < 64 bytes and the total length. */
    static void pact_finish(uint64_t lanes[4], const uint64_t key[8], const unsigned char *p, int64_t size,
                            uint64_t total, uint64_t out[2])
    {
        unsigned char last[64] = {0};
        uint64_t x, y;
        if (size) {
            memcpy(last, p, (size_t)size);
            pact_absorb(lanes, key, last, 64);
        }
        x = pact_fold(lanes[0] ^ key[4], lanes[1] ^ key[5] ^ total);
        y = pact_fold(lanes[2] ^ key[6], lanes[3] ^ key[7] ^ total);
        out[0] = x ^ pact_fold(y ^ key[0], lanes[1] ^ lanes[2] ^ key[1]);
        out[1] = y ^ pact_fold(x ^ key[2], lanes[0] ^ lanes[3] ^ key[3]);
    }

    /* Where a symbolic link is on the way, somebody may have turned it: what it leads to now is held first, and opened
       only if it is a regular file. */
    static int pact_open_held(const char *path, int more)
    {
        char link[32];
        struct stat st;
        int why, fd = -1, held = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (held < 0)
            return -1;
        if (fstat(held, &st) == 0) {
            if (S_ISREG(st.st_mode)) {
                snprintf(link, sizeof link, "/proc/self/fd/%d", held);
                fd = open(link, (PACT_OPEN_FLAGS | more) & ~O_NOFOLLOW);
            } else
                errno = EINVAL;
        }
        why = errno;
        close(held);
        errno = why;
        return fd;
    }

    static int pact_open(const char *path, int more)
    {
        struct { uint64_t flags, mode, resolve; } how = {(uint64_t)(PACT_OPEN_FLAGS | more), 0, 4}; /* NO_SYMLINKS */
        long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
        return fd >= 0 || (errno != ELOOP && errno != ENOSYS) ? (int)fd : pact_open_held(path, more);
    }

    static inline int64_t pact_coarse_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME_COARSE, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* Eight numbers of a stat buffer: dev, ino, size, mtime, ctime, mode, uid, gid. */
    #define PACT_STAT(CALL, OUT) \\
        struct stat st; \\
        if (CALL) return -1; \\
        (OUT)->dev = st.st_dev; (OUT)->ino = st.st_ino; (OUT)->size = st.st_size; \\
        (OUT)->mtime = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec; \\
        (OUT)->ctime = (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec; \\
        (OUT)->mode = st.st_mode; (OUT)->uid = st.st_uid; (OUT)->gid = st.st_gid; \\
        return 0
    typedef struct {
        uint64_t dev, ino;
        int64_t size, mtime, ctime;
        uint32_t mode, uid, gid;
        int32_t error;     /* errno of lstat; then the rest is zero */
        int32_t content;   /* UNREAD, KNOWN, TOO_LARGE, or the negative errno of opening or reading */
        uint32_t racy;     /* the signature proves nothing */
        uint64_t print[2];
    } pact_sight;
    static inline int pact_lstat(const char *path, pact_sight *out) { PACT_STAT(lstat(path, &st), out); }
    static inline int pact_fstat(int fd, pact_sight *out) { PACT_STAT(fstat(fd, &st), out); }
    """
    int O_NOATIME
    void absorb "pact_absorb"(uint64_t *, const uint64_t *, const unsigned char *, int64_t) noexcept nogil
    void finish "pact_finish"(
        uint64_t *, const uint64_t *, const unsigned char *, int64_t, uint64_t, uint64_t *
    ) noexcept nogil
    int open_quietly "pact_open"(const char *, int) noexcept nogil
    int64_t coarse_now "pact_coarse_now"() noexcept nogil
    ctypedef struct Sight "pact_sight":
        uint64_t dev
        uint64_t ino
        int64_t size
        int64_t mtime
        int64_t ctime
        uint32_t mode
        uint32_t uid
        uint32_t gid
        int32_t error
        int32_t content
        uint32_t racy
        uint64_t print[2]
    int lstat_into "pact_lstat"(const char *, Sight *) noexcept nogil
    int fstat_into "pact_fstat"(int, Sight *) noexcept nogil
    bint S_ISREG(uint32_t) noexcept nogil
    bint S_ISLNK(uint32_t) noexcept nogil
    int close(int) noexcept nogil
    ssize_t read(int, void *, size_t) noexcept nogil
    ssize_t readlink(const char *, char *, size_t) noexcept nogil

cdef enum:
    KEY_LIMIT = 1 << 26
    PATH_LIMIT = 4096
    SECRET_SIZE = 64
    DIGEST_SIZE = 16
    BUFFER_SIZE = 1 << 16  # a multiple of 64
    RACY_NS = 20_000_000
    UNREAD = 0
    KNOWN = 1
    TOO_LARGE = 2

cdef struct Entry:
    char *path
    int32_t length
    int32_t key
    uint8_t seen  # there is a baseline
    uint8_t volatile_
    uint8_t no_noatime  # the kernel refused O_NOATIME here
    Sight sight

cdef struct Table:
    Entry *entries
    int64_t size
    int64_t count
    int32_t *index  # index in ``entries`` of a key, -1 for none
    int64_t index_size
    uint64_t secret[8]
    int64_t content_max
    unsigned char *buffer


# --- looking at one path ---

cdef int read_all(Table *t, int fd, bint is_volatile, Sight *s) noexcept nogil:
    """Fingerprint the content of ``fd`` into ``s``; always 0."""
    cdef uint64_t lanes[4]
    cdef int64_t held = 0
    cdef int64_t total = 0
    cdef ssize_t got
    if s.size > t.content_max:
        s.content = TOO_LARGE
        return 0
    memcpy(lanes, t.secret, sizeof(lanes))
    while True:
        got = read(fd, t.buffer + held, <size_t>(BUFFER_SIZE - held))
        if got < 0:
            if errno == EINTR:
                continue
            s.content = -errno
            return 0
        held += got
        total += got
        if total > t.content_max:
            s.content = TOO_LARGE
            return 0
        if got == 0 or (held < BUFFER_SIZE and not is_volatile):
            break
        if held == BUFFER_SIZE:
            absorb(lanes, t.secret, t.buffer, held)
            held = 0
    absorb(lanes, t.secret, t.buffer, held)
    finish(lanes, t.secret, t.buffer + (held & ~<int64_t>63), held & 63, <uint64_t>total, s.print)
    s.content = KNOWN
    return 0


cdef void read_target(Table *t, Entry *e, Sight *s) noexcept nogil:
    cdef uint64_t lanes[4]
    cdef ssize_t got = readlink(e.path, <char *>t.buffer, BUFFER_SIZE)
    if got < 0:
        s.content = -errno
        return
    memcpy(lanes, t.secret, sizeof(lanes))
    absorb(lanes, t.secret, t.buffer, got)
    finish(lanes, t.secret, t.buffer + (got & ~<ssize_t>63), got & 63, <uint64_t>got, s.print)
    s.content = KNOWN


cdef int open_entry(Entry *e) noexcept nogil:
    cdef int fd
    if not e.no_noatime:
        fd = open_quietly(e.path, O_NOATIME)
        if fd >= 0 or errno != EPERM:
            return fd
    fd = open_quietly(e.path, 0)
    e.no_noatime = fd >= 0
    return fd


cdef void look(Table *t, Entry *e, bint reading, Sight *s) noexcept nogil:
    """The present state of the path; with its content if ``reading`` and there is any."""
    cdef int fd = -1
    cdef int why
    memset(s, 0, sizeof(Sight))
    if reading and e.seen and e.sight.error == 0 and S_ISREG(e.sight.mode):
        fd = open_entry(e)
    if fd < 0:
        if lstat_into(e.path, s) < 0:
            memset(s, 0, sizeof(Sight))
            s.error = errno
            return
        if not reading:
            return
        if S_ISLNK(s.mode):
            read_target(t, e, s)
            return
        if not S_ISREG(s.mode):
            return
        fd = open_entry(e)
        if fd < 0:
            s.content = -errno
            return
    if fstat_into(fd, s) < 0:
        why = errno
        memset(s, 0, sizeof(Sight))
        s.error = why
    elif S_ISREG(s.mode):
        read_all(t, fd, e.volatile_, s)
    close(fd)


cdef inline bint has_content(const Sight *s) noexcept nogil:
    return s.error == 0 and (S_ISREG(s.mode) or S_ISLNK(s.mode))


cdef inline bint proves_nothing(const Sight *s, int64_t now) noexcept nogil:
    """Whether a later write may leave the same signature. A ctime in the future means that the clock went back."""
    return has_content(s) and (s.ctime >= now - RACY_NS or -RACY_NS <= s.mtime - now <= RACY_NS)


cdef inline bint same_signature(const Sight *a, const Sight *b) noexcept nogil:
    return (
        a.ino == b.ino and a.ctime == b.ctime and a.mtime == b.mtime and a.size == b.size and a.dev == b.dev
        and a.mode == b.mode and a.uid == b.uid and a.gid == b.gid and a.error == b.error
    )


cdef inline bint same_content(const Sight *a, const Sight *b) noexcept nogil:
    """Whether the contents are equal, as far as both are known."""
    if a.content == UNREAD or b.content == UNREAD:
        return True
    return a.content == b.content and (a.content != KNOWN or (a.print[0] == b.print[0] and a.print[1] == b.print[1]))


cdef bint check(Table *t, Entry *e, bint full, int64_t now) noexcept nogil:
    """Check the path, keep the result as the new baseline, and tell whether it differs from the old one."""
    cdef Sight s
    cdef Sight *old = &e.sight
    cdef bint changed
    look(t, e, full or e.volatile_, &s)
    if e.volatile_:
        changed = not e.seen or s.error != old.error or s.content != old.content or not same_content(&s, old)
    else:
        s.racy = proves_nothing(&s, now)
        changed = not e.seen or not same_signature(&s, old)
        if s.content == UNREAD and (s.racy or (not changed and old.racy)) and has_content(&s):
            look(t, e, True, &s)
            s.racy = proves_nothing(&s, now)
            changed = changed or not same_signature(&s, old)
        if not changed:
            changed = not same_content(&s, old) or (old.racy and s.content == TOO_LARGE)
            if s.content == UNREAD:
                s.content = old.content
                s.print[0] = old.print[0]
                s.print[1] = old.print[1]
    e.sight = s
    e.seen = True
    if s.content == -EMFILE or s.content == -ENFILE or s.content == -ENOMEM or s.error == ENOMEM:
        e.seen = False  # a shortage in this process says nothing about the path: report it, now and next time
        changed = True
    return changed


cdef int64_t scan_all(
    Table *t, const int32_t *order, int64_t count, bint full, int32_t *changed
) noexcept nogil:
    """``order`` holds indices of entries; fills ``changed`` with keys and returns their number."""
    cdef int64_t now = coarse_now()
    cdef int64_t found = 0
    cdef int64_t i
    for i in range(count):
        if check(t, &t.entries[order[i]], full, now):
            changed[found] = t.entries[order[i]].key
            found += 1
    return found


# --- arguments and memory ---

cdef int64_t as_key(object value) except -1:
    cdef int overflow = 0
    cdef int64_t key = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    if overflow or key < 0 or key >= KEY_LIMIT:
        raise ValueError(f"key {value!r} is not in 0..{KEY_LIMIT - 1}")
    return key


cdef int grow(void **block, int64_t *size, int64_t wanted, size_t item) except -1:
    cdef int64_t larger = size[0] + (size[0] >> 1) + 64
    cdef void *moved
    if wanted <= size[0]:
        return 0
    larger = max(larger, wanted)
    moved = PyMem_RawRealloc(block[0], <size_t>larger * item)
    if moved == NULL:
        raise MemoryError
    block[0] = moved
    size[0] = larger
    return 0


cdef bytes digest(bytes body):
    from hashlib import blake2b

    return blake2b(body, digest_size=DIGEST_SIZE).digest()


cdef class FileTable:
    """``FileTable(secret=None, content_max=4 MiB)``: the last observations of many paths, by small integer keys.

    ``secret``: 64 bytes, random by default. ValueError: another length, a negative ``content_max``, a key outside
    0..2**26 - 1. One thread at a time: a second one gets RuntimeError.
    """

    cdef Table t
    cdef bint busy

    def __cinit__(self, secret=None, content_max=4 << 20):
        memset(&self.t, 0, sizeof(Table))
        if secret is None:
            secret = os.urandom(SECRET_SIZE)
        if not isinstance(secret, bytes):
            raise TypeError(f"secret must be bytes, not {type(secret).__name__}")
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"secret has {len(secret)} bytes, not {SECRET_SIZE}")
        content_max = PyNumber_Index(content_max)
        if content_max < 0:
            raise ValueError(f"content_max {content_max} is negative")
        self.t.content_max = content_max if content_max < INT64_MAX else INT64_MAX - 1
        memcpy(self.t.secret, PyBytes_AS_STRING(secret), SECRET_SIZE)
        self.t.buffer = <unsigned char *>PyMem_RawMalloc(BUFFER_SIZE)
        if self.t.buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self.t.count):
            PyMem_RawFree(self.t.entries[i].path)
        PyMem_RawFree(self.t.entries)
        PyMem_RawFree(self.t.index)
        PyMem_RawFree(self.t.buffer)

    cdef inline int enter(self) except -1:
        if self.busy:
            raise RuntimeError("this FileTable is in use by another thread")
        return 0

    cdef inline int64_t find(self, int64_t key) noexcept:
        return self.t.index[key] if 0 <= key < self.t.index_size else -1

    def put(self, key, path, object volatile=False):
        """Watch ``path`` (absolute, at most 4095 bytes) under ``key``, without a baseline: the next scan reports it.

        ``volatile``: always read, never judged by its signature. TypeError: ``path`` is not bytes. ValueError: it is
        relative, too long or holds NUL.
        """
        cdef int64_t number = as_key(key)
        cdef int64_t at, before
        cdef Entry *e
        cdef char *copy
        if not isinstance(path, bytes):
            raise TypeError(f"path must be bytes, not {type(path).__name__}")
        if not path.startswith(b"/") or b"\0" in path or len(path) >= PATH_LIMIT:
            raise ValueError(f"{path!r} is no absolute path of at most {PATH_LIMIT - 1} bytes")
        self.enter()
        before = self.t.index_size
        grow(<void **>&self.t.index, &self.t.index_size, number + 1, sizeof(int32_t))
        for at in range(before, self.t.index_size):
            self.t.index[at] = -1
        grow(<void **>&self.t.entries, &self.t.size, self.t.count + 1, sizeof(Entry))
        copy = <char *>PyMem_RawMalloc(<size_t>len(path) + 1)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, PyBytes_AS_STRING(path), <size_t>len(path) + 1)
        at = self.find(number)
        if at < 0:
            at = self.t.count
            self.t.count += 1
            self.t.index[number] = <int32_t>at
            self.t.entries[at].path = NULL
        e = &self.t.entries[at]
        PyMem_RawFree(e.path)
        memset(e, 0, sizeof(Entry))
        e.path = copy
        e.length = <int32_t>len(path)
        e.key = <int32_t>number
        e.volatile_ = bool(volatile)

    def remove(self, key):
        """Forget ``key``; False if it was not there."""
        cdef int64_t number = as_key(key)
        cdef int64_t at
        self.enter()
        at = self.find(number)
        if at < 0:
            return False
        PyMem_RawFree(self.t.entries[at].path)
        self.t.index[number] = -1
        self.t.count -= 1
        if at != self.t.count:
            self.t.entries[at] = self.t.entries[self.t.count]
            self.t.index[self.t.entries[at].key] = <int32_t>at
        return True

    def __len__(self):
        return self.t.count

    def __contains__(self, key):
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(PyNumber_Index(key), &overflow)
        return not overflow and self.find(number) >= 0

    cdef int64_t in_order(self, object keys, int32_t *order) except -1:
        """Write the indices of the entries to check; there is room for as many as there are keys."""
        cdef Py_buffer view
        cdef int64_t i, at
        cdef int64_t count = 0
        if keys is None:
            for i in range(self.t.index_size):
                if self.t.index[i] >= 0:
                    order[count] = self.t.index[i]
                    count += 1
            return count
        if PyObject_CheckBuffer(keys):
            take_buffer(keys, &view, False, False)
            try:
                for i in range(view.shape[0]):
                    at = self.find((<int64_t *>view.buf)[i])
                    if at < 0:
                        raise KeyError((<int64_t *>view.buf)[i])
                    order[i] = <int32_t>at
                return view.shape[0]
            finally:
                PyBuffer_Release(&view)
        for key in keys:
            at = self.find(as_key(key))
            if at < 0:
                raise KeyError(key)
            order[count] = <int32_t>at
            count += 1
        return count

    def scan(self, keys=None, full=False):
        """Check the paths of ``keys`` (all, in ascending order, if None) and return the keys of those that differ from
        their baseline, or have none, in the given order. The present state becomes the baseline.

        ``keys``: a sequence of ints or an int64 buffer; KeyError for one that is not in the table, before any path is
        checked. ``full``: read content too where the signature alone would be trusted.
        """
        cdef int64_t most, count
        cdef int64_t found = 0
        cdef int64_t i
        cdef bint reading = bool(full)
        cdef int32_t *order
        cdef int32_t *changed
        if keys is not None and not PyObject_CheckBuffer(keys):
            keys = list(keys)
        self.enter()
        if keys is None:
            most = self.t.count
        else:
            most = memoryview(keys).nbytes // 8 if PyObject_CheckBuffer(keys) else len(keys)
        order = <int32_t *>PyMem_RawMalloc(<size_t>most * 2 * sizeof(int32_t) + 1)
        if order == NULL:
            raise MemoryError
        changed = order + most
        try:
            count = self.in_order(keys, order)
            self.busy = True
            with nogil:
                found = scan_all(&self.t, order, count, reading, changed)
            self.busy = False
            return [changed[i] for i in range(found)]
        finally:
            PyMem_RawFree(order)

    def dump(self):
        """The baselines as bytes, for ``restore`` in a later process. They contain the secret: keep them private."""
        cdef int64_t i
        cdef Entry *e
        cdef list parts
        self.enter()
        parts = [MAGIC, PyBytes_FromStringAndSize(<char *>self.t.secret, SECRET_SIZE)]
        for i in range(self.t.count):
            e = &self.t.entries[i]
            if e.seen:
                parts.append(e.length.to_bytes(4, "little"))
                parts.append(b"\1" if e.volatile_ else b"\0")
                parts.append(PyBytes_FromStringAndSize(e.path, e.length))
                parts.append(PyBytes_FromStringAndSize(<char *>&e.sight, sizeof(Sight)))
        body = b"".join(parts)
        return body + digest(body)

    def restore(self, blob):
        """Take over the baselines of ``dump`` for the paths that are in the table with the same ``volatile``; returns
        their number. The others keep theirs as far as they do not depend on the secret, which is now the dump's.
        ValueError, and nothing is changed: not a dump of this version, backend and machine type, or damaged.
        """
        cdef dict saved = {}
        cdef int64_t at, length, i
        cdef int64_t taken = 0
        cdef Entry *e
        cdef bytes data
        if not isinstance(blob, bytes):
            raise TypeError(f"blob must be bytes, not {type(blob).__name__}")
        self.enter()
        data = blob
        if not data.startswith(MAGIC):
            raise ValueError("not a dump of this version of the table")
        if len(data) < len(MAGIC) + SECRET_SIZE + DIGEST_SIZE or digest(data[:-DIGEST_SIZE]) != data[-DIGEST_SIZE:]:
            raise ValueError("the dump is damaged")
        at = len(MAGIC) + SECRET_SIZE
        while at < len(data) - DIGEST_SIZE:
            length = int.from_bytes(data[at : at + 4], "little")
            if at + 5 + length + <int64_t>sizeof(Sight) > len(data) - DIGEST_SIZE:
                raise ValueError("the dump is damaged")
            saved[data[at + 4 : at + 5 + length]] = at + 5 + length
            at += 5 + length + <int64_t>sizeof(Sight)
        if memcmp(self.t.secret, PyBytes_AS_STRING(data) + len(MAGIC), SECRET_SIZE) != 0:
            memcpy(self.t.secret, PyBytes_AS_STRING(data) + len(MAGIC), SECRET_SIZE)
            for i in range(self.t.count):
                e = &self.t.entries[i]
                if e.sight.content == KNOWN:
                    e.sight.content = UNREAD
                    e.seen = e.seen and not e.sight.racy and not e.volatile_
        for i in range(self.t.count):
            e = &self.t.entries[i]
            name = (b"\1" if e.volatile_ else b"\0") + PyBytes_FromStringAndSize(e.path, e.length)
            found = saved.get(name)
            if found is not None:
                at = found
                memcpy(&e.sight, PyBytes_AS_STRING(data) + at, sizeof(Sight))
                e.seen = True
                taken += 1
        return taken


MAGIC = b"pact files 1 compiled %d\n" % sizeof(Sight)
