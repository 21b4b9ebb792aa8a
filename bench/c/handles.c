/* The baseline of bench_handles: a program that reads the same links and maps of every process and looks in each for one
 * prefix. It resolves nothing, knows no namespaces and no inodes. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[4097], maps[1 << 16];

static long look(int at, const char *name, const char *prefix, size_t length)
{
    ssize_t n = readlinkat(at, name, text, sizeof text - 1);
    if (n < 0) return -1;
    text[n] = 0;
    return strncmp(text, prefix, length) == 0;
}

/* Counts the links and maps lines under prefix; *links receives how many links were read. */
long scan(const char *prefix, long *links)
{
    size_t length = strlen(prefix);
    long found = 0;
    DIR *proc = opendir("/proc");
    *links = 0;
    for (struct dirent *p; (p = readdir(proc));) {
        if (p->d_name[0] < '0' || p->d_name[0] > '9') continue;
        int base = openat(dirfd(proc), p->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (base < 0) continue;
        long exe = look(base, "exe", prefix, length);
        found += exe > 0;
        found += look(base, "cwd", prefix, length) > 0;
        found += look(base, "root", prefix, length) > 0;
        *links += 3;
        int fds = openat(base, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fds >= 0) {
            DIR *dir = fdopendir(fds);
            for (struct dirent *f; (f = readdir(dir));) {
                if (f->d_name[0] == '.') continue;
                found += look(fds, f->d_name, prefix, length) > 0;
                ++*links;
            }
            closedir(dir);
        }
        if (exe >= 0) {
            int fd = openat(base, "maps", O_RDONLY | O_CLOEXEC);
            if (fd >= 0) {
                ssize_t n, held = 0;
                while ((n = read(fd, maps + held, sizeof maps - held)) > 0) {
                    char *at = maps, *end = maps + held + n, *eol;
                    for (; (eol = memchr(at, '\n', end - at)); at = eol + 1) {
                        char *path = memchr(at, '/', eol - at);
                        found += path && (size_t)(eol - path) >= length && memcmp(path, prefix, length) == 0;
                    }
                    held = end - at;
                    memmove(maps, at, held);
                }
                close(fd);
            }
        }
        close(base);
    }
    closedir(proc);
    return found;
}
