"""Primes, by guests in Zig: one process sieves, another sums up, and a ring in a shared heap lies between them."""

from __future__ import annotations

import sys
from pathlib import Path

from shmwasm import Runtime

LIMIT = 1_000_000


def sum_of_primes(limit: int) -> int:
    """Return the sum of the primes below `limit`."""
    sieve = bytearray([1]) * limit
    sieve[:2] = bytes(2)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return sum(number for number, is_prime in enumerate(sieve) if is_prime)


def main() -> int:
    """Sum up the primes in two processes, and compare with Python's sum."""
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(1 << 20)
        module = runtime.load(Path(__file__).with_name("primes.wasm"))
        with runtime.spawn(module, shared_heap=heap) as first, runtime.spawn(module, shared_heap=heap) as second:
            ring = first.call("create")
            total = second.submit("sum", ring)
            first.call("sieve", ring, LIMIT)
            found = total.result()
    same = found == sum_of_primes(LIMIT)
    print(f"the primes below {LIMIT} sum up to {found}: {'as' if same else 'NOT as'} Python says")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
