"""Each of WASI's functions, with each of its pointers in every kind of place, against wasmtime's own WASI in private memory."""

from __future__ import annotations

import ctypes
import os
import struct
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END, AppAddress
from shmwasm.engine.cache import Cache
from shmwasm.engine.wasi import WasiLinks, functions, grant_wasi, load_adapters
from shmwasm.engine.wasi.code import ADAPTERS, compile_adapters
from shmwasm.engine.wasi.functions import FUNCTIONS, WASI_MODULE, Number, value_types
from shmwasm.engine.wasi.text import adapters
from shmwasm.engine.windows import Grant, Window
from shmwasm.posix.segments import Segment
from shmwasm.protocol.messages import WasiOptions

READ_ONLY = WINDOW_END - 3 * WASM_PAGE
LOWER = READ_ONLY + WASM_PAGE
UPPER = LOWER + WASM_PAGE
PAGES = 4
"""The guest's private memory."""

SUCCESS = 0
PIPE_SIZE = 65536
FILE = 4
"""The descriptor of an open file; 3 is the directory's."""


@dataclass(frozen=True)
class Bytes:
    """An argument that points to bytes, which are these at first."""

    content: bytes


@dataclass(frozen=True)
class Vectors:
    """Two arguments: an array of buffers with these contents, and their count."""

    contents: tuple[bytes, ...]


RESULT = Bytes(b"\xaa" * 8)
STATUS = Bytes(b"\xaa" * 64)
ROOM = Bytes(b"\xaa" * 80)
CLOCK = Bytes(struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", 77, 0, 1, 0, 0, 0))
NAME = Bytes(b"file")
NEW_NAME = Bytes(b"new")
OUT = Vectors((b"", b"abc", b"defgh"))
IN = Vectors((b"", b"\xaa" * 30, b"\xaa" * 10))
ALL_RIGHTS = (1 << 30) - 1

ARGUMENTS: dict[str, list[int | Bytes | Vectors]] = {
    "args_get": [RESULT, Bytes(b"\xaa" * 12)],
    "args_sizes_get": [RESULT, RESULT],
    "environ_get": [RESULT, RESULT],
    "environ_sizes_get": [RESULT, RESULT],
    "clock_res_get": [1, RESULT],
    "clock_time_get": [1, 0, RESULT],
    "fd_fdstat_get": [FILE, STATUS],
    "fd_filestat_get": [FILE, STATUS],
    "fd_pread": [FILE, IN, 3, RESULT],
    "fd_prestat_get": [3, RESULT],
    "fd_prestat_dir_name": [3, Bytes(b"\xaa" * 5), 5],
    "fd_pwrite": [FILE, OUT, 3, RESULT],
    "fd_read": [FILE, IN, RESULT],
    "fd_readdir": [3, ROOM, 80, 0, RESULT],
    "fd_seek": [FILE, 7, 0, RESULT],
    "fd_tell": [FILE, RESULT],
    "fd_write": [FILE, OUT, RESULT],
    "path_create_directory": [3, NEW_NAME, 3],
    "path_filestat_get": [3, 0, NAME, 4, STATUS],
    "path_filestat_set_times": [3, 0, NAME, 4, 1000, 2000, 5],
    "path_link": [3, 0, NAME, 4, 3, NEW_NAME, 3],
    "path_open": [3, 0, NAME, 4, 0, ALL_RIGHTS, 0, 0, RESULT],
    "path_readlink": [3, Bytes(b"link"), 4, ROOM, 80, RESULT],
    "path_remove_directory": [3, Bytes(b"empty"), 5],
    "path_rename": [3, NAME, 4, 3, NEW_NAME, 3],
    "path_symlink": [NAME, 4, 3, NEW_NAME, 3],
    "path_unlink_file": [3, NAME, 4],
    "poll_oneoff": [CLOCK, Bytes(b"\xaa" * 32), 1, RESULT],
    "random_get": [ROOM, 80],
    "sock_accept": [FILE, 0, RESULT],
    "sock_recv": [FILE, IN, 0, RESULT, RESULT],
    "sock_send": [FILE, OUT, 0, RESULT],
}
"""A call of each function that takes a pointer: numbers as they are, and what pointers point to."""

POINTING = [name for name, kinds in FUNCTIONS.items() if not all(isinstance(kind, Number) for kind in kinds)]
UNPREDICTABLE = {"random_get", "clock_time_get"}
CHANGE_TIME = slice(56, 64)


@dataclass(frozen=True)
class Slot:
    """Bytes that a call points to."""

    content: bytes
    alignment: int
    written: bool

    @property
    def size(self) -> int:
        return len(self.content)


def slots_of(name):
    """Return the slots of a call in `ARGUMENTS`, by their place among the arguments; buffers have a number besides."""
    slots = {}
    given = enumerate(ARGUMENTS[name])
    for kind in FUNCTIONS[name]:
        index, argument = next(given)
        match kind:
            case functions.Result(size, alignment):
                slots[index] = Slot(argument.content[:size], alignment, written=True)
            case functions.Items(_, _, written):
                slots[index] = Slot(argument.content, 8, written=written)
            case functions.Text() | functions.Room():
                slots[index] = Slot(argument.content, 1, written=isinstance(kind, functions.Room))
                next(given)
            case functions.Vectors(written):
                slots[index] = Slot(bytes(8 * len(argument.contents)), 4, written=False)
                for number, content in enumerate(argument.contents):
                    slots[index, number] = Slot(content, 1, written=written)
            case functions.Strings():
                slots[index] = Slot(argument.content, 4, written=True)
                index, argument = next(given)
                slots[index] = Slot(argument.content, 1, written=True)
    return slots


def private_places(slots):
    return {slot: 0x1000 * (number + 1) for number, slot in enumerate(slots)}


def good_places(slot):
    """Where a slot may lie in the chain."""
    yield from (LOWER, WINDOW_END - max(slot.size, 1))
    if slot.size > slot.alignment:
        yield UPPER - slot.alignment
    if not slot.written:
        yield from (READ_ONLY, LOWER - slot.alignment)


def bad_places(slot):
    """Where a slot may not lie."""
    yield READ_ONLY - WASM_PAGE
    if slot.size:
        yield PAGES * WASM_PAGE - slot.size + slot.alignment
        yield WINDOW_END - slot.size + slot.alignment
    if slot.size > slot.alignment:
        yield READ_ONLY - slot.alignment
    if slot.alignment > 1:
        yield from (LOWER + 1, LOWER + slot.alignment // 2)
    if slot.written and slot.size:
        yield from (READ_ONLY, LOWER - slot.size)
    if slot.written and slot.size > slot.alignment:
        yield LOWER - slot.alignment


def module_text(memory: str = f"{PAGES}") -> str:
    """A guest that exports each of WASI's functions as it imports it."""
    parts = [f'(memory (export "memory") {memory})']
    for name, parameters in FUNCTIONS.items():
        result = "" if name == "proc_exit" else "(result i32)"
        kind = f"(param {' '.join(value_types(parameters))}) {result}"
        passed = " ".join(f"(local.get {index})" for index in range(len(value_types(parameters))))
        parts.insert(0, f'(import "{WASI_MODULE}" "{name}" (func ${name} {kind}))')
        parts.append(f'(func (export "{name}") {kind} (call ${name} {passed}))')
    return f"(module $guest {' '.join(parts)})"


class Machine:
    """A guest with WASI: wasmtime's own, or, if there are `adapters`, through them and with a chain attached."""

    def __init__(self, engine, module, options, *, adapters=None, grants=(), pages=PAGES):
        self.store = wasmtime.Store(engine)
        self.store.set_epoch_deadline(1 << 32)
        grant_wasi(self.store, options)
        linker = wasmtime.Linker(engine)
        self.window = None
        if adapters is None:
            linker.define_wasi()
        else:
            links = WasiLinks(self.store, adapters, linker)
        self.exports = linker.instantiate(self.store, module).exports(self.store)
        memory = self.exports["memory"]
        if adapters is None:
            self.base = ctypes.cast(memory.data_ptr(self.store), ctypes.c_void_p).value
        else:
            self.window = Window(self.store, memory, alias=links.serve(memory, self.exports))
            self.base = self.window.base
            if grants:
                self.window.attach(grants)
        if pages > PAGES:
            memory.grow(self.store, pages - PAGES)

    def write(self, address, content):
        ctypes.memmove(self.base + address, content, len(content))

    def fill(self, address, content):
        """Write what lies in private memory."""
        self.write(address, content[: max(0, PAGES * WASM_PAGE - address)])

    def read(self, address, size):
        return ctypes.string_at(self.base + address, size)

    def call(self, name, *arguments):
        """Return the error number, or what the trap says."""
        signed = [value - (1 << 32) if 1 << 31 <= value < 1 << 32 else value for value in arguments]
        try:
            return self.exports[name](self.store, *signed)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as failure:
            return str(failure)

    def open_file(self):
        self.write(0, b"file")
        assert self.call("path_open", 3, 0, 0, 4, 0, ALL_RIGHTS, ALL_RIGHTS, 0, 8) == SUCCESS
        assert self.read(8, 4) == FILE.to_bytes(4, "little")

    def close(self):
        if self.window is not None:
            self.window.close()
        self.store.close()


@pytest.fixture(scope="session")
def adapter_code(engine, tmp_path_factory):
    descriptor = compile_adapters(Cache(tmp_path_factory.mktemp("cache")))
    code = load_adapters(engine, descriptor)
    os.close(descriptor)
    return code


@pytest.fixture(scope="session")
def guest_module(engine):
    return wasmtime.Module(engine, module_text())


@pytest.fixture
def tree(tmp_path):
    """A directory with something in it; `restore` undoes what a call did to it."""

    class Tree:
        options = WasiOptions(args=["program", "arg"], env={"A": "1", "B": "2"}, preopens={str(tmp_path): "/data"})

        def restore(self):
            new = tmp_path / "new"
            if new.is_dir() and not new.is_symlink():
                new.rmdir()
            new.unlink(missing_ok=True)
            (tmp_path / "empty").mkdir(exist_ok=True)
            if not (tmp_path / "link").is_symlink():
                (tmp_path / "link").symlink_to("somewhere/else")
            (tmp_path / "file").write_bytes(b"0123456789" * 4)
            os.utime(tmp_path / "file", (1, 1))

        def listing(self):
            found = {}
            for path in sorted(tmp_path.iterdir()):
                kind = os.lstat(path)
                content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
                found[path.name] = (kind.st_mode, kind.st_nlink, content)
            return found

    return Tree()


@pytest.fixture
def grants():
    """Three heaps up to the window's end; the lowest is read-only."""
    with (
        Segment.create(WASM_PAGE, name_for_errors="read-only") as low,
        Segment.create(WASM_PAGE, name_for_errors="lower") as middle,
        Segment.create(WASM_PAGE, name_for_errors="upper") as high,
    ):
        read_only = low.read_only_descriptor()
        yield [
            grant("read-only", READ_ONLY, read_only, writable=False),
            grant("lower", LOWER, middle.descriptor),
            grant("upper", UPPER, high.descriptor),
        ]
        os.close(read_only)


@pytest.fixture
def chain(grants):
    """The same heaps as one view that can be written to, and as grants."""

    class Chain:
        heaps = grants

        def fill(self, address, content):
            for grant in grants:
                low, high = max(address, grant.start), min(address + len(content), grant.start + grant.size)
                if low < high:
                    with Path(f"/proc/self/fd/{grant.descriptor}").open("r+b", buffering=0) as file:
                        file.seek(low - grant.start)
                        file.write(content[low - address : high - address])

    return Chain()


def grant(name, start, descriptor, *, size=WASM_PAGE, writable=True):
    return Grant(heap=name, start=AppAddress(start), size=size, descriptor=descriptor, writable=writable)


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
def start(engine, guest_module, adapter_code, tree):
    """Starts machines, and ends them with the test."""
    started = []

    def start_one(*, grants=None, module=guest_module, **options):
        code = None if grants is None else adapter_code
        tree.restore()
        started.append(Machine(engine, module, tree.options, adapters=code, grants=grants or (), **options))
        started[-1].open_file()
        return started[-1]

    yield start_one
    for machine in started:
        machine.close()


def perform(machine, name, slots, places, fill):
    """Put the slots in their places, as far as there is something, and call; return the answer."""
    arguments = []
    for index, argument in enumerate(ARGUMENTS[name]):
        if isinstance(argument, Vectors):
            buffers = [(places[index, number], len(content)) for number, content in enumerate(argument.contents)]
            fill(places[index], b"".join(struct.pack("<II", *buffer) for buffer in buffers))
            arguments += [places[index], len(buffers)]
        elif isinstance(argument, Bytes):
            arguments.append(places[index])
        else:
            arguments.append(argument)
    for key, slot in slots.items():
        if isinstance(key, tuple) or not isinstance(ARGUMENTS[name][key], Vectors):
            fill(places[key], slot.content)
    return machine.call(name, *arguments)


def contents_of(machine, slots, places):
    return {key: machine.read(places[key], slot.size) for key, slot in slots.items() if slot.written}


def comparable(name, places, contents):
    """Return the contents without what may differ between two calls."""
    found = dict(contents)
    if name in UNPREDICTABLE:
        return {key: content == b"\xaa" * len(content) for key, content in found.items()}
    if name in {"args_get", "environ_get"}:
        found[0] = [pointer - places[1] for pointer in struct.unpack("<2I", found[0])]
    if name.endswith("filestat_get"):
        key = next(iter(found))
        content = bytearray(found[key])
        del content[CHANGE_TIME]
        found[key] = bytes(content)
    return found


def test_the_committed_adapters_are_those_that_the_table_makes():
    for name, text in adapters().items():
        assert ADAPTERS[name].read_bytes() == bytes(wasmtime.wat2wasm(text)), name


@pytest.fixture
def play(start, chain):
    """Makes a call in a fresh guest that is attached to the chain; returns the guest and the answer."""

    def perform_attached(name, slots, places):
        machine = start(grants=chain.heaps)

        def fill(address, content):
            chain.fill(address, content)
            machine.fill(address, content)

        return machine, perform(machine, name, slots, places, fill)

    return perform_attached


def hexadecimal(places):
    return {slot: hex(place) for slot, place in places.items()}


@pytest.mark.parametrize("name", POINTING)
def test_a_pointer_into_the_chain_does_what_one_into_private_memory_does(name, apart, start, play, tree):
    slots = slots_of(name)
    usual = private_places(slots)
    everything = {slot: LOWER + 0x100 * (number + 1) for number, slot in enumerate(slots)}

    @apart
    def check():
        plain = start()
        expected = perform(plain, name, slots, usual, plain.fill)
        assert not isinstance(expected, str)
        contents = comparable(name, usual, contents_of(plain, slots, usual))
        left = tree.listing()
        moved = ({**usual, slot: place} for slot, kind in slots.items() for place in good_places(kind))
        for places in (usual, everything, *moved):
            machine, answer = play(name, slots, places)
            assert answer == expected, hexadecimal(places)
            assert comparable(name, places, contents_of(machine, slots, places)) == contents, hexadecimal(places)
            assert tree.listing() == left, hexadecimal(places)


@pytest.mark.parametrize("name", POINTING)
def test_a_bad_pointer_is_refused_as_it_is_without_a_chain(name, apart, start, play, tree):
    slots = slots_of(name)
    usual = private_places(slots)

    @apart
    def check():
        for places in [{**usual, slot: place} for slot, kind in slots.items() for place in bad_places(kind)]:
            plain = start()
            expected = perform(plain, name, slots, places, plain.fill)
            left = tree.listing()
            assert play(name, slots, places)[1] == expected, hexadecimal(places)
            assert tree.listing() == left, hexadecimal(places)
