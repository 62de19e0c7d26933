"""What WASI grants a guest: arguments, environment, streams and directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import wasmtime

from shmwasm.errors import ArgumentError

if TYPE_CHECKING:
    from shmwasm.protocol.messages import WasiOptions


def grant_wasi(store: wasmtime.Store, options: WasiOptions) -> None:
    """Let guests in `store` have what `options` grants, once WASI's functions are linked.

    A path may be `/proc/self/fd/N`, for output into an open descriptor. Output files are created, or emptied if they exist.

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
    _grant_streams(config, options)
    for host, guest in options.preopens.items():
        try:
            config.preopen_dir(host, guest, guest not in options.read_only_preopens)
        except wasmtime.WasmtimeError:
            raise ArgumentError(f"the directory {host!r} cannot be opened for the guest") from None
    store.set_wasi(config)


def _grant_streams(config: wasmtime.WasiConfig, options: WasiOptions) -> None:
    stream = "stdin", options.stdin
    try:
        if options.stdin == "inherit":
            config.inherit_stdin()
        elif options.stdin:
            config.stdin_file = options.stdin
        stream = "stdout", options.stdout
        if options.stdout == "inherit":
            config.inherit_stdout()
        elif options.stdout != "discard":
            config.stdout_file = options.stdout
        stream = "stderr", options.stderr
        if options.stderr == "inherit":
            config.inherit_stderr()
        elif options.stderr != "discard":
            config.stderr_file = options.stderr
    except wasmtime.WasmtimeError:
        raise ArgumentError(f"the file {stream[1]!r} cannot be opened as the guest's {stream[0]}") from None
