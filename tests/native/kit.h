/* What the guest kit's native programs have in common: checks, random numbers, and who lives. */
#ifndef KIT_H
#define KIT_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shmwasm.h"

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                            \
        }                                                                       \
    } while (0)

#define PEERS 4096

/* What the coordinator knows, and a process of itself. Shared by all; the numbers begin at 2. */
typedef struct {
    uint32_t next;
    uint32_t gone[PEERS];
} registry;

static registry *peers;
static __thread uint32_t own_number;

static uint32_t next_peer(void) {
    uint32_t number = 2 + __atomic_fetch_add(&peers->next, 1, __ATOMIC_SEQ_CST);
    CHECK(number < PEERS);
    return number;
}

/* As the real coordinator, this says so only after all that the process did. */
static void bury(uint32_t peer) { __atomic_store_n(&peers->gone[peer], 1, __ATOMIC_SEQ_CST); }

uint32_t shared_heap_self(void) { return own_number; }

uint32_t shared_heap_peer_alive(uint32_t peer) {
    CHECK(peer >= 2 && peer < PEERS);
    return !__atomic_load_n(&peers->gone[peer], __ATOMIC_SEQ_CST);
}

void *shared_heap_malloc(size_t size) { return aligned_alloc(16, (size + 15) & ~(size_t)15); }

void shared_heap_free(void *block) { free(block); }

/* SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). */
static inline uint32_t random_below(uint64_t *state, uint32_t bound) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % bound;
}

#endif
