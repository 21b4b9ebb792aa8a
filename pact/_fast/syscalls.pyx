"""System calls that Python 3.11 has no function for: openat2, renameat2, umount2, mount_setattr; and those that are
made for many files at once, without a turn of the interpreter between two of them.

Kept here rather than in ctypes, which costs every agent memory. Each raises OSError with the errno of the kernel, but
those for many files return it for each.
"""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset, strlen

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/fs.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <malloc.h>
    #include <sys/ioctl.h>
    #include <sys/mount.h>
    #include <sys/stat.h>
    #include <sys/timex.h>
    #include <sys/wait.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    #ifndef SYS_openat2
    #define SYS_openat2 437
    #endif
    #ifndef SYS_renameat2
    #error "no renameat2 on this platform"
    #endif
    struct pact_open_how { uint64_t flags; uint64_t mode; uint64_t resolve; };
    static long pact_openat2(int dfd, const char *path, struct pact_open_how *how) {
        return syscall(SYS_openat2, dfd, path, how, sizeof *how);
    }
    static long pact_renameat2(int od, const char *o, int nd, const char *n, unsigned flags) {
        return syscall(SYS_renameat2, od, o, nd, n, flags);
    }
    #ifndef SYS_mount_setattr
    #define SYS_mount_setattr 442
    #endif
    struct pact_mount_attr { uint64_t set; uint64_t clear; uint64_t propagation; uint64_t userns_fd; };
    static long pact_mount_read_only(const char *path, int on) {
        struct pact_mount_attr attr = {on ? 1 : 0, on ? 0 : 1, 0, 0}; /* MOUNT_ATTR_RDONLY */
        return syscall(SYS_mount_setattr, -100, path, 0x100, &attr, sizeof attr); /* AT_FDCWD, AT_SYMLINK_NOFOLLOW */
    }
    /* A child in a mount namespace of its own mounts it over its root, where nobody is, writes the mount table and
       ends; it makes system calls only. */
    static int pact_scratch_mount(const char *fstype, const char *data, pid_t *child) {
        static char text[4096];
        int ends[2], table;
        ssize_t got;
        if (pipe2(ends, O_CLOEXEC))
            return -1;
        *child = fork();
        if (*child < 0) {
            int why = errno;
            close(ends[0]);
            close(ends[1]);
            errno = why;
            return -1;
        }
        if (*child == 0) {
            if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)
                || mount("pact", "/", fstype, MS_NOSUID | MS_NODEV | MS_NOEXEC, data))
                _exit(1);
            table = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
            if (table < 0)
                _exit(1);
            while ((got = read(table, text, sizeof text)) > 0)
                if (write(ends[1], text, got) != got)
                    _exit(1);
            _exit(got < 0);
        }
        close(ends[1]);
        return ends[0];
    }
    /* A child asks in another mount namespace. A mark that somebody else left is taken off first, for it would turn the
       question into an unmounting; its own is taken off in the same breath. */
    static int pact_expire_in(int space, const char *path) {
        int status, said;
        pid_t child = fork();
        if (child < 0)
            return -1;
        if (child == 0) {
            if (setns(space, CLONE_NEWNS))
                _exit(2);
            said = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
            if (said < 0 || close(said))
                _exit(2);
            if (!umount2(path, MNT_EXPIRE | UMOUNT_NOFOLLOW))
                _exit(2);
            if (errno != EAGAIN)
                _exit(errno == EBUSY ? 1 : 2);
            said = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
            _exit(said < 0 || close(said) ? 2 : 0);
        }
        while (waitpid(child, &status, 0) < 0)
            if (errno != EINTR)
                return -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
    }
    /* Opened as FILE_FLAGS in Python. What may not be opened now is written again when its turn comes. */
    static int pact_open_there(int dfd, const char *name) {
        return openat(dfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    }
    static void pact_begin_writing(int dfd, const char *name) {
        int fd = pact_open_there(dfd, name);
        if (fd < 0)
            return;
        sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        close(fd);
    }
    static int pact_fsync_there(int dfd, const char *name) {
        int why = 0, fd = pact_open_there(dfd, name);
        if (fd < 0)
            return errno;
        if (fsync(fd))
            why = errno;
        close(fd);
        return why;
    }
    /* The question and the removal in one breath. ESTALE: it is another file, or was changed. */
    static int pact_unlink_unchanged(int dfd, const char *name, const int64_t *seen) {
        struct stat st;
        if (fstatat(dfd, name, &st, AT_SYMLINK_NOFOLLOW))
            return errno;
        if ((int64_t)st.st_ino != seen[0] || (int64_t)st.st_size != seen[1]
            || st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec != seen[2]
            || st.st_ctim.tv_sec * 1000000000LL + st.st_ctim.tv_nsec != seen[3])
            return ESTALE;
        return unlinkat(dfd, name, 0) ? errno : 0;
    }
    /* The thing is held before it is known what it is, and opened only if it is a regular file: opening a FIFO would
       wait, opening a device may act. */
    static int pact_open_regular(int dfd, const char *name) {
        char place[32];
        struct stat st;
        int fd, why, held;
        do
            held = openat(dfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        while (held < 0 && errno == EINTR);
        if (held < 0)
            return -1;
        if (fstat(held, &st))
            fd = -1;
        else if (!S_ISREG(st.st_mode)) {
            errno = EINVAL;
            fd = -1;
        } else {
            snprintf(place, sizeof place, "/proc/self/fd/%d", held);
            do
                fd = open(place, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
            while (fd < 0 && errno == EINTR);
        }
        why = errno;
        close(held);
        errno = why;
        return fd;
    }
    #define PACT_ATTRS 8
    struct pact_looked {
        char names[512], values[2048]; /* of extended attributes, one behind the other */
        size_t value_size[PACT_ATTRS];
        int attrs;
        unsigned mode, uid, gid;
        uint64_t dev, ino, size;
        int64_t mtime_ns, ctime_ns;
        long flags;
        int same;
        size_t got;
        char *content;
    };
    /* Whether all attributes are told: few and small ones, such as a label of SELinux. */
    static int pact_attrs(int fd, struct pact_looked *out) {
        size_t at, used = 0, room = sizeof out->values;
        ssize_t n = flistxattr(fd, out->names, sizeof out->names), got;
        out->attrs = 0;
        if (n < 0)
            return errno == ENOTSUP || errno == ENODATA;
        if (n && out->names[n - 1]) /* a name without an end */
            return 0;
        for (at = 0; at < (size_t)n; at += strlen(out->names + at) + 1) {
            /* Where no room is left the kernel would say a size, and write nothing. */
            if (out->attrs == PACT_ATTRS || used >= room)
                return 0;
            got = fgetxattr(fd, out->names + at, out->values + used, room - used);
            if (got < 0 || (size_t)got > room - used)
                return 0;
            out->value_size[out->attrs++] = (size_t)got;
            used += (size_t)got;
        }
        return 1;
    }
    static int64_t pact_ns(const struct timespec *t) { return t->tv_sec * 1000000000LL + t->tv_nsec; }
    /* 1: all of a small regular file was read; ``content`` is for the caller to free. 0: it is none, or there is more
       to say of it, or something failed: whoever asked looks step by step. */
    static int pact_look_small(int dfd, const char *name, size_t most, struct pact_looked *out) {
        struct stat st, after;
        ssize_t got;
        size_t room;
        long bits[2] = {0, 0};
        int fd, done = 0;
        if (fstatat(dfd, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode) || (size_t)st.st_size > most)
            return 0;
        fd = pact_open_regular(dfd, name);
        if (fd < 0)
            return 0;
        out->content = NULL;
        if (fstat(fd, &st) || !st.st_size || (size_t)st.st_size > most)
            goto end;
        room = (size_t)st.st_size + 1; /* one more: a file that has grown shows it */
        out->content = malloc(room);
        if (!out->content)
            goto end;
        out->got = 0;
        while (out->got < room && (got = read(fd, out->content + out->got, room - out->got)) != 0) {
            if (got < 0)
                goto end;
            out->got += (size_t)got;
        }
        if (out->got == room || !pact_attrs(fd, out))
            goto end;
        out->flags = ioctl(fd, FS_IOC_GETFLAGS, bits) ? 0 : bits[0] & 0xffffffffL;
        if (fstat(fd, &after))
            goto end;
        out->mode = st.st_mode;
        out->uid = st.st_uid;
        out->gid = st.st_gid;
        out->dev = st.st_dev;
        out->ino = st.st_ino;
        out->size = (uint64_t)st.st_size;
        out->mtime_ns = pact_ns(&st.st_mtim);
        out->ctime_ns = pact_ns(&st.st_ctim);
        out->same = st.st_dev == after.st_dev && st.st_ino == after.st_ino && st.st_mode == after.st_mode
            && st.st_uid == after.st_uid && st.st_gid == after.st_gid && st.st_size == after.st_size
            && out->mtime_ns == pact_ns(&after.st_mtim) && out->ctime_ns == pact_ns(&after.st_ctim);
        done = 1;
    end:
        close(fd);
        if (!done) {
            free(out->content);
            out->content = NULL;
        }
        return done;
    }
    /* What is mapped from a layered file system, or passed through FUSE, is the file below: the kernel gives a lease on
       the one above all the same. */
    static int pact_leases_tell(int fd) {
        struct statfs st;
        if (fstatfs(fd, &st))
            return 0;
        switch ((unsigned)st.f_type) {
        case 0x794c7630: /* overlay */
        case 0x61756673: /* aufs */
        case 0x65735546: /* FUSE */
            return 0;
        }
        return 1;
    }
    /* The signal is one that every process ignores by default: who opens the file meanwhile sends it. */
    static int pact_ask_lease(int fd) {
        if (fcntl(fd, F_SETSIG, SIGURG) || fcntl(fd, F_SETLEASE, F_WRLCK))
            return errno;
        if (fcntl(fd, F_SETLEASE, F_UNLCK))
            return errno;
        return pact_leases_tell(fd) ? 0 : EOPNOTSUPP;
    }
    static int pact_clock_synchronised(void) {
        struct timex t = {0};
        return adjtimex(&t) >= 0 && !(t.status & STA_UNSYNC);
    }
    static void pact_one_arena(void) {
    #ifdef __GLIBC__
        mallopt(M_ARENA_MAX, 1);
    #endif
    }
    static void pact_keep_freed(int bytes) {
    #ifdef __GLIBC__
        mallopt(M_TRIM_THRESHOLD, bytes);
        mallopt(M_MMAP_THRESHOLD, bytes < (32 << 20) ? bytes : (32 << 20));
    #endif
    }
    static void pact_trim(void) {
    #ifdef __GLIBC__
        malloc_trim(0);
    #endif
    }
    """
    struct pact_open_how:
        unsigned long long flags
        unsigned long long mode
        unsigned long long resolve
    long pact_openat2(int dfd, const char *path, pact_open_how *how) nogil
    long pact_renameat2(int od, const char *o, int nd, const char *n, unsigned flags) nogil
    long pact_mount_read_only(const char *path, int on) nogil
    int pact_scratch_mount(const char *fstype, const char *data, int *child) nogil
    int pact_expire_in(int space, const char *path) nogil
    int pact_clock_synchronised() nogil
    void pact_trim() nogil
    void pact_one_arena() nogil
    void pact_keep_freed(int bytes) nogil
    int c_umount2 "umount2"(const char *target, int flags) nogil
    void pact_begin_writing(int dfd, const char *name) nogil
    int pact_fsync_there(int dfd, const char *name) nogil
    int pact_unlink_unchanged(int dfd, const char *name, const int64_t *seen) nogil
    int pact_open_regular(int dfd, const char *name) nogil
    struct pact_looked:
        char *names
        char *values
        size_t *value_size
        int attrs
        unsigned mode
        unsigned uid
        unsigned gid
        uint64_t dev
        uint64_t ino
        uint64_t size
        int64_t mtime_ns
        int64_t ctime_ns
        long flags
        int same
        size_t got
        char *content
    int pact_look_small(int dfd, const char *name, size_t most, pact_looked *out) nogil
    int pact_ask_lease(int fd) nogil
    int pact_leases_tell(int fd) nogil

AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8


cdef enum:
    RESOLVE_BENEATH_BIT = 0x08
    RESOLVE_IN_ROOT_BIT = 0x10
    SCOPED_TRIES = 1000  # about a millisecond


cdef int _raise(bytes path) except -1:
    import os
    cdef int code = errno
    raise OSError(code, os.strerror(code), path)


def openat2(int dirfd, bytes path, unsigned long long flags, unsigned long long mode=0, unsigned long long resolve=0):
    """Open ``path`` below ``dirfd``; returns the descriptor. Raises OSError (ELOOP for a symlink if refused).

    Below a directory that must not be left (RESOLVE_BENEATH, RESOLVE_IN_ROOT) the kernel answers EAGAIN to a way with
    ``..`` in it when anything on the machine is mounted or renamed in that moment, and says that it may be asked again.
    """
    cdef pact_open_how how
    cdef const char *text = path
    cdef long fd
    cdef int tries = SCOPED_TRIES if resolve & (RESOLVE_BENEATH_BIT | RESOLVE_IN_ROOT_BIT) else 1
    memset(&how, 0, sizeof(how))
    how.flags = flags
    how.mode = mode
    how.resolve = resolve
    with nogil:
        while True:
            fd = pact_openat2(dirfd, text, &how)
            tries -= 1
            if fd >= 0 or errno != EAGAIN or tries <= 0:
                break
    if fd < 0:
        _raise(path)
    return int(fd)


def renameat2(int old_dirfd, bytes old, int new_dirfd, bytes new, unsigned int flags):
    """Rename with RENAME_NOREPLACE or RENAME_EXCHANGE. Raises OSError (EEXIST, EINVAL where not supported)."""
    cdef const char *old_text = old
    cdef const char *new_text = new
    cdef long rc
    with nogil:
        rc = pact_renameat2(old_dirfd, old_text, new_dirfd, new_text, flags)
    if rc < 0:
        _raise(new)


cdef enum:
    AT_ONCE_MAX = 1024


cdef int _texts(tuple names, const char **texts) except -1:
    """Their texts, for as long as nobody drops the names."""
    cdef Py_ssize_t n
    assert len(names) <= AT_ONCE_MAX
    for n in range(len(names)):
        texts[n] = PyBytes_AsString(names[n])
    return 0


def make_durable(int dirfd, tuple names):
    """Wait until the contents of these files are on the disk. Returns for each its errno; 0 if they are.

    The writing of all of them is started before the first is waited for: then the file system's journal has most of
    them in one commit, and not each in a commit of its own.
    """
    cdef const char *texts[AT_ONCE_MAX]
    cdef int codes[AT_ONCE_MAX]
    cdef Py_ssize_t n, count = len(names)
    _texts(names, texts)
    with nogil:
        for n in range(count):
            pact_begin_writing(dirfd, texts[n])
        for n in range(count):
            codes[n] = pact_fsync_there(dirfd, texts[n])
    return [codes[n] for n in range(count)]


def unlink_unchanged(int dirfd, tuple names, tuple seen):
    """Remove those files that are still as they were ``seen``: inode, size, and the times of the last write and the
    last change, in ns. Returns for each its errno; ESTALE if it is no longer so, and then it stays."""
    cdef const char *texts[AT_ONCE_MAX]
    cdef int64_t were[AT_ONCE_MAX][4]
    cdef int codes[AT_ONCE_MAX]
    cdef Py_ssize_t n, k, count = len(names)
    assert len(seen) == count
    _texts(names, texts)
    for n in range(count):
        for k in range(4):
            were[n][k] = <int64_t>(<object>seen[n][k])
    with nogil:
        for n in range(count):
            codes[n] = pact_unlink_unchanged(dirfd, texts[n], were[n])
    return [codes[n] for n in range(count)]


def open_regular(int dirfd, bytes leaf):
    """A descriptor for reading the regular file with this name; no link is followed. Raises OSError; EINVAL if it is no
    regular file, and then nothing was opened."""
    cdef const char *text = leaf
    cdef int fd
    with nogil:
        fd = pact_open_regular(dirfd, text)
    if fd < 0:
        _raise(leaf)
    return fd


def look_small(int dirfd, bytes leaf, size_t most):
    """All that there is to see of a regular file with at most ``most`` bytes, in one turn: mode, uid, gid, content,
    inode flags, whether its status was the same after it was read, the status (dev, ino, size, and the times of the
    last write and the last change in ns), and its extended attributes, a pair of bytes each.

    None for everything else: what is empty, larger, has many or large attributes, grows, or cannot be read. Never
    raises OSError.
    """
    cdef const char *text = leaf
    cdef pact_looked out
    cdef int done
    with nogil:
        done = pact_look_small(dirfd, text, most, &out)
    if not done:
        return None
    try:
        content = PyBytes_FromStringAndSize(out.content, <Py_ssize_t>out.got)
    finally:
        free(out.content)
    status = out.dev, out.ino, out.size, out.mtime_ns, out.ctime_ns
    cdef const char *name = out.names
    cdef const char *value = out.values
    cdef int n
    attrs = []
    for n in range(out.attrs):
        attrs.append((<bytes>name, PyBytes_FromStringAndSize(value, <Py_ssize_t>out.value_size[n])))
        name += strlen(name) + 1
        value += out.value_size[n]
    return out.mode, out.uid, out.gid, content, out.flags, bool(out.same), status, attrs


def ask_lease(int fd):
    """Ask for a write lease on an open regular file, and give it back at once. Returns 0 if the kernel granted it: it
    does so only if nobody else has the file open; EAGAIN if somebody has; another errno where there are no leases, and
    where they do not tell (``leases_tell``)."""
    cdef int said
    with nogil:
        said = pact_ask_lease(fd)
    return said


def leases_tell(int fd):
    """Whether a lease that the kernel grants on this open file means that nobody has it mapped either. False on
    overlays, aufs and FUSE: what is mapped there is the file below."""
    cdef int said
    with nogil:
        said = pact_leases_tell(fd)
    return bool(said)


def umount2(bytes target, int flags=0):
    """Unmount; EBUSY if it is in use, EAGAIN from the first MNT_EXPIRE of an idle mount. Raises OSError."""
    cdef const char *text = target
    cdef int rc
    with nogil:
        rc = c_umount2(text, flags)
    if rc < 0:
        _raise(target)


def mount_read_only(bytes target, bint on):
    """Make this mount read-only (EBUSY if a process has a file open for writing), or writable again. Its other flags
    stay. Raises OSError; ENOSYS before Linux 5.12."""
    cdef const char *text = target
    cdef int flag = on
    cdef long rc
    with nogil:
        rc = pact_mount_read_only(text, flag)
    if rc < 0:
        _raise(target)


def scratch_mount(bytes fstype, bytes data):
    """Mount a file system in memory with these options in a private namespace. Returns the child process that does it,
    for which the caller must wait, and the end of a pipe with its mount table; the pipe is empty if the kernel refused.
    Raises OSError."""
    cdef const char *type_text = fstype
    cdef const char *data_text = data
    cdef int child = 0
    cdef int fd
    with nogil:
        fd = pact_scratch_mount(type_text, data_text, &child)
    if fd < 0:
        _raise(fstype)
    return child, fd


def expire_in(int space, bytes path):
    """The answer of MNT_EXPIRE for a mount in the mount namespace of an open ``/proc/PID/ns/mnt``: 0 idle, 1 busy, 2
    unusable. The mark is removed again. Raises OSError."""
    cdef const char *text = path
    cdef int said
    with nogil:
        said = pact_expire_in(space, text)
    if said < 0:
        _raise(path)
    return said


def clock_synchronised():
    """True if the kernel's clock is disciplined by a daemon (``adjtimex`` without STA_UNSYNC)."""
    return bool(pact_clock_synchronised())


def trim():
    """Give freed memory back to the kernel (glibc's ``malloc_trim``; nothing elsewhere)."""
    pact_trim()


def one_arena():
    """One heap for all threads, and large blocks returned at once: less memory, for threads that seldom allocate."""
    pact_one_arena()


def keep_freed(int bytes):
    """Keep this much freed memory for the next large block; ``trim`` returns it. Each page that comes new from the
    kernel costs as much as copying it several times."""
    pact_keep_freed(bytes)
