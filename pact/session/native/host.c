/* One session, small: what pact/session/host.py does, in less than a mebibyte.
 *
 * The keeper's child has found the account, opened the terminal or the pipes and made the socket; then it becomes this
 * program, which opens PAM's session, waits for the agent's word, starts the person's process and carries frames. The
 * Python file is its twin: the same tests run on both. Everything that comes from a socket is checked here again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define HEAD 5
#define PAYLOAD_MAX (64 << 10)
#define CREDIT (256 << 10)
#define CREDIT_STEP (64 << 10)
#define KEPT_MAX CREDIT
#define CONTEXT (4 << 10)
#define READ_MAX (64 << 10)
#define TERMINAL_READ (4 << 10)
#define SENDING (128 << 10)
#define ANSWERS_MAX (1 << 20)
#define INPUT_MAX (1 << 20)
#define NEWCOMERS 4
#define GO_MS 30000
#define DEAF_MS 100
#define DRAIN_MS 300
#define LINGER_MS 60000
#define HANG_MS 1000
#define GRACE_MS 5000
#define WARN_MS 60000
#define SIZE_MAX_ 4096
#define PIXELS_MAX 65535
#define TEXT_MAX 200
#define LISTS_MAX 512
#define CGROUPS_MAX 4
#define FOR_EVER INT64_MAX

#define PAM_SUCCESS 0
#define PAM_NEW_AUTHTOK_REQD 12
#define PAM_CONV_ERR 19
#define PAM_TTY 3
#define PAM_RHOST 4
#define PAM_RUSER 8
#define PAM_ERROR_MSG 3
#define PAM_TEXT_INFO 4
#define PAM_ESTABLISH_CRED 2
#define PAM_DELETE_CRED 4

/* ---- growing bytes ------------------------------------------------------------------------------------------------ */

struct bytes { char *p; size_t n, room; };

static void no_memory(void) { _exit(70); }

static void need(struct bytes *b, size_t more) {
    if (b->n + more <= b->room) return;
    size_t room = b->room ? b->room : 256;
    while (room < b->n + more) room *= 2;
    char *p = realloc(b->p, room);
    if (!p) no_memory();
    b->p = p;
    b->room = room;
}

static void add(struct bytes *b, const void *data, size_t n) {
    need(b, n);
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}

static void add_text(struct bytes *b, const char *text) { add(b, text, strlen(text)); }

__attribute__((format(printf, 2, 3))) static void addf(struct bytes *b, const char *form, ...) {
    char line[512];
    va_list args;
    va_start(args, form);
    int n = vsnprintf(line, sizeof line, form, args);
    va_end(args);
    if (n > 0) add(b, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

static void cut(struct bytes *b, size_t n) {
    b->n -= n;
    if (b->n) memmove(b->p, b->p + n, b->n);
    else if (b->room > 16384) { free(b->p); b->p = NULL; b->room = 0; }
}

/* How many bytes the next character has: 0 not whole yet, -1 no UTF-8. */
static int utf8(const unsigned char *p, size_t n) {
    unsigned c = p[0];
    int need_ = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : -1;
    if (need_ < 0) return -1;
    for (int i = 1; i < need_; i++) {
        if ((size_t)i >= n) return 0;
        unsigned low = 0x80, high = 0xBF;
        if (i == 1) {
            if (c == 0xE0) low = 0xA0;
            if (c == 0xED) high = 0x9F;
            if (c == 0xF0) low = 0x90;
            if (c == 0xF4) high = 0x8F;
        }
        if (p[i] < low || p[i] > high) return -1;
    }
    return need_;
}

/* Text inside a JSON string. Returns how many bytes were taken: the rest is a character that is not whole yet. */
static size_t add_json(struct bytes *b, const char *text, size_t n, bool whole) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)text;
    size_t at = 0, from = 0;
    need(b, n + 16);
    while (at < n) {
        unsigned char c = p[at];
        if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\') { at++; continue; }
        if (at > from) add(b, text + from, at - from);
        if (c < 0x80) {
            char escape[6] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
            if (c == '"' || c == '\\') { escape[1] = (char)c; add(b, escape, 2); }
            else if (c == '\n' || c == '\r') { escape[1] = c == '\n' ? 'n' : 'r'; add(b, escape, 2); }
            else add(b, escape, 6);
            at++;
        } else {
            int size = utf8(p + at, n - at);
            if (size == 0 && !whole) return at;
            if (size <= 0) { add_text(b, "\\ufffd"); at++; }
            else { add(b, text + at, (size_t)size); at += (size_t)size; }
        }
        from = at;
    }
    if (at > from) add(b, text + from, at - from);
    return at;
}

static void add_string(struct bytes *b, const char *text) {
    add_text(b, "\"");
    add_json(b, text, strlen(text), true);
    add_text(b, "\"");
}

/* ---- the session -------------------------------------------------------------------------------------------------- */

struct output {
    char kind;
    int fd;
    bool lossy;
    struct bytes kept;
    uint64_t start, end, sent, lost;
    unsigned char part[4];  /* of a character that the cast has not got whole */
    int parts;
};

struct client {
    int fd;
    struct bytes in, out;
    char by[TEXT_MAX * 4];
    int64_t may, given, consumed;
    bool gone;  /* it takes nothing any more; what it has sent before still counts */
    struct client *next;
};

static struct {
    int conn, listener, input, input_child, terminal;
    int streams, child_fds[3];
    struct output out[2];
    const char *id, *user, *home, *shell, *state_path, *state_head, *sock_path, *cast_path, *service, *tty, *rhost, *ruser;
    const char *who, *cgroups[CGROUPS_MAX];
    char *args[LISTS_MAX], *env[LISTS_MAX], *late[LISTS_MAX];
    int n_args, n_env, n_late, n_cgroups;
    long uid, gid, person, rows, columns, x, y, tasks, weight;
    int64_t idle, detached, cast_half, since_ns;
    /* while it runs */
    pid_t pid, host;
    int pidfd;
    uint64_t shell_start;
    struct client *client, *newcomers;
    struct bytes queue;
    bool input_ends, killed, warned, ended;
    int exit_code, exit_signal;
    char why[TEXT_MAX * 4], attached[TEXT_MAX * 4];
    uint64_t in_bytes, out_bytes;
    int64_t began, active, alone, hung_up, ended_at, deaf;
    int cast_fd;
    int64_t cast_size, cast_dropped;
    const char *cast_why;
    volatile sig_atomic_t stopped;
} s;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t plus(int64_t at, int64_t more) { return at == FOR_EVER || more == FOR_EVER ? FOR_EVER : at + more; }

static uint64_t started_at(pid_t pid) {
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, line, sizeof line - 1);
    close(fd);
    if (n <= 0) return 0;
    line[n] = 0;
    char *p = strrchr(line, ')');
    for (int field = 2; p && field < 22; field++) p = strchr(p + 1, ' ');
    return p ? strtoull(p + 1, NULL, 10) : 0;
}

static long proc_number(const char *path) {
    char text[32];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return -1;
    text[n] = 0;
    unsigned long v = strtoul(text, NULL, 10);
    return v >= 0xFFFFFFFFul ? -1 : (long)v;
}

/* ---- its file ----------------------------------------------------------------------------------------------------- */

static void add_number(struct bytes *b, const char *key, long v) {
    if (v < 0) addf(b, ",\"%s\":null", key);
    else addf(b, ",\"%s\":%ld", key, v);
}

/* glibc has such a table only since 2.32. */
static const char *signal_name(int number) {
    static const char *const names[] = {
        [SIGHUP] = "HUP", [SIGINT] = "INT", [SIGQUIT] = "QUIT", [SIGILL] = "ILL", [SIGTRAP] = "TRAP", [SIGABRT] = "ABRT",
        [SIGBUS] = "BUS", [SIGFPE] = "FPE", [SIGKILL] = "KILL", [SIGUSR1] = "USR1", [SIGSEGV] = "SEGV",
        [SIGUSR2] = "USR2", [SIGPIPE] = "PIPE", [SIGALRM] = "ALRM", [SIGTERM] = "TERM", [SIGSTKFLT] = "STKFLT",
        [SIGXCPU] = "XCPU", [SIGXFSZ] = "XFSZ", [SIGVTALRM] = "VTALRM", [SIGPROF] = "PROF", [SIGIO] = "IO",
        [SIGPWR] = "PWR", [SIGSYS] = "SYS"};
    return number > 0 && number < (int)(sizeof names / sizeof *names) ? names[number] : NULL;
}

static void add_end(struct bytes *b) {
    if (s.exit_signal) {
        const char *name = signal_name(s.exit_signal);
        char number[16];
        snprintf(number, sizeof number, "%d", s.exit_signal);
        add_text(b, "\"signal\":");
        add_string(b, name ? name : number);
    } else if (s.exit_code < 0) add_text(b, "\"exit\":null");
    else addf(b, "\"exit\":%d", s.exit_code);
}

static void add_state(struct bytes *b) {
    add_text(b, s.state_head);
    addf(b, ",\"pid\":%d,\"start\":%" PRIu64 ",\"shell\":%d,\"shell_start\":%" PRIu64, (int)getpid(),
         started_at(getpid()), (int)s.pid, s.shell_start);
    add_number(b, "login", proc_number("/proc/self/loginuid"));
    add_number(b, "audit", proc_number("/proc/self/sessionid"));
    add_text(b, ",\"attached\":");
    add_string(b, s.attached);
    if (s.ended) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        uint64_t lost = 0;
        for (int i = 0; i < s.streams; i++) lost += s.out[i].lost;
        add_text(b, ",\"end\":{");
        add_end(b);
        add_text(b, ",\"why\":");
        add_string(b, s.why);
        addf(b, ",\"in\":%" PRIu64 ",\"out\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"ns\":%" PRId64 "}", s.in_bytes,
             s.out_bytes, lost, (now_ms() - s.began) * 1000000);
    } else add_text(b, ",\"end\":null");
    if (s.cast_path) {
        addf(b, ",\"cast\":{\"dropped\":%" PRId64 ",\"why\":", s.cast_dropped);
        add_string(b, s.cast_why ? s.cast_why : "");
        add_text(b, "}");
    }
    add_text(b, "}");
}

static void save(void) {
    struct bytes b = {0};
    char fresh[4200];
    add_state(&b);
    snprintf(fresh, sizeof fresh, "%s.new", s.state_path);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0) {
        bool good = write(fd, b.p, b.n) == (ssize_t)b.n;
        close(fd);
        if (!good || rename(fresh, s.state_path)) unlink(fresh);  /* a full disk: the session goes on */
    }
    free(b.p);
}

/* ---- the cast ------------------------------------------------------------------------------------------------------- */

static void cast_open(void) {
    s.cast_fd = open(s.cast_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    s.cast_size = 0;
    if (s.cast_fd < 0) s.cast_why = strerror(errno);
}

static void cast_write(struct bytes *line) {
    if (s.cast_size && s.cast_size + (int64_t)line->n > s.cast_half) {
        char older[4200];
        snprintf(older, sizeof older, "%s.1", s.cast_path);
        close(s.cast_fd);
        s.cast_dropped += access(older, F_OK) == 0;
        if (rename(s.cast_path, older)) { s.cast_why = strerror(errno); s.cast_fd = -1; return; }
        cast_open();
        if (s.cast_fd < 0) return;
    }
    if (write(s.cast_fd, line->p, line->n) != (ssize_t)line->n) {
        s.cast_why = strerror(errno ? errno : ENOSPC);
        close(s.cast_fd);
        s.cast_fd = -1;
    }
    s.cast_size += (int64_t)line->n;
}

static void cast_begin(struct bytes *line, char code) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t us = ((int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000) - s.began * 1000;
    if (us < 0) us = 0;
    addf(line, "[%" PRId64 ".%06" PRId64 ", \"%c\", \"", us / 1000000, us % 1000000, code);
}

static void cast_output(struct output *o, const char *data, size_t n) {
    if (s.cast_fd < 0 || !n) return;
    struct bytes line = {0}, joined = {0};
    if (o->parts) {
        add(&joined, o->part, (size_t)o->parts);
        add(&joined, data, n);
        data = joined.p;
        n = joined.n;
    }
    cast_begin(&line, 'o');
    size_t before = line.n, took = add_json(&line, data, n, false);
    o->parts = (int)(n - took);
    memcpy(o->part, data + took, (size_t)o->parts);
    if (line.n > before) {
        add_text(&line, "\"]\n");
        cast_write(&line);
    }
    free(line.p);
    free(joined.p);
}

static void cast_resized(void) {
    if (s.cast_fd < 0) return;
    struct bytes line = {0};
    cast_begin(&line, 'r');
    addf(&line, "%ldx%ld\"]\n", s.columns, s.rows);
    cast_write(&line);
    free(line.p);
}

/* ---- frames to the client ------------------------------------------------------------------------------------------- */

static void send_frame(struct client *c, char kind, const void *data, size_t n) {
    unsigned char head[HEAD] = {(unsigned char)kind, (unsigned char)(n >> 24), (unsigned char)(n >> 16),
                                (unsigned char)(n >> 8), (unsigned char)n};
    add(&c->out, head, HEAD);
    add(&c->out, data, n);
}

static void send_why(struct client *c, const char *before, const char *text) {
    struct bytes b = {0};
    add_text(&b, "{\"why\":\"");
    add_json(&b, before, strlen(before), true);
    add_json(&b, text, strlen(text), true);
    add_text(&b, "\"}");
    send_frame(c, 'X', b.p, b.n);
    free(b.p);
}

/* false: it is gone, or reads nothing */
static bool flush_client(struct client *c) {
    while (c->out.n) {
        ssize_t sent = send(c->fd, c->out.p, c->out.n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EINTR) break;
            c->gone = true;
            c->out.n = 0;
            return true;
        }
        cut(&c->out, (size_t)sent);
    }
    return c->out.n <= ANSWERS_MAX;
}

static void free_client(struct client *c) {
    flush_client(c);
    close(c->fd);
    free(c->in.p);
    free(c->out.p);
    free(c);
}

static void drop(struct client *c) {
    if (c == s.client) {
        s.client = NULL;
        s.alone = now_ms();
        s.attached[0] = 0;
        if (!s.ended) save();
    } else {
        for (struct client **at = &s.newcomers; *at; at = &(*at)->next)
            if (*at == c) { *at = c->next; break; }
    }
    free_client(c);
}

/* ---- strict reading of what clients say ------------------------------------------------------------------------------- */

struct wish { char by[TEXT_MAX * 4], end[TEXT_MAX * 4]; bool ends, redraw; int64_t from, from_err, rows, cols; };

static const char *spaces(const char *p, const char *e) {
    while (p < e && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}

/* A JSON string into `to`, cut to its room; NULL: none. */
static const char *string(const char *p, const char *e, char *to, size_t room) {
    size_t n = 0;
    if (p >= e || *p++ != '"') return NULL;
    while (p < e && *p != '"') {
        unsigned code = (unsigned char)*p++;
        char text[4];
        int size = 1;
        if (code < 0x20) return NULL;
        text[0] = (char)code;
        if (code == '\\') {
            if (p >= e) return NULL;
            char c = *p++;
            const char *found = strchr("\"\\/bfnrt", c);
            if (c == 'u') {
                if (e - p < 4) return NULL;
                char hex[5] = {p[0], p[1], p[2], p[3], 0}, *end;
                code = (unsigned)strtoul(hex, &end, 16);
                if (end != hex + 4) return NULL;
                p += 4;
                if (code >= 0xD800 && code < 0xE000) code = '?';
                if (code < 0x80) text[0] = (char)code;
                else if (code < 0x800) { text[0] = (char)(0xC0 | code >> 6); text[1] = (char)(0x80 | (code & 63)); size = 2; }
                else {
                    text[0] = (char)(0xE0 | code >> 12);
                    text[1] = (char)(0x80 | (code >> 6 & 63));
                    text[2] = (char)(0x80 | (code & 63));
                    size = 3;
                }
                if (code == 0) text[0] = '?';
            } else if (found && c) text[0] = "\"\\/\b\f\n\r\t"[found - "\"\\/bfnrt"];
            else return NULL;
        }
        if (to && n + (size_t)size < room) { memcpy(to + n, text, (size_t)size); n += (size_t)size; }
    }
    if (p >= e) return NULL;
    if (to) to[n] = 0;
    return p + 1;
}

static const char *integer(const char *p, const char *e, int64_t *to) {
    bool minus = p < e && *p == '-';
    const char *first = p += minus;
    int64_t v = 0;
    while (p < e && *p >= '0' && *p <= '9' && p - first < 15) v = v * 10 + (*p++ - '0');
    if (p == first || (p < e && ((*p >= '0' && *p <= '9') || *p == '.' || *p == 'e' || *p == 'E'))) return NULL;
    *to = minus ? -v : v;
    return p;
}

/* A flat JSON object. */
static bool read_wish(const char *p, size_t n, struct wish *w) {
    const char *e = p + n;
    *w = (struct wish){.from = -1, .from_err = -1, .rows = -1, .cols = -1};
    p = spaces(p, e);
    if (p >= e || *p++ != '{') return false;
    p = spaces(p, e);
    if (p < e && *p == '}') return spaces(p + 1, e) == e;
    for (;;) {
        char key[16];
        int64_t v = -1;
        if (!(p = string(spaces(p, e), e, key, sizeof key))) return false;
        p = spaces(p, e);
        if (p >= e || *p++ != ':') return false;
        p = spaces(p, e);
        if (p >= e) return false;
        if (*p == '"') {
            bool ends = !strcmp(key, "end");
            w->ends |= ends;
            p = string(p, e, ends ? w->end : !strcmp(key, "by") ? w->by : NULL, sizeof w->by);
        } else if (e - p >= 4 && !memcmp(p, "true", 4)) { p += 4; if (!strcmp(key, "redraw")) w->redraw = true; }
        else if (e - p >= 5 && !memcmp(p, "false", 5)) p += 5;
        else if (e - p >= 4 && !memcmp(p, "null", 4)) p += 4;
        else if ((p = integer(p, e, &v))) {
            if (!strcmp(key, "from")) w->from = v;
            else if (!strcmp(key, "from_err")) w->from_err = v;
            else if (!strcmp(key, "rows")) w->rows = v;
            else if (!strcmp(key, "cols")) w->cols = v;
        }
        if (!p) return false;
        p = spaces(p, e);
        if (p >= e) return false;
        if (*p == '}') return spaces(p + 1, e) == e;
        if (*p++ != ',') return false;
    }
}

static long within(int64_t v, int64_t most, int64_t otherwise) { return (long)(v <= 0 ? otherwise : v > most ? most : v); }

static void resize(int64_t rows, int64_t cols, int64_t x, int64_t y) {
    long r = within(rows, SIZE_MAX_, 24), c = within(cols, SIZE_MAX_, 80);
    if (!s.terminal || s.input < 0) return;
    struct winsize size = {(unsigned short)r, (unsigned short)c, (unsigned short)within(x, PIXELS_MAX, 0),
                           (unsigned short)within(y, PIXELS_MAX, 0)};
    bool other = r != s.rows || c != s.columns;
    s.rows = r;
    s.columns = c;
    if (other) cast_resized();
    ioctl(s.input, TIOCSWINSZ, &size);
}

static bool read_size(const char *p, size_t n) {
    const char *e = p + n;
    int64_t v[4] = {0, 0, 0, 0};
    int count = 0;
    p = spaces(p, e);
    if (p >= e || *p++ != '[') return false;
    for (;;) {
        if (count == 4 || !(p = integer(spaces(p, e), e, &v[count++]))) return false;
        p = spaces(p, e);
        if (p >= e) return false;
        if (*p == ']') break;
        if (*p++ != ',') return false;
    }
    if (count < 2 || spaces(p + 1, e) != e) return false;
    resize(v[0], v[1], v[2], v[3]);
    return true;
}

/* ---- what happens to the person's processes ----------------------------------------------------------------------------- */

static pid_t group_there(void) {
    pid_t group = s.pid;
    if (s.terminal && s.input >= 0) {
        pid_t found = tcgetpgrp(s.input);
        if (found > 1) group = found;
    }
    return group;
}

static void kill_group(pid_t group, int number) { if (group > 1) killpg(group, number); }

static bool give_signal(const char *name) {
    static const struct { const char *name; int number; } known[] = {
        {"HUP", SIGHUP}, {"INT", SIGINT}, {"QUIT", SIGQUIT}, {"TERM", SIGTERM}, {"KILL", SIGKILL}, {"USR1", SIGUSR1},
        {"USR2", SIGUSR2}, {"TSTP", SIGTSTP}, {"CONT", SIGCONT}, {"WINCH", SIGWINCH}, {"STOP", SIGSTOP}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) {
            if (!s.ended && s.pid > 0) kill_group(group_there(), known[i].number);
            return true;
        }
    return false;
}

static void hang_up(const char *why) {
    if (s.hung_up != FOR_EVER || s.ended) return;
    snprintf(s.why, sizeof s.why, "%s", why);
    s.hung_up = now_ms();
    if (s.client) send_frame(s.client, 'N', s.why, strlen(s.why));
    pid_t group = group_there();
    kill_group(group, SIGHUP);
    kill_group(group, SIGCONT);
    if (group != s.pid) { kill_group(s.pid, SIGHUP); kill_group(s.pid, SIGCONT); }
}

static void close_input(void) {
    if (s.client) s.client->consumed += (int64_t)s.queue.n;
    cut(&s.queue, s.queue.n);
    if (s.input >= 0 && !s.terminal) { close(s.input); s.input = -1; }
}

static void give_up(struct output *o) {
    if (o->fd < 0) return;
    if (o->fd == s.input) { s.input = -1; cut(&s.queue, s.queue.n); }
    close(o->fd);
    o->fd = -1;
}

static void end_input(void) {
    if (!s.terminal) close_input();
    else if (s.input >= 0) {
        if (write(s.input, "\004", 1) < 0) { /* it is being closed */ }
        s.input_ends = false;
    }
}

static void feed(void) {
    while (s.queue.n && s.input >= 0) {
        size_t most = s.queue.n < READ_MAX ? s.queue.n : READ_MAX;
        ssize_t wrote = write(s.input, s.queue.p, most);
        if (wrote < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (wrote <= 0) { close_input(); return; }
        cut(&s.queue, (size_t)wrote);
        if (s.client) s.client->consumed += wrote;
    }
    if (s.input_ends && !s.queue.n) end_input();
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

static int64_t room(const struct output *o) {
    if (o->lossy && !s.client) return KEPT_MAX;
    return KEPT_MAX - (int64_t)(o->end - o->sent);
}

static void keep(struct output *o, const char *data, size_t n) {
    add(&o->kept, data, n);
    o->end += n;
}

static void trim_output(struct output *o) {
    /* What a client was sent and has given no credit for is kept, too: it may come back for it. */
    if (o->kept.n <= KEPT_MAX + CREDIT) return;
    size_t over = o->kept.n - (KEPT_MAX + CREDIT);
    cut(&o->kept, over);
    o->start += over;
    if (o->sent < o->start) { o->lost += o->start - o->sent; o->sent = o->start; }
}

static void read_output(struct output *o) {
    static char data[READ_MAX];
    int64_t most = room(o), got = 0;
    if (most > READ_MAX) most = READ_MAX;
    while (got < most) {
        ssize_t n = read(o->fd, data + got, (size_t)(most - got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            if (s.terminal && !s.ended) s.deaf = now_ms() + DEAF_MS;
            else give_up(o);
            break;
        }
        got += n;
        if (n < 256) break;
    }
    if (!got) return;
    keep(o, data, (size_t)got);
    cast_output(o, data, (size_t)got);
    s.out_bytes += (uint64_t)got;
    trim_output(o);
    s.active = now_ms();
    s.warned = false;
}

static void push(void) {
    struct client *c = s.client;
    if (!c || c->gone) return;
    for (int i = 0; i < s.streams; i++) {
        struct output *o = &s.out[i];
        while (o->sent < o->end && c->may > 0 && c->out.n < SENDING) {
            uint64_t n = o->end - o->sent;
            if (n > PAYLOAD_MAX) n = PAYLOAD_MAX;
            if ((int64_t)n > c->may) n = (uint64_t)c->may;
            send_frame(c, o->kind, o->kept.p + (o->sent - o->start), n);
            o->sent += n;
            c->may -= (int64_t)n;
        }
    }
    if (c->consumed >= CREDIT_STEP || (c->consumed && !s.queue.n)) {
        char text[24];
        int n = snprintf(text, sizeof text, "%" PRId64, c->consumed);
        send_frame(c, 'C', text, (size_t)n);
        c->given += c->consumed;
        c->consumed = 0;
    }
    if (c->out.n && !flush_client(c)) drop(c);
}

/* ---- clients ----------------------------------------------------------------------------------------------------------- */

static void accept_one(void) {
    int fd = accept4(s.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    int count = 0;
    struct client *last = NULL;
    for (struct client *c = s.newcomers; c; c = c->next) { count++; last = c; }
    if (count >= NEWCOMERS) drop(last);
    struct client *c = calloc(1, sizeof *c);
    if (!c) no_memory();
    c->fd = fd;
    c->may = c->given = CREDIT;
    c->next = s.newcomers;
    s.newcomers = c;
}

static uint64_t attach_output(struct output *o, int64_t come, uint64_t *lost) {
    uint64_t before = o->sent, gone = o->lost;
    o->lost = 0;
    if (come >= 0 && (uint64_t)come <= o->end) {
        o->sent = (uint64_t)come > o->start ? (uint64_t)come : o->start;
        *lost += o->sent - (uint64_t)come;
        return o->sent;
    }
    uint64_t again = o->end > CONTEXT ? o->end - CONTEXT : 0, at = o->lossy && again < before ? again : before;
    o->sent = at > o->start ? at : o->start;
    *lost += gone;
    return o->sent;
}

/* false: the client is gone */
static bool attach(struct client *c, const char *payload, size_t n) {
    struct wish w;
    if (!read_wish(payload, n, &w)) { send_why(c, "this client sends nonsense: ", "no JSON object"); drop(c); return false; }
    snprintf(c->by, sizeof c->by, "%.*s", TEXT_MAX * 2, w.by);
    if (w.ends) { char why[sizeof w.end]; memcpy(why, w.end, sizeof why); drop(c); hang_up(why); return false; }
    for (struct client **at = &s.newcomers; *at; at = &(*at)->next)
        if (*at == c) { *at = c->next; break; }
    if (s.client) { send_why(s.client, "taken over by ", c->by); drop(s.client); }
    s.client = c;
    s.alone = FOR_EVER;
    s.active = now_ms();
    s.warned = false;
    uint64_t lost = 0, at[2] = {0, 0};
    for (int i = 0; i < s.streams; i++) at[i] = attach_output(&s.out[i], i ? w.from_err : w.from, &lost);
    struct bytes b = {0};
    add_text(&b, "{\"id\":");
    add_string(&b, s.id);
    add_text(&b, ",\"who\":");
    add_string(&b, s.who);
    addf(&b, ",\"since\":%" PRId64 ",\"lost\":%" PRIu64 ",\"at\":%" PRIu64 ",\"terminal\":%s", s.since_ns, lost, at[0],
         s.terminal ? "true" : "false");
    if (s.streams > 1) addf(&b, ",\"at_err\":%" PRIu64, at[1]);
    add_text(&b, "}");
    send_frame(c, 'A', b.p, b.n);
    free(b.p);
    if (s.terminal && w.rows >= 0 && w.cols >= 0) {
        bool same = within(w.rows, SIZE_MAX_, 24) == s.rows && within(w.cols, SIZE_MAX_, 80) == s.columns;
        resize(w.rows, w.cols, 0, 0);
        if (same && w.redraw) give_signal("WINCH");
    }
    snprintf(s.attached, sizeof s.attached, "%s", c->by);
    save();
    return true;
}

static const char *typed(struct client *c, const char *data, size_t n) {
    c->given -= (int64_t)n;
    if (c->given < 0 || s.queue.n + n > INPUT_MAX) return "more input than it may send";
    s.in_bytes += n;
    s.active = now_ms();
    s.warned = false;
    if (s.input < 0 || s.input_ends) { c->consumed += (int64_t)n; return NULL; }
    add(&s.queue, data, n);
    feed();
    return NULL;
}

/* NULL: good; else what is wrong */
static const char *hear(struct client *c, char kind, const char *data, size_t n) {
    char name[24];
    switch (kind) {
    case 'I': return typed(c, data, n);
    case 'C': {
        int64_t v;
        if (n > 12 || !n || integer(data, data + n, &v) != data + n || v < 0) return "no credit";
        c->may += v;
        if (c->may > (int64_t)1 << 40) c->may = (int64_t)1 << 40;
        return NULL;
    }
    case 'W': return read_size(data, n) ? NULL : "no window size";
    case 'S':
        snprintf(name, sizeof name, "%.*s", (int)(n < 23 ? n : 23), data);
        return give_signal(name) ? NULL : "no signal of that name";
    case 'D':
        s.input_ends = true;
        if (!s.queue.n) end_input();
        return NULL;
    default: return "a client does not send this";
    }
}

static void from_client(struct client *c, short mask) {
    static char data[READ_MAX];
    if (mask & POLLOUT && !flush_client(c)) { drop(c); return; }
    if (c->gone) mask |= POLLIN;
    if (!(mask & (POLLIN | POLLHUP | POLLERR))) return;
    ssize_t got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { drop(c); return; }
    add(&c->in, data, (size_t)got);
    size_t at = 0;
    const char *wrong = NULL;
    while (!wrong && c->in.n - at >= HEAD) {
        const unsigned char *p = (const unsigned char *)c->in.p + at;
        size_t n = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];
        if (n > PAYLOAD_MAX || !p[0] || !strchr("IOEWSCDXNA", p[0])) { wrong = "no frame"; break; }
        if (c->in.n - at < HEAD + n) break;
        if (c != s.client) {
            if (p[0] != 'A') { wrong = "the first frame must be A"; break; }
            if (!attach(c, (const char *)p + HEAD, n)) return;
        } else wrong = hear(c, (char)p[0], (const char *)p + HEAD, n);
        at += HEAD + n;
    }
    if (wrong) {
        send_why(c, "this client sends nonsense: ", wrong);
        drop(c);
        return;
    }
    if (at) cut(&c->in, at);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------- */

static void reap(void) {
    int status = 0;
    if (waitpid(s.pid, &status, WNOHANG) != s.pid) return;
    s.ended = true;
    if (WIFSIGNALED(status)) s.exit_signal = WTERMSIG(status);
    else s.exit_code = WEXITSTATUS(status);
    s.ended_at = now_ms();
    s.deaf = 0;
    if (s.pidfd >= 0) close(s.pidfd);
    s.pidfd = -1;
    save();
}

static bool streams_open(void) {
    for (int i = 0; i < s.streams; i++) if (s.out[i].fd >= 0) return true;
    return false;
}

static bool undelivered(void) {
    for (int i = 0; i < s.streams; i++) if (s.out[i].sent < s.out[i].end) return true;
    return s.client && s.client->out.n;
}

static int64_t linger(void) {
    int64_t since = s.alone != FOR_EVER && s.alone > s.ended_at ? s.alone : s.ended_at;
    return since + (s.detached < LINGER_MS ? s.detached : LINGER_MS);
}

static int64_t min_(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t due(int64_t now) {
    int64_t at = FOR_EVER;
    if (!s.ended) {
        if (s.hung_up == FOR_EVER) {
            int64_t idle = plus(s.active, s.idle);
            at = s.warned ? idle : plus(idle, -WARN_MS);
            if (!s.client) at = min_(at, plus(s.alone, s.detached));
        } else if (!s.killed) at = plus(s.hung_up, s.terminal && streams_open() ? HANG_MS : GRACE_MS);
        if (s.deaf > now) at = min_(at, s.deaf);
        if (s.pidfd < 0) at = min_(at, now + DEAF_MS);  /* the kernel had no descriptor for it: look now and then */
    } else {
        if (streams_open()) at = s.ended_at + DRAIN_MS;
        if (!s.client || undelivered()) at = min_(at, linger());
    }
    return at;
}

static void limits(int64_t now) {
    if (!s.client && now >= plus(s.alone, s.detached)) hang_up("nobody was attached any more");
    int64_t idle = plus(s.active, s.idle);
    if (now >= idle) hang_up("nothing was typed and nothing was shown for too long");
    else if (idle != FOR_EVER && now >= idle - WARN_MS && !s.warned) {
        static const char text[] = "this session is idle: it ends in a minute";
        s.warned = true;
        if (s.client && s.idle > WARN_MS) send_frame(s.client, 'N', text, sizeof text - 1);
    }
    if (s.stopped) hang_up("the machine ends its sessions");
    if (now >= plus(s.hung_up, HANG_MS) && s.terminal) give_up(&s.out[0]);
    if (now >= plus(s.hung_up, GRACE_MS) && !s.killed) { s.killed = true; kill_group(s.pid, SIGKILL); kill(s.pid, SIGKILL); }
}

/* Whether a client has read everything that it was sent: one that is cut off before comes back for it. A client that does
   not read for a while has it all the same: what the socket holds is its own. */
static bool was_read(struct client *c) {
    int64_t until = now_ms() + GRACE_MS;
    for (;;) {
        int left = 0, error = 0;
        socklen_t size = sizeof error;
        flush_client(c);
        if (c->gone) return false;
        if (!c->out.n && (ioctl(c->fd, TIOCOUTQ, &left) < 0 || !left))
            return getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && !error;
        if (now_ms() >= until) return true;
        struct pollfd p = {c->fd, (short)(c->out.n ? POLLOUT : 0), 0};
        if (poll(&p, 1, 2) > 0 && !c->out.n) poll(NULL, 0, 1);
    }
}

/* true: everything has ended, and was delivered */
static bool over(void) {
    int64_t now = now_ms();
    if (!s.ended) { limits(now); return false; }
    if (streams_open() && now >= s.ended_at + DRAIN_MS) {
        for (int i = 0; i < s.streams; i++) if (s.out[i].fd >= 0 && room(&s.out[i]) > 0) read_output(&s.out[i]);
        if (now >= s.active + DRAIN_MS || now >= s.ended_at + GRACE_MS)
            for (int i = 0; i < s.streams; i++) give_up(&s.out[i]);
        else s.ended_at = now;
    }
    bool waiting = !s.client || undelivered();
    if (streams_open() || (waiting && now < linger())) return false;
    if (s.client) {
        struct bytes b = {0};
        add_text(&b, "{");
        if (s.why[0]) { add_text(&b, "\"why\":"); add_string(&b, s.why); add_text(&b, ","); }
        add_end(&b);
        add_text(&b, "}");
        send_frame(s.client, 'X', b.p, b.n);
        free(b.p);
        if (!was_read(s.client)) { drop(s.client); return false; }
    }
    return true;
}

static void run(void) {
    for (;;) {
        struct pollfd p[8 + NEWCOMERS];
        struct client *who[8 + NEWCOMERS];
        int n = 0, stream_at[2] = {-1, -1}, input_at = -1, pid_at = -1;
        int64_t now = now_ms();
        memset(who, 0, sizeof who);
        p[n++] = (struct pollfd){s.listener, POLLIN, 0};
        if (s.pidfd >= 0) { pid_at = n; p[n++] = (struct pollfd){s.pidfd, POLLIN, 0}; }
        for (int i = 0; i < s.streams; i++) {
            struct output *o = &s.out[i];
            bool in = o->fd >= 0 && room(o) >= TERMINAL_READ && now >= s.deaf, to = o->fd == s.input && s.queue.n && o->fd >= 0 && now >= s.deaf;
            if (!in && !to) continue;
            stream_at[i] = n;
            p[n++] = (struct pollfd){o->fd, (short)((in ? POLLIN : 0) | (to ? POLLOUT : 0)), 0};
        }
        if (!s.terminal && s.input >= 0) {
            input_at = n;
            p[n++] = (struct pollfd){s.input, (short)(s.queue.n ? POLLOUT : 0), 0};
        }
        if (s.client) {
            who[n] = s.client;
            p[n++] = (struct pollfd){s.client->fd, (short)(POLLIN | (s.client->out.n ? POLLOUT : 0)), 0};
        }
        for (struct client *c = s.newcomers; c; c = c->next) { who[n] = c; p[n++] = (struct pollfd){c->fd, POLLIN, 0}; }
        int64_t at = due(now);
        int wait = at == FOR_EVER ? -1 : at <= now ? 0 : at - now > 3600000 ? 3600000 : (int)(at - now) + 1;
        int ready = poll(p, (nfds_t)n, wait);
        if (ready > 0) {
            if (p[0].revents) accept_one();
            for (int i = 1; i < n; i++) {
                if (!p[i].revents) continue;
                struct client *c = who[i];
                if (i == pid_at) reap();
                else if (i == stream_at[0] || i == stream_at[1]) {
                    struct output *o = &s.out[i == stream_at[0] ? 0 : 1];
                    if (p[i].revents & POLLOUT) feed();
                    if (o->fd >= 0 && p[i].revents & (POLLIN | POLLHUP | POLLERR) && now >= s.deaf && room(o) > 0) read_output(o);
                } else if (i == input_at) {
                    if (s.input >= 0 && p[i].revents & POLLERR) close_input();
                    else if (s.input >= 0 && p[i].revents & POLLOUT) feed();
                } else if (c) {
                    bool there = c == s.client;
                    for (struct client *x = s.newcomers; x && !there; x = x->next) there = x == c;
                    if (there) from_client(c, p[i].revents);
                }
            }
        }
        if (s.pidfd < 0 && !s.ended) reap();
        push();
        if (over()) return;
    }
}

/* ---- PAM -------------------------------------------------------------------------------------------------------------- */

struct pam_message { int style; const char *text; };
struct pam_response { char *text; int code; };
struct pam_conv { int (*talk)(int, const struct pam_message **, struct pam_response **, void *); void *data; };

static struct {
    void *handle, *library;
    bool opened, credited;
    struct bytes said;
    int lines;
    int (*start)(const char *, const char *, const struct pam_conv *, void **);
    int (*set_item)(void *, int, const void *);
    int (*acct_mgmt)(void *, int), (*setcred)(void *, int), (*open_session)(void *, int), (*close_session)(void *, int);
    int (*end)(void *, int);
    char **(*getenvlist)(void *);
    const char *(*strerror_)(void *, int);
} pam;

static int talk(int count, const struct pam_message **messages, struct pam_response **responses, void *data) {
    (void)data;
    if (count < 1 || count > 32) return PAM_CONV_ERR;
    for (int i = 0; i < count; i++) {
        if (messages[i]->style != PAM_ERROR_MSG && messages[i]->style != PAM_TEXT_INFO) return PAM_CONV_ERR;
        if (messages[i]->text && pam.lines < 16) {
            size_t n = strnlen(messages[i]->text, 1024);
            for (size_t k = 0; k < n; k++) {
                if (messages[i]->text[k] == '\n') add_text(&pam.said, "\r");
                add(&pam.said, messages[i]->text + k, 1);
            }
            if (n && messages[i]->text[n - 1] != '\n') add_text(&pam.said, "\r\n");
            pam.lines++;
        }
    }
    *responses = calloc((size_t)count, sizeof **responses);
    return *responses ? PAM_SUCCESS : PAM_CONV_ERR;
}

static void pam_close(void) {
    if (!pam.handle) return;
    if (pam.opened) pam.close_session(pam.handle, 0);
    if (pam.credited) pam.setcred(pam.handle, PAM_DELETE_CRED);
    pam.end(pam.handle, PAM_SUCCESS);
    pam.handle = NULL;
}

static void undo(void) {
    pam_close();
    unlink(s.sock_path);
    unlink(s.state_path);
    if (s.cast_path) { if (s.cast_fd >= 0) close(s.cast_fd); unlink(s.cast_path); }
    for (int i = 0; i < s.n_cgroups; i++) rmdir(s.cgroups[i]);
}

static void refuse(const char *form, const char *a, const char *b) {
    struct bytes out = {0};
    char text[1600];
    snprintf(text, sizeof text, form, a, b);
    add_text(&out, "{\"refused\":");
    add_string(&out, text);
    add_text(&out, "}\n");
    if (write(s.conn, out.p, out.n) < 0) { /* the agent is gone */ }
    undo();
    _exit(1);
}

static void require(int code, const char *what) {
    if (code == PAM_SUCCESS) return;
    char why[1400];
    const char *text = pam.strerror_(pam.handle, code);
    snprintf(why, sizeof why, "%s%s%.*s%s", text ? text : "error", pam.said.n ? " (" : "",
             (int)(pam.said.n > 2 ? min_((int64_t)pam.said.n - 2, 900) : 0), pam.said.n > 2 ? pam.said.p : "",
             pam.said.n ? ")" : "");
    refuse("PAM refuses %s: %s", what, why);
}

#define LOAD(name, field) \
    if (!(*(void **)&pam.field = dlsym(pam.library, name))) refuse("PAM cannot be used: %s%s", name, " is missing")

/* ---- where PAM has put it (cgroups.py says why) ---------------------------------------------------------------------------- */

static size_t read_text(const char *path, char *to, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t n = 0;
    ssize_t got;
    if (fd >= 0) {
        while (n + 1 < room && (got = read(fd, to + n, room - 1 - n)) > 0) n += (size_t)got;
        close(fd);
    }
    to[n] = '\0';
    return n;
}

static void put_number(const char *directory, const char *file, long number) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", directory, file) >= (int)sizeof path) return;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) { dprintf(fd, "%ld", number); close(fd); }
}

/* Nobody but this process is in it: it was made for the session. */
static bool only_self_in(const char *directory) {
    char path[PATH_MAX], text[64], own[32];
    if (snprintf(path, sizeof path, "%s/cgroup.procs", directory) >= (int)sizeof path) return false;
    snprintf(own, sizeof own, "%d\n", (int)getpid());
    return read_text(path, text, sizeof text) && !strcmp(text, own);
}

static bool names(const char *controllers, const char *wanted) {
    size_t n = strlen(wanted);
    for (const char *p = controllers; (p = strstr(p, wanted)); p += n)
        if ((p == controllers || p[-1] == ',') && (!p[n] || p[n] == ',')) return true;
    return false;
}

static void bound_there(const char *number, const char *controllers, const char *path) {
    char directory[PATH_MAX];
    const char *top = NULL;
    bool second = !strcmp(number, "0"), cpu = names(controllers, "cpu"), pids = names(controllers, "pids");
    if (!strncmp(path, "/..", 3)) return;
    if (second)
        top = !access("/sys/fs/cgroup/cgroup.procs", F_OK) ? "/sys/fs/cgroup" : "/sys/fs/cgroup/unified";
    else if (pids || cpu)
        top = pids ? "/sys/fs/cgroup/pids" : "/sys/fs/cgroup/cpu";
    if (!top || snprintf(directory, sizeof directory, "%s%s", top, path) >= (int)sizeof directory) return;
    if (!only_self_in(directory)) return;
    if (second || pids) put_number(directory, "pids.max", s.tasks);
    if (s.weight && second) put_number(directory, "cpu.weight", s.weight);
    else if (s.weight && cpu) put_number(directory, "cpu.shares", s.weight * 1024 / 100);
}

/* Bound every cgroup in which this process is now and was not ``before``. */
static void moved_on(const char *before) {
    static char now[8192];
    char *rest = now, *row;
    read_text("/proc/self/cgroup", now, sizeof now);
    while (s.tasks > 0 && (row = strsep(&rest, "\n")) && *row) {
        char line[PATH_MAX + 256];
        if (snprintf(line, sizeof line, "\n%s\n", row) >= (int)sizeof line || strstr(before, line)) continue;
        char *number = strsep(&row, ":"), *controllers = strsep(&row, ":");
        if (number && controllers && row) bound_there(number, controllers, row);
    }
}

static void pam_begin(void) {
    static struct pam_conv conversation = {talk, NULL};
    if (!s.service || !*s.service) return;
    if (!(pam.library = dlopen("libpam.so.0", RTLD_NOW))) refuse("PAM cannot be used: %s%s", dlerror(), "");
    LOAD("pam_start", start);
    LOAD("pam_set_item", set_item);
    LOAD("pam_acct_mgmt", acct_mgmt);
    LOAD("pam_setcred", setcred);
    LOAD("pam_open_session", open_session);
    LOAD("pam_close_session", close_session);
    LOAD("pam_end", end);
    LOAD("pam_getenvlist", getenvlist);
    LOAD("pam_strerror", strerror_);
    int code = pam.start(s.service, s.user, &conversation, &pam.handle);
    if (code != PAM_SUCCESS) refuse("PAM cannot be used: %s%s", "it does not start", "");
    if (*s.tty) pam.set_item(pam.handle, PAM_TTY, s.tty);
    if (*s.rhost) pam.set_item(pam.handle, PAM_RHOST, s.rhost);
    if (*s.ruser) pam.set_item(pam.handle, PAM_RUSER, s.ruser);
    code = pam.acct_mgmt(pam.handle, 0);
    if (code == PAM_NEW_AUTHTOK_REQD)
        refuse("the password of %s has expired: change it first, with a login that asks for it%s", s.user, "");
    require(code, "the account");
    require(pam.setcred(pam.handle, PAM_ESTABLISH_CRED), "the account's rights");
    pam.credited = true;
    static char before[8192] = "\n";
    read_text("/proc/self/cgroup", before + 1, sizeof before - 1);
    require(pam.open_session(pam.handle, 0), "the session");
    pam.opened = true;
    moved_on(before);
}

/* ---- the person's process ------------------------------------------------------------------------------------------------ */

static void put_env(char **env, int *n, char *entry) {
    size_t key = strcspn(entry, "=");
    for (int i = 0; i < *n; i++)
        if (!strncmp(env[i], entry, key + 1)) { env[i] = entry; return; }
    if (*n < 2 * LISTS_MAX) env[(*n)++] = entry;
}

static void die(const char *what, int code) {
    dprintf(2, "pact: %s: %s\r\n", what, strerror(errno));
    _exit(code);
}

static void become(char **env) {
    sigset_t none;
    for (int i = 1; i < NSIG; i++) signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (s.terminal && ioctl(s.child_fds[0], TIOCSCTTY, 0)) die("its terminal", 126);
    int moved[3];
    for (int i = 0; i < 3; i++) moved[i] = fcntl(s.child_fds[i], F_DUPFD, 10);
    for (int i = 0; i < 3; i++) dup2(moved[i], i);
    if (syscall(SYS_close_range, 3u, ~0u, 0u))
        for (int fd = 3; fd < 1024; fd++) close(fd);
    int oom = open("/proc/self/oom_score_adj", O_WRONLY);
    if (oom >= 0) { if (write(oom, "0", 1) < 0) { /* as it is */ } close(oom); }
    umask(022);
    if (initgroups(s.user, (gid_t)s.gid) || setgid((gid_t)s.gid) || setuid((uid_t)s.uid)) die("its rights", 126);
    if (s.uid && setuid(0) == 0) { errno = EPERM; die("its rights", 126); }
    if (!s.terminal) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != s.host) _exit(126);  /* it died before it could be asked to tell */
    }
    if (chdir(s.home)) {
        dprintf(2, "pact: %s: %s: starting in /\r\n", s.home, strerror(errno));
        if (chdir("/")) die("/", 126);
    }
    execve(s.shell, s.args, env);
    int code = errno == EACCES ? 126 : 127;
    die(s.shell, code);
}

static void start(void) {
    static char *env[2 * LISTS_MAX + 1];
    int n = 0;
    for (int i = 0; i < s.n_env; i++) put_env(env, &n, s.env[i]);
    char **more = pam.handle ? pam.getenvlist(pam.handle) : NULL;
    for (int i = 0; more && more[i]; i++) if (strchr(more[i], '=') && more[i][0] != '=') put_env(env, &n, more[i]);
    for (int i = 0; i < s.n_late; i++) put_env(env, &n, s.late[i]);
    env[n] = NULL;
    s.host = getpid();
    s.pid = fork();
    if (s.pid == 0) become(env);
    if (s.pid < 0) { s.pid = 0; s.ended = true; s.exit_code = 126; s.ended_at = now_ms(); snprintf(s.why, sizeof s.why, "no process: %s", strerror(errno)); }
    for (int i = 0; i < 3; i++)
        if (i == 0 || s.child_fds[i] != s.child_fds[0]) close(s.child_fds[i]);
    s.pidfd = s.pid > 0 ? (int)syscall(SYS_pidfd_open, s.pid, 0u) : -1;
    s.shell_start = s.pid > 0 ? started_at(s.pid) : 0;
    save();
}

/* ---- what the keeper's child says ------------------------------------------------------------------------------------------ */

static void wanted(const char *key, char *value) {
    static const struct { const char *key; const char **to; } texts[] = {
        {"id", &s.id}, {"user", &s.user}, {"home", &s.home}, {"shell", &s.shell}, {"state", &s.state_path},
        {"head", &s.state_head}, {"sock", &s.sock_path}, {"cast", &s.cast_path}, {"service", &s.service}, {"tty", &s.tty},
        {"rhost", &s.rhost}, {"ruser", &s.ruser}, {"who", &s.who}};
    static const struct { const char *key; int *to; } fds[] = {
        {"conn", &s.conn}, {"listener", &s.listener}, {"input", &s.input}, {"out", &s.out[0].fd}, {"err", &s.out[1].fd},
        {"child0", &s.child_fds[0]}, {"child1", &s.child_fds[1]}, {"child2", &s.child_fds[2]}, {"terminal", &s.terminal}};
    static const struct { const char *key; long *to; } longs[] = {
        {"uid", &s.uid}, {"gid", &s.gid}, {"person", &s.person}, {"rows", &s.rows}, {"cols", &s.columns},
        {"tasks", &s.tasks}, {"weight", &s.weight}};
    static const struct { const char *key; int64_t *to; } times[] = {
        {"idle", &s.idle}, {"detached", &s.detached}, {"half", &s.cast_half}, {"since", &s.since_ns}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) if (!strcmp(key, texts[i].key)) *texts[i].to = value;
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) if (!strcmp(key, fds[i].key)) *fds[i].to = atoi(value);
    for (size_t i = 0; i < sizeof longs / sizeof *longs; i++) if (!strcmp(key, longs[i].key)) *longs[i].to = atol(value);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) if (!strcmp(key, times[i].key)) *times[i].to = atoll(value);
    if (!strcmp(key, "arg") && s.n_args < LISTS_MAX - 1) s.args[s.n_args++] = value;
    if (!strcmp(key, "env") && s.n_env < LISTS_MAX) s.env[s.n_env++] = value;
    if (!strcmp(key, "late") && s.n_late < LISTS_MAX) s.late[s.n_late++] = value;
    if (!strcmp(key, "cgroup") && s.n_cgroups < CGROUPS_MAX) s.cgroups[s.n_cgroups++] = value;
}

static bool read_wanted(int fd) {
    struct bytes b = {0};
    for (;;) {
        need(&b, 65536);
        ssize_t n = read(fd, b.p + b.n, 65536);
        if (n < 0) return false;
        if (n == 0) break;
        b.n += (size_t)n;
    }
    close(fd);
    if (!b.n || b.p[b.n - 1]) return false;
    for (char *p = b.p; p < b.p + b.n;) {  /* kept for good: values point into it */
        char *key = p, *value = key + strlen(key) + 1;
        if (value >= b.p + b.n) return false;
        wanted(key, value);
        p = value + strlen(value) + 1;
    }
    return true;
}

static void stopped(int number) { (void)number; s.stopped = 1; }

int main(int argc, char **argv) {
    s.input = s.listener = s.conn = s.pidfd = s.cast_fd = s.out[0].fd = s.out[1].fd = -1;
    s.person = -1;
    s.hung_up = s.ended_at = FOR_EVER;
    s.tty = s.rhost = s.ruser = s.who = "";
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 32 << 10);
    mallopt(M_TRIM_THRESHOLD, 64 << 10);
    if (argc != 2 || !read_wanted(atoi(argv[1]))) return 64;
    if (!s.id || !s.user || !s.home || !s.shell || !s.state_path || !s.state_head || !s.sock_path || s.conn < 0) return 64;
    s.streams = s.terminal ? 1 : 2;
    for (int i = 0; i < s.streams; i++) { s.out[i].kind = i ? 'E' : 'O'; s.out[i].lossy = s.terminal; }
    if (!s.idle) s.idle = FOR_EVER;
    if (!s.detached) s.detached = FOR_EVER;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, stopped);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    s.began = s.active = s.alone = now_ms();
    pam_begin();
    if (s.person >= 0 && proc_number("/proc/self/loginuid") >= 0 && proc_number("/proc/self/loginuid") != s.person) {
        int fd = open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC);  /* a module of PAM has made it the account's */
        if (fd >= 0) { dprintf(fd, "%ld", s.person); close(fd); }
    }
    if (s.cast_path) cast_open();
    if (s.terminal && pam.said.n) {
        keep(&s.out[0], pam.said.p, pam.said.n);
        cast_output(&s.out[0], pam.said.p, pam.said.n);
    }
    free(pam.said.p);
    save();
    struct bytes ready = {0};
    add_text(&ready, "{\"ready\":");
    add_state(&ready);
    add_text(&ready, "}\n");
    bool told = write(s.conn, ready.p, ready.n) == (ssize_t)ready.n;
    free(ready.p);
    struct pollfd p = {s.conn, POLLIN, 0};
    char word[4] = "";
    if (!told || poll(&p, 1, GO_MS) <= 0 || read(s.conn, word, 3) != 3 || memcmp(word, "go\n", 3)) {
        if (!memcmp(word, "no\n", 3)) { undo(); return 1; }
        pam_close();  /* the agent may have recorded it, and is gone: the file says how it ended */
        s.ended = true;
        s.exit_code = -1;
        snprintf(s.why, sizeof s.why, "it never began");
        save();
        unlink(s.sock_path);
        for (int i = 0; i < s.n_cgroups; i++) rmdir(s.cgroups[i]);
        return 1;
    }
    close(s.conn);
    s.active = s.alone = now_ms();
    start();
    malloc_trim(0);
    run();
    close(s.listener);
    if (s.client) free_client(s.client);
    unlink(s.sock_path);
    if (s.cast_fd >= 0) close(s.cast_fd);
    save();
    pam_close();
    for (int i = 0; i < s.n_cgroups; i++) rmdir(s.cgroups[i]);
    return 0;
}
