/* A library that speaks NVML's calls, as far as pact uses them, for machines without a GPU.
 *
 * Its state is the file "state" beside the library: lines "KEY VALUE", as "gpu0.bus 00000000:3B:00.0",
 * "gpu0.persistence 1". "KEY.error CODE" makes the calls for that key fail. -DNO_V3, -DNO_V2 and -DNO_MIG
 * leave calls out, as older drivers do. "hang SECONDS" and "crash 1" are what their names say; with "late SECONDS"
 * the process ends so much later.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, BAD = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7 };
static int ready = 0;

static void path(char *out) {
    Dl_info info;
    dladdr((void *)path, &info);
    char *real = realpath(info.dli_fname, NULL);
    strcpy(out, real);
    strcpy(strrchr(out, '/') + 1, "state");
    free(real);
}

static int get(const char *key, char *value, size_t size) {
    char name[4096], line[512];
    path(name);
    FILE *f = fopen(name, "r");
    size_t n = strlen(key);
    int found = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, n) && line[n] == ' ') {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + n + 1);
            found = 1;
        }
    if (f) fclose(f);
    return found;
}

static long number(const char *key, long otherwise) {
    char value[256];
    return get(key, value, sizeof value) ? atol(value) : otherwise;
}

static int set(const char *key, long value) {
    char name[4096], other[4100], line[512];
    path(name);
    snprintf(other, sizeof other, "%s.new", name);
    FILE *in = fopen(name, "r"), *out = fopen(other, "w");
    size_t n = strlen(key);
    while (in && fgets(line, sizeof line, in))
        if (strncmp(line, key, n) || line[n] != ' ') fputs(line, out);
    fprintf(out, "%s %ld\n", key, value);
    if (in) fclose(in);
    fclose(out);
    return rename(other, name);
}

#define KEY(h, what) char key[64]; snprintf(key, sizeof key, "gpu%ld.%s", (long)(h) - 1, what)

static int error(long h, const char *what) {
    char key[64];
    if (!ready) return UNINITIALIZED;
    snprintf(key, sizeof key, "gpu%ld.error", h - 1);
    long whole = number(key, 0);
    snprintf(key, sizeof key, "gpu%ld.%s.error", h - 1, what);
    return whole ? whole : number(key, 0);
}

static int one(long h, const char *what, unsigned *value) {
    int code = error(h, what);
    if (code) return code;
    KEY(h, what);
    long n = number(key, -1);
    if (n < 0) return NOT_SUPPORTED;
    *value = n;
    return OK;
}

static int put(long h, const char *what, long value) {
    char refused[64];
    snprintf(refused, sizeof refused, "set.%s", what);
    int code = error(h, refused);
    if (code) return code;
    KEY(h, what);
    return set(key, value);
}

__attribute__((destructor)) static void leave(void) { if (number("late", 0)) sleep(number("late", 0)); }

int nvmlInit_v2(void) {
    if (number("hang", 0)) sleep(number("hang", 0));
    if (number("crash", 0)) abort();
    int code = number("init.error", 0);
    ready = !code;
    return code;
}
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { ready = 0; return OK; }
const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "as the library says it"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    return get("driver", out, size) ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetCount_v2(unsigned *n) { *n = number("count", 0); return ready ? OK : UNINITIALIZED; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **h) {
    if (index >= number("count", 0)) return BAD;
    *h = (void *)((long)index + 1);
    char key[64];
    snprintf(key, sizeof key, "gpu%u.handle.error", index);
    return number(key, 0);
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **h) {
    char key[64], have[64];
    for (long n = 0; n < number("count", 0); n++) {
        snprintf(key, sizeof key, "gpu%ld.bus", n);
        if (get(key, have, sizeof have) && !strcmp(have, bus)) return nvmlDeviceGetHandleByIndex_v2(n, h);
    }
    return NOT_FOUND;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(void *h, struct pci *out) {
    KEY(h, "bus");
    memset(out, 0, sizeof *out);
    return get(key, out->bus_id, sizeof out->bus_id) ? OK : NOT_FOUND;
}
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) {
    KEY(h, "uuid");
    return get(key, out, size) ? OK : NOT_SUPPORTED;
}

#define GETTER(name, what) int nvmlDeviceGet##name(void *h, unsigned *v) { return one((long)h, what, v); }
#define SETTER(name, what) int nvmlDeviceSet##name(void *h, unsigned v) { return put((long)h, what, v); }
GETTER(PersistenceMode, "persistence")
SETTER(PersistenceMode, "persistence")
GETTER(ComputeMode, "compute_mode")
SETTER(ComputeMode, "compute_mode")
GETTER(PowerManagementLimit, "power")
int nvmlDeviceSetPowerManagementLimit(void *h, unsigned v) {
    if (v < 100000 || v > 400000) return BAD;
    return put((long)h, "power", v);
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *low, unsigned *high) {
    *low = 100000;
    *high = 400000;
    return error((long)h, "limits");
}
int nvmlDeviceGetEccMode(void *h, unsigned *now, unsigned *pending) {
    int code = one((long)h, "ecc_now", now);
    return code ? code : one((long)h, "ecc", pending);
}
SETTER(EccMode, "ecc")
#ifndef NO_MIG
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending) {
    int code = one((long)h, "mig_now", now);
    return code ? code : one((long)h, "mig", pending);
}
int nvmlDeviceSetMigMode(void *h, unsigned v, int *status) { *status = OK; return put((long)h, "mig", v); }
#endif
int nvmlDeviceGetApplicationsClock(void *h, int kind, unsigned *v) {
    return one((long)h, kind == 0 ? "graphics" : "memory", v);
}
int nvmlDeviceSetApplicationsClocks(void *h, unsigned memory, unsigned graphics) {
    int code = put((long)h, "memory", memory);
    return code ? code : put((long)h, "graphics", graphics);
}

struct before { unsigned pid; unsigned long long memory; };
struct after { unsigned pid; unsigned long long memory; unsigned instance, compute_instance; };

static int processes(void *h, const char *what, unsigned *count, void *out, int is_long) {
    int code = error((long)h, what);
    if (code) return code;
    char text[256] = "", *at = text;
    KEY(h, what);
    get(key, text, sizeof text);
    unsigned n = 0, room = *count;
    int small = 0;
    for (char *word; (word = strsep(&at, ",")) && *word; n++) {
        if (n >= room || !out) { small = 1; continue; }
        if (is_long) ((struct after *)out)[n] = (struct after){atoi(word), 1 << 20, 0xFFFFFFFF, 0xFFFFFFFF};
        else ((struct before *)out)[n] = (struct before){atoi(word), 1 << 20};
    }
    *count = n;
    return small ? SMALL : OK;
}
#define USERS(version, is_long) \
    int nvmlDeviceGetComputeRunningProcesses##version(void *h, unsigned *n, void *out) { \
        return processes(h, "compute", n, out, is_long); } \
    int nvmlDeviceGetGraphicsRunningProcesses##version(void *h, unsigned *n, void *out) { \
        return processes(h, "graphics_users", n, out, is_long); }
#ifndef NO_V3
USERS(_v3, 1)
#endif
#ifndef NO_V2
USERS(_v2, 1)
#endif
USERS(, 0)
