/* A bounded lock-free queue in a shared heap, for any number of producers and consumers in any number of processes, that survives
 * the death of any of them. First in, first out: the messages of one producer arrive in the order in which it sent them.
 *
 * Theory
 * ------
 * A ring of slots, each with a state that says which position of the queue it serves next (D. Vyukov, bounded MPMC queue,
 * 2010). There a position is claimed in a common counter, and a process that dies before it has filled its slot stops
 * everybody for ever. Here it is claimed in the slot itself, by one compare-and-swap that also writes who claims it; the
 * common counters `tail` and `head` follow, and whoever finds one behind moves it on. So what a dead process has left half
 * done can be seen, and undone, by anyone.
 *
 * The state of a slot, for the position p that it serves (modulo 2^32 in the low word), with 0, a peer number, or VOID in the
 * high one:
 *
 *   p, 0               free
 *   p, peer            that peer writes a message
 *   p + 1, 0           full
 *   p + 1, VOID        its producer died while it wrote: consumers skip it
 *   p + 1, peer        that peer reads the message
 *   p + capacity, 0    free, for the position of the next round
 *
 * Every change but the two that end a claim (which only its owner, or whoever knows it dead, may do) is a compare-and-swap.
 * Positions are 64 bits wide in `tail` and `head`, so they never come again; a claim is for a position that was `tail` or
 * `head` when its state was read. (A process would have to be stopped right there while exactly 2^32 messages pass, or a
 * multiple, to claim what is not its.)
 *
 * Invariants: a slot is full, void or free for the next round only after `tail` has passed its position, and free for the next
 * round only after `head` has. So a state that belongs to neither the position nor the round before it means that `tail` or
 * `head` was read too long ago.
 *
 * Death
 * -----
 *   before a claim                 nothing has happened
 *   between claim and publishing   who waits behind it asks after each slice (see futex.h) whether the owner still lives. A dead
 *                                  producer's message is void, and counted in `voided`; a dead consumer's slot is free again, its
 *                                  message, of which nobody knows whether the consumer has used it, is gone, and counted in `lost`
 *   after publishing               the message is sent, or the slot free; if it owed somebody a wake, that one's slice wakes it
 *
 * A call that is interrupted by its time limit, or traps, between claim and publishing leaves its claim to an instance that
 * lives: others wait, until that instance calls `shmwasm_queue_recover`. Functions that do not wait do not ask who lives: a
 * program that only uses these calls `shmwasm_queue_recover` when it makes no progress. */
#ifndef SHMWASM_QUEUE_H
#define SHMWASM_QUEUE_H

#include "futex.h"
#include "heap.h"

#define SHMWASM_QUEUE_MAGIC 0x75657551u /* "Queu" */
#define SHMWASM_QUEUE_MAXIMUM_CAPACITY 0x40000000u
#define SHMWASM_QUEUE_VOID 0xffffffffu

typedef struct {
    uint32_t magic; /* written last */
    uint32_t capacity; /* messages; a power of two, and more than one */
    uint32_t message_size, stride; /* bytes; the stride is from slot to slot, a multiple of 8 */
    uint32_t closed;
    shmwasm_event filled, freed;
    uint32_t voided, lost; /* messages; see Death. Less than the truth if who counted them died as well */
    uint32_t zero_1[23];
    uint64_t tail; /* the next position to fill */
    uint64_t zero_2[15];
    uint64_t head; /* the next position to empty */
    uint64_t zero_3[15];
} shmwasm_queue;

typedef struct {
    uint64_t state; /* the message follows */
} shmwasm_slot;

SHMWASM_ASSERT(sizeof(shmwasm_queue) == 384, "the slots begin at 384");
SHMWASM_ASSERT(offsetof(shmwasm_queue, tail) == 128 && offsetof(shmwasm_queue, head) == 256, "two cache lines each");

/* Returns the bytes that a queue needs; 0 if there can be none: `capacity` must be a power of two from 2 on, and there must be
 * bytes to send. */
SHMWASM_INLINE size_t shmwasm_queue_size(uint32_t capacity, uint32_t message_size) {
    uint64_t stride = (((uint64_t)message_size + 7) & ~(uint64_t)7) + sizeof(shmwasm_slot), size;
    if (capacity < 2 || (capacity & (capacity - 1)) != 0 || capacity > SHMWASM_QUEUE_MAXIMUM_CAPACITY) return 0;
    if (message_size == 0 || stride > UINT32_MAX || __builtin_mul_overflow(stride, capacity, &size)) return 0;
    return size > SIZE_MAX - sizeof(shmwasm_queue) ? 0 : (size_t)size + sizeof(shmwasm_queue);
}

SHMWASM_INLINE shmwasm_slot *shmwasm_queue_slot(shmwasm_queue *queue, uint64_t position) {
    return (shmwasm_slot *)(void *)((char *)(queue + 1) + (size_t)(position & (queue->capacity - 1)) * queue->stride);
}

SHMWASM_INLINE uint64_t shmwasm_queue_state(uint64_t position, uint32_t owner) {
    return (uint64_t)owner << 32 | (uint32_t)position;
}

SHMWASM_INLINE int shmwasm_queue_is_before(uint64_t state, uint64_t position) {
    return (int32_t)((uint32_t)state - (uint32_t)position) < 0;
}

SHMWASM_INLINE uint32_t shmwasm_queue_owner(uint64_t state) { return (uint32_t)(state >> 32); }

/* Makes an empty queue in `shmwasm_queue_size` bytes, aligned to 16, before anyone else knows of it. Returns SHMWASM_OK,
 * SHMWASM_INVALID. */
SHMWASM_SLOW shmwasm_status shmwasm_queue_init(shmwasm_queue *queue, uint32_t capacity, uint32_t message_size) {
    if (shmwasm_queue_size(capacity, message_size) == 0) return SHMWASM_INVALID;
    for (uint32_t i = 0; i < sizeof *queue / 8; i++) ((volatile uint64_t *)queue)[i] = 0;
    queue->capacity = capacity;
    queue->message_size = message_size;
    queue->stride = ((message_size + 7) & ~7u) + (uint32_t)sizeof(shmwasm_slot);
    for (uint32_t i = 0; i < capacity; i++) shmwasm_queue_slot(queue, i)->state = shmwasm_queue_state(i, 0);
    /* Publishes the rest to shmwasm_queue_check. Whoever dies before leaves no queue. */
    __atomic_store_n(&queue->magic, SHMWASM_QUEUE_MAGIC, __ATOMIC_SEQ_CST);
    return SHMWASM_OK;
}

/* Returns a new queue in the shared heap, or null. `shared_heap_free` it when nobody uses it any more. */
SHMWASM_SLOW shmwasm_queue *shmwasm_queue_new(uint32_t capacity, uint32_t message_size) {
    size_t size = shmwasm_queue_size(capacity, message_size);
    shmwasm_queue *queue = size == 0 ? NULL : (shmwasm_queue *)shared_heap_malloc(size);
    if (queue != NULL) (void)shmwasm_queue_init(queue, capacity, message_size);
    return queue;
}

/* Tells whether there is a queue of such messages: for whoever was given its address. */
SHMWASM_INLINE int shmwasm_queue_check(const shmwasm_queue *queue, uint32_t message_size) {
    return __atomic_load_n(&queue->magic, __ATOMIC_SEQ_CST) == SHMWASM_QUEUE_MAGIC && queue->message_size == message_size;
}

SHMWASM_INLINE uint64_t shmwasm_queue_load(const uint64_t *place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST); /* for `tail` and `head` a hint, for a state the first half of a swap */
}

/* Changes a state. A claim (an owner is written) publishes nothing, and keeps all others off the slot from then on: who dies
 * before has left no trace, who dies after has left its number. It pairs with the stores of shmwasm_queue_publish and
 * _release, so that the claimer sees the message, or that its place may be written over. */
SHMWASM_INLINE int shmwasm_queue_swap(uint64_t *state, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(state, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Moves `tail` or `head` past a position, unless it is beyond it already. Whoever claimed it does, or who finds that it has
 * not, be it because it died. */
SHMWASM_INLINE void shmwasm_queue_pass(uint64_t *counter, uint64_t position) {
    (void)__atomic_compare_exchange_n(counter, &position, position + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

SHMWASM_INLINE int shmwasm_queue_is_closed(const shmwasm_queue *queue) {
    return __atomic_load_n(&queue->closed, __ATOMIC_SEQ_CST) != 0; /* pairs with the store in shmwasm_queue_close */
}

/* Tells whether the queue was closed, and nothing will come out of it any more. */
SHMWASM_INLINE int shmwasm_queue_is_drained(shmwasm_queue *queue) {
    if (!shmwasm_queue_is_closed(queue)) return 0;
    /* A producer claims before it looks whether the queue is closed, and we do the opposite: we see its claim, or it sends
     * nothing. */
    uint64_t head = shmwasm_queue_load(&queue->head), state = shmwasm_queue_load(&shmwasm_queue_slot(queue, head)->state);
    return state == shmwasm_queue_state(head, 0) || shmwasm_queue_is_before(state, head);
}

/* Wakes who waits for what has been made available at a position that begins at `counter`. One at a time, and another only
 * while there is something for it: a message must not wake a hundred consumers. But while the first was being woken, others
 * may have found that nobody waits, and woken nobody, for a message or for the end; so say again that somebody may, and look
 * again. */
SHMWASM_SLOW void shmwasm_queue_wake(shmwasm_queue *queue, shmwasm_event *event, uint64_t *counter, uint32_t ready) {
    while (shmwasm_event_signal(event, 1) > 0) {
        (void)shmwasm_event_expect(event);
        uint64_t position = shmwasm_queue_load(counter);
        uint64_t state = shmwasm_queue_load(&shmwasm_queue_slot(queue, position)->state);
        if ((uint32_t)state == (uint32_t)position + ready) continue;
        if (!(event == &queue->filled ? shmwasm_queue_is_drained(queue) : shmwasm_queue_is_closed(queue))) return;
    }
}

SHMWASM_INLINE void shmwasm_queue_signal(shmwasm_queue *queue, shmwasm_event *event, uint64_t *counter, uint32_t ready) {
    /* Pairs with shmwasm_event_expect, as the load in shmwasm_event_signal does. */
    if (!SHMWASM_LIKELY(!(__atomic_load_n(&event->word, __ATOMIC_SEQ_CST) & 1))) shmwasm_queue_wake(queue, event, counter, ready);
}

SHMWASM_INLINE void shmwasm_queue_end_writing(shmwasm_queue *queue, void *message, uint32_t owner) {
    shmwasm_slot *slot = (shmwasm_slot *)message - 1;
    /* Publishes the message, to the swap of the consumer that claims it. Dying before: it becomes void; after: it was sent. */
    __atomic_store_n(&slot->state, shmwasm_queue_state(shmwasm_queue_load(&slot->state) + 1, owner), __ATOMIC_SEQ_CST);
    shmwasm_queue_signal(queue, &queue->filled, &queue->head, 1);
}

/* Returns where the caller may write a message, which it must then publish; null if the queue is full, or closed. */
SHMWASM_INLINE void *shmwasm_queue_claim(shmwasm_queue *queue) {
    if (shmwasm_queue_is_closed(queue)) return NULL;
    for (;;) {
        uint64_t position = shmwasm_queue_load(&queue->tail);
        shmwasm_slot *slot = shmwasm_queue_slot(queue, position);
        uint64_t state = shmwasm_queue_load(&slot->state);
        if (state == shmwasm_queue_state(position, 0)) {
            if (!shmwasm_queue_swap(&slot->state, state, shmwasm_queue_state(position, shmwasm_self()))) continue;
            shmwasm_queue_pass(&queue->tail, position);
            if (SHMWASM_LIKELY(!shmwasm_queue_is_closed(queue))) return slot + 1;
            /* Closed meanwhile: whoever saw that before our claim may have left, as there was nothing more to come. */
            shmwasm_queue_end_writing(queue, slot + 1, SHMWASM_QUEUE_VOID);
            return NULL;
        }
        if ((uint32_t)state == (uint32_t)position) {
            shmwasm_queue_pass(&queue->tail, position);
        } else if (shmwasm_queue_is_before(state, position) && shmwasm_queue_load(&queue->tail) == position) {
            return NULL; /* the slot is still in use for the position of a round ago */
        }
    }
}

/* Sends the message that was written to where `shmwasm_queue_claim` said. */
SHMWASM_INLINE void shmwasm_queue_publish(shmwasm_queue *queue, void *message) { shmwasm_queue_end_writing(queue, message, 0); }

/* Gives the place of the message back that `shmwasm_queue_front` returned. */
SHMWASM_INLINE void shmwasm_queue_release(shmwasm_queue *queue, void *message) {
    shmwasm_slot *slot = (shmwasm_slot *)message - 1;
    uint64_t position = shmwasm_queue_load(&slot->state) - 1;
    /* Publishes that the message was read, to the swap of the producer that claims its place. Dying before: the message is
     * lost with its reader, and its place becomes free. Dying after: it was read. */
    __atomic_store_n(&slot->state, shmwasm_queue_state(position + queue->capacity, 0), __ATOMIC_SEQ_CST);
    shmwasm_queue_signal(queue, &queue->freed, &queue->tail, 0);
}

/* Returns the next message, which is the caller's until it releases it; null if there is none, or if the next one is still
 * being written. */
SHMWASM_INLINE void *shmwasm_queue_front(shmwasm_queue *queue) {
    for (;;) {
        uint64_t position = shmwasm_queue_load(&queue->head);
        shmwasm_slot *slot = shmwasm_queue_slot(queue, position);
        uint64_t state = shmwasm_queue_load(&slot->state);
        uint32_t owner = shmwasm_queue_owner(state);
        if ((uint32_t)state == (uint32_t)position + 1) {
            if (owner == 0 || owner == SHMWASM_QUEUE_VOID) {
                if (!shmwasm_queue_swap(&slot->state, state, shmwasm_queue_state(position + 1, shmwasm_self()))) continue;
                shmwasm_queue_pass(&queue->head, position);
                if (owner == 0) return slot + 1;
                shmwasm_queue_release(queue, slot + 1);
            } else {
                shmwasm_queue_pass(&queue->head, position);
            }
        } else if (shmwasm_queue_is_before(state, position + 1) && shmwasm_queue_load(&queue->head) == position) {
            return NULL; /* free, or being written, or even still in use for the position of a round ago */
        }
    }
}

/* Ends the claim of a slot if its owner is gone, or is this process. Returns how many it ended. */
SHMWASM_SLOW uint32_t shmwasm_queue_recover_at(shmwasm_queue *queue, uint64_t position) {
    shmwasm_slot *slot = shmwasm_queue_slot(queue, position);
    uint64_t state = shmwasm_queue_load(&slot->state);
    uint32_t owner = shmwasm_queue_owner(state);
    int writing = (uint32_t)state == (uint32_t)position, reading = (uint32_t)state == (uint32_t)position + 1;
    if (owner == 0 || owner == SHMWASM_QUEUE_VOID || !(writing || reading)) return 0;
    if (owner != shmwasm_self() && shared_heap_peer_alive(owner)) return 0;
    /* It may have died before it moved the counter on. Others have the same right to end the claim as we: one swap succeeds.
     * Dying between that and the count, or the signal: see `voided`, and futex.h. */
    shmwasm_queue_pass(writing ? &queue->tail : &queue->head, position);
    uint64_t skipped = shmwasm_queue_state(position + 1, SHMWASM_QUEUE_VOID);
    uint64_t ended = writing ? skipped : shmwasm_queue_state(position + queue->capacity, 0);
    if (!shmwasm_queue_swap(&slot->state, state, ended)) return 0;
    __atomic_fetch_add(writing ? &queue->voided : &queue->lost, 1, __ATOMIC_SEQ_CST);
    if (writing) {
        shmwasm_queue_signal(queue, &queue->filled, &queue->head, 1);
    } else {
        shmwasm_queue_signal(queue, &queue->freed, &queue->tail, 0);
    }
    return 1;
}

/* Ends the claims of all who are gone, and of this instance, which must be in the middle of none. Returns how many there were. */
SHMWASM_SLOW uint32_t shmwasm_queue_recover(shmwasm_queue *queue) {
    uint64_t tail = shmwasm_queue_load(&queue->tail);
    uint64_t position = tail < queue->capacity ? 0 : tail - queue->capacity;
    uint32_t ended = 0;
    for (; position <= tail; position++) ended += shmwasm_queue_recover_at(queue, position);
    return ended;
}

/* Returns how many messages are in it, with those being written or read: exact if nobody else is at it. */
SHMWASM_INLINE uint32_t shmwasm_queue_count(const shmwasm_queue *queue) {
    uint64_t head = shmwasm_queue_load(&queue->head); /* first, so that it is not beyond the tail */
    return (uint32_t)(shmwasm_queue_load(&queue->tail) - head);
}

/* Says that nothing more will be sent: pushes are refused from now on, and pops once all that was sent is out. Who waits while
 * another takes the last message learns of the end when its slice ends. */
SHMWASM_INLINE void shmwasm_queue_close(shmwasm_queue *queue) {
    /* Before the signals, as any other news; see shmwasm_queue_is_drained. Dying before the signals: slices heal it. */
    __atomic_store_n(&queue->closed, 1, __ATOMIC_SEQ_CST);
    (void)shmwasm_event_signal(&queue->filled, SHMWASM_EVERYONE);
    (void)shmwasm_event_signal(&queue->freed, SHMWASM_EVERYONE);
}

/* Sends a copy of `message`, whose size is that of the queue's messages. Returns SHMWASM_OK, SHMWASM_AGAIN (full),
 * SHMWASM_CLOSED, SHMWASM_INVALID (another size). */
SHMWASM_INLINE shmwasm_status shmwasm_queue_try_push(shmwasm_queue *queue, const void *message, uint32_t size) {
    if (size != queue->message_size) return SHMWASM_INVALID;
    void *place = shmwasm_queue_claim(queue);
    if (place == NULL) return shmwasm_queue_is_closed(queue) ? SHMWASM_CLOSED : SHMWASM_AGAIN;
    shmwasm_copy(place, message, size);
    shmwasm_queue_publish(queue, place);
    return SHMWASM_OK;
}

/* Copies the next message to `message`. Returns SHMWASM_OK, SHMWASM_AGAIN (empty, or the next message is still being written),
 * SHMWASM_CLOSED (and empty), SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_queue_try_pop(shmwasm_queue *queue, void *message, uint32_t size) {
    if (size != queue->message_size) return SHMWASM_INVALID;
    void *place = shmwasm_queue_front(queue);
    if (place == NULL) return shmwasm_queue_is_drained(queue) ? SHMWASM_CLOSED : SHMWASM_AGAIN;
    shmwasm_copy(message, place, size);
    shmwasm_queue_release(queue, place);
    return SHMWASM_OK;
}

SHMWASM_SLOW
shmwasm_status shmwasm_queue_push_slowly(shmwasm_queue *queue, const void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_patience patience = shmwasm_patience_of(timeout_ns);
    for (uint32_t spins = shmwasm_spins(timeout_ns); spins > 0; spins--) {
        shmwasm_status status = shmwasm_queue_try_push(queue, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_spin();
    }
    for (;;) {
        uint32_t ticket = timeout_ns == 0 ? 0 : shmwasm_event_expect(&queue->freed);
        shmwasm_status status = shmwasm_queue_try_push(queue, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_status waited = shmwasm_patience_wait(&patience, &queue->freed.word, ticket);
        if (waited == SHMWASM_OK) continue;
        /* What keeps the queue full is the position of a round ago. */
        uint64_t tail = shmwasm_queue_load(&queue->tail);
        uint32_t ended = tail < queue->capacity ? 0 : shmwasm_queue_recover_at(queue, tail - queue->capacity);
        if (waited == SHMWASM_TIMED_OUT && ended == 0) return SHMWASM_TIMED_OUT;
    }
}

SHMWASM_SLOW
shmwasm_status shmwasm_queue_pop_slowly(shmwasm_queue *queue, void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_patience patience = shmwasm_patience_of(timeout_ns);
    for (uint32_t spins = shmwasm_spins(timeout_ns); spins > 0; spins--) {
        shmwasm_status status = shmwasm_queue_try_pop(queue, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_spin();
    }
    for (;;) {
        uint32_t ticket = timeout_ns == 0 ? 0 : shmwasm_event_expect(&queue->filled);
        shmwasm_status status = shmwasm_queue_try_pop(queue, message, size);
        if (status != SHMWASM_AGAIN) return status;
        shmwasm_status waited = shmwasm_patience_wait(&patience, &queue->filled.word, ticket);
        if (waited == SHMWASM_OK) continue;
        uint32_t ended = shmwasm_queue_recover_at(queue, shmwasm_queue_load(&queue->head));
        if (waited == SHMWASM_TIMED_OUT && ended == 0) return SHMWASM_TIMED_OUT;
    }
}

/* Sends a copy of `message`, waiting for room for `timeout_ns` nanoseconds at most, or for ever if that is negative. With 0 it
 * does not wait, but notices deaths. Returns SHMWASM_OK, SHMWASM_TIMED_OUT, SHMWASM_CLOSED, SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_queue_push(shmwasm_queue *queue, const void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_status status = shmwasm_queue_try_push(queue, message, size);
    return SHMWASM_LIKELY(status != SHMWASM_AGAIN) ? status : shmwasm_queue_push_slowly(queue, message, size, timeout_ns);
}

/* Copies the next message to `message`, waiting for it likewise. Returns SHMWASM_OK, SHMWASM_TIMED_OUT, SHMWASM_CLOSED (and
 * empty), SHMWASM_INVALID. */
SHMWASM_INLINE shmwasm_status shmwasm_queue_pop(shmwasm_queue *queue, void *message, uint32_t size, int64_t timeout_ns) {
    shmwasm_status status = shmwasm_queue_try_pop(queue, message, size);
    return SHMWASM_LIKELY(status != SHMWASM_AGAIN) ? status : shmwasm_queue_pop_slowly(queue, message, size, timeout_ns);
}

#endif
