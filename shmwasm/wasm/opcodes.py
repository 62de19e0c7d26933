"""Every opcode of WebAssembly 3.0, as one table.

Layout
------
An instruction is its opcode and then its immediates. An opcode is one byte, or a prefix byte and a number in LEB128, which need
not be written in its shortest form. Immediates are named by the words of `IMMEDIATES`, which gives for each the regular
expression of its bytes; the three that hold a vector have none, and are skipped by code (see `scanning`).

All of the scan's expressions, the features of a module, and the names that are shown come from this table. Tests hold it against
the engine: every row, and that there is no opcode beyond them.

Source: WebAssembly core specification 3.0, chapter "Binary Format: Instructions", and the proposals "threads", "relaxed SIMD",
"wide arithmetic" and "legacy exception handling".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

GC_PREFIX: Final = 0xFB
MISC_PREFIX: Final = 0xFC
VECTOR_PREFIX: Final = 0xFD
ATOMIC_PREFIX: Final = 0xFE

PREFIXES: Final = (GC_PREFIX, MISC_PREFIX, VECTOR_PREFIX, ATOMIC_PREFIX)
"""The bytes that open an opcode of two parts."""

NUMBER: Final = rb"[\x80-\xff]*+(?s:.)"
"""A number in LEB128: what follows all bytes with the high bit is one without. (Its length is left to the engine's validator.)"""

VALUE_TYPE: Final = rb"(?:[\x65-\x7f]|[\x63\x64]" + NUMBER + rb")"
"""A value type: one byte, or a reference to a heap type."""

IMMEDIATES: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        "block": rb"(?:[\x00-\x62\x65-\x7f]|[\x63\x64]" + NUMBER + rb"|[\x80-\xff]++[\x00-\x7f])",
        "index": NUMBER,
        "i32": NUMBER,
        "i64": NUMBER,
        "f32": rb".{4}",
        "f64": rb".{8}",
        "v128": rb".{16}",
        "lane": rb".",
        "byte": rb".",
        "heap type": NUMBER,
        # Bit 6 of the alignment says that the number of a memory stands between it and the offset.
        "memarg": rb"(?:[\x00-\x3f]|[\x80-\xbf]"
        + NUMBER
        + rb"|(?:[\x40-\x7f]|[\xc0-\xff]"
        + NUMBER
        + rb")"
        + NUMBER
        + rb")"
        + NUMBER,
    }
)
"""The words for immediates, and what each looks like. Beside them: "labels", "catches" and "types" are vectors."""


class Opcode(NamedTuple):
    """A row of the table.

    Attributes:
        prefix: The byte before the number; None if the number is the only byte.
        number: The opcode, or its part after the prefix.
        name: As in the text format.
        immediates: Words of `IMMEDIATES`, in order.
        feature: The proposal that brought it; "mvp" for WebAssembly 1.0.
    """

    prefix: int | None
    number: int
    name: str
    immediates: tuple[str, ...]
    feature: str


def _rows(feature: str, immediates: tuple[str, ...], first: int, names: str, *, prefix: int | None = None) -> Iterable[Opcode]:
    """Return a row for each of the names, numbered from `first`; "-" stands for a number that is not taken."""
    for number, name in enumerate(names.split(), first):
        if name != "-":
            yield Opcode(prefix, number, name, immediates, feature)


def _prefixed(prefix: int, feature: str, *groups: tuple[int, str, tuple[str, ...]]) -> Iterable[Opcode]:
    for first, names, immediates in groups:
        yield from _rows(feature, immediates, first, names, prefix=prefix)


def _core() -> Iterable[Opcode]:
    yield from _rows("mvp", (), 0x00, "unreachable nop")
    yield from _rows("mvp", ("block",), 0x02, "block loop if")
    yield from _rows("mvp", (), 0x05, "else")
    yield from _rows("legacy-exceptions", ("block",), 0x06, "try")
    yield from _rows("legacy-exceptions", ("index",), 0x07, "catch")
    yield from _rows("exceptions", ("index",), 0x08, "throw")
    yield from _rows("legacy-exceptions", ("index",), 0x09, "rethrow")
    yield from _rows("exceptions", (), 0x0A, "throw_ref")
    yield from _rows("mvp", (), 0x0B, "end")
    yield from _rows("mvp", ("index",), 0x0C, "br br_if")
    yield from _rows("mvp", ("labels",), 0x0E, "br_table")
    yield from _rows("mvp", (), 0x0F, "return")
    yield from _rows("mvp", ("index",), 0x10, "call")
    yield from _rows("mvp", ("index", "index"), 0x11, "call_indirect")
    yield from _rows("tail-call", ("index",), 0x12, "return_call")
    yield from _rows("tail-call", ("index", "index"), 0x13, "return_call_indirect")
    yield from _rows("function-references", ("index",), 0x14, "call_ref return_call_ref")
    yield from _rows("legacy-exceptions", ("index",), 0x18, "delegate")
    yield from _rows("legacy-exceptions", (), 0x19, "catch_all")
    yield from _rows("mvp", (), 0x1A, "drop select")
    yield from _rows("reference-types", ("types",), 0x1C, "select_typed")
    yield from _rows("exceptions", ("block", "catches"), 0x1F, "try_table")
    yield from _rows("mvp", ("index",), 0x20, "local.get local.set local.tee global.get global.set")
    yield from _rows("reference-types", ("index",), 0x25, "table.get table.set")
    yield from _rows(
        "mvp",
        ("memarg",),
        0x28,
        "i32.load i64.load f32.load f64.load i32.load8_s i32.load8_u i32.load16_s i32.load16_u "
        "i64.load8_s i64.load8_u i64.load16_s i64.load16_u i64.load32_s i64.load32_u "
        "i32.store i64.store f32.store f64.store i32.store8 i32.store16 i64.store8 i64.store16 i64.store32",
    )
    yield from _rows("mvp", ("index",), 0x3F, "memory.size memory.grow")
    yield from _rows("mvp", ("i32",), 0x41, "i32.const")
    yield from _rows("mvp", ("i64",), 0x42, "i64.const")
    yield from _rows("mvp", ("f32",), 0x43, "f32.const")
    yield from _rows("mvp", ("f64",), 0x44, "f64.const")
    yield from _rows(
        "mvp",
        (),
        0x45,
        "i32.eqz i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u "
        "i64.eqz i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u "
        "f32.eq f32.ne f32.lt f32.gt f32.le f32.ge f64.eq f64.ne f64.lt f64.gt f64.le f64.ge "
        "i32.clz i32.ctz i32.popcnt i32.add i32.sub i32.mul i32.div_s i32.div_u i32.rem_s i32.rem_u "
        "i32.and i32.or i32.xor i32.shl i32.shr_s i32.shr_u i32.rotl i32.rotr "
        "i64.clz i64.ctz i64.popcnt i64.add i64.sub i64.mul i64.div_s i64.div_u i64.rem_s i64.rem_u "
        "i64.and i64.or i64.xor i64.shl i64.shr_s i64.shr_u i64.rotl i64.rotr "
        "f32.abs f32.neg f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt "
        "f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign "
        "f64.abs f64.neg f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt "
        "f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign "
        "i32.wrap_i64 i32.trunc_f32_s i32.trunc_f32_u i32.trunc_f64_s i32.trunc_f64_u i64.extend_i32_s i64.extend_i32_u "
        "i64.trunc_f32_s i64.trunc_f32_u i64.trunc_f64_s i64.trunc_f64_u "
        "f32.convert_i32_s f32.convert_i32_u f32.convert_i64_s f32.convert_i64_u f32.demote_f64 "
        "f64.convert_i32_s f64.convert_i32_u f64.convert_i64_s f64.convert_i64_u f64.promote_f32 "
        "i32.reinterpret_f32 i64.reinterpret_f64 f32.reinterpret_i32 f64.reinterpret_i64",
    )
    yield from _rows("sign-extension", (), 0xC0, "i32.extend8_s i32.extend16_s i64.extend8_s i64.extend16_s i64.extend32_s")
    yield from _rows("reference-types", ("heap type",), 0xD0, "ref.null")
    yield from _rows("reference-types", (), 0xD1, "ref.is_null")
    yield from _rows("reference-types", ("index",), 0xD2, "ref.func")
    yield from _rows("gc", (), 0xD3, "ref.eq")
    yield from _rows("function-references", (), 0xD4, "ref.as_non_null")
    yield from _rows("function-references", ("index",), 0xD5, "br_on_null br_on_non_null")


def _gc() -> Iterable[Opcode]:
    index, two = ("index",), ("index", "index")
    return _prefixed(
        GC_PREFIX,
        "gc",
        (0x00, "struct.new struct.new_default", index),
        (0x02, "struct.get struct.get_s struct.get_u struct.set", two),
        (0x06, "array.new array.new_default", index),
        (0x08, "array.new_fixed array.new_data array.new_elem", two),
        (0x0B, "array.get array.get_s array.get_u array.set", index),
        (0x0F, "array.len", ()),
        (0x10, "array.fill", index),
        (0x11, "array.copy array.init_data array.init_elem", two),
        (0x14, "ref.test ref.test_null ref.cast ref.cast_null", ("heap type",)),
        (0x18, "br_on_cast br_on_cast_fail", ("byte", "index", "heap type", "heap type")),
        (0x1A, "any.convert_extern extern.convert_any ref.i31 i31.get_s i31.get_u", ()),
    )


def _misc() -> Iterable[Opcode]:
    index, two = ("index",), ("index", "index")
    yield from _prefixed(
        MISC_PREFIX,
        "saturating-float-to-int",
        (
            0x00,
            (
                "i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.trunc_sat_f64_s i32.trunc_sat_f64_u "
                "i64.trunc_sat_f32_s i64.trunc_sat_f32_u i64.trunc_sat_f64_s i64.trunc_sat_f64_u"
            ),
            (),
        ),
    )
    yield from _prefixed(
        MISC_PREFIX,
        "bulk-memory",
        (0x08, "memory.init", two),
        (0x09, "data.drop", index),
        (0x0A, "memory.copy", two),
        (0x0B, "memory.fill", index),
        (0x0C, "table.init", two),
        (0x0D, "elem.drop", index),
        (0x0E, "table.copy", two),
    )
    yield from _prefixed(MISC_PREFIX, "reference-types", (0x0F, "table.grow table.size table.fill", index))
    yield from _prefixed(MISC_PREFIX, "wide-arithmetic", (0x13, "i64.add128 i64.sub128 i64.mul_wide_s i64.mul_wide_u", ()))


def _vector() -> Iterable[Opcode]:
    memarg, lane = ("memarg",), ("lane",)
    integer_comparisons = "{0}.eq {0}.ne {0}.lt_s {0}.lt_u {0}.gt_s {0}.gt_u {0}.le_s {0}.le_u {0}.ge_s {0}.ge_u "
    comparisons = "{0}.eq {0}.ne {0}.lt {0}.gt {0}.le {0}.ge "
    narrow_sums = (
        "{0}.shl {0}.shr_s {0}.shr_u {0}.add {0}.add_sat_s {0}.add_sat_u {0}.sub {0}.sub_sat_s {0}.sub_sat_u "
        "f64x2.{1} {2} {0}.min_s {0}.min_u {0}.max_s {0}.max_u "
    )
    extensions = "{0}.extend_low_{1}_s {0}.extend_high_{1}_s {0}.extend_low_{1}_u {0}.extend_high_{1}_u "
    products = "{0}.extmul_low_{1}_s {0}.extmul_high_{1}_s {0}.extmul_low_{1}_u {0}.extmul_high_{1}_u "
    sums = "{0}.shl {0}.shr_s {0}.shr_u {0}.add - - {0}.sub - - - {0}.mul "
    floats = "{0}.abs {0}.neg - {0}.sqrt {0}.add {0}.sub {0}.mul {0}.div {0}.min {0}.max {0}.pmin {0}.pmax "
    yield from _prefixed(
        VECTOR_PREFIX,
        "simd",
        (
            0x00,
            (
                "v128.load v128.load8x8_s v128.load8x8_u v128.load16x4_s v128.load16x4_u v128.load32x2_s v128.load32x2_u "
                "v128.load8_splat v128.load16_splat v128.load32_splat v128.load64_splat v128.store"
            ),
            memarg,
        ),
        (0x0C, "v128.const", ("v128",)),
        (0x0D, "i8x16.shuffle", ("v128",)),
        (0x0E, "i8x16.swizzle i8x16.splat i16x8.splat i32x4.splat i64x2.splat f32x4.splat f64x2.splat", ()),
        (
            0x15,
            (
                "i8x16.extract_lane_s i8x16.extract_lane_u i8x16.replace_lane "
                "i16x8.extract_lane_s i16x8.extract_lane_u i16x8.replace_lane i32x4.extract_lane i32x4.replace_lane "
                "i64x2.extract_lane i64x2.replace_lane f32x4.extract_lane f32x4.replace_lane "
                "f64x2.extract_lane f64x2.replace_lane"
            ),
            lane,
        ),
        (
            0x23,
            "".join(integer_comparisons.format(shape) for shape in ("i8x16", "i16x8", "i32x4"))
            + comparisons.format("f32x4")
            + comparisons.format("f64x2")
            + "v128.not v128.and v128.andnot v128.or v128.xor v128.bitselect v128.any_true",
            (),
        ),
        (
            0x54,
            (
                "v128.load8_lane v128.load16_lane v128.load32_lane v128.load64_lane "
                "v128.store8_lane v128.store16_lane v128.store32_lane v128.store64_lane"
            ),
            ("memarg", "lane"),
        ),
        (0x5C, "v128.load32_zero v128.load64_zero", memarg),
        (
            0x5E,
            "f32x4.demote_f64x2_zero f64x2.promote_low_f32x4 "
            "i8x16.abs i8x16.neg i8x16.popcnt i8x16.all_true i8x16.bitmask i8x16.narrow_i16x8_s i8x16.narrow_i16x8_u "
            "f32x4.ceil f32x4.floor f32x4.trunc f32x4.nearest "
            + narrow_sums.format("i8x16", "ceil", "f64x2.floor")
            + "f64x2.trunc i8x16.avgr_u i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u "
            "i32x4.extadd_pairwise_i16x8_s i32x4.extadd_pairwise_i16x8_u "
            "i16x8.abs i16x8.neg i16x8.q15mulr_sat_s i16x8.all_true i16x8.bitmask i16x8.narrow_i32x4_s i16x8.narrow_i32x4_u "
            + extensions.format("i16x8", "i8x16")
            + narrow_sums.format("i16x8", "nearest", "i16x8.mul")
            + "- i16x8.avgr_u "
            + products.format("i16x8", "i8x16")
            + "i32x4.abs i32x4.neg - i32x4.all_true i32x4.bitmask - - "
            + extensions.format("i32x4", "i16x8")
            + sums.format("i32x4")
            + "i32x4.min_s i32x4.min_u i32x4.max_s i32x4.max_u i32x4.dot_i16x8_s - "
            + products.format("i32x4", "i16x8")
            + "i64x2.abs i64x2.neg - i64x2.all_true i64x2.bitmask - - "
            + extensions.format("i64x2", "i32x4")
            + sums.format("i64x2")
            + "i64x2.eq i64x2.ne i64x2.lt_s i64x2.gt_s i64x2.le_s i64x2.ge_s "
            + products.format("i64x2", "i32x4")
            + floats.format("f32x4")
            + floats.format("f64x2")
            + "i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u f32x4.convert_i32x4_s f32x4.convert_i32x4_u "
            "i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u",
            (),
        ),
    )
    yield from _prefixed(
        VECTOR_PREFIX,
        "relaxed-simd",
        (
            0x100,
            (
                "i8x16.relaxed_swizzle i32x4.relaxed_trunc_f32x4_s i32x4.relaxed_trunc_f32x4_u "
                "i32x4.relaxed_trunc_f64x2_s_zero i32x4.relaxed_trunc_f64x2_u_zero "
                "f32x4.relaxed_madd f32x4.relaxed_nmadd f64x2.relaxed_madd f64x2.relaxed_nmadd "
                "i8x16.relaxed_laneselect i16x8.relaxed_laneselect i32x4.relaxed_laneselect i64x2.relaxed_laneselect "
                "f32x4.relaxed_min f32x4.relaxed_max f64x2.relaxed_min f64x2.relaxed_max "
                "i16x8.relaxed_q15mulr_s i16x8.relaxed_dot_i8x16_i7x16_s i32x4.relaxed_dot_i8x16_i7x16_add_s"
            ),
            (),
        ),
    )


def _atomic() -> Iterable[Opcode]:
    modify = (
        "i32.atomic.rmw.{0} i64.atomic.rmw.{0} i32.atomic.rmw8.{0}_u i32.atomic.rmw16.{0}_u "
        "i64.atomic.rmw8.{0}_u i64.atomic.rmw16.{0}_u i64.atomic.rmw32.{0}_u "
    )
    return _prefixed(
        ATOMIC_PREFIX,
        "threads",
        (0x00, "memory.atomic.notify memory.atomic.wait32 memory.atomic.wait64", ("memarg",)),
        (0x03, "atomic.fence", ("byte",)),
        (
            0x10,
            "i32.atomic.load i64.atomic.load i32.atomic.load8_u i32.atomic.load16_u "
            "i64.atomic.load8_u i64.atomic.load16_u i64.atomic.load32_u "
            "i32.atomic.store i64.atomic.store i32.atomic.store8 i32.atomic.store16 "
            "i64.atomic.store8 i64.atomic.store16 i64.atomic.store32 "
            + "".join(modify.format(operation) for operation in ("add", "sub", "and", "or", "xor", "xchg", "cmpxchg")),
            ("memarg",),
        ),
    )


OPCODES: Final[Mapping[tuple[int | None, int], Opcode]] = MappingProxyType(
    {(row.prefix, row.number): row for rows in (_core, _gc, _misc, _vector, _atomic) for row in rows()}
)
"""The table: prefix and number to the row."""

CONSTANT: Final = frozenset(
    {
        "i32.const",
        "i64.const",
        "f32.const",
        "f64.const",
        "v128.const",
        "ref.null",
        "ref.func",
        "global.get",
        "i32.add",
        "i32.sub",
        "i32.mul",
        "i64.add",
        "i64.sub",
        "i64.mul",
        "struct.new",
        "struct.new_default",
        "array.new",
        "array.new_default",
        "array.new_fixed",
        "ref.i31",
        "any.convert_extern",
        "extern.convert_any",
    }
)
"""What a constant expression may consist of, before its `end`."""
