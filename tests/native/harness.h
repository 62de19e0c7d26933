/* A heap in ordinary memory for the native tests, and the host that the core asks for leases. */
#ifndef HARNESS_H
#define HARNESS_H

#include <pthread.h>
#include <string.h>

#include "check.h"
#include "heap.h"

u32 heap_open(u32 slot, uintptr_t metadata, u32 start, u32 owner);
u32 heap_close(u32 slot);
void initialize(void);
void *exchange_address(void);
u32 chain_set(u32 count);
u32 heap_malloc(u32 size, u32 slot, u32 alignment);
u32 heap_free(u32 address, u32 slot);
u32 heap_usable_size(u32 slot, u32 offset);
u32 install(u32 slot, u32 class, u32 first, u32 count, u32 adopted);
u32 trim(u32 slot);
u32 take_released(u32 slot, u32 keep);
u32 verify(u32 slot);
u32 shared_heap_malloc(u32 size);
void shared_heap_free(u32 address);
u32 heap_format(uintptr_t metadata, u32 slabs, u32 flags, u32 identity);
u32 slab_assign(u32 slot, u32 first, u32 count, u32 owner);
u32 slab_release(u32 slot, u32 first, u32 count);
u32 slab_reclaim(u32 slot, u32 first, u32 count, u32 free_live);
u32 find_adopted(u32 slot, u32 class);

/* The slot of the heap, and that of the coordinator's own view, in every thread. */
#define SLOT 0
#define AUTHORITY 1

extern u8 *metadata;
extern u32 slabs, start;
extern PRIVATE u32 me;

void harness_create(u32 count);
void harness_destroy(void);

/* Makes the calling thread a process with the number `owner`, and frees what it keeps to itself. */
void process_begin(u32 owner);
void process_end(void);

/* What the coordinator does when the process `owner` is dead. */
void bury(u32 owner, u32 free_live);

#endif
