/* What only the coordinator does: it formats heaps, assigns slabs to owners, and takes them back from the dead. */
#include "heap.h"

u32 heap_reset(u32 slot);

/* Writes the metadata of a heap without slabs in use. State bytes that were never reserved are not touched. */
u32 EXPORT(heap_format)(uintptr_t metadata, u32 slabs, u32 flags, u32 identity) {
    if (slabs == 0 || slabs > MAXIMUM_SLABS) return STATUS_BAD_ARGUMENT;
    header *head = (header *)metadata;
    descriptor *descriptors = (descriptor *)(metadata + DESCRIPTORS_OFFSET);
    u8 *states = (u8 *)metadata + DESCRIPTORS_OFFSET + sections(slabs * DESCRIPTOR_SIZE);
    for (u32 slab = 0; slab < slabs; slab++) {
        u32 reserved = descriptors[slab].reserved;
        clear_words((u64 *)&descriptors[slab], DESCRIPTOR_SIZE / 8);
        if (reserved) clear_words((u64 *)(states + (size_t)slab * GRANULES_PER_SLAB), GRANULES_PER_SLAB / 8);
        plain_store(&descriptors[slab].reserved, reserved);
    }
    u32 generation = head->generation + 1;
    *head = (header){HEADER_MAGIC, LAYOUT_VERSION, slabs, flags, identity, generation};
    return STATUS_OK;
}

/* Formats an open heap again: every slab and block becomes free, whoever had it. */
u32 EXPORT(heap_reformat)(u32 slot) {
    heap *h = heap_at(slot);
    if (h == NULL) return STATUS_BAD_ARGUMENT;
    heap_format((uintptr_t)h->header, h->slabs, h->flags, h->header->identity);
    return heap_reset(slot);
}

static u32 in_heap(const heap *h, u32 first, u32 count) { return h && first < h->slabs && count <= h->slabs - first; }

/* Assigns slabs to an owner: free ones whose state bytes are reserved by now, or adopted ones. */
u32 EXPORT(slab_assign)(u32 slot, u32 first, u32 count, u32 owner) {
    heap *h = heap_at(slot);
    if (!in_heap(h, first, count)) return STATUS_BAD_ARGUMENT;
    for (u32 slab = first; slab < first + count; slab++) {
        u32 now = plain_load(&descriptor_at(h, slab)->owner);
        if (now != OWNER_NOBODY && now != OWNER_COORDINATOR) return STATUS_BAD_ARGUMENT;
    }
    for (u32 slab = first; slab < first + count; slab++) {
        descriptor *d = descriptor_at(h, slab);
        plain_store(&d->reserved, 1);
        plain_store(&d->owner, owner); /* the commit; if we die here the slab is `owner`'s, and is taken back when that dies */
    }
    return STATUS_OK;
}

/* Makes slabs without live blocks free, and lets refused processes ask again. */
u32 EXPORT(slab_release)(u32 slot, u32 first, u32 count) {
    heap *h = heap_at(slot);
    if (!in_heap(h, first, count)) return STATUS_BAD_ARGUMENT;
    for (u32 slab = first; slab < first + count; slab++) {
        if (plain_load(&descriptor_at(h, slab)->owner) != OWNER_NOBODY && slab_has_live(h, slab)) return STATUS_BAD_ARGUMENT;
    }
    for (u32 slab = first; slab < first + count; slab++) {
        descriptor *d = descriptor_at(h, slab);
        if (plain_load(&d->owner) == OWNER_NOBODY) continue;
        clear_states(h, slab);
        plain_store(&d->class, CLASS_UNUSED);
        plain_store(&d->run, 0);
        plain_store(&d->dirty, 0);
        plain_store(&d->owner, OWNER_NOBODY); /* the commit */
    }
    /* After the owners: who sees the new generation asks for slabs that are free by then. */
    __atomic_fetch_add(&h->header->generation, 1, __ATOMIC_SEQ_CST);
    return STATUS_OK;
}

/* Frees those of eight neighbouring blocks that other processes have freed, or all. True if one is live still. */
static u32 reclaim_word(u8 *states, u32 free_live) {
    u32 live = 0;
    for (u8 *state = states; state < states + 8; state++) {
        u8 expected = STATE_LIVE;
        /* Compare-and-swap, as another process may free the block at the same time; whoever loses finds it freed. */
        if (free_live) __atomic_compare_exchange_n(state, &expected, STATE_REMOTE_FREED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        u8 value = __atomic_load_n(state, __ATOMIC_SEQ_CST); /* pairs with remote frees, as in slab_has_live */
        if (value == STATE_REMOTE_FREED) plain_store(state, STATE_FREE);
        live |= value == STATE_LIVE;
    }
    return live;
}

/* Frees the dead owner's blocks of a slab that other processes have freed, or all. True if none is live any more. */
static u32 reclaim_blocks(const heap *h, u32 slab, u32 free_live) {
    u64 *words = (u64 *)first_state(h, slab);
    u32 live = 0;
    for (u32 i = 0; i < GRANULES_PER_SLAB / 8; i++) {
        /* Most words are zero, and stay so: only the owner, which is dead, makes blocks live. */
        if (plain_load(&words[i])) live |= reclaim_word((u8 *)&words[i], free_live);
    }
    return !live;
}

/* Adopts slabs whose owner is dead, or that were adopted before; frees the blocks that others have freed, and with `free_live`
 * all. Byte i of the exchange buffer becomes 1 if slab first + i is wholly free, and may be released; a run is free as a whole.
 * The range holds no part of a run, only whole ones. */
u32 EXPORT(slab_reclaim)(u32 slot, u32 first, u32 count, u32 free_live) {
    heap *h = heap_at(slot);
    if (!in_heap(h, first, count) || count > EXCHANGE_SIZE) return STATUS_BAD_ARGUMENT;
    u8 *is_free = (u8 *)exchange;
    for (u32 slab = first, next; slab < first + count; slab = next) {
        descriptor *d = descriptor_at(h, slab);
        u32 run = plain_load(&d->class) == CLASS_LARGE ? plain_load(&d->run) : 1;
        if (run == 0 || run > first + count - slab) return STATUS_BAD_ARGUMENT;
        next = slab + run;
        if (plain_load(&d->owner) == OWNER_NOBODY) {
            is_free[slab - first] = 0; /* nothing to release */
            continue;
        }
        u32 all_free = reclaim_blocks(h, slab, free_live);
        for (; slab < next; slab++) {
            plain_store(&descriptor_at(h, slab)->owner, OWNER_COORDINATOR);
            is_free[slab - first] = (u8)all_free;
        }
    }
    return STATUS_OK;
}

/* The ranges of slabs of an owner at or after `from`, left in the exchange buffer as pairs (first, count). Returns how many. */
u32 EXPORT(slab_ranges)(u32 slot, u32 owner, u32 from) {
    heap *h = heap_at(slot);
    range *ranges = (range *)exchange;
    u32 found = 0;
    for (u32 slab = from; h && slab < h->slabs; slab++) {
        if (plain_load(&descriptor_at(h, slab)->owner) != owner) continue;
        if (found > 0 && ranges[found - 1].first + ranges[found - 1].count == slab) {
            ranges[found - 1].count++;
        } else if (found == EXCHANGE_SIZE / sizeof(range)) {
            break;
        } else {
            ranges[found] = (range){slab, 1};
            found++;
        }
    }
    return found;
}

static u32 has_free_block(const heap *h, u32 class, u32 slab) {
    u32 step = class_size(class) / GRANULE;
    const u8 *states = first_state(h, slab);
    for (u32 i = 0; i + step <= GRANULES_PER_SLAB; i += step) {
        if (plain_load(&states[i]) != STATE_LIVE) return 1;
    }
    return 0;
}

/* An adopted slab of the class that has a free block, or NO_SLAB. */
u32 EXPORT(find_adopted)(u32 slot, u32 class) {
    heap *h = heap_at(slot);
    if (h == NULL || class == 0 || class > SIZE_CLASSES) return NO_SLAB;
    for (u32 slab = 0; slab < h->slabs; slab++) {
        descriptor *d = descriptor_at(h, slab);
        if (plain_load(&d->owner) != OWNER_COORDINATOR || plain_load(&d->class) != class) continue;
        if (has_free_block(h, class, slab)) return slab;
    }
    return NO_SLAB;
}
