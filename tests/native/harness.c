#include "harness.h"

u8 *metadata;
u32 slabs, start;
PRIVATE u32 me;

/* The coordinator is one process: it serves one request at a time. */
static pthread_mutex_t coordinator = PTHREAD_MUTEX_INITIALIZER;

void harness_create(u32 count) {
    slabs = count;
    start = 0u - count * SLAB_SIZE;
    size_t size = DESCRIPTORS_OFFSET + sections(count * DESCRIPTOR_SIZE) + (size_t)count * GRANULES_PER_SLAB;
    /* Exactly as large as the segment, so that the sanitizer sees the first byte that is touched beyond it. */
    metadata = aligned_alloc(SECTION_ALIGNMENT, size);
    CHECK(metadata != NULL);
    memset(metadata, 0, size);
    CHECK(heap_format((uintptr_t)metadata, count, 0, 7) == STATUS_OK);
}

void harness_destroy(void) { free(metadata); }

void process_begin(u32 owner) {
    me = owner;
    initialize();
    CHECK(heap_open(SLOT, (uintptr_t)metadata, start, owner) == STATUS_OK);
    CHECK(heap_open(AUTHORITY, (uintptr_t)metadata, start, OWNER_COORDINATOR) == STATUS_OK);
    exchange[0] = SLOT;
    CHECK(chain_set(1) == STATUS_OK);
}

void process_end(void) {
    CHECK(chain_set(0) == STATUS_OK);
    for (u32 slot = SLOT; slot <= AUTHORITY; slot++) {
        CHECK(heap_close(slot) == STATUS_OK);
        free(heaps[slot]);
        heaps[slot] = NULL;
    }
}

static u32 owner_of(u32 slab) { return plain_load(&heaps[AUTHORITY]->front.descriptors[slab].owner); }

/* First fit; NO_SLAB if there is no such run. */
static u32 find_free(u32 count) {
    u32 run = 0;
    for (u32 slab = 0; slab < slabs; slab++) {
        run = owner_of(slab) == OWNER_NOBODY ? run + 1 : 0;
        if (run == count) return slab + 1 - count;
    }
    return NO_SLAB;
}

u32 host_lease(u32 slot, u32 class, u32 count) {
    CHECK(slot == SLOT);
    pthread_mutex_lock(&coordinator);
    u32 first = class == CLASS_LARGE ? NO_SLAB : find_adopted(AUTHORITY, class);
    u32 adopted = first != NO_SLAB;
    if (!adopted) first = find_free(count);
    if (first != NO_SLAB) CHECK(slab_assign(AUTHORITY, first, count, me) == STATUS_OK);
    pthread_mutex_unlock(&coordinator);
    exchange[0] = first;
    exchange[1] = count;
    exchange[2] = adopted;
    return first != NO_SLAB;
}

void host_release(u32 slot, u32 pairs) {
    CHECK(slot == SLOT);
    pthread_mutex_lock(&coordinator);
    for (u32 i = 0; i < pairs; i++) {
        CHECK(slab_release(AUTHORITY, exchange[2 * (size_t)i], exchange[2 * (size_t)i + 1]) == STATUS_OK);
    }
    pthread_mutex_unlock(&coordinator);
}

void host_refuse(u64 address, u32 reason) {
    fprintf(stderr, "free of %#llx refused: %u\n", (unsigned long long)address, reason);
    abort();
}

void host_scrub(u32 address, u32 size) { (void)address, (void)size; }

static u32 unit_at(u32 slab) {
    descriptor *d = &heaps[AUTHORITY]->front.descriptors[slab];
    return plain_load(&d->class) == CLASS_LARGE ? plain_load(&d->run) : 1;
}

void bury(u32 owner, u32 free_live) {
    pthread_mutex_lock(&coordinator);
    for (u32 slab = 0, count; slab < slabs; slab += count) {
        count = unit_at(slab);
        if (owner_of(slab) != owner) continue;
        CHECK(slab_reclaim(AUTHORITY, slab, count, free_live) == STATUS_OK);
        const u8 *is_free = exchange_address();
        if (is_free[0]) CHECK(slab_release(AUTHORITY, slab, count) == STATUS_OK);
    }
    pthread_mutex_unlock(&coordinator);
}
