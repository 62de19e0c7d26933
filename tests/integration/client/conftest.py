"""Guests in the text format, and what the tests of the client share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmwasm import Instance, Module, Runtime, SharedHeap

ECHO = """(module
  (memory (export "memory") 1 10)
  (global $calls (mut i32) (i32.const 0))
  (func (export "nothing"))
  (func (export "i32") (param i32) (result i32) (local.get 0))
  (func (export "i64") (param i64) (result i64) (local.get 0))
  (func (export "f32") (param f32) (result f32) (local.get 0))
  (func (export "f64") (param f64) (result f64) (local.get 0))
  (func (export "all") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "count") (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (global.get $calls))
  (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1)))
  (func (export "spin") (loop $forever (br $forever)))
  (func $recurse (export "recurse") (call $recurse))
  (func (export "vector") (result v128) (v128.const i64x2 1 2)))"""

ALLOCATING = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) (call $malloc (local.get 0)))
  (func (export "free") (param i32) (call $free (local.get 0)))
  (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store8 (local.get 0) (local.get 1))))"""

CALLING = """(module
  (import "env" "host" (func $host (param i32 i64 f64) (result i32)))
  (import "env" "pair" (func $pair (result i32 f32)))
  (import "env" "tell" (func $tell (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "from the guest")
  (func (export "host") (param i32 i64 f64) (result i32) (call $host (local.get 0) (local.get 1) (local.get 2)))
  (func (export "pair") (result i32 f32) (call $pair))
  (func (export "tell") (call $tell (i32.const 16) (i32.const 14)))
  (func (export "tell_at") (param i32 i32) (call $tell (local.get 0) (local.get 1)))
  (func (export "alive") (result i32) (i32.const 1)))"""


@pytest.fixture
def heap(shared_runtime: Runtime) -> Iterator[SharedHeap]:
    """A managed heap of 4 MiB."""
    with shared_runtime.create_shared_heap(4 << 20) as one:
        yield one


@pytest.fixture(scope="session")
def echo_module(shared_runtime: Runtime) -> Module:
    return shared_runtime.load(ECHO, name="echo")


@pytest.fixture(scope="session")
def allocating_module(shared_runtime: Runtime) -> Module:
    return shared_runtime.load(ALLOCATING, name="allocating")


@pytest.fixture(scope="session")
def echo_text() -> str:
    return ECHO


@pytest.fixture(scope="session")
def calling_text() -> str:
    return CALLING


@pytest.fixture
def instance(shared_runtime: Runtime, echo_module: Module, heap: SharedHeap) -> Iterator[Instance]:
    """An instance of `echo_module`, attached to `heap`."""
    with shared_runtime.spawn(echo_module, shared_heap=heap) as one:
        yield one


COUNTING = """(module
  (memory (export "memory") 1 10)
  (global $count (mut i32) (i32.const 0))
  (func $add (param i32) (global.set $count (i32.add (global.get $count) (local.get 0))))
  (func $start (call $add (i32.const 1)))
  (start $start)
  (func (export "_initialize") (call $add (i32.const 10)))
  (func (export "prepare") (param i32) (call $add (local.get 0)))
  (func (export "count") (result i32) (call $add (i32.const 1000)) (global.get $count))
  (func (export "same") (param i32) (result i32) (local.get 0))
  (func (export "all") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1)))
  (func (export "spin") (loop $forever (br $forever))))"""
"""A guest that counts what was run in it, each in a place of its own: start, `_initialize`, init, calls."""


@pytest.fixture(scope="module")
def counting(shared_runtime: Runtime) -> Iterator[Module]:
    """Give a module whose instances count what was run in them, for the module's tests."""
    with shared_runtime.load(COUNTING, name="counting") as module:
        yield module
