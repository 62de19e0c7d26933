"""From Python's numbers to a WebAssembly function's, checked before anything is sent."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import SupportsIndex

from shmwasm import errors
from shmwasm.client.blocks import Block
from shmwasm.client.side_channel import Number
from shmwasm.engine.modules import FunctionType
from shmwasm.engine.numbers import BITS, NUMBERS, fits, number_of
from shmwasm.posix.signals import raises_again

Value = SupportsIndex | float
"""What can be passed to a guest: integers (and blocks, as the address at which the guest sees them) and floats."""


Convert = Callable[[Sequence[Value]], list[Number]]
"""Makes of one call's arguments numbers in the ranges of their types, integers unsigned, or raises `ArgumentError`."""


def converters(export: str, kind: FunctionType, address_of: Callable[[Block], int]) -> Convert:
    """Return the function that checks and converts the arguments of an exported function.

    Args:
        export: Its name.
        kind: Its type.
        address_of: Returns the address at which a block is passed to it, or raises.

    Raises:
        UnsupportedError: The function takes or returns something that is not a number.
    """
    for one in (*kind.parameters, *kind.results):
        if one not in NUMBERS:
            raise errors.UnsupportedError(f"calling {export!r} from Python", f"it takes or returns a value of type {one}")
    parameters = kind.parameters
    # All integers become unsigned.

    def convert(arguments: Sequence[Value]) -> list[Number]:
        if len(arguments) != len(parameters):
            raise errors.ArgumentError(
                f"{export!r} takes {len(parameters)} arguments ({', '.join(parameters)}), not {len(arguments)}"
            )
        return [
            _number(export, place, parameter, address_of(argument) if isinstance(argument, Block) else argument)
            for place, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True))
        ]

    return convert


def results_of(results: list[Number]) -> Number | list[Number] | None:
    """Return a call's results as Python likes them: None, one number, or a list."""
    if len(results) == 1:
        return results[0]
    return results or None


def _number(export: str, place: int, parameter: str, argument: Value) -> Number:
    try:
        value = number_of(parameter, argument)
    except Exception as failure:  # the argument's own code ran
        if not raises_again(lambda: number_of(parameter, argument)):
            raise
        raise errors.ArgumentError(
            f"argument {place} of {export!r} must be of type {parameter}, not {errors.shown(argument)}"
        ) from failure
    if not fits(parameter, value):
        raise errors.ArgumentError(f"argument {place} of {export!r} is {errors.shown(value)}, which is no {parameter}")
    if isinstance(value, int):
        return value & ((1 << BITS[parameter]) - 1)
    return ctypes.c_float(value).value if parameter == "f32" else value
