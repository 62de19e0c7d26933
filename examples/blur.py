"""An image filter over tiles: numpy and a pool of instances work on the same pixels, which are never copied.

It needs numpy: `pip install 'shmwasm[numpy]'`, or `'.[numpy]'` from a checkout.
"""

from __future__ import annotations

import sys
from itertools import repeat
from pathlib import Path

import numpy as np

from shmwasm import Runtime

WIDTH, HEIGHT, TILE = 1920, 1080, 256


def blur_on_the_host(picture: np.ndarray) -> np.ndarray:
    """Return what the guest should make of `picture`."""
    framed = np.pad(picture, 1, mode="edge").astype(np.uint16)
    sums: np.ndarray = np.add.reduce([framed[y : y + HEIGHT, x : x + WIDTH] for y in range(3) for x in range(3)])
    return (sums // 9).astype(np.uint8, copy=False)


def main() -> int:
    """Blur a noisy picture tile by tile, and compare with numpy."""
    corners = [(left, top) for top in range(0, HEIGHT, TILE) for left in range(0, WIDTH, TILE)]
    lefts, tops = zip(*corners, strict=True)

    with Runtime() as runtime:
        heap = runtime.create_shared_heap(16 << 20)
        source, target = heap.malloc(WIDTH * HEIGHT), heap.malloc(WIDTH * HEIGHT)

        picture = source.ndarray("u1", (HEIGHT, WIDTH))  # a view of the heap: writing it is all that "sending" takes
        picture[:] = np.random.default_rng(1).integers(0, 256, picture.shape)

        module = runtime.load(Path(__file__).with_name("blur.wasm"))
        with runtime.pool(module, size=2, shared_heap=heap) as pool:
            tiles = pool.map("blur", repeat(source), repeat(target), repeat(WIDTH), repeat(HEIGHT), lefts, tops, repeat(TILE))
            list(tiles)  # wait for all of them, and raise what any of them raised

        same = np.array_equal(target.ndarray("u1", (HEIGHT, WIDTH)), blur_on_the_host(picture))

    print(f"{len(corners)} tiles of a {WIDTH} x {HEIGHT} picture blurred: {'as' if same else 'NOT as'} numpy does it")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
