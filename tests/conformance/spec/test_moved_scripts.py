"""Scripts about memory with their addresses moved into shared heaps: into one heap, into a chain, and across a seam.

What they do there must be what they do in the module's own memory. Scripts in which modules share their memory are not among
them, nor those that access what they have grown: what grows is not what was moved (see `wast_moving`).
"""

from __future__ import annotations

import functools

from wast_moving import chain, heap, seam
from wast_reader import read_script
from wast_rewriting import MovedWorld
from wast_runner import World, differences, outcomes

BULK = (
    "bulk bulk64 data_drop0 memory_copy memory_copy0 memory_copy1 memory_copy64 memory_fill memory_fill0 memory_fill64 "
    "memory_init memory_init0 memory_init64"
)
ATOMIC = "proposals/threads/atomic waiting"
PLAIN = (
    "address address0 address1 address64 align align64 endianness endianness64 float_memory float_memory0 float_memory64 "
    "load load0 load64 memory_redundancy memory_redundancy64 memory_trap memory_trap0 memory_trap1 memory_trap64 "
    "simd_address simd_align simd_load simd_load16_lane simd_load32_lane simd_load64_lane simd_load8_lane simd_load_extend "
    "simd_load_splat simd_load_zero simd_store simd_store16_lane simd_store32_lane simd_store64_lane simd_store8_lane "
    "store store0 traps0"
)
SCRIPTS = {f"{name}.wast" for name in f"{BULK} {ATOMIC} {PLAIN}".split()}

ODD, ALIGNED = 13, 16
"""How many bytes lie below the seam: in the midst of what the scripts use, and where atomic accesses stay aligned."""


def test_script_does_the_same_in_a_heap_in_a_chain_and_across_a_seam(engine, script):
    commands = read_script(script.path)
    modules = {}
    private = outcomes(World(engine, modules), commands)
    below = ALIGNED if script.name.removesuffix(".wast") in ATOMIC.split() else ODD
    for place in (heap, chain, functools.partial(seam, below)):
        world = MovedWorld(engine, modules, place)
        assert differences(commands, private, outcomes(world, commands)) == [], str(place)
        assert world.moved
