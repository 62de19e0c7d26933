/* The slow path: how a process finds free blocks in its slabs, gets slabs into use and out of it. Only an owner runs this. */
#include "heap.h"

/* The size of a block of a size class. */
u32 class_size(u32 class) {
    if (class <= LINEAR_CLASSES) return class * GRANULE;
    u32 step = (class - LINEAR_CLASSES - 1) % 8 + 1, doubling = (class - LINEAR_CLASSES - 1) / 8;
    return (LINEAR_CLASSES * GRANULE + step * GRANULE) << doubling;
}

/* True if a block of the slab is live. Only the owner makes blocks live, so for it a "no" stays true. */
u32 slab_has_live(const heap *h, u32 slab) {
    u64 *words = (u64 *)first_state(h, slab);
    for (u32 i = 0; i < GRANULES_PER_SLAB / 8; i++) {
        /* Pairs with the compare-and-swap of a remote free: who reads STATE_REMOTE_FREED also sees all that the freeing process
         * did to the block before, and may reuse its bytes. */
        if (__atomic_load_n(&words[i], __ATOMIC_SEQ_CST) & EACH_BYTE(STATE_LIVE)) return 1;
    }
    return 0;
}

/* Makes every block of a slab without live blocks free. */
void clear_states(const heap *h, u32 slab) {
    u64 *words = (u64 *)first_state(h, slab);
    for (u32 i = 0; i < GRANULES_PER_SLAB / 8; i++) {
        if (plain_load(&words[i])) plain_store(&words[i], 0);
    }
}

/* Pushes the free blocks that start in one line of states, highest first, so that malloc hands out the lowest first. */
static void collect_line(const heap *h, stack *s, u32 slab, u32 line, u32 step) {
    u8 *states = first_state(h, slab);
    u32 end = (line + 1) * LINE_GRANULES, blocks = GRANULES_PER_SLAB / step;
    u32 block = (end + step - 1) / step; /* one past the last block that starts in the line */
    if (block > blocks) block = blocks;
    while (block > 0 && (block - 1) * step >= line * LINE_GRANULES) {
        block--;
        u8 *state = states + (size_t)block * step;
        /* Pairs with the compare-and-swap of a remote free, as in slab_has_live. */
        u8 value = __atomic_load_n(state, __ATOMIC_SEQ_CST);
        if (value == STATE_LIVE) continue;
        if (value == STATE_REMOTE_FREED) plain_store(state, STATE_FREE); /* nobody else changes a remote-freed state */
        push(s, state);
    }
}

/* Pushes the free blocks of a slab that lie under its dirty bits. The stack must have room for a whole slab. */
static void collect_slab(heap *h, u32 class, u32 slab) {
    descriptor *d = descriptor_at(h, slab);
    if (plain_load(&d->dirty) == 0) return;
    /* Takes all bits at once, before the states are read. A remote free changes the state, then looks at the bit (both SEQ_CST):
     * either this read of the state sees its change, or it sees the cleared bit and sets it again. A remote free is therefore
     * never missed. If we die here the bits are lost with us; whoever gets the slab next sets them all. */
    u64 dirty = __atomic_exchange_n(&d->dirty, 0, __ATOMIC_SEQ_CST);
    u32 step = class_size(class) / GRANULE;
    while (dirty) {
        u32 line = 63 - (u32)__builtin_clzll(dirty);
        dirty &= ~((u64)1 << line);
        collect_line(h, &h->stacks[class], slab, line, step);
    }
}

/* Sweeps up to `bound` slabs of the class's ring from the cursor, until the stack has no room for another slab.
 * The stack must be empty: then no block in it can be pushed twice. True if it is not empty any more. */
u32 collect(heap *h, u32 class, u32 bound) {
    ring *r = &h->rings[class];
    stack *s = &h->stacks[class];
    u32 blocks = SLAB_SIZE / class_size(class);
    if (bound > r->count) bound = r->count;
    h->interrupted++;
    for (; bound > 0 && (size_t)(s->limit - s->top) >= blocks; bound--) {
        u32 slab = r->cursor;
        r->cursor = plain_load(&descriptor_at(h, slab)->next);
        collect_slab(h, class, slab);
    }
    h->interrupted--;
    return s->top[-1] != NULL;
}

/* Gives an unused slab to a class, with the ring's cursor on it. */
static void use_slab(heap *h, u32 class, u32 slab) {
    descriptor *d = descriptor_at(h, slab);
    plain_store(&d->dirty, ALL_DIRTY); /* formatting is sweeping: every block is free and to be found */
    ring_unlink(h, CLASS_UNUSED, slab);
    ring_link(h, class, slab);
    plain_store(&d->class, class);
}

/* Takes one of the unused slabs for the class; its blocks are in the stack. False if there is none. */
u32 take_unused(heap *h, u32 class) {
    if (h->rings[CLASS_UNUSED].count == 0) return 0;
    use_slab(h, class, h->rings[CLASS_UNUSED].cursor);
    return collect(h, class, 1);
}

/* Dissolves a run that is in the ring of runs and holds no live block into unused slabs. */
static void retire_run(heap *h, u32 first) {
    descriptor *head = descriptor_at(h, first);
    u32 count = plain_load(&head->run);
    ring_unlink(h, CLASS_LARGE, first);
    plain_store(first_state(h, first), STATE_FREE); /* it may be remote-freed */
    plain_store(&head->class, CLASS_UNUSED);        /* the commit: from here on all its slabs count as unused */
    for (u32 slab = first + count; slab-- > first;) {
        plain_store(&descriptor_at(h, slab)->class, CLASS_UNUSED);
        ring_link(h, CLASS_UNUSED, slab);
    }
    h->release_due = h->rings[CLASS_UNUSED].count > KEPT_UNUSED;
}

static void forget_cached_run(heap *h, u32 index) {
    h->cached_slabs -= h->runs[index].count;
    h->cached_runs--;
    for (u32 i = index; i < h->cached_runs; i++) h->runs[i] = h->runs[i + 1];
}

static void retire_oldest_run(heap *h) {
    u32 oldest = h->runs[0].first;
    forget_cached_run(h, 0);
    retire_run(h, oldest);
}

INLINE void cache_run(heap *h, u32 first, u32 count) {
    h->runs[h->cached_runs] = (range){first, count};
    h->cached_runs++;
    h->cached_slabs += count;
}

/* Puts a free run of this process into the cache, and retires the oldest ones where that makes it too large. The caller has
 * `interrupted` set from before the run became free. */
void keep_run(heap *h, u32 first) {
    u32 count = plain_load(&descriptor_at(h, first)->run);
    while (h->cached_runs > 0 && (h->cached_runs >= CACHED_RUNS || h->cached_slabs + count > h->slabs / CACHED_FRACTION)) {
        retire_oldest_run(h);
    }
    if (count > h->slabs / CACHED_FRACTION) {
        retire_run(h, first);
    } else {
        cache_run(h, first, count);
    }
}

/* Takes the best fit among the cached runs, wasting at most one part in eight. Null if none fits. */
u8 *take_run(heap *h, u32 slabs) {
    u32 best = CACHED_RUNS;
    for (u32 i = 0; i < h->cached_runs; i++) {
        u32 count = h->runs[i].count;
        if (count < slabs || count - slabs > slabs / 8) continue;
        if (best == CACHED_RUNS || count < h->runs[best].count) best = i;
    }
    if (best == CACHED_RUNS) return NULL;
    u8 *state = first_state(h, h->runs[best].first);
    forget_cached_run(h, best);
    return state;
}

/* Looks at up to `bound` runs of this process and caches those that other processes freed. True if it found one. */
u32 collect_runs(heap *h, u32 bound) {
    ring *r = &h->rings[CLASS_LARGE];
    u32 found = 0;
    if (bound > r->count) bound = r->count;
    h->interrupted++;
    for (; bound > 0 && r->count > 0; bound--) {
        u32 slab = r->cursor;
        descriptor *d = descriptor_at(h, slab);
        r->cursor = plain_load(&d->next);
        if (plain_load(&d->dirty) == 0) continue;
        __atomic_exchange_n(&d->dirty, 0, __ATOMIC_SEQ_CST); /* before the state is read, as in collect_slab */
        u8 *state = first_state(h, slab);
        if (__atomic_load_n(state, __ATOMIC_SEQ_CST) != STATE_REMOTE_FREED) continue;
        plain_store(state, STATE_FREE);
        keep_run(h, slab);
        found = 1;
    }
    h->interrupted--;
    return found;
}

/* Forgets the class's stack; moves its slabs without live blocks to the unused ones, and marks all others dirty. */
static void trim_class(heap *h, u32 class) {
    ring *r = &h->rings[class];
    h->stacks[class].top = h->bases[class];
    for (u32 left = r->count; left > 0; left--) {
        u32 slab = r->cursor;
        descriptor *d = descriptor_at(h, slab);
        r->cursor = plain_load(&d->next);
        if (slab_has_live(h, slab)) {
            /* All bits, so a bit that a remote free sets at this moment is not lost. */
            __atomic_store_n(&d->dirty, ALL_DIRTY, __ATOMIC_SEQ_CST);
            continue;
        }
        clear_states(h, slab);
        plain_store(&d->class, CLASS_UNUSED);
        ring_unlink(h, class, slab);
        ring_link(h, CLASS_UNUSED, slab);
    }
}

static void trim_runs(heap *h) {
    ring *r = &h->rings[CLASS_LARGE];
    h->cached_runs = h->cached_slabs = 0;
    for (u32 left = r->count; left > 0; left--) {
        u32 slab = r->cursor;
        r->cursor = plain_load(&descriptor_at(h, slab)->next);
        if (__atomic_load_n(first_state(h, slab), __ATOMIC_SEQ_CST) != STATE_LIVE) retire_run(h, slab);
    }
}

/* Puts every slab of this process into its ring again, after an interruption may have left one in none. */
static void rebuild_rings(heap *h) {
    for (u32 class = 0; class < RINGS; class++) h->rings[class] = (ring){NO_SLAB, 0};
    clear_classes(h);
    h->owned = 0;
    for (u32 slab = 0, count; slab < h->slabs; slab += count) {
        descriptor *d = descriptor_at(h, slab);
        u32 class = plain_load(&d->class);
        count = 1;
        if (plain_load(&d->owner) != h->owner) continue;
        if (class == CLASS_GIVEN_UP && plain_load(&d->next) != h->release_round) continue;
        if (class == CLASS_LARGE) count = plain_load(&d->run);
        /* No run covers it, or its release was interrupted before the host heard of it. */
        if (class > CLASS_LARGE) plain_store(&d->class, class = CLASS_UNUSED);
        h->owned += count;
        ring_link(h, class, slab);
    }
}

/* Makes every slab without live blocks unused, and whatever an interruption lost findable again. */
void trim_heap(heap *h) {
    u32 lost = h->interrupted;
    h->interrupted = 1;
    if (lost) rebuild_rings(h);
    for (u32 class = 1; class <= SIZE_CLASSES; class++) trim_class(h, class);
    trim_runs(h);
    u32 unused = h->rings[CLASS_UNUSED].count;
    h->owned_trimmed = h->owned - unused;
    h->release_due = unused > KEPT_UNUSED;
    h->failures = h->interrupted = 0;
}

/* True when this process has twice the slabs that it needed after the last trim: so a trim's cost is spread over that growth. */
u32 trim_is_due(const heap *h) {
    return h->interrupted || (h->owned >= TRIM_MINIMUM && h->owned >= 2 * h->owned_trimmed);
}

/* Gives up all unused slabs but `keep`; the exchange buffer holds them as pairs (first, count). Returns how many pairs.
 * The coordinator must then release them. */
u32 released_ranges(heap *h, u32 keep) {
    range *ranges = (range *)exchange;
    u32 found = 0;
    ring *r = &h->rings[CLASS_UNUSED];
    h->interrupted++;
    while (r->count > keep) {
        u32 slab = r->cursor;
        u32 extends = found > 0 && ranges[found - 1].first + ranges[found - 1].count == slab;
        if (!extends && found == EXCHANGE_SIZE / sizeof(range)) break; /* full; the caller comes again */
        ring_unlink(h, CLASS_UNUSED, slab);
        plain_store(&descriptor_at(h, slab)->next, h->release_round);
        plain_store(&descriptor_at(h, slab)->class, CLASS_GIVEN_UP);
        h->owned--;
        if (extends) {
            ranges[found - 1].count++;
        } else {
            ranges[found] = (range){slab, 1};
            found++;
        }
    }
    h->interrupted--;
    h->release_due = 0;
    h->release_round++; /* from here to the host there is no interruption */
    /* What is given up may be leased again: the coordinator sees the release before it sees the next request. */
    if (found) h->refused_slabs = NO_SLAB;
    return found;
}

static void install_run(heap *h, u32 first, u32 count) {
    for (u32 slab = first + 1; slab < first + count; slab++) plain_store(&descriptor_at(h, slab)->class, CLASS_LARGE_BODY);
    descriptor *head = descriptor_at(h, first);
    plain_store(&head->run, count);
    plain_store(&head->class, CLASS_LARGE); /* the commit */
    ring_link(h, CLASS_LARGE, first);
    /* The malloc that asked for it takes it at once, so the bounds of the cache wait until it is freed. */
    if (h->cached_runs == CACHED_RUNS + 1) retire_oldest_run(h);
    cache_run(h, first, count);
}

/* Takes over slabs that the coordinator has assigned to this process. */
u32 install_range(heap *h, u32 class, u32 first, u32 count, u32 adopted) {
    if (count == 0 || first >= h->slabs || count > h->slabs - first) return STATUS_BAD_ARGUMENT;
    for (u32 slab = first; slab < first + count; slab++) {
        descriptor *d = descriptor_at(h, slab);
        u32 had = plain_load(&d->class);
        if (plain_load(&d->owner) != h->owner || (adopted ? had == 0 || had > SIZE_CLASSES : had != 0)) return STATUS_BAD_ARGUMENT;
    }
    h->interrupted++;
    h->owned += count;
    if (class == CLASS_LARGE) {
        install_run(h, first, count);
    } else {
        for (u32 slab = first + count; slab-- > first;) {
            /* Of an adopted slab all bits: the dead owner's private stacks died with it. */
            __atomic_store_n(&descriptor_at(h, slab)->dirty, ALL_DIRTY, __ATOMIC_SEQ_CST);
            ring_link(h, plain_load(&descriptor_at(h, slab)->class), slab);
        }
    }
    h->interrupted--;
    return STATUS_OK;
}
