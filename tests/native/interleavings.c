/* The ring's own C in every order there is: `interleavings` prints how many states and schedules there were.
 *
 * Each actor (a thread of the client, the worker, the worker's thread that watches) is a coroutine. Before each access to shared
 * memory, and before whatever else another actor could notice, it yields to the explorer, which tries all actors that can go on, and
 * the death of either process. The whole world (ring, stacks, what the kernel would know) is one structure: the explorer copies it to
 * return to a state, and knows a state that it has been in by its hash, so each is explored once.
 *
 * The ring has two slots here, so that they are used again and again, and its numbers wrap. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "memory.h"

#include "../ring.h"

#undef RING_SLOTS
#define RING_SLOTS 2
#undef RING_FIRST_SLOT
#define RING_FIRST_SLOT 512
#undef RING_BATCHES
#define RING_BATCHES 1024

static void step(void);

#undef plain_load
#undef plain_store
#define plain_load(place) (step(), *(place))
#define plain_store(place, value) (step(), (void)(*(place) = (value)))
#define load(place) (step(), *(place))
#define store(place, value) (step(), (void)(*(place) = (value)))
#define exchange_word(place, value) exchange_step((place), (value))
#define change(place, from, to) change_step((place), (from), (to))

static u32 exchange_step(u32 *place, u32 value) {
    step();
    u32 old = *place;
    *place = value;
    return old;
}

static u32 change_step(u32 *place, u32 from, u32 to) {
    step();
    if (*place != from) return 0;
    *place = to;
    return 1;
}

#include "ring.c"

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))
#define ACTORS 4
#define CALLS 4
#define STACK 2048

enum { WORKER, WATCHER, CALLER, OTHER }; /* the actors; the last two are threads of the client */
enum { READY, CORE, FUTEX, END_BELL, RECEIVER, BELL, WATCH, TICK, DONE };
enum { NOBODY, THE_WORKER, THE_CLIENT };

typedef struct {
    ucontext_t context;
    u32 waits_for;
    u32 *futex;
    _Alignas(16) u8 stack[STACK];
} actor;

typedef struct {
    _Alignas(64) u8 ring[1024];
    _Alignas(64) u8 requests[ACTORS][128];
    u32 dead, in_core;                   /* which process died; which of the client's threads is in the core, or ACTORS */
    u32 bell, end_bell;                  /* what the bells count */
    u32 completion, interrupt;           /* the counters of the eventfds */
    u32 messages, looked;                /* on the channels, unread; whether the watcher has seen that there are some */
    u32 ticks, expected_ticks;           /* of the epoch: made; those that the store's deadline allows for */
    u32 target, target_part;             /* the call that the last interrupt was sent for; which one of a batch */
    u32 ran[CALLS], ended[CALLS];        /* how often the guest was entered for a call; how often somebody learnt that it ended */
    u32 submitted[CALLS], cancelled[CALLS];
    actor actors[ACTORS];
} world;

static world now;
static ucontext_t explorer;
static u32 current = ACTORS;
static const char *scenario;
static u32 first_sequence;
static u32 sleeps_at; /* how the client sleeps */
static u32 parts;     /* how many calls the first one is, as a batch; or 0 */

static struct {
    const char *what;
    int line;
} failed;

static void report(void) {
    fprintf(stderr, "%s: not %s, line %d\n", scenario, failed.what, failed.line);
    exit(1);
}

/* An actor's stack is too small to print on. */
static void fail(const char *what, int line) {
    failed.what = what;
    failed.line = line;
    if (current < ACTORS) swapcontext(&now.actors[current].context, &explorer);
    report();
}

static call_ring *ring(void) { return (call_ring *)now.ring; }
static call_request *request(void) { return (call_request *)now.requests[current]; }

/* ---------------------------------------------------------------- coroutines */

/* Lets others go first, until what the actor waits for is there. */
static void wait_for(u32 what) {
    actor *self = &now.actors[current];
    self->waits_for = what;
    swapcontext(&self->context, &explorer);
}

static void step(void) { wait_for(READY); }

static u32 can_go_on(u32 which) {
    const actor *self = &now.actors[which];
    u32 is_workers = which == WORKER || which == WATCHER;
    if (now.dead == (is_workers ? THE_WORKER : THE_CLIENT)) return 0;
    switch (self->waits_for) {
    case READY: return 1;
    case CORE: return now.in_core == ACTORS;
    /* The channel between them tells a process that sleeps that the other one has died. */
    case FUTEX: return self->futex == NULL || now.dead;
    case END_BELL: return now.end_bell || now.dead;
    case RECEIVER: return now.completion || now.dead;
    case BELL: return now.bell || now.dead;
    case WATCH: return now.interrupt || (now.messages && !now.looked);
    case TICK: return now.ticks != now.expected_ticks || now.dead;
    default: return 0;
    }
}

/* ---------------------------------------------------------------- what the host does */

void *new_memory(u32 bytes) { return (void)bytes, NULL; }

void ring_wake(call_slot *slot) {
    step();
    if (slot == NULL) now.completion = 1;
    if (slot && slot->waiting == RING_BELL) now.end_bell++;
    for (u32 which = CALLER; slot && which <= OTHER; which++) {
        if (now.actors[which].futex == &slot->state) now.actors[which].futex = NULL;
    }
}

void ring_absorb(void) {
    wait_for(TICK);
    if (now.ticks == now.expected_ticks) wait_for(DONE); /* the client has died, and so the worker ends */
    now.expected_ticks = now.ticks;
}

/* Enters the client's core, which one thread at a time does. */
#define IN_CORE(call)            \
    ({                           \
        wait_for(CORE);          \
        now.in_core = current;   \
        __auto_type got = call;  \
        now.in_core = ACTORS;    \
        got;                     \
    })

static u32 index_of(u32 sequence) { return sequence - first_sequence; }

/* Submits the next call, or calls, whichever number that gets. */
static u32 submit_next(u32 flags, u32 looks) {
    call_request *mine = request();
    u32 which = index_of(ring()->submitted);
    mine->ring = ring();
    mine->flags = flags;
    mine->cells_in = mine->cells_out = 1;
    mine->cells[0] = mine->export = which;
    mine->count = flags & CALL_STOPPABLE ? parts : 0;
    ring()->patience = looks;
    u32 answer = flags & CALL_ASYNCHRONOUS || sleeps_at == RING_FUTEX ? ring_submit(mine) : ring_call(mine);
    if (answer != RING_FULL) now.submitted[which] = 1;
    return answer;
}

static u32 submit(u32 flags, u32 looks) {
    u32 answer = IN_CORE(submit_next(flags, looks));
    if (answer & RING_DOORBELL) {
        step();
        now.bell++;
        answer -= RING_DOORBELL;
    }
    return answer;
}

/* What somebody learns about the end of a call. */
static void learn(const call_request *mine, u32 which) {
    now.ended[which]++;
    CHECK(now.ended[which] == 1);
    if (parts && which == 0) {
        /* Each that was begun has returned, but for the one that was interrupted: its tick may have come before it has begun, or
         * when it has returned. */
        u32 at = mine->progress, ran = now.ran[which], overdue = mine->status == CALL_OVERDUE;
        CHECK(ran == at || (overdue && ran == at + 1));
        CHECK(!overdue || at == now.target_part || (at == now.target_part + 1 && ran == at));
        return;
    }
    CHECK(mine->status != CALL_RETURNED || (mine->cells[0] == which + 1000 && now.ran[which] == 1));
    CHECK(mine->status != CALL_WITHDRAWN || now.ran[which] == 0);
}

/* Waits for the call that was submitted last; returns 0 if the worker died first. */
static u32 await(u32 answer) {
    call_request *mine = request();
    u32 has_dozed = answer & RING_AT_BELL;
    answer -= has_dozed;
    while (answer == RING_PENDING) {
        void *place = has_dozed ? ring()->end_bell : IN_CORE(ring_doze(mine, sleeps_at));
        has_dozed = 0;
        if (place == ring()->end_bell) {
            wait_for(END_BELL);
            now.end_bell -= now.end_bell > 0;
        } else if (place != NULL) {
            u32 *word = place;
            step();
            if (*word == mine->status) {
                now.actors[current].futex = word;
                wait_for(FUTEX);
            }
        }
        answer = IN_CORE(ring_wait(mine, 0));
        if (answer == RING_PENDING && now.dead) return 0;
    }
    CHECK(answer == RING_DONE || answer == RING_FAILED);
    learn(mine, index_of(mine->sequence));
    return 1;
}

static void collect_all(void) {
    for (u32 slot = 0; slot < RING_SLOTS; slot++) {
        slot = IN_CORE(ring_collect(request(), slot));
        if (slot < RING_SLOTS) learn(request(), index_of(request()->sequence));
    }
}

/* The client's receiver; it ends when so many calls have. */
static void receive(u32 first, u32 last) {
    request()->ring = ring();
    for (;;) {
        IN_CORE((ring_ask(ring()), 0));
        collect_all();
        u32 all = 1;
        for (u32 which = first; which <= last; which++) all &= now.ended[which];
        if (all || now.dead) return;
        wait_for(RECEIVER);
        now.completion = 0;
    }
}

static void end_early(u32 which, u32 only_waiting) {
    if (!now.submitted[which]) return;
    u32 answer = IN_CORE(ring_end_early(ring(), first_sequence + which, only_waiting));
    now.cancelled[which] |= answer == CALL_CANCELLED;
    CHECK(answer != CALL_RUNNING || only_waiting);
    if (answer != CALL_INTERRUPTING) return;
    now.target = which;
    step();
    now.interrupt++;
}

/* Ends what the first call runs, a batch, as whoever watches the time does: not at the moment at which he looked. */
static void end_part(void) {
    if (!now.submitted[0]) return;
    u32 progress = plain_load(&slot_of(ring(), first_sequence)->progress);
    u32 answer = IN_CORE(ring_end_at(ring(), first_sequence, progress));
    now.cancelled[0] |= answer == CALL_CANCELLED;
    if (answer != CALL_INTERRUPTING) return;
    now.target = 0;
    now.target_part = progress;
    step();
    now.interrupt++;
}

/* ---------------------------------------------------------------- the worker */

/* What an engine does at a function's entry and in loops. */
static u32 is_interrupted(u32 which) {
    step();
    if (now.ticks == now.expected_ticks) return 0;
    CHECK(now.target == which);
    now.expected_ticks = now.ticks;
    return 1;
}

static u32 guest_traps;

static void run_call(call_slot *slot) {
    u32 which = slot->export, status = CALL_RETURNED;
    now.ran[which]++;
    CHECK(now.ran[which] == 1 && !now.cancelled[which]);
    u32 interrupted = is_interrupted(which);
    if (interrupted) {
        status = CALL_OVERDUE;
    } else if (guest_traps) {
        status = CALL_TRAPPED;
    } else {
        slot->cells[0] = which + 1000;
    }
    /* The end of the call is a function too, with an entry where its tick may arrive. */
    if (!interrupted && is_interrupted(which)) {
        interrupted = 1;
        if (status == CALL_RETURNED) status = CALL_OVERDUE;
    }
    if (ring_end(ring(), slot, status, interrupted)) {
        step();
        now.end_bell++;
    }
}

/* As the dispatcher does: each call of a batch, and what counts it, is a function. */
static void run_batch(call_slot *slot) {
    u32 which = slot->export, status = CALL_RETURNED, interrupted = 0;
    CHECK(!now.cancelled[which]);
    for (u32 part = 0, stop = 0; part < slot->count && !stop; part++) {
        now.ran[which]++;
        interrupted = is_interrupted(which) || is_interrupted(which);
        CHECK(!interrupted || now.target_part == part);
        if (interrupted) break;
        stop = ring_advance(slot);
    }
    if (interrupted || is_interrupted(which)) {
        interrupted = 1;
        status = CALL_OVERDUE;
    }
    slot->cells[0] = which + 1000;
    if (ring_end(ring(), slot, status, interrupted)) {
        step();
        now.end_bell++;
    }
}

static void work(void) {
    for (;;) {
        CHECK(!is_interrupted(CALLS));
        uintptr_t answer = ring_next(ring());
        switch (answer) {
        case RING_PARK:
            if (ring_park(ring())) {
                wait_for(BELL);
                if (now.dead) return;
                now.bell--;
                ring_unpark(ring());
            }
            break;
        case RING_ATTENTION:
            ring_attend(ring());
            step();
            now.messages = 0;
            step();
            now.looked = 0;
            break;
        default: (parts && ((call_slot *)answer)->count ? run_batch : run_call)((call_slot *)answer);
        }
    }
}

static void watch(void) {
    for (;;) {
        wait_for(WATCH);
        if (now.interrupt) {
            now.interrupt--;
            step();
            now.ticks++;
        } else {
            now.looked = 1;
            ring_call_attention(ring());
            step();
            now.bell++;
        }
    }
}

/* ---------------------------------------------------------------- scenarios */

static void call(void) { await(submit(0, 0)); }

static void call_thrice(void) {
    for (u32 count = 0; count < 3 && !now.dead; count++) call();
}

static void call_patiently(void) {
    for (u32 count = 0; count < 2 && !now.dead; count++) await(submit(0, 1));
}

static void call_once(void) { call(); }

static void submit_two(void) {
    submit(CALL_ASYNCHRONOUS, 0);
    submit(CALL_ASYNCHRONOUS, 0);
}

static void receive_two(void) { receive(0, 1); }

static void call_twice(void) {
    if (await(submit(0, 0))) call();
}

static void submit_batch(void) {
    submit(CALL_ASYNCHRONOUS | CALL_STOPPABLE, 0);
    receive(0, 0);
}

static void interrupt_a_part(void) {
    end_part();
    end_part();
}

static void interrupt_first(void) { end_early(0, 0); }
static void cancel_first(void) { end_early(0, 1); }

static void interrupt_own(void) {
    u32 answer = submit(0, 0);
    if (answer & RING_PENDING) end_early(0, 0);
    if (answer & RING_PENDING) end_early(0, 0); /* twice is once */
    if (await(answer)) call();
}

/* What Ctrl-C does to whoever waits for a call. Who learns of the end himself lets the receiver go home. */
static void leave_first(void) {
    if (!(submit(0, 0) & RING_PENDING)) {
        learn(request(), 0);
        now.completion = 1;
    } else {
        IN_CORE(ring_doze(request(), sleeps_at));
        end_early(0, 1);
        if (IN_CORE(ring_leave(ring(), request()->sequence))) {
            collect_all();
            now.completion = 1;
        }
    }
}

static void receive_first(void) { receive(0, 0); }

static void send_message_and_call(void) {
    step();
    now.messages++;
    IN_CORE((ring_call_attention(ring()), 0));
    call();
}

/* As the coordinator does, which has no ring. */
static void send_message(void) {
    step();
    now.messages++;
}

static void nothing(void) {}

typedef struct {
    const char *name;
    void (*caller)(void), (*other)(void);
    u32 calls, sleeps_at, traps, parts;
} plan;

static const plan plans[] = {
    {"calls one after another, at the bell", call_thrice, nothing, 3, RING_BELL, 0, 0},
    {"calls one after another, at their slots", call_thrice, nothing, 3, RING_FUTEX, 0, 0},
    {"calls of two threads, one of which is at the bell", call_once, call_once, 2, RING_BELL, 0, 0},
    {"calls with a look more", call_patiently, nothing, 2, RING_BELL, 0, 0},
    {"asynchronous calls and their receiver", submit_two, receive_two, 2, RING_BELL, 0, 0},
    {"a call withdrawn by another thread, at the bell", call_twice, cancel_first, 2, RING_BELL, 0, 0},
    {"a call withdrawn by another thread, at its slot", call_twice, cancel_first, 2, RING_FUTEX, 0, 0},
    {"a call interrupted by another thread", call_twice, interrupt_first, 2, RING_BELL, 0, 0},
    {"a call interrupted while it traps", call_twice, interrupt_first, 2, RING_FUTEX, 1, 0},
    {"a call interrupted by its own thread", interrupt_own, nothing, 2, RING_BELL, 0, 0},
    {"one call of a batch interrupted by another thread", submit_batch, interrupt_a_part, 1, RING_BELL, 0, 2},
    {"a call left to the receiver", leave_first, receive_first, 1, RING_BELL, 0, 0},
    {"a message of the client", send_message_and_call, nothing, 1, RING_BELL, 0, 0},
    {"a message of the coordinator", call_once, send_message, 1, RING_BELL, 0, 0},
};

/* ---------------------------------------------------------------- the explorer */

/* Nobody can go on: nobody may be waiting for what has happened, and every call is where its state says. */
static void check_end(const plan *plan) {
    if (now.dead != THE_CLIENT) {
        CHECK(now.actors[CALLER].waits_for == DONE && now.actors[OTHER].waits_for == DONE);
    }
    if (now.dead == NOBODY) {
        const call_slot *next = slot_of(ring(), ring()->taken);
        CHECK(next->state != CALL_SUBMITTED && next->state != CALL_CANCELLED);
        CHECK(now.actors[WORKER].waits_for == BELL && now.messages == 0 && !now.looked);
        CHECK(now.interrupt == 0 && now.ticks == now.expected_ticks);
        for (u32 which = 0; which < plan->calls; which++) CHECK(now.ended[which] == 1);
    }
    for (u32 which = 0; which < plan->calls; which++) {
        const call_slot *slot = slot_of(ring(), first_sequence + which);
        if (!now.submitted[which] || slot->sequence != first_sequence + which) continue;
        CHECK((slot->state != CALL_SUBMITTED && slot->state != CALL_CANCELLED) || now.ran[which] == 0);
        CHECK((slot->state != CALL_RUNNING && slot->state != CALL_INTERRUPTING) || now.dead);
        CHECK(slot->state != CALL_ENDED || slot->status != CALL_RETURNED || slot->cells[0] == which + 1000);
        CHECK(slot->state != CALL_EMPTY || now.ended[which] == 1 || now.dead == THE_CLIENT);
    }
}

typedef struct {
    u64 hash[2];
    double schedules;
} known_state;

#define KNOWN (1u << 21)
#define UNFINISHED -1
static known_state *known;
static u64 states;

static void hash_now(u64 hash[2]) {
    const u64 *words = (const u64 *)&now;
    u64 a = 0x9e3779b97f4a7c15u, b = 0xbf58476d1ce4e5b9u;
    for (size_t i = 0; i < sizeof(now) / 8; i++) {
        if (words[i] == 0) continue;
        a = (a ^ words[i] ^ i << 48) * 0x94d049bb133111ebu;
        a ^= a >> 29;
        b = (b + words[i] + i) * 0xd6e8feb86659fd93u;
        b ^= b >> 32;
    }
    hash[0] = a | 1;
    hash[1] = b;
}

static known_state *find(const u64 hash[2]) {
    for (u64 at = hash[0] >> 1;; at++) {
        known_state *place = &known[at % KNOWN];
        if (place->hash[0] == 0 || memcmp(place->hash, hash, 16) == 0) return place;
    }
}

static u8 *stack_pointer(const actor *self) {
#if defined(__x86_64__)
    return (u8 *)self->context.uc_mcontext.gregs[REG_RSP];
#elif defined(__aarch64__)
    return (u8 *)self->context.uc_mcontext.sp;
#else
    return (u8 *)self->stack; /* there are more states then */
#endif
}

static void resume(u32 which) {
    actor *self = &now.actors[which];
    current = which;
    self->waits_for = READY;
    swapcontext(&explorer, &self->context);
    if (failed.what) report();
    current = ACTORS;
    /* What lies below on the stack is dead, and must not tell equal states apart. */
    memset(self->stack, 0, (size_t)(stack_pointer(self) - self->stack));
}

/* Returns in how many ways it goes on from here. */
static double explore(const plan *plan) {
    u64 hash[2];
    double schedules = 0;
    hash_now(hash);
    known_state *place = find(hash);
    if (place->hash[0]) {
        CHECK(place->schedules != UNFINISHED); /* else they can go round in circles for ever */
        return place->schedules;
    }
    memcpy(place->hash, hash, 16);
    place->schedules = UNFINISHED;
    CHECK(++states < KNOWN / 2);
    world *before = malloc(sizeof(world));
    memcpy(before, &now, sizeof(world));
    for (u32 which = 0; which < ACTORS; which++) {
        if (!can_go_on(which)) continue;
        resume(which);
        schedules += explore(plan);
        memcpy(&now, before, sizeof(world));
    }
    if (schedules == 0) {
        check_end(plan);
        schedules = 1;
    }
    for (u32 process = THE_WORKER; process <= THE_CLIENT && now.dead == NOBODY; process++) {
        now.dead = process;
        schedules += explore(plan);
        memcpy(&now, before, sizeof(world));
    }
    free(before);
    place->schedules = schedules;
    return schedules;
}

static void begin(u32 which) {
    static const plan *chosen;
    if (which >= ACTORS) {
        chosen = &plans[which - ACTORS];
        return;
    }
    if (which == WORKER) work();
    if (which == WATCHER) watch();
    if (which == CALLER) chosen->caller();
    if (which == OTHER) chosen->other();
    wait_for(DONE);
}

static void prepare(const plan *plan) {
    memset(&now, 0, sizeof(now));
    first_sequence = 0u - 2;
    CHECK(ring_format(ring(), 1) == STATUS_OK && ring_is_sound(ring()));
    ring()->submitted = ring()->taken = first_sequence;
    ring()->bell_call = first_sequence - 1;
    now.in_core = ACTORS;
    guest_traps = plan->traps;
    sleeps_at = plan->sleeps_at;
    parts = plan->parts;
    begin(ACTORS + (u32)(plan - plans));
    for (u32 which = 0; which < ACTORS; which++) {
        actor *self = &now.actors[which];
        getcontext(&self->context);
        self->context.uc_stack.ss_sp = self->stack;
        self->context.uc_stack.ss_size = STACK;
        self->waits_for = READY;
        makecontext(&self->context, (void (*)(void))begin, 1, which);
    }
}

int main(void) {
    known = calloc(KNOWN, sizeof(known_state));
    for (const plan *plan = plans; plan < plans + sizeof(plans) / sizeof(*plans); plan++) {
        scenario = plan->name;
        states = 0;
        memset(known, 0, KNOWN * sizeof(known_state));
        prepare(plan);
        double schedules = explore(plan);
        printf("%s: %llu states, %.3g schedules\n", scenario, (unsigned long long)states, schedules);
    }
    return 0;
}
