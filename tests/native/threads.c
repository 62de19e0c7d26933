/* Threads that play processes on one heap: they allocate, free each other's blocks, die and are replaced: `threads SEED STEPS`.
 *
 * A block's first word says who wrote it, with ordinary stores: the thread sanitizer therefore also judges whether a free by one
 * process and the reuse by another are ordered. */
#include "harness.h"

#define THREADS 4
#define MAILBOXES 256
#define KEPT 200
#define SLABS 64

static u8 data[SLABS * SLAB_SIZE];
/* Where a thread leaves a block for whoever takes it. 0: empty. */
static u32 mailboxes[MAILBOXES];
static u32 next_owner = OWNER_FIRST_PROCESS;
static u64 first_seed;
static u32 steps;

static u32 *word_of(u32 address) { return (u32 *)&data[address - start]; }

static u32 random_size(u64 *seed) { return 8 + random_below(seed, random_below(seed, 50) ? 400 : 3 * SLAB_SIZE); }

static void free_block(u32 address) {
    CHECK(*word_of(address) == ~address);
    *word_of(address) = 0;
    shared_heap_free(address);
}

static void one_life(u64 *seed, u32 life) {
    u32 kept[KEPT] = {0};
    for (u32 step = 0; step < life; step++) {
        u32 address = shared_heap_malloc(random_size(seed));
        if (address) *word_of(address) = ~address;
        u32 *place = random_below(seed, 3) ? &kept[random_below(seed, KEPT)] : &mailboxes[random_below(seed, MAILBOXES)];
        u32 other = __atomic_exchange_n(place, address, __ATOMIC_ACQ_REL);
        if (other) free_block(other);
    }
    for (u32 i = 0; i < KEPT; i++) {
        /* Some blocks outlive the process that allocated them. */
        u32 address = i % 4 ? 0 : __atomic_exchange_n(&mailboxes[random_below(seed, MAILBOXES)], kept[i], __ATOMIC_ACQ_REL);
        if (i % 4) address = kept[i];
        if (address) free_block(address);
    }
}

static void *run(void *argument) {
    u64 seed = first_seed + (uintptr_t)argument;
    for (u32 done = 0, life; done < steps; done += life) {
        u32 owner = __atomic_fetch_add(&next_owner, 1, __ATOMIC_RELAXED);
        life = 1 + random_below(&seed, steps / 4);
        process_begin(owner);
        one_life(&seed, life);
        bury(owner, 0);
        process_end();
    }
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    first_seed = strtoull(arguments[1], NULL, 10);
    steps = (u32)strtoul(arguments[2], NULL, 10);
    harness_create(SLABS);
    /* The table of classes is filled by the first heap that is opened, in a process's only thread. */
    process_begin(OWNER_FIRST_PROCESS);
    process_end();
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
    for (u32 i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    process_begin(next_owner);
    for (u32 i = 0; i < MAILBOXES; i++) {
        if (mailboxes[i]) free_block(mailboxes[i]);
    }
    bury(OWNER_COORDINATOR, 0);
    CHECK(verify(SLOT) == 0);
    for (u32 slab = 0; slab < SLABS; slab++) CHECK(heaps[SLOT]->front.descriptors[slab].owner == OWNER_NOBODY);
    process_end();
    harness_destroy();
    return 0;
}
