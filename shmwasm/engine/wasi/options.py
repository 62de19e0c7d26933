"""What WASI grants a guest: arguments, environment, streams and directories."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import wasmtime

from shmwasm.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmwasm.protocol.messages import WasiOptions

Outputs = dict[str, int]
"""Files that the guests of a store write to one after another: the descriptor of each, by its path."""


def grant_wasi(store: wasmtime.Store, options: WasiOptions, outputs: Outputs | None = None) -> None:
    """Let the next guest in `store` have what `options` grants, once WASI's functions are linked; nothing is left of before.

    A path may be `/proc/self/fd/N`, for output into an open descriptor. Output files are created, or emptied if they exist.

    Args:
        store: The store.
        options: What is granted.
        outputs: Output files that guests before this one wrote to: this one goes on there. What is opened now is added.

    Raises:
        ArgumentError: An option names a file or directory that cannot be opened, or holds a null character.
    """
    texts = [*options.args, *options.env, *options.env.values(), *options.preopens, *options.preopens.values()]
    for text in (*texts, options.stdin, options.stdout, options.stderr):
        if "\0" in text:
            raise ArgumentError(f"the WASI option {text!r} holds a null character")
    config = wasmtime.WasiConfig()
    config.argv = options.args
    config.env = options.env.items()
    _grant_streams(config, options, outputs)
    for host, guest in options.preopens.items():
        try:
            config.preopen_dir(host, guest, guest not in options.read_only_preopens)
        except wasmtime.WasmtimeError:
            raise ArgumentError(f"the directory {host!r} cannot be opened for the guest") from None
    store.set_wasi(config)


def _grant_streams(config: wasmtime.WasiConfig, options: WasiOptions, outputs: Outputs | None) -> None:
    for name, wanted in (("stdin", options.stdin), ("stdout", options.stdout), ("stderr", options.stderr)):
        try:
            if wanted == "inherit":
                getattr(config, f"inherit_{name}")()
            elif name == "stdin":
                if wanted:
                    config.stdin_file = wanted
            elif wanted != "discard":
                if outputs is None:
                    setattr(config, f"{name}_file", wanted)
                else:
                    setattr(config, f"{name}_custom", _writer(wanted, outputs))
        except (wasmtime.WasmtimeError, OSError):
            raise ArgumentError(f"the file {wanted!r} cannot be opened as the guest's {name}") from None


def _writer(path: str, outputs: Outputs) -> Callable[[bytes], int]:
    """Return what writes to the output file of that path, opened now unless a guest before had it.

    Raises:
        OSError: It cannot be opened.
    """
    descriptor = outputs.get(path)
    if descriptor is None:
        descriptor = outputs[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(output: bytes) -> int:
        try:
            return os.write(descriptor, output)
        except OSError as failure:
            return -(failure.errno or errno.EIO)

    return write
