/* Messages from one instance to another, through the guest kit: as many as possible, and there and back. */
#include "shmwasm.h"

struct message {
    uint64_t words[8];
};

static void require(shmwasm_status status) {
    if (status != SHMWASM_OK) __builtin_trap();
}

#define DEFINE(kind)                                                                                                    \
    SHMWASM_EXPORT("new_" #kind) shmwasm_##kind *new_##kind(uint32_t capacity) {                                        \
        return shmwasm_##kind##_new(capacity, sizeof(struct message));                                                  \
    }                                                                                                                   \
                                                                                                                        \
    static void kind##_push(shmwasm_##kind *to, const struct message *message) {                                        \
        require(shmwasm_##kind##_push(to, message, sizeof *message, SHMWASM_FOREVER));                                  \
    }                                                                                                                   \
                                                                                                                        \
    static void kind##_pop(shmwasm_##kind *from, struct message *message) {                                             \
        require(shmwasm_##kind##_pop(from, message, sizeof *message, SHMWASM_FOREVER));                                 \
    }                                                                                                                   \
                                                                                                                        \
    SHMWASM_EXPORT(#kind "_send") void kind##_send(shmwasm_##kind *to, uint32_t times) {                                \
        struct message message = {{0}};                                                                                 \
        for (; message.words[0] < times; message.words[0]++) kind##_push(to, &message);                                 \
    }                                                                                                                   \
                                                                                                                        \
    SHMWASM_EXPORT(#kind "_receive") void kind##_receive(shmwasm_##kind *from, uint32_t times) {                        \
        struct message message;                                                                                         \
        for (uint32_t i = 0; i < times; i++) {                                                                          \
            kind##_pop(from, &message);                                                                                 \
            if (message.words[0] != i) __builtin_trap();                                                                \
        }                                                                                                               \
    }                                                                                                                   \
                                                                                                                        \
    SHMWASM_EXPORT(#kind "_ping") void kind##_ping(shmwasm_##kind *there, shmwasm_##kind *back, uint32_t times) {       \
        struct message message = {{0}};                                                                                 \
        for (uint32_t i = 0; i < times; i++) {                                                                          \
            kind##_push(there, &message);                                                                               \
            kind##_pop(back, &message);                                                                                 \
        }                                                                                                               \
    }                                                                                                                   \
                                                                                                                        \
    SHMWASM_EXPORT(#kind "_pong") void kind##_pong(shmwasm_##kind *there, shmwasm_##kind *back, uint32_t times) {       \
        struct message message;                                                                                         \
        for (uint32_t i = 0; i < times; i++) {                                                                          \
            kind##_pop(there, &message);                                                                                \
            kind##_push(back, &message);                                                                                \
        }                                                                                                               \
    }

DEFINE(ring)
DEFINE(queue)
