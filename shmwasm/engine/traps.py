"""Traps: why a guest stopped, as plain values.

A guest stops in four ways: an instruction traps, it is interrupted at its deadline, it ends itself through WASI, or a host
function raises. wasmtime reports these in several types, some only as text; `describe` makes one of them.
"""

from __future__ import annotations

import ctypes
import re
import traceback
from collections.abc import Iterable
from typing import Final

import msgspec
import wasmtime
from wasmtime import _bindings, _func
from wasmtime._trap import Frame, FrameList

from shmwasm.errors import GuestExitError, HostFunctionError, WorkerTrapError

HOST_FUNCTION: Final = "host_function"
"""The code of a trap that an exception in a host function caused."""

EXIT: Final = "exit"
"""The code of a trap that the guest asked for through WASI's `proc_exit`."""

INTERRUPT: Final = "interrupt"
"""The code of a trap at the deadline."""

UNREACHABLE: Final = "unreachable"
"""The code of a trap because an instruction says so."""

FUEL: Final = "fuel_exhausted"
"""The code of a trap because a metered guest's fuel was used up."""

OWN_MODULE: Final = "shmwasm"
"""How the modules are named that are no guests, but parts of ours: their frames are in no backtrace."""

_UNKNOWN: Final = "unknown"

_IMPORT: Final = "incompatible import type"
"""How wasmtime begins what it says of an import that is given with another type."""


class TrapDescription(msgspec.Struct, frozen=True):
    """Why a guest stopped.

    Attributes:
        code: The trap's name, such as "memory_out_of_bounds", or one of the constants of this module.
        message: The reason, in one line.
        backtrace: The guest's frames, innermost first: "module!function @ offset", the offset counting the module's bytes.
        exit_code: What the guest passed to `proc_exit`, if it did.
        exception: The name of the exception's type, if a host function raised one.
        details: That exception's traceback, as text.
    """

    code: str
    message: str
    backtrace: list[str]
    exit_code: int | None = None
    exception: str = ""
    details: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether the guest was interrupted at its deadline."""
        return self.code == INTERRUPT

    def to_error(self, instance: int, export: str) -> WorkerTrapError:
        """Return the error for the user who called `export` of `instance`."""
        if self.code == HOST_FUNCTION:
            return HostFunctionError(instance, export, self.message, self.code, self.backtrace, self.exception, self.details)
        if self.exit_code is not None:
            return GuestExitError(instance, export, self.message, self.code, self.backtrace, self.exit_code)
        return WorkerTrapError(instance, export, self.message, self.code, self.backtrace)


class GuestTrapError(Exception):
    """A guest stopped. Its `__cause__` is the exception of the host function, if one raised.

    It does not leave the process: programs make `WorkerTrapError` or `CallTimeoutError` of it, which know instance and export.
    """

    def __init__(self, description: TrapDescription) -> None:
        super().__init__(description.message)
        self.description = description


def describe(error: BaseException) -> TrapDescription:
    """Return why the guest stopped, given what calling or instantiating raised."""
    match error:
        case GuestTrapError():
            return error.description
        case wasmtime.ExitTrap():
            return TrapDescription(EXIT, f"the guest exited with code {error.code}", _error_frames(error), exit_code=error.code)
        case wasmtime.Trap():
            return TrapDescription(_code(error), _reason(error.message), _frames(error.frames))
        case wasmtime.WasmtimeError():
            return TrapDescription(_UNKNOWN, _reason(str(error)), _error_frames(error))
        case _:
            return host_failure(error, [])


def host_failure(error: BaseException, backtrace: list[str]) -> TrapDescription:
    """Return the description of a guest whose host function raised `error`."""
    return TrapDescription(
        HOST_FUNCTION,
        f"a host function raised {type(error).__name__}: {error}",
        backtrace,
        exception=type(error).__name__,
        details="".join(traceback.format_exception(error)),
    )


def take_host_exception() -> BaseException | None:
    """Return the exception that a host function raised during the call that just failed, and forget it."""
    error: BaseException | None = _func.LAST_EXCEPTION
    _func.LAST_EXCEPTION = None
    return error


def _code(trap: wasmtime.Trap) -> str:
    try:
        code = trap.trap_code
    except ValueError:  # newer than the Python package
        return _UNKNOWN
    if code is not None:
        return code.name.lower()
    return "uncaught_exception" if "thrown Wasm exception" in trap.message else _UNKNOWN


def _reason(message: str) -> str:
    """Return wasmtime's reason in one line: the innermost cause, and what led to it where that is known."""
    lines = [re.sub(r"^[0-9]+: ", "", line.strip()) for line in message.splitlines() if line.strip()]
    if not lines:
        return "unknown"
    if lines[0].startswith(_IMPORT):  # the cause alone does not say which
        return f"{lines[0]}: {lines[-1]}"
    causes = lines[lines.index("Caused by:") + 1 : -1] if "Caused by:" in lines else []
    return ", ".join([lines[-1].removeprefix("wasm trap: "), *causes])


def _error_frames(error: wasmtime.WasmtimeError) -> list[str]:
    frames = FrameList(error)
    _bindings.wasmtime_error_wasm_trace(error.ptr(), ctypes.byref(frames.vec))
    return _frames(Frame._from_ptr(frames.vec.data[index], frames) for index in range(frames.vec.size))  # noqa: SLF001


def _frames(frames: Iterable[Frame]) -> list[str]:
    return [_frame(frame) for frame in frames if frame.module_name != OWN_MODULE]


def _frame(frame: Frame) -> str:
    function = frame.func_name or f"function {frame.func_index}"
    return f"{frame.module_name or 'module'}!{function} @ {frame.module_offset:#x}"
