/* What tests/integration/test_guest_kit.py does with the guest kit, in C; kit_zig.zig has the same exports, for what both can do. */
#include "shmwasm.h"

#define FOREVER_IN_GUEST() for (;;) __asm__ volatile("" ::: "memory")
#define PRODUCERS 16

struct message {
    uint32_t producer, number;
    uint64_t check;
};

/* Fails the call: a check that does not hold is a trap. */
static void require(int condition) {
    if (!condition) __builtin_trap();
}

static struct message message_of(uint32_t producer, uint32_t number) {
    struct message made = {producer, number, ((uint64_t)producer << 32 | number) * 0x9e3779b97f4a7c15u};
    return made;
}

SHMWASM_EXPORT("new_queue") shmwasm_queue *new_queue(uint32_t capacity) {
    return shmwasm_queue_new(capacity, sizeof(struct message));
}

SHMWASM_EXPORT("new_ring") shmwasm_ring *new_ring(uint32_t capacity) { return shmwasm_ring_new(capacity, sizeof(struct message)); }

SHMWASM_EXPORT("queue_push_many") uint32_t queue_push_many(shmwasm_queue *queue, uint32_t producer, uint32_t count) {
    require(shmwasm_queue_check(queue, sizeof(struct message)));
    for (uint32_t number = 0; number < count; number++) {
        struct message sent = message_of(producer, number);
        require(shmwasm_queue_push(queue, &sent, sizeof sent, SHMWASM_FOREVER) == SHMWASM_OK);
    }
    return count;
}

/* Receives until the queue is closed and empty; checks contents and the order of each producer; counts into `received[producer]`. */
SHMWASM_EXPORT("queue_pop_all") uint32_t queue_pop_all(shmwasm_queue *queue, uint32_t *received, uint32_t producers) {
    uint32_t next[PRODUCERS] = {0}, count = 0;
    struct message got;
    for (; shmwasm_queue_pop(queue, &got, sizeof got, SHMWASM_FOREVER) == SHMWASM_OK; count++) {
        require(got.check == message_of(got.producer, got.number).check);
        require(got.producer < producers && got.producer < PRODUCERS && got.number >= next[got.producer]);
        next[got.producer] = got.number + 1;
        received[got.producer]++;
    }
    return count;
}

SHMWASM_EXPORT("ring_push_many") uint32_t ring_push_many(shmwasm_ring *ring, uint32_t count) {
    require(shmwasm_ring_check(ring, sizeof(struct message)));
    for (uint32_t number = 0; number < count; number++) {
        struct message sent = message_of(0, number);
        require(shmwasm_ring_push(ring, &sent, sizeof sent, SHMWASM_FOREVER) == SHMWASM_OK);
    }
    shmwasm_ring_close(ring);
    return count;
}

SHMWASM_EXPORT("ring_pop_all") uint32_t ring_pop_all(shmwasm_ring *ring) {
    struct message got;
    uint32_t count = 0;
    for (; shmwasm_ring_pop(ring, &got, sizeof got, SHMWASM_FOREVER) == SHMWASM_OK; count++) {
        require(got.number == count && got.check == message_of(0, count).check);
    }
    return count;
}

SHMWASM_EXPORT("queue_close") void queue_close(shmwasm_queue *queue) { shmwasm_queue_close(queue); }

SHMWASM_EXPORT("queue_push") uint32_t queue_push(shmwasm_queue *queue, uint32_t producer, uint32_t number, int64_t timeout_ns) {
    struct message sent = message_of(producer, number);
    return shmwasm_queue_push(queue, &sent, sizeof sent, timeout_ns);
}

/* Returns the number of the message, or less than 0: the status. */
SHMWASM_EXPORT("queue_pop") int64_t queue_pop(shmwasm_queue *queue, int64_t timeout_ns) {
    struct message got;
    shmwasm_status status = shmwasm_queue_pop(queue, &got, sizeof got, timeout_ns);
    return status == SHMWASM_OK ? (int64_t)got.number : -(int64_t)status;
}

SHMWASM_EXPORT("queue_recover") uint32_t queue_recover(shmwasm_queue *queue) { return shmwasm_queue_recover(queue); }

SHMWASM_EXPORT("queue_voided") uint32_t queue_voided(const shmwasm_queue *queue) { return queue->voided; }

SHMWASM_EXPORT("queue_lost") uint32_t queue_lost(const shmwasm_queue *queue) { return queue->lost; }

/* Says in `*here` that it is in the middle, and stays there. */
SHMWASM_EXPORT("queue_claim_and_stay") void queue_claim_and_stay(shmwasm_queue *queue, uint32_t *here) {
    require(shmwasm_queue_claim(queue) != NULL);
    __atomic_store_n(here, 1, __ATOMIC_SEQ_CST);
    FOREVER_IN_GUEST();
}

SHMWASM_EXPORT("queue_take_and_stay") void queue_take_and_stay(shmwasm_queue *queue, uint32_t *here) {
    require(shmwasm_queue_front(queue) != NULL);
    __atomic_store_n(here, 1, __ATOMIC_SEQ_CST);
    FOREVER_IN_GUEST();
}

SHMWASM_EXPORT("mutex_lock_and_stay") void mutex_lock_and_stay(shmwasm_mutex *mutex, uint32_t *here) {
    require(shmwasm_mutex_lock(mutex) == SHMWASM_OK);
    __atomic_store_n(here, 1, __ATOMIC_SEQ_CST);
    FOREVER_IN_GUEST();
}

SHMWASM_EXPORT("mutex_lock") uint32_t mutex_lock(shmwasm_mutex *mutex) { return shmwasm_mutex_lock(mutex); }

SHMWASM_EXPORT("mutex_timedlock") uint32_t mutex_timedlock(shmwasm_mutex *mutex, int64_t timeout_ns) {
    return shmwasm_mutex_timedlock(mutex, timeout_ns);
}

SHMWASM_EXPORT("mutex_trylock") uint32_t mutex_trylock(shmwasm_mutex *mutex) { return shmwasm_mutex_trylock(mutex); }

SHMWASM_EXPORT("mutex_unlock") uint32_t mutex_unlock(shmwasm_mutex *mutex) { return shmwasm_mutex_unlock(mutex); }

SHMWASM_EXPORT("mutex_consistent") uint32_t mutex_consistent(shmwasm_mutex *mutex) { return shmwasm_mutex_consistent(mutex); }

SHMWASM_EXPORT("mutex_is_mine") uint32_t mutex_is_mine(const shmwasm_mutex *mutex) { return (uint32_t)shmwasm_mutex_is_mine(mutex); }

/* Adds to a counter that the mutex protects, in two steps; returns how often the one before had died. */
SHMWASM_EXPORT("add_under_mutex")
uint32_t add_under_mutex(shmwasm_mutex *mutex, volatile uint64_t *counters, uint32_t times) {
    uint32_t died = 0;
    for (uint32_t i = 0; i < times; i++) {
        shmwasm_status status = shmwasm_mutex_lock(mutex);
        if (status == SHMWASM_OWNER_DIED) {
            died++;
            counters[1] = counters[0];
            status = shmwasm_mutex_consistent(mutex);
        }
        require(status == SHMWASM_OK && counters[0] == counters[1]);
        counters[0]++;
        counters[1]++;
        require(shmwasm_mutex_unlock(mutex) == SHMWASM_OK);
    }
    return died;
}

/* Makes a cell that points to a value, both in the heap. */
SHMWASM_EXPORT("new_relative") shmwasm_relative *new_relative(uint64_t value) {
    shmwasm_relative *cell = SHMWASM_NEW(shmwasm_relative);
    uint64_t *target = SHMWASM_NEW_ARRAY(uint64_t, 3);
    require(cell != NULL && target != NULL && target[0] == 0 && target[2] == 0);
    target[0] = value;
    shmwasm_relative_set(cell, target);
    return cell;
}

SHMWASM_EXPORT("relative_round_trip") uint64_t relative_round_trip(const shmwasm_relative *cell) {
    const uint64_t *value = (const uint64_t *)shmwasm_relative_get(cell);
    return value == NULL ? 0 : *value;
}

SHMWASM_EXPORT("self") uint32_t self(void) { return shmwasm_self(); }
