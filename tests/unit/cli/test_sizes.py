import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.cli.sizes import format_size, parse_size, size_between


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("2GiB", 2 << 30),
        ("2 GiB", 2 << 30),
        (" 1.5g ", 3 << 29),
        ("0.25K", 256),
        ("100b", 100),
        ("1T", 1 << 40),
    ],
)
def test_a_size_is_read_with_its_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1e6", "64 Q", "0x10", "1.5", "0.3K", "1,5M", "64MM", "1.M", ".5M"])
def test_what_is_no_size_is_refused_with_its_text(text):
    with pytest.raises(ValueError, match=r"size|whole number"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 60), st.sampled_from(["", "K", "M", "G", "T"]))
def test_a_whole_number_of_units_is_exact(number, unit):
    assert parse_size(f"{number}{unit}") == number << 10 * " KMGT".index(unit or " ")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_a_size_is_shown_with_the_largest_unit_that_fits(size, text):
    assert format_size(size) == text


def test_a_size_out_of_its_bounds_is_refused_with_the_bound():
    size = size_between(1 << 20, 1 << 30)
    assert size("1M") == 1 << 20
    assert size("1G") == 1 << 30
    with pytest.raises(click.BadParameter, match=r"1023K is less than 1\.0 MiB"):
        size("1023K")
    with pytest.raises(click.BadParameter, match=r"2G is more than 1\.0 GiB"):
        size("2G")
