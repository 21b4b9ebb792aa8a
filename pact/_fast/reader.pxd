# What reader.pyx shares between its C thread and Python: the kernel's structures (spelled out here, because the headers
# of the oldest supported system lack most of them), the snapshot of a writer, and the record that crosses the ring.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #include <linux/filter.h>
    #include <linux/netlink.h>
    #include <sys/eventfd.h>
    #include <sys/inotify.h>
    #include <sys/socket.h>
    #include <sys/statfs.h>
    #include <sys/syscall.h>

    #ifndef SYS_pidfd_send_signal
    #define SYS_pidfd_send_signal 424
    #endif

    /* The kernel lays events on multiples of four only: nothing in them is read as if it were aligned. */
    typedef struct { uint32_t len; uint8_t vers; uint8_t pad; uint16_t meta_len;
                     uint64_t mask; int32_t fd; int32_t pid; }
        __attribute__((packed)) pact_fan_meta;
    typedef struct { uint8_t type; uint8_t pad; uint16_t len; } __attribute__((packed)) pact_fan_info;
    static inline int32_t pact_int32(const void *p) { int32_t x; memcpy(&x, p, 4); return x; }
    typedef struct { uint32_t handle_bytes; int32_t handle_type; unsigned char data[128]; } pact_handle;

    static int pact_fanotify_init(unsigned flags, unsigned event_flags) {
        return (int)syscall(SYS_fanotify_init, flags, event_flags);
    }
    static int pact_fanotify_mark(int fd, unsigned flags, uint64_t mask, int dirfd, const char *path) {
        return (int)syscall(SYS_fanotify_mark, fd, flags, mask, dirfd, path);
    }
    static int pact_name_to_handle(int fd, pact_handle *h, int flags) {
        int mount_id;
        h->handle_bytes = sizeof h->data;
        return (int)syscall(SYS_name_to_handle_at, fd, "", h, &mount_id, flags | AT_EMPTY_PATH);
    }
    static int pact_open_handle(int mount_fd, void *handle, int flags) {
        return (int)syscall(SYS_open_by_handle_at, mount_fd, handle, flags);
    }
    static int pact_pidfd_alive(int fd) {
        return syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0 || errno != ESRCH;
    }
    #define PACT_FNV_PRIME 0x100000001B3ULL
    #define PACT_FNV_START 0xCBF29CE484222325ULL
    #define PACT_EMPTY ""
    #define PACT_DOT "."
    static void pact_fsid(const struct statfs *s, void *out) { memcpy(out, &s->f_fsid, 8); }

    /* exec events and the acknowledgement of LISTEN, nothing else, whatever the kernel's own filter can do */
    static int pact_connector_filter(int fd) {
        struct sock_filter code[] = {
            {BPF_LD | BPF_W | BPF_ABS, 0, 0, 36},
            {BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 0},
            {BPF_JMP | BPF_JEQ | BPF_K, 1, 0, __builtin_bswap32(2)},
            {BPF_RET | BPF_K, 0, 0, 0},
            {BPF_RET | BPF_K, 0, 0, 0xffff},
        };
        #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        code[2].k = 2;
        #endif
        struct sock_fprog prog = {5, code};
        return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog);
    }
    static int pact_connector_bind(int fd) {
        struct sockaddr_nl a;
        memset(&a, 0, sizeof a);
        a.nl_family = AF_NETLINK;
        a.nl_groups = 1;  /* CN_IDX_PROC */
        return bind(fd, (struct sockaddr *)&a, sizeof a);
    }
    /* LISTEN; with_filter sends struct proc_input of Linux 6.6, which older kernels ignore without an answer */
    static int pact_connector_listen(int fd, int with_filter) {
        struct { uint32_t len; uint16_t type, flags; uint32_t seq, pid;
                 uint32_t idx, val, cseq, ack; uint16_t clen, cflags; uint32_t op, event; } m;
        memset(&m, 0, sizeof m);
        m.len = with_filter ? 44 : 40;
        m.type = NLMSG_DONE;
        m.idx = 1; m.val = 1;
        m.clen = with_filter ? 8 : 4;
        m.op = 1;  /* PROC_CN_MCAST_LISTEN */
        m.event = 2;  /* PROC_EVENT_EXEC */
        return (int)send(fd, &m, m.len, 0);
    }
    static int pact_fifo(int on) {
        struct sched_param p;
        p.sched_priority = on ? 1 : 0;
        return sched_setscheduler(0, on ? SCHED_FIFO : SCHED_OTHER, &p) ? errno : 0;
    }
    static int pact_pin(const unsigned char *cpus, int n) {
        cpu_set_t set;
        CPU_ZERO(&set);
        for (int i = 0; i < n; i++) if (cpus[i]) CPU_SET(i, &set);
        return sched_setaffinity(0, sizeof set, &set) ? errno : 0;
    }
    /* whoever holds it is lifted to the thread's priority: the loop must not keep a real-time reader waiting */
    static int pact_mutex_init(pthread_mutex_t *m) {
        pthread_mutexattr_t a;
        int r = pthread_mutexattr_init(&a);
        if (r) return r;
        r = pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
        if (!r) r = pthread_mutex_init(m, &a);
        pthread_mutexattr_destroy(&a);
        return r ? pthread_mutex_init(m, NULL) : 0;
    }
    static void pact_block_signals(void) { sigset_t s; sigfillset(&s); pthread_sigmask(SIG_SETMASK, &s, NULL); }
    static int64_t pact_clock(int id) {
        struct timespec t;
        clock_gettime(id, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    ctypedef struct pact_fan_meta:
        uint32_t len
        uint8_t vers
        uint16_t meta_len
        uint64_t mask
        int32_t fd
        int32_t pid

    ctypedef struct pact_fan_info:
        uint8_t type
        uint16_t len

    ctypedef struct pact_handle:
        uint32_t handle_bytes
        int32_t handle_type

    ctypedef struct inotify_event "struct inotify_event":
        int wd
        uint32_t mask
        uint32_t len
        char name[1]

    ctypedef struct statfs_t "struct statfs":
        pass

    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
        short revents

    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass

    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)
    int pact_mutex_init(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_signal(pthread_cond_t *)

    const uint64_t PACT_FNV_PRIME, PACT_FNV_START
    const char *PACT_EMPTY
    const char *PACT_DOT
    int errno
    int EINTR, EAGAIN, EINVAL, ENOENT, ETIMEDOUT, ECONNREFUSED, EMFILE, ENFILE, EOPNOTSUPP
    int POLLIN, POLLPRI, POLLERR, POLLHUP, POLLNVAL
    int O_PATH, O_DIRECTORY, O_CLOEXEC, O_NOFOLLOW, O_RDONLY, AT_FDCWD
    int EFD_CLOEXEC, EFD_NONBLOCK
    int AF_NETLINK, SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK, NETLINK_CONNECTOR, MSG_DONTWAIT, SOL_SOCKET, SO_RCVBUF
    int CLOCK_BOOTTIME, CLOCK_THREAD_CPUTIME_ID

    int poll(pollfd *, unsigned long, int)
    int open(const char *, int, ...)
    int openat(int, const char *, int, ...)
    int close(int)
    ssize_t read(int, void *, size_t)
    ssize_t write(int, const void *, size_t)
    ssize_t readlink(const char *, char *, size_t)
    ssize_t recv(int, void *, size_t, int)
    int socket(int, int, int)
    int setsockopt(int, int, int, const void *, unsigned int)
    int eventfd(unsigned int, int)
    int fstatfs(int, statfs_t *)
    int snprintf(char *, size_t, const char *, ...)
    int inotify_init1(int)
    int inotify_add_watch(int, const char *, uint32_t)
    int inotify_rm_watch(int, int)

    int pact_fanotify_init(unsigned, unsigned)
    int pact_fanotify_mark(int, unsigned, uint64_t, int, const char *)
    int pact_name_to_handle(int, pact_handle *, int)
    int pact_open_handle(int, void *, int)
    int pact_pidfd_alive(int)
    void pact_fsid(const statfs_t *, void *)
    int32_t pact_int32(const void *)
    int pact_connector_filter(int)
    int pact_connector_bind(int)
    int pact_connector_listen(int, int)
    int pact_fifo(int)
    int pact_pin(const unsigned char *, int)
    void pact_block_signals()
    int64_t pact_clock(int)


cdef enum:
    CMD_MAX = 256
    CGROUP_MAX = 512
    BUF_BYTES = 1048576      # touched only as far as a burst needs it
    SOURCES_MAX = 8
    CACHE_SLOTS = 512
    LOGINS_MAX = 512
    PROGRAMS_MAX = 64
    PROGRAM_MAX = 120


ctypedef struct Snap:
    int pid
    uint32_t uid
    uint32_t euid
    uint32_t loginuid
    uint32_t sessionid
    int tty
    int ppid
    uint64_t start_ticks
    int64_t at_ns
    uint16_t cmd_len
    uint16_t cgroup_len
    char cmd[CMD_MAX]
    char cgroup[CGROUP_MAX]


ctypedef struct Rec:
    uint32_t size
    uint8_t kind
    uint8_t has_snap
    uint16_t key_len
    uint16_t name_len
    uint16_t cmd_len
    uint16_t cgroup_len
    int32_t pid
    uint32_t uid
    uint32_t euid
    uint32_t loginuid
    uint32_t sessionid
    int32_t tty
    int32_t ppid
    uint64_t start_ticks
    uint64_t mask
    int64_t t_ns


ctypedef struct Slot:
    uint64_t hash
    uint32_t count
    int32_t pending_pid
    uint32_t pending_epoch
    uint32_t pending_mask


ctypedef struct Source:
    int kind
    int fd


ctypedef struct Program:
    uint32_t uid
    uint16_t len
    char cmd[PROGRAM_MAX]


# A login whose programs are remembered: the first PROGRAMS_MAX, and how many there were.
ctypedef struct Login:
    uint32_t sessionid
    uint32_t kept
    uint64_t seen
    Program *programs


ctypedef struct State:
    pthread_mutex_t lock
    pthread_cond_t space
    int stop_fd
    int wake_fd
    bint stopping
    bint ready
    int own_pid
    int n_sources
    Source sources[SOURCES_MAX]
    # the filter: what is worth a record
    Slot *slots
    uint32_t n_slots
    uint32_t n_used
    uint32_t epoch
    # two halves of the ring: the thread fills one while the loop reads the other
    char *fill
    char *drain
    uint32_t fill_used
    uint32_t drain_used
    uint32_t drain_at
    # real time
    bint want_fifo
    bint is_fifo
    int fifo_errno
    int pin_errno
    unsigned char cpus[1024]
    int n_cpus
    int64_t window_at_ns
    int64_t window_cpu_ns
    int64_t spent_ns
    # counters, for notes and bench
    uint64_t n_read
    uint64_t n_kept
    uint64_t n_coalesced
    uint64_t n_exec
    uint64_t n_exec_skipped
    uint64_t n_from_cache
    uint64_t n_unresolved
    Snap *cache
    Login logins[LOGINS_MAX]
    uint32_t n_logins
