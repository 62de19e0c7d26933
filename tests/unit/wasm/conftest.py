"""Modules for the tests of the binary format, and the engine's word on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wasmtime

from shmwasm.engine.config import new_engine
from shmwasm.wasm.leb128 import encode_unsigned

HEADER = b"\0asm\x01\0\0\0"


def _section(number: int, *entries: bytes) -> bytes:
    payload = encode_unsigned(len(entries)) + b"".join(entries)
    return bytes([number]) + encode_unsigned(len(payload)) + payload


def _custom(name: bytes, content: bytes = b"") -> bytes:
    payload = encode_unsigned(len(name)) + name + content
    return b"\0" + encode_unsigned(len(payload)) + payload


def _body(code: bytes, declared: bytes = b"\0") -> bytes:
    return encode_unsigned(len(declared) + len(code)) + declared + code


def _functions(*codes: bytes) -> bytes:
    """Return a module of functions of type () -> (), each with its `end`."""
    return (
        HEADER
        + _section(1, b"\x60\0\0")
        + _section(3, *[b"\0"] * len(codes))
        + _section(5, b"\0\x01")
        + _section(10, *map(_body, codes))
    )


@pytest.fixture(scope="session")
def section() -> Callable[..., bytes]:
    """A section: its number, and its entries, which are counted."""
    return _section


@pytest.fixture(scope="session")
def custom() -> Callable[..., bytes]:
    """A custom section: its name and content."""
    return _custom


@pytest.fixture(scope="session")
def body() -> Callable[..., bytes]:
    """A function's body: its code, with its `end`, and its locals as bytes."""
    return _body


@pytest.fixture(scope="session")
def functions() -> Callable[..., bytes]:
    return _functions


@pytest.fixture(scope="session")
def refusal() -> Callable[[bytes], str | None]:
    """Why the engine refuses a module; None if it is valid."""
    engine = new_engine(parallel_compilation=False)

    def ask(module: bytes) -> str | None:
        try:
            wasmtime.Module.validate(engine, module)
        except wasmtime.WasmtimeError as failure:
            return str(failure)
        return None

    return ask
