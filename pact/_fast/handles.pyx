"""Finds processes that hold something open under these paths, with one walk over /proc for all of them together.

For each process: its root, cwd and exe links, every descriptor's link, and the files that it maps. Texts are looked up
in a hash of the names that the roots have in the mount namespace of that process (``mounts.py``), so a scan for one
root costs as much as one for hundreds. fdinfo is read only if a text cannot decide. On several CPUs, several threads
divide the processes among them by pid, so that none is missed and none is read twice.

The result names pids, including the caller's own. A process that ends meanwhile is skipped. Processes that may not be
read are named separately: the caller must count them as unknown. Threads are assumed to share everything with their
process, unless its first thread has ended.
"""

import os
import threading

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EMFILE, ENFILE, ENOENT, ENOMEM, ESRCH, errno
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc, strtol
from libc.string cimport memchr, memcmp, memcpy, memmove, strcmp

from pact._fast.mounts import Holder, Targets


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    typedef struct {
        uint64_t inode;
        int64_t offset;
        unsigned short size;
        unsigned char type;
        char name[1];
    } pact_dirent;

    static inline int64_t pact_getdents(int fd, void *buffer, size_t size)
    {
        return syscall(SYS_getdents64, fd, buffer, size);
    }

    static inline int pact_open_dir(int at, const char *name)
    {
        return openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }

    static inline int pact_open_file(int at, const char *name) { return openat(at, name, O_RDONLY | O_CLOEXEC); }

    static inline int64_t pact_links(int at, const char *name)
    {
        struct stat st;
        return fstatat(at, name, &st, 0) ? 0 : (int64_t)st.st_nlink;
    }
    """
    ctypedef struct Dirent "pact_dirent":
        unsigned short size
        char name[1]
    int64_t getdents "pact_getdents"(int, void *, size_t) noexcept nogil
    int open_dir "pact_open_dir"(int, const char *) noexcept nogil
    int open_file "pact_open_file"(int, const char *) noexcept nogil
    int64_t links "pact_links"(int, const char *) noexcept nogil
    ssize_t readlinkat(int, const char *, char *, size_t) noexcept nogil
    ssize_t read(int, void *, size_t) noexcept nogil
    int close(int) noexcept nogil

cdef enum:
    TEXT_SIZE = 4096 + 1
    DIRENTS_SIZE = 1 << 15
    MAPS_SIZE = 1 << 16
    INFO_SIZE = 4096
    NAMESPACE_SIZE = 64
    DELETED_SIZE = 10
    FD = 0
    MAP = 1
    CWD = 2
    ROOT = 3
    EXE = 4

cdef const char *DELETED = b" (deleted)"
HOW = ("fd", "map", "cwd", "root", "exe")

cdef struct Name:  # one text of the hash, with a chain of roots
    uint64_t hash
    const char *text
    int32_t length
    int32_t first

cdef struct Meaning:
    int32_t root
    int32_t exact
    int32_t next

cdef struct Names:
    Name *slots
    Meaning *meanings
    uint64_t mask
    int32_t longest
    int32_t all_below  # the chain of a root that is "/", -1 if there is none

cdef struct Inode:
    uint64_t device
    uint64_t inode
    int32_t root

cdef struct Hit:
    int32_t pid
    int32_t how
    int32_t root
    int32_t detail
    int64_t path
    int64_t length

cdef struct Scan:
    uint64_t shares  # number of threads that divide the processes among them,
    uint64_t share  # and the number of this one
    Hit *hits
    int64_t hits_size
    int64_t hits_count
    char *paths
    int64_t paths_size
    int64_t paths_len
    int32_t *unreadable
    int64_t unreadable_size
    int64_t unreadable_count
    Inode *inodes
    int64_t inodes_count
    uint64_t inode_bits  # of inode & 63: few pass
    Inode *devices  # inode is not used here
    int64_t devices_count
    char dirents[DIRENTS_SIZE]  # these three stand at aligned places
    char pids[DIRENTS_SIZE]
    char tids[DIRENTS_SIZE]
    bint look_at_all
    char own_namespace[NAMESPACE_SIZE]
    const Names *own
    char text[TEXT_SIZE]
    char root_text[TEXT_SIZE]
    char info[INFO_SIZE]
    char maps[MAPS_SIZE + 1]


cdef int no_memory() except -1 nogil:
    with gil:
        raise MemoryError


cdef int own_trouble(int why) except -1 nogil:
    with gil:
        raise OSError(why, os.strerror(why))


cdef int room(void **block, int64_t *size, int64_t wanted, size_t item) except -1 nogil:
    cdef int64_t larger = 2 * wanted + 64
    cdef void *moved
    if wanted <= size[0]:
        return 0
    moved = realloc(block[0], <size_t>larger * item)
    if moved == NULL:
        return no_memory()
    block[0] = moved
    size[0] = larger
    return 0


cdef int trouble(Scan *s, int pid) except -1 nogil:
    """Judge errno: gone, not permitted, or a shortage in this process, which makes the whole answer worthless."""
    if errno == ENOENT or errno == ESRCH:
        return 0
    if errno == EMFILE or errno == ENFILE or errno == ENOMEM:
        return own_trouble(errno)
    room(<void **>&s.unreadable, &s.unreadable_size, s.unreadable_count + 1, sizeof(int32_t))
    s.unreadable[s.unreadable_count] = pid
    s.unreadable_count += 1
    return 0


cdef int add_hit(Scan *s, int pid, int how, int root, int detail, const char *text, int64_t length) except -1 nogil:
    cdef Hit *hit
    room(<void **>&s.hits, &s.hits_size, s.hits_count + 1, sizeof(Hit))
    room(<void **>&s.paths, &s.paths_size, s.paths_len + length, 1)
    hit = &s.hits[s.hits_count]
    hit.pid = pid
    hit.how = how
    hit.root = root
    hit.detail = detail
    hit.path = s.paths_len
    hit.length = length
    memcpy(s.paths + s.paths_len, text, <size_t>length)
    s.paths_len += length
    s.hits_count += 1
    return 0


# --- texts ---

cdef inline uint64_t hash_on(uint64_t hash, char c) noexcept nogil:
    return (hash ^ <unsigned char>c) * <uint64_t>0x100000001b3

cdef inline uint64_t spread(uint64_t hash) noexcept nogil:
    return hash ^ (hash >> 29)


cdef inline int32_t find_name(const Names *names, uint64_t hash, const char *text, int64_t length) noexcept nogil:
    """The first root that a text names, -1 if there is none."""
    cdef uint64_t at = spread(hash) & names.mask
    while names.slots[at].first >= 0:
        if names.slots[at].hash == hash and names.slots[at].length == length:
            if memcmp(names.slots[at].text, text, <size_t>length) == 0:
                return names.slots[at].first
        at = (at + 1) & names.mask
    return -1


cdef inline bint says_deleted(const char *text, int64_t length) noexcept nogil:
    return length > DELETED_SIZE and text[length - 1] == c")" and (
        memcmp(text + length - DELETED_SIZE, DELETED, DELETED_SIZE) == 0
    )


cdef int match(
    Scan *s, const Names *names, int pid, int how, int detail, const char *text, int64_t length
) except -1 nogil:
    """A hit for every root that ``text`` or a directory above it names."""
    cdef uint64_t hash = 14695981039346656037u
    cdef int64_t end = length
    cdef int64_t without = -1
    cdef int64_t i = 0
    cdef int32_t meaning
    if length < 1 or text[0] != c"/":
        return 0
    if says_deleted(text, length):
        without = length - DELETED_SIZE
    if names.all_below >= 0:
        meaning = names.all_below
        while meaning >= 0:
            if not names.meanings[meaning].exact or length == 1:
                add_hit(s, pid, how, names.meanings[meaning].root, detail, text, length)
            meaning = names.meanings[meaning].next
    if end > names.longest:
        end = names.longest
    while i < end:
        hash = hash_on(hash, text[i])
        i += 1
        if i == length or text[i] == c"/" or i == without:
            meaning = find_name(names, hash, text, i)
            while meaning >= 0:
                if i == length or not names.meanings[meaning].exact:
                    add_hit(s, pid, how, names.meanings[meaning].root, detail, text, length)
                meaning = names.meanings[meaning].next
    return 0


# --- inodes ---

cdef int match_inode(
    Scan *s, int pid, uint64_t device, uint64_t inode, const char *text, int64_t length
) except -1 nogil:
    cdef int64_t i
    for i in range(s.devices_count):
        if s.devices[i].device == device:
            add_hit(s, pid, MAP, s.devices[i].root, -1, text, length)
    if (s.inode_bits >> (inode & 63)) & 1:
        for i in range(s.inodes_count):
            if s.inodes[i].inode == inode and s.inodes[i].device == device:
                add_hit(s, pid, MAP, s.inodes[i].root, -1, text, length)
    return 0


cdef bint inode_matters(Scan *s, ssize_t length) noexcept nogil:
    """Whether fdinfo names the inode of a root, or, on old kernels, no inode at all."""
    cdef const char *at = s.info
    cdef const char *end = s.info + length
    cdef uint64_t inode
    cdef int64_t i
    while at != NULL and at + 5 < end:
        if memcmp(at, b"ino:", 4) == 0:
            at += 4
            inode = 0
            while at < end and (at[0] == c" " or at[0] == c"\t"):
                at += 1
            while at < end and c"0" <= at[0] <= c"9":
                inode = inode * 10 + <uint64_t>(at[0] - c"0")
                at += 1
            for i in range(s.inodes_count):
                if s.inodes[i].inode == inode:
                    return True
            return False
        at = <const char *>memchr(at, c"\n", <size_t>(end - at))
        if at != NULL:
            at += 1
    return True


cdef int match_info(
    Scan *s, void *walk, const Names *names, int pid, int base, const char *fd, int detail, int64_t length
) except -1 nogil:
    """Compare a descriptor's inode, which its text in ``s.text`` does not show."""
    cdef char name[64]
    cdef int info
    cdef ssize_t got
    memcpy(name, b"fdinfo/", 7)
    copy_name(name + 7, fd, 56)
    info = open_file(base, name)
    if info < 0:
        return trouble(s, pid)
    got = read(info, s.info, INFO_SIZE)
    close(info)
    if got < 0:
        return trouble(s, pid)
    if inode_matters(s, got):
        with gil:
            (<Walk>walk).by_inode(names, pid, base, fd, detail, length, got)
    return 0


cdef void copy_name(char *to, const char *source, int size) noexcept nogil:
    cdef int i = 0
    while i < size - 1 and source[i]:
        to[i] = source[i]
        i += 1
    to[i] = 0


# --- processes ---

cdef int scan_descriptors(Scan *s, void *walk, const Names *names, int pid, int base) except -1 nogil:
    cdef int fds = open_dir(base, b"fd")
    cdef int64_t got, at
    cdef Dirent *entry
    cdef ssize_t length
    cdef int detail
    if fds < 0:
        return trouble(s, pid)
    try:
        while True:
            got = getdents(fds, s.dirents, DIRENTS_SIZE)
            if got <= 0:
                return trouble(s, pid) if got < 0 else 0
            at = 0
            while at < got:
                entry = <Dirent *>(s.dirents + at)
                at += entry.size
                if entry.name[0] == c".":
                    continue
                length = readlinkat(fds, entry.name, s.text, TEXT_SIZE)
                if length < 0:
                    trouble(s, pid)
                    continue
                if s.text[0] != c"/":
                    continue
                detail = <int>strtol(entry.name, NULL, 10)
                match(s, names, pid, FD, detail, s.text, length)
                if s.look_at_all or (s.inodes_count and says_deleted(s.text, length)):
                    match_info(s, walk, names, pid, base, entry.name, detail, length)
    finally:
        close(fds)


cdef inline const char *skip_to(const char *at, char c) noexcept nogil:
    while at[0] != c and at[0] != c"\n":
        at += 1
    return at


cdef inline int digit(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef int64_t unescape(char *text, int64_t length) noexcept nogil:
    """Turn the kernel's \\012 into newlines, in place; returns the length."""
    cdef int64_t i = 0
    cdef int64_t n = 0
    if memchr(text, c"\\", <size_t>length) == NULL:
        return length
    while i < length:
        if text[i] == c"\\" and i + 4 <= length and memcmp(text + i, b"\\012", 4) == 0:
            text[n] = c"\n"
            i += 4
        else:
            text[n] = text[i]
            i += 1
        n += 1
    return n


cdef int scan_lines(Scan *s, const Names *names, int pid, char *at, char *end) except -1 nogil:
    """Whole lines of maps. Consecutive lines that map the same file are checked once."""
    cdef const char *p
    cdef char *eol
    cdef const char *before = NULL
    cdef int64_t before_length = 0
    cdef int64_t length
    cdef uint64_t major, minor, inode
    cdef uint64_t before_inode = 0
    cdef uint64_t before_device = 0
    while at < end:
        eol = <char *>memchr(at, c"\n", <size_t>(end - at))
        if eol == NULL:
            return 0
        p = skip_to(at, c" ")  # after the addresses; never beyond the end of the line, here and below
        at = eol + 1
        if eol - p < 6:
            continue
        p = skip_to(p + 6, c" ")  # "rwxp ", the offset
        p += p < eol
        major = minor = inode = 0
        while digit(p[0]) >= 0:
            major = major << 4 | <uint64_t>digit(p[0])
            p += 1
        p += p < eol
        while digit(p[0]) >= 0:
            minor = minor << 4 | <uint64_t>digit(p[0])
            p += 1
        p += p < eol
        while c"0" <= p[0] <= c"9":
            inode = inode * 10 + <uint64_t>(p[0] - c"0")
            p += 1
        while p[0] == c" ":
            p += 1
        if inode == 0:
            continue
        length = eol - p
        if (inode == before_inode and (major << 32 | minor) == before_device and length == before_length
                and memcmp(p, before, <size_t>length) == 0):
            continue
        before = p
        before_length = length
        before_inode = inode
        before_device = major << 32 | minor
        length = unescape(<char *>p, length)
        if length != before_length:
            before_length = -1
        match(s, names, pid, MAP, -1, p, length)
        match_inode(s, pid, major << 32 | minor, inode, p, length)
    return 0


cdef int scan_maps(Scan *s, const Names *names, int pid, int base) except -1 nogil:
    cdef int maps = open_file(base, b"maps")
    cdef int64_t held = 0
    cdef int64_t whole
    cdef ssize_t got
    if maps < 0:
        return trouble(s, pid)
    try:
        while True:
            got = read(maps, s.maps + held, <size_t>(MAPS_SIZE - held))
            if got <= 0:
                return trouble(s, pid) if got < 0 else 0
            held += got
            whole = held
            while whole > 0 and s.maps[whole - 1] != c"\n":
                whole -= 1
            scan_lines(s, names, pid, s.maps, s.maps + whole)
            memmove(s.maps, s.maps + whole, <size_t>(held - whole))
            held -= whole
    finally:
        close(maps)


cdef int scan_link(Scan *s, const Names *names, int pid, int base, int how, const char *name) except -1 nogil:
    """1 if the link exists."""
    cdef ssize_t length = readlinkat(base, name, s.text, TEXT_SIZE)
    if length < 0:
        trouble(s, pid)
        return 0
    match(s, names, pid, how, -1, s.text, length)
    return 1


cdef int scan_one(Scan *s, void *walk, int pid, int base) except -1 nogil:
    """One process or thread; 0 if it runs no program."""
    cdef char namespace[NAMESPACE_SIZE]
    cdef const Names *names
    cdef ssize_t length
    cdef int program
    length = readlinkat(base, b"ns/mnt", namespace, NAMESPACE_SIZE - 1)
    if length >= 0:
        namespace[length] = 0
        length = readlinkat(base, b"root", s.root_text, TEXT_SIZE)
    if length < 0:
        trouble(s, pid)
        return 0
    if strcmp(namespace, s.own_namespace) == 0:
        names = s.own
    else:
        with gil:
            names = (<Walk>walk).names_of(namespace, s.root_text, length, pid, base)
        if names == NULL:
            return 1
    match(s, names, pid, ROOT, -1, s.root_text, length)
    scan_link(s, names, pid, base, CWD, b"cwd")
    program = scan_link(s, names, pid, base, EXE, b"exe")
    scan_descriptors(s, walk, names, pid, base)
    if program:
        scan_maps(s, names, pid, base)
    return program


cdef int scan_threads(Scan *s, void *walk, int pid, int base) except -1 nogil:
    """The threads that outlived the first one."""
    cdef int tasks = open_dir(base, b"task")
    cdef int64_t got, at
    cdef Dirent *entry
    cdef int thread
    if tasks < 0:
        return trouble(s, pid)
    try:
        while True:
            got = getdents(tasks, s.tids, DIRENTS_SIZE)
            if got <= 0:
                return trouble(s, pid) if got < 0 else 0
            at = 0
            while at < got:
                entry = <Dirent *>(s.tids + at)
                at += entry.size
                if entry.name[0] == c"." or strtol(entry.name, NULL, 10) == pid:
                    continue
                thread = open_dir(tasks, entry.name)
                if thread < 0:
                    trouble(s, pid)
                    continue
                try:
                    scan_one(s, walk, pid, thread)
                finally:
                    close(thread)
    finally:
        close(tasks)


cdef int scan_processes(Scan *s, void *walk, int proc) except -1 nogil:
    cdef int64_t got, at
    cdef Dirent *entry
    cdef int pid, base
    while True:
        got = getdents(proc, s.pids, DIRENTS_SIZE)
        if got < 0:
            return own_trouble(errno)
        if got == 0:
            return 0
        at = 0
        while at < got:
            entry = <Dirent *>(s.pids + at)
            at += entry.size
            if not c"0" <= entry.name[0] <= c"9":
                continue
            pid = <int>strtol(entry.name, NULL, 10)
            if (<uint64_t>pid * 0x9E3779B97F4A7C15u >> 32) % s.shares != s.share:
                continue
            base = open_dir(proc, entry.name)
            if base < 0:
                trouble(s, pid)
                continue
            try:
                if scan_one(s, walk, pid, base) == 0 and links(base, b"task") > 3:
                    scan_threads(s, walk, pid, base)
            finally:
                close(base)


cdef class Lookup:
    """The names of one namespace as a hash; keeps the texts alive."""

    cdef Names names
    cdef object space
    cdef list texts

    def __cinit__(self, space):
        cdef dict chains = {}
        cdef uint64_t size = 16
        cdef uint64_t hash, at
        cdef int32_t number
        cdef bytes text
        cdef char c
        self.space = space
        self.texts = []
        for pattern in space.patterns:
            chains.setdefault(pattern.text, []).append(pattern)
        while size < 2 * <uint64_t>len(chains):
            size *= 2
        self.names.mask = size - 1
        self.names.all_below = -1
        self.names.slots = <Name *>malloc(size * sizeof(Name))
        self.names.meanings = <Meaning *>malloc(<size_t>len(space.patterns) * sizeof(Meaning) + 1)
        if self.names.slots == NULL or self.names.meanings == NULL:
            raise MemoryError
        for at in range(size):
            self.names.slots[at].first = -1
        number = 0
        for text, patterns in chains.items():
            first = number
            for pattern in patterns:
                self.names.meanings[number].root = pattern.root
                self.names.meanings[number].exact = pattern.exact
                self.names.meanings[number].next = number + 1
                number += 1
            self.names.meanings[number - 1].next = -1
            if text == b"/":
                self.names.all_below = first
                continue
            hash = 14695981039346656037u
            for c in text:
                hash = hash_on(hash, c)
            at = spread(hash) & self.names.mask
            while self.names.slots[at].first >= 0:
                at = (at + 1) & self.names.mask
            self.texts.append(text)
            self.names.slots[at].hash = hash
            self.names.slots[at].text = PyBytes_AS_STRING(text)
            self.names.slots[at].length = <int32_t>len(text)
            self.names.slots[at].first = first
            self.names.longest = max(self.names.longest, <int32_t>len(text))

    def __dealloc__(self):
        free(self.names.slots)
        free(self.names.meanings)


cdef class Walk:
    """One scan: the calls from C to Python, and the results."""

    cdef Scan *s
    cdef object targets
    cdef dict lookups  # (namespace, root directory) -> Lookup
    cdef Lookup own

    def __cinit__(self, targets, int share, int shares):
        cdef bytes namespace = targets.namespace
        cdef int64_t i
        self.targets = targets
        self.lookups = {}
        self.own = Lookup(targets.own)
        self.s = <Scan *>calloc(1, sizeof(Scan))
        if self.s == NULL:
            raise MemoryError
        self.s.share, self.s.shares = share, shares
        self.s.own = &self.own.names
        self.s.look_at_all = targets.hard_links
        copy_name(self.s.own_namespace, PyBytes_AS_STRING(namespace), NAMESPACE_SIZE)
        inodes = [(device, inode, root) for (device, inode), roots in targets.inodes.items() for root in roots]
        devices = [(device, root) for device, roots in targets.devices.items() for root in roots]
        self.s.inodes = <Inode *>malloc(<size_t>len(inodes) * sizeof(Inode) + 1)
        self.s.devices = <Inode *>malloc(<size_t>len(devices) * sizeof(Inode) + 1)
        if self.s.inodes == NULL or self.s.devices == NULL:
            raise MemoryError
        for i, (device, inode, root) in enumerate(inodes):
            self.s.inodes[i] = Inode(device, inode, root)
            self.s.inode_bits |= (<uint64_t>1) << (<uint64_t>inode & 63)
        for i, (device, root) in enumerate(devices):
            self.s.devices[i] = Inode(device, 0, root)
        self.s.inodes_count = len(inodes)
        self.s.devices_count = len(devices)

    def __dealloc__(self):
        if self.s != NULL:
            free(self.s.hits)
            free(self.s.paths)
            free(self.s.unreadable)
            free(self.s.inodes)
            free(self.s.devices)
            free(self.s)

    cdef const Names *names_of(
        self, const char *namespace, const char *root, ssize_t length, int pid, int base
    ) except? NULL:
        """The names in another namespace, NULL if it cannot be read."""
        cdef Lookup lookup
        key = (<bytes>namespace, PyBytes_FromStringAndSize(root, length))
        if key not in self.lookups:
            try:
                text = self.targets.others.read(b"/proc/self/fd/%d" % base)
            except OSError as error:
                set_errno(error.errno)
                trouble(self.s, pid)
                return NULL
            self.lookups[key] = Lookup(self.targets.space(text, key[1]))
        lookup = self.lookups[key]
        return &lookup.names

    cdef int by_inode(
        self, const Names *names, int pid, int base, const char *fd, int detail, int64_t length, ssize_t got
    ) except -1:
        cdef Lookup lookup = self.own
        for other in self.lookups.values():
            if &(<Lookup>other).names == names:
                lookup = other
        text = PyBytes_FromStringAndSize(self.s.text, length)
        link = b"/proc/self/fd/%d/fd/%s" % (base, <bytes>fd)
        try:
            roots = self.targets.roots_of(PyBytes_FromStringAndSize(self.s.info, got), lookup.space, link, text)
        except OSError as error:
            set_errno(error.errno)
            return trouble(self.s, pid)
        for root in roots:
            add_hit(self.s, pid, FD, root, detail, self.s.text, length)
        return 0

    def run(self):
        cdef int proc = os.open(self.targets.proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        cdef Scan *s = self.s
        cdef void *walk = <void *>self
        cdef int64_t i
        try:
            with nogil:
                scan_processes(s, walk, proc)
        finally:
            os.close(proc)
        found = {
            Holder(
                s.hits[i].pid, HOW[s.hits[i].how], s.hits[i].root,
                PyBytes_FromStringAndSize(s.paths + s.hits[i].path, s.hits[i].length), s.hits[i].detail,
            )
            for i in range(s.hits_count)
        }
        return found, {s.unreadable[i] for i in range(s.unreadable_count)}


cdef void set_errno(object value) noexcept:
    from_python = <int>(value or ESRCH)
    assign_errno(from_python)


cdef extern from *:
    """
    #include <errno.h>
    static inline void pact_set_errno(int value) { errno = value; }
    """
    void assign_errno "pact_set_errno"(int) noexcept nogil


THREADS_MAX = 4


def open_handles_ex(roots, *, proc=b"/proc"):
    """The holders of ``roots`` in the form of ``open_handles``, and the pids of processes that could not be read."""
    targets = Targets(roots, proc)
    shares = max(1, min(THREADS_MAX, len(os.sched_getaffinity(0))))
    results = [None] * shares
    failures = []

    def work(share):
        try:
            results[share] = Walk(targets, share, shares).run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(share,), name="pact-handles") for share in range(1, shares)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    found = set().union(*(holders for holders, _ in results))
    return sorted(found), sorted(set().union(*(unreadable for _, unreadable in results)))


def open_handles(roots, *, proc=b"/proc"):
    """Every handle that any process has on any of ``roots``: a sorted list of ``Holder``.

    ``roots``: absolute paths as bytes. A mount point stands for its whole file system wherever that is mounted, a
    directory for all below it, anything else for that file under all of its names. TypeError, ValueError: a root is
    not bytes, not absolute. OSError: /proc cannot be read, or this process has no descriptors left.
    """
    return open_handles_ex(roots, proc=proc)[0]
