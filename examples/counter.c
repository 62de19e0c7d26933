/* An atomic counter that any number of instances, each in its own process, may add to. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

EXPORT("add") void add(uint64_t *counter, uint32_t times) {
    for (uint32_t i = 0; i < times; i++) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}
