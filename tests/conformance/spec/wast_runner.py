"""Running the scripts of the WebAssembly test suite, command by command, on wasmtime's C interface.

What a command did is its *outcome*: the bits of its results, the code of its trap, or at which stage a module was refused.
Whether that is what the script asserts is a question apart, so that two runs of one script can be compared whatever it asserts.

wasmtime-py's own calls know neither vectors nor most references, and its types end the process when they are shown. Here
arguments and results are raw: 16 bytes each, whose type the script itself tells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import wasmtime
from wasmtime import _bindings
from wast_reader import Command, ModuleText
from wast_references import agrees, raw_extern, raw_of_value, seen
from wast_values import Either, Number, Reference, value

from shmwasm.engine.nests import new_store
from shmwasm.engine.windows import reserve

_SLOT = 16
_PRINTED = {
    "print": "",
    "print_i32": "i32",
    "print_i64": "i64",
    "print_f32": "f32",
    "print_f64": "f64",
    "print_i32_f32": "i32 f32",
    "print_f64_f64": "f64 f64",
}
SPECTEST = f"""(module
  {" ".join(f'(func (export "{name}") (param {kinds}))' for name, kinds in _PRINTED.items())}
  (global (export "global_i32") i32 (i32.const 666))
  (global (export "global_i64") i64 (i64.const 666))
  (global (export "global_f32") f32 (f32.const 666.6))
  (global (export "global_f64") f64 (f64.const 666.6))
  (memory (export "memory") 1 2)
  (memory (export "shared_memory") 1 2 shared)
  (table (export "table") 10 20 funcref)
  (table (export "table64") i64 10 20 funcref)
  (func (export "of extern") (param externref) (result anyref) (any.convert_extern (local.get 0)))
  (func (export "to extern") (param anyref) (result externref) (extern.convert_any (local.get 0))))"""
"""What scripts import from "spectest"; and, under names that they do not know, how a host's reference becomes an `anyref`."""

_CODES = wasmtime.TrapCode
_TRAPS = {
    "out of bounds memory access": {_CODES.MEMORY_OUT_OF_BOUNDS},
    "out of bounds table access": {_CODES.TABLE_OUT_OF_BOUNDS},
    "undefined element": {_CODES.TABLE_OUT_OF_BOUNDS},
    "uninitialized element": {_CODES.INDIRECT_CALL_TO_NULL},
    "indirect call type mismatch": {_CODES.BAD_SIGNATURE},
    "indirect call": {_CODES.BAD_SIGNATURE},
    "integer overflow": {_CODES.INTEGER_OVERFLOW},
    "integer divide by zero": {_CODES.INTEGER_DIVISION_BY_ZERO},
    "invalid conversion to integer": {_CODES.BAD_CONVERSION_TO_INTEGER},
    "unreachable": {_CODES.UNREACHABLE},
    "unaligned atomic": {_CODES.HEAP_MISALIGNED},
    "expected shared memory": {_CODES.ATOMIC_WAIT_NON_SHARED_MEMORY},
    "null": {_CODES.NULL_REFERENCE},
    "out of bounds array access": {_CODES.ARRAY_OUT_OF_BOUNDS},
    "cast failure": {_CODES.CAST_FAILURE},
    "call stack exhausted": {_CODES.STACK_OVERFLOW},
}
"""Codes of the trap that a message of the scripts stands for, by what the message starts with."""


_LINKING = ("unknown import", "incompatible import type")
"""Why a module cannot be linked."""


class Outcome(NamedTuple):
    """What a command did: "done", "returned", "trapped", "threw", "unlinkable" or "refused", and how."""

    what: str
    how: Any = None


class Instance(NamedTuple):
    """An instance, and what of it is known by name."""

    native: wasmtime.Instance
    exports: dict[bytes, Any]


class RefusedError(Exception):
    """A module was refused before there was anything to link."""


class MissingError(Exception):
    """An action names an instance or an export that there is not, because its module was refused."""


class World:
    """A store in which a script's modules live.

    Args:
        engine: The engine.
        modules: Compiled modules by content, which worlds of one engine may share.
    """

    def __init__(self, engine: wasmtime.Engine, modules: dict[bytes, wasmtime.Module]) -> None:
        self.engine = engine
        self.store = new_store(engine)
        reserve(self.store)
        self.linker = wasmtime.Linker(engine)
        self.linker.allow_shadowing = True
        self._modules = modules
        self._definitions: dict[str | None, ModuleText] = {}
        self._instances: dict[str | None, Instance] = {}
        self._values = (_bindings.wasmtime_val_raw * 64)()
        self._context = self.store._context()
        self._spectest = Instance(self._link(self.compile(bytes(wasmtime.wat2wasm(SPECTEST)))), {})
        self.register("spectest", self._spectest)

    def close(self) -> None:
        """Give back the memory of everything in it."""
        self._instances.clear()
        self.linker.close()
        self.store.close()

    def run(self, command: Command) -> Outcome:
        """Run one command and return what it did."""
        try:
            return self._run(command)
        except wasmtime.Trap as trap:
            return self._stopped(trap)
        except RefusedError:
            return Outcome("refused")
        except MissingError:
            return Outcome("missing")
        except wasmtime.WasmtimeError as failure:
            return Outcome("unlinkable", next((kind for kind in _LINKING if kind in str(failure)), str(failure)))

    def compile(self, content: bytes) -> wasmtime.Module:
        """Return the code of a binary module.

        Raises:
            RefusedError: It is no valid module.
        """
        module = self._modules.get(content)
        if module is None:
            try:
                module = self._modules[content] = wasmtime.Module(self.engine, content)
            except wasmtime.WasmtimeError as failure:
                raise RefusedError from failure
        return module

    def instantiate(self, content: bytes) -> wasmtime.Instance:
        """Return a new instance of a binary module."""
        return self._link(self.compile(content))

    def check(self, content: bytes) -> None:
        """Raise `RefusedError` unless this is a valid module."""
        try:
            wasmtime.Module.validate(self.engine, content)
        except wasmtime.WasmtimeError as failure:
            raise RefusedError from failure

    def _run(self, command: Command) -> Outcome:
        match command.keyword, command.arguments:
            case "module", [ModuleText() as module]:
                self._define(module)
                return Outcome("done")
            case "register", [bytes() as name, *which]:
                self.register(name.decode(), self._instance(*which))
                return Outcome("done")
            case (("assert_malformed" | "assert_invalid" | "assert_malformed_custom" | "assert_invalid_custom"), [module, *_]):
                self.check(_binary(module))
                return Outcome("done")
            case (("assert_unlinkable" | "assert_uninstantiable" | "assert_trap"), [ModuleText() as module, *_]):
                self.instantiate(_binary(module))
                return Outcome("done")
            case "assert_return", [action, *_]:
                expected = expected_of(command)
                return Outcome("returned", tuple(map(self._result, expected, self._act(action))))
            case "invoke", _:
                self._act(["invoke", *command.arguments])
                return Outcome("done")
            case _, [action, *_]:
                self._act(action)
                return Outcome("done")
        raise AssertionError(f"line {command.line}: no such command: {command.keyword}")

    def _define(self, module: ModuleText) -> None:
        if module.is_definition:
            self.check(_binary(module))
            self._definitions[module.name] = self._definitions[None] = module
            return
        code = module
        if module.format == "instance":
            code = self._definitions[module.text or None]
        instance = Instance(self.instantiate(_binary(code)), {})
        self._instances[module.name] = self._instances[None] = instance

    def register(self, name: str, instance: Instance) -> None:
        """Let modules import what `instance` exports from `name`."""
        self.linker.define_instance(self.store, name, instance.native)

    def _link(self, module: wasmtime.Module) -> wasmtime.Instance:
        return self.linker.instantiate(self.store, module)

    def _instance(self, name: str | None = None) -> Instance:
        try:
            return self._instances[name]
        except KeyError:
            raise MissingError from None

    def _act(self, action: list[Any]) -> Iterable[int]:
        kind, *rest = action
        which = rest.pop(0) if isinstance(rest[0], str) else None
        export = self._export(self._instance(which), rest[0])
        if kind == "get":
            return [self._global(export)]
        return self._call(export, [self._raw(value(node)) for node in rest[1:]])

    def _export(self, instance: Instance, name: bytes) -> Any:
        found = instance.exports.get(name)
        if found is None:
            found = _bindings.wasmtime_extern_t()
            native = ctypes.byref(instance.native._instance)
            if not _bindings.wasmtime_instance_export_get(self._context, native, name, len(name), ctypes.byref(found)):
                raise MissingError
            instance.exports[name] = found
        return found

    def _call(self, function: Any, arguments: list[int]) -> Iterator[int]:
        """Call a function with raw arguments; return its raw results, with as many meaningless ones behind them."""
        values = self._values
        content = b"".join(argument.to_bytes(_SLOT, "little") for argument in arguments)
        ctypes.memmove(values, content.ljust(ctypes.sizeof(values), b"\0"), ctypes.sizeof(values))
        trap = ctypes.POINTER(_bindings.wasm_trap_t)()
        error = _bindings.wasmtime_func_call_unchecked(
            self._context, ctypes.byref(function.of.func), values, len(values), ctypes.byref(trap)
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        if trap:
            raise wasmtime.Trap._from_ptr(trap)
        content = bytes(values)
        return (int.from_bytes(content[at : at + _SLOT], "little") for at in range(0, len(content), _SLOT))

    def _global(self, extern: Any) -> int:
        got = _bindings.wasmtime_val()
        _bindings.wasmtime_global_get(self._context, ctypes.byref(extern.of.global_), ctypes.byref(got))
        return raw_of_value(self._context, got)

    def _raw(self, argument: Number | Reference) -> int:
        match argument:
            case Number(bits=bits):
                return bits
            case Reference("null", _):
                return 0
            case Reference("extern", number):
                return raw_extern(self._context, int(number))
            case Reference("host", number):
                return self._convert(b"of extern", raw_extern(self._context, int(number)))
        raise AssertionError(f"such an argument cannot be passed: {argument}")

    def _convert(self, name: bytes, raw: int) -> int:
        return next(self._call(self._export(self._spectest, name), [raw])) & 0xFFFF_FFFF

    def _result(self, expected: Number | Reference | Either, raw: int) -> int | str:
        """Return a result for comparing: the bits that its type has, or what reference it is."""
        match expected:
            case Number(width=width):
                return raw & ((1 << width) - 1)
            case Reference("host", number):
                return seen(self._context, Reference("extern", number), self._convert(b"to extern", raw & 0xFFFF_FFFF))
            case Reference():
                return seen(self._context, expected, raw)
        return self._result(expected.options[0], raw)

    def _stopped(self, trap: wasmtime.Trap) -> Outcome:
        code = ctypes.c_uint8()
        if _bindings.wasmtime_trap_code(trap.ptr(), ctypes.byref(code)):
            return Outcome("trapped", wasmtime.TrapCode(code.value))
        thrown = _bindings.wasmtime_exnref()
        if _bindings.wasmtime_context_take_exception(self._context, ctypes.byref(thrown)):
            _bindings.wasmtime_exnref_unroot(ctypes.byref(thrown))
            return Outcome("threw")
        return Outcome("trapped", trap.message)


def outcomes(world: World, commands: list[Command]) -> list[Outcome]:
    """Run a script and return what each of its commands did; the world is closed then."""
    try:
        return [world.run(command) for command in commands]
    finally:
        world.close()


def differences(commands: list[Command], before: list[Outcome], after: list[Outcome]) -> list[str]:
    """Return what two runs of a script did otherwise, a line of text each."""
    return [
        f"line {command.line}: {command.keyword} {one}, then {other}"
        for command, one, other in zip(commands, before, after, strict=True)
        if one != other
    ]


def expected_of(command: Command) -> list[Number | Reference | Either]:
    """Return what the results of an `assert_return` must be."""
    return [value(node) for node in command.arguments[1:]]


def meets(command: Command, outcome: Outcome) -> bool:
    """Return whether a command did what the script says."""
    match command.keyword:
        case "module" | "register" | "invoke":
            return outcome.what == "done"
        case "assert_return":
            expected = expected_of(command)
            return (
                outcome.what == "returned" and len(outcome.how) == len(expected) and all(map(_is_expected, expected, outcome.how))
            )
        case "assert_trap" | "assert_exhaustion" | "assert_uninstantiable":
            return outcome.what == "trapped" and outcome.how in _codes(command.arguments[1].decode())
        case "assert_exception":
            return outcome.what == "threw"
        case "assert_unlinkable":
            return outcome.what == "unlinkable"
        case _:
            return outcome.what == "refused"


def _is_expected(expected: Number | Reference | Either, result: int | str) -> bool:
    match expected:
        case Number():
            return isinstance(result, int) and expected.matches(result)
        case Reference("host", number):
            return agrees(Reference("extern", number), str(result))
        case Reference():
            return agrees(expected, str(result))
    return any(_is_expected(option, result) for option in expected.options)


def _codes(message: str) -> set[wasmtime.TrapCode]:
    for start, codes in _TRAPS.items():
        if message.startswith(start):
            return codes
    return set()


def _binary(module: ModuleText) -> bytes:
    try:
        return module.binary()
    except wasmtime.WasmtimeError as failure:
        raise RefusedError from failure
