/* The guest kit: what a guest in C11 or C++17 needs to work with others in a shared heap. Header only, and freestanding.
 *
 *     shmwasm/heap.h    shared_heap_malloc and free, typed; pointers that mean the same in 32-bit and 64-bit instances
 *     shmwasm/futex.h   wait for a word to change, and wake whoever waits, across processes
 *     shmwasm/mutex.h   a robust mutex: the death of its holder is reported to one of those who wait
 *     shmwasm/ring.h    a bounded lock-free queue from one producer to one consumer
 *     shmwasm/queue.h   the same for any number of each
 *
 * All of it lives in memory that the instances share, and works between processes, between 32-bit and 64-bit instances, and with
 * shmwasm.zig: every layout is of fixed-width fields, holds no pointer, and is checked when it is compiled.
 *
 *     python -m ziglang cc -target wasm32-freestanding -mcpu=generic+atomics -O3 -nostdlib -Wl,--no-entry \
 *         -I "$(shmwasm include-path)" -o guest.wasm guest.c
 *
 * Whoever can write a heap can also destroy what lives in it: the kit protects from death, not from malice. */
#ifndef SHMWASM_H
#define SHMWASM_H

#include "shmwasm/futex.h"
#include "shmwasm/heap.h"
#include "shmwasm/mutex.h"
#include "shmwasm/queue.h"
#include "shmwasm/ring.h"

#endif
