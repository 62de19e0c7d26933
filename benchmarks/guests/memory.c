/* Loads and stores over whole arrays: the same compiled loops for private memory and for a shared heap. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define PRIVATE_SIZE (32u << 20)

static _Alignas(65536) uint64_t private_memory[PRIVATE_SIZE / sizeof(uint64_t)];

EXPORT("private_memory") void *private_address(void) { return private_memory; }

/* `times` is so that one call runs long enough to be timed; the result depends on every load. */
EXPORT("load") uint64_t load(const uint64_t *values, uint32_t count, uint32_t times) {
    uint64_t sum = 0;
    for (uint32_t round = 0; round < times; round++) {
        for (uint32_t i = 0; i < count; i++) sum += values[i] ^ round;
    }
    return sum;
}

EXPORT("store") void store(uint64_t *values, uint32_t count, uint32_t times) {
    for (uint32_t round = 0; round < times; round++) {
        for (uint32_t i = 0; i < count; i++) values[i] = i + round;
    }
}

/* Loads of single bytes in no order, each address made from the value before: nothing is vectorized or prefetched. */
EXPORT("chase") uint32_t chase(const uint8_t *bytes, uint32_t mask, uint32_t steps) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < steps; i++) at = (at * 1664525u + 1013904223u + bytes[at & mask]);
    return at;
}
