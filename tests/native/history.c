/* A long random history by one process at a time, which dies now and then: `history SEED STEPS`.
 *
 * Every block is filled with a pattern in a data segment of its own, so a block that overlaps another is found when it is freed. */
#include "harness.h"

#define BLOCKS 3000
#define SLABS 96

typedef struct {
    u32 address, size;
} block;

static block blocks[BLOCKS];
static u8 data[SLABS * SLAB_SIZE];

static u32 random_size(u64 *seed) {
    switch (random_below(seed, 8)) {
    case 0: return random_below(seed, 8 * SLAB_SIZE);
    case 1: return random_below(seed, MAXIMUM_SMALL + 2);
    default: return random_below(seed, 600);
    }
}

static u8 pattern(const block *b) { return (u8)(b->address >> 4 | 1); }

static void allocate(u64 *seed, block *b) {
    u32 size = random_size(seed);
    if (random_below(seed, 4)) {
        b->address = shared_heap_malloc(size);
    } else {
        u32 alignment = 1u << random_below(seed, 17);
        b->address = heap_malloc(size, SLOT, alignment);
        if (b->address <= MAXIMUM_SMALL) b->address = 0;
        CHECK(b->address % alignment == 0);
    }
    if (b->address == 0) return;
    b->size = heap_usable_size(SLOT, b->address - start);
    CHECK(b->size >= size && b->address >= start && b->address % MINIMUM_ALIGNMENT == 0);
    memset(&data[b->address - start], pattern(b), b->size);
}

static void check_pattern(const block *b) {
    for (u32 i = 0; i < b->size; i++) CHECK(data[b->address - start + i] == pattern(b));
}

static void release(u64 *seed, block *b) {
    check_pattern(b);
    if (random_below(seed, 2)) {
        shared_heap_free(b->address);
    } else {
        u32 status = heap_free(b->address, SLOT);
        CHECK(status == STATUS_OK || status == STATUS_RELEASE_DUE);
    }
    CHECK(heap_free(b->address, SLOT) != STATUS_OK);
    if (b->size > MINIMUM_ALIGNMENT) CHECK(heap_free(b->address + MINIMUM_ALIGNMENT, SLOT) != STATUS_OK);
    b->address = 0;
}

static void give_back(void) {
    trim(SLOT);
    for (u32 pairs; (pairs = take_released(SLOT, 0)) > 0;) {
        for (u32 i = 0; i < pairs; i++) {
            u32 first = exchange[2 * (size_t)i], count = exchange[2 * (size_t)i + 1];
            CHECK(slab_release(AUTHORITY, first, count) == STATUS_OK);
        }
    }
}

static void wild_frees(u64 *seed) {
    CHECK(heap_free(random_below(seed, start), SLOT) == STATUS_WILD);
    CHECK(heap_free(0u - 1 - random_below(seed, 15), SLOT) != STATUS_OK);
}

static void check(void) {
    u32 code = verify(SLOT);
    if (code) fprintf(stderr, "invariant %u broken at slab %u, offset %#x\n", code, exchange[0], exchange[1]);
    CHECK(code == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    u64 seed = strtoull(arguments[1], NULL, 10);
    u32 steps = (u32)strtoul(arguments[2], NULL, 10), owner = OWNER_FIRST_PROCESS;
    harness_create(SLABS);
    process_begin(owner);
    for (u32 step = 0; step < steps; step++) {
        block *b = &blocks[random_below(&seed, BLOCKS)];
        if (b->address) {
            release(&seed, b);
        } else {
            allocate(&seed, b);
        }
        if (random_below(&seed, 500) == 0) check();
        if (random_below(&seed, 3000) == 0) give_back();
        if (random_below(&seed, 1000) == 0) wild_frees(&seed);
        if (random_below(&seed, 9000) == 0) { /* death: the next process goes on with what lives */
            process_end();
            process_begin(owner + 1);
            bury(owner++, 0);
            check();
        }
    }
    for (u32 i = 0; i < BLOCKS; i++) {
        if (blocks[i].address) release(&seed, &blocks[i]);
    }
    give_back();
    bury(OWNER_COORDINATOR, 0);
    check();
    for (u32 slab = 0; slab < SLABS; slab++) CHECK(heaps[SLOT]->front.descriptors[slab].owner == OWNER_NOBODY);
    process_end();
    harness_destroy();
    return 0;
}
