"""Guests that have WASI: wasmtime's own, or through the adapters and with a chain of heaps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import traceback
from pathlib import Path

import pytest
import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.cache import Cache
from shmwasm.engine.wasi import WasiLinks, compile_adapters, grant_wasi, load_adapters
from shmwasm.engine.wasi.functions import FUNCTIONS, value_types
from shmwasm.engine.windows import Grant, Window
from shmwasm.posix.segments import Segment
from shmwasm.protocol.messages import WasiOptions
from shmwasm.rewrite import seam
from shmwasm.rewrite.rewriting import WASI_MODULE

PAGES = 4
ALL_RIGHTS = (1 << 30) - 1
PIPE_SIZE = 65536


def grant(name, start, descriptor, *, size=WASM_PAGE, writable=True):
    return Grant(heap=name, start=AppAddress(start), size=size, descriptor=descriptor, writable=writable)


WIDE = f"i64 {WINDOW_END_64 // WASM_PAGE} {WINDOW_END_64 // WASM_PAGE}"


def module_text(memory):
    """A guest that exports each of WASI's functions as it imports it; a 64-bit one is as the rewriter leaves it."""
    parts = [f'(memory (export "memory") {memory})']
    if memory == WIDE:
        parts.append(f'(global (export "{seam.PAGES}") (mut i64) (i64.const {PAGES}))')
    for name, parameters in FUNCTIONS.items():
        result = "" if name == "proc_exit" else "(result i32)"
        kind = f"(param {' '.join(value_types(parameters))}) {result}"
        passed = " ".join(f"(local.get {index})" for index in range(len(value_types(parameters))))
        parts.insert(0, f'(import "{WASI_MODULE}" "{name}" (func ${name} {kind}))')
        parts.append(f'(func (export "{name}") {kind} (call ${name} {passed}))')
    return f"(module $guest {' '.join(parts)})"


class Machine:
    """A guest with WASI: wasmtime's own, or, if there are `adapters`, through them."""

    def __init__(self, engine, module, options, adapters):
        self.store = wasmtime.Store(engine)
        self.store.set_epoch_deadline(1 << 32)
        grant_wasi(self.store, options)
        linker = wasmtime.Linker(engine)
        links = None
        if adapters is None:
            linker.define_wasi()
        else:
            links = WasiLinks(self.store, adapters, linker)
        self.exports = linker.instantiate(self.store, module).exports(self.store)
        self.memory = self.exports["memory"]
        alias = links and links.serve(self.memory, self.exports)
        self.window = Window(self.store, self.memory, alias=alias, pages=self.exports.get(seam.PAGES))

    def fill(self, address, content):
        """Write as much as lies in private memory and in heaps, read-only ones too."""
        here = content[: max(0, self.window.memory_size - address)]
        ctypes.memmove(self.window.base + address, here, len(here))
        for one in self.window.grants:
            low, high = max(address, one.start), min(address + len(content), one.start + one.size)
            if low < high:
                with Path(f"/proc/self/fd/{one.descriptor}").open("r+b", buffering=0) as file:
                    file.seek(low - one.start)
                    file.write(content[low - address : high - address])

    def read(self, address, size):
        return ctypes.string_at(self.window.base + address, size)

    def read_number(self, address):
        return int.from_bytes(self.read(address, 4), "little")

    def call(self, name, *arguments):
        """Return the error number, or what the trap says."""
        signed = [value - (1 << 32) if 1 << 31 <= value < 1 << 32 else value for value in arguments]
        try:
            return self.exports[name](self.store, *signed)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as failure:
            return str(failure)

    def open_file(self):
        """Open the file "file", as descriptor 4."""
        self.fill(0, b"file")
        assert self.call("path_open", 3, 0, 0, 4, 0, ALL_RIGHTS, ALL_RIGHTS, 0, 8) == 0
        assert self.read_number(8) == 4

    def close(self):
        self.window.close()
        self.store.close()


@pytest.fixture(scope="session")
def adapter_code(engine):
    descriptor = compile_adapters(Cache(None))
    code = load_adapters(engine, descriptor)
    os.close(descriptor)
    return code


@pytest.fixture(scope="session")
def guest_modules(engine):
    """Guests by the kind of their memory."""
    kinds = {"usual": f"{PAGES}", "shared": f"{PAGES} 16 shared", "wide": WIDE}
    return {name: wasmtime.Module(engine, module_text(kind)) for name, kind in kinds.items()}


@pytest.fixture
def tree(tmp_path):
    """A directory with something in it; `restore` undoes what a call did to it."""

    class Tree:
        options = WasiOptions(args=["program", "arg"], env={"A": "1", "B": "2"}, preopens={str(tmp_path): "/data"})
        file = tmp_path / "file"

        def restore(self):
            new = tmp_path / "new"
            if new.is_dir() and not new.is_symlink():
                new.rmdir()
            new.unlink(missing_ok=True)
            (tmp_path / "empty").mkdir(exist_ok=True)
            if not (tmp_path / "link").is_symlink():
                (tmp_path / "link").symlink_to("somewhere/else")
            self.file.write_bytes(b"0123456789" * 4)
            os.utime(self.file, (1, 1))

        def listing(self):
            found = {}
            for path in sorted(tmp_path.iterdir()):
                kind = os.lstat(path)
                content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
                found[path.name] = (kind.st_mode, kind.st_nlink, content)
            return found

    return Tree()


@pytest.fixture
def heaps():
    """Three heaps up to the window's end; the lowest is read-only."""
    start = WINDOW_END - 3 * WASM_PAGE
    with (
        Segment.create(WASM_PAGE, name_for_errors="read-only") as low,
        Segment.create(WASM_PAGE, name_for_errors="lower") as middle,
        Segment.create(WASM_PAGE, name_for_errors="upper") as high,
    ):
        read_only = low.read_only_descriptor()
        yield [
            grant("read-only", start, read_only, writable=False),
            grant("lower", start + WASM_PAGE, middle.descriptor),
            grant("upper", start + 2 * WASM_PAGE, high.descriptor),
        ]
        os.close(read_only)


@pytest.fixture
def large_heap():
    """A writable heap that leaves 16 MiB of address space, and takes memory only where it is written to."""
    with sparse_heap(WINDOW_END - (16 << 20)) as heap:
        yield [heap]


@pytest.fixture
def oversized_heap():
    """One that leaves too little for a second mapping, with what comes before it."""
    with sparse_heap(WINDOW_END - (8 << 20)) as heap:
        yield [heap]


@contextlib.contextmanager
def sparse_heap(size):
    with Segment.create(size, name_for_errors="large", reserve=False) as segment:
        yield grant("large", WINDOW_END - size, segment.descriptor, size=size)


@pytest.fixture
def apart():
    """Runs a function in a forked child: what wasmtime opens at the first use of a file, it keeps open for good."""

    def run(check):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            report = b""
            try:
                check()
            except BaseException:  # noqa: BLE001  reported by the parent
                report = traceback.format_exc().encode()[-PIPE_SIZE:]
            finally:
                os.write(writing, report)
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            report = pipe.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert not report, report
        assert status == 0

    return run


@pytest.fixture
def start(engine, guest_modules, adapter_code, tree):
    """Starts guests in the restored tree: plain ones, or through the adapters and attached to the given heaps."""
    started = []

    def start_one(heaps=None, *, memory="usual"):
        tree.restore()
        started.append(Machine(engine, guest_modules[memory], tree.options, None if heaps is None else adapter_code))
        if heaps:
            started[-1].window.attach(heaps)
        started[-1].open_file()
        return started[-1]

    yield start_one
    for machine in started:
        machine.close()
