/* A pipeline of processes: one finds the lines of a text and sends where they are; others take them, and agree on the longest. */
#include "shmwasm.h"

struct line {
    uint64_t offset; /* from the text's first byte: means the same to everyone */
    uint64_t length;
};

/* What all processes share; in the heap. */
struct pipeline {
    shmwasm_relative lines; /* the queue */
    shmwasm_mutex mutex;    /* protects what follows */
    uint32_t count;
    struct line longest;
};

static shmwasm_queue *lines_of(struct pipeline *pipeline) { return (shmwasm_queue *)shmwasm_relative_get(&pipeline->lines); }

/* Returns a new pipeline with room for 256 lines under way, or null. */
SHMWASM_EXPORT("create") struct pipeline *create(void) {
    struct pipeline *pipeline = SHMWASM_NEW(struct pipeline);
    shmwasm_queue *lines = shmwasm_queue_new(256, sizeof(struct line));
    if (!pipeline || !lines) return NULL;
    shmwasm_relative_set(&pipeline->lines, lines);
    return pipeline;
}

/* Sends every line, and then says that there are no more. */
SHMWASM_EXPORT("split") void split(struct pipeline *pipeline, const char *text, uint64_t size) {
    struct line line = {0, 0};
    for (uint64_t at = 0; at < size; at++) {
        if (text[at] != '\n') continue;
        line.length = at - line.offset;
        if (shmwasm_queue_push(lines_of(pipeline), &line, sizeof line, SHMWASM_FOREVER) != SHMWASM_OK) __builtin_trap();
        line.offset = at + 1;
    }
    shmwasm_queue_close(lines_of(pipeline));
}

/* Takes lines until there are no more. Returns how many it took. */
SHMWASM_EXPORT("work") uint32_t work(struct pipeline *pipeline) {
    struct line line;
    uint32_t taken = 0;
    while (shmwasm_queue_pop(lines_of(pipeline), &line, sizeof line, SHMWASM_FOREVER) == SHMWASM_OK) {
        /* If a worker dies with the mutex, the next one gets it, and is told so: here, a line may then have been counted or not. */
        if (shmwasm_mutex_lock(&pipeline->mutex) == SHMWASM_OWNER_DIED) shmwasm_mutex_consistent(&pipeline->mutex);
        pipeline->count++;
        if (line.length > pipeline->longest.length) pipeline->longest = line;
        shmwasm_mutex_unlock(&pipeline->mutex);
        taken++;
    }
    return taken;
}
