/* The metadata segment of a managed heap: its byte layout, and every constant that C and Python share.
 *
 * This file is the specification. `tools/generate_layout.py` turns its `#define`s into `shmwasm/core/layout.py`.
 *
 * A managed heap is two segments. The data segment holds the users' bytes and nothing else, so a guest that scribbles over all
 * of it cannot harm the allocator. The metadata segment is described here; it is mapped into the memory of each process's core
 * and never into a guest's. All numbers are little-endian. Sections start at multiples of 64 KiB, the largest page a kernel uses.
 *
 *   offset                        size               what
 *   0                             64 KiB             header
 *   DESCRIPTORS_OFFSET            64 * slabs         one descriptor a slab; the section is rounded up to 64 KiB
 *   STATES_OFFSET(slabs)          4096 * slabs       one state byte a granule; the section is rounded up to 64 KiB
 *
 * Header:
 *   offset  size  field       meaning
 *   0       8     magic       HEADER_MAGIC
 *   8       4     version     LAYOUT_VERSION
 *   12      4     slabs       slabs in the data segment, 1 .. MAXIMUM_SLABS
 *   16      4     flags       FLAG_SCRUB | FLAG_OWNER_FREES_ONLY
 *   20      4     identity    the coordinator's number for this heap
 *   24      4     generation  grows whenever slabs become free; read before a lease is asked for (atomic)
 *
 * Descriptor of a slab:
 *   offset  size  field       meaning
 *   0       4     owner       OWNER_NOBODY: the slab is free; OWNER_COORDINATOR: adopted; else the process that leased it.
 *                             Written by the coordinator alone
 *   4       4     class       CLASS_UNUSED, a size class 1 .. SIZE_CLASSES, or another CLASS_ value. Written by the owner
 *   8       8     dirty       bit i: the state bytes [64 i, 64 i + 64) may hold a block that the owner can collect (atomic hint)
 *   16      4     run         of a CLASS_LARGE slab: how many slabs the run has, itself included
 *   20      4     next        ring links among the owner's slabs of one class; only the owner uses them. Of a CLASS_GIVEN_UP slab
 *                             `next` is the round of releases in which it was given up
 *   24      4     previous
 *   28      4     reserved    not 0 once the state bytes of the slab were reserved; before, nobody may touch them
 *   32      32    -           zero
 *
 * State byte: the state of the block that starts at this granule. A granule in which no block starts stays STATE_FREE.
 *
 *   STATE_FREE --owner: malloc--> STATE_LIVE --owner: free--> STATE_FREE
 *                                 STATE_LIVE --another process: free--> STATE_REMOTE_FREED --owner: collect--> STATE_FREE
 *
 * A slab of CLASS_UNUSED has no live block. A CLASS_LARGE_BODY slab that no run covers counts as unused: a run is made by the
 * store of its first slab's class, after all else, and dissolved by the store that clears it, before all else.
 */
#ifndef SHMWASM_CORE_H
#define SHMWASM_CORE_H

#define LAYOUT_VERSION 1
#define HEADER_MAGIC 0x314d535741574d53 /* the ASCII characters SMWAWSM1 */
#define HEADER_SIZE 28

#define SECTION_ALIGNMENT 65536
#define SLAB_SIZE 65536
#define SLAB_SHIFT 16
#define MAXIMUM_SLABS 65535
#define GRANULE 16
#define GRANULE_SHIFT 4
#define GRANULES_PER_SLAB 4096
#define LINE_GRANULES 64 /* granules under one dirty bit */

#define DESCRIPTORS_OFFSET 65536
#define DESCRIPTOR_SIZE 64

#define FLAG_SCRUB 1            /* a block's bytes are cleared before it is freed */
#define FLAG_OWNER_FREES_ONLY 2 /* only the process that allocated a block may free it */

#define OWNER_NOBODY 0
#define OWNER_COORDINATOR 1
#define OWNER_FIRST_PROCESS 2

#define STATE_FREE 0
#define STATE_LIVE 1
#define STATE_REMOTE_FREED 2

/* Size classes: 16 .. 128 in steps of 16, then eight for each doubling up to MAXIMUM_SMALL; larger blocks are runs of slabs. */
#define SIZE_CLASSES 72
#define LINEAR_CLASSES 8
#define MAXIMUM_SMALL 32768
#define CLASS_UNUSED 0
#define CLASS_LARGE 73
#define CLASS_LARGE_BODY 74
#define CLASS_GIVEN_UP 75 /* its owner has done with it, and waits for the coordinator to release it */
#define MINIMUM_ALIGNMENT 16
#define MAXIMUM_ALIGNMENT 65536

#define KEPT_UNUSED 16 /* unused slabs that a process keeps when it releases the others */

/* What a call of the core answers. The reasons for a refused free are those from STATUS_WILD to STATUS_NOT_OWNER. */
#define STATUS_OK 0
#define STATUS_NEEDS_LEASE 1   /* of the class that comes with it */
#define STATUS_EXHAUSTED 2     /* the coordinator refused, and nothing became free since */
#define STATUS_WILD 3          /* the address is in no leased slab */
#define STATUS_NOT_A_BLOCK 4   /* no block starts there */
#define STATUS_NOT_LIVE 5      /* the block is free already */
#define STATUS_NOT_OWNER 6     /* the heap lets only the owner free */
#define STATUS_BAD_ARGUMENT 7  /* no such slot, a slab out of range, or one that the caller does not own */
#define STATUS_BAD_HEADER 8    /* the segment has another layout */
#define STATUS_NO_MEMORY 9     /* the core's own memory cannot grow */
#define STATUS_RELEASE_DUE 10  /* done; and so many slabs are unused that they should be released */

/* An allocation that failed answers `status + (class << ANSWER_CLASS_SHIFT)`, which is below MAXIMUM_SMALL; no address is. */
#define ANSWER_CLASS_SHIFT 8

/* What `verify` finds broken: it answers one of these, and leaves slab and heap offset in the first words of the exchange buffer. */
#define BROKEN_HEADER 1        /* the header does not describe this heap */
#define BROKEN_FREE_SLAB 2     /* a free slab has a class */
#define BROKEN_CLASS 3         /* a slab has a class that does not exist */
#define BROKEN_STATE_VALUE 4   /* a state byte has a value that does not exist */
#define BROKEN_STATE_PLACE 5   /* a granule in which no block starts has a state */
#define BROKEN_UNUSED_SLAB 6   /* a slab that is free or unused holds a block */
#define BROKEN_RUN_LENGTH 7    /* a run is empty or leaves the heap */
#define BROKEN_RUN_BODY 8      /* a slab of a run belongs to another owner or class */
#define BROKEN_RING 9          /* the links of a ring disagree, or a slab is in the wrong ring */
#define BROKEN_RING_COUNT 10   /* a ring has another number of slabs than was counted */
#define BROKEN_STACK_PLACE 11  /* an entry of a stack is no block of that class in a slab of this process */
#define BROKEN_STACK_STATE 12  /* an entry of a stack is not free */
#define BROKEN_STACK_TWICE 13  /* a stack holds a block twice */
#define BROKEN_RUN_CACHE 14    /* a cached run is not a free run of this process */

/* Words (64 bits each) of the statistics. */
#define STATISTICS_CAPACITY_SLABS 0
#define STATISTICS_FREE_SLABS 1
#define STATISTICS_LARGEST_FREE_SLABS 2 /* the longest run of free slabs */
#define STATISTICS_ADOPTED_SLABS 3
#define STATISTICS_OWN_SLABS 4
#define STATISTICS_OWN_UNUSED_SLABS 5
#define STATISTICS_LIVE_BLOCKS 6
#define STATISTICS_LIVE_BYTES 7 /* usable bytes */
#define STATISTICS_REMOTE_FREED_BLOCKS 8
#define STATISTICS_LARGE_BLOCKS 9
#define STATISTICS_OWN_LIVE_BLOCKS 10
#define STATISTICS_OWN_LIVE_BYTES 11
#define STATISTICS_WORDS 12

/* A block's *place* is its heap offset plus this: unlike its app address it stays the same when the heap moves in its chain, and
 * like that it is above MAXIMUM_SMALL. */
#define FIRST_PLACE 65536

#define ORIGIN_64 0xf00000000 /* how much higher a chain lies in a 64-bit guest; all other app addresses here are 32-bit */

/* The core's own memory: metadata segments are mapped into [WINDOW_START, WINDOW_END), everything private lies below. */
#define WINDOW_START 0x10000000
#define WINDOW_END 0xffff0000
#define MAXIMUM_SLOTS 1024
#define EXCHANGE_SIZE 65536 /* bytes of the buffer in which lists are passed between the core and its host */

#endif
