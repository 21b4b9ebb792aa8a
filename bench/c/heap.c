/* The baseline of bench_wheel: an indexed binary heap, so that cancel and move cost O(log n). Two kinds: the one of the
 * textbooks holds keys and looks their deadlines up; with -DBESIDE the deadlines stand in the heap beside their keys,
 * which saves the cache misses and costs memory. */
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef BESIDE
typedef struct { int64_t deadline; int32_t key; } item;
#define DEADLINE(x) ((x).deadline)
#define KEY(x) ((x).key)
#define ITEM(key, when) ((item){when, key})
#else
typedef int32_t item;
static int64_t *deadlines_of;
#define DEADLINE(x) (deadlines_of[x])
#define KEY(x) (x)
#define ITEM(key, when) (deadlines_of[key] = (when), (key))
#endif
static item *heap;
static int32_t *place, length;

static inline int less(item a, item b)
{
    return DEADLINE(a) < DEADLINE(b) || (DEADLINE(a) == DEADLINE(b) && KEY(a) < KEY(b));
}

static inline void put(int32_t at, item x) { heap[at] = x; place[KEY(x)] = at; }

static void up(int32_t at, item x)
{
    while (at > 0) {
        int32_t parent = (at - 1) >> 1;
        if (!less(x, heap[parent])) break;
        put(at, heap[parent]);
        at = parent;
    }
    put(at, x);
}

static void down(int32_t at, item x)
{
    for (int32_t child; (child = 2 * at + 1) < length; at = child) {
        if (child + 1 < length && less(heap[child + 1], heap[child])) child++;
        if (!less(heap[child], x)) break;
        put(at, heap[child]);
    }
    put(at, x);
}

static void set(int32_t key, int64_t deadline)
{
    int64_t before = place[key] < 0 ? 0 : DEADLINE(heap[place[key]]);
    item x = ITEM(key, deadline);
    if (place[key] < 0) up(length++, x);
    else if (deadline < before) up(place[key], x);
    else down(place[key], x);
}

static void drop(int32_t key)
{
    int32_t at = place[key];
    if (at < 0) return;
    item last = heap[--length];
    place[key] = -1;
    if (at == length) return;
    if (at > 0 && less(last, heap[(at - 1) >> 1])) up(at, last);
    else down(at, last);
}

static double milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void begin(int64_t n)
{
#ifndef BESIDE
    deadlines_of = malloc(n * sizeof *deadlines_of);
#endif
    heap = malloc(n * sizeof *heap);
    place = malloc(n * sizeof *place);
    for (int64_t i = 0; i < n; i++) place[i] = -1;
    length = 0;
}

static void end(void)
{
#ifndef BESIDE
    free(deadlines_of);
#endif
    free(heap);
    free(place);
}

/* Insert all, cancel, move, expire the rest in steps. Returns milliseconds; `expired` receives the keys in order. */
double lifecycle(int64_t n, const int64_t *keys, const int64_t *deadlines, int64_t cancels, const int64_t *cancelled,
                 int64_t moves, const int64_t *moved, const int64_t *targets, int64_t span, int64_t step, int32_t *expired)
{
    int64_t count = 0;
    begin(n);
    double start = milliseconds();
    for (int64_t i = 0; i < n; i++) set(keys[i], deadlines[i]);
    for (int64_t i = 0; i < cancels; i++) drop(cancelled[i]);
    for (int64_t i = 0; i < moves; i++) set(moved[i], targets[i]);
    for (int64_t now = step; now <= span; now += step)
        while (length && DEADLINE(heap[0]) <= now) {
            expired[count++] = KEY(heap[0]);
            drop(KEY(heap[0]));
        }
    double took = milliseconds() - start;
    end();
    return took;
}

/* Expire and reschedule each key after intervals[key], `steps` times. Returns milliseconds. */
double steady(int64_t n, const int64_t *intervals, int64_t steps, int64_t step, int64_t *fired)
{
    begin(n);
    for (int64_t i = 0; i < n; i++) set(i, intervals[i]);
    double start = milliseconds();
    *fired = 0;
    for (int64_t s = 1; s <= steps; s++)
        while (DEADLINE(heap[0]) <= s * step) {
            int32_t key = KEY(heap[0]);
            item x = ITEM(key, s * step + intervals[key]);
            down(0, x);
            ++*fired;
        }
    double took = milliseconds() - start;
    end();
    return took;
}
