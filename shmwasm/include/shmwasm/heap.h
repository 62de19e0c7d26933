/* Allocation in the shared heap, and pointers that can be stored in it. */
#ifndef SHMWASM_HEAP_H
#define SHMWASM_HEAP_H

#include "base.h"

SHMWASM_BEGIN

/* Returns a block of at least `size` bytes, aligned to 16, whose bytes are whatever was there; null if there is no room, or if
 * size is 0. Any instance may free it. */
SHMWASM_IMPORT("shared_heap_malloc") void *shared_heap_malloc(size_t size);

/* Frees a block; null is fine. Anything that is no live block traps. */
SHMWASM_IMPORT("shared_heap_free") void shared_heap_free(void *block);

SHMWASM_END

#define SHMWASM_BLOCK_ALIGNMENT 16

/* Returns a zeroed array in the shared heap, or null. */
SHMWASM_SLOW void *shmwasm_new_zeroed(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 8) return NULL;
    /* Whole words, so that they can be stored as such. */
    bytes = (bytes + 7) & ~(size_t)7;
    char *block = (char *)shared_heap_malloc(bytes);
    if (block == NULL) return NULL;
    for (size_t at = 0; at < bytes; at += 8) *(volatile uint64_t *)(void *)(block + at) = 0;
    return block;
}

/* A new `type` in the shared heap, zeroed, or null: `struct node *node = SHMWASM_NEW(struct node);` */
#define SHMWASM_NEW(type) SHMWASM_NEW_ARRAY(type, 1)

/* A new array of `count` of them. Null also where their size has no number. */
#define SHMWASM_NEW_ARRAY(type, count) ((type *)shmwasm_new_zeroed((count), sizeof(type) * SHMWASM_FITS_A_BLOCK(type)))

/* 1; does not compile for a type that needs more alignment than blocks have. */
#define SHMWASM_FITS_A_BLOCK(type) sizeof(char[SHMWASM_ALIGNMENT_OF(type) <= SHMWASM_BLOCK_ALIGNMENT ? 1 : -1])

/* Frees what SHMWASM_NEW or SHMWASM_NEW_ARRAY made, and sets the pointer to null. */
#define SHMWASM_DELETE(pointer) (shared_heap_free(pointer), (void)((pointer) = NULL))

/* A pointer from one place of a chain to another, as the distance from itself. An app address differs between 32-bit and 64-bit
 * instances, and changes when heaps are chained anew; a distance within one heap never does. Zero is null. */
typedef struct {
    int64_t distance;
} shmwasm_relative;

SHMWASM_INLINE void *shmwasm_relative_get(const shmwasm_relative *from) {
    return from->distance == 0 ? NULL : (char *)from + (ptrdiff_t)from->distance;
}

SHMWASM_INLINE void shmwasm_relative_set(shmwasm_relative *from, const void *to) {
    from->distance = to == NULL ? 0 : (int64_t)((intptr_t)to - (intptr_t)from);
}

#endif
