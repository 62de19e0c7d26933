/* Types, the shared structures, and how shared memory is read and written.
 *
 * Three kinds of access, and nothing else touches a metadata segment:
 *   plain_load, plain_store   never torn, ordered only against each other by the compiler. In WebAssembly an ordinary access; in
 *                             native tests a relaxed atomic, so that the thread sanitizer judges the algorithm, not the spelling.
 *   __atomic_* SEQ_CST        each is argued where it stands. WebAssembly knows no weaker atomics.
 *
 * A process that is killed stops between two instructions: what it stored before is there, what comes after is not. So the order of
 * the stores in the source (plain_store is volatile, the compiler keeps it) is the order that `verify` and recovery rely on.
 */
#ifndef SHMWASM_MEMORY_H
#define SHMWASM_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "../core.h"

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define INLINE static inline __attribute__((always_inline))
#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

#ifdef __wasm__
#define EXPORT(name) __attribute__((export_name(#name))) name
#define IMPORT(name) __attribute__((import_module("env"), import_name(#name)))
#define PRIVATE /* a process has one core */
#define plain_load(place) (*(volatile __typeof__(*(place)) *)(place))
#define plain_store(place, value) (*(volatile __typeof__(*(place)) *)(place) = (value))
#else
#define EXPORT(name) name
#define IMPORT(name)
#define PRIVATE _Thread_local /* in native tests, a thread plays a process */
#define plain_load(place) __atomic_load_n((place), __ATOMIC_RELAXED)
#define plain_store(place, value) __atomic_store_n((place), (value), __ATOMIC_RELAXED)
#endif

typedef struct {
    u64 magic;
    u32 version, slabs, flags, identity, generation;
} header;

typedef struct {
    u32 owner, class;
    u64 dirty;
    u32 run, next, previous, reserved;
    u32 zero[8];
} descriptor;

_Static_assert(offsetof(header, generation) + 4 == HEADER_SIZE, "the header is as core.h says");
_Static_assert(sizeof(descriptor) == DESCRIPTOR_SIZE && offsetof(descriptor, reserved) == 28, "the descriptor is as core.h says");

#define NO_SLAB 0xffffffffu
#define NO_OWNER 0xffffffffu
#define ALL_DIRTY (~(u64)0)
#define EACH_BYTE(value) (0x0101010101010101u * (u64)(value))

/* Zeroes words, one store each: the instruction memory.fill would trap outside the core's own memory. */
INLINE void clear_words(u64 *words, u32 count) {
    for (u32 i = 0; i < count; i++) plain_store(&words[i], 0);
}

/* Zeroed memory of the core's own that is never given back: whoever gets some keeps it for the next of its kind. Null if the engine
 * refuses to grow. */
void *new_memory(u32 bytes);

INLINE u32 sections(u32 bytes) { return (bytes + SECTION_ALIGNMENT - 1) & ~(u32)(SECTION_ALIGNMENT - 1); }

#endif
