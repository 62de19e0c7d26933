import math

import pytest

from shmwasm.cli.values import parse_value, parse_values, plain


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0", "i32", 0),
        ("-1", "i32", -1),
        ("0xffffffff", "i32", 0xFFFFFFFF),
        ("-2147483648", "i32", -(1 << 31)),
        ("0b101", "i64", 5),
        ("18446744073709551615", "i64", (1 << 64) - 1),
        ("1.5", "f32", 1.5),
        ("-inf", "f64", -math.inf),
        ("0xffffffffffffffffffffffffffffffff", "v128", (1 << 128) - 1),
    ],
)
def test_a_value_is_read_as_its_parameter_demands(text, kind, value):
    assert parse_value(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "problem"),
    [
        ("4294967296", "i32", "does not fit into i32"),
        ("-2147483649", "i32", "does not fit into i32"),
        ("1.5", "i32", "is no integer"),
        ("", "i64", "is no integer"),
        ("one", "f64", "is no number"),
        ("1", "funcref", "type funcref cannot be given"),
    ],
)
def test_what_does_not_fit_its_parameter_is_refused(text, kind, problem):
    with pytest.raises(ValueError, match=problem):
        parse_value(text, kind)


def test_a_wrong_number_of_arguments_is_refused_with_the_signature():
    with pytest.raises(ValueError, match=r"1 arguments were given; the function takes 2 \(i32, f64\)"):
        parse_values(["1"], ["i32", "f64"])
    assert parse_values(["1", "2"], ["i32", "f64"]) == [1, 2.0]


def test_only_what_json_cannot_carry_becomes_text():
    assert [plain(value) for value in (1, 2.5, math.inf, -math.inf, math.nan)] == [1, 2.5, "inf", "-inf", "nan"]
