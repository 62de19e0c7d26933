// A row of the Mandelbrot set, in AssemblyScript: pixels go straight into a block of a shared heap.
//
//   npm install assemblyscript && npx asc mandelbrot.ts --optimize --runtime stub --outFile mandelbrot.wasm

// @ts-ignore: decorator
@external("env", "shared_heap_malloc")
declare function shared_heap_malloc(size: usize): usize;

// @ts-ignore: decorator
@external("env", "shared_heap_free")
declare function shared_heap_free(block: usize): void;

const LIMIT: u32 = 255;

function steps(real: f64, imaginary: f64): u32 {
  let x = 0.0, y = 0.0;
  let count: u32 = 0;
  while (count < LIMIT && x * x + y * y <= 4.0) {
    const next = x * x - y * y + real;
    y = 2.0 * x * y + imaginary;
    x = next;
    count++;
  }
  return count;
}

/** Makes a row of `width` pixels, a byte each, in a new block of the shared heap, and returns its address, or 0. */
export function row(y: u32, width: u32, height: u32): usize {
  const block = shared_heap_malloc(width);
  if (block == 0) return 0;
  memory.fill(block, 0, width);
  for (let x: u32 = 0; x < width; x++) {
    const real = <f64>x / width * 3.0 - 2.0, imaginary = <f64>y / height * 2.0 - 1.0;
    store<u8>(block + x, <u8>steps(real, imaginary));
  }
  return block;
}

/** Frees a row that any instance made. */
export function free(block: usize): void {
  shared_heap_free(block);
}

/** Fails as AssemblyScript does: it calls its import `abort`. */
export function fail(): void {
  throw new Error("as it was told to");
}
