/* A 3x3 box blur of one tile of a picture. Both pictures lie in a shared heap: one byte a pixel, row after row. */
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

static uint32_t clamp(int32_t value, uint32_t end) { return value < 0 ? 0 : (uint32_t)value < end ? (uint32_t)value : end - 1; }

/* Blurs the pixels of [left, left + side) x [top, top + side) that lie in the picture. Past its edges the picture goes on as at
 * the edge. */
EXPORT("blur")
void blur(const uint8_t *source, uint8_t *target, uint32_t width, uint32_t height, uint32_t left, uint32_t top, uint32_t side) {
    for (uint32_t y = top; y < top + side && y < height; y++) {
        const uint8_t *above = source + clamp((int32_t)y - 1, height) * width;
        const uint8_t *middle = source + y * width;
        const uint8_t *below = source + clamp((int32_t)y + 1, height) * width;
        for (uint32_t x = left; x < left + side && x < width; x++) {
            uint32_t sum = 0;
            for (int32_t step = -1; step <= 1; step++) {
                uint32_t column = clamp((int32_t)x + step, width);
                sum += above[column] + middle[column] + below[column];
            }
            target[y * width + x] = (uint8_t)(sum / 9);
        }
    }
}
