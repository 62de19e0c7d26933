/* Counts the words of a part of a text. The text is a file, mapped read-only; the result goes into a managed heap. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

struct result {
    uint32_t words;
    uint32_t letters;
};

/* The white space of Python's bytes.split(). */
static int is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

/* Counts the words that start in [begin, end), and all bytes in it that are no white space. A word belongs to the part in which
 * it starts, so the byte before `begin` is looked at, unless that is the text's first. */
EXPORT("count_words")
void count_words(const uint8_t *text, const uint8_t *begin, const uint8_t *end, struct result *result) {
    uint32_t words = 0, letters = 0;
    int after_space = begin == text || is_space(begin[-1]);
    for (const uint8_t *byte = begin; byte != end; byte++) {
        int space = is_space(*byte);
        words += after_space & !space;
        letters += !space;
        after_space = space;
    }
    result->words = words;
    result->letters = letters;
}
