"""Compiling: from a module to code that any process here can run, once.

Theory
------
A module is rewritten and compiled once, in the client. Its code is kept under a key made of the module's bytes, of the engine's
`fingerprint` and of the rewriter's own source, and travels as a read-only descriptor; workers deserialize it, which takes a
fraction of a millisecond. With it are kept the rewriter's report, and what the module imports and exports, so that a module that
was loaded before is only read and looked up.

The engine validates the original: a rewritten module is not as invalid as its original was. And it is the original that is
described to people; the worker, which meets the rewritten one, describes that to itself.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
import wasmtime

from shmwasm import rewrite, wasm
from shmwasm.engine.artifacts import notes_of, pack
from shmwasm.engine.cache import Cache
from shmwasm.engine.config import fingerprint, new_engine
from shmwasm.engine.facts import Facts, packed, unpacked
from shmwasm.engine.modules import (
    ExternType,
    FunctionType,
    GlobalType,
    MemoryType,
    ModuleDescription,
    Source,
    describe,
    read_module,
    reason_of,
    validate,
)
from shmwasm.engine.traps import OWN_MODULE
from shmwasm.errors import ClosedError, ModuleError
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off
from shmwasm.rewrite import Report, seam
from shmwasm.rewrite.offsets import OffsetMap
from shmwasm.rewrite.sizes import DECLARED_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_OWN_NAME: Final = b"\0\x0f\x04name\0\x08\x07" + OWN_MODULE.encode()
"""A section that gives a module of ours its name in backtraces."""

_WHOLE_RANGE: Final = MemoryType(DECLARED_PAGES, DECLARED_PAGES, is_64=True, shared=False)
"""The type that a 64-bit heap memory is given."""


_FRAME: Final = re.compile(r"(?P<function>.*!(?:function (?P<number>[0-9]+)|.*)) @ (?P<offset>0x[0-9a-f]+)", re.DOTALL)
"""A frame of a backtrace, as `traps` writes it; only functions that have no name are numbered, as appended ones are."""

_OWN_REPORT: Final = Report(
    changed=False,
    heap_memory=None,
    memories=[],
    changes=[],
    functions=0,
    features=[],
    code_size=0,
    needs_shared_heap=False,
    offsets=OffsetMap(),
)


class CompiledModule:
    """Code and the facts of its original.

    It owns the artifact's descriptor, which `close` closes, as does forgetting the module.
    """

    def __init__(self, name: str, key: str, facts: Facts, artifact: int) -> None:
        self.name = name
        self.key = key
        self.facts = facts
        self._artifact = artifact
        self._closing = weakref.finalize(self, os.close, artifact)
        self._closing.atexit = False

    @property
    def descriptor(self) -> int:
        """The read-only descriptor of the code, for `deserialize`; the module keeps it.

        Raises:
            ClosedError: The module was closed.
        """
        if not self._closing.alive:
            raise ClosedError(f"module {self.name!r}")
        return self._artifact

    @property
    def description(self) -> ModuleDescription:
        """What the original imports and exports."""
        return self.facts.description

    @property
    def report(self) -> Report:
        """What the rewriter found and did."""
        return self.facts.report

    @property
    def functions(self) -> dict[str, FunctionType]:
        """The exported functions."""
        return {name: kind for name, kind in self.description.exports.items() if isinstance(kind, FunctionType)}

    @property
    def imported_functions(self) -> dict[tuple[str, str], FunctionType]:
        """The imported functions, by module and name."""
        return {(one.module, one.name): one.type for one in self.description.imports if isinstance(one.type, FunctionType)}

    @property
    def imported_globals(self) -> dict[tuple[str, str], GlobalType]:
        """The imported globals, by module and name."""
        return {(one.module, one.name): one.type for one in self.description.imports if isinstance(one.type, GlobalType)}

    @property
    def metered(self) -> bool:
        """Whether its calls use up fuel."""
        return self.report.metered

    def original_backtrace(self, backtrace: list[str]) -> list[str]:
        """Return a backtrace of the rewritten module as one of the original: its own functions only, at its own offsets."""
        return [frame for frame in (self._original_frame(frame) for frame in backtrace) if frame is not None]

    def _original_frame(self, frame: str) -> str | None:
        parts = _FRAME.fullmatch(frame)
        if parts is None or not self.report.changed:
            return frame
        if parts["number"] is not None and int(parts["number"]) >= self.report.functions:
            return None
        return f"{parts['function']} @ {self.report.original_offset(int(parts['offset'], 16)):#x}"

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        with interrupts_put_off():
            self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def compile_module(
    source: Source,
    cache: Cache | None = None,
    *,
    engine: wasmtime.Engine | None = None,
    own: bool = False,
    metered: bool = False,
) -> CompiledModule:
    """Rewrite and compile a module, or find it in `cache`.

    Args:
        source: The module.
        cache: Where compiled code is kept; `None` keeps it in memory only.
        engine: One that `new_engine` made; by default a new one that compiles in parallel.
        own: Whether it is a part of ours, and no guest: it is not rewritten, and backtraces leave it out.
        metered: Whether its calls are to use up fuel.

    Raises:
        ModuleError: The module is invalid; the reason is wasmtime's.
        UnsupportedError: It cannot be rewritten, or others can write to the cache's directory.
    """
    name, content = read_module(source)
    kind = _Kind(own, metered)
    return _found_or_made(name, _key(content, kind), lambda: content, cache, engine, kind)


def compile_companion(
    module: CompiledModule,
    purpose: str,
    text: Callable[[], str],
    cache: Cache | None = None,
    *,
    engine: wasmtime.Engine | None = None,
) -> CompiledModule:
    """Compile a part of ours that is made for a module, or find it in `cache`, where it lies beside the module.

    Args:
        module: What it is made for.
        purpose: What it is; differs whenever the text would be another for the same module.
        text: Gives it in the text format, if it must be compiled.
        cache: As in `compile_module`.
        engine: As in `compile_module`.

    Raises:
        UnsupportedError: Others can write to the cache's directory.
    """
    name = f"{purpose} of {module.name}"
    key = hashlib.sha256(f"{module.key} {purpose}".encode()).hexdigest()
    return _found_or_made(name, key, lambda: read_module(text())[1], cache, engine, _Kind(own=True, metered=False))


class _Kind(NamedTuple):
    """What is made of a module: see `compile_module`."""

    own: bool
    metered: bool


def _found_or_made(  # noqa: PLR0917  all of them say what to find
    name: str, key: str, content: Callable[[], bytes], cache: Cache | None, engine: wasmtime.Engine | None, kind: _Kind
) -> CompiledModule:
    """Return what is kept under `key`, or compile it and keep it. No interrupt leaves a descriptor that nobody holds."""
    cache = Cache(None) if cache is None else cache
    with interrupts_put_off():
        found = _find(name, key, cache)
        if found is not None:
            return found
        engine = new_engine(parallel_compilation=True) if engine is None else engine
        with cache.making(key):
            found = _find(name, key, cache)  # another process may just have made it
            return _make(name, key, content(), cache, engine, kind) if found is None else found


def _key(content: bytes, kind: _Kind) -> str:
    digest = hashlib.sha256()
    for part in (fingerprint(), "own" if kind.own else _source_digest(), "metered" if kind.metered else ""):
        digest.update(part.encode())
    digest.update(content)
    return digest.hexdigest()


@functools.cache
def _source_digest() -> str:
    """Return a digest of the source of what is kept: in a checkout it changes while the version stays."""
    digest = hashlib.sha256()
    sources = [path for package in (rewrite, wasm) for path in sorted(Path(package.__path__[0]).glob("*.py"))]
    for path in (*sources, Path(__file__).with_name("facts.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _find(name: str, key: str, cache: Cache) -> CompiledModule | None:
    """Return the module that is kept under `key`; None if there is none, or one that is damaged."""
    artifact = cache.find(key)
    if artifact is None:
        return None
    try:
        facts = unpacked(notes_of(key, artifact) or b"")
    except msgspec.DecodeError:
        os.close(artifact)
        return None
    return CompiledModule(name, key, facts, artifact)


def _make(name: str, key: str, content: bytes, cache: Cache, engine: wasmtime.Engine, kind: _Kind) -> CompiledModule:  # noqa: PLR0917
    """Rewrite and compile a module, and keep it under `key`."""
    with interrupts_let_through():
        validate(engine, name, content)
        content, report = (content + _OWN_NAME, _OWN_REPORT) if kind.own else rewritten(name, content)
        if kind.metered:
            content, metering = rewrite.meter(content, report.functions)
            report = msgspec.structs.replace(report, changed=True, metered=True, metering=metering)
        try:
            module = wasmtime.Module(engine, content)
        except wasmtime.WasmtimeError as failure:
            raise ModuleError(name, reason_of(failure)) from None
        described = describe(module)
        facts = Facts(_original(described, report), seam.PAGES in described.exports, report)
        code = pack(key, module.serialize(), packed(facts))
    artifact = cache.keep(key, code)
    module.close()
    return CompiledModule(name, key, facts, artifact)


def rewritten(name: str, content: bytes) -> rewrite.Rewritten:
    """Return a valid module after rewriting; `name` is for the error.

    Raises:
        ModuleError: It holds something that is not known here, though the engine knows it.
        UnsupportedError: The same, or it uses a name that is reserved.
    """
    try:
        return rewrite.rewrite(content)
    except ModuleError as failure:
        raise ModuleError(name, failure.reason) from None


def _original(described: ModuleDescription, report: Report) -> ModuleDescription:
    """Return the description of the original, given the rewritten module's."""
    return ModuleDescription(
        tuple(msgspec.structs.replace(entry, type=_as_declared(entry.type, report)) for entry in described.imports),
        {name: _as_declared(kind, report) for name, kind in described.exports.items() if not name.startswith(seam.PREFIX)},
    )


def _as_declared(kind: ExternType, report: Report) -> ExternType:
    """Return a type as the original declared it: a 64-bit heap memory was declared over the whole range."""
    memory = report.heap_memory
    if memory is None or kind != _WHOLE_RANGE:
        return kind
    return MemoryType(memory.minimum, memory.maximum, is_64=True, shared=False)
