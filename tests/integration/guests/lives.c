/* What tests/stress/test_guest_kit.py kills: instances that lock one mutex and use one queue, for ever, lingering where death
 * hurts. */
#include "shmwasm.h"

#define LIVES 256
#define MESSAGES 32768 /* that one life sends at most */
#define PATIENCE 200000 /* nanoseconds */

struct message {
    uint32_t life, number;
    uint32_t words[5]; /* each the sum of the two */
};

/* In the heap; the test reads it. */
struct world {
    shmwasm_relative queue;
    shmwasm_mutex mutex;
    uint32_t lives;
    uint64_t left, right; /* under the mutex; equal whenever nobody holds it */
    uint32_t locked, inherited;
    uint32_t sent[LIVES];
    uint8_t received[LIVES][MESSAGES];
};

static uint64_t seed;
static uint32_t next_number[LIVES]; /* of each life, as this one received them */

static uint32_t random_below(uint32_t bound) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % bound;
}

static void require(int condition) {
    if (!condition) __builtin_trap();
}

static void linger(void) {
    for (uint32_t turns = random_below(4) ? 0 : random_below(20000); turns > 0; turns--) shmwasm_spin();
}

static shmwasm_queue *queue_of(const struct world *world) { return (shmwasm_queue *)shmwasm_relative_get(&world->queue); }

SHMWASM_EXPORT("create") struct world *create(uint32_t capacity) {
    struct world *world = SHMWASM_NEW(struct world);
    shmwasm_queue *queue = shmwasm_queue_new(capacity, sizeof(struct message));
    require(world != NULL && queue != NULL);
    shmwasm_relative_set(&world->queue, queue);
    return world;
}

static void one_lock(struct world *world) {
    shmwasm_status status = shmwasm_mutex_lock(&world->mutex);
    if (status == SHMWASM_OWNER_DIED) {
        world->inherited++;
        world->right = world->left;
        status = shmwasm_mutex_consistent(&world->mutex);
    }
    require(status == SHMWASM_OK && world->left == world->right);
    world->left++;
    linger();
    world->right++;
    require(shmwasm_mutex_unlock(&world->mutex) == SHMWASM_OK);
    __atomic_fetch_add(&world->locked, 1, __ATOMIC_SEQ_CST);
}

static void fill(struct message *message, uint32_t life, uint32_t number) {
    message->life = life;
    message->number = number;
    linger();
    for (uint32_t i = 0; i < 5; i++) message->words[i] = life + number;
}

static void one_push(struct world *world, uint32_t life) {
    shmwasm_queue *queue = queue_of(world);
    uint32_t number = world->sent[life];
    struct message made, *place = (struct message *)shmwasm_queue_claim(queue);
    if (place != NULL) {
        fill(place, life, number);
        shmwasm_queue_publish(queue, place);
    } else {
        fill(&made, life, number);
        if (shmwasm_queue_push(queue, &made, sizeof made, PATIENCE) != SHMWASM_OK) return;
    }
    __atomic_store_n(&world->sent[life], number + 1, __ATOMIC_SEQ_CST);
}

static void receive(struct world *world, const struct message *got) {
    for (uint32_t i = 0; i < 5; i++) require(got->words[i] == got->life + got->number);
    require(got->life < LIVES && got->number < MESSAGES && got->number >= next_number[got->life]);
    next_number[got->life] = got->number + 1;
    require(__atomic_fetch_add(&world->received[got->life][got->number], 1, __ATOMIC_SEQ_CST) == 0);
}

static int one_pop(struct world *world, int64_t patience) {
    struct message got;
    const struct message *place = (const struct message *)shmwasm_queue_front(queue_of(world));
    if (place != NULL) {
        linger();
        got = *place;
        shmwasm_queue_release(queue_of(world), (void *)place);
    } else if (shmwasm_queue_pop(queue_of(world), &got, sizeof got, patience) != SHMWASM_OK) {
        return 0;
    }
    receive(world, &got);
    return 1;
}

/* Returns when it has sent all that it may. */
SHMWASM_EXPORT("live") void live(struct world *world, uint32_t life, uint64_t its_seed) {
    seed = its_seed;
    while (world->sent[life] < MESSAGES - 1) {
        switch (random_below(3)) {
        case 0: one_lock(world); break;
        case 1: one_push(world, life); break;
        default: (void)one_pop(world, PATIENCE);
        }
    }
}

/* Takes what is left, once nobody else lives; locks once more, and ends all claims. */
SHMWASM_EXPORT("end") void end(struct world *world) {
    while (one_pop(world, 0)) {}
    one_lock(world);
    (void)shmwasm_queue_recover(queue_of(world));
    shmwasm_queue_close(queue_of(world));
    require(shmwasm_queue_is_drained(queue_of(world)));
}
