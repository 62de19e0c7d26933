/* Waiting for a word in shared memory to change, across processes; and what the mutex and the queues wait with.
 *
 * In a guest these are the instructions memory.atomic.wait32 and memory.atomic.notify, which work on heap addresses as futexes
 * of the kernel. A guest that waits uses no processor; a call's time limit interrupts it.
 *
 * Slices
 * ------
 * Nobody waits for ever in one piece, since a process may be killed at any instruction: while it holds what others wait for,
 * or after it made something available and before it woke anyone. Waits come in slices of 1, 2, 4 ... 64 ms, and after each
 * the waiter looks again, and asks whether the one it waits for still lives. So a death is noticed within as long again as has
 * been waited already, and 64 ms at most; who waits for long wakes up 16 times a second, which costs less than a thousandth of
 * a processor; and a wait that ends in time, as nearly all do, asks nobody. */
#ifndef SHMWASM_FUTEX_H
#define SHMWASM_FUTEX_H

#include "base.h"

#ifndef __wasm__
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

#define SHMWASM_FIRST_SLICE ((int64_t)1000000)
#define SHMWASM_LONGEST_SLICE ((int64_t)64000000)

#define SHMWASM_EVERYONE 0x7fffffffu

/* How often a blocking function tries before it waits: for about as long as waiting takes a processor, and waking (20 to 30
 * microseconds). So it costs at most twice what the better choice would have. More where every process has a processor to
 * itself; 0 where none has. */
#ifndef SHMWASM_SPINS
#define SHMWASM_SPINS 3000
#endif

/* Waits while `*word` is `expected`, until it is woken, or for `timeout_ns` nanoseconds unless that is negative. Returns
 * SHMWASM_OK if it was woken, perhaps for no reason, SHMWASM_AGAIN if the word was another one, SHMWASM_TIMED_OUT. */
SHMWASM_INLINE shmwasm_status shmwasm_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns) {
#ifdef __wasm__
    return (shmwasm_status)__builtin_wasm_memory_atomic_wait32((int32_t *)word, (int32_t)expected, timeout_ns);
#else
    struct timespec limit = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &limit, NULL, 0) == 0) return SHMWASM_OK;
    return errno == ETIMEDOUT ? SHMWASM_TIMED_OUT : errno == EAGAIN ? SHMWASM_AGAIN : SHMWASM_OK;
#endif
}

/* Wakes at most `count` of those who wait for the word; returns how many. */
SHMWASM_INLINE uint32_t shmwasm_futex_wake(uint32_t *word, uint32_t count) {
#ifdef __wasm__
    return __builtin_wasm_memory_atomic_notify((int32_t *)word, count);
#else
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? 0 : (uint32_t)woken;
#endif
}

SHMWASM_INLINE uint32_t shmwasm_spins(int64_t timeout_ns) { return timeout_ns == 0 ? 0 : SHMWASM_SPINS; }

/* One turn of a loop that waits for another processor. */
SHMWASM_INLINE void shmwasm_spin(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

/* How long a blocking function still waits. A guest has no clock: what counts are the slices that it waited to their end. One
 * that is woken for nothing, as another was faster, waits longer than it was told to. */
typedef struct {
    int64_t remaining; /* nanoseconds; negative: for ever */
    int64_t slice;
} shmwasm_patience;

SHMWASM_INLINE shmwasm_patience shmwasm_patience_of(int64_t timeout_ns) {
    shmwasm_patience patience = {timeout_ns, SHMWASM_FIRST_SLICE};
    return patience;
}

/* Waits for a word, for a slice at most. Returns SHMWASM_OK if it is worth another try, SHMWASM_AGAIN if the slice has passed,
 * so that it is time to ask who lives, SHMWASM_TIMED_OUT if there was no time left to wait. */
SHMWASM_SLOW shmwasm_status shmwasm_patience_wait(shmwasm_patience *patience, uint32_t *word, uint32_t expected) {
    int64_t slice = patience->slice;
    if (patience->remaining == 0) return SHMWASM_TIMED_OUT;
    if (patience->remaining > 0 && patience->remaining < slice) slice = patience->remaining;
    if (shmwasm_futex_wait(word, expected, slice) != SHMWASM_TIMED_OUT) return SHMWASM_OK;
    if (patience->remaining > 0) patience->remaining -= slice;
    if (patience->slice < SHMWASM_LONGEST_SLICE) patience->slice *= 2;
    return SHMWASM_AGAIN;
}

/* What waiters wait for, and makers of what they wait for signal: something is in the queue, or there is room in it.
 *
 *   bit 0   somebody may wait
 *   rest    grows with each signal that found bit 0 set
 *
 * To wait: `ticket = shmwasm_event_expect(e)`, look once more whether there is nothing, then wait while the word is `ticket`.
 * To signal: make it available, then `shmwasm_event_signal(e, ...)`. All of these are sequentially consistent, so either the
 * signaller sees bit 0, or the waiter, who set it before it looked, sees what was made available: no wake-up is lost. */
typedef struct {
    uint32_t word;
} shmwasm_event;

SHMWASM_INLINE uint32_t shmwasm_event_expect(shmwasm_event *event) {
    /* Publishes that somebody may wait, to the load in shmwasm_event_signal. A waiter that dies here costs the next signal one
     * wake that finds nobody. */
    return __atomic_fetch_or(&event->word, 1, __ATOMIC_SEQ_CST) | 1;
}

/* Wakes some of those who wait; returns how many, 0 if another signal is at it. */
SHMWASM_SLOW uint32_t shmwasm_event_wake(shmwasm_event *event, uint32_t word, uint32_t count) {
    /* Clears bit 0, and changes the word, so that who has its ticket but does not wait yet looks again. If it fails, another
     * signal has done so since our load, and whoever set bit 0 after that has looked after our message was there. A signaller
     * that dies between here and the wake leaves its waiters asleep until their slice ends. */
    if (!__atomic_compare_exchange_n(&event->word, &word, word + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 0;
    return shmwasm_futex_wake(&event->word, count);
}

/* Wakes at most `count` of those who wait, if anybody may; returns how many. One load where nobody waits. */
SHMWASM_INLINE uint32_t shmwasm_event_signal(shmwasm_event *event, uint32_t count) {
    /* Pairs with the fetch_or in shmwasm_event_expect. */
    uint32_t word = __atomic_load_n(&event->word, __ATOMIC_SEQ_CST);
    return SHMWASM_LIKELY(!(word & 1)) ? 0 : shmwasm_event_wake(event, word, count);
}

#endif
