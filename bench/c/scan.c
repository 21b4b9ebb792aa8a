/* The baselines of bench_scan. `stat_all`: lstat of every path and nothing more. `read_all`: open, fstat, read, close
 * and a hash of every file: XXH3 (128 bits) where its header is installed, else a sum of words, which costs less. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if __has_include(<xxhash.h>)
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif

static char buffer[1 << 16];

int hash_is_xxh3(void)
{
#ifdef XXH_INLINE_ALL
    return 1;
#else
    return 0;
#endif
}

static uint64_t hash(const char *p, size_t n)
{
#ifdef XXH_INLINE_ALL
    XXH128_hash_t h = XXH3_128bits(p, n);
    return h.low64 ^ h.high64;
#else
    uint64_t sum = n, word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        sum = sum * 31 + word;
    }
    return sum;
#endif
}

uint64_t stat_all(const char **paths, long n)
{
    uint64_t all = 0;
    struct statx st;
    for (long i = 0; i < n; i++)
        if (statx(AT_FDCWD, paths[i], AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st) == 0) all ^= st.stx_ino;
    return all;
}

uint64_t read_all(const char **paths, long n)
{
    uint64_t all = 0;
    struct stat st;
    for (long i = 0; i < n; i++) {
        int fd = open(paths[i], O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        if (fstat(fd, &st) == 0) {
            ssize_t got = read(fd, buffer, sizeof buffer);
            if (got >= 0) all ^= hash(buffer, got) ^ st.st_ino;
        }
        close(fd);
    }
    return all;
}

/* Only the hash, over size bytes at p. */
uint64_t hash_only(const char *p, size_t size) { return hash(p, size); }
