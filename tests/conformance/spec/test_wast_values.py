"""What the scripts' texts stand for."""

from __future__ import annotations

import struct

import pytest
from wast_reader import parse
from wast_values import value


def bits_of(kind, text):
    return value([f"{kind}.const", text]).bits


@pytest.mark.parametrize(
    ("kind", "text", "bits"),
    [
        ("i32", "-1", 0xFFFF_FFFF),
        ("i64", "0x8000_0000_0000_0000", 1 << 63),
        ("i32", "010", 10),
        ("f32", "-0", 1 << 31),
        ("f32", "0x1.8p-1", 0x3F40_0000),
        ("f64", "inf", 0x7FF0 << 48),
        ("f32", "-nan:0x200000", 0xFFA0_0000),
        ("f64", "nan", 0x7FF8 << 48),
        ("f32", "340282346638528859811704183484516925440", 0x7F7F_FFFF),
    ],
)
def test_constant_has_the_bits_that_the_standard_gives_it(kind, text, bits):
    assert bits_of(kind, text) == bits


def test_single_is_rounded_once_even_where_the_nearest_double_lies_midway():
    """Just above the middle of 1 and the next single: as a double it is the middle, which goes to the even one."""
    above_the_middle = "0x1.000001000000000001p0"
    assert struct.pack("<f", float.fromhex(above_the_middle)) == (0x3F80_0000).to_bytes(4, "little")
    assert bits_of("f32", above_the_middle) == 0x3F80_0001
    assert bits_of("f32", "1.000000059604644775390625") == 0x3F80_0000
    assert bits_of("f32", "1.000000059604644775390626") == 0x3F80_0001


def test_canonical_nan_has_no_payload_and_an_arithmetic_one_any_quiet_payload():
    canonical, arithmetic = value(["f32.const", "nan:canonical"]), value(["f32.const", "nan:arithmetic"])
    assert [nan.matches(0xFFC0_0000) for nan in (canonical, arithmetic)] == [True, True]
    assert [nan.matches(0x7FC0_0001) for nan in (canonical, arithmetic)] == [False, True]
    assert [nan.matches(0x7FA0_0000) for nan in (canonical, arithmetic)] == [False, False]


def test_vector_is_compared_lane_by_lane():
    vector = value(["v128.const", "f32x4", "1", "nan:arithmetic", "0", "-0"])
    lanes = [0x3F80_0000, 0x7FC1_2345, 0, 1 << 31]
    assert vector.matches(sum(lane << 32 * index for index, lane in enumerate(lanes)))
    assert not vector.matches(sum(lane << 32 * index for index, lane in enumerate(reversed(lanes))))


def test_comments_annotations_and_escapes_are_read_as_the_text_format_has_them():
    commands = parse(
        r"""(module $m (; a (; nested ;) ) ;) (func (export "a)\"")))
        (@note (with (anything "in ) it")))
        (invoke $m "\u{61}\62\n" (i32.const 1)) ;; (invoke "not this")
        (module binary "\00asm" "\01\00\00\00")"""
    )
    assert [(command.line, command.keyword) for command in commands] == [(1, "module"), (3, "invoke"), (4, "module")]
    assert commands[0].arguments[0].name == "$m"
    assert commands[1].arguments == ["$m", b"ab\n", ["i32.const", "1"]]
    assert commands[2].arguments[0].binary() == b"\0asm\1\0\0\0"


def test_text_that_holds_no_command_is_the_inside_of_a_module():
    (command,) = parse('(func (export "f"))\n(memory 1)')
    assert command.keyword == "module"
    assert command.arguments[0].binary().startswith(b"\0asm")
