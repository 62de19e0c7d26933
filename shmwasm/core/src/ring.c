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
    _Alignas(64) u32 taken;
    u32 ended, watched, run;
    _Alignas(64) u32 parked;
    _Alignas(64) u32 notify;
    _Alignas(64) u32 attention;
    u32 spin;
} call_ring;

typedef struct {
    u32 state, waiting, sequence, export, flags, status, count, progress, arguments, results;
    u64 when;
    _Alignas(64) u64 cells[];
} call_slot;

typedef struct {
    u32 sequence, export, flags, cells_in, cells_out, status, count, progress, arguments, results;
    u64 when;
    _Alignas(64) u64 cells[];
} call_request;

_Static_assert(offsetof(call_ring, submitted) == 64 && offsetof(call_ring, watched) == 136, "the header is as ring.h says");
_Static_assert(offsetof(call_ring, notify) == 256 && offsetof(call_ring, spin) == 324, "the header is as ring.h says");
_Static_assert(offsetof(call_slot, when) == 40 && offsetof(call_slot, cells) == RING_SLOT_HEADER, "the slot is as ring.h says");
_Static_assert(offsetof(call_request, when) == 40 && offsetof(call_request, cells) == REQUEST_CELLS, "and the request");

/* Wakes whoever sleeps on a slot's state, or, for null, the client's receiver. */
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
    ring->version = RING_VERSION;
    ring->magic = RING_MAGIC;
    return STATUS_OK;
}

/* ---------------------------------------------------------------- the client */

/* Room for requests of up to so many cells, to be used for one after another. Null if there is no more. */
call_request *EXPORT(ring_new_request)(u32 cells) {
    return cells > RING_MAXIMUM_CELLS ? NULL : new_memory(REQUEST_CELLS + cells * 8);
}

/* Submits a call. The client calls this from one thread at a time, so its calls are numbered as they are submitted. */
u32 EXPORT(ring_submit)(call_ring *ring, call_request *request) {
    if (ring == NULL) return RING_LOST;
    call_slot *slot = slot_of(ring, ring->submitted);
    if (load(&slot->state) != CALL_EMPTY) return RING_FULL;
    request->sequence = slot->sequence = ring->submitted;
    slot->export = request->export;
    slot->status = CALL_RETURNED;
    slot->count = request->count;
    slot->progress = 0;
    slot->arguments = request->arguments;
    slot->results = request->results;
    slot->when = request->when;
    for (u32 i = 0; i < request->cells_in; i++) slot->cells[i] = request->cells[i];
    store(&slot->flags, request->flags);
    store(&slot->waiting, 0);
    ring->submitted++;
    /* Publishes all of the above: the worker reads none of it before it sees this. */
    store(&slot->state, CALL_SUBMITTED);
    return RING_PENDING | (load(&ring->parked) ? RING_DOORBELL : 0);
}

/* Takes the results of a call that has ended, and empties its slot. */
static void collect(call_slot *slot, call_request *request) {
    request->status = slot->status;
    request->progress = slot->progress;
    request->count = slot->count;
    request->when = slot->when;
    for (u32 i = 0; i < request->cells_out; i++) request->cells[i] = slot->cells[i];
    /* Gives the slot to the next call. A client that dies before this leaves a ring that nobody uses any more. */
    store(&slot->state, CALL_EMPTY);
}

/* Waits for the call of `request` by looking at it so many times more. */
u32 EXPORT(ring_wait)(call_ring *ring, call_request *request, u32 looks) {
    call_slot *slot = slot_of(ring, request->sequence);
    do {
        if (load(&slot->state) == CALL_ENDED) {
            if (slot->sequence != request->sequence) return RING_LOST;
            collect(slot, request);
            return request->status == CALL_RETURNED ? RING_DONE : RING_FAILED;
        }
    } while (looks--);
    return RING_PENDING;
}

/* Submits a call and waits for it by looking at it so many times. */
u32 EXPORT(ring_call)(call_ring *ring, call_request *request, u32 looks) {
    u32 answer = ring_submit(ring, request);
    return answer == RING_PENDING ? ring_wait(ring, request, looks) : answer;
}

/* Says that the client is about to sleep until the call ends. Returns the address of the word to sleep on while it holds what is in
 * `request->status` then, or null: the call has ended. */
u32 *EXPORT(ring_doze)(call_ring *ring, call_request *request) {
    call_slot *slot = slot_of(ring, request->sequence);
    store(&slot->waiting, 1);
    request->status = load(&slot->state);
    return request->status == CALL_ENDED ? NULL : &slot->state;
}

/* Takes any asynchronous call that has ended, from the slot `first` on; returns its slot, or RING_SLOTS if there is none. */
u32 EXPORT(ring_collect)(call_ring *ring, call_request *request, u32 first) {
    for (u32 i = first; i < RING_SLOTS; i++) {
        call_slot *slot = slot_of(ring, i);
        if (load(&slot->state) != CALL_ENDED || !(load(&slot->flags) & CALL_ASYNCHRONOUS)) continue;
        request->sequence = slot->sequence;
        collect(slot, request);
        return i;
    }
    return RING_SLOTS;
}

/* Asks for the receiver to be woken at the next end of an asynchronous call. Whoever asked looks for ended calls once more before
 * it sleeps. */
void EXPORT(ring_ask)(call_ring *ring) { store(&ring->notify, 1); }

/* Leaves a call that somebody waited for to the receiver, who is to look for ended calls after this. */
void EXPORT(ring_leave)(call_ring *ring, u32 sequence) {
    call_slot *slot = slot_of(ring, sequence);
    store(&slot->flags, load(&slot->flags) | CALL_ASYNCHRONOUS);
}

/* Ends a call early. Returns CALL_CANCELLED if it had not begun, and will not; CALL_INTERRUPTING if it runs: the client now owes the
 * worker one tick; else 0: it has ended, or is ending for another reason. */
u32 EXPORT(ring_end_early)(call_ring *ring, u32 sequence, u32 only_waiting) {
    call_slot *slot = slot_of(ring, sequence);
    if (slot->sequence != sequence) return 0;
    if (change(&slot->state, CALL_SUBMITTED, CALL_CANCELLED)) return CALL_CANCELLED;
    if (!only_waiting && change(&slot->state, CALL_RUNNING, CALL_INTERRUPTING)) return CALL_INTERRUPTING;
    return 0;
}

/* The state of a call, for when the worker is gone. */
u32 EXPORT(ring_state)(call_ring *ring, u32 sequence) { return load(&slot_of(ring, sequence)->state); }

/* Tells the worker that a message waits for it beside the ring. */
void EXPORT(ring_call_attention)(call_ring *ring) { store(&ring->attention, 1); }

/* How often the worker is to look for a call before it parks. */
void EXPORT(ring_set_spin)(call_ring *ring, u32 looks) { store(&ring->spin, looks); }

/* ---------------------------------------------------------------- the worker */

/* After an end was published. From then on the slot is the client's, who may submit in it at once: a wake-up that finds another call
 * is one too many, and harms nobody. The flags are read this late for the sake of a client that leaves its call to the receiver. */
static void announce_end(call_ring *ring, call_slot *slot) {
    store(&ring->ended, ring->ended + 1);
    if (load(&slot->flags) & CALL_ASYNCHRONOUS) {
        if (load(&ring->notify) && exchange_word(&ring->notify, 0)) ring_wake(NULL);
    } else if (load(&slot->waiting)) {
        ring_wake(slot);
    }
}

/* Ends the call in `slot`. With `interrupted` its tick has ended it; without, a tick that is on its way must not hit the next call. */
void EXPORT(ring_end)(call_ring *ring, call_slot *slot, u32 status, u32 interrupted) {
    slot->status = status;
    /* Publishes the status, the results and the progress. */
    if (interrupted || !change(&slot->state, CALL_RUNNING, CALL_ENDED)) {
        if (!interrupted) ring_absorb();
        store(&slot->state, CALL_ENDED);
    }
    announce_end(ring, slot);
}

/* Takes the next call, and returns its slot; or returns why not. */
uintptr_t EXPORT(ring_next)(call_ring *ring) {
    u32 looks = load(&ring->spin);
    for (;;) {
        if (load(&ring->attention)) return RING_ATTENTION;
        call_slot *slot = slot_of(ring, ring->taken);
        switch (load(&slot->state)) {
        case CALL_SUBMITTED:
            if ((load(&slot->flags) & CALL_TIMED) && !ring->watched) return RING_WATCH;
            if (ring->run >= RING_CALLS_AT_A_TIME) {
                ring->run = 0;
                return RING_PAUSE;
            }
            if (change(&slot->state, CALL_SUBMITTED, CALL_RUNNING)) {
                ring->run++;
                ring->taken++;
                return (uintptr_t)slot;
            }
            break; /* it was cancelled this very moment */
        case CALL_CANCELLED:
            slot->status = CALL_WITHDRAWN;
            ring->taken++;
            store(&slot->state, CALL_ENDED);
            announce_end(ring, slot);
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

/* There is a thread that interrupts calls now. */
void EXPORT(ring_watch)(call_ring *ring) { ring->watched = 1; }
