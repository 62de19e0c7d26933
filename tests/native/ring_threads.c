/* The two ends of a call ring as threads that sleep and wake for real: `ring_threads SEED CALLS`.
 *
 * Two threads of a client call, leave, withdraw and interrupt at random; its receiver collects; a worker runs the calls. Each call
 * must end once, with its own result, and an interrupt must hit the call that it was sent for. What passes through the ring is
 * written and read with ordinary accesses, so the thread sanitizer judges whether the ring orders them. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.c"

#include "harness.h"

#define CALLERS 2
#define CELLS 4
#define BATCH 300 /* calls of a batch, at most */

enum { TRIPLE, ENDLESS }; /* the guest's functions: one returns 3 x + 1, one does not return */

static call_ring *shared;
static pthread_mutex_t core = PTHREAD_MUTEX_INITIALIZER; /* one thread of the client at a time is in it */
static int completion, interrupt;
static u32 ticks, expected_ticks;
static u32 stop;
static u64 first_seed;
static u32 calls;
/* Of asynchronous calls: what they were submitted with, by slot; and how many there were and how many ended. */
static u64 given[RING_SLOTS];
static u32 submitted, collected, overdue, withdrawn;

static void signal_event(int descriptor) { CHECK(eventfd_write(descriptor, 1) == 0); }

static void wait_event(int descriptor) {
    eventfd_t count;
    CHECK(eventfd_read(descriptor, &count) == 0);
}

static sem_t *bell(void) { return (sem_t *)shared->bell; }
static sem_t *end_bell(void) { return (sem_t *)shared->end_bell; }

void ring_wake(call_slot *slot) {
    if (slot == NULL) {
        signal_event(completion);
    } else if (load(&slot->waiting) == RING_BELL) {
        CHECK(sem_post(end_bell()) == 0);
    } else {
        syscall(SYS_futex, &slot->state, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
    }
}

void ring_absorb(void) {
    while (load(&ticks) == expected_ticks) sched_yield();
    expected_ticks++;
}

/* ---------------------------------------------------------------- the worker */

static u32 is_interrupted(void) {
    if (load(&ticks) == expected_ticks) return 0;
    CHECK(load(&ticks) == expected_ticks + 1);
    expected_ticks++;
    return 1;
}

static void run_call(call_slot *slot) {
    const u64 *arguments = slot->count ? (const u64 *)((u8 *)shared + slot->arguments) : slot->cells;
    u64 *results = slot->count ? (u64 *)((u8 *)shared + slot->results) : slot->cells;
    u32 count = slot->count ? slot->count : 1;
    for (u32 i = 0; i < count && slot->export == TRIPLE; i++) {
        results[i] = arguments[i] * 3 + 1;
        if (slot->count) slot->progress = i + 1;
    }
    u32 interrupted = is_interrupted();
    while (slot->export == ENDLESS && !interrupted) {
        sched_yield();
        interrupted = is_interrupted();
    }
    if (ring_end(shared, slot, interrupted ? CALL_OVERDUE : CALL_RETURNED, interrupted)) CHECK(sem_post(end_bell()) == 0);
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        CHECK(!is_interrupted());
        uintptr_t answer = ring_next(shared);
        switch (answer) {
        case RING_PARK:
            if (!ring_park(shared)) break;
            CHECK(sem_wait(bell()) == 0);
            ring_unpark(shared);
            break;
        case RING_ATTENTION: return NULL;
        default: run_call((call_slot *)answer);
        }
    }
}

static void *interrupt_calls(void *unused) {
    (void)unused;
    for (;;) {
        wait_event(interrupt);
        if (load(&stop)) return NULL;
        __atomic_fetch_add(&ticks, 1, __ATOMIC_SEQ_CST);
    }
}

/* ---------------------------------------------------------------- the client */

#define IN_CORE(call)                   \
    ({                                  \
        pthread_mutex_lock(&core);      \
        __auto_type answer_ = call;     \
        pthread_mutex_unlock(&core);    \
        answer_;                        \
    })

static u32 submit_and_note(call_request *request) {
    u32 answer = ring_submit(request);
    if (answer != RING_FULL && (request->flags & CALL_ASYNCHRONOUS)) {
        given[request->sequence % RING_SLOTS] = request->cells[0];
        submitted++;
    }
    return answer;
}

static u32 submit(call_request *request) {
    u32 answer;
    while ((answer = IN_CORE(submit_and_note(request))) == RING_FULL) sched_yield();
    if (answer & RING_DOORBELL) CHECK(sem_post(bell()) == 0);
    return answer & ~(u32)RING_DOORBELL;
}

static u32 await(call_request *request, u32 looks) {
    u32 answer;
    while ((answer = IN_CORE(ring_wait(request, looks))) == RING_PENDING) {
        void *place = IN_CORE(ring_doze(request, RING_BELL)); /* one of the callers finds the other one there */
        if (place == end_bell()) {
            CHECK(sem_wait(end_bell()) == 0);
        } else if (place != NULL) {
            syscall(SYS_futex, place, FUTEX_WAIT, request->status, NULL, NULL, 0);
        }
    }
    return answer;
}

/* Submits a call and waits for it, as a caller does who has nothing else to do meanwhile. */
static u32 call(call_request *request, u32 looks) {
    u32 answer;
    while ((answer = IN_CORE(ring_call(request))) == RING_FULL) sched_yield();
    if (answer & RING_DOORBELL) CHECK(sem_post(bell()) == 0);
    if (answer & RING_AT_BELL) CHECK(sem_wait(end_bell()) == 0);
    return answer & RING_PENDING ? await(request, looks) : answer;
}

static void end_early(call_request *request, u32 only_waiting) {
    if (IN_CORE(ring_end_early(shared, request->sequence, only_waiting)) == CALL_INTERRUPTING) signal_event(interrupt);
}

static void collected_one(const call_request *request) {
    CHECK(request->status == CALL_WITHDRAWN || request->cells[0] == given[request->sequence % RING_SLOTS] * 3 + 1);
    collected++;
}

static u32 collect_next(call_request *request, u32 first) {
    u32 slot = ring_collect(request, first);
    if (slot < RING_SLOTS) collected_one(request);
    return slot;
}

static void collect_all(call_request *request) {
    for (u32 slot = 0; slot < RING_SLOTS; slot++) slot = IN_CORE(collect_next(request, slot));
}

static void *receive(void *argument) {
    call_request *request = argument;
    while (!load(&stop)) {
        pthread_mutex_lock(&core);
        ring_ask(shared);
        pthread_mutex_unlock(&core);
        collect_all(request);
        wait_event(completion);
    }
    return NULL;
}

static u32 leave_noted(call_request *request) {
    u32 sequence = request->sequence;
    if (ring_state(shared, sequence) == CALL_EMPTY) return 0;
    given[sequence % RING_SLOTS] = request->cells[0];
    submitted++;
    return ring_leave(shared, sequence);
}

static void call_single(call_request *request, u64 *seed) {
    u64 value = request->cells[0] = random_below(seed, 1 << 30);
    CHECK(call(request, random_below(seed, 200)) == RING_DONE);
    CHECK(request->cells[0] == value * 3 + 1);
}

static void call_batch(call_request *request, u64 *seed, u32 buffer) {
    u32 count = 1 + random_below(seed, BATCH), base = RING_BATCHES + buffer * RING_BATCH_SIZE;
    u64 *cells = (u64 *)((u8 *)shared + base);
    for (u32 i = 0; i < count; i++) cells[i] = i + count;
    request->cells_in = request->cells_out = 0;
    request->count = count;
    request->arguments = base;
    request->results = base + 8 * count;
    CHECK(call(request, 10) == RING_DONE && request->progress == count);
    for (u32 i = 0; i < count; i++) CHECK(cells[count + i] == (i + count) * 3 + 1);
    request->cells_in = request->cells_out = 1;
    request->count = 0;
}

static void call_ended_early(call_request *request, u64 *seed) {
    u32 only_waiting = random_below(seed, 2);
    u64 value = request->cells[0] = random_below(seed, 1 << 30);
    request->export = only_waiting ? TRIPLE : ENDLESS;
    CHECK(submit(request) == RING_PENDING);
    for (u32 pause = random_below(seed, 8); pause--;) sched_yield();
    end_early(request, only_waiting);
    if (await(request, random_below(seed, 50)) == RING_DONE) {
        CHECK(only_waiting && request->cells[0] == value * 3 + 1);
    } else {
        CHECK(request->status == CALL_WITHDRAWN || (request->status == CALL_OVERDUE && !only_waiting));
        __atomic_fetch_add(request->status == CALL_OVERDUE ? &overdue : &withdrawn, 1, __ATOMIC_RELAXED);
    }
    request->export = TRIPLE;
}

static void call_interrupted_late(call_request *request, u64 *seed) {
    u64 value = request->cells[0] = random_below(seed, 1 << 30);
    CHECK(submit(request) == RING_PENDING);
    end_early(request, 0);
    if (await(request, 0) == RING_DONE) CHECK(request->cells[0] == value * 3 + 1);
}

static void call_and_leave(call_request *request, u64 *seed) {
    request->cells[0] = random_below(seed, 1 << 30);
    CHECK(submit(request) == RING_PENDING);
    end_early(request, 1);
    if (IN_CORE(leave_noted(request))) collect_all(request);
    request->cells_out = 1;
}

static void call_asynchronously(call_request *request, u64 *seed) {
    request->cells[0] = random_below(seed, 1 << 30);
    request->flags = CALL_ASYNCHRONOUS;
    CHECK(submit(request) == RING_PENDING);
    request->flags = 0;
}

static void *call_at_random(void *argument) {
    u32 number = (u32)(uintptr_t)argument;
    u64 seed = first_seed * CALLERS + number;
    call_request *request = IN_CORE(ring_new_request(CELLS));
    request->ring = shared;
    request->cells_in = request->cells_out = 1;
    for (u32 call = 0; call < calls; call++) {
        switch (random_below(&seed, 16)) {
        case 0: call_ended_early(request, &seed); break;
        case 1: call_interrupted_late(request, &seed); break;
        case 2: call_and_leave(request, &seed); break;
        case 3: call_batch(request, &seed, number); break;
        case 4:
        case 5:
        case 6: call_asynchronously(request, &seed); break;
        default: call_single(request, &seed);
        }
    }
    free(request);
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    first_seed = strtoull(arguments[1], NULL, 10);
    calls = (u32)strtoul(arguments[2], NULL, 10);
    /* Exactly as large as the segment, so that the sanitizer sees the first byte that is touched beyond it. */
    shared = aligned_alloc(SECTION_ALIGNMENT, RING_SIZE);
    memset(shared, 0, RING_SIZE);
    CHECK(ring_format(shared, CELLS) == STATUS_OK && ring_is_sound(shared));
    shared->submitted = shared->taken = 0u - calls / 2; /* so that the numbers wrap */
    ring_set_spin(shared, (u32)first_seed % 3 * 100);
    CHECK(sem_init(bell(), 0, 0) == 0 && sem_init(end_bell(), 0, 0) == 0);
    completion = eventfd(0, 0);
    interrupt = eventfd(0, EFD_SEMAPHORE);
    call_request *request = ring_new_request(CELLS);
    request->ring = shared;
    pthread_t threads[CALLERS], worker, interrupter, receiver;
    CHECK(pthread_create(&worker, NULL, work, NULL) == 0 && pthread_create(&interrupter, NULL, interrupt_calls, NULL) == 0);
    CHECK(pthread_create(&receiver, NULL, receive, request) == 0);
    for (uintptr_t i = 0; i < CALLERS; i++) CHECK(pthread_create(&threads[i], NULL, call_at_random, (void *)i) == 0);
    for (u32 i = 0; i < CALLERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    while (IN_CORE(collected) != submitted) sched_yield();
    store(&stop, 1);
    ring_call_attention(shared);
    CHECK(sem_post(bell()) == 0);
    signal_event(completion);
    signal_event(interrupt);
    CHECK(pthread_join(worker, NULL) == 0 && pthread_join(interrupter, NULL) == 0 && pthread_join(receiver, NULL) == 0);
    for (u32 slot = 0; slot < RING_SLOTS; slot++) CHECK(ring_state(shared, slot_of(shared, slot)->sequence) == CALL_EMPTY);
    printf("%u calls, %u of them collected, %u interrupted, %u withdrawn\n", CALLERS * calls, collected, overdue, withdrawn);
    free(request);
    free(shared);
    return 0;
}
