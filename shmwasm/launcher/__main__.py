"""`python -m shmwasm.launcher`: started by the coordinator, and of no use without it."""

from __future__ import annotations

import argparse
import gc
import os
import signal

from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import deserialize
from shmwasm.engine.nests import Nest, new_store
from shmwasm.engine.selftest import check_mapping
from shmwasm.engine.wasi import load_adapters
from shmwasm.errors import HeapNoSpaceError, UnsupportedError
from shmwasm.launcher.launcher import Launcher
from shmwasm.launcher.rehearsal import rehearse
from shmwasm.posix.channels import Channel
from shmwasm.worker.attachment import Attachment


def main() -> None:
    """Run the launcher until its coordinator is gone."""
    parser = argparse.ArgumentParser(prog="shmwasm.launcher", description="Forks workers for a coordinator.")
    parser.add_argument("--socket-fd", type=int, required=True, help="descriptor of the channel to the coordinator")
    parser.add_argument("--core-fd", type=int, required=True, help="descriptor of the compiled core")
    parser.add_argument("--wasi-fd", type=int, required=True, help="descriptor of WASI's compiled adapters")
    options = parser.parse_args()
    # A terminal's Ctrl-C goes to every process on it; it is the client's to handle. Workers inherit this: to do it there would
    # cost each of them 100 KiB.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # all that it could free is holes in pages that workers share: see `rehearsal`
    engine = new_engine(parallel_compilation=False)
    core = deserialize(engine, options.core_fd)
    adapters = load_adapters(engine, options.wasi_fd)
    for descriptor in (options.core_fd, options.wasi_fd):
        os.close(descriptor)
    problem = None
    try:
        check_mapping(engine)
        kept = rehearse(engine, core)
    except (UnsupportedError, HeapNoSpaceError) as error:
        kept, problem = [], str(error)
    store = new_store(engine)
    attachment = Attachment(store, core)
    nest = Nest(store, attachment.natives, attachment.natives_64, adapters)
    Launcher(Channel.from_descriptor(options.socket_fd), nest, attachment, problem=problem).run()
    kept.clear()


if __name__ == "__main__":
    main()
