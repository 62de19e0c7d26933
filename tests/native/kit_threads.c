/* Threads that play processes on one mutex, one ring and one queue: `kit_threads SEED MESSAGES`.
 *
 * Messages and what the mutex protects are written with ordinary stores, so the thread sanitizer judges whether they are
 * ordered. Some threads die on purpose: while they hold the mutex, or between claiming and publishing. */
#include "kit.h"

#define PRODUCERS 3
#define CONSUMERS 3
#define DEATHS 20

typedef struct {
    uint32_t producer, number;
    char text[20]; /* so that the size is no multiple of 8 */
} message;

static shmwasm_ring *ring;
static shmwasm_queue *queue;
static shmwasm_mutex mutex;
static uint32_t messages;
static uint64_t first_seed;

/* Under the mutex; equal whenever nobody holds it. */
static uint64_t left, right;
static uint32_t inherited;

static uint32_t received[PRODUCERS];

static message message_of(uint32_t producer, uint32_t number) {
    message made = {producer, number, ""};
    snprintf(made.text, sizeof made.text, "%u/%u", producer, number);
    return made;
}

static void check_message(const message *got) {
    message expected = message_of(got->producer, got->number);
    CHECK(memcmp(got, &expected, sizeof expected) == 0);
}

static void lock(void) {
    shmwasm_status status = shmwasm_mutex_lock(&mutex);
    if (status == SHMWASM_OWNER_DIED) {
        inherited++;
        right = left;
        CHECK(shmwasm_mutex_consistent(&mutex) == SHMWASM_OK);
        status = SHMWASM_OK;
    }
    CHECK(status == SHMWASM_OK && left == right);
}

static void unlock(void) { CHECK(shmwasm_mutex_unlock(&mutex) == SHMWASM_OK); }

static void count_under_the_mutex(uint32_t times) {
    for (uint32_t i = 0; i < times; i++) {
        lock();
        left++;
        right++;
        unlock();
    }
}

static void *produce(void *argument) {
    uint32_t producer = (uint32_t)(uintptr_t)argument;
    uint64_t seed = first_seed + producer;
    own_number = next_peer();
    for (uint32_t number = 0; number < messages; number++) {
        message sent = message_of(producer, number);
        int64_t timeout = random_below(&seed, 2) ? SHMWASM_FOREVER : 1000;
        shmwasm_status status = SHMWASM_AGAIN;
        while (status == SHMWASM_AGAIN || status == SHMWASM_TIMED_OUT) {
            status = random_below(&seed, 3) ? shmwasm_queue_push(queue, &sent, sizeof sent, timeout)
                                            : shmwasm_queue_try_push(queue, &sent, sizeof sent);
        }
        CHECK(status == SHMWASM_OK);
    }
    count_under_the_mutex(messages / 4);
    bury(own_number);
    return NULL;
}

static void *consume(void *argument) {
    uint32_t next[PRODUCERS] = {0};
    message got;
    own_number = next_peer() + 0 * (uint32_t)(uintptr_t)argument;
    while (shmwasm_queue_pop(queue, &got, sizeof got, SHMWASM_FOREVER) == SHMWASM_OK) {
        check_message(&got);
        CHECK(got.producer < PRODUCERS && got.number >= next[got.producer]);
        next[got.producer] = got.number + 1;
        __atomic_fetch_add(&received[got.producer], 1, __ATOMIC_SEQ_CST);
    }
    count_under_the_mutex(messages / 4);
    bury(own_number);
    return NULL;
}

static void *send_alone(void *argument) {
    (void)argument;
    own_number = next_peer();
    for (uint32_t number = 0; number < messages; number++) {
        message sent = message_of(0, number);
        CHECK(shmwasm_ring_push(ring, &sent, sizeof sent, SHMWASM_FOREVER) == SHMWASM_OK);
    }
    shmwasm_ring_close(ring);
    return NULL;
}

static void *receive_alone(void *argument) {
    (void)argument;
    own_number = next_peer();
    message got;
    uint32_t number = 0;
    for (; shmwasm_ring_pop(ring, &got, sizeof got, SHMWASM_FOREVER) == SHMWASM_OK; number++) {
        check_message(&got);
        CHECK(got.number == number);
    }
    CHECK(number == messages);
    return NULL;
}

/* Dies in one of the middles. */
static void *die(void *argument) {
    own_number = next_peer();
    switch ((uintptr_t)argument % 3) {
    case 0:
        lock();
        left++;
        break;
    case 1: {
        char *place = NULL;
        while (place == NULL) place = shmwasm_queue_claim(queue);
        place[0] = 1;
        break;
    }
    default: {
        /* What it takes, if there is anything, another had sent: count it here, since nobody else will. */
        const message *taken = shmwasm_queue_front(queue);
        if (taken != NULL) __atomic_fetch_add(&received[taken->producer], 1, __ATOMIC_SEQ_CST);
    }
    }
    bury(own_number);
    return NULL;
}

static pthread_t start(void *(*run)(void *), uintptr_t argument) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, (void *)argument) == 0);
    return thread;
}

static void join(pthread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }

int main(int count, char **arguments) {
    CHECK(count == 3);
    first_seed = strtoull(arguments[1], NULL, 10);
    messages = (uint32_t)strtoul(arguments[2], NULL, 10);
    peers = calloc(1, sizeof *peers);
    own_number = next_peer();
    uint64_t seed = first_seed;
    uint32_t capacity = 2u << random_below(&seed, 6);
    ring = shmwasm_ring_new(capacity / 2, sizeof(message));
    queue = shmwasm_queue_new(capacity, sizeof(message));
    CHECK(ring != NULL && queue != NULL);
    shmwasm_mutex_init(&mutex);

    pthread_t lonely[2] = {start(send_alone, 0), start(receive_alone, 0)};
    pthread_t producers[PRODUCERS], consumers[CONSUMERS];
    for (uint32_t i = 0; i < PRODUCERS; i++) producers[i] = start(produce, i);
    for (uint32_t i = 0; i < CONSUMERS; i++) consumers[i] = start(consume, i);
    for (uint32_t i = 0; i < DEATHS; i++) join(start(die, i));
    for (uint32_t i = 0; i < PRODUCERS; i++) join(producers[i]);
    shmwasm_queue_close(queue);
    for (uint32_t i = 0; i < CONSUMERS; i++) join(consumers[i]);
    for (uint32_t i = 0; i < 2; i++) join(lonely[i]);

    for (uint32_t i = 0; i < PRODUCERS; i++) CHECK(received[i] == messages);
    CHECK(shmwasm_queue_count(queue) == 0 && queue->voided == (DEATHS + 1) / 3);
    (void)shmwasm_queue_recover(queue);
    lock();
    CHECK(left >= (uint64_t)(PRODUCERS + CONSUMERS) * (messages / 4) && inherited == (DEATHS + 2) / 3);
    unlock();
    free(ring);
    free(queue);
    free(peers);
    return 0;
}
