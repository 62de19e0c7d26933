/* Loops over malloc and free: compiled to a guest that allocates from a shared heap, and natively as glibc's peer.
 *
 * The native build needs -fno-builtin, or the compiler removes a malloc whose block is only freed. */
#include <stdint.h>

#ifdef __wasm__
#define EXPORT(name) __attribute__((export_name(name)))
__attribute__((import_module("env"), import_name("shared_heap_malloc"))) void *shared_heap_malloc(uint32_t size);
__attribute__((import_module("env"), import_name("shared_heap_free"))) void shared_heap_free(void *block);
#define malloc shared_heap_malloc
#define free shared_heap_free
#else
#define EXPORT(name)
#include <stdlib.h>
#endif

#define MAXIMUM_KEPT (1u << 20)

static void *kept[MAXIMUM_KEPT];

/* malloc and free of one size, `times` times. Returns what depends on every address. */
EXPORT("pairs") uint32_t pairs(uint32_t times, uint32_t size) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < times; i++) {
        void *block = malloc(size);
        sum += (uint32_t)(uintptr_t)block;
        free(block);
    }
    return sum;
}

/* Allocates `count` blocks of one size and keeps them. Returns how many it got. */
EXPORT("keep") uint32_t keep(uint32_t count, uint32_t size) {
    uint32_t got = 0;
    for (uint32_t i = 0; i < count && i < MAXIMUM_KEPT; i++) got += (kept[i] = malloc(size)) != 0;
    return got;
}

/* Frees what is kept. */
EXPORT("drop") void drop(void) {
    for (uint32_t i = 0; i < MAXIMUM_KEPT; i++) {
        if (kept[i]) free(kept[i]);
        kept[i] = 0;
    }
}

/* `times` times replaces one of `live` kept blocks, chosen at random, by one of a random size from 16 to 527 bytes. */
EXPORT("churn") uint32_t churn(uint32_t times, uint32_t live) {
    static uint64_t state = 1;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < times; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t place = (uint32_t)(((state >> 32) * live) >> 32);
        if (kept[place]) free(kept[place]);
        kept[place] = malloc(16 + ((uint32_t)(state >> 20) & 511));
        sum += (uint32_t)(uintptr_t)kept[place];
    }
    return sum;
}

/* Allocates `count` blocks and leaves their addresses in `blocks`. */
EXPORT("allocate") uint32_t allocate(void **blocks, uint32_t count, uint32_t size) {
    uint32_t got = 0;
    for (uint32_t i = 0; i < count; i++) got += (blocks[i] = malloc(size)) != 0;
    return got;
}

/* Frees what `allocate` left, in this or another process. */
EXPORT("release") void release(void **blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) free(blocks[i]);
}
