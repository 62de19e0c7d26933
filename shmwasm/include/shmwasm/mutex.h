/* A mutex in a shared heap, between processes, that survives the death of whoever holds it.
 *
 * Layout: one word, zero when it is made.
 *
 *   bits 0-29   peer number of the holder; 0: nobody
 *   bit 30      inconsistent: a holder died, and nobody has said since that what the mutex protects is as it should be.
 *               With no holder: not recoverable, for ever
 *   bit 31      somebody may wait
 *
 * Neither locking nor unlocking calls out of the guest unless somebody has to wait.
 *
 * Death. A killed holder's number stays in the word. Who waits asks after each slice (see futex.h) whether the holder still
 * lives. If it does not, one of those who ask replaces it, and is told SHMWASM_OWNER_DIED: it holds the mutex, and what the
 * mutex protects may be half changed. It repairs that, and says `shmwasm_mutex_consistent`. If it dies too before it said so,
 * the next one is told the same; if it unlocks without, nobody can lock any more: SHMWASM_NOT_RECOVERABLE. As with a robust
 * mutex of POSIX.
 *
 * A call that is interrupted by its time limit, or traps, while it holds the mutex, leaves it locked by an instance that
 * lives: the others wait on. That instance itself can tell (`shmwasm_mutex_is_mine`), repair and unlock in its next call. */
#ifndef SHMWASM_MUTEX_H
#define SHMWASM_MUTEX_H

#include "futex.h"

typedef struct {
    uint32_t word;
} shmwasm_mutex;

#define SHMWASM_MUTEX_INCONSISTENT 0x40000000u
#define SHMWASM_MUTEX_WAITERS 0x80000000u

/* The unlocked mutex, to initialize one with. A new one must not be in use. */
SHMWASM_INLINE void shmwasm_mutex_init(shmwasm_mutex *mutex) { __atomic_store_n(&mutex->word, 0, __ATOMIC_SEQ_CST); }

/* Replaces the word if it is as expected. Whoever locks so sees what the one that unlocked (here, or in shmwasm_mutex_unlock)
 * wrote. A process that dies before has changed nothing; after, its number says who holds the mutex. */
SHMWASM_INLINE int shmwasm_mutex_swap(shmwasm_mutex *mutex, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(&mutex->word, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

SHMWASM_INLINE uint32_t shmwasm_mutex_word(const shmwasm_mutex *mutex) {
    return __atomic_load_n(&mutex->word, __ATOMIC_SEQ_CST); /* a hint: what is done with it is checked by the swap */
}

/* Locks if nobody holds it. Does not ask whether a holder lives: `shmwasm_mutex_timedlock` with 0 does. Returns SHMWASM_OK,
 * SHMWASM_AGAIN, SHMWASM_NOT_RECOVERABLE. */
SHMWASM_INLINE shmwasm_status shmwasm_mutex_trylock(shmwasm_mutex *mutex) {
    if (SHMWASM_LIKELY(shmwasm_mutex_swap(mutex, 0, shmwasm_self()))) return SHMWASM_OK;
    return shmwasm_mutex_word(mutex) == SHMWASM_MUTEX_INCONSISTENT ? SHMWASM_NOT_RECOVERABLE : SHMWASM_AGAIN;
}

/* Takes the place of a dead holder; 0 if another has, or if the holder lives. */
SHMWASM_SLOW int shmwasm_mutex_inherit(shmwasm_mutex *mutex, uint32_t holder) {
    if (shared_heap_peer_alive(holder)) return 0;
    uint32_t mine = shmwasm_self() | SHMWASM_MUTEX_WAITERS | SHMWASM_MUTEX_INCONSISTENT;
    for (;;) {
        /* The dead change nothing and numbers are not used again: with the holder in it, the word can only gain the waiters'
         * bit, or be replaced by one heir. */
        uint32_t word = shmwasm_mutex_word(mutex);
        if ((word & SHMWASM_PEER_MASK) != holder) return 0;
        if (shmwasm_mutex_swap(mutex, word, mine)) return 1;
    }
}

SHMWASM_SLOW shmwasm_status shmwasm_mutex_lock_slowly(shmwasm_mutex *mutex, int64_t timeout_ns) {
    uint32_t self = shmwasm_self();
    shmwasm_patience patience = shmwasm_patience_of(timeout_ns);
    for (uint32_t spins = shmwasm_spins(timeout_ns); spins > 0; spins--) {
        uint32_t word = shmwasm_mutex_word(mutex);
        if (word == 0 && shmwasm_mutex_swap(mutex, 0, self)) return SHMWASM_OK;
        if ((word & SHMWASM_PEER_MASK) == self) return SHMWASM_DEADLOCK;
        shmwasm_spin();
    }
    for (;;) {
        uint32_t word = shmwasm_mutex_word(mutex), holder = word & SHMWASM_PEER_MASK;
        if (word == SHMWASM_MUTEX_INCONSISTENT) return SHMWASM_NOT_RECOVERABLE;
        if (holder == self) return SHMWASM_DEADLOCK;
        if (holder == 0) {
            /* Others may still wait, and the bit that said so is gone: keep it, so that our unlock wakes the next one. */
            if (shmwasm_mutex_swap(mutex, word, self | SHMWASM_MUTEX_WAITERS)) return SHMWASM_OK;
            continue;
        }
        /* The bit is set before the wait, and the wait compares the word with it: the unlock either sees the bit and wakes, or
         * came first, and the wait returns at once. A waiter that dies costs one wake that finds nobody; one that dies after
         * it was woken, and before it locked, has the others sleep until their slice ends. */
        if (!(word & SHMWASM_MUTEX_WAITERS) && timeout_ns != 0) {
            if (!shmwasm_mutex_swap(mutex, word, word | SHMWASM_MUTEX_WAITERS)) continue;
        }
        shmwasm_status waited = shmwasm_patience_wait(&patience, &mutex->word, word | SHMWASM_MUTEX_WAITERS);
        if (waited == SHMWASM_OK) continue;
        if (shmwasm_mutex_inherit(mutex, holder)) return SHMWASM_OWNER_DIED;
        if (waited == SHMWASM_TIMED_OUT) return SHMWASM_TIMED_OUT;
    }
}

/* Locks, waiting for `timeout_ns` nanoseconds at most, or for ever if that is negative. With 0 it does not wait, but notices
 * the death of the holder. Returns SHMWASM_OK, SHMWASM_OWNER_DIED (locked, too), SHMWASM_TIMED_OUT, SHMWASM_NOT_RECOVERABLE,
 * SHMWASM_DEADLOCK. */
SHMWASM_INLINE shmwasm_status shmwasm_mutex_timedlock(shmwasm_mutex *mutex, int64_t timeout_ns) {
    if (SHMWASM_LIKELY(shmwasm_mutex_swap(mutex, 0, shmwasm_self()))) return SHMWASM_OK;
    return shmwasm_mutex_lock_slowly(mutex, timeout_ns);
}

/* Locks, however long that takes. Returns SHMWASM_OK, SHMWASM_OWNER_DIED (locked, too), SHMWASM_NOT_RECOVERABLE,
 * SHMWASM_DEADLOCK. */
SHMWASM_INLINE shmwasm_status shmwasm_mutex_lock(shmwasm_mutex *mutex) { return shmwasm_mutex_timedlock(mutex, SHMWASM_FOREVER); }

/* Tells whether this instance holds the mutex: an earlier call may have been interrupted while it did. */
SHMWASM_INLINE int shmwasm_mutex_is_mine(const shmwasm_mutex *mutex) {
    return (shmwasm_mutex_word(mutex) & SHMWASM_PEER_MASK) == shmwasm_self();
}

/* Says that what the mutex protects is as it should be, after SHMWASM_OWNER_DIED. Returns SHMWASM_OK, SHMWASM_NOT_OWNER. */
SHMWASM_INLINE shmwasm_status shmwasm_mutex_consistent(shmwasm_mutex *mutex) {
    if (!shmwasm_mutex_is_mine(mutex)) return SHMWASM_NOT_OWNER;
    /* The repair comes before it: a process that dies before this leaves the bit to the next holder. */
    __atomic_fetch_and(&mutex->word, ~SHMWASM_MUTEX_INCONSISTENT, __ATOMIC_SEQ_CST);
    return SHMWASM_OK;
}

SHMWASM_SLOW shmwasm_status shmwasm_mutex_unlock_slowly(shmwasm_mutex *mutex) {
    if (!shmwasm_mutex_is_mine(mutex)) return SHMWASM_NOT_OWNER;
    uint32_t left = shmwasm_mutex_word(mutex) & SHMWASM_MUTEX_INCONSISTENT;
    /* Publishes what was done under the mutex, and finds the bit of everyone who waits. Dying between this and the wake is
     * healed by the waiters' slices. */
    uint32_t word = __atomic_exchange_n(&mutex->word, left, __ATOMIC_SEQ_CST);
    if (word & SHMWASM_MUTEX_WAITERS) shmwasm_futex_wake(&mutex->word, left ? SHMWASM_EVERYONE : 1);
    return SHMWASM_OK;
}

/* Unlocks. Returns SHMWASM_OK, SHMWASM_NOT_OWNER. */
SHMWASM_INLINE shmwasm_status shmwasm_mutex_unlock(shmwasm_mutex *mutex) {
    if (SHMWASM_LIKELY(shmwasm_mutex_swap(mutex, shmwasm_self(), 0))) return SHMWASM_OK;
    return shmwasm_mutex_unlock_slowly(mutex);
}

#endif
