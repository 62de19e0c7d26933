/* malloc and free: the fast path, and its entry points for guests and for the host. */
#include "chain.h"

INLINE u8 *pop(stack *s) {
    u8 *state = s->top[-1];
    if (LIKELY(state != NULL)) s->top--;
    return state;
}

/* Commits a block to the caller. Its entry is off the stack already, so no state of this process claims it twice.
 * Nobody else looks at a free block's state but the coordinator after our death; if we die before this store, the block is free,
 * and after it, it is live and nobody's: recovery keeps or frees it as the heap says. */
INLINE u32 commit(const front *f, u8 *state) {
    plain_store(state, STATE_LIVE);
    /* Wraps around, which is right in WebAssembly, and natively too: only differences of pointers survive. */
    return (u32)((uintptr_t)state << GRANULE_SHIFT) + f->bias;
}

/* A small block off its class's stack, or null. A size that is not small takes from the stack that is always empty: one branch less. */
INLINE u8 *take_fast(stack *stacks, u32 size) {
    u32 granules = size <= MAXIMUM_SMALL ? (size + GRANULE - 1) / GRANULE : 0;
    return pop(&stacks[class_of_granules[granules]]);
}

/* Lets the owner of a block that was just freed find it. Looks before it writes, to leave the line to the others.
 * Atomic, as everybody sets bits. The load pairs with the exchange in collect_slab: a bit that is read as set will be cleared
 * later, and only then are the states read. By now the slab may even have another owner; then the bit is a false hint, and harmless. */
INLINE void mark_dirty(descriptor *d, u32 granule) {
    u64 bit = (u64)1 << (granule / LINE_GRANULES % 64);
    if (!(__atomic_load_n(&d->dirty, __ATOMIC_SEQ_CST) & bit)) __atomic_fetch_or(&d->dirty, bit, __ATOMIC_SEQ_CST);
}

/* The commit of a remote free, and its judge: a live state is where a block starts, and of all who free it only one finds it live.
 * Releases what this process wrote to the block to the owner, who reads the state before it reuses the block. If we die before, the
 * block is live; if after, it is freed, though without the dirty bit the owner finds it only at its next trim. */
INLINE u32 free_remotely(descriptor *d, u8 *state, u32 granule) {
    u8 expected = STATE_LIVE;
    if (!__atomic_compare_exchange_n(state, &expected, STATE_REMOTE_FREED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 0;
    mark_dirty(d, granule);
    return 1;
}

/* Frees a live small block of this process onto its class's stack. False, with nothing changed, if it is not such a block or the
 * stack is full. Two threads of execution that free one block at the same instant are one double free that may go unseen if one
 * of them is its owner: this path has no atomic. The block is then in the stack once, and nothing is corrupt. */
INLINE u32 free_fast(const front *f, stack *stacks, const u8 *classes, u32 address) {
    /* Rotated, not shifted: the low bits of a misaligned offset become high ones, so one comparison refuses it too. */
    u32 offset = address - f->start, granule = offset >> GRANULE_SHIFT | offset << (32 - GRANULE_SHIFT);
    if (UNLIKELY(granule >= f->fast_granules)) return 0;
    u8 *state = f->states + granule;
    if (UNLIKELY(plain_load(state) != STATE_LIVE)) return 0;
    stack *s = &stacks[classes[granule / GRANULES_PER_SLAB]]; /* always full for what is no small block of ours */
    u8 **top = s->top;
    if (UNLIKELY(top == s->limit)) return 0;
    plain_store(state, STATE_FREE);
    *top = state;
    s->top = top + 1;
    return 1;
}

/* The next most frequent frees: of a block of another process, and of one of ours whose stack is full. False, with nothing changed,
 * for all others. */
INLINE u32 free_second_fast(const front *f, u32 address) {
    u32 offset = address - f->start, granule = offset / GRANULE;
    if (offset >= f->bytes || offset % GRANULE != 0) return 0;
    descriptor *d = &f->descriptors[granule / GRANULES_PER_SLAB];
    u8 *state = f->states + granule;
    u32 owner = plain_load(&d->owner);
    if (owner != f->fast_owner) return f->may_free_remotely && owner != OWNER_NOBODY && free_remotely(d, state, granule);
    if (plain_load(state) != STATE_LIVE || plain_load(&d->class) > SIZE_CLASSES) return 0;
    plain_store(state, STATE_FREE);
    mark_dirty(d, granule);
    return 1;
}

/* What an allocation yields: a block that is off its stack, or null and why. It is returned by inlined functions alone: others
 * would return it through the stack in memory, whose pointer a call that is interrupted never puts back. */
typedef struct {
    u8 *state;
    u32 status, class, slabs;
} outcome;

/* The smallest class whose blocks hold `size` bytes and all start at multiples of `alignment`. */
static u32 class_for(u32 size, u32 alignment) {
    if (size > MAXIMUM_SMALL || alignment > MAXIMUM_SMALL) return CLASS_LARGE;
    u32 class = class_of_granules[(size + GRANULE - 1) / GRANULE];
    while (class_size(class) & (alignment - 1)) class++; /* ends: the last class is MAXIMUM_SMALL, a power of two */
    return class;
}

/* True if a lease no larger was refused, and no slab of the heap became free since. */
static u32 is_refused(const heap *h, u32 slabs) {
    u32 generation = __atomic_load_n(&h->header->generation, __ATOMIC_SEQ_CST); /* pairs with slab_release */
    return generation == h->refused_generation && slabs >= h->refused_slabs;
}

/* True if a trim may make slabs unused since the last one. A trim empties all stacks, so a block that this process freed since is
 * in one. Blocks that others freed leave no such trace: for them it says yes often enough that failing costs O(SWEEP_SLABS) a call. */
static u32 is_trim_hopeful(heap *h) {
    h->failures++;
    if (h->failures >= h->owned / SWEEP_SLABS) return 1;
    for (u32 class = 1; class <= SIZE_CLASSES; class++) {
        if (h->stacks[class].top != h->bases[class]) return 1;
    }
    return h->cached_runs > 0;
}

/* The generation is read before the host asks: slabs that become free meanwhile make the next malloc ask again. */
INLINE outcome need_lease(heap *h, u32 class, u32 slabs) {
    if (is_refused(h, slabs)) return (outcome){NULL, STATUS_EXHAUSTED, class, slabs};
    h->asked_generation = __atomic_load_n(&h->header->generation, __ATOMIC_SEQ_CST);
    return (outcome){NULL, STATUS_NEEDS_LEASE, class, slabs};
}

INLINE outcome allocate_small(heap *h, u32 class) {
    stack *s = &h->stacks[class];
    u32 found = s->top[-1] || collect(h, class, SWEEP_SLABS) || take_unused(h, class);
    if (!found && (trim_is_due(h) || (is_refused(h, 1) && is_trim_hopeful(h)))) {
        trim_heap(h);
        found = collect(h, class, h->rings[class].count) || take_unused(h, class);
    }
    return found ? (outcome){pop(s), STATUS_OK, class, 0} : need_lease(h, class, 1);
}

INLINE outcome allocate_run(heap *h, u32 size) {
    u32 slabs = (size >> SLAB_SHIFT) + ((size & (SLAB_SIZE - 1)) != 0);
    u8 *state = take_run(h, slabs);
    if (state == NULL && collect_runs(h, SWEEP_SLABS)) state = take_run(h, slabs);
    if (state) return (outcome){state, STATUS_OK, CLASS_LARGE, 0};
    if (is_refused(h, slabs) && is_trim_hopeful(h)) {
        trim_heap(h);
        /* Slabs of ours may complete a run. Ask, be refused, release them, and ask again. */
        if (h->rings[CLASS_UNUSED].count > 0) h->refused_slabs = NO_SLAB;
    }
    return need_lease(h, CLASS_LARGE, slabs);
}

INLINE outcome allocate(heap *h, u32 size, u32 alignment) {
    if (size == 0) return (outcome){NULL, STATUS_OK, CLASS_UNUSED, 0};
    if (size > h->front.bytes) return (outcome){NULL, STATUS_EXHAUSTED, CLASS_LARGE, 0};
    u32 class = class_for(size, alignment);
    return class == CLASS_LARGE ? allocate_run(h, size) : allocate_small(h, class);
}

/* The host did not get the lease that a malloc asked for. What this process can still do without is made unused: small blocks
 * may find a slab there; for a run the host releases it and asks once more. */
static void refused(heap *h, u32 class, u32 slabs) {
    if (h->refused_generation != h->asked_generation || slabs < h->refused_slabs) h->refused_slabs = slabs;
    h->refused_generation = h->asked_generation;
    trim_heap(h);
    if (class == CLASS_LARGE && h->rings[CLASS_UNUSED].count > 0) h->release_due = 1;
}

/* Why no live block starts at this offset, or STATUS_OK. */
static u32 examine(const heap *h, u32 offset) {
    descriptor *d = descriptor_at(h, offset >> SLAB_SHIFT);
    u32 class = plain_load(&d->class), inside = offset & (SLAB_SIZE - 1);
    if (plain_load(&d->owner) == OWNER_NOBODY) return STATUS_WILD;
    if (class == CLASS_UNUSED || class >= CLASS_LARGE_BODY) return STATUS_NOT_A_BLOCK;
    if (class == CLASS_LARGE ? inside != 0 : inside % class_size(class) != 0) return STATUS_NOT_A_BLOCK;
    if (plain_load(&h->front.states[offset >> GRANULE_SHIFT]) != STATE_LIVE) return STATUS_NOT_LIVE;
    return STATUS_OK;
}

static u32 usable(const heap *h, u32 offset) {
    descriptor *d = descriptor_at(h, offset >> SLAB_SHIFT);
    u32 class = plain_load(&d->class);
    return class == CLASS_LARGE ? plain_load(&d->run) << SLAB_SHIFT : class_size(class);
}

static u32 free_own(heap *h, descriptor *d, u32 offset) {
    u8 *state = &h->front.states[offset >> GRANULE_SHIFT];
    u32 class = plain_load(&d->class);
    if (class == CLASS_LARGE) {
        h->interrupted++;
        plain_store(state, STATE_FREE);
        keep_run(h, offset >> SLAB_SHIFT);
        h->interrupted--;
        return h->release_due ? STATUS_RELEASE_DUE : STATUS_OK;
    }
    plain_store(state, STATE_FREE);
    stack *s = &h->stacks[class & (STACKS - 1)];
    if (s->top != s->limit) {
        push(s, state);
    } else {
        mark_dirty(d, offset / GRANULE);
    }
    return STATUS_OK;
}

static u32 free_foreign(const heap *h, descriptor *d, u32 offset) {
    if (h->flags & FLAG_OWNER_FREES_ONLY) return STATUS_NOT_OWNER;
    return free_remotely(d, &h->front.states[offset >> GRANULE_SHIFT], offset / GRANULE) ? STATUS_OK : STATUS_NOT_LIVE;
}

/* Frees the block at an offset of the heap. */
static u32 free_block(heap *h, u32 offset) {
    u32 status = examine(h, offset);
    if (status != STATUS_OK) return status;
    descriptor *d = descriptor_at(h, offset >> SLAB_SHIFT);
    return plain_load(&d->owner) == h->owner ? free_own(h, d, offset) : free_foreign(h, d, offset);
}

/* ---- for the host ---- */

/* What leads from an app address in an open heap to the block's place. */
INLINE u32 to_place(const heap *h) { return FIRST_PLACE - h->front.start; }

/* Allocates, or answers why not (see ANSWER_CLASS_SHIFT). `alignment` is a power of two up to MAXIMUM_ALIGNMENT. */
INLINE u32 host_malloc(u32 size, u32 slot, u32 alignment, u32 as_place) {
    heap *h = heap_at(slot);
    u32 is_power = alignment != 0 && (alignment & (alignment - 1)) == 0;
    if (UNLIKELY(h == NULL || alignment > MAXIMUM_ALIGNMENT || !is_power)) return STATUS_BAD_ARGUMENT;
    u32 shift = as_place ? to_place(h) : 0;
    if (LIKELY(alignment <= MINIMUM_ALIGNMENT)) {
        u8 *state = take_fast(h->stacks, size);
        if (LIKELY(state != NULL)) return commit(&h->front, state) + shift;
    }
    outcome o = allocate(h, size, alignment);
    return o.state ? commit(&h->front, o.state) + shift : o.status | o.class << ANSWER_CLASS_SHIFT;
}

/* Frees, or returns why not. STATUS_RELEASE_DUE is success. */
INLINE u32 host_free(u32 address, u32 slot, u32 as_place) {
    heap *h = heap_at(slot);
    if (UNLIKELY(h == NULL)) return STATUS_BAD_ARGUMENT;
    if (as_place) address -= to_place(h);
    if (LIKELY(free_fast(&h->front, h->stacks, h->classes, address)) || free_second_fast(&h->front, address)) return STATUS_OK;
    u32 offset = address - h->front.start;
    return offset < h->front.bytes ? free_block(h, offset) : STATUS_WILD;
}

/* The order of the parameters lets the host keep all but the first prepared. */
u32 EXPORT(heap_malloc)(u32 size, u32 slot, u32 alignment) { return host_malloc(size, slot, alignment, 0); }

u32 EXPORT(heap_free)(u32 address, u32 slot) { return host_free(address, slot, 0); }

/* The same for callers that know blocks by their places. */
u32 EXPORT(heap_malloc_place)(u32 size, u32 slot, u32 alignment) { return host_malloc(size, slot, alignment, 1); }

u32 EXPORT(heap_free_place)(u32 place, u32 slot) { return host_free(place, slot, 1); }

/* The bytes that the block at a heap offset can hold, or 0 if no live block starts there. */
u32 EXPORT(heap_usable_size)(u32 slot, u32 offset) {
    heap *h = heap_at(slot);
    return h && offset < h->front.bytes && examine(h, offset) == STATUS_OK ? usable(h, offset) : 0;
}

/* Takes over slabs that the coordinator assigned to this process: a run if `class` is CLASS_LARGE, else single slabs. */
u32 EXPORT(install)(u32 slot, u32 class, u32 first, u32 count, u32 adopted) {
    heap *h = heap_at(slot);
    return h ? install_range(h, class, first, count, adopted) : STATUS_BAD_ARGUMENT;
}

/* The coordinator refused the lease that a malloc asked for. Call malloc again; release what is due before. */
u32 EXPORT(lease_refused)(u32 slot, u32 class, u32 slabs) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    refused(h, class, slabs);
    return h->release_due ? STATUS_RELEASE_DUE : STATUS_OK;
}

/* True if so many slabs are unused that they should be released. */
u32 EXPORT(release_is_due)(u32 slot) {
    heap *h = heap_at(slot);
    return h && h->release_due;
}

/* Gives up every slab that holds no live block; see take_released. Returns how many are unused. */
u32 EXPORT(trim)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL) return 0;
    trim_heap(h);
    return h->rings[CLASS_UNUSED].count;
}

/* Leaves the unused slabs but `keep` in the exchange buffer as pairs (first, count); returns how many pairs. Call until it is 0. */
u32 EXPORT(take_released)(u32 slot, u32 keep) {
    heap *h = heap_at(slot);
    return h ? released_ranges(h, keep) : 0;
}

/* ---- for guests ---- */

static void release_unused(heap *h, u32 keep) {
    for (u32 pairs; (pairs = released_ranges(h, keep)) > 0;) host_release(h->slot, pairs);
}

/* Gets a lease, or does what a refusal demands. */
static void lease_for_guest(heap *h, u32 class, u32 slabs) {
    h->interrupted++; /* until all that is granted is in a ring */
    u32 grants = host_lease(h->slot, class, slabs);
    for (u32 i = 0; i < grants; i++) {
        u32 *grant = exchange + (size_t)3 * i;
        install_range(h, class, grant[0], grant[1], grant[2]);
    }
    h->interrupted--;
    if (grants > 0) return;
    refused(h, class, slabs);
    if (h->release_due) release_unused(h, class == CLASS_LARGE ? 0 : KEPT_UNUSED);
}

/* Bounded, since a heap under pressure from other processes can give hope for ever. */
#define GUEST_ATTEMPTS 4

static u32 malloc_in(heap *h, u32 size) {
    for (u32 attempt = 0; attempt < GUEST_ATTEMPTS; attempt++) {
        outcome o = allocate(h, size, MINIMUM_ALIGNMENT);
        if (h->release_due) {
            h->interrupted++; /* the block, if any, is in no stack and not live yet */
            release_unused(h, KEPT_UNUSED);
            h->interrupted--;
        }
        if (o.state) return commit(&h->front, o.state);
        if (o.status != STATUS_NEEDS_LEASE) return 0;
        lease_for_guest(h, o.class, o.slabs);
    }
    return 0;
}

static __attribute__((noinline)) u32 guest_malloc_slow(u32 size) {
    for (u32 i = 0; i < chain_length; i++) {
        u32 address = malloc_in(chain[i], size);
        if (address) return address;
    }
    return 0;
}

/* `origin` is what a 64-bit guest's addresses lie above those of a 32-bit one; refusals name the guest's own address. */
static void guest_free_in(heap *h, u32 address, u64 origin) {
    u32 offset = address - h->front.start, status = examine(h, offset);
    if (status == STATUS_OK && (h->flags & FLAG_SCRUB)) host_scrub(address, usable(h, offset));
    if (status == STATUS_OK) status = free_block(h, offset);
    if (status == STATUS_RELEASE_DUE) {
        release_unused(h, KEPT_UNUSED);
    } else if (status != STATUS_OK) {
        host_refuse(origin + address, status);
    }
}

static __attribute__((noinline)) void guest_free_slow(u32 address, u64 origin) {
    if (origin + address == 0 || free_second_fast(&chain_front, address)) return;
    for (u32 i = 0; i < chain_length; i++) {
        if (address - chain[i]->front.start < chain[i]->front.bytes) {
            guest_free_in(chain[i], address, origin);
            return;
        }
    }
    host_refuse(origin + address, STATUS_WILD);
}

INLINE u32 guest_malloc(u32 size) {
    u8 *state = take_fast(chain_stacks, size);
    return LIKELY(state != NULL) ? commit(&chain_front, state) : guest_malloc_slow(size);
}

INLINE void guest_free(u32 address, u64 origin) {
    if (UNLIKELY(!free_fast(&chain_front, chain_stacks, chain_classes, address))) guest_free_slow(address, origin);
}

u32 EXPORT(shared_heap_malloc)(u32 size) { return guest_malloc(size); }

void EXPORT(shared_heap_free)(u32 address) { guest_free(address, 0); }

/* The same for 64-bit guests. */

u64 EXPORT(shared_heap_malloc_64)(u64 size) {
    u32 address = LIKELY(size >> 32 == 0) ? guest_malloc((u32)size) : 0;
    return address ? ORIGIN_64 + address : 0;
}

void EXPORT(shared_heap_free_64)(u64 address) {
    u64 narrow = address - ORIGIN_64;
    if (LIKELY(narrow >> 32 == 0)) {
        guest_free((u32)narrow, ORIGIN_64);
    } else if (address != 0) {
        host_refuse(address, STATUS_WILD);
    }
}
