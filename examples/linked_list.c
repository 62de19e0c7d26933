/* A linked list in a shared heap. Its pointers are app addresses, the same in every instance, so any instance can walk it. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("env"), import_name(name)))

IMPORT("shared_heap_malloc") void *shared_heap_malloc(uint32_t size);
IMPORT("shared_heap_free") void shared_heap_free(void *block);

struct node {
    struct node *next;
    int32_t value;
};

/* Builds the list of the squares of 0 ... count - 1 and returns its first node; null if the heap has no room. */
EXPORT("build") struct node *build(int32_t count) {
    struct node *head = 0;
    for (int32_t i = count - 1; i >= 0; i--) {
        struct node *node = shared_heap_malloc(sizeof *node);
        if (!node) return 0;
        node->next = head;
        node->value = i * i;
        head = node;
    }
    return head;
}

EXPORT("sum") int64_t sum(const struct node *head) {
    int64_t total = 0;
    for (; head; head = head->next) total += head->value;
    return total;
}

/* Frees every node and returns how many there were. */
EXPORT("destroy") int32_t destroy(struct node *head) {
    int32_t count = 0;
    while (head) {
        struct node *next = head->next;
        shared_heap_free(head);
        head = next;
        count++;
    }
    return count;
}
