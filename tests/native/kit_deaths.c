/* Real processes on one mutex and one queue, killed at random instants and replaced: `kit_deaths SEED KILLS`.
 *
 * What must hold whatever was killed where: no message arrives twice or out of its producer's order; one that was sent is
 * missing only if a consumer died with it in hand; what the mutex protects is half changed only for who was told so; and
 * nothing stays stuck. */
#include "kit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PROCESSES 4
#define CAPACITY 16
#define LIFE 60000 /* messages that one process sends at most */

typedef struct {
    uint32_t producer, number;
    uint32_t words[9]; /* each the sum of the two */
} message;

typedef struct {
    registry peers;
    shmwasm_mutex mutex;
    uint64_t left, right; /* under the mutex; equal whenever nobody holds it */
    uint64_t locked;      /* how often it was unlocked again */
    uint32_t inherited;
    uint32_t sent[PEERS];
    uint8_t received[PEERS][LIFE + 1];
    _Alignas(16) char queue[sizeof(shmwasm_queue) + CAPACITY * (sizeof(message) + 12 + sizeof(shmwasm_slot))];
} world;

static world *w;
static uint64_t own_seed;
static shmwasm_queue *queue;
static uint32_t next_number[PEERS]; /* of each producer, as this process received them */

/* Stays where it is for a while, so that death finds it there. */
static void linger(void) {
    for (uint32_t turns = random_below(&own_seed, 4) ? 0 : random_below(&own_seed, 20000); turns > 0; turns--) shmwasm_spin();
}

static void one_lock(void) {
    shmwasm_status status = shmwasm_mutex_lock(&w->mutex);
    if (status == SHMWASM_OWNER_DIED) {
        w->inherited++;
        w->right = w->left;
        CHECK(shmwasm_mutex_consistent(&w->mutex) == SHMWASM_OK);
        status = SHMWASM_OK;
    }
    CHECK(status == SHMWASM_OK && w->left == w->right);
    w->left++;
    linger();
    w->right++;
    CHECK(shmwasm_mutex_unlock(&w->mutex) == SHMWASM_OK);
    __atomic_fetch_add(&w->locked, 1, __ATOMIC_SEQ_CST);
}

static void one_push(uint32_t number, int64_t timeout_ns) {
    message made = {own_number, number, {0}};
    for (uint32_t i = 0; i < 9; i++) made.words[i] = own_number + number;
    message *place = timeout_ns > 0 && random_below(&own_seed, 2) ? shmwasm_queue_claim(queue) : NULL;
    shmwasm_status status = SHMWASM_OK;
    if (place != NULL) {
        linger();
        *place = made;
        shmwasm_queue_publish(queue, place);
    } else {
        status = shmwasm_queue_push(queue, &made, sizeof made, timeout_ns);
    }
    CHECK(status == SHMWASM_OK || status == SHMWASM_TIMED_OUT);
    if (status == SHMWASM_OK) __atomic_store_n(&w->sent[own_number], number + 1, __ATOMIC_SEQ_CST);
}

static int one_pop(int64_t timeout_ns) {
    message got, *place = timeout_ns > 0 && random_below(&own_seed, 2) ? shmwasm_queue_front(queue) : NULL;
    shmwasm_status status = SHMWASM_OK;
    if (place != NULL) {
        linger();
        got = *place;
        shmwasm_queue_release(queue, place);
    } else {
        status = shmwasm_queue_pop(queue, &got, sizeof got, timeout_ns);
    }
    CHECK(status == SHMWASM_OK || status == SHMWASM_TIMED_OUT);
    if (status != SHMWASM_OK) return 0;
    for (uint32_t i = 0; i < 9; i++) CHECK(got.words[i] == got.producer + got.number);
    CHECK(got.number >= next_number[got.producer]);
    next_number[got.producer] = got.number + 1;
    CHECK(__atomic_fetch_add(&w->received[got.producer][got.number], 1, __ATOMIC_SEQ_CST) == 0);
    return 1;
}

static void live(void) {
    for (;;) {
        switch (random_below(&own_seed, 3)) {
        case 0: one_lock(); break;
        case 1:
            if (w->sent[own_number] < LIFE) one_push(w->sent[own_number], 200000);
            break;
        default: (void)one_pop(200000);
        }
    }
}

static pid_t begin(uint32_t *number, uint64_t seed) {
    *number = next_peer();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) return child;
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); /* a test that gives up leaves nobody behind */
    own_number = *number;
    own_seed = seed + own_number;
    live();
    abort();
}

static void end(pid_t child, uint32_t number) {
    int status;
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* it did not fail a check before */
    bury(number);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    uint64_t seed = strtoull(arguments[1], NULL, 10);
    uint32_t kills = (uint32_t)strtoul(arguments[2], NULL, 10), numbers[PROCESSES];
    pid_t children[PROCESSES];
    w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(w != MAP_FAILED && kills + PROCESSES < PEERS - 3);
    peers = &w->peers;
    queue = (shmwasm_queue *)w->queue;
    CHECK(shmwasm_queue_size(CAPACITY, sizeof(message)) <= sizeof w->queue);
    CHECK(shmwasm_queue_init(queue, CAPACITY, sizeof(message)) == SHMWASM_OK);

    for (uint32_t i = 0; i < PROCESSES; i++) children[i] = begin(&numbers[i], seed);
    for (uint32_t killed = 0; killed < kills; killed++) {
        struct timespec pause = {0, random_below(&seed, 1500000)};
        CHECK(nanosleep(&pause, NULL) == 0);
        uint32_t i = random_below(&seed, PROCESSES);
        end(children[i], numbers[i]);
        children[i] = begin(&numbers[i], seed);
    }
    for (uint32_t i = 0; i < PROCESSES; i++) end(children[i], numbers[i]);

    own_number = next_peer();
    memset(next_number, 0, sizeof next_number);
    while (one_pop(0)) {}
    one_lock();
    CHECK(w->left >= w->locked && w->left <= w->locked + kills + PROCESSES);
    (void)shmwasm_queue_recover(queue);
    for (uint32_t i = 0; i < 3 * CAPACITY; i++) {
        for (uint32_t room = 0; room < CAPACITY; room++) one_push(i * CAPACITY + room, 0);
        CHECK(w->sent[own_number] == (i + 1) * CAPACITY && shmwasm_queue_try_push(queue, w, sizeof(message)) == SHMWASM_AGAIN);
        for (uint32_t room = 0; room < CAPACITY; room++) CHECK(one_pop(0));
    }
    uint32_t missing = 0, sent = 0;
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        sent += w->sent[peer];
        for (uint32_t number = 0; number < w->sent[peer]; number++) missing += !w->received[peer][number];
    }
    CHECK(missing >= queue->lost && missing <= kills + PROCESSES);
    printf("{\"sent\": %u, \"missing\": %u, \"voided\": %u, \"lost\": %u, \"locked\": %llu, \"inherited\": %u}\n", sent, missing,
           queue->voided, queue->lost, (unsigned long long)w->locked, w->inherited);
    return 0;
}
