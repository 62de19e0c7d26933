"""Every module of the WebAssembly test suite, valid or not, through the decoder and the scan."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import wasmtime
from wast_reader import ModuleText, read_script

from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.wasm.binary import CODE
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.instructions import read_instruction
from shmwasm.wasm.scanning import INSTRUCTIONS, Scan


def test_valid_modules_are_decoded_and_scanned_to_their_last_byte_and_others_at_most_refused(engine, script):
    for line, content in _modules(script.path):
        if not _is_valid(engine, content):
            _decode_or_refuse(content)
            continue
        binary = decode(content)
        assert _gaps(binary) == [], f"line {line}"
        found = [(site.operation.instruction, site.start, site.end) for site in Scan(binary)]
        assert found == list(_sites_one_by_one(binary)), f"line {line}"


def _decode_or_refuse(content):
    with contextlib.suppress(ModuleError, UnsupportedError):
        list(Scan(decode(content)))


def _modules(path):
    for command in read_script(path):
        for module in command.arguments:
            if isinstance(module, ModuleText) and module.format != "instance":
                try:
                    yield command.line, module.binary()
                except wasmtime.WasmtimeError:
                    continue


def _is_valid(engine, content):
    try:
        wasmtime.Module.validate(engine, content)
    except wasmtime.WasmtimeError:
        return False
    return True


def _gaps(binary):
    """Return the ranges of a module's bytes that neither its header, nor a section, nor (in the code section) a body covers."""
    ranges = [(8, 8), *((section.start, section.payload.end) for section in binary.sections)]
    ranges.append((len(binary.content), len(binary.content)))
    gaps = [(end, start) for (_, end), (start, _) in pairwise(ranges) if end != start]
    bodies = [(body.start, body.end) for body in binary.bodies]
    if bodies:
        bodies.append((binary.section(CODE).payload.end,) * 2)
    return gaps + [(end, start) for (_, end), (start, _) in pairwise(bodies) if end != start]


def _sites_one_by_one(binary):
    """Return what the scan must find, from reading each instruction; the last one of a body must end where the body does."""
    for body in binary.bodies:
        position = body.code
        while position < body.end:
            row, end = read_instruction(binary.content, position, body.end)
            if row.name in INSTRUCTIONS:
                yield row.name, position, end
            position = end
        assert (row.name, position) == ("end", body.end)
