/* The chain of managed heaps that a guest allocates from, and what the core asks its host for on a guest's behalf. */
#ifndef SHMWASM_CHAIN_H
#define SHMWASM_CHAIN_H

#include "heap.h"

extern PRIVATE heap *chain[MAXIMUM_SLOTS + 1]; /* ends with a null */
extern PRIVATE u32 chain_length;

/* What the first heap's malloc and free need, at fixed addresses: with no pointer to follow they are a tenth faster. Without a chain
 * the front is zero and the stacks are always empty. */
extern PRIVATE front chain_front;
extern PRIVATE stack chain_stacks[STACKS];
extern PRIVATE u8 chain_classes[CLASSES_SIZE];

/* Asks for `slabs` slabs for a class (CLASS_LARGE: one run). Returns how many grants it left in the exchange buffer, each three
 * words: first slab, count, 1 if adopted. */
IMPORT(lease) u32 host_lease(u32 slot, u32 class, u32 slabs);

/* Gives back the slabs that this process has given up: `pairs` pairs (first, count) in the exchange buffer. */
IMPORT(release) void host_release(u32 slot, u32 pairs);

/* Refuses a guest's free of its address for a reason STATUS_WILD .. STATUS_NOT_OWNER. The host traps: it does not return. */
IMPORT(refuse) void host_refuse(u64 address, u32 reason);

/* Clears a block before it is freed. */
IMPORT(scrub) void host_scrub(u32 address, u32 size);

#endif
