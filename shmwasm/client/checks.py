"""Checking what a user passes, before anything is done with it.

A value of a wrong type must not get as far as a message: the coordinator ends the connection of a client whose message it cannot
decode. So each function here returns the value as it is to be used, or raises `ArgumentError`, which names it.
"""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Mapping

import msgspec

from shmwasm.engine.numbers import real_number
from shmwasm.errors import ArgumentError, shown
from shmwasm.posix.signals import raises_again
from shmwasm.protocol import messages
from shmwasm.rewrite import seam

LARGEST = (1 << 63) - 1
"""The largest number of bytes that anything here is asked for."""


def whole_number(value: object, what: str, *, low: int = 0, high: int = LARGEST) -> int:
    """Return `value` as an integer from `low` to `high`; it may be anything with `__index__`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except Exception as failure:  # the value's own code ran
        if not raises_again(lambda: operator.index(value)):  # type: ignore[arg-type]
            raise
        raise ArgumentError(f"{what} must be a whole number, not {shown(value)}") from failure
    if not low <= number <= high:
        raise ArgumentError(f"{what} must be from {low} to {high}, not {shown(number)}")
    return number


def amount_of_fuel(value: object) -> int:
    """Return an amount of fuel that a call can be given; None stands for one without end."""
    return seam.FUEL_WITHOUT_END if value is None else whole_number(value, "an amount of fuel", low=1)


def flag(value: object, what: str) -> bool:
    """Return `value`, which must be True or False: anything else is rather a mistake than a yes."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{what} must be True or False, not {shown(value)}")
    return value


def choice(value: object, what: str, *allowed: str) -> str:
    """Return `value`, which must be one of a few strings; nothing of its own code runs."""
    chosen = plain_text(value)
    if chosen is None or chosen not in allowed:
        raise ArgumentError(f"{what} must be {' or '.join(map(repr, allowed))}, not {shown(value)}")
    return chosen


def plain_text(value: object) -> str | None:
    """Return a string as one of the type `str` itself, as messages need it; None if it is no string."""
    return str.__str__(value) if isinstance(value, str) else None


def text(value: object, what: str, *, longest: int) -> str:
    """Return `value`, which must have 1 to `longest` characters that can be written as UTF-8, none of them null."""
    plain = plain_text(value)
    if plain is None:
        raise ArgumentError(f"{what} must be a string, not {shown(value)}")
    if not 0 < len(plain) <= longest:
        raise ArgumentError(f"{what} must have 1 to {longest} characters, not {len(plain)}: {shown(value)}")
    _check_characters(plain, what)
    return plain


def time_limit(value: object) -> float:
    """Return a time limit in seconds, and 0 where there is none."""
    if value is None:
        return 0.0
    limit = seconds(value, "a time limit")
    if limit <= 0:
        raise ArgumentError(f"a time limit of {shown(value)} s is not above 0")
    return limit


def seconds(value: object, what: str) -> float:
    """Return a number of seconds, at most as many as can be waited for."""
    try:
        number = real_number(value)
    except Exception as failure:  # the value's own code ran
        if not raises_again(lambda: real_number(value)):
            raise
        raise ArgumentError(f"{what} must be a number of seconds, not {shown(value)}") from failure
    if math.isnan(number):
        raise ArgumentError(f"{what} must be a number of seconds, not {shown(value)}")
    return min(number, threading.TIMEOUT_MAX)


def wasi_options(value: object) -> messages.WasiOptions | None:
    """Return a copy of WASI options whose fields have the types that they should."""
    if value is None:
        return None
    if not isinstance(value, messages.WasiOptions):
        raise ArgumentError(f"wasi must be WasiOptions, not {shown(value)}")
    try:
        options = _copy(value)
    except Exception as failure:  # the code of what it holds ran
        if not raises_again(lambda: _copy(value)):
            raise
        raise ArgumentError(f"the WASI options {shown(value)} cannot be: {failure}") from failure
    for one in (*options.args, *_both(options.env), *_both(options.preopens), options.stdin, options.stdout, options.stderr):
        _check_characters(one, "a WASI option")
    for guest in options.read_only_preopens:
        if guest not in options.preopens.values():
            raise ArgumentError(
                f"the WASI option read_only_preopens has {shown(guest)}, which is none of the preopens' guest paths"
            )
    return options


def _copy(options: messages.WasiOptions) -> messages.WasiOptions:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(options, enc_hook=_path), type=messages.WasiOptions)


def _path(value: object) -> str:
    """Return a path object as text, where a path is wanted as text."""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise TypeError(f"{shown(value)} is neither text nor a path")


def _both(pairs: Mapping[str, str]) -> list[str]:
    return [*pairs.keys(), *pairs.values()]


def _check_characters(value: str, what: str) -> None:
    if "\0" in value:
        raise ArgumentError(f"{what} must not hold a null character: {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as failure:
        raise ArgumentError(f"{what} cannot be written as UTF-8: {shown(value)}") from failure
