from __future__ import annotations

import pytest
import wasmtime

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END
from shmwasm.rewrite import rewrite, seam
from shmwasm.wasm.decoding import decode

FAR = (1 << 32) - 16
"""A static offset that takes a small address into the last heap of a 32-bit guest."""


def module(kind: str, memory: str = "") -> str:
    far = FAR if kind == "i32" else FAR + (1 << 36) - (1 << 32)
    return f"""(module (memory (export "memory") {memory or ("i64 1" if kind == "i64" else "1")})
      (func (export "wait32") (param {kind} i32 i64) (result i32)
        (memory.atomic.wait32 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "wait64") (param {kind} i64 i64) (result i32)
        (memory.atomic.wait64 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "notify") (param {kind} i32) (result i32) (memory.atomic.notify (local.get 0) (local.get 1)))
      (func (export "wait32_far") (param {kind} i32 i64) (result i32)
        (memory.atomic.wait32 offset={far} (local.get 0) (local.get 1) (local.get 2)))
      (func (export "notify_far") (param {kind} i32) (result i32)
        (memory.atomic.notify offset={far} (local.get 0) (local.get 1))))"""


class Host:
    """The host's side: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def wait32(self, address: int, expected: int, timeout_ns: int) -> int:
        self.asked.append(("wait32", address, expected, timeout_ns))
        return 2

    def wait64(self, address: int, expected: int, timeout_ns: int) -> int:
        self.asked.append(("wait64", address, expected, timeout_ns))
        return 1

    def notify(self, address: int, count: int) -> int:
        self.asked.append(("notify", address, count))
        return 3


@pytest.fixture
def host():
    return Host()


@pytest.fixture(params=["i32", "i64"])
def guest(request, make_guest, host):
    return make_guest(module(request.param), futexes=host)


@pytest.fixture
def attached(guest, make_chain):
    guest.window.attach(make_chain((OS_PAGE, True), (OS_PAGE, False)).grants())
    return guest


def test_addresses_in_the_chain_go_to_the_host(attached, host):
    last = attached.origin + WINDOW_END - 8
    native = attached.window.base + last
    assert attached.call("wait32", last, -5, 1000) == 2
    assert attached.call("wait64", last, -6, -1) == 1
    assert attached.call("notify", last, 7) == 3
    assert attached.call("wait32_far", 8, 1, 2) == 2
    assert attached.call("notify_far", 8, -1) == 3
    assert host.asked == [
        ("wait32", native, -5, 1000),
        ("wait64", native, -6, -1),
        ("notify", native, 7),
        ("wait32", native, 1, 2),
        ("notify", native, 0xFFFF_FFFF),
    ]


def test_private_addresses_keep_the_native_instruction(attached, host):
    assert attached.call("notify", 8, 7) == 0
    assert attached.trap("wait32", 8, 0, 0) == "atomic_wait_non_shared_memory"
    assert attached.trap("wait64", 8, 0, 0) == "atomic_wait_non_shared_memory"
    assert host.asked == []


@pytest.mark.parametrize("name", ["wait32", "wait64", "notify"])
def test_misaligned_and_lost_addresses_trap_as_the_native_instruction_does(attached, host, name):
    arguments = (0,) if name == "notify" else (0, 0)
    start = attached.origin + WINDOW_END - 2 * OS_PAGE
    lost = [WASM_PAGE, WASM_PAGE + 8, start - 8, start - WASM_PAGE, (1 << 32) - (1 << 20)]
    lost += [start + 2 * OS_PAGE, 1 << 40, 1 << 48, (1 << 64) - 8] if attached.window.is_64 else []
    for address in lost:
        assert attached.trap(name, address, *arguments) == "memory_out_of_bounds", hex(address)
    for address in (1, 2, WASM_PAGE - 2, WASM_PAGE + 1, start - 1, start + 1, start + OS_PAGE + 2):
        assert attached.trap(name, address, *arguments) == "heap_misaligned", hex(address)
    assert host.asked == []


def test_address_and_offset_that_wrap_do_not_reach_the_chain(attached, host):
    wraps = 24 if not attached.window.is_64 else (1 << 64) - 8
    assert attached.trap("wait32_far", wraps, 0, 0) == "memory_out_of_bounds"
    assert attached.trap("notify_far", wraps, 0) == "memory_out_of_bounds"
    assert host.asked == []


def test_offset_that_no_address_can_have_leaves_the_instruction_as_it_is():
    text = f"""(module (memory (export "memory") i64 1) (func (export "f") (param i64) (result i32)
      (memory.atomic.notify offset={1 << 36} (local.get 0) (i32.const 1))))"""
    content, report = rewrite(bytes(wasmtime.wat2wasm(text)))
    assert "memory.atomic.notify" not in [change.what for change in report.changes]
    assert seam.ALIAS not in {export.name for export in decode(content).exports}


def test_after_detach_the_chains_addresses_trap(attached, host):
    attached.window.detach()
    assert attached.trap("notify", attached.origin + WINDOW_END - 8, 1) == "memory_out_of_bounds"
    assert host.asked == []


def test_shared_memory_keeps_its_own_waits(make_guest, make_chain, host):
    guest = make_guest(module("i32", "1 2 shared"), futexes=host)
    guest.window.attach(make_chain((OS_PAGE, True)).grants())
    assert guest.call("wait32", 8, 1, -1) == 1
    assert guest.call("wait32", 8, 0, 1) == 2
    assert guest.call("notify", WINDOW_END - 8, 1) == 3
