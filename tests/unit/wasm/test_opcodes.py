"""The opcode table against the engine: every row, and nothing but the rows."""

from __future__ import annotations

import re

import pytest

from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.instructions import read_instruction
from shmwasm.wasm.leb128 import encode_unsigned
from shmwasm.wasm.opcodes import OPCODES, PREFIXES, Opcode
from shmwasm.wasm.scanning import INSTRUCTIONS, Scan

# All immediates are bytes that are no opcodes (0x16, 0x17, 0x1d, 0x1e, 0x27), so that one which the engine takes for an
# immediate and the table does not, or the other way round, makes the engine's reading and the table's differ.
STRUCT, ARRAY, PACKED_ARRAY, FUNCTION_ARRAY, MANY = 0x16, 0x17, 0x1D, 0x1E, 0x27
PLAIN_FIELD, PACKED_FIELD, LABEL_OF_REFERENCE = 0x1E, 0x27, 0x1E
BLOCKS = 0x29

OF_NEITHER_KIND = r"illegal opcode|unknown 0x[0-9a-f]{2} subopcode"
SWITCHED_OFF = r"(stack switching|shared-everything-threads|custom descriptors|custom-descriptors|memory control) .*not enabled"
OPENING = {"block", "loop", "if", "try_table"}
OF_ARRAYS = {
    "array.get_s": PACKED_ARRAY,
    "array.get_u": PACKED_ARRAY,
    "array.new_elem": FUNCTION_ARRAY,
    "array.init_elem": FUNCTION_ARRAY,
}


def width_of_access(name: str) -> int:
    """Return the alignment's exponent that an atomic access must have."""
    narrow = re.search(r"(?:load|store|rmw)(8|16|32)", name)
    if narrow:
        return {"8": 0, "16": 1, "32": 2}[narrow[1]]
    return 3 if name.startswith("i64") or name.endswith("64") else 2


def immediate(row: Opcode, word: str, position: int) -> bytes:
    match word:
        case "index" if row.name.startswith("struct."):
            return bytes([STRUCT if position == 0 else PACKED_FIELD if row.name[-2:] in {"_s", "_u"} else PLAIN_FIELD])
        case "index" if row.name.startswith("array.") and (position == 0 or row.name == "array.copy"):
            return bytes([OF_ARRAYS.get(row.name, ARRAY)])
        case "index" if row.name in {"br_on_cast", "br_on_cast_fail", "br_on_non_null"}:
            return bytes([LABEL_OF_REFERENCE])
        case "memarg":
            exponent = width_of_access(row.name) if row.feature == "threads" else 0
            return bytes([0x40 | exponent, MANY, MANY])
        case "index" | "block" | "i32" | "i64":
            return bytes([MANY])
        case "heap type":
            return bytes([STRUCT])
        case "f32" | "f64" | "v128":
            return bytes([ARRAY]) * {"f32": 4, "f64": 8, "v128": 16}[word]
        case "lane" | "byte":
            return b"\0"
        case "types":
            return bytes([1, 0x63, STRUCT])
        case "labels":
            return bytes([2, MANY, MANY, MANY])
        case _:
            return bytes([2, 0, MANY, MANY, 2, MANY])


def opcode(row: Opcode, *, padding: int = 0) -> bytes:
    if row.prefix is None:
        return bytes([row.number])
    number = encode_unsigned(row.number)
    if padding:
        number = number[:-1] + bytes([number[-1] | 0x80]) + b"\x80" * (padding - 1) + b"\0"
    return bytes([row.prefix]) + number


def instruction(row: Opcode, *, padding: int = 0) -> bytes:
    return opcode(row, padding=padding) + b"".join(immediate(row, word, at) for at, word in enumerate(row.immediates))


@pytest.fixture(scope="module")
def module_of(section, body):
    """A module in which one instruction stands in unreachable code, where all that it may name exists."""
    field, empty = b"\x7f\x01", b"\x60\0\0"
    fields = [b"\x78\x01" if number == PACKED_FIELD else field for number in range(MANY + 1)]
    types = [empty] * (MANY + 1)
    types[STRUCT] = b"\x5f" + encode_unsigned(len(fields)) + b"".join(fields)
    types[ARRAY], types[PACKED_ARRAY], types[FUNCTION_ARRAY] = b"\x5e" + field, b"\x5e\x78\x01", b"\x5e\x70\x01"
    many = MANY + 1
    start = (
        b"\0asm\x01\0\0\0"
        + section(1, *types)
        + section(3, *[bytes([MANY])] * many)
        + section(4, *[b"\x70\0\0"] * many)
        + section(5, *[b"\0\0"] * many)
        + section(13, *[b"\0" + bytes([MANY])] * many)
        + section(6, *[b"\x7f\x01\x41\0\x0b"] * many)
        + section(9, *[b"\x01\0\x01" + bytes([MANY])] * many)
        + b"\x0c\x01"
        + bytes([many])
    )
    data = section(11, *[b"\x01\0"] * many)
    blocks = [b"\x02\x40"] * BLOCKS
    blocks[BLOCKS - 1 - LABEL_OF_REFERENCE] = b"\x02\x6e"  # its label takes a reference

    def make(row: Opcode, encoded: bytes) -> bytes:
        ends = BLOCKS - LABEL_OF_REFERENCE
        before = b"\x04\x40" if row.name == "else" else b""
        after = b"\0\x0b" if row.name in OPENING or row.name == "else" else b""
        # After the block that gives a reference, the reference is dropped.
        inner, outer = LABEL_OF_REFERENCE + 1, ends - 1
        closing = (b"\0\x0b" * (inner - (row.name == "end"))) + b"\x1a" + b"\x0b" * outer + b"\x0b"
        code = b"".join(blocks) + b"\0" + before + encoded + after + closing
        used = body(code, b"\x01" + bytes([many]) + b"\x7f")
        return start + section(10, used, *[body(b"\x0b")] * (many - 1)) + data

    return make


def rows(*, legacy: bool) -> list[Opcode]:
    return [row for row in OPCODES.values() if (row.feature == "legacy-exceptions") is legacy]


def test_the_engine_reads_as_many_immediates_as_the_table_says(module_of, refusal):
    for row in rows(legacy=False):
        module = module_of(row, instruction(row))
        assert refusal(module) is None, row
        encoded = instruction(row)
        assert read_instruction(encoded, 0, len(encoded)) == (row, len(encoded))


def test_the_engine_takes_a_lane_or_a_byte_where_the_table_says(module_of, refusal):
    for row in rows(legacy=False):
        if {"lane", "byte"} & set(row.immediates) and row.name not in {"br_on_cast", "br_on_cast_fail"}:
            wrong = instruction(row)[:-1] + bytes([MANY])
            reason = refusal(module_of(row, wrong))
            assert reason is not None
            assert "illegal opcode" not in reason, (row, reason)


def test_the_engine_knows_the_legacy_exceptions_but_refuses_them(module_of, refusal):
    for row in rows(legacy=True):
        reason = refusal(module_of(row, instruction(row)))
        assert reason is not None
        assert "legacy" in reason.lower(), (row, reason)


def test_the_engine_knows_no_opcode_that_the_table_does_not_have(functions, refusal):
    unknown = [bytes([one]) for one in range(256) if (None, one) not in OPCODES and one not in PREFIXES]
    unknown += [
        bytes([prefix]) + encode_unsigned(number)
        for prefix in PREFIXES
        for number in [*range(0x180), *range(0x3F00, 0x4010), 0xFFFF, 0xFFFF_FFFF]
        if (prefix, number) not in OPCODES
    ]
    for code in unknown:
        module = functions(b"\0" + code + b"\0" * 20 + b"\x0b")
        reason = refusal(module)
        assert reason is not None
        assert re.search(f"{OF_NEITHER_KIND}|{SWITCHED_OFF}", reason), (code.hex(" "), reason)
        at = module.index(b"\0" + code + b"\0" * 20) + 1
        with pytest.raises(UnsupportedError, match=rf"the opcode {code[0]:#04x}.* at offset {at:#x} "):
            list(Scan(decode(module)))


def test_the_scan_passes_every_instruction_and_notes_its_proposal(module_of):
    for row in rows(legacy=False):
        scan = Scan(decode(module_of(row, instruction(row))))
        sites = list(scan)
        assert [site.operation.instruction for site in sites] == ([row.name] if row.name in INSTRUCTIONS else [])
        assert row.feature == "mvp" or row.feature in scan.features
        assert row.feature in scan.features or "mvp" not in scan.features


@pytest.mark.parametrize("padding", [1, 3])
def test_an_opcode_may_be_written_longer_than_necessary(module_of, refusal, padding):
    for row in rows(legacy=False):
        if row.prefix is None or (row.number > 0x7F and padding > 3):
            continue
        module = module_of(row, instruction(row, padding=padding))
        assert refusal(module) is None, row
        scan = Scan(decode(module))
        assert [site.operation.instruction for site in scan] == ([row.name] if row.name in INSTRUCTIONS else [])
        assert row.feature in scan.features


def test_an_instruction_that_is_cut_off_is_malformed():
    for row in OPCODES.values():
        encoded = instruction(row)
        for end in range(1, len(encoded)):
            with pytest.raises(ModuleError):
                read_instruction(encoded, 0, end)


def test_no_two_rows_have_one_name():
    names = [row.name for row in OPCODES.values()]
    assert len(set(names)) == len(names)
