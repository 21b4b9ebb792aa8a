"""Deadlines of very many timers: insert, move and cancel in constant time, expire in exact order.

The array ``timers`` is the truth: one record for each key, with its deadline and whether it is live. Everything else
only says when to look at a key. Cancelling and moving later only write the record; when a slot opens, each of its
entries is dropped, filed again or expired according to the record at that time.

Levels of slots, each ``SPAN`` times coarser than the one below, hold entries: chains of 64-byte chunks of keys from one
free list, with a bitmap of the slots in use. Level 0 has slots of one tick. A key goes to the lowest level that reaches
it, and each level reaches to the end of the *next* slot of the level above, so that slot can be emptied downwards a
little at every ``advance`` instead of all at once when its time comes. The entries of an opened tick are packed as
(offset, key) and sorted: exact nanosecond order, ties by key. Entries for a tick that is already open (deadlines in the
past, a clock that went backwards) wait in a small heap, ``near``.

It refuses to own a clock, and to make callbacks. One thread at a time: a second one gets RuntimeError.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_AsLongLong, PyLong_AsLongLongAndOverflow, PyLong_FromLong
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.number cimport PyNumber_Index
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, UINT64_MAX, int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from pact._fast.buffers cimport take_buffer


cdef extern from *:
    """
    #define pact_first_bit(x) __builtin_ctzll(x)
    #define pact_prefetch(p) __builtin_prefetch(p)
    """
    int first_bit "pact_first_bit"(uint64_t) noexcept nogil
    void prefetch "pact_prefetch"(const void *) noexcept nogil

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **, size_t, size_t) noexcept
    void free(void *) noexcept

cdef extern from "sys/mman.h" nogil:
    int MADV_HUGEPAGE
    int madvise(void *, size_t, int) noexcept

cdef enum:
    KEY_BITS = 26
    KEY_LIMIT = 1 << 26  # keys are array indices: 1 GiB of records at the most
    OFFSET_BITS = 64 - KEY_BITS
    LEVEL_BITS = 10
    SPAN = 1 << LEVEL_BITS  # slots of one level that make one slot of the level above
    SLOTS = 2 * SPAN
    SLOT_MASK = SLOTS - 1
    SLOT_BITS = LEVEL_BITS + 1
    WORDS = SLOTS // 64
    LEVELS_MAX = 6
    CHUNKS_LIMIT = 1 << 30
    SHIFT_MIN = 10
    SHIFT_MAX = 30
    CHUNK_KEYS = 30
    NOWHERE = -1  # values of Timer.filed below the slot numbers
    READY = -2
    NEAR = -3
    BATCH_MAX = 1 << 16  # entries sorted together
    AHEAD_MIN = 256  # entries moved down ahead of time in one advance, if that many wait
    LOOK_MAX = 512  # entries that next_deadline looks through for an exact answer
    SLACK = 4096  # stale entries that are never worth a compaction
    DIRECT_MAX = 1 << 14  # entries of a level 1 slot that are sorted at once instead of being spread over ticks
    SMALL_SORT = 24
    GIL_MAX = 1 << 12  # ready entries that are worth releasing the GIL for
    CACHE_LINE = 64
    HUGE_PAGE = 1 << 21

cdef struct Timer:
    int64_t deadline
    int32_t filed  # the slot of the valid entry for this key, or NOWHERE, READY, NEAR
    int32_t live

cdef struct Chunk:  # full, unless it is the top of its slot
    int32_t below
    int32_t deeper  # the one below that: far enough ahead to prefetch
    int32_t keys[CHUNK_KEYS]

cdef struct Slot:
    int32_t top
    int32_t count

cdef struct Due:
    int64_t deadline
    int64_t key

cdef struct Wheel:
    int shift
    int levels
    int64_t cursor  # the last tick that was opened
    int64_t upper_next  # no slot above level 0 starts before this tick
    int64_t last_now
    Timer *timers
    int64_t capacity
    int64_t live
    Slot *slots
    uint64_t *bits
    Chunk *chunks
    int64_t chunks_size
    int32_t free_top
    int64_t free_count
    int64_t entries  # in slots, stale ones included
    uint64_t *ready
    uint64_t *scratch
    int64_t ready_size
    int64_t scratch_size
    int64_t ready_at
    int64_t ready_len
    int64_t ready_base
    Due *near
    int64_t near_size
    int64_t near_len
    int32_t *out
    int64_t out_size
    int64_t out_len


# --- memory: everything that can fail happens before the first change ---

cdef int no_memory() except -1 nogil:
    with gil:
        raise MemoryError


cdef int grow(void **block, int64_t *size, int64_t wanted, size_t item) except -1 nogil:
    """Room for ``wanted`` items. Large blocks use huge pages: keys are accessed in any order, far apart."""
    cdef int64_t larger = max(size[0] + (size[0] >> 1) + 64, wanted)
    cdef size_t bytes_wanted = <size_t>larger * item
    cdef bint huge = bytes_wanted >= 2 * <size_t>HUGE_PAGE
    cdef void *moved = NULL
    if wanted <= size[0]:
        return 0
    if posix_memalign(&moved, HUGE_PAGE if huge else CACHE_LINE, bytes_wanted) != 0:
        return no_memory()
    if huge:
        madvise(moved, bytes_wanted, MADV_HUGEPAGE)
    if size[0]:
        memcpy(moved, block[0], <size_t>size[0] * item)
        free(block[0])
    block[0] = moved
    size[0] = larger
    return 0


cdef int grow_timers(Wheel *w, int64_t wanted) except -1 nogil:
    cdef int64_t before = w.capacity
    cdef int64_t i
    if wanted <= before:
        return 0
    grow(<void **>&w.timers, &w.capacity, wanted, sizeof(Timer))
    for i in range(before, w.capacity):
        w.timers[i].deadline = 0
        w.timers[i].filed = NOWHERE
        w.timers[i].live = 0
    return 0


cdef int grow_chunks(Wheel *w, int64_t wanted) except -1 nogil:
    """Make at least ``wanted`` chunks free."""
    cdef int64_t before = w.chunks_size
    cdef int64_t i
    if w.free_count >= wanted:
        return 0
    if before + wanted > CHUNKS_LIMIT:
        return no_memory()
    grow(<void **>&w.chunks, &w.chunks_size, before + wanted - w.free_count, sizeof(Chunk))
    for i in range(w.chunks_size - 1, before - 1, -1):
        w.chunks[i].below = w.free_top
        w.free_top = <int32_t>i
    w.free_count += w.chunks_size - before
    return 0


cdef inline int reserve(Wheel *w, int64_t count) except -1 nogil:
    """Make room for ``count`` calls of ``place``."""
    if w.free_count < count:
        grow_chunks(w, count)
    if w.near_len + count > w.near_size:
        grow(<void **>&w.near, &w.near_size, w.near_len + count, sizeof(Due))
    return 0


cdef void clear_slots(Wheel *w) noexcept nogil:
    cdef Slot *slots = w.slots  # a pointer that no write can move: the compiler writes several at once
    cdef int64_t i
    for i in range(w.levels * SLOTS):
        slots[i].top = -1
        slots[i].count = 0
    memset(w.bits, 0, <size_t>(w.levels * WORDS) * sizeof(uint64_t))
    w.upper_next = INT64_MAX
    w.entries = 0


# --- the heap of what is filed for a tick already open ---

cdef inline bint earlier(Due a, Due b) noexcept nogil:
    return a.deadline < b.deadline or (a.deadline == b.deadline and a.key < b.key)


cdef void near_push(Wheel *w, int32_t key, int64_t deadline) noexcept nogil:
    cdef int64_t at = w.near_len
    cdef int64_t parent
    cdef Due due
    due.deadline = deadline
    due.key = key
    w.near_len += 1
    while at > 0:
        parent = (at - 1) >> 1
        if not earlier(due, w.near[parent]):
            break
        w.near[at] = w.near[parent]
        at = parent
    w.near[at] = due


cdef void near_pop(Wheel *w) noexcept nogil:
    cdef int64_t at = 0
    cdef int64_t child = 1
    cdef int64_t length
    cdef Due last
    w.near_len -= 1
    length = w.near_len
    last = w.near[length]
    while child < length:
        if child + 1 < length and earlier(w.near[child + 1], w.near[child]):
            child += 1
        if not earlier(w.near[child], last):
            break
        w.near[at] = w.near[child]
        at = child
        child = 2 * at + 1
    w.near[at] = last


# --- filing ---

cdef inline void place(Wheel *w, int32_t key, int64_t deadline) noexcept nogil:
    """File ``key`` in the slot of its deadline. The room is reserved."""
    cdef int64_t tick = deadline >> w.shift
    cdef int64_t above = tick >> LEVEL_BITS
    cdef int64_t above_cursor = w.cursor >> LEVEL_BITS
    cdef int level = 0
    cdef int top = w.levels - 1
    cdef int32_t number, fresh, used
    cdef int64_t start
    cdef Slot *slot
    if tick <= w.cursor:
        near_push(w, key, deadline)
        w.timers[key].filed = NEAR
        return
    while level < top and above > above_cursor + 1:
        level += 1
        above >>= LEVEL_BITS
        above_cursor >>= LEVEL_BITS
    number = <int32_t>((tick >> (level * LEVEL_BITS)) & SLOT_MASK)
    w.bits[level * WORDS + (number >> 6)] |= (<uint64_t>1) << (number & 63)
    number |= level << SLOT_BITS
    if level:
        start = (tick >> (level * LEVEL_BITS)) << (level * LEVEL_BITS)
        if start < w.upper_next:
            w.upper_next = start
    slot = &w.slots[number]
    used = slot.count % CHUNK_KEYS
    if used == 0:
        fresh = w.free_top
        w.free_top = w.chunks[fresh].below
        w.free_count -= 1
        if w.free_top >= 0:
            prefetch(&w.chunks[w.free_top])
        w.chunks[fresh].below = slot.top
        w.chunks[fresh].deeper = w.chunks[slot.top].below if slot.top >= 0 else -1
        slot.top = fresh
    w.chunks[slot.top].keys[used] = key
    slot.count += 1
    w.entries += 1
    w.timers[key].filed = number


cdef inline int64_t slot_start(Wheel *w, int32_t number) noexcept nogil:
    """The first tick of a slot in use."""
    cdef int lift = (number >> SLOT_BITS) * LEVEL_BITS
    cdef int64_t current = w.cursor >> lift
    return (current + (((number & SLOT_MASK) - current) & SLOT_MASK)) << lift


cdef inline int set_timer(Wheel *w, int32_t key, int64_t deadline) except -1 nogil:
    """Insert or move. An existing entry that will be checked in time is used again."""
    cdef Timer *timer = &w.timers[key]
    cdef bint serves
    if timer.filed == NOWHERE:
        serves = False
    elif deadline >= timer.deadline:
        serves = True
    elif timer.filed >= 0:
        serves = (deadline >> w.shift) >= slot_start(w, timer.filed)
    else:
        serves = False
    if not serves:
        reserve(w, 1)
        place(w, key, deadline)
    timer.deadline = deadline
    w.live += 1 - timer.live
    timer.live = 1
    return 0


cdef int compact(Wheel *w) except -1 nogil:
    """File only the live keys anew, relative to the latest ``now``. Its cost is that of the work that made it
    necessary."""
    cdef int64_t chunks = w.live // CHUNK_KEYS + min(w.live, <int64_t>(w.levels * SLOTS)) + 1
    cdef int64_t i
    if chunks > w.chunks_size:
        grow_chunks(w, w.free_count + chunks - w.chunks_size)
    grow(<void **>&w.near, &w.near_size, w.live, sizeof(Due))
    clear_slots(w)
    w.free_top = -1
    w.free_count = w.chunks_size
    for i in range(w.chunks_size - 1, -1, -1):
        w.chunks[i].below = w.free_top
        w.free_top = <int32_t>i
    w.near_len = w.ready_at = w.ready_len = 0
    w.cursor = min(w.cursor, w.last_now >> w.shift)
    for i in range(w.capacity):
        w.timers[i].filed = NOWHERE
        if w.timers[i].live:
            place(w, <int32_t>i, w.timers[i].deadline)
    return 0


cdef inline int keep_tidy(Wheel *w) except -1 nogil:
    cdef int64_t stale_max = 3 * w.live + SLACK + (w.capacity >> 4)
    if w.entries + w.near_len > stale_max:
        compact(w)
    elif w.near_len > stale_max >> 3 and (w.last_now >> w.shift) < w.cursor:
        compact(w)  # the clock went back for good: the slots serve again
    return 0


cdef inline int take_chunk(Wheel *w, Slot *slot, int32_t *keys) noexcept nogil:
    """Unlink the top chunk of a slot and copy its keys out, prefetching their timers into the cache; returns their
    number."""
    cdef int32_t taken = slot.top
    cdef Chunk *chunk = &w.chunks[taken]
    cdef int used = (slot.count - 1) % CHUNK_KEYS + 1
    cdef int i
    if chunk.deeper >= 0:
        prefetch(&w.chunks[chunk.deeper])
        prefetch(<char *>&w.chunks[chunk.deeper] + CACHE_LINE)
    for i in range(used):
        keys[i] = chunk.keys[i]
        prefetch(&w.timers[keys[i]])
    slot.top = chunk.below
    slot.count -= used
    w.entries -= used
    chunk.below = w.free_top
    w.free_top = taken
    w.free_count += 1
    return used


cdef inline void clear_bit(Wheel *w, int32_t number) noexcept nogil:
    w.bits[(number >> SLOT_BITS) * WORDS + ((number & SLOT_MASK) >> 6)] &= ~((<uint64_t>1) << (number & 63))


cdef int drain(Wheel *w, int32_t number, int64_t budget) except -1 nogil:
    """Move about ``budget`` entries of one slot down, or to the slots of their changed deadlines."""
    cdef Slot *slot = &w.slots[number]
    cdef int32_t keys[CHUNK_KEYS]
    cdef Timer *timer
    cdef int i, used
    while slot.top >= 0 and budget > 0:
        reserve(w, CHUNK_KEYS)
        used = take_chunk(w, slot, keys)
        budget -= used
        for i in range(used):
            timer = &w.timers[keys[i]]
            if timer.filed != number:
                continue
            if timer.live:
                place(w, keys[i], timer.deadline)
            else:
                timer.filed = NOWHERE
    if slot.top < 0:
        clear_bit(w, number)
    return 0


# --- finding slots ---

cdef int64_t next_unit(Wheel *w, int level, int64_t after) noexcept nogil:
    """The first slot in use after slot ``after`` of a level, as its absolute number; INT64_MAX if there is none."""
    cdef uint64_t *bits = w.bits + level * WORDS
    cdef int start = <int>((after + 1) & SLOT_MASK)
    cdef int word = start >> 6
    cdef uint64_t found = bits[word] & (UINT64_MAX << (start & 63))
    cdef int _turn
    for _turn in range(WORDS + 1):
        if found:
            return after + 1 + ((((word << 6) | first_bit(found)) - start) & SLOT_MASK)
        word = (word + 1) & (WORDS - 1)
        found = bits[word]
    return INT64_MAX


cdef void find_upper(Wheel *w) noexcept nogil:
    cdef int level
    cdef int64_t unit
    w.upper_next = INT64_MAX
    for level in range(1, w.levels):
        unit = next_unit(w, level, w.cursor >> (level * LEVEL_BITS))
        if unit != INT64_MAX:
            w.upper_next = min(w.upper_next, unit << (level * LEVEL_BITS))


cdef int drain_ahead(Wheel *w, int64_t steps) except -1 nogil:
    """Empty the next slot of every upper level in proportion to the progress of the cursor towards it."""
    cdef int level
    cdef int64_t unit, budget
    cdef int32_t number
    cdef bint emptied = False
    for level in range(1, w.levels):
        unit = (w.cursor >> (level * LEVEL_BITS)) + 1
        number = <int32_t>((level << SLOT_BITS) | (unit & SLOT_MASK))
        if w.slots[number].count > (DIRECT_MAX if level == 1 else 0):
            budget = AHEAD_MIN + <int64_t>(
                <double>w.slots[number].count * steps / <double>((unit << (level * LEVEL_BITS)) - w.cursor + steps)
            )
            drain(w, number, budget)
            emptied = emptied or w.slots[number].count == 0
    if emptied:
        find_upper(w)
    return 0


# --- opening ticks ---

cdef void sort_packed(uint64_t *items, uint64_t *scratch, int64_t count) noexcept nogil:
    """Distribute over up to 2048 buckets by value, then sort each bucket; small inputs by insertion."""
    cdef int32_t starts[2049]
    cdef uint64_t low, high, item
    cdef int64_t i, j, first
    cdef int lift = 0
    cdef int64_t buckets = 2048
    if count > SMALL_SORT:
        low = high = items[0]
        for i in range(1, count):
            low = min(low, items[i])
            high = max(high, items[i])
        while buckets > 32 and buckets > count:
            buckets >>= 1
        while ((high - low) >> lift) >= <uint64_t>buckets:
            lift += 1
        memset(starts, 0, sizeof(starts))
        for i in range(count):
            starts[((items[i] - low) >> lift) + 1] += 1
        for i in range(1, buckets):
            starts[i + 1] += starts[i]
        memcpy(scratch, items, <size_t>count * sizeof(uint64_t))
        for i in range(count):
            item = scratch[i]
            j = <int64_t>((item - low) >> lift)
            items[starts[j]] = item
            starts[j] += 1
        if lift == 0:
            return
        first = 0
        for i in range(buckets):  # starts[i] is now the end of bucket i
            if starts[i] - first > 1:
                sort_packed(items + first, scratch, starts[i] - first)
            first = starts[i]
        return
    for i in range(1, count):
        item = items[i]
        j = i
        while j > 0 and items[j - 1] > item:
            items[j] = items[j - 1]
            j -= 1
        items[j] = item


cdef int pack(Wheel *w, int32_t number, int level) except -1 nogil:
    """Empty a slot into the ready list, unsorted. Entries that have moved beyond the slot are filed again."""
    cdef Slot *slot = &w.slots[number]
    cdef int lift = w.shift + level * LEVEL_BITS
    cdef int64_t unit = slot_start(w, number) >> (level * LEVEL_BITS)
    cdef int32_t keys[CHUNK_KEYS]
    cdef Timer *timer
    cdef int i, used
    if w.ready_len + slot.count > w.ready_size:
        grow(<void **>&w.scratch, &w.scratch_size, w.ready_len + slot.count, sizeof(uint64_t))
        grow(<void **>&w.ready, &w.ready_size, w.ready_len + slot.count, sizeof(uint64_t))
    while slot.top >= 0:
        reserve(w, CHUNK_KEYS)
        used = take_chunk(w, slot, keys)
        for i in range(used):
            timer = &w.timers[keys[i]]
            if timer.filed != number:
                continue
            if not timer.live:
                timer.filed = NOWHERE
            elif (timer.deadline >> lift) > unit:
                place(w, keys[i], timer.deadline)
            else:
                timer.filed = READY
                w.ready[w.ready_len] = (<uint64_t>(timer.deadline - w.ready_base) << KEY_BITS) | <uint64_t>keys[i]
                w.ready_len += 1
    clear_bit(w, number)
    return 0


cdef int open_upper(Wheel *w) except -1 nogil:
    """Empty every upper slot that starts at the tick after the cursor. The ready list is empty before."""
    cdef int64_t tick = w.cursor + 1
    cdef int32_t number
    cdef int level
    for level in range(w.levels - 1, 0, -1):
        if tick & ((<int64_t>1 << (level * LEVEL_BITS)) - 1):
            continue
        number = <int32_t>((level << SLOT_BITS) | ((tick >> (level * LEVEL_BITS)) & SLOT_MASK))
        if level > 1 or w.slots[number].count > DIRECT_MAX or w.shift + LEVEL_BITS > OFFSET_BITS:
            drain(w, number, INT64_MAX)
        elif w.slots[number].count:
            w.ready_base = tick << w.shift
            pack(w, number, level)
            sort_packed(w.ready, w.scratch, w.ready_len)
    find_upper(w)
    return 0


cdef int open_ticks(Wheel *w, int64_t target) except -1 nogil:
    """Move the cursor towards ``target``, which it has not reached, and make the entries of the ticks on the way ready.

    The ready list, if it is not empty, stays as it is: it holds the level 1 slot in which the cursor is, and later
    entries for ticks in that slot go to ``near``. ``expire`` merges the two.
    """
    cdef int64_t reach = (<int64_t>1 << OFFSET_BITS) >> w.shift
    cdef int64_t first = 0
    cdef int64_t tick
    cdef bint packing = w.ready_at == w.ready_len
    if packing:
        w.ready_at = w.ready_len = 0
    while True:
        tick = next_unit(w, 0, w.cursor)
        if w.upper_next <= target and w.upper_next <= tick:
            w.cursor = w.upper_next - 1
            if w.ready_len == 0:
                open_upper(w)
                return 0
            break  # all ready entries are due before the upper slot
        if tick > target:
            w.cursor = target
            break
        if not packing:
            w.cursor = tick
            drain(w, <int32_t>(tick & SLOT_MASK), INT64_MAX)
            continue
        if w.ready_len == 0:
            first = tick
            w.ready_base = tick << w.shift
        elif tick - first >= reach or w.ready_len >= BATCH_MAX:
            break
        pack(w, <int32_t>(tick & SLOT_MASK), 0)
        w.cursor = tick
    if packing:
        sort_packed(w.ready, w.scratch, w.ready_len)
    return 0


cdef int expire(Wheel *w, int64_t now, int64_t limit) except -1 nogil:
    """Move due entries from ``ready`` and ``near`` to ``out``, in order."""
    cdef int64_t deadline
    cdef int32_t key
    cdef bint from_near
    cdef Timer *timer
    grow(<void **>&w.out, &w.out_size, w.out_len + w.near_len + w.ready_len - w.ready_at, sizeof(int32_t))
    while w.out_len < limit:
        from_near = False
        if w.ready_at < w.ready_len:
            deadline = w.ready_base + <int64_t>(w.ready[w.ready_at] >> KEY_BITS)
            key = <int32_t>(w.ready[w.ready_at] & (KEY_LIMIT - 1))
            if w.ready_at + 8 < w.ready_len:
                prefetch(&w.timers[w.ready[w.ready_at + 8] & (KEY_LIMIT - 1)])
            if w.near_len:
                from_near = w.near[0].deadline < deadline or (w.near[0].deadline == deadline and w.near[0].key < key)
        elif w.near_len:
            from_near = True
        else:
            break
        if from_near:
            deadline = w.near[0].deadline
            key = <int32_t>w.near[0].key
        if deadline > now:
            break
        timer = &w.timers[key]
        reserve(w, 1)
        if from_near:
            near_pop(w)
        else:
            w.ready_at += 1
        if timer.filed != (NEAR if from_near else READY):
            continue
        timer.filed = NOWHERE
        if not timer.live:
            continue
        if timer.deadline > deadline:
            place(w, key, timer.deadline)
            continue
        timer.live = 0
        w.live -= 1
        w.out[w.out_len] = key
        w.out_len += 1
    return 0


cdef int run(Wheel *w, int64_t now, int64_t limit) except -1 nogil:
    cdef int64_t target = now >> w.shift
    cdef int64_t start = w.cursor
    cdef int64_t tick_mask = (<int64_t>1 << w.shift) - 1
    w.out_len = 0
    w.last_now = now
    while True:
        expire(w, min(now, (w.cursor << w.shift) | tick_mask), limit)
        if w.out_len >= limit or w.cursor >= target:
            break
        open_ticks(w, target)
    if w.cursor > start:
        drain_ahead(w, w.cursor - start)
    return 0


cdef int64_t earliest_in(Wheel *w, int32_t number) noexcept nogil:
    cdef int64_t best = INT64_MAX
    cdef int32_t at = w.slots[number].top
    cdef int32_t used = (w.slots[number].count - 1) % CHUNK_KEYS + 1
    cdef Chunk *chunk
    cdef int i
    while at >= 0:
        chunk = &w.chunks[at]
        for i in range(used):
            if w.timers[chunk.keys[i]].filed == number and w.timers[chunk.keys[i]].live:
                best = min(best, w.timers[chunk.keys[i]].deadline)
        at = chunk.below
        used = CHUNK_KEYS
    return best


cdef int64_t earliest(Wheel *w) noexcept nogil:
    """A time not later than the earliest live deadline; exact unless the slot that holds it is large."""
    cdef int64_t best = INT64_MAX
    cdef int64_t unit, after, found
    cdef int32_t number, key
    cdef int level, lift
    while w.near_len:
        key = <int32_t>w.near[0].key
        if w.timers[key].filed == NEAR and w.timers[key].live:
            best = w.near[0].deadline
            break
        if w.timers[key].filed == NEAR:
            w.timers[key].filed = NOWHERE
        near_pop(w)
    while w.ready_at < w.ready_len:
        key = <int32_t>(w.ready[w.ready_at] & (KEY_LIMIT - 1))
        if w.timers[key].filed == READY and w.timers[key].live:
            best = min(best, w.ready_base + <int64_t>(w.ready[w.ready_at] >> KEY_BITS))
            break
        if w.timers[key].filed == READY:
            w.timers[key].filed = NOWHERE
        w.ready_at += 1
    for level in range(w.levels):
        lift = level * LEVEL_BITS
        unit = next_unit(w, level, w.cursor >> lift)
        if unit == INT64_MAX or (unit << lift) > (best >> w.shift):
            continue
        number = <int32_t>((level << SLOT_BITS) | (unit & SLOT_MASK))
        if w.slots[number].count > LOOK_MAX:
            best = min(best, unit << (lift + w.shift))
            continue
        found = earliest_in(w, number)
        after = next_unit(w, level, unit)
        if after - (w.cursor >> lift) < SLOTS:  # else it is the same slot, or none
            found = min(found, after << (lift + w.shift))
        best = min(best, found)
    return best


cdef int take_keys(Wheel *w, const int64_t *keys, const int64_t *deadlines, int64_t count) except -1 nogil:
    cdef int64_t i, key
    grow_chunks(w, count // CHUNK_KEYS)
    for i in range(count):
        if i + 16 < count:
            key = keys[i + 16]
            if 0 <= key < w.capacity:
                prefetch(&w.timers[key])
        key = keys[i]
        if not 0 <= key < w.capacity:
            return changed_meanwhile()
        set_timer(w, <int32_t>key, deadlines[i])
    return keep_tidy(w)


cdef int64_t drop_keys(Wheel *w, const int64_t *keys, int64_t count) noexcept nogil:
    cdef int64_t i, key
    cdef int64_t dropped = 0
    for i in range(count):
        key = keys[i]
        if 0 <= key < w.capacity:
            dropped += w.timers[key].live
            w.timers[key].live = 0
    w.live -= dropped
    return dropped


cdef int changed_meanwhile() except -1 nogil:
    with gil:
        raise RuntimeError("the keys were changed by another thread during the call")


# --- arguments ---

cdef int64_t as_key(object value) except -1:
    cdef int overflow = 0
    cdef int64_t key = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    if overflow or key < 0 or key >= KEY_LIMIT:
        raise ValueError(f"key {value!r} is not in 0..{KEY_LIMIT - 1}")
    return key


cdef inline int64_t as_time(object value) except? -1:
    """A float is refused: it would lose nanoseconds."""
    return PyLong_AsLongLong(PyNumber_Index(value))


cdef int64_t highest_key(const int64_t *keys, int64_t count) noexcept nogil:
    """-1 for no keys, KEY_LIMIT for one that is out of range."""
    cdef uint64_t seen = 0
    cdef int64_t highest = -1
    cdef int64_t i
    for i in range(count):
        seen |= <uint64_t>keys[i]
        highest = max(highest, keys[i])
    return KEY_LIMIT if seen >> 63 or highest >= KEY_LIMIT else highest


cdef class TimerWheel:
    """``TimerWheel(now_ns, tick_ns=1_000_000)``: deadlines in int64 nanoseconds of the caller's clock, keys small ints.

    ``tick_ns`` (1 to 1_000_000_000) is the width of the finest slots, rounded up to a power of two of at least 1024 ns;
    it affects speed, never which keys are due. Keys are 0..2**26 - 1 and index an array, so dense ones are cheap.

    ValueError: a key or ``tick_ns`` out of range. OverflowError: a time outside int64. TypeError: not an integer.
    """

    cdef Wheel w
    cdef bint busy  # a kernel runs without the GIL

    def __cinit__(self, now_ns, tick_ns=1_000_000):
        cdef int64_t now = as_time(now_ns)
        cdef int64_t tick
        tick_ns = PyNumber_Index(tick_ns)
        if not 1 <= tick_ns <= 1_000_000_000:
            raise ValueError(f"tick_ns {tick_ns!r} is not in 1..1_000_000_000")
        tick = tick_ns
        memset(&self.w, 0, sizeof(Wheel))
        self.w.shift = SHIFT_MIN
        while self.w.shift < SHIFT_MAX and (<int64_t>1 << self.w.shift) < tick:
            self.w.shift += 1
        self.w.levels = (64 - self.w.shift + LEVEL_BITS - 1) // LEVEL_BITS
        assert self.w.levels <= LEVELS_MAX
        self.w.slots = <Slot *>PyMem_RawMalloc(<size_t>(self.w.levels * SLOTS) * sizeof(Slot))
        self.w.bits = <uint64_t *>PyMem_RawCalloc(<size_t>(self.w.levels * WORDS), sizeof(uint64_t))
        if self.w.slots == NULL or self.w.bits == NULL:
            raise MemoryError
        clear_slots(&self.w)
        self.w.free_top = -1
        self.w.last_now = now
        self.w.cursor = now >> self.w.shift

    def __dealloc__(self):
        free(self.w.timers)
        PyMem_RawFree(self.w.slots)
        PyMem_RawFree(self.w.bits)
        free(self.w.chunks)
        free(self.w.ready)
        free(self.w.scratch)
        free(self.w.near)
        free(self.w.out)

    cdef inline int enter(self) except -1:
        if self.busy:
            raise RuntimeError("this TimerWheel is in use by another thread")
        return 0

    def schedule(self, key, deadline_ns):
        """Insert ``key`` or move it to ``deadline_ns``, earlier or later, past or future."""
        cdef int64_t deadline = as_time(deadline_ns)
        cdef int64_t number = as_key(key)
        self.enter()
        grow_timers(&self.w, number + 1)
        set_timer(&self.w, <int32_t>number, deadline)
        keep_tidy(&self.w)

    def schedule_many(self, keys, deadlines):
        """``schedule`` for each pair of two int64 buffers of one length, in order; nothing is changed on ValueError."""
        cdef Py_buffer key_view, deadline_view
        cdef int64_t count, highest
        self.enter()
        take_buffer(keys, &key_view, False, False)
        try:
            take_buffer(deadlines, &deadline_view, False, False)
            try:
                count = key_view.shape[0]
                if count != deadline_view.shape[0]:
                    raise ValueError(f"{count} keys but {deadline_view.shape[0]} deadlines")
                highest = highest_key(<const int64_t *>key_view.buf, count)
                if highest >= KEY_LIMIT:
                    raise ValueError(f"a key is not in 0..{KEY_LIMIT - 1}")
                grow_timers(&self.w, highest + 1)
                self.busy = True
                try:
                    with nogil:
                        take_keys(&self.w, <const int64_t *>key_view.buf, <const int64_t *>deadline_view.buf, count)
                finally:
                    self.busy = False
            finally:
                PyBuffer_Release(&deadline_view)
        finally:
            PyBuffer_Release(&key_view)

    def cancel(self, key):
        """Forget ``key``; False if it was not scheduled."""
        cdef int64_t number = as_key(key)
        cdef int64_t dropped
        self.enter()
        dropped = drop_keys(&self.w, &number, 1)
        keep_tidy(&self.w)
        return dropped == 1

    def cancel_many(self, keys):
        """Forget the keys of an int64 buffer; returns how many were scheduled. Nothing is changed on ValueError."""
        cdef Py_buffer view
        cdef int64_t dropped
        self.enter()
        take_buffer(keys, &view, False, False)
        try:
            if highest_key(<const int64_t *>view.buf, view.shape[0]) >= KEY_LIMIT:
                raise ValueError(f"a key is not in 0..{KEY_LIMIT - 1}")
            self.busy = True
            try:
                with nogil:
                    dropped = drop_keys(&self.w, <const int64_t *>view.buf, view.shape[0])
                    keep_tidy(&self.w)
            finally:
                self.busy = False
            return dropped
        finally:
            PyBuffer_Release(&view)

    def advance(self, now_ns, limit=None):
        """Remove and return every key whose deadline is at or before ``now_ns``, by deadline, then key.

        At most ``limit`` of them, the earliest, if given; the rest stay due. ``now_ns`` may be less than it was before.
        """
        cdef int64_t now = as_time(now_ns)
        cdef int64_t most = INT64_MAX
        cdef int64_t i
        cdef list due
        cdef object number
        if limit is not None:
            limit = PyNumber_Index(limit)
            if limit < 0:
                raise ValueError(f"limit {limit!r} is negative")
            if limit < INT64_MAX:
                most = limit
        self.enter()
        if ((now >> self.w.shift) ^ self.w.cursor) >> LEVEL_BITS or self.w.ready_len - self.w.ready_at > GIL_MAX:
            self.busy = True
            try:
                with nogil:
                    run(&self.w, now, most)
            finally:
                self.busy = False
        else:  # releasing the GIL would cost more than the work
            run(&self.w, now, most)
        try:
            due = PyList_New(self.w.out_len)
            for i in range(self.w.out_len):
                number = PyLong_FromLong(self.w.out[i])
                Py_INCREF(number)
                PyList_SET_ITEM(due, i, number)
        except MemoryError:
            for i in range(self.w.out_len):  # none is lost: they are due again at the next call
                set_timer(&self.w, self.w.out[i], self.w.timers[self.w.out[i]].deadline)
            raise
        return due

    def next_deadline(self):
        """When to call ``advance`` next: never later than the earliest deadline, mostly exact; None when empty."""
        self.enter()
        if self.w.live == 0:
            return None
        return earliest(&self.w)

    def deadline(self, key):
        """The deadline of ``key``, None if it is not scheduled."""
        cdef int64_t number = as_key(key)
        if number >= self.w.capacity or not self.w.timers[number].live:
            return None
        return self.w.timers[number].deadline

    def __len__(self):
        return self.w.live

    def __contains__(self, key):
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(PyNumber_Index(key), &overflow)
        return not overflow and 0 <= number < self.w.capacity and self.w.timers[number].live == 1
