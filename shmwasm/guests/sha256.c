/* SHA-256 (FIPS 180-4) for `shmwasm demo`: digests of many messages that lie in a shared heap, one call for a batch.
 *
 * Theory
 * ------
 * A block of 64 bytes depends on the one before it, so a single message cannot be spread over a vector; four messages can. The
 * rounds are therefore written once, for a `word` that is either 32 bits (one message) or a vector of four times 32 bits (four
 * messages, one in each lane). A lane whose message is finished takes the next of the batch. The last, lone message goes on with
 * 32-bit words, which are faster for one message than a vector of which three lanes idle.
 *
 * Addresses are app addresses. Nothing is allocated and nothing outside the table's digests is written.
 */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

enum { BLOCK = 64, LANES = 4 };

/* One entry of a batch: 40 bytes, little endian. */
struct job {
    uint32_t message;   /* app address of the first byte */
    uint32_t length;    /* bytes */
    uint8_t digest[32]; /* written by digest_many */
};

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef u32x4 u32x4_unaligned __attribute__((aligned(1)));

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static const uint32_t INITIAL[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

#define ROTATE(x, n) (((x) >> (n)) | ((x) << (32 - (n))))

/* Defines `void name(word state[8], word w[16])`: the 64 rounds of section 6.2.2 over one block, w[] being its words. */
#define DEFINE_COMPRESS(name, word)                                                                               \
    static void name(word state[8], word w[16]) {                                                                 \
        word a = state[0], b = state[1], c = state[2], d = state[3];                                              \
        word e = state[4], f = state[5], g = state[6], h = state[7];                                              \
        for (int i = 0; i < 64; i += 16) {                                                                        \
            _Pragma("clang loop unroll(full)") for (int j = 0; j < 16; j++) {                                     \
                if (i > 0) {                                                                                      \
                    word x = w[(j + 1) & 15], y = w[(j + 14) & 15];                                               \
                    w[j] += (ROTATE(x, 7) ^ ROTATE(x, 18) ^ (x >> 3)) + w[(j + 9) & 15] +                         \
                            (ROTATE(y, 17) ^ ROTATE(y, 19) ^ (y >> 10));                                          \
                }                                                                                                 \
                word t1 = h + (ROTATE(e, 6) ^ ROTATE(e, 11) ^ ROTATE(e, 25)) + (g ^ (e & (f ^ g))) + K[i + j] + w[j]; \
                word t2 = (ROTATE(a, 2) ^ ROTATE(a, 13) ^ ROTATE(a, 22)) + ((a & b) | (c & (a | b)));             \
                h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;                                \
            }                                                                                                     \
        }                                                                                                         \
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;                                               \
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;                                               \
    }

DEFINE_COMPRESS(compress_one, uint32_t)
DEFINE_COMPRESS(compress_four, u32x4)

/* Four big-endian words. */
static u32x4 load_words(const uint8_t *bytes) {
    u8x16 raw = (u8x16) * (const u32x4_unaligned *)bytes;
    return (u32x4)__builtin_shufflevector(raw, raw, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
}

/* One message on its way: the whole blocks where they lie, then the padded rest, kept here. */
struct lane {
    struct job *job; /* null: idle */
    const uint8_t *next;
    uint32_t stride;      /* from one block to the next: 0 in an idle lane, which repeats its tail */
    uint32_t blocks;      /* from `next` on, before `tail` */
    uint32_t tail_blocks; /* 0 once `next` points into the tail */
    uint8_t tail[2 * BLOCK];
};

/* Sets out on a message. Section 5.1.1: its rest, one bit, zeros, and its length in bits make the tail. */
static void start(struct lane *lane, struct job *job) {
    const uint8_t *message = (const uint8_t *)job->message;
    uint32_t rest = job->length % BLOCK;
    uint64_t bits = (uint64_t)job->length * 8;
    lane->job = job;
    lane->next = message;
    lane->stride = BLOCK;
    lane->blocks = job->length / BLOCK;
    lane->tail_blocks = rest < BLOCK - 8 ? 1 : 2;
    uint32_t end = lane->tail_blocks * BLOCK;
    for (uint32_t i = 0; i < end; i++) lane->tail[i] = i < rest ? message[job->length - rest + i] : 0;
    lane->tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) lane->tail[end - 1 - i] = (uint8_t)(bits >> (8 * i));
}

static void idle(struct lane *lane) {
    lane->job = 0;
    lane->next = lane->tail;
    lane->stride = 0;
    lane->blocks = UINT32_MAX;
    lane->tail_blocks = 0;
}

/* Goes over to the tail once the blocks before it are done. Returns 0 when nothing is left of the message. */
static int next_part(struct lane *lane) {
    if (lane->blocks == 0 && lane->tail_blocks > 0) {
        lane->next = lane->tail;
        lane->blocks = lane->tail_blocks;
        lane->tail_blocks = 0;
    }
    return lane->blocks > 0;
}

static void advance_one(struct lane *lane, uint32_t state[8]) {
    for (; lane->blocks > 0; lane->blocks--, lane->next += BLOCK) {
        uint32_t w[16];
        for (int i = 0; i < 16; i += 4) *(u32x4_unaligned *)&w[i] = load_words(lane->next + 4 * i);
        compress_one(state, w);
    }
}

/* Advances all lanes by as many blocks as each of them has. */
static void advance_four(struct lane lanes[LANES], u32x4 state[8]) {
    uint32_t steps = UINT32_MAX;
    for (int l = 0; l < LANES; l++) steps = lanes[l].blocks < steps ? lanes[l].blocks : steps;
    for (uint32_t step = 0; step < steps; step++) {
        u32x4 w[16];
        for (int i = 0; i < 16; i += 4) { /* four words of each lane, turned into four vectors of one word each */
            u32x4 m0 = load_words(lanes[0].next + 4 * i), m1 = load_words(lanes[1].next + 4 * i);
            u32x4 m2 = load_words(lanes[2].next + 4 * i), m3 = load_words(lanes[3].next + 4 * i);
            u32x4 low01 = __builtin_shufflevector(m0, m1, 0, 4, 1, 5), high01 = __builtin_shufflevector(m0, m1, 2, 6, 3, 7);
            u32x4 low23 = __builtin_shufflevector(m2, m3, 0, 4, 1, 5), high23 = __builtin_shufflevector(m2, m3, 2, 6, 3, 7);
            w[i] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
            w[i + 1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
            w[i + 2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
            w[i + 3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
        }
        compress_four(state, w);
        for (int l = 0; l < LANES; l++) lanes[l].next += lanes[l].stride;
    }
    for (int l = 0; l < LANES; l++) lanes[l].blocks -= lanes[l].job ? steps : 0;
}

static void store_digest(uint8_t digest[32], const uint32_t state[8]) {
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* Digests `count` messages; each digest goes into the message's own entry of the table. */
EXPORT("digest_many") void digest_many(struct job *table, uint32_t count) {
    struct lane lanes[LANES];
    u32x4 state[8];
    uint32_t taken = 0, active = 0;
    for (int l = 0; l < LANES; l++) {
        idle(&lanes[l]);
        if (taken < count) start(&lanes[l], &table[taken++]), active++;
        for (int i = 0; i < 8; i++) state[i][l] = INITIAL[i];
        next_part(&lanes[l]);
    }
    while (active > 1) {
        advance_four(lanes, state);
        for (int l = 0; l < LANES; l++) {
            if (next_part(&lanes[l])) continue;
            uint32_t finished[8];
            for (int i = 0; i < 8; i++) finished[i] = state[i][l], state[i][l] = INITIAL[i];
            store_digest(lanes[l].job->digest, finished);
            if (taken < count)
                start(&lanes[l], &table[taken++]), next_part(&lanes[l]);
            else
                idle(&lanes[l]), active--;
        }
    }
    for (int l = 0; l < LANES; l++) {
        if (!lanes[l].job) continue;
        uint32_t last[8];
        for (int i = 0; i < 8; i++) last[i] = state[i][l];
        while (next_part(&lanes[l])) advance_one(&lanes[l], last);
        store_digest(lanes[l].job->digest, last);
    }
}

/* Digests `length` bytes from `message` on into the 32 bytes at `digest`. */
EXPORT("digest") void digest(uint32_t message, uint32_t length, uint8_t *digest) {
    struct job job = {message, length, {0}};
    struct lane lane;
    uint32_t state[8];
    for (int i = 0; i < 8; i++) state[i] = INITIAL[i];
    start(&lane, &job);
    while (next_part(&lane)) advance_one(&lane, state);
    store_digest(digest, state);
}
