/* A bounded lock-free queue in a shared heap, from one producer to one consumer, each in a process of its own.
 *
 * Layout: the struct, whose offsets are asserted below it, and then `capacity` messages, `stride` bytes each. What different
 * processes write lies in different cache lines.
 *
 * The producer writes a message, and then `tail`; the consumer reads it, and then writes `head`. Both count messages, modulo
 * 2^32. So a process that dies has either handed a message over or not: one that dies before it stored `tail` never sent its
 * last message, one that dies before it stored `head` leaves its last message in the ring, for the consumer that comes after
 * it. Either may be replaced by another process, as long as there is one of each at a time.
 *
 * Messages can be made and read in place: `shmwasm_ring_reserve` and `_commit`, `_front` and `_release`. `_try_push` and
 * `_try_pop` do that and copy; `_push` and `_pop` also wait. Neither calls out of the guest unless somebody waits. */
#ifndef SHMWASM_RING_H
#define SHMWASM_RING_H

#include "futex.h"
#include "heap.h"

#define SHMWASM_RING_MAGIC 0x676e6952u /* "Ring" */
#define SHMWASM_RING_MAXIMUM_CAPACITY 0x40000000u

typedef struct {
    uint32_t magic; /* written last */
    uint32_t capacity; /* messages; a power of two */
    uint32_t message_size, stride; /* bytes; the stride is a multiple of 8 */
    uint32_t closed;
    shmwasm_event filled, freed;
    uint32_t zero_1[25];
    uint32_t tail, head_seen; /* of the producer: messages sent; `head` as it saw it last */
    uint32_t zero_2[30];
    uint32_t head, tail_seen; /* of the consumer: messages done with; `tail` as it saw it last */
    uint32_t zero_3[30];
} shmwasm_ring;

SHMWASM_ASSERT(sizeof(shmwasm_ring) == 384, "the messages begin at 384");
SHMWASM_ASSERT(offsetof(shmwasm_ring, tail) == 128 && offsetof(shmwasm_ring, head) == 256, "two cache lines each");

/* Returns the bytes that a ring needs; 0 if there can be none: `capacity` must be a power of two, and there must be bytes to
 * send. */
SHMWASM_INLINE size_t shmwasm_ring_size(uint32_t capacity, uint32_t message_size) {
    uint64_t stride = ((uint64_t)message_size + 7) & ~(uint64_t)7, size;
    if (capacity == 0 || (capacity & (capacity - 1)) != 0 || capacity > SHMWASM_RING_MAXIMUM_CAPACITY) return 0;
    if (message_size == 0 || stride > UINT32_MAX || __builtin_mul_overflow(stride, capacity, &size)) return 0;
    return size > SIZE_MAX - sizeof(shmwasm_ring) ? 0 : (size_t)size + sizeof(shmwasm_ring);
}

/* Makes an empty ring in `shmwasm_ring_size` bytes, aligned to 16, before anyone else knows of it. Returns SHMWASM_OK,
 * SHMWASM_INVALID. */
SHMWASM_SLOW shmwasm_status shmwasm_ring_init(shmwasm_ring *ring, uint32_t capacity, uint32_t message_size) {
    if (shmwasm_ring_size(capacity, message_size) == 0) return SHMWASM_INVALID;
    for (uint32_t i = 0; i < sizeof *ring / 4; i++) ((volatile uint32_t *)ring)[i] = 0;
    ring->capacity = capacity;
    ring->message_size = message_size;
    ring->stride = (message_size + 7) & ~7u;
    /* Publishes the rest to shmwasm_ring_check. Whoever dies before leaves no ring. */
    __atomic_store_n(&ring->magic, SHMWASM_RING_MAGIC, __ATOMIC_SEQ_CST);
    return SHMWASM_OK;
}

/* Returns a new ring in the shared heap, or null. `shared_heap_free` it when nobody uses it any more. */
SHMWASM_SLOW shmwasm_ring *shmwasm_ring_new(uint32_t capacity, uint32_t message_size) {
    size_t size = shmwasm_ring_size(capacity, message_size);
    shmwasm_ring *ring = size == 0 ? NULL : (shmwasm_ring *)shared_heap_malloc(size);
    if (ring != NULL) (void)shmwasm_ring_init(ring, capacity, message_size);
    return ring;
}

/* Tells whether there is a ring of such messages: for whoever was given its address. */
SHMWASM_INLINE int shmwasm_ring_check(const shmwasm_ring *ring, uint32_t message_size) {
    return __atomic_load_n(&ring->magic, __ATOMIC_SEQ_CST) == SHMWASM_RING_MAGIC && ring->message_size == message_size;
}

SHMWASM_INLINE void *shmwasm_ring_message(shmwasm_ring *ring, uint32_t number) {
    return (char *)(ring + 1) + (size_t)(number & (ring->capacity - 1)) * ring->stride;
}

/* Returns how many messages are in it: exact if nobody else is at it. */
SHMWASM_INLINE uint32_t shmwasm_ring_count(const shmwasm_ring *ring) {
    uint32_t head = __atomic_load_n(&ring->head, __ATOMIC_SEQ_CST); /* first, so that it is not beyond the tail */
    return __atomic_load_n(&ring->tail, __ATOMIC_SEQ_CST) - head;
}

/* Returns where the producer may write its next message, or null if the ring is full. */
SHMWASM_INLINE void *shmwasm_ring_reserve(shmwasm_ring *ring) {
    uint32_t tail = ring->tail; /* nobody else writes it */
    if (tail - ring->head_seen == ring->capacity) {
        /* Pairs with the store in shmwasm_ring_release: the consumer has read what lay below. */
        ring->head_seen = __atomic_load_n(&ring->head, __ATOMIC_SEQ_CST);
        if (tail - ring->head_seen == ring->capacity) return NULL;
    }
    return shmwasm_ring_message(ring, tail);
}

/* Hands over the message that was written to where `shmwasm_ring_reserve` said. */
SHMWASM_INLINE void shmwasm_ring_commit(shmwasm_ring *ring) {
    /* Publishes the message, to the load in shmwasm_ring_front. Dying before: it was never sent. Dying after: it was, and who
     * waits for it finds it when its slice ends. */
    __atomic_store_n(&ring->tail, ring->tail + 1, __ATOMIC_SEQ_CST);
    (void)shmwasm_event_signal(&ring->filled, SHMWASM_EVERYONE);
}

/* Returns where the consumer's next message is, or null if the ring is empty. */
SHMWASM_INLINE void *shmwasm_ring_front(shmwasm_ring *ring) {
    uint32_t head = ring->head; /* nobody else writes it */
    if (head == ring->tail_seen) {
        /* Pairs with the store in shmwasm_ring_commit: the message is complete. */
        ring->tail_seen = __atomic_load_n(&ring->tail, __ATOMIC_SEQ_CST);
        if (head == ring->tail_seen) return NULL;
    }
    return shmwasm_ring_message(ring, head);
}

/* Gives the place of the message back that `shmwasm_ring_front` returned. */
SHMWASM_INLINE void shmwasm_ring_release(shmwasm_ring *ring) {
    /* Publishes that the message was read, to the load in shmwasm_ring_reserve. Dying before: the next consumer finds it
     * again. Dying after: a producer that waits for room finds it when its slice ends. */
    __atomic_store_n(&ring->head, ring->head + 1, __ATOMIC_SEQ_CST);
    (void)shmwasm_event_signal(&ring->freed, SHMWASM_EVERYONE);
}

/* Says that nothing more will be sent: pushes are refused from now on, and pops once the ring is empty. For the producer; a
 * consumer that closes it may leave a last message behind. */
SHMWASM_INLINE void shmwasm_ring_close(shmwasm_ring *ring) {
    /* Before the signals, as any other news; seen together with all messages that this process sent before it. */
    __atomic_store_n(&ring->closed, 1, __ATOMIC_SEQ_CST);
    (void)shmwasm_event_signal(&ring->filled, SHMWASM_EVERYONE);
    (void)shmwasm_event_signal(&ring->freed, SHMWASM_EVERYONE);
}

SHMWASM_INLINE int shmwasm_ring_is_closed(const shmwasm_ring *ring) {
    return __atomic_load_n(&ring->closed, __ATOMIC_SEQ_CST) != 0;
}

/* Sends a copy of `message`, whose size is that of the ring's messages. Returns SHMWASM_OK, SHMWASM_AGAIN (full), SHMWASM_CLOSED,
 * SHMWASM_INVALID (another size). */
SHMWASM_INLINE shmwasm_status shmwasm_ring_try_push(shmwasm_ring *ring, const void *message, uint32_t size) {
    if (size != ring->message_size) return SHMWASM_INVALID;
    if (shmwasm_ring_is_closed(ring)) return SHMWASM_CLOSED;
    void *place = shmwasm_ring_reserve(ring);
    if (place == NULL) return SHMWASM_AGAIN;
    shmwasm_copy(place, message, size);
    shmwasm_ring_commit(ring);
    return SHMWASM_OK;
}

/* Copies the next message to `message`. Returns SHMWASM_OK, SHMWASM_AGAIN (empty), SHMWASM_CLOSED (and empty), SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_ring_try_pop(shmwasm_ring *ring, void *message, uint32_t size) {
    if (size != ring->message_size) return SHMWASM_INVALID;
    void *place = shmwasm_ring_front(ring);
    if (place == NULL) {
        /* What was sent before the ring was closed was sent before `closed` was stored: look again after having seen that. */
        if (!shmwasm_ring_is_closed(ring)) return SHMWASM_AGAIN;
        place = shmwasm_ring_front(ring);
        if (place == NULL) return SHMWASM_CLOSED;
    }
    shmwasm_copy(message, place, size);
    shmwasm_ring_release(ring);
    return SHMWASM_OK;
}

SHMWASM_SLOW shmwasm_status shmwasm_ring_push_slowly(shmwasm_ring *ring, const void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_patience patience = shmwasm_patience_of(timeout_ns);
    for (uint32_t spins = shmwasm_spins(timeout_ns); spins > 0; spins--) {
        shmwasm_status status = shmwasm_ring_try_push(ring, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_spin();
    }
    for (;;) {
        uint32_t ticket = timeout_ns == 0 ? 0 : shmwasm_event_expect(&ring->freed);
        shmwasm_status status = shmwasm_ring_try_push(ring, message, size);
        if (status != SHMWASM_AGAIN) return status;
        if (shmwasm_patience_wait(&patience, &ring->freed.word, ticket) == SHMWASM_TIMED_OUT) return SHMWASM_TIMED_OUT;
    }
}

SHMWASM_SLOW shmwasm_status shmwasm_ring_pop_slowly(shmwasm_ring *ring, void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_patience patience = shmwasm_patience_of(timeout_ns);
    for (uint32_t spins = shmwasm_spins(timeout_ns); spins > 0; spins--) {
        shmwasm_status status = shmwasm_ring_try_pop(ring, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_spin();
    }
    for (;;) {
        uint32_t ticket = timeout_ns == 0 ? 0 : shmwasm_event_expect(&ring->filled);
        shmwasm_status status = shmwasm_ring_try_pop(ring, message, size);
        if (status != SHMWASM_AGAIN) return status;
        if (shmwasm_patience_wait(&patience, &ring->filled.word, ticket) == SHMWASM_TIMED_OUT) return SHMWASM_TIMED_OUT;
    }
}

/* Sends a copy of `message`, waiting for room for `timeout_ns` nanoseconds at most, or for ever if that is negative. Returns
 * SHMWASM_OK, SHMWASM_TIMED_OUT, SHMWASM_CLOSED, SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_ring_push(shmwasm_ring *ring, const void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_status status = shmwasm_ring_try_push(ring, message, size);
    return SHMWASM_LIKELY(status != SHMWASM_AGAIN) ? status : shmwasm_ring_push_slowly(ring, message, size, timeout_ns);
}

/* Copies the next message to `message`, waiting for it likewise. Returns SHMWASM_OK, SHMWASM_TIMED_OUT, SHMWASM_CLOSED (and
 * empty), SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_ring_pop(shmwasm_ring *ring, void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_status status = shmwasm_ring_try_pop(ring, message, size);
    return SHMWASM_LIKELY(status != SHMWASM_AGAIN) ? status : shmwasm_ring_pop_slowly(ring, message, size, timeout_ns);
}

#endif
