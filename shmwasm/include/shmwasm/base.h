/* What the other headers have in common: how functions are imported and exported, what they return, who this process is.
 *
 * The same code compiles natively, for tests, where a program defines the imported functions itself. A thread plays a process
 * then. */
#ifndef SHMWASM_BASE_H
#define SHMWASM_BASE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define SHMWASM_BEGIN extern "C" {
#define SHMWASM_END }
#define SHMWASM_ASSERT(condition, why) static_assert(condition, why)
#define SHMWASM_ALIGNMENT_OF(type) alignof(type)
#else
#define SHMWASM_BEGIN
#define SHMWASM_END
#define SHMWASM_ASSERT(condition, why) _Static_assert(condition, why)
#define SHMWASM_ALIGNMENT_OF(type) _Alignof(type)
#endif

#ifdef __wasm__
#define SHMWASM_IMPORT(name) __attribute__((import_module("env"), import_name(name)))
#define SHMWASM_EXPORT(name) __attribute__((export_name(name)))
#define SHMWASM_OWN static /* an instance has one thread */
#else
#define SHMWASM_IMPORT(name)
#define SHMWASM_EXPORT(name) __attribute__((visibility("default")))
#define SHMWASM_OWN static __thread
#endif

#define SHMWASM_INLINE static inline __attribute__((always_inline, unused))
#define SHMWASM_SLOW static __attribute__((noinline, unused))
#define SHMWASM_LIKELY(condition) __builtin_expect(!!(condition), 1)

SHMWASM_BEGIN

/* What most functions return. */
typedef enum {
    SHMWASM_OK = 0,
    SHMWASM_AGAIN = 1,           /* not now: the queue is full or empty, the mutex is held */
    SHMWASM_TIMED_OUT = 2,
    SHMWASM_CLOSED = 3,          /* the queue was closed, and there is nothing left in it */
    SHMWASM_OWNER_DIED = 4,      /* locked, but the one before died while it held the mutex: see shmwasm_mutex_consistent */
    SHMWASM_NOT_RECOVERABLE = 5, /* whoever was told so unlocked the mutex without having repaired what it protects */
    SHMWASM_DEADLOCK = 6,        /* this instance holds the mutex already */
    SHMWASM_NOT_OWNER = 7,       /* this instance does not hold the mutex */
    SHMWASM_INVALID = 8,         /* an argument makes no sense; nothing was changed */
} shmwasm_status;

#define SHMWASM_FOREVER ((int64_t)-1)

/* The peer number of this process: above zero, and never used again for another. */
SHMWASM_IMPORT("shared_heap_self") uint32_t shared_heap_self(void);

/* Returns 0 if the process with that number is gone for sure. Asks the coordinator: tens of microseconds. */
SHMWASM_IMPORT("shared_heap_peer_alive") uint32_t shared_heap_peer_alive(uint32_t peer);

SHMWASM_END

/* The bits of a mutex's word that name its holder, and so the highest peer number that the kit can do with. */
#define SHMWASM_PEER_MASK 0x3fffffffu

/* Returns the peer number of this process, having asked for it once. */
SHMWASM_INLINE uint32_t shmwasm_self(void) {
    SHMWASM_OWN uint32_t self;
    if (!SHMWASM_LIKELY(self != 0)) {
        uint32_t number = shared_heap_self();
        if (number == 0 || number > SHMWASM_PEER_MASK) __builtin_trap();
        self = number;
    }
    return self;
}

/* Copies a message. Word by word where it is short, which is faster than any call, and needs no memcpy to link with. */
SHMWASM_INLINE void shmwasm_copy(void *to, const void *from, uint32_t size) {
#if !defined(__wasm__) || defined(__wasm_bulk_memory__) || defined(__wasm_bulk_memory_opt__)
    if (size > 128) {
        __builtin_memcpy(to, from, size);
        return;
    }
#endif
    char *target = (char *)to;
    const char *source = (const char *)from;
    for (; size >= 8; size -= 8, target += 8, source += 8) {
        __builtin_memcpy(target, source, 8);
        __asm__ volatile("" ::: "memory"); /* so that the compiler does not make a call of memcpy out of the loop */
    }
    for (; size > 0; size--) {
        *target++ = *source++;
        __asm__ volatile("" ::: "memory");
    }
}

#endif
