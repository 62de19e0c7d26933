/* Opening and closing: the table of this process's heaps, the memory of their private state, and the chain of a guest. */
#include "heap.h"

#include "chain.h"

PRIVATE heap *heaps[MAXIMUM_SLOTS];
PRIVATE _Alignas(64) u32 exchange[EXCHANGE_SIZE / 4];
PRIVATE heap *chain[MAXIMUM_SLOTS + 1];
PRIVATE u32 chain_length;
PRIVATE front chain_front;
PRIVATE stack chain_stacks[STACKS];
PRIVATE _Alignas(8) u8 chain_classes[CLASSES_SIZE];
u8 *no_blocks[1];
u8 class_of_granules[MAXIMUM_SMALL / GRANULE + 1];

#ifdef __wasm__

#define PAGE 65536u

void *new_memory(u32 bytes) {
    static u32 next, end;
    if (next == 0) {
        extern u8 __heap_base;
        next = ((u32)&__heap_base + 63) & ~63u;
        end = (u32)__builtin_wasm_memory_size(0) * PAGE;
    }
    if (bytes > end - next) {
        u32 pages = (bytes - (end - next) + PAGE - 1) / PAGE;
        if (end + pages * PAGE > WINDOW_START || __builtin_wasm_memory_grow(0, pages) == (size_t)-1) return NULL;
        end += pages * PAGE;
    }
    void *memory = (void *)next;
    next += (bytes + 63) & ~63u;
    return memory;
}

#else

#include <stdlib.h>

void *new_memory(u32 bytes) { return calloc(1, bytes); }

#endif

/* How many free blocks a class's stack holds: two slabs of them, within bounds. */
static u32 stack_capacity(u32 class) {
    u32 entries = 2 * SLAB_SIZE / class_size(class);
    return entries > 4096 ? 4096 : entries < 64 ? 64 : entries;
}

static heap *new_heap(void) {
    u32 entries = 0;
    for (u32 class = 1; class <= SIZE_CLASSES; class++) entries += 1 + stack_capacity(class);
    heap *h = new_memory((u32)(sizeof(heap) + entries * sizeof(u8 *) + CLASSES_SIZE + 8));
    if (h == NULL) return NULL;
    u8 **next = (u8 **)(h + 1);
    h->stacks = h->own_stacks;
    h->classes = h->own_classes = (u8 *)(((uintptr_t)(next + entries) + 7) & ~(uintptr_t)7);
    for (u32 class = 0; class < STACKS; class++) {
        u32 capacity = class >= 1 && class <= SIZE_CLASSES ? stack_capacity(class) : 0;
        if (capacity == 0) {
            h->stacks[class] = (stack){NO_BLOCKS, NO_BLOCKS};
            continue;
        }
        h->bases[class] = h->stacks[class].top = next + 1;
        next += 1 + capacity;
        h->stacks[class].limit = next;
    }
    return h;
}

static void fill_class_table(void) {
    for (u32 granules = 1, class = 1; granules <= MAXIMUM_SMALL / GRANULE; granules++) {
        if (granules * GRANULE > class_size(class)) class++;
        class_of_granules[granules] = (u8)class;
    }
}

/* An open heap, or null. */
heap *heap_at(u32 slot) {
    if (slot >= MAXIMUM_SLOTS || heaps[slot] == NULL || !heaps[slot]->is_open) return NULL;
    return heaps[slot];
}

static void forget(heap *h) {
    for (u32 class = 1; class <= SIZE_CLASSES; class++) h->stacks[class].top = h->bases[class];
    clear_classes(h);
    for (u32 class = 0; class < RINGS; class++) h->rings[class] = (ring){NO_SLAB, 0};
    h->owned = h->owned_trimmed = h->cached_runs = h->cached_slabs = 0;
    h->interrupted = h->release_due = h->failures = 0;
    h->asked_generation = plain_load(&h->header->generation);
    h->refused_generation = h->asked_generation - 1;
    h->refused_slabs = NO_SLAB;
}

static void place(heap *h, u32 start) {
    h->front.start = start;
    h->front.bias = start - (u32)((uintptr_t)h->front.states << GRANULE_SHIFT);
}

/* Opens the heap whose metadata segment lies at `metadata` for the process `owner`; its first byte has the app address `start`. */
u32 EXPORT(heap_open)(u32 slot, uintptr_t metadata, u32 start, u32 owner) {
    header *head = (header *)metadata;
    if (slot >= MAXIMUM_SLOTS || heap_at(slot) || owner < OWNER_COORDINATOR) return STATUS_BAD_ARGUMENT;
    if (head->magic != HEADER_MAGIC || head->version != LAYOUT_VERSION) return STATUS_BAD_HEADER;
    if (head->slabs == 0 || head->slabs > MAXIMUM_SLABS) return STATUS_BAD_HEADER;
    if (heaps[slot] == NULL) heaps[slot] = new_heap();
    heap *h = heaps[slot];
    if (h == NULL) return STATUS_NO_MEMORY;
    h->slot = slot;
    h->header = head;
    h->slabs = head->slabs;
    h->front.bytes = head->slabs * SLAB_SIZE;
    h->flags = head->flags;
    h->owner = owner;
    h->front.fast_granules = head->flags & FLAG_SCRUB ? 0 : head->slabs * GRANULES_PER_SLAB;
    h->front.fast_owner = head->flags & FLAG_SCRUB ? NO_OWNER : owner;
    h->front.may_free_remotely = head->flags == 0;
    h->front.descriptors = (descriptor *)(metadata + DESCRIPTORS_OFFSET);
    h->front.states = (u8 *)metadata + DESCRIPTORS_OFFSET + sections(head->slabs * DESCRIPTOR_SIZE);
    place(h, start);
    forget(h);
    h->is_open = 1;
    return STATUS_OK;
}

/* Closes a heap; its slabs stay with their owner. */
u32 EXPORT(heap_close)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    for (u32 i = 0; i < chain_length; i++) {
        if (chain[i] == h) return STATUS_BAD_ARGUMENT;
    }
    h->is_open = 0;
    return STATUS_OK;
}

/* The heap's place in its chain changed: its first byte has another app address. */
u32 EXPORT(heap_move)(u32 slot, u32 start) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    place(h, start);
    if (chain[0] == h) chain_front = h->front;
    return STATUS_OK;
}

/* Forgets every slab and block of this process: the coordinator has formatted the heap again. */
u32 EXPORT(heap_reset)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    forget(h);
    return STATUS_OK;
}

static void move_tables(heap *h, stack *stacks, u8 *classes) {
    for (u32 class = 0; class < STACKS; class++) stacks[class] = h->stacks[class];
    for (u32 i = 0; i < class_words(h); i++) ((u64 *)classes)[i] = ((u64 *)h->classes)[i];
    h->stacks = stacks;
    h->classes = classes;
}

static void empty_chain_stacks(void) {
    for (u32 class = 0; class < STACKS; class++) chain_stacks[class] = (stack){NO_BLOCKS, NO_BLOCKS};
}

/* Makes a heap, or none, the one whose tables are at the fixed addresses. */
static void set_head(heap *head) {
    heap *before = chain_length > 0 ? chain[0] : NULL;
    if (before != head) {
        if (before) move_tables(before, before->own_stacks, before->own_classes);
        if (head) {
            move_tables(head, chain_stacks, chain_classes);
        } else {
            empty_chain_stacks();
        }
    }
    chain_front = head ? head->front : (front){0};
}

/* Sets the heaps that a guest's malloc tries, in order: `count` slots in the exchange buffer. */
u32 EXPORT(chain_set)(u32 count) {
    if (count > MAXIMUM_SLOTS) return STATUS_BAD_ARGUMENT;
    for (u32 i = 0; i < count; i++) {
        if (heap_at(exchange[i]) == NULL) return STATUS_BAD_ARGUMENT;
    }
    set_head(count > 0 ? heaps[exchange[0]] : NULL);
    for (u32 i = 0; i < count; i++) chain[i] = heaps[exchange[i]];
    chain[count] = NULL;
    chain_length = count;
    return STATUS_OK;
}

/* Makes the core ready; nothing else may be called before. The tables are made here, as of initialized data the engine would keep
 * an image, and with it a descriptor. */
void EXPORT(initialize)(void) {
    if (class_of_granules[1] == 0) fill_class_table();
    empty_chain_stacks();
}

/* The number of this process, as guests may ask for it. */
static PRIVATE u32 self;

void EXPORT(set_self)(u32 number) { self = number; }

u32 EXPORT(shared_heap_self)(void) { return self; }

void *EXPORT(exchange_address)(void) { return exchange; }
