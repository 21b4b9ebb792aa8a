# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The thread that reads the kernel's events, and the few system calls around it.

Why native: a writer such as ``sysctl -w`` is gone a millisecond after it wrote. Only a thread that needs neither the
GIL nor the loop, and that may run at real-time priority, reads ``/proc/PID`` while it still exists. It keeps only
events for declared names (a hash set of directory and name), so a noisy directory costs the loop nothing, and puts
records with the writer's snapshot into a bounded double buffer; an eventfd wakes the loop.

It refuses to interpret: directories, paths, owners and units are the business of ``pact.observe``. It drops nothing
silently: when the buffer is full it stops reading, the kernel's queue fills, and the overflow is reported as a record.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

import os

KIND_FID = 70       # "F": key is fsid and file handle, name the entry ("." the directory's end, "" the object itself)
KIND_INOTIFY = 73   # "I": key is the watch descriptor
KIND_PROC = 83      # "S": name is the path below /proc/sys
KIND_MOUNTS = 77    # "M": the mount table changed
KIND_MNTNS = 78     # "N": a mount was attached or detached, with its pid
KIND_CONNECTOR = 67  # "C"
KIND_LOST = 76      # "L": mask is the kind of the source that overflowed or died, pid its errno (0 for overflow)

cdef enum:
    K_FID = 70
    K_INOTIFY = 73
    K_PROC = 83
    K_MOUNTS = 77
    K_MNTNS = 78
    K_CONNECTOR = 67
    K_LOST = 76
    OVERFLOW = 0x4000
    NO_PIDFD = -3             # the kernel gave none; -1 means that the writer is gone and its pid free
    INFO_FID = 1
    INFO_DFID_NAME = 2
    INFO_PIDFD = 4
    SELF_EVENTS = 0xC00       # DELETE_SELF | MOVE_SELF
    ENTRY_EVENTS = 0x3C0      # MOVED_FROM | MOVED_TO | CREATE | DELETE
    IN_IGNORED = 0x8000
    FAN_BUF = 8192            # each event may carry an fd: this bounds how many are open at once
    PROC_BUF = 768
    CONNECTOR_BATCH = 16

cdef int64_t FRESH_NS = 5_000_000              # a snapshot this young is used again without a new read
cdef int64_t EXEC_KEPT_NS = 2_000_000_000      # after this a pid may belong to another process
cdef int64_t BUDGET_WINDOW_NS = 1_000_000_000
cdef int64_t BUDGET_FIFO_NS = 250_000_000      # of each second at real-time priority, then at normal priority
cdef int64_t BUDGET_EXEC_NS = 100_000_000      # of each second for exec events, then only file events are attributed


# ---- the filter -----------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t h, const unsigned char *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        h = (h ^ p[i]) * PACT_FNV_PRIME
    return h


cdef inline uint64_t interest_hash(int kind, const char *key, size_t key_len,
                                   const char *name, size_t name_len) noexcept nogil:
    cdef uint64_t h = PACT_FNV_START ^ <uint64_t>kind
    h = mix(h, <const unsigned char *>key, key_len)
    h = (h ^ 0xFF) * PACT_FNV_PRIME
    h = mix(h, <const unsigned char *>name, name_len)
    h ^= h >> 29
    return h if h else 1


cdef Slot *find(State *s, uint64_t h, bint insert) noexcept nogil:
    cdef uint32_t i = <uint32_t>h & (s.n_slots - 1)
    while s.slots[i].hash:
        if s.slots[i].hash == h:
            return &s.slots[i]
        i = (i + 1) & (s.n_slots - 1)
    if not insert:
        return NULL
    s.slots[i].hash = h
    s.slots[i].count = 0
    s.n_used += 1
    return &s.slots[i]


cdef int grow(State *s) except -1 nogil:
    # rebuilds without the entries that have no interest left
    cdef Slot *old = s.slots
    cdef uint32_t n = s.n_slots, live = 0, i
    for i in range(n):
        live += s.slots[i].count != 0
    cdef uint32_t want = n
    while want < live * 3:
        want *= 2
    cdef Slot *fresh = <Slot *>calloc(want, sizeof(Slot))
    if fresh == NULL:
        with gil:
            raise MemoryError
    s.slots = fresh
    s.n_slots = want
    s.n_used = 0
    for i in range(n):
        if old[i].count:
            find(s, old[i].hash, True)[0] = old[i]
    free(old)
    return 0


# ---- who wrote -------------------------------------------------------------------------------------------------------

cdef int slurp(int dirfd, const char *name, char *buf, int cap) noexcept nogil:
    cdef int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return -1
    cdef int n = <int>read(fd, buf, cap - 1)
    close(fd)
    if n < 0:
        return -1
    buf[n] = 0
    return n


cdef uint64_t number(const char **at, const char *end) noexcept nogil:
    cdef const char *p = at[0]
    cdef uint64_t v = 0
    while p < end and (p[0] < 48 or p[0] > 57):
        p += 1
    while p < end and 48 <= p[0] <= 57:
        v = v * 10 + <uint64_t>(p[0] - 48)
        p += 1
    at[0] = p
    return v


cdef const char *find_bytes(const char *hay, int n, const char *needle) noexcept nogil:
    cdef int m = <int>strlen(needle), i
    for i in range(n - m + 1):
        if memcmp(hay + i, needle, m) == 0:
            return hay + i
    return NULL


cdef int select_cgroup(const char *text, int n, char *out, int cap) noexcept nogil:
    # the path of the unified hierarchy unless that is only "/", else that of systemd's own
    cdef const char *line = text
    cdef const char *end = text + n
    cdef const char *eol
    cdef const char *path
    cdef int best = 0, size
    while line < end:
        eol = <const char *>memchr(line, 10, end - line)
        if eol == NULL:
            eol = end
        path = NULL
        if eol - line >= 3 and memcmp(line, "0::", 3) == 0:
            path = line + 3
        else:
            path = find_bytes(line, <int>(eol - line), ":name=systemd:")
            if path != NULL:
                path += 14
        if path != NULL:
            size = <int>(eol - path)
            if size > cap:
                size = cap
            if best == 0 or size > 1 and (best == 1 or memcmp(line, "0::", 3) == 0):
                memcpy(out, path, size)
                best = size
        line = eol + 1
    return best


cdef int read_status(const char *text, int n, Snap *s) noexcept nogil:
    # 0, or -1 if it does not name the owner of the process
    cdef const char *end = text + n
    cdef const char *p = find_bytes(text, n, "\nUid:")
    if p == NULL:
        return -1
    s.uid = <uint32_t>number(&p, end)
    s.euid = <uint32_t>number(&p, end)
    return 0


cdef int read_stat(const char *text, int n, Snap *s) noexcept nogil:
    # 0, or -1 for a text that is no line of /proc/PID/stat
    cdef const char *end = text + n
    cdef const char *p = <const char *>memchr(text, 40, n)
    cdef int i = n - 1, _i
    # comm stands in parentheses and may contain any byte: the last ")" ends it
    while i > 0 and text[i] != 41:
        i -= 1
    if p == NULL or text + i <= p:
        return -1
    if s.cmd_len == 0:
        s.cmd_len = <uint16_t>min(text + i - p - 1, CMD_MAX)
        memcpy(s.cmd, p + 1, s.cmd_len)
        s.cmd_len |= 0x8000                    # from comm: the cache may have a better one
    p = text + i + 1
    while p < end and (p[0] == 32 or 65 <= p[0] <= 122):
        p += 1                                 # the state letter
    s.ppid = <int>number(&p, end)
    for _i in range(2):
        number(&p, end)                        # pgrp, session
    s.tty = <int>number(&p, end)
    # tpgid (may be -1), flags, 4 faults, 4 times, priority, nice (may be negative), threads, itrealvalue
    for _i in range(14):
        number(&p, end)
    s.start_ticks = number(&p, end)
    return 0


cdef int take_snap(int pid, Snap *s) noexcept nogil:
    # 0, or -1 when the process is gone. The command line is read first: an exit takes it away first.
    cdef char buf[4096]
    cdef const char *p
    cdef int n, dirfd
    snprintf(buf, 32, "/proc/%d", pid)
    dirfd = open(buf, O_PATH | O_DIRECTORY | O_CLOEXEC)
    if dirfd < 0:
        return -1
    s.pid = pid
    n = slurp(dirfd, "cmdline", s.cmd, CMD_MAX)
    s.cmd_len = n if n > 0 else 0
    n = slurp(dirfd, "status", buf, sizeof(buf))
    if n <= 0 or read_status(buf, n, s) < 0:
        close(dirfd)
        return -1
    s.loginuid = s.sessionid = 0xFFFFFFFF
    n = slurp(dirfd, "loginuid", buf, 32)
    if n > 0:
        p = buf
        s.loginuid = <uint32_t>number(&p, buf + n)
    n = slurp(dirfd, "sessionid", buf, 32)
    if n > 0:
        p = buf
        s.sessionid = <uint32_t>number(&p, buf + n)
    n = slurp(dirfd, "cgroup", buf, sizeof(buf))
    s.cgroup_len = select_cgroup(buf, n, s.cgroup, CGROUP_MAX) if n > 0 else 0
    n = slurp(dirfd, "stat", buf, sizeof(buf))
    close(dirfd)
    if n <= 0 or read_stat(buf, n, s) < 0:
        return -1
    s.at_ns = pact_clock(CLOCK_BOOTTIME)
    return 0


cdef Snap *resolve(State *s, int pid, int pidfd) noexcept nogil:
    cdef Snap tmp
    cdef Snap *c = &s.cache[pid & (CACHE_SLOTS - 1)]
    cdef int64_t now = pact_clock(CLOCK_BOOTTIME)
    cdef bint same = c.pid == pid
    if pid <= 0:
        return NULL
    if same and now - c.at_ns < FRESH_NS:
        return c
    if pidfd != -1 and take_snap(pid, &tmp) == 0 and (pidfd < 0 or pact_pidfd_alive(pidfd)):
        if tmp.cmd_len & 0x8000 and same and c.start_ticks == tmp.start_ticks:
            tmp.cmd_len = c.cmd_len
            memcpy(tmp.cmd, c.cmd, CMD_MAX)
        pthread_mutex_lock(&s.lock)             # Python's threads may look a process up (remembered)
        c[0] = tmp
        pthread_mutex_unlock(&s.lock)
        return c
    if same and now - c.at_ns < EXEC_KEPT_NS:
        s.n_from_cache += 1
        return c
    s.n_unresolved += 1
    return NULL


# ---- the ring --------------------------------------------------------------------------------------------------------

cdef void put(State *s, int kind, const char *key, size_t key_len, const char *name, size_t name_len,
              int pid, uint64_t mask, Snap *snap) noexcept nogil:
    cdef Rec r
    cdef uint64_t one = 1
    cdef uint16_t cmd_len = 0, cgroup_len = 0
    memset(&r, 0, sizeof(Rec))
    r.kind = <uint8_t>kind
    r.key_len = <uint16_t>key_len
    r.name_len = <uint16_t>name_len
    r.pid = pid
    r.mask = mask
    if snap != NULL:
        cmd_len = snap.cmd_len & 0x7FFF
        cgroup_len = snap.cgroup_len
        r.has_snap = 1
        r.uid = snap.uid
        r.euid = snap.euid
        r.loginuid = snap.loginuid
        r.sessionid = snap.sessionid
        r.tty = snap.tty
        r.ppid = snap.ppid
        r.start_ticks = snap.start_ticks
        r.cmd_len = cmd_len
        r.cgroup_len = cgroup_len
    r.size = <uint32_t>((sizeof(Rec) + key_len + name_len + cmd_len + cgroup_len + 7) & ~<size_t>7)
    pthread_mutex_lock(&s.lock)
    while s.fill_used + r.size > BUF_BYTES and not s.stopping:
        pthread_cond_wait(&s.space, &s.lock)
    if not s.stopping:
        r.t_ns = pact_clock(CLOCK_BOOTTIME)
        p = s.fill + s.fill_used
        memcpy(p, &r, sizeof(Rec))
        p += sizeof(Rec)
        memcpy(p, key, key_len)
        p += key_len
        memcpy(p, name, name_len)
        p += name_len
        if snap != NULL:
            memcpy(p, snap.cmd, cmd_len)
            p += cmd_len
            memcpy(p, snap.cgroup, cgroup_len)
        if s.fill_used == 0:
            write(s.wake_fd, &one, 8)
        s.fill_used += r.size
        s.n_kept += 1
    pthread_mutex_unlock(&s.lock)


cdef bint wanted(State *s, uint64_t h, int pid, uint64_t mask) noexcept nogil:
    # False also if an undelivered record of the same writer says the same: the loop has yet to observe.
    cdef bint yes = False
    cdef Slot *e
    pthread_mutex_lock(&s.lock)
    e = find(s, h, False)
    if e != NULL and e.count:
        if e.pending_epoch == s.epoch and e.pending_pid == pid and <uint32_t>mask & ~e.pending_mask == 0:
            s.n_coalesced += 1
        else:
            if e.pending_epoch != s.epoch or e.pending_pid != pid:
                e.pending_mask = 0
            e.pending_epoch = s.epoch
            e.pending_pid = pid
            e.pending_mask |= <uint32_t>mask
            yes = True
    pthread_mutex_unlock(&s.lock)
    return yes


cdef bint any_wanted(State *s, int kind, const char *key, size_t key_len, const char *name, size_t name_len,
                     uint64_t mask) noexcept nogil:
    # somebody wants every name that comes or goes in this directory ("/", which cannot be an entry's name). Each event
    # counts: none is merged, because the next one has another name
    cdef Slot *e
    cdef bint yes
    if not mask & ENTRY_EVENTS or name_len == 0 or name_len == 1 and name[0] == 46:
        return False
    pthread_mutex_lock(&s.lock)
    e = find(s, interest_hash(kind, key, key_len, "/", 1), False)
    yes = e != NULL and e.count != 0
    pthread_mutex_unlock(&s.lock)
    return yes


cdef void keep(State *s, int kind, const char *key, size_t key_len, const char *name, size_t name_len,
               int pid, uint64_t mask, int pidfd) noexcept nogil:
    put(s, kind, key, key_len, name, name_len, pid, mask, NULL if pid == s.own_pid else resolve(s, pid, pidfd))


cdef void lost(State *s, int kind, int why) noexcept nogil:
    put(s, K_LOST, "", 0, "", 0, why, <uint64_t>kind, NULL)


# ---- the sources -----------------------------------------------------------------------------------------------------

cdef void on_fan_event(State *s, int kind, pact_fan_meta *m) noexcept nogil:
    cdef char *end = <char *>m + m.len
    cdef char *p = <char *>m + m.meta_len
    cdef pact_fan_info *info
    cdef char *key[2]
    cdef const char *name[2]
    cdef const char *zero
    cdef size_t key_len[2]
    cdef size_t name_len[2]
    cdef int hits = 0, i, pidfd = NO_PIDFD
    while p + 4 <= end:
        info = <pact_fan_info *>p
        if info.len < 4 or info.len > end - p:
            break
        if info.type == INFO_PIDFD and info.len >= 8:
            pidfd = pact_int32(p + 4)
        elif (info.type == INFO_DFID_NAME or info.type == INFO_FID) and hits < 2 and info.len >= 20:
            # the entry by its directory and name; the object itself if it is marked (a mount point): name ""
            key[hits] = p + 4
            key_len[hits] = 16 + <size_t><uint32_t>pact_int32(p + 12)
            if key_len[hits] + 4 <= info.len:
                name[hits] = PACT_EMPTY
                name_len[hits] = 0
                if info.type == INFO_DFID_NAME:
                    name[hits] = key[hits] + key_len[hits]
                    zero = <const char *>memchr(name[hits], 0, p + info.len - name[hits])
                    name_len[hits] = (zero if zero != NULL else p + info.len) - name[hits]
                if not m.mask & SELF_EVENTS and name_len[hits] == 1 and name[hits][0] == 46:
                    name_len[hits] = 0          # a directory's own attributes, not its end
                hits += wanted(s, interest_hash(K_FID, key[hits], key_len[hits], name[hits], name_len[hits]),
                               m.pid, m.mask) or any_wanted(
                                   s, K_FID, key[hits], key_len[hits], name[hits], name_len[hits], m.mask)
        p += info.len
    if kind == K_MNTNS:
        keep(s, K_MNTNS, "", 0, "", 0, m.pid, m.mask, pidfd)
    else:
        for i in range(hits):
            keep(s, K_FID, key[i], key_len[i], name[i], name_len[i], m.pid, m.mask, pidfd)
    if pidfd >= 0:
        close(pidfd)


cdef void on_proc_event(State *s, pact_fan_meta *m) noexcept nogil:
    cdef char link[40]
    cdef char path[4096]
    cdef const char *tail
    cdef int n, pidfd = NO_PIDFD
    cdef pact_fan_info *info = <pact_fan_info *>(<char *>m + m.meta_len)
    if m.len >= <uint32_t>m.meta_len + 8 and info.type == INFO_PIDFD:
        pidfd = pact_int32(<char *>info + 4)
    snprintf(link, sizeof(link), "/proc/self/fd/%d", m.fd)
    n = <int>readlink(link, path, sizeof(path) - 1)
    if n > 0:
        path[n] = 0
        # the mark is on procfs, so the part before /sys/ is the mount point of one of its instances
        tail = find_bytes(path, n, "/sys/")
        if tail != NULL:
            tail += 5
            # a write to one sysctl may move others, so a reader of any may ask for events of all ("*")
            if wanted(s, interest_hash(K_PROC, "", 0, tail, strlen(tail)), m.pid, m.mask) or wanted(
                    s, interest_hash(K_PROC, "", 0, "*", 1), m.pid, m.mask):
                keep(s, K_PROC, "", 0, tail, strlen(tail), m.pid, m.mask, pidfd)
    if pidfd >= 0:
        close(pidfd)


cdef int read_fanotify(State *s, int kind, int fd) noexcept nogil:
    cdef char buf[FAN_BUF]
    cdef ssize_t n = read(fd, buf, PROC_BUF if kind == K_PROC else FAN_BUF)
    if n < 0:
        # one event is lost whose file could not be opened for this process; without descriptors, all further ones are
        if errno == EMFILE or errno == ENFILE:
            lost(s, kind, errno)
        return 0
    on_fanotify(s, kind, buf, n)
    return 0


cdef void on_fanotify(State *s, int kind, char *p, ssize_t n) noexcept nogil:
    cdef pact_fan_meta *m
    while n >= <ssize_t>sizeof(pact_fan_meta):
        m = <pact_fan_meta *>p
        if m.meta_len < sizeof(pact_fan_meta) or m.len < m.meta_len or <ssize_t>m.len > n:
            break
        s.n_read += 1
        if m.mask & OVERFLOW:
            lost(s, kind, 0)
        elif kind == K_PROC:
            if m.fd >= 0:
                on_proc_event(s, m)
        else:
            on_fan_event(s, kind, m)
        if m.fd >= 0:
            close(m.fd)
        n -= m.len
        p += m.len


cdef void read_inotify(State *s, int fd) noexcept nogil:
    cdef char buf[FAN_BUF]
    cdef ssize_t n = read(fd, buf, sizeof(buf))
    on_inotify(s, buf, n)


cdef void on_inotify(State *s, const char *p, ssize_t n) noexcept nogil:
    cdef inotify_event e
    cdef const char *name
    cdef const char *zero
    cdef ssize_t size
    cdef size_t name_len
    while n >= 16:
        memcpy(&e, p, 16)
        size = 16 + <ssize_t>e.len
        if size > n:
            break
        s.n_read += 1
        if e.mask & OVERFLOW:
            lost(s, K_INOTIFY, 0)
        else:
            name = PACT_DOT
            name_len = 1
            if e.len:                           # padded with zeros
                name = p + 16
                zero = <const char *>memchr(name, 0, e.len)
                name_len = zero - name if zero != NULL else <size_t>e.len
            if wanted(s, interest_hash(K_INOTIFY, <char *>&e.wd, 4, name, name_len), 0, e.mask) or any_wanted(
                    s, K_INOTIFY, <char *>&e.wd, 4, name, name_len, e.mask):
                put(s, K_INOTIFY, <char *>&e.wd, 4, name, name_len, 0, e.mask, NULL)
        n -= size
        p += size


cdef void read_connector(State *s, int fd) noexcept nogil:
    cdef char buf[512]
    cdef ssize_t n
    cdef int _i
    for _i in range(CONNECTOR_BATCH):
        n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)
        if n < 0:
            return                              # nothing left, or the kernel dropped some: the cache may miss these
        on_connector(s, buf, n)


cdef void on_connector(State *s, const char *buf, ssize_t n) noexcept nogil:
    cdef int pid
    cdef Snap tmp
    cdef Snap *c
    if n < 60 or pact_int32(buf + 36) != 2:
        return
    s.n_exec += 1
    if s.spent_ns > BUDGET_EXEC_NS:
        s.n_exec_skipped += 1
        return
    pid = pact_int32(buf + 56)
    if pid > 0 and take_snap(pid, &tmp) == 0:
        c = &s.cache[pid & (CACHE_SLOTS - 1)]
        pthread_mutex_lock(&s.lock)
        c[0] = tmp
        pthread_mutex_unlock(&s.lock)
        if s.n_logins:
            note_login(s, &tmp)


cdef void note_login(State *s, Snap *snap) noexcept nogil:
    # a program of a login that is followed
    cdef uint32_t i
    cdef Login *found
    cdef Program *p
    pthread_mutex_lock(&s.lock)
    for i in range(s.n_logins):
        found = &s.logins[i]
        if found.sessionid != snap.sessionid:
            continue
        found.seen += 1
        if found.kept < PROGRAMS_MAX and found.programs != NULL:
            p = &found.programs[found.kept]
            found.kept += 1
            p.uid = snap.uid
            p.len = <uint16_t>min(snap.cmd_len & 0x7FFF, PROGRAM_MAX)
            memcpy(p.cmd, snap.cmd, p.len)
        break
    pthread_mutex_unlock(&s.lock)


cdef void budget(State *s) noexcept nogil:
    # A flood of events must not starve the machine from real-time priority.
    cdef int64_t now = pact_clock(CLOCK_BOOTTIME)
    cdef int64_t cpu = pact_clock(CLOCK_THREAD_CPUTIME_ID)
    cdef bint fifo
    if now - s.window_at_ns > BUDGET_WINDOW_NS:
        s.window_at_ns = now
        s.window_cpu_ns = cpu
    s.spent_ns = cpu - s.window_cpu_ns
    if s.want_fifo and s.fifo_errno == 0:
        fifo = s.spent_ns < BUDGET_FIFO_NS
        if fifo != s.is_fifo:
            s.fifo_errno = pact_fifo(fifo)
            s.is_fifo = fifo and s.fifo_errno == 0


cdef void *thread_main(void *arg) noexcept nogil:
    cdef State *s = <State *>arg
    cdef pollfd p[SOURCES_MAX + 1]
    cdef int i, r
    cdef Source *src
    pact_block_signals()
    if s.n_cpus:
        s.pin_errno = pact_pin(s.cpus, s.n_cpus)
    budget(s)
    pthread_mutex_lock(&s.lock)
    s.ready = True
    pthread_cond_signal(&s.space)
    pthread_mutex_unlock(&s.lock)
    p[0].fd = s.stop_fd
    p[0].events = POLLIN
    for i in range(s.n_sources):
        p[i + 1].fd = s.sources[i].fd
        p[i + 1].events = POLLPRI if s.sources[i].kind == K_MOUNTS else POLLIN
    while not s.stopping:
        r = poll(p, s.n_sources + 1, -1)
        if r < 0:
            continue
        if p[0].revents:
            break
        budget(s)
        for i in range(s.n_sources):
            src = &s.sources[i]
            if not p[i + 1].revents:
                continue
            if src.kind == K_MOUNTS:
                if p[i + 1].revents & (POLLPRI | POLLERR):
                    put(s, K_MOUNTS, "", 0, "", 0, 0, 0, NULL)
                    continue
            elif p[i + 1].revents & POLLIN:
                if src.kind == K_INOTIFY:
                    read_inotify(s, src.fd)
                elif src.kind == K_CONNECTOR:
                    read_connector(s, src.fd)
                else:
                    read_fanotify(s, src.kind, src.fd)
                continue
            elif src.kind == K_CONNECTOR and p[i + 1].revents & POLLERR:
                read_connector(s, src.fd)       # reading clears ENOBUFS
                continue
            # a source in a permanent error state would make the loop spin: stop using it, and report that
            p[i + 1].fd = -1
            lost(s, src.kind, 5)
    return NULL


# ---- for Python ------------------------------------------------------------------------------------------------------

cdef tuple snap_tuple(uint32_t uid, uint32_t euid, uint32_t loginuid, uint32_t sessionid, int tty,
                      const char *cmd, int cmd_len, const char *cgroup, int cgroup_len, int ppid,
                      uint64_t start_ticks):
    return (uid, euid, loginuid, sessionid, tty, PyBytes_FromStringAndSize(cmd, cmd_len),
            PyBytes_FromStringAndSize(cgroup, cgroup_len), ppid, start_ticks)


cdef class Reader:
    """The thread and its data. Add sources, ``start``, then ``take`` when ``fileno`` is readable."""

    cdef State s
    cdef pthread_t thread
    cdef bint running
    cdef bint closed

    def __cinit__(self, bint realtime=True, cpus=()):
        memset(&self.s, 0, sizeof(State))
        self.s.stop_fd = self.s.wake_fd = -1
        self.s.n_slots = 256
        self.s.slots = <Slot *>calloc(self.s.n_slots, sizeof(Slot))
        self.s.fill = <char *>malloc(BUF_BYTES)
        self.s.drain = <char *>malloc(BUF_BYTES)
        self.s.cache = <Snap *>calloc(CACHE_SLOTS, sizeof(Snap))
        if not (self.s.slots and self.s.fill and self.s.drain and self.s.cache):
            raise MemoryError
        self.s.epoch = 1
        self.s.want_fifo = realtime
        self.s.own_pid = os.getpid()
        for cpu in cpus:
            if not 0 <= cpu < 1024:
                raise ValueError(f"no such cpu: {cpu}")
            self.s.cpus[cpu] = 1
            self.s.n_cpus = max(self.s.n_cpus, cpu + 1)
        pact_mutex_init(&self.s.lock)
        pthread_cond_init(&self.s.space, NULL)
        self.s.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.s.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.s.stop_fd < 0 or self.s.wake_fd < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        cdef uint32_t i
        self._stop()
        free(self.s.slots)
        free(self.s.fill)
        free(self.s.drain)
        free(self.s.cache)
        for i in range(self.s.n_logins):
            free(self.s.logins[i].programs)

    cdef void _stop(self):
        cdef uint64_t one = 1
        cdef int i
        if self.closed:
            return
        self.closed = True
        if self.running:
            with nogil:
                pthread_mutex_lock(&self.s.lock)
                self.s.stopping = True
                pthread_cond_signal(&self.s.space)
                pthread_mutex_unlock(&self.s.lock)
                write(self.s.stop_fd, &one, 8)
                pthread_join(self.thread, NULL)
        for i in range(self.s.n_sources):
            close(self.s.sources[i].fd)
        if self.s.stop_fd >= 0:
            close(self.s.stop_fd)
        if self.s.wake_fd >= 0:
            close(self.s.wake_fd)

    def add_source(self, int kind, int fd):
        """Pass ``fd`` to the reader, which reads and closes it. Only before ``start``."""
        assert not self.running and self.s.n_sources < SOURCES_MAX
        self.s.sources[self.s.n_sources].kind = kind
        self.s.sources[self.s.n_sources].fd = fd
        self.s.n_sources += 1

    def start(self):
        """Returns when the thread runs and ``stats`` show its mode."""
        assert not self.running and not self.closed
        cdef int r = pthread_create(&self.thread, NULL, thread_main, &self.s)
        if r:
            raise OSError(r, "pthread_create")
        self.running = True
        with nogil:
            pthread_mutex_lock(&self.s.lock)
            while not self.s.ready:
                pthread_cond_wait(&self.s.space, &self.s.lock)
            pthread_mutex_unlock(&self.s.lock)

    def close(self):
        """Stop and join the thread, close every source. Calling it twice counts once."""
        self._stop()

    def fileno(self):
        return self.s.wake_fd

    def want(self, int kind, bytes key, bytes name):
        """Count one more interest in ``name`` under ``key``; ``b"/"``: in every name that comes or goes there."""
        self._count(kind, key, name, 1)

    def unwant(self, int kind, bytes key, bytes name):
        """Count one interest less; the thread drops names without interest."""
        self._count(kind, key, name, -1)

    cdef _count(self, int kind, bytes key, bytes name, int by):
        cdef uint64_t h = interest_hash(kind, key, len(key), name, len(name))
        cdef Slot *e
        pthread_mutex_lock(&self.s.lock)
        try:
            if self.s.n_used * 3 > self.s.n_slots * 2:
                grow(&self.s)
            e = find(&self.s, h, by > 0)
            if e != NULL and (by > 0 or e.count):
                e.count += by
        finally:
            pthread_mutex_unlock(&self.s.lock)

    def follow(self, uint32_t sessionid):
        """Remember the programs that are started in this login. Returns False if too many are followed."""
        cdef Program *programs
        cdef uint32_t i
        pthread_mutex_lock(&self.s.lock)
        try:
            for i in range(self.s.n_logins):
                if self.s.logins[i].sessionid == sessionid:
                    return True
            if self.s.n_logins >= LOGINS_MAX:
                return False
            programs = <Program *>calloc(PROGRAMS_MAX, sizeof(Program))
            if programs == NULL:
                return False
            self.s.logins[self.s.n_logins].sessionid = sessionid
            self.s.logins[self.s.n_logins].seen = 0
            self.s.logins[self.s.n_logins].kept = 0
            self.s.logins[self.s.n_logins].programs = programs
            self.s.n_logins += 1
            return True
        finally:
            pthread_mutex_unlock(&self.s.lock)

    def unfollow(self, uint32_t sessionid):
        """``([(uid, command), ...], how many were started)`` of a followed login, which is followed no more; ``None``
        if it was not."""
        cdef Login found
        cdef uint32_t i, k
        found.programs = NULL
        pthread_mutex_lock(&self.s.lock)
        for i in range(self.s.n_logins):
            if self.s.logins[i].sessionid == sessionid:
                found = self.s.logins[i]
                self.s.n_logins -= 1
                self.s.logins[i] = self.s.logins[self.s.n_logins]
                break
        pthread_mutex_unlock(&self.s.lock)
        if found.programs == NULL:
            return None
        out = [(found.programs[k].uid, PyBytes_FromStringAndSize(found.programs[k].cmd, found.programs[k].len))
               for k in range(found.kept)]
        free(found.programs)
        return out, found.seen

    def poke(self):
        """Make ``fileno`` readable, for records that the caller still holds back."""
        cdef uint64_t one = 1
        write(self.s.wake_fd, &one, 8)

    def take(self, int limit):
        """At most ``limit`` records ``(kind, mask, pid, t_ns, key, name, snap | None)``, oldest first."""
        cdef list out = []
        cdef Rec *r
        cdef char *p
        cdef uint64_t junk
        cdef char *tmp
        if self.s.drain_at >= self.s.drain_used:
            with nogil:
                pthread_mutex_lock(&self.s.lock)
                tmp = self.s.drain
                self.s.drain = self.s.fill
                self.s.fill = tmp
                self.s.drain_used = self.s.fill_used
                self.s.drain_at = 0
                self.s.fill_used = 0
                self.s.epoch += 1
                read(self.s.wake_fd, &junk, 8)
                pthread_cond_signal(&self.s.space)
                pthread_mutex_unlock(&self.s.lock)
        while self.s.drain_at < self.s.drain_used and len(out) < limit:
            r = <Rec *>(self.s.drain + self.s.drain_at)
            p = <char *>r + sizeof(Rec)
            key = PyBytes_FromStringAndSize(p, r.key_len)
            p += r.key_len
            name = PyBytes_FromStringAndSize(p, r.name_len)
            p += r.name_len
            out.append((r.kind, r.mask, r.pid, r.t_ns, key, name,
                        snap_tuple(r.uid, r.euid, r.loginuid, r.sessionid, r.tty, p, r.cmd_len, p + r.cmd_len,
                                   r.cgroup_len, r.ppid, r.start_ticks) if r.has_snap else None))
            self.s.drain_at += r.size
        if self.s.drain_at < self.s.drain_used:
            self.poke()
        return out

    def stats(self):
        """Counters since the start, and the mode of the thread."""
        return {
            "read": self.s.n_read, "kept": self.s.n_kept, "coalesced": self.s.n_coalesced, "exec": self.s.n_exec,
            "exec_skipped": self.s.n_exec_skipped, "from_cache": self.s.n_from_cache,
            "unresolved": self.s.n_unresolved, "fifo": bool(self.s.is_fifo), "fifo_errno": self.s.fifo_errno,
            "pin_errno": self.s.pin_errno,
        }

    def remembered(self, int pid):
        """The last snapshot of the process with this pid, as ``snapshot`` gives it, if that is not long ago: the
        process may be gone. None if there is none."""
        cdef Snap s
        if pid <= 0:
            return None
        pthread_mutex_lock(&self.s.lock)
        s = self.s.cache[pid & (CACHE_SLOTS - 1)]
        pthread_mutex_unlock(&self.s.lock)
        if s.pid != pid or pact_clock(CLOCK_BOOTTIME) - s.at_ns > EXEC_KEPT_NS:
            return None
        return snap_tuple(s.uid, s.euid, s.loginuid, s.sessionid, s.tty, s.cmd, s.cmd_len & 0x7FFF, s.cgroup,
                          s.cgroup_len, s.ppid, s.start_ticks)

    def begun(self, bytes program):
        """The processes that have begun this program not long ago, oldest first, as ``(pid, snapshot)``: they may be
        gone. ``program``: the last part of the path in their first argument, which they may have chosen themselves."""
        cdef Snap s
        cdef int i
        cdef int64_t now = pact_clock(CLOCK_BOOTTIME)
        cdef bint found
        cdef list out = []
        if self.closed:
            return out
        for i in range(CACHE_SLOTS):
            pthread_mutex_lock(&self.s.lock)
            found = (self.s.cache[i].pid > 0 and now - self.s.cache[i].at_ns <= EXEC_KEPT_NS
                     and is_program(&self.s.cache[i], program, len(program)))
            if found:
                s = self.s.cache[i]
            pthread_mutex_unlock(&self.s.lock)
            if found:
                out.append((s.at_ns, s.pid, snap_tuple(
                    s.uid, s.euid, s.loginuid, s.sessionid, s.tty, s.cmd, s.cmd_len & 0x7FFF, s.cgroup, s.cgroup_len,
                    s.ppid, s.start_ticks)))
        out.sort(key=lambda each: each[0])
        return [(pid, snap) for _, pid, snap in out]


cdef bint is_program(Snap *s, const char *name, Py_ssize_t size) noexcept:
    cdef int i, begin = 0, end = s.cmd_len & 0x7FFF
    if end > CMD_MAX:
        end = CMD_MAX
    for i in range(end):
        if s.cmd[i] == 0:
            end = i
            break
        if s.cmd[i] == 47:                      # a slash
            begin = i + 1
    return end - begin == size and memcmp(s.cmd + begin, name, size) == 0


def snapshot(int pid):
    """The present data of a process in /proc: ``(uid, euid, loginuid, sessionid, tty, command, cgroup, parent,
    start)``, None if gone. ``start`` is in the kernel's ticks since boot."""
    cdef Snap s
    cdef int r
    with nogil:
        r = take_snap(pid, &s)
    if r:
        return None
    return snap_tuple(s.uid, s.euid, s.loginuid, s.sessionid, s.tty, s.cmd, s.cmd_len & 0x7FFF, s.cgroup, s.cgroup_len,
                      s.ppid, s.start_ticks)


def cgroup_line(bytes text):
    """The path that identifies a process in the text of its ``/proc/PID/cgroup``."""
    cdef char out[CGROUP_MAX]
    cdef int n = select_cgroup(text, len(text), out, CGROUP_MAX)
    return PyBytes_FromStringAndSize(out, n)


def fanotify_init(unsigned int flags, unsigned int event_flags):
    cdef int fd = pact_fanotify_init(flags, event_flags)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), "fanotify_init")
    return fd


def fanotify_mark(int fd, unsigned int flags, uint64_t mask, int dirfd, bytes path):
    cdef const char *p = NULL
    cdef int r
    if path is not None:
        p = path
    with nogil:
        r = pact_fanotify_mark(fd, flags, mask, dirfd, p)
    if r < 0:
        raise OSError(errno, os.strerror(errno), path)


cdef int mark_at(int fan_fd, unsigned int flags, uint64_t mask, int fd, bint is_dir) noexcept nogil:
    cdef char link[40]
    if is_dir:
        return pact_fanotify_mark(fan_fd, flags, mask, fd, ".")
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd)
    return pact_fanotify_mark(fan_fd, flags, mask, AT_FDCWD, link)


cdef bint is_direct(int fd, bytes path) noexcept:
    # whether the kernel met no symlink on the way
    cdef char link[40]
    cdef char real[4097]
    cdef ssize_t n
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd)
    n = readlink(link, real, sizeof(real))
    return n == len(path) and memcmp(real, <const char *>path, n) == 0


def mark(int fan_fd, bytes path, uint64_t mask, bint follow):
    """Mark the object to which ``path`` resolves: returns its key (fsid and file handle), and whether no symlink was on
    the way.

    ``follow``: a directory, through symlinks. Otherwise the object itself, of any type. Raises OSError.
    """
    cdef const char *p = path
    cdef char key[144]
    cdef statfs_t st
    cdef int fd, r, err = 0, n = 0
    cdef bint direct = False
    cdef pact_handle *h = <pact_handle *>(key + 8)
    with nogil:
        fd = open(p, O_PATH | O_CLOEXEC | (O_DIRECTORY if follow else O_NOFOLLOW))
        if fd < 0:
            err = errno
        else:
            r = mark_at(fan_fd, 1, mask, fd, follow)
            if r == 0:
                r = fstatfs(fd, &st)
            if r == 0:
                pact_fsid(&st, key)
                r = pact_name_to_handle(fd, h, 0x200)     # AT_HANDLE_FID: the encoding that fanotify uses
                if r < 0 and errno == EINVAL:
                    r = pact_name_to_handle(fd, h, 0)
            if r < 0:
                err = errno
            n = 16 + h.handle_bytes
    if fd >= 0:
        direct = is_direct(fd, path)
        close(fd)
    if err:
        raise OSError(err, os.strerror(err), path)
    return PyBytes_FromStringAndSize(key, n), bool(direct)


def unmark(int fan_fd, bytes hint, bytes key, uint64_t mask):
    """Remove the mark of the object that ``key`` names, wherever it moved. False if ``hint`` is not on its file
    system."""
    cdef char buf[144]
    cdef char fsid[8]
    cdef const char *p = hint
    cdef statfs_t st
    cdef int mfd, fd
    cdef bint here = False
    if not 16 <= len(key) <= 144:
        return True
    memcpy(buf, <const char *>key, len(key))
    with nogil:
        mfd = open(p, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if mfd >= 0:
            if fstatfs(mfd, &st) == 0:
                pact_fsid(&st, fsid)
                here = memcmp(fsid, buf, 8) == 0
            if here:
                fd = pact_open_handle(mfd, buf + 8, O_PATH | O_CLOEXEC)
                if fd >= 0:
                    mark_at(fan_fd, 2, mask, fd, False)
                    close(fd)
            close(mfd)
    return bool(here)


def inotify_init():
    cdef int fd = inotify_init1(0x800 | 0x80000)          # IN_NONBLOCK | IN_CLOEXEC
    if fd < 0:
        raise OSError(errno, os.strerror(errno), "inotify_init")
    return fd


def inotify_add(int fd, bytes path, uint32_t mask, bint follow):
    """Watch ``path``: returns its key (the watch descriptor as bytes), and whether no symlink was on the way. As
    ``mark``."""
    cdef const char *p = path
    cdef char link[40]
    cdef int wd = -1, at, err = 0
    cdef bint direct
    with nogil:
        at = open(p, O_PATH | O_CLOEXEC | (O_DIRECTORY if follow else O_NOFOLLOW))
        if at >= 0:
            snprintf(link, sizeof(link), "/proc/self/fd/%d", at)
            wd = inotify_add_watch(fd, link, mask)
        if wd < 0:
            err = errno
    direct = at >= 0 and is_direct(at, path)
    if at >= 0:
        close(at)
    if err:
        raise OSError(err, os.strerror(err), path)
    return PyBytes_FromStringAndSize(<char *>&wd, 4), bool(direct)


def inotify_rm(int fd, bytes key):
    return inotify_rm_watch(fd, (<const int *><const char *>key)[0]) == 0


def connector():
    """A socket that receives exec events.

    Raises OSError: ECONNREFUSED outside the initial network namespace, ETIMEDOUT outside the initial pid namespace.
    """
    cdef int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_CONNECTOR)
    cdef int err = 0, size = 1 << 20
    cdef pollfd p
    cdef char buf[256]
    cdef ssize_t n
    if fd < 0:
        raise OSError(errno, os.strerror(errno), "proc connector")
    with nogil:
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(int))
        pact_connector_filter(fd)
        if pact_connector_bind(fd) < 0 or pact_connector_listen(fd, False) < 0:
            err = errno
        else:
            err = ETIMEDOUT                            # without permission to listen, there is no answer
            p.fd = fd
            p.events = POLLIN
            while poll(&p, 1, 50) > 0:
                n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)
                if n < 56:
                    break
                if pact_int32(buf + 36) == 0:   # PROC_EVENT_NONE: the acknowledgement
                    err = pact_int32(buf + 52)
                    break
        if not err:
            pact_connector_listen(fd, True)            # only exec from here on; its answer would be filtered too
    if err:
        close(fd)
        raise OSError(err, os.strerror(err), "proc connector")
    return fd
