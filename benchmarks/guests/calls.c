/* The smallest work on data that is passed by address, and on numbers: what remains is the call. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

/* Where wasmtime-py's peer copies its data to, and from. */
static uint8_t private_memory[1u << 20];

EXPORT("private_memory") void *private_address(void) { return private_memory; }

/* Reads the first and the last byte, and writes the first. */
EXPORT("touch") uint32_t touch(uint8_t *bytes, uint32_t size) {
    bytes[0]++;
    return bytes[0] + bytes[size - 1];
}

/* Reads the first and the last byte, if there are any. */
EXPORT("ends") uint32_t ends(const uint8_t *bytes, uint32_t size) { return size ? bytes[0] + bytes[size - 1] : 0; }

EXPORT("increment") uint32_t increment(uint32_t number) { return number + 1; }
