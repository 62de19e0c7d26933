/* Reading a whole heap: statistics, and the invariants as code. */
#include "heap.h"

/* Counts the live and the remote-freed blocks among the state bytes of a slab. */
static void count_states(const heap *h, u32 slab, u32 *live, u32 *remote_freed) {
    const u64 *words = (const u64 *)first_state(h, slab);
    for (u32 i = 0; i < GRANULES_PER_SLAB / 8; i++) {
        u64 word = plain_load(&words[i]);
        if (word == 0) continue;
        *live += (u32)__builtin_popcountll(word & EACH_BYTE(STATE_LIVE));
        *remote_freed += (u32)__builtin_popcountll(word & EACH_BYTE(STATE_REMOTE_FREED));
    }
}

/* Leaves the statistics in the exchange buffer, STATISTICS_WORDS words of 64 bits. While other processes work they are near the
 * truth, and exact when nobody does. */
u32 EXPORT(statistics)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    u64 *words = (u64 *)exchange;
    clear_words(words, STATISTICS_WORDS);
    words[STATISTICS_CAPACITY_SLABS] = h->slabs;
    for (u32 slab = 0, free_run = 0; slab < h->slabs; slab++) {
        descriptor *d = descriptor_at(h, slab);
        u32 owner = plain_load(&d->owner), class = plain_load(&d->class), live = 0;
        free_run = owner == OWNER_NOBODY ? free_run + 1 : 0;
        if (free_run > words[STATISTICS_LARGEST_FREE_SLABS]) words[STATISTICS_LARGEST_FREE_SLABS] = free_run;
        words[STATISTICS_FREE_SLABS] += owner == OWNER_NOBODY;
        words[STATISTICS_ADOPTED_SLABS] += owner == OWNER_COORDINATOR;
        words[STATISTICS_OWN_SLABS] += owner == h->owner;
        words[STATISTICS_OWN_UNUSED_SLABS] += owner == h->owner && class == CLASS_UNUSED;
        if (owner == OWNER_NOBODY || class == CLASS_UNUSED || class > CLASS_LARGE) continue;
        u32 remote_freed = 0;
        count_states(h, slab, &live, &remote_freed);
        u64 bytes = (u64)live * (class == CLASS_LARGE ? plain_load(&d->run) * (u64)SLAB_SIZE : class_size(class));
        words[STATISTICS_LIVE_BLOCKS] += live;
        words[STATISTICS_LIVE_BYTES] += bytes;
        words[STATISTICS_REMOTE_FREED_BLOCKS] += remote_freed;
        if (class == CLASS_LARGE) words[STATISTICS_LARGE_BLOCKS] += live;
        if (owner != h->owner) continue;
        words[STATISTICS_OWN_LIVE_BLOCKS] += live;
        words[STATISTICS_OWN_LIVE_BYTES] += bytes;
    }
    return STATUS_OK;
}

static u32 broken(u32 code, u32 slab, u32 offset) {
    exchange[0] = slab;
    exchange[1] = offset;
    return code;
}

/* The states of a slab in which a block may start at every multiple of `step` granules, below `end`. */
static u32 verify_states(const heap *h, u32 slab, u32 step, u32 end) {
    const u64 *words = (const u64 *)first_state(h, slab);
    for (u32 i = 0; i < GRANULES_PER_SLAB / 8; i++) {
        u64 word = plain_load(&words[i]);
        for (u32 k = 0; word != 0; k++, word >>= 8) {
            u32 granule = 8 * i + k, state = (u32)word & 0xff, offset = slab * SLAB_SIZE + granule * GRANULE;
            if (state > STATE_REMOTE_FREED) return broken(BROKEN_STATE_VALUE, slab, offset);
            if (state == STATE_FREE) continue;
            if (end == 0) return broken(BROKEN_UNUSED_SLAB, slab, offset);
            if (granule % step != 0 || granule + step > end) return broken(BROKEN_STATE_PLACE, slab, offset);
        }
    }
    return 0;
}

/* A run's length, its slabs and their states. */
static u32 verify_run(const heap *h, u32 first) {
    descriptor *head = descriptor_at(h, first);
    u32 count = plain_load(&head->run), owner = plain_load(&head->owner);
    if (count == 0 || count > h->slabs - first) return broken(BROKEN_RUN_LENGTH, first, first * SLAB_SIZE);
    u32 code = verify_states(h, first, GRANULES_PER_SLAB, GRANULES_PER_SLAB);
    for (u32 slab = first + 1; slab < first + count && !code; slab++) {
        descriptor *d = descriptor_at(h, slab);
        if (plain_load(&d->owner) != owner || plain_load(&d->class) != CLASS_LARGE_BODY) {
            return broken(BROKEN_RUN_BODY, slab, slab * SLAB_SIZE);
        }
        code = verify_states(h, slab, 1, 0);
    }
    return code;
}

static u32 verify_slab(const heap *h, u32 slab) {
    descriptor *d = descriptor_at(h, slab);
    u32 class = plain_load(&d->class), owner = plain_load(&d->owner);
    if (owner == OWNER_NOBODY && class != CLASS_UNUSED) return broken(BROKEN_FREE_SLAB, slab, slab * SLAB_SIZE);
    if (class > CLASS_GIVEN_UP) return broken(BROKEN_CLASS, slab, slab * SLAB_SIZE);
    if (class == CLASS_LARGE) return verify_run(h, slab);
    if (class == CLASS_UNUSED || class > CLASS_LARGE) return plain_load(&d->reserved) ? verify_states(h, slab, 1, 0) : 0;
    u32 step = class_size(class) / GRANULE;
    return verify_states(h, slab, step, GRANULES_PER_SLAB);
}

/* The links of one ring of this process; every slab of it has the ring's class and this owner. */
static u32 verify_ring(const heap *h, u32 class) {
    const ring *r = &h->rings[class];
    u32 slab = r->cursor, seen = 0;
    while (slab != NO_SLAB && seen < r->count) {
        if (slab >= h->slabs) return broken(BROKEN_RING, slab, 0);
        descriptor *d = descriptor_at(h, slab);
        u32 next = plain_load(&d->next);
        if (plain_load(&d->owner) != h->owner || plain_load(&d->class) != class) return broken(BROKEN_RING, slab, slab * SLAB_SIZE);
        if (next >= h->slabs || h->classes[slab] != fast_class(class)) return broken(BROKEN_RING, slab, slab * SLAB_SIZE);
        if (plain_load(&descriptor_at(h, next)->previous) != slab) return broken(BROKEN_RING, slab, slab * SLAB_SIZE);
        seen++;
        slab = next;
    }
    return slab == r->cursor && seen == r->count ? 0 : broken(BROKEN_RING_COUNT, slab, 0);
}

/* True if the state's address was not yet in the exchange buffer, used as a hash set that is never a quarter full. */
static u32 first_seen(u32 key) {
    u32 words = EXCHANGE_SIZE / 4, i = key * 2654435761u % words;
    for (; exchange[i] != 0; i = (i + 1) % words) {
        if (exchange[i] == key) return 0;
    }
    exchange[i] = key;
    return 1;
}

static u32 verify_stack(const heap *h, u32 class) {
    const stack *s = &h->stacks[class];
    if (s->top == h->bases[class]) return 0;
    u32 step = class_size(class) / GRANULE;
    clear_words((u64 *)exchange, EXCHANGE_SIZE / 8);
    for (u8 **entry = h->bases[class]; entry < s->top; entry++) {
        size_t granule = (size_t)(*entry - h->front.states);
        u32 slab = (u32)(granule / GRANULES_PER_SLAB), inside = granule % GRANULES_PER_SLAB;
        u32 offset = (u32)granule * GRANULE;
        if (granule >= (size_t)h->slabs * GRANULES_PER_SLAB || inside % step != 0) return broken(BROKEN_STACK_PLACE, slab, offset);
        descriptor *d = descriptor_at(h, slab);
        if (plain_load(&d->owner) != h->owner || plain_load(&d->class) != class) return broken(BROKEN_STACK_PLACE, slab, offset);
        if (plain_load(*entry) != STATE_FREE) return broken(BROKEN_STACK_STATE, slab, offset);
        if (!first_seen((u32)granule + 1)) return broken(BROKEN_STACK_TWICE, slab, offset);
    }
    return 0;
}

static u32 verify_run_cache(const heap *h) {
    u32 slabs = 0;
    for (u32 i = 0; i < h->cached_runs; i++) {
        u32 first = h->runs[i].first, count = h->runs[i].count;
        if (first >= h->slabs) return broken(BROKEN_RUN_CACHE, first, 0);
        descriptor *d = descriptor_at(h, first);
        u32 is_run = plain_load(&d->owner) == h->owner && plain_load(&d->class) == CLASS_LARGE && plain_load(&d->run) == count;
        if (!is_run || plain_load(first_state(h, first)) != STATE_FREE) return broken(BROKEN_RUN_CACHE, first, first * SLAB_SIZE);
        slabs += count;
    }
    return slabs == h->cached_slabs ? 0 : broken(BROKEN_RUN_CACHE, 0, 0);
}

/* 0 if every invariant of the segment and of this process's private state holds, else what is broken, with slab and offset in
 * the exchange buffer. The slabs of other processes are judged fairly only while these do not change their classes. */
u32 EXPORT(verify)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL || h->header->magic != HEADER_MAGIC || h->header->version != LAYOUT_VERSION || h->header->slabs != h->slabs) {
        return broken(BROKEN_HEADER, 0, 0);
    }
    u32 code = 0;
    for (u32 slab = 0; slab < h->slabs && !code;) {
        code = verify_slab(h, slab);
        slab += plain_load(&descriptor_at(h, slab)->class) == CLASS_LARGE && !code ? plain_load(&descriptor_at(h, slab)->run) : 1;
    }
    if (h->interrupted) return code; /* what is private is known to be incomplete, until the next trim */
    for (u32 class = 0; class < RINGS && !code; class++) code = verify_ring(h, class);
    for (u32 class = 1; class <= SIZE_CLASSES && !code; class++) code = verify_stack(h, class);
    return code ? code : verify_run_cache(h);
}
