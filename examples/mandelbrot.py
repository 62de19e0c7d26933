"""The Mandelbrot set, by guests in AssemblyScript: each row is a block that a guest allocates and the host reads in place."""

from __future__ import annotations

import sys
from itertools import repeat
from pathlib import Path

from shmwasm import Caller, Runtime
from shmwasm.errors import HostFunctionError

WIDTH, HEIGHT = 120, 40
SHADES = " .:-=+*#@"


def abort(caller: Caller, message: int, file: int, line: int, column: int) -> None:
    """Raise what an AssemblyScript module imports as `env.abort`. A string is UTF-16, with its size in the word before it."""
    texts = []
    for address in (message, file):
        size = int.from_bytes(caller.view(address - 4, 4), "little") if address else 0
        texts.append(bytes(caller.view(address, size)).decode("utf-16-le"))
    raise RuntimeError(f"{texts[0]} ({texts[1]}:{line}:{column})")


def steps(real: float, imaginary: float) -> int:
    """Return what the guest computes for a pixel."""
    x = y = 0.0
    for count in range(255):
        if x * x + y * y > 4.0:
            return count
        x, y = x * x - y * y + real, 2.0 * x * y + imaginary
    return 255


def main() -> int:
    """Draw the set, and compare with the same in Python."""
    same = True
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(1 << 20)
        module = runtime.load(Path(__file__).with_name("mandelbrot.wasm"), imports={"env": {"abort": abort}})
        with runtime.pool(module, size=2, shared_heap=heap) as pool:
            for y, row in enumerate(pool.map("row", range(HEIGHT), repeat(WIDTH), repeat(HEIGHT))):
                with heap.block_at(row, WIDTH) as block:
                    pixels = bytes(block.view)
                print("".join(SHADES[pixel.bit_length()] for pixel in pixels))
                same &= list(pixels) == [steps(x / WIDTH * 3.0 - 2.0, y / HEIGHT * 2.0 - 1.0) for x in range(WIDTH)]
            try:
                pool.submit("fail").result()
            except HostFunctionError as error:
                print(f"a guest that fails: {error.trap}")
    print(f"{WIDTH} x {HEIGHT} pixels: {'as' if same else 'NOT as'} Python draws them")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
