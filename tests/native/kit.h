/* What the guest kit's native programs have in common: memory, and who lives. */
#ifndef KIT_H
#define KIT_H

#include <pthread.h>
#include <string.h>

#include "check.h"
#include "shmwasm.h"

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

#endif
