/* What a process keeps to itself about each heap that it has opened. All of it is a cache: the metadata segment is the truth.
 *
 * For each size class a stack of free blocks. An entry is the address of the block's state byte: malloc stores through it at once,
 * and the block's app address is one shift and one addition away (`bias`). Below the first entry lies a null, so that "empty" needs
 * no comparison of pointers.
 *
 * Invariants (checked by `verify`):
 *   - an entry of a stack is a free block of that class in a slab of this process, and is in the stack once;
 *   - a free block of this process that is in no stack lies under a dirty bit, unless an interruption lost it (`interrupted`);
 *   - a slab of this process is in exactly one ring: its class's, or the ring of unused slabs (index CLASS_UNUSED), a run by its
 *     first slab (index CLASS_LARGE); one that it has given up is in none;
 *   - `classes` names a slab's size class exactly while the slab is in that class's ring, which makes it this process's: one private
 *     byte tells free whose a block is and where to put it.
 *
 * An engine may interrupt the core (epoch trap) at a function's entry and at a loop's back edge, and nowhere else. So what must
 * happen together is inlined and has no loop; and longer work is bracketed by `interrupted`, which asks for a trim when it is found
 * set. That trim rebuilds the rings and finds what no ring and no dirty bit leads to.
 */
#ifndef SHMWASM_HEAP_H
#define SHMWASM_HEAP_H

#include "memory.h"

#define SWEEP_SLABS 32  /* slabs that one malloc looks at before it asks for a lease */
#define CACHED_RUNS 8
#define CACHED_FRACTION 16 /* cached runs hold at most one part in this many of the heap */
#define TRIM_MINIMUM 16    /* slabs below which an automatic trim is not worth its time */
#define RINGS (CLASS_LARGE + 1)
#define STACKS 128 /* a power of two above every class, so that masking keeps a corrupt class inside the array */
#define CLASSES_SIZE (MAXIMUM_SLABS / 8 * 8 + 8) /* bytes of `classes`, in whole words */
#define NO_BLOCKS (no_blocks + 1) /* the top, and the limit, of a stack that is always empty and full */

typedef struct {
    u8 **top;   /* one past the last entry */
    u8 **limit; /* the stack is full when top is here; a class without a stack is always empty and full */
} stack;

typedef struct {
    u32 cursor; /* the slab to look at next, or NO_SLAB */
    u32 count;
} ring;

typedef struct {
    u32 first, count;
} range;

/* What every malloc and free reads. */
typedef struct {
    u32 start;         /* app address of the heap's first byte */
    u32 bytes;         /* size of the data segment */
    u32 bias;          /* app address of a block = 16 * (address of its state byte) + bias */
    u32 fast_granules; /* granules in the data segment; 0 where every free needs more work than the fast path does */
    u32 fast_owner;    /* the owner whose blocks the second fast path may take; NO_OWNER where a free needs more work */
    u32 may_free_remotely; /* that a fast path may free blocks of others */
    u8 *states;
    descriptor *descriptors;
} front;

typedef struct {
    front front;
    stack *stacks; /* STACKS of them: own_stacks, but chain_stacks for the heap that heads the guest's chain */
    u8 *classes;   /* for each slab the size class in whose ring it is, else 0: own_classes or chain_classes */
    stack own_stacks[STACKS];
    u8 *own_classes;
    header *header;
    u32 slot, owner, slabs, flags;
    u32 owned;         /* slabs of this process */
    u32 owned_trimmed; /* how many were in use after the last trim */
    u32 asked_generation, refused_generation, refused_slabs;
    u32 failures; /* allocations that failed since the last trim */
    u32 interrupted, release_due, is_open;
    u32 release_round; /* grows with each list of given up slabs that is complete, and so will reach the host */
    u32 cached_runs, cached_slabs;
    range runs[CACHED_RUNS + 1]; /* oldest first; the last place is for a run that was just leased */
    ring rings[RINGS];
    u8 **bases[SIZE_CLASSES + 1];
} heap;

extern u8 *no_blocks[1]; /* a null, for ever */
extern PRIVATE heap *heaps[MAXIMUM_SLOTS];
extern PRIVATE u32 exchange[EXCHANGE_SIZE / 4];
extern u8 class_of_granules[MAXIMUM_SMALL / GRANULE + 1];

heap *heap_at(u32 slot);
u32 class_size(u32 class);
u32 collect(heap *h, u32 class, u32 bound);
u32 take_unused(heap *h, u32 class);
u8 *take_run(heap *h, u32 slabs);
u32 collect_runs(heap *h, u32 bound);
void keep_run(heap *h, u32 first);
void trim_heap(heap *h);
u32 trim_is_due(const heap *h);
u32 released_ranges(heap *h, u32 keep);
u32 install_range(heap *h, u32 class, u32 first, u32 count, u32 adopted);
u32 slab_has_live(const heap *h, u32 slab);
void clear_states(const heap *h, u32 slab);

INLINE descriptor *descriptor_at(const heap *h, u32 slab) {
    if (UNLIKELY(slab >= h->slabs)) __builtin_trap(); /* a corrupt link must not lead out of the segment */
    return &h->front.descriptors[slab];
}

INLINE u8 *first_state(const heap *h, u32 slab) { return h->front.states + (size_t)slab * GRANULES_PER_SLAB; }

/* What `classes` says of a slab in the ring of `class`. */
INLINE u8 fast_class(u32 class) { return class <= SIZE_CLASSES ? (u8)class : 0; }

/* `classes` is cleared and copied in words of eight slabs: a heap may have very many. */
INLINE u32 class_words(const heap *h) { return h->slabs / 8 + 1; }

INLINE void clear_classes(const heap *h) { clear_words((u64 *)h->classes, class_words(h)); }

INLINE void push(stack *s, u8 *state) {
    *s->top = state;
    s->top++;
}

/* Puts a slab into a ring, where the cursor meets it first. No loop, no call: an interruption finds it done or not begun. */
INLINE void ring_link(heap *h, u32 class, u32 slab) {
    ring *r = &h->rings[class];
    descriptor *d = descriptor_at(h, slab);
    if (r->cursor == NO_SLAB) {
        plain_store(&d->next, slab);
        plain_store(&d->previous, slab);
    } else {
        descriptor *after = descriptor_at(h, r->cursor);
        u32 before = plain_load(&after->previous);
        plain_store(&d->next, r->cursor);
        plain_store(&d->previous, before);
        plain_store(&descriptor_at(h, before)->next, slab);
        plain_store(&after->previous, slab);
    }
    r->cursor = slab;
    r->count++;
    h->classes[slab] = fast_class(class);
}

/* Takes a slab out of its ring; a cursor on it moves on. */
INLINE void ring_unlink(heap *h, u32 class, u32 slab) {
    ring *r = &h->rings[class];
    descriptor *d = descriptor_at(h, slab);
    u32 next = plain_load(&d->next), previous = plain_load(&d->previous);
    plain_store(&descriptor_at(h, previous)->next, next);
    plain_store(&descriptor_at(h, next)->previous, previous);
    if (r->cursor == slab) r->cursor = next == slab ? NO_SLAB : next;
    r->count--;
    h->classes[slab] = 0;
}

#endif
