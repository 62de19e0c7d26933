/* The call ring (see ring.h): what the client does in the first half, what the worker does in the second.
 *
 * Three pairs of a sleeper and a waker, and in each the same argument. The sleeper first says that it will sleep, then looks for
 * what would make sleeping wrong; the waker first brings that about, then looks whether somebody sleeps. All four are sequentially
 * consistent, so they have one order, and whichever of the two first steps is earlier is seen by the other side's second: either
 * the sleeper stays awake or the waker wakes it. `tests/native/interleavings.c` runs this code in every order there is.
 *
 *   sleeper                               says              looks at          waker                     brings about
 *   worker, nothing to run                parked            next state        client, submitting        SUBMITTED
 *   client, waiting for its call          slot's waiting    slot's state      worker, ending a call     ENDED
 *   client's receiver                     notify            ended calls       worker, ending a call     ENDED
 */
#include "memory.h"

#include "../ring.h"

typedef struct {
    u64 magic;
    u32 version, slot_size;
    _Alignas(64) u32 submitted;
    u32 patience, misses, closing, bell_call;
    _Alignas(64) u32 taken;
    _Alignas(64) u32 parked;
    _Alignas(64) u32 notify;
    _Alignas(64) u32 attention;
    u32 spin;
    _Alignas(64) u8 bell[64];
    u8 end_bell[64];
} call_ring;

typedef struct {
    u32 state, waiting, sequence, export, flags, status, count, progress, arguments, results;
    u64 when;
    u32 cells_out, stop;
    _Alignas(64) u64 cells[];
} call_slot;

typedef struct {
    u32 sequence, export, flags, cells_in, cells_out, status, count, progress, arguments, results;
    u64 when;
    call_ring *ring;
    _Alignas(16) u64 host[2];
    u64 cells[];
} call_request;

_Static_assert(offsetof(call_ring, misses) == 72 && offsetof(call_ring, bell_call) == 80, "the header is as ring.h says");
_Static_assert(offsetof(call_ring, taken) == 128, "the header is as ring.h says");
_Static_assert(offsetof(call_ring, notify) == 256 && offsetof(call_ring, spin) == 324, "the header is as ring.h says");
_Static_assert(offsetof(call_ring, bell) == RING_WORKER_BELL && offsetof(call_ring, end_bell) == RING_END_BELL, "as ring.h says");
_Static_assert(offsetof(call_slot, cells_out) == 48 && offsetof(call_slot, stop) == 52, "the slot is as ring.h says");
_Static_assert(offsetof(call_slot, cells) == RING_SLOT_HEADER, "the slot is as ring.h says");
_Static_assert(offsetof(call_request, ring) == 48 && offsetof(call_request, host) == REQUEST_HOST, "the request is as ring.h says");
_Static_assert(offsetof(call_request, cells) == REQUEST_CELLS, "the request is as ring.h says");

/* Wakes whoever sleeps until the call in a slot ends, or, for null, the client's receiver. */
IMPORT(ring_wake) void ring_wake(call_slot *slot);
/* Waits for the tick that was meant for the call that has just ended, and makes it harmless. */
IMPORT(ring_absorb) void ring_absorb(void);

#ifndef load
#define load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
#define store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
#define exchange_word(place, value) __atomic_exchange_n((place), (value), __ATOMIC_SEQ_CST)
#define change(place, from, to) change_word((place), (from), (to))
INLINE u32 change_word(u32 *place, u32 from, u32 to) {
    return __atomic_compare_exchange_n(place, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#endif

INLINE call_slot *slot_of(call_ring *ring, u32 sequence) {
    return (call_slot *)((u8 *)ring + RING_FIRST_SLOT + (sequence % RING_SLOTS) * ring->slot_size);
}

/* Whether memory is a ring for this code; both sides ask before they use it. */
u32 EXPORT(ring_is_sound)(call_ring *ring) {
    u32 size = ring->slot_size;
    return ring->magic == RING_MAGIC && ring->version == RING_VERSION && size % 64 == 0 && size >= RING_SLOT_HEADER &&
           size <= (RING_BATCHES - RING_FIRST_SLOT) / RING_SLOTS;
}

/* Makes zeroed memory a ring whose slots have room for `cells` cells. */
u32 EXPORT(ring_format)(call_ring *ring, u32 cells) {
    if (cells > RING_MAXIMUM_CELLS) return STATUS_BAD_ARGUMENT;
    ring->slot_size = (RING_SLOT_HEADER + cells * 8 + 63) & ~63u;
    ring->bell_call = 0u - 1; /* none yet: calls are numbered from 0 */
    ring->version = RING_VERSION;
    ring->magic = RING_MAGIC;
    return STATUS_OK;
}

/* ---------------------------------------------------------------- the client
 *
 * One thread at a time runs any of this, so what only the client writes needs no care: `submitted`, a slot's sequence and flags, and
 * that a slot is empty. */

/* Room for requests of up to so many cells, to be used for one after another. Null if there is no more. */
call_request *EXPORT(ring_new_request)(u32 cells) {
    return cells > RING_MAXIMUM_CELLS ? NULL : new_memory(REQUEST_CELLS + cells * 8);
}

/* Submits a call. The calls are numbered as they are submitted. */
u32 EXPORT(ring_submit)(call_request *request) {
    call_ring *ring = request->ring;
    if (ring == NULL) return RING_LOST;
    /* Asynchronous calls were taken before they get here, and may have waited for room. */
    if (ring->closing && !(request->flags & CALL_ASYNCHRONOUS)) return RING_CLOSING;
    call_slot *slot = slot_of(ring, ring->submitted);
    /* Only the client empties a slot, so what the worker did with it was seen when it was emptied. */
    if (plain_load(&slot->state) != CALL_EMPTY) return RING_FULL;
    request->sequence = slot->sequence = ring->submitted++;
    slot->export = request->export;
    slot->count = request->count;
    slot->progress = 0;
    slot->arguments = request->arguments;
    slot->results = request->results;
    slot->when = request->when;
    slot->cells_out = request->cells_out;
    slot->stop = 0;
    for (u32 i = 0; i < request->cells_in; i++) slot->cells[i] = request->cells[i];
    /* These two the worker may still be reading for the call that was here before: see `announce_end`. */
    plain_store(&slot->flags, request->flags);
    plain_store(&slot->waiting, 0);
    /* Publishes all of the above: the worker reads it after its compare-and-swap of the state. A client that dies before this has
     * submitted nothing, one that dies after it has submitted all of it. */
    store(&slot->state, CALL_SUBMITTED);
    return RING_PENDING | (load(&ring->parked) ? RING_DOORBELL : 0);
}

/* Takes the results of a call that has ended, and empties its slot. */
INLINE u32 take_results(call_slot *slot, call_request *request) {
    request->status = slot->status;
    request->progress = slot->progress;
    request->when = slot->when;
    for (u32 i = 0; i < request->cells_out; i++) request->cells[i] = slot->cells[i];
    /* Not published to anybody: the worker takes an empty slot for one with nothing to run, like one that has ended. */
    plain_store(&slot->state, CALL_EMPTY);
    return request->status == CALL_RETURNED ? RING_DONE : RING_FAILED;
}

/* Waits for the call of `request` by looking at it so many times more than once. */
u32 EXPORT(ring_wait)(call_request *request, u32 looks) {
    if (request->ring == NULL) return RING_LOST;
    call_slot *slot = slot_of(request->ring, request->sequence);
    if (slot->sequence != request->sequence) return RING_LOST;
    do {
        u32 state = load(&slot->state);
        if (state == CALL_ENDED) return take_results(slot, request);
        if (state == CALL_EMPTY) return RING_LOST;
    } while (looks--);
    return RING_PENDING;
}

/* The same with one look, for callers whose time is short: the request is all that they need to pass. */
u32 EXPORT(ring_look)(call_request *request) { return ring_wait(request, 0); }

/* Whether the caller of a call may sleep at the bell: no other one does, or may do so yet without another look. */
INLINE u32 may_sleep_at_bell(call_ring *ring, u32 sequence) {
    call_slot *slot = slot_of(ring, ring->bell_call);
    if (ring->bell_call != sequence && slot->sequence == ring->bell_call && plain_load(&slot->state) != CALL_EMPTY) return 0;
    ring->bell_call = sequence;
    return 1;
}

/* Says that the client is about to sleep until the call ends: RING_FUTEX, or RING_BELL where it may. Returns the address of what to
 * sleep at: the bell, or the slot's state while it holds what is in `request->status` then; or null: there is no need to, and
 * `ring_wait` tells why. */
void *EXPORT(ring_doze)(call_request *request, u32 how) {
    call_ring *ring = request->ring;
    if (ring == NULL) return NULL;
    call_slot *slot = slot_of(ring, request->sequence);
    if (slot->sequence != request->sequence) return NULL;
    if (how == RING_BELL && !may_sleep_at_bell(ring, request->sequence)) how = RING_FUTEX;
    /* Pairs with `announce_end`. */
    store(&slot->waiting, how);
    request->status = load(&slot->state);
    if (request->status == CALL_ENDED || request->status == CALL_EMPTY) return NULL;
    return how == RING_BELL ? (void *)ring->end_bell : &slot->state;
}

/* Submits a call, and waits for it as long as that seems worth it: not at all for a worker that sleeps. The caller, who wakes it, will
 * sleep at once then, so that is prepared here. */
u32 EXPORT(ring_call)(call_request *request) {
    u32 answer = ring_submit(request);
    if (answer == (RING_PENDING | RING_DOORBELL)) {
        void *place = ring_doze(request, RING_BELL);
        if (place == NULL) return ring_wait(request, 0); /* it has ended, so the worker woke by itself */
        return place == request->ring->end_bell ? answer | RING_AT_BELL : answer;
    }
    if (answer != RING_PENDING) return answer;
    call_ring *ring = request->ring;
    u32 misses = ring->misses, patient = misses < RING_MISSES || misses % RING_PROBE == 0;
    answer = ring_wait(request, patient ? ring->patience : ring->patience / RING_MOMENT);
    ring->misses = answer == RING_PENDING ? misses + 1 : 0;
    return answer;
}

/* Takes any asynchronous call that has ended, from the slot `first` on; returns its slot, or RING_SLOTS if there is none. The request
 * has room for the results of every call. */
u32 EXPORT(ring_collect)(call_request *request, u32 first) {
    if (request->ring == NULL) return RING_SLOTS;
    for (u32 i = first; i < RING_SLOTS; i++) {
        call_slot *slot = slot_of(request->ring, i);
        if (load(&slot->state) != CALL_ENDED || !(plain_load(&slot->flags) & CALL_ASYNCHRONOUS)) continue;
        request->sequence = slot->sequence;
        request->cells_out = slot->cells_out;
        take_results(slot, request);
        return i;
    }
    return RING_SLOTS;
}

/* Asks for the receiver to be woken at the next end of an asynchronous call. Whoever asked looks for ended calls once more before
 * it sleeps. */
void EXPORT(ring_ask)(call_ring *ring) { store(&ring->notify, 1); }

/* Leaves a call that somebody waited for to the receiver. Returns whether it has ended already: then nobody may have told the
 * receiver, and whoever leaves it sees to that. Nothing happens if it was left before. */
u32 EXPORT(ring_leave)(call_ring *ring, u32 sequence) {
    call_slot *slot = slot_of(ring, sequence);
    if (slot->sequence != sequence || (slot->flags & CALL_ASYNCHRONOUS)) return 0;
    /* Pairs with `announce_end`: the flags are to the leaver what `waiting` is to a sleeper. */
    store(&slot->flags, slot->flags | CALL_ASYNCHRONOUS);
    return load(&slot->state) == CALL_ENDED;
}

/* Ends a call early. Returns CALL_CANCELLED if it had not begun, and will not; CALL_INTERRUPTING if it runs: the client now owes the
 * worker one tick; CALL_RUNNING if it runs, and is not to be stopped; CALL_EMPTY if there is nothing to do: it has ended, or is
 * being ended, or is another one by now. */
u32 EXPORT(ring_end_early)(call_ring *ring, u32 sequence, u32 only_waiting) {
    call_slot *slot = slot_of(ring, sequence);
    if (slot->sequence != sequence) return CALL_EMPTY;
    /* Against `ring_next`: either it takes the call, and the next line finds it running, or it finds it cancelled. */
    if (change(&slot->state, CALL_SUBMITTED, CALL_CANCELLED)) return CALL_CANCELLED;
    if (only_waiting) return load(&slot->state) == CALL_RUNNING ? CALL_RUNNING : CALL_EMPTY;
    /* Against `ring_end`: either it ends the call, and no tick is sent, or it waits for the tick. So a tick hits no other call. A
     * client that dies before it has sent the tick leaves a worker that waits for it, and that is ended like all of a client's. */
    return change(&slot->state, CALL_RUNNING, CALL_INTERRUPTING) ? CALL_INTERRUPTING : CALL_EMPTY;
}

/* Ends a stoppable batch early that runs the call that comes after `progress` others. Returns what `ring_end_early` does, but
 * CALL_RUNNING if that call has returned: then nothing was done, or the batch ends before its next call. */
u32 EXPORT(ring_end_at)(call_ring *ring, u32 sequence, u32 progress) {
    call_slot *slot = slot_of(ring, sequence);
    if (slot->sequence != sequence) return CALL_EMPTY;
    /* Against `ring_advance`: either this sees that the call has returned, or the worker sees after the call that it is to stop, so
     * that the tick finds that call or none. */
    store(&slot->stop, 1);
    if (load(&slot->progress) == progress) return ring_end_early(ring, sequence, 0);
    /* If a tick is on its way, the batch is to stop all the same. */
    if (load(&slot->state) != CALL_INTERRUPTING) store(&slot->stop, 0);
    return CALL_RUNNING;
}

/* The state of a call; CALL_EMPTY once it was collected. */
u32 EXPORT(ring_state)(call_ring *ring, u32 sequence) {
    call_slot *slot = slot_of(ring, sequence);
    return slot->sequence == sequence ? load(&slot->state) : CALL_EMPTY;
}

/* Tells the worker that a message waits for it beside the ring; called when it was sent. One that sleeps is to be woken, too. */
void EXPORT(ring_call_attention)(call_ring *ring) { store(&ring->attention, 1); }

/* How often the worker is to look for a call before it parks. */
void EXPORT(ring_set_spin)(call_ring *ring, u32 looks) { plain_store(&ring->spin, looks); }

/* How often the client is to look for the end of a call in `ring_call`. */
void EXPORT(ring_set_patience)(call_ring *ring, u32 looks) {
    ring->patience = looks;
    ring->misses = 0;
}

/* ---------------------------------------------------------------- the worker */

/* After an end was published. From then on the slot is the client's, who may submit in it at once: a wake-up that finds another call
 * is one too many, and harms nobody, as nobody sleeps for a call that was collected. The flags are read this late for the sake of a
 * client that leaves its call to the receiver. A worker that dies before it wakes is missed by the client, who watches it.
 * Returns whether a client sleeps at the bell, which is left to the caller: it may have a quicker way to ring it than the host. */
INLINE u32 announce_end(call_ring *ring, call_slot *slot) {
    if (load(&slot->flags) & CALL_ASYNCHRONOUS) {
        /* Only one end answers a request to be woken; the receiver looks at all of them. */
        if (load(&ring->notify) && exchange_word(&ring->notify, 0)) ring_wake(NULL);
        return 0;
    }
    u32 how = load(&slot->waiting);
    if (how == RING_FUTEX) ring_wake(slot);
    return how == RING_BELL;
}

/* Ends the call in `slot`, unless it has ended already. With `interrupted` its tick has arrived; without, one that is on its way must
 * not hit the next call. An engine lets a tick trap at a function's entry and in loops: not between here and `ring_absorb`.
 * Returns whether the caller must ring `end_bell`. */
u32 EXPORT(ring_end)(call_ring *ring, call_slot *slot, u32 status, u32 interrupted) {
    u32 state = load(&slot->state);
    if (state != CALL_RUNNING && state != CALL_INTERRUPTING) return 0;
    slot->status = status;
    /* Publishes the status, the results and the progress: the client reads them after it has seen this. A worker that dies before
     * it was running the call. */
    if (!change(&slot->state, CALL_RUNNING, CALL_ENDED)) {
        if (!interrupted) ring_absorb();
        store(&slot->state, CALL_ENDED);
    }
    return announce_end(ring, slot);
}

/* Counts one more call of a stoppable batch as returned. Returns whether the batch is to end there. */
u32 EXPORT(ring_advance)(call_slot *slot) {
    store(&slot->progress, slot->progress + 1);
    return load(&slot->stop);
}

/* Takes the next call, and returns its slot; or returns why not. */
uintptr_t EXPORT(ring_next)(call_ring *ring) {
    u32 looks = plain_load(&ring->spin);
    for (;;) {
        if (load(&ring->attention)) return RING_ATTENTION;
        call_slot *slot = slot_of(ring, ring->taken);
        switch (load(&slot->state)) {
        case CALL_SUBMITTED:
            /* Against `ring_end_early`, which may have cancelled it this very moment. */
            if (change(&slot->state, CALL_SUBMITTED, CALL_RUNNING)) {
                ring->taken++;
                return (uintptr_t)slot;
            }
            break;
        case CALL_CANCELLED:
            slot->status = CALL_WITHDRAWN;
            ring->taken++;
            store(&slot->state, CALL_ENDED);
            if (announce_end(ring, slot)) ring_wake(slot);
            break;
        default:
            if (looks-- == 0) return RING_PARK;
        }
    }
}

/* The slot of the call that was taken last. */
uintptr_t EXPORT(ring_running)(call_ring *ring) { return (uintptr_t)slot_of(ring, ring->taken - 1); }

/* Says that the worker is about to sleep; returns whether it may. */
u32 EXPORT(ring_park)(call_ring *ring) {
    store(&ring->parked, 1);
    u32 state = load(&slot_of(ring, ring->taken)->state);
    u32 idle = state != CALL_SUBMITTED && state != CALL_CANCELLED && !load(&ring->attention);
    if (!idle) store(&ring->parked, 0);
    return idle;
}

void EXPORT(ring_unpark)(call_ring *ring) { store(&ring->parked, 0); }

/* The worker reads its messages after this, so that one whose sender called attention before is not missed. */
void EXPORT(ring_attend)(call_ring *ring) { store(&ring->attention, 0); }

