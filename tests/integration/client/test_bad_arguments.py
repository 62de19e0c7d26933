"""Bad arguments of every public function: a named error that names the value, and nothing changed."""

from __future__ import annotations

import math
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from shmwasm import Block, Instance, InstancePool, Module, Runtime, SharedHeap, WasiOptions, errors, on_client
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, SLAB_SIZE

WASI = '(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (memory (export "memory") 1))'


class _RaisingIndex:
    """A number whose own code fails, and whose name cannot be had."""

    def __index__(self) -> int:
        raise ZeroDivisionError("from __index__")

    __float__ = __fspath__ = fileno = __index__

    def __repr__(self) -> str:
        raise RuntimeError("from __repr__")


class _HugeIndex:
    def __index__(self) -> int:
        return 10**5000


class _WrongIndex:
    def __index__(self) -> Any:
        return "1"  # noqa: PLE0305  what is wrong with it


class _RaisingEqual(_RaisingIndex):
    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("from __eq__")

    __hash__ = object.__hash__


@dataclass
class World:
    """All that can be given, wrong or right, and what it looked like before."""

    runtime: Runtime
    directory: Path
    heap: SharedHeap = field(init=False)
    body: SharedHeap = field(init=False)
    spare: SharedHeap = field(init=False)
    plain: SharedHeap = field(init=False)
    closed: SharedHeap = field(init=False)
    foreign: SharedHeap = field(init=False)
    foreign_module: Module = field(init=False)
    module: Module = field(init=False)
    closed_module: Module = field(init=False)
    wasi_module: Module = field(init=False)
    instance: Instance = field(init=False)
    killed: Instance = field(init=False)
    pool: InstancePool = field(init=False)
    shut_pool: InstancePool = field(init=False)
    block: Block = field(init=False)
    freed: Block = field(init=False)
    spare_block: Block = field(init=False)

    def prepare(self, other: Runtime, echo_text: str) -> None:
        runtime = self.runtime
        self.heap, self.body, self.spare = (runtime.create_shared_heap(4 * SLAB_SIZE, name=name) for name in ("a", "b", "c"))
        (self.directory / "plain").write_bytes(bytes(20_000))
        self.plain = runtime.create_shared_heap(pre_allocated=self.directory / "plain", name="plain")
        self.closed = runtime.create_shared_heap(1)
        self.closed.close()
        self.foreign, self.foreign_module = other.create_shared_heap(1), other.load(echo_text)
        runtime.chain_shared_heaps(self.heap, self.body)
        self.module, self.wasi_module = runtime.load(echo_text), runtime.load(WASI)
        self.closed_module = runtime.load(echo_text)
        self.closed_module.close()
        self.instance, self.killed = (runtime.spawn(self.module, shared_heap=self.heap) for _ in range(2))
        self.killed.kill()
        self.pool, self.shut_pool = (runtime.pool(self.module, size=1) for _ in range(2))
        self.shut_pool.shutdown()
        self.block, self.freed, self.spare_block = self.heap.calloc(100), self.heap.malloc(1000), self.spare.malloc(100)
        self.freed.free()
        self.check_that_it_works()
        self.before = self.looks()

    def check_that_nothing_changed(self) -> None:
        """Look twice, with work between; a worker that refused its instance may take a moment to end."""
        deadline = time.monotonic() + 30
        while self.looks() != self.before and time.monotonic() < deadline:
            time.sleep(0.001)
        self.check_that_it_works()
        assert self.looks() == self.before

    def looks(self) -> object:
        heaps = [self.heap, self.body, self.spare]
        self.runtime.verify()
        for heap in heaps:
            heap.verify()
        files = sorted((path.name, path.lstat().st_size) for path in self.directory.iterdir())
        starts = [heap.start for heap in (*heaps, self.plain)]
        return self.runtime.status(), [heap.statistics() for heap in heaps], starts, bytes(self.plain.view[:100]), files

    def check_that_it_works(self) -> None:
        self.block.view[7] = 77
        assert self.instance.call("load", self.block.address + 7, timeout=30) == 77
        assert self.pool.submit("add", 1, 2).result(timeout=30) == 3
        self.heap.malloc(1000).free()


@pytest.fixture(scope="module")
def world(shared_runtime: Runtime, echo_text: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Runtime() as runtime, Runtime() as other:
        one = World(runtime, tmp_path_factory.mktemp("bad"))
        one.prepare(other, echo_text)
        yield one


NO_TEXT = (None, b"x", 5, 1.5, [], _RaisingIndex())
NO_NAME = (b"x", 5, [], "", "n" * 10_000_000, "nul\0", "surrogate\udcff", _RaisingIndex())
NO_NUMBER = ("1", b"1", 1.5, math.nan, [], object(), _RaisingIndex(), _WrongIndex())
NO_COUNT = (*NO_NUMBER, None, -1, -(1 << 70), 1 << 70, 10**5000, _HugeIndex())
NO_FLAG = (None, 0, 1, "yes", b"", [], _RaisingIndex())
NO_TIME = ("1", b"1", [], object(), 0, -1, -1.5, math.nan, -math.inf, 10**5000, _RaisingIndex(), _HugeIndex())
NO_HEAP = (None, "a", 5, [], "w.closed", "w.foreign", "w.module", "w.instance", _RaisingIndex())
NO_MODULE = (None, "a", 5, "w.closed_module", "w.foreign_module", "w.heap", _RaisingIndex())
NO_ADDRESS = (*NO_NUMBER, None, 1 << 32, -(1 << 31) - 1, 1 << 70, 10**5000, _HugeIndex())
NO_WASI = (
    5,
    "inherit",
    {},
    _RaisingIndex(),
    *(WasiOptions(**{name: 5}) for name in ("args", "env", "stdin", "stdout", "stderr", "preopens", "read_only_preopens")),
    WasiOptions(args=[5]),
    WasiOptions(args=["\udcff"]),
    WasiOptions(args=["nul\0"]),
    WasiOptions(args=None),
    WasiOptions(env={"a": 5}),
    WasiOptions(env={b"a": "b"}),
    WasiOptions(env={"\udcff": "b"}),
    WasiOptions(stdout=None),
    WasiOptions(stdout="nul\0"),
    WasiOptions(preopens={5: "/"}),
    WasiOptions(stdout=Path("nul\0")),
    WasiOptions(preopens={"/": "/data"}, read_only_preopens=["/date"]),
    WasiOptions(preopens={"/does/not/exist": "/data"}),
)

Attack = Callable[[World, Any], object]


def _cases() -> Iterator[tuple[str, Attack, Sequence[Any]]]:  # noqa: PLR0915  one table
    yield "Runtime(quota)", lambda _w, v: Runtime(quota=v), NO_COUNT
    yield "Runtime(connect)", lambda _w, v: Runtime(connect=v), (
        b"/x", 5, [], _RaisingIndex(), "", "/", ".", "nul\0/x", "\0", "/does/not/exist", "/does/not/exist/x", "x" * 10_000_000,
        "surrogate\ud800", "/dev/null", "/etc/passwd", "\0shmwasm-nobody", "\0nul\0nul",
    )  # fmt: skip
    yield "create_shared_heap(size)", lambda w, v: w.runtime.create_shared_heap(v), (*NO_COUNT, 0, MAXIMUM_CHAIN_SIZE + 1)
    yield (
        "create_shared_heap(size of preallocated)",
        lambda w, v: w.runtime.create_shared_heap(v, pre_allocated=w.directory / "plain"),
        (*NO_COUNT[:-6], -1, 1 << 70, 0, 1, 4097, 1 << 20),
    )
    yield "create_shared_heap(name)", lambda w, v: w.runtime.create_shared_heap(1, name=v), (*NO_NAME, "a")
    yield (
        "create_shared_heap(on_death)",
        lambda w, v: w.runtime.create_shared_heap(1, on_death=v),
        (None, "x", 5, _RaisingEqual),
    )
    yield "create_shared_heap(on_death unhashable)", lambda w, v: w.runtime.create_shared_heap(1, on_death=v), ([], {})
    for option in ("read_only", "scrub", "remote_free", "reserve", "prefault"):
        yield f"create_shared_heap({option})", lambda w, v, o=option: w.runtime.create_shared_heap(1, **{o: v}), NO_FLAG
    yield "create_shared_heap(managed read_only)", lambda w, v: w.runtime.create_shared_heap(1, read_only=v), (True,)
    yield "open_shared_heap", lambda w, v: w.runtime.open_shared_heap(v), (None, *NO_NAME, "nobody's")
    yield "chain(head)", lambda w, v: w.runtime.chain_shared_heaps(v, w.spare), (*NO_HEAP, "w.heap", "w.body", "w.spare")
    yield "chain(body)", lambda w, v: w.runtime.chain_shared_heaps(w.spare, v), (*NO_HEAP, "w.heap", "w.body", "w.spare")
    yield "unchain(head)", lambda w, v: w.runtime.unchain_shared_heaps(v), (*NO_HEAP, "w.heap", "w.body", "w.spare")
    yield "unchain(entire)", lambda w, v: w.runtime.unchain_shared_heaps(w.heap, entire_chain=v), (*NO_FLAG, True)
    yield "reset", lambda w, v: w.runtime.reset_shared_heap_chain(v), (*NO_HEAP, "w.heap", "w.body")
    yield "load(source)", lambda w, v: w.runtime.load(v), (
        None, 5, 1.5, [], object(), _RaisingIndex(), "", "nul\0", "surrogate\ud800", "(module \ud800)", "x" * 10_000_000, b"",
        b"\0asm", b"\0asm\1\0\0\0\xff", b"(module", "(module (func $f (call $g)))", "/", "/dev/zero", "/etc/passwd", Path("/dev"),
    )  # fmt: skip
    yield "load(name)", lambda w, v: w.runtime.load(b"\0asm\1\0\0\0", name=v), NO_NAME
    yield "load(imports)", lambda w, v: w.runtime.load(b"\0asm\1\0\0\0", imports=v), (
        5, "env", [], [("env", {})], (), {"env": 5}, {"env": None}, {"env": []}, {"env": {"f": 5}}, {"env": {"f": None}},
        {"env": {"f": print}}, {5: {5: print}}, {"env": {_RaisingIndex(): print}}, {"env": {"shared_heap_free": print}},
        {"\ud800": {"f": print}}, _RaisingIndex(),
    )  # fmt: skip
    yield "on_client", lambda _w, v: on_client(v), (None, 5, "f", _RaisingIndex())
    for start in ("spawn", "pool"):

        def begin(w: World, module: Any, _start: str = start, **options: Any) -> object:
            return getattr(w.runtime, _start)(module, **({"size": 2} if _start == "pool" else {}) | options)

        yield f"{start}(module)", begin, NO_MODULE
        heads = (*NO_HEAP[1:], "w.body")
        yield f"{start}(shared_heap)", lambda w, v, b=begin: b(w, w.module, shared_heap=v), heads
        yield f"{start}(read_only)", lambda w, v, b=begin: b(w, w.module, shared_heap=w.heap, read_only=v), NO_FLAG
        yield f"{start}(quota)", lambda w, v, b=begin: b(w, w.module, quota=v), NO_COUNT
        yield f"{start}(start_timeout)", lambda w, v, b=begin: b(w, w.module, start_timeout=v), NO_TIME
        yield f"{start}(wasi)", lambda w, v, b=begin: b(w, w.wasi_module, wasi=v), NO_WASI
    yield "pool(on_trap)", lambda w, v: w.runtime.pool(w.module, on_trap=v), (None, "x", 5, _RaisingEqual)
    yield "pool(on_trap unhashable)", lambda w, v: w.runtime.pool(w.module, on_trap=v), ([], {})
    yield "pool(size)", lambda w, v: w.runtime.pool(w.module, size=v), (*NO_COUNT[:8], 0, *NO_COUNT[9:])
    yield "malloc(size)", lambda w, v: w.heap.malloc(v), (*NO_COUNT, 0, 1 << 40, 1 << 32, 5 * SLAB_SIZE)
    yield "malloc(alignment)", lambda w, v: w.heap.malloc(64, alignment=v), (*NO_COUNT, 0, 24, 1 << 17, _RaisingEqual)
    yield "malloc_address", lambda w, v: w.heap.malloc_address(v), NO_COUNT
    yield "preallocated malloc", lambda w, v: w.plain.malloc(v), (1, -1, "x", None)
    yield "preallocated free", lambda w, v: w.plain.free(v), ("w.block", 5, "x", None, 1 << 40, "w.plain_start")
    yield "preallocated calloc", lambda w, v: w.plain.calloc(v), (1, -1, "x", None)
    yield "preallocated statistics", lambda w, _v: (w.plain.statistics(), w.plain.verify()), (0,)
    yield "calloc(count)", lambda w, v: w.heap.calloc(v), (*NO_COUNT, 0, 1 << 40)
    yield "calloc(size)", lambda w, v: w.heap.calloc(1, v), (*NO_COUNT, 0, 1 << 62)
    yield "realloc(block)", lambda w, v: w.heap.realloc(v, 10), (None, "x", 5, "w.freed", "w.spare_block", _RaisingIndex())
    yield "realloc(size)", lambda w, v: w.heap.realloc(w.block, v), (*NO_COUNT, 0, 1 << 40)
    yield (
        "free",
        lambda w, v: w.heap.free(v),
        (*NO_ADDRESS, 5, 0, "w.freed", "w.spare_block", "w.block_inside", "w.block_aliased"),
    )
    yield "free_address", lambda w, v: w.heap.free_address(v), (*NO_ADDRESS, 5, 0, "w.block_aliased")
    yield "usable_size", lambda w, v: w.heap.usable_size(v), (*NO_ADDRESS, "w.spare_block")
    yield "block_at(address)", lambda w, v: w.heap.block_at(v), (*NO_ADDRESS, 0, 5, "w.block_inside", "w.block_aliased")
    yield "block_at(size)", lambda w, v: w.heap.block_at(w.block, v), (*(v for v in NO_COUNT if v is not None), 0, 1 << 20)
    yield "preallocated block_at", lambda w, v: w.plain.block_at(w.plain.start, v), (-1, 0, "x", 1 << 40)
    yield "ndarray(dtype)", lambda w, v: w.block.ndarray(v), ("O", "U", "S", "V", [("a", "O")])
    yield "freed block", lambda w, v: v(w.freed), (lambda b: b.view, lambda b: b.ndarray("u1"), pickle.dumps)
    yield "closed heap", lambda w, v: v(w.closed), (
        lambda h: h.view, lambda h: h.malloc(5), lambda h: h.malloc_address(5), lambda h: h.calloc(5), lambda h: h.free(5),
        lambda h: h.usable_size(5), lambda h: h.block_at(5), lambda h: h.statistics(), lambda h: h.verify(), lambda h: h.reset(),
        lambda h: h.free_address(5),
    )  # fmt: skip
    yield "call(export)", lambda w, v: w.instance.call(v), (*NO_TEXT, "", "missing", "\ud800", "nul\0", "n" * 10_000_000)
    yield "submit(export)", lambda w, v: w.instance.submit(v), (*NO_TEXT, "", "missing", "\ud800")
    yield "exports[]", lambda w, v: w.instance.exports[v], (*NO_TEXT, "", "missing", "\ud800", "n" * 10_000_000)
    yield "call(i32)", lambda w, v: w.instance.call("i32", v), NO_ADDRESS
    yield "call(i64)", lambda w, v: w.instance.call("i64", v), (*NO_NUMBER, None, 1 << 64, -(1 << 63) - 1, 10**5000, _HugeIndex())
    for kind in ("f32", "f64"):
        yield f"call({kind})", lambda w, v, k=kind: w.instance.call(k, v), (None, "1", b"1", [], 10**5000, 1j, _RaisingIndex())
    yield "call(block)", lambda w, v: w.instance.call("load", v), ("w.freed", "w.spare_block", "w.foreign_block")
    yield "call(vector)", lambda w, v: w.instance.call(v), ("vector",)
    yield "call(count of arguments)", lambda w, v: w.instance.call("add", *v), ((), (1,), (1, 2, 3), range(1000))
    yield "call(timeout)", lambda w, v: w.instance.call("nothing", timeout=v), NO_TIME
    yield "submit(timeout)", lambda w, v: w.instance.exports.nothing.submit(timeout=v), NO_TIME
    yield "attach", lambda w, v: w.instance.attach_shared_heap(v), (*NO_HEAP, "w.heap", "w.body")
    yield "attach(read_only)", lambda w, v: w.instance.attach_shared_heap(w.heap, read_only=v), NO_FLAG
    yield "killed instance", lambda w, v: v(w.killed), (
        lambda i: i.call("nothing"), lambda i: i.submit("nothing").result(), lambda i: i.memory, lambda i: i.exports.nothing(),
        lambda i: i.detach_shared_heap(),
    )  # fmt: skip
    yield "killed instance(attach)", lambda w, v: w.killed.attach_shared_heap(v), ("w.heap", None)
    yield "pool.submit(export)", lambda w, v: w.pool.submit(v).result(), (*NO_TEXT, "", "missing", "\ud800")
    yield "pool.submit(argument)", lambda w, v: w.pool.submit("i32", v).result(), (*NO_ADDRESS, "w.block")
    yield "pool.submit(timeout)", lambda w, v: w.pool.submit("nothing", timeout=v).result(), NO_TIME
    yield "pool.map(export)", lambda w, v: list(w.pool.map(v, [1, 2])), (*NO_TEXT, "", "missing", "\ud800")
    yield "pool.map(iterables)", lambda w, v: list(w.pool.map("i32", v)), ([1, None], ["x"], [1 << 32, 5])
    yield "pool.map(timeout)", lambda w, v: list(w.pool.map("i32", [1], timeout=v)), ("1", b"", [], math.nan, _RaisingIndex())
    yield "shut pool", lambda w, v: w.shut_pool.submit("nothing", v), (None,)


def _names(value: Any) -> str:
    """Return a part of the value that a message about it has."""
    match value:
        case _RaisingIndex() | _WrongIndex():
            return type(value).__name__
        case str() | os.PathLike():
            return re.match(r"\w*", os.fspath(value)).group()[:20]
        case int() if abs(value) < 1 << 128 and not isinstance(value, bool):
            return str(value)
    return ""


def _parameters() -> Iterator[Any]:
    for name, attack, values in _cases():
        for number, value in enumerate(values):
            yield pytest.param(attack, value, id=f"{name}-{number}")


def _resolve(world: World, value: Any) -> Any:
    if value is _RaisingEqual:
        return value()  # here, as nobody else could compare it
    match value:
        case "w.block_inside":
            return world.block.address + 16
        case "w.plain_start":
            return world.plain.start
        case "w.block_aliased":
            return world.block.address + (1 << 32)
        case "w.foreign_block":
            return Block(world.foreign, 0, 10)
        case str() if value.startswith("w."):
            return getattr(world, value.removeprefix("w."))
    return value


@pytest.mark.parametrize(("attack", "value"), list(_parameters()))
def test_a_bad_argument_is_a_named_error_and_changes_nothing(world: World, attack: Attack, value: Any) -> None:
    given = _resolve(world, value)
    with pytest.raises(errors.ShmwasmError) as caught:
        attack(world, given)
    message = str(caught.value)
    assert len(message) < 3000
    names = "" if callable(given) else _names(given)
    assert names in message or (isinstance(given, int) and hex(given) in message), message
    del caught
    world.check_that_nothing_changed()


def test_names_and_choices_may_be_strings_of_types_of_their_own(runtime: Runtime) -> None:
    class Name(StrEnum):
        HEAP = "one"
        FREE = "free"

    with runtime.create_shared_heap(1, name=Name.HEAP, on_death=Name.FREE) as heap:
        assert heap.name == "one"
        assert runtime.open_shared_heap(Name.HEAP) is heap


def test_a_block_of_a_heap_that_another_runtime_opened_is_refused_as_such(shared_runtime: Runtime, echo_text: str) -> None:
    with Runtime(connect=shared_runtime.address) as other:
        heap = shared_runtime.create_shared_heap(1 << 16, name="twin")
        twin = other.open_shared_heap("twin")
        with heap, heap.malloc(10) as block:
            with pytest.raises(errors.InvalidFreeError, match="'twin', as another runtime opened it"):
                twin.free(block)
            with (
                other.spawn(other.load(echo_text), shared_heap=twin) as instance,
                pytest.raises(errors.ArgumentError, match="its heap was opened by another runtime"),
            ):
                instance.call("add", block, 1)
